# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from scipy.signal import lfilter

from mvps.coupling.lead_lag import Lead, lead_lag


def pair(seed: int, n: int, lag: int, r: float, phi: float = 0.6) -> tuple[np.ndarray, np.ndarray]:
    """The second follows the first by ``lag`` ticks with correlation r of their innovations."""
    rng = np.random.default_rng(seed)
    e = rng.standard_normal(n + 100)
    follower = rng.standard_normal(n + 100)
    follower[lag:] = r * e[: n + 100 - lag] + np.sqrt(1.0 - r * r) * follower[lag:]
    both = lfilter([1.0], [1.0, -phi], np.stack((e, follower), axis=1), axis=0)[100:]
    return both[:, 0], both[:, 1]


@pytest.mark.parametrize(("lag", "lead"), [(0, Lead.TOGETHER), (1, Lead.NETWORK), (7, Lead.NETWORK)])
def test_who_is_first_and_by_how_much(lag: int, lead: Lead) -> None:
    net, ai = pair(lag, 800, lag, 0.5)
    found = lead_lag(net, ai, 20)
    assert found.lead is lead
    assert found.tau == lag
    assert found.low <= lag <= found.high
    assert found.peak == pytest.approx(0.5, abs=0.1)
    assert found.p_value < 0.01
    # The other way round.
    back = lead_lag(ai, net, 20)
    assert back.tau == -lag
    assert back.lead is (Lead.TOGETHER if lag == 0 else Lead.AI)


def test_memory_does_not_smear_the_peak() -> None:
    """At .9 the cross-correlation of the series themselves is nine tenths of its peak one tick beside it."""
    found = lead_lag(*pair(3, 1500, 3, 0.5, 0.9), 20)
    assert (found.tau, found.low, found.high) == (3, 3, 3)
    assert np.abs(np.delete(found.curve, 23)).max() < 0.15


def test_nobody_leads_where_nothing_is_coupled() -> None:
    """200 independent pairs at 5 %: standard error 1.5 %."""
    found = [lead_lag(*pair(seed, 400, 0, 0.0), 20).lead for seed in range(200)]
    assert 0.87 < np.mean([lead is Lead.NOBODY for lead in found]) < 0.99


def test_without_innovations_memory_makes_peaks_where_there_are_none() -> None:
    """Of slow series the raw cross-correlation within 20 lags is often beyond what white ones have at 1 %."""
    raw, ours = [], []
    for seed in range(60):
        net, ai = pair(seed, 1500, 0, 0.0, 0.9)
        x, y = ((s - s.mean()) / s.std() for s in (net, ai))
        raw.append(max(abs(np.mean(x[20:-20] * y[20 + lag : 1480 + lag])) for lag in range(-20, 21)))
        ours.append(lead_lag(net, ai, 20).p_value <= 0.01)
    assert np.mean(np.array(raw) > 3.7 / np.sqrt(1460)) > 0.5  # .01 / 41 lags, two-sided
    assert np.mean(ours) < 0.1


def test_a_weak_peak_stays_open_or_unseen() -> None:
    found = [lead_lag(*pair(seed, 300, 1, 0.15), 20).lead for seed in range(40)]
    assert found.count(Lead.AI) <= 2
    assert set(found) & {Lead.OPEN, Lead.NOBODY}


def test_refusals() -> None:
    net, ai = pair(0, 200, 0, 0.0)
    with pytest.raises(ValueError, match="same ticks"):
        lead_lag(net, ai[1:], 5)
    with pytest.raises(ValueError, match="lags up to"):
        lead_lag(net, ai, 50)
    with pytest.raises(ValueError, match="effective"):
        lead_lag(*pair(0, 100, 0, 0.0, 0.9), 5)
