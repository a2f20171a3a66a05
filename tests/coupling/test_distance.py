# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import toeplitz
from scipy.signal import lfilter
from scipy.spatial.distance import mahalanobis
from scipy.stats import chi2

from mvps.coherence.special import hotelling_limit
from mvps.coupling.cross import r_cross
from mvps.coupling.distance import SEED_LIMITS, FiniteLaw, Limits, cross_term, fit_baseline


def draw(seed: int, n: int, phi: float = 0.0, pair: float = 0.0, axes: int = 6) -> np.ndarray:
    rng = np.random.default_rng(seed)
    e = rng.standard_normal((n + 100, axes))
    e[:, 1] += 0.7 * e[:, 0]
    e[:, 4] += pair * e[:, 2]
    return 0.9 + 0.005 * math.sqrt(1.0 - phi * phi) * lfilter([1.0], [1.0, -phi], e, axis=0)[100:]


def white(n: int) -> np.ndarray:
    """Autocorrelations of n independent ticks."""
    return np.eye(1, n)[0]


@settings(max_examples=25)
@given(st.integers(0, 1000), st.sampled_from([6, 7]))
def test_distances_by_another_library(seed: int, axes: int) -> None:
    z, probes = draw(seed, 80, axes=axes), draw(seed + 5000, 5, axes=axes)
    baseline = fit_baseline(z, 3)
    found = baseline.distances(probes)
    for block, values in ((slice(0, 3), found.net), (slice(3, axes), found.ai), (slice(0, axes), found.joint)):
        precision = np.linalg.inv(np.cov(z[:, block], rowvar=False))
        for probe, value in zip(probes[:, block], values, strict=True):
            assert value == pytest.approx(mahalanobis(probe, z[:, block].mean(axis=0), precision) ** 2, rel=1e-6)


def test_they_add_up_exactly_where_the_cross_block_is_0() -> None:
    baseline = fit_baseline(draw(1, 200), 3)
    block = baseline.covariance.copy()
    block[:3, 3:] = block[3:, :3] = 0.0
    probes = draw(2, 50)
    found = baseline._replace(covariance=block).distances(probes)
    assert found.joint == pytest.approx(found.net + found.ai)
    assert cross_term(found) == pytest.approx(np.zeros(50), abs=1e-8)
    assert np.abs(cross_term(baseline.distances(probes))).max() > 0.1


@settings(max_examples=25)
@given(st.integers(0, 1000))
def test_what_the_cross_block_says_is_r_cross(seed: int) -> None:
    """With u, v the whitened deviations: D^2_joint = D^2_net + |v - R^T u|^2 in the metric of (1 - R^T R)."""
    z, probes = draw(seed, 150, pair=0.8), draw(seed + 1, 20)
    baseline = fit_baseline(z, 3)
    found = baseline.distances(probes)
    sd = np.sqrt(baseline.covariance.diagonal())
    c = baseline.covariance / np.outer(sd, sd)
    r = r_cross(baseline.covariance, 3)
    deviation = (probes - baseline.mean) / sd
    roots = []
    for block in (slice(0, 3), slice(3, 6)):
        values, vectors = np.linalg.eigh(c[block, block])
        roots.append(deviation[:, block] @ (vectors / np.sqrt(values)) @ vectors.T)
    u, v = roots
    rest = v - u @ r
    expected = (rest @ np.linalg.inv(np.eye(3) - r.T @ r) * rest).sum(axis=1)
    assert found.joint - found.net == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert (found.joint >= np.maximum(found.net, found.ai) - 1e-9).all()


def test_usual_companions_cost_less_than_their_sum_and_unusual_ones_more() -> None:
    """A deviation a on both sides of a canonical pair of correlation s: 2 a^2 / (1 + s), against each other (1 - s)."""
    r = np.diag([0.6, 0.3, 0.0])
    baseline = fit_baseline(draw(1, 200), 3)._replace(
        mean=np.full(6, 0.9), covariance=1e-6 * np.block([[np.eye(3), r], [r.T, np.eye(3)]])
    )
    together, apart = np.full((2, 6), 0.9)
    together[[0, 3]] += 0.002
    apart[[0, 3]] += [0.002, -0.002]
    found = baseline.distances(np.stack((together, apart)))
    assert found.joint == pytest.approx([8.0 / 1.6, 8.0 / 0.4])
    assert cross_term(found) == pytest.approx([8.0 / 1.6 - 8.0, 8.0 / 0.4 - 8.0])


def test_the_sources_limits() -> None:
    assert SEED_LIMITS.net == pytest.approx(7.815, abs=1e-3)
    assert SEED_LIMITS.joint == pytest.approx(12.59, abs=5e-3)
    assert SEED_LIMITS.joint_alarm == pytest.approx(16.81, abs=5e-3)
    assert SEED_LIMITS.sum == pytest.approx(15.63, abs=5e-3)  # the text rounds it to 15.62
    assert fit_baseline(draw(3, 100), 3).limits("chi2") == pytest.approx(SEED_LIMITS)


def test_the_sum_of_the_limits_is_never_below_the_joint_one() -> None:
    """In windows hardly longer than the axes are many the joint limit is the larger one."""
    assert Limits(11.0, 11.0, 24.0, 40.0).sum == 24.0
    assert FiniteLaw.of(6, white(20)).limit(0.95) > 2.0 * FiniteLaw.of(3, white(20)).limit(0.95)


@pytest.mark.parametrize("n", [60, 300, 1800])
def test_for_independent_ticks_the_finite_law_is_hotellings(n: int) -> None:
    for axes, level in ((3, 0.95), (6, 0.99)):
        law = FiniteLaw.of(axes, white(n))
        assert law.limit(level) == pytest.approx(hotelling_limit(level, axes, n), rel=1e-9)
        assert math.exp(law.log_survival(law.limit(level))) == pytest.approx(1.0 - level)
    assert FiniteLaw.of(6, white(10**6)).limit(0.95) == pytest.approx(chi2.ppf(0.95, 6), rel=1e-4)


@pytest.mark.parametrize("phi", [-0.5, 0.3, 0.8])
def test_the_finite_law_has_the_moments_of_the_matrices(phi: float) -> None:
    """2000 windows of 100: the mean of tr(S^-1) is known to 1 %. Weights from the spectrum add up as eigenvalues do."""
    n, p = 100, 4
    rho = phi ** np.arange(n)
    centred = np.eye(n) - 1.0 / n
    weights = np.linalg.eigvalsh(centred @ toeplitz(rho) @ centred)
    law = FiniteLaw.of(p, rho)
    worth = law.dof + p - 1.0
    tau = toeplitz(rho).sum() / n
    assert law.scale == pytest.approx((1.0 + tau / n) * (n - 1.0) / weights.sum() * worth * p / law.dof)
    rng = np.random.default_rng(0)
    e = rng.standard_normal((2000, n, p))
    e[:, 1:] *= math.sqrt(1.0 - phi * phi)
    x = lfilter([1.0], [1.0, -phi], e, axis=1)
    x -= x.mean(axis=1, keepdims=True)
    found = np.linalg.inv(x.transpose(0, 2, 1) @ x).trace(axis1=1, axis2=2).mean() / p
    assert found * weights.sum() == pytest.approx(worth / (worth - p - 1.0), rel=0.02)


@pytest.mark.parametrize(("phi", "n"), [(0.0, 60), (0.6, 60), (0.6, 300)])
def test_new_quiet_ticks_exceed_the_limits_as_often_as_they_should(phi: float, n: int) -> None:
    """150 windows, 300 new ticks each: the standard error of a 5 % rate is at most .4 %, as windows differ."""
    rates = {"finite-sample": [], "chi2": []}
    for seed in range(150):
        baseline = fit_baseline(draw(seed, n, phi), 3)
        found = baseline.distances(draw(10_000 + seed, 300))
        for mode, beyond in rates.items():
            limits = baseline.limits(mode)
            beyond.append([(found.net >= limits.net).mean(), (found.joint >= limits.joint).mean()])
    net, joint = np.mean(rates["finite-sample"], axis=0)
    assert net == pytest.approx(0.05, abs=0.014)
    assert joint == pytest.approx(0.05, abs=0.014)
    if (phi, n) == (0.6, 60):
        assert np.mean(rates["chi2"], axis=0)[1] > 0.1


def test_empirical_limits_hold_where_ticks_are_not_gaussian() -> None:
    """Student's t with 4 degrees of freedom, 80 windows of 300: 1 % means 1 %, where Hotelling's limits fire more."""
    rates = {"empirical": [], "finite-sample": []}
    for seed in range(80):
        rng = np.random.default_rng(seed)
        z = 0.9 + 0.003 * rng.standard_t(4, (1300, 6))
        baseline = fit_baseline(z[:300], 3)
        found = baseline.distances(z[300:])
        for mode, beyond in rates.items():
            beyond.append((found.joint >= baseline.limits(mode).joint_alarm).mean())
    assert np.mean(rates["empirical"]) < 0.015
    assert np.mean(rates["finite-sample"]) > 0.02


def test_a_missing_surface_is_missing_and_the_other_ticks_are_not_touched() -> None:
    baseline = fit_baseline(draw(4, 100), 3)
    probes = draw(5, 4)
    whole = baseline.distances(probes)
    probes[1, 4] = np.nan
    found = baseline.distances(probes)
    assert np.isnan([found.ai[1], found.joint[1]]).all()
    assert found.net.tolist() == whole.net.tolist()
    assert found.joint[[0, 2, 3]] == pytest.approx(whole.joint[[0, 2, 3]])


def test_axes_that_do_not_vary_take_their_degree_of_freedom_with_them() -> None:
    z = draw(6, 300)
    z[:, 0] = 1.0
    baseline = fit_baseline(z, 3)
    assert baseline.split == 2
    assert [law.axes for law in baseline.laws] == [2, 3, 5]
    assert baseline.limits("chi2").net == pytest.approx(chi2.ppf(0.95, 2))
    assert baseline.distances(z).net.shape == (300,)


@pytest.mark.parametrize("mode", ["empirical", "finite-sample", "chi2"])
def test_p_values_are_those_of_the_limits(mode: str) -> None:
    baseline = fit_baseline(draw(6, 300), 3)
    limits = baseline.limits(mode)
    watch = [(block, 0.95, limits[block]) for block in range(3)]
    for block, level, limit in (*watch, (2, 0.99, limits.joint_alarm)):
        assert math.exp(baseline.log_survival(block, limit, mode)) == pytest.approx(1.0 - level, rel=1e-3)
        assert baseline.log_survival(block, 2.0 * limit, mode) < baseline.log_survival(block, limit, mode)
    assert math.isnan(baseline.log_survival(0, math.nan, mode))


def test_refusals() -> None:
    with pytest.raises(ValueError, match="needs 60 complete ticks, got 59"):
        fit_baseline(draw(7, 59), 3)
    with pytest.raises(ValueError, match="25 ticks are worth 24, too few for a covariance of 22 axes"):
        FiniteLaw.of(22, white(25))
    with pytest.raises(ValueError, match="unknown cut-off mode"):
        fit_baseline(draw(7, 60), 3).limits("best")
    with pytest.raises(ValueError, match="unknown cut-off mode"):
        fit_baseline(draw(7, 60), 3).log_survival(2, 1.0, "best")
    z = draw(8, 100)
    z[:, 5] = z[:, 0]
    with pytest.raises(ValueError, match="leave one out"):
        fit_baseline(z, 3)


def test_an_axis_that_varies_rarely_is_no_obstacle() -> None:
    """C_1 is 1 but in three ticks of the window: most parts of the window do not see it vary."""
    z = draw(9, 300)
    z[:, 0] = 1.0
    z[[40, 41, 200], 0] = 0.9
    baseline = fit_baseline(z, 3)
    assert np.isfinite(baseline.limits()).all()
    quiet = draw(10, 200)
    quiet[:, 0] = 1.0
    assert (baseline.distances(quiet).joint >= baseline.limits().joint).mean() < 0.1


def test_a_floor_is_noise_of_that_variance_on_every_axis() -> None:
    z = draw(8, 200)
    z[:, 1] = 0.5
    baseline = fit_baseline(z, 3, floor=0.3)
    assert baseline.live.all()
    assert baseline.covariance == pytest.approx(np.cov(z, rowvar=False) + 0.09 * np.eye(z.shape[1]))
    assert not fit_baseline(z, 3).live[1]
    moved = z.mean(axis=0)
    moved[1] += 0.3
    assert baseline.distances(moved[None]).net[0] == pytest.approx(1.0, rel=0.2)


def test_empirical_limits_hold_with_a_floor_too() -> None:
    """200 windows of 300 independent ticks; each alarm rate is known to .003."""
    rates = []
    for seed in range(200):
        z = draw(seed, 500)
        baseline = fit_baseline(z[:300], 3, floor=float(z[:300].std(axis=0).mean()))
        rates.append((baseline.distances(z[300:]).joint >= baseline.limits().joint).mean())
    assert np.mean(rates) == pytest.approx(0.05, abs=0.012)
