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

Headers are read and HMAC tags made in native code (:mod:`mvps.trust.gate`). A verifier looks at nothing but
these fields before the seal holds, and never serialises anything again.
The scheme is the key's: the byte in the header has to agree with it and chooses nothing, so there is no
downgrade.
"""

from __future__ import annotations

import hashlib
import re
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple, Protocol

from mvps.trust import _gate
from mvps.trust._gate import FIXED_HEADER_BYTES, SealHeader
from mvps.trust.keys import PublicKey, SecretKey
from mvps.trust.limits import MAX_BODY, MAX_VANTAGE_ID, SIGNATURE_BYTES, TAG_BYTES
from mvps.trust.reasons import RejectReason

__all__ = [
    "FIXED_HEADER_BYTES",
    "MAX_HEADER_BYTES",
    "Ed25519Signer",
    "Ed25519Verifier",
    "HmacKey",
    "KeySource",
    "Lane",
    "Purpose",
    "Scheme",
    "SealError",
    "SealHeader",
    "Sealed",
    "Sealer",
    "SealingKey",
    "StreamCounter",
    "Verifier",
    "check_vantage_id",
    "parse_header",
]

MAGIC: Final = b"MVPS"
VERSION: Final = 1
_PREFIX: Final = MAGIC + bytes([VERSION])
_FIXED: Final = struct.Struct(">5sBBBHBBIQQQQ8s")
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


class HmacKey(_gate.HmacKey):
    """HMAC-SHA256 under one key, with both pads hashed once (RFC 2104 section 4)."""

    __slots__ = ()

    @property
    def scheme(self) -> Scheme:
        """HMAC_SHA256."""
        return Scheme.HMAC_SHA256


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


def parse_header(header: bytes) -> SealHeader:
    """Fields of a header, every one of them checked. Raises SealError and nothing else."""
    fields = _gate.parse_header(header)
    if isinstance(fields, _gate.Refusal):
        raise SealError(fields.reason, fields.detail)
    return fields


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
