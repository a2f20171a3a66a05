# SPDX-License-Identifier: Apache-2.0
"""``mvps service``: its words, and against a real broker. What it says of real senders: tests/broker."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from service_brokers import CHAT, SEARCH, broker_of, without_ticks
from tests.waiting import until

from mvps.broker.history import ServiceRow
from mvps.broker.process import EmbeddedBroker
from mvps.cli import exits
from mvps.cli.main import main
from mvps.cli.service import NUMBERS, explained, phase_runs, service_troubles
from mvps.coupling.phases import ICPhase
from mvps.v1 import stream_pb2 as pb

SECOND = 10**9


@pytest.fixture
def broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddedBroker]:
    with without_ticks(tmp_path, monkeypatch) as made:
        yield made


def state(phase: str, **fields: object) -> pb.ServiceState:
    known = {"name": "chat", "phase": f"SERVICE_PHASE_{phase}", "advice": "do this", "drift": "not known"}
    return pb.ServiceState(**known, **fields)  # type: ignore[arg-type]


def far(d2: float, moved_ns: int = 0, alarm: float = 0.0) -> pb.ServiceDistance:
    return pb.ServiceDistance(d2=d2, p_value=0.01, watch=8.0, alarm=alarm, moved_ns=moved_ns)


# ---- words


@pytest.mark.parametrize("phase", list(ICPhase))
def test_every_phase_has_its_number_and_its_reason(phase: ICPhase) -> None:
    assert NUMBERS[phase.name] == phase.value
    head, why, *rest = explained(state(phase.name))
    assert head == f"chat: phase {phase.value}, {phase.name}"
    assert why.startswith("  Why: ")
    assert rest[-1] == "  What to do: do this"


def test_what_is_an_operators_business_is_marked() -> None:
    unwell = {"INCOMPLETE", "NET_LEADS", "AI_LEADS", "COUPLED", "CASCADING"}
    for phase in ICPhase:
        found = service_troubles(pb.ServicesState(services=[state(phase.name)]))
        assert found == ([f"chat: phase {phase.value} {phase.name}. do this"] if phase.name in unwell else [])
    ill = pb.ServicesState(
        services=[state("CALIBRATING", problem="calibrate longer", missing={"gpu-1/ai.chat": "no snapshot"})],
        error="the tick",
        windows_error="the file",
    )
    assert service_troubles(ill) == [
        "services: the tick",
        "services: the file",
        "chat: no baseline: calibrate longer",
        "chat: gpu-1/ai.chat is missing: no snapshot",
    ]


def test_a_cascade_in_words() -> None:
    words = explained(
        state(
            "CASCADING",
            tick_time_ns=1_800_000_009 * SECOND,
            net=far(40.0, moved_ns=1_800_000_000 * SECOND),
            ai=far(9.0, moved_ns=1_800_000_005 * SECOND),
            joint=far(55.0, alarm=17.0),
            lead="SERVICE_LEAD_NETWORK",
            posterior=[0.0, 0.01, 0.09, 0.9],
            axes={"C_1^net": 0.5, "C_3^CKA": 0.25},
            used=["C_1^net"],
            coupling=pb.ServiceCoupling(
                ticks=300, effective=250.0, p_value=0.003, frobenius=0.61, frobenius_null=0.17, net_axis="C_3^net",
                ai_axis="C_2^W2", r=0.6, r_low=0.5, r_high=0.7, condition=4.0, recent_ticks=600,
                lead="SERVICE_LEAD_NETWORK", lag_s=6.0, lag_low_s=4.0, lag_high_s=8.0, lead_p_value=0.005,
            ),
        )
    )  # fmt: skip
    said = "\n".join(words)
    assert words[0] == "chat: phase 4, CASCADING, as of 2027-01-15T08:00:09Z"
    assert "D2 of network: 40.00, limit 8.00, p 0.01; over its limit since 2027-01-15T08:00:00Z" in said
    assert "D2 of both: 55.00, limit 8.00 (ALARM 17.00), p 0.01" in said
    assert "Moved first: the network." in said
    assert "CRITICAL 0.900" in said
    assert "C_1^net 0.500, C_3^CKA 0.250 (not used)" in said
    assert "Coupling in BAU: there is one (p 0.003 over 300 ticks, worth 250)" in said
    assert "Strongest pair: C_3^net with C_2^W2, +0.60 [+0.50, +0.70]; condition 4" in said
    assert "Lead over the last 600 ticks: the network (p 0.005), by 6 s [+4, +8]" in said


def test_what_is_refused_says_why() -> None:
    coupling = pb.ServiceCoupling(refused="the test needs 60 effective ticks", lead_refused="take more ticks")
    said = "\n".join(explained(state("JOINT_BAU", coupling=coupling)))
    assert "Coupling in BAU: not tested; the test needs 60 effective ticks." in said
    assert "Lead over the last ticks: not known; take more ticks." in said


def test_runs_of_a_phase() -> None:
    phases = ["CALIBRATING", "CALIBRATING", "JOINT_BAU", "NET_LEADS", "JOINT_BAU"]
    ticks = [pb.ServiceTick(phase=f"SERVICE_PHASE_{phase}") for phase in phases]  # type: ignore[arg-type]
    assert list(phase_runs(ticks)) == [
        (0, 2, "CALIBRATING"), (2, 3, "JOINT_BAU"), (3, 4, "NET_LEADS"), (4, 5, "JOINT_BAU"),
    ]  # fmt: skip
    assert list(phase_runs([])) == []


# ---- against a broker


def test_services_without_data_calibrate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = broker_of(tmp_path, CHAT, SEARCH)
    at = ["--broker", made.address]
    try:
        main(["service", *at])
        table = capsys.readouterr().out.splitlines()
        assert table[0].split("  ")[0] == "service"
        assert [line.split()[:2] for line in table[1:3]] == [["chat", "CALIBRATING"], ["search", "CALIBRATING"]]
        until(lambda: "no snapshot of its host stands" in said(main(["service", "status", *at]), capsys))
        main(["service", "explain", "search", *at])
        words = capsys.readouterr().out
        assert "Calibrating: 0 of 300 usable ticks." in words
        assert "chat" not in words
        assert main(["service", "explain", "chat", "--json", *at]) == exits.FOUND
        shown = json.loads(capsys.readouterr().out)["services"]
        assert [one["name"] for one in shown] == ["chat"]
        assert shown[0]["network"] == ["lb-1/dataplane"]
    finally:
        made.stop()


def said(_code: int, capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out


def test_wrong_questions_say_what_to_do(broker: EmbeddedBroker, capsys: pytest.CaptureFixture[str]) -> None:
    at = ["--broker", broker.address]
    assert main(["service", "explain", "nobody", *at]) == exits.FOUND
    assert 'no service "nobody": this broker watches chat, search' in capsys.readouterr().err
    assert main(["service", "plot", "search", *at]) == exits.USAGE
    assert "-o FILE, or --json" in capsys.readouterr().err
    assert main(["service", "plot", "search", "--json", "--points", "0", *at]) == exits.USAGE
    assert main(["service", "plot", "search", "--json", "--since", "soon", *at]) == exits.USAGE
    assert main(["service", "plot", "search", "--json", *at]) == exits.FOUND
    assert "nothing is kept of search since 1h ago" in capsys.readouterr().err


def test_a_broker_without_services_or_without_history_or_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = broker_of(tmp_path)
    try:
        assert main(["service", "--broker", made.address]) == exits.FOUND
        assert "write [[service]] tables into its settings" in capsys.readouterr().err
    finally:
        made.stop()
    assert main(["service", "--broker", f"unix:{tmp_path}/none"]) == exits.UNREACHABLE
    assert "check --broker" in capsys.readouterr().err
    (tmp_path / "other").mkdir()
    made = broker_of(tmp_path / "other", CHAT, history="none")
    try:
        assert main(["service", "plot", "chat", "--json", "--broker", made.address]) == exits.UNREACHABLE
        assert "keeps no history" in capsys.readouterr().err
    finally:
        made.stop()


def history_of(broker: EmbeddedBroker, count: int) -> int:
    """A made-up history of a service, half an hour ago; its first tick, in ns."""
    begin = time.time_ns() // SECOND * SECOND - 1800 * SECOND
    rows = []
    for tick in range(count):
        phase = pb.SERVICE_PHASE_CALIBRATING if tick < 300 else pb.SERVICE_PHASE_JOINT_BAU
        if tick >= count - 200:
            phase = pb.SERVICE_PHASE_NET_LEADS
        figures = {"net_c1": 0.9, "net_c2": 0.8, "ai_c1": 0.7}
        if tick >= 300:
            figures |= {"d2_net": 4.0, "d2_ai": 2.0, "d2_joint": 7.0, "watch_net": 8.0, "alarm_joint": 17.0}
        rows.append(ServiceRow(begin + tick * SECOND, "search", phase, phase, figures))
    assert broker.broker is not None
    history = broker.broker._history
    assert history is not None
    history.put_services(rows)
    until(lambda: history.status().waiting == 0)
    return begin


def test_plot_asks_page_by_page(broker: EmbeddedBroker, capsys: pytest.CaptureFixture[str]) -> None:
    begin = history_of(broker, 1500)
    words = ["service", "plot", "search", "--json", "--broker", broker.address]
    assert main(words) == exits.OK
    ticks = json.loads(capsys.readouterr().out)["ticks"]
    assert [int(tick["tick_time_ns"]) for tick in ticks] == [begin + tick * SECOND for tick in range(1500)]
    assert ticks[0] == {
        "tick_time_ns": str(begin),
        "phase": "SERVICE_PHASE_CALIBRATING",
        "raw_phase": "SERVICE_PHASE_CALIBRATING",
        "axes": {"net_c1": 0.9, "net_c2": 0.8, "ai_c1": 0.7},
    }
    assert (ticks[-1]["d2_joint"], ticks[-1]["phase"]) == (7.0, "SERVICE_PHASE_NET_LEADS")
    assert main([*words, "--points", "1001"]) == exits.OK
    assert len(json.loads(capsys.readouterr().out)["ticks"]) == 1001


def test_plot_without_matplotlib_says_what_to_install(
    broker: EmbeddedBroker, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    words = ["service", "plot", "search", "-o", str(tmp_path / "x.png"), "--broker", broker.address]
    assert main(words) == exits.NOT_PERMITTED
    assert "pip install 'mvps[plot]'" in capsys.readouterr().err


def test_plot_writes_a_png_and_keeps_what_is_there(
    broker: EmbeddedBroker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    history_of(broker, 900)
    path = tmp_path / "search.png"
    words = ["service", "plot", "search", "-o", str(path), "--broker", broker.address]
    assert main(words) == exits.OK
    assert path.read_bytes().startswith(b"\x89PNG\r\n")
    assert path.stat().st_size > 10_000
    assert main(words) == exits.NOT_PERMITTED
    assert "exists and is kept" in capsys.readouterr().err


def test_moved_requests_in_words() -> None:
    shares = [
        pb.ReplicaShare(name="a", share=0.4, before=0.25, missing=0.375),
        pb.ReplicaShare(name="b", share=0.6, before=0.75),
    ]
    moved = pb.ServiceRouting(
        source="gpu-1/ai", calibrated_windows=20, needed_windows=20, replicas=shares, measured=True, exposure=120.0,
        limit=8.0, moved=True, fall=0.125, predicted=0.11, residual=0.015, verdict="routing-induced",
    )  # fmt: skip
    waiting = pb.ServiceRouting(source="gpu-2/ai", calibrated_windows=3, needed_windows=20)
    said = "\n".join(explained(state("NET_LEADS", routing=[moved, waiting])))
    assert (
        "Requests of gpu-1/ai: moved; a 40% (was 25%), b 60% (was 75%); exposure 120 cached tokens a request, limit 8; "
        "new to it: a 38%; C_2^W2 is +0.125 below BAU, 0.110 of it predicted: routing-induced." in said
    )
    assert "Requests of gpu-2/ai: calibrating, 3 of 20 windows of BAU." in said
