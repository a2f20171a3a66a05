# SPDX-License-Identifier: Apache-2.0
import asyncio
import os
import sqlite3
import stat
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from wire_samples import Host, new_host

from mvps.broker.store import Kept, Row, Store, StoreError
from mvps.trust.limits import MAX_BASELINES_KEPT
from mvps.trust.reasons import RejectReason
from mvps.trust.replay import Recorded
from mvps.trust.seal import parse_header

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


def row(host: Host, *, reason: RejectReason | None = None, received_ns: int = 0, body: bytes | None = None) -> Row:
    sealed = host.seal(body)
    header = parse_header(sealed.header)
    received = received_ns or time.time_ns()
    return Row(
        host.vantage_id, header.epoch_id, header.lane, header.counter, header.tick, received, reason, False, sealed
    )


async def test_rows_survive_reopening(reopen: Open) -> None:
    host = new_host()
    rows = [row(host), row(host, reason=RejectReason.MALFORMED), row(host)]
    await reopen().submit(rows, 0)
    store = reopen()
    assert store.replay_state() == {("host-1", 0, 1): rows[-1].counter}
    assert store.history("host-1", 0, 10) == sorted(rows, key=lambda r: (r.received_ns, r.counter), reverse=True)
    (known,) = store.vantages()
    assert (known.accepted, known.latest) == (2, rows[-1])


async def test_values_of_64_bits_survive(reopen: Open) -> None:
    extreme = row(new_host())._replace(counter=2**64 - 1, epoch_id=2**63, tick=2**64 - 1)
    store = reopen()
    await store.submit([extreme], 0)
    assert store.history("host-1", 0, 1) == [extreme]
    assert store.replay_state() == {("host-1", 2**63, 1): 2**64 - 1}


async def test_lookups_see_the_commit_they_came_with(reopen: Open) -> None:
    good, bad = row(new_host()), row(new_host("host-2"), reason=RejectReason.INVALID_VALUE)
    keys = [(r.vantage_id, r.epoch_id, r.lane, r.counter) for r in (good, bad)]
    answers = await reopen().submit([good, bad], 0, (), [*keys, ("host-3", 0, 1, 1)])
    assert answers == [
        Recorded(good.sealed.digest, None),
        Recorded(bad.sealed.digest, RejectReason.INVALID_VALUE),
        None,
    ]


async def test_database_is_private_and_has_one_owner(reopen: Open, tmp_path: Path) -> None:
    await reopen().submit([row(new_host())], 0)
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    with pytest.raises(StoreError, match="another broker"):
        Store(tmp_path / "broker.db", retention_s=1, max_bytes=1 << 20)


async def test_full_disk_fails_the_commit_and_everything_built_on_it(reopen: Open) -> None:
    failures: list[int] = []
    committed: list[Row] = []
    store = reopen(max_bytes=256 << 10, on_failure=lambda: failures.append(1), on_commit=committed.extend)
    host = new_host()
    first = row(host)
    await store.submit([first], 0)
    big = store.submit([row(host, body=os.urandom(300_000))], 0)
    behind = store.submit([row(host)], 0)
    for future in (big, behind):
        with pytest.raises(StoreError, match=r"cannot grow|send again"):
            await future
    assert store.fence == 1
    assert "free space" in store.error
    assert len(failures) == 2
    with pytest.raises(StoreError, match="send again"):
        await store.submit([row(host)], 0)
    after = row(host)
    await store.submit([after], store.fence)
    assert store.error == ""
    assert committed == [first, after]
    assert store.replay_state() == {("host-1", 0, 1): after.counter}


async def test_locked_database_fails_and_recovers(reopen: Open, tmp_path: Path) -> None:
    store = reopen()
    other = sqlite3.connect(tmp_path / "broker.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="locked by another program"):
        await store.submit([row(new_host())], store.fence)
    other.execute("ROLLBACK")
    other.close()
    await store.submit([row(new_host())], store.fence)
    assert len(store.history("host-1", 0, 10)) == 1


async def test_retention_keeps_the_latest_of_each_vantage(reopen: Open) -> None:
    store = reopen(retention_s=100.0)
    long_ago = time.time_ns() - 1000 * 10**9
    host, silent = new_host(), new_host("silent")
    await store.submit([row(host, received_ns=long_ago), row(silent, received_ns=long_ago), row(host)], 0)
    store = reopen(retention_s=100.0)
    await store.submit([row(host)], 0)  # prunes: the first commit after opening
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
    await store.submit(rows, 0)
    assert store.history("host-1", start + 2, 2) == [rows[4], rows[3]]
    assert store.history("other", 0, 10) == []


async def test_baselines_are_kept_within_their_limit(reopen: Open) -> None:
    store = reopen()
    for i in range(MAX_BASELINES_KEPT + 3):
        await store.submit([], 0, [Kept("host-1", f"{i:016x}", b"{}")])
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
    with pytest.raises(StoreError, match=r"does .* exist"):
        Store(tmp_path / "absent" / "broker.db", retention_s=1, max_bytes=1 << 20)
