# SPDX-License-Identifier: Apache-2.0
"""Minimum covariance determinant: location and scatter of the most concentrated part of the ticks.

C-steps from deterministic starts (Rousseeuw & Van Driessen 1999; deterministic starts after Hubert,
Rousseeuw & Verdonck 2012), so that there is no randomness to seed. Used for up to four axes to find
contaminated ticks; it trims *ticks* and is no defence against a vantage that always lies (001 sec. 13).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from mvps.coherence.observation import FloatArray
from mvps.coherence.special import chi2_cdf, chi2_ppf

SUPPORT = 0.75


class Scatter(NamedTuple):
    """location (p,), consistent covariance (p, p), squared distances (n,) of all ticks to it."""

    location: FloatArray
    covariance: FloatArray
    distances: FloatArray


def squared_distances(x: FloatArray, location: FloatArray, covariance: FloatArray) -> FloatArray:
    """(x - location)^T covariance^-1 (x - location) for every row of x (n, p)."""
    centred = np.linalg.solve(np.linalg.cholesky(covariance), (x - location).T)
    d2: FloatArray = (centred * centred).sum(axis=0)
    return d2


def fast_mcd(x: FloatArray, floor: FloatArray, support: float = SUPPORT) -> Scatter:
    """MCD of x (n, p), with the consistency factor for Gaussian ticks.

    floor: (p,), positive variances added to the diagonal of each scatter, so that axes with ties stay regular.
    support: share of ticks in the subset, (.5, 1].
    """
    n, p = x.shape
    if n <= 2 * p:
        raise ValueError(f"MCD of {p} axes needs more than {2 * p} ticks, got {n}")
    if not 0.5 < support <= 1.0:
        raise ValueError(f"the MCD support must lie in (.5, 1], not {support}")
    size = min(n, max(math.ceil(support * n), (n + p + 1) // 2))
    ridge = np.diag(floor)
    best: tuple[float, FloatArray, FloatArray] | None = None
    for distances in _starts(x, floor):
        for _ in range(50):
            subset = x[np.argpartition(distances, size - 1)[:size]]
            location = subset.mean(axis=0)
            scatter = np.atleast_2d(np.cov(subset, rowvar=False)) + ridge
            after = squared_distances(x, location, scatter)
            if np.allclose(after, distances, rtol=1e-10, atol=0.0):
                break
            distances = after
        logdet = float(np.linalg.slogdet(scatter)[1])
        if best is None or logdet < best[0]:
            best = logdet, location, scatter
    assert best is not None
    _, location, scatter = best
    alpha = size / n
    factor = 1.0 if size == n else alpha / chi2_cdf(chi2_ppf(alpha, p), p + 2)
    covariance = factor * scatter
    return Scatter(location, covariance, squared_distances(x, location, covariance))


def _starts(x: FloatArray, floor: FloatArray) -> list[FloatArray]:
    """Squared distances of all ticks under three robust first guesses."""
    median = np.median(x, axis=0)
    mad = 1.4826 * np.median(np.abs(x - median), axis=0)
    z = (x - median) / np.sqrt(mad * mad + floor)
    by_axis = (z * z).sum(axis=1)
    sphere = z / np.maximum(np.sqrt(by_axis), 1e-12)[:, None]
    ridge = 1e-9 * np.eye(x.shape[1])
    sign = np.atleast_2d(np.cov(sphere, rowvar=False)) + ridge
    squashed = np.atleast_2d(np.cov(np.tanh(z), rowvar=False)) + ridge
    origin = np.zeros(x.shape[1])
    return [by_axis, squared_distances(z, origin, sign), squared_distances(z, origin, squashed)]
