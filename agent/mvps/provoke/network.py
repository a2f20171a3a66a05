# SPDX-License-Identifier: Apache-2.0
"""A peer behind two next hops: a network namespace, two veth pairs and one multipath route, all removed at the end."""

from __future__ import annotations

import os
import shutil
import subprocess

PORT = 7400
# RFC 2544's benchmark range: never a real destination.
PREFIX = "198.18.100.0/24"
ADDRESSES = [f"198.18.100.{n}" for n in range(1, 17)]  # enough that the kernel's address hash uses both hops
_HOPS = {"a": ("198.18.1.1", "198.18.1.2"), "b": ("198.18.2.1", "198.18.2.2")}


class ProvokeError(RuntimeError):
    """The fault could not be made here; the message says what is missing."""


def run(*words: str, check: bool = True) -> None:
    """Run a command quietly; ProvokeError carries its own words."""
    if shutil.which(words[0]) is None:
        raise ProvokeError(f"needs the command {words[0]}: apt-get install iproute2")
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise ProvokeError(f"{' '.join(words)}: {done.stderr.strip() or done.returncode}")


class TwoHopPeer:
    """Namespace with addresses 198.18.100.1-16, reached over two equal next hops."""

    def __init__(self) -> None:
        ident = os.getpid() % 100000
        self.netns = f"mvps-peer-{ident}"
        self._devices = {side: (f"mvps{ident}{side}", f"peer{ident}{side}") for side in _HOPS}

    def make(self) -> None:
        """Build it; on failure everything made so far is removed."""
        taken = subprocess.run(("ip", "route", "show", PREFIX), capture_output=True, text=True, check=False).stdout
        if taken.strip():
            raise ProvokeError(f"there is a route to {PREFIX} already: another provocation is running on this host")
        try:
            run("ip", "netns", "add", self.netns)
            inside = ("ip", "-n", self.netns)
            run(*inside, "link", "set", "lo", "up")
            for side, (near, far) in self._devices.items():
                own, peer = _HOPS[side]
                run("ip", "link", "add", near, "type", "veth", "peer", "name", far, "netns", self.netns)
                run("ip", "address", "add", f"{own}/30", "dev", near)
                run(*inside, "address", "add", f"{peer}/30", "dev", far)
                run("ip", "link", "set", near, "up")
                run(*inside, "link", "set", far, "up")
            for address in ADDRESSES:
                run(*inside, "address", "add", f"{address}/32", "dev", "lo")
            self._route(*_HOPS)
        except ProvokeError:
            self.remove()
            raise

    def _route(self, *sides: str) -> None:
        hops: list[str] = []
        for side in sides:
            hops += ["nexthop", "via", _HOPS[side][1], "dev", self._devices[side][0], "weight", "1"]
        run("ip", "route", "replace", PREFIX, *hops)

    def withdraw_hop(self) -> None:
        """Take next hop b out of the route; its flows move to a."""
        self._route("a")

    def restore_hop(self) -> None:
        """Both next hops again."""
        self._route(*_HOPS)

    def choke(self, megabits: float) -> None:
        """A token-bucket queue with hardly any buffer on both ways out: packets wait and are dropped."""
        for near, _ in self._devices.values():
            limit = ("rate", f"{megabits}mbit", "burst", "4kb", "limit", "8kb")
            run("tc", "qdisc", "replace", "dev", near, "root", "tbf", *limit)

    def unchoke(self) -> None:
        """Remove the queues."""
        for near, _ in self._devices.values():
            run("tc", "qdisc", "del", "dev", near, "root", check=False)

    def remove(self) -> None:
        """Remove namespace, links and route; idempotent."""
        run("ip", "route", "del", PREFIX, check=False)
        for near, _ in self._devices.values():
            run("ip", "link", "del", near, check=False)
        run("ip", "netns", "del", self.netns, check=False)
