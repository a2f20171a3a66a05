# SPDX-License-Identifier: Apache-2.0
"""A TOML file and the pydantic model it must fit.

A key that is unknown, of the wrong type or out of range is an error that names the file, the line and what
would be accepted. All problems of a file are reported at once.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

# Larger than any honest file; keeps a wrong path (a log, a device) from being read into memory.
MAX_FILE_BYTES = 1 << 20

Model = TypeVar("Model", bound=BaseModel)
# A key's place: names, and numbers for the entries of arrays.
Location = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a settings file: its line (0 when no line can be named) and what to do."""

    line: int
    message: str


class ConfigError(Exception):
    """A settings file that cannot be used. ``str()`` is one line per problem, ready for the user."""

    def __init__(self, path: Path | str, problems: Sequence[Problem]):
        self.path = str(path)
        self.problems = tuple(problems)
        super().__init__("\n".join(self._lines()))

    def _lines(self) -> Iterator[str]:
        for problem in self.problems:
            place = f"{self.path}:{problem.line}" if problem.line else self.path
            yield f"{place}: {problem.message}"


def parse(text: str, model: type[Model], path: Path | str = "<text>") -> Model:
    """``model`` from TOML text. :class:`ConfigError` lists every problem with its line."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        place = re.search(r"line (\d+)", str(error))
        line = int(place.group(1)) if place else text.count("\n") + 1
        detail = re.sub(r" \(at .*\)$", "", str(error))
        raise ConfigError(path, [Problem(line, f"not TOML: {detail}")]) from None
    try:
        return model.model_validate(_tuples(document))
    except ValidationError as error:
        lines = _key_lines(text)
        problems = [_problem(detail, lines, model) for detail in error.errors()]
        raise ConfigError(path, sorted(problems, key=lambda p: p.line)) from None


def load(path: Path | str, model: type[Model], if_missing: str) -> Model:
    """``model`` from a file. :class:`ConfigError` also for one that is unreadable or, with that advice, missing."""
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        advice = {
            FileNotFoundError: f"no such file; {if_missing}",
            PermissionError: "not readable by this user",
        }.get(type(error), error.strerror or str(error))
        raise ConfigError(path, [Problem(0, advice)]) from None
    if len(raw) > MAX_FILE_BYTES:
        raise ConfigError(path, [Problem(0, f"larger than {MAX_FILE_BYTES} bytes: not a settings file")])
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ConfigError(path, [Problem(line, "not UTF-8 text")]) from None
    return parse(text, model, path)


def _tuples(value: Any) -> Any:
    """TOML arrays as tuples, which strict validation wants for frozen fields."""
    if isinstance(value, list):
        return tuple(_tuples(v) for v in value)
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    return value


def _problem(detail: ErrorDetails, lines: dict[Location, int], model: type[BaseModel]) -> Problem:
    location: Location = detail["loc"]
    line = next((lines[location[:n]] for n in range(len(location), 0, -1) if location[:n] in lines), 0)
    key = ""
    for part in location:
        key += f"[{part}]" if isinstance(part, int) else f".{part}" if key else part
    if detail["type"] == "extra_forbidden":
        return Problem(line, f'unknown key "{key}"; known here: {", ".join(_siblings(location, model))}')
    if detail["type"] == "model_type":
        return Problem(line, f"{key}: is a table; write [{key}] on its own line and its keys below")
    message = detail["msg"].removeprefix("Value error, ")
    return Problem(line, f"{key}: {message[0].lower() + message[1:]}")


def _siblings(location: Location, model: type[BaseModel]) -> list[str]:
    """Keys that are known where ``location`` ends; tables in brackets."""
    for part in location[:-1]:
        inner = _model_in(model.model_fields[part].annotation) if part in model.model_fields else None
        model = inner or model
    return [f"[{n}]" if _model_in(f.annotation) else n for n, f in model.model_fields.items()]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model of a table, or of an array's tables."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inner in get_args(annotation) if (found := _model_in(inner))), None)


_HEADER = re.compile(r"^\s*(\[?)\[\s*([^\]]+?)\s*\]\]?\s*(#.*)?$")
_KEY = re.compile(r"""^\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*'))*)\s*=""")
_FENCE = re.compile(r'"""|\'\'\'')


def _key_lines(text: str) -> dict[Location, int]:
    """Line of every table header and key of a TOML text that already parsed.

    tomllib keeps no positions. A line scan is enough for what these files may hold: keys in inline tables
    fall back to the line of the key that holds the table.
    """
    lines: dict[Location, int] = {}
    entries: Counter[Location] = Counter()
    table: Location = ()
    fence = ""
    for number, line in enumerate(text.splitlines(), 1):
        if fence:
            fence = "" if fence in line else fence
            continue
        if header := _HEADER.match(line):
            table = _path(header.group(2))
            for depth in range(len(table) - 1, 0, -1):  # [[a.b]] is inside the last [[a]]
                if entries[table[:depth]]:
                    table = (*table[:depth], entries[table[:depth]] - 1, *table[depth:])
            lines.setdefault(table, number)
            if header.group(1):
                entries[table] += 1
                table = (*table, entries[table] - 1)
                lines[table] = number
        elif key := _KEY.match(line):
            path = (*table, *_path(key.group(1)))
            for depth in range(1, len(path) + 1):
                lines.setdefault(path[:depth], number)
            opened = _FENCE.findall(line[key.end() :])
            fence = opened[0] if len(opened) % 2 else ""
    return lines


def _path(dotted: str) -> Location:
    parts = re.findall(r"""[A-Za-z0-9_-]+|"[^"]*"|'[^']*'""", dotted)
    return tuple(part.strip("\"'") for part in parts)
