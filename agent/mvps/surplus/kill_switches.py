# SPDX-License-Identifier: Apache-2.0
"""What takes a policy back within a soak: latency, incidents, schema breaks of the slice (002 sec. 8.3, 11.1).

The text's kill switches are "BH-2 sustained; incident rate +50 % vs. control; p95 latency +25 %; schema break > .5 %
absolute". BH-2 acts in its minute (:mod:`mvps.surplus.governance`). The others compare the slice with the other hosts,
minute by minute, and that difference with what it was for the same hosts in shadow, as the comparison of Xi does:

    latency     mean over hosts of log p95, slice less the others; its limit is log(1 + latency)
    breaks      share of packets whose structure was lost, slice less the others
    incidents   share of host minutes with BH-1 or BH-2 raised, slice less the others; its limit is that share of the
                others since the policy is in force, at least LEAST_INCIDENTS, times ``incidents``

Of n hosts on a side the k with the largest and the k with the least p95, or share of broken packets, do not count, k =
min(outliers, (n - 1) // 2) as in :mod:`mvps.surplus.fleet_health`: a time has no upper bound and a count of packets
outweighs any other, so that one host that lies or errs could hide what the policy does to all others. Alerts cannot be
cut so, as most hosts raise none; there one host moves its side by 1/n at most.

Shares are pooled over the hosts left, and minutes of n and m packets weigh nm/(n + m) in their block (the risk
difference of Mantel and Haenszel by minute; Greenland & Robins 1985): what a minute does to both sides cancels, and
minutes of few packets count for little. Ratios of incident rates have no mean where the others raise nothing, so that
the switch works on differences, with a least rate (ours: 2 % of the host minutes, some thirty minutes of alert in a day
of one host, which is more than calm tenants have).

**Looks.** One at the end of each block of ``BLOCK_MINUTES`` from the ``LEAST_BLOCKS``-th on, at the blocks since the
policy is in force on that slice, as many as a soak has. A switch fires (ours) where the change is estimated
above its limit and evidently above 0, at ``LEVEL`` by Welch's t, or where it is evidently above the limit, at
``BEYOND``. The second alone, at a level that kills as often for nothing, spares most policies that are at their limit;
the first alone finds fewer incidents, whose noise grows with them. Estimated above the limit alone, noise would kill.

Looking at every hour of a day costs six times ``LEVEL`` where no limit stands beside it, so that a switch kills three
calm soaks in a hundred at most, as far as blocks are independent, and hardly any where noise does not reach its limit;
``./bench/run rollout`` measures the rule and its parts, and the hours to a kill. Alerts do not interrupt it, as they do
a soak: they are among what is counted.

What is not known on both sides is not compared: a policy in force on every host, hosts whose engines tell no times.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final, NamedTuple

from mvps.surplus.latency_sketch import LEAST_MS
from mvps.surplus.packets import HealthMinute, Kill
from mvps.surplus.rollout import LEAST_BLOCKS, Blocks, welch

LEVEL: Final = 0.005
BEYOND: Final = 0.02
LEAST_INCIDENTS: Final = 0.02


class Switch(StrEnum):
    """What may fire; the names of the limits in ``packets.Kill``."""

    LATENCY = "latency"
    INCIDENTS = "incidents"
    BREAKS = "breaks"


class Look(NamedTuple):
    """One look. change: of the slice against the others; surely, low: its lower bounds at LEVEL and at BEYOND.

    limit: of the change. All are shares: of the p95, of the host minutes, of the packets. blocks: that were looked at,
    since the policy is in force on that slice.
    """

    switch: Switch
    change: float
    surely: float
    low: float
    limit: float
    blocks: int

    @property
    def fired(self) -> bool:
        """Whether the policy is to be taken back."""
        return self.low > self.limit or (self.surely > 0.0 and self.change > self.limit)

    def __str__(self) -> str:
        least = f"at least {self.low:+.2%}, limit {self.limit:+.2%}"
        if self.switch is Switch.LATENCY:
            return f"p95 of the time per token {self.change:+.1%} against the other hosts ({least})"
        what = "minutes of hosts with an alert" if self.switch is Switch.INCIDENTS else "packets with lost structure"
        return f"{what} {self.change:+.2%} absolute against the other hosts ({least})"


class Reading(NamedTuple):
    """One minute of one switch. difference: slice less the others; NaN: not known. others: their level."""

    difference: float
    weight: float
    others: float


_UNKNOWN: Final = Reading(math.nan, 0.0, math.nan)


class Sides(NamedTuple):
    """One minute of the slice's hosts and of the others."""

    slice: list[HealthMinute]
    others: list[HealthMinute]


def sides(told: Mapping[str, HealthMinute], inside: Collection[str]) -> Sides:
    """One minute (host -> its health) of those in ``inside`` and of those that are not."""
    return Sides(
        [one for host, one in told.items() if host in inside], [one for host, one in told.items() if host not in inside]
    )


def read(switch: Switch, minute: Sides, outliers: int) -> Reading:
    """One minute of one switch. outliers: hosts of either side at either end that do not count."""
    if switch is Switch.LATENCY:
        # A p95 below the sketch's least time is none, 0 included: its logarithm would outweigh everything.
        told = [[one.latency_p95 or 0.0 for one in side] for side in minute]
        times = [[(math.log(ms), 1) for ms in side if ms >= LEAST_MS] for side in told]
        (total, n), (others_total, m) = (_inner(side, outliers) for side in times)
        return Reading(total / n - others_total / m, 1.0, others_total / m) if n and m else _UNKNOWN
    if switch is Switch.BREAKS:
        packets = [[(min(one.broken, one.packets), one.packets) for one in side if one.packets] for side in minute]
        (hits, n), (others_hits, m) = (_inner(side, outliers) for side in packets)
    else:
        (hits, n), (others_hits, m) = ((sum(one.bh1 or one.bh2 for one in side), len(side)) for side in minute)
    if not (n and m):
        return _UNKNOWN
    return Reading(hits / n - others_hits / m, n * m / (n + m), others_hits / m)


def _inner(hosts: Sequence[tuple[float, int]], outliers: int) -> tuple[float, int]:
    """Sum over hosts of (what was counted, of how many), less those whose ratio is at either end."""
    k = min(outliers, (len(hosts) - 1) // 2) if hosts else 0
    inner = sorted(hosts, key=lambda one: one[0] / one[1])[k : len(hosts) - k]
    return sum(counted for counted, _ in inner), sum(of for _, of in inner)


@dataclass(frozen=True)
class Watched:
    """One switch. before: differences of each step's slice in shadow; now: of the present slice since it is in force.

    others: level of the other hosts since then.
    """

    before: tuple[Blocks, ...]
    now: Blocks
    others: Blocks


@dataclass(frozen=True)
class KillSwitches:
    """The switches of one rollout that are not off. looks: the latest of each that had enough blocks."""

    limits: Kill
    outliers: int
    watched: Mapping[Switch, Watched]
    looks: Mapping[Switch, Look]

    @classmethod
    def begin(cls, limits: Kill, steps: int, most: int, outliers: int) -> KillSwitches:
        """In shadow. steps: beyond it. most: blocks to look at on either side. outliers: the policy's."""
        on = [switch for switch in Switch if getattr(limits, switch.value) is not None]
        none = Blocks(most)
        return cls(limits, outliers, {switch: Watched((none,) * steps, none, none) for switch in on}, {})

    def shadowed(self, told: Mapping[str, HealthMinute], slices: Sequence[Collection[str]]) -> KillSwitches:
        """One minute later in shadow. slices: the hosts of each step."""
        minutes = [sides(told, hosts) for hosts in slices]
        watched = {}
        for switch, one in self.watched.items():
            readings = [read(switch, minute, self.outliers) for minute in minutes]
            pairs = zip(one.before, readings, strict=True)
            watched[switch] = replace(one, before=tuple(b.added(r.difference, r.weight) for b, r in pairs))
        return replace(self, watched=watched)

    def moved(self) -> KillSwitches:
        """The slice is another one."""
        watched = {}
        for switch, one in self.watched.items():
            none = Blocks(one.now.most)
            watched[switch] = replace(one, now=none, others=none)
        return replace(self, watched=watched, looks={})

    def in_force(self, at: int, told: Mapping[str, HealthMinute], inside: Collection[str]) -> KillSwitches:
        """One minute later on the ``at``-th step, from 1, whose slice is ``inside``; a look if a block ends."""
        minute = sides(told, inside)
        watched, looks = {}, dict(self.looks)
        for switch, one in self.watched.items():
            reading = read(switch, minute, self.outliers)
            now = one.now.added(reading.difference, reading.weight)
            others = one.others.added(reading.others, reading.weight)
            watched[switch] = replace(one, now=now, others=others)
            if now.minutes:
                continue
            limit: float = getattr(self.limits, switch.value)
            found = look(switch, one.before[at - 1].means, now.means, others.means, limit)
            if found is not None:
                looks[switch] = found
        return replace(self, watched=watched, looks=looks)

    @property
    def fired(self) -> Look | None:
        """The latest look of a switch that fired."""
        return next((look for look in self.looks.values() if look.fired), None)


def look(
    switch: Switch, before: Sequence[float], now: Sequence[float], others: Sequence[float], limit: float
) -> Look | None:
    """By the means of blocks in shadow and since, and the others' level since; None of too few."""
    if min(len(before), len(now)) < LEAST_BLOCKS:
        return None
    found = welch(before, now)
    change, surely, low = found.mean, found.quantile(LEVEL), found.quantile(BEYOND)
    if switch is Switch.LATENCY:
        change, surely, low = map(math.expm1, (change, surely, low))
    elif switch is Switch.INCIDENTS:
        limit *= max(sum(others) / len(others), LEAST_INCIDENTS)
    return Look(switch, change, surely, low, limit, len(now))
