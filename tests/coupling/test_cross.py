# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from scipy.signal import lfilter

from mvps.coupling.cross import dominant, fit_cross, lagged, part_covariance, r_cross, whitened


def joint_covariance(seed: int, p: int = 3, q: int = 3) -> np.ndarray:
    a = np.random.default_rng(seed).normal(size=(p + q, p + q))
    return a @ a.T + 0.5 * np.eye(p + q)


def draw(seed: int, n: int, r: np.ndarray, phi: float = 0.0) -> np.ndarray:
    """(n, 6) near 0.9 with independent axes within the surfaces and R_cross = r."""
    sigma = np.block([[np.eye(3), r], [r.T, np.eye(3)]])
    e = np.random.default_rng(seed).standard_normal((n + 200, 6)) @ np.linalg.cholesky(sigma).T
    return 0.9 + 0.01 * np.sqrt(1.0 - phi * phi) * lfilter([1.0], [1.0, -phi], e, axis=0)[200:]


@given(st.integers(0, 10_000), st.sampled_from([(3, 3), (3, 4), (1, 2), (2, 1)]))
def test_the_sources_form_by_another_library(seed: int, sizes: tuple[int, int]) -> None:
    p = sizes[0]
    sigma = joint_covariance(seed, *sizes)
    expected = np.linalg.inv(sqrtm(sigma[:p, :p])) @ sigma[:p, p:] @ np.linalg.inv(sqrtm(sigma[p:, p:]))
    assert r_cross(sigma, p, of_covariance=True) == pytest.approx(expected.real, abs=1e-8)


@given(st.integers(0, 10_000))
def test_both_forms_have_the_canonical_correlations(seed: int) -> None:
    sigma = joint_covariance(seed)
    net, ai, cross = sigma[:3, :3], sigma[3:, 3:], sigma[:3, 3:]
    squared = np.linalg.eigvals(np.linalg.solve(net, cross) @ np.linalg.solve(ai, cross.T))
    canonical = np.sort(np.sqrt(np.maximum(squared.real, 0.0)))[::-1]
    for of_covariance in (False, True):
        found = np.linalg.svd(r_cross(sigma, 3, of_covariance), compute_uv=False)
        assert found == pytest.approx(canonical, abs=1e-7)
        assert found[0] < 1.0


@given(st.integers(0, 10_000), st.lists(st.floats(0.01, 100.0), min_size=6, max_size=6))
def test_units_do_not_matter(seed: int, units: list[float]) -> None:
    sigma = joint_covariance(seed)
    assert r_cross(sigma * np.outer(units, units), 3) == pytest.approx(r_cross(sigma, 3), abs=1e-8)


def test_in_the_sources_form_units_do_matter() -> None:
    sigma, units = joint_covariance(0), np.array([1.0, 10.0, 1.0, 1.0, 1.0, 0.1])
    moved = r_cross(sigma * np.outer(units, units), 3, True) - r_cross(sigma, 3, True)
    assert np.abs(moved).max() > 0.05


def test_entries_are_no_partial_correlations() -> None:
    """000 sec. 2.3 and 001 sec. 18.3 say so."""
    sigma = joint_covariance(2)
    precision = np.linalg.inv(sigma)
    sd = np.sqrt(precision.diagonal())
    partial = -(precision / np.outer(sd, sd))[:3, 3:]
    assert np.abs(partial - r_cross(sigma, 3)).max() > 0.1


def test_intervals_hold_the_truth_also_for_ticks_that_remember() -> None:
    """60 windows of 600 ticks, 9 entries: 95 % of 540, which for dependent entries has a standard error of 1.3 %."""
    r = np.zeros((3, 3))
    r[2, 1], r[0, 0] = 0.4, -0.2
    for phi in (0.0, 0.6):
        inside = []
        for seed in range(60):
            found = fit_cross(draw(seed, 600, r, phi), 3)
            inside.append((found.low <= r) & (r <= found.high))
        assert np.mean(inside) == pytest.approx(0.95, abs=0.035), phi


def test_without_coupling_the_norm_is_not_0_but_what_is_said() -> None:
    found = [fit_cross(draw(seed, 300, np.zeros((3, 3)), 0.6), 3) for seed in range(60)]
    rms = np.sqrt(np.mean([one.frobenius**2 for one in found]))
    assert rms == pytest.approx(np.mean([one.frobenius_null for one in found]), rel=0.12)
    assert rms > 0.2


def test_shrinkage_is_reported_and_improves_the_condition() -> None:
    z = draw(3, 80, np.zeros((3, 3)))
    z[:, 1] = z[:, 0] + 0.0005 * (z[:, 1] - 0.9) / 0.01
    found = fit_cross(z, 3)
    assert found.condition < found.condition_raw
    assert found.condition_raw > 100.0
    assert found.shrinkage == pytest.approx(6 / (6 + found.effective.min()))
    assert found.ticks == 80


def test_lag_of_a_network_that_is_first() -> None:
    z = draw(4, 2000, np.zeros((3, 3)))
    z[5:, 4] = 0.5 * z[:-5, 2] + np.sqrt(0.75) * (z[5:, 4] - 0.9) + 0.45
    found = lagged(z, 3, 10)
    assert found.shape == (21, 3, 3)
    assert np.unravel_index(np.argmax(np.abs(found)), found.shape) == (15, 2, 1)
    assert found[15, 2, 1] == pytest.approx(0.5, abs=0.06)
    assert found[10] == pytest.approx(r_cross(np.cov(z, rowvar=False), 3), abs=1e-9)


@settings(max_examples=30)
@given(st.integers(0, 1000))
def test_whitened_axes_are_white(seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=(50, 3)) @ joint_covariance(seed, 2, 1) + 4.0
    u = whitened(x)
    assert u.T @ u / 50 == pytest.approx(np.eye(3), abs=1e-9)
    assert u.mean(axis=0) == pytest.approx(np.zeros(3), abs=1e-9)


def test_axes_that_do_not_vary_are_left_out() -> None:
    z = draw(5, 200, np.zeros((3, 3)))
    z[:, 0] = 1.0
    found = fit_cross(z, 3)
    assert found.live.tolist() == [False, True, True, True, True, True]
    assert found.r.shape == (2, 3)
    z[:, 3:] = 0.97
    with pytest.raises(ValueError, match="without any axis that varies"):
        fit_cross(z, 3)


def test_refusals() -> None:
    z = draw(6, 200, np.zeros((3, 3)))
    for wrong in (0, 6):
        with pytest.raises(ValueError, match="cannot be split"):
            fit_cross(z, wrong)
    z[3, 2] = np.nan
    with pytest.raises(ValueError, match="must be complete"):
        fit_cross(z, 3)
    z[3, 2] = 0.9
    with pytest.raises(ValueError, match="lags up to"):
        lagged(z, 3, 100)
    z[:, 1] = z[:, 0]
    with pytest.raises(ValueError, match="leave one out"):
        lagged(z, 3, 5)
    assert np.isfinite(fit_cross(z, 3).r).all()  # shrinkage is what keeps them apart


def test_which_pair_couples_most_and_whether_that_is_sure() -> None:
    """P_IC4 expects C_3^net with C_2^W2."""
    r = np.zeros((3, 3))
    r[2, 1], r[0, 0] = -0.5, 0.2
    found = dominant(draw(7, 900, r, 0.6), 3)
    assert (found.net, found.ai) == (2, 1)
    assert found.r == pytest.approx(-0.5, abs=0.12)
    assert found.share >= 0.95
    # Of two equal pairs, and without coupling, none dominates.
    r[0, 0] = 0.5
    assert dominant(draw(7, 900, r, 0.6), 3).share < 0.95
    assert [dominant(draw(seed, 900, 0.0 * r, 0.6), 3).share < 0.95 for seed in range(10)].count(True) >= 8


def test_an_axis_that_varies_rarely_is_no_obstacle() -> None:
    """Both causal axes are 1 but in the same two ticks: many redrawn windows do not see them vary."""
    z = draw(8, 300, np.zeros((3, 3)))
    z[:, [0, 3]] = 1.0
    z[[40, 41], 0] = 0.9
    z[[40, 41, 200], 3] = 0.9
    found = dominant(z, 3, 100)
    assert (found.net, found.ai) == (0, 0)
    assert 0.5 < found.share <= 1.0
    still = part_covariance(z[100:150], z.var(axis=0))
    assert (np.linalg.eigvalsh(still) > 0.0).all()
