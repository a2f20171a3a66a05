# SPDX-License-Identifier: Apache-2.0
"""Imports run one way (DESIGN.md section 2), and the pure packages stay pure."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

MVPS = Path(__file__).resolve().parents[1] / "agent/mvps"

# Package -> packages of ours it may import. `v1` is the generated protobuf code.
MAY_IMPORT = {
    "ai": {"coherence", "engine_metrics", "semantic", "settings", "v1"},
    "coherence": set(),
    "engine_metrics": set(),
    "interop": set(),
    "probes": set(),
    "provoke": set(),
    "coupling": {"coherence"},
    "robust": {"coherence"},
    "semantic": {"coherence"},
    "serving": {"coherence", "engine_metrics", "settings", "surplus", "v1"},
    "settings": set(),
    "surplus": {"coherence"},
    "testbed": {"coherence", "coupling", "trust", "v1"},
    "trust": {"v1"},
    "vantages": {"coherence", "probes"},
    "stream": {"trust", "v1"},
    "witness": {"trust"},
    "limiter": {"probes", "trust"},
    "broker": {"coherence", "coupling", "limiter", "robust", "surplus", "trust", "v1"},
    "cost": {"limiter", "probes", "trust", "v1"},
    "daemon": {"coherence", "probes", "settings", "stream", "surplus", "trust", "vantages", "v1"},
    "cli": {
        "ai",
        "broker",
        "coherence",
        "coupling",
        "cost",
        "daemon",
        "interop",
        "limiter",
        "probes",
        "provoke",
        "robust",
        "semantic",
        "settings",
        "stream",
        "surplus",
        "testbed",
        "trust",
        "v1",
        "vantages",
        "witness",
    },
}
PURE = {
    "coherence": {"numpy"},
    "coupling": {"numpy", "scipy"},
    "engine_metrics": set(),
    "interop": {"scapy"},
    "robust": {"numpy", "scipy", "sklearn"},
    "semantic": {"numpy", "scipy"},
    "surplus": {"llguidance", "numpy", "pydantic", "scipy"},
}
STANDARD_IO = {"asyncio", "io", "os", "pathlib", "random", "socket", "subprocess", "threading", "time"}


def imports(path: Path) -> set[str]:
    """Dotted names of everything a module imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
    return found


def test_every_package_has_a_rule() -> None:
    packages = {p.parent.name for p in MVPS.glob("*/__init__.py")} - {"v1"}
    assert packages == set(MAY_IMPORT)


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_run_one_way(package: str) -> None:
    for path in (MVPS / package).glob("*.py"):
        ours = {name.split(".")[1] for name in imports(path) if name.startswith("mvps.")}
        assert ours - {package} <= MAY_IMPORT[package], path.name


@pytest.mark.parametrize("package", PURE)
def test_pure_packages_do_no_io_and_import_little(package: str) -> None:
    for path in (MVPS / package).glob("*.py"):
        tops = {name.split(".")[0] for name in imports(path)} - {"mvps"}
        assert not tops & STANDARD_IO, path.name
        assert tops - set(sys.stdlib_module_names) <= PURE[package], path.name


# With scapy, which is GPL-2.0-only: a licence that Apache-2.0 alone does not go with in one program.
BESIDE_SCAPY = ("cli.main", "cli.capture", "interop.layers", "vantages.traceroute")
DUAL = "# SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only"


def test_what_runs_in_one_process_with_scapy_may_be_used_under_its_licence() -> None:
    found: set[Path] = set()
    open_ends = [MVPS / f"{name.replace('.', '/')}.py" for name in BESIDE_SCAPY]
    while open_ends:
        path = open_ends.pop()
        if path in found:
            continue
        found |= {path, path.parent / "__init__.py", MVPS / "__init__.py"}
        tree = ast.parse(path.read_text())
        # At the top only: a command imports its own verb's module late, and only that one.
        for node in tree.body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            for name in names:
                candidate = MVPS.parent / f"{name.replace('.', '/')}.py"
                if name.startswith("mvps") and candidate.is_file():
                    open_ends.append(candidate)
    dual = {path for path in MVPS.rglob("*.py") if path.read_text().startswith(DUAL)}
    assert found <= dual
    assert dual - found == {MVPS / "__main__.py"}


def test_everything_says_its_licence_and_the_texts_are_here() -> None:
    root = MVPS.parents[1]
    texts = {path.stem for path in (root / "LICENSES").iterdir()}
    shown = subprocess.run(["git", "ls-files", "*.py", "*.c", "*.h", "*.sh"], cwd=root, capture_output=True, check=True)
    for name in shown.stdout.decode().split():
        head = (root / name).read_text().split("\n", 2)[:2]
        found = re.search(r"SPDX-License-Identifier: ([^*\n]+)", "\n".join(head))
        assert found, name
        assert set(re.findall(r"[A-Z][\w.-]*\d[\w.-]*", found[1])) <= texts, name
