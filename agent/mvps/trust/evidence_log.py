# SPDX-License-Identifier: Apache-2.0
"""The evidence log on disk: accepted sealed snapshots as leaves of an append-only Merkle tree, and its checkpoints.

A leaf is ``header || body || tag`` exactly as it travelled. The header carries the lengths of itself and of the body,
and its scheme that of the tag (:mod:`mvps.trust.seal`), so that leaves written one after another can be told apart.
The folder (mode 0700, files 0600; layout ours)::

    leaves-<first leaf, 20 digits>    segments: leaves, nothing between them; old ones are pruned
    nodes                             hashes in the storage order of mvps.trust.merkle, 64 B a leaf
    nodes-kept                        of pruned leaves those that proofs about others need (mvps.trust.kept_nodes)
    checkpoints                       signed notes, oldest first, an empty line after each; a note that gained
                                      cosignatures stands there again, with the same text

Who owns the log keeps a :class:`LogState` in its own transaction: append (leaves are synced), commit the transaction,
:meth:`EvidenceLog.commit`. What lies beyond the recorded state was never acknowledged and is cut off on opening; what
is missing below it is an error, and so is a recorded state behind the newest checkpoint: a log never unsays what it
signed. The nodes of the newest segment are not synced: opening recomputes them from the leaves and compares the
recorded root, which also finds torn writes.

When leaves are pruned, so are the nodes above them, but for what keeps every later leaf provable, and every checkpoint
a beginning of all later ones. Of a pruned leaf no new proof can be made; one that was handed out holds as before.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import weakref
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from mvps.trust import kept_nodes
from mvps.trust.checkpoint import CheckpointError, parse_checkpoint
from mvps.trust.durable import write_at
from mvps.trust.kept_nodes import KeptNodes, KeptNodesError
from mvps.trust.limits import MAX_BODY, SIGNATURE_BYTES, TAG_BYTES
from mvps.trust.merkle import (
    EMPTY,
    EMPTY_ROOT,
    HASH_BYTES,
    Tree,
    TreeHead,
    consistency_proof,
    inclusion_proof,
    lasting,
    leaf_hash,
    node_count,
    node_place,
    peaks_of,
    root_of,
)
from mvps.trust.note import Note, NoteError, parse_note
from mvps.trust.seal import FIXED_HEADER_BYTES, MAX_HEADER_BYTES, Sealed, SealError, parse_header

SEGMENT_BYTES: Final = 64 << 20
# The newest part of a segment stays cached: a stream that broke is sent again, and compared with what was kept.
_CACHED_BYTES: Final = 8 << 20
_LARGEST_FOLIO: Final = 2 << 20  # the kernel only lets go of whole ones, so the one at the seam is asked for again
MAX_LEAF: Final = MAX_HEADER_BYTES + MAX_BODY + SIGNATURE_BYTES
_TAG_OF_SCHEME: Final = {1: TAG_BYTES, 2: SIGNATURE_BYTES}
_SEGMENT: Final = re.compile(r"leaves-([0-9]{20})")
# From this level on all nodes of pruned leaves are kept, one in 1024: 34 MB of 27 GB a day at 5,000 leaves a second.
_KEPT_LEVEL: Final = 10
_NODES: Final = "nodes"
_CHECKPOINTS: Final = "checkpoints"
_READ_BYTES: Final = 1 << 20
_TAIL_BYTES: Final = 256 * 1024  # more than the largest note
_SIGNATURES: Final = "— ".encode()
# The first two lines of a note's text: origin and number of leaves.
_SIZE_LINE: Final = re.compile(rb"(?:\A|\n\n)[^\n]+\n([0-9]{1,19})\n")
_SCAN_BYTES: Final = 1 << 20
_SCAN_OVERLAP: Final = 4096  # more than two lines


class EvidenceError(Exception):
    """The log cannot be opened, read or written. The message names the file and says what to do."""


class Place(NamedTuple):
    """Where a leaf is: its index, and offset and length in its segment, in bytes."""

    leaf: int
    offset: int
    size: int


class LogState(NamedTuple):
    """What the owner of a log records with its transaction.

    size, root: the tree head; segment: first leaf of the newest segment; end: length of that segment in bytes.
    """

    size: int
    root: bytes
    segment: int
    end: int


NEW_LOG: Final = LogState(0, EMPTY_ROOT, 0, 0)


def leaf_of(sealed: Sealed) -> bytes:
    """Leaf data of a sealed snapshot."""
    return b"".join(sealed)


def sealed_of(leaf: bytes) -> Sealed:
    """The sealed snapshot of a leaf; EvidenceError if the bytes are not exactly one."""
    sealed, size = _first_sealed(leaf, 0)
    if size != len(leaf):
        raise EvidenceError(f"a leaf of {len(leaf)} bytes, its header says {size}")
    return sealed


def split_leaves(read: Callable[[int, int], bytes], end: int) -> Iterator[tuple[int, Sealed]]:
    """(offset, sealed snapshot) of every leaf of a segment.

    read: (length, offset) -> bytes of the segment; end: its length. EvidenceError, with the offset, where the bytes are
    no sealed snapshot.
    """
    base, window = 0, b""
    offset = 0
    while offset < end:
        if offset + MAX_LEAF > base + len(window) and base + len(window) < end:
            base, window = offset, read(max(_READ_BYTES, MAX_LEAF), offset)
        try:
            sealed, size = _first_sealed(window, offset - base)
        except EvidenceError as error:
            raise EvidenceError(f"at offset {offset}: {error}") from None
        if offset + size > end:
            raise EvidenceError(f"at offset {offset}: the last leaf is cut off")
        yield offset, sealed
        offset += size


def _first_sealed(data: bytes, at: int) -> tuple[Sealed, int]:
    if len(data) - at < FIXED_HEADER_BYTES:
        raise EvidenceError("the last leaf is cut off")
    body_at = at + FIXED_HEADER_BYTES + data[at + 10]
    try:
        header = parse_header(data[at:body_at])
    except SealError as error:
        raise EvidenceError(f"no sealed snapshot begins here ({error})") from None
    tag_at = body_at + header.body_bytes
    end = tag_at + _TAG_OF_SCHEME[header.scheme]
    if end > len(data):
        raise EvidenceError("the last leaf is cut off")
    return Sealed(data[at:body_at], data[body_at:tag_at], data[tag_at:end]), end - at


class EvidenceLog:
    """The leaves and nodes of one log. One thread appends and prunes; any thread may read what is committed.

    folder: made if it is missing, and belongs to this log alone. state: as last recorded; NEW_LOG for a new log.
    ``checkpoints`` may be appended to by one other thread.
    """

    def __init__(self, folder: Path, state: LogState = NEW_LOG, *, segment_bytes: int = SEGMENT_BYTES) -> None:
        self._folder = folder
        self._segment_bytes = segment_bytes
        self._pending: tuple[LogState, Tree] | None = None
        self.state = state
        self._nodes = self._newest = -1
        _make_folder(folder)
        self._kept: Final = _open_kept(folder, os.O_RDWR | os.O_CREAT)
        try:
            self.checkpoints: Final = CheckpointFile(folder, self._kept.boundary - (1 << _KEPT_LEVEL))
        except BaseException:
            self._kept.close()
            raise
        try:
            self._check_not_behind()
            self._nodes = _open_private(folder / _NODES)
            kept_nodes.give_back(self._nodes, self._kept.boundary)  # in case that was what did not happen any more
            self._segments = self._cut_segments()
            self._newest = _open_private(self._path(state.segment))
            if not self._segments:
                self._segments = [state.segment]
                _sync_folder(folder)
            self._older_bytes = self._measure(self._segments)
            self._tree = self._recompute()
            self._check_newest_checkpoint()
        except BaseException:
            self.close()
            raise

    @property
    def head(self) -> TreeHead:
        """Size and root of what is committed."""
        return TreeHead(self.state.size, self.state.root)

    @property
    def first(self) -> int:
        """Oldest leaf whose bytes are still here."""
        return self._segments[0]

    @property
    def after_oldest(self) -> int:
        """Where the oldest segment ends: the leaf after it, which is the log's size if there is only one segment."""
        return self._segments[1] if len(self._segments) > 1 else self.state.size

    @property
    def bytes_kept(self) -> int:
        """Bytes of all segments; nodes and checkpoints come on top."""
        return self._older_bytes + self.state.end

    def close(self) -> None:
        """Close the files. Idempotent."""
        self.checkpoints.close()
        self._kept.close()
        for name in ("_nodes", "_newest"):
            descriptor = getattr(self, name)
            if descriptor >= 0:
                os.close(descriptor)
                setattr(self, name, -1)

    # ---- writing

    def append(self, leaves: Sequence[bytes]) -> tuple[list[Place], LogState]:
        """Write leaves, and return when they are on disk: where they are, and the state to record.

        Until :meth:`commit` they do not count. After an EvidenceError nothing of them is left.
        """
        first, following = self.extend(leaves, b"".join(map(leaf_hash, leaves)))
        offsets = itertools.accumulate(map(len, leaves), initial=first.offset)
        return [Place(*each) for each in zip(itertools.count(first.leaf), offsets, map(len, leaves))], following

    def extend(self, parts: Sequence[bytes], hashes: bytes) -> tuple[Place, LogState]:
        """As :meth:`append`, of leaves that stand one after another in ``parts``, and their leaf hashes.

        Returns where the first one is; its size is that of all.
        """
        if self._pending is not None:
            raise ValueError("the last append was neither committed nor rolled back")
        state = self.state
        segment, end = state.segment, state.end
        fresh = end >= self._segment_bytes
        if fresh:
            segment, end = state.size, 0
        first = Place(state.size, end, sum(map(len, parts)))
        tree = self._tree.copy()
        nodes = tree.extend(hashes)
        root = tree.head.root
        try:
            if fresh:
                os.fdatasync(self._nodes)  # from now on nobody recomputes those of the segment before
                _uncache(self._newest, 0, 0)
                os.close(self._newest)
                self._newest = -1
                self._newest = _open_private(self._path(segment))
            write_at(self._newest, b"".join(parts), end)
            write_at(self._nodes, nodes, node_count(state.size) * HASH_BYTES)
            os.fdatasync(self._newest)
            behind = end + first.size - _CACHED_BYTES
            if behind > 0:
                _uncache(self._newest, max(behind - first.size - _LARGEST_FOLIO, 0), behind)
            if fresh:
                _sync_folder(self._folder)
        except (OSError, EvidenceError) as error:
            self._cut_back()
            raise EvidenceError(
                f"{self._folder} cannot be written: {getattr(error, 'strerror', None) or error}; free space on its disk"
            ) from error
        following = LogState(tree.size, root, segment, end + first.size)
        self._pending = (following, tree)
        return first, following

    def commit(self) -> None:
        """The owner has recorded the state of the last append."""
        if self._pending is None:
            raise ValueError("nothing was appended")
        following, self._tree = self._pending
        self._pending = None
        if following.segment != self.state.segment:
            self._segments = [*self._segments, following.segment]
            self._older_bytes += self.state.end
        self.state = following

    def rollback(self) -> None:
        """Drop the last append, if it was not committed."""
        if self._pending is not None:
            self._pending = None
            self._cut_back()

    def _cut_back(self) -> None:
        # What cannot be cut now is overwritten by the next append, or cut on opening.
        with contextlib.suppress(OSError, EvidenceError):
            for path, first in _segments_of(self._folder):
                if first > self.state.segment:
                    path.unlink()
            if self._newest >= 0:
                os.close(self._newest)
                self._newest = -1
            self._newest = _open_private(self._path(self.state.segment))
            os.ftruncate(self._newest, self.state.end)
            os.ftruncate(self._nodes, node_count(self.state.size) * HASH_BYTES)

    # ---- reading

    def read(self, places: Iterable[Place]) -> list[Sealed | None]:
        """The sealed snapshots at committed places; None for one that was pruned.

        Each is compared with its hash in the tree: EvidenceError for one that was changed on disk.
        """
        found: list[Sealed | None] = []
        with contextlib.ExitStack() as opened:
            descriptors: dict[int, int] = {}
            for place in places:
                segment = self._segment_of(place.leaf)
                if segment is not None and segment not in descriptors:
                    try:
                        descriptors[segment] = os.open(self._path(segment), os.O_RDONLY | os.O_CLOEXEC)
                        opened.callback(os.close, descriptors[segment])
                    except FileNotFoundError:  # pruned meanwhile, or somebody took it away
                        segment = None
                if segment is None:
                    found.append(None)
                    continue
                leaf = os.pread(descriptors[segment], place.size, place.offset)
                if leaf_hash(leaf) != self.node(0, place.leaf):
                    raise EvidenceError(
                        f"leaf {place.leaf} in {self._path(segment)} was changed on disk: restore the folder from a "
                        "backup; mvps verify names everything that is damaged"
                    )
                found.append(sealed_of(leaf))
        return found

    def node(self, level: int, index: int) -> bytes:
        """Hash of a perfect subtree of the committed tree. EvidenceError if it went with the leaves below it."""
        return _node(self._nodes, self._folder, level, index, self._kept)

    def root(self, size: int) -> bytes:
        """Root over the first ``size`` leaves."""
        self._check_size(size)
        return root_of(size, self.node)

    def inclusion(self, leaf: int, size: int) -> list[bytes]:
        """Proof that a leaf is in the tree of ``size`` leaves. EvidenceError once the leaf is pruned."""
        self._check_size(size)
        return inclusion_proof(leaf, size, self.node)

    def consistency(self, old: int, new: int) -> list[bytes]:
        """Proof that the tree of ``new`` leaves begins with that of ``old``.

        EvidenceError if ``old`` or ``new`` is smaller than what was pruned, unless it is a checkpoint's size.
        """
        self._check_size(new)
        return consistency_proof(old, new, self.node)

    # ---- retention

    def prunable(self, leaf: int) -> int:
        """First leaf that stays when everything before ``leaf`` may go: only whole segments go, never the newest."""
        return self._segments[max(bisect_right(self._segments, leaf) - 1, 0)]

    def prune(self, first: int) -> None:
        """Remove the segments before the one that begins at ``first`` (of :meth:`prunable`), and their nodes."""
        stay = [segment for segment in self._segments if segment >= first]
        # Where what has to be kept cannot be read or written, nodes stay until the next time: leaves go all the same.
        with contextlib.suppress(OSError, EvidenceError):
            self._keep_nodes(first)
        for segment in self._segments[: -len(stay)]:
            self._path(segment).unlink(missing_ok=True)
        self._older_bytes, self._segments = self._measure(stay), stay
        kept_nodes.give_back(self._nodes, self._kept.boundary)

    # ---- inside

    def _keep_nodes(self, boundary: int) -> None:
        """Copy what stays of the nodes before the boundary; from then on the others are not asked for."""
        begin, reach = self._kept.boundary, 1 << _KEPT_LEVEL
        if boundary <= begin:
            return
        pieces = lasting(begin, boundary, self.checkpoints.sizes(begin - reach), _KEPT_LEVEL)
        self._kept.extend(boundary, [(node_place(*piece), self.node(*piece)) for piece in pieces])
        _sync_folder(self._folder)
        self.checkpoints.forget_sizes(boundary - reach)

    def _measure(self, segments: list[int]) -> int:
        """Bytes of all segments but the newest."""
        return sum(self._path(first).stat().st_size for first in segments[:-1])

    def _path(self, first: int) -> Path:
        return self._folder / f"leaves-{first:020d}"

    def _segment_of(self, leaf: int) -> int | None:
        segments = self._segments
        position = bisect_right(segments, leaf) - 1
        return segments[position] if position >= 0 and leaf < self.state.size else None

    def _check_size(self, size: int) -> None:
        if not 0 <= size <= self.state.size:
            raise ValueError(f"the log has {self.state.size} leaves, not {size}")

    def _check_not_behind(self) -> None:
        """Before anything is cut off: an older database must not take acknowledged leaves away."""
        signed = self.checkpoints.newest_head()
        if signed.size > self.state.size:
            raise EvidenceError(
                f"the database records {self.state.size} leaves, and the newest checkpoint in {self._folder} was "
                f"signed over {signed.size}: the database is older than this folder. Put the newer database back, "
                "or move both away together and start a new log under another origin"
            )
        if self._kept.boundary > self.state.segment:
            raise EvidenceError(
                f"the first {self._kept.boundary} leaves in {self._folder} were pruned, and the newest segment that "
                f"the database records begins with leaf {self.state.segment}: the database is older than this folder. "
                "Put the newer database back, or move both away together and start a new log"
            )

    def _check_newest_checkpoint(self) -> None:
        signed = self.checkpoints.newest_head()
        if self.root(signed.size) != signed.root:
            raise EvidenceError(
                f"the tree in {self._folder} is not the one its newest checkpoint was signed over ({signed.size} "
                "leaves): put the folder and the database back from one backup; mvps verify says what differs"
            )

    def _cut_segments(self) -> list[int]:
        """First leaves of the segments that count; those after the recorded one were never acknowledged."""
        kept: list[int] = []
        for path, first in _segments_of(self._folder):
            if first > self.state.segment:
                path.unlink()
            else:
                kept.append(first)
        if self.state.size and self.state.segment not in kept:
            raise EvidenceError(
                f"{self._path(self.state.segment)} is missing, and with it acknowledged snapshots: put it back from a "
                "backup, or move the database and this folder away together and start a new log"
            )
        return sorted(kept)

    def _recompute(self) -> Tree:
        """Check the newest segment against the recorded state, and write its nodes again where they differ."""
        state, path = self.state, self._path(self.state.segment)
        length = os.fstat(self._newest).st_size
        if length < state.end:
            raise EvidenceError(
                f"{path} has {length} bytes of {state.end}, so acknowledged snapshots are missing: put it back from a "
                "backup, or move the database and this folder away together and start a new log"
            )
        os.ftruncate(self._newest, state.end)
        nodes_path = self._folder / _NODES
        synced = node_count(state.segment) * HASH_BYTES
        if os.fstat(self._nodes).st_size < synced:
            raise EvidenceError(
                f"{nodes_path} has {os.fstat(self._nodes).st_size} bytes of {synced}: put it back from a backup, or "
                "move the database and this folder away together and start a new log"
            )
        tree = Tree(state.segment, [self.node(*peak) for peak in peaks_of(state.segment)])
        try:
            leaves = split_leaves(lambda size, offset: os.pread(self._newest, size, offset), state.end)
            nodes = tree.extend(b"".join(leaf_hash(leaf_of(sealed)) for _, sealed in leaves))
        except EvidenceError as error:
            raise EvidenceError(f"{path} is damaged {error}: put it back from a backup") from None
        if tree.head != (state.size, state.root):
            raise EvidenceError(
                f"{path} or {nodes_path} was changed: its {tree.size} leaves do not give the recorded root of "
                f"{state.size}. Put both back from a backup; mvps verify says which leaves are damaged"
            )
        if os.pread(self._nodes, len(nodes) + 1, synced) != nodes:
            try:
                os.ftruncate(self._nodes, synced)
                write_at(self._nodes, nodes, synced)
            except OSError as error:
                raise EvidenceError(
                    f"{nodes_path} cannot be written: {error.strerror}; free space on its disk"
                ) from None
        return tree


class CheckpointFile:
    """The checkpoints of one log. ``newest`` is the one on disk over most leaves, as it was kept last.

    The cosignatures of a checkpoint may arrive when a newer one stands in the file already.
    sizes_from: checkpoints over fewer leaves need not be known by :meth:`sizes`.
    """

    def __init__(self, folder: Path, sizes_from: int = 0) -> None:
        self._path = folder / _CHECKPOINTS
        self._file = _open_private(self._path)
        self._sizes = deque(_checkpoint_sizes(self._file, sizes_from))
        length = os.fstat(self._file).st_size
        start = max(length - _TAIL_BYTES, 0)
        tail = os.pread(self._file, _TAIL_BYTES, start)
        complete, notes = _complete_notes(tail, start == 0)
        if complete < len(tail):
            # The end of a write that was interrupted: nobody has seen that checkpoint.
            os.ftruncate(self._file, start + complete)
        self._end = start + complete
        self.newest: Note | None = None
        self._head = EMPTY
        try:
            for note in map(parse_note, notes):
                self._take(note)
        except (NoteError, CheckpointError) as error:
            os.close(self._file)
            raise EvidenceError(f"{self._path} is damaged ({error}): put it back from a backup") from None

    def _take(self, note: Note) -> TreeHead:
        head = parse_checkpoint(note.text).head
        if head.size >= self._head.size:
            self.newest, self._head = note, head
        return head

    def newest_head(self) -> TreeHead:
        """Tree head of the newest checkpoint; the empty tree if there is none."""
        return self._head

    def sizes(self, least: int) -> list[int]:
        """Numbers of leaves that checkpoints were signed over, from ``least`` on; some stand there twice."""
        return [size for size in list(self._sizes) if size >= least]  # copied: the other thread appends

    def forget_sizes(self, least: int) -> None:
        """Nobody will ask for sizes below ``least`` any more."""
        while self._sizes and self._sizes[0] < least:
            self._sizes.popleft()

    def append(self, note: Note) -> None:
        """Keep a checkpoint; it is on disk when this returns. EvidenceError if it cannot be, and is not kept."""
        data = note.render() + b"\n"
        try:
            write_at(self._file, data, self._end)
            os.fdatasync(self._file)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._end)
            raise EvidenceError(f"{self._path} cannot be written: {error.strerror}; free space on its disk") from None
        self._end += len(data)
        self._sizes.append(self._take(note).size)

    def close(self) -> None:
        """Close the file. Idempotent."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class LogFiles:
    """A log's folder as an auditor reads it: whatever is there, trusted in nothing, changed in nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.segments = sorted(_segments_of(folder), key=lambda found: found[1])
        self.nodes_path = folder / _NODES
        self.checkpoints_path = folder / _CHECKPOINTS
        try:
            self._kept = _open_kept(folder, os.O_RDONLY)
        except FileNotFoundError:
            self._kept = KeptNodes(-1)
        weakref.finalize(self, self._kept.close)
        if not self.segments and not self.checkpoints_path.exists():
            raise EvidenceError(f"{folder} is no evidence log: it has neither leaves nor checkpoints")

    @property
    def boundary(self) -> int:
        """First leaf whose nodes were not pruned."""
        return self._kept.boundary

    def node(self, level: int, index: int) -> bytes:
        """A stored node; EvidenceError if the file does not reach so far, or the node was pruned."""
        try:
            descriptor = os.open(self.nodes_path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise EvidenceError(f"cannot read {self.nodes_path}: {error.strerror}") from None
        try:
            return _node(descriptor, self.folder, level, index, self._kept)
        finally:
            os.close(descriptor)

    def stored_nodes(self) -> Iterator[bytes]:
        """For each leaf from the boundary on its hash and those of the subtrees it completes, until the file ends."""
        try:
            with self.nodes_path.open("rb") as file:
                file.seek(node_count(self.boundary) * HASH_BYTES)
                for leaf in itertools.count(self.boundary):
                    size = (node_count(leaf + 1) - node_count(leaf)) * HASH_BYTES
                    nodes = file.read(size)
                    if len(nodes) < size:
                        return
                    yield nodes
        except OSError:
            return

    def leaves(self, path: Path) -> Iterator[tuple[int, Sealed]]:
        """(offset, sealed snapshot) of every leaf of one segment."""
        try:
            with path.open("rb") as file:
                descriptor = file.fileno()
                yield from split_leaves(
                    lambda size, offset: os.pread(descriptor, size, offset), os.fstat(descriptor).st_size
                )
        except OSError as error:
            raise EvidenceError(f"cannot be read: {error.strerror}") from None

    def checkpoints(self) -> Iterator[bytes]:
        """Every checkpoint note, oldest first. EvidenceError where the file is no sequence of notes."""
        try:
            data = self.checkpoints_path.read_bytes()
        except OSError as error:
            raise EvidenceError(f"cannot read {self.checkpoints_path}: {error.strerror}") from None
        at = 0
        while at < len(data):
            middle = data.find(b"\n\n", at)
            end = data.find(b"\n\n", middle + 2)
            if middle < 0 or end < 0 or not data.startswith(_SIGNATURES, middle + 2):
                raise EvidenceError(f"{self.checkpoints_path}: at offset {at}: this is no complete note")
            yield data[at : end + 1]
            at = end + 2


def _make_folder(folder: Path) -> None:
    """Make the folder of a new log, readable for its owner only; an existing one is left as it is."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise EvidenceError(f"cannot make {folder}: {error.strerror}; does {folder.parent} exist?") from None


def _complete_notes(tail: bytes, whole: bool) -> tuple[int, list[bytes]]:
    """(length of the part that ends with a complete note, the complete notes) at the end of a file of checkpoints.

    whole: the tail is the whole file, so that it begins with a note.
    """
    complete, notes = 0, []
    text_at = 0 if whole else -1
    at = 0
    while (end := tail.find(b"\n\n", at)) >= 0:
        if tail.startswith(_SIGNATURES, at):
            complete = end + 2
            if text_at >= 0:
                notes.append(tail[text_at : end + 1])
            text_at = complete
        at = end + 2
    return complete, notes


def _segments_of(folder: Path) -> list[tuple[Path, int]]:
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise EvidenceError(f"cannot read {folder}: {error.strerror}") from None
    return [(folder / name, int(match[1])) for name in names if (match := _SEGMENT.fullmatch(name))]


def _node(descriptor: int, folder: Path, level: int, index: int, kept: KeptNodes) -> bytes:
    place = node_place(level, index)
    # Read before it is asked whether it may be pruned: a hole is made after the boundary has moved.
    node = os.pread(descriptor, HASH_BYTES, place * HASH_BYTES)
    if place < node_count(kept.boundary):
        try:
            stayed = kept.get(place)
        except KeptNodesError as error:
            raise EvidenceError(f"{folder / kept_nodes.NAME} is damaged ({error}): put it back from a backup") from None
        if stayed is None:
            raise EvidenceError(
                f"the hash of leaves {index << level} to {((index + 1) << level) - 1} went with them: what is before "
                f"leaf {kept.boundary} was pruned"
            )
        return stayed
    if len(node) != HASH_BYTES:
        raise EvidenceError(f"{folder / _NODES} ends before offset {place * HASH_BYTES}: put it back from a backup")
    return node


def _open_kept(folder: Path, flags: int) -> KeptNodes:
    path = folder / kept_nodes.NAME
    try:
        descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise EvidenceError(f"cannot open {path}: {error.strerror}") from None
    try:
        return KeptNodes(descriptor)
    except KeptNodesError as error:
        os.close(descriptor)
        raise EvidenceError(f"{path} is damaged ({error}): put it back from a backup") from None


def _checkpoint_sizes(file: int, least: int) -> list[int]:
    """Sizes of the checkpoints in a file in its order, as far back from its end as they are not below ``least``."""
    found: list[int] = []
    end = os.fstat(file).st_size
    while end > 0:
        begin = max(end - _SCAN_BYTES, 0)
        block = os.pread(file, end - begin + _SCAN_OVERLAP, begin)
        if begin:  # what stands at its very beginning may be anything
            block = b"\n" + block
        sizes = [int(size) for size in _SIZE_LINE.findall(block)]
        found = sizes + found
        if sizes and min(sizes) < least:
            break
        end = begin
    return found


def _open_private(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise EvidenceError(f"cannot open {path}: {error.strerror}") from None


def _uncache(file: int, begin: int, end: int) -> None:
    """Let the kernel forget that these octets, which are on disk, were written; end: 0 for all.

    Hardly anybody reads them again, and a busy broker would push everything else out of its host's page cache with
    them. The pages that come free are the next ones to be written, warm: this is a quarter of a commit's CPU.
    """
    with contextlib.suppress(OSError):  # a file system without a page cache
        os.posix_fadvise(file, begin, end - begin if end else 0, os.POSIX_FADV_DONTNEED)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
