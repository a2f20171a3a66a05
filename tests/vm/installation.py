# SPDX-License-Identifier: Apache-2.0
"""From packages to a host that streams to its own broker, in a machine: the README's steps, one command each."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.vm.machine import ROOT, Machine

# README, "Keys: from nothing to two hosts streaming", for one host that is also the broker's.
DESK = (
    "mvps key generate operator operator.key > operator.pub",
    "mvps key generate broker /etc/mvps/broker.key > broker.pub",
    "mvps key generate host /etc/mvps/host.key",
    "mvps enroll request --key /etc/mvps/host.key --vantage host-a > host-a.request",
    "mvps epoch new --operator-id acme --broker broker.pub --out epoch-1.draft",
    "mvps enroll approve host-a.request --into epoch-1.draft",
    "mvps epoch sign epoch-1.draft --key operator.key --out epoch-1.manifest",
    "cp operator.pub /etc/mvps/ && cp epoch-1.manifest /etc/mvps/manifests/",
)
SETTINGS = {"vantage_id": '"host-a"', "target": '"127.0.0.1:7447"', "calibration_ticks": "60"}
# The package's own interpreter, for what is carried in.
PYTHON = "/usr/lib/mvps/bin/python3"
# At least three snapshots wait on disk.
SPOOLED = """mvps status --json | grep -qE '"spooled": "([3-9]|[1-9][0-9])'"""
# A snapshot that may have been on the wire comes as it is first. A broker that never had it, and has newer ones, says
# "replayed", and then it comes sealed again: one refusal, and nothing lost (mvps.stream.outbox).
KEPT_UNANSWERED = {"replayed"}


def build(release: str, folder: Path, commit: str = "") -> list[Path]:
    """Both packages of this tree, or of an earlier commit's, made for a release."""
    command: list[str | Path] = [ROOT / "packaging/build-deb", release, "--out", folder]
    subprocess.run([*command, *(["--commit", commit] if commit else [])], check=True)
    return sorted(folder.glob("*.deb"))


def install(machine: Machine, packages: str = "/mnt/*.deb") -> None:
    """Install packages that lie in the machine; there is no network to take anything else from. Settings that were
    changed stay, as docs/operations.md has it for an upgrade without questions."""
    machine.must(f"apt-get install -y --no-install-recommends -o Dpkg::Options::=--force-confold {packages}")


def set_up(machine: Machine) -> None:
    """Keys made, host admitted, settings written, services started: two commands after the last file."""
    machine.must("mkdir -p /root/desk")
    for step in DESK:
        machine.must(f"cd /root/desk && {step}")
    edits = " ".join(f"-e 's|^#{name} = .*|{name} = {value}|'" for name, value in SETTINGS.items())
    machine.must(f"sed -i {edits} /etc/mvps/agent.toml && mvps config --check /etc/mvps/agent.toml")
    machine.must("systemctl enable --now mvps-broker mvps-agent")
    machine.until("mvps fleet --json | grep -q host-a")


def status(machine: Machine) -> Any:
    """`mvps status`; its exit code says how the host is, and is not asked for here."""
    return json.loads(machine.run("mvps status --json").out)


def host(machine: Machine) -> Any:
    """What the broker keeps of host-a."""
    (vantage,) = json.loads(machine.run("mvps fleet --json").out)["vantages"]
    return vantage
