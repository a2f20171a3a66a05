# SPDX-License-Identifier: Apache-2.0
"""The team behaves like queues, and costs do what they are for without being told to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mvps.surplus.handoffs import T0, T1, T2, TREATMENTS, Team, Treatment, simulate

QUICK = 60


def test_a_single_agent_is_the_queue_of_pollaczek() -> None:
    """One agent, jobs of one step: M/M/1, whose mean turnaround is 1 / (mu - lambda) and whose use is the load."""
    alone = Team(agents=1, steps=1, topics=1, load=0.5, deadline_s=2.0 * np.log(20.0))
    run = simulate(alone, T0, 2000, seed=1)
    assert run.flips == run.debt == 0.0
    # The turnaround is exponential with mean 2: one in twenty is beyond the deadline.
    assert run.late == pytest.approx(0.05, abs=0.008)
    assert run.jobs == pytest.approx(2000 * 60 * 0.5, rel=0.02)


def test_without_noise_and_queues_nobody_hands_over_and_the_best_is_chosen() -> None:
    sure = Team(blur=0.0, latency=0.0, load=0.05)
    run = simulate(sure, T0, QUICK, seed=2)
    assert run.flips == 0.0
    assert run.quality > 0.2  # the largest of four normals with sd .3 is .31 on average


def test_noise_makes_handoffs_and_their_work_and_a_cost_takes_both_away() -> None:
    team = Team()
    none, static = simulate(team, T0, QUICK, 3), simulate(team, T1, QUICK, 3)
    assert none.flips > 0.2
    assert none.debt == pytest.approx(none.flips * 5 / 6 * 0.5 / (1.0 + none.flips * 5 / 6 * 0.5), rel=0.1)
    assert static.flips < 0.6 * none.flips
    assert static.debt < none.debt
    assert static.ssi < none.ssi


def test_an_endless_cost_ends_all_handoffs_and_costs_quality() -> None:
    team = Team()
    stuck = simulate(team, Treatment("", rho=1e6), QUICK, 4)
    assert stuck.flips == 0.0
    assert stuck.debt == 0.0


def test_stress_raises_the_cost() -> None:
    busy = Team(load=0.8)
    calm = replace(T2, stress=0.0)
    assert simulate(busy, T2, QUICK, 5).flips < simulate(busy, calm, QUICK, 5).flips


def test_the_same_seed_gives_the_same_run_and_treatments_share_their_jobs() -> None:
    team = Team(load=0.3)
    assert simulate(team, T1, QUICK, 6) == simulate(team, T1, QUICK, 6)
    jobs = [simulate(team, one, QUICK, 6).jobs for one in TREATMENTS]
    assert max(jobs) - min(jobs) <= 5  # those in hand when the last minute ends


def test_the_bonus_spreads_work() -> None:
    skewed = Team(skill=1.0, blur=0.1, load=0.3)
    plain, spread = (simulate(skewed, Treatment("", rho=0.2, bonus=bonus), QUICK, 7).spread for bonus in (0.0, 0.5))
    assert spread > plain
