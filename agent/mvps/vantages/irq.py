# SPDX-License-Identifier: Apache-2.0
"""V_irq: softirq handler time (bpf/irq.bpf.c). Witness: /proc/softirqs.

Softirqs run for whoever was on the CPU, so this vantage names no workload.
"""

from __future__ import annotations

from mvps.coherence.observation import Observation, Scale
from mvps.probes.bcc import Loader
from mvps.vantages.cells import Cells, Scope
from mvps.vantages.procfs import Softirqs
from mvps.vantages.vantage import Vantage
from mvps.vantages.witness import CountWitness
from mvps.vantages.workload import Workloads

SCALE = Scale(unit="ns", lowest=2.0**8, quiet=20e3)
# Runs between reading our cells and reading /proc/softirqs; 6 in all but one tick of 100, recorded.
SKEW = 16


class SoftirqVantage(Vantage):
    """Softirq runs of the whole host, whatever the scope."""

    def __init__(self, scope: Scope, workloads: Workloads, loader: Loader = "auto") -> None:
        self.cells = Cells("irq", loader=loader)
        self._softirqs = Softirqs()
        self._runs = self._softirqs.total()
        self._count = CountWitness(SKEW)

    def read(self) -> list[Observation]:
        """This tick's softirq runs."""
        delta = self.cells.read()
        total = self._softirqs.total()
        witness, self._runs = total - self._runs, total
        runs = float(delta.histogram.sum())
        checked, violated = self._count.check(runs, witness)
        return [
            Observation(
                vantage="irq",
                scale=SCALE,
                histogram=delta.histogram,
                checked=checked,
                violated=violated,
                facts={
                    "runs": runs,
                    "witness_runs": witness,
                    "softirq_ms": delta.counters["softirq_ns"] / 1e6,
                    "first_over_ns": delta.first_over_ns,
                },
            )
        ]

    def close(self) -> None:
        """Detach."""
        self.cells.close()
        self._softirqs.close()
