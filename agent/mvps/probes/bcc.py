# SPDX-License-Identifier: Apache-2.0
"""The second loader, for kernels that carry no BTF: a signal's own source, compiled here by bcc.

CO-RE needs ``/sys/kernel/btf/vmlinux``. Where a kernel was built without it, the headers it was built with say the
same, so that the source (bpf/core.h and bpf/bcc.h spell it for either loader) can be compiled on the host:

 1. The built object is opened, not loaded: its declarations say which maps and programs there are and at which
    tracepoints, and its BTF how a cell is laid out. Maps are made from that, by us.
 2. A process of the system's Python compiles and loads the programs (bpf/with_bcc.py) against those maps, and hands
    back their descriptors. It takes up to 210 MiB and one or two seconds, and ends before the first tick.
 3. Each program is attached as a raw tracepoint of the same name.

Headers of another kernel compile just as well and read wrong offsets without a word (6.1's on 6.18 took srtt_us from
elsewhere), so headers whose release is not the running kernel's are refused.
"""

from __future__ import annotations

import contextlib
import errno
import json
import mmap
import os
import re
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from mvps.probes.btf import BtfError
from mvps.probes.libbpf import BpfError, BpfObject, create_map, library, values_of

Loader = Literal["auto", "core", "bcc"]

_PYTHON = "/usr/bin/python3"
_MODULE = "usr/lib/python3/dist-packages/bcc/__init__.py"
_COMPILE_S = 900.0  # a few where a processor is not emulated; the unit has a limit of its own
_LOG_CHARS = 4000
# Signals whose source reads types that no header shows.
_NEEDS_BTF = {"sched": "the run queue's clock is in no kernel header"}


def chosen(loader: Loader, root: Path = Path("/")) -> Literal["core", "bcc"]:
    """The loader that ``auto`` stands for on this host: core where the kernel carries BTF."""
    if loader != "auto":
        return loader
    return "core" if (root / "sys/kernel/btf/vmlinux").exists() else "bcc"


def why_not(release: str, root: Path = Path("/")) -> str:
    """What keeps bcc from compiling for the running kernel ``release``, with advice; "" for nothing."""
    if not (root / _MODULE).exists():
        return "python3-bpfcc is not installed: apt-get install python3-bpfcc"
    stated = root / f"lib/modules/{release}/build/include/generated/utsrelease.h"
    try:
        found = re.search(r'#define UTS_RELEASE "([^"]+)"', stated.read_text())
    except PermissionError:
        return f"{stated} may not be read: in a service, ProtectKernelModules= hides it (docs/operations.md)"
    except OSError:
        return f"no headers of kernel {release}: apt-get install linux-headers-{release}"
    if found is None or found[1] != release:
        return f"the headers are of kernel {found[1] if found else '?'}, and {release} is running: install its own"
    return ""


class BccObject:
    """One signal compiled by bcc; what :class:`mvps.probes.libbpf.BpfObject` offers, as far as cells need it."""

    def __init__(self, path: Path) -> None:
        self._declared = BpfObject(path)
        self._sources = path.parent
        self.name, self.btf = self._declared.name, self._declared.btf
        self._entries: dict[str, int] = {}
        self._constants: dict[str, int] = {}
        self._maps: dict[str, int] = {}
        self._programs: dict[str, int] = {}
        self._links: list[int] = []
        self._mappings: list[mmap.mmap] = []

    def set_entries(self, map_name: str, entries: int) -> None:
        """Set a map's size; before load only."""
        self._entries[map_name] = entries

    def set_constants(self, values: Mapping[str, int]) -> None:
        """Set constants; before load only. An unknown name is a BpfError."""
        for name, value in values.items():
            try:
                self.btf.variable(".rodata", name)
            except BtfError as error:
                raise BpfError(errno.ENOENT, f"{self.name}: {error}") from None
            self._constants[name] = value

    def load(self) -> None:
        """Make the maps, compile and load the programs. BpfError says what is missing, or carries bcc's words."""
        if self.name in _NEEDS_BTF:
            raise BpfError(errno.EOPNOTSUPP, f"{self.name} needs a kernel with BTF, {_NEEDS_BTF[self.name]}")
        if reason := why_not(os.uname().release):
            raise BpfError(errno.ENOPKG, f"compiling {self.name}: {reason}")
        self.compile()

    def compile(self) -> None:
        """:meth:`load` without asking whose headers there are."""
        for declared in self._declared.map_definitions():
            size = self._entries.get(declared.name, declared.entries)
            self._maps[declared.name] = create_map(declared, size)
        names = list(self._declared.hooks())
        functions = [
            f"int {name}(struct bpf_raw_tracepoint_args *ctx) {{ return {name}_run((u64 *)ctx); }}" for name in names
        ]
        flags = ["-DMVPS_BCC", f"-I{self._sources}"]
        flags += [f"-D{name}={value}ULL" for name, value in self._constants.items()]
        flags += [f"-DMAP_FD_{name}={fd}" for name, fd in self._maps.items()]
        text = "\n".join([f'#include "{self.name}.bpf.c"', *functions, ""])
        self._programs = dict(zip(names, self._run(text, flags, names), strict=True))

    def _run(self, text: str, flags: list[str], names: list[str]) -> list[int]:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            request = {"text": text, "flags": flags, "programs": names, "channel": theirs.fileno()}
            child = subprocess.Popen(
                [_PYTHON, "-I", "-B", self._sources / "with_bcc.py"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                pass_fds=[theirs.fileno(), *self._maps.values()],
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"},
            )
            with child:
                try:
                    _, complaint = child.communicate(json.dumps(request), _COMPILE_S)
                except subprocess.TimeoutExpired:
                    child.kill()
                    raise BpfError(errno.ETIMEDOUT, f"compiling {self.name} with bcc") from None
            log = complaint[-_LOG_CHARS:]
            if child.returncode:
                last = log.strip().rsplit("\n", 1)[-1]
                raise BpfError(errno.EINVAL, f"compiling {self.name} with bcc ({last})", log)
            _, fds, _, _ = socket.recv_fds(ours, 1, len(names))
        return fds

    def attach(self) -> None:
        """Attach every program at the tracepoint its declaration names."""
        for name, hook in self._declared.hooks().items():
            event = hook.removeprefix("tp_btf/")
            fd: int = library().bpf_raw_tracepoint_open(event.encode(), self._programs[name])
            if fd < 0:
                raise BpfError(-fd, f"attaching {self.name}/{name}")
            self._links.append(fd)

    def program_fds(self) -> dict[str, int]:
        """Loaded program name -> descriptor."""
        return dict(self._programs)

    def view(self, map_name: str, struct_name: str) -> NDArray[Any]:
        """The live values of an mmap-able array map; as BpfObject.view."""
        entries = self._entries.get(map_name, 1)
        mapping, values = values_of(self._maps[map_name], entries, self.btf.dtype(struct_name))
        self._mappings.append(mapping)
        return values

    def close(self) -> None:
        """Detach and unload; idempotent. Views must no longer be used."""
        for fd in (*self._links, *self._programs.values(), *self._maps.values()):
            with contextlib.suppress(OSError):
                os.close(fd)
        self._links.clear()
        self._programs.clear()
        self._maps.clear()
        self._mappings.clear()  # unmapped when the last numpy view goes
        self._declared.close()


def open_object(path: Path, loader: Loader) -> BpfObject | BccObject:
    """The signal whose object lies at ``path``, to be loaded by the loader chosen."""
    return BpfObject(path) if chosen(loader) == "core" else BccObject(path)
