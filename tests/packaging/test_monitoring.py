# SPDX-License-Identifier: Apache-2.0
"""Alert rules and dashboard speak of metrics and label values that exist, and every alert is explained."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "packaging/prometheus/mvps.rules.yml"
DASHBOARD = ROOT / "packaging/grafana/mvps.json"
AGENT = ROOT / "agent/mvps/daemon/metrics.py"
BROKER = ROOT / "agent/mvps/broker/metrics.py"
SUFFIXES = {
    "counter": ("_total",),
    "gauge": ("",),
    "stateset": ("",),
    "info": ("_info",),
    "histogram": ("_bucket", "_count", "_sum"),
}
NAME = re.compile(r"\bmvps_[a-z0-9_]+")
STATESET = re.compile(r'\b(mvps_\w+)\{[^}]*\b\1[!=]~?"([^"]+)"')


def series() -> set[str]:
    """Every series name that the agent and the broker can show, from the calls that make them."""
    found = set()
    kinds = {f"{kind.capitalize()}MetricFamily": kind for kind in SUFFIXES}
    for path in (AGENT, BROKER):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args):
                continue
            words = [a.value for a in node.args if isinstance(a, ast.Constant)]
            if node.func.id == "_family":
                found |= {words[0] + end for end in SUFFIXES[words[1]]}
            elif node.func.id in kinds:
                found |= {words[0] + end for end in SUFFIXES[kinds[node.func.id]]}
    return found


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def queries() -> list[str]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel.get("targets", ())]


def without_label_names(expression: str) -> str:
    """The series of an expression: a stateset has a label of its own name, which is no series."""
    return re.sub(r"\{[^}]*\}", "{}", expression)


@pytest.mark.parametrize("expression", [*(rule["expr"] for rule in rules()), *queries()])
def test_every_series_exists(expression: str) -> None:
    named = set(NAME.findall(without_label_names(expression)))
    assert named or "up{" in expression
    assert named <= series()


def test_a_series_that_does_not_exist_would_be_found() -> None:
    assert "mvps_phase" in series()
    assert "mvps_broker_accepted" not in series()  # a counter's samples end in _total
    assert len(series()) > 60


def test_states_are_those_of_the_agent() -> None:
    from mvps.daemon.metrics import PHASES, VANTAGE_STATES

    known = {"mvps_phase": set(PHASES), "mvps_vantage_state": set(VANTAGE_STATES)}
    asked = [found for rule in rules() for found in STATESET.findall(rule["expr"])]
    assert asked
    for name, values in asked:
        assert set(values.split("|")) <= known[name]


def test_every_alert_is_explained_and_nothing_else_is() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)
    manual = (ROOT / "docs/operations.md").read_text()
    assert set(re.findall(r"^\| (Mvps\w+) \|", manual, re.MULTILINE)) == set(names)


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: str(rule["alert"]))
def test_an_alert_says_how_bad_it_is_and_what_happened(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"page", "ticket"}
    assert rule["annotations"]["summary"]


def test_the_dashboards_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        taken |= cells


def test_promtool_takes_the_rules() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    done = subprocess.run([promtool, "check", "rules", str(RULES)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
