# SPDX-License-Identifier: Apache-2.0
"""Rivals as they are defined, KL as it is defined, arms of equal noise; and the whole on a model of a few steps."""

from __future__ import annotations

import argparse
import math
from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from bench import json_world, jsontask
from bench.json_world import END, WORDS, Prompt
from bench.jsontask import Answers, Judged, Mask, Mirostat, Temperature, decode, divergence, log_softmax, tuned
from scipy.special import rel_entr
from scipy.special import softmax as scipy_softmax

from mvps.surplus.falsifiers import Verdict

ASKED = jsontask.prompts(0, 40, "judging")


class FromTable:
    """An engine whose law depends on the last token alone: mostly what the right answer says next."""

    def __init__(self, prompts: list[list[int]]) -> None:
        rng = np.random.default_rng(8)
        self._table = rng.normal(size=(len(WORDS), len(WORDS))).astype(np.float32)
        self._table[:, END] += 2.0
        self._table[:, json_world.NEVER_SAID] = -np.inf
        self._last = np.array([one[-1] for one in prompts])

    def logits(self) -> npt.NDArray[np.float32]:
        return self._table[self._last]

    def extend(self, tokens: npt.NDArray[np.int64]) -> None:
        self._last = tokens

    def keep(self, rows: npt.NDArray[np.int64]) -> None:
        self._last = self._last[rows]


def test_kl_is_what_scipy_says() -> None:
    rng = np.random.default_rng(1)
    z, moved = rng.normal(size=(2, 20, 9)) * 3
    moved[:, 0] = -np.inf
    p, q = scipy_softmax(z, axis=1), scipy_softmax(moved, axis=1)
    np.testing.assert_allclose(np.exp(log_softmax(z)), p)
    np.testing.assert_allclose(divergence(log_softmax(moved), log_softmax(z)), rel_entr(q, p).sum(axis=1))


def test_mirostat_cuts_off_what_surprises_more_than_mu_and_follows_its_target() -> None:
    part = Mirostat(1.0)
    for slot in (0, 1):
        part.open(slot, ASKED[0])
    slots = np.array([1, 0])
    p = np.array([[0.5, 0.3, 0.15, 0.05], [0.2, 0.2, 0.3, 0.3]])
    part.mu[0] = 0.5  # less than any token's surprise: the likeliest stay
    logits = np.log(p).astype(np.float32)
    part.move(logits, slots)
    # Bits: 1, 1.74, 2.74, 4.32 with mu = 2; 2.32 and 1.74.
    assert np.isfinite(logits).tolist() == [[True, True, False, False], [False, False, True, True]]
    part.took(slots, np.array([1, 2]))
    seen = -math.log2(0.3 / 0.8)
    assert part.mu[1] == pytest.approx(2.0 - 0.1 * (seen - 1.0), abs=1e-6)
    assert part.mu[0] == pytest.approx(0.5 - 0.1 * (1.0 - 1.0), abs=1e-6)


def test_arms_differ_only_where_their_laws_do() -> None:
    plain, said = decode(FromTable, ASKED, [], 3)
    same, again = decode(FromTable, ASKED, [Temperature(1.0)], 3)
    assert said == again
    assert not plain.kl.any()
    assert not same.kl.any()
    cold, others = decode(FromTable, ASKED, [Temperature(0.5)], 3)
    assert others != said
    first = np.mean([one[0] == other[0] for one, other in zip(said, others, strict=True)])
    _, unpaired = decode(FromTable, ASKED, [Temperature(0.5)], 4)
    assert first > np.mean([one[0] == other[0] for one, other in zip(said, unpaired, strict=True)])
    assert (cold.kl > 0.0).all()
    np.testing.assert_array_equal(cold.kl, cold.added)
    assert cold.largest <= cold.kl.max()
    assert plain.tokens.tolist() == [len(one) for one in said]
    assert plain.cut.tolist() == [one[-1] != END for one in said]


def test_the_sum_of_kl_is_the_mean_log_ratio_of_answers() -> None:
    """E_q[log q(y) / p(y)] = E_q[sum of KL]: the answers' own log ratios have that mean, within four errors."""
    ratios: list[float] = []

    class Watched(Temperature):
        def move(self, logits: npt.NDArray[np.float32], slots: npt.NDArray[np.int64]) -> None:
            before = log_softmax(logits)
            super().move(logits, slots)
            with np.errstate(invalid="ignore"):
                self.ratio = log_softmax(logits) - before  # no number for what is never said

        def took(self, slots: npt.NDArray[np.int64], tokens: npt.NDArray[np.int64]) -> None:
            ratios.extend(self.ratio[np.arange(len(tokens)), tokens])

    asked = ASKED * 30
    found, _ = decode(FromTable, asked, [Watched(0.6)], 5)
    error = np.std(ratios) / math.sqrt(len(ratios))
    assert np.mean(ratios) == pytest.approx(found.added_a_token, abs=4 * error)
    assert error < 0.1 * found.added_a_token


def test_a_mask_leaves_no_break_and_what_comes_behind_it_is_counted_apart() -> None:
    llguidance = pytest.importorskip("llguidance")
    tokens = jsontask.tokenizer(llguidance)
    masked, _ = decode(FromTable, ASKED, [Mask(llguidance, tokens)], 3)
    assert not (masked.broke & ~masked.cut).any()
    assert (~masked.broke).sum() > 5, "some come to their end"
    assert not masked.added.any()
    assert (masked.kl > 0.0).all()
    warm, _ = decode(FromTable, ASKED, [Mask(llguidance, tokens), Temperature(0.7)], 3)
    assert (warm.added > 0.0).all()
    assert warm.added.sum() < warm.kl.sum()


class Engine:
    """A model for a bench: the table's."""

    embeddings = np.random.default_rng(2).normal(size=(len(WORDS), 12)).astype(np.float32)

    def session(self, prompts: list[list[int]]) -> FromTable:
        return FromTable(prompts)


def bench_of(llguidance: Any) -> jsontask.Bench:
    made = jsontask.Bench(Engine(), llguidance, 0)
    made.learn(decode(FromTable, ASKED, [], 3)[1])
    return made


def test_no_token_of_the_controller_is_over_its_budget_and_every_step_has_a_cause() -> None:
    made = bench_of(pytest.importorskip("llguidance"))
    part = made.steered(0.02, jsontask.Settings(), look=True)
    found, said = decode(FromTable, ASKED, [part], 3)
    assert 0.01 < found.largest <= 0.02 + 1e-6
    assert sum(part.fallbacks.values()) == found.tokens.sum()
    assert part.fallbacks["structure"] > 0
    assert part.realised[1] > 0
    assert not part._of, "every slot came back, of answers that were cut off too"
    off = made.steered(0.02, jsontask.Settings(), lam=0.0)
    _, plain = decode(FromTable, ASKED, [off], 3)
    assert plain == decode(FromTable, ASKED, [], 3)[1] != said
    assert set(off.fallbacks) == {"off"}


def test_the_controller_avoids_what_breaks_the_structure() -> None:
    made = bench_of(pytest.importorskip("llguidance"))
    own, law = np.full((1, len(WORDS)), -20.0, dtype=np.float32), ASKED[0]
    begin, wrong = json_world.tokenized("{")[0], json_world.tokenized("]")[0]
    begin = WORDS.index('{"')
    own[0, [begin, wrong]] = 0.0
    moved = own.copy()
    part = made.steered(0.1, jsontask._alone())
    part.open(0, law)
    part.move(moved, np.array([0]))
    assert moved[0, begin] > own[0, begin]
    assert moved[0, wrong] < own[0, wrong]


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_a_knob_is_found(power: float) -> None:
    asked: list[float] = []

    def measure(knob: float) -> float:
        asked.append(knob)
        return 0.03 * knob**power / (1.0 + 0.1 * knob)

    knob = tuned(measure, 0.01, 0.8)
    assert measure(knob) == pytest.approx(0.01, rel=0.011)
    assert len(asked) <= jsontask._TRIES + 1
    # What no knob reaches: the nearest that was tried.
    assert tuned(lambda knob: min(knob, 0.5), 1.0, 0.1) >= 0.5
    assert tuned(lambda knob: knob if knob > 3.0 else 0.0, 5.0, 0.1) > 1.0


def test_intervals_cover_the_mean_of_models_and_prompts() -> None:
    """Of 60 trials with 8 models of 40 prompts, 48 cover at least (fewer by chance: 2e-4 where 93 % do)."""
    rng, covered = np.random.default_rng(9), 0
    for _ in range(60):
        means = rng.normal(0.3, 0.05, 8)
        _, low, high = jsontask.interval([(rng.random(40) < mean) * 1.0 for mean in means], rng)
        covered += low <= 0.3 <= high
    assert covered >= 48


def answers(passed: float, kl: float) -> Answers:
    count = 100
    right = np.arange(count) < passed * count
    nothing = np.zeros(count, dtype=bool)
    return Answers(~right, right, nothing, np.full(count, kl), np.full(count, kl), kl, np.full(count, 10), 0.1)


def judged(ahead: float, plain: float, kl: float = 0.1) -> Judged:
    arms = {
        "baseline": answers(0.5, 0.0),
        "controller @ 0.01": answers(plain, 0.1),
        "look-ahead @ 0.01": answers(ahead, kl),
        "temperature @ 0.01": answers(0.7, 0.1),
    }
    return Judged(
        arms, dict.fromkeys(arms, 1.0), {"controller @ 0.01": Counter(none=1)}, {"controller @ 0.01": 0.0}, {}, 1.0
    )


def test_f10_goes_by_the_task() -> None:
    rng = np.random.default_rng(11)
    noise = np.round(rng.normal(0.0, 0.01, 6), 2)
    helps = [judged(0.7 + x, 0.6) for x in noise]
    assert jsontask.f10(helps, 0.01).verdict is Verdict.HELD
    does_not = [judged(0.6 + x / 2, 0.6) for x in noise]
    assert jsontask.f10(does_not, 0.01).verdict is Verdict.FAILED
    assert jsontask.f10(helps[:3], 0.01).verdict is Verdict.UNDERPOWERED


def test_arms_that_are_not_at_equal_kl_are_named() -> None:
    assert jsontask.unequal([judged(0.6, 0.6)], 0.01) == {}
    assert jsontask.unequal([judged(0.6, 0.6, kl=0.15)], 0.01) == {"look-ahead @ 0.01": 1.5}


def test_the_table_has_paired_differences() -> None:
    rows = jsontask.table([judged(0.6, 0.6), judged(0.8, 0.6)])
    assert rows["look-ahead @ 0.01"]["less controller @ 0.01"]["passes"][0] == pytest.approx(0.1)
    assert rows["controller @ 0.01"]["less temperature @ 0.01"]["breaks"][0] == pytest.approx(0.1)
    assert rows["baseline"]["breaks"] == [0.5, *rows["baseline"]["breaks"][1:]]
    assert "less baseline" not in rows["baseline"]
    assert rows["controller @ 0.01"]["fallbacks"] == {"none": 2}


def test_a_model_is_trained_asked_and_judged(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch", reason="torch (extra `models`) is not installed")
    pytest.importorskip("llguidance")
    parser = argparse.ArgumentParser()
    jsontask.options(parser)
    parser.add_argument("--full", action="store_true")
    found = jsontask.run(parser.parse_args(["--steps", "8", "--prompts", "12"]))
    rows = found.details["arms"]
    assert rows["baseline"]["breaks"][0] > 0.5, "it has learned nothing yet"
    assert found.details["largest_excess_nats"] <= 1e-6
    assert rows["mask"]["breaks"][0] == rows["mask"]["cut_off"] / 12
    assert {name.partition(" @ ")[2] for name in rows} == {"", "0.01", "0.02"}
    assert len([name for name in rows if name.startswith("no ")]) == 5
    assert "F10" in capsys.readouterr().out


def test_prompts_are_new_for_every_model_and_purpose() -> None:
    found = [jsontask.prompts(model, 20, use) for model in (0, 1) for use in ("exemplars", "tuning", "judging")]
    seen = {tuple(one.tokens) for part in found for one in part}
    assert len(seen) > 110
    assert isinstance(found[0][0], Prompt)
