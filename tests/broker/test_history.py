# SPDX-License-Identifier: Apache-2.0
"""The history in both of its databases: what goes in comes out, late replaces missing, outages are counted."""

from __future__ import annotations

import math
import sqlite3
import stat
import time
from pathlib import Path

import pytest
from postgres_server import PostgresServer
from tests.waiting import until

from mvps.broker.bundle import NO_FIGURES, Bundle, Figures, Report, Status
from mvps.broker.history import SERVICE_FIGURES, History, HistoryError, KindRow, ServiceRow

OF_TENANTS = ("health", "tenants", "changes", "policies", "incidents")
T = 10**9
NOW = time.time_ns() // T * T
MM = Figures(3, "kernel", 17.25, 6.5, "mm")


def bundle(tick: int, *reports: Report, cell: str = "") -> Bundle:
    missing = tuple(report.vantage_id for report in reports if report.status is Status.MISSING)
    heard = tuple(report for report in reports if report.status is not Status.MISSING)
    return Bundle(cell, NOW + tick * T, T, NOW + tick * T + 7, heard, missing)


def report(name: str, tick: int = 0, status: Status = Status.REPORTED, reason: int = 0) -> Report:
    missing = status is Status.MISSING
    return Report(
        name, NOW + tick * T, status, 0 if missing else NOW + tick * T + 5, reason, NO_FIGURES if missing else MM
    )


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/history.db"
    server: PostgresServer = request.getfixturevalue("server")
    _empty(server.url)
    return server.url


def _empty(url: str) -> None:
    import psycopg

    with psycopg.connect(url) as connection:
        for name in ("history", "bundles", "reports", "fleet_kinds", "services", *OF_TENANTS):
            connection.execute(f"DROP TABLE IF EXISTS mvps_{name}")


def filled(url: str, **options: float) -> History:
    history = History(url, retention_s=options.pop("retention_s", 3600), **options)  # type: ignore[arg-type]
    for tick in range(4):
        history.put_bundle(bundle(tick, report("a", tick), report("b", tick, Status.MISSING), cell="x"))
        history.put_bundle(bundle(tick, report("c", tick, Status.REJECTED, reason=28), cell="y"))
    until(lambda: history.status().waiting == 0)
    return history


def test_what_goes_in_comes_out(url: str):
    history = filled(url)
    rows = history.bundles()
    assert [(row.tick_ns - NOW) // T for row in rows] == [3, 3, 2, 2, 1, 1, 0, 0]
    assert (rows[0].cell, rows[0].reported, rows[0].missing, rows[0].rejected) == ("x", 1, 1, 0)
    assert (rows[1].cell, rows[1].reported, rows[1].missing, rows[1].rejected) == ("y", 0, 0, 1)
    assert rows[0].closed_ns == NOW + 3 * T + 7
    assert history.tick(NOW) == [
        ("x", report("a")),
        ("x", report("b", 0, Status.MISSING)),
        ("y", report("c", 0, Status.REJECTED, reason=28)),
    ]
    assert history.vantage("a", limit=2) == [report("a", 3), report("a", 2)]
    history.close()


def test_the_fleets_decisions(url: str):
    history = History(url, retention_s=3600)
    sources = (("host=a", "LOCAL_FAULT"), ("b", "SUSPECTED_BYZANTINE"))
    rows = [
        KindRow(NOW + tick * T, kind, 2, 5, 17.5, 0.25, 18.0, 1, 7, *((0.98, -math.inf, sources) if tick else ()))
        for tick in (1, 0)
        for kind in ("blk", "mm")
    ]
    history.put_kinds(rows)
    history.put_kinds(rows[:1])  # of a tick that is there
    until(lambda: history.status().waiting == 0)
    assert history.kinds() == rows
    assert history.kinds(kind="mm", limit=1) == [rows[1]]
    assert history.kinds(since_ns=NOW + 1, until_ns=NOW + T) == rows[:2]
    history.close()


def test_the_services_ticks(url: str):
    history = History(url, retention_s=3600)
    every = {name: 0.5 + place for place, name in enumerate(SERVICE_FIGURES)}
    rows = [
        ServiceRow(NOW + tick * T, name, 3, 4, figures)
        for tick, figures in ((2, every), (1, {"d2_net": math.inf, "net_c1": 0.0}), (0, {}))
        for name in ("chat", "search")
    ]
    history.put_services(rows)
    history.put_services(rows[:1])  # of a tick that is there
    until(lambda: history.status().waiting == 0)
    assert history.service("chat") == rows[::2]
    assert history.service("search", since_ns=NOW + 1, limit=1) == [rows[1]]
    assert history.service("chat", until_ns=NOW + T) == rows[2::2]
    assert history.service("nobody") == []
    history.close()


def test_questions_can_be_narrowed(url: str):
    history = filled(url)
    rows = history.bundles(cell="x", since_ns=NOW + T, until_ns=NOW + 2 * T)
    assert [(row.cell, (row.tick_ns - NOW) // T) for row in rows] == [("x", 2), ("x", 1)]
    assert [name for name, _ in history.tick(NOW, "y")] == ["y"]
    assert [r.tick_ns for r in history.vantage("c", since_ns=NOW + 3 * T)] == [NOW + 3 * T]
    assert len(history.bundles(limit=3)) == 3
    history.close()


def test_late_takes_the_place_of_missing_and_of_nothing_else(url: str):
    history = filled(url)
    late = report("b", 1, Status.BACKFILL)
    history.put_late(late, "x")
    history.put_late(report("a", 1, Status.LATE), "x")
    until(lambda: history.status().waiting == 0)
    assert history.vantage("b", since_ns=NOW + T, until_ns=NOW + T) == [late]
    assert history.vantage("a", since_ns=NOW + T, until_ns=NOW + T) == [report("a", 1)]
    assert [row.late for row in history.bundles(cell="x")] == [0, 0, 1, 0]
    history.close()


def test_a_second_opening_finds_everything(url: str):
    filled(url).close()
    history = History(url, retention_s=3600)
    assert len(history.bundles()) == 8
    history.close()


def test_what_is_older_than_the_retention_goes(url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mvps.broker.history._PRUNE_EVERY_S", 0.0)
    history = filled(url)
    old = Bundle("x", NOW - 7200 * T, T, NOW - 7200 * T, (report("a", -7200),))
    history.put_bundle(old)
    until(lambda: history.status().waiting == 0)
    history.put_bundle(bundle(4, report("a", 4)))
    until(lambda: bool(history.vantage("a", since_ns=NOW + 4 * T)))
    until(lambda: history.vantage("a", until_ns=NOW - 7000 * T) == [])
    assert len(history.vantage("a")) == 5
    history.close()


def test_what_an_older_broker_kept_is_taken_over(tmp_path: Path):
    url = f"sqlite:///{tmp_path}/history.db"
    filled(url).close()
    with sqlite3.connect(tmp_path / "history.db") as db:
        for column in ("c2_gm", "c2_gm_seed"):
            db.execute(f"ALTER TABLE mvps_fleet_kinds DROP COLUMN {column}")
        db.execute("UPDATE mvps_history SET version = 1")
        db.execute(f"INSERT INTO mvps_fleet_kinds VALUES ({NOW}, 'mm', 2, 2, 1.5, 1.0, 2.0, 0, 7, '')")
    for _ in range(2):
        history = History(url, retention_s=3600)
        assert history.kinds(until_ns=NOW) == [KindRow(NOW, "mm", 2, 2, 1.5, 1.0, 2.0, 0, 7)]
        fresh = KindRow(NOW + T, "mm", 2, 2, 1.5, 1.0, 2.0, 0, 7, 0.97, 0.9)
        history.put_kinds([fresh])
        until(lambda history=history: history.status().waiting == 0)  # type: ignore[misc]
        assert history.kinds(since_ns=NOW + 1) == [fresh]
        assert len(history.bundles()) == 8
        history.close()


def test_a_history_from_before_services_gets_their_table(tmp_path: Path):
    url = f"sqlite:///{tmp_path}/history.db"
    filled(url).close()
    with sqlite3.connect(tmp_path / "history.db") as db:
        db.execute("DROP TABLE mvps_services")
        db.execute("UPDATE mvps_history SET version = 2")
    for _ in range(2):
        history = History(url, retention_s=3600)
        row = ServiceRow(NOW, "chat", 3, 3, {"d2_joint": 1.5})
        history.put_services([row])
        until(lambda history=history: history.status().waiting == 0)  # type: ignore[misc]
        assert history.service("chat") == [row]
        assert len(history.bundles()) == 8
        history.close()
    with sqlite3.connect(tmp_path / "history.db") as db:
        assert db.execute("SELECT version FROM mvps_history").fetchall() == [(4,)]


def test_a_history_from_before_routing_gets_its_columns(tmp_path: Path):
    url = f"sqlite:///{tmp_path}/history.db"
    filled(url).close()
    with sqlite3.connect(tmp_path / "history.db") as db:
        db.execute("ALTER TABLE mvps_services DROP COLUMN exposure")
        db.execute("ALTER TABLE mvps_services DROP COLUMN fall")
        db.execute("UPDATE mvps_history SET version = 3")
    history = History(url, retention_s=3600)
    row = ServiceRow(NOW, "chat", 3, 3, {"d2_joint": 1.5, "exposure": 20.0})
    history.put_services([row])
    until(lambda: history.status().waiting == 0)
    assert history.service("chat") == [row]
    history.close()


def test_another_schema_is_refused_and_says_what_to_do(tmp_path: Path):
    url = f"sqlite:///{tmp_path}/history.db"
    filled(url).close()
    with sqlite3.connect(tmp_path / "history.db") as db:
        db.execute("UPDATE mvps_history SET version = 99")
    with pytest.raises(HistoryError, match=r"schema 99.*another database"):
        History(url, retention_s=3600)


def test_an_sqlite_file_that_is_too_large_loses_its_oldest_ticks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mvps.broker.history._PRUNE_EVERY_S", 0.0)
    history = History(f"sqlite:///{tmp_path}/history.db", retention_s=3600, max_bytes=200_000)
    names = [f"host-{n}" for n in range(100)]
    for tick in range(200):
        history.put_bundle(bundle(tick, *(report(name, tick) for name in names)))
        if tick % 10 == 0:
            until(lambda: history.status().waiting == 0)
    until(lambda: history.status().waiting == 0)
    kept = history.vantage("host-7", limit=1000)
    assert kept[0].tick_ns == NOW + 199 * T
    assert 5 < len(kept) < 150
    assert (tmp_path / "history.db").stat().st_size < 2_000_000
    history.close()


def test_the_file_is_for_the_brokers_user_only(tmp_path: Path):
    filled(f"sqlite:///{tmp_path}/history.db").close()
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_a_server_that_goes_away_loses_nothing_and_beyond_the_queue_it_is_counted(server: PostgresServer):
    _empty(server.url)
    history = History(server.url, retention_s=3600, queue_rows=50)
    history.put_bundle(bundle(0, report("a")))
    until(lambda: history.status().written == 2)
    server.stop()
    try:
        history.put_bundle(bundle(1, report("a", 1)))
        until(lambda: bool(history.status().error))
        assert "does not answer" in history.status().error
        history.put_bundle(bundle(2, *(report(f"host-{n:03}", 2) for n in range(60))))
        until(lambda: history.status().dropped > 0)
    finally:
        server.start()
    until(lambda: history.status().waiting == 0)
    status = history.status()
    assert status.error == ""
    # Bundles 1 and 2, 61 reports of which the queue holds 50.
    assert (status.written, status.dropped) == (2 + 2 + 50, 11)
    assert [row.tick_ns for row in history.bundles()] == [NOW + 2 * T, NOW + T, NOW]
    history.close()


def test_a_broker_starts_without_its_postgresql_and_uses_it_when_it_comes(server: PostgresServer):
    _empty(server.url)
    server.stop()
    try:
        history = History(server.url, retention_s=3600)
        history.put_bundle(bundle(0, report("a")))
        until(lambda: bool(history.status().error))
        with pytest.raises(HistoryError, match="does not answer"):
            history.bundles()
    finally:
        server.start()
    until(lambda: history.status().written == 2)
    history.close()


def test_passwords_are_shown_nowhere():
    history = History("postgresql://mvps:hunter2@127.0.0.1:1/none", retention_s=60)
    history.put_bundle(bundle(0, report("a")))
    until(lambda: bool(history.status().error))
    assert "hunter2" not in history.status().error
    assert "***" in history.status().error
    history.close()
    assert history.status().dropped == 2


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("history.db", "no database URL"),
        ("sqlite://", "no sqlite or postgresql URL"),
        ("mysql://x@y/z", "no sqlite or postgresql URL"),
        ("sqlite:////nowhere/at/all/history.db", "does .* exist"),
    ],
)
def test_a_bad_url_says_what_to_write(url: str, words: str):
    with pytest.raises(HistoryError, match=words):
        History(url, retention_s=60)


def test_a_folder_in_the_place_of_the_file_is_an_error_at_start(tmp_path: Path):
    (tmp_path / "history.db").mkdir()
    with pytest.raises(HistoryError):
        History(f"sqlite:///{tmp_path}/history.db", retention_s=60)
