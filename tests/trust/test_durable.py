# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from mvps.trust.durable import claim, replace


def test_old_or_new_and_nothing_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state"
    replace(path, b"one")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600

    def refuse(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="No space"):
        replace(path, b"two")
    assert path.read_bytes() == b"one"
    assert [entry.name for entry in tmp_path.iterdir()] == ["state"]


def test_one_owner_until_it_lets_go(tmp_path: Path) -> None:
    owner = claim(tmp_path / "state")
    with pytest.raises(BlockingIOError):
        claim(tmp_path / "state")
    os.close(owner)
    os.close(claim(tmp_path / "state"))
    with pytest.raises(FileNotFoundError):
        claim(tmp_path / "absent" / "state")
