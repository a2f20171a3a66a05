# SPDX-License-Identifier: Apache-2.0
"""Sealed snapshots as a broker reads them, and the baselines in them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from tests.trust import oracle

from bench.fuzzing.target import (
    NONCE,
    NOW_NS,
    NOW_S,
    SECOND,
    Mutate,
    Target,
    World,
    baseline_id,
    batch_of,
    envelope_mutator,
    honest_snapshot,
    items_of,
    json_mutator,
    require,
)
from mvps.broker.admission import Admission, Admitted
from mvps.broker.recheck import DecisionCheck
from mvps.broker.state import FleetState
from mvps.broker.store import CounterKey, Kept
from mvps.broker.tables import entries_of
from mvps.coherence.model import ModelSettings, SurfaceModel
from mvps.coherence.observation import HIST_BINS, Observation, Scale
from mvps.trust import limits
from mvps.trust.evidence_log import sealed_of
from mvps.trust.gate import Batch
from mvps.trust.manifest import (
    Profile,
)
from mvps.trust.reasons import RejectReason as Why
from mvps.trust.replay import Recorded, Window
from mvps.trust.seal import Lane, Sealed, SealError, parse_header
from mvps.v1 import snapshot_pb2 as snapshots
from mvps.v1 import stream_pb2 as pb


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
            bytes([n]) + batch_of(self._made_by(world, bodies[0], counter=k) for k in range(limits.MAX_BATCH_ITEMS))
            for n, world in enumerate(self.worlds)
        ]
        self.largest.append(b"\0" + batch_of([self._made_by(self.worlds[0], bodies[1])]))

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
            yield pb.Batch.FromString(batch_of(row))
        yield pb.Batch(stream_nonce=NONCE)

    def _longest(self) -> snapshots.Snapshot:
        long = honest_snapshot()
        content = json.dumps([[0] * 40] * 1800).encode()
        del long.baselines[:]
        for n in range(2):
            text = content + b" " * n
            long.baselines.add(id=baseline_id(text), surface="kernel", json=text)
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


class Stranger(_Batches):
    """Batches as they come from the network."""

    share = 0.2

    def run(self, data: bytes) -> None:
        items = items_of(data[1:])
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
        for item in items_of(data[1:]) or ():
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
            batch = self.judge(world, batch_of(items), items)
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
        name = baseline_id(data)
        check = DecisionCheck()
        check.learn(Kept("host-1", name, data))
        for surface in self.surfaces:
            surface.decision.baseline_id = name
            self.taken_in += check.agrees("host-1", surface) is not None

    def mutate(self, data: bytes, max_size: int, seed: int, mutate: Mutate) -> bytes:
        return json_mutator(data, max_size, seed, mutate)
