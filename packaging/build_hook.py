# SPDX-License-Identifier: Apache-2.0
"""Build step of the wheel: BPF objects from bpf/, protobuf code from proto/, the native gate from native/.

Runs as hatchling's build hook (wheel and editable install) and as a script
(``python packaging/build_hook.py``), so that a changed ``.bpf.c``, ``.proto`` or ``native/*.c`` needs no reinstall.
Building needs clang and the headers of libbpf, Python and OpenSSL; installing the wheel needs none of them.
"""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

if TYPE_CHECKING:
    from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto

ROOT = Path(__file__).resolve().parent.parent
OBJECTS = ROOT / "agent/mvps/probes/bpf"
GENERATED = ROOT / "agent/mvps/v1"
TRUST = ROOT / "agent/mvps/trust"
GATE = TRUST / "_gate.abi3.so"
SCHEMA = ROOT / "build/native/schema.h"
SNAPSHOT_PROTO = ROOT / "proto/mvps/v1/snapshot.proto"

# -mcpu=v3: atomics with fetch and 32-bit jumps, in every kernel since 5.12 (our floor is 6.1).
# -g: BTF, which CO-RE relocations and the cell layouts read by user space come from.
CFLAGS = ["-target", "bpf", "-mcpu=v3", "-g", "-O2", "-Wall", "-Werror", "-D__TARGET_ARCH_x86"]

BCC_FILES = ("bcc.h", "common.h", "with_bcc.py")

# Py_LIMITED_API: one object for Python 3.11 and everything after it.
NATIVE_CFLAGS = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-fstack-protector-strong", "-D_FORTIFY_SOURCE=2"]
NATIVE_CFLAGS += ["-fPIC", "-fvisibility=hidden", "-DPy_LIMITED_API=0x030b0000"]
NATIVE_LINK = ["-shared", "-Wl,-z,relro,-z,now,--as-needed", "-lcrypto"]
NATIVE_SOURCES = ["header.c", "snapshot.c", "envelope.c", "gate.c"]
ABI_TAG = "cp311-abi3"


def _clang() -> str:
    clang = shutil.which("clang")
    if clang is None:
        raise SystemExit("building needs clang: apt-get install clang llvm libbpf-dev python3-dev libssl-dev")
    return clang


def build_bpf() -> None:
    """Compile every ``bpf/*.bpf.c`` whose sources are newer than its object, and lay the sources beside it."""
    clang = _clang()
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
    # What bcc compiles on hosts whose kernel has no BTF (mvps.probes.bcc).
    for source in [*(ROOT / "bpf").glob("*.bpf.c"), *(ROOT / "bpf" / name for name in BCC_FILES)]:
        target = OBJECTS / source.name
        if not target.exists() or target.read_bytes() != source.read_bytes():
            shutil.copyfile(source, target)


def _protoc(sources: Iterable[Path], *outputs: str) -> None:
    import grpc_tools
    from grpc_tools import protoc

    include = Path(grpc_tools.__file__).parent / "_proto"
    if protoc.main(["protoc", f"-I{ROOT / 'proto'}", f"-I{include}", *outputs, *map(str, sources)]) != 0:
        raise SystemExit("protoc failed")


def build_proto() -> None:
    """Generate ``mvps/v1/*_pb2.py``, their stubs and the gRPC code."""
    sources = sorted((ROOT / "proto/mvps/v1").glob("*.proto"))
    newest = max((s.stat().st_mtime for s in sources), default=0.0)
    marker = GENERATED / "__init__.py"
    if not sources or (marker.exists() and marker.stat().st_mtime > newest):
        return
    GENERATED.mkdir(parents=True, exist_ok=True)
    out = ROOT / "agent"
    _protoc(sources, f"--python_out={out}", f"--pyi_out={out}", f"--grpc_python_out={out}")
    marker.write_text("# Generated from proto/mvps/v1 by packaging/build_hook.py.\n")


# ---- native gate


def build_native() -> None:
    """Compile ``native/`` into the extension module ``mvps.trust._gate``, if anything it is made from is newer."""
    numbers = [TRUST / "limits.py", TRUST / "reasons.py", SNAPSHOT_PROTO, Path(__file__)]
    inputs = [*(ROOT / "native").glob("*.[ch]"), *numbers]
    if GATE.exists() and GATE.stat().st_mtime > max(path.stat().st_mtime for path in inputs):
        return
    include = Path(sysconfig.get_paths()["include"])
    if not (include / "Python.h").exists():
        raise SystemExit(f"building the native gate needs {include}/Python.h: apt-get install python3-dev libssl-dev")
    write_schema()
    sources = [f"native/{name}" for name in NATIVE_SOURCES]
    includes = ["-Inative", f"-I{SCHEMA.parent.relative_to(ROOT)}", f"-isystem{include}"]
    # Made beside its place and moved there, since a running process may have the old one mapped.
    fresh = GATE.with_name(f".{GATE.name}.{os.getpid()}")
    command = [_clang(), *NATIVE_CFLAGS, *includes, *sources, *NATIVE_LINK, "-o", str(fresh)]
    try:
        subprocess.run(command, cwd=ROOT, check=True)
        if strip := shutil.which("llvm-strip"):
            subprocess.run([strip, "--strip-unneeded", str(fresh)], check=True)
        fresh.replace(GATE)
    finally:
        fresh.unlink(missing_ok=True)


def write_schema() -> None:
    """Write ``schema.h``: the limits, reasons and message shapes that the C sources share with Python."""
    limits = runpy.run_path(str(TRUST / "limits.py"))
    reasons = runpy.run_path(str(TRUST / "reasons.py"))["RejectReason"]
    known = [f"REASON_{reason.name}" for reason in reasons]
    lines = [
        "// Generated from limits.py, reasons.py and snapshot.proto by packaging/build_hook.py.",
        "#ifndef MVPS_SCHEMA_H",
        "#define MVPS_SCHEMA_H",
        "#include <stdint.h>",
        *(f"#define {name} {value}" for name, value in limits.items() if name.isupper() and isinstance(value, int)),
        "enum reason {",
        "    REASON_NONE = 0,",
        *(f"    {name} = {reason.value}," for name, reason in zip(known, reasons, strict=True)),
        "};",
        f"static const enum reason KNOWN_REASONS[] __attribute__((unused)) = {{{', '.join(known)}}};",
        "// Bit n of a mask stands for field n. wire: fields of each wire type; once: not repeated; nonzero: not",
        "// written when zero or empty; required: of a map entry; packed: numbers of 8 bytes; narrow: uint32.",
        "struct shape {",
        "    uint32_t wire[8];",
        "    uint32_t once, nonzero, required, packed, narrow, enums, text;",
        "};",
        *_shapes(),
        "#endif",
        "",
    ]
    SCHEMA.parent.mkdir(parents=True, exist_ok=True)
    SCHEMA.write_text("\n".join(lines))


def _shapes() -> Iterator[str]:
    from google.protobuf.descriptor_pb2 import FileDescriptorSet

    with tempfile.TemporaryDirectory() as folder:
        described = Path(folder) / "snapshot.binpb"
        _protoc([SNAPSHOT_PROTO], f"--descriptor_set_out={described}")
        (file,) = FileDescriptorSet.FromString(described.read_bytes()).file
    for enum in file.enum_type:
        name = _upper(enum.name)
        if [value.number for value in enum.value] != list(range(len(enum.value))):
            raise SystemExit(f"{name}: native/snapshot.c takes the numbers of an enum to have no gaps")
        values = ", ".join(f"{value.name} = {value.number}" for value in enum.value)
        yield f"enum {{ {values}, {name}_LAST = {len(enum.value) - 1} }};"
    for message in file.message_type:
        yield from _shape(_upper(message.name), message)


def _shape(name: str, message: DescriptorProto) -> Iterator[str]:
    for nested in message.nested_type:
        yield from _shape(f"{name}_{_upper(nested.name)}", nested)
    masks = dict.fromkeys(("once", "nonzero", "required", "packed", "narrow", "enums", "text"), 0)
    wires = [0] * 8
    for field in message.field:
        if field.number >= 32:
            raise SystemExit(f"{name}.{field.name}: native/snapshot.c takes field numbers below 32")
        bit = 1 << field.number
        wire, kinds = _kind(name, field)
        wires[wire] |= bit
        for kind in kinds:
            masks[kind] |= bit
        if message.options.map_entry:
            masks["required"] |= bit
            masks["nonzero"] &= ~bit
    yield f"enum {name.lower()}_field {{"
    yield from (f"    {name}_{_upper(field.name)} = {field.number}," for field in message.field)
    yield "};"
    values = [f".wire = {{{', '.join(map(hex, wires))}}}", *(f".{mask} = {bits:#x}" for mask, bits in masks.items())]
    yield f"static const struct shape {name} __attribute__((unused)) = {{{', '.join(values)}}};"


def _kind(name: str, field: FieldDescriptorProto) -> tuple[int, set[str]]:
    """Wire type, and the masks of ``struct shape`` that a field belongs to."""
    repeated = field.label == field.LABEL_REPEATED
    match field.type:
        case field.TYPE_STRING | field.TYPE_BYTES:
            wire, kinds = 2, {"text"} if field.type == field.TYPE_STRING else set()
        case field.TYPE_MESSAGE:
            wire, kinds = 2, set()
        case field.TYPE_DOUBLE | field.TYPE_FIXED64 if repeated:
            return 2, {"once", "nonzero", "packed"}
        case field.TYPE_DOUBLE | field.TYPE_FIXED64:
            wire, kinds = 1, set()
        case field.TYPE_UINT32 | field.TYPE_UINT64 | field.TYPE_ENUM if not repeated:
            wire, kinds = 0, {field.TYPE_UINT32: {"narrow"}, field.TYPE_ENUM: {"enums"}}.get(field.type, set())
        case _:
            raise SystemExit(f"{name}.{field.name}: native/snapshot.c has no rule for a field of this type")
    if not repeated:
        kinds.add("once")
        if not field.proto3_optional and field.type != field.TYPE_MESSAGE:
            kinds.add("nonzero")
    return wire, kinds


def _upper(name: str) -> str:
    """``ByCauseEntry`` and ``by_cause_entry`` as ``BY_CAUSE_ENTRY``."""
    humps = "".join(f"_{c}" if c.isupper() else c for c in name)
    return humps.strip("_").upper()


class BuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Hatchling's entry point."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Generate everything before the files are collected."""
        build_all()
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"{ABI_TAG}-{platform}"


def build_all() -> None:
    """Everything that is made from sources."""
    build_bpf()
    build_proto()
    build_native()


if __name__ == "__main__":
    build_all()
    sys.exit(0)
