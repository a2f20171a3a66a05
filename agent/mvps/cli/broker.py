# SPDX-License-Identifier: Apache-2.0
"""``mvps broker``: a broker in the foreground; its actions install, show and remove the XDP limiter in front of it."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvps.cli import exits, limiter

if TYPE_CHECKING:
    from mvps.broker.settings import BrokerSettings

DEFAULT_CONFIG = Path("/etc/mvps/broker.toml")


def declare(_verb: str, parser: argparse.ArgumentParser) -> None:
    """Arguments of ``mvps broker``."""
    parser.add_argument(
        "--config", metavar="FILE", type=Path, help=f"settings file (default {DEFAULT_CONFIG}, if it exists)"
    )
    parser.add_argument("--listen", metavar="ADDRESS", help="host:port or unix:/path; wins over the file")
    parser.add_argument("--database", metavar="FILE", type=Path, help="SQLite file; wins over the file")
    parser.add_argument("--key", metavar="FILE", help="the broker's key; wins over the file")
    parser.add_argument("--operator", metavar="KEY", help="the operator's public key or a file; wins over the file")
    parser.add_argument("--manifests", metavar="DIR", type=Path, help="signed manifests; wins over the file")
    parser.add_argument("--metrics", metavar="ADDRESS", help='host:port of /metrics, "" for none; wins over the file')
    parser.add_argument("--limiter", metavar="DIR", help='where the XDP limiter is pinned, "" for none')
    parser.epilog = (
        "examples:\n"
        "  mvps broker --listen 0.0.0.0:7447\n"
        "  mvps broker --key broker.key --operator operator.pub --manifests manifests --database broker.db\n"
        "exit codes: 0 ended by a signal, 2 the settings are bad, 4 a file or port cannot be had"
    )
    limiter.declare(parser)


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal ends it, or carry out the action."""
    settings = _settings(arguments)
    if arguments.action is not None:
        return limiter.run(arguments, settings)

    try:
        from mvps.broker.epoch_watch import NoEpochError
        from mvps.broker.server import BrokerError
        from mvps.broker.tables import StoreError
    except ModuleNotFoundError as error:
        raise exits.Failure(
            exits.NOT_PERMITTED, f"{error.name} is missing, which a broker needs: pip install 'mvps[broker]'"
        ) from None
    from mvps.trust.keys import KeySourceError

    try:
        asyncio.run(_serve(settings))
    except (KeySourceError, NoEpochError) as error:
        raise exits.Failure(exits.USAGE, str(error)) from None
    except (BrokerError, StoreError) as error:
        raise exits.Failure(exits.NOT_PERMITTED, str(error)) from None
    return exits.OK


def _settings(arguments: argparse.Namespace) -> BrokerSettings:
    from pydantic import ValidationError

    from mvps.broker.settings import BrokerSettings

    path = arguments.config or (DEFAULT_CONFIG if DEFAULT_CONFIG.exists() else None)
    given: dict[str, Any] = {}
    if path is not None:
        try:
            given = tomllib.loads(path.read_text())
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise exits.Failure(exits.USAGE, f"{path}: {error}") from None
    for name in ("listen", "database", "key", "operator", "manifests", "metrics", "limiter"):
        if (value := getattr(arguments, name)) is not None:
            given[name] = value
    try:
        return BrokerSettings.model_validate(given)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise exits.Failure(exits.USAGE, "; ".join(lines)) from None


async def _serve(settings: BrokerSettings) -> None:
    from mvps.broker.process import serve
    from mvps.daemon.notify import Notifier

    notifier = Notifier()

    def ready(address: str) -> None:
        print(f"broker listens on {address}", file=sys.stderr, flush=True)
        notifier.ready(f"listening on {address}")

    task = asyncio.create_task(serve(settings, ready))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task
    notifier.stopping()
