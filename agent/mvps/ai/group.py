# SPDX-License-Identifier: Apache-2.0
"""A replica group over time: rounds of questions in, a report per round out. No I/O, no clock, no text.

Two windows come before the first decision. In the first the scales of the axes are found: latency labels, the ends of
C_2^W2 (replays of one prompt, answers to other prompts) and delta_4. In the second the axes are measured on those
scales, and their baseline is fitted. Nothing is called a phase before that.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from mvps.ai.outcome import Outcome
from mvps.ai.replica_load import ReplicaLoad
from mvps.coherence.observation import FloatArray
from mvps.coherence.phase import Hysteresis, Phase
from mvps.semantic import c4, calibrated, cbf, cka, latency, profiles
from mvps.semantic.attribution import attribute, leave_out_excess

# Latencies that C_1 compares come from this many rounds: one round has one per replica. The more rounds overlap, the
# fewer a baseline is worth: with twice as many, quiet groups alarm (tests/ai/test_group.py).
LATENCY_ROUNDS: Final = 10
# Rounds that are searched for a replica that stands out.
MEMORY_ROUNDS: Final = 200
SEARCH_EVERY: Final = 10
SUSPECT: Final = 0.01
# Variance that rounding and chance leave in an axis that never moved in calibration: a fiftieth of its range, and a
# five-hundredth where weights are compared and not words (ours).
_FLOOR: Final = 0.02**2
_FLOOR_OF_WEIGHTS: Final = 0.002**2


@dataclass(frozen=True, slots=True)
class Round:
    """What one round of questions gave, as numbers. N replicas; NaN where an answer did not come.

    canary: number of the prompt. ttft, total: seconds, (N,). between: distances of the answers, (N, N). replayed: of
    each replica's answer to its own second one, (N,), None in a round without replays. unrelated: distances to answers
    to other prompts, (n,). rephrased: to the answers in other words, (N, K), None in a round without; same_meaning
    marks those of them where both answers hold what was expected, (N, K). wrong: 1 where the answer lacks it, (N,),
    None for a prompt with nothing expected. outcomes: per replica, of every question of the round. left_out: sentences
    beyond the limit. encoder_failed: the encoder gave nothing, so there are no distances.

    Of a white-box group: cka: of attention on the same tokens, (N, N), None where there is none. cka_unpaired: with
    other prompts, (m,). attention_jsd, next_jsd: mean divergence of attention rows and of next-token laws, in [0, 1].
    tokens_left_out: of what was to be read. reading_problem: why nothing could be read, "" if it could.

    loads: replica -> what its engine counted since the round before; empty where one of them does not tell.
    """

    index: int
    family: str
    canary: int
    ttft: FloatArray
    total: FloatArray
    between: FloatArray
    replayed: FloatArray | None = None
    unrelated: FloatArray = field(default_factory=lambda: np.zeros(0))
    rephrased: FloatArray | None = None
    same_meaning: np.ndarray[tuple[int, ...], np.dtype[np.bool_]] | None = None
    wrong: FloatArray | None = None
    outcomes: tuple[Mapping[str, int], ...] = ()
    left_out: int = 0
    encoder_failed: bool = False
    cka: FloatArray | None = None
    cka_unpaired: FloatArray = field(default_factory=lambda: np.zeros(0))
    attention_jsd: float | None = None
    next_jsd: float | None = None
    tokens_left_out: int = 0
    reading_problem: str = ""
    loads: Mapping[str, ReplicaLoad] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Suspect:
    """A replica that stands out on a family ("*": on all), by what, and how surely (p-value adjusted for all cells)."""

    replica: str
    family: str
    by: str
    effect: float
    p_value: float


@dataclass(frozen=True, slots=True)
class Report:
    """Scalars of one round: all that leaves the vantage.

    state: "scales", "baseline" or "watching", with done and needed ticks. axes: by name, None when absent. phase: after
    hysteresis, raw_phase: of this round alone, None before there is a baseline; d2 to dof belong to them. cutoffs: of
    d2, for WATCH, ALARM, CRITICAL. lateral: of this round's family; brittle: all families labelled CBF. c4: averaged,
    of this family; worst_c4: of the family where it is lowest. graded: wrong and graded answers of this round. golden:
    family -> wrong and graded answers, asked because it was labelled CBF. suspects: most certain first. asked: replica
    -> questions of this round and how many gave nothing to compare. outcomes: replica -> outcome -> answers since the
    start. notes: what a reader has to know to take the rest rightly. loads: as in the round.
    """

    index: int
    family: str
    state: str
    done: int
    needed: int
    axes: Mapping[str, float | None]
    phase: str | None
    raw_phase: str | None
    d2: float | None
    phi_d: float | None
    p_value: float | None
    cutoffs: tuple[float, float, float] | None
    dof: int
    contributions: Mapping[str, float]
    lateral: str
    brittle: tuple[str, ...]
    c4: float | None
    worst_c4: float | None
    graded: tuple[int, int]
    golden: Mapping[str, tuple[int, int]]
    suspects: tuple[Suspect, ...]
    asked: Mapping[str, tuple[int, int]]
    outcomes: Mapping[str, Mapping[str, int]]
    notes: tuple[str, ...]
    loads: Mapping[str, ReplicaLoad]


@dataclass(frozen=True, slots=True)
class Scales:
    """What makes numbers of different deployments comparable; see the modules of ``semantic``."""

    ttft: latency.LatencyScale
    total: latency.LatencyScale
    anchors: calibrated.Anchors | None
    w2_max: float | None
    delta: c4.Delta | None
    notes: tuple[str, ...]
    cka_null: float | None = None  # of unpaired prompts, where attention is seen


class Group:
    """State of one group.

    replicas: names in the order of every round's arrays. profile: see ``semantic.profiles``. encoder: its name, which
    the baseline belongs to. limits: family -> (C4_ALARM, C4_WATCH); "*" for the others. hidden: whether distances are
    between hidden states on the same tokens, and not between answers.
    """

    def __init__(
        self,
        replicas: Sequence[str],
        profile: profiles.Profile,
        encoder: str,
        limits: Mapping[str, tuple[float, float]],
        *,
        scale_ticks: int,
        baseline_ticks: int,
        cutoffs: str = "empirical",
        hidden: bool = False,
    ) -> None:
        self.replicas = tuple(replicas)
        self._profile = profile
        self._encoder = encoder
        self._limits = dict(limits)
        self._scale_ticks = scale_ticks
        self._baseline_ticks = baseline_ticks
        self._cutoffs = cutoffs
        self._hidden = hidden
        # Where calibration cannot end, it goes on with the latest: a group that has answered badly may recover.
        self._first: deque[Round] = deque(maxlen=2 * scale_ticks)
        self._scales: Scales | None = None
        self._axes: deque[Mapping[str, float | None]] = deque(maxlen=2 * baseline_ticks)
        self._baseline: profiles.AiBaseline | None = None
        self._latencies: deque[tuple[FloatArray, FloatArray]] = deque(maxlen=LATENCY_ROUNDS)
        self._memory: deque[Round] = deque(maxlen=MEMORY_ROUNDS)
        self._hysteresis = Hysteresis()
        self._lateral: dict[str, cbf.State] = {}
        self._c4: dict[str, c4.Ema] = {}
        self._outcomes: dict[str, Counter[str]] = {name: Counter() for name in self.replicas}
        self._suspects: tuple[Suspect, ...] = ()
        self._encoder_failures = 0
        self._problem = ""

    @property
    def calibrating(self) -> bool:
        """Whether scales or baseline are still missing."""
        return self._baseline is None

    @property
    def learned(self) -> tuple[Scales, profiles.AiBaseline] | None:
        """What calibration found, once it is over."""
        return (self._scales, self._baseline) if self._scales and self._baseline else None

    def restore(self, scales: Scales, baseline: profiles.AiBaseline) -> None:
        """Go on with what an earlier calibration of the same group found."""
        self._scales, self._baseline = scales, baseline
        self._first.clear()

    def step(self, seen: Round) -> Report:
        """Take one round."""
        for name, counts in zip(self.replicas, seen.outcomes, strict=True):
            self._outcomes[name].update(counts)
        self._encoder_failures += seen.encoder_failed
        self._memory.append(seen)
        if seen.index % SEARCH_EVERY == 0:
            self._suspects = self._search()
        self._latencies.append((seen.ttft, seen.total))
        if self._scales is None:
            self._first.append(seen)
            if len(self._first) >= self._scale_ticks:
                self._find_scales()
            return self._report(seen, {}, None)
        axes = self._measure(self._scales, seen)
        if self._baseline is None:
            self._axes.append(axes)
            if len(self._axes) >= self._baseline_ticks:
                self._fit()
            return self._report(seen, axes, None)
        judged = profiles.judge(self._profile, self._baseline, self._encoder, axes)
        if judged.phase is not None:
            self._hysteresis = self._hysteresis.step(judged.phase)
        return self._report(seen, axes, judged)

    def _find_scales(self) -> None:
        """Scales from the first window; what is missing is waited for, and said."""
        rounds = list(self._first)
        notes: list[str] = []
        try:
            ttft = latency.latency_scale(np.concatenate([one.ttft for one in rounds]))
            total = latency.latency_scale(np.concatenate([one.total for one in rounds]))
        except ValueError as error:
            self._problem = str(error)
            return
        ends: calibrated.Anchors | None = None
        same = _known(np.concatenate([one.replayed for one in rounds if one.replayed is not None] or [np.zeros(0)]))
        unrelated = _known(np.concatenate([one.unrelated for one in rounds] or [np.zeros(0)]))
        try:
            ends = calibrated.anchors(same, unrelated)
        except ValueError as error:
            if "c2_w2" in self._profile.main:
                self._problem = str(error)
                return
            notes.append(f"no C_2^W2: {error}")
        between = _known(np.concatenate([one.between[np.triu_indices(len(one.between), 1)] for one in rounds]))
        largest = calibrated.w2_max(between) if len(between) and between.max() > 0.0 else None
        null = None
        if "c3_cka" in self._profile.main:
            unpaired = _known(np.concatenate([one.cka_unpaired for one in rounds]))
            if len(unpaired) < calibrated.LEAST_PAIRS:
                self._problem = (
                    f"{len(unpaired)} comparisons of attention on different prompts are too few for C_3^CKA: at least "
                    f"{calibrated.LEAST_PAIRS}, of two families and of four tokens"
                )
                return
            null = float(unpaired.mean())
            try:
                cka.c3_cka(np.eye(2), null)
            except ValueError as error:
                self._problem = str(error)
                return
        threshold, note = self._find_delta(rounds)
        self._scales = Scales(ttft, total, ends, largest, threshold, (*notes, *([note] if note else [])), null)
        self._problem = ""
        self._first.clear()

    def _find_delta(self, rounds: Sequence[Round]) -> tuple[c4.Delta | None, str]:
        """delta_4 from answers known to mean the same; where too few are known, from all rephrasings in calibration."""
        asked = [(one.rephrased, one.same_meaning) for one in rounds if one.rephrased is not None]
        known = [far[same & ~np.isnan(far)] for far, same in asked if same is not None]
        every = [_known(far) for far, _ in asked]
        note = ""
        for distances, said in ((known, ""), (every, "delta_4 assumes that calibration answers held under rephrasing")):
            try:
                return c4.delta(np.concatenate(distances or [np.zeros(0)])), said
            except ValueError as error:
                note = f"no C_4: {error}"
        return None, note

    def _measure(self, scales: Scales, seen: Round) -> dict[str, float | None]:
        ttft, total = (np.stack(column, axis=1) for column in zip(*self._latencies, strict=True))
        counts = [
            np.stack([scale.counts(row) for row in rows])
            for scale, rows in ((scales.ttft, ttft), (scales.total, total))
        ]
        axes: dict[str, float | None] = {"c1": latency.c1_latency(counts, (scales.ttft, scales.total))}
        coherence = calibrated.c2_w2(seen.between, scales.anchors) if scales.anchors else None
        axes["c2_w2"] = coherence.value if coherence else None
        axes["c2_w2_seed"] = calibrated.c2_w2_seed(seen.between, scales.w2_max) if scales.w2_max else None
        if scales.cka_null is not None:
            axes["c3_cka"] = cka.c3_cka(seen.cka, scales.cka_null) if seen.cka is not None else None
            axes["attention_jsd"], axes["next_jsd"] = seen.attention_jsd, seen.next_jsd
        stable = c4.c4(seen.rephrased, scales.delta) if scales.delta and seen.rephrased is not None else None
        axes["c4"] = stable.value if stable else None
        if stable is not None:
            average = self._c4.get(seen.family, c4.Ema()).step(stable.value)
            self._c4[seen.family] = average
            alarm, watch = self._limits.get(seen.family, self._limits[cbf.POOLED])
            state = self._lateral.get(seen.family, cbf.State())
            self._lateral[seen.family] = state.step(average.value, alarm, watch)
        return axes

    def _fit(self) -> None:
        try:
            self._baseline = profiles.fit_baseline(
                self._profile,
                self._encoder,
                list(self._axes),
                {axis: self._floor(axis) for axis in self._profile.main},
                self._cutoffs,
            )
            self._problem = ""
        except ValueError as error:
            self._problem = str(error)

    def _floor(self, axis: str) -> float:
        of_weights = axis == "c3_cka" or (axis == "c2_w2" and self._hidden)
        return _FLOOR_OF_WEIGHTS if of_weights else _FLOOR

    def _search(self) -> tuple[Suspect, ...]:
        """Replicas that stand out in the remembered rounds, each prompt counted once however often it was asked."""
        failed = {}
        wrong = {}
        apart = {}
        for number in {one.canary for one in self._memory}:
            asked = [one for one in self._memory if one.canary == number]
            failed[number] = np.mean([np.isnan(one.total) for one in asked], axis=0)
            if graded := [one.wrong for one in asked if one.wrong is not None]:
                wrong[number] = _mean(np.stack(graded))
            apart[number] = _mean(leave_out_excess(np.stack([one.between for one in asked])))
        family = {one.canary: one.family for one in self._memory}
        found = []
        for by, scores in (("no answer", failed), ("wrong answer", wrong), ("apart from the others", apart)):
            if not scores:
                continue
            for cell in attribute(np.stack(list(scores.values())), [family[number] for number in scores]):
                if cell.p_value <= SUSPECT and cell.effect > 0.0:
                    found.append(Suspect(self.replicas[cell.replica], cell.family, by, cell.effect, cell.p_value))
        return tuple(sorted(found, key=lambda one: one.p_value))

    def _report(self, seen: Round, axes: Mapping[str, float | None], judged: profiles.Judgement | None) -> Report:
        if self._scales is None:
            state, done, needed = "scales", len(self._first), self._scale_ticks
        elif self._baseline is None:
            state, done, needed = "baseline", len(self._axes), self._baseline_ticks
        else:
            state, done, needed = "watching", self._baseline_ticks, self._baseline_ticks
        notes = [*(self._scales.notes if self._scales else ())]
        if self._problem:
            notes.append(self._problem)
        if judged and judged.note:
            notes.append(judged.note)
        if seen.family not in self._limits and axes.get("c4") is not None:
            notes.append(f"limits of C_4 for {seen.family} are not chosen on labelled prompts")
        if self._encoder_failures:
            notes.append(f"the encoder gave nothing in {self._encoder_failures} rounds")
        if seen.left_out:
            parts = "tokens" if self._profile is profiles.WHITE else "sentences"
            notes.append(f"{seen.left_out} {parts} of this round were left out")
        if seen.tokens_left_out:
            notes.append(f"{seen.tokens_left_out} tokens of this round were not read")
        if seen.reading_problem:
            notes.append(f"nothing was read: {seen.reading_problem}")
        average = self._c4.get(seen.family)
        return Report(
            seen.index,
            seen.family,
            state,
            min(done, needed),
            needed,
            dict(axes),
            Phase(self._hysteresis.phase).name if judged else None,
            judged.phase.name if judged and judged.phase is not None else None,
            judged.d2 if judged else None,
            judged.phi_d if judged else None,
            judged.p_value if judged else None,
            judged.cutoffs if judged else None,
            judged.dof if judged else 0,
            dict(judged.contributions) if judged else {},
            self._lateral.get(seen.family, cbf.State()).label.name,
            tuple(sorted(name for name, one in self._lateral.items() if one.label is cbf.Lateral.CBF)),
            average.value if average else None,
            min((one.value for one in self._c4.values() if one.value is not None), default=None),
            (0, 0) if seen.wrong is None else (int(np.nansum(seen.wrong)), int((~np.isnan(seen.wrong)).sum())),
            {},
            self._suspects,
            {name: _asked(counts) for name, counts in zip(self.replicas, seen.outcomes, strict=False)},
            {name: dict(counts) for name, counts in self._outcomes.items()},
            tuple(notes),
            dict(seen.loads),
        )


def _asked(outcomes: Mapping[str, int]) -> tuple[int, int]:
    total = sum(outcomes.values())
    return total, total - sum(count for outcome, count in outcomes.items() if Outcome(outcome).comparable)


def _known(values: FloatArray) -> FloatArray:
    flat = values.ravel()
    kept: FloatArray = flat[~np.isnan(flat)]
    return kept


def _mean(rows: FloatArray) -> FloatArray:
    """Mean of the values that are there, (R, N) -> (N,); NaN where none is."""
    there = ~np.isnan(rows)
    total = np.where(there, rows, 0.0).sum(axis=0)
    mean: FloatArray = np.where(there.any(axis=0), total / np.maximum(there.sum(axis=0), 1), np.nan)
    return mean
