# SPDX-License-Identifier: Apache-2.0
"""The fleet's baselines on disk, so that a broker that restarts decides at once.

One JSON file beside the broker's database, replaced whole. What is in it is the law of every kind's statistics for one
f (:class:`mvps.robust.fleet.FleetBaseline`), and not the ticks it was fitted to. A file that cannot be used stays where
it is until the next one replaces it; the broker calibrates meanwhile, as it would without one.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn

from mvps.coherence.tail import Tail
from mvps.robust.fleet import REMOVALS, STATISTICS, FleetBaseline
from mvps.trust import durable

FORMAT: Final = 1
# 64 kinds of six tails each, with 64 knots of two numbers, take 1 MiB.
MAX_BYTES: Final = 4 * 1024 * 1024


class FleetBaselinesError(Exception):
    """The file cannot be used or written; the message says what follows from that."""


class KeptBaselines(NamedTuple):
    """Baselines of every kind of vantage, all for removals of up to f hosts."""

    f: int
    kinds: Mapping[str, FleetBaseline]


def load(path: Path) -> KeptBaselines | None:
    """What is kept, or None if there is no file."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise FleetBaselinesError(f"{path} cannot be read ({error.strerror}): the fleet is calibrated anew") from None
    try:
        if len(data) > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES} bytes")
        return _decoded(json.loads(data, parse_constant=_no_constant))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        raise FleetBaselinesError(f"{path} holds no fleet baselines ({error}): the fleet is calibrated anew") from None


def save(path: Path, kept: KeptBaselines) -> None:
    """Replace what is kept. FleetBaselinesError if the disk refuses."""
    body = {
        "format": FORMAT,
        "f": kept.f,
        "kinds": {
            name: [[dataclasses.asdict(tail) for tail in tails] for tails in baseline.tails[0]]
            for name, baseline in kept.kinds.items()
        },
    }
    try:
        durable.replace(path, json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False).encode())
    except OSError as error:
        raise FleetBaselinesError(
            f"{path} cannot be written ({error.strerror}): a broker that restarts calibrates the fleet anew"
        ) from None


def _decoded(body: Any) -> KeptBaselines:
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        raise ValueError(f"this is not format {FORMAT}")
    f = body["f"]
    if type(f) is not int or f < 0:
        raise ValueError(f"f is {f!r}")
    return KeptBaselines(f, {str(name): _baseline(f, rows) for name, rows in body["kinds"].items()})


def _baseline(f: int, rows: Any) -> FleetBaseline:
    tails = tuple(tuple(_tail(tail) for tail in row) for row in rows)
    if [len(row) for row in tails] != [len(STATISTICS)] * len(REMOVALS):
        raise ValueError("a kind does not have two tails for each of three removals")
    return FleetBaseline(f, (tails,))


def _tail(fields: Any) -> Tail:
    values: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in fields.items()}
    for value in values.values():
        for number in value if isinstance(value, tuple) else (value,):
            if not isinstance(number, (int, float)) or not math.isfinite(number):
                raise ValueError(f"{number!r} is no number of a tail")
    return Tail(**values)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of a baseline")
