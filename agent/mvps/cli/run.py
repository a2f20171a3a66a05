# SPDX-License-Identifier: Apache-2.0
"""``mvps run``: everything at once on this host, to see it work: agent, broker and a live view.

Nothing is installed and nothing stays: key, database, baselines and sockets live in a temporary directory,
and snapshots take the real road through seal, stream and admission to a broker in this process.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from mvps.cli import exits
from mvps.cli.settings import add_config_option, read_config
from mvps.provoke.faults import FAULTS, Host
from mvps.provoke.network import ProvokeError

if TYPE_CHECKING:
    from mvps.daemon.config import Config
    from mvps.daemon.service import Agent
    from mvps.trust.solo import Site

# Ticks of business as usual shown between the end of calibration and the fault, and seconds the fault lasts.
QUIET_TICKS = 5
FAULT_SECONDS = 12.0
# A fault is seen against ordinary traffic: small requests per second over the network peer and the disk.
BACKGROUND_RATE = 50.0


def declare(_verb: str, parser: argparse.ArgumentParser) -> None:
    """Arguments of ``mvps run``."""
    parser.add_argument("--seconds", type=float, default=0.0, metavar="N", help="end after N seconds")
    parser.add_argument("--tick", type=_tick_ms, metavar="T", help="tick, for example 1s or 100ms (50ms to 60s)")
    parser.add_argument(
        "--baseline-ticks", type=int, metavar="N", help="ticks of business as usual to learn, at least 60"
    )
    parser.add_argument(
        "--provoke", choices=list(FAULTS), help="disturb this host after calibration, to see it noticed"
    )
    parser.add_argument("--json", action="store_true", help="one JSON snapshot a line instead of the view")
    add_config_option(parser)
    parser.epilog = (
        "examples:\n"
        "  mvps run\n"
        "  mvps run --tick 100ms --baseline-ticks 60 --provoke blk\n"
        "  mvps run --seconds 30 --json | jq .surfaces[0].vector\n"
        "exit codes: 0 ended, 1 the broker accepted nothing, 2 bad arguments, 4 nothing could be attached"
    )


def _tick_ms(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s)?", text)
    if not found:
        raise argparse.ArgumentTypeError(f'"{text}" is no time; write 1s or 100ms')
    milliseconds = float(found[1]) * (1.0 if found[2] == "ms" else 1000.0)
    if not 50 <= milliseconds <= 60_000:
        raise argparse.ArgumentTypeError(f"{text} is outside 50ms to 60s")
    return round(milliseconds)


def run(arguments: argparse.Namespace) -> int:
    """Watch this host until Ctrl-C or for ``--seconds``."""
    from mvps.daemon import log
    from mvps.trust.solo import make_site

    log.configure("error", "text")
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    # Not /tmp, which is memory on Debian 13: the broker's history grows while this runs.
    with tempfile.TemporaryDirectory(prefix="mvps-run-", dir="/var/tmp") as name:
        directory = Path(name)
        settings = _settings(arguments, directory)
        site = make_site(directory, [settings.vantage_id], tick_ms=settings.agent.tick_ms)
        settings = _with_site(settings, site)
        if not arguments.provoke:
            return _with_broker(arguments, settings, site, None)
        with Host(background_rate=BACKGROUND_RATE) as host:
            try:
                host.prepare(network=True)
            except ProvokeError as error:
                raise exits.Failure(exits.NOT_PERMITTED, f"--provoke: {error}") from None
            return _with_broker(arguments, settings, site, host)


def _settings(arguments: argparse.Namespace, directory: Path) -> Config:
    from pydantic import ValidationError

    from mvps.daemon.config import Config

    document = read_config(arguments.config).model_dump()
    document["agent"]["state_dir"] = str(directory)
    document["broker"]["target"] = f"unix:{directory / 'broker.sock'}"
    document["local"]["socket"] = str(directory / "agent.sock")
    if arguments.tick:
        document["agent"]["tick_ms"] = arguments.tick
    if arguments.baseline_ticks is not None:
        document["baseline"]["calibration_ticks"] = arguments.baseline_ticks
    try:
        return Config.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        name = {"baseline.calibration_ticks": "--baseline-ticks"}.get(name, name)
        raise exits.Failure(exits.USAGE, f"{name}: {first['msg'].lower()}") from None


def _with_site(settings: Config, site: Site) -> Config:
    from mvps.daemon.config import Config

    document = settings.model_dump()
    document["trust"] = {
        "key": str(site.host_keys[settings.vantage_id]),
        "operator": site.operator,
        "manifests": str(site.manifests),
    }
    return Config.model_validate(document)


def _with_broker(arguments: argparse.Namespace, settings: Config, site: Site, host: Host | None) -> int:
    from mvps.broker.process import EmbeddedBroker
    from mvps.broker.settings import BrokerSettings
    from mvps.daemon.start import Cause, StartError, start

    broker = EmbeddedBroker(
        BrokerSettings.model_validate(
            {
                "listen": settings.broker.target,
                "database": site.directory / "broker.db",
                "key": str(site.broker_key),
                "operator": site.operator,
                "manifests": site.manifests,
                "metrics": "",
            }
        )
    )
    try:
        try:
            started = start(settings, serve=False)
        except StartError as error:
            code = exits.USAGE if error.cause is Cause.SETTINGS else exits.NOT_PERMITTED
            raise exits.Failure(code, str(error)) from None
        ended = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # HUP: its terminal went away
            signal.signal(number, lambda *_: ended.set())
        ticking = threading.Thread(target=started.run, name="mvps-tick")
        ticking.start()
        try:
            _watch(arguments, started.agent, ended, ticking, host)
        finally:
            started.agent.stop()
            ticking.join()
        accepted = broker.broker.accepted if broker.broker else 0
        print(f"{accepted} snapshots accepted by the broker", file=sys.stderr)
        return exits.OK if accepted else exits.FOUND
    finally:
        broker.stop()


def _watch(
    arguments: argparse.Namespace,
    agent: Agent,
    ended: threading.Event,
    ticking: threading.Thread,
    host: Host | None,
) -> None:
    from mvps.cli.view import Screen, as_json
    from mvps.daemon.local_api import tick_update

    deadline = time.monotonic() + arguments.seconds if arguments.seconds > 0 else float("inf")
    screen = Screen(note="Ctrl-C ends")
    version = quiet = 0
    fault_until = 0.0  # 0: not begun
    provoked = False
    note = ""
    while not ended.is_set() and ticking.is_alive() and time.monotonic() < deadline:
        newest, state = agent.published.wait(version, 0.2)
        if newest == version:
            continue
        version = newest
        decided = [s for s in state.snapshot.surfaces if s.HasField("decision")]
        quiet += bool(decided) and len(decided) == len(state.snapshot.surfaces)
        if host is not None and not fault_until and quiet > QUIET_TICKS:
            fault_until = time.monotonic() + FAULT_SECONDS
            host.start(arguments.provoke)
            provoked = True
            note = f"provoking {arguments.provoke}: {FAULTS[arguments.provoke].summary}"
        elif host is not None and provoked and time.monotonic() > fault_until:
            host.stop()
            provoked = False
            note = "the fault is over; the way back to BAU takes a few ticks"
        if arguments.json:
            provocation = {"provocation": arguments.provoke if provoked else ""} if host is not None else {}
            print(json.dumps(as_json(state.snapshot) | provocation), flush=True)
        else:
            screen.show(tick_update(state), note)
