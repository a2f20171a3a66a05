# SPDX-License-Identifier: Apache-2.0
import os
import resource
import stat
from pathlib import Path

import pytest

from mvps.trust.merkle import EMPTY, TreeHead
from mvps.witness.heads import HeadsError, HeadsFile

HEAD = TreeHead(17, bytes(range(32)))


def test_heads_are_on_disk_before_record_returns(tmp_path: Path) -> None:
    path = tmp_path / "w.json"
    heads = HeadsFile(path, new=True)
    assert heads.head("log") == EMPTY
    heads.record("log", HEAD)
    heads.record("other.example/é", TreeHead(3, bytes(32)))
    copy = tmp_path / "copy.json"
    copy.write_bytes(path.read_bytes())  # what a crash at this moment would leave
    assert HeadsFile(copy).head("log") == HEAD
    heads.close()
    again = HeadsFile(path)
    assert (again.head("log"), again.head("other.example/é")) == (HEAD, TreeHead(3, bytes(32)))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_lost_memory_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    path = tmp_path / "w.json"
    with pytest.raises(HeadsError, match="--new if this witness has never cosigned"):
        HeadsFile(path)
    assert not path.exists()
    HeadsFile(path, new=True).close()
    with pytest.raises(HeadsError, match="start without --new"):
        HeadsFile(path, new=True)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"mvps-witness-v1": 1}',
        b'{"mvps-witness-v1": {"log": {"size": -1, "root": ""}}}',
        b'{"mvps-witness-v1": {"log": {"size": true, "root": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}}}',
        b'{"mvps-witness-v1": {"log": {"size": 1, "root": "AAAA"}}}',
        b"\xff" * 20,
    ],
)
def test_a_damaged_memory_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "w.json"
    path.write_bytes(content)
    with pytest.raises(HeadsError, match="is damaged"):
        HeadsFile(path)


def test_two_witnesses_do_not_share_a_memory(tmp_path: Path) -> None:
    first = HeadsFile(tmp_path / "w.json", new=True)
    with pytest.raises(HeadsError, match="another witness uses"):
        HeadsFile(tmp_path / "w.json")
    first.close()
    first.close()
    HeadsFile(tmp_path / "w.json").close()


def test_what_cannot_be_written_did_not_happen(tmp_path: Path) -> None:
    heads = HeadsFile(tmp_path / "w.json", new=True)
    heads.record("log", HEAD)
    before = (tmp_path / "w.json").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            heads.record("log", TreeHead(18, bytes(32)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert heads.head("log") == HEAD
    assert (tmp_path / "w.json").read_bytes() == before
    heads.close()


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(HeadsError, match=r"does .* exist"):
        HeadsFile(tmp_path / "absent" / "w.json", new=True)
    os.mkdir(tmp_path / "folder.json")
    with pytest.raises(HeadsError):
        HeadsFile(tmp_path / "folder.json")
