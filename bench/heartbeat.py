# SPDX-License-Identifier: Apache-2.0
"""What heartbeats save in bytes, and what they cost a broker that decides from the distributions it was sent.

Recorded real ticks (faults, benign load changes, quiet) go through the agent's model and composer; each snapshot is
trimmed for several epsilons. A broker that knows only what travelled keeps the distributions that stand and recomputes
C_2, S, D^2 and the phase from them (:func:`mvps.coherence.model.recompute`), with the agent's hysteresis. The cost is
how many ticks later than from whole snapshots it leaves BAU in a fault, episodes it misses, and false alarms it adds.
The agent's own decision is made before anything is left out and cannot be late.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench.detect import RECOVERY_TICKS, SURFACES, WITHIN, course, hysteresis
from bench.harness import ROOT, Result
from mvps.coherence.baseline import ModelSettings
from mvps.coherence.model import SurfaceModel, recompute
from mvps.coherence.phase import Phase
from mvps.daemon.heartbeat import Heartbeat
from mvps.daemon.lattice import Tick as LatticeTick
from mvps.daemon.snapshot import Composer
from mvps.trust.keys import Kind, ObjectHasher, SecretKey
from mvps.trust.limits import TAG_BYTES
from mvps.trust.seal import FIXED_HEADER_BYTES
from mvps.v1 import snapshot_pb2 as pb

SUMMARY = "bytes per vantage and tick with heartbeats, and detection delay at a broker that decides from them"
EPSILONS = (0.0, 0.01, 0.02, 0.05, 0.1)
DEFAULT = 0.02  # what the manual recommends
FULL_EVERY = 60
BAR_DELAY = 0.0  # ticks
_VANTAGE = "host"
_SEALED = FIXED_HEADER_BYTES + len(_VANTAGE) + TAG_BYTES
_TICK_NS = 500_000_000
_HASHER = ObjectHasher(SecretKey(bytes(range(32)), Kind.HOST))


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--recording", type=Path, default=ROOT / "bench/records/2026-11-20.jsonl.gz")
    parser.add_argument("--ticks", type=int, default=0, help="evaluate so many (default 1500, with --full all)")


@dataclass
class Side:
    """One epsilon: its sender, and the broker that sees only what was sent."""

    heartbeat: Heartbeat
    standing: dict[tuple[str, str], bytes] = field(default_factory=dict)
    body_bytes: list[int] = field(default_factory=list)
    unchanged: int = 0
    observations: int = 0
    over: dict[str, list[bool]] = field(default_factory=lambda: {surface: [] for surface in SURFACES})
    off_c2: list[float] = field(default_factory=list)
    off_s: list[float] = field(default_factory=list)


def _see(side: Side, snapshot: pb.Snapshot, models: Mapping[str, SurfaceModel], serial: int) -> None:
    sent = side.heartbeat.trim(snapshot)
    side.body_bytes.append(sent.ByteSize() + _SEALED)
    for surface in sent.surfaces:
        baseline = models[surface.name].baseline
        for observation in surface.observations:
            side.observations += 1
            side.unchanged += observation.unchanged_ticks > 0
            if observation.distribution:
                side.standing[surface.name, observation.vantage] = observation.distribution
        if baseline is None or not surface.HasField("decision"):
            side.over[surface.name].append(False)
            continue
        seen = [o for o in surface.observations if (surface.name, o.vantage) in side.standing]
        seen = [o for o in seen if o.vantage in baseline.vantages]
        vector, decision = recompute(
            baseline,
            surface.name,
            serial,
            surface.vector.c1 if surface.vector.HasField("c1") else None,
            surface.vector.c3 if surface.vector.HasField("c3") else None,
            {o.vantage: np.frombuffer(side.standing[surface.name, o.vantage], dtype="<f4") for o in seen},
            {o.vantage: o.events for o in seen},
        )
        side.over[surface.name].append(decision.raw_phase >= Phase.ALARM)
        if surface.vector.HasField("c2") and vector.c2 is not None:
            side.off_c2.append(abs(vector.c2 - surface.vector.c2))
        side.off_s.append(abs(vector.s - surface.vector.s))


def _replay(path: Path, limit: int) -> tuple[dict[float, Side], list[tuple[Mapping[str, Any], int]], list[bool]]:
    """(a side per epsilon, what was going on in each tick and since when, which ticks were BAU)."""
    models = {surface: SurfaceModel(surface, names, ModelSettings()) for surface, names in SURFACES.items()}
    composer = Composer(_VANTAGE, _TICK_NS, SURFACES, _HASHER)
    sides = {epsilon: Side(Heartbeat(epsilon, FULL_EVERY)) for epsilon in EPSILONS}
    seen: list[tuple[Mapping[str, Any], int]] = []
    calm: list[bool] = []
    for serial, (what, since, entry) in enumerate(course(path), 1):
        results = {
            surface: models[surface].step(serial, {n: entry.observations[n] for n in names if n in entry.observations})
            for surface, names in SURFACES.items()
        }
        tick = LatticeTick(serial, serial, serial * _TICK_NS, 0, _TICK_NS, 0)
        progress = {name: model.progress for name, model in models.items()}
        snapshot = composer.compose(tick, results, progress, entry.observations, {}, "empirical")
        if not all(surface.HasField("decision") for surface in snapshot.surfaces):
            continue
        for side in sides.values():
            _see(side, snapshot, models, serial)
        seen.append((what, since))
        calm.append(all(surface.decision.raw_phase == pb.PHASE_BAU for surface in snapshot.surfaces))
        if limit and len(seen) >= limit:
            break
    return sides, seen, calm


def _alarmed(side: Side) -> list[bool]:
    return [any(states) for states in zip(*(hysteresis(over) for over in side.over.values()), strict=True)]


def _first_alarms(alarmed: list[bool], ticks: list[tuple[Mapping[str, Any], int]]) -> dict[int, int | None]:
    """Index of each fault's first tick -> ticks until the alarm, None if it was missed. Judgeable faults only."""
    found: dict[int, int | None] = {}
    begins = [i for i, (what, since) in enumerate(ticks) if since == 1 and "fault" in what]
    for begin in begins:
        if any(alarmed[max(begin - 1, 0) : begin]):
            continue  # still in alarm from before
        window = alarmed[begin : begin + WITHIN]
        found[begin] = window.index(True) + 1 if any(window) else None
    return found


def _false_alarms(alarmed: list[bool], ticks: list[tuple[Mapping[str, Any], int]]) -> int:
    calm, count = RECOVERY_TICKS, 0
    for at, (what, _) in enumerate(ticks):
        calm = 0 if what else calm + 1
        count += calm > RECOVERY_TICKS and alarmed[at] and not alarmed[at - 1]
    return count


def run(given: argparse.Namespace) -> Result:
    limit = given.ticks or (0 if given.full else 1500)
    sides, ticks, calm = _replay(given.recording, limit)
    whole = sides[0.0]
    reference = _first_alarms(_alarmed(whole), ticks)
    table: dict[str, Any] = {}
    for epsilon, side in sides.items():
        alarmed = _alarmed(side)
        firsts = _first_alarms(alarmed, ticks)
        delays = [
            now - before
            for begin, before in reference.items()
            if before is not None and (now := firsts.get(begin)) is not None
        ]
        lost = sum(before is not None and firsts.get(begin) is None for begin, before in reference.items())
        sizes, quiet = np.array(side.body_bytes), np.array(calm)
        table[f"{epsilon:g}"] = {
            "bytes": round(float(sizes.mean()), 1),
            "bytes_in_bau": round(float(sizes[quiet].mean()), 1),
            "share_of_whole": round(float(sizes.mean()) / float(np.mean(whole.body_bytes)), 3),
            "unchanged": round(side.unchanged / max(side.observations, 1), 3),
            "delay_ticks_mean": round(float(np.mean(delays)), 4) if delays else None,
            "delay_ticks_most": max(delays, default=None),
            "missed": lost,
            "false_alarms": _false_alarms(alarmed, ticks),
            "c2_off_p99": round(float(np.quantile(side.off_c2, 0.99)), 5),
            "s_off_p99": round(float(np.quantile(side.off_s, 0.99)), 4),
        }
        print(f"epsilon {epsilon:g}: {table[f'{epsilon:g}']}")
    chosen = table[f"{DEFAULT:g}"]
    faults = sum(value is not None for value in reference.values())
    print(f"{len(ticks)} ticks, {faults} faults that whole snapshots catch, {sum(calm)} ticks in BAU")
    worst = chosen["delay_ticks_most"]
    holds = faults > 0 and worst is not None and worst <= BAR_DELAY and chosen["missed"] == 0
    holds = holds and chosen["false_alarms"] <= table["0"]["false_alarms"]
    details = {
        "ticks": len(ticks),
        "faults": faults,
        "epsilon": DEFAULT,
        "full_every": FULL_EVERY,
        "bytes": chosen["bytes"],
        "bytes_whole": table["0"]["bytes"],
        "by_epsilon": table,
    }
    return Result(float(worst if worst is not None else np.nan), "ticks later, worst fault", BAR_DELAY, holds, details)
