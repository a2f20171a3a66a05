# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
from bench import closedloop
from bench.simulated_run import record

from mvps.testbed.answers import Arm


def test_the_scoring_finds_the_simulated_coupling_and_none_in_the_placebo() -> None:
    found = closedloop.simulated(4)
    assert found["coupled"]["right"]["share"] == found["placebo"]["right"]["share"] == 1.0
    assert found["coupled"]["rejections"]["certificate c2"]["share"] == 1.0
    assert found["placebo"]["rejections"]["certificate c2"]["share"] <= 0.25


@pytest.mark.parametrize("labels", ["right", "wrong"])
def test_it_holds_only_if_the_phases_are_right(labels: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "runs.jsonl"
    runs: list[dict[str, Any]] = [record(arm, 3, events=12) for arm in (Arm.COUPLED, Arm.PLACEBO)]
    if labels == "wrong":
        for run in runs:
            for row in run["ticks"]:
                row[9] = row[9] if row[9] in ("CALIBRATING", "NET_LEADS") else "JOINT_BAU"
    kept.write_text("".join(json.dumps({**run, "seed": 0}) + "\n" for run in runs))
    monkeypatch.setattr(closedloop, "need_root", lambda: None)
    result = closedloop.run(argparse.Namespace(full=False, runs=1, records=kept))
    assert result.holds is (labels == "right")
    assert result.figure == pytest.approx(1.0 if labels == "right" else 0.5)
