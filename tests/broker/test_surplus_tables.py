# SPDX-License-Identifier: Apache-2.0
"""Rows have their columns' order, and come back; minutes and the trail have retentions of their own."""

from __future__ import annotations

import json
import math
import sqlite3
import time
from pathlib import Path

import pytest
import sqlalchemy as sa
from surplus_rows import put_minute
from tests.surplus.health_sample import health, policy
from tests.surplus.test_packets import INCIDENT
from tests.waiting import until

from mvps.broker import surplus_tables
from mvps.broker.bundle import Bundle
from mvps.broker.history import History
from mvps.broker.surplus_tables import ChangeRow, HealthRow, IncidentRow, PolicyRow
from mvps.surplus.governance import Change
from mvps.surplus.minutes import MINUTE_NS
from mvps.surplus.packets import Incident, digest, parse, render

NOW_MINUTE = time.time_ns() // MINUTE_NS
CHANGE = Change(7, "acme", "rung", "NONE", "SOFT_NUDGE", "band CAUTION", "ladder", 0.4, math.nan, 0.2, 3, False)


def test_rows_are_as_wide_as_their_tables_and_name_the_same(tmp_path: Path) -> None:
    history = History(f"sqlite:///{tmp_path}/h.db", retention_s=3600)
    one = health(NOW_MINUTE, refused={"late": 2}, fallbacks={"off": 3, "structure": 1}, Xi=None, state="Action")
    history.put_health([HealthRow("gpu=1", 5, one)])
    row = put_minute(history, NOW_MINUTE, {"a": {"Xi": 0.3}}, tenant="other")
    history.put_policies([PolicyRow(NOW_MINUTE * MINUTE_NS, policy())])
    incident = parse(json.dumps(INCIDENT).encode(), Incident)
    history.put_incident(IncidentRow(NOW_MINUTE * MINUTE_NS, incident, "kim"))
    until(lambda: history.status().waiting == 0)
    with history.asking() as connection:
        kept = connection.execute(sa.select(surplus_tables.HEALTH)).first()
        assert kept is not None
        shown = kept._asdict()
        assert (shown["tick_ns"], shown["tenant"], shown["vantage"]) == (NOW_MINUTE * MINUTE_NS, "acme", "gpu=1")
        assert (shown["xi"], shown["sse"], shown["crp_score"], shown["state"]) == (None, 0.7, 0.05, 2)
        assert (shown["refused"], shown["fallbacks"], shown["packets"]) == (2, 4, 600)
        tenant = connection.execute(sa.select(surplus_tables.TENANTS)).one()._asdict()
        assert (tenant["xi"], tenant["hosts"], tenant["version"], tenant["lam"]) == (0.3, 1, 1, 0.4)
        assert tenant["decided_ns"] == row.decided_ns
        body = connection.execute(sa.select(surplus_tables.POLICIES)).one()._asdict()
        assert (body["digest"], body["body"].encode()) == (digest(policy()), render(policy()))
        said = connection.execute(sa.select(surplus_tables.INCIDENTS)).one()._asdict()
        assert (said["id"], said["rung"], said["who"], said["ended_ns"]) == ("inc-7", 2, "kim", None)
        assert said["started_ns"] == round(incident.started_at.timestamp()) * 10**9
    history.close()


def test_the_trail_comes_back_newest_first(tmp_path: Path) -> None:
    history = History(f"sqlite:///{tmp_path}/h.db", retention_s=3600)
    times = [NOW_MINUTE * MINUTE_NS + number for number in range(4)]
    history.put_changes([ChangeRow(at, CHANGE) for at in times])
    until(lambda: history.status().waiting == 0)
    found = history.changes(tenant="acme", limit=3)
    assert [row.at_ns for row in found] == times[:0:-1]
    one = found[0].change
    assert (one.what, one.before, one.after, one.why, one.by) == (
        "rung",
        "NONE",
        "SOFT_NUDGE",
        "band CAUTION",
        "ladder",
    )
    assert (one.xi, one.crp_score, one.version, one.dry_run) == (0.4, 0.2, 3, False)
    assert math.isnan(one.sse)
    assert history.changes(tenant="nobody") == []
    history.close()


def test_minutes_and_the_trail_are_kept_for_times_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mvps.broker.history._PRUNE_EVERY_S", 0.0)
    hour = 60 * MINUTE_NS
    history = History(
        f"sqlite:///{tmp_path}/h.db", retention_s=3600, minutes_retention_s=86400, audit_retention_s=10 * 86400
    )
    now_ns = NOW_MINUTE * MINUTE_NS
    for ago in (0, 2, 30, 300):
        put_minute(history, NOW_MINUTE - 60 * ago, {"a": {}})
        history.put_changes([ChangeRow(now_ns - ago * hour, CHANGE)])
        history.put_bundle(Bundle("x", now_ns - ago * hour, 10**9, now_ns, (), ()))
    until(lambda: history.status().waiting == 0)
    history.put_bundle(Bundle("x", now_ns + 1, 10**9, now_ns, (), ()))
    until(lambda: len(history.bundles()) == 2)
    assert {row.tick_ns for row in history.bundles()} == {now_ns, now_ns + 1}
    with history.asking() as connection:
        for table in surplus_tables.MINUTES:
            kept = connection.execute(sa.select(table.c.tick_ns).order_by(table.c.tick_ns)).scalars().all()
            assert kept == [now_ns - 2 * hour, now_ns]
    assert [row.at_ns for row in history.changes()] == [now_ns, now_ns - 2 * hour, now_ns - 30 * hour]
    history.close()


def test_a_file_that_is_too_large_loses_old_minutes_and_nothing_of_the_trail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mvps.broker.history._PRUNE_EVERY_S", 0.0)
    history = History(f"sqlite:///{tmp_path}/h.db", retention_s=3600, max_bytes=300_000)
    for ago in range(400, 0, -1):
        put_minute(history, NOW_MINUTE - ago, {f"h{number}": {} for number in range(5)})
        history.put_changes([ChangeRow((NOW_MINUTE - ago) * MINUTE_NS, CHANGE)])
        if ago % 20 == 0:
            until(lambda: history.status().waiting == 0)
    until(lambda: history.status().waiting == 0)
    with history.asking() as connection:
        kept = connection.execute(sa.select(sa.func.count()).select_from(surplus_tables.TENANTS)).scalar_one()
    assert 20 < kept < 380
    assert len(history.changes(limit=1000)) == 400
    history.close()


def test_a_history_from_before_tenants_gets_their_tables(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/h.db"
    History(url, retention_s=3600).close()
    with sqlite3.connect(tmp_path / "h.db") as db:
        for table in (*surplus_tables.MINUTES, *surplus_tables.AUDIT):
            db.execute(f"DROP TABLE {table.name}")
        db.execute("UPDATE mvps_history SET version = 3")
    history = History(url, retention_s=3600)
    put_minute(history, NOW_MINUTE, {"a": {}})
    until(lambda: history.status().waiting == 0)
    assert history.status().error == ""
    history.close()
    with sqlite3.connect(tmp_path / "h.db") as db:
        assert db.execute("SELECT version FROM mvps_history").fetchall() == [(4,)]
        assert db.execute("SELECT count(*) FROM mvps_tenants").fetchall() == [(1,)]
