# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from bench.simulated_run import CALIBRATION, TICK, record

from mvps.testbed.answers import MEAN_TOKENS, Arm
from mvps.testbed.score import judged, score, series


def test_a_run_with_coupling_shows_it_and_the_placebo_run_does_not() -> None:
    coupled, placebo = (score(record(arm, 1, events=12)) for arm in (Arm.COUPLED, Arm.PLACEBO))
    assert coupled["blocks"][0]["c2"]["p"] <= 0.05
    assert coupled["blocks"][0]["c2"]["effect"] == pytest.approx(-0.25, abs=0.1)
    assert placebo["blocks"][0]["c2"]["p"] > 0.05
    assert [one["ai_s"] for one in placebo["events"]] == [None] * 12
    lags = [one["ai_s"] - one["net_s"] for one in coupled["events"]]
    assert lags == pytest.approx([2 * TICK] * 12, abs=1e-6)
    falls = [[one["fall"] for one in run["events"]] for run in (coupled, placebo)]
    assert np.mean(falls[0]) == pytest.approx(0.4, abs=0.1)
    assert np.mean(falls[1]) == pytest.approx(0.0, abs=0.01)


def test_labels_are_held_against_what_was_injected() -> None:
    one = record(Arm.COUPLED, 2)
    scored = score(one)
    assert [episode["right"] for episode in scored["episodes"]] == [True] * 5
    # The last settled phase counts, not one on the way.
    last = next(at for at in one["injected"] if at["fault"] == "2")
    for row in one["ticks"]:
        if last["end"] - 0.6 < row[0] < last["end"]:
            row[9] = "NET_LEADS"
    again = {episode["fault"]: episode for episode in score(one)["episodes"]}
    assert not again["2"]["right"]
    assert again["2"]["label"] == "NET_LEADS"
    assert sum(episode["right"] for episode in again.values()) == 4


def test_strong_faults_alarm_in_both_monitors_at_the_same_tick_and_nothing_alarms_in_none() -> None:
    episodes = {one["fault"]: one for one in score(record(Arm.COUPLED, 3))["episodes"]}
    for fault in ("1", "2", "4"):
        assert episodes[fault]["joint_s"] == episodes[fault]["pair_s"]
        # The third tick in a row: between two and three ticks after the injection.
        assert 2 * TICK <= episodes[fault]["joint_s"] <= 3 * TICK + 1e-9
    assert episodes["0"]["joint_s"] is None
    assert episodes["0"]["pair_s"] is None


def test_exposures_follow_from_shares_and_from_misses() -> None:
    one = record(Arm.COUPLED, 4)
    withdrawn = next(at for at, step in enumerate(one["injected"]) if step["fault"] == "event")
    step, found = one["injected"][withdrawn], score(one)["events"][withdrawn]
    gained = 4 - len(step["on"])
    # Of every two questions at a replica that gained, one is cold; the others have none.
    assert found["x_counted"] == pytest.approx(gained / 4 * 0.5 * MEAN_TOKENS, rel=0.15)
    q = 2.0 / (gained * 2 + len(step["on"]))
    assert found["x_shares"] == pytest.approx(gained / 4 * (q - 0.25) / q * MEAN_TOKENS, rel=0.2)


def test_a_tick_without_a_reading_has_the_last_ones_and_too_many_are_refused() -> None:
    one = record(Arm.PLACEBO, 5)
    one["ticks"][CALIBRATION + 10][5] = None
    seen = series(one)
    assert 0.0 < seen.missing < 0.01
    assert np.isfinite(seen.z).all()
    assert seen.z[CALIBRATION + 10].tolist() == seen.z[CALIBRATION + 9].tolist()
    for row in one["ticks"][CALIBRATION::20]:
        row[3] = None
    with pytest.raises(ValueError, match="too busy"):
        series(one)
    gap = record(Arm.PLACEBO, 5)
    del gap["ticks"][CALIBRATION + 20 : CALIBRATION + 26]
    with pytest.raises(ValueError, match="no joint tick"):
        series(gap)


def test_what_the_broker_decided_live_is_computed_again() -> None:
    one = record(Arm.COUPLED, 8)
    assert score(one)["replay"] < 1e-6
    for row in one["ticks"]:
        row[8] += 1.0 + row[8]
    assert score(one)["replay"] > 0.5


def test_a_run_that_never_calibrated_is_refused() -> None:
    one = record(Arm.PLACEBO, 6)
    for row in one["ticks"]:
        row[9] = "CALIBRATING"
    with pytest.raises(ValueError, match="no calibration"):
        series(one)


def test_axes_that_never_vary_in_calibration_are_named_by_their_absence() -> None:
    assert score(record(Arm.COUPLED, 7))["live axes"] == ["net_c2", "ai_c1", "ai_c2"]


def test_a_run_can_be_judged_again_with_another_floor() -> None:
    one = record(Arm.COUPLED, 2)
    again = judged(one, one["size"]["floor"])
    assert again.faults == tuple(step["fault"] for step in one["injected"] if step["fault"] != "event")
    right = dict(zip(again.faults, again.right, strict=True))
    assert right["0"]
    assert right["2"]
    assert right["4"]
    # With a floor above what any fault moves nothing is ever over its limit.
    blind = judged(one, 5.0)
    assert dict(zip(blind.faults, blind.right, strict=True)) == {
        "0": True,
        "1": False,
        "2": False,
        "3": False,
        "4": False,
    }
    assert blind.ai_limit < again.ai_limit
