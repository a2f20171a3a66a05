# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections import Counter, defaultdict
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvps.surplus.lookahead import UNKNOWN, Bigram, Triggers, discounted, paths


@given(st.lists(st.integers(0, 6), max_size=60))
def test_the_bigram_is_the_most_frequent_successor(history: list[int]) -> None:
    counts: dict[int, Counter[int]] = defaultdict(Counter)
    for first, second in pairwise(history):
        counts[first][second] += 1
    model = Bigram(np.array(history, dtype=np.int64), 7)
    for token in range(7):
        best = max(counts[token].items(), key=lambda one: (one[1], -one[0]), default=(UNKNOWN, 0))[0]
        assert model.successor(np.array([[token]]))[0, 0] == best
    assert model.successor(np.array([UNKNOWN]))[0] == UNKNOWN


def test_paths_follow_the_surrogate_until_it_does_not_know() -> None:
    model = Bigram(np.array([1, 2, 3, 1, 2, 3, 4]), 6)
    np.testing.assert_array_equal(paths(model, np.array([[1, 4]]), 4), [[[1, 2, 3, 1], [4, -1, -1, -1]]])
    np.testing.assert_array_equal(paths(model, np.array([[1, 4]]), 1), [[[1], [4]]])


def test_the_discounted_mean_counts_the_candidate_and_only_steps_that_are() -> None:
    steps = np.array([[[2.0, 4.0, np.nan], [5.0, np.nan, np.nan]]])
    alive = np.array([[[True, True, False], [True, False, False]]])
    np.testing.assert_allclose(discounted(steps, alive, 0.5), [[(2.0 + 0.5 * 4.0) / 1.5, 5.0]])


@pytest.mark.parametrize(
    ("ssi", "crp", "sse", "spike", "boundary", "fires"),
    [
        (0.1, 0.1, 0.9, False, False, False),
        (0.8, 0.1, 0.9, False, False, True),
        (0.1, 0.9, 0.9, False, False, True),
        (0.1, 0.1, 0.4, False, False, True),
        (0.1, 0.1, 0.9, True, False, True),
        (0.1, 0.1, 0.9, False, True, True),
    ],
)
def test_each_trigger_fires(ssi: float, crp: float, sse: float, spike: bool, boundary: bool, fires: bool) -> None:
    given = [np.array([x]) for x in (ssi, crp, sse, spike, boundary)]
    assert Triggers().fire(*given)[0] == fires
    quiet = Triggers(at_boundary=False, on_spike=False).fire(*given)[0]
    assert quiet == (fires and not (spike or boundary))
