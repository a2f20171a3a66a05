# SPDX-License-Identifier: Apache-2.0
"""The identity limit: how fast one vantage may send once its seals hold (rate_limit_factor of T-VDOS-1).

GCRA, the leaky bucket as one time per vantage; its streams and both lanes draw from it. Nothing is refused and nothing
is lost: what it sent beyond its rate is taken, and then its streams are not read until it is back inside.

No wait is longer than LONGEST_WAIT_S, whatever the debt, because a sender takes a broker for dead that answers nothing
for longer; debt beyond it is forgiven. So a stream is never slower than one batch in that time.
"""

from __future__ import annotations

from typing import Final

LONGEST_WAIT_S: Final = 10.0
_SWEEP: Final = 1024  # entries at least before those that are back inside their rate are dropped


class IdentityLimit:
    """Times by vantage. burst: snapshots a vantage may send at once after a pause."""

    def __init__(self, burst: int) -> None:
        self._burst = burst
        self._due: dict[str, float] = {}  # when what was sent would have been due at the rate
        self._sweep_at = _SWEEP

    def charge(self, vantage_id: str, snapshots: int, rate: float, now: float) -> float:
        """Seconds until the vantage may be read again; 0.0 while it is inside its rate.

        rate: snapshots per second. now: of a clock that never goes back, in seconds.
        """
        if len(self._due) >= self._sweep_at:
            self._sweep(now)
        allowed = now + self._burst / rate
        due = min(max(self._due.get(vantage_id, now), now) + snapshots / rate, allowed + LONGEST_WAIT_S)
        self._due[vantage_id] = due
        return max(due - allowed, 0.0)

    def _sweep(self, now: float) -> None:
        self._due = {name: due for name, due in self._due.items() if due > now}
        self._sweep_at = max(2 * len(self._due), _SWEEP)
