# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mvps.serving.tensors import host, likeliest, write

ROWS, VOCABULARY, K = 5, 9000, 8


def logits(dtype: Any = np.float32) -> np.ndarray:
    chance = np.random.default_rng(1)
    made = (chance.normal(size=(ROWS, VOCABULARY)) * 3).astype(dtype)
    made[1, 10:] = -np.inf
    made[2] = -np.inf
    made[3, :20] = -0.0
    return made


def best(of: np.ndarray) -> np.ndarray:
    return np.sort(of, axis=1)[:, -K:]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_arrays_give_their_largest_and_take_them_back_bit_by_bit(dtype: Any) -> None:
    given = logits(dtype)
    before = given.tobytes()
    found = likeliest(given, K, np.arange(ROWS))
    assert found.last is not None
    assert found.last.tolist() == list(range(ROWS))
    np.testing.assert_array_equal(np.sort(found.logits, axis=1), best(given))
    np.testing.assert_array_equal(np.take_along_axis(given, found.ids, axis=1), found.logits)
    write(given, found)
    assert given.tobytes() == before
    found.logits[0] += 1
    write(given, found)
    changed = np.frombuffer(before, dtype=dtype).reshape(given.shape) != given
    assert set(zip(*np.nonzero(changed), strict=True)) == {(0, token) for token in found.ids[0]}


def test_without_a_last_token_there_is_none() -> None:
    assert likeliest(logits(), K).last is None


@pytest.mark.parametrize("name", ["float16", "float32", "float64"])
def test_tensors_do_as_arrays_do(name: str) -> None:
    torch = pytest.importorskip("torch", reason="torch (extra `models`) is not installed")
    plain = logits(np.dtype(name))
    tensor = torch.from_numpy(plain.copy())
    found = likeliest(tensor, K, torch.arange(ROWS))
    assert found.logits.dtype == plain.dtype
    assert found.last is not None
    assert found.last.tolist() == list(range(ROWS))
    np.testing.assert_array_equal(np.sort(found.logits, axis=1), best(plain))
    np.testing.assert_array_equal(np.take_along_axis(plain, found.ids, axis=1), found.logits)
    write(tensor, found)
    assert host(tensor).tobytes() == plain.tobytes()
    found.logits[0] += 1
    write(tensor, found)
    assert set(zip(*np.nonzero(host(tensor) != plain), strict=True)) == {(0, token) for token in found.ids[0]}


def test_what_numpy_cannot_round_to_is_refused() -> None:
    torch = pytest.importorskip("torch", reason="torch (extra `models`) is not installed")
    with pytest.raises(ValueError, match="convert them to float32"):
        likeliest(torch.zeros((1, VOCABULARY), dtype=torch.bfloat16), K)
