# SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
"""Round trips that physics forbids: the geographic checks of C_1 on the data plane (001 sec. 1; forms ours).

Light in fibre covers c_f = 2.0e8 m/s. With d the great-circle distance, which no cable undercuts:

    site        RTT_a >= 2 d(here, a) / c_f
    triangle    RTT_a + RTT_b >= 2 d(a, b) / c_f        needs no place of our own
    floor       RTT >= 0.9 * (lowest RTT recorded on that path) - 0.5 ms

A violation means that somebody else answered, that a coordinate is wrong, or that the vantage lies. All three are
lower bounds and measured round trips only err upwards (queues, a late reader), so that load never violates them.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar, Generic, TypeVar

EARTH_RADIUS_KM = 6371.0
FIBRE_KM_PER_S = 2.0e5

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Site:
    """A point on the Earth in degrees. ValueError outside latitude [-90, 90] or longitude [-180, 180]."""

    latitude: float
    longitude: float

    def __post_init__(self) -> None:
        if not (-90.0 <= self.latitude <= 90.0 and -180.0 <= self.longitude <= 180.0):
            raise ValueError(
                f"{self.latitude},{self.longitude} is no place on Earth; "
                "write latitude -90 to 90, then longitude -180 to 180, in degrees"
            )


def great_circle_km(a: Site, b: Site) -> float:
    """Distance along the surface in km: haversine on a sphere of mean radius 6371.0 km.

    The Earth is flattened, so this is up to 0.6 % off, and real glass is 2 % faster than c_f. Cables are longer than
    great circles by far more than both; a radio link is not, and must be given no coordinates.
    """
    south, north = math.radians(a.latitude), math.radians(b.latitude)
    half_latitude = (north - south) / 2.0
    half_longitude = math.radians(b.longitude - a.longitude) / 2.0
    square = math.sin(half_latitude) ** 2 + math.cos(south) * math.cos(north) * math.sin(half_longitude) ** 2
    return 2.0 * EARTH_RADIUS_KM * math.asin(math.sqrt(min(square, 1.0)))


def light_round_trip_s(distance_km: float) -> float:
    """Seconds light in fibre needs there and back: 2 d / c_f."""
    return 2.0 * distance_km / FIBRE_KM_PER_S


class Geography(Generic[Key]):
    """The least round trips between fixed places, worked out once.

    here: our own place, if known. places: key -> place of a destination.
    """

    def __init__(self, here: Site | None, places: Mapping[Key, Site]) -> None:
        self.site_floor_s: Mapping[Key, float] = (
            {key: light_round_trip_s(great_circle_km(here, place)) for key, place in places.items()} if here else {}
        )
        self.pair_floor_s: Mapping[tuple[Key, Key], float] = {
            (a, b): light_round_trip_s(great_circle_km(places[a], places[b])) for a, b in combinations(places, 2)
        }

    def site_checks(self, round_trips_s: Mapping[Key, float]) -> dict[Key, bool]:
        """Destination -> whether its round trip in s is possible from here; those without a place are left out."""
        return {key: round_trips_s[key] >= least for key, least in self.site_floor_s.items() if key in round_trips_s}

    def pair_checks(self, round_trips_s: Mapping[Key, float]) -> dict[tuple[Key, Key], bool]:
        """Pair of destinations -> whether both round trips in s are possible together, wherever we are."""
        return {
            (a, b): round_trips_s[a] + round_trips_s[b] >= least
            for (a, b), least in self.pair_floor_s.items()
            if a in round_trips_s and b in round_trips_s
        }


@dataclass(slots=True)
class RoundTripFloor:
    """The lowest round trip recorded on one path, and whether a new one undercuts it (ours).

    The first ``LEARNED`` samples are taken as they come. From then on a sample below 0.9 floor - 0.5 ms is impossible
    and does not move the floor: a shorter route is another path. The 0.5 ms is what scheduling does to the smallest
    round trips, so paths shorter than that are never judged. ``BELIEVED`` such samples in a row become the new floor:
    the path got shorter below IP.
    """

    LEARNED: ClassVar[int] = 16
    BELIEVED: ClassVar[int] = 64

    floor_s: float = math.inf
    samples: int = 0
    undercut: int = 0

    def add(self, round_trip_s: float) -> bool | None:
        """Take a round trip in s; whether it is possible, None while the floor is being learned."""
        self.samples += 1
        if self.samples <= self.LEARNED:
            self.floor_s = min(self.floor_s, round_trip_s)
            return None
        if round_trip_s >= 0.9 * self.floor_s - 0.5e-3:
            self.undercut = 0
            self.floor_s = min(self.floor_s, round_trip_s)
            return True
        self.undercut += 1
        if self.undercut >= self.BELIEVED:
            self.floor_s, self.undercut = round_trip_s, 0
        return False
