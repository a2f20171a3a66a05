# SPDX-License-Identifier: Apache-2.0
"""The closed loop of IC9.4: routes really withdrawn, real TCP, agent, AI vantage and broker, both arms at once.

The same injections run in the *coupled* arm, where a cache miss makes an answer cold, and in the *placebo* arm, where
it changes nothing. In the placebo arm no test of coupling may reject more often than its 5 % (exact binomial test,
one-sided 5 %, each test by Bonferroni and all together): that is one bar. The figure is the share of episodes, of both
arms, whose settled phase is the injected one; its bar is the project's goal, .90.

Beside it, without a bar: the same scoring on simulated runs, which shows what it does where the truth is known to the
last digit, and how often its certificate rejects there.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
from pathlib import Path
from typing import Any

from bench.harness import WORK, Result, need_root
from bench.simulated_run import record
from mvps.cli.main import main
from mvps.testbed.answers import Arm
from mvps.testbed.plan import Fault
from mvps.testbed.score import judged, score
from mvps.testbed.verdicts import GOAL, summary

SUMMARY = "closed loop: phases, coupling tests and leads with real routes, caches and agents, against a placebo arm"
# Of the services' axes, judged again on the same readings.
FLOORS = (0.0, 0.005, 0.01, 0.02)
SHORT = {"runs": 1, "blocks": 1, "events": 5, "sweeps": 1}
FULL = {"runs": 20, "blocks": 2, "events": 10, "sweeps": 2}


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", type=int, help="of each arm (default 1, with --full 20, some 2 hours)")
    parser.add_argument(
        "--records",
        type=Path,
        help="a file of runs to score; where --runs wants more, they are made and kept there",
    )


def simulated(runs: int) -> dict[str, Any]:
    """Figures of the scoring on simulated runs of both arms."""
    arms = (Arm.COUPLED, Arm.PLACEBO)
    found = summary([score(record(arm, seed, blocks=2, sweeps=1)) for arm in arms for seed in range(runs)])
    return {
        arm: {"right": one["right"], "rejections": one["rejections"], "lag_s": one["lag_s"]}
        for arm, one in found["arms"].items()
    }


def floors(kept: Path) -> dict[str, Any]:
    """Episodes right but for the weak fault, and limits of D^2_AI, had the services had other floors."""
    runs = [json.loads(line) for line in kept.read_text().splitlines()]
    shown: dict[str, Any] = {}
    for floor in FLOORS:
        again = [judged(one, floor) for one in runs]
        strong = [
            (run["arm"], right)
            for run, one in zip(runs, again, strict=True)
            for fault, right in zip(one.faults, one.right, strict=True)
            if fault != Fault.WEAK.value
        ]
        limits = [one.ai_limit for one in again]
        shown[str(floor)] = {
            "ai_limits": [round(min(limits), 1), round(max(limits), 1)],
            **{
                arm.value: [
                    sum(right for of, right in strong if of == arm.value),
                    sum(of == arm.value for of, _ in strong),
                ]
                for arm in (Arm.COUPLED, Arm.PLACEBO)
            },
        }
    return shown


def run(given: argparse.Namespace) -> Result:
    need_root()
    shape = FULL if given.full else SHORT
    runs = given.runs if given.runs is not None else 0 if given.records is not None else shape["runs"]
    kept = given.records or WORK / "closedloop.jsonl"
    if given.records is None:
        kept.unlink(missing_ok=True)
    numbers = [f"--{name}={value}" for name, value in ({**shape, "runs": runs}).items()]
    # In this process: whoever ends it ends the beds, and they take their namespaces down.
    with contextlib.redirect_stdout(io.StringIO()) as said:
        ended = main(["simulate", "coupling", *numbers, "--out", str(kept), "--json"])
    if ended:
        raise SystemExit(f"bench: mvps simulate coupling ended with {ended}")
    found = json.loads(said.getvalue())
    arms = found["arms"]
    for arm, one in arms.items():
        labels = {fault: row["right"]["share"] for fault, row in one["confusion"].items()}
        strong = one["right but for the weak fault"]["share"]
        print(f"{arm}: {one['runs']} runs, right {one['right']['share']} of {one['right']['of']}, by phase {labels}")
        print(f"  but for the weak fault {strong}")
    for name, one in found["predictions"].items():
        print(f"{name}: {one['verdict']}")
    print(f"placebo arm at its nominal rate: {found['nominal']['holds']}")
    of = sum(one["right"]["of"] for one in arms.values())
    right = sum(round(one["right"]["share"] * one["right"]["of"]) for one in arms.values())
    figure = right / of
    details = {
        "conditions": f"{len(arms)} arms at once; ticks of 0.25 s, calibration 120 joint ticks; one kernel for all",
        "goal": GOAL,
        **found,
        "simulated": simulated(40 if given.full else 5),
        "other floors": floors(kept),
    }
    return Result(
        round(figure, 3),
        "of the episodes have the injected phase",
        GOAL,
        bool(found["nominal"]["holds"]) and figure >= GOAL,
        details,
    )
