# SPDX-License-Identifier: Apache-2.0
"""A tenant with many topics is wide, one answer to all is not, and a collapse does not become the new normal."""

from __future__ import annotations

import numpy as np
import pytest

from mvps.serving import text_spread
from mvps.serving.text_spread import KEPT_TOKENS, MAX_TENANTS, RECENT, REFERENCE, TextSpread

VOCABULARY, DIMENSIONS, TOPICS = 2000, 64, 20
EMBEDDINGS = np.random.default_rng(1).normal(size=(VOCABULARY, DIMENSIONS)).astype(np.float32)


def answers(rng: np.random.Generator, count: int, first_topic: int = 0) -> list[list[int]]:
    """Of 20 topics with 40 words each; half of an answer's words are everybody's."""
    found = []
    for topic in rng.integers(first_topic, first_topic + TOPICS, size=count):
        own = 40 * topic + rng.integers(40, size=20)
        found.append([*own.tolist(), *rng.integers(1900, VOCABULARY, size=20).tolist()])
    return found


def told(spread: TextSpread, given: list[list[int]], tenant: str = "acme") -> list[float]:
    """SSE after every eighth answer."""
    found = []
    for k, one in enumerate(given, 1):
        spread.note(tenant, one)
        if k % 8 == 0 and tenant in (known := spread.read()):
            found.append(known[tenant])
    return found


def test_it_is_not_known_before_there_are_topics() -> None:
    spread, rng = TextSpread(EMBEDDINGS), np.random.default_rng(2)
    assert told(spread, answers(rng, REFERENCE - 1)) == []
    spread.note("acme", answers(rng, 1)[0])
    assert spread.read()["acme"] > 0.7


def test_a_healthy_tenant_stays_wide_and_one_answer_to_all_is_narrow_for_good() -> None:
    spread, rng = TextSpread(EMBEDDINGS), np.random.default_rng(3)
    calm = told(spread, answers(rng, 12 * REFERENCE))
    assert min(calm) > 0.65
    same = answers(rng, 1)[0]
    after = told(spread, [same] * (4 * REFERENCE))
    assert after[RECENT // 8 - 1] < 0.1, "as soon as all recent answers are it"
    assert max(after[RECENT // 8 :]) < 0.1, "and it is not learned as what is normal"
    assert min(told(spread, answers(rng, 2 * REFERENCE))[RECENT // 8 :]) > 0.65


def test_nearly_the_same_answer_is_as_narrow_and_does_not_become_what_is_normal() -> None:
    spread, rng = TextSpread(EMBEDDINGS), np.random.default_rng(4)
    told(spread, answers(rng, REFERENCE))
    same = answers(rng, 1)[0]
    varied = [[*same[:-4], *rng.integers(1900, VOCABULARY, size=4).tolist()] for _ in range(3 * REFERENCE)]
    assert len({tuple(one) for one in varied}) == len(varied)
    assert max(told(spread, varied)[RECENT // 8 :]) < 0.45, "the limit of BH-1"


def test_the_larger_the_share_of_one_answer_the_narrower() -> None:
    found = []
    for share in (0.0, 0.5, 0.75, 0.9):
        spread, rng = TextSpread(EMBEDDINGS), np.random.default_rng(5)
        told(spread, answers(rng, REFERENCE))
        same = answers(rng, 1)[0]
        mixed = [same if rng.random() < share else one for one in answers(rng, 2 * RECENT)]
        found.append(np.mean(told(spread, mixed)[RECENT // 8 :]))
    assert found == sorted(found, reverse=True)
    assert found[2] < 0.55
    assert found[3] < 0.35


def test_new_subjects_are_learned() -> None:
    spread, rng = TextSpread(EMBEDDINGS), np.random.default_rng(6)
    told(spread, answers(rng, REFERENCE))
    late = told(spread, answers(rng, 2 * REFERENCE, first_topic=TOPICS + 5))
    assert min(late[REFERENCE // 8 + RECENT // 8 :]) > 0.65


def test_tenants_are_apart_and_there_is_room_for_so_many() -> None:
    spread, rng = TextSpread(EMBEDDINGS), np.random.default_rng(7)
    same = answers(rng, 1)[0]
    for one in answers(rng, REFERENCE):
        spread.note("acme", one)
        spread.note("narrow", one)
        spread.read()
    for _ in range(RECENT):
        spread.note("narrow", same)
    found = spread.read()
    assert found["acme"] > 0.65
    assert found["narrow"] < 0.1
    for k in range(MAX_TENANTS):
        spread.note(f"other-{k}", same)
    spread.read()
    assert len(spread._tenants) == MAX_TENANTS
    assert spread.dropped == 2


def test_memory_is_bounded_and_what_is_lost_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_spread, "_QUEUE", 10)
    spread = TextSpread(EMBEDDINGS)
    for _ in range(13):
        spread.note("acme", [1, 2, 3])
    assert spread.dropped == 3
    spread.read()
    assert len(spread._tenants["acme"].answers) == 10
    for one in answers(np.random.default_rng(8), 2 * REFERENCE):
        spread.note("acme", one)
        spread.read()
    assert len(spread._tenants["acme"].answers) == REFERENCE


def test_only_tokens_that_have_an_embedding_count_and_only_the_first_of_them() -> None:
    spread = TextSpread(EMBEDDINGS)
    spread.note("acme", [-1, VOCABULARY])
    spread.note("acme", [])
    assert spread.read() == {}
    assert not spread._tenants
    spread.note("acme", [5, -1, 7])
    spread.note("acme", [5, 7])
    spread.note("acme", [5, 7] * (KEPT_TOKENS // 2) + [900] * 500)
    spread.read()
    one, other, long = spread._tenants["acme"].answers
    np.testing.assert_array_equal(one, other)
    np.testing.assert_allclose(one, long)


def test_answers_that_are_all_the_same_from_the_first_have_no_topics() -> None:
    spread = TextSpread(EMBEDDINGS)
    assert told(spread, [[5, 6]] * (2 * REFERENCE)) == []
