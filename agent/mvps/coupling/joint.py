# SPDX-License-Identifier: Apache-2.0
"""The joint vector of a service: what its network and its AI vantages showed at the same time (001 sec. 18.1).

    z(t) = (x_net(t), x_AI(t)) in [0, 1]^6, or [0, 1]^7 with C_4
    H_joint = -sum_k log z_k = H_net + H_AI                                                     (001 sec. 18.2)

**Rule of joining (ours).** The surfaces tick at rates of their own. At time t a surface stands with its last reading
that is not later than t and not older than its ``keep``; without one it is missing (NaN). Nothing is interpolated, and
nothing from after t is used, so that a replay shows what was known live.

A reading that stands for several joint ticks is one observation and not several. So a row is *fresh* only if both
surfaces have read anew since the last fresh row, and whatever estimates something uses the fresh rows
(:attr:`Series.usable`). Distances and phases are for every row.

C_1^AI has to come net of the network's round trip: with it, the surfaces would correlate in every deployment.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mvps.coherence.observation import FloatArray

NET_AXES = ("C_1^net", "C_2^net", "C_3^net")
AI_AXES = ("C_1^AI", "C_2^W2", "C_3^CKA")
C4_AXIS = "C_4"

BoolArray = NDArray[np.bool_]

_EPSILON = 1e-6  # as in coherence.axes.hamiltonian


class Readings(NamedTuple):
    """What one surface read. times: (n,) seconds, strictly increasing. values: (n, p) in [0, 1], NaN where an axis is
    unknown. keep: age in seconds up to which a reading stands."""

    times: FloatArray
    values: FloatArray
    keep: float

    def check(self, name: str) -> None:
        """ValueError unless the readings are as the class says."""
        if self.values.ndim != 2 or self.times.shape != self.values.shape[:1]:
            raise ValueError(f"{name}: one row of axes per time is needed, not {self.values.shape}, {self.times.shape}")
        if not np.isfinite(self.times).all() or (np.diff(self.times) <= 0.0).any():
            raise ValueError(f"{name}: times must be finite and strictly increasing: sort them, keep one per time")
        if ((self.values < 0.0) | (self.values > 1.0)).any():
            raise ValueError(f"{name}: coherence lies in [0, 1]")
        if not 0.0 < self.keep < math.inf:
            raise ValueError(f"{name}: a reading must stand for a positive, finite time, not {self.keep} s")


class Series(NamedTuple):
    """Joint vectors. times: (T,). z: (T, p), all axes of a missing surface NaN. split: how many of the axes are the
    network's. ages: (T, 2) seconds, NaN where missing. fresh: (T,) both surfaces read anew since the last fresh row."""

    times: FloatArray
    z: FloatArray
    split: int
    ages: FloatArray
    fresh: BoolArray

    @property
    def complete(self) -> BoolArray:
        """(T,) rows in which no axis is missing."""
        return np.asarray(np.isfinite(self.z).all(axis=1), dtype=np.bool_)

    @property
    def usable(self) -> BoolArray:
        """(T,) rows from which something may be estimated: complete and fresh."""
        return self.complete & self.fresh

    def longest_run(self) -> FloatArray:
        """(n, p) the longest stretch of usable rows without a gap, for whatever needs neighbours in time.

        A gap is a step of more than 1.5 times the median one.
        """
        rows = np.flatnonzero(self.usable)
        if len(rows) < 2:
            return self.z[rows]
        step = np.diff(self.times[rows])
        ends = np.flatnonzero(step > 1.5 * np.median(step))
        runs = np.split(rows, ends + 1)
        return self.z[max(runs, key=len)]


def join(at: FloatArray, net: Readings, ai: Readings) -> Series:
    """Joint vectors at the increasing times ``at`` (T,) seconds, of the same clock as the readings."""
    net.check("network")
    ai.check("AI")
    if not np.isfinite(at).all() or (np.diff(at) <= 0.0).any():
        raise ValueError("joint times must be finite and strictly increasing")
    standing = [_standing(at, readings) for readings in (net, ai)]
    z = np.concatenate([values for _, values, _ in standing], axis=1)
    ages = np.stack([age for _, _, age in standing], axis=1)
    complete = ~np.isnan(z).any(axis=1)
    fresh = np.zeros(len(at), dtype=bool)
    used = (-1, -1)
    for row in np.flatnonzero(complete).tolist():
        here = (int(standing[0][0][row]), int(standing[1][0][row]))
        if here[0] > used[0] and here[1] > used[1]:
            fresh[row] = True
            used = here
    return Series(at, z, net.values.shape[1], ages, fresh)


def _standing(at: FloatArray, readings: Readings) -> tuple[NDArray[np.intp], FloatArray, FloatArray]:
    """Index (-1 if none), values and age of the reading that stands at each time."""
    index = np.searchsorted(readings.times, at, side="right") - 1
    there = index >= 0
    age = np.full(len(at), np.nan)
    age[there] = at[there] - readings.times[index[there]]
    there &= age <= readings.keep
    values = np.full((len(at), readings.values.shape[1]), np.nan)
    values[there] = readings.values[index[there]]
    # An axis that is unknown makes the vector incomplete, and a vector of half its axes has another law.
    values[np.isnan(values).any(axis=1)] = np.nan
    return np.where(there, index, -1), values, np.where(there, age, np.nan)


class Hamiltonian(NamedTuple):
    """H in nats, each (T,), NaN where the surface is missing. joint = net + ai."""

    net: FloatArray
    ai: FloatArray
    joint: FloatArray


def hamiltonian(z: FloatArray, split: int) -> Hamiltonian:
    """H_net, H_AI and H_joint of joint vectors z (T, p), each axis not below 1e-6 (ours)."""
    cost = -np.log(np.maximum(z, _EPSILON)) + 0.0
    net, ai = cost[:, :split].sum(axis=1), cost[:, split:].sum(axis=1)
    return Hamiltonian(net, ai, net + ai)
