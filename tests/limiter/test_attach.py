# SPDX-License-Identifier: Apache-2.0
"""Attaching, renewing, repairing and removing on real interfaces."""

from __future__ import annotations

import itertools
import os
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from table import packets, plan_of

from mvps.limiter import layout
from mvps.limiter.attach import (
    LimiterError,
    Mode,
    NotAttachedError,
    Place,
    Watcher,
    attach,
    detach,
    pins,
    states,
)
from mvps.probes import libbpf
from mvps.probes.libbpf import BpfMap

pytestmark = pytest.mark.kernel
_NUMBERS = itertools.count()
NOBODY = 65534


def make(name: str, kind: str = "veth") -> None:
    peer = ("peer", "name", f"{name}p") if kind == "veth" else ()
    subprocess.run(["ip", "link", "add", name, "type", kind, *peer], check=True)


def remove(name: str) -> None:
    subprocess.run(["ip", "link", "del", name], check=False, stderr=subprocess.DEVNULL)


@pytest.fixture
def interface() -> Iterator[str]:
    name = f"ml{os.getpid() % 100_000}x{next(_NUMBERS)}"
    make(name)
    yield name
    remove(name)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "pins"
    with suppress(NotAttachedError):
        detach(tmp_path / "pins")


@contextmanager
def nobody() -> Iterator[None]:
    """Without any privilege."""
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def program_of(folder: Path, interface: str) -> tuple[int, int]:
    """Ids of the interface's link and of the program in it."""
    link = libbpf.open_pin(pins(folder) / layout.link_name(interface))
    try:
        info = libbpf.link_info(link)
        return int(info.id), int(info.prog_id)
    finally:
        os.close(link)


def test_attach_reports_the_mode_it_got(folder: Path, interface: str) -> None:
    assert attach(folder, [interface], plan_of()) == [Place(interface, "attached", "native")]
    assert states(folder) == [Place(interface, "attached", "native")]


def test_generic_is_used_only_when_asked(folder: Path, interface: str) -> None:
    assert attach(folder, [interface], plan_of(), Mode.GENERIC) == [Place(interface, "attached", "generic")]


def test_a_driver_without_native_xdp_is_refused_and_nothing_is_left(folder: Path) -> None:
    with pytest.raises(LimiterError, match="--mode generic") as caught:
        attach(folder, ["lo"], plan_of())
    assert "the driver of lo" in str(caught.value)
    assert not folder.exists()


def test_an_interface_that_is_not_there_is_named(folder: Path) -> None:
    with pytest.raises(LimiterError, match="no interface nothere0"):
        attach(folder, ["nothere0"], plan_of())
    assert not folder.exists()


def test_another_program_is_named_and_stays(folder: Path, interface: str, tmp_path: Path) -> None:
    attach(tmp_path / "other", [interface], plan_of())
    before = program_of(tmp_path / "other", interface)
    try:
        with pytest.raises(LimiterError, match=rf"{interface} already runs the XDP program limiter \(id {before[1]},"):
            attach(folder, [interface], plan_of())
        assert program_of(tmp_path / "other", interface) == before
    finally:
        detach(tmp_path / "other")


def test_one_interface_that_refuses_leaves_the_others_as_they_were(folder: Path, interface: str) -> None:
    attach(folder, [interface], plan_of())
    before = program_of(folder, interface)
    with pytest.raises(LimiterError):
        attach(folder, [interface, "lo"], plan_of())
    assert program_of(folder, interface) == before
    assert [place.interface for place in states(folder)] == [interface]


def test_renewal_replaces_the_program_in_the_same_link_and_keeps_flows_and_counters(
    folder: Path, interface: str
) -> None:
    attach(folder, [interface], plan_of("10.0.0.0/8"))
    link, program = program_of(folder, interface)
    key = layout.FLOW_KEY.pack(bytes(16), b"\0\1")
    with BpfMap(libbpf.open_pin(pins(folder) / "flows")) as flows:
        flows.put(key, layout.new_flow(1))
        kept = flows.map_id
    attach(folder, [], plan_of("10.0.0.0/8", "192.0.2.0/24"))
    again = program_of(folder, interface)
    assert again[0] == link
    assert again[1] != program
    with BpfMap(libbpf.open_pin(pins(folder) / "flows")) as flows:
        assert flows.map_id == kept
        assert flows.all_keys() == [key]
    with BpfMap(libbpf.open_pin(pins(folder) / "limits", read_only=True)) as limits:
        values = layout.LIMITS.unpack(limits.get(layout.INDEX.pack(0)) or b"")
        assert values[7] == 2  # the second plan
    assert sorted(path.name for path in pins(folder).iterdir()) == sorted(
        [*layout.PLAN_MAPS, *layout.LASTING_MAPS, layout.link_name(interface)]
    )


def test_who_may_read_and_write(folder: Path, interface: str) -> None:
    attach(folder, [interface], plan_of())
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in pins(folder).iterdir()}
    assert modes == {**layout.PLAN_MAPS, **layout.LASTING_MAPS, layout.link_name(interface): 0o600}
    assert stat.S_IMODE(pins(folder).stat().st_mode) == 0o750
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750
    with nobody(), pytest.raises(LimiterError, match="member of the group"):
        states(folder)


def test_a_severed_interface_is_shown_and_repaired(folder: Path, interface: str) -> None:
    said: list[str] = []
    watcher = Watcher(folder, [interface], lambda: plan_of(), Mode.NATIVE, said.append)
    watcher.step()
    assert said == [f"limiter in force for port 7447, 0 prefixes: {interface} attached native"]
    remove(interface)
    assert states(folder) == [Place(interface, "severed", "")]
    watcher.step()
    watcher.step()
    assert said[1:] == [f"severed: {interface} is gone; attached again when it is back"]
    make(interface)
    assert states(folder) == [Place(interface, "severed", "")]  # it is another device of that name
    watcher.step()
    assert states(folder) == [Place(interface, "attached", "native")]
    assert [line.split(":")[0] for line in said[2:]] == ["severed", "limiter in force for port 7447, 0 prefixes"]


def test_a_watcher_waits_for_an_interface_that_is_not_there_yet(folder: Path, interface: str) -> None:
    said: list[str] = []
    late = f"{interface}l"
    watcher = Watcher(folder, [interface, late], lambda: plan_of(), Mode.NATIVE, said.append)
    watcher.step()
    assert states(folder) == [Place(interface, "attached", "native")]
    assert said[-1] == f"severed: {late} is gone; attached again when it is back"
    make(late)
    try:
        watcher.step()
        assert {place.state for place in states(folder)} == {"attached"}
        assert len(states(folder)) == 2
    finally:
        remove(late)


def test_a_watcher_puts_a_new_plan_in_force_once(folder: Path, interface: str) -> None:
    said: list[str] = []
    plans = [plan_of(), plan_of(), plan_of("10.0.0.0/8"), plan_of("10.0.0.0/8")]
    watcher = Watcher(folder, [interface], lambda: plans.pop(0), Mode.NATIVE, said.append)
    programs = []
    for _ in range(4):
        watcher.step()
        programs.append(program_of(folder, interface)[1])
    assert programs[0] == programs[1] != programs[2] == programs[3]
    assert ["0 prefixes" in line for line in said] == [True, False]


def test_a_watcher_puts_back_what_was_removed(folder: Path, interface: str) -> None:
    watcher = Watcher(folder, [interface], lambda: plan_of(), Mode.NATIVE, lambda line: None)
    watcher.step()
    detach(folder)
    watcher.step()
    assert states(folder) == [Place(interface, "attached", "native")]


def test_interfaces_with_dots_in_their_names(folder: Path, interface: str) -> None:
    tagged = f"{interface[:9]}.7"
    subprocess.run(["ip", "link", "add", "link", interface, "name", tagged, "type", "vlan", "id", "7"], check=False)
    if not Path(f"/sys/class/net/{tagged}").exists():
        make(tagged)
    try:
        attach(folder, [tagged], plan_of(), Mode.GENERIC)
        assert states(folder) == [Place(tagged, "attached", "generic")]
        assert detach(folder) == [tagged]
    finally:
        remove(tagged)


def test_detach_leaves_nothing(folder: Path, interface: str) -> None:
    attach(folder, [interface], plan_of())
    assert detach(folder) == [interface]
    assert not folder.exists()
    index = int(Path(f"/sys/class/net/{interface}/ifindex").read_text())
    assert libbpf.query_xdp(index).attach_mode == 0
    with pytest.raises(NotAttachedError, match="nothing to remove"):
        detach(folder)
    with pytest.raises(NotAttachedError, match="attach --interface"):
        states(folder)


def test_without_privilege_attaching_says_what_it_needs(tmp_path: Path, interface: str) -> None:
    tmp_path.chmod(0o755)
    with nobody(), pytest.raises(LimiterError, match="needs root"):
        attach(tmp_path / "pins", [interface], plan_of())


def test_what_is_in_force_drops(folder: Path, interface: str) -> None:
    """From the peer's side, through the real driver: a SYN beyond the budget does not arrive."""
    from test_program import FRAMES

    attach(folder, [interface], plan_of(handshake=packets(2)))
    for name in (interface, f"{interface}p"):
        subprocess.run(["ip", "link", "set", name, "up"], check=True)
    import socket

    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
        wire.bind((f"{interface}p", 0))
        for _ in range(5):
            wire.send(FRAMES["a SYN to the port"][0])
    with BpfMap(libbpf.open_pin(pins(folder) / "verdicts", read_only=True)) as verdicts:
        cells = layout.VERDICT_CELL.iter_unpack(verdicts.get(layout.INDEX.pack(0)) or b"")
        sums = dict(zip(layout.VERDICTS, [sum(column) for column in zip(*cells, strict=True)], strict=False))
    # A budget per CPU, and the sender may have moved.
    assert sums["syn"] + sums["syn_over"] == 5
    assert 2 <= sums["syn"] <= 4
