# SPDX-License-Identifier: Apache-2.0
"""The command as a process, and an operator's desk to run it at: for the tests of key, enroll and epoch."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from pathlib import Path

from mvps.cli import exits
from mvps.trust.keys import load_key
from mvps.trust.manifest import Manifest, open_manifest


def mvps(*words: str | Path, umask: int = 0o022) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k not in ("MVPS_DEBUG", "CREDENTIALS_DIRECTORY")}
    return subprocess.run(
        [sys.executable, "-m", "mvps.cli.main", *map(str, words)],
        capture_output=True,
        text=True,
        env=env,
        check=False,
        umask=umask,
    )


def secret_of(path: Path) -> str:
    return path.read_text().strip().rpartition(":")[2]


def assert_silent(done: subprocess.CompletedProcess[str], *paths: Path) -> None:
    """Neither the seed nor its bytes in hex are in what the command said."""
    for path in paths:
        encoded = secret_of(path)
        assert encoded not in done.stdout + done.stderr
        assert base64.b64decode(encoded).hex() not in done.stdout + done.stderr


def request_of(folder: Path, name: str, *words: str) -> Path:
    key, path = folder / f"{name}.key", folder / f"{name}.request"
    if not key.exists():
        assert mvps("key", "generate", "host", key).returncode == 0
    done = mvps("enroll", "request", "--key", key, "--vantage", name, *words)
    assert done.returncode == exits.OK, done.stderr
    path.write_text(done.stdout)
    return path


class Site:
    """An operator's desk: keys, requests, drafts and manifests of one directory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for kind in ("operator", "broker"):
            done = mvps("key", "generate", kind, folder / f"{kind}.key")
            (folder / f"{kind}.pub").write_text(done.stdout)

    def __getitem__(self, name: str) -> Path:
        return self.folder / name

    def new(self, *words: str | Path) -> Path:
        first = ("--operator-id", "acme", "--broker", self["broker.pub"])
        return self._made("1.draft", "epoch", "new", *first, *words)

    def next(self, number: int, *words: str | Path) -> Path:
        source = ("--from", self[f"{number - 1}.manifest"], "--operator", self["operator.pub"])
        return self._made(f"{number}.draft", "epoch", "new", *source, *words)

    def approve(self, number: int, *names: str) -> None:
        requests = [request_of(self.folder, name) for name in names]
        done = mvps("enroll", "approve", *requests, "--into", self[f"{number}.draft"])
        assert done.returncode == exits.OK, done.stderr

    def sign(self, number: int, *words: str) -> Manifest:
        previous = ("--previous", self[f"{number - 1}.manifest"]) if number > 1 else ()
        key = ("--key", self["operator.key"])
        self._made(f"{number}.manifest", "epoch", "sign", self[f"{number}.draft"], *key, *previous, *words)
        return self.manifest(number)

    def manifest(self, number: int) -> Manifest:
        return open_manifest(self[f"{number}.manifest"].read_bytes(), load_key(str(self["operator.key"])).public)

    def _made(self, name: str, *words: str | Path) -> Path:
        done = mvps(*words, "--out", self[name])
        assert done.returncode == exits.OK, done.stderr
        assert_silent(done, self["operator.key"], self["broker.key"])
        return self[name]
