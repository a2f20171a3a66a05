# SPDX-License-Identifier: Apache-2.0
"""What the limiter has done so far, read from its pinned maps. Needs the permission to read them and nothing else."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from mvps.limiter import layout
from mvps.limiter.attach import NotAttachedError, Place, pins, states
from mvps.limiter.plan import Price
from mvps.probes import libbpf
from mvps.probes.libbpf import BpfMap
from mvps.trust.manifest import Network


@dataclass(frozen=True, slots=True)
class Source:
    """Who was dropped. Estimated from one drop in 64; IPv6 by /64, which cannot tell its hosts apart."""

    network: Network
    packets: int
    bytes: int


@dataclass(frozen=True, slots=True)
class PrefixDrops:
    """Packets of one prefix that were dropped; prefix None: unlisted sources."""

    prefix: Network | None
    syn: int
    other: int
    proven: int


@dataclass(frozen=True, slots=True)
class Reading:
    """One look at the limiter.

    verdicts: verdict -> (packets, bytes) since the limiter was installed, all interfaces and CPUs.
    idle_flows: packets of flows that were idle for too long to count as proven; judged as strangers.
    flow, host: budgets of one proven flow, and of all that is not proven on one CPU.
    """

    places: list[Place]
    port: int
    plan: int
    verdicts: dict[str, tuple[int, int]]
    idle_flows: int
    sources: list[Source]
    flow: Price
    host: Price

    def passed(self) -> int:
        """Packets that went on."""
        return sum(self.verdicts[name][0] for name in layout.PASSED)

    def dropped(self) -> int:
        """Packets that did not."""
        return sum(self.verdicts[name][0] for name in layout.DROPPED)


def read(folder: Path, top: int = 10) -> Reading:
    """Counters, interfaces and the ``top`` sources of drops.

    NotAttachedError: there is no limiter. LimiterError: it may not be read.
    """
    places = states(folder)
    with _open(folder, "limits") as limits, _open(folder, "verdicts") as verdicts, _open(folder, "sources") as known:
        plan = layout.LIMITS.unpack(limits.get(layout.INDEX.pack(0)) or bytes(layout.LIMITS.size))
        cells = verdicts.get(layout.INDEX.pack(0)) or b""
        sums = [sum(column) for column in zip(*layout.VERDICT_CELL.iter_unpack(cells), strict=True)]
        sources = []
        for key in known.all_keys():
            value = known.get(key)
            if value is not None:  # it may have been pushed out meanwhile
                packets, size = layout.SOURCE.unpack(value)
                sources.append(Source(_network(key), packets, size))
    count = len(layout.VERDICTS)
    return Reading(
        places=places,
        port=plan[8],
        plan=plan[7],
        verdicts=dict(zip(layout.VERDICTS, zip(sums[:count], sums[count : 2 * count], strict=True), strict=True)),
        idle_flows=sums[2 * count],
        sources=sorted(sources, key=lambda source: source.packets, reverse=True)[:top],
        flow=Price(*plan[0:3]),
        host=Price(*plan[3:6]),
    )


def proven_flows(folder: Path) -> int:
    """Flows in the map at this moment; up to 16,384 reads."""
    with _open(folder, "flows") as flows:
        return len(flows.all_keys())


def prefix_drops(folder: Path) -> list[PrefixDrops]:
    """Drops by prefix under the plan in force, most first, prefixes without drops left out; a read per prefix."""
    found = []
    with (
        _open(folder, "shards") as shards,
        _open(folder, "handshakes") as handshakes,
        _open(folder, "prefixes4") as prefixes4,
        _open(folder, "prefixes6") as prefixes6,
    ):
        names: dict[bytes, Network | None] = {layout.INDEX.pack(0): None}
        for prefixes in (prefixes4, prefixes6):
            for key in prefixes.all_keys():
                names[prefixes.get(key) or b""] = layout.prefix_of(key)
        for index, prefix in names.items():
            shard = shards.get(index)
            if shard is None:
                continue  # another plan came meanwhile
            own = list(layout.HANDSHAKE.iter_unpack(handshakes.get(index) or b""))
            drops = PrefixDrops(
                prefix,
                syn=sum(cell[2] for cell in own),
                other=sum(cell[3] for cell in own),
                proven=layout.SHARD.unpack(shard)[7],
            )
            if drops.syn or drops.other or drops.proven:
                found.append(drops)
    return sorted(found, key=lambda drops: drops.syn + drops.other + drops.proven, reverse=True)


def _open(folder: Path, name: str) -> BpfMap:
    try:
        return BpfMap(libbpf.open_pin(pins(folder) / name, read_only=True))
    except FileNotFoundError:
        raise NotAttachedError(f"no limiter in {folder}: `mvps broker attach --interface IF` installs it") from None


def _network(key: bytes) -> Network:
    address = layout.unmapped(key)
    return ipaddress.ip_network((address, 32 if address.version == 4 else 64))
