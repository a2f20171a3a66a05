# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from mvps.surplus.retrial_queue import RampPlan, Workload, mean_interval, minutes, ramp, simulate

QUICK = RampPlan(calm=120, step_minutes=10)


def erlang_c_turnaround(servers: int, service_s: float, load: float) -> float:
    """Mean time in an M/M/c queue."""
    offered = load * servers
    terms = [offered**n / math.factorial(n) for n in range(servers)]
    last = offered**servers / math.factorial(servers) / (1.0 - load)
    waits = last / (sum(terms) + last)
    return waits * service_s / (servers * (1.0 - load)) + service_s


@pytest.mark.parametrize("load", [0.3, 0.7, 0.9])
def test_without_impatience_it_is_the_queue_of_erlang(load: float) -> None:
    patient = Workload(timeout_s=1e9, room=10**9, minute_s=60.0)
    trace = simulate(patient, [load] * 60, seed=3)
    mean = float(np.average(trace.mean_s, weights=trace.good))
    assert mean == pytest.approx(erlang_c_turnaround(8, 0.1, load), rel=0.1)
    assert trace.good.sum() / (60 * 60.0) == pytest.approx(load * patient.capacity, rel=0.02)
    assert trace.failed.sum() == trace.wasted.sum() == 0.0


def test_every_request_is_accounted_for() -> None:
    trace = simulate(Workload(), [0.5, 1.5, 2.0, 1.5, *[0.0] * 60], seed=4)
    assert trace.new.sum() == trace.good.sum() + trace.failed.sum()
    assert trace.tries.sum() >= trace.new.sum()
    assert trace.tries.sum() <= 4 * trace.new.sum()
    assert trace.wasted.sum() > 0.0
    assert trace.backlog.max() <= 400
    assert trace.backlog[-1] == 0.0


def test_answers_to_tries_that_were_given_up_are_wasted_also_while_the_client_waits_for_another() -> None:
    """Once the queue takes longer than the timeout, no answer is in time; that a later try waits makes none so."""
    trace = simulate(Workload(room=10**6, pause_s=0.01), [1.3] * 20, seed=8)
    behind = np.flatnonzero(trace.backlog > 4.0 * 80.0)[0]
    assert trace.good[behind + 1 :].sum() == 0.0
    assert trace.good[behind] < 0.1 * trace.new[behind]


def test_the_same_seed_gives_the_same_trace() -> None:
    a, b = (simulate(Workload(), [0.8] * 10, seed=5) for _ in range(2))
    for one, other in zip(a, b, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(a.tries, simulate(Workload(), [0.8] * 10, seed=6).tries)


def test_retries_make_the_hysteresis_and_its_lower_edge() -> None:
    gaps = {}
    for retries in (0, 1, 3):
        found = [ramp(Workload(retries=retries), QUICK, seed)[0] for seed in range(3)]
        assert all(0.85 <= one.collapse <= 1.11 for one in found)
        # Above 1 / (1 + retries) tries alone fill the service.
        assert all(one.recovery <= 1.0 / (1 + retries) + 0.05 for one in found)
        gaps[retries] = float(np.mean([one.gap for one in found]))
    assert gaps[0] < gaps[1] < gaps[3]


def test_with_patience_and_room_there_is_hardly_a_gap() -> None:
    patient = Workload(retries=3, timeout_s=60.0, room=10**6)
    found, trace = ramp(patient, replace(QUICK, high=0.9), 1)
    assert math.isnan(found.collapse)
    assert (found.gap, trace.failed.sum()) == (0.0, 0.0)


def test_indicators_follow_the_queue() -> None:
    workload = Workload()
    trace = simulate(workload, [*[0.5] * 10, *[1.5] * 10], seed=7)
    judged = minutes(trace, workload)
    calm, stressed = judged[5], judged[15]
    assert stressed.ssi_star > 0.9 > calm.ssi_star
    assert stressed.crp > calm.crp
    silent = minutes(simulate(workload, [0.0], seed=1), workload)[0]
    assert math.isnan(silent.sse)
    assert all(math.isfinite(value) for value in silent[1:])


def test_intervals_hold_their_mean_and_leave_out_what_is_not_known() -> None:
    mean, low, high = mean_interval([1.0, 2.0, 3.0, math.nan])
    assert low <= mean == 2.0 <= high
    assert all(map(math.isnan, mean_interval([math.nan])))
    values = np.random.default_rng(1).normal(size=400)
    _, low, high = mean_interval(values.tolist())
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20.0, rel=0.1)
