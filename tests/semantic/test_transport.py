# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.spatial.distance import cdist

from mvps.semantic import transport as ot
from mvps.semantic.transport import gaussian_squared, pairwise, quantile_coupling, squared_distances, transport

SEEDS = st.integers(0, 2**32 - 1)


def by_whole_program(x: np.ndarray, y: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    """The least cost as 001 sec. 4.2 writes the program: every cell, dense."""
    cost = ((x[:, None, :] - y) ** 2).sum(axis=2)
    n, m = cost.shape
    sums = np.zeros((n + m, n * m))
    for i in range(n):
        sums[i, i * m : (i + 1) * m] = 1.0
    for j in range(m):
        sums[n + j, j::m] = 1.0
    solved = linprog(cost.ravel(), A_eq=sums, b_eq=np.concatenate((a, b)), method="highs")
    assert solved.status == 0
    return float(solved.fun)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(1, 12), st.integers(1, 12), st.integers(1, 5))
def test_the_plan_is_optimal_and_has_its_marginals(seed: int, n: int, m: int, d: int):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, d)), rng.normal(size=(m, d)) + 0.5
    if rng.random() < 0.5:  # tokens repeat, in one answer and in both
        x, y = x[rng.integers(0, (n + 2) // 3, n)], np.vstack((x[:1], y))[rng.integers(0, (m + 2) // 3, m)]
    a, b = rng.dirichlet(np.ones(n)), rng.dirichlet(np.ones(m))
    found = transport(x, y, a, b)
    assert found.squared == pytest.approx(by_whole_program(x, y, a, b), rel=1e-6, abs=1e-9)
    assert found.gap <= 1e-6 * squared_distances(x, y).max()
    assert np.bincount(found.rows, found.mass, n) == pytest.approx(a, abs=1e-8)
    assert np.bincount(found.columns, found.mass, m) == pytest.approx(b, abs=1e-8)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(1, 40), st.integers(1, 30))
def test_assignment_and_program_agree(seed: int, n: int, d: int):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, d)), rng.normal(size=(n, d))
    equal = np.ones(n)
    assigned, programmed = transport(x, y), transport(x, y, equal, equal)
    assert programmed.squared == pytest.approx(assigned.squared, rel=1e-7, abs=1e-9)
    assert assigned.gap == 0.0
    assert assigned.mass == pytest.approx(equal / n)


@pytest.mark.parametrize(("n", "m"), [(61, 64), (40, 90), (1, 33)])
def test_other_sizes_are_proven_optimal(n: int, m: int):
    """Tokens of two answers; each copied so often that the sizes match, it is an assignment."""
    rng = np.random.default_rng(n)
    x, y = rng.normal(size=(n, 16)), rng.normal(size=(m, 16))
    common = math.lcm(n, m)
    if common <= 400:
        copied = transport(np.repeat(x, common // n, axis=0), np.repeat(y, common // m, axis=0)).squared
    else:
        copied = by_whole_program(x, y, np.full(n, 1 / n), np.full(m, 1 / m))
    found = transport(x, y)
    assert found.squared == pytest.approx(copied, rel=1e-6)
    assert found.gap <= 1e-6 * squared_distances(x, y).max()


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.integers(1, 30), st.integers(1, 30))
def test_on_a_line_it_is_the_quantile_coupling(seed: int, n: int, m: int):
    rng = np.random.default_rng(seed)
    x, y = np.sort(rng.normal(size=n)), np.sort(rng.normal(size=m))
    common = math.lcm(n, m)
    closed = float(np.mean((np.repeat(x, common // n) - np.repeat(y, common // m)) ** 2))
    assert transport(x[:, None], y[:, None]).squared == pytest.approx(closed, rel=1e-6, abs=1e-9)
    rows, columns, mass = quantile_coupling(np.full(n, 1 / n), np.full(m, 1 / m))
    assert mass @ (x[rows] - y[columns]) ** 2 == pytest.approx(closed, rel=1e-9, abs=1e-12)
    assert len(mass) <= n + m - 1 + 2  # rounding may split one


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(2, 30), st.integers(1, 12))
def test_gradients_of_convex_functions_are_optimal_maps(seed: int, n: int, d: int):
    """y = A x + v with A positive semidefinite moves any cloud optimally, at the cost that Gaussians have (Brenier)."""
    rng = np.random.default_rng(seed)
    x, root, v = rng.normal(size=(n, d)), rng.normal(size=(d, d)), rng.normal(size=d)
    y = x @ (root @ root.T) / d + v
    rng.shuffle(y)
    covariances = [np.atleast_2d(np.cov(one, rowvar=False, bias=True)) for one in (x, y)]
    closed = gaussian_squared(x.mean(axis=0), covariances[0], y.mean(axis=0), covariances[1])
    assert transport(x, y).squared == pytest.approx(closed, rel=1e-6, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(2, 30), st.integers(1, 8))
def test_no_law_is_nearer_than_gaussians_of_its_moments(seed: int, n: int, d: int):
    rng = np.random.default_rng(seed)
    x, y = rng.exponential(size=(n, d)), rng.standard_cauchy(size=(n, d))
    moments = [(one.mean(axis=0), np.atleast_2d(np.cov(one, rowvar=False, bias=True))) for one in (x, y)]
    assert gaussian_squared(*moments[0], *moments[1]) <= transport(x, y).squared * (1.0 + 1e-6) + 1e-6


def test_gaussians_in_closed_form():
    assert gaussian_squared(np.zeros(1), np.array([[4.0]]), np.array([3.0]), np.array([[1.0]])) == pytest.approx(10.0)
    a, b = np.diag([1.0, 4.0]), np.diag([9.0, 0.0])
    assert gaussian_squared(np.zeros(2), a, np.zeros(2), b) == pytest.approx(4.0 + 4.0)
    assert gaussian_squared(np.zeros(2), a, np.zeros(2), a) == pytest.approx(0.0, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(1, 20), st.integers(1, 6))
def test_it_is_a_metric_without_order(seed: int, n: int, d: int):
    rng = np.random.default_rng(seed)
    x, y, z = (rng.normal(size=(n, d)) for _ in range(3))
    xy, yz, xz = (transport(*pair).distance for pair in ((x, y), (y, z), (x, z)))
    assert xz <= xy + yz + 1e-9
    assert transport(y, x).distance == pytest.approx(xy)
    assert transport(x[rng.permutation(n)], y[rng.permutation(n)]).distance == pytest.approx(xy)
    assert transport(x, x[rng.permutation(n)]).distance == 0.0
    v = rng.normal(size=d)
    assert transport(x, x + v).distance == pytest.approx(np.linalg.norm(v))


def test_identical_clouds_far_from_the_origin_are_at_distance_0():
    x = np.random.default_rng(0).normal(1e4, 1e-3, (30, 50)).astype(np.float32)
    assert transport(x, x[::-1]).squared == 0.0
    assert transport(x, x[:20]).squared < 1e-3


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(1, 9), st.integers(1, 9), st.integers(1, 5))
def test_squared_distances_are_those_of_cdist(seed: int, n: int, m: int, d: int):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(5.0, 1.0, (n, d)), rng.normal(5.0, 1.0, (m, d))
    assert squared_distances(x, y) == pytest.approx(cdist(x, y, "sqeuclidean"), abs=1e-12)


def test_pairwise_is_all_pairs():
    clouds = [np.random.default_rng(k).normal(size=(6 + k % 2, 3)) for k in range(4)]
    found = pairwise(clouds)
    assert np.array_equal(found, found.T)
    assert np.array_equal(found.diagonal(), np.zeros(4))
    assert found[3, 1] == pytest.approx(transport(clouds[1], clouds[3]).distance)


def test_single_precision_is_enough_for_the_plan():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(100, 300)), rng.normal(size=(100, 300))
    single = transport(x.astype(np.float32), y.astype(np.float32))
    assert single.squared == pytest.approx(transport(x, y).squared, rel=1e-6)


def test_points_without_mass_are_left_out():
    x, y = np.array([[0.0], [50.0], [1.0]]), np.array([[0.0], [1.0]])
    found = transport(x, y, np.array([1.0, 0.0, 1.0]))
    assert found.squared == 0.0
    assert set(found.rows.tolist()) == {0, 2}


def test_what_the_source_says_about_disjoint_balls():
    """001 sec. 4.3 takes 2 r off although delta already bounds every pair: delta^2 holds, and is reached."""
    x, y = np.array([[0.0], [0.5]]), np.array([[3.0], [3.5]])
    delta, r = 2.5, 0.25
    assert transport(x, y).squared >= delta**2 > (delta - 2.0 * r) ** 2
    assert transport(x[1:], y[:1]).squared == delta**2


def test_without_a_metric_all_laws_are_at_distance_0():
    """001 sec. 4.5: identical embeddings make W_2 0, not the total variation of the token laws."""
    same = np.ones((2, 3))
    assert transport(same, same, np.array([1.0, 0.0]), np.array([0.0, 1.0])).squared == 0.0


def test_samples_of_one_law_are_far_apart_in_high_dimension():
    """Why no fixed threshold can hold: E|x|^2 is 256 here, and W_2^2 of two samples of one Gaussian is more."""
    rng = np.random.default_rng(2)
    assert transport(rng.normal(size=(64, 256)), rng.normal(size=(64, 256))).squared > 256.0


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((0, 3)), "leave empty answers out"),
        (np.zeros(3), "rows of embeddings"),
        (np.array([[math.nan]]), "not finite"),
        (np.array([[math.inf]]), "not finite"),
        (np.array([[1e30], [-1e30]], dtype=np.float32), "too large"),
        (np.zeros((2, 1), dtype=np.float16), "single or double precision"),
        (np.zeros((2, 2)), "one encoder"),
        (np.zeros((5000, 1)), "sliced distance"),
    ],
)
def test_bad_clouds_are_refused(x: np.ndarray, message: str):
    with pytest.raises(ValueError, match=message):
        transport(x, np.zeros((max(len(x), 1), 1), x.dtype))
    with pytest.raises(ValueError, match=message):
        transport(np.zeros((max(len(x), 1), 1), x.dtype), x)


def test_other_sizes_have_a_lower_limit():
    with pytest.raises(ValueError, match=f"more than {ot.MOST_CELLS_PROGRAM} cells"):
        transport(np.zeros((600, 1)), np.zeros((500, 1)))


@pytest.mark.parametrize("weights", [np.ones(2), np.array([1.0, -1.0, 1.0]), np.zeros(3), np.array([1.0, math.nan, 1])])
def test_bad_weights_are_refused(weights: np.ndarray):
    with pytest.raises(ValueError, match="needs 3 weights"):
        transport(np.zeros((3, 1)), np.zeros((3, 1)), weights)


@pytest.mark.parametrize(
    ("covariance", "message"),
    [
        (np.array([[1.0, 0.5], [0.0, 1.0]]), "symmetric"),
        (np.array([[1.0, 2.0], [2.0, 1.0]]), "semidefinite"),
        (np.ones((2, 3)), "square"),
    ],
)
def test_bad_covariances_are_refused(covariance: np.ndarray, message: str):
    with pytest.raises(ValueError, match=message):
        gaussian_squared(np.zeros(2), covariance, np.zeros(2), np.eye(2))
