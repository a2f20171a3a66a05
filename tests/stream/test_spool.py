# SPDX-License-Identifier: Apache-2.0
"""The spool on real files: killed writers, torn and flipped octets, full and read-only disks."""

from __future__ import annotations

import os
import resource
import signal
import stat
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from disks import fill, small_disk
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_samples import new_host

import mvps
from mvps.stream import spool as module
from mvps.stream.spool import Fate, Slot, Spool, SpoolError, Stored, sync
from mvps.trust.limits import MAX_BODY
from mvps.trust.seal import Lane, Sealed, parse_header

HOST = new_host()
MIB = 1 << 20
Open = Callable[..., Spool]

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts a small disk, or gives a file away")


@pytest.fixture
def open_spool(tmp_path: Path) -> Iterator[Open]:
    opened: list[Spool] = []

    def open_spool(
        path: Path | None = None, *, max_bytes: int = 16 * MIB, max_age_s: float = 1e9, **more: object
    ) -> Spool:
        opened.append(Spool(path or tmp_path / "spool", max_bytes=max_bytes, max_age_s=max_age_s, **more))  # type: ignore[arg-type]
        return opened[-1]

    yield open_spool
    for one in opened:
        one.close()


def contents(spool: Spool) -> list[Stored]:
    """Everything unsettled, oldest first; what does not load any more is left out."""
    found = [spool.load(slot) for slot in spool.hold(10**6)]
    return [stored for stored in found if stored is not None]


def seal(size: int = 100, **more: object) -> Sealed:
    return HOST.seal(os.urandom(size), **more)  # type: ignore[arg-type]


def put(spool: Spool, sealed: Sealed, **more: bool) -> Slot:
    slot = spool.append(sealed, **more)
    assert slot is not None, spool.error
    return slot


def test_what_was_put_in_is_found_again(open_spool: Open) -> None:
    spool = open_spool()
    sealed = [seal(size) for size in (0, 1, 5000, MAX_BODY)]
    slots = [put(spool, one) for one in sealed]
    assert [spool.load(slot) for slot in slots] == [Stored(one, Fate.WAITING, None) for one in sealed]
    assert spool.count == 4
    assert spool.hold(9) == []  # in the hands of whoever put them there
    spool.close()
    again = open_spool()
    assert again.recover() == 4
    assert [stored.sealed for stored in contents(again)] == sealed
    assert again.take_losses() == (Counter(), {})


@needs_root
def test_nothing_is_readable_for_others_and_there_is_one_owner(open_spool: Open, tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir(mode=0o755)
    spool = open_spool()
    put(spool, seal())
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (spool.path, *spool.path.iterdir())}
    assert modes == {"spool": 0o700, "owner.lock": 0o600, "segment-00000000000000000000": 0o600}
    with pytest.raises(SpoolError, match="another agent uses"):
        open_spool()
    os.chown(spool.path, 1, 1)
    with pytest.raises(SpoolError, match="belongs to another user"):
        open_spool()
    with pytest.raises(SpoolError, match="create it"):
        open_spool(tmp_path / "absent/spool")


def test_what_is_put_in_while_an_old_spool_is_read_comes_behind_it(open_spool: Open) -> None:
    spool = open_spool()
    old = [put(spool, seal(MAX_BODY)) for _ in range(3)]
    before = [spool.load(slot) for slot in old]
    spool.close()
    again = open_spool()
    steps = again.recovering()
    assert next(steps) == 1
    fresh = put(again, seal())
    assert sum(steps) == 2
    assert again.count == 4
    again.release(fresh)
    found = again.hold(9)
    assert [again.load(slot) for slot in found[:3]] == before
    assert found[3] == fresh
    assert again.recover() == 0  # nothing twice


def test_fates_survive(open_spool: Open) -> None:
    spool = open_spool()
    slots = [put(spool, seal(), sent=n == 1) for n in range(5)]
    assert spool.mark_sent(slots[2])
    assert spool.copy(slots[3], 7, 1 << 40)
    spool.settle(slots[4])
    spool.close()
    again = open_spool()
    assert again.recover() == 4
    assert [(stored.fate, stored.copy) for stored in contents(again)] == [
        (Fate.WAITING, None),
        (Fate.SENT, None),
        (Fate.SENT, None),
        (Fate.SENT, (7, 1 << 40)),
    ]


def test_a_note_that_tore_is_no_note(open_spool: Open) -> None:
    """The copy was not sent yet, or its note would have been whole: the original is sent as it is."""
    spool = open_spool()
    slot = put(spool, seal())
    assert spool.copy(slot, 7, 1 << 40)
    (path,) = spool.path.glob("segment-*")
    at = module._SEGMENT.size + module._FIXED.size + 4
    for flipped in range(at, at + 20):
        content = bytearray(path.read_bytes())
        content[flipped] ^= 1
        spool.close()
        path.write_bytes(content)
        spool = open_spool()
        spool.recover()
        assert [(stored.fate, stored.copy) for stored in contents(spool)] == [(Fate.SENT, None)]
        content[flipped] ^= 1
        path.write_bytes(content)


def test_after_a_reboot_only_what_is_done_is_believed(open_spool: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = open_spool()
    put(spool, seal())
    spool.settle(put(spool, seal()))
    spool.close()
    monkeypatch.setattr(module, "_boot_id", lambda: bytes(16))
    again = open_spool()
    assert again.recover() == 1
    assert [stored.fate for stored in contents(again)] == [Fate.SENT]


def test_a_segment_goes_with_its_last_record(open_spool: Open) -> None:
    spool = open_spool()
    slots = [put(spool, seal(MAX_BODY)) for _ in range(10)]
    files = lambda: sorted(path.name for path in spool.path.glob("segment-*"))  # noqa: E731
    assert len(files()) == 10
    for slot in slots[:5]:
        spool.settle(slot)
        spool.settle(slot)  # once is enough, twice is no harm
    assert (len(files()), spool.count) == (5, 5)
    for slot in slots[5:]:
        spool.settle(slot)
    assert (files(), spool.count, spool.bytes) == ([], 0, 0)
    assert put(spool, seal())


def test_while_everything_is_answered_the_spool_stays_small(open_spool: Open) -> None:
    spool = open_spool()
    for _ in range(2000):
        spool.settle(put(spool, seal(2000)))
        assert spool.bytes < module._FRESH_BYTES + 4000
    assert len(list(spool.path.glob("segment-*"))) <= 1


def test_the_oldest_go_first_and_are_counted(open_spool: Open) -> None:
    spool = open_spool(max_bytes=MIB)
    sealed = [seal(5000) for _ in range(1000)]
    held = put(spool, sealed[0])
    for one in sealed[1:]:
        spool.release(put(spool, one))
        assert spool.bytes <= MIB
    dropped, orphans = spool.take_losses()
    left = [stored.sealed for stored in contents(spool)]
    assert left == sealed[-len(left) :]
    assert len(left) > 180  # of some 200 that fit: a segment is a small part
    assert orphans == {held: "spool_full"}
    assert dropped == {"spool_full": 1000 - len(left) - 1}
    # A place that is gone is no place, whatever is said of it later.
    spool.settle(held)
    spool.release(held)
    assert spool.mark_sent(held)
    assert spool.count == len(left)


def test_what_is_too_old_goes(open_spool: Open) -> None:
    now = [10**18]
    spool = open_spool(max_bytes=4 * MIB, max_age_s=100, clock=lambda: now[0])
    for n in range(1000):
        spool.release(put(spool, seal(1000, clock=lambda n=n: 10**18 + n * 10**9)))
    now[0] += 600 * 10**9
    spool.expire()
    dropped, _ = spool.take_losses()
    assert set(dropped) == {"spool_age"}
    assert 400 < dropped["spool_age"] <= 500  # whole segments; the others when they are looked at
    assert spool.count == 1000 - dropped["spool_age"]
    oldest = spool.load(spool.hold(1)[0])
    assert oldest is not None
    assert spool.too_old(parse_header(oldest.sealed.header).time_ns)
    assert not spool.too_old(now[0] - 99 * 10**9)


def test_hold_release_and_park(open_spool: Open) -> None:
    spool = open_spool()
    slots = [put(spool, seal()) for _ in range(5)]
    for slot in slots:
        spool.release(slot)
    assert spool.has_waiting()
    assert spool.hold(2) == slots[:2]
    spool.release(slots[0], park=True)
    spool.release(slots[1])
    assert spool.hold(9) == slots[1:]
    assert not spool.has_waiting()
    spool.unpark()
    assert spool.hold(9) == slots[:1]


# ---- crashes

WRITER = """
import os, signal, sys
from pathlib import Path
from mvps.stream.spool import Spool
from mvps.trust.seal import Sealed
spool = Spool(Path(sys.argv[1]), max_bytes=1 << 26, max_age_s=1e9)
header = bytes.fromhex(sys.argv[2])
for n in range(int(sys.argv[3])):
    slot = spool.append(Sealed(header, b"%08d" % n, bytes(32)))
    if n % 3 == 0:
        spool.settle(slot)
    elif n % 3 == 1:
        spool.mark_sent(slot)
print("ready", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_nothing_is_lost_when_the_writer_is_killed(open_spool: Open, tmp_path: Path) -> None:
    header = HOST.seal(b"%08d" % 0).header
    command = [sys.executable, "-c", WRITER, str(tmp_path / "spool"), header.hex(), "3000"]
    environment = os.environ | {"PYTHONPATH": str(Path(mvps.__file__).parent.parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "ready\n"), done.stderr
    spool = open_spool()
    assert spool.recover() == 2000
    found = {int(stored.sealed.body): stored.fate for stored in contents(spool)}
    assert found == {n: Fate(n % 3 == 1) for n in range(3000) if n % 3}


def written(folder: Path, count: int = 4) -> tuple[bytes, list[Sealed], str]:
    """One segment: its octets, what is in it, and its name."""
    spool = Spool(folder, max_bytes=MIB, max_age_s=1e9)
    sealed = [HOST.seal(os.urandom(40)) for _ in range(count)]
    for one in sealed:
        put(spool, one)
    spool.close()
    (path,) = folder.glob("segment-*")
    return path.read_bytes(), sealed, path.name


def recovered(folder: Path, content: bytes, name: str) -> tuple[list[Sealed], Counter[str]]:
    """What a spool makes of these octets, and that its accounts agree with it."""
    (folder / name).write_bytes(content)
    spool = Spool(folder, max_bytes=MIB, max_age_s=1e9)
    try:
        found = spool.recover()
        dropped, _ = spool.take_losses()
        assert found == spool.count + dropped.total()
        return [stored.sealed for stored in contents(spool)], dropped
    finally:
        spool.close()


def test_wherever_the_last_write_tore_only_that_record_is_lost(tmp_path: Path) -> None:
    content, sealed, name = written(tmp_path / "spool")
    last = len(content) - module._CONTENT_AT - sealed[-1].size
    for end in range(last, len(content) + 1):
        found, dropped = recovered(tmp_path / "spool", content[:end], name)
        assert found == sealed[: 4 if end == len(content) else 3]
        assert dropped == ({"torn": 1} if last < end < len(content) else {})


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_flipped_bit_loses_one_record_at_most_and_changes_none(data: st.DataObject) -> None:
    folder = new_folder()
    content, sealed, name = written(folder)
    at = data.draw(st.integers(0, len(content) - 1))
    flipped = bytearray(content)
    flipped[at] ^= 1 << data.draw(st.integers(0, 7))
    found, dropped = recovered(folder, bytes(flipped), name)
    assert set(found) <= set(sealed)
    assert len(found) >= 3
    assert dropped.total() == 4 - len(found)
    assert set(dropped) <= {"damaged", "torn"}


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_whatever_a_segment_holds_nothing_false_comes_out(data: st.DataObject) -> None:
    """Pieces cut out, doubled, zeroed and garbage put in between."""
    folder = new_folder()
    content, sealed, name = written(folder, 6)
    for _ in range(data.draw(st.integers(1, 3))):
        a, b = sorted(data.draw(st.tuples(st.integers(0, len(content)), st.integers(0, len(content)))))
        filler = data.draw(st.sampled_from(["cut", "double", "zero", "garbage"]))
        middle = content[a:b]
        middle = {"cut": b"", "double": middle * 2, "zero": bytes(b - a), "garbage": data.draw(st.binary(max_size=64))}[
            filler
        ]
        content = content[:a] + middle + content[b:]
    found, _ = recovered(folder, content, name)
    assert set(found) <= set(sealed)


def new_folder() -> Path:
    import atexit
    import shutil
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="mvps-spool-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder / "spool"


def test_a_record_that_goes_bad_later_is_given_up(open_spool: Open) -> None:
    spool = open_spool()
    bad, good = put(spool, seal()), put(spool, seal())
    (path,) = spool.path.glob("segment-*")
    with path.open("r+b") as file:
        file.seek(module._SEGMENT.size + module._CONTENT_AT + 60)
        file.write(b"\xff\xff")
    assert spool.load(bad) is None
    assert spool.load(good) is not None
    assert (spool.take_losses()[0], spool.count) == ({"damaged": 1}, 1)


def test_foreign_files_are_left_alone(open_spool: Open) -> None:
    spool = open_spool()
    put(spool, seal())
    (spool.path / "notes").write_text("mine")
    with (spool.path / "segment-00000000000000000007").open("wb") as file:
        file.truncate(64 * MIB)
    (spool.path / "segment-00000000000000000008").symlink_to("/etc/hostname")
    spool.close()
    again = open_spool()
    assert again.recover() == 1
    assert "Too many levels" in again.error or "move it away" in again.error
    assert (spool.path / "notes").exists()
    assert put(again, seal())


def test_a_crash_loop_does_not_use_up_the_file_descriptors(open_spool: Open) -> None:
    total = 3 * module._OPEN_FILES
    for _ in range(total):
        spool = open_spool()
        spool.recover()
        put(spool, seal())
        spool.close()
    spool = open_spool()
    before = len(os.listdir("/proc/self/fd"))
    assert spool.recover() == total
    assert len(contents(spool)) == total
    assert len(os.listdir("/proc/self/fd")) <= before + module._OPEN_FILES


# ---- disks


@needs_root
def test_a_full_disk_refuses_and_recovers_by_itself(open_spool: Open, tmp_path: Path) -> None:
    now = [0.0]
    with small_disk(tmp_path, 256) as place:
        spool = open_spool(place / "spool", max_bytes=2 * MIB, steady=lambda: now[0])
        slots: list[Slot] = []
        sealed: list[Sealed] = []
        while (slot := spool.append(one := seal(3001))) is not None:
            slots.append(slot)
            sealed.append(one)
        assert len(slots) > 50
        assert "No space left" in spool.error
        # Notes go to blocks that exist: a full disk is drained.
        assert spool.mark_sent(slots[0])
        assert spool.copy(slots[1], 1, 1 << 33)
        for slot in slots[:30]:
            spool.settle(slot)
        assert spool.append(seal()) is None  # not tried again before a pause
        now[0] += module._FIRST_RETRY_S
        last = seal(3001)
        put(spool, last)
        assert spool.error == ""
        spool.close()
        again = open_spool(place / "spool")
        assert again.recover() == len(slots) - 30 + 1
        assert [stored.sealed for stored in contents(again)] == [*sealed[30:], last]
        assert again.take_losses() == (Counter(), {})
        again.close()


@needs_root
def test_a_disk_that_others_filled(open_spool: Open, tmp_path: Path) -> None:
    now = [0.0]
    with small_disk(tmp_path, 256) as place:
        spool = open_spool(place / "spool", steady=lambda: now[0])
        ballast = fill(place)
        assert spool.append(seal(5000)) is None
        assert list((place / "spool").glob("segment-*")) == []
        ballast.unlink()
        now[0] += module._FIRST_RETRY_S
        assert spool.load(put(spool, seal(5000))) is not None
        spool.close()


@pytest.mark.parametrize("room", range(0, 400, 37))
def test_a_write_that_is_cut_short_leaves_nothing(open_spool: Open, room: int) -> None:
    """RLIMIT_FSIZE cuts a write at any octet, as no file system does it so precisely."""
    spool = open_spool(steady=lambda: 0.0)
    first = seal(200)
    put(spool, first)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (spool.bytes + room, hard))
    try:
        assert spool.append(seal(400)) is None
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    spool._retry_at = 0.0
    second = seal(200)
    put(spool, second)
    spool.close()
    again = open_spool()
    assert again.recover() == 2
    assert [stored.sealed for stored in contents(again)] == [first, second]
    assert again.take_losses()[0] == {}


def test_a_disk_that_takes_no_notes_says_so(open_spool: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake in one place only: a read-only file system cannot be had while a file is open for writing."""
    spool = open_spool()
    slot = put(spool, seal())

    def refuse(*_: object) -> int:
        raise OSError(30, os.strerror(30))

    monkeypatch.setattr(os, "pwrite", refuse)
    assert not spool.mark_sent(slot)
    assert not spool.copy(slot, 1, 1)
    assert "Read-only" in spool.error
    spool.settle(slot)  # counted all the same; after a restart it would be sent and answered as a duplicate
    assert spool.count == 0


def test_sync_takes_what_waits_and_only_once(open_spool: Open) -> None:
    spool = open_spool()
    assert spool.unsynced() == []
    slot = put(spool, seal())
    descriptors = spool.unsynced()
    assert len(descriptors) == 2  # the segment and its folder
    failed: list[str] = []
    thread = threading.Thread(target=lambda: failed.append(sync(descriptors)))
    thread.start()
    thread.join()
    assert failed == [""]
    assert spool.unsynced() == []
    spool.settle(slot)
    assert spool.unsynced() == []  # nothing waits
    assert sync([os.open("/dev/null", os.O_RDONLY)]) != ""


def test_lanes_other_than_live_are_kept_as_they_are(open_spool: Open) -> None:
    spool = open_spool()
    sealed = seal(lane=Lane.BACKFILL)
    put(spool, sealed)
    spool.close()
    again = open_spool()
    again.recover()
    assert [stored.sealed for stored in contents(again)] == [sealed]
