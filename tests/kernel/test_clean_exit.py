# SPDX-License-Identifier: Apache-2.0
"""However the agent's process ends, no program, map or link of ours stays in the kernel."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.kernel

HOLD = """
import sys, time
from mvps.vantages.registry import VANTAGES, VantageSet
vantages = VantageSet.open(VANTAGES)
vantages.read()
print("attached", flush=True)
time.sleep(60)
"""
OURS = ("mm_", "blk_", "sock_", "sched_run", "irq_", "path_")


def loaded() -> dict[int, str]:
    """Our programs in the kernel now, by id."""
    shown = subprocess.run(["bpftool", "-j", "prog", "show"], capture_output=True, text=True, check=True)
    programs = json.loads(shown.stdout)
    return {p["id"]: p["name"] for p in programs if p.get("name", "").startswith(OURS)}


def maps() -> set[int]:
    shown = subprocess.run(["bpftool", "-j", "map", "show"], capture_output=True, text=True, check=True)
    return {m["id"] for m in json.loads(shown.stdout) if m.get("name", "").endswith(("_cells", "_starts"))}


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_stays(how: signal.Signals) -> None:
    before, maps_before = set(loaded()), maps()
    process = subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline().strip() == "attached"
        during = {ident: name for ident, name in loaded().items() if ident not in before}
        assert len(during) >= 15, "the programs were not there to begin with"
        assert len(maps() - maps_before) >= 6
    finally:
        os.kill(process.pid, how)
        process.wait(10)
        process.stdout.close()
    deadline = time.monotonic() + 10  # the kernel frees programs after an RCU grace period
    while (set(loaded()) - before or maps() - maps_before) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert {ident: name for ident, name in loaded().items() if ident not in before} == {}
    assert maps() - maps_before == set()
