# SPDX-License-Identifier: Apache-2.0
"""The link against the agent's own engines over a real socket: packets up, directives down, and what breaks."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.surplus import cap_sample
from tests.waiting import until

from mvps.daemon.engines import Engines, Refused
from mvps.serving.agent_link import ROOM, STALE_S, AgentLink, engine_name
from mvps.serving.decoding import OFF
from mvps.surplus.packets import Cap, PacketError, checked_name, follow, recorded_chain
from mvps.surplus.schedule import Schedule
from mvps.v1 import local_pb2 as pb
from mvps.v1 import local_pb2_grpc

# ruff: noqa: N802 - methods are named as gRPC calls them


def cap(number: int = 0) -> Cap:
    return cap_sample.cap(time.time_ns(), steps=number)


class Agent(local_pb2_grpc.LocalServicer):
    """The part of an agent that engines talk to."""

    def __init__(self, engines: Engines) -> None:
        self.engines = engines
        self.loads: list[pb.EngineLoad] = []

    def Surplus(
        self, requests: Iterator[pb.SurplusBatch], context: grpc.ServicerContext
    ) -> Iterator[pb.SurplusControl]:
        stream = None
        try:
            for batch in requests:
                if stream is None:
                    stream = self.engines.open(batch.chain)
                self.loads.append(batch.load)
                yield self.engines.take(stream, batch)
        except Refused as refused:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(refused))
        finally:
            if stream is not None:
                self.engines.close(stream)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "agent.sock")


@pytest.fixture
def serve(path: str) -> Iterator[Callable[[], Agent]]:
    """Begins an agent behind the path; a second call replaces it."""
    servers: list[grpc.Server] = []

    def begin() -> Agent:
        for server in servers:
            server.stop(None).wait()
        now = time.time_ns()  # a minute that ends while a test runs would change what is told
        agent = Agent(Engines(10**9, 4, lambda: now))
        server = grpc.server(futures.ThreadPoolExecutor(4), options=[("grpc.max_receive_message_length", 64 * 1024)])
        local_pb2_grpc.add_LocalServicer_to_server(agent, server)
        server.add_insecure_port(f"unix:{path}")
        server.start()
        servers.append(server)
        return agent

    yield begin
    for server in servers:
        server.stop(None).wait()


def test_packets_arrive_in_order_and_directives_come_back(path: str, serve: Callable[[], Agent]) -> None:
    agent = serve()
    record = io.BytesIO()
    link = AgentLink(path, "engine", record, lambda: pb.EngineLoad(running=3, slots=8)).start()
    assert link.told("acme") == OFF, "nothing is pushed before the agent's first word"
    for number in range(500):
        link.write(cap(number))
    until(lambda: link.sent == 500)
    assert link.told("acme").lam == Schedule().rule.base
    assert link.told("acme").tenant == "acme"
    assert link.told("another").kl_budget == Schedule().budgets.green
    assert link.problem == ""
    link.close()
    assert link.lost == 0
    (engine,) = agent.engines.status().engines
    assert (engine.chain, engine.length) == ("engine.1", 500)
    assert agent.loads[0].running == 3
    header, *lines = record.getvalue().splitlines()
    chain = recorded_chain(header)
    assert chain is not None
    end, packets = follow(chain, lines, Cap)
    assert end.head == engine.head
    assert [one.steps for one in packets] == list(range(500))


def test_a_load_that_is_not_known_any_more_ends_at_the_agent(path: str, serve: Callable[[], Agent]) -> None:
    agent = serve()
    loads: list[pb.EngineLoad | None] = [pb.EngineLoad(running=3, slots=8)]
    link = AgentLink(path, "engine", load=lambda: loads[0]).start()
    link.write(cap())
    until(lambda: [one.load.running for one in agent.engines.status().engines] == [3])
    assert "engines" in agent.engines.status().pressure
    loads[0] = None
    until(lambda: not agent.engines.status().engines[0].HasField("load"))
    assert "engines" not in agent.engines.status().pressure
    link.close()


def test_the_spread_of_texts_goes_up_with_every_batch(path: str, serve: Callable[[], Agent]) -> None:
    class Spread:
        dropped = 7  # before the stream began

        def read(self) -> dict[str, float]:
            self.dropped += 1
            return {"acme": 0.25}

    agent = serve()
    spread = Spread()
    link = AgentLink(path, "engine", spread=spread).start()
    link.write(cap())
    until(lambda: agent.engines._minutes._tenants["acme"].spread == 0.25 if link.sent else False)
    link.close()
    assert agent.engines.status().refused["answers_dropped_by_engine"] in (spread.dropped - 7, spread.dropped - 8)


def test_an_idle_link_keeps_asking(path: str, serve: Callable[[], Agent]) -> None:
    agent = serve()
    link = AgentLink(path, "engine").start()
    until(lambda: len(agent.loads) >= 3)
    link.close()
    assert agent.engines.status().packets == 0


def test_without_an_agent_nothing_is_pushed_and_packets_beyond_the_room_are_counted(path: str) -> None:
    link = AgentLink(path, "engine")
    one = cap()
    for _ in range(ROOM + 7):
        link.write(one)
    assert link.lost == 7
    link.start()
    until(lambda: link.problem not in ("", "not connected yet"))
    assert link.told("acme") == OFF
    link.close()


def test_an_agent_that_falls_silent_is_not_believed_for_ever(path: str, serve: Callable[[], Agent]) -> None:
    serve()
    late = threading.Event()
    ahead = STALE_S + 1.0
    link = AgentLink(path, "engine", clock=lambda: time.monotonic() + ahead * late.is_set()).start()
    until(lambda: link.told("acme") != OFF)
    link.close()
    late.set()
    assert link.told("acme") == OFF


def test_a_new_agent_gets_a_new_chain(path: str, serve: Callable[[], Agent]) -> None:
    serve()
    link = AgentLink(path, "engine").start()
    link.write(cap())
    until(lambda: link.sent == 1)
    second = serve()
    link.write(cap())
    until(lambda: bool(second.engines.status().engines))
    link.close()
    (engine,) = second.engines.status().engines
    assert engine.chain != "engine.1"
    assert link.sent + link.lost == 2


class FullDisk(io.BytesIO):
    def write(self, data: Any) -> int:
        raise OSError(28, "No space left on device")


def test_a_record_that_cannot_be_kept_does_not_stop_the_link(path: str, serve: Callable[[], Agent]) -> None:
    serve()
    link = AgentLink(path, "engine", FullDisk()).start()
    link.write(cap())
    until(lambda: link.sent == 1)
    assert link.problem == "no record is kept any more: No space left on device"
    link.close()


def test_names_of_chains_are_names_and_differ() -> None:
    assert checked_name(engine_name() + ".1")
    assert engine_name() != engine_name()
    with pytest.raises(PacketError):
        AgentLink("/x", "an engine")
