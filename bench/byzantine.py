# SPDX-License-Identifier: Apache-2.0
"""Attacks on a fleet whose honest hosts show recorded real ticks: who is named, how soon, and who is wrongly accused.

The recording is of one host, so the fleet is made of its time: stretches of five quiet ticks, and in every tick all
hosts show different ones. The first half of the recording calibrates, the second is judged. Hosts are therefore of one
kind, share no load, and remember at most five ticks; a real fleet is less alike and less independent. Faults have ten
stretches a dose, so that ill hosts share them. The vantage is the scheduler's, the faults are CPU faults.

Three lies on quiet ticks: a *point* mass on a label that nobody shows; *collusion*, all liars a tenth of their mass
there; *drift* there by half a percent a tick. Two while all honest hosts have a weak fault, which want the alarm late:
*mimicry* of the BAU centroid and *replay* of old true ticks. And no lie at all: quiet hosts, one with a real full-dose
fault, all with a weak one.

Four ways to judge, each on three ticks in a row: C_2 about the mean, about the geometric median, C_2 with MCD location
and scatter, each with the rule of 001 sec. 14 (one removal, theta 0.6), which accuses whom it names; and the fleet
decision (removals of up to f, theta by N and f), which accuses only with evidence. Evidence against the honest is what
was recorded: whether the scheduler's witness disagreed in that tick, where the live rule wants five checked ticks in a
row (mvps.robust.disagreement). That against liars is given, because the recording has no witness of a lie. How often
the live rule would contradict the honest host, faults included, is counted for every vantage.
"""

from __future__ import annotations

import argparse
import statistics
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from bench import detect
from bench.harness import ROOT, Result
from mvps.broker.recheck import DecisionCheck
from mvps.broker.store import Kept
from mvps.coherence.axes import jsd
from mvps.coherence.model import ModelSettings, SurfaceModel
from mvps.coherence.phase import Phase
from mvps.coherence.tail import Tail
from mvps.robust import fleet
from mvps.robust.disagreement import Disagreement
from mvps.robust.median import c2_gm, divergences, geometric_median
from mvps.robust.scatter import fit_scatter
from mvps.v1 import snapshot_pb2 as pb
from mvps.vantages.registry import KERNEL
from mvps.vantages.witness import CountWitness

SUMMARY = "lying vantages on recorded ticks: named, accused, delayed, by mean, median, MCD and fleet decision"
RECORDING = ROOT / "bench/records/2026-11-20.jsonl.gz"
KIND, FAULT = "sched", "cpu"
STRETCH = 5
IN_A_ROW = 3
EPISODE = 40
CALIBRATION = 300
QUIET_LIES = ("point", "collusion", "drift")
FAULT_LIES = ("mimicry", "replay")


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--recording", type=Path, default=RECORDING)
    parser.add_argument("--plot", type=Path, help="also draw the table to this SVG file")
    parser.add_argument("--episodes", type=int, default=0, help="per case (default 5, with --full 20)")


class Recorded(NamedTuple):
    """Stretches (S, STRETCH, A + 1) that do not overlap: quiet ones of either half, of the full and the weak fault.

    The last column is not a label but whether the witness disagreed.
    """

    calibration: np.ndarray
    judged: np.ndarray
    fault: np.ndarray
    weak: np.ndarray


def recorded(path: Path) -> Recorded:
    """What the scheduler's vantage showed in a recording."""
    model = SurfaceModel(KERNEL, detect.SURFACES[KERNEL], ModelSettings())
    runs: dict[str, list[list[np.ndarray]]] = {"quiet": [[]], "1.0": [[]], "0.25": [[]]}
    calm = 0
    for what, since, entry in detect.course(path):
        here = {name: entry.observations[name] for name in detect.SURFACES[KERNEL] if name in entry.observations}
        p = model.step(entry.index, here).distributions.get(KIND)
        calm = 0 if what else calm + 1
        now = "quiet" if calm > detect.RECOVERY_TICKS else ""
        if what.get("fault") == FAULT and since > 1:
            now = str(what["dose"])
        for name, parts in runs.items():
            if name == now and p is not None:
                parts[-1].append(np.append(p, here[KIND].violated > 0.0))
            elif parts[-1]:
                parts.append([])
    quiet, fault, weak = (_stretches(parts) for parts in runs.values())
    half = len(quiet) // 2
    return Recorded(quiet[:half], quiet[half:], fault, weak)


def _stretches(runs: list[list[np.ndarray]]) -> np.ndarray:
    return np.array([run[at : at + STRETCH] for run in runs for at in range(0, len(run) - STRETCH + 1, STRETCH)])


def hosts_ticks(rng: np.random.Generator, pool: np.ndarray, hosts: int, ticks: int) -> np.ndarray:
    """(ticks, hosts, A + 1): stretches one after the other; no two hosts show the same one unless there are too few."""
    rows = []
    for _ in range(-(-ticks // STRETCH)):
        chosen = rng.choice(len(pool), hosts, replace=hosts > len(pool))
        rows.append(pool[chosen].transpose(1, 0, 2))
    return np.concatenate(rows)[:ticks]


def witnessed(path: Path) -> dict[str, dict[str, int]]:
    """Every vantage's own checks in a recording, in ticks: in how many any was done, in how many one failed (and how
    many of these were in an injected fault), the longest row of failures, and in how many the host is contradicted.

    The host is honest: the last figure counts wrong evidence.
    """
    found: dict[str, Counter[str]] = defaultdict(Counter)
    rows: Counter[str] = Counter()
    judges = defaultdict(partial(Disagreement, 1))
    for what, _, entry in detect.course(path):
        for name, one in sorted(entry.observations.items()):
            failed = one.violated > 0.0
            if one.checked:
                rows[name] = rows[name] + 1 if failed else 0
            values = np.array([one.checked]), np.array([one.violated])
            contradicted = judges[name].step(entry.time_ns, ("host",), np.zeros(1, dtype=np.intp), *values)
            seen = found[name]
            seen.update(ticks=1, checked=int(one.checked > 0.0), failed=int(failed), contradicted=len(contradicted))
            seen["failed_in_a_fault"] += failed and "fault" in what
            seen["longest_row"] = max(seen["longest_row"], rows[name])
    return {name: dict(seen) for name, seen in sorted(found.items())}


TOLD = (0.0, 0.5, 0.8, 2.0)


def tampered(path: Path) -> dict[str, dict[str, dict[str, int]]]:
    """A probe that tells a share of what it counted, its witness untouched: in how many ticks its check fails (all that
    a rule of one failure would see) and in how many the rule contradicts it."""
    found: dict[str, dict[str, dict[str, int]]] = {}
    ticks = [entry for _, _, entry in detect.course(path)]
    for name, (count, witness, skew) in detect.LIARS.items():
        for told in TOLD:
            rule, check, seen = Disagreement(1), CountWitness(skew), Counter(ticks=0, failed=0, contradicted=0)
            for entry in ticks:
                facts = entry.observations[name].facts
                checked, failed = check.check(told * facts.get(count, 0.0), facts.get(witness, 0.0))
                values = np.array([checked]), np.array([failed])
                contradicted = rule.step(entry.time_ns, ("host",), np.zeros(1, dtype=np.intp), *values)
                seen.update(ticks=1, failed=int(failed), contradicted=len(contradicted))
            found.setdefault(name, {})[f"{told:g} of it"] = dict(seen)
    return found


def impossible(path: Path) -> dict[str, int]:
    """Recorded ticks of the kernel surface with a decision, and those of them with a distribution that the broker would
    hold to be impossible beside its events. The host is honest: the latter is wrong evidence."""
    model = SurfaceModel(KERNEL, detect.SURFACES[KERNEL], ModelSettings())
    check, found = DecisionCheck(), Counter(ticks=0, impossible=0)
    learnt = ""
    for _, _, entry in detect.course(path):
        here = {name: entry.observations[name] for name in detect.SURFACES[KERNEL] if name in entry.observations}
        result = model.step(entry.index, here)
        if model.baseline is None or result.decision is None:
            continue
        if model.baseline.baseline_id != learnt:
            learnt = model.baseline.baseline_id
            check.learn(Kept("host", learnt, model.baseline.to_json()))
        surface = pb.Surface(name=KERNEL, decision=pb.Decision(baseline_id=result.decision.baseline_id))
        for name, p in result.distributions.items():
            shown = p.astype("<f4").tobytes()
            surface.observations.add(vantage=name, events=result.events[name], distribution=shown)
        found.update(ticks=1, impossible=int(check.conserves("host", surface) is not True))
    return dict(found)


class Said(NamedTuple):
    """Verdict on one tick: whether the fleet is in ALARM, and which hosts are named and accused."""

    alarm: bool
    named: frozenset[int] = frozenset()
    accused: frozenset[int] = frozenset()


Judge = Callable[[np.ndarray, np.ndarray], Said]  # distributions (N, A), evidence (N,)


def c2_of(p: np.ndarray, f: int, centre: str) -> tuple[float, np.ndarray]:
    """C_2 and every host's divergence, about the mean or, without the f farthest, about the geometric median."""
    away = divergences(p, geometric_median(p, tolerance=1e-6).point if centre == "median" else p.mean(axis=0))
    return (c2_gm(away, f) if centre == "median" else 1.0 - float(jsd(p))), away


def by_source(window: np.ndarray, f: int, centre: str, mcd: bool) -> Judge:
    """001 sec. 14 on C_2: D^2 of all, D^2 without the most anomalous one, theta = 0.6; cut-offs from the window."""

    def law(values: np.ndarray) -> tuple[float, float]:
        if not mcd:
            return float(values.mean()), float(values.var()) + 1e-12
        fit = fit_scatter(values[:, None], np.array([1e-12]), small_sample=False)
        return float(fit.location[0]), float(fit.covariance[0, 0])

    f_left = min(f, (window.shape[1] - 2) // 2)
    whole = np.array([c2_of(p, f, centre)[0] for p in window])
    less = np.array([c2_of(p[1:], f_left, centre)[0] for p in window])
    (mean, variance), (mean_less, variance_less) = law(whole), law(less)
    limit = Tail.fit((whole - mean) ** 2 / variance, 0.1).score_at(float(np.log(0.01)))

    def judge(p: np.ndarray, _: np.ndarray) -> Said:
        value, away = c2_of(p, f, centre)
        d2 = (value - mean) ** 2 / variance
        if d2 < limit:
            return Said(False)
        worst = int(away.argmax())
        rest = (c2_of(np.delete(p, worst, axis=0), f_left, centre)[0] - mean_less) ** 2 / variance_less
        if not fleet.is_divergent(Phase.ALARM, d2, rest):
            return Said(True)
        return Said(True, frozenset([worst]), frozenset([worst]))

    return judge


def by_fleet(window: np.ndarray, f: int) -> Judge:
    """The fleet decision on standardised own distances."""
    law = window.mean(axis=(0, 1))
    own = divergences(window.reshape(-1, window.shape[-1]), law)
    mean, deviation = float(own.mean()), float(own.std())

    def z_of(p: np.ndarray) -> np.ndarray:
        return ((divergences(p, law) - mean) / deviation)[:, None]

    learnt = [fleet.bau_statistics(z_of(p), f, turn) for turn, p in enumerate(window)]
    baseline = fleet.fit_baseline(np.stack(learnt), f)

    def judge(p: np.ndarray, evidence: np.ndarray) -> Said:
        decision = fleet.decide(z_of(p), evidence, baseline)[0]
        named = frozenset(one.host for one in decision.suspects)
        accused = frozenset(one.host for one in decision.suspects if one.label is fleet.Label.SUSPECTED_BYZANTINE)
        return Said(decision.phase >= Phase.ALARM, named, accused)

    return judge


def settled(judge: Judge, ticks: np.ndarray) -> Iterator[Said]:
    """Verdicts that held in each of the last three of the ticks (T, N, A + 1)."""
    recent: deque[Said] = deque(maxlen=IN_A_ROW)
    for tick in ticks:
        recent.append(judge(tick[:, :-1], tick[:, -1].astype(np.intp) * int(fleet.Evidence.WITNESS)))
        if len(recent) < IN_A_ROW:
            yield Said(False)
            continue
        named, accused = (frozenset.intersection(*(one[part] for one in recent)) for part in (1, 2))
        yield Said(all(one.alarm for one in recent), named, accused)


def lie(strategy: str, ticks: np.ndarray, f: int, law: np.ndarray, old: np.ndarray) -> np.ndarray:
    """The ticks (T, N, A + 1) with the first f hosts lying, and their witnesses disagreeing."""
    told = ticks.copy()
    strange = np.eye(len(law))[-1]
    for t in range(len(ticks)):
        mass = {"point": 1.0, "collusion": 0.1, "drift": min(0.005 * t, 1.0)}.get(strategy, 0.0)
        told[t, :f, :-1] = (1.0 - mass) * law + mass * strange
    if strategy == "replay":
        told[:, :f] = old[:, :f]
    told[:, :f, -1] = 1.0
    return told


def rates(judges: Mapping[str, Judge], case: Case, episodes: int) -> dict[str, Any]:
    """Rates over episodes. Where the others are ill an alarm is what should come, else that a liar is named."""
    found: dict[str, Any] = {}
    for name, judge in judges.items():
        caught, delays, right, wrong, accused_wrongly = 0, [], 0, 0, 0
        for episode in range(episodes):
            said = list(settled(judge, case.made(episode)))
            liars = frozenset(range(case.f))
            at = next((t for t, one in enumerate(said) if (one.alarm if case.fault else one.named & liars)), None)
            caught += at is not None
            delays += [] if at is None else [at + 1]
            named = frozenset().union(*(one.named for one in said))
            right, wrong = right + len(named & liars), wrong + len(named - liars)
            accused_wrongly += bool(frozenset().union(*(one.accused for one in said)) - liars)
        found[name] = {
            "caught": round(caught / episodes, 3),
            "ticks": round(statistics.median(delays), 1) if delays else None,
            "right_of_named": round(right / (right + wrong), 3) if right + wrong else None,
            "honest_accused": round(accused_wrongly / episodes, 3),
        }
    return found


def run(given: argparse.Namespace) -> Result:
    episodes = given.episodes or (20 if given.full else 5)
    with threadpool_limits(1):
        evidence = Evidence(witnessed(given.recording), impossible(given.recording), tampered(given.recording))
        result = _study(recorded(given.recording), evidence, episodes)
    if given.plot:
        given.plot.write_text(drawn(result.details["table"]))
    return result


class Evidence(NamedTuple):
    """What :func:`witnessed`, :func:`impossible` and :func:`tampered` found."""

    checks: Mapping[str, Mapping[str, int]]
    distributions: Mapping[str, int]
    tampered: Mapping[str, Mapping[str, Mapping[str, int]]]

    @property
    def wrong(self) -> int:
        """Ticks with evidence against the host, which is honest."""
        return self.distributions["impossible"] + sum(seen["contradicted"] for seen in self.checks.values())

    def show(self) -> None:
        """Print it."""
        for name, seen in self.checks.items():
            done = f"{seen['checked']} of {seen['ticks']} ticks"
            failed = f"{seen['failed']} ({seen['failed_in_a_fault']} in a fault)"
            rows = f"in a row {seen['longest_row']}, contradicted in {seen['contradicted']}"
            print(f"{name:9} checks done in {done}, failed in {failed}, {rows}")
        said = self.distributions
        print(f"distributions that their events cannot give: in {said['impossible']} of {said['ticks']} ticks")
        for name, told in self.tampered.items():
            for share, seen in told.items():
                of = f"fails in {seen['failed']}, contradicted in {seen['contradicted']} of {seen['ticks']} ticks"
                print(f"{name:9} that tells {share}: {of}")


def _study(source: Recorded, evidence: Evidence, episodes: int) -> Result:
    evidence.show()
    stretches = {name: len(part) for name, part in source._asdict().items()}
    disagreed = {name: int(part[..., -1].sum()) for name, part in source._asdict().items()}
    print(f"stretches of {STRETCH} ticks: {stretches}; ticks in which the witness disagreed: {disagreed}")
    table: dict[str, Any] = {}
    for hosts in (5, 16, 100):
        for f in sorted({1, hosts // 4, (hosts - 1) // 2}):
            table[f"N={hosts} f={f}"] = cases = _cases(source, hosts, f, episodes)
            _print(f"N={hosts} f={f}", cases)
    accused = max(case["fleet"]["honest_accused"] for cases in table.values() for case in cases.values())
    seeds = [cases["honest, one local fault"]["mean"]["honest_accused"] for cases in table.values()]
    details = {
        "conditions": f"{episodes} episodes of {EPISODE} ticks a case; stretches {stretches}",
        "witness_disagreed": disagreed,
        "own_checks": evidence.checks,
        "distributions": evidence.distributions,
        "tampered_probes": evidence.tampered,
        "point_mass_caught_at_least": min(cases["point"]["fleet"]["caught"] for cases in table.values()),
        "source_accuses_an_honest_fault_at_least": min(seeds),
        "table": table,
    }
    unit = "share of episodes in which the fleet decision accuses an honest host"
    holds = accused == 0.0 and not evidence.wrong and details["point_mass_caught_at_least"] >= 0.95
    return Result(accused, unit, 0.0, holds, details)


JUDGES: Mapping[str, Callable[[np.ndarray, int], Judge]] = {
    "mean": partial(by_source, centre="mean", mcd=False),
    "median": partial(by_source, centre="median", mcd=False),
    "mcd": partial(by_source, centre="mean", mcd=True),
    "fleet": by_fleet,
}


class Case(NamedTuple):
    """made: ticks (T, N, A + 1) of an episode. f: how many of the first hosts lie. fault: the others are ill."""

    made: Callable[[int], np.ndarray]
    f: int
    fault: bool


def calibration(source: Recorded, hosts: int, f: int) -> np.ndarray:
    """Quiet ticks (CALIBRATION, N, A) that the judges learn from."""
    return hosts_ticks(np.random.default_rng((hosts, f)), source.calibration, hosts, CALIBRATION)[..., :-1]


def cases_of(source: Recorded, hosts: int, f: int) -> dict[str, Case]:
    """What is judged, by name."""
    law = calibration(source, hosts, f).mean(axis=(0, 1))

    def of(pool: np.ndarray, seed: int) -> np.ndarray:
        return hosts_ticks(np.random.default_rng((hosts, seed)), pool, hosts, EPISODE)

    def one_ill(seed: int) -> np.ndarray:
        ticks = of(source.judged, seed)
        ticks[:, 0] = of(source.fault, seed)[:, 0]
        return ticks

    def told(strategy: str, seed: int) -> np.ndarray:
        true = of(source.weak if strategy in FAULT_LIES else source.judged, seed)
        return lie(strategy, true, f, law, of(source.judged, seed))

    honest = {
        "honest, quiet": Case(partial(of, source.judged), 0, fault=False),
        "honest, one local fault": Case(one_ill, 0, fault=False),
        "honest, all weakly ill": Case(partial(of, source.weak), 0, fault=True),
    }
    lies = {
        strategy: Case(partial(told, strategy), f, fault=strategy in FAULT_LIES) for strategy in QUIET_LIES + FAULT_LIES
    }
    return honest | lies


def _cases(source: Recorded, hosts: int, f: int, episodes: int) -> dict[str, Any]:
    window = calibration(source, hosts, f)
    judges = {name: made(window, f) for name, made in JUDGES.items()}
    return {name: rates(judges, case, episodes) for name, case in cases_of(source, hosts, f).items()}


def _print(title: str, cases: Mapping[str, Any]) -> None:
    """Per judge: share of episodes caught / ticks to that / right among the named / episodes with an honest accused."""
    print(f"\n{title:26}" + "".join(f"{name:>24}" for name in ("mean", "median", "mcd", "fleet")))
    for case, found in cases.items():
        cells = []
        for one in found.values():
            right = "-" if one["right_of_named"] is None else f"{one['right_of_named']:.2f}"
            ticks = "-" if one["ticks"] is None else f"{one['ticks']:g}"
            cells.append(f"{one['caught']:.2f}/{ticks:>4}/{right:>4}/{one['honest_accused']:.2f}")
        print(f"{case:26}" + "".join(f"{cell:>24}" for cell in cells))


def drawn(table: Mapping[str, Mapping[str, Any]]) -> str:
    """The table as an SVG: per case, N, f and judge the share caught, or the share with an honest host accused."""
    cell, left, top = 16, 170, 60
    cases = list(next(iter(table.values())))
    names = list(next(iter(next(iter(table.values())).values())))
    group = cell * len(names) + 12
    width, height = left + group * len(table) + 10, top + (cell + 4) * len(cases) + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
        'font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="4" y="14">columns: {", ".join(names)}; blue: caught, red: honest accused</text>',
    ]
    for at, (title, rows) in enumerate(table.items()):
        x0 = left + group * at
        parts.append(f'<text x="{x0}" y="{top - 8}">{title}</text>')
        for row, case in enumerate(cases):
            y = top + (cell + 4) * row
            if not at:
                parts.append(f'<text x="4" y="{y + 12}">{case}</text>')
            for column, name in enumerate(names):
                one = rows[case][name]
                accused = one["honest_accused"]
                color, share = ("#c0392b", accused) if accused else ("#2471a3", one["caught"])
                said = f"{title}, {case}, {name}: caught {one['caught']:g}, honest accused {accused:g}"
                parts.append(
                    f'<rect x="{x0 + cell * column}" y="{y}" width="{cell - 1}" height="{cell}" stroke="#bbb" '
                    f'fill="{color}" fill-opacity="{share:g}"><title>{said}</title></rect>'
                )
    return "\n".join([*parts, "</svg>", ""])
