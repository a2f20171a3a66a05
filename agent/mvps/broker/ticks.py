# SPDX-License-Identifier: Apache-2.0
"""Keeps the bundles going: who is expected, what arrives, closing on time, and where a closed bundle goes.

The members are those of the epoch in force, in their cells. A bundle waits for its deadline from when its tick was due:
one T_tick by default, and never less than ``MIN_DEADLINE_S``, which is what a connect and a queue's head take.

What comes late costs the history a row each and belongs to no bundle. So that a fleet that catches up does not slow its
own acknowledgements, ``LATE_ROWS_PER_S`` of them are taken in; of the rest only the number is kept (``unkept``). The
evidence log has every one.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from typing import Final

from mvps.broker.bundle import NO_FIGURES, NOT_OBSERVED, Bundle, Bundles, Figures, Observed, Report, Status
from mvps.broker.fleet_watch import FleetWatch
from mvps.broker.history import History
from mvps.trust import gate
from mvps.trust.epochs import Epochs
from mvps.trust.seal import Lane
from mvps.v1 import snapshot_pb2 as pb

MIN_DEADLINE_S: Final = 0.25
LATE_ROWS_PER_S: Final = 2000.0
_LATE_BURST: Final = 20_000.0
_LONGEST_SLEEP_S: Final = 1.0  # an epoch may begin meanwhile
_FOLLOW_NS: Final = 50_000_000
# How bad a phase is: no decision yet counts as less than one that says that nothing is wrong.
_SEVERITY: Final = {
    pb.PHASE_UNSPECIFIED: 0,
    pb.PHASE_CALIBRATING: 1,
    pb.PHASE_BAU: 2,
    pb.PHASE_SHIFTED: 3,
    pb.PHASE_WATCH: 4,
    pb.PHASE_ALARM: 5,
    pb.PHASE_CRITICAL: 6,
}


def severity(phase: int) -> int:
    """Rank of a phase, the worst highest."""
    return _SEVERITY.get(phase, 0)  # type: ignore[call-overload,no-any-return]  # the stub's enum is no int


def figures_of(said: gate.Figures, observed: Observed = NOT_OBSERVED) -> Figures:
    """What a bundle keeps of an accepted snapshot."""
    worst, surface_name = int(pb.PHASE_CALIBRATING), ""
    d2 = s = 0.0
    for name, phase, surface_d2, surface_s, _ in said.surfaces:
        s = max(s, surface_s)
        if not phase:
            continue  # no decision yet
        d2 = max(d2, surface_d2)
        if not surface_name or severity(phase) > severity(worst):
            worst, surface_name = phase, name
    return Figures(worst, surface_name, d2, s, said.lead, observed)


class Ticks:
    """The bundles of one broker, in its event loop.

    history: where they are kept, or None. fleet: decides on them, or None.
    deadline_s: 0 for one T_tick. ``counts`` has closed, complete, unkept and, by
    status, every report since the start.
    """

    def __init__(
        self, epochs: Epochs, history: History | None, fleet: FleetWatch | None = None, *, deadline_s: float = 0.0
    ) -> None:
        self._epochs = epochs
        self._history = history
        self._fleet = fleet
        self._deadline_s = deadline_s
        self._bundles = Bundles(self._closed, self._late)
        self._digest = b""
        self._followed_ns = 0
        self._late_room = _LATE_BURST
        self._late_ns = 0
        self._cells: dict[str, str] = {}
        self.counts: Counter[str] = Counter()

    @property
    def skipped(self) -> int:
        """Ticks that the broker's clock jumped over."""
        return self._bundles.skipped

    @property
    def repeated(self) -> int:
        """Further snapshots of a vantage in a tick that it had reported."""
        return self._bundles.repeated

    def observe(self, batch: gate.Batch, runs: Sequence[gate.Run], now_ns: int) -> None:
        """A message is settled: what is new in it goes into the bundles. runs: those of the batch."""
        if now_ns - self._followed_ns > _FOLLOW_NS:
            self._follow_epoch(now_ns)
        if not self._has_room(runs, now_ns):
            return
        repeats = set(batch.repeats)
        for index in range(len(batch)):
            if index in repeats:
                continue
            header, said = batch.header(index), batch.figures(index)
            if said is None:
                # What is refused has no tick to believe in: the time it was sealed says which it was meant for.
                reason = int(batch.reason(index) or 0)
                if header.lane == Lane.LIVE:
                    self._bundles.report(header.vantage_id, header.time_ns, 0, now_ns, reason, NO_FIGURES)
                continue
            due_ns = header.tick * said.tick_period_ns
            if header.lane == Lane.LIVE:
                observed = NOT_OBSERVED
                if self._fleet is not None:
                    observed = Observed(*batch.observations(index), said.tick_period_ns)
                figures = figures_of(said, observed)
                self._bundles.report(header.vantage_id, due_ns, said.tick_period_ns, now_ns, 0, figures)
            else:
                self._bundles.backfill(header.vantage_id, due_ns, now_ns, figures_of(said))

    def _has_room(self, runs: Sequence[gate.Run], now_ns: int) -> bool:
        """Whether a message is looked at item by item; one of which all comes late may be counted only."""
        first = self._bundles.first_open_ns
        if any(run.lane == Lane.LIVE and run.tick * run.period_ns >= first for run in runs if run.accepted):
            return True
        late = sum(run.accepted for run in runs)
        passed_s = max(now_ns - self._late_ns, 0) / 1e9
        self._late_ns = now_ns
        self._late_room = min(self._late_room + passed_s * LATE_ROWS_PER_S, _LATE_BURST)
        if late > self._late_room:
            self.counts["unkept"] += late
            return False
        self._late_room -= late
        return True

    async def run(self) -> None:
        """Close bundles at their deadlines, until cancelled."""
        while True:
            now_ns = time.time_ns()
            self._follow_epoch(now_ns)
            self._bundles.close_due(now_ns)
            if self._fleet is not None:
                self._fleet.passed(self._bundles.first_open_ns)
            wait_s = (self._bundles.next_deadline_ns() - now_ns) / 1e9
            await asyncio.sleep(min(max(wait_s, 0.001), _LONGEST_SLEEP_S))

    def _follow_epoch(self, now_ns: int) -> None:
        self._followed_ns = now_ns
        manifest = self._epochs.current(now_ns)
        if manifest is None or manifest.digest == self._digest:
            return
        self._digest = manifest.digest
        self._cells = {vantage.vantage_id: vantage.cell for vantage in manifest.vantages}
        deadline_s = self._deadline_s or max(manifest.tick_ms / 1000, MIN_DEADLINE_S)
        period_ns, deadline_ns = manifest.tick_ms * 1_000_000, int(deadline_s * 1e9)
        self._bundles.admit(self._cells, period_ns, deadline_ns, now_ns)
        if self._fleet is not None:
            fleet = [vantage.vantage_id for vantage in manifest.fleet]
            self._fleet.admit(list(self._cells.values()), fleet, manifest.faults)

    def _closed(self, bundle: Bundle) -> None:
        self.counts["closed"] += 1
        self.counts["complete"] += not bundle.missing
        self.counts["missing"] += len(bundle.missing)
        rejected = bundle.count(Status.REJECTED)
        self.counts["rejected"] += rejected
        self.counts["reported"] += len(bundle.reports) - rejected
        if self._history is not None:
            self._history.put_bundle(bundle)
        if self._fleet is not None:
            self._fleet.take(bundle)

    def _late(self, report: Report) -> None:
        self.counts[report.status.name.lower()] += 1
        if self._history is not None:
            self._history.put_late(report, self._cells.get(report.vantage_id, ""))
