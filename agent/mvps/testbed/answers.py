# SPDX-License-Identifier: Apache-2.0
"""The testbed's language model: answers by rule, so that what a cold context does to them is known and not guessed.

A question names its context, ``[ctx ID] ...``. Asked warm, every replica says the same words, which the context alone
determines; asked cold, words that nobody could know without it, others for every question. One word in ten is said in
another form, close to the first in the encoder's space: the replay distance of a model that samples. A model that is
*corrupt* by a share says so many of its words from another context.

Arms: in ``coupled`` a miss makes the answer cold and puts the prefill in front of the first token. In ``stateless`` the
miss costs the prefill only: that is what an engine with prefix caching does whose clients send their whole context with
every request. In ``placebo`` it costs nothing. Hits and misses are counted alike in all three.
"""

from __future__ import annotations

import enum
import hashlib
import random
import re
from functools import lru_cache
from typing import Final

SENTENCES: Final = 4
SENTENCE_WORDS: Final = 10
TTFT_S: Final = 0.012
"""Time to the first token of a warm context, seconds."""
PREFILL_TOKENS_PER_S: Final = 16_000.0
OTHER_FORM: Final = 0.1
DIMENSIONS: Final = 32
_CONTEXT: Final = re.compile(r"\[ctx ([A-Za-z0-9._-]{1,64})\]")
_VOCABULARY: Final = 400
_FORMS: Final = 4
_FORM_DISTANCE: Final = 0.6
_LEAST_TOKENS, _MOST_TOKENS = 384, 640
MEAN_TOKENS: Final = (_LEAST_TOKENS + _MOST_TOKENS) / 2.0


class Arm(enum.Enum):
    """What a cache miss does to an answer."""

    COUPLED = "coupled"
    STATELESS = "stateless"
    PLACEBO = "placebo"


def context_of(prompt: str) -> str:
    """Id of the context that a question names; ValueError if it names none."""
    found = _CONTEXT.search(prompt)
    if found is None:
        raise ValueError("a question of the testbed names its context, as in [ctx user-3]")
    return found[1]


def tokens_of(context: str) -> int:
    """Length of a context in tokens, from its name."""
    return _LEAST_TOKENS + _draw("tokens", context).randrange(_MOST_TOKENS - _LEAST_TOKENS + 1)


def answer(context: str, arm: Arm, warm: bool, corrupt: float, sample: random.Random) -> list[str]:
    """The sentences of one answer. corrupt: share of words from elsewhere. sample: what this one answer draws from."""
    cold = arm is Arm.COUPLED and not warm
    own = _draw("answer", f"cold {sample.getrandbits(64):x}" if cold else context)
    other = _draw("answer", f"other {context}")
    said = []
    for _ in range(SENTENCES):
        words = []
        for _ in range(SENTENCE_WORDS):
            here, elsewhere = own.randrange(_VOCABULARY), other.randrange(_VOCABULARY)
            word = f"w{elsewhere if sample.random() < corrupt else here:03d}"
            words.append(f"{word}-{sample.randrange(_FORMS)}" if sample.random() < OTHER_FORM else word)
        said.append(" ".join(words) + ".")
    return said


def first_token_s(context: str, arm: Arm, warm: bool, sample: random.Random) -> float:
    """Seconds to the first token: a base with a tenth of noise, and the prefill where the arm charges a miss for it."""
    seconds = TTFT_S * (1.0 + 0.1 * sample.random())
    if arm is not Arm.PLACEBO and not warm:
        seconds += tokens_of(context) / PREFILL_TOKENS_PER_S
    return seconds


def embedding(text: str) -> list[float]:
    """Sum of one random vector for each word: equal words, equal place."""
    total = [0.0] * DIMENSIONS
    for word in text.lower().split():
        for place, value in enumerate(_vector(word.strip(".,;"))):
            total[place] += value
    return total


@lru_cache(4096)
def _vector(word: str) -> tuple[float, ...]:
    base, _, form = word.partition("-")
    draw = _draw("vector", base)
    vector = [draw.gauss(0.0, 1.0) for _ in range(DIMENSIONS)]
    if form:
        draw = _draw("vector", word)
        vector = [value + _FORM_DISTANCE * draw.gauss(0.0, 1.0) for value in vector]
    return tuple(vector)


def _draw(*of: str) -> random.Random:
    return random.Random(hashlib.sha256("\0".join(of).encode()).digest())
