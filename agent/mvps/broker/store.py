# SPDX-License-Identifier: Apache-2.0
"""What a broker keeps: rows, highest counters and baselines in SQLite, accepted snapshots in the evidence log.

One writer thread owns both. It takes everything that waits and makes one group commit of it: accepted snapshots are
appended to the log and synced, then rows, replay state and the log's new size go into one SQLite transaction, and only
then are the futures of the waiting streams resolved. An acknowledgement is never ahead of the disk, and a leaf that no
transaction counts is cut off again. Of a rejected snapshot only digest and reason are kept.

The log lives in ``<database>.evidence`` (:mod:`mvps.trust.evidence_log`); retention removes its oldest segments. The
latest snapshot of a vantage that has fallen silent is then copied into the database.

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
from typing import Any, Final, NamedTuple

from mvps.trust.durable import claim
from mvps.trust.evidence_log import (
    NEW_LOG,
    SEGMENT_BYTES,
    EvidenceError,
    EvidenceLog,
    LogState,
    Place,
    leaf_of,
    sealed_of,
)
from mvps.trust.limits import MAX_BASELINES_KEPT
from mvps.trust.reasons import RejectReason
from mvps.trust.replay import LaneKey, Recorded
from mvps.trust.seal import Sealed

_SCHEMA_VERSION: Final = 2
_SCHEMA: Final = """
CREATE TABLE replay (
    vantage TEXT NOT NULL, epoch INTEGER NOT NULL, lane INTEGER NOT NULL, counter INTEGER NOT NULL,
    PRIMARY KEY (vantage, epoch, lane)
) WITHOUT ROWID;
CREATE TABLE snapshots (
    id INTEGER PRIMARY KEY,     -- rises in the order of commits, and so with time and leaf
    vantage TEXT NOT NULL, epoch INTEGER NOT NULL, lane INTEGER NOT NULL, counter INTEGER NOT NULL,
    tick INTEGER NOT NULL, received_ns INTEGER NOT NULL,
    reason INTEGER NOT NULL,    -- 0: accepted
    mismatch INTEGER NOT NULL,  -- 1: the recomputed decision differs
    digest BLOB NOT NULL,
    leaf INTEGER, offset INTEGER, size INTEGER,  -- of an accepted one: its place in the evidence log
    UNIQUE (vantage, epoch, lane, counter)
);
CREATE INDEX snapshots_by_vantage ON snapshots (vantage, received_ns);
CREATE TABLE vantages (
    vantage TEXT PRIMARY KEY, first_seen_ns INTEGER NOT NULL, accepted INTEGER NOT NULL,
    latest INTEGER NOT NULL,    -- snapshots.id; never pruned
    kept BLOB                   -- its leaf, once the segment it was in is gone
) WITHOUT ROWID;
CREATE TABLE baselines (
    vantage TEXT NOT NULL, id TEXT NOT NULL, seen_ns INTEGER NOT NULL, json BLOB NOT NULL,
    PRIMARY KEY (vantage, id)
) WITHOUT ROWID;
CREATE TABLE log (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    size INTEGER NOT NULL, root BLOB NOT NULL, segment INTEGER NOT NULL, end INTEGER NOT NULL
);
"""
_PRUNE_EVERY_S: Final = 30.0
_PRUNE_ROWS: Final = 5000
_GROUP: Final = 4096  # submissions in one transaction
_U63: Final = 1 << 63


class StoreError(Exception):
    """The store cannot be opened, or did not commit. The message says what to do."""


class Row(NamedTuple):
    """One verified snapshot. ``reason`` is None when it was accepted.

    A rejected one that comes out of the store has an empty ``sealed``: its digest is all that was kept.
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
    leaf: int | None = None  # index in the evidence log; None before it is stored, and for a rejected one
    stored_digest: bytes = b""

    @property
    def digest(self) -> bytes:
        """Digest of the sealed snapshot."""
        return self.stored_digest or self.sealed.digest


class Kept(NamedTuple):
    """A baseline to keep."""

    vantage_id: str
    baseline_id: str
    json: bytes


class VantageRow(NamedTuple):
    """What is known of a vantage at start."""

    vantage_id: str
    first_seen_ns: int
    accepted: int
    latest: Row


@dataclass(slots=True)
class _Submission:
    fence: int
    rows: Sequence[Row]
    baselines: Sequence[Kept]
    lookups: Sequence[tuple[str, int, int, int]]
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[list[Recorded | None]] = field(repr=False)


def _signed(value: int) -> int:
    """A u64 as SQLite keeps it: two's complement, so that nothing a header can say overflows."""
    return value - (1 << 64) if value >= _U63 else value


def _unsigned(value: int) -> int:
    return value + (1 << 64) if value < 0 else value


class Store:
    """The database of one broker. Locked against a second broker from construction to :meth:`close`.

    max_bytes: of the database and the log's segments together; nodes and checkpoints of the log come on top.
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
        on_commit: Callable[[Sequence[Row]], None] = lambda rows: None,
        on_failure: Callable[[], None] = lambda: None,
        busy_timeout_s: float = 2.0,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._retention_ns = int(retention_s * 1e9)
        self._on_commit = on_commit
        self._on_failure = on_failure
        self._lock = _claim(path)
        try:
            self._db = _open(path, max_bytes, busy_timeout_s)
            try:
                self._next_id = 1 + int(self._db.execute("SELECT coalesce(max(id), 0) FROM snapshots").fetchone()[0])
                state = LogState(*self._db.execute("SELECT size, root, segment, end FROM log").fetchone())
                self.evidence: Final = EvidenceLog(
                    path.with_name(path.name + ".evidence"), state, segment_bytes=segment_bytes
                )
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
        self.fence = 0
        # "" or why the last commit failed.
        self.error = ""
        self._writer = threading.Thread(target=self._write, name="mvps-broker-store", daemon=True)
        self._writer.start()

    # ---- event loop side

    def submit(
        self,
        rows: Sequence[Row],
        fence: int,
        baselines: Sequence[Kept] = (),
        lookups: Sequence[tuple[str, int, int, int]] = (),
    ) -> asyncio.Future[list[Recorded | None]]:
        """Queue rows for the next commit.

        fence: value of ``self.fence`` the caller's replay state was built on, as seen by ``on_failure``.
        lookups: (vantage, epoch, lane, counter) to look up after this commit.
        Returns a future of the lookups' answers, resolved when the rows are on disk; StoreError if they are
        not and never will be.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[list[Recorded | None]] = loop.create_future()
        self._queue.put(_Submission(fence, rows, baselines, lookups, loop, done))
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
        while True:
            first = self._queue.get()
            group: list[_Submission] = []
            stop = first is None
            if first is not None:
                group.append(first)
                while len(group) < _GROUP:
                    try:
                        more = self._queue.get_nowait()
                    except queue.Empty:
                        break
                    if more is None:
                        stop = True
                        break
                    group.append(more)
            fresh = [s for s in group if s.fence == self.fence]
            stale = [s for s in group if s.fence != self.fence]
            if fresh:
                self._commit(fresh)
            for submission in stale:
                self._settle(submission, None, StoreError("an earlier commit failed: send again"))
            self._prune()
            if stop:
                return

    def _commit(self, group: list[_Submission]) -> None:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                leaves = [leaf_of(row.sealed) for s in group for row in s.rows if row.reason is None]
                following = self._insert([row for s in group for row in s.rows], self._append(leaves))
                for submission in group:
                    self._keep_baselines(submission.baselines)
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                self.evidence.rollback()
                raise
            self._next_id = following
            if leaves:
                self.evidence.commit()
            answers = [[self._lookup(*key) for key in s.lookups] for s in group]
        except Exception as error:  # whatever it was, the writer lives on and the senders are told
            self.fence += 1
            self.error = _advice(error, self._path)
            for submission in group:
                self._settle(submission, None, StoreError(self.error))
            return
        self.error = ""
        for submission, answer in zip(group, answers, strict=True):
            self._settle(submission, answer, None)

    def _append(self, leaves: list[bytes]) -> list[Place]:
        """Leaves into the log, and the log's new state into the open transaction."""
        if not leaves:
            return []
        pages = int(self._db.execute("PRAGMA page_count").fetchone()[0])
        size = pages * int(self._db.execute("PRAGMA page_size").fetchone()[0])
        if size + self.evidence.bytes_kept + sum(map(len, leaves)) > self._max_bytes:
            raise StoreError(
                f"{self._path} and its evidence log cannot grow: raise database_max_mib or lower retention_s; agents "
                "keep their snapshots meanwhile"
            )
        places, state = self.evidence.append(leaves)
        self._db.execute("UPDATE log SET size = ?, root = ?, segment = ?, end = ?", state)
        return places

    def _insert(self, rows: Sequence[Row], places: Sequence[Place]) -> int:
        """Rows into the open transaction, places for the accepted ones; the id that is free afterwards."""
        snapshots: list[tuple[Any, ...]] = []
        # The guard only lets rising counters through, so the last row of a lane is its highest.
        replay: dict[tuple[str, int, int], int] = {}
        vantages: dict[str, tuple[int, int, int]] = {}  # first seen, accepted, latest
        free = iter(places)
        identity = self._next_id
        for identity, row in enumerate(rows, self._next_id):
            place = next(free) if row.reason is None else (None, None, None)
            key = (row.vantage_id, _signed(row.epoch_id), row.lane)
            counter = replay[key] = _signed(row.counter)
            snapshots.append(
                (
                    identity,
                    *key,
                    counter,
                    _signed(row.tick),
                    row.received_ns,
                    row.reason or 0,
                    row.mismatch,
                    row.sealed.digest,
                    *place,
                )
            )
            if row.reason is None:
                since, accepted, _ = vantages.get(row.vantage_id, (row.received_ns, 0, 0))
                vantages[row.vantage_id] = (since, accepted + 1, identity)
        self._db.executemany("INSERT INTO snapshots VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)", snapshots)
        self._db.executemany(
            "INSERT OR REPLACE INTO replay VALUES (?,?,?,?)", [(*key, counter) for key, counter in replay.items()]
        )
        self._db.executemany(
            "INSERT INTO vantages VALUES (?,?,?,?,NULL) ON CONFLICT (vantage) DO UPDATE SET"
            " accepted = accepted + excluded.accepted, latest = excluded.latest, kept = NULL",
            [(vantage, *known) for vantage, known in vantages.items()],
        )
        return identity + bool(rows)

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
        found = self._db.execute(
            "SELECT digest, reason FROM snapshots WHERE vantage=? AND epoch=? AND lane=? AND counter=?",
            (vantage_id, _signed(epoch_id), lane, _signed(counter)),
        ).fetchone()
        if found is None:
            return None
        return Recorded(found[0], RejectReason(found[1]) if found[1] else None)

    def _settle(self, submission: _Submission, answer: list[Recorded | None] | None, error: StoreError | None) -> None:
        def in_loop() -> None:
            if error is None:
                self._on_commit(submission.rows)
            else:
                self._on_failure()
            if submission.done.cancelled():
                return
            if error is None:
                submission.done.set_result(answer or [])
            else:
                submission.done.set_exception(error)

        # The loop may be closed already when the broker stops: nobody waits for the answer then.
        if not submission.loop.is_closed():
            submission.loop.call_soon_threadsafe(in_loop)

    def _prune(self) -> None:
        now = time.monotonic()
        if now - self._pruned < _PRUNE_EVERY_S:
            return
        try:
            # Ids rise with time: what is before the first row that is young enough is old.
            young = self._db.execute(
                "SELECT id FROM snapshots NOT INDEXED WHERE received_ns >= ? ORDER BY id LIMIT 1",
                (time.time_ns() - self._retention_ns,),
            ).fetchone()
            first = young[0] if young else self._next_id
            deleted = self._db.execute(
                "DELETE FROM snapshots WHERE id IN (SELECT id FROM snapshots WHERE id < ?"
                " AND id NOT IN (SELECT latest FROM vantages) LIMIT ?)",
                (first, _PRUNE_ROWS),
            ).rowcount
            if deleted < _PRUNE_ROWS:
                self._prune_log(first)
        except (sqlite3.Error, OSError, EvidenceError) as error:
            self.error = _advice(error, self._path)
            deleted = 0
        if deleted < _PRUNE_ROWS:  # otherwise go on with the next commit
            self._pruned = now

    def _prune_log(self, first_id: int) -> None:
        """Remove the segments that hold no row from ``first_id`` on."""
        found = self._db.execute(
            "SELECT leaf FROM snapshots WHERE id >= ? AND leaf IS NOT NULL ORDER BY id LIMIT 1", (first_id,)
        ).fetchone()
        first = self.evidence.prunable(found[0] if found else self.evidence.state.size)
        if first <= self.evidence.first:
            return
        self._db.execute("BEGIN IMMEDIATE")
        try:
            silent = self._db.execute(
                "SELECT v.vantage, s.leaf, s.offset, s.size FROM vantages v JOIN snapshots s ON s.id = v.latest"
                " WHERE v.kept IS NULL AND s.leaf < ?",
                (first,),
            ).fetchall()
            kept = self.evidence.read(Place(*row[1:]) for row in silent)
            for (vantage, *_), sealed in zip(silent, kept, strict=True):
                if sealed is not None:
                    self._db.execute("UPDATE vantages SET kept = ? WHERE vantage = ?", (leaf_of(sealed), vantage))
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise
        self.evidence.prune(first)

    # ---- reading

    def replay_state(self) -> dict[LaneKey, int]:
        """Highest counters, as the replay guard wants them at start."""
        with self._reading() as db:
            rows = db.execute("SELECT vantage, epoch, lane, counter FROM replay").fetchall()
        return {(v, _unsigned(e), lane): _unsigned(c) for v, e, lane, c in rows}

    def vantages(self) -> list[VantageRow]:
        """Every vantage with its latest accepted snapshot."""
        with self._reading() as db:
            found = db.execute(
                f"SELECT {_COLUMNS}, v.first_seen_ns, v.accepted FROM vantages v JOIN snapshots s ON s.id = v.latest"
            ).fetchall()
        totals = {vantage: (first_seen_ns, accepted) for vantage, *_, first_seen_ns, accepted in found}
        rows = self._rows(found)
        return [VantageRow(row.vantage_id, *totals[row.vantage_id], latest=row) for row in rows]

    def history(self, vantage_id: str, since_ns: int, limit: int) -> list[Row]:
        """Rows of one vantage, accepted and rejected, newest first."""
        with self._reading() as db:
            found = db.execute(
                f"SELECT {_COLUMNS} FROM {_SNAPSHOTS} WHERE s.vantage = ? AND s.received_ns >= ?"
                " ORDER BY s.received_ns DESC, s.id DESC LIMIT ?",
                (vantage_id, min(since_ns, _U63 - 1), limit),
            ).fetchall()
        return self._rows(found)

    def find(self, vantage_id: str, epoch_id: int, lane: int, counter: int) -> Row | None:
        """The row of one counter, or None if it is unknown or no longer kept."""
        with self._reading() as db:
            found = db.execute(
                f"SELECT {_COLUMNS} FROM {_SNAPSHOTS} WHERE s.vantage=? AND s.epoch=? AND s.lane=? AND s.counter=?",
                (vantage_id, _signed(epoch_id), lane, _signed(counter)),
            ).fetchall()
        return next(iter(self._rows(found)), None)

    def baselines(self) -> list[Kept]:
        """Every baseline that is kept, oldest first."""
        with self._reading() as db:
            rows = db.execute("SELECT vantage, id, json FROM baselines ORDER BY seen_ns").fetchall()
        return [Kept(*row) for row in rows]

    def _rows(self, found: Sequence[tuple[Any, ...]]) -> list[Row]:
        """Rows of ``_COLUMNS`` with their snapshots; those that were pruned meanwhile are left out."""
        logged = [Place(*row[9:12]) for row in found if row[9] is not None and row[12] is None]
        try:
            read = dict(zip(logged, self.evidence.read(logged), strict=True))
        except EvidenceError as error:
            raise StoreError(str(error)) from None
        rows: list[Row] = []
        for vantage, epoch, lane, counter, tick, received_ns, reason, mismatch, digest, *place, kept in (
            row[:13] for row in found
        ):
            leaf: int | None = place[0]
            sealed = _NOT_KEPT if leaf is None else sealed_of(kept) if kept is not None else read[Place(*place)]
            if sealed is None:
                continue
            rows.append(
                Row(
                    vantage,
                    _unsigned(epoch),
                    lane,
                    _unsigned(counter),
                    _unsigned(tick),
                    received_ns,
                    RejectReason(reason) if reason else None,
                    bool(mismatch),
                    sealed,
                    leaf,
                    digest,
                )
            )
        return rows

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        # A connection of its own: readers never wait for the writer in WAL mode, and may be on any thread.
        try:
            db = sqlite3.connect(f"{self._path.resolve().as_uri()}?mode=ro", uri=True)
        except sqlite3.Error as error:
            raise StoreError(_advice(error, self._path)) from None
        try:
            yield db
        except sqlite3.Error as error:
            raise StoreError(_advice(error, self._path)) from None
        finally:
            db.close()


_NOT_KEPT: Final = Sealed(b"", b"", b"")
_COLUMNS: Final = (
    "s.vantage, s.epoch, s.lane, s.counter, s.tick, s.received_ns, s.reason, s.mismatch, s.digest,"
    " s.leaf, s.offset, s.size, v.kept"
)
_SNAPSHOTS: Final = "snapshots s LEFT JOIN vantages v ON v.vantage = s.vantage AND v.latest = s.id"


def _claim(path: Path) -> int:
    """Lock against a second broker: two owners of one replay state would accept a counter twice."""
    try:
        return claim(path)
    except BlockingIOError:
        raise StoreError(f"another broker uses {path}: stop it, or give this one its own database") from None
    except OSError as error:
        raise StoreError(f"cannot open {path}.lock: {error.strerror}; does {path.parent} exist?") from None


def _open(path: Path, max_bytes: int, busy_timeout_s: float) -> sqlite3.Connection:
    try:
        # Snapshots are for the broker's user only; SQLite gives -wal and -shm the mode of the database.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        # The connection is used by the writer thread only, once it runs.
        db = sqlite3.connect(path, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False)
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"cannot open {path}: {error}") from None
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")  # a commit survives power loss: acknowledgements follow it
        page = int(db.execute("PRAGMA page_size").fetchone()[0])
        db.execute(f"PRAGMA max_page_count = {max(max_bytes // page, 1)}")
        version = int(db.execute("PRAGMA user_version").fetchone()[0])
        if version == 0:
            size, root, segment, end = NEW_LOG
            db.executescript(
                f"BEGIN; {_SCHEMA} INSERT INTO log VALUES (1, {size}, x'{root.hex()}', {segment}, {end});"
                f" PRAGMA user_version = {_SCHEMA_VERSION}; COMMIT;"
            )
        elif version == 1:
            raise StoreError(
                f"{path} has schema 1, which no released broker wrote and this one does not read: move the file away "
                "and start again"
            )
        elif version != _SCHEMA_VERSION:
            raise StoreError(
                f"{path} has schema {version}, this broker knows {_SCHEMA_VERSION}: install the broker "
                "that wrote it, or move the file away"
            )
    except sqlite3.Error as error:
        db.close()
        raise StoreError(_advice(error, path)) from None
    except StoreError:
        db.close()
        raise
    return db


def _advice(error: Exception, path: Path) -> str:
    if isinstance(error, (StoreError, EvidenceError)):
        return str(error)
    name = getattr(error, "sqlite_errorname", "") or ""
    if name.startswith("SQLITE_FULL"):
        return (
            f"{path} cannot grow: free space on its disk, raise database_max_mib or lower retention_s; "
            "agents keep their snapshots meanwhile"
        )
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return f"{path} is locked by another program: end it; agents keep their snapshots meanwhile"
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return (
            f"{path} is damaged ({error}): put it back from a backup, or move it and {path.name}.evidence away "
            "together and restart the broker; that starts a new history"
        )
    return f"{path}: {error} ({name or type(error).__name__})"
