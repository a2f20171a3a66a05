# SPDX-License-Identifier: Apache-2.0
"""The broker's /metrics over real HTTP, read by the library's own parser."""

from __future__ import annotations

import re
import time
from pathlib import Path

import aiohttp
import grpc
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from wire_samples import Host, settings

from mvps.broker.metrics import BrokerCollector
from mvps.broker.server import Broker, BrokerError
from mvps.trust.limits import NONCE_BYTES
from mvps.v1 import stream_pb2 as pb
from mvps.v1 import stream_pb2_grpc


async def scrape(broker: Broker) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    assert broker.metrics is not None
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{broker.metrics.port}/metrics") as answer,
    ):
        assert answer.status == 200
        text = await answer.text()
    families = text_string_to_metric_families(text)
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


async def test_every_metric_is_in_the_operations_manual(tmp_path: Path) -> None:
    chosen, _ = settings(tmp_path, surplus={})
    broker = Broker(chosen)
    await broker.start()
    manual = (Path(__file__).parents[2] / "docs/operations.md").read_text()
    for family in BrokerCollector(broker.info, broker.vantages).collect():
        assert re.search(rf"\b{family.name}\b", manual), family.name
    await broker.stop()


async def test_what_happened_is_counted_by_reason(tmp_path: Path) -> None:
    chosen, site = settings(tmp_path, metrics="127.0.0.1:0")
    broker = Broker(chosen)
    await broker.start()
    try:
        host = Host(site)
        items = [host.seal(), host.seal(b"garbage"), host.seal(clock=lambda: time.time_ns() - 400 * 10**9)]
        async with grpc.aio.insecure_channel(broker.address) as channel:
            call = stream_pb2_grpc.BrokerStub(channel).Stream()
            await call.write(
                pb.Batch(
                    stream_nonce=bytes(NONCE_BYTES),
                    items=[pb.SealedSnapshot(header=h, body=b, tag=t) for h, b, t in items],
                )
            )
            await call.read()
            found = await scrape(broker)
        assert found["mvps_broker_accepted_total", ()] == 1
        assert found["mvps_broker_rejected_total", (("reason", "malformed"),)] == 1
        assert found["mvps_broker_rejected_total", (("reason", "stale"),)] == 1
        assert found["mvps_broker_vantages", (("state", "connected"),)] == 1
        assert found["mvps_broker_surfaces", (("phase", "BAU"), ("surface", "kernel"))] == 1
        assert found["mvps_log_leaves", ()] == 1
        assert found["mvps_store_limit_bytes", ()] == 16 << 30 > found["mvps_store_bytes", ()] > 0
        assert found["mvps_store_kept_from_seconds", ()] == found["mvps_store_removed_early_total", ()] == 0
        assert found["mvps_broker_info", (("epoch", "1"), ("profile", "cwt"), ("version", broker.info().version))] == 1
        broker.fleet.vantages["host-1"].clone_suspected = True
        found = await scrape(broker)
        assert found["mvps_broker_vantage_alarm", (("alarm", "clone"), ("vantage", "host-1"))] == 1
        taken = chosen.model_copy(
            update={
                "metrics": f"127.0.0.1:{broker.metrics.port if broker.metrics else 0}",
                "database": tmp_path / "2.db",
            }
        )
        second = Broker(taken)
        with pytest.raises(BrokerError, match="metrics cannot listen"):
            await second.start()
        await second.stop()
    finally:
        await broker.stop()
