# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

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
