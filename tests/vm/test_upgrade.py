# SPDX-License-Identifier: Apache-2.0
"""From the version before to this one, with snapshots on disk in between: none is lost, nothing is set anew.

The version before is the tree of the commit in packaging/previous: the last one that other hosts may run.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest
from tests.vm.installation import KEPT_UNANSWERED, SPOOLED, build, host, install, set_up, status
from tests.vm.machine import RELEASES, ROOT, Machine, make_image

pytestmark = [pytest.mark.vm, pytest.mark.timeout(3000)]

PREVIOUS = (ROOT / "packaging/previous").read_text().split("\n")[-2]


# One release: what differs between them is not how an upgrade goes.
@pytest.fixture(scope="module", params=RELEASES[:1])
def release(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def running(release: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    known = subprocess.run(["git", "cat-file", "-e", f"{PREVIOUS}^{{commit}}"], cwd=ROOT, check=False).returncode == 0
    if not known:
        pytest.xfail(f"this clone's history does not reach back to {PREVIOUS}: git fetch --unshallow")
    old = build(release, tmp_path_factory.mktemp(f"old-{release}"), PREVIOUS)
    new = build(release, tmp_path_factory.mktemp(f"new-{release}"))
    make_image(release)
    with Machine(release, tmp_path_factory.mktemp(f"upgraded-{release}"), [*old, *new]) as machine:
        install(machine, "/mnt/*~git*.deb")
        set_up(machine)
        yield machine


def versions(machine: Machine) -> list[str]:
    return machine.must("dpkg-query -W -f '${Version}\\n' mvps mvps-broker").split()


def test_what_waited_on_disk_arrives_once_after_the_upgrade(running: Machine) -> None:
    assert all("~git" in version for version in versions(running))
    running.until('mvps fleet --json | grep -q \'"accepted": "[1-9]\'')
    running.until("mvps status | grep -E '^  kernel +BAU'")
    settings = running.must("cat /etc/mvps/agent.toml")
    running.must("systemctl stop mvps-broker")
    running.until(SPOOLED)
    waiting = int(status(running)["stream"]["spooled"])
    running.must("systemctl stop mvps-agent")
    install(running, "$(ls /mnt/*.deb | grep -v '~git')")
    assert not any("~git" in version for version in versions(running))
    # Nobody changed the broker's: dpkg brings the new ones.
    assert running.must("cat /etc/mvps/agent.toml") == settings
    running.must("systemctl start mvps-agent")
    stream = status(running)["stream"]
    assert int(stream["recovered"]) >= waiting >= 3
    # What was learned counts on. Where a signal is measured otherwise now, that is said, and learned anew.
    said = running.run("journalctl -u mvps-agent --no-pager | grep -o 'baseline_refused surface=[a-z]*'").out
    refused = {line.rpartition("=")[2] for line in said.splitlines()}
    learning = {one["name"] for one in status(running)["surfaces"] if one["phase"] == "PHASE_CALIBRATING"}
    assert learning <= refused <= {"kernel"}
    running.must("systemctl start mvps-broker")
    running.until("! mvps status --json | grep -q '\"spooled\"'")
    assert set(host(running).get("rejected", {})) <= KEPT_UNANSWERED


def test_history_and_evidence_of_the_version_before_are_read(running: Machine) -> None:
    # What was accepted before and after lies in one history.
    assert int(host(running)["accepted"]) >= 6
    assert running.run("journalctl -u mvps-broker --no-pager | grep -i traceback").code == 1
