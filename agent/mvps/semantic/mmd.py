# SPDX-License-Identifier: Apache-2.0
"""Maximum mean discrepancy, energy distance, and the permutation test for any of our distances.

    MMD^2 = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_ij k(x_i, y_j)      (Gretton et al. 2012)

This is the unbiased form: about 0 and often negative for samples of one law. Kernels: ``rbf``, exp(-|x - y|^2 / 2 s^2)
with s^2 the median squared distance of the pooled sample, and ``energy``, -|x - y|, which makes MMD^2 the energy
distance (Szekely & Rizzo 2013). Any matrix of distances D between answers, W_2 or SW_2, is tested as the kernel -D
(ours).

The tokens of an answer depend on each other: what is exchangeable between two replicas under the null is the whole
answer. ``between_blocks`` makes the kernel of answers out of the kernel of tokens (the inner product of their mean
embeddings), and the test permutes answers. A test that permutes tokens finds a difference between any two answers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mvps.coherence.axes import BoolArray
from mvps.coherence.observation import FloatArray
from mvps.semantic.transport import Points, check_cloud, squared_distances

KERNELS = ("rbf", "energy")
MOST_POINTS = 1 << 12
MOST_SUMS = 1 << 24  # points times permutations
_TIES = 1e-12


class PermutationTest(NamedTuple):
    """statistic: the unbiased MMD^2. p_value: share of permutations at least as large, the identity among them.

    permutations: how many were looked at; ``exact`` when they are all there are, and 1 / permutations is then the
    smallest p-value possible.
    """

    statistic: float
    p_value: float
    permutations: int
    exact: bool


def kernel_matrix(points: Points, kind: str = "rbf") -> FloatArray:
    """Kernel between all pairs of the pooled points (n, d), shape (n, n). ValueError for bad input or too many points.

    The scale of ``rbf`` comes from the pooled sample, and so is the same under every permutation of it.
    """
    if kind not in KERNELS:
        raise ValueError(f"unknown kernel {kind!r}: choose one of {', '.join(KERNELS)}")
    check_cloud(points)
    if len(points) > MOST_POINTS:
        raise ValueError(f"a kernel of {len(points)} points is more than {MOST_POINTS} square: compare fewer tokens")
    squared = squared_distances(points, points).astype(np.float64)
    np.fill_diagonal(squared, 0.0)
    if kind == "energy":
        return -np.sqrt(squared)
    apart = squared[np.triu_indices(len(points), 1)]
    apart = apart[apart > 0.0]  # repeated tokens coincide, and must not make the scale 0
    scale = 2.0 * float(np.median(apart)) if len(apart) else 1.0
    kernel: FloatArray = np.exp(squared / -scale)
    return kernel


def between_blocks(kernel: FloatArray, sizes: Sequence[int]) -> FloatArray:
    """Mean kernel between the points of all pairs of blocks, (B, B); the blocks follow each other in the kernel."""
    ends = np.cumsum(sizes)
    if min(sizes, default=0) < 1 or ends[-1] != len(kernel):
        raise ValueError(f"blocks of sizes {list(sizes)} are not the {len(kernel)} points of the kernel")
    begins = ends - np.asarray(sizes)
    sums = np.add.reduceat(np.add.reduceat(kernel, begins, axis=0), begins, axis=1)
    means: FloatArray = sums / np.outer(sizes, sizes)
    return means


def mmd2(kernel: FloatArray, first: BoolArray) -> float:
    """Unbiased MMD^2 between the points marked in ``first`` (n,) and the others, from their kernel (n, n)."""
    return float(_statistics(*_prepared(kernel, first), first[:, None].astype(np.float64))[0])


def permutation_test(kernel: FloatArray, first: BoolArray, permutations: int = 999, seed: int = 0) -> PermutationTest:
    """Test that the points marked in ``first`` (n,) have the law of the others; large MMD^2 is evidence against it.

    kernel: (n, n), symmetric; its diagonal is not used. permutations: beside the identity. If there are no more
    divisions into two groups of these sizes than that, all of them are looked at. Its size is exact for exchangeable
    points. ValueError below two points a side.
    """
    off_diagonal, sums = _prepared(kernel, first)
    number, taken = len(first), int(first.sum())
    exact = math.comb(number, taken) <= permutations + 1
    count = math.comb(number, taken) if exact else permutations + 1
    if number * count > MOST_SUMS:
        raise ValueError(f"{permutations} permutations of {number} points are too many: lower one of them")
    chosen = np.zeros((number, count))
    if exact:
        for column, rows in enumerate(itertools.combinations(range(number), taken)):
            chosen[list(rows), column] = 1.0
        observed = float(_statistics(off_diagonal, sums, first[:, None].astype(np.float64))[0])
    else:
        rng = np.random.default_rng(seed)
        chosen[:] = rng.permuted(np.repeat(first[:, None], count, axis=1), axis=0)
        chosen[:, 0] = first
    values = _statistics(off_diagonal, sums, chosen)
    if not exact:
        observed = float(values[0])
    at_least = values >= observed - _TIES * float(np.abs(off_diagonal).max())
    return PermutationTest(observed, float(at_least.mean()), count, exact)


def _prepared(kernel: FloatArray, first: BoolArray) -> tuple[FloatArray, FloatArray]:
    """The kernel with a diagonal of 0, and its row sums."""
    if kernel.shape != (len(first), len(first)):
        raise ValueError(f"a kernel of shape {kernel.shape} does not belong to {len(first)} points")
    if not np.isfinite(kernel).all():
        raise ValueError("a kernel has values that are not finite: leave missing answers out")
    if not 2 <= int(first.sum()) <= len(first) - 2:
        raise ValueError("an unbiased MMD needs at least two points on either side: repeat the prompt")
    off_diagonal = kernel.astype(np.float64)
    np.fill_diagonal(off_diagonal, 0.0)
    return off_diagonal, off_diagonal.sum(axis=1)


def _statistics(off_diagonal: FloatArray, sums: FloatArray, chosen: FloatArray) -> FloatArray:
    """MMD^2 for every column of ``chosen`` (n, P), 1 for the points of the first group: one matrix product for all."""
    n = chosen.sum(axis=0)
    m = len(chosen) - n
    within = np.einsum("ip,ip->p", chosen, off_diagonal @ chosen)
    touching = sums @ chosen
    between = touching - within
    others = sums.sum() - 2.0 * touching + within
    values: FloatArray = within / (n * (n - 1.0)) + others / (m * (m - 1.0)) - 2.0 * between / (n * m)
    return values
