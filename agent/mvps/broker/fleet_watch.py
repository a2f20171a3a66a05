# SPDX-License-Identifier: Apache-2.0
"""The fleet as a whole, tick by tick: learns what BAU is, decides, and remembers who has been the source.

Closed bundles come in from the event loop; once all cells of a tick are closed its decision is made in a thread, for a
fleet of thousands is milliseconds of arithmetic (:mod:`mvps.robust.fleet`). One kind of vantage is calibrated as soon
as ``calibration_ticks`` ticks of it are known, and again with what has come since; ticks while its phase is ALARM or
worse teach nothing. Decisions need ``LEAST_HOSTS``: of two hosts that differ nobody can say which one moved.

What speaks against a host comes from the broker's own checks through :meth:`FleetWatch.note` and counts for
``EVIDENCE_S``, and from the checks of the host's own vantages, witnesses and conservation laws, once they fail tick
after tick (:mod:`mvps.robust.disagreement`). Nothing that a host says for itself or against others is evidence.

Baselines outlive a restart (:mod:`mvps.broker.fleet_baselines`); what was learned since the last one does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import operator
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from mvps.broker import fleet_baselines
from mvps.broker.bundle import Bundle, Status
from mvps.broker.fleet_baselines import FleetBaselinesError, KeptBaselines
from mvps.broker.observed import KindSaid, StandingLaws, TickSaid
from mvps.coherence.observation import FloatArray
from mvps.coherence.phase import Phase
from mvps.coherence.tail import IndexArray
from mvps.robust import fleet
from mvps.robust.disagreement import Disagreement
from mvps.robust.fleet import Evidence, FleetBaseline, KindCoherence, KindDecision, Label, Settled

LEAST_HOSTS: Final = 3
EVIDENCE_S: Final = 600.0
CALIBRATION_TICKS: Final = 300
_WINDOW_TICKS: Final = 4 * CALIBRATION_TICKS
_MAX_KINDS: Final = 64
_MAX_WAITING: Final = 120  # ticks; what a machine cannot decide in time is passed over and counted


class Source(NamedTuple):
    """A host that is the source of a kind's divergence. settled: in each of the last ticks that hysteresis looks at."""

    vantage_id: str
    z: float
    share: float
    label: Label
    evidence: Evidence
    settled: bool


class KindView(NamedTuple):
    """One kind of vantage as it stands. phase: after hysteresis. decision: None while it calibrates.

    coherence: C_2^gm of the same tick, over ``coherent`` hosts; None where too few have a distribution that stands.
    """

    kind: str
    phase: Phase
    decision: KindDecision | None
    sources: tuple[Source, ...]
    calibrated_ticks: int
    coherence: KindCoherence | None = None
    coherent: int = 0


class FleetView(NamedTuple):
    """The fleet as it stands. tick_ns: of the latest decision, 0 before the first one."""

    tick_ns: int = 0
    hosts: int = 0
    f: int = 0
    kinds: tuple[KindView, ...] = ()


@dataclass(slots=True)
class _Kind:
    """window: BAU statistics (3, 2) of its last ticks. fresh: how many of them the baseline has not seen.

    weighed: hosts whose distributions ``coherence`` is about. fitted: the baseline is not on disk yet.
    """

    disagreement: Disagreement
    laws: StandingLaws
    window: deque[FloatArray] = field(default_factory=lambda: deque(maxlen=_WINDOW_TICKS))
    fresh: int = 0
    baseline: FleetBaseline | None = None
    fitted: bool = False
    settled: Settled = field(default_factory=Settled)
    decision: KindDecision | None = None
    sources: tuple[Source, ...] = ()
    coherence: KindCoherence | None = None
    weighed: IndexArray = field(default_factory=lambda: np.empty(0, dtype=np.intp))


class FleetWatch:
    """The decision of one broker's fleet. ``admit``, ``take`` and ``note`` are for the event loop that runs ``run``.

    on_decided: called there after every tick. keep: file of the baselines, or None for none.
    ``counts``: "decided" ticks, "passed_over" because decisions fell behind, and "failed" by a defect, which ``error``
    names while the latest one did. ``baselines_error``: "" or why the file was not used or not written, and
    ``baselines_failures`` how often that was.
    """

    def __init__(
        self,
        calibration_ticks: int = CALIBRATION_TICKS,
        on_decided: Callable[[FleetView], None] = lambda view: None,
        keep: Path | None = None,
    ) -> None:
        self._on_decided = on_decided
        self._calibration_ticks = calibration_ticks
        self._hosts: tuple[str, ...] = ()
        self._cells = 0
        self._f: int | None = None
        self._next_ns = 0
        self._turn = 0
        self._decided: tuple[str, ...] = ()  # hosts of the tick before
        self._kinds: dict[str, _Kind] = {}
        self._noted: dict[str, dict[Evidence, int]] = {}
        self._open: dict[int, list[Bundle]] = {}
        self._closed: deque[list[Bundle]] = deque()
        self._arrived = asyncio.Event()
        self.view = FleetView()
        self.error = ""
        self.counts: Counter[str] = Counter(decided=0, passed_over=0, failed=0)
        self.baselines_error = ""
        self.baselines_failures = 0
        self._keep = keep
        self._kept: KeptBaselines | None = None
        if keep is not None:
            try:
                self._kept = fleet_baselines.load(keep)
            except FleetBaselinesError as error:
                self._failed_to_keep(error)

    def admit(self, cells: Sequence[str], hosts: Sequence[str], f: int) -> None:
        """Who is the fleet from now on: its cells, all hosts, and how many of them may lie.

        A new f is another set of statistics, and calibrates again; who joins or leaves does not change their scale.
        """
        if f != self._f:
            self._kinds = self._remembered(len(hosts), f)  # a decision that is being made has the others
        self._cells, self._hosts, self._f = len(set(cells)), tuple(sorted(hosts)), f
        self.view = self.view._replace(hosts=len(hosts), f=f)

    def _remembered(self, hosts: int, f: int) -> dict[str, _Kind]:
        """The kinds whose baselines were kept for this f, once."""
        kept, self._kept = self._kept, None
        if kept is None or kept.f != f:
            return {}
        return {
            name: _Kind(Disagreement(f), StandingLaws(hosts), baseline=baseline)
            for name, baseline in list(kept.kinds.items())[:_MAX_KINDS]
        }

    def note(self, vantage_id: str, evidence: Evidence, now_ns: int) -> None:
        """Something speaks against a host."""
        self._noted.setdefault(vantage_id, {})[evidence] = now_ns

    def take(self, bundle: Bundle) -> None:
        """A bundle has closed. Ticks go on to the decision in their order, each once all its cells are in."""
        self._open.setdefault(bundle.tick_ns, []).append(bundle)
        self._go_on(0)

    def passed(self, first_open_ns: int) -> None:
        """No bundle of a tick before this one will close any more: what is still incomplete is all there is.

        A cell in which nobody was expected closes no bundle, and a clock that is set forward leaves ticks out.
        """
        self._go_on(first_open_ns)

    def _go_on(self, first_open_ns: int) -> None:
        while self._open:
            oldest = min(self._open)
            bundles = self._open[oldest]
            if not (len(bundles) >= self._cells and oldest <= self._next_ns) and oldest >= first_open_ns:
                break
            self._next_ns = oldest + bundles[0].period_ns
            if len(self._closed) == _MAX_WAITING:
                self._closed.popleft()
                self.counts["passed_over"] += 1
            self._closed.append(self._open.pop(oldest))
            self._arrived.set()

    async def run(self) -> None:
        """Decide, until cancelled."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._closed:
                bundles, self._turn = self._closed.popleft(), self._turn + 1
                against = self._against(bundles[0].tick_ns)
                work = (bundles, self._hosts, self._f or 0, self._kinds, self._turn, against)
                try:
                    self.view = await asyncio.to_thread(self._decide, *work)
                except Exception as error:  # a defect here must not end a broker that keeps what is sent
                    self.error = f"the tick of {bundles[0].tick_ns} could not be decided: {error!r}"
                    self.counts["failed"] += 1
                    continue
                self.error = ""
                self.counts["decided"] += 1
                self._on_decided(self.view)

    # ---- in the thread, one tick at a time

    def _decide(
        self,
        bundles: Sequence[Bundle],
        hosts: tuple[str, ...],
        f: int,
        kinds: dict[str, _Kind],
        turn: int,
        against: dict[str, Evidence],
    ) -> FleetView:
        needed = max(LEAST_HOSTS, 2 * f + 1)
        if len(hosts) < needed:
            return FleetView(bundles[0].tick_ns, len(hosts), f)
        tick_ns, period_ns = bundles[0].tick_ns, bundles[0].period_ns
        reports = [
            (report.vantage_id, report.figures.observed)
            for bundle in bundles
            for report in bundle.reports
            if report.status is Status.REPORTED
        ]
        said = TickSaid(hosts, reports)
        changed, self._decided = hosts != self._decided, hosts
        for kind in kinds.values():  # sources and distributions are remembered by their place among the hosts
            if changed:
                kind.settled = kind.settled._replace(recent=(), named=())
                kind.disagreement = Disagreement(f)  # who has left must not count among the f
            if changed or kind.laws.hosts != len(hosts):
                kind.laws = StandingLaws(len(hosts))
        # Names come from the hosts: a kind is one that liars alone cannot report.
        reporting = said.reporting()
        for name in sorted(set(reporting).difference(kinds)):
            if reporting[name] >= needed and len(kinds) < _MAX_KINDS:
                kinds[name] = _Kind(Disagreement(f), StandingLaws(len(hosts)))
        names = sorted(kinds)
        if names:
            z = said.own_distances(names)
            flags = np.array([int(against.get(host, Evidence.NONE)) for host in hosts], dtype=np.intp)
            for column, name in enumerate(names):
                kind, of_kind = kinds[name], said.of(name)
                failing = kind.disagreement.step(tick_ns, hosts, of_kind.host, of_kind.checked, of_kind.violated)
                _judge(kind, z[:, [column]], hosts, _with_witnesses(flags, hosts, failing))
                _cohere(kind, tick_ns, period_ns, of_kind, f)
            self._learn(z, [kinds[name] for name in names], f, turn)
            if self._keep is not None and any(kind.fitted for kind in kinds.values()):
                self._save(f, kinds)
        views = tuple(_shown(name, kinds[name]) for name in names)
        return FleetView(tick_ns, len(hosts), f, views)

    def _learn(self, z: FloatArray, kinds: Sequence[_Kind], f: int, turn: int) -> None:
        for kind, statistics in zip(kinds, fleet.bau_statistics(z, f, turn), strict=True):
            if kind.settled.hysteresis.phase >= Phase.ALARM or not np.isfinite(statistics).all():
                continue
            kind.window.append(statistics)
            kind.fresh += 1
            if kind.fresh >= self._calibration_ticks:
                kind.fresh = 0
                # Without enough ticks outside of fault episodes what was known stays.
                with contextlib.suppress(ValueError):
                    kind.baseline = fleet.fit_baseline(np.stack(kind.window)[:, None], f)
                    kind.fitted = True

    def _save(self, f: int, kinds: dict[str, _Kind]) -> None:
        assert self._keep is not None
        fitted = {
            name: kind.baseline
            for name, kind in kinds.items()
            # A kind that nobody reports any more is not carried from restart to restart.
            if kind.baseline is not None and (kind.decision is None or kind.decision.quorate)
        }
        try:
            fleet_baselines.save(self._keep, KeptBaselines(f, fitted))
        except FleetBaselinesError as error:
            self._failed_to_keep(error)
        else:
            self.baselines_error = ""
        for kind in kinds.values():  # what could not be written is tried again after the next fit
            kind.fitted = False

    def _failed_to_keep(self, error: FleetBaselinesError) -> None:
        self.baselines_error = str(error)
        self.baselines_failures += 1

    def _against(self, tick_ns: int) -> dict[str, Evidence]:
        """What speaks against whom and is not too old; older notes are forgotten."""
        since_ns = tick_ns - int(EVIDENCE_S * 1e9)
        self._noted = {
            host: left
            for host, seen in self._noted.items()
            if (left := {one: at_ns for one, at_ns in seen.items() if at_ns >= since_ns})
        }
        return {host: functools.reduce(operator.or_, seen) for host, seen in self._noted.items()}


def _with_witnesses(flags: IndexArray, hosts: Sequence[str], failing: frozenset[str]) -> IndexArray:
    """The flags of one kind: those of the hosts, and of the hosts whose own checks of that kind fail."""
    if not failing:
        return flags
    found = flags.copy()
    found[[host in failing for host in hosts]] |= int(Evidence.WITNESS)
    return found


def _judge(kind: _Kind, z: FloatArray, hosts: Sequence[str], against: IndexArray) -> None:
    """One tick of one kind: z (hosts, 1)."""
    if kind.baseline is None:
        return
    (kind.decision,) = fleet.decide(z, against, kind.baseline)
    kind.settled = kind.settled.step(kind.decision)
    named = {suspect.host for suspect in kind.settled.named}
    kind.sources = tuple(
        Source(hosts[one.host], one.z, one.share, one.label, one.evidence, one.host in named)
        for one in kind.decision.suspects
    )


def _cohere(kind: _Kind, tick_ns: int, period_ns: int, said: KindSaid, f: int) -> None:
    """C_2^gm of one tick of one kind, beside a decision."""
    host, laws = kind.laws.step(tick_ns, period_ns, said)
    kind.coherence, before = None, kind.coherence
    if kind.decision is None or not kind.decision.quorate or len(host) < max(LEAST_HOSTS, 2 * f + 1):
        return
    start = before.median.weights if before is not None and np.array_equal(host, kind.weighed) else None
    kind.coherence, kind.weighed = fleet.kind_coherence(laws, f, start=start), host


def _shown(name: str, kind: _Kind) -> KindView:
    phase = kind.settled.hysteresis.phase if kind.baseline is not None else Phase.CALIBRATING
    coherent = len(kind.weighed) if kind.coherence is not None else 0
    return KindView(name, phase, kind.decision, kind.sources, len(kind.window), kind.coherence, coherent)
