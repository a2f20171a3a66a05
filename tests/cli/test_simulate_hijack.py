# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import bz2
import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from mvps.cli import exits
from mvps.cli.main import main
from mvps.robust.as_graph import relationship_lines, synthetic_internet


def test_the_worked_example_beside_the_documents_figures(capsys: pytest.CaptureFixture[str]):
    assert main(["simulate", "hijack", "--runs", "20"]) == exits.OK
    said = capsys.readouterr().out
    rows = {line.split("  ")[0]: line for line in said.splitlines()}
    assert "document" in said
    assert rows["C_2 of all"].split()[3] == "0.45"
    assert "27.5 s" in rows["tau_C(.5), lambda = 1/30 s"]
    assert "LOCAL_FAULT" in rows["label"]
    assert "SUSPECTED_BYZANTINE" in rows["label with evidence"]
    assert "V_5" in rows["label"]


def test_other_configurations_show_no_figures_of_the_document(capsys: pytest.CaptureFixture[str]):
    assert main(["simulate", "hijack", "--vantages", "7", "--liars", "2", "--runs", "5"]) == exits.OK
    said = capsys.readouterr().out
    assert "0.45 " not in said
    assert "V_6, V_7" in said


def test_json_has_no_infinity(capsys: pytest.CaptureFixture[str]):
    assert main(["simulate", "hijack", "--rov", "0.9", "--runs", "10", "--json"]) == exits.OK
    shown = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(name))
    assert shown["document"]["d2"] == 11.8
    assert shown["bundle"]["everybody"] == "CRITICAL"
    assert shown["cascade"]["policy"][1] is None


@pytest.mark.parametrize("packed", ["", ".gz", ".bz2"])
def test_relationships_are_read_from_a_file(packed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    text = "# made up\n" + "\n".join(relationship_lines(synthetic_internet(60, 4))) + "\n"
    path = tmp_path / f"as-rel.txt{packed}"
    pack = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress}[packed]
    path.write_bytes(pack(text.encode()))
    words = ["simulate", "hijack", "--as-rel", str(path), "--hijacker", "60", "--origin", "59", "--runs", "5", "--json"]
    assert main(words) == exits.OK
    cascade = json.loads(capsys.readouterr().out)["cascade"]
    assert (cascade["ases"], cascade["hijacker"], cascade["origin"]) == (60, 60, 59)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--liars", "3"], "below half of the 5 vantages"),
        (["--liars", "0"], "at least one lying"),
        (["--vantages", "60", "--liars", "20"], "fewer --vantages"),
        (["--rov", "2"], "lies in [0, 1]"),
        (["--ases", "4"], "at least 8 ASes"),
        (["--hijacker", "5000"], "AS5000 is not in the graph of 400"),
        (["--hijacker", "7", "--origin", "7"], "are one AS"),
        (["--events", "1"], "at least 20"),
        (["--runs", "0"], "at least one run"),
        (["--as-rel", "/nonexistent"], "cannot read /nonexistent"),
    ],
)
def test_nonsense_says_what_to_write(words: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert main(["simulate", "hijack", *words]) == exits.USAGE
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"\x00\xff binary", b"x" * 10_000, b"1|2\n", b"BZh9 no"])
@pytest.mark.parametrize("name", ["a.txt", "a.gz", "a.bz2"])
def test_a_file_that_is_none_is_refused(content: bytes, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / name
    path.write_bytes(content)
    assert main(["simulate", "hijack", "--as-rel", str(path)]) == exits.USAGE
    said = capsys.readouterr().err
    assert "line 1" in said or "cannot read" in said


def test_without_the_brokers_packages_it_says_what_to_install():
    script = (
        "import sys\n"
        "for name in ('scipy', 'sklearn'): sys.modules[name] = None\n"
        "from mvps.cli.main import main\n"
        "sys.exit(main(['simulate', 'hijack']))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == exits.NOT_PERMITTED
    assert "pip install 'mvps[broker]'" in done.stderr


def test_without_a_file_it_is_the_graph_that_ships(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mvps.robust.as_graph.synthetic_internet", lambda *_: pytest.fail("made up anew"))
    assert main(["simulate", "hijack", "--runs", "5", "--json"]) == exits.OK
    first = json.loads(capsys.readouterr().out)["cascade"]
    assert first["ases"] == 400
    assert main(["simulate", "hijack", "--runs", "5", "--seed", "3", "--json"]) == exits.OK
    other = json.loads(capsys.readouterr().out)["cascade"]
    assert [other[name] for name in ("ases", "links", "rate")] == [first[name] for name in ("ases", "links", "rate")]
    monkeypatch.undo()
    assert main(["simulate", "hijack", "--ases", "60", "--runs", "5", "--json"]) == exits.OK
    assert json.loads(capsys.readouterr().out)["cascade"]["ases"] == 60
