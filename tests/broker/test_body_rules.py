# SPDX-License-Identifier: Apache-2.0
"""What the gate refuses in a body, rule by rule; tests/trust/test_gate.py holds it against an oracle."""

import struct
import time
from collections.abc import Callable

import pytest
from wire_samples import SECOND, new_host, now_tick, snapshot

from mvps.trust import limits
from mvps.trust.gate import check_body
from mvps.trust.reasons import RejectReason
from mvps.trust.replay import Window
from mvps.trust.seal import SealHeader, parse_header
from mvps.v1 import snapshot_pb2 as pb

HOST = new_host()
HEADER = parse_header(HOST.seal().header)


def parse(body: bytes, header: SealHeader = HEADER) -> pb.Snapshot:
    assert check_body(body, header, Window()) is None
    return pb.Snapshot.FromString(body)


def refusal(body: bytes | pb.Snapshot) -> RejectReason:
    found = check_body(body if isinstance(body, bytes) else body.SerializeToString(), HEADER, Window())
    assert found is not None
    return found.reason


def sample() -> pb.Snapshot:
    return snapshot(tick=HEADER.tick)


def varint_field(number: int, value: int) -> bytes:
    message = bytearray()
    for part in (number << 3, value):
        while part > 0x7F:
            message.append(part & 0x7F | 0x80)
            part >>= 7
        message.append(part)
    return bytes(message)


def test_a_valid_snapshot_comes_back_whole() -> None:
    assert parse(sample().SerializeToString()) == sample()


def test_a_calibrating_snapshot_is_valid() -> None:
    body = sample()
    body.surfaces[0].ClearField("decision")
    for observation in body.surfaces[0].observations:
        observation.ClearField("distribution")
    parse(body.SerializeToString())


def test_extensions_are_kept() -> None:
    body = sample()
    body.extensions["org.example/x"] = b"\xff\x00"
    assert parse(body.SerializeToString()).extensions["org.example/x"] == b"\xff\x00"


def test_unknown_field_at_the_top() -> None:
    assert refusal(sample().SerializeToString() + varint_field(999, 1)) is RejectReason.UNKNOWN_FIELD


def test_unknown_field_deep_inside() -> None:
    # A contribution with a field 9 is parsed by an older schema as unknown.
    body = sample()
    contribution = pb.Contribution.FromString(varint_field(9, 1))
    body.surfaces[0].decision.axis_contributions.append(contribution)
    assert refusal(body) is RejectReason.UNKNOWN_FIELD


def test_unknown_field_inside_a_map_value_does_not_hide() -> None:
    body = sample()
    body.surfaces[0].observations[0].objects.MergeFromString(varint_field(77, 1))
    assert refusal(body) is RejectReason.UNKNOWN_FIELD


def field(path: str, value: object) -> Callable[[pb.Snapshot], None]:
    def change(body: pb.Snapshot) -> None:
        target: object = body
        *way, last = path.split(".")
        for step in way:
            target = target[int(step)] if step.isdigit() else getattr(target, step)  # type: ignore[index]
        setattr(target, last, value)

    return change


def repeat(path: str, times: int) -> Callable[[pb.Snapshot], None]:
    def change(body: pb.Snapshot) -> None:
        target: object = body
        for step in path.split("."):
            target = target[int(step)] if step.isdigit() else getattr(target, step)  # type: ignore[index]
        for _ in range(times):
            target.add() if hasattr(target, "add") else target.append(1)  # type: ignore[attr-defined]

    return change


O = "surfaces.0.observations.0."  # noqa: E741
D = "surfaces.0.decision."


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (field("schema_version", 2), RejectReason.UNKNOWN_SCHEMA_VERSION),
        (field("schema_version", 0), RejectReason.UNKNOWN_SCHEMA_VERSION),
        (field("vantage_id", "host-2"), RejectReason.HEADER_MISMATCH),
        (field("tick", HEADER.tick + 1), RejectReason.HEADER_MISMATCH),
        (field("tick_time_ns", 1), RejectReason.INVALID_VALUE),
        (field("tick_period_ns", 0), RejectReason.INVALID_VALUE),
        (field("agent_version", "a\nb"), RejectReason.INVALID_VALUE),
        (field("agent_version", "\x1b[2J"), RejectReason.INVALID_VALUE),
        (field("agent_version", "v" * 257), RejectReason.OVER_LIMIT),
        (field("surfaces.0.name", ""), RejectReason.INVALID_VALUE),
        (field("surfaces.0.vector.c2", 1.01), RejectReason.INVALID_VALUE),
        (field("surfaces.0.vector.c1", float("nan")), RejectReason.INVALID_VALUE),
        (field("surfaces.0.vector.hamiltonian", float("inf")), RejectReason.INVALID_VALUE),
        (field(O + "violated", 4.0), RejectReason.INVALID_VALUE),
        (field(O + "events", -1.0), RejectReason.INVALID_VALUE),
        (field(O + "events", float("inf")), RejectReason.INVALID_VALUE),
        (field(O + "vantage", "blk"), RejectReason.INVALID_VALUE),
        (field(O + "vantage", "irq"), RejectReason.INVALID_VALUE),
        (field(O + "distribution", b"abc"), RejectReason.INVALID_VALUE),
        (field(O + "distribution", struct.pack("<2f", 0.4, 0.4)), RejectReason.INVALID_VALUE),
        (field(O + "distribution", struct.pack("<2f", 1.5, -0.5)), RejectReason.INVALID_VALUE),
        (field(O + "distribution", struct.pack("<2f", float("nan"), 1.0)), RejectReason.INVALID_VALUE),
        (field(O + "distribution", bytes(4 * 65)), RejectReason.OVER_LIMIT),
        (field(O + "objects.total", 2), RejectReason.INVALID_VALUE),
        (repeat(O + "objects.hashes", 300), RejectReason.OVER_LIMIT),
        (field(D + "phase", 0), RejectReason.INVALID_VALUE),
        (field(D + "raw_phase", 77), RejectReason.INVALID_VALUE),
        (field(D + "p_value", -0.1), RejectReason.INVALID_VALUE),
        (field(D + "d2", -1.0), RejectReason.INVALID_VALUE),
        (field(D + "cutoffs.watch", 20.0), RejectReason.INVALID_VALUE),
        (field(D + "cutoffs.critical", float("nan")), RejectReason.INVALID_VALUE),
        (repeat(D + "posterior", 1), RejectReason.INVALID_VALUE),
        (repeat(D + "axis_contributions", 40), RejectReason.OVER_LIMIT),
        (repeat("surfaces", 9), RejectReason.OVER_LIMIT),
        (repeat("surfaces.0.observations", 40), RejectReason.OVER_LIMIT),
        (repeat("baselines", 9), RejectReason.OVER_LIMIT),
        (repeat("baselines", 1), RejectReason.INVALID_VALUE),
    ],
)
def test_refusals(change: Callable[[pb.Snapshot], None], reason: RejectReason) -> None:
    body = sample()
    change(body)
    assert refusal(body) is reason


def test_maps_have_limits() -> None:
    body = sample()
    body.losses.by_cause.update({f"cause{i}": 1 for i in range(limits.MAX_LOSS_CAUSES)})
    assert refusal(body) is RejectReason.OVER_LIMIT
    body = sample()
    body.extensions["x"] = bytes(limits.MAX_EXTENSION_BYTES + 1)
    assert refusal(body) is RejectReason.OVER_LIMIT


def test_a_tick_far_from_its_sealing_time_is_refused() -> None:
    old = now_tick() - 10_000
    sealed = HOST.seal(snapshot(tick=old), tick=old)
    found = check_body(sealed.body, parse_header(sealed.header), Window())
    assert found is not None
    assert (found.reason, "tick" in found.detail) == (RejectReason.INVALID_VALUE, True)
    header = parse_header(sealed.header)._replace(time_ns=old * SECOND)
    assert check_body(sealed.body, header, Window()) is None
    assert time.time_ns() > old * SECOND
