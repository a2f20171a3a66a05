# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, roc_auc_score

from mvps.semantic.cbf import Lateral, State, auroc, limits, limits_by_topic

SEEDS = st.integers(0, 2**32 - 1)
NONE, CBF = Lateral.NONE, Lateral.CBF


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        # C4_ALARM .6, C4_WATCH .8
        ([0.9, 0.6, 0.7], [NONE, NONE, NONE]),  # at the limit is not below it
        ([0.59, 0.9, 0.9, 0.9], [CBF, CBF, CBF, NONE]),  # one tick sets, three release
        ([0.59, 0.8, 0.8, 0.8], [CBF, CBF, CBF, NONE]),  # at C4_WATCH counts
        ([0.59, 0.79, 0.79, 0.79, 0.79], [CBF] * 5),  # between the limits holds
        ([0.59, 0.9, 0.9, 0.7, 0.9, 0.9, 0.9], [CBF] * 6 + [NONE]),  # running, not in all
        ([0.59, 0.9, 0.9, 0.5, 0.9, 0.9, 0.9], [CBF] * 6 + [NONE]),
        ([0.59, 0.9, 0.9, None, 0.9, 0.9, 0.9], [CBF] * 6 + [NONE]),  # unknown is not calm
        ([None, None], [NONE, NONE]),
        ([0.9, 0.9, 0.9, 0.1, 0.9], [NONE, NONE, NONE, CBF, CBF]),  # calm before does not count after
    ],
)
def test_the_label_tick_by_tick(values: list[float | None], labels: list[Lateral]):
    state, seen = State(), []
    for value in values:
        state = state.step(value, 0.6, 0.8)
        seen.append(state.label)
    assert seen == labels


@pytest.mark.parametrize(("alarm", "watch"), [(0.8, 0.6), (-0.1, 0.5), (0.5, 1.1), (math.nan, 0.5)])
def test_limits_in_the_wrong_order_are_refused(alarm: float, watch: float):
    with pytest.raises(ValueError, match="C4_ALARM <= C4_WATCH"):
        State().step(0.5, alarm, watch)


def labelled(rng: np.random.Generator, false: int, true: int, shift: float) -> tuple[np.ndarray, np.ndarray]:
    """C_4 of 20 answers each: .9 agree where the answer is true, less by ``shift`` where it is false."""
    kinds = np.arange(false + true) < false
    return rng.binomial(20, np.where(kinds, 0.9 - shift, 0.9)) / 20.0, kinds


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.integers(10, 25), st.integers(10, 40), st.floats(0.0, 0.8))
def test_the_limit_has_the_largest_f1_and_the_rank_is_right(seed: int, false: int, true: int, shift: float):
    c4, kinds = labelled(np.random.default_rng(seed), false, true, shift)
    found = limits(c4, kinds, resamples=20)
    best = max(f1_score(kinds, c4 < at, zero_division=0.0) for at in np.linspace(0.0, 1.0, 41))
    assert f1_score(kinds, c4 < found.alarm, zero_division=0.0) == pytest.approx(best)
    assert found.auroc == pytest.approx(roc_auc_score(kinds, -c4))
    assert 0.0 <= found.alarm <= found.watch <= 1.0
    assert (found.false, found.true) == (false, true)


def test_a_limit_that_separates():
    c4 = np.concatenate((np.full(12, 0.2), np.full(30, 0.9)))
    kinds = np.arange(42) < 12
    found = limits(c4, kinds)
    assert found.alarm == pytest.approx(0.55)
    assert found.watch == pytest.approx(0.9)
    assert (found.f1, found.auroc) == (1.0, 1.0)
    assert found.alarm_interval == pytest.approx((0.55, 0.55))
    assert found.informative


def test_without_information_nobody_is_promised_anything():
    """False and true alike: F1 outside the sample is below F1 on it, and the interval of the AUROC holds .5."""
    c4, kinds = labelled(np.random.default_rng(1), 20, 60, 0.0)
    found = limits(c4, kinds)
    assert found.f1 < f1_score(kinds, c4 < found.alarm)
    assert not found.informative
    assert found.auroc_interval[0] < 0.5 < found.auroc_interval[1]


def test_a_falsehood_that_is_stable_cannot_be_found():
    """001 sec. 6.5: every rephrasing brings the same wrong answer, C_4 = 1 for all; no limit flags anything."""
    c4, kinds = np.ones(40), np.arange(40) < 15
    found = limits(c4, kinds)
    assert found.alarm == 0.0
    assert found.auroc == 0.5
    assert not found.informative


def test_topics_have_limits_of_their_own_if_they_have_the_prompts():
    rng = np.random.default_rng(2)
    geography, history = labelled(rng, 15, 30, 0.7), labelled(rng, 12, 30, 0.3)
    few = labelled(rng, 3, 30, 0.5)
    c4, kinds = (np.concatenate(parts) for parts in zip(geography, history, few, strict=True))
    topics = ["geography"] * 45 + ["history"] * 42 + ["law"] * 33
    found = limits_by_topic(c4, kinds, topics, resamples=50)
    assert set(found) == {"*", "geography", "history"}
    assert found["geography"] == limits(*geography, resamples=50)
    assert found["*"].false == 30


def test_too_few_labels_are_refused():
    c4 = np.linspace(0.0, 1.0, 30)
    with pytest.raises(ValueError, match="9 false and 21 true"):
        limits(c4, np.arange(30) < 9)
    with pytest.raises(ValueError, match=r"C_4 in \[0, 1\]"):
        limits(2.0 * c4, np.arange(30) < 10)
    with pytest.raises(ValueError, match="30 prompts have 2 topics"):
        limits_by_topic(c4, np.arange(30) < 10, ["a", "b"])
    with pytest.raises(ValueError, match="stands for all topics"):
        limits_by_topic(c4, np.arange(30) < 10, ["*"] * 30)


def test_auroc_counts_ties_half():
    assert auroc(np.array([0.1, 0.5, 0.5, 0.9]), np.array([True, True, False, False])) == pytest.approx(3.5 / 4.0)
