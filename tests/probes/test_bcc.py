# SPDX-License-Identifier: Apache-2.0
"""The second loader: when it is chosen, what it refuses, and that the same sources compile and load by it here.

On this host there may be headers of another kernel only, under which offsets are wrong: what reads the kernel's structs
is compiled and loaded, and only irq, which reads none, is compared event by event. All signals are compared in the
virtual machine, whose kernel has its own headers (tests/vm).
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from mvps.probes import bcc
from mvps.probes.bcc import BccObject
from mvps.probes.libbpf import BpfError
from mvps.vantages.cells import object_path

RELEASE = "6.1.0-9-amd64"
HEADERS = sorted(Path("/usr/src").glob("linux-headers-*-amd64"))
# In a mount namespace of its own: headers under the running kernel's name, which no other process sees.
PRETEND = """
mkdir -p /lib/modules && mount -t tmpfs none /lib/modules && mkdir /lib/modules/$(uname -r)
ln -s {arch} /lib/modules/$(uname -r)/build
ln -s {common} /lib/modules/$(uname -r)/source
exec "$@"
"""
LOAD_ALL = """
import json
from mvps.probes import bcc
from mvps.probes.libbpf import BpfError, BpfObject
from mvps.vantages.cells import object_path
found, refused = {}, []
for name in ("mm", "blk", "sock", "irq", "path"):
    one = bcc.BccObject(object_path(name))
    try:
        one.load()
    except BpfError as error:
        refused.append(str(error))
        one.close()
        one = bcc.BccObject(object_path(name))
    one.compile()
    with BpfObject(object_path(name)) as other:
        found[name] = [sorted(one.program_fds()), sorted(other.programs())]
    one.close()
print(json.dumps([found, refused]))
"""
SAME_SOFTIRQS = """
import json, time
from mvps.probes import bcc
bcc.why_not = lambda *_: ""  # irq reads no struct of the kernel's, so any kernel's headers will do
from mvps.vantages.cells import Cells
core, compiled = Cells("irq", loader="core"), Cells("irq", loader="bcc")
core.read(), compiled.read()
time.sleep(2.0)
print(json.dumps([core.read().counters, compiled.read().counters]))
core.close(), compiled.close()
"""


def under_headers(program: str) -> str:
    arch = HEADERS[-1]
    common = Path(str(arch).replace("-amd64", "-common"))
    setting = PRETEND.format(arch=arch, common=common)
    command = ["unshare", "--mount", "sh", "-ec", setting, "sh", sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout


needs_bcc = pytest.mark.skipif(
    not (Path("/") / bcc._MODULE).exists() or not HEADERS,
    reason="needs python3-bpfcc and headers of some kernel: packaging/bootstrap.sh --dev",
)


def test_auto_is_core_wherever_the_kernel_has_btf(tmp_path: Path) -> None:
    assert bcc.chosen("auto", tmp_path) == "bcc"
    (tmp_path / "sys/kernel/btf").mkdir(parents=True)
    (tmp_path / "sys/kernel/btf/vmlinux").touch()
    assert bcc.chosen("auto", tmp_path) == "core"
    assert bcc.chosen("bcc", tmp_path) == "bcc"


def test_headers_of_another_kernel_are_refused(tmp_path: Path) -> None:
    assert "python3-bpfcc" in bcc.why_not(RELEASE, tmp_path)
    module = tmp_path / bcc._MODULE
    module.parent.mkdir(parents=True)
    module.touch()
    assert f"linux-headers-{RELEASE}" in bcc.why_not(RELEASE, tmp_path)
    stated = tmp_path / f"lib/modules/{RELEASE}/build/include/generated/utsrelease.h"
    stated.parent.mkdir(parents=True)
    stated.write_text('#define UTS_RELEASE "6.1.0-8-amd64"\n')
    assert "of kernel 6.1.0-8-amd64" in bcc.why_not(RELEASE, tmp_path)
    stated.write_text("")
    assert "of kernel ?" in bcc.why_not(RELEASE, tmp_path)
    stated.write_text(f'#define UTS_RELEASE "{RELEASE}"\n')
    assert bcc.why_not(RELEASE, tmp_path) == ""


def test_a_signal_that_needs_btf_says_so() -> None:
    sched = BccObject(object_path("sched"))
    try:
        with pytest.raises(BpfError, match="sched needs a kernel with BTF"):
            sched.load()
    finally:
        sched.close()


def test_an_unknown_constant_is_an_error() -> None:
    blk = BccObject(object_path("blk"))
    try:
        with pytest.raises(BpfError, match="no variable scope_nothing"):
            blk.set_constants({"scope_nothing": 1})
    finally:
        blk.close()


@pytest.mark.kernel
@needs_bcc
def test_every_shared_source_compiles_and_loads_and_wrong_headers_are_refused() -> None:
    found, refused = json.loads(under_headers(LOAD_ALL))
    for name, (compiled, built) in found.items():
        assert compiled == built, name
    if platform.release() not in str(HEADERS[-1]):
        assert len(refused) == len(found)
        assert all("the headers are of kernel" in words for words in refused)


@pytest.mark.kernel
@needs_bcc
def test_both_loaders_count_the_same_softirqs() -> None:
    core, compiled = json.loads(under_headers(SAME_SOFTIRQS))
    assert core["softirq_ns"] > 0
    # The two are read some tens of microseconds apart, and each also counts the other's.
    assert compiled["softirq_ns"] == pytest.approx(core["softirq_ns"], rel=0.2)
    assert compiled["unpaired"] <= 2


@pytest.mark.kernel
@needs_bcc
def test_what_the_compiler_said_comes_with_the_error(tmp_path: Path) -> None:
    for name in ("irq.bpf.o", "with_bcc.py", "common.h", "bcc.h"):
        (tmp_path / name).write_bytes((object_path("irq").parent / name).read_bytes())
    (tmp_path / "irq.bpf.c").write_text("this is no C\n")
    broken = BccObject(tmp_path / "irq.bpf.o")
    try:
        with pytest.raises(BpfError, match="compiling irq with bcc") as caught:
            broken.compile()
        assert caught.value.log
    finally:
        broken.close()


def test_a_system_python_without_bcc_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = tmp_path / "python3"
    fake.write_text('#!/bin/sh\necho "No module named bcc; apt-get install python3-bpfcc" >&2\nexit 1\n')
    fake.chmod(0o755)
    monkeypatch.setattr(bcc, "_PYTHON", str(fake))
    monkeypatch.setattr(bcc, "create_map", lambda *_: 0)
    irq = BccObject(object_path("irq"))
    try:
        with pytest.raises(BpfError, match="apt-get install python3-bpfcc"):
            irq.compile()
    finally:
        irq._maps.clear()  # they were not made
        irq.close()
