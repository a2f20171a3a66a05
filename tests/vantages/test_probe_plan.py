# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvps.coherence.causal import Site
from mvps.vantages.probe_plan import Destination, ProbePlan, parse_site

HERE = Destination("198.19.100.1")


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("example.net", "names are not resolved"),
        ("198.19.100.1/24", "not an IP address"),
        ("224.0.0.1", "one routable host"),
        ("ff02::1", "one routable host"),
        ("0.0.0.0", "one routable host"),
        ("255.255.255.255", "one routable host"),
        ("fe80::1", "one routable host"),
        ("fe80::1%eth0", "one routable host"),
        ("::ffff:198.19.0.1", "one routable host"),
    ],
)
def test_only_single_hosts_by_address_are_probed(address: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Destination(address)


def test_addresses_have_one_spelling() -> None:
    assert Destination("2001:DB8:0:0::1").address == "2001:db8::1"
    with pytest.raises(ValueError, match="given twice"):
        ProbePlan((Destination("2001:db8::1"), Destination("2001:DB8:0::1")))


def test_places() -> None:
    assert Destination.parse("198.19.100.1@52.5,-4").place == Site(52.5, -4.0)
    assert Destination.parse("2001:db8::1").place is None
    with pytest.raises(ValueError, match="half a place"):
        Destination("198.19.100.1", 52.5)
    with pytest.raises(ValueError, match="no place on Earth"):
        Destination.parse("198.19.100.1@4,200")
    with pytest.raises(ValueError, match="LATITUDE,LONGITUDE"):
        Destination.parse("198.19.100.1@52.5")
    assert parse_site("-33.9, 151.2") == Site(-33.9, 151.2)


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        ({"rate": 50.1}, r"rate 50\.1 is out of bounds; give 0\.01 to 50"),
        ({"rate": 0.0}, "rate"),
        ({"rate": float("nan")}, "rate"),
        ({"flows": 17}, "flows"),
        ({"flows": 0}, "flows"),
        ({"max_ttl": 33}, "max_ttl"),
        ({"timeout": 5.1}, "timeout"),
        ({"site": (91.0, 0.0)}, "no place on Earth"),
    ],
)
def test_bounds_are_hard(bounds: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ProbePlan((HERE,), **bounds)


def test_the_number_of_destinations_is_bounded() -> None:
    many = tuple(Destination(f"198.19.1.{n}") for n in range(65))
    assert len(ProbePlan(many[:64]).destinations) == 64
    for wrong in (many, ()):
        with pytest.raises(ValueError, match="give 1 to 64"):
            ProbePlan(wrong)


def test_flow_identities_are_bounded() -> None:
    many = tuple(Destination(f"198.19.1.{n}") for n in range(64))
    assert ProbePlan(many, flows=4).flows == 4
    with pytest.raises(ValueError, match="320 flow identities; at most 256"):
        ProbePlan(many, flows=5)


def test_a_sweep_is_bounded() -> None:
    assert ProbePlan((HERE,), rate=5.0, flows=4, max_ttl=16, timeout=1.0).longest_sweep_s == pytest.approx(16.8)


def test_the_sender_gets_the_plan_without_places() -> None:
    plan = ProbePlan((Destination("198.19.100.1", 12.125, 34.25),), (56.5, 78.75), 2.0, 3, 9, 0.5)
    line = plan.to_json()
    assert not any(number in line for number in ("12.125", "34.25", "56.5", "78.75"))
    assert ProbePlan.from_json(line) == ProbePlan((HERE,), None, 2.0, 3, 9, 0.5)


@given(st.text(max_size=30) | st.sampled_from(["{}", "[]", "3", '{"destinations": 3}', '{"destinations": [1]}']))
def test_anything_else_is_refused_as_a_plan(line: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (json's own words among them)
        ProbePlan.from_json(line)


@pytest.mark.parametrize(
    "line",
    [
        '{"destinations": ["198.19.100.1"], "rate": 1000}',
        '{"destinations": ["198.19.100.1"], "rate": "5"}',
        '{"destinations": ["198.19.100.1"], "speed": 5}',
    ],
)
def test_the_sender_checks_the_bounds_again(line: str) -> None:
    with pytest.raises(ValueError, match=r"rate|plan"):
        ProbePlan.from_json(line)
