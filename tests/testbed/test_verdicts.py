# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
from bench.simulated_run import record
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from mvps.testbed.answers import Arm
from mvps.testbed.score import score
from mvps.testbed.verdicts import Verdict, above, share, summary


@given(st.integers(0, 200), st.integers(1, 200))
def test_wilson_is_scipys(hits: int, of: int) -> None:
    hits = min(hits, of)
    reference = binomtest(hits, of).proportion_ci(method="wilson")
    found = share(hits, of)
    assert (found.low, found.high) == pytest.approx((reference.low, reference.high), abs=1e-9)


def test_a_share_of_nothing_says_nothing() -> None:
    assert share(0, 0).json() == {"share": None, "of": 0, "low": 0.0, "high": 1.0}
    assert above(share(0, 0), 0.05) is Verdict.NOT_TESTABLE
    with pytest.raises(ValueError, match="is no share"):
        share(3, 2)


def test_a_rate_is_judged_by_its_whole_interval() -> None:
    assert above(share(9, 10), 0.05) is Verdict.HELD
    assert above(share(0, 40), 0.05) is Verdict.FAILED
    assert above(share(1, 8), 0.05) is Verdict.UNDERPOWERED


@pytest.fixture(scope="module")
def runs() -> list[dict[str, Any]]:
    return [
        score(record(arm, seed, events=12, sweeps=1, lag=0 if arm is Arm.STATELESS else 2))
        for arm in (Arm.COUPLED, Arm.PLACEBO)
        for seed in range(4)
    ]


def test_arms_are_summed_up_apart(runs: list[dict[str, Any]]) -> None:
    found = summary(runs)
    coupled, placebo = found["arms"]["coupled"], found["arms"]["placebo"]
    assert coupled["right"]["share"] == placebo["right"]["share"] == 1.0
    assert coupled["confusion"]["4"]["labels"] == {"CASCADING": 4}
    assert placebo["confusion"]["4"]["labels"] == {"NET_LEADS": 4}
    assert coupled["rejections"]["certificate c2"]["share"] == 1.0
    assert placebo["rejections"]["certificate c2"]["share"] <= 0.25
    assert coupled["users"]["answered"] == 4000
    assert found["nominal"]["holds"] is True


def test_a_placebo_arm_that_rejects_too_often_breaks_the_bar(runs: list[dict[str, Any]]) -> None:
    lying = [{**run, "arm": "placebo"} for run in runs if run["arm"] == "coupled"]
    assert summary(lying)["nominal"]["holds"] is False
    assert summary([run for run in runs if run["arm"] == "coupled"])["nominal"]["holds"] is None


def test_the_order_of_both_surfaces_decides_p_ic2(runs: list[dict[str, Any]]) -> None:
    found = summary(runs)["predictions"]
    assert found["P_IC2"]["verdict"] == "held"
    assert found["P_IC2, bound"]["verdict"] == "failed"  # half a second, five rebuilds are .16
    backwards = [score(record(Arm.COUPLED, seed, events=12, lag=-2)) for seed in range(4)]
    # What is searched from an event on sees both at its first tick when the answers were first: no lag above 0.
    assert summary(backwards)["predictions"]["P_IC2"]["verdict"] == "failed"


def test_an_entry_that_never_varies_in_quiet_cannot_be_the_largest_there(runs: list[dict[str, Any]]) -> None:
    found = summary(runs)["predictions"]
    assert found["P_IC4, quiet"]["verdict"] == "not testable"
    assert found["P_IC4, events"]["figures"]["of"] == 4


def test_the_transfer_is_judged_on_other_runs_than_it_was_fitted_to(runs: list[dict[str, Any]]) -> None:
    fitted = summary(runs)["arms"]["coupled"]["drift"]["x_shares"]
    assert (fitted["fitted to"], fitted["held out"]) == (24, 24)
    few = summary(runs[:1])["predictions"]["P_IC3"]
    assert few["verdict"] == "underpowered"
    with pytest.raises(ValueError, match="no run"):
        summary([])
