# SPDX-License-Identifier: Apache-2.0
"""The main job as a user runs it: a real fault while `mvps run` watches, from probe to broker."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest

from mvps.provoke.faults import FAULTS

pytestmark = [pytest.mark.kernel, pytest.mark.net]

TICK_MS = 200
BASELINE_TICKS = 100
# M + 2 ticks to be seen (DESIGN.md section 7), and what it takes to start a load process.
WITHIN = 5 + 5
# The data-plane surface has three vantages on one change.
NAMED_BY = {"path": {"path", "path_tcp", "path_fib"}}


def watch(*options: str) -> tuple[list[dict[str, Any]], str]:
    done = subprocess.run(
        [sys.executable, "-m", "mvps", "run", "--json", *options],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def phases(line: dict[str, Any]) -> list[str]:
    return [s["decision"]["phase"].removeprefix("PHASE_") for s in line["surfaces"] if "decision" in s]


def failure(kind: str) -> str:
    """Provoke one fault; what went otherwise than promised, or ""."""
    lines, last_words = watch(
        *("--tick", f"{TICK_MS}ms", "--baseline-ticks", str(BASELINE_TICKS), "--seconds", "55", "--provoke", kind)
    )
    accepted = int(last_words.split(" snapshots accepted")[0].split()[-1])
    assert accepted >= len(lines) - 3
    during = [i for i, line in enumerate(lines) if line["provocation"]]
    assert during, "the fault never began"
    first, last = during[0], during[-1]
    seen = next((i for i in during if any(p != "BAU" for p in phases(lines[i]))), None)
    if seen is None or seen - first > WITHIN:
        return f"{kind} began at line {first} and was seen at {seen}"
    leads = Counter(lines[i].get("lead", "") for i in range(seen, last + 1))
    if leads.most_common(1)[0][0] not in NAMED_BY.get(kind, {FAULTS[kind].vantage}):
        return f"{kind} was attributed to {leads}"
    if not any(phases(line) == ["BAU", "BAU"] for line in lines[last + 1 :]):
        return f"no way back to BAU after {kind}"
    return ""


@pytest.mark.parametrize("kind", ["mm", "blk", "sock", "path"])
def test_a_fault_is_seen_attributed_and_over(kind: str) -> None:
    """Detection has an error rate (docs/detection.md: 1 of 90 episodes misattributed), and so a test of it has one.

    One episode in 20 going wrong, on a machine shared with others, fails this test once in 200 runs; one in two fails
    it in three runs of eight.
    """
    if reason := failure(kind):
        assert [failure(kind), failure(kind)] == ["", ""], f"first: {reason}"
