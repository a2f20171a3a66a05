# SPDX-License-Identifier: Apache-2.0
"""What a target is, the site that is attacked, and mutations that know the form."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, ClassVar, TypeAlias

import numpy as np
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from mvps.trust import limits
from mvps.trust.epochs import Epochs
from mvps.trust.keys import Kind, SecretKey
from mvps.trust.manifest import (
    Broker,
    Manifest,
    Profile,
    Vantage,
    revoke,
    succeed,
)
from mvps.trust.seal import Lane, Purpose, Sealed, Sealer
from mvps.v1 import snapshot_pb2 as snapshots
from mvps.v1 import stream_pb2 as pb

SECOND = 10**9
NOW_S = 1_800_000_000  # clocks stand here
NOW_NS = NOW_S * SECOND
DAY = 86400
NONCE = bytes(range(limits.NONCE_BYTES))

Mutate: TypeAlias = Callable[[bytes, int], bytes]


class ViolationError(Exception):
    """A reader did not raise, and did something it must not do."""


def require(holds: object, what: str) -> None:
    if not holds:
        raise ViolationError(what)


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


# ---- a site to be attacked


class World:
    """Keys and epochs of one site: epoch 1 (cwt, retired), and epoch 2 of ``profile``, in which `gone` is revoked."""

    def __init__(self, profile: Profile) -> None:
        # Always the same keys: a kept input is the same attack tomorrow.
        self.operator = key_of(Kind.OPERATOR, "solo")
        self.broker_key = key_of(Kind.BROKER, "broker")
        hosts = {name: key_of(Kind.HOST, name) for name in ("host-1", "host-2", "gone")}
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


def key_of(kind: Kind, name: str) -> SecretKey:
    return SecretKey(seed_of(kind, name), kind)


def seed_of(kind: Kind, name: str) -> bytes:
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
        baselines=[snapshots.Baseline(id=baseline_id(content), surface="kernel", json=content)], lead="mm",
        extensions={"site.note": b"x"},
    )  # fmt: skip


def baseline_id(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def batch_of(items: Iterable[Sealed]) -> bytes:
    batch = pb.Batch(stream_nonce=NONCE)
    for header, body, tag in items:
        batch.items.add(header=header, body=body, tag=tag)
    return batch.SerializeToString()


def items_of(data: bytes) -> list[Sealed] | None:
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


# ---- mutations that know the form


NUMBERS = (0, 1, 2, 3, 6, 7, 255, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1, NOW_S, NOW_NS, SECOND)
REALS = (0.0, -0.0, 1.0, -1.0, 0.5, 1.5, 1e-320, 1e308, math.inf, -math.inf, math.nan)
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
        return chance.choice((*REALS, chance.random()))
    if kind in (FieldDescriptor.CPPTYPE_UINT64, FieldDescriptor.CPPTYPE_UINT32):
        bits = 64 if kind == FieldDescriptor.CPPTYPE_UINT64 else 32
        return chance.choice((*NUMBERS, chance.getrandbits(64))) % (1 << bits)
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return chance.randrange(9)
    if field_.type == FieldDescriptor.TYPE_BYTES:
        some = np.array(chance.choices((*REALS, 0.25), k=chance.choice((1, 4, 64, 65))), "<f4").tobytes()
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
                    baseline.id = baseline_id(baseline.json)
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
    others: list[Any] = [*REALS, *NUMBERS, 10**400, -1, "", "mm", None, True, [], [[]], {}, [0.5, 0.5], [1] * 64]
    if isinstance(node, list) and node and chance.random() < 0.5:
        parent[place] = chance.choice((node[:-1], [*node, node[0]], node * 2, [node], list(reversed(node))))
    elif isinstance(node, float | int) and abs(node) < 1e290 and chance.random() < 0.4:
        parent[place] = chance.choice((-node, node * 1e-9, node * 1e9, node + 1))
    elif isinstance(parent, list) and chance.random() < 0.2:
        del parent[place]
    else:
        parent[place] = chance.choice(others)
