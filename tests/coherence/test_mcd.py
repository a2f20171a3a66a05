# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest

from mvps.coherence.mcd import fast_mcd

SIGMA = np.array([[1.0, 0.6, 0.0], [0.6, 2.0, 0.3], [0.0, 0.3, 0.5]])


def test_clean_gaussian_is_estimated_consistently() -> None:
    """20,000 ticks: every entry of the covariance within .1 of the truth, the centre within .05."""
    x = np.random.default_rng(0).multivariate_normal([1.0, 2.0, 3.0], SIGMA, 20_000)
    fit = fast_mcd(x, np.full(3, 1e-12))
    assert fit.location == pytest.approx(np.array([1.0, 2.0, 3.0]), abs=0.05)
    assert fit.covariance == pytest.approx(SIGMA, abs=0.1)


@pytest.mark.parametrize("share", [0.1, 0.2])
def test_contamination_moves_the_mean_but_not_the_mcd(share: float) -> None:
    rng = np.random.default_rng(1)
    x = rng.multivariate_normal(np.zeros(3), SIGMA, 300)
    ill = int(share * 300)
    x[:ill] += 8.0
    fit = fast_mcd(x, np.full(3, 1e-12))
    assert np.abs(x.mean(axis=0)).max() > 0.7
    assert np.abs(fit.location).max() < 0.35
    assert fit.distances[:ill].min() > fit.distances[ill:].max()


def test_ties_stay_regular() -> None:
    x = np.zeros((100, 2))
    x[:30, 0] = np.linspace(0.0, 1.0, 30)
    assert np.all(np.isfinite(fast_mcd(x, np.full(2, 1e-6)).distances))


def test_too_few_ticks_are_refused() -> None:
    with pytest.raises(ValueError, match="more than 6 ticks"):
        fast_mcd(np.zeros((6, 3)), np.full(3, 1e-6))
