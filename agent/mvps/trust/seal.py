# SPDX-License-Identifier: Apache-2.0
"""Seals: a fixed binary header, opaque body bytes, and a tag over both exactly as they travel.

Header, big-endian (ours; the sources give no layout)::

    0   4  magic "MVPS"          8   2  flags, 0             24  8  counter = generation << 32 | sequence
    4   1  version, 1           10   1  vantage id length    32  8  tick k of the lattice
    5   1  scheme               11   1  reserved, 0          40  8  sealing time, ns since the Unix epoch
    6   1  purpose              12   4  body length          48  8  key id of the party that seals
    7   1  lane                 16   8  epoch id             56  n  vantage id, n = 1..64 bytes

    scheme 1  tag = HMAC-SHA256(K, header || body)      32 bytes; K: mvps.trust.epochs
    scheme 2  tag = Ed25519 signature of header || body  64 bytes

A verifier looks at nothing but these fields before the seal holds, and never serialises anything again.
The scheme is the key's: the byte in the header has to agree with it and chooses nothing, so there is no
downgrade.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Final, NamedTuple, Protocol

from mvps.trust.keys import PublicKey, SecretKey
from mvps.trust.limits import MAX_BODY, MAX_VANTAGE_ID, SIGNATURE_BYTES, TAG_BYTES
from mvps.trust.reasons import RejectReason

MAGIC: Final = b"MVPS"
VERSION: Final = 1
_PREFIX: Final = MAGIC + bytes([VERSION])
_FIXED: Final = struct.Struct(">5sBBBHBBIQQQQ8s")
FIXED_HEADER_BYTES: Final = _FIXED.size
MAX_HEADER_BYTES: Final = FIXED_HEADER_BYTES + MAX_VANTAGE_ID
# Vantage ids end up in logs, metrics and file names.
_VANTAGE_ID: Final = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._:@-]{0,%d}" % (MAX_VANTAGE_ID - 1))


class Scheme(IntEnum):
    """How the tag is made."""

    HMAC_SHA256 = 1
    ED25519 = 2

    @property
    def tag_bytes(self) -> int:
        """Length of a tag."""
        return TAG_BYTES if self is Scheme.HMAC_SHA256 else SIGNATURE_BYTES


class Purpose(IntEnum):
    """What the sealed bytes are for. Snapshots and bfd are sealed by the vantage, control by the broker."""

    SNAPSHOT = 1
    CONTROL = 2
    BFD = 3


class Lane(IntEnum):
    """Live snapshots feed the current bundle; backfill was kept while the broker was away."""

    LIVE = 1
    BACKFILL = 2


class SealError(Exception):
    """Sealed bytes are not accepted; ``reason`` is what is counted."""

    def __init__(self, reason: RejectReason, detail: str) -> None:
        super().__init__(f"{reason.label}: {detail}")
        self.reason = reason
        self.detail = detail


class Sealed(NamedTuple):
    """A sealed message as it travels."""

    header: bytes
    body: bytes
    tag: bytes

    @property
    def size(self) -> int:
        """Bytes on the wire, without the envelope's framing."""
        return len(self.header) + len(self.body) + len(self.tag)

    @property
    def digest(self) -> bytes:
        """32 bytes that commit to header and body; two messages are the same exactly if this is equal.

        For HMAC-SHA256 the tag itself is such a commitment, also against whoever holds the key, and costs no
        second pass over the body. Ed25519 signatures do not commit, so SHA-256 of header || body stands in.
        """
        if self.header[5:6] == b"\x02":
            return hashlib.sha256(self.header + self.body).digest()
        return self.tag


class SealHeader(NamedTuple):
    """The fields of a header."""

    scheme: int
    purpose: int
    lane: int
    body_bytes: int
    epoch_id: int
    counter: int
    tick: int
    time_ns: int
    key_id: bytes
    vantage_id: str


class SealingKey(Protocol):
    """What seals, or verifies, one vantage's messages of one purpose in one epoch."""

    @property
    def scheme(self) -> Scheme:
        """The only scheme this key has."""

    @property
    def key_id(self) -> bytes:
        """8 bytes: the key id of the party that seals."""

    def tag(self, header: bytes, body: bytes) -> bytes:
        """The tag of a message. ValueError where this side can only verify."""

    def holds(self, header: bytes, body: bytes, tag: bytes) -> bool:
        """Whether ``tag`` is the message's."""


class KeySource(Protocol):
    """Knows every sealing key, and asks for none that is not admitted."""

    def sealing_key(self, vantage_id: str, epoch_id: int, purpose: Purpose) -> SealingKey:
        """The key; SealError with the reason why there is none."""


class HmacKey:
    """HMAC-SHA256 under one key, with both pads hashed once (RFC 2104 section 4)."""

    __slots__ = ("_inner", "_outer", "key_id", "scheme")

    def __init__(self, key: bytes, key_id: bytes) -> None:
        if len(key) > 64:
            raise ValueError(f"an HMAC key of {len(key)} bytes, at most 64 allowed")
        block = key.ljust(64, b"\0")
        self._inner = hashlib.sha256(bytes(b ^ 0x36 for b in block))
        self._outer = hashlib.sha256(bytes(b ^ 0x5C for b in block))
        self.key_id: Final = key_id
        self.scheme: Final = Scheme.HMAC_SHA256

    def tag(self, header: bytes, body: bytes) -> bytes:
        """The tag of a message."""
        inner = self._inner.copy()
        inner.update(header + body)
        outer = self._outer.copy()
        outer.update(inner.digest())
        return outer.digest()

    def holds(self, header: bytes, body: bytes, tag: bytes) -> bool:
        """Whether ``tag`` is the message's, in constant time."""
        return hmac.compare_digest(self.tag(header, body), tag)


class Ed25519Verifier:
    """Verifies what the holder of ``public`` signed."""

    __slots__ = ("_public", "key_id", "scheme")

    def __init__(self, public: PublicKey) -> None:
        self._public = public
        self.key_id: Final = public.key_id
        self.scheme: Final = Scheme.ED25519

    def tag(self, header: bytes, body: bytes) -> bytes:
        """Never: only the holder of the secret key signs."""
        raise ValueError(f"only the holder of key {self.key_id.hex()} can seal with it")

    def holds(self, header: bytes, body: bytes, tag: bytes) -> bool:
        """Whether ``tag`` is the message's."""
        return self._public.holds(header + body, tag)


class Ed25519Signer(Ed25519Verifier):
    """Signs with an identity's own key."""

    __slots__ = ("_secret",)

    def __init__(self, secret: SecretKey) -> None:
        super().__init__(secret.public)
        self._secret = secret

    def tag(self, header: bytes, body: bytes) -> bytes:
        """The tag of a message."""
        return self._secret.sign(header + body)


def check_vantage_id(vantage_id: str) -> bytes:
    """The id as it stands in a header; ValueError if it cannot stand there."""
    encoded = vantage_id.encode()
    if not _VANTAGE_ID.fullmatch(encoded):
        raise ValueError(
            f"vantage id {vantage_id!r} must be 1 to {MAX_VANTAGE_ID} letters, digits or . _ : @ - "
            "and start with a letter or digit"
        )
    return encoded


@lru_cache(maxsize=1 << 16)
def _vantage_name(encoded: bytes) -> str:
    if not _VANTAGE_ID.fullmatch(encoded):
        raise SealError(RejectReason.BAD_VANTAGE_ID, "the vantage id has characters that are not allowed")
    return encoded.decode("ascii")


def parse_header(header: bytes) -> SealHeader:
    """Fields of a header, every one of them checked. Raises SealError and nothing else."""
    size = len(header)
    if size < FIXED_HEADER_BYTES:
        raise SealError(RejectReason.TRUNCATED, f"header of {size} bytes, at least {FIXED_HEADER_BYTES} needed")
    (
        prefix,
        scheme,
        purpose,
        lane,
        flags,
        id_bytes,
        reserved,
        body_bytes,
        epoch_id,
        counter,
        tick,
        time_ns,
        key_id,
    ) = _FIXED.unpack_from(header)
    if prefix != _PREFIX:
        if not prefix.startswith(MAGIC):
            raise SealError(RejectReason.BAD_MAGIC, "these bytes are no MVPS seal")
        raise SealError(RejectReason.UNKNOWN_VERSION, f"header version {prefix[-1]}; this side knows {VERSION}")
    if not 1 <= scheme <= 2:
        raise SealError(RejectReason.UNKNOWN_SCHEME, f"seal scheme {scheme}; this side knows 1 and 2")
    if not 1 <= purpose <= 3:
        raise SealError(RejectReason.WRONG_PURPOSE, f"purpose {purpose} is not defined")
    if not 1 <= lane <= 2:
        raise SealError(RejectReason.UNKNOWN_LANE, f"lane {lane} is not defined")
    if flags or reserved:
        raise SealError(RejectReason.BAD_FLAGS, "flags or reserved byte set; no bit of them is defined")
    if size != FIXED_HEADER_BYTES + id_bytes:
        raise SealError(RejectReason.BAD_LENGTH, f"header of {size} bytes announces a vantage id of {id_bytes}")
    if body_bytes > MAX_BODY:
        raise SealError(RejectReason.OVERSIZE, f"body of {body_bytes} bytes, at most {MAX_BODY} allowed")
    vantage_id = _vantage_name(header[FIXED_HEADER_BYTES:])
    return SealHeader(scheme, purpose, lane, body_bytes, epoch_id, counter, tick, time_ns, key_id, vantage_id)


class Sealer:
    """Seals one vantage's messages of one purpose in one epoch.

    counter: gives the next counter of a lane, e.g. :meth:`mvps.trust.counter.Counter.next`.
    clock: sealing time in ns since the Unix epoch.
    """

    def __init__(
        self,
        key: SealingKey,
        vantage_id: str,
        purpose: Purpose,
        counter: Callable[[Lane], int],
        *,
        epoch_id: int,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._id = check_vantage_id(vantage_id)
        self._key = key
        self._purpose = purpose
        self._counter = counter
        self._clock = clock
        self.vantage_id: Final = vantage_id
        self.epoch_id: Final = epoch_id

    def seal(self, body: bytes, tick: int, lane: Lane = Lane.LIVE) -> Sealed:
        """Seal ``body``. ValueError if it is larger than MAX_BODY; no counter is spent then."""
        if len(body) > MAX_BODY:
            raise ValueError(f"a body of {len(body)} bytes cannot be sealed: at most {MAX_BODY} are allowed")
        header = (
            _FIXED.pack(
                _PREFIX,
                self._key.scheme,
                self._purpose,
                lane,
                0,
                len(self._id),
                0,
                len(body),
                self.epoch_id,
                self._counter(lane),
                tick,
                self._clock(),
                self._key.key_id,
            )
            + self._id
        )
        return Sealed(header, body, self._key.tag(header, body))


class Verifier:
    """Verifies messages of one purpose. Keeps no keys: a revocation at the source counts at once."""

    def __init__(self, keys: KeySource, purpose: Purpose) -> None:
        self._keys = keys
        self._purpose = purpose

    def verify(self, sealed: Sealed) -> SealHeader:
        """Header of a message whose seal holds. Raises SealError and nothing else.

        Order: fixed header, limits, key, scheme, seal. The body is hashed and not looked at.
        """
        header, body, tag = sealed
        fields = parse_header(header)
        if fields.purpose != self._purpose:
            raise SealError(
                RejectReason.WRONG_PURPOSE,
                f"sealed for purpose {fields.purpose}, not {self._purpose.name.lower()}",
            )
        if len(body) != fields.body_bytes:
            raise SealError(RejectReason.BAD_LENGTH, f"body of {len(body)} bytes, the header says {fields.body_bytes}")
        key = self._keys.sealing_key(fields.vantage_id, fields.epoch_id, self._purpose)
        if key.scheme != fields.scheme:
            raise SealError(
                RejectReason.WRONG_SCHEME,
                f"{fields.vantage_id} seals by scheme {fields.scheme}, epoch {fields.epoch_id} has scheme "
                f"{int(key.scheme)}: give both sides the same manifest",
            )
        if len(tag) != key.scheme.tag_bytes:
            raise SealError(RejectReason.BAD_LENGTH, f"tag of {len(tag)} bytes, not {key.scheme.tag_bytes}")
        if key.key_id != fields.key_id:
            raise SealError(
                RejectReason.UNKNOWN_KEY,
                f"sealed for {fields.vantage_id} with key {fields.key_id.hex()}, epoch {fields.epoch_id} names "
                f"{key.key_id.hex()}: enrol the key that is in use, or go back to the one that is enrolled",
            )
        if not key.holds(header, body, tag):
            raise SealError(RejectReason.BAD_SEAL, f"the seal of {fields.vantage_id} does not hold")
        return fields


@dataclass(slots=True)
class StreamCounter:
    """Counters of messages that need no order beyond one stream, such as acknowledgements: 1, 2, 3, ..."""

    last: int = 0

    def __call__(self, lane: Lane) -> int:
        """The next counter; the lane does not matter."""
        self.last += 1
        return self.last
