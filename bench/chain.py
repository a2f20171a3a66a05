# SPDX-License-Identifier: Apache-2.0
"""Memory pressure in a replica's control group: what moves first in the kernel, and what users and the balancer see.

The second direction of 001 sec. 17.2: pressure -> reclaim -> sockets -> latency -> less traffic for the replica. Two
replicas serve over TCP from namespaces of their own, each reads some pages of its mapped weights for an answer; a
client sends each request to a replica by weights that follow the inverse of its latencies, as a least-latency balancer
does. In an episode another process of one replica's control group takes so much memory for some seconds that the
weights do not fit beside it any more; nothing else is done. Between episodes there are as many *placebos*: the same
process at the same times, which takes nothing.

Every tick the agent's own vantages are read and judged by its own model; onset of a vantage is the first of two ticks
in a row in which its standardised distance is beyond what all but one in 200 quiet ticks have, of a latency or a share
likewise. Who was first is judged by onsets alone, and onsets in the same tick are ties. Truth is the injection.

The bar: the kernel surface names memory or what memory does to the disk (mm, blk) as its first vantage in more episodes
than any other, no later than users see it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import mmap
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.harness import Result, need_root, wilson
from mvps.coherence.baseline import ModelSettings
from mvps.coherence.model import SurfaceModel
from mvps.provoke.faults import Host
from mvps.testbed.lab import Lab, lab
from mvps.vantages.registry import VantageSet

SUMMARY = "memory pressure on one replica: order of kernel, users and balancer, beside placebos"
TICK_S = 0.25
CALIBRATION_TICKS = 160
FAULT_TICKS, GAP_TICKS = 24, 48
RECOVERY_TICKS = 24
WITHIN = 12  # ticks in which an onset belongs to its episode
VANTAGES = ("mm", "blk", "sock", "sched", "irq")
REPLICAS = ("r1", "r2")
WEIGHTS_MIB, ROOM_MIB, TAKEN_MIB = 96, 160, 100
PAGES, ANSWER = 48, 32 * 1024  # per request
RATE = 80.0  # requests a second
PORT = 7100
QUANTILE = 0.995


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--episodes", type=int, default=0, help="with pressure, and as many without (default 4, --full 20)"
    )


# ---- the replica and the client, in processes of their own


def replica(path: str, address: str) -> None:
    """Serve until the input closes: PAGES pages of the weights and then ANSWER bytes per request, one at a time."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as weights:
        pages = len(weights) // mmap.PAGESIZE
        draw = random.Random(0)
        for page in range(pages):  # warm, and charged to this control group
            weights[page * mmap.PAGESIZE]
        answer = bytes(ANSWER)

        def serve(peer: socket.socket) -> None:
            with peer, contextlib.suppress(OSError):
                while peer.recv(1):
                    for _ in range(PAGES):
                        weights[draw.randrange(pages) * mmap.PAGESIZE]
                    peer.sendall(answer)

        with socket.create_server((address, PORT)) as listening:
            print("listening", flush=True)
            threading.Thread(target=_until_closed, daemon=True).start()
            while True:
                threading.Thread(target=serve, args=(listening.accept()[0],), daemon=True).start()


def neighbour(mib: str) -> None:
    """Take so much memory, and hold it until the input closes."""
    taken = bytearray(int(mib) << 20)
    for page in range(0, len(taken), mmap.PAGESIZE):
        taken[page] = 1
    _until_closed()


def client(seed: int, *addresses: str) -> None:
    """Ask at RATE; one line a tick: tick number, median latency of each replica in s, share of each.

    A request that waits since before the tick counts with the time it has waited: of a replica that answers nobody the
    latency would not be known otherwise, just when it is longest.
    """
    lock = threading.Lock()
    taken: list[list[float]] = [[] for _ in addresses]
    waiting: list[set[float]] = [set() for _ in addresses]  # when it began
    weights = [1.0 / len(addresses)] * len(addresses)
    draw = random.Random(seed)
    free: list[list[socket.socket]] = [[] for _ in addresses]

    def ask(index: int) -> None:
        begun = time.monotonic()
        with lock:
            waiting[index].add(begun)
            peer = free[index].pop() if free[index] else None
        try:
            peer = peer or socket.create_connection((addresses[index], PORT), 5.0)
            peer.sendall(b"?")
            left = ANSWER
            while left:
                got = len(peer.recv(min(left, 1 << 16)))
                if not got:
                    raise OSError("closed")
                left -= got
        except OSError:
            spent = 5.0
        else:
            spent = time.monotonic() - begun
            with lock:
                free[index].append(peer)
        with lock:
            waiting[index].discard(begun)
            taken[index].append(spent)

    threading.Thread(target=_until_closed, daemon=True).start()
    tick = int(time.time() / TICK_S) + 1
    smoothed = [math.nan] * len(addresses)
    while True:
        while time.time() < tick * TICK_S:
            index = draw.choices(range(len(addresses)), weights)[0]
            threading.Thread(target=ask, args=(index,), daemon=True).start()
            time.sleep(draw.expovariate(RATE))
        now = time.monotonic()
        with lock:
            seen, taken = taken, [[] for _ in addresses]
            for one, begun in zip(seen, waiting, strict=True):
                one += [now - since for since in begun if now - since >= TICK_S]
        medians = [float(np.median(one)) if one else math.nan for one in seen]
        for index, median in enumerate(medians):
            if not math.isnan(median):
                old = smoothed[index]
                smoothed[index] = median if math.isnan(old) else 0.6 * old + 0.4 * median
        if not any(map(math.isnan, smoothed)):
            inverse = [1.0 / max(one, 1e-4) for one in smoothed]
            # A replica keeps a tenth, or nobody would ever learn that it is well again.
            weights = [max(one / sum(inverse), 0.1) for one in inverse]
            weights = [one / sum(weights) for one in weights]
        print(json.dumps([tick, medians, weights]), flush=True)
        tick = max(tick + 1, int(time.time() / TICK_S))


def _until_closed() -> None:
    sys.stdin.read()
    os._exit(0)


# ---- the recording


class Recorded:
    """Series by tick. own: vantage -> standardised distance. latency, share: of the pressed replica."""

    def __init__(self) -> None:
        self.own: dict[str, dict[int, float]] = {}
        self.latency: dict[int, float] = {}
        self.share: dict[int, float] = {}
        self.episodes: list[tuple[int, bool]] = []  # first tick, whether pressed
        self.quiet: list[int] = []


@contextlib.contextmanager
def _process(command: Sequence[str], **more: Any) -> Iterator[subprocess.Popen[str]]:
    made = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **more)
    try:
        yield made
    finally:
        assert made.stdin is not None
        made.stdin.close()
        try:
            made.wait(10)
        except subprocess.TimeoutExpired:
            made.kill()
            made.wait()


def _command(net: Lab, where: str, what: str, *words: str, options: Sequence[str] = ()) -> list[str]:
    run = f"import sys; from bench import chain; chain.{what}(*sys.argv[1:])"
    enter = "import os,sys\nfor g in sys.argv[1].split(): open(g+'/cgroup.procs','w').write(str(os.getpid()))\n"
    groups = " ".join(word for word in options if word != "--cgroup")
    again = f"{enter}os.execvp(sys.argv[2], sys.argv[2:])"
    return [*net.enter(where), sys.executable, "-c", again, groups, sys.executable, "-c", run, *words]


def record(episodes: int, seed: int) -> Recorded:
    """Run the plan on the tick lattice."""
    found = Recorded()
    pressed = [True, False] * episodes
    random.Random(seed).shuffle(pressed)
    vantages = VantageSet.open(VANTAGES)
    model = SurfaceModel("kernel", VANTAGES, ModelSettings(calibration_ticks=CALIBRATION_TICKS))
    with contextlib.ExitStack() as stack:
        stack.callback(vantages.close)
        host = stack.enter_context(Host())
        net = stack.enter_context(lab("mvps-chain"))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mvps-chain-", dir=host.directory)))
        net.host("gw")
        pressed_group: list[str] = []
        for number, name in enumerate(REPLICAS, 1):
            net.host(name)
            net.link("gw", f"10.98.{number}.1/24", name, f"10.98.{number}.2/24")
            weights = folder / name
            weights.write_bytes(random.Random(number).randbytes(WEIGHTS_MIB << 20))
            with weights.open("rb") as file:
                os.fsync(file.fileno())
                # What is cached already belongs to whoever wrote it, and would press on nobody else.
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            groups = host.workload(f"chain-{name}", ROOM_MIB)
            pressed_group = groups if name == REPLICAS[0] else pressed_group
            server = stack.enter_context(
                _process(_command(net, name, "replica", str(weights), f"10.98.{number}.2", options=groups))
            )
            assert server.stdout is not None
            server.stdout.readline()
        asking = stack.enter_context(
            _process(_command(net, "gw", "client", str(seed), *(f"10.98.{n}.2" for n in (1, 2))))
        )
        reader = threading.Thread(target=_listen, args=(asking, found), daemon=True)
        reader.start()
        time.sleep(5.0)
        tick = int(time.time() / TICK_S) + 1
        vantages.read()
        steps = [(CALIBRATION_TICKS + 40, None)]
        for one in pressed:
            steps += [(FAULT_TICKS, one), (GAP_TICKS, None)]
        done, total = 0, sum(ticks for ticks, _ in steps)
        for number, (ticks, press) in enumerate(steps):
            taking = contextlib.ExitStack()
            if press is not None:
                found.episodes.append((tick, press))
                mib = str(TAKEN_MIB if press else 0)
                taking.enter_context(_process(_command(net, "r1", "neighbour", mib, options=pressed_group)))
            for step in range(ticks):
                time.sleep(max(0.0, tick * TICK_S - time.time()))
                result = model.step(tick, {n: seen for n, seen in vantages.read().items() if n in VANTAGES})
                for vantage, distance in result.vector.own.items():
                    found.own.setdefault(vantage, {})[tick] = distance
                if press is None and (step >= CALIBRATION_TICKS if number == 0 else step >= RECOVERY_TICKS):
                    found.quiet.append(tick)
                tick = max(tick + 1, int(time.time() / TICK_S) + 1)
            taking.close()
            done += ticks
            print(f"\r{done}/{total} ticks", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
    return found


def _listen(asking: subprocess.Popen[str], found: Recorded) -> None:
    assert asking.stdout is not None
    for line in asking.stdout:
        tick, medians, shares = json.loads(line)
        found.latency[tick] = medians[0] if medians[0] is not None else math.nan
        found.share[tick] = -shares[0]  # it falls


# ---- onsets and their order


def onsets(series: Mapping[int, float], quiet: Sequence[int], episodes: Sequence[int]) -> list[int | None]:
    """Per episode the ticks from its begin to the first of two in a row beyond the quiet ticks' quantile."""
    calm = [series[tick] for tick in quiet if not math.isnan(series.get(tick, math.nan))]
    if len(calm) < 100:
        raise ValueError(f"{len(calm)} quiet ticks are too few for a limit")
    limit = float(np.quantile(calm, QUANTILE, method="higher"))
    found: list[int | None] = []
    for begin in episodes:
        beyond = [series.get(begin + step, math.nan) > limit for step in range(WITHIN + 1)]
        found.append(next((step for step in range(WITHIN) if beyond[step] and beyond[step + 1]), None))
    return found


def _rate(count: int, of: int) -> list[float | None]:
    if not of:
        return [None, 0.0, 1.0]
    return [round(value, 3) for value in (count / of, *wilson(count, of))]


def report(found: Recorded) -> dict[str, Any]:
    """Onsets of all series in pressed and placebo episodes, and who was first."""
    series = {**found.own, "latency": found.latency, "share": found.share}
    pressed = [tick for tick, press in found.episodes if press]
    placebo = [tick for tick, press in found.episodes if not press]
    shown: dict[str, Any] = {"episodes": len(pressed), "placebos": len(placebo), "quiet_ticks": len(found.quiet)}
    at = {name: onsets(one, found.quiet, pressed) for name, one in series.items()}
    shown["series"] = {
        name: {
            "moved": _rate(sum(one is not None for one in onset), len(pressed)),
            "median_onset_s": _median_s(onset),
            "placebo": _rate(sum(one is not None for one in onsets(series[name], found.quiet, placebo)), len(placebo)),
        }
        for name, onset in at.items()
    }
    kernel = sorted(found.own)
    firsts = []
    for number in range(len(pressed)):
        known = {name: at[name][number] for name in kernel if at[name][number] is not None}
        least = min(known.values(), default=None)  # type: ignore[type-var]
        firsts.append({name for name, one in known.items() if one == least} if least is not None else set())
    shown["first"] = {name: sum(name in one for one in firsts) for name in kernel}
    shown["memory_first"] = _rate(sum(bool(one & {"mm", "blk"}) for one in firsts), len(pressed))
    pairs = (("mm", "sock"), ("sock", "latency"), ("mm", "latency"), ("latency", "share"))
    shown["order"] = {f"{a} <= {b}": _order(at[a], at[b]) for a, b in pairs if a in at and b in at}
    return shown


def _order(a: Sequence[int | None], b: Sequence[int | None]) -> list[float | None]:
    """Share of the episodes in which both moved, and a not after b; and how many these are."""
    both = [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    return [*_rate(sum(x <= y for x, y in both), len(both)), len(both)]


def _median_s(onset: Sequence[int | None]) -> float | None:
    moved = [one for one in onset if one is not None]
    return float(np.median(moved)) * TICK_S if moved else None


def run(given: argparse.Namespace) -> Result:
    need_root()
    shown = report(record(given.episodes or (20 if given.full else 4), 1))
    before = shown["order"].get("mm <= latency", [None])[0] or 0.0
    others = [count for name, count in shown["first"].items() if name not in ("mm", "blk")]
    share = shown["memory_first"][0]
    holds = share * shown["episodes"] > max(others, default=0) and share >= 0.5 and before >= 0.5
    return Result(share, "share of episodes in which mm or blk is first", 0.5, holds, shown)
