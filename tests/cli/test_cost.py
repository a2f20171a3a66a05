# SPDX-License-Identifier: Apache-2.0
"""``mvps cost`` without measuring; tests/cost has what is measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mvps.cli import exits
from mvps.cli.main import main


def test_the_sources_figures_and_what_is_wrong_with_them(capsys: pytest.CaptureFixture[str]):
    assert main(["cost", "--no-measure", "--vantages", "10"]) == exits.OK
    said = capsys.readouterr().out
    assert "10 vantages, T = 1s: broker 0.0063 % of a core" in said
    assert "printed 0.063, computed 0.0063" in said
    assert "c_xdp is not known" in said


def test_json_has_constants_results_and_claims(capsys: pytest.CaptureFixture[str]):
    assert main(["cost", "--no-measure", "--vantages", "1000", "--tick", "50ms", "--json"]) == exits.OK
    shown = json.loads(capsys.readouterr().out)
    assert shown["constants_us"]["sources"]["parse"] == 4.2
    assert shown["results"]["sources"]["broker_cores"] == pytest.approx(1000 * 20 * 6.3e-6)
    assert {claim["holds"] for claim in shown["claims"]} == {True, False}


@pytest.mark.parametrize(
    "wrong",
    [["--tick", "5"], ["--tick", "0s"], ["--vantages", "0"], ["--replicas", "0"], ["--tick", "fast"]],
)
def test_nonsense_says_what_to_write(wrong: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(["cost", "--no-measure", *wrong]) == exits.USAGE
    assert "mvps cost: " in capsys.readouterr().err


def test_a_folder_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["cost", "--directory", str(tmp_path / "none")]) == exits.USAGE
    assert "is no directory" in capsys.readouterr().err
