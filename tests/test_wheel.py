# SPDX-License-Identifier: Apache-2.0
"""What a wheel ships: installing it must need neither clang nor protoc."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_wheel_carries_objects_and_generated_code(tmp_path: Path) -> None:
    # Without build isolation: what the build needs is installed here, and nothing is fetched.
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    objects = {
        f"mvps/probes/bpf/{source.name.replace('.bpf.c', '.bpf.o')}" for source in (ROOT / "bpf").glob("*.bpf.c")
    }
    protos = {
        f"mvps/v1/{p.stem}_{kind}.py" for p in (ROOT / "proto/mvps/v1").glob("*.proto") for kind in ("pb2", "pb2_grpc")
    }
    assert objects | protos | {"mvps/py.typed", "mvps/v1/__init__.py"} <= names
    assert not [name for name in names if not name.startswith(("mvps/", "mvps-"))]
    assert not [name for name in names if "__pycache__" in name]
