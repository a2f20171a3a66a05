# SPDX-License-Identifier: Apache-2.0
"""Records of runs that nobody ran: ticks with known faults, counts with known misses, to check the scoring on."""

from __future__ import annotations

from typing import Any

import numpy as np

from mvps.coupling.distance import fit_baseline
from mvps.testbed.answers import Arm
from mvps.testbed.bed import REPLICAS
from mvps.testbed.plan import FULL_WEIGHT, Fault, plan, truth

TICK = 0.25
CALIBRATION = 120
ZERO = 1000.0


def record(arm: Arm, seed: int, lag: int = 2, blocks: int = 1, events: int = 10, sweeps: int = 1) -> dict[str, Any]:
    """In the coupled arm each event takes C_2^W2 down by .4 ``lag`` ticks after the network moved."""
    rng = np.random.default_rng([seed, len(arm.value)])
    made = plan(REPLICAS, seed, blocks, events, sweeps)
    before = CALIBRATION * TICK
    times = np.arange(ZERO - before, ZERO + made.length, TICK)
    z = np.clip(0.97 + 0.01 * rng.standard_normal((len(times), 5)), 0.0, 1.0)
    z[:, 0] = z[:, 2] = 1.0
    phases = ["CALIBRATING"] * CALIBRATION + ["JOINT_BAU"] * (len(times) - CALIBRATION)
    injected = []
    for step in made.steps:
        here = (times >= ZERO + step.begin) & (times < ZERO + step.end)
        if step.weight < FULL_WEIGHT and step.fault is not Fault.WEAK:
            z[here, 1] -= 0.1
            z[here, 2] = 0.75
        if arm is Arm.COUPLED and step.fault in (Fault.EVENT, Fault.CASCADE):
            z[np.roll(here, lag), 4] -= 0.4
        if step.fault is Fault.AI:
            z[here, 4] -= 0.4
        for at in np.flatnonzero(here):
            if step.fault is not Fault.EVENT:
                phases[at] = truth(step.fault, arm)[0].name
        injected.append(
            {
                "fault": step.fault.value,
                "on": list(step.on),
                "weight": step.weight,
                "block": step.block,
                "begin": ZERO + step.begin,
                "end": ZERO + step.end,
            }
        )
    live = np.stack(fit_baseline(z[:CALIBRATION], 3).distances(z), axis=1)
    # A question per tick and replica; in events each replica that keeps its route gets another, which is cold.
    counts = {}
    for number, name in enumerate(REPLICAS):
        rows, users, cold = [], 0, 0
        for time in times:
            moved = any(
                one["begin"] <= time < one["end"] and one["weight"] < FULL_WEIGHT and name not in one["on"]
                for one in injected
            )
            users, cold = users + 1 + moved, cold + moved
            rows.append([float(time) + 0.01 * number, users, cold, users, 0, 500 * users, 500 * (users - cold)])
        counts[name] = rows
    return {
        "arm": arm.value,
        "seed": seed,
        "begun": float(times[0]) - 10.0,
        "calibrated": ZERO,
        "ended": float(times[-1]),
        "size": {"tick_s": TICK, "calibration": CALIBRATION},
        "blocks": [[ZERO + begin, ZERO + end] for begin, end in made.blocks],
        "injected": injected,
        "axes": ["net_c1", "net_c2", "net_c3", "ai_c1", "ai_c2"],
        "ticks": [
            [float(time), *row, *d2, phase, phase]
            for time, row, d2, phase in zip(times, z.tolist(), live.tolist(), phases, strict=True)
        ],
        "limits": [1.0, 1.0, 1.0, 1.0],
        "counts": counts,
        "seated": dict.fromkeys(REPLICAS, 12),
        "users": {"at": 0.0, "answered": 1000, "reset": 2},
        "cpu_seconds": {"agent": 3.0},
        "host": {"load": 1.0, "cores": 2},
    }
