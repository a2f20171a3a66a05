# SPDX-License-Identifier: Apache-2.0
"""Right answers pass, every taught flaw does what it is called, and the grader agrees with llguidance."""

from __future__ import annotations

import json

import numpy as np
import pytest
from bench import json_world
from bench.json_world import END, FLAWS, LONGEST_ANSWER, LONGEST_PROMPT, WORDS, grade, schema, text_of

PROMPTS = [json_world.prompt(np.random.default_rng((1, k))) for k in range(400)]


def number(word: str) -> int:
    return WORDS.index(word)


def test_right_answers_pass_and_fit() -> None:
    assert len(set(WORDS)) == len(WORDS)
    for asked in PROMPTS:
        assert grade(asked.wanted, asked.answer) == (False, True)
        assert json.loads(text_of(asked.answer)) == asked.wanted
        assert len(asked.tokens) <= LONGEST_PROMPT
        assert len(asked.answer) <= LONGEST_ANSWER - 10
    specials = {token for asked in PROMPTS for token in asked.answer if WORDS[token] in ('\\"', "\\\\", "\\n")}
    assert len(specials) == 3, "strings that need an escape are asked for"
    assert any("at" in asked.wanted for asked in PROMPTS)


def test_a_prompt_has_its_values_raw() -> None:
    asked = next(one for one in PROMPTS if '"' in str(one.wanted.get("note", "")))
    words = [WORDS[token] for token in asked.tokens]
    note = words[words.index("note") + 1 :]
    assert "".join(note[: note.index(";")]) == asked.wanted["note"]


@pytest.mark.parametrize("flaw", FLAWS)
def test_flaws_do_what_they_are_called(flaw: str) -> None:
    rng = np.random.default_rng(3)
    grades = [grade(asked.wanted, json_world._FLAWED[flaw](asked, rng)) for asked in PROMPTS]
    changed = [one for one in grades if not one.passed]
    assert len(changed) > 0.2 * len(grades)
    broke = sum(one.broke for one in changed) / len(changed)
    if flaw in ("prose inside", "bare"):
        assert 0.7 < broke < 1.0, "some only change a value"
    else:
        assert broke == (flaw != "wrong")


def test_teachers_are_sloppy_as_often_as_it_says() -> None:
    rng = np.random.default_rng(4)
    many = PROMPTS * 10
    right = sum(json_world.taught(asked, rng) == asked.answer for asked in many) / len(many)
    # Some prompts have nothing that a flaw could touch; 4000 draws: five standard errors are .03.
    assert 1.0 - sum(FLAWS.values()) - 0.03 < right < 1.0 - 0.5 * sum(FLAWS.values())


@pytest.mark.parametrize(
    ("text", "broke"),
    [
        ('{"name":"oak","age":7}', False),
        ('{"age":7,"name":"oak"}', False),
        ('{"name":"oak","age":true}', True),
        ('{"name":"oak","age":"7"}', True),
        ('{"name":"oak"}', True),
        ('{"name":"oak","age":7,"age":7}', True),
        ('{"name":"oak","age":7,"size":7}', True),
        ('{"name":"oak","age":7', True),
        ('{"name":"o"ak","age":7}', True),
        ("[7]", True),
    ],
)
def test_the_grader_is_strict(text: str, broke: bool) -> None:
    tokens = [] if '"o"' in text else json_world.tokenized(text)
    if not tokens:
        tokens = [*json_world.tokenized('{"name":"oak'), number('"'), *json_world.tokenized('oak","age":7}')]
    assert grade({"name": "oak", "age": 7}, [*tokens, END]).broke == broke
    assert grade({"name": "oak", "age": 7}, tokens) == (True, False), "cut off"


def test_arrays_and_inner_objects_are_checked_to_their_ends() -> None:
    wanted = {"tags": ["oak"], "nums": [1, 2], "at": {"city": "rome", "zip": 3}}
    for text, broke in (
        ('{"tags":["oak"],"nums":[1,2],"at":{"city":"rome","zip":3}}', False),
        ('{"tags":[],"nums":[],"at":{"city":"rome","zip":3}}', False),
        ('{"tags":[1],"nums":[1],"at":{"city":"rome","zip":3}}', True),
        ('{"tags":["oak"],"nums":["oak"],"at":{"city":"rome","zip":3}}', True),
        ('{"tags":["oak"],"nums":[1],"at":{"city":"rome"}}', True),
        ('{"tags":["oak"],"nums":[1],"at":{"city":"rome","zip":"3"}}', True),
    ):
        assert grade(wanted, [*json_world.tokenized(text), END]).broke == broke, text


def test_strings_that_are_not_of_this_world_are_refused() -> None:
    with pytest.raises(ValueError, match="words of this world"):
        json_world.pieces("xyz")
    with pytest.raises(ValueError, match="no token begins"):
        json_world.tokenized("?")


def test_the_grader_agrees_with_a_grammar() -> None:
    llguidance = pytest.importorskip("llguidance")
    from bench.jsontask import tokenizer

    tokens, rng, seen = tokenizer(llguidance), np.random.default_rng(6), set()
    flaws = list(json_world._FLAWED.values())
    for asked in PROMPTS[:150]:
        for said in (asked.answer, *(flaw(asked, rng) for flaw in flaws)):
            grammar = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema(asked.wanted)))
            parser = llguidance.LLMatcher(tokens, grammar, log_level=0)
            takes = parser.try_consume_tokens(said[:-1]) == len(said) - 1 and parser.is_accepting()
            broke = grade(asked.wanted, said).broke
            seen.add(broke)
            assert takes != broke, text_of(said)
    assert seen == {False, True}
