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
import contextlib
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
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from tests.trust import oracle

from bench.harness import ROOT, WORK, Result
from mvps.broker.admission import Admission, Admitted
from mvps.broker.recheck import DecisionCheck
from mvps.broker.state import FleetState
from mvps.broker.store import CounterKey, Kept
from mvps.broker.tables import entries_of
from mvps.coherence.model import ModelSettings, SurfaceModel
from mvps.coherence.observation import HIST_BINS, Observation, Scale
from mvps.daemon.identity import Identity
from mvps.interop.codec import COHE_PORT, MBND_PORT, NO_BFD, Bundle, BundleHeader, Coherence, Envelope, InteropError
from mvps.interop.codec import decode as decode_datagram
from mvps.stream.client import StreamClient
from mvps.stream.ledger import Ledger
from mvps.trust import limits
from mvps.trust.checkpoint import (
    Binding,
    Checkpoint,
    CheckpointError,
    Distances,
    InclusionProof,
    parse_checkpoint,
    parse_proof,
)
from mvps.trust.enrolment import Enrolment, EnrolmentError, open_enrolment, sign_enrolment
from mvps.trust.epochs import Epochs, EpochSealer
from mvps.trust.evidence_log import EvidenceError, leaf_of, sealed_of, split_leaves
from mvps.trust.gate import Batch
from mvps.trust.keys import KeySourceError, Kind, PublicKey, SecretKey, parse_public
from mvps.trust.manifest import (
    Broker,
    Manifest,
    ManifestError,
    Profile,
    Vantage,
    open_manifest,
    parse_manifest,
    parse_network,
    revoke,
    sign_manifest,
    succeed,
)
from mvps.trust.merkle import EMPTY, Tree, TreeHead, consistency_proof, inclusion_proof, leaf_hash
from mvps.trust.note import (
    COSIGNATURE_V1,
    ED25519,
    Note,
    NoteError,
    NoteKey,
    parse_note,
    parse_note_key,
    parse_signatures,
    sign_note,
    verified,
)
from mvps.trust.reasons import RejectReason as Why
from mvps.trust.replay import Recorded, Window
from mvps.trust.seal import Lane, Purpose, Sealed, Sealer, SealError, StreamCounter, Verifier, parse_header
from mvps.trust.witness import Request, RequestError, Witness, parse_request, size_in_conflict
from mvps.v1 import snapshot_pb2 as snapshots
from mvps.v1 import stream_pb2 as pb

SUMMARY = "octets from strangers and insiders into every reader: exceptions, forgeries, time, memory"
SECOND = 10**9
NOW_S = 1_800_000_000  # clocks stand here
NOW_NS = NOW_S * SECOND
DAY = 86400
NONCE = bytes(range(limits.NONCE_BYTES))
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

Mutate: TypeAlias = Callable[[bytes, int], bytes]


class SlowError(Exception):
    """One input took longer than any may."""


class ViolationError(Exception):
    """A reader did not raise, and did something it must not do."""


def require(holds: object, what: str) -> None:
    if not holds:
        raise ViolationError(what)


# ---- a site to be attacked


class World:
    """Keys and epochs of one site: epoch 1 (cwt, retired), and epoch 2 of ``profile``, in which `gone` is revoked."""

    def __init__(self, profile: Profile) -> None:
        # Always the same keys: a kept input is the same attack tomorrow.
        self.operator = _key(Kind.OPERATOR, "solo")
        self.broker_key = _key(Kind.BROKER, "broker")
        hosts = {name: _key(Kind.HOST, name) for name in ("host-1", "host-2", "gone")}
        self.host_key = hosts["host-1"]
        begun = NOW_S - 2 * DAY
        first = Manifest(
            operator="solo", epoch_id=1, previous=None, from_s=begun, until_s=begun + 4 * DAY, retire_s=begun,
            broker=Broker("broker", self.broker_key.public),
            vantages=tuple(Vantage(name, key.public) for name, key in hosts.items()),
        )  # fmt: skip
        self.manifests = [first, replace(revoke(succeed(first, begun + DAY), "gone"), profile=profile)]
        self.broker = Epochs.of_broker([self.broker_key])
        self.host = Epochs.of_agent([self.host_key], "host-1")
        for manifest in self.manifests:
            self.broker.add(manifest)
            self.host.add(manifest)

    def seal(self, body: bytes, *, tick: int = NOW_S, time_ns: int = NOW_NS, counter: int = 1 << 32, epoch_id: int = 2,
             lane: Lane = Lane.LIVE) -> Sealed:  # fmt: skip
        """Sealed by host-1, whatever it says. SealError where host-1 has no key."""
        key = self.host.sealing_key("host-1", epoch_id, Purpose.SNAPSHOT)
        sealer = Sealer(key, "host-1", Purpose.SNAPSHOT, lambda _: counter, epoch_id=epoch_id, clock=lambda: time_ns)
        return sealer.seal(body, tick, lane)

    def seal_answer(self, body: bytes, counter: Callable[[Lane], int]) -> Sealed:
        key = self.broker.sealing_key("host-1", 2, Purpose.CONTROL)
        return Sealer(key, "host-1", Purpose.CONTROL, counter, epoch_id=2, clock=lambda: NOW_NS).seal(body, 0)


def _key(kind: Kind, name: str) -> SecretKey:
    return SecretKey(_seed(kind, name), kind)


def _seed(kind: Kind, name: str) -> bytes:
    return hashlib.sha256(f"{kind} {name}".encode()).digest()


def honest_snapshot(tick: int = NOW_S, vantage_id: str = "host-1") -> snapshots.Snapshot:
    """Every field is set."""
    surface = snapshots.Surface(
        name="kernel",
        vector=snapshots.CoherenceVector(
            c1=1.0, c2=0.97, c3=0.9, c2_plain=0.98, hamiltonian=0.13, s=1.2, farthest="mm"
        ),
        decision=snapshots.Decision(
            phase=snapshots.PHASE_BAU, raw_phase=snapshots.PHASE_WATCH, posterior=[0.9, 0.07, 0.02, 0.01], d2=1.5,
            phi_d=0.78, p_value=0.6, dof=3, baseline_id="0123456789abcdef",
            cutoffs=snapshots.Cutoffs(watch=7.8, alarm=11.3, critical=math.inf, mode="empirical"),
            s_cutoffs=snapshots.Cutoffs(watch=1.0, alarm=2.0, critical=3.0, mode="empirical"),
            axis_contributions=[snapshots.Contribution(name="c2", value=1.5)],
            vantage_contributions=[snapshots.Contribution(name="mm", value=0.5)],
        ),
        observations=[
            snapshots.ObservationSummary(
                vantage=name, events=100, checked=3, violated=1, own_distance=0.4, degraded="slow",
                load=snapshots.ReplicaLoad(requests=5, prompt_tokens=500, cached_tokens=400),
                distribution=np.array([0.5, 0.25, 0.25], "<f4").tobytes(),
                objects=snapshots.ObjectSketch(hashes=[1, 2, 3], total=7, names={2: "sda"}),
            )
            for name in ("mm", "blk")
        ],
        missing=["irq"], calibrated_ticks=300, needed_ticks=300,
    )  # fmt: skip
    content = b'{"format":"x"}'
    return snapshots.Snapshot(
        schema_version=1, vantage_id=vantage_id, tick=tick, tick_time_ns=tick * SECOND, tick_period_ns=SECOND,
        lateness_ns=5, agent_version="0.1.0", surfaces=[surface], losses=snapshots.LossTotals(by_cause={"full": 3}),
        baselines=[snapshots.Baseline(id=_baseline_id(content), surface="kernel", json=content)], lead="mm",
        extensions={"site.note": b"x"},
    )  # fmt: skip


def _baseline_id(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


# ---- mutations that know the form


_NUMBERS = (0, 1, 2, 3, 6, 7, 255, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1, NOW_S, NOW_NS, SECOND)
_REALS = (0.0, -0.0, 1.0, -1.0, 0.5, 1.5, 1e-320, 1e308, math.inf, -math.inf, math.nan)
_TEXTS = ("", "x", "host-1", "kernel", "mm", "c2", "two\nlines", "\x1b[2J", "\u202e", "é" * 128, "x" * 256, "x" * 257)


def shake(message: Message, chance: random.Random) -> None:
    """Change one field somewhere in a message."""
    field_: Any = chance.choice(message.DESCRIPTOR.fields)
    values = getattr(message, field_.name)
    inner = field_.message_type
    if inner is not None and inner.GetOptions().map_entry:
        key, value = (_value(inner.fields_by_name[name], chance) for name in ("key", "value"))
        if len(values) and chance.random() < 0.3:
            values.clear()
        values[key] = value
    elif field_.is_repeated:
        action = chance.random()
        if len(values) and action < 0.3:
            del values[chance.randrange(len(values))]
        elif inner is None:
            values.append(_value(field_, chance))
        elif len(values) and action < 0.8:
            shake(chance.choice(values), chance)
        elif len(values):
            values.add().CopyFrom(chance.choice(values))
        else:
            values.add()
    elif inner is not None:
        if chance.random() < 0.1:
            message.ClearField(field_.name)
        else:
            shake(values, chance)
    else:
        setattr(message, field_.name, _value(field_, chance))


def _value(field_: FieldDescriptor, chance: random.Random) -> Any:
    kind = field_.cpp_type
    if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return chance.choice((*_REALS, chance.random()))
    if kind in (FieldDescriptor.CPPTYPE_UINT64, FieldDescriptor.CPPTYPE_UINT32):
        bits = 64 if kind == FieldDescriptor.CPPTYPE_UINT64 else 32
        return chance.choice((*_NUMBERS, chance.getrandbits(64))) % (1 << bits)
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return chance.randrange(9)
    if field_.type == FieldDescriptor.TYPE_BYTES:
        some = np.array(chance.choices((*_REALS, 0.25), k=chance.choice((1, 4, 64, 65))), "<f4").tobytes()
        return chance.choice((b"", chance.randbytes(chance.randrange(40)), some, bytes(limits.MAX_EXTENSION_BYTES + 1)))
    return chance.choice(_TEXTS)


def envelope_mutator(
    envelope: type[Message], items: str, body: type[Message]
) -> Callable[[bytes, int, int, Mutate], bytes]:
    """Mutates a first octet of choices and an envelope whose items have header, body (a message) and tag."""

    def mutator(data: bytes, max_size: int, seed: int, mutate: Mutate) -> bytes:
        chance = random.Random(seed)
        try:
            whole = envelope.FromString(data[1:])
        except DecodeError:
            return mutate(data, max_size)
        inside = getattr(whole, items)
        action = chance.random()
        if not data or not inside or action < 0.15:
            return mutate(data, max_size)
        item = chance.choice(inside)
        if action < 0.65:
            try:
                content = body.FromString(item.body)
            except DecodeError:
                item.body = mutate(item.body, 4096)
            else:
                for _ in range(chance.choice((1, 1, 1, 2, 5))):
                    shake(content, chance)
                for baseline in getattr(content, "baselines", ()):
                    baseline.id = _baseline_id(baseline.json)
                item.body = content.SerializeToString(deterministic=True)
        elif action < 0.75:
            item.body = mutate(item.body, 4096)
        elif action < 0.85:
            item.header = mutate(item.header, 200)
        elif action < 0.9:
            item.tag = mutate(item.tag, 80)
        elif action < 0.95:
            inside.add().CopyFrom(item)
        else:
            del inside[chance.randrange(len(inside))]
        changed = data[:1] + whole.SerializeToString()
        return changed if len(changed) <= max_size else data[:max_size]

    return mutator


def line_mutator(data: bytes, max_size: int, seed: int, mutate: Mutate) -> bytes:
    """Mutates a first octet of choices and lines of text."""
    chance = random.Random(seed)
    if not data or chance.random() < 0.3:
        return mutate(data, max_size)
    lines = data[1:].split(b"\n")
    at, other = chance.randrange(len(lines)), chance.randrange(len(lines))
    action = chance.random()
    if action < 0.5:
        lines[at] = mutate(lines[at], 400)
    elif action < 0.6:
        words = lines[at].split(b" ")
        words[chance.randrange(len(words))] = chance.choice(lines[other].split(b" "))
        lines[at] = b" ".join(words)
    elif action < 0.7:
        lines[at] = chance.choice((b"0", b"-1", b"9" * 19, b"9" * 30, b"-", b"\xff", "\u2028é".encode()))
    elif action < 0.8:
        del lines[at]
    elif action < 0.9:
        lines.insert(at, lines[other])
    else:
        lines[at], lines[other] = lines[other], lines[at]
    changed = data[:1] + b"\n".join(lines)
    return changed if len(changed) <= max_size else data[:max_size]


def json_mutator(data: bytes, max_size: int, seed: int, mutate: Mutate) -> bytes:
    """Changes one value somewhere in a JSON tree."""
    chance = random.Random(seed)
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return mutate(data, max_size)
    if not isinstance(tree, dict | list) or chance.random() < 0.05:
        return mutate(data, max_size)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        _change_tree(tree, chance)
    changed = json.dumps(tree).encode()
    return changed if len(changed) <= max_size else data[:max_size]


def _change_tree(tree: Any, chance: random.Random) -> None:
    node, place = tree, None
    while isinstance(node, dict | list) and node:
        parent, place = node, chance.choice(list(node) if isinstance(node, dict) else range(len(node)))
        node = parent[place]
        if chance.random() < 0.15:
            break
    if place is None:
        return
    others: list[Any] = [*_REALS, *_NUMBERS, 10**400, -1, "", "mm", None, True, [], [[]], {}, [0.5, 0.5], [1] * 64]
    if isinstance(node, list) and node and chance.random() < 0.5:
        parent[place] = chance.choice((node[:-1], [*node, node[0]], node * 2, [node], list(reversed(node))))
    elif isinstance(node, float | int) and abs(node) < 1e290 and chance.random() < 0.4:
        parent[place] = chance.choice((-node, node * 1e-9, node * 1e9, node + 1))
    elif isinstance(parent, list) and chance.random() < 0.2:
        del parent[place]
    else:
        parent[place] = chance.choice(others)


# ---- targets


class Target:
    """One reader. ``run`` raises ViolationError, or whatever the reader should not have raised.

    share: of all executions. seeds: inputs the fuzzer starts from; the first of them must be taken in. largest: inputs
    as large as the reader allows, which are run once and timed. taken_in: inputs that came through to the end.
    """

    share: ClassVar[float]
    max_size: ClassVar[int] = 8192
    seeds: list[bytes]

    def __init__(self) -> None:
        self.taken_in = 0
        self.largest: list[bytes] = []

    def run(self, data: bytes) -> None:
        raise NotImplementedError

    def mutate(self, data: bytes, max_size: int, seed: int, mutate: Mutate) -> bytes:
        return mutate(data, max_size)


class _Batches(Target):
    """Batches of sealed snapshots; the first octet chooses the profile."""

    max_size = 64 * 1024

    def __init__(self) -> None:
        super().__init__()
        self.worlds = [World(profile) for profile in Profile]
        self.window = Window()
        self.made: set[Sealed] = set()
        self._mutator = envelope_mutator(pb.Batch, "items", snapshots.Snapshot)
        self.seeds = [
            bytes([n]) + batch.SerializeToString() for n in range(2) for batch in self._honest(self.worlds[n])
        ]
        bodies = honest_snapshot().SerializeToString(), self._longest().SerializeToString()
        self.largest = [
            bytes([n]) + _batch(self._made_by(world, bodies[0], counter=k) for k in range(limits.MAX_BATCH_ITEMS))
            for n, world in enumerate(self.worlds)
        ]
        self.largest.append(b"\0" + _batch([self._made_by(self.worlds[0], bodies[1])]))

    def mutate(self, data: bytes, max_size: int, seed: int, mutate: Mutate) -> bytes:
        return self._mutator(data, max_size, seed, mutate)

    def _made_by(self, world: World, body: bytes, **changes: Any) -> Sealed:
        sealed = world.seal(body, **changes)
        self.made.add(sealed)
        return sealed

    def _honest(self, world: World) -> Iterable[pb.Batch]:
        body = honest_snapshot().SerializeToString()
        small = snapshots.Snapshot(
            schema_version=1, vantage_id="host-1", tick=NOW_S, tick_time_ns=NOW_NS, tick_period_ns=SECOND
        ).SerializeToString()
        first = self._made_by(world, body)
        late = honest_snapshot(NOW_S - 3600).SerializeToString()
        rows = [
            [first],
            [first, self._made_by(world, small, counter=(1 << 32) + 1)],
            [self._made_by(world, late, tick=NOW_S - 3600, time_ns=NOW_NS - 3600 * SECOND, lane=Lane.BACKFILL)],
            [first, first, self._made_by(world, small)],  # a duplicate, an equivocation
            [self._made_by(world, body, time_ns=NOW_NS - 400 * SECOND)],
            [self._made_by(world, body, epoch_id=1)],
            [self._made_by(world, b"\xff")],
        ]
        for row in rows:
            yield pb.Batch.FromString(_batch(row))
        yield pb.Batch(stream_nonce=NONCE)

    def _longest(self) -> snapshots.Snapshot:
        long = honest_snapshot()
        content = json.dumps([[0] * 40] * 1800).encode()
        del long.baselines[:]
        for n in range(2):
            text = content + b" " * n
            long.baselines.add(id=_baseline_id(text), surface="kernel", json=text)
        return long

    def judge(self, world: World, message: bytes, items: Sequence[Sealed]) -> Batch:
        """What a broker makes of a message and of the same message again, held against the rules."""
        admission = Admission(world.broker, self.window, max_vantages=10)
        stored: dict[CounterKey, Recorded] = {}
        first = self._round(admission, stored, message, items, again=False)
        again = self._round(admission, stored, message, items, again=True)
        accepted = {_name(first, index) for index in first.accepted}
        for index in range(len(again)):
            require(again.reason(index) is not None or _name(again, index) in accepted, "accepted when it came again")
        self.taken_in += any(first.reason(index) is None for index in range(len(first)))
        return first

    def _round(
        self,
        admission: Admission,
        stored: dict[CounterKey, Recorded],
        message: bytes,
        items: Sequence[Sealed],
        *,
        again: bool,
    ) -> Batch:
        admitted = admission.judge(message, b"", NOW_NS)
        batch = admitted.batch
        require(batch.count == len(items), "the envelope has other items than protobuf reads")
        require(len(batch) == len(items) or batch.refused is not None, "an item was neither judged nor refused")
        for index in range(len(batch)):
            require(batch.sealed(index) == items[index], "an item has other bytes than protobuf reads")
        self._store(admission, stored, admitted)
        admission.settle(admitted, [stored.get(name) for name in admitted.lookups])
        for index in range(len(batch)):
            reason = batch.reason(index)
            if reason is None:
                require(items[index] in self.made, "accepted, and not made by the honest sealer")
                require(batch.duplicate(index) is (index not in batch.accepted), "accepted, and not stored")
                require(not again or batch.duplicate(index), "accepted a second time")
            else:
                require(reason.vouched, "a reason from before the seal for one whose seal holds")
        fleet = FleetState()
        fleet.record(admitted, 1, NOW_NS)
        for state in fleet.vantages.values():
            state.summary(connected=True).SerializeToString()
        self._check_acks(batch)
        return batch

    def _store(self, admission: Admission, stored: dict[CounterKey, Recorded], admitted: Admitted) -> None:
        """As the store does: runs first, then what is looked up."""
        leaves, hashes = admitted.batch.leaves()
        require(len(hashes) == 32 * len(admitted.batch.accepted), "a leaf that is no accepted snapshot")
        for run in admitted.runs:
            for entry in entries_of(run.entries, run.leaf, run.offset):
                lane = run.vantage_id, run.epoch_id, run.lane
                highest = max((name[3] for name in stored if name[:3] == lane), default=-1)
                require(entry.counter > highest, "a counter was taken again")
                digest = entry.digest
                if entry.place is not None:
                    at = entry.place.offset
                    digest = sealed_of(leaves[at : at + entry.place.size]).digest
                stored[*lane, entry.counter] = Recorded(digest, entry.reason)
        admission.commit(admitted.runs)

    def _check_acks(self, batch: Batch) -> None:
        answered = [ack for _, _, body in batch.acks() for ack in pb.Acks.FromString(body).acks]
        require(len(answered) == len(batch), "an item without an answer, or with two")
        statuses = [ack.status for ack in answered]
        accepted, duplicates = pb.ACK_STATUS_ACCEPTED, pb.ACK_STATUS_DUPLICATE
        require(statuses.count(accepted) == len(batch.accepted), "an answer other than the verdict")
        require(statuses.count(duplicates) == sum(map(batch.duplicate, range(len(batch)))), "another answer")


def _name(batch: Batch, index: int) -> CounterKey:
    header = batch.header(index)
    return header.vantage_id, header.epoch_id, header.lane, header.counter


def _batch(items: Iterable[Sealed]) -> bytes:
    batch = pb.Batch(stream_nonce=NONCE)
    for header, body, tag in items:
        batch.items.add(header=header, body=body, tag=tag)
    return batch.SerializeToString()


def _envelope(data: bytes) -> list[Sealed] | None:
    """The items of a batch that a broker judges, None for one that ends the stream: the limits of Broker._judge."""
    if len(data) > limits.MAX_MESSAGE_BYTES:
        return None
    try:
        batch = pb.Batch.FromString(data)
    except DecodeError:
        return None
    if len(batch.stream_nonce) != limits.NONCE_BYTES or len(batch.items) > limits.MAX_BATCH_ITEMS:
        return None
    return [Sealed(item.header, item.body, item.tag) for item in batch.items]


class Stranger(_Batches):
    """Batches as they come from the network."""

    share = 0.2

    def run(self, data: bytes) -> None:
        items = _envelope(data[1:])
        world = self.worlds[data[0] % 2] if data else self.worlds[0]
        try:
            if items is not None:
                self.judge(world, data[1:], items)
            else:
                admission = Admission(world.broker, self.window, max_vantages=10)
                require(not len(admission.judge(data[1:], b"", NOW_NS).batch), "judged what is outside the protocol")
        except ValueError as error:
            if "no Batch" not in str(error):
                raise
            # protobuf skips groups, which nobody writes; the gate refuses them.
            require(items is None or any(octet & 7 in (3, 4) for octet in data[1:]), "refused what protobuf reads")


class Insider(_Batches):
    """The same, but every item is sealed anew by the key of host-1, with the lane, times and counters it names."""

    share = 0.12

    def run(self, data: bytes) -> None:
        world = self.worlds[data[0] % 2] if data else self.worlds[0]
        honest = set(self.made)
        items = []
        for item in _envelope(data[1:]) or ():
            try:
                wanted = parse_header(item.header)
                items.append(
                    self._made_by(
                        world, item.body, tick=wanted.tick, time_ns=wanted.time_ns, counter=wanted.counter,
                        epoch_id=wanted.epoch_id, lane=Lane(wanted.lane),
                    )
                )  # fmt: skip
            except (SealError, ValueError):
                continue
        try:
            batch = self.judge(world, _batch(items), items)
            for index in range(len(batch)):
                if index not in batch.repeats and batch.reason(index) not in _SPENDS_NOTHING:
                    self._check(world, batch, index)
        finally:
            self.made = honest

    def _check(self, world: World, batch: Batch, index: int) -> None:
        """What is new is judged as the gate's oracle and a second reading of the epochs say."""
        header = batch.header(index)
        age = NOW_NS - header.time_ns
        past = self.window.live_past_ns if header.lane == Lane.LIVE else self.window.backfill_past_ns
        require(-self.window.future_ns <= age <= past, "a snapshot outside its window spent a counter")
        manifest = world.manifests[header.epoch_id - 1]
        require(manifest.from_ns <= header.time_ns < manifest.until_ns, "a snapshot outside its epoch")
        body = batch.body(index)
        fields = oracle.Header(*header)
        expected = oracle.check_body(body, fields, self.window)
        if expected is None and snapshots.Snapshot.FromString(body).tick_period_ns < manifest.tick_ms * 10**6:
            expected = Why.INVALID_VALUE
        reason = batch.reason(index)
        require(reason == expected, f"judged {reason!r}, the oracle says {expected!r}")


_SPENDS_NOTHING = (Why.STALE, Why.FUTURE, Why.EPOCH_RETIRED)


class Baselines(Target):
    """The JSON of a baseline, which an insider sends under its right id, and decisions that are recomputed from it."""

    share = 0.03
    max_size = 64 * 1024

    def __init__(self) -> None:
        super().__init__()
        rng = np.random.default_rng(3)
        scale = Scale("ns", 1024.0, 1e5)

        def observe() -> dict[str, Observation]:
            found = {}
            for vantage in ("blk", "mm"):
                severity = 2e5 * np.exp(0.8 * rng.standard_normal(rng.poisson(400)))
                bins = np.searchsorted(scale.lower_edges(), severity, side="right") - 1
                histogram = np.bincount(bins, minlength=HIST_BINS).astype(float)
                objects = {key: 3.0 for key in range(6) if rng.random() < 0.6}
                found[vantage] = Observation(vantage, scale, histogram, objects, 10.0, float(rng.random() < 0.05))
            return found

        model = SurfaceModel("kernel", ("blk", "mm"), ModelSettings(calibration_ticks=60))
        for tick in range(60):
            model.step(tick, observe())
        result = model.step(60, observe())
        if model.baseline is None or result.decision is None:
            raise SystemExit("bench: no baseline after its calibration")
        self.seeds = [model.baseline.to_json()]
        # As deep and as long as a baseline may be.
        deep = limits.MAX_BASELINE_BYTES // 2
        self.largest = [b"[" * deep + b"]" * deep, b'{"format":' + b"9" * (2 * deep - 20) + b"}"]
        tree = json.loads(self.seeds[0])
        for live in (math.inf, 1e17, 10**400):  # degrees of freedom are the sum of these
            tree["ellipsoid"]["live"] = [True, live, True]
            self.largest.append(json.dumps(tree).encode())
        surface = honest_snapshot().surfaces[0]
        for axis in ("c1", "c2", "c3"):
            value = getattr(result.vector, axis)
            surface.vector.ClearField(axis)
            if value is not None:
                setattr(surface.vector, axis, value)
        del surface.observations[:]
        for vantage, law in result.distributions.items():
            surface.observations.add(vantage=vantage, events=400, distribution=law.astype("<f4").tobytes())
        without = snapshots.Surface.FromString(surface.SerializeToString())
        del without.observations[:]
        without.vector.ClearField("c1")
        heavy = snapshots.Surface.FromString(surface.SerializeToString())
        heavy.observations[0].events = 1e308
        heavy.decision.p_value = 0.0
        self.surfaces = [surface, without, heavy]

    def run(self, data: bytes) -> None:
        if len(data) > limits.MAX_BASELINE_BYTES:
            return
        name = _baseline_id(data)
        check = DecisionCheck()
        check.learn(Kept("host-1", name, data))
        for surface in self.surfaces:
            surface.decision.baseline_id = name
            self.taken_in += check.agrees("host-1", surface) is not None

    def mutate(self, data: bytes, max_size: int, seed: int, mutate: Mutate) -> bytes:
        return json_mutator(data, max_size, seed, mutate)


class _SealsAgain(EpochSealer):
    """An agent's sealer, at a fixed time."""

    def __init__(self, world: World) -> None:
        super().__init__(world.host, "host-1", StreamCounter(1 << 33), lambda: NOW_NS)

    def check(self, sealed: Sealed) -> None:
        """Everything was sealed here."""

    def hopeless(self, error: SealError) -> str:
        """Nothing is."""
        return ""


class Answers(Target):
    """What an agent makes of a broker's answers. First octet: the profile, and whether each is sealed anew."""

    share = 0.13

    def __init__(self) -> None:
        super().__init__()
        self.worlds = [World(profile) for profile in Profile]
        self.sent: list[list[Sealed]] = []
        self.clients: list[StreamClient] = []
        self.identities: list[Identity] = []
        self._folder = tempfile.TemporaryDirectory(prefix="mvps-fuzz-")
        self.honest: set[Sealed] = set()
        self.seeds = []
        self._mutator = envelope_mutator(pb.AckBatch, "sealed", pb.Acks)
        body = honest_snapshot().SerializeToString()
        for n, world in enumerate(self.worlds):
            self.identities.append(self._identity(world, Path(self._folder.name, f"{n}")))
            self.sent.append([world.seal(body, counter=k) for k in (1, 2, 3)])
            client = StreamClient(
                "unix:/nobody", "host-1", Verifier(world.host, Purpose.CONTROL), resealer=_SealsAgain(world)
            )
            client.stop()
            self.clients.append(client)
            for statuses in ((1, 1, 1), (2, 3, 1), (3, 3, 3)):
                acks = pb.Acks(stream_nonce=NONCE)
                for sealed, status, reason in zip(self.sent[n], statuses, (22, 24, 30), strict=True):
                    header = parse_header(sealed.header)
                    acks.acks.add(lane=1, counter=header.counter, digest=sealed.digest, status=status,
                                  reason=reason if status == 3 else 0)  # fmt: skip
                counter = StreamCounter()
                answers = [world.seal_answer(acks.SerializeToString(), counter) for _ in range(2)]
                self.honest.update(answers)
                whole = pb.AckBatch(manifests=[sign_manifest(world.manifests[1], world.operator)])
                for header_, content, tag in answers:
                    whole.sealed.add(header=header_, body=content, tag=tag)
                self.seeds += [bytes([n + 2 * anew]) + whole.SerializeToString() for anew in range(2)]
        # As many answers as one seal covers, and as many manifests as one message carries.
        many = pb.Acks(stream_nonce=NONCE, acks=[pb.Ack(lane=1, counter=k, digest=bytes(32)) for k in range(10_000)])
        self.largest = [b"\2" + pb.AckBatch(sealed=[pb.SealedAcks(body=many.SerializeToString())]).SerializeToString()]
        self.largest.append(b"\0" + pb.AckBatch(manifests=[b"x"] * 350_000).SerializeToString())

    def _identity(self, world: World, folder: Path) -> Identity:
        """What takes in manifests that a broker passes on."""
        installed = folder / "manifests"
        installed.mkdir(parents=True)
        for manifest in world.manifests:
            (installed / f"{manifest.epoch_id}.manifest").write_bytes(sign_manifest(manifest, world.operator))
        key = folder / "host.key"
        key.touch(mode=0o600)
        seed = base64.b64encode(_seed(Kind.HOST, "host-1")).decode()
        key.write_text(f"mvps-secret-v1:host:{seed}\n")
        return Identity(str(key), world.operator.public, installed, folder / "received", "host-1")

    def run(self, data: bytes) -> None:
        choice = data[0] if data else 0
        which, anew = choice % 2, bool(choice & 2)
        world, client = self.worlds[which], self.clients[which]
        if len(data) > limits.MAX_MESSAGE_BYTES:
            return
        try:
            whole = pb.AckBatch.FromString(data[1:])
        except DecodeError:
            return
        identity = self.identities[which]
        identity.receive(whole.manifests)
        require(identity.epochs.manifests == tuple(world.manifests), "a manifest that the operator did not sign")
        client._outbox.ledger = ledger = Ledger(10)
        for sealed in self.sent[which]:
            ledger.add(sealed)
        ledger.take()
        digests = {sealed.digest for sealed in self.sent[which]}
        last, counter, named = 0, StreamCounter(), False
        for item in whole.sealed:
            answer = Sealed(item.header, item.body, item.tag)
            if anew:
                if len(item.body) > limits.MAX_BODY:
                    continue
                answer = world.seal_answer(item.body, counter)
                with contextlib.suppress(DecodeError):
                    named |= any(ack.digest in digests for ack in pb.Acks.FromString(item.body).acks)
            else:
                named |= answer in self.honest
            after = client._take_acks(answer, NONCE, last)
            require(after >= last, "the counter of the answers went back")
            require(after == last or anew or answer in self.honest, "an answer counted that the broker did not make")
            last = after
        totals = ledger.totals()
        settled = totals.acknowledged + totals.rejected
        require(totals.balanced, "the accounts do not add up")
        require(not settled or named, "settled, and no answer named its digest")
        self.taken_in += bool(settled)

    def mutate(self, data: bytes, max_size: int, seed: int, mutate: Mutate) -> bytes:
        return self._mutator(data, max_size, seed, mutate)


class _Signed(Target):
    """Signed notes. First octet: as it is, or a text that the right key signs."""

    def mutate(self, data: bytes, max_size: int, seed: int, mutate: Mutate) -> bytes:
        return line_mutator(data, max_size, seed, mutate)


def _signed(text: bytes, name: str, key: SecretKey) -> bytes | None:
    try:
        content = text.decode()
        return Note(content, (sign_note(content, name, key.sign, key.public.ed25519),)).render()
    except (UnicodeDecodeError, NoteError):
        return None


class Manifests(_Signed):
    """An operator's manifest: signature, text, and the epochs of a broker that takes it in."""

    share = 0.07

    def __init__(self) -> None:
        super().__init__()
        self.world = world = World(Profile.TRUST)
        first, second = world.manifests
        witness = _key(Kind.WITNESS, "w.example").public.ed25519
        vantage = second.vantages[0]
        rich = Manifest(
            **{name: getattr(second, name) for name in Manifest.__dataclass_fields__}
            | {
                "epoch_id": 3, "previous": second.digest, "faults": 0, "quorum": 1, "embedding": "m/1", "from_s": NOW_S,
                "retire_s": NOW_S + 600, "witnesses": (NoteKey("w.example", COSIGNATURE_V1, witness),),
                "vantages": (
                    vantage._replace(
                        cell="r1", roles=("host", "edge"),
                        prefixes=(parse_network("10.0.0.0/8"), parse_network("2001:db8::/32")),
                    ),
                    *second.vantages[1:],
                ),
            }
        )  # fmt: skip
        signed = [sign_manifest(manifest, world.operator) for manifest in (first, second, rich)]
        self.known = {manifest.digest for manifest in (first, second, rich)}
        self.seeds = [b"\1" + rich.text.encode(), *(b"\0" + one for one in signed), b"\1" + second.text.encode()]
        # Vantages with one key: refused, after all of them were read. And as many signatures as a note may have.
        line = f"vantage h-%05d cell=- roles=- prefixes=- key={vantage.key.text}\n"
        many = "".join(line % n for n in range(limits.MAX_PUSHED_MANIFEST_BYTES // len(line)))
        head, _, _ = second.text.partition("vantage ")
        self.largest = [b"\1" + (head + many).encode()]
        copies = signed[1].rstrip(b"\n").rsplit(b"\n", 1)[1] + b"\n"
        self.largest.append(b"\0" + signed[1] + copies * 99)

    def run(self, data: bytes) -> None:
        anew = bool(data[:1] and data[0] & 1)
        signed = _signed(data[1:], "solo", self.world.operator) if anew else data[1:]
        if signed is None:
            return
        try:
            manifest = open_manifest(signed, self.world.operator.public)
        except ManifestError:
            return
        require(anew or manifest.digest in self.known, "a manifest that the operator did not sign")
        require(manifest.text == parse_note(signed).text, "a manifest that was signed in another text")
        require(parse_manifest(manifest.text) == manifest, "a manifest reads back as another one")
        epochs = Epochs.of_broker([self.world.broker_key])
        for known in (*self.world.manifests, manifest):
            try:
                epochs.add(known)
            except ManifestError:
                return
        for vantage in manifest.vantages[:3]:
            for purpose in (Purpose.SNAPSHOT, Purpose.CONTROL):
                try:
                    epochs.sealing_key(vantage.vantage_id, manifest.epoch_id, purpose)
                except SealError:
                    continue
        self.taken_in += 1


class Enrolments(_Signed):
    """A host's request, and the manifest that admits it."""

    share = 0.07

    def __init__(self) -> None:
        super().__init__()
        self.key = _key(Kind.HOST, "host-9")
        vantage = Vantage("host-9", self.key.public, "r1", ("host",), (parse_network("10.0.0.5/32"),))
        full = Enrolment(vantage, "node17.example", NOW_S)
        bare = Enrolment(Vantage("host-9", self.key.public), "", NOW_S)
        self.texts = {parse_note(sign_enrolment(one, self.key)).text for one in (full, bare)}
        self.seeds = [b"\1" + text.encode() for text in sorted(self.texts)]
        self.seeds += [b"\0" + sign_enrolment(one, self.key) for one in (full, bare)]
        self.largest = [b"\0" + b"\xe2\x80\x94 a AAAAAAAA\n" * (limits.MAX_ENROLMENT_BYTES // 15)]

    def run(self, data: bytes) -> None:
        anew = bool(data[:1] and data[0] & 1)
        name = data[1:].partition(b"\nvantage ")[2].partition(b"\n")[0].decode(errors="replace")
        signed = _signed(data[1:], name, self.key) if anew else data[1:]
        if signed is None:
            return
        try:
            request = open_enrolment(signed)
        except EnrolmentError:
            return
        text = parse_note(signed).text
        # Its Ed25519 half: a request shows nothing about the X25519 half, and the manifest refuses one that is in use.
        require(request.vantage.key.ed25519 == self.key.public.ed25519, "a request of a key that did not sign it")
        require(anew or text in self.texts, "a request that its key did not sign")
        require(text.endswith(request.text), "a request that was signed in another text")
        self.taken_in += 1


class _Memory:
    """Heads of a witness, without a disk."""

    def __init__(self, origin: str, head: TreeHead) -> None:
        self.heads = {origin: head}

    def head(self, origin: str) -> TreeHead:
        return self.heads.get(origin, EMPTY)

    def record(self, origin: str, head: TreeHead) -> None:
        require(head.size >= self.head(origin).size, "a witness cosigned a smaller tree")
        self.heads[origin] = head


class _Log:
    """A log of a few leaves, its nodes and its checkpoints."""

    def __init__(self, leaves: Sequence[bytes]) -> None:
        self.key = _key(Kind.BROKER, "site-1")
        self.tree = Tree()
        self.heads = [EMPTY]
        self._nodes: dict[tuple[int, int], bytes] = {}
        for number, leaf in enumerate(leaves):
            for level, node in enumerate(self.tree.append([leaf_hash(leaf)])):
                self._nodes[level, number >> level] = node
            self.heads.append(self.tree.head)

    def node(self, level: int, index: int) -> bytes:
        return self._nodes[level, index]

    def text(self, size: int) -> str:
        lines = Binding(NOW_S, bytes(32), Distances(0.5, 2.0)).lines
        return Checkpoint("site-1", size, self.heads[size].root, lines).text

    def note(self, size: int) -> Note:
        text = self.text(size)
        return Note(text, (sign_note(text, "site-1", self.key.sign, self.key.public.ed25519),))


class Witnesses(_Signed):
    """A log's request to a witness that has cosigned three of its leaves."""

    share = 0.08

    def __init__(self) -> None:
        super().__init__()
        self.log = log = _Log([bytes([n]) for n in range(9)])
        self.key = _key(Kind.WITNESS, "w.example")
        self.seeds = []
        for old, new in ((3, 9), (3, 3), (3, 4), (0, 5), (3, 8)):
            request = Request(old, tuple(consistency_proof(old, new, log.node)), log.note(new)).render()
            head, _, _ = request.partition(b"\n\n")
            self.seeds += [b"\1" + head + b"\n\n" + log.text(new).encode(), b"\0" + request]
        self.texts = {log.text(size) for size in range(10)}
        signature = log.note(9).signatures[0].line
        padding = (signature * 99).encode()
        self.largest = [b"\0" + self.seeds[1][1:] + padding, b"\0old 3\n" + b"A" * 60_000 + b"\n\nx\n\n"]

    def run(self, data: bytes) -> None:
        anew = bool(data[:1] and data[0] & 1)
        body = data[1:]
        if anew:
            head, _, text = body.partition(b"\n\n")
            signed = _signed(text, "site-1", self.log.key)
            if signed is None:
                return
            body = head + b"\n\n" + signed
        known = self.log.heads[3]
        memory = _Memory("site-1", known)
        log_key = NoteKey("site-1", ED25519, self.log.key.public.ed25519)
        witness = Witness("w.example", self.key.sign, self.key.public.ed25519, [log_key], memory)
        reply = witness.add_checkpoint(body, NOW_S)
        require(reply.status in (200, 400, 403, 404, 409, 422), f"answered {reply.status}")
        if reply.status != 200:
            require(memory.head("site-1") == known, "what was not cosigned was kept")
            return
        request = parse_request(body)
        cosigned = parse_checkpoint(request.checkpoint.text)
        require(anew or request.checkpoint.text in self.texts, "cosigned what the log did not sign")
        require(memory.head("site-1") == cosigned.head, "cosigned another tree than it kept")
        # Whoever signs may also extend the tree, but not by mutating octets: that takes hashes that fit.
        honest = self.log.heads[cosigned.size] if cosigned.size < len(self.log.heads) else None
        require(cosigned.head == honest, "cosigned a tree that does not begin with the one before")
        note = Note(request.checkpoint.text, parse_signatures(reply.body.decode()))
        require(verified(note, [witness.key]) == [(witness.key, NOW_S)], "a cosignature that does not hold")
        again = witness.add_checkpoint(body, NOW_S)
        require(again.status == (200 if request.old == cosigned.size else 409), "cosigned from an old size again")
        self.taken_in += 1


class Notes(_Signed):
    """Every other text or file that comes from somebody else; the first octet chooses the reader."""

    share = 0.15

    def __init__(self) -> None:
        super().__init__()
        world = World(Profile.TRUST)
        body = honest_snapshot().SerializeToString()
        sealed = [world.seal(body, counter=n, epoch_id=epoch) for n, epoch in ((1, 1), (2, 2), (3, 2))]
        log = _Log([leaf_of(one) for one in sealed])
        proof = InclusionProof(leaf_of(sealed[1]), 1, tuple(inclusion_proof(1, 3, log.node)), log.note(3))
        self.leaf = leaf_of(sealed[1])
        witness = NoteKey("w.example", COSIGNATURE_V1, world.host_key.public.ed25519)
        self.readers: list[Callable[[bytes], object]] = [
            self._proof, self._checkpoint, self._leaves, self._public, self._key, self._note, self._signatures,
            self._request, size_in_conflict,
        ]  # fmt: skip
        texts = [
            proof.render(),
            log.text(3).encode(),
            b"".join(map(leaf_of, sealed)),
            world.broker_key.public.text.encode(),
            witness.text.encode(),
            log.note(3).render(),
            log.note(3).signatures[0].line.encode(),
            Request(1, tuple(consistency_proof(1, 3, log.node)), log.note(3)).render(),
            b"17\n",
        ]
        self.seeds = [bytes([n]) + text for n, text in enumerate(texts)]
        encoded = base64.b64encode(bytes(limits.MAX_BODY))
        self.largest = [
            b"\0" + proof.render().replace(base64.b64encode(self.leaf), encoded),
            b"\2" + leaf_of(sealed[0]) * (limits.MAX_MESSAGE_BYTES // len(leaf_of(sealed[0]))),
            b"\5" + b"\n" * limits.MAX_PUSHED_MANIFEST_BYTES,
            b"\5" + "\u2014 a AAAAAAAA\n".encode() * (limits.MAX_PUSHED_MANIFEST_BYTES // 16),
            b"\x08" + b"9" * 16_384,
        ]

    def run(self, data: bytes) -> None:
        if data:
            self.readers[data[0] % len(self.readers)](data[1:])

    def _proof(self, data: bytes) -> None:
        try:
            proof = parse_proof(data)
            checkpoint = proof.verified_head()
        except CheckpointError:
            return
        require(parse_proof(proof.render()) == proof, "a proof reads back as another one")
        require(proof.leaf_index < checkpoint.size, "a leaf outside its tree")
        self.taken_in += 1

    def _checkpoint(self, data: bytes) -> None:
        try:
            text = data.decode()
        except UnicodeDecodeError:
            return
        try:
            checkpoint = parse_checkpoint(text)
        except CheckpointError:
            return
        require(checkpoint.text == text, "a checkpoint of more than one text")
        try:
            binding = checkpoint.binding
        except CheckpointError:
            return
        require(binding.lines == checkpoint.extensions, "extension lines of more than one form")
        self.taken_in += 1

    def _leaves(self, data: bytes) -> None:
        end = 0
        try:
            for offset, sealed in split_leaves(lambda size, at: data[at : at + size], len(data)):
                require(offset == end, "leaves with something between them")
                end += sealed.size
                require(sealed_of(leaf_of(sealed)) == sealed, "a leaf reads back as another one")
        except EvidenceError:
            return
        require(end == len(data), "octets behind the last leaf")
        self.taken_in += 1

    def _public(self, data: bytes) -> None:
        try:
            key: PublicKey = parse_public(data.decode(errors="replace"))
        except KeySourceError:
            return
        require(parse_public(key.text, key.kind) == key, "a public key reads back as another one")
        self.taken_in += 1

    def _key(self, data: bytes) -> None:
        text = data.decode(errors="replace")
        try:
            key = parse_note_key(text)
        except NoteError:
            return
        require(key.text == text, "a note key of more than one text")
        self.taken_in += 1

    def _note(self, data: bytes) -> None:
        try:
            note = parse_note(data)
        except NoteError:
            return
        require(note.render() == data, "a note of more than one form")
        self.taken_in += 1

    def _signatures(self, data: bytes) -> None:
        text = data.decode(errors="replace")
        try:
            signatures = parse_signatures(text)
        except NoteError:
            return
        require("".join(one.line for one in signatures) == text, "signature lines of more than one form")
        self.taken_in += 1

    def _request(self, data: bytes) -> None:
        try:
            request = parse_request(data)
        except RequestError:
            return
        require(parse_request(request.render()) == request, "a request reads back as another one")
        self.taken_in += 1


class Datagrams(Target):
    """Datagrams of the companion drafts; the first octet chooses the port."""

    share = 0.15
    max_size = 2048

    def __init__(self) -> None:
        super().__init__()
        header = BundleHeader(7, NOW_S, 2, 3, 1, 1.5)
        bundle = Bundle(header, (bytes(32),) * 3, Envelope(2, b"operator-1234567", bytes(32), b"rest")).encode()
        message = Coherence(7, -3, 1.0, 0.5, 0.25, NO_BFD).encode()
        self.seeds = [b"\1" + message, b"\0" + bundle, b"\1" + bytes(24)]
        empty = Bundle(BundleHeader(7, 1, 2, 2000, 1, 1.5), (bytes(32),) * 2000, Envelope(2, b"x" * 16, bytes(32)))
        self.largest = [b"\0" + empty.encode(), b"\0" + bytes(1 << 20)]

    def run(self, data: bytes) -> None:
        port = COHE_PORT if data[:1] and data[0] & 1 else MBND_PORT
        try:
            message = decode_datagram(port, data[1:])
        except InteropError:
            return
        if message is not None:
            require(message.encode() == data[1:], "a datagram that is written in another way")
            require(
                isinstance(message.doubts if isinstance(message, Coherence) else message.header.doubts, tuple), "doubts"
            )
            self.taken_in += 1


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
