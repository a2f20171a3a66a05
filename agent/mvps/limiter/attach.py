# SPDX-License-Identifier: Apache-2.0
"""Loads, attaches, renews and removes the limiter: by root, or with CAP_BPF, PERFMON, NET_ADMIN and SYS_ADMIN.

Program and maps live in a BPF file system of their own, pinned, so that neither the end of the broker nor of whoever
attached them takes the limiter out of force::

    /run/mvps.limiter/                a mount of type bpf, 0750 root:mvps
        v1/                           version of the maps' meaning
            flows                     0660: the broker writes here who is proven
            verdicts sources          0640: counters, kept over changes of the plan
            limits shards handshakes prefixes4 prefixes6    0640: one plan; replaced together
            link_eth0                 0600: holds the program to an interface

A new plan is a new program with new plan maps. It takes the old one's place in the link between two packets, the pins
follow by rename. A deleted interface severs its link: the pin stays and holds nothing, which :class:`Watcher` repairs.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import grp
import os
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from mvps.limiter import layout
from mvps.limiter.plan import MAX_FLOWS, Plan
from mvps.probes import libbpf
from mvps.probes.libbpf import BpfError, BpfMap, BpfObject

GROUP: Final = "mvps-broker"
OBJECT: Final = Path(libbpf.__file__).parent / "bpf/limiter.bpf.o"
_PROGRAM: Final = "limiter"
_BPF_FS: Final = 0xCAFE4A11
_MNT_DETACH: Final = 2


class LimiterError(Exception):
    """The limiter cannot be attached, read or removed. The message says what to do."""


class NotAttachedError(LimiterError):
    """There is no limiter here."""


class Mode(StrEnum):
    """Where the kernel runs the program: in the driver, or after it has made a socket buffer (slower, any driver)."""

    NATIVE = "native"
    GENERIC = "generic"


_FLAGS: Final = {Mode.NATIVE: libbpf.XDP_NATIVE, Mode.GENERIC: libbpf.XDP_GENERIC}


@dataclass(frozen=True, slots=True)
class Place:
    """One interface of the limiter. state: attached or severed; mode: as the kernel reports it, "" when severed."""

    interface: str
    state: str
    mode: str


def pins(folder: Path) -> Path:
    """Where the pins of this version lie."""
    return folder / layout.SCHEMA


def attach(folder: Path, interfaces: Sequence[str], plan: Plan, mode: Mode = Mode.NATIVE) -> list[Place]:
    """Put ``plan`` in force on these interfaces, and on those that have a limiter already.

    Where one is attached its program is replaced between two packets; proven flows and counters stay. A severed link is
    made again. Nothing is changed when an interface is missing, has another XDP program or refuses the mode.
    """
    places = _prepare(folder)
    try:
        _replace(places, interfaces, plan, mode)
    except LimiterError:
        _remove_if_empty(folder)
        raise
    return states(folder)


def _replace(places: Path, interfaces: Sequence[str], plan: Plan, mode: Mode) -> None:
    known = [name for path in places.iterdir() if (name := layout.interface_of(path.name))]
    wanted = list(dict.fromkeys([*interfaces, *known]))
    with _lock(), load(plan, places) as program:
        fd = program_fd(program)
        fresh: list[tuple[str, int]] = []
        held: list[int] = []
        try:
            for name in wanted:
                # A known interface may be gone: that is the watcher's to repair, not a reason to keep an old plan.
                index = _index(name, required=name in interfaces)
                link = _living_link(places, name, index)
                if link is not None:
                    held.append(link)
                elif index:
                    fresh.append((name, _new_link(fd, name, index, mode)))
            for link in held:
                libbpf.update_link(link, fd)
            _pin(program, places)
            for name, link in fresh:
                path = places / layout.link_name(name)
                path.unlink(missing_ok=True)  # severed
                libbpf.pin(link, path)
                path.chmod(0o600)
        except BpfError as error:
            raise LimiterError(f"cannot put the limiter in force: {error}") from error
        finally:
            for descriptor in [*held, *(link for _, link in fresh)]:
                os.close(descriptor)


def states(folder: Path) -> list[Place]:
    """The limiter's interfaces, from what the kernel says of them now. No privilege beyond reading the folder."""
    places = pins(folder)
    try:
        names = sorted(name for path in places.iterdir() if (name := layout.interface_of(path.name)))
        limits = _read_limits(places)
    except FileNotFoundError:
        raise NotAttachedError(f"no limiter in {folder}: `mvps broker attach --interface IF` installs it") from None
    except PermissionError:
        raise LimiterError(f"may not read {places}: be root, or a member of the group {GROUP}") from None
    program = limits[11]
    found = []
    for name in names:
        index = _index(name, required=False)
        seen = libbpf.query_xdp(index) if index else None
        ours = seen is not None and program in (seen.drv_prog_id, seen.skb_prog_id, seen.hw_prog_id)
        mode = libbpf.XDP_MODES.get(seen.attach_mode, "") if seen is not None and ours else ""
        found.append(Place(name, "attached" if ours else "severed", mode))
    return found


def detach(folder: Path) -> list[str]:
    """Remove the limiter and everything it pinned; names of the interfaces it was on."""
    places = pins(folder)
    if not places.is_dir():
        raise NotAttachedError(f"no limiter in {folder}: nothing to remove")
    names = sorted(name for path in places.iterdir() if (name := layout.interface_of(path.name)))
    try:
        # Links first: no program may be in force without the maps that show it.
        for path in sorted(places.iterdir(), key=lambda path: layout.interface_of(path.name) is None):
            path.unlink()
    except PermissionError:
        raise LimiterError(f"may not remove {places}: removing the limiter needs root") from None
    _remove_if_empty(folder)
    return names


def _remove_if_empty(folder: Path) -> None:
    """Remove the pin folder and its mount, if they hold nothing any more."""
    try:
        pins(folder).rmdir()
    except OSError:
        return
    # Other versions' pins stay. What else is there is not ours: the kernel's files, and folders that iproute2 makes in
    # whatever BPF file system it finds first.
    if os.path.ismount(folder) and not any(re.fullmatch(r"v\d+", path.name) for path in folder.iterdir()):
        _libc().umount2(os.fsencode(folder), _MNT_DETACH)
        with contextlib.suppress(OSError):
            folder.rmdir()


class Watcher:
    """Keeps the limiter as it should be: repairs severed links and puts new plans in force.

    plan: the plan as of now. say: gets one line for everything that changes.
    """

    def __init__(
        self,
        folder: Path,
        interfaces: Sequence[str],
        plan: Callable[[], Plan],
        mode: Mode,
        say: Callable[[str], None],
    ) -> None:
        self._folder = folder
        self._interfaces = tuple(interfaces)
        self._plan = plan
        self._mode = mode
        self._say = say
        self._in_force: Plan | None = None
        self._trouble = ""

    def step(self) -> None:
        """Look once, act where something is not as it should be. Trouble is told once, when it begins."""
        try:
            plan = self._plan()
            try:
                severed = {place.interface for place in states(self._folder) if place.state == "severed"}
                missing = set(self._interfaces) - {place.interface for place in states(self._folder)}
            except NotAttachedError:
                severed, missing = set(), set(self._interfaces)
            back = [name for name in sorted(severed | missing) if _index(name, required=False)]
            gone = sorted((severed | missing) - set(back))
            if again := sorted(severed & set(back)):
                self._say(f"severed: {', '.join(again)} is another device of that name now; attaching again")
            if plan != self._in_force or back:
                present = [name for name in self._interfaces if name not in gone]
                places = attach(self._folder, present, plan, self._mode)
                self._in_force = plan
                shown = ", ".join(f"{place.interface} {place.state} {place.mode}".rstrip() for place in places)
                self._say(f"limiter in force for port {plan.port}, {len(plan.shards) - 1} prefixes: {shown}")
            trouble = f"severed: {', '.join(gone)} is gone; attached again when it is back" if gone else ""
        except (LimiterError, BpfError) as error:
            trouble = str(error)
        if trouble and trouble != self._trouble:
            self._say(trouble)
        self._trouble = trouble


# ---- steps of attach


def _prepare(folder: Path) -> Path:
    """The pin folder, on a BPF file system, owned by the broker's group where that exists."""
    try:
        folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        if not _is_bpf(folder):
            _mount(folder)
        places = pins(folder)
        places.mkdir(mode=0o750, exist_ok=True)
        for path in (folder, places) if os.path.ismount(folder) else (places,):
            path.chmod(0o750)
            _give_to_group(path)
    except PermissionError as error:
        raise LimiterError(f"cannot use {folder}: {error.strerror}; attaching the limiter needs root") from None
    except OSError as error:
        raise LimiterError(f"cannot use {folder} for the limiter's pins: {error.strerror}") from None
    return places


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _is_bpf(folder: Path) -> bool:
    """Whether a folder lies in a BPF file system (statfs's f_type is its first word)."""
    answer = (ctypes.c_long * 32)()
    if _libc().statfs(os.fsencode(folder), ctypes.byref(answer)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return answer[0] & 0xFFFFFFFF == _BPF_FS


def _mount(folder: Path) -> None:
    if _libc().mount(b"bpf", os.fsencode(folder), b"bpf", 0, b"mode=0750"):
        number = ctypes.get_errno()
        raise PermissionError(number, f"mounting a BPF file system there: {os.strerror(number)}")


def _give_to_group(path: Path) -> None:
    with contextlib.suppress(KeyError):  # without such a group only root reads
        os.chown(path, -1, grp.getgrnam(GROUP).gr_gid)


@contextlib.contextmanager
def _lock() -> Iterator[None]:
    """One change at a time on this host; held by an abstract socket, so that it cannot be left behind."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as held:
        try:
            held.bind("\0mvps-limiter")
        except OSError:
            raise LimiterError("another process is changing the limiter; try again") from None
        yield


def load(plan: Plan, places: Path | None = None) -> BpfObject:
    """The program with the maps of a plan, attached to nothing; flows and counters are those pinned in ``places``."""
    program = BpfObject(OBJECT)
    lasting: list[int] = []
    try:
        _size(program, plan)
        for name, path in _lasting(places):
            with contextlib.suppress(FileNotFoundError):
                lasting.append(libbpf.open_pin(path))
                program.reuse(name, lasting[-1])
        program.load()
        _fill(program, plan, _number(places))
    except BpfError as error:
        program.close()
        if error.errno == errno.EPERM:
            raise LimiterError(
                "loading the limiter needs root, or CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN (mvps-limiter.service)"
            ) from error
        raise LimiterError(f"the kernel does not take the limiter: {error}; see `mvps doctor`") from error
    finally:
        for fd in lasting:
            os.close(fd)
    return program


def program_fd(program: BpfObject) -> int:
    """Descriptor of the loaded limiter itself."""
    return program.program_fds()[_PROGRAM]


def _lasting(places: Path | None) -> list[tuple[str, Path]]:
    return [(name, places / name) for name in layout.LASTING_MAPS] if places is not None else []


def _size(program: BpfObject, plan: Plan) -> None:
    prefixes = [shard.prefix for shard in plan.shards if shard.prefix is not None]
    program.set_entries("flows", MAX_FLOWS)
    program.set_entries("shards", len(plan.shards))
    program.set_entries("handshakes", len(plan.shards))
    program.set_entries("prefixes4", max(1, sum(prefix.version == 4 for prefix in prefixes)))
    program.set_entries("prefixes6", max(1, sum(prefix.version == 6 for prefix in prefixes)))


def _fill(program: BpfObject, plan: Plan, number: int) -> None:
    with (
        program.map("limits") as limits,
        program.map("shards") as shards,
        program.map("prefixes4") as prefixes4,
        program.map("prefixes6") as prefixes6,
    ):
        program_id = libbpf.program_info(program_fd(program)).id
        limits.put(layout.INDEX.pack(0), layout.pack_limits(plan, number, program_id))
        for index, shard in enumerate(plan.shards):
            shards.put(layout.INDEX.pack(index), layout.pack_shard(shard.handshake, shard.total))
            if shard.prefix is not None:
                of = prefixes4 if shard.prefix.version == 4 else prefixes6
                of.put(layout.prefix_key(shard.prefix), layout.INDEX.pack(index))


def _number(places: Path | None) -> int:
    """The number of the next plan; never 0, which stands for a flow that has none yet."""
    try:
        return _read_limits(places)[7] % 0xFFFFFFFF + 1 if places is not None else 1
    except FileNotFoundError:
        return 1


def _read_limits(places: Path) -> tuple[int, ...]:
    with BpfMap(libbpf.open_pin(places / "limits", read_only=True)) as limits:
        return layout.LIMITS.unpack(limits.get(layout.INDEX.pack(0)) or bytes(layout.LIMITS.size))


def _index(name: str, *, required: bool) -> int:
    """Index of an interface of this network namespace, 0 if there is none and it is not required."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        if required:
            raise LimiterError(f"there is no interface {name}: `ip -br link` lists them") from None
        return 0


def _living_link(places: Path, name: str, index: int) -> int | None:
    """Descriptor of the interface's link, unless it has none or a severed one."""
    try:
        link = libbpf.open_pin(places / layout.link_name(name))
    except FileNotFoundError:
        return None
    if index and libbpf.link_info(link).ifindex == index:
        return link
    os.close(link)
    return None


def _new_link(program: int, name: str, index: int, mode: Mode) -> int:
    try:
        return libbpf.attach_xdp(program, index, _FLAGS[mode])
    except BpfError as error:
        if error.errno in (errno.EBUSY, errno.EEXIST):
            seen = libbpf.query_xdp(index)
            other = seen.drv_prog_id or seen.skb_prog_id or seen.hw_prog_id or seen.prog_id
            mode_there = libbpf.XDP_MODES.get(seen.attach_mode, "unknown")
            raise LimiterError(
                f"{name} already runs the XDP program {libbpf.program_name(other) or '?'} (id {other}, "
                f"{mode_there} mode), and an interface takes one: remove that one first "
                f"(`bpftool net` shows whose it is; `ip link set dev {name} xdp off` removes one that is not a link)"
            ) from error
        if mode is Mode.NATIVE:
            raise LimiterError(
                f"the driver of {name} does not take an XDP program ({os.strerror(error.errno or 0)}; a large MTU can "
                "be the reason): --mode generic runs it in the network stack, on any driver, at a higher cost"
            ) from error
        raise LimiterError(f"cannot attach to {name}: {error}") from error


def _pin(program: BpfObject, places: Path) -> None:
    """Pin the maps; those of a plan take the place of the last plan's."""
    for name, mode in layout.LASTING_MAPS.items() | layout.PLAN_MAPS.items():
        path = places / name
        if name in layout.LASTING_MAPS and path.exists():
            continue
        fresh = places / f"{name}_new"
        fresh.unlink(missing_ok=True)  # left by one that was killed
        with program.map(name) as one:
            libbpf.pin(one.fd, fresh)
        fresh.chmod(mode)
        _give_to_group(fresh)
        fresh.rename(path)
