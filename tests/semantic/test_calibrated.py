# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest

from mvps.semantic.calibrated import Anchors, anchors, c2_w2, c2_w2_seed, w2_max
from mvps.semantic.transport import pairwise

SCALE = Anchors(1.0, 3.0, 1.0)


def group(number: int, apart: float) -> np.ndarray:
    return apart * (1.0 - np.eye(number))


@pytest.mark.parametrize(
    ("apart", "value", "excess", "cut"),
    [(1.0, 1.0, 0.0, 0), (2.0, 0.5, 0.5, 0), (3.0, 0.0, 1.0, 6), (9.0, 0.0, 1.0, 6), (0.5, 1.0, -0.25, 0)],
)
def test_the_scale_runs_from_same_to_unrelated(apart: float, value: float, excess: float, cut: int):
    found = c2_w2(group(4, apart), SCALE)
    assert found is not None
    assert (found.value, found.excess) == pytest.approx((value, excess))
    assert (found.unrelated_pairs, found.pairs) == (cut, 6)


def test_one_garbled_replica_counts_for_its_pairs_and_no_more():
    distances = group(4, 1.0)
    distances[0, 1:] = distances[1:, 0] = 1e6
    found = c2_w2(distances, SCALE)
    assert found is not None
    assert found.value == pytest.approx(0.5)  # 3 of 6 pairs
    assert found.unrelated_pairs == 3


def test_noise_about_same_averages_out():
    """Cut pair by pair, healthy groups would sit below 1 by half of their noise."""
    rng = np.random.default_rng(1)
    values = []
    for _ in range(200):
        distances = np.triu(rng.normal(1.0, 0.3, (8, 8)).clip(0.0), 1)
        found = c2_w2(distances + distances.T, SCALE)
        assert found is not None
        values.append(found.excess)
    assert np.mean(values) == pytest.approx(0.0, abs=0.01)


def test_absent_replicas_are_left_out():
    distances = group(4, 2.0)
    distances[2, :] = distances[:, 2] = math.nan
    found = c2_w2(distances, SCALE)
    assert found is not None
    assert found.pairs == 3
    assert found.value == pytest.approx(0.5)
    distances[:2, :] = distances[:, :2] = math.nan
    assert c2_w2(distances, SCALE) is None
    assert c2_w2(np.zeros((1, 1)), SCALE) is None
    assert c2_w2_seed(distances, 1.0) is None


def test_anchors_are_medians_and_say_how_far_they_overlap():
    same, unrelated = np.arange(11.0), np.arange(20.0, 31.0)
    assert anchors(same, unrelated) == Anchors(5.0, 25.0, 1.0)
    assert anchors(np.zeros(10), np.ones(10)) == Anchors(0.0, 1.0, 1.0)  # deterministic replicas
    mixed = anchors(np.arange(10.0), np.arange(10.0) + 1.0)
    above = [u > s for u in np.arange(10.0) + 1.0 for s in np.arange(10.0)]
    ties = [u == s for u in np.arange(10.0) + 1.0 for s in np.arange(10.0)]
    assert mixed.separation == pytest.approx(np.mean(above) + 0.5 * np.mean(ties))


@pytest.mark.parametrize(
    ("same", "unrelated", "message"),
    [
        (np.ones(10), np.ones(10), "no farther apart"),
        (np.full(10, 2.0), np.ones(10), "no farther apart"),
        (np.zeros(10), np.zeros(10), "no farther apart"),
        (np.zeros(9), np.ones(10), "9 same-replica distances are too few"),
        (np.zeros(10), np.ones(3), "3 unrelated distances are too few"),
        (np.full(10, math.nan), np.ones(10), "leave missing answers out"),
        (np.zeros(10), -np.ones(10), "not negative"),
    ],
)
def test_anchors_that_span_nothing_are_refused(same: np.ndarray, unrelated: np.ndarray, message: str):
    with pytest.raises(ValueError, match=message):
        anchors(same, unrelated)


def test_the_sources_form_puts_bau_at_the_wrong_end():
    """001 sec. 4.3: with W2_max = p99 of BAU, healthy replicas are near C = 0; between two anchors they are near 1."""
    rng = np.random.default_rng(2)

    def prompt() -> np.ndarray:
        return rng.normal(size=128)

    def answer(mean: np.ndarray) -> np.ndarray:
        return mean + rng.normal(size=(32, 128))

    history = [pairwise([answer(mean) for _ in range(4)]) for mean in (prompt() for _ in range(20))]
    pairs = np.concatenate([h[np.triu_indices(4, 1)] for h in history])
    others = pairwise([answer(prompt()) for _ in range(6)])
    scale = anchors(pairs, others[np.triu_indices(6, 1)])
    largest = w2_max(pairs)
    ours, seeds = [], []
    for _ in range(10):
        mean = prompt()
        distances = pairwise([answer(mean) for _ in range(4)])
        found, plain = c2_w2(distances, scale), c2_w2_seed(distances, largest)
        assert found is not None
        assert plain is not None
        ours.append(found.value)
        seeds.append(plain)
    assert np.mean(seeds) < 0.05
    assert np.mean(ours) > 0.95
    assert c2_w2_seed(group(4, 2.0 * largest), largest) == pytest.approx(-1.0)


def test_the_sources_form_is_undefined_for_deterministic_replicas():
    assert w2_max(np.zeros(100)) == 0.0
    with pytest.raises(ValueError, match="0/0"):
        c2_w2_seed(group(4, 0.0), 0.0)
    with pytest.raises(ValueError, match="seen in BAU"):
        w2_max(np.zeros(0))


@pytest.mark.parametrize("distances", [np.zeros((2, 3)), group(3, -1.0), np.full((3, 3), math.inf)])
def test_bad_distances_are_refused(distances: np.ndarray):
    with pytest.raises(ValueError, match="distances"):
        c2_w2(distances, SCALE)
