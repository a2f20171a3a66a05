# SPDX-License-Identifier: Apache-2.0
"""Bundles: what the vantages of one cell said about one tick, closed on completeness or at a deadline.

The lattice is the epoch's: bundle b of period T is due at b * T, the time its snapshots are sealed. A vantage whose own
period P is longer (it may be, never shorter) is expected in bundle b only if one of its ticks k * P falls into
[b * T, (b + 1) * T). A bundle closes when every expected vantage has reported or was refused, or ``deadline_ns`` after
it was due. Who is missing then is named and never imputed; who comes later is *late*, and in no bundle.

Bundles close by the broker's clock whether or not anybody reports, so that a silent cell leaves a row of bundles in
which everybody is missing and not a hole. A clock that is set forward by more than ``MAX_CATCH_UP`` periods does not
produce the ticks in between; they are counted in ``skipped``.

No I/O and no clock: times come in, closed bundles and late reports go out through the two callbacks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, NamedTuple

# Silent ticks that are closed one by one after the clock jumped; beyond it they are counted.
MAX_CATCH_UP: Final = 600


class Status(IntEnum):
    """What became of a vantage's snapshot of one tick. The numbers are stored: never reuse one."""

    REPORTED = 1  # in the bundle
    LATE = 2  # came by the live lane after its bundle had closed
    MISSING = 3
    REJECTED = 4  # its seal holds and its content was refused: ``reason`` says why
    BACKFILL = 5  # came by the backfill lane


class Observed(NamedTuple):
    """One host's observations in one tick, as :meth:`mvps.trust.gate.Batch.observations` packs them.

    period_ns: the host's own tick period.
    """

    names: bytes
    figures: bytes
    laws: bytes
    period_ns: int


NOT_OBSERVED: Final = Observed(b"", b"", b"", 0)


class Figures(NamedTuple):
    """What a bundle keeps of a snapshot: of the surface that is worst off.

    phase: number of mvps.v1.Phase. d2, s: the largest over all surfaces. lead: vantage kind that leads, "" for none.
    observed: what the fleet's decision reads; the history has none.
    """

    phase: int = 0
    surface: str = ""
    d2: float = 0.0
    s: float = 0.0
    lead: str = ""
    observed: Observed = NOT_OBSERVED


NO_FIGURES: Final = Figures()


class Report(NamedTuple):
    """One vantage in one tick. tick_ns: when the tick was due, on the epoch's lattice; reason: a RejectReason or 0."""

    vantage_id: str
    tick_ns: int
    status: Status
    received_ns: int = 0
    reason: int = 0
    figures: Figures = NO_FIGURES


class Bundle(NamedTuple):
    """One closed tick of one cell. reports: of those who spoke; missing: who should have. Both sorted by name."""

    cell: str
    tick_ns: int
    period_ns: int
    closed_ns: int
    reports: tuple[Report, ...]
    missing: tuple[str, ...] = ()

    def count(self, status: Status) -> int:
        """Vantages with that status."""
        if status is Status.MISSING:
            return len(self.missing)
        return sum(report.status is status for report in self.reports)


@dataclass(slots=True)
class _Open:
    """waiting: who is expected and has not been heard. Made once: counting the members at every report would be N^2."""

    waiting: set[str]
    reports: dict[str, Report] = field(default_factory=dict)


class Bundles:
    """The open bundles of a broker.

    closed, late: called with every bundle that closes and every report that belongs into none any more.
    """

    def __init__(self, closed: Callable[[Bundle], None], late: Callable[[Report], None]) -> None:
        self._closed = closed
        self._late = late
        self._cells: dict[str, str] = {}
        self._members: dict[str, frozenset[str]] = {}
        self._slow: dict[str, int] = {}  # vantage -> period, where that is longer than the epoch's
        self._open: dict[tuple[str, int], _Open] = {}
        self._done: set[tuple[str, int]] = set()  # closed before the deadline, from ``_next`` on
        self._next = 0  # oldest bundle that no deadline has closed
        self._period_ns = 0
        self._deadline_ns = 0
        self.skipped = 0
        self.repeated = 0  # second and further snapshots of one vantage in one open tick

    @property
    def first_open_ns(self) -> int:
        """Due time of the oldest bundle that no deadline has closed."""
        return self._next * self._period_ns

    def admit(self, cells: Mapping[str, str], period_ns: int, deadline_ns: int, now_ns: int) -> None:
        """Who is expected from now on: vantage -> cell, T of the epoch, and how long a bundle waits.

        A change of the period closes what is open, for the lattice is another one.
        """
        if period_ns != self._period_ns:
            self._close_all(now_ns)
            self._period_ns = period_ns
            self._next = now_ns // period_ns
            self._slow.clear()
        self._deadline_ns = deadline_ns
        self._cells = dict(cells)
        members: dict[str, set[str]] = {}
        for vantage_id, cell in cells.items():
            members.setdefault(cell, set()).add(vantage_id)
        self._members = {cell: frozenset(names) for cell, names in members.items()}
        self._slow = {name: period for name, period in self._slow.items() if name in self._cells}
        for key in list(self._open):
            if key[0] not in self._members:
                self._close(key, now_ns)
            else:
                self._open[key].waiting = set(self._expected(*key).difference(self._open[key].reports))

    def report(
        self, vantage_id: str, time_ns: int, period_ns: int, received_ns: int, reason: int, figures: Figures
    ) -> None:
        """A snapshot of the live lane was accepted (reason 0) or refused.

        time_ns: when its tick was due. period_ns: its own T, 0 if unknown.
        """
        cell = self._cells.get(vantage_id)
        if cell is None:
            return  # of an epoch that admits somebody else
        if period_ns > self._period_ns:
            self._slow[vantage_id] = period_ns
        elif period_ns and self._slow:
            self._slow.pop(vantage_id, None)
        index = time_ns // self._period_ns
        status = Status.REJECTED if reason else Status.REPORTED
        key = (cell, index)
        if index < self._next or key in self._done:
            if not reason:
                status = Status.LATE
            self._late(Report(vantage_id, index * self._period_ns, status, received_ns, reason, figures))
            return
        opened = self._open.get(key)
        if opened is None:
            opened = self._open[key] = _Open(set(self._expected(cell, index)))
        before = opened.reports.get(vantage_id)
        if before is not None and (reason or before.status is Status.REPORTED):
            self.repeated += 1
            return
        opened.reports[vantage_id] = Report(vantage_id, index * self._period_ns, status, received_ns, reason, figures)
        opened.waiting.discard(vantage_id)
        if not opened.waiting:
            self._close(key, received_ns)
            self._done.add(key)

    def backfill(self, vantage_id: str, time_ns: int, received_ns: int, figures: Figures) -> None:
        """A snapshot of the backfill lane was accepted."""
        if vantage_id in self._cells:
            tick_ns = time_ns // self._period_ns * self._period_ns
            self._late(Report(vantage_id, tick_ns, Status.BACKFILL, received_ns, 0, figures))

    def close_due(self, now_ns: int) -> None:
        """Close every bundle whose deadline has passed."""
        if not self._period_ns:
            return
        due = (now_ns - self._deadline_ns) // self._period_ns  # newest bundle to close
        if due - self._next >= MAX_CATCH_UP:
            resume = due - MAX_CATCH_UP + 1
            self.skipped += resume - self._next
            for key in sorted(key for key in self._open if key[1] < resume):
                self._close(key, now_ns)
            self._next = resume
        for index in range(self._next, due + 1):
            for cell in self._members:
                if (cell, index) not in self._done:
                    self._close((cell, index), now_ns)
        if due >= self._next:
            self._next = due + 1
            self._done = {key for key in self._done if key[1] >= self._next}

    def next_deadline_ns(self) -> int:
        """When :meth:`close_due` has to be called next; 0 before anybody is admitted."""
        return self._next * self._period_ns + self._deadline_ns if self._period_ns else 0

    def _expected(self, cell: str, index: int) -> frozenset[str]:
        members = self._members.get(cell, frozenset())
        if not self._slow:
            return members
        return frozenset(name for name in members if self._expects(name, index))

    def _expects(self, vantage_id: str, index: int) -> bool:
        period = self._slow.get(vantage_id)
        if period is None:
            return True
        begin = index * self._period_ns
        return -(-begin // period) * period < begin + self._period_ns

    def _close_all(self, now_ns: int) -> None:
        for key in sorted(self._open):
            self._close(key, now_ns)
        self._done.clear()

    def _close(self, key: tuple[str, int], now_ns: int) -> None:
        cell, index = key
        opened = self._open.pop(key, None)
        reports = opened.reports if opened is not None else {}
        # Sets, and no object for a vantage that said nothing: a site that is down closes as many bundles as one that is
        # up.
        missing = tuple(sorted(self._expected(cell, index).difference(reports)))
        if reports or missing:  # neither when only slow vantages live in the cell, and none is due
            ordered = tuple(reports[name] for name in sorted(reports))
            self._closed(Bundle(cell, index * self._period_ns, self._period_ns, now_ns, ordered, missing))
