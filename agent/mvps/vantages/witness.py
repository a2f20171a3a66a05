# SPDX-License-Identifier: Apache-2.0
"""Two independent counts of the same events: does the probe say what its witness says?

The two are read a moment apart, so events fall between the readings; but what one tick misses the next one holds.
Over a window the skew stays that of one boundary while the events add up:

    |sum of counted - sum of witness| <= skew + SHARE * max(sum of counted, sum of witness)

so a probe that loses or invents a share of its events is seen although one tick has too few of them to tell (ours;
bench/run detect measures both kinds of error).
"""

from __future__ import annotations

from collections import deque

WINDOW_TICKS = 4
# Recorded differences of one tick stay below 1.2 % at 1,000 events and more, whatever the load (docs/detection.md).
SHARE = 0.05


class CountWitness:
    """One probe's count beside its witness's, tick by tick.

    skew: events that may fall between the two readings on a quiet host; at high rates SHARE covers them.
    """

    def __init__(self, skew: int) -> None:
        self._skew = skew
        self._recent: deque[tuple[float, float]] = deque(maxlen=WINDOW_TICKS)

    def check(self, counted: float, witness: float) -> tuple[float, float]:
        """(checked, violated) of the tick with these counts: (0, 0) while there is too little to tell."""
        self._recent.append((counted, witness))
        counted, witness = (sum(side) for side in zip(*self._recent, strict=True))
        more = max(counted, witness)
        if more <= 2 * self._skew:
            return 0.0, 0.0
        return 1.0, float(abs(counted - witness) > self._skew + SHARE * more)
