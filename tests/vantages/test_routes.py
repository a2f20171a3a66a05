# SPDX-License-Identifier: Apache-2.0
"""Route parsing on messages as pyroute2 gives them, and the live watch in a namespace of its own."""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import time
from multiprocessing.connection import Connection
from typing import Any

import pytest

from mvps.provoke.load import enter_namespace
from mvps.vantages import routes as routes_module
from mvps.vantages.routes import NextHop, RouteWatch, gateway_key, link_key, parse_routes


def route(destination: str | None, length: int, *, family: int = socket.AF_INET, **attributes: Any) -> dict[str, Any]:
    attrs = [("RTA_TABLE", attributes.pop("table", 254))]
    if destination:
        attrs.append(("RTA_DST", destination))
    flags = attributes.pop("flags", 0)
    attrs += list(attributes.items())
    return {"attrs": attrs, "dst_len": length, "type": 1, "table": 254, "family": family, "flags": flags}


def hop(gateway: str, oif: int, weight: int = 1, flags: int = 0) -> dict[str, Any]:
    return {"attrs": [("RTA_GATEWAY", gateway)], "oif": oif, "hops": weight - 1, "flags": flags}


def test_single_multipath_and_on_link_routes() -> None:
    parsed = parse_routes(
        [
            route(None, 0, RTA_GATEWAY="192.0.2.1", RTA_OIF=2),
            route("198.18.0.0", 24, RTA_MULTIPATH=[hop("192.0.2.1", 2, 3), hop("192.0.2.9", 3)]),
            route("192.0.2.0", 24, RTA_OIF=2),
        ],
        [],
        [{"index": 2, "attrs": [("IFLA_IFNAME", "eth0")]}],
    )
    assert parsed.hops == {
        "0.0.0.0/0": {NextHop(2, "192.0.2.1"): 1.0},
        "198.18.0.0/24": {NextHop(2, "192.0.2.1"): 3.0, NextHop(3, "192.0.2.9"): 1.0},
    }
    assert parsed.interfaces == {2: "eth0"}


def test_ipv6_next_hops_that_come_as_separate_messages_are_joined() -> None:
    messages = [
        route(None, 0, family=socket.AF_INET6, RTA_GATEWAY=gateway, RTA_OIF=2) for gateway in ("fe80::1", "fe80::2")
    ]
    assert parse_routes(messages, [], []).hops == {"::/0": {NextHop(2, "fe80::1"): 1.0, NextHop(2, "fe80::2"): 1.0}}


def test_dead_hops_local_tables_and_ipv6_gateways_of_ipv4_routes() -> None:
    parsed = parse_routes(
        [
            route("198.18.0.0", 24, RTA_MULTIPATH=[hop("192.0.2.1", 2), hop("192.0.2.9", 3, flags=1)]),
            route("127.0.0.0", 8, table=255, RTA_GATEWAY="127.0.0.1", RTA_OIF=1),
            route("203.0.113.0", 24, RTA_VIA={"family": 10, "addr": "fe80::9"}, RTA_OIF=2),
        ],
        [],
        [],
    )
    assert parsed.hops == {
        "198.18.0.0/24": {NextHop(2, "192.0.2.1"): 1.0},
        "203.0.113.0/24": {NextHop(2, "fe80::9"): 1.0},
    }


def test_a_full_table_is_truncated_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes_module, "MAX_ROUTES", 3)
    messages = [route(f"10.0.{n}.0", 24, RTA_GATEWAY="192.0.2.1", RTA_OIF=2) for n in range(5)]
    parsed = parse_routes(messages, [], [])
    assert len(parsed.hops) == 3
    assert parsed.truncated


def test_keys_differ_by_interface_and_address() -> None:
    keys = {link_key(2, "02:00:00:00:00:01"), link_key(3, "02:00:00:00:00:01"), link_key(2, "02:00:00:00:00:02")}
    assert len(keys) == 3
    assert all(key & 0xFF == 0 for key in keys)  # the low byte is the TTL's
    assert gateway_key(2, "192.0.2.1") != gateway_key(2, "192.0.2.2") != gateway_key(2, "fe80::1")


def _watch(name: str, pipe: Connection) -> None:
    enter_namespace(name)
    watch = RouteWatch()
    pipe.send(dict(watch.routes.hops))
    pipe.recv()
    deadline = time.monotonic() + 5
    changes = watch.poll()
    while not changes and time.monotonic() < deadline:
        time.sleep(0.05)
        changes = watch.poll()
    pipe.send((dict(changes), dict(watch.routes.hops)))
    watch.close()


@pytest.mark.net
def test_a_changed_route_is_noticed_and_read() -> None:
    name = f"mvps-routes-{os.getpid()}"

    def ip(*words: str) -> None:
        subprocess.run(["ip", "-n", name, *words], check=True)

    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        ip("link", "add", "d0", "type", "veth", "peer", "name", "d1")
        ip("link", "set", "d1", "up")
        ip("address", "add", "198.18.1.1/24", "dev", "d0")
        ip("link", "set", "d0", "up")
        ip("route", "add", "198.18.100.0/24", "nexthop", "via", "198.18.1.2", "nexthop", "via", "198.18.1.3")
        near, far = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(target=_watch, args=(name, far))
        process.start()
        assert near.poll(20)
        before = near.recv()
        assert {h.gateway for h in before["198.18.100.0/24"]} == {"198.18.1.2", "198.18.1.3"}
        ip("route", "replace", "198.18.100.0/24", "via", "198.18.1.2")
        near.send(None)
        assert near.poll(20)
        changes, after = near.recv()
        process.join(10)
        assert changes.get("route_added", 0) + changes.get("route_removed", 0) >= 1
        assert {h.gateway for h in after["198.18.100.0/24"]} == {"198.18.1.2"}
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)
