# SPDX-License-Identifier: Apache-2.0
"""``mvps simulate surplus``: experiments E1 and E2 of 002, computed, and what they say of its falsifiers."""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mvps.cli import exits
from mvps.cli.actions import AddAction, give, need_matplotlib

if TYPE_CHECKING:
    from mvps.coherence.observation import FloatArray
    from mvps.surplus.falsifiers import Arm, Outcome
    from mvps.surplus.handoffs import Run
    from mvps.surplus.retrial_queue import Ramp, RampPlan, Trace, Workload


def declare(add: AddAction) -> None:
    """Arguments of ``mvps simulate surplus``."""
    surplus = add(
        "surplus",
        "load up and down on a queue whose clients retry: where it collapses, where it recovers, who warned (E1); with "
        "buffers (E2), agents that hand work over (E3); which claims that leaves standing",
        "examples:\n"
        "  mvps simulate surplus\n"
        "  mvps simulate surplus --pairs 20 --retries 1 --json\n"
        "  mvps simulate surplus --experiment e2 --pairs 12 --plot survival.png\n"
        "  mvps simulate surplus --experiment falsifiers --pairs 12\n"
        "Time is simulated: a minute is two seconds of the queue's time, and a step of 5 % lasts 15 of them.\n"
        "exit codes: 0 done, 2 bad arguments, 4 scipy or matplotlib is missing",
    )
    surplus.add_argument(
        "--experiment",
        choices=("e1", "e2", "e3", "falsifiers"),
        default="e1",
        help="e1: retries or none; e2: buffers; e3: agents that hand over; falsifiers: F1 to F11 (default %(default)s)",
    )
    surplus.add_argument("--pairs", type=int, default=8, metavar="N", help="ramps up and down (default %(default)s)")
    surplus.add_argument("--retries", type=int, default=3, metavar="R", help="further tries of a client (default 3)")
    surplus.add_argument("--timeout", type=float, default=1.0, metavar="S", help="its patience (default 1 second)")
    surplus.add_argument("--servers", type=int, default=8, metavar="C", help="in parallel (default %(default)s)")
    surplus.add_argument("--room", type=int, default=400, metavar="Q", help="places in the queue (default %(default)s)")
    surplus.add_argument("--seed", type=int, default=0, metavar="S", help="same seed, same figures (default 0)")
    surplus.add_argument("--json", action="store_true", help="one JSON object")
    surplus.add_argument(
        "--plot", metavar="FILE", type=Path, help="also draw e1's loop or e2's survival curves to this new PNG file"
    )


def run(arguments: argparse.Namespace) -> int:
    """Check the arguments, and run what is asked for."""
    if min(arguments.pairs, arguments.servers, arguments.room) < 1 or arguments.retries < 0 or arguments.seed < 0:
        raise exits.Failure(exits.USAGE, "--pairs, --servers and --room are at least 1, --retries and --seed 0")
    if not 0.0 < arguments.timeout < math.inf:
        raise exits.Failure(exits.USAGE, f"--timeout {arguments.timeout:g}: seconds above 0")
    if arguments.plot is not None:
        if arguments.experiment not in ("e1", "e2"):
            raise exits.Failure(exits.USAGE, "--plot draws e1 and e2")
        need_matplotlib()  # before anything is computed
    if arguments.experiment == "e1":
        return _e1(arguments)
    try:
        import scipy.stats  # noqa: F401
    except ImportError:
        raise exits.Failure(
            exits.NOT_PERMITTED, f"--experiment {arguments.experiment} needs scipy: apt-get install mvps-broker, or pip"
        ) from None
    return {"e2": _e2, "e3": _e3, "falsifiers": _falsifiers}[arguments.experiment](arguments)


def _e1(arguments: argparse.Namespace) -> int:
    """With retries and, beside it, without."""
    from mvps.cli import view
    from mvps.surplus import retrial_queue

    arms = {f"{arguments.retries} retries": arguments.retries, "no retries": 0}
    found: dict[str, list[Ramp]] = {}
    first: dict[str, Trace] = {}
    plan = retrial_queue.RampPlan()
    for name, retries in arms.items():
        workload = retrial_queue.Workload(
            servers=arguments.servers, timeout_s=arguments.timeout, retries=retries, room=arguments.room
        )
        seeds = range(arguments.seed, arguments.seed + arguments.pairs)
        pairs = [retrial_queue.ramp(workload, plan, seed) for seed in seeds]
        found[name], first[name] = [one for one, _ in pairs], pairs[0][1]
    if arguments.plot is not None:
        from mvps.cli import surplus_plot

        give(surplus_plot.hysteresis(first, plan), arguments.plot)

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


_E3_MINUTES: Final = 120
# Buffers of 002 sec. 7.2. Its smallest meaningful size is 20 % more reviewers or 15 % rehearsal; two more servers are
# the control: as many hands, without being for those who have waited.
_BUFFERS: Final[dict[str, dict[str, Any]]] = {
    "two reviewers": {"reviewers": 2},
    "two more servers": {"extra": 2},
    "a quarter reused": {"reuse": 0.25},
}


def _arms(arguments: argparse.Namespace) -> tuple[Arm, dict[str, Arm], RampPlan]:
    """The queue as it is, and with each buffer, on the same seeds."""
    from mvps.surplus.falsifiers import run_arm
    from mvps.surplus.retrial_queue import RampPlan, Workload

    plan = RampPlan(high=1.6)
    seeds = range(arguments.seed, arguments.seed + arguments.pairs)
    plain = Workload(
        servers=arguments.servers, timeout_s=arguments.timeout, retries=arguments.retries, room=arguments.room
    )
    told = sys.stderr.isatty()

    def arm(name: str, workload: Workload) -> Arm:
        if told:
            print(f"{name}: {arguments.pairs} ramps", file=sys.stderr)
        return run_arm(workload, plan, seeds)

    baseline = arm("no buffer", plain)
    return baseline, {name: arm(name, replace(plain, **buffer)) for name, buffer in _BUFFERS.items()}, plan


def _e2(arguments: argparse.Namespace) -> int:
    """Matched ramps with each buffer."""
    from mvps.cli import view
    from mvps.surplus.falsifiers import e2, survival
    from mvps.surplus.retrial_queue import mean_interval

    baseline, buffered, plan = _arms(arguments)
    figures: dict[str, dict[str, object]] = {}
    curves: dict[str, tuple[FloatArray, FloatArray]] = {}
    for name, arm in {"no buffer": baseline, **buffered}.items():
        ramps = arm.ramps
        figures[name] = {
            "pairs": len(ramps),
            "collapsed": sum(math.isfinite(one.collapse) for one in ramps),
            "collapse": mean_interval([one.collapse for one in ramps], arguments.seed),
            "recovery": mean_interval([one.recovery for one in ramps], arguments.seed),
            "crp": mean_interval([one.fragility for one in ramps], arguments.seed),
            "emergency_minutes": mean_interval([one.exit for one in ramps], arguments.seed),
        }
        if name in buffered:
            figures[name]["shift"] = _outcome(e2(baseline, arm, plan)[0])
            compared = survival(baseline, arm, plan)
            figures[name]["bh2_log_rank_p"] = compared.p_value
            curves |= {"no buffer": (compared.minutes[0], compared.without[0])}
            curves[name] = (compared.minutes[1], compared.without[1])
    if arguments.plot is not None:
        from mvps.cli import surplus_plot

        give(surplus_plot.survival(curves), arguments.plot)
    if arguments.json:
        plain = {name: {key: _plain(value) for key, value in arm.items()} for name, arm in figures.items()}
        print(json.dumps(plain, indent=2))
        return exits.OK
    rows = [["", "collapsed", "collapses at", "recovers at", "CRP going up", "Emergency, min", "BH-2 later, p"]]
    for name, one in figures.items():
        shown = [_interval(one[key]) for key in ("collapse", "recovery", "crp", "emergency_minutes")]
        p_value = one.get("bh2_log_rank_p")
        later = f"{p_value:.3g}" if isinstance(p_value, float) else ""
        rows.append([name, f"{one['collapsed']} of {one['pairs']}", *shown, later])
    print(view.table(rows))
    print("loads over the capacity without buffers; means of those that collapsed and 95 % bootstrap intervals")
    print(f"a ramp goes up to {plan.high:g}; log-rank test of the time until BH-2, against no buffer")
    return exits.OK


def _teams(arguments: argparse.Namespace) -> dict[str, list[Run]]:
    """Runs of the same seeds under each treatment."""
    from mvps.surplus.handoffs import TREATMENTS, Team, simulate

    seeds = range(arguments.seed, arguments.seed + arguments.pairs)
    team = Team()
    return {one.name: [simulate(team, one, _E3_MINUTES, seed) for seed in seeds] for one in TREATMENTS}


def _e3(arguments: argparse.Namespace) -> int:
    """A team of agents under each cost of handing over."""
    from mvps.cli import view
    from mvps.surplus.retrial_queue import mean_interval

    names = ("flips", "quality", "late", "ssi", "crp", "spread", "debt")
    figures = {
        name: {figure: mean_interval([getattr(one, figure) for one in runs], arguments.seed) for figure in names}
        for name, runs in _teams(arguments).items()
    }
    if arguments.json:
        plain = {name: {key: _plain(value) for key, value in one.items()} for name, one in figures.items()}
        print(json.dumps(plain, indent=2))
        return exits.OK
    rows = [["", "handoffs per step", "quality", "late", "SSI*", "CRP", "SSE", "work of handing over"]]
    rows += [[name, *(_interval(one[figure]) for figure in names)] for name, one in figures.items()]
    print(view.table(rows))
    print(f"{arguments.pairs} runs of {_E3_MINUTES} minutes each; means and 95 % bootstrap intervals; simulated time")
    return exits.OK


def _falsifiers(arguments: argparse.Namespace) -> int:
    """F1 to F11: held, failed, underpowered or not testable here."""
    from mvps.cli import view
    from mvps.surplus.falsifiers import e1, e2, e3, untested

    baseline, buffered, plan = _arms(arguments)
    found = [("", one) for one in e1(baseline)]
    found += [(name, one) for name, arm in buffered.items() for one in e2(baseline, arm, plan)]
    found += e3(_teams(arguments))
    found += [("", one) for one in untested()]
    found.sort(key=lambda row: int(row[1].name[1:]))
    if arguments.json:
        print(json.dumps([{"with": buffer, **_outcome(one)} for buffer, one in found], indent=2))
        return exits.OK
    rows = [["", "claim", "with", "effect", "power", "verdict"]]
    for buffer, one in found:
        effect = _interval((one.effect, one.low, one.high))
        power = "-" if math.isnan(one.power) else f"{one.power:.2f}"
        rows.append([one.name, one.claim or one.note, buffer, effect, power, one.verdict.value])
    print(view.table(rows))
    print(f"{arguments.pairs} matched ramps; effects with 95 % intervals; power: to hold if the effect just matters")
    return exits.OK


def _outcome(one: Outcome) -> dict[str, object]:
    return {key: _plain(value) for key, value in one._asdict().items()}


def _plain(value: object) -> object:
    """JSON has no NaN: null."""
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _interval(value: object) -> str:
    assert isinstance(value, tuple)
    mean, low, high = value
    return "-" if math.isnan(mean) else f"{mean:.2f} ({low:.2f} to {high:.2f})"
