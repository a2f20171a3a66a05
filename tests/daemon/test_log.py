# SPDX-License-Identifier: Apache-2.0
import io
import json
import logging
from collections.abc import Iterator

import pytest

from mvps.daemon import log


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    root = logging.getLogger("mvps")
    before = (root.handlers[:], root.level, root.propagate)
    yield
    root.handlers[:], root.level, root.propagate = before[0], before[1], before[2]


def _lines(form: str, journal: bool = False, level: str = "info", **fields: object) -> list[str]:
    out = io.StringIO()
    log.configure(level, form, out, journal=journal)  # type: ignore[arg-type]
    log.event(log.logger("part"), logging.INFO, "happened", **fields)
    return out.getvalue().splitlines()


def test_text_is_key_value_and_quotes_what_needs_it() -> None:
    (line,) = _lines("text", path="/a/b", text='two "words"\nand a line', number=1.5, nothing=None)
    when, level, part, name, rest = line.split(" ", 4)
    assert (level, part, name) == ("info", "part", "happened")
    assert when.endswith("Z")
    assert rest == 'path=/a/b text="two \\"words\\"\\nand a line" number=1.5 nothing=""'


def test_json_is_one_object_a_line() -> None:
    (line,) = _lines("json", text="a\nb", items=["x", "y"], error=ValueError("bad"))
    document = json.loads(line)
    assert document["event"] == "happened"
    assert document["text"] == "a\nb"
    assert document["items"] == "x,y"
    assert document["error"] == "ValueError: bad"


def test_under_journald_a_line_starts_with_its_priority() -> None:
    (line,) = _lines("text", journal=True)
    assert line == "<6>part happened"


@pytest.mark.parametrize("form", ["text", "json"])
def test_bytes_never_reach_the_log(form: str) -> None:
    secret = b"0123456789abcdef0123456789abcdef"
    (line,) = _lines(form, key=secret, view=memoryview(secret), array=bytearray(secret))
    assert "0123456789" not in line
    assert "(32 bytes)" in line


def test_configuring_again_replaces_level_and_stream() -> None:
    assert _lines("text", level="warning") == []
    assert len(_lines("text")) == 1
    assert len(logging.getLogger("mvps").handlers) == 1
