# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.optimize import brentq, minimize
from scipy.special import log_softmax, rel_entr, softmax

from mvps.surplus.trust_region import centred, clamp, divergence, log_normalised, shrink, tilt


def kl_of(weights: np.ndarray, change: np.ndarray) -> np.ndarray:
    """KL of the moved rows from logits and logit changes, in extended precision."""
    log_p = normal(np.asarray(weights, dtype=np.longdouble))
    log_q = normal(log_p + change)
    with np.errstate(invalid="ignore"):
        return np.where(np.isfinite(log_q), np.exp(log_q) * (log_q - log_p), 0.0).sum(axis=1).astype(np.float64)


def normal(z: np.ndarray) -> np.ndarray:
    z = z - z.max(axis=1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def cases(count: int, k: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random rows of every unkind sort: extreme logits, ties, -inf, one point left, J all equal or far apart."""
    chance = np.random.default_rng(seed)
    weights = chance.normal(size=(count, k)) * 10.0 ** chance.uniform(-3, 4, size=(count, 1))
    objective = chance.normal(size=(count, k)) * 10.0 ** chance.uniform(-8, 8, size=(count, 1))
    tied = chance.random(count) < 0.2
    weights[tied] = np.round(weights[tied])
    same = chance.random(count) < 0.05
    objective[same] = objective[same, :1]
    steps = chance.random(count) < 0.2
    objective[steps] = np.round(objective[steps])
    weights[chance.random((count, k)) < 0.2 * (chance.random((count, 1)) < 0.5)] = -np.inf
    lonely = np.flatnonzero(chance.random(count) < 0.05)
    kept = chance.integers(k, size=len(lonely))
    only = weights[lonely, kept]
    weights[lonely] = -np.inf
    weights[lonely, kept] = np.where(np.isfinite(only), only, 0.0)
    huge = chance.random(count) < 0.05
    weights[huge] *= 1e30
    return weights, objective, 10.0 ** chance.uniform(-6, 1, size=count)


@pytest.mark.parametrize(("k", "count"), [(2, 30_000), (8, 50_000), (50, 18_000), (300, 2_000)])
def test_the_budget_holds_over_a_hundred_thousand_cases(k: int, count: int) -> None:
    weights, objective, epsilon = cases(count, k, seed=k)
    moved = tilt(weights, objective, epsilon)
    alive = np.isfinite(weights.max(axis=1))
    again = kl_of(weights[alive], moved.change[alive])
    assert np.all(again <= epsilon[alive] + 1e-6)
    assert np.all(moved.kl <= epsilon)
    np.testing.assert_allclose(moved.kl[alive], again, atol=1e-9)
    assert np.all(np.isfinite(moved.change))
    assert np.all(moved.change[~np.isfinite(weights)] == 0.0)
    assert np.all(moved.change[~alive] == 0.0)
    # The budget is spent, but where the best J is nearer than it, or where the gain has reached its end.
    p = softmax(weights[alive], axis=1)
    best = np.where(p > 0, objective[alive], -np.inf).max(axis=1)
    worst = np.where(p > 0, objective[alive], np.inf).min(axis=1)
    nearest = -np.log(np.where((objective[alive] == best[:, None]) & (p > 0), p, 0.0).sum(axis=1))
    spends = (nearest > epsilon[alive]) & ((best - worst) / moved.eta[alive] < 699.0)
    exact = np.abs(moved.kl[alive] - epsilon[alive]) <= 1e-5 * epsilon[alive] + 1e-13
    assert np.all(exact[spends & (best > worst)])
    assert np.count_nonzero(spends) > count // 6


def test_eta_is_the_root_that_scipy_finds() -> None:
    chance = np.random.default_rng(5)
    for _ in range(200):
        z, j = chance.normal(size=(2, 12))
        epsilon = float(10.0 ** chance.uniform(-5, -0.5))

        def gap(log_eta: float, z: np.ndarray = z, j: np.ndarray = j, epsilon: float = epsilon) -> float:
            return float(rel_entr(softmax(z + j / math.exp(log_eta)), softmax(z)).sum()) - epsilon

        eta = math.exp(brentq(gap, -5.0, 12.0, xtol=1e-13))
        assert tilt(z[None], j[None], epsilon).eta[0] == pytest.approx(eta, rel=1e-5)


def test_no_other_distribution_within_the_budget_is_better() -> None:
    chance = np.random.default_rng(6)
    for _ in range(10):
        z, j = chance.normal(size=(2, 5))
        p = softmax(z)
        found = minimize(
            lambda x, p=p, j=j: -float(softmax(x) @ j),
            np.log(p),
            constraints={"type": "ineq", "fun": lambda x, p=p: 0.05 - float(rel_entr(softmax(x), p).sum())},
            options={"maxiter": 500, "ftol": 1e-12},
        )
        assert float(tilt(z[None], j[None], 0.05).q[0] @ j) >= -found.fun - 1e-6


def test_a_budget_beyond_the_best_choice_ends_there() -> None:
    z, j = np.log([[0.5, 0.3, 0.2]]), np.array([[0.0, 1.0, 1.0]])
    moved = tilt(z, j, 5.0)
    np.testing.assert_allclose(moved.q, [[0.0, 0.6, 0.4]], atol=1e-12)
    assert moved.kl[0] == pytest.approx(-math.log(0.5))


@pytest.mark.parametrize(
    ("weights", "objective", "epsilon"),
    [
        ([1.0, 2.0, 3.0], [4.0, 4.0, 4.0], 0.1),
        ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], 0.0),
        ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], -1.0),
        ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], math.nan),
        ([1.0, 2.0, 3.0], [1.0, math.nan, 3.0], 0.1),
        ([1.0, 2.0, 3.0], [math.nan, 1.0, 3.0], 0.1),
        ([1.0, 2.0, 3.0], [1.0, 3.0, math.nan], 0.1),
        ([1.0, 2.0, 3.0], [-math.inf, 3.0, 1.0], 0.1),
        ([1.0, 2.0, 3.0], [1.0, math.inf, 3.0], 0.1),
        ([-math.inf, 2.0, -math.inf], [1.0, 2.0, 3.0], 0.1),
        ([-math.inf, -math.inf, -math.inf], [1.0, 2.0, 3.0], 0.1),
        ([math.nan, 2.0, 3.0], [1.0, 2.0, 3.0], 0.1),
        ([math.inf, 2.0, 3.0], [1.0, 2.0, 3.0], 0.1),
    ],
)
def test_what_cannot_or_may_not_be_moved_stays_and_so_do_its_neighbours(
    weights: list[float], objective: list[float], epsilon: float
) -> None:
    z = np.array([weights, [0.3, 0.2, 0.1]])
    j = np.array([objective, [1.0, 2.0, 5.0]])
    for moved in (
        tilt(z, j, np.array([epsilon, 0.1])),
        clamp(z, j, np.array([epsilon, 0.1])),
        shrink(z, j, np.array([epsilon, 0.1])),
    ):
        assert np.all(moved.change[0] == 0.0)
        assert moved.kl[0] == 0.0
        assert moved.kl[1] > 0.0
    many = tilt(np.repeat(z, 4, axis=0), np.repeat(j, 4, axis=0), np.repeat([epsilon, 0.1], 4))
    assert np.all(many.change[:4] == 0.0)
    assert np.all(many.kl[4:] > 0.0)
    alone = tilt(z[1:], j[1:], 0.1)
    np.testing.assert_array_equal(alone.change[0], tilt(z, j, np.array([epsilon, 0.1])).change[1])


def test_j_outside_the_support_counts_for_nothing() -> None:
    z = np.array([[0.0, 1.0, -np.inf, -1e30]])
    a = tilt(z, np.array([[1.0, 2.0, 0.0, 0.0]]), 0.1)
    b = tilt(z, np.array([[1.0, 2.0, np.nan, 1e9]]), 0.1)
    np.testing.assert_array_equal(a.change, b.change)
    assert np.all(a.change[0, 2:] == 0.0)


def test_only_differences_of_j_and_of_logits_count_and_their_scale_does_not() -> None:
    chance = np.random.default_rng(7)
    z, j = chance.normal(size=(2, 50, 9))
    plain = tilt(z, j, 0.02)
    np.testing.assert_allclose(tilt(z + 7.0, 3.0 * j - 5.0, 0.02).change, plain.change, atol=1e-6)
    np.testing.assert_allclose(tilt(z, 3.0 * j, 0.02).eta, 3.0 * plain.eta, rtol=1e-5)


def test_the_floor_of_eta_keeps_small_differences_small() -> None:
    chance = np.random.default_rng(8)
    z, j = chance.normal(size=(2, 50, 9))
    noise = tilt(z, 1e-6 * j, 0.01, eta_floor=0.5)
    assert np.all(noise.kl < 1e-10)
    np.testing.assert_allclose(noise.eta, 0.5)
    np.testing.assert_allclose(noise.q, softmax(z + 1e-6 * j / 0.5, axis=1), rtol=1e-12)
    assert np.all(tilt(z, j, 0.01, eta_floor=0.5).kl <= 0.01)
    few = tilt(z[:2], 1e-6 * j[:2], 0.01, eta_floor=0.5)
    np.testing.assert_allclose(few.change, noise.change[:2], atol=1e-12)
    np.testing.assert_allclose(few.eta, 0.5)


rows = hnp.arrays(np.float64, (3, 6), elements=st.floats(-50, 50))


@settings(max_examples=200)
@given(rows, rows, st.floats(1e-4, 3.0))
def test_box_and_l2_hold_their_bounds(z: np.ndarray, j: np.ndarray, delta: float) -> None:
    boxed = clamp(z, j, delta)
    inside = np.exp(boxed.log_p) > 0.0
    low = np.where(inside, boxed.change, np.inf).min(axis=1)
    high = np.where(inside, boxed.change, -np.inf).max(axis=1)
    assert np.all(high - low <= 2.0 * delta + 1e-9)
    assert np.all(boxed.kl <= 0.5 * delta * delta + 1e-12)
    short = shrink(z, j, delta)
    assert np.all(np.linalg.norm(centred(short.change, inside), axis=1) <= delta * (1.0 + 1e-9))
    np.testing.assert_allclose(kl_of(z, short.change), short.kl, atol=1e-9)
    np.testing.assert_allclose(boxed.q.sum(axis=1), 1.0)


def test_wide_bounds_of_box_and_l2_leave_the_plain_tilt() -> None:
    chance = np.random.default_rng(9)
    z, j = chance.normal(size=(2, 20, 7))
    for moved in (clamp(z, j, 1e6, eta=0.5), shrink(z, j, 1e6, eta=0.5)):
        np.testing.assert_allclose(moved.q, softmax(z + j / 0.5, axis=1), rtol=1e-12)
        np.testing.assert_allclose(moved.eta, 0.5)


def test_divergence_and_normalisation_against_scipy() -> None:
    chance = np.random.default_rng(10)
    a, b = chance.normal(size=(2, 20, 7)) * 5
    a[0, 0] = b[0, 0] = -np.inf
    np.testing.assert_allclose(log_normalised(a), log_softmax(a, axis=1))
    assert np.all(log_normalised(np.array([[np.nan, 1.0], [np.inf, 1.0], [-np.inf, -np.inf]])) == -np.inf)
    got = divergence(log_softmax(a, axis=1), log_softmax(b, axis=1))
    np.testing.assert_allclose(got, rel_entr(softmax(b, axis=1), softmax(a, axis=1)).sum(axis=1), rtol=1e-9)
    assert divergence(np.log([[0.5, 0.5]]), np.array([[0.0, -np.inf]]))[0] == pytest.approx(math.log(2))
    with np.errstate(divide="ignore"):
        assert divergence(np.log([[1.0, 0.0]]), np.log([[0.5, 0.5]]))[0] == math.inf


def test_few_rows_move_as_they_would_among_many() -> None:
    for k in (2, 8, 50):
        weights, objective, epsilon = cases(3_000, k, seed=20 + k)
        many = tilt(weights, objective, epsilon)
        few = [tilt(weights[i : i + 2], objective[i : i + 2], epsilon[i : i + 2]) for i in range(0, 3_000, 2)]
        kl = np.concatenate([one.kl for one in few])
        assert np.all(kl <= epsilon)
        np.testing.assert_allclose(kl, many.kl, rtol=2e-5, atol=1e-13)
        q = np.concatenate([one.q for one in few])
        np.testing.assert_allclose(q, many.q, atol=1e-4)


def text_projection(base: np.ndarray, adjusted: np.ndarray, budget: float) -> np.ndarray:
    """The text's search for a temperature in [1, 32] (002 app. B.4)."""
    low, high = 1.0, 32.0
    for _ in range(20):
        tau = 0.5 * (low + high)
        used = kl_of(base[None], ((adjusted - base) / tau)[None])[0]
        low, high = (low, tau) if used <= budget else (tau, high)
    return base + (adjusted - base) / high


def test_the_texts_temperature_breaks_the_budget_where_the_nudge_is_large() -> None:
    base = np.array([0.1, 0.0, -0.2, 0.3])
    nudged = base + np.array([100.0, 0.0, 0.0, 0.0])
    assert kl_of(base[None], (text_projection(base, nudged, 0.006) - base)[None])[0] > 50 * 0.006
    exact = tilt(base[None], (nudged - base)[None], 0.006)
    assert 0.00599 < exact.kl[0] <= 0.006


def test_few_rows_are_normalised_as_many_are() -> None:
    weights = cases(400, 8, 21)[0]
    weights[:3] = np.array([[np.nan], [np.inf], [-np.inf]])
    weights[3, 5] = weights[4, 0] = np.nan
    weights[5, :2] = 1e308, -1e308
    with np.errstate(over="ignore"):
        many = log_normalised(weights)
        few = np.concatenate([log_normalised(weights[row : row + 1]) for row in range(len(weights))])
    np.testing.assert_array_equal(np.isfinite(few), np.isfinite(many))
    np.testing.assert_allclose(few[np.isfinite(many)], many[np.isfinite(many)], rtol=1e-14, atol=1e-13)
    assert np.all(few[~np.isfinite(many)] == -np.inf)
