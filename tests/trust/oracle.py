# SPDX-License-Identifier: Apache-2.0
"""What the native gate must say, in Python and the slow way: the oracle of test_gate.py and the peer of its benchmark.

Structure is read here by protobuf's own descriptors and domains on the message that protobuf parsed, so that the gate
is held against two parsers it shares no line with. Where the gate is stricter than protobuf, native/snapshot.h says
why; so is this.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import re
import struct
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError

from mvps.trust import limits
from mvps.trust.reasons import RejectReason
from mvps.trust.replay import LaneKey, Window
from mvps.v1 import snapshot_pb2 as pb

FIXED = struct.Struct(">5sBBBHBBIQQQQ8s")
VANTAGE_ID = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._:@-]{0,%d}" % (limits.MAX_VANTAGE_ID - 1))
TAG_BYTES = {1: limits.TAG_BYTES, 2: limits.SIGNATURE_BYTES}
SUM_TOLERANCE = 1e-3
MIN_PERIOD_NS = 50_000_000
MAX_PERIOD_NS = 60_000_000_000
# Of several faults the gravest is reported.
GRAVITY = [
    RejectReason.MALFORMED,
    RejectReason.UNKNOWN_FIELD,
    RejectReason.UNKNOWN_SCHEMA_VERSION,
    RejectReason.HEADER_MISMATCH,
    RejectReason.OVER_LIMIT,
    RejectReason.INVALID_VALUE,
]
MAP_LIMITS = {
    "by_cause": limits.MAX_LOSS_CAUSES,
    "names": limits.MAX_OBJECTS,
    "extensions": limits.MAX_EXTENSIONS,
}


class Header(NamedTuple):
    """The fields of a header, in the order of SealHeader."""

    scheme: int
    purpose: int
    lane: int
    body_bytes: int
    epoch_id: int
    counter: int
    tick: int
    time_ns: int
    key_id: bytes
    vantage_id: str


class RefusedError(Exception):
    """Something is refused; ``reason`` says why."""

    def __init__(self, reason: RejectReason) -> None:
        super().__init__(reason.label)
        self.reason = reason


# ---- header


def parse_header(header: bytes) -> Header:
    """Fields of a header, every one of them checked."""
    size = len(header)
    if size < FIXED.size:
        raise RefusedError(RejectReason.TRUNCATED)
    (
        prefix,
        scheme,
        purpose,
        lane,
        flags,
        id_bytes,
        reserved,
        body_bytes,
        epoch_id,
        counter,
        tick,
        time_ns,
        key_id,
    ) = FIXED.unpack_from(header)
    if prefix != b"MVPS\x01":
        raise RefusedError(RejectReason.UNKNOWN_VERSION if prefix[:4] == b"MVPS" else RejectReason.BAD_MAGIC)
    if not 1 <= scheme <= 2:
        raise RefusedError(RejectReason.UNKNOWN_SCHEME)
    if not 1 <= purpose <= 3:
        raise RefusedError(RejectReason.WRONG_PURPOSE)
    if not 1 <= lane <= 2:
        raise RefusedError(RejectReason.UNKNOWN_LANE)
    if flags or reserved:
        raise RefusedError(RejectReason.BAD_FLAGS)
    if size != FIXED.size + id_bytes:
        raise RefusedError(RejectReason.BAD_LENGTH)
    if body_bytes > limits.MAX_BODY:
        raise RefusedError(RejectReason.OVERSIZE)
    if not VANTAGE_ID.fullmatch(header, FIXED.size):
        raise RefusedError(RejectReason.BAD_VANTAGE_ID)
    vantage_id = header[FIXED.size :].decode("ascii")
    return Header(scheme, purpose, lane, body_bytes, epoch_id, counter, tick, time_ns, key_id, vantage_id)


# ---- seal and replay


class Key:
    """HMAC-SHA256 with both pads hashed once."""

    scheme = 1

    def __init__(self, key: bytes, key_id: bytes) -> None:
        block = key.ljust(64, b"\0")
        self._inner = hashlib.sha256(bytes(b ^ 0x36 for b in block))
        self._outer = hashlib.sha256(bytes(b ^ 0x5C for b in block))
        self.key_id = key_id

    def tag(self, header: bytes, body: bytes) -> bytes:
        """The tag of a message."""
        inner = self._inner.copy()
        inner.update(header + body)
        outer = self._outer.copy()
        outer.update(inner.digest())
        return outer.digest()

    def holds(self, header: bytes, body: bytes, tag: bytes) -> bool:
        """Whether ``tag`` is the message's."""
        return hmac.compare_digest(self.tag(header, body), tag)


class Held(NamedTuple):
    """A key and when its epoch counts."""

    key: Any
    from_ns: int
    until_ns: int
    retire_ns: int
    tick_ns: int


class Verdict(NamedTuple):
    """As mvps.trust.gate.Judged, with the bare reason."""

    header: Header | None
    fresh: bool
    reason: RejectReason | None


class Gate:
    """Seal, counter, time and body of sealed snapshots, one at a time."""

    def __init__(
        self,
        resolve: Callable[[str, int], Held | RejectReason],
        window: Window,
        max_vantages: int,
        check: Callable[[bytes, Header, Window], RejectReason | None] | None = None,
    ) -> None:
        self._resolve = resolve
        self._check = check or check_body
        self._window = window
        self._max_vantages = max_vantages
        self._held: dict[tuple[str, int], Held] = {}
        self._known: set[str] = set()
        self._backfill_from_ns = 0
        self._committed: dict[LaneKey, int] = {}
        self._highest: dict[LaneKey, int] = {}

    def admit(self, sealed: tuple[bytes, bytes, bytes], now_ns: int) -> Verdict:
        """Verdict over one snapshot."""
        try:
            header, held = self._verify(*sealed)
        except RefusedError as error:
            return Verdict(None, False, error.reason)
        key = (header.vantage_id, header.epoch_id, header.lane)
        if header.counter <= self._highest.get(key, -1):
            return Verdict(header, False, None)
        late = self._late(header, held, now_ns)
        if late is not None:
            return Verdict(header, False, late)
        self._highest[key] = header.counter
        reason = self._check(sealed[1], header, self._window)
        if reason is None and held.tick_ns and pb.Snapshot.FromString(sealed[1]).tick_period_ns < held.tick_ns:
            reason = RejectReason.INVALID_VALUE
        return Verdict(header, True, reason)

    def commit(self, vantage_id: str, epoch_id: int, lane: int, counter: int) -> None:
        """The store has ``counter``."""
        key = (vantage_id, epoch_id, lane)
        self._known.add(vantage_id)
        self._committed[key] = max(counter, self._committed.get(key, -1))
        self._highest[key] = max(counter, self._highest.get(key, -1))

    def rewind(self) -> None:
        """Forget everything that was not committed."""
        self._highest = dict(self._committed)

    def take_backfill_from(self, sealed_ns: int) -> None:
        """Backfill sealed earlier is stale."""
        self._backfill_from_ns = sealed_ns

    def forget_keys(self) -> None:
        """Ask for every key again."""
        self._held.clear()

    def _verify(self, header: bytes, body: bytes, tag: bytes) -> tuple[Header, Held]:
        fields = parse_header(header)
        if fields.purpose != 1:
            raise RefusedError(RejectReason.WRONG_PURPOSE)
        if len(body) != fields.body_bytes:
            raise RefusedError(RejectReason.BAD_LENGTH)
        identity = (fields.vantage_id, fields.epoch_id)
        held = self._held.get(identity) or self._resolve(*identity)
        if isinstance(held, RejectReason):
            raise RefusedError(held)
        if held.key.scheme != fields.scheme:
            raise RefusedError(RejectReason.WRONG_SCHEME)
        if len(tag) != TAG_BYTES[fields.scheme]:
            raise RefusedError(RejectReason.BAD_LENGTH)
        if held.key.key_id != fields.key_id:
            raise RefusedError(RejectReason.UNKNOWN_KEY)
        if not held.key.holds(header, body, tag):
            raise RefusedError(RejectReason.BAD_SEAL)
        if fields.vantage_id not in self._known and len(self._known) >= self._max_vantages:
            raise RefusedError(RejectReason.TOO_MANY_VANTAGES)
        self._known.add(fields.vantage_id)
        self._held[identity] = held
        return fields, held

    def _late(self, header: Header, held: Held, now_ns: int) -> RejectReason | None:
        live = header.lane == 1
        age = now_ns - header.time_ns
        if age > (self._window.live_past_ns if live else self._window.backfill_past_ns):
            return RejectReason.STALE
        if not live and header.time_ns < self._backfill_from_ns:
            return RejectReason.STALE
        if age < -self._window.future_ns:
            return RejectReason.FUTURE
        retired = header.time_ns >= held.retire_ns or now_ns - self._window.live_past_ns >= held.retire_ns
        if not held.from_ns <= header.time_ns < held.until_ns or (live and retired):
            return RejectReason.EPOCH_RETIRED
        return None


# ---- body


class Faults(set[RejectReason]):
    """What is wrong with a body."""

    def limit(self, count: int, most: int) -> None:
        """At most so many."""
        if count > most:
            self.add(RejectReason.OVER_LIMIT)

    def require(self, holds: bool) -> None:
        """A domain's condition."""
        if not holds:
            self.add(RejectReason.INVALID_VALUE)

    def name(self, text: str) -> None:
        """Names end up in logs and on terminals: no control characters, no line ends."""
        if len(text.encode()) > limits.MAX_NAME:
            self.add(RejectReason.OVER_LIMIT)
        if not text.isprintable():
            self.add(RejectReason.INVALID_VALUE)

    @property
    def gravest(self) -> RejectReason | None:
        """The one that is reported."""
        return next((reason for reason in GRAVITY if reason in self), None) if self else None


def check_body(body: bytes, header: Header, window: Window) -> RejectReason | None:
    """The gravest fault of a body, or None."""
    faults = Faults()
    _message(faults, body, pb.Snapshot.DESCRIPTOR)
    if RejectReason.MALFORMED not in faults:
        snapshot = pb.Snapshot.FromString(body)
        _claims(faults, snapshot, header)
        _domains(faults, snapshot, header, window)
    return faults.gravest


def check_parsed(body: bytes, header: Header, window: Window) -> RejectReason | None:
    """The gravest fault of what protobuf's own parser makes of a body: as a broker without native code would check.

    It lets pass what is not canonical and sees every other fault.
    """
    snapshot = pb.Snapshot()
    try:
        snapshot.ParseFromString(body)
    except DecodeError:
        return RejectReason.MALFORMED
    # Unknown fields are part of a message's size until they are discarded, at every depth.
    size = snapshot.ByteSize()
    snapshot.DiscardUnknownFields()
    if snapshot.ByteSize() != size:
        return RejectReason.UNKNOWN_FIELD
    faults = Faults()
    _claims(faults, snapshot, header)
    _names(faults, snapshot)
    _domains(faults, snapshot, header, window)
    return faults.gravest


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Value and end of the varint at ``at``; canonical only."""
    value = 0
    for index in range(at, min(at + 10, len(data))):
        value |= (data[index] & 0x7F) << 7 * (index - at)
        if data[index] < 0x80:
            if value >= 1 << 64 or (data[index] == 0 and index > at):
                break
            return value, index + 1
    raise RefusedError(RejectReason.MALFORMED)


def read_fields(data: bytes) -> Iterator[tuple[int, int, int | bytes]]:
    """Number, wire type and value of each field."""
    at = 0
    while at < len(data):
        tag, at = read_varint(data, at)
        number, wire = tag >> 3, tag & 7
        if not 1 <= number < 1 << 29 or wire not in (0, 1, 2, 5):
            raise RefusedError(RejectReason.MALFORMED)
        value: int | bytes
        if wire == 0:
            value, at = read_varint(data, at)
        else:
            size = {1: 8, 5: 4}.get(wire)
            if size is None:
                size, at = read_varint(data, at)
            if at + size > len(data):
                raise RefusedError(RejectReason.MALFORMED)
            value, at = data[at : at + size], at + size
        yield number, wire, value


def _message(faults: Faults, data: bytes, descriptor: Any) -> None:
    seen: list[str] = []
    keys: dict[str, list[Any]] = {}
    try:
        for number, wire, value in read_fields(data):
            field = descriptor.fields_by_number.get(number)
            if field is None or wire != _wire(field):
                unpacked = field is not None and _packed(field) and wire == 1
                faults.add(RejectReason.MALFORMED if unpacked else RejectReason.UNKNOWN_FIELD)
                continue
            twice = field.name in seen and (not field.is_repeated or _packed(field))
            if twice or _never_written(field, value) or not _fits(faults, field, value):
                raise RefusedError(RejectReason.MALFORMED)
            seen.append(field.name)
            if field.message_type is not None:
                assert isinstance(value, bytes)
                _message(faults, value, field.message_type)
                if field.message_type.GetOptions().map_entry:
                    entry = {number: inner for number, _, inner in read_fields(value)}
                    keys.setdefault(field.name, []).append(entry.get(1))
                    content = entry.get(2)
                    if field.name == "extensions" and isinstance(content, bytes):
                        faults.limit(len(content), limits.MAX_EXTENSION_BYTES)
    except RefusedError as error:
        faults.add(error.reason)
    if descriptor.GetOptions().map_entry and {"key", "value"} - set(seen):
        faults.add(RejectReason.MALFORMED)
    for name, each in keys.items():
        faults.require(len(set(each)) == len(each))
        faults.limit(len(each), MAP_LIMITS[name])


def _packed(field: FieldDescriptor) -> bool:
    return field.is_repeated and field.type in (field.TYPE_DOUBLE, field.TYPE_FIXED64)


def _wire(field: FieldDescriptor) -> int:
    if _packed(field):
        return 2
    kinds = {field.TYPE_DOUBLE: 1, field.TYPE_FIXED64: 1, field.TYPE_UINT32: 0, field.TYPE_UINT64: 0}
    return kinds.get(field.type, 0 if field.type == field.TYPE_ENUM else 2)


def _never_written(field: FieldDescriptor, value: int | bytes) -> bool:
    """A zero or an empty string where the absence of the field says the same."""
    assert field.containing_type is not None
    entry = field.containing_type.GetOptions().map_entry
    if entry or field.has_presence or (field.is_repeated and not _packed(field)):
        return False
    return not value if isinstance(value, int) or _wire(field) == 2 else value == bytes(8)


def _fits(faults: Faults, field: FieldDescriptor, value: int | bytes) -> bool:
    """Whether a value is one of its type."""
    if isinstance(value, int):
        if field.type == field.TYPE_ENUM:
            return not 1 << 31 <= value < (1 << 64) - (1 << 31)
        return field.type != field.TYPE_UINT32 or value < 1 << 32
    if _packed(field):
        return len(value) % 8 == 0
    if field.type == field.TYPE_STRING:
        try:
            faults.name(value.decode())
        except UnicodeDecodeError:
            return False
    return True


# ---- domains


def _claims(faults: Faults, snapshot: pb.Snapshot, header: Header) -> None:
    if snapshot.schema_version != 1:
        faults.add(RejectReason.UNKNOWN_SCHEMA_VERSION)
    if snapshot.vantage_id != header.vantage_id or snapshot.tick != header.tick:
        faults.add(RejectReason.HEADER_MISMATCH)


def _names(faults: Faults, snapshot: pb.Snapshot) -> None:
    """Faults of maps and of every string, which :func:`_message` finds on the wire."""
    for surface in snapshot.surfaces:
        for name in (surface.name, surface.vector.farthest, *surface.missing):
            faults.name(name)
        for observation in surface.observations:
            faults.name(observation.vantage)
            faults.name(observation.degraded)
            names = observation.objects.names
            faults.limit(len(names), limits.MAX_OBJECTS)
            for name in names.values():
                faults.name(name)
        decision = surface.decision
        for name in (decision.baseline_id, decision.cutoffs.mode, decision.s_cutoffs.mode):
            faults.name(name)
        for contributions in (decision.axis_contributions, decision.vantage_contributions):
            for contribution in contributions:
                faults.name(contribution.name)
    for name in (snapshot.agent_version, snapshot.lead, *snapshot.losses.by_cause, *snapshot.extensions):
        faults.name(name)
    for baseline in snapshot.baselines:
        faults.name(baseline.surface)
    faults.limit(len(snapshot.losses.by_cause), limits.MAX_LOSS_CAUSES)
    faults.limit(len(snapshot.extensions), limits.MAX_EXTENSIONS)
    for value in snapshot.extensions.values():
        faults.limit(len(value), limits.MAX_EXTENSION_BYTES)


def _domains(faults: Faults, snapshot: pb.Snapshot, header: Header, window: Window) -> None:
    lateness = header.time_ns - snapshot.tick_time_ns
    faults.require(MIN_PERIOD_NS <= snapshot.tick_period_ns <= MAX_PERIOD_NS)
    faults.require(snapshot.tick_time_ns == snapshot.tick * snapshot.tick_period_ns)
    faults.require(-window.future_ns <= lateness <= window.live_past_ns)
    faults.limit(len(snapshot.surfaces), limits.MAX_SURFACES)
    faults.limit(len(snapshot.baselines), limits.MAX_BASELINES)
    _unique(faults, [surface.name for surface in snapshot.surfaces])
    for surface in snapshot.surfaces:
        _surface(faults, surface)
    for baseline in snapshot.baselines:
        faults.require(bool(baseline.surface))
        faults.limit(len(baseline.json), limits.MAX_BASELINE_BYTES)
        faults.require(baseline.id == hashlib.sha256(baseline.json).hexdigest()[:16])


def _unique(faults: Faults, names: list[str]) -> None:
    faults.require(len(set(names)) == len(names) and all(names))


def _unit(faults: Faults, value: float) -> None:
    faults.require(0.0 <= value <= 1.0)  # also False for NaN


def _surface(faults: Faults, surface: pb.Surface) -> None:
    faults.limit(len(surface.observations) + len(surface.missing), limits.MAX_VANTAGES_PER_SURFACE)
    _unique(faults, [*(o.vantage for o in surface.observations), *surface.missing])
    vector = surface.vector
    for axis in ("c1", "c2", "c3", "c2_plain", "c4"):
        if vector.HasField(axis):
            _unit(faults, getattr(vector, axis))
    faults.require(surface.lateral in pb.Lateral.values())
    faults.require(math.isfinite(vector.hamiltonian) and math.isfinite(vector.s))
    for observation in surface.observations:
        _observation(faults, observation)
    decision = surface.decision
    quiet = surface.HasField("decision") and decision.phase == decision.raw_phase == pb.PHASE_BAU
    faults.require(quiet or not any(observation.unchanged_ticks for observation in surface.observations))
    if surface.HasField("decision"):
        _decision(faults, surface.decision)


def _observation(faults: Faults, observation: pb.ObservationSummary) -> None:
    values = (observation.events, observation.checked, observation.violated, observation.own_distance)
    faults.require(all(map(math.isfinite, values)))
    faults.require(observation.events >= 0 and 0 <= observation.violated <= observation.checked)
    if observation.distribution:
        _distribution(faults, observation.distribution)
    if observation.unchanged_ticks:
        faults.require(observation.unchanged_ticks <= limits.MAX_UNCHANGED_TICKS)
        faults.require(not observation.distribution and not observation.HasField("objects"))
    faults.require(observation.load.cached_tokens <= observation.load.prompt_tokens)
    sketch = observation.objects
    faults.limit(len(sketch.hashes), limits.MAX_OBJECTS)
    faults.require(sketch.total >= len(sketch.hashes))


def _distribution(faults: Faults, packed: bytes) -> None:
    if len(packed) % 4:
        faults.require(False)
        return
    labels = len(packed) // 4
    faults.limit(labels, limits.MAX_LABELS)
    values = struct.unpack(f"<{labels}f", packed)
    faults.require(min(values) >= 0.0 and abs(sum(values) - 1.0) <= SUM_TOLERANCE)  # also refuses NaN


def _decision(faults: Faults, decision: pb.Decision) -> None:
    for phase in (decision.phase, decision.raw_phase):
        faults.require(phase != pb.PHASE_UNSPECIFIED and phase in pb.Phase.values())
    for probability in (decision.phi_d, decision.p_value, *decision.posterior):
        _unit(faults, probability)
    faults.require(len(decision.posterior) == 4 and abs(sum(decision.posterior) - 1.0) <= SUM_TOLERANCE)
    faults.require(math.isfinite(decision.d2) and decision.d2 >= 0)
    for cutoffs in (decision.cutoffs, decision.s_cutoffs):
        faults.require(cutoffs.watch <= cutoffs.alarm <= cutoffs.critical)  # also refuses NaN
    for contributions in (decision.axis_contributions, decision.vantage_contributions):
        faults.limit(len(contributions), limits.MAX_CONTRIBUTIONS)
        for contribution in contributions:
            faults.require(bool(contribution.name) and math.isfinite(contribution.value))
