# SPDX-License-Identifier: Apache-2.0
"""The local API over a real Unix socket."""

from __future__ import annotations

import contextlib
import grp
import json
import os
import queue
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.surplus.cap_sample import cap

from mvps.daemon.config import Config
from mvps.daemon.local_api import MAX_WATCHERS, LocalApi, LocalApiError
from mvps.daemon.service import Agent
from mvps.surplus.packets import Chain
from mvps.v1 import local_pb2 as pb
from mvps.v1 import local_pb2_grpc
from mvps.v1.snapshot_pb2 import Decision, Lateral, Phase, Snapshot, Surface

C4 = 0.4142135623730951


@pytest.fixture
def agent(make_agent: Callable[..., Agent]) -> Agent:
    return make_agent()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agent.sock"


@pytest.fixture
def api(agent: Agent, path: Path) -> Iterator[LocalApi]:
    api = LocalApi(agent, path)
    yield api
    api.close()


@pytest.fixture
def stub(api: LocalApi, path: Path) -> Iterator[local_pb2_grpc.LocalStub]:
    with grpc.insecure_channel(f"unix:{path}") as channel:
        yield local_pb2_grpc.LocalStub(channel)  # type: ignore[no-untyped-call]


def test_status_says_what_the_agent_does(stub: Any, agent: Agent, ticks: Any) -> None:
    for _ in range(62):
        agent.work(ticks.next())
    status = stub.Status(pb.StatusRequest(), timeout=5)
    assert status.pid == os.getpid()
    assert status.ticks.done == 62
    assert {v.name: (v.surface, v.state) for v in status.vantages} == {
        "mm": ("kernel", "ok"),
        "blk": ("kernel", "ok"),
        "path": ("dataplane", "ok"),
    }
    assert {s.name for s in status.surfaces} == {"kernel", "dataplane"}
    assert all(len(s.baseline_id) == 16 for s in status.surfaces)
    assert all(s.phase != Phase.PHASE_CALIBRATING for s in status.surfaces)
    assert status.losses.by_cause["blk.objects_full"] == 3
    assert status.resident_bytes > 1 << 20


def test_watch_sends_backlog_then_each_tick(stub: Any, agent: Agent, ticks: Any) -> None:
    for _ in range(3):
        agent.work(ticks.next())
    stream = stub.Watch(pb.WatchRequest(ticks=3, backlog=2), timeout=20)
    old = [next(stream).snapshot.tick, next(stream).snapshot.tick]
    ticking = threading.Event()

    def tick_on() -> None:
        while not ticking.wait(0.02):
            agent.work(ticks.next())

    worker = threading.Thread(target=tick_on)
    worker.start()
    fresh = next(stream).snapshot.tick
    ticking.set()
    worker.join()
    assert old == [1_700_000_002, 1_700_000_003]
    assert fresh > old[-1]
    assert list(stream) == []


def test_too_many_watchers_are_told_so_and_short_calls_still_answer(stub: Any) -> None:
    watchers = [stub.Watch(pb.WatchRequest(), timeout=60) for _ in range(MAX_WATCHERS + 1)]
    refused: list[grpc.RpcError] = []
    done = threading.Semaphore(0)

    def drain(stream: Any) -> None:
        try:
            list(stream)
        except grpc.RpcError as error:
            refused.append(error)
        done.release()

    threads = [threading.Thread(target=drain, args=(w,)) for w in watchers]
    for thread in threads:
        thread.start()
    assert done.acquire(timeout=20)
    assert refused[0].code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # type: ignore[attr-defined]
    assert stub.Status(pb.StatusRequest(), timeout=5).pid == os.getpid()
    for watcher in watchers:
        watcher.cancel()
    for thread in threads:
        thread.join(20)


def test_explain_has_a_sentence_and_names(stub: Any, agent: Agent, ticks: Any, vantages: Any) -> None:
    for _ in range(62):
        agent.work(ticks.next())
    vantages.fault = 4
    for _ in range(8):
        agent.work(ticks.next())
    answer = stub.Explain(pb.ExplainRequest(surface="kernel"), timeout=5)
    assert len(answer.surfaces) == len(answer.sentences) == 1
    assert "blk is farthest" in answer.sentences[0]
    decision = answer.surfaces[0].decision
    assert sum(c.value for c in decision.axis_contributions) == pytest.approx(decision.d2)
    names = set(answer.surfaces[0].observations[0].objects.names.values())
    assert {"unit-1.service", "unit-2.service"} <= names
    assert not agent.published.state.snapshot.surfaces[0].observations[0].objects.names
    with pytest.raises(grpc.RpcError) as caught:
        stub.Explain(pb.ExplainRequest(surface="gpu"), timeout=5)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert "kernel, dataplane" in caught.value.details()


def test_accept_and_reload_say_why_they_refuse(stub: Any, agent: Agent) -> None:
    runner = threading.Thread(target=agent.run)
    runner.start()
    answer = stub.AcceptBaseline(pb.AcceptBaselineRequest(surface="kernel"), timeout=15)
    assert not answer.accepted
    assert "no new level" in answer.detail
    assert "without a settings file" in stub.Reload(pb.ReloadRequest(), timeout=5).error
    agent.stop()
    runner.join(15)


def test_a_reported_surface_is_in_the_snapshots_and_on_every_view(
    stub: Any, agent: Agent, ticks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bodies: list[bytes] = []
    monkeypatch.setattr(agent.uplink, "submit", lambda body, _: bodies.append(body))
    surface = Surface(name="ai.llama", calibrated_ticks=5, needed_ticks=60)
    surface.vector.c1 = 0.75
    answer = stub.ReportSurface(pb.ReportSurfaceRequest(surface=surface, valid_ns=60 * 10**9))
    assert (answer.taken, answer.detail) == (True, "")
    for _ in range(2):
        agent.work(ticks.next())
    assert agent.published.state.snapshot.surfaces[-1] == surface
    assert Snapshot.FromString(bodies[-1]).surfaces[-1] == surface
    assert stub.Status(pb.StatusRequest()).surfaces[-1].name == "ai.llama"
    assert "ai.llama is calibrating" in stub.Explain(pb.ExplainRequest(surface="ai.llama")).sentences[0]
    assert 'mvps_coherence{surface="ai.llama",axis="c1"} 0.75' in agent.exposition()
    surface.name = "kernel"
    answer = stub.ReportSurface(pb.ReportSurfaceRequest(surface=surface, valid_ns=60 * 10**9))
    assert (answer.taken, "cannot be reported" in answer.detail) == (False, True)


def brittle() -> Surface:
    """What a vantage of a language model reports whose answers agree and do not survive rephrasing."""
    surface = Surface(name="ai.llama", calibrated_ticks=300, needed_ticks=300)
    surface.vector.c1, surface.vector.c4 = 0.75, C4
    surface.lateral = Lateral.LATERAL_COHERENT_BUT_FALSE
    surface.decision.CopyFrom(
        Decision(
            phase=Phase.PHASE_BAU,
            raw_phase=Phase.PHASE_BAU,
            posterior=[0.9, 0.07, 0.02, 0.01],
            d2=1.5,
            phi_d=0.78,
            p_value=0.6,
            dof=1,
            baseline_id="0123456789abcdef",
        )
    )
    return surface


def raw(path: Path, method: str, request: Any) -> bytes:
    """The answer, or the first of a stream, as it comes over the socket."""
    with grpc.insecure_channel(f"unix:{path}") as channel:
        name, encode = f"/mvps.v1.Local/{method}", type(request).SerializeToString
        if method != "Watch":
            return bytes(channel.unary_unary(name, request_serializer=encode)(request, timeout=5))
        stream = channel.unary_stream(name, request_serializer=encode)(request, timeout=5)
        found = bytes(next(stream))
        stream.cancel()
        return found


def test_c4_and_its_label_are_shown_on_the_operators_socket_alone(
    stub: Any, agent: Agent, ticks: Any, path: Path, tmp_path: Path
) -> None:
    answer = stub.ReportSurface(pb.ReportSurfaceRequest(surface=brittle(), valid_ns=60 * 10**9), timeout=5)
    assert (answer.taken, answer.detail) == (True, "")
    for _ in range(2):
        agent.work(ticks.next())
    operator_path = tmp_path / "operator.sock"
    operators = LocalApi(agent, operator_path, operators=True)
    number = struct.pack("<d", C4)
    asked = pb.ExplainRequest(surface="ai.llama")
    guest, operator = (raw(one, "Explain", asked) for one in (path, operator_path))
    for needle in (number, b"COHERENT_BUT_FALSE", b"C_4 = 0.41"):
        assert needle in operator
        assert needle not in guest
    seen = pb.ExplainResponse.FromString(guest)
    assert list(seen.withheld) == ["vector.c4", "lateral"]
    assert "shown to operators" in seen.sentences[0]
    assert seen.surfaces[0].vector.c1 == 0.75
    assert not seen.surfaces[0].vector.HasField("c4")
    assert seen.surfaces[0].lateral == Lateral.LATERAL_UNSPECIFIED
    whole = pb.ExplainResponse.FromString(operator)
    assert (list(whole.withheld), whole.surfaces[0]) == ([], brittle())
    guest, operator = (raw(one, "Watch", pb.WatchRequest(backlog=1)) for one in (path, operator_path))
    assert (number in operator, number in guest) == (True, False)
    update = pb.TickUpdate.FromString(guest)
    assert list(update.withheld) == ["vector.c4", "lateral"]
    assert update.snapshot.surfaces[-1].lateral == Lateral.LATERAL_UNSPECIFIED
    # What is taken out of an answer is in the next snapshot all the same.
    assert agent.published.state.snapshot.surfaces[-1] == brittle()
    operators.close()
    assert not operator_path.exists()


def test_nothing_is_said_to_be_withheld_where_no_language_model_is_watched(stub: Any, agent: Agent, ticks: Any) -> None:
    agent.work(ticks.next())
    answer = stub.Explain(pb.ExplainRequest(), timeout=5)
    assert list(answer.withheld) == []
    assert not any("operators" in text for text in answer.sentences)


def test_the_operators_socket_is_for_its_owner_alone(agent: Agent, path: Path) -> None:
    api = LocalApi(agent, path, operators=True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    api.close()


def test_an_engine_streams_packets_and_is_told_how_hard_to_push(stub: Any, agent: Agent, ticks: Any) -> None:
    assert stub.SurplusStatus(pb.SurplusStatusRequest(), timeout=5) == pb.SurplusStatusResponse()
    chain, line = Chain.begin("engine-1").append(cap(time.time_ns()))
    sent: queue.SimpleQueue[pb.SurplusBatch | None] = queue.SimpleQueue()
    answers = stub.Surplus(iter(sent.get, None), timeout=20)
    sent.put(pb.SurplusBatch(chain="engine-1", lines=[line]))
    first = next(answers)
    assert (first.length, [one.tenant for one in first.tenants]) == (1, ["acme"])
    agent.work(ticks.next())
    snapshot = agent.published.state.snapshot
    assert json.loads(snapshot.extensions["mvps.surplus/heads"])[0]["head"] == chain.head
    assert "mvps_engine_packets_total 1" in agent.exposition()
    sent.put(pb.SurplusBatch())
    assert next(answers).length == 1
    assert stub.SurplusStatus(pb.SurplusStatusRequest(), timeout=5).engines[0].connected
    sent.put(None)
    assert list(answers) == []
    assert not stub.SurplusStatus(pb.SurplusStatusRequest(), timeout=5).engines[0].connected


def test_a_stream_that_breaks_the_rules_ends_and_says_why(stub: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.Surplus(iter([pb.SurplusBatch(chain="a b")]), timeout=20))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "a name has" in caught.value.details()
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.Surplus(iter([pb.SurplusBatch(chain="e"), pb.SurplusBatch(lines=[b"{}"])]), timeout=20))
    assert "does not follow" in caught.value.details()
    assert dict(stub.SurplusStatus(pb.SurplusStatusRequest(), timeout=5).refused) == {"chain": 1, "name": 1}


def test_engines_beyond_the_limit_are_refused_and_none_are_taken_where_it_is_zero(
    make_agent: Callable[..., Agent], tmp_path: Path
) -> None:
    for most, code in ((1, grpc.StatusCode.RESOURCE_EXHAUSTED), (0, grpc.StatusCode.FAILED_PRECONDITION)):
        path = tmp_path / f"agent-{most}.sock"
        api = LocalApi(make_agent(Config.model_validate({"engines": {"max_streams": most}})), path)
        with grpc.insecure_channel(f"unix:{path}") as channel:
            stub = local_pb2_grpc.LocalStub(channel)  # type: ignore[no-untyped-call]
            sent: queue.SimpleQueue[pb.SurplusBatch | None] = queue.SimpleQueue()
            if most:
                held = stub.Surplus(iter(sent.get, None), timeout=20)
                sent.put(pb.SurplusBatch(chain="first"))
                next(held)
            with pytest.raises(grpc.RpcError) as caught:
                list(stub.Surplus(iter([pb.SurplusBatch(chain="more")]), timeout=20))
            assert caught.value.code() is code
            sent.put(None)
        api.close()


def test_the_socket_is_for_owner_and_group_only(api: LocalApi, path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o660


@pytest.mark.skipif(os.geteuid() != 0, reason="changing a file's group needs root")
def test_the_socket_belongs_to_the_configured_group(agent: Agent, path: Path) -> None:
    group = next(g for g in grp.getgrall() if g.gr_gid != os.getegid())
    api = LocalApi(agent, path, group.gr_name)
    assert path.stat().st_gid == group.gr_gid
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    api.close()
    api = LocalApi(agent, path, group.gr_name, operators=True)
    assert (path.stat().st_gid, stat.S_IMODE(path.stat().st_mode)) == (group.gr_gid, 0o660)
    api.close()
    assert not path.exists()


def test_an_unknown_group_is_an_error_with_advice(agent: Agent, path: Path) -> None:
    with pytest.raises(LocalApiError, match="groupadd"):
        LocalApi(agent, path, "no-such-group")


def test_a_live_socket_is_not_taken_over(api: LocalApi, agent: Agent, path: Path) -> None:
    with pytest.raises(LocalApiError, match="another agent answers"):
        LocalApi(agent, path)
    with pytest.raises(LocalApiError, match="operator_socket to another path"):
        LocalApi(agent, path, operators=True)


def test_a_dead_socket_is_replaced_and_a_file_is_not(agent: Agent, path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))
    LocalApi(agent, path).close()
    path.write_text("precious")
    with pytest.raises(LocalApiError, match="is no socket"):
        LocalApi(agent, path)
    assert path.read_text() == "precious"


def test_a_missing_directory_is_an_error_with_advice(agent: Agent, tmp_path: Path) -> None:
    with pytest.raises(LocalApiError, match="socket to another path"):
        LocalApi(agent, tmp_path / "none" / "agent.sock")


def test_closing_ends_watchers(agent: Agent, path: Path) -> None:
    api = LocalApi(agent, path)
    with grpc.insecure_channel(f"unix:{path}") as channel:
        stub = local_pb2_grpc.LocalStub(channel)  # type: ignore[no-untyped-call]
        stream = stub.Watch(pb.WatchRequest(), timeout=60)
        ended = threading.Event()

        def drain() -> None:
            with contextlib.suppress(grpc.RpcError):
                list(stream)
            ended.set()

        threading.Thread(target=drain).start()
        stub.Status(pb.StatusRequest(), timeout=5)
        api.close()
        assert ended.wait(20)
    assert not path.exists()
