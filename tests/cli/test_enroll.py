# SPDX-License-Identifier: Apache-2.0
"""``mvps enroll`` as a host and an operator run it."""

from __future__ import annotations

import socket
import stat
import time
from dataclasses import replace
from pathlib import Path

import pytest
from operator_desk import assert_silent, mvps, request_of

from mvps.cli import exits
from mvps.trust.enrolment import open_enrolment, sign_enrolment
from mvps.trust.keys import Kind, load_key
from mvps.trust.manifest import parse_manifest


@pytest.fixture
def draft(tmp_path: Path) -> Path:
    mvps("key", "generate", "broker", tmp_path / "broker.key")
    (tmp_path / "broker.pub").write_text(mvps("key", "show", tmp_path / "broker.key").stdout)
    made = mvps(
        "epoch", "new", "--operator-id", "acme", "--broker", tmp_path / "broker.pub", "--out", tmp_path / "1.draft"
    )
    assert made.returncode == 0, made.stderr
    return tmp_path / "1.draft"


def test_request_asks_with_public_keys_only(tmp_path: Path) -> None:
    path = request_of(tmp_path, "host-a", "--cell", "r1", "--role", "host", "--prefix", "10.0.0.5/32")
    enrolment = open_enrolment(path.read_bytes())
    vantage = enrolment.vantage
    assert (vantage.vantage_id, vantage.cell, vantage.roles) == ("host-a", "r1", ("host",))
    assert [str(prefix) for prefix in vantage.prefixes] == ["10.0.0.5/32"]
    assert vantage.key == load_key(str(tmp_path / "host-a.key")).public
    assert enrolment.hostname == socket.gethostname()
    assert abs(enrolment.created_s - time.time()) < 3600
    done = mvps("enroll", "request", "--key", tmp_path / "host-a.key", "--vantage", "host-a")
    assert vantage.key.fingerprint in done.stderr
    assert_silent(done, tmp_path / "host-a.key")


def test_request_to_a_file_never_overwrites(tmp_path: Path) -> None:
    mvps("key", "generate", "host", tmp_path / "key")
    words = ("enroll", "request", "--key", tmp_path / "key", "--vantage", "a", "--out", tmp_path / "a.request")
    assert mvps(*words).returncode == exits.OK
    before = (tmp_path / "a.request").read_bytes()
    assert open_enrolment(before)
    again = mvps(*words)
    assert again.returncode == exits.NOT_PERMITTED
    assert "is kept" in again.stderr
    assert (tmp_path / "a.request").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--vantage", "a b"], "vantage id"),
        (["--vantage", ""], "vantage id"),
        (["--cell", "a/b"], "cell"),
        (["--role", "HOST"], "role"),
        (["--prefix", "10.0.0.5/8"], "host bits"),
    ],
)
def test_request_refuses_what_the_operator_could_not_admit(words: list[str], said: str, tmp_path: Path) -> None:
    mvps("key", "generate", "host", tmp_path / "key")
    done = mvps("enroll", "request", "--key", tmp_path / "key", *words)
    assert (done.returncode, done.stdout) == (exits.USAGE, "")
    assert said in done.stderr


def test_request_needs_a_hosts_key(tmp_path: Path) -> None:
    mvps("key", "generate", "broker", tmp_path / "key")
    done = mvps("enroll", "request", "--key", tmp_path / "key")
    assert done.returncode == exits.USAGE
    assert "a host key is needed" in done.stderr


def test_approve_admits_all_and_shows_their_fingerprints(tmp_path: Path, draft: Path) -> None:
    requests = [request_of(tmp_path, name) for name in ("host-b", "host-a")]
    draft.chmod(0o640)
    done = mvps("enroll", "approve", *requests, "--into", draft)
    assert done.returncode == exits.OK, done.stderr
    admitted = parse_manifest(draft.read_text()).vantages
    assert [v.vantage_id for v in admitted] == ["host-a", "host-b"]
    for vantage in admitted:
        assert vantage.key.fingerprint in done.stdout
    assert stat.S_IMODE(draft.stat().st_mode) == 0o640
    assert not draft.with_name(draft.name + ".new").exists()


def test_approve_is_all_or_nothing(tmp_path: Path, draft: Path) -> None:
    good, bad = request_of(tmp_path, "host-a"), request_of(tmp_path, "host-b")
    bad.write_text(bad.read_text().replace("cell -", "cell r9"))
    before = draft.read_bytes()
    done = mvps("enroll", "approve", good, bad, "--into", draft)
    assert done.returncode == exits.USAGE
    assert f"{bad}: " in done.stderr
    assert "is unchanged" in done.stderr
    assert draft.read_bytes() == before


def test_approve_of_another_key_is_a_rotation_and_says_so(tmp_path: Path, draft: Path) -> None:
    mvps("enroll", "approve", request_of(tmp_path, "host-a"), "--into", draft)
    old = load_key(str(tmp_path / "host-a.key")).public
    assert mvps("key", "rotate", tmp_path / "host-a.key").returncode == 0
    done = mvps("enroll", "approve", request_of(tmp_path, "host-a"), "--into", draft)
    assert f"takes the place of key {old.key_id.hex()}" in done.stdout
    (vantage,) = parse_manifest(draft.read_text()).vantages
    assert vantage.key == load_key(str(tmp_path / "host-a.key")).public


@pytest.mark.parametrize("days", [-1, 31])
def test_approve_refuses_requests_from_another_time(days: int, tmp_path: Path, draft: Path) -> None:
    path = request_of(tmp_path, "host-a")
    enrolment = open_enrolment(path.read_bytes())
    key = load_key(str(tmp_path / "host-a.key"), Kind.HOST)
    path.write_bytes(sign_enrolment(replace(enrolment, created_s=enrolment.created_s - days * 86400), key))
    done = mvps("enroll", "approve", path, "--into", draft)
    assert done.returncode == exits.USAGE
    assert "ask for a new one" in done.stderr


def test_approve_refuses_a_signed_manifest_and_two_requests_of_one_vantage(tmp_path: Path, draft: Path) -> None:
    path = request_of(tmp_path, "host-a")
    (tmp_path / "first.request").write_bytes(path.read_bytes())
    mvps("key", "rotate", tmp_path / "host-a.key")
    twice = mvps("enroll", "approve", tmp_path / "first.request", request_of(tmp_path, "host-a"), "--into", draft)
    assert twice.returncode == exits.USAGE
    assert "for host-a too" in twice.stderr
    mvps("enroll", "approve", path, "--into", draft)
    mvps("key", "generate", "operator", tmp_path / "o.key")
    mvps("epoch", "sign", draft, "--key", tmp_path / "o.key", "--out", tmp_path / "1.manifest")
    done = mvps("enroll", "approve", path, "--into", tmp_path / "1.manifest")
    assert done.returncode == exits.USAGE
    assert "signed already" in done.stderr
