# SPDX-License-Identifier: Apache-2.0
"""Lyapunov exponents of a stochastic differential equation, and of a stated joint one (IC9.6, 001 sec. 21.2).

    dz = F(z) dt + G(z) dW,      dV = DF(z) V dt + sum_k DG_k(z) V dW_k,      lambda = lim (1/T) log ||V(T)||

State and tangent vectors feel *the same* noise: lambda says whether two copies of the system under the same noise come
apart. The tangent frame is orthonormalised by QR at every step, whose log diagonals add up to exponents (Benettin et
al. 1980). Many independent paths run at once; the interval is that of their mean. Noise enters by Milstein's step
where it depends on the state (each axis on itself), which for noise that does not is Euler's; without noise the step is
the classical Runge-Kutta one, for state and tangent alike.

**The joint SDE (ours).** The sources state none. In deviations y from the BAU centre, in BAU standard deviations,

    dy = (-k y + rho B tanh(y)) dt + sqrt(2 k) dW

each axis returns at its own rate k, B says which axis pushes which other, and tanh that a push has a bound, since
coherence has. Without coupling (rho = 0) each axis is an Ornstein-Uhlenbeck process of variance 1 and lambda = -min k.
B has no diagonal and only cross blocks: what the surfaces do to each other. :func:`sweep` measures ||R_cross||_F and
lambda of the same paths, for one B and many rho. The conjecture is that lambda grows with ||R_cross||_F and is positive
beyond some point; for the linear system it is false (coupling through the noise changes R_cross and not lambda).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import t as student

from mvps.coherence.observation import FloatArray
from mvps.coupling.cross import r_cross

# (M, d) -> (M, d), and (M, d) -> (M, d, d)
Field = Callable[[FloatArray], FloatArray]


class System(NamedTuple):
    """dz = drift(z) dt + noise(z) dW. jacobian: of the drift, (M, d, d). noise, slope: (M, d), diagonal noise and its
    derivative with respect to its own axis; None for no noise and for noise that does not depend on the state.
    mixing: (d, d), dW = mixing dB of independent dB; None for independent noise."""

    drift: Field
    jacobian: Field
    noise: Field | None = None
    slope: Field | None = None
    mixing: FloatArray | None = None


class Exponents(NamedTuple):
    """value: (d,) Lyapunov exponents per unit of time, largest first; low, high: (d,) 95 % over the paths.
    states: (samples, d) of the paths after the transient, thinned."""

    value: FloatArray
    low: FloatArray
    high: FloatArray
    states: FloatArray


def exponents(
    system: System, start: FloatArray, step: float, duration: float, transient: float, seed: int = 0, first: int = 0
) -> Exponents:
    """Lyapunov exponents over ``duration`` after a ``transient``, from starting states (M, d), M >= 2 paths.

    first: how many exponents, 0 for all. step, duration, transient in the system's unit of time. ValueError if a path
    leaves the finite numbers: take a smaller step.
    """
    paths, d = start.shape
    if paths < 2 or not (step > 0.0 and duration >= step and transient >= 0.0):
        raise ValueError("exponents need two paths or more, a positive step and a duration of one step or more")
    rng = np.random.default_rng(seed)
    z = start.astype(np.float64)
    # No axis of the system: in one that decouples, a vector on a fast axis would never find the slow one.
    frame = np.linalg.qr(rng.standard_normal((paths, d, first or d)))[0]
    logs = np.zeros((paths, first or d))
    skip, steps = round(transient / step), round(duration / step)
    every = max(1, steps * paths // 20_000)
    states = []
    for number in range(skip + steps):
        z, frame = _advance(system, z, frame, step, rng)
        frame, upper = np.linalg.qr(frame)
        if number >= skip:
            logs += np.log(np.maximum(np.abs(np.diagonal(upper, axis1=1, axis2=2)), 1e-300))
            if (number - skip) % every == 0:
                states.append(z)
    if not np.isfinite(z).all():
        raise ValueError("a path left the finite numbers: take a smaller step, or a system that stays bounded")
    rates = logs / (steps * step)
    mean = rates.mean(axis=0)
    width = float(student.ppf(0.975, paths - 1)) * rates.std(axis=0, ddof=1) / math.sqrt(paths)
    return Exponents(mean, mean - width, mean + width, np.concatenate(states))


def _advance(
    system: System, z: FloatArray, frame: FloatArray, step: float, rng: np.random.Generator
) -> tuple[FloatArray, FloatArray]:
    if system.noise is None:
        return _runge_kutta(system, z, frame, step)
    white = rng.standard_normal(z.shape) * math.sqrt(step)
    dw = white if system.mixing is None else white @ system.mixing.T
    g = system.noise(z)
    moved = z + system.drift(z) * step + g * dw
    stretched = frame + step * (system.jacobian(z) @ frame)
    if system.slope is not None:
        slope = system.slope(z)
        # Milstein's term; its derivative is taken with the slope held, which for linear noise is exact.
        moved += 0.5 * g * slope * (dw * dw - step)
        stretched += (slope * dw + 0.5 * slope * slope * (dw * dw - step))[:, :, None] * frame
    return moved, stretched


def _runge_kutta(system: System, z: FloatArray, frame: FloatArray, h: float) -> tuple[FloatArray, FloatArray]:
    k1, w1 = system.drift(z), system.jacobian(z) @ frame
    at = z + 0.5 * h * k1
    k2, w2 = system.drift(at), system.jacobian(at) @ (frame + 0.5 * h * w1)
    at = z + 0.5 * h * k2
    k3, w3 = system.drift(at), system.jacobian(at) @ (frame + 0.5 * h * w2)
    at = z + h * k3
    k4, w4 = system.drift(at), system.jacobian(at) @ (frame + h * w3)
    return z + h / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4), frame + h / 6.0 * (w1 + 2.0 * w2 + 2.0 * w3 + w4)


def joint_system(rates: FloatArray, coupling: FloatArray, strength: float) -> System:
    """The joint SDE of the module: rates k (d,) > 0 per unit of time, coupling B (d, d), strength rho."""
    if (rates <= 0.0).any():
        raise ValueError("each axis must return to BAU at a positive rate")
    push = strength * coupling

    def drift(y: FloatArray) -> FloatArray:
        flow: FloatArray = np.tanh(y) @ push.T - rates * y
        return flow

    def jacobian(y: FloatArray) -> FloatArray:
        bounded = np.tanh(y)
        flow: FloatArray = push * (1.0 - bounded * bounded)[:, None, :] - np.diag(rates)
        return flow

    spread = np.sqrt(2.0 * rates)

    def noise(y: FloatArray) -> FloatArray:
        return np.broadcast_to(spread, y.shape)

    return System(drift, jacobian, noise)


def cross_coupling(split: int, axes: int, seed: int) -> FloatArray:
    """B (axes, axes) with independent Gaussian cross blocks of unit spectral norm each, nothing within a surface."""
    rng = np.random.default_rng(seed)
    b = np.zeros((axes, axes))
    for rows, columns in ((slice(0, split), slice(split, axes)), (slice(split, axes), slice(0, split))):
        block = rng.standard_normal(b[rows, columns].shape)
        b[rows, columns] = block / np.linalg.norm(block, 2)
    return b


class SweepPoint(NamedTuple):
    """strength: rho. frobenius: ||R_cross||_F of the paths. exponent, low, high: maximal Lyapunov exponent."""

    strength: float
    frobenius: float
    exponent: float
    low: float
    high: float


def sweep(
    rates: FloatArray,
    coupling: FloatArray,
    strengths: Sequence[float],
    split: int,
    paths: int = 32,
    duration: float = 200.0,
    step: float = 0.02,
    seed: int = 0,
) -> tuple[SweepPoint, ...]:
    """Maximal exponent and ||R_cross||_F of the joint SDE at each strength; a tenth of the duration is transient."""
    points = []
    for strength in strengths:
        system = joint_system(rates, coupling, strength)
        start = np.random.default_rng(seed).standard_normal((paths, len(rates)))
        found = exponents(system, start, step, duration, 0.1 * duration, seed, first=1)
        frobenius = float(np.linalg.norm(r_cross(np.cov(found.states, rowvar=False), split)))
        points.append(SweepPoint(strength, frobenius, float(found.value[0]), float(found.low[0]), float(found.high[0])))
    return tuple(points)


def first_chaotic(points: Sequence[SweepPoint]) -> SweepPoint | None:
    """The point of least ||R_cross||_F whose whole interval is above 0; None: no sign change found."""
    chaotic = [point for point in points if point.low > 0.0]
    return min(chaotic, key=lambda point: point.frobenius, default=None)
