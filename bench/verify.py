# SPDX-License-Identifier: Apache-2.0
"""What one sealed snapshot costs a broker from its bytes to its verdict, on one core, beside the same in Python.

Header, seal, replay and the whole check of the body (wire format, closed schema, limits, domains) of snapshots with one
surface of six distributions, from a thousand vantages, in batches as large as a stream may send. Three parties see the
same kind of batches in turn: the native gate with HMAC seals (profile cwt), the gate with Ed25519 seals (profile
trust), and Python: the standard library's HMAC, protobuf's parser and the rules of tests/trust/oracle.py. Times are per
snapshot, medians over batches. Not in any of them: gRPC, taking the batch apart, a parsed message for who needs the
values (its cost is stated apart), and the store. The evidence log is measured beside them.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import statistics
import struct
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.trust import oracle

from bench.harness import WORK, Result
from mvps.trust.evidence_log import NEW_LOG, EvidenceLog, leaf_of
from mvps.trust.gate import HmacKey, Validity, check_body, open_gate, parse_header
from mvps.trust.keys import Kind, SecretKey
from mvps.trust.limits import MAX_BATCH_ITEMS
from mvps.trust.merkle import Tree, leaf_hash
from mvps.trust.replay import Window
from mvps.trust.seal import Ed25519Signer, Ed25519Verifier, Lane, Purpose, Sealed, Sealer, SealingKey
from mvps.v1 import snapshot_pb2 as pb

SUMMARY = "us per snapshot for header, seal, replay and body check, native beside Python"
BAR_US = 3.0
VANTAGES = 1000
EPOCH = 1
_ALWAYS = Validity(0, 2**64 - 1, 2**64 - 1)
_TICK = 1_790_000_000
_NOW = _TICK * 10**9 + 5_000_000

_Batch = list[Sealed]


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batches", type=int, default=0, help="per party (default 60, with --full 600)")


def snapshot(vantage_id: str, chance: random.Random) -> pb.Snapshot:
    """A calibrated host's snapshot of one surface."""

    def distribution() -> bytes:
        shares = [chance.random() for _ in range(6)]
        return struct.pack("<6f", *(share / sum(shares) for share in shares))

    names = ("mm", "blk", "sock", "sched", "irq", "path")
    surface = pb.Surface(
        name="kernel",
        vector=pb.CoherenceVector(
            c1=1.0, c2=chance.random(), c3=chance.random(), c2_plain=0.9, hamiltonian=0.13, s=1.2, farthest="mm"
        ),
        decision=pb.Decision(
            phase=pb.PHASE_BAU,
            raw_phase=pb.PHASE_BAU,
            posterior=[0.9, 0.07, 0.02, 0.01],
            d2=chance.random(),
            phi_d=chance.random(),
            p_value=chance.random(),
            dof=3,
            cutoffs=pb.Cutoffs(watch=7.8, alarm=11.3, critical=float("inf"), mode="empirical"),
            baseline_id="0123456789abcdef",
            axis_contributions=[pb.Contribution(name=axis, value=chance.random()) for axis in ("c2", "c3")],
        ),
        observations=[
            pb.ObservationSummary(
                vantage=name,
                events=chance.randrange(1, 1000),
                checked=3,
                distribution=distribution(),
                own_distance=chance.random(),
            )
            for name in names
        ],
        calibrated_ticks=300,
        needed_ticks=300,
    )
    return pb.Snapshot(
        schema_version=1,
        vantage_id=vantage_id,
        tick=_TICK,
        tick_time_ns=_TICK * 10**9,
        tick_period_ns=10**9,
        lateness_ns=5_000_000,
        agent_version="0.1.0",
        surfaces=[surface],
        losses=pb.LossTotals(by_cause={"blk.objects_full": 3}),
    )


class Fleet:
    """Hosts that take turns in sending, each with its key and its counters. Also the source of their keys."""

    def __init__(self, signing: Callable[[int], SealingKey], verifying: Callable[[int], SealingKey]) -> None:
        chance = random.Random(1)
        names = [f"host-{number:04}" for number in range(VANTAGES)]
        self._keys = {name: verifying(number) for number, name in enumerate(names)}
        self._bodies = [snapshot(name, chance).SerializeToString() for name in names]
        self._sealers = [
            Sealer(signing(number), name, Purpose.SNAPSHOT, self._next, epoch_id=EPOCH, clock=lambda: _NOW)
            for number, name in enumerate(names)
        ]
        self._counter = 1 << 32
        self._turn = 0

    def _next(self, lane: Lane) -> int:
        self._counter += 1
        return self._counter

    def sealing_key(self, vantage_id: str, epoch_id: int, purpose: Purpose) -> SealingKey:
        return self._keys[vantage_id]

    def validity(self, epoch_id: int) -> Validity:
        return _ALWAYS

    def batch(self, size: int) -> _Batch:
        """The next snapshots of the next hosts."""
        items = []
        for _ in range(size):
            items.append(self._sealers[self._turn].seal(self._bodies[self._turn], _TICK))
            self._turn = (self._turn + 1) % VANTAGES
        return items


def _timed(work: Callable[[_Batch], Sequence[Any]], batches: Iterator[_Batch]) -> list[float]:
    """Microseconds per snapshot, batch by batch; every snapshot has to be accepted."""
    taken = []
    for batch in batches:
        gc.collect()
        begun = time.perf_counter_ns()
        answers = work(batch)
        taken.append((time.perf_counter_ns() - begun) / len(batch) / 1e3)
        refused = [one for one in answers if not one.fresh or one[2] is not None]
        if refused or len(answers) != len(batch):
            raise SystemExit(f"bench: a good snapshot was not accepted: {refused[:1]}")
    return taken


def _each(work: Callable[[Sealed], object], batch: _Batch) -> float:
    """Microseconds per snapshot of one part, median of 20."""
    taken = []
    for _ in range(20):
        begun = time.perf_counter_ns()
        for item in batch:
            work(item)
        taken.append((time.perf_counter_ns() - begun) / len(batch) / 1e3)
    return statistics.median(taken)


def _parts(fleet: Fleet, key: HmacKey, window: Window) -> dict[str, float]:
    """The parts apart, each called on its own from Python, which the gate does not do."""
    batch = fleet.batch(MAX_BATCH_ITEMS)
    header = oracle.parse_header(batch[0].header)
    parts: dict[str, Callable[[Sealed], object]] = {
        "header_us": lambda item: parse_header(item.header),
        "hmac_us": lambda item: key.tag(item.header, item.body),
        "body_us": lambda item: check_body(item.body, header, window),  # type: ignore[arg-type]  # the same fields
        "protobuf_message_us": lambda item: pb.Snapshot.FromString(item.body),
    }
    empty = _each(lambda item: None, batch)
    return {name: round(_each(work, batch) - empty, 2) for name, work in parts.items()}


def _log(fleet: Fleet, batches: int) -> dict[str, float]:
    """Microseconds per leaf: its place in the Merkle tree, and all of that in files with an fdatasync per batch."""
    merkle_us, durable_us = [], []
    tree = Tree()
    with tempfile.TemporaryDirectory(prefix="verify-", dir=WORK) as folder:
        log = EvidenceLog(Path(folder) / "log", NEW_LOG)
        for _ in range(batches):
            leaves = [leaf_of(item) for item in fleet.batch(MAX_BATCH_ITEMS)]
            begun = time.perf_counter_ns()
            tree.append([leaf_hash(leaf) for leaf in leaves])
            hashed = time.perf_counter_ns()
            log.append(leaves)
            log.commit()
            durable_us.append((time.perf_counter_ns() - hashed) / len(leaves) / 1e3)
            merkle_us.append((hashed - begun) / len(leaves) / 1e3)
        log.close()
    return {
        "merkle_append_us": round(statistics.median(merkle_us), 2),
        "durable_log_us": round(statistics.median(durable_us), 2),
    }


def run(given: argparse.Namespace) -> Result:
    count = given.batches or (600 if given.full else 60)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    window = Window()
    secrets = [SecretKey(random.Random(number).randbytes(32), Kind.HOST) for number in range(VANTAGES)]
    keys = [HmacKey(secret.derive("bench"), secret.public.key_id) for secret in secrets]
    slow_keys = [oracle.Key(secret.derive("bench"), secret.public.key_id) for secret in secrets]

    fleet = Fleet(keys.__getitem__, keys.__getitem__)  # type: ignore[arg-type]  # an int is as good as a Scheme here
    signers = Fleet(lambda n: Ed25519Signer(secrets[n]), lambda n: Ed25519Verifier(secrets[n].public))
    names = dict(zip((f"host-{number:04}" for number in range(VANTAGES)), slow_keys, strict=True))
    gate = open_gate(fleet, window)
    signed_gate = open_gate(signers, window)
    python = oracle.Gate(
        lambda vantage_id, _: oracle.Held(names[vantage_id], *_ALWAYS), window, VANTAGES, oracle.check_parsed
    )

    # Every key is asked for once before it counts.
    for _ in range(-(-VANTAGES // MAX_BATCH_ITEMS)):
        gate.admit(fleet.batch(MAX_BATCH_ITEMS), _NOW)
    native_us, python_us, signed_us = [], [], []
    for _ in range(count):
        native_us += _timed(lambda batch: gate.admit(batch, _NOW), iter([fleet.batch(MAX_BATCH_ITEMS)]))
        python_us += _timed(
            lambda batch: [python.admit(item, _NOW) for item in batch], iter([fleet.batch(MAX_BATCH_ITEMS)])
        )
        signed_us += _timed(lambda batch: signed_gate.admit(batch, _NOW), iter([signers.batch(16)]))
    native, slow = statistics.median(native_us), statistics.median(python_us)
    body = fleet.batch(1)[0].body
    details = {
        "conditions": f"{VANTAGES} vantages, batches of {MAX_BATCH_ITEMS}, one core",
        "body_bytes": len(body),
        "batches": count,
        "gate_p95_us": round(statistics.quantiles(native_us, n=20)[-1], 2),
        "python_us": round(slow, 1),
        "ratio_to_python": round(native / slow, 3),
        "ed25519_us": round(statistics.median(signed_us), 1),
        "per_core_and_second": round(1e6 / native),
        "parts": _parts(fleet, keys[0], window),
        "log": _log(fleet, count),
    }
    print(f"gate {native:.2f} us per snapshot of {len(body)} bytes, Python {slow:.1f} us")
    return Result(round(native, 2), "us per snapshot, cwt profile", BAR_US, native <= BAR_US, details)
