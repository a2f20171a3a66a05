# SPDX-License-Identifier: Apache-2.0
"""C_1 of a replica group: do the replicas answer alike in time? (001 sec. 8.1; in the Jensen-Shannon form, ours)

    C_1 = 1 - max over {time to first token, total time} of (JSD({p_i}) - count bias) / log2 min(N, A)

p_i is the law of replica i's latencies over labels relative to BAU, pooled over replicas: up to its median, its 90th
and 99th percentile, twice that, beyond, and *no answer*. A timeout, an error or an empty answer is an observation and
not a gap. Counts are few, hence the bias that ``coherence.axes`` takes off, and pseudo-counts of the BAU law.

It compares replicas with each other: a load that slows all of them alike is no incoherence. ``own_distances`` compares
each with BAU, and there it shows.

Latencies include the network between the vantage and the replica. Take its round trip off first (``net_of``), or what
C_1 says of the replicas is said of the route, and counted twice where both surfaces meet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mvps.coherence.alphabet import distribution
from mvps.coherence.axes import jsd, jsd_bias, own_distance
from mvps.coherence.observation import FloatArray

LEAST_LATENCIES = 200
PSEUDO_COUNT = 5.0
_QUANTILES = (0.5, 0.9, 0.99)


class LatencyScale(NamedTuple):
    """Upper edges of the labels in seconds, ascending, and the BAU law over the A = len(edges) + 2 labels."""

    edges: tuple[float, ...]
    law: tuple[float, ...]

    def counts(self, latencies: FloatArray) -> FloatArray:
        """Label counts (A,) of latencies in seconds; NaN and infinity are answers that did not come.

        ValueError for negative ones.
        """
        came = latencies[np.isfinite(latencies)]
        if len(came) and came.min() < 0.0:
            raise ValueError("a latency is negative: take times from a monotonic clock")
        labels = np.searchsorted(self.edges, came, side="left")
        counts = np.bincount(labels, minlength=len(self.edges) + 2).astype(np.float64)
        counts[-1] = latencies.size - len(came)
        return counts


class NetOf(NamedTuple):
    """Latencies without the network's round trip, and how many were shorter than it and taken as 0."""

    latencies: FloatArray
    clipped: int


def latency_scale(bau: FloatArray) -> LatencyScale:
    """Scale from BAU latencies of all replicas together, in seconds, failures as NaN. ValueError below 200 answers."""
    came = bau[np.isfinite(bau)]
    if len(came) < LEAST_LATENCIES:
        raise ValueError(f"a latency scale needs at least {LEAST_LATENCIES} answers in BAU, got {len(came)}")
    quantiles = np.quantile(came, _QUANTILES).tolist()
    edges = sorted({*quantiles, 2.0 * quantiles[-1]})  # equal quantiles make one label
    counts = LatencyScale(tuple(edges), ()).counts(bau)
    return LatencyScale(tuple(edges), tuple((counts / counts.sum()).tolist()))


def net_of(latencies: FloatArray, round_trip: float) -> NetOf:
    """Latencies less the network's round trip in seconds; those shorter than it are 0, and counted."""
    if not 0.0 <= round_trip < np.inf:
        raise ValueError(f"a round trip is finite and not negative, not {round_trip}")
    net = latencies - round_trip
    return NetOf(np.where(net < 0.0, 0.0, net), int((net < 0.0).sum()))


def latency_coherence(counts: FloatArray, scale: LatencyScale, pseudo: float = PSEUDO_COUNT) -> float | None:
    """1 - (JSD - count bias) / log2 min(N, A) over the replicas that were asked, clipped to [0, 1].

    counts: (N, A) from ``scale.counts``; a row of zeros is a replica that was not asked. None below two.
    """
    asked = counts[counts.sum(axis=1) > 0.0]
    if len(asked) < 2:
        return None
    p = distribution(asked, np.array(scale.law), pseudo)
    excess = float(jsd(p)) - float(jsd_bias(p, asked.sum(axis=1), pseudo))
    return min(max(1.0 - excess / float(np.log2(min(p.shape))), 0.0), 1.0)


def c1_latency(counts: Sequence[FloatArray], scales: Sequence[LatencyScale]) -> float | None:
    """C_1: the smallest coherence of several latencies (first token, total), each with its scale; None without any."""
    found = [latency_coherence(table, scale) for table, scale in zip(counts, scales, strict=True)]
    return min((value for value in found if value is not None), default=None)


def own_distances(counts: FloatArray, scale: LatencyScale, pseudo: float = PSEUDO_COUNT) -> FloatArray:
    """JSD of every replica to the BAU law in bits, less the count bias: about 0 in BAU, (N,); NaN if not asked."""
    law = np.array(scale.law)
    events = counts.sum(axis=1)
    found = own_distance(distribution(counts, law, pseudo), events, np.broadcast_to(law, counts.shape), pseudo)
    return np.where(events > 0.0, found, np.nan)
