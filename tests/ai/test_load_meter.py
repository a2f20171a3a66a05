# SPDX-License-Identifier: Apache-2.0
"""Differences of an engine's counters over real HTTP, and what happens when it does not tell."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import aiohttp
from aiohttp import web

from mvps.ai.load_meter import LoadMeter
from mvps.ai.replica_load import ReplicaLoad
from mvps.engine_metrics.exposition import MAX_BYTES


class Engine:
    """Its page. how: "well", an HTTP status, "hang", "long" or "elsewhere"."""

    def __init__(self) -> None:
        self.requests = self.prompt = self.cached = 0
        self.how: str | int = "well"
        self.url = ""
        self.headers: dict[str, str] = {}

    async def page(self, request: web.Request) -> web.Response:
        self.headers = dict(request.headers)
        if self.how == "hang":
            await asyncio.sleep(3600)
        if self.how == "long":
            return web.Response(body=b"#" * (MAX_BYTES + 1))
        if self.how == "elsewhere":
            raise web.HTTPFound("/elsewhere")
        if isinstance(self.how, int):
            return web.Response(status=self.how)
        return web.Response(
            text=f'vllm:request_success_total{{model_name="m"}} {self.requests}\n'
            f'vllm:prefix_cache_queries_total{{model_name="m"}} {self.prompt}\n'
            f'vllm:prefix_cache_hits_total{{model_name="m"}} {self.cached}\n'
        )


@contextlib.asynccontextmanager
async def metering(key: str = "") -> AsyncIterator[tuple[Engine, LoadMeter]]:
    engine = Engine()
    app = web.Application()
    app.router.add_get("/metrics", engine.page)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        async with aiohttp.ClientSession() as session:
            yield engine, LoadMeter(session, f"http://{host}:{port}/metrics", "m", key=key, timeout_s=0.3)
    finally:
        await runner.cleanup()


async def test_a_round_has_what_was_counted_since_the_one_before_less_our_own() -> None:
    async with metering("secret") as (engine, meter):
        engine.requests, engine.prompt, engine.cached = 10, 1000, 500
        assert await meter.read() is None
        engine.requests, engine.prompt, engine.cached = 17, 1700, 1100
        assert await meter.read(own=2) == ReplicaLoad(5, 700, 600)
        assert await meter.read(own=3) == ReplicaLoad(0, 0, 0)
        assert engine.headers["Authorization"] == "Bearer secret"
        assert meter.failures == {}


async def test_an_engine_that_was_restarted_begins_anew() -> None:
    async with metering() as (engine, meter):
        engine.requests, engine.prompt = 10, 1000
        await meter.read()
        engine.requests, engine.prompt = 3, 300
        assert await meter.read() is None
        engine.requests, engine.prompt = 4, 400
        assert await meter.read() == ReplicaLoad(1, 100, 0)


async def test_what_goes_wrong_is_counted_and_costs_the_next_round_too() -> None:
    async with metering() as (engine, meter):
        await meter.read()
        for how, cause in ((503, "ClientError"), ("hang", "TimeoutError"), ("long", "ValueError"), ("elsewhere", "")):
            engine.how = how
            assert await meter.read() is None
            assert meter.failures.get(cause or "ClientError", 0) >= 1
            assert "/metrics: " in meter.problem
            assert "the replica's `metrics` names" in meter.problem
            engine.how = "well"
            engine.requests += 5
            assert await meter.read() is None  # two rounds' requests are not one's
            assert meter.problem == ""
            engine.requests += 1
            assert await meter.read() == ReplicaLoad(1, 0, 0)
        assert meter.failures == {"ClientError": 2, "TimeoutError": 1, "ValueError": 1}
