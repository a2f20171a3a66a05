# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import norm, zscore

from mvps.surplus.indicators import (
    CRP_LIMIT,
    Alarm,
    Band,
    Limits,
    Minute,
    TenantBaseline,
    Watch,
    crp,
    ssi,
    ssi_mean,
    ssi_star,
    text_xi,
)

amounts = hnp.arrays(np.float64, 5, elements=st.floats(0, 1e6))
CALM = Minute(sse=0.75, crp=0.1, ssi_star=0.3)


def calibrated(seed: int = 1, minutes: int = 600) -> Watch:
    chance = np.random.default_rng(seed)
    watch = Watch()
    for _ in range(minutes):
        watch, _ = watch.step(healthy(chance))
    return watch


def healthy(chance: np.random.Generator) -> Minute:
    return Minute(0.7 + 0.05 * chance.normal(), chance.beta(2, 10), chance.beta(3, 6))


@given(amounts, amounts, amounts)
def test_ssi_is_a_share(activity: np.ndarray, capacity: np.ndarray, backlog: np.ndarray) -> None:
    values = ssi(activity, capacity, backlog)
    assert np.all((values >= 0.0) & (values <= 1.0))
    assert np.all(values[activity + backlog == 0.0] == 0.0)


def test_ssi_rises_with_load_backlog_and_hits_and_is_1_only_when_all_are_full() -> None:
    one = np.ones(1)
    levels = [ssi(x * one, one, q * one)[0] for x, q in ((0.2, 0.0), (0.9, 0.0), (0.9, 1.0), (1.0, 1.0), (2.0, 1e9))]
    assert levels == sorted(levels)
    assert levels[-1] == pytest.approx(1.0)
    assert ssi(one, 0.0 * one, one)[0] == 1.0
    assert ssi_star(np.array([0.1, 0.9, 0.2])) == 0.9
    assert ssi_star(np.arange(100.0), 0.95) == 95.0
    assert ssi_mean(np.array([0.0, 1.0]), np.array([3.0, 1.0])) == 0.25


@given(st.floats(-1e6, 1e6), st.floats(0.1, 1e6), st.floats(0, 1), st.floats(0, 1e6), st.floats(0, 1))
def test_crp_is_a_share_that_rises_with_each_part(g: float, k: float, r: float, cv: float, miss: float) -> None:
    base = crp(g, k, r, cv, miss)
    assert 0.0 <= base <= 1.0
    assert crp(g + 1.0, k, r, cv, miss) >= base
    assert crp(g, k, min(r + 0.1, 1.0), cv, miss) >= base
    assert crp(g, k, r, cv + 1.0, miss) >= base
    assert crp(-5.0, k, 0.0, 0.0, 0.0) == 0.0
    assert crp(0.0, k, 0.0, math.inf, 0.0) == 0.25


def test_the_limit_of_crp_is_that_of_the_text() -> None:
    assert pytest.approx(math.log(norm.sf(0.8)) / math.log(1e-3), abs=1e-4) == CRP_LIMIT
    assert Limits().crp_calm == pytest.approx(math.log(norm.sf(0.3)) / math.log(1e-3), abs=0.01)


def test_tail_scores_say_how_rare_a_value_is() -> None:
    baseline = TenantBaseline()
    for value in range(999):
        assert baseline.ready is (value >= 60)
        baseline = baseline.learned(float(value))
    assert baseline.exceeded(1e9) == pytest.approx(1e-3)
    assert baseline.score(1e9) == pytest.approx(1.0)
    assert baseline.score(-1.0) == 0.0
    assert baseline.score(900.0) == pytest.approx(1.0 / 3.0, abs=1e-3)
    assert math.isnan(baseline.score(math.nan))
    assert baseline.learned(math.nan) == baseline
    assert math.isnan(TenantBaseline().score(1.0))
    assert len(replace(baseline, most=100).learned(1.0).values) == 100


def test_a_healthy_tenant_is_seldom_in_action_where_the_text_has_it_in_emergency() -> None:
    chance = np.random.default_rng(7)
    watch, bands = calibrated(7, 1500), []
    raw = [healthy(chance) for _ in range(3000)]
    for minute in raw:
        watch, health = watch.step(minute)
        bands.append(health.band)
    assert np.mean(np.array(bands) >= Band.ACTION) < 0.01
    assert np.mean(np.array(bands) == Band.EMERGENCY) < 0.005
    sse, fragile, stressed = (np.array(values) for values in zip(*raw, strict=True))
    assert 0.2 < np.mean(text_xi(sse, zscore(fragile), zscore(stressed)) >= 0.75) < 0.4


def test_without_a_baseline_nothing_is_judged() -> None:
    watch = Watch()
    for _ in range(59):
        watch, health = watch.step(CALM)
        assert math.isnan(health.xi)
        assert (health.band, health.bh1, health.bh2) == (Band.GREEN, False, False)


def test_a_slide_raises_bh1_before_bh2_and_recovery_clears_both() -> None:
    watch = calibrated()
    seen: list[tuple[int, bool, bool, Band]] = []
    for minute in range(60):
        depth = min(minute / 12.0, 1.0)
        # Spread goes first, load follows.
        late = max(2.0 * depth - 1.0, 0.0)
        watch, health = watch.step(Minute(0.7 - 0.6 * depth, 0.15 + 0.6 * depth, 0.3 + 0.69 * late))
        seen.append((minute, health.bh1, health.bh2, health.band))
    first_bh1 = next(m for m, bh1, _, _ in seen if bh1)
    first_bh2 = next(m for m, _, bh2, _ in seen if bh2)
    assert first_bh1 <= first_bh2 < 25
    assert all(band is Band.EMERGENCY for m, _, _, band in seen if m >= first_bh2)
    assert all(band >= Band.ACTION for m, _, _, band in seen if m >= first_bh1)
    baseline = watch.crp_baseline
    chance = np.random.default_rng(3)
    for _ in range(40):
        watch, health = watch.step(healthy(chance))
    assert (health.bh1, health.bh2) == (False, False)
    assert health.band <= Band.CAUTION
    assert max(baseline.values) < 0.5, "the slide was not learned"


def test_a_fast_onset_counts_more_than_a_slow_one() -> None:
    watch = calibrated()
    for _ in range(10):
        watch, _ = watch.step(CALM)
    _, sudden = watch.step(Minute(0.2, 0.5, 0.3))
    sse, score = sudden.sse, sudden.crp_score
    steady = (0.6 * (1 - sse) + 0.8 * score + 0.8 * sudden.ssi_score) / 2.2
    assert sudden.xi > steady


def test_minutes_that_are_not_known_change_nothing() -> None:
    watch = calibrated()
    again, health = watch.step(Minute(math.nan, math.nan, math.nan))
    assert math.isnan(health.xi)
    assert again.band is watch.band
    assert again.crp_baseline == watch.crp_baseline
    assert (again.sse, again.crp) == (watch.sse, watch.crp)


@pytest.mark.parametrize(("xi", "band"), [(0.34, 0), (0.35, 1), (0.54, 1), (0.55, 2), (0.65, 2), (0.75, 3), (2.0, 3)])
def test_bands_begin_where_section_6_says(xi: float, band: int) -> None:
    assert Limits().band(xi) == band


def test_bands_end_a_margin_lower() -> None:
    limits = Limits()
    assert limits.band(0.52, Band.ACTION) is Band.ACTION
    assert limits.band(0.49, Band.ACTION) is Band.CAUTION
    assert limits.band(0.72, Band.EMERGENCY) is Band.EMERGENCY
    assert limits.band(0.52, Band.EMERGENCY) is Band.ACTION
    assert limits.band(0.31, Band.EMERGENCY) is Band.CAUTION
    assert limits.band(0.1, Band.EMERGENCY) is Band.GREEN
    assert limits.band(0.76, Band.GREEN) is Band.EMERGENCY


def test_an_alarm_wants_repetition_dwells_and_wants_calm() -> None:
    alarm = Alarm(need=3, window=10, quiet=2, dwell=4)
    for breach, expected in ((True, False), (False, False), (True, False), (True, True)):
        alarm = alarm.step(breach, not breach)
        assert alarm.raised is expected
    states = []
    for _ in range(5):
        alarm = alarm.step(False, True)
        states.append(alarm.raised)
    assert states == [True, True, True, False, False]
    neither = Alarm(need=1, window=1, quiet=2, dwell=0).step(True, False)
    for _ in range(20):
        neither = neither.step(False, False)
    assert neither.raised, "between the limits is not calm"


@given(st.lists(st.booleans(), min_size=1, max_size=60))
def test_an_alarm_never_toggles_within_its_dwell(breaches: list[bool]) -> None:
    alarm, since, was = Alarm(need=2, window=3, quiet=1, dwell=4), 0, False
    for breach in breaches:
        alarm = alarm.step(breach, not breach)
        since = 0 if alarm.raised != was else since + 1
        if was and not alarm.raised:
            assert alarm.age >= 4
        was = alarm.raised


def test_a_tenant_without_texts_is_judged_by_what_is_known() -> None:
    chance = np.random.default_rng(9)
    watch = Watch()
    for _ in range(300):
        watch, health = watch.step(healthy(chance)._replace(sse=math.nan))
    assert math.isnan(health.sse)
    assert health.xi == pytest.approx(0.5 * (health.crp_score + health.ssi_score), abs=0.1)
    for _ in range(12):
        watch, health = watch.step(Minute(math.nan, 0.9, 0.99))
    assert (health.bh1, health.bh2, health.band) == (False, True, Band.EMERGENCY)
