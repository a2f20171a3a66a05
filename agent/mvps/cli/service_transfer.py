# SPDX-License-Identifier: Apache-2.0
"""``mvps service transfer``: what moved requests do to a service's answers, fitted to drills of known cause."""

from __future__ import annotations

import argparse
import json
import sys
from datetime import UTC, datetime
from pathlib import Path

from mvps.cli import actions, exits
from mvps.cli.service import MOST_POINTS, ask, named, ticks_of


def run(arguments: argparse.Namespace) -> int:
    """Fit and write."""
    import numpy as np

    try:
        from mvps.coupling import drift
    except ModuleNotFoundError as error:
        advice = f"{error.name} is missing, which fitting needs: pip install 'mvps[broker]'"
        raise exits.Failure(exits.NOT_PERMITTED, advice) from None
    drills = _drills(arguments.drills)
    named(ask(arguments), arguments.name)
    arguments.points = MOST_POINTS
    found = []
    for begin, end in drills:
        ticks = ticks_of(arguments, round(begin * 1e9), round(end * 1e9))
        seen = [(tick.exposure, tick.fall) for tick in ticks if tick.HasField("exposure") and tick.HasField("fall")]
        if seen:
            found.append(np.mean(seen, axis=0))
    if len(found) < len(drills):
        print(f"{len(drills) - len(found)} of {len(drills)} drills have no exposure in the history", file=sys.stderr)
    exposures, falls = np.array(found).reshape(-1, 2).T
    try:
        fitted = drift.calibrate(exposures, falls)
    except ValueError as error:
        raise exits.Failure(exits.FOUND, f"no transfer: {error}") from None
    actions.give(drift.dump(fitted).encode(), arguments.out)
    if arguments.json:
        print(json.dumps(fitted._asdict(), indent=2))
    else:
        ceiling, scale = fitted.ceiling, fitted.scale
        print(
            f"{fitted.events} drills: C_2^W2 falls by at most {ceiling.value:.3f} [{ceiling.low:.3f}, "
            f"{ceiling.high:.3f}], 63 % of it at an exposure of {scale.value:.3g} [{scale.low:.3g}, {scale.high:.3g}]; "
            f"a rest above {fitted.residual_limit:.3f} is not routing's"
        )
    return exits.OK


def _drills(path: Path) -> list[tuple[float, float]]:
    """Begin and end of each drill, in Unix seconds."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise exits.Failure(exits.USAGE, f"{path}: {error}") from None
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            begin, end = (_moment(part.strip()) for part in line.split(","))
        except ValueError:
            raise exits.Failure(exits.USAGE, f"{path}:{number}: write BEGIN,END, not {line!r}") from None
        if not begin < end:
            raise exits.Failure(exits.USAGE, f"{path}:{number}: a drill ends after it begins")
        found.append((begin, end))
    return found


def _moment(text: str) -> float:
    """Unix seconds of a number or of a time in ISO 8601. ValueError if it is neither."""
    try:
        found = float(text)
    except ValueError:
        when = datetime.fromisoformat(text)
        found = (when if when.tzinfo is not None else when.replace(tzinfo=UTC)).timestamp()
    if not 0.0 <= found < 1e11:
        raise ValueError(text)
    return found
