# SPDX-License-Identifier: Apache-2.0
"""What one vantage saw in one tick: the input of the coherence algebra.

A vantage measures a *severity* (a latency, a ratio, a stall time) of many events per tick.
It hands over a fine histogram rather than labels, because labels need a baseline: the
:mod:`~mvps.coherence.alphabet` turns histograms into distributions over the common alphabet,
and recorded observations can be relabelled offline.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

# Four sub-bins per octave over 32 octaves: relative bin width 19-25 %, and one layout for every
# vantage whatever its unit. Must match HIST_BINS and HIST_SUB_BITS of bpf/common.h (a test compares).
HIST_BINS = 128
SUB_BINS = 4


@dataclass(frozen=True, slots=True)
class Scale:
    """The severity axis of a histogram.

    unit: what severity is measured in, e.g. ``"ns"`` or ``"1/16 of min RTT"``.
    lowest: severity at the lower edge of bin 1, a power of two; bin 0 holds everything below.
    quiet: severity up to which an event is no stall, whatever the baseline saw. It gives an alphabet to
        vantages that have no events in BAU, such as reclaim (ours, DESIGN.md section 3).
    categorical: bins are categories without order (next hops), not severities; lowest and quiet mean nothing.
    """

    unit: str
    lowest: float
    quiet: float
    categorical: bool = False

    def bin_of(self, severity: float) -> int:
        """Index of the bin that holds ``severity`` (same rule as hist_slot() in bpf/common.h)."""
        if severity < self.lowest:
            return 0
        octave = int(np.floor(np.log2(severity / self.lowest)))
        step = int((severity / self.lowest / 2.0**octave - 1.0) * SUB_BINS)
        return min(1 + SUB_BINS * octave + step, HIST_BINS - 1)

    def lower_edges(self) -> FloatArray:
        """Lower edge of every bin in ``unit``, shape (HIST_BINS,); the first is 0."""
        index = np.arange(HIST_BINS - 1)
        edges = self.lowest * 2.0 ** (index // SUB_BINS) * (1.0 + (index % SUB_BINS) / SUB_BINS)
        return np.concatenate(([0.0], edges))


@dataclass(frozen=True, slots=True)
class Observation:
    """One vantage, one tick.

    vantage: registry name, e.g. ``"mm"``.
    scale: severity axis of ``histogram``.
    histogram: events of this tick per severity bin, shape (HIST_BINS,), non-negative.
    objects: touched objects -> number of events in this tick; keys live in the surface's one typed universe
        (kernel: workload key, data plane: destination prefix). None when this vantage cannot emit that type.
    checked, violated: causal and witness checks done and failed in this tick.
    fingerprints: flow or destination -> {fingerprint: events}; empty where the surface has none.
    degraded: empty, or why this observation is partial (a program that did not load, a blind witness).
    facts: named figures of this tick for people (mean latency, retransmissions, witness readings); the algebra
        does not read them.
    """

    vantage: str
    scale: Scale
    histogram: FloatArray
    objects: Mapping[int, float] | None = None
    checked: float = 0.0
    violated: float = 0.0
    fingerprints: Mapping[int, Mapping[int, float]] = field(default_factory=dict)
    degraded: str = ""
    facts: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.histogram.shape != (HIST_BINS,):
            raise ValueError(f"{self.vantage}: histogram has shape {self.histogram.shape}, not ({HIST_BINS},)")
        if not 0.0 <= self.violated <= self.checked:
            raise ValueError(f"{self.vantage}: {self.violated} of {self.checked} checks violated")

    @property
    def events(self) -> float:
        """Number of events in this tick."""
        return float(np.add.reduce(self.histogram))
