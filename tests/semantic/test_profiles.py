# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from mvps.coherence.phase import Phase
from mvps.semantic.profiles import BLACK, GREY, PROFILES, WHITE, Profile, fit_baseline, judge, profile_for

NOISE = {"c1": 1e-5, "c2_w2": 1e-5, "c3_cka": 1e-5}
MEAN = np.array([0.97, 0.95, 0.9])


def ticks(rng: np.random.Generator, number: int, profile: Profile = WHITE) -> list[dict[str, float | None]]:
    mix = np.array([[0.01, 0.0, 0.0], [0.006, 0.01, 0.0], [0.0, 0.01, 0.02]])
    return [dict(zip(profile.main, row.tolist(), strict=False)) for row in MEAN + rng.normal(size=(number, 3)) @ mix.T]


@pytest.mark.parametrize(
    ("profile", "dof", "watch", "alarm"), [(WHITE, 3, 7.81, 11.34), (GREY, 2, 5.99, 9.21), (BLACK, 1, 3.84, 6.63)]
)
def test_degrees_of_freedom_are_those_of_the_profile(profile: Profile, dof: int, watch: float, alarm: float):
    rng = np.random.default_rng(1)
    baseline = fit_baseline(profile, "e", ticks(rng, 100, profile), NOISE, mode="chi2")
    found = judge(profile, baseline, "e", {**ticks(rng, 1, profile)[0], "c4": 0.0})
    assert found.dof == dof
    assert found.cutoffs is not None
    assert found.cutoffs[:2] == pytest.approx((watch, alarm), abs=0.006)
    assert set(found.contributions) == set(profile.main)
    assert sum(found.contributions.values()) == pytest.approx(found.d2)
    assert "c4" not in profile.main
    assert PROFILES[profile.name] is profile


@pytest.mark.parametrize(
    ("attention", "log_probabilities", "profile"),
    [(True, True, WHITE), (True, False, WHITE), (False, True, GREY), (False, False, BLACK)],
)
def test_the_profile_follows_from_what_can_be_seen(attention: bool, log_probabilities: bool, profile: Profile):
    assert profile_for(attention, log_probabilities) is profile
    everything = {*profile.main, *profile.reported, *profile.missing}
    assert everything == {"c1", "c2_w2", "c3_cka", "c4"}


def test_it_is_uncalibrated_until_it_has_a_baseline():
    found = judge(WHITE, None, "e", {"c1": 0.1, "c2_w2": 0.1, "c3_cka": None})
    assert found.phase is None
    assert found.d2 is None
    assert found.note == "uncalibrated: no baseline yet"
    assert found.absent == ("c3_cka",)


def test_c4_moves_no_main_phase():
    rng = np.random.default_rng(2)
    baseline = fit_baseline(WHITE, "e", ticks(rng, 200), NOISE)
    tick = dict(zip(WHITE.main, MEAN.tolist(), strict=True))
    calm = judge(WHITE, baseline, "e", {**tick, "c4": 1.0})
    brittle = judge(WHITE, baseline, "e", {**tick, "c4": 0.0})
    assert calm == brittle
    assert calm.phase is Phase.BAU


def test_a_diverging_replica_is_seen_and_the_axis_named():
    rng = np.random.default_rng(3)
    baseline = fit_baseline(WHITE, "e", ticks(rng, 300), NOISE)
    found = judge(WHITE, baseline, "e", {"c1": 0.97, "c2_w2": 0.5, "c3_cka": 0.9})
    assert found.phase is Phase.CRITICAL
    assert max(found.contributions, key=lambda axis: found.contributions[axis]) == "c2_w2"


@pytest.mark.parametrize("mode", ["empirical", "finite-sample"])
def test_false_alarms_are_as_promised(mode: str):
    """40 baselines of 100 independent ticks, 60 new ones each, at 5 %; what baselines add to the spread is measured."""
    rng = np.random.default_rng(4)
    rates = []
    for _ in range(40):
        baseline = fit_baseline(WHITE, "e", ticks(rng, 100), NOISE, mode=mode)
        phases = [judge(WHITE, baseline, "e", tick).phase for tick in ticks(rng, 60)]
        rates.append(np.mean([phase is not Phase.BAU for phase in phases]))
    error = np.std(rates) / np.sqrt(40)
    assert abs(np.mean(rates) - 0.05) < 4.0 * error + 0.01  # conformal tails err to fewer


def test_the_sources_limits_fire_too_often_on_a_short_window():
    """60 baselines of 60 ticks each: more alarms than 5 % in 6000 ticks would give once in 10,000."""
    rng = np.random.default_rng(10)
    alarms = 0
    for _ in range(60):
        baseline = fit_baseline(WHITE, "e", ticks(rng, 60), NOISE, mode="chi2")
        alarms += sum(judge(WHITE, baseline, "e", tick).phase is not Phase.BAU for tick in ticks(rng, 100))
    assert alarms > binom.ppf(1 - 1e-4, 6000, 0.05)


def test_an_axis_that_never_moved_is_no_degree_of_freedom_and_no_alarm_by_rounding():
    rng = np.random.default_rng(5)
    steady = [{**tick, "c2_w2": 1.0} for tick in ticks(rng, 100, GREY)]
    baseline = fit_baseline(GREY, "e", steady, NOISE, mode="chi2")
    found = judge(GREY, baseline, "e", {"c1": 0.97, "c2_w2": 1.0 - 1e-9})
    assert found.dof == 1
    assert found.phase is Phase.BAU
    assert judge(GREY, baseline, "e", {"c1": 0.97, "c2_w2": 0.5}).phase is Phase.CRITICAL


def test_absent_axes_are_named_and_not_imputed():
    rng = np.random.default_rng(6)
    baseline = fit_baseline(WHITE, "e", ticks(rng, 100), NOISE)
    found = judge(WHITE, baseline, "e", {"c1": 0.97, "c3_cka": None})
    assert found.dof == 1
    assert found.absent == ("c2_w2", "c3_cka")
    assert found.note == "without c2_w2, c3_cka"
    nothing = judge(WHITE, baseline, "e", {})
    assert nothing.phase is None
    assert nothing.note == "no axis has a value in this tick"


def test_ticks_with_gaps_do_not_calibrate():
    rng = np.random.default_rng(7)
    gaps = [{**tick, "c3_cka": None} for tick in ticks(rng, 200)]
    with pytest.raises(ValueError, match="0 of 200 ticks have all of c1, c2_w2, c3_cka"):
        fit_baseline(WHITE, "e", gaps, NOISE)
    made = fit_baseline(WHITE, "e", gaps + ticks(rng, 60), NOISE)
    assert made.ticks + made.trimmed == 60


def test_what_does_not_belong_together_is_refused():
    rng = np.random.default_rng(8)
    baseline = fit_baseline(WHITE, "e", ticks(rng, 60), NOISE)
    with pytest.raises(ValueError, match="calibrate anew"):
        judge(WHITE, baseline, "another", {})
    with pytest.raises(ValueError, match="calibrate anew"):
        judge(GREY, baseline, "e", {})
    with pytest.raises(ValueError, match="unknown cut-off mode"):
        fit_baseline(WHITE, "e", ticks(rng, 60), NOISE, mode="magic")
    with pytest.raises(ValueError, match="noise variance"):
        fit_baseline(WHITE, "e", ticks(rng, 60), {"c1": 1e-5})
    with pytest.raises(ValueError, match="pass None"):
        fit_baseline(BLACK, "e", [{"c1": float("nan")}] * 60, NOISE)


def test_a_fault_while_calibrating_is_set_aside():
    rng = np.random.default_rng(9)
    window = ticks(rng, 300)
    for tick in window[100:120]:
        tick["c2_w2"] = 0.6
    baseline = fit_baseline(WHITE, "e", window, NOISE)
    assert 20 <= baseline.trimmed <= 24
    assert baseline.ticks == 300 - baseline.trimmed
    assert judge(WHITE, baseline, "e", {"c1": 0.97, "c2_w2": 0.6, "c3_cka": 0.9}).phase is Phase.CRITICAL
    assert fit_baseline(WHITE, "e", ticks(rng, 300), NOISE).trimmed <= 3
