# SPDX-License-Identifier: Apache-2.0
"""``mvps surplus fleet``, ``audit``, ``report``, ``order`` and ``incident``: tenants and their policies at a broker."""

from __future__ import annotations

import argparse
import getpass
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mvps.cli import exits
from mvps.cli.actions import AddAction, read
from mvps.cli.fleet import broker_at, broker_options, since_ns, utc

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from mvps.v1.stream_pb2 import SurplusChange, SurplusPolicy, SurplusState, SurplusTenant

_SECONDS: Final = 10.0
_TROUBLE: Final = ("Action", "Emergency")
ORDERS: Final = ("rung", "stage", "kill", "release")


def declare(add: AddAction) -> None:
    """Those actions of ``mvps surplus`` that ask a broker."""
    fleet = add(
        "fleet",
        "every tenant at a broker: state, rung, stage of its policy, and what needs an eye",
        "examples:\n  mvps surplus fleet\n  mvps surplus fleet --json | jq '.tenants[].policy.stage'\n"
        "exit codes: 0 all well, 1 something needs an eye (it is marked !), 2 this broker watches no tenants,\n"
        "3 no broker answers, 4 no permission",
    )
    audit = add(
        "audit",
        "the audit trail, newest first: every change of rung, stage and policy, with who, why and the metrics before",
        "examples:\n  mvps surplus audit\n  mvps surplus audit acme --since 3d\n"
        "exit codes: 0 shown, 3 no broker or history answers, 4 no permission",
    )
    audit.add_argument("tenant", nargs="?", default="", help="only of this tenant")
    audit.add_argument("--limit", metavar="N", type=int, default=50, help="at most this many (default %(default)s)")
    report = add(
        "report",
        "a tenant over some time: its states, alerts, lead times before incidents, and lambda by the hour",
        "examples:\n  mvps surplus report acme --since 1d\n  mvps surplus report acme --since 7d --json\n"
        "exit codes: 0 shown, 1 some stored minute does not follow from what hosts said,\n"
        "3 no broker or history answers, 4 no permission",
    )
    report.add_argument("tenant", help="the tenant")
    for made, back in ((audit, ""), (report, "1d")):
        made.add_argument(
            "--since", metavar="TIME", default=back, help=f"how far back: 90s, 10m, 2h, 3d (default: {back or 'all'})"
        )
    order = add(
        "order",
        "set the rung or the stage of a tenant, take its policy back from every host, or release it",
        "examples:\n"
        "  mvps surplus order acme kill --why 'answers loop' --broker unix:/run/mvps-broker/operator.sock\n"
        "  mvps surplus order acme release --why 'fixed in release 13' --broker unix:...\n"
        "  mvps surplus order acme rung R5 --why 'BH-2 for an hour' --broker unix:...\n"
        "  mvps surplus order acme stage canary --why 'a small site' --broker unix:...\n"
        "Orders are for operators: on the broker's operator_socket, or with a certificate that operators names.\n"
        "exit codes: 0 done, 1 nothing had to change, 2 it cannot be carried out, 3 no broker answers, 4 no permission",
    )
    order.add_argument("tenant", help="the tenant")
    order.add_argument("what", choices=ORDERS)
    order.add_argument("to", nargs="?", default="", help="R0 to R6 or none; shadow, canary, gradual or full")
    order.add_argument("--why", metavar="REASON", required=True, help="kept in the audit trail")
    incident = add(
        "incident",
        "record an incident, so that lead times are known; the one recorded last under an id counts",
        "examples:\n  mvps surplus incident inc-7.json --broker unix:/run/mvps-broker/operator.sock\n"
        "exit codes: 0 recorded, 2 this is no incident.v1, 3 no broker answers, 4 no permission",
    )
    incident.add_argument("file", type=Path, metavar="FILE", help="one incident.v1 as JSON (mvps surplus schema)")
    for made in (order, incident):
        made.add_argument("--by", metavar="NAME", default="", help="kept in the audit trail (default: your login)")
    for made in (fleet, audit, report, order, incident):
        broker_options(made)


def run(arguments: argparse.Namespace) -> int:
    """Run one of them."""
    actions: dict[str, Callable[[argparse.Namespace], int]] = {
        "fleet": _fleet,
        "audit": _audit,
        "report": _report,
        "order": _order,
        "incident": _incident,
    }
    return actions[arguments.action](arguments)


def _fleet(arguments: argparse.Namespace) -> int:
    from mvps.v1 import stream_pb2 as pb

    with broker_at(arguments) as broker:
        state = broker.ServerInfo(pb.ServerInfoRequest(), timeout=_SECONDS).surplus
    if not state.on:
        raise exits.Failure(exits.USAGE, "this broker watches no tenants: it has no [surplus] in its settings")
    troubles = list(troubles_of(state))
    if arguments.json:
        print(json.dumps(_dict(state) | {"troubles": troubles}, indent=2))
        return exits.FOUND if troubles else exits.OK
    from mvps.cli import view

    if state.tenants:
        heads = ("tenant", "state", "Xi", "SSE", "alerts", "hosts", "lambda", "policy", "rung", "stage", "soak")
        print(view.table([heads, *(_row(one) for one in state.tenants)]))
        for one in state.tenants:
            if one.policy.share:
                print(f"{one.tenant}, kill switches: {_switches(one.policy)}")
    else:
        print("no host has told of a tenant yet")
    refused = {cause: count for cause, count in sorted(state.health.items()) if count and cause != "taken"}
    print(f"minutes of hosts: {state.health['taken']}" + "".join(f", {name} {n}" for name, n in refused.items()))
    for trouble in troubles:
        print(f"! {trouble}")
    return exits.FOUND if troubles else exits.OK


def troubles_of(state: SurplusState) -> Iterator[str]:
    """One line for everything that a person should look at."""
    for one in state.tenants:
        if one.state in _TROUBLE:
            yield f"{one.tenant} is in {one.state}"
        if one.policy.held:
            yield f"{one.tenant}: its policy is in force nowhere until it is released: {one.policy.held}"
        if one.policy.proposed:
            yield f"{one.tenant}: {one.policy.proposed} is asked for, which takes an order: BH-2 stays raised"
    yield from (f"policies: {line}" for line in state.refused_policies)
    yield from (f"tenants: {line}" for line in (state.error, state.keep_error) if line)


def _row(one: SurplusTenant) -> tuple[str, ...]:
    alerts = " ".join(name for name, raised in (("BH-1", one.bh1), ("BH-2", one.bh2)) if raised)
    cells = (
        one.tenant,
        one.state,
        f"{one.xi:.2f}" if one.HasField("xi") else "-",
        f"{one.sse:.2f}" if one.HasField("sse") else "-",
        alerts or "-",
        f"{one.told}/{one.hosts}",
        f"{one.lam:.3f}" if one.minute_ns else "-",
    )
    return (*cells, *(_policy_cells(one.policy) if one.HasField("policy") else ("-",) * 4))


def _policy_cells(policy: SurplusPolicy) -> tuple[str, ...]:
    stage = f"{policy.stage} {policy.share:.0%}"
    soak = policy.waiting or f"{policy.soaked}/{policy.soak_minutes} min"
    return (
        f"{policy.name} v{policy.version}" + (" dry run" if policy.dry_run else ""),
        f"R{policy.rung}" if policy.rung >= 0 else "-",
        f"{stage}, held" if policy.held else stage,
        soak,
    )


def _switches(policy: SurplusPolicy) -> str:
    """How near each is to firing; those that cannot are named."""
    said = []
    for one in policy.switches:
        if one.HasField("change"):
            said.append(f"{one.name} {one.change:+.2%} of {one.limit:+.2%}")
        else:
            said.append(f"{one.name} not compared yet ({one.blocks} known hours, {one.shadow_blocks} in shadow)")
    return "; ".join(said) or "all off but BH-2"


def _audit(arguments: argparse.Namespace) -> int:
    from mvps.v1 import stream_pb2 as pb

    request = pb.ListSurplusChangesRequest(
        tenant=arguments.tenant, since_ns=since_ns(arguments.since), limit=arguments.limit
    )
    with broker_at(arguments) as broker:
        answer = broker.ListSurplusChanges(request, timeout=_SECONDS)
    _say(arguments, answer, list(answer.changes), "nothing was changed")
    return exits.OK


def _report(arguments: argparse.Namespace) -> int:
    from mvps.v1 import stream_pb2 as pb

    request = pb.GetSurplusReportRequest(tenant=arguments.tenant, since_ns=since_ns(arguments.since))
    with broker_at(arguments) as broker:
        found = broker.GetSurplusReport(request, timeout=6 * _SECONDS)
    code = exits.FOUND if found.unfounded_ns else exits.OK
    if arguments.json:
        print(json.dumps(_dict(found), indent=2))
        return code
    from mvps.cli import view

    if not found.duty:
        print(f"nothing is stored of {arguments.tenant} in that time")
        return code
    print("states: " + ", ".join(f"{one.state} {one.minutes} min ({one.share:.1%})" for one in found.duty))
    print(f"minutes with the breaches of BH-1: {found.bh1_minutes}, of BH-2: {found.bh2_minutes}")
    for one in found.leads:
        said = [
            f"{name} {getattr(one, field):.1f} min before" if one.HasField(field) else f"no {name} before"
            for name, field in (("BH-1", "bh1"), ("BH-2", "bh2"))
        ]
        print(f"incident {one.id} at {utc(one.started_ns)}: {', '.join(said)}")
    heads = ("hour", "host minutes", "packets", "left alone", "lambda", "nats a token", "under stress")
    rows = [
        (
            utc(one.time_ns),
            str(one.host_minutes),
            str(one.packets),
            f"{one.fallbacks:.1%}",
            f"{one.lam:.3f}",
            f"{one.kl_budget:.4f}",
            f"{one.stress:.0%}",
        )
        for one in found.hours
    ]
    print(view.table([heads, *rows]))
    for change in found.taken_back:
        print(f"taken back at {utc(change.time_ns)} by {change.who}: {change.why}")
    for at_ns in found.unfounded_ns:
        print(f"! the stored Xi of the minute {utc(at_ns)} does not follow from what hosts said")
    return code


def _order(arguments: argparse.Namespace) -> int:
    from mvps.v1 import stream_pb2 as pb

    if (arguments.what in ("rung", "stage")) != bool(arguments.to):
        raise exits.Failure(
            exits.USAGE, "rung and stage need where to: mvps surplus order TENANT rung R5; others do not"
        )
    request = pb.OrderSurplusRequest(
        tenant=arguments.tenant, what=arguments.what, to=arguments.to, who=_who(arguments), why=arguments.why
    )
    with broker_at(arguments) as broker:
        answer = _heard(lambda: broker.OrderSurplus(request, timeout=_SECONDS))
    _say(arguments, answer, list(answer.changes), "nothing had to change")
    return exits.OK if answer.changes else exits.FOUND


def _incident(arguments: argparse.Namespace) -> int:
    from mvps.surplus.packets import MAX_LINE_BYTES, Incident, parse, render
    from mvps.v1 import stream_pb2 as pb

    try:
        incident = parse(read(arguments.file, MAX_LINE_BYTES), Incident)
    except ValueError as error:
        raise exits.Failure(exits.USAGE, f"{arguments.file}: {error}") from None
    request = pb.RecordIncidentRequest(incident=render(incident), who=_who(arguments))
    with broker_at(arguments) as broker:
        _heard(lambda: broker.RecordIncident(request, timeout=_SECONDS))
    print(json.dumps({"recorded": incident.id}) if arguments.json else f"recorded {incident.id}")
    return exits.OK


def _heard(call: Callable[[], Any]) -> Any:
    """The answer; what the broker cannot carry out is a failure of the arguments."""
    import grpc

    try:
        return call()
    except grpc.RpcError as error:
        if error.code() in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INVALID_ARGUMENT):
            raise exits.Failure(exits.USAGE, error.details() or "the broker refuses it") from None
        raise


def _who(arguments: argparse.Namespace) -> str:
    try:
        return arguments.by or getpass.getuser()
    except (OSError, KeyError):
        raise exits.Failure(exits.USAGE, "who are you? give --by NAME, which is kept") from None


def _say(arguments: argparse.Namespace, answer: Message, changes: list[SurplusChange], nothing: str) -> None:
    if arguments.json:
        print(json.dumps(_dict(answer), indent=2))
        return
    from mvps.cli import view

    if not changes:
        print(nothing)
        return
    heads = ("time", "tenant", "what", "before", "after", "by", "Xi", "why")
    rows = [
        (
            utc(one.time_ns),
            one.tenant,
            one.what + (" (dry run)" if one.dry_run else ""),
            one.before,
            one.after,
            one.who,
            f"{one.xi:.2f}" if one.HasField("xi") else "-",
            one.why,
        )
        for one in changes
    ]
    print(view.table([heads, *rows]))


def _dict(message: Message) -> dict[str, Any]:
    from google.protobuf.json_format import MessageToDict

    found: dict[str, Any] = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return found
