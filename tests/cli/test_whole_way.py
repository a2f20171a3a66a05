# SPDX-License-Identifier: Apache-2.0
"""From nothing to proof with the command line alone, as the README has it: keys, an epoch, a witness, a broker, an
agent's sender, and an auditor who trusts only the operator."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from operator_desk import Site, mvps
from tests.waiting import until

from mvps.cli import exits
from mvps.daemon.identity import Identity
from mvps.daemon.uplink import BrokerUplink
from mvps.trust.counter import Counter
from mvps.trust.keys import load_key
from mvps.v1 import snapshot_pb2 as pb

WITNESS = "witness.example/w1"


@contextlib.contextmanager
def process(log: Path, *words: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as said:
        running = subprocess.Popen([sys.executable, "-m", "mvps.cli.main", *map(str, words)], stderr=said, stdout=said)
    try:
        yield running
    finally:
        running.terminate()
        assert running.wait(30) == exits.OK, log.read_text()


@contextlib.contextmanager
def uplink(folder: Path, name: str, target: str) -> Iterator[BrokerUplink]:
    """What the agent does between its probes and the broker."""
    state = folder / f"{name}-state"
    state.mkdir()
    operator = load_key(str(folder / "operator.key")).public
    identity = Identity(str(folder / f"{name}.key"), operator, folder / "manifests", state / "manifests", name)
    opened = BrokerUplink(target, name, identity, Counter(state / "counter"), 1000)
    try:
        yield opened
    finally:
        opened.close()


def send(road: BrokerUplink, name: str, count: int) -> None:
    now = time.time_ns() // 10**9
    for tick in range(now - count, now):
        body = pb.Snapshot(
            schema_version=1, vantage_id=name, tick=tick, tick_time_ns=tick * 10**9, tick_period_ns=10**9
        )  # fmt: skip
        road.submit(body.SerializeToString(), tick)
    until(lambda: road.state().queued == 0, f"{name}: {road.state()}")
    assert road.state().acknowledged == count


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_from_nothing_to_proof(site: Site) -> None:
    mvps("key", "generate", "witness", site["witness.key"])
    vkey = mvps("witness", "--key", site["witness.key"], "--name", WITNESS, "--vkey").stdout.strip()
    site.new("--witness", vkey, "--quorum", "1")
    site.approve(1, "host-a", "host-b")
    site.sign(1)
    site["manifests"].mkdir()
    (site["manifests"] / "epoch-1.manifest").write_bytes(site["1.manifest"].read_bytes())
    witness = [
        *("witness", "--key", site["witness.key"], "--name", WITNESS, "--state", site["w1.json"], "--new"),
        *("--listen", "127.0.0.1:0", "--log", f"broker={site['broker.pub'].read_text().strip()}"),
    ]
    with process(site["witness.log"], *witness):
        until(lambda: "127.0.0.1:" in site["witness.log"].read_text(), "no witness")
        (address,) = set(re.findall(r"127\.0\.0\.1:[1-9]\d*", site["witness.log"].read_text()))
        target = f"unix:{site['broker.sock']}"
        site["broker.toml"].write_text(
            f'listen = "{target}"\ndatabase = "{site["broker.db"]}"\nkey = "{site["broker.key"]}"\n'
            f'operator = "{site["operator.pub"]}"\nmanifests = "{site["manifests"]}"\nmetrics = ""\n'
            f'bundle_period_s = 1\n[witnesses]\n"{WITNESS}" = "http://{address}"\n'
        )
        with process(site["broker.log"], "broker", "--config", site["broker.toml"]):
            until(lambda: "listens" in site["broker.log"].read_text(), "no broker")
            with uplink(site.folder, "host-a", target) as a, uplink(site.folder, "host-b", target) as b:
                send(a, "host-a", 30)
                send(b, "host-b", 20)
            shown: dict[str, dict[str, dict[str, str]]] = {}

            def cosigned() -> bool:
                done = mvps("fleet", "--broker", target, "--json")
                assert done.returncode == exits.OK, done.stdout + done.stderr
                shown.update(json.loads(done.stdout))
                return shown["info"]["evidence"].get("cosigned_size") == "50"

            until(cosigned, "the witness never cosigned everything")
            assert shown["info"]["accepted"] == "50"
    believed = ("--operator", site["operator.pub"], "--manifests", site["manifests"])
    audit = mvps("verify", site["broker.db"], *believed, "--json")
    assert audit.returncode == exits.OK, audit.stdout + audit.stderr
    found = json.loads(audit.stdout)
    assert (found["holds"], found["leaves"], found["cosigned_size"]) == (True, 50, 50)
    # One octet of one leaf.
    (leaves,) = Path(f"{site['broker.db']}.evidence").glob("leaves-*")
    damaged = bytearray(leaves.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    leaves.write_bytes(damaged)
    audit = mvps("verify", site["broker.db"], *believed)
    assert audit.returncode == exits.FOUND
