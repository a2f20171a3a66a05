# SPDX-License-Identifier: Apache-2.0
"""``mvps surplus``: what this host's serving engines are told and why, records of what they did, policy files."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from mvps.cli import exits, surplus_fleet
from mvps.cli.actions import actions_of, read
from mvps.cli.settings import add_socket_option

if TYPE_CHECKING:
    from datetime import datetime

    from mvps.surplus.minutes import Decided
    from mvps.surplus.packets import Chain, HealthMinute
    from mvps.v1.local_pb2 import EngineState, SurplusStatusResponse, TenantControl

# As in packets.KINDS, which is slow to import.
KINDS: Final = ("cap.v1", "health.v1", "policy.v1", "incident.v1", "credit.v1")
# Lines of a record that are verified at a time.
_CHUNK: Final = 256
_TROUBLE: Final = ("Action", "Emergency")
_EXAMPLE: Final = {
    "schema": "policy.v1",
    "tenant": "acme",
    "version": 1,
    "caps": {"qps": 30.0, "tok_max": 15000, "tool_per_min": 40.0},
    "routing": {"providers": ["provider-1", "provider-2", "provider-3"], "min_spread": 0.55, "max_provider_share": 0.5},
    "exploration": {"min_SSE": 0.5, "quota_pct": 0.15},
    "privacy": {"retention_days": 14},
    "dry_run": True,
}


def declare(_verb: str, parser: argparse.ArgumentParser) -> None:
    """Actions of ``mvps surplus``."""
    add = actions_of(parser)
    status = add(
        "status",
        "engines, tenants, and what engines are told",
        "examples:\n  mvps surplus status\n  mvps surplus status --json | jq .tenants\n"
        "exit codes: 0 all well, 1 a tenant is in Action or Emergency, 3 no agent, 4 no permission",
    )
    explain = add(
        "explain",
        "why engines are told what they are told about a tenant",
        "examples:\n  mvps surplus explain\n  mvps surplus explain acme --json\n"
        "exit codes: 0 all well, 1 a tenant is in Action or Emergency, 2 unknown tenant, 3 no agent, 4 no permission",
    )
    explain.add_argument("tenant", nargs="?", default="", help="only this tenant")
    replay = add(
        "replay",
        "verify a record of audit packets, and what they say was decided each minute",
        "examples:\n  mvps surplus replay engine.record\n  mvps surplus replay engine.record --json | jq .chains\n"
        "The head of each chain is in the host's sealed snapshots: equal heads prove that no line is missing.\n"
        "exit codes: 0 every line follows, 1 one does not, or the record ends within one, 2 this is no record",
    )
    replay.add_argument("file", type=Path, metavar="FILE", help="what an engine wrote")
    policy = add(
        "policy",
        "check a policy file; without one, print an example",
        "examples:\n  mvps surplus policy > acme.json\n  mvps surplus policy acme.json\n"
        "  mvps surplus policy acme.toml --host gpu-1 --host gpu-2     when it comes into force where\n"
        "exit codes: 0 it can be used, 2 it cannot",
    )
    policy.add_argument("file", type=Path, nargs="?", metavar="FILE", help="one policy.v1 as JSON, or NAME.toml")
    policy.add_argument(
        "--host", metavar="NAME", action="append", default=[], help="of a tenant's hosts; may be repeated"
    )
    schema = add(
        "schema",
        "print the JSON Schema of a kind of packet",
        "examples:\n  mvps surplus schema cap.v1\nexit codes: 0 printed, 2 no such kind",
    )
    schema.add_argument("kind", choices=KINDS)
    for action in (status, explain, replay, policy):
        action.add_argument("--json", action="store_true", help="one JSON object")
    for action in (status, explain):
        add_socket_option(action)
    surplus_fleet.declare(add)
    parser.epilog = (
        "examples:\n  mvps surplus status\n  mvps surplus explain acme\n  mvps surplus replay engine.record\n"
        "exit codes: see mvps surplus ACTION --help"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run one action."""
    actions = {"status": _status, "explain": _explain, "replay": _replay, "policy": _policy, "schema": _schema}
    return actions.get(arguments.action, surplus_fleet.run)(arguments)


def _asked(arguments: argparse.Namespace) -> SurplusStatusResponse:
    from mvps.cli.agent_client import CALL_SECONDS, agent_at
    from mvps.v1 import local_pb2 as pb

    with agent_at(arguments.socket) as agent:
        answer: SurplusStatusResponse = agent.SurplusStatus(pb.SurplusStatusRequest(), timeout=CALL_SECONDS)
    return answer


def _code(tenants: Sequence[TenantControl]) -> int:
    return exits.FOUND if any(one.state in _TROUBLE for one in tenants) else exits.OK


def _status(arguments: argparse.Namespace) -> int:
    from google.protobuf.json_format import MessageToDict

    from mvps.cli import view

    answer = _asked(arguments)
    if arguments.json:
        document = MessageToDict(answer, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
        lines = {"health": answer.health, "policies": answer.policies}
        print(json.dumps(document | {name: [json.loads(line) for line in of] for name, of in lines.items()}, indent=2))
        return _code(answer.tenants)
    if not answer.engines and not answer.tenants:
        print("no engine has connected to this agent")
    else:
        connected = sum(one.connected for one in answer.engines)
        print(f"engines connected: {connected}, packets verified: {answer.packets}")
    if answer.engines:
        rows = [("chain", "lines", "", "running", "waiting", "kv cache", "dropped")]
        print(_indent(view.table([*rows, *(_engine_row(one) for one in answer.engines)])))
    if answer.tenants:
        heads = ("tenant", "state", "lambda", "nats a token", "spread", "looks ahead", "alerts")
        print(_indent(view.table([heads, *(_tenant_row(one) for one in answer.tenants)])))
    for line in answer.policies:
        print(_policy_line(json.loads(line), answer))
    print("pressure: " + (_named(answer.pressure, ".2f") or "not known"))
    print("refused: " + (_named(answer.refused, "d") or "nothing"))
    return _code(answer.tenants)


def _policy_line(policy: dict[str, Any], answer: SurplusStatusResponse) -> str:
    """One line for a policy that a broker handed to this host."""
    issue = policy["issue"]
    tenant = issue["tenant"]
    rung = f"R{issue['rung']}" if issue["rung"] >= 0 else "no rung"
    if tenant in answer.applied:
        use = "applied: it bounds what engines are told"
    elif answer.policy == "apply" and policy["dry_run"]:
        use = "not applied: a dry run, or not in force on this host"
    else:
        use = f"shown only ([engines] policy = {answer.policy})"
    asks = f"; asks for {', '.join(issue['actions'])}" if issue["actions"] else ""
    return f"policy of {tenant}: v{policy['version']}, {issue['stage']}, {rung}; {use}{asks}"


def _engine_row(one: EngineState) -> tuple[str, ...]:
    load = one.load
    known = one.HasField("load")
    return (
        one.chain,
        str(one.length),
        "connected" if one.connected else "ended",
        f"{load.running}/{load.slots}" if known else "-",
        str(load.waiting) if known else "-",
        f"{load.kv_cache_use:.0%}" if known else "-",
        str(one.dropped),
    )


def _tenant_row(one: TenantControl) -> tuple[str, ...]:
    alerts = " ".join(name for name, raised in (("BH-1", one.bh1), ("BH-2", one.bh2)) if raised)
    return (
        one.tenant,
        one.state,
        f"{one.lam:.3f}",
        f"{one.kl_budget:.4f}",
        f"{one.sse:.2f}" if one.HasField("sse") else "-",
        "yes" if one.look_ahead else "no",
        alerts or "-",
    )


def _explain(arguments: argparse.Namespace) -> int:
    from mvps.surplus.packets import HealthMinute, parse

    answer = _asked(arguments)
    tenants = [one for one in answer.tenants if arguments.tenant in ("", one.tenant)]
    if arguments.tenant and not tenants:
        names = ", ".join(one.tenant for one in answer.tenants) or "none"
        raise exits.Failure(exits.USAGE, f'no packets of a tenant "{arguments.tenant}"; there are {names}')
    healths = {one.tenant: one for one in (parse(line, HealthMinute) for line in answer.health)}
    sentences = {one.tenant: _sentence(one, healths.get(one.tenant), answer.pressure) for one in tenants}
    if arguments.json:
        wanted = [line for line in map(json.loads, answer.health) if line["tenant"] in sentences]
        print(json.dumps({"sentences": sentences, "health": wanted, "pressure": dict(answer.pressure)}, indent=2))
    else:
        print("\n".join(sentences.values()) or "no engine has sent a packet to this agent")
    return _code(tenants)


def _sentence(told: TenantControl, health: HealthMinute | None, pressure: Any) -> str:
    from mvps.surplus.schedule import LambdaRule

    pushes = f"lambda {told.lam:.3f} and {told.kl_budget:.4f} nats a token"
    if health is None:
        return f"{told.tenant}: none of its minutes is closed yet; engines hold {pushes}."
    known = (("SSI*", health.ssi_star), ("CRP", health.crp), ("SSE", health.sse))
    indicators = ", ".join(f"{name} {'not known' if value is None else f'{value:.2f}'}" for name, value in known)
    xi = "too few minutes to know Xi" if health.xi is None else f"Xi {health.xi:.2f}"
    parts = [f"{told.tenant} is {told.state}: {xi} in the minute {health.bucket:%H:%M} ({indicators})"]
    parts += [f"{name} is raised" for name, raised in (("BH-1", told.bh1), ("BH-2", told.bh2)) if raised]
    if pressure:
        flow = max(pressure, key=pressure.__getitem__)
        parts.append(f"most pressed now is {flow} ({pressure[flow]:.2f})")
    if health.ssi_star is None or health.crp is None:
        parts.append(f"without a known pressure lambda stays: {pushes}")
    else:
        asked = LambdaRule().target(health.ssi_star, health.crp, 1.0 if health.sse is None else health.sse)
        parts.append(f"this minute alone asks for lambda {asked:.3f}, and smoothed it is {pushes}")
    if told.look_ahead:
        parts.append("engines look ahead")
    if health.refused:
        parts.append(f"not counted: {_named(health.refused, 'd')}")
    return "; ".join(parts) + "."


def _replay(arguments: argparse.Namespace) -> int:
    from mvps.cli import view
    from mvps.surplus.packets import PacketError

    minutes: dict[tuple[datetime, str], Decided] = {}
    chains: list[Chain] = []
    torn = 0
    try:
        with arguments.file.open("rb") as file:
            for chain, left in _verified(file, minutes):
                chains.append(chain)
                torn = left
    except OSError as error:
        code = exits.NOT_PERMITTED if isinstance(error, PermissionError) else exits.USAGE
        raise exits.Failure(code, f"cannot read {arguments.file}: {error.strerror}") from None
    except PacketError as error:
        raise exits.Failure(exits.FOUND, f"{arguments.file}: {error}") from None
    if not chains:
        raise exits.Failure(exits.USAGE, f"{arguments.file} is no record: its first line names no chain")
    ordered = [minutes[key] for key in sorted(minutes)]
    if arguments.json:
        document = {
            "chains": [{"chain": one.name, "length": one.length, "head": one.head} for one in chains],
            "minutes": [_minute_json(one) for one in ordered],
            "torn_bytes": torn,
        }
        print(json.dumps(document, indent=2))
    else:
        rows = [("minute", "tenant", "packets", "tokens", "lambda", "nats used", "budget", "state", "left alone")]
        print(view.table([*rows, *(_minute_row(one) for one in ordered)]))
        for one in chains:
            print(f"chain {one.name}: {one.length} lines, each follows; head {one.head}")
        if torn:
            print(f"the record ends within a line: its {torn} bytes are not counted")
    return exits.FOUND if torn else exits.OK


def _verified(file: BinaryIO, minutes: dict[tuple[datetime, str], Decided]) -> Iterator[tuple[Chain, int]]:
    """Chains of a record in order, verified, and with the last one the bytes of a torn line; their packets go into
    ``minutes``. PacketError where one breaks; nothing where the file is no record."""
    from mvps.surplus.minutes import decided
    from mvps.surplus.packets import MAX_LINE_BYTES, Cap, follow, recorded_chain

    chain: Chain | None = None
    waiting: list[bytes] = []
    torn = 0

    def checked(chain: Chain) -> Chain:
        chain, caps = follow(chain, waiting, Cap)
        waiting.clear()
        decided(caps, minutes)
        return chain

    # One byte more than the longest line and its end: what is longer is refused and not read.
    while line := file.readline(MAX_LINE_BYTES + 2):
        if not line.endswith(b"\n") and len(line) <= MAX_LINE_BYTES:
            torn = len(line)
            break
        line = line.removesuffix(b"\n")
        begun = recorded_chain(line)
        if begun is not None:
            if chain is not None:
                yield checked(chain), 0
            chain = begun
        elif chain is None:
            return
        else:
            waiting.append(line)
            if len(waiting) == _CHUNK:
                chain = checked(chain)
    if chain is not None:
        yield checked(chain), torn


def _minute_row(one: Decided) -> tuple[str, ...]:
    states = "/".join(sorted(state.value for state in one.states))
    alerts = "".join(f" {name}" for name, raised in (("BH-1", one.bh1), ("BH-2", one.bh2)) if raised)
    return (
        f"{one.bucket:%Y-%m-%d %H:%M}",
        one.tenant,
        str(one.packets),
        str(one.tokens),
        _range(one.lam, 3),
        f"{one.kl_used:.4f}",
        _range(one.kl_budget, 4),
        states + alerts,
        _named({cause.value: count for cause, count in one.fallbacks.items()}, "d") or "-",
    )


def _minute_json(one: Decided) -> dict[str, Any]:
    return {
        "bucket": one.bucket.isoformat().replace("+00:00", "Z"),
        "tenant": one.tenant,
        "packets": one.packets,
        "tokens": one.tokens,
        "lambda": list(one.lam),
        "kl_used": one.kl_used,
        "kl_budget": list(one.kl_budget),
        "states": sorted(state.value for state in one.states),
        "bh1": one.bh1,
        "bh2": one.bh2,
        "fallbacks": {cause.value: count for cause, count in sorted(one.fallbacks.items())},
    }


def _policy(arguments: argparse.Namespace) -> int:
    if arguments.file is None:
        print(json.dumps(_EXAMPLE, indent=2))
        return exits.OK
    from mvps.cli import view
    from mvps.surplus.governance import policy_from
    from mvps.surplus.packets import MAX_LINE_BYTES, digest, render
    from mvps.surplus.policy import ACTIONS, Rung
    from mvps.surplus.rollout import slice_of, steps

    try:
        policy = policy_from(read(arguments.file, MAX_LINE_BYTES), toml=arguments.file.suffix == ".toml")
    except ValueError as error:
        raise exits.Failure(exits.USAGE, f"{arguments.file}: {error}") from None
    routing = policy.routing
    slices = {
        tenant: [(step, sorted(slice_of(arguments.host, tenant, policy.version, step.share))) for step in places]
        for tenant, places in ((tenant, steps(policy.rollout)) for tenant in policy.members)
    }
    highest = Rung(policy.ladder.highest)
    if arguments.json:
        ladder = {rung.name: list(ACTIONS[rung]) for rung in Rung if rung is not Rung.NONE}
        document = {"policy": json.loads(render(policy)), "digest": digest(policy), "ladder": ladder}
        places = {name: [[step.stage, step.share, on] for step, on in one] for name, one in slices.items()}
        document |= {"highest": highest.name, "slices": places, "kill": dict(policy.rollout.kill)}
        print(json.dumps(document, indent=2))
        return exits.OK
    mode = "a dry run: nothing is done, and it is said what would be" if policy.dry_run else "in force"
    print(f"{policy.tenant}, version {policy.version}: {mode}")
    caps = {name: value for name, value in policy.caps if value is not None and name != "soft"}
    print(
        "caps: "
        + (", ".join(f"{name} {value:g}" for name, value in caps.items()) or "none")
        + f"; {policy.caps.soft:.0%} of them is where to slow down"
    )
    print(
        f"routing: {len(routing.providers)} providers, each at most {routing.max_provider_share:.0%}, "
        f"spread at least {routing.min_spread:g}"
    )
    print(f"kept for {policy.privacy.retention_days} days")
    stages = ", ".join(f"{step.stage.value} {step.share:.0%}" for step in steps(policy.rollout))
    print(f"rollout: {stages}; {policy.rollout.soak_minutes} minutes of soak before each next stage")
    kill = policy.rollout.kill
    limits = [
        f"{words} {100.0 * limit:+.4g}%{kind}"
        for words, limit, kind in (
            ("p95 of the time per token", kill.latency, ""),
            ("minutes with an alert", kill.incidents, ""),
            ("packets with lost structure", kill.breaks, " absolute"),
        )
        if limit is not None
    ]
    print(f"taken back on BH-2 in the slice, or against the other hosts: {', '.join(limits) or 'nothing else'}")
    if policy.tenants:
        print(f"tenants of the class: {', '.join(policy.tenants)}")
    for tenant, places_of in slices.items():
        for step, hosts in places_of[1:] if arguments.host else []:
            print(f"{tenant}, {step.stage.value} {step.share:.0%}: in force on {', '.join(hosts)}")
    rows = [(f"R{rung.value}", rung.name, ", ".join(ACTIONS[rung])) for rung in Rung if rung is not Rung.NONE]
    print(view.table(rows))
    print(f"above {highest.name} it takes an operator")
    return exits.OK


def _schema(arguments: argparse.Namespace) -> int:
    from mvps.surplus.packets import schema

    print(json.dumps(schema(arguments.kind), indent=2, sort_keys=True))
    return exits.OK


def _range(pair: tuple[float, float], digits: int) -> str:
    low, high = (f"{value:.{digits}f}" for value in pair)
    return low if low == high else f"{low} to {high}"


def _named(counts: Any, form: str) -> str:
    return ", ".join(f"{name} {count:{form}}" for name, count in sorted(counts.items()))


def _indent(text: str) -> str:
    return "\n".join("  " + line for line in text.splitlines())
