# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.optimize import minimize

from mvps.surplus.indicators import Band, Health
from mvps.surplus.policy import (
    ACTIONS,
    ExitCriteria,
    Ladder,
    RoutingError,
    Rung,
    Transition,
    exploration_quota,
    reserve,
    routing_shares,
)

GREEN = Health(0.8, 0.05, 0.1, 0.1, Band.GREEN, False, False)
ACTION = Health(0.4, 0.5, 0.5, 0.6, Band.ACTION, True, False)
EMERGENCY = Health(0.2, 0.9, 0.9, 0.9, Band.EMERGENCY, True, True)
UNKNOWN = Health(math.nan, math.nan, math.nan, math.nan, Band.GREEN, False, False)


def walk(ladder: Ladder, health: Health, minutes: int, start: int = 0) -> tuple[Ladder, list[Transition]]:
    changes = []
    for minute in range(start, start + minutes):
        ladder, change = ladder.step(minute, health)
        if change:
            changes.append(change)
    return ladder, changes


def test_the_ladder_climbs_one_rung_at_a_time_and_not_beyond_what_it_may() -> None:
    ladder, changes = walk(Ladder("acme"), EMERGENCY, 60)
    assert [change.after for change in changes] == list(Rung)[1:6]
    assert [change.at for change in changes] == [0, 3, 6, 9, 12]
    assert ladder.rung is Rung.HUMAN_TAKEOVER
    assert ladder.proposed is Rung.SUSPEND
    assert all(change.dry_run and change.why == "BH-2" and change.by == "ladder" for change in changes)
    assert [action for change in changes for action in change.actions] == [
        action for rung in list(Rung)[:6] for action in ACTIONS[rung]
    ]
    low, few = walk(Ladder("acme", highest=Rung.STRUCTURAL_GUARDS), EMERGENCY, 60)
    assert (low.rung, len(few)) == (Rung.STRUCTURAL_GUARDS, 2)


def test_a_milder_band_climbs_less_high() -> None:
    caution = Health(0.6, 0.2, 0.3, 0.4, Band.CAUTION, False, False)
    assert walk(Ladder("acme"), caution, 60)[0].rung is Rung.SOFT_NUDGE
    assert walk(Ladder("acme"), ACTION, 60)[0].rung is Rung.STRUCTURAL_GUARDS
    emergency = EMERGENCY._replace(bh1=False, bh2=False)
    assert walk(Ladder("acme"), emergency, 60)[0].rung is Rung.ROUTE_AND_THROTTLE
    assert walk(Ladder("acme"), GREEN, 60)[0].rung is Rung.NONE


def test_each_rung_is_left_only_when_its_criteria_held_for_their_time() -> None:
    ladder, _ = walk(Ladder("acme"), EMERGENCY, 60)
    ladder, changes = walk(ladder, GREEN, 29, 60)
    assert changes == []
    ladder, changes = walk(ladder, UNKNOWN, 1, 89)
    assert changes == []
    assert ladder.holding == 0, "what is not known does not hold"
    ladder, changes = walk(ladder, GREEN, 30, 90)
    assert [change.after for change in changes] == [Rung.DEGRADE]
    assert changes[0].actions == ACTIONS[Rung.HUMAN_TAKEOVER]
    ladder, changes = walk(ladder, GREEN, 200, 120)
    assert ladder.rung is Rung.NONE
    assert [change.at for change in changes] == [149, 179, 209, 214]


def test_a_tenant_without_texts_comes_down_where_the_spread_is_not_asked_for() -> None:
    textless = GREEN._replace(sse=math.nan)
    assert not ExitCriteria().met(textless)
    ladder, _ = walk(Ladder("acme", exits={rung: ExitCriteria(sse=None, minutes=5) for rung in Rung}), ACTION, 10)
    assert walk(ladder, textless, 30)[0].rung is Rung.NONE


def test_between_the_criteria_the_ladder_stays() -> None:
    ladder, _ = walk(Ladder("acme"), ACTION, 10)
    middling = Health(0.5, 0.2, 0.3, 0.3, Band.GREEN, False, False)
    assert not ExitCriteria().met(middling)
    assert walk(ladder, middling, 500)[1] == []


def test_orders_are_kept_with_name_and_reason() -> None:
    ladder = Ladder("acme", dry_run=False)
    ladder, change = ladder.ordered(7, Rung.FULL_ROLLBACK, "kim", "release 12 loops", ACTION)
    assert ladder.rung is Rung.FULL_ROLLBACK
    assert change == Transition(
        7, "acme", Rung.NONE, Rung.FULL_ROLLBACK, "release 12 loops", "kim", 0.6, 0.4, 0.5, dry_run=False
    )
    assert ladder.ordered(8, Rung.FULL_ROLLBACK, "kim", "again", ACTION) == (ladder, None)
    for who, why in (("", "why"), ("kim", "  ")):
        with pytest.raises(ValueError, match="name and a reason"):
            ladder.ordered(8, Rung.NONE, who, why, GREEN)
    with pytest.raises(ValueError, match="takes an operator"):
        Ladder("acme", highest=Rung.SUSPEND)
    ladder, changes = walk(ladder, GREEN, 30, 8)
    assert [one.after for one in changes] == [Rung.SUSPEND], "what was ordered comes down by its criteria, too"


@given(st.lists(st.sampled_from([GREEN, ACTION, EMERGENCY, UNKNOWN]), max_size=120))
def test_the_audit_trail_is_whole(course: list[Health]) -> None:
    ladder, before = Ladder("acme"), Rung.NONE
    for minute, health in enumerate(course):
        ladder, change = ladder.step(minute, health)
        if change is None:
            assert ladder.rung is before
            continue
        assert (change.before, change.after, change.at) == (before, ladder.rung, minute)
        assert abs(change.after - change.before) == 1
        before = ladder.rung


@given(st.lists(st.floats(0, 10), min_size=2, max_size=8), st.floats(0.15, 1.0), st.floats(0, 0.1))
def test_shares_are_the_nearest_that_fit(wanted: list[float], quota: float, floor: float) -> None:
    count = len(wanted)
    assume(count * quota >= 1.0 and count * floor <= 1.0 and floor <= quota and sum(wanted) > 1e-6)
    goal = np.array(wanted) / sum(wanted)
    shares = routing_shares(np.array(wanted), quota, floor=floor)
    assert shares.sum() == pytest.approx(1.0)
    assert np.all(shares >= floor - 1e-12)
    assert np.all(shares <= quota + 1e-12)
    found = minimize(
        lambda s: float(((s - goal) ** 2).sum()),
        np.full(count, 1.0 / count),
        bounds=[(floor, quota)] * count,
        constraints={"type": "eq", "fun": lambda s: s.sum() - 1.0},
        options={"ftol": 1e-14, "maxiter": 300},
    )
    assert ((shares - goal) ** 2).sum() <= found.fun + 1e-7


@given(st.lists(st.floats(0.01, 10), min_size=3, max_size=6), st.floats(0, 1))
def test_the_least_spread_holds_and_nothing_moves_without_need(wanted: list[float], spread: float) -> None:
    plain = routing_shares(np.array(wanted), 0.6)
    shares = routing_shares(np.array(wanted), 0.6, spread)

    def evenness(s: np.ndarray) -> float:
        return float(-(s[s > 0] * np.log(s[s > 0])).sum() / np.log(len(s)))

    assert shares.sum() == pytest.approx(1.0)
    assert evenness(shares) >= spread - 1e-9
    assert np.all(shares <= 0.6 + 1e-12)
    if evenness(plain) >= spread:
        np.testing.assert_array_equal(shares, plain)


@pytest.mark.parametrize(
    ("wanted", "quota", "spread", "floor", "message"),
    [
        ([1.0, 1.0], 0.4, 0.55, 0.0, "raise the quota to at least 50%"),
        ([1.0, 1.0, 1.0], 0.5, 0.0, 0.4, "do not fit"),
        ([1.0, math.nan], 1.0, 0.0, 0.0, "finite"),
        ([1.0, -1.0], 1.0, 0.0, 0.0, "not below 0"),
        ([1.0, 1.0], 1.0, 1.1, 0.0, "cannot be had"),
    ],
)
def test_constraints_that_nothing_fits_say_what_to_change(
    wanted: list[float], quota: float, spread: float, floor: float, message: str
) -> None:
    with pytest.raises(RoutingError, match=message):
        routing_shares(np.array(wanted), quota, spread, floor)


def test_shares_in_closed_form() -> None:
    np.testing.assert_allclose(routing_shares(np.array([8.0, 1.0, 1.0]), 0.4), [0.4, 0.3, 0.3])
    np.testing.assert_allclose(routing_shares(np.zeros(4), 0.4), [0.25] * 4)
    np.testing.assert_allclose(routing_shares(np.array([1.0]), 1.0, 0.9), [1.0])
    np.testing.assert_allclose(routing_shares(np.array([1.0, 0.0]), 0.5), [0.5, 0.5])


def test_exploration_rises_when_spread_is_low_also_in_emergency() -> None:
    assert exploration_quota(0.6, Band.GREEN) == 0.0
    assert exploration_quota(0.4, Band.ACTION) == 0.15
    assert exploration_quota(0.4, Band.EMERGENCY, bump=True) == 0.15
    assert exploration_quota(0.6, Band.CAUTION, bump=True) == pytest.approx(0.10)
    assert exploration_quota(math.nan, Band.GREEN) == 0.15


def test_the_reserve_grows_with_risk_and_with_alerts() -> None:
    assert reserve(1000.0, UNKNOWN) == pytest.approx(50.0)
    assert reserve(1000.0, GREEN) == pytest.approx(1000.0 * (0.05 + 0.05 * (0.05 + 0.2 + 0.1)))
    assert reserve(1000.0, ACTION) == pytest.approx(1.25 * reserve(1000.0, ACTION._replace(bh1=False)))
    assert reserve(1000.0, EMERGENCY) == pytest.approx(1.5 * reserve(1000.0, EMERGENCY._replace(bh1=False, bh2=False)))
