# SPDX-License-Identifier: Apache-2.0
"""What the controller adds to sampling one token, beside plain top-k softmax sampling of the same logits.

Three parties take turns on the same logits of a 131,072-token vocabulary, for one request and for 64: plain top-k
softmax sampling as numpy offers it (argpartition), the same with our top-k, and the controller: top-k, where the text
would stand with each candidate (embeddings of 1,024 dimensions, 20 constraint axes), every term of L and Gamma, the
exact KL tilt, the written logits measured again, and the draw. One thread. Logits are copied into place before each
turn, outside the clock. Structure is judged by a checker that only looks up a table: a JSON parser's time is its own.

The budget is then put to the test over random cases of every unkind sort, as the logits were written.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from bench.harness import Result
from mvps.surplus.candidates import taken, top_k
from mvps.surplus.controller import Control, Controller, Modes, Requests, Settings, Step, Terrain, drawn
from mvps.surplus.geometry import basis

SUMMARY = "what the logits controller adds to plain top-k sampling, at a vocabulary of 131,072"
BAR_RATIO = 1.25
BAR_EXCESS = 1e-6
VOCABULARY, DIMENSIONS, CONSTRAINTS, K = 131_072, 1024, 20, 8
BATCHES = (1, 64)
_CASE_ROWS, _CASE_VOCABULARY = 2000, 64


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=0.0, help="per batch size (default 8, with --full 120)")


class _Table:
    """A structure checker that costs nothing of its own: every 16th token breaks, every 16th repairs."""

    def valid_length(self, slots: NDArray[np.integer], paths: NDArray[np.integer]) -> NDArray[np.int64]:
        return (paths[:, :, 0] % 16 > 0).astype(np.int64)

    def structural(self, tokens: NDArray[np.integer]) -> NDArray[np.bool_]:
        return tokens % 16 == 1

    def at_boundary(self, slots: NDArray[np.integer]) -> NDArray[np.bool_]:
        return np.zeros(len(slots), dtype=bool)

    def broken(self, slots: NDArray[np.integer]) -> NDArray[np.bool_]:
        return np.zeros(len(slots), dtype=bool)

    def advance(self, slots: NDArray[np.integer], tokens: NDArray[np.integer]) -> None:
        pass


def _controller(rows: int, terrain: Terrain, settings: Settings, checker: _Table | None) -> Controller:
    chance = np.random.default_rng(2)
    requests = Requests(rows, terrain.axes.shape[0])
    for slot in range(rows):
        requests.open(slot, chance.normal(size=terrain.axes.shape[0]), chance.normal(size=terrain.axes.shape[0]))
    return Controller(settings, terrain, requests, checker)


def _plain(select: Callable[[NDArray[np.float32], int], NDArray[np.intp]]) -> Callable[..., NDArray[np.integer]]:
    def sample(
        logits: NDArray[np.float32], temperature: NDArray[np.float64], uniform: NDArray[np.float64]
    ) -> NDArray[np.integer]:
        candidates = select(logits, K)
        z = taken(logits, candidates).astype(np.float64) / temperature[:, None]
        p = np.exp(z - z.max(axis=1, keepdims=True))
        return drawn(candidates, p / p.sum(axis=1, keepdims=True), uniform)

    return sample


def _argpartition(logits: NDArray[np.float32], k: int) -> NDArray[np.intp]:
    return np.argpartition(logits, -k, axis=1)[:, -k:]


def _race(rows: int, terrain: Terrain, seconds: float) -> dict[str, list[float]]:
    """Microseconds a step of each party, in turn until the time is over."""
    chance = np.random.default_rng(rows)
    pristine = [(chance.normal(size=(rows, VOCABULARY)) * 3).astype(np.float32) for _ in range(4)]
    slots, temperature = np.arange(rows), np.full(rows, 0.8)
    control = Control(np.full(rows, 0.4), np.full(rows, 0.01), np.full(rows, 0.6), np.zeros(rows, dtype=bool))
    controller = _controller(rows, terrain, Settings(), _Table())
    plain, ours = _plain(_argpartition), _plain(top_k)
    moved: list[Step] = []

    def controlled(
        logits: NDArray[np.float32], temperature: NDArray[np.float64], uniform: NDArray[np.float64]
    ) -> NDArray[np.integer]:
        step = controller.apply(logits, slots, control, temperature)
        moved[:] = [step]
        return step.sample(uniform)

    parties = {"plain": plain, "plain_our_top_k": ours, "controller": controlled}
    taken_us: dict[str, list[float]] = {name: [] for name in parties}
    logits = np.empty_like(pristine[0])
    turn, end = 0, time.monotonic() + seconds
    gc.collect()
    gc.freeze()
    while time.monotonic() < end:
        uniform = chance.random(rows)
        for name, party in parties.items():
            logits[:] = pristine[turn % len(pristine)]
            begun = time.perf_counter_ns()
            party(logits, temperature, uniform)
            taken_us[name].append((time.perf_counter_ns() - begun) / 1e3)
        turn += 1
        if not moved[0].kl.all():
            raise SystemExit("bench: a row was not moved")
    return taken_us


def _largest_excess(cases: int) -> tuple[float, int]:
    """Largest KL above its budget, of the logits as written, in extended precision; and how many rows moved."""
    chance = np.random.default_rng(3)
    dimensions = 16
    terrain = Terrain(
        chance.normal(size=(_CASE_VOCABULARY, dimensions)).astype(np.float32),
        basis(chance.normal(size=(3, dimensions))).astype(np.float32),
    )
    worst, moved = 0.0, 0
    for _ in range(-(-cases // _CASE_ROWS)):
        controller = _controller(_CASE_ROWS, terrain, Settings(eta_floor=0.0), _Table())
        shape = (_CASE_ROWS, _CASE_VOCABULARY)
        before = (chance.normal(size=shape) * 10.0 ** chance.uniform(-3, 5, size=(_CASE_ROWS, 1))).astype(np.float32)
        before[chance.random(shape) < 0.2] = -np.inf
        tied = chance.random(_CASE_ROWS) < 0.2
        before[tied] = np.round(before[tied])
        alone = chance.random(_CASE_ROWS) < 0.02
        before[alone, 1:] = -np.inf
        budget = 10.0 ** chance.uniform(-6, 1, size=_CASE_ROWS)
        temperature = 10.0 ** chance.uniform(-1, 1, size=_CASE_ROWS)
        control = Control(np.full(_CASE_ROWS, 0.4), budget, np.full(_CASE_ROWS, 0.6), np.zeros(_CASE_ROWS, dtype=bool))
        after = before.copy()
        step = controller.apply(after, np.arange(_CASE_ROWS), control, temperature)
        log_p, log_q = (
            _log_softmax(taken(z, step.candidates).astype(np.longdouble) / temperature[:, None])
            for z in (before, after)
        )
        with np.errstate(invalid="ignore"):
            kl = np.where(np.isfinite(log_q), np.exp(log_q) * (log_q - log_p), 0.0).sum(axis=1)
        worst = max(worst, float((kl - budget).max()))
        moved += int(np.count_nonzero(step.kl))
    return worst, moved


def _log_softmax(z: NDArray[np.longdouble]) -> NDArray[np.longdouble]:
    with np.errstate(invalid="ignore"):
        z = z - z.max(axis=1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def run(given: argparse.Namespace) -> Result:
    seconds = given.seconds or (120.0 if given.full else 8.0)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    chance = np.random.default_rng(1)
    of_token = np.full(VOCABULARY, -1, dtype=np.int16)
    of_token[:64] = np.arange(64) % 4
    modes = Modes(of_token, np.full(4, 50.0), np.full(4, 20.0), np.full((4, 4), 0.1))
    terrain = Terrain(
        chance.normal(size=(VOCABULARY, DIMENSIONS)).astype(np.float32),
        basis(chance.normal(size=(CONSTRAINTS, DIMENSIONS))).astype(np.float32),
        modes,
    )
    details: dict[str, object] = {"conditions": f"vocabulary {VOCABULARY}, k {K}, {DIMENSIONS} dimensions, one core"}
    ratios = []
    for rows in BATCHES:
        taken_us = _race(rows, terrain, seconds)
        median = {name: statistics.median(values) for name, values in taken_us.items()}
        ratio = median["controller"] / median["plain"]
        ratios.append(ratio)
        details[f"batch_{rows}"] = {
            "ratio_to_plain": round(ratio, 3),
            "ratio_to_plain_with_our_top_k": round(median["controller"] / median["plain_our_top_k"], 2),
            "steps": len(taken_us["plain"]),
            "median_us": {name: round(value, 1) for name, value in median.items()},
            "p99_us": {name: round(float(np.percentile(values, 99)), 1) for name, values in taken_us.items()},
            "p99_9_us": {name: round(float(np.percentile(values, 99.9)), 1) for name, values in taken_us.items()},
        }
        print(
            f"batch {rows:2}: controller {median['controller']:.0f} us, plain {median['plain']:.0f} us, "
            f"plain with our top-k {median['plain_our_top_k']:.0f} us a step"
        )
    cases = 1_000_000 if given.full else 100_000
    excess, moved = _largest_excess(cases)
    details["budget"] = {"cases": cases, "moved": moved, "largest_excess_nats": excess}
    print(f"largest KL above its budget over {cases} cases ({moved} moved): {excess:.1e} nats")
    holds = max(ratios) <= BAR_RATIO and excess <= BAR_EXCESS
    return Result(round(max(ratios), 3), "times plain top-k sampling", BAR_RATIO, holds, details)
