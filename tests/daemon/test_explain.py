# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from mvps.daemon.explain import sentence
from mvps.v1.snapshot_pb2 import Phase, Surface


def _decided(phase: Phase, raw: Phase | None = None) -> Surface:
    surface = Surface(name="kernel")
    surface.vector.farthest, surface.vector.s = "blk", 7.25
    decision = surface.decision
    decision.phase, decision.raw_phase = phase, raw or phase
    decision.d2, decision.dof, decision.p_value = 31.5, 3, 2e-5
    decision.cutoffs.watch, decision.cutoffs.alarm, decision.cutoffs.critical = 7.0, 11.0, 16.0
    decision.cutoffs.mode = "empirical"
    for name, value in (("c1", 0.5), ("c2", 30.5), ("c3", 0.5)):
        decision.axis_contributions.add(name=name, value=value)
    return surface


def test_calibration_says_how_far_it_is() -> None:
    text = sentence(Surface(name="kernel", calibrated_ticks=40, needed_ticks=300))
    assert "40 of 300" in text
    assert "260 to go" in text


def test_an_alarm_names_axis_and_leader() -> None:
    text = sentence(_decided(Phase.PHASE_ALARM))
    assert text.startswith("kernel is ALARM: D^2 = 31.50 on 3 axes (WATCH from 7.00")
    assert "C_2 (vantages disagree" in text
    assert "C_1" not in text
    assert "blk is farthest from its own usual, +7.2 sigma" in text


def test_axes_of_a_language_models_surface_have_words_too() -> None:
    surface = _decided(Phase.PHASE_ALARM)
    surface.name = "ai.g"
    del surface.decision.axis_contributions[:]
    for name, value in (("c1", 0.5), ("c2_w2", 15.0), ("c3_cka", 16.0)):
        surface.decision.axis_contributions.add(name=name, value=value)
    text = sentence(surface)
    assert "due to C_3 (replicas attend differently to the same words) and C_2 (replicas mean different things)" in text


def test_bau_does_not_look_for_somebody_to_blame() -> None:
    text = sentence(_decided(Phase.PHASE_BAU))
    assert "due to" not in text
    assert "farthest" not in text


def test_waiting_hysteresis_is_said() -> None:
    assert "this tick alone says CRITICAL" in sentence(_decided(Phase.PHASE_BAU, Phase.PHASE_CRITICAL))


def test_a_shift_says_how_to_accept_it() -> None:
    assert "mvps accept kernel" in sentence(_decided(Phase.PHASE_SHIFTED))


def test_missing_vantages_are_named() -> None:
    surface = _decided(Phase.PHASE_BAU)
    surface.missing.append("mm")
    assert "without mm" in sentence(surface)
