# SPDX-License-Identifier: Apache-2.0
"""A replica group from calibration to alarm, on numbers: what is slow, apart, brittle or silent is named."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from mvps.ai.group import Group, Report, Round
from mvps.coherence.phase import Phase
from mvps.semantic import profiles

NAMES = ("a", "b", "c", "d")
FAMILIES = ("capitals", "sums", "words")
SCALE, BASE = 60, 300


class Source:
    """Rounds of four alike replicas; knobs make one of them different."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.index = -1

    def round(self, slow: int = -1, apart: int = -1, silent: int = -1, brittle: str = "") -> Round:
        rng, self.index = self.rng, self.index + 1
        family = FAMILIES[self.index % 3]
        ttft = 0.05 * np.exp(0.3 * rng.standard_normal(4))
        between = np.abs(0.2 + 0.05 * rng.standard_normal((4, 4)))
        rephrased = np.abs(0.25 + 0.05 * rng.standard_normal((4, 5)))
        if slow >= 0:
            ttft[slow] *= 8.0
        if apart >= 0:
            between[apart] = 1.1
        between = np.triu(between, 1) + np.triu(between, 1).T
        if apart >= 0:
            between[apart, :] = between[:, apart] = 1.1
            between[apart, apart] = 0.0
        if brittle == family:
            rephrased[:, :3] = 1.0
        total = ttft * 3.0
        if silent >= 0:
            ttft[silent] = total[silent] = np.nan
            between[silent, :] = between[:, silent] = np.nan
            rephrased[silent] = np.nan
        return Round(
            self.index,
            family,
            self.index % 30,
            ttft,
            total,
            between,
            np.abs(0.2 + 0.05 * rng.standard_normal(4)),
            1.0 + 0.1 * rng.standard_normal(8),
            rephrased,
            np.ones((4, 5), dtype=bool),
            np.zeros(4),
            tuple({"timeout" if r == silent else "answered": 1} for r in range(4)),
        )


def group(profile: profiles.Profile = profiles.GREY) -> Group:
    return Group(NAMES, profile, "e", {"*": (0.6, 0.8)}, scale_ticks=SCALE, baseline_ticks=BASE)


def watching(seed: int, profile: profiles.Profile = profiles.GREY) -> tuple[Group, Source]:
    made, source = group(profile), Source(seed)
    states = [made.step(source.round()).state for _ in range(SCALE + BASE)]
    assert states[: SCALE - 1] == ["scales"] * (SCALE - 1)
    assert states[SCALE - 1 : -1] == ["baseline"] * BASE
    assert states[-1] == "watching"
    return made, source


def after(made: Group, source: Source, rounds: int, **knobs: Any) -> Report:
    for _ in range(rounds):
        report = made.step(source.round(**knobs))
    return report


@pytest.mark.parametrize("profile", [profiles.BLACK, profiles.GREY], ids=lambda profile: profile.name)
def test_a_healthy_group_does_not_alarm_and_names_nobody(profile: profiles.Profile) -> None:
    """Three groups of 200 rounds each, WATCH in 5 % of rounds at most on average; seeds are fixed."""
    phases: list[str | None] = []
    for seed in range(3):
        made, source = watching(seed, profile)
        reports = [made.step(source.round()) for _ in range(200)]
        phases += [report.phase for report in reports]
        assert not any(report.suspects or report.brittle for report in reports)
    assert not {"ALARM", "CRITICAL"} & set(phases)
    assert phases.count("WATCH") <= 0.05 * len(phases)
    assert reports[-1].axes["c1"] is not None
    assert reports[-1].axes["c2_w2"] == pytest.approx(1.0, abs=0.1)


def test_before_there_is_a_baseline_there_is_no_phase() -> None:
    made, source = group(), Source(2)
    for _ in range(SCALE + BASE):
        report = made.step(source.round())
        assert (report.phase, report.d2, report.p_value) == (None, None, None)


def test_a_slow_replica_is_an_alarm_of_c1() -> None:
    made, source = watching(3, profiles.BLACK)
    report = after(made, source, 20, slow=2)
    assert Phase[report.phase or ""] >= Phase.ALARM
    assert max(report.contributions, key=lambda axis: report.contributions[axis]) == "c1"


def test_a_replica_that_says_something_else_is_an_alarm_of_c2_and_named() -> None:
    made, source = watching(4)
    report = after(made, source, 40, apart=3)
    assert Phase[report.phase or ""] >= Phase.ALARM
    assert max(report.contributions, key=lambda axis: report.contributions[axis]) == "c2_w2"
    assert {one.replica for one in report.suspects} == {"d"}
    assert report.suspects[0].by == "apart from the others"


def test_a_replica_that_does_not_answer_is_named_and_its_outcomes_counted() -> None:
    made, source = watching(5)
    report = after(made, source, 40, silent=0)
    assert ("a", "no answer") in {(one.replica, one.by) for one in report.suspects}
    assert report.outcomes["a"]["timeout"] == 40
    assert report.outcomes["b"] == {"answered": SCALE + BASE + 40}


def test_answers_that_rephrasing_breaks_are_cbf_of_their_family_alone_and_the_phase_stays() -> None:
    made, source = watching(6)
    report = after(made, source, 30, brittle="sums")
    assert report.brittle == ("sums",)
    assert report.phase == "BAU"
    report = after(made, source, 90)
    assert report.brittle == ()


def test_the_black_profile_reports_c2_and_does_not_judge_it() -> None:
    made, source = watching(7, profiles.BLACK)
    report = after(made, source, 20, apart=3)
    assert report.axes["c2_w2"] is not None
    assert report.axes["c2_w2"] < 0.7
    assert report.phase == "BAU"


def test_deterministic_replicas_that_say_the_same_to_everything_calibrate_no_c2_and_it_is_said() -> None:
    made, source = group(), Source(8)
    for _ in range(SCALE):
        seen = source.round()
        report = made.step(dataclasses.replace(seen, unrelated=np.zeros(8), replayed=np.zeros(4)))
    assert report.state == "scales"
    assert any("no farther apart" in note for note in report.notes)
    report = after(made, source, 2 * SCALE)  # the group recovers, and so does calibration
    assert report.state == "baseline"


def test_an_encoder_that_fails_is_counted_and_said() -> None:
    made, source = watching(9)
    empty = np.full((4, 4), np.nan)
    report = made.step(dataclasses.replace(source.round(), between=empty, rephrased=None, encoder_failed=True))
    assert report.axes["c2_w2"] is None
    assert "the encoder gave nothing in 1 rounds" in report.notes
    assert "without c2_w2" in report.notes
