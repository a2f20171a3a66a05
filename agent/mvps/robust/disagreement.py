# SPDX-License-Identifier: Apache-2.0
"""Whose own checks contradict him: witnesses and conservation laws of one kind of vantage, over ticks (ours).

Every vantage is paired with a witness that sees the same state by another road, and with conservation laws where there
are some (DESIGN.md section 3); a snapshot says how many of these checks were done in the tick and how many failed. One
failure is no lie: two counters that are read one after the other may lie on both sides of a burst. So a host is
contradicted once checks failed in ``IN_A_ROW`` ticks in a row of those in which any was done, and until a tick in which
all of them held, or nothing failed for ``AGE_NS``. docs/fleet.md has what that finds, and how often wrongly.

Where more than f hosts are contradicted at the same time, some of them are honest and the check itself is wrong, be it
for a kernel that counts in another way. It then contradicts nobody: at most f hosts lie.

A host that is a liar altogether reports no failure. This is for the lying *vantage* under an honest agent: a probe that
was tampered with, is broken, or is blind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from mvps.coherence.observation import FloatArray
from mvps.coherence.tail import IndexArray

IN_A_ROW: Final = 5
AGE_NS: Final = 600 * 10**9


class _Failing(NamedTuple):
    ticks: int
    last_ns: int


class Disagreement:
    """Hosts of one kind of vantage whose checks fail. f: how many may lie."""

    def __init__(self, f: int) -> None:
        self._f = f
        self._failing: dict[str, _Failing] = {}

    def step(
        self, tick_ns: int, hosts: Sequence[str], host: IndexArray, checked: FloatArray, violated: FloatArray
    ) -> frozenset[str]:
        """Who is contradicted after one more tick.

        host: (M,) places among ``hosts`` of those that reported; checked, violated: (M,) checks done and failed. Ticks
        come in their order.
        """
        failed = violated > 0.0
        held = (checked > 0.0) & ~failed
        if self._failing:
            for at in host[held].tolist():
                self._failing.pop(hosts[at], None)
        for at in host[failed].tolist():
            before = self._failing.get(hosts[at])
            self._failing[hosts[at]] = _Failing(before.ticks + 1 if before else 1, tick_ns)
        if not self._failing:
            return frozenset()
        self._failing = {name: one for name, one in self._failing.items() if one.last_ns > tick_ns - AGE_NS}
        found = frozenset(name for name, one in self._failing.items() if one.ticks >= IN_A_ROW)
        return found if len(found) <= self._f else frozenset()
