# SPDX-License-Identifier: Apache-2.0
"""A report as a surface is one that an agent takes, and says what the report said."""

from __future__ import annotations

import dataclasses

import pytest
from tests.ai.test_group import BASE, SCALE, Source, group

from mvps.ai.group import Report
from mvps.ai.replica_load import ReplicaLoad
from mvps.ai.surface import surface_of
from mvps.daemon.reported import ReportedSurfaces
from mvps.v1 import snapshot_pb2 as pb


def reports(rounds: int, **knobs: int) -> list[Report]:
    made, source = group(), Source(1)
    for _ in range(SCALE + BASE):
        first = made.step(source.round())
    return [first, *(made.step(source.round(**knobs)) for _ in range(rounds))]


def test_every_report_is_taken_from_calibration_to_alarm() -> None:
    reported = ReportedSurfaces()
    for report in reports(40, apart=3):
        assert reported.take(surface_of(report, "llama", "0" * 16, "empirical"), 10**9) == ""


def test_it_says_what_the_report_said() -> None:
    report = reports(40, apart=3)[-1]
    surface = surface_of(report, "llama", "abc", "empirical")
    assert surface.name == "ai.llama"
    assert (surface.vector.c1, surface.vector.c2) == (report.axes["c1"], report.axes["c2_w2"])
    assert surface.vector.farthest == "d"
    decision = surface.decision
    assert pb.Phase.Name(decision.phase) == f"PHASE_{report.phase}"
    assert (decision.d2, decision.p_value, decision.dof) == (report.d2, report.p_value, report.dof)
    assert sum(one.value for one in decision.axis_contributions) == pytest.approx(report.d2)
    assert sum(decision.posterior) == pytest.approx(1.0)
    assert [(o.vantage, o.checked, o.violated) for o in surface.observations] == [(n, 1.0, 0.0) for n in "abcd"]
    assert "capitals" not in str(surface)


def test_the_worst_topic_travels_without_its_name() -> None:
    made, source = group(), Source(4)
    for _ in range(SCALE + BASE):
        quiet = made.step(source.round())
    for _ in range(30):
        report = made.step(source.round(brittle="sums"))
    assert surface_of(quiet, "g", "0", "empirical").lateral == pb.LATERAL_NONE
    surface = surface_of(report, "g", "0", "empirical")
    assert surface.lateral == pb.LATERAL_COHERENT_BUT_FALSE
    assert surface.vector.c4 == report.worst_c4
    assert surface.vector.c4 < 0.6
    assert "sums" not in str(surface)
    assert ReportedSurfaces().take(surface, 10**9) == ""


def test_while_it_calibrates_there_is_no_decision() -> None:
    made, source = group(), Source(2)
    surface = surface_of(made.step(source.round()), "g", "0", "empirical")
    assert not surface.HasField("decision")
    assert (surface.calibrated_ticks, surface.needed_ticks) == (1, SCALE)


def test_a_replica_that_owes_answers_is_a_violated_check() -> None:
    made, source = group(), Source(3)
    surface = surface_of(made.step(source.round(silent=1)), "g", "0", "empirical")
    assert {o.vantage: o.violated for o in surface.observations} == {"a": 0.0, "b": 1.0, "c": 0.0, "d": 0.0}


def test_what_the_engines_counted_travels_with_its_replica() -> None:
    made, source = group(), Source(5)
    loads = {"a": ReplicaLoad(7, 700, 500), "b": ReplicaLoad(9, 0, 0)}
    surface = surface_of(made.step(dataclasses.replace(source.round(), loads=loads)), "g", "0", "empirical")
    said = {o.vantage: o.load for o in surface.observations if o.HasField("load")}
    assert {name: (load.requests, load.prompt_tokens, load.cached_tokens) for name, load in said.items()} == {
        "a": (7, 700, 500), "b": (9, 0, 0),
    }  # fmt: skip
    assert ReportedSurfaces().take(surface, 10**9) == ""
