# SPDX-License-Identifier: Apache-2.0
"""Health of a minute: SSI, CRP, the composite Xi, bands and the alerts BH-1 and BH-2 (002 sec. 2.4, 6, app. B.3).

    SSI_k = (min(x/K, 1) + u Q/(Q+K) + v 1{x >= K}) / (1 + u + v)            in [0, 1]; SSI* = max_k
    CRP   = mean of backlog growth D/(D+K), rework rate, CV/(1+CV), near-miss rate, by weights a, b, c, d
    Xi    = a (1 - SSE) + b CRP~ + c SSI*~  (+ d rise of (1 - SSE) + e rise of CRP~),    a + b + c = 1

The text's SSI exceeds 1, its CRP adds items to rates, and its Xi puts z-scores against bands for [0, 1]: with the
weights of its SQL a healthy tenant is in Emergency more than a quarter of the time. Here ~ is the *tail score* against
the tenant's own calm minutes: with p the share of them at least as high,

    score = min(1, log p / log 0.001),

0 for what is always exceeded, 1 for once in a thousand. So a band says how rare a minute is, and a tenant without a
baseline has no score. +0.8 sigma, the text's limit for CRP, is the score .22.

Alerts are machines over minutes: a number of breaches in a window raises them, and only a run of calm minutes, judged
by a lower limit, clears them, not before a dwell. BH-1 is early for a tenant whose spread falls; one that is only
overloaded reaches BH-2 without it. Values that are not known (NaN) are neither breach nor calm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from mvps.coherence.observation import FloatArray

LEAST_MINUTES = 60
_RAREST = 1e-3
CRP_LIMIT = 0.2246  # tail score of +0.8 sigma: log(1 - Phi(.8)) / log(.001)


def ssi(activity: FloatArray, capacity: FloatArray, backlog: FloatArray, u: float = 1.0, v: float = 1.0) -> FloatArray:
    """SSI_k in [0, 1] of each flow or shard: activity and backlog against capacity, all in its unit.

    A flow without capacity is saturated if anything is asked of it.
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        used = np.where(capacity > 0.0, np.minimum(activity / capacity, 1.0), (activity > 0.0).astype(np.float64))
        queued = np.where(backlog > 0.0, backlog / (backlog + capacity), 0.0)
    hit = (activity >= capacity) & (activity > 0.0)
    pressed: FloatArray = (used + u * queued + v * hit) / (1.0 + u + v)
    return pressed


def ssi_mean(of_flow: FloatArray, weights: FloatArray) -> float:
    """SSI of a system: the weighted mean over its flows."""
    return float(np.average(of_flow, weights=weights))


def ssi_star(of_flow: FloatArray, quantile: float = 1.0) -> float:
    """SSI*: the largest over flows or shards, or a quantile of them (.95) against single outliers."""
    return float(np.quantile(of_flow, quantile, method="higher"))


@dataclass(frozen=True)
class CrpWeights:
    """Weights of backlog growth, rework, variation of turnaround times and near misses (the text gives none)."""

    growth: float = 1.0
    rework: float = 1.0
    variation: float = 1.0
    near_miss: float = 1.0


EQUAL_CRP = CrpWeights()


def crp(
    growth: float, capacity: float, rework: float, variation: float, near_miss: float, weights: CrpWeights = EQUAL_CRP
) -> float:
    """CRP in [0, 1]. growth: of the backlog in the minute, same unit as capacity. variation: CV of turnaround times."""
    rising = max(growth, 0.0)
    parts = (
        (weights.growth, rising / (rising + capacity) if rising > 0.0 else 0.0),
        (weights.rework, rework),
        (weights.variation, variation / (1.0 + variation) if math.isfinite(variation) else 1.0),
        (weights.near_miss, near_miss),
    )
    return sum(weight * part for weight, part in parts) / sum(weight for weight, _ in parts)


@dataclass(frozen=True)
class TenantBaseline:
    """Calm minutes of one tenant: the last ``most`` values of one indicator, oldest first."""

    values: tuple[float, ...] = ()
    most: int = 1440

    def learned(self, value: float) -> TenantBaseline:
        """With one more calm minute; one that is not known is none."""
        if not math.isfinite(value):
            return self
        return replace(self, values=(*self.values, value)[-self.most :])

    @property
    def ready(self) -> bool:
        """Whether there are enough minutes to judge by."""
        return len(self.values) >= LEAST_MINUTES

    def exceeded(self, value: float) -> float:
        """p in (0, 1]: share of minutes at least as high, the one judged counted among them; NaN if not ready."""
        if not self.ready or not math.isfinite(value):
            return math.nan
        return (1 + sum(one >= value for one in self.values)) / (1 + len(self.values))

    def score(self, value: float) -> float:
        """Tail score in [0, 1] of a value of which high is bad."""
        return min(math.log(self.exceeded(value)) / math.log(_RAREST), 1.0)


class Band(IntEnum):
    """State of a tenant."""

    GREEN = 0
    CAUTION = 1
    ACTION = 2
    EMERGENCY = 3


@dataclass(frozen=True)
class Limits:
    """Where bands and alerts begin (sec. 6.1, 6.2, app. B.6.2), and how much lower they end.

    The text's Action band is missing from its YAML, and .65 raises BH-2 inside it: a single minute at .65 is Action,
    .65 repeated is BH-2 and with that Emergency.
    """

    caution: float = 0.35
    action: float = 0.55
    emergency: float = 0.75
    margin: float = 0.05
    band_dwell: int = 3
    sse: float = 0.45
    sse_calm: float = 0.55
    crp: float = CRP_LIMIT
    crp_calm: float = 0.14  # +0.3 sigma, the text's exit criterion
    xi: float = 0.65

    def band(self, xi: float, now: Band = Band.GREEN) -> Band:
        """Band of one minute, seen from the present one: to leave it downwards takes ``margin`` less."""
        starts = (-math.inf, self.caution, self.action, self.emergency)
        reached = max(band for band in Band if xi >= starts[band])
        if reached >= now:
            return reached
        return max(band for band in Band if band <= now and (xi >= starts[band] - self.margin or band is Band.GREEN))


@dataclass(frozen=True)
class Weights:
    """Of Xi: concentration a, fragility b and stress c, which are scaled to sum 1, and the surge terms d and e.

    a, b and c are those of the text's SQL, and the part of an indicator that is not known is left out; d and e are
    ours: of .25 the noise of a healthy tenant alone makes 3 % of its minutes Action.
    """

    concentration: float = 0.6
    fragility: float = 0.8
    stress: float = 0.8
    concentration_surge: float = 0.1
    fragility_surge: float = 0.1


@dataclass(frozen=True)
class Alarm:
    """An alert over minutes: raised by ``need`` breaches among the last ``window``; cleared by ``quiet`` calm minutes
    in a row, but not within ``dwell`` minutes of being raised."""

    need: int
    window: int
    quiet: int = 3
    dwell: int = 5
    raised: bool = False
    age: int = 0
    calm: int = 0
    breaches: tuple[bool, ...] = ()

    def step(self, breach: bool, calm: bool) -> Alarm:
        """The alert one minute later."""
        recent = (*self.breaches, breach)[-self.window :]
        run = self.calm + 1 if calm and not breach else 0
        if not self.raised:
            raised = sum(recent) >= self.need
            return replace(self, raised=raised, age=0, calm=run, breaches=recent)
        age = self.age + 1
        clears = run >= self.quiet and age >= self.dwell
        # What raised it before must not raise it again.
        return replace(self, raised=not clears, age=age, calm=run, breaches=() if clears else recent)


class Minute(NamedTuple):
    """Indicators of one minute of one tenant; NaN where not known."""

    sse: float
    crp: float
    ssi_star: float


class Health(NamedTuple):
    """Verdict on one minute. Scores and Xi are NaN until a baseline is ready; SSE where no text was ever seen."""

    sse: float
    crp_score: float
    ssi_score: float
    xi: float
    band: Band
    bh1: bool
    bh2: bool


@dataclass(frozen=True)
class Watch:
    """What is remembered of one tenant from minute to minute.

    ema: weight of the past in smoothing SSE and CRP. The baseline learns from minutes below Action without alert, and
    until it is ready from all.
    """

    limits: Limits = field(default_factory=Limits)
    weights: Weights = field(default_factory=Weights)
    ema: float = 0.75
    crp_baseline: TenantBaseline = field(default_factory=TenantBaseline)
    ssi_baseline: TenantBaseline = field(default_factory=TenantBaseline)
    bh1: Alarm = field(default_factory=lambda: Alarm(need=3, window=3))
    bh2: Alarm = field(default_factory=lambda: Alarm(need=3, window=10))
    band: Band = Band.GREEN
    below: int = 0
    sse: float = math.nan
    crp: float = math.nan
    crp_score: float = math.nan

    def step(self, minute: Minute) -> tuple[Watch, Health]:
        """Judge one minute."""
        sse, crp_value = _smoothed(self.sse, minute.sse, self.ema), _smoothed(self.crp, minute.crp, self.ema)
        crp_score, ssi_score = self.crp_baseline.score(crp_value), self.ssi_baseline.score(minute.ssi_star)
        seen = math.isfinite(minute.crp) or math.isfinite(minute.ssi_star)
        xi = self._xi(sse, crp_score, ssi_score) if seen else math.nan
        limits = self.limits
        bh1 = self.bh1.step(
            sse <= limits.sse and crp_score >= limits.crp, sse >= limits.sse_calm or crp_score <= limits.crp_calm
        )
        bh2 = self.bh2.step(xi >= limits.xi, xi < limits.action)
        band, below = self._band(xi, bh1.raised, bh2.raised)
        crp_baseline, ssi_baseline = self.crp_baseline, self.ssi_baseline
        # Not known is not calm, except while there is nothing yet to judge by. Leaving out Caution as well would cut
        # the baseline's tail, and what is left of it again, until every minute is rare.
        calm = band < Band.ACTION and math.isfinite(xi) and not (bh1.raised or bh2.raised)
        if calm or not crp_baseline.ready:
            crp_baseline = crp_baseline.learned(crp_value)
        if calm or not ssi_baseline.ready:
            ssi_baseline = ssi_baseline.learned(minute.ssi_star)
        after = replace(
            self,
            crp_baseline=crp_baseline,
            ssi_baseline=ssi_baseline,
            bh1=bh1,
            bh2=bh2,
            band=band,
            below=below,
            sse=sse,
            crp=crp_value,
            crp_score=crp_score,
        )
        return after, Health(sse, crp_score, ssi_score, xi, band, bh1.raised, bh2.raised)

    def _xi(self, sse: float, crp_score: float, ssi_score: float) -> float:
        w = self.weights
        parts = ((w.concentration, 1.0 - sse), (w.fragility, crp_score), (w.stress, ssi_score))
        known = [(weight, part) for weight, part in parts if math.isfinite(part)]
        if not (math.isfinite(crp_score) or math.isfinite(ssi_score)):
            return math.nan
        xi = sum(weight * part for weight, part in known) / sum(weight for weight, _ in known)
        surge = w.concentration_surge * _rise(-self.sse, -sse) + w.fragility_surge * _rise(self.crp_score, crp_score)
        return min(xi + surge, 1.0)

    def _band(self, xi: float, bh1: bool, bh2: bool) -> tuple[Band, int]:
        """Band and minutes below it: upwards at once, downwards after the dwell; alerts hold it up."""
        if math.isnan(xi):
            return self.band, self.below
        reached = self.limits.band(xi, self.band)
        if bh2:
            reached = Band.EMERGENCY
        elif bh1:
            reached = max(reached, Band.ACTION)
        if reached >= self.band:
            return reached, 0
        below = self.below + 1
        return (reached, 0) if below >= self.limits.band_dwell else (self.band, below)


def text_xi(sse: FloatArray, crp_z: FloatArray, ssi_z: FloatArray) -> FloatArray:
    """The text's Xi on z-scores with the weights of its SQL (.6, .8, .8), kept to compare."""
    xi: FloatArray = 0.6 * (1.0 - sse) + 0.8 * crp_z + 0.8 * ssi_z
    return xi


def _smoothed(before: float, now: float, ema: float) -> float:
    """EMA that begins with its first value and keeps its last where nothing is known."""
    if not math.isfinite(before) or not math.isfinite(now):
        return before if not math.isfinite(now) else now
    return ema * before + (1.0 - ema) * now


def _rise(before: float, now: float) -> float:
    """Growth, not below 0; 0 where either is not known."""
    return max(now - before, 0.0) if math.isfinite(before) and math.isfinite(now) else 0.0
