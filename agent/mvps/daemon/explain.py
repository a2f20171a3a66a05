# SPDX-License-Identifier: Apache-2.0
"""A decision in words: which phase, how sure, and what it is due to."""

from __future__ import annotations

from mvps.v1.snapshot_pb2 import Contribution, Lateral, Phase, Surface

AXIS_WORDS = {
    "c1": "C_1 (broken checks, or paths that vary where they did not)",
    "c2": "C_2 (vantages disagree about severity)",
    "c3": "C_3 (vantages touch different workloads)",
    "c2_w2": "C_2 (replicas mean different things)",
    "c3_cka": "C_3 (replicas attend differently to the same words)",
    "s": "S (one vantage far from its own usual self)",
}


def sentence(surface: Surface) -> str:
    """One sentence about the surface's last decision."""
    if not surface.HasField("decision"):
        left = max(surface.needed_ticks - surface.calibrated_ticks, 0)
        return (
            f"{surface.name} is calibrating: {surface.calibrated_ticks} of {surface.needed_ticks} ticks of "
            f"business as usual are learned, {left} to go; there is no decision before."
        )
    decision = surface.decision
    phase = Phase.Name(decision.phase).removeprefix("PHASE_")
    head = f"{surface.name} is {phase}: D^2 = {decision.d2:.2f} on {decision.dof} axes"
    if decision.HasField("cutoffs"):
        cut = decision.cutoffs
        head += f" (WATCH from {cut.watch:.2f}, ALARM {cut.alarm:.2f}, CRITICAL {cut.critical:.2f}; {cut.mode})"
    head += f", p = {decision.p_value:.2g}"
    parts = [head]
    if decision.raw_phase != decision.phase:
        raw = Phase.Name(decision.raw_phase).removeprefix("PHASE_")
        parts.append(f"this tick alone says {raw}, hysteresis waits")
    if phase == "SHIFTED":
        parts.append(f"a new steady level has lasted; `mvps accept {surface.name}` makes it business as usual")
    elif phase != "BAU" or decision.raw_phase != decision.phase:
        if axes := _largest(decision.axis_contributions):
            parts.append("due to " + " and ".join(AXIS_WORDS.get(name, name) for name in axes))
        if surface.vector.farthest:
            parts.append(f"{surface.vector.farthest} is farthest from its own usual, {surface.vector.s:+.1f} sigma")
    if surface.lateral == Lateral.LATERAL_COHERENT_BUT_FALSE:
        parts.append(
            "COHERENT_BUT_FALSE: answers to some topic agree and do not survive rephrasing, "
            f"C_4 = {surface.vector.c4:.2f}; check it against a golden set"
        )
    if surface.missing:
        parts.append(f"without {', '.join(surface.missing)}, which did not report")
    return "; ".join(parts) + "."


def _largest(contributions: object) -> list[str]:
    """Names that together make at least 80 % of the positive part, largest first, at most two."""
    items: list[Contribution] = sorted(contributions, key=lambda c: -c.value)  # type: ignore[call-overload]
    total = sum(c.value for c in items if c.value > 0)
    names: list[str] = []
    covered = 0.0
    for item in items[:2]:
        if item.value <= 0 or covered >= 0.8 * total:
            break
        names.append(item.name)
        covered += item.value
    return names
