# SPDX-License-Identifier: Apache-2.0
"""``mvps fleet`` against a real broker with a real sender."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench.attacks import Arena

from mvps.cli import exits
from mvps.cli.main import main
from mvps.trust.keys import Kind, SecretKey
from mvps.trust.manifest import Profile, sign_manifest


@pytest.fixture
def arena(tmp_path: Path) -> Iterator[Arena]:
    made = Arena(tmp_path, Profile.CWT)
    yield made
    made.close()


def test_all_is_well(arena: Arena, capsys: pytest.CaptureFixture[str]) -> None:
    arena.send(arena.host.seal())
    assert main(["fleet", "--broker", arena.broker.address]) == exits.OK
    said = capsys.readouterr().out
    assert "epoch 2, profile cwt" in said
    assert "accepted 1, duplicates 0, rejected nothing" in said
    assert "host-1" in said
    assert "!" not in said


def test_troubles_are_marked_and_set_the_exit_code(arena: Arena, capsys: pytest.CaptureFixture[str]) -> None:
    spent = next(arena.numbers)
    arena.send(arena.host.seal(counter=spent))
    arena.send(arena.host.seal(counter=spent))
    forged = sign_manifest(arena.site.manifest, SecretKey(os.urandom(32), Kind.OPERATOR))
    (arena.site.manifests / "forged.manifest").write_bytes(forged)
    assert arena.broker.broker is not None
    while not arena.broker.broker.info().refused_manifests:
        pass
    assert main(["fleet", "--broker", arena.broker.address]) == exits.FOUND
    said = capsys.readouterr().out
    assert "! host-1: used 1 counters twice with different content" in said
    assert "! manifest forged.manifest: " in said
    assert main(["fleet", "--broker", arena.broker.address, "--json"]) == exits.FOUND
    shown = json.loads(capsys.readouterr().out)
    assert shown["info"]["rejected"] == {"equivocation": "1"}
    assert [vantage["vantage_id"] for vantage in shown["vantages"]] == ["host-1"]


def test_no_broker(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fleet", "--broker", f"unix:{tmp_path}/none"]) == exits.UNREACHABLE
    assert "check --broker" in capsys.readouterr().err
