# SPDX-License-Identifier: Apache-2.0
"""``mvps status``, ``top``, ``explain`` and ``snapshots``: what the running agent sees and does.

``explain`` also asks the broker whom the fleet names, because a host alone cannot know whether it is the only one.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import TYPE_CHECKING, Any

from mvps.cli import exits
from mvps.cli.settings import add_socket_option, add_tls_options

if TYPE_CHECKING:
    from mvps.v1.local_pb2 import ExplainResponse, SnapshotRecord, StatusResponse, TickUpdate

_EXAMPLES = {
    "status": "  mvps status\n  mvps status --json | jq .stream",
    "top": "  mvps top\n  mvps top --ticks 10 --json",
    "explain": "  mvps explain\n  mvps explain kernel --json\n  mvps explain --broker broker.example:7447",
    "snapshots": "  mvps snapshots --limit 5\n  mvps snapshots --follow --json",
}
# A person waits for it, and what the agent says stands above it.
_BROKER_SECONDS = 3.0
_CODES = {
    "status": "0 all well, 1 a vantage failed or a surface is in ALARM or worse, 3 no agent, 4 no permission",
    "top": "0 when ended, 3 no agent, 4 no permission",
    "explain": "0 no surface in ALARM or worse, 1 one is, 2 unknown surface, 3 no agent, 4 no permission",
    "snapshots": "0 when ended, 3 no agent, 4 no permission",
}


def declare(verb: str, parser: argparse.ArgumentParser) -> None:
    """Arguments of the four verbs."""
    if verb == "explain":
        parser.add_argument("surface", nargs="?", default="", help="only this surface")
        parser.add_argument(
            "--broker",
            metavar="ADDRESS",
            help="broker to ask about the fleet, host:port or unix:/path (default: the agent's)",
        )
        add_tls_options(parser)
    if verb == "top":
        parser.add_argument("--ticks", type=int, default=0, metavar="N", help="end after N ticks")
    if verb == "snapshots":
        parser.add_argument("--limit", type=int, default=20, metavar="N", help="newest N (default %(default)s)")
        parser.add_argument("--follow", action="store_true", help="go on with every change of state")
    parser.add_argument("--json", action="store_true", help="JSON; one object a line where there are many")
    add_socket_option(parser)
    parser.epilog = f"examples:\n{_EXAMPLES[verb]}\nexit codes: {_CODES[verb]}"


def run(arguments: argparse.Namespace) -> int:
    """Run one of the four verbs."""
    verbs = {"status": _status, "top": _top, "explain": _explain, "snapshots": _snapshots}
    return verbs[arguments.verb](arguments)


def _status(arguments: argparse.Namespace) -> int:
    from google.protobuf.json_format import MessageToDict

    from mvps.cli.agent_client import CALL_SECONDS, agent_at
    from mvps.v1 import local_pb2 as pb

    with agent_at(arguments.socket) as agent:
        status = agent.Status(pb.StatusRequest(), timeout=CALL_SECONDS)
    if arguments.json:
        print(json.dumps(MessageToDict(status, preserving_proto_field_name=True), indent=2))
    else:
        _print_status(status)
    return exits.FOUND if _trouble(status) else exits.OK


def _trouble(status: StatusResponse) -> bool:
    from mvps.v1.snapshot_pb2 import Phase

    bad = (Phase.PHASE_ALARM, Phase.PHASE_CRITICAL)
    return any(s.phase in bad for s in status.surfaces) or any(v.state == "failed" for v in status.vantages)


def _print_status(status: StatusResponse) -> None:
    from mvps.cli import view
    from mvps.v1.snapshot_pb2 import Phase

    up = max(time.time_ns() - status.started_ns, 0) / 1e9
    print(f"{status.vantage_id}: mvps {status.version}, pid {status.pid}, up {_duration(up)}")
    print(f"settings {status.config_path or '(defaults)'}, key {status.key_id or '(none)'}")
    cpu = 100 * status.cpu_seconds / up if up else 0.0
    print(f"uses {status.resident_bytes / 2**20:.0f} MiB and {cpu:.1f} % of a core")
    irregular = ", ".join(f"{cause} {count}" for cause, count in sorted(status.ticks.skipped.items()))
    print(
        f"ticks: {status.ticks.done} of {status.tick_period_ns / 1e9:g} s, newest {status.tick}"
        + (f"; {irregular}" if irregular else "")
    )
    rows = []
    for surface in status.surfaces:
        phase = Phase.Name(surface.phase).removeprefix("PHASE_")
        learned = f"{surface.calibrated_ticks}/{surface.needed_ticks} ticks learned"
        rows.append((surface.name, phase, surface.baseline_id or learned))
    print("\nsurfaces\n" + _indent(view.table(rows)))
    vantages = [(v.name, v.state, v.reason) for v in status.vantages]
    print("\nvantages\n" + _indent(view.table(vantages)))
    print("\n" + view.stream_line(status.stream))
    if epoch := view.epoch_line(status.stream):
        print(epoch)
    lost = {cause: count for cause, count in status.losses.by_cause.items() if count}
    print("lost: " + (", ".join(f"{c} {n}" for c, n in sorted(lost.items())) or "nothing"))


def _top(arguments: argparse.Namespace) -> int:
    from mvps.cli import view
    from mvps.cli.agent_client import agent_at
    from mvps.v1 import local_pb2 as pb

    screen = view.Screen(note="Ctrl-C ends")
    try:
        with agent_at(arguments.socket) as agent:
            for update in agent.Watch(pb.WatchRequest(ticks=max(arguments.ticks, 0), backlog=1)):
                if arguments.json:
                    print(json.dumps(view.as_json(update.snapshot) | _withheld(update)), flush=True)
                else:
                    screen.show(update, f"{update.missed} ticks not shown" if update.missed else "")
    except KeyboardInterrupt:
        return exits.OK
    return exits.OK


def _explain(arguments: argparse.Namespace) -> int:
    from mvps.cli import view
    from mvps.cli.agent_client import CALL_SECONDS, agent_at
    from mvps.v1 import local_pb2 as pb
    from mvps.v1.snapshot_pb2 import Snapshot

    with agent_at(arguments.socket) as agent:
        answer = agent.Explain(pb.ExplainRequest(surface=arguments.surface), timeout=CALL_SECONDS)
        broker = arguments.broker or agent.Status(pb.StatusRequest(), timeout=CALL_SECONDS).stream.target
    fleet = _fleet(arguments, broker)
    if arguments.json:
        document = view.as_json(Snapshot(tick=answer.tick, tick_time_ns=answer.tick_time_ns, surfaces=answer.surfaces))
        document |= {"sentences": list(answer.sentences), "fleet": fleet} | _withheld(answer)
        print(json.dumps(document, indent=2))
    elif not answer.surfaces:
        print("no tick has been worked on yet")
    else:
        for surface, sentence in zip(answer.surfaces, answer.sentences, strict=True):
            print(sentence)
            decision = surface.decision
            rows = [("axis", c.name, f"{c.value:+.3f}") for c in decision.axis_contributions]
            rows += [("vantage", c.name, f"{c.value:+.3f}") for c in decision.vantage_contributions]
            if rows:
                print(_indent(view.table(rows)))
            for observation in surface.observations:
                names = [name for name in observation.objects.names.values() if name]
                if names:
                    print(f"  {observation.vantage} touched {', '.join(sorted(names)[:8])}")
    if not arguments.json:
        for sentence in fleet["sentences"]:
            print(sentence)
    bad = any(view.phase_of(s) in ("ALARM", "CRITICAL") for s in answer.surfaces)
    return exits.FOUND if bad else exits.OK


def _withheld(answer: TickUpdate | ExplainResponse) -> dict[str, object]:
    """Fields that were left out because whoever asks is no operator; nothing if none was."""
    return {"withheld": list(answer.withheld)} if answer.withheld else {}


def _fleet(arguments: argparse.Namespace, broker: str) -> dict[str, Any]:
    """What the fleet's decision says, for people and in full; "state" is missing where no broker answers."""
    from google.protobuf.json_format import MessageToDict

    from mvps.cli.fleet import fleet_state, fleet_troubles

    if not broker:
        return {"sentences": ["the agent has no broker: nobody compares this host with others (--broker names one)."]}
    try:
        state = fleet_state(arguments, broker, _BROKER_SECONDS)
    except exits.Failure as failure:
        return {"sentences": [f"the fleet is not known here: {failure}"]}
    named = fleet_troubles(state)
    if not named:
        known = [kind.kind for kind in state.kinds if kind.reporting]
        said = f"decided are {', '.join(known)}, and nobody is named" if known else "there is no decision yet"
        named = [f"fleet of {state.hosts} hosts, up to {state.f} of which may lie: {said}."]
    return {"sentences": named, "state": MessageToDict(state, preserving_proto_field_name=True)}


def _snapshots(arguments: argparse.Namespace) -> int:
    from mvps.cli.agent_client import CALL_SECONDS, agent_at
    from mvps.v1 import local_pb2 as pb

    request = pb.SnapshotsRequest(limit=max(arguments.limit, 0), follow=arguments.follow)
    timeout = None if arguments.follow else CALL_SECONDS
    try:
        with agent_at(arguments.socket) as agent:
            for update in agent.Snapshots(request, timeout=timeout):
                for record in update.records:
                    print(_record_json(record) if arguments.json else _record_line(record), flush=True)
    except KeyboardInterrupt:
        return exits.OK
    return exits.OK


def _record_line(record: SnapshotRecord) -> str:
    from mvps.v1.local_pb2 import SnapshotState
    from mvps.v1.stream_pb2 import RejectReason

    state = SnapshotState.Name(record.state).removeprefix("SNAPSHOT_STATE_").lower()
    reason = RejectReason.Name(record.reason).removeprefix("REJECT_REASON_").lower() if record.reason else ""
    settled = f"after {(record.settled_ns - record.sealed_ns) / 1e6:.1f} ms" if record.settled_ns else "not settled"
    when = time.strftime("%H:%M:%S", time.localtime(record.sealed_ns / 1e9))
    return f"{when}  tick {record.tick}  {record.bytes:6} B  {state:12} {settled}  {reason or record.cause}".rstrip()


def _record_json(record: SnapshotRecord) -> str:
    from google.protobuf.json_format import MessageToDict

    return json.dumps(MessageToDict(record, preserving_proto_field_name=True))


def _indent(text: str) -> str:
    return "\n".join("  " + line for line in text.splitlines())


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
