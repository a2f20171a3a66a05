# SPDX-License-Identifier: Apache-2.0
"""``mvps explain`` asks an agent about its surfaces, and its broker about the fleet."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest

from mvps.cli import exits
from mvps.cli.main import main
from mvps.v1 import local_pb2, local_pb2_grpc, snapshot_pb2, stream_pb2, stream_pb2_grpc

# ruff: noqa: N802 - methods are named as gRPC calls them


class Agent(local_pb2_grpc.LocalServicer):
    """An agent of one calm surface that knows of a broker."""

    broker = ""
    withheld: tuple[str, ...] = ()

    def Explain(self, request: local_pb2.ExplainRequest, context: grpc.ServicerContext) -> local_pb2.ExplainResponse:
        surface = snapshot_pb2.Surface(name="kernel", decision=snapshot_pb2.Decision(phase=snapshot_pb2.PHASE_BAU))
        return local_pb2.ExplainResponse(
            tick=7, surfaces=[surface], sentences=["kernel is BAU."], withheld=self.withheld
        )

    def Status(self, request: local_pb2.StatusRequest, context: grpc.ServicerContext) -> local_pb2.StatusResponse:
        return local_pb2.StatusResponse(stream=local_pb2.StreamState(target=self.broker))


class Broker(stream_pb2_grpc.BrokerServicer):
    """A broker that says what a test wants of the fleet."""

    said: stream_pb2.FleetState

    def ServerInfo(self, request: stream_pb2.ServerInfoRequest, context: grpc.ServicerContext) -> stream_pb2.ServerInfo:
        return stream_pb2.ServerInfo(fleet=self.said)


class Desk:
    """Both, over Unix sockets, and the command."""

    def __init__(self, folder: Path) -> None:
        self.socket, self.address = str(folder / "agent.sock"), f"unix:{folder / 'broker.sock'}"
        self.agent, self.broker = Agent(), Broker()
        self.agent.broker = self.address
        self.broker.said = stream_pb2.FleetState(hosts=5, f=1)
        self.servers = [grpc.server(futures.ThreadPoolExecutor(2)) for _ in range(2)]
        local_pb2_grpc.add_LocalServicer_to_server(self.agent, self.servers[0])
        stream_pb2_grpc.add_BrokerServicer_to_server(self.broker, self.servers[1])
        for server, address in zip(self.servers, (f"unix:{self.socket}", self.address), strict=True):
            server.add_insecure_port(address)
            server.start()

    def explain(self, *words: str) -> int:
        return main(["explain", "--socket", self.socket, *words])


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    yield made
    for server in made.servers:
        server.stop(None).wait()


def suspected() -> stream_pb2.FleetState:
    source = stream_pb2.Source(
        vantage_id="host-3",
        own_distance=17.25,
        share=0.97,
        label=stream_pb2.SOURCE_LABEL_SUSPECTED_BYZANTINE,
        evidence=["witness", "clone"],
        settled=True,
    )
    kind = stream_pb2.KindState(kind="mm", phase=snapshot_pb2.PHASE_BAU, d2=40.0, reporting=5, sources=[source])
    return stream_pb2.FleetState(hosts=5, f=1, kinds=[kind])


def test_it_names_the_fleets_suspects_and_why(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    desk.broker.said = suspected()
    assert desk.explain() == exits.OK
    said = capsys.readouterr().out
    assert said.startswith("kernel is BAU.\n")
    assert "fleet mm: host-3 is the source, SUSPECTED_BYZANTINE (17.2 standard deviations, 97% of what moved; " in said
    assert "its own checks fail tick after tick; two streams take turns in its name)" in said
    assert desk.explain("--json") == exits.OK
    shown = json.loads(capsys.readouterr().out)
    assert shown["sentences"] == ["kernel is BAU."]
    assert len(shown["fleet"]["sentences"]) == 1
    assert shown["fleet"]["state"]["kinds"][0]["sources"][0]["evidence"] == ["witness", "clone"]


def test_a_local_fault_is_no_accusation(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    desk.broker.said = suspected()
    desk.broker.said.kinds[0].sources[0].label = stream_pb2.SOURCE_LABEL_LOCAL_FAULT
    del desk.broker.said.kinds[0].sources[0].evidence[:]
    assert desk.explain() == exits.OK
    assert "LOCAL_FAULT (17.2 standard deviations, 97% of what moved; nothing else speaks" in capsys.readouterr().out


def test_a_fleet_in_which_nobody_is_named(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    assert desk.explain() == exits.OK
    assert "fleet of 5 hosts, up to 1 of which may lie: there is no decision yet." in capsys.readouterr().out
    desk.broker.said.kinds.add(kind="mm", phase=snapshot_pb2.PHASE_BAU, reporting=5)
    assert desk.explain() == exits.OK
    assert "may lie: decided are mm, and nobody is named." in capsys.readouterr().out


def test_without_a_broker_or_an_answer_it_says_so_and_still_explains(
    desk: Desk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    desk.agent.broker = ""
    assert desk.explain() == exits.OK
    assert capsys.readouterr().out == (
        "kernel is BAU.\nthe agent has no broker: nobody compares this host with others (--broker names one).\n"
    )
    assert desk.explain("--broker", f"unix:{tmp_path}/none", "--json") == exits.OK
    shown = json.loads(capsys.readouterr().out)
    assert "state" not in shown["fleet"]
    assert shown["fleet"]["sentences"][0].startswith("the fleet is not known here: no answer from the broker at unix:")
    # The one that is named is asked, whatever the agent says.
    assert desk.explain("--broker", desk.address) == exits.OK
    assert "fleet of 5 hosts" in capsys.readouterr().out


def test_what_is_withheld_from_this_caller_is_named(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    assert desk.explain("--json") == exits.OK
    assert "withheld" not in json.loads(capsys.readouterr().out)
    desk.agent.withheld = ("vector.c4", "lateral")
    assert desk.explain("--json") == exits.OK
    assert json.loads(capsys.readouterr().out)["withheld"] == ["vector.c4", "lateral"]
