# SPDX-License-Identifier: Apache-2.0
"""What the limiter's maps hold, byte by byte, and where they are pinned.

The structs are those of bpf/limiter.bpf.c; a test compares them with the object's BTF. They are written down here, so
that a broker needs neither the object nor a capability to use the maps.
"""

from __future__ import annotations

import ipaddress
import struct
import time
from pathlib import Path
from typing import Final, TypeAlias
from urllib.parse import quote, unquote

from mvps.limiter.plan import MAX_LENGTHS, Plan, Price
from mvps.trust.manifest import Network

DEFAULT_FOLDER: Final = Path("/run/mvps.limiter")
# In the pin path: a limiter whose maps mean something else never meets this one.
SCHEMA: Final = "v1"

FLOW_KEY: Final = struct.Struct("<16s2s2x")  # address, IPv4 mapped; port in network order
FLOW: Final = struct.Struct("<QQIIII")  # spent, dropped, plan, shard, vantages
LIMITS: Final = struct.Struct(f"<3Q3QQIHHIIII{4 * MAX_LENGTHS}s{20 * MAX_LENGTHS}s")
SHARD: Final = struct.Struct("<3Q3QQQ64x")  # handshake, total, spent, dropped
HANDSHAKE: Final = struct.Struct("<QQQQ")  # spent on SYNs, on the rest; dropped SYNs, dropped rest
SOURCE: Final = struct.Struct("<QQ")  # packets, bytes
INDEX: Final = struct.Struct("<I")

# The kernel's tick, as the resolution of its coarse clock tells.
_CLOCK_MONOTONIC_COARSE: Final = 6  # of linux/time.h; Python has no name for it
JIFFY_NS: Final = round(time.clock_getres(_CLOCK_MONOTONIC_COARSE) * 1e9)

PASSED: Final = ("proven", "syn", "stranger", "fragment", "unreadable")
DROPPED: Final = (
    "flow_over", "prefix_over", "syn_over", "stranger_over", "fragment_over", "unreadable_over", "host_over",
    "contended",
)  # fmt: skip
VERDICTS: Final = PASSED + DROPPED
VERDICT_CELL: Final = struct.Struct(f"<{2 * len(VERDICTS) + 1}Q16x")  # packets, bytes by verdict; idle flows

# Pinned maps: those of a plan are replaced with it, the others stay. Mode of their files; the group is the broker's.
PLAN_MAPS: Final = {"limits": 0o640, "shards": 0o640, "handshakes": 0o640, "prefixes4": 0o640, "prefixes6": 0o640}
LASTING_MAPS: Final = {"flows": 0o660, "verdicts": 0o640, "sources": 0o640}

_Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address


def link_name(interface: str) -> str:
    """File name of an interface's link. A BPF file system takes no dots, and VLAN interfaces have them."""
    return "link_" + quote(interface, safe="").replace(".", "%2E")


def interface_of(link: str) -> str | None:
    """The interface whose link has this file name; None for other files."""
    return unquote(link.removeprefix("link_")) if link.startswith("link_") else None


def flow_key(address: _Address, port: int) -> bytes:
    """Key of the flow from an address and port."""
    return FLOW_KEY.pack(mapped(address), port.to_bytes(2, "big"))


def new_flow(vantages: int) -> bytes:
    """A flow that has spent nothing and whose shard the kernel side still has to look up."""
    return FLOW.pack(0, 0, 0, 0, vantages, 0)


def mapped(address: _Address) -> bytes:
    """16 bytes; IPv4 as ::ffff:a.b.c.d."""
    return bytes(10) + b"\xff\xff" + address.packed if isinstance(address, ipaddress.IPv4Address) else address.packed


def unmapped(packed: bytes) -> _Address:
    """The address in 16 bytes."""
    address = ipaddress.IPv6Address(packed)
    return address.ipv4_mapped or address


def pack_limits(plan: Plan, number: int, program: int) -> bytes:
    """Value of ``limits`` for a plan, its number (never 0) and the program's id."""
    masks4 = [_mask(length, 32) for length in plan.lengths(4)]
    masks6 = [_mask(length, 128) + INDEX.pack(length) for length in plan.lengths(6)]
    return LIMITS.pack(
        *_price(plan.flow),
        *_price(plan.host),
        plan.idle_ns,
        number,
        plan.port,
        0,
        JIFFY_NS,
        program,
        len(masks4),
        len(masks6),
        b"".join(masks4),
        b"".join(masks6),
    )


def pack_shard(handshake: Price, total: Price) -> bytes:
    """Value of a shard that has spent nothing."""
    return SHARD.pack(*_price(handshake), *_price(total), 0, 0)


def prefix_key(prefix: Network) -> bytes:
    """Key of a prefix in ``prefixes4`` or ``prefixes6``."""
    packed = prefix.network_address.packed
    return packed + (_mask(prefix.prefixlen, 32) if prefix.version == 4 else INDEX.pack(prefix.prefixlen))


def prefix_of(key: bytes) -> Network:
    """The prefix of such a key."""
    if len(key) == 8:
        length = int.from_bytes(key[4:], "big").bit_count()
        return ipaddress.IPv4Network((key[:4], length))
    return ipaddress.IPv6Network((key[:16], INDEX.unpack(key[16:])[0]))


def _price(price: Price) -> tuple[int, int, int]:
    return price.packet_ns, price.byte_ns_x1024, price.burst_ns


def _mask(length: int, bits: int) -> bytes:
    return ((1 << bits) - (1 << (bits - length))).to_bytes(bits // 8, "big")
