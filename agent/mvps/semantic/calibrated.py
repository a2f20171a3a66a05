# SPDX-License-Identifier: Apache-2.0
"""C_2^W2: how coherent the answers of N replicas are, on a scale that means something (001 sec. 4.3, calibrated ours).

    excess_ij = (W_ij - W_same) / (W_unrelated - W_same)
    C_2^W2    = 1 - clip(mean over pairs of min(excess_ij, 1), 0, 1)                              (ours)
    C_2^W2    = 1 - mean over pairs of W_ij / W2_max                                              (001 sec. 4.3)

W_same is the median distance between replays of one prompt on one replica, W_unrelated that between answers to other
prompts. So 1 is "as close as a replica is to itself", 0 "as far as answers to different questions", whatever the
encoder, the dimension and the length of the answers. No pair counts for more than unrelated, or one garbled replica
would drown the others; a pair closer than W_same counts below 0 until the mean is taken, or noise would push healthy
groups below 1. What is cut off is counted.

The source's form has no such ends: W2_max is the 99th percentile in BAU, and BAU itself, whose distances are all of one
size in high dimension, lies near C = 0 then. It is kept, not clipped, for comparison.

Calibrate and judge with the same distance, encoder, prompt family and sampling temperature.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from mvps.coherence.observation import FloatArray

LEAST_PAIRS = 10


class Anchors(NamedTuple):
    """Ends of the scale, and how well they are told apart.

    same, unrelated: medians of W. separation: share of (same, unrelated) pairs of distances in order, ties half: 1 when
    they never overlap, .5 when the encoder cannot tell an answer from one to another question.
    """

    same: float
    unrelated: float
    separation: float


class Coherence(NamedTuple):
    """C_2^W2 of one prompt. excess: its mean excess, before it is cut to [0, 1].

    unrelated_pairs: pairs that were at least as far apart as unrelated answers, and counted as 1. pairs: all of them.
    """

    value: float
    excess: float
    unrelated_pairs: int
    pairs: int


def anchors(same: FloatArray, unrelated: FloatArray) -> Anchors:
    """Anchors from distances between same-replica replays, and between answers to other prompts, each at least ten.

    ValueError when they do not span a scale: then no value of C_2^W2 would mean anything.
    """
    for name, distances in (("same-replica", same), ("unrelated", unrelated)):
        if distances.size < LEAST_PAIRS:
            raise ValueError(f"{distances.size} {name} distances are too few: at least {LEAST_PAIRS}")
        if not (np.isfinite(distances).all() and (distances >= 0.0).all()):
            raise ValueError(f"{name} distances must be finite and not negative: leave missing answers out")
    low, high = float(np.median(same)), float(np.median(unrelated))
    if high <= low:
        raise ValueError(
            f"answers to other prompts are no farther apart ({high:.4g}) than replays of one ({low:.4g}): "
            "lower the temperature, choose prompts with different answers, or another encoder"
        )
    ordered = np.sort(same.ravel())
    below = np.searchsorted(ordered, unrelated.ravel(), "left") + np.searchsorted(ordered, unrelated.ravel(), "right")
    return Anchors(low, high, float(below.mean()) / (2.0 * len(ordered)))


def c2_w2(distances: FloatArray, scale: Anchors) -> Coherence | None:
    """C_2^W2 of one prompt from the distances (N, N) between its answers; NaN rows are replicas without an answer.

    None when fewer than two replicas answered.
    """
    found = _pairs(distances)
    if not len(found):
        return None
    excess = (found - scale.same) / (scale.unrelated - scale.same)
    mean = float(np.minimum(excess, 1.0).mean())
    return Coherence(1.0 - min(max(mean, 0.0), 1.0), mean, int((excess >= 1.0).sum()), len(found))


def w2_max(history: FloatArray) -> float:
    """W2_max of 001 sec. 4.3: the 99th percentile of the pairwise distances in BAU."""
    if not history.size:
        raise ValueError("W2_max needs distances seen in BAU")
    return float(np.quantile(history, 0.99))


def c2_w2_seed(distances: FloatArray, largest: float) -> float | None:
    """C_2^W2 as 001 sec. 4.3 states it, unclipped: below 0 beyond W2_max. None below two answers.

    ValueError for W2_max = 0, which deterministic replicas have.
    """
    if not largest > 0.0:
        raise ValueError("W2_max is 0: the replicas are deterministic, and the source's form is 0/0")
    found = _pairs(distances)
    return 1.0 - float(found.mean()) / largest if len(found) else None


def _pairs(distances: FloatArray) -> FloatArray:
    number = len(distances)
    if distances.shape != (number, number):
        raise ValueError(f"distances between N replicas are (N, N), not {distances.shape}")
    found: FloatArray = distances[np.triu_indices(number, 1)]
    found = found[~np.isnan(found)]
    if len(found) and not (float(found.min()) >= 0.0 and float(found.max()) < math.inf):
        raise ValueError("distances must be finite and not negative")
    return found
