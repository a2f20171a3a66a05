# SPDX-License-Identifier: Apache-2.0
"""Phi_K: from a p-value to a phase, with a posterior and with hysteresis.

The seeds name the phases (001 sec. 2.1); classes, priors, CRITICAL and hysteresis are ours.

Posterior. A p-value is turned into its *deviance*, the chi-square value (dof of the tick) with that tail
probability; in chi2 mode on D^2 the deviance is D^2 itself. Classes are the central chi-square (BAU) and
non-central ones with fixed non-centralities, the .95, .99 and .999 quantiles. Each neighbouring pair has a
monotone likelihood ratio, so the argmax of the posterior changes exactly once per pair; priors are solved so that
it changes at the cut-offs. Equal priors cannot do that. Argmax and thresholding are then the same rule.
"""

from __future__ import annotations

import enum
import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from mvps.coherence.distance import LEVELS
from mvps.coherence.observation import FloatArray
from mvps.coherence.special import chi2_log_isf, chi2_logsf, log_0f1

HYSTERESIS_TICKS = 3


class Phase(enum.IntEnum):
    """Phase of a surface. The first four are ordered classes; the last two are states of its lifecycle."""

    BAU = 0
    WATCH = 1
    ALARM = 2
    CRITICAL = 3
    CALIBRATING = 4
    SHIFTED = 5


CLASSES = (Phase.BAU, Phase.WATCH, Phase.ALARM, Phase.CRITICAL)
LOG_LEVELS = tuple(math.log1p(-level) for level in LEVELS)


def phase_of(log_p: float) -> Phase:
    """Phase of one tick from the log of its p-value: thresholding at the .95, .99 and .999 levels."""
    return CLASSES[sum(log_p <= level for level in LOG_LEVELS)]


class _Classes(NamedTuple):
    half_dof: float
    noncentralities: tuple[float, ...]
    log_priors: tuple[float, ...]
    knots: FloatArray  # -log p of the deviance table
    deviances: FloatArray


@lru_cache(maxsize=8)
def _classes(dof: int) -> _Classes:
    cuts = tuple(chi2_log_isf(level, dof) for level in LOG_LEVELS)
    noncentralities = (0.0, *cuts)
    half = dof / 2.0
    log_priors = [0.0]
    for i, cut in enumerate(cuts):
        above, below = (_log_ratio(half, noncentralities[j], cut) for j in (i + 1, i))
        log_priors.append(log_priors[-1] + below - above)
    norm = math.log(sum(math.exp(value) for value in log_priors))
    # The cut-offs are knots themselves: interpolation must not move a boundary.
    grid = sorted({*np.concatenate(([0.0], np.geomspace(1e-4, 1e5, 1024))).tolist(), *cuts})
    knots = np.array([-chi2_logsf(x, dof) for x in grid])
    return _Classes(half, noncentralities, tuple(v - norm for v in log_priors), knots, np.array(grid))


def _log_ratio(half_dof: float, noncentrality: float, x: float) -> float:
    """log density of the non-central over the central chi-square at x."""
    if noncentrality == 0.0:
        return 0.0
    return log_0f1(half_dof, noncentrality * x / 4.0) - noncentrality / 2.0


def deviance(log_p: float, dof: int) -> float:
    """Chi-square value with log tail probability ``log_p`` (<= 0), from a table good to 1e-4 relative."""
    classes = _classes(dof)
    return float(np.interp(-log_p, classes.knots, classes.deviances))


def priors(dof: int) -> tuple[float, ...]:
    """Prior of (BAU, WATCH, ALARM, CRITICAL), solved for the boundaries; sums to 1."""
    return tuple(math.exp(value) for value in _classes(dof).log_priors)


def posterior(x: float, dof: int) -> tuple[float, float, float, float]:
    """Posterior of (BAU, WATCH, ALARM, CRITICAL) given a deviance x >= 0; sums to 1."""
    classes = _classes(dof)
    scores = [
        prior + _log_ratio(classes.half_dof, noncentrality, x)
        for prior, noncentrality in zip(classes.log_priors, classes.noncentralities, strict=True)
    ]
    top = max(scores)
    odds = [math.exp(score - top) for score in scores]
    total = sum(odds)
    bau, watch, alarm, critical = (value / total for value in odds)
    return bau, watch, alarm, critical


class Hysteresis(NamedTuple):
    """Settled phase and the last raw phases, newest last: the state of the debouncer."""

    phase: Phase = Phase.BAU
    recent: tuple[Phase, ...] = ()

    def step(self, raw: Phase, ticks: int = HYSTERESIS_TICKS) -> Hysteresis:
        """State after one more raw phase.

        Up: to the highest phase that each of the last ``ticks`` raw phases reached. Down: to the lowest phase
        that none of them exceeded. Otherwise the phase holds.
        """
        recent = (*self.recent, raw)[-ticks:]
        if len(recent) < ticks:
            return Hysteresis(self.phase, recent)
        reached, exceeded = min(recent), max(recent)
        if reached > self.phase:
            return Hysteresis(reached, recent)
        if exceeded < self.phase:
            return Hysteresis(exceeded, recent)
        return Hysteresis(self.phase, recent)
