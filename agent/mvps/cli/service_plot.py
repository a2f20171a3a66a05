# SPDX-License-Identifier: Apache-2.0
"""A picture of a service's history: its axes, its three distances with their limits, and its phases as bands.

Needs matplotlib, of the extra `plot`, and imports it only when there is something to draw.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

from mvps.cli.service import NUMBERS, columns, phase_runs
from mvps.v1.stream_pb2 import ServiceTick

_BANDS: Final = {
    "CALIBRATING": "#d9e6f2",
    "INCOMPLETE": "#dddddd",
    "NET_LEADS": "#ffe5b4",
    "AI_LEADS": "#e3d4f2",
    "COUPLED_SUM": "#f7f7c8",
    "COUPLED": "#f5d76e",
    "CASCADING": "#f4b6b0",
}
_AXES: Final = {
    "net_c1": "C_1 net",
    "net_c2": "C_2 net",
    "net_c3": "C_3 net",
    "ai_c1": "C_1 AI",
    "ai_c2": "C_2^W2",
    "ai_c3": "C_3^CKA",
}
_DISTANCES: Final = (("net", "D² network", "tab:blue"), ("ai", "D² AI", "tab:purple"), ("joint", "D² both", "black"))
_LEAST_D2: Final = 0.01  # the scale is logarithmic


def png(name: str, ticks: Sequence[ServiceTick]) -> bytes:
    """The picture of at least one tick, oldest first."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    figure = Figure(figsize=(12.0, 7.5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    when = [datetime.fromtimestamp(tick.tick_time_ns / 1e9, UTC) for tick in ticks]
    for axis, label in _AXES.items():
        values = [tick.axes.get(axis, math.nan) for tick in ticks]
        if not all(map(math.isnan, values)):
            above.plot(when, values, label=label, linewidth=1.0, linestyle="-" if axis.startswith("net") else "--")
    above.set_ylabel("coherence")
    above.set_ylim(-0.02, 1.02)
    above.set_title(f"{name}: network and AI surface")
    for surface, label, colour in _DISTANCES:
        values = [max(value, _LEAST_D2) for value in columns(ticks, f"d2_{surface}")]
        below.plot(when, values, label=label, color=colour, linewidth=1.0)
        below.plot(when, columns(ticks, f"watch_{surface}"), color=colour, linewidth=0.8, linestyle=":")
    alarm = columns(ticks, "alarm_joint")
    below.plot(when, alarm, color="tab:red", linewidth=0.8, linestyle=":", label="ALARM of both")
    below.set_yscale("log")
    below.set_ylabel("D²; dotted: WATCH")
    below.set_xlabel("UTC")
    seen: dict[str, Any] = {}
    for begin, end, phase in phase_runs(ticks):
        if phase not in _BANDS:
            continue
        for panel in (above, below):
            panel.axvspan(when[begin], when[min(end, len(when) - 1)], color=_BANDS[phase], alpha=0.7, linewidth=0)
        seen[phase] = Patch(color=_BANDS[phase], label=f"{NUMBERS.get(phase, '')} {phase}".strip())
    above.legend(loc="lower left", ncols=4, fontsize="small")
    handles, _ = below.get_legend_handles_labels()
    below.legend(handles=[*handles, *seen.values()], loc="best", ncols=4, fontsize="small")
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=120)
    return out.getvalue()
