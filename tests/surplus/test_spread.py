# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.cluster.vq import kmeans2, whiten
from scipy.spatial import KDTree
from scipy.stats import entropy

from mvps.surplus.spread import (
    RESEED_DRIFT,
    assign,
    consensus,
    drift,
    ensemble,
    kmeans,
    knn_spread,
    spread_entropy,
)


def clouds(count: int, centres: int, seed: int = 1, width: float = 0.1) -> np.ndarray:
    chance = np.random.default_rng(seed)
    middles = np.random.default_rng(99).normal(size=(centres, 8)) * 3
    return middles[chance.integers(centres, size=count)] + width * chance.normal(size=(count, 8))


def test_spread_at_its_ends_and_against_scipy() -> None:
    assert spread_entropy(np.array([5.0, 0, 0, 0])) == 0.0
    assert spread_entropy(np.full(4, 1e6)) == pytest.approx(1.0, abs=1e-6)
    assert math.isnan(spread_entropy(np.zeros(4)))
    many = np.array([5e6, 3e6, 2e6, 0.0])
    assert spread_entropy(many) == pytest.approx(entropy(many) / math.log(4), abs=1e-6)
    with pytest.raises(ValueError, match="at least 2"):
        spread_entropy(np.array([3.0]))


def test_the_correction_takes_the_bias_of_few_windows_away() -> None:
    chance = np.random.default_rng(2)
    p = chance.dirichlet(np.ones(16))
    true = entropy(p) / math.log(16)
    samples = chance.multinomial(60, p, size=4000)
    plain = np.mean([entropy(one) / math.log(16) for one in samples])
    corrected = np.mean([spread_entropy(one.astype(float)) for one in samples])
    assert abs(corrected - true) < 0.25 * abs(plain - true)


def test_kmeans_finds_clear_clouds_and_never_loses_to_scipy_by_much() -> None:
    x = clouds(400, 5)
    found = min((kmeans(x, 5, seed) for seed in range(5)), key=lambda one: one.inertia)
    centroids, labels = kmeans2(x, 5, minit="++", seed=1)
    assert found.inertia <= 1.01 * np.square(x - centroids[labels]).sum()
    np.testing.assert_array_equal(assign(x, found.centroids), found.labels)
    again = kmeans(x, 5, 3)
    np.testing.assert_array_equal(again.labels, kmeans(x, 5, 3).labels)
    assert whiten(x).shape == x.shape


def test_kmeans_where_windows_coincide_or_are_few() -> None:
    same = np.ones((10, 3))
    assert kmeans(same, 4, 1).inertia == 0.0
    assert sorted(kmeans(clouds(6, 3), 6, 1).labels.tolist()) == list(range(6))
    with pytest.raises(ValueError, match="choose 1 to 3"):
        kmeans(np.ones((3, 2)), 4, 1)


def test_consensus_falls_when_activity_narrows() -> None:
    reference = clouds(600, 20)
    centroids = ensemble(reference, (8, 16), 3)
    assert len(centroids) == 6
    wide, narrow = consensus(clouds(200, 20, seed=7), centroids), consensus(clouds(200, 1, seed=7), centroids)
    assert wide.sse > 0.8
    assert narrow.sse < 0.3
    assert wide.disagreement < 0.1
    assert math.isnan(consensus(np.zeros((0, 8)), centroids).sse)
    with pytest.raises(ValueError, match="too few"):
        ensemble(reference[:5], (8,))


def test_knn_spread_is_that_of_a_tree_and_shifts_by_the_log_of_a_scale() -> None:
    x = np.random.default_rng(3).normal(size=(200, 4))
    distance = KDTree(x).query(x, k=6)[0][:, 5]
    assert knn_spread(x, 5) == pytest.approx(float(np.log(distance).mean()), abs=1e-6)
    assert knn_spread(10.0 * x, 5) - knn_spread(x, 5) == pytest.approx(math.log(10.0))
    assert math.isnan(knn_spread(x[:5], 5))
    assert knn_spread(np.ones((30, 4)), 5) == -math.inf


def test_drift_of_centroids() -> None:
    old = ensemble(clouds(300, 10), (8,), 1)[0]
    assert drift(old, old[::-1]) == pytest.approx(0.0, abs=1e-12)
    assert drift(old, -old) > RESEED_DRIFT
    assert drift(old, old + 1e-3) < RESEED_DRIFT
