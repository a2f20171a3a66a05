# SPDX-License-Identifier: Apache-2.0
"""One run of the closed loop: a bed, its calibration, the plan, and the record of all that was seen.

A record is one JSON object: what was injected when, every joint tick as the broker decided it, what the replicas and
the users counted, what the broker says of the coupling, and what the processes cost.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import grpc

from mvps.testbed import plan as plans
from mvps.testbed.answers import Arm
from mvps.testbed.bed import REPLICAS, Bed, BedError, Size, bed
from mvps.testbed.plan import Fault, Plan, Step
from mvps.v1 import stream_pb2

AXES: Final = ("net_c1", "net_c2", "net_c3", "ai_c1", "ai_c2")
_COUNTS: Final = ("users", "cold_users", "canaries", "cold_canaries", "queries", "hits")
_LONGEST_CALIBRATION_S: Final = 240.0


class StoppedError(RuntimeError):
    """The run was told to end."""


def run(
    arm: Arm, size: Size, plan: Plan, seed: int, say: Callable[[str], None], stop: threading.Event
) -> dict[str, Any]:
    """One run; the record. say: gets a line now and then. BedError if the bed does not come up, StoppedError once
    ``stop`` is set."""
    try:
        with tempfile.TemporaryDirectory(prefix="mvcl-") as name:
            return _whole(Path(name), arm, size, plan, seed, say, stop)
    except subprocess.CalledProcessError as error:
        raise BedError(f"{' '.join(map(str, error.cmd))}: {error.stderr or error.returncode}") from None
    except grpc.RpcError as error:
        raise BedError(f"the broker does not answer: {error}") from None


def _whole(
    directory: Path, arm: Arm, size: Size, plan: Plan, seed: int, say: Callable[[str], None], stop: threading.Event
) -> dict[str, Any]:
    begun = time.time()
    with bed(directory, arm, size, seed) as made:
        say(f"{arm.value}: up after {time.time() - begun:.0f} s")
        _calibrate(made, say, stop)
        calibrated = time.time()
        say(f"{arm.value}: calibrated after {calibrated - begun:.0f} s; {plan.length:.0f} s of injections follow")
        done = [_inject(made, step, calibrated, say, stop) for step in plan.steps]
        _until(made, calibrated + plan.length, stop)
        return _record(made, plan, seed, begun, calibrated, time.time(), done)


def _calibrate(made: Bed, say: Callable[[str], None], stop: threading.Event) -> None:
    deadline = time.time() + _LONGEST_CALIBRATION_S
    shown = 0.0
    while (state := made.service()).phase == stream_pb2.SERVICE_PHASE_CALIBRATING:
        made.check()
        if time.time() > deadline:
            raise BedError(
                f"no baseline in {_LONGEST_CALIBRATION_S:g} s: {state.calibrated_ticks} of {state.needed_ticks} ticks, "
                f"missing {dict(state.missing)} {state.problem}"
            )
        if time.time() - shown > 20.0:
            say(f"{made.arm.value}: calibrating, {state.calibrated_ticks} of {state.needed_ticks} joint ticks")
            shown = time.time()
        _until(made, time.time() + 0.5, stop)


def _until(made: Bed, moment: float, stop: threading.Event) -> None:
    while (left := moment - time.time()) > 0.0:
        if stop.wait(min(left, 1.0)):
            raise StoppedError
        made.check()


def _inject(made: Bed, step: Step, zero: float, say: Callable[[str], None], stop: threading.Event) -> dict[str, Any]:
    """Begin and end one step at its times; what really happened when."""
    _until(made, zero + step.begin, stop)
    begun = time.time()
    if step.fault in (Fault.NETWORK, Fault.WEAK):
        for name in REPLICAS:
            made.inject(name, {"capacity": round(plans.ROOMY * made.capacity)})
    if step.weight < plans.FULL_WEIGHT:
        made.route({name: step.weight if name in step.on else plans.FULL_WEIGHT for name in REPLICAS})
    if step.fault in (Fault.AI, Fault.WEAK):
        for name in step.on:
            made.inject(name, {"corrupt": 1.0 if step.fault is Fault.AI else plans.WEAK_CORRUPT})
    _until(made, zero + step.end, stop)
    made.route(dict.fromkeys(REPLICAS, plans.FULL_WEIGHT))
    for name in REPLICAS:
        made.inject(name, {"capacity": made.capacity, "corrupt": 0.0})
    ended = time.time()
    if step.fault is not Fault.EVENT:
        say(f"{made.arm.value}: {step.fault.name.lower()} on {', '.join(step.on) or 'nobody'}")
    return {
        "fault": step.fault.value,
        "on": list(step.on),
        "weight": step.weight,
        "block": step.block,
        "begin": begun,
        "end": ended,
    }


def _record(
    made: Bed, plan: Plan, seed: int, begun: float, calibrated: float, ended: float, done: list[dict[str, Any]]
) -> dict[str, Any]:
    state = made.service()
    ticks = [
        [
            round(one.tick_time_ns / 1e9, 3),
            *(round(one.axes[axis], 5) if axis in one.axes else None for axis in AXES),
            round(one.d2_net, 3),
            round(one.d2_ai, 3),
            round(one.d2_joint, 3),
            stream_pb2.ServicePhase.Name(one.phase).removeprefix("SERVICE_PHASE_"),
            stream_pb2.ServicePhase.Name(one.raw_phase).removeprefix("SERVICE_PHASE_"),
        ]
        for one in made.ticks()
    ]
    counts = {
        name: [[round(line["at"], 3), *(line[key] for key in _COUNTS)] for line in made.lines(name)]
        for name in REPLICAS
    }
    return {
        "arm": made.arm.value,
        "seed": seed,
        "begun": begun,
        "calibrated": calibrated,
        "ended": ended,
        "size": {key: getattr(made.size, key) for key in made.size.__slots__},
        "blocks": [[calibrated + begin, calibrated + end] for begin, end in plan.blocks],
        "injected": done,
        "axes": list(AXES),
        "ticks": ticks,
        "limits": [state.net.watch, state.ai.watch, state.joint.watch, state.joint.alarm],
        "counts": counts,
        "seated": {name: sum(at == name for at in made.users.values()) for name in REPLICAS},
        "users": made.lines("users")[-1],
        "snapshots": dict(made.joined()),
        "cpu_seconds": {name: round(seconds, 2) for name, seconds in made.cpu_seconds().items()},
        "host": {"load": os.getloadavg()[0], "cores": os.cpu_count()},
    }
