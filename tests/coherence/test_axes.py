# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial import distance as oracle

from mvps.coherence import axes
from mvps.coherence.alphabet import distribution

PSEUDO = 10.0
BAU = np.array([0.99, 0.0099, 0.0001, 0.0, 0.0, 0.0])
FAULT = np.array([0.6, 0.2, 0.1, 0.05, 0.03, 0.02])

counts = hnp.arrays(np.float64, st.tuples(st.integers(1, 6), st.just(6)), elements=st.integers(0, 500).map(float))


def shown(c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return distribution(c, BAU, PSEUDO), c.sum(axis=-1)


@given(counts)
def test_jsd_against_scipy(c: np.ndarray) -> None:
    p, _ = shown(c)
    expected = oracle.jensenshannon(p[0], p[-1], base=2) ** 2
    assert axes.jsd(p[[0, -1]]) == pytest.approx(0.0 if math.isnan(expected) else expected, abs=1e-12)


@given(counts)
def test_bounds_and_permutation_invariance(c: np.ndarray) -> None:
    p, n = shown(c)
    value = float(axes.c2(p, n, BAU, PSEUDO))
    plain = axes.c2_plain(p)
    assert 0.0 <= value <= 1.0
    assert axes.c2(p[::-1], n[::-1], BAU, PSEUDO) == pytest.approx(value, abs=1e-12)
    if plain is not None:
        assert 0.0 <= plain <= 1.0
        assert axes.c2_plain(p[::-1]) == pytest.approx(plain, abs=1e-12)


def test_identical_laws_are_fully_coherent() -> None:
    p = np.tile(BAU, (4, 1))
    assert axes.jsd(p) == 0.0
    assert axes.c2(p, np.full(4, 1e9), BAU, PSEUDO) == pytest.approx(1.0)
    assert axes.c2_plain(p) == 1.0


def test_disjoint_laws_are_incoherent() -> None:
    assert axes.jsd(np.eye(2)) == pytest.approx(1.0)
    assert axes.c2_plain(np.eye(6)) == pytest.approx(0.0)


def test_the_reference_sees_a_common_shift_and_the_plain_form_does_not() -> None:
    p = np.tile(FAULT, (5, 1))
    assert axes.c2_plain(p) == 1.0
    assert float(axes.c2(p, np.full(5, 1e6), BAU, PSEUDO)) < 0.97


def test_absent_vantages_do_not_count() -> None:
    p = np.stack((BAU, FAULT, BAU))
    n = np.array([500.0, 100.0, 800.0])
    present = np.array([True, False, True])
    assert axes.c2(p, n, BAU, PSEUDO, present) == pytest.approx(axes.c2(p[present], n[present], BAU, PSEUDO))
    assert np.isnan(axes.c2(p, n, BAU, PSEUDO, np.zeros(3, dtype=bool)))


@pytest.mark.parametrize("law", [BAU, np.array([0.9, 0.06, 0.03, 0.01, 0.0, 0.0])])
def test_healthy_law_gives_the_same_value_at_any_rate(law: np.ndarray) -> None:
    """0.1x to 1000x of 1000 events per tick: mean C_2 within .002, own distance within .3 of its noise sd.

    4000 draws a rate. Without the bias the plug-in form would move by about 40 times its noise.
    """
    rng = np.random.default_rng(7)
    for rate in (0.1, 0.3, 1.0, 10.0, 1000.0):
        c = rng.multinomial(int(1000 * rate), law, size=(800, 5)).astype(float)
        p, n = distribution(c, law, PSEUDO), c.sum(axis=-1)
        assert axes.c2(p, n, law, PSEUDO).mean() == pytest.approx(1.0, abs=2e-3)
        own = axes.own_distance(p, n, np.tile(law, (5, 1)), PSEUDO)
        noise = axes.own_noise(p, n, np.tile(law, (5, 1)), PSEUDO)
        assert abs(float((own / np.sqrt(noise)).mean())) < 0.3


def test_faulty_law_gives_nearly_the_same_value_at_any_rate() -> None:
    """One of five vantages ill, 0.1x to 1000x of 1000 events: mean C_2 within .01 (the pseudo-count's pull)."""
    rng = np.random.default_rng(8)
    laws = np.stack((FAULT, BAU, BAU, BAU, BAU))
    means = []
    for rate in (0.1, 1.0, 1000.0):
        c = np.stack([rng.multinomial(int(1000 * rate), law, size=400) for law in laws], axis=1).astype(float)
        p, n = distribution(c, BAU, PSEUDO), c.sum(axis=-1)
        means.append(float(axes.c2(p, n, BAU, PSEUDO).mean()))
    assert max(means) - min(means) < 0.01
    assert max(means) < 0.98


def test_the_plug_in_form_is_not_volume_independent() -> None:
    """Why the bias is subtracted: without it the same law at a tenth of the rate looks ten times as far."""
    rng = np.random.default_rng(9)
    law = np.array([0.9, 0.06, 0.03, 0.01, 0.0, 0.0])
    raw = [axes.jsd(rng.multinomial(n, law, size=(500, 5)) / n).mean() for n in (100, 1000)]
    assert raw[0] > 5.0 * raw[1]


def test_own_distance_is_zero_at_home_and_grows() -> None:
    law = np.tile(BAU, (3, 1))
    p = np.stack((BAU, 0.9 * BAU + 0.1 * FAULT, FAULT))
    own = axes.own_distance(p, np.full(3, np.inf), law, PSEUDO)
    assert own[0] == 0.0
    assert own[0] < own[1] < own[2]


def test_c1() -> None:
    assert axes.c1(0.0, 0.0, None, 4) is None
    assert axes.c1(10.0, 0.0, None, 0) == 1.0
    assert axes.c1(10.0, 4.0, None, 0) == pytest.approx(0.6)
    assert axes.c1(0.0, 0.0, (1.0, 50.0), 4) == pytest.approx(0.5)
    assert axes.c1(10.0, 5.0, (1.0, 50.0), 4) == pytest.approx(0.25)
    assert axes.c1(0.0, 0.0, (9.0, 50.0), 4) == 0.0


def test_healthy_multipath_has_no_conditional_entropy() -> None:
    """Four flows, each pinned to another next hop: unconditional entropy 2 bits, conditional 0."""
    assert axes.conditional_entropy([{k: 25.0} for k in range(4)]) == (0.0, 100.0)
    flapping = axes.conditional_entropy([{1: 500.0, 2: 500.0}, {3: 1000.0}])
    assert flapping is not None
    assert flapping[0] == pytest.approx(0.5, abs=1e-2)
    assert axes.conditional_entropy([]) is None


def test_jaccard_edge_cases() -> None:
    empty: frozenset[int] = frozenset()
    assert axes.jaccard(empty, empty) == 1.0
    assert axes.jaccard(empty, {1}) == 0.0
    assert axes.jaccard({1, 2}, {2, 3}) == pytest.approx(1 / 3)
    assert axes.jaccard({1}, {1}) == 1.0


sets = st.frozensets(st.integers(0, 8), max_size=6)


@settings(max_examples=60)
@given(st.lists(st.tuples(sets, sets), min_size=2, max_size=5))
def test_c3_bounds_and_permutation(pairs: list[tuple[frozenset[int], frozenset[int]]]) -> None:
    touched, bau = [list(side) for side in zip(*pairs, strict=True)]
    value = axes.c3(touched, bau)
    assert value is not None
    assert 0.0 <= value <= 1.0
    assert axes.c3(touched[::-1], bau[::-1]) == pytest.approx(value)


def test_c3_below_two_emitters_is_absent() -> None:
    assert axes.c3([], []) is None
    assert axes.c3([{1}], [{1}]) is None


def test_c3_falls_when_a_fault_fills_an_empty_set() -> None:
    """Pairs alone would rise, as the two vantages now agree on the victim; the BAU terms prevent it."""
    bau: list[frozenset[int]] = [frozenset(), frozenset({1})]
    before = axes.c3([frozenset(), frozenset({1})], bau)
    after = axes.c3([frozenset({1}), frozenset({1})], bau)
    assert before is not None
    assert after is not None
    assert after <= before


def test_hamiltonian() -> None:
    assert axes.hamiltonian((1.0, 1.0, None)) == 0.0
    assert axes.hamiltonian((0.5, None, 0.5)) == pytest.approx(2.0 * math.log(2.0))
    assert axes.hamiltonian((0.0,), epsilon=1e-6) == pytest.approx(6.0 * math.log(10.0))
