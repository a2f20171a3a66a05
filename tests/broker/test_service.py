# SPDX-License-Identifier: Apache-2.0
"""Addresses, questions and the standard services, over real gRPC."""

from __future__ import annotations

import socket
import stat
import struct
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from talking import ACCEPTED, batch, exchange, running
from wire_samples import settings, snapshot

from mvps.broker.process import EmbeddedBroker, serve
from mvps.broker.server import Broker, BrokerError
from mvps.broker.tables import StoreError
from mvps.trust.reasons import RejectReason
from mvps.v1 import snapshot_pb2, stream_pb2_grpc
from mvps.v1 import stream_pb2 as pb

C4 = 0.4142135623730951


async def test_reflection_names_the_services(tmp_path: Path) -> None:
    async with running(tmp_path) as (broker, _, _), grpc.aio.insecure_channel(broker.address) as channel:
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([asked]))
        answer = await call.read()
        names = {service.name for service in answer.list_services_response.service}
        assert {"mvps.v1.Broker", "grpc.health.v1.Health"} <= names


async def test_queries(tmp_path: Path) -> None:
    async with running(tmp_path) as (_, host, stub):
        body = snapshot()
        body.extensions["x"] = b"kept"
        sealed = host.seal(body, tick=body.tick)
        call = stub.Stream()
        await call.write(batch(sealed, host.seal(b"garbage")))
        await call.read()
        info = await stub.ServerInfo(pb.ServerInfoRequest())
        assert (info.vantages, info.streams, info.accepted, dict(info.rejected)) == (1, 1, 1, {"malformed": 1})
        (vantage,) = (await stub.ListVantages(pb.ListVantagesRequest())).vantages
        assert vantage.connected
        assert vantage.latest == body
        history = await stub.GetHistory(pb.GetHistoryRequest(vantage_id="host-1", with_snapshots=True))
        assert [(row.counter & 0xFFFF, row.reason) for row in history.rows] == [(1, RejectReason.MALFORMED), (0, 0)]
        assert history.rows[1].snapshot.extensions["x"] == b"kept"
        assert history.rows[1].digest == sealed.digest
        call.cancel()


async def raw(channel: grpc.aio.Channel, method: str, request: Any) -> bytes:
    """The answer as it comes over the wire."""
    call = channel.unary_unary(f"/mvps.v1.Broker/{method}", request_serializer=type(request).SerializeToString)
    answer: bytes = await call(request, timeout=5)
    return answer


async def test_c4_and_its_label_are_shown_on_the_operators_socket_alone(tmp_path: Path) -> None:
    path = tmp_path / "operator.sock"
    async with running(tmp_path, operator_socket=path) as (broker, host, stub):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        body = snapshot()
        surface = body.surfaces.add(name="ai.g", needed_ticks=60)
        surface.vector.c1, surface.vector.c4 = 0.75, C4
        surface.lateral = snapshot_pb2.LATERAL_COHERENT_BUT_FALSE
        assert await exchange(stub, host, host.seal(body, tick=body.tick)) == [(0, *ACCEPTED)]
        async with (
            grpc.aio.insecure_channel(broker.address) as guests,
            grpc.aio.insecure_channel(f"unix:{path}") as operators,
        ):
            for request, kind in (
                (pb.ListVantagesRequest(), pb.ListVantagesResponse),
                (pb.GetHistoryRequest(vantage_id="host-1", with_snapshots=True), pb.GetHistoryResponse),
            ):
                method = request.DESCRIPTOR.name.removesuffix("Request")
                seen, whole = [await raw(one, method, request) for one in (guests, operators)]
                assert [struct.pack("<d", C4) in one for one in (seen, whole)] == [False, True]
                answers = [kind.FromString(one) for one in (seen, whole)]
                assert [list(one.withheld) for one in answers] == [["vector.c4", "lateral"], []]
                snapshots = [
                    one.vantages[0].latest if method == "ListVantages" else one.rows[0].snapshot for one in answers
                ]
                assert snapshots[1] == body
                assert snapshots[0].surfaces[-1].lateral == snapshot_pb2.LATERAL_UNSPECIFIED
                assert not snapshots[0].surfaces[-1].vector.HasField("c4")
                assert snapshots[0].surfaces[-1].vector.c1 == 0.75
                assert snapshots[0].surfaces[0] == body.surfaces[0]
            # Questions only: what is sealed comes by the other address, where its limits are.
            call = stream_pb2_grpc.BrokerStub(operators).Stream()
            assert await call.code() is grpc.StatusCode.UNIMPLEMENTED
    assert not path.exists()


async def test_an_operators_socket_that_cannot_be_had_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "operator.sock"
    path.write_text("precious")
    with pytest.raises(BrokerError, match="choose another path for operator_socket"):
        EmbeddedBroker(settings(tmp_path, operator_socket=path)[0])
    assert path.read_text() == "precious"
    with pytest.raises(BrokerError, match="is its directory there"):
        EmbeddedBroker(settings(tmp_path, operator_socket=tmp_path / "none" / "operator.sock")[0])


async def test_health(tmp_path: Path) -> None:
    async with running(tmp_path) as (broker, _, _), grpc.aio.insecure_channel(broker.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        answer = await health.Check(health_pb2.HealthCheckRequest(service="mvps.v1.Broker"))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_unix_socket_is_private_to_its_group_and_not_stolen(tmp_path: Path) -> None:
    path = tmp_path / "broker.sock"
    async with running(tmp_path, listen=f"unix:{path}") as (_, host, stub):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert await exchange(stub, host, host.seal()) == [(0, *ACCEPTED)]
        second, _ = settings(tmp_path, listen=f"unix:{path}", database=tmp_path / "second.db")
        with pytest.raises(BrokerError, match="another process serves"):
            EmbeddedBroker(second)
        async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
            await stream_pb2_grpc.BrokerStub(channel).ServerInfo(pb.ServerInfoRequest())
    assert not path.exists()


async def test_a_stale_unix_socket_is_replaced_and_a_file_is_not(tmp_path: Path) -> None:
    path = tmp_path / "broker.sock"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    async with running(tmp_path, listen=f"unix:{path}") as (_, host, stub):
        assert await exchange(stub, host, host.seal()) == [(0, *ACCEPTED)]
    path.write_text("precious")
    with pytest.raises(BrokerError, match="no socket"):
        EmbeddedBroker(settings(tmp_path, listen=f"unix:{path}")[0])
    assert path.read_text() == "precious"


async def test_a_taken_port_is_a_clear_error(tmp_path: Path) -> None:
    async with running(tmp_path) as (broker, _, _):
        second, _ = settings(tmp_path, listen=broker.address, database=tmp_path / "second.db")
        with pytest.raises(BrokerError, match="is another broker running"):
            await serve(second, lambda address: None)
        with pytest.raises(StoreError, match="another broker uses"):
            Broker(settings(tmp_path)[0])
