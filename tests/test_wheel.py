# SPDX-License-Identifier: Apache-2.0
"""What a wheel ships: installing it must need neither clang nor protoc, and it says what it runs on."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # Without build isolation: what the build needs is installed here, and nothing is fetched.
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (made,) = folder.glob("*.whl")
    return made


def test_the_wheel_carries_objects_and_generated_code(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    objects = {
        f"mvps/probes/bpf/{source.name.replace('.bpf.c', '.bpf.o')}" for source in (ROOT / "bpf").glob("*.bpf.c")
    }
    protos = {
        f"mvps/v1/{p.stem}_{kind}.py" for p in (ROOT / "proto/mvps/v1").glob("*.proto") for kind in ("pb2", "pb2_grpc")
    }
    native = {"mvps/trust/_gate.abi3.so", "mvps/trust/_gate.pyi"}
    objects |= {f"mvps/probes/bpf/{name}" for name in ("mm.bpf.c", "common.h", "bcc.h", "with_bcc.py")}
    others = {"mvps/py.typed", "mvps/v1/__init__.py", "mvps/cli/made-up.as-rel.txt"}
    assert objects | protos | native | others <= names
    assert not [name for name in names if not name.startswith(("mvps/", "mvps-"))]
    assert not [name for name in names if "__pycache__" in name]


def test_the_wheel_says_which_machines_it_runs_on(wheel: Path) -> None:
    tag = f"cp311-abi3-{sysconfig.get_platform().replace('-', '_')}"
    assert wheel.name.endswith(f"-{tag}.whl")
    (name,) = [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".dist-info/WHEEL")]
    lines = zipfile.ZipFile(wheel).read(name).decode().splitlines()
    assert f"Tag: {tag}" in lines
    assert "Root-Is-Purelib: false" in lines


def test_the_native_gate_needs_only_the_stable_abi_and_libcrypto(wheel: Path, tmp_path: Path) -> None:
    made = zipfile.ZipFile(wheel).extract("mvps/trust/_gate.abi3.so", tmp_path)
    shown = subprocess.run(["readelf", "--dynamic", "--wide", made], check=True, capture_output=True, text=True).stdout
    needed = {line.split("[")[1].rstrip("]") for line in shown.splitlines() if "(NEEDED)" in line}
    assert {name.split(".so")[0] for name in needed} <= {"libcrypto", "libc"}
    assert "BIND_NOW" in shown
    assert str(ROOT).encode() not in Path(made).read_bytes()
    # In a process of its own, from the wheel and not from this tree.
    with zipfile.ZipFile(wheel) as whole:
        whole.extractall(tmp_path)
    program = "from mvps.trust import _gate; print(_gate.__file__, _gate.parse_header(b'').reason.label)"
    answer = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert answer.stdout.split() == [made, "truncated"]
