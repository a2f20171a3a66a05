# SPDX-License-Identifier: Apache-2.0
"""V_sched: run-queue delay (bpf/sched.bpf.c). Witness: PSI cpu.

PSI's "some" counts the wall-clock time in which at least one task waited for a CPU; the delays of all tasks cover
that time, so their sum cannot be far below it.
"""

from __future__ import annotations

from mvps.coherence.observation import Observation, Scale
from mvps.probes.bcc import Loader
from mvps.vantages.cells import Cells, Scope
from mvps.vantages.procfs import Pressure
from mvps.vantages.vantage import Vantage
from mvps.vantages.workload import Workloads

SCALE = Scale(unit="ns", lowest=2.0**10, quiet=20e3)
# Waits still going on at the tick's end are in PSI already and in our sum later: one scheduler latency's worth.
_CLEAR_NS = 50e6


class SchedulerVantage(Vantage):
    """Waits of runnable tasks."""

    def __init__(self, scope: Scope, workloads: Workloads, loader: Loader = "auto") -> None:
        self.cells = Cells("sched", {"scope_cgroup": scope.cgroup, "scope_level": scope.level}, loader)
        self._workloads = workloads
        self._whole_host = not scope.cgroup
        self._pressure = Pressure("cpu")
        self._some_us = self._pressure.some_us()

    def read(self) -> list[Observation]:
        """This tick's waits."""
        delta = self.cells.read()
        some_us = self._pressure.some_us()
        pressed_ns, self._some_us = (some_us - self._some_us) * 1e3, some_us
        delay_ns = float(delta.counters["delay_ns"])
        checked = violated = 0.0
        if self._whole_host and max(pressed_ns, delay_ns) > _CLEAR_NS:
            checked += 1
            violated += pressed_ns > 2 * delay_ns + _CLEAR_NS
        touched = delta.tables["objects"].sums()
        switches = delta.counters["switches"]
        return [
            Observation(
                vantage="sched",
                scale=SCALE,
                histogram=delta.histogram,
                objects={self._workloads.key(ident): float(n) for ident, (n, _) in touched.items()},
                checked=checked,
                violated=violated,
                facts={
                    "switches": switches,
                    "mean_us": delay_ns / switches / 1e3 if switches else 0.0,
                    "delay_ms": delay_ns / 1e6,
                    "psi_some_ms": pressed_ns / 1e6,
                    "first_over_ns": delta.first_over_ns,
                },
            )
        ]

    def close(self) -> None:
        """Detach."""
        self.cells.close()
        self._pressure.close()
