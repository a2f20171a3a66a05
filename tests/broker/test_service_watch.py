# SPDX-License-Identifier: Apache-2.0
"""Services, live: from accepted snapshots to joint ticks, and over real gRPC to what an operator reads."""

from __future__ import annotations

import asyncio
import json
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from talking import ACCEPTED, exchange, running
from tests.waiting import comes_true, until
from wire_samples import Host, now_tick, settings, snapshot

from mvps.broker.process import EmbeddedBroker
from mvps.broker.service_settings import ServiceSettings
from mvps.broker.service_watch import _MAX_BEHIND, NO_SNAPSHOT, NO_SURFACE, ServiceView, ServiceWatch
from mvps.cli import exits
from mvps.cli.main import main
from mvps.coupling.phases import ICPhase
from mvps.coupling.routing import CALIBRATION_WINDOWS, WINDOW_READINGS, Routing
from mvps.coupling.service import ServiceMonitor
from mvps.stream.client import StreamClient
from mvps.trust.seal import Lane
from mvps.trust.solo import make_site
from mvps.v1 import snapshot_pb2 as pb

SECOND = 10**9
PERIOD_NS = 50_000_000
BEGIN = 1_800_000_000
CHAT: dict[str, object] = {
    "name": "chat",
    "network": ["lb-1"],
    "ai": ["gpu-1/ai.chat"],
    "calibration_ticks": 60,
    "cutoffs": "finite-sample",
}
SD = 0.01


def surface(name: str, axes: tuple[float, ...], phase: int = pb.PHASE_BAU) -> pb.Surface:
    """A surface that has c1, c2 and, as many as there are, c3 and c4; its decision is the sample's."""
    made = pb.Surface(name=name, calibrated_ticks=300, needed_ticks=300)
    for axis, value in zip(("c1", "c2", "c3", "c4"), axes, strict=False):
        setattr(made.vector, axis, value)
    made.decision.CopyFrom(snapshot().surfaces[0].decision)
    made.decision.phase = phase  # type: ignore[assignment]
    return made


def body(*surfaces: pb.Surface) -> bytes:
    return pb.Snapshot(schema_version=1, surfaces=surfaces).SerializeToString()


class Site:
    """A watch without a broker: its clock is ours, and what hosts say is put in as the broker would."""

    def __init__(self, *services: dict[str, object], keep: Path | None = None, seed: int = 0) -> None:
        self.now_ns = BEGIN * SECOND
        self.joined: list[ServiceView] = []
        chosen = [ServiceSettings.model_validate(one) for one in services or (CHAT,)]
        self.watch = ServiceWatch(chosen, keep=keep, clock=lambda: self.now_ns)
        self._draw = np.random.default_rng(seed)
        self.tick = BEGIN
        self.sd = SD
        self.step()  # the lattice begins

    def step(self, seconds: float = 0.0) -> None:
        """Let time pass, and join what is due."""
        self.now_ns += round(seconds * SECOND)
        while work := self.watch._due(self.now_ns):
            views = self.watch._join(work)
            self.watch.views.update((view.name, view) for view in views)
            self.joined += views

    def say(self, host: str, *surfaces: pb.Surface, tick: int | None = None) -> None:
        self.watch.put(host, self.tick if tick is None else tick, SECOND, body(*surfaces))

    def drawn(self, axes: int, add: tuple[float, ...] = ()) -> tuple[float, ...]:
        values = 0.8 + self.sd * self._draw.standard_normal(axes)
        values[: len(add)] += add
        return tuple(np.clip(values, 0.0, 1.0).tolist())

    def seconds(
        self, count: int, net: tuple[float, ...] = (), ai: tuple[float, ...] = (), silent: tuple[str, ...] = ()
    ) -> None:
        """So many seconds in which both hosts speak."""
        for _ in range(count):
            self.tick += 1
            said = {"lb-1": surface("dataplane", self.drawn(3, net)), "gpu-1": surface("ai.chat", self.drawn(2, ai))}
            for host, shown in said.items():
                if host not in silent:
                    self.say(host, shown)
            self.step(1.0)

    @property
    def view(self) -> ServiceView:
        return self.watch.views["chat"]


def test_it_calibrates_and_tells_the_phases_with_their_lead() -> None:
    site = Site()
    site.seconds(60)
    assert (site.view.calibrated, site.view.needed, site.view.tick.phase) == (59, 60, None)  # one tick waits
    site.seconds(2)
    site.sd = SD / 5  # what comes is clear of quiet alarms
    assert site.view.tick.phase is ICPhase.JOINT_BAU
    assert site.view.used == ("C_1^net", "C_2^net", "C_3^net", "C_1^AI", "C_2^W2")
    site.seconds(4, net=(-0.3,))
    assert site.view.tick.phase is ICPhase.NET_LEADS
    site.seconds(4, net=(-0.3,), ai=(-0.3,))
    assert site.view.tick.phase is ICPhase.CASCADING
    assert site.view.tick.lead.value == "network"
    moved = site.view.tick.moved
    assert moved[0] is not None
    assert moved[1] is not None
    assert moved[1] - moved[0] == 4.0
    site.seconds(4)
    assert site.view.tick.phase is ICPhase.JOINT_BAU
    site.seconds(4, ai=(-0.3,))
    assert site.view.tick.phase is ICPhase.AI_LEADS
    ticks = [view.tick_ns for view in site.joined]
    assert ticks == list(range(ticks[0], ticks[-1] + 1, SECOND))
    assert site.watch.ticks["joined"] == len(ticks)


def test_what_is_missing_is_named_with_its_reason_and_is_no_0() -> None:
    site = Site(CHAT | {"network": ["lb-1", "lb-2"]})
    site.tick += 1
    site.say("lb-1", surface("dataplane", (0.5, 0.5, 0.5)))
    site.say("gpu-1", surface("kernel", (0.5, 0.5, 0.5)))
    site.step(2.5)
    assert site.view.missing == {"lb-2/dataplane": NO_SNAPSHOT, "gpu-1/ai.chat": NO_SURFACE}
    assert np.isnan(site.view.tick.z).all()


def test_a_calibrated_service_whose_source_falls_silent_is_incomplete_once_nothing_stands() -> None:
    site = Site()
    site.seconds(62)
    site.sd = SD / 5
    site.seconds(3, silent=("gpu-1",))
    assert site.view.missing == {}  # what it said last still stands, and is no new reading
    assert not site.view.tick.fresh
    site.seconds(4, silent=("gpu-1",))
    assert site.view.missing == {"gpu-1/ai.chat": NO_SNAPSHOT}
    assert site.view.tick.raw is ICPhase.INCOMPLETE
    site.seconds(5)
    assert site.view.tick.phase is ICPhase.JOINT_BAU


def test_a_report_that_stands_in_many_snapshots_is_one_reading_and_an_agents_surface_is_many() -> None:
    site = Site()
    report = surface("ai.chat", (0.7, 0.6))
    for tick in range(6):
        site.tick += 1
        if tick == 4:
            report = surface("ai.chat", (0.7, 0.61))
        site.say("lb-1", surface("dataplane", (0.9, 0.9, 0.9)))
        site.say("gpu-1", report)
        site.step(1.0)
    site.step(1.0)
    fresh = [view.tick.fresh for view in site.joined][-6:]
    assert fresh == [True, False, False, False, True, False]


def test_ticks_in_which_a_source_is_not_well_teach_nothing_and_are_counted() -> None:
    site = Site()
    for phase in (pb.PHASE_BAU, pb.PHASE_WATCH, pb.PHASE_ALARM, pb.PHASE_SHIFTED):
        site.tick += 1
        site.say("lb-1", surface("dataplane", site.drawn(3), phase))
        site.say("gpu-1", surface("ai.chat", site.drawn(2)))
        site.step(1.0)
    site.step(1.0)
    assert (site.view.calibrated, site.view.untaught) == (2, 2)


def test_what_comes_late_or_again_is_counted_and_late_serves_the_next_tick() -> None:
    site = Site()
    site.seconds(3)
    before = dict(site.watch.snapshots)
    assert before == {"taken": 6, "late": 0, "repeated": 0, "backfill": 0, "overflow": 0}
    site.step(2.0)  # the tick of this second is joined without anybody
    site.tick += 1
    site.say("lb-1", surface("dataplane", (0.1, 0.1, 0.1)))
    site.say("lb-1", surface("dataplane", (0.2, 0.2, 0.2)))
    assert site.watch.snapshots == before | {"taken": 7, "late": 1, "repeated": 1}
    site.step(1.0)
    assert site.view.tick.z[:3] == (0.1, 0.1, 0.1)


def test_a_host_of_two_services_serves_both_and_others_none() -> None:
    site = Site(CHAT, CHAT | {"name": "search", "tick_s": 2.0})
    site.seconds(6)
    assert set(site.watch.views) == {"chat", "search"}
    assert site.watch.snapshots["taken"] == 2 * 2 * 6
    site.say("nobody", surface("dataplane", (0.1, 0.1, 0.1)))
    assert site.watch.snapshots["taken"] == 2 * 2 * 6
    names = [view.name for view in site.joined]
    assert (names.count("chat"), names.count("search")) == (5, 2)


def test_a_clock_set_forward_is_skipped_and_one_set_back_begins_anew() -> None:
    site = Site()
    site.seconds(62)
    joined = site.watch.ticks["joined"]
    site.step(_MAX_BEHIND + 100.0)
    assert site.watch.ticks["skipped"] >= _MAX_BEHIND
    assert site.watch.ticks["joined"] == joined + 1
    site.tick = BEGIN
    site.step(BEGIN - site.now_ns / SECOND)
    assert site.watch.ticks["stepped_back"] == 1
    site.seconds(5)
    assert site.view.tick.raw is not None  # the baseline has stayed
    assert site.view.tick.time < BEGIN + 10


def test_a_restart_decides_at_once_and_other_sources_calibrate(tmp_path: Path) -> None:
    path = tmp_path / "broker.db.services"
    site = Site(keep=path)
    site.seconds(60)
    assert not path.exists()
    site.seconds(2)
    assert path.exists()
    again = Site(keep=path, seed=1)
    again.seconds(5, net=(-0.3,))
    assert again.view.tick.phase is ICPhase.NET_LEADS
    assert again.view.limits == site.view.limits
    other = Site(CHAT | {"ai": ["gpu-1/ai.other"]}, keep=path)
    other.seconds(2)
    assert other.view.tick.phase is None
    assert other.watch.windows_error == ""


def test_a_file_that_cannot_be_used_or_written_is_said_and_calibration_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "broker.db.services"
    path.write_bytes(b"{broken")
    site = Site(keep=path)
    assert "holds no windows of services" in site.watch.windows_error
    path.unlink()
    path.mkdir()
    site.seconds(63)
    assert site.view.limits is not None
    assert "cannot be written" in site.watch.windows_error
    assert site.watch.windows_failures == 2


# ---- where the requests go


def told(share: float, cached: float, draw: np.random.Generator) -> pb.Surface:
    """An AI surface of two replicas, of which the first one gets ``share`` of the requests."""
    made = surface("ai.chat", tuple((0.8 + 0.001 * draw.standard_normal(2)).tolist()))
    for name, part in (("a", share), ("b", 1.0 - share)):
        requests = int(draw.poisson(1000 * part))
        prompt = 100 * requests
        load = pb.ReplicaLoad(requests=requests, prompt_tokens=prompt, cached_tokens=int(cached * prompt))
        made.observations.add(vantage=name, load=load)
    return made


def route(site: Site, seconds: int, share: float = 0.5, cached: float = 0.8) -> None:
    draw = np.random.default_rng(site.tick)
    for _ in range(seconds):
        site.tick += 1
        site.say("lb-1", surface("dataplane", site.drawn(3)))
        site.say("gpu-1", told(share, cached, draw))
        site.step(1.0)


def routed(site: Site) -> Routing:
    found = site.view.routing["gpu-1/ai.chat"]
    assert isinstance(found, Routing)
    return found


def test_requests_that_changed_their_replica_are_seen_and_survive_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "broker.db.services"
    site = Site(keep=path)
    route(site, 2 * WINDOW_READINGS)
    assert site.view.routing == {"gpu-1/ai.chat": 1}  # one tick waits
    route(site, CALIBRATION_WINDOWS * WINDOW_READINGS)
    assert not routed(site).moved
    route(site, WINDOW_READINGS + 1, share=0.7, cached=0.6)
    assert routed(site).moved
    assert routed(site).shares == pytest.approx([0.7, 0.3], abs=0.02)
    assert routed(site).missing == pytest.approx([0.25, 0.25], abs=0.02)
    again = Site(keep=path)
    route(again, WINDOW_READINGS + 2)
    assert routed(again).before == pytest.approx([0.5, 0.5], abs=0.02)
    assert not routed(again).moved


def test_routing_of_a_source_that_fell_silent_is_not_known() -> None:
    site = Site()
    route(site, 2 * WINDOW_READINGS)
    site.seconds(6, silent=("gpu-1",))
    assert site.view.routing == {}


def test_a_reading_that_is_repeated_counts_once() -> None:
    site = Site()
    draw = np.random.default_rng(0)
    for number in range(4 * WINDOW_READINGS):
        site.tick += 1
        site.say("lb-1", surface("dataplane", site.drawn(3)))
        if number % 4 == 0:
            said = told(0.5, 0.8, draw)
        site.say("gpu-1", said)
        site.step(1.0)
    route(site, 1)
    assert site.view.routing == {"gpu-1/ai.chat": 1}


def test_a_defect_in_one_service_is_counted_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(CHAT, CHAT | {"name": "search"})
    site.seconds(3)
    before = dict(site.watch.ticks)
    with monkeypatch.context() as broken:
        step = ServiceMonitor.step
        ill = site.watch._services[0].monitor
        broken.setattr(ServiceMonitor, "step", lambda self, *rest: 1 / 0 if self is ill else step(self, *rest))
        site.seconds(1)
    assert site.watch.ticks["failed"] == before["failed"] + 1
    assert site.watch.ticks["joined"] == before["joined"] + 1
    assert "chat: the tick of " in site.watch.error
    assert "ZeroDivisionError" in site.watch.error
    site.seconds(1)
    assert site.watch.error == ""


def test_one_service_is_evaluated_in_a_pass() -> None:
    site = Site(CHAT, CHAT | {"name": "search"})
    for seconds, evaluated in ((61, 1), (1, 2)):
        site.seconds(seconds)
        assert sum(view.coupling is not None for view in site.watch.views.values()) == evaluated


async def test_only_the_live_lane_of_the_hosts_it_knows_is_taken(tmp_path: Path) -> None:
    service = CHAT | {"network": ["host-1/kernel"], "ai": ["host-1/ai.chat"], "tick_s": 60.0}
    async with running(tmp_path, service=[service]) as (broker, host, stub):
        other = Host(host.site, "host-2")
        for item, sender in ((host.seal(), host), (host.seal(lane=Lane.BACKFILL), host), (other.seal(), other)):
            assert [answer[1:] for answer in await exchange(stub, sender, item)] == [ACCEPTED]
        assert (broker.service_watch.snapshots["taken"], broker.service_watch.snapshots["backfill"]) == (1, 1)


async def test_a_broker_without_services_watches_none(tmp_path: Path) -> None:
    async with running(tmp_path) as (broker, host, stub):
        await exchange(stub, host, host.seal())
        assert broker.service_watch.snapshots["taken"] == 0
        assert broker.info().services.services == []


async def test_the_event_loop_is_free_while_a_thread_joins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A join that does not end holds up neither admission nor questions."""
    released, reached = threading.Event(), threading.Event()
    service = CHAT | {"network": ["host-1/kernel"], "ai": ["host-1/ai.chat"], "tick_s": 0.05}

    def hang(self: ServiceWatch, work: object) -> list[ServiceView]:
        reached.set()
        released.wait(60)
        return []

    monkeypatch.setattr(ServiceWatch, "_join", hang)
    async with running(tmp_path, service=[service]) as (broker, host, stub):
        try:
            await comes_true(reached.is_set)
            tick = now_tick()
            assert [answer[1:] for answer in await exchange(stub, host, host.seal(tick=tick))] == [ACCEPTED]
            assert broker.info().services.services[0].name == "chat"
        finally:
            released.set()
            await asyncio.sleep(0)


class Senders:
    """A host of the network and one with an AI surface, at 20 Hz; ``net`` and ``ai`` are added to their C_1."""

    def __init__(self, broker: EmbeddedBroker, hosts: list[Host]) -> None:
        self.net = self.ai = 0.0
        self._hosts = hosts
        self._senders = [StreamClient(broker.address, host.vantage_id, host.acks()) for host in hosts]
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._send)
        for sender in self._senders:
            sender.start()
        self._thread.start()

    def _send(self) -> None:
        draw = np.random.default_rng(1)
        tick = time.time_ns() // PERIOD_NS
        while not self._ended.is_set():
            tick += 1
            time.sleep(max(tick * PERIOD_NS - time.time_ns(), 0) / 1e9)
            rows = 0.8 + SD * draw.standard_normal((2, 3))
            rows[0, 0] += self.net
            rows[1, 0] += self.ai
            shown = (surface("kernel", tuple(rows[0].tolist())), surface("ai.chat", tuple(rows[1, :2].tolist())))
            for host, sender, one in zip(self._hosts, self._senders, shown, strict=True):
                sent = pb.Snapshot(
                    schema_version=1, vantage_id=host.vantage_id, tick=tick, tick_time_ns=tick * PERIOD_NS,
                    tick_period_ns=PERIOD_NS, agent_version="0.1.0", surfaces=[one],
                )  # fmt: skip
                sender.submit(host.seal(sent, tick=tick))

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()
        for sender in self._senders:
            sender.stop()


def test_over_grpc_the_surface_that_leads_is_named_in_status_words_metrics_and_history(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["lb-1", "gpu-1"]
    site = make_site(tmp_path, names, tick_ms=50)
    service = CHAT | {"network": ["lb-1/kernel"], "tick_s": 0.05}
    chosen, _ = settings(
        tmp_path, key=str(site.broker_key), operator=site.operator, manifests=site.manifests, metrics="127.0.0.1:0",
        check_decisions=False, service=[service],
    )  # fmt: skip
    broker = EmbeddedBroker(chosen)
    assert broker.broker is not None
    at = ["--broker", broker.address]

    def asked(*words: str) -> tuple[int, str]:
        code = main(["service", *words, *at])
        return code, capsys.readouterr().out

    def is_in(phase: str) -> Callable[[], bool]:
        return lambda: f"chat     {phase}" in asked()[1]

    code, said = asked()
    assert code in (exits.OK, exits.FOUND)
    assert "CALIBRATING" in said
    senders = Senders(broker, [Host(site, name) for name in names])
    try:
        until(is_in("0 JOINT_BAU"), "calibration")
        until(lambda: asked()[0] == exits.OK)
        senders.net = -0.3
        until(is_in("1 NET_LEADS"), "phase 1")
        code, said = asked("explain", "chat")
        assert code == exits.FOUND
        assert "Moved first: the network." in said
        assert "What to do: The network deviates" in said
        assert "name the engines' metrics" in said
        senders.ai = -0.3
        until(is_in("4 CASCADING"), "phase 4")
        code, said = asked()
        assert "network" in said.splitlines()[1]
        assert "! chat: phase 4 CASCADING. Network and AI surface deviate together." in said
        assert broker.broker.metrics is not None
        page = urllib.request.urlopen(f"http://127.0.0.1:{broker.broker.metrics.port}/metrics").read().decode()
        assert 'mvps_service_phase{phase="CASCADING",service="chat"} 1.0' in page
        assert 'mvps_service_lead{lead="NETWORK",service="chat"} 1.0' in page
        assert 'mvps_service_coherence{axis="C_2^W2",service="chat"} ' in page
        shown = json.loads(asked("--json")[1])["services"][0]
        assert (shown["phase"], shown["lead"]) == ("SERVICE_PHASE_CASCADING", "SERVICE_LEAD_NETWORK")
        assert shown["joint"]["d2"] > shown["joint"]["alarm"]
        assert len(shown["posterior"]) == 4
        until(lambda: any("CASCADING" in tick["phase"] for tick in kept(asked("plot", "chat", "--json")[1])))
        ticks = kept(asked("plot", "chat", "--json", "--points", "5000")[1])
        times = [int(tick["tick_time_ns"]) for tick in ticks]
        assert times == sorted(set(times))
        phases = [tick["phase"].removeprefix("SERVICE_PHASE_") for tick in ticks]
        order = [phases.index(name) for name in ("CALIBRATING", "JOINT_BAU", "NET_LEADS", "CASCADING")]
        assert order == sorted(order)
        last = ticks[-1]
        assert set(last["axes"]) == {"net_c1", "net_c2", "net_c3", "ai_c1", "ai_c2"}
        assert "d2_joint" in last
        assert "watch_net" in last
        assert "d2_joint" not in ticks[phases.index("CALIBRATING")]
    finally:
        senders.stop()
        broker.stop()


def kept(said: str) -> list[dict[str, str]]:
    return json.loads(said)["ticks"] if said else []  # type: ignore[no-any-return]
