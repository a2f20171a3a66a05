# SPDX-License-Identifier: Apache-2.0
"""``mvps witness`` as a process, asked over real HTTP."""

from __future__ import annotations

import http.client
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mvps.trust.checkpoint import Checkpoint
from mvps.trust.keys import Kind, SecretKey, generate_key
from mvps.trust.merkle import TreeHead
from mvps.trust.note import (
    COSIGNATURE_V1,
    ED25519,
    Note,
    NoteKey,
    parse_note_key,
    parse_signatures,
    sign_note,
    verified,
)
from mvps.trust.witness import Request

BROKER = SecretKey(os.urandom(32), Kind.BROKER)
LOG = f"site-1={BROKER.public.text}"


def mvps(*words: object) -> list[str]:
    return [sys.executable, "-m", "mvps.cli.main", "witness", *map(str, words)]


@contextmanager
def serving(*words: object) -> Iterator[tuple[subprocess.Popen[str], str, NoteKey]]:
    process = subprocess.Popen(mvps("--listen", "127.0.0.1:0", *words), stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        found = re.fullmatch(r"witness (\S+) listens on http://(\S+)\n", line)
        assert found is not None, line + process.stderr.read()
        yield process, found[2], parse_note_key(found[1])
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def ask(address: str, old: int, head: TreeHead) -> tuple[int, bytes, str]:
    text = Checkpoint("site-1", *head).text
    note = Note(text, (sign_note(text, "site-1", BROKER.sign, BROKER.public.ed25519),))
    connection = http.client.HTTPConnection(address, timeout=10)
    connection.request("POST", "/add-checkpoint", Request(old, (), note).render())
    answer = connection.getresponse()
    found = answer.status, answer.read(), text
    connection.close()
    return found


def test_it_cosigns_remembers_and_ends_on_a_signal(tmp_path: Path) -> None:
    key = generate_key(tmp_path / "w.key", Kind.WITNESS)
    words = ("--key", tmp_path / "w.key", "--name", "w.example", "--log", LOG, "--state", tmp_path / "w.json")
    first, other = TreeHead(1, bytes(range(32))), TreeHead(1, bytes(32))
    with serving(*words, "--new") as (process, address, shown):
        assert shown == NoteKey("w.example", COSIGNATURE_V1, key.public.ed25519)
        status, body, text = ask(address, 0, first)
        assert status == 200
        assert len(verified(Note(text, parse_signatures(body.decode())), [shown])) == 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    assert stat.S_IMODE((tmp_path / "w.json").stat().st_mode) == 0o600
    with serving(*words) as (process, address, _):
        assert ask(address, 0, first)[:2] == (409, b"1\n")
        assert ask(address, 1, other)[:2] == (409, b"1\n")
        assert process.stderr is not None
        assert "different histories" in process.stderr.readline()


def test_the_key_for_the_manifest(tmp_path: Path) -> None:
    key = generate_key(tmp_path / "w.key", Kind.WITNESS)
    done = subprocess.run(
        mvps("--key", tmp_path / "w.key", "--name", "w.example", "--vkey"), capture_output=True, text=True, check=True
    )
    assert parse_note_key(done.stdout.strip()) == NoteKey("w.example", COSIGNATURE_V1, key.public.ed25519)
    assert not (tmp_path / "w.json").exists()


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ({"--key": "absent"}, 2, "absent"),
        ({"--key": "broker.key"}, 2, "broker"),
        ({"--name": "a b"}, 2, "no spaces"),
        ({"--log": ""}, 2, "is no note key"),
        ({"--log": NoteKey("w", COSIGNATURE_V1, bytes(32)).text}, 2, "algorithm 4"),
        ({"--state": "absent/w.json"}, 2, "does absent exist"),
        ({"--listen": "nowhere"}, 4, "write HOST:PORT"),
        ({"--listen": "192.0.2.1:1"}, 4, "cannot listen on"),
    ],
)
def test_what_keeps_it_from_starting(tmp_path: Path, change: dict[str, str], code: int, said: str) -> None:
    generate_key(tmp_path / "w.key", Kind.WITNESS)
    generate_key(tmp_path / "broker.key", Kind.BROKER)
    given = {
        "--key": "w.key",
        "--name": "w.example",
        "--log": NoteKey("site-1", ED25519, BROKER.public.ed25519).text,
        "--state": "w.json",
        "--listen": "127.0.0.1:0",
    } | change
    words = [word for pair in given.items() for word in pair]
    done = subprocess.run(mvps(*words, "--new"), capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_witness_without_memory_or_logs(tmp_path: Path) -> None:
    generate_key(tmp_path / "w.key", Kind.WITNESS)
    words = ("--key", tmp_path / "w.key", "--name", "w.example", "--state", tmp_path / "w.json")
    done = subprocess.run(mvps(*words), capture_output=True, text=True, check=False)
    assert (done.returncode, "no log is named" in done.stderr) == (2, True)
    done = subprocess.run(mvps(*words, "--log", LOG), capture_output=True, text=True, check=False)
    assert (done.returncode, "never cosigned" in done.stderr) == (2, True)
