# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.surplus.cap_sample import HASH, cap

from mvps.surplus.indicators import LEAST_MINUTES, Band, crp, ssi
from mvps.surplus.latency_sketch import RELATIVE_ERROR
from mvps.surplus.minutes import (
    AHEAD_NS,
    GRACE_NS,
    LEAST_TIMED,
    MAX_TENANTS,
    MINUTE_NS,
    SILENT_MINUTES,
    Bound,
    Decided,
    Load,
    Minutes,
    Tally,
    decided,
)
from mvps.surplus.packets import FallbackCause, HealthMinute, State, render
from mvps.surplus.schedule import Schedule

START = 1_700_000_040 * 10**9  # a whole minute
SECOND = 10**9
IDLE = Load(0.0, 0.0, 8.0, 0.0)


def minute(minutes: Minutes, number: int, load: Load = IDLE, **changes: Any) -> HealthMinute:
    """One minute with ten packets of one tenant, closed."""
    begun = START + number * MINUTE_NS
    minutes.take([cap(begun + i * SECOND, **changes) for i in range(10)], begun + 10 * SECOND)
    (health,) = minutes.close_due(begun + MINUTE_NS + GRACE_NS, [load], HASH)
    return health


def test_a_minute_is_half_open_and_waits_for_what_was_under_way() -> None:
    minutes = Minutes(START + SECOND)
    edges = (START, START + MINUTE_NS - 1000, START + MINUTE_NS)
    minutes.take([cap(at) for at in edges], START + MINUTE_NS)
    assert not minutes.due(START + MINUTE_NS + GRACE_NS - 1)
    assert minutes.close_due(START + MINUTE_NS + GRACE_NS - 1, [IDLE], HASH) == []
    (first,) = minutes.close_due(START + MINUTE_NS + GRACE_NS, [IDLE], HASH)
    assert (first.packets, first.bucket) == (2, datetime.fromtimestamp(START // SECOND, UTC))
    assert first.cap_head == HASH
    (second,) = minutes.close_due(START + 2 * MINUTE_NS + GRACE_NS, [IDLE], HASH)
    assert (second.packets, second.bucket) == (1, first.bucket + timedelta(minutes=1))
    assert minutes.health("acme") == second


def test_what_comes_late_or_lies_ahead_is_refused_and_counted() -> None:
    minutes = Minutes(START + 30 * SECOND)
    now = START + 30 * SECOND
    minutes.take([cap(now), cap(START - 1000), cap(now + AHEAD_NS), cap(now + AHEAD_NS + 1000)], now)
    minutes.take([cap(START - 1000, "stranger")], now)
    assert minutes.tenants == ["acme"], "what is refused takes no place"
    (health,) = minutes.close_due(START + MINUTE_NS + GRACE_NS, [IDLE], HASH)
    assert (health.packets, health.refused) == (2, {"late": 1, "ahead": 1})
    assert minutes.refused == {"late": 2, "ahead": 1}
    minutes.take([cap(START + 59 * SECOND)], START + MINUTE_NS + GRACE_NS)
    assert minutes.refused["late"] == 3


def test_one_tenant_too_many_is_refused_until_another_falls_silent() -> None:
    minutes = Minutes(START)
    minutes.take([cap(START, f"t{i}") for i in range(MAX_TENANTS + 2)], START)
    assert len(minutes.tenants) == MAX_TENANTS
    assert minutes.refused == {"tenants": 2}
    later = START + (SILENT_MINUTES + 1) * MINUTE_NS + GRACE_NS
    assert len(minutes.close_due(later, [IDLE], HASH)) == MAX_TENANTS
    assert minutes.tenants == []
    minutes.take([cap(later, "new")], later)
    assert minutes.tenants == ["new"]


def test_a_clock_that_is_set_back_begins_anew_and_counts_what_it_dropped() -> None:
    minutes = Minutes(START)
    minutes.take([cap(START), cap(START)], START)
    minutes.close_due(START + MINUTE_NS + GRACE_NS, [IDLE], HASH)
    minutes.take([cap(START + MINUTE_NS)], START + MINUTE_NS + SECOND)
    back = START - 3600 * SECOND
    minutes.take([cap(back)], back)
    assert minutes.refused == {"clock_step": 1}
    (health,) = minutes.close_due(back + MINUTE_NS + GRACE_NS, [IDLE], HASH)
    assert health.packets == 1


def test_the_sums_of_a_minute_are_those_of_its_packets() -> None:
    minutes = Minutes(START)
    caps = [
        cap(START, fallback="structure", latency_ms=20.0),
        cap(START, fallback="off", latency_ms=40.0, caps_hit=True),
        cap(START, latency_ms=60.0),
        cap(START),
    ]
    minutes.take(caps, START)
    (health,) = minutes.close_due(START + MINUTE_NS + GRACE_NS, [IDLE], HASH)
    assert health.fallbacks == {FallbackCause.STRUCTURE: 1, FallbackCause.OFF: 1}
    assert health.kl_sum == pytest.approx(0.008)
    each = np.array([1.0, 2.0, 3.0])  # ms a token
    assert health.crp == pytest.approx(crp(0.0, 8.0, 0.25, each.std(ddof=1) / each.mean(), 0.25))


def test_variation_is_numpys_and_nothing_of_one_packet() -> None:
    tally = Tally()
    times = [3.0, 5.0, 4.0, 100.0, 0.25]
    for number, ms in enumerate(times):
        assert tally.variation == pytest.approx(
            np.std(times[:number], ddof=1) / np.mean(times[:number]) if number > 1 else 0.0
        )
        tally.add(cap(START, latency_ms=ms, tokens=1))
    tally.add(cap(START, latency_ms=7.0, tokens=0))
    assert tally.timed == len(times)


def test_a_minute_says_its_p95_of_the_time_per_token() -> None:
    minutes = Minutes(START)
    times = np.random.default_rng(2).lognormal(3.0, 1.0, 200)
    minutes.take([cap(START, latency_ms=float(20.0 * ms)) for ms in times], START)
    minutes.take([cap(START), cap(START, latency_ms=1e9, tokens=0)], START)  # neither has a time per token
    (health,) = minutes.close_due(START + MINUTE_NS + GRACE_NS, [IDLE], HASH)
    wanted = float(np.quantile(times, 0.95, method="inverted_cdf"))
    assert health.latency_p95 == pytest.approx(wanted, rel=RELATIVE_ERROR)


def test_of_too_few_packets_the_p95_is_not_known() -> None:
    for count, known in ((LEAST_TIMED - 1, False), (LEAST_TIMED, True)):
        minutes = Minutes(START)
        minutes.take([cap(START, latency_ms=20.0)] * count, START)
        (health,) = minutes.close_due(START + MINUTE_NS + GRACE_NS, [IDLE], HASH)
        assert (health.latency_p95 is not None) is known
        assert (b"latency_p95" in render(health)) is known
    minutes = Minutes(START)
    minutes.take([cap(START, latency_ms=1e15, tokens=1)] * LEAST_TIMED, START)
    (health,) = minutes.close_due(START + MINUTE_NS + GRACE_NS, [IDLE], HASH)
    assert health.latency_p95 == pytest.approx(1e15, rel=RELATIVE_ERROR)


def test_stress_is_the_largest_flow_and_what_is_not_known_is_left_out() -> None:
    minutes = Minutes(START)
    assert minutes.pressures(START, []) == {}
    minutes.note_host({"cpu": 0.2, "memory": 0.6, "kernel": 0.0}, START)
    minutes.note_host({"cpu": 0.4, "kernel": 1.0}, START)
    found = minutes.pressures(START, [Load(6.0, 4.0, 8.0, 0.9)])
    assert found["kernel"] == 0.5
    one = np.ones(1)
    assert found["cpu"] == pytest.approx(ssi(0.3 * one, one, 0 * one)[0])
    assert found["memory"] == pytest.approx(ssi(0.6 * one, one, 0 * one)[0])
    assert found["engines"] == pytest.approx(ssi(6 * one, 8 * one, 4 * one)[0])
    assert found["kv_cache"] == pytest.approx(0.3)
    minutes.take([cap(START)], START)
    (health,) = minutes.close_due(START + MINUTE_NS + GRACE_NS, [Load(6.0, 4.0, 8.0, 0.9)], HASH)
    assert health.ssi_star == max(found.values())
    assert minutes.pressures(START + MINUTE_NS, []) == {}, "what was closed is gone"


def test_growth_of_the_backlog_is_fragility() -> None:
    minutes = Minutes(START)
    assert minute(minutes, 0, Load(8.0, 2.0, 8.0, 0.0)).crp == 0.0
    assert minute(minutes, 1, Load(8.0, 10.0, 8.0, 0.0)).crp == pytest.approx(crp(8.0, 8.0, 0.0, 0.0, 0.0))
    assert minute(minutes, 2, Load(8.0, 1.0, 8.0, 0.0)).crp == 0.0


def test_an_engine_without_slots_has_no_share_and_a_minute_without_engines_no_backlog() -> None:
    minutes = Minutes(START)
    unsized = Load(5.0, 50.0, 0.0, 0.5)
    found = minutes.pressures(START, [Load(6.0, 4.0, 8.0, 0.9), unsized])
    assert found == minutes.pressures(START, [Load(6.0, 4.0, 8.0, 0.9)])
    assert set(minutes.pressures(START, [unsized])) == {"kv_cache"}
    assert minute(minutes, 0, Load(8.0, 10.0, 8.0, 0.0)).crp == 0.0
    minute(minutes, 1, unsized)
    assert minute(minutes, 2, Load(8.0, 10.0, 8.0, 0.0)).crp == 0.0, "what waited all the time has not grown"


def test_lambda_and_budget_are_the_schedules() -> None:
    minutes = Minutes(START)
    schedule = Schedule()
    for number in range(3):
        minutes.note_host({"kernel": 1.0}, START + number * MINUTE_NS)
        health = minute(minutes, number)
        schedule = schedule.step(1.0, 0.0, math.nan, math.nan, Band.GREEN)
        assert (health.lam, health.kl_budget) == (schedule.lam, schedule.budget)
    told = minutes.directive("acme")
    assert told.lam == schedule.lam > Schedule().rule.base
    assert told.dlogits_budget**2 / 2 == pytest.approx(told.kl_budget)
    assert told.look_ahead, "stress above its trigger"
    assert math.isnan(told.sse)


def test_without_any_known_pressure_everything_stays() -> None:
    minutes = Minutes(START)
    minutes.take([cap(START)], START)
    (health,) = minutes.close_due(START + MINUTE_NS + GRACE_NS, [], HASH)
    assert health.ssi_star is None
    assert health.lam == Schedule().rule.base
    others = minutes.directive("nobody")
    assert (others.lam, others.band, others.look_ahead) == (health.lam, Band.GREEN, False)


def test_a_host_under_pressure_raises_band_and_lambda_of_its_tenant() -> None:
    chance = np.random.default_rng(3)
    minutes = Minutes(START)
    calm = LEAST_MINUTES + 60
    for number in range(calm):
        minutes.note_host({"cpu": float(chance.uniform(0.05, 0.15)), "kernel": 0.0}, START + number * MINUTE_NS)
        before = minute(minutes, number)
    assert before.state is State.GREEN
    for number in range(calm, calm + 12):
        minutes.note_host({"cpu": 0.95, "kernel": 1.0}, START + number * MINUTE_NS)
        after = minute(minutes, number, fallback="structure", caps_hit=True)
    assert after.state in (State.ACTION, State.EMERGENCY)
    assert after.bh2
    assert after.lam > before.lam + 0.1
    assert after.kl_budget < before.kl_budget


def test_spread_counts_where_an_engine_measures_it() -> None:
    minutes = Minutes(START)
    minutes.note_spread("acme", 0.5)
    assert minutes.refused == {"spread": 1}, "nobody knows this tenant yet"
    minutes.take([cap(START)], START)
    minutes.note_spread("acme", 1.5)
    minutes.note_spread("acme", 0.25)
    assert minutes.refused == {"spread": 2}
    (health,) = minutes.close_due(START + MINUTE_NS + GRACE_NS, [IDLE], HASH)
    assert health.sse == 0.25
    assert minutes.directive("acme").look_ahead, "a narrow tenant"


def test_sums_that_cannot_be_are_clipped_and_counted() -> None:
    minutes = Minutes(START)
    minutes.take([cap(START, kl_used=1e15), cap(START, kl_used=1e15)], START)
    (health,) = minutes.close_due(START + MINUTE_NS + GRACE_NS, [IDLE], HASH)
    assert (health.kl_sum, health.refused) == (1e15, {"kl_sum": 1})
    assert minutes.refused == {"kl_sum": 1}


def test_the_same_packets_at_the_same_times_give_the_same_bytes() -> None:
    def bytes_of() -> list[bytes]:
        minutes = Minutes(START)
        found = []
        for number in range(5):
            minutes.note_host({"cpu": 0.1 * number}, START + number * MINUTE_NS)
            found.append(render(minute(minutes, number, latency_ms=3.0 + number)))
        return found

    assert bytes_of() == bytes_of()


def test_what_was_decided_is_read_from_the_packets() -> None:
    found: dict[tuple[datetime, str], Decided] = {}
    decided([cap(START, **{"lambda": 0.4}), cap(START + SECOND, **{"lambda": 0.5}, state="Action", bh1=True)], found)
    decided([cap(START + 2 * SECOND, fallback="off"), cap(START + MINUTE_NS), cap(START, "other")], found)
    bucket = datetime.fromtimestamp(START // SECOND, UTC)
    assert set(found) == {(bucket, "acme"), (bucket, "other"), (bucket + timedelta(minutes=1), "acme")}
    one = found[bucket, "acme"]
    assert (one.packets, one.tokens, one.lam, one.bh1, one.bh2) == (3, 60, (0.4, 0.5), True, False)
    assert one.states == {State.GREEN, State.ACTION}
    assert one.fallbacks == {FallbackCause.OFF: 1}
    assert one.kl_used == pytest.approx(0.006)


def test_what_comes_within_four_tenths_of_a_second_after_its_minute_still_counts() -> None:
    minutes = Minutes(START + SECOND)
    after = START + MINUTE_NS + 400_000_000
    assert minutes.close_due(after, [IDLE], HASH) == []
    minutes.take([cap(START + 59 * SECOND)], after)
    (health,) = minutes.close_due(START + MINUTE_NS + SECOND, [IDLE], HASH)
    assert (health.packets, minutes.refused) == (1, {})


@given(st.floats(0.0, 10.0), st.floats(0.0, 10.0), st.floats(1e-6, 1.0), st.booleans())
def test_bounds_of_a_policy_stay_inside_the_hosts_own(one: float, other: float, nats: float, look: bool) -> None:
    minutes = Minutes(START)
    minutes.take([cap(START), cap(START, "free")], START)
    free = minutes.directive("free")
    least, most = sorted((one, other))
    minutes.bounds = {"acme": Bound(least, most, nats, look)}
    told = minutes.directive("acme")
    rule = Schedule().rule
    assert rule.least <= told.lam <= rule.most
    assert least <= told.lam <= most or told.lam == rule.most
    assert told.kl_budget == min(free.kl_budget, nats)
    assert told.look_ahead is look
    assert minutes.directive("free") == free
    minutes.bounds = {}
    assert minutes.directive("acme") == free._replace(tenant="acme")
