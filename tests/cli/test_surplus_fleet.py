# SPDX-License-Identifier: Apache-2.0
"""``mvps surplus fleet`` and its sisters against a real broker, whose tenants real engines on real links tell of."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.surplus.cap_sample import cap
from tests.surplus.health_sample import policy
from tests.surplus.test_packets import INCIDENT
from tests.waiting import until
from wire_samples import Host, settings, snapshot

from mvps.broker.process import EmbeddedBroker
from mvps.cli import exits
from mvps.cli.main import main
from mvps.daemon.engines import Engines
from mvps.stream.client import StreamClient
from mvps.surplus.minutes import GRACE_NS, MINUTE_NS
from mvps.surplus.packets import Chain, render
from mvps.trust.solo import make_site
from mvps.v1 import local_pb2

SECOND = 10**9
HOSTS = ("gpu-1", "gpu-2", "gpu-3")


class Fleet:
    """A broker, and hosts each with an engine; their minutes go by as fast as the test wants."""

    def __init__(self, folder: Path) -> None:
        site = make_site(folder, list(HOSTS))
        policies = folder / "policies"
        policies.mkdir()
        (policies / "acme.json").write_bytes(render(policy()))
        self.operators = f"unix:{folder}/operator.sock"
        chosen, _ = settings(
            folder, key=str(site.broker_key), operator=site.operator, manifests=site.manifests, metrics="127.0.0.1:0",
            check_decisions=False, operator_socket=folder / "operator.sock", surplus={"policies": str(policies)},
        )  # fmt: skip
        self.embedded = EmbeddedBroker(chosen)
        assert self.embedded.broker is not None
        self.broker = self.embedded.broker
        self.now_ns = time.time_ns()
        self.broker.surplus_watch._clock = lambda: self.now_ns
        self.engines = {name: Engines(SECOND, 4, lambda: self.now_ns, host=name, policy="apply") for name in HOSTS}
        self.hosts = {name: Host(site, name) for name in HOSTS}
        self.links = {name: StreamClient(self.embedded.address, name, host.acks()) for name, host in self.hosts.items()}
        for link in self.links.values():
            link.start()
        self.chains = {name: Chain.begin(f"{name}/engine") for name in HOSTS}
        self.streams = {name: engines.open(f"{name}/engine") for name, engines in self.engines.items()}

    def minute(self) -> None:
        """One minute in which every engine sent a packet; its health travels in a sealed snapshot."""
        for name, engines in self.engines.items():
            self.chains[name], line = self.chains[name].append(cap(self.now_ns))
            load = local_pb2.EngineLoad(running=8, slots=8, waiting=2)
            engines.take(self.streams[name], local_pb2.SurplusBatch(lines=[line], load=load))
        taken = self.broker.surplus_watch.health["taken"]
        self.now_ns = (self.now_ns // MINUTE_NS + 1) * MINUTE_NS + GRACE_NS
        for name, engines in self.engines.items():
            made = snapshot(name)
            engines.tick(made, {}, SECOND)
            self.links[name].submit(self.hosts[name].seal(made, tick=made.tick))
        until(lambda: self.broker.surplus_watch.health["taken"] == taken + len(HOSTS))
        closed = self.now_ns // MINUTE_NS - 1
        self.now_ns += 10 * SECOND
        until(lambda: [view.last.minute for view in self.broker.surplus_watch.views if view.last] == [closed])

    def speak(self) -> None:
        """Every host sends a snapshot, whose answer tells it what the broker wants it to know."""
        for name, link in self.links.items():
            made = snapshot(name)
            link.submit(self.hosts[name].seal(made, tick=made.tick))

    def applied(self) -> list[str]:
        """Hosts on which a policy bounds what engines are told."""
        for name, engines in self.engines.items():
            engines.hand(self.links[name].policies)
        return [name for name, engines in self.engines.items() if engines.status().applied]

    def stop(self) -> None:
        for link in self.links.values():
            link.stop()
        self.embedded.stop()


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    made = Fleet(tmp_path_factory.mktemp("fleet"))
    yield made
    made.stop()


Asked = Callable[..., tuple[int, Any]]


@pytest.fixture
def asked(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> Asked:
    def ask(*words: str, operator: bool = False) -> tuple[int, Any]:
        capsys.readouterr()
        code = main(["surplus", *words, "--broker", fleet.operators if operator else fleet.embedded.address])
        said = capsys.readouterr()
        return code, json.loads(said.out) if "--json" in words and said.out else said.out + said.err

    return ask


def test_from_engines_to_what_an_operator_reads_and_orders(fleet: Fleet, asked: Asked, tmp_path: Path) -> None:
    code, said = asked("fleet")
    assert code == exits.OK
    assert "no host has told of a tenant yet" in said
    for _ in range(2):
        fleet.minute()
    code, said = asked("fleet")
    assert code == exits.OK, said
    assert "acme    Green" in said
    assert "3/3" in said
    assert "acme v1" in said
    assert "2/240 min" in said
    shown = asked("fleet", "--json")[1]
    (tenant,) = shown["tenants"]
    assert tenant["lam"] > 0.4, "all slots are taken"
    assert (tenant["policy"]["stage"], tenant["policy"]["rung"]) == ("shadow", -1)

    # Orders are for operators, and say who and why.
    kill = ("order", "acme", "kill", "--by", "kim", "--why", "answers loop")
    code, said = asked(*kill)
    assert code == exits.NOT_PERMITTED
    assert "operator_socket" in said
    code, said = asked("order", "acme", "stage", "canary", "--by", "kim", "--why", "small", operator=True)
    assert code == exits.OK
    assert (
        "acme, kill switches: latency not compared yet (0 known hours, 0 in shadow); incidents not compared yet"
        in asked("fleet")[1]
    )
    code, shown = asked("fleet", "--json")
    inside = shown["tenants"][0]["policy"]["slice"]
    assert len(inside) == 1
    # It reaches the host of the slice under the broker's seal, with the answer to its next snapshot; so does the end.
    assert fleet.applied() == []
    fleet.speak()
    until(lambda: fleet.applied() == inside)
    code, said = asked(*kill, operator=True)
    assert code == exits.OK
    assert "shadow, held" in said
    fleet.speak()
    until(lambda: fleet.applied() == [])
    assert all(not engines.status().refused for engines in fleet.engines.values())
    code, said = asked("fleet")
    assert code == exits.FOUND
    assert "! acme: its policy is in force nowhere until it is released: killed by kim: answers loop" in said
    code, said = asked("order", "acme", "stage", "canary", "--by", "kim", "--why", "x", operator=True)
    assert (code, "release it first" in said) == (exits.USAGE, True)
    code, said = asked("order", "nobody", "kill", "--by", "kim", "--why", "x", operator=True)
    assert (code, "nobody has no policy in use" in said) == (exits.USAGE, True)
    assert asked("order", "acme", "rung", "--by", "kim", "--why", "x", operator=True)[0] == exits.USAGE
    assert asked("order", "acme", "release", "--by", "kim", "--why", "fixed", operator=True)[0] == exits.OK
    code, said = asked("order", "acme", "release", "--by", "kim", "--why", "fixed", operator=True)
    assert (code, "nothing had to change" in said) == (exits.FOUND, True)

    # The trail has them all, and the history what the hosts said.
    def trail() -> list[tuple[str, str, str]]:
        return [(one["what"], one["after"], one["who"]) for one in asked("audit", "--json")[1]["changes"]]

    until(lambda: len(trail()) == 4)
    assert trail() == [
        ("hold", "released", "kim"),
        ("stage", "shadow, held", "kim"),
        ("stage", "canary", "kim"),
        ("policy", "v1", "broker"),
    ]
    assert "answers loop" in asked("audit", "acme")[1]
    path = tmp_path / "incident.json"
    path.write_text("{}")
    assert asked("incident", str(path), operator=True)[0] == exits.USAGE
    path.write_text(json.dumps(INCIDENT))
    assert asked("incident", str(path))[0] == exits.NOT_PERMITTED
    assert asked("incident", str(path), "--by", "kim", operator=True)[0] == exits.OK
    until(lambda: fleet.broker.info().history.waiting == 0)
    code, said = asked("report", "acme")
    assert code == exits.OK, said
    # The second minute begins ahead of the real clock, which the question is bounded by.
    assert re.search(r"states: Green [12] min \(100.0%\)", said)
    assert re.search(r"taken back at \S+ by kim: killed by kim: answers loop", said)
    assert asked("report", "acme", "--since", "3000d", "--json")[1]["leads"][0]["id"] == INCIDENT["id"]
    assert "nothing is stored of nobody" in asked("report", "nobody")[1]
    assert fleet.broker.metrics is not None
    page = urllib.request.urlopen(f"http://127.0.0.1:{fleet.broker.metrics.port}/metrics").read().decode()
    assert 'mvps_surplus_state{state="Green",tenant="acme"} 1.0' in page
    assert 'mvps_surplus_health_total{outcome="taken"} 6.0' in page
    assert 'mvps_surplus_rung{tenant="acme"} -1.0' in page


def test_a_broker_without_tenants_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broker = EmbeddedBroker(settings(tmp_path, operator_socket=tmp_path / "operator.sock")[0])
    try:
        assert main(["surplus", "fleet", "--broker", broker.address]) == exits.USAGE
        assert "no [surplus]" in capsys.readouterr().err
        order = ["surplus", "order", "acme", "kill", "--by", "kim", "--why", "x"]
        assert main([*order, "--broker", f"unix:{tmp_path}/operator.sock"]) == exits.USAGE
        assert "no [surplus]" in capsys.readouterr().err
    finally:
        broker.stop()
    assert main(["surplus", "fleet", "--broker", broker.address or "127.0.0.1:1"]) == exits.UNREACHABLE
