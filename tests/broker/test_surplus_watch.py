# SPDX-License-Identifier: Apache-2.0
"""Tenants, live: minutes in, decisions out, by a clock of ours; and over real gRPC to what an operator reads."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from tests.surplus.health_sample import health, policy

from mvps.broker.surplus_settings import SurplusSettings
from mvps.broker.surplus_watch import (
    MAX_FLEET_TENANTS,
    MAX_PENDING_BYTES,
    Order,
    OrderError,
    Rows,
    SurplusWatch,
    TenantView,
)
from mvps.surplus import sealed_health
from mvps.surplus.governance import Change
from mvps.surplus.minutes import MAX_TENANTS, MINUTE_NS
from mvps.surplus.packets import HealthMinute, Policy, Stage, parse, render
from mvps.surplus.policy import Rung
from mvps.v1 import snapshot_pb2 as pb

FIRST = 29_000_000
SECOND = 10**9
BAD: dict[str, Any] = {"Xi": 0.9, "SSE": 0.2, "crp_score": 0.9, "bh1": True, "bh2": True}
HOSTS = ("h1", "h2", "h3", "h4")


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mvps.trust.durable.os.fsync", lambda _: None)


def body(*minutes: HealthMinute) -> bytes:
    return with_extension(b"\n".join(map(render, minutes)))


def with_extension(data: bytes) -> bytes:
    return pb.Snapshot(schema_version=1, extensions={sealed_health.NAME: data}).SerializeToString()


class Site:
    """A watch without a broker: its clock is ours."""

    def __init__(self, folder: Path, *policies: Any, restart: bool = False) -> None:
        self.folder = folder
        (folder / "policies").mkdir(exist_ok=restart)
        for number, one in enumerate(policies):
            (folder / "policies" / f"{number}.json").write_bytes(render(one))
        self.now_ns = FIRST * MINUTE_NS + 15 * SECOND
        self.rows = Rows([], [], [], [])
        chosen = SurplusSettings.model_validate({"policies": folder / "policies"})
        self.watch = SurplusWatch(chosen, self._keep, folder / "tenants", lambda: self.now_ns)
        self.minute = FIRST
        self.look()

    def _keep(self, rows: Rows) -> None:
        for kept, more in zip(self.rows, rows, strict=True):
            kept.extend(more)

    def look(self, seconds: float = 0.0) -> None:
        self.now_ns += round(seconds * SECOND)
        asyncio.run(self.watch.look())

    def go(self, minutes: int, hosts: tuple[str, ...] = HOSTS, tenant: str = "acme", **changes: Any) -> None:
        """So many minutes in which those hosts tell of the tenant."""
        for _ in range(minutes):
            for host in hosts:
                self.watch.put(host, body(health(self.minute, tenant, **changes)))
            self.minute += 1
            # Fifteen seconds into the next minute.
            self.now_ns = self.minute * MINUTE_NS + 15 * SECOND
            self.look()

    def order(self, what: str, to: str = "", tenant: str = "acme") -> list[Change]:
        rows = asyncio.run(self.watch.order(Order(tenant, what, to, "kim", "a drill")))
        return [row.change for row in rows]

    @property
    def view(self) -> TenantView:
        return next(view for view in self.watch.views if view.tenant == "acme")

    @property
    def stage(self) -> Stage:
        assert self.view.governed is not None
        return self.view.governed.step.stage

    @property
    def trail(self) -> list[tuple[str, str, str, str]]:
        return [(one.what, one.before, one.after, one.by) for _, one in self.rows.changes]


def test_minutes_become_decisions_and_rows(tmp_path: Path) -> None:
    site = Site(tmp_path, policy())
    site.go(3)
    assert site.watch.health == {**dict.fromkeys(site.watch.health, 0), "taken": 12}
    assert site.watch.minutes == {"decided": 3, "skipped": 0, "failed": 0}
    assert [(row.vantage, row.health.bucket.timestamp() / 60) for row in site.rows.health[:4]] == [
        (host, FIRST) for host in HOSTS
    ]
    assert [(row.tenant, row.made.minute, row.made.hosts) for row in site.rows.tenants] == [
        ("acme", FIRST + number, 4) for number in range(3)
    ]
    assert site.trail == [("policy", "none", "v1", "broker")]
    assert [row.policy.tenant for row in site.rows.policies] == ["acme"]
    assert site.view.hosts == HOSTS


def test_a_tenant_without_a_policy_is_shown_and_not_governed(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.go(5, **BAD)
    assert site.view.governed is None
    assert site.view.last is not None
    assert site.view.last.health.bh2
    assert site.trail == []
    with pytest.raises(OrderError, match="acme has no policy in use; those that have one: none"):
        site.order("kill")


def test_the_ladder_climbs_and_the_rollout_goes_on_by_itself(tmp_path: Path) -> None:
    site = Site(tmp_path, policy())
    site.go(240)
    assert site.stage is Stage.CANARY
    site.go(10, **BAD)
    assert site.view.governed is not None
    assert site.view.governed.ladder.rung >= Rung.ROUTE_AND_THROTTLE
    assert site.stage is Stage.SHADOW
    assert "BH-2" in site.view.governed.held
    assert [entry[0] for entry in site.trail] == ["policy", "stage", "rung", "stage", *["rung"] * 3]
    assert site.watch.changes == {"policy": 1, "stage": 2, "rung": 4, "hold": 0}


def test_what_is_refused_is_counted_by_cause_and_touches_nothing_else(tmp_path: Path) -> None:
    site = Site(tmp_path, policy())
    good = health(FIRST)
    site.watch.put("h1", with_extension(b"\xff\n" + render(good) + b"\n{}"))
    site.watch.put("h1", body(good))
    site.watch.put("h1", body(health(FIRST + 1), health(1)))
    site.watch.put("h1", with_extension(b" " * sealed_health.MAX_BYTES + b" "))
    site.watch.put("h1", pb.Snapshot(schema_version=1, extensions={"x": b""}).SerializeToString())
    site.watch.put("h2", body(*(health(FIRST, f"t{number}", cap_head=good.cap_head) for number in range(20))))
    site.watch.put("h2", body(*(health(FIRST, f"u{number}", cap_head=good.cap_head) for number in range(20))))
    site.look(50)
    assert {cause: count for cause, count in site.watch.health.items() if count} == {
        "malformed": 2,
        "repeated": 1,
        "ahead": 1,
        "stale": 1,
        "oversize": 1,
        "taken": 1 + MAX_TENANTS,
        "tenants": 40 - MAX_TENANTS,
    }
    site.look(10)
    assert [view.tenant for view in site.watch.views][:2] == ["acme", "t0"]


def test_there_is_room_for_so_many_tenants(tmp_path: Path) -> None:
    site = Site(tmp_path)
    for number in range(MAX_FLEET_TENANTS + 5):
        site.watch.put(f"h{number}", body(health(FIRST, f"t{number}")))
    site.look(60)
    assert len(site.watch.views) == MAX_FLEET_TENANTS
    assert site.watch.health["tenants"] == 5
    site.now_ns += 70 * MINUTE_NS
    for _ in range(8):
        site.look()
    assert site.watch.views == (), "what is silent for an hour is forgotten"


def test_what_comes_late_is_kept_and_changes_no_decision(tmp_path: Path) -> None:
    site = Site(tmp_path, policy(outliers=0))
    site.go(2)
    before = site.view
    site.watch.put("h9", body(health(FIRST, **BAD)))
    site.look(1)
    assert site.watch.health["late"] == 1
    assert site.rows.health[-1].vantage == "h9"
    assert site.view == before


def test_hosts_that_fall_silent_and_clocks_that_jump(tmp_path: Path) -> None:
    site = Site(tmp_path, policy())
    site.go(2)
    site.go(61, hosts=("h1",))
    assert site.view.hosts == ("h1",)
    assert site.watch.minutes["skipped"] == 0
    decided = site.watch.minutes["decided"]
    site.minute += 1000
    site.go(1)
    assert site.watch.minutes["skipped"] == 991
    assert site.watch.minutes["decided"] == decided + 1
    site.minute -= 500
    site.go(2)
    assert site.watch.minutes["decided"] >= decided + 2


def test_orders_are_on_disk_before_they_are_answered_and_outlive_a_restart(tmp_path: Path) -> None:
    site = Site(tmp_path, policy())
    site.go(240)
    assert [one.after for one in site.order("rung", "R5")] == ["SUSPEND"]
    kept = json.loads((tmp_path / "tenants").read_text())
    assert [(one["tenant"], one["rung"], one["at"]) for one in kept["tenants"]] == [("acme", 5, 1)]
    again = Site(tmp_path, restart=True)
    again.minute = site.minute
    again.now_ns = site.now_ns
    again.go(1)
    assert again.view.governed is not None
    assert (again.stage, again.view.governed.ladder.rung) == (Stage.CANARY, Rung.SUSPEND)
    again.go(240)
    assert again.stage is Stage.GRADUAL, "it still knows how the slice was in shadow"
    again.order("kill")
    third = Site(tmp_path, restart=True)
    third.minute, third.now_ns = again.minute, again.now_ns
    third.go(300)
    assert third.view.governed is not None
    assert (third.stage, third.view.governed.held) == (Stage.SHADOW, "killed by kim: a drill")
    third.order("release")
    third.go(240)
    assert third.stage is Stage.CANARY


def test_a_host_is_handed_the_policies_of_its_tenants_as_they_stand(tmp_path: Path) -> None:
    site = Site(tmp_path, policy(), policy(tenant="other"))
    assert site.watch.handed("h1") == b""
    site.go(1)
    site.go(1, hosts=("h1",), tenant="other")
    before = site.watch.serial
    both = [parse(line, Policy) for line in site.watch.handed("h1").split(b"\n")]
    assert [(one.issue.tenant, one.issue.host) for one in both if one.issue] == [("acme", "h1"), ("other", "h1")]
    assert all(one.dry_run for one in both), "in shadow"
    assert site.watch.handed("h2").count(b"\n") == 0
    assert site.watch.handed("h9") == b""
    site.order("stage", "full")
    assert site.watch.serial > before
    (one,) = [parse(line, Policy) for line in site.watch.handed("h2").split(b"\n")]
    assert not one.dry_run
    site.order("kill")
    (one,) = [parse(line, Policy) for line in site.watch.handed("h2").split(b"\n")]
    assert one.dry_run


def test_more_policies_than_one_answer_carries_are_counted(tmp_path: Path) -> None:
    long = policy(tenants=[f"tenant-{number:050}" for number in range(40)])
    site = Site(tmp_path, long)
    for tenant in long.members[:MAX_TENANTS]:
        site.watch.put("h1", body(health(FIRST, tenant)))
    site.look(60)
    assert 0 < site.watch.handed("h1").count(b"\n") < MAX_TENANTS
    assert site.watch.unhanded == 1


def test_no_two_lines_of_the_trail_have_one_time(tmp_path: Path) -> None:
    site = Site(tmp_path, policy())
    site.go(1)
    for what, to in (("kill", ""), ("release", ""), ("kill", ""), ("rung", "R6"), ("rung", "R1")):
        site.order(what, to)
    times = [at for at, _ in site.rows.changes]
    assert len(times) == 7
    assert times == sorted(set(times))


def test_orders_that_cannot_be_carried_out_say_why(tmp_path: Path) -> None:
    site = Site(tmp_path, policy(rollout={"stage": "canary", "soak_minutes": 240}))
    site.go(1)
    for what, to, words in (
        ("rung", "R9", "R0 to R6"),
        ("stage", "everywhere", "no stage"),
        ("stage", "full", "goes to canary at most"),
        ("dance", "", "no order"),
    ):
        with pytest.raises(OrderError, match=words):
            site.order(what, to)
    for who, why in (("k" * 101, "x"), ("kim", "a\x1b[2J"), ("kim", "x" * 501), ("", "x"), ("kim", " ")):
        with pytest.raises(OrderError):
            asyncio.run(site.watch.order(Order("acme", "kill", "", who, why)))
    assert site.order("release") == []
    assert [one.after for one in site.order("stage", "canary")] == ["canary"]
    assert [one.after for one in site.order("rung", "none")] == []


def test_a_policy_that_changes_goes_or_cannot_be_read(tmp_path: Path) -> None:
    site = Site(tmp_path, policy())
    site.go(240)
    path = tmp_path / "policies/0.json"
    path.write_bytes(render(policy(version=2)))
    site.go(1)
    assert (site.stage, site.trail[-1]) == (Stage.SHADOW, ("policy", "v1", "v2", "broker"))
    path.write_text("{}")
    site.go(1)
    assert site.view.governed is not None
    assert "stays in use" in site.watch.refused_policies[0]
    path.unlink()
    site.go(1)
    assert site.view.governed is None
    assert site.trail[-1] == ("policy", "v2", "none", "broker")
    assert [row.policy.version for row in site.rows.policies] == [1, 2]


def test_a_file_that_cannot_be_used_is_said_and_replaced(tmp_path: Path) -> None:
    (tmp_path / "tenants").write_text("{}")
    site = Site(tmp_path, policy())
    assert "begin anew" in site.watch.keep_error
    site.go(1)
    assert site.watch.keep_error == ""


def test_a_defect_in_one_tenant_is_counted_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(tmp_path, policy(tenant="other"))

    def broken(*_: object) -> None:
        raise ZeroDivisionError("seven")

    monkeypatch.setattr("mvps.broker.surplus_watch.Governed.minute", broken)
    site.watch.put("h1", body(health(FIRST, "other")))
    site.go(1)
    assert site.watch.minutes == {"decided": 1, "skipped": 0, "failed": 1}
    assert "other: its minute could not be decided: ZeroDivisionError('seven')" in site.watch.error


def test_snapshots_that_wait_take_so_much_room_and_no_more(tmp_path: Path) -> None:
    site = Site(tmp_path)
    large = bytes(MAX_PENDING_BYTES // 4)
    for _ in range(5):
        site.watch.put("h1", large)
    assert site.watch.health["overflow"] == 1


def test_what_was_changed_is_kept_when_the_broker_stops_meanwhile(tmp_path: Path) -> None:
    site = Site(tmp_path, policy())
    site.go(1)

    async def interrupted() -> None:
        site.watch.put("h1", body(health(site.minute)))
        site.now_ns = (site.minute + 1) * MINUTE_NS + 15 * SECOND
        for work in (site.watch.look(), site.watch.order(Order("acme", "kill", "", "kim", "a drill"))):
            task = asyncio.ensure_future(work)
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(interrupted())
    assert site.watch.minutes["decided"] == 2
    assert len(site.rows.tenants) == 2
    assert site.trail[-1][0] == "stage"


def test_a_defect_in_a_look_is_counted_and_the_next_one_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(tmp_path)
    monkeypatch.setattr("mvps.broker.surplus_watch._LOOK_S", 0.001)
    looked = site.watch._look

    async def some_looks() -> None:
        def broken(*_: object) -> Rows:
            monkeypatch.setattr(site.watch, "_look", looked)
            raise ZeroDivisionError("seven")

        monkeypatch.setattr(site.watch, "_look", broken)
        site.watch.put("h1", body(health(FIRST - 1)))
        task = asyncio.ensure_future(site.watch.run())
        while not site.watch.health["taken"]:
            site.watch.put("h1", body(health(FIRST - 1)))
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(asyncio.wait_for(some_looks(), 30))
    assert site.watch.minutes["failed"] == 1
    assert "ZeroDivisionError('seven')" in site.watch.error
