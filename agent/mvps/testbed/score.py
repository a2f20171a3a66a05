# SPDX-License-Identifier: Apache-2.0
"""What one run says: labels against injections, the certificate, the test of R_cross, lead times, lags, drift. Pure.

What is true is what was injected; D^2 and phases are what is judged. The label of an episode is the settled phase of
the last joint tick before its end, as the broker had it live.

Lead (ours): both monitors over the same ticks, fitted to the same calibration window, conformal limits: D^2_joint at
alpha, or D^2_net and D^2_AI at alpha / 2 each, alarm after three ticks in a row. Positive: the joint one was first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mvps.coherence.observation import FloatArray
from mvps.coupling import drift
from mvps.coupling.cross import dominant, varying
from mvps.coupling.distance import JointBaseline, fit_baseline
from mvps.coupling.event_response import event_response
from mvps.coupling.excess import excess_of_3b
from mvps.coupling.independence import independence_test
from mvps.coupling.phases import Settled, classify
from mvps.testbed import answers
from mvps.testbed.answers import Arm
from mvps.testbed.plan import EVENT_S, SWEEP, Fault, truth

ALPHA: Final = 0.05
SPLIT: Final = 3
C2_AI: Final = 4
BEFORE_S: Final = 1.0
AFTER_S: Final = 1.5
LAGS: Final = 8
IN_A_ROW: Final = 3
_SEARCH_S: Final = 3.5
_MOST_MISSING: Final = 0.02
_LONGEST_GAP_S: Final = 1.0
_SWEPT: Final = frozenset(fault.value for fault in SWEEP)


class Series(NamedTuple):
    """The joint ticks of a run. times: (T,) seconds. z: (T, 5), a tick without a reading has the last one's (the rule
    of joining); missing: share of those. phases: settled, live. calibration: (n,) indices of the window it learned."""

    times: FloatArray
    z: FloatArray
    missing: float
    phases: tuple[str, ...]
    calibration: NDArray[np.intp]


def series(record: Mapping[str, Any]) -> Series:
    """Of a record; ValueError where a second has no joint tick, or one tick in fifty no reading, after calibration."""
    rows = record["ticks"]
    times = np.array([row[0] for row in rows])
    z = np.array([[math.nan if value is None else value for value in row[1:6]] for row in rows])
    phases = tuple(row[9] for row in rows)
    known = np.isfinite(z).all(axis=1)
    decided = next((at for at, phase in enumerate(phases) if phase != "CALIBRATING"), len(phases))
    window = np.flatnonzero(known[:decided])[-int(record["size"]["calibration"]) :]
    if len(window) < 2 or decided == len(phases):
        raise ValueError("the run has no calibration")
    longest = float(np.diff(times[window[0] :]).max())
    if longest > _LONGEST_GAP_S:
        raise ValueError(f"no joint tick for {longest:.1f} s: the host was too busy for this pace")
    missing = float((~known[decided:]).mean())
    if missing > _MOST_MISSING:
        raise ValueError(f"{missing:.0%} of the joint ticks have no reading: the host was too busy for this pace")
    last = np.maximum.accumulate(np.where(known, np.arange(len(z)), window[0]))
    return Series(times, z[last], missing, phases, window)


def score(record: Mapping[str, Any]) -> dict[str, Any]:
    """All figures of one run, as JSON."""
    seen = series(record)
    arm = Arm(record["arm"])
    window = seen.z[seen.calibration]
    axes = record["axes"]
    live = varying(window, SPLIT)[2]
    baseline = fit_baseline(window, SPLIT, record["size"]["floor"])
    return {
        "arm": arm.value,
        "seed": record["seed"],
        "limits": record["limits"],
        "missing": round(seen.missing, 4),
        "replay": round(_replayed(record, seen, baseline), 5),
        "live axes": [name for name, used in zip(axes, live, strict=True) if used],
        "episodes": [
            _episode(record, seen, baseline, one, arm) for one in record["injected"] if one["fault"] in _SWEPT
        ],
        "events": [_event(record, seen, one) for one in record["injected"] if one["fault"] == Fault.EVENT.value],
        "blocks": [_certificates(record, seen, begin, end) for begin, end in record["blocks"]],
        "stretch": _stretch(record, seen, window),
        "quiet": _coupled(window, axes),
        "users": {key: value for key, value in record["users"].items() if key != "at"},
        "cpu": round(sum(record["cpu_seconds"].values()) / (record["ended"] - record["begun"]), 3),
        "load": round(record["host"]["load"], 1),
    }


class Judged(NamedTuple):
    """right: of the swept episodes, in their order. ai_limit: WATCH limit of D^2_AI."""

    faults: tuple[str, ...]
    right: tuple[bool, ...]
    ai_limit: float


def judged(record: Mapping[str, Any], floor: float) -> Judged:
    """The run's phases anew, as a service with this floor would have had them on the same readings."""
    seen = series(record)
    baseline = fit_baseline(seen.z[seen.calibration], SPLIT, floor)
    limits = baseline.limits()
    found = np.stack(baseline.distances(seen.z), axis=1).tolist()
    settled, phases = Settled(), []
    for live, (net, ai, joint) in zip(seen.phases, found, strict=True):
        if live != "CALIBRATING":
            settled = settled.step(classify(net, ai, joint, limits))
        phases.append(settled.phase)
    swept = [one for one in record["injected"] if one["fault"] in _SWEPT]
    last = [phases[_between(seen.times, one["begin"], one["end"])][-1] for one in swept]
    expected = [truth(Fault(one["fault"]), Arm(record["arm"])) for one in swept]
    right = tuple(label in phases_of for label, phases_of in zip(last, expected, strict=True))
    return Judged(tuple(one["fault"] for one in swept), right, limits.ai)


def _replayed(record: Mapping[str, Any], seen: Series, baseline: JointBaseline) -> float:
    """How far D^2 computed here lies from what the broker had live: 95th percentile of the relative difference of all
    three, below 1 the absolute one. Records hold rounded coordinates, and do not say which rows of the calibration
    window were fresh: with a busy host's jitter the windows differ in a few rows."""
    live = np.array([row[6:9] for row in record["ticks"]])
    found = np.stack(baseline.distances(seen.z), axis=1)
    decided = np.array([phase != "CALIBRATING" for phase in seen.phases])
    off = np.abs(found - live)[decided] / np.maximum(live[decided], 1.0)
    return float(np.quantile(off, 0.95))


def _between(times: FloatArray, begin: float, end: float) -> slice:
    return slice(int(np.searchsorted(times, begin)), int(np.searchsorted(times, end)))


def _episode(
    record: Mapping[str, Any], seen: Series, baseline: JointBaseline, one: Mapping[str, Any], arm: Arm
) -> dict[str, Any]:
    here = _between(seen.times, one["begin"], one["end"])
    labels = seen.phases[here]
    alarms = _alarms(seen, baseline, here)
    expected = [phase.name for phase in truth(Fault(one["fault"]), arm)]
    return {
        "fault": one["fault"],
        "label": labels[-1],
        "labels": sorted(set(labels)),
        "right": labels[-1] in expected,
        **{name: None if at is None else round(at - one["begin"], 3) for name, at in alarms.items()},
        "x_counted": round(_cold(record, one["begin"], one["end"])[1], 2),
        "c2": round(float(seen.z[here, C2_AI].mean()), 4),
    }


def _alarms(seen: Series, baseline: JointBaseline, here: slice) -> dict[str, float | None]:
    """When the joint monitor and the two monitors alarm within ``here``, None where they do not."""
    found = baseline.distances(seen.z[here])
    net, ai, joint = (
        tail.score_at(math.log(level))
        for tail, level in zip(baseline.tails, (ALPHA / 2.0, ALPHA / 2.0, ALPHA), strict=True)
    )
    times = seen.times[here]
    return {
        "joint_s": _first(times, found.joint >= joint),
        "pair_s": _first(times, (found.net >= net) | (found.ai >= ai)),
    }


def _first(times: FloatArray, over: NDArray[np.bool_]) -> float | None:
    run = 0
    for time, above in zip(times.tolist(), over.tolist(), strict=True):
        run = run + 1 if above else 0
        if run == IN_A_ROW:
            return float(time)
    return None


# ---- events


def _event(record: Mapping[str, Any], seen: Series, one: Mapping[str, Any]) -> dict[str, Any]:
    """Exposure by request shares and by cache counters, the fall of C_2^W2, and when each surface first left BAU."""
    begin = one["begin"]
    shares, counted = _cold(record, begin, one["end"])
    before = _between(seen.times, begin - BEFORE_S, begin)
    # A reading of the first round after the change comes a round later, and stands until the next.
    during = _between(seen.times, begin + 0.5, begin + EVENT_S + 0.5)
    window = seen.z[seen.calibration]
    level = np.quantile(window, 0.01, axis=0) - 1e-9
    after = _between(seen.times, begin, begin + _SEARCH_S)
    moved = [_first_below(seen.times[after], seen.z[after], level, axes) for axes in ((0, 1, 2), (C2_AI,))]
    return {
        "hops": len(one["on"]),
        "weight": one["weight"],
        "x_shares": round(shares, 2),
        "x_counted": round(counted, 2),
        "fall": round(float(seen.z[before, C2_AI].mean() - seen.z[during, C2_AI].mean()), 4),
        "net_s": None if moved[0] is None else round(moved[0] - begin, 3),
        "ai_s": None if moved[1] is None else round(moved[1] - begin, 3),
    }


def _first_below(times: FloatArray, z: FloatArray, level: FloatArray, axes: Sequence[int]) -> float | None:
    """The first tick that, like the one after it, has one of the axes below its level."""
    below = np.any(z[:, list(axes)] < level[list(axes)], axis=1)
    hits = np.flatnonzero(np.logical_and(below[1:], below[:-1]))
    return float(times[hits[0]]) if len(hits) else None


def _cold(record: Mapping[str, Any], begin: float, end: float) -> tuple[float, float]:
    """Exposure in tokens, by Q against Q_0 and by the users' misses that the caches counted."""
    asked, missed = [], []
    for rows in record["counts"].values():
        at = np.array([row[0] for row in rows])
        first = max(int(np.searchsorted(at, begin)) - 1, 0)
        last = min(int(np.searchsorted(at, end)), len(rows) - 1)
        asked.append(rows[last][1] - rows[first][1])
        missed.append(rows[last][2] - rows[first][2])
    q = drift.shares(np.array(asked, dtype=np.float64))
    seats = np.array(list(record["seated"].values()), dtype=np.float64)
    history = np.full(len(asked), answers.MEAN_TOKENS)
    by_shares = float(drift.exposure(drift.misses(q, seats / seats.sum()), history))
    m = np.divide(missed, asked, out=np.zeros(len(asked)), where=np.array(asked) > 0)
    return by_shares, float(drift.exposure(m, history))


# ---- coupling


def _certificates(record: Mapping[str, Any], seen: Series, begin: float, end: float) -> dict[str, Any]:
    """Response of both AI axes to the events of one block."""
    here = _between(seen.times, begin, end)
    z, times = seen.z[here], seen.times[here]
    tick = float(record["size"]["tick_s"])
    at = [
        int(np.searchsorted(times, one["begin"]))
        for one in record["injected"]
        if one["fault"] == Fault.EVENT.value and begin <= one["begin"] < end
    ]
    found: dict[str, Any] = {"events": len(at)}
    for name, axis in (("c1", SPLIT), ("c2", C2_AI)):
        try:
            answer = event_response(z[:, axis], np.array(at), round(BEFORE_S / tick), round(AFTER_S / tick), "fall")
        except ValueError as error:
            found[name] = {"refused": str(error)}
            continue
        found[name] = {
            "p": round(answer.p_value, 4),
            "effect": round(answer.effect, 4),
            "low": round(answer.low, 4),
            "high": round(answer.high, 4),
        }
    return found


def _stretch(record: Mapping[str, Any], seen: Series, window: FloatArray) -> dict[str, Any]:
    """Test of R_cross and excess of 3b over all blocks of events together."""
    if not record["blocks"]:
        return {}
    z = seen.z[_between(seen.times, record["blocks"][0][0], record["blocks"][-1][1])]
    found = _coupled(z, record["axes"])
    try:
        excess = excess_of_3b(window, z, SPLIT, surrogates=39)
    except (ValueError, np.linalg.LinAlgError) as error:
        return {**found, "3b": {"refused": str(error)}}
    share = {"share": round(excess.share, 4), "surrogate": round(excess.surrogate, 4), "p": round(excess.p_value, 3)}
    return {**found, "3b": share}


def _coupled(z: FloatArray, axes: Sequence[str]) -> dict[str, Any]:
    """The test of R_cross = 0 over a window, at no lag and over lags, and its largest entry."""
    found: dict[str, Any] = {}
    for name, lags in (("r_cross", 0), ("r_cross over lags", LAGS)):
        try:
            found[name] = round(independence_test(z, SPLIT, lags).p_value, 4)
        except (ValueError, np.linalg.LinAlgError) as error:
            found[name] = None
            found[f"{name}, refused"] = str(error)
    try:
        live = varying(z, SPLIT)[2]
        names = [name for name, used in zip(axes, live, strict=True) if used]
        largest = dominant(z, SPLIT, draws=200)
        net = int(live[:SPLIT].sum())
        found["largest"] = {
            "pair": [names[largest.net], names[net + largest.ai]],
            "r": round(largest.r, 3),
            "share": round(largest.share, 3),
        }
    except (ValueError, np.linalg.LinAlgError) as error:
        found["largest"] = {"refused": str(error)}
    return found
