# SPDX-License-Identifier: Apache-2.0
"""V_path and its prober between real namespaces: parallel routers, withdrawn next hops, impossible places, bounds.

s --- b1 --- b2 --- d      198.19.0.1 and fd19::1 on s, 198.19.100.1 and fd19:100::1 on d
 \\--- c1 --- c2 --/        two routers in a row on each side, so that a mixed path would show
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from path_agent import Agent

from mvps.testbed.lab import Lab, lab
from mvps.vantages.keys import stable_key

pytestmark = pytest.mark.net

NEAR, FAR = "198.19.0.1", "198.19.100.1"
NEAR6, FAR6 = "fd19::1", "fd19:100::1"
# By side: (s, first router), (first, second), (second, d).
LINKS = {
    "b": [("198.19.1.1", "198.19.1.2"), ("198.19.2.1", "198.19.2.2"), ("198.19.3.1", "198.19.3.2")],
    "c": [("198.19.4.1", "198.19.4.2"), ("198.19.5.1", "198.19.5.2"), ("198.19.6.1", "198.19.6.2")],
}
LINKS6 = {
    side: [tuple(f"fd19:{a.split('.')[2]}::{a.split('.')[3]}" for a in pair) for pair in pairs]
    for side, pairs in LINKS.items()
}
PATH_B = ["198.19.1.2", "198.19.2.2", FAR]
PATH_C = ["198.19.4.2", "198.19.5.2", FAR]
FLOWS = 8
SWEEP = {"rate": 50, "flows": FLOWS, "timeout": 0.5}


def build(net: Lab) -> None:
    net.host("s", f"{NEAR}/32", f"{NEAR6}/128")
    net.host("d", f"{FAR}/32", f"{FAR6}/128")
    for side in LINKS:
        names = ("s", f"{side}1", f"{side}2", "d")
        for router in names[1:3]:
            net.host(router, router=True)
        for version, links in ((4, LINKS[side]), (6, LINKS6[side])):
            near, far, length = (NEAR, FAR, 30) if version == 4 else (NEAR6, FAR6, 64)
            whole = 32 if version == 4 else 128
            for (a, b), (at_a, at_b) in zip(pairwise(names), links, strict=True):
                net.link(a, f"{at_a}/{length}", b, f"{at_b}/{length}")
            for position in (1, 2):
                net.route(names[position], f"{far}/{whole}", links[position][1])
                net.route(names[position], f"{near}/{whole}", links[position - 1][0])
    restore(net)
    for near, links in ((f"{NEAR}/32", LINKS), (f"{NEAR6}/128", LINKS6)):
        net.route("d", near, *(links[side][2][0] for side in LINKS))


def restore(net: Lab) -> None:
    net.route("s", f"{FAR}/32", *(LINKS[side][0][1] for side in LINKS), source=NEAR)
    net.route("s", f"{FAR6}/128", *(LINKS6[side][0][1] for side in LINKS6), source=NEAR6)


@pytest.fixture(scope="module")
def net() -> Iterator[Lab]:
    with lab() as made:
        build(made)
        yield made


@pytest.fixture
def routes(net: Lab) -> Iterator[Lab]:
    """For tests that change routes: both paths are back afterwards."""
    yield net
    restore(net)


def plan(address: str = FAR, **changes: Any) -> dict[str, Any]:
    return {"destinations": [[address]], **SWEEP, **changes}


def until(agent: Agent, condition: Callable[[dict[str, Any]], bool], seconds: float = 60.0) -> dict[str, Any]:
    """Tick until the condition holds; the wait is bounded, not judged."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        seen = agent.tick()
        if condition(seen):
            return seen
        time.sleep(0.2)
    raise AssertionError(f"did not come to pass in {seconds:g} s; last: {json.dumps(seen)[:2000]}")


def paths(seen: dict[str, Any]) -> dict[int, list[str]]:
    return {flow: hops for _, flow, hops in seen["paths"]}


def all_walked(times: int) -> Callable[[dict[str, Any]], bool]:
    """Every flow has been walked so often."""

    def done(seen: dict[str, Any]) -> bool:
        return len(seen["paths"]) == FLOWS and seen["path"]["facts"].get("probe.answered", 0) >= times * 3 * FLOWS

    return done


@pytest.mark.parametrize(("address", "sides"), [(FAR, LINKS), (FAR6, LINKS6)], ids=["ipv4", "ipv6"])
def test_both_paths_are_found_and_each_flow_keeps_its_own(
    net: Lab, address: str, sides: dict[str, list[tuple[str, str]]]
) -> None:
    with Agent(net, "s", plan(address)) as agent:
        first = until(agent, all_walked(1))
        later = until(agent, all_walked(4))
    expected = [[sides[side][0][1], sides[side][1][1], address] for side in sides]
    assert sorted({tuple(hops) for hops in paths(first).values()}) == sorted(map(tuple, expected))
    assert paths(later) == paths(first)
    # Since the first walk: one fingerprint per flow, two in all.
    walks = [prints for prints in later["path"]["prints"].values() if sum(prints.values()) >= 3]
    by_flow = [set(prints) for prints in walks if len(prints) == 1]
    assert len(by_flow) >= FLOWS
    for near, far in zip([expected[0][0], expected[1][0]], [expected[0][1], expected[1][1]], strict=True):
        assert {f"self -> {near}", f"{near} -> {far}", f"{far} -> {address}"} <= set(later["path"]["objects"])
    assert not any(f"{expected[0][0]} -> {expected[1][1]}" == edge for edge in later["path"]["objects"])
    assert later["state"] == ["ok", ""]
    assert {cause: n for cause, n in later["losses"].items() if n} == {}


def test_routers_that_spread_by_flow_label_keep_a_flow_together(net: Lab) -> None:
    policy = "net.ipv6.fib_multipath_hash_policy"
    net.inside("s", "sysctl", "-q", "-w", f"{policy}=0")  # the kernel's default: addresses and flow label
    try:
        with Agent(net, "s", plan(FAR6)) as agent:
            first = until(agent, all_walked(1))
            later = until(agent, all_walked(3))
        with Agent(net, "s", plan(FAR6)) as agent:
            again = until(agent, all_walked(1))
    finally:
        net.inside("s", "sysctl", "-q", "-w", f"{policy}=1")
    assert {hops[0] for hops in paths(first).values()} == {sides[0][1] for sides in LINKS6.values()}
    assert paths(first) == paths(later) == paths(again)


def test_downstream_multipath_is_found_too_and_stays_stable(net: Lab) -> None:
    """The same from behind one router: now b1 and c1 are chosen by a router that sees nothing but packets."""
    with lab() as behind:
        behind.host("s", f"{NEAR}/32")
        behind.host("r", router=True)
        behind.host("d", f"{FAR}/32")
        behind.link("s", "198.19.10.1/30", "r", "198.19.10.2/30")
        for number, name in ((11, "b"), (12, "c")):
            behind.host(name, router=True)
            behind.link("r", f"198.19.{number}.1/30", name, f"198.19.{number}.2/30")
            behind.link(name, f"198.19.{number + 10}.1/30", "d", f"198.19.{number + 10}.2/30")
            behind.route(name, f"{FAR}/32", f"198.19.{number + 10}.2")
            behind.route(name, f"{NEAR}/32", f"198.19.{number}.1")
        behind.route("s", f"{FAR}/32", "198.19.10.2", source=NEAR)
        behind.route("r", f"{FAR}/32", "198.19.11.2", "198.19.12.2")
        behind.route("r", f"{NEAR}/32", "198.19.10.1")
        behind.route("d", f"{NEAR}/32", "198.19.21.1", "198.19.22.1")
        # A veth hands the sender's socket hash, drawn at random, on to the router: 2^-15 that all flows agree.
        with Agent(behind, "s", plan(flows=16)) as agent:
            first = until(agent, lambda s: len(s["paths"]) == 16)
            answered = first["path"]["facts"]["probe.answered"]
            later = until(agent, lambda s: s["path"]["facts"]["probe.answered"] >= answered + 3 * 3 * 16)
    middle = [hops[1] for hops in paths(first).values()]
    assert set(middle) == {"198.19.11.2", "198.19.12.2"}
    assert {len(hops) for hops in paths(first).values()} == {3}
    assert paths(later) == paths(first)


def test_a_withdrawn_next_hop_moves_exactly_the_flows_that_used_it(routes: Lab) -> None:
    with Agent(routes, "s", plan()) as agent:
        before = paths(until(agent, all_walked(2)))
        assert {tuple(hops) for hops in before.values()} == {tuple(PATH_B), tuple(PATH_C)}
        routes.route("s", f"{FAR}/32", LINKS["c"][0][1], source=NEAR)
        seen = until(agent, lambda s: all(hops == PATH_C for hops in paths(s).values()))
        # The walk after the change is the newest in each flow's memory, so that all had time for one more.
        # Passive fingerprints (a prefix's next hops, received TTLs) stand in the same table: pick the flows by key.
        # A walk that was under way when the route changed may have left a third one, of half this path and half that.
        prints = {flow: len(seen["path"]["prints"][str(stable_key("flow", FAR, flow))]) for flow in before}
        assert {flow for flow, number in prints.items() if number > 1} == {
            flow for flow, hops in before.items() if hops == PATH_B
        }
        assert f"{PATH_B[0]} -> {PATH_B[1]}" not in seen["path"]["objects"]
        # The routing table's own view tells the same story.
        kept = [name for name in seen["path_fib"]["objects"] if name.startswith(f"{FAR}/32 via ")]
        assert [name.split(" via ")[1].split("/")[0] for name in kept] == ["to-c1"]


def test_a_silent_router_changes_no_fingerprint(routes: Lab) -> None:
    with Agent(routes, "s", plan()) as agent:
        before = until(agent, all_walked(2))
        # b1 goes on forwarding, but may send no ICMP error of its own.
        routes.inside("b1", "sysctl", "-q", "-w", "net.ipv4.icmp_msgs_per_sec=0", "net.ipv4.icmp_msgs_burst=0")
        try:
            unanswered = before["path"]["facts"]["probe.unanswered"]
            after = until(agent, lambda s: s["path"]["facts"]["probe.unanswered"] >= unanswered + 4)
        finally:
            routes.inside(
                "b1", "sysctl", "-q", "-w", "net.ipv4.icmp_msgs_per_sec=100000", "net.ipv4.icmp_msgs_burst=50"
            )
    assert paths(after) == paths(before)
    assert f"{PATH_B[0]} -> {PATH_B[1]}" in after["path"]["objects"]


def test_impossible_places_violate_the_check_and_possible_ones_hold(net: Lab) -> None:
    # 45 degrees of longitude on the equator: 5,004 km, 50 ms. The namespace is some 100 us away.
    far_away = plan(destinations=[[FAR, 0.0, 45.0]], site=[0.0, 0.0])
    with Agent(net, "s", far_away) as agent:
        seen = until(agent, all_walked(1))
        assert (seen["path"]["checked"], seen["path"]["violated"]) == (1.0, 1.0)
        assert seen["path"]["facts"][f"probe.least_ms.{FAR}"] == pytest.approx(50.04, abs=0.01)
        assert seen["path"]["facts"][f"probe.rtt_ms.{FAR}"] < 50.0
    here = plan(destinations=[[FAR, 0.0, 0.0]], site=[0.0, 0.0])
    with Agent(net, "s", here) as agent:
        seen = until(agent, all_walked(1))
        assert (seen["path"]["checked"], seen["path"]["violated"]) == (1.0, 0.0)


def test_the_rate_is_never_exceeded() -> None:
    with lab() as quiet:
        for name, address in (("s", f"{NEAR}/32"), ("d", f"{FAR}/32")):
            quiet.host(name, address)
            quiet.inside(name, "sysctl", "-q", "-w", "net.ipv6.conf.default.disable_ipv6=1")  # its own chatter
        quiet.link("s", "198.19.40.1/30", "d", "198.19.40.2/30")
        quiet.ip("s", "neigh", "add", "198.19.40.2", "lladdr", quiet.mac("d", "to-s"), "dev", "to-d")
        quiet.ip("d", "neigh", "add", "198.19.40.1", "lladdr", quiet.mac("s", "to-d"), "dev", "to-s")
        quiet.route("s", f"{FAR}/32", "198.19.40.2", source=NEAR)
        quiet.route("d", f"{NEAR}/32", "198.19.40.1")
        before = quiet.sent_packets("s", "to-d")
        started = time.monotonic()
        with Agent(quiet, "s", plan(rate=20)) as agent:
            told = until(agent, lambda s: s["path"]["facts"]["probe.sent"] >= 60)["path"]["facts"]["probe.sent"]
        sent = quiet.sent_packets("s", "to-d") - before
        elapsed = time.monotonic() - started
    assert told <= sent <= 20 * elapsed + 1


def test_nothing_is_sent_when_off(net: Lab) -> None:
    def out_datagrams() -> int:
        rows = [line.split() for line in net.inside("s", "cat", "/proc/net/snmp").stdout.splitlines()]
        names, values = (row for row in rows if row[0] == "Udp:")
        return int(values[names.index("OutDatagrams")])

    before = out_datagrams()
    with Agent(net, "s") as agent:
        for _ in range(5):
            seen = agent.tick()
            time.sleep(0.2)
        assert seen["child"] == 0
        assert not any(name.startswith("probe") for name in (*seen["path"]["facts"], *seen["losses"]))
        assert net.inside("s", "cat", "/proc/net/raw").stdout.count("\n") == 1  # its heading
    assert out_datagrams() == before


def test_a_killed_agent_leaves_no_prober_and_no_socket(net: Lab) -> None:
    with Agent(net, "s", plan()) as agent:
        child = until(agent, all_walked(1))["child"]
        assert child
        assert net.inside("s", "cat", "/proc/net/raw").stdout.count("\n") == 2
        os.kill(agent.process.pid, signal.SIGKILL)
        agent.process.wait()
        deadline = time.monotonic() + 30
        while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
            if "\nState:\tZ" in Path(f"/proc/{child}/status").read_text():
                break
            time.sleep(0.05)
        assert net.inside("s", "cat", "/proc/net/raw").stdout.count("\n") == 1


def test_without_scapy_the_vantage_is_degraded_and_goes_on(
    net: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scapy.py").write_text("raise ModuleNotFoundError('no scapy here', name='scapy')\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    with Agent(net, "s", plan()) as agent:
        seen = until(agent, lambda s: s["state"][0] != "ok")
        assert seen["state"] == [
            "degraded",
            "path probing needs scapy: apt-get install mvps-probe, or pip install mvps[probe]",
        ]
        assert len(seen["path_fib"]["objects"]) == 4  # two next hops for each family
        assert agent.tick()["state"][0] == "degraded"


EXCHANGE = """
import socket, sys
role, address = sys.argv[1:]
family = socket.AF_INET6 if ":" in address else socket.AF_INET
if role == "serve":
    listener = socket.create_server((address, 7400), family=family, backlog=64)
    print("ready", flush=True)
    while True:
        peer, _ = listener.accept()
        with peer:
            while len(peer.recv(10_000, socket.MSG_WAITALL)) == 10_000:
                peer.sendall(b"x" * 1000)
else:
    for _ in range(24):
        with socket.create_connection((address, 7400), timeout=10) as stream:
            for _ in range(10):
                stream.sendall(b"y" * 10_000)
                stream.recv(1000, socket.MSG_WAITALL)
    print("done", flush=True)
"""


class Server:
    """A TCP server in a namespace."""

    def __init__(self, net: Lab, host: str, address: str) -> None:
        self.process = net.python(host, EXCHANGE, "serve", address)

    def __enter__(self) -> Server:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def exchange(net: Lab, host: str, address: str) -> None:
    """About 2.4 MB to the server over 24 connections."""
    client = net.python(host, EXCHANGE, "ask", address)
    try:
        assert client.communicate(timeout=60)[0] == "done\n"
    finally:
        client.kill()
        client.wait()


@pytest.mark.kernel
@pytest.mark.parametrize(("address", "sides"), [(FAR, LINKS), (FAR6, LINKS6)], ids=["ipv4", "ipv6"])
def test_real_traffic_shows_in_all_three_views_with_its_ttl(
    net: Lab, address: str, sides: dict[str, list[tuple[str, str]]]
) -> None:
    with Agent(net, "s") as agent, Server(net, "d", address):
        exchange(net, "s", address)  # neighbours are known by now
        time.sleep(1.1)  # the route watch reads the tables once a second
        agent.tick()
        exchange(net, "s", address)
        seen = agent.tick()
    prefix = f"{address}/{128 if ':' in address else 32}"
    used = [name for name in seen["path"]["objects"] if name.startswith(f"{prefix} via ")]
    assert {name.split(" via ")[1].split("/")[0] for name in used} == {"to-b1", "to-c1"}
    assert set(used) <= set(seen["path_tcp"]["objects"])
    assert set(used) <= set(seen["path_fib"]["objects"])
    assert seen["path"]["bins"] == seen["path_tcp"]["bins"] == 2
    assert seen["path"]["facts"]["bytes"] > 2e6
    assert seen["path"]["facts"]["bytes"] == pytest.approx(seen["path"]["facts"]["witness_bytes"], rel=0.05)
    assert (seen["path"]["checked"], seen["path"]["violated"]) == (1.0, 0.0)
    # Two routers on the way: what started with 64 arrives with 62, from both neighbours, and nothing else counts.
    times_to_live = [
        set(prints) for prints in seen["path"]["prints"].values() if set(prints) <= {str(n) for n in range(256)}
    ]
    assert times_to_live == [{"62"}, {"62"}] or times_to_live == [{"62"}]


@pytest.mark.kernel
def test_two_agents_on_one_kernel_see_their_own_namespace_only(net: Lab) -> None:
    with lab() as other:
        other.host("x")
        other.host("y")
        other.link("x", "198.19.30.1/30", "y", "198.19.30.2/30")
        with (
            Agent(net, "s") as mine,
            Agent(other, "x") as theirs,
            Server(net, "d", FAR),
            Server(other, "y", "198.19.30.2"),
        ):
            exchange(net, "s", FAR)
            exchange(other, "x", "198.19.30.2")
            time.sleep(1.1)
            mine.tick(), theirs.tick()
            exchange(net, "s", FAR)
            first, quiet = mine.tick(), theirs.tick()
            exchange(other, "x", "198.19.30.2")
            silent, second = mine.tick(), theirs.tick()
    assert first["path"]["facts"]["bytes"] > 2e6
    assert quiet["path"]["facts"]["bytes"] < 10_000
    assert silent["path"]["facts"]["bytes"] < 10_000
    assert second["path"]["facts"]["bytes"] > 2e6
    # On its one link the other host has no gateway: its bytes have a place, but no next hop.
    assert second["path"]["facts"]["on_link_bytes"] == second["path"]["facts"]["bytes"]
    assert second["path"]["objects"] == []
    for seen in (first, second):
        assert seen["path"]["violated"] == 0.0


def test_a_lab_is_removed_on_failure() -> None:
    def namespaces() -> set[str]:
        return set(subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout.split())

    def fail(made: Lab) -> None:
        made.host("a")
        assert made.full("a") in namespaces()
        raise RuntimeError

    with pytest.raises(RuntimeError), lab() as made:
        fail(made)
    assert made.full("a") not in namespaces()
