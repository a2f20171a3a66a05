# SPDX-License-Identifier: Apache-2.0
"""What stays of a log's nodes when the leaves they stand over were pruned: a sorted file, and the rest is punched out.

Two hashes a leaf are 27 GB a day at 5,000 snapshots a second. Of those before the oldest leaf kept, proofs about newer
leaves and between checkpoints need few (:func:`mvps.trust.merkle.lasting`); these are copied here, and their places in
``nodes`` given back to the file system. The file (layout ours)::

    boundary, count                   8 bytes each, big-endian: nodes of leaves before the boundary are here only
    count records, by place           place in storage order (8 bytes), hash (32 bytes)

Records are on disk before the header that counts them, and that before anything is given back.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from collections.abc import Iterable
from typing import Final, NamedTuple

from mvps.trust.durable import write_at
from mvps.trust.merkle import HASH_BYTES, node_count

NAME: Final = "nodes-kept"
_HEADER: Final = struct.Struct(">QQ")
_RECORD: Final = struct.Struct(f">Q{HASH_BYTES}s")
# linux/falloc.h: FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
_PUNCH: Final = 0x01 | 0x02


class KeptNodesError(ValueError):
    """The file is not what its header says."""


class _State(NamedTuple):
    boundary: int
    records: int


class KeptNodes:
    """The file of one log, by a descriptor that it owns. One thread extends it, any thread may read.

    descriptor: -1 where there is no such file, which is as good as an empty one for reading.
    """

    def __init__(self, descriptor: int) -> None:
        self._file = descriptor
        self._state = _State(0, 0)
        length = os.fstat(descriptor).st_size if descriptor >= 0 else 0
        if length:
            header = os.pread(descriptor, _HEADER.size, 0)
            if len(header) < _HEADER.size:
                raise KeptNodesError(f"{length} bytes are no header")
            state = _State(*_HEADER.unpack(header))
            if length < _HEADER.size + state.records * _RECORD.size:
                raise KeptNodesError(f"its header counts {state.records} records, and it has {length} bytes")
            self._state = state

    @property
    def boundary(self) -> int:
        """The nodes that leaves before this one completed are here, or nowhere."""
        return self._state.boundary

    @property
    def count(self) -> int:
        """Number of hashes."""
        return self._state.records

    def get(self, place: int) -> bytes | None:
        """The hash that stood at a place; None if it was not kept."""
        low, high = 0, self._state.records
        while low < high:
            middle = (low + high) // 2
            found, node = self._record(middle)
            if found == place:
                return node
            if found < place:
                low = middle + 1
            else:
                high = middle
        return None

    def _record(self, index: int) -> tuple[int, bytes]:
        data = os.pread(self._file, _RECORD.size, _HEADER.size + index * _RECORD.size)
        if len(data) != _RECORD.size:
            raise KeptNodesError(f"it ends before record {index}")
        place, node = _RECORD.unpack(data)
        return place, node

    def extend(self, boundary: int, nodes: Iterable[tuple[int, bytes]]) -> None:
        """Move the boundary, with the (place, hash) pairs from the old one up to it, in order. On disk on return."""
        data = b"".join(_RECORD.pack(place, node) for place, node in nodes)
        count = self._state.records
        at = _HEADER.size + count * _RECORD.size
        if not count:
            # A header of zeros counts nothing: records may stand before it is written.
            write_at(self._file, _HEADER.pack(self._state.boundary, 0), 0)
        write_at(self._file, data, at)
        os.fdatasync(self._file)
        state = _State(boundary, count + len(data) // _RECORD.size)
        write_at(self._file, _HEADER.pack(*state), 0)
        os.fdatasync(self._file)
        self._state = state

    def close(self) -> None:
        """Close the file. Idempotent."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def give_back(nodes: int, boundary: int) -> None:
    """Make a hole of the nodes that leaves before the boundary completed. Some file systems have none: then they stay.

    nodes: descriptor of the file of nodes, whose length does not change.
    """
    length = node_count(boundary) * HASH_BYTES
    if not length:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    with contextlib.suppress(AttributeError):  # a C library without it
        libc.fallocate(nodes, _PUNCH, ctypes.c_int64(0), ctypes.c_int64(length))
