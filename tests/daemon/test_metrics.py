# SPDX-License-Identifier: Apache-2.0
"""The exposition against a strict parser written from the OpenMetrics 1.0 text format, and over HTTP."""

from __future__ import annotations

import http.client
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from mvps.daemon import config
from mvps.daemon.metrics import CONTENT_TYPE, TENANT_STATES, MetricsServer, render
from mvps.daemon.service import Agent
from mvps.daemon.state import EngineFigures, Histogram, TenantFigures
from mvps.surplus.packets import State
from mvps.v1.snapshot_pb2 import CoherenceVector, Lateral, Surface

_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_LABEL = r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"'
_SAMPLE = re.compile(rf"({_NAME})(?:\{{({_LABEL}(?:,{_LABEL})*)\}})? (-?[0-9][0-9.e+-]*|\+Inf|-Inf|NaN)")
_SUFFIXES = {
    "gauge": {""},
    "counter": {"_total"},
    "info": {"_info"},
    "stateset": {""},
    "histogram": {"_bucket", "_count", "_sum"},
}


@dataclass
class Family:
    name: str
    kind: str
    unit: str = ""
    help: str = ""
    samples: list[tuple[str, dict[str, str], float]] = field(default_factory=list)


def parse(text: str) -> dict[str, Family]:
    """Families of an exposition; AssertionError for anything the format does not allow."""
    assert text.endswith("# EOF\n")
    lines = text.removesuffix("# EOF\n").split("\n")[:-1]
    families: dict[str, Family] = {}
    seen: set[tuple[str, tuple[tuple[str, str], ...]]] = set()
    current: Family | None = None
    for line in lines:
        if line.startswith("# "):
            keyword, name, rest = line[2:].split(" ", 2)
            if keyword == "TYPE":
                assert name not in families, f"{name} twice"
                assert rest in _SUFFIXES, rest
                assert not name.endswith(("_total", "_info", "_bucket", "_count", "_sum")), name
                current = families[name] = Family(name, rest)
            else:
                assert current is not None
                assert name == current.name, f"{line} interleaves"
                assert not current.samples, f"{line} after samples"
                assert keyword in ("UNIT", "HELP")
                if keyword == "UNIT":
                    assert name.endswith(f"_{rest}")
                    current.unit = rest
                else:
                    current.help = rest
            continue
        match = _SAMPLE.fullmatch(line)
        assert match, f"not a sample: {line!r}"
        assert current is not None
        assert match[1].startswith(current.name), f"{line} interleaves"
        suffix = match[1].removeprefix(current.name)
        assert suffix in _SUFFIXES[current.kind], line
        labels = dict(re.findall(_LABEL, match[2] or ""))
        key = (match[1], tuple(sorted(labels.items())))
        assert key not in seen, f"{line} twice"
        seen.add(key)
        value = float(match[match.lastindex or 0])
        current.samples.append((suffix, labels, value))
        if current.kind == "stateset":
            assert current.name in labels
            assert value in (0.0, 1.0)
        if current.kind == "counter":
            assert value >= 0
    for family in families.values():
        assert family.help, f"{family.name} has no HELP"
        if family.kind == "histogram":
            _check_histogram(family)
    return families


def _check_histogram(family: Family) -> None:
    buckets = [(float(labels["le"]), value) for suffix, labels, value in family.samples if suffix == "_bucket"]
    assert [b for b, _ in buckets] == sorted({b for b, _ in buckets})
    assert [c for _, c in buckets] == sorted(c for _, c in buckets)
    assert buckets[-1][0] == float("inf")
    counts = [value for suffix, _, value in family.samples if suffix == "_count"]
    assert counts == [buckets[-1][1]]


@pytest.fixture
def state(make_agent: Callable[..., Agent], ticks: Any, vantages: Any) -> Any:
    agent = make_agent()
    for _ in range(63):
        agent.work(ticks.next())
    vantages.failed = {"mm": 'no "object"\nloaded'}
    agent.work(ticks.next())
    return agent.published.state


def test_the_exposition_is_valid_openmetrics(state: Any) -> None:
    families = parse(render(state))
    assert all(name.startswith("mvps_") for name in families)
    axes = {(lb["surface"], lb["axis"]) for _, lb, _ in families["mvps_coherence"].samples}
    assert ("kernel", "c1") in axes
    assert ("kernel", "c2") in axes
    assert len(families["mvps_d2"].samples) == 2
    assert len(families["mvps_phi_d"].samples) == 2
    assert {lb["vantage"] for _, lb, _ in families["mvps_own_distance"].samples} == {"blk", "path"}
    assert families["mvps_ticks"].samples == [("_total", {}, 64.0)]
    assert ("_total", {"cause": "blk.objects_full"}, 3.0) in families["mvps_losses"].samples
    assert families["mvps_tick_lateness_seconds"].unit == "seconds"


def test_label_values_are_escaped(state: Any) -> None:
    awkward = 'a "b" \\ c\nd'
    text = render(replace(state, losses={awkward: 2}))
    ((_, labels, value),) = parse(text)["mvps_losses"].samples
    assert value == 2.0
    assert labels["cause"] == 'a \\"b\\" \\\\ c\\nd'


def test_every_metric_is_in_the_operations_manual(state: Any) -> None:
    manual = (Path(__file__).parents[2] / "docs/operations.md").read_text()
    for name in parse(render(state)):
        assert re.search(rf"\b{name}\b", manual), name


def test_engines_and_tenants_are_shown_once_an_engine_has_connected(state: Any) -> None:
    assert not any("engine" in name or "tenant" in name for name in parse(render(state)))
    tenants = {"acme": TenantFigures(0.5, 0.008, 0.4, "Caution"), "other": TenantFigures(0.4, 0.01, None, "Green")}
    families = parse(render(replace(state, engines=EngineFigures(1, 42, {"chain": 2}, tenants))))
    assert families["mvps_engines_connected"].samples == [("", {}, 1.0)]
    assert families["mvps_engine_packets"].samples == [("_total", {}, 42.0)]
    assert families["mvps_engine_refused"].samples == [("_total", {"cause": "chain"}, 2.0)]
    assert ("", {"tenant": "acme"}, 0.5) in families["mvps_tenant_lambda"].samples
    assert families["mvps_tenant_xi"].samples == [("", {"tenant": "acme"}, 0.4)], "what is not known is absent"
    on = {lb["tenant"]: lb["mvps_tenant_state"] for _, lb, v in families["mvps_tenant_state"].samples if v}
    assert on == {"acme": "Caution", "other": "Green"}
    assert set(TENANT_STATES) == {one.value for one in State}
    manual = (Path(__file__).parents[2] / "docs/operations.md").read_text()
    for name in families:
        assert re.search(rf"\b{name}\b", manual), name


def test_each_state_set_has_exactly_one_state(state: Any) -> None:
    families = parse(render(state))
    for name, label in (("mvps_phase", "surface"), ("mvps_vantage_state", "vantage")):
        on: dict[str, int] = {}
        for _, labels, value in families[name].samples:
            on[labels[label]] = on.get(labels[label], 0) + int(value)
        assert set(on.values()) == {1}, (name, on)
    failed = [lb for _, lb, v in families["mvps_vantage_state"].samples if v and lb["mvps_vantage_state"] == "failed"]
    assert [lb["vantage"] for lb in failed] == ["mm"]


def test_c4_and_its_label_are_exported_only_if_the_settings_say_so(
    make_agent: Callable[..., Agent], ticks: Any
) -> None:
    surface = Surface(name="ai.g", vector=CoherenceVector(c1=0.75, c4=0.4142135623730951), needed_ticks=60)
    surface.lateral = Lateral.LATERAL_COHERENT_BUT_FALSE
    texts = []
    for settings in (config.Config(), config.parse("[metrics]\nlateral = true\n")):
        agent = make_agent(settings)
        assert agent.reported.take(surface, 10**12) == ""
        agent.work(ticks.next())
        texts.append(agent.exposition())
    closed, opened = (parse(text) for text in texts)
    assert ("", {"surface": "ai.g", "axis": "c1"}, 0.75) in closed["mvps_coherence"].samples
    assert closed["mvps_lateral"].samples == []
    assert closed["mvps_lateral_withheld"].samples == [("", {"surface": "ai.g"}, 1.0)]
    assert not re.search(r'0\.4142|axis="c4"|COHERENT_BUT_FALSE"', texts[0])
    assert ("", {"surface": "ai.g", "axis": "c4"}, 0.4142135623730951) in opened["mvps_coherence"].samples
    states = {labels["mvps_lateral"]: value for _, labels, value in opened["mvps_lateral"].samples}
    assert states == {"NONE": 0.0, "COHERENT_BUT_FALSE": 1.0}
    assert opened["mvps_lateral_withheld"].samples == [("", {"surface": "ai.g"}, 0.0)]


def test_an_agent_that_has_not_ticked_is_valid_too(make_agent: Callable[..., Agent]) -> None:
    families = parse(render(make_agent().published.state))
    assert families["mvps_ticks"].samples == [("_total", {}, 0.0)]


def test_the_number_of_series_does_not_grow_with_ticks(make_agent: Callable[..., Agent], ticks: Any) -> None:
    agent = make_agent()
    for _ in range(62):
        agent.work(ticks.next())
    before = render(agent.published.state).count("\n")
    for _ in range(20):
        agent.work(ticks.next())
    assert render(agent.published.state).count("\n") == before


def test_the_parser_refuses_what_it_should() -> None:
    good = "# TYPE a gauge\n# HELP a x.\na 1\n# EOF\n"
    parse(good)
    for bad in (
        good.replace("# EOF\n", ""),
        good.replace("a 1", "a  1"),
        good.replace("a 1", "a_total 1"),
        good.replace("a 1", "a 1\na 1"),
        good.replace("a 1", 'a{b="c} 1'),
        good.replace("# HELP a x.\n", ""),
    ):
        with pytest.raises((AssertionError, ValueError)):
            parse(bad)


def test_a_histogram_counts_bounds_inclusively() -> None:
    histogram = Histogram((0.1, 1.0))
    for value in (0.05, 0.1, 0.5, 2.0):
        histogram.add(value)
    frozen = histogram.freeze()
    assert frozen.counts == (2, 1, 1)
    assert frozen.total == pytest.approx(2.65)
    histogram.add(0.0)
    assert frozen.counts == (2, 1, 1)


def test_served_over_http_with_the_right_content_type() -> None:
    server = MetricsServer("127.0.0.1:0", lambda: "# EOF\n")
    try:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        assert (answer.status, answer.headers["Content-Type"]) == (200, CONTENT_TYPE)
        assert answer.read() == b"# EOF\n"
        connection.close()
        connection.request("GET", "/")
        assert connection.getresponse().status == 404
        connection.close()
    finally:
        server.close()


def test_a_client_that_hangs_up_does_not_end_the_server() -> None:
    server = MetricsServer("127.0.0.1:0", lambda: "# EOF\n")
    try:
        with socket.create_connection(("127.0.0.1", server.port)) as rude:
            rude.sendall(b"GET /met")
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        connection.request("GET", "/metrics")
        assert connection.getresponse().status == 200
        connection.close()
    finally:
        server.close()


def test_a_taken_port_says_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(OSError, match=r"choose another \[metrics\] address"):
            MetricsServer(address, str)
