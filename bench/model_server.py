# SPDX-License-Identifier: Apache-2.0
"""A small OpenAI-compatible server: streamed ``/v1/chat/completions`` with log probabilities, ``/v1/embeddings``.

It serves engines of one process under their names, one token an event. Sampling is drawn from ``seed`` where the
question has one, else from a stream of the server's own. Errors are the API's: 404 for an unknown model, 400 for a
question that is none.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from aiohttp import web

MOST_TOKENS = 256


class Said(NamedTuple):
    """One token and its log probability, in nats."""

    word: str
    logprob: float


class Engine(Protocol):
    """What can be served."""

    def generate(self, prompt: str, most: int, temperature: float, rng: np.random.Generator) -> tuple[list[Said], bool]:
        """Tokens, and whether the answer came to its end within ``most``."""

    def embed(self, text: str) -> list[float]:
        """One vector of a text."""


class Server:
    """Routes over engines by name. requests: questions answered so far."""

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        self._engines = dict(engines)
        self._own = np.random.default_rng(0)
        self.requests = 0
        self.url = ""

    def _engine(self, body: Any) -> Engine:
        name = body.get("model")
        if name not in self._engines:
            raise web.HTTPNotFound(text=json.dumps({"error": {"message": f"no model {name!r}"}}))
        return self._engines[name]

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """Stream an answer to the last message."""
        body = await _body(request)
        engine = self._engine(body)
        try:
            prompt = str(body["messages"][-1]["content"])
            most, temperature = int(body.get("max_tokens", 16)), float(body.get("temperature", 1.0))
            seed = body.get("seed")
            rng = self._own if seed is None else np.random.default_rng(int(seed))
        except (KeyError, IndexError, TypeError, ValueError):
            raise _bad("messages, max_tokens, temperature or seed cannot be read") from None
        if not 1 <= most <= MOST_TOKENS or not 0.0 <= temperature <= 2.0 or not body.get("stream"):
            raise _bad(f"max_tokens lies in 1..{MOST_TOKENS}, temperature in 0..2, and stream must be true")
        self.requests += 1
        said, ended = engine.generate(prompt, most, temperature, rng)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for place, (word, logprob) in enumerate(said):
            choice: dict[str, Any] = {"index": 0, "delta": {"content": f" {word}" if place else word}}
            if body.get("logprobs"):
                choice["logprobs"] = {"content": [{"token": word, "logprob": logprob}]}
            await _say(response, {"choices": [choice]})
        finish = "stop" if ended else "length"
        await _say(response, {"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
        await _say(response, {"choices": [], "usage": {"completion_tokens": len(said)}})
        await response.write(b"data: [DONE]\n\n")
        return response

    async def embeddings(self, request: web.Request) -> web.Response:
        """One vector for every text."""
        body = await _body(request)
        engine = self._engine(body)
        texts = body.get("input")
        if not isinstance(texts, list) or not all(isinstance(one, str) and one.strip() for one in texts):
            raise _bad("input is a list of texts, none of them empty")
        rows = [{"index": k, "embedding": engine.embed(text)} for k, text in enumerate(texts)]
        return web.json_response({"data": rows})


async def _body(request: web.Request) -> dict[str, Any]:
    try:
        body = await request.json()
    except ValueError:
        raise _bad("the body is no JSON") from None
    if not isinstance(body, dict):
        raise _bad("the body is no object")
    return body


def _bad(why: str) -> web.HTTPBadRequest:
    return web.HTTPBadRequest(text=json.dumps({"error": {"message": why}}))


async def _say(response: web.StreamResponse, event: dict[str, Any]) -> None:
    await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")


@contextlib.asynccontextmanager
async def serving(engines: Mapping[str, Engine]) -> AsyncIterator[Server]:
    """The server on a free port of the loopback, gone at the end."""
    server = Server(engines)
    app = web.Application()
    app.router.add_post("/v1/chat/completions", server.chat)
    app.router.add_post("/v1/embeddings", server.embeddings)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        server.url = f"http://{host}:{port}/v1"
        yield server
    finally:
        await runner.cleanup()
