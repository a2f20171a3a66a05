# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import lfilter

from mvps.coherence.tail import Tail, autocorrelation_time, block_length, blocked_scores, contaminated


def ar1(rng: np.random.Generator, rho: float, shape: tuple[int, ...]) -> np.ndarray:
    e = rng.standard_normal((shape[0] + 100, *shape[1:])) * math.sqrt(1.0 - rho * rho)
    x: np.ndarray = lfilter([1.0], [1.0, -rho], e, axis=0)[100:]
    return x


@pytest.mark.parametrize("rho", [0.0, 0.55, 0.9])
def test_autocorrelation_time_of_ar1(rho: float) -> None:
    """(1 + rho)/(1 - rho), to 25 %, on 20,000 ticks."""
    x = ar1(np.random.default_rng(3), rho, (20_000,))
    assert autocorrelation_time(x) == pytest.approx((1 + rho) / (1 - rho), rel=0.25)


def test_constant_and_absent_series_count_as_independent() -> None:
    assert autocorrelation_time(np.ones(100)) == 1.0
    assert autocorrelation_time(np.full(100, np.nan)) == 1.0


def test_blocks_never_train_on_themselves_or_their_neighbours() -> None:
    seen = []

    def score(train: np.ndarray, test: np.ndarray) -> np.ndarray:
        assert np.abs(train[:, None] - test[None, :]).min() > 7
        seen.extend(test.tolist())
        return test.astype(float)

    scores = blocked_scores(300, 7, score)
    assert seen == list(range(300))
    assert np.array_equal(scores, np.arange(300.0))
    assert block_length(1e9, 300) == 60


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["gauss", "ties", "heavy"]))
def test_survival_falls_and_inverts(seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    draw = {
        "gauss": rng.standard_normal(200) ** 2,
        "ties": np.round(rng.exponential(size=200)),
        "heavy": rng.pareto(2.0, 200),
    }[kind]
    tail = Tail.fit(draw, 0.1)
    grid = np.sort(np.concatenate((draw, np.linspace(-1.0, 50.0, 300))))
    survival = [tail.log_survival(float(x)) for x in grid]
    assert all(a >= b - 1e-12 for a, b in pairwise(survival))
    for p in (0.3, 0.05, 0.01, 0.001, 1e-6):
        cut = tail.score_at(math.log(p))
        assert tail.log_survival(cut) <= math.log(p) + 1e-9
        # Anything clearly below the cut-off is more likely than p.
        assert tail.log_survival(cut - 1e-6 * (1.0 + abs(cut))) > math.log(p) - 1e-4


def test_exponential_tail_is_extrapolated() -> None:
    """300 exponential scores, .999 quantile 6.9: over 200 windows the median cut-off errs high, by < 60 %."""
    rng = np.random.default_rng(11)
    cuts = [Tail.fit(rng.exponential(size=300), 0.01).score_at(math.log(0.001)) for _ in range(200)]
    truth = -math.log(0.001)
    assert truth < np.median(cuts) < 1.6 * truth


def test_constant_scores_fall_back_to_the_least_scale() -> None:
    tail = Tail.fit(np.zeros(100), 2.0)
    assert tail.log_survival(0.0) == 0.0
    assert tail.score_at(math.log(0.01)) > 0.0


def test_a_lone_outlier_stays_and_an_episode_goes() -> None:
    rng = np.random.default_rng(2)
    values = rng.chisquare(3, 300)
    assert not contaminated(values).any()
    values[100:130] = 500.0
    assert np.array_equal(np.flatnonzero(contaminated(values)), np.arange(100, 130))
    values[100:130] = 50.0  # beyond the fence, but not three times as far: the run gives it away
    assert np.array_equal(np.flatnonzero(contaminated(values)), np.arange(100, 130))
    lone = rng.chisquare(3, 300)
    lone[50] = 40.0
    assert not contaminated(lone).any()
    lone[50] = 4000.0
    assert np.array_equal(np.flatnonzero(contaminated(lone)), [50])
    assert not contaminated(np.zeros(300)).any()


def test_too_few_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 20 scores"):
        Tail.fit(np.arange(5.0), 1.0)
    with pytest.raises(ValueError, match="rising knots"):
        Tail((1.0, 0.5), (0.0, -1.0), -2.0, 1.0, 0.1, 20, 20.0)


def test_rounding_noise_around_a_constant_is_no_evidence() -> None:
    noise = np.random.default_rng(5).normal(0.0, 1e-16, 300)
    tail = Tail.fit(noise, 0.1)
    assert tail.log_survival(3e-16) == 0.0
    assert tail.log_survival(0.5) < math.log(0.05)
