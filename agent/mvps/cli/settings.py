# SPDX-License-Identifier: Apache-2.0
"""The ``--config`` and ``--socket`` options that several verbs share, and reading what they name."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from mvps.cli import exits

if TYPE_CHECKING:
    from mvps.daemon.config import Config

DEFAULT_CONFIG = Path("/etc/mvps/agent.toml")
DEFAULT_SOCKET = "/run/mvps/agent.sock"


def add_config_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--config``; without it the installed file is read if there is one, else defaults hold."""
    parser.add_argument(
        "--config", metavar="FILE", type=Path, help=f"settings file (default {DEFAULT_CONFIG}, if it exists)"
    )


def add_socket_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--socket``; $MVPS_SOCKET is the default, then the installed agent's socket."""
    parser.add_argument(
        "--socket",
        metavar="PATH",
        default=os.environ.get("MVPS_SOCKET", DEFAULT_SOCKET),
        help=f"the agent's socket (default $MVPS_SOCKET or {DEFAULT_SOCKET})",
    )


def read_config(path: Path | None) -> Config:
    """Settings of ``path``, of the installed file, or the defaults; a bad file ends the verb with 2."""
    from mvps.daemon import config

    if path is None and not DEFAULT_CONFIG.exists():
        return config.Config()
    try:
        return config.load(path or DEFAULT_CONFIG)
    except config.ConfigError as error:
        raise exits.Failure(exits.USAGE, str(error)) from None
