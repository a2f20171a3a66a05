# SPDX-License-Identifier: Apache-2.0
"""The shipped definitions on recorded real ticks: what was caught and rightly attributed must stay so.

A replay, so the figures are the same on every machine; docs/detection.md has the whole table.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from bench.detect import LIARS, Lie, ahead, classes, evaluate

from mvps.coherence.baseline import ModelSettings
from mvps.coherence.phase import Phase
from mvps.provoke.faults import FAULTS

RECORDS = sorted((Path(__file__).resolve().parents[2] / "bench/records").glob("*.jsonl.gz"))


@pytest.fixture(scope="module")
def found() -> Mapping[str, Any]:
    assert RECORDS, "no recording in bench/records"
    # The short recording is enough for lies: they are told in the replay.
    lies = [Lie(vantage, told) for vantage in LIARS for told in (0.5, 2.0)]
    lied = evaluate(RECORDS[:1], ModelSettings(), Phase.ALARM, lies=lies)["episodes"]
    whole = evaluate(RECORDS, ModelSettings(), Phase.ALARM)
    whole["episodes"] |= {key: row for key, row in lied.items() if key.startswith("lie")}
    return whole


@pytest.mark.parametrize("kind", FAULTS)
def test_every_full_fault_is_caught_in_time_and_rightly_attributed(found: Mapping[str, Any], kind: str) -> None:
    row = found["episodes"][f"{kind}@1"]
    assert row["n"] >= 30
    assert row["ours"] == row["n"]
    assert row["ours_lead"] == row["n"]


@pytest.mark.parametrize("kind", FAULTS)
def test_no_worse_than_the_rival_on_weak_faults(found: Mapping[str, Any], kind: str) -> None:
    row = found["episodes"][f"{kind}@0.25"]
    assert row["ours"] / row["n"] >= row["rival"] / max(row["rival_n"], 1) - 0.05


# As recorded: of nine ramps down to 0.3x two end in an alarm (docs/detection.md); the rival alarms in every one.
@pytest.mark.parametrize(("ramp", "most"), [("ramp@0.3", 2), ("ramp@2", 0)])
def test_benign_load_changes_are_mostly_silent(found: Mapping[str, Any], ramp: str, most: int) -> None:
    row = found["episodes"][ramp]
    assert row["n"] >= 9
    assert row["ours"] <= most
    assert row["rival"] == row["rival_n"]


@pytest.mark.parametrize("lie", [f"lie-{vantage}@{told}" for vantage in LIARS for told in ("0.5", "2")])
def test_a_probe_that_tells_half_or_twice_what_it_saw_is_caught_and_named(found: Mapping[str, Any], lie: str) -> None:
    row = found["episodes"][lie]
    assert row["n"] >= 20
    assert row["ours_lead"] == row["ours"] == row["n"]


def test_better_than_the_rival_in_two_classes_named_in_advance(found: Mapping[str, Any]) -> None:
    assert sum(low > 0.0 for _, low, _ in classes(found).values()) >= 2


def test_the_difference_of_two_shares_has_newcombes_interval() -> None:
    """Example of Newcombe 1998 (Stat. Med. 17:873), table II, contrast a, method 10: 56/70 and 48/80."""
    difference, low, high = ahead(56, 70, 48, 80)
    assert difference == pytest.approx(0.2)
    assert (low, high) == pytest.approx((0.0524, 0.3339), abs=5e-5)


def test_a_rule_that_never_alarms_fails_this(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks above can fail: with cut-offs out of reach nothing is caught."""
    monkeypatch.setattr("bench.detect.hysteresis", lambda over: [False] * len(over))
    blind = evaluate(RECORDS[:1], ModelSettings(statistic="d2", hysteresis=1000), Phase.ALARM)
    assert sum(row["ours"] for row in blind["episodes"].values()) == 0
