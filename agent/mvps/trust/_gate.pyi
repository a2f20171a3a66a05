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

class SurfaceFigures(NamedTuple):
    """One surface of an accepted snapshot. phase: a number of mvps.v1.Phase, 0 without a decision; d2 is 0 then."""

    name: str
    phase: int
    d2: float
    s: float
    farthest: str

class Figures(NamedTuple):
    """What an accepted snapshot says, as far as a broker looks at every one. lead: "" when no vantage moved."""

    tick_period_ns: int
    lateness_ns: int
    lead: str
    surfaces: tuple[SurfaceFigures, ...]

class Run(NamedTuple):
    """The items of one (vantage, epoch, lane) in a batch, in their order.

    items: all of them; accepted: new and in order; refusals: reasons of those that are neither accepted nor repeats.
    highest: counter of them all; last: of the new ones, which are in ``entries`` as the store keeps them (empty when
    there are none; :mod:`mvps.broker.store` reads them). leaf, offset: place of its first leaf among those of
    :meth:`Batch.leaves`, in leaves and bytes. newest: index of the last accepted item or -1; first_tick and
    first_period_ns, tick and period_ns are those of the first and last accepted one, missed the ticks that lie between
    them and have no snapshot. Of the accepted ones d2 is the largest D^2 of a decision, or -1, and sealed_ns the latest
    sealing time, or 0.
    """

    vantage_id: str
    epoch_id: int
    lane: int
    items: int
    accepted: int
    refusals: list[RejectReason]
    highest: int
    last: int
    entries: bytes
    leaf: int
    offset: int
    newest: int
    first_tick: int
    first_period_ns: int
    tick: int
    period_ns: int
    missed: int
    d2: float
    sealed_ns: int

@final
class Batch:
    """One message of a stream as a gate judged it: its items up to the first whose seal does not hold.

    ``len()`` of it and indexes count those whose seal holds. A repeat is settled when the store has said what was
    recorded for its counter; ``acks`` before that answers it as accepted.
    """

    def __len__(self) -> int: ...
    @property
    def nonce(self) -> bytes:
        """As it stands in the envelope, whatever its length."""
    @property
    def count(self) -> int:
        """Items in the envelope."""
    @property
    def refused(self) -> Refusal | None:
        """Why the last item that was judged has no seal that holds; None when all have one."""
    @property
    def repeats(self) -> list[int]:
        """Items whose counter was seen before."""
    @property
    def accepted(self) -> list[int]:
        """Items that are new and in order."""
    @property
    def accepted_live(self) -> list[int]:
        """Those of them on the live lane."""
    @property
    def with_baselines(self) -> list[int]:
        """Accepted items that carry baselines."""
    @property
    def with_extensions(self) -> list[int]:
        """Accepted items that carry extensions."""
    def header(self, index: int, /) -> SealHeader: ...
    def sealed(self, index: int, /) -> tuple[bytes, bytes, bytes]:
        """(header, body, tag)."""
    def body(self, index: int, /) -> bytes: ...
    def reason(self, index: int, /) -> RejectReason | None:
        """Why it is refused; None also for a duplicate."""
    def duplicate(self, index: int, /) -> bool: ...
    def figures(self, index: int, /) -> Figures | None:
        """None unless it is accepted."""
    def observations(self, index: int, /) -> tuple[bytes, bytes, bytes]:
        """Every observation of an accepted item that says how far its vantage is from its own baseline.

        Of all its surfaces, in their order: vantage names, a line end between two of them (a name may come twice);
        a row of six little-endian float64 each: own distance in standard deviations, events, checks done, checks
        violated, unchanged_ticks, labels of the distribution (0 where none travelled); the distributions one after
        the other, little-endian float32. All empty unless the item is accepted.
        """
    def settle(self, index: int, reason: RejectReason | None, /) -> None:
        """A repeat is a duplicate (None) or refused. ValueError for what is no repeat."""
    def runs(self) -> list[Run]:
        """Its items by (vantage, epoch, lane), in the order of their first ones."""
    def leaves(self) -> tuple[bytes, bytes]:
        """Leaves of the accepted items, run by run and nothing between them, and their hashes."""
    def acks(self) -> list[tuple[str, int, bytes]]:
        """(vantage id, epoch id, serialised mvps.v1.Acks) for all items, one for each vantage and epoch."""

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
    times ``(key, from_ns, until_ns, retire_ns, tick_ns)``. It may not use the gate. What else it raises ends ``admit``
    without an answer, and ``rewind`` has to follow.
    """

    def __new__(
        cls,
        resolve: Callable[[str, int], Refusal | tuple[HmacKey | SealingKey, int, int, int, int]],
        live_past_ns: int,
        backfill_past_ns: int,
        future_ns: int,
        max_vantages: int,
    ) -> Gate: ...
    def admit(self, items: Sequence[tuple[bytes, bytes, bytes]], now_ns: int, /) -> list[Judged]:
        """Judge (header, body, tag) in their order, up to and including the first whose seal does not hold."""
    def judge(self, message: bytes, nonce: bytes, now_ns: int, /) -> Batch:
        """Judge the items of a serialised mvps.v1.Batch as :meth:`admit` does, with the interpreter's lock released.

        nonce: of the stream, or empty before its first batch. A message with another nonce, one of a wrong length, or
        more than MAX_BATCH_ITEMS items is not judged at all. ValueError for bytes that are no Batch.
        """
    def commit(self, vantage_id: str, epoch_id: int, lane: int, counter: int, /) -> None:
        """The store has ``counter``."""
    def take_backfill_from(self, sealed_ns: int, /) -> None:
        """Refuse backfill that was sealed before this as STALE, however long the window is. 0, as at first: none."""
    def rewind(self) -> None:
        """Forget every counter that was not committed: a commit failed and its snapshots will be sent again."""
    def forget_keys(self) -> None:
        """Ask for every key again: a manifest came that may have changed or revoked some. Counters stay."""

def parse_header(header: bytes, /) -> SealHeader | Refusal:
    """Fields of a header, every one of them checked."""

def check_body(body: bytes, vantage_id: str, tick: int, time_ns: int, past_ns: int, future_ns: int) -> Refusal | None:
    """None if ``body`` is a snapshot inside all limits and domains that agrees with the other arguments."""

def merkle_append(size: int, peaks: bytes, hashes: bytes, /) -> tuple[bytes, bytes]:
    """New nodes in storage order, and the new peaks, after appending leaf hashes (:class:`mvps.trust.merkle.Tree`)."""
