# SPDX-License-Identifier: Apache-2.0
"""Problems of a settings file are named with their line; tests/daemon/test_config.py has many more of one file."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict

from mvps.settings import toml_file
from mvps.settings.toml_file import ConfigError


class Replica(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    name: str
    weight: int = 1


class Pace(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    seconds: float = 1.0


class Group(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    replica: tuple[Replica, ...] = ()
    pace: Pace = Pace()


def problems(text: str) -> list[tuple[int, str]]:
    with pytest.raises(ConfigError) as caught:
        toml_file.parse(text, Group, "group.toml")
    return [(problem.line, problem.message) for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ('[[replica]]\nname = "a"\n[[replica]]\nname = "b"\nwieght = 2\n', 5, "known here: name, weight"),
        ('[[replica]]\nname = "a"\n\n[[replica]]\nweight = 2\n', 4, "replica[1].name"),
        ("[[replica]]\nname = 1\n[[replica]]\nname = 2\n", 4, "replica[1].name"),
        ('replica = [{name = "a"}, {nam = "b"}]\n', 1, 'unknown key "replica[1].nam"'),
        ("[pcae]\n", 1, "known here: [replica], [pace]"),
        ("[pace]\nsecs = 1.0\n", 2, "known here: seconds"),
    ],
)
def test_an_error_names_its_line_also_in_arrays_of_tables(text: str, line: int, words: str) -> None:
    found = problems(text)
    assert any(at == line and words in message for at, message in found), found


def test_what_fits_is_the_model() -> None:
    parsed = toml_file.parse('[[replica]]\nname = "a"\n[[replica]]\nname = "b"\nweight = 3\n', Group)
    assert [(r.name, r.weight) for r in parsed.replica] == [("a", 1), ("b", 3)]


def test_missing_unreadable_and_foreign_files_are_explained(tmp_path: Path) -> None:
    def load(name: str) -> Group:
        return toml_file.load(tmp_path / name, Group, "write one")

    with pytest.raises(ConfigError, match="no such file; write one"):
        load("none.toml")
    with pytest.raises(ConfigError, match="irectory"):
        load(".")
    (tmp_path / "binary").write_bytes(b"[pace]\n\xff\xfe")
    with pytest.raises(ConfigError, match=r"binary:2: not UTF-8"):
        load("binary")
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(toml_file.MAX_FILE_BYTES + 1)
    with pytest.raises(ConfigError, match="not a settings file"):
        load("huge")
