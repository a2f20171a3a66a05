# SPDX-License-Identifier: Apache-2.0
"""V_sock: TCP round trips above their floor, losses, full buffers (bpf/sock.bpf.c). Witness: /proc/net/snmp.

RetransSegs counts segments of this network namespace, our hook calls in all of them: calls <= segments holds only
when the agent is scoped to its namespace, the converse (segments without any call) always.
"""

from __future__ import annotations

from mvps.coherence.observation import HIST_BINS, Observation, Scale
from mvps.probes.bcc import Loader
from mvps.vantages.cells import Cells, Scope
from mvps.vantages.procfs import Snmp
from mvps.vantages.vantage import Vantage
from mvps.vantages.workload import Workloads

SCALE = Scale(unit="1/16 of min RTT", lowest=2.0**4, quiet=2.0**5)
# Retransmissions that may fall between reading our cells and reading snmp.
_SKEW = 16


class SocketVantage(Vantage):
    """Established TCP connections of the host, in every namespace."""

    def __init__(self, scope: Scope, workloads: Workloads, loader: Loader = "auto") -> None:
        where = {"scope_cgroup": scope.cgroup, "scope_level": scope.level, "scope_netns": scope.netns}
        self.cells = Cells("sock", where, loader)
        self._workloads = workloads
        self._own_namespace = bool(scope.netns)
        self._whole = not scope.cgroup
        self._snmp = Snmp()
        self._segments = self._snmp.tcp()["RetransSegs"]

    def read(self) -> list[Observation]:
        """This tick's segments; a retransmission is an event of the worst severity."""
        delta = self.cells.read()
        segments = self._snmp.tcp()["RetransSegs"]
        witness, self._segments = segments - self._segments, segments
        retransmits = delta.counters["retransmits"]
        checked = violated = 0.0
        if self._whole and retransmits + witness > 2 * _SKEW:
            checked += 1
            violated += witness > _SKEW and retransmits == 0
            if self._own_namespace:
                checked += 1
                violated += retransmits > witness + _SKEW
        histogram = delta.histogram
        histogram[HIST_BINS - 1] += retransmits
        touched = delta.tables["objects"].sums()
        seen = delta.counters["segments"]
        return [
            Observation(
                vantage="sock",
                scale=SCALE,
                histogram=histogram,
                objects={self._workloads.key(ident): float(n) for ident, (n, _) in touched.items()},
                checked=checked,
                violated=violated,
                facts={
                    "segments": seen,
                    "retransmits": retransmits,
                    "witness_retransmits": witness,
                    "buffer_limit": delta.counters["buffer_limit"],
                    "send_queue_kib": delta.counters["send_queue_bytes"] / seen / 1024 if seen else 0.0,
                    "first_over_ns": delta.first_over_ns,
                },
            )
        ]

    def drops(self) -> list[int]:
        """Packets freed by the stack since attach, by drop reason number."""
        return self.cells.array("drops")

    def close(self) -> None:
        """Detach."""
        self.cells.close()
        self._snmp.close()
