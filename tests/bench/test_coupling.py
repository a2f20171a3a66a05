# SPDX-License-Identifier: Apache-2.0
"""The benchmark's own parts: what it simulates, and how it judges a rate."""

from __future__ import annotations

import numpy as np
import pytest
from bench import coupling
from scipy.stats import norm

from mvps.coupling.cross import r_cross
from mvps.coupling.phases import ICPhase


@pytest.mark.parametrize("phi", [0.0, 0.6])
def test_series_are_stationary_from_the_first_tick_and_have_the_covariance_they_are_given(phi: float) -> None:
    sigma = coupling.covariance(pair=0.2)
    rng = np.random.default_rng(0)
    windows = np.array([coupling.series(rng, 4, phi, sigma) for _ in range(20_000)]) - 0.9
    for tick in range(4):
        assert np.cov(windows[:, tick], rowvar=False) / 0.005**2 == pytest.approx(sigma, abs=0.04)
    beside = (windows[:, 1] * windows[:, 2]).mean(axis=0) / 0.005**2
    assert beside == pytest.approx(np.full(6, phi), abs=0.03)


def test_no_coupling_is_none_and_a_pair_is_where_it_should_be() -> None:
    assert r_cross(coupling.covariance(), 3) == pytest.approx(np.zeros((3, 3)))
    cross = coupling.covariance(pair=0.2)[:3, 3:]
    assert cross[coupling.STRONGEST] == 0.2
    assert np.count_nonzero(cross) == 1


def test_distance_from_the_nominal_rate_is_in_units_of_the_interval() -> None:
    check = coupling.binomial("x", 60, 1000, 0.05)
    assert check.distance(1.96) == pytest.approx(0.01 / (1.96 * (0.05 * 0.95 / 1000) ** 0.5))
    assert check.distance(float(norm.isf(0.025 / 38))) < check.distance(1.96)
    assert coupling.clustered("x", np.array([0.04, 0.06, 0.05, 0.05]), 0.05).distance(1.96) == pytest.approx(0.0)


def test_quiet_phases_of_a_known_covariance() -> None:
    quiet = coupling.known_covariance(200_000)
    assert quiet["no coupling"]["3a"] == pytest.approx(0.00576, rel=0.1)
    assert "3b" not in quiet["no coupling"]
    assert quiet["one canonical correlation of .5"]["3b"] > 0.0


def test_an_alarm_is_the_third_tick_on_end() -> None:
    over = np.array([True, True, False, True, True, True, True])
    assert coupling.alarm_tick(over) == 6.0
    assert coupling.alarm_tick(over[:5]) == np.inf


def test_a_share_has_wilsons_interval() -> None:
    assert coupling.share(0, 100) == [0.0, 0.0, pytest.approx(0.037, abs=1e-4)]
    assert coupling.share(50, 100)[1:] == pytest.approx([0.4038, 0.5962], abs=1e-4)


def test_each_injected_fault_has_a_phase_and_no_label_is_missing() -> None:
    assert {truth for truth, _ in coupling.FAULTS.values()} == set(ICPhase) - {ICPhase.INCOMPLETE, ICPhase.COUPLED_SUM}


def test_a_short_run_judges_every_case() -> None:
    checks, rows, cuts = coupling.sizes(2)
    assert set(rows) == {f"{kind} {n}" for kind in coupling.KINDS for n in coupling.LENGTHS}
    assert rows["ar 60"]["refused"] == 1.0
    assert len(cuts) == 6
    assert all(0.0 <= check.rate <= 1.0 for check in checks)
