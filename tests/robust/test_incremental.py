# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import mahalanobis

from mvps.robust.incremental import fit_window


def by_scipy(x: np.ndarray, window: np.ndarray) -> float:
    return float(mahalanobis(x, window.mean(axis=0), np.linalg.inv(np.cov(window, rowvar=False))) ** 2)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.floats(-4.0, 4.0))
def test_sliding_equals_the_batch_form_to_nine_digits(seed: int, axes: int, magnitude: float):
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(axes, axes)) + 2.0 * np.eye(axes)
    x = 10.0**magnitude * (rng.normal(size=(200, axes)) @ mixing + 3.0)
    length = 60
    window = fit_window(x[:length])
    for t in range(length, 200):
        window = window.add(x[t]).remove(x[t - length])
    assert window.number == length
    probe = x.mean(axis=0) * 1.1
    assert window.d2(probe) == pytest.approx(by_scipy(probe, x[-length:]), rel=1e-9)
    assert window.mean == pytest.approx(x[-length:].mean(axis=0), rel=1e-9)


def test_growing_and_shrinking_come_back():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(30, 3))
    window = fit_window(x)
    again = window.add(np.array([9.0, 9.0, 9.0])).remove(np.array([9.0, 9.0, 9.0]))
    assert again.number == window.number
    assert again.inverse == pytest.approx(window.inverse, rel=1e-9)


def test_many_vantages_at_once():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(100, 40, 3))
    fresh, probe = rng.normal(size=(100, 3)), rng.normal(size=(100, 3))
    d2 = fit_window(x).add(fresh).remove(x[:, 0]).d2(probe)
    for v in (0, 57, 99):
        assert d2[v] == pytest.approx(by_scipy(probe[v], np.vstack((x[v, 1:], fresh[v]))), rel=1e-9)


def test_a_window_without_spread_is_refused():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(10, 3))
    x[:, 2] = 1.0
    with pytest.raises(ValueError, match="no spread"):
        fit_window(x)
    with pytest.raises(ValueError, match="needs more than 3"):
        fit_window(x[:3])
    x[:, 2] = 0.0
    x[4, 2] = 5.0  # all spread of the third axis is in one vector
    with pytest.raises(ValueError, match="singular"):
        fit_window(x).remove(x[4])
    with pytest.raises(ValueError, match="cannot lose one"):
        fit_window(rng.normal(size=(4, 3))).remove(np.zeros(3))
