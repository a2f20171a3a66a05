# SPDX-License-Identifier: Apache-2.0
"""The Debian packages on a machine of their own: installed, set up as README says, provoked, rebooted, purged.

One machine a release, used by all tests in turn; each builds on what the ones before it left, and the last takes the
packages away. ``python -m pytest -m vm tests/vm``; ``-k bookworm`` for one release.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.kernel.instructions import RECORD, complaints
from tests.vm.installation import KEPT_UNANSWERED, PYTHON, SPOOLED, build, host, install, set_up, status
from tests.vm.machine import RELEASES, ROOT, Machine, make_image

pytestmark = [pytest.mark.vm, pytest.mark.timeout(3000)]

PROGRAMS = "bpftool --json prog show"
# Carried in beside the packages, and run by the package's own Python.
CARRIED = [ROOT / "tests/vm/compare_loaders.py", ROOT / "tests/kernel/instructions.py"]


@pytest.fixture(scope="module", params=RELEASES)
def release(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def packages(release: str, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return build(release, tmp_path_factory.mktemp(f"packages-{release}"))


@pytest.fixture(scope="module")
def machine(release: str, packages: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    make_image(release)
    with Machine(release, tmp_path_factory.mktemp(f"machine-{release}"), [*packages, *CARRIED]) as booted:
        yield booted


@pytest.fixture(scope="module")
def installed(machine: Machine) -> Machine:
    install(machine)
    return machine


@pytest.fixture(scope="module")
def running(installed: Machine) -> Machine:
    set_up(installed)
    return installed


def phase(machine: Machine) -> str:
    (kernel,) = [s for s in status(machine)["surfaces"] if s["name"] == "kernel"]
    return str(kernel["phase"]).removeprefix("PHASE_")


def attached(machine: Machine) -> dict[int, str]:
    """Loaded programs of the types that are ours, id -> type. systemd has some of its own: on control groups, and one
    on a security hook, which restricts file systems."""
    programs = json.loads(machine.must(PROGRAMS))
    return {p["id"]: p["type"] for p in programs if not p["type"].startswith("cgroup") and p["type"] != "lsm"}


def test_building_twice_gives_the_same_bytes(release: str, packages: list[Path], tmp_path: Path) -> None:
    again = build(release, tmp_path)
    first, second = ({p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in made} for made in (packages, again))
    assert second == first


def test_the_agent_alone_takes_no_more_than_100_mb(packages: list[Path]) -> None:
    (agent,) = [package for package in packages if package.name.startswith("mvps_")]
    shown = subprocess.run(["dpkg-deb", "--field", agent, "Installed-Size"], check=True, capture_output=True, text=True)
    assert int(shown.stdout) * 1024 <= 100_000_000


def test_the_packages_need_no_network_and_start_nothing(installed: Machine) -> None:
    states = installed.run("systemctl is-active mvps-agent mvps-broker mvps-limiter mvps-witness").out.split()
    assert set(states) == {"inactive"}
    assert "mvps 0." in installed.must("mvps --version")
    assert installed.run("find /usr/lib/mvps -newer /etc/mvps/agent.toml -name '*.pyc'").out == ""
    for user in ("mvps", "mvps-broker", "mvps-witness"):
        installed.must(f"test $(stat -c %U:%a /var/lib/{user}) = {user}:750")


def test_the_verifier_s_work_on_this_kernel_is_on_record(installed: Machine) -> None:
    counted = json.loads(installed.must(f"{PYTHON} /mnt/instructions.py"))
    assert complaints(counted["release"], counted["instructions"], json.loads(RECORD.read_text())) == []


def test_both_loaders_count_the_same_of_the_same_load(installed: Machine) -> None:
    counted = json.loads(installed.must(f"{PYTHON} /mnt/compare_loaders.py"))
    for signal, (core, compiled) in counted.items():
        assert core.keys() == compiled.keys()
        for name in core.keys() - {"entered_ns", "entered_vector"}:  # the state of a run, no counter
            # Read a moment apart, and programs of one also interrupt what the other times.
            share = 0.25 if name.endswith("_ns") else 0.02
            assert compiled[name] == pytest.approx(core[name], rel=share, abs=16), (signal, name)
    by_core = {signal: core for signal, (core, _) in counted.items()}
    assert by_core["blk"]["completed"] >= 2000
    assert by_core["blk"]["unissued"] >= 1
    assert by_core["mm"]["memcg"] >= 50
    assert by_core["sock"]["hist"] >= 100
    assert by_core["path"]["packets"] >= 100
    assert by_core["irq"]["hist"] >= 100


def test_a_broker_without_its_key_says_what_to_do(installed: Machine) -> None:
    assert installed.run("systemctl start mvps-broker").code != 0
    assert "make one with: mvps key generate broker" in installed.must("journalctl -u mvps-broker --no-pager")
    # Exit code 2 does not heal by itself.
    assert installed.must("systemctl show -P NRestarts mvps-broker").strip() == "0"


def test_snapshots_are_accepted(running: Machine) -> None:
    running.must("systemctl is-active mvps-agent mvps-broker")
    running.until('mvps fleet --json | grep -q \'"accepted": "[1-9]\'')
    assert {v["name"]: v["state"] for v in status(running)["vantages"]} == dict.fromkeys(
        ("mm", "blk", "sock", "sched", "irq", "path"), "ok"
    )
    assert host(running).get("rejected", {}) == {}


def test_services_hold_no_more_than_they_need(running: Machine) -> None:
    for unit, capabilities in (("mvps-agent", 1 << 12 | 1 << 38 | 1 << 39), ("mvps-broker", 0)):
        text = running.must(f"cat /proc/$(systemctl show -P MainPID {unit})/status")
        fields = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
        assert int(fields["CapEff"], 16) == int(fields["CapBnd"], 16) == capabilities
        assert fields["NoNewPrivs"] == "1"
        assert fields["Seccomp"] == "2"
        assert fields["Uid"].split()[0] != "0"
    assert attached(running)


def test_doctor_finds_nothing_missing(running: Machine) -> None:
    findings = {f["check"]: f for f in json.loads(running.must("mvps doctor --json"))}
    # Nobody keeps a clock in a machine without a network.
    assert {name for name, f in findings.items() if f["level"] != "ok"} <= {"clock"}
    assert findings["key"]["detail"].startswith("/etc/mvps/host.key, id ")


def test_a_rotated_key_is_handed_over_with_the_one_before(running: Machine) -> None:
    running.must("mvps key rotate /etc/mvps/host.key && systemctl restart mvps-agent")
    before = int(host(running)["accepted"])
    running.until(f"test $(mvps fleet --json | grep -m1 -o '\"accepted\": \"[0-9]*' | grep -o '[0-9]*$') -gt {before}")
    # Accepted under the old one: the manifest knows no other yet.
    assert host(running).get("rejected", {}) == {}
    running.must("mv /etc/mvps/host.key.old /etc/mvps/host.key && systemctl restart mvps-agent")


def test_reclaim_changes_the_phase(running: Machine) -> None:
    running.until("mvps status | grep -E '^  kernel +BAU'")
    # Pages that are cached already are charged to whoever wrote them, and press on nobody else's limit.
    running.must("head -c 256M /dev/zero > /var/tmp/walked && sync && echo 3 > /proc/sys/vm/drop_caches")
    walk = "while :; do cat /var/tmp/walked > /dev/null; done"
    limits = "-p MemoryMax=48M -p MemorySwapMax=0 -p RuntimeMaxSec=900"
    running.must(f"systemd-run --quiet --unit reclaim {limits} sh -c '{walk}'")
    try:
        running.until("mvps status | grep -E '^  kernel +(WATCH|ALARM|CRITICAL)'")
    finally:
        running.must("systemctl stop reclaim")
    running.until("mvps status | grep -E '^  kernel +BAU'")


def test_what_was_sealed_without_a_broker_is_sent_by_the_next_start(running: Machine) -> None:
    before = int(host(running)["accepted"])
    running.must("systemctl stop mvps-broker")
    running.until(SPOOLED)
    running.must("systemctl restart mvps-agent")
    stream = status(running)["stream"]
    assert int(stream["recovered"]) >= 3
    assert phase(running) != "CALIBRATING"
    running.must("systemctl start mvps-broker")
    running.until("! mvps status --json | grep -q '\"spooled\"'")
    after = host(running)
    assert int(after["accepted"]) > before + 3
    assert set(after.get("rejected", {})) <= KEPT_UNANSWERED


def test_a_reboot_keeps_counters_baselines_and_spool(running: Machine) -> None:
    running.must("systemctl stop mvps-broker")
    running.until(SPOOLED)
    running.reboot()
    running.until("systemctl is-active mvps-agent mvps-broker")
    running.until("mvps fleet --json | grep -q '\"connected\": true'")
    stream = status(running)["stream"]
    assert int(stream["recovered"]) >= 3
    assert phase(running) != "CALIBRATING"
    running.until("! mvps status --json | grep -q '\"spooled\"'")
    assert set(host(running).get("rejected", {})) <= KEPT_UNANSWERED


def test_an_upgrade_restarts_what_runs_and_keeps_what_was_set(running: Machine) -> None:
    settings = running.must("cat /etc/mvps/agent.toml")
    before = running.must("systemctl show -P MainPID mvps-agent mvps-broker").split()
    running.must("apt-get install -y --reinstall /mnt/*.deb")
    running.until("mvps fleet --json | grep -q '\"connected\": true'")
    assert not set(before) & set(running.must("systemctl show -P MainPID mvps-agent mvps-broker").split())
    assert running.must("cat /etc/mvps/agent.toml") == settings


def test_the_limiter_s_service(running: Machine) -> None:
    running.must("ip link add mvx0 type veth peer name mvx1 && ip link set mvx0 up && ip link set mvx1 up")
    running.must("echo 'MVPS_LIMITER_OPTIONS=\"--interface mvx0\"' > /etc/mvps/limiter.env")
    running.must("sed -i 's|^#limiter = .*|limiter = \"/run/mvps.limiter\"|' /etc/mvps/broker.toml")
    running.must("systemctl enable --now mvps-limiter && systemctl restart mvps-broker")
    assert "mvx0: attached native" in running.must("mvps broker limits")
    limiter = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:9466/metrics').read().decode())"
    running.until(f"python3 -c \"{limiter}\" | grep -q '^mvps_limiter_failing 0'")


def test_without_btf_the_agent_has_its_programs_compiled(running: Machine) -> None:
    drop_in = "/etc/systemd/system/mvps-agent.service.d"
    running.must(f"install -D -m 644 /usr/share/mvps/systemd/mvps-agent-bcc.conf {drop_in}/bcc.conf")
    # What takes a real processor some ten seconds takes an emulated one minutes.
    running.must(f"printf '[Service]\\nTimeoutStartSec=1800\\nLimitRTTIME=infinity\\n' > {drop_in}/emulated.conf")
    running.must("mount -t tmpfs -o ro none /sys/kernel/btf && systemctl daemon-reload")
    try:
        running.must("systemctl restart mvps-agent", 1800.0)
        running.until("mvps status --json | grep -q '\"degraded\"'")
        states = {v["name"]: v["state"] for v in status(running)["vantages"]}
        assert states == {"mm": "ok", "blk": "degraded", "sock": "ok", "sched": "failed", "irq": "ok", "path": "ok"}
        (found,) = [f for f in json.loads(running.run("mvps doctor --json").out) if f["check"] == "btf"]
        assert found["level"] == "warn"
        # The compiler has ended; what is left is the agent. (The brackets keep the shell from finding itself.)
        assert running.run("pgrep -f '[w]ith_bcc.py'").code == 1
    finally:
        running.must(f"umount /sys/kernel/btf && rm -r {drop_in} && systemctl daemon-reload")
    running.must("systemctl restart mvps-agent")
    running.until("mvps status --json | grep -q '\"vantages\"' && ! mvps status --json | grep -q '\"failed\"'")
    assert {v["state"] for v in status(running)["vantages"]} == {"ok"}


def test_stopping_leaves_nothing_attached(running: Machine) -> None:
    running.must("systemctl stop mvps-agent mvps-broker mvps-limiter")
    # The limiter is in force without anybody: what is left is its one program, until it is detached.
    assert list(attached(running).values()) == ["xdp"]
    assert running.run("ls -A /run/mvps").out == ""


def test_purging_leaves_nothing_behind(running: Machine) -> None:
    running.must("systemctl start mvps-agent mvps-broker mvps-limiter")
    running.must("apt-get purge -y mvps mvps-broker")
    assert attached(running) == {}
    assert "xdp" not in running.must("ip -details link show mvx0")
    assert running.run("findmnt --noheadings --types bpf | grep mvps").out == ""
    assert running.run("systemctl list-units --all --no-legend '*mvps*'").out.strip() == ""
    assert running.run("ls -d /run/*mvps*").out == ""
    prune = " -o ".join(f"-path {path}" for path in ("/proc", "/sys", "/mnt", "/root", "/var/log"))
    assert running.must(f"find / -xdev \\( {prune} \\) -prune -o -name '*mvps*' -print") == ""
    # Users stay, as of every Debian package: their numbers must not come to somebody else's files.
    assert "mvps-broker" in running.must("cat /etc/passwd")
