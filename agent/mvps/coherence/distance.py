# SPDX-License-Identifier: Apache-2.0
"""D^2 and Phi_D: how far a tick's coherence vector lies from BAU, and which axis took it there.

    D^2   = (x - mu)^T Sigma^-1 (x - mu)                 (001 sec. 2.1)
    Phi_D = exp(-D^2 / 6.25)                             (001 sec. 2.1; 6.25 = chi2(3) quantile at .90)

Contributions use the corr-max rotation (Garthwaite & Koch 2016): with z the standardised deviations and R
their correlation, w = R^(-1/2) z has |w|^2 = D^2 exactly, and w_k^2 >= 0 belongs to axis k.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mvps.coherence.observation import FloatArray
from mvps.coherence.special import chi2_log_isf, chi2_logsf, hotelling_limit, hotelling_logsf
from mvps.coherence.tail import Tail

PHI_SCALE = 6.25
LEVELS = (0.95, 0.99, 0.999)  # WATCH, ALARM (001 sec. 2.1), CRITICAL (ours)
CUTOFF_MODES = ("empirical", "finite-sample", "chi2")

_LEAST_VARIANCE = 1e-12


def phi_d(d2: float) -> float:
    """Phase distance exp(-D^2 / 6.25) in [0, 1]; 1 at the BAU centre."""
    return math.exp(-d2 / PHI_SCALE)


@dataclass(frozen=True)
class Ellipsoid:
    """BAU of the coherence vector: mean and covariance of its axes.

    axes: names in order. mean: (p,). covariance: (p, p) as nested tuples.
    live: axes that vary in BAU; their number is the degrees of freedom. The others are *silent*: constant in
        BAU, with counting noise for a variance, so that a first violation still counts (ours).
    noise: (p,) counting-noise variance that is part of the covariance. A tick with fewer events than BAU has
        more of it; its standard deviations are widened by the difference, with the same correlations, so that
        a quiet hour is no alarm (ours). At BAU rates this is the seeds' D^2.
    ticks: ticks the estimate comes from.
    """

    axes: tuple[str, ...]
    mean: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]
    live: tuple[bool, ...]
    noise: tuple[float, ...]
    ticks: int

    def __post_init__(self) -> None:
        p = len(self.axes)
        sizes = {len(self.mean), len(self.covariance), len(self.live), len(self.noise)}
        sizes |= set(map(len, self.covariance))
        if p and sizes != {p}:
            raise ValueError(f"mean, covariance and live of {p} axes have sizes {sorted(sizes)}")
        if len(set(self.axes)) != p:
            raise ValueError(f"an axis appears twice in {self.axes}")
        # Degrees of freedom are counted from these: from a stranger's baseline they could be any number.
        if not all(isinstance(live, bool) for live in self.live):
            raise ValueError("whether an axis is live is true or false")
        if not (all(map(math.isfinite, self.mean)) and all(0.0 <= v < math.inf for v in self.noise)):
            raise ValueError("the axes need finite means and finite noise variances not below 0")
        if p:
            matrix = np.array(self.covariance)
            if not np.all(np.isfinite(matrix)) or np.linalg.eigvalsh(matrix)[0] <= 0.0:
                raise ValueError("the covariance of the axes is not positive definite")

    @classmethod
    def fit(
        cls,
        axes: tuple[str, ...],
        x: FloatArray,
        noise: FloatArray,
        live: tuple[bool, ...] | None = None,
        effective: float | None = None,
    ) -> Ellipsoid:
        """Ellipsoid of BAU vectors x (n, p), no NaN; noise (p,): counting-noise variance of each axis.

        The off-diagonal is shrunk by p / (n_eff + p) and the variances are floored by ``noise`` (ours).
        """
        n, p = x.shape
        if n <= p:
            raise ValueError(f"an ellipsoid of {p} axes needs more than {p} ticks, got {n}")
        covariance = np.atleast_2d(np.cov(x, rowvar=False)) if p else np.zeros((0, 0))
        variance = covariance.diagonal().copy()
        if live is None:
            live = tuple(bool(v > _LEAST_VARIANCE) for v in variance)
        shrink = p / ((n if effective is None else effective) + p)
        varies = np.array(live, dtype=bool)
        covariance = (1.0 - shrink) * covariance * np.outer(varies, varies)
        np.fill_diagonal(covariance, np.maximum(np.maximum(variance, noise), _LEAST_VARIANCE))
        return cls(
            axes,
            tuple(x.mean(axis=0).tolist()),
            tuple(tuple(row) for row in covariance.tolist()),
            live,
            tuple(noise.tolist()),
            n,
        )

    @cached_property
    def _rotations(self) -> dict[tuple[bool, ...], FloatArray]:
        return {}

    def _rotation(self, present: tuple[bool, ...]) -> FloatArray:
        """R^(-1/2) diag(sd)^-1 of the axes present: turns deviations into w."""
        known = self._rotations.get(present)
        if known is None:
            pick = np.flatnonzero(present)
            sigma = np.array(self.covariance)[np.ix_(pick, pick)]
            sd = np.sqrt(sigma.diagonal())
            values, vectors = np.linalg.eigh(sigma / np.outer(sd, sd))
            known = (vectors / np.sqrt(values)) @ vectors.T / sd
            self._rotations[present] = known
        return known

    @cached_property
    def _variances(self) -> tuple[float, ...]:
        return tuple(row[i] for i, row in enumerate(self.covariance))

    def contributions(
        self, values: Mapping[str, float | None], noise: Mapping[str, float] | None = None
    ) -> dict[str, float]:
        """D^2 split over the axes that are present; the sum is D^2 and no part is negative.

        values: axis -> value; an absent axis (None or missing) is left out and the rest judged by its
        marginal. noise: counting-noise variance of this tick's axes, where it is known.
        """
        present: list[bool] = []
        names: list[str] = []
        deviation: list[float] = []
        for i, axis in enumerate(self.axes):
            value = values.get(axis)
            present.append(value is not None)
            if value is None:
                continue
            names.append(axis)
            extra = max(noise.get(axis, 0.0) - self.noise[i], 0.0) if noise else 0.0
            widening = math.sqrt(1.0 + extra / self._variances[i]) if extra else 1.0
            deviation.append((value - self.mean[i]) / widening)
        if not names:
            return {}
        w = self._rotation(tuple(present)) @ np.array(deviation)
        return dict(zip(names, (w * w).tolist(), strict=True))

    def d2(self, x: FloatArray, noise: FloatArray | None = None) -> FloatArray:
        """D^2 of complete vectors x (n, p), with their counting-noise variances (n, p) if known."""
        if not self.axes:
            return np.zeros(len(x))
        deviation = x - np.array(self.mean)
        if noise is not None:
            extra = np.maximum(noise - np.array(self.noise), 0.0)
            deviation = deviation / np.sqrt(1.0 + extra / np.array(self._variances))
        w = deviation @ self._rotation((True,) * len(self.axes)).T
        squared: FloatArray = (w * w).sum(axis=1)
        return squared

    def dof(self, values: Mapping[str, float | None]) -> int:
        """Degrees of freedom of D^2: live axes present; silent ones add nothing in BAU, but 1 at least."""
        present = [live for axis, live in zip(self.axes, self.live, strict=True) if values.get(axis) is not None]
        return max(sum(present), 1) if present else 0


def vantage_contributions(own: Mapping[str, float]) -> dict[str, float]:
    """Share of each vantage in the divergence from BAU (ours): max(z_v, 0)^2 over its sum.

    own: standardised own distance z_v per vantage. Shares sum to 1, or are all 0 if no vantage exceeds BAU.
    """
    squares = {vantage: max(z, 0.0) ** 2 for vantage, z in own.items()}
    total = sum(squares.values())
    return {vantage: square / total if total > 0.0 else 0.0 for vantage, square in squares.items()}


def d2_log_survival(mode: str, d2: float, dof: int, ticks: int, tail: Tail) -> float:
    """log p-value of D^2 in one of the three cut-off modes.

    empirical: conformal, with an extrapolated tail (right for real, dependent ticks); with fewer axes present
        than in calibration it errs towards fewer alarms. finite-sample: Hotelling's law of a new tick (right
        for i.i.d. Gaussian ticks). chi2: as the seeds state (right for a known covariance).
    """
    if dof == 0:
        return 0.0
    if mode == "empirical":
        return tail.log_survival(d2)
    if mode == "finite-sample":
        return hotelling_logsf(d2, dof, ticks)
    if mode == "chi2":
        return chi2_logsf(d2, dof)
    raise ValueError(f"unknown cut-off mode {mode!r}: choose one of {', '.join(CUTOFF_MODES)}")


def d2_cutoffs(mode: str, dof: int, ticks: int, tail: Tail, split: int = 1) -> tuple[float, float, float]:
    """(WATCH, ALARM, CRITICAL) limits of D^2; split: number of tests that share the false-alarm level."""
    if dof == 0:
        return (math.inf, math.inf, math.inf)
    watch, alarm, critical = (_limit(mode, (1.0 - level) / split, dof, ticks, tail) for level in LEVELS)
    return (watch, alarm, critical)


def _limit(mode: str, p: float, dof: int, ticks: int, tail: Tail) -> float:
    if mode == "empirical":
        return tail.score_at(math.log(p))
    if mode == "finite-sample":
        return hotelling_limit(1.0 - p, dof, ticks)
    if mode == "chi2":
        return chi2_log_isf(math.log(p), dof)
    raise ValueError(f"unknown cut-off mode {mode!r}: choose one of {', '.join(CUTOFF_MODES)}")
