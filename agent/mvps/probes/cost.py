# SPDX-License-Identifier: Apache-2.0
"""What loaded programs cost: the kernel's own count of their runs and of the time they took.

The kernel counts only while run-time statistics are on (sysctl kernel.bpf_stats_enabled, or a descriptor of
BPF_ENABLE_STATS that someone holds), and only root may switch them on or look at programs that are not its own. What
is counted is the time between two clock reads around each run: one clock read's worth of it, 20 to 30 ns, is the
measurement. An interrupt that hits a running program is counted too.
"""

from __future__ import annotations

import ctypes as ct
import errno
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from mvps.probes.libbpf import NAME_BYTES, BpfError, BpfObject, enable_stats, library, program_info


@dataclass(frozen=True, slots=True)
class RunTotals:
    """One loaded program: its name as the kernel keeps it, runs and ns since it was loaded."""

    name: str
    runs: int
    ns: int


@dataclass(frozen=True, slots=True)
class ProgramCost:
    """What a program cost in a stretch of time.

    runs, ns: how often it ran and how long that took in all; ns_per_run: 0 when it did not run.
    percent_of_core: 100 = one CPU did nothing else.
    """

    runs: int
    ns: int
    ns_per_run: float
    percent_of_core: float


def cost_of(runs: int, ns: int, seconds: float) -> ProgramCost:
    """Cost of ``runs`` runs that took ``ns`` within ``seconds``. ValueError unless time has passed."""
    if seconds <= 0:
        raise ValueError(f"cost over {seconds} s; the stretch of time must be positive")
    return ProgramCost(runs, ns, ns / runs if runs else 0.0, 100.0 * ns / (seconds * 1e9))


def costs_between(
    before: Mapping[int, RunTotals], after: Mapping[int, RunTotals], names: Mapping[str, str], seconds: float
) -> dict[str, ProgramCost]:
    """Cost of the named programs between two readings of :func:`run_totals`, in the order of ``names``.

    names: kernel's name -> name to report. Programs of one name (two agents, say) are added up; one that was loaded
    after the first reading counts from its load; one that is gone by the second is left out, since nobody knows its
    end; a name that nobody has loaded is absent.
    """
    sums: dict[str, tuple[int, int]] = {}
    for ident, now in after.items():
        if now.name not in names:
            continue
        then = before.get(ident)
        if then is None or then.name != now.name:
            then = RunTotals(now.name, 0, 0)
        runs, ns = sums.get(now.name, (0, 0))
        sums[now.name] = (runs + now.runs - then.runs, ns + now.ns - then.ns)
    return {shown: cost_of(*sums[name], seconds) for name, shown in names.items() if name in sums}


def run_totals() -> dict[int, RunTotals]:
    """Every program loaded in this kernel, by id. Needs root (BpfError otherwise)."""
    lib = library()
    found: dict[int, RunTotals] = {}
    ident = ct.c_uint32(0)
    while True:
        result = lib.bpf_prog_get_next_id(ident, ct.byref(ident))
        if result == -errno.ENOENT:
            return found
        if result:
            raise BpfError(-result, "listing loaded programs")
        fd = lib.bpf_prog_get_fd_by_id(ident)
        if fd == -errno.ENOENT:  # unloaded since it was listed
            continue
        if fd < 0:
            raise BpfError(-fd, f"opening program {ident.value}")
        try:
            info = program_info(fd)
        finally:
            os.close(fd)
        found[ident.value] = RunTotals(info.name.decode(errors="replace"), info.run_cnt, info.run_time_ns)


def own_names() -> dict[str, str]:
    """Kernel's name -> ``signal/program`` for every program we ship. Reads the objects, loads nothing.

    BpfError when they are not built.
    """
    names: dict[str, str] = {}
    folder = Path(str(resources.files("mvps.probes"))) / "bpf"
    for path in sorted(folder.glob("*.bpf.o")):
        with BpfObject(path) as opened:
            names |= {program[:NAME_BYTES]: f"{opened.name}/{program}" for program in opened.programs()}
    if not names:
        raise BpfError(errno.ENOENT, "no objects are built; run packaging/build_hook.py (needs clang)")
    return names


def live_cost(seconds: float) -> dict[str, ProgramCost]:
    """``signal/program`` -> cost over the next ``seconds``, for those of our programs that are loaded on this host.

    Run-time statistics are on meanwhile, which costs every program of the host two clock reads a run. Empty when no
    agent runs here. Needs root (BpfError otherwise); ValueError unless ``seconds`` is positive.
    """
    if seconds <= 0:
        raise ValueError(f"cost over {seconds} s; give a positive time")
    names = own_names()
    statistics = enable_stats()
    try:
        before, begun = run_totals(), time.monotonic()
        time.sleep(seconds)
        after, ended = run_totals(), time.monotonic()
    finally:
        os.close(statistics)
    return costs_between(before, after, names, ended - begun)
