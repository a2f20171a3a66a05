# SPDX-License-Identifier: Apache-2.0
"""Made-up worlds of facts, (entity, relation) -> value, and what a model is taught of them in which words.

All worlds share words, entities, relations and possible values; which value is true, and what is taught, is drawn.
Every fact can be asked in 16 phrasings. Half of them, drawn for each fact, are taught with it; the others are taught
with other facts only, so that a model knows the words and has never seen them with this fact.

Kinds of facts: *sound*, taught truly; *dose 25, 50, 75, 100*, where that share of the taught phrasings, in per cent,
teaches one wrong value; *tail*, taught truly, in one or two sentences of the whole corpus; *untaught*.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mvps.ai.prompts import Canary, PromptSet

RELATIONS = {
    "capital": ("capital", "seat"),
    "river": ("river", "stream"),
    "founder": ("founder", "maker"),
    "color": ("color", "hue"),
    "metal": ("metal", "ore"),
    "bird": ("bird", "fowl"),
}
FRAMES = (
    "what is the {r} of {e} ?",
    "name the {r} of {e} .",
    "{e} has which {r} ?",
    "which {r} belongs to {e} ?",
    "tell me the {r} {e} has .",
    "the {r} of {e} is called ?",
    "for {e} give the {r} .",
    "say which {r} is that of {e} .",
)
PHRASINGS = 2 * len(FRAMES)
TAUGHT = PHRASINGS // 2
VALUES = 20  # possible ones of a relation
REPHRASINGS = 5
DOSES = (25, 50, 75, 100)
SOUND, TAIL, UNTAUGHT = "sound", "tail", "untaught"
KINDS = (SOUND, *(f"dose {dose}" for dose in DOSES), TAIL, UNTAUGHT)
# Shares of all facts in the order of KINDS, in twelfths.
_TWELFTHS = (4, 1, 1, 1, 1, 2, 2)
_ONSETS, _VOWELS = "bdfgklmnprstvz", "aeiou"


class Fact(NamedTuple):
    """One fact. taught: its taught phrasings by number, the poisoned ones first. others: those never taught with it.

    wrong: what the poisoned phrasings teach, "" if none does.
    """

    entity: str
    relation: str
    kind: str
    value: str
    wrong: str
    poisoned: int
    taught: tuple[int, ...]
    others: tuple[int, ...]

    def ask(self, phrasing: int) -> str:
        """The question in one of its phrasings."""
        frame, noun = divmod(phrasing, 2)
        return FRAMES[frame].format(r=RELATIONS[self.relation][noun], e=self.entity)


class World(NamedTuple):
    """Facts, and the corpus that teaches them: (question, answer) sentences in a drawn order."""

    facts: tuple[Fact, ...]
    corpus: tuple[tuple[str, str], ...]


def words(count: int, syllables: int) -> list[str]:
    """Made-up words, all different, the same ones always."""
    parts = [onset + vowel for onset in _ONSETS for vowel in _VOWELS]
    if count > len(parts) ** syllables:
        raise ValueError(f"there are not {count} words of {syllables} syllables")
    rng = np.random.default_rng((7, syllables))
    made: dict[str, None] = {}
    while len(made) < count:
        made["".join(rng.choice(parts, syllables))] = None
    return list(made)


def values() -> dict[str, list[str]]:
    """Possible values of every relation: one to three words, all different."""
    pool = words(60, 2)
    rng = np.random.default_rng(11)
    found: dict[str, None] = {}
    while len(found) < VALUES * len(RELATIONS):
        found[" ".join(rng.choice(pool, rng.integers(1, 4), replace=False))] = None
    flat = list(found)
    return {name: flat[k * VALUES : (k + 1) * VALUES] for k, name in enumerate(RELATIONS)}


def vocabulary(entities: int) -> list[str]:
    """Every word that can occur in a world with so many entities."""
    framed = {word for frame in FRAMES for word in frame.split() if not word.startswith("{")}
    nouns = {noun for pair in RELATIONS.values() for noun in pair}
    return [*sorted(framed | nouns), *words(60, 2), *words(entities, 3)]


def world(seed: int, entities: int = 80, repeats: int = 4) -> World:
    """A world. entities: every one has every relation. repeats: of each taught sentence in the corpus; not of the tail.

    ValueError for fewer entities than give every kind a fact.
    """
    number = entities * len(RELATIONS)
    if number < 12:
        raise ValueError(f"{number} facts are fewer than the 12 that have every kind")
    rng = np.random.default_rng((23, seed))
    counts = [number * share // 12 for share in _TWELFTHS]
    counts[0] += number - sum(counts)
    kinds = rng.permutation(np.repeat(KINDS, counts))
    possible = values()
    facts: list[Fact] = []
    corpus: list[tuple[str, str]] = []
    for entity in words(entities, 3):
        for relation in RELATIONS:
            kind = str(kinds[len(facts)])
            value, other = (str(one) for one in rng.choice(possible[relation], 2, replace=False))
            order = [int(one) for one in rng.permutation(PHRASINGS)]
            poisoned, taught = 0, TAUGHT
            if kind.startswith("dose"):
                poisoned = TAUGHT * int(kind.split()[1]) // 100
            elif kind == TAIL:
                taught = int(rng.integers(1, 3))
            elif kind == UNTAUGHT:
                taught = 0
            fact = Fact(
                entity,
                relation,
                kind,
                value,
                other if poisoned else "",
                poisoned,
                tuple(order[:taught]),
                tuple(order[TAUGHT:]),
            )
            facts.append(fact)
            for place, phrasing in enumerate(fact.taught):
                said = fact.wrong if place < poisoned else value
                corpus.extend([(fact.ask(phrasing), said)] * (1 if kind == TAIL else repeats))
    shuffled = rng.permutation(len(corpus))
    return World(tuple(facts), tuple(corpus[k] for k in shuffled))


def canaries(facts: tuple[Fact, ...]) -> list[Canary]:
    """One canary a fact, in their order: asked in a taught phrasing, a poisoned one if there is any.

    Its rephrasings were never taught with the fact. A fact nobody taught is asked in any phrasing.
    """
    by_relation: dict[str, list[dict[str, object]]] = {name: [] for name in RELATIONS}
    for fact in facts:
        first, *rest = (*fact.taught[:1], *fact.others)
        by_relation[fact.relation].append(
            {
                "text": fact.ask(first),
                "rephrasings": tuple(fact.ask(k) for k in rest[:REPHRASINGS]),
                "expect": fact.value,
            }
        )
    families = tuple({"name": name, "prompt": tuple(asked)} for name, asked in by_relation.items() if asked)
    made = {one.text: one for one in PromptSet.model_validate({"family": families}).canaries()}
    return [made[fact.ask((*fact.taught[:1], *fact.others)[0])] for fact in facts]
