# SPDX-License-Identifier: Apache-2.0
"""What a series owes to its own past: autoregressions per axis, their innovations, and what n ticks are worth.

    x_t - mean = sum_{i <= k} a_i (x_{t-i} - mean) + e_t

Coefficients by Burg's method (always stationary, less biased than Yule-Walker in short windows), order per axis by BIC.
Where the order is 1, a gets back the (1 + 3 a) / n that it loses on average as the mean is estimated (Kendall 1954).
The first k innovations use the predictors of lower order, each divided by its own standard deviation, so that n ticks
have n innovations.

The correlation of two independent series x, y over n ticks has variance tau_xy / n with (Bartlett 1946)

    tau_xy = 1 + 2 sum_{l >= 1} rho_x(l) rho_y(l)

and n / tau_xy is their *effective sample size*.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter, lfiltic
from scipy.stats import chi2

from mvps.coherence.observation import FloatArray

MAX_ORDER = 10
_LARGEST_REFLECTION = 0.999  # an alternating or linear series is predictable to the last bit


class Autoregression(NamedTuple):
    """Autoregressions of p axes. mean, variance: (p,) of the series. reflection: (K, p), 0 beyond an axis' order.
    order: (p,). ticks: n."""

    mean: FloatArray
    variance: FloatArray
    reflection: FloatArray
    order: NDArray[np.intp]
    ticks: int

    def predictors(self) -> tuple[list[FloatArray], FloatArray]:
        """Coefficients (m, p) of the predictors of order m = 0 .. K, and their error variances (K + 1, p)."""
        coefficients = [np.zeros((0, len(self.mean)))]
        for k in self.reflection:
            last = coefficients[-1]
            coefficients.append(np.concatenate((last - k * last[::-1], k[None])))
        shares = np.cumprod(1.0 - self.reflection * self.reflection, axis=0)
        return coefficients, self.variance * np.concatenate((np.ones((1, len(self.mean))), shares))

    def autocorrelation(self, lags: int) -> FloatArray:
        """rho (lags + 1, p) that the models imply; rho(0) = 1."""
        coefficients, errors = self.predictors()
        rho = np.zeros((lags + 1, len(self.mean)))
        rho[0] = 1.0
        known = min(lags, len(self.reflection))
        for lag in range(1, known + 1):
            past = coefficients[lag - 1]
            rho[lag] = (past * rho[lag - 1 : 0 : -1]).sum(axis=0)
            rho[lag] += self.reflection[lag - 1] * errors[lag - 1] / self.variance
        # Beyond the order rho(l) = sum a_i rho(l - i): the model itself, run on without noise.
        if 0 < known < lags:
            for axis, a in enumerate(coefficients[-1].T):
                model = np.concatenate(([1.0], -a))
                state = lfiltic([1.0], model, rho[known:0:-1, axis])
                rho[known + 1 :, axis] = lfilter([1.0], model, np.zeros(lags - known), zi=state)[0]
        return rho


def fit(x: FloatArray, max_order: int | None = None) -> Autoregression:
    """Autoregressions of the columns of x (n, p), no NaN; order at most ``max_order`` (default n / 10, at most 10)."""
    n, p = x.shape
    if not np.isfinite(x).all():
        raise ValueError("an autoregression needs a series without gaps: pass the longest run of complete ticks")
    largest = min(MAX_ORDER, n // 10) if max_order is None else max_order
    if n < 2 * largest + 4:
        raise ValueError(f"an autoregression of order {largest} needs {2 * largest + 4} ticks, got {n}")
    mean = x.mean(axis=0)
    forward = backward = x - mean
    variance = (forward * forward).mean(axis=0)
    if (variance <= 1e-24 * np.maximum(1.0, mean * mean)).any():
        raise ValueError("an axis is constant: leave it out")
    reflection = np.zeros((largest, p))
    error = variance
    criterion = [n * np.log(error)]
    for m in range(largest):
        ahead, behind = forward[1:], backward[:-1]
        power = (ahead * ahead + behind * behind).sum(axis=0)
        k = 2.0 * (ahead * behind).sum(axis=0) / np.maximum(power, 1e-300)
        k = np.clip(k, -_LARGEST_REFLECTION, _LARGEST_REFLECTION)
        forward, backward = ahead - k * behind, behind - k * ahead
        reflection[m] = k
        error = error * (1.0 - k * k)
        criterion.append(n * np.log(error) + (m + 1) * math.log(n))
    order = np.argmin(np.array(criterion), axis=0)
    reflection[np.arange(largest)[:, None] >= order] = 0.0
    if largest:
        corrected = np.clip(reflection[0] + (1.0 + 3.0 * reflection[0]) / n, -_LARGEST_REFLECTION, _LARGEST_REFLECTION)
        reflection[0] = np.where(order == 1, corrected, reflection[0])
    return Autoregression(mean, variance, reflection[: int(order.max(initial=0))], order, n)


def innovations(x: FloatArray, model: Autoregression) -> FloatArray:
    """Standardised innovations (n, p) of x under a model fitted to it."""
    coefficients, errors = model.predictors()
    deviation = x - model.mean
    largest = len(model.reflection)
    e = deviation.copy()
    for i, a in enumerate(coefficients[-1], start=1):
        e[largest:] -= a * deviation[largest - i : len(x) - i]
    e[largest:] /= np.sqrt(errors[-1])
    for t in range(min(largest, len(x))):
        e[t] = (deviation[t] - (coefficients[t] * deviation[:t][::-1]).sum(axis=0)) / np.sqrt(errors[t])
    return e


def effective_ticks(model: Autoregression, split: int) -> FloatArray:
    """Effective sample size (split, p - split) of each pair of a network and an AI axis; never above n."""
    rho = model.autocorrelation(model.ticks // 2)[1:]
    tau = 1.0 + 2.0 * rho[:, :split].T @ rho[:, split:]
    effective: FloatArray = model.ticks / np.maximum(tau, 1.0)
    return effective


def whiteness(e: FloatArray, fitted: int = 0, lags: int | None = None) -> float:
    """p-value of the portmanteau test that the vectors e (n, p) do not depend on their past (Hosking 1980).

    fitted: parameters of the model whose residuals they are. lags: default a fifth of n, at most 10.
    """
    n, p = e.shape
    lags = min(10, n // 5) if lags is None else lags
    dof = p * p * lags - fitted
    if dof < 1:
        raise ValueError(f"{lags} lags of {p} axes are too few for a model of {fitted} parameters")
    centred = e - e.mean(axis=0)
    precision = np.linalg.inv(centred.T @ centred / n)
    total = 0.0
    for lag in range(1, lags + 1):
        c = centred[lag:].T @ centred[:-lag] / n
        total += float(np.trace(c.T @ precision @ c @ precision)) / (n - lag)
    return float(chi2.sf(n * n * total, dof))
