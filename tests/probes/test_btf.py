# SPDX-License-Identifier: Apache-2.0
"""The BTF reader against the objects we ship and against the kernel's own BTF."""

from __future__ import annotations

import ctypes
import struct
from pathlib import Path

import pytest

from mvps.coherence.observation import HIST_BINS
from mvps.probes.btf import Btf, BtfError
from mvps.probes.libbpf import BpfObject, LinkInfo, MapInfo, ProgInfo
from mvps.vantages.cells import object_path

SIGNALS = ("mm", "blk", "sock", "sched", "irq", "path")
VMLINUX = Path("/sys/kernel/btf/vmlinux")


@pytest.mark.parametrize("signal", SIGNALS)
def test_cells_are_whole_cache_lines_of_words(signal: str) -> None:
    with BpfObject(object_path(signal)) as opened:
        layout = opened.btf.dtype(f"{signal}_cell")
    assert layout.itemsize % 64 == 0
    assert layout.names
    assert all(offset % 8 == 0 for _, offset in layout.fields.values())
    if signal != "path":
        assert layout["hist"].shape == (HIST_BINS,)


def test_object_slots_are_key_events_amount() -> None:
    with BpfObject(object_path("mm")) as opened:
        slots = opened.btf.dtype("mm_cell")["objects"]
    assert slots.base.names == ("key", "events", "amount")
    assert slots.base.itemsize == 24


def test_unknown_names_are_named_in_the_error() -> None:
    with BpfObject(object_path("mm")) as opened:
        with pytest.raises(BtfError, match="no struct nothing"):
            opened.btf.dtype("nothing")
        with pytest.raises(BtfError, match="no variable nothing"):
            opened.btf.variable(".rodata", "nothing")


@pytest.mark.parametrize("data", [b"", b"\x9f\xeb", bytes(64), struct.pack("<HBBI", 0xEB9F, 1, 0, 24)])
def test_malformed_data_is_refused(data: bytes) -> None:
    with pytest.raises((BtfError, struct.error)):
        Btf(data).dtype("x")


@pytest.mark.skipif(not VMLINUX.exists(), reason="this kernel has no BTF")
def test_program_info_matches_the_kernels_layout() -> None:
    offsets = Btf(VMLINUX.read_bytes()).offsets("bpf_prog_info")
    ours = {name: getattr(ProgInfo, name).offset for name, _ in ProgInfo._fields_}
    ours.pop("flags")  # bit fields have no name of their own there
    assert {name: offsets[name] for name in ours} == ours
    assert ctypes.sizeof(ProgInfo) >= ours["verified_insns"] + 4


@pytest.mark.skipif(not VMLINUX.exists(), reason="this kernel has no BTF")
def test_enums_of_the_kernel() -> None:
    reasons = Btf(VMLINUX.read_bytes()).enum("skb_drop_reason")
    assert any(name.endswith("NOT_SPECIFIED") for name in reasons.values())


@pytest.mark.skipif(not VMLINUX.exists(), reason="this kernel has no BTF")
def test_map_info_is_laid_out_as_in_the_running_kernel() -> None:
    offsets = Btf(VMLINUX.read_bytes()).offsets("bpf_map_info")
    assert {name: getattr(MapInfo, name).offset for name, _ in MapInfo._fields_}.items() <= offsets.items()


@pytest.mark.skipif(not VMLINUX.exists(), reason="this kernel has no BTF")
def test_link_info_is_laid_out_as_in_the_running_kernel() -> None:
    offsets = Btf(VMLINUX.read_bytes()).offsets("bpf_link_info")
    for name in ("type", "id", "prog_id"):
        assert getattr(LinkInfo, name).offset == offsets[name]
    assert ctypes.sizeof(LinkInfo) >= 76
