# SPDX-License-Identifier: Apache-2.0
"""The reader of an engine's page against real servers: one that tells, breaks, is gone, and comes back."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from tests.waiting import until

from mvps.engine_metrics.exposition import MAX_BYTES
from mvps.serving.engine_load import STALE_S, LoadReader

PAGE = """\
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_waiting{engine="0",model_name="m"} 2.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.5
"""


class Page:
    """A page that can be changed, behind a port of the loopback."""

    def __init__(self) -> None:
        self.text, self.status, self.asked = PAGE, 200, 0
        page = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                page.asked += 1
                body = page.text.encode()
                self.send_response(page.status)
                self.send_header("Content-Length", str(len(body)))
                if page.status == 302:
                    self.send_header("Location", "/elsewhere")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/metrics"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def page() -> Iterator[Page]:
    made = Page()
    yield made
    made.close()


def test_what_the_page_says_is_the_load(page: Page) -> None:
    reader = LoadReader(page.url, "m", 8, every_s=0.01)
    assert reader.read() is None, "nothing is known before the first page"
    reader.start()
    until(lambda: reader.read() is not None)
    load = reader.read()
    assert load is not None
    assert (load.running, load.waiting, load.slots, load.kv_cache_use) == (3, 2, 8, 0.5)
    page.text = PAGE.replace(" 3.0", " 7.0") + PAGE.replace('engine="0"', 'engine="1"')
    until(lambda: (now := reader.read()) is not None and now.running == 10)
    load = reader.read()
    assert load is not None
    assert load.slots == 16, "of every engine on the page"
    reader.close()
    asked = page.asked
    assert reader.problem == ""
    threading.Event().wait(0.05)
    assert page.asked == asked, "a reader that is closed asks no more"


@pytest.mark.parametrize(
    ("text", "status", "said"),
    [
        (PAGE, 500, "status 500"),
        (PAGE, 302, "status 302"),
        ("nothing of ours 1\n", 200, "no gauge of running requests"),
        ("#" * (MAX_BYTES + 1), 200, "more than"),
    ],
)
def test_a_page_that_cannot_be_read_says_why_and_ends_the_load(
    page: Page, text: str, status: int, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    now = 0.0
    caplog.set_level(logging.INFO)
    reader = LoadReader(page.url, "m", every_s=0.01, clock=lambda: now).start()
    until(lambda: reader.read() is not None)
    page.text, page.status = text, status
    until(lambda: reader.failures >= 3)
    assert said in reader.problem
    assert page.url in reader.problem
    assert reader.read() is not None, "one failure takes nothing away"
    now = STALE_S + 1.0
    assert reader.read() is None
    page.text, page.status = PAGE, 200
    until(lambda: reader.read() is not None)
    reader.close()
    assert reader.problem == ""
    told = [(one.levelname, said in one.message) for one in caplog.records]
    assert told == [("WARNING", True), ("INFO", False)], "a change is logged, and not every second"


def test_a_server_that_is_gone_is_a_problem_and_not_an_end(page: Page) -> None:
    url = page.url
    page.server.socket.close()
    reader = LoadReader(url, "m", every_s=0.01).start()
    until(lambda: reader.failures >= 2)
    assert "refused" in reader.problem
    reader.close()


@pytest.mark.parametrize("url", ["localhost:8000/metrics", "ftp://h/metrics", "http:///metrics", "http://me:key@h/m"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="is no http"):
        LoadReader(url, "m")


def test_a_port_that_is_none_is_named_with_its_setting() -> None:
    with pytest.raises(ValueError, match="metrics 'http://h:99999/m': Port out of range"):
        LoadReader("http://h:99999/m", "m")
