# SPDX-License-Identifier: Apache-2.0
"""The rivals of the semantic benchmark are no straw men: they find what is plain, and compute what they should."""

from __future__ import annotations

import numpy as np
import pytest
from bench import semantic

from mvps.semantic import cka
from mvps.semantic.transport import transport


def test_fishers_test_names_a_replica_that_fails_on_a_family_and_nobody_else():
    families = np.repeat(semantic.FAMILIES, 12)
    wrong = np.zeros((48, 4), dtype=bool)
    assert semantic._by_fisher(wrong, families) == (-1, "")
    wrong[:12, 2] = True
    assert semantic._by_fisher(wrong, families) == semantic.BAD
    wrong[:, 1] = True
    assert semantic._by_fisher(wrong, families) == (1, "*")


def test_the_plain_ways_compute_the_same():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(30, 8)), rng.normal(size=(25, 8))
    for presolve in (True, False):
        assert semantic.whole_program(x, y, presolve) == pytest.approx(transport(x, y).squared)
    assert semantic.textbook_cka(x, x[:, ::2]) == pytest.approx(cka.cka(cka.gram(x), cka.gram(x[:, ::2])))
