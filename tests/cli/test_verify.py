# SPDX-License-Identifier: Apache-2.0
"""``mvps verify`` as an auditor runs it: files, output, exit codes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.trust.audit_samples import START, Site, usual

from mvps.trust.checkpoint import Distances
from mvps.trust.evidence_log import LogFiles
from mvps.trust.note import ED25519, NoteKey


def mvps(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mvps.cli.main", *map(str, words)], capture_output=True, text=True, check=False
    )


class Case:
    """A site's log, and what an auditor was given."""

    def __init__(self, tmp_path: Path, made: Callable[[Path], Site] = usual) -> None:
        self.tmp_path = tmp_path
        self.log = tmp_path / "broker.db.evidence"
        self.site: Site = made(self.log)
        (tmp_path / "manifests").mkdir()
        (tmp_path / "manifests/1.manifest").write_bytes(self.site.signed_manifest())
        (tmp_path / "operator.pub").write_text(self.site.operator.public.text + "\n")
        self.believed = ("--operator", tmp_path / "operator.pub", "--manifests", tmp_path / "manifests")

    def verify(self, *words: object) -> subprocess.CompletedProcess[str]:
        return mvps("verify", *words, *self.believed)

    def json(self, *words: object) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.verify(*words, "--json").stdout)
        return found


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def test_a_log_that_holds(case: Case) -> None:
    done = case.verify(case.log)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("everything holds\n")
    assert "origin     site-1\nsigned     12 leaves" in done.stdout
    assert "cosigned   12 leaves, by w0.example, w1.example, w2.example\n" in done.stdout
    assert "distances  D^2_minimax 2.00, D^2_max 3.00, of the vantages\n" in done.stdout
    assert "on disk    12 leaves from 0, 3 checkpoints\n" in done.stdout
    # The database's name is enough, whether it is there or not.
    assert case.verify(case.tmp_path / "broker.db").stdout == done.stdout


def test_as_json(case: Case) -> None:
    found = case.json(case.log, "--snapshot", "host-c/3")
    assert found["holds"] is True
    assert (found["size"], found["cosigned_size"], found["leaves"], found["findings"]) == (12, 12, 12, [])
    (snapshot,) = found["snapshots"]
    assert (snapshot["vantage"], snapshot["counter"], snapshot["leaf"], snapshot["epoch"]) == ("host-c", 3, 8, 1)
    assert snapshot["seal"] == "holds: the vantage's key signed it"


def test_distances_of_the_fleets_decision_say_so(tmp_path: Path) -> None:
    def made(folder: Path) -> Site:
        site = Site(folder, d2=Distances(0.5, 17.25, of_fleet=True))
        site.grow("host-a", "host-b")
        site.checkpoint(START + 10, 0, 1)
        site.log.close()
        return site

    case = Case(tmp_path, made)
    done = case.verify(case.log)
    assert done.returncode == 0
    assert "distances  D^2_minimax 0.50, D^2_max 17.25, of the fleet\n" in done.stdout
    assert case.json(case.log)["distances"] == {"of": "fleet", "minimax": 0.5, "max": 17.25}


def test_something_wrong_is_named_and_exits_with_1(case: Case) -> None:
    path = sorted(case.log.glob("leaves-*"))[1]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    done = case.verify(case.log)
    assert done.returncode == 1
    assert f"WRONG      leaf: {path}: leaf " in done.stdout
    assert done.stdout.endswith("1 findings\n")
    found = case.json(case.log)
    assert [finding["kind"] for finding in found["findings"]] == ["leaf"]


def test_several_logs_at_once(case: Case, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(case.log, copy)
    (copy / "nodes").unlink()
    done = case.verify(case.log, copy, "--json")
    assert done.returncode == 1
    assert [one["holds"] for one in json.loads(done.stdout)] == [True, False]


def test_a_log_that_was_set_back_against_a_kept_checkpoint(case: Case, tmp_path: Path) -> None:
    kept = tmp_path / "kept.checkpoint"
    assert case.verify(case.log, "--keep", kept).returncode == 0
    assert kept.read_bytes() == list(LogFiles(case.log).checkpoints())[-1]
    assert case.verify(case.log, "--keep", kept).returncode == 4  # never overwritten
    assert case.verify(case.log, "--kept", kept).returncode == 0
    whole = list(LogFiles(case.log).checkpoints())
    (case.log / "checkpoints").write_bytes(b"".join(note + b"\n" for note in whole[:2]))
    for path in sorted(case.log.glob("leaves-*"))[2:]:
        path.unlink()
    assert case.verify(case.log).returncode == 0  # nothing in the folder shows it
    done = case.verify(case.log, "--kept", kept)
    assert done.returncode == 1
    assert "a checkpoint covers 12" in done.stdout


def test_a_proof_travels_alone(case: Case, tmp_path: Path) -> None:
    done = case.verify(case.log, "--snapshot", "host-b/2", "--export", tmp_path)
    assert done.returncode == 0, done.stdout
    proof = tmp_path / "host-b-2.tlog-proof"
    assert f"written    {proof}\n" in done.stdout
    assert proof.read_text().startswith("c2sp.org/tlog-proof@v1\nextra ")
    shutil.rmtree(case.log)
    done = case.verify("--proof", proof)
    assert done.returncode == 0
    assert "host-b/2 (epoch 1, lane 1, tick 7) is leaf 4 of 12" in done.stdout
    assert "by w0.example, w1.example, w2.example" in done.stdout
    assert case.json("--proof", proof)["holds"] is True
    # It is never overwritten, and every change of it is found.
    good = proof.read_bytes()
    for old, new in (
        (b"extra TV", b"extra TU"),
        (b"index 4", b"index 5"),
        (b"\n12\n", b"\n13\n"),
        (b"mvps-d2 2.0", b"mvps-d2 1.0"),
        (b"\n\n", b"\n"),
    ):
        assert old in good
        proof.write_bytes(good.replace(old, new))
        done = case.verify("--proof", proof)
        assert done.returncode == 1, old
        assert done.stdout.startswith(f"WRONG      proof: {proof}: ")
    lines = good.decode().split("\n")
    proof.write_text("\n".join(line for line in lines if not line.startswith(("— w1", "— w2"))))
    done = case.verify("--proof", proof)
    assert (done.returncode, "cosigned by 1 of the trusted witnesses, and 2 are needed" in done.stdout) == (1, True)
    assert case.verify("--proof", proof, "--quorum", "1").returncode == 0


def test_a_proof_without_export_is_printed(case: Case) -> None:
    done = case.verify(case.log, "--snapshot", "host-a/1")
    assert "\nc2sp.org/tlog-proof@v1\nextra " in done.stdout
    done = case.verify(case.log, "--snapshot", "host-a/99")
    assert done.returncode == 1
    assert "WRONG      snapshot: host-a/99: is not among the leaves" in done.stdout
    (case.tmp_path / "host-a-1.tlog-proof").write_text("precious")
    done = case.verify(case.log, "--snapshot", "host-a/1", "--export", case.tmp_path)
    assert (done.returncode, "File exists" in done.stderr) == (4, True)
    assert (case.tmp_path / "host-a-1.tlog-proof").read_text() == "precious"


def test_without_an_operator_the_keys_are_given(case: Case) -> None:
    site = case.site
    vkey = NoteKey("site-1", ED25519, site.broker.public.ed25519).text
    witnesses = [word for i in range(3) for word in ("--witness", site.witness_key(i).text)]
    for key in (vkey, f"site-1={site.broker.public.text}"):
        assert mvps("verify", case.log, "--log-key", key, *witnesses, "--quorum", "3").returncode == 0
    done = mvps("verify", case.log, "--log-key", vkey, *witnesses[:4], "--quorum", "3")
    assert done.returncode == 1
    assert "WRONG      quorum: " in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "give one or more evidence folders"),
        (("x", "--proof", "y"), "give one or more evidence folders"),
        (("x", "y", "--keep", "z"), "are about one log"),
        (("x",), "nobody is trusted"),
        (("x", "--operator", "o"), "--operator and --manifests belong together"),
        (("x", "--log-key", "nonsense"), "is no note key"),
        (("x", "--log-key", "a b=mvps-public-v1:broker:AAAA"), "is no origin"),
        (("x", "--log-key", "site=mvps-public-v1:broker:AAAA"), ""),
        (("--proof", "absent"), "nobody is trusted"),
    ],
)
def test_what_cannot_be_audited_exits_with_2(words: tuple[str, ...], said: str) -> None:
    done = mvps("verify", *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stdout == ""


def test_bad_files_exit_with_2(case: Case, tmp_path: Path) -> None:
    for words, said in (
        ((tmp_path / "absent",), "cannot read"),
        ((case.log, "--snapshot", "host-a"), "write VANTAGE/COUNTER"),
        ((case.log, "--kept", tmp_path / "absent"), "cannot read"),
        ((case.log, "--kept", tmp_path / "operator.pub"), "no signed note"),
        (("--proof", tmp_path / "absent"), "cannot read"),
        ((case.log, "--witness", NoteKey("w", ED25519, bytes(32)).text), "no key of a witness"),
        ((case.log, "--quorum", "-1"), "not below 0"),
    ):
        done = case.verify(*words)
        assert (done.returncode, done.stdout) == (2, ""), done
        assert said in done.stderr
    (tmp_path / "manifests/2.manifest").write_bytes(case.site.signed_manifest().replace(b"faults 1", b"faults 0"))
    done = case.verify(case.log)
    assert (done.returncode, "2.manifest: " in done.stderr) == (2, True)
