# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvps.coherence.axes import c2_plain
from mvps.coherence.phase import Phase
from mvps.robust import fleet
from mvps.robust.fleet import Evidence, Label, Settled, bau_statistics, decide, fit_baseline, statistics
from mvps.robust.median import c2_gm_seed


def calibrate(rng: np.random.Generator, hosts: int, kinds: int, f: int, ticks: int = 300) -> fleet.FleetBaseline:
    """On honest ticks that share a load: hosts are correlated."""
    return fit_baseline(np.stack([bau_statistics(quiet(rng, hosts, kinds), f, t) for t in range(ticks)]), f)


def quiet(rng: np.random.Generator, hosts: int, kinds: int) -> np.ndarray:
    return rng.standard_normal((hosts, kinds)) + 0.1 * rng.standard_normal(kinds)


def nobody(hosts: int) -> np.ndarray:
    return np.zeros(hosts, dtype=np.int64)


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 7), st.booleans())
def test_the_two_removals_are_the_extremes_of_all(seed: int, hosts: int, holes: bool):
    """Against every removal of exactly f: smallest and largest sum of what stays, smallest and largest maximum."""
    rng = np.random.default_rng(seed)
    z = rng.standard_cauchy((hosts, 2)).clip(fleet.LOW, fleet.HIGH)
    if holes:
        z[rng.integers(hosts), 0] = np.nan
    f = int(rng.integers(0, (hosts - 1) // 2 + 1))
    found = statistics(z, f)
    for kind in range(2):
        heard = z[np.isfinite(z[:, kind]), kind]
        if len(heard) <= 2 * f:
            assert np.isnan(found[kind]).all()
            continue
        staying = list(itertools.combinations(heard, len(heard) - f))
        sums = [sum(some) / math.sqrt(len(some)) for some in staying]
        everybody, minimax, worst = found[kind]
        assert everybody == pytest.approx([heard.sum() / math.sqrt(len(heard)), heard.max()])
        assert minimax == pytest.approx([min(sums), min(max(some) for some in staying)])
        assert worst == pytest.approx([max(sums), max(max(some) for some in staying)])


def test_hosts_in_any_order_give_the_same_statistics():
    rng = np.random.default_rng(1)
    z = quiet(rng, 40, 3)
    assert statistics(z[rng.permutation(40)], 6) == pytest.approx(statistics(z, 6))


def test_quiet_ticks_alarm_as_rarely_as_promised_though_hosts_are_correlated():
    rng = np.random.default_rng(2)
    baseline = calibrate(rng, 20, 1, 2, ticks=600)
    phases = [decide(quiet(rng, 20, 1), nobody(20), baseline)[0] for _ in range(3000)]
    assert np.mean([one.phase >= Phase.WATCH for one in phases]) < 0.06
    assert np.mean([one.everybody >= Phase.ALARM for one in phases]) < 0.015


def test_a_little_of_something_everywhere_is_the_fleets():
    """Every host half a deviation up: no host is conspicuous, the fleet is."""
    rng = np.random.default_rng(3)
    baseline = calibrate(rng, 200, 1, 20)
    decision = decide(quiet(rng, 200, 1) + 0.7, nobody(200), baseline)[0]
    assert decision.phase >= Phase.ALARM
    assert decision.suspects == ()
    assert decision.moved < 20


@pytest.mark.parametrize("hosts", [5, 16, 1000])
def test_one_host_far_out_is_a_local_fault_and_no_liar(hosts: int):
    rng = np.random.default_rng(hosts)
    baseline = calibrate(rng, hosts, 2, 1)
    z = quiet(rng, hosts, 2)
    z[3, 1] = 400.0
    still, moved = decide(z, nobody(hosts), baseline)
    assert still.suspects == ()
    assert moved.everybody is Phase.CRITICAL
    assert moved.phase < Phase.ALARM
    [suspect] = moved.suspects
    assert (suspect.host, suspect.label, suspect.evidence) == (3, Label.LOCAL_FAULT, Evidence.NONE)
    assert suspect.share > 0.9
    assert moved.delta > moved.theta * moved.d2


def test_with_evidence_against_it_the_same_host_is_suspected():
    rng = np.random.default_rng(4)
    baseline = calibrate(rng, 16, 1, 3)
    z = quiet(rng, 16, 1)
    z[[2, 7]] = 50.0
    against = nobody(16)
    against[7] = Evidence.WITNESS | Evidence.CONSERVATION
    against[9] = Evidence.REPLAY  # evidence without divergence accuses nobody here
    labels = {one.host: one.label for one in decide(z, against, baseline)[0].suspects}
    assert labels == {2: Label.LOCAL_FAULT, 7: Label.SUSPECTED_BYZANTINE}


@pytest.mark.parametrize("lie", [math.inf, 1e300, 1000.0])
def test_no_figure_is_too_large_to_be_named_for(lie: float):
    rng = np.random.default_rng(17)
    baseline = calibrate(rng, 9, 1, 1)
    z = quiet(rng, 9, 1)
    z[4] = lie
    decision = decide(z, nobody(9), baseline)[0]
    assert [one.host for one in decision.suspects] == [4]
    assert (decision.reporting, decision.suspects[0].z) == (9, fleet.HIGH)


def test_more_sources_than_f_are_the_fleets_and_nobody_is_named():
    rng = np.random.default_rng(5)
    baseline = calibrate(rng, 16, 1, 3)
    z = quiet(rng, 16, 1)
    z[:4] = 50.0
    decision = decide(z, np.full(16, int(Evidence.WITNESS)), baseline)[0]
    assert decision.phase is Phase.CRITICAL
    assert decision.suspects == ()
    assert decision.moved == 4


@pytest.mark.parametrize("lie", [math.inf, 1e300, -1e300, 4.0, -4.0])
def test_whatever_f_liars_say_a_quiet_fleet_raises_no_alarm(lie: float):
    rng = np.random.default_rng(6)
    baseline = calibrate(rng, 15, 1, 7)
    phases = []
    for _ in range(100):
        z = quiet(rng, 15, 1)
        z[:7] = lie
        decision = decide(z, nobody(15), baseline)[0]
        phases.append(decision.phase)
        assert decision.minimax <= decision.d2 <= decision.largest
    assert np.mean([phase >= Phase.ALARM for phase in phases]) <= 0.03


def test_against_its_own_law_on_honest_ticks_the_minimax_would_cry_wolf():
    """Liars take all removals, and what is left of the honest is larger than when their own largest are gone."""
    rng = np.random.default_rng(14)
    naive = fit_baseline(np.stack([statistics(quiet(rng, 15, 1), 7) for _ in range(300)]), 7)
    sound = calibrate(rng, 15, 1, 7)
    alarms = {naive: 0, sound: 0}
    for _ in range(100):
        z = quiet(rng, 15, 1)
        z[:7] = 50.0
        for baseline in alarms:
            alarms[baseline] += decide(z, nobody(15), baseline)[0].phase >= Phase.ALARM
    assert alarms[naive] > 50
    assert alarms[sound] <= 3


def test_f_liars_cannot_hide_a_fault_of_the_others():
    """They say that all is better than ever; the (f + 1)-th largest does not listen."""
    rng = np.random.default_rng(7)
    baseline = calibrate(rng, 15, 1, 4)
    z = quiet(rng, 15, 1) + 8.0
    z[:4] = -1e9
    assert decide(z, nobody(15), baseline)[0].phase is Phase.CRITICAL


def test_a_host_far_out_beside_more_faults_than_f_is_not_the_source():
    """It accounts for most of the distance, and what is left is an alarm of its own."""
    rng = np.random.default_rng(15)
    baseline = calibrate(rng, 100, 1, 1)
    z = quiet(rng, 100, 1)
    z[:3, 0] = [900.0, 12.0, 12.0]
    decision = decide(z, nobody(100), baseline)[0]
    assert decision.delta > decision.theta * decision.d2
    assert decision.phase >= Phase.ALARM
    assert decision.suspects == ()


def test_two_statistics_share_the_level():
    rng = np.random.default_rng(16)
    baseline = calibrate(rng, 20, 1, 2)
    found = statistics(quiet(rng, 20, 1), 2)
    for removal, log_p in enumerate(baseline.log_p(found)[0]):
        rarer = min(
            tail.log_survival(float(x)) for tail, x in zip(baseline.tails[0][removal], found[0, removal], strict=True)
        )
        assert log_p == pytest.approx(min(rarer + math.log(2.0), 0.0))


def test_without_a_quorum_there_is_no_decision():
    rng = np.random.default_rng(8)
    baseline = calibrate(rng, 9, 2, 3)
    z = quiet(rng, 9, 2)
    z[:3, 0] = np.nan
    short, whole = decide(z, nobody(9), baseline)
    assert (short.quorate, short.reporting, short.phase) == (False, 6, Phase.CALIBRATING)
    assert (whole.quorate, whole.reporting) == (True, 9)
    before = Settled()
    assert before.step(short) is before


def test_naming_takes_three_ticks_of_the_same_host():
    rng = np.random.default_rng(9)
    baseline = calibrate(rng, 16, 1, 2)

    def tick(host: int) -> fleet.KindDecision:
        z = quiet(rng, 16, 1)
        z[host] = 90.0
        return decide(z, nobody(16), baseline)[0]

    state = Settled()
    named = []
    for host in (1, 1, 4, 4, 4, 1):
        state = state.step(tick(host))
        named.append([suspect.host for suspect in state.named])
    assert named == [[], [], [], [], [4], []]
    assert state.hysteresis.phase is Phase.BAU


def test_a_fault_within_the_calibration_window_is_left_out():
    rng = np.random.default_rng(10)
    window = [bau_statistics(quiet(rng, 12, 1), 1, t) for t in range(300)]
    clean = fit_baseline(np.stack(window), 1).moves_at(0)
    for at in range(100, 110):
        z = quiet(rng, 12, 1)
        z[0] = 500.0
        window[at] = bau_statistics(z, 1, at)
    assert fit_baseline(np.stack(window), 1).moves_at(0) < 2.0 * clean
    with pytest.raises(ValueError, match="kind 0 has 59 BAU ticks, 60 are needed"):
        fit_baseline(np.stack(window[:59]), 1)


@pytest.mark.parametrize(("number", "f"), [(3, 1), (5, 1), (5, 2), (8, 2), (12, 5), (16, 1), (16, 4), (64, 31)])
def test_thetas_table_is_what_the_simulation_gives(number: int, f: int):
    exact = max(fleet.simulate_theta(number, f, 4000), fleet.SEED_THETA)
    assert fleet.theta_of(number, f) == pytest.approx(exact, abs=0.07)


@pytest.mark.parametrize(("number", "f"), [(7, 2), (11, 2), (20, 1), (28, 3), (50, 24), (100, 20)])
def test_between_the_tables_rows_theta_errs_high(number: int, f: int):
    assert fleet.theta_of(number, f) >= fleet.simulate_theta(number, f, 1500) - 0.03


def test_theta_grows_with_f_and_falls_with_the_fleet_to_the_sources():
    for number in range(3, 300):
        values = [fleet.theta_of(number, f) for f in range(1, (number - 1) // 2 + 1)]
        assert values == sorted(values)
        assert fleet.SEED_THETA <= values[0] <= values[-1] < 1.0
    falling = [fleet.theta_of(number, 1) for number in range(3, 3000)]
    assert falling == sorted(falling, reverse=True)
    assert fleet.theta_of(64, 31) == fleet.SEED_THETA < fleet.theta_of(5, 1)
    assert fleet.theta_of(2, 1) == fleet.theta_of(9, 0) == 1.0


def test_the_sources_rule_accuses_an_honest_host_and_cannot_see_two_colluders():
    """001 sec. 14 with f = 1: one honest host with a real fault in every tick, two equal liars in hardly any."""
    rng = np.random.default_rng(11)
    baseline = calibrate(rng, 5, 1, 1)
    accused = {1: 0, 2: 0}
    for count in accused:
        for _ in range(200):
            z = quiet(rng, 5, 1)
            z[:count] = 60.0 + rng.standard_normal((count, 1))
            one = decide(z, nobody(5), baseline)[0]
            accused[count] += fleet.is_divergent(one.everybody, one.d2, one.minimax)
    assert accused[1] == 200
    assert accused[2] <= 2


def test_coherence_of_a_kind_forgives_f_hosts_and_warms_up():
    rng = np.random.default_rng(12)
    p = rng.multinomial(300, [0.95, 0.03, 0.02, 0.0], 60) / 300
    value, seed, median = fleet.kind_coherence(p, 6)
    assert seed == c2_gm_seed(p, median.point)
    p[:6] = [0.0, 0.0, 0.0, 1.0]
    lied, lied_seed, again = fleet.kind_coherence(p, 6, start=median.weights)
    assert lied == pytest.approx(value, abs=0.003)
    plain = c2_plain(p)
    assert plain is not None
    assert lied_seed <= plain < lied - 0.1  # the source's form forgives nobody
    assert again.point == pytest.approx(fleet.kind_coherence(p, 6).median.point, abs=1e-5)
    assert fleet.kind_coherence(p, 6, start=again.weights).median.iterations < again.iterations
    assert fleet.kind_coherence(p, 0).c2_gm < 0.95
