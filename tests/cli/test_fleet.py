# SPDX-License-Identifier: Apache-2.0
"""``mvps fleet`` against a real broker with a real sender."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from authority import Authority
from bench.attacks import Arena

from mvps.broker.process import EmbeddedBroker
from mvps.broker.settings import BrokerSettings
from mvps.cli import exits
from mvps.cli.fleet import _print, _troubles
from mvps.cli.fleet import utc as cli_time
from mvps.cli.main import main
from mvps.trust.keys import Kind, SecretKey
from mvps.trust.manifest import Profile, sign_manifest
from mvps.trust.solo import make_site
from mvps.v1 import snapshot_pb2, stream_pb2


@pytest.fixture
def arena(tmp_path: Path) -> Iterator[Arena]:
    made = Arena(tmp_path, Profile.CWT)
    yield made
    made.close()


def test_all_is_well(arena: Arena, capsys: pytest.CaptureFixture[str]) -> None:
    arena.send(arena.host.seal())
    assert main(["fleet", "--broker", arena.broker.address]) == exits.OK
    said = capsys.readouterr().out
    assert "epoch 2, profile cwt" in said
    assert "accepted 1, duplicates 0, rejected nothing" in said
    assert "host-1" in said
    assert "!" not in said


def test_troubles_are_marked_and_set_the_exit_code(arena: Arena, capsys: pytest.CaptureFixture[str]) -> None:
    spent = next(arena.numbers)
    arena.send(arena.host.seal(counter=spent))
    arena.send(arena.host.seal(counter=spent))
    forged = sign_manifest(arena.site.manifest, SecretKey(os.urandom(32), Kind.OPERATOR))
    (arena.site.manifests / "forged.manifest").write_bytes(forged)
    assert arena.broker.broker is not None
    while not arena.broker.broker.info().refused_manifests:
        pass
    assert main(["fleet", "--broker", arena.broker.address]) == exits.FOUND
    said = capsys.readouterr().out
    assert "! host-1: used 1 counters twice with different content" in said
    assert "! manifest forged.manifest: " in said
    assert main(["fleet", "--broker", arena.broker.address, "--json"]) == exits.FOUND
    shown = json.loads(capsys.readouterr().out)
    assert shown["info"]["rejected"] == {"equivocation": "1"}
    assert [vantage["vantage_id"] for vantage in shown["vantages"]] == ["host-1"]


def test_a_full_store_says_how_long_it_keeps(arena: Arena, capsys: pytest.CaptureFixture[str]) -> None:
    arena.send(arena.host.seal())
    assert main(["fleet", "--broker", arena.broker.address]) == exits.OK
    assert "of 16.00 GiB, keeps everything\n" in capsys.readouterr().out
    assert arena.broker.broker is not None
    store = arena.broker.broker._store  # filling one takes long; tests/broker has that
    store.removed_early, store.backfill_from_ns = 7, time.time_ns() - 5400 * 10**9
    assert main(["fleet", "--broker", arena.broker.address]) == exits.FOUND
    said = capsys.readouterr().out
    assert f"keeps everything since {cli_time(store.backfill_from_ns // 10**9 * 10**9)}\n" in said
    assert "! store: full, it keeps 1.5 h of 24.0 h and has removed 7 snapshots early: raise database_max_mib" in said


def test_what_services_and_tenants_need_is_counted_and_told_where() -> None:
    ill = stream_pb2.ServiceState(name="chat", phase=stream_pb2.SERVICE_PHASE_CASCADING, missing={"a/ai": "gone"})
    info = stream_pb2.ServerInfo(services=stream_pb2.ServicesState(services=[ill]))
    info.surplus.tenants.add(tenant="acme", state="Emergency")
    assert _troubles(info, stream_pb2.ListVantagesResponse()) == ["2 more: mvps service", "1 more: mvps surplus fleet"]


def test_the_fleets_file_and_impossible_distributions_are_troubles() -> None:
    state = stream_pb2.FleetState(baselines_error="broker.db.fleet holds no fleet baselines")
    info = stream_pb2.ServerInfo(distributions_impossible=3, fleet=state)
    assert _troubles(info, stream_pb2.ListVantagesResponse()) == [
        "3 snapshots had a distribution that the events beside it cannot have given",
        "fleet baselines: broker.db.fleet holds no fleet baselines",
    ]


def test_no_broker(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fleet", "--broker", f"unix:{tmp_path}/none"]) == exits.UNREACHABLE
    assert "check --broker" in capsys.readouterr().err


def _closed(arena: Arena) -> None:
    """Wait until a tick that host-1 reported has closed and is kept."""
    arena.send(arena.host.seal())
    deadline = time.monotonic() + 20
    assert arena.broker.broker is not None
    ticks = arena.broker.broker.ticks
    while not (ticks.counts["closed"] and ticks.counts["reported"] + ticks.counts["late"]):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    while arena.broker.broker.info().history.waiting:
        time.sleep(0.02)


def test_history_bundle_and_vantage(arena: Arena, capsys: pytest.CaptureFixture[str]) -> None:
    _closed(arena)
    broker = ["--broker", arena.broker.address]
    assert main(["fleet", "history", *broker, "--since", "1h"]) == exits.OK
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["time", "tick", "cell", "reported", "missing", "refused", "late", "closed"]
    assert main(["fleet", *broker, "vantage", "host-1", "--json"]) == exits.OK
    told = json.loads(capsys.readouterr().out)["ticks"]
    (tick,) = (tick for tick in told if tick["status"] != "TICK_STATUS_MISSING")
    assert tick["phase"] == "PHASE_CALIBRATING"
    number = str(int(tick["tick_time_ns"]) // 10**9)
    for word in (number, cli_time(int(tick["tick_time_ns"]))):
        assert main(["fleet", "bundle", word, *broker]) == exits.OK
        assert "host-1" in capsys.readouterr().out
    assert main(["fleet", "bundle", "latest", *broker]) == exits.OK
    assert main(["fleet", "status", *broker]) == exits.OK
    assert "ticks closed" in capsys.readouterr().out


def test_questions_without_an_answer_say_so(arena: Arena, capsys: pytest.CaptureFixture[str]) -> None:
    _closed(arena)
    broker = ["--broker", arena.broker.address]
    assert main(["fleet", "vantage", "nobody", *broker]) == exits.FOUND
    assert "nothing is kept of nobody" in capsys.readouterr().err
    assert main(["fleet", "history", "--cell", "none", *broker]) == exits.FOUND
    assert main(["fleet", "bundle", "5", *broker]) == exits.FOUND
    for wrong in (["bundle", "yesterday"], ["history", "--since", "10"], ["history", "--limit", "0"]):
        assert main(["fleet", *wrong, *broker]) == exits.USAGE
    assert "write a number and s, m, h or d" in capsys.readouterr().err


def test_a_broker_with_tls(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    ca = Authority(tmp_path / "ca")
    cert, key = ca.issue("broker")
    site = make_site(tmp_path, ["host-1"])
    broker = EmbeddedBroker(
        BrokerSettings.model_validate(
            {
                "listen": "127.0.0.1:0", "database": tmp_path / "broker.db", "key": str(site.broker_key),
                "operator": site.operator, "manifests": site.manifests, "metrics": "",
                "tls_cert": cert, "tls_key": key, "tls_client_ca": ca.path,
            }
        )
    )  # fmt: skip
    try:
        own_cert, own_key = ca.issue("own")
        words = ["fleet", "--broker", broker.address]
        tls = ["--tls-ca", str(ca.path), "--tls-cert", str(own_cert), "--tls-key", str(own_key)]
        assert main(words) == exits.UNREACHABLE
        assert "--tls-ca" in capsys.readouterr().err
        assert main([*words, *tls]) == exits.OK
        assert main([*words, *tls, "--tls-name", "broker.test"]) == exits.OK
        assert main([*words, *tls, "--tls-name", "another.test"]) == exits.UNREACHABLE
        assert main([*words, *tls[:4]]) == exits.USAGE
        own_key.chmod(0o644)
        assert main([*words, *tls]) == exits.USAGE
        assert "chmod 600" in capsys.readouterr().err
        own_key.chmod(0o600)
        # Without options, as the installed agent connects.
        config = tmp_path / "agent.toml"
        config.write_text(f'[broker]\ntls_ca = "{ca.path}"\ntls_cert = "{own_cert}"\ntls_key = "{own_key}"\n')
        monkeypatch.setattr("mvps.cli.settings.DEFAULT_CONFIG", config)
        assert main(words) == exits.OK
        key.write_text("no key")
        assert main(words) == exits.FOUND
        assert "! tls: " in capsys.readouterr().out
    finally:
        broker.stop()


def test_a_false_consensus_needs_an_eye_and_what_is_withheld_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    surface = snapshot_pb2.Surface(name="ai.g", lateral=snapshot_pb2.LATERAL_COHERENT_BUT_FALSE)
    surface.vector.c4 = 0.25
    latest = snapshot_pb2.Snapshot(surfaces=[surface])
    shown = stream_pb2.ListVantagesResponse(vantages=[stream_pb2.VantageSummary(vantage_id="host-1", latest=latest)])
    said = "host-1: ai.g is COHERENT_BUT_FALSE, C_4 = 0.25: check it against a golden set"
    assert _troubles(stream_pb2.ServerInfo(), shown) == [said]
    _print("b", stream_pb2.ServerInfo(), shown, [said])
    assert "withheld" not in capsys.readouterr().out
    left_out = stream_pb2.ListVantagesResponse(withheld=["vector.c4", "lateral"])
    assert _troubles(stream_pb2.ServerInfo(), left_out) == []
    _print("b", stream_pb2.ServerInfo(), left_out, [])
    assert "withheld: C_4" in capsys.readouterr().out
