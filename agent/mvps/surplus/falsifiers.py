# SPDX-License-Identifier: Apache-2.0
"""Whether the claims of 002 sec. 7 survive their falsifiers, with the power to have found them false.

The text calls a claim falsified where p >= .05. That makes a failure of every trial that was too small (F5 asks for
five matched days, with which a two-sided signed-rank test cannot come below p = .0625), so here (ours) a claim about an
effect has a least value ``least`` that it must exceed, and a ``meaningful`` effect above that. With the 95 % interval
of the effect from independent pairs (Student's t):

    held             the interval lies above ``least``
    failed           it does not, and lies below ``least + meaningful``: what would matter is excluded
    underpowered     neither: more pairs are needed
    not testable     there is nothing here that could show it either way

Power is that of "held" for an effect of ``least + meaningful`` with the spread that was seen (noncentral t).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

import numpy as np
from scipy import stats

from mvps.coherence.observation import FloatArray
from mvps.surplus.handoffs import T0, T1, T2, T3, Run
from mvps.surplus.retrial_queue import Ramp, RampPlan, Trace, Workload, ramp

LEAST_PAIRS = 6
_LEAD_CAP = 30.0  # minutes: an alarm that has been on for longer warns of nothing any more
_UNKNOWN = (math.nan, math.nan, math.nan, math.nan)  # effect, low, high, power


class Verdict(StrEnum):
    """What became of a claim."""

    HELD = "held"
    FAILED = "failed"
    UNDERPOWERED = "underpowered"
    NOT_TESTABLE = "not testable"


class Outcome(NamedTuple):
    """One falsifier. effect, low, high: of what ``claim`` is about; power: as above; NaN where not testable."""

    name: str
    claim: str
    verdict: Verdict
    effect: float
    low: float
    high: float
    power: float
    pairs: int
    note: str


def judge(name: str, claim: str, values: Sequence[float], least: float, meaningful: float, note: str = "") -> Outcome:
    """Verdict on a claim whose effect was seen once in each pair. ValueError unless ``meaningful`` is positive."""
    if meaningful <= 0.0:
        raise ValueError(f"a meaningful effect of {meaningful}: give what would matter, above 0")
    seen = np.array([value for value in values if math.isfinite(value)])
    if len(seen) < LEAST_PAIRS:
        words = f"{len(seen)} pairs, {LEAST_PAIRS} are needed"
        return Outcome(name, claim, Verdict.UNDERPOWERED, *_UNKNOWN, len(seen), words)
    mean = float(seen.mean())
    error = float(seen.std(ddof=1)) / math.sqrt(len(seen))
    bound = float(stats.t.ppf(0.975, len(seen) - 1))
    low, high = mean - bound * error, mean + bound * error
    power = float(stats.nct.sf(bound, len(seen) - 1, meaningful / error)) if error > 0.0 else 1.0
    if low > least:
        verdict = Verdict.HELD
    elif high < least + meaningful:
        verdict = Verdict.FAILED
    else:
        verdict = Verdict.UNDERPOWERED
    return Outcome(name, claim, verdict, mean, low, high, power, len(seen), note)


def rises_superlinearly(trace: Trace, plan: RampPlan, found: Ramp) -> float:
    """Elasticity of failures near the collapse: log of their ratio over log of the loads', 1 where they grow in
    proportion. Between the step of the collapse and the one two steps below; NaN without a collapse or that step."""
    if not math.isfinite(found.collapse):
        return math.nan
    begin = plan.calm
    up = slice(begin, begin + len(plan.loads(0)[1]))
    load, failed = trace.load[up], trace.failed[up]
    before = found.collapse - 2.0 * plan.step
    at = np.isclose(load, found.collapse)
    below = np.isclose(load, before)
    if not below.any():
        return math.nan
    # Half a failure more in either, so that none at all is no infinity.
    ratio = (failed[at].sum() + 0.5) / (failed[below].sum() + 0.5)
    return float(np.log(ratio) / np.log(found.collapse / before))


class Arm(NamedTuple):
    """Ramps of one arm of an experiment, by seed: arms of the same seeds are matched."""

    ramps: tuple[Ramp, ...]
    steepness: tuple[float, ...]


def run_arm(workload: Workload, plan: RampPlan, seeds: Sequence[int]) -> Arm:
    """One ramp pair for each seed."""
    ramps, steepness = [], []
    for seed in seeds:
        found, trace = ramp(workload, plan, seed)
        ramps.append(found)
        steepness.append(rises_superlinearly(trace, plan, found))
    return Arm(tuple(ramps), tuple(steepness))


def e1(arm: Arm) -> list[Outcome]:
    """F1 to F3 and F11, on ramps up and down."""
    ramps = arm.ramps
    bands = [_capped(one.lead) for one in ramps if math.isfinite(one.collapse)]
    naive = [_capped(one.utilisation_lead) for one in ramps if math.isfinite(one.collapse)]
    return [
        judge("F1", "failures rise faster than load near the collapse (elasticity)", arm.steepness, 1.0, 1.0),
        judge("F2", "recovery needs a lower load than collapse (gap)", [one.gap for one in ramps], 0.0, 0.1),
        judge("F3", "Action leads the collapse (minutes, interactive)", bands, 2.0, 1.0),
        judge(
            "F11",
            "bands lead by more than utilisation at equal false alarms (minutes)",
            [one - other for one, other in zip(bands, naive, strict=True)],
            0.0,
            2.0,
        ),
    ]


def e2(baseline: Arm, buffered: Arm, plan: RampPlan) -> list[Outcome]:
    """F4 and F5, on matched ramps with and without a buffer."""
    pairs = list(zip(baseline.ramps, buffered.ramps, strict=True))
    # Without a collapse in the ramp, the next step is the least it can be.
    beyond = plan.high + plan.step
    shift = [_or(other.collapse, beyond) - _or(one.collapse, beyond) for one, other in pairs]
    sooner = [one.exit - other.exit for one, other in pairs]
    return [
        judge("F4", "the collapse moves to a higher load", shift, 0.0, plan.step),
        judge("F5", "CRP on the way up is lower", [one.fragility - other.fragility for one, other in pairs], 0.0, 0.02),
        judge("F5", "Emergency ends sooner after the turn (minutes)", sooner, 0.0, 15.0),
    ]


def e3(runs: Mapping[str, Sequence[Run]]) -> list[tuple[str, Outcome]]:
    """F6 to F8, on runs of the same seeds under each treatment, by its name; with the treatment that each is about."""
    none, static, stressed = (runs[one.name] for one in (T0, T1, T2))

    def less(before: Sequence[Run], after: Sequence[Run], figure: str) -> list[float]:
        return [getattr(one, figure) - getattr(other, figure) for one, other in zip(before, after, strict=True)]

    found = []
    for name in (T1.name, T2.name, T3.name):
        treated = runs[name]
        found += [
            (name, judge("F6", "fewer handoffs (share of steps)", less(none, treated, "flips"), 0.0, 0.05)),
            (name, judge("F6", "quality is kept to .02", less(treated, none, "quality"), -0.02, 0.02)),
            (name, judge("F7", "work is spread wider (SSE)", less(treated, none, "spread"), 0.0, 0.02)),
            (name, judge("F7", "fewer jobs are late (share)", less(none, treated, "late"), 0.0, 0.02)),
        ]
    found.append((T2.name, judge("F8", "CRP is lower than at a static cost", less(static, stressed, "crp"), 0.0, 0.02)))
    return found


def looking_ahead(ahead: Sequence[float], plain: Sequence[float]) -> Outcome:
    """F10, on pass rates of a task with and without looking ahead, of the same models at the same KL.

    The text asks for J, which cannot fail: it is what is maximised (ours: the task itself).
    """
    gained = [one - other for one, other in zip(ahead, plain, strict=True)]
    return judge("F10", "looking ahead raises the task pass rate at equal KL", gained, 0.0, 0.02)


UNTESTED: Mapping[str, str] = {
    "F9": "lambda coupled to the host against a fixed one: it needs a decoding loop whose answers suffer from load",
    "F10": "as written it cannot fail, since J is what is maximised; by a task's pass rate: ./bench/run jsontask",
}


def untested() -> list[Outcome]:
    """The falsifiers that nothing here can try, and why."""
    return [Outcome(name, "", Verdict.NOT_TESTABLE, *_UNKNOWN, 0, why) for name, why in UNTESTED.items()]


class Survival(NamedTuple):
    """Time on the way up until BH-2: share of ramps without it after each minute, and the log-rank test of two arms.

    minutes, without: steps of the Kaplan-Meier curves, by arm. p_value: two-sided.
    """

    minutes: tuple[FloatArray, FloatArray]
    without: tuple[FloatArray, FloatArray]
    p_value: float


def survival(baseline: Arm, buffered: Arm, plan: RampPlan) -> Survival:
    """Kaplan-Meier curves of two arms; a ramp that reached its top without BH-2 is censored there."""
    top = float(len(plan.loads(0)[1]))
    samples = []
    for arm in (baseline, buffered):
        times = np.array([_or(one.until_bh2, top) for one in arm.ramps])
        samples.append(stats.CensoredData.right_censored(times, times >= top))
    curves = [stats.ecdf(sample).sf for sample in samples]
    test = stats.logrank(*samples)
    first, second = curves
    minutes, without = (first.quantiles, second.quantiles), (first.probabilities, second.probabilities)
    return Survival(minutes, without, float(test.pvalue))


def _capped(lead: float) -> float:
    """Without a warning the lead is none."""
    return min(lead, _LEAD_CAP) if math.isfinite(lead) else 0.0


def _or(value: float, other: float) -> float:
    return value if math.isfinite(value) else other
