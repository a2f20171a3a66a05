# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from pathlib import Path

import pytest

from mvps.vantages.procfs import Diskstats, Pressure, ProcFile, Snmp, Softirqs, Vmstat


def test_a_file_longer_than_the_first_read_comes_whole(tmp_path: Path) -> None:
    path = tmp_path / "long"
    path.write_text("x" * 20_000)
    file = ProcFile(str(path))
    assert len(file.text()) == 20_000
    path.write_text("y" * 5)
    assert file.text() == "yyyyy"
    file.close()
    file.close()


@pytest.mark.skipif(not Path("/proc/pressure").exists(), reason="kernel without PSI (CONFIG_PSI)")
@pytest.mark.parametrize("resource", ["cpu", "memory", "io"])
def test_pressure_only_grows(resource: str) -> None:
    pressure = Pressure(resource)
    first = pressure.some_us()
    assert pressure.some_us() >= first >= 0
    pressure.close()


def test_counters_only_grow() -> None:
    softirqs, vmstat = Softirqs(), Vmstat()
    before = softirqs.total(), vmstat.refaults()
    assert softirqs.total() >= before[0] > 0
    assert vmstat.refaults() >= before[1] >= 0
    softirqs.close()
    vmstat.close()


def test_tcp_counters_of_this_namespace() -> None:
    snmp = Snmp()
    assert {"RetransSegs", "OutSegs", "ActiveOpens"} <= set(snmp.tcp())
    snmp.close()


@pytest.mark.kernel
def test_diskstats_count_a_synced_write(disk_path: Path) -> None:
    disks = Diskstats()
    before, _, _ = disks.totals()
    with (disk_path / "f").open("wb") as file:
        for _ in range(5):
            file.write(os.urandom(4096))
            file.flush()
            os.fsync(file.fileno())
    after, in_flight, _ = disks.totals()
    disks.close()
    assert after - before >= 5
    assert in_flight >= 0
