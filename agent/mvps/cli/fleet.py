# SPDX-License-Identifier: Apache-2.0
"""``mvps fleet``: what a broker knows: its epoch, its log, its vantages and who is in trouble."""

from __future__ import annotations

import argparse
import json
import time
from typing import TYPE_CHECKING

from mvps.cli import exits
from mvps.cli.settings import add_tls_options, open_channel

if TYPE_CHECKING:
    from mvps.v1.stream_pb2 import ListVantagesResponse, ServerInfo, VantageSummary

DEFAULT_BROKER = "127.0.0.1:7447"
_SECONDS = 10.0
# Two summaries of a snapshot each for a hundred thousand vantages would not fit anywhere; this is some 20,000.
_MESSAGE_BYTES = 256 * 1024 * 1024


def declare(_verb: str, parser: argparse.ArgumentParser) -> None:
    """Arguments of ``mvps fleet``."""
    parser.add_argument(
        "--broker",
        metavar="ADDRESS",
        default=DEFAULT_BROKER,
        help=f"host:port or unix:/path (default {DEFAULT_BROKER})",
    )
    parser.add_argument("--json", action="store_true", help="everything, as JSON")
    add_tls_options(parser)
    parser.epilog = (
        "examples:\n"
        "  mvps fleet\n"
        "  mvps fleet --broker unix:/run/mvps/broker.sock --json | jq .info.rejected\n"
        "  mvps fleet --tls-ca ca.pem --tls-name broker.example\n"
        "A broker answers on its own host only, unless its setting remote_queries allows others.\n"
        "exit codes: 0 all is well, 1 something needs an eye (it is marked !), 3 no broker answers"
    )


def run(arguments: argparse.Namespace) -> int:
    """Ask and show."""
    info, vantages = _ask(arguments)
    if arguments.json:
        from google.protobuf.json_format import MessageToDict

        shown = {
            "info": MessageToDict(info, preserving_proto_field_name=True),
            **MessageToDict(vantages, preserving_proto_field_name=True),
        }
        print(json.dumps(shown, indent=2))
    troubles = _troubles(info, vantages)
    if not arguments.json:
        _print(arguments.broker, info, vantages, troubles)
    return exits.FOUND if troubles else exits.OK


def _ask(arguments: argparse.Namespace) -> tuple[ServerInfo, ListVantagesResponse]:
    import grpc

    from mvps.v1 import stream_pb2, stream_pb2_grpc

    options = [("grpc.max_receive_message_length", _MESSAGE_BYTES), ("grpc.enable_http_proxy", 0)]
    target = arguments.broker
    with open_channel(target, arguments, options) as channel:
        broker = stream_pb2_grpc.BrokerStub(channel)  # type: ignore[no-untyped-call]
        try:
            info = broker.ServerInfo(stream_pb2.ServerInfoRequest(), timeout=_SECONDS)
            vantages = broker.ListVantages(stream_pb2.ListVantagesRequest(), timeout=_SECONDS)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.PERMISSION_DENIED:
                raise exits.Failure(exits.NOT_PERMITTED, error.details() or "the broker denies access") from None
            raise exits.Failure(
                exits.UNREACHABLE,
                f"no broker answers at {target} ({error.code().name.lower()}): check --broker, "
                "that it runs, and whether it wants TLS (--tls-ca)",
            ) from None
    return info, vantages


def _troubles(info: ServerInfo, vantages: ListVantagesResponse) -> list[str]:
    """One line for everything that a person should look at."""
    found = [f"store: {info.store_error}"] if info.store_error else []
    found += [f"tls: {info.tls_error}; the broker goes on with what it had"] if info.tls_error else []
    found += [f"log: {info.evidence.error}"] if info.evidence.error else []
    found += [f"witness {name}: {why}" for name, why in sorted(info.evidence.witness_errors.items())]
    found += [f"manifest {why}" for why in info.refused_manifests]
    for vantage in vantages.vantages:
        if vantage.clone_suspected:
            found.append(f"{vantage.vantage_id}: two streams take turns in its name: is its key on two hosts?")
        if twice := vantage.rejected.get("equivocation"):
            found.append(f"{vantage.vantage_id}: used {twice} counters twice with different content")
        if vantage.decision_mismatches:
            found.append(
                f"{vantage.vantage_id}: {vantage.decision_mismatches} decisions do not follow from its figures"
            )
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
    rows = [_row(vantage) for vantage in vantages.vantages]
    if rows:
        print(
            "\n" + view.table([("vantage", "stream", "tick", "phase", "lead", "accepted", "rejected", "missed"), *rows])
        )
    for trouble in troubles:
        print(f"! {trouble}")


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
