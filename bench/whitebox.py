# SPDX-License-Identifier: Apache-2.0
"""What reading the same tokens finds that answers do not: a transformer trained in the run, and replicas of it.

One model of a fact world (``bench.fact_world``) is the group; the replica beside it is the same in bfloat16, rounded to
8 bits, has noise on its last block (5, 20 and 50 % of each matrix's own standard deviation), or was trained on the same
corpus from another seed. On every fact's question, with the healthy model's answer to it, both are read
(``semantic.reading``): 1 - CKA of attention, divergence of attention rows, W of hidden states in units of that of
unrelated prompts, divergence of next-token laws. The rival needs no weights: does the answer change?

bfloat16 is what a replica may differ by without being ill, and so the healthy side: AUROC of each statistic, larger for
the fault, as the mean of 1, 3 and 10 prompts drawn at random; .5 is chance. The same model read twice must give the
same numbers. It holds when reading finds 8-bit weights within 10 prompts better than answers do.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from bench import fact_world
from bench.cbf import MOST_WORDS
from bench.embeddings import auroc
from bench.harness import Result
from mvps.semantic.reading import Reading, compare, hidden_distance, unpaired_cka

SUMMARY = "white box: what attention, hidden states and laws tell of a replica beside its answers (needs torch)"
STATISTICS = ("cka", "attention_jsd", "hidden", "next_jsd", "answers")
HEALTHY = "bfloat16"
SIZES = (1, 3, 10)
DRAWS = 400


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--entities", type=int, default=0, help="of the world; six facts each (default 40, --full 80)")
    parser.add_argument("--epochs", type=int, default=5, help="over the corpus")


def read_all(model: Any, asked: list[tuple[str, str]]) -> list[Reading]:
    """The replica's readings of every question with its answer."""
    return [model.read(question, answer) for question, answer in asked]


def answers(model: Any, questions: list[str]) -> list[str]:
    """At temperature 0."""
    rng = np.random.default_rng(0)
    return [" ".join(one.word for one in model.generate(text, MOST_WORDS, 0.0, rng)[0]) for text in questions]


def beside(one: list[Reading], other: list[Reading], unrelated: float) -> dict[str, np.ndarray]:
    """Every statistic of each prompt, (P,); larger for replicas that are less alike."""
    rows: dict[str, list[float]] = {name: [] for name in STATISTICS if name != "answers"}
    for a, b in zip(one, other, strict=True):
        found = compare([a, b])
        rows["cka"].append(1.0 - float(found.cka[0, 1]) if found.cka is not None else np.nan)
        rows["attention_jsd"].append(float(found.attention_jsd or 0.0))
        rows["hidden"].append(float(found.between[0, 1]) / unrelated)
        rows["next_jsd"].append(float(found.next_jsd or 0.0))
    return {name: np.array(values) for name, values in rows.items()}


def separation(far: np.ndarray, near: np.ndarray, prompts: int, seed: int = 0) -> float:
    """AUROC of means over so many prompts, drawn without replacement for each mean."""
    rng = np.random.default_rng((seed, prompts))
    far, near = far[~np.isnan(far)], near[~np.isnan(near)]

    def means(values: np.ndarray) -> list[float]:
        return [float(rng.choice(values, min(prompts, len(values)), replace=False).mean()) for _ in range(DRAWS)]

    return auroc(means(far), means(near))


def table(found: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, Any]:
    """Figures of every replica: medians, and AUROC beside the healthy one."""
    made: dict[str, Any] = {}
    for name, columns in found.items():
        row: dict[str, Any] = {"median": {key: float(f"{np.nanmedian(v):.2g}") for key, v in columns.items()}}
        row["answers_changed"] = round(float(columns["answers"].mean()), 3)
        if name != HEALTHY:
            row["auroc"] = {
                key: [round(separation(values, found[HEALTHY][key], size), 3) for size in SIZES]
                for key, values in columns.items()
            }
        made[name] = row
    return made


def run(given: argparse.Namespace) -> Result:
    from bench import small_transformer

    small_transformer.torch.set_num_threads(1)
    entities = given.entities or (80 if given.full else 40)
    world, words = fact_world.world(0, entities), fact_world.vocabulary(entities)
    questions = [canary.text for canary in fact_world.canaries(world.facts)]
    with threadpool_limits(1):
        begun = time.monotonic()
        model, other = (small_transformer.train(words, world.corpus, seed, given.epochs)[0] for seed in (0, 1))
        trained_s = time.monotonic() - begun
        replicas = {
            HEALTHY: model.rounded(),
            "int8": model.int8(),
            "noise 5 %": model.corrupted(0.05, 1),
            "noise 20 %": model.corrupted(0.2, 1),
            "noise 50 %": model.corrupted(0.5, 1),
            "another seed": other,
        }
        said = answers(model, questions)
        asked = list(zip(questions, said, strict=True))
        own = read_all(model, asked)
        again = read_all(model, asked)
        pairs = list(itertools.pairwise(own))
        unrelated = float(np.median([hidden_distance(a, b) for a, b in pairs]))
        null = float(np.nanmean([unpaired_cka(a, b) for a, b in pairs]))
        found = {}
        for name, replica in replicas.items():
            columns = beside(own, read_all(replica, asked), unrelated)
            changed = [a != b for a, b in zip(said, answers(replica, questions), strict=True)]
            found[name] = {**columns, "answers": np.array(changed, dtype=float)}
    twice = {key: float(np.nanmax(np.abs(values))) for key, values in beside(own, again, unrelated).items()}
    rows = table(found)
    for name, row in rows.items():
        shown = "  ".join(f"{key} {values[-1]:.2f}" for key, values in row.get("auroc", {}).items())
        print(f"{name:13} {row['answers_changed']:.3f} of the answers change  {shown}")
    ten = rows["int8"]["auroc"]
    figure = max(ten[key][-1] for key in STATISTICS if key != "answers")
    details = {
        "conditions": f"{len(asked)} facts, two models of two layers, {given.epochs} epochs; one core",
        "prompts": list(SIZES),
        "seconds_trained": round(trained_s, 1),
        "cka_of_unrelated_prompts": round(null, 3),
        "read_twice": twice,
        "replicas": rows,
    }
    rival = ten["answers"][-1]
    holds = figure > rival and max(twice.values()) <= 1e-5
    return Result(figure, "AUROC of 8-bit weights, ten prompts; the bar is that of answers", rival, holds, details)
