# SPDX-License-Identifier: Apache-2.0
"""What a broker keeps: sealed snapshots as they came, the highest counters, and baselines, in SQLite.

One writer thread owns the database. It takes everything that waits, writes it in one transaction (a group
commit), and only then are the futures of the waiting streams resolved, so that an acknowledgement is never
ahead of the disk. Replay state and snapshots are in the same transaction.

When a commit fails (disk full, database locked), everything that was submitted on top of the lost state
must fail too, or a later snapshot would move the counters past the lost ones. The *fence* does that: it
rises with every failure, and a submission made under an older fence is refused.
"""

from __future__ import annotations

import asyncio
import fcntl
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

from mvps.trust.limits import MAX_BASELINES_KEPT
from mvps.trust.reasons import RejectReason
from mvps.trust.replay import LaneKey, Recorded
from mvps.trust.seal import Sealed

_SCHEMA_VERSION: Final = 1
_SCHEMA: Final = """
CREATE TABLE replay (
    vantage TEXT NOT NULL, epoch INTEGER NOT NULL, lane INTEGER NOT NULL, counter INTEGER NOT NULL,
    PRIMARY KEY (vantage, epoch, lane)
) WITHOUT ROWID;
CREATE TABLE snapshots (
    id INTEGER PRIMARY KEY,
    vantage TEXT NOT NULL, epoch INTEGER NOT NULL, lane INTEGER NOT NULL, counter INTEGER NOT NULL,
    tick INTEGER NOT NULL, received_ns INTEGER NOT NULL,
    reason INTEGER NOT NULL,    -- 0: accepted
    mismatch INTEGER NOT NULL,  -- 1: the recomputed decision differs
    header BLOB NOT NULL, body BLOB NOT NULL, tag BLOB NOT NULL,
    UNIQUE (vantage, epoch, lane, counter)
);
CREATE INDEX snapshots_by_time ON snapshots (received_ns);
CREATE INDEX snapshots_by_vantage ON snapshots (vantage, received_ns);
CREATE TABLE vantages (
    vantage TEXT PRIMARY KEY, first_seen_ns INTEGER NOT NULL, accepted INTEGER NOT NULL,
    latest INTEGER NOT NULL     -- snapshots.id; never pruned
) WITHOUT ROWID;
CREATE TABLE baselines (
    vantage TEXT NOT NULL, id TEXT NOT NULL, seen_ns INTEGER NOT NULL, json BLOB NOT NULL,
    PRIMARY KEY (vantage, id)
) WITHOUT ROWID;
"""
_PRUNE_EVERY_S: Final = 30.0
_PRUNE_ROWS: Final = 5000
_GROUP: Final = 4096  # submissions in one transaction
_U63: Final = 1 << 63


class StoreError(Exception):
    """The store cannot be opened, or did not commit. The message says what to do."""


class Row(NamedTuple):
    """One verified snapshot. ``reason`` is None when it was accepted."""

    vantage_id: str
    epoch_id: int
    lane: int
    counter: int
    tick: int
    received_ns: int
    reason: RejectReason | None
    mismatch: bool
    sealed: Sealed


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
    ) -> None:
        self._path = path
        self._retention_ns = int(retention_s * 1e9)
        self._on_commit = on_commit
        self._on_failure = on_failure
        self._lock = _claim(path)
        try:
            self._db = _open(path, max_bytes, busy_timeout_s)
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
                for submission in group:
                    self._insert(submission)
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
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

    def _insert(self, submission: _Submission) -> None:
        for row in submission.rows:
            key = (row.vantage_id, _signed(row.epoch_id), row.lane)
            counter = _signed(row.counter)
            identity = self._db.execute(
                "INSERT INTO snapshots (vantage, epoch, lane, counter, tick, received_ns, reason, mismatch,"
                " header, body, tag) VALUES (?,?,?,?,?,?,?,?,?,?,?)",
                (
                    *key,
                    counter,
                    _signed(row.tick),
                    row.received_ns,
                    row.reason or 0,
                    row.mismatch,
                    *row.sealed,
                ),
            ).lastrowid
            # The guard only lets rising counters through, so the last row of a lane is its highest.
            self._db.execute("INSERT OR REPLACE INTO replay VALUES (?,?,?,?)", (*key, counter))
            if row.reason is None:
                self._db.execute(
                    "INSERT INTO vantages VALUES (?,?,1,?) ON CONFLICT (vantage) DO UPDATE SET"
                    " accepted = accepted + 1, latest = excluded.latest",
                    (row.vantage_id, row.received_ns, identity),
                )
        for kept in submission.baselines:
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
            "SELECT header, body, tag, reason FROM snapshots WHERE vantage=? AND epoch=? AND lane=? AND counter=?",
            (vantage_id, _signed(epoch_id), lane, _signed(counter)),
        ).fetchone()
        if found is None:
            return None
        return Recorded(Sealed(*found[:3]).digest, RejectReason(found[3]) if found[3] else None)

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
            deleted = self._db.execute(
                "DELETE FROM snapshots WHERE id IN (SELECT id FROM snapshots WHERE received_ns < ?"
                " AND id NOT IN (SELECT latest FROM vantages) LIMIT ?)",
                (time.time_ns() - self._retention_ns, _PRUNE_ROWS),
            ).rowcount
        except sqlite3.Error as error:
            self.error = _advice(error, self._path)
            deleted = 0
        if deleted < _PRUNE_ROWS:  # otherwise go on with the next commit
            self._pruned = now

    # ---- reading

    def replay_state(self) -> dict[LaneKey, int]:
        """Highest counters, as the replay guard wants them at start."""
        with self._reading() as db:
            rows = db.execute("SELECT vantage, epoch, lane, counter FROM replay").fetchall()
        return {(v, _unsigned(e), lane): _unsigned(c) for v, e, lane, c in rows}

    def vantages(self) -> list[VantageRow]:
        """Every vantage with its latest accepted snapshot."""
        with self._reading() as db:
            rows = db.execute(
                f"SELECT v.first_seen_ns, v.accepted, {_COLUMNS} FROM vantages v JOIN snapshots s ON s.id = v.latest"
            ).fetchall()
        return [VantageRow(row[2], row[0], row[1], _row(row[2:])) for row in rows]

    def history(self, vantage_id: str, since_ns: int, limit: int) -> list[Row]:
        """Rows of one vantage, accepted and rejected, newest first."""
        with self._reading() as db:
            rows = db.execute(
                f"SELECT {_COLUMNS} FROM snapshots s WHERE s.vantage = ? AND s.received_ns >= ?"
                " ORDER BY s.received_ns DESC, s.id DESC LIMIT ?",
                (vantage_id, min(since_ns, _U63 - 1), limit),
            ).fetchall()
        return [_row(row) for row in rows]

    def baselines(self) -> list[Kept]:
        """Every baseline that is kept, oldest first."""
        with self._reading() as db:
            rows = db.execute("SELECT vantage, id, json FROM baselines ORDER BY seen_ns").fetchall()
        return [Kept(*row) for row in rows]

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


_COLUMNS: Final = (
    "s.vantage, s.epoch, s.lane, s.counter, s.tick, s.received_ns, s.reason, s.mismatch, s.header, s.body, s.tag"
)


def _row(columns: tuple[Any, ...]) -> Row:
    vantage, epoch, lane, counter, tick, received_ns, reason, mismatch, *sealed = columns
    return Row(
        vantage,
        _unsigned(epoch),
        lane,
        _unsigned(counter),
        _unsigned(tick),
        received_ns,
        RejectReason(reason) if reason else None,
        bool(mismatch),
        Sealed(*sealed),
    )


def _claim(path: Path) -> int:
    """Lock against a second broker: two owners of one replay state would accept a counter twice."""
    try:
        lock = os.open(
            path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
        )
    except OSError as error:
        raise StoreError(f"cannot open {path}.lock: {error.strerror}; does {path.parent} exist?") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise StoreError(f"another broker uses {path}: stop it, or give this one its own database") from None
    return lock


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
            db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_SCHEMA_VERSION}; COMMIT;")
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
    name = getattr(error, "sqlite_errorname", "") or ""
    if name.startswith("SQLITE_FULL"):
        return (
            f"{path} cannot grow: free space on its disk, raise database_max_mib or lower retention_s; "
            "agents keep their snapshots meanwhile"
        )
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return f"{path} is locked by another program: end it; agents keep their snapshots meanwhile"
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return f"{path} is damaged ({error}): move it away and restart the broker; history before is lost"
    return f"{path}: {error} ({name or type(error).__name__})"
