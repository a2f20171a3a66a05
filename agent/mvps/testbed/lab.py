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

    def __init__(self, prefix: str = "mvps-lab") -> None:
        self._made: list[str] = []
        self._prefix = f"{prefix}-{os.getpid()}-{next(self._numbers)}"

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
        return subprocess.run([*self.enter(name), *words], check=True, capture_output=True, text=True)

    def python(self, name: str, script: str, *arguments: str) -> subprocess.Popen[str]:
        """Start a Python script in a namespace's network, with pipes to its input and output."""
        return subprocess.Popen(
            [*self.enter(name), sys.executable, "-c", script, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def enter(self, name: str) -> tuple[str, ...]:
        """Words before a command that is to run in a namespace's network."""
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


def sweep(prefix: str) -> list[str]:
    """Remove what labs of this prefix left behind whose process is gone (killed); their namespaces' names."""
    shown = subprocess.run(["ip", "netns", "list"], check=True, capture_output=True, text=True).stdout
    left = []
    for line in shown.splitlines():
        name = line.split()[0]
        owner = name.removeprefix(f"{prefix}-").split("-")[0]
        if name.startswith(f"{prefix}-") and owner.isdigit() and not os.path.exists(f"/proc/{owner}"):
            subprocess.run(["ip", "netns", "del", name], check=False)
            left.append(name)
    return left


@contextmanager
def lab(prefix: str = "mvps-lab") -> Iterator[Lab]:
    """A lab that is taken down on every way out."""
    made = Lab(prefix)
    try:
        yield made
    finally:
        made.close()
