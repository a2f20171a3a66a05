# SPDX-License-Identifier: Apache-2.0
"""The agent over simulated vantages (no root); tests/kernel-marked tests below run the real ones."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mvps.coherence.observation import Scale
from mvps.daemon import baselines, config
from mvps.daemon.notify import Notifier
from mvps.daemon.service import Agent
from mvps.probes.cost import RunTotals
from mvps.v1.local_pb2 import SnapshotRecord, StreamState, SurplusStatusResponse
from mvps.v1.snapshot_pb2 import Phase, Snapshot

MakeAgent = Callable[..., Agent]


class KeepingUplink:
    """Keeps the bodies it is given."""

    key_id = "0" * 16

    def __init__(self) -> None:
        self.refreshed = 0
        self.bodies: list[tuple[int, bytes]] = []
        self.target = ""
        self.closed = False
        self.handed = b""

    def submit(self, body: bytes, tick: int) -> None:
        self.bodies.append((tick, body))

    def losses(self) -> dict[str, int]:
        return {"no_epoch": 0}

    def refresh(self) -> None:
        self.refreshed += 1

    def state(self) -> StreamState:
        return StreamState(target=self.target, state="connected", produced=len(self.bodies))

    def records(self) -> list[SnapshotRecord]:
        return []

    def policies(self) -> bytes:
        return self.handed

    def retarget(self, target: str) -> None:
        self.target = target

    def close(self) -> None:
        self.closed = True


def _work(agent: Agent, ticks: Any, count: int) -> Snapshot:
    for _ in range(count):
        agent.work(ticks.next())
    return agent.published.state.snapshot


def _surface(snapshot: Snapshot, name: str) -> Any:
    return next(s for s in snapshot.surfaces if s.name == name)


def test_a_tick_becomes_a_snapshot_with_everything_in_it(make_agent: MakeAgent, ticks: Any) -> None:
    uplink = KeepingUplink()
    agent = make_agent(uplink=uplink)
    snapshot = _work(agent, ticks, 1)
    assert [s.name for s in snapshot.surfaces] == ["kernel", "dataplane"]
    kernel = _surface(snapshot, "kernel")
    assert [o.vantage for o in kernel.observations] == ["mm", "blk"]
    assert (kernel.calibrated_ticks, kernel.needed_ticks) == (1, 60)
    assert not kernel.HasField("decision")
    assert kernel.observations[0].events == 200
    assert snapshot.losses.by_cause["blk.objects_full"] == 3
    assert snapshot.tick_time_ns == snapshot.tick * snapshot.tick_period_ns
    ((tick, body),) = uplink.bodies
    assert tick == snapshot.tick
    assert Snapshot.FromString(body) == snapshot


def test_calibration_ends_in_decisions_and_a_fault_is_named(make_agent: MakeAgent, ticks: Any, vantages: Any) -> None:
    agent = make_agent()
    quiet = _surface(_work(agent, ticks, 64), "kernel")
    assert quiet.decision.phase in (Phase.PHASE_BAU, Phase.PHASE_WATCH)
    assert sum(quiet.decision.posterior) == pytest.approx(1.0)
    assert len(quiet.observations[0].distribution) % 4 == 0
    assert quiet.observations[0].distribution
    vantages.fault = 4
    faulty = _surface(_work(agent, ticks, 10), "kernel")
    assert faulty.decision.phase in (Phase.PHASE_ALARM, Phase.PHASE_CRITICAL)
    assert faulty.vector.farthest == "blk"
    assert _surface(agent.published.state.snapshot, "dataplane").decision.phase != Phase.PHASE_CRITICAL


def test_baselines_travel_when_they_change_and_every_sixty_ticks(make_agent: MakeAgent, ticks: Any) -> None:
    uplink = KeepingUplink()
    agent = make_agent(uplink=uplink)
    _work(agent, ticks, 59 + 60 + 3)
    carrying = [i for i, (_, body) in enumerate(uplink.bodies) if Snapshot.FromString(body).baselines]
    assert carrying == [59, 119]
    carried = Snapshot.FromString(uplink.bodies[59][1])
    assert {b.surface for b in carried.baselines} == {"kernel", "dataplane"}
    assert not agent.published.state.snapshot.baselines
    carried.ClearField("baselines")
    assert carried.surfaces[0].name == "kernel"


def test_a_new_baseline_is_saved_and_used_by_the_next_agent(make_agent: MakeAgent, ticks: Any, tmp_path: Path) -> None:
    first = make_agent(save=True)
    _work(first, ticks, 60)
    first.close()
    purpose = baselines.Purpose("kernel", ("mm", "blk"), config.Config().tick_ns, {})
    stored = baselines.load(tmp_path, purpose)
    assert stored is not None
    second = make_agent(stored={"kernel": stored})
    assert _surface(_work(second, ticks, 1), "kernel").decision.baseline_id == stored.baseline_id


def test_a_stored_baseline_that_does_not_fit_is_not_the_end(
    make_agent: MakeAgent, ticks: Any, tmp_path: Path, vantages: Any
) -> None:
    first = make_agent(save=True)
    _work(first, ticks, 60)
    first.close()
    purpose = baselines.Purpose("kernel", ("mm", "blk"), config.Config().tick_ns, {})
    stored = baselines.load(tmp_path, purpose)
    vantages.scale = Scale("us", 1.0, 1.0)
    second = make_agent(stored={"kernel": stored})
    kernel = _surface(_work(second, ticks, 1), "kernel")
    assert not kernel.HasField("decision")
    assert kernel.calibrated_ticks == 1


def test_a_failed_vantage_is_missing_and_never_imputed(make_agent: MakeAgent, ticks: Any, vantages: Any) -> None:
    agent = make_agent()
    _work(agent, ticks, 62)
    vantages.failed = {"mm": "object not loaded"}
    kernel = _surface(_work(agent, ticks, 1), "kernel")
    assert list(kernel.missing) == ["mm"]
    assert [o.vantage for o in kernel.observations] == ["blk"]
    assert agent.published.state.vantages["mm"].reason == "object not loaded"


def test_a_failed_read_is_counted_and_the_next_tick_goes_on(make_agent: MakeAgent, ticks: Any, vantages: Any) -> None:
    agent = make_agent()
    vantages.fail_read = True
    agent.work(ticks.next())
    assert agent.published.version == 0
    vantages.fail_read = False
    assert _work(agent, ticks, 1).losses.by_cause["tick.read_failed"] == 1


@pytest.mark.parametrize(
    ("privacy", "local", "sent"), [("hashed", False, False), ("local", True, False), ("sent", True, True)]
)
def test_names_go_as_far_as_privacy_lets_them(
    make_agent: MakeAgent, ticks: Any, privacy: str, local: bool, sent: bool
) -> None:
    uplink = KeepingUplink()
    settings = config.Config.model_validate({"privacy": {"object_names": privacy}})
    agent = make_agent(settings, uplink=uplink)
    _work(agent, ticks, 2)
    assert ("unit-1.service" in agent.published.state.names.values()) is local
    assert (b"unit-1.service" in uplink.bodies[-1][1]) is sent
    sketch = Snapshot.FromString(uplink.bodies[-1][1]).surfaces[0].observations[0].objects
    assert 1 not in sketch.hashes
    assert sketch.total >= 2


def test_run_ticks_on_the_lattice_until_stopped_and_closes_everything(make_agent: MakeAgent, vantages: Any) -> None:
    uplink = KeepingUplink()
    agent = make_agent(config.Config.model_validate({"agent": {"tick_ms": 50}}), uplink=uplink)
    runner = threading.Thread(target=agent.run)
    runner.start()
    version, state = 0, agent.published.state
    while version < 4:
        version, state = agent.published.wait(version, 5.0)
    agent.stop()
    runner.join(10.0)
    assert not runner.is_alive()
    assert vantages.closed
    assert uplink.closed
    assert state.snapshot.tick_time_ns % 50_000_000 == 0
    assert len(uplink.bodies) == agent.published.state.ticks


def test_the_service_manager_hears_of_start_life_and_end(make_agent: MakeAgent, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(20.0)
        notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "300000"})
        # A tick far longer than the watchdog's patience: the signs of life must come without ticks.
        agent = make_agent(config.Config.model_validate({"agent": {"tick_ms": 60_000}}), notifier=notifier)
        runner = threading.Thread(target=agent.run)
        runner.start()
        heard = [manager.recv(1024) for _ in range(6)]
        agent.stop()
        runner.join(10.0)
        while heard[-1] != b"STOPPING=1":
            heard.append(manager.recv(1024))
    assert heard[0].startswith(b"READY=1\nSTATUS=attached mm, blk, path")
    assert heard.count(b"WATCHDOG=1") >= 3


def test_accepting_runs_between_ticks_and_reports_refusals(make_agent: MakeAgent) -> None:
    agent = make_agent(config.Config.model_validate({"agent": {"tick_ms": 50}}))
    runner = threading.Thread(target=agent.run)
    runner.start()
    try:
        with pytest.raises(KeyError, match="there are kernel, dataplane"):
            agent.accept_baseline("gpu")
        with pytest.raises(ValueError, match="no new level to accept"):
            agent.accept_baseline("kernel")
    finally:
        agent.stop()
        runner.join(10.0)


def test_a_reload_applies_what_is_safe_and_names_the_rest(make_agent: MakeAgent, tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text('[metrics]\naddress = ""\n')
    uplink = KeepingUplink()
    agent = make_agent(config.load(path), str(path), uplink)
    path.write_text('[metrics]\naddress = "127.0.0.1:0"\n[broker]\ntarget = "b:1"\n[agent]\ntick_ms = 500\n')
    outcome = agent.reload()
    assert set(outcome.applied) == {"metrics.address", "broker.target"}
    assert outcome.needs_restart == ("agent.tick_ms",)
    assert uplink.target == "b:1"
    with urllib.request.urlopen(f"http://127.0.0.1:{agent.metrics_port}/metrics", timeout=5) as answer:
        assert answer.read().endswith(b"# EOF\n")
    path.write_text("[agent]\ntick = 1\n")
    assert f"{path}:2" in agent.reload().error
    assert agent.settings.broker.target == "b:1"


def test_a_reload_keeps_the_old_port_when_the_new_one_is_taken(make_agent: MakeAgent, tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text('[metrics]\naddress = "127.0.0.1:0"\n')
    agent = make_agent(config.load(path), str(path))
    agent.start_metrics()
    port = agent.metrics_port
    path.write_text(f'[metrics]\naddress = "127.0.0.1:{port}"\n')  # taken: by this agent itself
    outcome = agent.reload()
    assert "choose another" in outcome.error
    assert agent.metrics_port == port


# ---- The real thing ----------------------------------------------------------------------------------


@pytest.fixture
def real_config(tmp_path: Path) -> Path:
    from mvps.trust.solo import make_site

    site = make_site(tmp_path, ["host-under-test"], tick_ms=50)
    (tmp_path / "state").mkdir()
    path = tmp_path / "agent.toml"
    path.write_text(
        f"""
[agent]
tick_ms = 50
vantage_id = "host-under-test"
state_dir = "{tmp_path}/state"
[baseline]
calibration_ticks = 60
[trust]
key = "{site.host_keys["host-under-test"]}"
operator = "{site.operator}"
manifests = "{site.manifests}"
[broker]
target = "unix:{tmp_path}/broker.sock"
[metrics]
address = ""
[local]
socket = "{tmp_path}/agent.sock"
[log]
format = "json"
"""
    )
    return path


def _start_daemon(path: Path, log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "mvps.cli.main", "agent", "--config", str(path)], stderr=out, stdout=out
        )


def _await(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60.0
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def _status(path: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "mvps.cli.main", "status", "--json", "--socket", str(path)],
        capture_output=True,
        check=False,
    )
    return dict(json.loads(done.stdout)) if done.returncode in (0, 1) else {}


@pytest.mark.kernel
def test_the_daemon_on_the_real_kernel_through_a_real_broker(real_config: Path, tmp_path: Path) -> None:
    """Attach, calibrate, stream, restart with the stored baseline, detach on SIGTERM and SIGKILL."""
    from mvps.broker.process import EmbeddedBroker
    from mvps.broker.settings import BrokerSettings
    from mvps.trust.keys import load_key

    broker = EmbeddedBroker(
        BrokerSettings.model_validate(
            {
                "listen": f"unix:{tmp_path}/broker.sock",
                "database": tmp_path / "broker.db",
                "key": str(tmp_path / "broker.key"),
                "operator": load_key(str(tmp_path / "operator.key")).public.text,
                "manifests": tmp_path / "manifests",
                "metrics": "",
            }
        )
    )
    assert broker.broker is not None
    log, api = tmp_path / "log", tmp_path / "agent.sock"
    daemon = _start_daemon(real_config, log)
    try:
        _await(api.exists, "the local API never came up")
        _await(lambda: len(list((tmp_path / "state").glob("baseline-*.json"))) == 2, "no baselines were saved")
        status = _status(api)
        assert {v["name"]: v["state"] for v in status["vantages"]} == dict.fromkeys(
            ("mm", "blk", "sock", "sched", "irq", "path"), "ok"
        )
        _await(
            lambda: broker.broker is not None and broker.broker.accepted > 60,
            "the broker accepted too little",
        )
        stream = _status(api)["stream"]
        assert "rejected" not in stream
        assert "dropped" not in stream
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(15) == 0
        assert not api.exists()

        daemon = _start_daemon(real_config, log)
        _await(lambda: bool(_status(api).get("surfaces")), "the second start never ticked")
        assert all("baseline_id" in s for s in _status(api)["surfaces"]), "the restart calibrates anew"
        assert not broker.broker.admission.rejected
        daemon.kill()
        daemon.wait(15)
        assert log.read_text().count('"event": "baseline_loaded"') == 2
        assert (tmp_path / "host-under-test.key").read_text().strip().split(":")[2] not in log.read_text()
    finally:
        daemon.kill()
        daemon.wait(15)
        broker.stop()


def test_program_cost_shows_only_while_the_kernel_counts(make_agent: MakeAgent, ticks: Any, vantages: Any) -> None:
    agent = make_agent()
    _work(agent, ticks, 1)
    assert "mvps_program" not in agent.exposition()
    vantages.totals = {"mm/mm_direct_begin": RunTotals("mm_direct_begin", 10, 1_500)}
    assert 'mvps_program_runs_total{program="mm/mm_direct_begin"} 10' in agent.exposition()
    assert "mvps_program" not in agent.exposition()  # nothing counted since: statistics are off again


def test_the_lead_of_the_host_is_in_snapshot_and_metrics(make_agent: MakeAgent, ticks: Any, vantages: Any) -> None:
    agent = make_agent()
    assert _work(agent, ticks, 61).lead == ""
    assert set(vantages.thresholds) == {"mm", "blk", "path"}
    vantages.fault = 3
    assert _work(agent, ticks, 4).lead == "blk"
    assert 'mvps_lead{mvps_lead="blk"} 1' in agent.exposition()
    assert 'mvps_lead{mvps_lead="mm"} 0' in agent.exposition()


def test_engines_get_what_the_broker_says_of_policies(make_agent: MakeAgent, ticks: Any) -> None:
    uplink = KeepingUplink()
    uplink.handed = b"{}"
    agent = make_agent(uplink=uplink)
    agent.work(ticks.next())
    assert agent.engine_status() == SurplusStatusResponse(), "a host without engines reads none of it"
    engines = agent.engines()
    agent.work(ticks.next())
    agent.work(ticks.next())
    assert dict(engines.status().refused) == {"policy_schema": 1}
    assert engines.status().policy == "advice"
