# SPDX-License-Identifier: Apache-2.0
"""The worked example of 001 sec. 16 with real arithmetic: a prefix hijack in which f of N vantages are the hijacker's.

Honest vantages see the paths of one prefix under a BAU law with counting noise; the liars put all their mass on a path
that nobody had seen before. Everything is calibrated on ticks drawn from the same law, as a broker does it: each subset
of vantages its own baseline of C_2, the fleet its own laws. Then comes one tick of the hijack.

The document's own figures are kept in ``DOCUMENT``; they are synthetic, and most do not follow from its formulas
(docs/errata.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, NamedTuple

import numpy as np

from mvps.coherence.axes import c2_plain, jsd
from mvps.coherence.observation import FloatArray
from mvps.coherence.phase import Phase
from mvps.robust import cascade, fleet, minimax
from mvps.robust.as_graph import AsGraph
from mvps.robust.median import c2_gm, c2_gm_seed, divergences, geometric_median
from mvps.robust.valley_free import Ties, stable_routes

# What 001 sec. 16 prints for five vantages, one of them the hijacker's.
DOCUMENT: Final[Mapping[str, float | str]] = {
    "jsd": 0.55,
    "c2": 0.45,
    "d2": 11.8,
    "phase": "CRITICAL",
    "jsd_gm": 0.10,
    "c2_gm": 0.90,
    "share": 0.82,
    "theta": 0.60,
    "label": "SUSPECTED_BYZANTINE",
    "tau_s": 21.0,
    "tick_s": 60.0,
}
# Paths through the legitimate origin, and one that is only the hijacker's.
BAU_LAW: Final = (0.95, 0.03, 0.015, 0.005, 0.0)
_FLOOR = np.array([1e-10])


class BundleStudy(NamedTuple):
    """One tick of the hijack as the broker's algebra sees it.

    jsd, c2: of all vantages (bits, and as the seed normalises). c2_two_labels: C_2 with the two origins for alphabet.
    d2, minimax, largest: of C_2 against each subset's own baseline. share: Delta_byz / D^2. suspects: whom D_minimax
    leaves out. c2_gm_seed: -inf where the source's form is infinite. centre_shift: L2 distance of the median to the
    honest vantages' mean. lo, hi: C_2 over removals of up to f. everybody, phase: the fleet's phase with all vantages,
    and without what f can explain. theta: for N and f. label: of the first suspect without evidence, and with.
    """

    jsd: float
    c2: float
    c2_two_labels: float
    c2_gm: float
    c2_gm_seed: float
    jsd_gm: float
    centre_shift: float
    lo: float
    hi: float
    d2: float
    minimax: float
    largest: float
    share: float
    suspects: tuple[int, ...]
    everybody: Phase
    phase: Phase
    fleet_d2: float
    fleet_minimax: float
    theta: float
    named: tuple[int, ...]
    label_alone: str
    label_with_evidence: str


def study_bundle(vantages: int, liars: int, seed: int = 0, events: int = 300, ticks: int = 300) -> BundleStudy:
    """Calibrate on ``ticks`` BAU ticks of ``events`` observed paths each, then judge one tick with ``liars`` lying.

    ValueError unless 0 < liars < vantages/2; TooManyRemovals where the exact minimax cannot be had.
    """
    if liars < 1:
        raise ValueError("a hijack has at least one lying vantage")
    masks = minimax.removals(vantages, liars)
    rng = np.random.default_rng(seed)
    law = np.array(BAU_LAW)
    window = rng.multinomial(events, law, (ticks, vantages)) / events
    tick = rng.multinomial(events, law, vantages) / events
    tick[vantages - liars :] = np.eye(len(law))[-1]

    found = minimax.bounds(minimax.subset_c2(tick, masks), masks)
    baselines = minimax.fit_baselines(minimax.subset_c2(window, masks)[..., None], _FLOOR)
    distances = minimax.divergence(baselines.d2(minimax.subset_c2(tick, masks)[..., None]), masks)

    own_law = window.mean(axis=0)
    away = np.stack([_own(one, own_law) for one in window])
    z_window = (away - away.mean(axis=0)) / away.std(axis=0)
    learnt = np.stack([fleet.bau_statistics(z[:, None], liars, turn) for turn, z in enumerate(z_window)])
    baseline = fleet.fit_baseline(learnt, liars)
    z = ((_own(tick, own_law) - away.mean(axis=0)) / away.std(axis=0))[:, None]
    nothing = np.zeros(vantages, dtype=np.intp)
    alone = fleet.decide(z, nothing, baseline)[0]
    accused = fleet.decide(z, nothing | int(fleet.Evidence.WITNESS), baseline)[0]

    median = geometric_median(tick)
    two = np.zeros((vantages, 2))
    two[: vantages - liars, 0] = two[vantages - liars :, 1] = 1.0
    seed_form = c2_gm_seed(tick, median.point)
    norm = math.log2(min(vantages, len(law)))
    return BundleStudy(
        jsd=float(jsd(tick)),
        c2=c2_plain(tick) or 0.0,
        c2_two_labels=c2_plain(two) or 0.0,
        c2_gm=c2_gm(divergences(tick, median.point), liars),
        c2_gm_seed=seed_form,
        jsd_gm=(1.0 - seed_form) * norm,
        centre_shift=float(np.linalg.norm(median.point - tick[: vantages - liars].mean(axis=0))),
        lo=found.lo,
        hi=found.hi,
        d2=distances.d2,
        minimax=distances.minimax,
        largest=distances.largest,
        share=distances.share,
        suspects=distances.suspects,
        everybody=alone.everybody,
        phase=alone.phase,
        fleet_d2=alone.d2,
        fleet_minimax=alone.minimax,
        theta=alone.theta,
        named=tuple(sorted(one.host for one in alone.suspects)),
        label_alone=_label(alone),
        label_with_evidence=_label(accused),
    )


def _own(p: FloatArray, law: FloatArray) -> FloatArray:
    """JSD in bits of each vantage to its own law, (N,)."""
    return np.array([float(jsd(np.stack(pair))) for pair in zip(p, law, strict=True)])


def _label(decision: fleet.KindDecision) -> str:
    return str(decision.suspects[0].label) if decision.suspects else decision.phase.name


class CascadeStudy(NamedTuple):
    """The same hijack spreading over an AS graph, times in seconds.

    rate: lambda per second; closed, saturated: tau_C(.5) from it. simulated: 5 %, 50 % and 95 % of the runs, inf where
    half of the vantages are never reached. policy: the same three for routes that follow business, with ties for the
    hijacker. reached: share of the ASes that end up with the hijacker's route, ties against it and for it.
    longest_tick: so that three ticks fit into all but the fastest 5 % of the simulated cascades.
    """

    ases: int
    links: int
    validating: int
    hijacker: int
    origin: int
    rate: float
    closed: float
    saturated: float
    simulated: tuple[float, float, float]
    policy: tuple[float, float, float]
    reached: tuple[float, float]
    longest_tick: float


def study_cascade(
    graph: AsGraph, vantages: int, liars: int, hijacker: int, origin: int, validating: float, runs: int, seed: int = 0
) -> CascadeStudy:
    """tau_C(.5) over ``vantages`` ASes, ``liars`` of them in the hijacker's own network.

    hijacker, origin: places in the graph. validating: share of the other ASes that validate origins.
    """
    if not 0.0 <= validating <= 1.0:
        raise ValueError(f"the share of validating ASes lies in [0, 1], not {validating}")
    if graph.size < vantages + 2:
        raise ValueError(f"a graph of {graph.size} ASes is too small for {vantages} vantages")
    if runs < 1:
        raise ValueError("a simulation has at least one run")
    rng = np.random.default_rng(seed)
    others = np.setdiff1d(np.arange(graph.size), [hijacker, origin])
    honest = rng.choice(others, vantages - liars, replace=False)
    targets = np.concatenate((honest, np.full(liars, hijacker)))
    immune = np.zeros(graph.size, dtype=bool)
    immune[rng.choice(others, round(validating * len(others)), replace=False)] = True
    immune[origin] = True

    beta = cascade.without(cascade.rate_matrix(graph.sessions()), immune)
    beta = cascade.within(beta, cascade.relevant(beta, hijacker, targets))
    rate = cascade.growth(beta).rate
    start = liars / vantages
    simulated = _spread(cascade.simulated_tau(beta, hijacker, targets, 0.5, runs, seed))
    ties: tuple[Ties, Ties] = ("legitimate", "hijacker")
    ends = [stable_routes(graph, hijacker, origin, immune, tie) for tie in ties]
    waits = cascade.CONVERGENCE_FLOOR_S * rng.random((runs, graph.size))
    policy = [cascade.time_to_share(ends[1].arrival_times(wait), targets, 0.5) for wait in waits]
    return CascadeStudy(
        ases=graph.size,
        links=len(graph.transit) + len(graph.peering),
        validating=int(immune.sum()) - 1,
        hijacker=int(graph.numbers[hijacker]),
        origin=int(graph.numbers[origin]),
        rate=rate,
        closed=cascade.tau_closed(rate, 0.5, start),
        saturated=cascade.tau_saturated(rate, 0.5, start),
        simulated=simulated,
        policy=_spread(np.array(policy)),
        reached=(float(ends[0].hijacked.mean()), float(ends[1].hijacked.mean())),
        longest_tick=cascade.longest_tick(simulated[0]),
    )


def _spread(times: FloatArray) -> tuple[float, float, float]:
    low, middle, high = np.quantile(times, (0.05, 0.5, 0.95), method="inverted_cdf").tolist()
    return low, middle, high
