# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mvps.ai.budget import Budget


def test_what_is_taken_comes_back_with_time() -> None:
    budget = Budget(3600, 10, now=0.0)
    assert budget.take(10, 0.0)
    assert not budget.take(1, 0.5)
    assert budget.take(1, 1.0)
    assert not budget.take(11, 1e6)  # never more than the burst
    assert budget.take(10, 1e6)


@given(
    st.integers(1, 10_000),
    st.lists(st.tuples(st.integers(1, 30), st.floats(-5, 60)), max_size=60),
)
def test_never_more_than_burst_and_rate_allow(per_hour: int, wishes: list[tuple[int, float]]) -> None:
    budget = Budget(per_hour, 20, now=0.0)
    now = latest = 0.0
    taken = 0
    for requests, step in wishes:
        now += step
        latest = max(latest, now)
        taken += requests if budget.take(requests, now) else 0
        assert taken <= 20 + latest * per_hour / 3600 + 1e-6
