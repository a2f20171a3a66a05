# SPDX-License-Identifier: Apache-2.0
"""What up to f liars among N vantages can have done to a coherence value: bounds over all removals (001 sec. 12).

    C_lo(f) = min, C_hi(f) = max over S, |S| <= f, of C({p_v : v not in S})
    D_minimax(f) = min, D_max(f) = max over the same S of D^2(x without S)

The source's C^mm(f) is C_lo over |S| = f. It keeps a liar, because throwing honest vantages out lowers C, whereas its
"approximation" throws the liar out: two different things, and so both ends are given. The smallest distance that some
removal reaches drives the phase and the attribution (while it is high, no f vantages can be blamed); the largest is the
worst case. Every subset has a baseline of its own: fewer vantages have another mean and another spread.

Whole cells may be removed instead of vantages: k cells tolerate (k - 1) // 2.

Notation: K removals, masks (K, N) with True for the vantages that stay. Row 0 removes nobody. Values of removals have
the removal as their last axis, so that all functions serve one tick (K,) and a window (T, K).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from mvps.coherence.axes import BoolArray, entropy
from mvps.coherence.distance import phi_d
from mvps.coherence.observation import FloatArray

MAX_REMOVALS = 5000


class TooManyRemovals(ValueError):  # noqa: N818 - it says what is wrong
    """The exact form would look at more removals than allowed; the message says what to do instead."""


def tolerated_cells(cells: int) -> int:
    """Whole cells of k that may lie: (k - 1) // 2."""
    return (cells - 1) // 2


def removals(number: int, f: int, cells: Sequence[str] | None = None, limit: int = MAX_REMOVALS) -> BoolArray:
    """Masks (K, N) of all removals of up to f of N vantages, nobody first.

    cells: name of each vantage's cell; then f counts whole cells. ValueError unless 0 <= f < half of what may be
    removed; TooManyRemovals beyond ``limit``, before anything is allocated.
    """
    if cells is not None and len(cells) != number:
        raise ValueError(f"{number} vantages have {len(cells)} cells")
    names = sorted(set(cells)) if cells is not None else []
    units = len(names) if cells is not None else number
    what = "cells" if cells is not None else "vantages"
    if not 0 <= f < units / 2:
        raise ValueError(f"f must be below half of the {units} {what}, not {f}")
    count = sum(math.comb(units, size) for size in range(f + 1))
    if count > limit:
        raise TooManyRemovals(
            f"removing up to {f} of {units} {what} has {count} cases, more than {limit}: "
            "lower f, group the vantages into cells, or use the greedy bounds"
        )
    kept = np.ones((count, units), dtype=bool)
    row = 0
    for size in range(f + 1):
        for leaving in itertools.combinations(range(units), size):
            kept[row, list(leaving)] = False
            row += 1
    if cells is None:
        return kept
    of_vantage = np.array([names.index(cell) for cell in cells])
    return kept[:, of_vantage]


# ---- axes over subsets


def subset_c1(checked: FloatArray, violated: FloatArray, masks: BoolArray) -> FloatArray:
    """C_1 of the vantages that stay, 1 - violated / checked, shape (..., K); 1 where nothing was checked.

    checked, violated: (..., N).
    """
    stay = masks.T.astype(np.float64)
    all_checked = checked @ stay
    c1: FloatArray = 1.0 - (violated @ stay) / np.where(all_checked > 0.0, all_checked, 1.0)
    return c1


def subset_c2(p: FloatArray, masks: BoolArray) -> FloatArray:
    """C_2 of the vantages that stay, 1 - JSD / log2 min(n, A), shape (..., K); NaN below two vantages.

    p: distributions (..., N, A). The norm is the subset's own.
    """
    size = masks.sum(axis=1)
    weights = masks / size[:, None]
    own = np.einsum("kv,...v->...k", weights, entropy(p))
    divergence = np.maximum(entropy(weights @ p) - own, 0.0)
    norm = np.log2(np.maximum(np.minimum(size, p.shape[-1]), 2))
    return np.where(size > 1, np.clip(1.0 - divergence / norm, 0.0, 1.0), np.nan)


def subset_c3(jaccard: FloatArray, masks: BoolArray) -> FloatArray:
    """C_3 of the vantages that stay, mean Jaccard similarity over their pairs, shape (..., K); NaN below two.

    jaccard: (..., N, N), symmetric with 1 on the diagonal.
    """
    stay = masks.astype(np.float64)
    size = stay.sum(axis=1)
    both = np.einsum("kv,...vw,kw->...k", stay, jaccard, stay, optimize=True)
    pairs = size * (size - 1.0)
    return np.where(size > 1, (both - size) / np.where(pairs > 0.0, pairs, 1.0), np.nan)


# ---- bounds


class Bounds(NamedTuple):
    """lo, hi: smallest and largest value over the removals. without_lo, without_hi: vantages removed there.

    Of equal values the earliest removal counts, and so the smallest. everybody: the value without removal.
    """

    lo: float
    hi: float
    everybody: float
    without_lo: tuple[int, ...]
    without_hi: tuple[int, ...]


def bounds(values: FloatArray, masks: BoolArray) -> Bounds:
    """Bounds of one tick's values (K,) over the removals ``masks``. NaN values (too few stay) are passed over."""
    if not np.isfinite(values).any():
        raise ValueError("no removal leaves enough vantages for a value")
    low, high = int(np.nanargmin(values)), int(np.nanargmax(values))
    gone_low, gone_high = (tuple(np.flatnonzero(~masks[row]).tolist()) for row in (low, high))
    return Bounds(float(values[low]), float(values[high]), float(values[0]), gone_low, gone_high)


def greedy_bounds(number: int, f: int, value: Callable[[BoolArray], FloatArray]) -> Bounds:
    """Bounds by removing one vantage after the other, the best one each time: about 2 f N values.

    value: values (K,) of masks (K, N). Always inside the exact bounds: lo >= the exact lo, hi <= the exact hi.
    """
    if not 0 <= f < number / 2:
        raise ValueError(f"f must be below half of the {number} vantages, not {f}")
    everybody = np.ones(number, dtype=bool)
    at_start = float(value(everybody[None])[0])
    ends: list[tuple[float, tuple[int, ...]]] = []
    for sign in (1.0, -1.0):
        mask = everybody.copy()
        best: tuple[float, tuple[int, ...]] = (sign * at_start, ())
        for _ in range(f):
            staying = np.flatnonzero(mask)
            masks = np.repeat(mask[None], len(staying), axis=0)
            masks[np.arange(len(staying)), staying] = False
            values = sign * value(masks)
            at = int(np.nanargmin(values))
            mask = masks[at]
            if values[at] < best[0]:
                best = (float(values[at]), tuple(np.flatnonzero(~mask).tolist()))
        ends.append((sign * best[0], best[1]))
    (lo, without_lo), (hi, without_hi) = ends
    return Bounds(lo, hi, at_start, without_lo, without_hi)


def without_most_anomalous(contributions: FloatArray, f: int) -> BoolArray:
    """Mask (N,) without the f vantages that contribute most, as 001 sec. 12.2 approximates C^mm(f)."""
    mask = np.ones(len(contributions), dtype=bool)
    mask[np.argsort(-contributions, kind="stable")[:f]] = False
    return mask


# ---- distances, each subset against its own baseline


class SubsetBaselines(NamedTuple):
    """mean (K, d) and precision (K, d, d) of every removal's coherence vector in BAU."""

    mean: FloatArray
    precision: FloatArray

    def d2(self, x: FloatArray) -> FloatArray:
        """D^2 (..., K) of the vectors x (..., K, d)."""
        away = x - self.mean
        distance: FloatArray = np.einsum("...ki,kij,...kj->...k", away, self.precision, away)
        return distance


def fit_baselines(x: FloatArray, floor: FloatArray) -> SubsetBaselines:
    """Baselines from BAU vectors x (T, K, d), no NaN; T > d + 1.

    floor: (d,) variances > 0 that are added to the diagonal, the counting noise, so that a constant axis stays regular.
    """
    ticks, _, axes = x.shape
    if ticks <= axes + 1:
        raise ValueError(f"baselines of {axes} axes need more than {axes + 1} ticks, got {ticks}")
    mean = x.mean(axis=0)
    away = x - mean
    covariance = np.einsum("tki,tkj->kij", away, away) / (ticks - 1) + np.diag(floor)
    return SubsetBaselines(mean, np.linalg.inv(covariance))


class Divergence(NamedTuple):
    """D^2 of everybody, D_minimax and D_max, whom the minimax leaves out, and Delta_byz (001 sec. 14.1)."""

    d2: float
    minimax: float
    largest: float
    suspects: tuple[int, ...]

    @property
    def delta(self) -> float:
        """Delta_byz = D^2 - D_minimax, >= 0: the distance that up to f vantages account for."""
        return self.d2 - self.minimax

    @property
    def share(self) -> float:
        """Delta_byz / D^2, in [0, 1]; the source compares it with 0.6."""
        return self.delta / self.d2 if self.d2 > 0.0 else 0.0

    @property
    def phi_byz(self) -> float:
        """Phase distance exp(-D_minimax / 6.25) of what no removal explains."""
        return phi_d(self.minimax)


def divergence(d2: FloatArray, masks: BoolArray) -> Divergence:
    """The pair (D_minimax, D_max) and Delta_byz of one tick's distances (K,) over the removals ``masks``."""
    found = bounds(d2, masks)
    return Divergence(found.everybody, found.lo, found.hi, found.without_lo)
