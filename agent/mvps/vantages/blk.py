# SPDX-License-Identifier: Apache-2.0
"""V_blk: latency of block requests (bpf/blk.bpf.c). Witnesses: /proc/diskstats and conservation of requests.

Checks: begun = completed + requeued + in flight (a conservation law across two hooks and the kernel's own gauge);
our completions against diskstats'; our summed latency against diskstats' time spent (the two sides of Little's law).
"""

from __future__ import annotations

import errno

from mvps.coherence.observation import Observation, Scale
from mvps.probes.bcc import Loader, chosen
from mvps.probes.libbpf import BpfError
from mvps.vantages.cells import Cells, Scope
from mvps.vantages.procfs import Diskstats
from mvps.vantages.vantage import Vantage
from mvps.vantages.witness import CountWitness
from mvps.vantages.workload import Workloads

SCALE = Scale(unit="ns", lowest=2.0**10, quiet=50e3)
# Requests that may complete between reading our cells and reading diskstats; 16 at most below 150 a tick, recorded.
SKEW = 24
# The gauge of requests in flight is read at one moment, and does not add up over ticks: 100,000 IOPS, 0.5 ms apart.
_IN_FLIGHT_SKEW = 64


class BlockVantage(Vantage):
    """Block requests of the host."""

    def __init__(self, scope: Scope, workloads: Workloads, loader: Loader = "auto") -> None:
        if scope.block_cgroup and chosen(loader) == "bcc":
            raise BpfError(errno.EOPNOTSUPP, "limited to a control group, blk needs a kernel with BTF")
        self.cells = Cells("blk", {"scope_cgroup": scope.block_cgroup, "scope_level": scope.level}, loader)
        self._degraded = "" if chosen(loader) == "core" else "loader bcc: whose requests they are is unknown"
        self._workloads = workloads
        self._whole_host = not scope.block_cgroup
        self._disks = Diskstats()
        self._completed, self._in_flight, self._spent_ms = self._disks.totals()
        self._count = CountWitness(SKEW)

    def read(self) -> list[Observation]:
        """This tick's requests."""
        delta = self.cells.read()
        completed, in_flight, spent_ms = self._disks.totals()
        counted = delta.counters["completed"]
        witness = completed - self._completed
        opened = in_flight - self._in_flight
        spent = spent_ms - self._spent_ms
        self._completed, self._in_flight, self._spent_ms = completed, in_flight, spent_ms
        latency_ms = delta.counters["latency_ns"] / 1e6
        checked = violated = 0.0
        if self._whole_host:
            checked, violated = self._count.check(counted, witness)
        if self._whole_host and counted + witness > _IN_FLIGHT_SKEW:
            slack = _IN_FLIGHT_SKEW + 0.05 * max(counted, witness)
            begun = delta.counters["issued"] + delta.counters["unissued"]
            conserved = begun - counted - delta.counters["requeued"]
            checked += 1
            violated += abs(conserved - opened) > slack
            if spent > 100:  # milliseconds are diskstats' grain
                checked += 1
                violated += not 0.5 < (latency_ms + 1) / (spent + 1) < 2.0
        touched = delta.tables["objects"].sums()
        return [
            Observation(
                vantage="blk",
                scale=SCALE,
                histogram=delta.histogram,
                objects={self._workloads.key(ident): float(n) for ident, (n, _) in touched.items()},
                checked=checked,
                violated=violated,
                degraded=self._degraded,
                facts={
                    "requests": counted,
                    "witness_requests": witness,
                    "mean_ms": latency_ms / counted if counted else 0.0,
                    "witness_mean_ms": spent / witness if witness else 0.0,
                    "in_flight": in_flight,
                    "bytes": delta.counters["bytes"],
                    "errors": delta.counters["errors"],
                    "requeued": delta.counters["requeued"],
                    "untimed": delta.counters["untimed"],
                    "first_over_ns": delta.first_over_ns,
                },
            )
        ]

    def close(self) -> None:
        """Detach."""
        self.cells.close()
        self._disks.close()
