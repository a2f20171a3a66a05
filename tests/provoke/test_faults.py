# SPDX-License-Identifier: Apache-2.0
"""Faults leave nothing behind, and say what they need. What they do to the kernel is tested in vantages/."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mvps.provoke.faults import FAULTS, Host
from mvps.provoke.network import PREFIX, ProvokeError
from mvps.vantages.registry import VANTAGES


def command_line(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:  # it ended while we looked
        return b""


def traces() -> dict[str, list[str]]:
    """Everything a provocation may make on this host."""

    def shown(*words: str) -> list[str]:
        return [
            line
            for line in subprocess.run(words, capture_output=True, text=True, check=False).stdout.splitlines()
            if "mvps" in line or "198.18." in line
        ]

    groups = [str(p) for p in Path("/sys/fs/cgroup").glob("**/mvps-provoke-*") if p.is_dir()]
    loads = [p.name for p in Path("/proc").glob("[0-9]*") if b"mvps.provoke.load" in command_line(p)]
    return {
        "netns": shown("ip", "netns"),
        "links": shown("ip", "-br", "link"),
        "routes": shown("ip", "route", "show", PREFIX),
        "cgroups": groups,
        "loads": loads,
        "files": [str(p) for p in Path("/var/tmp").glob("mvps-provoke-*")],
    }


def test_every_fault_names_a_real_vantage() -> None:
    assert {spec.vantage for spec in FAULTS.values()} <= set(VANTAGES)


def test_start_before_prepare_and_unknown_kinds_are_refused() -> None:
    host = Host()
    with pytest.raises(ValueError, match="unknown fault 'gpu'"):
        host.start("gpu")
    with pytest.raises(ProvokeError, match="prepare"):
        host.start("mm")


@pytest.mark.kernel
def test_network_faults_need_the_peer(tmp_path: Path) -> None:
    with Host(directory=tmp_path) as host:
        host.prepare(network=False)
        with pytest.raises(ProvokeError, match="prepare"):
            host.start("path")


@pytest.mark.kernel
@pytest.mark.net
def test_everything_is_removed_and_a_second_provocation_is_refused() -> None:
    clean = traces()
    with Host(background_rate=20.0, directory=Path("/var/tmp")) as host:
        host.prepare(network=True)
        with Host(directory=Path("/var/tmp")) as other, pytest.raises(ProvokeError, match="another provocation"):
            other.prepare(network=True)
        for kind in FAULTS:
            host.start(kind, 0.5)
        time.sleep(0.5)
        busy = traces()
        assert busy["loads"]
        assert busy["cgroups"]
        assert busy["routes"]
        host.stop()
        host.set_background(2.0)
    assert traces() == clean


@pytest.mark.kernel
@pytest.mark.net
def test_loads_end_when_their_parent_is_killed() -> None:
    before = set(traces()["loads"])
    script = (
        "import time\n"
        "from pathlib import Path\n"
        "from mvps.provoke.faults import Host\n"
        "host = Host(directory=Path('/var/tmp')); host.prepare(network=False)\n"
        "host.start('cpu', 0.25); print(host._scratch, flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    scratch = Path(process.stdout.readline().strip())
    try:
        time.sleep(0.5)
        assert set(traces()["loads"]) - before
        process.kill()
        process.wait(5)
        deadline = time.monotonic() + 10
        while set(traces()["loads"]) - before and time.monotonic() < deadline:
            time.sleep(0.1)
        assert set(traces()["loads"]) - before == set()
    finally:
        process.stdout.close()
        scratch.unlink(missing_ok=True)
        for group in Path("/sys/fs/cgroup").glob("*/mvps-provoke-cpu.slice"):
            os.rmdir(group)
