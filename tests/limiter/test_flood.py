# SPDX-License-Identifier: Apache-2.0
"""A real broker and real vantages in namespaces, under real floods: what the limiter is for."""

from __future__ import annotations

import ipaddress
import itertools
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from field import PORT, Field, field
from scapy.layers.inet import TCP, UDP
from scapy.layers.inet6 import IPv6ExtHdrFragment
from scapy.packet import Raw

from mvps.limiter.layout import DROPPED

pytestmark = [pytest.mark.kernel, pytest.mark.net]

# A vantage at 20 Hz sends some 50 packets a second; a thousand times that.
RATE = 50_000
SECONDS = 3.0


@pytest.fixture
def site(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Field]:
    with field(tmp_path, "h1", "h2", tick_ms=50, ip=getattr(request, "param", "4")) as made:
        yield made


on_every_ip = pytest.mark.parametrize("site", ["4", "6", "4 on 6"], indirect=True)


def whole(result: dict[str, object]) -> bool:
    """Whether everything a vantage produced was acknowledged."""
    return result["produced"] == result["acknowledged"] and bool(result["produced"])


def segments(site: Field, name: str) -> int:
    """TCP segments a namespace has sent, those sent again included."""
    shown = subprocess.run([*site.enter(name), "cat", "/proc/net/snmp"], capture_output=True, text=True, check=True)
    names, values = (line.split() for line in shown.stdout.splitlines() if line.startswith("Tcp:"))
    seen = dict(zip(names, values, strict=True))
    return int(seen["OutSegs"]) + int(seen["RetransSegs"])


def floods(site: Field) -> dict[str, list[bytes]]:
    """What an outsider sends in the name of h1."""
    ports = range(1024, 5120)
    end = 54 if site.ip == "6" else 34
    if site.ip == "6":
        later = IPv6ExtHdrFragment(nh=6, offset=100, id=7) / Raw(b"x" * 64)
        fragment = site.frame("x", site.address("h1"), site.broker_address("h1"), later)
    else:
        whole_one = bytearray(site.frame("x", site.address("h1"), site.broker_address("h1"), Raw(b"x" * 64)))
        whole_one[14 + 9] = 6  # TCP
        whole_one[14 + 6 : 14 + 8] = b"\0\x64"  # offset 800
        fragment = bytes(whole_one)
    return {
        "syn": site.spoofed("h1", "S", ports),
        "stranger": site.spoofed("h1", "PA", ports, b"x" * 200),
        "fragment": [fragment],
        "unreadable": [frame[: end + 4] for frame in site.spoofed("h1", "S", ports)],
    }


@pytest.mark.parametrize(
    ("site", "kind"),
    [*itertools.product("46", ["syn", "stranger", "fragment", "unreadable"]), ("4 on 6", "stranger")],
    indirect=["site"],
)
def test_an_outsider_with_a_vantages_address_costs_it_nothing(site: Field, kind: str) -> None:
    site.attach()
    site.start_broker()
    victim, other = site.vantage("h1"), site.vantage("h2")
    site.proven(2)
    flood = site.flood("x", floods(site)[kind], RATE, SECONDS)
    flood.wait()
    seen = site.packets()
    assert seen[f"{kind}_over"] > RATE * SECONDS / 4, "the flood did not arrive"
    for one in (victim, other):
        result = one.end()
        assert whole(result)
        assert result["reconnects"] == 0
    limits = site.limits()
    assert limits["sources"][0]["source"] == site.source("h1")
    assert limits["prefixes"][0]["prefix"] == str(ipaddress.ip_network(site.address("h1")))
    assert all(seen[name] == 0 for name in ("flow_over", "prefix_over", "contended"))


def test_connections_without_end_cost_a_vantage_nothing(site: Field) -> None:
    """The outsider completes handshakes, under its own address, and says nothing."""
    site.attach()
    site.start_broker()
    victim = site.vantage("h1")
    site.proven(1)
    script = (
        "import socket, sys, time\nkept, made, end = [], 0, time.monotonic() + 4\n"
        "while time.monotonic() < end:\n"
        "    one = socket.socket(); one.settimeout(0.02)\n"
        "    try:\n        one.connect((sys.argv[1], int(sys.argv[2]))); made += 1\n"
        "    except OSError:\n        pass\n"
        "    kept.append(one)\n    kept = kept[-500:]\n"
        "print(made)\n"
    )
    target = (site.broker_address("x"), str(PORT))
    flood = subprocess.run(
        [*site.enter("x"), sys.executable, "-c", script, *target], capture_output=True, text=True, check=True
    )
    result = victim.end()
    assert whole(result)
    assert result["reconnects"] == 0
    seen = site.packets()
    assert int(flood.stdout) > 0
    assert seen["syn"] >= int(flood.stdout)


@on_every_ip
def test_a_vantage_that_floods_on_its_own_connection_is_held_to_its_budget(site: Field) -> None:
    site.attach()
    site.start_broker()
    honest, other = site.vantage("h1"), site.vantage("h2")
    site.proven(2)
    port = site.source_port("h2")
    segment = site.frame(
        "h2",
        site.address("h2"),
        site.broker_address("h2"),
        TCP(sport=port, dport=PORT, flags="A", seq=1) / (b"x" * 400),
    )
    before = site.packets()
    site.flood("h2", [segment], RATE, SECONDS).wait()
    seen = site.packets()
    assert seen["flow_over"] > RATE * SECONDS / 2
    passed = seen["proven"] - before["proven"]
    assert passed < RATE * SECONDS / 4
    result = honest.end()
    assert whole(result)
    assert result["reconnects"] == 0
    other.kill()


def test_other_traffic_is_not_touched(site: Field) -> None:
    """UDP to the same port number arrives whole while the broker's port is flooded."""
    site.attach()
    site.start_broker()
    script = (
        "import socket, sys\n"
        "udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); udp.bind(('0.0.0.0', 7447)); udp.settimeout(5)\n"
        "udp.setsockopt(socket.SOL_SOCKET, 33, 1 << 24)  # SO_RCVBUFFORCE\n"
        "print('ready', flush=True)\nn = 0\n"
        "try:\n    while True:\n        udp.recv(2048); n += 1\n"
        "except TimeoutError:\n    print(n)\n"
    )
    syns = floods(site)["syn"]
    datagram = site.frame("h1", site.address("h1"), site.broker_address("h1"), UDP(sport=1, dport=PORT) / (b"x" * 64))
    receiver = subprocess.Popen(
        [*site.enter("broker"), sys.executable, "-c", script], stdout=subprocess.PIPE, text=True
    )
    assert receiver.stdout is not None
    assert receiver.stdout.readline() == "ready\n"
    flood = site.flood("x", syns, 20_000, 2)
    sent = site.flood("h1", [datagram], 2000, 1)
    answer, _ = sent.communicate()
    flood.wait()
    received = int(receiver.communicate()[0])
    counted = re.search(r'"sent": (\d+)', answer)
    assert counted is not None
    assert received == int(counted[1]) > 0


def test_a_vantage_that_dies_in_the_middle_of_a_batch_leaves_its_flow_and_the_broker_lives(site: Field) -> None:
    site.attach()
    site.start_broker()
    honest = site.vantage("h1")
    for _ in range(3):  # what may go wrong does so at some moments only
        before = site.packets()["proven"]
        other = site.vantage("h2", 0.00005)
        # Its batches are on the way, or wait for the identity limit.
        site.until(lambda before=before: site.packets()["proven"] > before + 150)
        other.kill()
        site.proven(1)
    assert site.broker is not None
    assert site.broker.poll() is None
    result = honest.end()
    assert whole(result)
    assert result["reconnects"] == 0


def test_it_stays_in_force_when_the_broker_is_killed(site: Field) -> None:
    site.attach()
    site.start_broker()
    vantage = site.vantage("h1")
    site.proven(1)
    assert site.broker is not None
    site.broker.send_signal(signal.SIGKILL)
    site.broker.wait()
    assert site.limits()["interfaces"][0] == {"name": "to-h1", "state": "attached", "mode": "native"}
    before = site.packets()["syn_over"]
    site.flood("x", floods(site)["syn"], RATE, 1).wait()
    assert site.packets()["syn_over"] > before
    # The dead broker's flow is still there; the next one clears it, and the vantage comes back.
    site.start_broker()
    site.proven(1)
    result = vantage.end()
    assert whole(result)
    assert result["reconnects"] >= 1


def test_renewals_lose_no_packet(site: Field) -> None:
    site.attach()
    site.start_broker()
    vantage = site.vantage("h1", 0.01)
    site.proven(1)
    plan = site.limits()["plan"]
    for _ in range(6):
        site.attach()
    assert site.limits()["plan"] == plan + 6
    result = vantage.end()
    assert whole(result)
    assert result["reconnects"] == 0
    # Every segment it sent was judged, and passed: none fell between two programs.
    seen = site.packets()
    assert sum(seen.values()) == segments(site, "h1")
    assert sum(seen[name] for name in DROPPED) == 0


def test_a_severed_link_is_repaired_by_the_watching_service(site: Field) -> None:
    interfaces = [word for name in ("h1", "h2") for word in ("--interface", site.device(name))]
    manifests = ("--manifests", str(site.site.manifests), "--operator", site.site.operator)
    command = [
        *site.enter("broker"), sys.executable, "-m", "mvps.cli.main", "broker", "attach", "--watch", *interfaces,
        "--limiter", str(site.pins), *manifests,
    ]  # fmt: skip
    with open(site.folder / "watch.log", "wb") as log:
        watch = subprocess.Popen(command, stderr=log, env=site._environment())
    try:
        site.until(lambda: (site.pins / "v1/limits").exists())
        site.start_broker()
        vantage = site.vantage("h1")
        site.proven(1)
        site.lab.ip("broker", "link", "del", site.device("h1"))
        site.until(lambda: site.limits()["interfaces"][0]["state"] == "severed")
        shown = site.mvps("broker", "limits", "--limiter", str(site.pins), check=False)
        assert shown.returncode == 1
        assert "! to-h1: severed" in shown.stdout
        site.connect("h1")
        site.until(lambda: site.limits()["interfaces"][0]["state"] == "attached")
        result = vantage.end()
        assert whole(result)
        # Killed, the watcher takes nothing with it.
        watch.kill()
        watch.wait()
        assert {one["state"] for one in site.limits()["interfaces"]} == {"attached"}
    finally:
        watch.kill()
        watch.wait()
    assert "severed" in (site.folder / "watch.log").read_text()


def test_a_limiter_that_is_attached_later_knows_the_open_connections(site: Field) -> None:
    site.start_broker()
    vantage = site.vantage("h1")
    site.attach()
    site.proven(1)
    site.flood("x", floods(site)["stranger"], RATE, 2).wait()
    result = vantage.end()
    assert whole(result)
    assert result["reconnects"] == 0


def test_metrics_show_it(site: Field) -> None:
    site.attach()
    site.start_broker()
    site.vantage("h1")
    site.proven(1)
    site.flood("x", floods(site)["syn"], RATE, 1).wait()
    fetch = "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:9466/metrics').read().decode())"
    text = subprocess.run(
        [*site.enter("broker"), sys.executable, "-c", fetch], capture_output=True, text=True, check=True
    ).stdout
    assert "mvps_limiter_proven_flows 1.0" in text
    assert "mvps_limiter_failing 0.0" in text
    assert 'mvps_limiter_interface{interface="to-h1",mode="native",state="attached"} 1.0' in text
    assert 'mvps_limiter_packets_total{verdict="syn_over"}' in text
    assert f'mvps_limiter_source_packets{{source="{site.source("h1")}"}}' in text
    manual = (Path(__file__).parents[2] / "docs/operations.md").read_text()
    names = set(re.findall(r"^# TYPE (mvps_limiter\w*)", text, re.MULTILINE))
    assert len(names) == 8
    assert [name for name in names if not re.search(rf"\b{name}\b", manual)] == []


def test_detach_ends_it_and_the_stream_goes_on(site: Field) -> None:
    site.attach()
    site.start_broker()
    vantage = site.vantage("h1")
    site.proven(1)
    site.mvps("broker", "detach", "--limiter", str(site.pins))
    assert not site.pins.exists()
    assert site.mvps("broker", "limits", "--limiter", str(site.pins), check=False).returncode == 3
    time.sleep(1.2)  # the broker looks for the limiter once a second
    result = vantage.end()
    assert whole(result)
    assert result["reconnects"] == 0


def test_the_generator_floods_nothing_but_veth(tmp_path: Path) -> None:
    from field import generator

    frames = tmp_path / "frames"
    frames.write_bytes(b"\x10\0\0\0" + bytes(16))
    done = subprocess.run([generator(), "lo", frames, "1", "1"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert socket.if_nametoindex("lo") == 1
