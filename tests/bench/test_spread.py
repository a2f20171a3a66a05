# SPDX-License-Identifier: Apache-2.0
"""Collapses are what they are called, and the benchmark tells them from health."""

from __future__ import annotations

import argparse
import itertools

import numpy as np
from bench import spread
from bench.json_world import END, FIELDS, WORDS

EVERY = frozenset(FIELDS)


def test_collapses_are_what_they_are_called() -> None:
    def first(share: float, nearly: bool) -> list[list[int]]:
        return list(itertools.islice(spread.collapsed(np.random.default_rng(1), EVERY, share, nearly), 60))

    assert len({tuple(one) for one in first(1.0, False)}) == 1
    nearly = first(1.0, True)
    assert len({tuple(one) for one in nearly}) > 50
    without = {tuple(token for token in one if token not in spread._DIGITS) for one in nearly}
    assert len(without) == 1
    assert len({tuple(one) for one in first(0.0, True)}) > 50
    half = first(0.5, False)
    assert 15 < max(half.count(one) for one in half) < 45
    assert all(one[-1] == END for one in half)


def test_a_tenant_asks_for_its_own_fields() -> None:
    rng = np.random.default_rng(2)
    for _ in range(30):
        assert spread.asked(rng, spread.OTHER).wanted.keys() <= spread.OTHER
    words = {WORDS[token] for one in itertools.islice(spread.well(rng, spread.FIRST), 30) for token in one}
    assert not words & {"nums", "at"}


def test_it_tells_collapse_from_health() -> None:
    parser = argparse.ArgumentParser()
    spread.options(parser)
    parser.add_argument("--full", action="store_true")
    found = spread.run(parser.parse_args(["--tenants", "2", "--calm", "256"]))
    assert found.holds
    rows = {(row["kind"], row["share"]): row for row in found.details["late"]}
    assert rows["identical", 0.0]["caught_limit"] == 0.0
    assert rows["identical", 1.0]["sse"] < 0.05
    assert rows["nearly", 1.0]["sse"] < rows["nearly", 0.5]["sse"] < rows["nearly", 0.0]["sse"]
    assert rows["identical", 1.0]["caught_rival"] == 1.0
    assert rows["nearly", 1.0]["caught_rival"] < 1.0, "of an answer with few digits some are the same"
