# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from scipy.signal import lfilter

from mvps.coupling.calibration_window import needed_length, stability_curve


def draw(seed: int, n: int, phi: float, pair: np.ndarray | float = 0.0) -> np.ndarray:
    e = np.random.default_rng(seed).standard_normal((n, 6))
    e[:, 4] = pair * e[:, 2] + np.sqrt(1.0 - np.square(pair)) * e[:, 4]
    return 0.9 + 0.005 * lfilter([1.0], [1.0, -phi], e, axis=0)


@pytest.mark.parametrize("phi", [0.0, 0.6])
def test_r_cross_settles_as_effective_ticks_say(phi: float) -> None:
    curve = stability_curve(draw(0, 60_000, phi), 3, (120, 300, 1200))
    for point in curve:
        assert point.instability == pytest.approx(point.expected, rel=0.12)
    assert [point.windows for point in curve] == [500, 200, 50]
    assert curve[2].expected == pytest.approx(np.sqrt((1 + phi**2) / (1 - phi**2) / 1200), rel=0.05)


def test_a_coupling_that_changes_does_not_settle() -> None:
    pair = np.repeat([0.6, -0.6], 6000).tolist() * 2
    curve = stability_curve(draw(1, 24_000, 0.0, np.array(pair)), 3, (600, 3000))
    assert curve[1].instability > 3.0 * curve[1].expected
    assert curve[1].instability > 0.8 * curve[0].instability


def test_a_coupling_that_stays_settles_however_strong() -> None:
    for point in stability_curve(draw(4, 24_000, 0.0, 0.6), 3, (300, 1200)):
        assert 0.7 * point.expected < point.instability < 1.1 * point.expected


def test_needed_length() -> None:
    curve = stability_curve(draw(2, 60_000, 0.6), 3, (300, 1200))
    wanted = needed_length(curve, 0.05)
    assert wanted == pytest.approx(2.125 / 0.05**2, rel=0.3)
    assert needed_length(curve, 0.025) == pytest.approx(4 * wanted, abs=4)


def test_refusals() -> None:
    z = draw(3, 1000, 0.0)
    with pytest.raises(ValueError, match="3 fit into 1000 ticks"):
        stability_curve(z, 3, (300,))
    with pytest.raises(ValueError, match="more than 12 ticks"):
        stability_curve(z, 3, (12,))
    with pytest.raises(ValueError, match="positive"):
        needed_length(stability_curve(z, 3, (100,)), 0.0)


def test_an_axis_that_varies_rarely_is_no_obstacle() -> None:
    z = draw(5, 1000, 0.0)
    z[:, 0] = 1.0
    z[[500, 501], 0] = 0.9
    assert np.isfinite(stability_curve(z, 3, (100,))[0].instability)
