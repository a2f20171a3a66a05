# SPDX-License-Identifier: Apache-2.0
"""One tick as a protobuf Snapshot, and as the bytes that are sealed.

The message that the agent publishes locally carries no baselines. Those that are due are appended to its
serialised form: concatenated serialisations of parts are a serialisation of the merged message (protobuf
encoding guide, "Last One Wins"), so the large and rarely changing JSON is not copied into a new message on
every tick. The bytes made here are what is signed and sent; nobody serialises them again.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

import mvps
from mvps.daemon.heartbeat import SENDS_ALL, Heartbeat
from mvps.trust.gate import SCHEMA_VERSION
from mvps.trust.limits import MAX_LOSS_CAUSES, MAX_NAME, MAX_OBJECTS
from mvps.v1 import snapshot_pb2 as pb

if TYPE_CHECKING:
    from mvps.coherence.baseline import Baseline
    from mvps.coherence.model import CoherenceVector, Decision, TickResult
    from mvps.coherence.observation import Observation
    from mvps.daemon.lattice import Tick


# A broker that joins late, or lost its store, can recompute decisions after at most this many ticks.
BASELINE_EVERY_TICKS = 60


class Composer:
    """Builds the snapshots of one agent.

    vantage_id: this host's name at the broker.
    tick_ns: T in nanoseconds.
    surfaces: surface -> its vantages, in registry order.
    object_hash: object key -> keyed 64-bit hash that may leave the host.
    name_of: object key -> printable name, or "" when names must not travel.
    heartbeat: what may be left out of the bytes that travel.
    """

    def __init__(
        self,
        vantage_id: str,
        tick_ns: int,
        surfaces: Mapping[str, Sequence[str]],
        object_hash: Callable[[int], int],
        name_of: Callable[[int], str] = lambda _: "",
        heartbeat: Heartbeat = SENDS_ALL,
    ):
        self._vantage_id = vantage_id
        self._tick_ns = tick_ns
        self._surfaces = surfaces
        self._hash = object_hash
        self._name_of = name_of
        self._heartbeat = heartbeat
        self._hashes: dict[int, int] = {}
        self._sent: dict[str, str] = {}
        self._since_sent = 0

    def compose(
        self,
        tick: Tick,
        results: Mapping[str, TickResult],
        progress: Mapping[str, tuple[int, int]],
        observations: Mapping[str, Observation],
        losses: Mapping[str, int],
        cutoff_mode: str,
        lead: str = "",
    ) -> pb.Snapshot:
        """The snapshot of one tick, lateness and baselines not yet filled in."""
        snapshot = pb.Snapshot(
            schema_version=SCHEMA_VERSION,
            vantage_id=self._vantage_id,
            tick=tick.index,
            tick_time_ns=tick.due_ns,
            tick_period_ns=self._tick_ns,
            agent_version=mvps.__version__,
            lead=lead,
        )
        for name, result in results.items():
            done, needed = progress[name]
            surface = snapshot.surfaces.add(
                name=name, missing=result.missing, calibrated_ticks=min(done, needed), needed_ticks=needed
            )
            _put_vector(surface.vector, result.vector)
            if result.decision is not None:
                _put_decision(surface.decision, result.decision, cutoff_mode)
            for vantage in self._surfaces[name]:
                if (observation := observations.get(vantage)) is None:
                    continue
                summary = self._summary(observation, result.vector.own.get(vantage))
                if (distribution := result.distributions.get(vantage)) is not None:
                    summary.distribution = np.asarray(distribution, dtype="<f4").tobytes()
                surface.observations.append(summary)
        # A cause that has lost nothing does not travel: sixteen of them were half of a snapshot's bytes.
        lossy = [cause for cause, count in losses.items() if count]
        for cause in heapq.nlargest(MAX_LOSS_CAUSES, lossy, key=losses.__getitem__):
            snapshot.losses.by_cause[cause] = losses[cause]
        return snapshot

    def body(self, snapshot: pb.Snapshot, baselines: Sequence[tuple[str, Baseline]]) -> bytes:
        """The bytes to seal; carries the baselines when one changed or a broker may need them again."""
        snapshot = self._heartbeat.trim(snapshot)
        current = {surface: baseline.baseline_id for surface, baseline in baselines}
        self._since_sent += 1
        if current == self._sent and self._since_sent < BASELINE_EVERY_TICKS:
            return snapshot.SerializeToString()
        self._sent, self._since_sent = current, 0
        part = pb.Snapshot()
        for surface, baseline in baselines:
            part.baselines.add(id=baseline.baseline_id, surface=surface, json=baseline.to_json())
        return snapshot.SerializeToString() + part.SerializeToString()

    def _summary(self, observation: Observation, own: float | None) -> pb.ObservationSummary:
        summary = pb.ObservationSummary(
            vantage=observation.vantage,
            events=observation.events,
            checked=observation.checked,
            violated=observation.violated,
            degraded=printable(observation.degraded),
            own_distance=own,
        )
        if observation.objects is not None:
            touched = observation.objects
            heaviest = heapq.nlargest(MAX_OBJECTS, touched, key=touched.__getitem__)
            summary.objects.total = len(touched)
            for key in heaviest:
                hashed = self.hash_of(key)
                summary.objects.hashes.append(hashed)
                if name := self._name_of(key):
                    summary.objects.names[hashed] = printable(name)
        return summary

    def hash_of(self, key: int) -> int:
        """Keyed hash of an object, remembered, since workloads repeat from tick to tick."""
        known = self._hashes.get(key)
        if known is None:
            if len(self._hashes) >= 16 * MAX_OBJECTS:
                self._hashes.clear()
            known = self._hashes[key] = self._hash(key)
        return known


def printable(text: str) -> str:
    """Text that may travel: no control characters, at most MAX_NAME bytes of UTF-8."""
    clean = text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)
    return clean.encode()[:MAX_NAME].decode(errors="ignore")


def _put_vector(out: pb.CoherenceVector, vector: CoherenceVector) -> None:
    for axis in ("c1", "c2", "c3", "c2_plain"):
        value = getattr(vector, axis)
        if value is not None:
            setattr(out, axis, value)
    out.hamiltonian = vector.hamiltonian
    out.s = vector.s
    out.farthest = vector.farthest


def _put_decision(out: pb.Decision, decision: Decision, cutoff_mode: str) -> None:
    out.phase = _phase(decision.phase.name)
    out.raw_phase = _phase(decision.raw_phase.name)
    out.posterior.extend(decision.posterior)
    out.d2 = decision.d2
    out.phi_d = decision.phi_d
    out.p_value = decision.p_value
    out.dof = decision.dof
    out.baseline_id = decision.baseline_id
    for statistic, slot in (("d2", out.cutoffs), ("s", out.s_cutoffs)):
        if (limits := decision.cutoffs.get(statistic)) is not None:
            slot.watch, slot.alarm, slot.critical = limits
            slot.mode = cutoff_mode
    for name, value in decision.axis_contributions.items():
        out.axis_contributions.add(name=name, value=value)
    for name, value in decision.vantage_contributions.items():
        out.vantage_contributions.add(name=name, value=value)


def _phase(name: str) -> pb.Phase:
    return pb.Phase.Value(f"PHASE_{name}")  # type: ignore[return-value]  # the stub says int
