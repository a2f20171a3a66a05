# SPDX-License-Identifier: Apache-2.0
"""How long a BAU window has to be for a stable R_cross, measured on one's own series (IC9.3).

A long BAU series is cut into windows of one length that do not overlap, R_cross is estimated in each, and the root mean
square of the windows' deviations from their mean, per entry, is its instability at that length. Beside it stands what
independent surfaces with the same memory would have, sqrt(mean 1 / n_eff): more than that is a coupling that changes.

Where the law holds the instability falls as 1 / sqrt(length); the length for a wanted standard error follows from the
longest windows measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mvps.coherence.observation import FloatArray
from mvps.coupling.autoregression import effective_ticks, fit
from mvps.coupling.cross import part_covariance, r_cross, varying

LEAST_WINDOWS = 4


class WindowStability(NamedTuple):
    """length: ticks of a window. windows: how many. instability: RMS deviation of an entry of R_cross between windows.
    expected: what independent surfaces of the same memory would have."""

    length: int
    windows: int
    instability: float
    expected: float


def stability_curve(z: FloatArray, split: int, lengths: Sequence[int]) -> tuple[WindowStability, ...]:
    """Instability of R_cross in windows of each length of a BAU series z (n, p), evenly spaced, without gaps.

    ValueError if the series holds fewer than four windows of some length.
    """
    z, split, _ = varying(z, split)
    n, p = z.shape
    effective, variance = effective_ticks(fit(z), split), z.var(axis=0)
    curve = []
    for length in lengths:
        windows = n // length
        if windows < LEAST_WINDOWS or length <= 2 * p:
            raise ValueError(
                f"windows of {length} ticks: {windows} fit into {n} ticks, {LEAST_WINDOWS} are needed, of more than "
                f"{2 * p} ticks each"
            )
        parts = z[: windows * length].reshape(windows, length, p)
        r = np.array([r_cross(part_covariance(part, variance), split) for part in parts])
        instability = math.sqrt(float(r.var(axis=0, ddof=1).mean()))
        expected = math.sqrt(float((n / effective).mean()) / length)
        curve.append(WindowStability(length, windows, instability, expected))
    return tuple(curve)


def needed_length(curve: Sequence[WindowStability], wanted: float) -> int:
    """Ticks at which an entry's standard error is ``wanted``, from the longest windows of a curve."""
    if not wanted > 0.0:
        raise ValueError(f"a standard error must be positive, not {wanted}")
    longest = max(curve, key=lambda point: point.length)
    return math.ceil(longest.length * (longest.instability / wanted) ** 2)
