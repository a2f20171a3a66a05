# SPDX-License-Identifier: Apache-2.0
"""The broker's side: who is proven, on a real pinned map."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path

import pytest
from table import plan_of
from test_attach import NOBODY, folder, interface, nobody  # noqa: F401 - fixtures

from mvps.limiter import flows as module
from mvps.limiter import layout
from mvps.limiter.attach import attach, detach, pins
from mvps.limiter.flows import Flows, parse_peer
from mvps.probes import libbpf
from mvps.probes.libbpf import BpfMap

A, B = "ipv4:10.0.0.5:1024", "ipv6:%5B2001:db8::5%5D:1024"


@pytest.mark.parametrize(
    ("peer", "expected"),
    [
        ("ipv4:10.0.0.5:1024", ("10.0.0.5", 1024)),
        ("ipv6:[2001:db8::5]:1024", ("2001:db8::5", 1024)),
        ("ipv6:%5B2001:db8::5%5D:1024", ("2001:db8::5", 1024)),
        ("ipv6:%5B::ffff:10.0.0.5%5D:1024", ("10.0.0.5", 1024)),
        ("ipv6:%5Bfe80::1%25eth0%5D:1024", ("fe80::1", 1024)),
    ],
)
def test_peers_as_grpc_writes_them(peer: str, expected: tuple[str, int]) -> None:
    assert parse_peer(peer) == (ipaddress.ip_address(expected[0]), expected[1])


@pytest.mark.parametrize(
    "peer",
    ["", "unix:", "unix:/run/x", "ipv4:", "ipv4:10.0.0.5", "ipv4:10.0.0.5:0", "ipv4:10.0.0.5:99999", "ipv4:x:1",
     "unknown", "dns:host:5"],
)  # fmt: skip
def test_what_is_no_tcp_peer(peer: str) -> None:
    assert parse_peer(peer) is None


def entries(folder: Path) -> set[bytes]:  # noqa: F811
    with BpfMap(libbpf.open_pin(pins(folder) / "flows")) as flows:
        return set(flows.all_keys())


def key(peer: str) -> bytes:
    parsed = parse_peer(peer)
    assert parsed is not None
    return layout.flow_key(*parsed)


@pytest.fixture
def installed(folder: Path, interface: str) -> Path:  # noqa: F811
    attach(folder, [interface], plan_of())
    return folder


@pytest.mark.kernel
def test_a_peer_is_proven_until_its_last_stream_ends(installed: Path) -> None:
    flows = Flows(installed)
    flows.prove(A, 1)
    flows.prove(A, 1)
    flows.prove(A, 2)
    flows.prove(B, 3)
    flows.prove("unix:", 4)
    assert entries(installed) == {key(A), key(B)}
    flows.forget(A, 1)
    assert key(A) in entries(installed)
    flows.forget(A, 77)  # a stream that never proved anything
    assert key(A) in entries(installed)
    flows.forget(A, 2)
    flows.forget(A, 2)
    assert entries(installed) == {key(B)}
    assert len(flows) == 1
    flows.close()
    assert entries(installed) == set()


@pytest.mark.kernel
def test_what_a_dead_broker_left_is_cleared(installed: Path) -> None:
    Flows(installed).prove(A, 1)  # and is never closed
    assert entries(installed) == {key(A)}
    flows = Flows(installed)
    assert entries(installed) == set()
    flows.close()


@pytest.mark.kernel
def test_a_second_proof_does_not_refill_the_budget(installed: Path) -> None:
    flows = Flows(installed)
    flows.prove(A, 1)
    with BpfMap(libbpf.open_pin(pins(installed) / "flows")) as one:
        one.put(key(A), layout.FLOW.pack(123, 4, 1, 0, 1, 0))
        flows.prove(A, 2)
        assert layout.FLOW.unpack(one.get(key(A)) or b"")[:2] == (123, 4)
    flows.close()


@pytest.mark.kernel
def test_a_limiter_that_comes_later_learns_who_is_proven(folder: Path, interface: str) -> None:  # noqa: F811
    flows = Flows(folder)
    assert "attach" in flows.trouble
    flows.prove(A, 1)
    attach(folder, [interface], plan_of())
    flows.refresh()
    assert flows.trouble == ""
    assert entries(folder) == {key(A)}
    detach(folder)
    flows.refresh()
    assert "attach" in flows.trouble
    flows.prove(B, 2)
    attach(folder, [interface], plan_of())
    flows.refresh()
    assert entries(folder) == {key(A), key(B)}
    # A new plan is not a new limiter.
    attach(folder, [interface], plan_of("10.0.0.0/8"))
    flows.refresh()
    assert entries(folder) == {key(A), key(B)}
    flows.close()


@pytest.mark.kernel
def test_peers_beyond_the_map_are_counted(
    folder: Path,  # noqa: F811
    interface: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mvps.limiter.attach.MAX_FLOWS", 2)
    attach(folder, [interface], plan_of())
    flows = Flows(folder)
    for number in range(5):
        flows.prove(f"ipv4:10.0.0.5:{1024 + number}", number)
    assert dict(flows.refused) == {"full": 3}
    for number in range(5):
        flows.forget(f"ipv4:10.0.0.5:{1024 + number}", number)
    assert entries(folder) == set()
    flows.close()


@pytest.mark.kernel
def test_a_broker_without_privilege_proves_its_peers(installed: Path, tmp_path: Path) -> None:
    for path in (installed, pins(installed), pins(installed) / "flows"):
        os.chown(path, -1, NOBODY)
    for path in (tmp_path, *tmp_path.parents[:3]):
        if path != Path("/tmp"):
            path.chmod(path.stat().st_mode | 0o011)
    with nobody():
        flows = Flows(installed)
        assert flows.trouble == ""
        flows.prove(A, 1)
    assert entries(installed) == {key(A)}
    with nobody():
        flows.forget(A, 1)
        flows.close()
    assert entries(installed) == set()


@pytest.mark.kernel
def test_a_broker_that_may_not_write_says_so(installed: Path) -> None:
    with nobody():
        flows = Flows(installed)
        assert "group" in flows.trouble
        flows.prove(A, 1)  # and goes on
    flows.close()


@pytest.mark.kernel
async def test_it_follows_the_limiter_by_itself(
    folder: Path,  # noqa: F811
    interface: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import asyncio

    monkeypatch.setattr(module, "_LOOK_EVERY_S", 0.01)
    flows = Flows(folder)
    flows.prove(A, 1)
    task = asyncio.create_task(flows.run())
    attach(folder, [interface], plan_of())
    async with asyncio.timeout(30):
        while entries(folder) != {key(A)}:
            await asyncio.sleep(0.01)
    task.cancel()
    flows.close()
