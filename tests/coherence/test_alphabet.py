# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mvps.coherence.alphabet import Alphabet, distribution, normal_law
from mvps.coherence.observation import HIST_BINS, SUB_BINS, Scale

SCALE = Scale("ns", 1024.0, 2048.0)
histograms = hnp.arrays(np.float64, (5, HIST_BINS), elements=st.integers(0, 1000).map(float))


@settings(max_examples=30)
@given(histograms)
def test_bau_mass_of_label_0_is_at_least_99_percent(h: np.ndarray) -> None:
    """Exactly .99 where the p99 lies beyond quiet, by splitting the edge bin; more where quiet rules."""
    alphabet = Alphabet.fit("blk", SCALE, h)
    counts = alphabet.label(h)
    assert counts.sum() == pytest.approx(h.sum())
    assert np.all(counts[:, 2:] == 0.0), "nothing in BAU lies beyond the worst seen in BAU"
    if h.sum() > 0.0:
        mass = counts[:, 0].sum() / h.sum()
        if alphabet.edge > SCALE.bin_of(SCALE.quiet):
            assert mass == pytest.approx(0.99)
        else:
            assert mass >= 0.99 - 1e-12


def test_octaves_beyond_the_worst() -> None:
    h = np.zeros((1, HIST_BINS))
    h[0, 40] = 1000.0
    alphabet = Alphabet.fit("blk", SCALE, h)
    assert (alphabet.edge, alphabet.worst) == (40, 40)
    label = alphabet.matrix.argmax(axis=1)
    for octave, expected in enumerate((2, 3, 4, 5, 5)):
        first = 41 + SUB_BINS * octave
        assert set(label[first : first + SUB_BINS]) == {expected}


def test_without_bau_events_the_scale_is_absolute() -> None:
    alphabet = Alphabet.fit("mm", SCALE, np.zeros((10, HIST_BINS)))
    quiet = SCALE.bin_of(SCALE.quiet)
    assert (alphabet.edge, alphabet.worst, alphabet.share) == (quiet, quiet, 1.0)
    assert alphabet.label(np.eye(HIST_BINS)[quiet]).argmax() == 0
    assert alphabet.label(np.eye(HIST_BINS)[quiet + 1]).argmax() == 2


def test_edges_never_fall_below_quiet() -> None:
    h = np.zeros((1, HIST_BINS))
    h[0, 1] = 100.0
    assert Alphabet.fit("blk", Scale("ns", 1024.0, 1e6), h).edge == Scale("ns", 1024.0, 1e6).bin_of(1e6)


@settings(max_examples=30)
@given(histograms)
def test_labelling_keeps_every_event(h: np.ndarray) -> None:
    alphabet = Alphabet.fit("blk", SCALE, h[:2])
    assert alphabet.label(h).sum() == pytest.approx(h.sum())


def test_a_silent_vantage_shows_its_prior_exactly() -> None:
    prior = np.array([0.97, 0.02, 0.01, 0.0, 0.0, 0.0])
    assert np.array_equal(distribution(np.zeros(6), prior, 10.0), prior)


def test_one_event_moves_little_and_many_events_rule() -> None:
    worst = np.eye(6)[5]
    assert distribution(worst, normal_law(), 10.0)[5] == pytest.approx(1 / 11)
    assert distribution(1e6 * worst, normal_law(), 10.0)[5] == pytest.approx(1.0, abs=1e-4)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        Alphabet.fit("blk", SCALE, np.zeros((3, 7)))
    with pytest.raises(ValueError, match="edge <= worst"):
        Alphabet("blk", 10, 1.0, 9)
    with pytest.raises(ValueError, match="pseudo-count must be positive"):
        distribution(np.zeros(6), normal_law(), 0.0)
