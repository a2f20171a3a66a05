# SPDX-License-Identifier: Apache-2.0
"""Against the standard library's JSON parser and the schema's own meaning, with one token per byte."""

from __future__ import annotations

import json

import numpy as np
import pytest

llguidance = pytest.importorskip("llguidance")

from mvps.surplus.structure import JsonStructure, StructureError  # noqa: E402

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
TEXT = '{"name": "Ada", "age": 36}'


@pytest.fixture
def checker() -> JsonStructure:
    return JsonStructure(llguidance.LLTokenizer("byte"), llguidance.LLMatcher)


def feed(checker: JsonStructure, slot: int, text: str) -> None:
    for byte in text.encode():
        checker.advance(np.array([slot]), np.array([byte]))


def lengths(checker: JsonStructure, slot: int, *paths: str) -> list[int]:
    longest = max(map(len, paths))
    rows = [[*path.encode(), *[-1] * (longest - len(path))] for path in paths]
    return checker.valid_length(np.array([slot]), np.array([rows]))[0].tolist()


def test_every_prefix_of_a_good_text_goes_on_and_bad_ones_do_not(checker: JsonStructure) -> None:
    checker.open(3, SCHEMA)
    end = llguidance.LLTokenizer("byte").eos_token
    for i, character in enumerate(TEXT):
        assert not checker.complete(3), "json.loads would fail, too"
        with pytest.raises(json.JSONDecodeError):
            json.loads(TEXT[:i])
        assert lengths(checker, 3, character) == [1]
        assert checker.valid_length(np.array([3]), np.array([[[end]]]))[0, 0] == 0
        feed(checker, 3, character)
    assert json.loads(TEXT)
    assert checker.complete(3)
    assert checker.at_boundary(np.array([3])).tolist() == [True]
    assert checker.valid_length(np.array([3]), np.array([[[end], [ord("x")]]]))[0].tolist() == [1, 0]
    checker.advance(np.array([3]), np.array([end]))
    assert checker.broken(np.array([3])).tolist() == [False]


def test_paths_tell_where_they_break(checker: JsonStructure) -> None:
    checker.open(0, SCHEMA)
    feed(checker, 0, '{"name": "Ada"')
    assert lengths(checker, 0, ', "age": 3', ', "size"', "}", ', "age": x') == [10, 3, 0, 9]


def test_a_refused_token_breaks_its_slot_and_no_other(checker: JsonStructure) -> None:
    checker.open(0, SCHEMA)
    checker.open(1, SCHEMA)
    feed(checker, 0, "]")
    assert checker.broken(np.array([0, 1, 2])).tolist() == [True, False, True]
    assert lengths(checker, 0, "{") == [0]
    assert checker.at_boundary(np.array([0])).tolist() == [False]
    assert lengths(checker, 1, "{") == [1]
    checker.open(0, SCHEMA)
    assert checker.broken(np.array([0])).tolist() == [False]
    checker.close(0)
    assert checker.broken(np.array([0])).tolist() == [True]


def test_structural_tokens(checker: JsonStructure) -> None:
    marked = checker.structural(np.array([[*b'{},:"a 7', -1, 10**6]]))
    assert marked.tolist() == [[True] * 5 + [False] * 5]


def test_schemas_that_cannot_be_followed_say_so(checker: JsonStructure) -> None:
    with pytest.raises(StructureError, match="cannot be followed"):
        checker.open(0, {"type": "no such type"})
