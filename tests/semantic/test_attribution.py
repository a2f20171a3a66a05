# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom

from mvps.semantic.attribution import attribute, leave_out_excess

FAMILIES = [name for name in ("geography", "history", "law", "physics") for _ in range(12)]


def healthy(rng: np.random.Generator, replicas: int = 4) -> np.ndarray:
    """Scores (P, N): prompts differ in level and in spread, replicas do not."""
    level, spread = rng.gamma(2.0, size=(48, 1)), rng.gamma(2.0, size=(48, 1))
    return level + spread * rng.standard_t(3, size=(48, replicas))


def test_no_cell_of_a_healthy_group_is_named_more_often_than_promised():
    """250 groups of 20 cells at 5 % for all cells together; the interval leaves out a right test once in 10,000."""
    rng = np.random.default_rng(1)
    named = sum(attribute(healthy(rng), FAMILIES, 99, turn)[0].p_value <= 0.05 for turn in range(250))
    assert binom.ppf(5e-5, 250, 0.05) <= named <= binom.ppf(1 - 5e-5, 250, 0.05)


def test_one_replica_on_one_family_is_named_though_the_fleet_mean_hardly_moves():
    rng = np.random.default_rng(2)
    wrong = (rng.random((48, 4)) < 0.2).astype(float)
    before = wrong.mean()
    wrong[:12, 2] = rng.random(12) < 0.9  # geography on replica 2
    assert wrong.mean() - before < 0.06
    worst, *rest = attribute(wrong, FAMILIES)
    assert (worst.replica, worst.family) == (2, "geography")
    assert worst.p_value <= 0.01
    assert worst.effect > 0.3
    assert worst.prompts == 12
    assert all(cell.p_value > 0.05 for cell in rest if cell.replica != 2)


def test_a_replica_that_is_off_everywhere_is_named_for_all_prompts():
    rng = np.random.default_rng(3)
    scores = healthy(rng)
    scores[:, 0] += 3.0
    assert attribute(scores, FAMILIES)[0][:2] == (0, "*")


def test_distances_name_the_one_that_is_away_from_the_others():
    rng = np.random.default_rng(4)
    at = rng.normal(size=(48, 5, 3))
    at[12:24, 3] += 4.0  # history on replica 3
    distances = np.linalg.norm(at[:, :, None] - at[:, None], axis=-1)
    worst = attribute(leave_out_excess(distances), FAMILIES)[0]
    assert (worst.replica, worst.family) == (3, "history")
    assert worst.p_value <= 0.01


def test_excess_by_hand():
    distances = np.array([[[0.0, 1.0, 5.0], [1.0, 0.0, 6.0], [5.0, 6.0, 0.0]]])
    assert leave_out_excess(distances) == pytest.approx(np.array([[3.0 - 6.0, 3.5 - 5.0, 5.5 - 1.0]]))
    rng = np.random.default_rng(5)
    drawn = rng.random((7, 6, 6))
    excess = leave_out_excess(drawn + drawn.transpose(0, 2, 1))
    assert excess.sum(axis=1) == pytest.approx(np.zeros(7), abs=1e-12)


def test_missing_answers_are_left_out():
    distances = 1.0 - np.eye(4)[None].repeat(2, axis=0)
    distances[0, 1, :] = distances[0, :, 1] = math.nan
    distances[1, 1:3, :] = distances[1, :, 1:3] = math.nan
    excess = leave_out_excess(distances)
    assert np.isnan(excess[0]).tolist() == [False, True, False, False]
    assert np.isnan(excess[1]).all()  # two answers: neither is the odd one
    rng = np.random.default_rng(6)
    scores = healthy(rng)
    scores[rng.random(scores.shape) < 0.3] = math.nan
    scores[:12, 1] = math.nan
    scores[40] = math.nan
    cells = attribute(scores, FAMILIES, 99)
    assert (1, "geography") not in {cell[:2] for cell in cells}
    assert all(0.0 < cell.p_value <= 1.0 for cell in cells)
    whole = {cell.replica: cell.prompts for cell in cells if cell.family == "*"}
    counted = [row for row in scores if (~np.isnan(row)).sum() >= 2]
    assert whole == {r: sum(not math.isnan(row[r]) for row in counted) for r in range(4)}


def test_equal_scores_name_nobody():
    cells = attribute(np.ones((48, 3)), FAMILIES, 19)
    assert all(cell.p_value == 1.0 for cell in cells)
    assert all(cell.z == 0.0 for cell in cells)


def test_z_is_standardised_within_the_prompt():
    """One prompt, two replicas: the deviations are +-1/2 and their root mean square 1/2."""
    cells = attribute(np.array([[0.0, 1.0]]), ["a"], 19)
    assert [cell.z for cell in cells if cell.replica == 1] == pytest.approx([1.0, 1.0])
    assert cells[0].p_value == 1.0  # whichever way round, one of the two is as far up
    assert [cell.effect for cell in cells if cell.replica == 0] == pytest.approx([-0.5, -0.5])


def test_what_cannot_be_attributed_is_refused():
    with pytest.raises(ValueError, match="one family per prompt"):
        attribute(np.zeros((3, 2)), ["a"])
    with pytest.raises(ValueError, match="N >= 2"):
        attribute(np.zeros((1, 1)), ["a"])
    with pytest.raises(ValueError, match="stands for all prompts"):
        attribute(np.zeros((1, 2)), ["*"])
    with pytest.raises(ValueError, match="finite"):
        attribute(np.full((1, 2), math.inf), ["a"])
    with pytest.raises(ValueError, match="too many"):
        attribute(np.zeros((1, 2)), ["a"], 10**7)
    with pytest.raises(ValueError, match=r"\(P, N, N\)"):
        leave_out_excess(np.zeros((3, 2)))
