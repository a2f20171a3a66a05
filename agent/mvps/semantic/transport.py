# SPDX-License-Identifier: Apache-2.0
"""Exact 2-Wasserstein distance between token clouds (001 sec. 4.1, 4.2).

    W_2(mu, nu)^2 = min over T >= 0 of sum_ij T_ij |x_i - y_j|^2,   T 1 = a,  T^T 1 = b

Clouds of one size with equal weights are an assignment problem (Birkhoff), solved by scipy's shortest augmenting paths.
Others are a linear program: HiGHS solves it on the cheapest cells, the duals price all cells, and the ones that would
lower the cost join until none is left (column generation). The duals then prove a lower bound, and a plan that is not
within 1e-6 of it, in units of the largest cost, is not returned.

The costs come from one matrix product, -2 x.y about the common mean, and lose digits where points nearly coincide. So
they only choose the plan; its value is summed anew from the differences, and identical clouds have distance 0.

Raw W_2 is mostly sampling noise in high dimension: two samples of one law are far apart. Use it through ``calibrated``
or ``mmd.permutation_test``, never against a fixed number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment, linprog
from scipy.sparse import csr_array

from mvps.coherence.axes import BoolArray
from mvps.coherence.observation import FloatArray

IndexArray = NDArray[np.intp]
Points = NDArray[np.floating[Any]]

MOST_CELLS = 1 << 22  # an assignment of 2048 points: about half a second
MOST_CELLS_PROGRAM = 1 << 18  # a linear program of 512 by 512
NOT_FINITE = "a token cloud has embeddings that are not finite, or too large: check the encoder's output"
_CHEAPEST = 16  # cells per point that the first program, and every further one, takes in
_ROUNDS = 200
_CONVERGED = 1e-6


class Transport(NamedTuple):
    """An optimal plan: ``mass[k]`` goes from point ``rows[k]`` of x to point ``columns[k]`` of y.

    squared: W_2^2, the plan's cost. gap: proven bound on squared - its minimum; 0 for an assignment, which is optimal
    for the costs as rounded in the dtype of the clouds.
    """

    squared: float
    rows: IndexArray
    columns: IndexArray
    mass: FloatArray
    gap: float

    @property
    def distance(self) -> float:
        """W_2, in units of the embedding."""
        return math.sqrt(self.squared)


def check_cloud(x: Points, finite: bool = True) -> None:
    """ValueError unless x is an (L, d) array of single or double precision with a point and a dimension at least.

    finite: whether its values are looked at as well.
    """
    if x.ndim != 2 or not x.size:
        raise ValueError(f"a token cloud needs rows of embeddings (L, d), got shape {x.shape}: leave empty answers out")
    if x.dtype not in (np.float32, np.float64):
        raise ValueError(f"a token cloud needs embeddings in single or double precision, not {x.dtype}")
    if finite and not np.isfinite(x).all():
        raise ValueError(NOT_FINITE)


def squared_distances(x: Points, y: Points) -> Points:
    """|x_i - y_j|^2, shape (n, m), never negative, from one matrix product about the common mean.

    x: (n, d); y: (m, d). Result in their common dtype, good to its rounding of the largest value.
    """
    centre = 0.5 * (x.mean(axis=0) + y.mean(axis=0))
    x, y = x - centre, y - centre
    cost = x @ y.T
    cost *= -2.0
    cost += np.einsum("id,id->i", x, x)[:, None]
    cost += np.einsum("jd,jd->j", y, y)
    squared: Points = np.maximum(cost, 0.0, out=cost)
    return squared


def transport(x: Points, y: Points, a: FloatArray | None = None, b: FloatArray | None = None) -> Transport:
    """Optimal plan between the clouds x (n, d) and y (m, d).

    a, b: weights (n,) and (m,), >= 0 with a positive sum, equal by default; normalised to 1. ValueError for bad input
    and, before anything is allocated, for more cells n m than allowed; ArithmeticError if no plan is proven optimal.
    """
    check_cloud(x, finite=False)
    check_cloud(y, finite=False)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"clouds of {x.shape[1]} and {y.shape[1]} dimensions have no distance: use one encoder")
    assigned = a is None and b is None and len(x) == len(y)
    limit = MOST_CELLS if assigned else MOST_CELLS_PROGRAM
    if len(x) * len(y) > limit:
        raise ValueError(
            f"exact transport of {len(x)} by {len(y)} points has more than {limit} cells: "
            "use the sliced distance, or compare fewer tokens"
        )
    # Every plan pays |x_i|^2 and |y_j|^2 in full: the solvers search less without them.
    centre = 0.5 * (x.mean(axis=0) + y.mean(axis=0))
    with np.errstate(invalid="ignore", over="ignore"):
        cost = (centre - x) @ (y - centre).T
    if not np.isfinite(cost).all():
        raise ValueError(NOT_FINITE)
    if assigned:
        rows, columns = linear_sum_assignment(cost)
        mass, gap = np.full(len(x), 1.0 / len(x)), 0.0
    else:
        left, right = _checked_weights(a, len(x)), _checked_weights(b, len(y))
        heavy, light = np.flatnonzero(left), np.flatnonzero(right)
        part = 2.0 * cost[np.ix_(heavy, light)].astype(np.float64)
        rows, columns, mass, gap = _linear_program(part, left[heavy], right[light])
        rows, columns = heavy[rows], light[columns]
    step = x[rows] - y[columns]
    squared = float(mass @ np.einsum("kd,kd->k", step, step))
    if not math.isfinite(squared):
        raise ValueError(NOT_FINITE)
    return Transport(squared, rows, columns, mass, gap)


def pairwise(clouds: Sequence[Points]) -> FloatArray:
    """W_2 between all pairs of N clouds with equal weights, (N, N), symmetric with 0 on the diagonal."""
    distances = np.zeros((len(clouds), len(clouds)))
    for i, x in enumerate(clouds):
        for j in range(i):
            distances[i, j] = distances[j, i] = transport(x, clouds[j]).distance
    return distances


def quantile_coupling(a: FloatArray, b: FloatArray) -> tuple[IndexArray, IndexArray, FloatArray]:
    """The monotone plan between two sorted samples with weights a (n,) and b (m,) > 0 of one sum: rows, columns, mass.

    The optimal plan on a line, and a feasible one anywhere (the north-west corner rule). At most n + m - 1 entries.
    """
    ends_a, ends_b = np.cumsum(a), np.cumsum(b)
    ends = np.unique(np.concatenate((ends_a, ends_b)))
    mass = np.diff(ends, prepend=0.0)
    middle = ends - 0.5 * mass
    rows = np.minimum(np.searchsorted(ends_a, middle), len(a) - 1)
    columns = np.minimum(np.searchsorted(ends_b, middle), len(b) - 1)
    return rows, columns, mass


def gaussian_squared(mean_a: FloatArray, cov_a: FloatArray, mean_b: FloatArray, cov_b: FloatArray) -> float:
    """W_2^2 of two Gaussians: |m_a - m_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2) (Dowson & Landau 1982; Bures).

    For any two laws with these moments it is a lower bound of W_2^2 (Gelbrich 1990). mean (d,), cov (d, d) symmetric
    and positive semidefinite; ValueError otherwise.
    """
    # tr (A^1/2 B A^1/2)^1/2 is the sum of the singular values of A^1/2 B^1/2, which needs no root of a rounded product.
    cross = float(np.linalg.svd(_root(cov_a) @ _root(cov_b), compute_uv=False).sum())
    shift = mean_a - mean_b
    return max(float(shift @ shift) + float(np.trace(cov_a)) + float(np.trace(cov_b)) - 2.0 * cross, 0.0)


def _root(covariance: FloatArray) -> FloatArray:
    if covariance.ndim != 2 or covariance.shape[0] != covariance.shape[1] or not np.isfinite(covariance).all():
        raise ValueError("a covariance is a finite square matrix")
    if not np.allclose(covariance, covariance.T, rtol=1e-9, atol=1e-12):
        raise ValueError("a covariance is symmetric")
    values, vectors = np.linalg.eigh(covariance)
    if values[0] < -1e-9 * max(values[-1], 0.0) - 1e-12:
        raise ValueError("a covariance is positive semidefinite")
    root: FloatArray = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    return root


def _checked_weights(weights: FloatArray | None, number: int) -> FloatArray:
    if weights is None:
        return np.full(number, 1.0 / number)
    total = float(weights.sum())
    if weights.shape != (number,) or not (weights >= 0.0).all() or not 0.0 < total < math.inf:
        raise ValueError(f"a cloud of {number} points needs {number} weights, none negative and not all 0")
    return weights / total


def _linear_program(cost: FloatArray, a: FloatArray, b: FloatArray) -> tuple[IndexArray, IndexArray, FloatArray, float]:
    """Rows, columns and masses of the optimal plan, and the proven gap; cost (n, m), weights > 0 that sum to 1."""
    n, m = cost.shape
    largest = float(np.abs(cost).max())
    if largest == 0.0:
        return (*quantile_coupling(a, b), 0.0)
    cost = cost / largest
    # HiGHS is exact to 1e-7 in absolute terms: a total of n m makes equal weights integers.
    supply = np.concatenate((a, b)) * (n * m)
    active: BoolArray = np.zeros((n, m), dtype=bool)
    active[quantile_coupling(a, b)[:2]] = True  # feasible from the start
    _take_cheapest(active, cost)
    for _ in range(_ROUNDS):
        rows, columns = np.nonzero(active)
        cells = np.arange(len(rows))
        ones = np.ones(2 * len(rows))
        sums = csr_array((ones, (np.concatenate((rows, n + columns)), np.tile(cells, 2))), shape=(n + m, len(rows)))
        # Presolve finds nothing in a transport problem and takes longer than its solution.
        solved = linprog(cost[rows, columns], A_eq=sums, b_eq=supply, method="highs", options={"presolve": False})
        if solved.status != 0:
            raise ArithmeticError(f"the transport program was not solved: {solved.message}")
        duals = np.asarray(solved.eqlin.marginals)
        reduced = cost - duals[:n, None] - duals[n:]
        helpful = (reduced < -0.1 * _CONVERGED) & ~active
        if not helpful.any():
            break
        _take_cheapest(active, np.where(helpful, reduced, np.inf))
    else:
        raise ArithmeticError(f"the transport program did not settle in {_ROUNDS} rounds")
    used = solved.x > 0.0
    mass = solved.x[used] / (n * m)
    lower = float(a @ duals[:n] + b @ duals[n:]) + min(float(reduced.min()), 0.0)
    gap = max(float(mass @ cost[rows[used], columns[used]]) - lower, 0.0)
    if gap > _CONVERGED:
        raise ArithmeticError(f"the transport plan is only proven to {gap:.1e} of the largest cost")
    return rows[used], columns[used], mass, gap * largest


def _take_cheapest(active: BoolArray, cost: FloatArray) -> None:
    """Add the cheapest finite cells of every row and every column to the active ones."""
    n, m = cost.shape
    take = min(_CHEAPEST, m)
    columns = np.argpartition(cost, take - 1, axis=1)[:, :take]
    rows = np.arange(n)[:, None]
    active[rows, columns] |= np.isfinite(cost[rows, columns])
    take = min(_CHEAPEST, n)
    rows = np.argpartition(cost, take - 1, axis=0)[:take]
    columns = np.arange(m)
    active[rows, columns] |= np.isfinite(cost[rows, columns])
