# SPDX-License-Identifier: Apache-2.0
"""Does C_4 find falsehoods? Small transformers, trained in the run on made-up worlds of facts, are asked and graded.

A world (``bench.fact_world``) has facts that are taught truly, with a share of wrong sentences, hardly or not at all;
its replicas are models of one corpus and several seeds. The vantage's own clients ask them over HTTP
(``bench.model_server``), every canary in five other wordings that were never taught with its fact: at temperature 0,
and at temperature 1 with four repetitions. The encoder is the first replica's own embedding of words, so that none of
L-AI-A4 holds. Answers are one to three words, so that W <= delta_4 comes out as "the same answer": what an encoder
makes of long answers is not tested here.

A canary is a positive of its arm when fewer than half of the replicas answer it truly, and a negative, of every arm,
when it was taught truly (often, or in one or two sentences) and more than half do. Scores, larger for falser:

- 1 - C_4 at temperature 0, and at 1 ("warm"); 1 - C_4^net at 1; CBF on C_4 at 0, with limits from the other worlds;
- rivals: words of the answer; its perplexity; how often two answers to the same prompt differ at temperature 1; their
  entropy over answers that mean the same, of each replica and of all together; how often two replicas differ at 0.

AUROC with intervals from a bootstrap over worlds, and over prompts inside them; also against the facts alone that were
taught often and truly (``against_sound``), without the hard negatives, and with a wording in the canary's place that
was never taught with the fact (``c4_unseen``).

Replica divergence: four replays of one model at temperature 0.3 and at 1, of which the last may be rounded to 8 bits,
have noise on its last block, come from another world's corpus, or have lost the first tokens of every prompt (cold
context). Attribution at 5 % by distance from the others (phi:
the embedding of each word; exact W_2) and, as a rival that needs the truth, by wrong answers; AUROC of that replica's
mean excess and of the group's C_2^W2. These answers come from the engines in the process, without HTTP: hundreds of
groups need hundreds of thousands.

No bar is given for an AUROC: .5 is chance. It holds when nobody is named in healthy groups more often than the level
says and, with ``--full``, every arm had 100 positives.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import aiohttp
import numpy as np
from scipy.stats import binom
from threadpoolctl import threadpool_limits

from bench import fact_world
from bench.fact_world import SOUND, TAIL, UNTAUGHT
from bench.harness import Result
from bench.model_server import serving
from mvps.ai.encoder import Encoder
from mvps.ai.prompts import Canary
from mvps.ai.replica import Answer, Replica, Sampling
from mvps.semantic import c4, calibrated, cbf
from mvps.semantic.attribution import attribute, leave_out_excess
from mvps.semantic.transport import transport

SUMMARY = "does C_4 find falsehoods: models trained in the run, beside length, perplexity and entropy (needs torch)"
ARMS: Mapping[str, tuple[str, ...]] = {
    "partial": ("dose 25", "dose 50", "dose 75"),
    "dose 25": ("dose 25",),
    "dose 50": ("dose 50",),
    "dose 75": ("dose 75",),
    "full": ("dose 100",),
    "natural": (UNTAUGHT,),
}
SCORES = (
    "c4",
    "c4_warm",
    "c4_net",
    "cbf",
    "length",
    "perplexity",
    "resampling",
    "entropy",
    "entropy_group",
    "replicas",
)
SAMPLES = 5
CALIBRATING = 30
MOST_WORDS = 6
LEAST_POSITIVES = 100
NOISE = 0.5
COLD = 3  # tokens that are lost: the beginning's and the first two words
LEVEL = 0.05
PERMUTATIONS = 199
SIZES = (10, 20, 40, 80, 160)
TEMPERATURES = (0.3, 1.0)
GROUP = 4


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--worlds", type=int, default=0, help="default 2, with --full 10; at least 2")
    parser.add_argument("--seeds", type=int, default=0, help="replicas of a world (default 3, with --full 4)")
    parser.add_argument("--entities", type=int, default=80, help="of a world; each has six facts")
    parser.add_argument("--epochs", type=int, default=5, help="over the corpus")
    parser.add_argument("--groups", type=int, default=60, help="of four replays, per world and fault")


class Heard(NamedTuple):
    """Answers to one canary of N replicas: plain and in K other words at temperature 0, and at 1 with repetitions."""

    first: list[Answer]  # (N,)
    other: list[list[Answer]]  # (N, K)
    samples: list[list[Answer]]  # (N, SAMPLES)
    warm: list[list[Answer]]  # (N, K)

    def texts(self) -> list[str]:
        """All texts there are."""
        rows = (*self.other, *self.samples, *self.warm)
        return [text for one in itertools.chain(self.first, *rows) if (text := said(one)) is not None]


class Judged(NamedTuple):
    """One world's canaries as numbers, (P,): kinds; right: share of replicas that answered truly; scores by name.

    plain_c4: C_4 itself. unseen_*: the same with a wording that was never taught in the place of the canary.
    """

    kinds: np.ndarray
    right: np.ndarray
    scores: dict[str, np.ndarray]
    plain_c4: np.ndarray
    unseen_c4: np.ndarray
    unseen_right: np.ndarray
    calibration: np.ndarray
    delta: float
    outcomes: Counter[str]


def said(answer: Answer) -> str | None:
    """Text of an answer, None where nothing can be compared."""
    return answer.text if answer.outcome.comparable else None


async def ask_world(
    canaries: Sequence[Canary], engines: Mapping[str, Any], samples: int = SAMPLES
) -> tuple[list[Heard], dict[str, np.ndarray], int]:
    """All canaries asked of all engines over HTTP; unit vectors of every answer; number of questions."""
    heard = []
    async with serving(engines) as server, aiohttp.ClientSession() as session:
        replicas = [Replica(session, name, server.url, name, logprobs=True) for name in engines]
        encoder = Encoder(session, server.url, next(iter(engines)))

        async def one(
            replica: Replica, canary: Canary, seeds: Iterator[int]
        ) -> tuple[Answer, list[Answer], list[Answer], list[Answer]]:
            cold = Sampling(MOST_WORDS, 0.0)
            plain = await replica.ask(canary.text, cold)
            other = [await replica.ask(text, cold) for text in canary.rephrasings]
            again = [await replica.ask(canary.text, Sampling(MOST_WORDS, 1.0, next(seeds))) for _ in range(samples)]
            warm = [await replica.ask(text, Sampling(MOST_WORDS, 1.0, next(seeds))) for text in canary.rephrasings]
            return plain, other, again, warm

        stride = samples + max(len(canary.rephrasings) for canary in canaries)
        begins = itertools.count(step=stride)  # drawn before anything is awaited: a run can be repeated
        for canary in canaries:
            rows = await asyncio.gather(*(one(replica, canary, itertools.count(next(begins))) for replica in replicas))
            heard.append(Heard(*(list(column) for column in zip(*rows, strict=True))))
        texts = list(dict.fromkeys(text for row in heard for text in row.texts()))
        vectors = [await encoder.encode(texts[k : k + 256]) for k in range(0, len(texts), 256)]
        return heard, dict(zip(texts, np.concatenate(vectors), strict=True)), server.requests


class Distances:
    """W_2 between texts, each pair once. clouds: the points of a text."""

    def __init__(self, clouds: Callable[[str], np.ndarray]) -> None:
        self._clouds = clouds
        self._known: dict[tuple[str, str], float] = {}

    def __call__(self, a: str | None, b: str | None) -> float:
        """NaN where one is missing."""
        if a is None or b is None:
            return math.nan
        pair = (a, b) if a <= b else (b, a)
        if pair not in self._known:
            self._known[pair] = transport(self._clouds(pair[0]), self._clouds(pair[1])).distance
        return self._known[pair]

    def from_one(self, a: Answer, others: Sequence[Answer]) -> list[float]:
        """From one answer to each of the others."""
        return [self(said(a), said(b)) for b in others]

    def between(self, answers: Sequence[Answer]) -> np.ndarray:
        """Of all pairs of answers."""
        return np.array([self(said(a), said(b)) for a, b in itertools.combinations(answers, 2)])


def entropy_of_classes(distances: Callable[[str, str], float], texts: Sequence[str], threshold: float) -> float:
    """Entropy in nats of answers sorted into classes: each joins the first class it is within the threshold of."""
    classes: list[tuple[str, int]] = []
    for text in texts:
        for k, (head, count) in enumerate(classes):
            if distances(head, text) <= threshold:
                classes[k] = (head, count + 1)
                break
        else:
            classes.append((text, 1))
    share = np.array([count for _, count in classes], dtype=float) / max(len(texts), 1)
    return float(-(share * np.log(share)).sum())


def judge_world(facts: Sequence[fact_world.Fact], heard: Sequence[Heard], vectors: Mapping[str, np.ndarray]) -> Judged:
    """Grades and scores of every canary. The first CALIBRATING sound facts are for delta_4 and not judged.

    SystemExit when the models know too few of them.
    """
    distance = Distances(lambda text: vectors[text][None])
    kinds = np.array([fact.kind for fact in facts])
    calibration = np.zeros(len(facts), dtype=bool)
    calibration[np.flatnonzero(kinds == SOUND)[:CALIBRATING]] = True
    same = [
        distance(said(row.first[0]), said(row.other[0][0]))
        for fact, row, chosen in zip(facts, heard, calibration, strict=True)
        if chosen and said(row.first[0]) == said(row.other[0][0]) == fact.value
    ]
    try:
        delta = c4.delta(np.array(same))
    except ValueError as error:
        raise SystemExit(f"bench: the models learned too little, give more epochs or entities ({error})") from None
    columns: dict[str, list[float]] = {name: [] for name in (*SCORES, "right", "unseen_c4", "unseen_right")}
    for fact, row in zip(facts, heard, strict=True):
        for name, value in _scores(fact.value, row, distance, delta).items():
            columns[name].append(value)
    made = {name: np.array(column) for name, column in columns.items() if name != "cbf"}
    scores = {name: made[name] for name in SCORES if name != "cbf"}
    answers = (one for row in heard for part in row for item in part for one in _flat(item))
    return Judged(
        kinds,
        made["right"],
        scores,
        1.0 - scores["c4"],
        made["unseen_c4"],
        made["unseen_right"],
        calibration,
        delta.value,
        Counter(str(one.outcome) for one in answers),
    )


def _flat(item: Answer | list[Answer]) -> list[Answer]:
    return item if isinstance(item, list) else [item]


def _scores(truth: str, row: Heard, distance: Distances, delta: c4.Delta) -> dict[str, float]:
    number = range(len(row.first))

    def stability(firsts: Sequence[Answer], others: Sequence[Sequence[Answer]]) -> c4.Stability | None:
        return c4.c4(np.array([distance.from_one(firsts[r], others[r]) for r in number]), delta)

    def differing(groups: Sequence[Sequence[Answer]]) -> float:
        far = np.concatenate([distance.between(group) for group in groups])
        return float((far[~np.isnan(far)] > delta.value).mean()) if (~np.isnan(far)).any() else math.nan

    drawn = [samples[0] for samples in row.samples]
    cold, unseen = stability(row.first, row.other), stability([o[0] for o in row.other], [o[1:] for o in row.other])
    warm, repeated = stability(drawn, row.warm), stability(drawn, [samples[1:] for samples in row.samples])
    nats = [-np.mean(one.logprobs) for one in row.first if one.logprobs]
    entropy = functools.partial(entropy_of_classes, distance, threshold=delta.value)
    known = [[text for one in samples if (text := said(one)) is not None] for samples in row.samples]
    return {
        "c4": 1.0 - cold.value if cold else math.nan,
        "c4_warm": 1.0 - warm.value if warm else math.nan,
        "c4_net": 1.0 - c4.c4_net(warm, repeated) if warm and repeated else math.nan,
        "length": float(np.mean([one.tokens for one in row.first])),
        "perplexity": float(np.mean(np.exp(nats))) if nats else math.nan,
        "resampling": differing(row.samples),
        "entropy": float(np.mean([entropy(texts) for texts in known])),
        "entropy_group": entropy(list(itertools.chain.from_iterable(known))),
        "replicas": differing([row.first]),
        "right": float(np.mean([said(one) == truth for one in row.first])),
        "unseen_c4": unseen.value if unseen else math.nan,
        "unseen_right": float(np.mean([said(other[0]) == truth for other in row.other])),
    }


def bootstrap(
    positives: Sequence[np.ndarray], negatives: Sequence[np.ndarray], resamples: int = 500, seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """AUROC of scores, larger for positives, pooled over worlds, and its 95 % interval.

    One array a world. Worlds are drawn first, then prompts inside each; NaN without positives or negatives.
    """
    rng = np.random.default_rng(seed)

    def pooled(wrong: Sequence[np.ndarray], right: Sequence[np.ndarray]) -> float:
        both = np.concatenate([*wrong, *right])
        false = np.arange(len(both)) < sum(map(len, wrong))
        return cbf.auroc(-both, false) if 0 < false.sum() < len(both) else math.nan

    value = pooled(positives, negatives)
    if math.isnan(value):
        return math.nan, (math.nan, math.nan)
    drawn = []
    for _ in range(resamples):
        chosen = rng.integers(0, len(positives), len(positives))
        part = [
            [rng.choice(of[k], len(of[k])) if len(of[k]) else of[k] for k in chosen] for of in (positives, negatives)
        ]
        drawn.append(pooled(part[0], part[1]))
    low, high = np.nanquantile(drawn, (0.025, 0.975))
    return value, (float(low), float(high))


def add_cbf(worlds: Sequence[Judged]) -> list[float]:
    """Add the score "cbf" to every world, 1 where C_4 is below the limit chosen on the other worlds; the limits."""
    chosen = []
    for k, judged in enumerate(worlds):
        parts = [_labelled(other) for j, other in enumerate(worlds) if j != k]
        found = cbf.limits(np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts]), resamples=50)
        chosen.append(found.alarm)
        judged.scores["cbf"] = (judged.plain_c4 < found.alarm).astype(float)
    return chosen


def _labelled(judged: Judged) -> tuple[np.ndarray, np.ndarray]:
    there = ~judged.calibration & (judged.right != 0.5) & ~np.isnan(judged.plain_c4)
    return judged.plain_c4[there], judged.right[there] < 0.5


def _sides(
    judged: Judged, kinds: Sequence[str], right: np.ndarray, true: Sequence[str] = (SOUND, TAIL)
) -> tuple[np.ndarray, np.ndarray]:
    """Which prompts are positives of an arm, and which are negatives, these of the kinds ``true``."""
    free = ~judged.calibration
    return (
        free & np.isin(judged.kinds, kinds) & (right < 0.5),
        free & np.isin(judged.kinds, true) & (right > 0.5),
    )


def consensus(worlds: Sequence[Judged]) -> dict[str, Any]:
    """AUROC of every score in every arm, and how often CBF is set."""
    arms: dict[str, Any] = {}
    for arm, kinds in ARMS.items():
        sides = [_sides(one, kinds, one.right) for one in worlds]
        found: dict[str, Any] = {"positives": sum(int(p.sum()) for p, _ in sides)}
        found["negatives"] = sum(int(n.sum()) for _, n in sides)
        asked = sum(int((np.isin(one.kinds, kinds) & ~one.calibration).sum()) for one in worlds)
        found["answered_truly"] = (
            asked
            - found["positives"]
            - sum(int((np.isin(one.kinds, kinds) & (one.right == 0.5)).sum()) for one in worlds)
        )
        for name in SCORES:
            found[name] = _rounded(*_auroc(worlds, sides, name))
        easy = [_sides(one, kinds, one.right, (SOUND,)) for one in worlds]
        found["against_sound"] = {name: _rounded(*_auroc(worlds, easy, name)) for name in SCORES}
        caught = np.concatenate([one.scores["cbf"][p] for one, (p, _) in zip(worlds, sides, strict=True)])
        found["cbf_set"] = round(float(caught.mean()), 3) if len(caught) else None
        unseen = [_sides(one, kinds, one.unseen_right) for one in worlds]
        scores = [-one.unseen_c4 for one in worlds]
        wrong = [s[p & ~np.isnan(s)] for s, (p, _) in zip(scores, unseen, strict=True)]
        right = [s[n & ~np.isnan(s)] for s, (_, n) in zip(scores, unseen, strict=True)]
        found["unseen_positives"] = sum(map(len, wrong))
        found["c4_unseen"] = _rounded(*bootstrap(wrong, right))
        arms[arm] = found
    return arms


def _auroc(worlds: Sequence[Judged], sides: Any, name: str) -> tuple[float, tuple[float, float]]:
    # An answer that did not come has no score; it is not among those compared, and outcomes count it.
    wrong = [(s := one.scores[name])[p & ~np.isnan(s)] for one, (p, _) in zip(worlds, sides, strict=True)]
    right = [(s := one.scores[name])[n & ~np.isnan(s)] for one, (_, n) in zip(worlds, sides, strict=True)]
    return bootstrap(wrong, right)


def _rounded(value: float, interval: tuple[float, float]) -> list[float] | None:
    return None if math.isnan(value) else [round(float(x), 3) for x in (value, *interval)]


def false_alarms(worlds: Sequence[Judged]) -> dict[str, Any]:
    """How often CBF is set on canaries that are answered truly, by how they were taught."""
    found = {}
    for kind in (SOUND, TAIL):
        set_ = np.concatenate(
            [one.scores["cbf"][~one.calibration & (one.kinds == kind) & (one.right > 0.5)] for one in worlds]
        )
        found[kind] = {"prompts": len(set_), "set": round(float(set_.mean()), 3) if len(set_) else None}
    return found


class Divergence(NamedTuple):
    """Of groups with one fault: for each of SIZES, mean excess of the last replica, group's C_2^W2, who was named.

    named, right: (G, S), by distance; by_grade: the last replica rightly named by wrong answers, (G, S).
    """

    excess: np.ndarray
    c2: np.ndarray
    named: np.ndarray
    right: np.ndarray
    by_grade: np.ndarray


def diverge(
    healthy: Any,
    last: Any,
    asked: Sequence[tuple[Canary, str]],
    temperature: float,
    groups: int,
    distance: Distances,
    seed: int,
) -> Divergence:
    """Groups of four replays, the last of them by ``last``; prompts are drawn anew for every group."""
    rng = np.random.default_rng((31, seed))

    def answer(model: Any, text: str) -> str | None:
        return " ".join(one.word for one in model.generate(text, MOST_WORDS, temperature, rng)[0]) or None

    texts = [canary.text for canary, _ in asked]
    once, twice = ([answer(healthy, text) for text in texts] for _ in range(2))
    same = np.array([distance(a, b) for a, b in zip(once, twice, strict=True)])
    unrelated = np.array([distance(a, b) for a, b in zip(once, twice[1:], strict=False)])
    scale = calibrated.anchors(same[~np.isnan(same)], unrelated[~np.isnan(unrelated)])
    sizes = [size for size in SIZES if size <= len(asked)]
    shape = (groups, len(sizes))
    made = Divergence(*(np.zeros(shape) for _ in range(2)), *(np.zeros(shape, dtype=bool) for _ in range(3)))
    for group in range(groups):
        chosen = [asked[k] for k in rng.permutation(len(asked))[: sizes[-1]]]
        said_by = [[answer(m, one.text) for m in (healthy, healthy, healthy, last)] for one, _ in chosen]
        between = np.array([[[distance(a, b) for b in row] for a in row] for row in said_by])
        wrong = np.array(
            [
                [np.nan if a is None else float(a != truth) for a in row]
                for row, (_, truth) in zip(said_by, chosen, strict=True)
            ]
        )
        excess, families = leave_out_excess(between), [one.family for one, _ in chosen]
        coherence = np.array([c.value if (c := calibrated.c2_w2(one, scale)) else np.nan for one in between])
        for column, size in enumerate(sizes):
            made.excess[group, column] = np.nanmean(excess[:size, -1])
            made.c2[group, column] = np.nanmean(coherence[:size])
            top = attribute(excess[:size], families[:size], PERMUTATIONS, seed=group)[0]
            made.named[group, column] = top.p_value <= LEVEL
            made.right[group, column] = top.p_value <= LEVEL and top.replica == GROUP - 1
            graded = attribute(wrong[:size], families[:size], PERMUTATIONS, seed=group)[0]
            made.by_grade[group, column] = graded.p_value <= LEVEL and graded.replica == GROUP - 1
    return made


def divergence(found: Mapping[str, Sequence[Divergence]], sizes: Sequence[int]) -> tuple[dict[str, Any], bool]:
    """Figures of all faults beside the healthy groups, and whether the latter were accused no more than promised."""
    quiet = found["healthy"]
    accused = np.concatenate([one.named for one in quiet]).sum(axis=0)
    groups = sum(len(one.named) for one in quiet)
    # One in a thousand for each size and temperature: true rates of LEVEL are called too large once in a hundred runs.
    most = int(binom.ppf(0.999, groups, LEVEL))
    table: dict[str, Any] = {
        "prompts": list(sizes),
        "groups": groups,
        "accused_healthy": [int(x) for x in accused],
        "accused_at_most": most,
    }
    for fault, parts in found.items():
        if fault == "healthy":
            continue
        rows: dict[str, Any] = {}
        for name, sign in (("excess", 1.0), ("c2", -1.0)):
            rows[f"auroc_{name}"] = [
                _rounded(
                    *bootstrap(
                        [sign * getattr(one, name)[:, k] for one in parts],
                        [sign * getattr(one, name)[:, k] for one in quiet],
                    )
                )
                for k in range(len(sizes))
            ]
        named = np.concatenate([one.right for one in parts]).mean(axis=0)
        rows["named"] = [round(float(x), 3) for x in named]
        rows["named_by_grade"] = [
            round(float(x), 3) for x in np.concatenate([one.by_grade for one in parts]).mean(axis=0)
        ]
        rows["prompts_for_90"] = next((size for size, x in zip(sizes, named, strict=True) if x >= 0.9), None)
        table[fault] = rows
    return table, bool((accused <= most).all())


def run(given: argparse.Namespace) -> Result:
    # Here, not above: without torch the benchmark is still listed, and says what to install.
    from bench import small_transformer

    small_transformer.torch.set_num_threads(1)
    count, seeds = given.worlds or (10 if given.full else 2), given.seeds or (4 if given.full else 3)
    if count < 2 or seeds < 2:
        raise SystemExit("bench: at least two worlds (limits come from the others) and two replicas")
    vocabulary = fact_world.vocabulary(given.entities)
    worlds, judged, first, losses, train_s, ask_s, questions = [], [], [], [], 0.0, 0.0, 0
    with threadpool_limits(1):
        for number in range(count):
            world = fact_world.world(number, given.entities)
            begun = time.monotonic()
            made = [small_transformer.train(vocabulary, world.corpus, seed, given.epochs) for seed in range(seeds)]
            taken, begun = time.monotonic() - begun, time.monotonic()
            train_s += taken
            losses += [loss for _, loss in made]
            engines = {f"seed-{k}": model for k, (model, _) in enumerate(made)}
            canaries = fact_world.canaries(world.facts)
            heard, vectors, asked = asyncio.run(ask_world(canaries, engines))
            ask_s, questions = ask_s + time.monotonic() - begun, questions + asked
            worlds.append(world)
            judged.append(judge_world(world.facts, heard, vectors))
            first.append(made[0][0])
            print(f"world {number}: trained in {taken / seeds:.1f} s a replica, {asked} questions", flush=True)
        alarms = add_cbf(judged)
        arms = consensus(judged)
        for arm, row in arms.items():  # before the divergence, which takes long
            shown = "  ".join(f"{name} {row[name][0]:.2f}" for name in SCORES if row[name])
            print(f"{arm:8} {row['positives']:5} false  {shown}", flush=True)
        changed = {}
        tables, fair = {}, True
        for temperature in TEMPERATURES:
            # Of the first two worlds: a group is 640 answers, and ten worlds take longer than all the rest.
            found, changed, sizes = _diverge_all(worlds[:2], first[:2], temperature, given.groups)
            tables[str(temperature)], promised = divergence(found, sizes)
            fair = fair and promised
    details = {
        "conditions": f"{count} worlds, {seeds} replicas, {given.entities * len(fact_world.RELATIONS)} facts, "
        f"{given.epochs} epochs over {len(worlds[0].corpus)} sentences; one core",
        "seconds_a_replica": round(train_s / (count * seeds), 1),
        "loss": [round(min(losses), 3), round(max(losses), 3)],
        "questions_over_http": questions,
        "ms_a_question": round(1e3 * ask_s / max(questions, 1), 2),
        "outcomes": dict(sum((one.outcomes for one in judged), Counter())),
        "delta_4": [one.delta for one in judged],
        "truly_answered": {
            kind: round(float(np.mean(np.concatenate([one.right[one.kinds == kind] > 0.5 for one in judged]))), 3)
            for kind in fact_world.KINDS
        },
        "c4_alarm": [round(one, 3) for one in alarms],
        "arms": arms,
        "cbf_false_alarms": false_alarms(judged),
        "answers_changed_at_0": changed,
        "divergence_at_temperature": tables,
    }
    enough = min(arms[arm]["positives"] for arm in ("partial", "full", "natural"))
    figure = arms["partial"]["c4"][0] if arms["partial"]["c4"] else 0.0
    holds = fair and (enough >= LEAST_POSITIVES or not given.full)
    return Result(figure, "AUROC of C_4 at partial doses", 0.5, holds, details)


def _diverge_all(
    worlds: Sequence[fact_world.World], models: Sequence[Any], temperature: float, groups: int
) -> tuple[dict[str, list[Divergence]], dict[str, float], list[int]]:
    """Every fault in every world: the groups, the mean share of answers it changes at temperature 0, the sizes used."""
    found: dict[str, list[Divergence]] = {}
    shares: dict[str, list[float]] = {}
    asked: list[tuple[Canary, str]] = []
    for k, (world, healthy) in enumerate(zip(worlds, models, strict=True)):
        asked = list(zip(fact_world.canaries(world.facts), [fact.value for fact in world.facts], strict=True))
        distance = Distances(healthy.points)
        faults = {
            "healthy": healthy,
            "int8": healthy.int8(),
            "noise": healthy.corrupted(NOISE, seed=k),
            "wrong checkpoint": models[(k + 1) % len(models)],
            "cold context": healthy.cold(COLD),
        }
        for row, (name, last) in enumerate(faults.items()):
            found.setdefault(name, []).append(
                diverge(healthy, last, asked, temperature, groups, distance, 10 * k + row)
            )
            if name != "healthy":
                shares.setdefault(name, []).append(_changed(healthy, last, [one.text for one, _ in asked]))
    sizes = [size for size in SIZES if size <= len(asked)]
    return found, {name: round(float(np.mean(values)), 3) for name, values in shares.items()}, sizes


def _changed(healthy: Any, other: Any, texts: Sequence[str]) -> float:
    rng = np.random.default_rng(0)

    def plain(model: Any, text: str) -> list[str]:
        return [one.word for one in model.generate(text, MOST_WORDS, 0.0, rng)[0]]

    return float(np.mean([plain(healthy, text) != plain(other, text) for text in texts]))
