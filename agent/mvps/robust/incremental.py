# SPDX-License-Identifier: Apache-2.0
"""D^2 against a window that moves: mean and inverse scatter updated by one vector at a time, exactly.

With n vectors, mean m and scatter W = sum (x_i - m)(x_i - m)^T, one more vector x gives

    m' = m + (x - m) / (n + 1)        W' = W + n / (n + 1) (x - m)(x - m)^T

and one less the same with n / (n - 1) and minus. Both change W by a matrix of rank one, so W^-1 follows by Sherman and
Morrison (1950) in p^2 steps instead of p^3, and D^2 = (n - 1)(x - m)^T W^-1 (x - m) is the batch form's. Rounding adds
up over updates: fit anew every window's length or so, off the tick path.

All functions broadcast over leading axes: (V,) windows of V vantages at once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mvps.coherence.observation import FloatArray

# Taking out a vector that carries all of the spread in one direction leaves a singular scatter.
_SINGULAR = 1e-9


class Window(NamedTuple):
    """number: vectors in the window. mean (..., p), inverse (..., p, p) of the scatter W."""

    number: int
    mean: FloatArray
    inverse: FloatArray

    def add(self, x: FloatArray) -> Window:
        """The window with one more vector x (..., p)."""
        n = self.number
        away = x - self.mean
        turned = np.einsum("...ij,...j->...i", self.inverse, away)
        weight = n / (n + 1.0)
        length = 1.0 + weight * np.einsum("...i,...i->...", away, turned)
        change = weight / length
        inverse = self.inverse - change[..., None, None] * turned[..., :, None] * turned[..., None, :]
        return Window(n + 1, self.mean + away / (n + 1.0), inverse)

    def remove(self, x: FloatArray) -> Window:
        """The window without x (..., p), one of its vectors. ValueError if the rest has no spread in some direction."""
        n = self.number
        if n <= self.mean.shape[-1] + 1:
            raise ValueError(
                f"a window of {n} vectors of {self.mean.shape[-1]} axes cannot lose one: its scatter is singular"
            )
        away = x - self.mean
        turned = np.einsum("...ij,...j->...i", self.inverse, away)
        weight = n / (n - 1.0)
        length = 1.0 - weight * np.einsum("...i,...i->...", away, turned)
        if (length < _SINGULAR).any():
            raise ValueError("without this vector the window's scatter is singular; fit a new window")
        change = weight / length
        inverse = self.inverse + change[..., None, None] * turned[..., :, None] * turned[..., None, :]
        return Window(n - 1, self.mean - away / (n - 1.0), inverse)

    def d2(self, x: FloatArray) -> FloatArray:
        """D^2 (...) of x (..., p) against the window's mean and covariance (divisor n - 1)."""
        away = x - self.mean
        distance: FloatArray = (self.number - 1) * np.einsum("...i,...ij,...j->...", away, self.inverse, away)
        return distance


def fit_window(x: FloatArray) -> Window:
    """The window that holds the vectors x (..., n, p). ValueError if their scatter is singular."""
    n, p = x.shape[-2:]
    if n <= p:
        raise ValueError(f"a window of {p} axes needs more than {p} vectors, got {n}")
    mean = x.mean(axis=-2)
    away = x - mean[..., None, :]
    scatter = np.einsum("...ni,...nj->...ij", away, away)
    values = np.linalg.eigvalsh(scatter)
    if (values[..., 0] <= _SINGULAR**2 * values[..., -1]).any():
        raise ValueError("the vectors of a window have no spread in some direction; leave out axes that are constant")
    return Window(n, mean, np.linalg.inv(scatter))
