# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.signal import lfilter

from mvps.coupling.autoregression import Autoregression, effective_ticks, fit, innovations, whiteness


def ar(rng: np.random.Generator, n: int, coefficients: list[float], axes: int = 1) -> np.ndarray:
    """(n, axes) after a run-in of 500 ticks."""
    shocks = rng.standard_normal((n + 500, axes))
    return lfilter([1.0], [1.0, *(-a for a in coefficients)], shocks, axis=0)[500:]


def test_coefficients_of_a_known_series() -> None:
    model = fit(ar(np.random.default_rng(0), 50_000, [0.6, -0.3], 2))
    assert model.order.tolist() == [2, 2]
    coefficients, errors = model.predictors()
    assert coefficients[-1] == pytest.approx(np.array([[0.6, 0.6], [-0.3, -0.3]]), abs=0.02)
    assert errors[-1] == pytest.approx([1.0, 1.0], rel=0.03)


@given(st.floats(-0.95, 0.95), st.floats(-0.95, 0.95))
def test_autocorrelations_obey_yule_and_walker(k1: float, k2: float) -> None:
    model = Autoregression(np.zeros(1), np.ones(1), np.array([[k1], [k2]]), np.array([2]), 100)
    rho = model.autocorrelation(8)[:, 0]
    a1, a2 = model.predictors()[0][-1][:, 0]
    assert rho[1] == pytest.approx(k1)
    for lag in range(1, 9):
        assert rho[lag] == pytest.approx(a1 * rho[abs(lag - 1)] + a2 * rho[abs(lag - 2)], abs=1e-9)
    assert np.abs(rho).max() <= 1.0 + 1e-9


def test_the_law_of_the_first_order_in_closed_form() -> None:
    model = Autoregression(np.zeros(2), np.ones(2), np.array([[0.6, 0.5]]), np.array([1, 1]), 4000)
    assert model.autocorrelation(5)[:, 0] == pytest.approx(0.6 ** np.arange(6))
    # tau = (1 + ab) / (1 - ab)
    assert effective_ticks(model, 1)[0, 0] == pytest.approx(4000 * 0.7 / 1.3)


def test_the_variance_of_a_correlation_is_what_effective_ticks_say() -> None:
    """400 windows of 200 ticks; a variance of 400 values is known to 7 %."""
    rng = np.random.default_rng(1)
    found = [np.corrcoef(ar(rng, 200, [0.6], 2).T)[0, 1] for _ in range(400)]
    assert np.var(found) == pytest.approx((1.36 / 0.64) / 200, rel=0.2)


def test_innovations_are_white_standardised_and_as_many_as_ticks() -> None:
    x = 5.0 + 0.1 * ar(np.random.default_rng(2), 3000, [0.5, 0.2, -0.3], 3)
    model = fit(x)
    e = innovations(x, model)
    assert e.shape == x.shape
    assert e.std(axis=0) == pytest.approx(np.ones(3), abs=0.01)
    assert whiteness(e, int(model.order.sum())) > 0.01
    assert whiteness(x) < 1e-12


def test_first_innovations_are_those_of_the_shorter_predictors() -> None:
    """A window that begins anywhere has the same law: the variance of e_0, e_1, e_2 is 1 over many windows."""
    rng = np.random.default_rng(3)
    x = ar(rng, 12, [0.6, -0.5], 4000)
    model = Autoregression(
        np.zeros(4000), np.full(4000, x.var()), np.array([[0.4] * 4000, [-0.5] * 4000]), np.full(4000, 2), 12
    )
    assert innovations(x, model).var(axis=1) == pytest.approx(np.ones(12), abs=0.12)


def test_short_windows_do_not_lose_memory() -> None:
    """4000 windows of 60: the mean of a is known to .002; without the correction it would be .047 too low."""
    x = ar(np.random.default_rng(6), 60, [0.6], 4000)
    model = fit(x)
    first = model.reflection[0][model.order == 1]
    assert first.mean() == pytest.approx(0.6, abs=0.025)


def test_white_series_mostly_get_order_0() -> None:
    rng = np.random.default_rng(4)
    orders = fit(rng.standard_normal((300, 400))).order
    assert (orders == 0).mean() > 0.95


def test_whiteness_has_its_level() -> None:
    """400 windows of 120 white ticks at 5 %: standard error 1.1 %."""
    rng = np.random.default_rng(5)
    rejected = np.mean([whiteness(rng.standard_normal((120, 3))) < 0.05 for _ in range(400)])
    assert 0.02 < rejected < 0.09


def test_degenerate_series() -> None:
    with pytest.raises(ValueError, match="without gaps"):
        fit(np.full((50, 1), np.nan))
    with pytest.raises(ValueError, match="constant"):
        fit(np.full((50, 1), 0.97))
    with pytest.raises(ValueError, match="needs 14 ticks"):
        fit(np.arange(10.0)[:, None], 5)
    with pytest.raises(ValueError, match="too few"):
        whiteness(np.random.default_rng(0).standard_normal((50, 1)), 12, 10)
    alternating = np.tile([0.0, 1.0], 100)[:, None]
    assert np.isfinite(innovations(alternating, fit(alternating))).all()
    assert fit(np.random.default_rng(0).standard_normal((6, 1))).order.tolist() == [0]
