# SPDX-License-Identifier: Apache-2.0
"""A small network of namespaces on this kernel: hosts, routers, links. Everything it made goes when it is closed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

_SYSCTL = {
    # Hash by the 5-tuple, in one known way, so that a test's flows use both paths on every run.
    "net.ipv4.fib_multipath_hash_policy": "1",
    "net.ipv6.fib_multipath_hash_policy": "1",
    "net.ipv4.fib_multipath_hash_seed": "1",
    # Routers limit their answers; here that would only make the tests slow.
    "net.ipv4.icmp_ratelimit": "0",
    "net.ipv4.icmp_msgs_per_sec": "100000",
    "net.ipv6.icmp.ratelimit": "0",
    "net.ipv6.conf.all.accept_dad": "0",
    "net.ipv6.conf.default.accept_dad": "0",
    "net.ipv6.conf.default.router_solicitations": "0",
}


class Lab:
    """Namespaces by short name; their full names carry our process id and the lab's number."""

    _numbers = count()

    def __init__(self) -> None:
        self._made: list[str] = []
        self._prefix = f"mvps-lab-{os.getpid()}-{next(self._numbers)}"

    def full(self, name: str) -> str:
        """The namespace's name for ip(8)."""
        return f"{self._prefix}-{name}"

    def host(self, name: str, *addresses: str, router: bool = False) -> None:
        """A namespace with these addresses on its loopback."""
        subprocess.run(["ip", "netns", "add", self.full(name)], check=True)
        self._made.append(name)
        settings = dict(_SYSCTL)
        if router:
            settings |= {"net.ipv4.ip_forward": "1", "net.ipv6.conf.all.forwarding": "1"}
        self.inside(name, "sysctl", "-q", "-e", "-w", *(f"{key}={value}" for key, value in settings.items()))
        self.ip(name, "link", "set", "lo", "up")
        for address in addresses:
            self.ip(name, "address", "add", address, "dev", "lo")

    def link(self, a: str, address_a: str, b: str, address_b: str) -> None:
        """A veth pair, made once, with one more address on either end; a's end is called ``to-b``, b's ``to-a``."""
        near, far = f"to-{b}", f"to-{a}"
        if not self._has(a, near):
            self.ip(a, "link", "add", near, "type", "veth", "peer", "name", far, "netns", self.full(b))
        for name, device, address in ((a, near, address_a), (b, far, address_b)):
            # Nobody else is on the link: an IPv6 address need not wait until that is certain.
            self.ip(name, "address", "add", address, "dev", device, *(("nodad",) if ":" in address else ()))
            self.ip(name, "link", "set", device, "up")

    def _has(self, name: str, device: str) -> bool:
        words = ("ip", "-n", self.full(name), "link", "show", device)
        return subprocess.run(words, capture_output=True, check=False).returncode == 0

    def ip(self, name: str, *words: str) -> None:
        """``ip`` inside a namespace."""
        subprocess.run(["ip", "-n", self.full(name), *words], check=True)

    def route(self, name: str, prefix: str, *gateways: str, source: str = "") -> None:
        """Set the route to a prefix, over several gateways by equal multipath."""
        family = ("-6",) if ":" in prefix else ()
        hops = [word for gateway in gateways for word in ("nexthop", "via", gateway)]
        preferred = ("src", source) if source else ()
        words = (*family, "-n", self.full(name), "route", "replace", prefix, *preferred, *hops)
        subprocess.run(["ip", *words], check=True)

    def inside(self, name: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command in a namespace's network."""
        return subprocess.run([*self._enter(name), *words], check=True, capture_output=True, text=True)

    def python(self, name: str, script: str, *arguments: str) -> subprocess.Popen[str]:
        """Start a Python script in a namespace's network, with pipes to its input and output."""
        return subprocess.Popen(
            [*self._enter(name), sys.executable, "-c", script, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def _enter(self, name: str) -> tuple[str, ...]:
        return ("nsenter", f"--net=/run/netns/{self.full(name)}")

    def mac(self, name: str, device: str) -> str:
        """Ethernet address of a device."""
        shown = self.inside(name, "ip", "-j", "link", "show", device).stdout
        return str(json.loads(shown)[0]["address"])

    def sent_packets(self, name: str, device: str) -> int:
        """Packets a device has sent, by its own counter."""
        shown = self.inside(name, "ip", "-j", "-s", "link", "show", device).stdout
        return int(json.loads(shown)[0]["stats64"]["tx"]["packets"])

    def close(self) -> None:
        """Remove every namespace, and with them their links and routes."""
        while self._made:
            subprocess.run(["ip", "netns", "del", self.full(self._made.pop())], check=False)


@contextmanager
def lab() -> Iterator[Lab]:
    """A lab that is taken down on every way out."""
    made = Lab()
    try:
        yield made
    finally:
        made.close()


class Agent:
    """A process in a namespace that runs V_path there and answers one JSON line per tick it is asked for."""

    SCRIPT = """
import json, os, sys
from mvps.vantages.cells import Scope
from mvps.vantages.probe_plan import Destination, ProbePlan
from mvps.vantages.registry import VantageSet
asked = json.loads(sys.argv[1])
plan = None
if asked:
    destinations = tuple(Destination(*one) for one in asked.pop("destinations"))
    plan = ProbePlan(destinations, **asked)
vantages = VantageSet.open(["path"], Scope(netns=os.stat("/proc/self/ns/net").st_ino), probe=plan)
for line in sys.stdin:
    seen = vantages.read()
    if not seen:
        raise SystemExit(vantages.states()["path"].reason)
    keys = {k for one in seen.values() for k in one.objects or {}}
    names = vantages.object_names(keys)
    prober = vantages._running["path"]._prober
    answer = {
        name: {
            "objects": sorted(names.get(k, "?") for k in one.objects),
            "prints": {str(k): {str(p): n for p, n in v.items()} for k, v in one.fingerprints.items()},
            "checked": one.checked, "violated": one.violated, "facts": dict(one.facts),
            "events": one.events, "bins": int((one.histogram > 0).sum()),
        }
        for name, one in seen.items()
    }
    answer["state"] = [vantages.states()["path"].state, vantages.states()["path"].reason]
    answer["losses"] = vantages.losses()
    answer["child"] = prober.pid if prober else 0
    answer["paths"] = [[*key, hops] for key, hops in prober.findings.paths().items()] if prober else []
    print(json.dumps(answer), flush=True)
vantages.close()
"""

    def __init__(self, lab: Lab, host: str, plan: dict[str, Any] | None = None) -> None:
        self.process = lab.python(host, self.SCRIPT, json.dumps(plan))

    def tick(self) -> dict[str, Any]:
        """One tick's observations, the vantage's state and losses."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("tick\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, "the agent in the namespace ended; its words are above"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.stdin:
            self.process.stdin.close()
        try:
            self.process.wait(10)
        finally:
            self.process.kill()
            self.process.wait()
            if self.process.stdout:
                self.process.stdout.close()
