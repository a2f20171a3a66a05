# SPDX-License-Identifier: Apache-2.0
"""The attack study on the recorded ticks that ship: a replay, so the figures are the same on every machine."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest
from bench import byzantine
from bench.byzantine import Recorded, hosts_ticks, lie


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
