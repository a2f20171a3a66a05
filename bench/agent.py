# SPDX-License-Identifier: Apache-2.0
"""What the agent costs its host: CPU at 1 Hz and 20 Hz, memory, and how long it takes to its first snapshot.

The real daemon in a process of its own, with the CPU priority and environment of its systemd unit, all vantages
attached, sealing and streaming to a broker process over a Unix socket, while the host serves a small standing load.
CPU is what the kernel charges the process (utime + stime of all threads) after calibration, when each tick is also
decided. What its programs cost inside other tasks is `bench/run probes`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.harness import ROOT, WORK, Result, need_root
from mvps.cli.agent_client import CALL_SECONDS, agent_at
from mvps.cli.exits import Failure
from mvps.provoke.faults import Host
from mvps.provoke.network import ProvokeError
from mvps.trust.keys import load_key
from mvps.trust.solo import make_site
from mvps.v1.local_pb2 import SnapshotRecord, SnapshotsRequest, StatusRequest, StatusResponse

SUMMARY = "agent CPU at 1 Hz and 20 Hz, resident memory, start to first snapshot"
CPU_BARS = {1000: 1.0, 50: 8.0}  # tick in ms -> percent of a core
MEMORY_BAR_MIB = 96.0
START_BAR_S = 1.0
BACKGROUND_RATE = 100.0  # requests per second of the standing load
CALIBRATION_TICKS = 60

_CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
_MVPS = [sys.executable, "-m", "mvps.cli.main"]


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=0.0, help="CPU window per rate (default 20, with --full 120)")
    parser.add_argument("--starts", type=int, default=0, help="starts that are timed (default 5, with --full 20)")


class RunningAgent:
    """An agent process. ``begun_ns``: wall clock just before it was executed."""

    def __init__(self, directory: Path, broker: str, tick_ms: int, calibration_ticks: int = CALIBRATION_TICKS) -> None:
        self.tick_ms = tick_ms
        self.calibration_ticks = calibration_ticks
        self.socket = directory / "agent.sock"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.metrics = f"127.0.0.1:{free.getsockname()[1]}"
        config = directory / "agent.toml"
        config.write_text(
            f'[agent]\ntick_ms = {tick_ms}\nvantage_id = "bench"\nstate_dir = "{directory}"\n'
            f"[baseline]\ncalibration_ticks = {calibration_ticks}\n"
            f'[trust]\nkey = "{directory / "bench.key"}"\noperator = "{_operator(directory)}"\n'
            f'manifests = "{directory / "manifests"}"\n[broker]\ntarget = "{broker}"\n'
            f'[metrics]\naddress = "{self.metrics}"\n[local]\nsocket = "{self.socket}"\n'
        )
        self._log = directory / "agent.log"
        with self._log.open("wb") as log:
            self.begun_ns = time.time_ns()
            self._process = subprocess.Popen(
                [*scheduling(), *_MVPS, "agent", "--config", str(config)], stderr=log, env=_environment()
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def __enter__(self) -> RunningAgent:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(15)

    def status(self) -> StatusResponse:
        with agent_at(str(self.socket)) as agent:
            answer: StatusResponse = agent.Status(StatusRequest(), timeout=CALL_SECONDS)
        return answer

    def records(self) -> list[SnapshotRecord]:
        """What the agent remembers of its last thousand sealed snapshots, oldest first."""
        with agent_at(str(self.socket)) as agent:
            (update,) = agent.Snapshots(SnapshotsRequest(), timeout=CALL_SECONDS)
        return list(update.records)

    def first_record(self) -> SnapshotRecord:
        """Wait for the first sealed snapshot."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(Failure):
                if found := self.records():
                    return found[0]
            time.sleep(0.05)
        raise SystemExit(f"bench: the agent sealed nothing:\n{self._log.read_text()[-2000:]}")

    def wait_until_decided(self) -> None:
        """Until every surface has learned its baseline, and a second more."""
        deadline = time.monotonic() + 3 * self.calibration_ticks * self.tick_ms / 1000 + 30
        while time.monotonic() < deadline:
            surfaces = self.status().surfaces
            if surfaces and all(one.baseline_id for one in surfaces):
                failed = [v.name for v in self.status().vantages if v.state != "ok"]
                if failed:
                    raise SystemExit(f"bench: vantage {failed[0]} is not ok; see `mvps doctor`")
                time.sleep(1.0)
                return
            time.sleep(0.5)
        raise SystemExit(f"bench: calibration did not end:\n{self._log.read_text()[-2000:]}")

    def cpu_seconds(self) -> tuple[float, float]:
        """(user, system) of the process so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) / _CLOCK_TICKS, int(fields[12]) / _CLOCK_TICKS

    def memory_mib(self) -> dict[str, float]:
        """Resident now and at most, and the proportional share (pages shared with others counted in parts)."""
        found: dict[str, float] = {}
        for file in ("status", "smaps_rollup"):
            for line in Path(f"/proc/{self.pid}/{file}").read_text().splitlines():
                name, _, value = line.partition(":")
                if name in ("VmRSS", "VmHWM", "Pss"):
                    found[name] = round(int(value.split()[0]) / 1024, 1)
        return found


def _operator(directory: Path) -> str:
    return load_key(str(directory / "operator.key")).public.text


def _unit() -> dict[str, str]:
    """Settings of the systemd unit that decide how the process is run."""
    lines = (ROOT / "systemd/mvps-agent.service").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and line[0] != "#")


def scheduling() -> list[str]:
    """The command words that give a process the unit's place on the CPUs."""
    unit = _unit()
    if policy := unit.get("CPUSchedulingPolicy"):
        return ["chrt", f"--{policy}", unit["CPUSchedulingPriority"]]
    return ["nice", "-n", unit["Nice"]]


def _environment() -> dict[str, str]:
    return os.environ | dict(word.split("=", 1) for word in _unit()["Environment"].split())


@contextlib.contextmanager
def site(where: Path = WORK) -> Iterator[tuple[Path, str]]:
    """Keys and a broker process in a directory of their own: (directory, broker's address)."""
    with tempfile.TemporaryDirectory(prefix="mvps-bench-", dir=where) as name:
        directory = Path(name)
        made = make_site(directory, ["bench"], tick_ms=50)
        address = f"unix:{directory / 'broker.sock'}"
        command = [*scheduling(), *_MVPS, "broker", "--listen", address, "--database", str(directory / "broker.db")]
        with (directory / "broker.log").open("w+") as log:
            broker = subprocess.Popen(
                [
                    *command,
                    "--key",
                    made.broker_key,
                    "--operator",
                    made.operator,
                    "--manifests",
                    made.manifests,
                    "--metrics",
                    "",
                ],
                stderr=log,
            )
            try:
                deadline = time.monotonic() + 15
                while "listens" not in (directory / "broker.log").read_text():
                    if broker.poll() is not None or time.monotonic() > deadline:
                        raise SystemExit(f"bench: no broker:\n{(directory / 'broker.log').read_text()}")
                    time.sleep(0.05)
                yield directory, address
            finally:
                broker.terminate()
                broker.wait(15)


@contextlib.contextmanager
def standing_load() -> Iterator[Host]:
    """A host that serves a small load, which faults can be added to."""
    try:
        with Host(background_rate=BACKGROUND_RATE, directory=WORK) as host:
            host.prepare(network=True)
            time.sleep(2.0)
            yield host
    except ProvokeError as error:
        raise SystemExit(f"bench: {error}") from None


def start_seconds(directory: Path, broker: str, tick_ms: int, starts: int) -> list[float]:
    """From exec to the first sealed snapshot, that often."""
    found = []
    for _ in range(starts):
        with RunningAgent(directory, broker, tick_ms) as agent:
            found.append((agent.first_record().sealed_ns - agent.begun_ns) / 1e9)
    return found


def steady(directory: Path, broker: str, tick_ms: int, seconds: float) -> dict[str, Any]:
    """CPU and memory of a calibrated agent over ``seconds``."""
    with RunningAgent(directory, broker, tick_ms) as agent:
        agent.first_record()
        agent.wait_until_decided()
        before, begun, ticks = agent.cpu_seconds(), time.monotonic(), agent.status().ticks.done
        time.sleep(seconds)
        after, ended, status = agent.cpu_seconds(), time.monotonic(), agent.status()
        user, system = (100 * (b - a) / (ended - begun) for a, b in zip(before, after, strict=True))
        return {
            "tick_ms": tick_ms,
            "seconds": round(ended - begun, 1),
            "ticks": status.ticks.done - ticks,
            "cpu_percent": round(user + system, 2),
            "user_percent": round(user, 2),
            "system_percent": round(system, 2),
            "memory_mib": agent.memory_mib(),
            "acknowledged": status.stream.acknowledged,
            "lost": {cause: count for cause, count in status.losses.by_cause.items() if count},
        }


def run(given: argparse.Namespace) -> Result:
    need_root()
    seconds = given.seconds or (120.0 if given.full else 20.0)
    starts = given.starts or (20 if given.full else 5)
    with standing_load(), site() as (directory, broker):
        first = start_seconds(directory, broker, 50, starts)
        first_slow = start_seconds(directory, broker, 1000, max(starts // 4, 1))
        steadies = [steady(directory, broker, tick_ms, seconds) for tick_ms in CPU_BARS]
    load = f"standing load {BACKGROUND_RATE:g} requests/s, all vantages, broker on this host"
    for one in steadies:
        memory = one["memory_mib"]
        print(
            f"tick {one['tick_ms']} ms: {one['cpu_percent']} % of a core ({one['user_percent']} user, "
            f"{one['system_percent']} system) over {one['seconds']} s and {one['ticks']} ticks; "
            f"RSS {memory['VmRSS']} MiB, most {memory['VmHWM']}, Pss {memory['Pss']} ({load})"
        )
    start_s = statistics.median(first)
    print(
        f"exec to first sealed snapshot, tick 50 ms: median {start_s:.3f} s, most {max(first):.3f} s, {starts} starts"
    )
    print(f"  with a tick of 1 s, which adds the wait for the next full second: {max(first_slow):.3f} s")
    memory_mib = max(one["memory_mib"]["VmRSS"] for one in steadies)
    used = {
        **{f"cpu_{one['tick_ms']}ms": one["cpu_percent"] / CPU_BARS[one["tick_ms"]] for one in steadies},
        "memory": memory_mib / MEMORY_BAR_MIB,
        "start": start_s / START_BAR_S,
    }
    closest = max(used, key=lambda name: used[name])
    details = {
        "conditions": load,
        "scheduling": " ".join(scheduling()),
        "steady": steadies,
        "start_s": {"median": round(start_s, 3), "most": round(max(first), 3), "starts": starts},
        "start_s_tick_1s": [round(value, 3) for value in first_slow],
        "bars": {"cpu_percent": CPU_BARS, "rss_mib": MEMORY_BAR_MIB, "start_s": START_BAR_S},
        "share_of_bar": {name: round(value, 3) for name, value in used.items()},
    }
    return Result(round(used[closest], 3), f"of its bar ({closest})", 1.0, used[closest] <= 1.0, details)
