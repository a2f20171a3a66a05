# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvps.coherence.axes import c1, c2_plain
from mvps.robust import minimax
from mvps.robust.minimax import TooManyRemovals, bounds, greedy_bounds, removals, subset_c1, subset_c2, subset_c3

SEEDS = st.integers(0, 2**32 - 1)


def brute_force(p: np.ndarray, f: int) -> dict[tuple[int, ...], float]:
    """C_2 of every removal of up to f, one by one, by the agent's own code."""
    number = len(p)
    found = {}
    for size in range(f + 1):
        for gone in itertools.combinations(range(number), size):
            value = c2_plain(np.delete(p, gone, axis=0))
            assert value is not None
            found[gone] = value
    return found


@settings(max_examples=50, deadline=None)
@given(SEEDS, st.integers(3, 8), st.integers(2, 6))
def test_bounds_are_those_of_brute_force(seed: int, number: int, labels: int):
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(labels, 0.4), number)
    f = int(rng.integers(0, (number - 1) // 2 + 1))
    masks = removals(number, f)
    values = subset_c2(p, masks)
    one_by_one = brute_force(p, f)
    assert values == pytest.approx(list(one_by_one.values()))
    found = bounds(values, masks)
    assert (found.lo, found.hi) == pytest.approx((min(one_by_one.values()), max(one_by_one.values())))
    assert one_by_one[found.without_lo] == pytest.approx(found.lo)
    assert one_by_one[found.without_hi] == pytest.approx(found.hi)
    assert found.lo <= found.everybody <= found.hi
    order = rng.permutation(number)
    again = bounds(subset_c2(p[order], masks), masks)
    assert (again.lo, again.hi) == pytest.approx((found.lo, found.hi))


@settings(max_examples=50, deadline=None)
@given(SEEDS, st.integers(3, 9))
def test_greedy_bounds_lie_inside_the_exact_ones(seed: int, number: int):
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(4, 0.3), number)
    f = int(rng.integers(0, (number - 1) // 2 + 1))
    masks = removals(number, f)
    exact = bounds(subset_c2(p, masks), masks)
    greedy = greedy_bounds(number, f, lambda some: subset_c2(p, some))
    assert exact.lo <= greedy.lo + 1e-12
    assert greedy.lo <= exact.everybody <= greedy.hi
    assert greedy.hi <= exact.hi + 1e-12
    assert len(greedy.without_lo) <= f
    if f <= 1:
        assert (greedy.lo, greedy.hi) == pytest.approx((exact.lo, exact.hi))


def test_honest_coherence_lies_between_the_bounds_whatever_the_liars_say():
    rng = np.random.default_rng(2)
    honest = rng.multinomial(200, [0.9, 0.06, 0.04], 5) / 200
    truth = c2_plain(honest)
    assert truth is not None
    masks = removals(7, 2)
    for _ in range(100):
        p = np.vstack((honest, rng.dirichlet(np.full(3, 0.2), 2)))
        found = bounds(subset_c2(p, masks), masks)
        assert found.lo <= truth <= found.hi


def test_the_sources_exact_form_keeps_the_liar_and_its_approximation_removes_it():
    """001 sec. 12: within a factor 1 + f/N = 1.2, it says; the factor is 1.68."""
    honest = np.array([1.0, 0.0, 0.0, 0.0, 0.0])
    p = np.vstack([honest] * 4 + [[0.0, 1.0, 0.0, 0.0, 0.0]])
    masks = removals(5, 1)
    found = bounds(subset_c2(p, masks), masks)
    assert 4 not in found.without_lo
    assert found.lo == pytest.approx(0.594, abs=1e-3)
    assert found.without_hi == (4,)
    approximate = subset_c2(p, minimax.without_most_anomalous(np.array([0, 0, 0, 0, 9.0]), 1)[None])[0]
    assert approximate == pytest.approx(1.0)
    assert approximate / found.lo == pytest.approx(1.68, abs=0.01)


def test_sixteen_vantages_three_liars():
    masks = removals(16, 3)
    assert len(masks) == 1 + 16 + 120 + 560
    assert masks[0].all()
    assert (masks.sum(axis=1) >= 13).all()
    assert len({row.tobytes() for row in masks}) == len(masks)


def test_too_many_removals_are_refused_at_once_and_say_what_to_do():
    with pytest.raises(TooManyRemovals, match=r"removing up to 40 of 100 vantages has \d+ cases.*greedy bounds"):
        removals(100, 40)


@pytest.mark.parametrize("f", [-1, 2, 3])
def test_f_is_below_half(f: int):
    with pytest.raises(ValueError, match="below half of the 4 vantages"):
        removals(4, f)
    with pytest.raises(ValueError, match="below half of the 4 vantages"):
        greedy_bounds(4, f, lambda masks: np.zeros(len(masks)))


def test_cells_leave_as_a_whole():
    cells = ["north", "south", "north", "west", "west", "east", "far"]
    assert minimax.tolerated_cells(5) == 2
    masks = removals(7, 2, cells)
    assert len(masks) == 1 + 5 + 10
    for row in masks:
        for cell in set(cells):
            assert len({bool(row[v]) for v in range(7) if cells[v] == cell}) == 1
    with pytest.raises(ValueError, match="below half of the 5 cells"):
        removals(7, 3, cells)
    with pytest.raises(ValueError, match="7 vantages have 2 cells"):
        removals(7, 0, ["a", "b"])


@pytest.mark.parametrize(("k", "f"), [(1, 0), (2, 0), (3, 1), (8, 3), (9, 4)])
def test_tolerated_cells(k: int, f: int):
    """8 regions tolerate 3, as the companion's simulation of 8 regions has it."""
    assert minimax.tolerated_cells(k) == f
    assert len(removals(k, f, [str(i) for i in range(k)], limit=10**6))


def test_axes_of_subsets_against_the_agents_own():
    rng = np.random.default_rng(3)
    checked, violated = rng.integers(1, 9, 6) * 1.0, rng.integers(0, 2, 6) * 1.0
    masks = removals(6, 2)
    by_hand = [c1(float(checked[m].sum()), float(violated[m].sum()), None, 0) for m in masks]
    assert subset_c1(checked, violated, masks) == pytest.approx(by_hand)
    assert subset_c1(np.zeros(6), np.zeros(6), masks) == pytest.approx(np.ones(len(masks)))
    similarity = rng.random((6, 6))
    similarity = (similarity + similarity.T) / 2
    np.fill_diagonal(similarity, 1.0)
    pairs = [np.mean([similarity[v, w] for v, w in itertools.combinations(np.flatnonzero(m), 2)]) for m in masks]
    assert subset_c3(similarity, masks) == pytest.approx(pairs)


def test_below_two_vantages_there_is_no_agreement():
    masks = np.array([[True, True, True], [True, False, False]])
    assert math.isnan(subset_c2(np.eye(3), masks)[1])
    assert math.isnan(subset_c3(np.eye(3), masks)[1])
    with pytest.raises(ValueError, match="enough vantages"):
        bounds(np.array([math.nan]), masks[1:])


def calibrated(rng: np.random.Generator, number: int, f: int, ticks: int = 400):
    law = np.array([0.9, 0.06, 0.04])
    masks = removals(number, f)
    window = rng.multinomial(300, law, (ticks, number)) / 300
    x = subset_c2(window, masks)[..., None]
    return law, masks, minimax.fit_baselines(x, np.array([1e-10]))


def test_every_subset_has_its_own_baseline():
    """New BAU ticks: D^2 has mean 1 on one axis for each removal, also for the small ones."""
    rng = np.random.default_rng(4)
    law, masks, baselines = calibrated(rng, 7, 3)
    fresh = rng.multinomial(300, law, (4000, 7)) / 300
    d2 = baselines.d2(subset_c2(fresh, masks)[..., None])
    assert d2.mean(axis=0) == pytest.approx(np.ones(len(masks)), abs=0.35)


def test_distances_equal_those_of_a_loop():
    rng = np.random.default_rng(5)
    x = rng.normal(size=(50, 4, 3))
    floor = np.full(3, 1e-9)
    baselines = minimax.fit_baselines(x, floor)
    fresh = rng.normal(size=(4, 3))
    for k in range(4):
        away = fresh[k] - x[:, k].mean(axis=0)
        expected = away @ np.linalg.solve(np.cov(x[:, k], rowvar=False) + np.diag(floor), away)
        assert baselines.d2(fresh)[k] == pytest.approx(expected)
    with pytest.raises(ValueError, match="more than 4 ticks"):
        minimax.fit_baselines(x[:4], floor)


def test_one_liar_accounts_for_the_divergence_and_a_common_shift_does_not():
    rng = np.random.default_rng(6)
    law, masks, baselines = calibrated(rng, 7, 2)
    p = rng.multinomial(300, law, 7) / 300
    p[3] = [0.0, 0.0, 1.0]
    one = minimax.divergence(baselines.d2(subset_c2(p, masks)[..., None]), masks)
    assert 3 in one.suspects
    assert one.share > 0.9
    assert one.minimax < 6.0 < 100.0 < one.largest
    assert one.phi_byz > 0.3
    half = p.copy()
    half[:4] = [0.0, 0.0, 1.0]
    many = minimax.divergence(baselines.d2(subset_c2(half, masks)[..., None]), masks)
    assert many.share < 0.9
    assert many.minimax > 11.34  # no two vantages explain it
    assert many.phi_byz < 0.163
    assert many.delta == pytest.approx(many.d2 - many.minimax)


def test_a_fleet_that_sits_on_its_baseline_has_nothing_to_share():
    still = minimax.divergence(np.zeros(3), removals(3, 1)[:3])
    assert (still.share, still.delta, still.suspects) == (0.0, 0.0, ())
