# SPDX-License-Identifier: Apache-2.0
"""``mvps record``: what the vantages see, tick by tick, into a file for offline evaluation."""

from __future__ import annotations

import argparse
import signal
import time
from pathlib import Path

from mvps.cli import exits

EPILOG = (
    "examples:\n"
    "  mvps record --seconds 600 quiet.jsonl.gz\n"
    "  mvps record --tick-ms 500 --mark 'deploy of build 17' incident.jsonl.gz\n"
    "  ./bench/run detect quiet.jsonl.gz        # from a checkout: evaluate it\n"
    "exit codes: 0 recorded, 2 bad arguments, 4 nothing could be attached"
)


def declare(_verb: str, parser: argparse.ArgumentParser) -> None:
    """Arguments of ``mvps record``."""
    parser.add_argument("file", type=Path, help="file to write, gzip-compressed JSON lines; must not exist")
    parser.add_argument("--seconds", type=float, default=0.0, metavar="N", help="end after N seconds; 0: Ctrl-C")
    parser.add_argument("--tick-ms", type=int, default=1000, metavar="T", help="tick in milliseconds, 50 to 60000")
    parser.add_argument("--mark", default="", help="a note written into the recording at its start")
    parser.epilog = EPILOG


def run(arguments: argparse.Namespace) -> int:
    """Record until Ctrl-C or for ``--seconds``."""
    from mvps.vantages.recording import Recorder
    from mvps.vantages.registry import VANTAGES, VantageSet

    if not 50 <= arguments.tick_ms <= 60_000:
        raise exits.Failure(exits.USAGE, f"--tick-ms {arguments.tick_ms} is outside 50 to 60000")
    if arguments.file.exists():
        raise exits.Failure(exits.USAGE, f"{arguments.file} exists already; recordings are not overwritten")
    period_ns = arguments.tick_ms * 1_000_000
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ended by a service manager, the file is finished too
    vantages = VantageSet.open(VANTAGES)
    try:
        failed = [state for state in vantages.states().values() if state.state == "failed"]
        if len(failed) == len(VANTAGES):
            raise exits.Failure(exits.NOT_PERMITTED, f"nothing could be attached: {failed[0].reason}")
        for state in failed:
            print(f"without {state.name}: {state.reason}")
        ticks = 0
        with Recorder(arguments.file, period_ns / 1e9, {"vantages": list(VANTAGES)}) as recorder:
            if arguments.mark:
                recorder.mark(time.time_ns(), {"note": arguments.mark})
            vantages.read()
            deadline = time.monotonic() + arguments.seconds if arguments.seconds > 0 else float("inf")
            try:
                while time.monotonic() < deadline:
                    index = time.time_ns() // period_ns + 1
                    time.sleep(max(index * period_ns - time.time_ns(), 0) / 1e9)
                    recorder.tick(index, time.time_ns(), vantages.read())
                    ticks += 1
                    print(f"\r{ticks} ticks", end="", flush=True)
            except KeyboardInterrupt:
                pass
        print(f"\r{ticks} ticks in {arguments.file}, {arguments.file.stat().st_size} bytes")
    finally:
        vantages.close()
    return exits.OK
