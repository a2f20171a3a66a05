# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from mvps.robust.as_graph import parse_relationships

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "agent/mvps/cli/made-up.as-rel.txt"


def test_what_ships_is_what_the_script_writes() -> None:
    script = ROOT / "packaging/made_up_internet.py"
    made = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True).stdout
    assert SHIPPED.read_text() == made


def test_it_is_an_internet_of_a_few_hundred_networks() -> None:
    graph = parse_relationships(SHIPPED.read_text().splitlines())
    assert graph.size == 400
    assert len(graph.transit) > graph.size - 13  # everybody but the clique at the top has a provider
    assert SHIPPED.stat().st_size < 16 * 1024
