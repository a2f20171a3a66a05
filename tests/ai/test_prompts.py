# SPDX-License-Identifier: Apache-2.0
"""Prompt sets: what is written, what templates make of it, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from mvps.ai import prompts
from mvps.ai.prompts import MAX_REPHRASINGS, Canary, PromptSet
from mvps.settings import toml_file
from mvps.settings.toml_file import ConfigError


def parse(text: str) -> tuple[Canary, ...]:
    return toml_file.parse(text, PromptSet, "p.toml").canaries()


def test_the_starter_set_has_five_other_wordings_for_everything() -> None:
    canaries = prompts.load(None).canaries()
    assert len({one.family for one in canaries}) >= 5
    assert all(len(one.rephrasings) >= 5 and one.expect for one in canaries)
    assert all(one.text not in one.rephrasings for one in canaries)
    assert len({one.family for one in canaries[:5]}) == 5  # families take turns


def test_a_template_is_filled_in_every_way_and_the_first_is_the_prompt() -> None:
    (canary,) = parse(
        '[[family]]\nname = "f"\ntemplates = ["Where is {x}?", "{x} is where?"]\n'
        '[[family.prompt]]\nfill = {x = ["Rome", "the Eternal City"]}\nexpect = "Italy"\n'
    )
    assert canary.text == "Where is Rome?"
    assert set(canary.rephrasings) == {"Rome is where?", "Where is the Eternal City?", "the Eternal City is where?"}
    assert canary.expect == "Italy"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ('[[family]]\nname = "f"\n[[family.prompt]]\nexpect = "x"\n', 3, "either text, or fill"),
        ('[[family]]\nname = "f"\n[[family.prompt]]\ntext = "a"\nfill = {x = ["b"]}\n', 3, "either text, or fill"),
        ('[[family]]\nname = "f"\n[[family.prompt]]\nfill = {x = ["b"]}\n', 1, "the family has none"),
        ('[[family]]\nname = "f"\ntemplates = ["{y}?"]\n[[family.prompt]]\nfill = {x = ["b"]}\n', 1, "fills x"),
        ('[[family]]\nname = "f"\ntemplates = ["{x!r}?"]\n[[family.prompt]]\nfill = {x = ["b"]}\n', 1, "plain {name}"),
        ('[[family]]\nname = "f"\ntemplates = ["{x"]\n[[family.prompt]]\nfill = {x = ["b"]}\n', 1, "broken"),
        ('[[family]]\nname = "f"\ntemplates = ["{x.y}"]\n[[family.prompt]]\nfill = {x = ["b"]}\n', 1, "fills x"),
        ('[[family]]\nname = "f"\n[[family.prompt]]\ntext = "a"\nexpects = "b"\n', 5, "known here: text"),
        ('[[family]]\nname = "*"\n[[family.prompt]]\ntext = "a"\n', 2, "pattern"),
        (
            '[[family]]\nname = "f"\nprompt = [{text = "a"}]\n[[family]]\nname = "f"\nprompt = [{text = "b"}]\n',
            0,
            "twice",
        ),
        ("", 0, "family"),
    ],
)
def test_what_cannot_be_asked_is_named_with_its_line(text: str, line: int, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    found = [(problem.line, problem.message) for problem in caught.value.problems]
    assert any(at == line and words in message for at, message in found), found


def test_too_many_combinations_are_refused_before_they_are_made() -> None:
    fills = ", ".join(f'{slot} = ["1", "2", "3", "4", "5", "6", "7", "8", "9"]' for slot in "abcdefghij")
    with pytest.raises(ConfigError, match=f"more than {MAX_REPHRASINGS}"):
        parse(
            '[[family]]\nname = "f"\ntemplates = ["{a}{b}{c}{d}{e}{f}{g}{h}{i}{j}"]\n'
            f"[[family.prompt]]\nfill = {{{fills}}}\n"
        )


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="starter set"):
        prompts.load(tmp_path / "none.toml")
