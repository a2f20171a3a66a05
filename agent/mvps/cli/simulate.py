# SPDX-License-Identifier: Apache-2.0
"""``mvps simulate``: worked examples and experiments of the sources, computed."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Final

from mvps.cli import simulate_coupling, simulate_hijack, simulate_surplus
from mvps.cli.actions import actions_of

_ACTIONS: Final[dict[str, Callable[[argparse.Namespace], int]]] = {
    "coupling": simulate_coupling.run,
    "hijack": simulate_hijack.run,
    "surplus": simulate_surplus.run,
}


def declare(_verb: str, parser: argparse.ArgumentParser) -> None:
    """Actions of ``mvps simulate``."""
    add = actions_of(parser)
    simulate_hijack.declare(add)
    simulate_surplus.declare(add)
    simulate_coupling.declare(add)
    parser.epilog = (
        "examples:\n"
        "  mvps simulate hijack --vantages 16 --liars 3\n"
        "  mvps simulate surplus --pairs 12\n"
        "  mvps simulate coupling --runs 2\n"
        "exit codes: 0 done, 2 bad arguments, 3 a part did not come up, 4 packages or permissions are missing"
    )


def run(arguments: argparse.Namespace) -> int:
    """Compute and print."""
    return _ACTIONS[arguments.action](arguments)
