# SPDX-License-Identifier: Apache-2.0
"""One round of questions: the canary to every replica, now and then again and in other words, answers to distances.

The texts live as long as the round, but for the last answers of each family: answers to other prompts are what
"unrelated" means.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mvps.ai.budget import Budget
from mvps.ai.config import AiConfig
from mvps.ai.encoder import Cloud, Clouds, EncoderError, Pointed
from mvps.ai.group import Group, Report, Round
from mvps.ai.load_meter import LoadMeter
from mvps.ai.prompts import Canary
from mvps.ai.replica import Answer, Respondent, Sampling
from mvps.ai.replica_load import ReplicaLoad, of_round
from mvps.ai.whitebox import Reader
from mvps.coherence.observation import FloatArray
from mvps.semantic.transport import pairwise, transport

# While the scales are being found, rephrasings come this often, and replays in every round.
_CALIBRATION_FULL_EVERY = 5


@dataclass(frozen=True, slots=True)
class _Asked:
    """One replica's answers of one round: to the canary, to its repetition, and to it in other words."""

    first: Answer
    again: Answer | None
    other: tuple[Answer, ...]

    def all(self) -> tuple[Answer, ...]:
        return (self.first, *([self.again] if self.again else ()), *self.other)


class Probe:
    """Asks the group; :meth:`round` once a period. reader: of a white-box group, whose tokens it reads too. meters:
    of the replicas' engines, by replica.
    """

    def __init__(
        self,
        config: AiConfig,
        canaries: Sequence[Canary],
        replicas: Sequence[Respondent],
        encoder: Clouds,
        group: Group,
        clock: Callable[[], float] = time.monotonic,
        reader: Reader | None = None,
        meters: Mapping[str, LoadMeter] | None = None,
    ) -> None:
        self._meters = dict(meters or {})
        self._own: Counter[str] = Counter()  # questions of ours that each engine has finished since it was read
        self._pace = config.pace
        self._sampling = Sampling(config.pace.max_tokens, config.pace.temperature, config.pace.seed)
        self._canaries = tuple(canaries)
        self._replicas = tuple(replicas)
        self._encoder = encoder
        self._group = group
        self._clock = clock
        self._reader = reader
        largest = len(replicas) * (2 + config.pace.rephrasings)
        self._budget = Budget(config.pace.requests_per_hour, largest, clock())
        self._index = -1
        self._draw = random.Random(0)
        self._last: dict[str, dict[int, Cloud]] = {}  # family -> replica -> its last answer's cloud
        self._golden: dict[str, tuple[int, int]] = {}
        self.requests = 0
        self.skipped: Counter[str] = Counter()

    async def round(self) -> Report | None:
        """Ask the next canary; None when the budget does not allow it, which is counted in ``skipped``."""
        self._index += 1
        canary = self._canaries[self._index % len(self._canaries)]
        calibrating = self._group.calibrating
        every = _CALIBRATION_FULL_EVERY if calibrating else self._pace.full_every
        words = list(canary.rephrasings) if self._index % every == 0 else []
        if len(words) > self._pace.rephrasings:
            words = self._draw.sample(words, self._pace.rephrasings)
        replay = calibrating or self._index % self._pace.replay_every == 0
        plan = self._afford(replay, words)
        if plan is None:
            return None
        replay, words = plan
        asked = await asyncio.gather(*(self._ask(one, canary.text, replay, words) for one in self._replicas))
        for name, one in zip((one.name for one in self._replicas), asked, strict=True):
            self._own[name] += _finished(one.all())
        seen = await self._understand(canary, asked, replay, len(words))
        report = self._group.step(dataclasses.replace(seen, loads=await self._loads()))
        await self._examine(report.brittle)
        return dataclasses.replace(report, golden=dict(self._golden))

    async def _loads(self) -> Mapping[str, ReplicaLoad]:
        """What the engines counted since the last time, other than our own questions."""
        names = list(self._meters)
        told = await asyncio.gather(*(self._meters[name].read(self._own[name]) for name in names))
        self._own.clear()
        return of_round(dict(zip(names, told, strict=True)))

    async def _examine(self, brittle: Sequence[str]) -> None:
        """Golden set (001 sec. 7.3): a family that is newly labelled CBF is asked everything that can be graded."""
        self._golden = {family: found for family, found in self._golden.items() if family in brittle}
        for family in brittle:
            graded = [one for one in self._canaries if one.family == family and one.expect]
            if family in self._golden or not graded:
                continue
            if not self._budget.take(len(self._replicas), self._clock()):
                self.skipped["golden sets"] += 1
                continue
            wrong = asked = 0
            for number, canary in enumerate(graded):
                if number and not self._budget.take(len(self._replicas), self._clock()):
                    self.skipped["golden questions"] += len(graded) - number
                    break
                self.requests += len(self._replicas)
                answers = await asyncio.gather(*(one.ask(canary.text, self._sampling) for one in self._replicas))
                for name, answer in zip((one.name for one in self._replicas), answers, strict=True):
                    self._own[name] += _finished([answer])
                there = [one for one in answers if one.outcome.comparable]
                asked += len(there)
                wrong += sum(not _holds(one, canary.expect) for one in there)
            self._golden[family] = (wrong, asked)

    def _afford(self, replay: bool, words: list[str]) -> tuple[bool, list[str]] | None:
        """As much of the round as the budget allows: first the rephrasings go, then the replays, then all of it."""
        for again, others in ((replay, words), (replay, []), (False, [])):
            requests = len(self._replicas) * (1 + again + len(others))
            if self._budget.take(requests, self._clock()):
                self.requests += requests
                self.skipped["rephrasings"] += len(words) > len(others)
                self.skipped["replays"] += replay > again
                return again, others
        self.skipped["rounds"] += 1
        return None

    async def _ask(self, replica: Respondent, text: str, replay: bool, words: Sequence[str]) -> _Asked:
        """Everything one replica is asked, one after another: two questions at once would slow each other."""
        first = await replica.ask(text, self._sampling)
        again = await replica.ask(text, self._sampling) if replay else None
        return _Asked(first, again, tuple([await replica.ask(other, self._sampling) for other in words]))

    async def _understand(self, canary: Canary, asked: Sequence[_Asked], replay: bool, words: int) -> Round:
        number = len(asked)
        clouds, left_out, failed = await self._clouds(asked)
        firsts = [clouds[row][0] for row in range(number)]
        between = np.full((number, number), np.nan)
        there = [row for row in range(number) if firsts[row] is not None]
        if len(there) > 1:
            between[np.ix_(there, there)] = pairwise([c for c in firsts if c is not None])
        replayed = _far([(firsts[r], clouds[r][1]) for r in range(number)]) if replay else None
        rephrased = None
        same_meaning = None
        if words:
            offset = 1 + replay
            rephrased = np.stack(
                [_far([(firsts[r], clouds[r][offset + k]) for r in range(number)]) for k in range(words)], axis=1
            )
            if canary.expect:
                held = np.array([[_holds(one, canary.expect) for one in (a.first, *a.other)] for a in asked])
                same_meaning = held[:, :1] & held[:, 1:]
        wrong = None
        if canary.expect:
            wrong = np.array(
                [float(not _holds(a.first, canary.expect)) if a.first.outcome.comparable else np.nan for a in asked]
            )
        unrelated = self._unrelated(canary.family, firsts)
        made = Round(
            self._index,
            canary.family,
            self._index % len(self._canaries),
            np.array([_or_nan(a.first, a.first.ttft_s) for a in asked]),
            np.array([_or_nan(a.first, a.first.total_s) for a in asked]),
            between,
            replayed,
            unrelated,
            rephrased,
            same_meaning,
            wrong,
            tuple(Counter(str(answer.outcome) for answer in a.all()) for a in asked),
            left_out,
            failed,
        )
        if self._reader is None:
            return made
        said = next((one.first.text for one in asked if one.first.outcome.comparable), "")
        return await self._reader.read_into(made, canary.text, said)

    async def _clouds(self, asked: Sequence[_Asked]) -> tuple[list[list[Cloud | None]], int, bool]:
        """Every answer as a cloud, in the order of ``_Asked.all``; sentences left out; whether the encoder failed."""
        texts = [[answer.text if answer.outcome.comparable else "" for answer in one.all()] for one in asked]
        try:
            known = await self._encoder.clouds(list(dict.fromkeys(text for row in texts for text in row if text)))
        except EncoderError:
            return [[None] * len(row) for row in texts], 0, True
        pointed = [[known[text] if text else Pointed(None, 0) for text in row] for row in texts]
        left_out = sum(one.left_out for row in pointed for one in row)
        return [[one.cloud for one in row] for row in pointed], left_out, False

    def _unrelated(self, family: str, firsts: Sequence[Cloud | None]) -> FloatArray:
        """Distances of each replica's answer to its last ones in other families; this round's is kept for later."""
        pairs = [
            (cloud, other[replica])
            for replica, cloud in enumerate(firsts)
            for name, other in self._last.items()
            if name != family and cloud is not None and replica in other
        ]
        self._last[family] = {replica: cloud for replica, cloud in enumerate(firsts) if cloud is not None}
        return _far(pairs)


def _far(pairs: Sequence[tuple[Cloud | None, Cloud | None]]) -> FloatArray:
    """Distance of each pair of clouds, NaN where one is missing."""
    return np.array([np.nan if a is None or b is None else transport(a, b).distance for a, b in pairs])


def _finished(answers: Sequence[Answer]) -> int:
    """How many an engine counts among its finished requests."""
    return sum(answer.total_s is not None for answer in answers)


def _or_nan(answer: Answer, seconds: float | None) -> float:
    return seconds if answer.outcome.comparable and seconds is not None else np.nan


def _holds(answer: Answer, expected: str) -> bool:
    return answer.outcome.comparable and expected.casefold() in answer.text.casefold()
