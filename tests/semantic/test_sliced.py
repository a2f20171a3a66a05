# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvps.semantic.sliced import MOST_NUMBERS, Sliced, directions, pairwise, project, sliced
from mvps.semantic.transport import transport

SEEDS = st.integers(0, 2**32 - 1)


def distance(x: np.ndarray, y: np.ndarray, count: int = 50, seed: int = 0) -> Sliced:
    along = directions(x.shape[1], count, seed)
    return sliced(project(x, along), project(y, along))


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.integers(1, 30), st.integers(1, 30))
def test_in_one_dimension_it_is_w2(seed: int, n: int, m: int):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, 1)), rng.normal(size=(m, 1))
    assert distance(x, y, 3).squared == pytest.approx(transport(x, y).squared, rel=1e-6, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.integers(1, 20), st.integers(1, 20), st.integers(1, 8))
def test_it_is_below_w2_over_d_on_a_full_set_of_directions(seed: int, n: int, m: int, d: int):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, d)), 2.0 * rng.normal(size=(m, d))
    assert d * distance(x, y, d).squared <= transport(x, y).squared * (1.0 + 1e-6) + 1e-9
    v = rng.normal(size=d)
    assert d * distance(x, x + v, d).squared == pytest.approx(v @ v)


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.integers(1, 20), st.integers(1, 20), st.integers(2, 5))
def test_sizes_do_not_matter_only_laws(seed: int, n: int, m: int, times: int):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, 4)), rng.normal(size=(m, 4))
    plain = distance(x, y).squared
    assert distance(np.repeat(x, times, axis=0), y).squared == pytest.approx(plain, rel=1e-9, abs=1e-12)
    assert distance(x, np.repeat(x, times, axis=0)).squared == pytest.approx(0.0, abs=1e-12)
    common = math.lcm(n, m)
    copied = distance(np.repeat(x, common // n, axis=0), np.repeat(y, common // m, axis=0)).squared
    assert copied == pytest.approx(plain, rel=1e-9, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.integers(1, 20), st.integers(1, 6))
def test_it_is_a_metric_without_order(seed: int, n: int, d: int):
    rng = np.random.default_rng(seed)
    x, y, z = rng.normal(size=(n, d)), rng.normal(size=(n + 3, d)), rng.normal(size=(2 * n, d))
    xy, yz, xz = (distance(*pair).distance for pair in ((x, y), (y, z), (x, z)))
    assert xz <= xy + yz + 1e-9
    assert distance(y, x).distance == pytest.approx(xy)
    assert distance(x[rng.permutation(n)], y).distance == pytest.approx(xy)


def test_directions_are_uniform_and_orthonormal_in_blocks():
    rows = directions(5, 12).rows
    assert rows.shape == (12, 5)
    for block in (rows[:5], rows[5:10], rows[10:]):
        assert block @ block.T == pytest.approx(np.eye(len(block)), abs=1e-12)
    first = np.array([directions(2, 1, seed).rows[0, 0] for seed in range(2000)])
    # Cosine of a uniform angle: mean 0 and variance 1/2; both within 4.5 standard errors (1 in 100,000).
    assert abs(first.mean()) < 4.5 * math.sqrt(0.5 / 2000)
    assert abs((first**2).mean() - 0.5) < 4.5 * math.sqrt(0.125 / 2000)
    assert np.array_equal(directions(5, 12, 3).rows, directions(5, 12, 3).rows)
    assert not np.array_equal(directions(5, 12, 3).rows, directions(5, 12, 4).rows)


def test_the_error_is_honest():
    """Over sets of directions the estimate lies within two of its standard errors of the limit in most cases."""
    rng = np.random.default_rng(7)
    x, y = rng.normal(size=(40, 30)), 1.3 * rng.normal(size=(50, 30)) + 0.2
    limit = distance(x, y, 6000, 999).squared
    within = sum(abs(one.squared - limit) <= 2.0 * one.error for one in (distance(x, y, 25, s) for s in range(200)))
    assert within >= 180  # .95 expected, orthonormality makes it more; below 180 once in 1000 at .95
    assert distance(x, y, 1).error == math.inf


def test_the_upper_bound_of_the_source_does_not_hold():
    """001 sec. 4.4: W_2^2 <= d SW_2^2 for isotropic laws. Two samples of one isotropic Gaussian, d = 128."""
    rng = np.random.default_rng(8)
    x, y = rng.normal(size=(64, 128)), rng.normal(size=(64, 128))
    assert transport(x, y).squared > 10.0 * 128 * distance(x, y, 128).squared


def test_pairwise_and_single_precision():
    rng = np.random.default_rng(9)
    clouds = [rng.normal(size=(20 + 3 * (k % 2), 40)) for k in range(4)]
    along, short = directions(40), directions(40, dtype=np.float32)
    assert short.rows.dtype == np.float32
    found = pairwise([project(cloud, along) for cloud in clouds])
    single = pairwise([project(cloud.astype(np.float32), short) for cloud in clouds])
    assert np.array_equal(found, found.T)
    assert found[2, 1] == pytest.approx(distance(clouds[1], clouds[2], 100).distance)
    assert single == pytest.approx(found, rel=1e-5)


def test_what_cannot_be_compared_is_refused():
    x = np.zeros((3, 4))
    with pytest.raises(ValueError, match="different directions"):
        sliced(project(x, directions(4, seed=1)), project(x, directions(4, seed=2)))
    with pytest.raises(ValueError, match="4 dimensions, the directions 5"):
        project(x, directions(5))
    with pytest.raises(ValueError, match="not finite"):
        project(np.array([[0.0] * 4, [0.0, math.nan, 0.0, 0.0]]), directions(4))
    with pytest.raises(ValueError, match="not finite"):
        project(np.array([[0.0] * 4, [0.0, math.inf, 0.0, 0.0]]), directions(4))
    with pytest.raises(ValueError, match="empty answers"):
        project(np.zeros((0, 4)), directions(4))
    with pytest.raises(ValueError, match="at least 1"):
        directions(4, 0)
    with pytest.raises(ValueError, match=f"more than {MOST_NUMBERS} numbers"):
        directions(1 << 13, 1 << 12)
    with pytest.raises(ValueError, match=f"more than {MOST_NUMBERS} numbers"):
        project(np.zeros((1 << 14, 1)), directions(1, 1 << 11))
