# SPDX-License-Identifier: Apache-2.0
"""scipy is the oracle for every special function, over wide ranges."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special as sp
from scipy import stats

from mvps.coherence import special

DOFS = (1, 2, 3, 4, 6, 25)
POINTS = (1e-6, 0.01, 0.5, 1.0, 3.0, 7.81, 16.27, 60.0, 700.0)


@pytest.mark.parametrize("dof", DOFS)
@pytest.mark.parametrize("x", POINTS)
def test_chi2(x: float, dof: int) -> None:
    assert special.chi2_logsf(x, dof) == pytest.approx(stats.chi2.logsf(x, dof), rel=1e-10, abs=1e-12)
    assert special.chi2_cdf(x, dof) == pytest.approx(stats.chi2.cdf(x, dof), rel=1e-10)
    assert special.chi2_pdf(x, dof) == pytest.approx(stats.chi2.pdf(x, dof), rel=1e-10)


@pytest.mark.parametrize("dof", DOFS)
@pytest.mark.parametrize("level", [1e-6, 0.1, 0.5, 0.95, 0.99, 0.999, 1 - 1e-9])
def test_chi2_quantile(level: float, dof: int) -> None:
    assert special.chi2_ppf(level, dof) == pytest.approx(stats.chi2.ppf(level, dof), rel=1e-7)


def test_seed_cutoffs() -> None:
    """7.81, 11.34 and 16.27 for three degrees of freedom (001 sec. 2.1)."""
    assert [round(special.chi2_ppf(level, 3), 2) for level in (0.95, 0.99, 0.999)] == [7.81, 11.34, 16.27]


def test_chi2_tail_beyond_underflow() -> None:
    """At D^2 = 5000 the p-value is no float any more; its logarithm is, and inverts."""
    log_p = special.chi2_logsf(5000.0, 3)
    # Q(3/2, x/2) = erfc(sqrt(x/2)) + sqrt(2 x / pi) exp(-x/2), in logs by its second, dominating term.
    dominant = 0.5 * np.log(2.0 * 5000.0 / np.pi) - 2500.0
    assert log_p == pytest.approx(dominant, abs=1e-3)
    assert special.chi2_log_isf(log_p, 3) == pytest.approx(5000.0, rel=1e-9)


@pytest.mark.parametrize("dof", DOFS)
@pytest.mark.parametrize("noncentrality", [0.5, 7.81, 16.27, 200.0])
@pytest.mark.parametrize("x", [0.01, 1.0, 10.0, 50.0, 300.0])
def test_noncentral_chi2(x: float, noncentrality: float, dof: int) -> None:
    log_pdf = special.ncx2_logpdf(x, dof, noncentrality)
    assert log_pdf == pytest.approx(stats.ncx2.logpdf(x, dof, noncentrality), rel=1e-8, abs=1e-8)
    assert special.ncx2_cdf(x, dof, noncentrality) == pytest.approx(
        stats.ncx2.cdf(x, dof, noncentrality), rel=1e-6, abs=1e-13
    )


@pytest.mark.parametrize("b", [0.5, 1.0, 1.5, 3.0])
@pytest.mark.parametrize("z", [0.0, 1e-3, 1.0, 100.0, 899.0, 905.0, 2e4])
def test_log_0f1(b: float, z: float) -> None:
    """Both sides of the switch to the asymptotic form at 2 sqrt(z) = 60."""
    assert special.log_0f1(b, z) == pytest.approx(np.log(sp.hyp0f1(b, z)), rel=1e-10, abs=1e-12)


@pytest.mark.parametrize(("dof1", "dof2"), [(1, 5), (2, 57), (3, 57), (3, 297), (4, 1796)])
@pytest.mark.parametrize("level", [0.01, 0.5, 0.95, 0.99, 0.999])
def test_f(level: float, dof1: int, dof2: int) -> None:
    x = stats.f.ppf(level, dof1, dof2)
    assert special.f_ppf(level, dof1, dof2) == pytest.approx(x, rel=1e-7)
    assert special.f_cdf(x, dof1, dof2) == pytest.approx(level, rel=1e-9)
    assert special.f_logsf(x, dof1, dof2) == pytest.approx(np.log1p(-level), rel=1e-8)


def test_hotelling_limit_is_above_chi2_and_converges_to_it() -> None:
    limits = [special.hotelling_limit(0.99, 3, n) for n in (30, 300, 30_000)]
    assert limits == sorted(limits, reverse=True)
    assert limits[-1] == pytest.approx(special.chi2_ppf(0.99, 3), rel=1e-3)
    assert special.hotelling_logsf(limits[0], 3, 30) == pytest.approx(np.log(0.01), rel=1e-8)


@pytest.mark.parametrize("level", [0.0, 1.0, -1.0, 2.0])
def test_levels_outside_the_unit_interval_are_refused(level: float) -> None:
    with pytest.raises(ValueError, match="0 < level < 1"):
        special.chi2_ppf(level, 3)
    with pytest.raises(ValueError, match="0 < level < 1"):
        special.f_ppf(level, 3, 10)


def test_hotelling_needs_more_ticks_than_axes() -> None:
    with pytest.raises(ValueError, match="more ticks than axes"):
        special.hotelling_limit(0.99, 3, 3)
