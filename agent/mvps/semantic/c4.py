# SPDX-License-Identifier: Apache-2.0
"""C_4: does the answer survive a rephrasing of the question? (001 sec. 6)

    agree_i(pi) = [ W(mu_i, mu_i^pi) <= delta_4 ]
    C_4         = mean over replicas i and rephrasings pi of agree_i(pi)                          (001 sec. 6.2)
    C_4^net     = 1 - max(C_same - C_4, 0)                                                        (ours)

C_same is the same share with plain repetitions of the prompt in place of rephrasings: how much of the disagreement
sampling alone makes. C_4^net counts only what rephrasing adds to that. delta_4 is a conformal quantile of distances
between answers that mean the same, from prompts that are not judged (ours: the source leaves it open).

The source has W < delta_4. With <= the quantile of deterministic replicas, 0, still means that equal answers agree.

What it cannot see (001 sec. 6.5): a belief that is false under every phrasing has C_4 = 1. And a low C_4 is not proof
of a falsehood: replicas that do not know an answer are unstable too, and so is a rephrasing that asks something else.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from mvps.coherence.observation import FloatArray

EMA_TICKS = 10


class Delta(NamedTuple):
    """delta_4, the level it was chosen at and the number of same-meaning distances behind it."""

    value: float
    level: float
    distances: int


class Stability(NamedTuple):
    """C_4 and what it is based on: answers that came, and answers that were asked for and did not."""

    value: float
    answers: int
    missing: int


class Ema(NamedTuple):
    """Exponential moving average with weight 2 / (ticks + 1), None before the first value."""

    value: float | None = None

    def step(self, value: float | None, ticks: int = EMA_TICKS) -> Ema:
        """The average after one more value; a missing one (None) leaves it as it is."""
        if value is None:
            return self
        if self.value is None:
            return Ema(value)
        return Ema(self.value + 2.0 / (ticks + 1.0) * (value - self.value))


def delta(same_meaning: FloatArray, level: float = 0.95) -> Delta:
    """delta_4 such that a new same-meaning distance is at most it with probability ``level`` (split conformal).

    same_meaning: distances between answers known to mean the same, of prompts that will not be judged by it; one per
    prompt, since those of one prompt depend on each other and promise more than they keep. ValueError when there are
    too few for the level, 19 for .95.
    """
    if not 0.0 < level < 1.0:
        raise ValueError(f"the level of delta_4 lies between 0 and 1, not at {level}")
    count = same_meaning.size
    rank = math.ceil((count + 1) * level - 1e-9)
    if rank > count:
        least = math.ceil(level / (1.0 - level) - 1e-9)
        raise ValueError(f"delta_4 at level {level} needs at least {least} same-meaning distances, got {count}")
    if not (np.isfinite(same_meaning).all() and (same_meaning >= 0.0).all()):
        raise ValueError("same-meaning distances must be finite and not negative: leave missing answers out")
    return Delta(float(np.partition(same_meaning.ravel(), rank - 1)[rank - 1]), level, count)


def c4(distances: FloatArray, threshold: Delta) -> Stability | None:
    """C_4 of one prompt from W between every replica's answers to the prompt and to its rephrasings, (N, K_4).

    NaN marks an answer that did not come; it counts neither way, and is counted. None without any answer.
    """
    came = ~np.isnan(distances)
    answers = int(came.sum())
    if not answers:
        return None
    agreeing = int((distances[came] <= threshold.value).sum())
    return Stability(agreeing / answers, answers, distances.size - answers)


def c4_net(rephrased: Stability, repeated: Stability) -> float:
    """C_4^net: 1 less the disagreement that rephrasing adds to repetition, in [0, 1] (ours).

    Both with the same delta_4. It is 1 for an answer that sampling alone makes unstable: such prompts are for C_2^W2.
    """
    return 1.0 - max(repeated.value - rephrased.value, 0.0)
