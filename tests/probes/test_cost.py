# SPDX-License-Identifier: Apache-2.0
"""Cost accounting: the arithmetic, and live programs on the running kernel."""

from __future__ import annotations

import os
import threading

import pytest

from mvps.probes.cost import RunTotals, cost_of, costs_between, live_cost, own_names, run_totals
from mvps.probes.libbpf import BpfError, enable_stats, program_info
from mvps.vantages.cells import Cells
from mvps.vantages.registry import VANTAGES

NAMES = {"blk_complete": "blk/blk_complete", "blk_issue": "blk/blk_issue"}


def test_cost_is_time_per_run_and_share_of_a_core() -> None:
    cost = cost_of(runs=1000, ns=200_000, seconds=2.0)
    assert cost.ns_per_run == 200.0
    assert cost.percent_of_core == pytest.approx(0.01)  # 200 us of 2 s


def test_a_program_that_did_not_run_costs_nothing() -> None:
    assert cost_of(0, 0, 1.0).ns_per_run == 0.0


@pytest.mark.parametrize("seconds", [0.0, -1.0])
def test_no_time_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        cost_of(1, 1, seconds)
    with pytest.raises(ValueError, match="positive"):
        live_cost(seconds)


def test_only_what_grew_counts_and_only_for_named_programs() -> None:
    before = {7: RunTotals("blk_complete", 10, 1000), 8: RunTotals("somebody", 5, 500)}
    after = {7: RunTotals("blk_complete", 30, 5000), 8: RunTotals("somebody", 50, 5000)}
    costs = costs_between(before, after, NAMES, 1.0)
    assert list(costs) == ["blk/blk_complete"]
    assert (costs["blk/blk_complete"].runs, costs["blk/blk_complete"].ns) == (20, 4000)


def test_programs_of_one_name_are_added_up() -> None:
    before = {7: RunTotals("blk_issue", 10, 100), 9: RunTotals("blk_issue", 0, 0)}
    after = {7: RunTotals("blk_issue", 11, 150), 9: RunTotals("blk_issue", 4, 200)}
    cost = costs_between(before, after, NAMES, 1.0)["blk/blk_issue"]
    assert (cost.runs, cost.ns) == (5, 250)


def test_a_program_loaded_meanwhile_counts_from_its_load_and_one_that_left_does_not_count() -> None:
    before = {7: RunTotals("blk_issue", 10, 100)}
    after = {9: RunTotals("blk_complete", 4, 200)}
    costs = costs_between(before, after, NAMES, 1.0)
    assert list(costs) == ["blk/blk_complete"]
    assert costs["blk/blk_complete"].runs == 4


def test_a_reused_id_is_another_program() -> None:
    before = {7: RunTotals("somebody", 1000, 100_000)}
    after = {7: RunTotals("blk_issue", 4, 200)}
    assert costs_between(before, after, NAMES, 1.0)["blk/blk_issue"].runs == 4


def test_every_shipped_program_has_a_name_of_its_own() -> None:
    try:
        names = own_names()
    except BpfError as error:
        pytest.skip(f"objects or libbpf are missing: {error}")
    assert {shown.split("/")[0] for shown in names.values()} == {*VANTAGES, "limiter"}
    assert all(len(kernel_name) <= 15 for kernel_name in names)
    # The kernel keeps 15 letters: two programs that differ only later would be one to whoever looks by name.
    assert len(set(names.values())) == len(names)


@pytest.mark.kernel
def test_totals_agree_with_the_programs_own_descriptors() -> None:
    cells = Cells("sched")
    statistics = enable_stats()
    try:
        (fd,) = cells.program_fds().values()
        while program_info(fd).run_cnt == 0:  # something is scheduled on any host
            os.sched_yield()
            threading.Event().wait(0.001)
        before = program_info(fd)
        listed = run_totals()[before.id]
        after = program_info(fd)
    finally:
        os.close(statistics)
        cells.close()
    assert listed.name == "sched_run"
    assert before.run_cnt <= listed.runs <= after.run_cnt
    assert before.run_time_ns <= listed.ns <= after.run_time_ns


@pytest.mark.kernel
def test_live_cost_sees_running_programs_and_leaves_statistics_as_they_were() -> None:
    cells = Cells("sched")
    try:
        costs = live_cost(0.3)
        (fd,) = cells.program_fds().values()
        ended = program_info(fd).run_cnt
    finally:
        cells.close()
    cost = costs["sched/sched_run"]
    assert cost.runs > 0
    assert cost.ns_per_run == cost.ns / cost.runs
    assert 0 < cost.percent_of_core < 100
    assert ended > 0
    assert "blk/blk_complete" not in costs or costs["blk/blk_complete"].runs >= 0


@pytest.mark.kernel
def test_what_is_not_loaded_is_absent() -> None:
    assert "sched/sched_run" not in costs_between({}, {}, own_names(), 1.0)
