# SPDX-License-Identifier: Apache-2.0
"""All vantages, and the set of them that an agent runs.

A new vantage is one ``bpf/<name>.bpf.c``, one file here, one row in :data:`VANTAGES`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Literal

from mvps.coherence.observation import Observation
from mvps.probes.bcc import Loader
from mvps.probes.cost import RunTotals
from mvps.probes.libbpf import BpfError, program_info
from mvps.vantages.cells import Scope
from mvps.vantages.probe_plan import ProbePlan
from mvps.vantages.vantage import Vantage
from mvps.vantages.workload import Workloads, hierarchies

State = Literal["ok", "degraded", "failed"]
KERNEL, DATAPLANE = "kernel", "dataplane"


@dataclass(frozen=True, slots=True)
class VantageSpec:
    """One registered vantage.

    name: the signal's name, also its object file's and its observation's.
    surface: which coherence vector it belongs to.
    summary: one line for people.
    yields: names of the observations it makes (V_path makes three).
    """

    name: str
    surface: str
    summary: str
    yields: tuple[str, ...]


VANTAGES: Mapping[str, VantageSpec] = {
    spec.name: spec
    for spec in (
        VantageSpec("mm", KERNEL, "stalls for memory: reclaim and compaction", ("mm",)),
        VantageSpec("blk", KERNEL, "block request latency", ("blk",)),
        VantageSpec("sock", KERNEL, "TCP round trips above their floor, retransmissions", ("sock",)),
        VantageSpec("sched", KERNEL, "run-queue delay", ("sched",)),
        VantageSpec("irq", KERNEL, "softirq handler time", ("irq",)),
        VantageSpec(
            "path",
            DATAPLANE,
            "traffic over next hops, by wire, sockets and routes",
            ("path", "path_tcp", "path_fib"),
        ),
    )
}


@dataclass(frozen=True, slots=True)
class VantageState:
    """Whether a vantage works, and why not."""

    name: str
    state: State
    reason: str = ""


# Modules, imported when started: a vantage that is off costs no memory (pyroute2 alone is 12 MiB).
_CLASSES = {
    "mm": "MemoryVantage",
    "blk": "BlockVantage",
    "sock": "SocketVantage",
    "sched": "SchedulerVantage",
    "irq": "SoftirqVantage",
    "path": "PathVantage",
}


def _start(name: str, scope: Scope, workloads: Workloads, loader: Loader, probe: ProbePlan | None) -> Vantage:
    extra = {"probe": probe} if name == "path" and probe else {}
    kind = getattr(import_module(f"mvps.vantages.{name}"), _CLASSES[name])
    started: Vantage = kind(scope, workloads, loader, **extra)
    return started


def resolve_scope(cgroup: str = "", netns: str = "") -> Scope:
    """Scope from a cgroup path (relative to the hierarchy's top) and a namespace file; empty means the whole host.

    Raises FileNotFoundError naming what does not exist.
    """
    unified = block = namespace = 0
    if cgroup:
        relative = cgroup.strip("/")
        for top in hierarchies():
            directory = Path(top) / relative
            if not directory.is_dir():
                continue
            inode = directory.stat().st_ino
            if (Path(top) / "cgroup.controllers").exists():
                unified = inode
            if os.path.basename(top) == "blkio" or (directory / "io.stat").exists():
                block = inode
        if not unified:
            raise FileNotFoundError(f"no cgroup v2 directory {cgroup!r}; give its path below the cgroup mount")
    if netns:
        path = Path(netns if "/" in netns else f"/run/netns/{netns}")
        if not path.exists():
            raise FileNotFoundError(f"no network namespace {netns!r} ({path} does not exist)")
        namespace = path.stat().st_ino
    level = len(cgroup.strip("/").split("/")) if cgroup.strip("/") else 0
    return Scope(unified, block or unified, level, namespace)


@dataclass(slots=True)
class VantageSet:
    """Running vantages. One that fails to start is reported and the others go on."""

    _running: dict[str, Vantage]
    _states: dict[str, VantageState]
    _workloads: Workloads
    _reads: int = field(default=0)

    @classmethod
    def open(
        cls,
        names: Iterable[str],
        scope: Scope | None = None,
        *,
        probe: ProbePlan | None = None,
        loader: Loader = "auto",
    ) -> VantageSet:
        """Load and attach the named vantages; with a plan, ``path`` also probes. ValueError for an unknown name."""
        wanted = list(names)
        unknown = [name for name in wanted if name not in VANTAGES]
        if unknown:
            raise ValueError(f"unknown vantage {unknown[0]!r}; there are {', '.join(VANTAGES)}")
        workloads = Workloads()
        running: dict[str, Vantage] = {}
        states: dict[str, VantageState] = {}
        for name in wanted:
            try:
                running[name] = _start(name, scope or Scope(), workloads, loader, probe)
                states[name] = VantageState(name, "ok")
            except (BpfError, OSError) as error:
                states[name] = VantageState(name, "failed", str(error.strerror or error))
        return cls(running, states, workloads)

    def read(self) -> dict[str, Observation]:
        """Every observation since the last call, by name."""
        self._reads += 1
        observed: dict[str, Observation] = {}
        for name, vantage in self._running.items():
            try:
                seen = vantage.read()
                observed.update((one.vantage, one) for one in seen)
                if self._reads % 64 == 0:  # one system call per program: not every tick
                    vantage.cells.refresh_misses()
            except OSError as error:  # a witness file or socket went away: the vantage is blind this tick
                self._states[name] = VantageState(name, "degraded", str(error))
                continue
            partial = "; ".join(sorted({one.degraded for one in seen if one.degraded}))
            if self._states[name].reason != partial:
                self._states[name] = VantageState(name, "degraded" if partial else "ok", partial)
        return observed

    def states(self) -> dict[str, VantageState]:
        """Every wanted vantage's state."""
        return dict(self._states)

    def surfaces(self) -> dict[str, tuple[str, ...]]:
        """Surface -> names of the observations its running vantages yield."""
        found: dict[str, tuple[str, ...]] = {}
        for name in self._running:
            spec = VANTAGES[name]
            found[spec.surface] = found.get(spec.surface, ()) + spec.yields
        return found

    def losses(self) -> dict[str, int]:
        """Totals by cause, such as ``blk.objects_full``."""
        lost: dict[str, int] = {}
        for vantage in self._running.values():
            lost.update(vantage.losses())
        return lost

    def set_thresholds(self, bins: Mapping[str, int]) -> None:
        """From which severity bin on an event counts as over, per vantage: its first one in a tick is stamped.

        The stamps are the ``first_over_ns`` fact of the observations; they tell in which order vantages moved.
        """
        for name, vantage in self._running.items():
            if name in bins:
                vantage.cells.set_threshold(bins[name])

    def object_names(self, keys: Iterable[int]) -> dict[int, str]:
        """Names of object keys, for people on this host."""
        wanted = set(keys)
        names = self._workloads.names(wanted)
        for vantage in self._running.values():
            names.update(vantage.object_names(wanted))
        return names

    def program_totals(self) -> dict[str, RunTotals]:
        """``signal/program`` -> runs and time, which the kernel counts only while its statistics are on."""
        totals: dict[str, RunTotals] = {}
        for name, vantage in self._running.items():
            for program, fd in vantage.cells.program_fds().items():
                info = program_info(fd)
                totals[f"{name}/{program}"] = RunTotals(program, info.run_cnt, info.run_time_ns)
        return totals

    def close(self) -> None:
        """Detach everything."""
        for vantage in self._running.values():
            vantage.close()
        self._running.clear()
