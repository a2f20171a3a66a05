# SPDX-License-Identifier: Apache-2.0
"""COHERENT_BUT_FALSE, the lateral label beside the phase: the replicas agree, and rephrasing breaks it (001 sec. 7).

    set       when C_4 < C4_ALARM
    released  when C_4 >= C4_WATCH in three ticks running                                           (001 sec. 7.2)

It moves on C_4 alone, and the main phase on the other axes alone: C_4 is in no D^2. The source has both a 4 x 4 Sigma
and a main phase on three axes, and a conjunction under which its own (ALARM, CBF) cannot occur; the pair of labels says
the same without either. (BAU, CBF) is the consensus that is false, (ALARM, CBF) a bad deployment.

Limits belong to a topic. They are chosen on labelled prompts: C4_ALARM where F1 is largest, C4_WATCH (which the source
uses and does not define) at the lower quartile of C_4 on prompts that are answered truly, but not below C4_ALARM
(ours). F1 at a limit chosen on the same prompts is too good, so the one reported comes from prompts outside each
bootstrap sample.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mvps.coherence.axes import BoolArray
from mvps.coherence.observation import FloatArray

RELEASE_TICKS = 3
LEAST_LABELLED = 10  # false, and as many true
POOLED = "*"


class Lateral(enum.IntEnum):
    """Lateral label; not a severity."""

    NONE = 0
    CBF = 1


class Limits(NamedTuple):
    """Limits of one topic, C4_ALARM <= C4_WATCH, with intervals at 95 % from a bootstrap over prompts.

    f1: at C4_ALARM on prompts that did not choose it, with its interval. auroc: of low C_4 for falsehood, with its
    interval; ``informative`` only if that lies above .5. false, true: labelled prompts behind it.
    """

    alarm: float
    watch: float
    alarm_interval: tuple[float, float]
    f1: float
    f1_interval: tuple[float, float]
    auroc: float
    auroc_interval: tuple[float, float]
    false: int
    true: int

    @property
    def informative(self) -> bool:
        """Whether C_4 told false from true better than chance on the labelled prompts."""
        return self.auroc_interval[0] > 0.5


class State(NamedTuple):
    """Lateral label of one topic, and for how many ticks running C_4 was at or above C4_WATCH."""

    label: Lateral = Lateral.NONE
    calm: int = 0

    def step(self, c4: float | None, alarm: float, watch: float, release: int = RELEASE_TICKS) -> State:
        """State after one more tick. Without C_4 (None) the label holds, and the ticks running begin again."""
        if not 0.0 <= alarm <= watch <= 1.0:
            raise ValueError(f"limits of C_4 need 0 <= C4_ALARM <= C4_WATCH <= 1, not {alarm} and {watch}")
        if c4 is None:
            return State(self.label, 0)
        if c4 < alarm:
            return State(Lateral.CBF, 0)
        calm = min(self.calm + 1, release) if c4 >= watch else 0
        return State(Lateral.NONE if calm >= release else self.label, calm)


def auroc(c4: FloatArray, false: BoolArray) -> float:
    """Probability that a prompt answered falsely has the lower C_4, ties half; .5 is chance, below it the wrong way."""
    wrong, right = c4[false], np.sort(c4[~false])
    above = 2 * len(right) - np.searchsorted(right, wrong, "left") - np.searchsorted(right, wrong, "right")
    return float(above.sum()) / (2.0 * len(right) * len(wrong))


def limits(c4: FloatArray, false: BoolArray, resamples: int = 500, seed: int = 0) -> Limits:
    """Limits of a topic from labelled prompts: C_4 (n,) and whether the consensus was false (n,).

    ValueError below ten of either kind: nothing can be chosen on fewer.
    """
    if c4.shape != false.shape or c4.ndim != 1 or not ((c4 >= 0.0) & (c4 <= 1.0)).all():
        raise ValueError("labelled prompts need one C_4 in [0, 1] and one label each")
    wrong, right = np.flatnonzero(false), np.flatnonzero(~false)
    if min(len(wrong), len(right)) < LEAST_LABELLED:
        raise ValueError(
            f"{len(wrong)} false and {len(right)} true prompts: label at least {LEAST_LABELLED} of either, "
            "or pool topics"
        )
    alarm = _best(c4, false)
    rng = np.random.default_rng(seed)
    drawn = np.empty((resamples, 3))
    for row in range(resamples):
        # Both kinds apart: a sample without one of them chooses nothing.
        chosen = np.concatenate((rng.choice(wrong, len(wrong)), rng.choice(right, len(right))))
        left_out = np.ones(len(c4), dtype=bool)
        left_out[chosen] = False
        at = _best(c4[chosen], false[chosen])
        outside = _f1(c4[left_out], false[left_out], at) if false[left_out].any() else math.nan
        drawn[row] = at, outside, auroc(c4[chosen], false[chosen])
    low, high = np.nanquantile(drawn, (0.025, 0.975), axis=0)
    watch = max(alarm, float(np.quantile(c4[right], 0.25)))
    return Limits(
        alarm,
        watch,
        (float(low[0]), float(high[0])),
        float(np.nanmean(drawn[:, 1])),
        (float(low[1]), float(high[1])),
        auroc(c4, false),
        (float(low[2]), float(high[2])),
        len(wrong),
        len(right),
    )


def limits_by_topic(
    c4: FloatArray, false: BoolArray, topics: Sequence[str], resamples: int = 500, seed: int = 0
) -> dict[str, Limits]:
    """Limits of every topic with enough labelled prompts, and of all of them together under "*", for the others."""
    if len(topics) != len(c4):
        raise ValueError(f"{len(c4)} prompts have {len(topics)} topics")
    if POOLED in topics:
        raise ValueError(f"{POOLED!r} stands for all topics: call this one something else")
    names = np.array(topics)
    found = {POOLED: limits(c4, false, resamples, seed)}
    for topic in sorted(set(topics)):
        here = names == topic
        if min(int(false[here].sum()), int((~false[here]).sum())) >= LEAST_LABELLED:
            found[topic] = limits(c4[here], false[here], resamples, seed)
    return found


def _best(c4: FloatArray, false: BoolArray) -> float:
    """The limit with the largest F1, the lowest of equals, half way to the next value; 0 if every C_4 is 1."""
    values, kinds = np.unique(c4, return_inverse=True)
    caught = np.cumsum(np.bincount(kinds, weights=false.astype(np.float64)))
    flagged = np.cumsum(np.bincount(kinds))
    f1 = 2.0 * caught / (flagged + float(false.sum()))
    ends = np.append(values[1:], 1.0)
    possible = values < ends  # a C_4 of 1 is below no limit
    if not possible.any():
        return 0.0
    best = int(np.where(possible, f1, -1.0).argmax())
    return float(0.5 * (values[best] + ends[best]))


def _f1(c4: FloatArray, false: BoolArray, alarm: float) -> float:
    flagged = c4 < alarm
    hits = float((flagged & false).sum())
    return 2.0 * hits / (float(flagged.sum()) + float(false.sum()))
