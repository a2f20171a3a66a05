# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from mvps.robust import cascade
from mvps.robust.as_graph import synthetic_internet
from mvps.robust.cascade import growth, rate_matrix, tau_closed, tau_saturated, without


def complete(number: int) -> csr_matrix:
    return csr_matrix(np.ones((number, number)) - np.eye(number))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 14), st.floats(0.05, 0.9), st.booleans(), st.booleans())
def test_growth_is_the_spectral_abscissa(seed: int, size: int, density: float, symmetric: bool, recover: bool):
    rng = np.random.default_rng(seed)
    dense = np.where(rng.random((size, size)) < density, rng.uniform(0.01, 1.0, (size, size)), 0.0)
    np.fill_diagonal(dense, 0.0)
    if symmetric:
        dense = np.maximum(dense, dense.T)
    gamma = rng.uniform(0.0, 0.5, size) if recover else None
    found = growth(csr_matrix(dense), gamma)
    exact = np.linalg.eigvals(dense - np.diag(gamma if gamma is not None else np.zeros(size))).real.max()
    assert found.rate == pytest.approx(exact, abs=2e-4)


def test_a_bipartite_graph_has_its_perron_root_too():
    """+lambda and -lambda: plain power iteration never settles. A star of n leaves has sqrt(n)."""
    star = np.zeros((10, 10))
    star[0, 1:] = star[1:, 0] = 1.0
    found = growth(csr_matrix(star))
    assert found.rate == pytest.approx(3.0, rel=1e-6)
    assert found.residual < 1e-6


def test_without_a_cycle_growth_is_exactly_nought_and_tau_infinite_though_the_news_arrives():
    """001 sec. 15.2 on loop-free propagation."""
    path = np.zeros((6, 6))
    path[np.arange(5), np.arange(1, 6)] = 1.0
    beta = rate_matrix(csr_matrix(path))
    assert growth(beta).rate == 0.0
    assert tau_closed(0.0, 0.5, 0.2) == math.inf
    assert tau_saturated(0.0, 0.5, 0.2) == math.inf
    arrival = cascade.arrival_times(beta, 0, np.random.default_rng(0), delay="fixed")
    assert arrival.tolist() == [0.0, 30.0, 60.0, 90.0, 120.0, 150.0]


def test_the_worked_examples_formula_gives_its_inputs_other_figures():
    """001 sec. 16 says 21 s; lambda = 1/30, N = 5, p = 1/2 give 27.5 s, and 41.6 s with saturation."""
    assert tau_closed(1 / 30, 0.5, 1 / 5) == pytest.approx(27.49, abs=0.01)
    assert tau_saturated(1 / 30, 0.5, 1 / 5) == pytest.approx(41.59, abs=0.01)
    assert 30 * math.log(2) == pytest.approx(20.8, abs=0.1)
    assert cascade.longest_tick(27.49) == pytest.approx(9.16, abs=0.01)


def test_shares_that_make_no_sense():
    assert tau_closed(1.0, 0.2, 0.5) == tau_saturated(1.0, 0.2, 0.5) == 0.0
    assert tau_saturated(1.0, 1.0, 0.5) == math.inf
    for share, start in ((0.0, 0.1), (1.1, 0.1), (0.5, 0.0), (0.5, 1.0)):
        with pytest.raises(ValueError, match="shares lie in"):
            tau_closed(1.0, share, start)


def gillespie(beta: np.ndarray, gamma: np.ndarray, rng: np.random.Generator, needed: int) -> float:
    """SIR by its definition, event by event: time until ``needed`` ASes have ever had the announcement."""
    state = np.zeros(len(beta), dtype=int)  # 0 susceptible, 1 infected, 2 recovered
    state[0] = 1
    now, reached = 0.0, 1
    while reached < needed:
        pressure = np.where(state == 0, beta[state == 1].sum(axis=0), 0.0)
        leaving = np.where(state == 1, gamma, 0.0)
        total = pressure.sum() + leaving.sum()
        if total == 0.0:
            return math.inf
        now += rng.exponential(1.0 / total)
        at = rng.choice(2 * len(beta), p=np.concatenate((pressure, leaving)) / total)
        if at < len(beta):
            state[at] = 1
            reached += 1
        else:
            state[at - len(beta)] = 2
    return now


@pytest.mark.parametrize("recovery", [0.0, 0.5])
def test_shortest_paths_are_the_epidemic(recovery: float):
    """First-passage times against Gillespie's algorithm on a random directed graph: mean and how often it dies out."""
    rng = np.random.default_rng(3)
    beta = np.where(rng.random((7, 7)) < 0.5, rng.uniform(0.2, 1.0, (7, 7)), 0.0)
    np.fill_diagonal(beta, 0.0)
    gamma = np.full(7, recovery)
    runs = 3000
    slow = np.array([gillespie(beta, gamma, rng, 4) for _ in range(runs)])
    fast = cascade.simulated_tau(
        csr_matrix(beta), 0, np.arange(7), 4 / 7, runs, gamma=gamma if recovery else None, seed=4
    )
    assert np.isinf(fast).mean() == pytest.approx(np.isinf(slow).mean(), abs=0.04)
    one, other = fast[np.isfinite(fast)], slow[np.isfinite(slow)]
    assert one.mean() == pytest.approx(other.mean(), rel=0.08)
    assert np.quantile(one, 0.9) == pytest.approx(np.quantile(other, 0.9), rel=0.12)


def test_where_the_mean_field_is_wrong():
    """On a complete graph of 50, where everybody is alike, it is right. On a ring it is over five times too fast."""
    targets = np.arange(50)
    dense = rate_matrix(complete(50))
    rate = growth(dense).rate
    assert rate == pytest.approx(49 / 30, rel=1e-6)
    simulated = float(np.median(cascade.simulated_tau(dense, 0, targets, 0.5, 400)))
    assert simulated == pytest.approx(tau_saturated(rate, 0.5, 1 / 50), rel=0.3)
    ring = np.zeros((50, 50))
    ring[targets, (targets + 1) % 50] = ring[(targets + 1) % 50, targets] = 1.0
    beta = rate_matrix(csr_matrix(ring))
    linear = tau_closed(growth(beta).rate, 0.5, 1 / 50)
    simulated = float(np.median(cascade.simulated_tau(beta, 0, targets, 0.5, 400)))
    assert simulated > 5.0 * linear


def test_validation_slows_the_cascade_and_can_stop_it():
    beta = rate_matrix(synthetic_internet(300, 2).sessions())
    rng = np.random.default_rng(5)
    targets = np.arange(20, 300, 7)
    medians, rates = [], []
    order = rng.permutation(np.arange(1, 299))
    for share in (0.0, 0.3, 0.6, 0.9):
        immune = np.zeros(300, dtype=bool)
        immune[order[: int(share * len(order))]] = True
        kept = without(beta, immune)
        rates.append(growth(kept).rate)
        medians.append(float(np.median(cascade.simulated_tau(kept, 299, targets, 0.1, 60, seed=6))))
    assert rates == sorted(rates, reverse=True)
    assert medians == sorted(medians)
    assert medians[-1] == math.inf


def test_recovery_slows_growth_as_validation_does():
    beta = rate_matrix(complete(20))
    rates = [growth(beta, np.full(20, g)).rate for g in (0.0, 0.1, 0.5, 1.0)]
    assert rates == pytest.approx([19 / 30 - g for g in (0.0, 0.1, 0.5, 1.0)])
    assert tau_closed(rates[-1], 0.5, 0.05) == math.inf


def test_rates_have_a_floor():
    sessions = complete(3)
    rates = rate_matrix(sessions, rtt_s=np.array([0.01, 0.2, 60.0, 5.0, 90.0, 0.0])).data
    assert rates == pytest.approx([1 / 30, 1 / 30, 1 / 60, 1 / 30, 1 / 90, 1 / 30])
    with pytest.raises(ValueError, match="floor"):
        rate_matrix(sessions, floor_s=0.0)


def test_only_what_lies_between_the_origin_and_the_vantages_counts():
    edges = [(0, 1), (1, 2), (2, 3), (1, 4), (5, 1), (3, 2)]
    dense = np.zeros((6, 6))
    for a, b in edges:
        dense[a, b] = 1.0
    between = cascade.relevant(csr_matrix(dense), 0, np.array([3]))
    assert np.flatnonzero(between).tolist() == [0, 1, 2, 3]


def test_delays_of_the_three_kinds():
    beta = rate_matrix(csr_matrix(np.array([[0.0, 1.0], [0.0, 0.0]])))
    rng = np.random.default_rng(7)
    drawn = {
        kind: np.array([cascade.arrival_times(beta, 0, rng, delay=kind)[1] for _ in range(2000)])
        for kind in ("exponential", "uniform", "fixed")
    }
    assert drawn["exponential"].mean() == pytest.approx(30.0, rel=0.1)
    assert drawn["uniform"].mean() == pytest.approx(15.0, rel=0.1)
    assert drawn["uniform"].max() <= 30.0
    assert set(drawn["fixed"]) == {30.0}


def test_a_share_of_nobody_is_refused():
    assert cascade.time_to_share(np.array([0.0, 5.0, 9.0, math.inf]), np.arange(4), 0.5) == 5.0
    assert cascade.time_to_share(np.array([0.0, 5.0, 9.0, math.inf]), np.arange(4), 1.0) == math.inf
    with pytest.raises(ValueError, match="nobody"):
        cascade.time_to_share(np.zeros(4), np.arange(4), 0.0)
