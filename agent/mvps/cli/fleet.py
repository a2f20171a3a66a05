# SPDX-License-Identifier: Apache-2.0
"""``mvps fleet``: what a broker knows: its epoch, its log, its vantages, who is in trouble, and what was when.

And who is to be set aside, which is the operator's to say and no broker's (:mod:`mvps.cli.quarantine`).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mvps.cli import exits, quarantine
from mvps.cli.actions import actions_of
from mvps.cli.settings import add_tls_options, open_channel

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from mvps.v1 import stream_pb2_grpc
    from mvps.v1.stream_pb2 import (
        BundleSummary,
        FleetDecision,
        FleetState,
        KindState,
        ListVantagesResponse,
        ServerInfo,
        VantageSummary,
        VantageTick,
    )

DEFAULT_BROKER = "127.0.0.1:7447"
_SECONDS = 10.0
# Two summaries of a snapshot each for a hundred thousand vantages would not fit anywhere; this is some 20,000.
_MESSAGE_BYTES = 256 * 1024 * 1024


def declare(_verb: str, parser: argparse.ArgumentParser) -> None:
    """Arguments of ``mvps fleet``."""
    broker_options(parser)
    add_question = actions_of(parser, required=False)

    def add(name: str, summary: str, examples: str) -> argparse.ArgumentParser:
        made = add_question(name, summary, examples)
        broker_options(made, below=True)
        return made

    add("status", "epoch, log, every vantage, and what needs an eye (this is what no question means)", "")
    history = add(
        "history",
        "closed ticks, newest first: who reported, who was missing, refused or late",
        "examples:\n  mvps fleet history\n  mvps fleet history --cell r1 --since 2h --limit 500",
    )
    history.add_argument("--cell", metavar="NAME", help="only of this cell")
    vantage = add(
        "vantage",
        "one vantage's ticks, newest first",
        "examples:\n  mvps fleet vantage host-a\n  mvps fleet vantage host-a --since 10m --json",
    )
    vantage.add_argument("id", help="vantage id")
    decisions = add(
        "decisions",
        "what the fleet as a whole said, newest first: one row per tick and kind of vantage",
        "examples:\n  mvps fleet decisions --kind mm --since 10m\n  mvps fleet decisions --json",
    )
    decisions.add_argument("--kind", metavar="NAME", default="", help="only of this kind of vantage, e.g. mm")
    for made in (history, vantage, decisions):
        made.add_argument("--since", metavar="TIME", default="", help="how far back: 90s, 10m, 2h, 3d (default: all)")
        made.add_argument("--limit", metavar="N", type=int, default=50, help="at most this many (default %(default)s)")
    bundle = add(
        "bundle",
        "everybody in one tick",
        "examples:\n  mvps fleet bundle latest\n  mvps fleet bundle 1790000000          the tick's number\n"
        "  mvps fleet bundle 2026-11-21T13:00:05Z --cell r1",
    )
    bundle.add_argument("tick", help='the tick\'s number, its time (ISO 8601), or "latest"')
    bundle.add_argument("--cell", metavar="NAME", help="only of this cell")
    quarantine.declare(add_question)
    parser.epilog = (
        "examples:\n"
        "  mvps fleet\n"
        "  mvps fleet history --since 10m\n"
        "  mvps fleet --broker unix:/run/mvps/broker.sock --json | jq .info.rejected\n"
        "  mvps fleet --tls-ca ca.pem --tls-name broker.example\n"
        "A broker answers on its own host only, unless its setting remote_queries allows others.\n"
        "C_4 and COHERENT_BUT_FALSE are shown to operators: --broker unix:PATH with its setting operator_socket.\n"
        "exit codes: 0 all is well, 1 something needs an eye (it is marked !) or was not found, 3 no broker answers"
    )


def broker_options(parser: argparse.ArgumentParser, *, below: bool = False) -> None:
    """What every question takes, before it or, in the question's own parser, ``below`` it."""
    unset = argparse.SUPPRESS if below else None
    parser.add_argument(
        "--broker",
        metavar="ADDRESS",
        default=unset or DEFAULT_BROKER,
        help=f"host:port or unix:/path (default {DEFAULT_BROKER})",
    )
    parser.add_argument("--json", action="store_true", default=unset or False, help="everything, as JSON")
    add_tls_options(parser, unset)


def run(arguments: argparse.Namespace) -> int:
    """Ask and show."""
    questions = {
        "status": _status,
        "history": _history,
        "vantage": _vantage,
        "bundle": _bundle,
        "decisions": _decisions,
        "quarantine": quarantine.run,
        "release": quarantine.run,
    }
    return questions[arguments.action or "status"](arguments)


def _status(arguments: argparse.Namespace) -> int:
    info, vantages = _ask(arguments)
    if arguments.json:
        _print_json({"info": _dict(info), **_dict(vantages)})
    troubles = _troubles(info, vantages)
    if not arguments.json:
        _print(arguments.broker, info, vantages, troubles)
    return exits.FOUND if troubles else exits.OK


def _history(arguments: argparse.Namespace) -> int:
    from mvps.v1 import stream_pb2

    request = stream_pb2.ListBundlesRequest(
        cell=arguments.cell, since_ns=since_ns(arguments.since), limit=_limit(arguments.limit)
    )
    with broker_at(arguments) as broker:
        bundles = broker.ListBundles(request, timeout=_SECONDS).bundles
    if arguments.json:
        _print_json({"bundles": [_dict(bundle) for bundle in bundles]})
    elif bundles:
        _print_bundles(bundles)
    else:
        raise exits.Failure(exits.FOUND, "no tick of that time and cell is kept")
    return exits.OK


def _vantage(arguments: argparse.Namespace) -> int:
    from mvps.v1 import stream_pb2

    request = stream_pb2.GetVantageRequest(
        vantage_id=arguments.id, since_ns=since_ns(arguments.since), limit=_limit(arguments.limit)
    )
    with broker_at(arguments) as broker:
        ticks = broker.GetVantage(request, timeout=_SECONDS).ticks
    if arguments.json:
        _print_json({"ticks": [_dict(tick) for tick in ticks]})
    elif ticks:
        from mvps.cli import view

        head = ("time", "status", "phase", "surface", "D2", "S", "lead")
        print(view.table([head, *((utc(tick.tick_time_ns), *_said(tick)) for tick in ticks)]))
    else:
        raise exits.Failure(exits.FOUND, f"nothing is kept of {arguments.id}: mvps fleet lists who is known")
    return exits.OK


def _bundle(arguments: argparse.Namespace) -> int:
    from mvps.v1 import stream_pb2

    with broker_at(arguments) as broker:
        newest = broker.ListBundles(stream_pb2.ListBundlesRequest(cell=arguments.cell, limit=1), timeout=_SECONDS)
        if not newest.bundles:
            raise exits.Failure(exits.FOUND, "no tick has closed yet")
        at = _tick_time(arguments.tick, newest.bundles[0])
        request = stream_pb2.GetBundleRequest(tick_time_ns=at, cell=arguments.cell)
        found = broker.GetBundle(request, timeout=_SECONDS)
    if not found.ticks:
        raise exits.Failure(
            exits.FOUND, f"nothing is kept of the tick of {utc(at)}: mvps fleet history lists those that are"
        )
    if arguments.json:
        _print_json(_dict(found))
        return exits.OK
    from mvps.cli import view

    _print_bundles(found.bundles)
    head = ("vantage", "cell", "status", "phase", "surface", "D2", "S", "lead")
    print("\n" + view.table([head, *((tick.vantage_id, tick.cell or "-", *_said(tick)) for tick in found.ticks)]))
    return exits.OK


def _decisions(arguments: argparse.Namespace) -> int:
    from mvps.v1 import stream_pb2

    request = stream_pb2.ListFleetDecisionsRequest(
        kind=arguments.kind, since_ns=since_ns(arguments.since), limit=_limit(arguments.limit)
    )
    with broker_at(arguments) as broker:
        decisions = broker.ListFleetDecisions(request, timeout=_SECONDS).decisions
    if arguments.json:
        _print_json({"decisions": [_dict(decision) for decision in decisions]})
        return exits.OK
    if not decisions:
        raise exits.Failure(
            exits.FOUND,
            "no decision of that time and kind is kept: a fleet of 3 hosts or more calibrates for 300 ticks",
        )
    from mvps.cli import view
    from mvps.v1.snapshot_pb2 import Phase
    from mvps.v1.stream_pb2 import SourceLabel

    rows = [
        (
            utc(one.tick_time_ns),
            one.kind,
            Phase.Name(one.phase).removeprefix("PHASE_"),
            f"{one.d2:.2f}",
            f"{one.d2_minimax:.2f}",
            f"{one.d2_max:.2f}",
            _coherence(one),
            f"{one.moved} of {one.reporting}",
            " ".join(
                f"{name} {SourceLabel.Name(label).removeprefix('SOURCE_LABEL_')}"
                for name, label in sorted(one.sources.items())
            )
            or "-",
        )
        for one in decisions
    ]
    print(view.table([("time", "fleet", "phase", "D2", "minimax", "max", "C_2^gm", "moved", "source"), *rows]))
    return exits.OK


def _print_bundles(bundles: Sequence[BundleSummary]) -> None:
    from mvps.cli import view

    rows = [
        (
            utc(bundle.tick_time_ns),
            str(bundle.tick_time_ns // bundle.period_ns),
            bundle.cell or "-",
            str(bundle.reported),
            str(bundle.missing),
            str(bundle.rejected),
            str(bundle.late),
            f"+{(bundle.closed_ns - bundle.tick_time_ns) / 1e6:.0f} ms",
        )
        for bundle in bundles
    ]
    print(view.table([("time", "tick", "cell", "reported", "missing", "refused", "late", "closed"), *rows]))


def _said(tick: VantageTick) -> tuple[str, ...]:
    from mvps.v1.snapshot_pb2 import Phase
    from mvps.v1.stream_pb2 import RejectReason, TickStatus

    status = TickStatus.Name(tick.status).removeprefix("TICK_STATUS_").lower()
    if tick.reason:
        status += f" ({RejectReason.Name(tick.reason).removeprefix('REJECT_REASON_').lower()})"
    if not tick.phase:
        return status, "-", "-", "-", "-", "-"
    phase = Phase.Name(tick.phase).removeprefix("PHASE_")
    return status, phase, tick.surface or "-", f"{tick.d2:.2f}", f"{tick.s:.2f}", tick.lead or "-"


def utc(ns: int) -> str:
    """UTC, with as many digits as the lattice may have."""
    whole, rest = divmod(ns, 10**9)
    fraction = f".{rest // 10**6:03}" if rest else ""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + fraction + "Z"


def _tick_time(text: str, newest: BundleSummary) -> int:
    """When the tick was due that ``text`` means, in ns."""
    if text == "latest":
        return newest.tick_time_ns
    if text.isascii() and text.isdigit() and len(text) < 16:
        return int(text) * newest.period_ns
    from datetime import UTC, datetime

    try:
        given = datetime.fromisoformat(text)
    except ValueError:
        raise exits.Failure(
            exits.USAGE, f'{text!r} is no tick: give its number, a time as 2026-11-21T13:00:05Z, or "latest"'
        ) from None
    since = (given if given.tzinfo else given.replace(tzinfo=UTC)) - datetime(1970, 1, 1, tzinfo=UTC)
    ns = (since.days * 86400 + since.seconds) * 10**9 + since.microseconds * 1000
    return ns // newest.period_ns * newest.period_ns


def since_ns(text: str) -> int:
    """Time ``text`` ago, in ns since the Unix epoch; 0 for an empty text."""
    if not text:
        return 0
    unit = {"s": 1, "m": 60, "h": 3600, "d": 86400}.get(text[-1])
    try:
        ago = float(text[:-1]) * unit if unit else -1.0
    except ValueError:
        ago = -1.0
    if not 0 < ago < 1e10:
        raise exits.Failure(exits.USAGE, f"--since {text!r}: write a number and s, m, h or d, as in 10m")
    return max(time.time_ns() - int(ago * 1e9), 1)


def _limit(limit: int) -> int:
    if limit < 1:
        raise exits.Failure(exits.USAGE, "--limit must be positive")
    return limit


def _dict(message: Message) -> dict[str, Any]:
    from google.protobuf.json_format import MessageToDict

    return MessageToDict(message, preserving_proto_field_name=True)


def _print_json(content: dict[str, Any]) -> None:
    print(json.dumps(content, indent=2))


@contextmanager
def broker_at(arguments: argparse.Namespace) -> Iterator[stream_pb2_grpc.BrokerStub]:
    """The broker that was named; its refusals and its silence become failures that say what to do."""
    import grpc

    from mvps.v1 import stream_pb2_grpc

    options = [("grpc.max_receive_message_length", _MESSAGE_BYTES), ("grpc.enable_http_proxy", 0)]
    target = arguments.broker
    with open_channel(target, arguments, options) as channel:
        try:
            yield stream_pb2_grpc.BrokerStub(channel)  # type: ignore[no-untyped-call]
        except grpc.RpcError as error:
            said = error.details() or ""
            if error.code() is grpc.StatusCode.PERMISSION_DENIED:
                raise exits.Failure(exits.NOT_PERMITTED, said or "the broker denies access") from None
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                raise exits.Failure(
                    exits.UNREACHABLE, f"the broker at {target} is older than this program and cannot answer that"
                ) from None
            history = said.startswith(("sqlite", "postgresql", "this broker keeps"))
            advice = said if history else "check --broker, that it runs, and whether it wants TLS (--tls-ca)"
            raise exits.Failure(
                exits.UNREACHABLE, f"no answer from the broker at {target} ({error.code().name.lower()}): {advice}"
            ) from None


def _ask(arguments: argparse.Namespace) -> tuple[ServerInfo, ListVantagesResponse]:
    from mvps.v1 import stream_pb2

    with broker_at(arguments) as broker:
        info = broker.ServerInfo(stream_pb2.ServerInfoRequest(), timeout=_SECONDS)
        return info, broker.ListVantages(stream_pb2.ListVantagesRequest(), timeout=_SECONDS)


def _troubles(info: ServerInfo, vantages: ListVantagesResponse) -> list[str]:
    """One line for everything that a person should look at."""
    from mvps.v1.snapshot_pb2 import Lateral

    found = [f"store: {info.store_error}"] if info.store_error else []
    if info.store.removed_early:
        keeps = max(time.time_ns() - info.store.backfill_from_ns, 0) / 3600e9
        found.append(
            f"store: full, it keeps {keeps:.1f} h of {info.store.retention_s / 3600:.1f} h and has removed "
            f"{info.store.removed_early} snapshots early: raise database_max_mib or lower retention_s"
        )
    found += [f"tls: {info.tls_error}; the broker goes on with what it had"] if info.tls_error else []
    found += [f"log: {info.evidence.error}"] if info.evidence.error else []
    found += [f"witness {name}: {why}" for name, why in sorted(info.evidence.witness_errors.items())]
    found += [f"history: {info.history.error}"] if info.history.error else []
    found += [f"history: {info.history.dropped} rows were dropped"] if info.history.dropped else []
    found += [f"manifest {why}" for why in info.refused_manifests]
    if info.distributions_impossible:
        found.append(
            f"{info.distributions_impossible} snapshots had a distribution that the events beside it cannot have given"
        )
    for vantage in vantages.vantages:
        if vantage.clone_suspected:
            found.append(f"{vantage.vantage_id}: two streams take turns in its name: is its key on two hosts?")
        if twice := vantage.rejected.get("equivocation"):
            found.append(f"{vantage.vantage_id}: used {twice} counters twice with different content")
        if vantage.decision_mismatches:
            found.append(
                f"{vantage.vantage_id}: {vantage.decision_mismatches} decisions do not follow from its figures"
            )
        for surface in vantage.latest.surfaces:
            if surface.lateral == Lateral.LATERAL_COHERENT_BUT_FALSE:
                found.append(
                    f"{vantage.vantage_id}: {surface.name} is COHERENT_BUT_FALSE, C_4 = {surface.vector.c4:.2f}: "
                    "check it against a golden set"
                )
    return found + fleet_troubles(info.fleet) + _elsewhere(info)


def _elsewhere(info: ServerInfo) -> list[str]:
    """What other commands tell line by line."""
    from mvps.cli.service import service_troubles  # which takes its options from here
    from mvps.cli.surplus_fleet import troubles_of

    counts = {
        "mvps service": len(service_troubles(info.services)),
        "mvps surplus fleet": len(list(troubles_of(info.surplus))),
    }
    return [f"{count} more: {command}" for command, count in counts.items() if count]


# What speaks against a host, as mvps.robust.fleet.Evidence names it, in words.
_AGAINST = {
    "witness": "its own checks fail tick after tick",
    "replay": "it replayed a counter",
    "seal": "its stream carried a broken seal",
    "equivocation": "it used a counter twice with different content",
    "clone": "two streams take turns in its name",
    "conservation": "its distribution cannot come from the events beside it",
    "decision": "its decision does not follow from its figures",
}


def fleet_state(arguments: argparse.Namespace, target: str, timeout_s: float) -> FleetState:
    """What the broker at ``target`` says of the fleet; exits.Failure if it does not answer. Needs --tls-*."""
    from mvps.v1 import stream_pb2

    with broker_at(argparse.Namespace(**vars(arguments) | {"broker": target})) as broker:
        info: ServerInfo = broker.ServerInfo(stream_pb2.ServerInfoRequest(), timeout=timeout_s)
    return info.fleet


def fleet_troubles(state: FleetState) -> list[str]:
    """One line for every kind of vantage that is in ALARM or worse across the hosts, or has a single source."""
    from mvps.v1.snapshot_pb2 import Phase
    from mvps.v1.stream_pb2 import SourceLabel

    found = [f"fleet: {state.error}"] if state.error else []
    found += [f"fleet baselines: {state.baselines_error}"] if state.baselines_error else []
    for kind in state.kinds:
        settled = [source for source in kind.sources if source.settled]
        for source in settled:
            label = SourceLabel.Name(source.label).removeprefix("SOURCE_LABEL_")
            against = "; ".join(_AGAINST.get(one, one) for one in source.evidence) or "nothing else speaks against it"
            found.append(
                f"fleet {kind.kind}: {source.vantage_id} is the source, {label} "
                f"({source.own_distance:.1f} standard deviations, {source.share:.0%} of what moved; {against})"
            )
        if not settled and kind.phase in (Phase.PHASE_ALARM, Phase.PHASE_CRITICAL):
            name = Phase.Name(kind.phase).removeprefix("PHASE_")
            found.append(f"fleet {kind.kind}: {name}, {kind.moved} of {kind.reporting} hosts moved")
    return found


def _print(target: str, info: ServerInfo, vantages: ListVantagesResponse, troubles: list[str]) -> None:
    from mvps.cli import view

    up = max(time.time_ns() - info.started_ns, 0) / 1e9
    print(f"broker {target}: mvps {info.version}, up {up:.0f} s, {info.streams} streams, {info.vantages} vantages")
    print(f"epoch {info.epoch_id}, profile {info.profile}, manifest {info.manifest_digest.hex()[:16]}")
    steps = f"; clock set {info.clock_steps} times, last by {info.last_clock_step_ns / 1e9:+.3f} s"
    rejected = ", ".join(f"{reason} {count}" for reason, count in sorted(info.rejected.items())) or "nothing"
    print(
        f"accepted {info.accepted}, duplicates {info.duplicates}, rejected {rejected}"
        + (steps if info.clock_steps else "")
    )
    log = info.evidence
    words = f"log {log.size} leaves, checkpoint over {log.checkpoint_size}"
    if log.quorum:
        words += f", {log.cosignatures} cosignatures ({log.quorum} needed)"
    print(words)
    store = info.store
    since = (
        f"everything since {utc(store.backfill_from_ns // 10**9 * 10**9)}" if store.backfill_from_ns else "everything"
    )
    print(f"store {store.bytes / 2**30:.2f} of {store.max_bytes / 2**30:.2f} GiB, keeps {since}")
    counts = info.bundles
    if counts.get("closed"):
        others = ", ".join(
            f"{name} {counts[name]}" for name in ("late", "missing", "rejected", "backfill", "unkept") if counts[name]
        )
        print(f"ticks closed {counts['closed']}, complete {counts['complete']}" + (f", {others}" if others else ""))
    kinds = [_kind(kind) for kind in info.fleet.kinds]
    if kinds:
        head = ("fleet", "phase", "D2", "minimax", "max", "C_2^gm", "moved", "source")
        print(f"\n{view.table([head, *kinds])}")
    rows = [_row(vantage) for vantage in vantages.vantages]
    if rows:
        print(
            "\n" + view.table([("vantage", "stream", "tick", "phase", "lead", "accepted", "rejected", "missed"), *rows])
        )
    if vantages.withheld:
        print("withheld: C_4 and the label that follows from it are shown on the broker's operator_socket only")
    for trouble in troubles:
        print(f"! {trouble}")


def _kind(kind: KindState) -> tuple[str, ...]:
    from mvps.v1.snapshot_pb2 import Phase

    if kind.phase == Phase.PHASE_CALIBRATING:
        learned = f"{min(kind.calibrated_ticks, kind.needed_ticks)} of {kind.needed_ticks} ticks"
        return kind.kind, "CALIBRATING", learned, "-", "-", "-", "-", "-"
    if not kind.reporting:
        phase = Phase.Name(kind.phase).removeprefix("PHASE_")
        return kind.kind, phase, "too few hosts", "-", "-", "-", "-", "-"
    return (
        kind.kind,
        Phase.Name(kind.phase).removeprefix("PHASE_"),
        f"{kind.d2:.2f}",
        f"{kind.d2_minimax:.2f}",
        f"{kind.d2_max:.2f}",
        _coherence(kind),
        f"{kind.moved} of {kind.reporting}",
        " ".join(source.vantage_id for source in kind.sources if source.settled) or "-",
    )


def _coherence(said: KindState | FleetDecision) -> str:
    """C_2^gm, and behind it the seed's form."""
    return f"{said.c2_gm:.3f} ({said.c2_gm_seed:.3f})" if said.HasField("c2_gm") else "-"


def _row(vantage: VantageSummary) -> tuple[str, ...]:
    from mvps.v1.snapshot_pb2 import Phase

    phases = {
        surface.name: Phase.Name(surface.decision.phase).removeprefix("PHASE_") if surface.HasField("decision") else "-"
        for surface in vantage.latest.surfaces
    }
    return (
        vantage.vantage_id,
        "open" if vantage.connected else "-",
        str(vantage.tick),
        " ".join(f"{name} {phase}" for name, phase in phases.items()) or "-",
        vantage.latest.lead or "-",
        str(vantage.accepted),
        str(sum(vantage.rejected.values())),
        str(vantage.missed_ticks),
    )
