# SPDX-License-Identifier: Apache-2.0
"""Prompt sets: what the replicas are asked, in which other words, and what may be expected.

A set is a TOML file of *families* (topics). A family's prompts are canaries; each has rephrasings that mean the
same (001 sec. 6.2: any grounded answer to the prompt answers them too). They are written out, or made from a
template by substituting one description of each named thing for another:

    [[family]]
    name = "capitals"
    templates = ["What is the capital of {country}?", "Name the capital city of {country}."]
    [[family.prompt]]
    fill = {country = ["France", "the French Republic"]}
    expect = "Paris"

The first template with the first fillings is the prompt; all other combinations are its rephrasings.
"""

from __future__ import annotations

import itertools
import string
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mvps.settings import toml_file

MAX_TEXT = 4096
MAX_REPHRASINGS = 64
MAX_PROMPTS = 10_000

_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
_Text = Annotated[str, Field(min_length=1, max_length=MAX_TEXT)]


@dataclass(frozen=True, slots=True)
class Canary:
    """One question of a family: its words, other words for it, and what a right answer contains ("" if unknown)."""

    family: str
    text: str
    rephrasings: tuple[str, ...]
    expect: str = ""


class PromptEntry(BaseModel):
    """A canary: written out (``text``, ``rephrasings``) or filled into its family's templates (``fill``)."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    text: Annotated[str, Field(max_length=MAX_TEXT)] = ""
    rephrasings: tuple[_Text, ...] = Field((), max_length=MAX_REPHRASINGS)
    fill: dict[str, tuple[_Text, ...]] = {}
    expect: Annotated[str, Field(max_length=MAX_TEXT)] = ""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if bool(self.text) == bool(self.fill):
            raise ValueError("write either text, or fill for the family's templates")
        if self.fill and self.rephrasings:
            raise ValueError("rephrasings of a filled prompt come from the templates; leave them out")
        if any(not values for values in self.fill.values()):
            raise ValueError("every slot of fill needs at least one filling")
        return self


class FamilyEntry(BaseModel):
    """One topic. Coherence is reported per replica and family."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: _Name
    templates: tuple[_Text, ...] = Field((), max_length=MAX_REPHRASINGS)
    prompt: tuple[PromptEntry, ...] = Field(min_length=1, max_length=MAX_PROMPTS)

    @model_validator(mode="after")
    def _slots(self) -> Self:
        for number, entry in enumerate(self.prompt):
            if not entry.fill:
                continue
            if not self.templates:
                raise ValueError(f"prompt[{number}] fills templates and the family has none")
            for template in self.templates:
                wanted = _slots_of(template)
                if wanted != entry.fill.keys():
                    raise ValueError(
                        f"prompt[{number}] fills {_listed(entry.fill.keys())} and the template "
                        f"{template!r} has {_listed(wanted)}"
                    )
            if len(_filled(self.templates, entry.fill)) > MAX_REPHRASINGS + 1:
                raise ValueError(f"prompt[{number}] makes more than {MAX_REPHRASINGS} rephrasings; use fewer fillings")
        return self

    def canaries(self) -> Iterator[Canary]:
        """The family's questions."""
        for entry in self.prompt:
            first, *others = _filled(self.templates, entry.fill) if entry.fill else (entry.text, *entry.rephrasings)
            yield Canary(self.name, first, tuple(others), entry.expect)


class PromptSet(BaseModel):
    """Families of canaries."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    family: tuple[FamilyEntry, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [family.name for family in self.family]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f'family "{twice[0]}" is there twice')
        number = sum(len(family.prompt) for family in self.family)
        if number > MAX_PROMPTS:
            raise ValueError(f"{number} prompts; at most {MAX_PROMPTS}")
        return self

    def canaries(self) -> tuple[Canary, ...]:
        """All questions, the families taking turns."""
        queues = [list(family.canaries()) for family in self.family]
        rounds = itertools.zip_longest(*queues)
        return tuple(one for taken in rounds for one in taken if one is not None)


def load(path: Path | None) -> PromptSet:
    """The prompt set of a file, or the starter set. ``ConfigError`` names what is wrong and its line."""
    if path is not None:
        return toml_file.load(path, PromptSet, "leave prompts.file out for the starter set")
    text = (resources.files("mvps.ai") / "starter.toml").read_text(encoding="utf-8")
    return toml_file.parse(text, PromptSet, "starter.toml")


def _slots_of(template: str) -> set[str]:
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"the template {template!r} is broken: {error}") from None
    if any(spec or conversion for _, _, spec, conversion in parts):
        raise ValueError(f"the template {template!r} formats a slot; write plain {{name}}")
    return {name for _, name, _, _ in parts if name is not None}


def _filled(templates: tuple[str, ...], fill: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Every template with every combination of fillings, in order, without repetitions."""
    slots = list(fill)
    combinations = itertools.islice(itertools.product(*fill.values()), MAX_REPHRASINGS + 2)
    made = [
        template.format(**dict(zip(slots, chosen, strict=True))) for chosen in combinations for template in templates
    ]
    return tuple(dict.fromkeys(made))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"
