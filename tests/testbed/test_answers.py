# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import random
from itertools import combinations, pairwise
from statistics import fmean

import numpy as np
import pytest

from mvps.testbed import answers
from mvps.testbed.answers import Arm, answer, context_of, embedding, first_token_s, tokens_of


def plain(said: list[str]) -> list[str]:
    """Words without their forms."""
    return [word.partition("-")[0] for word in " ".join(said).replace(".", "").split()]


def test_warm_answers_say_the_same_and_cold_ones_something_else_each_time() -> None:
    sample = random.Random(1)
    warm = [plain(answer("user-1", Arm.COUPLED, True, 0.0, sample)) for _ in range(20)]
    assert all(one == warm[0] for one in warm)
    cold = [plain(answer("user-1", Arm.COUPLED, False, 0.0, sample)) for _ in range(20)]
    shared = [fmean(a == b for a, b in zip(one, other, strict=True)) for one, other in pairwise(cold)]
    assert fmean(shared) < 0.05
    assert fmean(a == b for a, b in zip(warm[0], cold[0], strict=True)) < 0.2


@pytest.mark.parametrize("arm", [Arm.PLACEBO, Arm.STATELESS])
def test_in_the_other_arms_a_miss_changes_no_answer(arm: Arm) -> None:
    for seed in range(20):
        warm, cold = (answer("c", arm, state, 0.0, random.Random(seed)) for state in (True, False))
        assert warm == cold


def test_only_the_placebo_arm_is_as_fast_cold_as_warm() -> None:
    for arm in Arm:
        warm, cold = (first_token_s("c", arm, state, random.Random(3)) for state in (True, False))
        prefill = tokens_of("c") / answers.PREFILL_TOKENS_PER_S
        assert cold - warm == pytest.approx(0.0 if arm is Arm.PLACEBO else prefill)


def test_a_corrupt_model_says_its_share_of_other_words() -> None:
    sample = random.Random(5)
    right = plain(answer("c", Arm.PLACEBO, True, 0.0, sample))
    other = [plain(answer("c", Arm.PLACEBO, True, 0.3, sample)) for _ in range(400)]
    share = fmean(a != b for one in other for a, b in zip(one, right, strict=True))
    assert share == pytest.approx(0.3, abs=0.03)  # 16,000 words: five standard errors are .018


def test_another_form_is_nearer_than_another_word() -> None:
    def distance(a: str, b: str) -> float:
        return float(np.linalg.norm(np.subtract(embedding(a), embedding(b))))

    assert embedding("w001 w002.") == embedding("w001 w002")
    assert 0.0 < distance("w001-1", "w001") < 0.7 * distance("w002", "w001")


def test_contexts_are_read_from_questions_and_have_one_length() -> None:
    assert context_of("[ctx user-7] And then?") == "user-7"
    with pytest.raises(ValueError, match="names its context"):
        context_of("And then?")
    lengths = [tokens_of(f"user-{number}") for number in range(300)]
    assert lengths[0] == tokens_of("user-0")
    assert 384 <= min(lengths) < 420
    assert 600 < max(lengths) <= 640
    assert fmean(lengths) == pytest.approx(answers.MEAN_TOKENS, abs=20)


def test_pairs_and_not_replicas_decide_how_far_c2_falls() -> None:
    """With 0 to 4 of four replicas cold it falls by 0, 1/2, 5/6, 1, 1; the exposure is proportional to the number."""
    sample = random.Random(7)
    vectors = {
        warm: [np.array(embedding(" ".join(answer("c", Arm.COUPLED, warm, 0.0, sample)))) for _ in range(4)]
        for warm in (True, False)
    }
    same = np.linalg.norm(vectors[True][0] - vectors[True][1])
    for cold, fall in enumerate((0.0, 0.5, 5.0 / 6.0, 1.0, 1.0)):
        replicas = vectors[False][:cold] + vectors[True][cold:]
        apart = [float(np.linalg.norm(a - b)) > 3.0 * same for a, b in combinations(replicas, 2)]
        assert fmean(apart) == pytest.approx(fall)
