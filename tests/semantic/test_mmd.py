# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from scipy.stats import binom

from mvps.semantic.mmd import between_blocks, kernel_matrix, mmd2, permutation_test
from mvps.semantic.sliced import directions, pairwise, project

SEEDS = st.integers(0, 2**32 - 1)


def marked(first: int, others: int) -> np.ndarray:
    return np.arange(first + others) < first


def by_loops(kernel: np.ndarray, first: np.ndarray) -> float:
    x, y = np.flatnonzero(first), np.flatnonzero(~first)
    return float(
        np.mean([kernel[i, j] for i in x for j in x if i != j])
        + np.mean([kernel[i, j] for i in y for j in y if i != j])
        - 2.0 * np.mean([kernel[i, j] for i in x for j in y])
    )


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(2, 8), st.integers(2, 8), st.sampled_from(["rbf", "energy"]))
def test_it_is_its_definition(seed: int, n: int, m: int, kind: str):
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(n + m, 3))
    kernel = kernel_matrix(points, kind)
    first = rng.permutation(marked(n, m))
    apart = cdist(points, points)
    if kind == "energy":
        assert kernel == pytest.approx(-apart, abs=1e-6)
    else:
        exact = np.median(apart[np.triu_indices(n + m, 1)] ** 2)
        assert kernel == pytest.approx(np.exp(-(apart**2) / (2.0 * exact)), rel=1e-6)
    assert mmd2(kernel, first) == pytest.approx(by_loops(kernel, first), abs=1e-12)
    assert permutation_test(kernel, first, 50).statistic == pytest.approx(by_loops(kernel, first), abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.lists(st.integers(1, 5), min_size=1, max_size=5))
def test_blocks_are_means(seed: int, sizes: list[int]):
    kernel = kernel_matrix(np.random.default_rng(seed).normal(size=(sum(sizes), 2)))
    found = between_blocks(kernel, sizes)
    ends = np.cumsum(sizes)
    for i, end in enumerate(ends):
        for j, other in enumerate(ends):
            block = kernel[end - sizes[i] : end, other - sizes[j] : other]
            assert found[i, j] == pytest.approx(block.mean())


@pytest.mark.parametrize("kind", ["rbf", "energy"])
def test_a_small_case_is_enumerated(kind: str):
    """Two groups of four that do not overlap: of 70 divisions only it and its mirror image are as far apart."""
    points = np.array([0.0, 0.1, 0.2, 0.3, 9.0, 9.1, 9.2, 9.3])[:, None]
    found = permutation_test(kernel_matrix(points, kind), marked(4, 4))
    assert found.exact
    assert found.permutations == 70
    assert found.p_value == pytest.approx(2 / 70)


def test_identical_points_are_no_evidence():
    found = permutation_test(kernel_matrix(np.ones((12, 3))), marked(6, 6), 100)
    assert found.statistic == pytest.approx(0.0, abs=1e-12)
    assert found.p_value == 1.0


def answers(rng: np.random.Generator, number: int, tokens: int = 8, spread: float = 1.0) -> np.ndarray:
    """Tokens of several answers: each answer has a mean of its own, as answers have."""
    return np.repeat(spread * rng.normal(size=(number, 5)), tokens, axis=0) + rng.normal(size=(number * tokens, 5))


def test_its_size_is_nominal_when_answers_are_permuted_and_not_when_tokens_are():
    """300 healthy pairs of replicas at 5 %; the interval leaves out a right test once in 10,000."""
    rng = np.random.default_rng(11)
    rejected = {"answers": 0, "tokens": 0, "sliced": 0}
    along = directions(5, 10)
    for turn in range(300):
        tokens = answers(rng, 12)
        kernel = kernel_matrix(tokens)
        clouds = np.split(tokens, 12)
        by_distance = -pairwise([project(cloud, along) for cloud in clouds])
        whole = permutation_test(between_blocks(kernel, [8] * 12), marked(6, 6), 99, turn)
        rejected["answers"] += whole.p_value <= 0.05
        rejected["tokens"] += permutation_test(kernel, marked(48, 48), 99, turn).p_value <= 0.05
        rejected["sliced"] += permutation_test(by_distance, marked(6, 6), 99, turn).p_value <= 0.05
    low, high = binom.ppf(5e-5, 300, 0.05), binom.ppf(1 - 5e-5, 300, 0.05)
    assert low <= rejected["answers"] <= high
    assert low <= rejected["sliced"] <= high
    assert rejected["tokens"] > 150


def test_the_statistic_is_unbiased_under_the_null():
    rng = np.random.default_rng(12)
    values = np.array([mmd2(kernel_matrix(rng.normal(size=(20, 3))), marked(8, 12)) for _ in range(600)])
    assert abs(values.mean()) < 4.0 * values.std() / math.sqrt(600)
    assert (values < 0.0).mean() > 0.3


@pytest.mark.parametrize("kind", ["rbf", "energy"])
def test_a_shifted_replica_is_found(kind: str):
    rng = np.random.default_rng(13)
    tokens = np.vstack((answers(rng, 10), answers(rng, 10) + 1.5))
    kernel = between_blocks(kernel_matrix(tokens, kind), [8] * 20)
    assert permutation_test(kernel, marked(10, 10), 499).p_value <= 0.01


def test_what_cannot_be_tested_is_refused():
    kernel = np.eye(5)
    with pytest.raises(ValueError, match="at least two points"):
        mmd2(kernel, marked(1, 4))
    with pytest.raises(ValueError, match="at least two points"):
        permutation_test(kernel, marked(4, 1))
    with pytest.raises(ValueError, match="does not belong to 4 points"):
        mmd2(kernel, marked(2, 2))
    with pytest.raises(ValueError, match="leave missing answers out"):
        mmd2(np.full((4, 4), math.nan), marked(2, 2))
    with pytest.raises(ValueError, match="unknown kernel"):
        kernel_matrix(np.zeros((3, 1)), "laplace")
    with pytest.raises(ValueError, match="compare fewer tokens"):
        kernel_matrix(np.zeros((5000, 1)))
    with pytest.raises(ValueError, match="are not the 5 points"):
        between_blocks(kernel, [2, 2])
    with pytest.raises(ValueError, match="too many"):
        permutation_test(np.eye(100), marked(50, 50), 10**6)
