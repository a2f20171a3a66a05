# SPDX-License-Identifier: Apache-2.0
"""Every sealed snapshot's fate: a bounded queue and the counts that go with it.

At every moment::

    produced = acknowledged + rejected + queued + dropped

The tick thread puts snapshots in, the stream's thread takes them out; a lock is held for a few dictionary
operations at a time and never while anything waits. A spool on disk will stand in the place of the queue;
its interface is this class.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict
from dataclasses import dataclass, replace
from enum import IntEnum

from mvps.trust.limits import MAX_BATCH_BYTES, MAX_BATCH_ITEMS, MAX_IN_FLIGHT
from mvps.trust.reasons import RejectReason
from mvps.trust.seal import Sealed, parse_header


class State(IntEnum):
    """Where a snapshot is; the numbers of ``SnapshotState`` in proto/mvps/v1/local.proto."""

    SEALED = 1
    SENT = 2
    ACKNOWLEDGED = 3
    REJECTED = 4
    DROPPED = 5


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
class _Item:
    sealed: Sealed
    record: Record


def _item(sealed: Sealed) -> _Item:
    header = parse_header(sealed.header)
    return _Item(sealed, Record(header.lane, header.counter, header.tick, sealed.size, header.time_ns, State.SEALED))


@dataclass(frozen=True, slots=True)
class Totals:
    """Counts since start; ``queued`` includes what was sent and is not answered."""

    produced: int
    acknowledged: int
    rejected: int
    queued: int
    dropped: int
    rejected_by_reason: dict[str, int]
    dropped_by_cause: dict[str, int]


class Ledger:
    """Unsettled snapshots in the order they were sealed, and records of the recent ones.

    limit: unsettled snapshots kept; when it is exceeded the oldest is dropped.
    history: settled records kept for those who look.
    """

    def __init__(self, limit: int, history: int = 1024) -> None:
        if limit < 1:
            raise ValueError("the queue must hold at least one snapshot")
        self._limit = limit
        self._history = history
        self._lock = threading.Lock()
        self._unsettled: OrderedDict[tuple[int, int], _Item] = OrderedDict()
        # Keys of _unsettled that are not sent in this stream, in order.
        self._waiting: OrderedDict[tuple[int, int], None] = OrderedDict()
        self._settled: OrderedDict[tuple[int, int], Record] = OrderedDict()
        self._produced = 0
        self._acknowledged = 0
        self._rejected: Counter[RejectReason] = Counter()
        self._dropped: Counter[str] = Counter()
        # Rises with every change of any record.
        self.version = 0

    def add(self, sealed: Sealed) -> None:
        """A snapshot was sealed. Drops the oldest unsettled one, cause ``queue_full``, if there is no room."""
        item = _item(sealed)
        with self._lock:
            self._take_in(item)
            self._produced += 1
            if len(self._unsettled) > self._limit:
                self._drop(next(iter(self._unsettled)), "queue_full")

    def renew(self, lane: int, counter: int, sealed: Sealed) -> None:
        """``sealed`` takes the place of an unsettled snapshot: the same one under a new seal. Counts nothing.

        Unknown names are ignored.
        """
        item = _item(sealed)
        with self._lock:
            if self._remove((lane, counter)) is not None:
                self._take_in(item)

    def take(self) -> list[Sealed]:
        """The next batch to send, oldest first, now marked as sent; empty when nothing may be sent."""
        batch: list[Sealed] = []
        size = 0
        with self._lock:
            room = min(MAX_BATCH_ITEMS, MAX_IN_FLIGHT - (len(self._unsettled) - len(self._waiting)))
            while self._waiting and len(batch) < room:
                key = next(iter(self._waiting))
                item = self._unsettled[key]
                size += item.sealed.size + 32  # the envelope's own framing
                if batch and size > MAX_BATCH_BYTES:
                    break
                del self._waiting[key]
                item.record = replace(item.record, state=State.SENT)
                batch.append(item.sealed)
            if batch:
                self.version += 1
        return batch

    def unsend(self) -> None:
        """The stream ended: what was sent and not answered waits again, in its old order."""
        with self._lock:
            for item in self._unsettled.values():
                item.record = replace(item.record, state=State.SEALED)
            self._waiting = OrderedDict.fromkeys(self._unsettled)
            self.version += 1

    def unsettled(self, lane: int, counter: int) -> Sealed | None:
        """An unsettled snapshot; None if there is none of that name."""
        with self._lock:
            item = self._unsettled.get((lane, counter))
            return item.sealed if item else None

    def settle(self, lane: int, counter: int, reason: RejectReason | None) -> None:
        """A verified answer: acknowledged, or rejected for ``reason``. Unknown names are ignored."""
        with self._lock:
            item = self._remove((lane, counter))
            if item is None:
                return
            if reason is None:
                self._acknowledged += 1
                state = State.ACKNOWLEDGED
            else:
                self._rejected[reason] += 1
                state = State.REJECTED
            self._keep(replace(item.record, state=state, reason=reason, settled_ns=time.time_ns()))

    def drop_all(self, cause: str) -> None:
        """Give up what is unsettled, for example because the agent stops."""
        with self._lock:
            for key in list(self._unsettled):
                self._drop(key, cause)

    def waiting(self) -> bool:
        """True when :meth:`take` would return something."""
        with self._lock:
            return bool(self._waiting) and len(self._unsettled) - len(self._waiting) < MAX_IN_FLIGHT

    def in_flight(self) -> int:
        """Snapshots sent and not answered."""
        with self._lock:
            return len(self._unsettled) - len(self._waiting)

    def totals(self) -> Totals:
        """Counts of one moment; they always add up."""
        with self._lock:
            return Totals(
                produced=self._produced,
                acknowledged=self._acknowledged,
                rejected=self._rejected.total(),
                queued=len(self._unsettled),
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

    def _take_in(self, item: _Item) -> None:
        key = (item.record.lane, item.record.counter)
        if key in self._unsettled or key in self._settled:
            raise ValueError(f"counter {item.record.counter} of lane {item.record.lane} was submitted before")
        self._unsettled[key] = item
        self._waiting[key] = None
        self.version += 1

    def _remove(self, key: tuple[int, int]) -> _Item | None:
        self._waiting.pop(key, None)
        return self._unsettled.pop(key, None)

    def _drop(self, key: tuple[int, int], cause: str) -> None:
        item = self._remove(key)
        if item is not None:
            self._dropped[cause] += 1
            self._keep(replace(item.record, state=State.DROPPED, cause=cause, settled_ns=time.time_ns()))

    def _keep(self, record: Record) -> None:
        self._settled[record.lane, record.counter] = record
        while len(self._settled) > self._history:
            self._settled.popitem(last=False)
        self.version += 1
