# SPDX-License-Identifier: Apache-2.0
"""The white-box benchmark reads what the model computes, and its figures are what they are called."""

from __future__ import annotations

import argparse

import numpy as np
import pytest
from bench import fact_world, whitebox


def test_separation_of_shifted_and_of_equal_laws() -> None:
    rng = np.random.default_rng(1)
    near, far = rng.normal(0.0, 1.0, 300), rng.normal(1.0, 1.0, 300)
    one, ten = (whitebox.separation(far, near, size) for size in (1, 10))
    assert one == pytest.approx(0.76, abs=0.1)  # Phi(1 / sqrt 2)
    assert ten > 0.95
    assert whitebox.separation(near, near, 3) == pytest.approx(0.5, abs=0.08)  # four standard errors of 400 draws
    assert whitebox.separation(np.append(far, np.nan), near, 10) > 0.95


def test_what_is_read_is_what_the_model_computes() -> None:
    torch = pytest.importorskip("torch", reason="the extra `models` is not installed")
    from bench import small_transformer

    torch.set_num_threads(1)
    torch.manual_seed(0)
    words = fact_world.vocabulary(15)
    model = small_transformer.Model(words, small_transformer._Network(5 + len(words)))
    question, answer = f"what is the river of {fact_world.words(15, 3)[0]} ?", words[30]
    read = model.read(question, answer)
    prefix = [1, *model.tokens(question), 2, *model.tokens(answer)]
    with torch.inference_mode():
        laws = model._network(torch.tensor([prefix]))[0].softmax(dim=-1).numpy()
    assert read.laws == pytest.approx(laws, abs=1e-5)
    assert read.attention.shape == (2, len(prefix), len(prefix))
    assert read.attention.sum(axis=-1) == pytest.approx(np.ones((2, len(prefix))), abs=1e-5)
    assert np.triu(read.attention, 1).max() == 0.0
    # Its own copy is the same, and one with noise is not.
    columns = whitebox.beside([read], [model.corrupted(0.0, 1).read(question, answer)], 1.0)
    assert max(values.max() for values in columns.values()) == pytest.approx(0.0, abs=1e-5)
    noisy = whitebox.beside([read], [model.corrupted(1.0, 1).read(question, answer)], 1.0)
    assert all(values.min() > 0.0 for values in noisy.values())


def test_a_short_run_finds_a_model_from_another_seed() -> None:
    pytest.importorskip("torch", reason="the extra `models` is not installed")
    result = whitebox.run(argparse.Namespace(entities=6, epochs=1, full=False))
    rows = result.details["replicas"]
    assert rows["another seed"]["auroc"]["hidden"][-1] == 1.0
    assert max(result.details["read_twice"].values()) <= 1e-5
    assert set(rows["int8"]["auroc"]) == set(whitebox.STATISTICS)
