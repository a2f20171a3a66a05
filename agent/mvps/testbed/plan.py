# SPDX-License-Identifier: Apache-2.0
"""What is injected when: the ground truth of a run. Pure; times in seconds from the end of calibration.

First *events*: hops are withdrawn, or lose some of their weight, and come back, at irregular times, caches as they are.
From them come the certificate of coupling, the drift transfer and the lags. Then *sweeps*: each of the five phases
once, in random order.

    0 nothing   no change
    1 network   hops withdrawn, caches so large that every context stays warm
    2 AI        one replica serves another model; routes stay
    3 weak      a hop's weight drops, one replica's model loses some words; caches large, so that each stays weak
    4 cascade   hops withdrawn, caches as they are: what moves thrashes the caches of the others

1 and 4 are the same change of routes; the cache alone tells them apart. All arms run the same plan.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Sequence
from typing import Final, NamedTuple

from mvps.coupling.phases import ICPhase
from mvps.testbed.answers import Arm

EVENT_S: Final = 2.0
LEAST_GAP_S: Final = 2.5
MEAN_GAP_S: Final = 4.0
HOLD_S: Final = 5.0
RECOVER_S: Final = 6.0
WITHDRAWN: Final = 2
ROOMY: Final = 4.0
FULL_WEIGHT: Final = 64
WEAK_WEIGHT: Final = 24
WEAK_CORRUPT: Final = 0.06
_EVENT_WEIGHTS: Final = (0, 0, 16, 32, 48)


class Fault(enum.Enum):
    """What a sweep injects; EVENT is a short withdrawal outside the sweeps."""

    EVENT = "event"
    NOTHING = "0"
    NETWORK = "1"
    AI = "2"
    WEAK = "3"
    CASCADE = "4"


SWEEP: Final = (Fault.NOTHING, Fault.NETWORK, Fault.AI, Fault.WEAK, Fault.CASCADE)


class Step(NamedTuple):
    """One injection. begin, end: seconds. on: replicas concerned: whose hop changes, or who serves another model.
    weight: of those hops, 0 for withdrawn; FULL_WEIGHT where routes stay. block: of events, or the sweep it is in."""

    fault: Fault
    begin: float
    end: float
    on: tuple[str, ...]
    weight: int
    block: int


class Plan(NamedTuple):
    """steps: in order of time. blocks: (begin, end) of each stretch of events. length: of all, seconds."""

    steps: tuple[Step, ...]
    blocks: tuple[tuple[float, float], ...]
    length: float


def plan(replicas: Sequence[str], seed: int, blocks: int, events: int, sweeps: int) -> Plan:
    """``blocks`` stretches of ``events`` each, then ``sweeps``. ValueError unless there is something of either."""
    if min(blocks, events, sweeps) < 0 or not (blocks * events or sweeps):
        raise ValueError("a plan needs events or sweeps")
    draw = random.Random(seed)
    now = 3.0
    steps: list[Step] = []
    edges = []
    for block in range(blocks if events else 0):
        begin = now
        for _ in range(events):
            now += LEAST_GAP_S + draw.expovariate(1.0 / (MEAN_GAP_S - LEAST_GAP_S))
            on = tuple(sorted(draw.sample(list(replicas), draw.randint(1, len(replicas) - 1))))
            weight = draw.choice(_EVENT_WEIGHTS)
            steps.append(Step(Fault.EVENT, now, now + EVENT_S, on, weight, block))
            now += EVENT_S
        now += LEAST_GAP_S
        edges.append((begin, now))
    for sweep in range(sweeps):
        for fault in draw.sample(SWEEP, len(SWEEP)):
            number = {Fault.NETWORK: WITHDRAWN, Fault.CASCADE: WITHDRAWN, Fault.NOTHING: 0}.get(fault, 1)
            on = tuple(sorted(draw.sample(list(replicas), number)))
            weight = {Fault.NETWORK: 0, Fault.CASCADE: 0, Fault.WEAK: WEAK_WEIGHT}.get(fault, FULL_WEIGHT)
            steps.append(Step(fault, now, now + HOLD_S, on, weight, sweep))
            now += HOLD_S + RECOVER_S
    return Plan(tuple(steps), tuple(edges), now)


def truth(fault: Fault, arm: Arm) -> tuple[ICPhase, ...]:
    """Phases that are right for what was injected. Where answers and latencies do not depend on the cache, a cascade is
    a network event."""
    if fault is Fault.CASCADE and arm is Arm.PLACEBO:
        fault = Fault.NETWORK
    return {
        Fault.NOTHING: (ICPhase.JOINT_BAU,),
        Fault.NETWORK: (ICPhase.NET_LEADS,),
        Fault.AI: (ICPhase.AI_LEADS,),
        Fault.WEAK: (ICPhase.COUPLED_SUM, ICPhase.COUPLED),
        Fault.CASCADE: (ICPhase.CASCADING,),
    }[fault]
