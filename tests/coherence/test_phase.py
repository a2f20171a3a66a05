# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvps.coherence.phase import CLASSES, Hysteresis, Phase, deviance, phase_of, posterior, priors
from mvps.coherence.special import chi2_logsf, chi2_ppf

BAU, WATCH, ALARM, CRITICAL = CLASSES


@given(st.floats(0.0, 1e4), st.sampled_from([1, 2, 3, 4]))
def test_argmax_of_the_posterior_is_thresholding(x: float, dof: int) -> None:
    odds = posterior(x, dof)
    assert sum(odds) == pytest.approx(1.0)
    cuts = [chi2_ppf(level, dof) for level in (0.95, 0.99, 0.999)]
    if min(abs(x - cut) for cut in cuts) > 1e-9 * (1.0 + x):
        assert CLASSES[int(np.argmax(odds))] == CLASSES[sum(x >= cut for cut in cuts)]
        assert CLASSES[int(np.argmax(odds))] == phase_of(chi2_logsf(x, dof))


@pytest.mark.parametrize("dof", [1, 2, 3, 4])
def test_neighbours_are_equally_likely_on_their_boundary(dof: int) -> None:
    for i, level in enumerate((0.95, 0.99, 0.999)):
        odds = posterior(chi2_ppf(level, dof), dof)
        assert odds[i] == pytest.approx(odds[i + 1], rel=1e-6)


@pytest.mark.parametrize("dof", [1, 2, 3, 4])
def test_priors(dof: int) -> None:
    values = priors(dof)
    assert sum(values) == pytest.approx(1.0)
    assert min(values) > 0.0
    assert values[0] == max(values)


@settings(max_examples=60)
@given(st.floats(1e-3, 5e3), st.sampled_from([1, 2, 3]))
def test_deviance_undoes_the_p_value(x: float, dof: int) -> None:
    assert deviance(chi2_logsf(x, dof), dof) == pytest.approx(x, rel=1e-3, abs=1e-3)


def test_deviance_is_exact_on_the_cutoffs() -> None:
    for level in (0.95, 0.99, 0.999):
        assert deviance(math.log1p(-level), 3) == pytest.approx(chi2_ppf(level, 3), rel=1e-9)


@pytest.mark.parametrize(
    ("raw", "settled"),
    [
        ("BBBBBB", "BBBBBB"),
        ("WWW", "BBW"),  # up after three
        ("WWBWWB", "BBBBBB"),  # a flap is not a phase
        ("WAC", "BBW"),  # each tick reached WATCH at least
        ("CCC", "BBC"),  # straight up if all agree
        ("CCCBBB", "BBCCCB"),  # straight down if none exceeds
        ("WWWAAA", "BBWWWA"),  # escalation needs three as well
        ("WWWAABAAA", "BBWWWWWWA"),
        ("AAAWWWBBB", "BBAAAWWWB"),  # down step by step
        ("AAABBA", "BBAAAA"),  # a dip does not clear an alarm
        ("AAABWBB", "BBAAAWW"),  # to the highest of the last three
    ],
)
def test_hysteresis_table(raw: str, settled: str) -> None:
    letters = dict(zip("BWAC", CLASSES, strict=True))
    state = Hysteresis()
    seen = []
    for letter in raw:
        state = state.step(letters[letter], 3)
        seen.append(state.phase)
    assert seen == [letters[letter] for letter in settled]


@given(st.lists(st.sampled_from(CLASSES), max_size=30))
def test_one_tick_of_hysteresis_follows_the_raw_phase(raw: list[Phase]) -> None:
    state = Hysteresis()
    for phase in raw:
        state = state.step(phase, 1)
        assert state.phase == phase
