# SPDX-License-Identifier: Apache-2.0
"""The attack study on the recorded ticks that ship: a replay, so the figures are the same on every machine."""

from __future__ import annotations

from collections.abc import Callable
from xml.etree import ElementTree

import numpy as np
import pytest
from bench import byzantine
from bench.byzantine import Recorded, hosts_ticks, lie

from mvps.robust import fleet
from mvps.robust.disagreement import IN_A_ROW
from mvps.robust.fleet import Evidence


@pytest.fixture(scope="module")
def source() -> Recorded:
    return byzantine.recorded(byzantine.RECORDING)


def test_the_recording_has_enough_and_no_witness_disagrees_in_a_real_fault(source: Recorded):
    assert len(source.calibration) >= 60
    assert len(source.fault) >= 10
    for part in source:
        assert part[..., :-1].sum(axis=-1) == pytest.approx(np.ones(part.shape[:2]))
        assert part[..., -1].sum() == 0.0
    everything = np.concatenate((source.calibration, source.judged))[..., :-1]
    assert len(np.unique(everything.reshape(len(everything), -1), axis=0)) == len(everything)


def test_the_rule_for_own_checks_contradicts_the_honest_host_in_no_tick() -> None:
    found = byzantine.witnessed(byzantine.RECORDING)
    assert set(found) == {"mm", "blk", "sock", "sched", "irq", "path", "path_tcp", "path_fib"}
    for name, seen in found.items():
        assert seen["failed_in_a_fault"] <= seen["failed"] <= seen["checked"] <= seen["ticks"], name
        assert (seen["contradicted"] > 0) == (seen["longest_row"] >= IN_A_ROW), name
        assert seen["contradicted"] == 0, name
    assert all(found[name]["checked"] > 0.5 * found[name]["ticks"] for name in ("blk", "irq"))


def test_what_the_rule_for_own_checks_finds_of_a_probe_that_miscounts(monkeypatch: pytest.MonkeyPatch) -> None:
    found = byzantine.tampered(byzantine.RECORDING)
    for name, least in (("irq", 0.99), ("blk", 0.95)):
        for told, seen in found[name].items():
            assert seen["contradicted"] > least * seen["ticks"], (name, told)
    monkeypatch.setattr(byzantine, "TOLD", (1.0,))
    for name, seen in byzantine.tampered(byzantine.RECORDING).items():
        assert seen["1 of it"]["failed"] == 0, name


def test_no_recorded_distribution_is_impossible_beside_its_events() -> None:
    found = byzantine.impossible(byzantine.RECORDING)
    assert found["ticks"] > 1000
    assert found["impossible"] == 0


def test_no_two_hosts_show_the_same_stretch(source: Recorded):
    numbered = np.broadcast_to(np.arange(len(source.judged))[:, None, None], (len(source.judged), byzantine.STRETCH, 1))
    ticks = hosts_ticks(np.random.default_rng(0), numbered, 90, 23)
    assert ticks.shape == (23, 90, 1)
    assert all(len(np.unique(tick)) == 90 for tick in ticks)


@pytest.mark.parametrize("strategy", byzantine.QUIET_LIES + byzantine.FAULT_LIES)
def test_liars_lie_and_the_others_do_not(source: Recorded, strategy: str):
    rng = np.random.default_rng(1)
    true, old = (hosts_ticks(rng, source.judged, 8, 40) for _ in range(2))
    law = source.calibration[..., :-1].mean(axis=(0, 1))
    told = lie(strategy, true, 3, law, old)
    assert np.array_equal(told[:, 3:], true[:, 3:])
    assert (told[:, :3, -1] == 1.0).all()
    assert told[:, :3, :-1].sum(axis=-1) == pytest.approx(np.ones((40, 3)))
    strange = told[-1, 0, -2]
    expected = {"point": 1.0, "collusion": 0.1, "drift": 0.005 * 39}.get(strategy, 0.0)
    assert strange == pytest.approx(expected, abs=0.02)


def test_three_of_sixteen_are_named_and_no_honest_host_is_accused(source: Recorded):
    cases = byzantine._cases(source, 16, 3, 2)
    assert cases["point"]["fleet"]["caught"] == cases["collusion"]["fleet"]["caught"] == 1.0
    assert cases["point"]["fleet"]["right_of_named"] == 1.0
    assert all(case["fleet"]["honest_accused"] == 0.0 for case in cases.values())
    assert cases["honest, one local fault"]["mean"]["honest_accused"] == 1.0
    assert cases["honest, all weakly ill"]["fleet"]["caught"] == 1.0
    drawing = ElementTree.fromstring(byzantine.drawn({"N=16 f=3": cases}))
    assert len(drawing.findall("{http://www.w3.org/2000/svg}rect")) == 1 + 8 * 4


# ---- each detector and each lie is broken once, and the figure that stands for it falls


def figure(source: Recorded, judge: str, case: str, f: int, name: str) -> float:
    """One figure of one judge about one case, of a fleet of 16 in two episodes, made as the study makes it."""
    judges = {judge: byzantine.JUDGES[judge](byzantine.calibration(source, 16, f), f)}
    found = byzantine.rates(judges, byzantine.cases_of(source, 16, f)[case], 2)
    return float(found[judge][name] or 0.0)


def blind_to_own_law(patch: pytest.MonkeyPatch) -> None:
    """Hosts are compared with each other only, as the source does it, and not with their own BAU."""
    among = byzantine.divergences
    patch.setattr(byzantine, "divergences", lambda p, law: among(p, p.mean(axis=0) if len(p) == 16 else law))


def no_removal(patch: pytest.MonkeyPatch) -> None:
    """The minimax leaves nobody out."""
    true = fleet.statistics

    def kept(z: np.ndarray, f: int) -> np.ndarray:
        found = true(z, f)
        found[:, 1] = found[:, 0]
        return found

    patch.setattr(fleet, "statistics", kept)


def evidence_for_everybody(patch: pytest.MonkeyPatch) -> None:
    """A single source is a liar, as in the source."""
    true = fleet.decide
    patch.setattr(fleet, "decide", lambda z, evidence, baseline: true(z, evidence | int(Evidence.WITNESS), baseline))


def one_tick_is_enough(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(byzantine, "IN_A_ROW", 1)


def no_divergence(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(fleet, "is_divergent", lambda *_: False)


def mean_for_median(patch: pytest.MonkeyPatch) -> None:
    """The median is the mean, and nobody is left out."""
    patch.setattr(byzantine, "geometric_median", lambda p, **_: type("Mean", (), {"point": p.mean(axis=0)}))
    patch.setattr(byzantine, "c2_gm", lambda away, f: 1.0 - float(away.mean()))


def location_elsewhere(patch: pytest.MonkeyPatch) -> None:
    """The MCD finds another place than that of the window's ticks."""
    true = byzantine.fit_scatter

    def moved(x: np.ndarray, *rest: object, **more: object) -> object:
        found = true(x, *rest, **more)  # type: ignore[arg-type]
        return found._replace(location=found.location + 1.0)

    patch.setattr(byzantine, "fit_scatter", moved)


@pytest.mark.parametrize(
    ("judge", "case", "f", "name", "whole", "broken", "breaks"),
    [
        ("fleet", "point", 3, "caught", 1.0, 0.0, no_removal),
        ("fleet", "honest, all weakly ill", 3, "caught", 1.0, 0.0, blind_to_own_law),
        ("fleet", "honest, one local fault", 3, "honest_accused", 0.0, 1.0, evidence_for_everybody),
        ("fleet", "point", 3, "ticks", 3.0, 1.0, one_tick_is_enough),
        ("mean", "point", 1, "caught", 1.0, 0.0, no_divergence),
        ("median", "point", 7, "caught", 1.0, 0.0, mean_for_median),
        ("mcd", "point", 1, "caught", 1.0, 0.0, location_elsewhere),
    ],
)
def test_a_detector_that_is_broken_shows(
    source: Recorded,
    monkeypatch: pytest.MonkeyPatch,
    judge: str,
    case: str,
    f: int,
    name: str,
    whole: float,
    broken: float,
    breaks: Callable[[pytest.MonkeyPatch], None],
) -> None:
    assert figure(source, judge, case, f, name) == whole
    breaks(monkeypatch)
    assert figure(source, judge, case, f, name) == broken


@pytest.mark.parametrize("strategy", byzantine.QUIET_LIES + byzantine.FAULT_LIES)
def test_a_lie_that_is_none_is_not_caught(source: Recorded, monkeypatch: pytest.MonkeyPatch, strategy: str) -> None:
    """Liars who tell the truth among hosts that are well."""
    assert figure(source, "fleet", strategy, 3, "caught") == 1.0
    monkeypatch.setattr(byzantine, "lie", lambda strategy, ticks, *_: ticks)
    assert figure(source._replace(weak=source.judged), "fleet", strategy, 3, "caught") == 0.0
