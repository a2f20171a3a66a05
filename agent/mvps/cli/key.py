# SPDX-License-Identifier: Apache-2.0
"""``mvps key``: make the key file that an agent and its broker share."""

from __future__ import annotations

import argparse
from pathlib import Path

from mvps.cli import exits


def declare(_verb: str, parser: argparse.ArgumentParser) -> None:
    """Arguments of ``mvps key``."""
    parser.add_argument("action", choices=["new"], help="new: make a key file of mode 0600; never overwrites")
    parser.add_argument("path", type=Path, help="file to make")
    parser.epilog = (
        "examples:\n"
        "  mvps key new /etc/mvps/agent.key\n"
        "Copy the file to the broker by a road you trust. It never appears in logs or arguments."
    )


def run(arguments: argparse.Namespace) -> int:
    """Make the key file."""
    from mvps.trust.keys import KeySourceError, generate_key

    try:
        key = generate_key(arguments.path)
    except KeySourceError as error:
        raise exits.Failure(exits.NOT_PERMITTED, str(error)) from None
    print(f"{arguments.path}: new key, mode 0600, id {key.key_id.hex()}")
    return exits.OK
