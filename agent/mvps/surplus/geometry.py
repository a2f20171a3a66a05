# SPDX-License-Identifier: Apache-2.0
"""Where a text stands and how it moves: angle to its goal, leakage, tension, mass and energy (002 sec. 3).

With e the embedding of the current window, g that of the goal, and S the span of the constraint exemplars:

    theta = angle(e, g) in [0, pi]            phi = |O e| / |e|           leakage = |e - O e| / |e| = sqrt(1 - phi^2)
    iT    = a (1 - cos theta) + b leakage + c (1 - SSE)
    omega = d theta / d tau                   E_s = m_s omega^2 / 2 + U(theta)

O projects on an orthonormal basis of S. The text's sum over exemplars is a projection only where they are orthogonal:
with 20 of cosine .49 it gives phi = 6.9 (``text_projection`` is kept to show it).

Undefined is NaN, and whoever decides falls back to the baseline: angle and phi of a zero vector, mass without impulses.
Angles in radians, rates per tick, arrays (n, d) with one row per request unless stated.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mvps.coherence.observation import FloatArray
from mvps.surplus.trust_region import BoolArray

_RANK_TOLERANCE = 1e-6  # of the largest singular value: exemplars nearer to the span of the others add no direction


def angle(e: FloatArray, g: FloatArray) -> FloatArray:
    """Theta (n,) between rows of e and g; exact also where the two nearly coincide, NaN for zero vectors.

    Half-angle form: 2 atan2(|u - v|, |u + v|) of the unit vectors, as arccos loses half the digits near 0 and pi.
    """
    u, v = _unit(e), _unit(g)
    theta: FloatArray = 2.0 * np.arctan2(np.linalg.norm(u - v, axis=-1), np.linalg.norm(u + v, axis=-1))
    return theta


def basis(exemplars: FloatArray) -> FloatArray:
    """Orthonormal basis (d, m) of the span of exemplars (count, d): m = their rank, 0 without any.

    Each counts by its direction; zero rows count for nothing.
    """
    x = np.atleast_2d(np.asarray(exemplars, dtype=np.float64))
    length = np.linalg.norm(x, axis=1)
    x = x[length > 0.0] / length[length > 0.0, None]
    if not len(x):
        return np.zeros((x.shape[1], 0))
    _, scale, directions = np.linalg.svd(x, full_matrices=False)
    return np.ascontiguousarray(directions[scale > _RANK_TOLERANCE * scale[0]].T)


class Compliance(NamedTuple):
    """phi: share of a vector's length inside the constraint subspace. leakage: the share orthogonal to it."""

    phi: FloatArray
    leakage: FloatArray


def compliance(e: FloatArray, axes: FloatArray) -> Compliance:
    """Compliance of rows of e with the span of an orthonormal basis (d, m). Without any constraint nothing leaks."""
    x = _unit(e)
    if not axes.shape[1]:
        whole = np.where(np.isnan(x[:, 0]), np.nan, 1.0)
        return Compliance(whole, 1.0 - whole)
    inside = x @ axes
    # From the remainder itself: sqrt(1 - phi^2) has an error of 1e-8 where nothing leaks.
    leakage = np.linalg.norm(x - inside @ axes.T, axis=1)
    return Compliance(np.minimum(np.linalg.norm(inside, axis=1), 1.0), np.minimum(leakage, 1.0))


def text_projection(e: FloatArray, exemplars: FloatArray) -> FloatArray:
    """The text's sum of <e, s_i> s_i / |s_i|^2 (sec. 3.1): a projection only if the exemplars are orthogonal."""
    weights = e @ exemplars.T / (exemplars * exemplars).sum(axis=1)
    projected: FloatArray = weights @ exemplars
    return projected


@dataclass(frozen=True)
class TensionWeights:
    """Weights of misalignment, leakage and concentration in iT (the text gives none: ours, equal)."""

    misalignment: float = 1.0
    leakage: float = 1.0
    concentration: float = 1.0


EQUAL_TENSION = TensionWeights()


def tension(
    theta: FloatArray, leakage: FloatArray, sse: FloatArray | float, weights: TensionWeights = EQUAL_TENSION
) -> FloatArray:
    """Semantic tension iT >= 0."""
    total: FloatArray = (
        weights.misalignment * (1.0 - np.cos(theta))
        + weights.leakage * leakage
        + weights.concentration * (1.0 - np.asarray(sse))
    )
    return total


def concentration(p: FloatArray) -> FloatArray:
    """1 - H(p) / log V of each row of probabilities (n, V): 0 uniform, 1 a single token (also for V = 1)."""
    count = p.shape[1]
    if count < 2:
        return np.ones(len(p))
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.where(p > 0.0, p * np.log(p), 0.0).sum(axis=1)
    share: FloatArray = np.clip(1.0 - entropy / math.log(count), 0.0, 1.0)
    return share


class Potential(enum.Enum):
    """The goal-mismatch potential: COSINE (ours) has the restoring force the text describes, QUARTIC is the text's."""

    COSINE = "cosine"
    QUARTIC = "quartic"


def potential(theta: FloatArray, kappa: float = 1.0, form: Potential = Potential.COSINE) -> FloatArray:
    """U(theta) >= 0: kappa (1 - cos theta), or half its square times kappa."""
    bend = 1.0 - np.cos(theta)
    u: FloatArray = kappa * bend if form is Potential.COSINE else 0.5 * kappa * bend * bend
    return u


def force(theta: FloatArray, kappa: float = 1.0, form: Potential = Potential.COSINE) -> FloatArray:
    """F_s = -dU/dtheta: -kappa sin theta, or -kappa (1 - cos theta) sin theta.

    The second is -kappa theta^3 / 2 near 0, and not -kappa theta as the text says.
    """
    pull = np.sin(theta) if form is Potential.COSINE else (1.0 - np.cos(theta)) * np.sin(theta)
    f: FloatArray = -kappa * pull
    return f


class Motion(NamedTuple):
    """omega: d theta / d tau. acceleration: d omega / d tau; each one shorter than what it is the difference of."""

    omega: FloatArray
    acceleration: FloatArray


def motion(theta: FloatArray, tau: float = 1.0) -> Motion:
    """Rates of an angle's history (ticks,)."""
    omega = np.diff(theta) / tau
    return Motion(omega, np.diff(omega) / tau)


class Mass(NamedTuple):
    """m_s: inertia against nudges; inf where nudges have no effect or the wrong one, NaN where it is not known.

    r2: share of the acceleration's variance that the nudges explain. ticks: those that count.
    """

    m_s: float
    r2: float
    ticks: int


def mass(impulse: FloatArray, acceleration: FloatArray) -> Mass:
    """Semantic mass from a history (ticks,) of impulses and the accelerations that they caused.

    impulse: *signed* along theta: negative for a nudge towards the goal. m_s is 1 over the slope of acceleration on
    impulse. The text divides a size, never below 0, by a signed acceleration: masses below 0 and infinite ones.
    """
    known = np.isfinite(impulse) & np.isfinite(acceleration)
    x, y = impulse[known], acceleration[known]
    ticks = len(x)
    if ticks < 3 or np.ptp(x) <= 0.0:
        return Mass(math.nan, math.nan, ticks)
    x, y = x - x.mean(), y - y.mean()
    xx, xy, yy = float(x @ x), float(x @ y), float(y @ y)
    r2 = xy * xy / (xx * yy) if yy > 0.0 else 0.0
    return Mass(xx / xy if xy > 0.0 else math.inf, min(r2, 1.0), ticks)


def energy(
    theta: FloatArray,
    omega: FloatArray,
    m_s: float = 1.0,
    kappa: float = 1.0,
    form: Potential = Potential.COSINE,
) -> FloatArray:
    """E_s = m_s omega^2 / 2 + U(theta). A mass that is unknown or infinite counts as 1 (ours): rates still show."""
    known = m_s if math.isfinite(m_s) else 1.0
    total: FloatArray = 0.5 * known * np.square(omega) + potential(theta, kappa, form)
    return total


@dataclass(frozen=True)
class TickRule:
    """When a semantic tick ends: at a tool decision, at a boundary (sentence, section, syntax node) once ``usual``
    tokens have passed, and after ``most`` tokens in any case."""

    usual: int = 20
    most: int = 40

    def __post_init__(self) -> None:
        if not 1 <= self.usual <= self.most:
            raise ValueError(f"a tick of usually {self.usual} and at most {self.most} tokens: 1 <= usual <= most")

    def ends(self, tokens: npt.NDArray[np.int64], at_boundary: BoolArray, at_tool: BoolArray) -> BoolArray:
        """Which rows' tick ends here; tokens: since their last tick, this one included."""
        over: BoolArray = at_tool | (at_boundary & (tokens >= self.usual)) | (tokens >= self.most)
        return over


@dataclass(frozen=True)
class LinearityGate:
    """Whether a linear model of the response may be used (002 sec. 10.1 A): inside a narrow region, and only there.

    It opens after ``dwell`` ticks in a row with R^2 >= r2_least and SSE <= sse_most, and closes when SSE exceeds
    sse_most by ``margin`` or R^2 falls below its limit. R^2 of fewer than ``ticks_least`` ticks is not used (ours): of
    three points it exceeds .85 by chance in a quarter of all cases.
    """

    r2_least: float = 0.85
    sse_most: float = 0.45
    margin: float = 0.05
    dwell: int = 3
    ticks_least: int = 8
    is_open: bool = False
    run: int = 0

    def step(self, fit: Mass, sse: float) -> LinearityGate:
        """The gate one tick later."""
        linear = fit.ticks >= self.ticks_least and fit.r2 >= self.r2_least
        if self.is_open:
            stays = linear and sse <= self.sse_most + self.margin
            return replace(self, is_open=stays, run=self.run + 1 if stays else 0)
        run = self.run + 1 if linear and sse <= self.sse_most else 0
        return replace(self, is_open=run >= self.dwell, run=run)


def _unit(x: FloatArray) -> FloatArray:
    """Rows divided by their length; NaN for zero rows and for rows that are not finite."""
    x = np.asarray(x, dtype=np.float64)
    size = np.abs(x).max(axis=-1, keepdims=True)
    # Scaled first, so that lengths neither overflow nor vanish.
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = x / np.where(np.isfinite(size) & (size > 0.0), size, np.nan)
        unit: FloatArray = scaled / np.linalg.norm(scaled, axis=-1, keepdims=True)
    return unit
