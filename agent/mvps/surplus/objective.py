# SPDX-License-Identifier: Apache-2.0
"""What a candidate is worth and what it costs later: the terms of J = L - lambda Gamma (002 sec. 4.1-4.3, app. B.1).

    L(u)     = a1 (log p(u) - E_p log p) + a2 progress - a3 structure risk - a4 latency - a5 length
    Gamma(u) = b1 drift + b2 mode flip + b3 format debt + b4 iT + sum of routing costs

Every term depends on the candidate. In the text's pseudocode flips and debt do not, so that they cancel in the choice;
here the candidate's own mode is the latest of the history, and the debt is the one after the candidate. Terms are
shares in [0, 1] or differences of such; for log p that takes a scale, 10 nats (ours). In nats it drowns the others:
with the text's weights a token that certainly breaks the structure *gains* if it is likely.

Arrays are (n, k): requests by candidates; what belongs to a request is (n, 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mvps.coherence.observation import FloatArray
from mvps.surplus.trust_region import BoolArray

ModeArray = npt.NDArray[np.integer]

DEBT_REPAID = 0.2  # by one token of structure (app. B.1)
DEBT_RAISED = 0.2  # by a token that breaks the structure for certain (ours)
_LIKELIHOOD_SCALE = 10.0
_LEAST_LOG = -1e4
_CHATTER = 1.0
_TOO_SOON = 0.5
_LEAKAGE_SHARE = 0.5


@dataclass(frozen=True)
class ValueWeights:
    """Weights of L; the defaults are those of app. B.6.1."""

    likelihood: float = 1.0
    progress: float = 0.6
    structure_risk: float = 0.8
    latency: float = 0.3
    length: float = 0.2


@dataclass(frozen=True)
class DissipationWeights:
    """Weights of Gamma; the defaults are Gamma-Lite (app. B.6.1), which leaves iT out."""

    drift: float = 1.0
    mode_flip: float = 0.7
    format_debt: float = 0.6
    tension: float = 0.0
    routing: float = 1.0


class Standing(NamedTuple):
    """Where a window stands: cos theta, theta, phi and leakage."""

    cosine: FloatArray
    theta: FloatArray
    phi: FloatArray
    leakage: FloatArray


def likelihood_gain(log_p: FloatArray) -> FloatArray:
    """log p(u) less its mean under p, in units of 10 nats, not below -1; p normalised over the candidates."""
    # Where p is 0, any finite number stands for log p.
    mean = np.einsum("nk,nk->n", np.exp(log_p), np.maximum(log_p, _LEAST_LOG))
    gain: FloatArray = np.maximum((log_p - mean[:, None]) / _LIKELIHOOD_SCALE, -1.0)
    return gain


def progress(now: Standing, then: Standing) -> FloatArray:
    """Gain in alignment (cos theta) and in compliance (phi) by one step."""
    gained: FloatArray = (then.cosine - now.cosine) + (then.phi - now.phi)
    return gained


def drift(now: Standing, then: Standing) -> FloatArray:
    """Growth of the angle to the goal and half that of the leakage by one step; what shrinks does not count."""
    grown: FloatArray = np.maximum(then.theta - now.theta, 0.0)
    grown += _LEAKAGE_SHARE * np.maximum(then.leakage - now.leakage, 0.0)
    return grown


def mode_flip(
    mode: ModeArray, current: ModeArray, previous: ModeArray, since_flip: ModeArray, dwell: int
) -> FloatArray:
    """1 for going back to the mode before the current one (A, B, A), and 0.5 for changing within ``dwell`` ticks.

    mode: that of the candidate. current, previous: of the last two ticks. since_flip: ticks since the last change.
    """
    flips = mode != current
    back = flips & (mode == previous)
    cost: FloatArray = _CHATTER * back + _TOO_SOON * (flips & (since_flip < dwell))
    return cost


def format_debt(debt: FloatArray, risk: FloatArray, repairs: BoolArray) -> FloatArray:
    """The debt meter in [0, 1] after a candidate: raised by its risk, lowered by a token of structure."""
    after: FloatArray = np.minimum(np.maximum(debt + DEBT_RAISED * risk - DEBT_REPAID * repairs, 0.0), 1.0)
    return after


def saturating(cost: FloatArray, half: float) -> FloatArray:
    """A cost >= 0 as a share in [0, 1): .5 at ``half``."""
    share: FloatArray = cost / (cost + half)
    return share


def adaptive_routing(cost: FloatArray, ssi: float, crp: float) -> FloatArray:
    """Routing costs rho (modes, modes) under stress: times 1 + SSI + CRP (the text leaves g open: ours)."""
    raised: FloatArray = cost * (1.0 + ssi + crp)
    return raised


class Terms(NamedTuple):
    """The parts of J for every candidate (n, k), before their weights; None where nothing measures the part, or
    where no candidate changes the mode."""

    likelihood: FloatArray
    progress: FloatArray
    drift: FloatArray
    tension: FloatArray | None = None
    structure_risk: FloatArray | None = None
    format_debt: FloatArray | None = None
    mode_flip: FloatArray | None = None
    latency: FloatArray | None = None
    length: FloatArray | None = None
    routing: FloatArray | None = None

    def value(self, weights: ValueWeights) -> FloatArray:
        """L."""
        total = weights.likelihood * self.likelihood + weights.progress * self.progress
        for weight, part in (
            (weights.structure_risk, self.structure_risk),
            (weights.latency, self.latency),
            (weights.length, self.length),
        ):
            if part is not None and weight:
                total = total - weight * part
        return total

    def dissipation(self, weights: DissipationWeights) -> FloatArray:
        """Gamma."""
        total = weights.drift * self.drift
        for weight, part in (
            (weights.mode_flip, self.mode_flip),
            (weights.format_debt, self.format_debt),
            (weights.tension, self.tension),
            (weights.routing, self.routing),
        ):
            if part is not None and weight:
                total = total + weight * part
        return total
