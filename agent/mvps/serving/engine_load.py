# SPDX-License-Identifier: Apache-2.0
"""The engine's own load for its link: read from its metrics page, once a second, in a thread of its own.

What is not known is not told: ``STALE_S`` after the last page that could be read the engine has no part in the pressure
of its host, instead of its last value for ever. Why there is none is in ``problem``, and logged when it changes.
"""

from __future__ import annotations

import http.client
import logging
import threading
import time
from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

from mvps.engine_metrics.exposition import MAX_BYTES
from mvps.engine_metrics.gauges import gauges
from mvps.v1 import local_pb2 as pb

EVERY_S: Final = 1.0
STALE_S: Final = 5.0
_TIMEOUT_S: Final = 2.0

_log = logging.getLogger(__name__)


class LoadReader:
    """The load of one model on a page, begun with ``start`` and ended with ``close``.

    url: http or https, as of vLLM and SGLang the port of the API and /metrics. slots: requests that one engine of the
    page runs at a time (vLLM's --max-num-seqs), 0 where that is not known: then only the cache counts.
    ValueError: the URL is none.
    """

    def __init__(
        self,
        url: str,
        model: str,
        slots: int = 0,
        every_s: float = EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError as error:
            raise ValueError(f"metrics {url!r}: {error}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
            raise ValueError(f"metrics {url!r} is no http:// or https:// address without a user")
        connection = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        host = parts.hostname
        self._connect: Callable[[], http.client.HTTPConnection] = lambda: connection(host, port, timeout=_TIMEOUT_S)
        self._path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._url = url
        self._model = model
        self._slots = slots
        self._every_s = every_s
        self._clock = clock
        self._latest: tuple[float, pb.EngineLoad] | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mvps-engine-load", daemon=True)
        self.problem = ""
        self.failures = 0

    def start(self) -> LoadReader:
        """Begin to read."""
        self._thread.start()
        return self

    def close(self) -> None:
        """End, at once or with the answer that is awaited. Idempotent."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(_TIMEOUT_S)

    def read(self) -> pb.EngineLoad | None:
        """The latest load, or None where it is not known any more. Never waits."""
        latest = self._latest
        if latest is None or self._clock() - latest[0] > STALE_S:
            return None
        return latest[1]

    def _run(self) -> None:
        while not self._stopping.is_set():
            began = self._clock()
            problem = ""
            try:
                told = gauges(self._page(), self._model)
                slots = self._slots * told.engines
                load = pb.EngineLoad(
                    running=told.running, waiting=told.waiting, slots=slots, kv_cache_use=told.kv_cache
                )
                self._latest = began, load
            except (OSError, http.client.HTTPException, ValueError) as error:
                self.failures += 1
                problem = f"{self._url}: {str(error) or type(error).__name__}"
            if problem != self.problem:
                if problem:
                    _log.warning("the engine's load is not known: %s", problem)
                else:
                    _log.info("the engine's load is known again: %s", self._url)
                self.problem = problem
            self._stopping.wait(self._every_s)

    def _page(self) -> str:
        connection = self._connect()
        try:
            connection.request("GET", self._path)
            answer = connection.getresponse()
            if answer.status != 200:  # a redirection too
                raise ValueError(f"status {answer.status}")
            page = answer.read(MAX_BYTES + 1)
            if len(page) > MAX_BYTES:
                raise ValueError(f"more than {MAX_BYTES} bytes")
            return page.decode()
        finally:
            connection.close()
