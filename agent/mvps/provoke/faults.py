# SPDX-License-Identifier: Apache-2.0
"""The faults: each prepares what must exist in BAU, starts, stops, and removes everything it made.

dose 1 is the full fault; smaller doses are the same mechanism with less of it.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from mvps.provoke.network import ADDRESSES, PORT, ProvokeError, TwoHopPeer

_MIB = 1 << 20
_FILE_MIB = 256
_CGROUP_LIMIT_MIB = 64
# Full dose; a quarter of it is 20 Mbit/s, a hundredth 170.
_CHOKE_MBITS = 8.0
# No load lives longer than this, whatever happens to us.
LONGEST_S = 7200.0


@dataclass(frozen=True, slots=True)
class FaultSpec:
    """One kind of fault: the vantage it must be attributed to, and what it does in one line."""

    kind: str
    vantage: str
    summary: str


FAULTS: Mapping[str, FaultSpec] = {
    spec.kind: spec
    for spec in (
        FaultSpec("mm", "mm", "a task in a 64 MiB memory cgroup walks a 256 MiB file: direct reclaim"),
        FaultSpec("blk", "blk", "saturating random direct I/O"),
        FaultSpec("cpu", "sched", "more busy tasks than CPUs"),
        FaultSpec("sock", "sock", "loss, retransmission and queueing across a network namespace"),
        FaultSpec("path", "path", "one of two next hops is withdrawn from a multipath route"),
    )
}


def _load(kind: str, *arguments: str, rate: float = 1.0) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mvps.provoke.load", kind, "--seconds", str(LONGEST_S), "--rate", str(rate)]
    return subprocess.Popen(
        [*command, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        process_group=0,  # Ctrl-C is for the one who provokes; loads end when their input closes
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )


def _split(workers: float) -> tuple[int, float]:
    """A load of so many workers as (whole workers, the share of the time that each works)."""
    whole = max(1, math.ceil(round(workers, 9)))
    return whole, workers / whole


def _end(process: subprocess.Popen[str]) -> None:
    if process.stdin:
        process.stdin.close()  # a load ends by itself when its input closes
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout:
        process.stdout.close()


def _remove_group(group: Path) -> None:
    """Remove a cgroup whose processes have been waited for; the kernel may need a moment to notice."""
    for _ in range(50):
        try:
            group.rmdir()
            return
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.02)


def _hierarchies() -> dict[str, Path]:
    """Controller -> mount of the cgroup hierarchy that has it; ``""`` is the v2 hierarchy."""
    found: dict[str, Path] = {}
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mount, kind, options, *_ = line.split()
        if kind == "cgroup2":
            found[""] = Path(mount)
            for controller in (Path(mount) / "cgroup.controllers").read_text().split():
                found[controller] = Path(mount)
        elif kind == "cgroup":
            for controller in options.split(","):
                found[controller] = Path(mount)
    return found


@dataclass(slots=True)
class Host:
    """Everything faults share on this host: a scratch file, the two-hop peer, background traffic, running loads."""

    background_rate: float = 0.0
    directory: Path = Path("/var/tmp")  # on a disk: /tmp is memory on Debian 13, and no fault of mm or blk comes of it
    peer: TwoHopPeer = field(default_factory=TwoHopPeer)
    _scratch: Path | None = None
    _standing: list[subprocess.Popen[str]] = field(default_factory=list)
    _background: subprocess.Popen[str] | None = None
    _loads: list[subprocess.Popen[str]] = field(default_factory=list)
    _cgroups: list[Path] = field(default_factory=list)
    _undo: list[Callable[[], None]] = field(default_factory=list)
    _network: bool = False

    def __enter__(self) -> Host:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def prepare(self, *, network: bool) -> None:
        """Make what must be there before calibration. ProvokeError when this host cannot."""
        if os.geteuid() != 0:
            raise ProvokeError("provoking faults needs root")
        handle, name = tempfile.mkstemp(prefix="mvps-provoke-", dir=self.directory)
        self._scratch = Path(name)
        with os.fdopen(handle, "wb") as file:
            for _ in range(_FILE_MIB):
                file.write(os.urandom(_MIB))
            os.fsync(file.fileno())
        if network:
            self.peer.make()
            self._network = True
            server = _load("serve", "--netns", self.peer.netns, "--address", "0.0.0.0", "--port", str(PORT))
            self._standing.append(server)
            if not server.stdout or server.stdout.readline().strip() != "ready":
                raise ProvokeError("the peer's server did not start")
        if self.background_rate:
            targets = [word for address in ADDRESSES for word in ("--address", address)]
            self._background = _load(
                "background",
                *("--file", str(self._scratch), "--port", str(PORT), *targets),
                *self.workload("service"),
                rate=self.background_rate,
            )

    def set_background(self, factor: float) -> None:
        """Scale the background's request rate, e.g. 0.3 or 3: a benign load change."""
        if self._background and self._background.stdin:
            self._background.stdin.write(f"{self.background_rate * factor}\n")
            self._background.stdin.flush()

    def start(self, kind: str, dose: float = 1.0) -> None:
        """Begin a fault. ValueError for an unknown kind, ProvokeError when it cannot be made here."""
        if kind not in FAULTS:
            raise ValueError(f"unknown fault {kind!r}; there are {', '.join(FAULTS)}")
        if self._scratch is None:
            raise ProvokeError("prepare() first")
        if kind == "mm":
            group = self.workload("reclaim", memory_mib=_CGROUP_LIMIT_MIB)
            self._loads.append(_load("walk", "--file", str(self._scratch), *group, rate=dose))
        elif kind == "blk":
            threads, duty = _split(32 * dose)
            group = self.workload("disk")
            self._loads.append(
                _load("disk", "--file", str(self._scratch), "--threads", str(threads), *group, rate=duty)
            )
        elif kind == "cpu":
            count, duty = _split(4 * (os.cpu_count() or 1) * dose)
            group = self.workload("cpu")
            self._loads += [_load("cpu", *group, rate=duty) for _ in range(count)]
        elif kind == "sock":
            self._need_network(kind)
            self.peer.choke(_CHOKE_MBITS * dose ** (-2 / 3))
            self._undo.append(self.peer.unchoke)
            targets = [word for address in ADDRESSES[: max(2, round(12 * dose))] for word in ("--address", address)]
            self._loads.append(_load("bulk", "--port", str(PORT), *targets, *self.workload("bulk")))
        else:
            self._need_network(kind)
            self.peer.withdraw_hop()
            self._undo.append(self.peer.restore_hop)

    def _need_network(self, kind: str) -> None:
        if not self._network:
            raise ProvokeError(f"fault {kind!r} needs prepare(network=True)")

    def workload(self, name: str, memory_mib: int = 0) -> list[str]:
        """Options that put a load into a cgroup of its own, in every hierarchy the vantages name workloads by.

        A workload's name is the same on every run, so that a saved baseline knows it.
        """
        tops = _hierarchies()
        if memory_mib and "memory" not in tops:
            raise ProvokeError("no memory cgroup controller on this host; boot with cgroup_enable=memory")
        v1_names = {"io": "blkio"}
        options: list[str] = []
        controllers = ["", "io", "memory"] if memory_mib else ["", "io"]
        for top in dict.fromkeys(tops.get(c) or tops.get(v1_names.get(c, c)) for c in controllers):
            if top is None:
                continue
            group = top / f"mvps-provoke-{name}.slice"
            if not group.exists():
                group.mkdir()
                self._cgroups.append(group)
            options += ["--cgroup", str(group)]
            if memory_mib and top == tops["memory"]:
                if top == tops.get(""):
                    (top / "cgroup.subtree_control").write_text("+memory")
                limit = "memory.max" if (group / "memory.max").exists() else "memory.limit_in_bytes"
                (group / limit).write_text(str(memory_mib * _MIB))
        return options

    def hold(self) -> None:
        """Freeze the running fault's loads where they are."""
        for load in self._loads:
            load.send_signal(signal.SIGSTOP)

    def go_on(self) -> int:
        """Thaw them; the time just before, in ns since the Unix epoch: an onset without a start-up."""
        begun_ns = time.time_ns()
        for load in self._loads:
            load.send_signal(signal.SIGCONT)
        return begun_ns

    def stop(self) -> None:
        """End the running fault; idempotent."""
        self.go_on()  # a frozen load does not hear that it is over
        for load in self._loads:
            _end(load)
        self._loads.clear()
        while self._undo:
            self._undo.pop()()

    def close(self) -> None:
        """End everything and remove what was made; idempotent."""
        self.stop()
        for process in (*self._standing, *([self._background] if self._background else [])):
            _end(process)
        self._standing.clear()
        self._background = None
        for group in self._cgroups:
            _remove_group(group)
        self._cgroups.clear()
        if self._network:
            self.peer.remove()
            self._network = False
        if self._scratch is not None:
            self._scratch.unlink(missing_ok=True)
            self._scratch = None
