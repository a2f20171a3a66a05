# SPDX-License-Identifier: Apache-2.0
"""The fleet's decision: one kind of vantage across all hosts, with up to f of the hosts lying.

Every host gives, per kind of vantage, its standardised own distance z (mean 0, variance 1 in BAU, large when it moved).
Two statistics see what the other misses (ours): the *sum* over sqrt(n) a little of something everywhere, the *max* a
fault of one host, which among 10,000 no average shows. Each is taken over everybody and over the two extreme removals
of f hosts, which for both is exact and costs one partition:

    minimax   without the f largest: the least that any removal of up to f leaves; drives the phase
    worst     without the f smallest: what the fleet may look like if the liars are those that soothe

All are calibrated on BAU ticks of this fleet (mvps.coherence.tail), so that hosts may depend on each other. The minimax
is held against BAU of *n - f hosts with nothing removed*: liars beyond everybody take all the removals for themselves,
and what is left is just that. Against its own law on honest ticks it would alarm in most ticks as soon as f hosts lie.

A p-value is the smaller of sum and max, doubled. D^2 is the chi-square value on three degrees of freedom with that
p-value, so that the seeds' 7.81 and 11.34 are WATCH and ALARM on it whatever N and f are. Then (001 sec. 14)

    Delta_byz = D^2 - D_minimax,     single source:  Phi_K in {ALARM, CRITICAL}  and  Delta_byz > theta D^2

and, which is ours, what is left after the removal is no ALARM of its own. theta is such that 95 % of honest faults of
the *whole* fleet name nobody, simulated for each N and f (:func:`simulate_theta`). Because of the second condition the
source's 0.6 is enough from 8 hosts on, except for f near N/2.

**A single source is no liar yet.** An honest host with a real fault diverges just so. It is a LOCAL_FAULT unless there
is evidence against it other than its distance; only then is it SUSPECTED_BYZANTINE.

What a host says is clipped to [-4, 1000], and NaN is no report: no liar buys silence for more than four ordinary hosts'
worth of sum.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy.special import log_ndtr

from mvps.coherence.distance import LEVELS
from mvps.coherence.observation import FloatArray
from mvps.coherence.phase import LOG_LEVELS, Hysteresis, Phase, deviance, phase_of
from mvps.coherence.tail import IndexArray, Tail, contaminated
from mvps.robust.median import GeometricMedian, c2_gm, c2_gm_seed, divergences, geometric_median

SEED_THETA = 0.6
DOF = 3
LEAST_TICKS = 60
LOW, HIGH = -4.0, 1000.0
# Axes of a tick's statistics: (kinds, REMOVALS, STATISTICS).
REMOVALS = ("everybody", "minimax", "worst")
STATISTICS = ("sum", "max")
_LEAST_SCALE = 0.1


class Evidence(enum.IntFlag):
    """What speaks against a host other than how far it is. Only the broker sets one.

    WITNESS: its vantage's own checks fail tick after tick, witness or conservation law (mvps.robust.disagreement).
    REPLAY, SEAL: a replayed counter or a broken seal *on its own authenticated stream* (a stranger could send either,
    to frame it). EQUIVOCATION: two bodies under one counter. CLONE: two live streams of one generation. CONSERVATION:
    its figures break a law that the broker can check: the events behind a distribution are those that it reports, and
    no label has fewer than none. DECISION: the decision that it reported does not follow from the figures that it
    reported.
    """

    NONE = 0
    WITNESS = 1
    REPLAY = 2
    SEAL = 4
    EQUIVOCATION = 8
    CLONE = 16
    CONSERVATION = 32
    DECISION = 64


class Label(enum.StrEnum):
    """What a single source is called."""

    LOCAL_FAULT = "LOCAL_FAULT"
    SUSPECTED_BYZANTINE = "SUSPECTED_BYZANTINE"


# ---- statistics of a tick


def statistics(z: FloatArray, f: int) -> FloatArray:
    """Sum and max over everybody and the two extreme removals, (kinds, 3, 2), of z (hosts, kinds).

    NaN for a kind that not more than 2 f hosts reported.
    """
    by_kind = np.clip(z.T, LOW, HIGH)
    known = ~np.isnan(by_kind)
    number = known.sum(axis=1)
    found = np.full((len(by_kind), len(REMOVALS), len(STATISTICS)), np.nan)
    enough = number > 2 * f
    if not enough.any():
        return found
    values, known, number = by_kind[enough], known[enough], number[enough].astype(np.float64)
    total = np.where(known, values, 0.0).sum(axis=1)
    falling = -np.partition(np.where(known, -values, np.inf), f, axis=1)[:, : f + 1]
    rising = np.partition(np.where(known, values, np.inf), f, axis=1)[:, : f + 1]
    largest = falling.max(axis=1)
    found[enough, 0] = np.stack((total / np.sqrt(number), largest), axis=1)
    rest = np.sqrt(number - f)
    found[enough, 1] = np.stack(((total - falling[:, :f].sum(axis=1)) / rest, falling[:, f]), axis=1)
    found[enough, 2] = np.stack(((total - rising[:, :f].sum(axis=1)) / rest, largest), axis=1)
    return found


def bau_statistics(z: FloatArray, f: int, turn: int) -> FloatArray:
    """What a BAU tick teaches, (kinds, 3, 2): as :func:`statistics`, but for the minimax n - f hosts, nothing removed.

    turn: any number that grows by one a tick; each time another f hosts sit out, so that all of them count.
    """
    found = statistics(z, f)
    out = (turn * f + np.arange(f)) % len(z)
    found[:, 1] = statistics(np.delete(z, out, axis=0), 0)[:, 0]
    return found


class FleetBaseline(NamedTuple):
    """BAU laws of a fleet's statistics: tails[kind][removal][statistic], for removals of up to f hosts."""

    f: int
    tails: tuple[tuple[tuple[Tail, ...], ...], ...]

    def log_p(self, found: FloatArray) -> FloatArray:
        """log p-values (kinds, 3) of a tick's statistics; NaN where they are."""
        out = np.full(found.shape[:2], np.nan)
        for kind, removal in np.argwhere(np.isfinite(found).all(axis=2)):
            tails = self.tails[kind][removal]
            smallest = min(tail.log_survival(float(x)) for tail, x in zip(tails, found[kind, removal], strict=True))
            out[kind, removal] = min(smallest + math.log(len(tails)), 0.0)
        return out

    def moves_at(self, kind: int) -> float:
        """z at and above which a host moved: WATCH for the largest of the fleet by itself."""
        return self.tails[kind][0][1].score_at(math.log1p(-LEVELS[0]))


def fit_baseline(window: FloatArray, f: int) -> FleetBaseline:
    """Baseline from the :func:`bau_statistics` of BAU ticks (T, kinds, 3, 2) with the same f.

    Ticks in which a kind had no statistics, or that hold a fault episode, are left out for that kind. ValueError if
    fewer than 60 are left for one.
    """
    kinds = []
    for kind in range(window.shape[1]):
        series = window[:, kind]
        series = series[np.isfinite(series).all(axis=(1, 2))]
        ill = np.zeros(len(series), dtype=bool)
        for statistic in range(len(STATISTICS)):
            ill |= contaminated(series[:, 0, statistic])
        series = series[~ill]
        if len(series) < LEAST_TICKS:
            raise ValueError(f"kind {kind} has {len(series)} BAU ticks, {LEAST_TICKS} are needed")
        kinds.append(
            tuple(
                tuple(Tail.fit(series[:, removal, statistic], _LEAST_SCALE) for statistic in range(len(STATISTICS)))
                for removal in range(len(REMOVALS))
            )
        )
    return FleetBaseline(f, tuple(kinds))


# ---- decision


class Suspect(NamedTuple):
    """A host that is the source. share: its part of the sum of squares of what moved, over all hosts."""

    host: int
    z: float
    share: float
    label: Label
    evidence: Evidence


class KindDecision(NamedTuple):
    """One kind of vantage in one tick.

    phase: of what no removal of f hosts explains. everybody: phase with all hosts. d2, minimax, largest: D^2 of
    everybody, D_minimax and D_max. moved: hosts over their cut-off. suspects: when f hosts or fewer are the source,
    the farthest first. reporting: hosts that reported; quorate: whether they are more than 2 f, without which there is
    no decision (phase CALIBRATING).
    """

    phase: Phase
    everybody: Phase
    d2: float
    minimax: float
    largest: float
    theta: float
    moved: int
    suspects: tuple[Suspect, ...]
    reporting: int
    quorate: bool

    @property
    def delta(self) -> float:
        """Delta_byz = D^2 - D_minimax."""
        return self.d2 - self.minimax


def decide(
    z: FloatArray, evidence: IndexArray, baseline: FleetBaseline, theta: float | None = None
) -> tuple[KindDecision, ...]:
    """Decision of every kind from one tick's z (hosts, kinds) and the Evidence flags of the hosts (hosts,).

    theta: share of D^2 that a single source has to account for; by default that of :func:`theta_of`.
    """
    z = np.clip(z, LOW, HIGH)
    log_p = baseline.log_p(statistics(z, baseline.f))
    decisions = []
    for kind in range(z.shape[1]):
        column = z[:, kind]
        reporting = int((~np.isnan(column)).sum())
        if not np.isfinite(log_p[kind]).all():
            nothing = Phase.CALIBRATING
            decisions.append(KindDecision(nothing, nothing, 0.0, 0.0, 0.0, math.nan, 0, (), reporting, False))
            continue
        everybody, rest, _ = (phase_of(float(p)) for p in log_p[kind])
        d2, minimax, largest = (deviance(float(p), DOF) for p in log_p[kind])
        limit = theta_of(reporting, baseline.f) if theta is None else theta
        moves_at = baseline.moves_at(kind)
        single = everybody >= Phase.ALARM > rest and is_divergent(everybody, d2, minimax, limit)
        suspects = _suspects(column, evidence, baseline.f, moves_at) if single else ()
        moved = int((column >= moves_at).sum())
        # Removing nobody is a removal too, and so D_minimax <= D^2 <= D_max.
        pair = min(minimax, d2), max(largest, d2)
        decisions.append(
            KindDecision(min(rest, everybody), everybody, d2, *pair, limit, moved, suspects, reporting, True)
        )
    return tuple(decisions)


def is_divergent(everybody: Phase, d2: float, minimax: float, theta: float = SEED_THETA) -> bool:
    """The source's rule for SUSPECTED_BYZANTINE (001 sec. 14.1), which asks for no evidence."""
    return everybody in (Phase.ALARM, Phase.CRITICAL) and d2 - minimax > theta * d2


def _suspects(z: FloatArray, evidence: IndexArray, f: int, moves_at: float) -> tuple[Suspect, ...]:
    """Who of the f farthest hosts moved; the farthest one at least."""
    heard = np.where(np.isnan(z), -np.inf, z)
    farthest = np.argpartition(-heard, f - 1)[:f]
    farthest = farthest[np.lexsort((farthest, -heard[farthest]))]
    moved = np.maximum(heard, 0.0) ** 2
    total = float(moved.sum())
    named = [host for host in farthest.tolist() if heard[host] >= moves_at] or farthest[:1].tolist()
    suspects = []
    for host in named:
        against = Evidence(int(evidence[host]))
        label = Label.SUSPECTED_BYZANTINE if against else Label.LOCAL_FAULT
        suspects.append(Suspect(host, float(heard[host]), float(moved[host]) / total if total else 0.0, label, against))
    return tuple(suspects)


class Settled(NamedTuple):
    """The fleet's phase of one kind over ticks, and who has been the source in each of the last ticks.

    named: the suspects of the latest that were suspects in every one of them.
    """

    hysteresis: Hysteresis = Hysteresis()
    recent: tuple[frozenset[int], ...] = ()
    named: tuple[Suspect, ...] = ()

    def step(self, decision: KindDecision, ticks: int = 3) -> Settled:
        """After one more tick. Nothing moves until all of the last ``ticks`` agree, nor without a quorum."""
        if not decision.quorate:
            return self
        recent = (*self.recent, frozenset(suspect.host for suspect in decision.suspects))[-ticks:]
        always = frozenset.intersection(*recent) if len(recent) == ticks else frozenset()
        named = tuple(suspect for suspect in decision.suspects if suspect.host in always)
        return Settled(self.hysteresis.step(decision.phase, ticks), recent, named)


# ---- coherence across hosts


class KindCoherence(NamedTuple):
    """C_2^gm of one kind across hosts: ours, and the seed's form (-inf where it is infinite) about the same median."""

    c2_gm: float
    c2_gm_seed: float
    median: GeometricMedian


def kind_coherence(
    p: FloatArray, f: int, events: FloatArray | None = None, pseudo: float = 1.0, start: FloatArray | None = None
) -> KindCoherence:
    """C_2^gm of one kind's distributions p (hosts, A) over the hosts that reported.

    events: (hosts,) behind each, to take the count bias off ours. start: the median's weights of the last tick, over
    the same hosts. It moves only when a fair share of the hosts do, and is shown beside the decision, which does not
    use it.
    """
    # Six digits are more than a distribution of counted events has.
    median = geometric_median(p, start, tolerance=1e-6)
    ours = c2_gm(divergences(p, median.point, events, pseudo), f)
    return KindCoherence(ours, c2_gm_seed(p, median.point), median)


# ---- theta

_SHARES = (0.0, 0.1, 0.25, 0.5)  # f / N; 0 stands for f = 1
_THETA_FAULT = 4.0
# N -> simulate_theta(N, f), or the source's if larger; f is N times each of _SHARES, rounded up, below N/2.
_THETA: Mapping[int, tuple[float, ...]] = {
    3: (0.98, 0.98, 0.98, 0.98),
    4: (0.93, 0.93, 0.93, 0.93),
    5: (0.82, 0.82, 0.98, 0.98),
    6: (0.60, 0.60, 0.96, 0.96),
    8: (0.60, 0.60, 0.82, 0.97),
    12: (0.60, 0.60, 0.60, 0.97),
    32: (0.60, 0.60, 0.60, 0.96),
    64: (0.60, 0.60, 0.60, 0.60),
}


def theta_of(number: int, f: int) -> float:
    """theta for N hosts and f liars: of the table's next smaller N and next larger f/N, which errs high.

    1 (nobody is ever named) where f is 0 or not below N/2.
    """
    if not 1 <= f < number / 2:
        return 1.0
    row = _THETA[max(n for n in _THETA if n <= number)]
    return row[0 if f == 1 else next(i for i, share in enumerate(_SHARES) if f <= share * number)]


def simulate_theta(number: int, f: int, ticks: int = 20_000, level: float = 0.95, seed: int = 0) -> float:
    """theta with which, in ``level`` of the ticks in which an honest fault raises an alarm, nobody is named for it.

    Independent Gaussian hosts; the fault moves every host, by four standard deviations on average and by sizes that
    differ as an exponential law does: one host in five less than one, one in forty more than 15. (Of faults so weak
    that they show in the sum over all hosts only, a large f can explain everything.)
    """
    rng = np.random.default_rng((seed, number, f))
    chunk = max(1, min(ticks, 4_000_000 // number))
    shares: list[float] = []
    for _ in range(-(-ticks // chunk)):
        z = rng.standard_normal((chunk, number)) + _THETA_FAULT * rng.exponential(size=(chunk, number))
        falling = -np.partition(-z, f, axis=1)[:, : f + 1]
        total = z.sum(axis=1)
        everybody = _log_p(total, z.max(axis=1), number)
        rest = _log_p(total - falling[:, :f].sum(axis=1), falling[:, f], number - f)
        shares += [
            1.0 - deviance(r, DOF) / deviance(e, DOF) if r > LOG_LEVELS[1] else 0.0
            for e, r in zip(everybody.tolist(), rest.tolist(), strict=True)
            if e <= LOG_LEVELS[1]
        ]
    return float(np.quantile(shares, level))


def _log_p(total: FloatArray, largest: FloatArray, number: int) -> FloatArray:
    """log p-value of the sum and the maximum of ``number`` standard normals: the rarer one, doubled."""
    log_none = number * log_ndtr(largest)
    # Far out log Phi is 0 in floating point, and the tails add up.
    near = np.log(-np.expm1(np.minimum(log_none, -1e-12)))
    rarest = np.where(log_none < -1e-12, near, math.log(number) + log_ndtr(-largest))
    log_p: FloatArray = np.minimum(math.log(2.0) + np.minimum(log_ndtr(-total / math.sqrt(number)), rarest), 0.0)
    return log_p
