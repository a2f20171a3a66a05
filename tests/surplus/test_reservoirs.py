# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.optimize import brentq, minimize_scalar

from mvps.surplus.reservoirs import FLOWS, Reservoir, feasible, text_gain, update

BISTABLE = Reservoir(gamma=10.0, theta=40.0, h=4.0, leak=0.1, source=3.0, capacity=100.0)
square = hnp.arrays(np.float64, (5, 5), elements=st.floats(-5, 50))
stocks = hnp.arrays(np.float64, 5, elements=st.floats(0, 100))


@given(square, stocks, hnp.arrays(np.float64, (5, 5), elements=st.floats(0, 1)), stocks)
def test_conversions_stay_within_stock_share_and_budget(
    wanted: np.ndarray, stock: np.ndarray, share: np.ndarray, budget: np.ndarray
) -> None:
    allowed = feasible(wanted, stock, share, budget)
    assert np.all(allowed >= 0.0)
    assert np.all(np.diagonal(allowed) == 0.0)
    assert np.all(allowed <= share * stock[:, None] + 1e-9)
    assert np.all(allowed.sum(axis=1) <= np.minimum(budget, stock) + 1e-9)
    enough = feasible(np.minimum(wanted, 0.01 * stock[:, None] * share), stock, share, np.full(5, np.inf))
    off = ~np.eye(5, dtype=bool)
    expected = np.maximum(np.minimum(wanted, 0.01 * stock[:, None] * share), 0.0)
    np.testing.assert_allclose(enough[off], expected[off])


def test_what_one_stock_spends_another_receives_at_the_exchange_rate() -> None:
    assert len(FLOWS) == 5
    stock = np.array([50.0, 20.0, 5.0, 10.0, 10.0])
    conversions = np.zeros((5, 5))
    conversions[1, 2] = 4.0  # paying reviewers
    exchange = np.full((5, 5), 0.5)
    nothing = np.zeros(5)
    after = update(stock, nothing, nothing, nothing, conversions, exchange, np.full(5, 100.0))
    np.testing.assert_allclose(after, [50.0, 16.0, 7.0, 10.0, 10.0])


@given(stocks, stocks, stocks, st.floats(0, 1))
def test_stocks_stay_between_nothing_and_capacity(
    stock: np.ndarray, generation: np.ndarray, loss: np.ndarray, leak: float
) -> None:
    after = update(stock, generation, loss, np.full(5, leak), np.zeros((5, 5)), np.zeros((5, 5)), np.full(5, 60.0))
    assert np.all((after >= 0.0) & (after <= 60.0))
    inside = (1 - leak) * stock + generation - loss
    keep = (inside > 0) & (inside < 60)
    np.testing.assert_allclose(after[keep], inside[keep])


def test_the_texts_update_has_one_fixed_point_whatever_the_load() -> None:
    """G of an exogenous load: R' = R + G - L - mu R is linear, so that all starts end in one place."""
    for load in np.linspace(0, 30, 7):
        ends = []
        for start in (0.0, 50.0, 100.0):
            stock = np.full(5, start)
            gain = text_gain(np.full(5, load), 10.0, 8.0, 4.0, 0.1)
            for _ in range(2000):
                stock = update(
                    stock, gain, np.full(5, 2.0), np.full(5, 0.1), np.zeros((5, 5)), np.eye(5), np.full(5, 100.0)
                )
            ends.append(stock[0])
        assert np.ptp(ends) < 1e-9


def test_fixed_points_are_the_roots_that_scipy_finds_and_their_stability_shows() -> None:
    nodes = BISTABLE.saddle_nodes()
    assert nodes is not None
    load = 0.5 * (nodes.collapse + nodes.recovery)
    points = BISTABLE.fixed_points(load)
    assert points.stable.tolist() == [True, False, True]
    middle = brentq(lambda r: BISTABLE.drift(np.array([r]), load)[0], 10.0, 45.0)
    assert points.stock[1] == pytest.approx(middle, abs=1e-9)
    for stock, stable in zip(points.stock, points.stable, strict=True):
        assert BISTABLE.step(np.array([stock]), load)[0] == pytest.approx(stock, abs=1e-9)
        near = np.clip(np.array([stock - 0.5, stock + 0.5]), 0.0, 100.0)
        for _ in range(3000):
            near = BISTABLE.step(near, load)
        assert bool(np.all(np.abs(near - stock) < 1e-6)) is bool(stable)


def test_saddle_nodes_are_the_turning_points_of_the_load_curve() -> None:
    nodes = BISTABLE.saddle_nodes()
    assert nodes is not None
    top = minimize_scalar(lambda r: -BISTABLE.load_at(np.array([r]))[0], bounds=(40, 100), method="bounded")
    bottom = minimize_scalar(lambda r: BISTABLE.load_at(np.array([r]))[0], bounds=(0, 40), method="bounded")
    assert (nodes.collapse, nodes.recovery) == pytest.approx((-top.fun, bottom.fun), abs=1e-6)
    assert (nodes.collapse_stock, nodes.recovery_stock) == pytest.approx((top.x, bottom.x), abs=1e-2)
    for load, count in ((nodes.recovery - 0.01, 1), (nodes.recovery + 0.01, 3), (nodes.collapse - 0.01, 3)):
        assert len(BISTABLE.fixed_points(load).stock) == count
    assert len(BISTABLE.fixed_points(nodes.collapse + 0.01).stock) == 1


def test_a_slow_ramp_falls_and_recovers_at_the_saddle_nodes() -> None:
    nodes = BISTABLE.saddle_nodes()
    assert nodes is not None
    loads = np.linspace(0.0, 8.0, 401)
    loop = BISTABLE.loop(loads)
    healthy = nodes.recovery_stock + 1.0
    assert loads[(loop.up < healthy).argmax()] == pytest.approx(nodes.collapse, abs=0.05)
    assert loads[np.flatnonzero(loop.down >= healthy)[-1]] == pytest.approx(nodes.recovery, abs=0.05)
    assert loop.gap(healthy) == pytest.approx(nodes.gap, abs=0.1)
    assert nodes.gap > 1.0


@pytest.mark.parametrize(
    "plain",
    [
        Reservoir(gamma=10.0, theta=40.0, h=1.0, leak=0.3, source=1.0, capacity=100.0),
        Reservoir(gamma=1.0, theta=40.0, h=4.0, leak=0.1, source=1.0, capacity=100.0),
        Reservoir(gamma=0.0, theta=40.0, h=4.0, leak=0.1, source=1.0, capacity=100.0),
    ],
)
def test_without_a_steep_and_strong_gain_there_is_no_gap(plain: Reservoir) -> None:
    assert plain.saddle_nodes() is None
    loop = plain.loop(np.linspace(0.0, 4.0, 41), settle=5000)
    np.testing.assert_allclose(loop.up, loop.down, atol=1e-6)
    assert loop.gap(healthy=1.0) <= 0.2


@settings(max_examples=60, deadline=None)
@example(9.0, 10.0, 1.5, 0.0625, 1.0)  # an empty stock holds itself, and .048 is the unstable point above it
@given(st.floats(1, 20), st.floats(10, 60), st.floats(1.5, 8), st.floats(0.01, 0.9), st.floats(0, 10))
def test_between_stable_points_lies_an_unstable_one(g: float, theta: float, h: float, leak: float, load: float) -> None:
    points = Reservoir(g, theta, h, leak, 1.0, 100.0).fixed_points(load)
    assert len(points.stock) >= 1
    assert np.all(np.diff(points.stock) > 0.0)
    slopes_alternate = points.stable[:-1] != points.stable[1:]
    assert points.stable.any()
    assert np.all(slopes_alternate)


def test_stocks_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="share of the stock"):
        Reservoir(1.0, 1.0, 1.0, 1.5, 0.0, 1.0)
    with pytest.raises(ValueError, match="above it"):
        Reservoir(1.0, 0.0, 1.0, 0.5, 0.0, 1.0)


def test_a_stock_that_no_load_above_0_brings_back_never_recovers() -> None:
    starved = Reservoir(gamma=10.0, theta=40.0, h=4.0, leak=0.1, source=0.5, capacity=100.0)
    nodes = starved.saddle_nodes()
    assert nodes is not None
    assert nodes.recovery < 0.0
    loop = starved.loop(np.linspace(0.0, 8.0, 81))
    assert loop.down[0] < nodes.recovery_stock
    assert loop.gap(nodes.recovery_stock + 1.0) == pytest.approx(nodes.collapse, abs=0.1)
