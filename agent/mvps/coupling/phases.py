# SPDX-License-Identifier: Apache-2.0
"""The Infrastructure-Cognitive phases 0 to 4 as a total function (000 sec. 4.2, 001 sec. 20.2).

With W a surface at or over its WATCH limit and the joint distance below WATCH, in WATCH or in ALARM:

    net  AI   joint            phase            source
    -    -    below WATCH      0  JOINT_BAU     text
    -    -    WATCH .. sum     3a COUPLED_SUM   text; split ours
    -    -    sum and above    3b COUPLED       text; split ours
    W    -    any              1  NET_LEADS     text, where a drift is predicted; ours, where none is
    -    W    any              2  AI_LEADS      text
    W    W    ALARM            4  CASCADING     text
    W    W    below ALARM      1 or 2           ours: who is farther over its own limit; the network where equal
    a distance missing         INCOMPLETE       ours: neither well nor ill

The text leaves the fourth row without a label where the predicted change is not above 0, which for its formula is
always, and the seventh row altogether. Its Phase 0 and the others do not overlap as long as "both surfaces in BAU" is
read as part of Phase 0.

**Phase 3 is two phases** (ours). Two surfaces below their own limits sum to as much as 7.81 + 7.81 = 15.63, and 12.59
is less: without any coupling quiet ticks are in Phase 3 now and then. From the sum of the limits on (3b) the sum cannot
explain the tick and the cross block is needed; below (3a) it may.

**Hysteresis** (ours). The settled phase is left when none of the last K labels is it. The new one is the most frequent
of them, the latest where equal; JOINT_BAU only if all of them are.
"""

from __future__ import annotations

import enum
import math
from collections import Counter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mvps.coherence.phase import HYSTERESIS_TICKS
from mvps.coupling.distance import Distances, Limits


class ICPhase(enum.Enum):
    """Infrastructure-Cognitive phase. The value is the text's number; a for what the sum explains."""

    INCOMPLETE = "-"
    JOINT_BAU = "0"
    NET_LEADS = "1"
    AI_LEADS = "2"
    COUPLED_SUM = "3a"
    COUPLED = "3b"
    CASCADING = "4"


PHASES = tuple(ICPhase)


def phase_codes(distances: Distances, limits: Limits) -> NDArray[np.intp]:
    """Index into :data:`PHASES` of every tick's phase (T,)."""
    net, ai = distances.net >= limits.net, distances.ai >= limits.ai
    missing = np.isnan(distances.net) | np.isnan(distances.ai) | np.isnan(distances.joint)
    network_farther = distances.net * limits.ai >= distances.ai * limits.net
    cases = (
        (missing, ICPhase.INCOMPLETE),
        (net & ai & (distances.joint >= limits.joint_alarm), ICPhase.CASCADING),
        (net & (~ai | network_farther), ICPhase.NET_LEADS),
        (ai, ICPhase.AI_LEADS),
        (distances.joint >= limits.sum, ICPhase.COUPLED),
        (distances.joint >= limits.joint, ICPhase.COUPLED_SUM),
    )
    codes = [PHASES.index(phase) for _, phase in cases]
    found: NDArray[np.intp] = np.select([case for case, _ in cases], codes, PHASES.index(ICPhase.JOINT_BAU))
    return found


def classify(net: float, ai: float, joint: float, limits: Limits) -> ICPhase:
    """Phase of one tick; NaN is a distance that is missing."""
    one = Distances(*(np.array([float(value)]) for value in (net, ai, joint)))
    return PHASES[int(phase_codes(one, limits)[0])]


class Settled(NamedTuple):
    """The settled phase and the last raw ones, newest last."""

    phase: ICPhase = ICPhase.JOINT_BAU
    recent: tuple[ICPhase, ...] = ()

    def step(self, raw: ICPhase, ticks: int = HYSTERESIS_TICKS) -> Settled:
        """State after one more raw phase."""
        recent = (*self.recent, raw)[-ticks:]
        if len(recent) < ticks or self.phase in recent:
            return Settled(self.phase, recent)
        unwell = [phase for phase in recent if phase is not ICPhase.JOINT_BAU]
        if not unwell:
            return Settled(ICPhase.JOINT_BAU, recent)
        count = Counter(unwell)
        most = max(count.values())
        return Settled(next(phase for phase in reversed(unwell) if count[phase] == most), recent)


def advice(phase: ICPhase, predicted_drop: float = math.nan) -> str:
    """What the operator should do. predicted_drop: fall of C_2^W2 that the routing shift predicts, NaN if unknown."""
    if phase is not ICPhase.NET_LEADS:
        return _ADVICE[phase]
    if math.isnan(predicted_drop):
        return (
            "The network deviates, the AI surface does not yet. What follows is not predicted, for want of routing "
            "shares or a calibrated drift transfer: compare request shares now with those before."
        )
    if predicted_drop <= 0.0:
        return (
            "The network deviates, and no request changed its replica: a network event only. No cache goes cold; "
            "repair the network."
        )
    return (
        f"The network deviates first, and C_2^W2 is about to fall by {predicted_drop:.2f}: pre-warm the KV caches of "
        "the replicas that gained requests, or put the routes back, before the answers change."
    )


_ADVICE = {
    ICPhase.INCOMPLETE: "A surface is missing: see that its vantage runs and that its clock is right.",
    ICPhase.JOINT_BAU: "Nothing to do.",
    ICPhase.AI_LEADS: (
        "The AI surface deviates without the network: check GPU memory, the last change of weights or of the engine, "
        "and the replicas against each other; drain the one that differs."
    ),
    ICPhase.COUPLED_SUM: (
        "Both surfaces deviate a little, neither alone enough, and their sum explains it. Watch; quiet ticks are here "
        "now and then."
    ),
    ICPhase.COUPLED: (
        "Neither surface is beyond its limit, but they deviate against each other as they never do in BAU. Look at "
        "routes, request shares and cache hit rates of the last minutes, and hold back deployments on both sides."
    ),
    ICPhase.CASCADING: (
        "Network and AI surface deviate together. Stop what moves routes, put the last change back, drain the worst "
        "replica, and pre-warm before traffic returns."
    ),
}
