# SPDX-License-Identifier: Apache-2.0
"""From messages to verdicts: what the gate says of a batch, and what is counted of it.

The gate (:mod:`mvps.trust.gate`) judges header, key, seal, counter, epoch, time and body of a whole message in native
code. A snapshot whose seal does not hold has nobody to be answered; everything else is in the :class:`Admitted`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from mvps.broker.store import CounterKey, Kept, Parcel
from mvps.trust.epochs import Epochs
from mvps.trust.gate import Batch, Run, open_gate
from mvps.trust.reasons import RejectReason
from mvps.trust.replay import LaneKey, Recorded, Window, judge_repeat
from mvps.trust.seal import Sealed
from mvps.v1 import snapshot_pb2 as pb


@dataclass(slots=True)
class Admitted:
    """One message as it was judged. Its repeats are open until :meth:`Admission.settle`."""

    batch: Batch
    runs: list[Run]
    baselines: list[Kept]
    received_ns: int

    @property
    def parcel(self) -> Parcel:
        """What of it is to be stored."""
        return Parcel(self.runs, *self.batch.leaves(), self.received_ns)

    @property
    def lookups(self) -> list[CounterKey]:
        """Counters of its repeats, in their order."""
        headers = map(self.batch.header, self.batch.repeats)
        return [(header.vantage_id, header.epoch_id, header.lane, header.counter) for header in headers]


class Admission:
    """Judges messages. ``rejected`` counts snapshots by reason."""

    def __init__(
        self, epochs: Epochs, window: Window, *, max_vantages: int, replay: dict[LaneKey, int] | None = None
    ) -> None:
        self._gate = open_gate(epochs, window, max_vantages=max_vantages, committed=replay)
        self.rejected: Counter[RejectReason] = Counter()

    def judge(self, message: bytes, nonce: bytes, now_ns: int) -> Admitted:
        """Judge a serialised mvps.v1.Batch up to the first item whose seal does not hold; see :meth:`Gate.judge`."""
        try:
            batch = self._gate.judge(message, nonce, now_ns)
            runs = batch.runs()
            baselines = [kept for index in batch.with_baselines for kept in _baselines(batch.body(index))]
        except ValueError:
            raise  # it was not read, and nothing of it judged
        except BaseException:
            self._gate.rewind()  # nothing of it will be committed, so that none of its counters may stay spent
            raise
        for run in runs:
            if run.refusals:
                self.rejected.update(run.refusals)
        if batch.refused is not None:
            self.rejected[batch.refused.reason] += 1
        return Admitted(batch, runs, baselines, now_ns)

    def take_backfill_from(self, sealed_ns: int) -> None:
        """Something that was sealed before this is forgotten: no backfill from before it may count any more."""
        self._gate.take_backfill_from(sealed_ns)

    def commit(self, runs: Iterable[Run]) -> None:
        """The store has these runs."""
        for run in runs:
            if run.entries:
                self._gate.commit(run.vantage_id, run.epoch_id, run.lane, run.last)

    def rewind(self) -> None:
        """A commit failed: forget every counter that is not in the store."""
        self._gate.rewind()

    def keys_changed(self) -> None:
        """Keys that were given out may not count any more."""
        self._gate.forget_keys()

    def settle(self, admitted: Admitted, recorded: Iterable[Recorded | None]) -> None:
        """Finish the repeats of a batch, given what the store knows of ``admitted.lookups``."""
        batch = admitted.batch
        for index, known in zip(batch.repeats, recorded, strict=True):
            reason = judge_repeat(Sealed(*batch.sealed(index)).digest, known)
            batch.settle(index, reason)
            # A rejected one that comes again is answered again, not counted again.
            if reason is not None and (known is None or reason is not known.reason):
                self.rejected[reason] += 1


def _baselines(body: bytes) -> list[Kept]:
    snapshot = pb.Snapshot.FromString(body)
    return [Kept(snapshot.vantage_id, baseline.id, baseline.json) for baseline in snapshot.baselines]
