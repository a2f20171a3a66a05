# SPDX-License-Identifier: Apache-2.0
"""``mvps simulate surplus``: experiment E1 of 002, computed."""

from __future__ import annotations

import argparse
import json
import math
from typing import TYPE_CHECKING

from mvps.cli import exits
from mvps.cli.actions import AddAction

if TYPE_CHECKING:
    from mvps.surplus.retrial_queue import Ramp


def declare_surplus(add: AddAction) -> None:
    """Arguments of ``mvps simulate surplus``."""
    surplus = add(
        "surplus",
        "load up and down on a queue whose clients retry: where it collapses, where it recovers, who warned (E1)",
        "examples:\n"
        "  mvps simulate surplus\n"
        "  mvps simulate surplus --pairs 20 --retries 1 --json\n"
        "Time is simulated: a minute is two seconds of the queue's time, and a step of 5 % lasts 15 of them.\n"
        "exit codes: 0 done, 2 bad arguments",
    )
    surplus.add_argument("--pairs", type=int, default=8, metavar="N", help="ramps up and down (default %(default)s)")
    surplus.add_argument("--retries", type=int, default=3, metavar="R", help="further tries of a client (default 3)")
    surplus.add_argument("--timeout", type=float, default=1.0, metavar="S", help="its patience (default 1 second)")
    surplus.add_argument("--servers", type=int, default=8, metavar="C", help="in parallel (default %(default)s)")
    surplus.add_argument("--room", type=int, default=400, metavar="Q", help="places in the queue (default %(default)s)")
    surplus.add_argument("--seed", type=int, default=0, metavar="S", help="same seed, same figures (default 0)")
    surplus.add_argument("--json", action="store_true", help="one JSON object")


def simulate_surplus(arguments: argparse.Namespace) -> int:
    """E1 with retries and, beside it, without."""
    from mvps.cli import view
    from mvps.surplus import retrial_queue

    if min(arguments.pairs, arguments.servers, arguments.room) < 1 or arguments.retries < 0 or arguments.seed < 0:
        raise exits.Failure(exits.USAGE, "--pairs, --servers and --room are at least 1, --retries and --seed 0")
    if not 0.0 < arguments.timeout < math.inf:
        raise exits.Failure(exits.USAGE, f"--timeout {arguments.timeout:g}: seconds above 0")
    arms = {f"{arguments.retries} retries": arguments.retries, "no retries": 0}
    found: dict[str, list[Ramp]] = {}
    for name, retries in arms.items():
        workload = retrial_queue.Workload(
            servers=arguments.servers, timeout_s=arguments.timeout, retries=retries, room=arguments.room
        )
        plan = retrial_queue.RampPlan()
        seeds = range(arguments.seed, arguments.seed + arguments.pairs)
        found[name] = [retrial_queue.ramp(workload, plan, seed)[0] for seed in seeds]

    def interval(values: list[float]) -> tuple[float, float, float]:
        return retrial_queue.mean_interval(values, arguments.seed)

    figures = {
        name: {
            "pairs": len(ramps),
            "collapsed": sum(math.isfinite(one.collapse) for one in ramps),
            "collapse": interval([one.collapse for one in ramps]),
            "recovery": interval([one.recovery for one in ramps]),
            "gap": interval([one.gap for one in ramps]),
            "lead_minutes": interval([one.lead for one in ramps]),
            "unwarned": sum(math.isfinite(one.collapse) and not math.isfinite(one.lead) for one in ramps),
            "calm_minutes_in_action": interval([one.action_share for one in ramps]),
        }
        for name, ramps in found.items()
    }
    if arguments.json:
        plain = {name: {key: _plain(value) for key, value in arm.items()} for name, arm in figures.items()}
        print(json.dumps(plain, indent=2))
        return exits.OK
    rows = [["", "pairs", "collapses at", "recovers at", "gap", "lead, min", "calm in Action"]]
    for name, arm in figures.items():
        shown = [_interval(arm[key]) for key in ("collapse", "recovery", "gap", "lead_minutes")]
        rows.append([name, f"{arm['collapsed']} of {arm['pairs']}", *shown, _interval(arm["calm_minutes_in_action"])])
    print(view.table(rows))
    retries = arguments.retries
    print("loads over capacity, means and 95 % bootstrap intervals; simulated time, a minute is 2 s of the queue's")
    print(
        f"if every client tries {1 + retries} times, the queue cannot empty above a load of {1.0 / (1 + retries):.2f}"
    )
    print("there is no text here: the semantic spread is not known, and BH-1 not testable")
    return exits.OK


def _plain(value: object) -> object:
    """JSON has no NaN: null."""
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _interval(value: object) -> str:
    assert isinstance(value, tuple)
    mean, low, high = value
    return "-" if math.isnan(mean) else f"{mean:.2f} ({low:.2f} to {high:.2f})"
