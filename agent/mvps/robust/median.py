# SPDX-License-Identifier: Apache-2.0
"""The geometric median of N distributions, and the coherence C_2 about it (001 sec. 11).

    gm = argmin_q sum_v |p_v - q|                                     Euclidean norm, q in the hull of the points
    C_2^gm = 1 - mean over the N - f smallest of JSD(p_v, gm)         (ours)
    C_2^gm(seed) = 1 - (1/N) sum_v KL(p_v || gm) / log2 min(N, A)     (001 sec. 11.2)

The seed's form is kept for comparison. Its divergence equals JSD({p_v}) + KL(mean || gm), so that it is never above the
plain C_2, and it is infinite when gm lacks a label that one vantage has: moving the centre alone makes nothing robust.
Leaving out the f worst does.

Weiszfeld's iteration, with the step of Vardi & Zhang (2000) where it meets a data point, and from where Newton's step
leads if that lies lower. It stops on a certificate: for the gradient g at q and the largest distance r, convexity gives
f(q) - min f <= |g| r. When fewer than half of the points are arbitrary and the others lie within r of any z, then
|gm - z| <= (1 - f/N) / sqrt(1 - 2f/N) * r (Minsker 2015).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from mvps.coherence.axes import TINY, entropy, jsd_bias
from mvps.coherence.observation import FloatArray

MAX_ITERATIONS = 1000
# Distances below this share of the largest one are rounding: the iterate stands on the data point.
_COINCIDES = 1e-14
_EQUALITY = 1e-12
# Steps from a cold start before Newton is asked. Weiszfeld alone takes 5 to 35 steps on distributions to a gap of 1e-9,
# and thousands on nearly collinear points.
_PATIENCE = 1
_NEWTON_DIMENSIONS = 64
_ALL_AT_ONCE = 1 << 16  # differences of all pairs of points held at once


class GeometricMedian(NamedTuple):
    """point (A,) = weights (N,) @ points, weights >= 0 that sum to 1.

    gap: bound on (objective - its minimum) / objective, 0 when the point is a data point that is optimal.
    iterations: steps taken. Where the minimum is not unique (an even number of points on a line) it is one of them.
    """

    point: FloatArray
    weights: FloatArray
    gap: float
    iterations: int


def geometric_median(
    points: FloatArray,
    start: FloatArray | None = None,
    tolerance: float = 1e-9,
    max_iterations: int = MAX_ITERATIONS,
) -> GeometricMedian:
    """Geometric median of points (N, A).

    start: (N,) weights to begin with, >= 0 with a positive sum: those of the last tick.
    tolerance: relative gap to stop at. A result that did not get there within ``max_iterations`` says so by its gap.
    ValueError for no points, or points that are not finite.
    """
    if points.ndim != 2 or not points.size:
        raise ValueError(f"a geometric median needs points as rows (N, A), got shape {points.shape}")
    if not np.isfinite(points).all():
        raise ValueError("a geometric median needs finite points")
    number, labels = points.shape
    # In few dimensions the same distances cost less: columns of R are isometric to the points.
    x: FloatArray = np.asarray(np.linalg.qr(points.T, mode="r")).T if number < labels else points
    weights = _checked(start, number)
    if number * x.size <= _ALL_AT_ONCE:
        tried = set(range(number))
        excess, sums = _excess_force(x)
        optimal = excess < -_EQUALITY
        if optimal.any():
            return GeometricMedian(points[optimal.argmax()].copy(), optimal / optimal.sum(), 0.0, 0)
        # The best data point stands among the honest, the mean perhaps far from everybody. Unless there are several
        # minima: from the mean, no order of the points decides which is found.
        if start is None and excess.min() > _EQUALITY:
            weights = (np.arange(number) == sums.argmin()).astype(np.float64)
    else:
        tried = set()
    patience = _PATIENCE if start is None else 0
    q = weights @ x
    gap, iteration = math.inf, 0
    for iteration in range(max_iterations + 1):
        step = x - q
        distance = np.sqrt(np.einsum("va,va->v", step, step))
        far = float(distance.max())
        nearest = int(distance.argmin())
        if far == 0.0:
            return GeometricMedian(points[nearest].copy(), weights, 0.0, iteration)
        # Weiszfeld nears an optimal data point ever more slowly, but whether a data point is optimal can be asked.
        if iteration & (iteration - 1) == 0 and nearest not in tried:
            tried.add(nearest)
            if _is_optimal(x, x[nearest]):
                same = (x == x[nearest]).all(axis=1)
                return GeometricMedian(points[nearest].copy(), same / same.sum(), 0.0, iteration)
        here = distance <= _COINCIDES * far
        pull = 1.0 / np.where(here, np.inf, distance)
        total = float(pull.sum())
        gradient = pull @ step
        force = math.sqrt(float(gradient @ gradient))
        stay = int(here.sum())
        gap = max(force - stay, 0.0) * far / float(distance.sum())
        if gap <= tolerance or iteration == max_iterations:
            break
        if iteration >= patience and not stay and x.shape[1] <= _NEWTON_DIMENSIONS:
            pull = _after_newton(x, q, step, pull, gradient, float(distance.sum()))
            total = float(pull.sum())
        target = pull / total
        share = min(stay / force, 1.0) if stay else 0.0
        weights = (1.0 - share) * target + share * weights
        q = weights @ x
    return GeometricMedian(weights @ points, weights, gap, iteration)


def _checked(start: FloatArray | None, number: int) -> FloatArray:
    if start is None:
        return np.full(number, 1.0 / number)
    total = float(start.sum())
    if start.shape != (number,) or not (start >= 0.0).all() or not 0.0 < total < math.inf:
        raise ValueError(f"start needs {number} weights, none negative and not all 0")
    return start / total


def _is_optimal(x: FloatArray, q: FloatArray) -> bool:
    """Whether the data point q is the one minimum of the sum of distances; see :func:`_excess_force`."""
    step = x - q
    distance = np.sqrt(np.einsum("va,va->v", step, step))
    here = distance <= _COINCIDES * distance.max()
    pull = (1.0 / np.where(here, np.inf, distance)) @ step
    return math.sqrt(float(pull @ pull)) - float(here.sum()) < -_EQUALITY


def _excess_force(x: FloatArray) -> tuple[FloatArray, FloatArray]:
    """|sum of unit vectors from it| less its multiplicity, and sum of distances, of every data point; both (N,).

    A data point is a minimum when its excess is <= 0, and the only one when it is < 0 (Vardi & Zhang 2000).
    """
    steps = x[None, :, :] - x[:, None, :]
    distances = np.sqrt(np.einsum("kva,kva->kv", steps, steps))
    here = distances <= _COINCIDES * distances.max(axis=1, keepdims=True)
    pull = np.einsum("kv,kva->ka", 1.0 / np.where(here, np.inf, distances), steps)
    return np.sqrt(np.einsum("ka,ka->k", pull, pull)) - here.sum(axis=1), distances.sum(axis=1)


def _after_newton(
    x: FloatArray, q: FloatArray, step: FloatArray, pull: FloatArray, gradient: FloatArray, objective: float
) -> FloatArray:
    """Weiszfeld's pulls 1 / |p_v - q'| at q' one Newton step from q; those at q if that is no better place."""
    hessian = pull.sum() * np.eye(x.shape[1]) - (pull**3 * step.T) @ step
    try:
        there = x - (q + np.linalg.solve(hessian, gradient))
    except np.linalg.LinAlgError:
        return pull
    distance = np.sqrt(np.einsum("va,va->v", there, there))
    better = float(distance.sum()) < objective and float(distance.min()) > _COINCIDES * float(distance.max())
    return 1.0 / distance if better else pull


def divergences(p: FloatArray, centre: FloatArray, events: FloatArray | None = None, pseudo: float = 1.0) -> FloatArray:
    """JSD(p_v, centre) in bits of every distribution p (N, A), shape (N,), in [0, 1].

    events: (N,) events behind each, with the pseudo-counts > 0 they were shrunk by, to take the count bias off.
    """
    mixture = 0.5 * (p + centre)
    found = np.maximum(entropy(mixture) - 0.5 * (entropy(p) + entropy(centre)), 0.0)
    if events is not None:
        pairs = np.stack((p, np.broadcast_to(centre, p.shape)), axis=-2)
        counts = np.stack((events, np.full_like(events, np.inf)), axis=-1)
        found = np.maximum(found - jsd_bias(pairs, counts, pseudo), 0.0)
    return found


def c2_gm(divergence: FloatArray, f: int) -> float:
    """C_2^gm (ours) from :func:`divergences` about the geometric median: 1 - mean of the N - f smallest.

    f: vantages that may lie, 0 <= f < N/2; ValueError otherwise.
    """
    number = len(divergence)
    if not 0 <= f < number / 2:
        raise ValueError(f"f must be below half of the {number} vantages, not {f}")
    kept = np.partition(divergence, number - f - 1)[: number - f]
    return 1.0 - float(kept.mean())


def c2_gm_seed(p: FloatArray, centre: FloatArray) -> float:
    """C_2^gm as 001 sec. 11.2 states it, unclipped: -inf when a vantage has a label that the centre lacks."""
    number, labels = p.shape
    lacking = (p > 0.0) & (centre <= 0.0)
    if lacking.any():
        return -math.inf
    # KL(p_v || gm) = -H(p_v) - p_v . log gm: the second logarithm is one of the centre alone.
    divergence = -float(entropy(p).mean()) - float(p.mean(axis=0) @ np.log2(np.maximum(centre, TINY)))
    return 1.0 - divergence / math.log2(max(min(number, labels), 2))
