# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.linalg import orth, subspace_angles
from scipy.stats import entropy, linregress

from mvps.surplus.geometry import (
    LinearityGate,
    Mass,
    Potential,
    TensionWeights,
    TickRule,
    angle,
    basis,
    compliance,
    concentration,
    energy,
    force,
    mass,
    motion,
    potential,
    tension,
    text_projection,
)

vectors = hnp.arrays(np.float64, (4, 5), elements=st.floats(-1e3, 1e3).filter(lambda x: x == 0 or abs(x) > 1e-3))


def test_angles_in_closed_form_also_tiny_ones() -> None:
    for true in (0.0, 1e-12, 1e-6, 0.5, math.pi / 2, 3.0, math.pi - 1e-9, math.pi):
        g = np.array([[math.cos(true), math.sin(true)]])
        assert angle(np.array([[3.0, 0.0]]), 7.0 * g)[0] == pytest.approx(true, abs=1e-15, rel=1e-12)


@settings(max_examples=50)
@given(vectors, vectors)
def test_angles_against_scipy_and_their_symmetries(e: np.ndarray, g: np.ndarray) -> None:
    theta = angle(e, g)
    for i in range(len(e)):
        if not e[i].any() or not g[i].any():
            assert math.isnan(theta[i])
            continue
        line = float(subspace_angles(e[i][:, None], g[i][:, None])[0])
        assert min(theta[i], math.pi - theta[i]) == pytest.approx(line, abs=1e-7)
        assert angle(-e, g)[i] == pytest.approx(math.pi - theta[i], abs=1e-12)
        assert angle(e * 1e-200, g * 1e200)[i] == pytest.approx(theta[i], abs=1e-12)


def test_the_projection_is_one_for_exemplars_that_are_not_orthogonal() -> None:
    chance = np.random.default_rng(1)
    common = chance.normal(size=64)
    exemplars = chance.normal(size=(20, 64)) + common
    assert angle(exemplars[:1], exemplars[1:2])[0] < 1.3
    axes = basis(exemplars)
    np.testing.assert_allclose(axes.T @ axes, np.eye(20), atol=1e-12)
    np.testing.assert_allclose(axes @ axes.T, orth(exemplars.T) @ orth(exemplars.T).T, atol=1e-10)
    e = exemplars.mean(axis=0, keepdims=True)
    phi, leakage = compliance(e, axes)
    assert phi[0] == pytest.approx(1.0)
    assert leakage[0] == pytest.approx(0.0, abs=1e-12)
    # The text's formula stretches what it should keep.
    assert np.linalg.norm(text_projection(e, exemplars)) / np.linalg.norm(e) > 6.0


def test_for_orthogonal_exemplars_the_text_is_right() -> None:
    chance = np.random.default_rng(2)
    exemplars = np.linalg.qr(chance.normal(size=(8, 3)))[0].T * np.array([[1.0], [5.0], [0.1]])
    e = chance.normal(size=(6, 8))
    phi, leakage = compliance(e, basis(exemplars))
    text = np.linalg.norm(text_projection(e, exemplars), axis=1) / np.linalg.norm(e, axis=1)
    np.testing.assert_allclose(phi, text)
    np.testing.assert_allclose(phi**2 + leakage**2, 1.0)


def test_exemplars_that_repeat_or_are_zero_add_no_direction() -> None:
    chance = np.random.default_rng(3)
    a, b = chance.normal(size=(2, 6))
    assert basis(np.array([a, b, a + b, 3 * a, 0 * a, a * (1 + 1e-12)])).shape == (6, 2)
    assert basis(np.zeros((3, 6))).shape == (6, 0)
    assert basis(np.zeros((0, 6))).shape == (6, 0)
    phi, leakage = compliance(np.array([[1.0] * 6, [0.0] * 6]), np.zeros((6, 0)))
    np.testing.assert_array_equal(phi, [1.0, math.nan])
    np.testing.assert_array_equal(leakage, [0.0, math.nan])
    assert np.isnan(compliance(np.zeros((1, 6)), basis(np.array([a])))).all()


def test_tension_rises_with_each_of_its_parts() -> None:
    theta, leakage = np.array([0.3]), np.array([0.2])
    base = tension(theta, leakage, 0.7)[0]
    assert tension(theta + 0.1, leakage, 0.7)[0] > base
    assert tension(theta, leakage + 0.1, 0.7)[0] > base
    assert tension(theta, leakage, 0.6)[0] > base
    assert tension(np.zeros(1), np.zeros(1), 1.0)[0] == 0.0
    only = TensionWeights(0.0, 2.0, 0.0)
    assert tension(theta, leakage, 0.7, only)[0] == pytest.approx(0.4)


@given(hnp.arrays(np.float64, (3, 7), elements=st.floats(0, 1)))
def test_concentration_against_scipy(weights: np.ndarray) -> None:
    p = (weights + 1e-6) / (weights + 1e-6).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(concentration(p), 1.0 - entropy(p, axis=1) / math.log(7), atol=1e-12)


def test_concentration_at_its_ends() -> None:
    np.testing.assert_allclose(concentration(np.array([[0.25] * 4, [1.0, 0, 0, 0]])), [0.0, 1.0], atol=1e-15)
    np.testing.assert_array_equal(concentration(np.ones((2, 1))), [1.0, 1.0])


@pytest.mark.parametrize("form", list(Potential))
def test_force_is_minus_the_slope_of_the_potential(form: Potential) -> None:
    theta = np.linspace(0.0, math.pi, 200)
    h = 1e-6
    slope = (potential(theta + h, 2.0, form) - potential(theta - h, 2.0, form)) / (2 * h)
    np.testing.assert_allclose(force(theta, 2.0, form), -slope, atol=1e-8)
    assert np.all(np.diff(potential(theta, 2.0, form)) > 0.0)


def test_force_near_zero() -> None:
    small = np.array([1e-3])
    assert force(small, 2.0)[0] == pytest.approx(-2.0 * 1e-3, rel=1e-5)
    assert force(small, 2.0, Potential.QUARTIC)[0] == pytest.approx(-2.0 * 1e-9 / 2, rel=1e-5)


def test_mass_is_found_again_and_is_the_regression_of_scipy() -> None:
    chance = np.random.default_rng(4)
    impulse = chance.normal(size=200)
    acceleration = impulse / 4.0 + 0.3 + 0.05 * chance.normal(size=200)
    found = mass(impulse, acceleration)
    fit = linregress(impulse, acceleration)
    assert found.m_s == pytest.approx(1.0 / fit.slope)
    assert found.r2 == pytest.approx(fit.rvalue**2)
    assert found.m_s == pytest.approx(4.0, rel=0.1)


def test_mass_where_it_is_not_known_or_without_effect() -> None:
    chance = np.random.default_rng(5)
    x = chance.normal(size=50)
    assert math.isnan(mass(np.zeros(50), x).m_s)
    assert math.isnan(mass(x[:2], x[:2]).m_s)
    assert mass(x, -x).m_s == math.inf
    assert mass(x, np.zeros(50)) == Mass(math.inf, 0.0, 50)
    gaps = np.where(np.arange(50) % 2, np.nan, x)
    assert mass(gaps, x) == Mass(pytest.approx(1.0), pytest.approx(1.0), 25)
    assert np.all(np.isfinite(energy(np.ones(2), np.ones(2), math.inf)))
    assert energy(np.zeros(1), np.full(1, 2.0), math.nan)[0] == 2.0
    assert energy(np.full(1, math.pi), np.zeros(1), 3.0, kappa=0.5)[0] == pytest.approx(1.0)


def test_motion_is_that_of_a_parabola() -> None:
    t = np.arange(10.0)
    omega, acceleration = motion(0.25 * t * t, tau=2.0)
    np.testing.assert_allclose(acceleration, 0.5 / 4.0)
    np.testing.assert_allclose(omega, 0.25 * (2 * t[:-1] + 1) / 2.0)


def test_ticks_end_where_the_rule_says() -> None:
    rule = TickRule()
    tokens = np.array([5, 19, 20, 20, 39, 40, 1])
    boundary = np.array([True, True, True, False, False, False, False])
    tool = np.array([False, False, False, False, False, False, True])
    np.testing.assert_array_equal(rule.ends(tokens, boundary, tool), [False, False, True, False, False, True, True])
    with pytest.raises(ValueError, match="usual <= most"):
        TickRule(50, 40)


def test_the_gate_waits_to_open_and_leaves_only_beyond_its_margin() -> None:
    gate = LinearityGate()
    good = Mass(1.0, 0.9, 20)
    for expected in (False, False, True):
        gate = gate.step(good, 0.4)
        assert gate.is_open is expected
    assert gate.step(good, 0.49).is_open, "inside the band"
    assert not gate.step(good, 0.51).is_open
    assert not gate.step(Mass(1.0, 0.8, 20), 0.4).is_open
    shut = LinearityGate().step(good, 0.4).step(good, 0.46).step(good, 0.4).step(good, 0.4)
    assert not shut.is_open, "the run was broken"
    few = Mass(1.0, 0.99, 4)
    assert not LinearityGate(dwell=1).step(few, 0.1).is_open
    assert not LinearityGate(dwell=1).step(Mass(math.nan, math.nan, 20), 0.1).is_open
