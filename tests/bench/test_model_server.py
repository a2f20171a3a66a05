# SPDX-License-Identifier: Apache-2.0
"""The vantage's own clients read the test server as they would read a serving engine."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import aiohttp
import numpy as np
import pytest
from bench.model_server import Said, serving

from mvps.ai.encoder import Encoder, EncoderError
from mvps.ai.outcome import Outcome
from mvps.ai.replica import Replica, Sampling


class Repeats:
    """Says the prompt's words again; at a temperature, numbers instead."""

    def generate(self, prompt: str, most: int, temperature: float, rng: np.random.Generator) -> tuple[list[Said], bool]:
        words = [str(rng.integers(1_000_000)) if temperature else word for word in prompt.split()]
        return [Said(word, -0.25) for word in words[:most]], len(words) <= most

    def embed(self, text: str) -> list[float]:
        return [float(len(text)), 1.0]


@contextlib.asynccontextmanager
async def asking(model: str = "one") -> AsyncIterator[tuple[Replica, Encoder]]:
    async with serving({"one": Repeats()}) as server, aiohttp.ClientSession() as session:
        yield Replica(session, "r", server.url, model, logprobs=True), Encoder(session, server.url, model)


async def test_an_answer_comes_with_its_words_and_log_probabilities():
    async with asking() as (replica, _):
        answer = await replica.ask("ka lo mi", Sampling(3))
        assert (answer.outcome, answer.text, answer.tokens) == (Outcome.ANSWERED, "ka lo mi", 3)
        assert answer.logprobs == (-0.25, -0.25, -0.25)
        assert (await replica.ask("ka lo mi", Sampling(2))).outcome is Outcome.CUT
        assert (await replica.ask("", Sampling(2))).outcome is Outcome.EMPTY


async def test_a_seed_repeats_an_answer_and_another_does_not():
    async with asking() as (replica, _):
        first, again, other, free, freer = [
            (await replica.ask("ka", Sampling(3, 1.0, seed))).text for seed in (1, 1, 2, None, None)
        ]
        assert first == again
        assert len({first, other, free, freer}) == 4


async def test_what_cannot_be_asked_is_refused():
    async with asking() as (replica, _):
        for sampling, status in ((Sampling(0), 400), (Sampling(3, 3.0), 400)):
            answer = await replica.ask("ka", sampling)
            assert (answer.outcome, answer.status) == (Outcome.REFUSED, status)
    async with asking("another") as (replica, encoder):
        assert (await replica.ask("ka", Sampling(3))).status == 404
        with pytest.raises(EncoderError, match="404"):
            await encoder.encode(["ka"])


async def test_embeddings_are_those_of_the_texts_in_their_order():
    async with asking() as (_, encoder):
        found = await encoder.encode(["a", "abcd"])
        assert found == pytest.approx(np.array([[1.0, 1.0], [4.0, 1.0]]) / np.sqrt([[2.0], [17.0]]))
        with pytest.raises(EncoderError, match="400"):
            await encoder.encode([""])
