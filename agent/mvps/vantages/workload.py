# SPDX-License-Identifier: Apache-2.0
"""Workload keys: which unit or container a cgroup id belongs to.

The kernel surface's one typed universe (ours, DESIGN.md section 4). Programs report cgroup ids; on hosts with cgroup
v1 controllers one workload has a different id per hierarchy (the block layer sees the blkio one), so ids are
resolved to the unit or container *name*, and the key is a hash of that name: equal across hierarchies, hosts and
restarts, and no name needs to leave the host.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterable, Iterator

# A container's cgroup ends in its 64-digit id, alone or inside a scope name (docker-<id>.scope, cri-containerd-...).
_CONTAINER = re.compile(r"[0-9a-f]{64}")
_UNIT = re.compile(r"[^/]+\.(?:service|scope|slice|mount|socket|swap)$")
# A full walk of the hierarchy costs about 10 us per cgroup; unknown ids trigger at most one per this many seconds.
_RESCAN_S = 2.0


def workload_name(path: str) -> str:
    """Unit or container of a cgroup path: the container id, else the innermost unit, else the path itself."""
    container = _CONTAINER.findall(path)
    if container:
        return str(container[-1])
    for part in reversed(path.strip("/").split("/")):
        if _UNIT.search(part):
            return part
    return path or "/"


def workload_key(name: str) -> int:
    """64-bit key of a workload name, never 0 (our own choice: the first 8 bytes of SHA-256)."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") or 1


def hierarchies() -> Iterator[str]:
    """Mount points of all cgroup hierarchies."""
    with open("/proc/self/mounts", encoding="utf-8") as mounts:
        for line in mounts:
            field = line.split()
            if field[2] in ("cgroup", "cgroup2"):
                yield field[1]


class Workloads:
    """Resolves cgroup ids; unknown ones keep a key of their own until a rescan finds their path."""

    def __init__(self) -> None:
        self._name_of_id: dict[int, str] = {}
        self._key_of_id: dict[int, int] = {}
        self._name_of_key: dict[int, str] = {}
        self._next_scan = 0.0

    def _scan(self) -> None:
        found: dict[int, str] = {}
        for top in hierarchies():
            for directory, _, _ in os.walk(top):
                try:
                    found[os.stat(directory).st_ino] = directory[len(top) :] or "/"
                except FileNotFoundError:  # a cgroup that ended while we walked
                    continue
        self._name_of_id = {ident: workload_name(path) for ident, path in found.items()}
        # Ids that are gone keep their key: their last events may still be in this tick.
        for ident, name in self._name_of_id.items():
            key = workload_key(name)
            self._key_of_id[ident] = key
            self._name_of_key[key] = name

    def key(self, cgroup_id: int) -> int:
        """Workload key of a cgroup id."""
        known = self._key_of_id.get(cgroup_id)
        if known is not None:
            return known
        now = time.monotonic()
        if now >= self._next_scan:
            self._next_scan = now + _RESCAN_S
            self._scan()
            known = self._key_of_id.get(cgroup_id)
            if known is not None:
                return known
        # Ended before we looked, or waiting for the next scan: not remembered, so that the next scan may name it.
        name = f"cgroup:{cgroup_id}"
        key = workload_key(name)
        self._name_of_key[key] = name
        return key

    def names(self, keys: Iterable[int]) -> dict[int, str]:
        """Names of those keys that are known."""
        return {key: self._name_of_key[key] for key in keys if key in self._name_of_key}
