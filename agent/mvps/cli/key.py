# SPDX-License-Identifier: Apache-2.0
"""``mvps key``: make, show and rotate the keys of hosts, brokers, operators and witnesses."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from mvps.cli import exits
from mvps.cli.actions import actions_of, give, say

if TYPE_CHECKING:
    from mvps.trust.keys import PublicKey, SecretKey

KINDS = ("host", "broker", "operator", "witness")  # mvps.trust.keys.Kind, without its imports


def declare(_verb: str, parser: argparse.ArgumentParser) -> None:
    """Arguments of ``mvps key``."""
    add = actions_of(parser)
    generate = add(
        "generate",
        "make a key file of mode 0600 and print its public part; never overwrites",
        "examples:\n"
        "  mvps key generate host /etc/mvps/agent.key\n"
        "  mvps key generate broker /etc/mvps/broker.key > broker.pub\n"
        "  mvps key generate operator operator.key > operator.pub      keep it off the hosts and the broker",
    )
    generate.add_argument("kind", choices=KINDS, help="whose key it is; one kind is never taken for another")
    generate.add_argument("path", type=Path, help="file to make")
    show = add(
        "show",
        "print the public part of a key",
        "examples:\n"
        "  mvps key show /etc/mvps/agent.key\n"
        "  mvps key show witness.key --name witness.example      the note key that a manifest names\n"
        "  mvps key show agent.key --json | jq -r .key_id",
    )
    show.add_argument("path", help="key file, or a file with a public key")
    show.add_argument("--name", metavar="NAME", help="print it as the note key (vkey) of this name")
    show.add_argument("--json", action="store_true", help="one JSON object")
    fingerprint = add(
        "fingerprint",
        "print a key's fingerprint, for two people to compare",
        "examples:\n  mvps key fingerprint /etc/mvps/agent.key      at the host\n  mvps key fingerprint operator.pub",
    )
    fingerprint.add_argument("path", help="key file, or a file with a public key")
    rotate = add(
        "rotate",
        "put a new key in the place of a host's, broker's or witness's key; the old one is kept as PATH.old",
        "examples:\n"
        "  mvps key rotate /etc/mvps/agent.key\n"
        "Agent and broker use both files: the old key until the epoch begins that names the new one.",
    )
    rotate.add_argument("path", type=Path, help="key file")
    parser.epilog = (
        "examples:\n"
        "  mvps key generate host /etc/mvps/agent.key\n"
        "  mvps key show /etc/mvps/agent.key\n"
        "A secret key never leaves its file: not as output, not as argument."
    )


def run(arguments: argparse.Namespace) -> int:
    """Do the action."""
    actions = {"generate": _generate, "show": _show, "fingerprint": _fingerprint, "rotate": _rotate}
    return actions[arguments.action](arguments)


def _generate(arguments: argparse.Namespace) -> int:
    from mvps.trust.keys import KeySourceError, Kind, generate_key

    try:
        key = generate_key(arguments.path, Kind(arguments.kind))
    except KeySourceError as error:
        raise exits.Failure(exits.NOT_PERMITTED, str(error)) from None
    _announce(arguments.path, key)
    return exits.OK


def _show(arguments: argparse.Namespace) -> int:
    public = _public(arguments.path)
    text = _note_key(public, arguments.name) if arguments.name else public.text
    if arguments.json:
        shown = {
            "kind": str(public.kind),
            "public": public.text,
            "key_id": public.key_id.hex(),
            "fingerprint": public.fingerprint,
        }
        text = json.dumps(shown | ({"note_key": text} if arguments.name else {}), indent=2)
    give(f"{text}\n".encode(), None)
    return exits.OK


def _fingerprint(arguments: argparse.Namespace) -> int:
    print(_public(arguments.path).fingerprint)
    return exits.OK


def _rotate(arguments: argparse.Namespace) -> int:
    from mvps.trust.keys import OLD_SUFFIX, KeySourceError, Kind, rotate_key

    path = arguments.path
    try:
        old, new = rotate_key(path)
    except KeySourceError as error:
        raise exits.Failure(exits.NOT_PERMITTED, str(error)) from None
    _announce(path, new)
    say(f"{path}{OLD_SUFFIX}: the old key, id {old.public.key_id.hex()}, still the one that the epoch in force names")
    steps = {
        Kind.HOST: (
            "restart the agent; it goes on with the old key",
            f"mvps enroll request --key {path} --vantage ID > rotated.request",
            "the operator: mvps epoch new, mvps enroll approve rotated.request, mvps epoch sign",
        ),
        Kind.BROKER: (
            "restart the broker; it goes on with the old key",
            f"mvps key show {path} > broker.pub",
            "the operator: mvps epoch new --from PREVIOUS --broker broker.pub, mvps epoch sign",
        ),
        Kind.WITNESS: (
            f"mvps key show {path} --name NAME",
            "the operator: mvps epoch new --from PREVIOUS --witness NOTE_KEY, mvps epoch sign",
            "restart the witness when that epoch begins",
        ),
    }
    say("next:")
    for number, step in enumerate((*steps[new.kind], f"after that epoch's `retire`: rm {path}{OLD_SUFFIX}"), start=1):
        say(f"  {number}. {step}")
    return exits.OK


def _announce(path: Path, key: SecretKey) -> None:
    say(f"{path}: new {key.kind} key, mode 0600")
    say(f"fingerprint: {key.public.fingerprint}")
    print(key.public.text)


def _public(source: str) -> PublicKey:
    """Public part of a key file or a public key file."""
    from mvps.trust.keys import PUBLIC_PREFIX, KeySourceError, load_key, load_public

    try:
        with open(source, "rb") as file:
            is_public = file.read(len(PUBLIC_PREFIX)) == PUBLIC_PREFIX.encode()
    except (OSError, ValueError):
        is_public = False  # load_key says what is wrong
    try:
        return load_public(source) if is_public else load_key(source).public
    except KeySourceError as error:
        raise exits.Failure(exits.USAGE, str(error)) from None


def _note_key(public: PublicKey, name: str) -> str:
    from mvps.trust.keys import Kind
    from mvps.trust.note import COSIGNATURE_V1, ED25519, NoteKey, is_note_name

    if not is_note_name(name):
        raise exits.Failure(exits.USAGE, f"--name {name!r}: a note key's name has no spaces, no + and is not empty")
    return NoteKey(name, COSIGNATURE_V1 if public.kind is Kind.WITNESS else ED25519, public.ed25519).text
