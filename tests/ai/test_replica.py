# SPDX-License-Identifier: Apache-2.0
"""Whatever a replica does is an outcome, over real HTTP."""

from __future__ import annotations

import math
import socket

import aiohttp
import pytest
from tests.ai.scripted import Reply, serving

from mvps.ai.outcome import Outcome
from mvps.ai.replica import MAX_ANSWER_BYTES, Answer, Replica, Sampling


async def ask(reply: Reply, **options: object) -> Answer:
    async with serving(lambda _: reply) as server, aiohttp.ClientSession() as session:
        timeout_s = 0.5 if reply.how == "hang" else 60.0
        replica = Replica(session, "a", server.url, "m", timeout_s=timeout_s, **options)  # type: ignore[arg-type]
        return await replica.ask("why?", Sampling())


async def test_an_answer_has_its_text_its_times_and_its_tokens() -> None:
    answer = await ask(Reply("because of light", first_s=0.05))
    assert (answer.outcome, answer.text, answer.tokens) == (Outcome.ANSWERED, "because of light", 3)
    assert answer.ttft_s is not None
    assert answer.total_s is not None
    assert 0.05 <= answer.ttft_s <= answer.total_s


@pytest.mark.parametrize(
    ("reply", "outcome", "status"),
    [
        (Reply("half an ans", finish="length"), Outcome.CUT, 200),
        (Reply(""), Outcome.EMPTY, 200),
        (Reply(" \n "), Outcome.EMPTY, 200),
        (Reply("half", how="break"), Outcome.BROKEN, 200),
        (Reply("half", how="silent"), Outcome.BROKEN, 200),
        (Reply("", how="garbage"), Outcome.MALFORMED, 200),
        (Reply("", how="endless"), Outcome.OVERSIZED, 200),
        (Reply("word " * MAX_ANSWER_BYTES), Outcome.OVERSIZED, 200),
        (Reply("", how="hang"), Outcome.TIMEOUT, 200),
        (Reply("", status=503), Outcome.REFUSED, 503),
        (Reply("", status=307), Outcome.REFUSED, 307),
    ],
    ids=lambda value: value.how + str(value.status) if isinstance(value, Reply) else str(value),
)
async def test_every_way_to_fail_has_its_own_outcome(reply: Reply, outcome: Outcome, status: int) -> None:
    answer = await ask(reply)
    assert (answer.outcome, answer.status) == (outcome, status)
    assert answer.outcome.comparable == (outcome is Outcome.CUT)


async def test_nobody_there_is_unreachable() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        async with aiohttp.ClientSession() as session:
            replica = Replica(session, "a", f"http://127.0.0.1:{taken.getsockname()[1]}/v1", "m")
            assert (await replica.ask("why?", Sampling())).outcome is Outcome.UNREACHABLE


async def test_log_probabilities_come_where_they_are_asked_for() -> None:
    answer = await ask(Reply("a b c", logprob=math.log(0.5)), logprobs=True)
    assert answer.logprobs == (math.log(0.5),) * 3


async def test_the_question_is_the_standard_one_and_the_key_a_bearer_token() -> None:
    async with serving(lambda _: Reply("yes")) as server, aiohttp.ClientSession() as session:
        await Replica(session, "a", server.url, "m", key="s3cret").ask("why?", Sampling(7, 0.5, 3))
        (body,) = server.asked
        assert server.headers["Authorization"] == "Bearer s3cret"
    assert body["messages"] == [{"role": "user", "content": "why?"}]
    assert (body["model"], body["max_tokens"], body["temperature"], body["seed"]) == ("m", 7, 0.5, 3)
    assert body["stream"] is True
    assert "logprobs" not in body


async def test_an_answers_text_is_in_no_log_line() -> None:
    assert "light" not in repr(await ask(Reply("because of light")))
