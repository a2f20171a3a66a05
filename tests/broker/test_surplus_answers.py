# SPDX-License-Identifier: Apache-2.0
"""Tenants as messages: what is not known is absent, and a policy says where it stands."""

from __future__ import annotations

from pathlib import Path

import pytest
from surplus_rows import put_minute
from tests.surplus.health_sample import health, policy
from tests.waiting import until

from mvps.broker.history import History
from mvps.broker.surplus_answers import changes, report, surplus_state
from mvps.broker.surplus_settings import SurplusSettings
from mvps.broker.surplus_tables import ChangeRow
from mvps.broker.surplus_watch import SurplusWatch, TenantView
from mvps.surplus.governance import Governed
from mvps.surplus.minutes import MINUTE_NS
from mvps.surplus.packets import digest
from mvps.surplus.policy import Rung
from mvps.v1 import stream_pb2 as pb

HOSTS = ("a", "b", "c")


def shown(governed: Governed | None, **changed: object) -> pb.SurplusTenant:
    watch = SurplusWatch(SurplusSettings.model_validate({}))
    last = governed.last if governed else None
    watch.views = (TenantView("acme", last, governed, HOSTS, governed.inside(HOSTS) if governed else frozenset()),)
    state = surplus_state(watch)
    assert state.on
    return state.tenants[0]


def after(minutes: int, **changed: object) -> Governed:
    governed = Governed.begin("acme", policy())
    for minute in range(minutes):
        governed, _ = governed.minute(minute, {host: health(minute, **changed) for host in HOSTS}, HOSTS)
    return governed


def test_before_the_first_minute_nothing_is_known() -> None:
    one = shown(None)
    assert (one.tenant, one.hosts, one.told, one.minute_ns, one.state) == ("acme", 3, 0, 0, "Green")
    assert not any(one.HasField(name) for name in ("xi", "sse", "crp_score", "ssi_star_score", "policy"))
    assert not surplus_state(SurplusWatch(None)).on


def test_what_is_not_known_is_absent() -> None:
    one = shown(after(1, Xi=None, SSE=None))
    assert [one.HasField(name) for name in ("xi", "sse", "crp_score")] == [False, False, True]
    assert (one.told, one.packets, one.lam) == (3, 1800, pytest.approx(0.4))


def test_a_policy_says_where_it_stands() -> None:
    governed, _ = after(481).ordered_rung(481, Rung.STRUCTURAL_GUARDS, "kim", "a drill")
    one = shown(governed).policy
    assert (one.name, one.version, one.digest, one.dry_run) == ("acme", 1, digest(policy()), False)
    assert (one.stage, one.share, one.rung, one.verdict) == ("gradual", 0.5, 1, "no worse")
    assert one.high < 0.05
    assert set(one.slice) == governed.inside(HOSTS)
    assert "look_ahead" in one.actions
    assert "enforce_exploration" in one.actions
    killed, _ = governed.killed(482, "kim", "why")
    assert shown(killed).policy.held == "killed by kim: why"
    assert shown(killed).policy.stage == "shadow"


def test_a_policy_says_how_near_its_kill_switches_are() -> None:
    shadow = shown(after(239, latency_p95=10.0)).policy
    assert [(one.name, one.blocks, one.shadow_blocks) for one in shadow.switches] == [
        ("latency", 0, 0), ("incidents", 0, 0), ("breaks", 0, 0)
    ]  # fmt: skip
    young = shown(after(240 + 239)).policy
    assert [(one.blocks, one.shadow_blocks, one.HasField("change")) for one in young.switches] == [
        (0, 0, False), (3, 4, False), (3, 4, False)
    ], "nobody said how long a token takes"  # fmt: skip
    governed = after(240, latency_p95=10.0)
    for minute in range(240, 480):
        told = {
            host: health(minute, latency_p95=12.0 if host in governed.inside(HOSTS) else 10.0, Xi=None)
            for host in HOSTS
        }
        governed, _ = governed.minute(minute, told, HOSTS)
    latency, incidents, _ = shown(governed).policy.switches
    assert (latency.change, latency.limit, latency.blocks) == (pytest.approx(0.2), 0.25, 4)
    assert (incidents.change, incidents.limit) == (0.0, pytest.approx(0.01))


def test_lines_of_the_trail_leave_out_what_was_not_known() -> None:
    _, made = Governed.begin("acme", policy()).killed(1, "kim", "why")
    (line,) = changes([ChangeRow(5, made[0])])
    assert (line.time_ns, line.what, line.after, line.who, line.why) == (
        5, "stage", "shadow, held", "kim", "killed by kim: why"
    )  # fmt: skip
    assert not line.HasField("xi")


def test_a_report_is_of_one_tenant(tmp_path: Path) -> None:
    history = History(f"sqlite:///{tmp_path}/h.db", retention_s=3600, minutes_retention_s=1e9)
    first = 29_000_000
    for minute in range(first, first + 5):
        put_minute(history, minute, {"a": {"Xi": 0.7}})
        put_minute(history, minute, {"a": {}, "b": {}}, tenant="other")
    governed, made = Governed.begin("acme", policy()).killed(first + 2, "kim", "why")
    _, more = governed.released(first + 3, "kim", "why")
    history.put_changes([ChangeRow((first + 2) * MINUTE_NS, made[0]), ChangeRow((first + 3) * MINUTE_NS, more[0])])
    until(lambda: history.status().waiting == 0)
    found = report(history, pb.GetSurplusReportRequest(tenant="acme", since_ns=first * MINUTE_NS))
    assert [(one.state, one.minutes) for one in found.duty] == [("Action", 5)]
    assert [one.host_minutes for one in found.hours] == [5]
    assert (found.bh1_minutes, found.bh2_minutes, list(found.unfounded_ns)) == (0, 3, [])
    assert [(one.time_ns, one.why) for one in found.taken_back] == [((first + 2) * MINUTE_NS, "killed by kim: why")]
    history.close()
