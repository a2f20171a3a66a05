# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from scipy.signal import lfilter

from mvps.coupling.event_response import event_response, placebo_shifts
from mvps.coupling.independence import independence_test


def ar(rng: np.random.Generator, n: int, phi: float = 0.6) -> np.ndarray:
    return lfilter([1.0], [1.0, -phi], rng.standard_normal(n + 100))[100:] * np.sqrt(1.0 - phi * phi)


def trains(rng: np.random.Generator, n: int, count: int) -> np.ndarray:
    return np.sort(rng.choice(np.arange(30, n - 30), count, replace=False))


def test_the_effect_is_the_mean_of_the_differences() -> None:
    rng = np.random.default_rng(0)
    y, at = rng.standard_normal(500), np.array([50, 120, 121, 300, 444])
    found = event_response(y, at, 7, 11)
    by_hand = np.mean([y[t : t + 11].mean() - y[t - 7 : t].mean() for t in at])
    assert found.effect == pytest.approx(by_hand)
    course = np.mean([y[t - 7 : t + 11] - y[t - 7 : t].mean() for t in at], axis=0)
    assert found.curve == pytest.approx(course)
    assert found.lags.tolist() == list(range(-7, 11))


def test_placebos_are_shifts_that_keep_off_the_real_events() -> None:
    at = np.array([40, 90, 200])
    train = np.zeros(300)
    train[at] = 1.0
    found = set(placebo_shifts(train, 10).tolist())
    for shift in range(300):
        away = [min((a + shift - b) % 300, (b - a - shift) % 300) for a in at for b in at]
        meeting = sum(min(away[3 * k : 3 * k + 3]) < 10 for k in range(3))
        assert (shift in found) == (meeting <= 1), shift


@pytest.mark.parametrize("side", ["fall", "both"])
def test_size_on_a_series_that_remembers(side: str) -> None:
    """300 trains of 20 events on AR(.6) series that they do not touch, at 5 %: standard error 1.3 %."""
    rng = np.random.default_rng(1)
    rejected = [event_response(ar(rng, 900), trains(rng, 900, 20), 10, 15, side).p_value <= 0.05 for _ in range(300)]
    assert 0.015 < np.mean(rejected) < 0.09


def test_clustered_events_keep_their_size() -> None:
    """Flaps come in bursts, whose windows overlap; a test that takes events for independent rejects far too often."""
    rng = np.random.default_rng(2)
    rejected, naive = [], []
    for _ in range(200):
        y = ar(rng, 1200, 0.9)
        at = np.unique(np.concatenate([start + np.arange(6) for start in trains(rng, 1200, 8)]))
        rejected.append(event_response(y, at, 10, 10).p_value <= 0.05)
        g = np.array([y[t : t + 10].mean() - y[t - 10 : t].mean() for t in at])
        naive.append(abs(g.mean()) > 1.96 * g.std(ddof=1) / np.sqrt(len(g)))
    assert np.mean(rejected) < 0.1
    assert np.mean(naive) > 0.2


def test_effect_and_interval() -> None:
    """A fall by half a deviation for 15 ticks; 100 series: the 95 % interval holds it in 88 or more."""
    rng = np.random.default_rng(3)
    inside = seen = 0
    for _ in range(100):
        y, at = ar(rng, 1800), trains(rng, 1800, 25)
        fall = np.zeros(1800)
        for t in at:
            fall[t : t + 15] -= 0.5
        # What the events do to each other's windows is part of the truth.
        truth = np.mean([fall[t : t + 15].mean() - fall[t - 10 : t].mean() for t in at])
        found = event_response(y + fall, at, 10, 15, "fall")
        inside += found.low <= truth <= found.high
        seen += found.p_value <= 0.05
    assert inside >= 88
    assert seen >= 90


def test_coupling_in_events_alone_is_seen_here_and_not_in_r_cross() -> None:
    """BAU is uncoupled, and eight route changes in 1800 ticks take C_2^W2 down for 20 ticks each."""
    rng = np.random.default_rng(4)
    z = 0.9 + 0.005 * np.stack([ar(rng, 1800) for _ in range(6)], axis=1)
    at = trains(rng, 1800, 8)
    for t in at:
        z[t : t + 20, 4] -= 0.012
    assert event_response(z[:, 4], at, 10, 20, "fall").p_value <= 0.01
    assert independence_test(z, 3).p_value > 0.05


def test_regular_events_have_placebos_within_their_period_only() -> None:
    rng = np.random.default_rng(5)
    y = ar(rng, 1200)
    found = event_response(y, np.arange(50, 1150, 100), 10, 10)
    assert 0 < found.placebos < 1200 * 0.9
    with pytest.raises(ValueError, match="random times"):
        event_response(y, np.arange(25, 1175, 30), 10, 20)


def test_events_at_the_ends_are_left_out_and_counted() -> None:
    rng = np.random.default_rng(6)
    found = event_response(ar(rng, 600), np.array([2, 100, 180, 250, 330, 470, 597]), 10, 10)
    assert (found.events, found.left_out) == (5, 2)


def test_a_flat_series_shows_nothing() -> None:
    found = event_response(np.full(600, 0.97), np.array([100, 180, 250, 330, 470]), 10, 10)
    assert found.p_value > 0.05
    assert found.effect == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(
    ("events", "before", "side", "message"),
    [
        ([100, 200], 10, "both", "needs 5 events"),
        ([100, 200, 300, 400, 700], 10, "both", "indices of the 600"),
        ([100, 200, 300, 400, 500], 0, "both", "do not fit"),
        ([100, 200, 300, 400, 500], 200, "both", "do not fit"),
        ([100, 200, 300, 400, 500], 10, "down", "unknown side"),
    ],
)
def test_refusals(events: list[int], before: int, side: str, message: str) -> None:
    y = ar(np.random.default_rng(7), 600)
    with pytest.raises(ValueError, match=message):
        event_response(y, np.array(events), before, 10, side)
    y[5] = np.nan
    with pytest.raises(ValueError, match="gaps"):
        event_response(y, np.array([100, 200, 300, 400, 500]), 10, 10)
