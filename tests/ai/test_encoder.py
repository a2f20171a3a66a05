# SPDX-License-Identifier: Apache-2.0
"""Sentences become unit vectors, or an error that repeats nothing of them."""

from __future__ import annotations

import json

import aiohttp
import numpy as np
import pytest
from aiohttp import web
from tests.ai.scripted import Reply, serving

from mvps.ai.encoder import MAX_SENTENCES, Encoder, EncoderError, sentences


async def encode(texts: list[str], response: object = None, status: int = 200) -> np.ndarray:
    async with serving(lambda _: Reply()) as server, aiohttp.ClientSession() as session:
        if response is not None:
            text = response if isinstance(response, str) else json.dumps(response)
            server.embed = lambda _: web.Response(text=text, status=status)
        return await Encoder(session, server.url, "m", timeout_s=5.0).encode(texts)


async def test_vectors_come_in_the_order_of_the_texts_and_have_length_one() -> None:
    found = await encode(["red", "green green", "red"])
    assert np.linalg.norm(found, axis=1) == pytest.approx([1.0] * 3)
    assert found[0] == pytest.approx(found[2])
    assert found[0] @ found[1] == pytest.approx(0.0)


async def test_nothing_to_encode_asks_nobody() -> None:
    assert (await encode([], "unused", 500)).shape[0] == 0


@pytest.mark.parametrize(
    ("response", "status", "words"),
    [
        ("oops", 200, "not a list of embeddings"),
        ({"data": []}, 200, "shape"),
        ({"data": [{"index": 0, "embedding": [0.0, 0.0]}]}, 200, "zero"),
        ({"data": [{"index": 0, "embedding": [1.0, float("nan")]}]}, 200, "not finite"),
        ({"data": [{"index": 0, "embedding": "abc"}]}, 200, "not a list"),
        ({"data": [{"embedding": [1.0]}]}, 200, "not a list"),
        ({"data": [{"index": 0, "embedding": [1.0] * 9000}]}, 200, "shape"),
        ("[" * 100_000, 200, "not a list"),
        ("", 500, "status 500"),
    ],
)
async def test_a_bad_answer_is_an_error_that_does_not_repeat_the_text(
    response: object, status: int, words: str
) -> None:
    with pytest.raises(EncoderError, match=words) as caught:
        await encode(["confidential"], response, status)
    assert "confidential" not in str(caught.value)


async def test_more_dimensions_than_before_are_an_error() -> None:
    async with serving(lambda _: Reply()) as server, aiohttp.ClientSession() as session:
        encoder = Encoder(session, server.url, "m")
        await encoder.encode(["a"])
        server.embed = lambda _: web.json_response({"data": [{"index": 0, "embedding": [1.0, 2.0]}]})
        with pytest.raises(EncoderError, match="changed from 256 to 2"):
            await encoder.encode(["a"])


def test_sentences_are_found_and_those_beyond_the_limit_counted() -> None:
    assert sentences("Paris. It is in France!\nIs it?") == (["Paris.", "It is in France!", "Is it?"], 0)
    assert sentences(" ... ") == ([], 0)
    found, left_out = sentences("a. " * (MAX_SENTENCES + 3))
    assert (len(found), left_out) == (MAX_SENTENCES, 3)
