# SPDX-License-Identifier: Apache-2.0
"""Pictures of the simulated experiments: load up and down (E1), and how long tenants stay out of BH-2 (E2).

Needs matplotlib, of the extra `plot`, and imports it only when there is something to draw.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from mvps.coherence.observation import FloatArray
from mvps.surplus.retrial_queue import RampPlan, Trace

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def hysteresis(traces: Mapping[str, Trace], plan: RampPlan) -> bytes:
    """PNG of the share of requests answered in time at each load, on the way up and on the way down, by arm."""
    figure, panel = _panel("load over capacity", "answered in time")
    _, up, down = plan.loads(0)
    turn = plan.calm + len(up)
    for number, (name, trace) in enumerate(traces.items()):
        for loads, begin, style, way in ((up, plan.calm, "-", "up"), (down, turn, "--", "down")):
            success = trace.success[begin : begin + len(loads)].reshape(-1, plan.step_minutes)
            at = loads[:: plan.step_minutes]
            panel.plot(at, np.nanmean(success, axis=1), style, color=f"C{number}", label=f"{name}, {way}")
    panel.set_ylim(-0.02, 1.02)
    panel.legend()
    return _png(figure)


def survival(curves: Mapping[str, tuple[FloatArray, FloatArray]]) -> bytes:
    """PNG of Kaplan-Meier curves: name -> (minutes, share without BH-2 from then on)."""
    figure, panel = _panel("minutes of rising load", "ramps without BH-2")
    for name, (minutes, without) in curves.items():
        panel.step([0.0, *minutes.tolist()], [1.0, *without.tolist()], where="post", label=name)
    panel.set_ylim(-0.02, 1.02)
    panel.legend()
    return _png(figure)


def _panel(below: str, beside: str) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 5.0), layout="constrained")
    panel = figure.subplots()
    panel.set_xlabel(below)
    panel.set_ylabel(beside)
    return figure, panel


def _png(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=120)
    return out.getvalue()
