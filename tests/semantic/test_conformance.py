# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from mvps.semantic.conformance import Configuration, Model, conformance

MINILM, E5, BGE = Model("minilm@1", "sbert"), Model("e5@1", "e5"), Model("bge@1", "bge")
MPNET, REPHRASER = Model("mpnet@1", "sbert"), Model("opus@1", "marian")
SHARED = {"a": MINILM, "b": MINILM, "c": MINILM}
OWN = {"a": MINILM, "b": E5, "c": BGE}
A, B, C = "L-AI-A4.a", "L-AI-A4.b", "L-AI-A4.c"


def calibrated(encoders: dict[str, Model]) -> dict[str, str]:
    return {vantage: encoder.name for vantage, encoder in encoders.items()}


@pytest.mark.parametrize(
    ("encoders", "baselines", "rephrasers", "c4", "holds"),
    [
        (SHARED, {}, (MINILM,), True, ()),  # the source's caveat: one encoder for everything
        (SHARED, {}, (MPNET,), True, ()),  # another model of its pipeline
        (SHARED, {}, (), False, ()),
        (SHARED, {}, (REPHRASER,), True, (C,)),
        (SHARED, {}, (), True, (C,)),  # templates
        (SHARED, {}, (REPHRASER, MINILM), True, ()),
        (SHARED, calibrated(SHARED), (MINILM,), True, (B,)),
        (SHARED, {"a": "minilm@1", "b": "minilm@1"}, (MINILM,), True, ()),  # one without a baseline
        (SHARED, calibrated(OWN), (MINILM,), True, ()),  # of another encoder
        (OWN, {}, (), False, (A,)),
        (OWN, {}, (E5,), True, (A,)),
        (OWN, calibrated(OWN), (REPHRASER,), True, (A, B, C)),
        ({"a": MINILM, "b": E5}, {}, (), False, ()),  # two pipelines
        ({"a": MINILM, "b": E5, "c": MPNET}, {}, (), False, ()),  # three models of two pipelines
        ({**OWN, "d": MINILM}, {}, (), False, ()),  # two vantages share one
    ],
)
def test_which_conditions_hold(
    encoders: dict[str, Model],
    baselines: dict[str, str],
    rephrasers: tuple[Model, ...],
    c4: bool,
    holds: tuple[str, ...],
):
    found = conformance(Configuration(encoders, baselines, rephrasers, c4))
    assert found.holds == holds
    assert [condition.name for condition in found.conditions] == [A, B, C]
    assert all(condition.reason and condition.covers for condition in found.conditions)
    assert found.verdict.startswith("A4 conformant by") is bool(holds)
    assert ("nothing bounds" in found.verdict) is not bool(holds)


def test_reasons_name_what_to_change():
    reasons = [one.reason for one in conformance(Configuration(SHARED, {"a": "e5@1"}, (MPNET,), True)).conditions]
    assert reasons[0] == "3 vantages share 1 encoders"
    assert reasons[1] == "no baseline yet: b, c"
    assert reasons[2] == "the rephraser is the encoder or of its pipeline: mpnet@1"


def test_a_condition_says_what_it_covers():
    assert "C_4 and CBF only" in conformance(Configuration(SHARED, {}, (), True)).verdict


def test_without_a_vantage_there_is_nothing_to_check():
    with pytest.raises(ValueError, match="at least one vantage"):
        conformance(Configuration({}, {}, (), True))
