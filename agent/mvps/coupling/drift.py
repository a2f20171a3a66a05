# SPDX-License-Identifier: Apache-2.0
"""The drift transfer function: how far C_2^W2 falls when requests change their replica (000 sec. 3, 001 sec. 19).

Q(t): share of the requests (or bytes) that each of N replicas gets, measured; Q_0 in BAU. With hash-consistent routing
no request is cold in BAU, and after a shift the new ones are:

    DeltaQ = Q - Q_0,    m_i = max(0, DeltaQ_i) / Q_i,    sum_i Q_i m_i = ||DeltaQ||_1 / 2

The sources take m_i = |DeltaQ_i|, which counts requests that left as cold, and divides by all requests where the
replica's own belong. Where the engine counts prefix-cache hits, measure m_i instead.

The mixture of warm and cold answers is m_i parts cold, W_2(cold, warm)^2 ~ sigma_drift^2 L_i for a history of L_i
tokens. So the *exposure* is the mean over replicas, with the 1/N that the sources lose when they write ||DeltaQ||_1,

    x = (1/N) sum_i m_i L_i                                  (tokens)
    predicted fall of C_2^W2 = ceiling (1 - exp(-x / scale))                                              (ours)

The sources divide W_2^2 by W_2max and let the fall grow without bound: with their own constants it is 5 to 80 on a
scale of 1. It saturates: C_2 cannot fall by more than 1, nor a cold replica be colder. For small x the fall is
(ceiling / scale) x, which is their linear form; the slope stands for sigma_drift^2 / W_2max and half the ceiling is at
x = scale ln 2.

``ceiling`` and ``scale`` are fitted to events whose ground truth is known. What the prediction leaves unexplained is
the AI's own: verdict and residual alarm below.
"""

from __future__ import annotations

import enum
import json
import math
from typing import NamedTuple

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student

from mvps.coherence.observation import FloatArray

LEAST_EVENTS = 20
_SCALES = 600
_DRAWS = 400


def shares(counts: FloatArray) -> FloatArray:
    """Q (..., N) from requests or bytes (..., N) that each replica got; NaN in a tick without any."""
    if (counts < 0.0).any():
        raise ValueError("counts of requests are not negative")
    total = counts.sum(axis=-1, keepdims=True)
    q: FloatArray = np.divide(counts, total, out=np.full(counts.shape, np.nan), where=total > 0.0)
    return q


def misses(q: FloatArray, q0: FloatArray) -> FloatArray:
    """m_i (..., N): share of replica i's requests that are new to it. 0 for a replica that gets none."""
    for one in (q, q0):
        known = one[~np.isnan(one).any(axis=-1)]
        if (known < 0.0).any() or not np.allclose(known.sum(axis=-1), 1.0, atol=1e-6):
            raise ValueError("shares of requests are not negative and sum to 1")
    gained = np.maximum(q - q0, 0.0)
    found: FloatArray = np.divide(gained, q, out=np.zeros(gained.shape), where=q > 0.0)
    found[np.isnan(gained)] = np.nan
    return found


def exposure(m: FloatArray, history: FloatArray) -> FloatArray:
    """x (...): mean over replicas of m_i times the mean history L_i in tokens of replica i's sessions."""
    x: FloatArray = (m * history).mean(axis=-1)
    return x


def text_change(q: FloatArray, q0: FloatArray, sigma_drift: float, history: float, w2_max: float) -> FloatArray:
    """Change of C_2^W2 by the text's formula, -sigma^2 ||DeltaQ||_1 L / W2_max (001 sec. 19.3), which has no bound."""
    change: FloatArray = -(sigma_drift**2) * np.abs(q - q0).sum(axis=-1) * history / w2_max
    return change


class Interval(NamedTuple):
    """An estimate and its 95 % interval."""

    value: float
    low: float
    high: float


class DriftTransfer(NamedTuple):
    """A calibrated transfer function.

    ceiling: largest fall. scale: exposure in tokens at which 63 % of it are reached. slope: fall per token of exposure
    where that is small, ceiling / scale; known far better than either when no event saturates.
    residual_limit: observed less predicted fall, which 95 % of events without a cause of the AI's own do not exceed.
    noise: standard deviation of the residuals. events: how many it was fitted to.
    """

    ceiling: Interval
    scale: Interval
    slope: Interval
    residual_limit: float
    noise: float
    events: int

    def predict(self, x: FloatArray) -> FloatArray:
        """Predicted fall of C_2^W2, >= 0, for exposures x."""
        fall: FloatArray = -self.ceiling.value * np.expm1(-np.asarray(x, dtype=np.float64) / self.scale.value)
        return fall


FORMAT = "mvps-drift-transfer/1"


def dump(transfer: DriftTransfer) -> str:
    """A transfer function as text, for :func:`load`."""
    return json.dumps({"format": FORMAT, **transfer._asdict()}, indent=1) + "\n"


def load(text: str) -> DriftTransfer:
    """What :func:`dump` wrote. ValueError says why it is none."""
    try:
        kept = json.loads(text)
        if kept.pop("format", None) != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        ceiling, scale, slope = (Interval(*map(float, kept.pop(name))) for name in ("ceiling", "scale", "slope"))
        limit, noise = float(kept.pop("residual_limit")), float(kept.pop("noise"))
        found = DriftTransfer(ceiling, scale, slope, limit, noise, int(kept.pop("events")))
        if kept:
            raise ValueError(f"it has more than that: {', '.join(sorted(kept))}")
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"it is no drift transfer ({error})") from None
    figures = (*ceiling, *scale, *slope, limit, noise)
    if not all(map(math.isfinite, figures)) or not (0.0 <= ceiling.value <= 1.0 and scale.value > 0.0):
        raise ValueError("it is no drift transfer: a ceiling lies in [0, 1], and a scale is positive")
    return found


def calibrate(x: FloatArray, fall: FloatArray, seed: int = 0) -> DriftTransfer:
    """Transfer function from events (n,): exposure x >= 0 and observed fall of C_2^W2 (BAU level less level after).

    Least squares, the scale by search on a grid, the ceiling within [0, 1]; intervals by bootstrap over events, widened
    for two fitted parameters. The residual limit is conformal: the ceil(.95 (n + 1))-th of the n residuals, each from a
    fit without the tenth of the events that it belongs to.
    """
    x, fall = np.asarray(x, dtype=np.float64), np.asarray(fall, dtype=np.float64)
    if x.shape != fall.shape or x.ndim != 1 or not (np.isfinite(x).all() and np.isfinite(fall).all()):
        raise ValueError("one finite exposure and one finite fall per event are needed")
    n = len(x)
    if n < LEAST_EVENTS:
        raise ValueError(f"a transfer function needs {LEAST_EVENTS} events, got {n}")
    if (x < 0.0).any() or (x > 0.0).sum() < LEAST_EVENTS // 2:
        raise ValueError(f"exposures are not negative, and {LEAST_EVENTS // 2} events must have some")
    grid = np.geomspace(0.05 * float(x[x > 0.0].min()), 20.0 * float(x.max()), _SCALES)
    shape = -np.expm1(-x[:, None] / grid)
    ceiling, scale = _least_squares(shape, fall, np.ones((1, n)), grid)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(n, np.full(n, 1.0 / n), _DRAWS).astype(np.float64)
    ceilings, scales = _least_squares(shape, fall, drawn, grid)
    folds = np.arange(n) % min(n, 10)
    weight = (folds != np.arange(folds.max() + 1)[:, None]).astype(np.float64)
    without = _least_squares(shape, fall, weight, grid)
    residual = fall + without[0][folds] * np.expm1(-x / without[1][folds])
    rank = min(math.ceil(0.95 * (n + 1)), n)
    # Percentiles of a bootstrap are those of a known variance and no fitted parameters.
    wider = float(student.ppf(0.975, n - 2) / norm.ppf(0.975)) * math.sqrt(n / (n - 2))
    return DriftTransfer(
        _interval(float(ceiling[0]), ceilings, wider, 0.0),
        _interval(float(scale[0]), scales, wider, 0.0),
        _interval(float(ceiling[0] / scale[0]), ceilings / scales, wider, 0.0),
        max(float(np.sort(residual)[rank - 1]), 0.0),
        float(residual.std(ddof=1)),
        n,
    )


def _least_squares(
    shape: FloatArray, fall: FloatArray, weight: FloatArray, grid: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Best ceiling and scale for each row of event weights (B, n); shape (n, scales)."""
    square, product = weight @ (shape * shape), weight @ (shape * fall[:, None])
    ceiling = np.clip(product / np.maximum(square, 1e-300), 0.0, 1.0)
    best = np.argmin(ceiling * (ceiling * square - 2.0 * product), axis=1)
    return ceiling[np.arange(len(weight)), best], grid[best]


def _interval(value: float, draws: FloatArray, wider: float = 1.0, least: float = -math.inf) -> Interval:
    low, high = (value + wider * (float(end) - value) for end in np.quantile(draws, (0.025, 0.975)))
    return Interval(value, max(low, least), high)


class Accuracy(NamedTuple):
    """How well a transfer function predicts events that it was not fitted to.

    ratio: summed observed over summed predicted fall, with its bootstrap interval. within_factor_2: share of events.
    ic_2: whether the interval lies within 20 % of 1 (000 sec. 6.5). p_ic3: "holds" if the interval lies within a factor
    of 2 of 1, "fails" if beyond a factor of 5, "open" in between, which the text leaves undecided (000 sec. 7.3).
    """

    ratio: Interval
    within_factor_2: float
    ic_2: bool
    p_ic3: str
    events: int


def held_out(transfer: DriftTransfer, x: FloatArray, fall: FloatArray, seed: int = 0) -> Accuracy:
    """Accuracy on events (n,) of another deployment; ValueError if they predict no fall at all."""
    predicted = transfer.predict(x)
    n = len(predicted)
    if n < 2 or not predicted.sum() > 0.0:
        raise ValueError("held-out events must predict a fall: give events that moved requests")
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1.0 / n), _DRAWS)
    sums = drawn @ predicted
    ratio = _interval(float(fall.sum() / predicted.sum()), (drawn @ fall)[sums > 0.0] / sums[sums > 0.0])
    moved = predicted > 0.0
    close = (fall[moved] >= 0.5 * predicted[moved]) & (fall[moved] <= 2.0 * predicted[moved])
    p_ic3 = "open"
    if ratio.low >= 0.5 and ratio.high <= 2.0:
        p_ic3 = "holds"
    elif ratio.high < 0.2 or ratio.low > 5.0:
        p_ic3 = "fails"
    return Accuracy(ratio, float(close.mean()), ratio.low >= 0.8 and ratio.high <= 1.2, p_ic3, n)


class Verdict(enum.Enum):
    """Where a fall of C_2^W2 comes from. ABSORBED: a fall was predicted and did not come."""

    NONE = "none"
    ROUTING_INDUCED = "routing-induced"
    AI_INTRINSIC = "AI-intrinsic"
    BOTH = "both"
    ABSORBED = "absorbed"


class Attribution(NamedTuple):
    """predicted: the fall that routing explains. residual: observed less predicted. alarm: residual over its limit."""

    verdict: Verdict
    predicted: float
    residual: float
    alarm: bool


def attribute(transfer: DriftTransfer, x: float, fall: float) -> Attribution:
    """What explains an observed fall of C_2^W2 at exposure x.

    A prediction counts where it exceeds the residual limit, that is, where it would show in one event. The alarm has a
    false-alarm rate of 5 % per event of the kind it was calibrated on.
    """
    if not (math.isfinite(x) and math.isfinite(fall) and x >= 0.0):
        raise ValueError(f"exposure and fall must be finite, exposure not negative: {x}, {fall}")
    predicted = float(transfer.predict(np.array(x)))
    residual = fall - predicted
    limit = transfer.residual_limit
    alarm = residual > limit
    if predicted > limit:
        verdict = Verdict.BOTH if alarm else Verdict.ROUTING_INDUCED if residual >= -limit else Verdict.ABSORBED
    else:
        verdict = Verdict.AI_INTRINSIC if alarm else Verdict.NONE
    return Attribution(verdict, predicted, residual, alarm)
