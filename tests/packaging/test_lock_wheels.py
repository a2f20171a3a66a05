# SPDX-License-Identifier: Apache-2.0
"""What the packages carry is pinned by hash, covers pyproject.toml and meets its bounds."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
WANTED = {
    "agent.txt": [*PROJECT["project"]["dependencies"], *EXTRAS["probe"]],
    "broker.txt": [*EXTRAS["broker"], *EXTRAS["postgres"]],
    "build.txt": PROJECT["build-system"]["requires"],
}


def pinned(name: str) -> dict[str, str]:
    """Distribution -> version of a list."""
    lines = (ROOT / "packaging/wheels" / name).read_text().splitlines()
    return dict(re.fullmatch(r"(\S+)==(\S+) \\", line).groups() for line in lines if "==" in line)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", WANTED)
def test_every_dependency_is_pinned_within_its_bounds(name: str) -> None:
    versions = pinned(name)
    for text in WANTED[name]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), text


@pytest.mark.parametrize("name", WANTED)
def test_every_pin_has_a_hash(name: str) -> None:
    text = (ROOT / "packaging/wheels" / name).read_text()
    entries = re.split(r"^(?=\S+==)", text, flags=re.M)[1:]
    assert [e for e in entries if not re.fullmatch(r"\S+==\S+( \\\n    --hash=sha256:[0-9a-f]{64})+\n", e)] == []
    assert len(entries) == len(pinned(name))


def test_no_distribution_is_carried_twice() -> None:
    assert set(pinned("agent.txt")) & set(pinned("broker.txt")) == set()
