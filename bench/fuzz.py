# SPDX-License-Identifier: Apache-2.0
"""Coverage-guided fuzzing (atheris) of everything that reads octets from somebody else: what raises, hangs or grows.

A target is one reader with all that follows it, and may raise nothing: the exceptions a reader declares are caught
here, one by one. Half of the targets have a form of input in which the fuzzer's octets come behind a good seal or
signature, made by the honest key: what an insider can send. Besides, nothing may be accepted that the honest sealer
did not make, and nothing twice.

Every target runs in a process of its own, a fixed number of executions, with atheris watching the branches of all
code of ours that is Python. Native readers (the gate, protobuf) are seen from outside; the gate's own fuzzer is
native/fuzz.sh, and for `insider` the Python oracle of the gate shows the fuzzer the way and is held against it.
Clocks stand still. A finding leaves its input in bench/work/fuzz/: `./bench/run fuzz --replay FILE` runs it alone.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import logging
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.fuzzing.answers import Answers
from bench.fuzzing.datagrams import Datagrams
from bench.fuzzing.engines import Engine
from bench.fuzzing.snapshots import Baselines, Insider, Stranger
from bench.fuzzing.target import Target
from bench.fuzzing.texts import Enrolments, Manifests, Notes, Witnesses
from bench.harness import ROOT, WORK, Result

SUMMARY = "octets from strangers and insiders into every reader: exceptions, forgeries, time, memory"
SHORT, FULL = 20_000, 1_000_000  # executions over all targets
GROWTH_MIB = 64.0  # peak memory of a target's process, from a tenth of its executions to the last
SLOWEST_S = 1.0  # processor time of one input
_KEPT = 20  # different findings of a target
_HANG_S, _MEMORY_MIB = 60, 2048  # a process that exceeds them is ended and is a finding
_LONGEST_S = 300  # a target that takes longer ends before its last execution, which is a failure
_FOUND = WORK / "fuzz"
_CHILD = """
import sys, atheris
with atheris.instrument_imports(include=["mvps", "tests"]):
    from bench import fuzz
fuzz.campaign(sys.argv[1:], atheris)
"""


class SlowError(Exception):
    """One input took longer than any may."""


TARGETS: dict[str, type[Target]] = {
    "stranger": Stranger,
    "insider": Insider,
    "baselines": Baselines,
    "answers": Answers,
    "manifests": Manifests,
    "enrolments": Enrolments,
    "witnesses": Witnesses,
    "notes": Notes,
    "datagrams": Datagrams,
    "engine": Engine,
}


# ---- defects to be found: a fuzzer that finds none in a broken reader says nothing about a whole one


def _plant_seal() -> None:
    """Signatures hold whatever they are, but for one in 256."""
    from mvps.trust import keys

    whole = keys._holds

    def generous(key: Any, message: bytes, signature: bytes) -> bool:
        return whole(key, message, signature) or signature[:1] != b"\0"

    keys._holds = generous


def _plant_parser() -> None:
    """A reader of base64 that lets its library's exception through."""
    from mvps.trust import note

    def careless(text: str) -> bytes | None:
        decoded = base64.b64decode(text, validate=True)
        return decoded if base64.b64encode(decoded).decode() == text else None

    note._base64 = careless


def _plant_leak() -> None:
    """A reader of notes that keeps what it read."""
    from mvps.trust import note

    whole, kept = note._decode, []

    def hoarder(data: bytes) -> str:
        kept.append(bytearray(1 << 18))
        kept[-1][::4096] = b"x" * 64  # or the pages would be nobody's
        return whole(data)

    note._decode = hoarder


PLANTS: dict[str, Callable[[], None]] = {"seal": _plant_seal, "parser": _plant_parser, "leak": _plant_leak}


# ---- one target, in a process of its own


@dataclass
class Campaign:
    """What became of one target. ``findings``: what, where, and the input's file."""

    target: str
    executions: int = 0
    taken_in: int = 0
    seconds: float = 0.0
    slowest_s: float = 0.0
    growth_mib: float = 0.0
    peak_mib: float = 0.0
    seeds: int = 0
    corpus: int = 0
    findings: list[dict[str, str]] = field(default_factory=list)

    def find(self, error: Exception, data: bytes, folder: Path) -> None:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if str(ROOT) in frame.filename and ".venv" not in frame.filename] or frames
        where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else ""
        if len(self.findings) < _KEPT and all(
            (f["where"], f["kind"]) != (where, type(error).__name__) for f in self.findings
        ):
            folder.mkdir(parents=True, exist_ok=True)
            file = folder / f"{self.target}-{hashlib.sha256(data).hexdigest()[:12]}"
            file.write_bytes(data)
            self.findings.append(
                {"kind": type(error).__name__, "where": where, "text": str(error)[:300], "input": file.name}
            )


def _peak_mib() -> float:
    # Not ru_maxrss: that begins with what the parent had in memory before the exec, and hides growth below it.
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def campaign(words: Sequence[str], atheris: Any) -> None:
    """The child: run one target and write its :class:`Campaign` as JSON. Does not return."""
    parser = argparse.ArgumentParser()
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("runs", type=int)
    parser.add_argument("seed", type=int)
    parser.add_argument("folder", type=Path)
    parser.add_argument("found", type=Path)
    parser.add_argument("--plant", choices=PLANTS)
    given = parser.parse_args(words)
    random.seed(given.seed)
    logging.disable(logging.CRITICAL)  # every manifest that is refused for another reason is a line
    target = TARGETS[given.target]()
    if given.plant:
        PLANTS[given.plant]()
    result = Campaign(given.target, seeds=len(target.seeds))
    corpus = given.folder / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(target.seeds):
        (corpus / f"seed-{number:03}").write_bytes(seed)
    begun = time.monotonic()
    base = 0.0

    def one(data: bytes) -> None:
        nonlocal base
        start = time.thread_time()
        try:
            target.run(data)
        except Exception as error:
            result.find(error, data, given.found)
        spent = time.thread_time() - start
        if spent > SLOWEST_S:
            result.find(SlowError(f"{spent:.1f} s"), data, given.found)
        result.slowest_s = max(result.slowest_s, spent)
        result.executions += 1
        if result.executions == max(given.runs // 10, 1):
            base = _peak_mib()
        if result.executions == given.runs or time.monotonic() - begun > _LONGEST_S:
            result.taken_in = target.taken_in
            result.seconds = round(time.monotonic() - begun, 1)
            result.slowest_s = round(result.slowest_s, 4)
            result.peak_mib = round(_peak_mib(), 1)
            result.growth_mib = round(_peak_mib() - base, 1)
            result.corpus = len(list(corpus.iterdir()))
            (given.folder / "result.json").write_text(json.dumps(asdict(result)))
            sys.stdout.flush()
            os._exit(0)  # libFuzzer would not come back either

    for data in (*target.seeds, *target.largest):
        one(data)
        if not target.taken_in and not given.plant:
            raise SystemExit(f"bench: {given.target} refuses its own seed")

    def mutator(data: bytes, max_size: int, seed: int) -> bytes:
        return target.mutate(bytes(data), max_size, seed, lambda part, most: bytes(atheris.Mutate(part, most)))

    atheris.Setup(
        [
            "fuzz", str(corpus), f"-seed={given.seed}", f"-max_len={target.max_size}", f"-timeout={_HANG_S}",
            f"-rss_limit_mb={_MEMORY_MIB}", f"-artifact_prefix={given.found}/{given.target}-", "-runs=-1",
        ],
        one, custom_mutator=mutator,
    )  # fmt: skip
    atheris.Fuzz()


def attack(name: str, runs: int, seed: int, found: Path, plant: str | None = None) -> Campaign:
    """Run one target in a child. Findings' inputs lie in ``found``."""
    found.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="mvps-fuzz-") as folder:
        words = [name, str(runs), str(seed), folder, str(found), *(["--plant", plant] if plant else [])]
        done = subprocess.run(
            [sys.executable, "-c", _CHILD, *words],
            cwd=ROOT, env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'agent'}"},
            capture_output=True, text=True, errors="replace", check=False,
        )  # fmt: skip
        written = Path(folder, "result.json")
        if done.returncode == 0 and written.exists():
            return Campaign(**json.loads(written.read_text()))
    last = "\n".join((done.stdout + done.stderr).strip().splitlines()[-25:])
    print(f"{name}: ended with {done.returncode}\n{last}")
    # Out of time or memory, or killed: libFuzzer has kept the input.
    return Campaign(
        name, findings=[{"kind": "ended", "where": f"status {done.returncode}", "text": last[-300:], "input": ""}]
    )


def replay(file: Path) -> None:
    """Run a kept input once, without atheris, and let its exception through."""
    name = file.name.partition("-")[0]
    if name not in TARGETS:
        raise SystemExit(f"bench: {file.name} does not begin with a target: {', '.join(TARGETS)}")
    TARGETS[name]().run(file.read_bytes())
    print(f"{file.name}: nothing found")


# ---- benchmark


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--target", choices=TARGETS, action="append", help="only this one; may be given more than once")
    parser.add_argument("--runs", type=int, default=0, help=f"executions over all (default {SHORT}, --full {FULL})")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2, help="targets at a time (default 2)")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run one kept input, and nothing else")


def run(given: argparse.Namespace) -> Result:
    if given.replay:
        replay(given.replay)
        return Result(0.0, "findings", 0.0, True)
    total = given.runs or (FULL if given.full else SHORT)
    names = given.target or list(TARGETS)
    shutil.rmtree(_FOUND, ignore_errors=True)
    shares = sum(TARGETS[name].share for name in names)

    def of(name: str) -> Campaign:
        done = attack(name, math.ceil(total * TARGETS[name].share / shares), given.seed, _FOUND)
        print(
            f"{name:11} {done.executions:8} executions, {done.taken_in:7} taken in, {done.seconds:6} s, "
            f"slowest {done.slowest_s:.3f} s, grew {done.growth_mib} MiB, {len(done.findings)} findings", flush=True
        )  # fmt: skip
        for finding in done.findings:
            print(f"  {finding['kind']} at {finding['where']}: {finding['text']}  [{finding['input']}]", flush=True)
        return done

    begun = time.monotonic()
    with ThreadPoolExecutor(given.jobs) as pool:
        campaigns = list(pool.map(of, names))
    findings = sum(len(one.findings) for one in campaigns)
    slowest, growth = (max(getattr(one, name) for one in campaigns) for name in ("slowest_s", "growth_mib"))
    done = sum(one.executions for one in campaigns)
    holds = findings == 0 and done >= total and slowest <= SLOWEST_S and growth <= GROWTH_MIB
    return Result(
        float(findings),
        "findings",
        0.0,
        holds,
        {
            "executions": done,
            "seconds": round(time.monotonic() - begun, 1),
            "seed": given.seed,
            "slowest_s": {"figure": slowest, "bar": SLOWEST_S},
            "growth_mib": {"figure": growth, "bar": GROWTH_MIB},
            "targets": {one.target: asdict(one) for one in campaigns},
        },
    )


assert abs(sum(target.share for target in TARGETS.values()) - 1.0) < 1e-9
