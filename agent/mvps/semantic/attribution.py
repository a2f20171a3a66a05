# SPDX-License-Identifier: Apache-2.0
"""Which replica stands out, and on which prompt family: a permutation test of all of them at once (ours).

    t_rp = s_rp - mean over replicas of s_rp                        s: any score of replica r on prompt p
    z_rf = sum over p in f of t_rp / sqrt(sum over p in f of mean over r of t_rp^2)
    p_rf = P(largest z of all replicas and families under permutation >= z_rf)          (Westfall & Young 1993)

A fleet mean hides one bad replica on one family of prompts: a wrong answer rate that is plausible overall is none for
one topic on one replica. So every cell is looked at, and the maximum is what each is held against: with probability
1 - alpha no cell of a healthy group is named, however many there are.

Under the null the replicas are exchangeable on each prompt, whatever the prompt: scores are permuted between the
replicas within every prompt. Ticks that repeat a prompt must be averaged first, or they count as independent evidence.
With N = 2 replicas nobody can say which of them is the odd one from distances alone; a score of its own, such as
wrong answers, can.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mvps.coherence.observation import FloatArray

ALL = "*"
MOST_SUMS = 1 << 24  # replicas times families times permutations


class Cell(NamedTuple):
    """One replica on one family of prompts, "*" for all.

    effect: mean score above that of the replicas together. z: standardised. p_value: adjusted for all cells. prompts:
    how many of the family this replica answered.
    """

    replica: int
    family: str
    effect: float
    z: float
    p_value: float
    prompts: int


def leave_out_excess(distances: FloatArray) -> FloatArray:
    """How much farther each replica is from the others than these are from each other, per prompt: (P, N, N) -> (P, N).

    NaN for a replica without an answer, and where fewer than three answered: of two, neither is the odd one.
    """
    if distances.ndim != 3 or distances.shape[1] != distances.shape[2]:
        raise ValueError(f"distances per prompt are (P, N, N), not {distances.shape}")
    off_diagonal = ~np.eye(distances.shape[1], dtype=bool)
    known = np.isfinite(distances) & off_diagonal
    d = np.where(known, distances, 0.0)
    own, number = d.sum(axis=2), known.sum(axis=2)
    rest, pairs = (part.sum(axis=1, keepdims=True) - 2.0 * part for part in (own, number))
    there = (number >= 2) & (pairs >= 2)
    excess = own / np.maximum(number, 1) - rest / np.maximum(pairs, 1)
    return np.where(there, excess, np.nan)


def attribute(scores: FloatArray, families: Sequence[str], permutations: int = 999, seed: int = 0) -> list[Cell]:
    """All cells, the most conspicuous first.

    scores: (P, N), larger is worse, NaN for a replica without an answer to the prompt. families: (P,). Beside every
    family there is "*", all prompts. Prompts that fewer than two replicas answered say nothing. ValueError for bad
    input; cells are named by their p-value, which nobody has to correct any more.
    """
    if scores.ndim != 2 or len(families) != len(scores) or scores.shape[1] < 2:
        raise ValueError(f"scores are (P, N >= 2) with one family per prompt, not {scores.shape} and {len(families)}")
    if ALL in families:
        raise ValueError(f"{ALL!r} stands for all prompts: call this family something else")
    if np.isinf(scores).any():
        raise ValueError("scores must be finite, or NaN without an answer")
    names = [*sorted(set(families)), ALL]
    prompts, number = scores.shape
    if number * len(names) * (permutations + 1) > MOST_SUMS:
        raise ValueError(f"{permutations} permutations of {number} by {len(names)} cells are too many")
    rng = np.random.default_rng(seed)
    row_of = {name: row for row, name in enumerate(names)}
    # Draw 0 is what was seen.
    sums = np.zeros((permutations + 1, len(names), number))
    variance = np.zeros((len(names), number))
    answered = np.zeros((len(names), number), dtype=int)
    for prompt in range(prompts):
        there = np.flatnonzero(~np.isnan(scores[prompt]))
        if len(there) < 2:
            continue
        centred = scores[prompt, there] - scores[prompt, there].mean()
        drawn = rng.permuted(np.tile(centred, (permutations + 1, 1)), axis=1)
        drawn[0] = centred
        for row in (row_of[families[prompt]], len(names) - 1):
            sums[:, row, there] += drawn
            variance[row, there] += float((centred * centred).mean())
            answered[row, there] += 1
    z = sums / np.sqrt(np.where(variance > 0.0, variance, math.inf))
    largest = z.max(axis=(1, 2))
    cells = []
    for row, name in enumerate(names):
        for replica in range(number):
            count = int(answered[row, replica])
            if not count:
                continue
            value = float(z[0, row, replica])
            p_value = float((largest >= value - 1e-9).mean())
            effect = float(sums[0, row, replica]) / count
            cells.append(Cell(replica, name, effect, value, p_value, count))
    return sorted(cells, key=lambda cell: (-cell.z, cell.family, cell.replica))
