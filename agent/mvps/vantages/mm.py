# SPDX-License-Identifier: Apache-2.0
"""V_mm: stalls for memory (bpf/mm.bpf.c). Witness: PSI memory.

Direct and memcg reclaim enter a PSI memory stall for exactly the time our hooks bracket (psi_memstall_enter around
both), so time we saw must show there; PSI sees more (refault waits, swap-in), so the converse needs refaults excluded.
"""

from __future__ import annotations

from mvps.coherence.observation import Observation, Scale
from mvps.probes.bcc import Loader
from mvps.vantages.cells import Cells, Scope
from mvps.vantages.procfs import Pressure, Vmstat
from mvps.vantages.vantage import Vantage
from mvps.vantages.workload import Workloads

# Most reclaims of one batch (32 pages) are shorter than 0.1 ms, and it is their number that weak pressure moves first:
# 30 us attributes eleven more of 303 recorded faults rightly than 100 us, at no false alarm more (docs/detection.md).
SCALE = Scale(unit="ns", lowest=2.0**10, quiet=30e3)
# PSI and our own sums are read some 100 us apart; below this many ns either side may be all rounding.
_CLEAR_NS = 20e6


class MemoryVantage(Vantage):
    """Reclaim and compaction stalls of the host's tasks."""

    def __init__(self, scope: Scope, workloads: Workloads, loader: Loader = "auto") -> None:
        self.cells = Cells("mm", {"scope_cgroup": scope.cgroup, "scope_level": scope.level}, loader)
        self._workloads = workloads
        self._whole_host = not scope.cgroup
        self._pressure = Pressure("memory")
        self._vmstat = Vmstat()
        self._some_us, self._refaults = self._pressure.some_us(), self._vmstat.refaults()

    def read(self) -> list[Observation]:
        """This tick's stalls."""
        delta = self.cells.read()
        some_us, refaults = self._pressure.some_us(), self._vmstat.refaults()
        pressed_ns, refaulted = (some_us - self._some_us) * 1e3, refaults - self._refaults
        self._some_us, self._refaults = some_us, refaults
        stall_ns = float(delta.counters["stall_ns"])
        checked = violated = 0.0
        if self._whole_host:
            if stall_ns > _CLEAR_NS:  # n tasks at once stall n times the wall clock PSI counts once
                checked += 1
                violated += pressed_ns < 0.01 * stall_ns
            if pressed_ns > 2 * _CLEAR_NS and not refaulted:
                checked += 1
                violated += stall_ns < 0.1 * pressed_ns
        touched = delta.tables["objects"].sums()
        return [
            Observation(
                vantage="mm",
                scale=SCALE,
                histogram=delta.histogram,
                objects={self._workloads.key(ident): float(n) for ident, (n, _) in touched.items()},
                checked=checked,
                violated=violated,
                facts={
                    "stall_ms": stall_ns / 1e6,
                    "psi_some_ms": pressed_ns / 1e6,
                    "direct": delta.counters["direct"],
                    "memcg": delta.counters["memcg"],
                    "compact": delta.counters["compact"],
                    "kswapd_wakes": delta.counters["kswapd_wakes"],
                    "oom_victims": delta.counters["oom_victims"],
                    "refaults": refaulted,
                    "first_over_ns": delta.first_over_ns,
                },
            )
        ]

    def close(self) -> None:
        """Detach."""
        self.cells.close()
        self._pressure.close()
        self._vmstat.close()
