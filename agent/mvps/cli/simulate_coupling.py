# SPDX-License-Identifier: Apache-2.0
"""``mvps simulate coupling``: the closed loop of IC9.4 on this kernel, with its placebo arm."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from mvps.cli import exits
from mvps.cli.actions import AddAction

_ARMS: Final = ("coupled", "placebo", "stateless")
_MOST: Final = 100


def declare(add: AddAction) -> None:
    """Arguments of ``mvps simulate coupling``."""
    coupling = add(
        "coupling",
        "route changes and prefix caches in network namespaces of this host, with a real agent, AI vantage and broker: "
        "which phase is found, and does the coupling show where there is one and nowhere else",
        "examples:\n"
        "  mvps simulate coupling\n"
        "  mvps simulate coupling --runs 30 --sweeps 2 --blocks 2 --out runs.jsonl     again: goes on\n"
        "  mvps simulate coupling --runs 0 --out runs.jsonl --json      score what is there\n"
        "Needs root, iproute2 and a kernel the agent runs on. Both arms of a run are up at the same time, with the\n"
        "same injections. A run takes 80 seconds to calibrate; ticks are a quarter of a second, so that minutes\n"
        "stand for hours. Everything it made is removed, also after Ctrl-C.\n"
        "exit codes: 0 done, 2 bad arguments, 3 a part did not come up, 4 not root or something is missing",
    )
    coupling.add_argument("--runs", type=int, default=1, metavar="N", help="in all, with those in --out (default 1)")
    coupling.add_argument(
        "--arm",
        action="append",
        choices=_ARMS,
        help="may be repeated (default: coupled and placebo). stateless: a cache miss costs time and no answer changes",
    )
    coupling.add_argument("--blocks", type=int, default=1, metavar="N", help="stretches of route changes (default 1)")
    coupling.add_argument("--events", type=int, default=8, metavar="N", help="route changes in each (default 8)")
    coupling.add_argument("--sweeps", type=int, default=1, metavar="N", help="times five phases, a run (default 1)")
    coupling.add_argument("--seed", type=int, default=0, metavar="S", help="of the first run's injections (default 0)")
    coupling.add_argument("--out", type=Path, metavar="FILE", help="add each run's record to it, one JSON line each")
    coupling.add_argument("--json", action="store_true", help="one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Run what is missing, score all."""
    if not 0 <= arguments.runs <= _MOST or arguments.seed < 0:
        raise exits.Failure(exits.USAGE, f"--runs is 0 to {_MOST}, --seed at least 0")
    if not (0 <= arguments.blocks <= 8 and 0 <= arguments.events <= 60 and 0 <= arguments.sweeps <= 20):
        raise exits.Failure(exits.USAGE, "--blocks is 0 to 8, --events 0 to 60, --sweeps 0 to 20")
    try:
        from mvps.testbed import score, verdicts
        from mvps.testbed.plan import plan
    except ImportError as error:
        raise exits.Failure(
            exits.NOT_PERMITTED,
            f"{error.name} is missing: apt-get install mvps-broker, or pip install 'mvps[ai,broker]'",
        ) from None
    try:
        plan(("a", "b"), 0, arguments.blocks, arguments.events, arguments.sweeps)
    except ValueError as error:
        raise exits.Failure(exits.USAGE, str(error)) from None
    arms = tuple(dict.fromkeys(arguments.arm or _ARMS[:2]))
    records = _kept(arguments.out)
    stopped = False
    if missing := [
        (seed, [arm for arm in arms if (arm, seed) not in {(one["arm"], one["seed"]) for one in records}])
        for seed in range(arguments.seed, arguments.seed + arguments.runs)
    ]:
        stopped = _run_missing(missing, arguments, records)
    scored, refused = [], []
    for record in records:
        try:
            scored.append(score.score(record))
        except ValueError as error:
            refused.append(f"{record['arm']} {record['seed']}: {error}")
    if not scored:
        raise exits.Failure(exits.UNREACHABLE, "; ".join(refused) or "no run to score: --runs is 0 and --out is empty")
    found = {**verdicts.summary(scored), "refused runs": refused}
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        _show(found)
    return exits.UNREACHABLE if stopped else exits.OK


def _kept(out: Path | None) -> list[dict[str, Any]]:
    if out is None or not out.exists():
        return []
    try:
        return [json.loads(line) for line in out.read_text().splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise exits.Failure(exits.USAGE, f"{out} is no file of runs: {error}") from None


def _run_missing(
    missing: Sequence[tuple[int, Sequence[str]]], arguments: argparse.Namespace, records: list[dict[str, Any]]
) -> bool:
    """Run them, arms of one seed together; whether it was stopped before the end."""
    from mvps.testbed.bed import PREFIX, REPLICAS, BedError, Size, missing_commands
    from mvps.testbed.lab import sweep
    from mvps.testbed.plan import plan
    from mvps.testbed.run import StoppedError, run

    if not any(arms for _, arms in missing):
        return False
    if os.geteuid() != 0:
        raise exits.Failure(exits.NOT_PERMITTED, "this makes network namespaces and loads programs: run it as root")
    if lacking := missing_commands():
        raise exits.Failure(exits.NOT_PERMITTED, f"needs the command {lacking[0]}: apt-get install iproute2 util-linux")
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    lock = threading.Lock()
    failures: list[str] = []

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def one(arm: str, seed: int) -> None:
        from mvps.testbed.answers import Arm

        steps = plan(REPLICAS, seed, arguments.blocks, arguments.events, arguments.sweeps)
        try:
            record = run(Arm(arm), Size(), steps, seed, lambda line: say(f"run {seed}, {line}"), stop)
        except StoppedError:
            return
        except (BedError, OSError) as error:
            failures.append(f"run {seed}, {arm}: {error}")
            return
        with lock:
            records.append(record)
            if arguments.out is not None:
                with arguments.out.open("a") as file:
                    file.write(json.dumps(record) + "\n")

    try:
        for name in sweep(PREFIX):
            say(f"removed {name}, left by a run that was killed")
        for seed, arms in missing:
            threads = [threading.Thread(target=one, args=(arm, seed)) for arm in arms]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            if stop.is_set():
                break
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for failure in failures:
        say(failure)
    return stop.is_set() or bool(failures)


def _show(found: dict[str, Any]) -> None:
    from mvps.cli import view

    for arm, figures in found["arms"].items():
        print(f"{arm}: {figures['runs']} runs, {figures['events']} route changes, {figures['cores']} cores")
        rows = [("injected", "right", "95 %", "labels", "joint alarms", "two alarm", "joint first / same / two first")]
        for fault, one in figures["confusion"].items():
            monitors = figures["monitors"][fault]
            rows.append(
                (
                    fault,
                    _rate(one["right"]),
                    _interval(one["right"]),
                    ", ".join(f"{label} {count}" for label, count in one["labels"].items()),
                    _rate(monitors["joint alarms"]),
                    _rate(monitors["two alarm"]),
                    f"{monitors['joint first']} / {monitors['together']} / {monitors['two first']}",
                )
            )
        print(view.table(rows))
        tests = [("coupling test at 5 %", "rejected", "of", "95 %", "refused")]
        for name, one in figures["rejections"].items():
            tests.append((name, _rate(one), str(one["of"]), _interval(one), str(one["refused"])))
        print(view.table(tests))
    for name, one in found["predictions"].items():
        print(f"{name}: {one['verdict']}. {one['rule']}")
    holds = found["nominal"]["holds"]
    if holds is not None:
        print(f"placebo arm: the tests {'keep to' if holds else 'EXCEED'} their nominal rate")


def _rate(one: dict[str, Any]) -> str:
    return "-" if one["share"] is None else f"{one['share']:.2f}"


def _interval(one: dict[str, Any]) -> str:
    return f"{one['low']:.2f} to {one['high']:.2f}"
