# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest

from mvps.semantic.cka import attention_features, cka, gram
from mvps.semantic.reading import MOST_EXACT_ROWS, Reading, compare, hidden_distance, unpaired_cka


def causal_map(rng: np.random.Generator, n: int, scores: np.ndarray | None = None) -> np.ndarray:
    weights = np.tril(np.exp(rng.normal(size=(n, n)) if scores is None else scores))
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def reading(rng: np.random.Generator, n: int = 24, layers: int = 2) -> Reading:
    laws = rng.dirichlet(np.ones(30), min(n, 8)).astype(np.float32)
    attention = np.stack([causal_map(rng, n) for _ in range(layers)])
    return Reading(attention, rng.normal(size=(n, 16)).astype(np.float32), laws)


def test_replicas_that_read_alike_agree_in_everything() -> None:
    one = reading(np.random.default_rng(1))
    found = compare([one, one, one])
    assert found.cka == pytest.approx(np.ones((3, 3)), abs=1e-5)
    assert found.between == pytest.approx(np.zeros((3, 3)))
    assert found.attention_jsd == pytest.approx(0.0, abs=1e-6)
    assert found.next_jsd == pytest.approx(0.0, abs=1e-6)


def test_independent_ones_agree_in_nothing() -> None:
    """40 pairs of 24 tokens: the mean CKA within 4 standard errors of 0."""
    rng = np.random.default_rng(2)
    values = []
    for _ in range(40):
        found = compare([reading(rng), reading(rng)])
        assert found.cka is not None
        values.append(found.cka[0, 1])
        assert found.attention_jsd is not None
        assert found.attention_jsd > 0.05
        assert found.between[0, 1] > 0.5
    assert abs(np.mean(values)) < 4.0 * np.std(values) / math.sqrt(40)


def test_it_is_the_mean_over_layers_of_cka_of_the_features() -> None:
    rng = np.random.default_rng(3)
    scores = rng.normal(size=(3, 20, 20))
    noisy = scores + 0.5 * rng.normal(size=scores.shape)
    a, b = (reading(rng, 20)._replace(attention=np.stack([causal_map(rng, 20, s) for s in x])) for x in (scores, noisy))
    by_layer = [
        cka(gram(attention_features(x)), gram(attention_features(y)))
        for x, y in zip(a.attention, b.attention, strict=True)
    ]
    found = compare([a, b])
    assert found.cka is not None
    assert found.cka[0, 1] == pytest.approx(np.mean(by_layer), abs=1e-6)
    assert 0.2 < found.cka[0, 1] < 0.95


def test_a_replica_without_a_reading_is_nan_and_the_others_are_compared() -> None:
    rng = np.random.default_rng(4)
    one, other = reading(rng), reading(rng)
    found = compare([one, None, other])
    assert found.cka is not None
    assert np.isnan(found.cka[1]).all()
    assert np.isnan(found.between[:, 1]).all()
    assert found.cka[0, 2] == pytest.approx(compare([one, other]).cka[0, 1])  # type: ignore[index]
    alone = compare([None, one])
    assert (alone.attention_jsd, alone.next_jsd) == (None, None)
    nobody = compare([None, None])
    assert nobody.cka is None
    assert np.isnan(nobody.between).all()


def test_divergence_of_next_token_laws_in_closed_form() -> None:
    rng = np.random.default_rng(5)
    base = reading(rng)
    first, second = np.eye(4, dtype=np.float32)[[0, 0]], np.eye(4, dtype=np.float32)[[1, 1]]
    a, b = base._replace(laws=first), base._replace(laws=second)
    assert compare([a, b]).next_jsd == pytest.approx(1.0)
    thirds = -(math.log2(1 / 3) / 3 + 2 * math.log2(2 / 3) / 3) / math.log2(3)
    assert compare([a, a, b]).next_jsd == pytest.approx(thirds)
    half = base._replace(laws=np.stack([first[0], second[1]]))
    assert compare([a, half]).next_jsd == pytest.approx(0.5)  # one row of two


def test_hidden_states_are_compared_by_direction_and_without_the_first_token() -> None:
    def of(*rows: tuple[float, float]) -> Reading:
        return reading(np.random.default_rng(6))._replace(hidden=np.array(rows, dtype=np.float32))

    one = of((900.0, 0.0), (1.0, 0.0), (0.0, 2.0))
    assert hidden_distance(one, of((0.0, -3.0), (5.0, 0.0), (0.0, 0.1))) == pytest.approx(0.0)
    assert hidden_distance(of((1.0, 1.0), (1.0, 0.0)), of((1.0, 1.0), (-1.0, 0.0))) == pytest.approx(2.0)
    # Of different lengths: on the rows that both have.
    assert hidden_distance(one, of((1.0, 0.0), (3.0, 0.0))) == pytest.approx(0.0)
    assert math.isnan(hidden_distance(one, of((1.0, 0.0))))


def test_unpaired_prompts_are_compared_on_the_rows_that_both_have() -> None:
    rng = np.random.default_rng(7)
    long, short = reading(rng, 30), reading(rng, 12)
    cut = long._replace(attention=long.attention[:, :12, :12], hidden=long.hidden[:12])
    alike = compare([cut, short]).cka
    assert alike is not None
    assert unpaired_cka(long, short) == pytest.approx(alike[0, 1], abs=1e-6)
    assert unpaired_cka(long, cut) == pytest.approx(1.0, abs=1e-5)
    assert math.isnan(unpaired_cka(long, reading(rng, 3)))


def test_below_four_tokens_there_is_no_cka_and_the_rest_is_there() -> None:
    rng = np.random.default_rng(8)
    found = compare([reading(rng, 3), reading(rng, 3)])
    assert found.cka is None
    assert found.attention_jsd is not None
    assert found.between[0, 1] > 0.0


def test_many_tokens_are_projected() -> None:
    rng = np.random.default_rng(9)
    n = MOST_EXACT_ROWS + 1
    scores = rng.normal(size=(n, n))
    maps = [causal_map(rng, n, scores), causal_map(rng, n, scores + 0.3 * rng.normal(size=(n, n))), causal_map(rng, n)]
    found = compare([reading(rng, n, 1)._replace(attention=one[None]) for one in maps])
    assert found.cka is not None
    exact = [cka(gram(attention_features(maps[0])), gram(attention_features(one))) for one in maps[1:]]
    assert found.cka[0, 1:] == pytest.approx(np.array(exact), abs=0.15)  # O(1 / sqrt(64))
    assert found.cka[0, 1] > 0.5 > abs(found.cka[0, 2])


def test_what_cannot_be_compared_is_refused() -> None:
    rng = np.random.default_rng(10)
    with pytest.raises(ValueError, match="different tokens"):
        compare([reading(rng, 10), reading(rng, 11)])
    with pytest.raises(ValueError, match="different tokens"):
        compare([reading(rng, 10, 2), reading(rng, 10, 3)])
    broken = reading(rng)
    broken.hidden[3, 3] = np.nan
    with pytest.raises(ValueError, match="hidden states of a reading are not finite"):
        compare([reading(rng), broken])
