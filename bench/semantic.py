# SPDX-License-Identifier: Apache-2.0
"""What the semantic distances cost on one core, and what they find, each beside its peer in the same run.

Cost, in single precision as encoders give it: SW_2 of all pairs of four answers (K = 100, L = 256, d = 768), per pair,
beside projecting and sorting both clouds for every pair; C_3^CKA of all pairs of four causal attention maps (n = 256),
from the maps to the values, per pair, beside the textbook's unbiased formula per pair on the same features; exact W_2
(L = 256, d = 1024) beside scipy's cdist and linear_sum_assignment in double precision, and beside the latter on costs
from a matrix product; for unequal lengths (256 and 251) beside the whole linear program in scipy's HiGHS. POT's
functions join where POT is installed.

Power: six answers of one replica against six of another, 32 tokens in 64 dimensions each, permutations of answers at
5 %. Synthetic clouds: a sanity check of the statistics, not a verdict on embeddings of real answers. The rival is the
distance between the mean embeddings of the answers. Attribution: four replicas, four families of 12 prompts with right
or wrong answers, half of the prompts hard for all; the rival is Fisher's test of every cell, Bonferroni-corrected.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment, linprog
from scipy.sparse import coo_array
from scipy.spatial.distance import cdist
from scipy.stats import binom, fisher_exact
from threadpoolctl import threadpool_limits

from bench.harness import Result, timed
from mvps.semantic import attribution, cka, mmd, sliced, transport

SUMMARY = "sliced and exact W_2, CKA on one core beside the plain ways; false alarms and power of the tests"
BARS = {"sliced_ms": 0.5, "cka_ms": 2.5, "exact_ms": 10.0}
REPLICAS, PAIRS = 4, 6
TOKENS = 256
ANSWERS, ANSWER_TOKENS, DIMENSION = 6, 32, 64
PERMUTATIONS = 199


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=0, help="per figure (default 30, with --full 300)")
    parser.add_argument("--draws", type=int, default=0, help="per case of the power study (default 60, --full 400)")


def pot() -> Any:
    """The POT package, or None where it is not installed."""
    try:
        return importlib.import_module("ot")
    except ImportError:
        return None


def _beside(ours: dict[str, float], peers: dict[str, float | None]) -> dict[str, Any]:
    ratios = {f"over_{name}": round(ours["ms"] / ms, 3) for name, ms in peers.items() if ms}
    return {**ours, **{f"{name}_ms": ms for name, ms in peers.items()}, **ratios}


def _per_pair(figure: dict[str, float]) -> dict[str, float]:
    return {name: round(value / PAIRS, 4) for name, value in figure.items()}


def _sliced(rounds: int, dimension: int, dtype: Any) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    clouds = [rng.normal(size=(TOKENS, dimension)).astype(dtype) for _ in range(REPLICAS)]
    along = sliced.directions(dimension, dtype=dtype)

    def ours() -> np.ndarray:
        return sliced.pairwise([sliced.project(cloud, along) for cloud in clouds])

    def plain() -> list[float]:
        found = []
        for x, y in itertools.combinations(clouds, 2):
            step = np.sort(x @ along.rows.T, axis=0) - np.sort(y @ along.rows.T, axis=0)
            found.append(math.sqrt(float((step**2).mean())))
        return found

    if not np.allclose(ours()[np.triu_indices(REPLICAS, 1)], plain(), rtol=1e-4):
        raise SystemExit("bench: the two ways to SW_2 differ")
    peers: dict[str, float | None] = {"plain": _per_pair(timed(plain, rounds))["ms"], "pot": None}
    if ot := pot():
        rows = along.rows.T

        def theirs() -> list[float]:
            return [
                float(ot.sliced_wasserstein_distance(x, y, projections=rows))
                for x, y in itertools.combinations(clouds, 2)
            ]

        peers["pot"] = _per_pair(timed(theirs, rounds))["ms"]
    return _beside(_per_pair(timed(ours, rounds)), peers)


def textbook_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased CKA of two feature matrices, each HSIC_1 by its formula (Song et al. 2012)."""
    n = len(x)

    def hsic(k: np.ndarray, m: np.ndarray) -> float:
        total = (k * m).sum() + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2.0 / (n - 2) * k.sum(axis=0) @ m.sum(axis=0)
        return float(total) / (n * (n - 3))

    k, m = x @ x.T, y @ y.T
    np.fill_diagonal(k, 0.0)
    np.fill_diagonal(m, 0.0)
    return hsic(k, m) / math.sqrt(hsic(k, k) * hsic(m, m))


def _cka(rounds: int) -> dict[str, Any]:
    rng = np.random.default_rng(2)
    base = rng.normal(size=(TOKENS, TOKENS))
    maps = []
    for _ in range(REPLICAS):
        weights = np.tril(np.exp(base + rng.normal(size=base.shape)))
        maps.append((weights / weights.sum(axis=1, keepdims=True)).astype(np.float32))

    def ours() -> np.ndarray:
        return cka.pairwise([cka.gram(cka.attention_features(one)) for one in maps])

    def plain() -> list[float]:
        return [
            textbook_cka(cka.attention_features(a), cka.attention_features(b))
            for a, b in itertools.combinations(maps, 2)
        ]

    if not np.allclose(ours()[np.triu_indices(REPLICAS, 1)], plain(), atol=1e-4):
        raise SystemExit("bench: the two ways to CKA differ")
    hidden = [rng.normal(size=(TOKENS, 768)).astype(np.float32) for _ in range(REPLICAS)]
    long = [rng.normal(size=(1024, 1024)).astype(np.float32) for _ in range(REPLICAS)]
    return {
        **_beside(_per_pair(timed(ours, rounds)), {"textbook": _per_pair(timed(plain, rounds))["ms"]}),
        "hidden_256x768": _per_pair(timed(lambda: cka.pairwise([cka.gram(one) for one in hidden]), rounds)),
        "row_jsd_one_pair": timed(lambda: cka.row_jsd(maps[0], maps[1]), rounds),
        "exact_1024": _per_pair(timed(lambda: cka.pairwise([cka.gram(one) for one in long]), max(rounds // 10, 3))),
        "projected_1024": _per_pair(timed(lambda: _projected(long), max(rounds // 10, 3))),
    }


def _projected(features: list[np.ndarray]) -> list[float]:
    reduced = [cka.reduce(one) for one in features]
    return [cka.cka_projected(a, b) for a, b in itertools.combinations(reduced, 2)]


def _exact(rounds: int) -> dict[str, Any]:
    rng = np.random.default_rng(3)
    x, y = (rng.normal(size=(TOKENS, 1024)).astype(np.float32) for _ in range(2))

    def plain() -> float:
        cost = cdist(x, y, "sqeuclidean")
        rows, columns = linear_sum_assignment(cost)
        return math.sqrt(float(cost[rows, columns].mean()))

    if not math.isclose(transport.transport(x, y).distance, plain(), rel_tol=1e-5):
        raise SystemExit("bench: the two ways to W_2 differ")
    peers: dict[str, float | None] = {
        "scipy": timed(plain, rounds)["ms"],
        "matrix_product_and_scipy": timed(lambda: linear_sum_assignment(transport.squared_distances(x, y)), rounds)[
            "ms"
        ],
        "pot": None,
    }
    if ot := pot():
        equal = np.full(TOKENS, 1.0 / TOKENS)
        peers["pot"] = timed(lambda: ot.emd2(equal, equal, ot.dist(x, y), numItermax=10**8), rounds)["ms"]
    return _beside(timed(lambda: transport.transport(x, y), rounds), peers)


def whole_program(x: np.ndarray, y: np.ndarray, presolve: bool = True) -> float:
    """W_2^2 with equal weights by scipy's HiGHS over every cell (001 sec. 4.2)."""
    n, m = len(x), len(y)
    cells = np.arange(n * m)
    where = (np.concatenate((cells // m, n + cells % m)), np.tile(cells, 2))
    sums = coo_array((np.ones(2 * n * m), where), shape=(n + m, n * m)).tocsr()
    marginals = np.concatenate((np.full(n, 1.0 / n), np.full(m, 1.0 / m)))
    cost = cdist(x, y, "sqeuclidean").ravel()
    return float(linprog(cost, A_eq=sums, b_eq=marginals, method="highs", options={"presolve": presolve}).fun)


def _unequal(rounds: int) -> dict[str, Any]:
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(TOKENS, 1024)), rng.normal(size=(TOKENS - 5, 1024))
    found = transport.transport(x, y)
    if not math.isclose(found.squared, whole_program(x, y), rel_tol=1e-5):
        raise SystemExit("bench: the two linear programs differ")
    peers: dict[str, float | None] = {
        "scipy": timed(lambda: whole_program(x, y), 2)["ms"],
        "scipy_without_presolve": timed(lambda: whole_program(x, y, False), 2)["ms"],
        "pot": None,
    }
    if ot := pot():
        a, b = np.full(len(x), 1.0 / len(x)), np.full(len(y), 1.0 / len(y))
        peers["pot"] = timed(lambda: ot.emd2(a, b, ot.dist(x, y), numItermax=10**8), rounds)["ms"]
    ours = timed(lambda: transport.transport(x, y), max(rounds // 10, 3))
    return {**_beside(ours, peers), "gap_relative": found.gap / found.squared}


# ---- false alarms and power


def _answers(rng: np.random.Generator) -> np.ndarray:
    """Tokens of six answers (6, L, d), each answer with an offset of its own."""
    size = (ANSWERS, ANSWER_TOKENS, DIMENSION)
    return 0.3 * rng.normal(size=(ANSWERS, 1, DIMENSION)) + rng.normal(size=size)


def _outliers(tokens: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One of 32 tokens of every answer becomes one that the other replica never says."""
    changed = tokens.copy()
    changed[:, 0] = 2.0 + 0.1 * rng.normal(size=(ANSWERS, DIMENSION))
    return changed


CASES: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "nothing": lambda tokens, rng: tokens,
    "shift of .15 in every dimension": lambda tokens, rng: tokens + 0.15,
    "tokens 10 % farther from each other": lambda tokens, rng: 1.1 * tokens,
    "1 of 32 tokens replaced": _outliers,
}


def _kernels(tokens: np.ndarray, along: sliced.Directions) -> dict[str, np.ndarray]:
    clouds = list(tokens)
    pooled = tokens.reshape(-1, DIMENSION)
    sizes = [ANSWER_TOKENS] * len(clouds)
    means = tokens.mean(axis=1)
    return {
        "means (rival)": -cdist(means, means),
        "W_2": -transport.pairwise(clouds),
        "SW_2": -sliced.pairwise([sliced.project(cloud, along) for cloud in clouds]),
        "MMD rbf": mmd.between_blocks(mmd.kernel_matrix(pooled, "rbf"), sizes),
        "MMD energy": mmd.between_blocks(mmd.kernel_matrix(pooled, "energy"), sizes),
    }


def _power(draws: int) -> dict[str, dict[str, float]]:
    rng = np.random.default_rng(5)
    along = sliced.directions(DIMENSION)
    first = np.arange(2 * ANSWERS) < ANSWERS
    table: dict[str, dict[str, float]] = {}
    for case, change in CASES.items():
        rejected: dict[str, int] = {}
        for draw in range(draws):
            tokens = np.concatenate((_answers(rng), change(_answers(rng), rng)))
            for name, kernel in _kernels(tokens, along).items():
                found = mmd.permutation_test(kernel, first, PERMUTATIONS, draw)
                rejected[name] = rejected.get(name, 0) + (found.p_value <= 0.05)
        table[case] = {name: round(count / draws, 3) for name, count in rejected.items()}
        print(f"{case:36}" + "".join(f"{name:>16} {rate:.2f}" for name, rate in table[case].items()))
    return table


def _by_fisher(wrong: np.ndarray, families: np.ndarray) -> tuple[int, str]:
    """The rival: replica and family of the smallest one-sided Fisher p-value, Bonferroni over the cells, or nobody."""
    names = [*FAMILIES, "*"]
    found = []
    for name in names:
        rows = wrong if name == "*" else wrong[families == name]
        for replica in range(wrong.shape[1]):
            own, others = rows[:, replica], np.delete(rows, replica, axis=1)
            table = [[own.sum(), own.size - own.sum()], [others.sum(), others.size - others.sum()]]
            found.append((float(fisher_exact(table, alternative="greater").pvalue), replica, name))
    p_value, replica, name = min(found)
    return (replica, name) if p_value * len(found) <= 0.05 else (-1, "")


FAMILIES = ("geography", "history", "law", "physics")
BAD = (2, "geography")


def _attribution(draws: int) -> dict[str, Any]:
    """Four replicas, 12 prompts of four families, half of the prompts hard for all; one replica fails on one family."""
    rng = np.random.default_rng(6)
    families = np.repeat(FAMILIES, 12)
    found: dict[str, Any] = {}
    for case, failing in (
        ("nothing", None),
        ("one family, 40 % wrong more", 0.4),
        ("one family, 60 % wrong more", 0.6),
    ):
        named = {"permutation": [0, 0], "Fisher (rival)": [0, 0]}
        for draw in range(draws):
            hard = rng.random((len(families), 1)) < 0.5
            wrong = rng.random((len(families), 4)) < np.where(hard, 0.5, 0.05)
            if failing is not None:
                wrong[:12, BAD[0]] |= rng.random(12) < failing
            worst = attribution.attribute(wrong.astype(np.float64), families.tolist(), PERMUTATIONS, draw)[0]
            ours = (worst.replica, worst.family) if worst.p_value <= 0.05 else (-1, "")
            for name, who in (("permutation", ours), ("Fisher (rival)", _by_fisher(wrong, families))):
                named[name][0] += who[0] >= 0
                named[name][1] += who == BAD
        found[case] = {name: {"named": any_ / draws, "right": right / draws} for name, (any_, right) in named.items()}
        print(f"attribution: {case:30}" + "".join(f"{name:>18} {one}" for name, one in found[case].items()))
    return found


def run(given: argparse.Namespace) -> Result:
    rounds = given.rounds or (300 if given.full else 30)
    draws = given.draws or (400 if given.full else 60)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with threadpool_limits(1):  # two BLAS threads on one core wait for each other
        slices = {
            f"d_{dimension}_{np.dtype(dtype).name}": _sliced(rounds, dimension, dtype)
            for dimension, dtype in ((768, np.float32), (768, np.float64), (1024, np.float32))
        }
        kernels, exact, unequal = _cka(rounds), _exact(rounds), _unequal(rounds)
        table = _power(draws)
        named = _attribution(draws)
    figures = {"sliced_ms": slices["d_768_float32"]["ms"], "cka_ms": kernels["ms"], "exact_ms": exact["ms"]}
    closest = max(figures, key=lambda name: figures[name] / BARS[name])
    alarms = table["nothing"]
    interval = [float(binom.ppf(level, draws, 0.05)) / draws for level in (5e-4, 1.0 - 5e-4)]
    details = {
        "conditions": "one core; the bars: " + ", ".join(f"{name} {bar:g}" for name, bar in BARS.items()),
        "figures": figures,
        "sliced_per_pair_of_4": slices,
        "cka_256_per_pair_of_4": kernels,
        "exact_256x1024": exact,
        "unequal_256x251x1024": unequal,
        "pot_installed": pot() is not None,
        "power_at_5_percent": {"draws": draws, "false_alarms_allowed": interval, **table},
        "attribution_at_5_percent": named,
    }
    for name, value in figures.items():
        print(f"{name:12} {value:.3g}, bar {BARS[name]:g}")
    within = all(interval[0] <= rate <= interval[1] for rate in alarms.values())
    within = within and named["nothing"]["permutation"]["named"] <= interval[1]
    holds = within and all(value <= BARS[name] for name, value in figures.items())
    return Result(figures[closest], closest, BARS[closest], holds, details)
