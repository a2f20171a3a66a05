# SPDX-License-Identifier: Apache-2.0
"""The client against a real broker, and against liars, over real gRPC."""

import os
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from tests.waiting import until
from wire_samples import Host, new_host, settings

import mvps
from mvps.broker.process import EmbeddedBroker
from mvps.stream.client import StreamClient
from mvps.stream.ledger import State
from mvps.trust.reasons import RejectReason
from mvps.trust.seal import Purpose, Sealer, StreamCounter, parse_header
from mvps.v1 import stream_pb2 as pb
from mvps.v1 import stream_pb2_grpc

Start = Callable[..., StreamClient]


@pytest.fixture
def start() -> Iterator[Start]:
    clients: list[StreamClient] = []

    def start(target: str, host: Host, **options: int) -> StreamClient:
        clients.append(StreamClient(target, host.vantage_id, host.acks(), **options))
        clients[-1].start()
        return clients[-1]

    yield start
    for client in clients:
        client.stop()


def settled(client: StreamClient) -> bool:
    return client.status().totals.queued == 0


def balanced(client: StreamClient) -> bool:
    t = client.status().totals
    return t.produced == t.acknowledged + t.rejected + t.queued + t.dropped


@pytest.mark.parametrize("transport", ["tcp", "unix"])
def test_snapshots_are_acknowledged(tmp_path: Path, start: Start, transport: str) -> None:
    changes = {"listen": f"unix:{tmp_path}/b.sock"} if transport == "unix" else {}
    chosen, site = settings(tmp_path, **changes)
    broker = EmbeddedBroker(chosen)
    host = Host(site)
    client = start(broker.address, host)
    for _ in range(500):
        client.submit(host.seal())
        assert balanced(client)
    until(lambda: settled(client))
    status = client.status()
    assert (status.totals.acknowledged, status.forged_acks, status.state) == (500, 0, "connected")
    assert broker.broker is not None
    assert broker.broker.counters()["accepted"] == 500
    assert {record.state for record in client.records()} == {State.ACKNOWLEDGED}
    broker.stop()


def test_rejections_reach_the_records(tmp_path: Path, start: Start) -> None:
    chosen, site = settings(tmp_path)
    broker = EmbeddedBroker(chosen)
    host = Host(site)
    client = start(broker.address, host)
    client.submit(host.seal(b"garbage"))
    client.submit(host.seal())
    until(lambda: settled(client))
    assert [(r.state, r.reason) for r in client.records()] == [
        (State.REJECTED, RejectReason.MALFORMED),
        (State.ACKNOWLEDGED, None),
    ]
    broker.stop()


def test_nothing_is_lost_or_counted_twice_across_broker_restarts(tmp_path: Path, start: Start) -> None:
    chosen, site = settings(tmp_path)
    broker = EmbeddedBroker(chosen)
    fixed = chosen.model_copy(update={"listen": broker.address})
    host = Host(site)
    client = start(broker.address, host)
    accepted = 0
    for _ in range(3):
        for _ in range(100):
            client.submit(host.seal())
        # Stopped wherever it is: before, amid or after the batch.
        broker.stop()
        assert broker.broker is not None
        accepted += broker.broker.counters()["accepted"]
        assert balanced(client)
        broker = EmbeddedBroker(fixed)
    client.submit(host.seal())
    until(lambda: settled(client))
    totals = client.status().totals
    assert (totals.produced, totals.acknowledged, totals.rejected, totals.dropped) == (301, 301, 0, 0)
    assert broker.broker is not None
    rows = broker.broker._store.history("host-1", 0, 1000)
    assert len(rows) == len({row.counter for row in rows}) == 301
    broker.stop()


BROKER = """
import asyncio, sys
from mvps.broker.process import serve
from mvps.broker.settings import BrokerSettings
settings = BrokerSettings.model_validate_json(sys.stdin.readline())
asyncio.run(serve(settings, lambda address: print(address, flush=True)))
"""


def test_nothing_acknowledged_is_lost_when_the_broker_is_killed(tmp_path: Path, start: Start) -> None:
    chosen, site = settings(tmp_path)
    environment = os.environ | {"PYTHONPATH": str(Path(mvps.__file__).parent.parent)}

    def spawn(listen: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", BROKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        )
        assert process.stdin is not None
        process.stdin.write(chosen.model_copy(update={"listen": listen}).model_dump_json() + "\n")
        process.stdin.flush()
        return process

    def address_of(process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        return process.stdout.readline().strip()

    broker = spawn(chosen.listen)
    address = address_of(broker)
    host = Host(site)
    client = start(address, host)
    for sent in (400, 800):
        for _ in range(400):
            client.submit(host.seal())
        until(lambda least=sent - 350: client.status().totals.acknowledged >= least)
        broker.kill()  # amid the rest
        broker.communicate()
        acknowledged = client.status().totals.acknowledged
        with sqlite3.connect(chosen.database) as database:
            (stored,) = database.execute("SELECT coalesce(sum(accepted), 0) FROM lanes").fetchone()
        database.close()
        assert stored >= acknowledged
        broker = spawn(address)
        assert address_of(broker) == address
    until(lambda: settled(client))
    broker.kill()
    broker.communicate()
    totals = client.status().totals
    assert (totals.acknowledged, totals.rejected, totals.dropped) == (800, 0, 0)


def test_without_a_broker_the_oldest_are_dropped_and_the_reason_is_told(start: Start) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        target = f"127.0.0.1:{free.getsockname()[1]}"
    host = new_host()
    client = start(target, host, queue_limit=3)
    for _ in range(10):
        client.submit(host.seal(b"x"))
    until(lambda: client.status().state == "waiting")
    status = client.status()
    assert "no broker answers" in status.detail
    assert status.totals.dropped_by_cause == {"queue_full": 7}
    assert (status.totals.queued, balanced(client)) == (3, True)
    client.stop()
    assert client.status().totals.dropped_by_cause == {"queue_full": 7, "stopped": 3}
    assert balanced(client)


def test_another_key_is_a_refusal_with_advice(tmp_path: Path, start: Start) -> None:
    chosen, _ = settings(tmp_path)
    broker = EmbeddedBroker(chosen)
    host = new_host()
    client = start(broker.address, host)
    client.submit(host.seal())
    until(lambda: client.status().state == "refused")
    assert "enrol the key that is in use" in client.status().detail
    assert client.status().totals.queued == 1
    broker.stop()


def test_retarget_moves_to_another_broker(tmp_path: Path, start: Start) -> None:
    chosen, site = settings(tmp_path)
    broker = EmbeddedBroker(chosen)
    host = Host(site)
    client = start(f"unix:{tmp_path}/absent.sock", host)
    client.submit(host.seal())
    until(lambda: client.status().state == "waiting")
    client.retarget(broker.address)
    until(lambda: settled(client))
    assert client.status().totals.acknowledged == 1
    broker.stop()


def test_stop_drains_first_and_is_idempotent(tmp_path: Path, start: Start) -> None:
    chosen, site = settings(tmp_path)
    broker = EmbeddedBroker(chosen)
    host = Host(site)
    client = start(broker.address, host)
    for _ in range(50):
        client.submit(host.seal())
    client.stop(drain_s=30)
    client.stop()
    assert client.status().totals.acknowledged == 50
    broker.stop()
    StreamClient("127.0.0.1:1", "host-1", host.acks()).stop()  # never started


class Liar(stream_pb2_grpc.BrokerServicer):
    """A server that answers with whatever ``answer`` makes of a batch."""

    def __init__(self, answer: Callable[[pb.Batch], pb.AckBatch]) -> None:
        self._answer = answer

    def Stream(self, request_iterator: Iterator[pb.Batch], context: grpc.ServicerContext) -> Iterator[pb.AckBatch]:  # noqa: N802
        for batch in request_iterator:
            yield self._answer(batch)


@pytest.fixture
def lie() -> Iterator[Callable[[Callable[[pb.Batch], pb.AckBatch]], str]]:
    servers: list[grpc.Server] = []

    def lie(answer: Callable[[pb.Batch], pb.AckBatch]) -> str:
        server = grpc.server(futures.ThreadPoolExecutor(2))
        stream_pb2_grpc.add_BrokerServicer_to_server(Liar(answer), server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    yield lie
    for server in servers:
        server.stop(None).wait()


def acks_for(batch: pb.Batch, host: Host, *, purpose: Purpose = Purpose.CONTROL, vantage: str = "host-1",
             nonce: bytes | None = None, digest: bytes | None = None, tamper: bool = False) -> pb.AckBatch:  # fmt: skip
    body = pb.Acks(stream_nonce=batch.stream_nonce if nonce is None else nonce, policies=b"what holds")
    for item in batch.items:
        header = parse_header(item.header)
        body.acks.add(
            lane=header.lane, counter=header.counter, digest=digest or item.tag, status=pb.ACK_STATUS_ACCEPTED
        )
    key = host.epochs.sealing_key(host.vantage_id, host.epoch_id, purpose)
    sealer = Sealer(key, vantage, purpose, StreamCounter(), epoch_id=host.epoch_id)
    header, content, tag = sealer.seal(body.SerializeToString(), tick=0)
    return pb.AckBatch(sealed=[pb.SealedAcks(header=header, body=content, tag=bytes(32) if tamper else tag)])


@pytest.mark.parametrize(
    "change",
    [
        {"host": new_host()},
        {"tamper": True},
        {"purpose": Purpose.SNAPSHOT},
        {"vantage": "host-2"},
        {"nonce": bytes(16)},
        {"digest": bytes(32)},
    ],
    ids=["key", "tag", "purpose", "vantage", "nonce", "digest"],
)
def test_a_forged_acknowledgement_clears_nothing(
    start: Start, lie: Callable[[Callable[[pb.Batch], pb.AckBatch]], str], change: dict[str, object]
) -> None:
    host = new_host()
    arguments = {"host": host} | change
    client = start(lie(lambda batch: acks_for(batch, **arguments)), host)  # type: ignore[arg-type]
    client.submit(host.seal())
    until(lambda: client.status().forged_acks == 1)
    assert client.status().totals.acknowledged == 0
    assert [record.state for record in client.records()] == [State.SENT]
    # A digest is not the seal's: that answer is the broker's own, and wrong about one snapshot only.
    assert client.policies == (b"what holds" if "digest" in change else b"")


def test_the_same_acknowledgement_unforged_clears(
    start: Start, lie: Callable[[Callable[[pb.Batch], pb.AckBatch]], str]
) -> None:
    host = new_host()
    client = start(lie(lambda batch: acks_for(batch, host)), host)
    client.submit(host.seal())
    until(lambda: settled(client))
    assert client.status().totals.acknowledged == 1
    assert client.policies == b"what holds"


def test_a_replayed_acknowledgement_is_forged(
    start: Start, lie: Callable[[Callable[[pb.Batch], pb.AckBatch]], str]
) -> None:
    host = new_host()

    def twice(batch: pb.Batch) -> pb.AckBatch:
        once = acks_for(batch, host)
        return pb.AckBatch(sealed=[*once.sealed, *once.sealed])

    client = start(lie(twice), host)
    client.submit(host.seal())
    until(lambda: client.status().forged_acks == 1)
    assert client.status().totals.acknowledged == 1


def test_unary_only_servers_are_named(start: Start) -> None:
    server = grpc.server(futures.ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    host = new_host()
    client = start(f"127.0.0.1:{port}", host)
    client.submit(host.seal())
    until(lambda: client.status().state == "refused")
    assert "does not speak this protocol" in client.status().detail
    server.stop(None).wait()
