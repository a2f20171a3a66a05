# SPDX-License-Identifier: Apache-2.0
"""Seals: a fixed binary header, opaque body bytes, and a tag over both exactly as they travel.

Header, big-endian (ours; the sources give no layout)::

    0   4  magic "MVPS"          8   2  flags, 0             24  8  counter = generation << 32 | sequence
    4   1  version, 1           10   1  vantage id length    32  8  tick k of the lattice
    5   1  scheme               11   1  reserved, 0          40  8  sealing time, ns since the Unix epoch
    6   1  purpose              12   4  body length          48  8  key id
    7   1  lane                 16   8  epoch id             56  n  vantage id, n = 1..64 bytes

    tag = HMAC-SHA256(K, header || body)      K: mvps.trust.keys, by purpose, vantage and epoch

A verifier looks at nothing but these fields before the seal holds, and never serialises anything again.
One byte names the scheme and a key belongs to one scheme, so there is no downgrade. The trust profile
(Ed25519 over the same bytes) is a second scheme beside this one; only :class:`_HmacKey` and the two places
that use it differ.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import struct
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Final, NamedTuple

from mvps.trust.keys import STATIC_EPOCH, SecretKey
from mvps.trust.limits import MAX_BODY, MAX_VANTAGE_ID, MAX_VANTAGES, TAG_BYTES
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


class Purpose(IntEnum):
    """What the sealed bytes are for; each purpose has its own key."""

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
        second pass over the body. A signature scheme must hash here: its tags do not commit.
        """
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


class _HmacKey:
    """HMAC-SHA256 under one key, with both pads hashed once (RFC 2104 section 4)."""

    __slots__ = ("_inner", "_outer", "key_id")

    def __init__(self, key: bytes, key_id: bytes) -> None:
        block = key.ljust(64, b"\0")
        self._inner = hashlib.sha256(bytes(b ^ 0x36 for b in block))
        self._outer = hashlib.sha256(bytes(b ^ 0x5C for b in block))
        self.key_id = key_id

    def tag(self, header: bytes, body: bytes) -> bytes:
        inner = self._inner.copy()
        inner.update(header + body)
        outer = self._outer.copy()
        outer.update(inner.digest())
        return outer.digest()


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
    if scheme != 1:
        raise SealError(RejectReason.UNKNOWN_SCHEME, f"seal scheme {scheme}; this side knows 1, HMAC-SHA256")
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
    """Seals one vantage's messages of one purpose.

    counter: gives the next counter of a lane, e.g. :meth:`mvps.trust.counter.Counter.next`.
    clock: sealing time in ns since the Unix epoch.
    """

    def __init__(
        self,
        key: SecretKey,
        vantage_id: str,
        purpose: Purpose,
        counter: Callable[[Lane], int],
        *,
        epoch_id: int = STATIC_EPOCH,
        operator_id: str = "",
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._id = check_vantage_id(vantage_id)
        self._key = _HmacKey(key.derive(purpose.name.lower(), vantage_id, epoch_id, operator_id), key.key_id)
        self._purpose = purpose
        self._epoch_id = epoch_id
        self._counter = counter
        self._clock = clock
        self.vantage_id: Final = vantage_id

    def seal(self, body: bytes, tick: int, lane: Lane = Lane.LIVE) -> Sealed:
        """Seal ``body``. ValueError if it is larger than MAX_BODY; no counter is spent then."""
        if len(body) > MAX_BODY:
            raise ValueError(f"a body of {len(body)} bytes cannot be sealed: at most {MAX_BODY} are allowed")
        header = (
            _FIXED.pack(
                _PREFIX,
                Scheme.HMAC_SHA256,
                self._purpose,
                lane,
                0,
                len(self._id),
                0,
                len(body),
                self._epoch_id,
                self._counter(lane),
                tick,
                self._clock(),
                self._key.key_id,
            )
            + self._id
        )
        return Sealed(header, body, self._key.tag(header, body))


class Keyring:
    """Which key vouches for which vantage.

    keys: vantage id -> key. The id ``"*"`` stands for every vantage that has no key of its own.
    """

    ANY: Final = "*"

    def __init__(
        self, keys: Mapping[str, SecretKey], *, operator_id: str = "", epochs: Iterable[int] = (STATIC_EPOCH,)
    ) -> None:
        if not keys:
            raise ValueError("no key is configured, so nobody could be admitted: add one under [keys]")
        for vantage_id in keys:
            if vantage_id != self.ANY:
                check_vantage_id(vantage_id)
        self._keys = dict(keys)
        self._operator_id = operator_id
        self._epochs = frozenset(epochs)

    def key_of(self, vantage_id: str, epoch_id: int) -> SecretKey:
        """The configured key; SealError if the vantage or the epoch is not admitted."""
        key = self._keys.get(vantage_id) or self._keys.get(self.ANY)
        if key is None:
            raise SealError(
                RejectReason.UNKNOWN_VANTAGE, f"no key is configured at the broker for vantage {vantage_id!r}"
            )
        if epoch_id not in self._epochs:
            raise SealError(RejectReason.UNKNOWN_EPOCH, f"epoch {epoch_id} is not admitted")
        return key

    def sealing_key(self, vantage_id: str, epoch_id: int, purpose: Purpose) -> _HmacKey:
        """Derived key of one vantage, epoch and purpose; SealError as for :meth:`key_of`."""
        key = self.key_of(vantage_id, epoch_id)
        derived = key.derive(purpose.name.lower(), vantage_id, epoch_id, self._operator_id)
        return _HmacKey(derived, key.key_id)

    def sealer(self, vantage_id: str, epoch_id: int, purpose: Purpose, counter: Callable[[Lane], int]) -> Sealer:
        """A sealer towards one vantage: how a broker answers it."""
        return Sealer(
            self.key_of(vantage_id, epoch_id),
            vantage_id,
            purpose,
            counter,
            epoch_id=epoch_id,
            operator_id=self._operator_id,
        )


class Verifier:
    """Verifies messages of one purpose."""

    def __init__(self, keyring: Keyring, purpose: Purpose) -> None:
        self._keyring = keyring
        self._purpose = purpose
        self._known: dict[tuple[str, int], _HmacKey] = {}

    def verify(self, sealed: Sealed) -> SealHeader:
        """Header of a message whose seal holds. Raises SealError and nothing else.

        Order: fixed header, limits, key, seal. The body is hashed and not looked at.
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
        if len(tag) != TAG_BYTES:
            raise SealError(RejectReason.BAD_LENGTH, f"tag of {len(tag)} bytes, not {TAG_BYTES}")
        identity = (fields.vantage_id, fields.epoch_id)
        known = self._known.get(identity)
        key = known or self._keyring.sealing_key(*identity, self._purpose)
        if key.key_id != fields.key_id:
            raise SealError(
                RejectReason.UNKNOWN_KEY,
                f"{fields.vantage_id} seals with key {fields.key_id.hex()}, configured here is "
                f"{key.key_id.hex()}: install the same key on both sides",
            )
        if not hmac.compare_digest(key.tag(header, body), tag):
            raise SealError(RejectReason.BAD_SEAL, f"the seal of {fields.vantage_id} does not hold")
        if known is None:
            # Kept only now: names that nobody can seal for must not fill the memory.
            if len(self._known) >= MAX_VANTAGES:
                raise SealError(RejectReason.TOO_MANY_VANTAGES, f"more than {MAX_VANTAGES} vantages")
            self._known[identity] = key
        return fields


@dataclass(slots=True)
class StreamCounter:
    """Counters of messages that need no order beyond one stream, such as acknowledgements: 1, 2, 3, ..."""

    last: int = 0

    def __call__(self, lane: Lane) -> int:
        """The next counter; the lane does not matter."""
        self.last += 1
        return self.last
