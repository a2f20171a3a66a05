# SPDX-License-Identifier: Apache-2.0
"""What replicas with open weights make of the same tokens: attention, hidden states, next-token laws (001 sec. 5, 8.3).

Teacher-forced: every replica reads one sequence of tokens, so that row t of each is about the same prefix and nothing
differs but the replicas.

    CKA_ij    = mean over the group's layers of CKA(features of A_i, features of A_j)                  (``cka``)
    JSD_att   = mean over pairs, layers and rows t of JSD(A_i[t], A_j[t])
    JSD_next  = mean over rows t of JSD({p_i(. | x_1..x_t)}) / log2 N                                  (ours)
    W_ij      = W_2 between hidden states, each scaled to length 1, without the first token's          (ours)

Both divergences are in [0, 1], 0 when nothing differs. The first token is left out of the hidden states, and lengths
are taken off: it is a sink with a norm far beyond the others', and would be all of the distance.

A causal map's first m rows and columns are the map of its first m tokens. So maps of two prompts of different lengths
are compared on the shorter one's; that gives the null of C_3^CKA, and the distance of unrelated hidden states.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mvps.coherence.axes import jsd
from mvps.coherence.observation import FloatArray
from mvps.semantic.cka import (
    LEAST_ROWS,
    Gram,
    Reduced,
    attention_features,
    cka,
    cka_projected,
    gram,
    reduce,
    row_jsd,
)
from mvps.semantic.transport import Points, transport

# Beyond it features are projected (001 sec. 5.5).
MOST_EXACT_ROWS = 512


class Reading(NamedTuple):
    """What one replica made of n tokens.

    attention: (layers of the group, n, n), mean over heads, rows that sum to 1. hidden: (n, d), after the last of those
    layers. laws: (r, V), probabilities of the next token after each of the last r tokens.
    """

    attention: Points
    hidden: Points
    laws: Points


class Compared(NamedTuple):
    """Replicas on one sequence of tokens. cka, between: (N, N), NaN where a replica gave no reading.

    cka is None below 4 tokens, attention_jsd and next_jsd are None below two readings.
    """

    cka: FloatArray | None
    attention_jsd: float | None
    next_jsd: float | None
    between: FloatArray


def compare(readings: Sequence[Reading | None]) -> Compared:
    """Compare N readings of the same tokens; None for a replica without one.

    ValueError when they are of different tokens, layers, dimensions or vocabularies, or are not finite.
    """
    number = len(readings)
    there = [(k, one) for k, one in enumerate(readings) if one is not None]
    shapes = {(one.attention.shape, one.hidden.shape, one.laws.shape) for _, one in there}
    if len(shapes) > 1:
        raise ValueError(f"readings of different tokens, layers or vocabularies: {sorted(map(str, shapes))}")
    for _, one in there:
        _check(one)
    between = np.full((number, number), np.nan)
    alike = np.full((number, number), np.nan)
    enough = bool(there) and there[0][1].attention.shape[1] >= LEAST_ROWS
    prepared = {k: [_prepare(layer) for layer in one.attention] for k, one in there} if enough else {}
    rows = {k: _rows(one) for k, one in there}
    divergences: list[float] = []
    for k, one in there:
        between[k, k] = 0.0
        if enough:
            alike[k, k] = 1.0
        for j, other in there:
            if j <= k:
                continue
            between[k, j] = between[j, k] = _apart(rows[k], rows[j])
            if enough:
                alike[k, j] = alike[j, k] = _mean_cka(prepared[k], prepared[j])
            divergences += [row_jsd(a, b) for a, b in zip(one.attention, other.attention, strict=True) if len(a) > 1]
    return Compared(
        alike if enough else None,
        float(np.mean(divergences)) if divergences else None,
        _next_jsd([one.laws for _, one in there]) if len(there) > 1 else None,
        between,
    )


def unpaired_cka(a: Reading, b: Reading) -> float:
    """CKA of two readings of different tokens, on the first rows that both have; NaN below 4 of them."""
    m = min(a.attention.shape[1], b.attention.shape[1])
    if m < LEAST_ROWS or len(a.attention) != len(b.attention):
        return math.nan
    return _mean_cka(*([_prepare(layer[:m, :m]) for layer in one.attention] for one in (a, b)))


def hidden_distance(a: Reading, b: Reading) -> float:
    """W between the hidden states of two readings, on the first rows that both have; NaN where there are none."""
    return _apart(_rows(a), _rows(b))


def _check(one: Reading) -> None:
    for name, values in (("attention", one.attention), ("hidden states", one.hidden), ("next-token laws", one.laws)):
        if not np.isfinite(values).all():
            raise ValueError(f"the {name} of a reading are not finite")


def _prepare(attention: Points) -> Gram | Reduced:
    features = attention_features(attention)
    return gram(features) if len(features) <= MOST_EXACT_ROWS else reduce(features)


def _mean_cka(a: Sequence[Gram | Reduced], b: Sequence[Gram | Reduced]) -> float:
    """Mean over the layers that have one; NaN when none has."""
    found = []
    for one, other in zip(a, b, strict=True):
        if isinstance(one, Gram) and isinstance(other, Gram):
            found.append(cka(one, other))
        elif isinstance(one, Reduced) and isinstance(other, Reduced):
            found.append(cka_projected(one, other))
    known = [value for value in found if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def _rows(one: Reading) -> Points:
    """Hidden states without the first token's, each scaled to length 1; one that is 0 stays so."""
    rest = one.hidden[1:]
    lengths = np.linalg.norm(rest, axis=1, keepdims=True)
    rows: Points = rest / np.where(lengths > 0.0, lengths, 1.0)
    return rows


def _apart(x: Points, y: Points) -> float:
    m = min(len(x), len(y))
    return transport(x[:m], y[:m]).distance if m else math.nan


def _next_jsd(laws: Sequence[Points]) -> float:
    found = []
    for t in range(len(laws[0])):  # a row at a time: a vocabulary has 10^5 words
        row = np.stack([one[t] for one in laws]).astype(np.float64)
        found.append(float(jsd(row / row.sum(axis=1, keepdims=True))))
    return float(np.mean(found)) / math.log2(len(laws))
