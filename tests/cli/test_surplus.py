# SPDX-License-Identifier: Apache-2.0
"""``mvps surplus``: asks an agent, verifies records, checks policies."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.surplus.cap_sample import HASH, cap

from mvps.cli import exits
from mvps.cli.main import main
from mvps.cli.surplus import KINDS
from mvps.surplus import packets
from mvps.surplus.packets import Cap, Chain, HealthMinute, Policy, parse, record_header, render
from mvps.v1 import local_pb2, local_pb2_grpc

# ruff: noqa: N802 - methods are named as gRPC calls them

SECOND = 10**9
START = 1_788_784_440 * SECOND  # 2026-09-07T12:34:00Z
HEALTH: dict[str, Any] = {
    "bucket": "2026-09-07T12:34:00Z",
    "tenant": "acme",
    "SSE": None,
    "CRP": 0.25,
    "SSIstar": 0.5,
    "crp_score": 0.3,
    "ssi_star_score": 0.4,
    "Xi": 0.41,
    "lambda": 0.5,
    "kl_budget": 0.008,
    "dlogits_budget": 0.126,
    "state": "Caution",
    "bh1": False,
    "bh2": False,
    "packets": 7,
    "refused": {"late": 2},
    "cap_head": HASH,
}


class Agent(local_pb2_grpc.LocalServicer):
    """An agent that says what a test wants."""

    def __init__(self) -> None:
        self.answer = local_pb2.SurplusStatusResponse()

    def SurplusStatus(
        self, request: local_pb2.SurplusStatusRequest, context: grpc.ServicerContext
    ) -> local_pb2.SurplusStatusResponse:
        return self.answer


class Desk:
    """The agent over a Unix socket, and the command."""

    def __init__(self, folder: Path) -> None:
        self.socket, self.agent = str(folder / "agent.sock"), Agent()
        self.server = grpc.server(futures.ThreadPoolExecutor(2))
        local_pb2_grpc.add_LocalServicer_to_server(self.agent, self.server)
        self.server.add_insecure_port(f"unix:{self.socket}")
        self.server.start()

    def __call__(self, action: str, *words: str) -> int:
        return main(["surplus", action, "--socket", self.socket, *words])


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    yield made
    made.server.stop(None).wait()


def busy() -> local_pb2.SurplusStatusResponse:
    told = local_pb2.TenantControl(tenant="acme", lam=0.5, kl_budget=0.008, state="Caution", look_ahead=True)
    new = local_pb2.TenantControl(tenant="new", lam=0.4, kl_budget=0.01, state="Green", sse=0.75)
    load = local_pb2.EngineLoad(running=6, waiting=2, slots=8, kv_cache_use=0.5)
    return local_pb2.SurplusStatusResponse(
        engines=[local_pb2.EngineState(chain="engine-1", length=7, head=HASH, connected=True, load=load)],
        tenants=[told, new],
        health=[render(parse(json.dumps(HEALTH).encode(), HealthMinute))],
        pressure={"cpu": 0.2, "engines": 0.3},
        packets=7,
        refused={"late": 2},
    )


def test_status_shows_engines_and_tenants(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    assert desk("status") == exits.OK
    assert "no engine has connected" in capsys.readouterr().out
    desk.agent.answer = busy()
    assert desk("status") == exits.OK
    said = capsys.readouterr().out
    assert "engines connected: 1, packets verified: 7" in said
    assert "engine-1  7      connected  6/8      2        50%" in said
    assert "acme    Caution  0.500   0.0080        -       yes          -" in said
    assert "pressure: cpu 0.20, engines 0.30\nrefused: late 2\n" in said
    assert desk("status", "--json") == exits.OK
    shown = json.loads(capsys.readouterr().out)
    assert shown["health"][0]["Xi"] == 0.41
    assert shown["tenants"][1] == {
        "tenant": "new",
        "lam": 0.4,
        "kl_budget": 0.01,
        "dlogits_budget": 0.0,
        "sse": 0.75,
        "state": "Green",
        "bh1": False,
        "bh2": False,
        "look_ahead": False,
    }


@pytest.mark.parametrize("state", ["Action", "Emergency"])
def test_a_tenant_in_trouble_is_an_exit_code(desk: Desk, state: str) -> None:
    desk.agent.answer = busy()
    desk.agent.answer.tenants[0].state = state
    assert desk("status") == exits.FOUND
    assert desk("explain") == exits.FOUND
    assert desk("explain", "new") == exits.OK


def test_explain_says_why(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    assert desk("explain") == exits.OK
    assert "no engine has sent a packet" in capsys.readouterr().out
    desk.agent.answer = busy()
    assert desk("explain") == exits.OK
    first, second = capsys.readouterr().out.splitlines()
    assert first == (
        "acme is Caution: Xi 0.41 in the minute 12:34 (SSI* 0.50, CRP 0.25, SSE not known); "
        "most pressed now is engines (0.30); "
        "this minute alone asks for lambda 0.640, and smoothed it is lambda 0.500 and 0.0080 nats a token; "
        "engines look ahead; not counted: late 2."
    )
    assert second.startswith("new: none of its minutes is closed yet; engines hold lambda 0.400")
    assert desk("explain", "acme", "--json") == exits.OK
    shown = json.loads(capsys.readouterr().out)
    assert (list(shown["sentences"]), shown["health"][0]["tenant"]) == (["acme"], "acme")
    assert desk("explain", "nobody") == exits.USAGE
    assert "there are acme, new" in capsys.readouterr().err


def record(path: Path, *chains: tuple[str, list[Cap]]) -> list[Chain]:
    """A record of chains; where each of them ended."""
    ends, out = [], []
    for name, caps in chains:
        chain = Chain.begin(name)
        out.append(record_header(name))
        for one in caps:
            chain, line = chain.append(one)
            out.append(line)
        ends.append(chain)
    path.write_bytes(b"".join(line + b"\n" for line in out))
    return ends


def test_a_record_is_verified_and_says_what_was_decided(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "engine.record"
    many = [cap(START + i // 10 * SECOND, **{"lambda": 0.4 + i / 10_000}) for i in range(600)]
    ends = record(path, ("e.1", many), ("e.2", [cap(START + 60 * SECOND, state="Action", bh1=True, fallback="off")]))
    assert main(["surplus", "replay", str(path)]) == exits.OK
    said = capsys.readouterr().out.splitlines()
    first = "2026-09-07 12:34 acme 600 12000 0.400 to 0.460 1.2000 0.0100 Green -"
    assert said[1].split() == first.split()
    second = "2026-09-07 12:35 acme 1 20 0.400 0.0020 0.0100 Action BH-1 off 1"
    assert said[2].split() == second.split()
    assert said[3] == f"chain e.1: 600 lines, each follows; head {ends[0].head}"
    assert main(["surplus", "replay", str(path), "--json"]) == exits.OK
    shown = json.loads(capsys.readouterr().out)
    assert shown["chains"][1] == {"chain": "e.2", "length": 1, "head": ends[1].head}
    assert [one["packets"] for one in shown["minutes"]] == [600, 1]
    assert shown["minutes"][1]["fallbacks"] == {"off": 1}


@pytest.mark.parametrize("line", [1, 300, 599])
def test_a_line_that_is_missing_or_changed_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: int
) -> None:
    path = tmp_path / "engine.record"
    record(path, ("e.1", [cap(START + i // 10 * SECOND) for i in range(600)]))
    whole = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(whole[:line] + whole[line + 1 :]))
    assert main(["surplus", "replay", str(path)]) == exits.FOUND
    assert f"line {line - 1} of the chain e.1 does not follow" in capsys.readouterr().err
    changed = whole[line].replace(b'"kl_used":0.002', b'"kl_used":0.001')
    path.write_bytes(b"".join([*whole[:line], changed, *whole[line + 1 :]]))
    assert main(["surplus", "replay", str(path)]) == exits.FOUND
    assert f"line {line} of the chain e.1 does not follow" in capsys.readouterr().err


def test_a_record_that_ends_within_a_line_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "engine.record"
    record(path, ("e.1", [cap(START), cap(START + SECOND)]))
    path.write_bytes(path.read_bytes()[:-10])
    assert main(["surplus", "replay", str(path)]) == exits.FOUND
    said = capsys.readouterr().out
    assert "chain e.1: 1 lines" in said
    assert "ends within a line" in said


@pytest.mark.parametrize("content", [b"", b"no record\n", b"\0" * 100_000, b'{"packet":{}}\n'])
def test_another_file_is_no_record(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    assert main(["surplus", "replay", str(path)]) == exits.USAGE
    assert "is no record" in capsys.readouterr().err
    assert main(["surplus", "replay", str(tmp_path / "none")]) == exits.USAGE


def test_the_example_policy_is_one_that_can_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "policy.json"
    assert main(["surplus", "policy"]) == exits.OK
    path.write_text(capsys.readouterr().out)
    assert main(["surplus", "policy", str(path)]) == exits.OK
    said = capsys.readouterr().out
    assert "acme, version 1: a dry run" in said
    assert "routing: 3 providers, each at most 50%" in said
    assert "R6  FULL_ROLLBACK" in said
    assert (
        "taken back on BH-2 in the slice, or against the other hosts: p95 of the time per token +25%, "
        "minutes with an alert +50%, packets with lost structure +0.5% absolute" in said
    )
    assert main(["surplus", "policy", str(path), "--json"]) == exits.OK
    shown = json.loads(capsys.readouterr().out)
    assert shown["policy"] == json.loads(render(parse(path.read_bytes(), Policy)))
    assert shown["highest"] == "HUMAN_TAKEOVER"
    assert shown["kill"] == {"latency": 0.25, "incidents": 0.5, "breaks": 0.005}
    path.write_text(json.dumps(shown["policy"] | {"rollout": {"kill": dict.fromkeys(shown["kill"])}}))
    assert main(["surplus", "policy", str(path)]) == exits.OK
    assert "or against the other hosts: nothing else" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"routing": {"providers": ["a", "b"], "max_provider_share": 0.4}}, "are not 1"),
        ({"note": "for Ann"}, "note: Extra inputs"),
        ({"tenant": "a b"}, "tenant: "),
    ],
)
def test_a_policy_that_cannot_be_used_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], words: str
) -> None:
    path = tmp_path / "policy.json"
    main(["surplus", "policy"])
    path.write_text(json.dumps(json.loads(capsys.readouterr().out) | change))
    assert main(["surplus", "policy", str(path)]) == exits.USAGE
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("kind", packets.KINDS)
def test_the_schemas_that_are_checked_in_are_those_of_the_models(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["surplus", "schema", kind]) == exits.OK
    checked_in = Path(__file__).parents[2] / f"proto/surplus/{kind}.json"
    assert checked_in.read_text() == capsys.readouterr().out, f"mvps surplus schema {kind} > {checked_in.name}"


def test_every_kind_has_a_schema_file_and_the_command_knows_it() -> None:
    files = {path.name.removesuffix(".json") for path in (Path(__file__).parents[2] / "proto/surplus").iterdir()}
    assert files == set(packets.KINDS) == set(KINDS)
