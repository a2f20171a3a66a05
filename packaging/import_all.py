# SPDX-License-Identifier: Apache-2.0
"""Import every module of MVPS and what each imports only when it is used; print the files of all that was loaded.

usage: python packaging/import_all.py [--without PACKAGE...]

Ends with 1 where something is missing: an environment from which something was taken out is still whole. ``--without``
leaves out packages of ours whose dependencies another environment has; of the others what is imported late may then be
missing, since they say so themselves.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import pkgutil
import sys
from collections.abc import Iterator
from pathlib import Path

import mvps

# Of an extra that no package carries; what needs it says so itself.
NOT_CARRIED = ("matplotlib", "torch", "transformers")


def late_imports(path: Path) -> Iterator[str]:
    """Modules that a source file imports, wherever in it; those for type checkers alone are left out."""
    tree = ast.parse(path.read_text())
    for_checkers = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in for_checkers:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def main() -> int:
    """Import, and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--without", nargs="*", default=[])
    without = tuple(parser.parse_args().without)
    missing: list[str] = []
    for found in pkgutil.walk_packages(mvps.__path__, "mvps."):
        if found.name.startswith(without) or found.name.endswith("__main__"):
            continue
        module = importlib.import_module(found.name)
        if without or not str(module.__file__).endswith(".py"):
            continue
        for late in late_imports(Path(str(module.__file__))):
            if late.split(".")[0] in NOT_CARRIED:
                continue
            try:
                importlib.import_module(late)
            except ImportError as error:
                missing.append(f"{found.name}: {error}")
    files = {str(module.__file__) for module in sys.modules.values() if getattr(module, "__file__", None)}
    print(*sorted(file for file in files if file.endswith(".py")), sep="\n")
    print(*missing, sep="\n", end="", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
