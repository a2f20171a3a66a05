# SPDX-License-Identifier: Apache-2.0
"""The services, live: accepted snapshots come in, joint ticks go on to each service's monitor.

In the event loop a snapshot of a host that some service stands on is put aside unparsed, which is all that admission
ever waits for. At k * T of a service's own lattice, by the broker's clock and after a wait for what is on its way, the
snapshots that stand are taken out, and parsed and judged in a thread (:mod:`mvps.coupling.service`).

- Only the live lane counts. What comes after its tick was joined is used from the next one on and counted as late.
- An agent's own surface is read anew with every snapshot. A surface that another process reports (ai, ai.NAME) stands
  unchanged in its host's snapshots until the next round, so that the same surface again is the same reading.
- How long a snapshot stands is the setting ``keep_s``, else three of its host's ticks or of the service's, whichever
  are longer. A source without one is missing, by name and with the reason.
- R_cross and lead cost some 250 ticks: one service is evaluated in a pass, so that the others' ticks do not wait.

Windows of calibration outlive a restart (:mod:`mvps.broker.service_windows`).
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from mvps.broker import service_windows
from mvps.broker.service_settings import ServiceSettings, Source, is_ai
from mvps.broker.service_windows import Kept, ServiceWindowsError
from mvps.coupling.distance import Limits
from mvps.coupling.drift import DriftTransfer
from mvps.coupling.phases import ICPhase
from mvps.coupling.routing import Load, Routing, RoutingBaseline, RoutingMonitor
from mvps.coupling.service import Coupling, Latest, Put, Reading, ServiceMonitor, ServiceTick
from mvps.trust import gate
from mvps.trust.seal import Lane
from mvps.v1 import snapshot_pb2 as pb

_SECOND: Final = 1_000_000_000
_LEAST_WAIT_NS: Final = _SECOND // 4
_KEEP_TICKS: Final = 3
_MAX_BEHIND: Final = 600  # ticks that are made up for; beyond them they are skipped and counted
_STEP_NS: Final = _SECOND  # the clock was set back if the next tick is farther away than a tick and this
_LONGEST_SLEEP_S: Final = 1.0
_AXES: Final = ("c1", "c2", "c3", "c4")
_QUIET: Final = (pb.PHASE_BAU, pb.PHASE_WATCH)
NO_SNAPSHOT: Final = "no snapshot of its host stands"
NO_SURFACE: Final = "its host's snapshots do not carry it"


class ServiceView(NamedTuple):
    """One service as it stands. tick_ns: of ``tick``, the latest one.

    axes: of z, by name; used: those of the baseline. missing: source -> why it has no reading that stands. calibrated,
    needed: usable ticks. problem: "" or why they give no baseline. untaught: ticks that taught nothing because a source
    was not in BAU. routing: AI source whose engines are read -> where its requests go, or how many of
    ``CALIBRATION_WINDOWS`` there are.
    """

    name: str
    tick_ns: int
    tick: ServiceTick
    axes: tuple[str, ...]
    used: tuple[str, ...]
    limits: Limits | None
    coupling: Coupling | None
    missing: Mapping[str, str]
    calibrated: int
    needed: int
    problem: str
    untaught: int
    routing: Mapping[str, Routing | int]


@dataclass(slots=True)
class _Host:
    """One host of one service.

    surfaces: of ``seen``, the body that was parsed last. numbers: readings of each source so far.
    """

    latest: Latest[bytes] = field(default_factory=Latest)
    seen: bytes | None = None
    surfaces: dict[str, pb.Surface] = field(default_factory=dict)
    numbers: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class _Service:
    """next: number of the joint tick that comes next. kept: what an earlier run learned and is not in use yet.

    routing: monitor of each AI source, with the number of the reading that it has had.
    """

    settings: ServiceSettings
    monitor: ServiceMonitor
    hosts: dict[str, _Host]
    tick_ns: int
    wait_ns: int
    next: int = 0
    kept: Kept | None = None
    saved: tuple[object, ...] = (None,)
    routing: dict[Source, tuple[RoutingMonitor, int]] = field(default_factory=dict)
    routed: dict[str, Routing | int] = field(default_factory=dict)

    @property
    def due_ns(self) -> int:
        return self.next * self.tick_ns + self.wait_ns

    @property
    def baselines(self) -> dict[str, RoutingBaseline]:
        """Of the sources whose routing is known."""
        learned = {str(source): monitor.learned for source, (monitor, _) in self.routing.items()}
        return {name: baseline for name, baseline in learned.items() if baseline is not None}

    @property
    def learned(self) -> tuple[object, ...]:
        """What is worth keeping; another object once something new was learned."""
        return (self.monitor.learned, *self.baselines.values())


class _Work(NamedTuple):
    """One joint tick to be made: what each host stands with."""

    service: _Service
    tick_ns: int
    stands: dict[str, bytes | None]


class ServiceWatch:
    """The services of one broker. ``observe`` is for the event loop that runs ``run``.

    transfers: service -> its drift transfer. on_joined: called there with the services that had a tick. keep: file of
    the windows, or None for none. clock: ns since the Unix epoch. ``ticks``: "joined"; "skipped" for want of time or
    because the clock jumped, "stepped_back" lattices that began anew, "failed" by a defect, which ``error`` names while
    the latest one did. ``snapshots``: "taken", and of these "late"; not taken are "repeated" (no newer than the newest)
    and "backfill"; taken and dropped before their tick came are "overflow". ``windows_error``: "" or why the file was
    not used or not written, and ``windows_failures`` how often that was.
    """

    def __init__(
        self,
        services: Sequence[ServiceSettings],
        on_joined: Callable[[Sequence[ServiceView]], None] = lambda views: None,
        keep: Path | None = None,
        clock: Callable[[], int] = time.time_ns,
        transfers: Mapping[str, DriftTransfer] | None = None,
    ) -> None:
        self._on_joined = on_joined
        self._keep = keep
        self._clock = clock
        self._services = [_made(one, (transfers or {}).get(one.name)) for one in services]
        self._hosts: dict[str, list[tuple[_Service, _Host]]] = {}
        for service in self._services:
            for name, host in service.hosts.items():
                self._hosts.setdefault(name, []).append((service, host))
        self.views: dict[str, ServiceView] = {}
        self.error = ""
        self.ticks: Counter[str] = Counter(joined=0, skipped=0, stepped_back=0, failed=0)
        self._snapshots: Counter[str] = Counter(taken=0, late=0, repeated=0, backfill=0)
        self.windows_error = ""
        self.windows_failures = 0
        if keep is not None and services:
            self._load(keep)

    @property
    def snapshots(self) -> dict[str, int]:
        """What became of accepted snapshots, once for every service that their host belongs to."""
        overflow = sum(host.latest.overflow for service in self._services for host in service.hosts.values())
        return {**self._snapshots, "overflow": overflow}

    @property
    def services(self) -> tuple[ServiceSettings, ...]:
        """What it watches."""
        return tuple(service.settings for service in self._services)

    # ---- in the event loop

    def observe(self, batch: gate.Batch, runs: Sequence[gate.Run]) -> None:
        """A message is settled: what is new in it waits for its tick. runs: those of the batch."""
        if not any(run.accepted and run.vantage_id in self._hosts for run in runs):
            return
        for index in batch.accepted:
            header = batch.header(index)
            concerned = self._hosts.get(header.vantage_id)
            if concerned is None:
                continue
            if header.lane != Lane.LIVE:
                self._snapshots["backfill"] += len(concerned)
                continue
            figures = batch.figures(index)
            assert figures is not None  # it is accepted
            self.put(header.vantage_id, header.tick, figures.tick_period_ns, batch.body(index))

    def put(self, vantage_id: str, tick: int, period_ns: int, body: bytes) -> None:
        """One accepted live snapshot."""
        for service, host in self._hosts.get(vantage_id, ()):
            keep_ns = int(service.settings.keep_s * _SECOND) or _KEEP_TICKS * max(period_ns, service.tick_ns)
            became = host.latest.put(tick * period_ns, keep_ns, body, len(body))
            self._snapshots[became.value] += 1
            if became is Put.LATE:
                self._snapshots[Put.TAKEN.value] += 1

    async def run(self) -> None:
        """Join, until cancelled."""
        while True:
            now_ns = self._clock()
            work = self._due(now_ns)
            if not work:
                # Services come and go with the settings only: there is always one here.
                wait_s = (min(service.due_ns for service in self._services) - now_ns) / _SECOND
                await asyncio.sleep(min(max(wait_s, 0.001), _LONGEST_SLEEP_S))
                continue
            views = await asyncio.to_thread(self._join, work)
            self.views.update((view.name, view) for view in views)
            if views:
                self._on_joined(views)

    def _due(self, now_ns: int) -> list[_Work]:
        """The next joint tick of every service for which it is time."""
        work = []
        for service in self._services:
            tick_ns = service.tick_ns
            if not service.next:
                service.next = now_ns // tick_ns + 1
            elif service.next * tick_ns - now_ns > tick_ns + _STEP_NS:
                self.ticks["stepped_back"] += 1
                service.next = now_ns // tick_ns + 1
                service.monitor.forget()
                for host in service.hosts.values():
                    host.latest.forget()
            behind = (now_ns - service.due_ns) // tick_ns
            if behind < 0:
                continue
            if behind >= _MAX_BEHIND:
                self.ticks["skipped"] += behind
                service.next += behind
            at_ns = service.next * tick_ns
            work.append(_Work(service, at_ns, {name: host.latest.at(at_ns) for name, host in service.hosts.items()}))
            service.next += 1
        return work

    # ---- in the thread, one pass at a time

    def _join(self, work: Sequence[_Work]) -> list[ServiceView]:
        views = []
        evaluated = False
        failed = ""
        for one in work:
            try:
                view = self._tick(one)
                monitor = one.service.monitor
                if monitor.due and not evaluated:
                    evaluated = True
                    view = view._replace(coupling=monitor.evaluate(view.tick.time))
                views.append(view)
            except Exception as error:  # a defect here must not end a broker that keeps what is sent
                failed = f"{one.service.settings.name}: the tick of {one.tick_ns} could not be joined: {error!r}"
                self.ticks["failed"] += 1
        self.ticks["joined"] += len(views)
        self.error = failed
        if any(not _same(one.service.learned, one.service.saved) for one in work):
            self._save()
        return views

    def _tick(self, work: _Work) -> ServiceView:
        service, at_ns, stands = work
        monitor, settings = service.monitor, service.settings
        if service.kept is not None:
            self._restore(service, service.kept)
        for name, body in stands.items():
            _read(service.hosts[name], body)
        missing: dict[str, str] = {}
        net = [_reading(source, stands, service, 3, missing) for source in settings.network]
        ai = [_reading(source, stands, service, 3 + settings.c4, missing) for source in settings.ai]
        tick = monitor.step(at_ns / _SECOND, net, ai)
        for source, reading in zip(settings.ai, ai, strict=True):
            _route(service, source, reading, tick.phase in (None, ICPhase.JOINT_BAU))
        return ServiceView(
            settings.name,
            at_ns,
            tick,
            monitor.axes,
            monitor.used,
            monitor.limits,
            monitor.coupling,
            missing,
            monitor.calibrated,
            monitor.needed,
            monitor.problem,
            monitor.untaught,
            dict(service.routed),
        )

    # ---- windows on disk

    def _load(self, path: Path) -> None:
        try:
            kept = service_windows.load(path)
        except ServiceWindowsError as error:
            self._failed_to_keep(str(error))
            return
        for service in self._services:
            found = kept.get(service.settings.name)
            if found is not None and found.of == service_windows.standing_on(service.settings):
                service.kept = found

    def _restore(self, service: _Service, kept: Kept) -> None:
        service.kept = None
        for source, (monitor, _) in service.routing.items():
            if (baseline := kept.routing.get(str(source))) is not None:
                monitor.restore(baseline)
        try:
            if kept.learned is not None:
                service.monitor.restore(kept.learned)
        except ValueError as error:
            self._failed_to_keep(f"the kept window of {service.settings.name} gives no baseline ({error})")
        service.saved = service.learned

    def _save(self) -> None:
        kept = {}
        for service in self._services:
            # One that has not had its first tick yet keeps what it has on disk.
            now = service.kept or Kept(
                service_windows.standing_on(service.settings), service.monitor.learned, service.baselines
            )
            if now.learned is not None or now.routing:
                kept[service.settings.name] = now
            service.saved = service.learned  # what cannot be written is tried again after the next fit
        if self._keep is None:
            return
        try:
            service_windows.save(self._keep, kept)
        except ServiceWindowsError as error:
            self._failed_to_keep(str(error))
        else:
            self.windows_error = ""

    def _failed_to_keep(self, why: str) -> None:
        self.windows_error = why
        self.windows_failures += 1


def _made(settings: ServiceSettings, transfer: DriftTransfer | None) -> _Service:
    tick_ns = round(settings.tick_s * _SECOND)
    monitor = ServiceMonitor(
        c4=settings.c4,
        calibration_ticks=settings.calibration_ticks,
        cutoffs=settings.cutoffs,
        floor=settings.floor,
    )
    hosts = {source.host: _Host() for source in settings.sources}
    routing = {source: (RoutingMonitor(transfer), 0) for source in settings.ai}
    return _Service(settings, monitor, hosts, tick_ns, max(min(tick_ns, _SECOND), _LEAST_WAIT_NS), routing=routing)


def _same(a: tuple[object, ...], b: tuple[object, ...]) -> bool:
    """Whether both hold the very same objects; baselines have arrays, which do not compare."""
    return len(a) == len(b) and all(one is other for one, other in zip(a, b, strict=True))


def _route(service: _Service, source: Source, reading: Reading | None, quiet: bool) -> None:
    """Where a source's requests go, from a reading that is new; without one that stands it is not known."""
    monitor, had = service.routing[source]
    if reading is None:
        service.routed.pop(str(source), None)
        return
    if reading.number == had:
        return
    service.routing[source] = (monitor, reading.number)
    surface = service.hosts[source.host].surfaces[source.surface]
    told = [(one.vantage, one.load) for one in surface.observations if one.HasField("load")]
    if not told:
        return  # of an engine that does not tell now, what was last known stands
    loads = {name: Load(load.requests, load.prompt_tokens, load.cached_tokens) for name, load in told}
    c2 = surface.vector.c2 if surface.vector.HasField("c2") else math.nan
    found = monitor.step(loads, c2, quiet and reading.quiet)
    if found is not None:
        service.routed[str(source)] = found
    elif monitor.learned is None:
        service.routed[str(source)] = monitor.windows


def _read(host: _Host, body: bytes | None) -> None:
    """Parse what stands, once."""
    if body is None or body is host.seen:
        return
    before, host.seen = host.surfaces, body
    snapshot = pb.Snapshot.FromString(body)
    host.surfaces = {surface.name: surface for surface in snapshot.surfaces}
    for name, surface in host.surfaces.items():
        host.numbers[name] += not (is_ai(name) and name in before and surface == before[name])


def _reading(
    source: Source, stands: Mapping[str, bytes | None], service: _Service, axes: int, missing: dict[str, str]
) -> Reading | None:
    """What a source stands with; None where it is missing, and then ``missing`` says why."""
    host = service.hosts[source.host]
    surface = host.surfaces.get(source.surface) if stands[source.host] is not None else None
    if surface is None:
        missing[str(source)] = NO_SURFACE if stands[source.host] is not None else NO_SNAPSHOT
        return None
    vector = surface.vector
    values = tuple(getattr(vector, axis) if vector.HasField(axis) else math.nan for axis in _AXES[:axes])
    quiet = surface.HasField("decision") and surface.decision.phase in _QUIET
    return Reading(values, host.numbers[source.surface], quiet)
