# SPDX-License-Identifier: Apache-2.0
"""Is this body a snapshot that a broker may take at its word? Parser, closed schema, limits and domains.

Only called on bytes whose seal holds: the sender is known, but may be broken or lying. Fields that are not in
the schema are refused, except inside ``extensions``, which is kept and never read.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterable

from google.protobuf.message import DecodeError

from mvps.trust import limits
from mvps.trust.reasons import RejectReason
from mvps.trust.replay import Window
from mvps.trust.seal import SealHeader
from mvps.v1 import snapshot_pb2 as pb

SCHEMA_VERSION = 1
MIN_PERIOD_NS = 50_000_000
MAX_PERIOD_NS = 60_000_000_000
_SUM_TOLERANCE = 1e-3  # float32 rounding over MAX_LABELS entries


class BodyError(Exception):
    """A body is refused; ``reason`` is what is counted and acknowledged."""

    def __init__(self, reason: RejectReason, detail: str) -> None:
        super().__init__(f"{reason.label}: {detail}")
        self.reason = reason


def parse_snapshot(body: bytes, header: SealHeader, window: Window) -> pb.Snapshot:
    """The snapshot in ``body``, every field of it inside its limits and domain. Raises BodyError only."""
    snapshot = pb.Snapshot()
    try:
        snapshot.ParseFromString(body)
    except DecodeError:
        raise BodyError(RejectReason.MALFORMED, "the body is not a Snapshot") from None
    # Unknown fields are part of a message's size until they are discarded, at every depth.
    size = snapshot.ByteSize()
    snapshot.DiscardUnknownFields()
    if snapshot.ByteSize() != size:
        raise BodyError(
            RejectReason.UNKNOWN_FIELD,
            "fields this broker does not know: upgrade the broker before its agents",
        )
    if snapshot.schema_version != SCHEMA_VERSION:
        raise BodyError(RejectReason.UNKNOWN_SCHEMA_VERSION, f"schema version {snapshot.schema_version}")
    if snapshot.vantage_id != header.vantage_id or snapshot.tick != header.tick:
        raise BodyError(RejectReason.HEADER_MISMATCH, "header and body name different vantages or ticks")
    _check_time(snapshot, header, window)
    _check_extent(snapshot)
    _check_name(snapshot.agent_version)
    _check_name(snapshot.lead)
    _check_unique("surface", [surface.name for surface in snapshot.surfaces])
    for surface in snapshot.surfaces:
        _check_surface(surface)
    for baseline in snapshot.baselines:
        _check_baseline(baseline)
    return snapshot


def _invalid(detail: str) -> BodyError:
    return BodyError(RejectReason.INVALID_VALUE, detail)


def _limit(what: str, count: int, limit: int) -> None:
    if count > limit:
        raise BodyError(RejectReason.OVER_LIMIT, f"{count} {what}, at most {limit} allowed")


def _check_time(snapshot: pb.Snapshot, header: SealHeader, window: Window) -> None:
    if not MIN_PERIOD_NS <= snapshot.tick_period_ns <= MAX_PERIOD_NS:
        raise _invalid(f"tick period of {snapshot.tick_period_ns} ns")
    if snapshot.tick_time_ns != snapshot.tick * snapshot.tick_period_ns:
        raise _invalid("the tick is not on the lattice t = k * T_tick")
    # The header's time was checked against now; this ties the tick to it (T-RC-1's sequence rule).
    lateness = header.time_ns - snapshot.tick_time_ns
    if not -window.future_ns <= lateness <= window.live_past_ns:
        raise _invalid(f"sealed {lateness / 1e9:.3f} s after its tick")


def _check_extent(snapshot: pb.Snapshot) -> None:
    _limit("surfaces", len(snapshot.surfaces), limits.MAX_SURFACES)
    _limit("loss causes", len(snapshot.losses.by_cause), limits.MAX_LOSS_CAUSES)
    _limit("baselines", len(snapshot.baselines), limits.MAX_BASELINES)
    _limit("extensions", len(snapshot.extensions), limits.MAX_EXTENSIONS)
    for cause in snapshot.losses.by_cause:
        _check_name(cause)
    for name, value in snapshot.extensions.items():
        _check_name(name)
        _limit("bytes in an extension", len(value), limits.MAX_EXTENSION_BYTES)


def _check_name(name: str, *, empty: bool = True) -> None:
    _limit("bytes in a name", len(name.encode()), limits.MAX_NAME)
    # Names end up in logs and on terminals: no control characters, no line ends.
    if not name.isprintable():
        raise _invalid("a name or reason with characters that cannot be printed")
    if not (name or empty):
        raise _invalid("an empty name")


def _check_unique(what: str, names: list[str]) -> None:
    if len(set(names)) != len(names):
        raise _invalid(f"the same {what} twice")
    for name in names:
        _check_name(name, empty=False)


def _check_finite(*values: float) -> None:
    if not all(map(math.isfinite, values)):
        raise _invalid("a number that is not finite")


def _check_unit(values: Iterable[float], what: str) -> None:
    if not all(0.0 <= value <= 1.0 for value in values):  # also False for NaN
        raise _invalid(f"{what} outside [0, 1]")


def _check_surface(surface: pb.Surface) -> None:
    _limit("vantages", len(surface.observations) + len(surface.missing), limits.MAX_VANTAGES_PER_SURFACE)
    _check_unique("vantage", [*(o.vantage for o in surface.observations), *surface.missing])
    vector = surface.vector
    axes = ("c1", "c2", "c3", "c2_plain")
    _check_unit((getattr(vector, axis) for axis in axes if vector.HasField(axis)), "an axis")
    _check_finite(vector.hamiltonian, vector.s)
    _check_name(vector.farthest)
    for observation in surface.observations:
        _check_observation(observation)
    if surface.HasField("decision"):
        _check_decision(surface.decision)


def _check_observation(observation: pb.ObservationSummary) -> None:
    _check_name(observation.degraded)
    _check_finite(observation.events, observation.checked, observation.violated, observation.own_distance)
    if observation.events < 0 or not 0 <= observation.violated <= observation.checked:
        raise _invalid("counts of events or checks that contradict each other")
    _check_distribution(observation.distribution)
    sketch = observation.objects
    _limit("object hashes", len(sketch.hashes), limits.MAX_OBJECTS)
    _limit("object names", len(sketch.names), limits.MAX_OBJECTS)
    if sketch.total < len(sketch.hashes):
        raise _invalid("more object hashes than objects")
    for name in sketch.names.values():
        _check_name(name)


def _check_distribution(packed: bytes) -> None:
    if not packed:
        return
    if len(packed) % 4:
        raise _invalid("a distribution that is not packed float32")
    labels = len(packed) // 4
    _limit("labels", labels, limits.MAX_LABELS)
    values = struct.unpack(f"<{labels}f", packed)
    if not (min(values) >= 0.0 and abs(sum(values) - 1.0) <= _SUM_TOLERANCE):  # also refuses NaN
        raise _invalid("a distribution that is negative or does not sum to 1")


def _check_decision(decision: pb.Decision) -> None:
    for phase in (decision.phase, decision.raw_phase):
        if phase == pb.PHASE_UNSPECIFIED or phase not in pb.Phase.values():
            raise _invalid(f"phase {phase}")
    _check_unit((decision.phi_d, decision.p_value, *decision.posterior), "a probability")
    if len(decision.posterior) != 4 or abs(sum(decision.posterior) - 1.0) > _SUM_TOLERANCE:
        raise _invalid("a posterior that is no distribution over four phases")
    _check_finite(decision.d2)
    if decision.d2 < 0:
        raise _invalid("a negative squared distance")
    _check_name(decision.baseline_id)
    for cutoffs in (decision.cutoffs, decision.s_cutoffs):
        _check_name(cutoffs.mode)
        if not cutoffs.watch <= cutoffs.alarm <= cutoffs.critical:  # also refuses NaN; infinity is legal
            raise _invalid("cut-offs that do not rise")
    for contributions in (decision.axis_contributions, decision.vantage_contributions):
        _limit("contributions", len(contributions), limits.MAX_CONTRIBUTIONS)
        for contribution in contributions:
            _check_name(contribution.name, empty=False)
            _check_finite(contribution.value)


def _check_baseline(baseline: pb.Baseline) -> None:
    _check_name(baseline.surface, empty=False)
    _limit("bytes in a baseline", len(baseline.json), limits.MAX_BASELINE_BYTES)
    if baseline.id != hashlib.sha256(baseline.json).hexdigest()[:16]:
        raise _invalid("a baseline whose id is not the hash of its bytes")
