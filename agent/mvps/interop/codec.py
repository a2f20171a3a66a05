# SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
"""Codec for two datagrams of the companion drafts: MBND + CWTL (UDP 45878) and COHE (UDP 3784).

Source: the two published capture receipts (``mvps_cwt_pcap_receipt.json``, ``mvps_pcap_receipt.json``) and
MVPS_PCAP_PROOF.txt. The layouts are only partly known. What is not known is carried as opaque bytes and named in
``UNKNOWN`` of each message; a message that decodes is encoded again byte for byte::

    MBND  0  4 "MBND"       16  8 epoch id          28    8  D2 aggregate, float64
          4  4 bundle id    24  2 vantages N        36  32N  records, 32 octets each, contents unknown
          8  8 tick k       26  2 adversaries f
    CWTL  0  4 "CWTL"       12 16 operator id, ASCII          offsets from 36 + 32N
          4  8 epoch id     28 32 manifest root, SHA-256
                            60  . unknown up to the end of the datagram
    COHE  0 32 BFD header   40  4 phase residual, signed ns   44, 48, 52  4 C1, C2, C3, float32
         32  4 "COHE"       36  4 tick k                      56 12 HMAC-SHA256, truncated to 96 bits

**The offsets of CWTL contradict their lengths.** The receipt gives epoch +4 (8 octets), operator +8, root +24, rest
+56. Taken as written, the operator id would overlap the epoch id. Two repairs make a layout of it:

- the lengths are right, and the offsets after the first count from the epoch id, not from the magic (read here);
- the offsets are right, and the epoch id takes 4 octets although the receipt says uint64 (refused).

The epoch id repeats that of MBND, so the bytes themselves tell which one a sender follows; a datagram of the second
kind is refused by name rather than reinterpreted.

**Byte order.** Stated big-endian for MBND and CWTL. For COHE it is inferred: its magic is given as the number
0x434F4845 and as the text "COHE", which agree in big-endian only. A message that makes sense in little-endian order
only is refused by that name; one that makes more sense so is a doubt.

Limits and refusals beyond the layout are ours: D2 is finite and not negative, coherences lie in [0, 1].
"""

from __future__ import annotations

import hashlib
import hmac
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Final, NamedTuple

MBND_PORT: Final = 45878
COHE_PORT: Final = 3784  # that of BFD single-hop control (RFC 5881), shared with ordinary sessions
MAX_DATAGRAM: Final = 65527  # octets of payload a UDP length field can announce (RFC 768)

_BUNDLE: Final = struct.Struct(">4sIQQHHd")
_ENVELOPE: Final = struct.Struct(">4sQ16s32s")
_COHERENCE: Final = struct.Struct(">32s4sIifff12s")
_AXES: Final = struct.Struct(">fff")
_FLOAT32: Final = struct.Struct(">f")

BUNDLE_HEADER_BYTES: Final = _BUNDLE.size
RECORD_BYTES: Final = 32
ENVELOPE_BYTES: Final = _ENVELOPE.size  # without what follows the manifest root
BFD_BYTES: Final = 32
TAG_BYTES: Final = 12
COHERENCE_BYTES: Final = _COHERENCE.size
_TAG_OFFSET: Final = COHERENCE_BYTES - TAG_BYTES

# A header that no BFD session takes for its own: version 0 is discarded first (RFC 5880 section 6.8.6).
NO_BFD: Final = bytes(BFD_BYTES)
NO_TAG: Final = bytes(TAG_BYTES)


class InteropError(ValueError):
    """Bytes or values that the known layouts do not allow. The message says which and why."""


# ---- MBND + CWTL


@dataclass(frozen=True, slots=True)
class BundleHeader:
    """The fixed part of an MBND datagram.

    d2: "D2 aggregate"; which aggregate is not said. adversaries: f, how many lying vantages are tolerated.
    """

    bundle_id: int
    tick: int
    epoch_id: int
    vantages: int
    adversaries: int
    d2: float

    MAGIC: ClassVar[bytes] = b"MBND"

    def __post_init__(self) -> None:
        _unsigned("bundle id", self.bundle_id, 32)
        _unsigned("tick", self.tick, 64)
        _unsigned("epoch id", self.epoch_id, 64)
        _unsigned("number of vantages", self.vantages, 16)
        _unsigned("number of adversaries", self.adversaries, 16)
        if not 0.0 <= self.d2 < math.inf:
            raise InteropError(f"D2 {self.d2} is no squared distance: it must be finite and not negative")

    @property
    def doubts(self) -> tuple[str, ...]:
        """What the layout allows and the drafts' hypotheses do not: N >= 2 and f < N/2."""
        found = []
        if self.vantages < 2:
            found.append(f"a bundle of {self.vantages} vantages, and 2 are needed")
        if 2 * self.adversaries >= self.vantages:
            found.append(f"f = {self.adversaries} is not below half of {self.vantages} vantages")
        return tuple(found)

    def encode(self) -> bytes:
        """The 36 octets."""
        return _BUNDLE.pack(
            self.MAGIC, self.bundle_id, self.tick, self.epoch_id, self.vantages, self.adversaries, self.d2
        )

    @classmethod
    def decode(cls, data: bytes) -> BundleHeader:
        """Header at the start of ``data``; what follows is not looked at. Raises InteropError and nothing else."""
        _at_least(data, BUNDLE_HEADER_BYTES, "an MBND header")
        magic, *fields = _BUNDLE.unpack_from(data)
        if magic != cls.MAGIC:
            raise InteropError(f"these bytes begin with {magic!r}, not with MBND")
        return cls(*fields)


@dataclass(frozen=True, slots=True)
class Envelope:
    """A CWTL envelope.

    operator_id: 16 ASCII octets as they travel; how shorter names are filled up is unknown.
    rest: whatever follows the manifest root.
    """

    epoch_id: int
    operator_id: bytes
    manifest_root: bytes
    rest: bytes = b""

    MAGIC: ClassVar[bytes] = b"CWTL"

    def __post_init__(self) -> None:
        _unsigned("epoch id", self.epoch_id, 64)
        _exactly("operator id", self.operator_id, 16)
        _exactly("manifest root", self.manifest_root, 32)
        if not self.operator_id.isascii():
            raise InteropError(f"operator id {self.operator_id!r} is not ASCII")

    def encode(self) -> bytes:
        """60 octets and the rest."""
        return _ENVELOPE.pack(self.MAGIC, self.epoch_id, self.operator_id, self.manifest_root) + self.rest

    @classmethod
    def decode(cls, data: bytes) -> Envelope:
        """The envelope that ``data`` consists of. Raises InteropError and nothing else."""
        _at_least(data, ENVELOPE_BYTES, "a CWTL envelope")
        magic, epoch_id, operator_id, manifest_root = _ENVELOPE.unpack_from(data)
        if magic != cls.MAGIC:
            raise InteropError(f"where the CWTL envelope must begin stands {magic!r}")
        return cls(epoch_id, operator_id, manifest_root, data[ENVELOPE_BYTES:])


@dataclass(frozen=True, slots=True)
class Bundle:
    """A whole datagram of port 45878: header, one record per vantage, envelope."""

    header: BundleHeader
    records: tuple[bytes, ...]
    envelope: Envelope

    UNKNOWN: ClassVar[tuple[str, ...]] = (
        "contents of the vantage records",
        "everything after manifest_root (tags and cosignatures by the receipt's counts)",
        "which aggregate D2 is",
        "unit of epoch_id",
        "padding of operator_id",
    )

    def __post_init__(self) -> None:
        if len(self.records) != self.header.vantages:
            raise InteropError(f"{len(self.records)} records for {self.header.vantages} vantages")
        for record in self.records:
            _exactly("vantage record", record, RECORD_BYTES)
        if self.envelope.epoch_id != self.header.epoch_id:
            raise InteropError(f"epoch {self.header.epoch_id} in MBND and {self.envelope.epoch_id} in CWTL")
        size = BUNDLE_HEADER_BYTES + RECORD_BYTES * len(self.records) + ENVELOPE_BYTES + len(self.envelope.rest)
        _fits_datagram(size)

    def encode(self) -> bytes:
        """The datagram's payload."""
        return b"".join((self.header.encode(), *self.records, self.envelope.encode()))

    @classmethod
    def decode(cls, data: bytes) -> Bundle:
        """The bundle that ``data`` consists of. Raises InteropError and nothing else."""
        _fits_datagram(len(data))
        header = BundleHeader.decode(data)
        start = BUNDLE_HEADER_BYTES + RECORD_BYTES * header.vantages
        _at_least(data, start + ENVELOPE_BYTES, f"a bundle of {header.vantages} vantages and its envelope")
        envelope = Envelope.decode(data[start:])
        if envelope.epoch_id != header.epoch_id == int.from_bytes(data[start + 4 : start + 8]):
            raise InteropError(
                "the epoch id in CWTL takes 4 octets, so this sender follows the receipt's offsets (operator id at +8) "
                "and not its lengths (at +12); the two contradict each other, and only the latter are read"
            )
        records = tuple(data[at : at + RECORD_BYTES] for at in range(BUNDLE_HEADER_BYTES, start, RECORD_BYTES))
        return cls(header, records, envelope)


# ---- COHE


@dataclass(frozen=True, slots=True)
class Coherence:
    """A datagram of port 3784 with the COHE magic, 68 octets.

    bfd: 32 octets "in RFC 5880 layout", opaque: that layout has 24 before any authentication section.
    phase_residual_ns: phi, not explained further. c1 to c3: float32 values; the receipt calls them causal, semantic
    and byzantine. tag: HMAC-SHA256 truncated to 96 bits, over octets that are not stated (:data:`CANDIDATES`).
    """

    tick: int
    phase_residual_ns: int
    c1: float
    c2: float
    c3: float
    bfd: bytes = NO_BFD
    tag: bytes = NO_TAG

    MAGIC: ClassVar[bytes] = b"COHE"
    UNKNOWN: ClassVar[tuple[str, ...]] = (
        "octets the HMAC covers",
        "contents of the 32-octet BFD header (RFC 5880 has 24)",
        "what the phase residual is measured against",
        "whether C2 and C3 are the informational and topological axes",
    )

    def __post_init__(self) -> None:
        _unsigned("tick", self.tick, 32)
        if not -(2**31) <= self.phase_residual_ns < 2**31:
            raise InteropError(f"a phase residual of {self.phase_residual_ns} ns does not fit 32 bits (2.147 s)")
        for name, value in (("c1", self.c1), ("c2", self.c2), ("c3", self.c3)):
            if not 0.0 <= value <= 1.0:
                raise InteropError(f"{name} {value} is no coherence: it must lie in 0 to 1")
            if float32(value) != value:
                raise InteropError(f"{name} {value!r} is no float32 value: round it with float32() first")
        _exactly("BFD header", self.bfd, BFD_BYTES)
        _exactly("tag", self.tag, TAG_BYTES)

    @property
    def doubts(self) -> tuple[str, ...]:
        """Signs that the sender uses little-endian order: its values are then mostly tiny ones in the one read."""
        axes = (self.c1, self.c2, self.c3)
        swapped = _swapped(*axes)
        if _plausible(axes) or not _plausible(swapped):
            return ()
        return (f"in little-endian order c1 to c3 would be {', '.join(f'{value:.6g}' for value in swapped)}",)

    def encode(self) -> bytes:
        """The 68 octets."""
        axes = (self.c1, self.c2, self.c3)
        return _COHERENCE.pack(self.bfd, self.MAGIC, self.tick, self.phase_residual_ns, *axes, self.tag)

    @classmethod
    def decode(cls, data: bytes) -> Coherence:
        """The message that ``data`` consists of. Raises InteropError and nothing else. The tag is not verified."""
        _exactly("COHE payload", data, COHERENCE_BYTES)
        bfd, magic, tick, residual, c1, c2, c3, tag = _COHERENCE.unpack(data)
        if magic == cls.MAGIC[::-1]:
            raise InteropError(
                "octets 32 to 35 are EHOC: a COHE message in little-endian order, and big-endian is read"
            )
        if magic != cls.MAGIC:
            raise InteropError(f"octets 32 to 35 are {magic!r}, not COHE")
        if not all(0.0 <= value <= 1.0 for value in (c1, c2, c3)) and _plausible(_swapped(c1, c2, c3)):
            raise InteropError("the coherences make sense in little-endian order only, and big-endian is read")
        return cls(tick, residual, c1, c2, c3, bfd, tag)


class Coverage(NamedTuple):
    """Octets ``start`` to ``stop`` (excluded) of a COHE payload; octets of the tag among them count as zero."""

    start: int
    stop: int


# What the HMAC could cover, likeliest first (ours; no source says it, and no published capture could be tried).
CANDIDATES: Final[Mapping[str, Coverage]] = {
    "all before the tag": Coverage(0, _TAG_OFFSET),
    "all, tag zeroed": Coverage(0, COHERENCE_BYTES),
    "coherence block": Coverage(BFD_BYTES, _TAG_OFFSET),
    "coherence block without magic": Coverage(BFD_BYTES + 4, _TAG_OFFSET),
}


def tag_of(message: Coherence, key: bytes, covered: Coverage) -> bytes:
    """The 12 octets of tag over ``covered``: the leftmost of HMAC-SHA256 (RFC 2104 section 5)."""
    start, stop = covered
    if not 0 <= start < stop <= COHERENCE_BYTES or start >= _TAG_OFFSET:
        raise InteropError(f"octets {start} to {stop} are no range of a payload of {COHERENCE_BYTES} before its tag")
    if not key:
        raise InteropError("the key is empty: a tag under it would prove nothing")
    octets = replace(message, tag=NO_TAG).encode()[start:stop]
    return hmac.digest(key, octets, hashlib.sha256)[:TAG_BYTES]


def tag_holds(message: Coherence, key: bytes, covered: Coverage) -> bool:
    """Whether the tag is the one over ``covered``; compared in constant time.

    True says no more than that: an octet outside ``covered`` is not vouched for.
    """
    return hmac.compare_digest(tag_of(message, key, covered), message.tag)


def coverages_that_hold(message: Coherence, key: bytes) -> tuple[str, ...]:
    """Names of the :data:`CANDIDATES` whose tag this is: how to find out what a given sender covers."""
    return tuple(name for name, covered in CANDIDATES.items() if tag_holds(message, key, covered))


def with_tag(message: Coherence, key: bytes, covered: Coverage) -> Coherence:
    """The message under a tag over ``covered``."""
    return replace(message, tag=tag_of(message, key, covered))


# ---- Datagrams


def decode(port: int, data: bytes) -> Bundle | Coherence | None:
    """The message of a datagram to ``port``. InteropError if it is one of ours and cannot be read.

    None: nothing of ours. Port 3784 carries ordinary BFD too, which is told by the missing magic.
    """
    if port == MBND_PORT:
        return Bundle.decode(data)
    if port == COHE_PORT and data[BFD_BYTES : BFD_BYTES + 4] in (Coherence.MAGIC, Coherence.MAGIC[::-1]):
        return Coherence.decode(data)
    return None


# ---- To and from our own values


class TickScalars(NamedTuple):
    """What one surface's tick and a COHE message have in common.

    tick: k of the lattice, 64 bits. phase_residual_ns: how long after its lattice point the tick was sealed (ours;
    ``Snapshot.lateness_ns``). c1 to c3: the axes, None when the tick could not give one.
    """

    tick: int
    phase_residual_ns: int
    c1: float | None
    c2: float | None
    c3: float | None


# Always lost: a COHE message has no room for it.
NOT_IN_COHERENCE: Final = (
    "vantage id",
    "surface",
    "tick period",
    "decision: D2, p-value, phase, posterior, cut-offs, baseline",
    "S, H and which vantage leads or is farthest",
    "observations, objects and losses",
)


def coherence_of(scalars: TickScalars, bfd: bytes = NO_BFD) -> tuple[Coherence, tuple[str, ...]]:
    """A COHE message without tag, and what was lost of these values (besides :data:`NOT_IN_COHERENCE`).

    InteropError when an axis is absent (COHE cannot say so, and nothing is imputed) or a value has no room.
    """
    _unsigned("tick", scalars.tick, 64)
    lost = []
    if upper := scalars.tick >> 32:
        lost.append(f"tick: its upper 32 bits, {upper}")
    axes = []
    for name, value in (("c1", scalars.c1), ("c2", scalars.c2), ("c3", scalars.c3)):
        if value is None:
            raise InteropError(f"{name} is absent in tick {scalars.tick}, and COHE has no way to say so")
        if not 0.0 <= value <= 1.0:
            raise InteropError(f"{name} {value} is no coherence: it must lie in 0 to 1")
        axes.append(float32(value))
        if axes[-1] != value:
            lost.append(f"{name}: rounded by {axes[-1] - value:.1e}")
    c1, c2, c3 = axes
    message = Coherence(scalars.tick & 0xFFFFFFFF, scalars.phase_residual_ns, c1, c2, c3, bfd)
    return message, tuple(lost)


def scalars_of(message: Coherence, near_tick: int) -> TickScalars:
    """Our values of a COHE message. Its tick has 32 bits: of all ticks that end in them, the nearest to ``near_tick``.

    That is right as long as both are less than 2^31 ticks apart, 3.4 years at 50 ms. The BFD header and the tag have
    no place in ours.
    """
    _unsigned("near tick", near_tick, 64)
    ahead = (message.tick - near_tick + 2**31) % 2**32 - 2**31
    tick = near_tick + ahead
    if tick < 0:
        tick += 2**32
    elif tick >= 2**64:
        tick -= 2**32
    return TickScalars(tick, message.phase_residual_ns, message.c1, message.c2, message.c3)


def bundle_header_of(
    tick: int, d2: float, vantages: int, adversaries: int, *, epoch_id: int, bundle_id: int | None = None
) -> BundleHeader:
    """MBND header of one fleet tick. These values lose nothing; whatever else the tick says has no place in it.

    d2: D_minimax, the one that drives the phase (ours; the source says "aggregate"). bundle_id: by default the lower
    32 bits of the tick (ours). The records that must follow cannot be made: their contents are unknown.
    """
    number = tick & 0xFFFFFFFF if bundle_id is None else bundle_id
    header = BundleHeader(number, tick, epoch_id, vantages, adversaries, d2)
    if header.doubts:
        raise InteropError(f"no bundle to send: {'; '.join(header.doubts)}")
    return header


def float32(value: float) -> float:
    """The nearest float32, as a float. InteropError when there is none."""
    try:
        nearest: float = _FLOAT32.unpack(_FLOAT32.pack(value))[0]
    except OverflowError:
        raise InteropError(f"{value} is too large for a float32") from None
    return nearest


def _swapped(*axes: float) -> tuple[float, ...]:
    """The same octets in the other byte order."""
    return struct.unpack("<fff", _AXES.pack(*axes))


def _plausible(axes: tuple[float, ...]) -> bool:
    """Whether these are coherences as they occur: 0, or not absurdly near to it (ours)."""
    return all(value == 0.0 or 2**-20 <= value <= 1.0 for value in axes)


def _unsigned(name: str, value: int, bits: int) -> None:
    if not 0 <= value < 1 << bits:
        raise InteropError(f"{name} {value} does not fit {bits} bits")


def _exactly(name: str, value: bytes, size: int) -> None:
    if len(value) != size:
        raise InteropError(f"{name} of {len(value)} octets, {size} are needed")


def _at_least(data: bytes, size: int, what: str) -> None:
    if len(data) < size:
        raise InteropError(f"{len(data)} octets are too few for {what}: {size} are needed")


def _fits_datagram(size: int) -> None:
    if size > MAX_DATAGRAM:
        raise InteropError(f"{size} octets fit no UDP datagram: at most {MAX_DATAGRAM}")
