# SPDX-License-Identifier: Apache-2.0
"""The k largest logits of each row, without sorting the vocabulary.

A row is read once as a table of ``_WIDTH`` columns; the k columns with the largest maxima hold the k largest values,
because each of these columns holds at least one value as large as any in a column left out. What is left, k columns,
is partitioned. Exact, also with ties and -inf; a row with NaN shows it among its candidates.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

IndexArray = npt.NDArray[np.intp]
Logits = npt.NDArray[np.floating]

_WIDTH = 2048
_Number = TypeVar("_Number", bound=np.generic)


def top_k(logits: Logits, k: int) -> IndexArray:
    """Token ids (n, k) of the k largest logits (n, V) of each row, in no order; k <= V."""
    rows, vocabulary = logits.shape
    if not 1 <= k <= vocabulary:
        raise ValueError(f"{k} candidates of {vocabulary} tokens: choose 1 to {vocabulary}")
    height = vocabulary // _WIDTH
    if k >= _WIDTH or height < 4:
        return np.argpartition(logits, vocabulary - k, axis=1)[:, vocabulary - k :]
    table = logits[:, : height * _WIDTH].reshape(rows, height, _WIDTH)
    best = table.max(axis=1).argpartition(_WIDTH - k, axis=1)[:, _WIDTH - k :]
    pool = (best[:, :, None] + np.arange(0, height * _WIDTH, _WIDTH)).reshape(rows, k * height)
    rest = vocabulary - height * _WIDTH
    if rest:
        pool = np.concatenate([pool, np.broadcast_to(np.arange(vocabulary - rest, vocabulary), (rows, rest))], axis=1)
    kept = taken(logits, pool).argpartition(pool.shape[1] - k, axis=1)[:, pool.shape[1] - k :]
    return taken(pool, kept)


def taken(values: npt.NDArray[_Number], columns: IndexArray) -> npt.NDArray[_Number]:
    """values[i, columns[i]] for every row i: (n, k)."""
    rows, width = values.shape
    if rows == 1:
        row: npt.NDArray[_Number] = values[0].take(columns)
        return row
    # Flat positions cost half of what take_along_axis costs.
    found: npt.NDArray[_Number] = values.take(columns + np.arange(0, rows * width, width)[:, None])
    return found
