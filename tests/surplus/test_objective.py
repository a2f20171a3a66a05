# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax

from mvps.surplus.objective import (
    DissipationWeights,
    Standing,
    Terms,
    ValueWeights,
    adaptive_routing,
    drift,
    format_debt,
    likelihood_gain,
    mode_flip,
    progress,
    saturating,
)


def standing(theta: float, leakage: float) -> Standing:
    t, leak = np.array([[theta]]), np.array([[leakage]])
    return Standing(np.cos(t), t, np.sqrt(1 - leak**2), leak)


def test_likelihood_gain_has_mean_zero_and_a_floor() -> None:
    log_p = log_softmax(np.array([[1.0, 2.0, 3.0, -1e6, -np.inf]]), axis=1)
    gain = likelihood_gain(log_p)
    assert float((np.exp(log_p) * gain).sum()) == pytest.approx(0.0, abs=1e-12)
    np.testing.assert_array_equal(gain[0, 3:], -1.0)
    assert likelihood_gain(np.zeros((1, 1)))[0, 0] == 0.0


def test_drift_counts_what_grows_and_progress_what_is_gained() -> None:
    now, worse, better = standing(0.2, 0.1), standing(0.35, 0.2), standing(0.1, 0.05)
    assert drift(now, worse)[0, 0] == pytest.approx(0.15 + 0.5 * 0.1)
    assert drift(now, better)[0, 0] == 0.0
    assert drift(now, standing(0.25, 0.1))[0, 0] < drift(now, worse)[0, 0]
    assert progress(now, better)[0, 0] > 0.0 > progress(now, worse)[0, 0]


def test_flips_depend_on_the_candidate() -> None:
    text, tool, other = 0, 1, 2
    mode = np.array([[text, tool, other]])
    current, previous = np.array([[tool]]), np.array([[text]])
    # Back to text would be text, tool, text; another tool is a change, too soon or not.
    np.testing.assert_array_equal(mode_flip(mode, current, previous, np.array([[1]]), 3), [[1.5, 0.0, 0.5]])
    np.testing.assert_array_equal(mode_flip(mode, current, previous, np.array([[3]]), 3), [[1.0, 0.0, 0.0]])
    np.testing.assert_array_equal(mode_flip(mode, current, current, np.array([[9]]), 3), [[0.0, 0.0, 0.0]])


def test_debt_rises_by_risk_falls_by_repair_and_stays_a_share() -> None:
    risk, repairs = np.array([[1.0, 0.0, 0.0]]), np.array([[False, True, False]])
    np.testing.assert_allclose(format_debt(np.array([[0.5]]), risk, repairs), [[0.7, 0.3, 0.5]])
    np.testing.assert_allclose(format_debt(np.array([[0.95]]), risk, repairs), [[1.0, 0.75, 0.95]])
    np.testing.assert_allclose(format_debt(np.array([[0.1]]), risk, repairs), [[0.3, 0.0, 0.1]])


def test_costs_saturate_and_rise_under_stress() -> None:
    np.testing.assert_allclose(saturating(np.array([0.0, 100.0, 1e12]), 100.0), [0.0, 0.5, 1.0])
    np.testing.assert_allclose(adaptive_routing(np.eye(2), 0.5, 0.25), np.eye(2) * 1.75)


def test_sums_are_the_weighted_terms() -> None:
    parts = {name: np.array([[float(i + 1)]]) for i, name in enumerate(Terms._fields)}
    terms = Terms(**parts)
    of = {name: float(part[0, 0]) for name, part in parts.items()}
    value = of["likelihood"] + 0.6 * of["progress"] - 0.8 * of["structure_risk"] - 0.3 * of["latency"]
    assert terms.value(ValueWeights())[0, 0] == pytest.approx(value - 0.2 * of["length"])
    lite = of["drift"] + 0.7 * of["mode_flip"] + 0.6 * of["format_debt"] + of["routing"]
    assert terms.dissipation(DissipationWeights())[0, 0] == pytest.approx(lite)
    assert terms.dissipation(DissipationWeights(tension=2.0))[0, 0] == pytest.approx(lite + 2.0 * of["tension"])
    few = Terms(parts["likelihood"], parts["progress"], parts["drift"])
    assert few.dissipation(DissipationWeights(tension=1.0))[0, 0] == of["drift"]
