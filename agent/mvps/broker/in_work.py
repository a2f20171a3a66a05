# SPDX-License-Identifier: Apache-2.0
"""How many bytes are received and not committed, of all streams together: beyond a limit no stream is read."""

from __future__ import annotations

import asyncio


class InWork:
    """Counts bytes. limit: beyond it :meth:`room` waits; messages that are under way already still come in."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._free = asyncio.Event()
        self._free.set()
        self.bytes = 0

    @property
    def full(self) -> bool:
        """Whether no stream may be read."""
        return self.bytes >= self._limit

    async def room(self) -> None:
        """Return when another message may be read."""
        while self.full:
            self._free.clear()
            await self._free.wait()

    def add(self, size: int) -> None:
        """A message came."""
        self.bytes += size

    def remove(self, size: int) -> None:
        """A message is committed, or nothing will come of it."""
        self.bytes -= size
        if not self.full:
            self._free.set()
