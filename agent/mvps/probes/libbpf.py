# SPDX-License-Identifier: Apache-2.0
"""The part of libbpf 1.x that we use, through ctypes.

Own layer rather than a binding: no compiler on the host, 20 MiB instead of bcc's 131, every call unprivileged-safe
with CAP_BPF, CAP_PERFMON (and CAP_NET_ADMIN for XDP). Prototypes are complete, because a missing restype truncates
64-bit pointers. libbpf 1.x reports failure as NULL or a negative number with errno set.
"""

from __future__ import annotations

import ctypes as ct
import errno
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mvps.probes.btf import Btf

_LOG_BYTES = 64 * 1024
NAME_BYTES = 15  # of a map's or program's name the kernel keeps (BPF_OBJ_NAME_LEN less the final zero)


class BpfError(OSError):
    """A libbpf or bpf(2) call failed; ``log`` holds the verifier's last words where there are any."""

    def __init__(self, number: int, what: str, log: str = "") -> None:
        advice = _ADVICE.get(number, "")
        super().__init__(number, f"{what}: {os.strerror(number)}" + (f" ({advice})" if advice else ""))
        self.log = log


_ADVICE = {
    errno.EPERM: "needs CAP_BPF and CAP_PERFMON, or root; see `mvps doctor`",
    errno.ESRCH: "the running kernel has no such hook or type",
    errno.ENOENT: "the running kernel lacks a symbol this program needs",
    errno.EINVAL: "the verifier or the kernel refused it",
    errno.ENOMEM: "out of memory, or over the memlock limit on a kernel before 5.11",
}


def _load() -> ct.CDLL:
    try:
        lib = ct.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        raise BpfError(errno.ENOENT, f"libbpf.so.1 not found ({error}); apt-get install libbpf1") from None
    pointer, text, number = ct.c_void_p, ct.c_char_p, ct.c_int
    prototypes: dict[str, tuple[Any, list[Any]]] = {
        "libbpf_set_print": (pointer, [pointer]),
        "libbpf_version_string": (text, []),
        "libbpf_num_possible_cpus": (number, []),
        "bpf_object__open_file": (pointer, [text, pointer]),
        "bpf_object__load": (number, [pointer]),
        "bpf_object__close": (None, [pointer]),
        "bpf_object__btf": (pointer, [pointer]),
        "btf__raw_data": (pointer, [pointer, ct.POINTER(ct.c_uint32)]),
        "bpf_object__find_map_by_name": (pointer, [pointer, text]),
        "bpf_object__next_map": (pointer, [pointer, pointer]),
        "bpf_object__next_program": (pointer, [pointer, pointer]),
        "bpf_map__name": (text, [pointer]),
        "bpf_map__fd": (number, [pointer]),
        "bpf_map__type": (number, [pointer]),
        "bpf_map__key_size": (ct.c_uint32, [pointer]),
        "bpf_map__map_flags": (ct.c_uint32, [pointer]),
        "bpf_map__value_size": (ct.c_uint32, [pointer]),
        "bpf_map__max_entries": (ct.c_uint32, [pointer]),
        "bpf_map__set_max_entries": (number, [pointer, ct.c_uint32]),
        "bpf_map__initial_value": (pointer, [pointer, ct.POINTER(ct.c_size_t)]),
        "bpf_program__name": (text, [pointer]),
        "bpf_program__fd": (number, [pointer]),
        "bpf_program__section_name": (text, [pointer]),
        "bpf_program__set_autoload": (number, [pointer, ct.c_bool]),
        "bpf_program__set_log_buf": (number, [pointer, pointer, ct.c_size_t]),
        "bpf_program__attach": (pointer, [pointer]),
        "bpf_link__destroy": (number, [pointer]),
        "bpf_map_create": (number, [number, text, ct.c_uint32, ct.c_uint32, ct.c_uint32, pointer]),
        "bpf_raw_tracepoint_open": (number, [text, number]),
        "bpf_obj_get_info_by_fd": (number, [number, pointer, ct.POINTER(ct.c_uint32)]),
        "bpf_enable_stats": (number, [number]),
        "bpf_prog_get_next_id": (number, [ct.c_uint32, ct.POINTER(ct.c_uint32)]),
        "bpf_prog_get_fd_by_id": (number, [ct.c_uint32]),
        "bpf_prog_test_run_opts": (number, [number, pointer]),
        "bpf_map__reuse_fd": (number, [pointer, number]),
        "bpf_map_lookup_elem": (number, [number, pointer, pointer]),
        "bpf_map_update_elem": (number, [number, pointer, pointer, ct.c_uint64]),
        "bpf_map_delete_elem": (number, [number, pointer]),
        "bpf_map_get_next_key": (number, [number, pointer, pointer]),
        "bpf_obj_pin": (number, [number, text]),
        "bpf_obj_get_opts": (number, [text, pointer]),
        "bpf_link_create": (number, [number, number, number, pointer]),
        "bpf_link_update": (number, [number, number, pointer]),
        "bpf_xdp_query": (number, [number, number, pointer]),
    }
    for name, (result, arguments) in prototypes.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    lib.libbpf_set_print(None)  # its messages go to stderr otherwise; we report errno and the verifier log
    return lib


_library: ct.CDLL | None = None


def library() -> ct.CDLL:
    """The loaded library; raises BpfError when libbpf 1.x is not installed."""
    global _library
    if _library is None:
        _library = _load()
    return _library


def version() -> str:
    """Version of the libbpf in use, such as ``v1.1``."""
    text: bytes = library().libbpf_version_string()
    return text.decode()


def possible_cpus() -> int:
    """Number of possible CPUs, the length of every cell array."""
    count: int = library().libbpf_num_possible_cpus()
    if count < 1:
        raise BpfError(-count, "counting possible CPUs")
    return count


class ProgInfo(ct.Structure):
    """``struct bpf_prog_info`` up to ``verified_insns`` (kernel 5.16); a test compares it with the kernel's BTF."""

    _fields_ = [
        ("type", ct.c_uint32),
        ("id", ct.c_uint32),
        ("tag", ct.c_uint8 * 8),
        ("jited_prog_len", ct.c_uint32),
        ("xlated_prog_len", ct.c_uint32),
        ("jited_prog_insns", ct.c_uint64),
        ("xlated_prog_insns", ct.c_uint64),
        ("load_time", ct.c_uint64),
        ("created_by_uid", ct.c_uint32),
        ("nr_map_ids", ct.c_uint32),
        ("map_ids", ct.c_uint64),
        ("name", ct.c_char * 16),
        ("ifindex", ct.c_uint32),
        ("flags", ct.c_uint32),
        ("netns_dev", ct.c_uint64),
        ("netns_ino", ct.c_uint64),
        ("nr_jited_ksyms", ct.c_uint32),
        ("nr_jited_func_lens", ct.c_uint32),
        ("jited_ksyms", ct.c_uint64),
        ("jited_func_lens", ct.c_uint64),
        ("btf_id", ct.c_uint32),
        ("func_info_rec_size", ct.c_uint32),
        ("func_info", ct.c_uint64),
        ("nr_func_info", ct.c_uint32),
        ("nr_line_info", ct.c_uint32),
        ("line_info", ct.c_uint64),
        ("jited_line_info", ct.c_uint64),
        ("nr_jited_line_info", ct.c_uint32),
        ("line_info_rec_size", ct.c_uint32),
        ("jited_line_info_rec_size", ct.c_uint32),
        ("nr_prog_tags", ct.c_uint32),
        ("prog_tags", ct.c_uint64),
        ("run_time_ns", ct.c_uint64),
        ("run_cnt", ct.c_uint64),
        ("recursion_misses", ct.c_uint64),
        ("verified_insns", ct.c_uint32),
    ]


def program_info(fd: int) -> ProgInfo:
    """Kernel's record of a loaded program (own file descriptor: no privilege beyond CAP_BPF needed)."""
    info, size = ProgInfo(), ct.c_uint32(ct.sizeof(ProgInfo))
    if library().bpf_obj_get_info_by_fd(fd, ct.byref(info), ct.byref(size)):
        raise BpfError(ct.get_errno(), "reading program information")
    return info


def enable_stats() -> int:
    """Switch run-time statistics of all programs on; they go off when the returned descriptor is closed (root only)."""
    fd: int = library().bpf_enable_stats(0)  # BPF_STATS_RUN_TIME
    if fd < 0:
        raise BpfError(-fd, "switching BPF run-time statistics on")
    return fd


class _TestRunOptions(ct.Structure):
    """``struct bpf_test_run_opts`` of libbpf 1.x."""

    _fields_ = [
        ("sz", ct.c_size_t),
        ("data_in", ct.c_void_p),
        ("data_out", ct.c_void_p),
        ("data_size_in", ct.c_uint32),
        ("data_size_out", ct.c_uint32),
        ("ctx_in", ct.c_void_p),
        ("ctx_out", ct.c_void_p),
        ("ctx_size_in", ct.c_uint32),
        ("ctx_size_out", ct.c_uint32),
        ("retval", ct.c_uint32),
        ("repeat", ct.c_int),
        ("duration", ct.c_uint32),
        ("flags", ct.c_uint32),
        ("cpu", ct.c_uint32),
        ("batch_size", ct.c_uint32),
    ]


def test_run(fd: int) -> int:
    """Run a raw tracepoint program once (BPF_PROG_TEST_RUN) and return its result."""
    options = _TestRunOptions(sz=ct.sizeof(_TestRunOptions))
    result = library().bpf_prog_test_run_opts(fd, ct.byref(options))
    if result:
        raise BpfError(-result, "running a program once")
    return int(options.retval)


def run_packet(fd: int, packet: bytes, repeat: int = 1) -> tuple[int, int]:
    """Run an XDP program on a packet, ``repeat`` times: its last verdict, and ns per run as the kernel measured it.

    The kernel refuses packets shorter than an Ethernet header (14 bytes).
    """
    data = ct.create_string_buffer(packet, len(packet))
    options = _TestRunOptions(
        sz=ct.sizeof(_TestRunOptions), data_in=ct.addressof(data), data_size_in=len(packet), repeat=repeat
    )
    result = library().bpf_prog_test_run_opts(fd, ct.byref(options))
    if result:
        raise BpfError(-result, f"running a program on a packet of {len(packet)} bytes")
    return int(options.retval), int(options.duration)


# ---- maps, links and pins by descriptor

_PERCPU_TYPES = frozenset({5, 6, 10})  # BPF_MAP_TYPE_PERCPU_HASH, _ARRAY, LRU_PERCPU_HASH
_BPF_NOEXIST = 1
_BPF_F_RDONLY = 1 << 3
_BPF_XDP = 37  # attach type


class MapInfo(ct.Structure):
    """``struct bpf_map_info`` up to its name; a test compares it with the kernel's BTF."""

    _fields_ = [
        ("type", ct.c_uint32),
        ("id", ct.c_uint32),
        ("key_size", ct.c_uint32),
        ("value_size", ct.c_uint32),
        ("max_entries", ct.c_uint32),
        ("map_flags", ct.c_uint32),
        ("name", ct.c_char * 16),
    ]


class BpfMap:
    """A map by its descriptor, which it owns. Keys and values are bytes; a per-CPU map's value is one per possible CPU.

    Reading and writing through a descriptor needs no capability, opening a pin needs its file permissions only
    (kernel 5.19, commit c8644cd0efe7: unprivileged_bpf_disabled stops loading and creating alone).
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        info, size = MapInfo(), ct.c_uint32(ct.sizeof(MapInfo))
        if library().bpf_obj_get_info_by_fd(fd, ct.byref(info), ct.byref(size)):
            number = ct.get_errno()
            os.close(fd)
            raise BpfError(number, "reading map information")
        self.name = info.name.decode()
        self.map_id = int(info.id)
        self.key_size = int(info.key_size)
        self.value_size = int(info.value_size)
        self.entries = int(info.max_entries)
        self._copies = possible_cpus() if info.type in _PERCPU_TYPES else 1

    def __enter__(self) -> BpfMap:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def get(self, key: bytes) -> bytes | None:
        """Value at ``key``, of a per-CPU map all copies one after the other; None if there is none."""
        self._check(key, self.key_size)
        stride = (self.value_size + 7) // 8 * 8 if self._copies > 1 else self.value_size
        value = ct.create_string_buffer(stride * self._copies)
        if library().bpf_map_lookup_elem(self.fd, key, value):
            if ct.get_errno() == errno.ENOENT:
                return None
            raise BpfError(ct.get_errno(), f"reading from {self.name}")
        return value.raw

    def put(self, key: bytes, value: bytes, *, only_new: bool = False) -> bool:
        """Set a value. False: ``only_new`` was asked and there is one. BpfError E2BIG when the map is full."""
        self._check(key, self.key_size)
        self._check(value, self.value_size * self._copies)
        if library().bpf_map_update_elem(self.fd, key, value, _BPF_NOEXIST if only_new else 0):
            if only_new and ct.get_errno() == errno.EEXIST:
                return False
            raise BpfError(ct.get_errno(), f"writing to {self.name}")
        return True

    def remove(self, key: bytes) -> bool:
        """Remove a key; False if it was not there."""
        self._check(key, self.key_size)
        if library().bpf_map_delete_elem(self.fd, key):
            if ct.get_errno() == errno.ENOENT:
                return False
            raise BpfError(ct.get_errno(), f"removing from {self.name}")
        return True

    def all_keys(self) -> list[bytes]:
        """Keys at this moment; at most the map's size, however it changes meanwhile."""
        found: list[bytes] = []
        key = ct.create_string_buffer(self.key_size)
        last: Any = None
        while len(found) < self.entries and not library().bpf_map_get_next_key(self.fd, last, key):
            found.append(key.raw)
            last = found[-1]
        return found

    def _check(self, given: bytes, size: int) -> None:
        # libbpf reads as many bytes as the map says, whatever it is given.
        if len(given) != size:
            raise ValueError(f"{self.name}: {len(given)} bytes given, {size} needed")


@dataclass(frozen=True, slots=True)
class MapDefinition:
    """A map as an object declares it: sizes of key and value in bytes, type and flags as bpf(2) numbers them."""

    name: str
    kind: int
    key_size: int
    value_size: int
    entries: int
    flags: int


class _CreateOptions(ct.Structure):
    """``struct bpf_map_create_opts`` as far as we set it; libbpf takes the rest as zero."""

    _fields_ = [
        ("sz", ct.c_size_t),
        ("btf_fd", ct.c_uint32),
        ("btf_key_type_id", ct.c_uint32),
        ("btf_value_type_id", ct.c_uint32),
        ("btf_vmlinux_value_type_id", ct.c_uint32),
        ("inner_map_fd", ct.c_uint32),
        ("map_flags", ct.c_uint32),
    ]


def create_map(definition: MapDefinition, entries: int) -> int:
    """Descriptor of a new map, made as declared, with this many entries."""
    options = _CreateOptions(sz=ct.sizeof(_CreateOptions), map_flags=definition.flags)
    fd: int = library().bpf_map_create(
        definition.kind,
        definition.name[:NAME_BYTES].encode(),
        definition.key_size,
        definition.value_size,
        entries,
        ct.byref(options),
    )
    if fd < 0:
        raise BpfError(-fd, f"making map {definition.name}")
    return fd


def values_of(fd: int, entries: int, layout: np.dtype[Any]) -> tuple[mmap.mmap, NDArray[Any]]:
    """The live values of an mmap-able array map, shape (entries,); they are valid while the mapping is kept."""
    stride = (layout.itemsize + 7) // 8 * 8
    mapping = mmap.mmap(fd, -(-entries * stride // mmap.PAGESIZE) * mmap.PAGESIZE)
    return mapping, np.frombuffer(mapping, dtype=layout, count=entries)


class _GetOptions(ct.Structure):
    """``struct bpf_obj_get_opts``."""

    _fields_ = [("sz", ct.c_size_t), ("file_flags", ct.c_uint32)]


def open_pin(path: Path, *, read_only: bool = False) -> int:
    """Descriptor of what is pinned at ``path``; FileNotFoundError, PermissionError: the file's permissions decide."""
    options = _GetOptions(sz=ct.sizeof(_GetOptions), file_flags=_BPF_F_RDONLY if read_only else 0)
    fd: int = library().bpf_obj_get_opts(os.fsencode(path), ct.byref(options))
    if fd in (-errno.ENOENT, -errno.EACCES, -errno.EPERM):
        raise OSError(-fd, os.strerror(-fd), str(path))  # Python makes the right one of it
    if fd < 0:
        raise BpfError(-fd, f"opening {path}")
    return fd


def pin(fd: int, path: Path) -> None:
    """Keep a map, program or link alive under a path in a BPF file system, beyond the life of this process."""
    result = library().bpf_obj_pin(fd, os.fsencode(path))
    if result:
        raise BpfError(-result, f"pinning at {path}")


class LinkInfo(ct.Structure):
    """``struct bpf_link_info`` of an XDP link. ``ifindex`` is 0 once its interface is gone."""

    _fields_ = [
        ("type", ct.c_uint32),
        ("id", ct.c_uint32),
        ("prog_id", ct.c_uint32),
        ("reserved", ct.c_uint32),
        ("ifindex", ct.c_uint32),
        ("rest", ct.c_uint8 * 60),
    ]


def link_info(fd: int) -> LinkInfo:
    """The kernel's record of a link."""
    info, size = LinkInfo(), ct.c_uint32(ct.sizeof(LinkInfo))
    if library().bpf_obj_get_info_by_fd(fd, ct.byref(info), ct.byref(size)):
        raise BpfError(ct.get_errno(), "reading link information")
    return info


class _LinkOptions(ct.Structure):
    """``struct bpf_link_create_opts`` as far as XDP reads it; libbpf takes the rest as zero."""

    _fields_ = [("sz", ct.c_size_t), ("flags", ct.c_uint32)]


XDP_GENERIC = 1 << 1
XDP_NATIVE = 1 << 2


def attach_xdp(program: int, ifindex: int, flags: int) -> int:
    """Descriptor of a new link; the program stays attached while the link is open or pinned.

    flags: XDP_NATIVE or XDP_GENERIC. EBUSY or EEXIST: another program is there.
    """
    options = _LinkOptions(sz=ct.sizeof(_LinkOptions), flags=flags)
    fd: int = library().bpf_link_create(program, ifindex, _BPF_XDP, ct.byref(options))
    if fd < 0:
        raise BpfError(-fd, f"attaching to interface {ifindex}")
    return fd


def update_link(link: int, program: int) -> None:
    """Put another program in the place of a link's, between two packets."""
    result = library().bpf_link_update(link, program, None)
    if result:
        raise BpfError(-result, "replacing the program of a link")


XDP_MODES = {1: "native", 2: "generic", 3: "hardware", 4: "several"}


class XdpQuery(ct.Structure):
    """``struct bpf_xdp_query_opts``; attach_mode: 0, or a key of XDP_MODES."""

    _fields_ = [
        ("sz", ct.c_size_t),
        ("prog_id", ct.c_uint32),
        ("drv_prog_id", ct.c_uint32),
        ("hw_prog_id", ct.c_uint32),
        ("skb_prog_id", ct.c_uint32),
        ("attach_mode", ct.c_uint8),
    ]


def query_xdp(ifindex: int) -> XdpQuery:
    """What is attached to an interface of this network namespace; needs no privilege."""
    found = XdpQuery(sz=ct.sizeof(XdpQuery))
    result = library().bpf_xdp_query(ifindex, 0, ct.byref(found))
    if result:
        raise BpfError(-result, f"asking what is attached to interface {ifindex}")
    return found


def program_name(program_id: int) -> str:
    """Name of a loaded program by its id, "" if it is gone or may not be asked for (root only)."""
    fd: int = library().bpf_prog_get_fd_by_id(program_id)
    if fd < 0:
        return ""
    try:
        name: bytes = program_info(fd).name
        return name.decode()
    finally:
        os.close(fd)


class BpfObject:
    """One ``.bpf.o``: opened, then loaded, then attached; everything goes when it is closed or the process ends.

    Links are plain descriptors (nothing is pinned), so that not even SIGKILL leaves a program behind.
    """

    def __init__(self, path: Path) -> None:
        self._lib = library()
        self.name = path.name.removesuffix(".bpf.o")
        self._object: int | None = self._lib.bpf_object__open_file(os.fsencode(path), None)
        if not self._object:
            raise BpfError(ct.get_errno(), f"opening {path.name}")
        size = ct.c_uint32()
        raw = self._lib.btf__raw_data(self._lib.bpf_object__btf(self._object), ct.byref(size))
        if not raw:
            raise BpfError(errno.EINVAL, f"{path.name} carries no BTF")
        self.btf = Btf(ct.string_at(raw, size.value))
        self._links: list[int] = []
        self._mappings: list[mmap.mmap] = []
        self._log_buffers: list[Any] = []

    def __enter__(self) -> BpfObject:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _walk(self, step: str) -> Iterator[int]:
        found = getattr(self._lib, step)(self._object, None)
        while found:
            yield found
            found = getattr(self._lib, step)(self._object, found)

    def programs(self) -> dict[str, int]:
        """Program name -> handle, in the order of the source."""
        return {self._lib.bpf_program__name(p).decode(): p for p in self._walk("bpf_object__next_program")}

    def hooks(self) -> dict[str, str]:
        """Program name -> the section that says where it belongs, such as ``tp_btf/softirq_entry``."""
        return {name: self._lib.bpf_program__section_name(handle).decode() for name, handle in self.programs().items()}

    def map_definitions(self) -> list[MapDefinition]:
        """Every map the source declares; those that hold its constants are libbpf's own."""
        found: list[MapDefinition] = []
        for handle in self._walk("bpf_object__next_map"):
            name = self._lib.bpf_map__name(handle).decode()
            if "." in name:
                continue
            numbers = ("type", "key_size", "value_size", "max_entries", "map_flags")
            found.append(MapDefinition(name, *(getattr(self._lib, f"bpf_map__{number}")(handle) for number in numbers)))
        return found

    def _map(self, name: str) -> int:
        found: int | None = self._lib.bpf_object__find_map_by_name(self._object, name.encode())
        if not found:
            raise BpfError(errno.ENOENT, f"{self.name}: no map {name}")
        return found

    def set_entries(self, map_name: str, entries: int) -> None:
        """Set a map's size; before load only."""
        result = self._lib.bpf_map__set_max_entries(self._map(map_name), entries)
        if result:
            raise BpfError(-result, f"{self.name}: resizing {map_name}")

    def set_constants(self, values: dict[str, int]) -> None:
        """Set ``const volatile`` globals; before load only. An unknown name is a BpfError."""
        if not values:
            return
        for candidate in self._walk("bpf_object__next_map"):
            if self._lib.bpf_map__name(candidate).endswith(b".rodata"):
                break
        else:
            raise BpfError(errno.ENOENT, f"{self.name}: no constants")
        size = ct.c_size_t()
        start = self._lib.bpf_map__initial_value(candidate, ct.byref(size))
        for name, value in values.items():
            offset, width = self.btf.variable(".rodata", name)
            ct.memmove(start + offset, value.to_bytes(width, "little"), width)

    def skip_program(self, name: str) -> None:
        """Leave a program out; before load only."""
        self._lib.bpf_program__set_autoload(self.programs()[name], False)

    def load(self) -> None:
        """Verify and load all programs; BpfError names the one refused and carries the verifier's log."""
        logs = {}
        for name, program in self.programs().items():
            logs[name] = ct.create_string_buffer(_LOG_BYTES)
            self._lib.bpf_program__set_log_buf(program, logs[name], _LOG_BYTES)
        result = self._lib.bpf_object__load(self._object)
        if result:
            # A refused program's log ends without the "processed N insns" of an accepted one being its first line.
            texts = {name: log.value.decode(errors="replace") for name, log in logs.items() if log.value}
            refused, text = next(reversed(texts.items()), ("", ""))
            raise BpfError(-result, f"loading {self.name}" + (f" (program {refused})" if refused else ""), text)
        self._log_buffers = list(logs.values())  # libbpf keeps the pointers

    def attach(self) -> None:
        """Attach every loaded program at the hook its section names."""
        for name, program in self.programs().items():
            if self._lib.bpf_program__fd(program) < 0:
                continue
            link = self._lib.bpf_program__attach(program)
            if not link:
                raise BpfError(ct.get_errno(), f"attaching {self.name}/{name}")
            self._links.append(link)

    def reuse(self, map_name: str, fd: int) -> None:
        """Take an existing map in place of a new one; before load only. Its definition must be the same."""
        result = self._lib.bpf_map__reuse_fd(self._map(map_name), fd)
        if result:
            raise BpfError(-result, f"{self.name}: taking over {map_name}")

    def map(self, map_name: str) -> BpfMap:
        """A loaded map, under a descriptor of its own."""
        return BpfMap(os.dup(self._lib.bpf_map__fd(self._map(map_name))))

    def program_fds(self) -> dict[str, int]:
        """Loaded program name -> descriptor."""
        fds = {name: self._lib.bpf_program__fd(program) for name, program in self.programs().items()}
        return {name: fd for name, fd in fds.items() if fd >= 0}

    def view(self, map_name: str, struct_name: str) -> NDArray[Any]:
        """The live values of an mmap-able array map, shape (entries,), dtype ``struct struct_name``; no copy.

        Valid until :meth:`close`; take ``.copy()`` for a consistent reading.
        """
        handle = self._map(map_name)
        layout = self.btf.dtype(struct_name)
        value_size = self._lib.bpf_map__value_size(handle)
        if layout.itemsize != value_size:
            raise BpfError(errno.EINVAL, f"{map_name}: value of {value_size} B, struct of {layout.itemsize} B")
        mapping, values = values_of(self._lib.bpf_map__fd(handle), self._lib.bpf_map__max_entries(handle), layout)
        self._mappings.append(mapping)
        return values

    def close(self) -> None:
        """Detach and unload; idempotent. Views must no longer be used."""
        for link in self._links:
            self._lib.bpf_link__destroy(link)
        self._links.clear()
        if self._object:
            self._lib.bpf_object__close(self._object)
            self._object = None
        self._log_buffers.clear()
        self._mappings.clear()  # unmapped when the last numpy view goes
