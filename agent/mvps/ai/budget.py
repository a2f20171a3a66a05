# SPDX-License-Identifier: Apache-2.0
"""How many questions may be asked: a bucket of requests that fills with time."""

from __future__ import annotations


class Budget:
    """``per_hour`` requests, of which at most ``burst`` at once.

    A question costs the replicas real work, so what does not fit is not asked now; whoever asks counts it.
    """

    def __init__(self, per_hour: float, burst: int, now: float) -> None:
        self._rate = per_hour / 3600.0
        self._burst = float(burst)
        self._there = self._burst
        self._then = now

    def take(self, requests: int, now: float) -> bool:
        """Take so many at time ``now`` in seconds, monotonic; False, and nothing taken, when there are fewer."""
        self._there = min(self._burst, self._there + max(now - self._then, 0.0) * self._rate)
        self._then = max(now, self._then)
        if requests > self._there:
            return False
        self._there -= requests
        return True
