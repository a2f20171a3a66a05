# SPDX-License-Identifier: Apache-2.0
"""A report as a surface of the host's snapshots: axes, decision, what each replica owed and what its engine counted.

C_4 is that of the worst family, and the label is set if any family's is. Which family it is stays in the report:
families may say what users ask about (001 sec. 28).
"""

from __future__ import annotations

import math

from mvps.ai.group import Report
from mvps.coherence.axes import hamiltonian
from mvps.coherence.phase import deviance, posterior
from mvps.v1 import snapshot_pb2 as pb


def surface_of(report: Report, group: str, baseline_id: str, mode: str) -> pb.Surface:
    """The surface ``ai.<group>``. baseline_id: of the calibration in use. mode: of its cut-offs."""
    surface = pb.Surface(name=f"ai.{group}", calibrated_ticks=report.done, needed_ticks=report.needed)
    vector = surface.vector
    c1, c2, c3, plain = (report.axes.get(axis) for axis in ("c1", "c2_w2", "c3_cka", "c2_w2_seed"))
    if c1 is not None:
        vector.c1 = c1
    if c2 is not None:
        vector.c2 = c2
    if c3 is not None:
        vector.c3 = c3
    if plain is not None:
        vector.c2_plain = min(max(plain, 0.0), 1.0)  # beyond W2_max the source's form leaves its range
    if report.worst_c4 is not None:
        vector.c4 = report.worst_c4
        surface.lateral = pb.LATERAL_COHERENT_BUT_FALSE if report.brittle else pb.LATERAL_NONE
    vector.hamiltonian = hamiltonian((c1, c2, c3))
    vector.farthest = report.suspects[0].replica if report.suspects else ""
    for replica, (asked, failed) in report.asked.items():
        said = surface.observations.add(vantage=replica, events=asked, checked=asked, violated=failed)
        if (load := report.loads.get(replica)) is not None:
            said.load.requests = load.requests
            said.load.prompt_tokens, said.load.cached_tokens = load.prompt_tokens, load.cached_tokens
    if report.d2 is None or report.phase is None or report.raw_phase is None:
        return surface
    decision = surface.decision
    decision.phase = _phase(report.phase)
    decision.raw_phase = _phase(report.raw_phase)
    p_value = report.p_value if report.p_value is not None else 1.0
    degrees = max(report.dof, 1)
    decision.posterior.extend(posterior(deviance(math.log(max(p_value, 1e-300)), degrees), degrees))
    decision.d2, decision.p_value, decision.dof = report.d2, p_value, report.dof
    decision.phi_d = report.phi_d or 0.0
    decision.baseline_id = baseline_id
    if report.cutoffs is not None:
        cut = decision.cutoffs
        cut.watch, cut.alarm, cut.critical = report.cutoffs
        cut.mode = mode
    for axis, part in report.contributions.items():
        decision.axis_contributions.add(name=axis, value=part)
    return surface


def _phase(name: str) -> pb.Phase:
    return pb.Phase.Value(f"PHASE_{name}")  # type: ignore[return-value]  # the stub says int
