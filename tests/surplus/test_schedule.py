# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvps.surplus.indicators import Band
from mvps.surplus.schedule import BudgetRule, LambdaRule, Schedule

share = st.floats(0, 1)
minutes = st.lists(st.tuples(share, share, share, share, st.sampled_from(Band)), min_size=1, max_size=40)


def test_the_target_is_the_texts_formula_clipped() -> None:
    rule = LambdaRule()
    assert rule.target(0.0, 0.0, 1.0) == pytest.approx(0.4)
    assert rule.target(0.5, 0.25, 0.6) == pytest.approx(0.4 * (1 + 0.4 + 0.2 + 0.2))
    assert LambdaRule(base=2.0).target(1.0, 1.0, 0.0) == 2.0


@given(minutes)
def test_lambda_and_budget_keep_their_limits_and_their_pace(given_minutes: list[tuple]) -> None:
    schedule = Schedule(rule=LambdaRule(integral=0.05))
    for ssi, crp, sse, xi, band in given_minutes:
        last = schedule
        schedule = schedule.step(ssi, crp, sse, xi, band)
        assert 0.0 <= schedule.lam <= 2.0
        assert 0.004 <= schedule.budget <= 0.010 + 1e-12
        if not math.isnan(last.lam):
            assert abs(schedule.lam - last.lam) <= 0.25 + 1e-12
            assert abs(schedule.budget / last.budget - 1.0) <= 0.2 + 1e-9
            assert not (schedule.lam < last.lam and schedule.budget > last.budget)


def test_budgets_settle_at_the_bands_and_do_not_compound() -> None:
    schedule = Schedule()
    for _ in range(60):
        schedule = schedule.step(0.9, 0.9, 0.3, 0.7, Band.ACTION)
    assert schedule.budget == pytest.approx(BudgetRule().action)
    assert schedule.lam == pytest.approx(LambdaRule().target(0.9, 0.9, 0.3))
    for _ in range(60):
        schedule = schedule.step(0.0, 0.0, 1.0, 0.1, Band.GREEN)
    assert schedule.lam == pytest.approx(0.4)
    assert schedule.budget < BudgetRule().green, "lambda fell all the while"
    for _ in range(5):
        schedule = schedule.step(0.1, 0.0, 1.0, 0.1, Band.GREEN)
    assert schedule.budget == pytest.approx(BudgetRule().green)


def test_the_integral_raises_lambda_while_xi_is_high_and_lets_go() -> None:
    plain, integral = Schedule(), Schedule(rule=LambdaRule(integral=0.05))
    for _ in range(30):
        plain = plain.step(0.3, 0.3, 0.7, 0.6, Band.ACTION)
        integral = integral.step(0.3, 0.3, 0.7, 0.6, Band.ACTION)
    assert integral.lam > plain.lam + 0.1
    for _ in range(60):
        plain = plain.step(0.3, 0.3, 0.7, 0.1, Band.GREEN)
        integral = integral.step(0.3, 0.3, 0.7, 0.1, Band.GREEN)
    assert integral.lam == pytest.approx(plain.lam, abs=1e-3)


def test_what_is_not_known_moves_nothing() -> None:
    schedule = Schedule().step(0.5, 0.5, 0.5, 0.5, Band.CAUTION)
    assert schedule.step(math.nan, 0.5, 0.5, 0.5, Band.EMERGENCY) == schedule
    textless = Schedule().step(0.5, 0.5, math.nan, 0.5, Band.CAUTION)
    assert textless == Schedule().step(0.5, 0.5, 1.0, 0.5, Band.CAUTION)
    first = Schedule().step(math.nan, math.nan, math.nan, math.nan, Band.GREEN)
    assert (first.lam, first.budget) == (0.4, 0.010)


def test_rules_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="least <= most"):
        LambdaRule(least=3.0)
