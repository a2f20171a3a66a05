# SPDX-License-Identifier: Apache-2.0
"""The units: how much of the host each could touch, who they run as, and that they name what the packages ship."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
UNITS = ROOT / "systemd"
SERVICES = sorted(UNITS.glob("*.service"))
DEBIAN = ROOT / "packaging/debian"
# Bars for `systemd-analyze security`, in tenths. The limiter loads and attaches programs as root without its powers.
EXPOSURE = {"mvps-agent": 20, "mvps-broker": 15, "mvps-witness": 15, "mvps-ai-probe": 15, "mvps-limiter": 25}


def settings(unit: Path) -> dict[str, list[str]]:
    """Every setting of a unit with its values, in order."""
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", unit.read_text(), re.M):
        found.setdefault(name, []).append(value)
    return found


def test_every_service_has_a_bar() -> None:
    assert {unit.stem for unit in SERVICES} == set(EXPOSURE)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze: apt-get install systemd")
@pytest.mark.parametrize("unit", SERVICES, ids=lambda unit: unit.stem)
def test_exposure(unit: Path) -> None:
    command = ["systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE[unit.stem]}", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    exposed = [line for line in done.stdout.splitlines() if line.startswith(("✗", "→"))]
    assert done.returncode == 0, "\n".join([*exposed, done.stderr])


@pytest.mark.parametrize("unit", SERVICES, ids=lambda unit: unit.stem)
def test_the_watcher_is_not_the_fault_s_victim(unit: Path) -> None:
    given = settings(unit)
    assert {"CPUWeight", "MemoryMin", "MemoryMax", "OOMScoreAdjust", "TasksMax"} <= set(given)
    assert int(given["OOMScoreAdjust"][0]) < 0


@pytest.mark.parametrize("name", ["mvps-broker", "mvps-witness", "mvps-ai-probe"])
def test_no_capability(name: str) -> None:
    given = settings(UNITS / f"{name}.service")
    assert given["CapabilityBoundingSet"] == [""]
    assert given["PrivateUsers"] == ["yes"]


@pytest.mark.parametrize(("name", "key"), [("mvps-agent", "mvps-key"), ("mvps-broker", "broker-key")])
def test_keys_come_as_credentials_also_the_one_before_a_rotation(name: str, key: str) -> None:
    given = settings(UNITS / f"{name}.service")
    handed = dict(value.split(":", 1) for value in given["LoadCredential"])
    assert handed[f"{key}.old"] == f"{handed[key]}.old"
    # systemd refuses to start a unit whose credential's file is missing, unless there is a value to fall back on.
    assert set(given["SetCredential"]) == {f"{name}:absent" for name in handed}


def test_users_are_made_by_the_package_whose_units_run_as_them() -> None:
    for package, units in {
        "mvps": ["mvps-agent"],
        "mvps-broker": ["mvps-ai-probe", "mvps-broker", "mvps-witness"],
    }.items():
        made = set(re.findall(r"^u (\S+)", (DEBIAN / f"{package}.sysusers").read_text(), re.M))
        assert {settings(UNITS / f"{unit}.service")["User"][0] for unit in units} == made
        kept = dict(re.findall(r"^d (\S+) (\d+) \S+ \S+$", (DEBIAN / f"{package}.tmpfiles").read_text(), re.M))
        for unit in units:
            given = settings(UNITS / f"{unit}.service")
            assert kept[f"/var/lib/{given['StateDirectory'][0]}"] == given["StateDirectoryMode"][0]


def test_every_unit_is_in_a_package() -> None:
    rules = (DEBIAN / "rules").read_text()
    assert [unit.name for unit in UNITS.iterdir() if unit.name.rsplit(".", 1)[0] not in rules] == []
