# SPDX-License-Identifier: Apache-2.0
"""Build step of the wheel: BPF objects from bpf/ and protobuf code from proto/.

Runs as hatchling's build hook (wheel and editable install) and as a script
(``python packaging/build_hook.py``), so that a changed ``.bpf.c`` or ``.proto`` needs no reinstall.
Building needs clang and libbpf's headers; installing the wheel needs neither.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).resolve().parent.parent
OBJECTS = ROOT / "agent/mvps/probes/bpf"
GENERATED = ROOT / "agent/mvps/v1"

# -mcpu=v3: atomics with fetch and 32-bit jumps, in every kernel since 5.12 (our floor is 6.1).
# -g: BTF, which CO-RE relocations and the cell layouts read by user space come from.
CFLAGS = ["-target", "bpf", "-mcpu=v3", "-g", "-O2", "-Wall", "-Werror", "-D__TARGET_ARCH_x86"]


def build_bpf() -> None:
    """Compile every ``bpf/*.bpf.c`` whose sources are newer than its object."""
    clang = shutil.which("clang")
    if clang is None:
        raise SystemExit("building the BPF objects needs clang: apt-get install clang llvm libbpf-dev")
    OBJECTS.mkdir(parents=True, exist_ok=True)
    newest_header = max(h.stat().st_mtime for h in (ROOT / "bpf").glob("*.h"))
    strip = shutil.which("llvm-strip")
    for source in sorted((ROOT / "bpf").glob("*.bpf.c")):
        target = OBJECTS / source.name.replace(".bpf.c", ".bpf.o")
        stamp = max(source.stat().st_mtime, newest_header)
        if target.exists() and target.stat().st_mtime > stamp:
            continue
        # Relative source path: the object's line info must not carry the builder's directory.
        subprocess.run([clang, *CFLAGS, "-c", f"bpf/{source.name}", "-o", str(target)], cwd=ROOT, check=True)
        if strip:  # DWARF is 80 % of the file; .BTF stays
            subprocess.run([strip, "-g", str(target)], check=True)


def build_proto() -> None:
    """Generate ``mvps/v1/*_pb2.py``, their stubs and the gRPC code."""
    import grpc_tools
    from grpc_tools import protoc

    sources = sorted((ROOT / "proto/mvps/v1").glob("*.proto"))
    newest = max((s.stat().st_mtime for s in sources), default=0.0)
    marker = GENERATED / "__init__.py"
    if not sources or (marker.exists() and marker.stat().st_mtime > newest):
        return
    GENERATED.mkdir(parents=True, exist_ok=True)
    include = Path(grpc_tools.__file__).parent / "_proto"
    out = ROOT / "agent"
    arguments = ["protoc", f"-I{ROOT / 'proto'}", f"-I{include}", f"--python_out={out}", f"--pyi_out={out}"]
    arguments += [f"--grpc_python_out={out}", *(str(s) for s in sources)]
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc failed")
    marker.write_text("# Generated from proto/mvps/v1 by packaging/build_hook.py.\n")


class BuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Hatchling's entry point."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Generate everything before the files are collected."""
        build_bpf()
        build_proto()


if __name__ == "__main__":
    build_bpf()
    build_proto()
    sys.exit(0)
