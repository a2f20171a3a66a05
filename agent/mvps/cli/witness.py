# SPDX-License-Identifier: Apache-2.0
"""``mvps witness``: cosign the checkpoints of brokers, so that none of them can show two histories."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from mvps.cli import exits

if TYPE_CHECKING:
    from mvps.trust.note import NoteKey
    from mvps.trust.witness import Witness

DEFAULT_LISTEN = "127.0.0.1:7448"
DEFAULT_STATE = Path("/var/lib/mvps-witness/heads.json")
_PUBLIC = "=mvps-public-v1:"


def declare(_verb: str, parser: argparse.ArgumentParser) -> None:
    """Arguments of ``mvps witness``."""
    parser.add_argument("--key", metavar="FILE", required=True, help="the witness's key")
    parser.add_argument(
        "--name", required=True, help="name in its cosignatures, such as witness.example/w1; never to be changed"
    )
    parser.add_argument("--listen", metavar="ADDRESS", default=DEFAULT_LISTEN, help="host:port (default %(default)s)")
    parser.add_argument(
        "--log",
        metavar="KEY",
        action="append",
        default=[],
        help="key of a log: ORIGIN=PUBLICKEY of its broker, or a vkey; may be given more than once",
    )
    parser.add_argument(
        "--state", metavar="FILE", type=Path, default=DEFAULT_STATE, help="what it has cosigned (default %(default)s)"
    )
    parser.add_argument("--new", action="store_true", help="this witness has never cosigned: make the state file")
    parser.add_argument("--vkey", action="store_true", help="print the witness's own key, for the manifest, and end")
    parser.epilog = (
        "examples:\n"
        "  mvps key generate witness witness.key\n"
        "  mvps witness --key witness.key --name witness.example/w1 --vkey\n"
        "  mvps witness --key witness.key --name witness.example/w1 --state w1.json --new \\\n"
        '    --listen 0.0.0.0:7448 --log "site-1=$(mvps key show broker.key)"\n'
        "exit codes: 0 ended by a signal, 2 a key or the state is bad, 4 the address cannot be had"
    )


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal ends it."""
    from mvps.trust.keys import KeySourceError, Kind, load_key
    from mvps.trust.note import COSIGNATURE_V1, NoteError, NoteKey, is_note_name
    from mvps.trust.witness import Witness

    try:
        key = load_key(arguments.key, Kind.WITNESS)
        if not is_note_name(arguments.name):
            raise exits.Failure(exits.USAGE, f'--name "{arguments.name}": no spaces, no plus signs')
        if arguments.vkey:
            print(NoteKey(arguments.name, COSIGNATURE_V1, key.public.ed25519).text)
            return exits.OK
        logs = list(log_keys(arguments.log))
    except (KeySourceError, NoteError) as error:
        raise exits.Failure(exits.USAGE, str(error)) from None
    if not logs:
        raise exits.Failure(exits.USAGE, "no log is named, so nothing could be cosigned: --log ORIGIN=PUBLICKEY")

    try:
        from mvps.witness.heads import HeadsError, HeadsFile
        from mvps.witness.server import ListenError
    except ImportError as error:
        raise exits.Failure(
            exits.NOT_PERMITTED, f"{error.name} is missing: pip install 'mvps[broker]', or install python3-aiohttp"
        ) from None

    try:
        heads = HeadsFile(arguments.state, new=arguments.new)
    except HeadsError as error:
        raise exits.Failure(exits.USAGE, str(error)) from None
    try:
        witness = Witness(arguments.name, key.sign, key.public.ed25519, logs, heads)
        asyncio.run(_serve(witness, arguments.listen))
    except NoteError as error:
        raise exits.Failure(exits.USAGE, str(error)) from None
    except ListenError as error:
        raise exits.Failure(exits.NOT_PERMITTED, str(error)) from None
    finally:
        heads.close()
    return exits.OK


def log_keys(given: Iterable[str]) -> Iterable[NoteKey]:
    """Keys of logs as they are given: ``ORIGIN=mvps-public-v1:broker:...`` or a vkey."""
    from mvps.trust.keys import Kind, parse_public
    from mvps.trust.note import ED25519, NoteError, NoteKey, is_note_name, parse_note_key

    for text in given:
        origin, separator, rest = text.strip().partition(_PUBLIC)
        if not separator:
            yield parse_note_key(origin)
            continue
        if not is_note_name(origin):
            raise NoteError(f"{origin!r} is no origin of a log: no spaces, no plus signs")
        public = parse_public(_PUBLIC[1:] + rest, Kind.BROKER)
        yield NoteKey(origin, ED25519, public.ed25519)


async def _serve(witness: Witness, listen: str) -> None:
    from mvps.witness.server import WitnessServer

    server = WitnessServer(witness, listen, lambda line: print(f"mvps witness: {line}", file=sys.stderr, flush=True))
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    await server.start()
    print(f"witness {witness.key.text} listens on http://{server.address}", file=sys.stderr, flush=True)
    try:
        await ended.wait()
    finally:
        with contextlib.suppress(asyncio.CancelledError):
            await server.stop()
