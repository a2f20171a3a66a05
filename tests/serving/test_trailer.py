# SPDX-License-Identifier: Apache-2.0
"""Real servers whose answers a real client reads, beside an agent that is watched over its socket."""

from __future__ import annotations

import queue
import time
from collections.abc import AsyncIterator, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from tests.waiting import until

from mvps.serving.trailer import KEY, STALE_S, AioTrailerInterceptor, CoherenceWatch, TrailerInterceptor, rendered
from mvps.v1 import local_pb2 as pb
from mvps.v1 import local_pb2_grpc
from mvps.v1.snapshot_pb2 import CoherenceVector, Decision, Lateral, Phase, Snapshot, Surface

# ruff: noqa: N802 - methods are named as gRPC calls them

AI = Surface(
    name="ai.chat",
    vector=CoherenceVector(c1=0.9912, c3=1.0, c4=0.25),
    decision=Decision(phase=Phase.PHASE_WATCH),
    lateral=Lateral.LATERAL_COHERENT_BUT_FALSE,
)
VALUE = 'surface="ai.chat", phase=WATCH, c1=0.991, c3=1.000, at=1795322713'


def tick(*surfaces: Surface) -> pb.TickUpdate:
    return pb.TickUpdate(snapshot=Snapshot(tick_time_ns=1795322713_250_000_000, surfaces=surfaces))


class Agent(local_pb2_grpc.LocalServicer):
    """The part of an agent that is watched: what is put into ``ticks``, until None."""

    def __init__(self) -> None:
        self.ticks: queue.Queue[pb.TickUpdate | None] = queue.Queue()

    def Watch(self, request: pb.WatchRequest, context: grpc.ServicerContext) -> Iterator[pb.TickUpdate]:
        while (update := self.ticks.get()) is not None:
            yield update


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    agent = Agent()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    local_pb2_grpc.add_LocalServicer_to_server(agent, server)
    server.add_insecure_port(f"unix:{tmp_path}/agent.sock")
    server.start()
    yield agent
    agent.ticks.put(None)
    server.stop(None).wait()


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def watch(agent: Agent, tmp_path: Path) -> Iterator[CoherenceWatch]:
    watch = CoherenceWatch(f"{tmp_path}/agent.sock", "ai.chat", Clock()).start()
    yield watch
    watch.close()


def echo(request: bytes, context: Any) -> bytes:
    if request == b"abort":
        context.set_trailing_metadata((("reason", "asked"),))
        context.abort(grpc.StatusCode.NOT_FOUND, "as asked")
    if request == b"own":
        context.set_trailing_metadata((("tokens", "12"),))
    return request


def twice(request: bytes, context: Any) -> Iterator[bytes]:
    yield request
    yield echo(request, context)


async def echo_aio(request: bytes, context: Any) -> bytes:
    if request == b"abort":
        await context.abort(grpc.StatusCode.NOT_FOUND, "as asked")
    if request == b"own":
        context.set_trailing_metadata((("tokens", "12"),))
    return request


async def twice_aio(request: bytes, context: Any) -> AsyncIterator[bytes]:
    yield request
    yield await echo_aio(request, context)


async def writes_aio(request: bytes, context: Any) -> None:
    await context.write(request)
    await context.write(request)


def handlers(*unary: Any, **stream: Any) -> grpc.GenericRpcHandler:
    methods: dict[str, Any] = {one.__name__: grpc.unary_unary_rpc_method_handler(one) for one in unary}
    methods |= {name: grpc.unary_stream_rpc_method_handler(one) for name, one in stream.items()}
    return grpc.method_handlers_generic_handler("test.Engine", methods)


def asked(port: int, method: str, request: bytes) -> tuple[list[bytes], dict[str, str]]:
    """Answers, and what came behind them."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_stream(f"/test.Engine/{method}")(request, timeout=10.0)
        got: list[bytes] = []
        try:
            got += call
        except grpc.RpcError as error:
            got.append(error.code().name.encode())  # type: ignore[attr-defined]
        return got, {entry.key: entry.value for entry in call.trailing_metadata()}


@pytest.fixture
def port(watch: CoherenceWatch) -> Iterator[int]:
    server = grpc.server(futures.ThreadPoolExecutor(2), interceptors=[TrailerInterceptor(watch)])
    server.add_generic_rpc_handlers([handlers(echo, twice=twice)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port
    server.stop(None).wait()


def test_the_value_names_what_is_known_and_nothing_for_operators_only() -> None:
    assert rendered(AI, 1795322713_999_999_999) == VALUE
    fresh = Surface(name="ai.chat", vector=CoherenceVector(c2=0.5))
    assert rendered(fresh, 10**9) == 'surface="ai.chat", phase=CALIBRATING, c2=0.500, at=1'


def test_every_answer_ends_with_it_beside_the_servers_own(agent: Agent, watch: CoherenceWatch, port: int) -> None:
    assert asked(port, "echo", b"early") == ([b"early"], {})
    assert watch.problem
    agent.ticks.put(tick(Surface(name="kernel"), AI))
    until(watch.value)
    assert watch.problem == ""
    for method, count in (("echo", 1), ("twice", 2)):
        assert asked(port, method, b"x") == ([b"x"] * count, {KEY: VALUE})
        assert asked(port, method, b"own") == ([b"own"] * count, {"tokens": "12", KEY: VALUE})
        assert asked(port, method, b"abort") == (
            [b"abort"] * (count - 1) + [b"NOT_FOUND"],
            {"reason": "asked", KEY: VALUE},
        )


async def test_an_asyncio_server_too(agent: Agent, watch: CoherenceWatch) -> None:
    agent.ticks.put(tick(AI))
    until(watch.value)
    server = grpc.aio.server(interceptors=[AioTrailerInterceptor(watch)])
    server.add_generic_rpc_handlers((handlers(echo_aio, echo, twice=twice_aio, writes=writes_aio, in_thread=twice),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()

    async def ask(method: str, request: bytes) -> tuple[list[bytes], dict[str, str]]:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_stream(f"/test.Engine/{method}")(request, timeout=10.0)
            got: list[bytes] = []
            try:
                async for one in call:
                    got.append(one)
            except grpc.aio.AioRpcError as error:
                got.append(error.code().name.encode())
            return got, dict(await call.trailing_metadata())

    try:
        for method, count in (("echo_aio", 1), ("twice", 2), ("writes", 2)):
            assert await ask(method, b"x") == ([b"x"] * count, {KEY: VALUE}), method
        for method, count in (("echo_aio", 1), ("twice", 2)):
            assert await ask(method, b"own") == ([b"own"] * count, {"tokens": "12", KEY: VALUE}), method
            assert await ask(method, b"abort") == ([b"abort"] * (count - 1) + [b"NOT_FOUND"], {KEY: VALUE}), method
        # In a thread.
        for method, count in (("echo", 1), ("in_thread", 2)):
            assert await ask(method, b"own") == ([b"own"] * count, {"tokens": "12"}), method
    finally:
        await server.stop(None)


def test_nothing_is_sent_of_a_surface_that_is_gone_or_an_agent_that_is_silent(
    agent: Agent, watch: CoherenceWatch, port: int
) -> None:
    agent.ticks.put(tick(AI))
    until(watch.value)
    clock: Any = watch._clock
    clock.now += STALE_S + 1.0
    assert asked(port, "echo", b"x") == ([b"x"], {})
    agent.ticks.put(tick(AI))
    until(watch.value)
    agent.ticks.put(tick(Surface(name="kernel")))
    until(lambda: not watch.value())
    assert "has no surface ai.chat (it has kernel)" in watch.problem
    assert asked(port, "echo", b"x") == ([b"x"], {})


def test_an_agent_that_comes_later_is_found_and_close_ends_at_once(tmp_path: Path) -> None:
    watch = CoherenceWatch(f"{tmp_path}/agent.sock", "ai.chat").start()
    until(lambda: "agent.sock does not answer" in watch.problem)
    agent = Agent()
    server = grpc.server(futures.ThreadPoolExecutor(1))
    local_pb2_grpc.add_LocalServicer_to_server(agent, server)
    server.add_insecure_port(f"unix:{tmp_path}/agent.sock")
    server.start()
    agent.ticks.put(tick(AI))
    until(watch.value)
    begun = time.monotonic()
    watch.close(30.0)
    assert not watch._thread.is_alive()
    assert time.monotonic() - begun < 20.0
    watch.close()
    agent.ticks.put(None)
    server.stop(None).wait()


def test_a_method_that_the_server_does_not_have_is_still_unimplemented(port: int) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/test.Engine/none")(b"", timeout=10.0)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED  # type: ignore[attr-defined]
