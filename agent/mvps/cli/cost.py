# SPDX-License-Identifier: Apache-2.0
"""``mvps cost``: what the agent's programs cost the kernel."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os

from mvps.cli import exits


def declare(_verb: str, parser: argparse.ArgumentParser) -> None:
    """Arguments of ``mvps cost``."""
    parser.add_argument(
        "--live",
        action="store_true",
        required=True,
        help="switch the kernel's run-time statistics on and measure; they are off again afterwards",
    )
    parser.add_argument("--seconds", type=float, default=5.0, metavar="N", help="how long (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.epilog = (
        "examples:\n"
        "  mvps cost --live\n"
        "  mvps cost --live --seconds 60 --json\n"
        "While this runs, the agent's /metrics shows mvps_program_* too.\n"
        "exit codes: 0 measured, 1 no program of an agent is loaded, 2 bad arguments, 4 not root"
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure for a while and print one line per program."""
    from mvps.probes.cost import live_cost
    from mvps.probes.libbpf import BpfError

    if os.geteuid() != 0:
        raise exits.Failure(exits.NOT_PERMITTED, "BPF run-time statistics need root: sudo mvps cost --live")
    if arguments.seconds <= 0:
        raise exits.Failure(exits.USAGE, "--seconds must be positive")
    try:
        found = live_cost(arguments.seconds)
    except BpfError as error:
        raise exits.Failure(exits.NOT_PERMITTED, str(error)) from None
    if arguments.json:
        print(json.dumps({name: dataclasses.asdict(cost) for name, cost in found.items()}, indent=2))
    else:
        for name, cost in found.items():
            print(
                f"{name:28} {cost.runs:>10} runs  {cost.ns_per_run:8.0f} ns each  "
                f"{cost.percent_of_core:7.3f} % of a core"
            )
        total = sum(cost.percent_of_core for cost in found.values())
        print(f"{'together':28} {'':>10}       {'':8}          {total:7.3f} % of a core")
    if not found:
        raise exits.Failure(exits.FOUND, "no program of an agent is loaded on this host; start the agent first")
    return exits.OK
