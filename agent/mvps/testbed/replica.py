# SPDX-License-Identifier: Apache-2.0
"""One replica as a process: ``python -m mvps.testbed.replica '{"name": "r1", ...}'``.

It speaks what the AI vantage and the users ask (``/v1/chat/completions``, streamed, and ``/v1/embeddings``), exports
its cache under vLLM's metric names (``/metrics``), and takes what the experiment injects as JSON lines on its standard
input, at whose end it ends. Questions of users are those whose context begins with ``user-``; their count is what the
request shares come from. Its counts go to standard output ``period_s`` apart, the first once it listens.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from aiohttp import web

from mvps.testbed import answers
from mvps.testbed.answers import Arm
from mvps.testbed.cache import PrefixCache

USER: Final = "user-"
MODEL: Final = "testbed"


@dataclass(frozen=True, slots=True)
class Counts:
    """What one replica counted since its start. users, cold_users: questions of users, and those that were cold.
    missed_tokens: of the cold ones. canaries, cold_canaries: the same of the AI vantage's. queries, hits: tokens."""

    users: int
    cold_users: int
    missed_tokens: int
    canaries: int
    cold_canaries: int
    queries: int
    hits: int
    usage: float


class Replica:
    """One model with its cache. name: makes its sampling its own. arm: what a miss does. capacity: tokens."""

    def __init__(self, name: str, arm: Arm, capacity: int, seed: int) -> None:
        self.arm = arm
        self.cache = PrefixCache(capacity)
        self.corrupt = 0.0
        self._sample = random.Random(f"{seed} {name}")
        self._users = self._cold_users = self._missed = self._canaries = self._cold_canaries = 0
        self._running = 0

    @property
    def counts(self) -> Counts:
        """As they stand."""
        return Counts(
            self._users,
            self._cold_users,
            self._missed,
            self._canaries,
            self._cold_canaries,
            self.cache.queries,
            self.cache.hits,
            self.cache.usage,
        )

    def application(self) -> web.Application:
        """Its routes."""
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/embeddings", _embeddings)
        app.router.add_get("/metrics", self._metrics)
        return app

    def _ask(self, context: str) -> bool:
        tokens = answers.tokens_of(context)
        warm = self.cache.touch(context, tokens)
        if context.startswith(USER):
            self._users += 1
            self._cold_users += not warm
            self._missed += 0 if warm else tokens
        else:
            self._canaries += 1
            self._cold_canaries += not warm
        return warm

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        try:
            body = await request.json()
            context = answers.context_of(str(body["messages"][-1]["content"]))
        except (ValueError, KeyError, IndexError, TypeError):
            raise web.HTTPBadRequest(text='{"error": {"message": "no question that names a context"}}') from None
        warm = self._ask(context)
        self._running += 1
        try:
            await asyncio.sleep(answers.first_token_s(context, self.arm, warm, self._sample))
            said = answers.answer(context, self.arm, warm, self.corrupt, self._sample)
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            for place, sentence in enumerate(said):
                text = f" {sentence}" if place else sentence
                choice: dict[str, Any] = {"index": 0, "delta": {"content": text}}
                if body.get("logprobs"):
                    choice["logprobs"] = {"content": [{"token": text, "logprob": -0.1}]}
                await _say(response, {"choices": [choice]})
            await _say(response, {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            await _say(response, {"choices": [], "usage": {"completion_tokens": sum(len(one.split()) for one in said)}})
            await response.write(b"data: [DONE]\n\n")
        finally:
            self._running -= 1
        return response

    async def _metrics(self, _request: web.Request) -> web.Response:
        lines = (
            ("prefix_cache_queries_total", "counter", self.cache.queries),
            ("prefix_cache_hits_total", "counter", self.cache.hits),
            ("kv_cache_usage_perc", "gauge", self.cache.usage),
            ("num_requests_running", "gauge", self._running),
        )
        text = "".join(
            f'# TYPE vllm:{name} {kind}\nvllm:{name}{{model_name="{MODEL}"}} {value}\n' for name, kind, value in lines
        )
        return web.Response(text=text)

    def inject(self, what: Mapping[str, Any]) -> None:
        """capacity: tokens from now on. corrupt: probability of the other model's answer."""
        if "capacity" in what:
            self.cache.capacity = int(what["capacity"])
        if "corrupt" in what:
            self.corrupt = float(what["corrupt"])


async def _embeddings(request: web.Request) -> web.Response:
    texts = (await request.json())["input"]
    return web.json_response(
        {"data": [{"index": at, "embedding": answers.embedding(text)} for at, text in enumerate(texts)]}
    )


async def _say(response: web.StreamResponse, event: dict[str, Any]) -> None:
    await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")


async def _serve(given: Mapping[str, Any]) -> None:
    replica = Replica(given["name"], Arm(given["arm"]), int(given["capacity"]), int(given["seed"]))
    runner = web.AppRunner(replica.application(), access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    commands = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)

    async def obey() -> None:
        try:
            while line := await commands.readline():
                replica.inject(json.loads(line))
        finally:
            ended.set()

    obeying = asyncio.create_task(obey())
    await web.TCPSite(runner, "0.0.0.0", int(given["port"])).start()
    while not ended.is_set():
        print(json.dumps({"at": time.time(), **asdict(replica.counts)}), flush=True)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(ended.wait(), float(given["period_s"]))
    await runner.cleanup()
    if not obeying.cancel():
        await obeying  # with its error, where a line could not be obeyed


if __name__ == "__main__":
    asyncio.run(_serve(json.loads(sys.argv[1])))
