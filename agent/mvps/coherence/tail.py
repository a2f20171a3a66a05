# SPDX-License-Identifier: Apache-2.0
"""How rare is a score in BAU, when BAU ticks depend on each other and are few.

Three ideas, in the order in which they are used:

1. **Blocked cross-fitting.** A tick that helped to fit the baseline looks closer to it than a new one. So the
   window is cut into blocks of at least the autocorrelation time; each block is scored against a baseline
   fitted without it and without its neighbours (conformal cross-validation, Barber et al. 2021, on blocks).
2. **Conformal p-values on effective ticks.** p = (n_eff F + 1) / (n_eff + 1), F the share of BAU scores at
   least as large: n ticks with autocorrelation time tau count as n / tau, which errs towards fewer alarms (ours).
3. **An extrapolated tail.** Beyond the last tenth or so of the scores, a generalised Pareto tail is fitted to
   the exceedances (Pickands 1975; probability-weighted moments, Hosking & Wallis 1987), its shape shrunk
   towards 0 (exponential) and never lighter. Because the scale comes from few exceedances m, the predictive
   tail is used: for an exponential tail it is (1 + y / (m sigma))^-m, a Pareto shape of 1/m (ours). Levels
   beyond 1 - 1/(n_eff + 1), .999 in a short window, are therefore extrapolated, on the side of fewer alarms.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mvps.coherence.observation import FloatArray

IndexArray = NDArray[np.intp]

_BODY_KNOTS = 64
_MAX_SHAPE = 0.5
_SHAPE_PRIOR = 20.0  # exceedances that the prior "exponential tail" is worth
# Scores are in units of BAU's own noise; what differs less than this is rounding. Where BAU is constant, rounding would
# otherwise break ties and look like evidence.
_DECIMALS = 6


def autocorrelation_time(series: FloatArray) -> float:
    """tau = 1 + 2 sum of autocorrelations, in ticks, >= 1 (initial positive sequence, Geyer 1992).

    NaNs (absent ticks) are replaced by the mean; a constant series has tau 1.
    """
    x = np.asarray(series, dtype=np.float64)
    known = np.isfinite(x)
    if known.sum() < 4:
        return 1.0
    x = np.where(known, x, x[known].mean())
    x = x - x.mean()
    variance = float(x @ x)
    if variance <= 1e-24 * len(x):
        return 1.0
    size = 1 << (2 * len(x) - 1).bit_length()
    spectrum = np.fft.rfft(x, size)
    rho = np.fft.irfft(spectrum * spectrum.conj(), size)[: len(x) // 2] / variance
    pairs = rho[0 : len(rho) - 1 : 2] + rho[1::2][: len(rho) // 2]
    negative = np.flatnonzero(pairs <= 0.0)
    stop = int(negative[0]) if len(negative) else len(pairs)
    return max(1.0, float(2.0 * pairs[:stop].sum() - 1.0))


def block_length(tau: float, ticks: int) -> int:
    """Block length in ticks for a series with autocorrelation time tau: 2 tau, at most a fifth of the window."""
    return max(1, min(math.ceil(2.0 * tau), ticks // 5))


def blocked_scores(ticks: int, block: int, score: Callable[[IndexArray, IndexArray], FloatArray]) -> FloatArray:
    """Out-of-sample scores of every tick, shape (ticks, ...), by blocked cross-fitting.

    score(train, test): fits on the tick indices ``train`` and returns one row per index in ``test``. There are
    5 to 10 contiguous test blocks; ``block`` ticks on either side of a test block are left out of its training.
    """
    folds = max(5, min(10, ticks // max(block, 1)))
    everything = np.arange(ticks)
    rows = []
    for test in np.array_split(everything, folds):
        outside = (everything < test[0] - block) | (everything > test[-1] + block)
        rows.append(score(everything[outside], test))
    return np.concatenate(rows, axis=0)


@dataclass(frozen=True)
class Tail:
    """Survival function of a score in BAU, as a conformal body and a generalised Pareto tail.

    knots, log_p: increasing scores and their log conformal p-values, up to the threshold (the last knot).
    log_beyond: log conformal p-value of exceeding the threshold at all; below log_p[-1] where scores are tied.
    scale, shape: of the predictive tail beyond it: log p = log_beyond - log1p(shape y / scale) / shape.
    ticks, effective: BAU ticks behind it and what they are worth independently.
    """

    knots: tuple[float, ...]
    log_p: tuple[float, ...]
    log_beyond: float
    scale: float
    shape: float
    ticks: int
    effective: float

    def __post_init__(self) -> None:
        if len(self.knots) != len(self.log_p) or not self.knots:
            raise ValueError("a tail needs as many p-values as knots, and at least one")
        if not (self.scale > 0.0 and self.shape > 0.0):
            raise ValueError("a tail needs a positive scale and shape")
        rising = all(a < b for a, b in zip(self.knots, self.knots[1:], strict=False))
        falling = all(a > b for a, b in zip(self.log_p, self.log_p[1:], strict=False))
        if not (rising and falling and self.log_p[0] <= 0.0 and self.log_beyond <= self.log_p[-1]):
            raise ValueError("a tail needs rising knots and falling log p-values, none above 0")

    @classmethod
    def fit(cls, scores: FloatArray, least_scale: float) -> Tail:
        """Tail of out-of-sample BAU scores, in tick order, shape (n,).

        least_scale: smallest scale of the exceedances, > 0. It stands in when BAU scores hardly vary.
        """
        n = len(scores)
        if n < 20:
            raise ValueError(f"a tail needs at least 20 scores, got {n}")
        scores = np.round(scores, _DECIMALS)
        effective = n / autocorrelation_time(scores)
        ordered = np.sort(scores)
        beyond = min(max(0.1, 20.0 / effective), 0.25)
        body = int(n * (1.0 - beyond))
        # Distinct scores only, each with the share of scores at least as large.
        knots, first = np.unique(ordered[: body + 1], return_index=True)
        if len(knots) > _BODY_KNOTS:
            pick = np.unique(np.linspace(0, len(knots) - 1, _BODY_KNOTS).astype(int))
            knots, first = knots[pick], first[pick]
        p = np.minimum((effective * (n - first) / n + 1.0) / (effective + 1.0), 1.0)
        threshold = float(knots[-1])
        excess = np.sort(ordered[ordered > threshold] - threshold)
        count = max(len(excess) * effective / n, 2.0)
        scale, shape = least_scale, 0.0
        if len(excess) >= 2:
            shape = _pareto_shape(excess) * count / (count + _SHAPE_PRIOR)
            shape = min(max(shape, 0.0), _MAX_SHAPE)
            scale = max(float(excess.mean()) * (1.0 - shape), least_scale)
        return cls(
            tuple(knots.tolist()),
            tuple(np.log(p).tolist()),
            math.log((effective * len(excess) / n + 1.0) / (effective + 1.0)),
            scale,
            shape + 1.0 / count,
            n,
            effective,
        )

    def log_survival(self, score: float) -> float:
        """log P(BAU score >= score)."""
        score = round(score, _DECIMALS)
        if score <= self.knots[0]:
            return self.log_p[0] if score == self.knots[0] else 0.0
        if score == self.knots[-1]:
            return self.log_p[-1]
        if score > self.knots[-1]:
            excess = self.shape * (score - self.knots[-1]) / self.scale
            return self.log_beyond - math.log1p(excess) / self.shape
        i = bisect_right(self.knots, score)
        left, right = self.knots[i - 1], self.knots[i]
        part = (score - left) / (right - left)
        return self.log_p[i - 1] + part * (self.log_p[i] - self.log_p[i - 1])

    def score_at(self, log_p: float) -> float:
        """Smallest score whose log survival is at most ``log_p`` (< 0), to the precision scores have."""
        if log_p <= self.log_beyond:
            excess = math.expm1(self.shape * (self.log_beyond - log_p)) / self.shape
            score = self.knots[-1] + self.scale * excess
        elif log_p < self.log_p[-1]:
            score = self.knots[-1] + 10.0**-_DECIMALS
        else:
            score = float(np.interp(-log_p, -np.array(self.log_p), np.array(self.knots)))
        rounded = round(score, _DECIMALS)
        return rounded if self.log_survival(rounded) <= log_p else round(rounded + 10.0**-_DECIMALS, _DECIMALS)

    @property
    def supported_level(self) -> float:
        """Highest level that the ticks themselves support; beyond it cut-offs are extrapolated."""
        return 1.0 - 1.0 / (self.effective + 1.0)


def _pareto_shape(excess: FloatArray) -> float:
    """Shape of a generalised Pareto sample, sorted ascending, by probability-weighted moments."""
    m = len(excess)
    above = 1.0 - (np.arange(1, m + 1) - 0.35) / m
    mean = float(excess.mean())
    weighted = float((above * excess).mean())
    gap = mean - 2.0 * weighted
    return 2.0 - mean / gap if gap > 0.0 else _MAX_SHAPE


def contaminated(values: FloatArray) -> NDArray[np.bool_]:
    """Which ticks of a calibration window hold a fault rather than BAU's own tail (ours), shape (T,).

    An exponential tail through the .5 and .8 quantiles (untouched by 20 % contamination) is extrapolated to
    where T ticks should not reach, and doubled: that is the fence. Neighbouring ticks beyond it are a fault
    episode; a lone tick must lie three times as far out, because real tails are heavier than exponential and
    cutting them makes false alarms. Nothing is contaminated when the quantiles coincide, nor are NaNs.
    """
    known = values[np.isfinite(values)]
    nothing = np.zeros(len(values), dtype=bool)
    if len(known) < 5:
        return nothing
    middle, high = np.quantile(known, (0.5, 0.8))
    reach = 2.0 * (high - middle) / math.log(2.5) * math.log(len(known) / 2.0)
    if reach <= 0.0:
        return nothing
    beyond = values > middle + reach
    neighbour = nothing.copy()
    neighbour[1:] |= beyond[:-1]
    neighbour[:-1] |= beyond[1:]
    outside: NDArray[np.bool_] = (beyond & neighbour) | (values > middle + 3.0 * reach)
    return outside
