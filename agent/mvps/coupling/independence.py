# SPDX-License-Identifier: Apache-2.0
"""Test of H_0: R_cross = 0, for series that remember their past (000 sec. 2.4, 001 sec. 18.4, IC9.1).

The usual tests take ticks for independent. Two *independent* series with lag-1 autocorrelation .6 correlate by more
than such a test allows in a large share of windows. So here:

1. Each axis is replaced by its innovations (:mod:`~.autoregression`), and each surface whitened: u (n, p), v (n, q).
2. The statistic is T(s) = ||1/n sum_t u(t) v(t + s)^T||_F^2 at s = 0.
3. It is held against the same statistic after shifting v by every s = 0 .. n - 1 *in a circle*: p is the share of
   shifts at least as large, the unshifted one included. A shift leaves both surfaces as they are, whatever their
   marginals and memory, and breaks only what binds them. All shifts are a group, so that the level is exact for series
   that are stationary on the circle; the seam between end and start is what makes it approximate. One Fourier
   transform per axis gives all shifts. The least p is 1/n.

With ``lags`` L the statistic is the largest T(s) within |s| <= L. Only some n / (2 L + 1) shifts scan no lag twice, too
few surrogates for a small p. So v is shifted by a random s and its blocks of 2 L + 1 ticks are put in random order, 199
times; that keeps its memory but for the seams. The least p is 1/200.

**Bartlett's** likelihood-ratio test of R_cross = 0 is given beside it, but only where a portmanteau test does not
reject that both surfaces' innovations are white; otherwise it would be wrong, and is None.

Fewer than 60 effective ticks are refused: at 60 an entry of R_cross has a standard error of .13, and whatever was found
would be the luck of the window.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

from mvps.coherence.observation import FloatArray
from mvps.coupling.autoregression import effective_ticks, fit, innovations, whiteness
from mvps.coupling.cross import varying, whitened

LEAST_EFFECTIVE = 60.0
WHITENESS_LEVEL = 0.05
SURROGATES = 199


class CouplingTest(NamedTuple):
    """statistic: T, the sum of squared canonical correlations of the innovations. lag: where it was taken, in ticks;
    positive where the network is first. p_value: against shifts or blocks; least_p: the least that it could have been.
    effective: effective ticks of the least effective pair of axes. white: p-value that the innovations are white.
    bartlett: p-value of Bartlett's test at lag 0, None where they are not."""

    statistic: float
    lag: int
    p_value: float
    least_p: float
    effective: float
    white: float
    bartlett: float | None


def independence_test(z: FloatArray, split: int, lags: int = 0) -> CouplingTest:
    """Test that the first ``split`` axes of z (n, p) and the others are independent, at lags of up to ``lags`` ticks.

    z: BAU vectors, evenly spaced, without gaps. ValueError below 60 effective ticks.
    """
    z, split, _ = varying(z, split)
    n = len(z)
    if not 0 <= lags < n // 8:
        raise ValueError(f"lags up to {lags} need at least {8 * lags + 8} ticks, got {n}")
    if n < LEAST_EFFECTIVE:
        raise ValueError(f"the test needs {LEAST_EFFECTIVE:.0f} effective ticks, got {n} in all: calibrate longer")
    model = fit(z)
    effective = float(effective_ticks(model, split).min())
    if effective < LEAST_EFFECTIVE:
        raise ValueError(
            f"the test needs {LEAST_EFFECTIVE:.0f} effective ticks; {n} autocorrelated ones are worth {effective:.0f}: "
            f"calibrate for about {n * LEAST_EFFECTIVE / effective:.0f} ticks"
        )
    e = innovations(z, model)
    u, v = whitened(e[:, :split]), whitened(e[:, split:])
    if lags:
        near = lag_statistics(u, v, lags)
        statistic = float(near.max())
        p_value, least = scan_p_value(u, v, lags), 1.0 / (SURROGATES + 1.0)
    else:
        near = shift_statistics(u, v)
        statistic = float(near[0])
        # Rounding of the transform must not decide whether a shift equals the unshifted one.
        p_value, least = float((near >= statistic * (1.0 - 1e-9)).mean()), 1.0 / n
        near = near[:1]
    white = min(1.0, 2.0 * min(_white(e[:, :split], model.order[:split]), _white(e[:, split:], model.order[split:])))
    bartlett = bartlett_p(u.T @ v / n, n) if white >= WHITENESS_LEVEL else None
    return CouplingTest(statistic, int(np.argmax(near)) - lags, p_value, least, effective, white, bartlett)


def shift_statistics(u: FloatArray, v: FloatArray) -> FloatArray:
    """T(s) (n,) for every circular shift s: the squared Frobenius norm of 1/n sum_t u(t) v(t + s)^T."""
    n = len(u)
    fu, fv = np.fft.rfft(u, axis=0), np.fft.rfft(v, axis=0)
    c = np.fft.irfft(fu.conj()[:, :, None] * fv[:, None, :], n, axis=0) / n
    total: FloatArray = (c * c).sum(axis=(1, 2))
    return total


def lag_statistics(u: FloatArray, v: FloatArray, lags: int) -> FloatArray:
    """T(s) (2 lags + 1,) for the circular shifts s = -lags .. lags."""
    n = len(v)
    wrapped = np.concatenate((v[-lags:], v, v[:lags]))
    beside = np.lib.stride_tricks.sliding_window_view(wrapped, n, axis=0)  # (2 lags + 1, q, n)
    c = beside.reshape(-1, n) @ u / n
    total: FloatArray = (c * c).reshape(2 * lags + 1, -1).sum(axis=1)
    return total


def scan_p_value(u: FloatArray, v: FloatArray, lags: int, seed: int = 0) -> float:
    """p-value of the largest T(s), |s| <= lags, of whitened innovations u (n, p), v (n, q), by blocks of v."""
    rng = np.random.default_rng(seed)
    n = len(u)
    largest = float(lag_statistics(u, v, lags).max())
    as_large = 0
    for _ in range(SURROGATES):
        blocks = np.array_split(np.roll(np.arange(n), int(rng.integers(n))), max(n // (2 * lags + 1), 2))
        order = np.concatenate([blocks[k] for k in rng.permutation(len(blocks))])
        as_large += float(lag_statistics(u, v[order], lags).max()) >= largest * (1.0 - 1e-9)
    return (1.0 + as_large) / (1.0 + SURROGATES)


def bartlett_p(r: FloatArray, ticks: int) -> float:
    """p-value of Bartlett's test that all canonical correlations are 0, for *independent* Gaussian ticks.

    r: (p, q) whitened cross-correlations of ``ticks`` ticks.
    """
    p, q = r.shape
    squares = np.minimum(np.linalg.svd(r, compute_uv=False) ** 2, 1.0 - 1e-12)
    statistic = -(ticks - 1.0 - (p + q + 1.0) / 2.0) * float(np.log1p(-squares).sum())
    return float(chi2.sf(statistic, p * q))


def _white(e: FloatArray, order: NDArray[np.intp]) -> float:
    return whiteness(e, int(order.sum()))
