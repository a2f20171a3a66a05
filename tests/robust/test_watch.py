# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from mvps.coherence.phase import Phase
from mvps.robust.fleet import Evidence, Label
from mvps.robust.watch import FleetTick, FleetWatch

HOSTS = [f"host-{number}" for number in range(12)]
KINDS = ("mm", "blk", "gpu")  # nobody has a gpu
NOTHING: Mapping[str, Evidence] = {}


class Source:
    """Quiet hosts, some of them ill."""

    def __init__(self, seed: int, hosts: list[str]) -> None:
        self._rng = np.random.default_rng(seed)
        self.hosts = hosts

    def tick(self, ill: Mapping[str, float] = {}, kind: str = "blk") -> list[tuple[str, Mapping[str, float]]]:
        said = []
        for host in self.hosts:
            mm, blk = self._rng.standard_normal(2)
            z = {"mm": mm, "blk": blk}
            if host in ill:
                z[kind] = ill[host]
            said.append((host, z))
        return said


@pytest.fixture
def source() -> Source:
    return Source(1, list(HOSTS))


@pytest.fixture
def watch(source: Source) -> FleetWatch:
    calibrated = FleetWatch(HOSTS, KINDS, 2, needed=120)
    for at in range(120):
        tick = calibrated.step(source.tick(), NOTHING)
        assert (tick.phase, tick.calibrated, tick.needed) == (Phase.CALIBRATING, at + 1, 120)
    return calibrated


def run(
    watch: FleetWatch, source: Source, ticks: int, against: Mapping[str, Evidence] = NOTHING, **ill: float
) -> FleetTick:
    for _ in range(ticks):
        tick = watch.step(source.tick({name.replace("_", "-"): z for name, z in ill.items()}), against)
    return tick


def test_quiet_then_a_local_fault_then_quiet(watch: FleetWatch, source: Source):
    quiet = run(watch, source, 5)
    assert quiet.phase is Phase.BAU
    assert set(quiet.decisions) == {"mm", "blk"}  # and no gpu
    ill = run(watch, source, 3, host_7=60.0)
    assert ill.phase is Phase.BAU  # one host explains it all
    assert [(one.host, one.kind, one.suspect.label) for one in ill.named] == [("host-7", "blk", Label.LOCAL_FAULT)]
    assert ill.minimax < 11.34 < ill.largest
    assert run(watch, source, 1).named == ()


def test_evidence_makes_it_byzantine_and_is_shown_without_divergence_too(watch: FleetWatch, source: Source):
    against = {"host-7": Evidence.WITNESS, "host-2": Evidence.CLONE, "stranger": Evidence.SEAL}
    tick = run(watch, source, 3, against, host_7=60.0)
    assert [(one.host, one.suspect.label) for one in tick.named] == [("host-7", Label.SUSPECTED_BYZANTINE)]
    assert tick.contradicted == ("host-2", "host-7")


def test_a_fault_of_many_is_the_fleets(watch: FleetWatch, source: Source):
    tick = run(watch, source, 4, host_1=40.0, host_2=40.0, host_3=40.0)
    assert tick.phase is Phase.CRITICAL
    assert tick.settled == {"mm": Phase.BAU, "blk": Phase.CRITICAL}
    assert tick.named == ()
    assert tick.minimax > 11.34


def test_hosts_come_and_go_and_names_follow(watch: FleetWatch, source: Source):
    run(watch, source, 3, host_7=60.0)
    watch.admit([*HOSTS, "a-new-one"], 2)
    source.hosts.append("a-new-one")
    assert run(watch, source, 1, host_6=60.0).named == ()  # stands where host-7 stood
    assert run(watch, source, 2, host_7=60.0).named == ()  # it takes three ticks of the new list
    assert [one.host for one in run(watch, source, 1, host_7=60.0).named] == ["host-7"]


def test_another_f_calibrates_anew(watch: FleetWatch, source: Source):
    watch.admit(HOSTS, 2)
    assert run(watch, source, 1).phase is Phase.BAU
    watch.admit(HOSTS, 3)
    tick = run(watch, source, 1)
    assert (tick.phase, tick.calibrated) == (Phase.CALIBRATING, 1)


def test_silent_hosts_leave_no_quorum_and_the_phase_stays(watch: FleetWatch, source: Source):
    run(watch, source, 4, host_1=40.0, host_2=40.0, host_3=40.0)
    source.hosts = source.hosts[:4]
    tick = run(watch, source, 5)
    assert not tick.decisions["blk"].quorate
    assert tick.settled["blk"] is Phase.CRITICAL


def test_calibration_waits_for_enough_ticks_with_a_quorum(source: Source):
    watch = FleetWatch(HOSTS, KINDS, 2, needed=120)
    everybody = source.hosts
    source.hosts = everybody[:3]
    run(watch, source, 100)
    source.hosts = everybody
    assert run(watch, source, 60).phase is Phase.CALIBRATING
    assert run(watch, source, 60).phase is Phase.BAU


def test_what_makes_no_fleet():
    with pytest.raises(ValueError, match="below half of the 4 hosts"):
        FleetWatch(HOSTS[:4], KINDS, 2)
    with pytest.raises(ValueError, match="at least 60 ticks"):
        FleetWatch(HOSTS, KINDS, 2, needed=10)


def test_a_kind_that_never_moved_in_calibration_still_counts_once_it_does():
    """Idle hosts have no reclaim: z is 0 in every tick."""

    def said(ill: float = 0.0) -> list[tuple[str, Mapping[str, float]]]:
        return [(host, {"mm": ill if host == "host-3" else 0.0}) for host in HOSTS]

    watch = FleetWatch(HOSTS, ("mm",), 1, needed=60 + 12)
    for _ in range(80):
        tick = watch.step(said(), NOTHING)
    assert tick.phase is Phase.BAU
    for _ in range(3):
        tick = watch.step(said(40.0), NOTHING)
    assert [one.host for one in tick.named] == ["host-3"]
