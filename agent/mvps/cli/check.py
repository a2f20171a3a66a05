# SPDX-License-Identifier: Apache-2.0
"""``mvps check``: attach everything for a moment, report what works, detach."""

from __future__ import annotations

import argparse
import json
import time
from typing import TYPE_CHECKING

from mvps.cli import exits
from mvps.cli.settings import add_config_option, read_config

if TYPE_CHECKING:
    from mvps.coherence.observation import Observation
    from mvps.vantages.registry import VantageSet


def declare(_verb: str, parser: argparse.ArgumentParser) -> None:
    """Arguments of ``mvps check``."""
    parser.add_argument(
        "--seconds", type=float, default=1.0, metavar="S", help="how long to watch (default %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")
    add_config_option(parser)
    parser.epilog = (
        "examples:\n"
        "  mvps check                     before the service is enabled, and after a kernel upgrade\n"
        "  mvps check --json | jq .vantages\n"
        "exit codes: 0 every vantage works, 1 some do not, 2 the settings are bad, 4 none could be attached"
    )


def run(arguments: argparse.Namespace) -> int:
    """Attach, watch, report, detach."""
    settings = read_config(arguments.config)

    from mvps.daemon import log
    from mvps.daemon.start import Cause, StartError, attach
    from mvps.probes.bcc import chosen

    log.configure("warning", "text")
    begun = time.perf_counter()
    try:
        vantages = attach(settings)
    except StartError as error:
        code = exits.USAGE if error.cause is Cause.SETTINGS else exits.NOT_PERMITTED
        raise exits.Failure(code, str(error)) from None
    attached_ms = (time.perf_counter() - begun) * 1e3
    try:
        vantages.read()
        time.sleep(max(arguments.seconds, 0.0))
        report = _report(vantages, vantages.read(), attached_ms, chosen(settings.vantages.loader))
    finally:
        vantages.close()
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        _print(report)
    good = all(v["state"] == "ok" for v in report["vantages"])
    return exits.OK if good else exits.FOUND


def _report(
    vantages: VantageSet, seen: dict[str, Observation], attached_ms: float, loader: str
) -> dict[str, list[dict[str, object]]]:
    from mvps.vantages.registry import VANTAGES

    rows: list[dict[str, object]] = []
    for name, state in vantages.states().items():
        mine = [seen[made] for made in VANTAGES[name].yields if made in seen]
        rows.append(
            {
                "name": name,
                "surface": VANTAGES[name].surface,
                "state": "degraded" if state.state == "ok" and any(o.degraded for o in mine) else state.state,
                "reason": state.reason or "; ".join(sorted({o.degraded for o in mine if o.degraded})),
                "summary": VANTAGES[name].summary,
                "events": sum(o.events for o in mine),
            }
        )
    losses: list[dict[str, object]] = [
        {"cause": cause, "count": count} for cause, count in sorted(vantages.losses().items()) if count
    ]
    return {"vantages": rows, "losses": losses, "timing": [{"loader": loader, "attach_ms": round(attached_ms, 1)}]}


def _print(report: dict[str, list[dict[str, object]]]) -> None:
    for row in report["vantages"]:
        print(f"{row['state']:9} {row['name']:6} {row['events']:>10.0f} events  {row['summary']}")
        if row["reason"]:
            print(f"{'':9} {'':6} -> {row['reason']}")
    for loss in report["losses"]:
        print(f"lost      {loss['cause']}: {loss['count']}")
    (timing,) = report["timing"]
    print(f"attached in {timing['attach_ms']} ms by loader {timing['loader']}")
