# SPDX-License-Identifier: Apache-2.0
"""``mvps accept`` and ``mvps reload``: the two things a running agent can be told."""

from __future__ import annotations

import argparse

from mvps.cli import exits
from mvps.cli.settings import add_socket_option


def declare(verb: str, parser: argparse.ArgumentParser) -> None:
    """Arguments of both verbs."""
    if verb == "accept":
        parser.add_argument("surface", help="kernel or dataplane")
        parser.epilog = (
            "examples:\n  mvps accept kernel\n"
            "A surface that stays at a new level is SHIFTED; accepting makes that level business as usual.\n"
            "exit codes: 0 accepted, 1 there was nothing to accept, 3 no agent, 4 no permission"
        )
    else:
        parser.epilog = (
            "examples:\n  mvps reload\n"
            "Changes that need a restart are named and left alone. `systemctl reload mvps-agent` does the same.\n"
            "exit codes: 0 all changes took effect, 1 some need a restart, 2 the file is bad, 3 no agent"
        )
    add_socket_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run one of both verbs."""
    from mvps.cli.agent_client import CALL_SECONDS, agent_at
    from mvps.v1 import local_pb2 as pb

    with agent_at(arguments.socket) as agent:
        if arguments.verb == "accept":
            answer = agent.AcceptBaseline(pb.AcceptBaselineRequest(surface=arguments.surface), timeout=CALL_SECONDS)
            if not answer.accepted:
                raise exits.Failure(exits.FOUND, answer.detail)
            print(f"{arguments.surface}: the present level is business as usual now; baseline {answer.detail}")
            return exits.OK
        outcome = agent.Reload(pb.ReloadRequest(), timeout=CALL_SECONDS)
    print(f"in effect: {', '.join(outcome.applied) or 'nothing changed'}")
    if outcome.needs_restart:
        print(f"needs a restart: {', '.join(outcome.needs_restart)}")
    if outcome.error:
        raise exits.Failure(exits.USAGE, outcome.error)
    return exits.FOUND if outcome.needs_restart else exits.OK
