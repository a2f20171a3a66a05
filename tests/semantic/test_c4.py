# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom

from mvps.semantic.c4 import Delta, Ema, Stability, c4, c4_net, delta

AT = Delta(1.0, 0.95, 100)


def test_the_sources_worked_example():
    """001 sec. 9: four replicas, five rephrasings, three of which bring out another answer."""
    distances = np.tile([0.2, 0.3, 4.0, 5.0, 4.5], (4, 1))
    assert c4(distances, AT) == Stability(0.4, 20, 0)


def test_answers_that_did_not_come_count_neither_way():
    distances = np.array([[0.5, math.nan, 2.0], [0.5, 0.5, math.nan]])
    assert c4(distances, AT) == Stability(0.75, 4, 2)
    assert c4(np.full((2, 3), math.nan), AT) is None
    assert c4(np.zeros((2, 0)), AT) is None


def test_equal_answers_agree_even_if_nothing_else_does():
    """Deterministic replicas have delta_4 = 0; with the source's < they would never agree."""
    zero = delta(np.zeros(19))
    assert zero.value == 0.0
    found = c4(np.array([[0.0, 1e-3]]), zero)
    assert found is not None
    assert found.value == 0.5


@pytest.mark.parametrize(("level", "count", "rank"), [(0.95, 19, 19), (0.9, 9, 9), (0.5, 3, 2), (0.95, 100, 96)])
def test_delta_is_a_conformal_quantile(level: float, count: int, rank: int):
    distances = np.random.default_rng(count).permutation(np.arange(1.0, count + 1.0))
    assert delta(distances, level) == Delta(float(rank), level, count)


def test_new_answers_of_the_same_meaning_agree_as_often_as_promised():
    """2000 calibrations on 39 distances; at least .95, and at most 1/40 more; the bounds fail once in 10,000."""
    rng = np.random.default_rng(3)
    agreed = sum(rng.gamma(2.0) <= delta(rng.gamma(2.0, size=39)).value for _ in range(2000))
    assert binom.ppf(5e-5, 2000, 0.95) <= agreed <= binom.ppf(1 - 5e-5, 2000, 0.975)


@pytest.mark.parametrize(
    ("distances", "level", "message"),
    [
        (np.ones(18), 0.95, "at least 19 same-meaning distances, got 18"),
        (np.ones(0), 0.5, "at least 1"),
        (np.ones(30), 1.0, "between 0 and 1"),
        (np.full(30, math.nan), 0.9, "leave missing answers out"),
        (-np.ones(30), 0.9, "not negative"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(distances: np.ndarray, level: float, message: str):
    with pytest.raises(ValueError, match=message):
        delta(distances, level)


@pytest.mark.parametrize(
    ("rephrased", "repeated", "net"),
    [(0.4, 1.0, 0.4), (0.4, 0.5, 0.9), (0.5, 0.5, 1.0), (0.9, 0.5, 1.0), (0.0, 1.0, 0.0)],
)
def test_net_of_what_sampling_does(rephrased: float, repeated: float, net: float):
    assert c4_net(Stability(rephrased, 20, 0), Stability(repeated, 20, 0)) == pytest.approx(net)


def test_the_average_over_ten_ticks():
    """Weight 2/11: a step of height 1 is followed to 1 - (9/11)^k."""
    ema = Ema()
    assert ema.step(None) == Ema()
    ema = ema.step(0.0)
    assert ema.value == 0.0
    for k in range(1, 20):
        ema = ema.step(1.0)
        assert ema.value == pytest.approx(1.0 - (9 / 11) ** k)
    assert ema.step(None) == ema
    assert Ema().step(0.3).value == 0.3
