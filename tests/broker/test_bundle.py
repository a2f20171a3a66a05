# SPDX-License-Identifier: Apache-2.0
"""Bundles: completeness, deadline, late, missing, refused, slow vantages, cells, clock jumps."""

from __future__ import annotations

import pytest

from mvps.broker.bundle import MAX_CATCH_UP, NO_FIGURES, Bundle, Bundles, Figures, Report, Status

T = 1_000_000_000
DEADLINE = 600_000_000
NOW = 1_790_000_000 * T
PHASE_ALARM = 3


def seen(bundle: Bundle) -> dict[str, Status]:
    return {report.vantage_id: report.status for report in bundle.reports} | dict.fromkeys(
        bundle.missing, Status.MISSING
    )


class Desk:
    """Bundles with what they gave out."""

    def __init__(self, cells: dict[str, str] | None = None, period_ns: int = T) -> None:
        self.closed: list[Bundle] = []
        self.late: list[Report] = []
        self.bundles = Bundles(self.closed.append, self.late.append)
        self.bundles.admit(cells or {"a": "", "b": "", "c": ""}, period_ns, DEADLINE, NOW)

    def report(
        self, name: str, tick: int = 0, *, after_ns: int = 5_000_000, reason: int = 0, period_ns: int = T
    ) -> None:
        due = NOW + tick * T
        self.bundles.report(name, due, period_ns, due + after_ns, reason, NO_FIGURES)

    def statuses(self, at: int = -1) -> dict[str, Status]:
        return seen(self.closed[at])


def test_closes_when_everybody_has_reported_and_not_before():
    desk = Desk()
    desk.report("a")
    desk.report("b")
    assert desk.closed == []
    desk.report("c", after_ns=7_000_000)
    (bundle,) = desk.closed
    assert (bundle.cell, bundle.tick_ns, bundle.period_ns) == ("", NOW, T)
    assert bundle.closed_ns == NOW + 7_000_000
    assert bundle.count(Status.REPORTED) == 3


def test_closes_at_the_deadline_and_names_who_is_missing():
    desk = Desk()
    desk.report("b")
    desk.bundles.close_due(NOW + DEADLINE - 1)
    assert desk.closed == []
    desk.bundles.close_due(NOW + DEADLINE)
    assert desk.statuses() == {"a": Status.MISSING, "b": Status.REPORTED, "c": Status.MISSING}


def test_a_report_after_the_deadline_is_late_and_in_no_bundle():
    desk = Desk()
    desk.report("a")
    desk.bundles.close_due(NOW + DEADLINE)
    desk.report("b", after_ns=DEADLINE + 1)
    assert len(desk.closed) == 1
    assert [(r.vantage_id, r.status, r.tick_ns) for r in desk.late] == [("b", Status.LATE, NOW)]


def test_a_report_for_a_complete_bundle_is_late_before_the_deadline_too():
    desk = Desk({"a": ""})
    desk.report("a")
    desk.report("a", after_ns=6_000_000)
    assert len(desk.closed) == 1
    assert [r.status for r in desk.late] == [Status.LATE]


def test_a_refused_snapshot_completes_the_bundle_and_keeps_its_reason():
    desk = Desk({"a": "", "b": ""})
    desk.report("a")
    desk.report("b", reason=28)
    (bundle,) = desk.closed
    assert desk.statuses() == {"a": Status.REPORTED, "b": Status.REJECTED}
    assert bundle.reports[1].reason == 28


def test_an_accepted_snapshot_takes_the_place_of_a_refused_one_never_the_other_way_round():
    desk = Desk()
    desk.report("a", reason=28)
    desk.report("a")
    desk.report("a", reason=28)
    desk.report("a")
    desk.bundles.close_due(NOW + DEADLINE)
    assert desk.statuses()["a"] is Status.REPORTED
    assert desk.bundles.repeated == 2


def test_a_silent_cell_leaves_bundles_in_which_everybody_is_missing():
    desk = Desk({"a": "x", "b": "y"})
    for tick in range(3):
        desk.report("a", tick)
    desk.bundles.close_due(NOW + 2 * T + DEADLINE)
    silent = [bundle for bundle in desk.closed if bundle.cell == "y"]
    assert [bundle.tick_ns for bundle in silent] == [NOW, NOW + T, NOW + 2 * T]
    assert all(bundle.count(Status.MISSING) == 1 for bundle in silent)
    assert len([bundle for bundle in desk.closed if bundle.cell == "x"]) == 3


def test_cells_close_by_themselves():
    desk = Desk({"a": "x", "b": "y"})
    desk.report("b")
    assert [bundle.cell for bundle in desk.closed] == ["y"]


def test_a_slow_vantage_is_expected_only_when_one_of_its_ticks_is_due():
    desk = Desk({"a": "", "slow": ""})
    three = next(k for k in range(3) if (NOW + k * T) % (3 * T) == 0)
    desk.report("a", three)
    desk.bundles.report("slow", NOW + three * T, 3 * T, NOW + three * T + 1, 0, NO_FIGURES)
    for tick in range(three + 1, three + 4):
        desk.report("a", tick)
    desk.bundles.close_due(NOW + (three + 3) * T + DEADLINE)
    by_tick = {(bundle.tick_ns - NOW) // T - three: seen(bundle) for bundle in desk.closed}
    assert by_tick[0] == {"a": Status.REPORTED, "slow": Status.REPORTED}
    assert by_tick[1] == by_tick[2] == {"a": Status.REPORTED}
    assert by_tick[3] == {"a": Status.REPORTED, "slow": Status.MISSING}


def test_a_period_that_does_not_divide_is_expected_once_per_own_tick():
    desk = Desk({"slow": ""})
    period = 2_500_000_000
    first = -(-NOW // period) * period
    desk.bundles.report("slow", first, period, first + 1, 0, NO_FIGURES)
    desk.bundles.close_due(NOW + 40 * T)
    # Before the first report its period is not known: it is expected in every tick then.
    bundles_after = [bundle for bundle in desk.closed if bundle.tick_ns > first]
    expected = {k * period // T * T for k in range(first // period + 1, (NOW + 39 * T) // period + 1)}
    assert {bundle.tick_ns for bundle in bundles_after if bundle.tick_ns <= max(expected)} == expected


def test_the_clock_jumping_forward_is_counted_and_bounded():
    desk = Desk({"a": ""})
    desk.bundles.close_due(NOW + DEADLINE)
    desk.bundles.close_due(NOW + 86_400 * T + DEADLINE)
    assert len(desk.closed) == 1 + MAX_CATCH_UP
    assert desk.bundles.skipped == 86_400 - MAX_CATCH_UP


def test_the_clock_set_back_closes_nothing_twice():
    desk = Desk({"a": ""})
    desk.bundles.close_due(NOW + 5 * T + DEADLINE)
    before = len(desk.closed)
    desk.bundles.close_due(NOW + DEADLINE)
    assert len(desk.closed) == before
    assert desk.bundles.next_deadline_ns() == NOW + 6 * T + DEADLINE


def test_a_new_epoch_changes_who_is_expected():
    desk = Desk({"a": "", "b": ""})
    desk.report("a")
    desk.bundles.admit({"a": "", "c": ""}, T, DEADLINE, NOW + 1)
    desk.report("b")
    desk.bundles.close_due(NOW + DEADLINE)
    assert desk.statuses() == {"a": Status.REPORTED, "c": Status.MISSING}


def test_who_left_with_an_epoch_does_not_complete_a_bundle_for_who_came():
    desk = Desk({"a": "", "b": ""})
    desk.report("a")
    desk.bundles.admit({"b": "", "c": ""}, T, DEADLINE, NOW + 1)
    desk.report("b")
    assert desk.closed == []
    desk.report("c")
    assert desk.statuses() == dict.fromkeys("abc", Status.REPORTED)


def test_another_period_closes_what_is_open_and_begins_a_new_lattice():
    desk = Desk({"a": "", "b": ""})
    desk.report("a")
    desk.bundles.admit({"a": "", "b": ""}, T // 20, DEADLINE, NOW + 10)
    assert desk.statuses(0) == {"a": Status.REPORTED, "b": Status.MISSING}
    desk.bundles.close_due(NOW + T // 20 + DEADLINE)
    assert [bundle.tick_ns for bundle in desk.closed[1:]] == [NOW, NOW + T // 20]


def test_a_stranger_opens_nothing():
    desk = Desk()
    desk.report("stranger")
    desk.bundles.close_due(NOW + DEADLINE)
    assert "stranger" not in desk.statuses()
    assert desk.late == []


def test_backfill_is_recorded_for_its_tick_and_in_no_bundle():
    desk = Desk()
    figures = Figures(PHASE_ALARM, "kernel", 12.5, 4.0, "mm")
    desk.bundles.backfill("a", NOW - 100 * T + 3, NOW, figures)
    assert desk.closed == []
    assert desk.late == [Report("a", NOW - 100 * T, Status.BACKFILL, NOW, 0, figures)]


@pytest.mark.parametrize("order", ["abc", "cba", "bca"])
def test_reports_are_sorted_by_name_whatever_the_order_they_came_in(order: str):
    desk = Desk()
    for name in order:
        desk.report(name)
    assert [report.vantage_id for report in desk.closed[0].reports] == ["a", "b", "c"]
