# SPDX-License-Identifier: Apache-2.0
import asyncio
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from wire_samples import new_host, parcel, row

from mvps.broker.store import NOTHING, Kept, Row, Store
from mvps.broker.tables import StoreError
from mvps.trust.checkpoint import Checkpoint
from mvps.trust.evidence_log import EvidenceError, leaf_of
from mvps.trust.gate import Run
from mvps.trust.limits import MAX_BASELINES_KEPT
from mvps.trust.merkle import Tree, included, leaf_hash
from mvps.trust.note import Note, NoteSignature
from mvps.trust.reasons import RejectReason
from mvps.trust.replay import Recorded
from mvps.trust.seal import Sealed, parse_header

Open = Callable[..., Store]


@pytest.fixture
async def reopen(tmp_path: Path) -> AsyncIterator[Open]:
    stores: list[Store] = []

    def reopen(**changes: object) -> Store:
        for store in stores:
            store.close()
        arguments = {"retention_s": 3600.0, "max_bytes": 64 << 20, "busy_timeout_s": 0.05} | changes
        stores.append(Store(tmp_path / "broker.db", **arguments))  # type: ignore[arg-type]
        return stores[-1]

    yield reopen
    for store in stores:
        store.close()


def together(*rows: Row) -> list[Row]:
    """The rows as they were received in one message."""
    return [each._replace(received_ns=rows[0].received_ns) for each in rows]


def stored(*rows: Row, first_leaf: int = 0) -> list[Row]:
    """Rows as the store gives them back."""
    found = []
    for each in rows:
        leaf = None if each.reason else first_leaf
        first_leaf += each.reason is None
        sealed = Sealed(b"", b"", b"") if each.reason else each.sealed
        found.append(each._replace(leaf=leaf, sealed=sealed))
    return found


def files(store: Store) -> dict[str, bytes]:
    folder = Path(f"{store._path}.evidence")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


async def test_rows_survive_reopening(reopen: Open) -> None:
    host = new_host()
    rows = [row(host), row(host, reason=RejectReason.MALFORMED), row(host)]
    rows = together(*rows)
    await reopen().submit(parcel(*rows), 0)
    store = reopen()
    assert store.replay_state() == {("host-1", rows[0].epoch_id, 1): rows[-1].counter}
    rows = stored(*rows)
    assert store.history("host-1", 0, 10) == rows[::-1]
    (known,) = store.vantages()
    assert (known.accepted, known.latest) == (2, rows[-1])
    assert store.find("host-1", rows[1].epoch_id, 1, rows[1].counter) == rows[1]
    assert store.find("host-1", rows[1].epoch_id, 2, rows[1].counter) is None


async def test_values_of_64_bits_survive(reopen: Open) -> None:
    extreme = row(new_host())._replace(counter=2**64 - 1, epoch_id=2**63, tick=2**64 - 1)
    store = reopen()
    await store.submit(parcel(extreme), 0)
    assert store.history("host-1", 0, 1) == stored(extreme)
    assert store.replay_state() == {("host-1", 2**63, 1): 2**64 - 1}


async def test_lookups_see_the_commit_they_came_with(reopen: Open) -> None:
    good, bad = row(new_host()), row(new_host("host-2"), reason=RejectReason.INVALID_VALUE)
    keys = [(r.vantage_id, r.epoch_id, r.lane, r.counter) for r in (good, bad)]
    answers: list[Recorded | None] = []
    await reopen().submit(parcel(good, bad), 0, (), [*keys, ("host-3", 0, 1, 1)], then=answers.extend)
    assert answers == [
        Recorded(good.sealed.digest, None),
        Recorded(bad.sealed.digest, RejectReason.INVALID_VALUE),
        None,
    ]


async def test_database_is_private_and_has_one_owner(reopen: Open, tmp_path: Path) -> None:
    await reopen().submit(parcel(row(new_host())), 0)
    for path in tmp_path.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    with pytest.raises(StoreError, match="another broker"):
        Store(tmp_path / "broker.db", retention_s=1, max_bytes=1 << 20)


async def test_full_disk_fails_the_commit_and_everything_built_on_it(reopen: Open) -> None:
    failures: list[int] = []
    committed: list[Run] = []
    store = reopen(max_bytes=256 << 10, on_failure=lambda: failures.append(1), on_commit=committed.extend)
    host = new_host()
    first = row(host)
    await store.submit(parcel(first), 0)
    big = store.submit(parcel(row(host, body=os.urandom(300_000))), 0)
    behind = store.submit(parcel(row(host)), 0)
    for future in (big, behind):
        with pytest.raises(StoreError, match=r"cannot grow|send again"):
            await future
    assert store.fence == 1
    assert "cannot grow: raise database_max_mib" in store.error
    assert store.evidence.head.size == 1
    assert len(failures) == 2
    with pytest.raises(StoreError, match="send again"):
        await store.submit(parcel(row(host)), 0)
    after = row(host)
    await store.submit(parcel(after), store.fence)
    assert store.error == ""
    assert [run.last for run in committed] == [first.counter, after.counter]
    assert store.replay_state() == {("host-1", after.epoch_id, 1): after.counter}


async def test_locked_database_fails_and_recovers(reopen: Open, tmp_path: Path) -> None:
    store = reopen()
    other = sqlite3.connect(tmp_path / "broker.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    before = files(store)
    with pytest.raises(StoreError, match="locked by another program"):
        await store.submit(parcel(row(new_host())), store.fence)
    assert files(store) == before
    other.execute("ROLLBACK")
    other.close()
    await store.submit(parcel(row(new_host())), store.fence)
    assert len(store.history("host-1", 0, 10)) == 1


async def test_retention_keeps_the_latest_of_each_vantage(reopen: Open) -> None:
    store = reopen(retention_s=100.0)
    long_ago = time.time_ns() - 1000 * 10**9
    host, silent = new_host(), new_host("silent")
    for each in (row(host, received_ns=long_ago), row(silent, received_ns=long_ago), row(host)):
        await store.submit(parcel(each), 0)
    store = reopen(retention_s=100.0)
    await store.submit(parcel(row(host)), 0)  # prunes: the first commit after opening
    while len(store.history("host-1", 0, 10)) == 3:
        await asyncio.sleep(0.01)
    assert len(store.history("host-1", 0, 10)) == 2
    assert len(store.history("silent", 0, 10)) == 1
    assert {known.vantage_id for known in store.vantages()} == {"host-1", "silent"}


async def test_history_is_bounded_and_newest_first(reopen: Open) -> None:
    host = new_host()
    start = time.time_ns()
    rows = [row(host, received_ns=start + i) for i in range(5)]
    store = reopen()
    for each in rows:
        await store.submit(parcel(each), 0)
    rows = stored(*rows)
    assert store.history("host-1", start + 2, 2) == [rows[4], rows[3]]
    assert store.history("other", 0, 10) == []


async def test_baselines_are_kept_within_their_limit(reopen: Open) -> None:
    store = reopen()
    for i in range(MAX_BASELINES_KEPT + 3):
        await store.submit(NOTHING, 0, [Kept("host-1", f"{i:016x}", b"{}")])
    assert [kept.baseline_id for kept in reopen().baselines()] == [
        f"{i:016x}" for i in range(3, MAX_BASELINES_KEPT + 3)
    ]


async def test_damaged_and_foreign_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "broker.db"
    path.write_bytes(b"this is no database, whatever it is" * 100)
    with pytest.raises(StoreError, match="is damaged"):
        Store(path, retention_s=1, max_bytes=1 << 20)
    path.unlink()
    with sqlite3.connect(path) as other:
        other.execute("PRAGMA user_version = 99")
    other.close()
    with pytest.raises(StoreError, match="schema 99"):
        Store(path, retention_s=1, max_bytes=1 << 20)
    path.unlink()
    with sqlite3.connect(path) as other:
        other.execute("PRAGMA user_version = 1")
    other.close()
    with pytest.raises(StoreError, match=r"no released broker wrote.*start again"):
        Store(path, retention_s=1, max_bytes=1 << 20)
    with pytest.raises(StoreError, match=r"does .* exist"):
        Store(tmp_path / "absent" / "broker.db", retention_s=1, max_bytes=1 << 20)


async def test_accepted_snapshots_are_leaves_and_rejected_ones_are_not(reopen: Open) -> None:
    host = new_host()
    rows = [row(host), row(host, reason=RejectReason.MALFORMED), row(host), row(new_host("host-2"))]
    store = reopen()
    await store.submit(parcel(*rows[:2]), 0)
    await store.submit(parcel(*rows[2:]), 0)
    leaves = [leaf_of(each.sealed) for each in rows if each.reason is None]
    tree = Tree()
    tree.append(map(leaf_hash, leaves))
    assert reopen().evidence.head == tree.head
    store = reopen()
    found = store.find("host-2", rows[3].epoch_id, 1, rows[3].counter)
    assert found is not None
    assert found.leaf == 2
    assert included(leaf_hash(leaves[2]), 2, tree.head, store.evidence.inclusion(2, 3))
    # A rejected body could be anything, so none of it is kept.
    on_disk = b"".join(path.read_bytes() for path in store._path.parent.rglob("*") if path.is_file())
    assert rows[0].sealed.body in on_disk
    assert rows[1].sealed.tag in on_disk  # the digest of scheme 1
    assert rows[1].sealed.header not in on_disk


async def test_a_mismatch_is_shown_with_its_snapshot(reopen: Open) -> None:
    host = new_host()
    rows = together(row(host), row(host))
    store = reopen()
    await store.submit(parcel(*rows), 0)
    name = ("host-1", rows[0].epoch_id, 1, rows[0].counter)
    await store.submit(NOTHING, 0, mismatches=[name, ("nobody", 1, 1, 1)])
    assert [each.mismatch for each in reopen().history("host-1", 0, 10)] == [False, True]


async def test_a_damaged_leaf_is_not_taken_for_an_equivocation(reopen: Open) -> None:
    store = reopen()
    good = row(new_host())
    await store.submit(parcel(good), 0)
    path = Path(f"{store._path}.evidence/leaves-{0:020d}")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    answers: list[Recorded | None] = []
    await store.submit(NOTHING, 0, (), [(good.vantage_id, good.epoch_id, 1, good.counter)], then=answers.extend)
    assert answers == [None]
    assert store.error == ""


async def test_accepted_snapshots_are_counted_over_groups(reopen: Open) -> None:
    host, other = new_host(), new_host("host-2")
    store = reopen()
    await store.submit(parcel(row(host), row(other), row(host)), 0)
    await store.submit(parcel(row(host), row(host, reason=RejectReason.MALFORMED), row(host)), 0)
    last = row(host)
    await store.submit(parcel(last), 0)
    known = {each.vantage_id: each for each in reopen().vantages()}
    assert (known["host-1"].accepted, known["host-2"].accepted) == (5, 1)
    assert known["host-1"].latest.counter == last.counter


async def test_a_transaction_that_fails_takes_its_leaves_back(reopen: Open) -> None:
    store = reopen()
    host = new_host()
    first = row(host)
    await store.submit(parcel(first), 0)
    before = files(store)
    with pytest.raises(StoreError, match="UNIQUE"):
        await store.submit(parcel(row(host), first), store.fence)
    assert files(store) == before
    following = row(host)
    await store.submit(parcel(following), store.fence)
    store = reopen()
    assert store.history("host-1", 0, 10) == stored(first, following)[::-1]


async def test_retention_removes_segments_and_keeps_what_silent_vantages_said_last(reopen: Open) -> None:
    store = reopen(retention_s=100.0, segment_bytes=1)
    long_ago = time.time_ns() - 1000 * 10**9
    host, silent = new_host(), new_host("silent")
    last = row(silent, received_ns=long_ago)
    for each in (row(silent, received_ns=long_ago), last, row(host, received_ns=long_ago), row(host), row(host)):
        await store.submit(parcel(each), 0)
    store = reopen(retention_s=100.0, segment_bytes=1)
    assert store.evidence.first == 0
    await store.submit(parcel(row(host)), 0)  # prunes: the first commit after opening
    while store.evidence.first == 0:
        await asyncio.sleep(0.01)
    assert store.evidence.first == 3
    kept = [content for name, content in files(store).items() if name.startswith("leaves-")]
    assert len(kept) == 3
    assert store.evidence.bytes_kept == sum(map(len, kept))
    for again in (False, True):
        reopened = reopen() if again else store
        assert reopened.history("silent", 0, 10) == stored(last, first_leaf=1)
        latest = {known.vantage_id: known.latest for known in reopened.vantages()}
        assert latest["silent"] == stored(last, first_leaf=1)[0]
        assert latest["host-1"].leaf == 5
        leaf = leaf_of(latest["host-1"].sealed)
        assert included(leaf_hash(leaf), 5, reopened.evidence.head, reopened.evidence.inclusion(5, 6))
        with pytest.raises(EvidenceError, match="was pruned"):
            reopened.evidence.inclusion(1, 6)
    store = reopen()
    await store.submit(parcel(row(silent)), 0)
    with sqlite3.connect(store._path) as db:
        assert db.execute(
            "SELECT count(*) FROM vantages v JOIN lanes l ON l.vantage = v.number AND l.latest = v.kept_run"
        ).fetchone() == (0,)
    db.close()


MIB = 1 << 20


def on_disk(store: Store) -> int:
    """Bytes of the database, once its journal is in it, and of the log's leaves."""
    with sqlite3.connect(store._path) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    folder = Path(f"{store._path}.evidence")
    return store._path.stat().st_size + sum(path.stat().st_size for path in folder.glob("leaves-*"))


def sealed_ns(each: Row) -> int:
    return parse_header(each.sealed.header).time_ns


async def test_a_full_store_goes_on_and_keeps_the_newest(reopen: Open) -> None:
    bound = 2 * MIB
    store = reopen(max_bytes=bound)
    host, silent = new_host(), new_host("silent")
    first = row(silent)
    await store.submit(parcel(first), 0)
    sent: list[Row] = []
    for number in range(400):
        # Many small commits, and now and then a group that is larger than what is left free.
        group = [row(host, body=os.urandom(12_000)) for _ in range(1 if number % 40 else 15)]
        await asyncio.gather(*(store.submit(parcel(each), 0) for each in group))
        sent += group
        assert store.bytes <= bound
        if number % 100 == 99:
            assert on_disk(store) <= bound
    assert store.fence == 0
    assert store.error == ""
    for again in (False, True):
        store = reopen(max_bytes=bound) if again else store
        history = store.history("host-1", 0, 1000)
        kept, gone = sent[-len(history) :], sent[: -len(history)]
        assert [each.counter for each in history] == [each.counter for each in reversed(kept)]
        assert bound // 2 < sum(each.sealed.size for each in history) < bound
        assert max(map(sealed_ns, gone)) < store.backfill_from_ns <= min(map(sealed_ns, kept))
        # What is there is proved still, in the tree that has all that ever was.
        assert store.evidence.first > 1
        leaf, oldest = leaf_hash(leaf_of(kept[0].sealed)), 1 + len(gone)
        head = store.evidence.head
        assert head.size == 1 + len(sent)
        assert included(leaf, oldest, head, store.evidence.inclusion(oldest, head.size))
        latest = {known.vantage_id: known.latest.sealed for known in store.vantages()}
        assert latest == {"host-1": sent[-1].sealed, "silent": first.sealed}
        if not again:
            assert store.removed_early == len(gone)


async def test_a_store_with_room_removes_nothing_early_and_takes_all_backfill(reopen: Open) -> None:
    store = reopen(max_bytes=2 * MIB)
    host = new_host()
    for _ in range(100):
        await store.submit(parcel(row(host, body=os.urandom(12_000))), 0)
    assert (store.removed_early, store.backfill_from_ns, store.evidence.first) == (0, 0, 0)
    assert len(store.history("host-1", 0, 1000)) == 100


async def test_rejected_snapshots_do_not_fill_the_store_for_good(reopen: Open) -> None:
    bound = MIB
    store = reopen(max_bytes=bound)
    host, other = new_host(), new_host("host-2")
    for _ in range(300):
        await store.submit(parcel(*(row(host, reason=RejectReason.MALFORMED, body=b"?") for _ in range(100))), 0)
        assert store.bytes <= bound
    sent = [row(other, body=os.urandom(12_000)) for _ in range(100)]
    for each in sent:
        await store.submit(parcel(each), 0)
    assert store.fence == 0
    assert on_disk(store) <= bound
    # The database has given its pages to the log.
    assert len(store.history("host-2", 0, 1000)) * 12_000 > bound // 2


async def test_a_bound_that_was_lowered_is_kept_from_the_first_commit_on(reopen: Open) -> None:
    store = reopen(max_bytes=8 * MIB)
    host = new_host()
    for _ in range(100):
        await store.submit(parcel(*(row(host, reason=RejectReason.MALFORMED, body=b"?") for _ in range(200))), 0)
    for _ in range(300):
        await store.submit(parcel(row(host, body=os.urandom(12_000))), 0)
    assert on_disk(store) > 4 * MIB
    store = reopen(max_bytes=2 * MIB)
    last = row(host)
    await store.submit(parcel(last), 0)
    assert on_disk(store) <= 2 * MIB
    assert store.history("host-1", 0, 1)[0].counter == last.counter


async def test_what_is_forgotten_stays_forgotten_when_retention_grows(reopen: Open) -> None:
    store = reopen(retention_s=100.0)
    host = new_host()
    old = row(host, received_ns=time.time_ns() - 1000 * 10**9)
    await store.submit(parcel(old), 0)
    store = reopen(retention_s=100.0)
    await store.submit(parcel(row(host)), 0)  # prunes: the first commit after opening
    while len(store.history("host-1", 0, 10)) == 2:
        await asyncio.sleep(0.01)
    assert reopen(retention_s=1e6).backfill_from_ns == sealed_ns(old) + 1
    assert store.removed_early == 0


async def test_a_damaged_leaf_does_not_keep_a_full_store_from_going_on(reopen: Open) -> None:
    store = reopen(max_bytes=MIB)
    host, silent = new_host(), new_host("silent")
    await store.submit(parcel(row(silent)), 0)
    path = Path(f"{store._path}.evidence/leaves-{0:020d}")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    for _ in range(150):
        await store.submit(parcel(row(host, body=os.urandom(12_000))), 0)
    assert store.fence == 0
    assert store.evidence.first > 0
    assert [known.vantage_id for known in reopen(max_bytes=MIB).vantages()] == ["host-1"]


_CRASHES = """
import asyncio, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from wire_samples import new_host, parcel, row
from mvps.broker import store as module
from mvps.trust.evidence_log import EvidenceLog

def crash(*_):
    os._exit(9)

def crash_once_rows_are_gone(store, _):
    if store._rows_removed:
        crash()

where = sys.argv[3]
if where == "rows gone":
    module.Store._prune_log = crash_once_rows_are_gone
elif where == "silent kept":
    EvidenceLog.prune = crash
elif where == "segment gone":
    EvidenceLog._measure = lambda log, segments, real=EvidenceLog._measure: real(log, segments) if len(
        segments) == len(log.__dict__.get("_segments", segments)) else crash()

async def main():
    store = module.Store(Path(sys.argv[1]), retention_s=3600, max_bytes=1 << 20)
    host = new_host()
    while True:
        each = row(host, body=os.urandom(12_000))
        await store.submit(parcel(each), 0)
        print(each.counter, each.sealed.header.hex(), flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("where", ["rows gone", "silent kept", "segment gone"])
async def test_a_crash_while_room_is_made_leaves_a_store_that_goes_on(reopen: Open, tmp_path: Path, where: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _CRASHES, str(tmp_path / "broker.db"), str(Path(__file__).parent), where],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 9, done.stderr
    sent = [parse_header(bytes.fromhex(line.split()[1])) for line in done.stdout.splitlines()]
    store = reopen(max_bytes=MIB)
    kept = {each.counter for each in store.history("host-1", 0, 1000)}
    gone = [header for header in sent if header.counter not in kept]
    assert gone
    assert max(header.time_ns for header in gone) < store.backfill_from_ns
    assert store.evidence.head.size >= len(sent)
    host = new_host("host-2")
    for _ in range(150):
        await store.submit(parcel(row(host, body=os.urandom(12_000))), 0)
    assert store.fence == 0
    assert on_disk(store) <= MIB


async def test_a_snapshot_changed_on_disk_is_not_shown(reopen: Open) -> None:
    store = reopen()
    await store.submit(parcel(row(new_host())), 0)
    path = Path(f"{store._path}.evidence/leaves-{0:020d}")
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreError, match=r"leaf 0 in .* was changed on disk"):
        store.history("host-1", 0, 10)
    with pytest.raises(StoreError, match=r"leaves-0+ .*backup"):
        reopen()


async def test_a_lost_database_does_not_take_the_log_with_it(reopen: Open) -> None:
    store = reopen()
    await store.submit(parcel(row(new_host())), 0)
    text = Checkpoint("log", *store.evidence.head).text
    store.evidence.checkpoints.append(Note(text, (NoteSignature("log", b"key-", bytes(64)),)))
    store.close()
    before = files(store)
    for path in store._path.parent.glob("broker.db*"):
        if path.is_file():
            path.unlink()
    with pytest.raises(StoreError, match="the database is older than this folder"):
        reopen()
    assert files(store) == before


_SENDER = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from wire_samples import new_host, parcel, row
from mvps.broker.store import Store

async def main():
    store = Store(Path(sys.argv[1]), retention_s=3600, max_bytes=1 << 30, segment_bytes=20_000)
    host = new_host()
    while True:
        rows = [row(host) for _ in range(7)]
        await store.submit(parcel(*rows), 0)
        print(rows[-1].counter, flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("answers", [1, 30])
async def test_what_was_acknowledged_survives_kill_9(reopen: Open, tmp_path: Path, answers: int) -> None:
    sender = subprocess.Popen(
        [sys.executable, "-c", _SENDER, str(tmp_path / "broker.db"), str(Path(__file__).parent)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert sender.stdout is not None
    acknowledged = [int(sender.stdout.readline()) for _ in range(answers)]
    sender.send_signal(signal.SIGKILL)
    acknowledged += [int(line) for line in sender.stdout]
    sender.wait()
    sender.stdout.close()
    store = reopen(segment_bytes=20_000)
    history = store.history("host-1", 0, 1_000_000)
    counters = [each.counter for each in history]
    assert counters == list(range(counters[0], counters[-1] - 1, -1))
    assert counters[0] >= acknowledged[-1]
    assert store.evidence.head.size == len(counters) == counters[0] - (1 << 32) + 1
    tree = Tree()
    tree.append(leaf_hash(leaf_of(each.sealed)) for each in reversed(history))
    assert tree.head == store.evidence.head
    assert store.replay_state() == {("host-1", history[0].epoch_id, 1): counters[0]}
