# SPDX-License-Identifier: Apache-2.0
"""bpf/limiter.bpf.c on packets that scapy made, through BPF_PROG_TEST_RUN."""

from __future__ import annotations

import ipaddress
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_RR
from scapy.layers.inet6 import (
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.ipsec import AH
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from table import AMPLE, BYTE_NS, PORT, SLOW_NS, Table, packets, plan_of, size

from mvps.limiter import layout
from mvps.limiter.plan import Price
from mvps.probes import libbpf

pytestmark = pytest.mark.kernel

HOST, OTHER, STRANGER = "10.0.0.5", "10.0.0.6", "203.0.113.9"
HOST6 = "2001:db8::5"
MACS = {"src": "02:00:00:00:00:01", "dst": "02:00:00:00:00:02"}


def frame(*layers: Any) -> bytes:
    """An Ethernet frame of these layers."""
    whole = Ether(**MACS)
    for layer in layers:
        whole /= layer
    return bytes(whole)


def ip(source: str = HOST, **fields: Any) -> Any:
    return IP(src=source, dst="10.0.0.1", **fields)


def ip6(source: str = HOST6, **fields: Any) -> Any:
    return IPv6(src=source, dst="2001:db8::1", **fields)


def tcp(flags: str = "A", port: int = PORT, sport: int = 5555) -> Any:
    return TCP(sport=sport, dport=port, flags=flags)


def from_host(flags: str = "A", source: str = HOST, sport: int = 5555, payload: bytes = b"") -> bytes:
    return frame(ip(source), tcp(flags, sport=sport), payload)


FRAGMENTS6 = IPv6ExtHdrFragment(offset=100, m=1, nh=6)
PAD = IPv6ExtHdrDestOpt()
SEVEN = [IPv6ExtHdrDestOpt() for _ in range(7)]
SIX = [IPv6ExtHdrDestOpt() for _ in range(6)]

# one-line name -> (frame, verdict without any proven flow)
FRAMES = {
    "a SYN to the port": (frame(ip(), tcp("S")), "syn"),
    "a SYN with ECN bits": (frame(ip(), tcp("SEC")), "syn"),
    "a SYN that carries data": (frame(ip(), tcp("S"), b"x" * 100), "syn"),
    "a SYN-ACK is no handshake of a client": (frame(ip(), tcp("SA")), "stranger"),
    "an ACK that no connection is known for": (frame(ip(), tcp("A")), "stranger"),
    "a segment without any flag": (frame(ip(), tcp("")), "stranger"),
    "a segment with every flag": (frame(ip(), tcp("FSRPAUEC")), "stranger"),
    "a RST": (frame(ip(), tcp("R")), "stranger"),
    "another port": (frame(ip(), tcp("S", port=PORT + 1)), "untouched"),
    "the port as source": (frame(ip(), tcp("S", port=80, sport=PORT)), "untouched"),
    "the port, bytes swapped": (frame(ip(), tcp("S", port=(PORT & 0xFF) << 8 | PORT >> 8)), "untouched"),
    "UDP to the same port": (frame(ip(), UDP(sport=1, dport=PORT)), "untouched"),
    "ICMP": (frame(ip(), ICMP()), "untouched"),
    "ARP": (frame(ARP()), "untouched"),
    "IPv4 options before TCP": (frame(ip(options=[IPOption_RR(length=39)]), tcp("S")), "syn"),
    "IPv4 header longer than the frame": (frame(ip(ihl=15), tcp("S"))[:54], "unreadable"),
    "IPv4 header length of 4": (frame(ip(ihl=1), tcp("S")), "untouched"),
    "IPv4 header length of 0, where its own length looks like the port": (
        frame(ip(ihl=0, len=PORT), tcp("S")),
        "untouched",
    ),
    "one VLAN tag": (frame(Dot1Q(vlan=7), ip(), tcp("S")), "syn"),
    "two VLAN tags, 802.1ad outside": (frame(Dot1AD(vlan=7), Dot1Q(vlan=8), ip(), tcp("S")), "syn"),
    "two VLAN tags, both 802.1Q": (frame(Dot1Q(vlan=7), Dot1Q(vlan=8), ip6(), tcp("A")), "stranger"),
    "three VLAN tags": (frame(Dot1Q(), Dot1Q(), Dot1Q(), ip(), tcp("S")), "untouched"),
    "first fragment, which shows the port": (frame(ip(flags="MF"), tcp("A")), "fragment"),
    "first fragment to another port": (frame(ip(flags="MF"), tcp("A", port=80)), "untouched"),
    "later fragment of TCP": (frame(ip(frag=100, proto=6), b"x" * 64), "fragment"),
    "last fragment of TCP": (frame(ip(frag=100, flags="MF", proto=6), b"x" * 64), "fragment"),
    "later fragment of UDP": (frame(ip(frag=100, proto=17), b"x" * 64), "untouched"),
    "do-not-fragment is no fragment": (frame(ip(flags="DF"), tcp("A")), "stranger"),
    "IPv6": (frame(ip6(), tcp("S")), "syn"),
    "IPv6 to another port": (frame(ip6(), tcp("S", port=80)), "untouched"),
    "IPv6 UDP": (frame(ip6(), UDP(dport=PORT)), "untouched"),
    "IPv6 with hop-by-hop options": (frame(ip6(), IPv6ExtHdrHopByHop(), tcp("S")), "syn"),
    "IPv6 with a routing header": (frame(ip6(), IPv6ExtHdrRouting(addresses=["2001:db8::7"]), tcp("S")), "syn"),
    "IPv6 with an authentication header": (frame(ip6(nh=51), AH(nh=6, payloadlen=4, icv=b"x" * 12), tcp("S")), "syn"),
    "IPv6 chain of four kinds": (frame(ip6(), IPv6ExtHdrHopByHop(), PAD, IPv6ExtHdrRouting(), PAD, tcp("S")), "syn"),
    "IPv6 chain as long as is read": (frame(ip6(), *SIX, tcp("S")), "syn"),
    "IPv6 chain one longer": (frame(ip6(), *SEVEN, tcp("S")), "unreadable"),
    "IPv6 chain that ends in UDP": (frame(ip6(), PAD, UDP(dport=PORT)), "untouched"),
    "IPv6 atomic fragment": (frame(ip6(), IPv6ExtHdrFragment(offset=0, m=0), tcp("S")), "syn"),
    "IPv6 first fragment": (frame(ip6(), IPv6ExtHdrFragment(offset=0, m=1), tcp("A")), "fragment"),
    "IPv6 later fragment of TCP": (frame(ip6(nh=44), FRAGMENTS6, b"x" * 64), "fragment"),
    "IPv6 later fragment that hides behind options": (
        frame(ip6(nh=44), IPv6ExtHdrFragment(offset=100, nh=60), b"x" * 64),
        "fragment",
    ),
    "IPv6 later fragment of UDP": (frame(ip6(nh=44), IPv6ExtHdrFragment(offset=100, nh=17), b"x" * 64), "untouched"),
}


@pytest.fixture(scope="module")
def ample() -> Iterator[Table]:
    with Table(plan_of()) as table:
        yield table


@pytest.mark.parametrize("name", FRAMES)
def test_what_a_frame_is_taken_for(ample: Table, name: str) -> None:
    packet, expected = FRAMES[name]
    assert ample.judge(packet) == expected


@pytest.mark.parametrize("name", FRAMES)
def test_what_is_judged_draws_from_the_handshake_budget(name: str) -> None:
    packet, expected = FRAMES[name]
    with Table(plan_of(handshake=packets(0))) as table:
        assert table.judge(packet) == (expected if expected == "untouched" else f"{expected}_over")


@pytest.mark.parametrize("name", ["a SYN to the port", "two VLAN tags, 802.1ad outside", "IPv6 chain of four kinds"])
def test_a_frame_cut_short_anywhere_is_never_taken_for_a_whole_one(ample: Table, name: str) -> None:
    whole, expected = FRAMES[name]
    seen = [ample.judge(whole[:length]) for length in range(14, len(whole))]
    # First nobody can tell that it is TCP, then not to which port, or its header is not whole.
    assert set(seen) == {"untouched", "unreadable"}
    assert seen == sorted(seen, key=["untouched", "unreadable"].index)
    assert ample.judge(whole) == expected


def test_a_proven_flow_draws_nothing_from_strangers() -> None:
    with Table(plan_of(handshake=packets(0), host=packets(0))) as table:
        assert table.judge(from_host()) == "stranger_over"
        table.prove(HOST, 5555)
        assert table.judge(from_host()) == "proven"
        assert table.judge(from_host(sport=5556)) == "stranger_over"
        assert table.judge(from_host(source=OTHER)) == "stranger_over"


def test_proven_is_the_whole_address_of_ipv6() -> None:
    with Table(plan_of(handshake=packets(0))) as table:
        table.prove(HOST6, 5555)
        assert table.judge(frame(ip6(), tcp())) == "proven"
        assert table.judge(frame(ip6("2001:db8:0:1::5"), tcp())) == "stranger_over"
        assert table.judge(frame(ip6("::a00:5"), tcp())) == "stranger_over"


def test_an_ipv6_address_that_ends_like_an_ipv4_one_is_not_that_one() -> None:
    with Table(plan_of("10.0.0.5/32", handshake=packets(1))) as table:
        assert table.judge(frame(ip6("::1:a00:5"), tcp("S"))) == "syn"  # of the unlisted
        assert table.judge(from_host("S")) == "syn"


def test_a_syn_or_fragment_that_claims_a_proven_flow_is_a_strangers() -> None:
    with Table(plan_of(handshake=packets(0))) as table:
        table.prove(HOST, 5555)
        assert table.judge(from_host("S")) == "syn_over"
        assert table.judge(frame(ip(flags="MF"), tcp())) == "fragment_over"
        assert table.judge(from_host()) == "proven"


def test_a_proven_flow_has_its_own_budget_of_packets() -> None:
    with Table(plan_of(flow=packets(3))) as table:
        table.prove(HOST, 5555)
        table.prove(OTHER, 5555)
        assert [table.judge(from_host()) for _ in range(5)] == ["proven"] * 3 + ["flow_over"] * 2
        assert table.judge(from_host(source=OTHER)) == "proven"


def test_a_proven_flow_has_its_own_budget_of_bytes() -> None:
    with Table(plan_of(flow=size(2000))) as table:
        key = table.prove(HOST, 5555)
        big = from_host(payload=b"x" * 900)
        assert len(big) == 954
        assert [table.judge(big) for _ in range(3)] == ["proven", "proven", "flow_over"]
        # What is left is enough for a small one, and the refused one took nothing of it.
        assert table.judge(from_host()) == "proven"
        assert table.bytes()["proven"] == 2 * 954 + 54
        assert table.bytes()["flow_over"] == 954
        assert layout.FLOW.unpack(table.maps["flows"].get(key) or b"")[1] == 1


def test_packets_and_bytes_draw_from_one_budget() -> None:
    with Table(plan_of(flow=Price(100 * BYTE_NS, BYTE_NS * 1024, 1000 * BYTE_NS))) as table:
        table.prove(HOST, 5555)
        # 54 bytes and a packet's price: 154 each.
        assert [table.judge(from_host()) for _ in range(7)] == ["proven"] * 6 + ["flow_over"]


def test_vantages_that_share_a_flow_have_a_budget_each() -> None:
    with Table(plan_of(flow=packets(3))) as table:
        table.prove(HOST, 5555, vantages=4)
        assert [table.judge(from_host()) for _ in range(13)] == ["proven"] * 12 + ["flow_over"]


def test_flows_of_a_prefix_share_a_total_that_strangers_cannot_touch() -> None:
    with Table(plan_of("10.0.0.0/24", total=packets(4), handshake=packets(2))) as table:
        table.prove(HOST, 5555)
        table.prove(OTHER, 5555)
        table.prove(STRANGER, 5555)
        for _ in range(50):
            table.judge(from_host("S"))
            table.judge(from_host(sport=1))
        seen = [table.judge(from_host(source=source)) for source in (HOST, OTHER) * 3]
        assert seen == ["proven"] * 4 + ["prefix_over"] * 2
        assert table.judge(from_host(source=STRANGER)) == "proven"
        assert layout.SHARD.unpack(table.maps["shards"].get(layout.INDEX.pack(1)) or b"")[7] == 2


def test_syns_and_the_rest_have_separate_handshake_budgets() -> None:
    with Table(plan_of(handshake=packets(2))) as table:
        assert [table.judge(from_host("S")) for _ in range(3)] == ["syn", "syn", "syn_over"]
        assert [table.judge(from_host("A")) for _ in range(3)] == ["stranger", "stranger", "stranger_over"]
        assert table.judge(frame(ip(frag=100, proto=6), b"x" * 64)) == "fragment_over"


def test_prefixes_do_not_share_handshake_budgets() -> None:
    with Table(plan_of("10.0.0.5/32", "10.0.0.0/24", "2001:db8::/32", handshake=packets(1))) as table:
        sources = [from_host("S", source) for source in (HOST, OTHER, STRANGER)] + [frame(ip6(), tcp("S"))]
        assert [table.judge(packet) for packet in sources] == ["syn"] * 4
        assert [table.judge(packet) for packet in sources] == ["syn_over"] * 4
        # All unlisted sources share one.
        assert table.judge(from_host("S", "198.51.100.1")) == "syn_over"
        assert table.judge(frame(ip6("2001:db9::1"), tcp("S"))) == "syn_over"


def test_the_longest_prefix_wins() -> None:
    nested = ("10.0.0.0/8", "10.0.0.0/16", "10.0.0.0/24", "10.0.0.5/32", "2001:db8::/32", "2001:db8::/48")
    with Table(plan_of(*nested, handshake=packets(1))) as table:
        sources = ["10.9.9.9", "10.0.9.9", "10.0.0.9", "10.0.0.5", "2001:db8:1::1", "2001:db8::1"]
        for index, source in enumerate(sources, start=1):
            assert table.judge(frame((ip6 if ":" in source else ip)(source), tcp("S"))) == "syn"
            cells = layout.HANDSHAKE.iter_unpack(table.maps["handshakes"].get(layout.INDEX.pack(index)) or b"")
            assert sum(cell[0] > 0 for cell in cells) == 1, source


def test_all_strangers_of_a_cpu_share_a_host_budget() -> None:
    with Table(plan_of("10.0.0.0/24", "203.0.113.0/24", host=packets(3))) as table:
        seen = [table.judge(from_host("S", source)) for source in (HOST, STRANGER) * 2]
        assert seen == ["syn"] * 3 + ["host_over"]
        table.prove(HOST, 5555)
        assert table.judge(from_host()) == "proven"


def test_strangers_insert_nothing() -> None:
    with Table(plan_of(handshake=packets(5))) as table:
        for number in range(300):
            table.judge(from_host("S", f"203.0.{number % 256}.{number // 256}", sport=1024 + number))
            table.judge(from_host("A", f"203.0.{number % 256}.{number // 256}", sport=1024 + number))
        assert table.maps["flows"].all_keys() == []
        # One drop in 64 names its source.
        assert len(table.maps["sources"].all_keys()) == -(-(2 * 295) // 64)


def test_a_flow_that_was_idle_for_too_long_is_a_strangers() -> None:
    with Table(plan_of(flow=Price(1, 0, 10**9), handshake=packets(0), idle_ns=1)) as table:
        table.prove(HOST, 5555)
        assert table.judge(from_host()) == "proven"  # fresh: it has not been idle yet
        key = layout.flow_key(ipaddress.ip_address(HOST), 5555)
        table.maps["flows"].put(key, layout.FLOW.pack(1, 0, 0, 0, 1, 0))  # spent until 1 ns after boot
        assert table.judge(from_host()) == "stranger_over"
        assert table.idle() == 1


def test_a_flow_of_another_plan_finds_its_shard_again() -> None:
    with Table(plan_of("10.0.0.0/24", total=packets(1))) as table:
        key = layout.flow_key(ipaddress.ip_address(HOST), 5555)
        # It counted in shard 77 of plan 900, which is not this one.
        table.maps["flows"].put(key, layout.FLOW.pack(0, 0, 900, 77, 1, 0))
        assert [table.judge(from_host()) for _ in range(2)] == ["proven", "prefix_over"]
        assert layout.FLOW.unpack(table.maps["flows"].get(key) or b"")[2:4] == (1, 1)


def test_sources_of_drops_are_named_by_address_and_by_64_bits_of_ipv6() -> None:
    with Table(plan_of(handshake=packets(0))) as table:
        libbpf.run_packet(table.fd, from_host("S", STRANGER), repeat=6400)
        for host in range(128):
            libbpf.run_packet(table.fd, frame(ip6(f"2001:db8:0:7::{host:x}"), tcp("S")))
        known = {}
        for key in table.maps["sources"].all_keys():
            known[str(layout.unmapped(key))] = layout.SOURCE.unpack(table.maps["sources"].get(key) or b"")
        one = len(from_host("S"))
        assert known[STRANGER][0] == pytest.approx(6400, abs=64 * libbpf.possible_cpus())
        assert known[STRANGER][1] == known[STRANGER][0] * one
        assert known["2001:db8:0:7::"][0] == pytest.approx(128, abs=64 * libbpf.possible_cpus())
        assert len(known) == 2


def test_a_budget_comes_back_with_time() -> None:
    with Table(plan_of(flow=Price(20_000_000, 0, 40_000_000))) as table:
        table.prove(HOST, 5555)
        # Two fit at once, then one every 20 ms, whatever the machine does meanwhile.
        begun = layout.FLOW.unpack(table.maps["flows"].get(table.prove(HOST, 5555)) or b"")[0]
        assert begun == 0
        passed = 0
        while passed < 10:
            passed += table.judge(from_host()) == "proven"
        spent = layout.FLOW.unpack(table.maps["flows"].get(table.maps["flows"].all_keys()[0]) or b"")[0]
        assert spent > 0
        assert table.packets()["flow_over"] > 0


def test_the_clock_goes_in_ns() -> None:
    """A tick of the wrong length would make every budget wrong by the same factor."""
    with Table(plan_of(flow=Price(1, 0, 1))) as table:
        key = table.prove(HOST, 5555)
        seen = []
        for _ in range(2):
            assert table.judge(from_host()) == "proven"
            spent = layout.FLOW.unpack(table.maps["flows"].get(key) or b"")[0]
            seen.append((spent, time.monotonic_ns()))
            time.sleep(0.5)
        assert (seen[1][0] - seen[0][0]) / (seen[1][1] - seen[0][1]) == pytest.approx(1, rel=0.2)


def test_frames_are_charged_whole_whatever_their_header_says() -> None:
    with Table(plan_of(flow=size(10_000))) as table:
        table.prove(HOST, 5555)
        lying = bytearray(from_host(payload=b"x" * 1000))
        struct.pack_into(">H", lying, 16, 40)  # IPv4 total length
        assert table.judge(bytes(lying)) == "proven"
        assert table.bytes()["proven"] == 1054


@pytest.mark.parametrize("kind", ["flow", "total"])
def test_cpus_that_charge_one_budget_at_once_never_exceed_it(kind: str) -> None:
    """All CPUs run the program on packets of one flow: the budget passes and not one packet more, each is counted."""
    budget, rounds, each = 5000, 4, 5000
    flow, total = (packets(budget), AMPLE) if kind == "flow" else (AMPLE, packets(budget))
    with Table(plan_of(flow=flow, total=total)) as table:
        table.prove(HOST, 5555)
        threads = [
            threading.Thread(target=lambda: [libbpf.run_packet(table.fd, from_host(), each) for _ in range(rounds)])
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seen = table.packets()
        assert sum(seen.values()) == len(threads) * rounds * each
        assert seen["proven"] <= budget
        # A packet refused after too many tries is the only way to less.
        assert seen["proven"] >= budget - seen["contended"]
        assert seen["proven"] + seen["contended"] + seen["flow_over"] + seen["prefix_over"] == sum(seen.values())


def test_ample_is_more_than_any_test_sends() -> None:
    assert AMPLE.burst_ns // SLOW_NS == 10**6
