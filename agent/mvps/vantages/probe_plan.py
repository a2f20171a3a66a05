# SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
"""What the active path prober may send, and to whom: nothing outside this plan is ever probed.

Shared by the agent (probing.py) and the process that sends (traceroute.py), which checks it again.
"""

from __future__ import annotations

import ipaddress
import json
from dataclasses import dataclass
from typing import Any

from mvps.coherence.causal import Site

MAX_DESTINATIONS = 64
MAX_FLOWS = 16
MAX_IDENTITIES = 256  # destinations times flows: one socket each, and a sweep must end
MAX_TTL = 32
MAX_RATE = 50.0


@dataclass(frozen=True, slots=True)
class Destination:
    """A host to probe: a literal unicast address and, if its place is known, both coordinates in degrees.

    ValueError for a name (it could change or leak the plan), a multicast, broadcast, unspecified or scoped address,
    or half a place.
    """

    address: str
    latitude: float | None = None
    longitude: float | None = None

    def __post_init__(self) -> None:
        try:
            ip = ipaddress.ip_address(self.address)
        except ValueError:
            raise ValueError(
                f'"{self.address}" is not an IP address; names are not resolved, write the address'
            ) from None
        broadcast = ip == ipaddress.ip_address("255.255.255.255")
        mapped = isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None
        if ip.is_multicast or ip.is_unspecified or ip.is_link_local or broadcast or mapped:
            raise ValueError(f"{self.address} is not one routable host; probe unicast addresses only")
        if (self.latitude is None) != (self.longitude is None):
            raise ValueError(f"{self.address} has half a place; give latitude and longitude or neither")
        object.__setattr__(self, "address", str(ip))
        _ = self.place

    @property
    def place(self) -> Site | None:
        """Where it is, if both coordinates are given. ValueError when that is no place on Earth."""
        if self.latitude is None or self.longitude is None:
            return None
        return Site(self.latitude, self.longitude)

    @classmethod
    def parse(cls, text: str) -> Destination:
        """``ADDRESS`` or ``ADDRESS@LATITUDE,LONGITUDE``, as the settings file writes it."""
        address, separator, place = text.partition("@")
        site = parse_site(place) if separator else None
        return cls(address, site.latitude if site else None, site.longitude if site else None)


def parse_site(text: str) -> Site:
    """``LATITUDE,LONGITUDE`` in degrees, such as ``52.37,4.90``. ValueError says what is accepted."""
    try:
        latitude, longitude = map(float, text.split(","))
    except ValueError:
        raise ValueError(f'"{text}" is no place; write "LATITUDE,LONGITUDE" in degrees, as "52.37,4.90"') from None
    return Site(latitude, longitude)


@dataclass(frozen=True, slots=True)
class ProbePlan:
    """Destinations and bounds. ValueError names what is out of bounds.

    site: (latitude, longitude) of this host in degrees, None when unknown.
    rate: probes per second over everything, at most 50. flows: flow identities per destination, at most 16.
    max_ttl: farthest hop looked for, at most 32. timeout: seconds an answer may take, 0.1 to 5.
    """

    destinations: tuple[Destination, ...]
    site: tuple[float, float] | None = None
    rate: float = 5.0
    flows: int = 4
    max_ttl: int = 16
    timeout: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= len(self.destinations) <= MAX_DESTINATIONS:
            raise ValueError(f"{len(self.destinations)} destinations; give 1 to {MAX_DESTINATIONS}")
        addresses = [d.address for d in self.destinations]
        twice = {a for a in addresses if addresses.count(a) > 1}
        if twice:
            raise ValueError(f"{min(twice)} is given twice; name each destination once")
        identities = len(addresses) * self.flows
        if self.flows <= MAX_FLOWS and identities > MAX_IDENTITIES:
            raise ValueError(
                f"{len(addresses)} destinations with {self.flows} flows each are {identities} flow identities; "
                f"at most {MAX_IDENTITIES}"
            )
        for name, value, low, high in (
            ("rate", self.rate, 0.01, MAX_RATE),
            ("flows", self.flows, 1, MAX_FLOWS),
            ("max_ttl", self.max_ttl, 1, MAX_TTL),
            ("timeout", self.timeout, 0.1, 5.0),
        ):
            if not low <= value <= high:
                raise ValueError(f"{name} {value} is out of bounds; give {low} to {high}")
        _ = self.here

    @property
    def here(self) -> Site | None:
        """Where this host is. ValueError when that is no place on Earth."""
        return Site(*self.site) if self.site else None

    @property
    def longest_sweep_s(self) -> float:
        """Upper bound of the time in which every flow of every destination is walked once, in seconds."""
        walk = self.max_ttl / self.rate + self.timeout
        return len(self.destinations) * self.flows * walk

    def to_json(self) -> str:
        """One line that :meth:`from_json` reads. It carries no coordinates: the process that sends needs none."""
        return json.dumps(
            {
                "destinations": [d.address for d in self.destinations],
                "rate": self.rate,
                "flows": self.flows,
                "max_ttl": self.max_ttl,
                "timeout": self.timeout,
            }
        )

    @classmethod
    def from_json(cls, line: str) -> ProbePlan:
        """The plan without its places. ValueError when it is not one."""
        document: Any = json.loads(line)
        try:
            addresses = document.pop("destinations")
            return cls(tuple(Destination(str(a)) for a in addresses), **document)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"not a probe plan: {error}") from None
