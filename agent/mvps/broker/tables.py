# SPDX-License-Identifier: Apache-2.0
"""The tables of a broker's database: their schema, how a run is packed into a row, and opening the file."""

from __future__ import annotations

import os
import sqlite3
import struct
from pathlib import Path
from typing import Final, NamedTuple

from mvps.trust.durable import claim
from mvps.trust.evidence_log import NEW_LOG, EvidenceError, Place
from mvps.trust.reasons import RejectReason

_SCHEMA_VERSION: Final = 4
_SCHEMA: Final = """
CREATE TABLE vantages (
    number INTEGER PRIMARY KEY, vantage TEXT NOT NULL UNIQUE, first_seen_ns INTEGER NOT NULL,
    kept_run INTEGER, kept BLOB  -- leaf of the latest snapshot and its run, once the segment it was in is gone
);
CREATE TABLE lanes (             -- counters as ordered() keeps them
    vantage INTEGER NOT NULL, epoch INTEGER NOT NULL, lane INTEGER NOT NULL, counter INTEGER NOT NULL,
    accepted INTEGER NOT NULL,
    latest INTEGER,              -- newest run with an accepted snapshot
    PRIMARY KEY (vantage, epoch, lane)
) WITHOUT ROWID;
CREATE TABLE runs (
    id INTEGER PRIMARY KEY,      -- rises in the order of commits, and so with time and leaf
    vantage INTEGER NOT NULL, epoch INTEGER NOT NULL, lane INTEGER NOT NULL,
    last INTEGER NOT NULL,       -- highest counter in it
    received_ns INTEGER NOT NULL,
    leaf INTEGER, offset INTEGER,  -- place of the first accepted snapshot in the evidence log
    accepted INTEGER NOT NULL,   -- snapshots
    sealed_ns INTEGER NOT NULL,  -- latest sealing time of an accepted one; 0 if there is none
    entries BLOB NOT NULL
);
CREATE UNIQUE INDEX runs_by_counter ON runs (vantage, epoch, lane, last);
CREATE TABLE mismatches (        -- accepted snapshots whose recomputed decision differs
    vantage INTEGER NOT NULL, epoch INTEGER NOT NULL, lane INTEGER NOT NULL, counter INTEGER NOT NULL,
    seen_ns INTEGER NOT NULL, PRIMARY KEY (vantage, epoch, lane, counter)
) WITHOUT ROWID;
CREATE TABLE baselines (
    vantage TEXT NOT NULL, id TEXT NOT NULL, seen_ns INTEGER NOT NULL, json BLOB NOT NULL,
    PRIMARY KEY (vantage, id)
) WITHOUT ROWID;
CREATE TABLE log (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    size INTEGER NOT NULL, root BLOB NOT NULL, segment INTEGER NOT NULL, end INTEGER NOT NULL
);
CREATE TABLE kept (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    backfill_from_ns INTEGER NOT NULL  -- every accepted snapshot that is forgotten was sealed before this
);
"""
_U63: Final = 1 << 63


class StoreError(Exception):
    """The store cannot be opened, or did not commit. The message says what to do."""


class Entry(NamedTuple):
    """A snapshot in a run, as native/gate.c writes it; the digests of rejected ones follow after all entries.

    place: of an accepted one. digest: of a rejected one.
    """

    counter: int
    tick: int
    reason: RejectReason | None
    place: Place | None
    digest: bytes


_ENTRY: Final = struct.Struct("<QQIB3x")  # counter, tick, bytes of the leaf (0: rejected), reason
_DIGEST_BYTES: Final = 32


def entries_of(packed: bytes, leaf: int | None, offset: int | None) -> list[Entry]:
    """The entries of a run. leaf, offset: place of its first leaf; None where there is none or it does not matter."""
    found: list[Entry] = []
    # What is left after all entries are the digests of the rejected ones among them.
    digests = at = 0
    while at + _ENTRY.size + digests * _DIGEST_BYTES <= len(packed):
        counter, tick, size, reason = _ENTRY.unpack_from(packed, at)
        place = None
        if size and leaf is not None and offset is not None:
            place = Place(leaf, offset, size)
            leaf, offset = leaf + 1, offset + size
        digests += size == 0
        found.append(Entry(counter, tick, RejectReason(reason) if reason else None, place, b""))
        at += _ENTRY.size
    for number, entry in enumerate(found):
        if entry.place is None:
            found[number] = entry._replace(digest=packed[at : at + _DIGEST_BYTES])
            at += _DIGEST_BYTES
    return found


def ordered(counter: int) -> int:
    """A u64 as SQLite keeps a counter: its order stays the same."""
    return counter - _U63


def unordered(counter: int) -> int:
    """What :func:`ordered` was given."""
    return counter + _U63


def signed(value: int) -> int:
    """A u64 as SQLite keeps it where order does not matter: two's complement, so that small ones look as they are."""
    return value - (1 << 64) if value >= _U63 else value


def unsigned(value: int) -> int:
    """What :func:`signed` was given."""
    return value + (1 << 64) if value < 0 else value


class StoredRun(NamedTuple):
    """A row of ``runs``: the columns of ``RUN_COLUMNS``."""

    id: int
    vantage: int
    epoch: int
    lane: int
    received_ns: int
    leaf: int | None
    offset: int | None
    entries: bytes


RUN_COLUMNS: Final = "r.id, r.vantage, r.epoch, r.lane, r.received_ns, r.leaf, r.offset, r.entries"
# For each vantage its newest run with an accepted snapshot, which is never pruned.
LATEST_RUNS: Final = "SELECT vantage, sum(accepted) AS accepted, max(latest) AS latest FROM lanes GROUP BY vantage"


def newest_entry(run: StoredRun) -> Entry:
    """The last accepted entry of a run that has one."""
    return [entry for entry in entries_of(run.entries, run.leaf, run.offset) if entry.place is not None][-1]


def claim_database(path: Path) -> int:
    """Lock against a second broker: two owners of one replay state would accept a counter twice."""
    try:
        return claim(path)
    except BlockingIOError:
        raise StoreError(f"another broker uses {path}: stop it, or give this one its own database") from None
    except OSError as error:
        raise StoreError(f"cannot open {path}.lock: {error.strerror}; does {path.parent} exist?") from None


def open_database(path: Path, max_bytes: int, busy_timeout_s: float) -> sqlite3.Connection:
    """The database for its writer, made if there is none. StoreError if it cannot be had or is of another version."""
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
                " INSERT INTO kept VALUES (1, 0);"
                f" PRAGMA user_version = {_SCHEMA_VERSION}; COMMIT;"
            )
        elif version < _SCHEMA_VERSION:
            raise StoreError(
                f"{path} has schema {version}, which no released broker wrote and this one does not read: move the "
                "file away and start again"
            )
        elif version != _SCHEMA_VERSION:
            raise StoreError(
                f"{path} has schema {version}, this broker knows {_SCHEMA_VERSION}: install the broker "
                "that wrote it, or move the file away"
            )
    except sqlite3.Error as error:
        db.close()
        raise StoreError(advice(error, path)) from None
    except StoreError:
        db.close()
        raise
    return db


def advice(error: Exception, path: Path) -> str:
    """What an error of the database means and what to do."""
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
