# SPDX-License-Identifier: Apache-2.0
"""Reported surfaces stand for a while, and nothing is taken that a broker would refuse."""

from __future__ import annotations

import math

import pytest

from mvps.daemon.reported import LONGEST_NS, MAX_REPORTED, ReportedSurfaces
from mvps.v1 import snapshot_pb2 as pb

SECOND = 10**9


class Clock:
    now = 0

    def __call__(self) -> int:
        return self.now


def surface(name: str = "ai.g", c1: float = 0.9, **fields: object) -> pb.Surface:
    made = pb.Surface(name=name, **fields)  # type: ignore[arg-type]
    made.vector.c1 = c1
    made.observations.add(vantage="replica-a", events=7, checked=7, violated=1)
    return made


def test_a_report_stands_for_its_time_and_the_next_takes_its_place() -> None:
    clock = Clock()
    reported = ReportedSurfaces(clock)
    assert reported.take(surface(), 10 * SECOND) == ""
    clock.now = 9 * SECOND
    assert [one.vector.c1 for one in reported.standing()] == [0.9]
    assert reported.take(surface(c1=0.5), 10 * SECOND) == ""
    clock.now = 18 * SECOND
    assert [one.vector.c1 for one in reported.standing()] == [0.5]
    clock.now = 19 * SECOND
    assert reported.standing() == []


def test_what_was_taken_is_not_changed_by_who_reported_it() -> None:
    reported = ReportedSurfaces()
    mine = surface()
    reported.take(mine, SECOND * 60)
    mine.vector.c1 = 0.1
    assert reported.standing()[0].vector.c1 == 0.9


@pytest.mark.parametrize("name", ["kernel", "dataplane", "", "ai.", "ai.a b", "ai.\n", "AI", "ai." + "x" * 65])
def test_a_surface_of_another_name_is_refused(name: str) -> None:
    assert "cannot be reported" in ReportedSurfaces().take(surface(name), SECOND)


@pytest.mark.parametrize("valid_ns", [0, LONGEST_NS + 1])
def test_a_report_stands_neither_for_nothing_nor_for_ever(valid_ns: int) -> None:
    assert "stands for" in ReportedSurfaces().take(surface(), valid_ns)


def bad() -> list[pb.Surface]:
    beyond = surface(c1=1.5)
    nan = surface()
    nan.vector.hamiltonian = math.nan
    twice = surface()
    twice.observations.add(vantage="replica-a")
    controls = surface(missing=["a\x1b[2J"])
    phase = surface()
    phase.decision.phase = pb.PHASE_BAU
    more = surface()
    more.observations.extend(pb.ObservationSummary(vantage=f"r{n}") for n in range(64))
    return [beyond, nan, twice, controls, phase, more]


@pytest.mark.parametrize("wrong", bad(), ids=lambda one: str(len(one.SerializeToString())))
def test_what_a_broker_would_refuse_is_refused_here(wrong: pb.Surface) -> None:
    reported = ReportedSurfaces()
    assert "broker would refuse" in reported.take(wrong, SECOND)
    assert reported.standing() == []


def test_distributions_and_great_size_are_refused() -> None:
    carries = surface()
    carries.observations[0].distribution = b"\x00\x00\x80?"
    assert "distributions" in ReportedSurfaces().take(carries, SECOND)
    large = surface(missing=["x" * 250 + str(n) for n in range(80)])
    assert "at most" in ReportedSurfaces().take(large, SECOND)


def test_so_many_surfaces_and_no_more() -> None:
    clock = Clock()
    reported = ReportedSurfaces(clock)
    for number in range(MAX_REPORTED):
        assert reported.take(surface(f"ai.{number}"), 10 * SECOND) == ""
    assert "already" in reported.take(surface("ai.more"), 10 * SECOND)
    assert reported.take(surface("ai.0"), 10 * SECOND) == ""
    clock.now = 11 * SECOND
    assert reported.take(surface("ai.more"), 10 * SECOND) == ""
