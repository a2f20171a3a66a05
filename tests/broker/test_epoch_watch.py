# SPDX-License-Identifier: Apache-2.0
"""Manifests dropped into a running broker's directory, over real gRPC."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from tests.waiting import comes_true
from wire_samples import Host, settings

from mvps.broker.epoch_watch import EpochWatch, NoEpochError
from mvps.broker.server import Broker
from mvps.trust.keys import KeySourceError, Kind, SecretKey
from mvps.trust.manifest import Profile, revoke, sign_manifest, succeed
from mvps.trust.seal import Sealed
from mvps.trust.solo import Site
from mvps.v1 import stream_pb2 as pb
from mvps.v1 import stream_pb2_grpc


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[tuple[Broker, Site, stream_pb2_grpc.BrokerStub]]:
    chosen, site = settings(folder)
    broker = Broker(chosen)
    try:
        await broker.start()
        async with grpc.aio.insecure_channel(broker.address) as channel:
            yield broker, site, stream_pb2_grpc.BrokerStub(channel)
    finally:
        await broker.stop()


async def talk_on(call: grpc.aio.StreamStreamCall, host: Host) -> None:
    async with asyncio.timeout(30):
        while True:
            await call.write(batch(host.seal()))
            await call.read()


def batch(sealed: Sealed) -> pb.Batch:
    header, body, tag = sealed
    return pb.Batch(stream_nonce=bytes(16), items=[pb.SealedSnapshot(header=header, body=body, tag=tag)])


async def test_a_revoked_key_is_refused_within_a_scan_also_in_open_streams(tmp_path: Path) -> None:
    async with running(tmp_path) as (broker, site, stub):
        host = Host(site)
        call = stub.Stream()
        await call.write(batch(host.seal()))
        assert (await call.read()).sealed
        site.sign(revoke(succeed(site.manifest, int(time.time()) + 3600), "host-1"))  # long before it is in force
        with pytest.raises(grpc.aio.AioRpcError):
            await talk_on(call, host)
        assert await call.code() is grpc.StatusCode.UNAUTHENTICATED
        assert "revoked" in (await call.details() or "")
        assert broker.counters()["rejected.revoked"] == 1
        before = broker.accepted
        again = stub.Stream()
        await again.write(batch(host.seal()))
        assert await again.code() is grpc.StatusCode.UNAUTHENTICATED
        assert broker.accepted == before


async def test_newer_manifests_are_passed_on_once_a_stream(tmp_path: Path) -> None:
    async with running(tmp_path) as (broker, site, stub):
        signed = site.sign(succeed(site.manifest, int(time.time()) + 3600))
        host = Host(site)
        await comes_true(lambda: broker.info().epoch_id == 1 and len(broker.epochs.manifests) == 2)
        call = stub.Stream()
        await call.write(batch(host.seal()))
        assert list((await call.read()).manifests) == [signed]
        await call.write(batch(host.seal()))
        assert list((await call.read()).manifests) == []


async def test_the_profile_of_the_epoch_decides_over_the_scheme(tmp_path: Path) -> None:
    async with running(tmp_path) as (broker, site, stub):
        trust = replace(succeed(site.manifest, int(time.time())), profile=Profile.TRUST)
        site.sign(trust)
        await comes_true(lambda: broker.info().profile == "trust")
        host = Host(site)
        honest = host.seal()
        # The same host key, sealed by the weaker scheme under the epoch that asks for signatures.
        header = honest.header[:16] + (2).to_bytes(8, "big") + honest.header[24:]
        key = host.epochs.sealing_key("host-1", 1, 1)  # type: ignore[arg-type]
        call = stub.Stream()
        await call.write(batch(Sealed(header, honest.body, key.tag(header, honest.body))))
        assert await call.code() is grpc.StatusCode.UNAUTHENTICATED
        assert broker.counters()["rejected.wrong_scheme"] == 1


async def test_what_the_operator_did_not_sign_is_shown_and_changes_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as (broker, site, _):
        forged = sign_manifest(succeed(site.manifest, int(time.time())), SecretKey(os.urandom(32), Kind.OPERATOR))
        (site.manifests / "forged.manifest").write_bytes(forged)
        contradicts = sign_manifest(replace(site.manifest, tick_ms=50), site.operator_key)
        (site.manifests / "other.manifest").write_bytes(contradicts)
        await comes_true(lambda: len(broker.info().refused_manifests) == 2)
        said = " ".join(broker.info().refused_manifests)
        assert "not signed by the configured operator" in said
        assert "two different manifests of epoch 1" in said
        assert broker.info().epoch_id == 1


def test_a_broker_needs_a_manifest_and_its_own_key(tmp_path: Path) -> None:
    chosen, site = settings(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(NoEpochError, match="mvps epoch new"):
        EpochWatch(chosen.model_copy(update={"manifests": tmp_path / "empty"}))
    with pytest.raises(NoEpochError, match="cannot read the manifests"):
        EpochWatch(chosen.model_copy(update={"manifests": tmp_path / "none"}))
    with pytest.raises(KeySourceError, match="a broker key is needed"):
        EpochWatch(chosen.model_copy(update={"key": str(site.host_keys["host-1"])}))


async def test_a_clock_that_was_set_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen, _ = settings(tmp_path)
    watch = EpochWatch(chosen)
    real, ahead = time.time_ns, [0]
    monkeypatch.setattr(time, "time_ns", lambda: real() + ahead[0])
    task = asyncio.create_task(watch.run(lambda: None))
    try:
        await asyncio.sleep(0)  # it has looked at the clock once
        ahead[0] = -5 * 10**9
        await comes_true(lambda: watch.clock_steps == 1)
        assert abs(watch.last_clock_step_ns + 5 * 10**9) < 10**9
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
