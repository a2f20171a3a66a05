# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from scipy.signal import lfilter

from mvps.coupling.excess import excess_of_3b


def draw(rng: np.random.Generator, n: int, r: float, phi: float = 0.4) -> np.ndarray:
    """(n, 6): the first axes of both surfaces correlate by r."""
    e = rng.standard_normal((n + 50, 6))
    e[:, 3] = r * e[:, 0] + np.sqrt(1.0 - r * r) * e[:, 3]
    return 0.9 + 0.005 * lfilter([1.0], [1.0, -phi], e, axis=0)[50:]


def test_surfaces_that_know_nothing_of_each_other_are_accused_as_rarely_as_promised() -> None:
    """60 runs at 1/20 (19 surrogates): 9 or more have a probability of .4 %."""
    rng = np.random.default_rng(0)
    found = [excess_of_3b(draw(rng, 120, 0.0), draw(rng, 300, 0.0), 3, 19, seed=seed) for seed in range(60)]
    assert sum(one.p_value <= 0.05 for one in found) < 9
    # Without coupling there are 3b ticks all the same, as the cross block is estimated.
    assert np.mean([one.share for one in found]) > 0.0005


def test_coupled_surfaces_that_part_are_seen() -> None:
    rng = np.random.default_rng(1)
    calibration, observed = draw(rng, 600, 0.8), draw(rng, 300, 0.8)
    at = rng.choice(300, 15, replace=False)
    observed[at, 0] = 0.9 + 0.007
    observed[at, 3] = 0.9 - 0.007
    found = excess_of_3b(calibration, observed, 3, 39)
    assert found.p_value == pytest.approx(1 / 40)
    assert found.share > 0.03 > found.surrogate


def test_refusals() -> None:
    z = draw(np.random.default_rng(2), 100, 0.0)
    with pytest.raises(ValueError, match="one surrogate"):
        excess_of_3b(z, z, 3, 0)
    with pytest.raises(ValueError, match="needs 60 complete ticks"):
        excess_of_3b(z[:50], z, 3, 1)
    gaps = z.copy()
    gaps[5, 0] = np.nan
    with pytest.raises(ValueError, match="gaps"):
        excess_of_3b(z, gaps, 3, 1)
