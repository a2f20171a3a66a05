# SPDX-License-Identifier: Apache-2.0
"""``mvps simulate hijack``: the worked example of 001 sec. 16, computed, with the document's figures beside it."""

from __future__ import annotations

import argparse
import bz2
import gzip
import io
import json
import math
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from mvps.cli import exits
from mvps.cli.actions import AddAction

if TYPE_CHECKING:
    from mvps.robust.as_graph import AsGraph
    from mvps.robust.hijack import BundleStudy, CascadeStudy


# Made by packaging/made_up_internet.py.
_SHIPPED = Path(__file__).parent / "made-up.as-rel.txt"


def declare(add: AddAction) -> None:
    """Arguments of ``mvps simulate hijack``."""
    hijack = add(
        "hijack",
        "a prefix hijack with lying vantages: coherence, who is suspected, and how fast it spreads",
        "examples:\n"
        "  mvps simulate hijack\n"
        "  mvps simulate hijack --vantages 16 --liars 3 --rov 0.5\n"
        "  mvps simulate hijack --as-rel 20260101.as-rel2.txt.bz2 --hijacker 64500 --origin 64496 --json\n"
        "AS relationships are CAIDA's serial-1 or serial-2 files, plain, .gz or .bz2; you supply them. Without one\n"
        "it is the made-up graph of 400 ASes that ships, or with --ases another one, the same for the same --seed.\n"
        "exit codes: 0 done, 2 bad arguments or a file that is none, 4 the broker's packages are missing",
    )
    hijack.add_argument("--vantages", type=int, default=5, metavar="N", help="of them all (default %(default)s)")
    hijack.add_argument("--liars", type=int, default=1, metavar="F", help="below N/2 (default %(default)s)")
    hijack.add_argument("--events", type=int, default=300, metavar="E", help="observed paths a tick (default 300)")
    graph = hijack.add_mutually_exclusive_group()
    graph.add_argument("--ases", type=int, metavar="N", help="make a graph of N ASes up (default: the one that ships)")
    graph.add_argument("--as-rel", type=Path, metavar="FILE", help="AS relationships to read instead")
    hijack.add_argument("--hijacker", type=int, metavar="ASN", help="default: one of the smallest networks")
    hijack.add_argument("--origin", type=int, metavar="ASN", help="the legitimate one; default likewise")
    hijack.add_argument("--rov", type=float, default=0.0, metavar="SHARE", help="of ASes that validate (default 0)")
    hijack.add_argument("--runs", type=int, default=200, metavar="N", help="of the spread (default %(default)s)")
    hijack.add_argument("--seed", type=int, default=0, metavar="S", help="same seed, same figures (default 0)")
    hijack.add_argument("--json", action="store_true", help="one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Compute and print."""
    try:
        from mvps.robust import hijack
        from mvps.robust.minimax import TooManyRemovals
    except ModuleNotFoundError as error:
        advice = f"{error.name} is missing, which the simulation needs: pip install 'mvps[broker]'"
        raise exits.Failure(exits.NOT_PERMITTED, advice) from None
    if arguments.events < 20:
        raise exits.Failure(exits.USAGE, f"--events {arguments.events}: at least 20, or every tick looks like another")
    try:
        bundle = hijack.study_bundle(arguments.vantages, arguments.liars, arguments.seed, arguments.events)
        graph = _graph(arguments)
        hijacker, origin = _ends(graph, arguments)
        spread = hijack.study_cascade(
            graph,
            arguments.vantages,
            arguments.liars,
            hijacker,
            origin,
            arguments.rov,
            arguments.runs,
            arguments.seed,
        )
    except TooManyRemovals as error:
        raise exits.Failure(exits.USAGE, f"{error}; here: fewer --vantages or --liars") from None
    except (ValueError, KeyError) as error:
        raise exits.Failure(exits.USAGE, str(error.args[0])) from None
    if arguments.json:
        shown = {"document": dict(hijack.DOCUMENT), "bundle": _plain(bundle), "cascade": _plain(spread)}
        print(json.dumps(shown, indent=2))
    else:
        _print(arguments, bundle, spread, hijack.DOCUMENT)
    return exits.OK


def _graph(arguments: argparse.Namespace) -> AsGraph:
    from mvps.robust.as_graph import MAX_LINE, parse_relationships, synthetic_internet

    if arguments.ases is not None:
        return synthetic_internet(arguments.ases, arguments.seed)
    path: Path = arguments.as_rel or _SHIPPED
    try:
        with _opened(path) as raw:
            text = io.TextIOWrapper(raw, encoding="ascii", errors="replace")
            # A line that is too long is cut, and refused as such, before it is held.
            return parse_relationships(iter(lambda: text.readline(MAX_LINE + 1), ""))
    except (OSError, EOFError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise exits.Failure(exits.USAGE, f"cannot read {path}: {reason}") from None


def _opened(path: Path) -> IO[bytes]:
    if path.suffix == ".bz2":
        return bz2.open(path, "rb")
    if path.suffix == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    return path.open("rb")


def _ends(graph: AsGraph, arguments: argparse.Namespace) -> tuple[int, int]:
    """Places of the hijacker and of the legitimate origin."""
    import numpy as np

    given = [None if number is None else graph.place(number) for number in (arguments.hijacker, arguments.origin)]
    stubs = [place for place in np.argsort(graph.degree(), kind="stable").tolist() if place not in given]
    hijacker, origin = (place if place is not None else stubs.pop(0) for place in given)
    if hijacker == origin:
        raise ValueError("the hijacker and the legitimate origin are one AS")
    return hijacker, origin


def _plain(study: BundleStudy | CascadeStudy) -> dict[str, Any]:
    """Its fields for JSON, which has no infinity: null."""

    def plain(value: Any) -> Any:
        if isinstance(value, tuple):
            return [plain(one) for one in value]
        if isinstance(value, float):
            return value if math.isfinite(value) else None
        return getattr(value, "name", value)

    return {name: plain(value) for name, value in study._asdict().items()}


def _print(arguments: argparse.Namespace, bundle: BundleStudy, spread: CascadeStudy, document: Any) -> None:
    from mvps.cli import view

    # The document's figures are for five vantages, one lying.
    same = (arguments.vantages, arguments.liars) == (5, 1)

    def said(name: str, unit: str = "") -> str:
        value = document[name]
        return (f"{value:g}{unit}" if isinstance(value, float) else str(value)) if same else "-"

    def who(places: tuple[int, ...]) -> str:
        return ", ".join(f"V_{place + 1}" for place in places) or "nobody"

    rows = [
        ("", "document", "here", ""),
        ("JSD of all, bits", said("jsd"), f"{bundle.jsd:.3f}", ""),
        ("C_2 of all", said("c2"), f"{bundle.c2:.3f}", f"{bundle.c2_two_labels:.3f} if there are two labels only"),
        ("D^2 of C_2", said("d2"), f"{bundle.d2:.4g}", "counting noise alone is all that BAU varies by here"),
        ("fleet D^2, all vantages", "-", f"{bundle.fleet_d2:.1f}", "on the scale of 7.81 and 11.34"),
        ("phase, all vantages", said("phase"), bundle.everybody.name, "11.8 would be ALARM by its own limits"),
        ("phase, what f cannot explain", "BAU" if same else "-", bundle.phase.name, ""),
        (
            "JSD about the median",
            said("jsd_gm"),
            _number(bundle.jsd_gm),
            "more than JSD, by KL(mean || median)",
        ),
        ("C_2^gm, its form", said("c2_gm"), _number(bundle.c2_gm_seed), "never above C_2"),
        ("C_2^gm, ours", "-", f"{bundle.c2_gm:.3f}", "the f worst left out"),
        ("C_lo .. C_hi", "-", f"{bundle.lo:.3f} .. {bundle.hi:.3f}", "over removals of up to f"),
        ("Delta_byz / D^2", said("share"), f"{bundle.share:.3f}", f"leaving out {who(bundle.suspects)}"),
        ("theta", said("theta"), f"{bundle.theta:.2f}", f"for N = {arguments.vantages}, f = {arguments.liars}"),
        ("label", said("label"), bundle.label_alone, f"{who(bundle.named)}; nothing else speaks against it"),
        ("label with evidence", "-", bundle.label_with_evidence, "when its witness disagrees"),
        ("tau_C(.5), lambda = 1/30 s", said("tau_s", " s"), _seconds(_example_tau(arguments, False)), "its formula"),
        ("  with saturation", "-", _seconds(_example_tau(arguments, True)), ""),
    ]
    print(view.table(rows))
    print()
    print(
        f"spread over {spread.ases} ASes and {spread.links} links, {spread.validating} validating origins, "
        f"from AS{spread.hijacker} against AS{spread.origin}:"
    )
    simulated, policy = ([_seconds(time) for time in times] for times in (spread.simulated, spread.policy))
    print(
        view.table(
            [
                ["", "5 %", "median", "95 %", ""],
                ["closed form", "", _seconds(spread.closed), "", f"lambda = {spread.rate:.3g} per second"],
                ["with saturation", "", _seconds(spread.saturated), "", ""],
                ["simulated, everybody passes it on", *simulated, ""],
                ["simulated, valley-free", *policy, "equal routes go to the hijacker"],
            ]
        )
    )
    low, high = (100.0 * share for share in spread.reached)
    print(f"in the end {low:.1f} to {high:.1f} % of the ASes route to the hijacker (ties against it, for it)")
    if math.isfinite(spread.longest_tick):
        tick = _seconds(spread.longest_tick)
        print(f"three ticks fit before half of the vantages are reached if T_tick <= {tick} (document: 60 s is within)")
    else:
        print("half of the vantages are never reached: no tick is too long")


def _example_tau(arguments: argparse.Namespace, saturated: bool) -> float:
    from mvps.robust import cascade

    form = cascade.tau_saturated if saturated else cascade.tau_closed
    return form(1.0 / cascade.CONVERGENCE_FLOOR_S, 0.5, arguments.liars / arguments.vantages)


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if math.isfinite(value) else "never"


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else ("-inf" if value < 0 else "inf")
