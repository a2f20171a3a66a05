# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvps.coupling.cross import r_cross
from mvps.coupling.lyapunov import (
    Exponents,
    SweepPoint,
    System,
    cross_coupling,
    exponents,
    first_chaotic,
    joint_system,
    sweep,
)


def linear(a: np.ndarray, mixing: np.ndarray | None = None) -> System:
    return System(
        lambda z: z @ a.T,
        lambda z: np.broadcast_to(a, (len(z), *a.shape)),
        lambda z: np.ones_like(z),
        None,
        mixing,
    )


def lorenz() -> System:
    sigma, rho, beta = 10.0, 28.0, 8.0 / 3.0

    def drift(s: np.ndarray) -> np.ndarray:
        x, y, z = s.T
        return np.stack((sigma * (y - x), x * (rho - z) - y, x * y - beta * z), axis=1)

    def jacobian(s: np.ndarray) -> np.ndarray:
        x, y, z = s.T
        one, nought = np.ones_like(x), np.zeros_like(x)
        rows = ((-sigma * one, sigma * one, nought), (rho - z, -one, -x), (y, x, -beta * one))
        return np.stack([np.stack(row, axis=1) for row in rows], axis=1)

    return System(drift, jacobian)


def test_lorenz() -> None:
    """0.9056, 0, -14.5723 (Sprott 2003). The sum is the divergence -(sigma + 1 + beta) exactly, whatever the path."""
    start = np.random.default_rng(0).normal(size=(24, 3)) + np.array([0.0, 0.0, 20.0])
    found = exponents(lorenz(), start, 0.01, 60.0, 10.0)
    assert found.value[0] == pytest.approx(0.9056, abs=0.03)
    assert found.low[0] - 0.01 < 0.9056 < found.high[0] + 0.01
    assert found.value[1] == pytest.approx(0.0, abs=0.02)
    assert found.value.sum() == pytest.approx(-(10.0 + 1.0 + 8.0 / 3.0), rel=1e-4)


def test_geometric_brownian_motion() -> None:
    """d z = mu z dt + s z dW: lambda = mu - s^2 / 2, below mu."""
    mu, s = 0.1, 0.8
    system = System(
        lambda z: mu * z, lambda z: np.full((len(z), 1, 1), mu), lambda z: s * z, lambda z: np.full_like(z, s)
    )
    found = exponents(system, np.ones((200, 1)), 0.01, 40.0, 0.0, seed=1)
    assert found.value[0] == pytest.approx(mu - s * s / 2.0, abs=0.03)
    assert found.low[0] < mu - s * s / 2.0 < found.high[0]
    assert found.high[0] < 0.0


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 1000))
def test_a_linear_system_has_the_real_parts_of_its_eigenvalues(seed: int) -> None:
    a = np.random.default_rng(seed).normal(size=(3, 3)) - 2.0 * np.eye(3)
    found = exponents(linear(a), np.zeros((2, 3)), 0.01, 40.0, 5.0)
    step = np.log(np.abs(np.linalg.eigvals(np.eye(3) + 0.01 * a))) / 0.01  # of Euler's step itself
    assert found.value == pytest.approx(np.sort(step)[::-1], abs=0.12)
    assert found.value.sum() == pytest.approx(step.sum(), abs=1e-6)


def test_the_conjecture_fails_for_an_ornstein_uhlenbeck_process() -> None:
    """001 sec. 21.2: coupled through its noise, ||R_cross||_F grows and lambda = -k stays where it is."""
    a = -0.5 * np.eye(6)
    norms, rates = [], []
    for r in (0.0, 0.5, 0.9):
        mixing = np.linalg.cholesky(np.block([[np.eye(3), r * np.eye(3)], [r * np.eye(3), np.eye(3)]]))
        found: Exponents = exponents(linear(a, mixing), np.zeros((16, 6)), 0.02, 60.0, 10.0, seed=2, first=1)
        norms.append(np.linalg.norm(r_cross(np.cov(found.states, rowvar=False), 3)))
        rates.append(found.value[0])
    assert norms[2] == pytest.approx(np.sqrt(3) * 0.9, abs=0.05)
    assert norms[0] < 0.4 < norms[1] < norms[2]
    assert rates == pytest.approx([-0.5] * 3, abs=0.01)


def test_two_copies_under_the_same_noise_come_together_at_the_rate_lambda() -> None:
    system = joint_system(np.array([0.5, 0.5, 0.3, 0.3]), cross_coupling(2, 4, 0), 0.3)
    found = exponents(system, np.random.default_rng(3).normal(size=(16, 4)), 0.01, 60.0, 10.0, first=1)
    rng = np.random.default_rng(4)
    one = rng.normal(size=(16, 4))
    other = one + 1e-6 * rng.normal(size=(16, 4))
    apart = []
    for _ in range(5000):
        dw = 0.1 * rng.standard_normal((16, 4))
        one, other = (y + 0.01 * system.drift(y) + system.noise(y) * dw for y in (one, other))
        apart.append(np.log(np.linalg.norm(one - other, axis=1)).mean())
    assert (apart[-1] - apart[999]) / 40.0 == pytest.approx(found.value[0], abs=0.03)
    assert found.high[0] < 0.0


def test_the_joint_system_is_what_it_says() -> None:
    rates, b = np.array([1.0, 1.0, 0.2, 0.2]), cross_coupling(2, 4, 1)
    assert np.all(b[:2, :2] == 0.0)
    assert np.all(b[2:, 2:] == 0.0)
    assert np.linalg.norm(b[:2, 2:], 2) == pytest.approx(1.0)
    system = joint_system(rates, b, 1.7)
    y = np.random.default_rng(4).normal(size=(5, 4))
    assert system.drift(y) == pytest.approx(-rates * y + 1.7 * np.tanh(y) @ b.T)
    for axis in range(4):
        step = np.zeros(4)
        step[axis] = 1e-6
        slope = (system.drift(y + step) - system.drift(y - step)) / 2e-6
        assert system.jacobian(y)[:, :, axis] == pytest.approx(slope, abs=1e-6)


def test_without_coupling_the_sweep_is_the_closed_form_and_all_points_are_reported() -> None:
    rates = np.array([1.0, 1.0, 0.25, 0.25])
    points = sweep(rates, cross_coupling(2, 4, 5), (0.0, 1.0), 2, paths=16, duration=60.0)
    assert [point.strength for point in points] == [0.0, 1.0]
    assert points[0].exponent == pytest.approx(-0.25, abs=0.01)
    assert points[0].low <= points[0].exponent <= points[0].high
    assert points[1].frobenius > points[0].frobenius


def test_a_sign_change_needs_the_whole_interval() -> None:
    below = SweepPoint(1.0, 0.4, 0.02, -0.01, 0.05)
    above = SweepPoint(2.0, 0.9, 0.3, 0.2, 0.4)
    assert first_chaotic((below,)) is None
    assert first_chaotic((above, below, above._replace(frobenius=0.7))) == above._replace(frobenius=0.7)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="two paths"):
        exponents(lorenz(), np.zeros((1, 3)), 0.01, 1.0, 0.0)
    with pytest.raises(ValueError, match="positive rate"):
        joint_system(np.array([1.0, 0.0]), np.zeros((2, 2)), 1.0)
    with np.errstate(all="ignore"), pytest.raises(ValueError, match="smaller step"):
        exponents(lorenz(), np.full((2, 3), 1e3), 0.5, 20.0, 0.0)
