# SPDX-License-Identifier: Apache-2.0
"""Rounds over real HTTP: what is asked, what it costs, what leaves the vantage."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import numpy as np
import pytest
from tests.ai.scripted import Reply, Scripted, serving

from mvps.ai.config import AiConfig
from mvps.ai.encoder import Encoder
from mvps.ai.group import Group, Report, Round
from mvps.ai.probe import Probe
from mvps.ai.prompts import Canary
from mvps.ai.replica import Replica
from mvps.ai.replica_load import ReplicaLoad
from mvps.semantic import profiles

CANARIES = (
    Canary("places", "Capital of France?", ("France's capital?", "Which city governs France?"), "Paris"),
    Canary("tints", "Colour of the sky?", ("The sky is which colour?", "Sky colour?"), "blue"),
)
ANSWERS = {"France": "Paris of course", "sky": "Blue mostly", "Sky": "Blue mostly"}


def truthful(question: str) -> Reply:
    return Reply(next(answer for word, answer in ANSWERS.items() if word in question))


class Recording(Group):
    """A group that keeps the rounds it is given."""

    def __init__(self, names: list[str]) -> None:
        limits = {"*": (0.6, 0.8)}
        super().__init__(names, profiles.BLACK, "e", limits, scale_ticks=20, baseline_ticks=60)
        self.rounds: list[Round] = []

    def step(self, seen: Round) -> Report:
        self.rounds.append(seen)
        return super().step(seen)


@contextlib.asynccontextmanager
async def probing(
    replies: list[Callable[[str], Reply]], **pace: Any
) -> AsyncIterator[tuple[Probe, Recording, list[Scripted]]]:
    async with contextlib.AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(serving(reply)) for reply in replies]
        session = await stack.enter_async_context(aiohttp.ClientSession())
        names = [f"r{n}" for n in range(len(servers))]
        config = AiConfig.model_validate(
            {
                "name": "g",
                "replica": [{"name": n, "url": s.url, "model": "m"} for n, s in zip(names, servers, strict=True)],
                "encoder": {"url": servers[0].url, "model": "e"},
                "pace": {"rephrasings": 2, "requests_per_hour": 10_000_000, **pace},
            }
        )
        group = Recording(names)
        replicas = [Replica(session, n, s.url, "m", timeout_s=2.0) for n, s in zip(names, servers, strict=True)]
        clock = iter(range(10_000))
        encoder = Encoder(session, servers[0].url, "e")
        yield Probe(config, CANARIES, replicas, encoder, group, lambda: float(next(clock))), group, servers


async def test_replicas_that_say_the_same_have_distance_zero_and_other_prompts_are_far() -> None:
    async with probing([truthful] * 3) as (probe, group, servers):
        for _ in range(4):
            assert await probe.round() is not None
        first, second = group.rounds[0], group.rounds[1]
        assert first.between == pytest.approx(np.zeros((3, 3)))
        assert first.replayed == pytest.approx(np.zeros(3))
        assert first.rephrased == pytest.approx(np.zeros((3, 2)))
        assert first.same_meaning is not None
        assert first.same_meaning.all()
        assert first.wrong == pytest.approx(np.zeros(3))
        assert first.unrelated.size == 0  # nothing else was asked yet
        assert second.unrelated == pytest.approx(np.full(3, np.sqrt(2.0)))
        assert np.isfinite(first.ttft).all()
        # The canary, its replay, two rephrasings; then the canary and its replay.
        assert [len(server.asked) for server in servers] == [4 + 2 + 2 + 2] * 3
        assert probe.requests == 30


async def test_one_that_is_wrong_and_one_that_fails_stand_out_in_the_numbers() -> None:
    async with probing([truthful, lambda _: Reply("Lyon"), lambda _: Reply(status=500)]) as (probe, group, _):
        report = await probe.round()
        assert report is not None
        seen = group.rounds[0]
        assert seen.between[0, 1] == pytest.approx(np.sqrt(2.0))
        assert np.isnan(seen.between[2]).all()
        assert np.isnan(seen.ttft[2])
        assert seen.wrong is not None
        assert seen.wrong[:2].tolist() == [0.0, 1.0]
        assert np.isnan(seen.wrong[2])
        assert report.outcomes["r2"] == {"refused": 4}


async def test_a_failing_encoder_is_a_round_without_distances() -> None:
    async with probing([truthful] * 2) as (probe, group, servers):
        from aiohttp import web

        servers[0].embed = lambda _: web.Response(status=503)
        assert await probe.round() is not None
        assert group.rounds[0].encoder_failed
        assert np.isnan(group.rounds[0].between[0, 1])
        assert np.isfinite(group.rounds[0].ttft).all()


async def test_over_the_budget_rephrasings_go_first_then_replays_then_rounds() -> None:
    # Eight requests at first and one more for every three looks at the clock; a round wants four, every fifth eight.
    async with probing([truthful] * 2, requests_per_hour=1200, rephrasings=2) as (probe, _, servers):
        for _ in range(12):
            await probe.round()
        asked = sum(len(server.asked) for server in servers)
        assert asked == probe.requests
        assert probe.skipped["rephrasings"] >= 1
        assert probe.skipped["replays"] >= 1
        assert probe.skipped["rounds"] >= 1


async def test_a_brittle_family_is_asked_its_golden_set_once_for_each_time_it_is_labelled() -> None:
    async with probing([truthful, lambda _: Reply("Lyon"), lambda _: Reply(status=500)]) as (probe, group, servers):
        brittle: tuple[str, ...] = ("places",)
        step = group.step
        group.step = lambda seen: dataclasses.replace(step(seen), brittle=brittle)  # type: ignore[method-assign]
        first, second = await probe.round(), await probe.round()
        assert first is not None
        assert second is not None
        assert first.golden == second.golden == {"places": (1, 2)}
        assert [body["messages"][0]["content"] for body in servers[0].asked].count(CANARIES[0].text) == 2 + 1
        brittle = ()
        third = await probe.round()
        assert third is not None
        assert third.golden == {}


async def test_only_scalars_leave_no_word_of_prompt_answer_or_embedding() -> None:
    async with probing([truthful] * 3) as (probe, _, _servers):
        reports = [await probe.round() for _ in range(30)]
    wire = "\n".join(json.dumps(dataclasses.asdict(r)) for r in reports if r is not None)
    texts = [c.text for c in CANARIES] + [w for c in CANARIES for w in c.rephrasings] + list(ANSWERS.values())
    words = {word.casefold().strip("?'") for text in texts for word in text.split() if len(word) > 3}
    assert "places" in wire  # the family's name travels, and so a word of a prompt would be found
    assert not {word for word in words if f'"{word}' in wire.casefold() or f" {word} " in wire.casefold()}

    def longest(value: object) -> int:
        if isinstance(value, dict):
            return max((longest(v) for v in value.values()), default=0)
        if isinstance(value, list):
            return max([sum(isinstance(v, float) for v in value), *(longest(v) for v in value)], default=0)
        return 0

    assert max(longest(json.loads(line)) for line in wire.splitlines()) == 0  # no vectors


class Page:
    """An engine's counters that grow by a user's requests, and by ours, which the meter is told of."""

    problem = ""

    def __init__(self) -> None:
        self.own: list[int] = []

    async def read(self, own: int = 0) -> ReplicaLoad | None:
        self.own.append(own)
        return ReplicaLoad(7, 0, 0)


async def test_a_round_carries_what_the_engines_counted_and_they_are_told_what_was_ours() -> None:
    async with probing([truthful, truthful, lambda _: Reply(status=500)]) as (probe, group, _):
        pages = {name: Page() for name in group.replicas}
        probe._meters = pages  # type: ignore[assignment]
        for _ in range(2):
            await probe.round()
        assert group.rounds[0].loads == dict.fromkeys(group.replicas, ReplicaLoad(7, 0, 0))
        # The canary, its replay, two rephrasings; then the canary and its replay. Refused questions are not counted.
        assert [page.own for page in pages.values()] == [[4, 2], [4, 2], [0, 0]]
