# SPDX-License-Identifier: Apache-2.0
"""D^2 of each surface and of both together, and the limits that quiet ticks keep (000 sec. 4.1, 001 sec. 20.1).

    D^2_joint = (z - mu)^T Sigma_joint^-1 (z - mu),   D^2_net, D^2_AI the same with the diagonal blocks

so that D^2_joint = D^2_net + D^2_AI exactly where the cross block is 0. For any covariance D^2_joint is at least the
larger of the two; it may be smaller than their sum, where the surfaces deviate together as they do in BAU.

Limits, by mode:

- ``chi2``: as the sources state (7.81 / 11.34 on 3 axes, 12.59 / 16.81 on 6): right for a known covariance only.
- ``finite-sample``: mean and covariance come from n ticks that remember their past. A sample covariance is a sum of
  squares whose weights w_k are the spectrum of the autocorrelations at the frequencies k/n, k = 1 .. n - 1 (from the
  autoregressions of the window, averaged over a block's p axes). Its inverse is on average m Sigma^-1, where

      1/m = sum_k w_k / (1 + (p + 1) m w_k)

  With the nu for which a Wishart matrix of the same mean has that m too, and tau = n - sum_k w_k,             (ours)

      D^2 ~ (1 + tau/n) (n - 1)/(n - tau)  nu p/(nu - p + 1)  F(p, nu - p + 1)

  which for independent ticks (w_k = 1, nu = n - 1) is Hotelling's law of a new tick.
- ``empirical``: conformal limits over blocked, cross-fitted ticks of the window (:mod:`mvps.coherence.tail`), for ticks
  that are not Gaussian. The default.

The covariance is not shrunk, because the second law is that of the sample covariance; windows under 60 ticks are
refused.

**Floor** (ours). With one, Sigma + floor^2 I stands for Sigma everywhere: what moves by less than the floor is of no
account, axes that never varied in the window count from then on, and those that varied in a few ticks of it only do not
blow the limits up. Without one (0) the definition is the sources', and axes that do not vary are left out. With a floor
far above the axes' own deviations the cross block says nothing, and Phase 3b does not happen; the finite-sample law and
chi2 are then limits that quiet ticks exceed less often than they say, while the empirical ones stay what they are.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.stats import f as f_distribution

from mvps.coherence.distance import CUTOFF_MODES, LEVELS
from mvps.coherence.observation import FloatArray
from mvps.coherence.special import chi2_logsf, chi2_ppf
from mvps.coherence.tail import IndexArray, Tail, autocorrelation_time, block_length, blocked_scores
from mvps.coupling.autoregression import fit
from mvps.coupling.cross import LEAST_VARIANCE, correlation, inverse_root, part_covariance, varying
from mvps.coupling.joint import BoolArray

LEAST_TICKS = 60
BLOCKS = ("net", "ai", "joint")
_LEAST_SCALE = 0.1
_MOST_STEPS = 200
_UNKNOWN_MODE = f"unknown cut-off mode {{!r}}: choose one of {', '.join(CUTOFF_MODES)}"


class Distances(NamedTuple):
    """D^2 (T,) of each surface and of both; NaN where a surface is missing."""

    net: FloatArray
    ai: FloatArray
    joint: FloatArray


class Limits(NamedTuple):
    """WATCH (.95) limits of the three distances and ALARM (.99) of the joint one."""

    net: float
    ai: float
    joint: float
    joint_alarm: float

    @property
    def sum(self) -> float:
        """D^2_joint from which two surfaces below their own limits cannot explain it by adding up: Phase 3b."""
        return max(self.net + self.ai, self.joint)


SEED_LIMITS = Limits(chi2_ppf(0.95, 3), chi2_ppf(0.95, 3), chi2_ppf(0.95, 6), chi2_ppf(0.99, 6))


class FiniteLaw(NamedTuple):
    """D^2 of a new quiet tick ~ scale * F(axes, dof)."""

    axes: int
    scale: float
    dof: float

    @classmethod
    def of(cls, axes: int, rho: FloatArray) -> FiniteLaw:
        """Law of ``axes`` axes for a window as long as its autocorrelations rho (n,), rho[0] = 1."""
        ticks = len(rho)
        lag = np.arange(1, ticks)
        folded = np.concatenate((rho[:1], ((ticks - lag) * rho[1:] + lag * rho[:0:-1]) / ticks))
        weights = np.maximum(np.fft.fft(folded).real[1:], 0.0)
        total = float(weights.sum())
        inverse = 1.0 / total
        for _ in range(_MOST_STEPS):
            before = inverse
            inverse = 1.0 / float((weights / (1.0 + (axes + 1.0) * inverse * weights)).sum())
            if abs(inverse - before) <= 1e-12 * inverse:
                break
        worth = (axes + 1.0) * inverse * total / (inverse * total - 1.0)
        if worth <= axes + 3.0:
            raise ValueError(f"{ticks} ticks are worth {worth:.0f}, too few for a covariance of {axes} axes")
        dof = worth - axes + 1.0
        tau = ticks - total
        return cls(axes, (1.0 + tau / ticks) * (ticks - 1.0) / total * worth * axes / dof, dof)

    def limit(self, level: float) -> float:
        """D^2 that a new quiet tick exceeds with probability 1 - level."""
        return float(self.scale * f_distribution.isf(1.0 - level, self.axes, self.dof))

    def log_survival(self, d2: float) -> float:
        """log P(D^2 of a quiet tick > d2)."""
        return float(f_distribution.logsf(d2 / self.scale, self.axes, self.dof))


class JointBaseline(NamedTuple):
    """BAU of the joint vector.

    mean: (p,) and covariance: (p, p) of the live axes. live: (all axes,). split: live axes of the network.
    laws, tails: of D^2_net, D^2_AI, D^2_joint, finite-sample and empirical. ticks: window.
    """

    mean: FloatArray
    covariance: FloatArray
    live: BoolArray
    split: int
    laws: tuple[FiniteLaw, FiniteLaw, FiniteLaw]
    tails: tuple[Tail, Tail, Tail]
    ticks: int

    def distances(self, z: FloatArray) -> Distances:
        """Distances of joint vectors z (T, all axes); NaN where an axis of a surface is missing."""
        return _distances(z[:, self.live] - self.mean, self.covariance, self.split)

    def limits(self, mode: str = "empirical") -> Limits:
        """Limits of the distances in one of the modes ``empirical``, ``finite-sample``, ``chi2``."""
        watch, alarm = LEVELS[:2]
        net, ai, joint = (self._limit(block, mode, watch) for block in range(3))
        return Limits(net, ai, joint, self._limit(2, mode, alarm))

    def log_survival(self, block: int, d2: float, mode: str = "empirical") -> float:
        """log P(D^2 of a quiet tick >= d2), by the law of the limits; NaN stays NaN. block: index into ``BLOCKS``."""
        if math.isnan(d2):
            return math.nan
        if mode == "empirical":
            return self.tails[block].log_survival(d2)
        if mode == "finite-sample":
            return self.laws[block].log_survival(d2)
        if mode == "chi2":
            return chi2_logsf(d2, self.laws[block].axes)
        raise ValueError(_UNKNOWN_MODE.format(mode))

    def _limit(self, block: int, mode: str, level: float) -> float:
        if mode == "empirical":
            return self.tails[block].score_at(math.log1p(-level))
        if mode == "finite-sample":
            return self.laws[block].limit(level)
        if mode == "chi2":
            return chi2_ppf(level, self.laws[block].axes)
        raise ValueError(_UNKNOWN_MODE.format(mode))


def fit_baseline(z: FloatArray, split: int, floor: float = 0.0) -> JointBaseline:
    """BAU from joint vectors z (n, p), evenly spaced and without gaps; the first ``split`` axes are the network's.

    floor: standard deviation below which no axis is taken; 0: axes that do not vary are left out, and the degrees of
    freedom follow.
    """
    if len(z) < LEAST_TICKS:
        raise ValueError(f"a joint baseline needs {LEAST_TICKS} complete ticks, got {len(z)}: calibrate longer")
    z = np.ascontiguousarray(z)  # the same rows give the same bits
    if floor > 0.0:
        live: BoolArray = np.ones(z.shape[1], dtype=np.bool_)
        rho = _memory(z)
    else:
        z, split, live = varying(z, split)
        rho = fit(z).autocorrelation(len(z) - 1)
    n = len(z)
    noise = floor * floor * np.eye(z.shape[1])
    mean, covariance = z.mean(axis=0), np.cov(z, rowvar=False) + noise
    inverse_root(correlation(covariance))  # refuses axes that depend on each other
    inside = _distances(z - mean, covariance, split)
    blocks = (rho[:, :split], rho[:, split:], rho)
    net_law, ai_law, joint_law = (FiniteLaw.of(block.shape[1], block.mean(axis=1)) for block in blocks)

    def score(train: IndexArray, test: IndexArray) -> FloatArray:
        scatter = part_covariance(z[train], covariance.diagonal() - noise.diagonal()) + noise
        return np.stack(_distances(z[test] - z[train].mean(axis=0), scatter, split), axis=1)

    scores = blocked_scores(n, block_length(autocorrelation_time(inside.joint), n), score)
    net_tail, ai_tail, joint_tail = (Tail.fit(scores[:, block], _LEAST_SCALE) for block in range(len(BLOCKS)))
    return JointBaseline(
        mean, covariance, live, split, (net_law, ai_law, joint_law), (net_tail, ai_tail, joint_tail), n
    )


def _memory(z: FloatArray) -> FloatArray:
    """Autocorrelations (n, p) of a complete window; of an axis that does not vary, those of independent ticks."""
    if len(z.shape) != 2 or not np.isfinite(z).all():
        raise ValueError("joint vectors must be complete: pass Series.longest_run() or the usable rows")
    rho = np.zeros(z.shape)
    rho[0] = 1.0
    moves = z.var(axis=0) > LEAST_VARIANCE
    if moves.any():
        rho[:, moves] = fit(z[:, moves]).autocorrelation(len(z) - 1)
    return rho


def cross_term(distances: Distances) -> FloatArray:
    """D^2_joint - D^2_net - D^2_AI (T,): what the cross block says. 0 without it, negative for usual companions."""
    return distances.joint - distances.net - distances.ai


def _distances(deviation: FloatArray, covariance: FloatArray, split: int) -> Distances:
    net = _squares(deviation[:, :split], covariance[:split, :split])
    ai = _squares(deviation[:, split:], covariance[split:, split:])
    return Distances(net, ai, _squares(deviation, covariance))


def _squares(deviation: FloatArray, covariance: FloatArray) -> FloatArray:
    sd = np.sqrt(covariance.diagonal())
    root = np.linalg.cholesky(correlation(covariance))
    whitened = np.linalg.solve(root, (deviation / sd).T)
    squares: FloatArray = (whitened * whitened).sum(axis=0)
    return squares
