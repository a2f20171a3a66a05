# SPDX-License-Identifier: Apache-2.0
"""Struct layouts from BPF Type Format data.

The layout of a cell is written once, in C. User space takes it from the BTF of the very object it loads, so a
renamed or moved field is an error at load time and never a wrong number.

Source: kernel documentation, Documentation/bpf/btf.rst (the format is little-endian on our targets).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

_MAGIC = 0xEB9F
_INT, _ARRAY, _STRUCT, _UNION, _ENUM, _FWD, _TYPEDEF = 1, 3, 4, 5, 6, 7, 8
_VOLATILE, _CONST, _RESTRICT, _FUNC_PROTO, _VAR, _DATASEC = 9, 10, 11, 13, 14, 15
_DECL_TAG, _ENUM64 = 17, 19
# Bytes behind the 12-byte type header, as (fixed, per member).
_TAIL = {
    _INT: (4, 0),
    _ARRAY: (12, 0),
    _STRUCT: (0, 12),
    _UNION: (0, 12),
    _ENUM: (0, 8),
    _FUNC_PROTO: (0, 8),
    _VAR: (4, 0),
    _DATASEC: (0, 12),
    _DECL_TAG: (4, 0),
    _ENUM64: (0, 12),
}


class BtfError(ValueError):
    """The BTF data is malformed or lacks what was asked for."""


@dataclass(frozen=True, slots=True)
class _Type:
    name: str
    kind: int
    members: int
    size_or_type: int
    tail: int  # offset of the data behind the header


class Btf:
    """Types of one BTF blob (an object's ``.BTF`` section or ``/sys/kernel/btf/vmlinux``)."""

    def __init__(self, data: bytes) -> None:
        if len(data) < 24 or struct.unpack_from("<H", data)[0] != _MAGIC:
            raise BtfError("not BTF data: wrong magic")
        header_length, type_offset, type_length, string_offset, string_length = struct.unpack_from("<IIIII", data, 4)
        strings = header_length + string_offset
        self._data = data
        self._strings = data[strings : strings + string_length]
        self._types: list[_Type] = [_Type("void", 0, 0, 0, 0)]
        position, end = header_length + type_offset, header_length + type_offset + type_length
        while position < end:
            name, info, size_or_type = struct.unpack_from("<III", data, position)
            kind, members = info >> 24 & 0x1F, info & 0xFFFF
            fixed, each = _TAIL.get(kind, (0, 0))
            self._types.append(_Type(self._string(name), kind, members, size_or_type, position + 12))
            position += 12 + fixed + each * members

    def _string(self, offset: int) -> str:
        return self._strings[offset : self._strings.index(b"\0", offset)].decode()

    def _struct(self, name: str) -> _Type:
        for candidate in self._types:
            if candidate.kind == _STRUCT and candidate.name == name:
                return candidate
        raise BtfError(f"no struct {name} in this BTF")

    def _members(self, of: _Type) -> Iterator[tuple[str, int, int]]:
        for index in range(of.members):
            name, type_id, offset = struct.unpack_from("<III", self._data, of.tail + 12 * index)
            yield self._string(name), type_id, (offset & 0xFFFFFF) // 8

    def offsets(self, name: str) -> dict[str, int]:
        """Byte offset of each named member of ``struct name``."""
        return {member: offset for member, _, offset in self._members(self._struct(name)) if member}

    def variable(self, section: str, name: str) -> tuple[int, int]:
        """Offset and size in bytes of a global in ``section``. (libbpf fills in offsets when it opens the object.)"""
        for candidate in self._types:
            if candidate.kind != _DATASEC or candidate.name != section:
                continue
            for index in range(candidate.members):
                type_id, offset, size = struct.unpack_from("<III", self._data, candidate.tail + 12 * index)
                if self._types[type_id].name == name:
                    return offset, size
        raise BtfError(f"no variable {name} in {section}")

    def enum(self, name: str) -> dict[int, str]:
        """Value -> enumerator of ``enum name``; empty when the kernel has no such enum."""
        for candidate in self._types:
            if candidate.kind == _ENUM and candidate.name == name and candidate.members:
                pairs = (
                    struct.unpack_from("<Ii", self._data, candidate.tail + 8 * index)
                    for index in range(candidate.members)
                )
                return {value: self._string(offset) for offset, value in pairs}
        return {}

    def dtype(self, name: str) -> np.dtype[Any]:
        """Numpy dtype of ``struct name``: unsigned integers, arrays and nested structs, offsets and size as in C."""
        return self._struct_dtype(self._struct(name))

    def _struct_dtype(self, of: _Type) -> np.dtype[Any]:
        names, formats, offsets = [], [], []
        for member, type_id, offset in self._members(of):
            names.append(member)
            formats.append(self._field(type_id))
            offsets.append(offset)
        layout = {"names": names, "formats": formats, "offsets": offsets, "itemsize": of.size_or_type}
        return np.dtype(layout)  # type: ignore[call-overload, no-any-return]

    def _field(self, type_id: int) -> Any:
        found = self._types[type_id]
        while found.kind in (_TYPEDEF, _VOLATILE, _CONST, _RESTRICT):
            found = self._types[found.size_or_type]
        if found.kind == _INT:
            return np.dtype(f"<u{found.size_or_type}")
        if found.kind == _STRUCT:
            return self._struct_dtype(found)
        if found.kind == _ARRAY:
            element, _, count = struct.unpack_from("<III", self._data, found.tail)
            return (self._field(element), (count,))
        raise BtfError(f"a cell may hold integers, arrays and structs, not BTF kind {found.kind}")
