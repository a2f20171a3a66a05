# SPDX-License-Identifier: Apache-2.0
"""``mvps service``: the services that a broker watches: which surface leads, why, what to do, and how it came."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mvps.cli import exits
from mvps.cli.actions import actions_of, need_matplotlib
from mvps.cli.fleet import broker_at, broker_options, since_ns, utc

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from mvps.v1.stream_pb2 import (
        ServiceCoupling,
        ServiceDistance,
        ServiceRouting,
        ServicesState,
        ServiceState,
        ServiceTick,
    )

_SECONDS: Final = 10.0
_PAGE: Final = 1000  # rows that a broker gives at a time
MOST_POINTS: Final = 200_000
# The sources' numbers of the phases.
NUMBERS: Final = {
    "INCOMPLETE": "-",
    "JOINT_BAU": "0",
    "NET_LEADS": "1",
    "AI_LEADS": "2",
    "COUPLED_SUM": "3a",
    "COUPLED": "3b",
    "CASCADING": "4",
}
# Phases in which somebody should look. 3a is none: quiet ticks are there now and then.
_UNWELL: Final = ("INCOMPLETE", "NET_LEADS", "AI_LEADS", "COUPLED", "CASCADING")
_WHY: Final = {
    "CALIBRATING": "There is no baseline yet, and so no limit that anything could exceed.",
    "INCOMPLETE": "A surface has no reading that stands: the service is called neither well nor ill.",
    "JOINT_BAU": "Both surfaces are below their limits, and so are both together.",
    "NET_LEADS": "The network is over its limit, and the AI surface is not, or is less far over its own.",
    "AI_LEADS": "The AI surface is over its limit, and the network is not, or is less far over its own.",
    "COUPLED_SUM": "Neither surface is over its limit. Both together are, by no more than the two can add up to.",
    "COUPLED": "Neither surface is over its limit. Both together are by more than the two can add up to: they deviate "
    "against each other as they do not in BAU.",
    "CASCADING": "Both surfaces are over their limits, and both together are in ALARM.",
}
_LEADS: Final = {
    "NETWORK": "the network",
    "AI": "the AI surface",
    "TOGETHER": "both at once",
    "OPEN": "open: they move together, and their order is not settled",
    "NOBODY": "nobody",
}


def declare(_verb: str, parser: argparse.ArgumentParser) -> None:
    """Arguments of ``mvps service``."""
    broker_options(parser)
    add_question = actions_of(parser, required=False)

    def add(name: str, summary: str, examples: str) -> argparse.ArgumentParser:
        made = add_question(name, summary, examples)
        broker_options(made, below=True)
        return made

    add("status", "every service: phase, posterior, distances, who leads (this is what no question means)", "")
    explain = add(
        "explain",
        "in words: why a service is in its phase, and what to do",
        "examples:\n  mvps service explain\n  mvps service explain chat",
    )
    explain.add_argument("name", nargs="?", default="", metavar="NAME", help="of the service (default: all)")
    plot = add(
        "plot",
        "a picture of z, D2 of the network, of the AI surface and of both, and the phases, from the history",
        "examples:\n"
        "  mvps service plot chat -o chat.png\n"
        "  mvps service plot chat --since 2h -o chat.png\n"
        "  mvps service plot chat --since 10m --json > chat.json     the figures, without matplotlib",
    )
    plot.add_argument("name", metavar="NAME", help="of the service")
    plot.add_argument("-o", "--out", metavar="FILE", type=Path, help="PNG file to write, which must not exist yet")
    plot.add_argument("--since", metavar="TIME", default="1h", help="how far back: 90s, 10m, 2h, 3d (default 1h)")
    plot.add_argument(
        "--points", metavar="N", type=int, default=10_000, help="at most the latest N ticks (default %(default)s)"
    )
    transfer = add(
        "transfer",
        "fit what moved requests do to the answers, from drills, for a service's setting `transfer`",
        "The file of drills has a line BEGIN,END for each time that routes were changed on purpose, in Unix seconds\n"
        "or as 2026-11-22T10:00:00Z (UTC where no zone is named); at least 20 of them, some of which moved nothing.\n"
        "examples:\n"
        "  mvps service transfer chat --drills drills.csv -o /etc/mvps/chat.transfer.json",
    )
    transfer.add_argument("name", metavar="NAME", help="of the service")
    transfer.add_argument("--drills", metavar="FILE", type=Path, required=True, help="begin and end of each drill")
    transfer.add_argument(
        "-o", "--out", metavar="FILE", type=Path, required=True, help="file to write, which must not exist yet"
    )
    parser.epilog = (
        "examples:\n"
        "  mvps service\n"
        "  mvps service explain chat\n"
        "  mvps service plot chat --since 2h -o chat.png\n"
        "  mvps service --json | jq '.services[].phase'\n"
        "A broker answers on its own host only, unless its setting remote_queries allows others.\n"
        "exit codes: 0 all is well, 1 a service needs an eye (it is marked !) or there is none, 2 bad arguments,\n"
        "3 no broker answers, 4 matplotlib is missing or the file cannot be written"
    )


def run(arguments: argparse.Namespace) -> int:
    """Ask and show."""
    from mvps.cli import service_transfer  # which asks as this does

    questions = {"status": _status, "explain": _explain, "plot": _plot, "transfer": service_transfer.run}
    return questions[arguments.action or "status"](arguments)


def _status(arguments: argparse.Namespace) -> int:
    state = ask(arguments)
    troubles = service_troubles(state)
    if arguments.json:
        print(json.dumps(_dict(state), indent=2))
    else:
        from mvps.cli import view

        head = ("service", "phase", "P(BAU)", "D2 net", "D2 AI", "D2 both", "leads", "ticks")
        print(view.table([head, *(_row(one) for one in state.services)]))
        for trouble in troubles:
            print(f"! {trouble}")
    return exits.FOUND if troubles else exits.OK


def _explain(arguments: argparse.Namespace) -> int:
    from mvps.v1 import stream_pb2

    state = ask(arguments)
    if arguments.name:
        state = stream_pb2.ServicesState(services=[named(state, arguments.name)])
    if arguments.json:
        print(json.dumps(_dict(state), indent=2))
    else:
        print("\n\n".join("\n".join(explained(one)) for one in state.services))
    return exits.FOUND if service_troubles(state) else exits.OK


def _plot(arguments: argparse.Namespace) -> int:
    if arguments.out is None and not arguments.json:
        raise exits.Failure(exits.USAGE, "where to? give -o FILE, or --json for the figures themselves")
    if not 1 <= arguments.points <= MOST_POINTS:
        raise exits.Failure(exits.USAGE, f"--points is 1 to {MOST_POINTS}")
    if arguments.out is not None:
        need_matplotlib()  # before anything is asked
    since = since_ns(arguments.since)
    named(ask(arguments), arguments.name)
    ticks = ticks_of(arguments, since)
    if not ticks:
        raise exits.Failure(
            exits.FOUND, f"nothing is kept of {arguments.name} since {arguments.since} ago: mvps service shows it now"
        )
    if arguments.json:
        print(json.dumps({"ticks": [_dict(tick) for tick in ticks]}, indent=2))
    if arguments.out is not None:
        from mvps.cli import actions, service_plot

        actions.give(service_plot.png(arguments.name, ticks), arguments.out)
    return exits.OK


def ask(arguments: argparse.Namespace) -> ServicesState:
    """The services as they stand; exits.Failure where the broker watches none."""
    from mvps.v1 import stream_pb2

    with broker_at(arguments) as broker:
        info: stream_pb2.ServerInfo = broker.ServerInfo(stream_pb2.ServerInfoRequest(), timeout=_SECONDS)
    if not info.services.services:
        raise exits.Failure(
            exits.FOUND,
            f"the broker at {arguments.broker} watches no service: write [[service]] tables into its settings "
            "(docs/operations.md)",
        )
    return info.services


def ticks_of(arguments: argparse.Namespace, since: int, until: int = 0) -> list[ServiceTick]:
    """The service's ticks between two times, oldest first, page by page. until: 0 for now."""
    from mvps.v1 import stream_pb2

    found: list[ServiceTick] = []
    with broker_at(arguments) as broker:
        while len(found) < arguments.points:
            request = stream_pb2.ListServiceTicksRequest(
                service=arguments.name,
                since_ns=since,
                until_ns=found[-1].tick_time_ns - 1 if found else until,
                limit=min(_PAGE, arguments.points - len(found)),
            )
            page = broker.ListServiceTicks(request, timeout=_SECONDS).ticks
            found.extend(page)
            if len(page) < request.limit:
                break
    return found[::-1]


def named(state: ServicesState, name: str) -> ServiceState:
    """The service of that name; exits.Failure where there is none."""
    for one in state.services:
        if one.name == name:
            return one
    known = ", ".join(one.name for one in state.services)
    raise exits.Failure(exits.FOUND, f'no service "{name}": this broker watches {known}')


def service_troubles(state: ServicesState) -> list[str]:
    """One line for everything about services that a person should look at."""
    found = [f"services: {state.error}"] if state.error else []
    found += [f"services: {state.windows_error}"] if state.windows_error else []
    for one in state.services:
        phase = phase_of(one)
        if phase in _UNWELL:
            found.append(f"{one.name}: phase {NUMBERS[phase]} {phase}. {one.advice}")
        if one.problem:
            found.append(f"{one.name}: no baseline: {one.problem}")
        found += [f"{one.name}: {source} is missing: {why}" for source, why in sorted(one.missing.items())]
    return found


def phase_of(said: ServiceState | ServiceTick) -> str:
    """Phase as an upper-case word."""
    from mvps.v1.stream_pb2 import ServicePhase

    return ServicePhase.Name(said.phase).removeprefix("SERVICE_PHASE_")


def _lead_of(said: ServiceState | ServiceCoupling) -> str:
    from mvps.v1.stream_pb2 import ServiceLead

    return ServiceLead.Name(said.lead).removeprefix("SERVICE_LEAD_")


def _row(one: ServiceState) -> tuple[str, ...]:
    phase = phase_of(one)
    ticks = str(one.calibrated_ticks)
    if phase == "CALIBRATING":
        ticks = f"{one.calibrated_ticks} of {one.needed_ticks}"
        return one.name, phase, "-", "-", "-", "-", "-", ticks
    lead = _lead_of(one)
    return (
        one.name,
        f"{NUMBERS[phase]} {phase}",
        f"{one.posterior[0]:.3f}" if one.posterior else "-",
        *(_distance(one, surface) for surface in ("net", "ai", "joint")),
        "-" if lead in ("UNSPECIFIED", "NOBODY") else lead.lower() if lead != "AI" else lead,
        ticks,
    )


def _distance(one: ServiceState, surface: str) -> str:
    if not one.HasField(surface):
        return "-"
    said: ServiceDistance = getattr(one, surface)
    return f"{said.d2:.1f}/{said.watch:.1f}{'!' if said.d2 >= said.watch else ''}"


def explained(one: ServiceState) -> list[str]:
    """A service in words, a line each."""
    phase = phase_of(one)
    number = f"phase {NUMBERS[phase]}, " if phase in NUMBERS else ""
    lines = [f"{one.name}: {number}{phase}" + (f", as of {utc(one.tick_time_ns)}" if one.tick_time_ns else "")]
    lines.append(f"  Why: {_WHY[phase]}")
    if phase == "CALIBRATING":
        lines.append(f"  Calibrating: {one.calibrated_ticks} of {one.needed_ticks} usable ticks.")
        if one.untaught:
            lines.append(f"  {one.untaught} ticks taught nothing: a source's own decision was not BAU or WATCH.")
    if one.problem:
        lines.append(f"  No baseline: {one.problem}")
    lines += [f"  Missing: {source}, {why}." for source, why in sorted(one.missing.items())]
    for surface, name in (("net", "network"), ("ai", "AI surface"), ("joint", "both")):
        if one.HasField(surface):
            lines.append(_distance_words(name, getattr(one, surface)))
    lead = _lead_of(one)
    if lead in ("NETWORK", "AI", "TOGETHER"):
        lines.append(f"  Moved first: {_LEADS[lead]}.")
    if one.posterior:
        odds = zip(("BAU", "WATCH", "ALARM", "CRITICAL"), one.posterior, strict=True)
        lines.append("  Posterior of both: " + ", ".join(f"{name} {share:.3f}" for name, share in odds))
    if one.axes:
        named = ", ".join(
            f"{axis} {value:.3f}{'' if axis in one.used else ' (not used)'}" for axis, value in sorted(one.axes.items())
        )
        lines.append(f"  Axes: {named}")
    if one.HasField("coupling"):
        lines += _coupling_words(one.coupling)
    lines += [_routing_words(found) for found in one.routing]
    if one.drift:
        lines.append(f"  Routing: {one.drift}.")
    lines.append(f"  What to do: {one.advice}")
    return lines


def _distance_words(name: str, said: ServiceDistance) -> str:
    words = f"  D2 of {name}: {said.d2:.2f}, limit {said.watch:.2f}"
    if said.alarm:
        words += f" (ALARM {said.alarm:.2f})"
    words += f", p {said.p_value:.2g}"
    if said.moved_ns:
        words += f"; over its limit since {utc(said.moved_ns)}"
    return words


def _routing_words(said: ServiceRouting) -> str:
    head = f"  Requests of {said.source}: "
    if not said.replicas:
        return head + f"calibrating, {said.calibrated_windows} of {said.needed_windows} windows of BAU."
    shares = ", ".join(f"{one.name} {one.share:.0%} (was {one.before:.0%})" for one in said.replicas)
    unit = "cached tokens a request" if said.measured else "of a request"
    verb = "moved" if said.moved else "as in BAU"
    words = head + f"{verb}; {shares}; exposure {said.exposure:.3g} {unit}, limit {said.limit:.3g}"
    if said.moved:
        gained = [one for one in sorted(said.replicas, key=lambda one: -one.missing) if one.missing > 0.0]
        words += "; new to it: " + ", ".join(f"{one.name} {one.missing:.0%}" for one in gained[:4])
    if said.HasField("fall"):
        words += f"; C_2^W2 is {said.fall:+.3f} below BAU"
    if said.verdict:
        words += f", {said.predicted:.3f} of it predicted: {said.verdict}"
    return words + ("; the rest is beyond its limit." if said.residual_alarm else ".")


def _coupling_words(said: ServiceCoupling) -> list[str]:
    lines = []
    if said.refused:
        lines.append(f"  Coupling in BAU: not tested; {said.refused}.")
    else:
        verdict = "there is one" if said.p_value < 0.05 else "none is shown"
        lines.append(
            f"  Coupling in BAU: {verdict} (p {said.p_value:.3g} over {said.ticks} ticks, worth {said.effective:.0f}); "
            f"||R_cross|| {said.frobenius:.2f}, without coupling about {said.frobenius_null:.2f}"
        )
        lines.append(
            f"  Strongest pair: {said.net_axis} with {said.ai_axis}, {said.r:+.2f} "
            f"[{said.r_low:+.2f}, {said.r_high:+.2f}]; condition {said.condition:.0f}"
        )
    if said.lead_refused:
        lines.append(f"  Lead over the last ticks: not known; {said.lead_refused}.")
    else:
        lead = _lead_of(said)
        words = f"  Lead over the last {said.recent_ticks} ticks: {_LEADS.get(lead, lead)} (p {said.lead_p_value:.3g})"
        if lead in ("NETWORK", "AI"):
            words += f", by {abs(said.lag_s):g} s [{said.lag_low_s:+g}, {said.lag_high_s:+g}]"
        lines.append(words)
    return lines


def _dict(message: Message) -> dict[str, Any]:
    from google.protobuf.json_format import MessageToDict

    return MessageToDict(message, preserving_proto_field_name=True)


def columns(ticks: Sequence[ServiceTick], name: str) -> list[float]:
    """One figure of every tick, NaN where it is unknown."""
    return [getattr(tick, name) if tick.HasField(name) else math.nan for tick in ticks]


def phase_runs(ticks: Sequence[ServiceTick]) -> Iterator[tuple[int, int, str]]:
    """Runs of one phase: first tick, the tick after its last one, phase."""
    begin = 0
    for index in range(1, len(ticks) + 1):
        if index == len(ticks) or ticks[index].phase != ticks[begin].phase:
            yield begin, index, phase_of(ticks[begin])
            begin = index
