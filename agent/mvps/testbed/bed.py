# SPDX-License-Identifier: Apache-2.0
"""The closed loop's machinery: namespaces, processes, injections. Everything it made goes when it is closed.

                      +-- r1 --+         gw:    the users, the multipath route to 198.18.100.1, the agent
    gw  -- to-r1..r4 -+-- ..  -+-- to-r1..r4 --  watch:  the AI vantage and its encoder
                      +-- r4 --+         r1..r4: one replica each, all with 198.18.100.1

The AI vantage asks each replica by an address of its own, over links of its own: what happens to the users' routes
does not reach it but through the replicas. Broker, agent and vantage talk over Unix sockets, which no namespace cuts.

The agent watches the gateway's data plane (V_path: bytes, sockets' segments and routing table over next hops, scoped to
the gateway's namespace). mm, blk, sched and irq are one kernel's for all hosts of the bed, and V_sock alone is no
surface: they are off.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Final

import grpc

from mvps.testbed import answers
from mvps.testbed.answers import Arm
from mvps.testbed.lab import Lab, lab
from mvps.testbed.plan import FULL_WEIGHT
from mvps.testbed.replica import USER
from mvps.trust.solo import Site, make_site
from mvps.v1 import stream_pb2, stream_pb2_grpc

REPLICAS: Final = ("r1", "r2", "r3", "r4")
PREFIX: Final = "mvcl"
SERVICE: Final = "198.18.100.1"
PORT: Final = 8000
GATEWAY, WATCH = "gw", "watch"
_MVPS: Final = (sys.executable, "-m", "mvps.cli.main")
_POOL: Final = "198.19.0"  # the users' addresses, .1 to .254
_PAGE: Final = 1000
_CLOCK_TICKS: Final = os.sysconf("SC_CLK_TCK")


class BedError(RuntimeError):
    """The bed could not be made or did not come up; the message says which part and what it said."""


@dataclass(frozen=True, slots=True)
class Size:
    """How large and how fast.

    tick_s: of agent and joint vector, seconds. round_s: between two canaries; shorter, so that every tick has a new
    round whatever the jitter. users: sessions per replica in BAU. rate: questions per user and second. canaries: of the
    AI vantage. room: capacity of a cache in units of what it holds in BAU. calibration: joint ticks. The agent's and
    the AI vantage's own windows are as short as they allow: 60 ticks, and 205 rounds, of which 55 find the scales.
    """

    tick_s: float = 0.25
    round_s: float = 0.15
    users: int = 12
    rate: float = 2.0
    canaries: int = 8
    room: float = 1.1
    calibration: int = 120


class Bed:
    """A running bed. Made by :func:`bed`."""

    def __init__(self, net: Lab, directory: Path, arm: Arm, size: Size, seed: int) -> None:
        self.net, self.directory, self.arm, self.size, self.seed = net, directory, arm, size, seed
        self._processes: list[tuple[str, subprocess.Popen[str]]] = []
        self._logs: list[IO[str]] = []
        self._site: Site | None = None
        self.users: dict[str, str] = {}  # address -> replica in BAU
        self.broker = f"unix:{directory / 'broker.sock'}"
        self.capacity = 0

    # ---- making

    def build(self) -> None:
        """Namespaces, links, routes."""
        net = self.net
        net.host(GATEWAY, f"{_POOL}.0/24")
        net.host(WATCH)
        for number, name in enumerate(REPLICAS, 1):
            net.host(name, f"{SERVICE}/32")
            net.link(GATEWAY, f"198.18.{number}.1/30", name, f"198.18.{number}.2/30")
            net.link(WATCH, f"198.18.{10 + number}.1/30", name, f"198.18.{10 + number}.2/30")
            net.route(name, "default", f"198.18.{number}.1")
        # By addresses: a user stays with one replica as long as the route stays.
        net.inside(GATEWAY, "sysctl", "-q", "-w", "net.ipv4.fib_multipath_hash_policy=0")
        self.route(dict.fromkeys(REPLICAS, FULL_WEIGHT))
        self.users = self._seated()

    def route(self, weights: Mapping[str, int]) -> None:
        """Set the service's route: a replica's weight, 1 to 256; one of weight 0 is withdrawn."""
        words = ["ip", "-n", self.net.full(GATEWAY), "route", "replace", f"{SERVICE}/32"]
        for name, weight in weights.items():
            if weight:
                words += ["nexthop", "via", self._hop(name), "weight", str(weight)]
        subprocess.run(words, check=True, capture_output=True)

    @staticmethod
    def _hop(name: str) -> str:
        return f"198.18.{REPLICAS.index(name) + 1}.2"

    def _seated(self) -> dict[str, str]:
        """Users' addresses, as many to each replica: where the kernel itself routes them."""
        pool = [f"{_POOL}.{number}" for number in range(1, 255)]
        lines = "".join(f"route get {SERVICE} from {source}\n" for source in pool)
        shown = subprocess.run(
            ["ip", "-n", self.net.full(GATEWAY), "-batch", "-"], input=lines, capture_output=True, text=True, check=True
        ).stdout
        by_hop: dict[str, list[str]] = {self._hop(name): [] for name in REPLICAS}
        for line in shown.splitlines():
            words = line.split()
            if "via" in words and "from" in words:
                by_hop[words[words.index("via") + 1]].append(words[words.index("from") + 1])
        found = {}
        for name in REPLICAS:
            seats = by_hop[self._hop(name)][: self.size.users]
            if len(seats) < self.size.users:
                raise BedError(f"of {len(pool)} addresses only {len(seats)} are routed to {name}: take fewer users")
            found.update(dict.fromkeys(seats, name))
        return found

    def context(self, address: str) -> str:
        """Of the user at this address."""
        return f"{USER}{address.rpartition('.')[2]}"

    def canary(self, number: int) -> str:
        """Context of a canary."""
        return f"canary-{number}"

    def start(self) -> None:
        """All processes, in the order in which they need each other."""
        size = self.size
        canaries = sum(answers.tokens_of(self.canary(number)) for number in range(size.canaries))
        own = {
            name: sum(answers.tokens_of(self.context(a)) for a, at in self.users.items() if at == name)
            for name in REPLICAS
        }
        self.capacity = round(size.room * (max(own.values()) + canaries))
        base = {"arm": self.arm.value, "port": PORT, "seed": self.seed, "period_s": size.tick_s}
        for name in REPLICAS:
            self._run(name, name, "-m", "mvps.testbed.replica", given={**base, "name": name, "capacity": self.capacity})
        encoder = {**base, "name": "encoder", "capacity": 1, "port": PORT + 1, "period_s": 60.0}
        self._run("encoder", WATCH, "-m", "mvps.testbed.replica", given=encoder)
        for name in (*REPLICAS, "encoder"):
            self._wait(partial(_written, self.directory / f"{name}.out"), 60, name)
        users = {source: self.context(source) for source in self.users}
        asked = {"target": SERVICE, "port": PORT, "rate": size.rate, "seed": self.seed, "users": users}
        self._run("users", GATEWAY, "-m", "mvps.testbed.users", given=asked)
        self._site = make_site(self.directory, [GATEWAY], tick_ms=50)
        self._broker()
        self._agent()
        self._vantage()

    def _run(self, name: str, where: str | None, *words: str, given: Mapping[str, Any] | None = None) -> None:
        out = (self.directory / f"{name}.out").open("w")
        log = (self.directory / f"{name}.log").open("w")
        self._logs += [out, log]
        entered = self.net.enter(where) if where else ()
        # They end with us, also when we are killed.
        command = [
            "setpriv",
            "--pdeathsig",
            "TERM",
            *entered,
            *(words if words[0] != "-m" else (sys.executable, *words)),
        ]
        if given is not None:
            command.append(json.dumps(given))
        self._processes.append(
            (name, subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out, stderr=log, text=True))
        )

    def _broker(self) -> None:
        assert self._site is not None
        where, size = self.directory, self.size
        (where / "broker.toml").write_text(
            f'listen = "{self.broker}"\ndatabase = "{where / "broker.db"}"\nmetrics = ""\n'
            f'key = "{self._site.broker_key}"\noperator = "{self._site.operator}"\n'
            f'manifests = "{self._site.manifests}"\ncheck_decisions = false\n'
            f'[[service]]\nname = "chat"\nnetwork = ["{GATEWAY}"]\nai = ["{GATEWAY}/ai.chat"]\n'
            f"tick_s = {size.tick_s}\ncalibration_ticks = {size.calibration}\n"
        )
        self._run("broker", None, *_MVPS, "broker", "--config", str(where / "broker.toml"))
        self._wait(lambda: "listens" in (where / "broker.log").read_text(), 60, "broker")

    def _agent(self) -> None:
        assert self._site is not None
        where = self.directory
        (where / "agent.toml").write_text(
            f'[agent]\ntick_ms = {round(self.size.tick_s * 1000)}\nvantage_id = "{GATEWAY}"\nstate_dir = "{where}"\n'
            f'[vantages]\nenable = ["path"]\n[scope]\nnetns = "{self.net.full(GATEWAY)}"\n'
            f"[baseline]\ncalibration_ticks = 60\n"
            f'[trust]\nkey = "{self._site.host_keys[GATEWAY]}"\noperator = "{self._site.operator}"\n'
            f'manifests = "{self._site.manifests}"\n[broker]\ntarget = "{self.broker}"\n[spool]\nmax_mib = 0\n'
            f'[metrics]\naddress = ""\n[local]\nsocket = "{where / "agent.sock"}"\n'
        )
        self._run("agent", GATEWAY, *_MVPS, "agent", "--config", str(where / "agent.toml"))
        self._wait((where / "agent.sock").exists, 60, "agent")

    def _vantage(self) -> None:
        where, size = self.directory, self.size
        families: dict[str, list[str]] = {}
        for number in range(size.canaries):
            families.setdefault(f"topic-{number % 4}", []).append(self.canary(number))
        prompts = []
        for family, contexts in families.items():
            prompts.append(f'[[family]]\nname = "{family}"\ntemplates = ["[ctx {{c}}] Which?", "[ctx {{c}}] Name it."]')
            prompts += [f'[[family.prompt]]\nfill = {{c = ["{context}"]}}' for context in contexts]
        (where / "prompts.toml").write_text("\n".join(prompts) + "\n")
        replicas = "".join(
            f'[[replica]]\nname = "{name}"\nurl = "http://198.18.{10 + number}.2:{PORT}/v1"\nmodel = "testbed"\n'
            "timeout_s = 2.0\n"
            for number, name in enumerate(REPLICAS, 1)
        )
        (where / "ai.toml").write_text(
            f'name = "chat"\nprofile = "grey"\nprompts = "{where / "prompts.toml"}"\nagent = "{where / "agent.sock"}"\n'
            f'{replicas}[encoder]\nurl = "http://127.0.0.1:{PORT + 1}/v1"\nmodel = "words"\ntimeout_s = 2.0\n'
            f"[pace]\nperiod_s = {size.round_s}\nfull_every = 1000\nrephrasings = 1\nreplay_every = 1000\n"
            "requests_per_hour = 1000000\n[calibration]\nscale_ticks = 55\nbaseline_ticks = 150\n"
        )
        self._run("ai", WATCH, *_MVPS, "ai", "probe", "--json", "--config", str(where / "ai.toml"))

    # ---- while it runs

    def inject(self, name: str, what: Mapping[str, Any]) -> None:
        """Tell a replica."""
        process = dict(self._processes)[name]
        assert process.stdin is not None
        process.stdin.write(json.dumps(what) + "\n")
        process.stdin.flush()

    def check(self) -> None:
        """BedError if a process ended."""
        for name, process in self._processes:
            if process.poll() is not None:
                raise BedError(f"{name} ended with {process.returncode}: {self._said(name)}")

    def _said(self, name: str) -> str:
        return (self.directory / f"{name}.log").read_text()[-1500:].strip()

    def _wait(self, condition: Callable[[], bool], seconds: float, name: str) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            self.check()
            if time.monotonic() > deadline:
                raise BedError(f"{name} did not come up in {seconds:g} s: {self._said(name)}")
            time.sleep(0.05)

    def service(self) -> stream_pb2.ServiceState:
        """The service as the broker has it now."""
        with grpc.insecure_channel(self.broker) as channel:
            stub = stream_pb2_grpc.BrokerStub(channel)  # type: ignore[no-untyped-call]
            info = stub.ServerInfo(stream_pb2.ServerInfoRequest(), timeout=10.0)
        found: stream_pb2.ServiceState = info.services.services[0]
        return found

    def ticks(self) -> list[stream_pb2.ServiceTick]:
        """All joint ticks so far, oldest first."""
        found: list[stream_pb2.ServiceTick] = []
        with grpc.insecure_channel(self.broker) as channel:
            stub = stream_pb2_grpc.BrokerStub(channel)  # type: ignore[no-untyped-call]
            while True:
                until = found[-1].tick_time_ns - 1 if found else 0
                request = stream_pb2.ListServiceTicksRequest(service="chat", until_ns=until, limit=_PAGE)
                page = list(stub.ListServiceTicks(request, timeout=10.0).ticks)
                found += page
                if len(page) < _PAGE:
                    return found[::-1]

    def lines(self, name: str) -> list[dict[str, Any]]:
        """What a process printed so far, line by line."""
        whole = (self.directory / f"{name}.out").read_text().rpartition("\n")[0]
        return [json.loads(line) for line in whole.splitlines()]

    def joined(self) -> dict[str, int]:
        """What became of joint ticks and snapshots at the broker, by outcome."""
        with grpc.insecure_channel(self.broker) as channel:
            stub = stream_pb2_grpc.BrokerStub(channel)  # type: ignore[no-untyped-call]
            services = stub.ServerInfo(stream_pb2.ServerInfoRequest(), timeout=10.0).services
        return {**services.ticks, **services.snapshots}

    def cpu_seconds(self) -> dict[str, float]:
        """User and system time of each process so far."""
        found = {}
        for name, process in self._processes:
            fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            found[name] = (int(fields[11]) + int(fields[12])) / _CLOCK_TICKS
        return found

    def close(self) -> None:
        """End what runs, the last one first."""
        for _, process in reversed(self._processes):
            if process.stdin is not None:
                with contextlib.suppress(OSError):
                    process.stdin.close()
            process.terminate()
        for _, process in reversed(self._processes):
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()
        for log in self._logs:
            log.close()


def missing_commands() -> list[str]:
    """What the bed calls and this host does not have."""
    return [name for name in ("ip", "nsenter", "setpriv", "sysctl") if shutil.which(name) is None]


def _written(file: Path) -> bool:
    return file.stat().st_size > 0


@contextlib.contextmanager
def bed(directory: Path, arm: Arm, size: Size, seed: int) -> Iterator[Bed]:
    """A bed in an empty directory, up and asked by its users; gone on every way out."""
    with lab(PREFIX) as net:
        made = Bed(net, directory, arm, size, seed)
        try:
            made.build()
            made.start()
            yield made
        finally:
            made.close()
