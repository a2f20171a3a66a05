# SPDX-License-Identifier: Apache-2.0
"""How fast a backlog may leave: a token bucket without a clock of its own."""

from __future__ import annotations

# Tokens are handed out in pieces of this many seconds' worth, so that a backlog does not wake the sender for each one.
CHUNK_S = 0.1


class Pacer:
    """Allows ``rate`` items a second, in chunks, and never more than one chunk after a pause.

    All times are those of one monotonic clock, in seconds.
    """

    def __init__(self, rate: float, now: float = 0.0) -> None:
        if not rate > 0:
            raise ValueError(f"a rate of {rate} items a second lets nothing through")
        self._rate = rate
        self._most = max(rate * CHUNK_S, 1.0)
        self._tokens = self._most
        self._at = now

    def allow(self, now: float) -> int:
        """Items that may leave now."""
        # A clock that seems to go backwards (another caller's older reading) takes nothing back.
        self._tokens = min(self._tokens + max(now - self._at, 0.0) * self._rate, self._most)
        self._at = max(now, self._at)
        return int(self._tokens + 1e-9)

    def spend(self, items: int) -> None:
        """``items`` of what :meth:`allow` offered have left."""
        self._tokens -= items

    def wait_s(self, now: float) -> float:
        """Seconds until the next chunk is due; 0 when one is."""
        self.allow(now)
        return max(self._most - self._tokens, 0.0) / self._rate
