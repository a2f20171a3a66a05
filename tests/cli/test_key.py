# SPDX-License-Identifier: Apache-2.0
"""``mvps key`` as a user runs it; no secret leaves its file."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from operator_desk import assert_silent, mvps

from mvps.cli import exits
from mvps.cli.key import KINDS
from mvps.trust.keys import Kind, load_key, parse_public
from mvps.trust.note import COSIGNATURE_V1, ED25519, parse_note_key


def test_the_kinds_are_those_of_the_keys() -> None:
    assert tuple(Kind) == KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_generate_makes_a_private_file_and_prints_the_public_part(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.key"
    done = mvps("key", "generate", kind, path, umask=0)
    assert done.returncode == exits.OK
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert parse_public(done.stdout.strip(), Kind(kind)) == load_key(str(path)).public
    assert load_key(str(path)).public.fingerprint in done.stderr
    assert_silent(done, path)
    before = path.read_bytes()
    again = mvps("key", "generate", kind, path)
    assert (again.returncode, again.stdout) == (exits.NOT_PERMITTED, "")
    assert "is kept" in again.stderr
    assert path.read_bytes() == before


def test_generate_needs_a_known_kind_and_a_directory(tmp_path: Path) -> None:
    assert mvps("key", "generate", "guest", tmp_path / "k").returncode == exits.USAGE
    assert mvps("key", "generate", "host", tmp_path / "none" / "k").returncode == exits.NOT_PERMITTED
    assert mvps("key").returncode == exits.USAGE


def test_show_and_fingerprint_take_secret_and_public_files(tmp_path: Path) -> None:
    path, public = tmp_path / "a.key", tmp_path / "a.pub"
    public.write_text(mvps("key", "generate", "host", path).stdout)
    key = load_key(str(path)).public
    for source in (path, public):
        shown = mvps("key", "show", source)
        assert shown.stdout == key.text + "\n"
        assert mvps("key", "fingerprint", source).stdout == key.fingerprint + "\n"
        data = json.loads(mvps("key", "show", source, "--json").stdout)
        assert data == {
            "kind": "host",
            "public": key.text,
            "key_id": key.key_id.hex(),
            "fingerprint": key.fingerprint,
        }
        assert_silent(shown, path)


@pytest.mark.parametrize(("kind", "algorithm"), [("witness", COSIGNATURE_V1), ("broker", ED25519)])
def test_show_prints_note_keys(kind: str, algorithm: int, tmp_path: Path) -> None:
    path = tmp_path / "a.key"
    mvps("key", "generate", kind, path)
    shown = parse_note_key(mvps("key", "show", path, "--name", "a.example").stdout.strip())
    assert shown == ("a.example", algorithm, load_key(str(path)).public.ed25519)
    assert json.loads(mvps("key", "show", path, "--name", "a.example", "--json").stdout)["note_key"] == shown.text
    assert mvps("key", "show", path, "--name", "a b").returncode == exits.USAGE


def test_an_exposed_or_missing_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.key"
    mvps("key", "generate", "host", path)
    path.chmod(0o644)
    for verb in ("show", "fingerprint", "rotate"):
        done = mvps("key", verb, path)
        assert done.returncode in (exits.USAGE, exits.NOT_PERMITTED)
        assert "chmod 600" in done.stderr
        assert_silent(done, path)
    assert "make one with" in mvps("key", "show", tmp_path / "none").stderr


def test_a_secret_as_an_argument_is_not_repeated(tmp_path: Path) -> None:
    path = tmp_path / "a.key"
    mvps("key", "generate", "host", path)
    done = mvps("key", "show", path.read_text().strip())
    assert done.returncode == exits.USAGE
    assert "the name of its file" in done.stderr
    assert_silent(done, path)


@pytest.mark.parametrize("kind", ["host", "broker", "witness"])
def test_rotate_keeps_the_old_key_and_says_what_to_do(kind: str, tmp_path: Path) -> None:
    path, old = tmp_path / "a.key", tmp_path / "a.key.old"
    mvps("key", "generate", kind, path)
    before = path.read_bytes()
    done = mvps("key", "rotate", path, umask=0)
    assert done.returncode == exits.OK
    assert old.read_bytes() == before != path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(old.stat().st_mode) == 0o600
    assert parse_public(done.stdout.strip()) == load_key(str(path)).public
    assert "mvps epoch new" in done.stderr
    assert f"rm {old}" in done.stderr
    assert_silent(done, path, old)
    again = mvps("key", "rotate", path)
    assert again.returncode == exits.NOT_PERMITTED
    assert "still there" in again.stderr
    assert old.read_bytes() == before


def test_an_operators_key_is_not_rotated(tmp_path: Path) -> None:
    mvps("key", "generate", "operator", tmp_path / "o.key")
    assert mvps("key", "rotate", tmp_path / "o.key").returncode == exits.NOT_PERMITTED
    assert not (tmp_path / "o.key.old").exists()
