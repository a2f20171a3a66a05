# SPDX-License-Identifier: Apache-2.0
"""How many bytes are received and not committed, of all streams together: beyond a limit no stream is read."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class InWork:
    """Counts bytes. limit: beyond it :meth:`room` waits; messages that are under way already still come in."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._free = asyncio.Event()
        self._free.set()
        self.bytes = 0

    async def room(self) -> None:
        """Return when another message may be read."""
        while self.bytes >= self._limit:
            self._free.clear()
            await self._free.wait()

    @contextmanager
    def holding(self, size: int) -> Iterator[None]:
        """Count a message while it is in work."""
        self.bytes += size
        try:
            yield
        finally:
            self.bytes -= size
            if self.bytes < self._limit:
                self._free.set()
