# SPDX-License-Identifier: Apache-2.0
"""``mvps broker attach | limits | detach``: the XDP limiter in front of a broker (docs/limiter.md)."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvps.cli import exits
from mvps.cli.actions import actions_of, say

if TYPE_CHECKING:
    from mvps.broker.settings import BrokerSettings
    from mvps.limiter.counters import Reading
    from mvps.limiter.plan import Plan
    from mvps.trust.manifest import Manifest

_WATCH_EVERY_S = 1.0
# Without a manifest somebody has to say how many hosts there are.
_UNLISTED = 16


def declare(parser: argparse.ArgumentParser) -> None:
    """The actions of ``mvps broker`` that are about the limiter."""
    add = actions_of(parser, required=False)
    attach = add(
        "attach",
        "put the XDP limiter in front of the broker's port, or renew its budgets",
        "Needs root. Proven flows and counters survive a renewal. Without manifests all sources share one budget.\n"
        "examples:\n"
        "  mvps broker attach --interface eth0\n"
        "  mvps broker attach --interface eth0 --port 7447 --manifests /etc/mvps/manifests --watch\n"
        "exit codes: 0 in force, 2 wrong arguments, 4 a privilege or the driver's support is missing",
    )
    attach.add_argument(
        "--interface", metavar="IF", action="append", required=True, help="where vantages come in; may be repeated"
    )
    attach.add_argument("--port", type=int, help="the broker's port (default: that of its listen setting)")
    attach.add_argument(
        "--mode",
        choices=("native", "generic"),
        default="native",
        help="native: in the driver, refused where it cannot; generic: any driver, at a higher cost",
    )
    attach.add_argument(
        "--vantages", metavar="N", type=int, default=None, help="hosts to expect from addresses no manifest lists"
    )
    attach.add_argument("--watch", action="store_true", help="stay: follow manifests, repair severed interfaces")
    limits = add(
        "limits",
        "show what the limiter lets through and what it drops",
        "examples:\n"
        "  mvps broker limits\n"
        "  mvps broker limits --json --top 50 | jq .sources\n"
        "exit codes: 0 in force on every interface, 1 severed somewhere, 3 no limiter here, 4 it may not be read",
    )
    limits.add_argument("--json", action="store_true", help="everything, as JSON")
    limits.add_argument("--top", metavar="N", type=int, default=10, help="sources and prefixes to show")
    add(
        "detach",
        "remove the limiter and everything it pinned",
        "Needs root. The broker goes on, without protection.\n"
        "exit codes: 0 removed, 3 there is none, 4 a privilege is missing",
    )
    # The broker's own options, after the action too. Absent there, they keep what was given before it.
    for name, metavar in (
        ("config", "FILE"),
        ("listen", "ADDRESS"),
        ("manifests", "DIR"),
        ("operator", "KEY"),
        ("limiter", "DIR"),
    ):
        kind: dict[str, Any] = {"type": Path} if name in ("config", "manifests") else {}
        for action in (attach, *_parsers(parser, "limits", "detach")):
            if name in ("config", "limiter") or action is attach:
                action.add_argument(
                    f"--{name}", metavar=metavar, default=argparse.SUPPRESS, help="as for `mvps broker`", **kind
                )


def run(arguments: argparse.Namespace, settings: BrokerSettings) -> int:
    """Carry out the action."""
    from mvps.limiter.attach import LimiterError, NotAttachedError
    from mvps.limiter.layout import DEFAULT_FOLDER

    folder = Path(settings.limiter) if settings.limiter else DEFAULT_FOLDER
    work: Callable[[Path, argparse.Namespace, BrokerSettings], int] = {
        "attach": _attach,
        "limits": _limits,
        "detach": _detach,
    }[arguments.action]
    try:
        return work(folder, arguments, settings)
    except NotAttachedError as error:
        raise exits.Failure(exits.UNREACHABLE, str(error)) from None
    except LimiterError as error:
        raise exits.Failure(exits.NOT_PERMITTED, str(error)) from None


def _parsers(parser: argparse.ArgumentParser, *names: str) -> list[argparse.ArgumentParser]:
    places = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return [places.choices[name] for name in names]


# ---- attach


def _attach(folder: Path, arguments: argparse.Namespace, settings: BrokerSettings) -> int:
    from mvps.limiter.attach import Mode, Watcher, attach

    port = arguments.port or _port_of(settings.listen)
    source = _Plans(settings, port, arguments.vantages)
    mode = Mode(arguments.mode)
    if arguments.watch:
        return _watch(Watcher(folder, arguments.interface, source.plan, mode, say))
    plan = source.plan()
    places = attach(folder, arguments.interface, plan, mode)
    shared = f", {plan.widened} prefixes taken wider than the manifest has them" if plan.widened else ""
    say(f"limiter in force for port {port}: {_prefixes(plan)}{shared}")
    for place in places:
        say(f"  {place.interface}: {place.state} {place.mode}".rstrip())
    return exits.FOUND if any(place.state != "attached" for place in places) else exits.OK


def _watch(watcher: Any) -> int:
    from mvps.daemon.notify import Notifier

    notifier, ended = Notifier(), threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    watcher.step()
    notifier.ready("watching the limiter")
    while not ended.wait(_WATCH_EVERY_S):
        watcher.step()
    notifier.stopping()
    say("the limiter stays in force; `mvps broker detach` removes it")
    return exits.OK


class _Plans:
    """Plans of the manifests in a directory, as they are now."""

    def __init__(self, settings: BrokerSettings, port: int, unlisted: int | None) -> None:
        from mvps.trust.keys import KeySourceError, Kind, load_public
        from mvps.trust.manifest_folder import ManifestFolder

        self._port = port
        self._known: dict[int, Manifest] = {}
        self._folder = None
        if settings.manifests.is_dir():
            try:
                self._folder = ManifestFolder(settings.manifests, load_public(settings.operator, Kind.OPERATOR))
            except KeySourceError as error:
                raise exits.Failure(exits.USAGE, str(error)) from None
        elif "manifests" in settings.model_fields_set:
            raise exits.Failure(exits.USAGE, f"{settings.manifests} is no directory of manifests")
        else:
            say(f"no {settings.manifests} here: every source shares one budget")
        self._unlisted = unlisted if unlisted is not None else 0 if self._folder else _UNLISTED

    def plan(self) -> Plan:
        """The plan of this moment."""
        from mvps.limiter.attach import LimiterError
        from mvps.limiter.plan import plan, relevant
        from mvps.trust.manifest_folder import FolderError

        if self._folder is not None:
            try:
                for manifest, _ in self._folder.scan():
                    self._known[manifest.epoch_id] = manifest
            except FolderError as error:
                raise LimiterError(str(error)) from None
        return plan(relevant(self._known.values(), time.time()), self._port, unlisted=self._unlisted)


def _port_of(listen: str) -> int:
    port = listen.rpartition(":")[2]
    if listen.startswith("unix:") or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise exits.Failure(exits.USAGE, f"the broker listens on {listen}: say with --port which TCP port to protect")
    return int(port)


def _prefixes(plan: Plan) -> str:
    listed = len(plan.shards) - 1
    return f"{listed} prefixes, {plan.shards[0].vantages} hosts expected from anywhere else"


# ---- limits, detach


def _limits(folder: Path, arguments: argparse.Namespace, _: BrokerSettings) -> int:
    from mvps.limiter.counters import prefix_drops, proven_flows, read

    try:
        reading = read(folder, arguments.top)
        flows, prefixes = proven_flows(folder), prefix_drops(folder)[: arguments.top]
    except PermissionError as error:
        raise exits.Failure(
            exits.NOT_PERMITTED, f"may not read {error.filename}: be root, or a member of the group that may"
        ) from None
    if arguments.json:
        print(json.dumps(_as_json(reading, flows, prefixes), indent=2))
    else:
        _print(reading, flows, prefixes)
    return exits.FOUND if any(place.state != "attached" for place in reading.places) else exits.OK


def _as_json(reading: Reading, flows: int, prefixes: list[Any]) -> dict[str, Any]:
    return {
        "port": reading.port,
        "plan": reading.plan,
        "interfaces": [{"name": p.interface, "state": p.state, "mode": p.mode} for p in reading.places],
        "proven_flows": flows,
        "idle_flow_packets": reading.idle_flows,
        "verdicts": {name: {"packets": n, "bytes": size} for name, (n, size) in reading.verdicts.items()},
        "sources": [{"source": str(s.network), "packets": s.packets, "bytes": s.bytes} for s in reading.sources],
        "prefixes": [
            {"prefix": str(p.prefix or "unlisted"), "syn": p.syn, "other": p.other, "proven": p.proven}
            for p in prefixes
        ],
        "budgets": {
            name: {"packets_per_s": round(price.packets_per_s, 1), "bytes_per_s": round(price.bytes_per_s)}
            for name, price in (("flow", reading.flow), ("host_per_cpu", reading.host))
        },
    }


def _print(reading: Reading, flows: int, prefixes: list[Any]) -> None:
    from mvps.cli import view

    for place in reading.places:
        mark = "! " if place.state != "attached" else ""
        print(f"{mark}{place.interface}: {place.state} {place.mode}".rstrip())
    flow = reading.flow
    print(f"port {reading.port}, plan {reading.plan}, {flows} proven flows of {flow.packets_per_s:.0f} packets/s each")
    print(f"passed {reading.passed()} packets, dropped {reading.dropped()}\n")
    rows = [(name, str(packets), str(size)) for name, (packets, size) in reading.verdicts.items() if packets]
    print(view.table([("verdict", "packets", "bytes"), *rows]))
    if prefixes:
        lines = [(str(p.prefix or "unlisted"), str(p.syn), str(p.other), str(p.proven)) for p in prefixes]
        print("\n" + view.table([("dropped by prefix", "syn", "other", "proven"), *lines]))
    if reading.sources:
        lines3 = [(str(s.network), str(s.packets), str(s.bytes)) for s in reading.sources]
        print("\n" + view.table([("dropped by source", "packets, about", "bytes, about"), *lines3]))


def _detach(folder: Path, _arguments: argparse.Namespace, _: BrokerSettings) -> int:
    from mvps.limiter.attach import detach

    names = detach(folder)
    print(f"limiter removed from {', '.join(names) or 'no interface'}", file=sys.stderr)
    return exits.OK
