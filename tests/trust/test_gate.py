# SPDX-License-Identifier: Apache-2.0
"""The native gate against the oracle: what one says of any bytes, the other says too."""

from __future__ import annotations

import copy
import gc
import hashlib
import hmac
import math
import pickle
import struct
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.trust import oracle

from mvps.trust import gate, limits
from mvps.trust._gate import FIXED_HEADER_BYTES
from mvps.trust.gate import Batch, Gate, HmacKey, Judged, Refusal
from mvps.trust.reasons import RejectReason
from mvps.trust.replay import Window
from mvps.trust.seal import Lane, Scheme, SealError, SealHeader
from mvps.v1 import snapshot_pb2 as pb
from mvps.v1 import stream_pb2

SECOND = 10**9
TICK = 1_790_000_000
NOW = TICK * SECOND + 5_000_000
EPOCH = 7
WINDOW = Window()
MALFORMED, INVALID, OVER = RejectReason.MALFORMED, RejectReason.INVALID_VALUE, RejectReason.OVER_LIMIT
U64 = 2**64 - 1


# ---- bytes as a sender makes them


def header_bytes(**changes: Any) -> bytes:
    """A good header; ``changes`` by the names of SealHeader, and magic, version, flags, id_bytes, reserved."""
    values: dict[str, Any] = {
        "magic": b"MVPS",
        "version": 1,
        "scheme": 1,
        "purpose": 1,
        "lane": 1,
        "flags": 0,
        "reserved": 0,
        "body_bytes": 0,
        "epoch_id": EPOCH,
        "counter": 1 << 32,
        "tick": TICK,
        "time_ns": NOW,
        "key_id": b"\1" * 8,
        "vantage_id": b"host-1",
    } | changes
    fixed = oracle.FIXED.pack(
        values["magic"] + bytes([values["version"]]),
        values["scheme"],
        values["purpose"],
        values["lane"],
        values["flags"],
        values.get("id_bytes", len(values["vantage_id"]) & 0xFF),
        values["reserved"],
        values["body_bytes"],
        values["epoch_id"],
        values["counter"],
        values["tick"],
        values["time_ns"],
        values["key_id"],
    )
    return fixed + bytes(values["vantage_id"])


HEADER = oracle.parse_header(header_bytes())


def sample() -> pb.Snapshot:
    """A valid snapshot with something in every field."""
    json = b'{"kind":"baseline"}'
    return pb.Snapshot(
        schema_version=1,
        vantage_id="host-1",
        tick=TICK,
        tick_time_ns=TICK * SECOND,
        tick_period_ns=SECOND,
        lateness_ns=5_000_000,
        agent_version="0.1.0",
        lead="mm",
        surfaces=[
            pb.Surface(
                name="kernel",
                vector=pb.CoherenceVector(
                    c1=1.0, c2=0.97, c3=0.9, c2_plain=0.0, c4=0.4, hamiltonian=0.13, s=-1.2, farthest="mm"
                ),
                lateral=pb.LATERAL_COHERENT_BUT_FALSE,
                decision=pb.Decision(
                    phase=pb.PHASE_BAU,
                    raw_phase=pb.PHASE_SHIFTED,
                    posterior=[0.9, 0.07, 0.02, 0.01],
                    d2=1.5,
                    phi_d=0.78,
                    p_value=0.6,
                    dof=3,
                    cutoffs=pb.Cutoffs(watch=7.8, alarm=11.3, critical=math.inf, mode="empirical"),
                    s_cutoffs=pb.Cutoffs(watch=2.0, alarm=3.0, critical=4.0, mode="empirical"),
                    baseline_id="0123456789abcdef",
                    axis_contributions=[pb.Contribution(name="c2", value=1.5)],
                    vantage_contributions=[pb.Contribution(name="mm", value=1.0), pb.Contribution(name="blk")],
                ),
                observations=[
                    pb.ObservationSummary(
                        vantage=name,
                        events=100,
                        checked=3,
                        violated=1,
                        degraded="ausgedünnt",
                        distribution=struct.pack("<4f", 0.9, 0.05, 0.05, 0.0),
                        own_distance=0.0,
                        load=pb.ReplicaLoad(requests=9, prompt_tokens=900, cached_tokens=700),
                        objects=pb.ObjectSketch(hashes=[1, 2, 3], total=7, names={1: "nginx.service", 0: ""}),
                    )
                    for name in ("mm", "blk")
                ],
                missing=["irq"],
                calibrated_ticks=300,
                needed_ticks=300,
            ),
            pb.Surface(
                name="quiet",
                decision=pb.Decision(phase=pb.PHASE_BAU, raw_phase=pb.PHASE_BAU, posterior=[1.0, 0.0, 0.0, 0.0]),
                observations=[pb.ObservationSummary(vantage="mm", unchanged_ticks=7)],
            ),
        ],
        losses=pb.LossTotals(by_cause={"blk.objects_full": 3, "": 0}),
        baselines=[pb.Baseline(id=hashlib.sha256(json).hexdigest()[:16], surface="kernel", json=json)],
        extensions={"org.example/x": b"\xff\0", "": b""},
    )


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def piece(number: int, wire: int, value: int | bytes) -> bytes:
    """One field as it stands on the wire."""
    if isinstance(value, int):
        return varint(number << 3 | wire) + varint(value)
    return varint(number << 3 | wire) + (varint(len(value)) if wire == 2 else b"") + value


def body_refusal(body: bytes, header: oracle.Header = HEADER, window: Window = WINDOW) -> RejectReason | None:
    """What the gate says of a body, and the oracle too."""
    refusal = gate.check_body(body, SealHeader(*header), window)
    reason = None if refusal is None else refusal.reason
    assert reason == oracle.check_body(body, header, window)
    return reason


# ---- bodies


def test_a_snapshot_with_every_field_is_accepted() -> None:
    body = sample()
    assert set(populated(body)) == set(every_field(pb.Snapshot.DESCRIPTOR))
    assert body_refusal(body.SerializeToString()) is None


def every_field(descriptor: Any) -> Iterator[str]:
    for field in descriptor.fields:
        yield field.full_name
        if field.message_type is not None:
            yield from every_field(field.message_type)


def populated(message: Any) -> Iterator[str]:
    for field, value in message.ListFields():
        yield field.full_name
        entry = field.message_type is not None and field.message_type.GetOptions().map_entry
        if entry:
            yield from every_field(field.message_type)
        elif field.message_type is not None:
            for one in value if field.is_repeated else [value]:
                yield from populated(one)


def test_parts_that_were_serialised_apart_are_accepted_together() -> None:
    # As mvps.daemon.snapshot writes a tick and its baselines.
    whole = sample()
    part = pb.Snapshot(baselines=whole.baselines)
    del whole.baselines[:]
    assert body_refusal(whole.SerializeToString() + part.SerializeToString()) is None


def at(path: str, change: Callable[[Any], object]) -> Callable[[pb.Snapshot], object]:
    """``change`` applied to what is at ``path``."""

    def apply(body: pb.Snapshot) -> None:
        target: Any = body
        for step in filter(None, path.split(".")):
            target = target[int(step)] if step.isdigit() else getattr(target, step)
        change(target)

    return apply


def put(path: str, value: object) -> Callable[[pb.Snapshot], object]:
    way, _, last = path.rpartition(".")
    return at(way, lambda target: setattr(target, last, value))


def fill(path: str, entries: list[Any]) -> Callable[[pb.Snapshot], object]:
    """The list at ``path`` replaced."""

    def change(target: Any) -> None:
        del target[:]
        target.extend(entries)

    return at(path, change)


def fill_map(path: str, entries: dict[Any, Any]) -> Callable[[pb.Snapshot], object]:
    def change(target: Any) -> None:
        target.clear()
        target.update(entries)

    return at(path, change)


def spread(labels: int) -> bytes:
    return struct.pack(f"<{labels}f", *[1 / labels] * labels)


def baseline(size: int) -> pb.Baseline:
    json = b"j" * size
    return pb.Baseline(id=hashlib.sha256(json).hexdigest()[:16], surface="kernel", json=json)


S = "surfaces.0."
Q = "surfaces.1."
O = S + "observations.0."  # noqa: E741
D = S + "decision."
V = S + "vector."

VALUES = [
    (put("schema_version", 2), RejectReason.UNKNOWN_SCHEMA_VERSION),
    (put("schema_version", 0), RejectReason.UNKNOWN_SCHEMA_VERSION),
    (put("vantage_id", "host-2"), RejectReason.HEADER_MISMATCH),
    (put("vantage_id", "host-10"), RejectReason.HEADER_MISMATCH),
    (put("vantage_id", ""), RejectReason.HEADER_MISMATCH),
    (put("tick", TICK + 1), RejectReason.HEADER_MISMATCH),
    (put("tick_time_ns", 1), INVALID),
    (put("tick_time_ns", TICK * SECOND + 1), INVALID),
    (put("tick_period_ns", 0), INVALID),
    (put("tick_period_ns", oracle.MAX_PERIOD_NS + 1), INVALID),
    (put("agent_version", "a\nb"), INVALID),
    (put("agent_version", "\x1b[2J"), INVALID),
    (put("agent_version", "\x7f"), INVALID),
    (put("agent_version", "a\u2028b"), INVALID),
    (put("agent_version", "a\u202eb"), INVALID),
    (put("agent_version", "naïve café"), None),
    (put("lead", "\0"), INVALID),
    (put(S + "name", ""), INVALID),
    (put(V + "c2", 1.01), INVALID),
    (put(V + "c2", 0.0), None),
    (put(V + "c2", -0.0), None),
    (put(V + "c1", math.nan), INVALID),
    (put(V + "c3", -1e-300), INVALID),
    (put(V + "c2_plain", math.inf), INVALID),
    (put(V + "c4", 1.5), INVALID),
    (put(V + "c4", 0.5), None),
    (put(S + "lateral", 2), None),
    (put(S + "lateral", 3), INVALID),
    (put(S + "lateral", -1), INVALID),
    (put(V + "hamiltonian", math.inf), INVALID),
    (put(V + "hamiltonian", -1.0), None),
    (put(V + "s", math.nan), INVALID),
    (put(V + "farthest", "\r"), INVALID),
    (put(O + "violated", 4.0), INVALID),
    (put(O + "violated", -1.0), INVALID),
    (put(O + "violated", 3.0), None),
    (put(O + "checked", math.inf), INVALID),
    (put(O + "events", -1.0), INVALID),
    (put(O + "events", math.inf), INVALID),
    (put(O + "own_distance", math.nan), INVALID),
    (put(O + "load.cached_tokens", 901), INVALID),
    (put(O + "load.cached_tokens", 900), None),
    (put(O + "load.requests", U64), None),
    (put(O + "vantage", "blk"), INVALID),
    (put(O + "vantage", "irq"), INVALID),
    (put(O + "vantage", ""), INVALID),
    (put(O + "degraded", "\t"), INVALID),
    (put(O + "distribution", b"abc"), INVALID),
    (put(O + "distribution", struct.pack("<2f", 0.4, 0.4)), INVALID),
    (put(O + "distribution", struct.pack("<2f", 1.5, -0.5)), INVALID),
    (put(O + "distribution", struct.pack("<2f", math.nan, 1.0)), INVALID),
    (put(O + "distribution", struct.pack("<2f", math.inf, 1.0)), INVALID),
    (put(O + "distribution", struct.pack("<2f", 1.0, -0.0)), None),
    (put(O + "distribution", b""), None),
    (put(O + "objects.total", 2), INVALID),
    (fill_map(O + "objects.names", {1: "\n"}), INVALID),
    (fill(S + "missing", [""]), INVALID),
    (fill(S + "missing", ["a", "a"]), INVALID),
    (at("", lambda body: body.surfaces.append(body.surfaces[0])), INVALID),
    (put(Q + "observations.0.unchanged_ticks", limits.MAX_UNCHANGED_TICKS), None),
    (put(Q + "observations.0.unchanged_ticks", limits.MAX_UNCHANGED_TICKS + 1), INVALID),
    (put(Q + "observations.0.distribution", struct.pack("<2f", 0.5, 0.5)), INVALID),
    (put(Q + "observations.0.objects.total", 1), INVALID),
    (put(Q + "decision.phase", pb.PHASE_WATCH), INVALID),
    (put(Q + "decision.raw_phase", pb.PHASE_WATCH), INVALID),
    (at("surfaces.1", lambda surface: surface.ClearField("decision")), INVALID),
    (put(D + "phase", 0), INVALID),
    (put(D + "raw_phase", 0), INVALID),
    (put(D + "phase", 7), INVALID),
    (put(D + "raw_phase", -1), INVALID),
    (fill(D + "posterior", [0.5, 0.5]), INVALID),
    (fill(D + "posterior", [0.25] * 3 + [0.3]), INVALID),
    (fill(D + "posterior", [1.1, -0.1, 0.0, 0.0]), INVALID),
    (fill(D + "posterior", [math.nan, 1.0, 0.0, 0.0]), INVALID),
    (fill(D + "posterior", []), INVALID),
    (put(D + "d2", -0.1), INVALID),
    (put(D + "d2", math.inf), INVALID),
    (put(D + "phi_d", 1.5), INVALID),
    (put(D + "p_value", math.nan), INVALID),
    (put(D + "baseline_id", "\x00"), INVALID),
    (put(D + "cutoffs.watch", 12.0), INVALID),
    (put(D + "cutoffs.watch", math.nan), INVALID),
    (put(D + "s_cutoffs.critical", 2.5), INVALID),
    (put(D + "cutoffs.mode", "\x85"), INVALID),
    (put(D + "axis_contributions.0.name", ""), INVALID),
    (put(D + "vantage_contributions.0.value", math.nan), INVALID),
    (fill_map("losses.by_cause", {"a\nb": 1}), INVALID),
    (fill_map("extensions", {"a\nb": b""}), INVALID),
    (put("baselines.0.id", "0123456789abcdef"), INVALID),
    (put("baselines.0.id", "0123456789abcde"), INVALID),
    (put("baselines.0.json", b""), INVALID),
    (put("baselines.0.surface", ""), INVALID),
]


@pytest.mark.parametrize(("change", "reason"), VALUES)
def test_values(change: Callable[[pb.Snapshot], object], reason: RejectReason | None) -> None:
    body = sample()
    change(body)
    assert body_refusal(body.SerializeToString()) is reason


# What is made with the limit itself is accepted, and with one more it is refused.
LIMITS: list[tuple[int, Callable[[int], Callable[[pb.Snapshot], object]]]] = [
    (limits.MAX_SURFACES, lambda n: fill("surfaces", [pb.Surface(name=f"s{i}") for i in range(n)])),
    (
        limits.MAX_VANTAGES_PER_SURFACE,
        lambda n: fill(S + "observations", [pb.ObservationSummary(vantage=f"v{i}") for i in range(n - 1)]),
    ),
    (limits.MAX_VANTAGES_PER_SURFACE, lambda n: fill(S + "missing", [f"m{i}" for i in range(n - 2)])),
    (limits.MAX_LABELS, lambda n: put(O + "distribution", spread(n))),
    (limits.MAX_OBJECTS, lambda n: at(O + "objects", lambda o: (o.hashes.extend([9] * (n - 3)), put("total", n)(o)))),
    (limits.MAX_OBJECTS, lambda n: fill_map(O + "objects.names", dict.fromkeys(range(n), "x"))),
    (
        limits.MAX_CONTRIBUTIONS,
        lambda n: fill(D + "axis_contributions", [pb.Contribution(name="c")] * n),
    ),
    (
        limits.MAX_CONTRIBUTIONS,
        lambda n: fill(D + "vantage_contributions", [pb.Contribution(name="c")] * n),
    ),
    (limits.MAX_LOSS_CAUSES, lambda n: fill_map("losses.by_cause", {f"c{i}": i for i in range(n)})),
    (limits.MAX_BASELINES, lambda n: fill("baselines", [baseline(1)] * n)),
    (limits.MAX_BASELINE_BYTES, lambda n: fill("baselines", [baseline(n)])),
    (limits.MAX_EXTENSIONS, lambda n: fill_map("extensions", {f"x{i}": b"" for i in range(n)})),
    (limits.MAX_EXTENSION_BYTES, lambda n: fill_map("extensions", {"x": bytes(n)})),
    *(
        (limits.MAX_NAME, lambda n, path=path: put(path, "n" * n))
        for path in (
            "agent_version",
            "lead",
            S + "name",
            V + "farthest",
            O + "vantage",
            O + "degraded",
            D + "baseline_id",
            D + "cutoffs.mode",
            D + "axis_contributions.0.name",
            "baselines.0.surface",
        )
    ),
    (limits.MAX_NAME, lambda n: put("agent_version", "é" * (n // 2) + "e" * (n % 2))),
    (limits.MAX_NAME, lambda n: fill(S + "missing", ["n" * n])),
    (limits.MAX_NAME, lambda n: fill_map(O + "objects.names", {1: "n" * n})),
    (limits.MAX_NAME, lambda n: fill_map("losses.by_cause", {"n" * n: 1})),
    (limits.MAX_NAME, lambda n: fill_map("extensions", {"n" * n: b""})),
]


@pytest.mark.parametrize(("limit", "make"), LIMITS)
def test_limits_hold_to_the_last_entry(limit: int, make: Callable[[int], Callable[[pb.Snapshot], object]]) -> None:
    for count, reason in ((limit, None), (limit + 1, OVER)):
        body = sample()
        make(count)(body)
        assert body_refusal(body.SerializeToString()) is reason


def test_a_baseline_id_beyond_a_names_length_is_over_a_limit() -> None:
    body = sample()
    body.baselines[0].id = "0" * (limits.MAX_NAME + 1)
    assert body_refusal(body.SerializeToString()) is OVER


@pytest.mark.parametrize(
    ("period", "tick", "late", "reason"),
    [
        (oracle.MIN_PERIOD_NS, 1 << 35, 0, None),
        (oracle.MAX_PERIOD_NS, 1 << 24, 0, None),
        (oracle.MIN_PERIOD_NS - 1, 1 << 35, 0, INVALID),
        (SECOND, TICK, WINDOW.live_past_ns, None),
        (SECOND, TICK, WINDOW.live_past_ns + 1, INVALID),
        (SECOND, TICK, -WINDOW.future_ns, None),
        (SECOND, TICK, -WINDOW.future_ns - 1, INVALID),
        (SECOND, 0, 0, None),
        (SECOND, 0, U64, INVALID),
        (SECOND, U64 // SECOND, -(U64 // SECOND) * SECOND, INVALID),
        (oracle.MAX_PERIOD_NS, U64 // oracle.MAX_PERIOD_NS, 0, None),
        (oracle.MAX_PERIOD_NS, U64, 0, INVALID),  # tick * period has more than 64 bits
    ],
)
def test_a_tick_is_on_its_lattice_and_near_its_seal(
    period: int, tick: int, late: int, reason: RejectReason | None
) -> None:
    time_ns = tick * period % (1 << 64)
    body = sample()
    body.tick, body.tick_period_ns, body.tick_time_ns = tick, period, time_ns
    header = HEADER._replace(tick=tick, time_ns=time_ns + late)
    assert body_refusal(body.SerializeToString(), header) is reason


ENTRY_KEY, ENTRY_VALUE = piece(1, 2, b"k"), piece(2, 2, b"v")

WIRE = [
    ("a field from the future", piece(999, 0, 1), RejectReason.UNKNOWN_FIELD),
    (
        "of each wire type",
        piece(99, 0, 0) + piece(99, 1, bytes(8)) + piece(99, 2, b"?") + piece(99, 5, bytes(4)),
        RejectReason.UNKNOWN_FIELD,
    ),
    ("the wrong wire type", piece(1, 2, b""), RejectReason.UNKNOWN_FIELD),
    ("the wrong wire type of a message", piece(8, 0, 1), RejectReason.UNKNOWN_FIELD),
    ("the largest field number", piece((1 << 29) - 1, 0, 1), RejectReason.UNKNOWN_FIELD),
    ("field number 0", piece(0, 0, 1), MALFORMED),
    ("a field number beyond", piece(1 << 29, 0, 1), MALFORMED),
    ("a group", bytes([3 << 3 | 3, 3 << 3 | 4]), MALFORMED),
    ("an unknown group", bytes([13 << 3 | 3, 13 << 3 | 4]), MALFORMED),
    ("the end of a group", bytes([13 << 3 | 4]), MALFORMED),
    ("wire type 6", bytes([13 << 3 | 6]), MALFORMED),
    ("a scalar twice", piece(3, 0, TICK), MALFORMED),
    ("a string twice", piece(2, 2, b"host-1"), MALFORMED),
    ("a message twice", piece(9, 2, b""), MALFORMED),
    ("a default written out", piece(6, 0, 0), MALFORMED),
    ("a varint too long", piece(13, 0, 0)[:-1] + b"\x80\0", MALFORMED),
    ("a varint of eleven bytes", b"\x68" + b"\xff" * 10 + b"\1", MALFORMED),
    ("a varint of 65 bits", b"\x68" + b"\xff" * 9 + b"\2", MALFORMED),
    ("the largest varint", b"\x68" + b"\xff" * 9 + b"\1", RejectReason.UNKNOWN_FIELD),
    ("a tag too long", b"\xe8\0\1", MALFORMED),
    ("a length too long", b"\x6a\x81\0x", MALFORMED),
    ("a length beyond the end", b"\x6a\2x", MALFORMED),
    ("the largest length", b"\x6a" + b"\xff" * 9 + b"\1", MALFORMED),
    ("an end inside a tag", b"\xff", MALFORMED),
    ("an end inside a number", b"\x69\0\0", MALFORMED),
    ("text that is no UTF-8", piece(15, 2, piece(1, 2, b"\xff") + ENTRY_VALUE), MALFORMED),
    ("a long form of three", piece(15, 2, piece(1, 2, b"\xe0\x9f\xbf") + ENTRY_VALUE), MALFORMED),
    ("a long form of four", piece(15, 2, piece(1, 2, b"\xf0\x8f\xbf\xbf") + ENTRY_VALUE), MALFORMED),
    ("a surrogate", piece(15, 2, piece(1, 2, b"\xed\xa0\x80") + ENTRY_VALUE), MALFORMED),
    ("a long form", piece(15, 2, piece(1, 2, b"\xc0\x80") + ENTRY_VALUE), MALFORMED),
    ("beyond Unicode", piece(15, 2, piece(1, 2, b"\xf4\x90\x80\x80") + ENTRY_VALUE), MALFORMED),
    ("an entry", piece(15, 2, ENTRY_KEY + ENTRY_VALUE), None),
    ("an entry backwards", piece(15, 2, ENTRY_VALUE + ENTRY_KEY), None),
    ("an entry without key", piece(15, 2, ENTRY_VALUE), MALFORMED),
    ("an entry without value", piece(15, 2, ENTRY_KEY), MALFORMED),
    ("an entry with two keys", piece(15, 2, ENTRY_KEY + ENTRY_KEY + ENTRY_VALUE), MALFORMED),
    ("an entry with more", piece(15, 2, ENTRY_KEY + ENTRY_VALUE + piece(3, 0, 1)), RejectReason.UNKNOWN_FIELD),
    ("the same key twice", 2 * piece(15, 2, ENTRY_KEY + ENTRY_VALUE), INVALID),
    ("an unknown field deep down", piece(8, 2, piece(3, 2, piece(10, 2, piece(9, 0, 1)))), RejectReason.UNKNOWN_FIELD),
    ("numbers that are not packed", piece(8, 2, piece(3, 2, piece(3, 1, bytes(8)))), MALFORMED),
    ("packed numbers of another size", piece(8, 2, piece(3, 2, piece(3, 2, bytes(9)))), MALFORMED),
    ("nothing packed", piece(8, 2, piece(3, 2, piece(3, 2, b""))), MALFORMED),
    ("packed numbers in two pieces", piece(8, 2, piece(3, 2, 2 * piece(3, 2, bytes(16)))), MALFORMED),
    ("a uint32 of 33 bits", piece(8, 2, piece(6, 0, 1 << 32)), MALFORMED),
    ("an enum of 32 bits without sign", piece(8, 2, piece(3, 2, piece(1, 0, 1 << 31))), MALFORMED),
    ("a zero that stands for presence", piece(8, 2, piece(1, 2, b"x") + piece(2, 2, piece(1, 1, bytes(8)))), None),
    ("a zero that nobody writes", piece(8, 2, piece(2, 2, piece(5, 1, bytes(8)))), MALFORMED),
    ("a message in itself, a thousand deep", None, RejectReason.UNKNOWN_FIELD),
]


@pytest.mark.parametrize(("what", "more", "reason"), WIRE, ids=[what for what, _, _ in WIRE])
def test_wire_format(what: str, more: bytes | None, reason: RejectReason | None) -> None:
    if more is None:
        more = b""
        for _ in range(1000):
            more = piece(13, 2, more)
    assert body_refusal(sample().SerializeToString() + more) is reason


def test_text_is_utf8_exactly_where_python_says_so() -> None:
    for lead in range(0xBF, 0x100):
        for second in range(0x100):
            for size in (1, 2, 3, 4):
                text = bytes([lead, second, 0x80, 0xBF])[:size]
                found = gate.check_body(piece(7, 2, text), SealHeader(*HEADER), WINDOW)
                try:
                    text.decode()
                except UnicodeDecodeError:
                    assert found is not None
                    assert found.reason is MALFORMED
                else:
                    assert found is not None
                    assert found.reason is RejectReason.UNKNOWN_SCHEMA_VERSION


def test_an_object_name_twice_is_refused() -> None:
    entry = piece(3, 2, piece(1, 1, bytes(8)) + piece(2, 2, b"x"))
    surface = piece(1, 2, b"x") + piece(4, 2, piece(1, 2, b"y") + piece(8, 2, entry + entry))
    assert body_refusal(sample().SerializeToString() + piece(8, 2, surface)) is INVALID


def test_of_several_faults_the_gravest_is_reported() -> None:
    pieces = {
        INVALID: piece(8, 2, b""),
        OVER: piece(10, 2, b"") * (limits.MAX_BASELINES + 1),
        RejectReason.UNKNOWN_FIELD: piece(99, 0, 1),
        MALFORMED: b"\xff",
    }
    body = b""
    for reason, more in pieces.items():
        body += more
        expected = reason if reason in (RejectReason.UNKNOWN_FIELD, MALFORMED) else None
        assert body_refusal(sample().SerializeToString() + body) is reason
        assert body_refusal(body) is (expected or RejectReason.UNKNOWN_SCHEMA_VERSION)


# ---- bodies nobody thought of

SETTINGS = settings(deadline=None, max_examples=400)
NUMBERS = st.sampled_from([0.0, -0.0, 0.25, 0.5, 1.0, 2.0, -1.0, math.nan, math.inf, -math.inf]) | st.floats()
TEXTS = st.sampled_from(["", "mm", "blk", "c1", "n" * 256, "n" * 257, "é", "\n", "\x7f", "\u2028"]) | st.text(
    max_size=8
)
BYTES = st.sampled_from([b"", spread(1), spread(8), spread(64), spread(65), b"abc"]) | st.binary(max_size=20)
WHOLES = st.sampled_from([0, 1, 2, 6, 7, 127, 128, 2**31, 2**32 - 1, SECOND, TICK])


def scalars(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.type == field.TYPE_DOUBLE:
        return NUMBERS
    if field.type == field.TYPE_STRING:
        return TEXTS
    if field.type == field.TYPE_BYTES:
        return BYTES
    if field.type == field.TYPE_ENUM:
        return st.integers(-1, 7)
    if field.type == field.TYPE_UINT32:
        return WHOLES
    return WHOLES | st.integers(0, U64)


@st.composite
def messages(draw: st.DrawFn, descriptor: Any, message: Any) -> Any:
    """Some fields of ``message`` set to anything their type has."""
    for field in draw(st.lists(st.sampled_from(list(descriptor.fields)), unique=True)):
        inner = field.message_type
        if inner is not None and inner.GetOptions().map_entry:
            key, value = inner.fields
            getattr(message, field.name).update(draw(st.dictionaries(scalars(key), scalars(value), max_size=4)))
        elif inner is not None and field.is_repeated:
            for _ in range(draw(st.integers(0, 3))):
                draw(messages(inner, getattr(message, field.name).add()))
        elif inner is not None:
            getattr(message, field.name).SetInParent()
            draw(messages(inner, getattr(message, field.name)))
        elif field.is_repeated:
            getattr(message, field.name).extend(draw(st.lists(scalars(field), max_size=5)))
        else:
            setattr(message, field.name, draw(scalars(field)))
    return message


@SETTINGS
@given(st.data())
def test_any_message_is_judged_as_the_oracle_does(data: st.DataObject) -> None:
    start = data.draw(st.sampled_from([sample, pb.Snapshot]))()
    body_refusal(data.draw(messages(pb.Snapshot.DESCRIPTOR, start)).SerializeToString())


@st.composite
def valid_surfaces(draw: st.DrawFn, name: str) -> pb.Surface:
    names = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=20)
    vantages = draw(st.lists(names, unique=True, max_size=8))
    unit = st.floats(0, 1)
    finite = st.floats(allow_nan=False, allow_infinity=False)
    surface = pb.Surface(name=name, calibrated_ticks=draw(st.integers(0, 2**32 - 1)))
    for axis in draw(st.sets(st.sampled_from(["c1", "c2", "c3", "c2_plain", "c4"]))):
        setattr(surface.vector, axis, draw(unit))
    surface.vector.s = draw(finite)
    surface.lateral = draw(st.integers(0, 2))  # type: ignore[assignment]
    for vantage in vantages[2:]:
        labels = draw(st.integers(0, limits.MAX_LABELS))
        checked = draw(st.floats(0, 1e9))
        observation = surface.observations.add(
            vantage=vantage,
            events=draw(st.floats(0, 1e12)),
            checked=checked,
            violated=draw(st.floats(0, checked)),
            distribution=spread(labels) if labels else b"",
        )
        if draw(st.booleans()):
            prompt = draw(st.integers(0, U64))
            observation.load.requests = draw(st.integers(0, U64))
            observation.load.prompt_tokens, observation.load.cached_tokens = prompt, draw(st.integers(0, prompt))
        if draw(st.booleans()):
            hashes = draw(st.lists(st.integers(0, U64), max_size=6))
            observation.objects.hashes.extend(hashes)
            observation.objects.total = draw(st.integers(len(hashes), U64))
            observation.objects.names.update(dict.fromkeys(hashes[:2], "unit"))
    surface.missing.extend(vantages[:2])
    if draw(st.booleans()):
        posterior = draw(st.permutations([0.7, 0.2, 0.1, 0.0]))
        cutoffs = sorted(draw(st.lists(st.floats(allow_nan=False), min_size=3, max_size=3)))
        surface.decision.MergeFrom(
            pb.Decision(
                phase=draw(st.integers(1, 6)),  # type: ignore[arg-type]
                raw_phase=draw(st.integers(1, 6)),  # type: ignore[arg-type]
                posterior=posterior,
                d2=draw(st.floats(0, 1e300)),
                phi_d=draw(unit),
                p_value=draw(unit),
                cutoffs=pb.Cutoffs(watch=cutoffs[0], alarm=cutoffs[1], critical=cutoffs[2]),
                axis_contributions=[pb.Contribution(name=one, value=draw(finite)) for one in vantages[:3]],
            )
        )
    return surface


@st.composite
def valid_snapshots(draw: st.DrawFn) -> pb.Snapshot:
    snapshot = sample()
    del snapshot.surfaces[:]
    for name in draw(st.lists(st.sampled_from(["kernel", "dataplane", "ai"]), unique=True)):
        snapshot.surfaces.append(draw(valid_surfaces(name)))
    snapshot.losses.by_cause.update(draw(st.dictionaries(st.sampled_from("abcdef"), st.integers(0, U64))))
    snapshot.lateness_ns = draw(st.integers(0, U64))
    return snapshot


@SETTINGS
@given(valid_snapshots())
def test_every_valid_snapshot_is_accepted(snapshot: pb.Snapshot) -> None:
    assert body_refusal(snapshot.SerializeToString()) is None


def fields_of(body: bytes) -> list[bytes]:
    return [piece(number, wire, value) for number, wire, value in oracle.read_fields(body)]


@SETTINGS
@given(valid_snapshots(), st.randoms(use_true_random=False))
def test_the_order_of_fields_does_not_matter(snapshot: pb.Snapshot, random: Any) -> None:
    fields = fields_of(snapshot.SerializeToString())
    random.shuffle(fields)
    assert body_refusal(b"".join(fields)) is None


SAMPLE = sample().SerializeToString()


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A body with some of its bytes changed, left out, doubled or put in."""
    body = bytearray(SAMPLE)
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, max(len(body) - 1, 0)))
        size = draw(st.sampled_from([0, 1, 1, 1, 2, 8, 40]))
        cut = bytes(body[start : start + size])
        new = draw(st.sampled_from([b"", cut + cut]) | st.binary(min_size=len(cut), max_size=len(cut)) | st.binary())
        body[start : start + size] = new
    return bytes(body)


@settings(deadline=None, max_examples=2000)
@given(damaged())
def test_damaged_bodies_are_judged_as_the_oracle_does(body: bytes) -> None:
    body_refusal(body)


@settings(deadline=None, max_examples=2000)
@given(st.lists(st.sampled_from(fields_of(SAMPLE)) | damaged(), max_size=12).map(b"".join) | st.binary(max_size=60))
def test_pieces_and_garbage_are_judged_as_the_oracle_does(body: bytes) -> None:
    body_refusal(body)


def test_truncated_bodies_are_judged_as_the_oracle_does() -> None:
    fields = fields_of(SAMPLE)
    ends_of_fields = {len(b"".join(fields[:n])) for n in range(len(fields))}
    for end in range(len(SAMPLE)):
        assert (body_refusal(SAMPLE[:end]) is MALFORMED) != (end in ends_of_fields)


def test_every_byte_changed_by_every_bit() -> None:
    for position in range(len(SAMPLE)):
        for bit in range(8):
            body = bytearray(SAMPLE)
            body[position] ^= 1 << bit
            body_refusal(bytes(body))


@SETTINGS
@given(damaged() | valid_snapshots().map(lambda snapshot: snapshot.SerializeToString()))
def test_what_is_accepted_is_what_protobuf_reads_and_writes(body: bytes) -> None:
    accepted = gate.check_body(body, SealHeader(*HEADER), WINDOW) is None
    try:
        snapshot = pb.Snapshot.FromString(body)
    except DecodeError:
        assert not accepted
        return
    # Without native code no other fault would be found.
    lenient, strict = (check(body, HEADER, WINDOW) for check in (oracle.check_parsed, oracle.check_body))
    assert lenient is strict or (not accepted and strict in (MALFORMED, INVALID))
    if accepted:
        size = snapshot.ByteSize()
        assert size == len(body)
        snapshot.DiscardUnknownFields()
        assert snapshot.ByteSize() == size


# ---- headers


def header_verdict(header: bytes) -> oracle.Header | RejectReason:
    """What the gate makes of a header, and the oracle too."""
    found = gate.parse_header(header)
    try:
        expected: oracle.Header | RejectReason = oracle.parse_header(header)
    except oracle.RefusedError as error:
        expected = error.reason
    assert (found.reason if isinstance(found, Refusal) else found) == expected
    return expected


HEADERS = [
    ({"magic": b"MVPX"}, RejectReason.BAD_MAGIC),
    ({"version": 2}, RejectReason.UNKNOWN_VERSION),
    ({"scheme": 0}, RejectReason.UNKNOWN_SCHEME),
    ({"scheme": 3}, RejectReason.UNKNOWN_SCHEME),
    ({"purpose": 0}, RejectReason.WRONG_PURPOSE),
    ({"purpose": 4}, RejectReason.WRONG_PURPOSE),
    ({"lane": 0}, RejectReason.UNKNOWN_LANE),
    ({"lane": 3}, RejectReason.UNKNOWN_LANE),
    ({"flags": 1}, RejectReason.BAD_FLAGS),
    ({"flags": 256}, RejectReason.BAD_FLAGS),
    ({"reserved": 1}, RejectReason.BAD_FLAGS),
    ({"id_bytes": 5}, RejectReason.BAD_LENGTH),
    ({"vantage_id": b"x" * 300}, RejectReason.BAD_LENGTH),
    ({"body_bytes": limits.MAX_BODY + 1}, RejectReason.OVERSIZE),
    ({"vantage_id": b""}, RejectReason.BAD_VANTAGE_ID),
    ({"vantage_id": b"-x"}, RejectReason.BAD_VANTAGE_ID),
    ({"vantage_id": b"a/b"}, RejectReason.BAD_VANTAGE_ID),
    ({"vantage_id": b"a\n"}, RejectReason.BAD_VANTAGE_ID),
    ({"vantage_id": b"x" * 65}, RejectReason.BAD_VANTAGE_ID),
]


@pytest.mark.parametrize(("changes", "reason"), HEADERS)
def test_headers_are_refused_for_what_is_wrong(changes: dict[str, Any], reason: RejectReason) -> None:
    assert header_verdict(header_bytes(**changes)) is reason


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"scheme": 2, "purpose": 3, "lane": 2, "body_bytes": limits.MAX_BODY},
        {"vantage_id": b"x" * 64},
        {"vantage_id": b"0._:@-Z"},
        {"epoch_id": U64, "counter": U64, "tick": U64, "time_ns": U64, "key_id": b"\xff" * 8},
    ],
)
def test_good_headers_give_their_fields(changes: dict[str, Any]) -> None:
    fields = header_verdict(header_bytes(**changes))
    assert isinstance(fields, oracle.Header)
    assert isinstance(gate.parse_header(header_bytes(**changes)), tuple)
    assert oracle.FIXED.size == FIXED_HEADER_BYTES


@SETTINGS
@given(st.data())
def test_any_header_is_judged_as_the_oracle_does(data: st.DataObject) -> None:
    header = bytearray(header_bytes(vantage_id=data.draw(st.binary(max_size=70))))
    for _ in range(data.draw(st.integers(0, 2))):
        header[data.draw(st.integers(0, len(header) - 1))] = data.draw(st.integers(0, 255))
    header_verdict(bytes(header[: data.draw(st.just(len(header)) | st.integers(0, len(header)))]))
    header_verdict(data.draw(st.binary(max_size=80)))


# ---- keys

# RFC 4231, section 4. A truncated tag (4.6) is not asked for here.
RFC_4231 = [
    (b"\x0b" * 20, b"Hi There", "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"),
    (b"Jefe", b"what do ya want for nothing?", "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"),
    (b"\xaa" * 20, b"\xdd" * 50, "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe"),
    (bytes(range(1, 26)), b"\xcd" * 50, "82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b"),
    (
        b"\xaa" * 131,
        b"Test Using Larger Than Block-Size Key - Hash Key First",
        "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54",
    ),
    (
        b"\xaa" * 131,
        b"This is a test using a larger than block-size key and a larger than block-size data. "
        b"The key needs to be hashed before being used by the HMAC algorithm.",
        "9b09ffa71b942fcb27635fbcd5b0e944bfdc63644f0713938a7f51535c3a35e2",
    ),
]


@pytest.mark.parametrize(("key", "data", "tag"), RFC_4231)
def test_hmac_vectors_of_rfc_4231(key: bytes, data: bytes, tag: str) -> None:
    made = HmacKey(key, bytes(8))
    for cut in range(len(data) + 1):
        header, body = data[:cut], data[cut:]
        assert made.tag(header, body).hex() == tag
        assert made.holds(header, body, bytes.fromhex(tag))


@given(st.binary(max_size=200), st.binary(max_size=200), st.binary(max_size=100))
@example(b"", b"", b"k" * 63)
@example(b"", b"", b"k" * 64)
@example(b"", b"", b"k" * 65)
def test_tags_are_those_of_the_standard_library(header: bytes, body: bytes, key: bytes) -> None:
    assert HmacKey(key, bytes(8)).tag(header, body) == hmac.digest(key, header + body, "sha256")


def test_a_tag_holds_only_whole_and_unchanged() -> None:
    key = HmacKey(b"k" * 32, bytes(8))
    tag = key.tag(b"header", b"body")
    for position in range(32):
        changed = bytearray(tag)
        changed[position] ^= 1
        assert not key.holds(b"header", b"body", bytes(changed))
    for other in (tag[:-1], tag + b"\0", b""):
        assert not key.holds(b"header", b"body", other)
    assert not key.holds(b"header", b"bodY", tag)
    assert not HmacKey(b"l" * 32, bytes(8)).holds(b"header", b"body", tag)


def test_a_key_shows_nothing_of_itself() -> None:
    key = HmacKey(b"sixteen secrets!" * 2, b"ABCDEFGH")
    assert (key.scheme, key.key_id) == (1, b"ABCDEFGH")
    assert "secret" not in repr(key) + str(key)
    for steal in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            steal(key)
    with pytest.raises(AttributeError):
        key.key_id = bytes(8)  # type: ignore[misc]


@pytest.mark.parametrize("arguments", [(), (b"k",), ("k", bytes(8)), (b"k", bytes(7)), (b"k", bytearray(8))])
def test_a_key_is_made_of_bytes_and_an_id_of_eight(arguments: tuple[Any, ...]) -> None:
    with pytest.raises((TypeError, ValueError)):
        HmacKey(*arguments)
    key = HmacKey(b"k", bytes(8))
    for call in (lambda: key.tag(b"x"), lambda: key.tag(b"x", "y"), lambda: key.holds(b"x", b"y", None)):  # type: ignore
        with pytest.raises(TypeError):
            call()


# ---- the gate as a whole

KEY_IDS = {"host-1": b"\1" * 8, "host-2": b"\2" * 8, "signer": b"\3" * 8, "loner": b"\4" * 8}
SECRETS = {name: hashlib.sha256(name.encode()).digest() for name in KEY_IDS}


class Signer:
    """A key of scheme 2 that the gate has to call; its tag is SHA-512, which no key shares."""

    scheme = 2
    key_id = KEY_IDS["signer"]

    def tag(self, header: bytes, body: bytes) -> bytes:
        return hashlib.sha512(SECRETS["signer"] + header + body).digest()

    def holds(self, header: bytes, body: bytes, tag: bytes) -> bool:
        return self.tag(header, body) == tag


def native_key(name: str) -> Any:
    return Signer() if name == "signer" else HmacKey(SECRETS[name], KEY_IDS[name])


def slow_key(name: str) -> Any:
    return Signer() if name == "signer" else oracle.Key(SECRETS[name], KEY_IDS[name])


# Epoch -> validity; epoch 9 is retired from the live lane when NOW has come, and the ticks of epoch 10 are longer.
EPOCHS = {
    EPOCH: (0, U64, U64, SECOND),
    8: (NOW - 100, NOW + 100, U64, 0),
    9: (0, U64, NOW, SECOND),
    10: (0, U64, U64, SECOND + 1),
}


def refused_at_the_source(vantage_id: str, epoch_id: int) -> RejectReason | None:
    if vantage_id == "loner":
        return RejectReason.REVOKED
    if vantage_id not in KEY_IDS:
        return RejectReason.UNKNOWN_VANTAGE
    return None if epoch_id in EPOCHS else RejectReason.UNKNOWN_EPOCH


def resolve(vantage_id: str, epoch_id: int) -> Any:
    reason = refused_at_the_source(vantage_id, epoch_id)
    if reason is not None:
        return Refusal(reason, "said the source")
    return native_key(vantage_id), *EPOCHS[epoch_id]


def slow_resolve(vantage_id: str, epoch_id: int) -> Any:
    reason = refused_at_the_source(vantage_id, epoch_id)
    return reason or oracle.Held(slow_key(vantage_id), *EPOCHS[epoch_id])


class Pair:
    """A gate and its oracle, which must not be told apart."""

    def __init__(self, max_vantages: int = 100) -> None:
        self.asked: list[tuple[str, int]] = []
        window = (WINDOW.live_past_ns, WINDOW.backfill_past_ns, WINDOW.future_ns)
        self.gate = Gate(self._resolve, *window, max_vantages)
        # The same items as one message, so that every history below is also one of Gate.judge.
        self.messages = Gate(resolve, *window, max_vantages)
        self.oracle = oracle.Gate(slow_resolve, WINDOW, max_vantages)

    def _resolve(self, vantage_id: str, epoch_id: int) -> Any:
        self.asked.append((vantage_id, epoch_id))
        return resolve(vantage_id, epoch_id)

    def admit(self, *items: tuple[bytes, bytes, bytes], now_ns: int = NOW) -> list[oracle.Verdict]:
        found = self.gate.admit(items, now_ns)
        expected: list[oracle.Verdict] = []
        for item in items:
            expected.append(self.oracle.admit(item, now_ns))
            if expected[-1].header is None:
                break
        assert [plain(one) for one in found] == expected
        judged = self.messages.judge(envelope(*items), b"", now_ns)
        assert judged.count == len(items)
        assert [told(judged, index) for index in range(len(judged))] == [v for v in expected if v.header is not None]
        assert (judged.refused is not None) == (len(judged) < len(expected))
        if judged.refused is not None:
            assert judged.refused.reason is expected[-1].reason
            assert judged.refused == found[-1].refusal
        return expected

    def commit(self, *row: Any) -> None:
        self.gate.commit(*row)
        self.messages.commit(*row)
        self.oracle.commit(*row)

    def rewind(self) -> None:
        self.gate.rewind()
        self.messages.rewind()
        self.oracle.rewind()

    def take_backfill_from(self, sealed_ns: int) -> None:
        self.gate.take_backfill_from(sealed_ns)
        self.messages.take_backfill_from(sealed_ns)
        self.oracle.take_backfill_from(sealed_ns)

    def forget_keys(self) -> None:
        self.gate.forget_keys()
        self.messages.forget_keys()
        self.oracle.forget_keys()


def plain(judged: Judged) -> oracle.Verdict:
    header = None if judged.header is None else oracle.Header(*judged.header)
    assert judged.refusal is None or judged.refusal.detail
    return oracle.Verdict(header, judged.fresh, judged.refusal and judged.refusal.reason)


NONCE = bytes(range(16))


def envelope(*items: Any, nonce: bytes = NONCE) -> bytes:
    """A message of a stream."""
    sealed = [stream_pb2.SealedSnapshot(header=h, body=b, tag=t) for h, b, t in items]
    return stream_pb2.Batch(stream_nonce=nonce, items=sealed).SerializeToString()


def told(batch: Batch, index: int) -> oracle.Verdict:
    """The verdict over one item of a batch."""
    fresh = index not in batch.repeats and (batch.reason(index) is None or batch.reason(index) not in LATE)
    return oracle.Verdict(oracle.Header(*batch.header(index)), fresh, batch.reason(index))


# Reasons for which a counter is not spent.
LATE = (RejectReason.STALE, RejectReason.FUTURE, RejectReason.EPOCH_RETIRED)


def sealed(name: str = "host-1", body: bytes | None = None, key: Any = None, **changes: Any) -> Any:
    """A sealed snapshot; ``changes`` as for header_bytes."""
    vantage_id = changes.get("vantage_id", name.encode())
    if body is None:
        snapshot = sample()
        snapshot.vantage_id = vantage_id.decode(errors="replace")
        body = snapshot.SerializeToString()
    key = key or slow_key(name)
    values = {
        "vantage_id": vantage_id,
        "scheme": key.scheme,
        "key_id": key.key_id,
        "body_bytes": len(body),
    } | changes
    header = header_bytes(**values)
    return header, body, key.tag(header, body)


def test_a_fresh_snapshot_is_accepted_once() -> None:
    pair = Pair()
    (first,) = pair.admit(sealed())
    assert first.header is not None
    assert (first.header.vantage_id, first.fresh, first.reason) == ("host-1", True, None)
    (again,) = pair.admit(sealed())
    assert (again.fresh, again.reason) == (False, None)


def test_answers_come_in_the_order_of_the_items() -> None:
    pair = Pair()
    verdicts = pair.admit(
        sealed(counter=5), sealed(counter=5), sealed(counter=4), sealed(counter=6), sealed("signer"), sealed(counter=6)
    )
    assert [verdict.fresh for verdict in verdicts] == [True, False, False, True, True, False]


def test_a_body_that_is_refused_spends_its_counter() -> None:
    pair = Pair()
    (verdict,) = pair.admit(sealed(body=b"\xff"))
    assert (verdict.fresh, verdict.reason) == (True, MALFORMED)
    assert not pair.admit(sealed())[0].fresh


UNVOUCHED = [
    (sealed(purpose=2), RejectReason.WRONG_PURPOSE),
    (sealed(body_bytes=1), RejectReason.BAD_LENGTH),
    ((*sealed()[:2], bytes(31)), RejectReason.BAD_LENGTH),
    ((*sealed()[:2], bytes(64)), RejectReason.BAD_LENGTH),
    ((*sealed()[:2], bytes(32)), RejectReason.BAD_SEAL),
    (sealed(key=oracle.Key(b"other", KEY_IDS["host-1"])), RejectReason.BAD_SEAL),
    (sealed(key_id=b"\7" * 8), RejectReason.UNKNOWN_KEY),
    (sealed(scheme=2), RejectReason.WRONG_SCHEME),
    (sealed("signer", scheme=1), RejectReason.WRONG_SCHEME),
    ((*sealed("signer")[:2], bytes(64)), RejectReason.BAD_SEAL),
    ((*sealed("signer")[:2], bytes(32)), RejectReason.BAD_LENGTH),
    (sealed(vantage_id=b"stranger"), RejectReason.UNKNOWN_VANTAGE),
    (sealed("loner"), RejectReason.REVOKED),
    (sealed(epoch_id=99), RejectReason.UNKNOWN_EPOCH),
    ((b"", b"", b""), RejectReason.TRUNCATED),
]


@pytest.mark.parametrize(("item", "reason"), UNVOUCHED)
def test_nothing_vouches_for_what_the_seal_does_not_hold_on(item: Any, reason: RejectReason) -> None:
    for heard_before in (False, True):
        pair = Pair()
        if heard_before:
            pair.admit(sealed(counter=1), sealed("signer", counter=1))
        assert pair.admit(item) == [oracle.Verdict(None, False, reason)]
        assert not reason.vouched
        # It left no trace: the right one is fresh.
        assert pair.admit(sealed())[0].fresh


TIMES: list[tuple[dict[str, Any], RejectReason | None]] = [
    ({"time_ns": NOW - WINDOW.live_past_ns - 1}, RejectReason.STALE),
    ({"time_ns": NOW - WINDOW.live_past_ns}, INVALID),  # the body's tick is not that old
    ({"time_ns": NOW - WINDOW.live_past_ns - 1, "lane": 2}, INVALID),
    ({"time_ns": NOW - WINDOW.backfill_past_ns - 1, "lane": 2}, RejectReason.STALE),
    ({"time_ns": NOW + WINDOW.future_ns}, None),
    ({"time_ns": NOW + WINDOW.future_ns + 1}, RejectReason.FUTURE),
    ({"time_ns": NOW + WINDOW.future_ns + 1, "lane": 2}, RejectReason.FUTURE),
    ({"time_ns": 0}, RejectReason.STALE),
    ({"time_ns": U64}, RejectReason.FUTURE),
    ({"epoch_id": 8, "time_ns": NOW - 100}, None),
    ({"epoch_id": 8, "time_ns": NOW - 101}, RejectReason.EPOCH_RETIRED),
    ({"epoch_id": 8, "time_ns": NOW + 99}, None),
    ({"epoch_id": 8, "time_ns": NOW + 100}, RejectReason.EPOCH_RETIRED),
    ({"epoch_id": 9, "time_ns": NOW - 1}, None),
    ({"epoch_id": 9, "time_ns": NOW}, RejectReason.EPOCH_RETIRED),
    ({"epoch_id": 9, "time_ns": NOW, "lane": 2}, None),
]


@pytest.mark.parametrize(("changes", "reason"), TIMES)
def test_time(changes: dict[str, Any], reason: RejectReason | None) -> None:
    pair = Pair()
    (verdict,) = pair.admit(sealed(**changes))
    assert verdict.reason is reason
    spent = reason in (None, INVALID)
    assert verdict.fresh is spent
    # A refusal for its time leaves no trace: the counter is still good for another.
    assert pair.admit(sealed(epoch_id=changes.get("epoch_id", EPOCH), lane=2, time_ns=NOW))[0].fresh is (
        not spent or changes.get("lane") != 2
    )


def test_a_retired_epoch_leaves_the_live_lane_when_live_snapshots_of_it_are_too_old() -> None:
    pair = Pair()
    later = NOW + WINDOW.live_past_ns
    (verdict,) = pair.admit(sealed(epoch_id=9, time_ns=NOW - 1), now_ns=later - 1)
    assert verdict.fresh
    (verdict,) = pair.admit(sealed(epoch_id=9, time_ns=NOW - 1, counter=U64), now_ns=later)
    assert verdict.reason is RejectReason.STALE


def test_a_duplicate_is_a_duplicate_however_old_and_in_whatever_epoch() -> None:
    pair = Pair()
    pair.admit(sealed(epoch_id=8))
    (again,) = pair.admit(sealed(epoch_id=8), now_ns=NOW + 10**18)
    assert (again.fresh, again.reason) == (False, None)


def test_backfill_counts_from_a_time_that_can_be_moved_and_live_snapshots_do_not_care() -> None:
    pair = Pair()
    pair.take_backfill_from(NOW - 5)
    early, first, live = (
        sealed(lane=2, time_ns=NOW - 6),
        sealed(lane=2, time_ns=NOW - 5),
        sealed(lane=1, time_ns=NOW - 6),
    )
    assert [(verdict.fresh, verdict.reason) for verdict in pair.admit(early, first, live)] == [
        (False, RejectReason.STALE),
        (True, None),
        (True, None),
    ]
    # Counters stay where they were: what was seen is seen, and what was refused for its time is not.
    pair.take_backfill_from(NOW)
    assert [verdict.reason for verdict in pair.admit(first, sealed(lane=2, counter=U64, time_ns=NOW - 1))] == [
        None,
        RejectReason.STALE,
    ]
    pair.take_backfill_from(0)
    assert pair.admit(sealed(lane=2, counter=U64, time_ns=NOW - 1))[0].fresh
    for wrong in (-1, U64 + 1):
        with pytest.raises(OverflowError):
            pair.gate.take_backfill_from(wrong)


def test_committed_counters_survive_a_rewind_and_others_do_not() -> None:
    pair = Pair()
    pair.admit(sealed(counter=5), sealed(counter=6))
    pair.commit("host-1", EPOCH, 1, 5)
    pair.rewind()
    assert [v.fresh for v in pair.admit(sealed(counter=5), sealed(counter=6), sealed(counter=6))] == [
        False,
        True,
        False,
    ]
    pair.rewind()
    pair.rewind()
    assert pair.admit(sealed(counter=6))[0].fresh


def test_commits_in_any_order_keep_the_highest() -> None:
    pair = Pair()
    pair.commit("host-1", EPOCH, 1, 5)
    pair.commit("host-1", EPOCH, 1, 3)
    pair.rewind()
    assert [v.fresh for v in pair.admit(sealed(counter=4), sealed(counter=5), sealed(counter=6))] == [
        False,
        False,
        True,
    ]
    # Not even what was admitted meanwhile is taken back by a lower one.
    pair.commit("host-1", EPOCH, 1, 4)
    assert not pair.admit(sealed(counter=6))[0].fresh


def test_counter_zero_counts_once() -> None:
    pair = Pair()
    assert pair.admit(sealed(counter=0))[0].fresh
    pair.rewind()
    assert [v.fresh for v in pair.admit(sealed(counter=0), sealed(counter=0))] == [True, False]
    pair.commit("host-1", EPOCH, 1, 0)
    pair.rewind()
    assert not pair.admit(sealed(counter=0))[0].fresh
    unheard = Pair()
    unheard.commit("host-1", EPOCH, 1, 0)
    assert not unheard.admit(sealed(counter=0))[0].fresh


def test_lanes_epochs_and_vantages_have_counters_of_their_own() -> None:
    pair = Pair()
    fresh = pair.admit(
        sealed(counter=9), sealed(lane=2, counter=1), sealed(epoch_id=8, counter=1), sealed("host-2", counter=1)
    )
    assert all(verdict.fresh for verdict in fresh)


def test_the_largest_counter_ends_a_lane() -> None:
    pair = Pair()
    assert [v.fresh for v in pair.admit(sealed(counter=U64), sealed(counter=U64), sealed(counter=1))] == [
        True,
        False,
        False,
    ]


def test_no_more_vantages_than_allowed() -> None:
    pair = Pair(max_vantages=1)
    verdicts = pair.admit(sealed(), sealed("host-2")) + pair.admit(sealed(epoch_id=8, counter=1))
    assert [verdict.reason for verdict in verdicts] == [None, RejectReason.TOO_MANY_VANTAGES, None]
    # The store's own vantages are never too many.
    pair.commit("host-2", EPOCH, 1, 1)
    assert pair.admit(sealed("host-2"))[0].fresh


def test_a_key_is_asked_for_once_and_only_kept_when_a_seal_held() -> None:
    pair = Pair()
    forged = (*sealed()[:2], bytes(32))
    pair.admit(forged)
    pair.admit(forged)
    assert pair.asked == [("host-1", EPOCH)] * 2
    pair.admit(sealed(counter=1), sealed(counter=2))
    assert pair.asked == [("host-1", EPOCH)] * 3
    pair.forget_keys()
    assert not pair.admit(sealed(counter=2))[0].fresh  # the counters are not forgotten
    assert pair.asked == [("host-1", EPOCH)] * 4


def test_what_follows_a_seal_that_does_not_hold_spends_no_counter() -> None:
    pair = Pair()
    forged = (*sealed(counter=2)[:2], bytes(32))
    assert [v.fresh for v in pair.admit(sealed(counter=1), forged, sealed(counter=3))] == [True, False]
    assert [v.fresh for v in pair.admit(sealed(counter=2), sealed(counter=3))] == [True, True]


def test_forgotten_keys_are_asked_for_again() -> None:
    admitted = {"host-1"}

    def only_admitted(vantage_id: str, epoch_id: int) -> Any:
        if vantage_id not in admitted:
            return Refusal(RejectReason.REVOKED, "revoked")
        return native_key(vantage_id), 0, U64, U64, 0

    native = Gate(only_admitted, 300 * SECOND, 300 * SECOND, SECOND, 10)
    assert native.admit([sealed(counter=1)], NOW)[0].fresh
    admitted.clear()
    native.forget_keys()
    (judged,) = native.admit([sealed(counter=2)], NOW)
    assert judged == (None, False, Refusal(RejectReason.REVOKED, "revoked"))


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(
            st.just("admit"),
            st.lists(
                st.tuples(
                    st.sampled_from(["host-1", "host-2", "signer", "loner"]),
                    st.sampled_from([EPOCH, 8, 9, 99]),
                    st.integers(1, 2),
                    st.integers(0, 6),
                    st.sampled_from([0, 0, 0, -101, 100, -301 * SECOND, 11 * SECOND]),
                    st.sampled_from(["whole", "whole", "whole", "whole", "body", "tag", "key", "scheme"]),
                ),
                max_size=6,
            ),
            st.sampled_from([0, 0, 1, 300 * SECOND]),
        ),
        st.tuples(
            st.just("commit"),
            st.sampled_from(["host-1", "host-2", "never-heard"]),
            st.sampled_from([EPOCH, 8]),
            st.integers(1, 2),
            st.integers(0, 6),
        ),
        st.tuples(st.just("take_backfill_from"), st.sampled_from([0, NOW - 101, NOW - 100, NOW, NOW + 101, U64])),
        st.tuples(st.just("rewind")),
        st.tuples(st.just("forget_keys")),
    ),
    max_size=12,
)
SMALL = pb.Snapshot(
    schema_version=1, tick=TICK, tick_time_ns=TICK * SECOND, tick_period_ns=SECOND, agent_version="0.1.0"
)


@SETTINGS
@given(OPERATIONS, st.integers(1, 3))
@example([("admit", [("host-1", EPOCH, 1, 3, 0, "whole")], 0), ("rewind",), ("commit", "host-1", EPOCH, 1, 2)], 1)
def test_any_history_is_judged_as_the_oracle_does(operations: list[Any], max_vantages: int) -> None:
    pair = Pair(max_vantages)
    for operation, *arguments in operations:
        if operation != "admit":
            getattr(pair, operation)(*arguments)
            continue
        items = []
        for name, epoch_id, lane, counter, late, damage in arguments[0]:
            snapshot = pb.Snapshot()
            snapshot.CopyFrom(SMALL)
            snapshot.vantage_id = name
            changes: dict[str, Any] = {"epoch_id": epoch_id, "lane": lane, "counter": counter, "time_ns": NOW + late}
            changes |= {"key": {"key_id": b"\xee" * 8}, "scheme": {"scheme": 3 - slow_key(name).scheme}}.get(damage, {})
            body = b"\xff" if damage == "body" else snapshot.SerializeToString()
            header, body, tag = sealed(name, body, **changes)
            items.append((header, body, bytes(len(tag)) if damage == "tag" else tag))
        pair.admit(*items, now_ns=NOW + arguments[1])


def test_every_reason_of_the_gate_is_reached_above() -> None:
    tables: tuple[list[Any], ...] = (VALUES, WIRE, HEADERS, UNVOUCHED, TIMES)
    reached = {row[-1] for table in tables for row in table} - {None}
    reached |= {OVER, RejectReason.TOO_MANY_VANTAGES}
    of_the_store = {RejectReason.REPLAYED, RejectReason.EQUIVOCATION}
    assert reached == set(RejectReason) - of_the_store - {RejectReason.OTHER}


# ---- the source of keys


class Source:
    """A key source as mvps.trust.epochs is one."""

    def sealing_key(self, vantage_id: str, epoch_id: int, purpose: object) -> Any:
        reason = refused_at_the_source(vantage_id, epoch_id)
        if reason is not None:
            raise SealError(reason, "said the source")
        return native_key(vantage_id)

    def validity(self, epoch_id: int) -> gate.Validity:
        return gate.Validity(*EPOCHS[epoch_id])


def test_a_gate_opened_on_a_source_of_keys() -> None:
    opened = gate.open_gate(Source(), WINDOW, max_vantages=1, committed={("host-1", EPOCH, Lane.LIVE): 5})
    seen, fresh, revoked = opened.admit([sealed(counter=5), sealed(counter=6), sealed("loner")], NOW)
    (beyond,) = opened.admit([sealed("host-2")], NOW)
    assert (seen.fresh, seen.refusal) == (False, None)
    assert (fresh.fresh, fresh.refusal) == (True, None)
    assert revoked.refusal == (RejectReason.REVOKED, "said the source")
    assert beyond.refusal is not None
    assert "raise max_vantages" in beyond.refusal.detail


def broken_resolver(answer: object) -> Gate:
    def resolve(vantage_id: str, epoch_id: int) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    return Gate(resolve, 300 * SECOND, 300 * SECOND, SECOND, 10)


class NoKey:
    scheme = 1
    key_id = b"short"


@pytest.mark.parametrize(
    "answer",
    [
        None,
        (native_key("host-1"),),
        (native_key("host-1"), 0, 0, 0),
        (native_key("host-1"), 0, 0, 0, -1),
        (native_key("host-1"), 0, 0, 1 << 64, 0),
        (object(), 0, U64, U64, 0),
        (NoKey(), 0, U64, U64, 0),
        MemoryError("no"),
    ],
)
def test_an_answer_that_is_no_key_ends_the_call_and_admits_nothing(answer: object) -> None:
    native = broken_resolver(answer)
    for _ in range(2):
        with pytest.raises((TypeError, AttributeError, OverflowError, MemoryError)):
            native.admit([sealed()], NOW)


def test_a_key_whose_check_fails_admits_nothing() -> None:
    class Fragile(Signer):
        broken = True

        def holds(self, header: bytes, body: bytes, tag: bytes) -> bool:
            if self.broken:
                raise ZeroDivisionError
            return super().holds(header, body, tag)

    key = Fragile()
    native = broken_resolver((key, 0, U64, U64, 0))
    with pytest.raises(ZeroDivisionError):
        native.admit([sealed("signer", counter=1)], NOW)
    key.broken = False
    assert native.admit([sealed("signer", counter=1)], NOW)[0].fresh
    # Also when the key is held.
    key.broken = True
    with pytest.raises(ZeroDivisionError):
        native.admit([sealed("signer", counter=2)], NOW)
    key.broken = False
    assert native.admit([sealed("signer", counter=2)], NOW)[0].fresh


def test_a_gate_is_not_used_from_inside_itself() -> None:
    tried: list[type[BaseException]] = []

    def resolve_and_meddle(vantage_id: str, epoch_id: int) -> Any:
        for call in (
            lambda: native.admit([], NOW),
            lambda: native.commit("x", 1, 1, 1),
            lambda: native.rewind(),
            lambda: native.forget_keys(),
        ):
            with pytest.raises(RuntimeError) as caught:
                call()
            tried.append(caught.type)
        return resolve(vantage_id, epoch_id)

    native = Gate(resolve_and_meddle, 300 * SECOND, 300 * SECOND, SECOND, 10)
    assert native.admit([sealed()], NOW)[0].fresh
    assert len(tried) == 4
    native.rewind()


@pytest.mark.parametrize(
    "items", [None, [None], [(b"", b"")], [(b"", b"", "")], [(b"", b"", bytearray())], [[b"", b"", b""]]]
)
def test_items_that_are_no_sealed_bytes_are_a_type_error_before_anything_counts(items: Any) -> None:
    native = Gate(resolve, 300 * SECOND, 300 * SECOND, SECOND, 10)
    with pytest.raises(TypeError):
        native.admit(items and [sealed(), *items], NOW)
    assert native.admit([sealed()], NOW)[0].fresh


def test_arguments_out_of_range_are_refused() -> None:
    native: Any = Gate(resolve, 300 * SECOND, 300 * SECOND, SECOND, 10)
    for row in (("x", 1, 0, 1), ("x", 1, 3, 1), ("x", -1, 1, 1), ("x", 1, 1, 1 << 64), (b"x", 1, 1, 1), ("x",)):
        with pytest.raises((TypeError, ValueError, OverflowError)):
            native.commit(*row)
    for now_ns in (-1, 1 << 64, 1.0):
        with pytest.raises((TypeError, OverflowError)):
            native.admit([], now_ns)
    windows: list[Any] = [(-1, 0, 0), (0, 1 << 64, 0), (0, 0, None)]
    for window in windows:
        with pytest.raises((TypeError, OverflowError)):
            Gate(resolve, window[0], window[1], window[2], 10)


# ---- memory


def exercise(native: Any, items: list[Any]) -> None:
    """Every way through the gate, once."""
    native.admit(items, NOW)
    native.commit("host-2", EPOCH, 1, 1)
    native.rewind()
    native.forget_keys()
    with pytest.raises(TypeError):
        native.admit([*items, None], NOW)
    gate.check_body(SAMPLE, SealHeader(*HEADER), WINDOW)
    gate.check_body(b"\xff", SealHeader(*HEADER), WINDOW)
    gate.parse_header(items[0][0])
    gate.parse_header(b"")
    with pytest.raises(ValueError, match="key id"):
        HmacKey(b"", b"")


# ---- messages


def counting() -> Gate:
    return Gate(resolve, WINDOW.live_past_ns, WINDOW.backfill_past_ns, WINDOW.future_ns, 10)


def read(message: bytes) -> stream_pb2.Batch | None:
    try:
        return stream_pb2.Batch.FromString(message)
    except DecodeError:
        return None


def groups_in(message: bytes) -> bool:
    return any(byte & 7 in (3, 4) for byte in message)


def check_envelope(message: bytes) -> None:
    """As protobuf reads it, but for groups."""
    expected = read(message)
    try:
        batch = counting().judge(message, b"", NOW)
    except ValueError:
        assert expected is None or groups_in(message)
        return
    assert expected is not None
    assert (batch.nonce, batch.count) == (expected.stream_nonce, len(expected.items))


GOOD = envelope(sealed(), sealed("host-2"))


@given(st.lists(st.integers(0, len(GOOD) - 1), max_size=4), st.integers(0, 255), st.integers(0, len(GOOD)))
@settings(max_examples=500)
def test_damaged_envelopes_are_read_as_protobuf_reads_them(places: list[int], value: int, end: int) -> None:
    message = bytearray(GOOD)
    for place in places:
        message[place] = value
    check_envelope(bytes(message))
    check_envelope(GOOD[:end])


@given(st.lists(st.tuples(st.integers(1, 4), st.sampled_from([0, 1, 2, 5]), st.binary(max_size=12)), max_size=6))
def test_pieces_of_envelopes_are_read_as_protobuf_reads_them(pieces: list[tuple[int, int, bytes]]) -> None:
    message = b""
    for number, wire, data in pieces:
        fixed = {1: data[:8].ljust(8, b"x"), 5: data[:4].ljust(4, b"x")}
        value = int.from_bytes(data[:8], "little") if wire == 0 else data
        message += varint(number << 3 | wire) + fixed[wire] if wire in fixed else piece(number, wire, value)
    check_envelope(message)


@pytest.mark.parametrize("last", [b"\1", b"\2", b"\x7f", b"\x80\1"])
def test_the_longest_varints_are_read_as_protobuf_reads_them(last: bytes) -> None:
    check_envelope(varint(9 << 3) + b"\xff" * 9 + last + GOOD)
    check_envelope(varint(9 << 3) + b"\xff" * 9 + last + piece(1, 2, b"x"))


@pytest.mark.parametrize("size", range(2, 12))
def test_longer_varints_than_needed_are_read_as_protobuf_reads_them(size: int) -> None:
    def long(value: int) -> bytes:
        return bytes([value | 0x80]) + b"\x80" * (size - 2) + b"\0"

    for message in (long(10) + b"\1x", b"\x0a" + long(1) + b"x", long(72) + b"\5", b"\x48" + long(5)):
        check_envelope(message)


def test_of_a_field_that_comes_twice_the_last_counts_and_unknown_ones_are_skipped() -> None:
    header, body, tag = sealed()
    item = piece(1, 2, b"x") + piece(9, 0, 5) + piece(1, 2, header) + piece(2, 2, body) + piece(3, 2, tag)
    message = piece(1, 2, b"old") + piece(77, 2, b"?") + piece(2, 2, item) + piece(1, 2, NONCE)
    assert counting().judge(message, NONCE, NOW).accepted == [0]


def test_what_carries_extensions_is_named_if_it_is_accepted() -> None:
    with_one, without = sample(), sample()
    with_one.extensions["mvps.x/y"] = b""
    without.extensions.clear()
    items = [
        sealed("host-1", counter=5, body=without.SerializeToString()),
        sealed("host-1", counter=6, body=with_one.SerializeToString()),
        sealed("host-1", counter=7, body=b"\xff"),
        sealed("host-1", counter=6, body=with_one.SerializeToString()),  # a repeat
    ]
    assert counting().judge(envelope(*items), b"", NOW).with_extensions == [1]


def test_runs_and_leaves_are_what_the_store_keeps() -> None:
    native = counting()
    items = [
        sealed("host-1", counter=5),
        sealed("host-2", counter=9),
        sealed("host-1", counter=6, body=b"\xff", time_ns=NOW + 5),
        sealed("host-1", counter=7, time_ns=NOW - 1),
        sealed("host-1", counter=1, lane=2, time_ns=NOW - 9 * SECOND),
        sealed("signer", counter=3),
        sealed("host-1", counter=7),  # a repeat
        sealed("host-1", counter=8, time_ns=NOW - 301 * SECOND),
    ]
    batch = native.judge(envelope(*items), b"", NOW)
    assert (len(batch), batch.repeats, batch.accepted, batch.accepted_live) == (8, [6], [0, 1, 3, 4, 5], [0, 1, 3, 5])
    runs = batch.runs()
    assert [(run.vantage_id, run.epoch_id, run.lane) for run in runs] == [
        ("host-1", EPOCH, 1), ("host-2", EPOCH, 1), ("host-1", EPOCH, 2), ("signer", EPOCH, 1)
    ]  # fmt: skip
    live = runs[0]
    assert (live.items, live.accepted, live.highest, live.last, live.newest) == (5, 2, 8, 7, 3)
    assert live.refusals == [RejectReason.MALFORMED, RejectReason.STALE]
    assert (live.tick, live.period_ns, live.missed, live.d2) == (TICK, SECOND, 0, 1.5)
    assert [run.sealed_ns for run in runs] == [NOW, NOW, NOW - 9 * SECOND, NOW]
    order = [0, 3, 1, 4, 5]
    leaves = [b"".join(items[index]) for index in order]
    assert batch.leaves() == (b"".join(leaves), b"".join(hashlib.sha256(b"\0" + leaf).digest() for leaf in leaves))
    sizes = [len(leaf) for leaf in leaves]
    assert [(run.leaf, run.offset) for run in runs] == [
        (0, 0), (2, sum(sizes[:2])), (3, sum(sizes[:3])), (4, sum(sizes[:4]))
    ]  # fmt: skip

    def entry(counter: int, size: int, reason: int = 0) -> bytes:
        return struct.pack("<QQIB3x", counter, TICK, size, reason)

    assert live.entries == entry(5, sizes[0]) + entry(6, 0, RejectReason.MALFORMED) + entry(7, sizes[1]) + items[2][2]
    assert runs[3].entries == entry(3, sizes[4])


def test_acknowledgements_name_every_item_once_under_its_own_seal() -> None:
    native = counting()
    native.judge(envelope(sealed(counter=4)), b"", NOW)
    items = [
        sealed(counter=5),
        sealed("signer", counter=9, body=b"\xff"),
        sealed(counter=4),
        sealed(counter=5, epoch_id=10),
        sealed(counter=3),
        sealed(counter=2, lane=2),
    ]
    batch = native.judge(envelope(*items), b"", NOW)
    assert batch.repeats == [2, 4]
    batch.settle(2, None)
    batch.settle(4, RejectReason.EQUIVOCATION)
    assert [batch.duplicate(index) for index in range(6)] == [False, False, True, False, False, False]
    digests = [tag for _, _, tag in items]
    digests[1] = hashlib.sha256(items[1][0] + items[1][1]).digest()
    answers = {
        0: (stream_pb2.ACK_STATUS_ACCEPTED, 0),
        1: (stream_pb2.ACK_STATUS_REJECTED, RejectReason.MALFORMED),
        2: (stream_pb2.ACK_STATUS_DUPLICATE, 0),
        3: (stream_pb2.ACK_STATUS_REJECTED, RejectReason.INVALID_VALUE),
        4: (stream_pb2.ACK_STATUS_REJECTED, RejectReason.EQUIVOCATION),
        5: (stream_pb2.ACK_STATUS_ACCEPTED, 0),
    }
    expected = []
    for name, epoch_id, indexes in (("host-1", EPOCH, [0, 2, 4, 5]), ("signer", EPOCH, [1]), ("host-1", 10, [3])):
        acks = stream_pb2.Acks(stream_nonce=NONCE)
        for index in indexes:
            header = batch.header(index)
            status, reason = answers[index]
            acks.acks.add(lane=header.lane, counter=header.counter, digest=digests[index], status=status, reason=reason)
        expected.append((name, epoch_id, acks.SerializeToString()))
    assert batch.acks() == expected
    for index in (0, 1):
        with pytest.raises(ValueError, match="only a repeat"):
            batch.settle(index, None)
    with pytest.raises(ValueError, match="only a repeat"):
        batch.settle(2, 19)  # type: ignore[arg-type]  # no such reason
    with pytest.raises(IndexError):
        batch.header(6)


def test_figures_are_what_the_body_says() -> None:
    snapshot = sample()
    snapshot.surfaces.add(name="dataplane", vector=pb.CoherenceVector(s=2.5))
    batch = counting().judge(
        envelope(sealed(body=snapshot.SerializeToString()), sealed(body=b"\xff", counter=U64)), b"", NOW
    )
    figures = batch.figures(0)
    assert figures is not None
    assert (figures.tick_period_ns, figures.lateness_ns, figures.lead) == (SECOND, 5_000_000, "mm")
    assert figures.surfaces == (
        ("kernel", pb.PHASE_BAU, 1.5, -1.2, "mm"),
        ("quiet", pb.PHASE_BAU, 0.0, 0.0, ""),
        ("dataplane", 0, 0.0, 2.5, ""),
    )
    assert batch.figures(1) is None
    assert batch.body(0) == snapshot.SerializeToString()


def test_observations_are_what_the_body_says() -> None:
    snapshot = sample()
    more = snapshot.surfaces.add(name="dataplane", vector=pb.CoherenceVector(s=2.5))
    more.observations.add(vantage="path", own_distance=-0.25, events=7.0, checked=3.0, violated=2.0)
    more.observations.add(vantage="blind", distribution=struct.pack("<3f", 0.25, 0.25, 0.5))
    more.observations.add(vantage="größer", own_distance=0.0, distribution=struct.pack("<3f", 0.0, 0.25, 0.75))
    quiet = snapshot.surfaces.add(name="calm")
    quiet.decision.CopyFrom(sample().surfaces[0].decision)
    quiet.decision.phase = quiet.decision.raw_phase = pb.PHASE_BAU
    quiet.observations.add(vantage="mm", own_distance=0.5, unchanged_ticks=9)
    said = [seen for surface in snapshot.surfaces for seen in surface.observations if seen.HasField("own_distance")]
    assert {"path", "größer"} < {seen.vantage for seen in said}
    batch = counting().judge(
        envelope(sealed(body=snapshot.SerializeToString()), sealed(body=b"\xff", counter=U64)), b"", NOW
    )
    names, figures, laws = batch.observations(0)
    assert names.decode().split("\n") == [seen.vantage for seen in said]
    assert list(struct.iter_unpack("<6d", figures)) == [
        (one.own_distance, one.events, one.checked, one.violated, one.unchanged_ticks, len(one.distribution) / 4)
        for one in said
    ]
    assert laws == b"".join(seen.distribution for seen in said)
    assert batch.observations(1) == (b"", b"", b"")
    with pytest.raises(IndexError):
        batch.observations(2)

    nobody = sample()
    for surface in nobody.surfaces:
        for seen in surface.observations:
            seen.ClearField("own_distance")
    batch = counting().judge(envelope(sealed(body=nobody.SerializeToString())), b"", NOW)
    assert batch.reason(0) is None
    assert batch.observations(0) == (b"", b"", b"")


def test_ticks_that_are_missing_inside_a_batch_are_counted() -> None:
    items = []
    for counter, tick in enumerate((TICK - 9, TICK - 8, TICK - 5, TICK - 6, TICK)):
        snapshot = sample()
        snapshot.tick, snapshot.tick_time_ns = tick, tick * SECOND
        items.append(sealed(body=snapshot.SerializeToString(), counter=counter, tick=tick))
    (run,) = counting().judge(envelope(*items), b"", NOW).runs()
    assert (run.first_tick, run.tick, run.missed, run.accepted) == (TICK - 9, TICK, 2 + 5, 5)


def test_batches_of_every_kind_are_not_leaked() -> None:
    """What is long is also judged with the interpreter's lock released, and names beyond ASCII need it back."""
    snapshot = sample()
    snapshot.lead = "wörk"
    body = snapshot.SerializeToString()

    def once() -> None:
        native = counting()
        native.judge(envelope(sealed(counter=1)), b"", NOW)
        items = [sealed(body=body, counter=counter) for counter in range(2, 40)]
        batch = native.judge(envelope(*items, sealed("signer"), sealed("loner")), b"", NOW)
        assert (len(batch), len(batch.accepted), batch.refused is None) == (39, 39, False)
        for index in batch.accepted:
            batch.header(index), batch.sealed(index), batch.figures(index), batch.observations(index)
        batch.runs(), batch.leaves(), batch.acks()
        with pytest.raises(ValueError, match="no Batch"):
            native.judge(b"\xff", b"", NOW)

    once()
    gc.collect()
    tracemalloc.start()
    for _ in range(5):
        once()
    gc.collect()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(40):
        once()
    gc.collect()
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert after - before < 20_000


def test_nothing_is_leaked_and_nothing_is_freed_twice() -> None:
    native = Gate(resolve, WINDOW.live_past_ns, WINDOW.backfill_past_ns, WINDOW.future_ns, 100)
    items = [*(item for item, _ in UNVOUCHED), sealed(), sealed(), sealed("signer"), sealed(lane=2, body=b"\xff")]
    items += [sealed(**changes) for changes, _ in TIMES]
    shared = [None, True, False, *RejectReason, HmacKey, gate.Judged, Refusal, Gate, resolve, native, *items]
    tracemalloc.start()
    try:
        figures = []
        for _ in range(2):  # the interpreter's own free lists fill up in the first
            for _ in range(1000):
                exercise(native, items)
            gc.collect()
            figures.append((tracemalloc.get_traced_memory()[0], [sys.getrefcount(one) for one in shared]))
    finally:
        tracemalloc.stop()
    (before, references), (after, references_after) = figures
    # One lost object a round would be 32 KB at least.
    assert after - before < 1000 * 16
    for one, count, count_after in zip(shared, references, references_after, strict=True):
        assert abs(count_after - count) < 500, one


def test_a_gate_that_is_in_a_cycle_is_freed() -> None:
    class Owner:
        def __init__(self) -> None:
            self.gate = Gate(self.resolve, 1, 1, 1, 1)

        def resolve(self, vantage_id: str, epoch_id: int) -> Any:
            return Refusal(RejectReason.UNKNOWN_VANTAGE, "nobody")

    def alive() -> int:
        gc.collect()
        return sum(isinstance(one, Owner) for one in gc.get_objects())

    Owner()
    assert alive() == 0


def test_a_subclass_of_a_key_is_a_key() -> None:
    class Named(HmacKey):
        __slots__ = ()

        @property
        def scheme(self) -> Scheme:
            return Scheme.HMAC_SHA256

        def holds(self, header: bytes, body: bytes, tag: bytes, /) -> bool:
            raise AssertionError("the gate does not ask")

    native = broken_resolver((Named(SECRETS["host-1"], KEY_IDS["host-1"]), 0, U64, U64, 0))
    assert native.admit([sealed()], NOW)[0].fresh
