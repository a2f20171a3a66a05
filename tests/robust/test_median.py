# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from mvps.coherence.axes import c2_plain, jsd
from mvps.robust.median import c2_gm, c2_gm_seed, divergences, geometric_median

SEEDS = st.integers(0, 2**32 - 1)


def objective(points: np.ndarray, q: np.ndarray) -> float:
    return float(np.linalg.norm(points - q, axis=1).sum())


def by_scipy(points: np.ndarray) -> float:
    """The least sum of distances that a general minimiser finds from several starts."""
    starts = [points.mean(axis=0), np.median(points, axis=0), *points[:3]]
    found = [
        minimize(lambda q: objective(points, q), s, method="Nelder-Mead", options={"xatol": 1e-10}) for s in starts
    ]
    polished = [minimize(lambda q: objective(points, q), one.x, method="BFGS") for one in found]
    return min(one.fun for one in (*found, *polished))


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.integers(1, 12), st.integers(1, 4), st.booleans())
def test_nothing_lies_lower_than_the_median(seed: int, number: int, labels: int, heavy: bool):
    rng = np.random.default_rng(seed)
    points = rng.standard_cauchy((number, labels)) if heavy else rng.normal(size=(number, labels))
    points[rng.random(number) < 0.2] = points[0]  # coincident points
    found = geometric_median(points)
    best = by_scipy(points)
    mine = objective(points, found.point)
    assert mine <= best * (1.0 + 1e-7) + 1e-9
    assert mine * (1.0 - found.gap) <= best + 1e-9  # the certificate holds


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.integers(2, 40), st.integers(2, 60))
def test_equivariance_and_permutation(seed: int, number: int, labels: int):
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(number, labels))
    found = geometric_median(points)
    rotation = np.linalg.qr(rng.normal(size=(labels, labels)))[0]
    shift, order = rng.normal(size=labels), rng.permutation(number)
    moved = geometric_median(3.0 * (points @ rotation)[order] + shift)
    assert moved.point == pytest.approx(3.0 * found.point @ rotation + shift, abs=1e-3)
    assert objective(points, (moved.point - shift) / 3.0 @ rotation.T) == pytest.approx(
        objective(points, found.point), rel=1e-8
    )


@settings(max_examples=80, deadline=None)
@given(SEEDS, st.integers(3, 25), st.integers(1, 30), st.floats(0.0, 9.0))
def test_any_minority_keeps_it_within_minskers_bound(seed: int, number: int, labels: int, magnitude: float):
    """Honest points lie within 1 of the origin; up to f < N/2 others are anywhere, alone or together."""
    rng = np.random.default_rng(seed)
    f = int(rng.integers(0, (number - 1) // 2 + 1))
    points = rng.normal(size=(number, labels))
    points /= np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1.0)
    liars = rng.normal(size=(f, labels)) if rng.random() < 0.5 else np.tile(rng.normal(size=labels), (f, 1))
    points[:f] = liars * 10.0**magnitude
    share = f / number
    bound = (1.0 - share) / math.sqrt(1.0 - 2.0 * share)
    assert np.linalg.norm(geometric_median(points).point) <= bound * (1.0 + 1e-6)


def test_half_of_the_points_can_take_it_anywhere():
    points = np.zeros((4, 2))
    points[:2] = 1e9
    points[:2, 0] += [0.0, 1.0]
    assert np.linalg.norm(geometric_median(points).point) > 1e6


def test_the_bound_the_source_states_does_not_hold():
    """001 sec. 11.1: |gm - mu*| <= C (f/N) diam with C about 2."""
    e = np.eye(3)
    truth = geometric_median(e).point
    assert truth == pytest.approx(np.full(3, 1 / 3))
    shifted = geometric_median(np.vstack((e, e[:1]))).point  # one liar of four stands on an honest vantage
    assert np.linalg.norm(shifted - truth) == pytest.approx(0.816, abs=1e-3)
    assert 2 * 1 / 4 * math.sqrt(2) == pytest.approx(0.707, abs=1e-3)
    honest = e[[0, 0, 1]]
    shifted = geometric_median(np.vstack((honest, e[[1, 1]]))).point  # two liars of five
    assert np.linalg.norm(shifted - geometric_median(honest).point) == pytest.approx(1.414, abs=1e-3)
    assert 2 * 2 / 5 * math.sqrt(2) == pytest.approx(1.131, abs=1e-3)


@pytest.mark.parametrize("number", [2, 3, 4, 7, 8])
def test_on_a_line_it_is_a_median(number: int):
    rng = np.random.default_rng(number)
    along = rng.normal(size=number)
    found = geometric_median(np.outer(along, [1.0, 2.0, -1.0]))
    at = found.point[0]
    assert objective(along[:, None], np.array([at])) == pytest.approx(
        objective(along[:, None], np.array([np.median(along)]))
    )


def test_optimal_data_points_are_found_exactly():
    rng = np.random.default_rng(3)
    p = rng.dirichlet(np.ones(6), 9)
    p[4:] = p[4]  # five of nine agree
    found = geometric_median(p)
    assert found.gap == 0.0
    assert np.array_equal(found.point, p[4])
    assert found.weights == pytest.approx([0, 0, 0, 0, 0.2, 0.2, 0.2, 0.2, 0.2])


def test_many_points_are_asked_one_by_one():
    """More points than are looked at all at once: most hosts agree exactly, as an idle fleet does."""
    rng = np.random.default_rng(4)
    p = rng.multinomial(40, [0.97, 0.01, 0.01, 0.01], 3000) / 40
    p[rng.permutation(3000)[:1600]] = [1.0, 0.0, 0.0, 0.0]
    found = geometric_median(p)
    assert np.array_equal(found.point, [1.0, 0.0, 0.0, 0.0])
    assert found.gap == 0.0
    assert found.weights @ p == pytest.approx(found.point)


@pytest.mark.parametrize("seed", range(6))
def test_nearly_collinear_points_are_no_slower(seed: int):
    """Weiszfeld alone is still at a gap of 1e-6 or more after a thousand steps on the first of these."""
    rng = np.random.default_rng(seed)
    points = np.outer(rng.normal(size=6), [1.0, 2.0, -1.0]) + 3e-3 * rng.normal(size=(6, 3))
    found = geometric_median(points)
    assert found.gap <= 1e-9
    assert found.iterations < 40


def test_the_step_away_from_a_data_point_goes_down():
    """The vertex of an angle just below 120 degrees, a little off it: a plain step would jump over the median."""
    angle = math.radians(118.0)
    triangle = np.array([[0.0, 0.0], [1.0, 0.0], [math.cos(angle), math.sin(angle)]])
    one_step = geometric_median(triangle, start=np.array([1.0, 0.0, 0.0]), max_iterations=1)
    assert objective(triangle, one_step.point) < objective(triangle, triangle[0])


def test_it_leaves_a_data_point_that_is_not_optimal():
    """The start stands exactly on a corner: plain Weiszfeld divides by 0 there."""
    square = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    found = geometric_median(square, start=np.array([1.0, 0.0, 0.0, 0.0]))
    assert found.point == pytest.approx([0.5, 0.5], abs=1e-6)


def test_the_fermat_point_of_a_triangle():
    """Sides 3, 4, 5: the sum of distances is sqrt((a^2 + b^2 + c^2)/2 + 2 sqrt(3) area)."""
    triangle = np.array([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    found = geometric_median(triangle)
    assert objective(triangle, found.point) == pytest.approx(math.sqrt(25.0 + 12.0 * math.sqrt(3.0)), rel=1e-9)


def test_a_warm_start_takes_fewer_steps():
    rng = np.random.default_rng(5)
    p = rng.multinomial(300, [0.9, 0.05, 0.03, 0.02], 100) / 300
    cold = geometric_median(p)
    drifted = p + rng.normal(0.0, 1e-5, p.shape)
    assert geometric_median(drifted, start=cold.weights).iterations < geometric_median(drifted).iterations


def test_a_stop_before_the_tolerance_is_admitted():
    rng = np.random.default_rng(6)
    early = geometric_median(rng.normal(size=(5, 3)), max_iterations=2)
    assert early.iterations == 2
    assert early.gap > 1e-9


@pytest.mark.parametrize("points", [np.zeros((0, 3)), np.zeros(3), np.array([[1.0, math.nan]])])
def test_no_points_no_median(points: np.ndarray):
    with pytest.raises(ValueError, match="geometric median needs"):
        geometric_median(points)


@pytest.mark.parametrize("start", [np.ones(2), np.array([1.0, -1.0, 1.0]), np.zeros(3)])
def test_bad_starts_are_refused(start: np.ndarray):
    with pytest.raises(ValueError, match="start needs 3 weights"):
        geometric_median(np.eye(3), start)


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.integers(2, 20), st.integers(2, 10))
def test_the_sources_form_is_never_above_the_plain_one(seed: int, number: int, labels: int):
    """JSD^gm = JSD + KL(mean || gm) >= JSD: with any centre, and so with this one (001 sec. 11.2)."""
    p = np.random.default_rng(seed).dirichlet(np.full(labels, 0.5), number)
    plain = c2_plain(p)
    assert plain is not None
    seed_form = c2_gm_seed(p, geometric_median(p).point)
    assert seed_form <= 1.0 - float(jsd(p)) / math.log2(min(number, labels)) + 1e-9
    assert max(seed_form, 0.0) <= plain + 1e-9


def test_one_liar_of_five_takes_the_sources_form_down_and_leaves_ours():
    honest = np.array([0.97, 0.03, 0.0])
    p = np.vstack([honest] * 4 + [[0.0, 0.0, 1.0]])
    centre = geometric_median(p).point
    assert centre == pytest.approx(honest)
    assert c2_gm_seed(p, centre) == -math.inf
    assert c2_gm(divergences(p, centre), 1) == pytest.approx(1.0)
    assert c2_gm(divergences(p, centre), 0) == pytest.approx(0.8)


def test_breakdown_of_the_trimmed_form():
    """Three of seven anywhere: the centre moves within its bound, and the liars are not averaged in."""
    rng = np.random.default_rng(8)
    honest = rng.multinomial(1000, [0.9, 0.06, 0.04, 0.0, 0.0], 4) / 1000
    for liars in (np.eye(5)[[3, 3, 3]], np.eye(5)[[2, 3, 4]], np.tile(honest.mean(axis=0), (3, 1))):
        p = np.vstack((honest, liars))
        assert c2_gm(divergences(p, geometric_median(p).point), 3) > 0.97


def test_f_is_below_half():
    for f in (-1, 2, 3):
        with pytest.raises(ValueError, match="below half of the 4"):
            c2_gm(np.zeros(4), f)


def test_count_bias_comes_off():
    """The same law at 50 events and at 50,000: without correction the small one looks farther out."""
    law = np.array([0.6, 0.3, 0.1])
    rng = np.random.default_rng(9)
    few, many = (rng.multinomial(n, law, 4000) / n for n in (50, 50_000))
    raw = divergences(few, law).mean() - divergences(many, law).mean()
    corrected = (
        divergences(few, law, np.full(4000, 50.0), 1e-9).mean()
        - divergences(many, law, np.full(4000, 50_000.0), 1e-9).mean()
    )
    assert raw > 0.004
    assert corrected < raw / 2  # the rest is the clipping at 0
