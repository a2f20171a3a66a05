# SPDX-License-Identifier: Apache-2.0
"""Quantiles of many times in little memory: a histogram of log-spaced buckets (Masson, Rim & Lee 2019, DDSketch).

Bucket i holds the times in (g^(i-1), g^i] and stands for 2 g^i / (g + 1), which is off by at most ``RELATIVE_ERROR`` =
(g - 1) / (g + 1) of any of them. So a quantile, the ceil(q n)-th smallest of n, is off by no more; what is below
``LEAST_MS`` counts as 0. From there to the largest time that a packet may carry, 1e15 ms, there are 2074 buckets, which
bounds a sketch however many times it takes.
"""

from __future__ import annotations

import math
from typing import Final

RELATIVE_ERROR: Final = 0.01
LEAST_MS: Final = 1e-3
_LOG_G: Final = math.log((1.0 + RELATIVE_ERROR) / (1.0 - RELATIVE_ERROR))
_MIDDLE: Final = 1.0 - RELATIVE_ERROR


class LatencySketch:
    """Times of one minute. count: of them."""

    __slots__ = ("_buckets", "_zeros", "count")

    def __init__(self) -> None:
        self.count = 0
        self._zeros = 0
        self._buckets: dict[int, int] = {}

    def add(self, ms: float) -> None:
        """One time in ms, at least 0."""
        self.count += 1
        if ms < LEAST_MS:
            self._zeros += 1
            return
        bucket = math.ceil(math.log(ms) / _LOG_G)
        self._buckets[bucket] = self._buckets.get(bucket, 0) + 1

    def quantile(self, share: float) -> float:
        """The smallest time that at least that share, in (0, 1], is not above, in ms; NaN of none."""
        if not self.count:
            return math.nan
        wanted = math.ceil(share * self.count)
        passed = self._zeros
        if passed >= wanted:
            return 0.0
        for bucket in sorted(self._buckets):
            passed += self._buckets[bucket]
            if passed >= wanted:
                break
        return math.exp(bucket * _LOG_G) * _MIDDLE
