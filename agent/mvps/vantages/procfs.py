# SPDX-License-Identifier: Apache-2.0
"""Witness readings from /proc: the same kernel state by another road than our programs.

Each reader keeps its file open and reads it at offset 0, one system call per tick.
"""

from __future__ import annotations

import os
from pathlib import Path


class ProcFile:
    """A /proc or /sys file that is read again and again."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._size = 4096

    def text(self) -> str:
        """The file's content now."""
        while True:
            data = os.pread(self._fd, self._size, 0)
            if len(data) < self._size:
                return data.decode()
            self._size *= 2  # /proc files have no size; grow until one read holds all

    def close(self) -> None:
        """Close the descriptor; idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Pressure:
    """Pressure stall information of one resource (kernel documentation, accounting/psi.rst)."""

    def __init__(self, resource: str) -> None:
        self._file = ProcFile(f"/proc/pressure/{resource}")

    def some_us(self) -> int:
        """Total time in which at least one task was stalled, in microseconds since boot."""
        return int(self._file.text().split("total=", 1)[1].split(None, 1)[0])

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Diskstats:
    """Whole-disk totals of /proc/diskstats (kernel documentation, admin-guide/iostats.rst)."""

    def __init__(self) -> None:
        self._file = ProcFile("/proc/diskstats")
        self._whole: dict[str, bool] = {}

    def _is_whole(self, device: str) -> bool:
        # Partitions repeat their disk's requests; stacked devices (dm, md) repeat those below, but as bios, without
        # requests of their own, so block_rq_* never sees them. loop and nbd have requests and count.
        known = self._whole.get(device)
        if known is None:
            block = Path("/sys/block") / device.replace("/", "!")
            known = (block / "mq").is_dir()
            self._whole[device] = known
        return known

    def totals(self) -> tuple[int, int, int]:
        """Requests completed, requests in flight now, and milliseconds spent by all requests, over all disks."""
        completed = in_flight = spent_ms = 0
        for line in self._file.text().splitlines():
            field = line.split()
            if (field[3] == field[7] == "0" and field[11] == "0") or not self._is_whole(field[2]):
                continue
            completed += int(field[3]) + int(field[7])
            in_flight += int(field[11])
            spent_ms += int(field[6]) + int(field[10])
            if len(field) > 17:  # discards (4.18) and flushes (5.5)
                completed += int(field[14]) + int(field[18])
                spent_ms += int(field[17]) + int(field[19])
        return completed, in_flight, spent_ms

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Snmp:
    """TCP counters of this process's network namespace (/proc/net/snmp)."""

    def __init__(self) -> None:
        self._file = ProcFile("/proc/self/net/snmp")

    def tcp(self) -> dict[str, int]:
        """Counter name -> value of the Tcp group."""
        rows = [line.split() for line in self._file.text().splitlines() if line.startswith("Tcp:")]
        return dict(zip(rows[0][1:], map(int, rows[1][1:]), strict=True))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Softirqs:
    """Softirq runs per vector (/proc/softirqs)."""

    def __init__(self) -> None:
        self._file = ProcFile("/proc/softirqs")

    def total(self) -> int:
        """Runs of all vectors on all CPUs since boot."""
        return sum(sum(map(int, line.split(":")[1].split())) for line in self._file.text().splitlines()[1:])

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Vmstat:
    """Page reclaim and refault counters (/proc/vmstat)."""

    def __init__(self) -> None:
        self._file = ProcFile("/proc/vmstat")

    def refaults(self) -> int:
        """Pages that came back after eviction, since boot: the working set does not fit."""
        parts = self._file.text().split("\nworkingset_refault_")  # _anon and _file; 170 other lines are not looked at
        return sum(int(part.split(None, 2)[1]) for part in parts[1:])

    def close(self) -> None:
        """Close the file."""
        self._file.close()
