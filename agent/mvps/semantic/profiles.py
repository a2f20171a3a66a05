# SPDX-License-Identifier: Apache-2.0
"""D^2_AI: the decision on a replica group, on the axes that its deployment really lets us see (001 sec. 8).

| profile | sees | main phase on | lateral | chi-square limits .95 / .99 |
|---|---|---|---|---|
| white | weights: embeddings, attention | C_1, C_2^W2, C_3^CKA | C_4 | 7.81 / 11.34 (3) |
| grey | answers and log probabilities | C_1, C_2^W2 | C_4 | 5.99 / 9.21 (2) |
| black | answers | C_1 | C_4 | 3.84 / 6.63 (1) |

The black profile's C_2^W2 comes from an encoder nobody has checked against the model; the source calls it approximate
and keeps it out of the main phase, and so it is reported and not judged. C_4 is in no main phase (see ``cbf``), and so
the source's limits for four axes, 9.49 / 13.28, apply nowhere. Axes that do not vary in BAU add no degree of freedom.

A surface has its own baseline, and until it has one there is no phase: ``judge`` says *uncalibrated*. Limits are those
of ``coherence``: conformal by default (``empirical``), since prompts and ticks depend on each other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from mvps.coherence.distance import (
    CUTOFF_MODES,
    Ellipsoid,
    d2_cutoffs,
    d2_log_survival,
    phi_d,
)
from mvps.coherence.mcd import fast_mcd
from mvps.coherence.observation import FloatArray
from mvps.coherence.phase import Phase, phase_of
from mvps.coherence.tail import IndexArray, Tail, autocorrelation_time, block_length, blocked_scores, contaminated

LEAST_TICKS = 60
_LEAST_D2_SCALE = 0.1


class Profile(NamedTuple):
    """main: axes of the main phase. reported: axes that are shown and not judged. missing: axis -> why it is absent."""

    name: str
    main: tuple[str, ...]
    reported: tuple[str, ...]
    missing: Mapping[str, str]


WHITE = Profile("white", ("c1", "c2_w2", "c3_cka"), ("c4",), {})
GREY = Profile("grey", ("c1", "c2_w2"), ("c4",), {"c3_cka": "attention needs the weights"})
BLACK = Profile(
    "black",
    ("c1",),
    ("c2_w2", "c4"),
    {
        "c2_w2": "without log probabilities it is approximate: reported, not judged",
        "c3_cka": "attention needs the weights",
    },
)
PROFILES: Mapping[str, Profile] = {profile.name: profile for profile in (WHITE, GREY, BLACK)}


@dataclass(frozen=True)
class AiBaseline:
    """BAU of one replica group under one profile and one encoder.

    encoder: digest or name of the encoder that made it; another one needs another baseline. tail: of the out-of-sample
    D^2. ticks, trimmed, effective: calibration ticks kept, those set aside because they look like a fault, and what the
    kept are worth independently. block: of the cross-fitting.
    """

    profile: str
    encoder: str
    ellipsoid: Ellipsoid
    tail: Tail
    mode: str
    ticks: int
    trimmed: int
    effective: float
    block: int

    @cached_property
    def _known_cutoffs(self) -> dict[int, tuple[float, float, float]]:
        return {}

    def cutoffs(self, dof: int) -> tuple[float, float, float]:
        """(WATCH, ALARM, CRITICAL) limits of D^2 at so many degrees of freedom."""
        if dof not in self._known_cutoffs:
            self._known_cutoffs[dof] = d2_cutoffs(self.mode, dof, self.ticks, self.tail)
        return self._known_cutoffs[dof]


class Judgement(NamedTuple):
    """The main phase of one tick.

    phase: None while uncalibrated, and in a tick without any axis; before hysteresis, which is the caller's. d2, phi_d,
    p_value and cutoffs (WATCH, ALARM, CRITICAL) are None with it. dof: degrees of freedom of d2. contributions: parts
    of d2 by axis. absent: axes of the profile without a value in this tick. note: what a reader has to know.
    """

    phase: Phase | None
    d2: float | None
    phi_d: float | None
    p_value: float | None
    cutoffs: tuple[float, float, float] | None
    dof: int
    contributions: Mapping[str, float]
    absent: tuple[str, ...]
    note: str


def profile_for(attention: bool, log_probabilities: bool) -> Profile:
    """The richest profile for what a deployment gives access to. Attention implies the weights, and so the rest."""
    if attention:
        return WHITE
    return GREY if log_probabilities else BLACK


def fit_baseline(
    profile: Profile,
    encoder: str,
    ticks: Sequence[Mapping[str, float | None]],
    noise: Mapping[str, float],
    mode: str = "empirical",
) -> AiBaseline:
    """Baseline from consecutive BAU ticks, oldest first: axis -> value.

    noise: variance that counting or sampling alone gives an axis: a floor, > 0 for every axis of the profile, so that
    one that never moved in calibration does not alarm at its first rounding. ValueError below 60 complete ticks.
    """
    if mode not in CUTOFF_MODES:
        raise ValueError(f"unknown cut-off mode {mode!r}: choose one of {', '.join(CUTOFF_MODES)}")
    if not all(0.0 < noise.get(axis, 0.0) < math.inf for axis in profile.main):
        raise ValueError(f"each of the axes {', '.join(profile.main)} needs a noise variance above 0")
    rows = [[tick.get(axis) for axis in profile.main] for tick in ticks]
    x = np.array([row for row in rows if None not in row], dtype=np.float64).reshape(-1, len(profile.main))
    if len(x) < LEAST_TICKS:
        raise ValueError(
            f"{profile.name}: {len(x)} of {len(ticks)} ticks have all of {', '.join(profile.main)}; a baseline needs "
            f"at least {LEAST_TICKS}: wait for more, or choose a profile with fewer axes"
        )
    if not np.isfinite(x).all():
        raise ValueError("axes must be finite: pass None for a tick without a value")
    floor = np.array([noise[axis] for axis in profile.main])
    # Never more than a fifth: the fence lies beyond the .8 quantile.
    faulty = contaminated(fast_mcd(x, floor).distances)
    x = x[~faulty]
    tau = max(autocorrelation_time(column) for column in x.T)
    effective = len(x) / tau
    block = block_length(tau, len(x))
    live = tuple(bool(variance > 1e-12) for variance in x.var(axis=0))

    def out_of_sample(train: IndexArray, test: IndexArray) -> FloatArray:
        return Ellipsoid.fit(profile.main, x[train], floor, live, effective).d2(x[test])

    return AiBaseline(
        profile.name,
        encoder,
        Ellipsoid.fit(profile.main, x, floor, live, effective),
        Tail.fit(blocked_scores(len(x), block, out_of_sample), _LEAST_D2_SCALE),
        mode,
        len(x),
        int(faulty.sum()),
        effective,
        block,
    )


def judge(profile: Profile, baseline: AiBaseline | None, encoder: str, axes: Mapping[str, float | None]) -> Judgement:
    """The main phase of one tick; axes outside the profile's main phase are not looked at, C_4 among them.

    ValueError for a baseline of another profile or encoder: its distances are of another kind.
    """
    values = {axis: axes.get(axis) for axis in profile.main}
    absent = tuple(axis for axis, value in values.items() if value is None)
    if baseline is None:
        return Judgement(None, None, None, None, None, 0, {}, absent, "uncalibrated: no baseline yet")
    if (baseline.profile, baseline.encoder) != (profile.name, encoder):
        raise ValueError(
            f"baseline of profile {baseline.profile!r} and encoder {baseline.encoder!r} for {profile.name!r} and "
            f"{encoder!r}: calibrate anew"
        )
    dof = baseline.ellipsoid.dof(values)
    if not dof:
        return Judgement(None, None, None, None, None, 0, {}, absent, "no axis has a value in this tick")
    parts = baseline.ellipsoid.contributions(values)
    d2 = math.fsum(parts.values())
    log_p = d2_log_survival(baseline.mode, d2, dof, baseline.ticks, baseline.tail)
    note = f"without {', '.join(absent)}" if absent else ""
    return Judgement(phase_of(log_p), d2, phi_d(d2), math.exp(log_p), baseline.cutoffs(dof), dof, parts, absent, note)
