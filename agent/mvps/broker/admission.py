# SPDX-License-Identifier: Apache-2.0
"""From a sealed snapshot to a verdict: seal, epoch, counter, time, body, decision, in this order and no other.

Each step is cheaper than the next and trusts only what the steps before have shown. A snapshot whose seal
does not hold raises :class:`~mvps.trust.seal.SealError`; there is nobody to answer. Everything after that is
a :class:`Verdict`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from mvps.broker.recheck import DecisionCheck
from mvps.broker.schema import BodyError, parse_snapshot
from mvps.broker.store import Kept, Row
from mvps.trust.epochs import Epochs
from mvps.trust.reasons import RejectReason
from mvps.trust.replay import Freshness, LaneKey, Recorded, ReplayGuard, Window, judge_repeat
from mvps.trust.seal import Purpose, Sealed, SealError, SealHeader, Verifier
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
        self._verifier = Verifier(epochs, Purpose.SNAPSHOT)
        self._window = window
        self._max_vantages = max_vantages
        self._vantages = {vantage_id for vantage_id, _, _ in replay or {}}
        self._decisions = DecisionCheck(baselines) if check_decisions else None
        self.guard = ReplayGuard(window, replay)
        self.rejected: Counter[RejectReason] = Counter()
        self.decisions: Counter[str] = Counter()

    def judge(self, sealed: Sealed, now_ns: int) -> Verdict:
        """Verdict over one snapshot; SealError if nothing vouches for its sender. Both are counted."""
        try:
            header = self._verifier.verify(sealed)
            if header.vantage_id not in self._vantages:
                if len(self._vantages) >= self._max_vantages:
                    raise SealError(
                        RejectReason.TOO_MANY_VANTAGES,
                        f"this broker keeps {self._max_vantages} vantages: raise max_vantages",
                    )
                self._vantages.add(header.vantage_id)
        except SealError as error:
            self.rejected[error.reason] += 1
            raise
        verdict = Verdict(header, sealed)
        # Counter first: what was accepted in its time stays accepted when it comes again later.
        retired = None if self.guard.seen(header) else self._epochs.judge(header, now_ns)
        if retired is not None:
            self._reject(verdict, retired)
            return verdict
        freshness = self.guard.admit(header, now_ns)
        if freshness is Freshness.SEEN:
            verdict.repeat = True
        elif freshness is Freshness.STALE:
            self._reject(verdict, RejectReason.STALE)
        elif freshness is Freshness.FUTURE:
            self._reject(verdict, RejectReason.FUTURE)
        else:
            self._read_body(verdict, now_ns)
        return verdict

    def keys_changed(self) -> None:
        """Keys that were given out may not count any more."""

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

    def _read_body(self, verdict: Verdict, now_ns: int) -> None:
        header = verdict.header
        mismatch = False
        try:
            snapshot = parse_snapshot(verdict.sealed.body, header, self._window)
        except BodyError as error:
            # Stored all the same: the counter is spent, and a repetition must get the same answer.
            self._reject(verdict, error.reason)
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
            verdict.sealed,
        )

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
