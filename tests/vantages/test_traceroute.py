# SPDX-License-Identifier: Apache-2.0
"""The sender: scapy as the oracle for what travels, hostile bytes as input, walks replayed without a network."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvps.vantages.probe_plan import MAX_TTL
from mvps.vantages.traceroute import DESTINATION_PORT, GAP, SOURCE_PORT, Answer, Dissector, Walk
from mvps.vantages.traceroute import probe_number as number_of
from mvps.vantages.traceroute import probe_payload as payload_of

inet = pytest.importorskip("scapy.layers.inet", reason="needs the extra: pip install mvps[probe]")
inet6 = pytest.importorskip("scapy.layers.inet6")
US, THEM, ROUTER = "198.19.0.1", "198.19.100.1", "198.19.1.2"
US6, THEM6, ROUTER6 = "fd19::1", "fd19:100::1", "fd19:1::2"
NUMBERS = [number_of(ttl, round_) for round_ in range(4) for ttl in range(1, MAX_TTL + 1)]


@pytest.fixture(scope="module")
def dissector() -> Dissector:
    return Dissector()


def probe4(number: int, port: int = SOURCE_PORT) -> bytes:
    datagram = inet.UDP(sport=port, dport=DESTINATION_PORT) / payload_of(number)
    return bytes(inet.IP(src=US, dst=THEM, ttl=1) / datagram)


def probe6(number: int, port: int = SOURCE_PORT) -> bytes:
    datagram = inet.UDP(sport=port, dport=DESTINATION_PORT) / payload_of(number)
    return bytes(inet6.IPv6(src=US6, dst=THEM6, hlim=1) / datagram)


def test_all_probes_of_a_flow_carry_one_checksum() -> None:
    assert len(set(NUMBERS)) == 4 * MAX_TTL
    assert len({inet.IP(probe4(n))[inet.UDP].chksum for n in NUMBERS}) == 1
    assert len({inet6.IPv6(probe6(n))[inet.UDP].chksum for n in NUMBERS}) == 1
    assert len({inet.IP(probe4(n))[inet.UDP].len for n in NUMBERS}) == len(NUMBERS)


@pytest.mark.parametrize("quoted_octets", [28, 60, 200])  # RFC 792 promises the IP header and eight octets
@pytest.mark.parametrize("number", [1, 16, 97, 128])
@pytest.mark.parametrize("kind", [3, 11])
def test_an_ipv4_error_names_its_probe(dissector: Dissector, quoted_octets: int, number: int, kind: int) -> None:
    quote = probe4(number, SOURCE_PORT + 3)[:quoted_octets]
    error = bytes(inet.IP(src=ROUTER, dst=US) / inet.ICMP(type=kind) / quote)
    assert dissector.read(4, error, "") == Answer(ROUTER, kind == 11, THEM, SOURCE_PORT + 3, number)


@pytest.mark.parametrize("number", [1, 16, 97, 128])
def test_an_ipv6_error_names_its_probe(dissector: Dissector, number: int) -> None:
    quote = inet6.IPv6(probe6(number))
    expired = bytes(inet6.IPv6(src=ROUTER6, dst=US6) / inet6.ICMPv6TimeExceeded() / quote)[40:]
    closed = bytes(inet6.IPv6(src=THEM6, dst=US6) / inet6.ICMPv6DestUnreach(code=4) / quote)[40:]
    assert dissector.read(6, expired, ROUTER6) == Answer(ROUTER6, True, THEM6, SOURCE_PORT, number)
    assert dissector.read(6, closed, THEM6) == Answer(THEM6, False, THEM6, SOURCE_PORT, number)


def test_other_traffic_is_no_answer(dissector: Dissector) -> None:
    other = bytes(inet.IP(src=US, dst=THEM) / inet.UDP(sport=DESTINATION_PORT, dport=53) / b"x")
    tcp = bytes(inet.IP(src=US, dst=THEM) / inet.TCP(sport=SOURCE_PORT, dport=DESTINATION_PORT))
    for quote in (other, tcp):
        assert dissector.read(4, bytes(inet.IP(src=ROUTER, dst=US) / inet.ICMP(type=11) / quote), "") is None
    ping = inet.IP(src=ROUTER, dst=US) / inet.ICMP(type=8) / probe4(1)
    assert dissector.read(4, bytes(ping), "") is None


@settings(max_examples=150)
@given(st.sampled_from([4, 6]), st.binary(max_size=80), st.binary(max_size=60), st.integers(0, 60))
def test_no_bytes_upset_the_reader(version: int, head: bytes, tail: bytes, cut: int) -> None:
    dissector = Dissector()
    port = DESTINATION_PORT.to_bytes(2, "big")
    error = bytes(inet.IP(src=ROUTER, dst=US) / inet.ICMP(type=11) / probe4(7))
    for data in (head + port + tail, error[:cut] + head + error[cut:]):
        answer = dissector.read(version, data, ROUTER)
        assert answer is None or isinstance(answer.number, int)


def walk(**changes: int) -> Walk:
    return Walk(THEM, 2, changes.get("round_", 0), changes.get("max_ttl", 16), 1.0)


def send(one: Walk, now: float) -> int:
    """Send a walk's next probe; its number."""
    number = number_of(one.next_ttl, one.round)
    one.sent_probe(now)
    return number


def expired(number: int, responder: str, **changes: object) -> Answer:
    fields = {"expired": True, "destination": THEM, "source_port": SOURCE_PORT + 2, **changes}
    return Answer(responder, number=number, **fields)  # type: ignore[arg-type]


def test_a_walk_ends_at_the_destination() -> None:
    one = walk()
    assert one.take(expired(send(one, 0.0), "198.19.1.2"), 0.01)
    assert one.take(expired(send(one, 0.1), THEM, expired=False), 0.13)
    assert not one.wants_probe()
    assert one.give_up_at() == 0.0
    report = one.report()
    assert report["reached"] is True
    assert [hop[0] for hop in report["hops"]] == ["198.19.1.2", THEM]
    assert [hop[1] for hop in report["hops"]] == pytest.approx([0.01, 0.03])


def test_probes_sent_beyond_the_destination_do_not_lengthen_the_path() -> None:
    one = walk()
    numbers = [send(one, 0.0) for _ in range(4)]
    for number in (numbers[3], numbers[1], numbers[2]):
        assert one.take(expired(number, THEM, expired=False), 0.01)
    assert one.take(expired(numbers[0], "198.19.1.2"), 0.02)
    assert [hop[0] for hop in one.report()["hops"]] == ["198.19.1.2", THEM]


def test_silence_ends_a_walk_after_the_gap() -> None:
    one = walk()
    one.take(expired(send(one, 0.0), "198.19.1.2"), 0.01)
    sent = 0
    while one.wants_probe():
        send(one, 1.0 + sent)
        sent += 1
    assert sent == GAP
    assert one.give_up_at() == pytest.approx(1.0 + sent - 1 + 1.0)
    assert one.report()["hops"] == [("198.19.1.2", pytest.approx(0.01))]
    assert one.report()["reached"] is False


def test_no_walk_is_longer_than_its_bound() -> None:
    one = walk(max_ttl=7)
    while one.wants_probe():
        ttl = one.next_ttl
        one.take(expired(send(one, 0.0), f"198.19.1.{ttl}"), 0.01)
    assert sorted(one.sent) == list(range(1, 8))


def test_answers_to_other_probes_are_not_taken() -> None:
    one = walk(round_=1)
    number = send(one, 10.0)
    assert not one.take(expired(number_of(1, 0), ROUTER), 10.1)  # an older walk's
    assert not one.take(expired(number + 1, ROUTER), 10.1)  # not sent yet
    assert not one.take(expired(number, ROUTER, source_port=SOURCE_PORT), 10.1)
    assert not one.take(expired(number, ROUTER, destination=US), 10.1)
    assert not one.take(expired(number, ROUTER), 11.5)  # too late
    assert one.take(expired(number, ROUTER), 10.5)
    assert not one.take(expired(number, "198.19.9.9"), 10.6)  # the first answer stands


def test_a_router_without_a_way_on_ends_the_walk_short_of_the_destination() -> None:
    one = walk()
    one.take(expired(send(one, 0.0), ROUTER, expired=False), 0.01)
    assert not one.wants_probe()
    assert one.report()["reached"] is False
