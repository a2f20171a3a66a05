# SPDX-License-Identifier: Apache-2.0
"""Power and false alarms of the coherence decision on recorded real ticks, beside a plain z-score rule.

Four classes were named in advance (DESIGN.md section 4) in which coherence has to be better than the rival, in at
least two: faults spread over several vantages, benign ramps that must stay silent, lying probes, and which vantage
leads. Faults and ramps are in the recordings. Lies are told in the replay, on ticks without a fault: the probe's
histogram, objects and count lose or gain a share of their events while what its witness counted stays as recorded.

Where a recording is marked with "work", people used the host for something else meanwhile: neither quiet nor a fault.
How often the rules alarm then is given, and counts for nothing.

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
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench import campaign
from bench.harness import WORK, Result, wilson
from mvps.coherence.attribution import Attribution
from mvps.coherence.baseline import ModelSettings
from mvps.coherence.model import CoherenceVector, Decision, SurfaceModel
from mvps.coherence.observation import Observation
from mvps.coherence.phase import Phase
from mvps.provoke.faults import FAULTS
from mvps.vantages import blk, irq, mm, sched, sock
from mvps.vantages.recording import Mark, RecordingError, Tick, read
from mvps.vantages.registry import DATAPLANE, KERNEL
from mvps.vantages.witness import CountWitness

SUMMARY = "detection within M + 2 ticks, attribution, false-alarm episodes per hour, beside a z-score rule"
M = 3
WITHIN = M + 2
CALIBRATION = campaign.CALIBRATION_TICKS
SURFACES = {KERNEL: ("mm", "blk", "sock", "sched", "irq"), DATAPLANE: ("path", "path_tcp", "path_fib")}
# After a fault or a ramp the host needs a while to be itself again; these ticks count neither as quiet nor as fault.
RECOVERY_TICKS = 12
BLOCK_TICKS = 600
RESAMPLES = 2000
LEAST_QUIET_HOURS = 2.0
LEAST_EPISODES = 30  # judged, per fault and dose
# How much power against the rival may be lost on a single fault.
TOLERANCE = 0.05
# A recording keeps the scales of its day; what is judged is what is shipped.
SHIPPED_QUIET = {vantage.__name__.rsplit(".", 1)[1]: vantage.SCALE.quiet for vantage in (blk, irq, mm, sched, sock)}
# Lying probes: what the observation calls the count, what it calls the witness's, and the skew of the two.
LIARS = {"blk": ("requests", "witness_requests", blk.SKEW), "irq": ("runs", "witness_runs", irq.SKEW)}
# The share of the events that is told: a quarter lost, one of two CPUs lost, a program attached twice.
TOLD = (0.75, 0.5, 2.0)
LIE_TICKS = 7
# A lie begins this often on ticks without a fault, and never soon after one.
LIE_EVERY = 40


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
    accused: list[frozenset[str]] = field(default_factory=list)  # vantages whose own checks failed


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


@dataclass(frozen=True, slots=True)
class Lie:
    """One probe tells ``told`` times the events it saw."""

    vantage: str
    told: float

    def distort(self, one: Observation, draw: np.random.Generator) -> Observation:
        """The observation as the lying probe would give it; its checks are those of the honest one."""
        count, _, _ = LIARS[self.vantage]
        if self.told < 1.0:
            histogram = draw.binomial(one.histogram.astype(np.int64), self.told).astype(np.float64)
        else:
            histogram = one.histogram * self.told
        share = float(histogram.sum()) / one.events if one.events else 1.0
        objects = None if one.objects is None else {key: n * share for key, n in one.objects.items()}
        facts = {**one.facts, count: one.facts.get(count, 0.0) * share}
        return dataclasses.replace(one, histogram=histogram, objects=objects, facts=facts)


def lying(path: Path, lie: Lie) -> Iterator[tuple[Mapping[str, Any], int, Tick]]:
    """:func:`course` with the lie told now and then, checks and all, on ticks without a fault."""
    draw = np.random.default_rng(7)
    count, witness, skew = LIARS[lie.vantage]
    honest, told = CountWitness(skew), CountWitness(skew)
    facts: Mapping[str, Any] = {}
    for seen, (what, since, entry) in enumerate(course(path), 1):
        one = entry.observations[lie.vantage]
        phase = since % LIE_EVERY
        tells = seen > CALIBRATION and not what and since >= LIE_EVERY and phase < LIE_TICKS
        if tells and phase == 0:
            facts = {"lie": lie.vantage, "told": lie.told}
        shown = lie.distort(one, draw) if tells else one
        true, lied = (
            check.check(o.facts.get(count, 0.0), o.facts.get(witness, 0.0))
            for check, o in ((honest, one), (told, shown))
        )
        # What the other checks of this vantage said stays; the verdict of the two counts is the liar's.
        violated = min(max(one.violated + lied[1] - true[1], 0.0), one.checked)
        shown = dataclasses.replace(shown, violated=violated)
        observations = {**entry.observations, lie.vantage: shown}
        yield (
            facts if tells else what,
            phase + 1 if tells else since,
            dataclasses.replace(entry, observations=observations),
        )


def judge(
    path: Path,
    settings: ModelSettings,
    level: Phase,
    quiet: Mapping[str, float] | None = None,
    lie: Lie | None = None,
) -> Judged:
    """Replay one recording with the absolute scales that are shipped now; ``quiet`` overrides named vantages'."""
    scales = SHIPPED_QUIET | dict(quiet or {})
    models = {surface: SurfaceModel(surface, names, settings) for surface, names in SURFACES.items()}
    rival, attribution = ZScores(), Attribution()
    judged = Judged()
    for seen, (what, since, entry) in enumerate(lying(path, lie) if lie else course(path), 1):
        decisions: dict[str, Decision] = {}
        vectors: dict[str, CoherenceVector] = {}
        for surface, names in SURFACES.items():
            here = {name: entry.observations[name] for name in names if name in entry.observations}
            for name in here.keys() & scales.keys():
                scale = dataclasses.replace(here[name].scale, quiet=scales[name])
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
        judged.accused.append(frozenset(name for name, one in entry.observations.items() if one.violated))
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


def count_episodes(judged: Judged, rival: Sequence[bool], tally: dict[str, dict[str, Any]]) -> None:
    """Add what both rules made of every fault, ramp and lie of one recording; ``rival``: its alarm per tick."""
    for what, begin, end in episodes(judged):
        if "work" in what:
            continue
        if "fault" in what:
            key = f"{what['fault']}@{what['dose']:g}"
            expected = FAULTS[what["fault"]].vantage if what["fault"] in FAULTS else ""
        elif "lie" in what:
            if end - begin < WITHIN:  # cut short by a fault or by the end of the recording
                continue
            key, expected = f"lie-{what['lie']}@{what['told']:g}", what["lie"]
        else:
            key, expected = f"ramp@{what['ramp']:g}", ""
        row = tally[key]
        # An alarm that is still on from before detects nothing: not counted, for either rule by itself.
        ours_free = not (begin and judged.alarmed[begin - 1])
        theirs_free = not (begin and rival[begin - 1])
        row["n"] += ours_free
        row["rival_n"] += theirs_free
        stop = min(end + RECOVERY_TICKS, len(judged.what)) if "ramp" in what else min(begin + WITHIN, end)
        ours_at = next((i for i in range(begin, stop) if ours_free and judged.alarmed[i]), None)
        theirs_at = next((i for i in range(begin, stop) if theirs_free and rival[i]), None)
        row["ours"] += ours_at is not None
        row["rival"] += theirs_at is not None
        if ours_at is not None:
            row["ours_ticks"] += ours_at - begin + 1
            # The lead is settled over the ticks that made the alarm, the last M.
            span = range(max(begin, ours_at - M + 1), ours_at + 1)
            # Who lies is said by the checks that failed, not by who moved.
            said = ",".join(sorted(judged.accused[ours_at])) if "lie" in what else vantage_of(judged.lead[ours_at])
            row["ours_lead"] += said == expected
            row["farthest_lead"] += majority([vantage_of(judged.farthest[i]) for i in span]) == expected
            row[f"lead:{said}"] += 1
        if theirs_at is not None:
            row["rival_lead"] += vantage_of(judged.z_lead[theirs_at]) == expected


def evaluate(
    paths: Sequence[Path],
    settings: ModelSettings,
    level: Phase,
    quiet: Mapping[str, float] | None = None,
    lies: Sequence[Lie] = (),
) -> dict[str, Any]:
    """Everything the benchmark reports; an alarm is a phase of ``level`` or above on any surface."""
    with ProcessPoolExecutor() as pool:
        honest = [pool.submit(judge, path, settings, level, quiet) for path in paths]
        lied = [pool.submit(judge, path, settings, level, quiet, lie) for lie in lies for path in paths]
        all_judged = [one.result() for one in honest]
        all_lied = [one.result() for one in lied]
    wheres = [quiet_mask(j) for j in all_judged]
    where = np.concatenate(wheres)
    our_starts = np.concatenate([episode_starts(j.alarmed, w) for j, w in zip(all_judged, wheres, strict=True)])
    ours = per_hour(our_starts, where)
    threshold = matched_threshold(all_judged, ours[0])
    rival = [hysteresis([z > threshold for z in j.z]) for j in all_judged]
    z_starts = np.concatenate([episode_starts(r, w) for r, w in zip(rival, wheres, strict=True)])
    theirs = per_hour(z_starts, where)
    tally: dict[str, dict[str, Any]] = defaultdict(lambda: defaultdict(int))
    for judged, alarmed in zip(all_judged, rival, strict=True):
        count_episodes(judged, alarmed, tally)
    for judged in all_lied:
        told = dataclasses.replace(judged, what=[what if "lie" in what else {} for what in judged.what])
        count_episodes(told, hysteresis([z > threshold for z in judged.z]), tally)
    at_work = [np.array(["work" in what for what in j.what], dtype=bool) for j in all_judged]
    working = np.concatenate(at_work)
    alarms_at_work = [
        per_hour(np.concatenate([episode_starts(a, w) for a, w in zip(alarmed, at_work, strict=True)]), working)
        for alarmed in ([j.alarmed for j in all_judged], rival)
    ]
    return {
        "quiet_hours": float(where.sum() * campaign.TICK_S / 3600),
        "false_alarms": int(our_starts.sum()),
        "false_alarms_per_hour": ours,
        "rival_false_alarms_per_hour": theirs,
        "rival_threshold": threshold,
        "work_hours": float(working.sum() * campaign.TICK_S / 3600),
        "alarms_at_work_per_hour": alarms_at_work[0],
        "rival_alarms_at_work_per_hour": alarms_at_work[1],
        "episodes": {
            key: {"n": 0, "ours": 0, "rival_n": 0, "rival": 0} | dict(row) for key, row in sorted(tally.items())
        },
    }


def ahead(hits: int, n: int, rival_hits: int, rival_n: int) -> tuple[float, float, float]:
    """Difference of two shares with its 95 % interval (Newcombe 1998, method 10)."""
    ours, theirs = hits / max(n, 1), rival_hits / max(rival_n, 1)
    low, high = wilson(hits, n)
    rival_low, rival_high = wilson(rival_hits, rival_n)
    difference = ours - theirs
    below = math.hypot(ours - low, rival_high - theirs)
    above = math.hypot(high - ours, theirs - rival_low)
    return difference, difference - below, difference + above


def classes(found: Mapping[str, Any]) -> dict[str, tuple[float, float, float]]:
    """The classes named in advance: how far ahead of the rival coherence is, as a share, with its interval."""

    def total(keys: Sequence[str], what: str) -> int:
        return sum(found["episodes"][key].get(what, 0) for key in keys)

    def of(kind: str) -> list[str]:
        return [key for key in found["episodes"] if key.startswith(kind)]

    spread, ramps, lies = of("spread"), of("ramp"), of("lie")
    single = [key for key in found["episodes"] if key not in {*spread, *ramps, *lies}]
    silent, rival_silent = (total(ramps, n) - total(ramps, hits) for n, hits in (("n", "ours"), ("rival_n", "rival")))
    return {
        "spread faults caught": ahead(*(total(spread, w) for w in ("ours", "n", "rival", "rival_n"))),
        "ramps silent": ahead(silent, total(ramps, "n"), rival_silent, total(ramps, "rival_n")),
        "lying probes caught": ahead(*(total(lies, w) for w in ("ours", "n", "rival", "rival_n"))),
        "right lead": ahead(*(total(single, w) for w in ("ours_lead", "n", "rival_lead", "rival_n"))),
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
    "mm quiet 100 us": ({}, {"mm": 100e3}),
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
    lies = [Lie(vantage, told) for vantage in LIARS for told in TOLD]
    found = evaluate(paths, settings, Phase[given.level], lies=lies)
    judged = {key: row for key, row in found["episodes"].items() if row["n"]}
    full = {key: row for key, row in judged.items() if key.endswith("@1")}
    single = {key: row for key, row in judged.items() if not key.startswith(("ramp", "spread", "lie"))}
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
    if found["work_hours"]:
        print(
            f"people at work {found['work_hours']:.2f} h; alarms/h {found['alarms_at_work_per_hour']}, "
            f"rival {found['rival_alarms_at_work_per_hour']}"
        )
    print(f"rival {found['rival_false_alarms_per_hour']} at z > {found['rival_threshold']:.2f}")
    caught = min((row["ours_lead"] / row["n"] if "ours_lead" in row else 0.0 for row in full.values()), default=0.0)
    no_worse = all(
        row["ours"] / row["n"] >= row["rival"] / max(row["rival_n"], 1) - TOLERANCE for row in single.values()
    )
    ahead_in = classes(found)
    for name, (difference, low, high) in ahead_in.items():
        print(f"{name}: ahead of the rival by {difference:+.2f} [{low:+.2f}, {high:+.2f}]")
    # What the recordings have to hold before anything is claimed of them; a short one made for CI is exempt.
    rows = found["episodes"]
    judged_at = {
        (kind, dose): rows.get(f"{kind}@{dose:g}", {"n": 0})["n"] for kind in FAULTS for dose in campaign.DOSES
    }
    judged_at["path", 1.0] += judged_at.pop(("path", 0.25))  # a withdrawn hop has no smaller dose
    enough = found["quiet_hours"] >= LEAST_QUIET_HOURS and min(judged_at.values()) >= LEAST_EPISODES
    if given.recordings and not enough:
        few = ", ".join(f"{kind}@{dose:g} {n}" for (kind, dose), n in judged_at.items() if n < LEAST_EPISODES)
        quiet = f"{found['quiet_hours']:.2f} of {LEAST_QUIET_HOURS:g} quiet hours"
        print(f"not enough recorded: {quiet}; fewer than {LEAST_EPISODES} episodes: {few or 'none'}")
    better = sum(low > 0 for _, low, _ in ahead_in.values())
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    return Result(
        figure=caught,
        unit="share of full-dose faults caught in time and rightly attributed (worst kind)",
        bar=1.0,
        holds=caught >= 1.0 and no_worse and better >= 2 and (enough or not given.recordings),
        details={
            **found,
            "no_worse_than_rival": no_worse,
            "enough_recorded": enough,
            "ahead_of_rival": ahead_in,
            "recordings": digests,
        },
    )
