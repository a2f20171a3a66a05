# SPDX-License-Identifier: Apache-2.0
"""A world teaches what it says it teaches, and its canaries ask in words that were never taught with the fact."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest
from bench import fact_world
from bench.fact_world import SOUND, TAIL, TAUGHT, UNTAUGHT
from hypothesis import given, settings
from hypothesis import strategies as st


def _taught(world: fact_world.World) -> dict[fact_world.Fact, Counter[tuple[str, str]]]:
    by_question = {fact.ask(k): fact for fact in world.facts for k in range(fact_world.PHRASINGS)}
    found: dict[fact_world.Fact, Counter[tuple[str, str]]] = defaultdict(Counter)
    for asked, said in world.corpus:
        found[by_question[asked]][asked, said] += 1
    return found


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000))
def test_every_fact_is_taught_as_its_kind_says(seed):
    world = fact_world.world(seed, entities=8)
    taught = _taught(world)
    assert {fact.kind for fact in world.facts} == set(fact_world.KINDS)
    for fact in world.facts:
        sentences = taught[fact]
        wrong = sum(count for (_, said), count in sentences.items() if said == fact.wrong)
        assert not set(fact.taught) & set(fact.others)
        assert {said for _, said in sentences} <= {fact.value, fact.wrong} - {""}
        if fact.kind == UNTAUGHT:
            assert not sentences
        elif fact.kind == TAIL:
            assert sentences.total() in {1, 2}
            assert wrong == 0
        else:
            dose = 0 if fact.kind == SOUND else int(fact.kind.split()[1])
            assert sentences.total() == 4 * TAUGHT
            assert wrong == 4 * TAUGHT * dose // 100
            assert bool(dose) == bool(fact.wrong)
            assert fact.wrong != fact.value


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000))
def test_a_canary_is_asked_as_taught_and_its_rephrasings_were_never(seed):
    world = fact_world.world(seed, entities=8)
    known = dict(world.corpus)
    for fact, canary in zip(world.facts, fact_world.canaries(world.facts), strict=True):
        assert canary.expect == fact.value
        assert canary.family == fact.relation
        assert len(set(canary.rephrasings)) == fact_world.REPHRASINGS
        assert not known.keys() & set(canary.rephrasings)
        assert known.get(canary.text, "") == ("" if fact.kind == UNTAUGHT else fact.wrong or fact.value)


def test_worlds_share_words_and_differ_in_truth():
    first, again, other = (fact_world.world(seed, entities=8) for seed in (1, 1, 2))
    assert first == again
    assert [one.value for one in first.facts] != [one.value for one in other.facts]
    known = set(fact_world.vocabulary(8))
    for world in (first, other):
        assert {word for asked, said in world.corpus for word in f"{asked} {said}".split()} <= known


def test_a_value_belongs_to_one_relation_and_has_one_to_three_words():
    flat = [value for one in fact_world.values().values() for value in one]
    assert len(set(flat)) == len(flat) == fact_world.VALUES * len(fact_world.RELATIONS)
    assert {len(value.split()) for value in flat} == {1, 2, 3}


def test_a_world_too_small_for_every_kind_is_refused():
    with pytest.raises(ValueError, match="fewer than the 12"):
        fact_world.world(0, entities=1)
    with pytest.raises(ValueError, match="there are not"):
        fact_world.words(10_000, 2)
