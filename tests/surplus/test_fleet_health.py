# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.surplus.health_sample import health

from mvps.surplus.fleet_health import combine, limits_of, more_than_outliers, state_of, worst
from mvps.surplus.indicators import Band, Limits
from mvps.surplus.packets import State, Thresholds

LIMITS = limits_of(Thresholds())
unit = st.floats(0.0, 1.0)


def test_limits_are_those_of_the_policy() -> None:
    assert Limits() == LIMITS
    assert limits_of(Thresholds(caution=0.1, action=0.2, emergency=0.3)).band(0.25) is Band.ACTION
    assert [state_of(band) for band in Band] == list(State)


@given(st.lists(unit, min_size=1, max_size=9), st.integers(0, 4), st.lists(unit, max_size=4))
def test_so_many_liars_move_a_value_no_further_than_honest_hosts_say(
    honest: list[float], f: int, lies: list[float]
) -> None:
    lies = lies[:f]
    if len(honest) + len(lies) < 2 * f + 1:
        return
    found = worst([*honest, *lies], f)
    # It is at most the worst of the honest ones, and at least their (2f + 1)-th worst.
    assert found <= max(honest)
    ordered = sorted(honest, reverse=True)
    assert len(ordered) <= f or found >= ordered[min(f, len(ordered) - 1)] or found in lies
    assert found >= min(honest)


@given(st.lists(unit, min_size=1, max_size=9), st.integers(0, 9))
def test_low_is_the_mirror_image(values: list[float], f: int) -> None:
    assert worst(values, f, low=True) == -worst([-value for value in values], f)


def test_what_is_not_known_is_left_out() -> None:
    assert math.isnan(worst([None, math.nan], 1))
    assert worst([None, 0.3, math.nan], 5) == 0.3
    assert [worst([0.1, 0.9], f) for f in (0, 1)] == [0.9, 0.9], "of two nobody can be left out"
    assert [worst([0.1, 0.5, 0.9], f) for f in (0, 1, 2)] == [0.9, 0.5, 0.5]


def test_alerts_count_from_more_hosts_than_the_outliers() -> None:
    assert not more_than_outliers([], 0)
    assert more_than_outliers([True], 3)
    assert not more_than_outliers([True, False, False], 1)
    assert more_than_outliers([True, True, False], 1)


def test_one_host_of_three_makes_no_tenant_ill_and_two_do() -> None:
    calm, ill = health(), health(Xi=0.9, SSE=0.1, crp_score=0.9, ssi_star_score=0.8, bh1=True, bh2=True)
    one = combine({"a": calm, "b": calm, "c": ill}, 7, 1, LIMITS)
    assert (one.minute, one.hosts, one.packets) == (7, 3, 1800)
    assert one.health == combine({"a": calm, "b": calm, "c": calm}, 7, 1, LIMITS).health
    assert combine({"a": calm, "b": calm, "c": ill}, 7, 0, LIMITS).health.band is Band.EMERGENCY
    two = combine({"a": calm, "b": ill, "c": ill}, 7, 1, LIMITS).health
    assert (two.sse, two.xi, two.crp_score, two.band, two.bh1, two.bh2) == (0.1, 0.9, 0.9, Band.EMERGENCY, True, True)
    assert combine({"a": health(bh1=True)}, 7, 1, LIMITS).health.band is Band.ACTION


def test_bands_come_down_by_a_margin_and_stay_while_nothing_is_known() -> None:
    near = {"a": health(Xi=0.52)}
    assert combine(near, 0, 1, LIMITS).health.band is Band.CAUTION
    assert combine(near, 0, 1, LIMITS, Band.ACTION).health.band is Band.ACTION
    assert combine({"a": health(Xi=None)}, 0, 1, LIMITS, Band.ACTION).health.band is Band.ACTION
    with pytest.raises(ValueError, match="no host told"):
        combine({}, 0, 1, LIMITS)
