# SPDX-License-Identifier: Apache-2.0
"""Record real ticks with and without faults: the raw material of `bench/run detect`."""

from __future__ import annotations

import argparse
import hashlib
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench.harness import WORK, Result, need_root
from mvps.provoke.faults import FAULTS, LONGEST_S, Host
from mvps.vantages.recording import Recorder
from mvps.vantages.registry import VANTAGES, VantageSet

SUMMARY = "record ticks of this host: quiet, benign ramps, fault episodes (no bar; feeds detect)"
TICK_S = 0.5
CALIBRATION_TICKS = 300
# A spread fault: several vantages at once, each with this share of the dose that one fault alone would have.
SPREAD = {"mm": 0.6, "blk": 0.28, "cpu": 0.6}
DOSES = (1.0, 0.25)

Step = tuple[int, dict[str, Any]]  # ticks, what goes on in them


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--episodes", type=int, default=2, help="per fault and dose (1 and 0.25), spread faults too")
    parser.add_argument(
        "--plan",
        nargs="+",
        type=planned,
        metavar="FAULT@DOSExCOUNT",
        help="episodes one by one, e.g. mm@0.1x12 path@1x14",
    )
    parser.add_argument("--quiet-minutes", type=float, default=0.0, help="ticks without fault after the episodes")
    parser.add_argument("--work-minutes", type=float, default=0.0, help="at the end, with people at work on the host")
    parser.add_argument("--ramps", type=int, default=1, help="benign load changes to 0.3x, 2x and 3x, each so often")
    parser.add_argument("--fault-ticks", type=int, default=8)
    parser.add_argument("--gap-ticks", type=int, default=12)
    parser.add_argument("--background", type=float, default=100.0, help="requests per second of the standing load")
    parser.add_argument("--out", type=Path, default=WORK / "campaign.jsonl.gz")


def planned(text: str) -> tuple[str, float, int]:
    """(fault, dose, episodes) of one word of ``--plan``."""
    kind, _, rest = text.partition("@")
    dose, _, count = rest.partition("x")
    if kind not in (*FAULTS, "spread"):
        raise argparse.ArgumentTypeError(f"no fault {kind!r}; there are {', '.join(FAULTS)}, spread")
    try:
        return kind, float(dose), int(count)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not FAULT@DOSExCOUNT, e.g. mm@0.1x12") from None


def plan(given: argparse.Namespace) -> Iterator[Step]:
    """Calibration, episodes in random order (fixed seed) with gaps, ramps among them, then quiet."""
    yield CALIBRATION_TICKS + 20, {}
    wanted = given.plan or [(kind, dose, given.episodes) for kind in FAULTS for dose in DOSES]
    if not given.plan:
        wanted.append(("spread", DOSES[-1], given.episodes))
    steps: list[dict[str, Any]] = [{"fault": kind, "dose": dose} for kind, dose, count in wanted for _ in range(count)]
    steps += [{"ramp": factor} for factor in (0.3, 2.0, 3.0) for _ in range(given.ramps)]
    random.Random(20).shuffle(steps)
    for step in steps:
        yield (given.fault_ticks if "fault" in step else 4 * given.fault_ticks), step
        yield given.gap_ticks, {}
    quiet = round(given.quiet_minutes * 60 / TICK_S)
    if quiet:
        yield quiet, {}
    work = round(given.work_minutes * 60 / TICK_S)
    if work:
        yield work, {"work": "people use the host"}


def record(given: argparse.Namespace, out: Path) -> None:
    """Run the plan on the tick lattice and write everything the vantages saw."""
    vantages = VantageSet.open(VANTAGES)
    about = {"background": given.background, "vantages": list(VANTAGES)}
    steps = list(plan(given))
    total = sum(ticks for ticks, _ in steps)
    if (total + 60) * TICK_S > LONGEST_S:
        raise SystemExit(
            f"{total * TICK_S / 60:.0f} minutes; loads end after {LONGEST_S / 60:.0f}: make two recordings"
        )
    try:
        with Host(background_rate=given.background) as host, Recorder(out, TICK_S, about) as recorder:
            host.prepare(network=True)
            time.sleep(3.0)
            index = int(time.time() / TICK_S) + 1
            vantages.read()
            done = 0
            seen: dict[str, Any] = {}
            for number, (ticks, what) in enumerate(steps):
                if number == 1:  # calibration is over: stamp what goes beyond the worst it saw
                    vantages.set_thresholds(
                        {name: int(np.flatnonzero(h)[-1]) + 1 for name, h in seen.items() if h.any()}
                    )
                recorder.mark(time.time_ns(), what)
                if what.get("fault") == "spread":
                    for kind, share in SPREAD.items():
                        host.start(kind, share * what["dose"])
                elif "fault" in what:
                    host.start(what["fault"], what["dose"])
                elif "ramp" in what:
                    host.set_background(what["ramp"])
                for _ in range(ticks):
                    time.sleep(max(0.0, index * TICK_S - time.time()))
                    observations = vantages.read()
                    recorder.tick(index, time.time_ns(), observations)
                    if number == 0:
                        seen = {name: seen.get(name, 0) + one.histogram for name, one in observations.items()}
                    index = max(index + 1, int(time.time() / TICK_S) + 1)
                if "fault" in what:
                    host.stop()
                elif "ramp" in what:
                    host.set_background(1.0)
                done += ticks
                print(f"\r{done}/{total} ticks  {what}          ", end="", flush=True)
            recorder.mark(time.time_ns(), {"losses": {k: v for k, v in vantages.losses().items() if v}})
            print()
    finally:
        vantages.close()


def run(given: argparse.Namespace) -> Result:
    need_root()
    record(given, given.out)
    size = given.out.stat().st_size
    digest = hashlib.sha256(given.out.read_bytes()).hexdigest()
    return Result(size / 1e6, "MB", 0.0, True, {"file": given.out.name, "sha256": digest})
