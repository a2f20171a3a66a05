# SPDX-License-Identifier: Apache-2.0
"""What the agent makes of audit packets: how many it takes a second, and how late a minute's health is.

Eight engines with four tenants each send full batches in turn, on one core and without a socket: each line's chain is
verified, each packet read against its schema and added up, each batch answered. Beside it, of the same lines: the chain
alone (hashes), and the packets alone (schema). Then a minute of all 32 tenants, with eight hours of baseline each, is
closed: an engine asks at least every quarter of a second, and a minute waits half a second for what is under way, so
that its health is at most that late and the time it takes to close it. The same packets at the same times must give
the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import time
from datetime import UTC, datetime, timedelta

import numpy as np

from bench.harness import Result, timed
from mvps.daemon.engines import FLUSH_NS, MAX_LINES, Engines
from mvps.surplus.minutes import GRACE_NS, MAX_TENANTS, MINUTE_NS
from mvps.surplus.packets import ActionKind, Cap, Chain, State, parse
from mvps.v1 import local_pb2 as pb
from mvps.v1.snapshot_pb2 import Snapshot

SUMMARY = "audit packets of serving engines: how many a second, and how late a minute's health is"
BAR_PACKETS = 20_000.0
BAR_LATE_S = 1.0
ENGINES, START = 8, 1_700_000_040 * 10**9
_HASH = "sha256:" + "0" * 64


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batches", type=int, default=0, help="per engine (default 40, with --full 400)")


class Clock:
    now = START

    def __call__(self) -> int:
        return self.now


def cap(chance: np.random.Generator, tenant: str, at_ns: int) -> Cap:
    """A packet with every field that an engine fills."""
    at = datetime.fromtimestamp(at_ns // 10**9, UTC) + timedelta(microseconds=int(chance.integers(10**6)))
    part = chance.random(12).tolist()
    return Cap.model_validate(
        {
            "ts": at,
            "tenant": tenant,
            "session": "sha256:" + hashlib.sha256(bytes(chance.bytes(8))).hexdigest(),
            "model": "small-7b",
            "hash_logits": _HASH,
            "theta": part[0],
            "phi": part[1],
            "tension": part[2],
            "value": {"dlp": part[3], "progress": part[4], "struct_risk": part[5], "lat": part[6], "len": part[7]},
            "dissipation": {"drift": part[8], "mode_flip": 0.0, "fmt_debt": part[9], "routing": 0.0},
            "lam": 0.4,
            "kl_used": 0.2 * part[10],
            "kl_budget": 0.01,
            "dlogits_l2": part[11],
            "steps": 20,
            "action": {"type": ActionKind.TOKEN},
            "candidates": 8,
            "state": State.GREEN,
            "risk": 0.0,
            "latency_ms": 400.0 + 100.0 * part[0],
            "tokens": 20,
        }
    )


def batches(count: int) -> list[list[pb.SurplusBatch]]:
    """Full batches of every engine's chain."""
    chance = np.random.default_rng(1)
    found: list[list[pb.SurplusBatch]] = []
    for engine in range(ENGINES):
        chain, made = Chain.begin(f"engine-{engine}"), []
        for _ in range(count):
            lines = []
            for number in range(MAX_LINES):
                tenant = f"tenant-{engine * 4 + number % 4}"
                chain, line = chain.append(cap(chance, tenant, START + number % 50 * 10**9))
                lines.append(line)
            made.append(pb.SurplusBatch(lines=lines, load=pb.EngineLoad(running=6, waiting=1, slots=8)))
        found.append(made)
    return found


def sent(given: list[list[pb.SurplusBatch]]) -> tuple[float, list[bytes]]:
    """Seconds to take all batches, and the health of the minute they are in."""
    clock = Clock()
    engines = Engines(10**9, ENGINES, clock)
    streams = [engines.open(f"engine-{number}") for number in range(ENGINES)]
    clock.now = START + 50 * 10**9
    begun = time.perf_counter()
    for turn in range(len(given[0])):
        for stream, batch in zip(streams, given, strict=True):
            engines.take(stream, batch[turn])
    taken = time.perf_counter() - begun
    clock.now = START + MINUTE_NS + GRACE_NS
    engines.tick(Snapshot(), {}, 10**9)
    return taken, list(engines.status().health)


def closing(rounds: int) -> dict[str, float]:
    """Milliseconds to close a minute of all tenants with a full baseline."""
    clock, chance = Clock(), np.random.default_rng(2)
    engines = Engines(10**9, ENGINES, clock)
    chain, stream = Chain.begin("engine"), engines.open("engine")

    def minute() -> None:
        nonlocal chain
        for first in range(0, MAX_TENANTS, MAX_LINES):
            lines = []
            for number in range(first, min(first + MAX_LINES, MAX_TENANTS)):
                chain, line = chain.append(cap(chance, f"tenant-{number}", clock.now))
                lines.append(line)
            engines.take(stream, pb.SurplusBatch(lines=lines, load=pb.EngineLoad(running=6, slots=8)))

    taken = []
    for number in range(480 + rounds):
        clock.now = START + number * MINUTE_NS + GRACE_NS
        minute()
        clock.now = START + (number + 1) * MINUTE_NS + GRACE_NS
        begun = time.perf_counter()
        engines.tick(Snapshot(), {}, 10**9)
        if number >= 480:
            taken.append((time.perf_counter() - begun) * 1e3)
    return {"median_ms": round(float(np.median(taken)), 3), "most_ms": round(max(taken), 3)}


def run(given: argparse.Namespace) -> Result:
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    made = batches(given.batches or (400 if given.full else 40))
    packets = ENGINES * len(made[0]) * MAX_LINES
    runs = [sent(made) for _ in range(5)]
    rate = packets / statistics.median(seconds for seconds, _ in runs)
    same = all(health == runs[0][1] for _, health in runs)
    lines = [line for of in made for batch in of for line in batch.lines][:4096]
    bodies = [line[len(b'{"packet":') : line.rindex(b',"prev":"')] for line in lines]
    alone = {
        "hash_us": timed(lambda: [hashlib.sha256(line).hexdigest() for line in lines], 10)["ms"],
        "schema_us": timed(lambda: [parse(body, Cap) for body in bodies], 10)["ms"],
    }
    closed = closing(100 if given.full else 20)
    late = (GRACE_NS + FLUSH_NS) / 1e9 + closed["most_ms"] / 1e3
    details = {
        "packets": packets,
        "bytes_a_line": round(sum(map(len, lines)) / len(lines)),
        "us_a_packet": round(1e6 / rate, 2),
        **{name: round(ms * 1e3 / len(lines), 2) for name, ms in alone.items()},
        "closing": closed,
        "health_late_s": round(late, 3),
        "same_bytes": same,
    }
    print(f"{packets} packets of {details['bytes_a_line']} bytes: {rate:.0f} a second, {1e6 / rate:.1f} us each")
    print(f"of that the schema {details['schema_us']} us and the hash {details['hash_us']} us")
    print(f"a minute of {MAX_TENANTS} tenants is closed in {closed['median_ms']} ms; its health is {late:.2f} s late")
    holds = rate >= BAR_PACKETS and late <= BAR_LATE_S and same
    return Result(round(rate), "audit packets a second", BAR_PACKETS, holds, details)
