# SPDX-License-Identifier: Apache-2.0
"""The ctypes layer on the running kernel."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from mvps.coherence.observation import HIST_BINS, Scale
from mvps.probes import libbpf
from mvps.probes.btf import BtfError
from mvps.probes.libbpf import BpfError, BpfObject
from mvps.vantages.cells import object_path

pytestmark = pytest.mark.kernel


def test_version_is_one_point_something() -> None:
    assert libbpf.version().startswith("v1.")


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(BpfError, match="No such file"):
        BpfObject(tmp_path / "none.bpf.o")


def test_a_file_that_is_no_object_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "text.bpf.o"
    path.write_text("not an ELF file")
    with pytest.raises(BpfError):
        BpfObject(path)


def test_unknown_constant_and_map_are_errors() -> None:
    with BpfObject(object_path("mm")) as opened:
        with pytest.raises(BtfError, match="no variable nonsense"):
            opened.set_constants({"nonsense": 1})
        with pytest.raises(BpfError, match="no map nonsense"):
            opened.set_entries("nonsense", 4)


def test_loaded_programs_report_themselves() -> None:
    with BpfObject(object_path("blk")) as opened:
        opened.load()
        fds = opened.program_fds()
        assert set(fds) == {"blk_complete", "blk_issue", "blk_requeue"}
        info = libbpf.program_info(fds["blk_complete"])
        assert info.name == b"blk_complete"
        assert info.verified_insns > 0


def test_a_skipped_program_is_not_loaded() -> None:
    with BpfObject(object_path("blk")) as opened:
        opened.skip_program("blk_requeue")
        opened.load()
        assert "blk_requeue" not in opened.program_fds()


def test_view_spans_all_possible_cpus_and_writes_reach_the_map() -> None:
    cpus = libbpf.possible_cpus()
    with BpfObject(object_path("mm")) as opened:
        opened.set_entries("mm_cells", cpus)
        opened.load()
        cells = opened.view("mm_cells", "mm_cell")
        assert cells.shape == (cpus,)
        cells["stall_ns"][0] = 7
        again = opened.view("mm_cells", "mm_cell")
        assert again["stall_ns"][0] == 7
        del cells, again


def test_a_refused_program_names_itself_and_says_why(tmp_path: Path) -> None:
    source = tmp_path / "bad.bpf.c"
    source.write_text(
        '#include "common.h"\n'
        'SEC("tp_btf/sched_switch") int bad(void *ctx) { return *(int *)0; }\n'
        'char LICENSE[] SEC("license") = "GPL";\n'
    )
    bpf = Path(__file__).resolve().parents[2] / "bpf"
    command = ["clang", "-target", "bpf", "-g", "-O2", "-mcpu=v3", "-D__TARGET_ARCH_x86", f"-I{bpf}", "-c"]
    subprocess.run([*command, str(source), "-o", str(tmp_path / "bad.bpf.o")], check=True)
    with BpfObject(tmp_path / "bad.bpf.o") as opened, pytest.raises(BpfError, match=r"loading bad") as caught:
        opened.load()
    assert caught.value.log


def test_hist_slot_in_the_kernel_equals_bin_of(tmp_path: Path) -> None:
    """Feed severities to the C function through BPF_PROG_TEST_RUN and compare every bin with Python's rule."""
    source = tmp_path / "slot.bpf.c"
    source.write_text(
        '#include "common.h"\n'
        "struct pair { u64 value; u64 bin; };\n"
        "CELLS(pairs, struct pair);\n"
        'SEC("raw_tp") int slot(void *ctx) {\n'
        "    u32 zero = 0; struct pair *p = bpf_map_lookup_elem(&pairs, &zero);\n"
        "    if (p) p->bin = hist_slot(p->value, 10);\n"
        "    return 0;\n}\n"
        'char LICENSE[] SEC("license") = "GPL";\n'
    )
    bpf = Path(__file__).resolve().parents[2] / "bpf"
    command = ["clang", "-target", "bpf", "-g", "-O2", "-mcpu=v3", "-D__TARGET_ARCH_x86", f"-I{bpf}", "-c"]
    subprocess.run([*command, str(source), "-o", str(tmp_path / "slot.bpf.o")], check=True)
    scale = Scale("ns", 2.0**10, 0.0)
    draw = np.random.default_rng(1)
    values = [0, 1, 1023, 1024, 1279, 1280, 2**42, 2**63, *(int(2**e) for e in draw.uniform(0, 45, 200))]
    with BpfObject(tmp_path / "slot.bpf.o") as opened:
        opened.load()
        pairs = opened.view("pairs", "pair")
        for value in values:
            pairs["value"][0] = value
            libbpf.test_run(opened.program_fds()["slot"])
            assert int(pairs["bin"][0]) == scale.bin_of(float(value)), value
        del pairs
    assert scale.bin_of(2.0**63) == HIST_BINS - 1
