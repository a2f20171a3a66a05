# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvps.coupling.phases import ICPhase
from mvps.testbed import plan as plans
from mvps.testbed.answers import Arm
from mvps.testbed.plan import FULL_WEIGHT, SWEEP, Fault, plan, truth

REPLICAS = ("r1", "r2", "r3", "r4")


@given(st.integers(0, 10_000), st.integers(0, 3), st.integers(1, 12), st.integers(1, 3))
def test_steps_never_overlap_and_leave_time_to_recover(seed: int, blocks: int, events: int, sweeps: int) -> None:
    made = plan(REPLICAS, seed, blocks, events, sweeps)
    for one, after in pairwise(made.steps):
        gap = plans.LEAST_GAP_S if one.fault is Fault.EVENT else plans.RECOVER_S
        assert one.begin < one.end <= after.begin - gap + 1e-9
    assert made.length >= made.steps[-1].end
    for block, (begin, end) in enumerate(made.blocks):
        inside = [one for one in made.steps if begin <= one.begin < end]
        assert len(inside) == events
        assert {(one.fault, one.block) for one in inside} == {(Fault.EVENT, block)}
    for sweep in range(sweeps):
        assert sorted(one.fault.value for one in made.steps if one.fault in SWEEP and one.block == sweep) == [
            fault.value for fault in SWEEP
        ]


@given(st.integers(0, 10_000))
def test_one_replica_at_least_keeps_its_route_and_only_network_faults_touch_it(seed: int) -> None:
    for step in plan(REPLICAS, seed, 1, 6, 2).steps:
        assert set(step.on) < set(REPLICAS)
        if step.fault in (Fault.NOTHING, Fault.AI):
            assert step.weight == FULL_WEIGHT
        else:
            assert step.weight < FULL_WEIGHT
            assert step.on


def test_network_fault_and_cascade_are_the_same_change_of_routes() -> None:
    for seed in range(20):
        faults = {one.fault: one for one in plan(REPLICAS, seed, 0, 0, 1).steps}
        network, cascade = faults[Fault.NETWORK], faults[Fault.CASCADE]
        assert (len(network.on), network.weight) == (len(cascade.on), cascade.weight) == (2, 0)


def test_gaps_are_irregular_and_seeds_differ() -> None:
    begins = [one.begin for one in plan(REPLICAS, 1, 1, 30, 0).steps]
    gaps = {round(b - a, 3) for a, b in pairwise(begins)}
    assert len(gaps) > 25  # a regular train would meet itself in its own placebos
    assert plan(REPLICAS, 1, 1, 5, 1) == plan(REPLICAS, 1, 1, 5, 1) != plan(REPLICAS, 2, 1, 5, 1)


def test_where_no_answer_depends_on_the_cache_a_cascade_is_a_network_event() -> None:
    assert truth(Fault.CASCADE, Arm.COUPLED) == (ICPhase.CASCADING,)
    assert truth(Fault.CASCADE, Arm.PLACEBO) == truth(Fault.NETWORK, Arm.PLACEBO) == (ICPhase.NET_LEADS,)
    assert ICPhase.COUPLED in truth(Fault.WEAK, Arm.PLACEBO)


@pytest.mark.parametrize(("blocks", "events", "sweeps"), [(0, 0, 0), (0, 5, 0), (3, 0, 0), (-1, 5, 1)])
def test_a_plan_without_anything_is_refused(blocks: int, events: int, sweeps: int) -> None:
    with pytest.raises(ValueError, match="needs events or sweeps"):
        plan(REPLICAS, 0, blocks, events, sweeps)
