# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest

from mvps.surplus.candidates import taken, top_k


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("vocabulary", [10, 2048, 8191, 8192, 50257, 128256])
@pytest.mark.parametrize("k", [1, 8, 50])
def test_top_k_are_the_largest_that_a_sort_finds(rows: int, vocabulary: int, k: int) -> None:
    chance = np.random.default_rng(vocabulary * k + rows)
    for ties in (False, True):
        z = chance.normal(size=(rows, vocabulary)).astype(np.float32)
        if ties:
            z = np.round(z)
        z[chance.random(z.shape) < 0.1] = -np.inf
        if k > vocabulary:
            with pytest.raises(ValueError, match="choose 1 to"):
                top_k(z, k)
            continue
        found = top_k(z, k)
        assert found.shape == (rows, k)
        assert all(len(set(row)) == k for row in found.tolist())
        np.testing.assert_array_equal(np.sort(taken(z, found), axis=1), np.sort(z, axis=1)[:, -k:])


def test_rows_where_nearly_all_is_masked_or_not_a_number() -> None:
    z = np.full((3, 50257), -np.inf, dtype=np.float32)
    z[0, 17] = 1.0
    z[1, 50256] = 1.0
    z[2, 30000] = np.nan
    found = top_k(z, 8)
    assert 17 in found[0]
    assert 50256 in found[1]
    assert np.isnan(taken(z, found)[2]).any()


def test_none_are_no_candidates() -> None:
    with pytest.raises(ValueError, match="choose 1 to 10"):
        top_k(np.zeros((1, 10)), 0)


def test_taken_is_take_along_axis() -> None:
    chance = np.random.default_rng(1)
    values = chance.normal(size=(4, 9))
    columns = chance.integers(9, size=(4, 3))
    np.testing.assert_array_equal(taken(values, columns), np.take_along_axis(values, columns, axis=1))
    np.testing.assert_array_equal(taken(values[:1], columns[:1]), np.take_along_axis(values[:1], columns[:1], axis=1))
    np.testing.assert_array_equal(
        taken(values[:, ::2], columns // 2), np.take_along_axis(values[:, ::2], columns // 2, 1)
    )
