# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from scipy.signal import lfilter

from mvps.coupling.cross import lagged, whitened
from mvps.coupling.independence import bartlett_p, independence_test, lag_statistics, shift_statistics


def draw(rng: np.random.Generator, n: int, phi: float, pair: float = 0.0) -> np.ndarray:
    """(n, 6) near 0.9; axis 2 and axis 4 correlate by ``pair``."""
    e = rng.standard_normal((n + 100, 6))
    e[:, 4] = pair * e[:, 2] + np.sqrt(1.0 - pair * pair) * e[:, 4]
    return 0.9 + 0.005 * lfilter([1.0], [1.0, -phi], e, axis=0)[100:]


def test_all_shifts_at_once_are_each_shift_by_itself() -> None:
    rng = np.random.default_rng(0)
    u, v = whitened(rng.standard_normal((61, 3))), whitened(rng.standard_normal((61, 2)))
    slow = [np.linalg.norm(u.T @ np.roll(v, -s, axis=0) / 61) ** 2 for s in range(61)]
    assert shift_statistics(u, v) == pytest.approx(slow)
    assert lag_statistics(u, v, 3) == pytest.approx(np.roll(slow, 3)[:7])


def test_the_group_of_shifts_makes_the_level_exact() -> None:
    """Shift v in a circle before testing: the p-values are 1/n, 2/n, .. n/n, each once. Nothing is left to chance."""
    rng = np.random.default_rng(1)
    u, v = whitened(rng.standard_normal((67, 3))), whitened(rng.standard_normal((67, 3)))
    p = []
    for s in range(67):
        of_shift = shift_statistics(u, np.roll(v, -s, axis=0))
        p.append((of_shift >= of_shift[0] * (1.0 - 1e-9)).mean())
    assert sorted(p) == pytest.approx([k / 67 for k in range(1, 68)])


@pytest.mark.parametrize(
    ("phi", "n", "lags"), [(0.0, 120, 0), (0.6, 300, 0), (0.0, 80, 5), (0.6, 300, 5), (0.9, 1500, 0)]
)
def test_size(phi: float, n: int, lags: int) -> None:
    """300 independent pairs at 5 %: standard error 1.3 %; the limits are missed once in 300 runs of other seeds."""
    rng = np.random.default_rng(2)
    rejected = np.mean([independence_test(draw(rng, n, phi), 3, lags).p_value <= 0.05 for _ in range(300)])
    assert 0.015 < rejected < 0.09


def test_tests_for_independent_ticks_break_where_ticks_remember() -> None:
    """The reason for all this: on independent AR(.6) pairs Bartlett's test on the ticks rejects half of the time."""
    rng = np.random.default_rng(3)
    rejected = np.mean([bartlett_p(lagged(draw(rng, 300, 0.6), 3, 0)[0], 300) <= 0.05 for _ in range(300)])
    assert rejected > 0.3


def test_bartlett_is_that_of_wilks_and_right_for_independent_ticks() -> None:
    rng = np.random.default_rng(4)
    p = []
    for _ in range(300):
        z = draw(rng, 100, 0.0)
        r = lagged(z, 3, 0)[0]
        p.append(bartlett_p(r, 100))
        c = np.corrcoef(z, rowvar=False)
        wilks = np.linalg.det(c) / (np.linalg.det(c[:3, :3]) * np.linalg.det(c[3:, 3:]))
        assert p[-1] == pytest.approx(stats.chi2.sf(-(99 - 3.5) * np.log(wilks), 9), rel=1e-6)
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_power_and_lag() -> None:
    rng = np.random.default_rng(5)
    found = [independence_test(draw(rng, 300, 0.6, 0.35), 3).p_value for _ in range(50)]
    assert np.mean(np.array(found) <= 0.05) > 0.9
    z = draw(rng, 600, 0.6)
    z[4:, 4] += 0.8 * (z[:-4, 2] - 0.9)
    at_0, scanned = independence_test(z, 3), independence_test(z, 3, 10)
    assert scanned.lag == 4
    assert scanned.p_value <= 0.01
    assert at_0.lag == 0
    assert at_0.statistic < scanned.statistic


def test_bartlett_is_given_only_where_innovations_are_white() -> None:
    rng = np.random.default_rng(6)
    white = independence_test(draw(rng, 400, 0.6), 3)
    assert white.bartlett is not None
    assert white.white >= 0.05
    # The axes of one surface pass a common movement on to each other: autoregressions per axis leave that behind.
    z = draw(rng, 400, 0.0)
    z[1:, 1] = 0.9 + 0.9 * (z[:-1, 0] - 0.9)
    z[2:, 2] = 0.9 + 0.9 * (z[1:-1, 1] - 0.9) + 0.3 * (z[2:, 2] - 0.9)
    left = independence_test(z, 3)
    assert left.white < 0.001
    assert left.bartlett is None
    assert 0.0 < left.p_value <= 1.0


def test_what_it_refuses() -> None:
    rng = np.random.default_rng(7)
    with pytest.raises(ValueError, match="got 59 in all"):
        independence_test(draw(rng, 59, 0.0), 3)
    with pytest.raises(ValueError, match=r"200 autocorrelated ones are worth \d+: calibrate for about \d+ ticks"):
        independence_test(draw(rng, 200, 0.9), 3)
    with pytest.raises(ValueError, match="lags up to"):
        independence_test(draw(rng, 100, 0.0), 3, 25)


def test_axes_that_do_not_vary_are_left_out() -> None:
    z = draw(np.random.default_rng(8), 200, 0.0)
    z[:, 0] = 1.0
    assert independence_test(z, 3).p_value == independence_test(z[:, 1:], 2).p_value


def test_two_equal_surfaces_are_seen_and_the_least_p_value_is_one_over_the_shifts() -> None:
    z = draw(np.random.default_rng(9), 100, 0.0)
    z[:, 3:] = z[:, :3]
    found = independence_test(z, 3)
    assert found.p_value == pytest.approx(1 / 100)
    assert found.least_p == pytest.approx(1 / 100)
    assert found.statistic == pytest.approx(3.0)
    assert found.bartlett is None or found.bartlett < 1e-12
