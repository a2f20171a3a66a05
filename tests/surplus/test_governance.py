# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.surplus.health_sample import health, policy

from mvps.surplus.governance import BY_ITSELF, LASTS, Change, Governed, Standing, check, shares_of
from mvps.surplus.packets import HealthMinute, Policy, Stage, parse, render
from mvps.surplus.policy import Rung
from mvps.surplus.rollout import BLOCK_MINUTES

HOSTS = [f"host-{number}" for number in range(8)]
CALM: dict[str, Any] = {}
BAD: dict[str, Any] = {"Xi": 0.9, "SSE": 0.2, "crp_score": 0.9, "bh1": True, "bh2": True}
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def told(*bad: str, **changes: Any) -> dict[str, HealthMinute]:
    calm = health(**changes)
    return {host: health(**BAD) if host in bad else calm for host in HOSTS}


def walk(
    governed: Governed, minutes: int, course: Mapping[str, HealthMinute] | None = None, start: int = 0
) -> tuple[Governed, list[Change]]:
    changes: list[Change] = []
    said = told() if course is None else course
    for minute in range(start, start + minutes):
        governed, more = governed.minute(minute, said, HOSTS)
        changes += more
    return governed, changes


def handed(governed: Governed, host: str) -> Policy:
    return governed.issue(host, host in governed.inside(HOSTS), NOW)


def stages(changes: list[Change]) -> list[str]:
    return [change.after for change in changes if change.what == "stage"]


def test_a_calm_tenant_goes_from_shadow_to_full_a_soak_a_step() -> None:
    governed, changes = walk(Governed.begin("acme", policy()), 2000)
    assert stages(changes) == ["canary", "gradual 50%", "full"]
    assert [change.minute for change in changes] == [239, 479, 719]
    assert {change.by for change in changes} == {BY_ITSELF}
    assert all("no worse" in change.why for change in changes[1:])
    assert governed.inside(HOSTS) == set(HOSTS)
    assert governed.ladder.rung is Rung.NONE


@pytest.mark.parametrize("stage", ["shadow", "canary", "gradual"])
def test_it_goes_no_further_than_the_policy_says(stage: str) -> None:
    rollout = {"stage": stage, "gradual": [0.5], "soak_minutes": 240}
    governed, _ = walk(Governed.begin("acme", policy(rollout=rollout)), 1500)
    assert governed.step.stage == stage


def test_a_slice_that_got_worse_is_taken_back_and_waits_for_an_operator() -> None:
    governed, _ = walk(Governed.begin("acme", policy()), 241)
    inside = governed.inside(HOSTS)
    assert 0 < len(inside) < len(HOSTS)
    worse = {host: health(Xi=0.3 if host in inside else 0.1) for host in HOSTS}
    governed, changes = walk(governed, 240, worse, 241)
    assert stages(changes) == ["shadow, held"]
    assert "worse by 0.199 of Xi" in changes[0].why
    governed, changes = walk(governed, 1000, None, 500)
    assert (governed.step.stage, changes) == (Stage.SHADOW, [])
    governed, changes = governed.released(1500, "kim", "fixed in v1 of the engine")
    assert [(one.what, one.by) for one in changes] == [("hold", "kim")]
    assert stages(walk(governed, 240, None, 1501)[1]) == ["canary"]


def test_hosts_that_were_always_worse_are_not_the_policys_doing() -> None:
    governed = Governed.begin("acme", policy())
    inside = walk(governed, 241)[0].inside(HOSTS)
    unlike = {host: health(Xi=0.3 if host in inside else 0.1) for host in HOSTS}
    assert stages(walk(governed, 480, unlike)[1]) == ["canary", "gradual 50%"]


def test_bh2_in_the_slice_takes_it_back_at_once() -> None:
    governed, _ = walk(Governed.begin("acme", policy(outliers=0)), 241)
    one = next(iter(governed.inside(HOSTS)))
    governed, changes = walk(governed, 1, told(one), 241)
    assert "shadow, held" in stages(changes)
    assert "BH-2 on 1 of" in governed.held
    outside = next(host for host in HOSTS if host not in walk(Governed.begin("acme", policy()), 241)[0].inside(HOSTS))
    governed, changes = walk(walk(Governed.begin("acme", policy()), 241)[0], 1, told(outside), 241)
    assert changes == []


def test_an_alert_begins_the_soak_anew() -> None:
    governed, _ = walk(Governed.begin("acme", policy()), 200)
    governed, _ = walk(governed, 1, told(*HOSTS[:3]), 200)
    governed, changes = walk(governed, 239, None, 201)
    assert stages(changes) == []
    assert stages(walk(governed, 1, None, 440)[1]) == ["canary"]


def test_one_host_alone_and_an_unknown_xi_lead_nowhere_and_say_so() -> None:
    governed = Governed.begin("acme", policy())
    for minute in range(500):
        governed, changes = governed.minute(minute, {"a": health()}, ["a"])
        assert changes == []
    assert "one host" in governed.waiting
    governed, changes = walk(Governed.begin("acme", policy()), 500, told(Xi=None))
    assert changes == []
    assert "too few minutes" in governed.waiting
    governed, changes = governed.ordered_stage(500, Stage.CANARY, "kim", "a small site")
    assert stages(changes) == ["canary"]


def test_a_minute_of_which_nobody_told_changes_nothing() -> None:
    governed, _ = walk(Governed.begin("acme", policy()), 100)
    assert governed.minute(100, {}, HOSTS) == (governed, [])


def test_kill_holds_until_it_is_released() -> None:
    governed, _ = walk(Governed.begin("acme", policy()), 600)
    governed, changes = governed.killed(600, "kim", "bad answers")
    assert [(one.what, one.before, one.after, one.by) for one in changes] == [
        ("stage", "gradual 50%", "shadow, held", "kim")
    ]
    assert all(handed(governed, host).dry_run for host in HOSTS)
    with pytest.raises(ValueError, match="release it first"):
        governed.ordered_stage(601, Stage.CANARY, "kim", "again")
    for order in (governed.killed, governed.released):
        with pytest.raises(ValueError, match="name and a reason"):
            order(601, "kim", " ")
    again, changes = governed.under(policy(version=2), 601)
    assert again.held == governed.held, "another version does not release it"
    assert (changes.before, changes.after) == ("v1", "v2")


def test_a_policy_can_be_killed_in_its_file() -> None:
    rollout = {"stage": "full", "killed": True, "soak_minutes": 240}
    governed, _ = walk(Governed.begin("acme", policy(rollout=rollout)), 500)
    assert governed.step.stage is Stage.SHADOW
    with pytest.raises(ValueError, match="change its file"):
        governed.released(500, "kim", "go on")


def test_a_policy_that_is_no_longer_killed_in_its_file_begins_again() -> None:
    killed = policy(rollout={"stage": "full", "killed": True, "soak_minutes": 240})
    governed, _ = walk(Governed.begin("acme", killed), 10)
    again, _ = governed.under(policy(version=2), 10)
    assert (governed.held, again.held) == ("killed in the policy", "")
    assert Governed.restored(policy(version=2), governed.standing).held == ""


def test_a_stage_that_was_ordered_without_a_shadow_has_nothing_to_be_compared_with() -> None:
    governed, _ = Governed.begin("acme", policy()).ordered_stage(0, Stage.CANARY, "kim", "at once")
    governed, changes = walk(governed, 1000)
    assert changes == []
    assert "too short in shadow" in governed.waiting


def slower(governed: Governed, ms: float = 14.0, **changes: Any) -> dict[str, HealthMinute]:
    """The slice takes so long a token, the other hosts 10 ms."""
    inside = governed.inside(HOSTS)
    return {host: health(**{"latency_p95": ms if host in inside else 10.0, **changes}) for host in HOSTS}


FAST = {host: health(latency_p95=10.0) for host in HOSTS}
LONG: dict[str, Any] = {"stage": "full", "canary": 0.2, "gradual": [0.5], "soak_minutes": 600}


def test_a_kill_switch_takes_the_policy_back_within_a_soak() -> None:
    governed, _ = walk(Governed.begin("acme", policy(rollout=LONG)), 600, FAST)
    assert governed.step.stage is Stage.CANARY
    governed, changes = walk(governed, 239, slower(governed), 600)
    assert changes == []
    governed, changes = walk(governed, 1, slower(governed), 839)
    assert [(one.what, one.before, one.after, one.by) for one in changes] == [
        ("stage", "canary", "shadow, held", BY_ITSELF)
    ]
    assert changes[0].why == (
        "kill switch latency: p95 of the time per token +40.0% against the other hosts "
        "(at least +40.00%, limit +25.00%)"
    )
    assert governed.held == changes[0].why
    assert not governed.inside(HOSTS)
    assert walk(governed, 1000, FAST, 840)[1] == []
    governed, _ = governed.released(2000, "kim", "faster now")
    assert stages(walk(governed, 600, FAST, 2000)[1]) == ["canary"], "and begins with a shadow of its own"


def test_what_a_smaller_slice_did_does_not_count_for_a_larger_one() -> None:
    governed, _ = walk(Governed.begin("acme", policy(rollout=LONG)), 1199, FAST)
    assert {len(one.now.means) for one in governed.switches.watched.values()} == {9}
    governed, changes = walk(governed, 1, FAST, 1199)
    assert stages(changes) == ["gradual 50%"]
    for one in governed.switches.watched.values():
        assert (one.now.means, one.others.means) == ((), ())
        assert [len(blocks.means) for blocks in one.before] == [10, 10, 0], "of every step but that of all hosts"


def test_a_kill_switch_that_is_off_or_far_from_its_limit_does_not() -> None:
    for limits, ms in (({"latency": None}, 14.0), ({"latency": 0.5}, 14.0), ({}, 12.0)):
        governed, _ = walk(Governed.begin("acme", policy(rollout=LONG | {"kill": limits})), 600, FAST)
        governed, changes = walk(governed, 599, slower(governed, ms), 600)
        assert (governed.step.stage, changes) == (Stage.CANARY, [])


def test_alerts_interrupt_a_soak_and_no_kill_switch() -> None:
    # BH-1 everywhere: the soak never ends, but the slice is slower all the same.
    governed, _ = walk(Governed.begin("acme", policy(rollout=LONG)), 600, FAST)
    governed, _ = walk(governed, 240, slower(governed, bh1=True), 600)
    assert governed.soaked == 0
    assert "kill switch latency" in governed.held


def test_kill_switches_outlive_a_restart_and_older_files_are_read() -> None:
    governed, _ = walk(Governed.begin("acme", policy(rollout=LONG)), 600, FAST)
    slow = slower(governed)
    governed, _ = walk(governed, 3 * BLOCK_MINUTES, slow, 600)
    kept = render(governed.standing)
    again = Governed.restored(policy(rollout=LONG), parse(kept, Standing))
    for switch, one in governed.switches.watched.items():
        kept_one = again.switches.watched[switch]
        for blocks, kept_blocks in zip((*one.before, one.now, one.others), (*kept_one.before, kept_one.now,
                                       kept_one.others), strict=True):  # fmt: skip
            assert kept_blocks.means == pytest.approx(blocks.means, abs=1e-6)
    assert "kill switch latency" in walk(again, BLOCK_MINUTES, slow, 800)[0].held
    older = {name: value for name, value in json.loads(kept).items() if name != "switches"}
    again = Governed.restored(policy(rollout=LONG), parse(json.dumps(older).encode(), Standing))
    assert again.at == 1, "the rollout goes on; its switches have nothing to compare with"
    assert walk(again, 10 * BLOCK_MINUTES, slow, 800)[0].held == ""
    broken = json.loads(kept)
    broken["switches"]["latency"]["others"] = []
    with pytest.raises(ValueError, match="every block of the slice"):
        parse(json.dumps(broken).encode(), Standing)


def test_what_outlives_a_restart_goes_on_where_it_was() -> None:
    governed, _ = walk(Governed.begin("acme", policy()), 300)
    standing = parse(render(governed.standing), Standing)
    again = Governed.restored(policy(), standing)
    assert (again.at, again.ladder.rung, again.soaked) == (1, governed.ladder.rung, 0)
    assert stages(walk(again, 240, None, 300)[1]) == ["gradual 50%"]
    assert Governed.restored(policy(version=2), standing).at == 0
    assert Governed.restored(policy(), standing.model_copy(update={"at": 9})).at == 0


def test_r5_and_r6_take_an_operator_and_r6_takes_the_policy_back() -> None:
    governed, _ = walk(Governed.begin("acme", policy()), 300)
    governed, changes = walk(governed, 300, told(*HOSTS), 300)
    rungs = [change.after for change in changes if change.what == "rung"]
    assert rungs == ["SOFT_NUDGE", "STRUCTURAL_GUARDS", "ROUTE_AND_THROTTLE", "DEGRADE", "HUMAN_TAKEOVER"]
    assert governed.ladder.proposed is Rung.SUSPEND
    governed, changes = governed.ordered_rung(600, Rung.SUSPEND, "kim", "BH-2 for hours")
    assert [(one.what, one.after, one.by) for one in changes] == [("rung", "SUSPEND", "kim")]
    assert handed(governed, "host-1").caps.qps == 0.0
    governed, changes = governed.ordered_rung(601, Rung.FULL_ROLLBACK, "kim", "the release")
    assert [one.what for one in changes] == ["rung", "stage"]
    assert governed.held.startswith("R6 by kim")


def test_what_a_host_is_handed_holds_for_it_alone_and_not_for_long() -> None:
    governed, _ = walk(Governed.begin("acme", policy()), 241)
    inside = governed.inside(HOSTS)
    for host in HOSTS:
        told_it = parse(render(handed(governed, host)), Policy)
        assert told_it.issue is not None
        assert (told_it.issue.host, told_it.issue.in_slice, told_it.dry_run) == (
            host,
            host in inside,
            host not in inside,
        )
        assert told_it.issue.expires_at == NOW + LASTS
        assert told_it.caps == policy().caps
        assert told_it.issue.shares == pytest.approx([0.8, 0.1, 0.1])
        assert told_it.issue.actions == []


def test_caps_shares_and_costs_follow_the_rung() -> None:
    governed, _ = walk(Governed.begin("acme", policy()), 10)
    governed, _ = governed.ordered_rung(10, Rung.ROUTE_AND_THROTTLE, "kim", "try it")
    told_it = handed(governed, "host-1")
    assert told_it.issue is not None
    assert (told_it.caps.qps, told_it.caps.tool_per_min) == (pytest.approx(21.0), 40.0)
    p = [share for share in told_it.issue.shares if share > 0.0]
    assert -sum(x * math.log(x) for x in p) / math.log(3) >= 0.9 - 1e-9
    assert told_it.issue.handoff_cost == pytest.approx(0.2 * (1.0 + 3.0 * 0.2))
    assert told_it.issue.actions[-1] == "lower_request_rate"
    governed, _ = governed.ordered_rung(11, Rung.DEGRADE, "kim", "try it")
    assert handed(governed, "host-1").caps.tool_per_min == 0.0


def test_a_narrow_tenant_explores_and_spreads_before_any_rung() -> None:
    governed, _ = walk(Governed.begin("acme", policy()), 2, told(SSE=0.3))
    issue = handed(governed, "host-1").issue
    assert issue is not None
    assert issue.exploration == 0.15
    assert issue.shares[0] < 0.7
    unknown, _ = walk(Governed.begin("acme", policy()), 2, told(SSE=None))
    issue = handed(unknown, "host-1").issue
    assert issue is not None
    assert (issue.exploration, issue.shares) == (0.0, pytest.approx([0.8, 0.1, 0.1]))


def test_a_dry_run_moves_and_nothing_is_in_force() -> None:
    dry = policy(dry_run=True, rollout={"stage": "shadow"})
    governed, changes = walk(Governed.begin("acme", dry), 30, told(*HOSTS))
    assert governed.ladder.rung is Rung.HUMAN_TAKEOVER
    assert all(change.dry_run for change in changes)
    assert all(handed(governed, host).dry_run for host in HOSTS)


def test_policies_that_cannot_be_carried_out_are_refused() -> None:
    check(policy())
    with pytest.raises(ValueError, match="dry run stays in shadow"):
        check(policy(dry_run=True))
    with pytest.raises(ValueError, match="leave it away"):
        check(handed(Governed.begin("acme", policy()), "host-1"))


def test_shares_within_the_rounding_of_their_sum() -> None:
    assert sum(shares_of(policy(), 1.0)) == pytest.approx(1.0)
    assert shares_of(policy(), 1.0) == pytest.approx([1 / 3] * 3, abs=1e-6)


@given(st.lists(st.sampled_from(["calm", "bad", "nobody", "kill", "release"]), max_size=200))
def test_the_audit_trail_is_whole_and_a_held_policy_is_in_force_nowhere(course: list[str]) -> None:
    governed = Governed.begin("acme", policy(rollout={"stage": "full", "soak_minutes": 240, "canary": 0.2}))
    rung, stage = governed.ladder.rung.name, "shadow"
    calm, bad = told(), told(*HOSTS)
    for minute, what in enumerate(course):
        if what == "kill":
            governed, changes = governed.killed(minute, "kim", "why")
        elif what == "release":
            governed, changes = governed.released(minute, "kim", "why")
        else:
            governed, changes = governed.minute(minute, {"calm": calm, "bad": bad}.get(what, {}), HOSTS)
        for change in changes:
            assert change.minute == minute
            assert change.why
            assert change.by
            if change.what == "rung":
                assert change.before == rung
                rung = change.after
            elif change.what == "stage":
                assert change.before == stage
                stage = change.after.removesuffix(", held")
        assert rung == governed.ladder.rung.name
        if governed.held:
            assert handed(governed, "host-1").dry_run
            assert not governed.inside(HOSTS)


def test_soaks_are_whole_blocks() -> None:
    assert 240 % BLOCK_MINUTES == 0
    assert timedelta(minutes=2) < LASTS
    assert json.loads(render(policy()))["rollout"]["soak_minutes"] == 240
