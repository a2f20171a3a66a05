# SPDX-License-Identifier: Apache-2.0
"""``mvps enroll``: a host asks to be admitted, the operator approves it into the next epoch's draft."""

from __future__ import annotations

import argparse
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

from mvps.cli import exits
from mvps.cli.actions import actions_of, add_out, give, read, rewrite, say

if TYPE_CHECKING:
    from mvps.trust.enrolment import Enrolment
    from mvps.trust.manifest import Manifest

# A request that lies around could bring a key back that was replaced since.
OLDEST_S = 30 * 86400
AHEAD_S = 3600


def declare(_verb: str, parser: argparse.ArgumentParser) -> None:
    """Arguments of ``mvps enroll``."""
    add = actions_of(parser)
    request = add(
        "request",
        "write this host's enrolment request: public keys only, signed by the host",
        "examples:\n"
        "  mvps enroll request --key /etc/mvps/agent.key > host-a.request\n"
        "  mvps enroll request --key agent.key --vantage host-a --cell rack-1 --role host --prefix 10.0.0.5/32",
    )
    request.add_argument("--key", required=True, metavar="FILE", help="the host's key file, or credential:NAME")
    request.add_argument("--vantage", metavar="ID", help="vantage id, as in the agent's settings (default: host name)")
    request.add_argument("--cell", default="", help="cell it belongs to, e.g. a rack or zone")
    request.add_argument("--role", action="append", default=[], metavar="ROLE", help="e.g. host; may be repeated")
    request.add_argument(
        "--prefix", action="append", default=[], metavar="CIDR", help="where it sends from; may be repeated"
    )
    add_out(request)
    approve = add(
        "approve",
        "admit hosts into a draft: all of them or none",
        "examples:\n"
        "  mvps enroll approve host-a.request host-b.request --into epoch-1.draft\n"
        "Compare each fingerprint with `mvps key fingerprint` at the host before you sign the draft.",
    )
    approve.add_argument("requests", nargs="+", type=Path, metavar="REQUEST", help="request files")
    approve.add_argument("--into", required=True, type=Path, metavar="DRAFT", help="draft, from mvps epoch new")
    parser.epilog = (
        "examples:\n"
        "  mvps enroll request --key /etc/mvps/agent.key > host-a.request\n"
        "  mvps enroll approve host-a.request --into epoch-1.draft"
    )


def run(arguments: argparse.Namespace) -> int:
    """Do the action."""
    return _request(arguments) if arguments.action == "request" else _approve(arguments)


def _request(arguments: argparse.Namespace) -> int:
    from mvps.trust.enrolment import Enrolment, EnrolmentError, sign_enrolment
    from mvps.trust.keys import KeySourceError, Kind, load_key
    from mvps.trust.manifest import ManifestError, Vantage, parse_network

    hostname = socket.gethostname()
    try:
        key = load_key(arguments.key, Kind.HOST)
        vantage = Vantage(
            hostname if arguments.vantage is None else arguments.vantage,
            key.public,
            arguments.cell,
            tuple(arguments.role),
            tuple(parse_network(prefix) for prefix in arguments.prefix),
        )
        request = sign_enrolment(Enrolment(vantage, hostname, int(time.time())), key)
    except (KeySourceError, EnrolmentError, ManifestError) as error:
        raise exits.Failure(exits.USAGE, str(error)) from None
    give(request, arguments.out)
    say(f"{vantage.vantage_id}: fingerprint {key.public.fingerprint}")
    return exits.OK


def _approve(arguments: argparse.Namespace) -> int:
    from mvps.cli.epoch import read_draft
    from mvps.trust.enrolment import EnrolmentError, open_enrolment
    from mvps.trust.limits import MAX_ENROLMENT_BYTES
    from mvps.trust.manifest import ManifestError, admit

    draft = read_draft(arguments.into)
    changed = draft
    lines: list[str] = []
    for path in arguments.requests:
        try:
            enrolment = open_enrolment(read(path, MAX_ENROLMENT_BYTES))
            _check_age(enrolment)
            if changed.vantage(enrolment.vantage.vantage_id) != draft.vantage(enrolment.vantage.vantage_id):
                raise EnrolmentError(f"another of these requests is for {enrolment.vantage.vantage_id} too")
            lines += _describe(draft, enrolment, arguments.into)
            changed = admit(changed, enrolment.vantage)
        except (EnrolmentError, ManifestError) as error:
            raise exits.Failure(exits.USAGE, f"{path}: {error}; {arguments.into} is unchanged") from None
    rewrite(arguments.into, changed.text.encode())
    for line in lines:
        print(line)
    say(f"{arguments.into}: {len(changed.vantages)} vantages. Compare the fingerprints, then: mvps epoch sign")
    return exits.OK


def _check_age(enrolment: Enrolment) -> None:
    from mvps.trust.enrolment import EnrolmentError
    from mvps.trust.manifest import utc

    age_s = int(time.time()) - enrolment.created_s
    if not -AHEAD_S <= age_s <= OLDEST_S:
        raise EnrolmentError(
            f"the request was made {utc(enrolment.created_s)}, and counts for {OLDEST_S // 86400} days: "
            "ask for a new one, or set the clock that is wrong"
        )


def _describe(draft: Manifest, enrolment: Enrolment, path: Path) -> list[str]:
    vantage = enrolment.vantage
    before = draft.vantage(vantage.vantage_id)
    lines = [f"{vantage.vantage_id}: {vantage.key.fingerprint} (host {enrolment.hostname or 'unnamed'})"]
    if before is not None and before.key != vantage.key:
        key_id = before.key.key_id.hex()
        lines.append(
            f"  takes the place of key {key_id}. If others may have that one: "
            f"mvps epoch revoke {path} {vantage.vantage_id} --key-id {key_id}"
        )
    return lines
