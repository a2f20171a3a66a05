# SPDX-License-Identifier: Apache-2.0
"""``mvps fleet quarantine`` and ``release``: who is no part of the fleet's decision from the next epoch on.

They change a draft, as ``mvps epoch new --from`` writes it, and ask no broker: only the operator's signature sets
anybody aside.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mvps.cli import exits
from mvps.cli.actions import AddAction, rewrite, say
from mvps.cli.epoch import read_draft


def declare(add: AddAction) -> None:
    """Both actions, for the verb that has them."""
    quarantine = add(
        "quarantine",
        "set a vantage of a draft aside: still admitted and logged, no part of the fleet's decision",
        "examples:\n"
        "  mvps epoch new --from epoch-1.manifest --operator operator.pub --out epoch-2.draft\n"
        "  mvps fleet quarantine epoch-2.draft host-b\n"
        "  mvps epoch sign epoch-2.draft --previous epoch-1.manifest --key operator.key --now --out epoch-2.manifest\n"
        "f has to stay below half of those who are left, or the draft cannot be signed.",
    )
    release = add("release", "take a vantage of a draft back from quarantine", "")
    for made in (quarantine, release):
        made.add_argument("draft", type=Path, metavar="DRAFT", help="from mvps epoch new")
        made.add_argument("vantage", metavar="VANTAGE", help="vantage id")


def run(arguments: argparse.Namespace) -> int:
    """Change the draft."""
    from mvps.trust.manifest import ManifestError, quarantine, release

    change = quarantine if arguments.action == "quarantine" else release
    try:
        changed = change(read_draft(arguments.draft), arguments.vantage)
    except ManifestError as error:
        raise exits.Failure(exits.USAGE, str(error)) from None
    rewrite(arguments.draft, changed.text.encode())
    print(f"quarantined: {', '.join(changed.quarantined) or 'nobody'}; {len(changed.fleet)} vantages are left")
    say("next: mvps epoch sign, and the manifest to the broker; it counts from the epoch's beginning on")
    return exits.OK
