# SPDX-License-Identifier: Apache-2.0
"""Reading the pinned limiter."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path

import pytest
from table import packets, plan_of
from test_attach import folder, interface, nobody, program_of  # noqa: F401 - fixtures
from test_program import frame, from_host, ip6, tcp

from mvps.limiter import counters, layout
from mvps.limiter.attach import LimiterError, NotAttachedError, Place, attach, pins
from mvps.probes import libbpf
from mvps.probes.libbpf import BpfMap

pytestmark = pytest.mark.kernel


def run(folder: Path, interface: str, packet: bytes, repeat: int = 1) -> None:  # noqa: F811
    """Have the attached program judge a packet."""
    fd = libbpf.library().bpf_prog_get_fd_by_id(program_of(folder, interface)[1])
    try:
        libbpf.run_packet(fd, packet, repeat)
    finally:
        os.close(fd)


def test_what_was_judged_is_read_back(folder: Path, interface: str) -> None:  # noqa: F811
    made = plan_of("10.0.0.0/24", "2001:db8::/32", handshake=packets(0), flow=packets(2), total=packets(1))
    attach(folder, [interface], made)
    with BpfMap(libbpf.open_pin(pins(folder) / "flows")) as flows:
        flows.put(layout.flow_key(ipaddress.ip_address("10.0.0.5"), 5555), layout.new_flow(1))
    run(folder, interface, from_host("S"), 200)
    run(folder, interface, from_host("A", sport=1), 70)
    run(folder, interface, from_host("S", "203.0.113.9"), 30)
    run(folder, interface, frame(ip6(), tcp("S")), 10)
    run(folder, interface, from_host(), 3)
    reading = counters.read(folder)
    assert reading.places == [Place(interface, "attached", "native")]
    assert (reading.port, reading.plan, reading.flow, reading.host) == (7447, 1, made.flow, made.host)
    assert {name: seen for name, seen in reading.verdicts.items() if seen[0]} == {
        "proven": (1, 54),
        "prefix_over": (1, 54),
        "flow_over": (1, 54),
        "syn_over": (240, 230 * 54 + 10 * 74),
        "stranger_over": (70, 70 * 54),
    }
    assert (reading.passed(), reading.dropped()) == (1, 312)
    assert counters.proven_flows(folder) == 1
    drops = {str(drop.prefix): (drop.syn, drop.other, drop.proven) for drop in counters.prefix_drops(folder)}
    assert drops == {"10.0.0.0/24": (200, 70, 1), "None": (30, 0, 0), "2001:db8::/32": (10, 0, 0)}
    assert str(reading.sources[0].network) == "10.0.0.5/32"
    assert counters.read(folder, top=1).sources == reading.sources[:1]


def test_counters_outlive_a_plan(folder: Path, interface: str) -> None:  # noqa: F811
    attach(folder, [interface], plan_of(handshake=packets(0)))
    run(folder, interface, from_host("S"), 100)
    attach(folder, [interface], plan_of("10.0.0.0/24", handshake=packets(0)))
    run(folder, interface, from_host("S"), 100)
    assert counters.read(folder).verdicts["syn_over"][0] == 200
    # Those of prefixes belong to the plan.
    assert [drop.syn for drop in counters.prefix_drops(folder)] == [100]


def test_without_a_limiter_or_permission_it_says_so(folder: Path, interface: str) -> None:  # noqa: F811
    for reader in (counters.read, counters.proven_flows, counters.prefix_drops):
        with pytest.raises(NotAttachedError):
            reader(folder)
    attach(folder, [interface], plan_of())
    with nobody(), pytest.raises(LimiterError, match="may not read"):
        counters.read(folder)


def test_a_member_of_the_group_reads_without_privilege(folder: Path, interface: str, tmp_path: Path) -> None:  # noqa: F811
    attach(folder, [interface], plan_of())
    for path in (folder, pins(folder), *pins(folder).iterdir()):
        os.chown(path, -1, 65534)
    for path in (tmp_path, *tmp_path.parents[:3]):
        if path != Path("/tmp"):
            path.chmod(path.stat().st_mode | 0o011)
    with nobody():
        assert counters.read(folder).places == [Place(interface, "attached", "native")]
        assert counters.proven_flows(folder) == 0
        assert counters.prefix_drops(folder) == []
