# SPDX-License-Identifier: Apache-2.0
"""``mvps config``: the commented default settings, the effective ones, or a check of a file."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from mvps.cli import exits
from mvps.cli.settings import add_config_option, read_config


def declare(_verb: str, parser: argparse.ArgumentParser) -> None:
    """Arguments of ``mvps config``."""
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", metavar="FILE", type=Path, help="check a file; errors name the line")
    what.add_argument("--effective", action="store_true", help="print the settings the agent would run with")
    parser.add_argument("--json", action="store_true", help="print --effective as JSON")
    add_config_option(parser)
    parser.epilog = (
        "examples:\n"
        "  mvps config > /etc/mvps/agent.toml     start from a file with every key explained\n"
        "  mvps config --check agent.toml         0 when it is good, 2 and the lines when it is not\n"
        "  mvps config --effective --json"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print or check settings."""
    from mvps.daemon import config

    if arguments.check is not None:
        read_config(arguments.check)
        print(f"{arguments.check}: good")
    elif arguments.effective or arguments.json:
        effective = read_config(arguments.config)
        if arguments.json:
            print(json.dumps(effective.model_dump(), indent=2))
        else:
            print(config.to_toml(effective), end="")
    else:
        print(config.default_file(), end="")
    return exits.OK
