# SPDX-License-Identifier: Apache-2.0
"""A probe that loses or invents events is seen; one that is merely read a moment later is not."""

from __future__ import annotations

import numpy as np
import pytest

from mvps.vantages.witness import SHARE, WINDOW_TICKS, CountWitness

SKEW = 24


def test_events_between_the_two_readings_are_no_lie() -> None:
    rng = np.random.default_rng(1)
    count = CountWitness(SKEW)
    late = 0
    for _ in range(500):
        events, late_before = int(rng.poisson(50)), late
        late = int(rng.integers(0, 12))  # seen by the witness in this tick, by the probe in the next
        assert count.check(events + late_before, events + late)[1] == 0.0


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.7, 1.5, 2.0])
def test_a_lost_or_invented_share_is_seen_within_a_window(kept: float) -> None:
    count = CountWitness(SKEW)
    for _ in range(20):
        assert count.check(50, 50) == (1.0, 0.0)
    verdicts = [count.check(50 * kept, 50)[1] for _ in range(WINDOW_TICKS)]
    assert verdicts[-1] == 1.0


def test_the_verdict_ends_a_window_after_the_lie() -> None:
    count = CountWitness(SKEW)
    for _ in range(WINDOW_TICKS):
        count.check(0, 100)
    assert [count.check(100, 100)[1] for _ in range(WINDOW_TICKS)] == [1.0, 1.0, 1.0, 0.0]


def test_nothing_is_checked_while_there_is_too_little_to_tell() -> None:
    count = CountWitness(SKEW)
    assert [count.check(0, 12) for _ in range(WINDOW_TICKS)] == [(0.0, 0.0)] * WINDOW_TICKS
    assert count.check(0, 13) == (1.0, 1.0)


def test_at_high_rates_the_share_covers_the_skew() -> None:
    count = CountWitness(SKEW)
    assert count.check(100_000, 100_000 * (1 - SHARE / 2)) == (1.0, 0.0)
    assert count.check(100_000, 100_000 * (1 - 3 * SHARE)) == (1.0, 1.0)
