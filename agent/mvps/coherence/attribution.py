# SPDX-License-Identifier: Apache-2.0
"""Which vantage leads: the moved vantage that no other moved vantage explains (ours).

The largest standardised own distance names the loudest vantage, not the first cause. On recorded faults a thrashing
memory cgroup moves the block layer farther than memory itself, because every reclaimed page is read again; block
completions run as softirqs; a choked link shifts traffic between next hops. Those directions are known from how the
kernel works (000 sec. 1.2 gives the chain memory -> block -> socket), so the lead is taken among the moved vantages
that are nobody's consequence, and the standardised distance only breaks ties.

A cause explains only what is in proportion to it: on a busy host the scheduler is often a little over its cut-off
while a broken link is a hundred times over its own.

Distances of different surfaces are compared in units of their own surface's WATCH cut-off for S.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from mvps.coherence.phase import HYSTERESIS_TICKS

# cause -> effects that follow from it by mechanism. Anything not listed is compared by distance alone.
CONSEQUENCES: Mapping[str, frozenset[str]] = {
    # Reclaimed file pages are read back; direct reclaim burns CPU and its reads complete in softirqs.
    "mm": frozenset({"blk", "irq", "sched"}),
    # Completions are softirqs.
    "blk": frozenset({"irq"}),
    # A task that waits for a CPU acknowledges late and is served late; ksoftirqd waits with it.
    "sched": frozenset({"sock", "irq", "path", "path_tcp"}),
    # A changed route moves traffic, and the new path has another round trip.
    "path_fib": frozenset({"path", "path_tcp", "sock", "irq"}),
    # Lost and queued segments change who sends how much, and so the traffic's shares; the table does not move.
    "sock": frozenset({"path", "path_tcp", "irq"}),
}

# A cause explains an effect at most this many times as far over its cut-off as itself. Recorded faults
# (bench/records/2026-11-20): true pairs 3.2 at the 95th percentile and 8.3 at most, whereas a choked link with a
# scheduler that merely happened to move gives 14 to 160.
REACH = 10.0
# Softirqs only ever serve somebody and are steady otherwise, so that they follow at any distance (blk: up to 80).
FOLLOWS_AT_ANY_DISTANCE = frozenset({"irq"})


class Attribution:
    """The lead over the last ``ticks`` ticks, as many as it takes to change the phase: one noisy tick names nobody.

    Of equally frequent leads the latest wins.
    """

    def __init__(self, ticks: int = HYSTERESIS_TICKS) -> None:
        self._recent: deque[str] = deque(maxlen=ticks)

    def step(self, own: Mapping[str, float], moves_at: Mapping[str, float]) -> str:
        """Take in one tick (arguments as for :func:`lead`); the name that leads now, or ""."""
        self._recent.append(lead(own, moves_at))
        named = [name for name in self._recent if name]
        return max(reversed(named), key=named.count, default="")


def lead(own: Mapping[str, float], moves_at: Mapping[str, float]) -> str:
    """The leading vantage of one tick, or "" when none moved.

    own: standardised own distance per vantage, over all surfaces of the host.
    moves_at: per vantage its surface's ``Baseline.moved``, > 0; a vantage moved when it is at or over it.
    """
    moved = {name: z / moves_at[name] for name, z in own.items() if z >= moves_at[name]}
    explained = {
        effect
        for cause, by in moved.items()
        for effect in CONSEQUENCES.get(cause, ())
        if effect in FOLLOWS_AT_ANY_DISTANCE or moved.get(effect, 0.0) <= REACH * by
    }
    causes = {name: by for name, by in moved.items() if name not in explained} or moved
    return max(causes, key=causes.__getitem__, default="")
