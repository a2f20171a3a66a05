# SPDX-License-Identifier: Apache-2.0
"""Per-CPU cells of one signal: loaded, attached, and read as the difference since the last tick.

All words of a cell are unsigned 64-bit counters that only grow, so a tick is one copy, one sum over CPUs and one
subtraction; object tables are per-CPU slots and are joined by key afterwards (protocol: bpf/common.h).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mvps.coherence.observation import HIST_BINS, FloatArray
from mvps.probes.bcc import Loader, open_object
from mvps.probes.libbpf import BpfError, possible_cpus, program_info

Words = NDArray[np.uint64]
_SLOT_WORDS = 3  # struct object_slot: key, events, amount
# Objects idle for this many ticks lose their slot once a table is full.
_IDLE_TICKS = 600


@dataclass(frozen=True, slots=True)
class Scope:
    """Which part of the host is observed; 0 means all of it.

    cgroup: cgroup v2 id (inode of its directory); it and everything below it counts.
    block_cgroup: the same workload's id in the hierarchy the block layer accounts to (equal to ``cgroup`` on v2).
    level: its depth below the top of the hierarchy, the same in each.
    netns: inode of the network namespace.
    """

    cgroup: int = 0
    block_cgroup: int = 0
    level: int = 0
    netns: int = 0


@dataclass(frozen=True, slots=True)
class ObjectTable:
    """Object slots of one tick: keys and what was added to each, one row per occupied slot and CPU."""

    keys: Words
    events: Words
    amounts: Words

    def sums(self) -> dict[int, tuple[int, int]]:
        """Key -> (events, amount), joined over CPUs."""
        joined: dict[int, tuple[int, int]] = {}
        for key, events, amount in zip(self.keys.tolist(), self.events.tolist(), self.amounts.tolist(), strict=True):
            before = joined.get(key, (0, 0))
            joined[key] = (before[0] + events, before[1] + amount)
        return joined


_NOTHING = ObjectTable(*(np.zeros(0, np.uint64) for _ in range(3)))


@dataclass(frozen=True, slots=True)
class Delta:
    """What one signal counted in one tick."""

    counters: Mapping[str, int]
    histogram: FloatArray
    tables: Mapping[str, ObjectTable]
    first_over_ns: int  # CLOCK_MONOTONIC of the first event over the threshold in this tick, 0 = none


def object_path(signal: str) -> Path:
    """Where the wheel keeps ``<signal>.bpf.o``; BpfError says how to build it when it is missing."""
    found = resources.files("mvps.probes") / "bpf" / f"{signal}.bpf.o"
    path = Path(str(found))
    if not path.is_file():
        raise BpfError(2, f"{path.name} is not built; run packaging/build_hook.py (needs clang)")
    return path


class Cells:
    """The running signal ``name``: its object, its cells, and the last reading."""

    def __init__(self, name: str, constants: Mapping[str, int] | None = None, loader: Loader = "auto") -> None:
        self.name = name
        self._object = open_object(object_path(name), loader)
        try:
            self._object.set_entries(f"{name}_cells", possible_cpus())
            self._object.set_constants({key: value for key, value in (constants or {}).items() if value})
            self._object.load()
            cells = self._object.view(f"{name}_cells", f"{name}_cell")
            self._control = self._object.view("control", "control")
            self._control["over_bin"] = HIST_BINS
            self._object.attach()
        except BaseException:
            self._object.close()
            raise
        self._words: Words = cells.view(np.uint64).reshape(len(cells), -1)
        fields: Mapping[str, Any] = cells.dtype.fields or {}
        self._counters = {n: f[1] // 8 for n, f in fields.items() if f[0] == np.dtype("<u8")}
        self._arrays = {
            n: (f[1] // 8, f[0].shape[0]) for n, f in fields.items() if f[0].shape and f[0].base == np.dtype("<u8")
        }
        self._slots = {n: (f[1] // 8, f[0].shape[0]) for n, f in fields.items() if f[0].shape and f[0].base.names}
        self._first = fields["first_over"][1] // 8 if "first_over" in fields else None
        self._reads = 0
        # Read in which each slot last counted something.
        self._used = {n: np.zeros(len(cells) * count, np.int64) for n, (_, count) in self._slots.items()}
        self._last: Words = self._words.copy()
        self._last_sum: Words = np.add.reduce(self._last)
        self._generation = 1  # 0 is what a cell has that never stamped
        self._control["generation"] = self._generation
        self._lost = 0

    def set_threshold(self, severity_bin: int) -> None:
        """Bin from which an event counts as over, for the order in which signals moved."""
        self._control["over_bin"] = severity_bin

    def read(self) -> Delta:
        """Everything counted since the last call."""
        self._reads += 1
        now: Words = self._words.copy()
        total: Words = np.add.reduce(now)  # half the cost of .sum(axis=0) on arrays this small
        grown = total - self._last_sum
        counts: list[int] = grown.tolist()
        counters = {name: counts[at] for name, at in self._counters.items()}
        hist_at, hist_len = self._arrays.get("hist", (0, 0))
        histogram = grown[hist_at : hist_at + hist_len].astype(np.float64)
        tables = {name: self._table(name, now, grown, counters.get(f"{name}_full", 0) > 0) for name in self._slots}
        first = 0
        if self._first is not None:
            generation = self._generation
            stamps = [when for at, when in now[:, self._first : self._first + 2].tolist() if at == generation]
            first = min(stamps, default=0)
            self._generation += 1
            self._control["generation"] = self._generation
        self._last, self._last_sum = now, total
        return Delta(counters, histogram, tables, first)

    def array(self, name: str) -> list[int]:
        """Totals since attach of a counter array other than the histogram."""
        at, length = self._arrays[name]
        return [int(v) for v in self._last_sum[at : at + length]]

    def _table(self, name: str, now: Words, grown_words: Words, full: bool) -> ObjectTable:
        at, count = self._slots[name]
        end = at + count * _SLOT_WORDS
        if not full and not grown_words[at + 1 : end : _SLOT_WORDS].any():
            return _NOTHING
        slots = now[:, at:end].reshape(-1, _SLOT_WORDS)
        grown = slots - self._last[:, at:end].reshape(-1, _SLOT_WORDS)
        (active,) = grown[:, 1].nonzero()
        self._used[name][active] = self._reads
        if full:
            stale = (slots[:, 0] != 0) & (self._used[name] < self._reads - _IDLE_TICKS)
            # A clear that races with an add gives that one event to the slot's next owner (bpf/common.h).
            live = self._words[:, at:end].reshape(-1, count, _SLOT_WORDS)
            live[:, :, 0][stale.reshape(-1, count)] = 0
        return ObjectTable(slots[active, 0], grown[active, 1], grown[active, 2])

    def losses(self) -> dict[str, int]:
        """Totals since attach of everything that was seen but not fully counted, by cause."""
        causes = [c for c in self._counters if c.endswith(("_full", "_lost", "_failed")) or c == "unpaired"]
        lost = {f"{self.name}.{cause}": int(self._last_sum[self._counters[cause]]) for cause in causes}
        lost[f"{self.name}.recursion_missed"] = self._lost
        return lost

    def refresh_misses(self) -> None:
        """Ask the kernel how often it kept a program from recursing into itself (one bpf(2) call per program)."""
        self._lost = sum(program_info(fd).recursion_misses for fd in self._object.program_fds().values())

    def program_fds(self) -> dict[str, int]:
        """Program name -> descriptor, for cost accounting."""
        return self._object.program_fds()

    def close(self) -> None:
        """Detach and free."""
        del self._words, self._control
        self._object.close()
