# SPDX-License-Identifier: Apache-2.0
"""A compromised vantage floods the broker: what honest vantages and the broker's CPU notice (T-VDOS-1).

Broker, two hosts with four honest vantages each, and the compromised one have namespaces of their own, each host on a
veth pair; every vantage sends at 20 Hz. The compromised one also sends 10, 100 and 1000 times its own packets
(bench/packets.c) as segments of its own proven connection: through the limiter, and for contrast, in the same run, with
the limiter removed. Last in either part it floods with sealed snapshots through its real client, as fast as one core
makes them.

What would spoil the figures here is that the flood's sender needs CPU too. So broker and honest vantages have one CPU
and the flood has another, on which, as is the way of veth, the limiter and the receiving stack run too; and each flood
is held against the same flood sent to a device whose end drops everything in an empty XDP program ("void"), in turn.
Latency is sealed to acknowledged; its p99 over all windows of a flood is held against the p99 over the void windows of
the same flood, with an interval from drawing pairs of windows again (they are the blocks: snapshots that wait for one
cause wait together). CPU is the broker's process plus what the flood's sender took more than towards the void, which is
the limiter and the stack. The bound is that of T-VDOS-1: factor + flood x c_xdp / c_path, c_path being the broker's CPU
per snapshot of a vantage, c_xdp the limiter's run time by the kernel's count (clock reads included), for as many
packets as a snapshot has.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scapy.layers.inet import TCP
from tests.limiter.field import PORT, Field, Vantage
from tests.limiter.field import field as new_field

from bench.harness import WORK, Result, need_root
from mvps.limiter.attach import pins
from mvps.limiter.layout import DROPPED, link_name
from mvps.limiter.plan import MEASURED
from mvps.probes import libbpf

SUMMARY = "a compromised vantage at 10x to 1000x: honest vantages' losses and latency, the broker's CPU"
FLOODS = (10, 100, 1000)
TICK_MS = 50
GROWTH_BAR = 1.10
_DRAWS = 200
CROWD = 4  # honest vantages of a host; each has a connection of its own
VANTAGES = 2 * CROWD + 1


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=0, help="of each window (default 4, with --full 10)")
    parser.add_argument("--rounds", type=int, default=0, help="of each kind of window (default 2, with --full 8)")


@dataclass
class Window:
    """One stretch of time under one load, and how long what honest vantages sealed in it took to be acknowledged."""

    begun_ns: int = 0
    ended_ns: int = 0
    broker_s: float = 0.0
    flood_s: float = 0.0
    sent: int = 0
    latencies_ms: list[float] = field(default_factory=list)

    @property
    def cpu(self) -> float:
        """CPU seconds a second: broker and flood's sender."""
        return (self.broker_s + self.flood_s) / ((self.ended_ns - self.begun_ns) / 1e9)


@dataclass
class Load:
    """The windows of one load."""

    windows: list[Window] = field(default_factory=list)

    @property
    def cpu(self) -> float:
        """CPU seconds a second; the median, so that a window that something else disturbed decides nothing."""
        return statistics.median(one.cpu for one in self.windows)

    @property
    def p99_ms(self) -> float:
        """Of the honest vantages, over all windows."""
        return _p99_ms(self.windows)

    def take(self, times: list[tuple[int, int]]) -> None:
        """Latencies of the snapshots that were sealed within the windows."""
        for one in self.windows:
            one.latencies_ms += [(end - seal) / 1e6 for seal, end in times if one.begun_ns <= seal < one.ended_ns]

    def shown(self) -> dict[str, Any]:
        latencies = [ms for one in self.windows for ms in one.latencies_ms]
        known = len(latencies) > 1
        return {
            "acknowledged": len(latencies),
            "p50_ms": round(statistics.median(latencies), 2) if known else None,
            "p99_ms": round(self.p99_ms, 2) if known else None,
            "cpu_per_s": round(self.cpu, 4),
            "flood_packets": sum(one.sent for one in self.windows),
        }


def _p99_ms(windows: Sequence[Window]) -> float:
    known = [ms for one in windows for ms in one.latencies_ms]
    if len(known) < 2:
        raise SystemExit("bench: hardly a snapshot was acknowledged: is the machine busy with something else?")
    return statistics.quantiles(known, n=100)[98]


def _growth(nothing: Load, limited: Load) -> tuple[float, float, float]:
    """(ratio of the p99s, 5th and 95th percentile of it with pairs of windows drawn again)."""
    pairs = list(zip(nothing.windows, limited.windows, strict=True))
    chance = random.Random(8)

    def ratio(chosen: list[tuple[Window, Window]]) -> float:
        return _p99_ms([one for _, one in chosen]) / _p99_ms([one for one, _ in chosen])

    drawn = sorted(ratio(chance.choices(pairs, k=len(pairs))) for _ in range(_DRAWS))
    return ratio(pairs), drawn[_DRAWS // 20], drawn[-_DRAWS // 20]


def _window(site: Field, seconds: float, work: Callable[[], Any]) -> Window:
    """One window; ``work`` starts the load and returns the process, or None for no load."""
    one = Window(begun_ns=time.time_ns())
    before = site.cpu_ns()
    process = work()
    if process is None:
        time.sleep(seconds)
    else:
        answer = json.loads(process.communicate()[0])
        one.sent, one.flood_s = answer["sent"], answer["cpu_s"]
    one.broker_s = (site.cpu_ns() - before) / 1e9
    one.ended_ns = time.time_ns()
    time.sleep(0.5)  # its last packets are nobody's
    return one


def _program(site: Field) -> int:
    link = libbpf.open_pin(pins(site.pins) / link_name(site.device("h3")))
    try:
        fd: int = libbpf.library().bpf_prog_get_fd_by_id(libbpf.link_info(link).prog_id)
    finally:
        os.close(link)
    return fd


def _limiter_ns(site: Field, seconds: float, work: Callable[[], Any]) -> float:
    """The limiter's run time per packet in a flood, as the kernel counts it (its own clock reads included)."""
    program, counting = _program(site), libbpf.enable_stats()
    try:
        before = libbpf.program_info(program)
        _window(site, seconds, work)
        after = libbpf.program_info(program)
    finally:
        os.close(counting)
        os.close(program)
    return float((after.run_time_ns - before.run_time_ns) / (after.run_cnt - before.run_cnt))


def _snapshot_flood(site: Field, seconds: float, flood: int) -> Window:
    """The compromised vantage's client with ``flood`` times its rate."""
    sender = site.vantage("h3", TICK_MS / 1000 / flood, cpu=2)
    one = Window(begun_ns=time.time_ns())
    before = site.cpu_ns()
    time.sleep(seconds)
    one.broker_s = (site.cpu_ns() - before) / 1e9
    one.ended_ns = time.time_ns()
    sender.kill()
    return one


def run(given: argparse.Namespace) -> Result:
    need_root()
    seconds = given.seconds or (10.0 if given.full else 4.0)
    rounds = given.rounds or (8 if given.full else 2)
    first, *_, last = sorted(os.sched_getaffinity(0)) * 2
    loads: dict[str, Load] = {}
    with (
        tempfile.TemporaryDirectory(prefix="flood-", dir=WORK) as folder,
        new_field(Path(folder), "h1", "h2", "h3", tick_ms=TICK_MS, cpus=(first, first, last), crowd=CROWD) as site,
    ):
        details, holds, figure = _run(site, seconds, rounds, loads)
    for name, load in loads.items():
        print(f"{name:18} {load.shown()}")
    return Result(figure[0], figure[1], figure[2], holds, details)


def _dropped(site: Field) -> int:
    return sum(number for name, number in site.packets().items() if name in DROPPED)


def _honest(site: Field) -> list[Vantage]:
    return [site.vantage(h, TICK_MS / 1000, [f"{h}-{number}" for number in range(CROWD)]) for h in ("h1", "h2")]


def _ended(honest: list[Vantage], loads: dict[str, Load]) -> tuple[int, int]:
    """End the honest vantages: snapshots not acknowledged 20 s later, and streams that broke."""
    results = [one.end() for one in honest]
    for result in results:
        for times in result["times"].values():
            for load in loads.values():
                load.take(times)
    lost = sum(result["produced"] - result["acknowledged"] for result in results)
    return lost, sum(result["reconnects"] for result in results)


def _run(
    site: Field, seconds: float, rounds: int, loads: dict[str, Load]
) -> tuple[dict[str, Any], bool, tuple[float, str, float]]:
    def window(name: str, work: Callable[[], Any], length: float = seconds) -> Window:
        made = _window(site, length, work)
        loads.setdefault(name, Load()).windows.append(made)
        return made

    site.attach()
    site.start_broker()
    time.sleep(2)
    idle = _window(site, seconds, lambda: None)
    honest = _honest(site)
    compromised = site.vantage("h3", TICK_MS / 1000)
    site.proven(VANTAGES)
    time.sleep(1)
    before = site.limits()["verdicts"]["proven"]
    quiet = window("quiet", lambda: None, seconds * 2)
    after = site.limits()["verdicts"]["proven"]
    ticks = VANTAGES * 1000 / TICK_MS * (quiet.ended_ns - quiet.begun_ns) / 1e9
    packets, size = ((after[what] - before[what]) / ticks for what in ("packets", "bytes"))
    idle_rate = idle.broker_s / ((idle.ended_ns - idle.begun_ns) / 1e9)
    path_s = (quiet.broker_s / ((quiet.ended_ns - quiet.begun_ns) / 1e9) - idle_rate) / (VANTAGES * 1000 / TICK_MS)

    void = site.void("h3")
    segment = TCP(sport=site.source_port("h3"), dport=PORT, flags="A", seq=1) / (
        b"x" * max(0, int(size / packets) - 54)
    )
    frames = [site.frame("h3", site.address("h3"), site.broker_address("h3"), segment)]
    rate = packets * 1000 / TICK_MS
    for _ in range(rounds):
        for flood in FLOODS:
            pps = max(1, int(rate * flood))
            window(f"void {flood}x", lambda pps=pps: site.flood("h3", frames, pps, seconds, void))
            window(f"limited {flood}x", lambda pps=pps: site.flood("h3", frames, pps, seconds))
    xdp_ns = _limiter_ns(site, 2.0, lambda: site.flood("h3", frames, int(rate * 1000), 2.0))
    verdicts = {name: seen["packets"] for name, seen in site.limits()["verdicts"].items() if seen["packets"]}
    compromised.kill()

    load = loads["limited snapshots"] = Load()
    dropped = _dropped(site)
    load.windows.append(_snapshot_flood(site, seconds, 1000))
    dropped = _dropped(site) - dropped
    lost, reconnects = _ended(honest, loads)

    honest = _honest(site)
    site.mvps("broker", "detach", "--limiter", str(site.pins))
    time.sleep(1.5)
    for flood in FLOODS:
        pps = max(1, int(rate * flood))
        window(f"open {flood}x", lambda pps=pps: site.flood("h3", frames, pps, seconds))
    load = loads["open snapshots"] = Load()
    load.windows.append(_snapshot_flood(site, seconds, 1000))

    open_lost, open_reconnects = _ended(honest, loads)

    own = path_s * 1000 / TICK_MS  # CPU seconds a second that one vantage costs
    growth, multipliers, bounds, opened = {}, {}, {}, {}
    for flood in FLOODS:
        nothing, limited = loads[f"void {flood}x"], loads[f"limited {flood}x"]
        growth[flood] = _growth(nothing, limited)
        multipliers[flood] = 1 + (limited.cpu - nothing.cpu) / own
        bounds[flood] = MEASURED.factor + flood * packets * xdp_ns / 1e9 / path_s
        opened[flood] = 1 + (loads[f"open {flood}x"].cpu - nothing.cpu) / own
    worst_growth = max(ratio for ratio, _, _ in growth.values())
    shares = {flood: multipliers[flood] / bounds[flood] for flood in FLOODS}
    worst_share = max(shares.values())
    holds = lost == 0 and reconnects == 0 and worst_growth <= GROWTH_BAR and worst_share <= 1
    details = {
        "conditions": f"{VANTAGES} vantages at {1000 / TICK_MS:g} Hz, windows of {seconds:g} s, {rounds} rounds",
        "honest_lost": lost,
        "honest_reconnects": reconnects,
        "without_limiter": {"honest_lost": open_lost, "honest_reconnects": open_reconnects},
        "per_snapshot": {"packets": round(packets, 2), "bytes": round(size), "broker_us": round(path_s * 1e6, 1)},
        "limiter_ns_in_life": round(xdp_ns, 1),
        "p99_growth": {f"{flood}x": round(value, 3) for flood, (value, _, _) in growth.items()},
        "p99_growth_90_percent": {
            f"{flood}x": [round(low, 3), round(high, 3)] for flood, (_, low, high) in growth.items()
        },
        "cpu_multiplier": {f"{flood}x": round(value, 2) for flood, value in multipliers.items()},
        "cpu_bound": {f"{flood}x": round(value, 2) for flood, value in bounds.items()},
        "cpu_multiplier_without_limiter": {f"{flood}x": round(value, 2) for flood, value in opened.items()},
        "snapshot_flood_cpu_per_s": {
            "limited": round(loads["limited snapshots"].cpu, 3),
            "without_limiter": round(loads["open snapshots"].cpu, 3),
        },
        "snapshot_flood_packets_dropped": dropped,
        "loads": {name: one.shown() for name, one in loads.items()},
        "verdicts": verdicts,
    }
    print(f"lost {lost}, p99 growth at most {worst_growth:.2f}, CPU at most {worst_share:.2f} of the bound")
    if worst_share > worst_growth / GROWTH_BAR:
        return details, holds, (round(worst_share, 3), "broker CPU by T-VDOS-1's bound", 1.0)
    return (
        details,
        holds,
        (round(worst_growth, 3), "p99 latency of honest vantages by that without a flood", GROWTH_BAR),
    )
