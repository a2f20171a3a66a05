# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import chi2, ncx2

from mvps.coupling.distance import SEED_LIMITS, Distances, Limits
from mvps.coupling.phases import PHASES, ICPhase, Settled, advice, classify, phase_codes

P = ICPhase
any_number = st.floats(0.0, 60.0) | st.sampled_from([math.nan, math.inf, 0.0]) | st.sampled_from(list(SEED_LIMITS))


def source_labels(net: float, ai: float, joint: float, predicted: float) -> set[str]:
    """Every label that 001 sec. 20.2 gives, word by word."""
    w = SEED_LIMITS
    found = set()
    if joint < w.joint and net < w.net and ai < w.ai:
        found.add("0")
    if net >= w.net and ai < w.ai and predicted > 0.0:
        found.add("1")
    if ai >= w.ai and net < w.net:
        found.add("2")
    if joint >= w.joint and net < w.net and ai < w.ai:
        found.add("3")
    if joint >= w.joint_alarm and net >= w.net and ai >= w.ai:
        found.add("4")
    return found


def by_the_table(net: float, ai: float, joint: float, w: Limits) -> ICPhase:
    """The docstring's table, row by row."""
    if any(map(math.isnan, (net, ai, joint))):
        return P.INCOMPLETE
    over = (net >= w.net, ai >= w.ai)
    if over == (False, False):
        return P.JOINT_BAU if joint < w.joint else P.COUPLED_SUM if joint < w.sum else P.COUPLED
    if over == (True, False):
        return P.NET_LEADS
    if over == (False, True):
        return P.AI_LEADS
    if joint >= w.joint_alarm:
        return P.CASCADING
    return P.NET_LEADS if net / w.net >= ai / w.ai else P.AI_LEADS


def test_every_region_has_the_one_label_of_the_table_and_the_sources_where_it_gives_one() -> None:
    """All combinations of one value per region of each distance, and the borders themselves."""
    w = SEED_LIMITS
    surface = [0.0, w.net - 1e-9, w.net, w.net + 1.0, 15.0, math.inf, math.nan]
    joint = [0.0, w.joint - 1e-9, w.joint, w.sum - 1e-9, w.sum, w.joint_alarm - 1e-9, w.joint_alarm, 90.0, math.nan]
    seen = set()
    gaps = 0
    for net, ai, both in itertools.product(surface, surface, joint):
        if math.isinf(net) and math.isinf(ai):
            continue  # who is farther is undefined between two infinities; below
        phase = classify(net, ai, both, w)
        assert phase is by_the_table(net, ai, both, w), (net, ai, both)
        seen.add(phase)
        if phase is not P.INCOMPLETE:
            labels = source_labels(net, ai, both, predicted=0.2)
            assert len(labels) <= 1
            assert labels <= {phase.value[0]}
            gaps += not labels
            # Its own prediction is never above 0: then Phase 1 has no member at all.
            assert "1" not in source_labels(net, ai, both, predicted=-0.2)
    assert seen == set(P)
    assert gaps > 0


@given(any_number, any_number, any_number)
def test_total(net: float, ai: float, joint: float) -> None:
    phase = classify(net, ai, joint, SEED_LIMITS)
    assert (phase is P.INCOMPLETE) == any(map(math.isnan, (net, ai, joint)))
    assert advice(phase)


def test_two_infinite_distances_have_a_label_too() -> None:
    assert classify(math.inf, math.inf, math.inf, SEED_LIMITS) is P.CASCADING
    assert classify(math.inf, math.inf, 0.0, SEED_LIMITS) in (P.NET_LEADS, P.AI_LEADS)


@given(st.lists(st.tuples(any_number, any_number, any_number), min_size=1, max_size=20))
def test_many_ticks_are_each_tick(rows: list[tuple[float, float, float]]) -> None:
    codes = phase_codes(Distances(*np.array(rows).T), SEED_LIMITS)
    assert [PHASES[code] for code in codes] == [classify(*row, SEED_LIMITS) for row in rows]


def test_3b_needs_the_cross_block_and_3a_does_not() -> None:
    """Any two surfaces below their limits add up to less than 3b."""
    w = SEED_LIMITS
    below = np.linspace(0.0, w.net - 1e-9, 60)
    net, ai = (grid.ravel() for grid in np.meshgrid(below, below))
    found = {PHASES[code] for code in phase_codes(Distances(net, ai, net + ai), w)}
    assert found == {P.JOINT_BAU, P.COUPLED_SUM}


def test_quiet_rate_of_phase_3_without_coupling() -> None:
    """000 sec. 4.3 says it cannot exist: it is 0.58 % of the ticks with a known covariance, in closed form."""
    w = SEED_LIMITS

    def inner(x: float) -> float:
        return chi2.pdf(x, 3) * max(chi2.cdf(w.ai, 3) - chi2.cdf(max(w.joint - x, 0.0), 3), 0.0)

    rate, _ = quad(inner, w.joint - w.ai, w.net)
    assert rate == pytest.approx(0.00576, abs=1e-5)
    rng = np.random.default_rng(0)
    net, ai = rng.chisquare(3, (2, 400_000))
    codes = phase_codes(Distances(net, ai, net + ai), w)
    assert (codes == PHASES.index(P.COUPLED_SUM)).mean() == pytest.approx(rate, rel=0.1)
    assert not (codes == PHASES.index(P.COUPLED)).any()


LETTERS = dict(zip("-012abC", P, strict=True))


@pytest.mark.parametrize(
    ("raw", "settled"),
    [
        ("000111", "000001"),
        ("0110111", "0000001"),  # a flap is no phase
        ("1C1", "001"),  # unwell throughout: the most frequent
        ("12C", "00C"),  # all once: the latest
        ("1110000", "0011100"),
        ("111010", "001111"),
        ("CCC0b0", "00CCCb"),  # two well ticks of three do not soothe
        ("---000", "00---0"),
        ("222111", "002221"),
    ],
)
def test_hysteresis_table(raw: str, settled: str) -> None:
    state = Settled()
    seen = []
    for letter in raw:
        state = state.step(LETTERS[letter], 3)
        seen.append(state.phase)
    assert seen == [LETTERS[letter] for letter in settled]


@given(st.lists(st.sampled_from(PHASES), max_size=40), st.integers(1, 5))
def test_hysteresis_always_settles_and_never_on_what_was_not_seen(raw: list[ICPhase], ticks: int) -> None:
    state = Settled()
    for number, phase in enumerate(raw):
        before = state.phase
        state = state.step(phase, ticks)
        last = raw[max(number - ticks + 1, 0) : number + 1]
        assert state.phase is before or state.phase in last
        if ticks == 1 or (len(last) == ticks and len(set(last)) == 1):
            assert state.phase is last[-1]
        if state.phase is P.JOINT_BAU and before is not P.JOINT_BAU:
            assert set(last) == {P.JOINT_BAU}


def test_each_phase_says_what_to_do() -> None:
    assert len({advice(phase) for phase in P}) == len(P)
    assert "pre-warm" in advice(P.NET_LEADS, 0.31)
    assert "0.31" in advice(P.NET_LEADS, 0.31)
    assert "network event only" in advice(P.NET_LEADS, 0.0)
    assert "GPU memory" in advice(P.AI_LEADS)
    assert "drain" in advice(P.CASCADING)


def test_the_joint_distance_has_power_without_any_coupling() -> None:
    """001 sec. 20.3 denies it. A fault that moves both surfaces a little, at 5 % false alarms in both ways to watch."""
    either_cut = chi2.isf(1.0 - math.sqrt(0.95), 3)
    for moved in (5.0, 8.0):
        joint = ncx2.sf(SEED_LIMITS.joint, 6, 2.0 * moved)
        either = 1.0 - ncx2.cdf(either_cut, 3, moved) ** 2
        assert joint > either + 0.02
    # A fault of one surface alone is seen better by two monitors.
    assert ncx2.sf(SEED_LIMITS.joint, 6, 10.0) < 1.0 - ncx2.cdf(either_cut, 3, 10.0) * chi2.cdf(either_cut, 3) - 0.02


def test_thirty_quiet_days_hold_thousands_of_phase_3_ticks() -> None:
    """000 sec. 7.1 would call the coupling refuted by none of them: without coupling there are 14,900 at 1 Hz."""
    z = np.random.default_rng(1).standard_normal((400_000, 6))
    squares = z * z
    found = Distances(squares[:, :3].sum(axis=1), squares[:, 3:].sum(axis=1), squares.sum(axis=1))
    share = np.isin(phase_codes(found, SEED_LIMITS), [PHASES.index(P.COUPLED_SUM), PHASES.index(P.COUPLED)]).mean()
    assert share * 30 * 86_400 == pytest.approx(14_900, rel=0.1)
