# SPDX-License-Identifier: Apache-2.0
"""Every sealed snapshot's fate: the queues in memory and the counts that go with them.

At every moment::

    produced + recovered = acknowledged + rejected + spooled + queued + dropped

``spooled`` are unsettled snapshots that lie on disk, sent or not, in memory or not; ``queued`` those that are in memory
only. The tick thread puts snapshots in, the stream's thread takes them out; a lock is held for a few dictionary
operations at a time and never while anything waits. The ledger itself touches no disk: whoever does
(:mod:`mvps.stream.outbox`) tells it where a snapshot is.

Two lanes wait here. *Live* ones leave in the order they were sealed, as soon as there is room. *Late* ones are what the
outbox puts there, at the pace it asks for.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import TypeAlias

from mvps.stream.spool import Slot
from mvps.trust.limits import MAX_BATCH_BYTES, MAX_BATCH_ITEMS, MAX_IN_FLIGHT
from mvps.trust.reasons import RejectReason
from mvps.trust.seal import Sealed, parse_header

Key: TypeAlias = tuple[int, int]  # lane, counter
_FRAMING = 32  # bytes of the envelope around one item


class State(IntEnum):
    """Where a snapshot is; the numbers of ``SnapshotState`` in proto/mvps/v1/local.proto."""

    SEALED = 1
    SENT = 2
    ACKNOWLEDGED = 3
    REJECTED = 4
    DROPPED = 5
    SPOOLED = 6


@dataclass(frozen=True, slots=True)
class Record:
    """One snapshot as it is shown: times in ns since the Unix epoch, ``settled_ns`` 0 until it is settled."""

    lane: int
    counter: int
    tick: int
    size: int
    sealed_ns: int
    state: State
    reason: RejectReason | None = None
    cause: str = ""
    settled_ns: int = 0


@dataclass(slots=True)
class Item:
    """An unsettled snapshot in memory.

    slot: where it is on disk; None when it is in memory only.
    as_is: it may have been on the wire under this very seal, or is about to be, so that only an answer to it says
        whether the broker has it. Until then it may not be sealed again. A late item leaves only with this set.
    late: it belongs to the paced lane.
    renewals: how often it was sealed again.
    homeless: it lost its place on disk to newer ones while it was on its way, and gets no other.
    """

    sealed: Sealed
    record: Record
    epoch_id: int
    slot: Slot | None = None
    as_is: bool = False
    late: bool = False
    renewals: int = 0
    homeless: bool = False

    @property
    def key(self) -> Key:
        """Lane and counter: its name on the wire."""
        return self.record.lane, self.record.counter

    @property
    def resting(self) -> State:
        """Its state while it is not on its way."""
        return State.SEALED if self.slot is None else State.SPOOLED


def make_item(sealed: Sealed, slot: Slot | None = None) -> Item:
    """An item of a snapshot that was just sealed, or read from the disk."""
    header = parse_header(sealed.header)
    state = State.SEALED if slot is None else State.SPOOLED
    record = Record(header.lane, header.counter, header.tick, sealed.size, header.time_ns, state)
    return Item(sealed, record, header.epoch_id, slot)


@dataclass(frozen=True, slots=True)
class Totals:
    """Counts since start; ``queued`` and ``spooled`` include what was sent and is not answered."""

    produced: int
    recovered: int
    acknowledged: int
    rejected: int
    spooled: int
    queued: int
    dropped: int
    rejected_by_reason: dict[str, int]
    dropped_by_cause: dict[str, int]

    @property
    def balanced(self) -> bool:
        """Whether everything is accounted for."""
        settled = self.acknowledged + self.rejected + self.dropped
        return self.produced + self.recovered == settled + self.spooled + self.queued


class Ledger:
    """Unsettled snapshots that are in memory, and records of the recent ones.

    limit: unsettled snapshots kept in memory only; when it is exceeded the oldest of them is dropped.
    history: settled records kept for those who look.
    """

    def __init__(self, limit: int, history: int = 1024) -> None:
        if limit < 1:
            raise ValueError("the queue must hold at least one snapshot")
        self._limit = limit
        self._history = history
        self._lock = threading.Lock()
        self._unsettled: OrderedDict[Key, Item] = OrderedDict()
        # Keys of _unsettled, each in at most one of these.
        self._live: OrderedDict[Key, None] = OrderedDict()
        self._late: OrderedDict[Key, None] = OrderedDict()
        self._parked: OrderedDict[Key, None] = OrderedDict()
        self._flying: OrderedDict[Key, None] = OrderedDict()
        # Keys of _unsettled that have no place on disk, oldest first.
        self._memory_only: OrderedDict[Key, None] = OrderedDict()
        self._settled: OrderedDict[Key, Record] = OrderedDict()
        self._spooled = 0
        self._produced = 0
        self._recovered = 0
        self._acknowledged = 0
        self._rejected: Counter[RejectReason] = Counter()
        self._dropped: Counter[str] = Counter()
        # Rises with every change of any record.
        self.version = 0

    # ---- the tick thread

    def add(self, sealed: Sealed) -> None:
        """A snapshot was sealed. Drops the oldest one in memory, cause ``queue_full``, if there is no room."""
        item = make_item(sealed)
        with self._lock:
            self._take_in(item, self._live)
            self._produced += 1
            if len(self._memory_only) > self._limit:
                self._drop(next(iter(self._memory_only)), "queue_full")

    # ---- where it is

    def unspooled(self, limit: int) -> list[Item]:
        """The oldest items that are in memory only and may go to disk."""
        found: list[Item] = []
        with self._lock:
            for key in self._memory_only:
                item = self._unsettled[key]
                if not item.homeless:
                    found.append(item)
                    if len(found) == limit:
                        break
        return found

    def spooled(self, key: Key, slot: Slot) -> bool:
        """An item lies on disk now. False if it was settled or dropped meanwhile."""
        with self._lock:
            item = self._unsettled.get(key)
            if item is None:
                return False
            item.slot = slot
            self._memory_only.pop(key, None)
            self._spooled += 1
            if item.record.state is State.SEALED:
                item.record = replace(item.record, state=State.SPOOLED)
                self.version += 1
            return True

    def displaced(self, slots: Mapping[Slot, str]) -> None:
        """Their places on disk are gone, each for a cause: what waits is dropped, what is on its way stays in memory.

        Written to disk again, the oldest would displace newer ones.
        """
        with self._lock:
            for key, item in list(self._unsettled.items()):
                if item.slot is None or item.slot not in slots:
                    continue
                if key not in self._flying:
                    self._drop(key, slots[item.slot])
                    continue
                item.slot, item.homeless = None, True
                self._memory_only[key] = None
                self._spooled -= 1

    def recovered(self, count: int) -> None:
        """An earlier process left ``count`` unsettled snapshots on disk."""
        with self._lock:
            self._recovered += count
            self._spooled += count

    def dropped_on_disk(self, causes: Counter[str]) -> None:
        """Snapshots that were on disk only are given up."""
        with self._lock:
            self._spooled -= causes.total()
            self._dropped.update(causes)

    def load(self, item: Item) -> None:
        """An item that was on disk only is in memory too, and late."""
        with self._lock:
            item.late = True
            self._unsettled[item.key] = item
            self._late[item.key] = None
            self.version += 1

    def evict(self, key: Key) -> None:
        """An item stays on disk only."""
        with self._lock:
            item = self._unsettled.get(key)
            if item is not None and item.slot is not None:
                self._remove(key)
                self._spooled += 1
                self.version += 1

    # ---- what to send

    def aged(self, before_ns: int, most: int) -> list[Item]:
        """Live items that wait and were sealed before that time, and the oldest ones beyond ``most``."""
        with self._lock:
            excess = len(self._live) - most
            found: list[Item] = []
            for number, key in enumerate(self._live):
                item = self._unsettled[key]
                if number >= excess and item.record.sealed_ns >= before_ns:
                    break
                found.append(item)
            return found

    def make_late(self, key: Key) -> None:
        """A live item that waits goes to the paced lane."""
        with self._lock:
            item = self._unsettled.get(key)
            if item is not None and key in self._live:
                del self._live[key]
                item.late = True
                self._late[key] = None

    def late(self, limit: int) -> list[Item]:
        """The first items of the paced lane."""
        with self._lock:
            return [self._unsettled[key] for key, _ in zip(self._late, range(limit), strict=False)]

    def renew(self, key: Key, sealed: Sealed) -> bool:
        """``sealed`` takes the place of a late item that waits: the same snapshot under a new seal. Counts nothing."""
        fresh = make_item(sealed)
        with self._lock:
            item = self._unsettled.get(key)
            if item is None or key not in self._late:
                return False
            fresh.slot, fresh.late, fresh.renewals = item.slot, True, item.renewals + 1
            fresh.record = replace(fresh.record, state=fresh.resting)
            for queue in (self._late, self._memory_only):
                if key in queue:
                    _rename(queue, key, fresh.key)
            del self._unsettled[key]
            self._unsettled[fresh.key] = fresh
            self.version += 1
            return True

    def park(self, key: Key) -> None:
        """A late item that waits is set aside until :meth:`unpark`."""
        with self._lock:
            if key in self._late:
                del self._late[key]
                self._parked[key] = None

    def unpark(self) -> None:
        """What was set aside waits again."""
        with self._lock:
            self._late.update(self._parked)
            self._parked.clear()

    def take(self, late: int = 0) -> list[Item]:
        """The next batch, marked as sent: live ones first, then up to ``late`` late ones; empty when there is none."""
        batch: list[Item] = []
        size = 0
        with self._lock:
            room = min(MAX_BATCH_ITEMS, MAX_IN_FLIGHT - len(self._flying))
            for queue, most in ((self._live, room), (self._late, late)):
                while queue and most > 0 and len(batch) < room:
                    key = next(iter(queue))
                    item = self._unsettled[key]
                    if item.late and not item.as_is:
                        break  # came to the front while the others were made ready
                    size += item.sealed.size + _FRAMING
                    if batch and size > MAX_BATCH_BYTES:
                        return batch
                    del queue[key]
                    self._flying[key] = None
                    item.record = replace(item.record, state=State.SENT)
                    batch.append(item)
                    most -= 1
                    self.version += 1
        return batch

    def put_back(self, key: Key) -> None:
        """An item of :meth:`take` was not sent after all: it is late."""
        with self._lock:
            item = self._unsettled.get(key)
            if item is not None and key in self._flying:
                del self._flying[key]
                item.late = True
                item.record = replace(item.record, state=item.resting)
                self._late[key] = None

    def unsend(self, before_ns: int = 0) -> None:
        """The stream ended: what was sent and not answered waits again, in its old order and as it is.

        A live one that was sealed before ``before_ns`` is late.
        """
        with self._lock:
            live: OrderedDict[Key, None] = OrderedDict()
            late: OrderedDict[Key, None] = OrderedDict()
            for key in self._flying:
                item = self._unsettled[key]
                item.as_is = True
                item.late = item.late or item.record.sealed_ns < before_ns
                item.record = replace(item.record, state=item.resting)
                (late if item.late else live)[key] = None
            self._flying.clear()
            self._live = OrderedDict([*live.items(), *self._live.items()])
            self._late = OrderedDict([*late.items(), *self._late.items()])
            self.version += 1

    def late_in_flight(self) -> int:
        """Late items sent and not answered."""
        with self._lock:
            return sum(self._unsettled[key].late for key in self._flying)

    def first_in_flight(self) -> Item | None:
        """The item that was sent first of those that are not answered."""
        with self._lock:
            return next((self._unsettled[key] for key in self._flying), None)

    # ---- answers

    def unsettled(self, lane: int, counter: int) -> Item | None:
        """An unsettled snapshot in memory; None if there is none of that name."""
        with self._lock:
            return self._unsettled.get((lane, counter))

    def refused(self, key: Key) -> None:
        """It was answered, and is known not to be at the broker: it may be sealed again, and is late."""
        with self._lock:
            item = self._unsettled.get(key)
            if item is not None:
                for queue in (self._flying, self._live, self._late):
                    queue.pop(key, None)
                item.as_is, item.late = False, True
                item.record = replace(item.record, state=item.resting)
                self._late[key] = None

    def settle(self, lane: int, counter: int, reason: RejectReason | None) -> Item | None:
        """A verified answer: acknowledged, or rejected for ``reason``. The item it settles; None if it is unknown."""
        with self._lock:
            item = self._remove((lane, counter))
            if item is None:
                return None
            if reason is None:
                self._acknowledged += 1
                state = State.ACKNOWLEDGED
            else:
                self._rejected[reason] += 1
                state = State.REJECTED
            self._keep(replace(item.record, state=state, reason=reason, settled_ns=time.time_ns()))
            return item

    def drop(self, key: Key, cause: str) -> Item | None:
        """Give one up."""
        with self._lock:
            return self._drop(key, cause)

    def drop_all(self, cause: str) -> None:
        """Give up what is in memory only, for example because the agent stops; the rest stays on disk."""
        with self._lock:
            for key, item in list(self._unsettled.items()):
                if item.slot is None:
                    self._drop(key, cause)
                else:
                    item.record = replace(item.record, state=State.SPOOLED)
            for queue in (self._live, self._late, self._parked, self._flying):
                queue.clear()
            self.version += 1

    # ---- questions

    def waiting(self) -> bool:
        """True when :meth:`take` would return live items."""
        with self._lock:
            return bool(self._live) and len(self._flying) < MAX_IN_FLIGHT

    def late_waiting(self) -> int:
        """Items of the paced lane in memory."""
        with self._lock:
            return len(self._late)

    def in_flight(self) -> int:
        """Snapshots sent and not answered."""
        with self._lock:
            return len(self._flying)

    def totals(self) -> Totals:
        """Counts of one moment; they always add up."""
        with self._lock:
            return Totals(
                produced=self._produced,
                recovered=self._recovered,
                acknowledged=self._acknowledged,
                rejected=self._rejected.total(),
                spooled=self._spooled,
                queued=len(self._memory_only),
                dropped=self._dropped.total(),
                rejected_by_reason={reason.label: count for reason, count in self._rejected.items()},
                dropped_by_cause=dict(self._dropped),
            )

    def records(self, limit: int = 0) -> list[Record]:
        """Recent records by sealing time, newest last; ``limit`` 0 for all that are kept."""
        with self._lock:
            records = [*self._settled.values(), *(item.record for item in self._unsettled.values())]
        records.sort(key=lambda record: (record.sealed_ns, record.counter))
        return records[-limit:] if limit else records

    # ---- with the lock held

    def _take_in(self, item: Item, queue: OrderedDict[Key, None]) -> None:
        key = item.key
        if key in self._unsettled or key in self._settled:
            raise ValueError(f"counter {item.record.counter} of lane {item.record.lane} was submitted before")
        self._unsettled[key] = item
        self._memory_only[key] = None
        queue[key] = None
        self.version += 1

    def _remove(self, key: Key) -> Item | None:
        for queue in (self._live, self._late, self._parked, self._flying, self._memory_only):
            queue.pop(key, None)
        item = self._unsettled.pop(key, None)
        if item is not None and item.slot is not None:
            self._spooled -= 1
        return item

    def _drop(self, key: Key, cause: str) -> Item | None:
        item = self._remove(key)
        if item is not None:
            self._dropped[cause] += 1
            self._keep(replace(item.record, state=State.DROPPED, cause=cause, settled_ns=time.time_ns()))
        return item

    def _keep(self, record: Record) -> None:
        self._settled[record.lane, record.counter] = record
        while len(self._settled) > self._history:
            self._settled.popitem(last=False)
        self.version += 1


def _rename(queue: OrderedDict[Key, None], old: Key, new: Key) -> None:
    """``new`` in the place of ``old``, which is at or near the front."""
    before = []
    for key in queue:
        before.append(key)
        if key == old:
            break
    for key in before:
        del queue[key]
    for key in reversed(before):
        name = new if key == old else key
        queue[name] = None
        queue.move_to_end(name, last=False)
