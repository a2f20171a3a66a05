# SPDX-License-Identifier: Apache-2.0
"""R_cross: how the axes of the network and of the AI surface move together in BAU (000 sec. 2.3, 001 sec. 18.3).

    Sigma_joint = [ Sigma_net, Sigma_cross; Sigma_cross^T, Sigma_AI ]
    R_cross = Sigma_net^-1/2 Sigma_cross Sigma_AI^-1/2

with symmetric square roots. Its entries are correlations of *whitened* axes: each axis of one surface after what the
other axes of its own surface say has been taken evenly out of it. They are no partial correlations, as the sources have
it. Its singular values are the canonical correlations, and its squared Frobenius norm is their sum of squares.

The roots are taken of the correlation matrices (ours; ``of_covariance`` gives the sources' form): the singular values
are the same, and an entry then keeps its meaning when an axis is measured in another unit or varies more than others.

Shrinkage (ours, as in coherence.distance): correlations times 1 - p / (n_eff + p), n_eff that of the least effective
pair. Intervals per entry: Fisher's z with the pair's effective sample size, 95 %. Without coupling ||R_cross||_F is not
0 but about ``frobenius_null`` = sqrt(sum 1 / n_eff): compare it with that, or test it (:mod:`~.independence`).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from mvps.coherence.observation import FloatArray
from mvps.coherence.tail import autocorrelation_time, block_length
from mvps.coupling.autoregression import effective_ticks, fit
from mvps.coupling.joint import BoolArray

_Z95 = 1.959963984540054
LEAST_VARIANCE = 1e-12  # as in coherence.distance: below it an axis does not vary
_LEAST_RATIO = 1e-8  # of eigenvalues: below it axes are the same up to rounding
_LEAST_SHARE = 0.01
_RIDGE = 1e-6


class Cross(NamedTuple):
    """R_cross of a calibration window.

    r, low, high, effective: (p, q), live axes only. live: (p + q,) which axes vary; the others are left out.
    frobenius: ||R_cross||_F; frobenius_null: its root mean square without coupling. condition: of the shrunk joint
    correlation matrix; condition_raw: before shrinkage. ticks: rows used.
    """

    r: FloatArray
    low: FloatArray
    high: FloatArray
    effective: FloatArray
    live: BoolArray
    frobenius: float
    frobenius_null: float
    shrinkage: float
    condition: float
    condition_raw: float
    ticks: int


def varying(z: FloatArray, split: int) -> tuple[FloatArray, int, BoolArray]:
    """The axes of z (n, p) that vary, how many of them are the network's, and which they are (p,).

    ValueError if z has gaps or a surface does not vary at all.
    """
    if z.ndim != 2 or not 0 < split < z.shape[1]:
        raise ValueError(f"joint vectors of shape {z.shape} cannot be split after {split} axes")
    if len(z) < 2 or not np.isfinite(z).all():
        raise ValueError("joint vectors must be complete: pass Series.longest_run() or the usable rows")
    live: BoolArray = z.var(axis=0) > LEAST_VARIANCE
    if not (live[:split].any() and live[split:].any()):
        raise ValueError("a surface without any axis that varies has no correlation with another: calibrate longer")
    return z[:, live], int(live[:split].sum()), live


def inverse_root(matrix: FloatArray) -> FloatArray:
    """Symmetric matrix^-1/2. ValueError where axes depend on each other."""
    values, vectors = np.linalg.eigh(matrix)
    if values[0] <= _LEAST_RATIO * values[-1]:
        raise ValueError("axes depend on each other linearly: leave one out")
    root: FloatArray = (vectors / np.sqrt(values)) @ vectors.T
    return root


def r_cross(covariance: FloatArray, split: int, of_covariance: bool = False) -> FloatArray:
    """R_cross (split, p - split) of a joint covariance (p, p); of_covariance: the sources' form."""
    scaled = covariance if of_covariance else correlation(covariance)
    net, ai = inverse_root(scaled[:split, :split]), inverse_root(scaled[split:, split:])
    r: FloatArray = net @ scaled[:split, split:] @ ai
    return r


def fit_cross(z: FloatArray, split: int) -> Cross:
    """R_cross of BAU vectors z (n, p), evenly spaced and without gaps; the first ``split`` axes are the network's."""
    z, split, live = varying(z, split)
    n, p = z.shape
    effective = effective_ticks(fit(z), split)
    raw = correlation(np.cov(z, rowvar=False))
    shrinkage = p / (float(effective.min()) + p)
    shrunk = (1.0 - shrinkage) * raw + shrinkage * np.eye(p)
    r = r_cross(shrunk, split)
    width = _Z95 / np.sqrt(np.maximum(effective - 3.0, 1.0))
    middle = np.arctanh(np.clip(r, -1.0 + 1e-12, 1.0 - 1e-12))
    return Cross(
        r,
        np.tanh(middle - width),
        np.tanh(middle + width),
        effective,
        live,
        float(np.linalg.norm(r)),
        math.sqrt(float((1.0 / effective).sum())),
        shrinkage,
        float(np.linalg.cond(shrunk)),
        float(np.linalg.cond(raw)),
        n,
    )


class Dominant(NamedTuple):
    """The entry of R_cross of largest absolute value. net, ai: its axes, among those that vary. r: the entry.
    share: of the redrawn windows in which it is the largest, too: below .95 no entry dominates."""

    net: int
    ai: int
    r: float
    share: float


def dominant(z: FloatArray, split: int, draws: int = 400, seed: int = 0) -> Dominant:
    """Which pair of axes couples most, and how sure that is (P_IC4, 000 sec. 7.4); z as in :func:`fit_cross`.

    Windows are redrawn in circular blocks of twice the longest memory of an axis, at most a fifth of the window.
    """
    z, split, _ = varying(z, split)
    n = len(z)
    block = max(block_length(autocorrelation_time(axis), n) for axis in z.T)
    rng = np.random.default_rng(seed)
    variance = z.var(axis=0)
    r = r_cross(part_covariance(z, variance), split)
    largest = int(np.argmax(np.abs(r)))
    again = 0
    for starts in rng.integers(0, n, (draws, math.ceil(n / block))):
        rows = ((starts[:, None] + np.arange(block)) % n).ravel()[:n]
        again += int(np.argmax(np.abs(r_cross(part_covariance(z[rows], variance), split)))) == largest
    net, ai = divmod(largest, r.shape[1])
    return Dominant(net, ai, float(r[net, ai]), again / draws)


def lagged(z: FloatArray, split: int, lags: int) -> FloatArray:
    """R_cross at lags -lags .. lags, (2 lags + 1, p, q), without shrinkage: [l + lags] holds x_net(t) with x_AI(t + l).

    At positive lags the network is first. z as in :func:`fit_cross`. Whitened by each surface's own correlation.
    """
    z, split, _ = varying(z, split)
    n = len(z)
    if not 0 <= lags < n // 2:
        raise ValueError(f"lags up to {lags} need more than {2 * lags} ticks, got {n}")
    u, v = whitened(z[:, :split]), whitened(z[:, split:])
    found = np.empty((2 * lags + 1, split, z.shape[1] - split))
    for lag in range(-lags, lags + 1):
        first, second = (u[: n - lag], v[lag:]) if lag >= 0 else (u[-lag:], v[: n + lag])
        found[lag + lags] = first.T @ second / n
    return found


def whitened(x: FloatArray) -> FloatArray:
    """x (n, p) less its mean and times the symmetric root that makes x^T x / n the identity."""
    deviation = x - x.mean(axis=0)
    deviation /= np.sqrt((deviation * deviation).mean(axis=0))
    white: FloatArray = deviation @ inverse_root(deviation.T @ deviation / len(x))
    return white


def part_covariance(part: FloatArray, variance: FloatArray) -> FloatArray:
    """Covariance (p, p) of a part (n, p) of a window whose axes have the variances (p,).

    An axis that varies rarely may not vary at all in a part, or only together with another. Variances are therefore not
    below a hundredth of the window's, and a millionth of it is added (ours).
    """
    covariance: FloatArray = np.cov(part, rowvar=False)
    np.fill_diagonal(covariance, np.maximum(covariance.diagonal(), _LEAST_SHARE * variance) + _RIDGE * variance)
    return covariance


def correlation(covariance: FloatArray) -> FloatArray:
    """Correlation matrix of a covariance with positive variances."""
    sd = np.sqrt(covariance.diagonal())
    scaled: FloatArray = covariance / np.outer(sd, sd)
    return scaled
