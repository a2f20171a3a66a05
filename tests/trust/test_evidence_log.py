# SPDX-License-Identifier: Apache-2.0
import os
import resource
import shutil
import stat
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mvps.trust import evidence_log
from mvps.trust.checkpoint import Checkpoint
from mvps.trust.evidence_log import (
    NEW_LOG,
    CheckpointFile,
    EvidenceError,
    EvidenceLog,
    LogFiles,
    LogState,
    Place,
    leaf_of,
    sealed_of,
    split_leaves,
)
from mvps.trust.kept_nodes import KeptNodes
from mvps.trust.limits import TAG_BYTES
from mvps.trust.merkle import EMPTY, Tree, TreeHead, consistent, included, leaf_hash
from mvps.trust.note import Note, NoteSignature
from mvps.trust.seal import Sealed


def sealed(counter: int, body: bytes | None = None) -> Sealed:
    """A snapshot with a well-formed header and a seal that nobody checks here."""
    body = bytes([counter % 251]) * (counter % 7 * 10) if body is None else body
    name = f"host-{counter % 3}".encode()
    header = struct.pack(">5sBBBHBBIQQQQ8s", b"MVPS\1", 1, 1, 1, 0, len(name), 0, len(body), 0, counter, 0, 0, bytes(8))
    return Sealed(header + name, body, bytes([counter % 256]) * TAG_BYTES)


def leaves(first: int, count: int) -> list[bytes]:
    return [leaf_of(sealed(i)) for i in range(first, first + count)]


def head_of(data: list[bytes]) -> TreeHead:
    tree = Tree()
    tree.append(map(leaf_hash, data))
    return tree.head


def append(log: EvidenceLog, data: list[bytes]) -> list[Place]:
    places, _ = log.append(data)
    log.commit()
    return places


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def checkpoint(state: LogState, *signatures: str) -> Note:
    signed = tuple(NoteSignature(name, b"key-", bytes(64)) for name in signatures or ("log",))
    return Note(Checkpoint("log", state.size, state.root).text, signed)


def test_leaves_are_the_bytes_that_travelled() -> None:
    for i in range(20):
        assert sealed_of(leaf_of(sealed(i))) == sealed(i)
    for broken in (leaf_of(sealed(3))[:-1], leaf_of(sealed(3)) + b"\0", b"", b"x" * 200):
        with pytest.raises(EvidenceError):
            sealed_of(broken)


def test_tree_leaves_and_proofs_survive_reopening(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    log = EvidenceLog(folder, segment_bytes=500)
    assert (log.head, log.first) == (EMPTY, 0)
    data: list[bytes] = []
    places: list[Place] = []
    for count in (1, 4, 1, 9, 20, 3):
        more = leaves(len(data), count)
        places += append(log, more)
        data += more
        assert log.head == head_of(data)
    log.close()
    log = EvidenceLog(folder, log.state, segment_bytes=500)
    assert log.head == head_of(data)
    assert [place.leaf for place in places] == list(range(38))
    assert [leaf_of(found) for found in log.read(places) if found] == data
    for index in range(38):
        for size in range(index + 1, 39):
            head = head_of(data[:size])
            assert log.root(size) == head.root
            assert included(leaf_hash(data[index]), index, head, log.inclusion(index, size))
            assert consistent(head_of(data[:index]), head, log.consistency(index, size))
    log.close()


def test_nothing_in_the_folder_is_readable_for_others(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    mask = os.umask(0)
    try:
        log = EvidenceLog(folder, segment_bytes=1)
        append(log, leaves(0, 2))
        append(log, leaves(2, 2))
        log.checkpoints.append(checkpoint(log.state))
        log.close()
    finally:
        os.umask(mask)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert len(list(folder.iterdir())) == 5
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_what_was_not_committed_is_cut_off(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    log = EvidenceLog(folder, segment_bytes=1 << 20)
    append(log, leaves(0, 5))
    before, state = files(folder), log.state
    log.append(leaves(5, 5))
    log.close()  # as if the process died before its transaction
    assert files(folder) != before
    log = EvidenceLog(folder, state)
    assert files(folder) == before
    places = append(log, leaves(5, 2))
    assert log.head == head_of(leaves(0, 7))
    assert log.read(places) == [sealed(5), sealed(6)]
    log.close()


def test_leaves_are_synced_before_append_returns_and_nodes_before_a_segment_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = EvidenceLog(tmp_path, segment_bytes=300)
    synced: list[tuple[str, int]] = []

    def record(descriptor: int) -> None:
        synced.append((Path(os.readlink(f"/proc/self/fd/{descriptor}")).name, os.fstat(descriptor).st_size))

    monkeypatch.setattr(os, "fdatasync", record)
    _, first = log.append(leaves(0, 4))
    assert synced == [(f"leaves-{0:020d}", first.end)]
    log.commit()
    _, second = log.append(leaves(4, 1))
    assert synced[1:] == [("nodes", 7 * 32), (f"leaves-{4:020d}", second.end)]
    log.commit()
    log.close()


def test_a_segment_that_was_not_committed_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    log = EvidenceLog(folder, segment_bytes=1)
    append(log, leaves(0, 5))
    before, state = files(folder), log.state
    log.append(leaves(5, 5))
    assert (folder / f"leaves-{5:020d}").exists()
    log.close()
    EvidenceLog(folder, state).close()
    assert files(folder) == before


def test_rollback_leaves_nothing_behind(tmp_path: Path) -> None:
    log = EvidenceLog(tmp_path, segment_bytes=1)
    log.rollback()
    append(log, leaves(0, 3))
    before = files(tmp_path)
    log.append(leaves(3, 3))
    with pytest.raises(ValueError, match="neither committed"):
        log.append(leaves(3, 3))
    log.rollback()
    assert files(tmp_path) == before
    append(log, leaves(3, 1))
    assert log.head == head_of(leaves(0, 4))
    with pytest.raises(ValueError, match="nothing was appended"):
        log.commit()
    log.close()


@pytest.mark.parametrize("segment_bytes", [1, 1 << 20])
@pytest.mark.parametrize("limit", [0, 40, 100, 330, 400, 700])
def test_a_full_disk_fails_cleanly_wherever_it_strikes(tmp_path: Path, limit: int, segment_bytes: int) -> None:
    log = EvidenceLog(tmp_path, segment_bytes=segment_bytes)
    append(log, leaves(0, 3))
    before, state = files(tmp_path), log.state
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))  # writes beyond fail with EFBIG
    try:
        with pytest.raises(EvidenceError, match="free space"):
            log.append(leaves(3, 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files(tmp_path) == before
    assert log.state == state
    append(log, leaves(3, 20))
    assert log.head == head_of(leaves(0, 23))
    log.close()
    EvidenceLog(tmp_path, log.state).close()


def test_missing_leaves_are_named(tmp_path: Path) -> None:
    log = EvidenceLog(tmp_path, segment_bytes=1)
    for i in range(3):
        append(log, leaves(i, 1))
    log.close()
    newest = tmp_path / f"leaves-{2:020d}"
    os.truncate(newest, newest.stat().st_size - 1)
    with pytest.raises(EvidenceError, match=rf"{newest.name} has 113 bytes of 114.*backup"):
        EvidenceLog(tmp_path, log.state)
    newest.unlink()
    with pytest.raises(EvidenceError, match=f"{newest.name} is missing.*backup"):
        EvidenceLog(tmp_path, log.state)
    assert not newest.exists()


def test_missing_nodes_of_older_segments_are_named(tmp_path: Path) -> None:
    log = EvidenceLog(tmp_path, segment_bytes=1)
    append(log, leaves(0, 4))
    append(log, leaves(4, 4))
    log.close()
    os.truncate(tmp_path / "nodes", 6 * 32)
    with pytest.raises(EvidenceError, match="nodes has 192 bytes of 224"):
        EvidenceLog(tmp_path, log.state)


def test_nodes_of_the_newest_segment_are_made_again(tmp_path: Path) -> None:
    log = EvidenceLog(tmp_path, segment_bytes=1)
    append(log, leaves(0, 4))
    append(log, leaves(4, 7))
    log.close()
    nodes = (tmp_path / "nodes").read_bytes()
    # Torn by a crash: too short, and zeroes where a page was not written.
    for torn in (nodes[: 7 * 32], nodes[:-32], nodes[:300] + bytes(len(nodes) - 300), nodes + b"more"):
        (tmp_path / "nodes").write_bytes(torn)
        EvidenceLog(tmp_path, log.state).close()
        assert (tmp_path / "nodes").read_bytes() == nodes


def test_torn_and_changed_leaves_are_found_on_opening(tmp_path: Path) -> None:
    log = EvidenceLog(tmp_path)
    append(log, leaves(0, 9))
    log.close()
    path = tmp_path / f"leaves-{0:020d}"
    good = path.read_bytes()
    for at in range(0, len(good), 37):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with pytest.raises(EvidenceError, match=r"leaves-0+ (is damaged at offset|or .*nodes was changed)"):
            EvidenceLog(tmp_path, log.state)
    path.write_bytes(good[:400] + bytes(len(good) - 400))
    with pytest.raises(EvidenceError, match="is damaged at offset"):
        EvidenceLog(tmp_path, log.state)


def test_a_leaf_changed_later_is_not_given_out(tmp_path: Path) -> None:
    log = EvidenceLog(tmp_path)
    places = append(log, leaves(0, 9))
    path = tmp_path / f"leaves-{0:020d}"
    data = bytearray(path.read_bytes())
    data[places[4].offset + 60] ^= 1
    path.write_bytes(data)
    assert log.read(places[:4]) == [sealed(i) for i in range(4)]
    with pytest.raises(EvidenceError, match=r"leaf 4 in .*was changed on disk"):
        log.read(places)
    log.close()


def test_an_old_database_takes_no_signed_leaf_away(tmp_path: Path) -> None:
    log = EvidenceLog(tmp_path)
    append(log, leaves(0, 3))
    old = log.state
    append(log, leaves(3, 3))
    log.checkpoints.append(checkpoint(log.state))
    log.close()
    before = files(tmp_path)
    for state in (NEW_LOG, old):
        with pytest.raises(EvidenceError, match="the database is older than this folder"):
            EvidenceLog(tmp_path, state)
        assert files(tmp_path) == before
    EvidenceLog(tmp_path, log.state).close()


def test_a_folder_of_another_tree_is_refused(tmp_path: Path) -> None:
    log = EvidenceLog(tmp_path / "log")
    append(log, leaves(0, 6))
    log.checkpoints.append(checkpoint(log.state))
    log.close()
    other = EvidenceLog(tmp_path / "other")
    append(other, leaves(1, 6))
    other.close()
    shutil.copy(tmp_path / "log/checkpoints", tmp_path / "other/checkpoints")
    with pytest.raises(EvidenceError, match="not the one its newest checkpoint was signed over"):
        EvidenceLog(tmp_path / "other", other.state)


def test_what_stays_is_provable_when_leaves_are_pruned(tmp_path: Path) -> None:
    log = EvidenceLog(tmp_path, segment_bytes=1)
    data: list[bytes] = []
    places: list[Place] = []
    for count in (3, 5, 2, 4):
        places += append(log, leaves(len(data), count))
        data += leaves(len(data), count)
        if len(data) == 3:
            log.checkpoints.append(checkpoint(log.state))
    assert [log.prunable(leaf) for leaf in (0, 2, 3, 7, 8, 9, 10, 13, 14, 99)] == [0, 0, 3, 3, 8, 8, 10, 10, 10, 10]
    log.prune(log.prunable(9))
    assert log.first == 8
    assert log.read(places) == [None] * 8 + [sealed(i) for i in range(8, 14)]
    assert log.bytes_kept == sum(map(len, data[8:]))
    log.close()
    log = EvidenceLog(tmp_path, log.state)
    assert log.first == 8
    for index in range(8, 14):
        assert included(leaf_hash(data[index]), index, log.head, log.inclusion(index, 14))
    for size in (3, 8, 9, 12, 14):  # a checkpoint, and trees that end behind what was pruned
        assert log.root(size) == head_of(data[:size]).root
        assert consistent(head_of(data[:size]), log.head, log.consistency(size, 14))
    with pytest.raises(EvidenceError, match="before leaf 8 was pruned"):
        log.inclusion(1, 14)
    with pytest.raises(EvidenceError, match="was pruned"):
        log.consistency(6, 14)
    append(log, leaves(14, 1))
    assert log.head == head_of([*data, *leaves(14, 1)])
    log.close()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    batches=st.lists(st.tuples(st.integers(1, 23), st.booleans(), st.booleans()), min_size=1, max_size=12),
    level=st.integers(0, 4),
)
def test_every_checkpoint_and_every_later_leaf_stays_provable_wherever_it_is_pruned(
    tmp_path_factory: pytest.TempPathFactory, batches: list[tuple[int, bool, bool]], level: int
) -> None:
    folder = tmp_path_factory.mktemp("log")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(evidence_log, "_KEPT_LEVEL", level)
        log = EvidenceLog(folder, segment_bytes=1)
        data: list[bytes] = []
        signed: list[int] = []
        for count, sign, prune in batches:
            append(log, leaves(len(data), count))
            data += leaves(len(data), count)
            if sign:
                log.checkpoints.append(checkpoint(log.state))
                signed.append(len(data))
            if prune:
                log.prune(log.prunable(len(data) // 2))
                log.close()
                log = EvidenceLog(folder, log.state, segment_bytes=1)
        heads = {size: head_of(data[:size]) for size in {*signed, *range(log.first, len(data) + 1)}}
        for index in range(log.first, len(data)):
            for size in range(index + 1, len(data) + 1):
                assert included(leaf_hash(data[index]), index, heads[size], log.inclusion(index, size))
        for old, head in heads.items():
            assert log.root(old) == head.root
            for new in (size for size in heads if size >= old):
                assert consistent(head, heads[new], log.consistency(old, new))
        log.close()


def test_nodes_of_pruned_leaves_are_given_back(tmp_path: Path) -> None:
    log = EvidenceLog(tmp_path, segment_bytes=1)
    for first in range(0, 40_000, 4000):
        hashes = [leaf_hash(bytes([first % 251, n % 251])) for n in range(4000)]
        data = leaf_of(sealed(0))
        log.extend([data] * 4000, b"".join(hashes))
        log.commit()
    size = (tmp_path / "nodes").stat().st_size
    log.prune(log.prunable(36_000))
    log.close()
    assert (tmp_path / "nodes").stat().st_size == size
    # One node in 1024 leaves, two peaks a level.
    assert (tmp_path / "nodes-kept").stat().st_size < 40 * 150
    if (tmp_path / "nodes").stat().st_blocks * 512 > size // 2:
        pytest.skip("this file system has no holes")
    assert (tmp_path / "nodes").stat().st_blocks * 512 < size // 5


def test_leaves_go_also_where_no_node_can_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = EvidenceLog(tmp_path, segment_bytes=1)
    data: list[bytes] = []
    for count in (3, 5, 2):
        append(log, leaves(len(data), count))
        data += leaves(len(data), count)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(KeptNodes, "extend", full)
        log.prune(3)
    assert log.first == 3
    assert included(leaf_hash(data[1]), 1, log.head, log.inclusion(1, 10))  # nodes stayed
    log.prune(8)
    assert log.first == 8
    with pytest.raises(EvidenceError, match="before leaf 8 was pruned"):
        log.inclusion(1, 10)
    log.close()


def test_an_older_database_is_refused_where_leaves_were_pruned(tmp_path: Path) -> None:
    log = EvidenceLog(tmp_path, segment_bytes=1)
    append(log, leaves(0, 3))
    append(log, leaves(3, 5))
    early = log.state
    append(log, leaves(8, 2))
    log.prune(8)
    log.close()
    before = files(tmp_path)
    with pytest.raises(EvidenceError, match="older than this folder"):
        EvidenceLog(tmp_path, early)
    assert files(tmp_path) == before


def test_sizes_of_checkpoints_are_found_from_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence_log, "_SCAN_BYTES", 300)
    kept = CheckpointFile(tmp_path)
    for size in range(1, 60):
        kept.append(checkpoint(LogState(size, bytes(32), 0, 0), "log", *(["w"] * (size % 3))))
    assert kept.sizes(0) == list(range(1, 60))
    kept.forget_sizes(40)
    assert kept.sizes(0) == list(range(40, 60))
    kept.close()
    again = CheckpointFile(tmp_path)
    assert sorted(set(again.sizes(0))) == list(range(1, 60))
    again.close()
    late = CheckpointFile(tmp_path, 50)
    assert set(range(50, 60)) <= set(late.sizes(0)) <= set(range(40, 60))
    late.close()


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    steps=st.lists(st.tuples(st.sampled_from(["commit", "rollback", "die"]), st.integers(0, 9)), max_size=8),
    segment_bytes=st.integers(1, 900),
)
def test_any_order_of_events_keeps_what_was_committed(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]], segment_bytes: int
) -> None:
    folder = tmp_path_factory.mktemp("log")
    log = EvidenceLog(folder, segment_bytes=segment_bytes)
    data: list[bytes] = []
    places: list[Place] = []
    for event, count in steps:
        more = leaves(len(data), count)
        found, _ = log.append(more)
        if event == "commit":
            log.commit()
            data += more
            places += found
        elif event == "rollback":
            log.rollback()
        else:
            log.close()
            log = EvidenceLog(folder, log.state, segment_bytes=segment_bytes)
        assert log.head == head_of(data)
        assert [leaf_of(found) for found in log.read(places) if found] == data
    log.close()


# ---- checkpoints


def test_checkpoints_are_read_again_and_the_newest_is_found(tmp_path: Path) -> None:
    file = CheckpointFile(tmp_path)
    assert (file.newest, file.newest_head()) == (None, EMPTY)
    notes = [checkpoint(LogState(size, bytes([size]) * 32, 0, 0), "log", "witness") for size in (3, 4, 9)]
    for note in notes:
        file.append(note)
        assert file.newest == note
    file.close()
    again = CheckpointFile(tmp_path)
    assert again.newest == notes[-1]
    assert again.newest_head() == (9, bytes([9]) * 32)
    again.append(notes[0])  # it gained a cosignature late
    assert again.newest == notes[-1]
    again.close()
    again = CheckpointFile(tmp_path)
    assert again.newest == notes[-1]
    again.close()
    assert list(LogFiles(tmp_path).checkpoints()) == [note.render() for note in [*notes, notes[0]]]


def test_the_newest_is_found_at_the_end_of_a_long_file(tmp_path: Path) -> None:
    whole = b"".join(checkpoint(LogState(size, bytes(32), 0, 0)).render() + b"\n" for size in range(3000))
    assert len(whole) > 300_000
    for cut in range(0, 320, 3):  # wherever the part that is read begins
        (tmp_path / "checkpoints").write_bytes(whole[cut:])
        file = CheckpointFile(tmp_path)
        assert file.newest_head().size == 2999
        file.close()


def test_a_torn_checkpoint_is_cut_off(tmp_path: Path) -> None:
    first, second = (checkpoint(LogState(size, bytes(32), 0, 0)) for size in (3, 4))
    whole = first.render() + b"\n" + second.render() + b"\n"
    one = len(first.render()) + 1
    path = tmp_path / "checkpoints"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        file = CheckpointFile(tmp_path)
        assert file.newest == (first if length >= one else None)
        assert path.stat().st_size == (one if length >= one else 0)
        file.append(second)
        file.close()
        assert path.read_bytes() == whole[: one if length >= one else 0] + whole[one:]


def test_a_checkpoint_that_does_not_fit_is_not_kept(tmp_path: Path) -> None:
    file = CheckpointFile(tmp_path)
    note = checkpoint(NEW_LOG)
    file.append(note)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(note.render()) + 20, hard))
    try:
        with pytest.raises(EvidenceError, match="free space"):
            file.append(checkpoint(LogState(3, bytes(32), 0, 0)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert file.newest == note
    file.close()
    assert (tmp_path / "checkpoints").read_bytes() == note.render() + b"\n"


@pytest.mark.parametrize("data", [b"garbage", b"a\n\nb\n\n", "a\n\n— b\n\n".encode()])
def test_a_file_of_something_else(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "checkpoints").write_bytes(data)
    with pytest.raises(EvidenceError, match="checkpoints"):
        list(map(_parsed, LogFiles(tmp_path).checkpoints()))


def _parsed(data: bytes) -> Note:
    from mvps.trust.note import NoteError, parse_note

    try:
        return parse_note(data)
    except NoteError as error:
        raise EvidenceError(f"checkpoints: {error}") from None


# ---- as an auditor reads it


def test_segments_are_split_without_an_index(tmp_path: Path) -> None:
    big = [leaf_of(sealed(i, os.urandom(300_000 if i % 2 else 11))) for i in range(9)]
    log = EvidenceLog(tmp_path)
    places = append(log, big)
    log.close()
    files = LogFiles(tmp_path)
    ((path, first),) = files.segments
    assert first == 0
    found = list(files.leaves(path))
    assert [offset for offset, _ in found] == [place.offset for place in places]
    assert [leaf_of(each) for _, each in found] == big
    assert files.node(0, 3) == leaf_hash(big[3])
    with pytest.raises(EvidenceError, match=r"nodes ends before offset"):
        files.node(0, 9)


def test_a_cut_segment_says_where(tmp_path: Path) -> None:
    data = b"".join(leaves(0, 5))
    read: Callable[[int, int], bytes] = lambda size, offset: data[offset : offset + size]  # noqa: E731
    for end in range(len(data)):
        try:
            complete = list(split_leaves(read, end))
        except EvidenceError as error:
            assert "at offset" in str(error)  # noqa: PT017
        else:
            assert end == sum(each.size for _, each in complete)


def test_an_empty_folder_is_no_log(tmp_path: Path) -> None:
    with pytest.raises(EvidenceError, match="is no evidence log"):
        LogFiles(tmp_path)
    with pytest.raises(EvidenceError, match="cannot read"):
        LogFiles(tmp_path / "absent")
    with pytest.raises(EvidenceError, match=r"does .* exist"):
        EvidenceLog(tmp_path / "absent/log")


def test_what_was_written_long_ago_is_not_kept_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = 1 << 20
    monkeypatch.setattr("mvps.trust.evidence_log._CACHED_BYTES", cached)
    log = EvidenceLog(tmp_path)
    places = append(log, [leaf_of(sealed(n, bytes([n % 251]) * 8000)) for n in range(32)])
    while log.state.end < 12 * cached:
        append(log, [leaf_of(sealed(n, bytes([n % 251]) * 8000)) for n in range(32)])
    with next(tmp_path.glob("leaves-*")).open("rb") as file:

        def in_memory(offset: int) -> bool:
            try:
                return os.preadv(file.fileno(), [bytearray(1)], offset, os.RWF_NOWAIT) == 1
            except BlockingIOError:
                return False
            except OSError:
                pytest.skip("this file system cannot say what is in memory")

        assert in_memory(log.state.end - 1)
        assert in_memory(log.state.end - cached)
        assert not in_memory(0)
        assert not in_memory(log.state.end // 2)
    assert log.read([places[0]])[0] is not None
    log.close()
