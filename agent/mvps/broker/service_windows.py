# SPDX-License-Identifier: Apache-2.0
"""The windows that the services' baselines come from, on disk, so that a broker that restarts decides at once.

One JSON file beside the broker's database, replaced whole. It holds the rows and not what was fitted to them: a fit is
milliseconds, and one of the same rows gives the same baseline. A window counts only for a service that still stands on
the same sources with the same tick; another one calibrates anew. A file that cannot be used stays where it is until
the next one replaces it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn

import numpy as np

from mvps.broker.service_settings import MAX_SERVICES, MAX_SOURCES, ServiceSettings
from mvps.coupling.distance import LEAST_TICKS
from mvps.coupling.routing import CALIBRATION_WINDOWS, RoutingBaseline
from mvps.coupling.service import Learned
from mvps.trust import durable
from mvps.trust.limits import MAX_NAME, MAX_VANTAGES_PER_SURFACE

FORMAT: Final = 1
MAX_ROWS: Final = 4 * 3600  # a window grows to four times the longest calibration
_MAX_AXES: Final = 7
# A number takes 20 bytes at most, and a row one for its time; every AI source has its windows of counts.
MAX_BYTES: Final = MAX_SERVICES * (4096 + MAX_ROWS * 20 * (_MAX_AXES + 1)) + MAX_SOURCES * (
    8192 + CALIBRATION_WINDOWS * MAX_VANTAGES_PER_SURFACE * (3 * 20 + MAX_NAME)
)


class ServiceWindowsError(Exception):
    """The file cannot be used or written; the message says what follows from that."""


class Kept(NamedTuple):
    """What a service learned. of: what it stands on, :func:`standing_on`. routing: AI source -> BAU of its requests."""

    of: str
    learned: Learned | None
    routing: Mapping[str, RoutingBaseline]


def standing_on(service: ServiceSettings) -> str:
    """What a baseline belongs to: sources, tick and axes."""
    return f"{' '.join(map(str, service.network))} | {' '.join(map(str, service.ai))} | {service.tick_s:g} {service.c4}"


def load(path: Path) -> dict[str, Kept]:
    """Service name -> its window; nothing if there is no file."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ServiceWindowsError(
            f"{path} cannot be read ({error.strerror}): the services are calibrated anew"
        ) from None
    try:
        if len(data) > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES} bytes")
        return _decoded(json.loads(data, parse_constant=_no_constant))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        raise ServiceWindowsError(f"{path} holds no windows of services ({error}): they are calibrated anew") from None


def save(path: Path, kept: Mapping[str, Kept]) -> None:
    """Replace what is kept. ServiceWindowsError if the disk refuses."""
    body = {
        "format": FORMAT,
        "services": {
            name: {
                "of": one.of,
                **(_window(one.learned) if one.learned is not None else {}),
                "routing": {source: _routing(baseline) for source, baseline in one.routing.items()},
            }
            for name, one in kept.items()
        },
    }
    try:
        durable.replace(path, json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False).encode())
    except OSError as error:
        raise ServiceWindowsError(
            f"{path} cannot be written ({error.strerror}): a broker that restarts calibrates the services anew"
        ) from None


def _window(learned: Learned) -> dict[str, Any]:
    return {"axes": learned.axes, "times": learned.times.tolist(), "rows": learned.rows.tolist()}


def _routing(baseline: RoutingBaseline) -> dict[str, Any]:
    level = baseline.level if math.isfinite(baseline.level) else None
    return {"replicas": baseline.replicas, "counts": baseline.counts.tolist(), "level": level, "limit": baseline.limit}


def _decoded(body: Any) -> dict[str, Kept]:
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        raise ValueError(f"this is not format {FORMAT}")
    services = body["services"]
    if len(services) > MAX_SERVICES:
        raise ValueError(f"it has {len(services)} services")
    return {str(name): _kept(one) for name, one in services.items()}


def _kept(one: Any) -> Kept:
    routing = {str(source): _baseline(kept) for source, kept in one.get("routing", {}).items()}
    return Kept(str(one["of"]), _learned(one) if "rows" in one else None, routing)


def _baseline(one: Any) -> RoutingBaseline:
    replicas, counts = tuple(map(str, one["replicas"])), np.array(one["counts"], dtype=np.float64)
    level = math.nan if one["level"] is None else float(one["level"])
    if counts.shape != (CALIBRATION_WINDOWS, len(replicas), 3) or len(replicas) > MAX_VANTAGES_PER_SURFACE:
        raise ValueError("the routing of a service has other replicas than counts")
    if not (np.isfinite(counts).all() and (counts >= 0.0).all() and (counts[:, :, 0] > 0.0).all()):
        raise ValueError("counts of requests are not negative, and every replica had some")
    return RoutingBaseline(replicas, counts, level, float(one["limit"]))


def _learned(one: Any) -> Learned:
    axes = tuple(str(name) for name in one["axes"])
    times, rows = np.array(one["times"], dtype=np.float64), np.array(one["rows"], dtype=np.float64)
    if not LEAST_TICKS <= len(times) <= MAX_ROWS or times.ndim != 1 or not 2 <= len(axes) <= _MAX_AXES:
        raise ValueError("a window has too few rows or axes, or too many")
    if rows.shape != (len(times), len(axes)):
        raise ValueError("a window's rows are not as long as its axes are many")
    if not (np.isfinite(times).all() and (np.diff(times) > 0.0).all()):
        raise ValueError("a window's times do not rise")
    if not ((rows >= 0.0) & (rows <= 1.0)).all():
        raise ValueError("coherence lies in [0, 1]")
    return Learned(axes, times, rows)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of a window")
