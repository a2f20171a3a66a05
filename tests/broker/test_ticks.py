# SPDX-License-Identifier: Apache-2.0
"""Bundles of a running broker: from real snapshots over a real stream to what the history answers."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from tests.waiting import comes_true
from wire_samples import SECOND, Host, Seen, now_tick, packed, settings, snapshot

from mvps.broker.bundle import NOT_OBSERVED, Status
from mvps.broker.server import Broker
from mvps.broker.ticks import figures_of, severity
from mvps.stream.client import StreamClient
from mvps.trust import gate
from mvps.trust.seal import Lane
from mvps.v1 import snapshot_pb2 as pb


def sender(broker: Broker, host: Host) -> StreamClient:
    client = StreamClient(broker.address, host.vantage_id, host.acks())
    client.start()
    return client


async def test_two_hosts_make_a_complete_bundle_and_one_host_one_with_a_name_missing(tmp_path: Path) -> None:
    chosen, site = settings(tmp_path, bundle_deadline_s=0.4)
    broker = Broker(chosen)
    await broker.start()
    hosts = [Host(site, name) for name in ("host-1", "host-2")]
    clients = [sender(broker, host) for host in hosts]
    try:
        tick = now_tick() + 2
        for host, client in zip(hosts, clients, strict=True):
            client.submit(host.seal(snapshot(host.vantage_id, tick), tick=tick))
        await comes_true(lambda: broker.ticks.counts["complete"] >= 1)
        clients[0].submit(hosts[0].seal(snapshot("host-1", tick + 1), tick=tick + 1))
        await comes_true(lambda: broker.ticks.counts["reported"] == 3)
        await comes_true(lambda: time.time_ns() > (tick + 1) * SECOND + 500_000_000)
        history = broker.answers._kept()
        await comes_true(lambda: len(history.tick((tick + 1) * SECOND)) == 2)
        complete, partial = (dict(history.tick((tick + n) * SECOND))[""] for n in (0, 1))
        assert complete.status is Status.REPORTED
        reports = [report for _, report in history.tick((tick + 1) * SECOND)]
        assert [(r.vantage_id, r.status) for r in reports] == [
            ("host-1", Status.REPORTED),
            ("host-2", Status.MISSING),
        ]
        assert partial.vantage_id == "host-2"
        assert reports[0].figures == (pb.PHASE_BAU, "kernel", 1.5, 1.2, "", NOT_OBSERVED)
    finally:
        for client in clients:
            await asyncio.to_thread(client.stop)
        await broker.stop()


async def test_what_comes_late_or_by_backfill_or_is_refused_is_told_apart(tmp_path: Path) -> None:
    chosen, site = settings(tmp_path, bundle_deadline_s=0.3)
    broker = Broker(chosen)
    await broker.start()
    host = Host(site, "host-1")
    client = sender(broker, host)
    try:
        late, old, refused = now_tick() - 100, now_tick() - 1000, now_tick() + 1
        client.submit(host.seal(snapshot("host-1", late), tick=late))
        sealed_then = old * SECOND
        client.submit(host.seal(snapshot("host-1", old), tick=old, lane=Lane.BACKFILL, clock=lambda: sealed_then))
        wrong = snapshot("host-1", refused)
        wrong.surfaces[0].vector.c1 = 2.0
        client.submit(host.seal(wrong, tick=refused, clock=lambda: refused * SECOND))
        history = broker.answers._kept()
        await comes_true(lambda: len([r for r in history.vantage("host-1") if r.status is not Status.MISSING]) == 3)
        by_tick = {r.tick_ns // SECOND: r for r in history.vantage("host-1")}
        assert by_tick[late].status is Status.LATE
        assert by_tick[old].status is Status.BACKFILL
        assert by_tick[refused].status is Status.REJECTED
        assert by_tick[refused].reason == 28
    finally:
        await asyncio.to_thread(client.stop)
        await broker.stop()


async def test_of_too_many_late_ones_only_the_number_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mvps.broker.ticks._LATE_BURST", 3.0)
    monkeypatch.setattr("mvps.broker.ticks.LATE_ROWS_PER_S", 0.0)
    chosen, site = settings(tmp_path, bundle_deadline_s=0.3)
    broker = Broker(chosen)
    await broker.start()
    host = Host(site, "host-1")
    client = sender(broker, host)
    try:
        begin = now_tick() - 100
        for tick in range(begin, begin + 10):
            client.submit(host.seal(snapshot("host-1", tick), tick=tick))
            await comes_true(lambda tick=tick: broker.accepted == tick - begin + 1)  # type: ignore[misc]
        assert (broker.ticks.counts["late"], broker.ticks.counts["unkept"]) == (3, 7)
        # What is on time is looked at all the same.
        client.submit(host.seal(snapshot("host-1", now_tick() + 2), tick=now_tick() + 2))
        await comes_true(lambda: broker.ticks.counts["reported"] == 1)
    finally:
        await asyncio.to_thread(client.stop)
        await broker.stop()


async def test_a_broker_without_history_closes_its_bundles_all_the_same(tmp_path: Path) -> None:
    chosen, _ = settings(tmp_path, bundle_deadline_s=0.25, history="none")
    broker = Broker(chosen)
    await broker.start()
    try:
        await comes_true(lambda: broker.ticks.counts["missing"] >= 2)
        assert not broker.info().HasField("history")
        assert not list(tmp_path.glob("*.history"))
    finally:
        await broker.stop()


def test_the_worst_surface_speaks_for_the_snapshot() -> None:
    kernel = gate.SurfaceFigures("kernel", pb.PHASE_BAU, 1.5, 1.2, "mm")
    paths = gate.SurfaceFigures("dataplane", pb.PHASE_ALARM, 0.5, 9.0, "path")
    calibrating = gate.SurfaceFigures("fleet", 0, 0.0, 12.0, "")
    said = gate.Figures(SECOND, 0, "path", (kernel, paths, calibrating))
    observed = packed(Seen("mm", 1.2))
    assert figures_of(said, observed) == (pb.PHASE_ALARM, "dataplane", 1.5, 12.0, "path", observed)
    nothing = (pb.PHASE_CALIBRATING, "", 0.0, 12.0, "", NOT_OBSERVED)
    assert figures_of(gate.Figures(SECOND, 0, "", (calibrating,))) == nothing


def test_every_phase_has_a_rank_of_its_own() -> None:
    ranks = [severity(phase) for phase in pb.Phase.values()]
    assert len(set(ranks)) == len(ranks)
    assert max(ranks) == severity(pb.PHASE_CRITICAL)


@pytest.mark.parametrize("url", ["postgresql://u:secret@h/d", "postgresql+psycopg://u:@h/d"])
def test_a_password_in_the_settings_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(ValueError, match="passfile"):
        settings(tmp_path, history=url)
    assert settings(tmp_path, history="postgresql://u@h/d")[0].history_url() == "postgresql://u@h/d"
