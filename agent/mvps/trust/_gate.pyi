# SPDX-License-Identifier: Apache-2.0
"""The native half of :mod:`mvps.trust.gate`, built from native/ by packaging/build_hook.py."""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol, final

from mvps.trust.reasons import RejectReason

SCHEMA_VERSION: Final[int]
"""Version of snapshot.proto that :func:`check_body` knows."""
FIXED_HEADER_BYTES: Final[int]

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

class Refusal(NamedTuple):
    """Why something is refused; ``reason`` is what is counted."""

    reason: RejectReason
    detail: str

class Judged(NamedTuple):
    """What a gate says about one sealed snapshot.

    header: None unless the seal holds. fresh: the counter is new and spent by this, whatever the body is worth.
    refusal: None where there is none: a fresh snapshot is accepted, one that is not fresh was seen before, and what
    was recorded for its counter decides (:func:`mvps.trust.replay.judge_repeat`).
    """

    header: SealHeader | None
    fresh: bool
    refusal: Refusal | None

class SealingKey(Protocol):
    """What a gate asks of a key that is no HmacKey."""

    @property
    def scheme(self) -> int: ...
    @property
    def key_id(self) -> bytes: ...
    def holds(self, header: bytes, body: bytes, tag: bytes) -> bool: ...

class HmacKey:
    """HMAC-SHA256 under one key, with both pads hashed once (RFC 2104 section 4).

    key_id: 8 bytes. The key appears in no repr, cannot be pickled and is wiped when it is freed. A gate takes a
    subclass for an HmacKey and does not call what it overrides.
    """

    def __new__(cls, key: bytes, key_id: bytes) -> HmacKey: ...
    @property
    def scheme(self) -> int:
        """1."""
    @property
    def key_id(self) -> bytes:
        """8 bytes: the key id of the party that seals."""
    def tag(self, header: bytes, body: bytes, /) -> bytes:
        """The tag of a message."""
    def holds(self, header: bytes, body: bytes, tag: bytes, /) -> bool:
        """Whether ``tag`` is the message's, in constant time."""

@final
class Gate:
    """Who was heard, under which key and with which counters. For one thread; :mod:`mvps.trust.gate` has the rules.

    resolve: asked for every (vantage id, epoch id) whose key is not held; the answer is a Refusal or the key with the
    times ``(key, from_ns, until_ns, retire_ns)``. It may not use the gate. What else it raises ends ``admit`` without
    an answer, and ``rewind`` has to follow.
    """

    def __new__(
        cls,
        resolve: Callable[[str, int], Refusal | tuple[HmacKey | SealingKey, int, int, int]],
        live_past_ns: int,
        backfill_past_ns: int,
        future_ns: int,
        max_vantages: int,
    ) -> Gate: ...
    def admit(self, items: Sequence[tuple[bytes, bytes, bytes]], now_ns: int, /) -> list[Judged]:
        """Judge (header, body, tag) in their order, up to and including the first whose seal does not hold."""
    def commit(self, vantage_id: str, epoch_id: int, lane: int, counter: int, /) -> None:
        """The store has ``counter``."""
    def rewind(self) -> None:
        """Forget every counter that was not committed: a commit failed and its snapshots will be sent again."""
    def forget_keys(self) -> None:
        """Ask for every key again: a manifest came that may have changed or revoked some. Counters stay."""

def parse_header(header: bytes, /) -> SealHeader | Refusal:
    """Fields of a header, every one of them checked."""

def check_body(body: bytes, vantage_id: str, tick: int, time_ns: int, past_ns: int, future_ns: int) -> Refusal | None:
    """None if ``body`` is a snapshot inside all limits and domains that agrees with the other arguments."""
