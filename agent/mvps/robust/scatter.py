# SPDX-License-Identifier: Apache-2.0
"""Phi_D^byz: the phase distance with a minimum-covariance-determinant (MCD) scatter of the calibration ticks.

    D^2_mcd = (x - T)^T S^-1 (x - T),   Phi_D^byz = exp(-D^2_mcd / 6.25)          (001 sec. 13.1)

S is the covariance of the h of n ticks whose determinant is least (Rousseeuw 1984), made consistent for Gaussian ticks
and reweighted (Croux & Haesbroeck 1999). Two searches propose a subset and the lesser determinant wins: scikit-learn's
MinCovDet, which is the better one on clean ticks, and our deterministic starts (mvps.coherence.mcd), because its random
ones miss an outlying 40 % of the ticks almost always. Breakdown is floor((n - p + 1) / 2) / n of the *ticks*:
contaminated calibration ticks, never a vantage that lies in all of them.

In small windows S is still too small on average and the chi-square limits fire too often. The law of D^2 of a new tick
depends on n and p only (affine equivariance), so it is simulated once per (n, p) and described by two numbers:
D^2 / p ~ s F(p, nu), fitted by mean and variance, after S was divided by its mean |S|^(1/p) (Pison et al. 2002). Right
for independent Gaussian ticks; real ones are calibrated empirically on their scores (mvps.coherence.tail).

Fitting takes some 40 ms, 0.6 s beyond 500 ticks, and a law some seconds: off the tick path.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.stats import f as f_distribution
from sklearn.covariance import MinCovDet

from mvps.coherence.axes import BoolArray
from mvps.coherence.mcd import fast_mcd, squared_distances
from mvps.coherence.observation import FloatArray
from mvps.coherence.special import chi2_cdf, chi2_ppf

REPLICATES = 120
_NEW_TICKS = 400  # per replicate
_LEAST_TICKS_PER_AXIS = 5
_REWEIGHT = 0.975


class NullLaw(NamedTuple):
    """D^2 of a new BAU tick: D^2 / axes ~ scale * F(axes, dof). consistency: mean |S|^(1/p) of the raw estimate."""

    axes: int
    scale: float
    dof: float
    consistency: float

    def limit(self, level: float) -> float:
        """D^2 that a new BAU tick exceeds with probability 1 - level."""
        return float(self.axes * self.scale * f_distribution.isf(1.0 - level, self.axes, self.dof))

    def log_survival(self, d2: float) -> float:
        """log P(D^2 of a BAU tick > d2)."""
        return float(f_distribution.logsf(d2 / (self.axes * self.scale), self.axes, self.dof))


class RobustScatter(NamedTuple):
    """location (p,) and covariance (p, p) of the calibration ticks.

    method: "mcd"; "regularised mcd", where ticks are tied so that some h of them have no spread; "classical", which
    is not robust, where there are too few ticks. reason: "" or why it is not "mcd". ticks: those used; left_out: those
    with an absent axis. weight: (ticks,) which of those used counted.
    """

    location: FloatArray
    covariance: FloatArray
    method: str
    reason: str
    ticks: int
    left_out: int
    weight: BoolArray

    def d2(self, x: FloatArray) -> FloatArray:
        """D^2 of vectors x (n, p), shape (n,)."""
        return squared_distances(x, self.location, self.covariance)


def fit_scatter(x: FloatArray, floor: FloatArray, small_sample: bool = True) -> RobustScatter:
    """Robust location and scatter of BAU vectors x (n, p).

    floor: (p,) variances > 0 below which an axis does not vary, the counting noise; the variances are not less.
    small_sample: divide by the mean |S|^(1/p) of windows of this length; the first of a kind takes seconds.
    """
    known = np.isfinite(x).all(axis=1)
    left_out = int((~known).sum())
    x = x[known]
    n, p = x.shape
    if n < 2:
        raise ValueError(f"a scatter needs at least 2 complete ticks, got {n}")
    if not (np.isfinite(floor) & (floor > 0.0)).all():
        raise ValueError("the floor of every axis must be positive and finite")
    if n < _LEAST_TICKS_PER_AXIS * p:
        covariance = np.atleast_2d(np.cov(x, rowvar=False)) + np.diag(floor)
        reason = f"{n} ticks are too few for {p} axes, {_LEAST_TICKS_PER_AXIS * p} are needed"
        return RobustScatter(x.mean(axis=0), covariance, "classical", reason, n, left_out, np.ones(n, dtype=bool))
    # Coherence lives near 1 with deviations of 1e-3; the estimator is equivariant, its rank checks are not.
    middle = np.median(x, axis=0)
    spread = 1.4826 * np.median(np.abs(x - middle), axis=0)
    tied = spread * spread < floor
    found = None if tied.any() else _mcd((x - middle) / spread)
    if found is None:
        return _regularised(x, floor, tied, left_out)
    location, scatter, weight = found
    if small_sample:
        scatter = scatter / null_law(n, p).consistency
    covariance = scatter * np.outer(spread, spread)
    short = np.maximum(floor - covariance.diagonal(), 0.0)
    return RobustScatter(middle + spread * location, covariance + np.diag(short), "mcd", "", n, left_out, weight)


def _mcd(z: FloatArray) -> tuple[FloatArray, FloatArray, BoolArray] | None:
    """Reweighted MCD location, scatter and ticks that counted, of standardised ticks; None when it is singular."""
    n, p = z.shape
    subsets = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about ranks and determinants: judged by _spread
        with contextlib.suppress(ValueError):
            subsets.append(np.flatnonzero(MinCovDet(random_state=0).fit(z).raw_support_))
    size = len(subsets[0]) if subsets else (n + p + 1) // 2
    distances = fast_mcd(z, np.full(p, 1e-12), support=size / n).distances
    subsets.append(np.argpartition(distances, size - 1)[:size])
    best = min(subsets, key=lambda rows: float(np.linalg.slogdet(np.atleast_2d(np.cov(z[rows], rowvar=False)))[1]))
    raw = _consistent(z[best], size / n)
    if raw is None:
        return None
    weight = squared_distances(z, *raw) < chi2_ppf(_REWEIGHT, p)
    reweighted = _consistent(z[weight], _REWEIGHT)
    return None if reweighted is None else (*reweighted, weight)


def _consistent(z: FloatArray, share: float) -> tuple[FloatArray, FloatArray] | None:
    """Mean and covariance of the innermost ``share`` of Gaussian ticks, scaled to those of all; None if singular."""
    p = z.shape[1]
    scatter = np.atleast_2d(np.cov(z, rowvar=False, bias=True))
    values = np.linalg.eigvalsh(scatter)
    if values[0] <= 1e-10 * values[-1]:
        return None
    return z.mean(axis=0), scatter * share / chi2_cdf(chi2_ppf(share, p), p + 2)


def _regularised(x: FloatArray, floor: FloatArray, tied: BoolArray, left_out: int) -> RobustScatter:
    n = len(x)
    fit = fast_mcd(x, floor, support=0.51)
    cut = np.quantile(fit.distances, 0.975)
    what = f"axes {np.flatnonzero(tied).tolist()} are tied in half of the ticks" if tied.any() else "axes depend"
    return RobustScatter(
        fit.location,
        fit.covariance,
        "regularised mcd",
        f"{what}: the least determinant is 0, so the counting noise was added to each axis",
        n,
        left_out,
        fit.distances <= cut,
    )


@lru_cache(maxsize=64)
def null_law(ticks: int, axes: int, replicates: int = REPLICATES, seed: int = 0) -> NullLaw:
    """Law of D^2 of a new tick after :func:`fit_scatter` on ``ticks`` Gaussian ones of ``axes`` axes, by simulation."""
    if ticks < _LEAST_TICKS_PER_AXIS * axes:
        raise ValueError(f"a law needs {_LEAST_TICKS_PER_AXIS * axes} ticks for {axes} axes, got {ticks}")
    rng = np.random.default_rng((seed, ticks, axes))
    sizes: list[float] = []
    distances: list[FloatArray] = []
    while len(sizes) < replicates:
        found = _mcd(rng.standard_normal((ticks, axes)))
        if found is None:
            continue
        location, scatter, _ = found
        sizes.append(math.exp(float(np.linalg.slogdet(scatter)[1]) / axes))
        distances.append(squared_distances(rng.standard_normal((_NEW_TICKS, axes)), location, scatter))
    consistency = float(np.mean(sizes))
    ratio = np.concatenate(distances) * consistency / axes
    mean, spread = float(ratio.mean()), float(ratio.var()) / float(ratio.mean()) ** 2
    # Mean s nu / (nu - 2) and variance of s F(p, nu), solved for nu and s.
    excess = spread * axes - 2.0
    dof = min((2.0 * axes - 4.0 + 4.0 * spread * axes) / excess, 1e6) if excess > 0.0 else 1e6
    return NullLaw(axes, mean * (dof - 2.0) / dof, dof, consistency)


def hardin_rocke_law(ticks: int, axes: int) -> NullLaw:
    """Law of D^2 about the *raw*, consistent MCD scatter of ``ticks`` Gaussian ticks (Hardin & Rocke 2005, eq. 3.2).

    D^2 ~ p m / (m - p + 1) F(p, m - p + 1) for a tick that is outside the subset of h = (n + p + 1) // 2: the scatter
    is taken for a Wishart matrix of m degrees of freedom, from the asymptotic variance of its diagonal (Croux &
    Haesbroeck 1999) times the source's interpolation exp(.725 - .00663 p - .0780 ln n) between simulations. It is here
    to be compared with :func:`null_law`: our scatter is reweighted, which a raw one's law does not describe. ValueError
    where m leaves no degree of freedom.
    """
    n, p = ticks, axes
    if n <= 2 * p:
        raise ValueError(f"a law needs more than {2 * p} ticks for {p} axes, got {n}")
    kept = ((n + p + 1) // 2) / n
    q = chi2_ppf(kept, p)
    inner2, inner4 = chi2_cdf(q, p + 2), chi2_cdf(q, p + 4)
    factor = kept / inner2
    # The influence of a tick on a diagonal element, and its variance.
    b1 = factor * inner4 / kept
    b2 = 0.5 + factor / kept * (-inner4 / 2.0 - q / p * (kept - inner2) / 2.0)
    away = b1 - p * b2
    variance = kept * b1**2 * ((1.0 - kept) * (factor * q / p - 1.0) ** 2 - 1.0)
    variance += inner4 * factor**2 * (3.0 * away**2 + (p + 2) * b2 * (b1 + away))
    variance /= n * (b1 * away * kept * factor) ** 2
    m = 2.0 / (factor**2 * variance) * math.exp(0.725 - 0.00663 * p - 0.0780 * math.log(n))
    dof = m - p + 1.0
    if not dof > 0.0:
        raise ValueError(f"{n} ticks of {p} axes are worth {m:.1f} degrees of freedom, fewer than the axes")
    return NullLaw(p, m / dof, dof, 1.0)
