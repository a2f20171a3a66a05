# SPDX-License-Identifier: Apache-2.0
"""An outsider sends in a vantage's name: what that costs it. And how soon everybody is back after a broker's restart.

Spoof: two vantages at 20 Hz, each on a veth pair of its own; an outsider on a third one sends SYNs, segments with data
and fragments from the first one's address at 10, 100 and 1000 times its packet rate, all source ports in turn. Counted
is what either vantage produced and did not get acknowledged, and broken streams. For contrast the same with a limiter
that knows no proven flows, which is a budget per address alone: the broker runs without its `limiter` setting.

Storm: a crowd of vantages behind one address at 1 Hz; the broker is killed, and started again after 3 s. Counted is the
time from the moment it listens until all flows are proven again; once in peace, once while the outsider floods in the
name of another prefix at the highest rate. What a flood in the crowd's own name does is shown and promised by nobody:
new connections and the flood share one handshake budget.

Vantages and flood have one CPU together, the broker has another. On a veth pair the limiter runs on the sender's CPU,
so both meet in the same per-CPU budgets; a card that spreads a flood over its queues fills those of every CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

from scapy.layers.inet import IP
from scapy.layers.l2 import Ether
from scapy.packet import Raw
from tests.limiter.field import Field
from tests.limiter.field import field as new_field

from bench.harness import WORK, Result, need_root
from mvps.limiter.counters import proven_flows

SUMMARY = "snapshots lost to an outsider in a vantage's name, and the time a reconnect storm takes"
FLOODS = (10, 100, 1000)
TICK_MS = 50
PACKETS_PER_S = 50  # of a vantage at that tick, rounded up
BACK_BAR_S = 10.0
_OUTAGE_S = 3.0
_GIVE_UP_S = 20.0


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=0, help="of each flood (default 4, with --full 20)")
    parser.add_argument("--crowd", type=int, default=0, help="vantages in the storm (default 32, with --full 128)")


def _frames(site: Field, victim: str) -> list[bytes]:
    """SYNs, segments and fragments in a vantage's name, mixed."""
    ports = range(1024, 3072)
    fragment = Ether(site.frame("x", site.address(victim), site.broker_address(victim), Raw(b"x" * 200)))
    fragment[IP].proto, fragment[IP].frag = 6, 100
    del fragment[IP].chksum
    syns, segments = site.spoofed(victim, "S", ports), site.spoofed(victim, "PA", ports, b"x" * 200)
    return [frame for pair in zip(syns, segments, strict=True) for frame in pair][:4000] + [bytes(fragment)] * 40


def _lost(result: dict[str, Any]) -> dict[str, int]:
    return {
        "produced": result["produced"],
        "lost": result["produced"] - result["acknowledged"],
        "reconnects": result["reconnects"],
    }


def _spoof(folder: Path, seconds: float, cpus: tuple[int, int, int]) -> dict[str, Any]:
    """The vantages' fates with the limiter as it is, and with nobody proven."""
    found: dict[str, Any] = {}
    for kind in ("limiter", "address_budget_only"):
        (folder / kind).mkdir()
        with new_field(folder / kind, "h1", "h2", tick_ms=TICK_MS, cpus=cpus) as site:
            site.attach()
            site.start_broker(limited=kind == "limiter")
            vantages = {name: site.vantage(name, TICK_MS / 1000) for name in ("h1", "h2")}
            if kind == "limiter":
                site.proven(2)
            frames = _frames(site, "h1")
            sent = {}
            for flood in FLOODS:
                process = site.flood("x", frames, PACKETS_PER_S * flood, seconds)
                sent[f"{flood}x"] = json.loads(process.communicate()[0])["sent"]
            if kind == "limiter":
                found["sent"], found["verdicts"] = sent, {n: c for n, c in site.packets().items() if c}
            found[kind] = {name: _lost(vantage.end()) for name, vantage in vantages.items()}
    return found


def _back(site: Field, crowd: int) -> float | None:
    """Kill the broker, start it again, and wait until the crowd is proven: seconds since it listened."""
    assert site.broker is not None
    site.broker.send_signal(signal.SIGKILL)
    site.broker.wait()
    time.sleep(_OUTAGE_S)
    site.start_broker()
    begun = time.monotonic()
    while proven_flows(site.pins) < crowd:
        if time.monotonic() - begun > _GIVE_UP_S:
            return None
        time.sleep(0.02)
    return round(time.monotonic() - begun, 2)


def _storm(folder: Path, crowd: int, cpus: tuple[int, int, int]) -> dict[str, Any]:
    with new_field(folder, "h1", "h2", cpus=cpus, crowd=crowd) as site:
        site.attach()
        site.start_broker()
        vantages = site.vantage("h1", 1.0, [f"h1-{number}" for number in range(crowd)])
        site.proven(crowd)
        found: dict[str, Any] = {"crowd": crowd, "in_peace_s": _back(site, crowd)}
        rate, long = PACKETS_PER_S * max(FLOODS), _OUTAGE_S + _GIVE_UP_S
        for name, victim in (("other_prefix_flooded_s", "h2"), ("own_prefix_flooded_s", "h1")):
            flood = site.flood("x", _frames(site, victim), rate, long)
            found[name] = _back(site, crowd)
            found[name.removesuffix("_s") + "_proven"] = proven_flows(site.pins)
            flood.terminate()
            flood.wait()
        # With the flood over, everybody comes back and nothing was lost.
        site.proven(crowd)
        found["vantages"] = _lost(vantages.end())
    return found


def run(given: argparse.Namespace) -> Result:
    need_root()
    seconds = given.seconds or (20.0 if given.full else 4.0)
    crowd = given.crowd or (128 if given.full else 32)
    first, *_, last = sorted(os.sched_getaffinity(0)) * 2
    cpus = (first, last, last)
    with tempfile.TemporaryDirectory(prefix="spoof-", dir=WORK) as folder:
        spoof = _spoof(Path(folder), seconds, cpus)
        (Path(folder) / "storm").mkdir()
        storm = _storm(Path(folder) / "storm", crowd, cpus)
    lost = sum(one["lost"] + one["reconnects"] for one in spoof["limiter"].values())
    times = [storm[name] for name in ("in_peace_s", "other_prefix_flooded_s")]
    slowest = max((_GIVE_UP_S if one is None else one) for one in times)
    holds = lost == 0 and slowest <= BACK_BAR_S and storm["vantages"]["lost"] == 0
    print(f"spoofed at up to {max(FLOODS)}x: {spoof['limiter']}")
    print(f"a budget per address alone: {spoof['address_budget_only']}")
    print(f"storm: {storm}")
    details = {
        "conditions": f"floods of {seconds:g} s at {PACKETS_PER_S} packets/s times {FLOODS}, outage {_OUTAGE_S:g} s",
        "lost_or_reconnected": lost,
        "spoof": spoof,
        "storm": storm,
    }
    return Result(slowest, "s from the broker listening to the last of the crowd proven", BACK_BAR_S, holds, details)
