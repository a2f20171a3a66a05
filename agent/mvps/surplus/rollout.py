# SPDX-License-Identifier: Apache-2.0
"""Shadow, canary, gradual, full: on which hosts a policy is in force, and whether it may go further (002 sec. 8.3).

**Slice.** A host is in the slice of share s if its point in [0, 1), a hash of tenant, version of the policy and host,
is below s; if none is, the host with the least point is. So a larger share keeps the hosts of a smaller one, everybody
can compute the slice, and the next version begins on other hosts.

**Comparison.** d_t is the mean Xi of the slice less that of the hosts outside in minute t. Hosts differ, so that d is
compared with what it was *for the same hosts in shadow*, when the policy was in force on none; what all hosts share
cancels within each minute. Minutes are autocorrelated: blocks of ``BLOCK_MINUTES`` are taken as independent, and
Welch's t on their means (ours; the text asks for "no uptick" and gives no test). Three verdicts, one look at each end
of a soak:

    no worse   the upper 95 % bound of the change is below the margin: it may advance
    worse      else, the lower 99 % bound is above 0: back to shadow
    open       else: it soaks again

so that a policy that makes Xi worse by the margin advances in one look of twenty, and one that changes nothing is sent
back in one of a hundred, as far as blocks are independent; tests/surplus/test_rollout.py measures both where they
are not quite. Kill switches look at each block's end (:mod:`mvps.surplus.kill_switches`).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final, NamedTuple

import numpy as np

from mvps.surplus.packets import HealthMinute, Rollout, Stage

BLOCK_MINUTES: Final = 60
# Blocks on either side below which no verdict is given.
LEAST_BLOCKS: Final = 4
_DOMAIN: Final = b"mvps/surplus/slice.v1\x00"
_NO_WORSE: Final = 0.95
_WORSE: Final = 0.99


class Step(NamedTuple):
    """One step of a rollout: its stage, and the share of the hosts on which the policy is in force."""

    stage: Stage
    share: float


def steps(rollout: Rollout) -> tuple[Step, ...]:
    """From shadow to the furthest stage that the policy goes to by itself."""
    every = [
        Step(Stage.SHADOW, 0.0),
        Step(Stage.CANARY, rollout.canary),
        *(Step(Stage.GRADUAL, share) for share in rollout.gradual),
        Step(Stage.FULL, 1.0),
    ]
    order = list(Stage)
    return tuple(one for one in every if order.index(one.stage) <= order.index(rollout.stage))


def point(tenant: str, version: int, host: str) -> float:
    """Place of a host in [0, 1)."""
    named = json.dumps([tenant, version, host], separators=(",", ":")).encode()
    # 53 bits, so that it stays below 1 in a double.
    return (int.from_bytes(hashlib.sha256(_DOMAIN + named).digest()[:8]) >> 11) / 2.0**53


def slice_of(hosts: Collection[str], tenant: str, version: int, share: float) -> frozenset[str]:
    """Hosts on which the policy is in force; at least one, unless the share is 0 or there is none."""
    if share <= 0.0 or not hosts:
        return frozenset()
    points = {host: point(tenant, version, host) for host in hosts}
    return frozenset(host for host in hosts if points[host] < share) or frozenset([min(points, key=points.__getitem__)])


class Verdict(StrEnum):
    """What a comparison says."""

    NO_WORSE = "no worse"
    WORSE = "worse"
    OPEN = "open"


class Comparison(NamedTuple):
    """change: of the difference, in Xi, positive where the slice became worse. low: its lower 99 % bound; high: its
    upper 95 % bound. NaN without enough blocks."""

    verdict: Verdict
    change: float
    low: float
    high: float


def difference(told: Mapping[str, HealthMinute], inside: Collection[str]) -> float:
    """Mean Xi of the slice less that of the other hosts in one minute; NaN where either side knows none."""
    sides: tuple[list[float], list[float]] = ([], [])
    for host, one in told.items():
        if one.xi is not None:
            sides[host in inside].append(one.xi)
    outside, slice_ = sides
    return float(np.mean(slice_) - np.mean(outside)) if slice_ and outside else math.nan


@dataclass(frozen=True)
class Blocks:
    """Differences so far as means of whole blocks of minutes: the last ``most`` of them, and the block that runs.

    A block of which less than half is known is left out. weights: of its known minutes so far.
    """

    most: int
    means: tuple[float, ...] = ()
    minutes: int = 0
    known: int = 0
    total: float = 0.0
    weights: float = 0.0

    def added(self, value: float, weight: float = 1.0) -> Blocks:
        """With one minute more; NaN, or no weight: not known."""
        one = replace(self, minutes=self.minutes + 1)
        if math.isfinite(value) and weight > 0.0:
            one = replace(one, known=one.known + 1, total=one.total + weight * value, weights=one.weights + weight)
        if one.minutes < BLOCK_MINUTES:
            return one
        whole = 2 * one.known >= BLOCK_MINUTES
        return Blocks(self.most, (*self.means, one.total / one.weights)[-self.most :] if whole else self.means)


class Change(NamedTuple):
    """Difference of two sides' means, its standard error and Welch's degrees of freedom."""

    mean: float
    error: float
    freedom: float

    def quantile(self, share: float) -> float:
        """Upper bound of that one-sided confidence."""
        from scipy import special  # only brokers compare, and an agent's package has no scipy

        return self.mean + float(special.stdtrit(self.freedom, share)) * self.error


def welch(before: Sequence[float], now: Sequence[float]) -> Change:
    """From the means of blocks, at least two on either side."""
    parts = [float(np.var(side, ddof=1)) / len(side) for side in (before, now)]
    error = math.sqrt(sum(parts))
    freedom = 1.0
    if error > 0.0:
        shares = [part / sum(parts) for part in parts]
        freedom = 1.0 / sum(s * s / (len(side) - 1) for s, side in zip(shares, (before, now), strict=True))
    return Change(float(np.mean(now) - np.mean(before)), error, freedom)


def compare(before: Sequence[float], now: Sequence[float], margin: float) -> Comparison:
    """Whether a slice is worse than it was, by the means of its blocks in shadow and since."""
    if min(len(before), len(now)) < LEAST_BLOCKS:
        return Comparison(Verdict.OPEN, math.nan, math.nan, math.nan)
    change = welch(before, now)
    low, high = change.quantile(1.0 - _WORSE), change.quantile(_NO_WORSE)
    verdict = Verdict.NO_WORSE if high < margin else Verdict.WORSE if low > 0.0 else Verdict.OPEN
    return Comparison(verdict, change.mean, low, high)
