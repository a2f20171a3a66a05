# SPDX-License-Identifier: Apache-2.0
"""What BAU is: everything needed to turn a tick into a decision, fitted once and then frozen.

A :class:`Baseline` is plain data with a canonical JSON form and an id (hash of it), so that agent, broker and an
auditor can name the same baseline and recompute the same decision. It does not drift with the data: it stays as
it is until an operator accepts a new level (ours; a trailing window learns a slow fault as normal).

Fitting (ours): (1) ticks far out in mean or highest severity are set aside before labels exist; (2) alphabet, laws and
axes are fitted, and ticks far out in MCD distance or own distance are set aside, twice; (3) mean and
covariance come from what is kept; (4) false-alarm tables come from blocked cross-fitting of steps 2 and 3.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn

import numpy as np

from mvps.coherence.alphabet import LABELS, Alphabet, common_categories, distribution, normal_law
from mvps.coherence.axes import (
    HALF_LN2,
    TINY,
    BoolArray,
    binomial_noise,
    c1,
    c2,
    c2_noise,
    check_noise,
    entropy,
    fingerprint_noise,
    jaccard,
    own_distance,
    own_noise,
)
from mvps.coherence.distance import CUTOFF_MODES, Ellipsoid, d2_cutoffs, d2_log_survival
from mvps.coherence.mcd import fast_mcd
from mvps.coherence.observation import FloatArray, Scale
from mvps.coherence.phase import HYSTERESIS_TICKS, LOG_LEVELS
from mvps.coherence.tail import (
    IndexArray,
    Tail,
    autocorrelation_time,
    block_length,
    blocked_scores,
    contaminated,
)

LEAST_TICKS = 60
AXES = ("c1", "c2", "c3")
STATISTICS = ("d2", "s", "d2+s")
FORMAT = "mvps-baseline/1"
MAX_JSON_BYTES = 8 << 20

_LEAST_VARIANCE = 1e-12
_MOST_TRIMMED = 0.25
_BAU_OBJECT_SHARE = 0.5  # an object belongs to the BAU set if touched in at least this share of ticks
_LEAST_D2_SCALE = 0.5
_LEAST_S_SCALE = 0.1
_MOST_PSEUDO = 1e9  # far above the events of any tick; beyond some 1e150 its square is no number


@dataclass(frozen=True)
class ModelSettings:
    """Settings of one surface's model.

    calibration_ticks: BAU ticks before the first decision, at least 60.
    cutoff_mode: "empirical", "finite-sample" or "chi2" (for D^2; S has no theory and is always empirical).
    statistic: "d2", "s" or "d2+s"; the last splits the false-alarm level between the two (Bonferroni).
    hysteresis: ticks to agree before the phase changes.
    pseudo_count: events the BAU law is worth in every tick's distribution.
    labels: size of the common alphabet.
    object_window: ticks an object stays in its vantage's touched set after its last event.
    object_limit: objects kept per vantage and tick; the busiest stay, the others are counted as dropped.
    shift_dwell: ticks away from BAU at a steady level after which the surface is SHIFTED, at least 60.
    """

    calibration_ticks: int = 300
    cutoff_mode: str = "empirical"
    statistic: str = "d2+s"
    hysteresis: int = HYSTERESIS_TICKS
    pseudo_count: float = 10.0
    labels: int = LABELS
    object_window: int = 4
    object_limit: int = 4096
    shift_dwell: int = 600

    def __post_init__(self) -> None:
        if self.calibration_ticks < LEAST_TICKS or self.shift_dwell < LEAST_TICKS:
            raise ValueError(f"calibration_ticks and shift_dwell must be at least {LEAST_TICKS}")
        _check_choice("cutoff_mode", self.cutoff_mode, CUTOFF_MODES)
        _check_choice("statistic", self.statistic, STATISTICS)
        if self.hysteresis < 1 or self.object_window < 1 or self.object_limit < 1:
            raise ValueError("hysteresis, object_window and object_limit must be at least 1")
        if not 0.0 < self.pseudo_count <= _MOST_PSEUDO:
            raise ValueError(f"pseudo_count must be positive and at most {_MOST_PSEUDO:g}, not {self.pseudo_count}")
        if not 3 <= self.labels <= 32:
            raise ValueError(f"labels must be 3 to 32, not {self.labels}")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"unknown {name} {value!r}: choose one of {', '.join(choices)}")


@dataclass(frozen=True, slots=True)
class TickRecord:
    """What fitting needs of one tick; vantages in the surface's order, V of them.

    histograms: (V, HIST_BINS), zero rows for absent vantages. present: (V,).
    checked, violated: summed over vantages. fingerprint_entropy: see axes.conditional_entropy.
    fingerprints: distinct ones of this tick. touched: windowed object set per vantage, None if it emits none.
    """

    histograms: FloatArray
    present: BoolArray
    checked: float
    violated: float
    fingerprint_entropy: tuple[float, float] | None
    fingerprints: frozenset[int]
    touched: tuple[frozenset[int] | None, ...]


@dataclass(frozen=True)
class Baseline:
    """BAU of one surface. Frozen, JSON-able, enough to recompute any decision.

    surface: its name. vantages: those with a baseline, in order; arrays below follow it.
    dropped: (vantage or axis, reason) of what could not be calibrated.
    scales, alphabets: per vantage. laws: BAU label law per vantage, (V, A).
    objects: per vantage its sorted BAU object set, None if it emits no objects.
    fingerprints_known: distinct fingerprints seen. pseudo_count: see ModelSettings.
    ellipsoid: mean and covariance of the axes.
    own_mean: bits, and own_excess: bits^2, its variance beyond counting noise: z = (own - mean) /
        sqrt(excess + noise of this tick's counts) standardises each vantage's own distance at any event rate.
    d2_tail, s_tail: how often BAU reaches a given D^2 or S.
    ticks, trimmed: calibration ticks and how many of them were set aside as contaminated.
    effective_ticks: independent ticks the kept ones are worth. block: block length in ticks of the cross-fit.
    cutoff_mode, statistic: how decisions are made from it.
    """

    surface: str
    vantages: tuple[str, ...]
    dropped: tuple[tuple[str, str], ...]
    scales: tuple[Scale, ...]
    alphabets: tuple[Alphabet, ...]
    laws: tuple[tuple[float, ...], ...]
    objects: tuple[tuple[int, ...] | None, ...]
    fingerprints_known: int
    pseudo_count: float
    ellipsoid: Ellipsoid
    own_mean: tuple[float, ...]
    own_excess: tuple[float, ...]
    d2_tail: Tail
    s_tail: Tail
    ticks: int
    trimmed: int
    effective_ticks: float
    block: int
    cutoff_mode: str
    statistic: str

    def __post_init__(self) -> None:
        number = len(self.vantages)
        per_vantage = (self.scales, self.alphabets, self.laws, self.objects, self.own_mean, self.own_excess)
        if number == 0 or any(len(values) != number for values in per_vantage):
            raise ValueError(f"{self.surface}: the baseline's per-vantage fields do not fit its vantages")
        if len(set(self.vantages)) != number:
            raise ValueError(f"{self.surface}: a vantage appears twice in the baseline")
        labels = self.alphabets[0].labels
        if any(alphabet.labels != labels for alphabet in self.alphabets):
            raise ValueError(f"{self.surface}: the vantages' alphabets differ in size")
        laws = self.law_array
        if laws.shape != (number, labels) or np.any(laws < 0.0) or np.any(abs(laws.sum(axis=1) - 1.0) > 1e-6):
            raise ValueError(f"{self.surface}: BAU laws must be {number} distributions over {labels} labels")
        if not all(math.isfinite(m) for m in self.own_mean) or not all(e >= 0.0 for e in self.own_excess):
            raise ValueError(f"{self.surface}: own distances need finite means and variances not below 0")
        if not 0.0 < self.pseudo_count <= _MOST_PSEUDO:
            raise ValueError(f"{self.surface}: the pseudo-count must be positive and at most {_MOST_PSEUDO:g}")
        if any(axis not in AXES for axis in self.ellipsoid.axes):
            raise ValueError(f"{self.surface}: unknown axis among {self.ellipsoid.axes}")
        _check_choice("cutoff_mode", self.cutoff_mode, CUTOFF_MODES)
        _check_choice("statistic", self.statistic, STATISTICS)

    @cached_property
    def law_array(self) -> FloatArray:
        """BAU label laws, (V, A)."""
        return np.array(self.laws, dtype=np.float64)

    @cached_property
    def reference(self) -> FloatArray:
        """The BAU reference distribution of C_2: mean of the laws, (A,)."""
        mean: FloatArray = self.law_array.mean(axis=0)
        return mean

    @cached_property
    def label_matrices(self) -> FloatArray:
        """Bins to labels per vantage, (V, HIST_BINS, A)."""
        return np.stack([alphabet.matrix for alphabet in self.alphabets])

    @cached_property
    def object_sets(self) -> tuple[frozenset[int] | None, ...]:
        """BAU object set per vantage, None if it emits no objects."""
        return tuple(None if o is None else frozenset(o) for o in self.objects)

    @cached_property
    def own_standard(self) -> tuple[FloatArray, FloatArray]:
        """(mean, excess variance) of the own distances as arrays (V,)."""
        return np.array(self.own_mean), np.array(self.own_excess)

    @cached_property
    def entropies(self) -> tuple[FloatArray, float]:
        """Entropies in bits of the laws (V,) and of the reference."""
        return entropy(self.law_array), float(entropy(self.reference))

    @cached_property
    def index(self) -> dict[str, int]:
        """Position of each vantage."""
        return {vantage: i for i, vantage in enumerate(self.vantages)}

    @cached_property
    def _cutoffs(self) -> dict[int, dict[str, tuple[float, float, float]]]:
        return {}

    def cutoffs(self, dof: int) -> dict[str, tuple[float, float, float]]:
        """(WATCH, ALARM, CRITICAL) limits of each statistic in use, in its own units."""
        known = self._cutoffs.get(dof)
        if known is None:
            split = 2 if self.statistic == "d2+s" else 1
            known = {}
            if self.statistic != "s":
                known["d2"] = d2_cutoffs(self.cutoff_mode, dof, self.ellipsoid.ticks, self.d2_tail, split)
            if self.statistic != "d2":
                watch, alarm, critical = (self.s_tail.score_at(level - math.log(split)) for level in LOG_LEVELS)
                known["s"] = (watch, alarm, critical)
            self._cutoffs[dof] = known
        return known

    @cached_property
    def moved(self) -> float:
        """Own distance from which a vantage counts as moved: the WATCH level of S by itself, > 0."""
        return max(self.s_tail.score_at(LOG_LEVELS[0]), 1e-6)

    def log_p_value(self, d2: float, dof: int, s: float | None) -> float:
        """log p-value of a tick under the statistic in use; s is None when no vantage has an own distance."""
        by_d2 = d2_log_survival(self.cutoff_mode, d2, dof, self.ellipsoid.ticks, self.d2_tail)
        by_s = 0.0 if s is None else self.s_tail.log_survival(s)
        if self.statistic == "d2":
            return by_d2
        if self.statistic == "s":
            return by_s
        return min(0.0, math.log(2.0) + min(by_d2, by_s))

    def to_json(self) -> bytes:
        """Canonical JSON: sorted keys, no spaces, floats that round-trip."""
        body = {"format": FORMAT, **dataclasses.asdict(self)}
        return json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Baseline:
        """Inverse of :meth:`to_json`; ValueError with the reason for anything else."""
        if len(data) > MAX_JSON_BYTES:
            raise ValueError(f"a baseline of {len(data)} bytes is over the limit of {MAX_JSON_BYTES}")
        try:
            body = json.loads(data, parse_constant=_no_constant)
            if not isinstance(body, dict) or body.pop("format", None) != FORMAT:
                raise ValueError(f"not a baseline of format {FORMAT}: calibrate again")
            return cls(**_decode(body))
        except (
            AttributeError,
            TypeError,
            KeyError,
            OverflowError,
            RecursionError,
            UnicodeDecodeError,
            json.JSONDecodeError,
        ) as error:
            raise ValueError(f"not a baseline: {error}") from error

    @cached_property
    def baseline_id(self) -> str:
        """First 16 hex digits of SHA-256 over the canonical JSON."""
        return hashlib.sha256(self.to_json()).hexdigest()[:16]


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"not a baseline: {name} is no number of one")


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _decode(body: dict[str, Any]) -> dict[str, Any]:
    nested = {
        "ellipsoid": Ellipsoid,
        "d2_tail": Tail,
        "s_tail": Tail,
    }
    decoded: dict[str, Any] = {}
    for name, value in body.items():
        if name in nested:
            decoded[name] = nested[name](**{key: _tuples(item) for key, item in value.items()})
        elif name == "scales":
            decoded[name] = tuple(Scale(**item) for item in value)
        elif name == "alphabets":
            decoded[name] = tuple(Alphabet(**{key: _tuples(field) for key, field in item.items()}) for item in value)
        else:
            decoded[name] = _tuples(value)
    return decoded


@dataclass(frozen=True, slots=True)
class Standing:
    """C_2 in both forms, the counting-noise variance of the first, and standardised own distances z (V',)."""

    c2: float
    c2_noise: float
    c2_plain: float | None
    own: FloatArray


def measure(baseline: Baseline, p: FloatArray, events: FloatArray, rows: IndexArray) -> Standing:
    """Place one tick's distributions against the baseline.

    Equals axes.c2, c2_noise, c2_plain, own_distance and own_noise, fused because it runs on every tick.
    p: (V', A) of the vantages present, V' >= 1; events: (V',); rows: their positions in baseline.vantages.
    """
    number, labels = p.shape
    law, reference, pseudo = baseline.law_array[rows], baseline.reference, baseline.pseudo_count
    law_entropy, reference_entropy = baseline.entropies
    mean, excess = baseline.own_standard
    add = np.add.reduce  # half the cost of .sum() on arrays this small, and this runs on every tick
    total = add(p)
    mixtures = np.concatenate((0.5 * (p + law), ((total + reference) / (number + 1), total / number), p))
    h = entropy(mixtures)
    h_p = h[number + 2 :]
    sum_h = float(add(h_p))
    n = events[:, None]
    noise = events / (events + pseudo) ** 2
    noise = noise[:, None] * (1.0 - p) * np.minimum(1.0, n * p)
    noise_sum = add(noise, axis=1)
    shared = p * noise
    free = np.maximum(add(p > 0.0, axis=1, dtype=np.intp) - 1, 0)

    norm = math.log2(min(number + 1, labels))
    back = float(add(add(shared) / np.maximum(mixtures[number], TINY))) / (number + 1)
    bias = max(HALF_LN2 * (float(add(noise_sum)) - back) / (number + 1), 0.0)
    divergence = max(float(h[number]) - (sum_h + reference_entropy) / (number + 1), 0.0)
    value = min(max(1.0 - (divergence - bias) / norm, 0.0), 1.0)
    size = n + pseudo
    drawn = np.maximum(p - pseudo * law / size, 0.0) / size
    price = (np.log2(np.maximum(p, TINY)) - np.log2(np.maximum(mixtures[number], TINY))) / (number + 1)
    stray = float(add(drawn * price * price, axis=None))
    single = 0.5 * np.minimum(events, 1.0) / (events + pseudo) / (number + 1)
    null = 2.0 * bias**2 / max(float(add(free)), 1.0)
    value_noise = (null + stray + float(single @ single)) / norm**2

    plain = None
    if number >= 2:
        plain_jsd = max(float(h[number + 1]) - sum_h / number, 0.0)
        plain = min(max(1.0 - plain_jsd / math.log2(min(number, labels)), 0.0), 1.0)

    own_back = add(shared / np.maximum(mixtures[:number], TINY), axis=1)
    own_bias = np.maximum(HALF_LN2 * (0.5 * noise_sum - 0.25 * own_back), 0.0)
    own = np.maximum(h[:number] - 0.5 * (h_p + law_entropy[rows]), 0.0) - own_bias
    variance = 2.0 * own_bias**2 / np.maximum(free, 1) + 0.25 / (events + pseudo) ** 2
    return Standing(value, value_noise, plain, (own - mean[rows]) / np.sqrt(excess[rows] + variance))


# --- fitting ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Window:
    """A calibration window as arrays; T ticks, V calibrated vantages."""

    vantages: tuple[str, ...]
    scales: tuple[Scale, ...]
    histograms: FloatArray  # (T, V, HIST_BINS)
    present: BoolArray  # (T, V)
    c1: FloatArray  # (T,), NaN when absent
    checked: FloatArray  # (T,)
    violated: FloatArray  # (T,)
    fingerprint_noise: FloatArray  # (T,)
    objects: tuple[_Objects | None, ...]
    pair_overlap: FloatArray  # (T,), sum of pairwise Jaccards
    universe: FloatArray  # (T,), objects touched by any vantage
    pseudo: float
    labels: int


@dataclass(frozen=True)
class _Objects:
    """Touched sets of one vantage over the window, for objects frequent enough to enter a BAU set."""

    keys: tuple[int, ...]
    touched: BoolArray  # (T, len(keys))
    size: FloatArray  # (T,), size of the whole set, NaN when absent

    def bau(self, ticks: IndexArray) -> BoolArray:
        """Which keys belong to the BAU set of these ticks."""
        seen = ticks[np.isfinite(self.size[ticks])]
        share: FloatArray = self.touched[seen].mean(axis=0) if len(seen) else np.zeros(len(self.keys))
        return share >= _BAU_OBJECT_SHARE

    def overlap(self, bau: BoolArray) -> FloatArray:
        """Jaccard index of every tick's set with a BAU set, (T,), NaN when absent."""
        both = self.touched[:, bau].sum(axis=1)
        either = self.size + bau.sum() - both
        return np.where(either > 0.0, both / np.maximum(either, 1.0), np.where(np.isnan(either), np.nan, 1.0))


@dataclass(frozen=True)
class _Fit:
    """Alphabets, laws and standardisation fitted on some ticks, and what all ticks look like under them."""

    alphabets: tuple[Alphabet, ...]
    laws: FloatArray  # (V, A)
    bau: tuple[BoolArray | None, ...]
    own_mean: FloatArray  # (V,)
    own_excess: FloatArray  # (V,)
    axes: FloatArray  # (T, 3) in the order of AXES, NaN when absent
    noise: FloatArray  # (T, 3), counting-noise variance of the axes
    mean_noise: FloatArray  # (3,), its mean over the fitted ticks
    s: FloatArray  # (T,), NaN when no vantage is present


def _window(
    vantages: Sequence[str],
    scales: Mapping[str, Scale],
    records: Sequence[TickRecord],
    settings: ModelSettings,
) -> tuple[_Window, list[tuple[str, str]], int]:
    """The window as arrays, the vantages left out with reasons, and the number of known fingerprints."""
    ticks = len(records)
    present = np.stack([record.present for record in records])
    often = present.sum(axis=0)
    chosen = [v for v in range(len(vantages)) if 2 * often[v] >= ticks]
    dropped = [
        (vantage, f"reported in {often[v]} of {ticks} calibration ticks")
        for v, vantage in enumerate(vantages)
        if v not in chosen
    ]
    if not chosen:
        raise ValueError("no vantage reported in half of the calibration ticks: check that the probes run")
    known = len(frozenset().union(*(record.fingerprints for record in records)))
    causal = [
        (record.checked, record.violated, record.fingerprint_entropy, max(known, len(record.fingerprints)))
        for record in records
    ]
    touched = [[record.touched[v] for v in chosen] for record in records]
    pairs, universe = np.zeros(ticks), np.zeros(ticks)
    for t, sets in enumerate(touched):
        there = [s for s in sets if s is not None]
        pairs[t] = sum(jaccard(there[v], there[w]) for v in range(len(there)) for w in range(v))
        universe[t] = len(frozenset().union(*there))
    window = _Window(
        tuple(vantages[v] for v in chosen),
        tuple(scales[vantages[v]] for v in chosen),
        np.stack([record.histograms[chosen] for record in records]),
        present[:, chosen],
        np.array([math.nan if (x := c1(*args)) is None else x for args in causal]),
        np.array([record.checked for record in records]),
        np.array([record.violated for record in records]),
        np.array([fingerprint_noise(prints, number) for _, _, prints, number in causal]),
        tuple(_objects([sets[v] for sets in touched]) for v in range(len(chosen))),
        pairs,
        universe,
        settings.pseudo_count,
        settings.labels,
    )
    return window, dropped, known


def _objects(sets: list[frozenset[int] | None]) -> _Objects | None:
    size = np.array([math.nan if s is None else float(len(s)) for s in sets])
    seen = int(np.isfinite(size).sum())
    if 2 * seen < len(sets):
        return None
    often: dict[int, int] = {}
    for touched in sets:
        for key in touched or ():
            often[key] = often.get(key, 0) + 1
    # A fold trains on at least half the ticks, so rarer objects cannot reach any BAU set.
    keys = tuple(sorted(key for key, count in often.items() if count >= _BAU_OBJECT_SHARE * seen / 2))
    column = {key: i for i, key in enumerate(keys)}
    matrix = np.zeros((len(sets), len(keys)), dtype=bool)
    for t, touched in enumerate(sets):
        matrix[t, [column[key] for key in touched or () if key in column]] = True
    return _Objects(keys, matrix, size)


def _fit(window: _Window, ticks: IndexArray) -> _Fit:
    """Fit alphabets, laws, BAU sets and standardisation on ``ticks``; evaluate them on the whole window."""
    number = len(window.vantages)
    unordered = [v for v in range(number) if window.scales[v].categorical]
    categories = common_categories(window.histograms[ticks][:, unordered].sum(axis=0), window.labels)
    alphabets = tuple(
        Alphabet.of_categories(window.vantages[v], categories, window.labels)
        if v in unordered
        else Alphabet.fit(window.vantages[v], window.scales[v], window.histograms[ticks, v], window.labels)
        for v in range(number)
    )
    counts = np.stack([a.label(window.histograms[:, v]) for v, a in enumerate(alphabets)], axis=1)
    pooled = counts[ticks].sum(axis=0)
    total = pooled.sum(axis=1, keepdims=True)
    laws = np.where(total > 0.0, pooled / np.maximum(total, 1.0), normal_law(window.labels))
    laws = laws / laws.sum(axis=1, keepdims=True)
    events = counts.sum(axis=-1)
    p = distribution(counts, laws, window.pseudo)
    own = np.where(window.present, own_distance(p, events, laws, window.pseudo), np.nan)
    reference = laws.mean(axis=0)
    informational = c2(p, events, reference, window.pseudo, window.present)
    bau = tuple(None if o is None else o.bau(ticks) for o in window.objects)
    topological = _c3(window, bau)
    mean = np.nanmean(own[ticks], axis=0)
    counting = own_noise(p, events, laws, window.pseudo)
    there = np.where(window.present, counting, np.nan)[ticks]
    excess = np.maximum(np.nanvar(own[ticks], axis=0) - np.nanmean(there, axis=0), 0.0)
    z = np.where(window.present, (own - mean) / np.sqrt(excess + counting), -np.inf).max(axis=1)
    known = topological[ticks][np.isfinite(topological[ticks])]
    universe = max(float(window.universe[ticks].mean()), 1.0)
    noise = np.stack(
        (
            check_noise(window.checked[ticks], window.violated[ticks], window.checked) + window.fingerprint_noise,
            c2_noise(p, events, laws, reference, window.pseudo, window.present),
            np.full(len(z), binomial_noise(float(known.mean()) if len(known) else 1.0, universe)),
        ),
        axis=1,
    )
    axes = np.stack((window.c1, informational, topological), axis=1)
    s = np.where(np.isfinite(z), z, np.nan)
    return _Fit(alphabets, laws, bau, mean, excess, axes, noise, noise[ticks].mean(axis=0), s)


def _c3(window: _Window, bau: tuple[BoolArray | None, ...]) -> FloatArray:
    """C_3 of every tick (axes.c3 on arrays), NaN below two emitters."""
    emitters = [(o, b) for o, b in zip(window.objects, bau, strict=True) if o is not None and b is not None]
    if not emitters:
        return np.full(len(window.universe), np.nan)
    overlaps = np.stack([o.overlap(b) for o, b in emitters])
    number = np.isfinite(overlaps).sum(axis=0)
    total = np.nansum(overlaps, axis=0) + window.pair_overlap
    return np.where(number >= 2, total / np.maximum(number * (number + 1) / 2, 1), np.nan)


def _calm_ticks(window: _Window) -> BoolArray:
    """Ticks without an extreme mean or highest severity in any vantage: the start, before labels exist."""
    events = window.histograms.sum(axis=2)
    bins = np.arange(window.histograms.shape[2])
    mean = np.where(events > 0.0, window.histograms @ bins / np.maximum(events, 1.0), 0.0)
    highest = np.where(window.histograms > 0.0, bins, 0).max(axis=2)
    calm: BoolArray = np.ones(len(events), dtype=bool)
    for v in range(len(window.vantages)):
        if window.scales[v].categorical:
            continue
        for values in (mean[:, v], highest[:, v].astype(np.float64)):
            calm &= ~contaminated(np.where(window.present[:, v], values, np.nan))
    return _at_least(calm, mean.max(axis=1))


def _at_least(keep: BoolArray, badness: FloatArray) -> BoolArray:
    """Never set aside more than a quarter of the window: give back the least bad ticks."""
    most = int(_MOST_TRIMMED * len(keep))
    out = np.flatnonzero(~keep)
    if len(out) > most:
        keep = keep.copy()
        keep[out[np.argsort(badness[out])[: len(out) - most]]] = True
    return keep


def _choose_axes(fit: _Fit, ticks: IndexArray) -> tuple[IndexArray, tuple[bool, ...], list[tuple[str, str]]]:
    """Columns of the axes in use, which of them are live, and the axes dropped with reasons."""
    chosen, live, dropped = [], [], []
    for k, axis in enumerate(AXES):
        x = fit.axes[ticks, k]
        known = x[np.isfinite(x)]
        if 2 * len(known) < len(x) or len(known) < LEAST_TICKS // 2:
            dropped.append((axis, f"present in {len(known)} of {len(x)} calibration ticks"))
            continue
        varies = bool(known.var() > _LEAST_VARIANCE)
        if not varies and fit.mean_noise[k] <= 0.0:
            dropped.append((axis, "constant in calibration, with nothing counted"))
            continue
        chosen.append(k)
        live.append(varies)
    return np.array(chosen, dtype=np.intp), tuple(live), dropped


def _complete(x: FloatArray) -> BoolArray:
    complete: BoolArray = np.logical_and.reduce(np.isfinite(x), axis=1)
    return complete


def fit_baseline(
    surface: str,
    vantages: Sequence[str],
    scales: Mapping[str, Scale],
    records: Sequence[TickRecord],
    settings: ModelSettings,
) -> Baseline:
    """Fit the baseline of a surface on consecutive calibration ticks, oldest first.

    scales: severity axis of every vantage that reported. ValueError if there are fewer than 60 ticks or no
    vantage reported in half of them.
    """
    if len(records) < LEAST_TICKS:
        raise ValueError(
            f"{surface}: a baseline needs at least {LEAST_TICKS} ticks, got {len(records)}; "
            "wait for more or lengthen calibration_ticks"
        )
    window, dropped, known = _window(vantages, scales, records, settings)
    keep = _calm_ticks(window)
    for _ in range(2):
        fit = _fit(window, np.flatnonzero(keep))
        keep = _uncontaminated(fit, np.flatnonzero(keep))
    kept = np.flatnonzero(keep)
    fit = _fit(window, kept)
    columns, live, absent = _choose_axes(fit, kept)
    names = tuple(AXES[k] for k in columns)
    rows = kept[_complete(fit.axes[np.ix_(kept, columns)])]
    series = [fit.axes[kept, k] for k, varies in zip(columns, live, strict=True) if varies]
    tau = max((autocorrelation_time(x) for x in (*series, fit.s[kept])), default=1.0)
    effective = len(kept) / tau
    ellipsoid = Ellipsoid.fit(names, fit.axes[np.ix_(rows, columns)], fit.mean_noise[columns], live, effective)
    block = block_length(tau, len(records))

    def out_of_sample(train: IndexArray, test: IndexArray) -> FloatArray:
        train = train[keep[train]]
        fold = _fit(window, train)
        complete = train[_complete(fold.axes[np.ix_(train, columns)])]
        d2 = np.full(len(test), np.nan)
        there = _complete(fold.axes[np.ix_(test, columns)])
        around = Ellipsoid.fit(names, fold.axes[np.ix_(complete, columns)], fold.mean_noise[columns], live, effective)
        inside = np.ix_(test[there], columns)
        d2[there] = around.d2(fold.axes[inside], fold.noise[inside])
        return np.stack((d2, fold.s[test]), axis=1)

    scores = blocked_scores(len(records), block, out_of_sample)[kept]
    d2_scores, s_scores = (scores[np.isfinite(scores[:, i]), i] for i in range(2))
    return Baseline(
        surface=surface,
        vantages=window.vantages,
        dropped=(*dropped, *absent),
        scales=window.scales,
        alphabets=fit.alphabets,
        laws=tuple(tuple(row) for row in fit.laws.tolist()),
        objects=tuple(
            None if o is None or b is None else tuple(k for k, inside in zip(o.keys, b, strict=True) if inside)
            for o, b in zip(window.objects, fit.bau, strict=True)
        ),
        fingerprints_known=known,
        pseudo_count=settings.pseudo_count,
        ellipsoid=ellipsoid,
        own_mean=tuple(fit.own_mean.tolist()),
        own_excess=tuple(fit.own_excess.tolist()),
        d2_tail=Tail.fit(d2_scores, _LEAST_D2_SCALE),
        s_tail=Tail.fit(s_scores, _LEAST_S_SCALE),
        ticks=len(records),
        trimmed=len(records) - len(kept),
        effective_ticks=effective,
        block=block,
        cutoff_mode=settings.cutoff_mode,
        statistic=settings.statistic,
    )


def _uncontaminated(fit: _Fit, ticks: IndexArray) -> BoolArray:
    """Ticks of the whole window not contaminated by MCD distance or own distance fitted on ``ticks``."""
    columns, _, _ = _choose_axes(fit, ticks)
    d2 = np.zeros(len(fit.axes))
    if len(columns):
        x = fit.axes[:, columns]
        known = _complete(x)
        scatter = fast_mcd(x[known], np.maximum(fit.mean_noise[columns], _LEAST_VARIANCE))
        d2[known] = scatter.distances
    s = np.where(np.isfinite(fit.s), fit.s, 0.0)
    keep = ~(contaminated(d2) | contaminated(s))
    return _at_least(keep, np.maximum(d2, s * s))
