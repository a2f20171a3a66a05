# SPDX-License-Identifier: Apache-2.0
"""Which surface moved first: cross-correlation of innovations, with its lag and how sure that is (000 sec. 7.2).

    r(l) = corr(e_net(t), e_AI(t + l)),     |l| <= L,      tau_cross = the lag of the largest |r(l)|

Positive lags: the network is first. Each series is replaced by its own innovations (Haugh 1976; Box & Jenkins), because
memory in both smears a peak over many lags and makes peaks where there are none.

- *Is there a peak at all?* The largest |r| is held against that of series whose blocks are in random order, as in
  :func:`~.independence.scan_p_value`. Without a peak nobody leads.
- *Where is it?* Innovations are white, so ticks may be drawn with replacement: each draw has a peak, and the share
  of draws on one side of 0 is the confidence. At .95 and above that side leads; where .95 have their peak at 0 itself
  the surfaces move together within one tick; otherwise the order is open.

For a coupling that acts in events only, take the events' curve instead (:mod:`~.event_response`).
"""

from __future__ import annotations

import enum
from typing import NamedTuple

import numpy as np

from mvps.coherence.observation import FloatArray
from mvps.coupling.autoregression import effective_ticks, fit, innovations
from mvps.coupling.independence import LEAST_EFFECTIVE, scan_p_value

CONFIDENCE = 0.95
_DRAWS = 400


class Lead(enum.Enum):
    """Who moved first. NOBODY: no cross-correlation beyond chance. OPEN: there is one, its order is not settled."""

    NETWORK = "network"
    AI = "AI"
    TOGETHER = "together"
    OPEN = "open"
    NOBODY = "nobody"


class LeadLag(NamedTuple):
    """tau: lag of the peak in ticks, positive where the network is first; low, high: 95 % of the drawn peaks.

    peak: the correlation there. p_value: that there is a peak. network_first, ai_first: share of draws. curve:
    (2 L + 1,) r(l), [L] at lag 0.
    """

    lead: Lead
    tau: int
    low: int
    high: int
    peak: float
    p_value: float
    network_first: float
    ai_first: float
    curve: FloatArray


def lead_lag(net: FloatArray, ai: FloatArray, lags: int, level: float = 0.05, seed: int = 0) -> LeadLag:
    """Lead of two series (n,), evenly spaced, without gaps, of the same ticks; within ``lags`` ticks.

    level: significance asked of the peak. ValueError below 60 effective ticks.
    """
    n = len(net)
    if net.shape != ai.shape or net.ndim != 1:
        raise ValueError(f"two series of the same ticks are needed, not {net.shape} and {ai.shape}")
    if not 0 < lags < n // 8:
        raise ValueError(f"lags up to {lags} need at least {8 * lags + 8} ticks, got {n}")
    both = np.stack((net, ai), axis=1)
    model = fit(both)
    effective = float(effective_ticks(model, 1)[0, 0])
    if effective < LEAST_EFFECTIVE:
        raise ValueError(f"a lead needs {LEAST_EFFECTIVE:.0f} effective ticks, got {effective:.0f}: take more ticks")
    e = innovations(both, model)
    e = (e - e.mean(axis=0)) / e.std(axis=0)
    p_value = scan_p_value(e[:, :1], e[:, 1:], lags, seed)
    # products[t, l]: e_net(t) e_AI(t + l), for the t that have all lags inside the window.
    inside = np.arange(lags, n - lags)
    offsets = np.arange(-lags, lags + 1)
    products = e[inside, 0][:, None] * e[:, 1][inside[:, None] + offsets]
    curve = products.mean(axis=0)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(inside), np.full(len(inside), 1.0 / len(inside)), _DRAWS)
    peaks = offsets[np.argmax(np.abs(drawn @ products), axis=1)]
    tau = int(offsets[np.argmax(np.abs(curve))])
    low, high = np.quantile(peaks, (0.025, 0.975), method="nearest")
    network_first, ai_first = float((peaks > 0).mean()), float((peaks < 0).mean())
    lead = Lead.OPEN
    if p_value > level:
        lead = Lead.NOBODY
    elif network_first >= CONFIDENCE:
        lead = Lead.NETWORK
    elif ai_first >= CONFIDENCE:
        lead = Lead.AI
    elif 1.0 - network_first - ai_first >= CONFIDENCE:
        lead = Lead.TOGETHER
    peak = float(curve[tau + lags])
    return LeadLag(lead, tau, int(low), int(high), peak, p_value, network_first, ai_first, curve)
