# SPDX-License-Identifier: Apache-2.0
"""The replay rule of T-RC-1: a snapshot counts only if its counter AND its time are right.

Counter rule: strictly above the highest one of (vantage, epoch, lane). Time rule: sealed inside a window
around the broker's now; how wide is ours. The live window is short; backfill may be as old as the broker
keeps history, and is never from the future. What the broker has forgotten must not come again as backfill: the gate
has the sealing time from which on that cannot be. It applies both rules (:mod:`mvps.trust.gate`). A counter that was
seen before is judged by what the store recorded for it (:func:`judge_repeat`), so that no digests are kept in
memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from mvps.trust.reasons import RejectReason

LaneKey: TypeAlias = tuple[str, int, int]  # vantage id, epoch id, lane


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


def judge_repeat(digest: bytes, recorded: Recorded | None) -> RejectReason | None:
    """Answer to a counter that was seen before.

    None: a duplicate of an accepted snapshot. A duplicate of a rejected one gets the same reason again.
    """
    if recorded is None:
        return RejectReason.REPLAYED
    if recorded.digest != digest:
        return RejectReason.EQUIVOCATION
    return recorded.reason
