# SPDX-License-Identifier: Apache-2.0
"""Does the surplus controller help text? Format breaks and task passes on a JSON task, beside rivals at equal KL.

Small transformers (``bench.json_transformer``), trained in the run by sloppy teachers and not for long
(``bench.json_world``), answer new prompts at temperature 1. Every arm sees the same prompts and the same noise (one
Gumbel variable for each prompt, place and token), so that arms differ only where their laws do:

    baseline            the model's own law p
    temperature         p at a lower temperature
    mirostat            Mirostat 2 (Basu et al., 2021): tokens of more surprise than mu are cut off, mu follows the
                        target surprise at a rate of .1
    mask                a grammar mask of the prompt's schema (llguidance): zero breaks, but answers that never end
    controller          ``mvps.serving.decoding`` as it stands: lambda .4, JSON structure as the checker, the goal that
                        it takes from the prompt, the span of 16 right answers as constraints, prose as a mode
    no ...              without one term of Gamma; *no gamma* without all; *with iT* at weight 1; *lambda 4*: ten times
                        as much of it
    look-ahead          with a bigram of the baseline's own answers, in every step
    structure alone     nothing but structure risk in J: the least that the machine can be
    mask + ...          behind the mask

**Equal KL.** KL(q||p) of each token's law to the model's own is computed exactly, over the whole vocabulary, along
the arm's own answers: its sum over an answer is the KL of laws of answers. Every arm with a knob is tuned, on prompts
of its own, to the mean KL a token of the controller at a budget of .010 nats, the text's, and the main ones again to
that at .020; behind the mask KL is that to the masked law ("added"), as what a mask costs lies in few answers and is no
choice of the other part. The mask has no knob. Curves show whole families.

Intervals: 95 %, bootstrap over models and over prompts inside them, of paired differences from the baseline and, for
the controller's arms, from the temperature of the same KL. F10 (``mvps.surplus.falsifiers``) is judged by the task's
pass rate, with one pair for each model. It holds when the comparison is fair: KL of temperature and controller equal
within 10 % (other arms that are not are listed), no token over its budget, no break behind the mask but by length and,
with ``--full``, 900 prompts an arm and a baseline that breaks 5 to 25 % of its answers.

The models learn what their teachers do wrong, so that the likeliest answer is mostly right: lower temperatures help
here by construction, as they do with models that were trained on more good answers than bad ones.
"""

from __future__ import annotations

import argparse
import json
import math
import pickle
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from bench import json_world
from bench.harness import WORK, Result
from bench.json_world import END, LONGEST_ANSWER, WORDS, Prompt
from mvps.serving.decoding import Decoding
from mvps.surplus.controller import Controller, Fallback, Modes, Requests, Settings, Step, Terrain
from mvps.surplus.falsifiers import Outcome, looking_ahead
from mvps.surplus.geometry import basis
from mvps.surplus.indicators import Band
from mvps.surplus.lookahead import Bigram
from mvps.surplus.minutes import Directive
from mvps.surplus.objective import DissipationWeights, ValueWeights
from mvps.surplus.structure import JsonStructure

SUMMARY = "format breaks and task passes of the controller and its rivals at equal KL (needs torch and llguidance)"
LAMBDA = 0.4
BUDGETS = (0.010, 0.020)
LEAST_PROMPTS = 900
SENSIBLE = (0.05, 0.25)
EQUAL_WITHIN = 0.1
ROWS = 300  # requests that are decoded at a time
_TRIES = 6
_EXEMPLARS = 16
_RESAMPLES = 2000
_MIROSTAT_RATE = 0.1
_TEMPERATURES = (0.95, 0.9, 0.8, 0.65, 0.5)
_BUDGET_CURVE = (0.003, 0.01, 0.03, 0.1, 0.3)
_SURPRISES = (1.0, 0.6, 0.4, 0.2, 0.1)

Array = npt.NDArray[np.floating]
Slots = npt.NDArray[np.int64]


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", type=int, default=0, help="training seeds (default 1, with --full 6)")
    parser.add_argument("--prompts", type=int, default=0, help="for each arm and model (default 200, with --full 900)")
    parser.add_argument("--steps", type=int, default=400, help="of training")
    parser.add_argument("--resume", action="store_true", help="take the models that a --full run had judged before")


class Part(Protocol):
    """Something that changes the law of the next token. Slots name requests, 0 to ROWS - 1."""

    def open(self, slot: int, asked: Prompt) -> None:
        """A request begins."""
        ...

    def move(self, logits: npt.NDArray[np.float32], slots: Slots) -> None:
        """Change the logits (n, V) in place."""
        ...

    def took(self, slots: Slots, tokens: Slots) -> None:
        """Tokens (n,) were drawn. A request ends with END."""
        ...

    def end(self, slots: Slots) -> None:
        """Requests were cut off."""
        ...


class _Plain:
    def open(self, slot: int, asked: Prompt) -> None:
        pass

    def move(self, logits: npt.NDArray[np.float32], slots: Slots) -> None:
        pass

    def took(self, slots: Slots, tokens: Slots) -> None:
        pass

    def end(self, slots: Slots) -> None:
        pass


@dataclass
class Temperature(_Plain):
    """Logits over a temperature above 0."""

    temperature: float

    def move(self, logits: npt.NDArray[np.float32], slots: Slots) -> None:
        logits /= np.float32(self.temperature)


@dataclass
class Mirostat(_Plain):
    """Mirostat 2: what surprises more than mu bits is cut off, the likeliest token never; mu begins at twice tau and
    follows the surprise of what was drawn, under the law that is left."""

    tau: float
    rate: float = _MIROSTAT_RATE
    mu: Array = field(default_factory=lambda: np.zeros(ROWS))
    _left: Array = field(default_factory=lambda: np.zeros((0, 0)))

    def open(self, slot: int, asked: Prompt) -> None:
        self.mu[slot] = 2.0 * self.tau

    def move(self, logits: npt.NDArray[np.float32], slots: Slots) -> None:
        surprise = -log_softmax(logits) / math.log(2.0)
        cut = surprise > np.maximum(self.mu[slots], surprise.min(axis=1))[:, None]
        logits[cut] = -np.inf
        self._left = -log_softmax(logits) / math.log(2.0)

    def took(self, slots: Slots, tokens: Slots) -> None:
        self.mu[slots] -= self.rate * (self._left[np.arange(len(tokens)), tokens] - self.tau)


class Mask(_Plain):
    """A grammar mask: only what the prompt's schema allows."""

    def __init__(self, library: Any, tokenizer: Any) -> None:
        self._library, self._tokenizer = library, tokenizer
        self._parsers: dict[int, Any] = {}

    def open(self, slot: int, asked: Prompt) -> None:
        grammar = self._library.LLMatcher.grammar_from_json_schema(json.dumps(json_world.schema(asked.wanted)))
        self._parsers[slot] = self._library.LLMatcher(self._tokenizer, grammar, log_level=0)

    def move(self, logits: npt.NDArray[np.float32], slots: Slots) -> None:
        for row, slot in enumerate(slots.tolist()):
            bits = np.frombuffer(self._parsers[slot].compute_bitmask(), dtype=np.uint8)
            allowed = np.unpackbits(bits, bitorder="little", count=logits.shape[1])
            logits[row, allowed == 0] = -np.inf

    def took(self, slots: Slots, tokens: Slots) -> None:
        for slot, token in zip(slots.tolist(), tokens.tolist(), strict=True):
            if token != END:
                self._parsers[slot].consume_token(token)


class Steered(_Plain):
    """The controller through the adapter that an engine would use.

    fallbacks: steps by cause, "none" for those that were steered. realised: sum of J = L - lambda Gamma, one step deep,
    of the tokens that were drawn among the candidates, and their number.
    """

    def __init__(self, controller: Controller, checker: JsonStructure, directive: Directive) -> None:
        self._checker, self._directive = checker, directive
        self._decoding = Decoding(controller, "json", b"s" * 16, lambda _: directive, lambda _: None)
        self._of: dict[int, int] = {}  # our slot -> the adapter's
        self._step: Step | None = None
        self.fallbacks: Counter[str] = Counter()
        self.realised = (0.0, 0)

    def open(self, slot: int, asked: Prompt) -> None:
        number = self._decoding.take_slot()
        self._of[slot] = number
        self._checker.open(number, json_world.schema(asked.wanted))
        self._decoding.open(number, "json", b"%d" % slot, 1.0, asked.tokens)

    def move(self, logits: npt.NDArray[np.float32], slots: Slots) -> None:
        self._step = step = self._decoding.step(logits, self._numbers(slots))
        causes, counts = np.unique(step.fallback, return_counts=True)
        self.fallbacks.update({Fallback(cause).name.lower(): int(n) for cause, n in zip(causes, counts, strict=True)})

    def took(self, slots: Slots, tokens: Slots) -> None:
        step, numbers = self._step, self._numbers(slots)
        assert step is not None
        value = step.value - self._directive.lam * step.dissipation
        chosen = value[step.candidates == tokens[:, None]]
        total, number = self.realised
        self.realised = total + float(chosen[np.isfinite(chosen)].sum()), number + len(chosen)
        self._decoding.sampled(numbers, tokens)
        self.end(slots[tokens == END])

    def end(self, slots: Slots) -> None:
        for slot in slots.tolist():
            number = self._of.pop(slot)
            self._decoding.close(number)
            self._checker.close(number)

    def _numbers(self, slots: Slots) -> Slots:
        return np.array([self._of[slot] for slot in slots.tolist()])


def log_softmax(logits: Array) -> npt.NDArray[np.float64]:
    """Log probabilities (n, V) in double precision; -inf stays."""
    z = logits.astype(np.float64)
    z -= z.max(axis=1, keepdims=True)
    normal: npt.NDArray[np.float64] = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    return normal


def divergence(log_q: Array, log_p: Array) -> npt.NDArray[np.float64]:
    """KL(q||p) (n,) in nats over the whole vocabulary."""
    q = np.exp(log_q)
    terms = np.zeros_like(q)
    np.subtract(log_q, log_p, out=terms, where=q > 0.0)
    total: npt.NDArray[np.float64] = np.maximum((q * terms).sum(axis=1), 0.0)
    return total


class Answers(NamedTuple):
    """What an arm made of P prompts: (P,) each. kl: nats an answer. added: without what a mask costs. largest: added in
    one token. seconds: in all, of the arm's own parts."""

    broke: npt.NDArray[np.bool_]
    passed: npt.NDArray[np.bool_]
    cut: npt.NDArray[np.bool_]
    kl: npt.NDArray[np.float64]
    added: npt.NDArray[np.float64]
    largest: float
    tokens: npt.NDArray[np.int64]
    seconds: float

    @property
    def added_a_token(self) -> float:
        """Mean of what is added a token, over all tokens."""
        return float(self.added.sum() / self.tokens.sum())


class Session(Protocol):
    """A batch of requests in an engine (``json_transformer.Session``)."""

    def logits(self) -> npt.NDArray[np.float32]: ...

    def extend(self, tokens: Slots) -> None: ...

    def keep(self, rows: Slots) -> None: ...


def decode(
    session: Callable[[list[list[int]]], Session], asked: Sequence[Prompt], parts: Sequence[Part], seed: int
) -> tuple[Answers, list[list[int]]]:
    """Answers to prompts, and their tokens. The noise is the same for every arm with the same seed and prompts."""
    said: list[list[int]] = [[] for _ in asked]
    kl, added, largest, seconds = np.zeros(len(asked)), np.zeros(len(asked)), 0.0, 0.0
    for begin in range(0, len(asked), ROWS):
        batch = asked[begin : begin + ROWS]
        noise = np.random.default_rng((53, seed, begin)).gumbel(size=(LONGEST_ANSWER, len(batch), len(WORDS)))
        engine = session([one.tokens for one in batch])
        slots = np.arange(len(batch))
        for slot, one in enumerate(batch):
            for part in parts:
                part.open(slot, one)
        for place in range(LONGEST_ANSWER):
            own = engine.logits()
            law, left = own.copy(), own
            started = time.perf_counter()
            for part in parts:
                part.move(law, slots)
                if isinstance(part, Mask):
                    left = law.copy()
            seconds += time.perf_counter() - started
            tokens = (law + noise[place, slots]).argmax(axis=1)
            log_q = log_softmax(law)
            more = divergence(log_q, log_softmax(left))
            kl[begin + slots] += more if left is own else divergence(log_q, log_softmax(own))
            added[begin + slots] += more
            largest = max(largest, float(more.max()))
            started = time.perf_counter()
            for part in parts:
                part.took(slots, tokens)
            seconds += time.perf_counter() - started
            for slot, token in zip(slots.tolist(), tokens.tolist(), strict=True):
                said[begin + slot].append(token)
            going = np.flatnonzero(tokens != END)
            slots = slots[going]
            if not len(going):
                break
            if len(going) < len(tokens):
                engine.keep(going)
            engine.extend(tokens[going])
        for part in parts:
            part.end(slots)
    grades = [json_world.grade(one.wanted, tokens) for one, tokens in zip(asked, said, strict=True)]
    return (
        Answers(
            np.array([one.broke for one in grades]),
            np.array([one.passed for one in grades]),
            np.array([tokens[-1] != END for tokens in said]),
            kl,
            added,
            largest,
            np.array([len(tokens) for tokens in said]),
            seconds,
        ),
        said,
    )


def tuned(measure: Callable[[float], float], target: float, first: float) -> float:
    """The knob with measure(knob) = target, where it grows about as a power of the knob: secants in logarithms."""
    knobs, found = [first], [measure(first)]
    slope = 1.0
    for _ in range(_TRIES - 1):
        if abs(found[-1] / target - 1.0) < 0.01:
            break
        step = math.log(target / found[-1]) / slope if found[-1] > 0.0 else math.log(8.0)
        knobs.append(knobs[-1] * math.exp(min(max(step, -3.0), 3.0)))
        found.append(measure(knobs[-1]))
        if found[-1] > 0.0 and found[-2] > 0.0 and knobs[-1] != knobs[-2]:
            seen = math.log(found[-1] / found[-2]) / math.log(knobs[-1] / knobs[-2])
            slope = min(max(seen, 0.2), 5.0)
    return min(zip(knobs, found, strict=True), key=lambda one: abs(one[1] - target))[0]


@dataclass(frozen=True)
class Recipe:
    """How an arm is made. make: knob -> its parts. first: a guess at the knob; like: the arm whose KL it has to have,
    "" where the knob is what it is."""

    make: Callable[[float], list[Part]]
    first: float
    like: str = ""


class Bench:
    """One model with what its arms need: the checker's tokenizer, the terrain, a bigram of the baseline's answers."""

    def __init__(self, model: Any, library: Any, number: int) -> None:
        self.model, self.number = model, number
        self._library = library
        self._tokenizer = tokenizer(library)
        table = model.embeddings
        right = prompts(number, _EXEMPLARS, "exemplars")
        axes = basis(np.stack([table[one.answer].mean(axis=0) for one in right]))
        self._terrain = Terrain(table, axes.astype(np.float32), modes())
        self._bigram: Bigram | None = None

    def learn(self, answers: Sequence[Sequence[int]]) -> None:
        """Take the history that paths are guessed from."""
        self._bigram = Bigram(np.array([token for one in answers for token in one]), len(WORDS))

    def mask(self) -> Part:
        return Mask(self._library, self._tokenizer)

    def steered(self, budget: float, settings: Settings, look: bool = False, lam: float = LAMBDA) -> Steered:
        """A controller with that budget in nats a token."""
        checker = JsonStructure(self._tokenizer, self._library.LLMatcher)
        requests = Requests(ROWS, self._terrain.axes.shape[0])
        controller = Controller(settings, self._terrain, requests, checker, self._bigram if look else None)
        box = math.sqrt(2.0 * budget)
        return Steered(controller, checker, Directive("", lam, budget, box, math.nan, Band.GREEN, False, False, look))


def tokenizer(library: Any) -> Any:
    """The world's tokens for llguidance."""

    class _Tokens:
        eos_token_id, bos_token_id, special_token_ids = END, None, tuple(range(END + 1))
        tokens = tuple(word.encode() if k > END else b"" for k, word in enumerate(WORDS))

        def __call__(self, text: bytes | str) -> list[int]:
            return json_world.tokenized(text.decode() if isinstance(text, bytes) else text)

    return library.LLTokenizer(library.TokenizerWrapper(_Tokens()))


def modes() -> Modes:
    """JSON and prose: what entering them costs, and going from one to the other."""
    of_token = np.full(len(WORDS), -1, dtype=np.int16)
    of_token[list(json_world.STRUCTURE)] = 0
    of_token[list(json_world.PROSE_TOKENS)] = 1
    return Modes(of_token, np.array([0.0, 50.0]), np.array([0.0, 4.0]), np.array([[0.0, 0.1], [0.1, 0.0]]))


def prompts(number: int, count: int, purpose: str) -> list[Prompt]:
    """New prompts for a model; every purpose has its own."""
    rng = np.random.default_rng((59, number, ("exemplars", "tuning", "judging").index(purpose)))
    return [json_world.prompt(rng) for _ in range(count)]


_GAMMA = DissipationWeights()
_NONE = DissipationWeights(0.0, 0.0, 0.0, 0.0, 0.0)
_VARIANTS: Mapping[str, Settings] = {
    "no drift": Settings(dissipation=replace(_GAMMA, drift=0.0)),
    "no mode flip": Settings(dissipation=replace(_GAMMA, mode_flip=0.0)),
    "no format debt": Settings(dissipation=replace(_GAMMA, format_debt=0.0)),
    "no routing": Settings(dissipation=replace(_GAMMA, routing=0.0)),
    "no gamma": Settings(dissipation=_NONE),
    "with iT": Settings(dissipation=replace(_GAMMA, tension=1.0)),
}


def recipes(bench: Bench, budget: float, every: bool) -> dict[str, Recipe]:
    """Arms at one budget of the controller, without the variants of Gamma unless every one is wanted.

    Those that others are matched to come before them.
    """
    plain = Settings()

    def steered(settings: Settings, look: bool = False, lam: float = LAMBDA) -> Callable[[float], list[Part]]:
        return lambda knob: [bench.steered(knob, settings, look, lam)]

    found = {
        "controller": Recipe(steered(plain), budget),
        "mask + controller": Recipe(lambda knob: [bench.mask(), bench.steered(knob, plain)], budget),
        "temperature": Recipe(_warm, 0.2, "controller"),
        "mirostat": Recipe(_mirostat, 0.4, "controller"),
        "look-ahead": Recipe(steered(plain, look=True), budget, "controller"),
        "structure alone": Recipe(steered(_alone()), 0.5, "controller"),
        "mask + temperature": Recipe(lambda knob: [bench.mask(), *_warm(knob)], 0.2, "mask + controller"),
    }
    if every:
        found |= {name: Recipe(steered(settings), budget, "controller") for name, settings in _VARIANTS.items()}
        found["lambda 4"] = Recipe(steered(plain, lam=10.0 * LAMBDA), budget, "controller")
    return found


def _alone() -> Settings:
    """Nothing but structure risk in J."""
    return Settings(value=ValueWeights(0.0, 0.0, 1.0, 0.0, 0.0), dissipation=_NONE)


def _warm(knob: float) -> list[Part]:
    """A temperature below 1, whose KL grows with the knob."""
    return [Temperature(1.0 / (1.0 + knob))]


def _mirostat(knob: float) -> list[Part]:
    return [Mirostat(1.0 / knob)]


class Judged(NamedTuple):
    """One model: answers of every arm, the knobs, what the controller's arms counted, and curves by family: (knob, KL a
    token, breaks, passes)."""

    answers: dict[str, Answers]
    knobs: dict[str, float]
    fallbacks: dict[str, Counter[str]]
    realised: dict[str, float]
    curves: dict[str, list[tuple[float, float, float, float]]]
    model_us: float


class Done(NamedTuple):
    """One model, with its loss and the seconds of its training."""

    judged: Judged
    loss: float
    training_s: float


def judge_model(bench: Bench, count: int, tuning_count: int, seed: int) -> Judged:
    """Tune every arm of one model, and let it answer."""
    tuning, judging = prompts(bench.number, tuning_count, "tuning"), prompts(bench.number, count, "judging")

    def answers(parts: Sequence[Part], asked: Sequence[Prompt]) -> tuple[Answers, list[list[int]]]:
        return decode(bench.model.session, asked, parts, seed)

    bench.learn(answers([], tuning)[1])
    found: dict[str, Answers] = {}
    started = time.monotonic()
    found["baseline"] = answers([], judging)[0]
    model_us = 1e6 * (time.monotonic() - started) / float(found["baseline"].tokens.sum())
    found["mask"] = answers([bench.mask()], judging)[0]
    knobs: dict[str, float] = {}
    fallbacks: dict[str, Counter[str]] = {}
    realised: dict[str, float] = {}
    for budget in BUDGETS:
        arms = recipes(bench, budget, every=budget == BUDGETS[0])
        wanted: dict[str, float] = {}
        for name, recipe in arms.items():

            def measure(knob: float, recipe: Recipe = recipe) -> float:
                return answers(recipe.make(knob), tuning)[0].added_a_token

            knob = tuned(measure, wanted[recipe.like], recipe.first) if recipe.like else recipe.first
            if any(other.like == name for other in arms.values()):
                wanted[name] = measure(knob)
            key, parts = arm_name(name, budget), recipe.make(knob)
            found[key], knobs[key] = answers(parts, judging)[0], knob
            if isinstance(parts[-1], Steered):
                fallbacks[key] = parts[-1].fallbacks
                total, number = parts[-1].realised
                realised[key] = total / max(number, 1)
    return Judged(found, knobs, fallbacks, realised, _curves(bench, judging[:ROWS], seed), model_us)


def arm_name(name: str, budget: float) -> str:
    """An arm at the KL of a controller with that budget."""
    return f"{name} @ {budget:g}"


def _curves(bench: Bench, asked: Sequence[Prompt], seed: int) -> dict[str, list[tuple[float, float, float, float]]]:
    """(knob, KL a token, breaks, passes) along each family."""
    families: dict[str, tuple[Sequence[float], Callable[[float], list[Part]]]] = {
        "temperature": (_TEMPERATURES, lambda knob: [Temperature(knob)]),
        "mirostat": (_SURPRISES, lambda knob: [Mirostat(knob)]),
        "controller": (_BUDGET_CURVE, lambda knob: [bench.steered(knob, Settings())]),
    }
    found = {}
    for name, (knobs, make) in families.items():
        rows = []
        for knob in knobs:
            one = decode(bench.model.session, asked, make(knob), seed)[0]
            rows.append((knob, one.added_a_token, float(one.broke.mean()), float(one.passed.mean())))
        found[name] = rows
    return found


def interval(values: Sequence[Array], rng: np.random.Generator) -> list[float]:
    """Mean with its 95 % interval; values (P,) of each model. Models are drawn, and prompts inside them."""
    models = [np.asarray(one, dtype=np.float64) for one in values]
    means = np.empty((_RESAMPLES, len(models)))
    for place in range(len(models)):
        picked = rng.integers(len(models), size=_RESAMPLES)
        for k, one in enumerate(models):
            rows = np.flatnonzero(picked == k)
            means[rows, place] = one[rng.integers(len(one), size=(len(rows), len(one)))].mean(axis=1)
    low, high = np.percentile(means.mean(axis=1), [2.5, 97.5])
    return [round(float(x), 4) for x in (np.mean([one.mean() for one in models]), low, high)]


def table(judged: Sequence[Judged]) -> dict[str, dict[str, Any]]:
    """Of every arm: shares and paired differences with intervals, KL and time."""
    rng = np.random.default_rng(61)
    rows: dict[str, dict[str, Any]] = {}
    for name in judged[0].answers:
        arms = [one.answers[name] for one in judged]
        row: dict[str, Any] = {
            "breaks": interval([one.broke for one in arms], rng),
            "passes": interval([one.passed for one in arms], rng),
            "cut_off": int(sum(one.cut.sum() for one in arms)),
            "kl_a_token": round(float(np.mean([one.kl.sum() / one.tokens.sum() for one in arms])), 5),
            "added_a_token": round(float(np.mean([one.added_a_token for one in arms])), 5),
            "kl_an_answer": interval([one.kl for one in arms], rng),
            "tokens": round(float(np.mean([one.tokens.mean() for one in arms])), 2),
            "us_a_token": round(
                1e6 * sum(one.seconds for one in arms) / sum(float(one.tokens.sum()) for one in arms), 1
            ),
        }
        for rival in ("baseline", *_rivals(name)):
            if rival != name:
                others = [one.answers[rival] for one in judged]
                pairs = list(zip(arms, others, strict=True))
                row[f"less {rival}"] = {
                    "breaks": interval([one.broke * 1.0 - other.broke for one, other in pairs], rng),
                    "passes": interval([one.passed * 1.0 - other.passed for one, other in pairs], rng),
                }
        if name in judged[0].knobs:
            row["knob"] = [round(one.knobs[name], 5) for one in judged]
        if name in judged[0].fallbacks:
            row["fallbacks"] = dict(sum((one.fallbacks[name] for one in judged), Counter()))
            row["j_realised"] = round(float(np.mean([one.realised[name] for one in judged])), 5)
        rows[name] = row
    return rows


def _rivals(name: str) -> list[str]:
    """What an arm is compared with beside the baseline, at the same KL."""
    kind, _, budget = name.partition(" @ ")
    if not budget:
        return []
    if kind == "mask + controller":
        return ["mask", f"mask + temperature @ {budget}"]
    if kind.startswith("mask"):
        return ["mask"]
    return [f"temperature @ {budget}", *([] if kind in ("temperature", "mirostat") else [f"controller @ {budget}"])]


def unequal(judged: Sequence[Judged], budget: float) -> dict[str, float]:
    """Arms whose mean KL a token is not that of the arm that they were tuned to: by what factor."""
    found = {}
    for name in judged[0].answers:
        kind, _, of = name.partition(" @ ")
        if of != f"{budget:g}" or kind in ("controller", "mask + controller"):
            continue
        like = arm_name("mask + controller" if kind.startswith("mask") else "controller", budget)
        ratio = float(
            np.mean([one.answers[name].added_a_token for one in judged])
            / np.mean([one.answers[like].added_a_token for one in judged])
        )
        if abs(ratio - 1.0) > EQUAL_WITHIN:
            found[name] = round(ratio, 3)
    return found


def run(given: argparse.Namespace) -> Result:
    # Here, not above: without them the benchmark is still listed, and says what to install.
    try:
        import llguidance
    except ImportError:
        raise SystemExit("bench: pip install llguidance (extra `ai`): it is the checker, and the mask") from None
    from bench import json_transformer

    json_transformer.torch.set_num_threads(1)
    models, count = given.models or (6 if given.full else 1), given.prompts or (LEAST_PROMPTS if given.full else 200)
    done: list[Done] = []
    with threadpool_limits(1):
        for number in range(models):
            kept = WORK / f"jsontask-{given.steps}-{count}-{number}.pickle"
            if given.resume and kept.exists():
                done.append(pickle.loads(kept.read_bytes()))
            else:
                started = time.monotonic()
                made = json_transformer.train(number, given.steps)
                seconds = time.monotonic() - started
                found = judge_model(Bench(made.model, llguidance, number), count, max(count // 3, 60), number)
                done.append(Done(found, made.loss, seconds))
                if given.full:
                    kept.write_bytes(pickle.dumps(done[-1]))
            one, now = done[-1], done[-1].judged.answers["baseline"]
            print(
                f"model {number}: trained in {one.training_s:.0f} s, loss {one.loss:.3f}, the baseline breaks "
                f"{now.broke.mean():.3f} and passes {now.passed.mean():.3f}",
                flush=True,
            )
    judged = [one.judged for one in done]
    rows = table(judged)
    off = {name: ratio for budget in BUDGETS for name, ratio in unequal(judged, budget).items()}
    verdicts = [f10(judged, budget) for budget in BUDGETS]
    for name, row in rows.items():
        less = row.get("less baseline", {})
        print(
            f"{name:26} breaks {row['breaks'][0]:.3f} {_shown(less.get('breaks'))}  passes {row['passes'][0]:.3f} "
            f"{_shown(less.get('passes'))}  KL {row['kl_a_token']:.4f}  {row['us_a_token']:.0f} us"
        )
    for budget, one in zip(BUDGETS, verdicts, strict=True):
        print(
            f"F10 at {budget:g}: {one.verdict}, {one.claim}: {one.effect:.4f} ({one.low:.4f} to {one.high:.4f}), "
            f"power {one.power:.2f}, {one.pairs} pairs {one.note}"
        )
    excess = max(one.answers[name].largest - one.knobs[name] for one in judged for name in one.fallbacks)
    masked = [one.answers[name] for one in judged for name in one.answers if name.startswith("mask")]
    unbroken = all(not (one.broke & ~one.cut).any() for one in masked)
    breaks = rows["baseline"]["breaks"][0]
    fair = not any("temperature" in name for name in off) and excess <= 1e-6 and unbroken
    if given.full:
        fair = fair and count >= LEAST_PROMPTS and SENSIBLE[0] <= breaks <= SENSIBLE[1]
    details = {
        "conditions": f"{models} models of {given.steps} steps, {count} prompts an arm and model, lambda {LAMBDA}, "
        "temperature 1, one core",
        "loss": [round(one.loss, 4) for one in done],
        "training_s_a_model": round(sum(one.training_s for one in done) / models, 1),
        "model_us_a_token": round(float(np.mean([one.model_us for one in judged])), 1),
        "arms": rows,
        "not_at_equal_kl": off,
        "largest_excess_nats": excess,
        "curves": {
            family: [
                [round(float(x), 4) for x in np.mean([one.curves[family][k] for one in judged], axis=0)]
                for k in range(len(judged[0].curves[family]))
            ]
            for family in judged[0].curves
        },
        "f10": {f"{budget:g}": _plainly(one) for budget, one in zip(BUDGETS, verdicts, strict=True)},
    }
    figure = rows[arm_name("controller", BUDGETS[0])][f"less temperature @ {BUDGETS[0]:g}"]["breaks"][0]
    return Result(figure, "breaks of the controller less those of a temperature of the same KL", 0.0, fair, details)


def f10(judged: Sequence[Judged], budget: float) -> Outcome:
    """F10 by the share of answers that are right, with and without looking ahead, at the same KL."""
    shares = [
        [float(one.answers[arm_name(name, budget)].passed.mean()) for one in judged]
        for name in ("look-ahead", "controller")
    ]
    return looking_ahead(*shares)


def _plainly(one: Outcome) -> dict[str, Any]:
    return {
        key: (None if math.isnan(value) else round(value, 4)) if isinstance(value, float) else value
        for key, value in one._asdict().items()
    }


def _shown(less: Sequence[float] | None) -> str:
    return f"({less[0]:+.3f}, {less[1]:+.3f} to {less[2]:+.3f})" if less else ""
