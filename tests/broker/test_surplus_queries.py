# SPDX-License-Identifier: Apache-2.0
"""The text's queries, mended, on both databases; the text's own C3.1, to see it fail."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from postgres_server import PostgresServer
from surplus_rows import put_minute
from tests.surplus.health_sample import health
from tests.surplus.test_packets import INCIDENT
from tests.waiting import until

from mvps.broker.history import History
from mvps.broker.surplus_queries import HOUR_NS, duty, hours, leads, raised, rolled_up, unfounded
from mvps.broker.surplus_tables import IncidentRow
from mvps.surplus.minutes import MINUTE_NS
from mvps.surplus.packets import Incident, parse

FIRST = 29_000_000  # a minute in 2025
END = (FIRST + 10_000) * MINUTE_NS
CALM: dict[str, Any] = {}
NARROW: dict[str, Any] = {"SSE": 0.3, "crp_score": 0.5}
HIGH: dict[str, Any] = {"Xi": 0.7}


@pytest.fixture(params=["sqlite", "postgresql"])
def history(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[History]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/history.db"
    else:
        import psycopg

        url = request.getfixturevalue("server").url
        with psycopg.connect(url) as connection:
            for name in ("history", "health", "tenants", "changes", "policies", "incidents"):
                connection.execute(f"DROP TABLE IF EXISTS mvps_{name}")
    made = History(url, retention_s=3600, minutes_retention_s=1e9, audit_retention_s=1e9)
    yield made
    made.close()


def written(history: History) -> None:
    until(lambda: history.status().waiting == 0)
    assert history.status().error == ""


def incident(history: History, id_: str, minute: float, tenant: str = "acme", recorded: int = 1) -> None:
    at = health(int(minute)).bucket.timestamp() + round(60 * (minute % 1))
    fields = {**INCIDENT, "id": id_, "tenant": tenant, "bh1_onset": None}
    one = parse(json.dumps(fields).encode(), Incident)
    moved = one.model_copy(update={"started_at": datetime.fromtimestamp(at, UTC)})
    # Not so long ago that it would be removed by its age.
    history.put_incident(IncidentRow(END + recorded, moved, "kim"))


def test_hosts_minutes_roll_up_to_what_was_decided(history: History) -> None:
    rng = np.random.default_rng(3)
    stored = {}
    for minute in range(FIRST, FIRST + 40):
        hosts = int(rng.integers(1, 7))
        told = {
            f"h{number}": {
                "Xi": None if rng.random() < 0.2 else round(float(rng.random()), 3),
                "SSE": None if rng.random() < 0.2 else round(float(rng.random()), 3),
            }
            for number in range(hosts)
        }
        row = put_minute(history, minute, told, outliers=int(rng.integers(0, 4)), late={"late": {"Xi": 1.0}})
        stored[minute * MINUTE_NS] = row.made.health
    put_minute(history, FIRST, {"h0": {"Xi": 1.0}}, tenant="other")
    written(history)
    with history.asking() as connection:
        xi = rolled_up(connection, "acme", "xi", 0, END)
        sse = rolled_up(connection, "acme", "sse", 0, END)
        assert xi == {at: one.xi for at, one in stored.items() if one.xi == one.xi}
        assert sse == {at: one.sse for at, one in stored.items() if one.sse == one.sse}
        assert len(xi) > 20
        assert rolled_up(connection, "acme", "xi", 0, min(stored)) == {}
        assert unfounded(connection, "acme", 0, END) == []


def test_a_minute_that_does_not_follow_from_what_hosts_said_is_found(history: History) -> None:
    for minute in range(FIRST, FIRST + 3):
        put_minute(history, minute, {"a": HIGH, "b": CALM, "c": CALM})
    written(history)
    with history.asking() as connection:
        assert unfounded(connection, "acme", 0, END) == []
        connection.execute(sa.text("UPDATE mvps_health SET xi = 0.2 WHERE vantage = 'b'"))
        assert len(unfounded(connection, "acme", 0, END)) == 3
        connection.rollback()


def test_how_long_a_tenant_was_in_each_state(history: History) -> None:
    for offset, xi in enumerate([0.1, 0.1, 0.1, 0.4, 0.6, 0.9]):
        put_minute(history, FIRST + offset, {"a": {"Xi": xi}})
    put_minute(history, FIRST, {"a": CALM}, tenant="other")
    written(history)
    with history.asking() as connection:
        found = [(one.tenant, one.state, one.minutes, round(one.share, 3)) for one in duty(connection, 0, END)]
        assert found == [
            ("acme", "Green", 3, 0.5),
            ("acme", "Caution", 1, 0.167),
            ("acme", "Action", 1, 0.167),
            ("acme", "Emergency", 1, 0.167),
            ("other", "Green", 1, 1.0),
        ]
        assert duty(connection, END, END) == []


def test_alerts_take_their_number_of_minutes_in_time_and_not_in_rows(history: History) -> None:
    course = {0: NARROW, 1: NARROW, 2: CALM, 3: NARROW, 4: NARROW, 5: NARROW, 9: NARROW, 12: NARROW, 20: NARROW}
    for offset, changes in course.items():
        put_minute(history, FIRST + offset, {"a": changes})
    for offset in (30, 34, 38, 40, 41):
        put_minute(history, FIRST + offset, {"a": HIGH})
    written(history)
    with history.asking() as connection:
        found = raised(connection, "acme", 0, END)
        assert [one.tick_ns // MINUTE_NS - FIRST for one in found if one.bh1] == [5]
        assert [one.tick_ns // MINUTE_NS - FIRST for one in found if one.bh2] == [38, 40, 41]
        later = raised(connection, "acme", (FIRST + 38) * MINUTE_NS, END)
        assert [one.bh2 for one in later] == [True] * 3, "what came before counts where the question begins"
        assert not any(one.bh2 for one in raised(connection, "acme", 0, END, xi=0.71))


def test_a_lead_is_from_the_onset_of_the_alert(history: History) -> None:
    up = {*range(100, 160), *range(163, 200)}  # 160 to 162 are a gap, no new onset
    for offset in range(80, 220):
        alerts = {"bh1": offset in up, "bh2": 150 <= offset < 200}
        put_minute(history, FIRST + offset, {"a": alerts})
    incident(history, "old", FIRST + 180, recorded=1)
    incident(history, "old", FIRST + 190.5, recorded=2)
    incident(history, "early", FIRST + 90)
    incident(history, "after", FIRST + 215)
    incident(history, "elsewhere", FIRST + 180, tenant="other")
    written(history)
    with history.asking() as connection:
        found = {one.id: (one.bh1, one.bh2) for one in leads(connection, 0, END)}
        assert found == {
            "old": (90.5, 40.5),
            "early": (None, None),
            "after": (115.0, 65.0),
            "elsewhere": (None, None),
        }
        short = {one.id: (one.bh1, one.bh2) for one in leads(connection, 0, END, horizon_ns=HOUR_NS)}
        assert short["old"] == (None, 40.5)
        assert leads(connection, (FIRST + 216) * MINUTE_NS, END) == []


def test_hours(history: History) -> None:
    hour = FIRST // 60 * 60
    for offset in range(90):
        told = {"a": {"lambda": 0.4}, "b": {"lambda": 0.8, "state": "Action", "fallbacks": {"off": 60}}}
        put_minute(history, hour + offset, told)
    written(history)
    with history.asking() as connection:
        first, second = hours(connection, 0, END)
        assert (first.tick_ns, first.host_minutes, second.host_minutes) == (hour * MINUTE_NS, 120, 60)
        assert (first.packets, first.stress, first.fallbacks) == (72_000, 0.5, 0.05)
        assert first.lam == pytest.approx(0.6)


# C3.1's part for SSE as the text has it, but for the tables' names.
_TEXT_SSE = """
SELECT date_trunc('minute', to_timestamp(tick_ns / 1e9)) AS bucket, tenant,
  - SUM((cnt::float/NULLIF(sum_cnt,0)) * LN(cnt::float/NULLIF(sum_cnt,0))) / LN(NULLIF(n_clusters,1)) AS SSE
FROM (SELECT tick_ns, tenant, COUNT(*) AS cnt, SUM(COUNT(*)) OVER (PARTITION BY tenant) AS sum_cnt,
        COUNT(DISTINCT vantage) OVER (PARTITION BY tenant) AS n_clusters
      FROM mvps_health GROUP BY tick_ns, tenant, vantage) x
GROUP BY 1, 2
"""


def test_the_texts_own_rollup_does_not_run(server: PostgresServer) -> None:
    history = History(server.url, retention_s=3600)
    put_minute(history, FIRST, {"a": CALM})
    written(history)
    with history.asking() as connection, pytest.raises(sa.exc.DBAPIError, match="DISTINCT is not implemented"):
        connection.execute(sa.text(_TEXT_SSE))
    history.close()
