# SPDX-License-Identifier: Apache-2.0
"""When to look a few tokens ahead, and along what: triggers and a surrogate of the model (002 sec. 4.4, app. B.5).

Inside a logits processor there is no model to roll out, so that the path behind a candidate comes from a surrogate:
here a bigram's most frequent successor, learned from what was generated. A draft model serves as well.

A path's score is the discounted sum over its steps, *the candidate itself included* (the text's pseudocode never
scores it), divided by the sum of its discounts, so that a path that ends early is comparable.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mvps.coherence.observation import FloatArray
from mvps.surplus.indicators import CRP_LIMIT
from mvps.surplus.structure import TokenArray
from mvps.surplus.trust_region import BoolArray

UNKNOWN = -1


class Surrogate(Protocol):
    """A cheap guess at what the model would say next."""

    def successor(self, tokens: TokenArray) -> TokenArray:
        """The likely next token after each token, of any shape; UNKNOWN where there is no guess."""
        ...


class Bigram:
    """The most frequent successor of each token of a history; of equally frequent ones the smallest id."""

    def __init__(self, history: TokenArray, vocabulary: int) -> None:
        pairs = np.asarray(history[:-1], dtype=np.int64) * vocabulary + np.asarray(history[1:], dtype=np.int64)
        pair, count = np.unique(pairs, return_counts=True)
        first, second = np.divmod(pair, vocabulary)
        # Ascending by count and descending by id: the last of each first token wins.
        order = np.lexsort((-second, count))
        self._next = np.full(vocabulary, UNKNOWN, dtype=np.int64)
        self._next[first[order]] = second[order]

    def successor(self, tokens: TokenArray) -> TokenArray:
        """See Surrogate."""
        return np.where(tokens == UNKNOWN, UNKNOWN, self._next[tokens])


@dataclass(frozen=True)
class Triggers:
    """When to look ahead; the limits are those of sec. 6.2 and 8.2, CRP as a tail score (``indicators``)."""

    ssi: float = 0.7
    crp: float = CRP_LIMIT
    sse: float = 0.45
    at_boundary: bool = True
    on_spike: bool = True

    def fire(
        self, ssi: FloatArray, crp: FloatArray, sse: FloatArray, spike: BoolArray, boundary: BoolArray
    ) -> BoolArray:
        """Which requests look ahead: stressed, fragile or narrow ones, energy spikes, edges of structure."""
        fires: BoolArray = (ssi > self.ssi) | (crp > self.crp) | (sse < self.sse)
        if self.on_spike:
            fires = fires | spike
        if self.at_boundary:
            fires = fires | boundary
        return fires


def paths(surrogate: Surrogate, candidates: TokenArray, horizon: int) -> TokenArray:
    """Tokens (n, k, horizon) behind and including each candidate (n, k); UNKNOWN after a path's end."""
    steps = [candidates]
    for _ in range(horizon - 1):
        steps.append(surrogate.successor(steps[-1]))
    return np.stack(steps, axis=2)


def discounted(steps: FloatArray, alive: BoolArray, gamma: float) -> FloatArray:
    """Discounted mean (n, k) over the steps (n, k, h) of a path that are alive; the first always is."""
    weights = gamma ** np.arange(steps.shape[2]) * alive
    mean: FloatArray = (np.where(alive, steps, 0.0) * weights).sum(axis=2) / weights.sum(axis=2)
    return mean
