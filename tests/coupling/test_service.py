# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import lfilter

from mvps.coherence.phase import posterior
from mvps.coupling.distance import fit_baseline
from mvps.coupling.joint import AI_AXES, C4_AXIS, NET_AXES, Readings, join
from mvps.coupling.lead_lag import Lead
from mvps.coupling.phases import ICPhase
from mvps.coupling.service import (
    EVALUATE_EVERY,
    FLOOR,
    WINDOW_TICKS,
    Latest,
    Put,
    Reading,
    ServiceMonitor,
    ServiceTick,
    _Window,
    leads,
)

SD = 0.005
N = 120


def bau(n: int, seed: int = 0, phi: float = 0.0, pair: float = 0.0) -> np.ndarray:
    """(n, 6) joint vectors near .9 with standard deviation SD; ``pair`` correlates C_3^net with C_2^W2."""
    sigma = np.eye(6)
    sigma[2, 4] = sigma[4, 2] = pair
    shocks = np.random.default_rng(seed).standard_normal((n, 6)) @ np.linalg.cholesky(sigma).T
    shocks[1:] *= math.sqrt(1.0 - phi * phi)
    return 0.9 + SD * lfilter([1.0], [1.0, -phi], shocks, axis=0)


class Feed:
    """A monitor with one source on each side, both of which read anew every second."""

    def __init__(self, **options: object) -> None:
        chosen = {"calibration_ticks": N, "cutoffs": "finite-sample", "floor": 0.0} | options
        self.monitor = ServiceMonitor(**chosen)  # type: ignore[arg-type]
        self.time = self.read = 0

    def tick(self, z: np.ndarray | None, ai: bool = True, quiet: bool = True, step: int = 1) -> ServiceTick:
        self.time += step
        self.read += 1
        if z is None:
            return self.monitor.step(self.time, [None], [None])
        net = Reading(tuple(z[:3].tolist()), self.read, quiet)
        return self.monitor.step(self.time, [net], [Reading(tuple(z[3:].tolist()), self.read, True) if ai else None])

    def ticks(self, rows: np.ndarray) -> list[ServiceTick]:
        return [self.tick(row) for row in rows]


def calibrated(pair: float = 0.0, seed: int = 0, **options: object) -> Feed:
    feed = Feed(**options)
    feed.ticks(bau(int(str(options.get("calibration_ticks", N))), seed, pair=pair))
    assert feed.monitor.limits is not None
    return feed


def centre(feed: Feed) -> np.ndarray:
    """The middle of BAU, where all distances are 0."""
    assert feed.monitor.learned is not None
    return feed.monitor.learned.rows.mean(axis=0)


# ---- joining


@given(
    st.lists(st.integers(0, 200), min_size=1, max_size=30, unique=True),
    st.lists(st.integers(0, 200), min_size=1, max_size=30, unique=True),
    st.integers(1, 50),
    st.integers(0, 20),
)
def test_live_joining_is_that_of_join(net: list[int], ai: list[int], keep: int, early: int) -> None:
    """Readings come in up to ``early`` before their tick; what stands and which rows are fresh is the same."""
    times = [sorted(net), sorted(ai)]
    at = list(range(0, 220, 7))
    both = [
        Readings(np.array(t, dtype=float), np.arange(len(t))[:, None] / 1000.0 * np.ones(3), float(keep)) for t in times
    ]
    found = join(np.array(at, dtype=float), *both)
    latest: list[Latest[int]] = [Latest(), Latest()]
    queues = [deque(enumerate(t)) for t in times]
    monitor = ServiceMonitor(calibration_ticks=300)
    for row, now in enumerate(at):
        standing: list[list[Reading | None]] = []
        for side in (0, 1):
            while queues[side] and queues[side][0][1] <= now + early:
                number, time = queues[side].popleft()
                assert latest[side].put(time, keep, number) is Put.TAKEN
            number = latest[side].at(now)
            standing.append([None if number is None else Reading((number / 1000.0,) * 3, number, True)])
        tick = monitor.step(now, *standing)
        assert np.array_equal(tick.z, found.z[row], equal_nan=True)
        assert tick.fresh == found.fresh[row]


def test_a_late_reading_serves_the_next_tick_and_an_old_one_none() -> None:
    latest: Latest[str] = Latest()
    assert latest.put(10, 5, "a") is Put.TAKEN
    assert latest.at(12) == "a"
    assert latest.put(11, 5, "b") is Put.LATE
    assert latest.put(11, 5, "c") is Put.REPEATED
    assert latest.put(9, 5, "d") is Put.REPEATED
    assert latest.at(13) == "b"
    assert latest.at(16) == "b"
    assert latest.at(17) is None
    assert latest.put(30, 5, "e") is Put.TAKEN
    assert latest.at(29) is None  # nothing from after t
    latest.forget()
    assert latest.put(1, 5, "f") is Put.TAKEN  # the clock was set back
    assert latest.at(2) == "f"


def test_what_waits_is_bounded_in_number_and_size_and_counted() -> None:
    latest: Latest[int] = Latest(most=4, largest=100)
    for time in range(10):
        latest.put(time, 100, time)
    assert (len(latest), latest.overflow) == (4, 6)
    assert latest.at(8) == 8
    latest.put(11, 100, 11, size=90)
    latest.put(12, 100, 12, size=90)
    assert (len(latest), latest.at(12), latest.overflow) == (1, 12, 9)
    latest.put(13, 100, 13, size=1000)  # alone it may be larger
    assert latest.at(13) == 13
    assert latest._size == 1000


@settings(max_examples=50)
@given(st.integers(1, 6), st.lists(st.integers(0, 3), max_size=40))
def test_a_window_is_a_deque(most: int, drops: list[int]) -> None:
    window, kept = _Window(most, 1), deque[float](maxlen=most)
    for time, drop in enumerate(drops):
        window.add(time, np.array([time]))
        kept.append(float(time))
        for _ in range(min(drop, len(kept))):
            kept.popleft()
        window.drop(min(drop, len(window)))
        assert window.times.tolist() == window.rows[:, 0].tolist() == list(kept)
    assert len(window._times) == 2 * most


def test_a_surface_is_the_mean_of_its_sources_and_missing_without_one_of_them() -> None:
    monitor = ServiceMonitor()
    one, other, ai = (Reading((level,) * 3, 1, True) for level in (0.8, 1.0, 0.5))
    both = monitor.step(1.0, [one, other], [ai])
    assert both.z == pytest.approx((0.9,) * 3 + (0.5,) * 3)
    assert both.fresh
    assert both.h[0] == pytest.approx(-3 * math.log(0.9))
    part = monitor.step(2.0, [one._replace(number=2), None], [ai._replace(number=2)])
    assert np.isnan(part.z[:3]).all()
    assert not part.fresh
    # One source of two has read anew: that is no new reading of the surface.
    half = monitor.step(3.0, [one._replace(number=2), other], [ai._replace(number=2)])
    assert not half.fresh
    assert monitor.step(4.0, [one._replace(number=2), other._replace(number=2)], [ai._replace(number=2)]).fresh


# ---- calibration


def test_it_says_how_far_calibration_is_and_decides_from_the_tick_after_it() -> None:
    feed = Feed()
    rows = bau(N + 1)
    for done, row in enumerate(rows[:N], start=1):
        tick = feed.tick(row)
        assert (tick.phase, tick.raw, tick.posterior) == (None, None, ())
        assert np.isnan(tick.d2).all()
        assert (feed.monitor.calibrated, feed.monitor.needed) == (done, N)
    tick = feed.tick(rows[N])
    baseline = fit_baseline(rows[:N], 3)
    assert tick.phase is ICPhase.JOINT_BAU
    assert tick.d2 == pytest.approx([float(d[0]) for d in baseline.distances(rows[N:])])
    assert feed.monitor.limits == baseline.limits("finite-sample")
    assert math.exp(tick.log_p[2]) == pytest.approx(math.exp(baseline.laws[2].log_survival(tick.d2[2])))


def test_only_fresh_ticks_in_which_every_source_is_quiet_teach() -> None:
    feed = Feed()
    rows = bau(40)
    feed.ticks(rows[:10])
    for row in rows[10:20]:
        feed.tick(row, quiet=False)
    assert (feed.monitor.calibrated, feed.monitor.untaught) == (10, 10)
    feed.tick(rows[20], ai=False)
    feed.monitor.step(feed.time + 1, [Reading((0.9,) * 3, 10, True)], [Reading((0.9,) * 3, 10, True)])  # not anew
    assert (feed.monitor.calibrated, feed.monitor.untaught) == (10, 10)


def test_a_gap_costs_what_was_before_it_unless_gaps_are_rare() -> None:
    feed = Feed()
    rows = bau(N)
    feed.ticks(rows[:20])
    feed.tick(rows[20], step=10)
    assert feed.monitor.calibrated == 1
    feed.ticks(rows[21:80])
    feed.tick(rows[80], step=2)  # one lost reading is no gap
    assert feed.monitor.calibrated == 61
    feed.tick(rows[81], step=10)
    assert feed.monitor.calibrated == 62
    feed.tick(rows[82], step=10)
    assert feed.monitor.calibrated == 63  # two gaps in 63 rows
    feed.tick(rows[83], step=10)
    assert feed.monitor.calibrated == 1


def test_a_window_that_gives_no_baseline_grows_is_bounded_and_says_why() -> None:
    feed = Feed(calibration_ticks=60)
    constant = np.full((60, 6), 0.9)
    constant[:, :3] = bau(60)[:, :3]
    feed.ticks(constant)
    assert feed.monitor.limits is None
    assert "calibrate longer" in feed.monitor.problem
    for _ in range(10):
        feed.ticks(constant)
    assert feed.monitor.calibrated == 4 * 60
    feed.ticks(bau(EVALUATE_EVERY, seed=1))
    assert feed.monitor.limits is not None
    assert feed.monitor.problem == ""


def test_axes_that_nobody_measures_are_left_out_and_named() -> None:
    feed = Feed(c4=True)
    assert feed.monitor.axes == (*NET_AXES, *AI_AXES, C4_AXIS)
    rows = np.concatenate((bau(N), np.full((N, 1), np.nan)), axis=1)
    rows[:, 5] = np.nan  # C_3^CKA
    rows[:10, 4] = np.nan  # C_2^W2 comes later, and is known in most
    feed.ticks(rows)
    assert feed.monitor.calibrated == N - 10
    more = np.full((10, 7), np.nan)
    more[:, :5] = bau(10, seed=1)[:, :5]
    feed.ticks(more)
    assert feed.monitor.used == (*NET_AXES, "C_1^AI", "C_2^W2")
    quiet = np.append(np.full(5, 0.9), [np.nan, np.nan])
    assert feed.tick(quiet).raw is ICPhase.JOINT_BAU
    half = quiet.copy()
    half[3] = np.nan
    assert feed.tick(half).raw is ICPhase.INCOMPLETE


def test_a_surface_without_any_known_axis_is_a_problem_with_its_name() -> None:
    feed = Feed()
    rows = bau(5)
    rows[:, 3:] = np.nan
    feed.ticks(rows)
    assert feed.monitor.problem == "no axis of the AI surface is known in nine of ten ticks"
    assert feed.monitor.calibrated == 0


def test_c4_is_the_seventh_axis() -> None:
    feed = Feed(c4=True, calibration_ticks=200)
    rows = np.concatenate((bau(200), bau(200, seed=9)[:, :1]), axis=1)
    feed.ticks(rows)
    assert feed.monitor.used == (*NET_AXES, *AI_AXES, C4_AXIS)
    moved = np.append(centre(feed)[:6], centre(feed)[6] - 10 * SD)
    assert feed.tick(moved).raw is ICPhase.AI_LEADS


# ---- phases


@pytest.mark.parametrize(
    ("deviation", "phase", "lead"),
    [
        ((0, 0, 0, 0, 0, 0), ICPhase.JOINT_BAU, Lead.NOBODY),
        ((-8, 0, 0, 0, 0, 0), ICPhase.NET_LEADS, Lead.NETWORK),
        ((0, 0, 0, -8, 0, 0), ICPhase.AI_LEADS, Lead.AI),
        ((-8, 0, 0, -8, 0, 0), ICPhase.CASCADING, Lead.TOGETHER),
        # The two that go together in BAU part, each within its own limit.
        ((0, 0, 1.6, 0, -1.6, 0), ICPhase.COUPLED, Lead.NOBODY),
    ],
)
def test_faults_are_told_apart_after_three_ticks(deviation: tuple[float, ...], phase: ICPhase, lead: Lead) -> None:
    feed = calibrated(pair=0.95, calibration_ticks=300)
    fault = centre(feed) + SD * np.array(deviation)
    for _ in range(2):
        assert feed.tick(fault).phase is ICPhase.JOINT_BAU
    tick = feed.tick(fault)
    assert (tick.raw, tick.phase, tick.lead) == (phase, phase, lead)
    for _ in range(3):
        tick = feed.tick(centre(feed))
    assert (tick.phase, tick.moved, tick.lead) == (ICPhase.JOINT_BAU, (None, None), Lead.NOBODY)


def test_in_a_cascade_the_one_that_was_over_its_limit_first_leads() -> None:
    feed = calibrated()
    network = centre(feed) - SD * np.array([8, 0, 0, 0, 0, 0])
    both = network - SD * np.array([0, 0, 0, 8, 0, 0])
    begun = feed.time + 1
    for _ in range(5):
        tick = feed.tick(network)
    assert tick.phase is ICPhase.NET_LEADS
    for _ in range(3):
        tick = feed.tick(both)
    assert (tick.phase, tick.lead, tick.moved) == (ICPhase.CASCADING, Lead.NETWORK, (begun, begun + 5))
    # Two quiet ticks do not end an episode, three do.
    feed.tick(centre(feed))
    feed.tick(centre(feed))
    assert feed.tick(both).moved == (begun, begun + 5)
    for _ in range(3):
        tick = feed.tick(centre(feed))
    assert tick.moved == (None, None)


def test_who_leads_in_every_phase() -> None:
    assert leads(ICPhase.NET_LEADS, 2.0, 1.0) is Lead.NETWORK
    assert leads(ICPhase.AI_LEADS, None, 1.0) is Lead.AI
    assert leads(ICPhase.CASCADING, 2.0, 1.0) is Lead.AI
    assert leads(ICPhase.CASCADING, 1.0, 1.0) is Lead.TOGETHER
    assert leads(ICPhase.CASCADING, None, 1.0) is Lead.NOBODY
    for phase in (ICPhase.JOINT_BAU, ICPhase.COUPLED_SUM, ICPhase.COUPLED, ICPhase.INCOMPLETE):
        assert leads(phase, 1.0, 2.0) is Lead.NOBODY


def test_a_missing_surface_is_never_0_and_never_well() -> None:
    feed = calibrated()
    for _ in range(3):
        tick = feed.tick(centre(feed), ai=False)
    assert tick.phase is ICPhase.INCOMPLETE
    assert np.isnan([*tick.z[3:], tick.d2[1], tick.d2[2], tick.log_p[2], tick.h[2]]).all()
    assert tick.d2[0] == pytest.approx(0.0, abs=1e-9)
    assert tick.posterior == ()
    for _ in range(3):
        tick = feed.tick(centre(feed))
    assert tick.phase is ICPhase.JOINT_BAU


@pytest.mark.parametrize("cutoffs", ["empirical", "finite-sample", "chi2"])
def test_posterior_and_p_value_are_those_of_the_limits(cutoffs: str) -> None:
    """At the joint WATCH limit p is .05, and the posterior of BAU and WATCH cross there."""
    feed = calibrated(cutoffs=cutoffs, calibration_ticks=300)
    assert feed.monitor.limits is not None
    baseline = feed.monitor._baseline
    assert baseline is not None
    at = baseline.log_survival(2, feed.monitor.limits.joint, cutoffs)
    assert math.exp(at) == pytest.approx(0.05, abs=2e-3)
    direction = SD * np.array([1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    near, far = (feed.tick(centre(feed) - scale * direction) for scale in (0.1, 6.0))
    assert np.argmax(near.posterior) == 0
    assert np.argmax(far.posterior) == 3
    assert sum(far.posterior) == pytest.approx(1.0)
    assert posterior(0.0, 6)[0] > 0.5


# ---- restart, memory, clock


def test_a_restart_goes_on_as_if_nothing_had_been() -> None:
    feed = calibrated()
    learned = feed.monitor.learned
    assert learned is not None
    again = Feed()
    again.time = feed.time
    again.monitor.restore(learned)
    rows = bau(20, seed=3)
    for one, other in zip(feed.ticks(rows), again.ticks(rows), strict=True):
        assert one == other
    assert again.monitor.limits == feed.monitor.limits
    assert again.monitor.learned is not None
    assert np.array_equal(again.monitor.learned.rows, learned.rows)


def test_a_window_of_other_axes_or_without_a_baseline_is_refused() -> None:
    learned = calibrated(c4=False).monitor.learned
    assert learned is not None
    with pytest.raises(ValueError, match="axes"):
        ServiceMonitor().restore(learned._replace(axes=(*learned.axes[:5], C4_AXIS)))
    fresh = ServiceMonitor()
    with pytest.raises(ValueError, match="calibrate longer"):
        fresh.restore(learned._replace(times=learned.times[:30], rows=learned.rows[:30]))
    assert fresh.limits is None


def test_memory_is_bounded() -> None:
    feed = calibrated(calibration_ticks=60)
    feed.ticks(bau(WINDOW_TICKS + 200, seed=5))
    monitor = feed.monitor
    assert len(monitor._recent) == WINDOW_TICKS >= len(monitor._quiet)
    assert len(monitor._recent._times) == 2 * WINDOW_TICKS
    assert len(monitor._window._times) == 2  # the calibration's rows are in ``learned`` only


def test_a_clock_that_was_set_back_costs_the_windows_and_not_the_baseline() -> None:
    feed = calibrated()
    feed.monitor.forget()
    feed.time = 5
    assert feed.monitor.limits is not None
    assert feed.tick(centre(feed)).raw is ICPhase.JOINT_BAU
    assert len(feed.monitor._recent) == 1
    fresh = Feed()
    fresh.ticks(bau(30))
    fresh.monitor.forget()
    assert fresh.monitor.calibrated == 0


# ---- coupling


def test_it_is_evaluated_at_once_and_then_every_thirty_fresh_ticks() -> None:
    feed = calibrated()
    monitor = feed.monitor
    assert monitor.due
    found = monitor.evaluate(feed.time)
    assert monitor.coupling is found
    assert found.ticks == found.recent == N
    feed.ticks(bau(EVALUATE_EVERY - 1, seed=2))
    assert not monitor.due
    feed.tick(None)  # not fresh
    assert not monitor.due
    feed.ticks(bau(1, seed=2))
    assert monitor.due


def test_coupled_surfaces_are_told_with_the_pair_and_uncoupled_ones_are_not() -> None:
    """One window each with a fixed seed; the rates are in bench/coupling.py."""
    coupled = calibrated(pair=0.6, calibration_ticks=300).monitor.evaluate(0.0).tested
    assert coupled is not None
    assert coupled.p_value == coupled.least_p
    assert (coupled.strongest.net, coupled.strongest.ai) == ("C_3^net", "C_2^W2")
    assert coupled.strongest.low < 0.6 < coupled.strongest.high
    assert coupled.frobenius > 2.0 * coupled.frobenius_null
    alone = calibrated(calibration_ticks=300).monitor.evaluate(0.0).tested
    assert alone is not None
    assert alone.p_value > 0.05


def test_below_sixty_effective_ticks_there_is_no_test_and_no_lead() -> None:
    feed = Feed(calibration_ticks=60, cutoffs="chi2")
    feed.ticks(bau(60, phi=0.8))
    found = feed.monitor.evaluate(0.0)
    assert found.tested is None
    assert "60 effective ticks" in found.refused
    assert found.lead is None
    assert found.lead_refused
    feed.monitor.forget()
    assert "got 0 in all" in feed.monitor.evaluate(0.0).refused


def test_the_lead_over_the_window_has_its_lag_in_seconds() -> None:
    """The AI surface follows the network by three ticks of two seconds."""
    shock = np.random.default_rng(4).standard_normal(603)
    rows = bau(600, seed=6)
    rows[:, 0] += 2.0 * SD * shock[3:]
    rows[:, 3] += 2.0 * SD * shock[:-3]
    feed = Feed(calibration_ticks=600)
    for row in rows:
        feed.tick(row, step=2)
    found = feed.monitor.evaluate(feed.time)
    assert found.lead is not None
    assert (found.lead.lead, found.lead.tau, found.step) == (Lead.NETWORK, 3, 2.0)


# ---- the floor


def seldom(n: int, seed: int = 0) -> np.ndarray:
    """BAU whose C_1^AI is 1 but for a few ticks, all of them near the window's end, and whose C_3^net never varies."""
    rows = bau(n, seed)
    rows[:, 3] = 1.0
    rows[-8::2, 3] = 0.93
    rows[:, 2] = 1.0
    return rows


def test_a_few_ticks_of_a_quiet_axis_do_not_hide_what_comes_later() -> None:
    """Without a floor the limits take every change of the other axes for quiet; with it they do not."""
    limits = {}
    for floor in (0.0, FLOOR):
        feed = Feed(cutoffs="empirical", floor=floor)
        feed.ticks(seldom(N))
        assert feed.monitor.limits is not None
        limits[floor] = feed.monitor.limits
        ticks = feed.ticks([np.array([0.9, 0.9, 1.0, 1.0, 0.7, 0.9])] * 3)
        assert ticks[-1].phase is (ICPhase.AI_LEADS if floor else ICPhase.JOINT_BAU) or not floor
    assert limits[FLOOR].ai < 20.0 < limits[0.0].ai


def test_an_axis_that_never_varied_counts_from_then_on() -> None:
    feed = Feed(cutoffs="empirical", floor=FLOOR)
    feed.ticks(seldom(N))
    assert feed.monitor.used == (*NET_AXES, *AI_AXES)
    assert feed.ticks([np.array([0.9, 0.9, 0.8, 1.0, 0.9, 0.9])] * 3)[-1].phase is ICPhase.NET_LEADS
    without = Feed(cutoffs="empirical")
    without.ticks(seldom(N))
    assert without.ticks([np.array([0.9, 0.9, 0.8, 1.0, 0.9, 0.9])] * 3)[-1].phase is ICPhase.JOINT_BAU


def test_what_moves_by_less_than_the_floor_is_of_no_account() -> None:
    feed = Feed(cutoffs="empirical", floor=FLOOR)
    feed.ticks(np.full((N, 6), 0.9))
    assert feed.tick(np.full(6, 0.905)).d2[2] < 6.0
    assert feed.tick(np.full(6, 0.8)).d2[2] == pytest.approx(600.0)
