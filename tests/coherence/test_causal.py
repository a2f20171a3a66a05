# SPDX-License-Identifier: Apache-2.0
"""Distances against published ones, the metric's own laws, and what a light cone forbids."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvps.coherence.causal import (
    EARTH_RADIUS_KM,
    Geography,
    RoundTripFloor,
    Site,
    great_circle_km,
    light_round_trip_s,
)

sites = st.builds(Site, st.floats(-90, 90), st.floats(-180, 180))
half_turn = math.pi * EARTH_RADIUS_KM

AMSTERDAM, NEW_YORK, SYDNEY = Site(52.3676, 4.9041), Site(40.7128, -74.0060), Site(-33.8688, 151.2093)


@given(sites, sites)
def test_distance_is_symmetric_and_at_most_half_a_turn(a: Site, b: Site) -> None:
    distance = great_circle_km(a, b)
    assert distance == pytest.approx(great_circle_km(b, a), rel=1e-12, abs=1e-9)
    assert 0.0 <= distance <= half_turn * (1 + 1e-12)


@given(sites, sites, sites)
def test_no_detour_is_shorter(a: Site, b: Site, c: Site) -> None:
    # asin is steep near antipodes: rounding of 1e-16 in its argument is 1e-8 of the angle, 0.1 m.
    assert great_circle_km(a, c) <= great_circle_km(a, b) + great_circle_km(b, c) + 1e-3


@given(sites)
def test_a_place_is_nowhere_else_and_its_antipode_is_half_a_turn_away(a: Site) -> None:
    opposite = Site(-a.latitude, a.longitude - math.copysign(180.0, a.longitude))
    assert great_circle_km(a, a) == 0.0
    assert great_circle_km(a, opposite) == pytest.approx(half_turn, rel=1e-7)


@given(sites, sites)
def test_haversine_agrees_with_the_angle_between_vectors(a: Site, b: Site) -> None:
    def vector(s: Site) -> tuple[float, float, float]:
        north, east = math.radians(s.latitude), math.radians(s.longitude)
        return math.cos(north) * math.cos(east), math.cos(north) * math.sin(east), math.sin(north)

    chord = math.dist(vector(a), vector(b))
    angle = 2.0 * math.asin(min(chord / 2.0, 1.0))
    assert great_circle_km(a, b) == pytest.approx(EARTH_RADIUS_KM * angle, rel=1e-6, abs=1e-3)


def test_known_distances() -> None:
    assert great_circle_km(Site(0, 0), Site(0, 1)) == pytest.approx(math.pi / 180 * 6371.0)
    assert great_circle_km(Site(90, 0), Site(90, 123)) == pytest.approx(0.0, abs=1e-9)
    assert great_circle_km(AMSTERDAM, NEW_YORK) == pytest.approx(5863, rel=2e-3)
    assert light_round_trip_s(1000.0) == pytest.approx(0.010)


@pytest.mark.parametrize("place", [(90.1, 0.0), (-91.0, 0.0), (0.0, 180.5), (float("nan"), 0.0), (0.0, float("inf"))])
def test_what_is_no_place_is_refused(place: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="no place on Earth"):
        Site(*place)


def test_a_near_answer_from_a_far_place_is_impossible() -> None:
    geography = Geography(AMSTERDAM, {"ny": NEW_YORK, "syd": SYDNEY})
    least = light_round_trip_s(great_circle_km(AMSTERDAM, NEW_YORK))
    assert geography.site_checks({"ny": least * 1.001, "syd": 0.29}) == {"ny": True, "syd": True}
    assert geography.site_checks({"ny": least * 0.999}) == {"ny": False}


def test_a_destination_without_a_place_or_an_answer_is_not_judged() -> None:
    assert Geography(AMSTERDAM, {"ny": NEW_YORK}).site_checks({"elsewhere": 0.0}) == {}
    assert Geography(None, {"ny": NEW_YORK}).site_checks({"ny": 0.0}) == {}
    assert Geography(None, {"ny": NEW_YORK, "syd": SYDNEY}).pair_checks({"ny": 0.0}) == {}


@given(sites, st.lists(sites, min_size=2, max_size=5), st.lists(st.floats(1.0, 5.0), min_size=5, max_size=5))
def test_honest_answers_violate_nothing(here: Site, places: list[Site], detours: list[float]) -> None:
    geography = Geography(here, dict(enumerate(places)))
    answers = {key: geography.site_floor_s[key] * detours[key] + 1e-7 for key in range(len(places))}
    assert all(geography.site_checks(answers).values())
    assert all(geography.pair_checks(answers).values())


def test_one_host_cannot_answer_for_two_far_places() -> None:
    geography = Geography(None, {"ams": AMSTERDAM, "ny": NEW_YORK, "syd": SYDNEY})
    assert geography.pair_checks({"ams": 0.001, "ny": 0.001, "syd": 0.4}) == {
        ("ams", "ny"): False,
        ("ams", "syd"): True,
        ("ny", "syd"): True,
    }


def learned(round_trip_s: float) -> RoundTripFloor:
    floor = RoundTripFloor()
    for _ in range(RoundTripFloor.LEARNED):
        assert floor.add(round_trip_s) is None
    return floor


def test_the_floor_allows_delay_and_a_little_less_but_no_shortcut() -> None:
    floor = learned(0.020)
    assert floor.add(0.5) is True
    assert floor.add(0.0181) is True
    assert floor.floor_s == 0.0181
    assert floor.add(0.010) is False
    assert floor.floor_s == 0.0181


def test_the_smallest_round_trips_are_never_judged() -> None:
    assert learned(50e-6).add(1e-6) is True


def test_a_path_that_stays_shorter_is_believed_in_the_end() -> None:
    floor = learned(0.020)
    assert [floor.add(0.010) for _ in range(RoundTripFloor.BELIEVED)] == [False] * RoundTripFloor.BELIEVED
    assert floor.add(0.010) is True
    interrupted = learned(0.020)
    for sample in [0.010] * (RoundTripFloor.BELIEVED - 1) + [0.030, 0.010]:
        interrupted.add(sample)
    assert interrupted.add(0.010) is False
