# SPDX-License-Identifier: Apache-2.0
"""A broker in the event loop of a test, and a host that talks to it message by message."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
from wire_samples import Host, settings

from mvps.broker.server import Broker
from mvps.trust.limits import NONCE_BYTES
from mvps.trust.seal import Sealed
from mvps.v1 import stream_pb2 as pb
from mvps.v1 import stream_pb2_grpc

NONCE = bytes(range(NONCE_BYTES))
ACCEPTED = (pb.ACK_STATUS_ACCEPTED, 0)
DUPLICATE = (pb.ACK_STATUS_DUPLICATE, 0)


@asynccontextmanager
async def running(folder: Path, **changes: object) -> AsyncIterator[tuple[Broker, Host, stream_pb2_grpc.BrokerStub]]:
    chosen, site = settings(folder, **changes)
    broker = Broker(chosen)
    try:
        await broker.start()
        async with grpc.aio.insecure_channel(broker.address) as channel:
            yield broker, Host(site), stream_pb2_grpc.BrokerStub(channel)
    finally:
        await broker.stop()


def batch(*items: Sealed, nonce: bytes = NONCE) -> pb.Batch:
    return pb.Batch(stream_nonce=nonce, items=[pb.SealedSnapshot(header=h, body=b, tag=t) for h, b, t in items])


async def exchange(stub: stream_pb2_grpc.BrokerStub, host: Host, *items: Sealed) -> list[tuple[int, int, int]]:
    """(counter, status, reason) of every verified answer to one batch on a stream of its own."""
    call = stub.Stream()
    await call.write(batch(*items))
    answer = await call.read()
    call.cancel()
    return acks_of(answer, host)


def acks_of(answer: pb.AckBatch, host: Host, nonce: bytes = NONCE) -> list[tuple[int, int, int]]:
    found = []
    for sealed in answer.sealed:
        header = host.acks().verify(Sealed(sealed.header, sealed.body, sealed.tag))
        assert header.vantage_id == host.vantage_id
        acks = pb.Acks.FromString(sealed.body)
        assert acks.stream_nonce == nonce
        found += [(ack.counter & 0xFFFF, ack.status, ack.reason) for ack in acks.acks]
    return found


async def status_of(call: grpc.aio.StreamStreamCall) -> tuple[grpc.StatusCode, str]:
    return await call.code(), await call.details()
