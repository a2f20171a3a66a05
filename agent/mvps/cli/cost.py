# SPDX-License-Identifier: Apache-2.0
"""``mvps cost``: what a broker, an AI vantage and a flood cost, and what the agent's programs cost the kernel."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvps.cli import exits

if TYPE_CHECKING:
    from mvps.cost.measure import Measured
    from mvps.cost.model import Constants

_WORDS = {
    "hmac": "seal and replay",
    "parse": "from bytes to checked values",
    "grpc": "transport and answer, one snapshot a message",
    "log": "Merkle leaf and durable append, batches of 256",
    "bundle": "checkpoint of a bundle period",
    "cosign": "one witness's cosignature",
    "xdp": "a dropped packet",
    "sw2": "SW_2 of one pair of replicas",
    "cka": "CKA of one pair of replicas",
    "model_pass": "one forward pass of C_4",
}


def declare(_verb: str, parser: argparse.ArgumentParser) -> None:
    """Arguments of ``mvps cost``."""
    model = parser.add_argument_group("the site")
    model.add_argument("--vantages", type=int, default=1000, metavar="N", help="hosts (default %(default)s)")
    model.add_argument("--tick", default="1s", metavar="T", help="T_tick, as 50ms or 1s (default %(default)s)")
    model.add_argument(
        "--flood", type=float, nargs="+", default=[10.0, 100.0, 1000.0], metavar="X", help="times its rate a liar sends"
    )
    model.add_argument("--rate-factor", type=float, default=4.0, metavar="F", help="the manifest's (default 4)")
    model.add_argument("--packets", type=float, default=5.5, metavar="P", help="packets per snapshot (default 5.5)")
    model.add_argument("--quorum", type=int, default=0, metavar="Q", help="cosignatures per checkpoint (default 0)")
    model.add_argument("--bundle-period", type=float, default=10.0, metavar="S", help="seconds (default 10)")
    model.add_argument("--replicas", type=int, default=4, metavar="R", help="of an AI vantage (default 4)")
    model.add_argument("--passes", type=int, default=5, metavar="K", help="K_4 of C_4 (default 5)")
    parser.add_argument("--no-measure", action="store_true", help="the sources' constants alone; nothing is run")
    parser.add_argument(
        "--directory", type=Path, metavar="DIR", help="on the disk whose log is meant (default: temporary)"
    )
    parser.add_argument(
        "--live",
        action="store_true",
        help="instead: switch the kernel's run-time statistics on and measure the agent's programs; off afterwards",
    )
    parser.add_argument("--seconds", type=float, default=5.0, metavar="N", help="of --live (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.epilog = (
        "examples:\n"
        "  mvps cost --vantages 5000 --tick 50ms --flood 1000\n"
        "  mvps cost --no-measure --json\n"
        "  sudo mvps cost --live\n"
        "Constants are measured in about ten seconds; a dropped packet only as root. While --live runs, the agent's\n"
        "/metrics shows mvps_program_* too.\n"
        "exit codes: 0 done, 1 --live and no program of an agent is loaded, 2 bad arguments, 4 not root"
    )


def run(arguments: argparse.Namespace) -> int:
    """Evaluate the model, or measure the programs."""
    if arguments.live:
        return _live(arguments)
    from mvps.cost import model

    try:
        tick_s = _seconds(arguments.tick)
        columns = {"sources": model.SEED}
        absent: dict[str, str] = {}
        if not arguments.no_measure:
            measured = _measure(arguments.directory)
            columns["here"], absent = measured.constants, measured.absent
        shown = {name: _evaluate(arguments, tick_s, constants) for name, constants in columns.items()}
    except ValueError as error:
        raise exits.Failure(exits.USAGE, str(error)) from None
    if arguments.json:
        print(
            json.dumps(
                {
                    "constants_us": {name: dict(constants.known()) for name, constants in columns.items()},
                    "absent": absent,
                    "results": shown,
                    "claims": [claim._asdict() | {"holds": claim.holds} for claim in model.claims()],
                },
                indent=2,
            )
        )
    else:
        _print(arguments, columns, absent, shown)
    return exits.OK


def _evaluate(arguments: argparse.Namespace, tick_s: float, constants: Constants) -> dict[str, Any]:
    from mvps.cost import model

    factor = arguments.rate_factor
    found: dict[str, Any] = {
        "broker_cores": model.joint_broker_load(
            arguments.vantages,
            tick_s,
            constants,
            quorum=arguments.quorum,
            bundle_period_s=arguments.bundle_period,
        ),
        "broker_cores_ai": model.joint_broker_load(
            arguments.vantages, tick_s, dataclasses.replace(constants, grpc=None, log=None)
        ),
    }
    if {"sw2", "cka", "model_pass"} <= constants.known().keys():
        load = model.ai_vantage_load(arguments.replicas, arguments.passes, tick_s, constants)
        found["ai_vantage"] = load._asdict()
    if "xdp" in constants.known():
        found["flood"] = {
            f"{flood:g}": model.flood_multiplier(flood, factor, constants, packets=arguments.packets)
            for flood in arguments.flood
        }
    return found


def _measure(directory: Path | None) -> Measured:
    from mvps.cost.measure import measure

    if directory is not None and not directory.is_dir():
        raise exits.Failure(exits.USAGE, f"{directory} is no directory")
    with tempfile.TemporaryDirectory(prefix="mvps-cost-", dir=directory) as name:
        try:
            return measure(Path(name))
        except RuntimeError as error:
            raise exits.Failure(exits.INTERNAL, str(error)) from None
        except OSError as error:
            advice = "choose a folder with --directory on a disk that has 100 MiB"
            raise exits.Failure(exits.NOT_PERMITTED, f"cannot measure in {name}: {error}; {advice}") from None


def _print(
    arguments: argparse.Namespace,
    columns: dict[str, Constants],
    absent: dict[str, str],
    shown: dict[str, dict[str, Any]],
) -> None:
    from mvps.cli import view
    from mvps.cost import model

    rows = []
    for name, words in _WORDS.items():
        values = [constants.known().get(name) for constants in columns.values()]
        cells = [f"{value:.4g}" if value is not None else "-" for value in values]
        rows.append((f"c_{name}", *cells, words + (f" ({absent[name]})" if name in absent else "")))
    path = [f"{constants.path:.4g}" for constants in columns.values()]
    print(view.table([("us", *columns, "what"), *rows, ("c_path", *path, "sum of the first four")]))
    site = f"{arguments.vantages} vantages, T = {arguments.tick}"
    print()
    for name, result in shown.items():
        print(f"{name}:")
        print(f"  T-JCOST-1      {site}: broker {100 * result['broker_cores']:.4g} % of a core")
        print(f"  T-JCOST-AI-1   at the broker, seal and body alone: {100 * result['broker_cores_ai']:.4g} % of a core")
        if load := result.get("ai_vantage"):
            print(
                f"                 at the vantage, {arguments.replicas} replicas, K_4 = {arguments.passes}: "
                f"{load['seconds']:.4g} s a tick, {load['cores']:.4g} accelerators"
            )
        else:
            print("                 at the vantage: its constants are not known")
        if floods := result.get("flood"):
            bounds = ", ".join(f"{flood}x: {bound:.4g}" for flood, bound in floods.items())
            print(f"  T-VDOS-1       work for a liar, in times the natural: {bounds} (without the limiter: the flood)")
        else:
            print("  T-VDOS-1       c_xdp is not known")
    print("\nfigures of the sources that do not follow from their own formulas and constants:")
    for claim in model.claims():
        if not claim.holds:
            print(
                f"  {claim.where}, {claim.what}: printed {claim.printed:g}, computed {claim.computed:.4g} {claim.unit}"
            )


def _seconds(text: str) -> float:
    for unit, factor in (("ms", 1e-3), ("s", 1.0)):
        if text.endswith(unit):
            try:
                value = float(text.removesuffix(unit)) * factor
            except ValueError:
                break
            if value > 0:
                return value
    raise ValueError(f"--tick {text!r}: write it as 50ms or 1s")


def _live(arguments: argparse.Namespace) -> int:
    """Measure for a while and print one line per program."""
    from mvps.probes.cost import live_cost
    from mvps.probes.libbpf import BpfError

    if os.geteuid() != 0:
        raise exits.Failure(exits.NOT_PERMITTED, "BPF run-time statistics need root: sudo mvps cost --live")
    if arguments.seconds <= 0:
        raise exits.Failure(exits.USAGE, "--seconds must be positive")
    try:
        found = live_cost(arguments.seconds)
    except BpfError as error:
        raise exits.Failure(exits.NOT_PERMITTED, str(error)) from None
    if arguments.json:
        print(json.dumps({name: dataclasses.asdict(cost) for name, cost in found.items()}, indent=2))
    else:
        for name, cost in found.items():
            print(
                f"{name:28} {cost.runs:>10} runs  {cost.ns_per_run:8.0f} ns each  "
                f"{cost.percent_of_core:7.3f} % of a core"
            )
        total = sum(cost.percent_of_core for cost in found.values())
        print(f"{'together':28} {'':>10}       {'':8}          {total:7.3f} % of a core")
    if not found:
        raise exits.Failure(exits.FOUND, "no program of an agent is loaded on this host; start the agent first")
    return exits.OK
