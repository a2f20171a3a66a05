# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from mvps.cli import exits
from mvps.cli.main import main


def test_the_ramp_shows_a_gap_with_retries(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "surplus", "--pairs", "2", "--json"]) == exits.OK
    shown = json.loads(capsys.readouterr().out)
    assert shown["3 retries"]["gap"][0] > shown["no retries"]["gap"][0] > 0.0
    assert shown["3 retries"]["collapsed"] == 2
    assert main(["simulate", "surplus", "--pairs", "1", "--retries", "1"]) == exits.OK
    said = capsys.readouterr().out
    assert "cannot empty above a load of 0.50" in said
    assert "BH-1 not testable" in said


@pytest.mark.parametrize("wrong", [["--pairs", "0"], ["--retries", "-1"], ["--timeout", "0"], ["--timeout", "nan"]])
def test_what_makes_no_sense_says_so(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "surplus", *wrong]) == exits.USAGE
    assert "mvps simulate: --" in capsys.readouterr().err


def test_buffers_beside_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "surplus", "--experiment", "e2", "--pairs", "1", "--servers", "4", "--json"]) == exits.OK
    shown = json.loads(capsys.readouterr().out)
    assert list(shown) == ["no buffer", "two reviewers", "two more servers", "a quarter reused"]
    assert shown["no buffer"]["collapsed"] == 1
    assert shown["two more servers"]["shift"]["verdict"] == "underpowered"
    assert 0.0 <= shown["two reviewers"]["bh2_log_rank_p"] <= 1.0


def test_every_falsifier_has_a_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "surplus", "--experiment", "falsifiers", "--pairs", "1", "--servers", "4"]) == exits.OK
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines[1:-1]} == {f"F{n}" for n in range(1, 12)}
    # One pair is too few for any verdict.
    assert sum("underpowered" in line for line in lines) == 4 + 3 * 3 + 3 * 4 + 1
    assert sum("not testable" in line for line in lines) == 2


@pytest.mark.parametrize("experiment", ["e1", "e2"])
def test_a_picture_is_drawn_beside_the_figures(
    experiment: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "drawn.png"
    asked = ["simulate", "surplus", "--experiment", experiment, "--pairs", "1", "--servers", "2", "--plot", str(out)]
    assert main([*asked, "--json"]) == exits.OK
    json.loads(capsys.readouterr().out)
    assert out.read_bytes().startswith(b"\x89PNG")
    # What is there is kept.
    assert main(asked) == exits.NOT_PERMITTED


def test_a_picture_of_what_has_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["simulate", "surplus", "--plot", str(tmp_path / "drawn.png")]
    assert main([*asked, "--experiment", "e3"]) == exits.USAGE
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(asked) == exits.NOT_PERMITTED
