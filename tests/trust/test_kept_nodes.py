# SPDX-License-Identifier: Apache-2.0
import os
import struct
from pathlib import Path

import pytest

from mvps.trust.kept_nodes import KeptNodes, KeptNodesError, give_back
from mvps.trust.merkle import HASH_BYTES, node_count


def opened(path: Path) -> KeptNodes:
    return KeptNodes(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))


def node(place: int) -> bytes:
    return struct.pack(">Q", place) * 4


def test_what_was_kept_is_found_again_and_nothing_else(tmp_path: Path) -> None:
    kept = opened(tmp_path / "kept")
    assert (kept.boundary, kept.count, kept.get(0)) == (0, 0, None)
    kept.extend(10, [(place, node(place)) for place in (3, 7, 11)])
    kept.extend(20, [(30, node(30))])
    kept.close()
    kept = opened(tmp_path / "kept")
    assert (kept.boundary, kept.count) == (20, 4)
    assert {place: kept.get(place) for place in range(40) if kept.get(place)} == {p: node(p) for p in (3, 7, 11, 30)}
    kept.extend(21, [])
    assert (kept.boundary, kept.count) == (21, 4)
    kept.close()
    kept.close()


def test_records_that_no_header_counts_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full, or power is lost, between the records and the header."""
    kept = opened(tmp_path / "kept")
    kept.extend(10, [(3, node(3))])
    whole = (tmp_path / "kept").read_bytes()
    calls = 0

    def fail(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", fail)
        with pytest.raises(OSError, match="No space"):
            kept.extend(20, [(25, node(25))])
    assert calls == 1
    assert (kept.boundary, kept.count, kept.get(25)) == (10, 1, None)
    kept.close()
    again = opened(tmp_path / "kept")
    assert (again.boundary, again.count, again.get(25)) == (10, 1, None)
    again.extend(30, [(27, node(27))])
    assert (again.get(3), again.get(25), again.get(27)) == (node(3), None, node(27))
    again.close()
    assert (tmp_path / "kept").read_bytes()[16:] == whole[16:] + struct.pack(">Q32s", 27, node(27))


@pytest.mark.parametrize("data", [b"x", struct.pack(">QQ", 5, 1), struct.pack(">QQ", 5, 1) + bytes(39)])
def test_a_file_that_is_cut_short_is_damaged(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "kept").write_bytes(data)
    with pytest.raises(KeptNodesError):
        opened(tmp_path / "kept")


def test_no_file_is_an_empty_one() -> None:
    kept = KeptNodes(-1)
    assert (kept.boundary, kept.get(5)) == (0, None)
    kept.close()


def test_what_is_given_back_takes_no_room_and_the_rest_stays(tmp_path: Path) -> None:
    size = 4096
    path = tmp_path / "nodes"
    path.write_bytes(b"\1" * (node_count(size) * HASH_BYTES))
    os.sync()
    before = path.stat()
    descriptor = os.open(path, os.O_RDWR)
    give_back(descriptor, 0)
    assert path.read_bytes() == b"\1" * before.st_size
    give_back(descriptor, 3000)
    os.close(descriptor)
    gone = node_count(3000) * HASH_BYTES
    assert path.stat().st_size == before.st_size
    if path.read_bytes()[:gone] == b"\1" * gone:
        pytest.skip("this file system has no holes")
    assert path.read_bytes() == bytes(gone) + b"\1" * (before.st_size - gone)
    assert path.stat().st_blocks < before.st_blocks * 0.3
