# SPDX-License-Identifier: Apache-2.0
"""Verdicts have the error rates they promise, and the experiments find what was put in."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from mvps.surplus.falsifiers import (
    LEAST_PAIRS,
    Verdict,
    e1,
    e2,
    e3,
    judge,
    looking_ahead,
    run_arm,
    survival,
    untested,
)
from mvps.surplus.handoffs import T0, T1, T2, T3, Team
from mvps.surplus.handoffs import simulate as run_team
from mvps.surplus.retrial_queue import RampPlan, Workload, simulate

PLAN = RampPlan(calm=120, step_minutes=8, low=0.7)
SEEDS = range(LEAST_PAIRS)


def test_a_claim_without_effect_is_held_in_one_of_forty_and_power_is_what_it_says() -> None:
    chance = np.random.default_rng(1)
    held = sum(judge("F", "", chance.normal(1.0, 2.0, 10), 1.0, 1.0).verdict is Verdict.HELD for _ in range(2000))
    # 2.5 % one-sided; four standard errors of 2,000.
    assert held / 2000 == pytest.approx(0.025, abs=0.014)
    outcomes = [judge("F", "", chance.normal(3.0, 2.0, 10), 1.0, 2.0) for _ in range(2000)]
    held = sum(one.verdict is Verdict.HELD for one in outcomes)
    assert held / 2000 == pytest.approx(float(np.mean([one.power for one in outcomes])), abs=0.05)


def test_three_verdicts_and_no_fourth() -> None:
    spread = np.array([-0.1, 0.1] * 5)
    assert judge("F", "", (spread + 1.0).tolist(), 0.0, 0.5).verdict is Verdict.HELD
    assert judge("F", "", spread.tolist(), 0.0, 0.5).verdict is Verdict.FAILED
    assert judge("F", "", (100.0 * spread).tolist(), 0.0, 0.5).verdict is Verdict.UNDERPOWERED
    assert judge("F", "", [1.0] * 5, 0.0, 0.5).verdict is Verdict.UNDERPOWERED
    assert judge("F", "", [1.0] * 6, 0.0, 0.5).power == 1.0
    few = judge("F", "", [1.0, math.nan, *[1.0] * 4], 0.0, 0.5)
    assert (few.pairs, few.verdict) == (5, Verdict.UNDERPOWERED)
    with pytest.raises(ValueError, match="what would matter"):
        judge("F", "", [1.0] * 6, 0.0, 0.0)


def test_looking_ahead_is_judged_by_the_task() -> None:
    plain = np.array([0.70, 0.72, 0.68, 0.71, 0.69, 0.70])
    noise = np.array([0.004, -0.006, 0.001, 0.005, -0.003, 0.0])
    found = [looking_ahead((plain + gain + noise).tolist(), plain.tolist()) for gain in (0.03, 0.0, -0.02)]
    assert [one.verdict for one in found] == [Verdict.HELD, Verdict.FAILED, Verdict.FAILED]
    assert found[0].name == "F10"
    assert found[0].effect == pytest.approx(0.03, abs=1e-3)
    assert looking_ahead(plain[:5].tolist(), plain[:5].tolist()).verdict is Verdict.UNDERPOWERED


def test_what_is_not_testable_says_why() -> None:
    assert [one.name for one in untested()] == ["F9", "F10"]
    assert all(one.note and one.verdict is Verdict.NOT_TESTABLE for one in untested())


def test_retries_make_a_gap_and_a_steep_rise_and_their_absence_does_not() -> None:
    with_retries = {one.name: one for one in e1(run_arm(Workload(), PLAN, SEEDS))}
    assert with_retries["F1"].verdict is Verdict.HELD
    assert with_retries["F2"].verdict is Verdict.HELD
    assert with_retries["F2"].effect > 0.4
    without = {one.name: one for one in e1(run_arm(Workload(retries=0, room=40), PLAN, SEEDS))}
    assert without["F2"].effect < 0.5 * with_retries["F2"].effect


def test_a_buffer_shifts_the_collapse_and_none_does_not() -> None:
    plan = replace(PLAN, high=1.3)
    baseline = run_arm(Workload(), plan, SEEDS)
    buffered = run_arm(Workload(reuse=0.3), plan, SEEDS)
    same = run_arm(Workload(), plan, SEEDS)
    shifted = e2(baseline, buffered, plan)
    assert [one.name for one in shifted] == ["F4", "F5", "F5"]
    assert shifted[0].verdict is Verdict.HELD
    assert shifted[0].effect > 0.1
    nothing = e2(baseline, same, plan)
    assert nothing[0].verdict is Verdict.FAILED
    assert nothing[0].effect == 0.0
    curves = survival(baseline, buffered, plan)
    assert curves.p_value < 0.05
    assert survival(baseline, same, plan).p_value == pytest.approx(1.0)
    assert all(np.all(np.diff(without) <= 0.0) for without in curves.without)


def test_reviewers_take_only_who_has_waited() -> None:
    calm = simulate(Workload(reviewers=2), [0.3] * 20, seed=1)
    plain = simulate(Workload(), [0.3] * 20, seed=1)
    np.testing.assert_array_equal(calm.good, plain.good)
    busy = Workload(reviewers=2, room=10**6)
    loaded = simulate(busy, [1.15] * 60, seed=2)
    alone = simulate(replace(busy, reviewers=0), [1.15] * 60, seed=2)
    assert loaded.good.sum() > 1.5 * alone.good.sum()
    # Every answer is somebody's, and nobody is answered twice.
    assert loaded.good.sum() + loaded.failed.sum() <= loaded.new.sum()


def test_reuse_is_less_work() -> None:
    trace = simulate(Workload(reuse=0.5), [1.4] * 30, seed=3)
    assert trace.success[5:].min() > 0.95
    assert np.nanmin(simulate(Workload(), [1.4] * 30, seed=3).success[5:]) < 0.5


def test_costs_of_handing_over_are_judged_treatment_by_treatment() -> None:
    runs = {one.name: [run_team(Team(), one, 30, seed) for seed in SEEDS] for one in (T0, T1, T2, T3)}
    found = e3(runs)
    assert [one.name for _, one in found] == ["F6", "F6", "F7", "F7"] * 3 + ["F8"]
    assert [name for name, _ in found][::4] == [T1.name, T2.name, T3.name, T2.name]
    assert found[0][1].verdict is Verdict.HELD
    same = dict.fromkeys(runs, runs[T0.name])
    assert all(one.effect == 0.0 for _, one in e3(same))
