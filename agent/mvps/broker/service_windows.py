# SPDX-License-Identifier: Apache-2.0
"""The windows that the services' baselines come from, on disk, so that a broker that restarts decides at once.

One JSON file beside the broker's database, replaced whole. It holds the rows and not what was fitted to them: a fit is
milliseconds, and one of the same rows gives the same baseline. A window counts only for a service that still stands on
the same sources with the same tick; another one calibrates anew. A file that cannot be used stays where it is until
the next one replaces it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn

import numpy as np

from mvps.broker.service_settings import MAX_SERVICES, ServiceSettings
from mvps.coupling.distance import LEAST_TICKS
from mvps.coupling.service import Learned
from mvps.trust import durable

FORMAT: Final = 1
MAX_ROWS: Final = 4 * 3600  # a window grows to four times the longest calibration
_MAX_AXES: Final = 7
# A number takes 20 bytes at most, and a row one for its time.
MAX_BYTES: Final = MAX_SERVICES * (4096 + MAX_ROWS * 20 * (_MAX_AXES + 1))


class ServiceWindowsError(Exception):
    """The file cannot be used or written; the message says what follows from that."""


class Kept(NamedTuple):
    """A service's window. of: what it stands on, :func:`standing_on`."""

    of: str
    learned: Learned


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
                "axes": one.learned.axes,
                "times": one.learned.times.tolist(),
                "rows": one.learned.rows.tolist(),
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


def _decoded(body: Any) -> dict[str, Kept]:
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        raise ValueError(f"this is not format {FORMAT}")
    services = body["services"]
    if len(services) > MAX_SERVICES:
        raise ValueError(f"it has {len(services)} services")
    return {str(name): _kept(one) for name, one in services.items()}


def _kept(one: Any) -> Kept:
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
    return Kept(str(one["of"]), Learned(axes, times, rows))


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of a window")
