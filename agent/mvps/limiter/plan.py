# SPDX-License-Identifier: Apache-2.0
"""Who may send how much to the broker's port: budgets from manifests. Pure.

A budget is a rate of packets and of bytes that may be used *together*: half of its time pays for packets, half for
bytes (Ethernet frame without checksum), so packets without bytes could come at twice their rate and no more. What fits
at once, above the rate, is its burst.

Four kinds (bpf/limiter.bpf.c says how they are charged):

- *flow*: one connection on which the broker has verified a seal; ``factor`` times a vantage's own traffic.
- *total* of a prefix: all its proven flows, as many flow budgets as vantages may send from it.
- *handshake* of a prefix, on each CPU: everything not proven; all its vantages may connect at once and then once a
  second, and one of them may begin with the largest batch.
- *host*, on each CPU: all handshakes, whatever prefix they claim to come from.

Figures of a vantage's own traffic are measured (docs/limiter.md); factor, floor and host budget are ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from mvps.trust.limits import MAX_BATCH_BYTES
from mvps.trust.manifest import Manifest, Network

MAX_SHARDS: Final = 16_384  # a shard takes 128 bytes and 32 more per CPU
MAX_LENGTHS: Final = 8  # different prefix lengths of a family; each used one is a lookup per packet
MAX_FLOWS: Final = 16_384
_NS: Final = 10**9
# The coarse clock stands still for a jiffy, 10 ms at CONFIG_HZ=100: what comes within two is charged at once.
_CLOCK_NS: Final = 20_000_000


@dataclass(frozen=True, slots=True)
class Traffic:
    """What one vantage sends, measured on the wire, and how much more than that is allowed.

    packets, bytes: per tick on a proven flow, acknowledgements included.
    connect_packets, connect_bytes: from SYN to the first snapshot, with TLS.
    factor: times that may be sent; a manifest's own ``rate`` wins if it is larger.
    floor: packets per second that every budget has at least.
    batch_packets: of the largest batch, in segments of 1200 bytes.
    host_packets, host_bytes: per second and CPU, of all that is not proven.
    """

    packets: float = 5.5
    bytes: float = 2600.0
    connect_packets: int = 12
    connect_bytes: int = 9000
    factor: int = 4
    floor: float = 8.0
    batch_packets: int = MAX_BATCH_BYTES // 1200 + 1
    host_packets: float = 20_000.0
    host_bytes: float = 16e6


MEASURED: Final = Traffic()


@dataclass(frozen=True, slots=True)
class Price:
    """A budget as the kernel side has it: ns per packet, 1/1024 ns per byte, ns that may be spent ahead."""

    packet_ns: int
    byte_ns_x1024: int
    burst_ns: int

    @property
    def packets_per_s(self) -> float:
        """Packets per second that fit together with :attr:`bytes_per_s`."""
        return _NS / self.packet_ns / 2

    @property
    def bytes_per_s(self) -> float:
        """Bytes per second that fit together with :attr:`packets_per_s`."""
        return _NS * 1024 / self.byte_ns_x1024 / 2


@dataclass(frozen=True, slots=True)
class Shard:
    """Sources that share budgets. prefix: None for all that no other shard has; vantages: that may send from there."""

    prefix: Network | None
    vantages: int
    handshake: Price
    total: Price


@dataclass(frozen=True, slots=True)
class Plan:
    """All budgets. ``shards[0]`` is for unlisted sources; ``widened`` prefixes were taken wider than written."""

    port: int
    flow: Price
    host: Price
    shards: tuple[Shard, ...]
    idle_ns: int
    widened: int

    def lengths(self, version: int) -> list[int]:
        """Prefix lengths in use for IPv4 or IPv6, longest first."""
        used = {shard.prefix.prefixlen for shard in self.shards if shard.prefix and shard.prefix.version == version}
        return sorted(used, reverse=True)


def budget(packets_per_s: float, bytes_per_s: float, burst_packets: float, burst_bytes: float) -> Price:
    """The price list under which that rate and that burst just fit."""
    packet_ns = max(1, int(_NS / (2 * packets_per_s)))
    byte_ns_x1024 = max(1, int(_NS * 1024 / (2 * bytes_per_s)))
    burst_ns = int(burst_packets * packet_ns + burst_bytes * byte_ns_x1024 / 1024) + _CLOCK_NS
    return Price(packet_ns, byte_ns_x1024, burst_ns)


def plan(
    manifests: Iterable[Manifest],
    port: int,
    *,
    unlisted: int = 0,
    traffic: Traffic = MEASURED,
    idle_s: float = 120.0,
) -> Plan:
    """Budgets for the vantages of these manifests: those in force and those about to be.

    unlisted: vantages expected from anywhere beside those whose manifest entry names no prefix.
    idle_s: a proven flow without a packet for so long is a stranger again; must exceed the stream's keepalive.
    """
    sources: dict[Network, set[str]] = {}
    anywhere: set[str] = set()
    tick_s, factor = 1.0, traffic.factor
    for number, manifest in enumerate(manifests):
        tick_s = min(tick_s, manifest.tick_ms / 1000) if number else manifest.tick_ms / 1000
        factor = max(factor, manifest.rate_factor)
        for vantage in manifest.vantages:
            if not vantage.prefixes:
                anywhere.add(vantage.vantage_id)
            for prefix in vantage.prefixes:
                sources.setdefault(prefix, set()).add(vantage.vantage_id)
    merged, widened = _fit(sources)

    rate = (max(traffic.floor, factor * traffic.packets / tick_s), factor * traffic.bytes / tick_s)
    # What a tick may bring beyond the rate: one batch of what was kept while the broker was away.
    batch = (traffic.batch_packets, MAX_BATCH_BYTES + 100 * traffic.batch_packets)

    def shard(prefix: Network | None, vantages: int) -> Shard:
        many = max(vantages, 1)
        connects = (many * traffic.connect_packets, many * traffic.connect_bytes)
        return Shard(
            prefix,
            vantages,
            # Every vantage once a second, whatever its tick.
            handshake=budget(
                max(traffic.floor, connects[0]), connects[1], batch[0] + connects[0], batch[1] + connects[1]
            ),
            total=budget(many * rate[0], many * rate[1], many * batch[0], many * batch[1]),
        )

    listed = sorted(merged, key=lambda prefix: (prefix.version, int(prefix.network_address), prefix.prefixlen))
    return Plan(
        port=port,
        flow=budget(*rate, *batch),
        host=budget(traffic.host_packets, traffic.host_bytes, traffic.host_packets, traffic.host_bytes),
        shards=(shard(None, len(anywhere) + unlisted), *(shard(prefix, len(merged[prefix])) for prefix in listed)),
        idle_ns=int(idle_s * _NS),
        widened=widened,
    )


def relevant(manifests: Iterable[Manifest], now_s: float) -> list[Manifest]:
    """The manifests whose vantages may connect: in force, about to be, and the one before while it is not retired."""
    known = sorted(manifests, key=lambda manifest: manifest.epoch_id)
    begun = [manifest for manifest in known if manifest.from_s <= now_s]
    waiting = [manifest for manifest in known if manifest.from_s > now_s]
    kept = begun[-2:] if begun and now_s < begun[-1].retire_s else begun[-1:]
    return kept + waiting


def _fit(sources: Mapping[Network, set[str]]) -> tuple[dict[Network, set[str]], int]:
    """At most MAX_SHARDS - 1 prefixes of at most MAX_LENGTHS lengths a family, and how many had to be widened.

    Widening makes neighbours share a budget, which costs them isolation from each other and nobody else anything.
    """
    kept = {prefix: set(names) for prefix, names in sources.items()}
    widened: set[Network] = set()

    def widen(version: int, length: int, to: int) -> None:
        for prefix in [p for p in kept if p.version == version and p.prefixlen == length]:
            wide = prefix.supernet(new_prefix=to)
            kept.setdefault(wide, set()).update(kept.pop(prefix))
            widened.add(prefix)

    for version in (4, 6):
        while True:
            lengths = sorted({p.prefixlen for p in kept if p.version == version})
            if len(lengths) <= MAX_LENGTHS:
                break
            tally = {length: sum(p.version == version and p.prefixlen == length for p in kept) for length in lengths}
            fewest = min(lengths[1:], key=lambda length: tally[length])
            widen(version, fewest, lengths[lengths.index(fewest) - 1])
    while len(kept) > MAX_SHARDS - 1:
        groups = {(p.version, p.prefixlen) for p in kept}
        version, length = max(
            groups, key=lambda group: sum((p.version, p.prefixlen) == group for p in kept) if group[1] else 0
        )
        shorter = [p.prefixlen for p in kept if p.version == version and p.prefixlen < length]
        widen(version, length, max([length - (4 if version == 4 else 16), 0, *shorter]))
    return kept, len(widened)
