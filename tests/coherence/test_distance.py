# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.signal import lfilter
from scipy.spatial.distance import mahalanobis

from mvps.coherence.distance import (
    LEVELS,
    Ellipsoid,
    d2_cutoffs,
    d2_log_survival,
    phi_d,
    vantage_contributions,
)
from mvps.coherence.tail import Tail, autocorrelation_time, block_length, blocked_scores

AXES = ("c1", "c2", "c3")
NO_NOISE = np.zeros(3)
MIX = np.array([[1.0, 0.4, 0.0], [0.0, 1.0, -0.5], [0.2, 0.0, 1.0]])


def ellipsoid(seed: int, n: int = 300) -> Ellipsoid:
    return Ellipsoid.fit(AXES, np.random.default_rng(seed).standard_normal((n, 3)) @ MIX, NO_NOISE)


@settings(max_examples=50)
@given(st.integers(0, 1000), st.tuples(*[st.floats(-5, 5)] * 3))
def test_d2_against_scipy_and_contributions_sum_to_it(seed: int, x: tuple[float, float, float]) -> None:
    e = ellipsoid(seed, 40)
    expected = mahalanobis(x, e.mean, np.linalg.inv(np.array(e.covariance))) ** 2
    parts = e.contributions(dict(zip(AXES, x, strict=True)))
    assert sum(parts.values()) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert min(parts.values()) >= 0.0
    assert e.d2(np.array([x]))[0] == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_the_axis_that_moved_gets_the_contribution() -> None:
    e = ellipsoid(5)
    values: dict[str, float | None] = dict(zip(AXES, e.mean, strict=True))
    values["c3"] = e.mean[2] - 6.0
    parts = e.contributions(values)
    assert max(parts, key=parts.__getitem__) == "c3"


def test_an_absent_axis_is_judged_by_the_marginal() -> None:
    e = ellipsoid(6)
    inner = np.array(e.covariance)[:2, :2]
    expected = mahalanobis([1.0, -2.0], e.mean[:2], np.linalg.inv(inner)) ** 2
    parts = e.contributions({"c1": 1.0, "c2": -2.0, "c3": None})
    assert sum(parts.values()) == pytest.approx(expected)
    assert e.dof({"c1": 1.0, "c2": -2.0, "c3": None}) == 2
    assert e.contributions({}) == {}
    assert e.dof({}) == 0


def test_a_silent_axis_counts_when_it_moves_and_not_before() -> None:
    x = np.random.default_rng(1).standard_normal((100, 2))
    x[:, 0] = 1.0
    e = Ellipsoid.fit(("c1", "c2"), x, np.array([0.01, 0.0]))
    assert e.live == (False, True)
    assert e.dof({"c1": 1.0, "c2": 0.0}) == 1
    assert e.contributions({"c1": 1.0, "c2": 0.0})["c1"] == pytest.approx(0.0, abs=1e-12)
    assert e.contributions({"c1": 0.5, "c2": 0.0})["c1"] == pytest.approx(0.25 / 0.01)


def test_more_counting_noise_than_in_bau_widens_the_axis_and_less_does_not() -> None:
    x = np.random.default_rng(1).standard_normal((100, 1))
    e = Ellipsoid.fit(("c2",), x, np.array([0.1]))
    plain = e.contributions({"c2": 3.0})["c2"]
    assert e.contributions({"c2": 3.0}, {"c2": 0.05})["c2"] == plain
    variance = e.covariance[0][0]
    assert e.contributions({"c2": 3.0}, {"c2": 0.1 + variance})["c2"] == pytest.approx(plain / 2.0)
    assert e.d2(np.array([[3.0]]), np.array([[0.1 + variance]]))[0] == pytest.approx(plain / 2.0)


def test_phi_d() -> None:
    assert phi_d(0.0) == 1.0
    assert phi_d(7.81) == pytest.approx(0.287, abs=5e-4)
    assert phi_d(6.25 * math.log(2.0)) == pytest.approx(0.5)


def test_vantage_contributions() -> None:
    assert vantage_contributions({"blk": 3.0, "mm": -2.0, "sock": 4.0}) == {
        "blk": 0.36,
        "mm": 0.0,
        "sock": 0.64,
    }
    assert vantage_contributions({"blk": -1.0}) == {"blk": 0.0}


def empirical(x: np.ndarray) -> tuple[Ellipsoid, Tail]:
    tau = max(autocorrelation_time(x[:, k]) for k in range(3))
    effective = len(x) / tau

    def score(train: np.ndarray, test: np.ndarray) -> np.ndarray:
        return Ellipsoid.fit(AXES, x[train], NO_NOISE, effective=effective).d2(x[test])

    scores = blocked_scores(len(x), block_length(tau, len(x)), score)
    return Ellipsoid.fit(AXES, x, NO_NOISE, effective=effective), Tail.fit(scores, 0.5)


def test_cutoffs_agree_with_p_values_in_every_mode() -> None:
    e, tail = empirical(np.random.default_rng(4).standard_normal((300, 3)))
    for mode in ("empirical", "finite-sample", "chi2"):
        cuts = d2_cutoffs(mode, 3, e.ticks, tail)
        assert list(cuts) == sorted(cuts)
        for level, cut in zip(LEVELS, cuts, strict=True):
            assert d2_log_survival(mode, cut, 3, e.ticks, tail) == pytest.approx(math.log1p(-level), rel=1e-6)
    assert [round(cut, 2) for cut in d2_cutoffs("chi2", 3, e.ticks, tail)] == [7.81, 11.34, 16.27]
    with pytest.raises(ValueError, match="unknown cut-off mode"):
        d2_cutoffs("magic", 3, e.ticks, tail)


def test_false_alarms_on_iid_gaussian_ticks() -> None:
    """One new tick after each of 3,000 independent windows, so that trials are independent.

    finite-sample (n = 60) must lie inside the 99.9 % binomial interval of .05 and .01; so must chi2 once the
    covariance is nearly known (n = 3,000, 1,000 windows); chi2 at n = 60 must fire too often.
    """
    rng = np.random.default_rng(21)
    tail = Tail.fit(np.arange(20.0), 1.0)

    def fired(mode: str, n: int, windows: int) -> list[int]:
        cuts = d2_cutoffs(mode, 3, n, tail)
        x = rng.standard_normal((windows, n + 1, 3)) @ MIX
        d2 = np.array([Ellipsoid.fit(AXES, w[:-1], NO_NOISE).d2(w[-1:])[0] for w in x])
        return [int((d2 >= cut).sum()) for cut in cuts[:2]]

    for mode, n, windows in (("finite-sample", 60, 3000), ("chi2", 3000, 1000)):
        for hits, level in zip(fired(mode, n, windows), LEVELS, strict=False):
            low, high = stats.binom.interval(0.999, windows, 1.0 - level)
            assert low <= hits <= high, (mode, level, hits)
    assert fired("chi2", 60, 3000)[1] > stats.binom.interval(0.999, 3000, 0.01)[1]


@pytest.mark.parametrize(("ticks", "floor"), [(1000, 1.0), (300, 0.7)])
def test_false_alarms_of_the_empirical_mode_on_dependent_ticks(ticks: int, floor: float) -> None:
    """AR(1), rho = .55, 30 windows each followed by 1,000 ticks; whole runs are the bootstrap's blocks.

    The 99 % interval of the rate must reach from at most the promise down to at least ``floor`` of it: at 1,000 ticks
    it holds the promise itself; at 300 the mode errs towards fewer alarms, by less than 30 %.
    """
    rng = np.random.default_rng(31)
    rates = []
    for _ in range(30):
        e = rng.standard_normal((ticks + 1100, 3)) * math.sqrt(1 - 0.55**2)
        x = lfilter([1.0], [1.0, -0.55], e, axis=0)[100:] @ MIX
        around, tail = empirical(x[:ticks])
        cuts = d2_cutoffs("empirical", 3, ticks, tail)
        rates.append([(around.d2(x[ticks:]) >= cut).mean() for cut in cuts[:2]])
    runs = np.array(rates)
    drawn = runs[rng.integers(0, 30, (2000, 30))].mean(axis=1)
    for k, level in enumerate(LEVELS[:2]):
        low, high = np.quantile(drawn[:, k], (0.005, 0.995))
        assert low <= 1.0 - level, (level, low, high)
        assert high >= floor * (1.0 - level), (level, low, high)


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="not positive definite"):
        Ellipsoid(("c1", "c2"), (0.0, 0.0), ((1.0, 2.0), (2.0, 1.0)), (True, True), (0.0, 0.0), 60)
    with pytest.raises(ValueError, match="have sizes"):
        Ellipsoid(("c1", "c2"), (0.0,), ((1.0, 0.0), (0.0, 1.0)), (True, True), (0.0, 0.0), 60)
    with pytest.raises(ValueError, match="needs more than 3 ticks"):
        Ellipsoid.fit(AXES, np.zeros((3, 3)), NO_NOISE)
