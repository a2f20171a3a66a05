# SPDX-License-Identifier: Apache-2.0
"""Answers to questions about the fleet's history, as messages."""

from __future__ import annotations

from typing import Any, Final

from mvps.broker import surplus_answers
from mvps.broker.bundle import Report
from mvps.broker.fleet_watch import CALIBRATION_TICKS, FleetView, FleetWatch
from mvps.broker.history import BundleRow, History, HistoryError, KindRow
from mvps.broker.service_answers import service_ticks
from mvps.coherence.phase import Phase
from mvps.trust.limits import MAX_HISTORY_ROWS
from mvps.v1 import snapshot_pb2, stream_pb2

_DEFAULT_ROWS: Final = 100
_MOST_SOURCES: Final = 16


class Answers:
    """Reads a history. Every method may block on the database and raises HistoryError if that does not answer."""

    def __init__(self, history: History | None) -> None:
        self._history = history

    def bundles(self, request: stream_pb2.ListBundlesRequest) -> stream_pb2.ListBundlesResponse:
        """Closed bundles, newest first."""
        rows = self._kept().bundles(
            cell=request.cell if request.HasField("cell") else None,
            since_ns=request.since_ns,
            until_ns=request.until_ns,
            limit=min(request.limit or _DEFAULT_ROWS, MAX_HISTORY_ROWS),
        )
        return stream_pb2.ListBundlesResponse(bundles=[_summary(row) for row in rows])

    def bundle(self, request: stream_pb2.GetBundleRequest) -> stream_pb2.GetBundleResponse:
        """Everybody in one tick."""
        cell = request.cell if request.HasField("cell") else None
        at = request.tick_time_ns
        rows = self._kept().bundles(cell=cell, since_ns=at, until_ns=at, limit=MAX_HISTORY_ROWS)
        return stream_pb2.GetBundleResponse(
            bundles=[_summary(row) for row in rows],
            ticks=[_tick(report, cell) for cell, report in self._kept().tick(at, cell)],
        )

    def vantage(self, request: stream_pb2.GetVantageRequest) -> stream_pb2.GetVantageResponse:
        """One vantage's ticks, newest first."""
        reports = self._kept().vantage(
            request.vantage_id,
            since_ns=request.since_ns,
            until_ns=request.until_ns,
            limit=min(request.limit or _DEFAULT_ROWS, MAX_HISTORY_ROWS),
        )
        return stream_pb2.GetVantageResponse(ticks=[_tick(report) for report in reports])

    def fleet_decisions(self, request: stream_pb2.ListFleetDecisionsRequest) -> stream_pb2.ListFleetDecisionsResponse:
        """What the fleet said of its kinds of vantage, newest first."""
        rows = self._kept().kinds(
            kind=request.kind,
            since_ns=request.since_ns,
            until_ns=request.until_ns,
            limit=min(request.limit or _DEFAULT_ROWS, MAX_HISTORY_ROWS),
        )
        return stream_pb2.ListFleetDecisionsResponse(
            decisions=[
                stream_pb2.FleetDecision(
                    tick_time_ns=row.tick_ns,
                    kind=row.kind,
                    phase=row.phase,  # type: ignore[arg-type]  # the stored numbers are the schema's
                    everybody=row.everybody,  # type: ignore[arg-type]
                    d2=row.d2,
                    d2_minimax=row.d2_minimax,
                    d2_max=row.d2_max,
                    moved=row.moved,
                    reporting=row.reporting,
                    sources={name: _label(label) for name, label in row.sources},
                    c2_gm=row.c2_gm,
                    c2_gm_seed=row.c2_gm_seed,
                )
                for row in rows
            ]
        )

    def surplus_changes(self, request: stream_pb2.ListSurplusChangesRequest) -> stream_pb2.ListSurplusChangesResponse:
        """The audit trail of tenants, newest first."""
        return surplus_answers.audit_trail(self._kept(), request)

    def surplus_report(self, request: stream_pb2.GetSurplusReportRequest) -> stream_pb2.GetSurplusReportResponse:
        """A tenant over some time."""
        return surplus_answers.report(self._kept(), request)

    def service_ticks(self, request: stream_pb2.ListServiceTicksRequest) -> stream_pb2.ListServiceTicksResponse:
        """A service's joint ticks, newest first."""
        return service_ticks(self._kept(), request)

    def _kept(self) -> History:
        if self._history is None:
            raise HistoryError('this broker keeps no history: its setting history is "none"')
        return self._history


def fleet_state(watch: FleetWatch) -> stream_pb2.FleetState:
    """The fleet's decision. Of many sources the farthest are named."""
    view = watch.view
    kinds = []
    for kind in view.kinds:
        message = stream_pb2.KindState(
            kind=kind.kind,
            phase=_phase(kind.phase),
            calibrated_ticks=kind.calibrated_ticks,
            needed_ticks=CALIBRATION_TICKS,
        )
        said = kind.decision
        if said is not None and said.quorate:
            message.everybody = _phase(said.everybody)
            message.d2, message.d2_minimax, message.d2_max = said.d2, said.minimax, said.largest
            message.theta, message.moved, message.reporting = said.theta, said.moved, said.reporting
            if kind.coherence is not None:
                message.c2_gm, message.c2_gm_seed = kind.coherence.c2_gm, kind.coherence.c2_gm_seed
                message.coherent = kind.coherent
            for source in kind.sources[:_MOST_SOURCES]:
                message.sources.add(
                    vantage_id=source.vantage_id,
                    own_distance=source.z,
                    share=source.share,
                    label=_label(source.label),
                    evidence=[str(flag.name).lower() for flag in source.evidence],
                    settled=source.settled,
                )
        kinds.append(message)
    return stream_pb2.FleetState(
        tick_time_ns=view.tick_ns,
        hosts=view.hosts,
        f=view.f,
        kinds=kinds,
        ticks=dict(watch.counts),
        error=watch.error,
        baselines_error=watch.baselines_error,
        baselines_failures=watch.baselines_failures,
    )


def kind_rows(view: FleetView) -> list[KindRow]:
    """What the history keeps of a decision: every kind that was decided in its tick."""
    return [
        KindRow(
            view.tick_ns,
            kind.kind,
            _phase(kind.phase),
            _phase(said.everybody),
            said.d2,
            said.minimax,
            said.largest,
            said.moved,
            said.reporting,
            kind.coherence.c2_gm if kind.coherence is not None else None,
            kind.coherence.c2_gm_seed if kind.coherence is not None else None,
            tuple((source.vantage_id, source.label) for source in kind.sources if source.settled),
        )
        for kind in view.kinds
        if (said := kind.decision) is not None and said.quorate
    ]


def _label(label: str) -> Any:
    return stream_pb2.SourceLabel.Value(f"SOURCE_LABEL_{label}")


def _phase(phase: Phase) -> Any:
    return snapshot_pb2.Phase.Value(f"PHASE_{phase.name}")


def _summary(row: BundleRow) -> stream_pb2.BundleSummary:
    return stream_pb2.BundleSummary(
        cell=row.cell,
        tick_time_ns=row.tick_ns,
        period_ns=row.period_ns,
        closed_ns=row.closed_ns,
        reported=row.reported,
        missing=row.missing,
        rejected=row.rejected,
        late=row.late,
    )


def _tick(report: Report, cell: str = "") -> stream_pb2.VantageTick:
    figures = report.figures
    return stream_pb2.VantageTick(
        vantage_id=report.vantage_id,
        cell=cell,
        tick_time_ns=report.tick_ns,
        status=int(report.status),  # type: ignore[arg-type]  # the stored numbers are the schema's
        reason=report.reason,  # type: ignore[arg-type]
        received_ns=report.received_ns,
        phase=figures.phase,  # type: ignore[arg-type]
        surface=figures.surface,
        d2=figures.d2,
        s=figures.s,
        lead=figures.lead,
    )
