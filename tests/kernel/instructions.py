# SPDX-License-Identifier: Apache-2.0
"""How many instructions the verifier walked for each program, on the kernel this runs on; what it was before.

Run as a program it prints its counts as JSON; it imports mvps and nothing of the tests, so that it can be carried into
a machine. ``instructions.json`` beside it keeps a count for each program and kernel series. A source or a kernel that
makes the verifier walk much further shows here long before the limit of a million.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from pathlib import Path

RECORD = Path(__file__).with_name("instructions.json")
# Two compilers (clang 14 and 19) and the stable updates of one series differ by a few.
SLACK, RATIO = 64, 1.25


def series(release: str) -> str:
    """``6.1`` of ``6.1.0-41-amd64``."""
    return ".".join(release.split(".")[:2])


def counted() -> dict[str, int]:
    """``object/program`` -> instructions that the verifier walked."""
    from mvps.probes.libbpf import BpfObject, program_info
    from mvps.vantages.cells import object_path

    found: dict[str, int] = {}
    for path in sorted(object_path("mm").parent.glob("*.bpf.o")):
        with BpfObject(path) as loaded:
            loaded.load()
            for name, fd in loaded.program_fds().items():
                found[f"{loaded.name}/{name}"] = int(program_info(fd).verified_insns)
    return found


def complaints(release: str, counts: Mapping[str, int], record: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Programs that take more than they did; a kernel without a record is held against the most of any other."""
    known = record.get(series(release))
    found: list[str] = []
    for name, count in counts.items():
        before = known.get(name) if known is not None else max((r.get(name, 0) for r in record.values()), default=0)
        if not before:
            found.append(f"{name}: {count} instructions on {series(release)}, and none are on record")
        elif count > before * RATIO + SLACK:
            found.append(f"{name}: {count} instructions on {series(release)}, {before} are on record")
    return found


if __name__ == "__main__":
    print(json.dumps({"release": platform.release(), "instructions": counted()}))
