# SPDX-License-Identifier: Apache-2.0
"""The agent: on every tick read, step, compose, seal, hand over, publish.

One thread does all of that and nothing else. It never opens a file, never touches the network and never
waits for a lock that somebody holds across I/O: baselines are saved, snapshots sent, metrics and the local
API served by other threads, which get immutable values by reference.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import mvps
from mvps.coherence.attribution import Attribution
from mvps.coherence.model import SurfaceModel
from mvps.daemon import baselines, config, lattice, log
from mvps.daemon.heartbeat import Heartbeat
from mvps.daemon.metrics import MetricsServer, phase_name, render
from mvps.daemon.notify import Notifier
from mvps.daemon.reported import ReportedSurfaces
from mvps.daemon.snapshot import Composer
from mvps.daemon.state import AgentState, Histogram, Published
from mvps.settings.toml_file import ConfigError
from mvps.v1.local_pb2 import SnapshotRecord, StreamState, SurplusStatusResponse
from mvps.v1.snapshot_pb2 import Snapshot

if TYPE_CHECKING:
    from mvps.coherence.baseline import Baseline
    from mvps.coherence.model import TickResult
    from mvps.coherence.observation import Observation
    from mvps.daemon.engines import Engines
    from mvps.probes.cost import RunTotals
    from mvps.vantages.registry import VantageState

_log = log.logger("service")

# The status line of the service manager is refreshed at most this often.
STATUS_SECONDS = 5.0


class Vantages(Protocol):
    """The attached vantages, as :class:`mvps.vantages.registry.VantageSet` offers them."""

    def read(self) -> Mapping[str, Observation]:
        """What each vantage saw since the last read."""

    def states(self) -> Mapping[str, VantageState]:
        """Whether each vantage works."""

    def losses(self) -> Mapping[str, int]:
        """Cumulative losses by cause."""

    def object_names(self, keys: Iterable[int]) -> Mapping[int, str]:
        """Printable names of objects."""

    def set_thresholds(self, bins: Mapping[str, int]) -> None:
        """From which severity bin on the kernel side stamps the first event of a tick."""

    def program_totals(self) -> dict[str, RunTotals]:
        """Runs and run time per program, as the kernel counts them while its statistics are on."""

    def close(self) -> None:
        """Detach everything."""


class Uplink(Protocol):
    """The road to the broker: seals and sends without ever waiting."""

    @property
    def key_id(self) -> str:
        """Id of the host's key."""

    def losses(self) -> Mapping[str, int]:
        """Snapshots that were never sealed, by cause."""

    def submit(self, body: bytes, tick: int) -> None:
        """Seal one snapshot and queue it."""

    def state(self) -> StreamState:
        """Counts and connection."""

    def records(self) -> Sequence[SnapshotRecord]:
        """Recent snapshots and what became of them, oldest first."""

    def policies(self) -> bytes:
        """What the broker said last of the policies of this host's tenants; b"" for nothing."""

    def retarget(self, target: str) -> None:
        """Send to another broker from now on."""

    def refresh(self) -> None:
        """Read key and manifests again. ValueError if the key cannot be used."""

    def close(self) -> None:
        """Give what is queued a moment to leave, then end."""


class NoUplink:
    """No broker is configured: nothing is sealed, nothing is queued."""

    key_id = ""

    def losses(self) -> Mapping[str, int]:
        """None: nothing is sealed."""
        return {}

    def policies(self) -> bytes:
        """Nobody says anything."""
        return b""

    def refresh(self) -> None:
        """Nothing to read."""

    def submit(self, body: bytes, tick: int) -> None:
        """Nothing to do."""

    def state(self) -> StreamState:
        """No target."""
        return StreamState(state="stopped", detail="no [broker] target is set: snapshots stay on this host")

    def records(self) -> Sequence[SnapshotRecord]:
        """None are sealed."""
        return ()

    def retarget(self, target: str) -> None:
        """ValueError: there is no sealing key loaded to send with."""
        if target:
            raise ValueError("broker.target: the agent started without a broker and holds no key; restart it")

    def close(self) -> None:
        """Nothing to do."""


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What a reload did: keys that took effect, keys that need a restart, and an error that stopped it."""

    applied: tuple[str, ...] = ()
    needs_restart: tuple[str, ...] = ()
    error: str = ""


def _thresholds(baseline: Baseline) -> dict[str, int]:
    """The first bin beyond the worst that BAU showed, per vantage with a severity."""
    return {
        vantage: alphabet.worst + 1
        for vantage, scale, alphabet in zip(baseline.vantages, baseline.scales, baseline.alphabets, strict=True)
        if not scale.categorical
    }


class Agent:
    """One agent. Construct, :meth:`run` in the thread that is to tick, :meth:`stop` from anywhere.

    settings: effective configuration; config_path: where a reload reads it again ("" for nowhere).
    vantages, uplink: owned from here on and closed at the end of :meth:`run`.
    models: surface -> its model, with a stored baseline already loaded.
    saver: gets every new baseline; None keeps them in memory only.
    object_hash: object key -> keyed hash.
    """

    def __init__(
        self,
        settings: config.Config,
        config_path: str,
        vantages: Vantages,
        uplink: Uplink,
        models: Mapping[str, SurfaceModel],
        surfaces: Mapping[str, Sequence[str]],
        saver: baselines.Saver | None,
        object_hash: Callable[[int], int],
        notifier: Notifier | None = None,
    ):
        self.settings = settings
        self.config_path = config_path
        self.uplink = uplink
        self.reported = ReportedSurfaces()
        self._engines: Engines | None = None
        self._engines_lock = threading.Lock()
        self._vantages = vantages
        self._models = dict(models)
        self._surfaces = dict(surfaces)
        self._saver = saver
        self._notifier = notifier or Notifier({})
        self._names: dict[int, str] = {}  # by keyed hash, for the local API
        sent = settings.broker
        self._composer = Composer(
            settings.vantage_id,
            settings.tick_ns,
            surfaces,
            object_hash,
            self._name_that_travels,
            Heartbeat(sent.heartbeat_epsilon, sent.heartbeat_full_ticks),
        )
        self._baseline_ids = {
            name: model.baseline.baseline_id if model.baseline else "" for name, model in models.items()
        }
        self._lattice = lattice.Lattice(settings.tick_ns)
        self._waiter = lattice.Waiter()
        self._stopping = False
        self._closed = False
        self._requests: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._reload_lock = threading.Lock()
        self._metrics: MetricsServer | None = None
        for model in models.values():
            if model.baseline is not None:
                vantages.set_thresholds(_thresholds(model.baseline))
        self._attribution = Attribution()
        self._program_totals: dict[str, RunTotals] = {}
        self._ticks = 0
        self._failed_reads = 0
        self._objects_dropped = 0
        self._unproven = {name for name, model in models.items() if model.baseline is not None}
        self._problems: dict[str, str] = {}
        self._lateness = Histogram()
        self._sealed_after = Histogram()
        self._vantage_words: dict[str, str] = {}
        self._phases: dict[str, str] = {}
        self._status_at = self._alive_at = 0.0
        # A third of the watchdog's time: one late wake-up is no death.
        self._beat_seconds = (self._notifier.watchdog_seconds or 3600.0) / 3
        self.published = Published(
            AgentState(
                vantage_id=settings.vantage_id,
                version=mvps.__version__,
                config_path=config_path,
                key_id=uplink.key_id,
                started_ns=time.time_ns(),
                tick_ns=settings.tick_ns,
                snapshot=Snapshot(vantage_id=settings.vantage_id, tick_period_ns=settings.tick_ns),
                stream=uplink.state(),
                vantages=dict(vantages.states()),
                surface_of={v: name for name, members in surfaces.items() for v in members},
            )
        )

    # ---- Life ----------------------------------------------------------------------------------------

    def start_metrics(self) -> None:
        """Begin to serve /metrics, if configured. OSError says what to do when the port is taken."""
        if self.settings.metrics.address:
            self._metrics = MetricsServer(self.settings.metrics.address, self.exposition)

    def exposition(self) -> str:
        """The OpenMetrics text of now."""
        return render(self.published.state, self._counted_programs(), lateral=self.settings.metrics.lateral)

    def _counted_programs(self) -> dict[str, RunTotals]:
        """Our programs' run totals if the kernel has counted since the last call, else nothing."""
        try:
            totals = self._vantages.program_totals()
        except OSError:  # detaching
            return {}
        counted = totals != self._program_totals and any(one.runs for one in totals.values())
        self._program_totals = totals
        return totals if counted else {}

    @property
    def metrics_port(self) -> int:
        """Port /metrics is served on, 0 when it is off."""
        return self._metrics.port if self._metrics else 0

    def run(self) -> None:
        """Tick until :meth:`stop`; then close everything that was handed over."""
        self._note_vantages(self.published.state.vantages)
        # What is allocated by now lives as long as the process; the collector need not look at it again.
        gc.collect()
        gc.freeze()
        self._notifier.ready(f"attached {', '.join(self._vantage_words)}; first tick pending")
        beat_ns = int(self._beat_seconds * 1e9)
        try:
            while not self._stopping:
                wall, steady = lattice.clocks()
                tick = self._lattice.arrive(wall, steady)
                if tick is not None:
                    self.work(tick)
                    self._lattice.finished(lattice.clocks()[1])
                    continue
                self._serve_requests()
                self._tell_manager()
                self._waiter.wait_until(min(self._lattice.next_due(wall), wall + beat_ns))
        finally:
            self.close()

    def stop(self) -> None:
        """End :meth:`run` after the present tick. Safe in a signal handler."""
        self._stopping = True
        self._waiter.wake()

    def close(self) -> None:
        """Detach, end all threads and release everything that was handed over. Idempotent."""
        if self._closed:
            return
        self._closed = self._stopping = True
        self._notifier.stopping()
        self.published.end()
        self._serve_requests()
        with contextlib.ExitStack() as stack:
            stack.callback(self._notifier.close)
            stack.callback(self._waiter.close)
            if self._metrics:
                stack.callback(self._metrics.close)
            if self._saver:
                stack.callback(self._saver.close)
            stack.callback(self.uplink.close)
            stack.callback(self._vantages.close)
        log.event(_log, logging.INFO, "stopped", ticks=self._ticks)

    # ---- The tick ------------------------------------------------------------------------------------

    def work(self, tick: lattice.Tick) -> None:
        """Everything one tick needs, up to the published state."""
        try:
            observations = self._vantages.read()
        except OSError as error:
            self._failed_reads += 1
            log.event(_log, logging.ERROR, "read_failed", tick=tick.index, error=error)
            return
        results = {name: self._step(name, tick.serial, observations) for name in self._models}
        self._objects_dropped += sum(result.objects_dropped for result in results.values())
        losses = self._losses()
        if self.settings.privacy.object_names != "hashed":
            self._learn_names(observations)
        progress = {name: model.progress for name, model in self._models.items()}
        snapshot = self._composer.compose(
            tick, results, progress, observations, losses, self.settings.baseline.cutoffs, self._lead(results)
        )
        snapshot.surfaces.extend(self.reported.standing())
        engines = self._engines
        if engines is not None:
            engines.tick(snapshot, observations, tick.elapsed_ns)
        snapshot.lateness_ns = max(time.time_ns() - tick.due_ns, 0)
        self.uplink.submit(self._composer.body(snapshot, self._current_baselines()), tick.index)
        if engines is not None:
            engines.hand(self.uplink.policies())

        self._ticks += 1
        self._lateness.add(tick.lateness_ns / 1e9)
        self._sealed_after.add(max(time.time_ns() - tick.due_ns, 0) / 1e9)
        states = dict(self._vantages.states())
        before = self.published.state
        self.published.publish(
            AgentState(
                vantage_id=before.vantage_id,
                version=before.version,
                config_path=before.config_path,
                key_id=self.uplink.key_id,
                started_ns=before.started_ns,
                tick_ns=before.tick_ns,
                snapshot=snapshot,
                stream=self.uplink.state(),
                vantages=states,
                surface_of=before.surface_of,
                names=self._names,
                problems=self._problems,
                ticks=self._ticks,
                irregular=dict(self._lattice.counts),
                losses=losses,
                lateness=self._lateness.freeze(),
                sealed_after=self._sealed_after.freeze(),
                engines=engines.figures() if engines is not None else None,
            )
        )
        self._note_vantages(states)
        self._note_phases(snapshot)

    def _lead(self, results: Mapping[str, TickResult]) -> str:
        """Who leads, over all surfaces that have a decision."""
        own: dict[str, float] = {}
        moves_at: dict[str, float] = {}
        for name, result in results.items():
            baseline = self._models[name].baseline
            if result.decision is not None and baseline is not None:
                own.update(result.vector.own)
                moves_at.update(dict.fromkeys(result.vector.own, baseline.moved))
        return self._attribution.step(own, moves_at)

    def _losses(self) -> dict[str, int]:
        losses = dict(self._vantages.losses())
        for cause in ("skipped_overrun", "skipped_stall", "skipped_clock_step"):
            losses[f"tick.{cause}"] = self._lattice.counts[cause]
        losses["tick.read_failed"] = self._failed_reads
        losses["model.objects_dropped"] = self._objects_dropped
        losses |= {f"snapshot.{cause}": count for cause, count in self.uplink.losses().items()}
        return losses

    def _step(self, surface: str, serial: int, observations: Mapping[str, Observation]) -> TickResult:
        model = self._models[surface]
        seen = {name: observations[name] for name in self._surfaces[surface] if name in observations}
        try:
            result = model.step(serial, seen)
        except ValueError as error:
            if surface not in self._unproven:
                raise
            # A stored baseline does not fit what the vantages yield today, as after an upgrade.
            log.event(
                _log, logging.WARNING, "baseline_refused", surface=surface, error=error,
                effect="calibrating anew",
            )  # fmt: skip
            self._models[surface] = model = SurfaceModel(surface, self._surfaces[surface], model.settings)
            result = model.step(serial, seen)
        self._unproven.discard(surface)
        if model.calibration_problem != self._problems.get(surface, ""):
            self._problems = {**self._problems, surface: model.calibration_problem}
            if model.calibration_problem:
                log.event(
                    _log, logging.WARNING, "calibration_problem", surface=surface,
                    reason=model.calibration_problem,
                )  # fmt: skip
        return result

    def _current_baselines(self) -> list[tuple[str, Baseline]]:
        current: list[tuple[str, Baseline]] = []
        for name, model in self._models.items():
            if model.baseline is None:
                continue
            current.append((name, model.baseline))
            if model.baseline.baseline_id != self._baseline_ids[name]:
                self._baseline_ids[name] = model.baseline.baseline_id
                log.event(_log, logging.INFO, "baseline_new", surface=name, baseline=model.baseline.baseline_id)
                if self._saver:
                    self._saver.put(name, model.baseline)
                self._vantages.set_thresholds(_thresholds(model.baseline))
        return current

    def _learn_names(self, observations: Mapping[str, Observation]) -> None:
        keys = {key for o in observations.values() if o.objects for key in o.objects}
        fresh = [key for key in keys if self._composer.hash_of(key) not in self._names]
        if fresh:
            named = self._vantages.object_names(fresh)
            # A new dict, since readers hold the old one; a name that is not known stays unasked for.
            added = {self._composer.hash_of(key): named.get(key, "") for key in fresh}
            kept = self._names if len(self._names) < 16_384 else {}
            self._names = {**kept, **added}

    def _name_that_travels(self, key: int) -> str:
        if self.settings.privacy.object_names != "sent":
            return ""
        return self._names.get(self._composer.hash_of(key), "")

    def _note_vantages(self, states: Mapping[str, VantageState]) -> None:
        for name, state in states.items():
            if self._vantage_words.get(name) != state.state:
                self._vantage_words[name] = state.state
                level = logging.INFO if state.state == "ok" else logging.WARNING
                log.event(_log, level, "vantage", name=name, state=state.state, reason=state.reason)

    def _note_phases(self, snapshot: Snapshot) -> None:
        for surface in snapshot.surfaces:
            phase = phase_name(surface)
            if self._phases.get(surface.name) != phase:
                level = logging.INFO if phase in ("BAU", "CALIBRATING") else logging.WARNING
                log.event(
                    _log, level, "phase", surface=surface.name, phase=phase,
                    before=self._phases.get(surface.name, ""), lead=snapshot.lead, tick=snapshot.tick,
                )  # fmt: skip
                self._phases[surface.name] = phase

    def _tell_manager(self) -> None:
        now = time.monotonic()
        if now >= self._alive_at:
            self._alive_at = now + self._beat_seconds
            self._notifier.alive()
        if now >= self._status_at:
            self._status_at = now + STATUS_SECONDS
            phases = " ".join(f"{name}={phase}" for name, phase in self._phases.items())
            self._notifier.status(f"{phases}; broker {self.published.state.stream.state}; ticks {self._ticks}")

    # ---- Requests from other threads -----------------------------------------------------------------

    def engines(self) -> Engines:
        """Serving engines of this host. Made for the first that connects: most hosts have none."""
        with self._engines_lock:
            if self._engines is None:
                from mvps.daemon.engines import Engines  # and with it the packets' schemas

                chosen = self.settings.engines
                self._engines = Engines(
                    self.settings.tick_ns,
                    chosen.max_streams,
                    host=self.settings.vantage_id,
                    policy=chosen.policy,
                )
            return self._engines

    def engine_status(self) -> SurplusStatusResponse:
        """What engines and tenants do; empty until an engine has connected."""
        return self._engines.status() if self._engines is not None else SurplusStatusResponse()

    def accept_baseline(self, surface: str) -> str:
        """Make the present level of a surface business as usual; returns the new baseline's id.

        Runs between two ticks. KeyError for an unknown surface, ValueError when there is nothing to accept.
        """
        if surface not in self._models:
            raise KeyError(f'no surface "{surface}"; there are {", ".join(self._models)}')

        def accept() -> str:
            model = self._models[surface]
            model.accept_baseline()
            return model.baseline.baseline_id if model.baseline else ""

        if self._stopping:
            raise ValueError("the agent is stopping; ask its successor")
        future: Future[str] = Future()
        self._requests.put((accept, future))
        self._waiter.wake()
        return future.result(timeout=10.0)

    def _serve_requests(self) -> None:
        while True:
            try:
                action, future = self._requests.get_nowait()
            except queue.Empty:
                return
            try:
                future.set_result(action())
            except Exception as error:
                future.set_exception(error)

    def reload(self) -> Reloaded:
        """Read the settings again and apply what may change while running.

        Called from any thread but the one that ticks. Either all reloadable changes apply or, on an error,
        those before it and the error say how far it got.
        """
        with self._reload_lock:
            self._notifier.reloading()
            try:
                outcome = self._reload()
            finally:
                self._notifier.ready("reloaded")
        log.event(
            _log, logging.ERROR if outcome.error else logging.INFO, "reloaded", applied=outcome.applied,
            needs_restart=outcome.needs_restart, error=outcome.error,
        )  # fmt: skip
        return outcome

    def _reload(self) -> Reloaded:
        if not self.config_path:
            return Reloaded(error="the agent runs without a settings file; there is nothing to read again")
        try:
            fresh = config.load(self.config_path)
        except ConfigError as error:
            return Reloaded(error=str(error))
        safe, unsafe = config.changes(self.settings, fresh)
        applied: list[str] = []
        try:
            self.uplink.refresh()
            for key, value in safe.items():
                self._apply(key, value, fresh)
                self.settings = config.apply_changes(self.settings, {key: value})
                applied.append(key)
        except (OSError, ValueError) as error:
            return Reloaded(tuple(applied), tuple(unsafe), str(error))
        return Reloaded(tuple(applied), tuple(unsafe))

    def _apply(self, key: str, value: Any, fresh: config.Config) -> None:
        if key.startswith("log."):
            log.configure(fresh.log.level, fresh.log.format)
        elif key == "broker.target":
            self.uplink.retarget(value)
        elif key == "metrics.address":
            # The new address first: if it cannot be had, the old one stays.
            replacement = MetricsServer(value, self.exposition) if value else None
            old, self._metrics = self._metrics, replacement
            if old:
                old.close()
