# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest

from mvps.coherence.axes import c2_plain, jsd
from mvps.coherence.phase import Phase
from mvps.robust.as_graph import synthetic_internet
from mvps.robust.hijack import DOCUMENT, study_bundle, study_cascade
from mvps.robust.minimax import TooManyRemovals


@pytest.fixture(scope="module")
def bundle():
    return study_bundle(5, 1)


def test_point_masses_have_the_divergence_that_the_formula_gives(bundle):
    """001 sec. 16: 4 of 5 agree, one is elsewhere: H(.8, .2) = 0.722 bit, C_2 = .69 (log2 5) or .28 (two labels)."""
    entropy = -0.8 * math.log2(0.8) - 0.2 * math.log2(0.2)
    assert entropy == pytest.approx(0.722, abs=1e-3)
    assert bundle.jsd == pytest.approx(entropy, abs=0.03)
    assert bundle.c2 == pytest.approx(1.0 - entropy / math.log2(5), abs=0.02)
    assert bundle.c2_two_labels == pytest.approx(1.0 - entropy)
    assert all(abs(float(DOCUMENT["c2"]) - value) > 0.1 for value in (bundle.c2, bundle.c2_two_labels))


def test_one_liar_moves_the_mean_by_a_tenth_of_a_bit():
    """001 sec. 10 says that JSD(M, M*) nears its maximum and C_2 falls to 0."""
    honest, lied = np.array([1.0, 0.0, 0.0, 0.0, 0.0]), np.array([0.8, 0.2, 0.0, 0.0, 0.0])
    assert float(jsd(np.stack((lied, honest)))) == pytest.approx(0.108, abs=1e-3)
    assert c2_plain(np.vstack([honest] * 4 + [np.eye(5)[1]])) == pytest.approx(0.689, abs=1e-3)


def test_the_robust_forms_see_the_honest_majority(bundle):
    assert bundle.c2_gm > 0.98
    assert bundle.centre_shift < 0.05
    assert bundle.hi > 0.98
    assert bundle.lo < bundle.c2 < bundle.hi


def test_the_sources_form_does_not(bundle):
    """It prints .90; with any centre the divergence is at least JSD itself."""
    assert bundle.c2_gm_seed < bundle.c2
    assert bundle.jsd_gm > bundle.jsd


def test_the_liar_is_found_and_only_evidence_makes_it_one(bundle):
    assert bundle.everybody is Phase.CRITICAL
    assert bundle.phase < Phase.ALARM
    assert bundle.suspects == bundle.named == (4,)
    assert bundle.share > bundle.theta > float(DOCUMENT["theta"])
    assert bundle.label_alone == "LOCAL_FAULT"
    assert bundle.label_with_evidence == "SUSPECTED_BYZANTINE"


def test_three_of_sixteen():
    found = study_bundle(16, 3, seed=1)
    assert found.named == found.suspects == (13, 14, 15)
    assert found.phase < Phase.ALARM


def test_the_same_seed_gives_the_same_figures():
    assert study_bundle(5, 1, seed=3) == study_bundle(5, 1, seed=3)
    assert study_bundle(5, 1, seed=3) != study_bundle(5, 1, seed=4)


def test_who_may_not_be_studied():
    with pytest.raises(ValueError, match="at least one lying"):
        study_bundle(5, 0)
    with pytest.raises(ValueError, match="below half"):
        study_bundle(5, 3)
    with pytest.raises(TooManyRemovals):
        study_bundle(60, 20)


def test_the_mean_field_is_faster_than_any_way_there():
    """lambda is the core's; the vantages are at the edge: half of them take many times as long."""
    graph = synthetic_internet(400, 0)
    found = study_cascade(graph, 5, 1, 399, 398, 0.0, 200)
    assert found.closed < found.saturated < found.simulated[0] < found.simulated[1] < found.simulated[2]
    assert found.simulated[1] > 5.0 * found.closed
    assert found.longest_tick == pytest.approx(found.simulated[0] / 3)
    assert 0.0 < found.reached[0] < found.reached[1] < 1.0


def test_validation_makes_it_slower_and_smaller():
    graph = synthetic_internet(400, 0)
    free, guarded = (study_cascade(graph, 5, 1, 399, 398, share, 100) for share in (0.0, 0.7))
    assert guarded.rate < free.rate
    assert guarded.reached[1] < free.reached[1]
    assert guarded.policy[1] == math.inf
    assert guarded.validating == round(0.7 * 398)


def test_what_cannot_spread():
    graph = synthetic_internet(10, 0)
    for arguments, message in (
        ((5, 1, 9, 8, 1.5, 10), "validating"),
        ((9, 1, 9, 8, 0.0, 10), "too small"),
        ((5, 1, 9, 8, 0.0, 0), "at least one run"),
    ):
        with pytest.raises(ValueError, match=message):
            study_cascade(graph, *arguments)
