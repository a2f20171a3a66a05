# SPDX-License-Identifier: Apache-2.0
"""One tick of a fleet of 10,000 hosts at the broker, from what they said to who is named, on one core.

Six kinds of vantage. A tick is: the table of own distances from every host's packed observations, whose checks fail,
sum and maximum over the three removals, p-values, phases, sources and labels, the settling over ticks, and C_2^gm of
every kind's standing distributions, ours and the seed's, about a geometric median that starts from the last tick's. One
host in a hundred has a check that fails. f is 1, 1 % and a third of the fleet. Beside it the decision alone
and the same statistics by sorting Python lists. Times are CPU times of the thread, because the host may be shared; the
wall-clock time of a tick is reported with them.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import time
from typing import Any

import numpy as np

from bench.harness import Result
from mvps.broker.bundle import Observed
from mvps.broker.observed import COLUMNS, LABELS, OWN_DISTANCE, VIOLATED, StandingLaws, TickSaid
from mvps.robust import fleet
from mvps.robust.disagreement import Disagreement

SUMMARY = "ms of CPU per fleet tick at 10,000 vantages, decision and coherence of six kinds"
BAR_MS = 50.0
HOSTS = 10_000
KINDS = ("mm", "blk", "sock", "sched", "irq", "path")
LAW = (0.93, 0.03, 0.02, 0.01, 0.005, 0.005)
_CALIBRATION = 120
PERIOD_NS = 10**9


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ticks", type=int, default=0, help="per f (default 20, with --full 200)")


class _Tick:
    """What arrives in one tick, drawn before the clock runs. One host is far out in one kind."""

    def __init__(self, rng: np.random.Generator, hosts: list[str]) -> None:
        z = rng.standard_normal((HOSTS, len(KINDS)))
        z[17, 2] = 90.0
        rows = np.zeros((HOSTS, len(KINDS), COLUMNS))
        rows[..., OWN_DISTANCE], rows[..., 1], rows[..., 2], rows[..., LABELS] = z, 300.0, 2.0, len(LAW)
        rows[::100, :, VIOLATED] = 1.0
        laws = (rng.multinomial(300, LAW, (HOSTS, len(KINDS))) / 300).astype("<f4")
        names = "\n".join(KINDS).encode()
        self.said = [
            (host, Observed(names, row.tobytes(), law.tobytes(), PERIOD_NS))
            for host, row, law in zip(hosts, rows, laws, strict=True)
        ]


def by_lists(z: np.ndarray, f: int) -> list[tuple[float, float, float, float]]:
    """Sum and maximum of everybody and without the f largest, per kind, by sorting."""
    found = []
    for column in z.T.tolist():
        ordered = sorted(min(max(value, fleet.LOW), fleet.HIGH) for value in column if math.isfinite(value))
        kept = ordered[: len(ordered) - f]
        whole, rest = sum(ordered) / math.sqrt(len(ordered)), sum(kept) / math.sqrt(len(kept))
        found.append((whole, ordered[-1], rest, kept[-1]))
    return found


def _measure(f: int, ticks: int, hosts: list[str]) -> dict[str, Any]:
    rng = np.random.default_rng(f)
    quiet = [rng.standard_normal((HOSTS, len(KINDS))) for _ in range(_CALIBRATION)]
    baseline = fleet.fit_baseline(np.stack([fleet.bau_statistics(z, f, turn) for turn, z in enumerate(quiet)]), f)
    evidence = np.zeros(HOSTS, dtype=np.intp)
    settled = [fleet.Settled() for _ in KINDS]
    weights: list[np.ndarray | None] = [None] * len(KINDS)
    failing = [Disagreement(f) for _ in KINDS]
    standing = [StandingLaws(HOSTS) for _ in KINDS]
    whole, wall, decision, lists, steps = [], [], [], [], []
    for number in range(1, ticks + 2):
        tick = _Tick(rng, hosts)
        entered, begun = time.perf_counter_ns(), time.thread_time_ns()
        said = TickSaid(hosts, tick.said)
        z = said.own_distances(KINDS)
        kinds = [said.of(kind) for kind in KINDS]
        for one, kind in zip(failing, kinds, strict=True):
            one.step(number * PERIOD_NS, hosts, kind.host, kind.checked, kind.violated)
        tabled = time.thread_time_ns()
        decided = fleet.decide(z, evidence, baseline)
        settled = [before.step(one) for before, one in zip(settled, decided, strict=True)]
        named = time.thread_time_ns()
        for at, kind in enumerate(kinds):
            _, laws = standing[at].step(number * PERIOD_NS, PERIOD_NS, kind)
            median = fleet.kind_coherence(laws, f, start=weights[at]).median
            weights[at] = median.weights
            steps.append(median.iterations)
        done = time.thread_time_ns()
        wall.append((time.perf_counter_ns() - entered) / 1e6)
        expected = by_lists(z, f)
        lists.append((time.thread_time_ns() - done) / 1e6)
        whole.append((done - begun) / 1e6)
        decision.append((named - tabled) / 1e6)
        if not np.allclose(fleet.statistics(z, f)[:, :2].reshape(-1, 4), expected):
            raise SystemExit("bench: the statistics differ from those of sorted lists")
    if [suspect.host for suspect in settled[2].named] != [17]:
        raise SystemExit("bench: the host that is far out was not named")
    # The first tick has no last one to start from.
    return {
        "tick_ms": round(statistics.median(whole[1:]), 2),
        "tick_p95_ms": round(float(np.quantile(whole[1:], 0.95)), 2),
        "wall_ms": round(statistics.median(wall[1:]), 2),
        "first_tick_ms": round(whole[0], 2),
        "decision_ms": round(statistics.median(decision[1:]), 2),
        "lists_ms": round(statistics.median(lists[1:]), 2),
        "ratio_of_decision_to_lists": round(statistics.median(decision[1:]) / statistics.median(lists[1:]), 3),
        "median_steps": round(statistics.mean(steps[len(KINDS) :]), 1),
    }


def run(given: argparse.Namespace) -> Result:
    ticks = given.ticks or (200 if given.full else 20)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    hosts = [f"host-{number:05}" for number in range(HOSTS)]
    found = {f"f={f}": _measure(f, ticks, hosts) for f in (1, HOSTS // 100, HOSTS // 3)}
    for name, one in found.items():
        print(
            f"{name:8} {one['tick_ms']:.1f} ms a tick (p95 {one['tick_p95_ms']:.1f}), decision {one['decision_ms']} ms"
        )
    slowest = max(one["tick_ms"] for one in found.values())
    details = {"conditions": f"{HOSTS} hosts, {len(KINDS)} kinds, one core, {ticks} ticks each", **found}
    return Result(slowest, "ms of CPU per fleet tick at 10,000 vantages", BAR_MS, slowest <= BAR_MS, details)
