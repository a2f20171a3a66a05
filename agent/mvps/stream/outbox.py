# SPDX-License-Identifier: Apache-2.0
"""What is sent next, and where everything waits: memory, disk, or on its way.

Two lanes (docs/protocol.md). *Live* snapshots leave in the order they were sealed, at once. What is older than
``LIVE_AGE_S`` when there is a connection again, or comes from an earlier run, is *late*: it leaves at a set pace beside
them and never takes the room they need.

A late snapshot that was never on the wire is sealed again for the backfill lane. One that may have been is sent as it
is, for only the answer tells: a duplicate is settled; ``replayed`` (its counter is below the highest, and the broker
does not know it), ``stale`` and ``epoch_retired`` say that the broker does not have it, so that it is sealed again.
That is sound as long as a broker takes no backfill that was sealed before something it has accepted and forgotten.

A stream that ends with UNAUTHENTICATED blames the first item that has no answer, and says so under no seal: whoever
sits between could have said it. So nothing is dropped for it. An epoch that is not the present one and was blamed
``BLAMES`` times is set aside, and one snapshot of it tried again after a minute, two, ... an hour. What ends a
snapshot's life is a sealed answer, the age or size of the spool, or the operator's own manifests: its key is revoked,
or its epoch is forgotten.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from mvps.stream.ledger import Item, Key, Ledger, State, make_item
from mvps.stream.pacing import Pacer
from mvps.stream.spool import Fate, Slot, Spool, Stored
from mvps.trust.reasons import RejectReason
from mvps.trust.seal import Lane, Sealed, SealError

# A live snapshot that waited longer is no news to anybody; well inside a broker's live window of 300 s.
LIVE_AGE_S: Final = 30.0
LIVE_IN_MEMORY: Final = 1024
# Late snapshots in one batch, and sent without an answer: what a live one may find in its way.
LATE_PER_BATCH: Final = 64
LATE_IN_FLIGHT: Final = 256
_LATE_IN_MEMORY: Final = 128
_SPOOL_AT_ONCE: Final = 256
BLAMES: Final = 3
FIRST_RETRY_S: Final = 60.0
LONGEST_RETRY_S: Final = 3600.0
# Sealed again so often and still ``replayed``: somebody else uses this name.
_MAX_RENEWALS: Final = 3
# The broker looked at the counter before it found these, so it does not have the snapshot.
_NOT_THERE: Final = frozenset({RejectReason.STALE, RejectReason.EPOCH_RETIRED})


class Resealer(Protocol):
    """Seals again what was sealed before, each method with SealError when that cannot be."""

    def backfill(self, sealed: Sealed) -> Sealed:
        """The same snapshot for the backfill lane, with a fresh counter."""

    def again(self, sealed: Sealed, epoch_id: int, counter: int) -> Sealed:
        """The very copy that :meth:`backfill` made with this epoch and counter."""

    def check(self, sealed: Sealed) -> None:
        """Nothing, if the seal holds."""

    def hopeless(self, error: SealError) -> str:
        """The cause under which to drop a snapshot, if what ``error`` says is for good; "" if it may pass."""


class Settled(NamedTuple):
    """What a verified answer did. ``forged``: it names a snapshot, and not the one that was sent."""

    forged: bool = False
    renewed: bool = False


@dataclass(slots=True)
class _Quarantine:
    retry_at: float
    pause_s: float
    scout: Key | None = None


class Outbox:
    """The stream's thread's view of everything that is not settled. ``ledger`` may be used by any thread.

    spool: owned from here on; None keeps everything in memory.
    resealer: None where nothing can be sealed again: then what is too late is rejected.
    late_rate: late snapshots a second.
    """

    def __init__(self, ledger: Ledger, spool: Spool | None, resealer: Resealer | None, late_rate: float) -> None:
        self.ledger = ledger
        self._spool = spool
        self._resealer = resealer
        self._pacer = Pacer(late_rate, time.monotonic())
        self._blames: Counter[int] = Counter()
        self._quarantine: dict[int, _Quarantine] = {}
        self._live_epoch = -1
        # The spool does not take notes at the moment, so that nothing of it may be sent.
        self._blocked_until = 0.0
        self._unpark_at = math.inf
        self.streaming = False
        self.backfilled = 0

    # ---- in

    def recover(self) -> None:
        """Take over what an earlier run left on disk."""
        for _ in self.recovering():
            pass

    def recovering(self) -> Iterator[None]:
        """:meth:`recover` piece by piece, so that neither ticks nor fresh snapshots wait for a large spool."""
        if self._spool is None:
            return
        for found in self._spool.recovering():
            self.ledger.recovered(found)
            self._reconcile()
            yield

    def absorb(self) -> None:
        """Put on disk what is in memory only, as far as the disk takes it."""
        if self._spool is None:
            return
        for item in self.ledger.unspooled(_SPOOL_AT_ONCE):
            # What is about to be sent anyway is noted as sent at once, which saves a write.
            under_way = item.as_is or item.record.state is State.SENT
            slot = self._spool.append(item.sealed, sent=under_way or (self.streaming and not item.late))
            if slot is None:
                break
            if not self.ledger.spooled(item.key, slot):
                self._spool.settle(slot)
        self._reconcile()

    # ---- out

    def take(self) -> list[Item]:
        """The next batch; empty when nothing may leave now."""
        self._age()
        now = time.monotonic()
        late = self._ready(min(self._pacer.allow(now), LATE_PER_BATCH, LATE_IN_FLIGHT - self.ledger.late_in_flight()))
        batch: list[Item] = []
        for item in self.ledger.take(late):
            if self._note(item):
                batch.append(item)
            else:
                self.ledger.put_back(item.key)
            if item.late:
                self._pacer.spend(1)
            else:
                self._live_epoch = item.epoch_id
        return batch

    def pending(self) -> bool:
        """Whether there is anything to open a stream for."""
        self._age()
        return self.ledger.waiting() or self._late_possible()

    def wait_s(self) -> float | None:
        """Seconds after which :meth:`take` is worth another try; None when only an event can change that."""
        now = time.monotonic()
        waits: list[float] = []
        if self._late_possible() and self.ledger.late_in_flight() < LATE_IN_FLIGHT:
            waits.append(self._pacer.wait_s(now))
        if self._blocked_until > now:
            waits.append(self._blocked_until - now)
        return max(min(waits), 0.01) if waits else None

    def ended(self) -> None:
        """The stream is over."""
        self.streaming = False
        for one in self._quarantine.values():
            one.scout = None
        self.ledger.unsend(_live_since())

    def blamed(self) -> bool:
        """The stream ended with UNAUTHENTICATED; call before :meth:`ended`. True if that concerns an old epoch only."""
        first = self.ledger.first_in_flight()
        if first is None or not first.late or first.epoch_id == self._live_epoch or self._live_epoch < 0:
            return False
        epoch, now = first.epoch_id, time.monotonic()
        if (known := self._quarantine.get(epoch)) is not None:
            known.pause_s = min(2 * known.pause_s, LONGEST_RETRY_S)
            known.retry_at = now + known.pause_s
            return True
        self._blames[epoch] += 1
        if self._blames[epoch] >= BLAMES:
            self._quarantine[epoch] = _Quarantine(now + FIRST_RETRY_S, FIRST_RETRY_S)
        return True

    # ---- answers

    def answered(self, lane: int, counter: int, digest: bytes, reason: RejectReason | None) -> Settled:
        """A verified answer: accepted or known already (reason None), or rejected."""
        item = self.ledger.unsettled(lane, counter)
        if item is None:
            return Settled()  # dropped meanwhile
        if item.sealed.digest != digest:
            return Settled(forged=True)
        self._trust(item.epoch_id)
        if reason is not None and self._try_again(item, reason):
            self.ledger.refused(item.key)
            return Settled(renewed=True)
        self._settle(self.ledger.settle(lane, counter, reason))
        return Settled()

    def _try_again(self, item: Item, reason: RejectReason) -> bool:
        if self._resealer is None:
            return False
        if reason in _NOT_THERE:
            return item.record.lane == Lane.LIVE
        # Of a snapshot that is sent for the first time, and in order, it means that somebody else uses this name.
        return reason is RejectReason.REPLAYED and item.as_is and item.renewals < _MAX_RENEWALS

    def _trust(self, epoch: int) -> None:
        """The broker answers for this epoch."""
        self._blames.pop(epoch, None)
        if self._quarantine.pop(epoch, None) is not None:
            self._unpark()

    # ---- upkeep

    def keep(self) -> bool:
        """Now and then: try the disk again, give up what is too old. True if what was set aside waits again."""
        now = time.monotonic()
        if self._spool is not None:
            self.absorb()
            self._spool.expire()
            self._reconcile()
        due = any(one.scout is None and one.retry_at <= now for one in self._quarantine.values())
        if due or self._unpark_at <= now:
            self._unpark()
            return True
        return False

    def close(self) -> None:
        """Leave on disk what is there, and count what is not as dropped, cause ``stopped``."""
        if self._spool is not None:
            while self.ledger.unspooled(1):
                before = self.ledger.totals().queued
                self.absorb()
                if self.ledger.totals().queued >= before:
                    break
        self.ledger.drop_all("stopped")
        if self._spool is not None:
            self._spool.close()

    def unsynced(self) -> list[int]:
        """See :meth:`mvps.stream.spool.Spool.unsynced`."""
        return self._spool.unsynced() if self._spool is not None else []

    # ---- the late lane

    def _age(self) -> None:
        """Live snapshots that waited too long leave the live lane; those on disk leave the memory."""
        for item in self.ledger.aged(_live_since(), LIVE_IN_MEMORY):
            self._set_back(item)

    def _set_back(self, item: Item) -> None:
        if item.slot is not None and self._spool is not None:
            self.ledger.evict(item.key)
            self._spool.release(item.slot)
        elif item.record.sealed_ns < _live_since():
            self.ledger.make_late(item.key)

    def _late_possible(self) -> bool:
        if self.ledger.late_waiting():
            return True
        return self._spool is not None and time.monotonic() >= self._blocked_until and self._spool.has_waiting()

    def _ready(self, wanted: int) -> int:
        """Make the first ``wanted`` late items ready to leave; how many are."""
        if wanted <= 0:
            return 0
        if self._spool is not None and self.ledger.late_waiting() < wanted and time.monotonic() >= self._blocked_until:
            for slot in self._spool.hold(min(_LATE_IN_MEMORY, 2 * wanted)):
                self._load(slot)
            self._reconcile()
        return sum(self._make_ready(item) for item in self.ledger.late(wanted))

    def _load(self, slot: Slot) -> None:
        """A record of the disk into the late lane, checked as if a stranger had put it there."""
        assert self._spool is not None
        stored = self._spool.load(slot)
        if stored is None:
            return
        try:
            item = self._restore(stored, slot)
        except SealError as error:
            cause = "damaged" if error.reason is RejectReason.BAD_SEAL else self._hopeless(error)
            if cause:
                self._spool.give_up(slot, cause)
            else:
                self._spool.release(slot, park=True)
                self._look_again()
            return
        if self._spool.too_old(item.record.sealed_ns):
            self._spool.give_up(slot, "spool_age")
        else:
            self.ledger.load(item)

    def _restore(self, stored: Stored, slot: Slot) -> Item:
        sealed = stored.sealed
        if self._resealer is not None:
            if stored.copy is None:
                self._resealer.check(sealed)
            else:
                sealed = self._resealer.again(sealed, *stored.copy)
        item = make_item(sealed, slot)
        item.as_is = stored.fate is Fate.SENT or item.record.lane == Lane.BACKFILL
        item.renewals = int(stored.copy is not None)
        return item

    def _make_ready(self, item: Item) -> bool:
        """Seal a late item again where that is due. False if it does not leave now: it was set aside or dropped."""
        if not item.as_is and self._resealer is None:
            item.as_is = True
        elif not item.as_is and self._resealer is not None:
            try:
                sealed = self._resealer.backfill(item.sealed)
            except SealError as error:
                self._cannot(item, self._hopeless(error))
                return False
            renewed = make_item(sealed)
            if not self._note_copy(item, renewed):
                return False
            if not self.ledger.renew(item.key, sealed):
                return False
            self.backfilled += 1
            found = self.ledger.unsettled(*renewed.key)
            if found is None:
                return False
            item = found
            item.as_is = True
        held = self._quarantine.get(item.epoch_id)
        if held is not None and held.scout != item.key:
            if held.scout is not None or time.monotonic() < held.retry_at:
                self._set_aside(item)
                return False
            held.scout = item.key
        return True

    def _cannot(self, item: Item, cause: str) -> None:
        if cause:
            self._settle(self.ledger.drop(item.key, cause))
        else:
            self._set_aside(item)
            self._look_again()

    def _hopeless(self, error: SealError) -> str:
        return self._resealer.hopeless(error) if self._resealer is not None else ""

    def _set_aside(self, item: Item) -> None:
        if item.slot is not None and self._spool is not None:
            self.ledger.evict(item.key)
            self._spool.release(item.slot, park=True)
        else:
            self.ledger.park(item.key)

    def _look_again(self) -> None:
        """Something was set aside for want of a key or manifest, which may come."""
        self._unpark_at = min(self._unpark_at, time.monotonic() + FIRST_RETRY_S)

    def _unpark(self) -> None:
        self._unpark_at = math.inf
        self.ledger.unpark()
        if self._spool is not None:
            self._spool.unpark()

    def _block(self) -> None:
        """The disk takes no notes: what lies on it waits, or a crash would have it stored twice."""
        self._blocked_until = time.monotonic() + 1.0
        for item in self.ledger.late(_LATE_IN_MEMORY + LATE_IN_FLIGHT):
            if item.slot is not None and self._spool is not None:
                self.ledger.evict(item.key)
                self._spool.release(item.slot)

    # ---- the disk's side of it

    def _note(self, item: Item) -> bool:
        """Tell the disk that an item is about to be sent. False if it cannot be told."""
        if self._spool is None or item.slot is None or self._spool.mark_sent(item.slot):
            return True
        self._block()
        return False

    def _note_copy(self, item: Item, renewed: Item) -> bool:
        """Tell the disk under which seal an item is about to be sent. False if it cannot be told."""
        if self._spool is None or item.slot is None:
            return True
        if self._spool.copy(item.slot, renewed.epoch_id, renewed.record.counter):
            return True
        self._block()
        return False

    def _settle(self, item: Item | None) -> None:
        if self._spool is not None and item is not None and item.slot is not None:
            self._spool.settle(item.slot)

    def _reconcile(self) -> None:
        """What the disk lost meanwhile into the accounts."""
        assert self._spool is not None
        dropped, orphans = self._spool.take_losses()
        if orphans:
            self.ledger.displaced(orphans)
        if dropped:
            self.ledger.dropped_on_disk(dropped)


def _live_since() -> int:
    """Sealing time, in ns, from which on a snapshot is live."""
    return time.time_ns() - int(LIVE_AGE_S * 1e9)
