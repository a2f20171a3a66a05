# SPDX-License-Identifier: Apache-2.0
"""The five stocks M, F, I, A, C of a system, how they fill and empty, and where they tip over (002 sec. 2.1-2.3).

    R_k' = clip(R_k + G_k - L_k - mu_k R_k + sum_j (alpha_jk C_jk - C_kj), 0, K_k)

alpha_jk multiplies what k *receives* (the text's update leaves it out), and no stock falls below 0. Conversions are
bounded by a share of the stock and by a budget; the text uses alpha for the share as well.

**Tipping.** With the text's gain, a function of an exogenous load alone, the update is linear in R: one fixed point,
no hysteresis. Two healthy and degraded states need a gain that depends on the stock, as repair needs something left to
repair with: gamma H(R), H the Hill function R^h / (theta^h + R^h). At load x fixed points solve

    f(R; x) = gamma H(R) + s - x - mu R = 0,   so that   x(R) = gamma H(R) + s - mu R

is the whole curve of them, and its turning points, gamma H'(R) = mu, are the saddle-nodes: the load at which the
healthy state vanishes going up, and the smaller one at which the degraded state vanishes coming down.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mvps.coherence.observation import FloatArray
from mvps.surplus.trust_region import BoolArray

FLOWS = ("material", "financial", "institutional", "attention", "cognition")
_GRID = 2000
_HALVINGS = 80


def feasible(wanted: FloatArray, stock: FloatArray, share: FloatArray, budget: FloatArray) -> FloatArray:
    """Conversions C (flows, flows) from row to column that the stocks allow.

    Each is at most share[k, j] of the stock R_k, and a row's sum at most its budget and the stock itself: a row that
    wants more is scaled down as a whole. Nothing is converted into itself, and nothing negative.
    """
    limited = np.clip(wanted, 0.0, np.maximum(share, 0.0) * stock[:, None])
    np.fill_diagonal(limited, 0.0)
    total = limited.sum(axis=1)
    most = np.minimum(np.maximum(budget, 0.0), stock)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        scale = np.where(total > most, most / total, 1.0)
    allowed: FloatArray = limited * scale[:, None]
    return allowed


def update(
    stock: FloatArray,
    generation: FloatArray,
    loss: FloatArray,
    leak: FloatArray,
    conversions: FloatArray,
    exchange: FloatArray,
    capacity: FloatArray,
) -> FloatArray:
    """Stocks (flows,) one step later. exchange: alpha (flows, flows), what one unit of the row buys of the column."""
    received = (exchange * conversions).sum(axis=0)
    spent = conversions.sum(axis=1)
    after: FloatArray = np.clip(stock + generation - loss - leak * stock + received - spent, 0.0, capacity)
    return after


def text_gain(load: FloatArray, gamma: float, theta: float, h: float, beta: float) -> FloatArray:
    """The text's gain as a function of load: gamma x^h / (theta^h + x^h) - beta x."""
    gain: FloatArray = gamma * _hill(load, theta, h) - beta * load
    return gain


class FixedPoints(NamedTuple):
    """Stocks that the update leaves as they are, ascending, and which of them small disturbances leave alone."""

    stock: FloatArray
    stable: BoolArray


class SaddleNodes(NamedTuple):
    """Where states vanish: at load ``collapse`` the healthy one, of stock collapse_stock; at ``recovery``, below it,
    the degraded one."""

    collapse: float
    collapse_stock: float
    recovery: float
    recovery_stock: float

    @property
    def gap(self) -> float:
        """Width of the hysteresis in load."""
        return self.collapse - self.recovery


class Loop(NamedTuple):
    """A slow ramp of load up and down again. load: (steps,) ascending; up, down: the stock at each."""

    load: FloatArray
    up: FloatArray
    down: FloatArray

    def gap(self, healthy: float) -> float:
        """Load at which the stock falls below ``healthy`` going up, less that at which it is back coming down.

        0 where it never falls, or is back where it fell.
        """
        fallen, back = self.up < healthy, self.down >= healthy
        if not fallen.any():
            return 0.0
        collapse = self.load[fallen.argmax()]
        recovery = self.load[np.flatnonzero(back)[-1]] if back.any() else 0.0
        return max(float(collapse - recovery), 0.0)


@dataclass(frozen=True)
class Reservoir:
    """One stock whose repair depends on itself.

    gamma: most that repair adds a step. theta: stock at which it adds half of it. h: steepness. leak: mu. source: s,
    what comes in a step in any case. capacity: K. All in the stock's unit.
    """

    gamma: float
    theta: float
    h: float
    leak: float
    source: float
    capacity: float

    def __post_init__(self) -> None:
        if not (self.gamma >= 0.0 and self.theta > 0.0 and self.h > 0.0 and self.capacity > 0.0):
            raise ValueError("gamma must not be below 0, and theta, h and capacity must lie above it")
        if not 0.0 <= self.leak <= 1.0:
            raise ValueError(f"a leak is a share of the stock in [0, 1], not {self.leak}")

    def drift(self, stock: FloatArray, load: float) -> FloatArray:
        """f(R; x): change in one step, before the limits."""
        f: FloatArray = self.load_at(stock) - load
        return f

    def step(self, stock: FloatArray, load: float) -> FloatArray:
        """The stock one step later."""
        after: FloatArray = np.clip(stock + self.drift(stock, load), 0.0, self.capacity)
        return after

    def load_at(self, stock: FloatArray) -> FloatArray:
        """x(R): the load that holds a stock where it is."""
        x: FloatArray = self.gamma * _hill(stock, self.theta, self.h) + self.source - self.leak * stock
        return x

    def fixed_points(self, load: float) -> FixedPoints:
        """All fixed points in [0, K], the limits themselves included where the drift pushes against them."""
        # Denser towards 0, where an empty stock and the unstable point beside it may lie close together.
        grid = self.capacity * np.linspace(0.0, 1.0, _GRID + 1) ** 2
        inner = _roots(lambda r: self.drift(r, load), grid)
        points = inner[(inner > 0.0) & (inner < self.capacity)].tolist()
        slopes = (self.gamma * _hill_slope(np.array(points), self.theta, self.h) - self.leak).tolist()
        stable = [abs(1.0 + slope) < 1.0 for slope in slopes]
        if self.drift(grid[:1], load)[0] <= 0.0:
            points, stable = [0.0, *points], [True, *stable]
        if self.drift(grid[-1:], load)[0] >= 0.0:
            points, stable = [*points, self.capacity], [*stable, True]
        return FixedPoints(np.array(points), np.array(stable, dtype=bool))

    def saddle_nodes(self) -> SaddleNodes | None:
        """The two turning points of x(R) below the capacity; None where the stock cannot be bistable.

        Where x(R) still rises at the capacity, the capacity ends the healthy branch.
        """
        grid = np.linspace(0.0, self.capacity, _GRID + 1)[1:]
        turns = _roots(lambda r: self.gamma * _hill_slope(r, self.theta, self.h) - self.leak, grid)
        slope = self.gamma * _hill_slope(grid, self.theta, self.h) - self.leak
        if slope[-1] > 0.0:
            turns = np.append(turns, self.capacity)
        if slope[0] > 0.0 and len(turns) == 1:
            # x(R) rises from an empty stock on: that is where the degraded state lies.
            turns = np.insert(turns, 0, 0.0)
        if len(turns) != 2:
            return None
        recovery, collapse = self.load_at(turns)
        return SaddleNodes(float(collapse), float(turns[1]), float(recovery), float(turns[0]))

    def loop(self, loads: FloatArray, settle: int = 2000) -> Loop:
        """Stocks along loads (ascending) and back, with ``settle`` steps at each; begins at the capacity."""
        stock = np.array([self.capacity])
        up, down = np.empty(len(loads)), np.empty(len(loads))
        for stocks, order in ((up, range(len(loads))), (down, reversed(range(len(loads))))):
            for i in order:
                for _ in range(settle):
                    after = self.step(stock, float(loads[i]))
                    if np.array_equal(after, stock):
                        break
                    stock = after
                stocks[i] = stock[0]
        return Loop(np.asarray(loads, dtype=np.float64), up, down)


def _hill(x: FloatArray, theta: float, h: float) -> FloatArray:
    power = np.power(np.maximum(x, 0.0) / theta, h)
    share: FloatArray = power / (1.0 + power)
    return share


def _hill_slope(x: FloatArray, theta: float, h: float) -> FloatArray:
    power = np.power(np.maximum(x, 0.0) / theta, h)
    with np.errstate(divide="ignore", invalid="ignore"):
        slope: FloatArray = h * power / (np.maximum(x, 0.0) * np.square(1.0 + power))
    return slope


def _roots(f: Callable[[FloatArray], FloatArray], grid: FloatArray) -> FloatArray:
    """Where f changes sign between grid points, by halving all brackets together."""
    values = f(grid)
    exact = grid[values == 0.0]
    bracket = np.flatnonzero(values[:-1] * values[1:] < 0.0)
    low, high, sign = grid[bracket], grid[bracket + 1], np.sign(values[bracket])
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        same = np.sign(f(middle)) == sign
        low, high = np.where(same, middle, low), np.where(same, high, middle)
    return np.sort(np.concatenate([exact, 0.5 * (low + high)]))
