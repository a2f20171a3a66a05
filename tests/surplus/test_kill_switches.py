# SPDX-License-Identifier: Apache-2.0
"""Kill switches: what a minute says, when they look and what makes them fire; error rates on simulated hosts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tests.surplus.health_sample import health

from mvps.surplus.kill_switches import BEYOND, LEAST_INCIDENTS, LEVEL, KillSwitches, Look, Switch, look, read, sides
from mvps.surplus.packets import FallbackCause, HealthMinute, Kill
from mvps.surplus.rollout import BLOCK_MINUTES, LEAST_BLOCKS, Blocks

DAY = 1440
SLICE = {"a"}
CALM = health(latency_p95=10.0)


def broken(count: int, packets: int = 600, **changes: Any) -> HealthMinute:
    return health(packets=packets, fallbacks={"structure": count, "off": 7}, **changes)


def test_latency_is_compared_in_logs_and_only_where_it_is_known() -> None:
    told = {"a": health(latency_p95=20.0), "b": health(latency_p95=10.0), "c": health(latency_p95=40.0)}
    found = read(Switch.LATENCY, sides(told, SLICE), 0)
    assert found.difference == pytest.approx(math.log(20.0) - (math.log(10.0) + math.log(40.0)) / 2)
    assert found.weight == 1.0
    # Older agents say nothing, and a time of nothing has no logarithm.
    for unknown in (health(), health(latency_p95=0.0)):
        assert math.isnan(
            read(Switch.LATENCY, sides({"a": unknown, "b": health(latency_p95=1.0)}, SLICE), 0).difference
        )
        assert math.isnan(
            read(Switch.LATENCY, sides({"b": unknown, "a": health(latency_p95=1.0)}, SLICE), 0).difference
        )


def test_breaks_are_packets_of_lost_structure_pooled_over_hosts() -> None:
    told = {"a": broken(6), "b": broken(0, packets=100), "c": broken(10, packets=900)}
    found = read(Switch.BREAKS, sides(told, SLICE), 0)
    assert found.difference == pytest.approx(6 / 600 - 10 / 1000)
    assert found.weight == pytest.approx(600 * 1000 / 1600)
    assert found.others == pytest.approx(0.01)
    assert math.isnan(read(Switch.BREAKS, sides({"a": broken(0, packets=0), "b": broken(1)}, SLICE), 0).difference)


def test_one_host_that_lies_hides_nothing() -> None:
    honest = {host: broken(6, latency_p95=10.0) for host in "bcdef"}
    for lie in (broken(2**52, 2**52, latency_p95=1e15), broken(0, 2**52, latency_p95=1e-3)):
        told = {"a": broken(12, latency_p95=14.0), **honest, "f": lie}
        assert read(Switch.LATENCY, sides(told, SLICE), 1).difference == pytest.approx(math.log(1.4))
        assert read(Switch.BREAKS, sides(told, SLICE), 1).difference == pytest.approx(0.01)
        # What it would do if it counted.
        assert abs(read(Switch.LATENCY, sides(told, SLICE), 0).difference) > 2.0
    # And of one host whose word cannot be cut, no figure is beyond all bounds.
    for ms in (1e15, 1e-3, 1e-300):
        reading = read(Switch.LATENCY, sides({"a": health(latency_p95=ms), "b": health(latency_p95=1e15)}, SLICE), 1)
        assert abs(reading.difference) < 50.0 or math.isnan(reading.difference)
    assert read(Switch.BREAKS, sides({"a": broken(2**52, 1), "b": broken(0)}, SLICE), 1).difference == 1.0
    # Of two hosts neither can be told to be the liar: both count.
    pair = {"a": CALM, "b": health(latency_p95=10.0), "c": health(latency_p95=40.0)}
    assert read(Switch.LATENCY, sides(pair, SLICE), 1).difference == pytest.approx(math.log(0.5))


def test_incidents_are_hosts_with_either_alert() -> None:
    told = {"a": health(bh1=True), "b": health(bh2=True), "c": health(bh1=True, bh2=True), "d": health(), "e": health()}
    found = read(Switch.INCIDENTS, sides(told, {"a", "d"}), 0)
    assert (found.difference, found.others) == (pytest.approx(1 / 2 - 2 / 3), pytest.approx(2 / 3))
    assert math.isnan(read(Switch.INCIDENTS, sides(told, set(told)), 0).difference), "nobody is left to compare with"


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 500), st.integers(1, 500), st.floats(0, 1), st.floats(0, 1)), min_size=60,
                max_size=60))  # fmt: skip
def test_minutes_weigh_as_mantel_and_haenszel_have_it(minutes: list[tuple[int, int, float, float]]) -> None:
    one = Blocks(1)
    top = bottom = 0.0
    for n, m, p, q in minutes:
        slice_, others = round(p * n), round(q * m)
        told = {
            host: CALM.model_copy(update={"packets": count, "fallbacks": {FallbackCause.STRUCTURE: hits}})
            for host, hits, count in (("a", slice_, n), ("b", others, m))
        }
        reading = read(Switch.BREAKS, sides(told, SLICE), 0)
        one = one.added(reading.difference, reading.weight)
        # As Greenland & Robins write it: (a m - c n) / N over n m / N.
        top += (slice_ * m - others * n) / (n + m)
        bottom += n * m / (n + m)
    assert one.means == pytest.approx((top / bottom,), abs=1e-12)


def test_a_look_is_welchs_t_at_its_level_and_asks_for_both() -> None:
    rng = np.random.default_rng(1)
    before, now = rng.normal(0.0, 0.002, 24), rng.normal(0.009, 0.003, 9)
    found = look(Switch.BREAKS, before.tolist(), now.tolist(), [0.0] * 9, 0.005)
    assert found is not None
    test = stats.ttest_ind(now, before, equal_var=False)
    assert found.surely == pytest.approx(test.confidence_interval(1.0 - 2.0 * LEVEL).low)
    assert found.low == pytest.approx(test.confidence_interval(1.0 - 2.0 * BEYOND).low)
    assert found.change == pytest.approx(now.mean() - before.mean())
    assert (found.fired, found.blocks) == (True, 9)
    # Evidently above 0 and estimated above the limit; evidently above the limit.
    assert [Look(Switch.BREAKS, 0.02, surely, low, 0.01, 4).fired for surely, low in ((1e-9, -1.0), (-1.0, 0.011))] == [
        True, True
    ]  # fmt: skip
    assert not Look(Switch.BREAKS, 0.02, -1.0, 0.009, 0.01, 4).fired
    # Evident, but below the limit; above the limit, but not evident.
    below = look(Switch.BREAKS, before.tolist(), now.tolist(), [0.0] * 9, 0.02)
    assert below is not None
    assert below.surely > 0.0
    assert not below.fired
    wild = look(Switch.BREAKS, before.tolist(), [0.05, -0.03, 0.06, -0.04], [0.0] * 4, 0.005)
    assert wild is not None
    assert wild.change > 0.005
    assert not wild.fired
    assert look(Switch.BREAKS, before.tolist(), now.tolist()[: LEAST_BLOCKS - 1], [0.0] * 3, 0.005) is None
    assert look(Switch.BREAKS, before.tolist()[: LEAST_BLOCKS - 1], now.tolist(), [0.0] * 9, 0.005) is None


def test_figures_are_shares_whatever_was_compared() -> None:
    flat = [0.0] * 4
    slow = look(Switch.LATENCY, flat, [math.log(1.3)] * 4, flat, 0.25)
    assert slow is not None
    assert (slow.change, slow.limit, slow.fired) == (pytest.approx(0.3), 0.25, True)
    assert str(slow).startswith("p95 of the time per token +30.0% against the other hosts (at least +30.00%, limit")
    # Of the others' level, and not of less than the least one.
    for level, limit in ((0.1, 0.05), (0.0, 0.5 * LEAST_INCIDENTS)):
        found = look(Switch.INCIDENTS, flat, [0.04] * 4, [level] * 4, 0.5)
        assert found is not None
        assert (found.limit, found.fired) == (pytest.approx(limit), limit < 0.04)
        assert "minutes of hosts with an alert +4.00% absolute" in str(found)
    assert "lost structure" in str(look(Switch.BREAKS, flat, [0.04] * 4, flat, 0.5))


def walked(
    limits: Kill,
    before: tuple[HealthMinute, HealthMinute],
    now: tuple[HealthMinute, HealthMinute],
) -> tuple[int, Look] | None:
    """Four hours in shadow and up to ten since, of a host of the slice and another one; when a switch fired first."""
    switches = KillSwitches.begin(limits, 2, 24, 1)
    for _ in range(4 * BLOCK_MINUTES):
        switches = switches.shadowed(dict(zip("ab", before, strict=True)), [{"a"}, {"a", "b"}])
    for minute in range(10 * BLOCK_MINUTES):
        switches = switches.in_force(1, dict(zip("ab", now, strict=True)), SLICE)
        if switches.fired is not None:
            return minute + 1, switches.fired
    return None


@pytest.mark.parametrize(
    ("switch", "worse"),
    [
        (Switch.LATENCY, health(latency_p95=13.0)),
        (Switch.INCIDENTS, health(latency_p95=10.0, bh1=True)),
        (Switch.BREAKS, broken(10, latency_p95=10.0)),
    ],
)
def test_each_fires_at_the_first_look_of_what_is_plainly_worse(switch: Switch, worse: HealthMinute) -> None:
    calm = (CALM, CALM)
    found = walked(Kill(), calm, (worse, CALM))
    assert found is not None
    assert (found[0], found[1].switch) == (LEAST_BLOCKS * BLOCK_MINUTES, switch)
    assert walked(Kill(), calm, calm) is None
    # What both sides do cancels; what the slice always was is not the policy's doing; and what is off does not fire.
    assert walked(Kill(), calm, (worse, worse)) is None
    assert walked(Kill(), (worse, CALM), (worse, CALM)) is None
    off = Kill.model_validate({switch.value: None})
    assert walked(off, calm, (worse, CALM)) is None
    assert switch not in KillSwitches.begin(off, 2, 24, 1).watched


def test_another_slice_begins_anew_and_keeps_its_shadow() -> None:
    switches = KillSwitches.begin(Kill(), 2, 24, 1)
    for _ in range(4 * BLOCK_MINUTES):
        switches = switches.shadowed({"a": CALM, "b": CALM}, [{"a"}, {"a"}])
    slow = {"a": health(latency_p95=20.0), "b": CALM}
    for _ in range(3 * BLOCK_MINUTES + 59):
        switches = switches.in_force(1, slow, SLICE)
    switches = switches.moved()
    for _ in range(3 * BLOCK_MINUTES + 59):
        switches = switches.in_force(2, slow, SLICE)
    assert (switches.looks, switches.fired) == ({}, None)
    assert switches.in_force(2, slow, SLICE).fired is not None


def _killed(effect: float, limit: float, phi: float, soaks: int) -> int:
    """Soaks of a day, one host of twenty, that the latency switch ends; hosts' log p95 are AR(1) with sd .2."""
    rng = np.random.default_rng(5)
    count = 0
    for _ in range(soaks):
        drawn = rng.standard_normal((2 * DAY, 20)) * 0.2 * math.sqrt(1.0 - phi * phi)
        drawn[0] /= math.sqrt(1.0 - phi * phi)
        for t in range(1, len(drawn)):
            drawn[t] += phi * drawn[t - 1]
        drawn[DAY:, 0] += effect
        hours = (drawn[:, 0] - drawn[:, 1:].mean(axis=1)).reshape(2, -1, BLOCK_MINUTES).mean(axis=2)
        before, now = hours.tolist()
        found = [look(Switch.LATENCY, before, now[:n], now[:n], limit) for n in range(LEAST_BLOCKS, 25)]
        count += any(one is not None and one.fired for one in found)
    return count


@pytest.mark.parametrize("phi", [0.0, 0.9])
def test_error_rates_of_a_soak(phi: float) -> None:
    # 60 soaks a case, no limit beside the test. 21 looks at .005 cost some .03; the bar leaves two and a half binomial
    # standard errors. A limit keeps noise out, and what is at four times it is found.
    assert _killed(0.0, 1e-9, phi, 60) <= 5
    assert _killed(0.0, 0.2, phi, 60) == 0
    assert _killed(math.log1p(0.2), 0.05, phi, 60) >= 57
