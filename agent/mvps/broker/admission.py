# SPDX-License-Identifier: Apache-2.0
"""From sealed snapshots to verdicts: the gate's answer, the parsed body, the recomputed decision.

The gate (:mod:`mvps.trust.gate`) judges header, key, seal, counter, epoch, time and body of a whole batch in native
code. A snapshot whose seal does not hold has nobody to be answered; everything else is a :class:`Verdict`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from mvps.broker.recheck import DecisionCheck
from mvps.broker.store import Kept, Row
from mvps.trust.epochs import Epochs
from mvps.trust.gate import Judged, open_gate
from mvps.trust.reasons import RejectReason
from mvps.trust.replay import LaneKey, Recorded, Window, judge_repeat
from mvps.trust.seal import Sealed, SealError, SealHeader
from mvps.v1 import snapshot_pb2 as pb


@dataclass(slots=True)
class Verdict:
    """What happens to one snapshot whose seal holds.

    row: what to store; None when nothing new was learnt (a repeated counter, a time outside the window).
    repeat: the counter was seen before, so the answer has to be looked up in the store.
    duplicate: it is an accepted snapshot that came again. Not final while ``repeat`` is set.
    reason: None for an accepted or duplicate snapshot.
    """

    header: SealHeader
    sealed: Sealed
    reason: RejectReason | None = None
    repeat: bool = False
    duplicate: bool = False
    row: Row | None = None
    snapshot: pb.Snapshot | None = None
    baselines: list[Kept] = field(default_factory=list)


class Admission:
    """Decides over snapshots and counts what it decided.

    ``rejected`` counts by reason, ``decisions`` what the recomputation said ("checked", "mismatch").
    """

    def __init__(
        self,
        epochs: Epochs,
        window: Window,
        *,
        max_vantages: int,
        replay: dict[LaneKey, int] | None = None,
        baselines: Iterable[Kept] = (),
        check_decisions: bool = True,
    ) -> None:
        self._epochs = epochs
        self._decisions = DecisionCheck(baselines) if check_decisions else None
        self._gate = open_gate(epochs, window, max_vantages=max_vantages, committed=replay)
        self.rejected: Counter[RejectReason] = Counter()
        self.decisions: Counter[str] = Counter()

    def judge(self, batch: Sequence[Sealed], now_ns: int) -> tuple[list[Verdict], SealError | None]:
        """Verdicts over a batch up to the first item whose seal does not hold, and that failure; both are counted."""
        try:
            return self._judge(batch, now_ns)
        except BaseException:
            self._gate.rewind()  # nothing of it will be committed, so that none of its counters may stay spent
            raise

    def _judge(self, batch: Sequence[Sealed], now_ns: int) -> tuple[list[Verdict], SealError | None]:
        answers = self._gate.admit(batch, now_ns)
        verdicts: list[Verdict] = []
        refused: SealError | None = None
        for sealed, judged in zip(batch, answers, strict=False):
            if judged.header is not None:
                verdicts.append(self._verdict(judged.header, judged, sealed, now_ns))
            elif judged.refusal is not None:
                self.rejected[judged.refusal.reason] += 1
                refused = SealError(*judged.refusal)
        return verdicts, refused

    def commit(self, key: LaneKey, counter: int) -> None:
        """The store has this counter of (vantage, epoch, lane)."""
        self._gate.commit(*key, counter)

    def rewind(self) -> None:
        """A commit failed: forget every counter that is not in the store."""
        self._gate.rewind()

    def keys_changed(self) -> None:
        """Keys that were given out may not count any more."""
        self._gate.forget_keys()

    def settle_repeat(self, verdict: Verdict, recorded: Recorded | None) -> None:
        """Finish a verdict with ``repeat`` set, given what the store knows of its counter."""
        reason = judge_repeat(verdict.sealed.digest, recorded)
        verdict.repeat = False
        if reason is None:
            verdict.duplicate = True
        elif recorded is not None and reason is recorded.reason:
            verdict.reason = reason  # answered again, not counted again
        else:
            self._reject(verdict, reason)

    def _verdict(self, header: SealHeader, judged: Judged, sealed: Sealed, now_ns: int) -> Verdict:
        verdict = Verdict(header, sealed)
        if not judged.fresh:
            verdict.repeat = judged.refusal is None
            if judged.refusal is not None:
                self._reject(verdict, judged.refusal.reason)
            return verdict
        mismatch = False
        if judged.refusal is not None:
            # Stored all the same: the counter is spent, and a repetition must get the same answer.
            self._reject(verdict, judged.refusal.reason)
        else:
            snapshot = pb.Snapshot.FromString(sealed.body)
            manifest = self._epochs.manifest(header.epoch_id)
            if manifest is not None and snapshot.tick_period_ns < manifest.tick_ms * 1_000_000:
                self._reject(verdict, RejectReason.INVALID_VALUE)  # faster than the epoch's T_tick
            else:
                verdict.snapshot = snapshot
                verdict.baselines = [Kept(header.vantage_id, b.id, b.json) for b in snapshot.baselines]
                mismatch = self._mismatch(snapshot, verdict.baselines)
        verdict.row = Row(
            header.vantage_id,
            header.epoch_id,
            header.lane,
            header.counter,
            header.tick,
            now_ns,
            verdict.reason,
            mismatch,
            sealed,
        )
        return verdict

    def _mismatch(self, snapshot: pb.Snapshot, baselines: list[Kept]) -> bool:
        if self._decisions is None:
            return False
        for kept in baselines:
            self._decisions.learn(kept)
        checks = [self._decisions.agrees(snapshot.vantage_id, surface) for surface in snapshot.surfaces]
        self.decisions["checked"] += sum(check is not None for check in checks)
        self.decisions["mismatch"] += checks.count(False)
        return False in checks

    def _reject(self, verdict: Verdict, reason: RejectReason) -> None:
        verdict.reason = reason
        self.rejected[reason] += 1
