# SPDX-License-Identifier: Apache-2.0
"""How far a token distribution may be moved: the tilt by an objective under a bound (002 sec. 4.4, 8.1, app. B.4).

The distribution q that has the largest E_q[J] among all with KL(q||p) <= epsilon is

    q(u) = p(u) exp(J(u) / eta) / Z,        eta > 0,

and eta is the one number that makes KL(q||p) = epsilon, unless even q = p restricted to the best J lies nearer than
epsilon. In the gain beta = s / eta with s = max J - min J and a = (J - max J) / s in [-1, 0]:

    KL(beta) = beta E_q[a] - log Z,    Z = E_p[exp(beta a)],    dKL/dbeta = beta Var_q(a) >= 0,

so the root is unique, and sqrt(KL) is nearly linear in beta: Newton's method on it inside a bracket needs a few steps.
The result is never on the far side of the bound: whatever has not converged takes the bracket's near end. (The text
searches a temperature in [1, 32], which leaves the budget broken for large nudges; docs/errata.md.)

Conventions. Rows are requests, columns candidates. Log weights of -inf, and those whose probability is 0 in double
precision, are outside the support and stay as they are. A row with no finite maximum (NaN, +inf, nothing in the
support), with J that is not finite on the support or the same everywhere, or with no budget, is not moved: its change
is exactly 0. Budgets are in nats; logits are those after division by the request's temperature.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mvps.coherence.observation import FloatArray

BoolArray = npt.NDArray[np.bool_]
MODES = ("kl", "box", "l2")
FEW_ROWS = 3  # up to so many, a loop over rows takes less time than the calls into numpy that it saves

_MAX_GAIN = 700.0  # exp(-700) is still a normal double: more gain would change nothing that can be sampled
_STEPS = 60
_SLACK = 1e-5
_LEAST_SLACK = 1e-14  # and absolute: KL itself is not known better than this


class Tilt(NamedTuple):
    """A bounded move of each row.

    log_p: (n, k) log of the normalised weights. change: (n, k) log q - log p, 0 where nothing was moved and outside
    the support. kl: (n,) KL(q||p) in nats. eta: (n,) the multiplier, inf where the row was not moved.
    """

    log_p: FloatArray
    change: FloatArray
    kl: FloatArray
    eta: FloatArray

    @property
    def q(self) -> FloatArray:
        """Moved probabilities (n, k); 0 outside the support."""
        moved: FloatArray = np.exp(self.log_p + self.change)
        return moved


def log_normalised(log_weights: FloatArray) -> FloatArray:
    """log softmax of each row, as doubles; rows without a finite maximum become all -inf."""
    z = np.asarray(log_weights, dtype=np.float64)
    if 0 < len(z) <= FEW_ROWS:
        return np.array([_row_normalised(row) for row in z.tolist()])
    top = z.max(axis=1, keepdims=True)
    usable = np.isfinite(top)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        shifted = z - top
        normal: FloatArray = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return normal if usable.all() else np.where(usable, normal, -np.inf)


def _row_normalised(z: list[float]) -> list[float]:
    """``log_normalised`` of one row."""
    top = max(z)
    # NaN compares as it likes, but wherever it stands the sum shows it; so does an infinite maximum.
    total = sum(math.exp(x - top) for x in z)
    if not 0.0 < total < math.inf:
        return [-math.inf] * len(z)
    log_total = math.log(total)
    return [x - top - log_total for x in z]


def divergence(log_p: FloatArray, log_q: FloatArray) -> FloatArray:
    """KL(q||p) (n,) in nats of normalised rows; inf where q has mass outside the support of p."""
    q = np.exp(log_q)
    with np.errstate(invalid="ignore"):
        terms = np.where(q > 0.0, q * (log_q - log_p), 0.0)
    # Rounding can take a sum that is 0 below it.
    total: FloatArray = np.maximum(terms.sum(axis=1), 0.0)
    return total


def tilt(log_weights: FloatArray, objective: FloatArray, epsilon: FloatArray | float, eta_floor: float = 0.0) -> Tilt:
    """The best q with KL(q||p) <= epsilon.

    log_weights, objective: (n, k). epsilon: nats, (n,) or one for all. eta_floor: smallest eta (ours): where all J
    are nearly equal, spending the whole budget would amplify their noise.
    """
    return tilt_normalised(log_normalised(log_weights), objective, epsilon, eta_floor)


def tilt_normalised(
    log_p: FloatArray, objective: FloatArray, epsilon: FloatArray | float, eta_floor: float = 0.0
) -> Tilt:
    """``tilt`` of rows that are normalised already."""
    budget = _limits(epsilon, log_p[:, 0])
    if 0 < len(log_p) <= FEW_ROWS:
        return _tilt_few(log_p, objective, budget, eta_floor)
    p, a, spread = _prepared(log_p, objective)
    with np.errstate(divide="ignore"):
        most = np.minimum(spread / eta_floor, _MAX_GAIN) if eta_floor > 0.0 else np.full(spread.shape, _MAX_GAIN)
    moved = (spread > 0.0) & (budget > 0.0)
    gain, kl, log_z = _gains(p, a, budget, np.where(moved, most, 0.0))
    change = np.where(p > 0.0, gain[:, None] * a - log_z[:, None], 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        eta = np.where(gain > 0.0, spread / gain, np.inf)
    return Tilt(log_p, change, kl, eta)


def clamp(log_weights: FloatArray, objective: FloatArray, delta: FloatArray | float, eta: float = 1.0) -> Tilt:
    """The tilt at a given eta with every logit moved by at most delta from the middle (the box form).

    Logit changes are (J - E_p[J]) / eta, clamped to [-delta, delta]; then KL(q||p) <= delta^2 / 2.
    """
    log_p = log_normalised(log_weights)
    p, a, spread = _prepared(log_p, objective)
    limit = _limits(delta, spread)
    wanted = (spread / eta)[:, None] * (a - (p * a).sum(axis=1, keepdims=True))
    used = np.where((spread > 0.0) & (limit > 0.0), eta, np.inf)
    return _by_logits(log_p, p, np.clip(wanted, -limit[:, None], limit[:, None]), used)


def shrink(log_weights: FloatArray, objective: FloatArray, delta: FloatArray | float, eta: float = 1.0) -> Tilt:
    """The tilt at a given eta with the L2 norm of its logit changes at most delta (the text's form).

    The norm is that of the changes less their mean over the support: a constant added to all logits moves nothing
    and must not count (the text's norm counts it).
    """
    log_p = log_normalised(log_weights)
    p, a, spread = _prepared(log_p, objective)
    limit = _limits(delta, spread)
    wanted = (spread / eta)[:, None] * centred(a, p > 0.0)
    norm = np.sqrt((wanted * wanted).sum(axis=1))
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.where(norm > limit, limit / norm, 1.0)
        used = np.where((spread > 0.0) & (scale > 0.0), eta / scale, np.inf)
    return _by_logits(log_p, p, scale[:, None] * wanted, used)


def centred(change: FloatArray, support: BoolArray) -> FloatArray:
    """Logit changes less their mean over the support: what is left when no constant counts; 0 outside."""
    count = np.maximum(support.sum(axis=1, keepdims=True), 1)
    mean = np.where(support, change, 0.0).sum(axis=1, keepdims=True) / count
    return np.where(support, change - mean, 0.0)


def _limits(given: FloatArray | float, rows: FloatArray) -> FloatArray:
    """One limit per row, not below 0; a limit that is not a number is 0."""
    limits: FloatArray = np.fmax(given, 0.0)
    return limits if limits.shape == rows.shape else np.full_like(rows, limits)


def _prepared(log_p: FloatArray, objective: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """p, J scaled to a in [-1, 0] and its spread s >= 0; a row that must not move has spread 0."""
    p = np.exp(log_p)
    j = np.asarray(objective, dtype=np.float64)
    inside = p > 0.0
    best = np.where(inside, j, -np.inf).max(axis=1)
    worst = np.where(inside, j, np.inf).min(axis=1)
    with np.errstate(invalid="ignore", over="ignore"):
        spread = best - worst
        # NaN and infinite J end here too, as do rows with nothing inside: -inf - inf.
        usable = np.isfinite(spread) & (spread > 0.0)
        spread = np.where(usable, spread, 0.0)
        a = np.where(inside & usable[:, None], (j - best[:, None]) / np.where(usable, spread, 1.0)[:, None], 0.0)
    return p, a, spread


def _gains(p: FloatArray, a: FloatArray, budget: FloatArray, most: FloatArray) -> tuple[FloatArray, ...]:
    """Gain beta in [0, most] with KL(beta) = budget or beta = most, its KL and log Z; all 0 where most is 0."""
    slack = np.maximum(_SLACK * budget, _LEAST_SLACK)
    least = budget - slack
    aim = np.sqrt(np.maximum(budget - 0.5 * slack, 0.0))
    powers = np.empty((*a.shape, 4))
    powers[:, :, 0] = 1.0
    powers[:, :, 1] = a
    np.multiply(a, a, out=powers[:, :, 2])
    np.multiply(powers[:, :, 2], a, out=powers[:, :, 3])
    low, high = np.zeros_like(most), np.full_like(most, np.inf)
    moved = open_rows = most > 0.0
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        # sqrt(KL) = beta sqrt(var / 2) (1 + beta skew / (3 var)) + ...: solved for beta, to second order.
        _, mean, square, cube = np.matmul(p[:, None, :], powers)[:, 0].T
        variance = square - mean * mean
        gain = aim * np.sqrt(2.0 / np.maximum(variance, 0.0))
        skew = cube - mean * (3.0 * square - 2.0 * mean * mean)
        gain = np.fmin(gain / np.maximum(1.0 + gain * skew / (3.0 * variance), 0.2), most)
        for _ in range(_STEPS):
            z, mean, square, kl, log_z = _moments(p, a, powers[:, :, :3], gain)
            near = kl <= budget
            low = np.where(open_rows & near, gain, low)
            open_rows = open_rows & ~(near & ((kl >= least) | (gain >= most)))
            if not open_rows.any():
                break
            high = np.where(near, high, gain)
            root = np.sqrt(kl)
            step = np.minimum(gain - (root - aim) * 2.0 * root / (gain * (square / z - mean * mean)), most)
            # Without a far end yet, the largest gain is tried; steps that are not numbers are not inside.
            outside = np.where(np.isfinite(high), 0.5 * (low + high), most)
            gain = np.where((step > low) & (step < high), step, outside)
        if not np.array_equal(gain, low):
            _, _, _, kl, log_z = _moments(p, a, powers[:, :, :3], low)
    return low, np.where(moved, kl, 0.0), np.where(moved, log_z, 0.0)


def _tilt_few(log_p: FloatArray, objective: FloatArray, budget: FloatArray, eta_floor: float) -> Tilt:
    """``tilt_normalised`` of so few rows that calling numpy would take longer than the arithmetic."""
    rows = zip(log_p.tolist(), objective.tolist(), budget.tolist(), strict=True)
    change, kl, eta = zip(*(_tilt_row(*row, eta_floor) for row in rows), strict=True)
    return Tilt(log_p, np.array(change), np.array(kl), np.array(eta))


def _tilt_row(
    log_p: list[float], objective: list[float], budget: float, eta_floor: float
) -> tuple[list[float], float, float]:
    """Change, KL and eta of one row."""
    p = [math.exp(x) for x in log_p]
    inside = [j for weight, j in zip(p, objective, strict=True) if weight > 0.0]
    unmoved = [0.0] * len(p), 0.0, math.inf
    # NaN would compare as it likes below.
    if not inside or not budget > 0.0 or not all(map(math.isfinite, inside)):
        return unmoved
    best = max(inside)
    spread = best - min(inside)
    if not 0.0 < spread < math.inf:
        return unmoved
    a = [(j - best) / spread if weight > 0.0 else 0.0 for weight, j in zip(p, objective, strict=True)]
    most = min(spread / eta_floor, _MAX_GAIN) if eta_floor > 0.0 else _MAX_GAIN
    gain, kl, log_z = _gain_of_row(p, a, budget, most)
    if not gain > 0.0:
        return unmoved
    return [gain * x - log_z if weight > 0.0 else 0.0 for weight, x in zip(p, a, strict=True)], kl, spread / gain


def _gain_of_row(p: list[float], a: list[float], budget: float, most: float) -> tuple[float, float, float]:
    """Gain in (0, most], KL and log Z of one row, by the steps of ``_gains``."""
    slack = max(_SLACK * budget, _LEAST_SLACK)
    least, aim = budget - slack, math.sqrt(max(budget - 0.5 * slack, 0.0))
    terms = [(weight, x) for weight, x in zip(p, a, strict=True) if weight > 0.0]
    mean = square = cube = 0.0
    for weight, x in terms:
        mean += weight * x
        square += weight * x * x
        cube += weight * x * x * x
    variance = square - mean * mean
    gain = most
    if variance > 0.0:
        gain = aim * math.sqrt(2.0 / variance)
        skew = cube - mean * (3.0 * square - 2.0 * mean * mean)
        gain = min(gain / max(1.0 + gain * skew / (3.0 * variance), 0.2), most)
    low, high, kept = 0.0, math.inf, (0.0, 0.0)
    for _ in range(_STEPS):
        z = first = square = 0.0
        for weight, x in terms:
            moved = weight * math.exp(gain * x)
            z += moved
            first += moved * x
            square += moved * x * x
        mean, log_z = first / z, math.log(z)
        kl = max(gain * mean - log_z, 0.0)
        if kl <= budget:
            low, kept = gain, (kl, log_z)
            if kl >= least or gain >= most:
                break
        else:
            high = gain
        curve = gain * (square / z - mean * mean)
        root = math.sqrt(kl)
        step = min(gain - (root - aim) * 2.0 * root / curve, most) if curve else math.nan
        gain = step if low < step < high else 0.5 * (low + high) if high < math.inf else most
    return low, *kept


def _moments(p: FloatArray, a: FloatArray, powers: FloatArray, gain: FloatArray) -> tuple[FloatArray, ...]:
    """Z, mean of a, sum of w a^2, KL and log Z under weights w = p exp(gain a)."""
    weight = p * np.exp(gain[:, None] * a)
    z, first, square = np.matmul(weight[:, None, :], powers)[:, 0].T
    mean = first / z
    log_z = np.log(z)
    return z, mean, square, np.maximum(gain * mean - log_z, 0.0), log_z


def _by_logits(log_p: FloatArray, p: FloatArray, wanted: FloatArray, eta: FloatArray) -> Tilt:
    """The tilt with given logit changes."""
    z = (p * np.exp(wanted)).sum(axis=1, keepdims=True)
    moved = np.isfinite(eta)[:, None] & (p > 0.0)
    with np.errstate(divide="ignore"):
        change = np.where(moved, wanted - np.log(z), 0.0)
    return Tilt(log_p, change, divergence(log_p, log_p + change), eta)
