# SPDX-License-Identifier: Apache-2.0
"""A store that is full: what a snapshot takes on disk, and what making room costs a commit.

Sealed snapshots of calibrated hosts go through the real gate into the real store until it has been filled twice. The
first fill has nothing to remove, the second removes as much as it brings, so that both are of one run. *Batches* are
messages of 256 snapshots of one host; *lone* are messages of one, of 256 hosts that report at the same time.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from bench import verify
from bench.harness import WORK, Result
from mvps.broker.admission import Admission
from mvps.broker.store import Store
from mvps.broker.tables import StoreError
from mvps.trust.epochs import Epochs
from mvps.trust.keys import load_key
from mvps.trust.replay import Window
from mvps.trust.seal import Lane, Purpose, Sealed, Sealer
from mvps.trust.solo import make_site
from mvps.v1 import stream_pb2 as pb

SUMMARY = "a full store: bytes a snapshot takes, and a commit's cost while the oldest go beside one while none do"
HOSTS = 256
# CPU of a commit in a full store beside one in a store that fills. Making room is deleting what was inserted before.
BAR = 2.0
_NS = 10**9


class Hosts:
    """Seals what ``HOSTS`` calibrated hosts would send, at once."""

    def __init__(self, folder: Path) -> None:
        names = [f"host-{number}" for number in range(HOSTS)]
        site = make_site(folder, names, tick_ms=50, rate_factor=1000)
        self.epochs = Epochs.of_broker([load_key(str(site.broker_key))])
        self.epochs.add(site.manifest)
        chance = random.Random(1)
        tick = time.time_ns() // _NS
        counters = itertools.count(1 << 32)
        self._sealers: list[Sealer] = []
        self.bodies: list[bytes] = []
        self._tick = tick
        for name in names:
            key = self.epochs.sealing_key(name, site.manifest.epoch_id, Purpose.SNAPSHOT)
            self._sealers.append(
                Sealer(key, name, Purpose.SNAPSHOT, lambda _: next(counters), epoch_id=site.manifest.epoch_id)
            )
            snapshot = verify.snapshot(name, chance)
            snapshot.tick, snapshot.tick_time_ns = tick, tick * _NS
            self.bodies.append(snapshot.SerializeToString())

    def sealed(self, number: int) -> Sealed:
        """The next one of a host."""
        return self._sealers[number].seal(self.bodies[number], self._tick, Lane.LIVE)


def _message(*items: Sealed) -> bytes:
    batch = pb.Batch(stream_nonce=bytes(16))
    for header, body, tag in items:
        batch.items.add(header=header, body=body, tag=tag)
    return batch.SerializeToString()


async def fill(folder: Path, hosts: Hosts, bound: int, lone: bool) -> dict[str, Any]:
    """Fill a store of ``bound`` bytes twice."""
    admission = Admission(hosts.epochs, Window(live_past_ns=3600 * _NS), max_vantages=HOSTS)
    store = Store(folder / "broker.db", retention_s=86400, max_bytes=bound)
    cpu: dict[bool, list[float]] = {False: [], True: []}
    wall: dict[bool, list[float]] = {False: [], True: []}
    accepted = failed = largest = sent = 0
    target = 0
    try:
        for turn in itertools.count():
            if lone:
                messages = [_message(hosts.sealed(number)) for number in range(HOSTS)]
            else:
                messages = [_message(*(hosts.sealed(turn % HOSTS) for _ in range(256)))]
            judged = [admission.judge(message, b"", time.time_ns()) for message in messages]
            parcels = [one.parcel for one in judged]
            full = store.removed_early > 0
            begun, begun_cpu = time.perf_counter_ns(), time.process_time_ns()
            try:
                await asyncio.gather(*(store.submit(parcel, store.fence) for parcel in parcels))
            except StoreError as error:
                failed += 1
                admission.rewind()
                if not store.removed_early or failed > 10:
                    raise SystemExit(f"bench: the store is full and stops: {error}") from None
                continue
            wall[full].append((time.perf_counter_ns() - begun) / 1e6)
            cpu[full].append((time.process_time_ns() - begun_cpu) / 1e3 / HOSTS)
            for one in judged:
                admission.commit(one.runs)
            accepted += HOSTS
            sent += sum(len(parcel.leaves) for parcel in parcels)
            largest = max(largest, store.bytes)
            if not full:
                target = 2 * accepted
            elif accepted >= target:
                break
        kept = accepted - store.removed_early
        size, log = store.bytes, store.evidence.bytes_kept
    finally:
        await asyncio.to_thread(store.close)
    body = statistics.mean(map(len, hosts.bodies))
    return {
        "body_bytes": round(body),
        "seal_bytes": round(sent / accepted - body),
        "database_bytes": round((size - log) / kept),
        "cpu_us_full": round(statistics.mean(cpu[True]), 2),
        "cpu_us_filling": round(statistics.mean(cpu[False]), 2),
        "commit_ms_p99_filling": round(statistics.quantiles(wall[False], n=100)[98], 2),
        "commit_ms_p99_full": round(statistics.quantiles(wall[True], n=100)[98], 2),
        "accepted": accepted,
        "removed_early": accepted - kept,
        "commits_failed": failed,
        "largest_share_of_bound": round(largest / bound, 3),
    }


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--mib", type=int, default=0, help="bound of the store; default 64, with --full 512")


def run(given: argparse.Namespace) -> Result:
    bound = (given.mib or (512 if given.full else 64)) << 20
    details: dict[str, Any] = {}
    for name in ("batches", "lone"):
        with tempfile.TemporaryDirectory(prefix="retention-", dir=WORK) as place:
            (Path(place) / "site").mkdir()
            hosts = Hosts(Path(place) / "site")
            details[name] = asyncio.run(fill(Path(place), hosts, bound, name == "lone"))
        print(name, details[name], flush=True)
    ratios = [one["cpu_us_full"] / one["cpu_us_filling"] for one in details.values()]
    good = all(one["commits_failed"] == 0 and one["largest_share_of_bound"] <= 1 for one in details.values())
    worst = max(ratios)
    return Result(round(worst, 3), "x a commit's CPU in a store that is not full", BAR, good and worst <= BAR, details)
