# SPDX-License-Identifier: Apache-2.0
"""What the broker knows of its vantages right now: latest snapshot, counts, who is connected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from mvps.broker.admission import Verdict
from mvps.broker.store import Row, VantageRow
from mvps.trust.counter import generation_of
from mvps.trust.reasons import RejectReason
from mvps.trust.seal import Lane
from mvps.v1 import snapshot_pb2 as pb
from mvps.v1 import stream_pb2


@dataclass(slots=True)
class VantageState:
    """One vantage. Counts of duplicates, rejections and missed ticks are since the broker's start."""

    vantage_id: str
    first_seen_ns: int = 0
    last_seen_ns: int = 0
    accepted: int = 0
    duplicates: int = 0
    rejected: Counter[RejectReason] = field(default_factory=Counter)
    missed_ticks: int = 0
    mismatches: int = 0
    clone_suspected: bool = False
    latest: pb.Snapshot | None = None
    # Streams that sent in this vantage's name in the current generation, in order of first use.
    speakers: list[int] = field(default_factory=list)
    generation: int = -1

    def summary(self, connected: bool) -> stream_pb2.VantageSummary:
        """As it is shown to those who ask."""
        latest = self.latest or pb.Snapshot()
        return stream_pb2.VantageSummary(
            vantage_id=self.vantage_id,
            first_seen_ns=self.first_seen_ns,
            last_seen_ns=self.last_seen_ns,
            tick=latest.tick,
            tick_period_ns=latest.tick_period_ns,
            agent_version=latest.agent_version,
            connected=connected,
            accepted=self.accepted,
            duplicates=self.duplicates,
            rejected={reason.label: count for reason, count in self.rejected.items()},
            missed_ticks=self.missed_ticks,
            decision_mismatches=self.mismatches,
            clone_suspected=self.clone_suspected,
            latest=self.latest,
        )


class FleetState:
    """Every vantage, in memory; the store has what must survive."""

    def __init__(self, known: Iterable[VantageRow] = ()) -> None:
        self.vantages: dict[str, VantageState] = {}
        for row in known:
            state = VantageState(row.vantage_id, row.first_seen_ns, row.latest.received_ns, row.accepted)
            state.latest = without_baselines(row.latest)
            self.vantages[row.vantage_id] = state

    def record(self, verdict: Verdict, stream: int, now_ns: int) -> None:
        """A verdict is final: stored where it had something to store."""
        header = verdict.header
        state = self.vantages.get(header.vantage_id)
        if state is None:
            state = self.vantages[header.vantage_id] = VantageState(header.vantage_id, first_seen_ns=now_ns)
        state.last_seen_ns = now_ns
        _note_speaker(state, stream, generation_of(header.counter))
        if verdict.duplicate:
            state.duplicates += 1
        elif verdict.reason is not None:
            state.rejected[verdict.reason] += 1
        else:
            state.accepted += 1
            state.mismatches += bool(verdict.row and verdict.row.mismatch)
            if header.lane == Lane.LIVE and verdict.snapshot is not None:
                _move_on(state, verdict.snapshot)


def _move_on(state: VantageState, snapshot: pb.Snapshot) -> None:
    del snapshot.baselines[:]
    before = state.latest
    if before is not None and before.tick_period_ns == snapshot.tick_period_ns:
        state.missed_ticks += max(snapshot.tick - before.tick - 1, 0)
    state.latest = snapshot


def _note_speaker(state: VantageState, stream: int, generation: int) -> None:
    """Two streams taking turns in one generation are two agents with one key and state: a clone (ours).

    A reconnect is no alarm: the old stream falls silent for good.
    """
    if generation != state.generation:
        state.generation = generation
        state.speakers.clear()
    speakers = state.speakers
    if speakers and speakers[-1] == stream:
        return
    if stream in speakers:
        state.clone_suspected = True
        speakers.remove(stream)
    speakers.append(stream)
    del speakers[:-8]


def without_baselines(row: Row) -> pb.Snapshot:
    """The snapshot of an accepted row, as it is shown."""
    snapshot = pb.Snapshot.FromString(row.sealed.body)
    del snapshot.baselines[:]
    return snapshot
