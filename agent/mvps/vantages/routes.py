# SPDX-License-Identifier: Apache-2.0
"""The host's routes, gateways and neighbours, kept current over netlink.

Changes are noticed on a raw rtnetlink socket (routes, next-hop objects, neighbours, links), counted by kind, and
answered by one fresh dump through pyroute2: at most one per second, because a host with a full table pays for each.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pyroute2 import IPRoute

# linux/rtnetlink.h: multicast groups and message types.
_GROUPS = {"neigh": 3, "ipv4_route": 7, "ipv6_route": 11, "link": 1, "nexthop": 32}
_KINDS = {
    16: "link",
    17: "link",
    24: "route_added",
    25: "route_removed",
    28: "neighbour",
    29: "neighbour",
    104: "nexthop_added",
    105: "nexthop_removed",
}
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_UNICAST, _LOCAL_TABLE = 1, 255
_HOP_DEAD = 1  # RTNH_F_DEAD: the next hop's link is down
_DUMP_INTERVAL_S = 1.0
# A host with more gateway routes than this is a router; its first routes in the kernel's order stand for the rest.
# A baseline names every (prefix, next hop) edge three times and must fit a snapshot (trust/limits.py).
MAX_ROUTES = 1024

_FNV_OFFSET, _FNV_PRIME, _MASK = 0xCBF29CE484222325, 0x100000001B3, (1 << 64) - 1


def _mix(words: Iterable[int]) -> int:
    state = _FNV_OFFSET
    for word in words:
        state = ((state ^ word) * _FNV_PRIME) & _MASK
    return state


def link_key(ifindex: int, mac: str) -> int:
    """Key of (interface, Ethernet address) as bpf/path.bpf.c computes it; the low byte is 0."""
    octets = bytes.fromhex(mac.replace(":", ""))
    words = (ifindex, int.from_bytes(octets[:3], "big"), int.from_bytes(octets[3:], "big"))
    return _mix(words) & ~0xFF & _MASK


def gateway_key(ifindex: int, gateway: str) -> int:
    """Key of (interface, gateway) as bpf/path.bpf.c computes it; an empty gateway is an on-link IPv4 route."""
    packed = ipaddress.ip_address(gateway).packed if gateway else b"\0\0\0\0"
    return _mix((ifindex, *struct.unpack(f"={len(packed) // 4}I", packed)))


@dataclass(frozen=True, slots=True, order=True)
class NextHop:
    """One way out: an interface and the gateway behind it."""

    ifindex: int
    gateway: str


@dataclass(frozen=True, slots=True)
class Routes:
    """One consistent reading of the tables.

    hops: destination prefix -> next hop -> weight; gateway routes only, dead next hops left out.
    neighbours: next hop -> Ethernet address.
    interfaces: ifindex -> name.
    """

    hops: Mapping[str, Mapping[NextHop, float]] = field(default_factory=dict)
    neighbours: Mapping[NextHop, str] = field(default_factory=dict)
    interfaces: Mapping[int, str] = field(default_factory=dict)
    truncated: bool = False

    def gateways(self) -> set[NextHop]:
        """Every next hop some route uses."""
        return {hop for hops in self.hops.values() for hop in hops}


def parse_routes(
    routes: Iterable[Mapping[str, Any]],
    neighbours: Iterable[Mapping[str, Any]],
    links: Iterable[Mapping[str, Any]],
) -> Routes:
    """Routes from pyroute2's messages (rtnetlink(7))."""
    hops: dict[str, dict[NextHop, float]] = {}
    truncated = False
    for message in routes:
        attributes = dict(message["attrs"])
        if message["type"] != _UNICAST or attributes.get("RTA_TABLE", message["table"]) == _LOCAL_TABLE:
            continue
        found: dict[NextHop, float] = {}
        for hop in attributes.get("RTA_MULTIPATH") or ():
            gateway = _gateway(dict(hop["attrs"]))
            if gateway and not hop["flags"] & _HOP_DEAD:
                found[NextHop(hop["oif"], gateway)] = hop["hops"] + 1.0  # rtnh_hops is the weight less one
        gateway = _gateway(attributes)
        if gateway and "RTA_OIF" in attributes and not message["flags"] & _HOP_DEAD:
            found[NextHop(attributes["RTA_OIF"], gateway)] = 1.0
        if not found:
            continue
        default = "::" if message["family"] == socket.AF_INET6 else "0.0.0.0"
        prefix = f"{attributes.get('RTA_DST', default)}/{message['dst_len']}"
        if len(hops) >= MAX_ROUTES and prefix not in hops:
            truncated = True
            continue
        hops.setdefault(prefix, {}).update(found)  # IPv6 lists each next hop of a route as a message of its own
    addresses: dict[NextHop, str] = {}
    for message in neighbours:
        attributes = dict(message["attrs"])
        if attributes.get("NDA_LLADDR") and attributes.get("NDA_DST"):
            addresses[NextHop(message["ifindex"], attributes["NDA_DST"])] = attributes["NDA_LLADDR"]
    names = {message["index"]: dict(message["attrs"]).get("IFLA_IFNAME", "") for message in links}
    return Routes(hops, addresses, names, truncated)


def _gateway(attributes: Mapping[str, Any]) -> str:
    via = attributes.get("RTA_VIA")  # an IPv4 route over an IPv6 gateway
    return str(attributes.get("RTA_GATEWAY") or (via or {}).get("addr") or "")


class RouteWatch:
    """The current :class:`Routes` of this process's network namespace, and what changed."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.setblocking(False)
        self._socket.bind((0, 0))
        self.unwatched: list[str] = []
        for name, group in _GROUPS.items():
            try:
                self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
            except OSError:
                self.unwatched.append(name)
        self._ipr = IPRoute()
        self.overruns = 0
        self.changes: Counter[str] = Counter()
        self._stale = True
        self._next_dump = 0.0
        self.routes = Routes()
        self.poll()

    def poll(self) -> Counter[str]:
        """Take in pending events; return their numbers by kind since the last call."""
        seen: Counter[str] = Counter()
        while True:
            try:
                data = self._socket.recv(1 << 16)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.overruns += 1  # events were lost; the dump below makes up for them
                self._stale = True
                continue
            offset = 0
            while offset + 16 <= len(data):
                length, kind = struct.unpack_from("=IH", data, offset)
                if length < 16:
                    break
                seen[_KINDS.get(kind, "other")] += 1
                offset += (length + 3) & ~3
            self._stale = True
        self.changes.update(seen)
        now = time.monotonic()
        urgent = any(kind.startswith(("route", "nexthop")) for kind in seen)
        if self._stale and (now >= self._next_dump or (urgent and len(self.routes.hops) < MAX_ROUTES // 16)):
            self._next_dump = now + _DUMP_INTERVAL_S
            self._stale = False
            self.routes = self._dump()
        return seen

    def _dump(self) -> Routes:
        routes = [*self._ipr.get_routes(family=socket.AF_INET), *self._ipr.get_routes(family=socket.AF_INET6)]
        current = parse_routes(routes, self._ipr.get_neighbours(), self._ipr.get_links())
        # A gateway's Ethernet address outlives its neighbour entry: its last packets still need a name.
        remembered = {hop: mac for hop, mac in self.routes.neighbours.items() if hop not in current.neighbours}
        return Routes(current.hops, {**remembered, **current.neighbours}, current.interfaces, current.truncated)

    def close(self) -> None:
        """Close the sockets."""
        self._socket.close()
        self._ipr.close()


def own_namespace() -> int:
    """Inode of this process's network namespace."""
    return os.stat("/proc/self/ns/net").st_ino
