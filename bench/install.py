# SPDX-License-Identifier: Apache-2.0
"""What it takes from packages to the first accepted snapshot, in a machine with Debian and systemd.

Packages of this tree are built, a machine is booted (QEMU without hardware acceleration, some twenty times slower than
the host), they are installed and set up as the README says, command by command. Bars: what `systemd-analyze security`
says of the running units, and the installed size of the agent alone. Seconds are those of the emulated machine and have
no bar; steps are the commands a person gives.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.vm.installation import DESK, SETTINGS, build, install, set_up
from tests.vm.machine import RELEASES, Machine, make_image, why_not

from bench.harness import ROOT, Result

SUMMARY = "packages to first accepted snapshot in a machine; exposure of the units, installed size"
_WHAT = {"mvps": "agent", "mvps-broker": "broker", "mvps-probe": "probe"}  # by package
BARS = {"agent_exposure": 2.0, "broker_exposure": 1.5, "agent_mb": 100.0}


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--release", choices=RELEASES, default=RELEASES[0], help="Debian release (default %(default)s)")


def _exposure(machine: Machine, unit: str) -> float:
    """0 to 10, as systemd rates the unit that runs."""
    shown = machine.run(f"systemd-analyze security --no-pager {unit}").out
    rated = re.search(r"Overall exposure level for \S+: ([\d.]+)", shown)
    assert rated is not None, shown
    return float(rated[1])


def _megabytes(package: Path) -> float:
    shown = subprocess.run(
        ["dpkg-deb", "--field", package, "Installed-Size"], check=True, capture_output=True, text=True
    )
    return int(shown.stdout) * 1024 / 1e6


def _pruned() -> list[str]:
    """What packaging/prune leaves out, in its own words."""
    lines = (ROOT / "packaging/prune").read_text().splitlines()
    return [line.strip().removeprefix("# ") for line in lines[9:] if line.strip().startswith("# ")]


def _unpinned() -> list[str]:
    """Requirements without a hash; there must be none."""
    found: list[str] = []
    for path in sorted((ROOT / "packaging/wheels").glob("*.txt")):
        entries = re.split(r"\n(?=\S)", path.read_text())
        found += [e.split()[0] for e in entries if "==" in e and not e.startswith("#") and "--hash=sha256:" not in e]
    return found


def run(arguments: argparse.Namespace) -> Result:
    if reason := why_not():
        raise SystemExit(f"bench: {reason}")
    details: dict[str, Any] = {"release": arguments.release, "steps": 1 + len(DESK) + len(SETTINGS) + 1}
    with tempfile.TemporaryDirectory(prefix="mvps-install-") as name:
        folder = Path(name)
        packages = build(arguments.release, folder)
        make_image(arguments.release)
        begun = time.monotonic()
        with Machine(arguments.release, folder, packages) as machine:
            details["boot_s"] = round(time.monotonic() - begun, 1)
            begun = time.monotonic()
            install(machine)
            details["install_s"] = round(time.monotonic() - begun, 1)
            set_up(machine)
            machine.until('mvps fleet --json | grep -q \'"accepted": "[1-9]\'')
            details["first_accepted_s"] = round(time.monotonic() - begun, 1)
            details["agent_exposure"] = _exposure(machine, "mvps-agent")
            details["broker_exposure"] = _exposure(machine, "mvps-broker")
            machine.must("sleep 30")
            memory = machine.must("systemctl show -P MemoryCurrent mvps-agent").strip()
            details["agent_memory_mib"] = round(int(memory) / (1 << 20), 1)
        for package in packages:
            details[f"{_WHAT[package.name.split('_')[0]]}_mb"] = round(_megabytes(package), 2)
    details |= {"pruned": _pruned(), "unpinned": _unpinned()}
    shares = {name: details[name] / bar for name, bar in BARS.items()}
    worst = max(shares, key=lambda name: shares[name])
    holds = max(shares.values()) <= 1.0 and not details["unpinned"]
    return Result(details[worst], worst, BARS[worst], holds, details)
