# SPDX-License-Identifier: Apache-2.0
"""An OpenAI-compatible server over real HTTP whose answers are scripted: no model stands behind it.

Embeddings are counts of hashed words: equal texts have distance 0, texts without a common word the square root of 2.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web

DIMENSIONS = 256


@dataclass(frozen=True)
class Reply:
    """How one question is answered. how: "well", "hang", "break", "garbage", "endless" or "silent"."""

    text: str = ""
    how: str = "well"
    finish: str = "stop"
    status: int = 200
    first_s: float = 0.0
    logprob: float | None = None


@dataclass
class Scripted:
    """A running server. asked: the bodies of all questions; headers: of the last one."""

    reply: Callable[[str], Reply]
    url: str = ""
    asked: list[dict[str, Any]] = None  # type: ignore[assignment]
    headers: dict[str, str] = None  # type: ignore[assignment]
    embed: Callable[[list[str]], web.Response] | None = None

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.asked.append(body)
        self.headers = dict(request.headers)
        reply = self.reply(body["messages"][-1]["content"])
        if reply.status != 200:
            return web.json_response({"error": "scripted"}, status=reply.status)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await asyncio.sleep(reply.first_s)
        if reply.how == "hang":
            await asyncio.sleep(3600)
        if reply.how == "garbage":
            await response.write(b"data: {not json\n\n")
            return response
        if reply.how == "endless":
            with contextlib.suppress(ConnectionError):
                while True:
                    await response.write(b"x" * 65536)
        words = re.findall(r"\S+\s*", reply.text)
        for word in words:
            choice: dict[str, Any] = {"index": 0, "delta": {"content": word}, "finish_reason": None}
            if reply.logprob is not None:
                choice["logprobs"] = {"content": [{"token": word, "logprob": reply.logprob}]}
            await self._say(response, {"choices": [choice]})
        if reply.how == "break":
            assert request.transport is not None
            request.transport.abort()
            return response
        if reply.how == "silent":
            return response
        await self._say(response, {"choices": [{"index": 0, "delta": {}, "finish_reason": reply.finish}]})
        await self._say(response, {"choices": [], "usage": {"completion_tokens": len(words)}})
        await response.write(b": a comment\n\ndata: [DONE]\n\n")
        return response

    @staticmethod
    async def _say(response: web.StreamResponse, event: dict[str, Any]) -> None:
        await response.write(b"data: " + json.dumps(event).encode() + b"\r\n\r\n")

    async def embeddings(self, request: web.Request) -> web.Response:
        texts = (await request.json())["input"]
        if self.embed is not None:
            return self.embed(texts)
        rows = [{"index": i, "embedding": vector(text)} for i, text in enumerate(texts)]
        return web.json_response({"data": rows[::-1]})


def vector(text: str) -> list[float]:
    found = [0.0] * DIMENSIONS
    for word in re.findall(r"\w+", text.casefold()):
        found[int.from_bytes(hashlib.sha256(word.encode()).digest()[:4]) % DIMENSIONS] += 1.0
    return found


@contextlib.asynccontextmanager
async def serving(reply: Callable[[str], Reply]) -> AsyncIterator[Scripted]:
    """A server on a free port of the loopback, gone at the end."""
    scripted = Scripted(reply, asked=[], headers={})
    app = web.Application()
    app.router.add_post("/v1/chat/completions", scripted.chat)
    app.router.add_post("/v1/embeddings", scripted.embeddings)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        scripted.url = f"http://{host}:{port}/v1"
        yield scripted
    finally:
        await runner.cleanup()
