# SPDX-License-Identifier: Apache-2.0
"""C_3^CKA: do replicas attend alike? Unbiased centred kernel alignment, linear (001 sec. 5).

    HSIC_1(K, L) = <U(K), U(L)> / (n (n - 3))                  U: U-centring, diagonal left out (Song et al. 2012)
    CKA(K, L)    = HSIC_1(K, L) / sqrt(HSIC_1(K, K) HSIC_1(L, L))
    C_3^CKA      = clip(mean over pairs of (CKA - null) / (1 - null), 0, 1)        excess over unpaired prompts (ours)

The plain form with H K H, which the source uses, nears 1 for *independent* data as soon as there are more features than
samples; ``cka_biased`` is there to show it. Linear CKA is invariant to rotations and scale of the features, and by that
it cannot see *which* token is attended: permuting all key columns leaves it at 1. ``row_jsd`` of the attention rows
sees just that, and stands beside it.

Causal attention maps share their mask: row i has i + 1 entries, all others are 0, and independent maps look alike for
that reason alone. ``attention_features`` takes the mask out: log weights of each row relative to their mean over its
support (the centred log-ratio, in which the uniform causal map is 0), without the first token, a sink that nearly every
head feeds. What any two prompts still share is taken off as the null.

A Byzantine replica can choose features with whatever CKA it likes (Davari et al. 2023): evidence against noise and
faults, not against an adversary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mvps.coherence.axes import entropy
from mvps.coherence.observation import FloatArray
from mvps.semantic.transport import Points

LEAST_ROWS = 4
MOST_ROWS = 1 << 12  # of an exact Gram matrix
RANK = 64
LAYER_GROUPS = ("early", "middle", "late")
# Weights below this share of the uniform weight are taken as this: their logarithm is rounding of the softmax.
_FLOOR = 1e-4
_ROW_SUM = 1e-2  # half-precision softmax


class Gram(NamedTuple):
    """One replica's U-centred Gram matrix, scaled to norm 1 and flattened (n^2,), or NaN where features do not vary."""

    unit: Points
    rows: int


def gram(features: Points) -> Gram:
    """Prepare features (n, d), a row per query token or per input, for :func:`cka`: once per replica.

    ValueError below 4 or beyond 4096 rows, or if not finite.
    """
    n = _checked(features)
    if n > MOST_ROWS:
        raise ValueError(f"a Gram matrix of {n} rows is more than {MOST_ROWS} square: use cka_projected")
    centred = features - features.mean(axis=0)
    kernel = centred @ centred.T
    variation = float(kernel.trace())
    np.fill_diagonal(kernel, 0.0)
    sums = kernel.sum(axis=1)
    share = sums / (n - 2.0) - sums.sum() / (2.0 * (n - 1.0) * (n - 2.0))
    kernel -= share[:, None]
    kernel -= share
    np.fill_diagonal(kernel, 0.0)
    flat = kernel.ravel()
    norm = math.sqrt(float(flat @ flat))
    # What rounding alone leaves of features that are all the same, or of a kernel that is so off its diagonal.
    rounding = float(np.finfo(features.dtype).eps)
    size = float(np.einsum("nd,nd->", features, features))
    varies = variation > (100.0 * rounding) ** 2 * size and norm > 1000.0 * rounding * variation
    return Gram(flat / norm if varies else np.full_like(flat, math.nan), n)


def cka(a: Gram, b: Gram) -> float:
    """Unbiased linear CKA in [-1, 1]: about 0 for independent features, 1 for the same up to rotation and scale.

    NaN when one of them does not vary. ValueError for different numbers of rows: CKA compares paired inputs.
    """
    if a.rows != b.rows:
        raise ValueError(f"CKA compares the same inputs, not {a.rows} rows with {b.rows}: feed both the same tokens")
    return float(a.unit @ b.unit)


class Reduced(NamedTuple):
    """One replica's centred features (n, r), projected twice and independently. key: rank, seed and dimension."""

    first: Points
    second: Points
    key: tuple[int, int, int]


def reduce(features: Points, rank: int = RANK, seed: int = 0) -> Reduced:
    """Prepare features (n, d) of many rows, more than 512 (001 sec. 5.5), for :func:`cka_projected`: once per replica.

    Nothing is projected when there are no more than ``rank`` dimensions. One seed for a whole deployment.
    """
    _checked(features)
    if rank < 1:
        raise ValueError(f"random projections need a rank of at least 1, not {rank}")
    dimension = features.shape[1]
    centred = features - features.mean(axis=0)
    if dimension <= rank:
        return Reduced(centred, centred, (rank, seed, dimension))
    drawn = np.random.default_rng((seed, dimension)).standard_normal((dimension, 2 * rank)) / math.sqrt(rank)
    both = centred @ drawn.astype(features.dtype)
    return Reduced(np.ascontiguousarray(both[:, :rank]), np.ascontiguousarray(both[:, rank:]), (rank, seed, dimension))


def cka_projected(a: Reduced, b: Reduced) -> float:
    """Unbiased CKA from projections, in O(n rank^2) a pair; 1 for identical features, NaN when a norm is lost in noise.

    A kernel projected once has too large a norm, by about its effective dimension over the rank, which the bound of
    001 sec. 5.5 leaves out. So no product is taken of a projection with itself (ours). Error O(1 / sqrt(rank)).
    """
    if len(a.first) != len(b.first):
        raise ValueError(f"CKA compares the same inputs, not {len(a.first)} rows with {len(b.first)}")
    if a.key[:2] != b.key[:2]:
        raise ValueError(f"projections of different (rank, seed): {a.key[:2]} and {b.key[:2]}")
    own = (_hsic(one.first, one.second) for one in (a, b))
    norms = [max(value, 0.0) for value in own]
    if not norms[0] * norms[1] > 0.0:
        return math.nan
    cross = 0.5 * (_hsic(a.first, b.second) + _hsic(a.second, b.first))
    return cross / math.sqrt(norms[0] * norms[1])


def cka_biased(x: Points, y: Points) -> float:
    """CKA as 001 sec. 5.2 states it, with H K H; for comparison only. NaN when one does not vary."""
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    cross, own_x, own_y = (float(np.square(u.T @ v).sum()) for u, v in ((x, y), (x, x), (y, y)))
    return cross / math.sqrt(own_x * own_y) if own_x > 0.0 and own_y > 0.0 else math.nan


def attention_features(attention: Points, causal: bool = True, drop_sink: bool = True) -> Points:
    """Centred log-ratios of the rows of an attention map (n, n), with the effect of the causal mask taken out.

    attention: a row per query, mean over heads, rows that sum to 1. drop_sink: leave the first key out. Keys outside a
    row's support are 0, and so is every key whose weight is its row's geometric mean. In the map's precision, half as
    single. ValueError for maps that are no distributions, or that a causal mask would forbid.
    """
    weights = _checked_attention(attention, causal)
    n = len(weights)
    support = np.tri(n, dtype=weights.dtype) if causal else np.ones_like(weights)
    if drop_sink:
        support[:, 0] = 0.0
    # What the uniform map would give each key of the row.
    number = np.arange(1, n + 1, dtype=weights.dtype) if causal else np.full(n, n, dtype=weights.dtype)
    features: Points = weights * number[:, None]
    np.maximum(features, _FLOOR, out=features)
    np.log(features, out=features)
    features *= support
    features -= (features.sum(axis=1) / np.maximum(support.sum(axis=1), 1.0))[:, None]
    features *= support
    return features


def row_jsd(a: Points, b: Points, causal: bool = True) -> float:
    """Mean Jensen-Shannon divergence in bits between the attention rows of two maps (n, n) for the same tokens.

    In [0, 1]: 0 when every query attends to the same keys. Rows with a single key to attend to are left out.
    """
    left, right = (_checked_attention(one, causal).astype(np.float64) for one in (a, b))
    if left.shape != right.shape:
        raise ValueError(f"attention of {len(left)} and {len(right)} tokens: feed both the same tokens")
    divergence = np.maximum(entropy(0.5 * (left + right)) - 0.5 * (entropy(left) + entropy(right)), 0.0)
    return float(divergence[1:].mean() if causal else divergence.mean())


def c3_cka(values: FloatArray, null: float) -> float | None:
    """C_3^CKA from the CKA of all pairs (N, N); None when no pair has one.

    null: mean CKA of unpaired prompts, of the same layers and of the same number of rows. ValueError if it is not
    below 1: then paired prompts cannot be told from unpaired ones.
    """
    if not null < 1.0 - 1e-6:
        raise ValueError(f"unpaired prompts already have a CKA of {null:.3f}: choose other layers, or longer prompts")
    pairs = values[np.triu_indices(len(values), 1)]
    pairs = pairs[~np.isnan(pairs)]
    if not len(pairs):
        return None
    return min(max(float((pairs.mean() - null) / (1.0 - null)), 0.0), 1.0)


def pairwise(grams: Sequence[Gram]) -> FloatArray:
    """CKA between all pairs of N replicas, (N, N), 1 on the diagonal; NaN for features that do not vary."""
    if len({one.rows for one in grams}) != 1:
        raise ValueError("CKA compares the same inputs: the replicas have different numbers of rows")
    units = np.stack([one.unit for one in grams])
    values: FloatArray = (units @ units.T).astype(np.float64)
    return values


def layer_group(layers: int, group: str = "middle") -> range:
    """Layers, counted from 0, whose attention is compared: thirds of the model; ``middle`` as 001 sec. 5.4 states it.

    The source's middle third includes floor(2 layers / 3); early ends before it begins, late begins after it.
    """
    if layers < 1:
        raise ValueError("a model has at least one layer")
    low, high = layers // 3, min(2 * layers // 3 + 1, layers)
    found = {"early": range(low), "middle": range(low, high), "late": range(high, layers)}.get(group)
    if found is None:
        raise ValueError(f"unknown layer group {group!r}: choose one of {', '.join(LAYER_GROUPS)}")
    if not found:
        raise ValueError(f"a model of {layers} layers has no {group} layers: choose middle")
    return found


def _checked(features: Points) -> int:
    if features.ndim != 2 or len(features) < LEAST_ROWS or not features.shape[1]:
        raise ValueError(f"unbiased CKA needs features (n, d) of at least {LEAST_ROWS} rows, got {features.shape}")
    if features.dtype not in (np.float32, np.float64):
        raise ValueError(f"CKA needs features in single or double precision, not {features.dtype}")
    if not np.isfinite(features).all():
        raise ValueError("CKA needs finite features")
    return len(features)


def _checked_attention(attention: Points, causal: bool) -> Points:
    """The map with rows that sum to 1, in single precision at least."""
    weights = attention.astype(np.result_type(attention.dtype, np.float32), copy=False)
    if weights.ndim != 2 or weights.shape[0] != weights.shape[1] or len(weights) < 2:
        raise ValueError(f"an attention map is (n, n) with n >= 2, not {weights.shape}: average over heads first")
    if not np.isfinite(weights).all() or weights.min() < 0.0:
        raise ValueError("attention weights are finite and not negative")
    if causal and np.triu(weights, 1).max() > 0.0:
        raise ValueError("attention to later tokens in a causal map: pass causal=False")
    sums = weights.sum(axis=1, keepdims=True)
    if np.abs(sums - 1.0).max() > _ROW_SUM:
        raise ValueError("attention rows must sum to 1: pass the weights after the softmax")
    normalised: Points = weights / sums
    return normalised


def _hsic(x: Points, y: Points) -> float:
    """HSIC_1 of the linear kernels of centred features (n, p) and (n, q), without an n by n matrix.

    With centred features the off-diagonal row sums are minus the diagonal, which leaves sums over rows only.
    """
    n = len(x)
    cross = x.T @ y
    k, m = np.einsum("nd,nd->n", x, x), np.einsum("nd,nd->n", y, y)
    both = float(k @ m)
    total = float(np.einsum("pq,pq->", cross, cross)) - both
    total += float(k.sum()) * float(m.sum()) / ((n - 1.0) * (n - 2.0)) - 2.0 * both / (n - 2.0)
    return total / (n * (n - 3.0))
