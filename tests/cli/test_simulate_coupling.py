# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from bench.simulated_run import record

from mvps.cli import exits
from mvps.cli.main import main
from mvps.testbed.answers import Arm


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    path = tmp_path / "runs.jsonl"
    runs = [record(arm, seed, events=12) for arm in (Arm.COUPLED, Arm.PLACEBO) for seed in (0, 1)]
    path.write_text("".join(json.dumps(run) + "\n" for run in runs))
    return path


def test_runs_that_are_there_are_scored_and_not_run_again(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = kept.read_bytes()
    assert main(["simulate", "coupling", "--runs", "2", "--out", str(kept), "--json"]) == exits.OK
    found = json.loads(capsys.readouterr().out)
    assert {arm: one["runs"] for arm, one in found["arms"].items()} == {"coupled": 2, "placebo": 2}
    assert found["arms"]["coupled"]["right"]["share"] == 1.0
    assert kept.read_bytes() == before


def test_the_table_says_what_was_injected_and_what_was_found(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "coupling", "--runs", "0", "--out", str(kept)]) == exits.OK
    said = capsys.readouterr().out
    assert "CASCADING 2" in said
    assert "placebo: 2 runs, 24 route changes" in said
    assert "P_IC4, quiet: not testable" in said
    assert "the tests keep to their nominal rate" in said


def test_a_run_that_cannot_be_scored_is_named(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = record(Arm.PLACEBO, 7)
    for row in broken["ticks"]:
        row[9] = "CALIBRATING"
    with kept.open("a") as file:
        file.write(json.dumps(broken) + "\n")
    assert main(["simulate", "coupling", "--runs", "0", "--out", str(kept), "--json"]) == exits.OK
    assert json.loads(capsys.readouterr().out)["refused runs"] == ["placebo 7: the run has no calibration"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--runs", "-1"], "--runs is 0 to 100"),
        (["--events", "61"], "--events 0 to 60"),
        (["--blocks", "0", "--sweeps", "0"], "needs events or sweeps"),
    ],
)
def test_arguments_out_of_range_are_refused(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "coupling", *words]) == exits.USAGE
    assert said in capsys.readouterr().err


def test_a_file_that_is_none_of_runs_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_text("no JSON\n")
    assert main(["simulate", "coupling", "--runs", "0", "--out", str(path)]) == exits.USAGE
    assert "is no file of runs" in capsys.readouterr().err
    assert main(["simulate", "coupling", "--runs", "0"]) == exits.UNREACHABLE
    assert "no run to score" in capsys.readouterr().err


def test_who_is_not_root_is_told_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert main(["simulate", "coupling"]) == exits.NOT_PERMITTED
    assert "run it as root" in capsys.readouterr().err
