# SPDX-License-Identifier: Apache-2.0
"""Does Phase 3b come more often than in surfaces that know nothing of each other? (P_IC1, 000 sec. 7.1)

The source asks whether there is any Phase 3 tick at all in 30 days. There are thousands without coupling, because the
sum of two quiet surfaces exceeds 12.59 now and then and an estimated cross block is never 0. What can be refuted
is this (ours): the share of ticks in 3b exceeds that of *surrogates*, the same surfaces with one of them shifted in a
circle, in the calibration window and in the observed one, and the baseline fitted anew to what comes out. Surrogates
have each surface's own memory, own faults and own false alarms, and no coupling.

    p = (1 + surrogates with at least as many 3b ticks) / (1 + surrogates)
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mvps.coherence.observation import FloatArray
from mvps.coupling.distance import fit_baseline
from mvps.coupling.phases import PHASES, ICPhase, phase_codes

_COUPLED = PHASES.index(ICPhase.COUPLED)


class Excess(NamedTuple):
    """share: of the observed ticks in Phase 3b. surrogate: mean share in the surrogates. p_value: against them.
    surrogates: how many, so that the least p-value is 1 / (surrogates + 1)."""

    share: float
    surrogate: float
    p_value: float
    surrogates: int


def excess_of_3b(
    calibration: FloatArray,
    observed: FloatArray,
    split: int,
    surrogates: int = 99,
    mode: str = "finite-sample",
    seed: int = 0,
) -> Excess:
    """Excess of Phase 3b in ``observed`` (T, p) after a ``calibration`` (n, p); both evenly spaced, without gaps.

    mode: of the limits. ValueError for windows that cannot be calibrated on, or without surrogates.
    """
    if surrogates < 1 or len(observed) < 2:
        raise ValueError("an excess needs one surrogate and two observed ticks at least")
    if not np.isfinite(observed).all():
        raise ValueError("observed ticks have gaps: pass the longest run of complete ones")
    share = _share(calibration, observed, split, mode)
    rng = np.random.default_rng(seed)
    shifted = np.array(
        [_share(_shift(calibration, split, rng), _shift(observed, split, rng), split, mode) for _ in range(surrogates)]
    )
    p_value = (1.0 + float((shifted >= share - 1e-12).sum())) / (surrogates + 1.0)
    return Excess(share, float(shifted.mean()), p_value, surrogates)


def _share(calibration: FloatArray, observed: FloatArray, split: int, mode: str) -> float:
    baseline = fit_baseline(calibration, split)
    codes = phase_codes(baseline.distances(observed), baseline.limits(mode))
    return float((codes == _COUPLED).mean())


def _shift(z: FloatArray, split: int, rng: np.random.Generator) -> FloatArray:
    by = int(rng.integers(1, len(z)))
    return np.concatenate((z[:, :split], np.roll(z[:, split:], by, axis=0)), axis=1)
