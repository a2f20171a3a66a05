# SPDX-License-Identifier: Apache-2.0
"""The tick machine of one surface: observations in, coherence vector and decision out.

Deterministic and free of clocks, so that the daemon, an offline evaluation and the broker run the same code.
Lifecycle: CALIBRATING until the window is full, then BAU .. CRITICAL against a frozen baseline. After a long stay
away from BAU at a steady level the surface is SHIFTED, until it returns or the operator accepts the new level.
A missing vantage is recorded and never imputed: the axes are computed from those present.
"""

from __future__ import annotations

import dataclasses
import heapq
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mvps.coherence.alphabet import distribution
from mvps.coherence.axes import c1, c3, conditional_entropy, hamiltonian
from mvps.coherence.baseline import Baseline, ModelSettings, TickRecord, fit_baseline, measure
from mvps.coherence.distance import phi_d, vantage_contributions
from mvps.coherence.observation import HIST_BINS, FloatArray, Observation, Scale
from mvps.coherence.phase import Hysteresis, Phase, deviance, phase_of, posterior

__all__ = [
    "CoherenceVector",
    "Decision",
    "ModelSettings",
    "SurfaceModel",
    "TickResult",
    "decide",
    "recompute",
]


@dataclass(frozen=True, slots=True)
class CoherenceVector:
    """Coherence of one surface in one tick. Axes lie in [0, 1] and are None when absent.

    c2_plain: the seeds' C_2, for comparison. noise: counting-noise variance of axes at this tick's event counts.
    hamiltonian: nats, over the axes present.
    own: standardised own distance per vantage present. s: its maximum (0.0 if there is none).
    farthest: the vantage that has it, "" if there is none.
    """

    surface: str
    tick: int
    c1: float | None
    c2: float | None
    c3: float | None
    c2_plain: float | None
    hamiltonian: float
    own: Mapping[str, float]
    s: float
    farthest: str
    noise: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def axes(self) -> dict[str, float | None]:
        """The axes of D^2 by name."""
        return {"c1": self.c1, "c2": self.c2, "c3": self.c3}


@dataclass(frozen=True, slots=True)
class Decision:
    """What a tick means against the baseline.

    phase: after hysteresis, or SHIFTED. raw_phase: of this tick alone. posterior: of BAU, WATCH, ALARM,
    CRITICAL. p_value: under the baseline's statistic. cutoffs: (WATCH, ALARM, CRITICAL) limits per statistic
    in use. dof: degrees of freedom of d2. axis_contributions: parts of d2, summing to it.
    vantage_contributions: shares of the squared own distances. missing: calibrated vantages not in this tick.
    """

    phase: Phase
    raw_phase: Phase
    posterior: tuple[float, float, float, float]
    d2: float
    phi_d: float
    p_value: float
    s: float
    farthest: str
    cutoffs: Mapping[str, tuple[float, float, float]]
    dof: int
    baseline_id: str
    axis_contributions: Mapping[str, float]
    vantage_contributions: Mapping[str, float]
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TickResult:
    """Everything one step produced.

    phase: lifecycle state of the surface after this tick. decision: None while calibrating, and in a tick
    without any calibrated vantage. distributions: label distribution (A,) per vantage; empty while
    calibrating. events: counted events per vantage. object_sets: windowed touched objects per emitting vantage.
    missing: vantages of the surface without an observation. ignored: vantages with one but without a baseline.
    objects_dropped: touched objects over the limit in this tick.
    """

    phase: Phase
    vector: CoherenceVector
    decision: Decision | None
    distributions: Mapping[str, FloatArray]
    events: Mapping[str, float]
    object_sets: Mapping[str, frozenset[int]]
    missing: tuple[str, ...]
    ignored: tuple[str, ...]
    objects_dropped: int


def decide(baseline: Baseline, vector: CoherenceVector) -> Decision:
    """Decision on one tick alone: ``phase`` equals ``raw_phase``, hysteresis is the caller's.

    ValueError if the vector belongs to another surface or has nothing in common with the baseline.
    """
    if vector.surface != baseline.surface:
        raise ValueError(f"vector of surface {vector.surface!r} against baseline of {baseline.surface!r}")
    axes = vector.axes()
    parts = baseline.ellipsoid.contributions(axes, vector.noise)
    dof = baseline.ellipsoid.dof(axes)
    if dof == 0 and not vector.own:
        raise ValueError(f"{vector.surface}: tick {vector.tick} has no axis and no vantage to decide on")
    d2 = math.fsum(parts.values())
    log_p = baseline.log_p_value(d2, dof, vector.s if vector.own else None)
    raw = phase_of(log_p)
    degrees = 1 if baseline.statistic == "s" else max(dof, 1)
    return Decision(
        phase=raw,
        raw_phase=raw,
        posterior=posterior(deviance(log_p, degrees), degrees),
        d2=d2,
        phi_d=phi_d(d2),
        p_value=math.exp(log_p),
        s=vector.s,
        farthest=vector.farthest,
        cutoffs=baseline.cutoffs(dof),
        dof=dof,
        baseline_id=baseline.baseline_id,
        axis_contributions=parts,
        vantage_contributions=vantage_contributions(vector.own),
        missing=tuple(vantage for vantage in baseline.vantages if vantage not in vector.own),
    )


def recompute(
    baseline: Baseline,
    surface: str,
    tick: int,
    c1: float | None,
    c3: float | None,
    distributions: Mapping[str, FloatArray],
    events: Mapping[str, float],
) -> tuple[CoherenceVector, Decision]:
    """What a broker does with a snapshot: C_2, S and the decision again, from the distributions themselves.

    c1, c3: as reported (their raw material does not travel). distributions: (A,) per vantage, any float type;
    events: counted events per vantage. The result equals the agent's up to the precision of the input, with
    ``phase`` before hysteresis. ValueError for unknown vantages, wrong shapes or non-distributions.
    """
    names = [vantage for vantage in baseline.vantages if vantage in distributions]
    unknown = set(distributions) - set(baseline.vantages)
    if unknown:
        raise ValueError(f"{surface}: no baseline for {', '.join(sorted(unknown))}")
    labels = baseline.law_array.shape[1]
    rows = np.array([baseline.index[name] for name in names], dtype=np.intp)
    p = np.zeros((len(names), labels))
    for i, name in enumerate(names):
        given = np.asarray(distributions[name], dtype=np.float64)
        if given.shape != (labels,):
            raise ValueError(f"{surface}/{name}: distribution has shape {given.shape}, not ({labels},)")
        if not (np.all(given >= 0.0) and abs(given.sum() - 1.0) < 1e-3):
            raise ValueError(f"{surface}/{name}: not a distribution")
        p[i] = given / given.sum()
    counts = np.array([float(events[name]) for name in names])
    if not (np.all(counts >= 0.0) and np.all(np.isfinite(counts))):
        raise ValueError(f"{surface}: event counts must be finite and not negative")
    for axis, value in (("c1", c1), ("c3", c3)):
        if value is not None and not 0.0 <= value <= 1.0:
            raise ValueError(f"{surface}: {axis} = {value} is not in [0, 1]")
    vector = _vector(baseline, surface, tick, c1, c3, names, rows, p, counts)
    return vector, decide(baseline, vector)


def _vector(
    baseline: Baseline,
    surface: str,
    tick: int,
    c1_value: float | None,
    c3_value: float | None,
    names: Sequence[str],
    rows: np.ndarray[tuple[int], np.dtype[np.intp]],
    p: FloatArray,
    events: FloatArray,
) -> CoherenceVector:
    if not names:
        h = hamiltonian((c1_value, c3_value))
        return CoherenceVector(surface, tick, c1_value, None, c3_value, None, h, {}, 0.0, "")
    standing = measure(baseline, p, events, rows)
    own = dict(zip(names, standing.own.tolist(), strict=True))
    farthest = max(own, key=own.__getitem__)
    return CoherenceVector(
        surface,
        tick,
        c1_value,
        standing.c2,
        c3_value,
        standing.c2_plain,
        hamiltonian((c1_value, standing.c2, c3_value)),
        own,
        own[farthest],
        farthest,
        {"c2": standing.c2_noise},
    )


class _ObjectWindow:
    """Objects one vantage touched in its last few ticks; unknown until it has watched that long."""

    def __init__(self, length: int) -> None:
        self._length = length
        self._recent: deque[tuple[int, frozenset[int]]] = deque(maxlen=length)
        self._since = 0

    def add(self, tick: int, touched: frozenset[int]) -> frozenset[int] | None:
        if not self._recent or tick - self._recent[-1][0] > self._length:
            self._since = tick
        self._recent.append((tick, touched))
        if tick - self._since < self._length - 1:
            return None
        return frozenset().union(*(seen for when, seen in self._recent if tick - when < self._length))


class SurfaceModel:
    """Tick machine of one surface.

    surface: its name. vantages: registry names in a fixed order; observations of others are refused.
    baseline: a stored one to start from; its alphabets and pseudo-count rule, while cut-off mode and statistic follow
    ``settings``. Without one the model calibrates first.
    """

    def __init__(
        self,
        surface: str,
        vantages: Sequence[str],
        settings: ModelSettings,
        baseline: Baseline | None = None,
    ) -> None:
        if not vantages or len(set(vantages)) != len(vantages):
            raise ValueError(f"{surface}: vantages must be distinct and at least one, got {list(vantages)}")
        if baseline is not None:
            strangers = set(baseline.vantages) - set(vantages)
            if baseline.surface != surface or strangers:
                raise ValueError(
                    f"{surface}: the stored baseline is for {baseline.surface} with {list(baseline.vantages)}; "
                    "calibrate again"
                )
            if (baseline.cutoff_mode, baseline.statistic) != (settings.cutoff_mode, settings.statistic):
                baseline = dataclasses.replace(baseline, cutoff_mode=settings.cutoff_mode, statistic=settings.statistic)
        self.surface = surface
        self.vantages = tuple(vantages)
        self.settings = settings
        self.baseline = baseline
        self.calibration_problem = ""
        self._last_tick: int | None = None
        self._scales: dict[str, Scale] = {}
        if baseline is not None:
            self._scales.update(zip(baseline.vantages, baseline.scales, strict=True))
        self._objects = {vantage: _ObjectWindow(settings.object_window) for vantage in vantages}
        self._pending: deque[TickRecord] = deque(maxlen=settings.calibration_ticks)
        self._hysteresis = Hysteresis()
        # Stay away from BAU: what a new baseline would be fitted on, and the levels seen.
        self._away: deque[TickRecord] = deque(maxlen=max(settings.shift_dwell, settings.calibration_ticks))
        self._levels: deque[tuple[float, ...]] = deque(maxlen=settings.shift_dwell)
        self._shifted: Phase | None = None

    @property
    def progress(self) -> tuple[int, int]:
        """(calibrated ticks, ticks needed); equal once there is a baseline."""
        needed = self.settings.calibration_ticks
        return (needed if self.baseline is not None else len(self._pending), needed)

    @property
    def phase(self) -> Phase:
        """Lifecycle state after the last tick."""
        if self.baseline is None:
            return Phase.CALIBRATING
        settled = self._hysteresis.phase
        return Phase.SHIFTED if self._shifted is not None and settled <= self._shifted else settled

    def step(self, tick: int, observations: Mapping[str, Observation]) -> TickResult:
        """Advance by one tick of the lattice.

        tick: strictly increasing, gaps allowed; ValueError otherwise, and for an unknown vantage or one that
        changed its severity scale. A refused tick leaves the model as it was.
        """
        if self._last_tick is not None and tick <= self._last_tick:
            raise ValueError(
                f"{self.surface}: tick {tick} after tick {self._last_tick}: late or repeated ticks are refused"
            )
        for name, observation in observations.items():
            if name not in self._objects:
                raise ValueError(f"{self.surface}: unknown vantage {name!r}, expected {list(self.vantages)}")
            if self._scales.get(name, observation.scale) != observation.scale:
                raise ValueError(
                    f"{self.surface}/{name}: severity scale changed from {self._scales[name]} to "
                    f"{observation.scale}; calibrate again"
                )
        self._last_tick = tick
        record, dropped = self._record(tick, observations)
        if self.baseline is None:
            return self._calibrate(tick, record, dropped)
        return self._judge(self.baseline, tick, record, dropped)

    def accept_baseline(self) -> None:
        """Operator accepts the level at which the surface is SHIFTED as the new BAU.

        Fits on the ticks of that stay if they fill a calibration window, else calibrates on from them.
        ValueError when the surface is not SHIFTED, or with the reason why the fit is impossible.
        """
        if self._shifted is None:
            raise ValueError(f"{self.surface}: there is no new level to accept, the surface is {self.phase.name}")
        stay = list(self._away)[-self.settings.calibration_ticks :]
        baseline = self._fit(stay) if len(stay) >= self.settings.calibration_ticks else None
        self.baseline = baseline
        self._pending.clear()
        if baseline is None:
            self._pending.extend(stay)
        self._settle()

    def _settle(self) -> None:
        self._hysteresis = Hysteresis()
        self._forget_stay()

    def _forget_stay(self) -> None:
        self._away.clear()
        self._levels.clear()
        self._shifted = None

    def _fit(self, records: Sequence[TickRecord]) -> Baseline:
        return fit_baseline(self.surface, self.vantages, self._scales, records, self.settings)

    def _record(self, tick: int, observations: Mapping[str, Observation]) -> tuple[TickRecord, int]:
        histograms = np.zeros((len(self.vantages), HIST_BINS))
        present = np.zeros(len(self.vantages), dtype=bool)
        touched: list[frozenset[int] | None] = [None] * len(self.vantages)
        checked = violated = 0.0
        dropped = 0
        flows: list[Mapping[int, float]] = []
        for v, vantage in enumerate(self.vantages):
            observation = observations.get(vantage)
            if observation is None:
                continue
            self._scales.setdefault(vantage, observation.scale)
            histograms[v] = observation.histogram
            present[v] = True
            checked += observation.checked
            violated += observation.violated
            flows.extend(observation.fingerprints.values())
            if observation.objects is not None:
                objects: list[int] = [key for key, events in observation.objects.items() if events > 0.0]
                if len(objects) > self.settings.object_limit:
                    dropped += len(objects) - self.settings.object_limit
                    weight = observation.objects.__getitem__
                    objects = heapq.nlargest(self.settings.object_limit, objects, key=weight)
                touched[v] = self._objects[vantage].add(tick, frozenset(objects))
        record = TickRecord(
            histograms,
            present,
            checked,
            violated,
            conditional_entropy(flows) if flows else None,
            frozenset().union(*flows) if flows else frozenset(),
            tuple(touched),
        )
        return record, dropped

    def _calibrate(self, tick: int, record: TickRecord, dropped: int) -> TickResult:
        if record.present.any():
            self._pending.append(record)
        first = c1(record.checked, record.violated, record.fingerprint_entropy, max(len(record.fingerprints), 2))
        vector = CoherenceVector(self.surface, tick, first, None, None, None, hamiltonian((first,)), {}, 0.0, "")
        result = self._result(record, vector, None, {}, record.histograms.sum(axis=1), dropped, ())
        if len(self._pending) == self.settings.calibration_ticks:
            try:
                self.baseline = self._fit(self._pending)
            except ValueError as error:
                # The window slides: the next tick tries again with the oldest one gone.
                self.calibration_problem = str(error)
            else:
                self.calibration_problem = ""
                self._pending.clear()
                self._settle()
        return result

    def _judge(self, baseline: Baseline, tick: int, record: TickRecord, dropped: int) -> TickResult:
        position = {vantage: v for v, vantage in enumerate(self.vantages)}
        names = [vantage for vantage in baseline.vantages if record.present[position[vantage]]]
        rows = np.array([baseline.index[name] for name in names], dtype=np.intp)
        at = [position[name] for name in names]
        counts = np.matmul(record.histograms[at][:, None, :], baseline.label_matrices[rows])[:, 0, :]
        events = np.add.reduce(counts, axis=1)
        p = distribution(counts, baseline.law_array[rows], baseline.pseudo_count)
        emitters = [
            (touched, bau)
            for name, v in zip(names, at, strict=True)
            if (touched := record.touched[v]) is not None
            and (bau := baseline.object_sets[baseline.index[name]]) is not None
        ]
        vector = _vector(
            baseline,
            self.surface,
            tick,
            c1(
                record.checked,
                record.violated,
                record.fingerprint_entropy,
                max(baseline.fingerprints_known, len(record.fingerprints)),
            ),
            c3([touched for touched, _ in emitters], [bau for _, bau in emitters]),
            names,
            rows,
            p,
            events,
        )
        decision = None
        if names:
            decision = decide(baseline, vector)
            self._hysteresis = self._hysteresis.step(decision.raw_phase, self.settings.hysteresis)
            self._follow_stay(baseline, record, vector)
            decision = dataclasses.replace(decision, phase=self.phase)
        all_events = np.add.reduce(record.histograms, axis=1)
        ignored = tuple(
            vantage for vantage, v in position.items() if record.present[v] and vantage not in baseline.index
        )
        distributions = dict(zip(names, p, strict=True))
        return self._result(record, vector, decision, distributions, all_events, dropped, ignored)

    def _follow_stay(self, baseline: Baseline, record: TickRecord, vector: CoherenceVector) -> None:
        """Keep account of a stay away from BAU; declare SHIFTED once it is long and steady."""
        if self._hysteresis.phase == Phase.BAU:
            if self._away:
                self._forget_stay()
            return
        self._away.append(record)
        axes = vector.axes()
        levels = [axes[axis] for axis in baseline.ellipsoid.axes]
        own = [vector.own.get(vantage) for vantage in baseline.vantages]
        self._levels.append(tuple(math.nan if value is None else value for value in (*levels, *own)))
        full = len(self._levels) == self.settings.shift_dwell
        if full and self._shifted is None and self._steady(baseline):
            self._shifted = self._hysteresis.phase

    def _steady(self, baseline: Baseline) -> bool:
        """Whether no level moved by more than its own noise (or BAU's) between the halves of the stay."""
        levels = np.array(self._levels)
        half = len(levels) // 2
        bau = np.array(
            [math.sqrt(row[i]) for i, row in enumerate(baseline.ellipsoid.covariance)] + [1.0] * len(baseline.vantages)
        )
        for column, floor in zip(levels.T, bau, strict=True):
            early, late = (part[np.isfinite(part)] for part in (column[:half], column[half:]))
            if len(early) == 0 or len(late) == 0:
                continue
            noise = math.sqrt(0.5 * (early.var() + late.var()))
            if abs(late.mean() - early.mean()) > max(noise, floor):
                return False
        return True

    def _result(
        self,
        record: TickRecord,
        vector: CoherenceVector,
        decision: Decision | None,
        distributions: Mapping[str, FloatArray],
        events: FloatArray,
        dropped: int,
        ignored: tuple[str, ...],
    ) -> TickResult:
        here = record.present.tolist()
        return TickResult(
            self.phase,
            vector,
            decision,
            distributions,
            {name: float(n) for name, n, there in zip(self.vantages, events, here, strict=True) if there},
            {name: s for name, s in zip(self.vantages, record.touched, strict=True) if s is not None},
            tuple(name for name, there in zip(self.vantages, here, strict=True) if not there),
            ignored,
            dropped,
        )
