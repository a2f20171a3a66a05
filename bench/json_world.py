# SPDX-License-Identifier: Apache-2.0
"""A made-up JSON task: prompts that name fields and values, the objects asked for, sloppy teachers, a strict grader.

A prompt names two to four of eight fields in a drawn order, with their values raw: strings with quotes, backslashes
and line ends in them, integers, a boolean, arrays of strings and of integers, and an object in the object. The answer
is one JSON object with exactly these fields, in the order of ``FIELDS``, strings escaped.

What a model is taught is not always right, as text from the world is not: so many answers in a hundred

    prose before      begin with words before the object           prose inside      have a remark after a comma
    bare              have one escape left out                     trailing          have a comma too many
    quoted            have a number in quotes                      wrong             have another value: no break

A remark between two strings of an array ends up in the second, and a bare backslash before an n is a line end: then the
value is wrong and the format is not broken.

The grader knows nothing of any of this: a *format break* is a text that ``json.loads`` refuses, that names a field
twice or is not of the prompt's schema; the task is *passed* by the right values. Tokens are pieces of text, several
bytes each and crossing the bounds of strings as those of real tokenizers do (``","`` closes one and opens the next).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

PAD, BEGIN, ASK, END = range(4)
_SPECIAL = ("<pad>", "<begin>", "<ask>", "<end>")
_MARKS = ('{"', '":', '":"', '","', ',"', '"}', "}", '":["', '":[', '"]', "]", '":{"', "{", "[", ":", ",", '"')
_ESCAPED = {'"': '\\"', "\\": "\\\\", "\n": "\\n"}
FIELDS: Mapping[str, str] = {
    "name": "string",
    "note": "string",
    "age": "integer",
    "size": "integer",
    "open": "boolean",
    "tags": "strings",
    "nums": "integers",
    "at": "object",
}
INNER: Mapping[str, str] = {"city": "string", "zip": "integer"}
PIECES = (
    *("red", "blue", "oslo", "rome", "ann", "bob", "cat", "dog", "elm", "fig"),
    *("oak", "ivy", "sun", "fog", "hat", "ink", "jar", "key", "map", "net"),
)
PROSE = ("sure", "here", "is", "the", "object", "note", "that", "this", "was", "done", "ok")
WORDS: tuple[str, ...] = (
    *_SPECIAL,
    *_MARKS,
    *_ESCAPED.values(),
    "\\",
    "\n",
    ";",
    "true",
    "false",
    *"0123456789",
    *FIELDS,
    *INNER,
    *PIECES,
    *(f" {word}" for word in PROSE),
)
_NUMBER = {word: k for k, word in enumerate(WORDS)}
STRUCTURE = tuple(_NUMBER[word] for word in _MARKS)
PROSE_TOKENS = tuple(_NUMBER[f" {word}"] for word in PROSE)
NEVER_SAID = (PAD, BEGIN, ASK, _NUMBER[";"])
FLAWS: Mapping[str, float] = {
    "prose before": 0.02,
    "prose inside": 0.03,
    "bare": 0.03,
    "trailing": 0.02,
    "quoted": 0.03,
    "wrong": 0.04,
}
LONGEST_PROMPT, LONGEST_ANSWER = 56, 60

Value = str | int | bool | list[str] | list[int] | dict[str, Any]


class Prompt(NamedTuple):
    """What is asked for. tokens: of the prompt, ASK included. wanted: the right object. answer: its tokens, END too."""

    tokens: list[int]
    wanted: dict[str, Value]
    answer: list[int]


def text_of(tokens: list[int]) -> str:
    """The text of an answer; nothing for special tokens."""
    return "".join(WORDS[token] for token in tokens if token > END)


def schema(wanted: Mapping[str, Value]) -> dict[str, Any]:
    """JSON Schema of the object asked for: these fields, all of them, nothing else."""
    return _object({name: FIELDS[name] for name in wanted})


def _object(kinds: Mapping[str, str]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {name: _kind(kind) for name, kind in kinds.items()},
        "required": list(kinds),
        "additionalProperties": False,
    }


def _kind(kind: str) -> dict[str, Any]:
    if kind == "object":
        return _object(INNER)
    if kind.endswith("s"):
        return {"type": "array", "items": {"type": kind[:-1]}}
    return {"type": kind}


class Grade(NamedTuple):
    """Of one answer. broke: no JSON of the schema. passed: the right values."""

    broke: bool
    passed: bool


def grade(wanted: Mapping[str, Value], said: list[int]) -> Grade:
    """Grade an answer's tokens; without END at its end it is cut off, and broken."""
    if not said or said[-1] != END:
        return Grade(True, False)
    try:
        found = json.loads(text_of(said), object_pairs_hook=_no_doubles)
    except ValueError:
        return Grade(True, False)
    kinds = {name: FIELDS[name] for name in wanted}
    if not _fits(found, kinds):
        return Grade(True, False)
    return Grade(False, found == wanted)


def _no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a field is named twice")
    return found


def _fits(value: Any, kinds: Mapping[str, str]) -> bool:
    if not isinstance(value, dict) or value.keys() != kinds.keys():
        return False
    return all(_is(value[name], kind) for name, kind in kinds.items())


def _is(value: Any, kind: str) -> bool:
    if kind == "object":
        return _fits(value, INNER)
    if kind.endswith("s"):
        return isinstance(value, list) and all(_is(one, kind[:-1]) for one in value)
    # In Python a boolean is an integer; in JSON Schema it is none.
    return isinstance(value, {"string": str, "integer": int, "boolean": bool}[kind]) and (
        kind == "boolean" or not isinstance(value, bool)
    )


class _Draw:
    """Values drawn for one prompt."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def value(self, kind: str) -> Value:
        rng = self._rng
        if kind == "string":
            return self._string(0.5)
        if kind == "integer":
            return int(rng.integers(0, 1000))
        if kind == "boolean":
            return bool(rng.integers(2))
        count = int(rng.integers(1, 4))
        if kind == "strings":
            return [self._string(0.1) for _ in range(count)]
        if kind == "integers":
            return [int(one) for one in rng.integers(0, 100, count)]
        return {name: self.value(of) for name, of in INNER.items()}

    def _string(self, special: float) -> str:
        parts = [str(one) for one in self._rng.choice(PIECES, self._rng.integers(1, 4))]
        if self._rng.random() < special:
            parts.insert(int(self._rng.integers(len(parts) + 1)), str(self._rng.choice(list(_ESCAPED))))
        return "".join(parts)


def _raw(value: Value) -> list[str]:
    """A value in a prompt: its pieces, raw; commas between the items of an array."""
    if isinstance(value, bool):
        return ["true" if value else "false"]
    if isinstance(value, int):
        return list(str(value))
    if isinstance(value, str):
        return pieces(value)
    if isinstance(value, dict):
        return [part for name, inner in value.items() for part in (name, *_raw(inner))]
    return [part for k, one in enumerate(value) for part in (*((",",) if k else ()), *_raw(one))]


def pieces(text: str) -> list[str]:
    """The pieces and special characters that a string is made of."""
    found, at = [], 0
    while at < len(text):
        size = 1 if text[at] in _ESCAPED else 3
        while text[at : at + size] not in _ESCAPED and text[at : at + size] not in PIECES:
            size += 1
            if size > 4:
                raise ValueError(f"{text!r} is not made of the words of this world")
        found.append(text[at : at + size])
        at += size
    return found


def tokenized(text: str) -> list[int]:
    """An object's text by the longest token that fits, from the left."""
    found, at = [], 0
    while at < len(text):
        size = next((n for n in range(6, 0, -1) if text[at : at + n] in _NUMBER), 0)
        if not size:
            raise ValueError(f"no token begins {text[at : at + 8]!r}")
        found.append(_NUMBER[text[at : at + size]])
        at += size
    return found


def prompt(rng: np.random.Generator) -> Prompt:
    """A drawn prompt and its right answer."""
    draw = _Draw(rng)
    names = [str(one) for one in rng.choice(list(FIELDS), rng.integers(2, 5), replace=False)]
    values = {name: draw.value(FIELDS[name]) for name in names}
    asked = [part for name in names for part in (name, *_raw(values[name]), ";")]
    wanted = {name: values[name] for name in FIELDS if name in values}
    return Prompt([BEGIN, *(_NUMBER[part] for part in asked), ASK], wanted, [*tokenized(_written(wanted)), END])


def _written(wanted: Mapping[str, Value]) -> str:
    return json.dumps(wanted, separators=(",", ":"))


def taught(asked: Prompt, rng: np.random.Generator) -> list[int]:
    """An answer as a teacher gives it: mostly the right one (``FLAWS``)."""
    chance = rng.random()
    for flaw, share in FLAWS.items():
        if chance < share:
            return _FLAWED[flaw](asked, rng)
        chance -= share
    return asked.answer


def _prose(rng: np.random.Generator, least: int = 2) -> list[int]:
    return [int(one) for one in rng.choice(PROSE_TOKENS, rng.integers(least, least + 3))]


def _prose_before(asked: Prompt, rng: np.random.Generator) -> list[int]:
    return [*_prose(rng), *asked.answer]


def _prose_inside(asked: Prompt, rng: np.random.Generator) -> list[int]:
    # Behind what closes a value; the comma of an array's items is one token with its quotes or alone.
    places = [k for k, token in enumerate(asked.answer) if WORDS[token] in (',"', '","', ",")]
    at = int(rng.choice(places)) if places else 0
    return [*asked.answer[: at + 1], *_prose(rng), *asked.answer[at + 1 :]]


def _bare(asked: Prompt, rng: np.random.Generator) -> list[int]:
    backwards = {_NUMBER[escaped]: _NUMBER[raw] for raw, escaped in _ESCAPED.items()}
    places = [k for k, token in enumerate(asked.answer) if token in backwards]
    if not places:
        return asked.answer
    at = int(rng.choice(places))
    return [*asked.answer[:at], backwards[asked.answer[at]], *asked.answer[at + 1 :]]


def _trailing(asked: Prompt, rng: np.random.Generator) -> list[int]:
    closing = {'"}': ['"', ",", "}"], "}": [",", "}"]}
    last = WORDS[asked.answer[-2]]
    return [*asked.answer[:-2], *(_NUMBER[word] for word in closing[last]), END]


def _quoted(asked: Prompt, rng: np.random.Generator) -> list[int]:
    names = [name for name, value in asked.wanted.items() if FIELDS[name] == "integer"]
    if not names:
        return asked.answer
    name = str(rng.choice(names))
    changed: dict[str, Value] = {**asked.wanted, name: str(asked.wanted[name])}
    return [*tokenized(_written(changed)), END]


def _wrong(asked: Prompt, rng: np.random.Generator) -> list[int]:
    name = str(rng.choice(list(asked.wanted)))
    changed: dict[str, Value] = {**asked.wanted, name: _Draw(rng).value(FIELDS[name])}
    return [*tokenized(_written(changed)), END]


_FLAWED = {
    "prose before": _prose_before,
    "prose inside": _prose_inside,
    "bare": _bare,
    "trailing": _trailing,
    "quoted": _quoted,
    "wrong": _wrong,
}
