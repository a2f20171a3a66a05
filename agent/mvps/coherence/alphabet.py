# SPDX-License-Identifier: Apache-2.0
"""The label alphabet: severity histograms of unlike vantages -> distributions over common labels.

Vantages measure in unlike units (ns of block latency, sixteenths of a minimum RTT). What they share is how
far an event lies beyond *this vantage's own* BAU::

    label 0          nothing happened, or severity <= the p99 of BAU
    label 1          between p99 and the worst severity seen in BAU
    label 2 .. A-2   whole octaves beyond the worst seen: < 2x, 2-4x, 4-8x ...
    label A-1        everything farther out

DESIGN.md section 3 (ours): chosen by measurement against quantile bins and plain severity labels.

Categorical scales (next hops) have no order and no edges. Their labels are the A-1 categories with most BAU mass,
shared by all categorical vantages of the surface so that their distributions can be compared, and "any other".
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mvps.coherence.observation import HIST_BINS, SUB_BINS, FloatArray, Scale

LABELS = 6
NORMAL_MASS = 0.99


@dataclass(frozen=True)
class Alphabet:
    """How one vantage's histogram bins map to the common labels.

    vantage: registry name.
    edge: index of the bin that holds the p99 of BAU, or of the bin of ``Scale.quiet`` if that is higher.
    share: part of the edge bin's events that is label 0; the rest is label 1. Splitting this one bin keeps
        the BAU mass of label 0 at .99 although bins are coarse (a distributional transform at this edge only).
    worst: index of the highest bin seen in BAU, never below ``edge``.
    labels: number of labels A, the same for every vantage of a surface.
    categories: bins that are a label of their own, in label order; empty on a severity scale.
    """

    vantage: str
    edge: int
    share: float
    worst: int
    labels: int = LABELS
    categories: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if len(self.categories) >= self.labels or any(not 0 <= c < HIST_BINS for c in self.categories):
            raise ValueError(f"{self.vantage}: {len(self.categories)} categories do not fit {self.labels} labels")
        if not 0 <= self.edge <= self.worst < HIST_BINS:
            raise ValueError(f"{self.vantage}: need 0 <= edge <= worst < {HIST_BINS}")
        if not 0.0 <= self.share <= 1.0:
            raise ValueError(f"{self.vantage}: share {self.share} of the edge bin is not in [0, 1]")
        if not 3 <= self.labels <= HIST_BINS:
            raise ValueError(f"{self.vantage}: need 3 to {HIST_BINS} labels, not {self.labels}")

    @classmethod
    def fit(cls, vantage: str, scale: Scale, histograms: FloatArray, labels: int = LABELS) -> Alphabet:
        """Alphabet of one vantage from its BAU histograms, shape (T, HIST_BINS), events pooled over ticks.

        A vantage without a single BAU event gets the absolute edge ``scale.quiet``.
        """
        if histograms.ndim != 2 or histograms.shape[1] != HIST_BINS:
            raise ValueError(f"{vantage}: histograms have shape {histograms.shape}, not (T, {HIST_BINS})")
        quiet = scale.bin_of(scale.quiet)
        pooled = histograms.sum(axis=0)
        total = pooled.sum()
        if total <= 0.0:
            return cls(vantage, quiet, 1.0, quiet, labels)
        below = np.cumsum(pooled)
        edge = int(np.searchsorted(below, NORMAL_MASS * total))
        worst = int(np.flatnonzero(pooled)[-1])
        edge = min(edge, worst)
        if edge <= quiet:
            return cls(vantage, quiet, 1.0, max(worst, quiet), labels)
        share = (NORMAL_MASS * total - (below[edge] - pooled[edge])) / pooled[edge]
        return cls(vantage, edge, float(np.clip(share, 0.0, 1.0)), worst, labels)

    @classmethod
    def of_categories(cls, vantage: str, categories: tuple[int, ...], labels: int = LABELS) -> Alphabet:
        """Alphabet of a categorical vantage; see :func:`common_categories`."""
        return cls(vantage, 0, 1.0, 0, labels, categories)

    @cached_property
    def matrix(self) -> FloatArray:
        """Share of each bin that goes to each label, shape (HIST_BINS, labels); rows sum to 1."""
        bins = np.arange(HIST_BINS)
        if self.categories:
            matrix = np.zeros((HIST_BINS, self.labels))
            matrix[:, -1] = 1.0
            matrix[list(self.categories)] = np.eye(self.labels)[: len(self.categories)]
            return matrix
        label = np.where(bins <= self.edge, 0, 1)
        beyond = bins > self.worst
        label[beyond] = np.minimum(2 + (bins[beyond] - self.worst - 1) // SUB_BINS, self.labels - 1)
        matrix = np.zeros((HIST_BINS, self.labels))
        matrix[bins, label] = 1.0
        matrix[self.edge, :2] = self.share, 1.0 - self.share
        return matrix

    def label(self, histogram: FloatArray) -> FloatArray:
        """Events per label, shape (..., labels), of histograms of shape (..., HIST_BINS)."""
        counts: FloatArray = histogram @ self.matrix
        return counts


def common_categories(histograms: FloatArray, labels: int = LABELS) -> tuple[int, ...]:
    """The ``labels - 1`` bins with most mass over several categorical vantages, each vantage weighing the same.

    histograms: (V, HIST_BINS), pooled over BAU ticks. Never empty: without any mass it is bin 0, and everything
    that ever comes is "other".
    """
    totals = histograms.sum(axis=1, keepdims=True)
    mass = (histograms / np.where(totals > 0.0, totals, 1.0)).sum(axis=0)
    largest = np.argsort(-mass, kind="stable")[: labels - 1]
    return tuple(int(at) for at in largest if mass[at] > 0.0) or (0,)


def normal_law(labels: int = LABELS) -> FloatArray:
    """The law of a vantage on which nothing ever happens: all mass on label 0."""
    law = np.zeros(labels)
    law[0] = 1.0
    return law


def distribution(counts: FloatArray, prior: FloatArray, pseudo: float) -> FloatArray:
    """Label distribution p = (counts + pseudo * prior) / (sum(counts) + pseudo) (ours).

    counts: (..., A); prior: the vantage's BAU label law, broadcastable to it; pseudo: events the prior is
    worth, > 0. A silent vantage shows its prior exactly, and a single event moves p by at most 1/(1 + pseudo).
    """
    if pseudo <= 0.0:
        raise ValueError(f"the pseudo-count must be positive, not {pseudo}")
    total = counts.sum(axis=-1, keepdims=True)
    p: FloatArray = np.where(total > 0.0, (counts + pseudo * prior) / (total + pseudo), prior)
    return p
