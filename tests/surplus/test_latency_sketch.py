# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvps.surplus.latency_sketch import LEAST_MS, RELATIVE_ERROR, LatencySketch


def sketch(times: list[float]) -> LatencySketch:
    made = LatencySketch()
    for ms in times:
        made.add(ms)
    return made


@given(st.lists(st.floats(LEAST_MS, 1e15), min_size=1, max_size=300), st.floats(0.001, 1.0))
def test_a_quantile_is_off_by_at_most_its_relative_error(times: list[float], share: float) -> None:
    # The ceil(q n)-th smallest, as numpy has it by the inverted distribution function.
    rank = math.ceil(share * len(times))
    exact = sorted(times)[rank - 1]
    assert sketch(times).quantile(share) == pytest.approx(exact, rel=RELATIVE_ERROR * (1.0 + 1e-6))


def test_the_rank_is_numpys_inverted_distribution_function() -> None:
    times = np.random.default_rng(1).lognormal(2.0, 1.0, 5000)
    wanted = float(np.quantile(times, 0.95, method="inverted_cdf"))
    assert sketch(times.tolist()).quantile(0.95) == pytest.approx(wanted, rel=RELATIVE_ERROR)


@given(st.lists(st.floats(0.0, 1e15), max_size=100), st.randoms())
def test_the_order_of_times_does_not_matter(times: list[float], chance: object) -> None:
    again = sorted(times, key=hash)
    one, other = sketch(times).quantile(0.95), sketch(again).quantile(0.95)
    assert one == other or (math.isnan(one) and not times)


def test_what_takes_no_time_is_nothing_and_of_none_nothing_is_known() -> None:
    assert sketch([0.0, LEAST_MS / 2, 5.0]).quantile(0.5) == 0.0
    assert sketch([0.0, LEAST_MS / 2, 5.0]).quantile(1.0) == pytest.approx(5.0, rel=RELATIVE_ERROR)
    assert math.isnan(sketch([]).quantile(0.95))


def test_its_buckets_are_as_few_as_it_says() -> None:
    # Every bucket from the least to the largest time: eight steps to each.
    many = np.exp(np.arange(math.log(LEAST_MS), math.log(1e15), math.log1p(RELATIVE_ERROR) / 4.0))
    made = sketch([*many.tolist(), 1e15])
    assert made.count == len(many) + 1
    assert 2000 < len(made._buckets) <= 2074
