# SPDX-License-Identifier: Apache-2.0
"""The frozen encoder phi (001 sec. 4.1): sentences of an answer as points of R^d, over ``POST /embeddings``.

An answer becomes one vector per sentence, so that a long answer is a cloud and a short one a point. Any
OpenAI-compatible embedding endpoint will do, and any model in this process (``sentence_model``); vectors are normalised
to length 1, so that distances of different encoders have one scale.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, NamedTuple, Protocol

import aiohttp
import numpy as np
from numpy.typing import NDArray

# Exact transport between clouds of different sizes is a linear program of that many squared cells.
MAX_SENTENCES: Final = 64
MAX_DIMENSIONS: Final = 8192
_SENTENCE = re.compile(r"[^.!?。！？\n]+[.!?。！？]*", re.UNICODE)


class EncoderError(Exception):
    """The encoder did not give what was asked for. The message says what happened, without any text that was sent."""


Cloud = NDArray[np.float64]  # points of one answer, (n, d)


class Pointed(NamedTuple):
    """A text as a cloud, None where it has no point; left_out: sentences beyond MAX_SENTENCES."""

    cloud: Cloud | None
    left_out: int


class Clouds(Protocol):
    """Whatever makes points of texts."""

    async def clouds(self, texts: Sequence[str]) -> Mapping[str, Pointed]:
        """Every text as a cloud. EncoderError when there are none."""


def sentences(text: str) -> tuple[list[str], int]:
    """Sentences of an answer, and how many were left out beyond MAX_SENTENCES."""
    found = [part.strip() for part in _SENTENCE.findall(text) if part.strip(" .!?。！？\n\t")]
    return found[:MAX_SENTENCES], max(len(found) - MAX_SENTENCES, 0)


async def clouds_of_sentences(
    encode: Callable[[Sequence[str]], Awaitable[NDArray[np.float64]]], texts: Sequence[str]
) -> dict[str, Pointed]:
    """Every text as the points of its sentences, each sentence encoded once. encode: texts -> unit vectors (n, d)."""
    parts = {text: sentences(text) for text in texts}
    flat = list(dict.fromkeys(sentence for found, _ in parts.values() for sentence in found))
    vectors = dict(zip(flat, await encode(flat), strict=True))
    return {
        text: Pointed(np.stack([vectors[one] for one in found]) if found else None, beyond)
        for text, (found, beyond) in parts.items()
    }


class Encoder:
    """Client of one embedding endpoint. key: bearer token, "" for none."""

    def __init__(
        self, session: aiohttp.ClientSession, url: str, model: str, *, key: str = "", timeout_s: float = 30.0
    ) -> None:
        self._session = session
        self._url = url.rstrip("/") + "/embeddings"
        self._model = model
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._timeout = timeout_s
        self._dimensions = 0

    async def clouds(self, texts: Sequence[str]) -> Mapping[str, Pointed]:
        """Every text as the points of its sentences. EncoderError when there are none."""
        return await clouds_of_sentences(self.encode, texts)

    async def encode(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Unit vectors of texts, shape (len(texts), d). EncoderError when there are none."""
        if not texts:
            return np.zeros((0, max(self._dimensions, 1)))
        body = {"model": self._model, "input": list(texts)}
        # Text of a number is at most 25 characters; more than that per value is no embedding.
        most = len(texts) * MAX_DIMENSIONS * 32
        try:
            async with asyncio.timeout(self._timeout):
                async with self._session.post(
                    self._url, json=body, headers=self._headers, allow_redirects=False
                ) as response:
                    if response.status != 200:
                        raise EncoderError(f"the encoder answered with status {response.status}")
                    content = await response.content.read(most + 1)
                    while len(content) <= most and not response.content.at_eof():
                        content += await response.content.read(most + 1 - len(content))
        except TimeoutError:
            raise EncoderError(f"the encoder did not answer within {self._timeout:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise EncoderError(f"the encoder cannot be reached: {type(error).__name__}") from None
        if len(content) > most:
            raise EncoderError("the encoder's answer is larger than embeddings can be")
        return self._vectors(content, len(texts))

    def _vectors(self, content: bytes, number: int) -> NDArray[np.float64]:
        try:
            rows = sorted(json.loads(content)["data"], key=lambda row: int(row["index"]))
            vectors = np.array([row["embedding"] for row in rows], dtype=np.float64)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            raise EncoderError("the encoder's answer is not a list of embeddings") from None
        if vectors.ndim != 2 or len(vectors) != number or not 1 <= vectors.shape[1] <= MAX_DIMENSIONS:
            raise EncoderError(f"the encoder gave embeddings of shape {vectors.shape} for {number} texts")
        if self._dimensions and vectors.shape[1] != self._dimensions:
            raise EncoderError(f"the encoder changed from {self._dimensions} to {vectors.shape[1]} dimensions")
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        if not np.all(np.isfinite(vectors)) or np.any(lengths == 0.0):
            raise EncoderError("the encoder gave a vector that is zero or not finite")
        self._dimensions = vectors.shape[1]
        unit: NDArray[np.float64] = vectors / lengths
        return unit
