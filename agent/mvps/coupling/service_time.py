# SPDX-License-Identifier: Apache-2.0
"""C_1^AI without the network in it: how long replicas take for an answer, net of the round trips it needs.

The sources call C_1^AI the causal axis of the AI surface and leave open what it measures. Made of latencies as clients
see them it would contain the network's round trip, and the two surfaces would correlate in every deployment, coupled
or not. So (ours), with m the round trips that one answer takes on an open connection:

    service time = latency - m RTT,     C_1^AI = share of answers with  0 <= service time <= limit

An answer that arrives sooner than its round trips is impossible: the RTT is stale or somebody else answered. The limit
is a quantile of the replica's own BAU. What remains of the network in it (retransmissions, a send queue) does not show
in the RTT; the placebo arm of a trial shows how much that is.
"""

from __future__ import annotations

import numpy as np

from mvps.coherence.observation import FloatArray

LIMIT_LEVEL = 0.99
LEAST_ANSWERS = 100


def service_time(latency: FloatArray, rtt: FloatArray, round_trips: float = 1.0) -> FloatArray:
    """latency - round_trips * rtt, any one unit of time; NaN where either is unknown. Negative values are kept."""
    if round_trips < 0.0:
        raise ValueError(f"an answer cannot take {round_trips} round trips")
    net: FloatArray = np.asarray(latency, dtype=np.float64) - round_trips * np.asarray(rtt, dtype=np.float64)
    return net


def bau_limit(service: FloatArray, level: float = LIMIT_LEVEL) -> float:
    """Service time that a share ``level`` of BAU answers does not exceed. ValueError below 100 known answers."""
    known = service[np.isfinite(service)]
    if len(known) < LEAST_ANSWERS:
        raise ValueError(f"a limit needs {LEAST_ANSWERS} timed answers in BAU, got {len(known)}")
    return float(np.quantile(known, level))


def c1_ai(service: FloatArray, limit: float) -> float | None:
    """C_1^AI of one tick's answers; None if none was timed."""
    known = service[~np.isnan(service)]
    if not len(known):
        return None
    return float(((known >= 0.0) & (known <= limit)).mean())
