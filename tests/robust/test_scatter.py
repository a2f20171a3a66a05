# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.covariance import MinCovDet

from mvps.coherence.distance import phi_d
from mvps.coherence.special import hotelling_limit
from mvps.robust import scatter as scatter_module
from mvps.robust.scatter import fit_scatter, hardin_rocke_law, null_law

SIGMA = np.array([[1.0, 0.6, 0.0], [0.6, 2.0, 0.3], [0.0, 0.3, 0.5]])
FLOOR = np.full(3, 1e-9)


def ticks(seed: int, n: int, scale: float = 1e-3) -> np.ndarray:
    """Coherence vectors as they are: near 1, deviations in the third digit."""
    return 0.98 + scale * np.random.default_rng(seed).multivariate_normal(np.zeros(3), SIGMA, n)


def test_it_is_scikit_learns_estimate():
    x = ticks(0, 200)
    mine = fit_scatter(x, FLOOR, small_sample=False)
    theirs = MinCovDet(random_state=0).fit((x - 0.98) / 1e-3)
    assert mine.method == "mcd"
    # Another subset may have a lesser determinant; reweighted, they differ by a tick or two.
    assert mine.covariance == pytest.approx(theirs.covariance_ * 1e-6, rel=0.1, abs=3e-8)
    assert mine.location == pytest.approx(0.98 + 1e-3 * theirs.location_, abs=1e-4)


def test_where_scikit_learns_search_is_the_better_one_the_estimate_is_the_same():
    z = np.random.default_rng(20).normal(size=(60, 3))
    theirs = MinCovDet(random_state=0).fit(z)
    location, scatter, weight = scatter_module._mcd(z) or pytest.fail("singular")
    assert scatter == pytest.approx(theirs.covariance_)
    assert location == pytest.approx(theirs.location_)
    assert np.array_equal(weight, theirs.support_)


def test_four_ticks_of_ten_where_scikit_learns_search_alone_fails():
    z = np.random.default_rng(21).normal(size=(300, 3))
    z[:120] += 50.0
    assert np.abs(MinCovDet(random_state=0).fit(z).location_).max() > 10.0
    location, _, weight = scatter_module._mcd(z) or pytest.fail("singular")
    assert np.abs(location).max() < 0.3
    assert not weight[:120].any()


@pytest.mark.parametrize("share", [0.1, 0.3, 0.45])
def test_contaminated_ticks_do_not_move_it(share: float):
    x = ticks(1, 300)
    ill = int(share * 300)
    x[:ill] += 0.05
    robust = fit_scatter(x, FLOOR, small_sample=False)
    assert robust.location == pytest.approx(np.full(3, 0.98), abs=5e-4)
    assert np.abs(x.mean(axis=0) - 0.98).min() > 4e-3
    assert robust.weight[:ill].sum() == 0.0
    assert robust.d2(x[:ill]).min() > 100.0
    assert phi_d(float(robust.d2(x[:1])[0])) < 1e-6


def test_affine_equivariance():
    rng = np.random.default_rng(2)
    x = ticks(2, 150)
    mixing, shift = rng.normal(size=(3, 3)) + 3.0 * np.eye(3), rng.normal(size=3)
    before = fit_scatter(x, FLOOR, small_sample=False)
    after = fit_scatter(x @ mixing.T + shift, FLOOR, small_sample=False)
    probes = ticks(3, 20)
    # The search is randomised over subsets of rows, so that both find the same subset up to a few ticks.
    assert after.d2(probes @ mixing.T + shift) == pytest.approx(before.d2(probes), rel=0.15)


def test_new_ticks_exceed_the_limits_as_often_as_they_should():
    """Windows of 60 ticks: 5 % and 1 %, where the source's chi-square limits fire more often."""
    law = null_law(60, 3)
    rng = np.random.default_rng(4)
    beyond = {0.95: 0, 0.99: 0}
    chi2 = dict.fromkeys(beyond, 0)
    total = 0
    for seed in range(60):
        fit = fit_scatter(rng.multivariate_normal(np.zeros(3), SIGMA, 60), FLOOR, small_sample=True)
        d2 = fit.d2(rng.multivariate_normal(np.zeros(3), SIGMA, 200))
        total += len(d2)
        for level in beyond:
            beyond[level] += int((d2 > law.limit(level)).sum())
            chi2[level] += int((d2 > stats.chi2.ppf(level, 3)).sum())
        assert fit.method == "mcd", seed
    assert beyond[0.95] / total == pytest.approx(0.05, abs=0.012)
    assert beyond[0.99] / total == pytest.approx(0.01, abs=0.005)
    assert chi2[0.99] / total > 0.015


def test_the_law_nears_hotellings_and_is_never_below_it_by_much():
    """Without outliers the reweighted MCD is nearly the classical estimate; small windows pay for robustness."""
    for n in (60, 300):
        law = null_law(n, 3)
        for level in (0.95, 0.99):
            assert 0.97 < law.limit(level) / hotelling_limit(level, 3, n) < 1.35
    assert null_law(300, 3).consistency == pytest.approx(1.0, abs=0.08)
    assert null_law(60, 3).consistency < null_law(300, 3).consistency


def test_limit_and_survival_are_inverse():
    law = null_law(60, 3)
    for level in (0.9, 0.99, 0.999):
        assert math.exp(law.log_survival(law.limit(level))) == pytest.approx(1.0 - level)
    with pytest.raises(ValueError, match="needs 15 ticks"):
        null_law(14, 3)


def test_the_small_sample_factor_makes_the_determinant_right_on_average():
    rng = np.random.default_rng(5)
    sizes = [np.linalg.det(fit_scatter(rng.normal(size=(60, 3)), FLOOR).covariance) ** (1 / 3) for _ in range(60)]
    assert np.mean(sizes) == pytest.approx(1.0, abs=0.06)


def test_tied_ticks_fall_back_and_say_so():
    x = ticks(6, 100)
    x[:70, 1] = 1.0  # C_2 sits at 1 in most ticks, as an idle host's does
    fit = fit_scatter(x, FLOOR)
    assert fit.method == "regularised mcd"
    assert "axes [1] are tied" in fit.reason
    assert np.isfinite(fit.d2(ticks(7, 5))).all()
    assert (np.linalg.eigvalsh(fit.covariance) > 0.0).all()


def test_axes_that_depend_on_each_other_fall_back_and_say_so():
    x = ticks(8, 100)
    x[:, 2] = 2.0 * x[:, 0] - 1.0
    fit = fit_scatter(x, FLOOR)
    assert fit.method == "regularised mcd"
    assert "axes depend" in fit.reason
    assert np.isfinite(fit.d2(x)).all()


def test_too_few_ticks_fall_back_and_say_so():
    fit = fit_scatter(ticks(9, 10), FLOOR)
    assert fit.method == "classical"
    assert fit.reason == "10 ticks are too few for 3 axes, 15 are needed"
    with pytest.raises(ValueError, match="at least 2"):
        fit_scatter(ticks(9, 1), FLOOR)
    with pytest.raises(ValueError, match="floor"):
        fit_scatter(ticks(9, 50), np.zeros(3))


def test_ticks_with_an_absent_axis_are_left_out_and_counted():
    x = ticks(10, 100)
    x[5, 1] = x[7, 0] = np.nan
    fit = fit_scatter(x, FLOOR, small_sample=False)
    assert (fit.ticks, fit.left_out) == (98, 2)


def test_it_is_no_defence_against_a_vantage_that_lies_in_every_tick():
    """001 sec. 13 offers the MCD against Byzantine vantages: what a liar does throughout is business as usual to it."""
    x = ticks(11, 300) - np.array([0.0, 0.3, 0.0])
    fit = fit_scatter(x, FLOOR, small_sample=False)
    assert fit.location[1] == pytest.approx(0.68, abs=1e-3)
    assert float(np.median(fit.d2(x))) < 4.0


def test_what_the_source_says_about_the_bias():
    """001 sec. 13.2: "< 0.007" for f_cal = .1 T, T = 1800 is sqrt(.1/T); its own bound sqrt(f_cal/T) is .316."""
    assert math.sqrt(0.1 / 1800) == pytest.approx(0.0075, abs=1e-4)
    assert math.sqrt(0.1 * 1800 / 1800) == pytest.approx(0.316, abs=1e-3)


@pytest.mark.parametrize(
    ("axes", "published"), [(2, 5.315887967418165), (3, 4.261476109014215), (4, 3.690568685236717)]
)
def test_hardin_and_rockes_law_is_the_published_one(axes: int, published: float):
    """F quantiles at .993 for n = 1000 that the R package fdaoutlier tests its own implementation of the paper with
    (tests/testthat, hardin_factor_numeric(1000, p)$factor2): they fix the degrees of freedom."""
    law = hardin_rocke_law(1000, axes)
    assert stats.f.ppf(0.993, axes, law.dof) == pytest.approx(published, rel=1e-9)
    assert law.limit(0.993) == pytest.approx(axes * (law.dof + axes - 1) / law.dof * published)


def raw_consistent(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """scikit-learn's raw MCD, consistent for Gaussian ticks, and the ticks that are in it."""
    found = MinCovDet(random_state=0).fit(x)
    n, p = x.shape
    kept = ((n + p + 1) // 2) / n
    factor = kept / stats.chi2.cdf(stats.chi2.ppf(kept, p), p + 2)
    inside = x[found.raw_support_]
    return inside.mean(axis=0), factor * np.cov(inside, rowvar=False, bias=True), found.raw_support_


def test_it_describes_the_raw_scatter_which_ours_is_not():
    """Ticks outside the subset, n = 100 and p = 3: beyond the paper's 5 % limit are 2 to 8 % of all ticks, and a third
    more beyond the chi-square limit. Our reweighted scatter needs lower limits, and has its own law."""
    n, p, level = 100, 3, 0.95
    law = hardin_rocke_law(n, p)
    rng = np.random.default_rng(8)
    beyond = plain = 0
    for _ in range(150):
        x = rng.normal(size=(n, p))
        location, scatter, inside = raw_consistent(x)
        d2 = np.einsum("ti,ij,tj->t", x - location, np.linalg.inv(scatter), x - location)[~inside]
        beyond += int((d2 > law.limit(level)).sum())
        plain += int((d2 > stats.chi2.ppf(level, p)).sum())
    assert 0.02 < beyond / (150 * n) < 0.08
    assert plain > 1.33 * beyond
    assert stats.chi2.ppf(level, p) < null_law(n, p).limit(level) < law.limit(level)


def test_without_degrees_of_freedom_there_is_no_law():
    with pytest.raises(ValueError, match="needs more than 8 ticks for 4 axes"):
        hardin_rocke_law(8, 4)
    limits = [hardin_rocke_law(n, 3).limit(0.99) for n in (30, 60, 100, 300, 1000, 10_000)]
    assert limits == sorted(limits, reverse=True)
    assert limits[-1] == pytest.approx(stats.chi2.ppf(0.99, 3), rel=0.02)
