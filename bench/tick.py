# SPDX-License-Identifier: Apache-2.0
"""How long after its lattice point a tick's snapshot is sealed, at rest and while the disk is saturated.

The real daemon at 20 Hz with all vantages, calibrated, sealing and streaming to a broker process on the same host. The
sample of a tick is the time stamp in its seal's header less the lattice point, plus the measured time of one seal (the
stamp is taken just before the tag is computed). A lattice point without a snapshot counts as a whole period late.
Percentiles are exact. The agent's own histogram, which ends its clock after the snapshot is handed over, is the check.
"""

from __future__ import annotations

import argparse
import statistics
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.agent import BACKGROUND_RATE, RunningAgent, scheduling, site, standing_load
from bench.harness import Result, need_root
from mvps.trust.seal import HmacKey, Purpose, Sealer

SUMMARY = "tick boundary to sealed snapshot, p99, at rest and under disk saturation"
BAR_MS = 5.0
TICK_MS = 50
_COLLECT_S = 20.0  # the agent remembers about a thousand snapshots


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=0.0, help="per phase (default 20, with --full 180)")


def percentile(ordered: Sequence[float], share: float) -> float:
    """Smallest value that at least ``share`` of the sorted values do not exceed."""
    return ordered[max(-(-len(ordered) * round(share * 1000) // 1000) - 1, 0)]


def _metrics(agent: RunningAgent) -> dict[str, float]:
    """Every sample the agent exposes, by its name and labels."""
    with urllib.request.urlopen(f"http://{agent.metrics}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


def _tick_thread(agent: RunningAgent) -> tuple[int, int]:
    """Nanoseconds the agent's main thread ran, and waited for a CPU although it could run."""
    ran, waited, _ = Path(f"/proc/{agent.pid}/task/{agent.pid}/schedstat").read_text().split()
    return int(ran), int(waited)


def _device_busy_ms() -> dict[str, int]:
    """Milliseconds with at least one request in flight, by block device."""
    lines = [line.split() for line in Path("/proc/diskstats").read_text().splitlines()]
    return {line[2]: int(line[12]) for line in lines}


def _seal_ms(size: int) -> float:
    """Median time to seal a body of this size."""
    counter = iter(range(1 << 30))
    sealer = Sealer(HmacKey(bytes(range(32)), bytes(8)), "bench", Purpose.SNAPSHOT, lambda _: next(counter), epoch_id=1)
    body, taken = b"\0" * size, []
    for _ in range(500):
        begun = time.perf_counter_ns()
        sealer.seal(body, 1)
        taken.append(time.perf_counter_ns() - begun)
    return statistics.median(taken) / 1e6


def phase(agent: RunningAgent, seconds: float) -> dict[str, Any]:
    """Samples of all ticks of the next ``seconds``."""
    sealed_ns: dict[int, int] = {}
    sizes: list[int] = []
    first = time.time_ns() // (TICK_MS * 1_000_000) + 1
    before, ran, busy, begun = _metrics(agent), _tick_thread(agent), _device_busy_ms(), time.monotonic()
    while (left := begun + seconds - time.monotonic()) > 0:
        time.sleep(min(left, _COLLECT_S))
        for record in agent.records():
            if record.tick >= first:
                sealed_ns[record.tick] = record.sealed_ns
                sizes.append(record.bytes)
    busy_after, elapsed_ms = _device_busy_ms(), (time.monotonic() - begun) * 1e3
    ran_after, after = _tick_thread(agent), _metrics(agent)
    grown = {name: value - before.get(name, 0.0) for name, value in after.items()}
    worked = max(grown["mvps_sealed_after_seconds_count"], 1.0)
    seal_ms = _seal_ms(round(statistics.median(sizes)))
    after_ms = [(at - tick * TICK_MS * 1_000_000) / 1e6 + seal_ms for tick, at in sealed_ns.items()]
    missing = max(sealed_ns) - first + 1 - len(sealed_ns)
    ordered = sorted(after_ms + [float(TICK_MS)] * missing)
    return {
        "ticks": len(ordered),
        "missing": missing,
        "p50_ms": round(percentile(ordered, 0.5), 3),
        "p99_ms": round(percentile(ordered, 0.99), 3),
        "max_ms": round(ordered[-1], 3),
        "over_bar": sum(value > BAR_MS for value in ordered),
        "over_bar_by_the_agent": round(worked - grown[f'mvps_sealed_after_seconds_bucket{{le="{BAR_MS / 1000}"}}']),
        "began_after_mean_ms": round(1e3 * grown["mvps_tick_lateness_seconds_sum"] / worked, 3),
        "cpu_ms_per_tick": round((ran_after[0] - ran[0]) / worked / 1e6, 3),
        "waited_for_cpu_ms_per_tick": round((ran_after[1] - ran[1]) / worked / 1e6, 3),
        "seal_ms": round(seal_ms, 4),
        "snapshot_bytes": round(statistics.median(sizes)),
        "disk_busy": round(max((busy_after[d] - busy.get(d, 0)) / elapsed_ms for d in busy_after), 2),
    }


def run(given: argparse.Namespace) -> Result:
    need_root()
    seconds = given.seconds or (180.0 if given.full else 20.0)
    phases: dict[str, dict[str, Any]] = {}
    with standing_load() as host, site() as (directory, broker), RunningAgent(directory, broker, TICK_MS) as agent:
        agent.first_record()
        agent.wait_until_decided()
        phases["at rest"] = phase(agent, seconds)
        host.start("blk")
        time.sleep(2.0)
        phases["disk saturated"] = phase(agent, seconds)
        host.stop()
        states = {one.name: one.state for one in agent.status().vantages}
    for name, one in phases.items():
        print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in one.items()))
    worst = max(one["p99_ms"] for one in phases.values())
    details = {
        "conditions": f"tick {TICK_MS} ms, standing load {BACKGROUND_RATE:g} requests/s, broker on this host",
        "scheduling": " ".join(scheduling()),
        "vantages": states,
        "phases": phases,
    }
    return Result(worst, "ms, p99 tick boundary to sealed", BAR_MS, worst <= BAR_MS, details)
