# SPDX-License-Identifier: Apache-2.0
"""The maps' bytes as Python has them, against the object the kernel side was compiled to."""

from __future__ import annotations

import ipaddress
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from table import plan_of

from mvps.limiter import layout, plan
from mvps.limiter.attach import OBJECT
from mvps.probes.libbpf import BpfObject

SOURCE = Path(__file__).resolve().parents[2] / "bpf/limiter.bpf.c"


@pytest.mark.parametrize(
    ("name", "layout_here"),
    [
        ("flow_key", layout.FLOW_KEY),
        ("flow", layout.FLOW),
        ("limits", layout.LIMITS),
        ("shard", layout.SHARD),
        ("handshake", layout.HANDSHAKE),
        ("source", layout.SOURCE),
        ("verdict_cell", layout.VERDICT_CELL),
    ],
)
def test_structs_have_the_size_of_the_kernel_sides(name: str, layout_here: struct.Struct) -> None:
    with BpfObject(OBJECT) as program:
        assert program.btf.dtype(name).itemsize == layout_here.size


def test_limits_land_in_the_fields_they_are_meant_for() -> None:
    made = plan_of("10.0.0.0/8", "10.0.0.5/32", "2001:db8::/32")
    with BpfObject(OBJECT) as program:
        (read,) = np.frombuffer(layout.pack_limits(made, 3, 77), dtype=program.btf.dtype("limits"))
    assert (read["plan"], read["program"], read["port"], read["idle_ns"]) == (3, 77, made.port, made.idle_ns)
    assert read["flow"]["packet_ns"] == made.flow.packet_ns
    assert read["host"]["burst_ns"] == made.host.burst_ns
    assert (read["masks4"], read["masks6"]) == (2, 1)
    assert [int(mask).to_bytes(4, "little") for mask in read["mask4"][:3]] == [
        b"\xff\xff\xff\xff",
        b"\xff\0\0\0",
        bytes(4),
    ]
    assert read["mask6"][0]["length"] == 32
    assert read["mask6"][0]["mask"].tobytes() == b"\xff\xff\xff\xff" + bytes(12)


def test_a_shard_lands_in_the_fields_it_is_meant_for() -> None:
    price = plan.Price(1, 2, 3), plan.Price(4, 5, 6)
    with BpfObject(OBJECT) as program:
        (read,) = np.frombuffer(layout.pack_shard(*price), dtype=program.btf.dtype("shard"))
    assert read["handshake"]["byte_ns_x1024"] == 2
    assert read["total"]["burst_ns"] == 6
    assert (read["spent"], read["dropped"]) == (0, 0)


def test_names_of_verdicts_are_those_of_the_source() -> None:
    found = re.search(r"enum verdict \{(.*?)\};", SOURCE.read_text(), re.DOTALL)
    assert found is not None
    names = [name.lower() for name in re.findall(r"VERDICT_(\w+)", found[1])]
    assert tuple(names) == layout.VERDICTS


def test_limits_of_plans_are_those_of_the_source() -> None:
    found = re.search(r"#define MAX_LENGTHS\s+(\d+)", SOURCE.read_text())
    assert found is not None
    assert int(found[1]) == plan.MAX_LENGTHS


@pytest.mark.parametrize(
    "prefix", ["10.0.0.0/8", "0.0.0.0/0", "10.0.0.5/32", "2001:db8::/29", "::/0", "2001:db8::1/128"]
)
def test_prefix_keys_read_back(prefix: str) -> None:
    network = ipaddress.ip_network(prefix)
    assert layout.prefix_of(layout.prefix_key(network)) == network


@pytest.mark.parametrize("address", ["10.0.0.5", "2001:db8::1", "::1"])
def test_addresses_read_back(address: str) -> None:
    assert layout.unmapped(layout.mapped(ipaddress.ip_address(address))) == ipaddress.ip_address(address)


@pytest.mark.parametrize("interface", ["eth0", "eth0.100", "br-lan", "a%b", "link_x"])
def test_links_are_named_without_dots_and_read_back(interface: str) -> None:
    name = layout.link_name(interface)
    assert "." not in name
    assert layout.interface_of(name) == interface


def test_other_pins_are_no_links() -> None:
    assert [layout.interface_of(name) for name in (*layout.PLAN_MAPS, *layout.LASTING_MAPS)] == [None] * 8
