# SPDX-License-Identifier: Apache-2.0
"""SSE, the semantic spread entropy: how evenly activity covers its topics (002 sec. 2.4 c, 10.1 C, app. B.6.5).

    SSE = H(p) / log N,    p the shares of N clusters

N is the number of clusters that there are, not of those that were seen: with the latter (the text's SQL) everything in
one cluster is NULL, and from there "healthy". The plug-in entropy of n windows is too small by about (seen - 1) / 2n;
that is added (Miller and Madow). Without a single window the spread is NaN, not known.

Clusters come from k-means, which depends on its start: the spread is the mean over several k and starts. Where these
disagree, ``knn_spread`` measures without clusters. When centroids drift, the clusters are made anew.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mvps.coherence.observation import FloatArray

K_CHOICES = (16, 24, 32)
ENSEMBLE = 3
RESEED_DRIFT = 0.12
KNN = 25
_ROUNDS = 100


def spread_entropy(counts: FloatArray) -> float:
    """SSE in [0, 1] of counts per cluster, empty clusters included; NaN without any."""
    clusters, total = len(counts), float(np.sum(counts))
    if clusters < 2:
        raise ValueError(f"spread over {clusters} clusters says nothing: it takes at least 2")
    if total <= 0.0:
        return math.nan
    p = counts[counts > 0] / total
    entropy = float(-(p * np.log(p)).sum()) + (len(p) - 1) / (2.0 * total)
    return min(entropy / math.log(clusters), 1.0)


class Clustering(NamedTuple):
    """centroids: (k, d). labels: (n,) cluster of each window. inertia: sum of squared distances to them."""

    centroids: FloatArray
    labels: npt.NDArray[np.int64]
    inertia: float


def kmeans(x: FloatArray, k: int, seed: int) -> Clustering:
    """Lloyd's k-means of windows (n, d), started by k-means++; the same seed gives the same clusters."""
    if not 1 <= k <= len(x):
        raise ValueError(f"{k} clusters of {len(x)} windows: choose 1 to {len(x)}")
    chance = np.random.default_rng(seed)
    centroids = np.empty((k, x.shape[1]))
    centroids[0] = x[chance.integers(len(x))]
    nearest = np.full(len(x), np.inf)
    for i in range(1, k):
        nearest = np.minimum(nearest, np.square(x - centroids[i - 1]).sum(axis=1))
        total = nearest.sum()
        centroids[i] = x[chance.choice(len(x), p=nearest / total) if total > 0.0 else chance.integers(len(x))]
    labels = np.full(len(x), -1)
    for _ in range(_ROUNDS):
        again = assign(x, centroids)
        if np.array_equal(again, labels):
            break
        labels = again
        sizes = np.bincount(labels, minlength=k)
        sums = np.zeros_like(centroids)
        np.add.at(sums, labels, x)
        # A cluster that lost all its windows stays where it was.
        centroids = np.where(sizes[:, None] > 0, sums / np.maximum(sizes, 1)[:, None], centroids)
    return Clustering(centroids, labels, float(np.square(x - centroids[labels]).sum()))


def assign(x: FloatArray, centroids: FloatArray) -> npt.NDArray[np.int64]:
    """Nearest centroid of each window."""
    distances = np.square(centroids).sum(axis=1) - 2.0 * (x @ centroids.T)
    nearest: npt.NDArray[np.int64] = distances.argmin(axis=1)
    return nearest


class Spread(NamedTuple):
    """sse: mean over the ensemble. disagreement: standard deviation over it."""

    sse: float
    disagreement: float


def ensemble(reference: FloatArray, choices: tuple[int, ...] = K_CHOICES, starts: int = ENSEMBLE) -> list[FloatArray]:
    """Centroids of a tenant's windows over its long horizon, for every k and start."""
    usable = [k for k in choices if k <= len(reference)]
    if not usable:
        raise ValueError(f"{len(reference)} windows are too few for {min(choices)} clusters")
    return [kmeans(reference, k, seed).centroids for k in usable for seed in range(starts)]


def consensus(x: FloatArray, centroids: list[FloatArray]) -> Spread:
    """Spread of present windows (n, d) over the clusters of an ensemble."""
    if not len(x):
        return Spread(math.nan, math.nan)
    values = [spread_entropy(np.bincount(assign(x, c), minlength=len(c)).astype(np.float64)) for c in centroids]
    return Spread(float(np.mean(values)), float(np.std(values)))


def knn_spread(x: FloatArray, k: int = KNN) -> float:
    """Mean log distance of windows (n, d) to their k-th neighbour: k-NN entropy per dimension, up to a constant.

    It grows with the spread and has no scale of its own: rank it against the tenant's own (``tail_score``). NaN for
    k windows or fewer, -inf where all coincide.
    """
    if len(x) <= k:
        return math.nan
    square = np.square(x).sum(axis=1)
    distances = np.maximum(square[:, None] + square - 2.0 * (x @ x.T), 0.0)
    np.fill_diagonal(distances, 0.0)
    kth = np.partition(distances, k, axis=1)[:, k]
    with np.errstate(divide="ignore"):
        return float(0.5 * np.log(kth).mean())


def drift(old: FloatArray, new: FloatArray) -> float:
    """How far centroids moved: the mean cosine distance of each old one to the nearest new one; in [0, 2].

    From ``RESEED_DRIFT`` on, clusters are made anew.
    """
    unit_old = old / np.linalg.norm(old, axis=1, keepdims=True)
    unit_new = new / np.linalg.norm(new, axis=1, keepdims=True)
    return float(np.mean(1.0 - (unit_old @ unit_new.T).max(axis=1)))
