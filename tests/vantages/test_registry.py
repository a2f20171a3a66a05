# SPDX-License-Identifier: Apache-2.0
"""The set of vantages on the running kernel, under real faults."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mvps.coherence.observation import HIST_BINS, Observation
from mvps.probes.libbpf import BpfError
from mvps.provoke.faults import Host
from mvps.vantages import cells
from mvps.vantages.registry import VANTAGES, VantageSet, resolve_scope
from mvps.vantages.workload import hierarchies


def test_unknown_vantage_is_named() -> None:
    with pytest.raises(ValueError, match="unknown vantage 'gpu'"):
        VantageSet.open(["mm", "gpu"])


def test_scope_of_what_does_not_exist() -> None:
    with pytest.raises(FileNotFoundError, match=r"no-such\.slice"):
        resolve_scope(cgroup="no-such.slice")
    with pytest.raises(FileNotFoundError, match="no-such-ns"):
        resolve_scope(netns="no-such-ns")


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with Host(background_rate=50.0, directory=Path("/var/tmp")) as made:
        made.prepare(network=True)
        time.sleep(1.5)
        yield made


@pytest.fixture(scope="module")
def vantages(host: Host) -> Iterator[VantageSet]:
    opened = VantageSet.open(VANTAGES)
    yield opened
    opened.close()


def during(host: Host, vantages: VantageSet, kind: str, seconds: float = 2.0) -> dict[str, Observation]:
    """Observations of one fault, warm-up left out; nothing may be lost meanwhile."""
    host.start(kind)
    try:
        time.sleep(1.0)
        vantages.read()
        time.sleep(seconds)
        return vantages.read()
    finally:
        host.stop()


@pytest.mark.kernel
@pytest.mark.net
class TestOnThisHost:
    def test_everything_attaches(self, vantages: VantageSet) -> None:
        assert {s.name: s.reason for s in vantages.states().values() if s.state != "ok"} == {}
        assert vantages.surfaces() == {
            "kernel": ("mm", "blk", "sock", "sched", "irq"),
            "dataplane": ("path", "path_tcp", "path_fib"),
        }

    def test_bau_holds_every_check(self, vantages: VantageSet) -> None:
        vantages.read()
        time.sleep(2.0)
        seen = vantages.read()
        assert {name: one.violated for name, one in seen.items() if one.violated} == {}
        assert sum(one.checked for one in seen.values()) >= 2
        assert seen["sched"].events > 0
        assert seen["sock"].events > 0

    def test_reclaim_is_seen_by_mm_and_by_its_witness(self, host: Host, vantages: VantageSet) -> None:
        seen = during(host, vantages, "mm")["mm"]
        assert seen.events > 100
        assert seen.facts["memcg"] > 100
        assert seen.facts["psi_some_ms"] > 10
        assert (seen.checked, seen.violated) == (1.0, 0.0)
        assert "mvps-provoke-reclaim.slice" in vantages.object_names(seen.objects or {}).values()

    def test_saturated_disk_raises_latency_and_stays_consistent(self, host: Host, vantages: VantageSet) -> None:
        vantages.read()
        time.sleep(2.0)
        calm = vantages.read()["blk"]
        seen = during(host, vantages, "blk")["blk"]
        assert seen.facts["mean_ms"] > 2 * calm.facts["mean_ms"]
        assert seen.facts["requests"] == pytest.approx(seen.facts["witness_requests"], rel=0.05)
        assert seen.checked == 3.0
        assert seen.violated == 0.0
        assert "mvps-provoke-disk.slice" in vantages.object_names(seen.objects or {}).values()

    @pytest.mark.parametrize("flags", [0, os.O_DSYNC], ids=["fdatasync", "O_DSYNC"])
    def test_flushes_and_forced_writes_are_counted_as_the_disk_counts_them(
        self, vantages: VantageSet, flags: int
    ) -> None:
        """The end of a flush sequence completes what was never issued: no lie of the probe."""
        vantages.read()
        # /tmp may be memory: what is flushed has to reach a disk.
        with tempfile.NamedTemporaryFile(dir="/var/tmp", prefix="mvps-test-") as file:
            descriptor = os.open(file.name, os.O_RDWR | flags)
            try:
                for n in range(300):
                    os.pwrite(descriptor, bytes([n % 256]) * 4096, (n % 16) * 4096)
                    if not flags:
                        os.fdatasync(descriptor)
                        os.fdatasync(descriptor)  # nothing is dirty: an empty flush at most
            finally:
                os.close(descriptor)
        seen = vantages.read()["blk"]
        assert seen.facts["requests"] >= 300
        assert seen.facts["requests"] == pytest.approx(seen.facts["witness_requests"], abs=8)
        assert seen.checked >= 2.0
        assert seen.violated == 0.0

    def test_busy_cpus_make_tasks_wait(self, host: Host, vantages: VantageSet) -> None:
        seen = during(host, vantages, "cpu")["sched"]
        assert seen.facts["delay_ms"] > 1000
        assert seen.facts["psi_some_ms"] > 500
        assert seen.violated == 0.0

    def test_a_choked_link_shows_in_rtt_and_retransmissions(self, host: Host, vantages: VantageSet) -> None:
        def slowest_hop(seen: dict[str, Observation]) -> float:
            return max(value for name, value in seen["path_tcp"].facts.items() if name.startswith("rtt_ms."))

        vantages.read()
        time.sleep(2.0)
        calm = slowest_hop(vantages.read())
        seen = during(host, vantages, "sock")
        assert seen["sock"].facts["retransmits"] > 10
        assert seen["sock"].histogram[HIST_BINS - 1] >= seen["sock"].facts["retransmits"]
        assert slowest_hop(seen) > max(2.0, 3 * calm)

    def test_a_withdrawn_hop_moves_all_three_views(self, host: Host, vantages: VantageSet) -> None:
        vantages.read()
        time.sleep(1.0)
        before = vantages.read()
        after = during(host, vantages, "path")
        for name in ("path", "path_tcp", "path_fib"):
            lost = (before[name].histogram > 0) & (after[name].histogram == 0)
            assert lost.sum() == 1, name
            assert len(after[name].objects or {}) == len(before[name].objects or {}) - 1
        assert after["path"].violated == 0.0

    def test_bytes_on_the_wire_equal_the_interfaces_own_count(self, host: Host, vantages: VantageSet) -> None:
        seen = during(host, vantages, "sock")["path"]
        assert seen.facts["bytes"] > 500_000
        assert seen.facts["bytes"] == pytest.approx(seen.facts["witness_bytes"], rel=0.02)

    def test_nothing_was_lost_on_the_way(self, vantages: VantageSet) -> None:
        assert {cause: n for cause, n in vantages.losses().items() if n} == {}


@pytest.mark.kernel
def test_a_program_that_does_not_load_leaves_the_others_running(monkeypatch: pytest.MonkeyPatch) -> None:
    real = cells.object_path

    def broken(signal: str) -> Path:
        if signal == "irq":
            raise BpfError(2, "irq.bpf.o is not built")
        return real(signal)

    monkeypatch.setattr(cells, "object_path", broken)
    vantages = VantageSet.open(["irq", "sched"])
    try:
        assert vantages.states()["irq"].state == "failed"
        assert "not built" in vantages.states()["irq"].reason
        assert vantages.states()["sched"].state == "ok"
        assert set(vantages.read()) == {"sched"}
    finally:
        vantages.close()


@pytest.mark.kernel
def test_a_scope_counts_its_cgroup_and_what_is_below_it() -> None:
    """One busy task two levels down: seen from its grandparent, not from a sibling."""
    top = next(Path(t) for t in hierarchies() if (Path(t) / "cgroup.controllers").exists())
    name = f"mvps-scope-{os.getpid()}.slice"
    inner, other = top / name / "a" / "b", top / name / "c"
    inner.mkdir(parents=True)
    other.mkdir()
    spin = "import sys, time\nprint(flush=True)\nwhile True: time.sleep(0.001)"
    process = subprocess.Popen([sys.executable, "-c", spin], stdout=subprocess.PIPE)
    (inner / "cgroup.procs").write_text(str(process.pid))
    above = VantageSet.open(["sched"], resolve_scope(cgroup=name))
    beside = VantageSet.open(["sched"], resolve_scope(cgroup=f"{name}/c"))
    try:
        above.read()
        beside.read()
        time.sleep(0.5)
        assert above.read()["sched"].events > 100
        assert beside.read()["sched"].events == 0
    finally:
        above.close()
        beside.close()
        process.kill()
        process.communicate()
        for group in (inner, inner.parent, other, top / name):
            group.rmdir()
