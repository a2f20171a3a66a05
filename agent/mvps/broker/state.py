# SPDX-License-Identifier: Apache-2.0
"""What the broker knows of its vantages right now: latest snapshot, counts, who is connected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from mvps.broker.admission import Admitted
from mvps.broker.store import VantageRow
from mvps.trust.counter import generation_of
from mvps.trust.gate import Run
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
    # Body of the latest accepted live snapshot, which is parsed when somebody asks; its tick and tick period.
    body: bytes | None = None
    tick: int = 0
    period_ns: int = 0
    # Streams that sent in this vantage's name in the current generation, in order of first use.
    speakers: list[int] = field(default_factory=list)
    generation: int = -1

    @property
    def latest(self) -> pb.Snapshot | None:
        """The latest accepted live snapshot, without its baselines."""
        return None if self.body is None else without_baselines(self.body)

    def summary(self, connected: bool) -> stream_pb2.VantageSummary:
        """As it is shown to those who ask."""
        latest = self.latest
        return stream_pb2.VantageSummary(
            vantage_id=self.vantage_id,
            first_seen_ns=self.first_seen_ns,
            last_seen_ns=self.last_seen_ns,
            tick=self.tick,
            tick_period_ns=self.period_ns,
            agent_version=latest.agent_version if latest else "",
            connected=connected,
            accepted=self.accepted,
            duplicates=self.duplicates,
            rejected={reason.label: count for reason, count in self.rejected.items()},
            missed_ticks=self.missed_ticks,
            decision_mismatches=self.mismatches,
            clone_suspected=self.clone_suspected,
            latest=latest,
        )


class FleetState:
    """Every vantage, in memory; the store has what must survive."""

    def __init__(self, known: Iterable[VantageRow] = ()) -> None:
        self.vantages: dict[str, VantageState] = {}
        for row in known:
            state = VantageState(row.vantage_id, row.first_seen_ns, row.latest.received_ns, row.accepted)
            latest = pb.Snapshot.FromString(row.latest.sealed.body)
            state.body, state.tick, state.period_ns = row.latest.sealed.body, latest.tick, latest.tick_period_ns
            self.vantages[row.vantage_id] = state

    def record(self, admitted: Admitted, stream: int, now_ns: int) -> None:
        """A message is settled: its verdicts are final, and stored where there is something to store."""
        batch = admitted.batch
        for run in admitted.runs:
            state = self.vantages.get(run.vantage_id)
            if state is None:
                state = self.vantages[run.vantage_id] = VantageState(run.vantage_id, first_seen_ns=now_ns)
            state.last_seen_ns = now_ns
            state.accepted += run.accepted
            if run.refusals:
                state.rejected.update(run.refusals)
            _note_speaker(state, stream, generation_of(run.highest))
            if run.lane == Lane.LIVE and run.newest >= 0:
                _move_on(state, run, batch.body(run.newest))
        for index in batch.repeats:
            state = self.vantages[batch.header(index).vantage_id]
            reason = batch.reason(index)
            if reason is None:
                state.duplicates += 1
            else:
                state.rejected[reason] += 1


def _move_on(state: VantageState, run: Run, body: bytes) -> None:
    if state.body is not None and state.period_ns == run.first_period_ns:
        state.missed_ticks += max(run.first_tick - state.tick - 1, 0)
    state.missed_ticks += run.missed
    state.body, state.tick, state.period_ns = body, run.tick, run.period_ns


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


def without_baselines(body: bytes) -> pb.Snapshot:
    """The snapshot of an accepted body, as it is shown."""
    snapshot = pb.Snapshot.FromString(body)
    del snapshot.baselines[:]
    return snapshot
