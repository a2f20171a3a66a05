# SPDX-License-Identifier: Apache-2.0
"""A service as a message and as rows: nothing unknown becomes a number, and C_4 is not shown."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from tests.waiting import until

from mvps.broker.history import SERVICE_AXES, History
from mvps.broker.service_answers import service_rows, service_ticks, services_state
from mvps.broker.service_settings import ServiceSettings
from mvps.broker.service_watch import ServiceView, ServiceWatch
from mvps.coupling.drift import DriftTransfer, Interval, attribute
from mvps.coupling.routing import CALIBRATION_WINDOWS, Routing
from mvps.coupling.service import Reading, ServiceMonitor
from mvps.v1 import stream_pb2 as pb

SECOND = 10**9
BEGIN = 1_800_000_000


class Service:
    """A monitor on drawn readings, and the view that a watch would have of it."""

    def __init__(self, c4: bool = False, ticks: int = 100) -> None:
        given = {"name": "chat", "network": ["lb-1"], "ai": ["gpu-1/ai"], "calibration_ticks": 100, "c4": c4}
        self.settings = ServiceSettings.model_validate(given)
        self.monitor = ServiceMonitor(c4=c4, calibration_ticks=100, cutoffs="finite-sample")
        self.axes = 6 + c4
        self.time = BEGIN
        self.routing: dict[str, Routing | int] = {}
        draw = np.random.default_rng(3)
        for _ in range(ticks):
            self.view = self.tick(0.7 + 0.01 * draw.standard_normal(self.axes))

    def tick(self, z: np.ndarray, ai: bool = True) -> ServiceView:
        self.time += 1
        net, other = (Reading(tuple(part.tolist()), self.time, True) for part in (z[:3], z[3:]))
        tick = self.monitor.step(float(self.time), [net], [other if ai else None])
        if self.monitor.due:
            self.monitor.evaluate(float(self.time))
        one = self.monitor
        missing = {} if ai else {"gpu-1/ai": "no snapshot of its host stands"}
        self.view = ServiceView(
            "chat", self.time * SECOND, tick, one.axes, one.used, one.limits, one.coupling, missing, one.calibrated,
            one.needed, one.problem, one.untaught, self.routing,
        )  # fmt: skip
        return self.view

    @property
    def state(self) -> pb.ServiceState:
        watch = ServiceWatch([self.settings])
        watch.views["chat"] = self.view
        (state,) = services_state(watch).services
        return state


def test_before_the_first_tick_it_calibrates() -> None:
    service = Service(ticks=0)
    (state,) = services_state(ServiceWatch([service.settings])).services
    assert (state.phase, state.calibrated_ticks, state.needed_ticks) == (pb.SERVICE_PHASE_CALIBRATING, 0, 100)
    assert (list(state.network), list(state.ai_surfaces)) == (["lb-1/dataplane"], ["gpu-1/ai"])
    assert "no phase yet" in state.advice
    assert "name the engines' metrics" in state.drift


def test_while_it_calibrates_nothing_that_is_unknown_is_there() -> None:
    state = Service(ticks=10).state
    assert state.phase == pb.SERVICE_PHASE_CALIBRATING
    assert (state.calibrated_ticks, state.tick_time_ns) == (10, (BEGIN + 10) * SECOND)
    assert len(state.axes) == 6
    assert not any(state.HasField(name) for name in ("net", "ai", "joint", "coupling"))
    assert list(state.posterior) == []


def test_a_decision_with_its_limits_onset_and_coupling() -> None:
    service = Service()
    service.tick(np.full(6, 0.7))
    for _ in range(3):
        service.tick(np.array([0.4, 0.7, 0.7, 0.7, 0.7, 0.7]))
    state, limits = service.state, service.monitor.limits
    assert limits is not None
    assert (state.phase, state.raw_phase) == (pb.SERVICE_PHASE_NET_LEADS, pb.SERVICE_PHASE_NET_LEADS)
    assert state.lead == pb.SERVICE_LEAD_NETWORK
    assert "compare request shares" in state.advice
    assert (state.net.watch, state.joint.watch, state.joint.alarm) == (limits.net, limits.joint, limits.joint_alarm)
    assert state.net.d2 == service.view.tick.d2[0]
    assert state.net.p_value == pytest.approx(math.exp(service.view.tick.log_p[0]))
    assert (state.net.moved_ns, state.ai.moved_ns) == ((BEGIN + 102) * SECOND, 0)
    assert sum(state.posterior) == pytest.approx(1.0)
    assert state.hamiltonian == pytest.approx(-math.log(0.4) - 5 * math.log(0.7))
    assert state.coupling.ticks == 100
    assert state.coupling.effective > 60
    assert 0.0 < state.coupling.p_value <= 1.0
    assert state.coupling.r_low < state.coupling.r < state.coupling.r_high
    assert state.coupling.net_axis in state.axes
    assert state.coupling.refused == ""


def test_a_missing_surface_leaves_its_fields_out_and_is_named() -> None:
    service = Service()
    for _ in range(3):
        service.tick(np.full(6, 0.7), ai=False)
    state = service.state
    assert state.phase == pb.SERVICE_PHASE_INCOMPLETE
    assert state.HasField("net")
    assert not any(state.HasField(name) for name in ("ai", "joint", "hamiltonian"))
    assert dict(state.missing) == {"gpu-1/ai": "no snapshot of its host stands"}
    assert set(state.axes) == {"C_1^net", "C_2^net", "C_3^net"}
    (row,) = service_rows([service.view])
    assert not {"ai_c1", "d2_ai", "d2_joint"} & set(row.figures)


def test_c4_counts_and_is_not_shown() -> None:
    service = Service(c4=True)
    service.tick(np.full(7, 0.7))
    secret = 0.1234567890123
    service.tick(np.append(np.full(6, 0.7), secret))
    assert service.view.tick.d2[1] > 100.0
    state = service.state
    assert "C_4" in state.used
    assert "C_4" not in state.axes
    assert not state.HasField("hamiltonian")
    assert str(secret) not in str(state)
    (row,) = service_rows([service.view])
    assert secret not in row.figures.values()
    assert set(SERVICE_AXES) <= set(row.figures)


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    service = Service()
    views = [service.view, service.tick(np.full(6, 0.7)), service.tick(np.full(6, 0.7), ai=False)]
    history = History(f"sqlite:///{tmp_path}/history.db", retention_s=1e9)
    try:
        history.put_services(service_rows(views))
        until(lambda: history.status().waiting == 0)
        found = service_ticks(history, pb.ListServiceTicksRequest(service="chat")).ticks
        assert [tick.tick_time_ns for tick in found] == [view.tick_ns for view in reversed(views)]
        incomplete, judged, calibrating = found
        assert calibrating.phase == pb.SERVICE_PHASE_CALIBRATING
        assert not calibrating.HasField("d2_net")
        assert judged.d2_joint == views[1].tick.d2[2]
        assert judged.watch_joint == service.monitor.limits.joint  # type: ignore[union-attr]
        assert dict(judged.axes) == dict.fromkeys(SERVICE_AXES, 0.7)
        assert incomplete.raw_phase == pb.SERVICE_PHASE_INCOMPLETE
        assert not incomplete.HasField("d2_ai")
        assert set(incomplete.axes) == {"net_c1", "net_c2", "net_c3"}
        (one,) = service_ticks(history, pb.ListServiceTicksRequest(service="chat", limit=1)).ticks
        assert one == incomplete
        assert len(service_ticks(history, pb.ListServiceTicksRequest(service="chat", until_ns=1)).ticks) == 0
    finally:
        history.close()


# ---- where the requests go

SHARES = (np.array([0.4, 0.3, 0.3]), np.full(3, 1 / 3), np.array([0.2, 0.0, 0.0]))
TRANSFER = DriftTransfer(
    Interval(0.6, 0.5, 0.7), Interval(400.0, 300.0, 500.0), Interval(0.0015, 0.001, 0.002), 0.05, 0.02, 30
)


def routing(moved: bool, transfer: bool) -> Routing:
    x = 200.0 if moved else 5.0
    verdict = attribute(TRANSFER, x if moved else 0.0, 0.25) if transfer else None
    return Routing(("a", "b", "c"), *SHARES, True, x, 10.0, moved, 0.25, verdict)


def leading(found: Routing | int) -> Service:
    """A service in phase 1 whose requests are where ``found`` says."""
    service = Service()
    service.routing["gpu-1/ai"] = found
    for _ in range(3):
        service.tick(np.array([0.4, 0.7, 0.7, 0.7, 0.7, 0.7]))
    return service


def test_while_shares_calibrate_it_says_how_far_and_predicts_nothing() -> None:
    state = leading(7).state
    (said,) = state.routing
    assert (said.calibrated_windows, said.needed_windows, len(said.replicas)) == (7, CALIBRATION_WINDOWS, 0)
    assert "for want of routing shares" in state.advice
    assert "no drift transfer" in state.drift


def test_a_network_event_that_moved_no_request_is_only_that() -> None:
    state = leading(routing(moved=False, transfer=False)).state
    assert "no request changed its replica" in state.advice
    assert not state.routing[0].moved


def test_moved_requests_without_a_transfer_are_shown_and_predict_nothing() -> None:
    state = leading(routing(moved=True, transfer=False)).state
    (said,) = state.routing
    assert "not predicted" in state.advice
    assert (said.exposure, said.limit, said.moved, said.verdict) == (200.0, 10.0, True, "")
    assert [(one.name, one.missing) for one in said.replicas] == [("a", 0.2), ("b", 0.0), ("c", 0.0)]
    assert not said.HasField("predicted")


def test_with_a_transfer_the_fall_is_predicted_and_attributed() -> None:
    service = leading(routing(moved=True, transfer=True))
    service.settings = service.settings.model_copy(update={"transfer": Path("chat.json")})
    state = service.state
    expected = 0.6 * (1.0 - math.exp(-0.5))
    assert state.routing[0].predicted == pytest.approx(expected)
    assert state.routing[0].verdict == "routing-induced"
    assert f"about to fall by {expected:.2f}" in state.advice
    assert state.drift == ""


def test_history_has_the_exposure_of_the_source_that_moved_most() -> None:
    service = leading(routing(moved=False, transfer=False))
    service.routing["gpu-2/ai"] = routing(moved=True, transfer=False)
    (row,) = service_rows([service.tick(np.full(6, 0.7))])
    assert (row.figures["exposure"], row.figures["fall"]) == (200.0, 0.25)
