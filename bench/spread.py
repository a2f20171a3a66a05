# SPDX-License-Identifier: Apache-2.0
"""What the spread of answers, as a decoding loop measures it, says of healthy tenants and of constructed collapses.

Tenants ask for JSON objects (``bench.json_world``) and get the right ones; token embeddings are drawn. SSE is read
after every eighth answer, from the 257th on. Then a share of the answers, for 128 answers, is one and the same object
("identical"), or that object with other digits ("nearly"), or the tenant asks for other fields than before ("shift").

    quiet     readings of healthy tenants at most .45, the limit of BH-1 and of looking ahead; their .1 % quantile
    caught    share of tenants with a reading at most .45 ("limit"), or below that quantile ("own")
    rival     the share of the most frequent text among the last 64, which needs no embedding, at its 99.9 % quantile

A share of 0 shows how often each is wrong in as many readings. It holds when no healthy reading is at most .45, and
when 128 answers that are all the same are always caught.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from bench import json_world
from bench.harness import Result
from bench.json_world import FIELDS, WORDS, Prompt
from mvps.serving.text_spread import RECENT, REFERENCE, TextSpread
from mvps.surplus.indicators import Limits

SUMMARY = "spread of answers as a decoding loop measures it: healthy tenants, and answers that become the same"
SHARES = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)
_EVERY = 8
_DIMENSIONS = 64
_LATE = 2 * RECENT
_DIGITS = tuple(WORDS.index(digit) for digit in "0123456789")


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tenants", type=int, default=0, help="default 6, with --full 24")
    parser.add_argument("--calm", type=int, default=1536, help="answers of a healthy tenant")


class Reading(NamedTuple):
    """SSE, and the share of the most frequent text, after an answer."""

    sse: float
    most: float


class Tenant:
    """One tenant, whose answers are noted and read."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng((67, seed))
        table = np.random.default_rng((71, seed)).normal(size=(len(WORDS), _DIMENSIONS)).astype(np.float32)
        self._spread = TextSpread(table)
        self._texts: deque[tuple[int, ...]] = deque(maxlen=RECENT)
        self.seconds = 0.0

    def readings(self, answers: Iterator[list[int]], count: int) -> list[Reading]:
        """Take so many answers."""
        found = []
        for k in range(1, count + 1):
            answer = next(answers)
            self._texts.append(tuple(answer))
            begun = time.perf_counter()
            self._spread.note("tenant", answer)
            known = self._spread.read() if k % _EVERY == 0 else {}
            self.seconds += time.perf_counter() - begun
            if "tenant" in known:
                found.append(Reading(known["tenant"], Counter(self._texts).most_common(1)[0][1] / len(self._texts)))
        return found


def asked(rng: np.random.Generator, fields: frozenset[str]) -> Prompt:
    """A prompt whose fields are all among these."""
    while True:
        one = json_world.prompt(rng)
        if one.wanted.keys() <= fields:
            return one


def well(rng: np.random.Generator, fields: frozenset[str]) -> Iterator[list[int]]:
    """The right answers to new prompts."""
    while True:
        yield asked(rng, fields).answer


def collapsed(rng: np.random.Generator, fields: frozenset[str], share: float, nearly: bool) -> Iterator[list[int]]:
    """As ``well``, but a share is one answer, or that answer with other digits."""
    one = asked(rng, fields).answer
    while not set(one) & set(_DIGITS):
        one = asked(rng, fields).answer
    for healthy in well(rng, fields):
        if rng.random() >= share:
            yield healthy
        elif nearly:
            yield [int(rng.choice(_DIGITS)) if token in _DIGITS else token for token in one]
        else:
            yield one


FIRST = frozenset(("name", "note", "age", "size", "open", "tags"))
OTHER = frozenset(("nums", "at", "open", "size"))


def run(given: argparse.Namespace) -> Result:
    count, limit = given.tenants or (24 if given.full else 6), Limits().sse
    every = frozenset(FIELDS)
    quiet: list[list[Reading]] = []
    seconds = 0.0
    for seed in range(count):
        tenant = Tenant(seed)
        quiet.append(tenant.readings(well(tenant.rng, every), REFERENCE + given.calm))
        seconds += tenant.seconds
    flat = [one for readings in quiet for one in readings]
    own = float(np.quantile([one.sse for one in flat], 0.001))
    most = float(np.quantile([one.most for one in flat], 0.999))
    false = float(np.mean([one.sse <= limit for one in flat]))
    print(f"healthy: {len(flat)} readings, least {min(one.sse for one in flat):.3f}, .1 % quantile {own:.3f}")
    rows = []
    for nearly in (False, True):
        for share in SHARES:
            late = []
            for seed in range(count):
                tenant = Tenant(1000 + seed)
                tenant.readings(well(tenant.rng, every), REFERENCE)
                late.append(tenant.readings(collapsed(tenant.rng, every, share, nearly), _LATE))
            rows.append(_row("nearly" if nearly else "identical", share, late, limit, own, most))
    late = []
    for seed in range(count):
        tenant = Tenant(2000 + seed)
        tenant.readings(well(tenant.rng, FIRST), REFERENCE)
        late.append(tenant.readings(well(tenant.rng, OTHER), REFERENCE + _LATE))
    rows.append(_row("shift", 1.0, [one[: _LATE // _EVERY] for one in late], limit, own, most))
    relearned = float(np.mean([one.sse > limit for readings in late for one in readings[-RECENT // _EVERY :]]))
    micros = 1e6 * seconds / (count * (REFERENCE + given.calm))
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    print(f"after a shift and {REFERENCE} answers {relearned:.3f} of the readings are above {limit} again")
    details = {
        "conditions": f"{count} tenants, readings after every {_EVERY} answers, embeddings of {_DIMENSIONS} dimensions",
        "quiet": {
            "readings": len(flat),
            "at_most_the_limit": false,
            "least": round(min(one.sse for one in flat), 3),
            "median": round(float(np.median([one.sse for one in flat])), 3),
            "quantile_0.1_percent": round(own, 3),
            "most_frequent_99.9_percent": round(most, 3),
        },
        "late": rows,
        "shift_learned_again": round(relearned, 3),
        "us_an_answer": round(micros, 1),
    }
    certain = next(row for row in rows if row["kind"] == "identical" and row["share"] == 1.0)
    return Result(false, "healthy readings at most .45", 0.0, false == 0.0 and certain["caught_limit"] == 1.0, details)


def _row(
    kind: str, share: float, late: Sequence[Sequence[Reading]], limit: float, own: float, most: float
) -> dict[str, object]:
    settled = [one.sse for readings in late for one in readings[RECENT // _EVERY :]]
    return {
        "kind": kind,
        "share": share,
        "sse": round(float(np.mean(settled)), 3),
        "caught_limit": round(float(np.mean([min(one.sse for one in readings) <= limit for readings in late])), 3),
        "caught_own": round(float(np.mean([min(one.sse for one in readings) < own for readings in late])), 3),
        "caught_rival": round(float(np.mean([max(one.most for one in readings) > most for readings in late])), 3),
    }
