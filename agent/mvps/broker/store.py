# SPDX-License-Identifier: Apache-2.0
"""What a broker keeps: rows, highest counters and baselines in SQLite, accepted snapshots in the evidence log.

One writer thread owns both. It takes everything that waits and makes one group commit of it: accepted snapshots are
appended to the log and synced, then rows, replay state and the log's new size go into one SQLite transaction, and only
then are the futures of the waiting streams resolved. An acknowledgement is never ahead of the disk, and a leaf that no
transaction counts is cut off again. Of a rejected snapshot only digest and reason are kept.

The log lives in ``<database>.evidence`` (:mod:`mvps.trust.evidence_log`); retention removes its oldest segments. The
latest snapshot of a vantage that has fallen silent is then copied into the database.

What is too old goes, and when the store is nearly full the oldest goes early: a store that is full goes on. Whatever
goes, ``Store.backfill_from_ns`` rises above its sealing time, in the same transaction: backfill that was sealed earlier
may be a copy of something that is forgotten, and the gate refuses it. No clock is asked for that.

A row of the database is a *run*: the snapshots of one (vantage, epoch, lane) that came in one message, up to 256 of
them, packed into its ``entries`` (:class:`Entry`). What a snapshot says of itself stands in the log and nowhere else;
its digest too, so that the answer to a repeated counter reads its leaf.

When a commit fails (disk full, database locked), everything that was submitted on top of the lost state
must fail too, or a later snapshot would move the counters past the lost ones. The *fence* does that: it
rises with every failure, and a submission made under an older fence is refused.
"""

from __future__ import annotations

import asyncio
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

from mvps.broker.tables import (
    LATEST_RUNS,
    RUN_COLUMNS,
    Entry,
    StoredRun,
    StoreError,
    advice,
    claim_database,
    entries_of,
    newest_entry,
    open_database,
    ordered,
    signed,
    unordered,
    unsigned,
)
from mvps.trust.evidence_log import (
    SEGMENT_BYTES,
    EvidenceError,
    EvidenceLog,
    LogState,
    Place,
    leaf_of,
    sealed_of,
)
from mvps.trust.gate import Run
from mvps.trust.limits import MAX_BASELINES_KEPT
from mvps.trust.merkle import HASH_BYTES
from mvps.trust.reasons import RejectReason
from mvps.trust.replay import LaneKey, Recorded
from mvps.trust.seal import Sealed

_PRUNE_EVERY_S: Final = 30.0
_PRUNE_ROWS: Final = 1000  # at a time, and twice what the last commit brought if that is more
# A full store lets 1/16 of it free: room for a group of commits, so that making room delays none. A segment is at most
# that long too, so that what goes at a time is a small part of what is kept.
_PARTS: Final = 16
_GROUP: Final = 4096  # submissions in one transaction
# A commit costs the same for one snapshot as for fifty: while many come one by one, the writer begins one so often.
_GATHER_S: Final = 0.010
_MANY: Final = 16  # submissions in the last commit


class Row(NamedTuple):
    """One verified snapshot as it comes out of the store. ``reason`` is None when it was accepted.

    A rejected one has an empty ``sealed``: its digest is all that was kept.
    """

    vantage_id: str
    epoch_id: int
    lane: int
    counter: int
    tick: int
    received_ns: int
    reason: RejectReason | None
    mismatch: bool
    sealed: Sealed
    leaf: int | None  # index in the evidence log; None for a rejected one
    digest: bytes


class Parcel(NamedTuple):
    """What one message brings the store: runs, and the leaves and leaf hashes of :meth:`Batch.leaves`."""

    runs: Sequence[Run]
    leaves: bytes
    hashes: bytes
    received_ns: int


NOTHING: Final = Parcel((), b"", b"", 0)

# Name of one snapshot: vantage, epoch, lane, counter.
CounterKey: TypeAlias = tuple[str, int, int, int]


class Kept(NamedTuple):
    """A baseline to keep."""

    vantage_id: str
    baseline_id: str
    json: bytes


class Room(NamedTuple):
    """What the store holds: bytes of the database and the log's segments, of the database, and free ones in that."""

    bytes: int
    database: int
    free: int


class VantageRow(NamedTuple):
    """What is known of a vantage at start."""

    vantage_id: str
    first_seen_ns: int
    accepted: int
    latest: Row


@dataclass(slots=True)
class _Submission:
    fence: int
    parcel: Parcel
    baselines: Sequence[Kept]
    lookups: Sequence[CounterKey]
    mismatches: Sequence[CounterKey]
    then: Callable[[list[Recorded | None]], None]
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[None] = field(repr=False)
    answers: list[Recorded | None] = field(default_factory=list)
    error: StoreError | None = None


class Store:
    """The database of one broker. Locked against a second broker from construction to :meth:`close`.

    max_bytes: of the database and the log's segments together; nodes and checkpoints of the log come on top. Near it
    the oldest go before they are retention_s old. segment_bytes: of the log, a 16th of max_bytes at most unless given.
    ``backfill_from_ns`` may be read from any thread: it has risen before anyone can see that something is forgotten.
    ``evidence`` may be read from any thread; only this store appends leaves to it.
    on_commit, on_failure: called in the event loop of the submission, in the order of the commits, before
    the submission's future is resolved.
    """

    def __init__(
        self,
        path: Path,
        *,
        retention_s: float,
        max_bytes: int,
        on_commit: Callable[[Sequence[Run]], None] = lambda runs: None,
        on_failure: Callable[[], None] = lambda: None,
        busy_timeout_s: float = 2.0,
        segment_bytes: int = 0,
    ) -> None:
        self._path = path
        self.max_bytes: Final = max_bytes
        self._margin = max_bytes // _PARTS
        self._segment_bytes = segment_bytes or min(SEGMENT_BYTES, self._margin)
        self._retention_ns = int(retention_s * 1e9)
        self._on_commit = on_commit
        self._on_failure = on_failure
        self._lock = claim_database(path)
        try:
            self._db = open_database(path, max_bytes, busy_timeout_s)
            try:
                self._next_id = 1 + int(self._db.execute("SELECT coalesce(max(id), 0) FROM runs").fetchone()[0])
                self._page_bytes = int(self._db.execute("PRAGMA page_size").fetchone()[0])
                self._numbers: dict[str, int] = dict(self._db.execute("SELECT vantage, number FROM vantages"))
                state = LogState(*self._db.execute("SELECT size, root, segment, end FROM log").fetchone())
                self.evidence: Final = EvidenceLog(
                    path.with_name(path.name + ".evidence"), state, segment_bytes=self._segment_bytes
                )
                self.backfill_from_ns: int = self._db.execute("SELECT backfill_from_ns FROM kept").fetchone()[0]
                self.bytes = self._room().bytes
            except EvidenceError as error:
                self._db.close()
                raise StoreError(str(error)) from None
            except BaseException:
                self._db.close()
                raise
        except BaseException:
            os.close(self._lock)
            raise
        self._queue: queue.SimpleQueue[_Submission | None] = queue.SimpleQueue()
        self._pruned = 0.0
        self._rows_removed = 0
        self._rows_added = 0  # by the last commit
        self.fence = 0
        # "" or why the last commit failed.
        self.error = ""
        # Accepted snapshots that went before they were retention_s old, since this store was opened.
        self.removed_early = 0
        self._writer = threading.Thread(target=self._write, name="mvps-broker-store", daemon=True)
        self._writer.start()

    # ---- event loop side

    def submit(
        self,
        parcel: Parcel,
        fence: int,
        baselines: Sequence[Kept] = (),
        lookups: Sequence[CounterKey] = (),
        *,
        mismatches: Sequence[CounterKey] = (),
        then: Callable[[list[Recorded | None]], None] = lambda answers: None,
    ) -> asyncio.Future[None]:
        """Queue what one message brings for the next commit.

        fence: value of ``self.fence`` the caller's replay state was built on, as seen by ``on_failure``.
        lookups: looked up after this commit. then: called in the event loop with the answers when everything is on
        disk, also when nobody waits for the future any more. The future has a StoreError if it is not on disk and never
        will be; ``then`` is not called then.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        self._queue.put(_Submission(fence, parcel, baselines, lookups, mismatches, then, loop, done))
        return done

    def close(self) -> None:
        """Commit what waits and close the database. Idempotent."""
        if self._lock < 0:
            return
        self._queue.put(None)
        self._writer.join()
        self._db.close()
        self.evidence.close()
        os.close(self._lock)
        self._lock = -1

    # ---- writer thread

    def _write(self) -> None:
        group: list[_Submission] = []
        begun = 0.0
        while True:
            first = self._queue.get()
            if (
                first is not None
                and len(group) >= _MANY
                and len(first.parcel.runs) == 1
                and first.parcel.runs[0].items == 1
            ):
                time.sleep(max(begun + _GATHER_S - time.monotonic(), 0.0))
            begun = time.monotonic()
            group = []
            stop = first is None
            if first is not None:
                group.append(first)
                size = len(first.parcel.leaves)
                while len(group) < _GROUP and size < self._segment_bytes:
                    try:
                        more = self._queue.get_nowait()
                    except queue.Empty:
                        break
                    if more is None:
                        stop = True
                        break
                    group.append(more)
                    size += len(more.parcel.leaves)
            fresh = [s for s in group if s.fence == self.fence]
            stale = [s for s in group if s.fence != self.fence]
            if fresh:
                self._commit(fresh)
            for submission in stale:
                submission.error = StoreError("an earlier commit failed: send again")
            self._settle(fresh + stale)
            self._prune()
            if stop:
                return

    def _commit(self, group: list[_Submission]) -> None:
        added: dict[str, int] = {}
        try:
            self._make_room(sum(len(s.parcel.leaves) for s in group))
            self._db.execute("BEGIN IMMEDIATE")
            try:
                grew = self._append([s.parcel for s in group if s.parcel.hashes])
                following = self._insert([s.parcel for s in group if s.parcel.runs], grew, added)
                for submission in group:
                    self._keep_baselines(submission.baselines)
                    self._keep_mismatches(submission.mismatches)
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                self.evidence.rollback()
                raise
            self._rows_added = following - self._next_id
            self._next_id = following
            self._numbers |= added
            if grew is not None:
                self.evidence.commit()
            for submission in group:
                if submission.lookups:
                    submission.answers = [self._lookup(*key) for key in submission.lookups]
        except Exception as error:  # whatever it was, the writer lives on and the senders are told
            self.fence += 1
            self.error = advice(error, self._path)
            for submission in group:
                submission.error = StoreError(self.error)
            return
        self.error = ""

    def _append(self, parcels: list[Parcel]) -> Place | None:
        """Leaves into the log, and the log's new state into the open transaction; where the first leaf is."""
        if not parcels:
            return None
        if self._room().bytes + sum(len(parcel.leaves) for parcel in parcels) > self.max_bytes:
            raise StoreError(
                f"{self._path} and its evidence log cannot grow: raise database_max_mib, for nothing more can be "
                "removed; agents keep their snapshots meanwhile"
            )
        first, state = self.evidence.extend([p.leaves for p in parcels], b"".join([p.hashes for p in parcels]))
        self._db.execute("UPDATE log SET size = ?, root = ?, segment = ?, end = ?", state)
        return first

    def _insert(self, parcels: Sequence[Parcel], first: Place | None, added: dict[str, int]) -> int:
        """Runs into the open transaction; the id that is free afterwards.

        first: where the first leaf of all went. added: takes the numbers of vantages that are new.
        """
        runs: list[tuple[Any, ...]] = []
        lanes: dict[tuple[int, int, int], tuple[int, int, int | None]] = {}  # counter, accepted, latest
        leaf, offset, _ = first or Place(0, 0, 0)
        identity = self._next_id
        for parcel in parcels:
            for run in parcel.runs:
                if not run.entries:
                    continue
                number = self._numbers.get(run.vantage_id) or added.get(run.vantage_id)
                if number is None:
                    number = added[run.vantage_id] = self._add_vantage(run.vantage_id, parcel.received_ns)
                key = (number, signed(run.epoch_id), run.lane)
                last = ordered(run.last)
                place = (leaf + run.leaf, offset + run.offset) if run.accepted else (None, None)
                runs.append(
                    (identity, *key, last, parcel.received_ns, *place, run.accepted, run.sealed_ns, run.entries)
                )
                _, accepted, latest = lanes.get(key, (0, 0, None))
                # The gate only lets rising counters through, so the last run of a lane has its highest.
                lanes[key] = (last, accepted + run.accepted, identity if run.accepted else latest)
                identity += 1
            leaf += len(parcel.hashes) // HASH_BYTES
            offset += len(parcel.leaves)
        self._db.executemany("INSERT INTO runs VALUES (?,?,?,?,?,?,?,?,?,?,?)", runs)
        self._db.executemany(
            "INSERT INTO lanes VALUES (?,?,?,?,?,?) ON CONFLICT DO UPDATE SET counter = excluded.counter,"
            " accepted = accepted + excluded.accepted, latest = coalesce(excluded.latest, latest)",
            [(*key, *values) for key, values in lanes.items()],
        )
        return identity

    def _add_vantage(self, vantage_id: str, first_seen_ns: int) -> int:
        added = self._db.execute(
            "INSERT INTO vantages (vantage, first_seen_ns) VALUES (?,?)", (vantage_id, first_seen_ns)
        ).lastrowid
        if added is None:
            raise sqlite3.DatabaseError("a row was inserted and has no number")
        return added

    def _keep_mismatches(self, mismatches: Sequence[CounterKey]) -> None:
        for vantage_id, epoch_id, lane, counter in mismatches:
            number = self._numbers.get(vantage_id)
            if number is not None:
                row = (number, signed(epoch_id), lane, ordered(counter), time.time_ns())
                self._db.execute("INSERT OR REPLACE INTO mismatches VALUES (?,?,?,?,?)", row)

    def _keep_baselines(self, baselines: Sequence[Kept]) -> None:
        for kept in baselines:
            self._db.execute(
                "INSERT INTO baselines VALUES (?,?,?,?) ON CONFLICT (vantage, id) DO UPDATE SET"
                " seen_ns = excluded.seen_ns",
                (kept.vantage_id, kept.baseline_id, time.time_ns(), kept.json),
            )
            self._db.execute(
                "DELETE FROM baselines WHERE vantage = ?1 AND id NOT IN (SELECT id FROM baselines"
                " WHERE vantage = ?1 ORDER BY seen_ns DESC LIMIT ?2)",
                (kept.vantage_id, MAX_BASELINES_KEPT),
            )

    def _lookup(self, vantage_id: str, epoch_id: int, lane: int, counter: int) -> Recorded | None:
        found = self._run_of(self._db, self._numbers.get(vantage_id), epoch_id, lane, counter)
        if found is None:
            return None
        run, entry = found
        if entry.reason is not None:
            return Recorded(entry.digest, entry.reason)
        try:
            (row,) = self._rows(self._db, [(vantage_id, run, entry)])
        except (StoreError, ValueError):
            return None  # its leaf was damaged or removed: what it was is not known any more
        return Recorded(row.digest, None)

    def _settle(self, group: list[_Submission]) -> None:
        """Tell the senders, in their event loop and all at once."""

        def in_loop(mine: list[_Submission]) -> None:
            for submission in mine:
                try:
                    if submission.error is None:
                        self._on_commit(submission.parcel.runs)
                        submission.then(submission.answers)
                    else:
                        self._on_failure()
                except BaseException as defect:
                    if not submission.done.done():
                        submission.done.set_exception(defect)
                    continue
                if submission.done.done():  # cancelled: nobody waits for the answer
                    continue
                if submission.error is None:
                    submission.done.set_result(None)
                else:
                    submission.done.set_exception(submission.error)

        for loop in {submission.loop for submission in group}:
            # It may be closed already when the broker stops: nobody waits for the answer then.
            if not loop.is_closed():
                loop.call_soon_threadsafe(in_loop, [s for s in group if s.loop is loop])

    def _room(self) -> Room:
        pages, free = (
            int(self._db.execute(f"PRAGMA {name}").fetchone()[0]) for name in ("page_count", "freelist_count")
        )
        database = pages * self._page_bytes
        return Room(database + self.evidence.bytes_kept, database, free * self._page_bytes)

    def _prune(self) -> None:
        """After a commit: a step of what is too old, and of what has no room."""
        now = time.monotonic()
        try:
            if now - self._pruned >= _PRUNE_EVERY_S and not self._forget(self._first_young()):
                self._pruned = now  # otherwise go on with the next commit
            self._step(0)
            self.bytes = self._room().bytes
        except (sqlite3.Error, OSError, EvidenceError) as error:
            self.error = advice(error, self._path)
            self._pruned = now

    def _make_room(self, leaves: int) -> None:
        """Before a commit that brings so many bytes of leaves: let go of the oldest until they fit, if that helps.

        Steps after the commits before keep room for this one as a rule.
        """
        while self._room().bytes + leaves > self.max_bytes and self._step(leaves):
            pass

    def _step(self, leaves: int) -> bool:
        """Let go of a part of the oldest if the store is nearly full; whether that changed anything."""
        if self._room().bytes + leaves <= self.max_bytes - self._margin:
            return False
        before = (self.evidence.first, self._rows_removed)
        self._forget(self._end_of_oldest())
        changed = before != (self.evidence.first, self._rows_removed)
        room = self._room()
        # Rows leave pages that only rows fill again. To give them to the log costs a copy of all that is left, so it is
        # done when that is less than what it gives, or when nothing else helps.
        if room.free > self._margin // 2 and (2 * room.free > room.database or not changed):
            self._db.execute("VACUUM")
            changed = True
        return changed

    def _first_young(self) -> int:
        """Id of the first row that is not too old. Ids rise with time: what is before it is old."""
        young = self._db.execute(
            "SELECT id FROM runs NOT INDEXED WHERE received_ns >= ? ORDER BY id LIMIT 1", (self._young_ns(),)
        ).fetchone()
        return int(young[0]) if young else self._next_id

    def _young_ns(self) -> int:
        return time.time_ns() - self._retention_ns

    def _end_of_oldest(self) -> int:
        """Id of the first row after the oldest segment of the log; after all rows if there is only one segment."""
        leaf = self.evidence.after_oldest
        following = self._db.execute(
            "SELECT id FROM runs NOT INDEXED WHERE leaf >= ? ORDER BY id LIMIT 1", (leaf,)
        ).fetchone()
        return int(following[0]) if following else self._next_id

    def _forget(self, end: int) -> bool:
        """Remove rows before the id ``end``, oldest first, and when all are gone their segments; whether more are left.

        The newest accepted row of each vantage stays.
        """
        young = self._young_ns()
        most = max(_PRUNE_ROWS, 2 * self._rows_added)
        self._db.execute("BEGIN IMMEDIATE")
        try:
            # The newest of its vantage is looked up row by row: that costs as much as goes, however large the fleet is.
            going = self._db.execute(
                "SELECT id, received_ns, accepted FROM runs WHERE id < ? AND id IS NOT"
                " (SELECT max(latest) FROM lanes WHERE lanes.vantage = runs.vantage) ORDER BY id LIMIT ?",
                (end, most),
            ).fetchall()
            more = len(going) == most
            # Of a row that stays all but the last snapshot goes with its segment: it counts as forgotten too.
            (kept_from,) = self._db.execute(
                "SELECT coalesce(1 + max(sealed_ns), 0) FROM runs WHERE id < ?", (going[-1][0] + 1 if more else end,)
            ).fetchone()
            if kept_from > self.backfill_from_ns:
                self.backfill_from_ns = kept_from
                self._db.execute("UPDATE kept SET backfill_from_ns = ?", (self.backfill_from_ns,))
            self._db.executemany("DELETE FROM runs WHERE id = ?", [(identity,) for identity, *_ in going])
            self._db.execute("DELETE FROM mismatches WHERE seen_ns < ?", (young,))
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise
        self._rows_removed += len(going)
        self.removed_early += sum(accepted for _, received_ns, accepted in going if received_ns >= young)
        if not more:
            self._prune_log(end)
        return more

    def _prune_log(self, first_id: int) -> None:
        """Remove the segments that hold no row from ``first_id`` on."""
        found = self._db.execute(
            "SELECT leaf FROM runs WHERE id >= ? AND leaf IS NOT NULL ORDER BY id LIMIT 1", (first_id,)
        ).fetchone()
        first = self.evidence.prunable(found[0] if found else self.evidence.state.size)
        if first <= self.evidence.first:
            return
        self._db.execute("BEGIN IMMEDIATE")
        try:
            silent = self._db.execute(
                f"SELECT v.number, {RUN_COLUMNS} FROM ({LATEST_RUNS}) l JOIN vantages v ON v.number = l.vantage"
                " JOIN runs r ON r.id = l.latest WHERE r.leaf < ? AND v.kept_run IS NOT r.id",
                (first,),
            ).fetchall()
            for number, *columns in silent:
                run = StoredRun(*columns)
                sealed = self._undamaged(newest_entry(run).place)
                if sealed is not None:
                    self._db.execute(
                        "UPDATE vantages SET kept_run = ?, kept = ? WHERE number = ?",
                        (run.id, leaf_of(sealed), number),
                    )
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise
        self.evidence.prune(first)

    def _undamaged(self, place: Place | None) -> Sealed | None:
        # One that was changed on disk must not keep the store from making room; mvps verify names it while it is there.
        try:
            return next(iter(self.evidence.read([place] if place is not None else [])), None)
        except EvidenceError:
            return None

    # ---- reading

    def replay_state(self) -> dict[LaneKey, int]:
        """Highest counters, as the replay guard wants them at start."""
        with self._reading() as db:
            rows = db.execute(
                "SELECT v.vantage, epoch, lane, counter FROM lanes JOIN vantages v ON v.number = lanes.vantage"
            ).fetchall()
        return {(vantage, unsigned(epoch), lane): unordered(counter) for vantage, epoch, lane, counter in rows}

    def vantages(self) -> list[VantageRow]:
        """Every vantage with its latest accepted snapshot."""
        with self._reading() as db:
            found = db.execute(
                f"SELECT v.vantage, v.first_seen_ns, l.accepted, {RUN_COLUMNS} FROM ({LATEST_RUNS}) l"
                " JOIN vantages v ON v.number = l.vantage JOIN runs r ON r.id = l.latest"
            ).fetchall()
            totals = {vantage: (first_seen_ns, accepted) for vantage, first_seen_ns, accepted, *_ in found}
            newest = [
                (vantage, run, newest_entry(run)) for vantage, run in ((row[0], StoredRun(*row[3:])) for row in found)
            ]
            rows = self._rows(db, newest)
        return [VantageRow(row.vantage_id, *totals[row.vantage_id], latest=row) for row in rows]

    def history(self, vantage_id: str, since_ns: int, limit: int) -> list[Row]:
        """Rows of one vantage, accepted and rejected, newest first."""
        since_ns = min(since_ns, (1 << 63) - 1)
        with self._reading() as db:
            number = _number_of(db, vantage_id)
            lanes = db.execute("SELECT epoch, lane FROM lanes WHERE vantage = ?", (number,)).fetchall()
            runs: list[StoredRun] = []
            for epoch, lane in lanes:
                # Time rises with the counter within a lane.
                newest_first = db.execute(
                    f"SELECT {RUN_COLUMNS} FROM runs r WHERE vantage = ? AND epoch = ? AND lane = ? ORDER BY last DESC",
                    (number, epoch, lane),
                )
                entries = 0
                for row in newest_first:
                    run = StoredRun(*row)
                    if run.received_ns < since_ns or entries >= limit:
                        break
                    entries += len(entries_of(run.entries, None, None))
                    runs.append(run)
            runs.sort(key=lambda run: (run.received_ns, run.id), reverse=True)
            found = [
                (vantage_id, run, entry)
                for run in runs
                for entry in reversed(entries_of(run.entries, run.leaf, run.offset))
            ]
            return self._rows(db, found[:limit])

    def find(self, vantage_id: str, epoch_id: int, lane: int, counter: int) -> Row | None:
        """The row of one counter, or None if it is unknown or no longer kept."""
        with self._reading() as db:
            found = self._run_of(db, _number_of(db, vantage_id), epoch_id, lane, counter)
            return next(iter(self._rows(db, [(vantage_id, *found)])), None) if found else None

    def baselines(self) -> list[Kept]:
        """Every baseline that is kept, oldest first."""
        with self._reading() as db:
            rows = db.execute("SELECT vantage, id, json FROM baselines ORDER BY seen_ns").fetchall()
        return [Kept(*row) for row in rows]

    def _run_of(
        self, db: sqlite3.Connection, number: int | None, epoch_id: int, lane: int, counter: int
    ) -> tuple[StoredRun, Entry] | None:
        found = db.execute(
            f"SELECT {RUN_COLUMNS} FROM runs r WHERE vantage = ? AND epoch = ? AND lane = ? AND last >= ?"
            " ORDER BY last LIMIT 1",
            (number, signed(epoch_id), lane, ordered(counter)),
        ).fetchone()
        if found is None:
            return None
        run = StoredRun(*found)
        for entry in entries_of(run.entries, run.leaf, run.offset):
            if entry.counter == counter:
                return run, entry
        return None

    def _rows(self, db: sqlite3.Connection, found: Sequence[tuple[str, StoredRun, Entry]]) -> list[Row]:
        """Rows with their snapshots; those that were pruned meanwhile are left out."""
        kept: dict[str, tuple[int, bytes]] = {}
        places: list[Place] = []
        for vantage_id, run, entry in found:
            if vantage_id not in kept:
                kept[vantage_id] = db.execute(
                    "SELECT coalesce(kept_run, -1), kept FROM vantages WHERE vantage = ?", (vantage_id,)
                ).fetchone()
            if entry.place is not None and not (kept[vantage_id][0] == run.id and entry == newest_entry(run)):
                places.append(entry.place)
        try:
            read = dict(zip(places, self.evidence.read(places), strict=True))
        except EvidenceError as error:
            raise StoreError(str(error)) from None
        rows: list[Row] = []
        for vantage_id, run, entry in found:
            sealed: Sealed | None = _NOT_KEPT
            if entry.place is not None:
                sealed = read[entry.place] if entry.place in read else sealed_of(kept[vantage_id][1])
            if sealed is None:
                continue
            name = (run.vantage, run.epoch, run.lane, ordered(entry.counter))
            mismatch = db.execute(
                "SELECT 1 FROM mismatches WHERE vantage = ? AND epoch = ? AND lane = ? AND counter = ?", name
            ).fetchone()
            rows.append(
                Row(
                    vantage_id,
                    unsigned(run.epoch),
                    run.lane,
                    entry.counter,
                    entry.tick,
                    run.received_ns,
                    entry.reason,
                    mismatch is not None,
                    sealed,
                    entry.place.leaf if entry.place else None,
                    entry.digest or sealed.digest,
                )
            )
        return rows

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        # A connection of its own: readers never wait for the writer in WAL mode, and may be on any thread.
        try:
            db = sqlite3.connect(f"{self._path.resolve().as_uri()}?mode=ro", uri=True)
        except sqlite3.Error as error:
            raise StoreError(advice(error, self._path)) from None
        try:
            yield db
        except sqlite3.Error as error:
            raise StoreError(advice(error, self._path)) from None
        finally:
            db.close()


_NOT_KEPT: Final = Sealed(b"", b"", b"")


def _number_of(db: sqlite3.Connection, vantage_id: str) -> int | None:
    found = db.execute("SELECT number FROM vantages WHERE vantage = ?", (vantage_id,)).fetchone()
    return int(found[0]) if found else None
