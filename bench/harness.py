# SPDX-License-Identifier: Apache-2.0
"""What every benchmark shares: finding it, its result line, keeping the result of a full run."""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import math
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench/results"
WORK = ROOT / "bench/work"
_ENDINGS = (signal.SIGTERM, signal.SIGHUP)
_NOT_BENCHMARKS = {
    "__init__",
    "fact_world",
    "harness",
    "json_transformer",
    "json_world",
    "model_server",
    "simulated_run",
    "small_transformer",
}


@dataclass(frozen=True)
class Result:
    """One benchmark's outcome.

    figure: the measured value in ``unit``; for several bars at once, the one that comes closest to failing.
    bar: what it is held against. holds: whether every bar of this benchmark holds. details: everything else.
    """

    figure: float
    unit: str
    bar: float
    holds: bool
    details: Mapping[str, Any] = field(default_factory=dict)


def names() -> list[str]:
    """Names of all benchmarks."""
    return sorted(p.stem for p in Path(__file__).parent.glob("*.py") if p.stem not in _NOT_BENCHMARKS)


def need_root() -> None:
    """End with advice unless root."""
    if os.geteuid() != 0:
        raise SystemExit("bench: needs root (loads programs, makes cgroups and namespaces)")


def _commit() -> str:
    shown = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return shown.stdout.strip() or "unknown"


def wilson(hits: int, n: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927)."""
    if not n:
        return 0.0, 1.0
    p, z = hits / n, 1.96
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    least, most = (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)
    return max(least, 0.0), min(most, 1.0)


def timed(work: Callable[[], object], rounds: int) -> dict[str, float]:
    """Median, 95th and 99th percentile in ms, after one call to warm up."""
    work()
    taken = []
    for _ in range(rounds):
        begun = time.perf_counter_ns()
        work()
        taken.append((time.perf_counter_ns() - begun) / 1e6)
    taken.sort()
    at = {"ms": 0.5, "p95_ms": 0.95, "p99_ms": 0.99}
    return {name: round(taken[min(int(share * rounds), rounds - 1)], 4) for name, share in at.items()}


def _end(*_: object) -> None:
    """Ended from outside, a benchmark still removes what it made, and a second signal does not disturb it."""
    for number in _ENDINGS:
        signal.signal(number, signal.SIG_IGN)
    sys.exit(143)


def main(arguments: list[str]) -> int:
    """Entry point of bench/run."""
    if arguments[:1] == ["--list"] or not arguments:
        for name in names():
            print(f"{name:10} {importlib.import_module(f'bench.{name}').SUMMARY}")
        return 0
    name, *rest = arguments
    if name not in names():
        print(f"bench: no benchmark {name!r}; there are {', '.join(names())}")
        return 2
    module = importlib.import_module(f"bench.{name}")
    parser = argparse.ArgumentParser(prog=f"bench/run {name}", description=module.SUMMARY)
    parser.add_argument("--full", action="store_true", help="long form; its result is kept in bench/results/")
    if hasattr(module, "options"):
        module.options(parser)
    given = parser.parse_args(rest)
    WORK.mkdir(exist_ok=True)
    for number in _ENDINGS:
        signal.signal(number, _end)
    result: Result = module.run(given)
    line = {"bench": name, **asdict(result)}
    if given.full:
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        kept = {**line, "date": now, "kernel": platform.release(), "commit": _commit(), "cpus": os.cpu_count()}
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(kept, indent=2) + "\n")
    print(json.dumps(line))
    return 0 if result.holds else 1
