# SPDX-License-Identifier: Apache-2.0
"""What the documents name exists: tests by path and function, benchmarks, fuzz targets."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from bench import harness

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted((ROOT / "docs").glob("*.md"))
TEST = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")
BENCHMARK = re.compile(r"`\./bench/run (\w+)")


def functions(path: Path) -> set[str]:
    """Names of the test functions of a module, those in classes too."""
    return {
        node.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_test_that_is_named_exists(document: Path) -> None:
    missing = [
        f"{path}::{name}"
        for path, name in TEST.findall(document.read_text())
        if not (ROOT / path).is_file() or (name and name not in functions(ROOT / path))
    ]
    assert missing == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_benchmark_that_is_named_exists(document: Path) -> None:
    assert set(BENCHMARK.findall(document.read_text())) <= set(harness.names())


def test_every_attack_of_the_threat_model_names_a_test() -> None:
    text = (ROOT / "docs/threat-model.md").read_text()
    _, *sections = re.split(r"^## ", text, flags=re.MULTILINE)
    without = [section.splitlines()[0] for section in sections if not TEST.search(section)]
    assert without == ["What 001 appendix C assumes"]


def test_fuzz_targets_that_are_named_exist() -> None:
    fuzz = pytest.importorskip("bench.fuzz")
    text = (ROOT / "docs/threat-model.md").read_text()
    named = {name for group in re.findall(r"\(targets? ([^)]*)\)", text) for name in re.findall(r"`(\w+)`", group)}
    assert named
    assert named <= set(fuzz.TARGETS)
