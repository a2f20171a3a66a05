# SPDX-License-Identifier: Apache-2.0
"""The replay rule of T-RC-1: a snapshot counts only if its counter AND its time are right.

Counter rule: strictly above the highest one of (vantage, epoch, lane). Time rule: sealed inside a window
around the broker's now; how wide is ours. The live window is short; backfill may be as old as the broker
keeps history, and is never from the future.

State is tentative until the store has it: :class:`ReplayGuard` moves forward on :meth:`~ReplayGuard.admit`,
and :meth:`~ReplayGuard.rewind` takes back what a failed commit never stored. A counter that was seen before
is judged by what the store recorded for it (:func:`judge_repeat`), so that no digests are kept in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, TypeAlias

from mvps.trust.reasons import RejectReason
from mvps.trust.seal import Lane, SealHeader

LaneKey: TypeAlias = tuple[str, int, int]  # vantage id, epoch id, lane


class Freshness(Enum):
    """What the guard says about a verified header."""

    FRESH = "fresh"
    SEEN = "seen"
    STALE = "stale"
    FUTURE = "future"


@dataclass(frozen=True, slots=True)
class Window:
    """Accepted sealing times relative to now, in ns."""

    live_past_ns: int = 300 * 10**9
    backfill_past_ns: int = 24 * 3600 * 10**9
    future_ns: int = 10 * 10**9


class Recorded(NamedTuple):
    """What the store knows of a counter."""

    digest: bytes
    reason: RejectReason | None  # None: it was accepted


class ReplayGuard:
    """Highest counters per (vantage, epoch, lane)."""

    def __init__(self, window: Window, committed: dict[LaneKey, int] | None = None) -> None:
        self._window = window
        self._committed = dict(committed or {})
        self._highest = dict(self._committed)

    def seen(self, header: SealHeader) -> bool:
        """Whether this header's counter is spent."""
        return header.counter <= self._highest.get((header.vantage_id, header.epoch_id, header.lane), -1)

    def admit(self, header: SealHeader, now_ns: int) -> Freshness:
        """Judge a header whose seal holds; FRESH spends its counter, everything else leaves no trace."""
        key = (header.vantage_id, header.epoch_id, header.lane)
        counter = header.counter
        # Counter first: a duplicate of an accepted snapshot is a duplicate however old it has become.
        if counter <= self._highest.get(key, -1):
            return Freshness.SEEN
        age = now_ns - header.time_ns
        past = self._window.live_past_ns if header.lane == Lane.LIVE else self._window.backfill_past_ns
        if age > past:
            return Freshness.STALE
        if age < -self._window.future_ns:
            return Freshness.FUTURE
        self._highest[key] = counter
        return Freshness.FRESH

    def commit(self, key: LaneKey, counter: int) -> None:
        """The store has ``counter``."""
        if counter > self._committed.get(key, -1):
            self._committed[key] = counter
            if counter > self._highest.get(key, -1):
                self._highest[key] = counter

    def rewind(self) -> None:
        """Forget everything that was not committed: a commit failed and its snapshots will be sent again."""
        self._highest = dict(self._committed)


def judge_repeat(digest: bytes, recorded: Recorded | None) -> RejectReason | None:
    """Answer to a counter that was seen before.

    None: a duplicate of an accepted snapshot. A duplicate of a rejected one gets the same reason again.
    """
    if recorded is None:
        return RejectReason.REPLAYED
    if recorded.digest != digest:
        return RejectReason.EQUIVOCATION
    return recorded.reason
