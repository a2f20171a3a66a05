# SPDX-License-Identifier: Apache-2.0
"""Power and false alarms of the coherence decision on recorded real ticks, beside a plain z-score rule.

Both rules see the same ticks, calibrate on the same first window and use the same hysteresis. The rival is what an
engineer writes first: per observation the z-score of the mean log severity and of the log event count (categorical
observations: of each category's share), the largest |z| against one threshold, set so that its false-alarm episodes
per hour on the quiet ticks equal ours.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench import campaign
from bench.harness import WORK, Result
from mvps.coherence.attribution import Attribution
from mvps.coherence.baseline import ModelSettings
from mvps.coherence.model import CoherenceVector, Decision, SurfaceModel
from mvps.coherence.observation import Observation
from mvps.coherence.phase import Phase
from mvps.provoke.faults import FAULTS
from mvps.vantages.recording import Mark, RecordingError, Tick, read
from mvps.vantages.registry import DATAPLANE, KERNEL

SUMMARY = "detection within M + 2 ticks, attribution, false-alarm episodes per hour, beside a z-score rule"
M = 3
WITHIN = M + 2
CALIBRATION = campaign.CALIBRATION_TICKS
SURFACES = {KERNEL: ("mm", "blk", "sock", "sched", "irq"), DATAPLANE: ("path", "path_tcp", "path_fib")}
# After a fault or a ramp the host needs a while to be itself again; these ticks count neither as quiet nor as fault.
RECOVERY_TICKS = 12
BLOCK_TICKS = 600
RESAMPLES = 2000
# How much power against the rival may be lost on a single fault.
TOLERANCE = 0.05


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recordings", nargs="*", type=Path, help="recordings to evaluate; none: make a short one first")
    parser.add_argument("--statistic", default=ModelSettings().statistic)
    parser.add_argument("--level", choices=["WATCH", "ALARM", "CRITICAL"], default="ALARM", help="what counts as alarm")
    parser.add_argument("--table", action="store_true", help="also every variant of the definitions, as a table")


@dataclass
class Judged:
    """One recording under both rules, tick by tick after calibration."""

    what: list[Mapping[str, Any]] = field(default_factory=list)  # the mark in force
    since: list[int] = field(default_factory=list)  # ticks since that mark
    alarmed: list[bool] = field(default_factory=list)
    lead: list[str] = field(default_factory=list)
    farthest: list[str] = field(default_factory=list)  # plain argmax, for comparison
    score: list[float] = field(default_factory=list)  # -log10 of the smaller p-value of the surfaces
    z: list[float] = field(default_factory=list)
    z_lead: list[str] = field(default_factory=list)


def features(name: str, one: Observation) -> dict[tuple[str, str], float]:
    """The rival's view of one observation."""
    total = one.events
    if one.scale.categorical:
        shares = one.histogram / total if total else one.histogram
        return {(name, f"share{at}"): float(shares[at]) for at in np.flatnonzero(one.histogram)}
    found = {(name, "count"): math.log1p(total)}
    if total:
        centres = np.log(np.maximum(one.scale.lower_edges(), one.scale.lowest / 2))
        found[name, "severity"] = float(one.histogram @ centres / total)
    return found


class ZScores:
    """The rival: means and deviations of the calibration window, then the largest |z|."""

    def __init__(self) -> None:
        self._window: dict[tuple[str, str], list[float]] = defaultdict(list)
        self._law: dict[tuple[str, str], tuple[float, float]] = {}

    def calibrate(self, observations: Mapping[str, Observation]) -> None:
        for name, one in observations.items():
            for key, value in features(name, one).items():
                self._window[key].append(value)

    def freeze(self) -> None:
        for key, values in self._window.items():
            # A feature that hardly ever moved still needs a scale: a tenth of a unit of log, 1 % of share.
            floor = 0.01 if key[1].startswith("share") else 0.1
            self._law[key] = (float(np.mean(values)), max(float(np.std(values)), floor))

    def score(self, observations: Mapping[str, Observation]) -> tuple[float, str]:
        worst, lead = 0.0, ""
        for name, one in observations.items():
            seen = features(name, one)
            if one.scale.categorical and one.events:
                seen = {**{key: 0.0 for key in self._law if key[0] == name}, **seen}
            for key, value in seen.items():
                mean, deviation = self._law.get(key, (0.0, 0.1))
                z = abs(value - mean) / deviation
                if z > worst:
                    worst, lead = z, name
        return worst, lead


def readable(path: Path) -> Iterator[Any]:
    """Everything in a recording; one that breaks off is used as far as it goes, and that is said."""
    try:
        yield from read(path)
    except RecordingError as error:
        print(f"{error}; what was read is used")


def course(path: Path) -> Iterator[tuple[Mapping[str, Any], int, Tick]]:
    """(the mark in force, ticks since it, tick) of every tick in a recording."""
    what: Mapping[str, Any] = {}
    since = 0
    for entry in readable(path):
        if isinstance(entry, Mark):
            if "losses" not in entry.facts:
                what, since = entry.facts, 0
        elif isinstance(entry, Tick):
            since += 1
            yield what, since, entry


def judge(path: Path, settings: ModelSettings, level: Phase, quiet: Mapping[str, float] | None = None) -> Judged:
    """Replay one recording; ``quiet`` overrides the absolute scale of named vantages."""
    models = {surface: SurfaceModel(surface, names, settings) for surface, names in SURFACES.items()}
    rival, attribution = ZScores(), Attribution()
    judged = Judged()
    for seen, (what, since, entry) in enumerate(course(path), 1):
        decisions: dict[str, Decision] = {}
        vectors: dict[str, CoherenceVector] = {}
        for surface, names in SURFACES.items():
            here = {name: entry.observations[name] for name in names if name in entry.observations}
            for name in here.keys() & (quiet or {}).keys():
                scale = dataclasses.replace(here[name].scale, quiet=(quiet or {})[name])
                here[name] = dataclasses.replace(here[name], scale=scale)
            result = models[surface].step(entry.index, here)
            if result.decision is not None:
                decisions[surface], vectors[surface] = result.decision, result.vector
        if seen <= CALIBRATION:
            rival.calibrate(entry.observations)
            if seen == CALIBRATION:
                rival.freeze()
            continue
        if not decisions:
            continue
        first = min(decisions.values(), key=lambda d: (d.p_value, -d.s))
        own = {name: z for vector in vectors.values() for name, z in vector.own.items()}
        fitted = {surface: models[surface].baseline for surface in vectors}
        moves_at = {n: b.moved for s, vector in vectors.items() if (b := fitted[s]) for n in vector.own}
        z, z_lead = rival.score(entry.observations)
        judged.what.append(what)
        judged.since.append(since)
        judged.alarmed.append(any(d.phase >= level for d in decisions.values()))
        judged.lead.append(attribution.step(own, moves_at))
        judged.farthest.append(first.farthest)
        judged.score.append(-math.log10(max(first.p_value, 1e-300)))
        judged.z.append(z)
        judged.z_lead.append(z_lead)
    return judged


def hysteresis(over: Sequence[bool]) -> list[bool]:
    """K = M up and down, for the rival."""
    state, run, out = False, 0, []
    for value in over:
        run = run + 1 if value != state else 0
        if run >= M:
            state, run = value, 0
        out.append(state)
    return out


def quiet_mask(judged: Judged) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Ticks with nothing going on and nothing just over."""
    calm, out = RECOVERY_TICKS, []
    for what in judged.what:
        calm = 0 if what else calm + 1
        out.append(not what and calm > RECOVERY_TICKS)
    return np.array(out, dtype=bool)


def episode_starts(alarmed: Sequence[bool], where: np.ndarray[Any, np.dtype[np.bool_]]) -> np.ndarray[Any, Any]:
    """1 at each tick in ``where`` at which an alarm begins."""
    state = np.array(alarmed, dtype=bool)
    return np.concatenate(([False], state[1:] & ~state[:-1])) & where


def per_hour(starts: np.ndarray[Any, Any], where: np.ndarray[Any, Any]) -> tuple[float, float, float]:
    """Episodes per hour with a 95 % block-bootstrap interval (blocks of five minutes)."""
    inside = starts[where]
    hours = max(int(where.sum()) * campaign.TICK_S / 3600, 1e-9)
    blocks = [inside[i : i + BLOCK_TICKS].sum() for i in range(0, len(inside), BLOCK_TICKS)]
    draw = np.random.default_rng(3)
    totals = [draw.choice(blocks, len(blocks)).sum() for _ in range(RESAMPLES)] if blocks else [0]
    low, high = np.percentile(totals, [2.5, 97.5])
    # No episode at all still leaves the rule of three.
    return float(inside.sum() / hours), float(low / hours), float(max(high, 3.0 if not inside.any() else 0) / hours)


def episodes(judged: Judged) -> Iterator[tuple[Mapping[str, Any], int, int]]:
    """(mark, first tick, end) of every fault or ramp."""
    i = 0
    while i < len(judged.what):
        if judged.what[i]:
            j = i
            while j < len(judged.what) and judged.what[j] is judged.what[i]:
                j += 1
            yield judged.what[i], i, j
            i = j
        else:
            i += 1


def matched_threshold(all_judged: Sequence[Judged], target: float) -> float:
    """Smallest z threshold whose quiet false-alarm episodes per hour do not exceed ``target``."""
    grid = np.unique(np.concatenate([np.array(j.z) for j in all_judged]))
    low, high = 0, len(grid) - 1
    while low < high:
        middle = (low + high) // 2
        starts = hours = 0.0
        for judged in all_judged:
            where = quiet_mask(judged)
            alarmed = hysteresis([z > grid[middle] for z in judged.z])
            starts += episode_starts(alarmed, where).sum()
            hours += where.sum() * campaign.TICK_S / 3600
        if starts / max(hours, 1e-9) <= target:
            high = middle
        else:
            low = middle + 1
    return float(grid[low])


def vantage_of(name: str) -> str:
    return "path" if name.startswith("path") else name


def majority(votes: Sequence[str]) -> str:
    """The most frequent; of equals the last."""
    return max(reversed(votes), key=list(votes).count)


def wilson(hits: int, n: int) -> tuple[float, float]:
    """95 % interval of a proportion."""
    if not n:
        return 0.0, 1.0
    p, z = hits / n, 1.96
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)


def evaluate(
    paths: Sequence[Path], settings: ModelSettings, level: Phase, quiet: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """Everything the benchmark reports; an alarm is a phase of ``level`` or above on any surface."""
    all_judged = [judge(path, settings, level, quiet) for path in paths]
    wheres = [quiet_mask(j) for j in all_judged]
    starts = np.concatenate([episode_starts(j.alarmed, w) for j, w in zip(all_judged, wheres, strict=True)])
    where = np.concatenate(wheres)
    ours = per_hour(starts, where)
    threshold = matched_threshold(all_judged, ours[0])
    rival = [hysteresis([z > threshold for z in j.z]) for j in all_judged]
    z_starts = np.concatenate([episode_starts(r, w) for r, w in zip(rival, wheres, strict=True)])
    theirs = per_hour(z_starts, where)
    tally: dict[str, dict[str, Any]] = defaultdict(lambda: defaultdict(int))
    for judged, alarmed in zip(all_judged, rival, strict=True):
        for what, begin, end in episodes(judged):
            if "fault" in what:
                key = f"{what['fault']}@{what['dose']:g}"
                expected = FAULTS[what["fault"]].vantage if what["fault"] in FAULTS else ""
            else:
                key, expected = f"ramp@{what['ramp']:g}", ""
            row = tally[key]
            # An alarm that is still on from before detects nothing: not counted, for either rule by itself.
            ours_free = not (begin and judged.alarmed[begin - 1])
            theirs_free = not (begin and alarmed[begin - 1])
            row["n"] += ours_free
            row["rival_n"] += theirs_free
            stop = min(begin + WITHIN, end) if "fault" in what else min(end + RECOVERY_TICKS, len(judged.what))
            ours_at = next((i for i in range(begin, stop) if ours_free and judged.alarmed[i]), None)
            theirs_at = next((i for i in range(begin, stop) if theirs_free and alarmed[i]), None)
            row["ours"] += ours_at is not None
            row["rival"] += theirs_at is not None
            if ours_at is not None:
                row["ours_ticks"] += ours_at - begin + 1
                # The lead is settled over the ticks that made the alarm, the last M.
                span = range(max(begin, ours_at - M + 1), ours_at + 1)
                said = vantage_of(judged.lead[ours_at])
                row["ours_lead"] += said == expected
                row["farthest_lead"] += majority([vantage_of(judged.farthest[i]) for i in span]) == expected
                row[f"lead:{said}"] += 1
            if theirs_at is not None:
                row["rival_lead"] += vantage_of(judged.z_lead[theirs_at]) == expected
    return {
        "quiet_hours": float(where.sum() * campaign.TICK_S / 3600),
        "false_alarms_per_hour": ours,
        "rival_false_alarms_per_hour": theirs,
        "rival_threshold": threshold,
        "episodes": {
            key: {"n": 0, "ours": 0, "rival_n": 0, "rival": 0} | dict(row) for key, row in sorted(tally.items())
        },
    }


# The definitions that were chosen by measurement, and their neighbours.
VARIANTS: Mapping[str, tuple[dict[str, Any], dict[str, float]]] = {
    "as shipped": ({}, {}),
    "statistic d2": ({"statistic": "d2"}, {}),
    "statistic s": ({"statistic": "s"}, {}),
    "pseudo-count 3": ({"pseudo_count": 3.0}, {}),
    "pseudo-count 30": ({"pseudo_count": 30.0}, {}),
    "4 labels": ({"labels": 4}, {}),
    "8 labels": ({"labels": 8}, {}),
    "object window 1": ({"object_window": 1}, {}),
    "object window 16": ({"object_window": 16}, {}),
    "mm quiet 10 us": ({}, {"mm": 10e3}),
    "mm quiet 30 us": ({}, {"mm": 30e3}),
    "mm quiet 300 us": ({}, {"mm": 300e3}),
    "cut-offs finite-sample": ({"cutoff_mode": "finite-sample"}, {}),
    "cut-offs chi2": ({"cutoff_mode": "chi2"}, {}),
}


def table(paths: Sequence[Path], base: ModelSettings, level: Phase) -> str:
    """Power, attribution and false alarms of every variant, as a Markdown table."""
    rows = ["| variant | full dose caught | weak caught | rightly attributed | ramps alarmed | false alarms/h |"]
    rows.append("|---|---|---|---|---|---|")
    for name, (settings, quiet) in VARIANTS.items():
        found = evaluate(paths, dataclasses.replace(base, **settings), level, quiet)
        kinds = {"full": (0, 0), "weak": (0, 0), "lead": (0, 0), "ramp": (0, 0)}
        for key, row in found["episodes"].items():
            group = "ramp" if key.startswith("ramp") else "full" if key.endswith("@1") else "weak"
            hits, n = kinds[group]
            kinds[group] = (hits + row["ours"], n + row["n"])
            if group != "ramp" and not key.startswith("spread"):
                hits, n = kinds["lead"]
                kinds["lead"] = (hits + row.get("ours_lead", 0), n + row["ours"])
        shares = [f"{hits / n:.3f} ({hits}/{n})" if n else "-" for hits, n in kinds.values()]
        rate, low, high = found["false_alarms_per_hour"]
        rows.append(f"| {name} | {' | '.join(shares)} | {rate:.1f} [{low:.1f}, {high:.1f}] |")
    return "\n".join(rows)


def run(given: argparse.Namespace) -> Result:
    paths = given.recordings
    if not paths:
        made = WORK / "detect-short.jsonl.gz"
        defaults = argparse.ArgumentParser()
        campaign.options(defaults)
        campaign.record(defaults.parse_args(["--episodes", "2", "--quiet-minutes", "3"]), made)
        paths = [made]
    settings = ModelSettings(statistic=given.statistic)
    if given.table:
        print(table(paths, settings, Phase[given.level]))
    found = evaluate(paths, settings, Phase[given.level])
    judged = {key: row for key, row in found["episodes"].items() if row["n"]}
    full = {key: row for key, row in judged.items() if key.endswith("@1")}
    single = {key: row for key, row in judged.items() if not key.startswith(("ramp", "spread"))}
    for key, row in found["episodes"].items():
        n, theirs = row["n"], max(row["rival_n"], 1)
        low, high = wilson(row["ours"], n)
        leads = " ".join(f"{k[5:]}:{v}" for k, v in row.items() if k.startswith("lead:"))
        print(
            f"{key:12} n={n:3}  ours {row['ours'] / max(n, 1):.2f} [{low:.2f},{high:.2f}] "
            f"lead ok {row.get('ours_lead', 0):3} (farthest {row.get('farthest_lead', 0):3})  "
            f"rival {row['rival'] / theirs:.2f} of {row['rival_n']:3} lead ok {row.get('rival_lead', 0):3}   "
            f"leads {leads}"
        )
    print(f"quiet {found['quiet_hours']:.2f} h; false alarms/h {found['false_alarms_per_hour']}")
    print(f"rival {found['rival_false_alarms_per_hour']} at z > {found['rival_threshold']:.2f}")
    caught = min((row["ours_lead"] / row["n"] if "ours_lead" in row else 0.0 for row in full.values()), default=0.0)
    no_worse = all(
        row["ours"] / row["n"] >= row["rival"] / max(row["rival_n"], 1) - TOLERANCE for row in single.values()
    )
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    return Result(
        figure=caught,
        unit="share of full-dose faults caught in time and rightly attributed (worst kind)",
        bar=1.0,
        holds=caught >= 1.0 and no_worse,
        details={**found, "no_worse_than_rival": no_worse, "recordings": digests},
    )
