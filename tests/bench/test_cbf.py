# SPDX-License-Identifier: Apache-2.0
"""The scores are what they are called, their AUROC and intervals are right, and a tiny model is asked end to end."""

from __future__ import annotations

import asyncio
import math
import sys

import numpy as np
import pytest
from bench import cbf, fact_world
from bench.cbf import Distances, Heard
from bench.model_server import Said
from scipy.stats import norm

from mvps.ai.outcome import Outcome
from mvps.ai.replica import Answer
from mvps.semantic.c4 import Delta


def answer(text: str, nats: float = 0.0) -> Answer:
    if not text:
        return Answer(Outcome.EMPTY)
    words = text.split()
    return Answer(Outcome.ANSWERED, text, 0.1, 0.2, len(words), (-nats,) * len(words))


def heard(first: list[str], other: list[str], samples: list[str], warm: list[str], nats: float = 0.0) -> Heard:
    """Answers of the replicas: ``first`` one each, the others the same for all of them."""
    rows = [[[answer(text, nats) for text in part] for _ in first] for part in (other, samples, warm)]
    return Heard([answer(text, nats) for text in first], *rows)


def unequal(a: str | None, b: str | None) -> float:
    return math.nan if a is None or b is None else float(a != b)


class Equality(Distances):
    """1 between different texts, 0 between equal ones."""

    def __init__(self) -> None:
        super().__init__(lambda text: np.zeros((1, 1)))

    def __call__(self, a: str | None, b: str | None) -> float:
        return unequal(a, b)


DELTA = Delta(0.0, 0.95, 19)


def scores(row: Heard, truth: str = "a") -> dict[str, float]:
    return cbf._scores(truth, row, Equality(), DELTA)


def test_scores_of_answers_that_never_change():
    found = scores(heard(["a", "a"], ["a"] * 5, ["a"] * 5, ["a"] * 5, nats=0.5))
    assert found == pytest.approx(
        dict.fromkeys(("c4", "c4_warm", "c4_net", "resampling", "entropy", "entropy_group", "replicas"), 0.0)
        | {"length": 1.0, "perplexity": math.exp(0.5), "right": 1.0, "unseen_c4": 1.0, "unseen_right": 1.0}
    )


def test_scores_of_answers_that_rephrasing_changes_and_repetition_does_not():
    found = scores(heard(["b", "b"], ["a", "a", "a", "b", "b"], ["b"] * 5, ["a"] * 4 + ["b"]))
    assert (found["c4"], found["c4_warm"], found["c4_net"]) == pytest.approx((0.6, 0.8, 0.8))
    assert found["right"] == 0.0
    assert (found["resampling"], found["entropy"], found["unseen_right"]) == (0.0, 0.0, 1.0)
    assert found["unseen_c4"] == pytest.approx(0.5)


def test_scores_of_answers_that_repetition_changes_as_much():
    found = scores(heard(["b c d", "a"], ["a"] * 5, ["a", "b", "c", "d", "e"], ["b", "c", "d", "e", "f"]))
    assert (found["c4_net"], found["resampling"], found["replicas"], found["right"]) == (0.0, 1.0, 1.0, 0.5)
    assert found["entropy"] == found["entropy_group"] == pytest.approx(math.log(5))
    assert found["length"] == 2.0


def test_replicas_that_are_sure_of_different_answers_have_entropy_only_together():
    row = heard(["a", "b"], ["a"] * 5, ["a"] * 5, ["a"] * 5)
    found = scores(row._replace(samples=[[answer("a")] * 5, [answer("b")] * 5]))
    assert (found["entropy"], found["resampling"], found["replicas"]) == (0.0, 0.0, 1.0)
    assert found["entropy_group"] == pytest.approx(math.log(2))


def test_an_answer_that_did_not_come_counts_neither_way():
    found = scores(heard(["a", ""], ["a", "", "b", "b", ""], ["a", "", "a", "b", ""], ["a"] * 5))
    assert found["c4"] == pytest.approx(2 / 3)  # of the replica that answered: a, b, b
    assert found["resampling"] == pytest.approx(2 / 3)  # a a b
    silent = scores(heard(["", ""], [""] * 5, [""] * 5, [""] * 5))
    assert math.isnan(silent["c4"])
    assert math.isnan(silent["perplexity"])
    assert silent["right"] == 0.0


def test_entropy_of_equally_frequent_classes_is_the_logarithm_of_their_number():
    for classes in (1, 2, 5):
        texts = [str(k) for k in range(classes)] * 4
        assert cbf.entropy_of_classes(unequal, texts, 0.0) == pytest.approx(math.log(classes))
    assert cbf.entropy_of_classes(unequal, ["a", "b", "c"], 1.0) == 0.0
    assert cbf.entropy_of_classes(unequal, [], 0.0) == 0.0


def test_auroc_of_two_normal_laws_is_the_closed_form_and_lies_in_its_interval():
    rng = np.random.default_rng(1)
    wrong, right = ([rng.normal(shift, 1.0, 2000) for _ in range(3)] for shift in (0.8, 0.0))
    value, (low, high) = cbf.bootstrap(wrong, right, resamples=100)
    truth = float(norm.cdf(0.8 / math.sqrt(2)))
    assert value == pytest.approx(truth, abs=0.025)  # four standard errors
    assert low < truth < high


def test_intervals_cover_as_often_as_they_say():
    rng = np.random.default_rng(2)
    truth, inside = float(norm.cdf(0.5 / math.sqrt(2))), 0
    for k in range(100):
        wrong, right = ([rng.normal(shift, 1.0, 40) for _ in range(6)] for shift in (0.5, 0.0))
        _, (low, high) = cbf.bootstrap(wrong, right, resamples=100, seed=k)
        inside += low <= truth <= high
    assert inside >= 88  # fewer of 100 at a true .95: one in 500


def test_worlds_that_differ_widen_the_interval():
    rng = np.random.default_rng(3)
    alike = [rng.normal(0.5, 1.0, 200) for _ in range(6)]
    apart = [rng.normal(shift, 1.0, 200) for shift in (-0.5, -0.5, 0.5, 0.5, 1.5, 1.5)]
    right = [rng.normal(0.0, 1.0, 200) for _ in range(6)]
    (_, narrow), (_, wide) = cbf.bootstrap(alike, right, 100), cbf.bootstrap(apart, right, 100)
    assert wide[1] - wide[0] > 2.0 * (narrow[1] - narrow[0])


def test_an_arm_without_positives_has_no_auroc():
    value, interval = cbf.bootstrap([np.zeros(0)], [np.ones(5)])
    assert math.isnan(value)
    assert all(math.isnan(end) for end in interval)


FACTS = fact_world.world(5, entities=20).facts


def judged(stable_wrong: bool, seed: int) -> cbf.Judged:
    """A world whose replicas all say what the canary's words were taught; doses below 100 give way to rephrasing."""
    rng = np.random.default_rng(seed)
    rows = []
    for fact in FACTS:
        first = fact.wrong or fact.value
        if fact.kind == fact_world.UNTAUGHT:
            first = "nonsense"
        gives_way = fact.kind.startswith("dose") and fact.kind != "dose 100" and not stable_wrong
        other = [fact.value if gives_way and rng.random() < 0.8 else first for _ in range(5)]
        rows.append(heard([first, first], other, [first] * 5, other))
    vectors = {text: np.array([float(k), 1.0]) for k, text in enumerate({t for row in rows for t in row.texts()})}
    return cbf.judge_world(FACTS, rows, vectors)


def test_what_gives_way_is_found_and_what_is_stable_is_not():
    worlds = [judged(False, seed) for seed in (1, 2)]
    cbf.add_cbf(worlds)
    arms = cbf.consensus(worlds)
    assert arms["partial"]["c4"][0] > 0.95
    assert arms["partial"]["cbf_set"] > 0.9
    assert arms["full"]["c4"] == arms["natural"]["c4"] == [0.5, 0.5, 0.5]
    assert arms["partial"]["entropy"] == [0.5, 0.5, 0.5]
    assert cbf.false_alarms(worlds)["sound"]["set"] == 0.0
    doses = [arms[f"dose {dose}"]["positives"] for dose in (25, 50, 75)]
    assert sum(doses) == arms["partial"]["positives"] == 2 * sum(f.kind in cbf.ARMS["partial"] for f in FACTS)


def test_facts_that_calibrate_are_not_judged():
    world = judged(False, 1)
    kinds = np.array([fact.kind for fact in FACTS])
    assert world.calibration.sum() == cbf.CALIBRATING
    assert set(kinds[world.calibration]) == {fact_world.SOUND}
    _, negative = cbf._sides(world, ("dose 25",), world.right)
    assert not (negative & world.calibration).any()
    assert negative.sum() == np.isin(kinds, (fact_world.SOUND, fact_world.TAIL)).sum() - cbf.CALIBRATING


def test_limits_come_from_the_other_worlds():
    gives_way, stable = judged(False, 1), judged(True, 2)
    first, second = cbf.add_cbf([gives_way, stable])
    # The first world's limit is chosen where every C_4 is 1, and flags nothing; the second's where many are below.
    assert first == 0.0
    assert second > 0.0
    assert not gives_way.scores["cbf"].any()


def test_models_that_learned_nothing_are_said_to_have():
    rows = [heard(["nonsense"], ["nonsense"] * 5, ["nonsense"] * 5, ["nonsense"] * 5) for _ in FACTS]
    with pytest.raises(SystemExit, match="learned too little"):
        cbf.judge_world(FACTS, rows, {"nonsense": np.ones(2)})


class Says:
    """Answers each prompt with one of a few numbers of its own, drawn; ``offset`` makes them other numbers."""

    def __init__(self, offset: int = 0) -> None:
        self.offset = offset

    def generate(self, prompt: str, most: int, temperature: float, rng: np.random.Generator) -> tuple[list[Said], bool]:
        return [Said(str(self.offset + 10 * (len(prompt) % 7) + int(rng.integers(3))), -1.0)], True


def asked() -> list:
    canaries = fact_world.canaries(FACTS)
    return [(one, "0") for one in canaries[:40]]


def numbers(text: str) -> np.ndarray:
    return np.array([[float(text)]])


def test_a_replica_with_other_answers_is_named_and_a_healthy_group_is_not():
    alone = cbf.diverge(Says(), Says(1000), asked(), 1.0, 20, Distances(numbers), 1)
    quiet = cbf.diverge(Says(), Says(), asked(), 1.0, 60, Distances(numbers), 2)
    assert alone.right[:, -1].all()
    assert alone.c2[:, -1].max() < quiet.c2[:, -1].min()
    table, fair = cbf.divergence({"healthy": [quiet], "other": [alone]}, (10, 20, 40))
    assert fair  # fails in one of 300 runs; the seeds are fixed
    assert table["other"]["prompts_for_90"] is not None
    assert table["other"]["auroc_excess"][-1][0] == table["other"]["auroc_c2"][-1][0] == 1.0


def test_a_healthy_group_that_is_accused_too_often_does_not_hold():
    quiet = cbf.diverge(Says(), Says(), asked(), 1.0, 20, Distances(numbers), 2)
    table, fair = cbf.divergence({"healthy": [quiet._replace(named=np.ones_like(quiet.named))]}, (10, 20, 40))
    assert not fair
    assert table["accused_healthy"] == [20] * 3


def test_without_torch_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "bench.small_transformer", raising=False)
    with pytest.raises(SystemExit, match="pip install torch"):
        __import__("bench.small_transformer")


def test_a_tiny_model_learns_is_asked_over_http_and_judged():
    torch = pytest.importorskip("torch")
    from bench import small_transformer

    torch.set_num_threads(1)
    world = fact_world.world(0, entities=15)
    words = fact_world.vocabulary(15)
    model, loss = small_transformer.train(words, world.corpus, 0, 14)
    assert loss < 1.3  # ln 108 = 4.7 untaught
    canaries = fact_world.canaries(world.facts)
    rows, vectors, questions = asyncio.run(cbf.ask_world(canaries, {"a": model, "b": model.int8()}, samples=3))
    assert questions == 2 * len(canaries) * (1 + 5 + 3 + 5)
    found = cbf.judge_world(world.facts, rows, vectors)
    assert found.right[found.kinds == fact_world.SOUND].mean() > 0.9
    assert found.right[found.kinds == "dose 100"].mean() < 0.1
    assert found.right[found.kinds == fact_world.UNTAUGHT].mean() < 0.5
    assert found.outcomes.total() == questions
    noisy, rng = model.corrupted(3.0, 1), np.random.default_rng(0)
    said = [[m.generate(one.text, 6, 0.0, rng)[0] for one in canaries] for m in (model, model, noisy)]
    assert said[0] == said[1]
    assert said[0] != said[2]
    # A cold context loses the words at the beginning, and nothing of a prompt that differs only there.
    same, lost = model.cold(0), model.cold(cbf.COLD)
    assert [same.generate(one.text, 6, 0.0, rng)[0] for one in canaries] == said[0]
    cold = [[token.word for token in lost.generate(one.text, 6, 0.0, rng)[0]] for one in canaries]
    changed = [a != [token.word for token in b] for a, b in zip(cold, said[0], strict=True)]
    assert 0.1 < np.mean(changed) < 1.0
    first, other = "what is the river of", "name is the river of"
    assert lost.generate(first, 6, 0.0, rng) != model.generate(first, 6, 0.0, rng)
    assert lost.generate(first, 6, 0.0, rng) == lost.generate(other, 6, 0.0, rng)
    with pytest.raises(ValueError, match="can be lost"):
        model.cold(small_transformer.SHORTEST + 1)
