# SPDX-License-Identifier: Apache-2.0
"""What many runs say together: confusion, rates beside their nominal ones, leads, drift, and P_IC1 to P_IC4. Pure.

Every prediction of 000 sec. 7 has a rule here that can refute it (ours, where the source's cannot), and one of four
verdicts: held, failed, underpowered (the runs leave both open), not testable. Rates have Wilson's interval (1927),
which takes episodes as independent; those of one run share a calibration, so it is a little too narrow.
"""

from __future__ import annotations

import enum
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from scipy.stats import binomtest
from scipy.stats import t as student

from mvps.coupling import drift
from mvps.testbed.answers import MEAN_TOKENS, PREFILL_TOKENS_PER_S, Arm
from mvps.testbed.plan import SWEEP
from mvps.testbed.score import ALPHA

GOAL: Final = 0.9
"""Share of right phases that the project aims at."""
REBUILD_S: Final = MEAN_TOKENS / PREFILL_TOKENS_PER_S
_Z: Final = 1.959963984540054
_HALF: Final = 0.5
_SELDOM: Final = 0.2


class Share(NamedTuple):
    """hits of ``of``, with Wilson's 95 % interval; NaN and [0, 1] of nothing."""

    hits: int
    of: int
    low: float
    high: float

    @property
    def rate(self) -> float:
        """The share itself."""
        return self.hits / self.of if self.of else math.nan

    def json(self) -> dict[str, Any]:
        """Rounded."""
        rate = None if not self.of else round(self.rate, 3)
        return {"share": rate, "of": self.of, "low": round(self.low, 3), "high": round(self.high, 3)}


def share(hits: int, of: int) -> Share:
    """Wilson's interval. ValueError unless 0 <= hits <= of."""
    if not 0 <= hits <= of:
        raise ValueError(f"{hits} of {of} is no share")
    if not of:
        return Share(0, 0, 0.0, 1.0)
    z2 = _Z * _Z
    middle = (hits + z2 / 2.0) / (of + z2)
    half = _Z * math.sqrt(hits * (of - hits) / of + z2 / 4.0) / (of + z2)
    return Share(hits, of, max(middle - half, 0.0), min(middle + half, 1.0))


class Verdict(enum.Enum):
    """Of a prediction."""

    HELD = "held"
    FAILED = "failed"
    UNDERPOWERED = "underpowered"
    NOT_TESTABLE = "not testable"


def above(found: Share, nominal: float, seldom: float = _SELDOM) -> Verdict:
    """HELD if the whole interval lies above ``nominal``, FAILED if it lies below ``seldom``."""
    if not found.of:
        return Verdict.NOT_TESTABLE
    if found.low > nominal:
        return Verdict.HELD
    return Verdict.FAILED if found.high < seldom else Verdict.UNDERPOWERED


def summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """All figures of scored runs, by arm, and the verdicts on the predictions. ValueError without any run."""
    if not runs:
        raise ValueError("no run to sum up")
    arms = [arm for arm in Arm if any(run["arm"] == arm.value for run in runs)]
    by_arm = {arm.value: _arm([run for run in runs if run["arm"] == arm.value]) for arm in arms}
    return {"arms": by_arm, "predictions": predictions(by_arm), "nominal": nominal(by_arm)}


def nominal(by_arm: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Whether the coupling tests reject no more than they should in the placebo arm: exact binomial p-value of as many
    rejections or more at 5 %, of each test with Bonferroni's correction, and of all together. None without that arm."""
    if Arm.PLACEBO.value not in by_arm:
        return {"holds": None, "tests": {}}
    rates = by_arm[Arm.PLACEBO.value]["rejections"]
    tests = {
        name: float(binomtest(round(one["share"] * one["of"]), one["of"], ALPHA, "greater").pvalue)
        for name, one in rates.items()
        if one["of"]
    }
    hits = sum(round(one["share"] * one["of"]) for one in rates.values() if one["of"])
    of = sum(one["of"] for one in rates.values())
    together = float(binomtest(hits, of, ALPHA, "greater").pvalue) if of else 1.0
    return {
        "holds": min(tests.values(), default=1.0) * len(tests) > ALPHA and together > ALPHA,
        "together": {"rejected": hits, "of": of, "p": round(together, 4)},
        "tests": {name: round(p, 4) for name, p in tests.items()},
    }


def _arm(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    episodes = [one for run in runs for one in run["episodes"]]
    blocks = [one for run in runs for one in run["blocks"]]
    stretches = [run["stretch"] for run in runs if run["stretch"]]
    events = [one for run in runs for one in run["events"]]
    return {
        "runs": len(runs),
        "right": share(sum(one["right"] for one in episodes), len(episodes)).json(),
        "confusion": {fault.value: _confusion(episodes, fault.value) for fault in SWEEP},
        "monitors": {fault.value: _monitors(episodes, fault.value) for fault in SWEEP},
        "rejections": {
            "certificate c2": _rejected(one["c2"].get("p") for one in blocks),
            "certificate c1": _rejected(one["c1"].get("p") for one in blocks),
            "R_cross, events": _rejected(one["r_cross"] for one in stretches),
            "R_cross over lags, events": _rejected(one["r_cross over lags"] for one in stretches),
            "R_cross, quiet": _rejected(run["quiet"]["r_cross"] for run in runs),
            "3b over surrogates": _rejected(one["3b"].get("p") for one in stretches),
        },
        "certificate effect c2": _spread([one["c2"].get("effect") for one in blocks]),
        "share in 3b": _spread([one["3b"].get("share") for one in stretches]),
        "share in 3b, surrogates": _spread([one["3b"].get("surrogate") for one in stretches]),
        "largest entry, events": _pairs(stretches),
        "largest entry, quiet": _pairs([run["quiet"] for run in runs]),
        "live axes": dict(Counter(name for run in runs for name in run["live axes"])),
        "events": len(events),
        "events seen": {
            "network": share(sum(one["net_s"] is not None for one in events), len(events)).json(),
            "AI": share(sum(one["ai_s"] is not None for one in events), len(events)).json(),
            "AI alone": sum(one["ai_s"] is not None and one["net_s"] is None for one in events),
        },
        "lag_s": _lag(events),
        "drift": {name: _drift(runs, name) for name in ("x_shares", "x_counted")},
        "users": dict(sum((Counter(run["users"]) for run in runs), Counter())),
        "cores": round(float(np.mean([run["cpu"] for run in runs])), 3),
        "missing": round(float(np.mean([run["missing"] for run in runs])), 4),
        "replay": max(run["replay"] for run in runs),
    }


def _confusion(episodes: Sequence[Mapping[str, Any]], fault: str) -> dict[str, Any]:
    here = [one for one in episodes if one["fault"] == fault]
    right = share(sum(one["right"] for one in here), len(here)).json()
    return {"right": right, "labels": dict(Counter(one["label"] for one in here).most_common())}


def _monitors(episodes: Sequence[Mapping[str, Any]], fault: str) -> dict[str, Any]:
    here = [one for one in episodes if one["fault"] == fault]
    both = [one["pair_s"] - one["joint_s"] for one in here if one["pair_s"] is not None and one["joint_s"] is not None]
    return {
        "joint alarms": share(sum(one["joint_s"] is not None for one in here), len(here)).json(),
        "two alarm": share(sum(one["pair_s"] is not None for one in here), len(here)).json(),
        "joint first": sum(lead > 0.0 for lead in both),
        "together": sum(lead == 0.0 for lead in both),
        "two first": sum(lead < 0.0 for lead in both),
        "lead_s": _spread(both),
    }


def _rejected(p_values: Iterable[float | None]) -> dict[str, Any]:
    given = list(p_values)
    known = [p for p in given if p is not None]
    return {**share(sum(p <= ALPHA for p in known), len(known)).json(), "refused": len(given) - len(known)}


def _spread(values: Iterable[float | None]) -> dict[str, Any]:
    known = np.array([value for value in values if value is not None])
    if not len(known):
        return {"n": 0}
    low, middle, high = np.quantile(known, (0.1, 0.5, 0.9))
    return {"n": len(known), "median": round(middle, 4), "p10": round(low, 4), "p90": round(high, 4)}


def _pairs(windows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    known = [one["largest"] for one in windows if "pair" in one["largest"]]
    pairs = Counter(" ".join(one["pair"]) for one in known)
    return {
        "windows": len(known),
        "pairs": dict(pairs.most_common()),
        "settled": sum(one["share"] >= 0.95 for one in known),
    }


def _lag(events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """AI surface after the network, seconds: mean with Student's interval over the events in which both moved."""
    lags = np.array(
        [one["ai_s"] - one["net_s"] for one in events if one["ai_s"] is not None and one["net_s"] is not None]
    )
    if len(lags) < 2:
        return {"n": len(lags)}
    half = float(student.ppf(0.975, len(lags) - 1) * lags.std(ddof=1) / math.sqrt(len(lags)))
    mean = float(lags.mean())
    return {
        "n": len(lags),
        "mean": round(mean, 3),
        "low": round(mean - half, 3),
        "high": round(mean + half, 3),
        "median": round(float(np.median(lags)), 3),
        "AI first": int((lags < 0.0).sum()),
    }


def _drift(runs: Sequence[Mapping[str, Any]], exposure: str) -> dict[str, Any]:
    """Fitted to the events of every second run, judged on the others'."""
    halves = []
    for half in (runs[::2], runs[1::2]):
        events = [one for run in half for one in run["events"]]
        halves.append((np.array([one[exposure] for one in events]), np.array([one["fall"] for one in events])))
    (x, fall), (x_new, fall_new) = halves
    try:
        transfer = drift.calibrate(x, fall)
        accuracy = drift.held_out(transfer, x_new, fall_new)
    except ValueError as error:
        return {"refused": str(error)}
    rest = fall_new - transfer.predict(x_new)
    flat = fall_new - fall.mean()
    return {
        "fitted to": len(x),
        "held out": len(x_new),
        "ceiling": [round(value, 3) for value in transfer.ceiling],
        "scale": [round(value, 1) for value in transfer.scale],
        "observed over predicted": [round(value, 3) for value in accuracy.ratio],
        "within factor 2": round(accuracy.within_factor_2, 3),
        "IC-2": accuracy.ic_2,
        "P_IC3": accuracy.p_ic3,
        "RMS error": round(float(np.sqrt((rest * rest).mean())), 4),
        "RMS error of a constant": round(float(np.sqrt((flat * flat).mean())), 4),
        "correlation": None if not x_new.std() > 0.0 else round(float(np.corrcoef(x_new, fall_new)[0, 1]), 3),
    }


def predictions(by_arm: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """P_IC1 to P_IC4 on the coupled arm, each with its rule, its verdict and what it rests on."""
    coupled = by_arm.get(Arm.COUPLED.value)
    if coupled is None:
        return {}
    excess = coupled["rejections"]["3b over surrogates"]
    found: dict[str, Any] = {
        "P_IC1": {
            "rule": "held if runs in which 3b exceeds its shift surrogates at 5 % are more than 5 %, failed if they "
            "are surely fewer than 20 %",
            "verdict": above(_of(excess), ALPHA).value,
            "figures": excess,
        },
        "P_IC2": {
            "rule": "held if C_2^W2 falls after the network's change, mean lag above 0; failed if at or below 0",
            **_order(coupled["lag_s"]),
        },
        "P_IC2, bound": {
            "rule": f"held if the mean lag is within five rebuilds of a context ({5 * REBUILD_S:.2f} s), failed if not",
            **_bound(coupled["lag_s"]),
        },
        "P_IC3": {
            "rule": "held if observed over predicted fall, on events of other runs, is within a factor of 2; failed if "
            "beyond 5; m_i from request shares, as the source has it",
            **_transfer(coupled["drift"]["x_shares"]),
        },
    }
    for name in ("events", "quiet"):
        largest = coupled[f"largest entry, {name}"]
        hits = share(largest["pairs"].get("net_c3 ai_c2", 0), largest["windows"])
        live = name == "events" or coupled["live axes"].get("net_c3", 0) > 0
        verdict = Verdict.NOT_TESTABLE
        if live and hits.of:
            verdict = above(hits, _HALF, _HALF)
        found[f"P_IC4, {name}"] = {
            "rule": "held if R_cross[C_3^net, C_2^W2] is the largest entry in surely more than half of the windows, "
            "failed if in surely fewer; not testable where C_3^net never varies",
            "verdict": verdict.value,
            "figures": {**hits.json(), "pairs": largest["pairs"]},
        }
    return found


def _of(one: Mapping[str, Any]) -> Share:
    return share(round((one["share"] or 0.0) * one["of"]), one["of"])


def _order(lag: Mapping[str, Any]) -> dict[str, Any]:
    if lag["n"] < 2:
        return {"verdict": Verdict.NOT_TESTABLE.value, "figures": lag}
    held, failed = lag["low"] > 0.0, lag["high"] <= 0.0
    verdict = Verdict.HELD if held else Verdict.FAILED if failed else Verdict.UNDERPOWERED
    return {"verdict": verdict.value, "figures": lag}


def _bound(lag: Mapping[str, Any]) -> dict[str, Any]:
    if lag["n"] < 2:
        return {"verdict": Verdict.NOT_TESTABLE.value, "figures": lag}
    held, failed = lag["high"] <= 5 * REBUILD_S, lag["low"] > 5 * REBUILD_S
    verdict = Verdict.HELD if held else Verdict.FAILED if failed else Verdict.UNDERPOWERED
    return {"verdict": verdict.value, "figures": lag}


def _transfer(found: Mapping[str, Any]) -> dict[str, Any]:
    if "refused" in found:
        return {"verdict": Verdict.UNDERPOWERED.value, "figures": found}
    words = {"holds": Verdict.HELD, "fails": Verdict.FAILED, "open": Verdict.UNDERPOWERED}
    return {"verdict": words[found["P_IC3"]].value, "figures": found}
