# SPDX-License-Identifier: Apache-2.0
"""The shipped definitions on recorded real ticks: what was caught and rightly attributed must stay so.

A replay, so the figures are the same on every machine; docs/detection.md has the whole table.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from bench.detect import evaluate

from mvps.coherence.baseline import ModelSettings
from mvps.coherence.phase import Phase
from mvps.provoke.faults import FAULTS

RECORDS = sorted((Path(__file__).resolve().parents[2] / "bench/records").glob("*.jsonl.gz"))


@pytest.fixture(scope="module")
def found() -> Mapping[str, Any]:
    assert RECORDS, "no recording in bench/records"
    return evaluate(RECORDS, ModelSettings(), Phase.ALARM)


@pytest.mark.parametrize("kind", FAULTS)
def test_every_full_fault_is_caught_in_time_and_rightly_attributed(found: Mapping[str, Any], kind: str) -> None:
    row = found["episodes"][f"{kind}@1"]
    assert row["n"] >= 5
    assert row["ours"] == row["n"]
    assert row["ours_lead"] == row["n"]


@pytest.mark.parametrize("kind", FAULTS)
def test_no_worse_than_the_rival_on_weak_faults(found: Mapping[str, Any], kind: str) -> None:
    row = found["episodes"][f"{kind}@0.25"]
    assert row["ours"] / row["n"] >= row["rival"] / max(row["rival_n"], 1) - 0.05


@pytest.mark.parametrize("ramp", ["ramp@0.3", "ramp@2"])
def test_benign_load_changes_are_silent(found: Mapping[str, Any], ramp: str) -> None:
    assert found["episodes"][ramp]["n"] >= 1
    assert found["episodes"][ramp]["ours"] == 0


def test_a_rule_that_never_alarms_fails_this(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks above can fail: with cut-offs out of reach nothing is caught."""
    monkeypatch.setattr("bench.detect.hysteresis", lambda over: [False] * len(over))
    blind = evaluate(RECORDS[:1], ModelSettings(statistic="d2", hysteresis=1000), Phase.ALARM)
    assert sum(row["ours"] for row in blind["episodes"].values()) == 0
