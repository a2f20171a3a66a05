# SPDX-License-Identifier: Apache-2.0
"""Sealed snapshots on disk, so that neither a killed agent nor a long outage loses them.

The spool is a folder (mode 0700) of segment files (0600). A segment is a header and records, appended with one write
each and never moved. Big-endian (ours)::

    segment   8  magic "MVPSPL01"   16  boot id of the kernel that wrote it   4  CRC-32 of both   4  zero
    record    4  magic   4  length n   4  CRC-32 of length and content           written once
              4  fate    8  epoch      8  counter   4  CRC-32 of the last two    rewritten in place
              n  header || body || tag, exactly as sealed

    fate      "WAIT" never sent, "SENT" may have been sent, "DONE" answered or given up. Anything else counts as "SENT"
    epoch, counter   of the copy for the backfill lane, once there is one; its bytes follow from them

So every change of a record after its first write goes to blocks that exist: a full disk can still be drained. A record
that a crash tore, or a bit that flipped, is found by its checksum, counted (``torn``, ``damaged``) and skipped to the
next record's magic.

What is in the page cache survives ``kill -9``; nothing is synced when it is written. :meth:`Spool.unsynced` is for a
background thread, and bounds what a loss of power takes. After one, "WAIT" may stand where "SENT" was meant; that is
why segments of another boot are believed only in "DONE".

When the spool would exceed its size the oldest segment goes, with all records in it (``spool_full``). Records older
than its age go when they are looked at, and whole segments of such (``spool_age``).
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
import time
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Final, NamedTuple

from mvps.trust.durable import claim
from mvps.trust.limits import MAX_BODY, SIGNATURE_BYTES
from mvps.trust.seal import FIXED_HEADER_BYTES, MAX_HEADER_BYTES, Sealed, SealError, SealHeader, parse_header

_MAGIC: Final = b"MVPSPL01"
_SEGMENT: Final = struct.Struct(">8s16sI4x")
_RECORD_MAGIC: Final = b"\xabMR1"
_FIXED: Final = struct.Struct(">4sII")
_FATE: Final = struct.Struct(">4sQQI")
_COPY: Final = struct.Struct(">QQ")
_LENGTH: Final = struct.Struct(">I")
_CONTENT_AT: Final = _FIXED.size + _FATE.size
_NO_COPY: Final = _COPY.pack(0, 0) + _LENGTH.pack(0)
_MAX_CONTENT: Final = MAX_HEADER_BYTES + MAX_BODY + SIGNATURE_BYTES
_LARGEST_SEGMENT: Final = 4 << 20
# A crash loop leaves many small segments; this many are kept open.
_OPEN_FILES: Final = 16
# A segment ends at the first record that would exceed its size, so none of ours is larger than this.
_LARGEST_FILE: Final = _LARGEST_SEGMENT + _CONTENT_AT + _MAX_CONTENT
_SEGMENTS: Final = 64  # at most, so that the oldest one is a small part of the whole
# An active segment in which everything is answered is begun anew at this size: its pages need not reach the disk.
_FRESH_BYTES: Final = 256 * 1024
_NAME: Final = re.compile(r"segment-([0-9]{20})")
_FIRST_RETRY_S: Final = 1.0
_LONGEST_RETRY_S: Final = 30.0
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class SpoolError(Exception):
    """The spool cannot be used at all. The message says what to do."""


class Slot(NamedTuple):
    """Where a record is: number of its segment, and its own there."""

    segment: int
    number: int


class Fate(IntEnum):
    """What is known of a record."""

    WAITING = 0
    SENT = 1
    DONE = 2


# Flags of a record in memory: its fate, and
_FATE_BITS: Final = 3
_HELD: Final = 4  # in the sender's hands
_PARKED: Final = 8  # not to be offered before unpark()


_WORDS: Final = {Fate.WAITING: b"WAIT", Fate.SENT: b"SENT", Fate.DONE: b"DONE"}
_FATES: Final = {word: fate for fate, word in _WORDS.items()}


class Stored(NamedTuple):
    """A record as it lies on disk.

    copy: (epoch, counter) of the backfill copy that stands in its place; None as long as there is none.
    """

    sealed: Sealed
    fate: Fate
    copy: tuple[int, int] | None


@dataclass(slots=True)
class _Segment:
    number: int
    path: Path
    descriptor: int  # -1 while it is closed
    end: int = _SEGMENT.size
    # Of this boot: what it says of "WAIT" is true.
    trusted: bool = True
    offsets: array[int] = field(default_factory=lambda: array("I"))
    flags: bytearray = field(default_factory=bytearray)
    unsettled: int = 0
    newest_ns: int = 0
    # No record before this one waits.
    cursor: int = 0
    dirty: bool = False


class Spool:
    """One agent's spool. Construction claims the folder; :meth:`recover` then reads what is in it.

    path: folder, made if it is missing; its parent must exist.
    max_bytes: of all segments together. max_age_s: since sealing.
    clock: wall clock in ns; steady: monotonic clock in seconds.

    Used by one thread, except :attr:`bytes` and :attr:`error`. After any call, :meth:`take_losses` names the records
    that were given up, by cause, and those that the sender holds and that have no place any more.
    Raises SpoolError, from the constructor only.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: int,
        max_age_s: float,
        clock: Callable[[], int] = time.time_ns,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path: Final = path
        self._max_bytes = max_bytes
        self._max_age_ns = int(max_age_s * 1e9)
        self._segment_bytes = min(max(max_bytes // _SEGMENTS, _CONTENT_AT), _LARGEST_SEGMENT)
        self._clock = clock
        self._steady = steady
        self._segments: dict[int, _Segment] = {}
        self._active: _Segment | None = None
        self._opened: list[_Segment] = []  # all that have a descriptor, least recently opened first
        self._next = 0
        self._retry_at = 0.0
        self._retry_s = _FIRST_RETRY_S
        self._dropped: Counter[str] = Counter()
        self._orphans: dict[Slot, str] = {}
        # Size of all segments.
        self.bytes = 0
        # "" or why the disk takes nothing at the moment.
        self.error = ""
        self._boot = _boot_id()
        self._lock = _own(path)

    # ---- opening

    def recover(self) -> int:
        """Read what an earlier process left; returns how many unsettled records were found.

        Damaged places count as found and dropped.
        """
        return sum(self.recovering())

    def recovering(self) -> Iterator[int]:
        """:meth:`recover` segment by segment; other calls may come in between, once it has begun."""
        try:
            names = sorted(name for name in os.listdir(self.path) if _NAME.fullmatch(name))
        except OSError as error:
            self.error = self._words(error, "read")
            return
        numbers = [int(name.removeprefix("segment-")) for name in names]
        self._next = max([self._next - 1, *numbers]) + 1
        for name, number in zip(names, numbers, strict=True):
            if number not in self._segments:
                yield self._take_over(name, number)
        self._make_room(0)
        yield 0

    def _take_over(self, name: str, number: int) -> int:
        try:
            segment = self._open(number, self.path / name)
            if segment is None:
                return 0
            damaged = self._scan(segment)
        except OSError as error:
            self.error = self._words(error, f"read {name} of")
            return 0
        # Before those that were begun meanwhile: the order of this dictionary is that of age.
        self._segments[number] = segment
        for newer in sorted(other for other in self._segments if other > number):
            self._segments[newer] = self._segments.pop(newer)
        self.bytes += segment.end
        self._dropped.update(damaged)
        if not segment.unsettled:
            self._remove(segment)
        return segment.unsettled + damaged.total()

    def _open(self, number: int, path: Path) -> _Segment | None:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        size = os.fstat(descriptor).st_size
        if size > _LARGEST_FILE:
            os.close(descriptor)
            self.error = f"{path} is no segment of this spool: move it away"
            return None
        segment = _Segment(number, path, descriptor, end=size)
        self._keep_open(segment)
        return segment

    def _scan(self, segment: _Segment) -> Counter[str]:
        """Index a segment's records; what was damaged, by cause."""
        damaged: Counter[str] = Counter()
        content = _read(self._descriptor(segment), 0, segment.end)
        if len(content) < _SEGMENT.size:
            return damaged  # begun and never written to
        magic, boot, checksum = _SEGMENT.unpack_from(content)
        segment.trusted = magic == _MAGIC and checksum == zlib.crc32(content[:24]) and boot == self._boot
        at = _SEGMENT.size
        while at < len(content):
            following, header = _parse(content, at)
            if header is None:
                # As far as the next record that holds, or the end: one place, however long.
                cause = "torn" if _is_torn(content, at) else "damaged"
                damaged[cause] += 1
                while following < len(content) and _parse(content, following)[1] is None:
                    following = _next_magic(content, following + 1)
            else:
                fate = _FATES.get(content[at + _FIXED.size : at + _FIXED.size + 4], Fate.SENT)
                if fate is Fate.WAITING and not segment.trusted:
                    fate = Fate.SENT
                segment.offsets.append(at)
                segment.flags.append(fate)
                if fate is not Fate.DONE:
                    segment.unsettled += 1
                    segment.newest_ns = max(segment.newest_ns, header.time_ns)
            at = following
        return damaged

    # ---- records

    def append(self, sealed: Sealed, *, sent: bool = False) -> Slot | None:
        """Put a snapshot on disk, in the sender's hands; None while the disk refuses (``error`` says why).

        sent: it may be on its way before this is called again.
        """
        if self._steady() < self._retry_at:
            return None
        size = _CONTENT_AT + sealed.size
        try:
            segment = self._segment_for(size)
            length = _LENGTH.pack(sealed.size)
            checksum = zlib.crc32(sealed.tag, zlib.crc32(sealed.body, zlib.crc32(sealed.header, zlib.crc32(length))))
            fate = Fate.SENT if sent else Fate.WAITING
            prefix = _FIXED.pack(_RECORD_MAGIC, sealed.size, checksum) + _WORDS[fate] + _NO_COPY
            try:
                written = os.pwritev(self._descriptor(segment), (prefix, *sealed), segment.end)
                if written != size:  # as a full disk answers when there was room for a part
                    raise OSError(28, os.strerror(28))
            except OSError:
                self._cut(segment)
                raise
        except OSError as error:
            self._fail(error, "write to")
            return None
        self._retry_s, self.error = _FIRST_RETRY_S, ""
        slot = Slot(segment.number, len(segment.offsets))
        segment.offsets.append(segment.end)
        segment.flags.append(fate | _HELD)
        segment.end += size
        segment.unsettled += 1
        segment.newest_ns = max(segment.newest_ns, parse_header(sealed.header).time_ns)
        segment.dirty = True
        self.bytes += size
        return slot

    def load(self, slot: Slot) -> Stored | None:
        """Read a record again. None if it is damaged by now: it is given up then."""
        segment = self._segments[slot.segment]
        at = segment.offsets[slot.number]
        try:
            prefix = _read(self._descriptor(segment), at, _CONTENT_AT)
            length = _FIXED.unpack_from(prefix)[1] if len(prefix) == _CONTENT_AT else 0
            content = prefix + _read(self._descriptor(segment), at + _CONTENT_AT, min(length, _MAX_CONTENT))
        except OSError as error:
            self.error = self._words(error, "read")
            content = b""
        header = _parse(content, 0)[1] if content else None
        if header is None:
            self.give_up(slot, "damaged")
            return None
        body_at = _CONTENT_AT + _header_bytes(header)
        sealed = Sealed(
            content[_CONTENT_AT:body_at],
            content[body_at : body_at + header.body_bytes],
            content[body_at + header.body_bytes :],
        )
        _, epoch, counter, checksum = _FATE.unpack_from(content, _FIXED.size)
        copied = counter > 0 and checksum == zlib.crc32(_COPY.pack(epoch, counter))
        fate = Fate(segment.flags[slot.number] & _FATE_BITS)
        return Stored(sealed, fate, (epoch, counter) if copied else None)

    def hold(self, limit: int) -> list[Slot]:
        """The oldest records that nobody holds, now held."""
        held: list[Slot] = []
        for segment in list(self._segments.values()):
            index = segment.cursor
            while index < len(segment.flags) and len(held) < limit:
                flags = segment.flags[index]
                if not flags & (_HELD | _PARKED) and flags & _FATE_BITS != Fate.DONE:
                    segment.flags[index] = flags | _HELD
                    held.append(Slot(segment.number, index))
                index += 1
            segment.cursor = index
            if len(held) >= limit:
                break
        return held

    def release(self, slot: Slot, *, park: bool = False) -> None:
        """The sender lets go of a record that is not settled. park: do not offer it again before :meth:`unpark`."""
        segment = self._segments.get(slot.segment)
        if segment is not None:
            flags = segment.flags[slot.number] & ~_HELD
            segment.flags[slot.number] = flags | _PARKED if park else flags
            if not park:
                segment.cursor = min(segment.cursor, slot.number)

    def unpark(self) -> None:
        """Offer parked records again."""
        for segment in self._segments.values():
            for index, flags in enumerate(segment.flags):
                if flags & _PARKED:
                    segment.flags[index] = flags & ~_PARKED
                    segment.cursor = min(segment.cursor, index)

    def mark_sent(self, slot: Slot) -> bool:
        """The record is about to be sent as it lies there. False, and it must not be sent, if that cannot be noted."""
        segment = self._segments.get(slot.segment)
        if segment is None or segment.flags[slot.number] & _FATE_BITS == Fate.SENT:
            return True
        return self._note(segment, slot.number, Fate.SENT, b"")

    def copy(self, slot: Slot, epoch_id: int, counter: int) -> bool:
        """The record is about to be sent as a backfill copy. False if that cannot be noted."""
        segment = self._segments.get(slot.segment)
        if segment is None:
            return True
        copy = _COPY.pack(epoch_id, counter)
        return self._note(segment, slot.number, Fate.SENT, copy + _LENGTH.pack(zlib.crc32(copy)))

    def settle(self, slot: Slot) -> None:
        """The record is answered, or given up and counted by the sender. Its segment goes with its last one."""
        segment = self._segments.get(slot.segment)
        if segment is None or segment.flags[slot.number] & _FATE_BITS == Fate.DONE:
            return
        # If the disk refuses, the snapshot is sent once more after a restart and answered as a duplicate.
        self._note(segment, slot.number, Fate.DONE, b"")
        segment.flags[slot.number] = Fate.DONE
        segment.unsettled -= 1
        if not segment.unsettled and (segment is not self._active or segment.end >= _FRESH_BYTES):
            self._remove(segment)

    def give_up(self, slot: Slot, cause: str) -> None:
        """Drop one record and count it."""
        self._dropped[cause] += 1
        self.settle(slot)

    def expire(self) -> None:
        """Give up segments whose newest record is too old, except where the sender holds records of them."""
        oldest_ns = self._clock() - self._max_age_ns
        for segment in list(self._segments.values()):
            if segment.unsettled and segment.newest_ns < oldest_ns:
                self._drop(segment, "spool_age")

    def too_old(self, sealed_ns: int) -> bool:
        """Whether something sealed then has reached the spool's age."""
        return sealed_ns < self._clock() - self._max_age_ns

    def take_losses(self) -> tuple[Counter[str], dict[Slot, str]]:
        """What was dropped since the last call, by cause, and held records that lost their place, with the cause."""
        losses = self._dropped, self._orphans
        self._dropped, self._orphans = Counter(), {}
        return losses

    @property
    def count(self) -> int:
        """Unsettled records."""
        return sum(segment.unsettled for segment in self._segments.values())

    def has_waiting(self) -> bool:
        """Whether :meth:`hold` would find any."""
        return any(
            not flags & (_HELD | _PARKED) and flags & _FATE_BITS != Fate.DONE
            for segment in self._segments.values()
            for flags in segment.flags[segment.cursor :]
        )

    # ---- disk

    def unsynced(self) -> list[int]:
        """Descriptors to hand to :func:`sync` in another thread; empty when nothing that waits is unsynced."""
        found: list[int] = []
        for segment in self._segments.values():
            if segment.dirty and segment.unsettled:
                segment.dirty = False
                with contextlib.suppress(OSError):
                    found.append(os.dup(self._descriptor(segment)))
        if found:
            with contextlib.suppress(OSError):
                found.append(os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        return found

    def close(self) -> None:
        """Let go of the folder. Idempotent."""
        for segment in list(self._segments.values()):
            if segment.unsettled:
                self._shut(segment)
            else:
                self._remove(segment)
        self._segments.clear()
        self._active = None
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _descriptor(self, segment: _Segment) -> int:
        if segment.descriptor < 0:
            segment.descriptor = os.open(segment.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            self._keep_open(segment)
        return segment.descriptor

    def _keep_open(self, segment: _Segment) -> None:
        self._opened.append(segment)
        for other in self._opened[:-_OPEN_FILES]:
            if other is not self._active:
                self._shut(other)

    def _shut(self, segment: _Segment) -> None:
        if segment.descriptor >= 0:
            os.close(segment.descriptor)
            segment.descriptor = -1
            self._opened.remove(segment)

    def _segment_for(self, size: int) -> _Segment:
        """The segment the next record goes to. OSError if the disk refuses a new one."""
        segment = self._active
        if segment is not None and segment.end + size > self._segment_bytes and segment.offsets:
            if not segment.unsettled:
                self._remove(segment)
            self._active = segment = None
        self._make_room(size)
        if segment is not None and segment is self._active:
            return segment
        path = self.path / f"segment-{self._next:020d}"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        start = _MAGIC + self._boot
        try:
            if os.pwrite(descriptor, _SEGMENT.pack(_MAGIC, self._boot, zlib.crc32(start)), 0) != _SEGMENT.size:
                raise OSError(28, os.strerror(28))
        except OSError:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            raise
        segment = self._active = self._segments[self._next] = _Segment(self._next, path, descriptor)
        self._keep_open(segment)
        self._next += 1
        self.bytes += segment.end
        return segment

    def _make_room(self, size: int) -> None:
        while self._segments and self.bytes + size > self._max_bytes:
            self._drop(next(iter(self._segments.values())), "spool_full")

    def _drop(self, segment: _Segment, cause: str) -> None:
        for index, flags in enumerate(segment.flags):
            if flags & _FATE_BITS != Fate.DONE:
                if flags & _HELD:
                    self._orphans[Slot(segment.number, index)] = cause
                else:
                    self._dropped[cause] += 1
        self._remove(segment)

    def _remove(self, segment: _Segment) -> None:
        with contextlib.suppress(OSError):  # a disk that refuses to forget: its records say DONE
            segment.path.unlink(missing_ok=True)
        self._shut(segment)
        self._segments.pop(segment.number, None)
        self.bytes -= segment.end
        if segment is self._active:
            self._active = None

    def _cut(self, segment: _Segment) -> None:
        """Take back a record that was written in part. Where even that fails, the next one begins a new segment."""
        try:
            os.ftruncate(self._descriptor(segment), segment.end)
        except OSError:
            self._active = None

    def _note(self, segment: _Segment, index: int, fate: Fate, copy: bytes) -> bool:
        try:
            os.pwrite(self._descriptor(segment), _WORDS[fate] + copy, segment.offsets[index] + _FIXED.size)
        except OSError as error:
            self._fail(error, "write to")
            return False
        segment.flags[index] = segment.flags[index] & ~_FATE_BITS | fate
        segment.dirty = True
        return True

    def _fail(self, error: OSError, action: str) -> None:
        self.error = self._words(error, action)
        self._retry_at = self._steady() + self._retry_s
        self._retry_s = min(2 * self._retry_s, _LONGEST_RETRY_S)

    def _words(self, error: OSError, action: str) -> str:
        return f"cannot {action} the spool {self.path}: {error.strerror}"


def sync(descriptors: list[int]) -> str:
    """Bring what :meth:`Spool.unsynced` returned to the disk, and close it; why that failed, "" if it did not."""
    failed = ""
    for descriptor in descriptors:
        try:
            os.fdatasync(descriptor)
        except OSError as error:
            failed = error.strerror or str(error)
        finally:
            os.close(descriptor)
    return failed


def _own(path: Path) -> int:
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        status = path.stat()
        if status.st_uid != os.geteuid():
            raise SpoolError(f"the spool {path} belongs to another user: chown it, or set another spool.path")
        if status.st_mode & 0o077:
            path.chmod(0o700)
        return claim(path / "owner")
    except BlockingIOError:
        raise SpoolError(f"another agent uses the spool {path}: stop it, or set another spool.path") from None
    except OSError as error:
        raise SpoolError(
            f"cannot use the spool {path}: {error.strerror}; create it, or set another spool.path"
        ) from None


def _boot_id() -> bytes:
    try:
        return bytes.fromhex(_BOOT_ID.read_text().strip().replace("-", ""))
    except (OSError, ValueError):
        return os.urandom(16)  # trusts no other process' segments


def _read(descriptor: int, at: int, size: int) -> bytes:
    parts: list[bytes] = []
    while size > 0 and (part := os.pread(descriptor, size, at)):
        parts.append(part)
        at += len(part)
        size -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _header_bytes(header: SealHeader) -> int:
    return FIXED_HEADER_BYTES + len(header.vantage_id)


def _next_magic(content: bytes, at: int) -> int:
    found = content.find(_RECORD_MAGIC, at)
    return found if found >= 0 else len(content)


def _is_torn(content: bytes, at: int) -> bool:
    """Whether a record began here and the file ends before it does."""
    if not content.startswith(_RECORD_MAGIC[: len(content) - at], at):
        return False
    if len(content) - at < _CONTENT_AT:
        return True
    return at + _CONTENT_AT + int(_FIXED.unpack_from(content, at)[1]) > len(content)


def _parse(content: bytes, at: int) -> tuple[int, SealHeader | None]:
    """The record at ``at``: where the next one is, and this one's header; None if it does not hold."""
    if len(content) - at < _CONTENT_AT or not content.startswith(_RECORD_MAGIC, at):
        return _next_magic(content, at + 1), None
    _, length, checksum = _FIXED.unpack_from(content, at)
    begin, end = at + _CONTENT_AT, at + _CONTENT_AT + length
    if length > _MAX_CONTENT or end > len(content):
        return _next_magic(content, at + 1), None
    if zlib.crc32(memoryview(content)[begin:end], zlib.crc32(_LENGTH.pack(length))) != checksum:
        return _next_magic(content, at + 1), None
    try:
        id_bytes = content[begin + 10]
        header = parse_header(content[begin : begin + FIXED_HEADER_BYTES + id_bytes])
    except (SealError, IndexError):
        return _next_magic(content, at + 1), None
    if _header_bytes(header) + header.body_bytes >= length:
        return _next_magic(content, at + 1), None
    return end, header
