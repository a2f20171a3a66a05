# SPDX-License-Identifier: Apache-2.0
"""``mvps simulate``: experiments of the sources, computed."""

from __future__ import annotations

import argparse

from mvps.cli.actions import actions_of
from mvps.cli.simulate_surplus import declare_surplus, simulate_surplus


def declare(_verb: str, parser: argparse.ArgumentParser) -> None:
    """Actions of ``mvps simulate``."""
    declare_surplus(actions_of(parser))
    parser.epilog = "examples:\n  mvps simulate surplus --pairs 12\nexit codes: 0 done, 2 bad arguments"


def run(arguments: argparse.Namespace) -> int:
    """Compute and print."""
    return simulate_surplus(arguments)
