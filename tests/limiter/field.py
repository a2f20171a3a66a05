# SPDX-License-Identifier: Apache-2.0
"""A site on this kernel: broker, vantages and an outsider in namespaces of their own, on veth pairs to the broker's.

Segmentation and checksum offloads are off, so that XDP sees what a network card would deliver. Used by the tests of
this folder and by bench/flood.py and bench/spoof.py.
"""

from __future__ import annotations

import ipaddress
import json
import os
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from mvps.limiter.attach import NotAttachedError, detach
from mvps.limiter.counters import proven_flows
from mvps.testbed.lab import Lab
from mvps.trust.solo import make_site

ROOT = Path(__file__).resolve().parents[2]
PORT = 7447
_WAIT_S = 60  # a hang, not a measurement

IpVersion: TypeAlias = Literal["4", "6", "4 on 6"]


class Vantage:
    """A sending process (vantage.py) in its host's namespace."""

    def __init__(self, process: subprocess.Popen[str], source: str) -> None:
        self.process = process
        self.source = source
        self._result: dict[str, Any] | None = None

    def end(self) -> dict[str, Any]:
        """End it and return what it saw."""
        if self._result is None:
            assert self.process.stdout is not None
            out, _ = self.process.communicate("", timeout=_WAIT_S)
            self._result = json.loads(out.splitlines()[-1])
        return self._result

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Field:
    """The site. ``hosts`` are vantages; the outsider is called ``x``.

    ip: version; "4 on 6" are vantages with IPv4 at a broker on ``[::]``, whose sockets show mapped addresses.
    cpus: of the broker, of the vantages, and of floods; None lets them run anywhere. On a veth pair XDP program and
    stack of the receiving side run on the sender's CPU.
    """

    def __init__(
        self,
        folder: Path,
        hosts: Sequence[str],
        tick_ms: int = 1000,
        cpus: tuple[int, int, int] | None = None,
        crowd: int = 0,
        ip: IpVersion = "4",
    ) -> None:
        self.cpus = cpus
        self.ip: IpVersion = ip
        self.folder = folder
        self.hosts = tuple(hosts)
        self.pins = folder / "pins"
        self.lab = Lab()
        self._processes: list[subprocess.Popen[Any]] = []
        self._vantages: list[Vantage] = []
        self.broker: subprocess.Popen[Any] | None = None
        # A host's crowd sends from its address too: h1, h1-0, h1-1 ...
        names = [*self.hosts, *(f"{name}-{number}" for name in self.hosts for number in range(crowd))]
        site = make_site(folder, names, tick_ms=tick_ms)
        vantages = [
            one._replace(prefixes=(ipaddress.ip_network(self.address(one.vantage_id.partition("-")[0])),))
            for one in site.manifest.vantages
        ]
        manifest = replace(site.manifest, vantages=tuple(vantages))
        site.sign(manifest)
        self.site = replace(site, manifest=manifest)
        self.lab.host("broker")
        for name in (*self.hosts, "x"):
            self.lab.host(name)
            self.connect(name)
        # The outsider's packets carry addresses that live elsewhere.
        for key in ("all", "default", self.device("x")):
            self.lab.inside("broker", "sysctl", "-q", "-w", f"net.ipv4.conf.{key}.rp_filter=0")

    def connect(self, name: str) -> None:
        """Make the veth pair between a namespace and the broker's."""
        length = 64 if self.ip == "6" else 30
        self.lab.link(name, f"{self.address(name)}/{length}", "broker", f"{self.broker_address(name)}/{length}")
        for where, device in ((name, "to-broker"), ("broker", self.device(name))):
            words = ("ethtool", "-K", device, "tx", "off", "tso", "off", "gso", "off", "gro", "off")
            subprocess.run([*self.enter(where), *words], check=True, capture_output=True)

    def _number(self, name: str) -> int:
        return 250 if name == "x" else self.hosts.index(name)

    def address(self, name: str) -> str:
        """Address of a host or the outsider."""
        return f"fd07:231:{self._number(name):x}::2" if self.ip == "6" else f"10.231.{self._number(name)}.2"

    def broker_address(self, name: str) -> str:
        """Address of the broker on the same link."""
        return f"{self.address(name)[:-1]}1"

    def source(self, name: str) -> str:
        """What `mvps broker limits` names a host as a source: an IPv6 host has a whole /64."""
        return str(ipaddress.ip_network(f"{self.address(name)}/{64 if self.ip == '6' else 32}", strict=False))

    def device(self, name: str) -> str:
        """The broker's end of a link."""
        return f"to-{name}"

    def enter(self, name: str) -> list[str]:
        """Words that run a command in a namespace's network."""
        return ["nsenter", f"--net=/run/netns/{self.lab.full(name)}"]

    def _on(self, which: int) -> list[str]:
        return ["taskset", "--cpu-list", str(self.cpus[which])] if self.cpus else []

    # ---- processes

    def _environment(self) -> dict[str, str]:
        paths = (ROOT / "agent", ROOT / "tests/broker")
        return {**os.environ, "PYTHONPATH": ":".join(map(str, paths)), "GRPC_VERBOSITY": "NONE"}

    def mvps(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the command line in the broker's namespace."""
        command = [*self.enter("broker"), sys.executable, "-m", "mvps.cli.main", *words]
        return subprocess.run(command, capture_output=True, text=True, check=check, env=self._environment())

    def attach(self, *names: str, options: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
        """Attach the limiter to the links of these hosts and the outsider."""
        interfaces = [word for name in names or (*self.hosts, "x") for word in ("--interface", self.device(name))]
        manifests = ("--manifests", str(self.site.manifests), "--operator", self.site.operator)
        words = ("broker", "attach", *interfaces, "--limiter", str(self.pins), *manifests, *options)
        return self.mvps(*words)

    def limits(self) -> dict[str, Any]:
        """What `mvps broker limits --json` shows."""
        shown = self.mvps("broker", "limits", "--json", "--limiter", str(self.pins), check=False)
        answer: dict[str, Any] = json.loads(shown.stdout)
        return answer

    def packets(self) -> dict[str, int]:
        """Packets by verdict."""
        return {name: seen["packets"] for name, seen in self.limits()["verdicts"].items()}

    def start_broker(self, *words: str, limited: bool = True) -> None:
        """Start the broker and wait until it listens."""
        listen = f"0.0.0.0:{PORT}" if self.ip == "4" else f"[::]:{PORT}"
        command = [
            *self._on(0), *self.enter("broker"), sys.executable, "-m", "mvps.cli.main", "broker", "--listen", listen,
            "--database", str(self.folder / "broker.db"), "--key", str(self.site.broker_key),
            "--operator", self.site.operator, "--manifests", str(self.site.manifests), "--metrics", "127.0.0.1:9466",
            "--limiter", str(self.pins) if limited else "", *words,
        ]  # fmt: skip
        log = open(self.folder / "broker.log", "ab")  # noqa: SIM115 - the process's own
        self.broker = subprocess.Popen(command, stdout=log, stderr=log, env=self._environment())
        self._processes.append(self.broker)
        log.close()
        self.until(self._listening)

    def _listening(self) -> bool:
        assert self.broker is not None
        assert self.broker.poll() is None, (self.folder / "broker.log").read_text()
        shown = subprocess.run([*self.enter("broker"), "ss", "-ltnH", f"sport = :{PORT}"], capture_output=True)
        return bool(shown.stdout)

    def vantage(self, name: str, period_s: float = 0.05, identities: Sequence[str] = (), cpu: int = 1) -> Vantage:
        """Start a vantage on a host, or several of the host's crowd in one process; ``cpu`` is which of ``cpus``."""
        address = self.broker_address(name)
        target = f"[{address}]:{PORT}" if self.ip == "6" else f"{address}:{PORT}"
        script = str(Path(__file__).with_name("vantage.py"))
        words = [sys.executable, script, str(self.folder), target, str(period_s), *(identities or [name])]
        with open(self.folder / "vantages.log", "ab") as log:
            process = subprocess.Popen(
                [*self._on(cpu), *self.enter(name), *words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=self._environment(),
            )
        assert process.stdout is not None
        said = process.stdout.readline()
        assert said == "sending\n", (self.folder / "vantages.log").read_text()
        self._vantages.append(Vantage(process, self.address(name)))
        return self._vantages[-1]

    def flood(
        self, name: str, frames: Iterable[bytes], rate: int, seconds: float, device: str = "to-broker"
    ) -> subprocess.Popen[str]:
        """Send frames from a namespace to the broker, over and over. Its last line tells how many, and its CPU time."""
        with tempfile.NamedTemporaryFile(dir=self.folder, suffix=".frames", delete=False) as file:
            for frame in frames:
                file.write(struct.pack("=I", len(frame)) + frame)
        words = [*self._on(2), *self.enter(name), str(generator()), device, file.name, str(rate), str(seconds)]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        self._processes.append(process)
        return process

    def frame(self, sender: str, source: str, target: str, segment: Any) -> bytes:
        """An Ethernet frame on a sender's link, from any IP source to one of the broker's addresses."""
        link = Ether(src=self.lab.mac(sender, "to-broker"), dst=self.lab.mac("broker", self.device(sender)))
        network = IPv6 if self.ip == "6" else IP
        return bytes(link / network(src=source, dst=target) / segment)

    def spoofed(self, victim: str, flags: str, ports: Sequence[int], payload: bytes = b"") -> list[bytes]:
        """TCP segments of the outsider in the name of a vantage."""
        first = self.frame(
            "x", self.address(victim), self.broker_address(victim), TCP(dport=PORT, sport=1, flags=flags) / payload
        )
        made = []
        link = Ether(first)
        for port in ports:
            link[TCP].sport, link[TCP].seq = port, port * 7919
            del link[TCP].chksum
            made.append(bytes(link))
        return made

    def void(self, name: str) -> str:
        """A device in a namespace behind which an empty XDP program drops everything: where a flood costs least."""
        flags = ["-target", "bpf", "-mcpu=v3", "-g", "-O2", "-Wall", "-Werror", "-Ibpf"]
        made = ["-c", "bench/bpf/xdp_peers.bpf.c", "-o", str(self.folder / "peers.o")]
        subprocess.run(["clang", *flags, *made], cwd=ROOT, check=True)
        self.lab.ip(name, "link", "add", "void", "type", "veth", "peer", "name", "void-end")
        program = ("xdpdrv", "object", str(self.folder / "peers.o"), "program", "empty_drop")
        self.lab.ip(name, "link", "set", "void-end", *program)
        for device in ("void", "void-end"):
            self.lab.ip(name, "link", "set", device, "up")
        return "void"

    def cpu_ns(self) -> int:
        """CPU time of the broker's process so far, of the threads there are."""
        assert self.broker is not None
        assert self.broker.poll() is None, f"the broker has ended: {self.broker.returncode}"
        return sum(
            int((task / "schedstat").read_text().split()[0]) for task in Path(f"/proc/{self.broker.pid}/task").iterdir()
        )

    def source_port(self, name: str) -> int:
        """Local port of a host's connection to the broker."""
        shown = subprocess.run(
            [*self.enter(name), "ss", "-tnH", "state", "established", f"dport = :{PORT}"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        return int(shown.split()[2].rpartition(":")[2])

    # ---- waiting and ending

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something that has to happen."""
        deadline = time.monotonic() + _WAIT_S
        while not condition():
            assert time.monotonic() < deadline, "waited in vain; " + (self.folder / "broker.log").read_text()[-500:]
            time.sleep(0.05)

    def proven(self, number: int) -> None:
        """Wait until so many flows are proven."""
        self.until(lambda: proven_flows(self.pins) == number)

    def close(self) -> None:
        """End and remove everything."""
        for vantage in self._vantages:
            vantage.kill()
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()
        with suppress(NotAttachedError):
            detach(self.pins)
        self.lab.close()


@contextmanager
def field(
    folder: Path,
    *hosts: str,
    tick_ms: int = 1000,
    cpus: tuple[int, int, int] | None = None,
    crowd: int = 0,
    ip: IpVersion = "4",
) -> Iterator[Field]:
    """A field that is taken down on every way out."""
    made = Field(folder, hosts, tick_ms, cpus, crowd, ip)
    try:
        yield made
    finally:
        made.close()


def generator() -> Path:
    """The packet generator, compiled if it has changed."""
    source, target = ROOT / "bench/packets.c", ROOT / "bench/work/packets"
    if not target.exists() or target.stat().st_mtime < source.stat().st_mtime:
        target.parent.mkdir(exist_ok=True)
        command = ["clang", "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", str(source), "-o", str(target)]
        subprocess.run(command, check=True)
    return target
