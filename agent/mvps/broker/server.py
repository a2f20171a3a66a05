# SPDX-License-Identifier: Apache-2.0
"""The broker's gRPC server: streams of sealed snapshots in, sealed acknowledgements out, and queries.

One event loop, one writer thread for the store, no thread per stream. A message stays bytes: native code reads the
envelope, judges every item and packs what the store and the answer need, so that Python does work per message and per
vantage, and none per snapshot.

A stream has one batch in work at a time, which is its flow control: gRPC stops reading from a sender whose batch is not
committed yet, whose vantage is beyond its rate (:mod:`mvps.broker.identity_limit`), or while too many bytes of all
streams are in work.

An item whose seal does not hold ends its stream with a status text; there is nobody to seal an answer for.
Items before it in the batch are committed and answered first.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Final, NoReturn

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

import mvps
from mvps.broker.admission import Admission, Admitted
from mvps.broker.answers import Answers, fleet_state, kind_rows
from mvps.broker.epoch_watch import EpochWatch
from mvps.broker.evidence import Evidence
from mvps.broker.fleet_watch import FleetView, FleetWatch
from mvps.broker.history import History, HistoryError
from mvps.broker.identity_limit import IdentityLimit
from mvps.broker.in_work import InWork
from mvps.broker.metrics import BrokerCollector, MetricsEndpoint
from mvps.broker.recheck import Rechecker
from mvps.broker.service import OPTIONS, SERVICE, AddressError, Context, Service, abort, bind, bind_operators
from mvps.broker.service_answers import service_rows, services_state
from mvps.broker.service_settings import ServiceSettings
from mvps.broker.service_watch import ServiceView, ServiceWatch
from mvps.broker.settings import BrokerSettings
from mvps.broker.state import FleetState, without_baselines
from mvps.broker.store import NOTHING, CounterKey, Store
from mvps.broker.surplus_answers import changes, surplus_state
from mvps.broker.surplus_settings import SurplusSettings
from mvps.broker.surplus_tables import IncidentRow
from mvps.broker.surplus_watch import Order, Rows, SurplusWatch, check_words
from mvps.broker.tables import StoreError
from mvps.broker.ticks import Ticks
from mvps.coupling import drift
from mvps.coupling.drift import DriftTransfer
from mvps.limiter.flows import Flows
from mvps.robust.fleet import Evidence as Against
from mvps.surplus.packets import Incident, parse
from mvps.trust import limits
from mvps.trust.epochs import Epochs
from mvps.trust.gate import SCHEMA_VERSION, Batch, Run
from mvps.trust.reasons import RejectReason
from mvps.trust.replay import Recorded
from mvps.trust.seal import Lane, Purpose, Sealer, SealError, SealingKey, StreamCounter
from mvps.trust.tls import ServerTls, TlsError
from mvps.v1 import stream_pb2 as pb

_HISTORY_DEFAULT: Final = 100
# Of policies in one answer, all its vantages together, but for the last one; the others wait for their next.
_HANDED_BYTES: Final = 256 * 1024
_HISTORY_MESSAGE_BYTES: Final = 3 * 1024 * 1024
_MAX_TRANSFER_BYTES: Final = 64 * 1024


class BrokerError(Exception):
    """The broker cannot start. The message says what to do."""


class Broker:
    """One broker. ``await start()``, then ``address`` is where it listens; ``await stop()`` when done."""

    def __init__(self, settings: BrokerSettings) -> None:
        self.settings: Final = settings
        self.address = ""
        self._tls: Final = _tls(settings)
        transfers = _transfers(settings.service)
        self._watch: Final = EpochWatch(settings)
        self._store = Store(
            settings.database,
            retention_s=settings.retention_s,
            max_bytes=settings.database_max_mib << 20,
            on_commit=self._committed,
            on_failure=self._commit_failed,
        )
        try:
            self.admission: Final = Admission(
                self._watch.epochs,
                settings.window(),
                max_vantages=settings.max_vantages,
                replay=self._store.replay_state(),
            )
            self._rechecker = (
                Rechecker(
                    self._store.baselines(),
                    share=settings.check_share,
                    on_mismatch=self._mismatch,
                    on_impossible=self._impossible,
                )
                if settings.check_decisions
                else None
            )
            self.fleet: Final = FleetState(self._store.vantages())
            self._history: Final = _open_history(settings)
        except BaseException:
            self._store.close()
            raise
        self.evidence: Final = Evidence(
            self._store.evidence, self._watch.signing, urls=settings.witnesses, period_s=settings.bundle_period_s
        )
        self.fleet_watch: Final = FleetWatch(
            on_decided=self._decided, keep=settings.database.with_name(f"{settings.database.name}.fleet")
        )
        self.ticks: Final = Ticks(self.epochs, self._history, self.fleet_watch, deadline_s=settings.bundle_deadline_s)
        self.service_watch: Final = ServiceWatch(
            settings.service,
            on_joined=self._joined,
            keep=settings.database.with_name(f"{settings.database.name}.services"),
            transfers=transfers,
        )
        self.surplus_watch: Final = SurplusWatch(
            settings.surplus,
            on_rows=self._governed,
            keep=settings.database.with_name(f"{settings.database.name}.tenants"),
        )
        self.answers: Final = Answers(self._history)
        self.flows: Flows | None = None
        self._fence = self._store.fence
        self._stream_ids = count(1)
        self._connected: defaultdict[str, set[int]] = defaultdict(set)
        self._identity: Final = IdentityLimit(limits.MAX_BATCH_ITEMS)
        self._in_work: Final = InWork(settings.max_in_work_mib << 20)
        # Pauses of streams whose vantage was beyond its rate, and their seconds.
        self.throttled: Counter[Lane] = Counter(dict.fromkeys(Lane, 0))
        self.throttled_s: defaultdict[Lane, float] = defaultdict(float)
        self.streams_refused: Counter[str] = Counter()
        self._started_ns = time.time_ns()
        self._server: grpc.aio.Server | None = None
        self._operators: grpc.aio.Server | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self.metrics: MetricsEndpoint | None = None
        # Set when a defect has ended one of the broker's own tasks; ``failure`` says which.
        self.failed = asyncio.Event()
        self.failure: BaseException | None = None
        self.streams = 0
        self.accepted = 0
        self.duplicates = 0

    @property
    def epochs(self) -> Epochs:
        """The epochs it serves."""
        return self._watch.epochs

    async def start(self) -> None:
        """Listen. BrokerError if the address cannot be had."""
        options = (*OPTIONS, ("grpc.max_concurrent_streams", self.settings.max_streams_per_connection))
        server = grpc.aio.server(options=options)
        methods = Service(self, remote_queries=self.settings.remote_queries, operators=self.settings.operators)
        server.add_generic_rpc_handlers((methods.handler(),))
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        checks = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(checks, server)
        try:
            self.address = bind(server, self.settings.listen, self._tls)
            self._operators = self._bind_operators()
        except AddressError as error:
            raise BrokerError(str(error)) from None
        if self.settings.limiter:
            # Not before the address is ours: it clears what an earlier broker there has left.
            self.flows = Flows(Path(self.settings.limiter))
        if self.settings.metrics:
            self.metrics = MetricsEndpoint(BrokerCollector(self.info, self.vantages, self.flows), self.settings.metrics)
            try:
                await self.metrics.start()
            except (OSError, ValueError) as error:
                raise BrokerError(
                    f'metrics cannot listen on {self.settings.metrics}: {error}; choose another address, or "" for none'
                ) from None
        await server.start()
        if self._operators is not None:
            await self._operators.start()
        for name in ("", SERVICE):
            await checks.set(name, health_pb2.HealthCheckResponse.SERVING)
        self._server = server
        loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(self._watch.run(self.admission.keys_changed)),
            loop.create_task(self.evidence.run()),
            loop.create_task(self.ticks.run()),
            loop.create_task(self.fleet_watch.run()),
            *([loop.create_task(self.service_watch.run())] if self.settings.service else []),
            *([loop.create_task(self.surplus_watch.run())] if self.settings.surplus else []),
            *([loop.create_task(self.flows.run())] if self.flows is not None else []),
        ]
        if self._rechecker is not None:
            self._tasks.append(loop.create_task(self._rechecker.run()))
        for task in self._tasks:
            task.add_done_callback(self._task_ended)

    def _bind_operators(self) -> grpc.aio.Server | None:
        """The server on the operators' socket, not started: a server of its own, since a call does not say on which
        socket it came. AddressError.
        """
        path = self.settings.operator_socket
        if path is None:
            return None
        server = grpc.aio.server(options=OPTIONS)
        server.add_generic_rpc_handlers((Service(self, remote_queries=False, operators=None).handler(),))
        bind_operators(server, path)
        return server

    async def stop(self) -> None:
        """End the streams, commit what was taken, close the store. Idempotent."""
        for task in self._tasks:
            task.remove_done_callback(self._task_ended)
            task.cancel()
        # Before the store closes: the last checkpoint is signed on the way out.
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        if self._server is not None:
            # No grace: streams never end by themselves, and what is not acknowledged is sent again.
            await self._server.stop(None)
            self._server = None
        if self._operators is not None:
            await self._operators.stop(None)
            self._operators = None
            assert self.settings.operator_socket is not None
            self.settings.operator_socket.unlink(missing_ok=True)
        if self.metrics is not None:
            await self.metrics.stop()
        if self.flows is not None:
            self.flows.close()
        await asyncio.to_thread(self._store.close)
        if self._history is not None:
            await asyncio.to_thread(self._history.close)
        # Only what this broker bound: after a failed start the path belongs to somebody else.
        if self.address.startswith("unix:"):
            Path(self.address.removeprefix("unix:")).unlink(missing_ok=True)
            self.address = ""

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        """Neither task ends by itself: a broker that no longer hears of revocations must not go on."""
        if not task.cancelled():
            self.failure = task.exception() or RuntimeError("a task of the broker ended")
            self.failed.set()

    def counters(self) -> dict[str, int]:
        """Totals since start, for metrics: accepted, duplicates, rejected.<reason>, ..."""
        totals = {"accepted": self.accepted, "duplicates": self.duplicates, "streams": self.streams}
        totals |= {f"rejected.{reason.label}": n for reason, n in self.admission.rejected.items()}
        totals |= {f"decisions.{outcome}": n for outcome, n in self._decisions.items()}
        totals |= {f"streams_refused.{cause}": n for cause, n in self.streams_refused.items()}
        totals |= {f"throttled.{lane.name.lower()}": n for lane, n in self.throttled.items() if n}
        totals["commit_failures"] = self._store.fence
        return totals

    @property
    def _decisions(self) -> Counter[str]:
        if self._rechecker is None:
            return Counter(checked=0, mismatch=0, impossible=0, unchecked=0)
        return self._rechecker.decisions

    @property
    def recheck_idle(self) -> bool:
        """Whether every decision that was taken in has been looked at."""
        return self._rechecker is None or self._rechecker.idle

    # ---- store callbacks, in the event loop and in the order of the commits

    def _committed(self, runs: Sequence[Run]) -> None:
        self.admission.commit(runs)

    def _commit_failed(self) -> None:
        # One failure fails many submissions; only the first may rewind, or the replay state of snapshots
        # that were admitted after it would be lost.
        if self._fence != self._store.fence:
            self._fence = self._store.fence
            self.admission.rewind()

    # ---- streams

    async def stream(self, _requests: object, context: Context) -> None:
        """One sender's stream: serialised Batch messages in, serialised AckBatch messages out."""
        if self.streams >= self.settings.max_streams:
            await self._refuse(
                context,
                "max_streams",
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{self.streams} streams are open, which is this broker's limit: raise max_streams",
            )
        self.streams += 1
        stream = next(self._stream_ids)
        names: set[str] = set()
        peer = context.peer()  # asked for once it has ended, gRPC ends the process
        try:
            await self._answer(context, stream, peer, names)
        finally:
            self.streams -= 1
            if self.flows is not None:
                self.flows.forget(peer, stream)
            for name in names:
                self._connected[name].discard(stream)
                if not self._connected[name]:
                    del self._connected[name]

    async def _answer(self, context: Context, stream: int, peer: str, names: set[str]) -> None:
        sealers = _AckSealers(self._watch.epochs, self.surplus_watch)
        nonce = b""
        passed_on = -1  # newest epoch this sender knows or was told of
        deadline = asyncio.get_running_loop().time() + self.settings.first_item_timeout_s
        while True:
            if self._in_work.full:
                await self._in_work.room()
            message = await context.read() if names else await self._first(context, deadline)
            if not isinstance(message, bytes):  # grpc.aio.EOF
                return
            self._in_work.add(len(message))
            try:
                admitted = await self._judge(context, message, nonce)
                batch = admitted.batch
                nonce = batch.nonce
                if len(batch) and not names and self.flows is not None:
                    # Their seals hold, whatever becomes of the snapshots.
                    self.flows.prove(peer, stream, len({run.vantage_id for run in admitted.runs}))
                if len(batch):
                    try:
                        await self._commit(admitted, stream)
                    except StoreError as error:
                        await self._refuse(context, "store", grpc.StatusCode.UNAVAILABLE, str(error))
            finally:
                self._in_work.remove(len(message))
            if len(batch):
                crowded = self._connect(admitted.runs, stream, names)
                answer = sealers.seal(batch)
                passed_on = max(passed_on, max(run.epoch_id for run in admitted.runs))
                if passed_on < self._watch.newest:
                    answer.manifests.extend(self._watch.newer_than(passed_on))
                    passed_on = self._watch.newest
                await context.write(answer.SerializeToString())
                if crowded:
                    await self._refuse(
                        context,
                        "max_streams_per_vantage",
                        grpc.StatusCode.RESOURCE_EXHAUSTED,
                        f"{crowded} has {len(self._connected[crowded])} streams open, which is this broker's limit for "
                        "one vantage: does an agent run twice? Otherwise raise max_streams_per_vantage",
                    )
            if batch.refused is not None:
                refused = SealError(*batch.refused)
                await self._refuse(context, "seal", grpc.StatusCode.UNAUTHENTICATED, str(refused))
            pause = self._pause(admitted.runs)
            del message, admitted, batch  # a stream that waits for its sender holds no message
            if pause:
                await asyncio.sleep(pause)

    async def _first(self, context: Context, deadline: float) -> bytes | object:
        """The next message of a stream that has not proved itself, or grpc.aio.EOF.

        A stream holds one of max_streams places, so it has to prove itself soon; empty batches prove nothing.
        """
        try:
            async with asyncio.timeout_at(deadline):
                message: bytes | object = await context.read()
                return message
        except TimeoutError:
            within = f"within {self.settings.first_item_timeout_s:g} s"
            await self._refuse(context, "silent", grpc.StatusCode.DEADLINE_EXCEEDED, f"no sealed snapshot {within}")

    async def _judge(self, context: Context, message: bytes, nonce: bytes) -> Admitted:
        """What the gate says. A message outside the protocol ends the stream, and nothing of it was judged."""
        # Before every message: an answer that says a snapshot is unknown brings its copy, which must find this done.
        self.admission.take_backfill_from(self._store.backfill_from_ns)
        try:
            admitted = self.admission.judge(message, nonce, time.time_ns())
            _check_envelope(admitted.batch, nonce)
        except ValueError as error:
            await self._refuse(context, "protocol", grpc.StatusCode.INVALID_ARGUMENT, str(error))
        return admitted

    async def _refuse(self, context: Context, cause: str, code: grpc.StatusCode, text: str) -> NoReturn:
        self.streams_refused[cause] += 1
        await abort(context, code, text)

    def _connect(self, runs: Sequence[Run], stream: int, names: set[str]) -> str:
        """Note who speaks on a stream; the name of a vantage that has no place for it, if there is one."""
        for run in runs:
            name = run.vantage_id
            if name in names:
                continue
            if len(self._connected.get(name, ())) >= self.settings.max_streams_per_vantage:
                return name
            names.add(name)
            self._connected[name].add(stream)
        return ""

    def _pause(self, runs: Sequence[Run]) -> float:
        """Charge what was sent to its vantages; seconds for which the stream is not read."""
        longest, slowest = 0.0, 0
        now = time.monotonic()
        for run in runs:
            manifest = self._watch.epochs.manifest(run.epoch_id)
            if manifest is None:
                continue
            rate = manifest.rate_factor * 1000 / manifest.tick_ms
            wait = self._identity.charge(run.vantage_id, run.items, rate, now)
            if wait > longest:
                longest, slowest = wait, run.lane
        if longest:
            self.throttled[Lane(slowest)] += 1
            self.throttled_s[Lane(slowest)] += longest
        return longest

    async def _commit(self, admitted: Admitted, stream: int) -> None:
        """Store what is new, look up what is not, and count; StoreError if it could not be stored.

        What is committed counts, also when the stream has ended meanwhile.
        """
        batch = admitted.batch
        settled = partial(self._settle, admitted, stream)
        if not batch.repeats and not any(run.entries for run in admitted.runs):
            settled([])
            return
        if self._rechecker is not None:
            for kept in admitted.baselines:
                self._rechecker.learn(kept)
        await self._store.submit(admitted.parcel, self._fence, admitted.baselines, admitted.lookups, then=settled)

    def _settle(self, admitted: Admitted, stream: int, recorded: Sequence[Recorded | None]) -> None:
        """A message is on disk: its verdicts are final and are counted."""
        now_ns = time.time_ns()
        batch = admitted.batch
        if recorded:
            self.admission.settle(admitted, recorded)
            self.duplicates += sum(map(batch.duplicate, batch.repeats))
        self.accepted += sum(run.accepted for run in admitted.runs)
        self.fleet.record(admitted, stream, now_ns)
        self._note_evidence(admitted, now_ns)
        self._observe_settled(admitted, now_ns)
        self.service_watch.observe(batch, admitted.runs)
        self.surplus_watch.observe(batch)
        if self._rechecker is not None:
            self._rechecker.offer(batch)

    def _note_evidence(self, admitted: Admitted, now_ns: int) -> None:
        """What the broker has seen of a vantage itself that an honest one does not do."""
        for run in admitted.runs:
            if self.fleet.vantages[run.vantage_id].clone_suspected:
                self.fleet_watch.note(run.vantage_id, Against.CLONE, now_ns)
        for index in admitted.batch.repeats:
            if admitted.batch.reason(index) is RejectReason.EQUIVOCATION:
                self.fleet_watch.note(admitted.batch.header(index).vantage_id, Against.EQUIVOCATION, now_ns)

    def _observe_settled(self, admitted: Admitted, now_ns: int) -> None:
        """Into the ticks' bundles, and what the next checkpoint says; in the order of the commits."""
        for run in admitted.runs:
            # What the bundle's checkpoint says of this vantage: the larger D^2 of its surfaces.
            if run.lane == Lane.LIVE and run.d2 >= 0:
                self.evidence.observe(run.vantage_id, run.d2)
        self.ticks.observe(admitted.batch, admitted.runs, now_ns)

    def _decided(self, view: FleetView) -> None:
        """The fleet was decided: into the history, and what the next checkpoint says."""
        said = [one.decision for one in view.kinds if one.decision is not None and one.decision.quorate]
        if said:
            self.evidence.observe_fleet(max(one.minimax for one in said), max(one.largest for one in said))
        if self._history is not None and (rows := kind_rows(view)):
            self._history.put_kinds(rows)

    def _joined(self, views: Sequence[ServiceView]) -> None:
        """Services had a joint tick: into the history."""
        if self._history is not None:
            self._history.put_services(service_rows(views))

    def _governed(self, rows: Rows) -> None:
        """Tenants were told of or decided: into the history."""
        if self._history is None:
            return
        self._history.put_health(rows.health)
        self._history.put_tenants(rows.tenants)
        self._history.put_changes(rows.changes)
        self._history.put_policies(rows.policies)

    def _mismatch(self, name: CounterKey) -> None:
        """A decision that was recomputed differs."""
        state = self.fleet.vantages.get(name[0])
        if state is not None:
            state.mismatches += 1
        self.fleet_watch.note(name[0], Against.DECISION, time.time_ns())
        # Nobody waits for it; what fails with a commit is lost for the history and stays counted.
        noted = self._store.submit(NOTHING, self._fence, mismatches=[name])
        noted.add_done_callback(lambda done: done.cancelled() or done.exception())

    def _impossible(self, name: CounterKey) -> None:
        """A distribution cannot come from the events beside it."""
        self.fleet_watch.note(name[0], Against.CONSERVATION, time.time_ns())

    # ---- queries

    def info(self) -> pb.ServerInfo:
        """Answer to ServerInfo."""
        manifest = self._watch.epochs.current(time.time_ns())
        evidence = self.evidence.status()
        return pb.ServerInfo(
            version=mvps.__version__,
            schema_version=SCHEMA_VERSION,
            started_ns=self._started_ns,
            vantages=len(self.fleet.vantages),
            streams=self.streams,
            accepted=self.accepted,
            duplicates=self.duplicates,
            rejected={reason.label: n for reason, n in self.admission.rejected.items()},
            decisions_checked=self._decisions["checked"],
            decision_mismatches=self._decisions["mismatch"],
            decisions_unchecked=self._decisions["unchecked"],
            distributions_impossible=self._decisions["impossible"],
            throttled={lane.name.lower(): n for lane, n in self.throttled.items()},
            throttled_seconds={lane.name.lower(): self.throttled_s[lane] for lane in Lane},
            streams_refused=self.streams_refused,
            bytes_in_work=self._in_work.bytes,
            store_error=self._store.error,
            epoch_id=manifest.epoch_id if manifest else 0,
            profile=manifest.profile if manifest else "",
            manifest_digest=manifest.digest if manifest else b"",
            refused_manifests=self._watch.refused,
            clock_steps=self._watch.clock_steps,
            last_clock_step_ns=self._watch.last_clock_step_ns,
            tls_error=self._tls.error if self._tls else "",
            evidence=pb.Evidence(
                size=evidence.size,
                checkpoint_size=evidence.checkpoint_size,
                checkpoint_ns=evidence.checkpoint_ns,
                cosignatures=evidence.cosignatures,
                quorum=evidence.quorum,
                cosigned_size=evidence.cosigned_size,
                witness_errors=evidence.witness_errors,
                error=evidence.error,
            ),
            bundles=dict(self.ticks.counts) | {"skipped": self.ticks.skipped, "repeated": self.ticks.repeated},
            history=pb.History(**self._history.status()._asdict()) if self._history is not None else None,
            fleet=fleet_state(self.fleet_watch),
            services=services_state(self.service_watch),
            surplus=surplus_state(self.surplus_watch),
            store=pb.StoreRoom(
                bytes=self._store.bytes,
                max_bytes=self._store.max_bytes,
                backfill_from_ns=self._store.backfill_from_ns,
                removed_early=self._store.removed_early,
                retention_s=self.settings.retention_s,
            ),
        )

    async def order_surplus(self, request: pb.OrderSurplusRequest) -> pb.OrderSurplusResponse:
        """Answer to OrderSurplus; ValueError if it cannot be carried out."""
        if self.settings.surplus is None:
            raise ValueError("this broker watches no tenants: it has no [surplus] in its settings")
        made = await self.surplus_watch.order(
            Order(request.tenant, request.what, request.to, request.who.strip(), request.why.strip())
        )
        return pb.OrderSurplusResponse(changes=changes(made))

    def record_incident(self, request: pb.RecordIncidentRequest) -> pb.RecordIncidentResponse:
        """Answer to RecordIncident; ValueError if it is none."""
        if self._history is None:
            raise ValueError('this broker keeps no history (history = "none"): there is no place for incidents')
        who = request.who.strip()
        if not who:
            raise ValueError("an incident needs the name of who records it")
        check_words(who, "")
        self._history.put_incident(IncidentRow(time.time_ns(), parse(request.incident, Incident), who))
        return pb.RecordIncidentResponse()

    def vantages(self) -> pb.ListVantagesResponse:
        """Answer to ListVantages, sorted by name."""
        return pb.ListVantagesResponse(
            vantages=[
                state.summary(connected=name in self._connected) for name, state in sorted(self.fleet.vantages.items())
            ]
        )

    async def history(self, request: pb.GetHistoryRequest) -> pb.GetHistoryResponse:
        """Answer to GetHistory. Ends early rather than exceed what one message may carry."""
        limit = min(request.limit or _HISTORY_DEFAULT, limits.MAX_HISTORY_ROWS)
        rows = await asyncio.to_thread(self._store.history, request.vantage_id, request.since_ns, limit)
        response = pb.GetHistoryResponse()
        size = 0
        for row in rows:
            size += row.sealed.size if request.with_snapshots else 0
            if size > _HISTORY_MESSAGE_BYTES:
                break
            shown = response.rows.add(
                counter=row.counter,
                lane=row.lane,
                tick=row.tick,
                received_ns=row.received_ns,
                digest=row.digest,
                reason=pb.RejectReason.ValueType(row.reason or 0),
                decision_mismatch=row.mismatch,
            )
            if request.with_snapshots and row.reason is None:
                shown.snapshot.CopyFrom(without_baselines(row.sealed.body))
        return response


class _AckSealers:
    """Seals the answers of one stream: one seal for each vantage and epoch of a batch.

    What a host is to know of its tenants' policies goes along under its seal, once on every stream after each change.
    """

    def __init__(self, epochs: Epochs, surplus: SurplusWatch) -> None:
        self._epochs = epochs
        self._surplus = surplus
        self._handed: dict[str, int] = {}  # vantage -> serial of what it was told last
        self._counter = StreamCounter()
        self._sealers: dict[tuple[str, int], tuple[SealingKey, Sealer]] = {}

    def seal(self, batch: Batch) -> pb.AckBatch:
        """The answer to a batch. Without the part of a vantage that was revoked since it was judged."""
        answer = pb.AckBatch()
        room = _HANDED_BYTES
        for vantage_id, epoch_id, acks in batch.acks():
            try:
                key = self._epochs.sealing_key(vantage_id, epoch_id, Purpose.CONTROL)
            except SealError:
                continue  # there is nobody to answer any more
            held = self._sealers.get((vantage_id, epoch_id))
            if held is None or held[0] is not key:
                if len(self._sealers) >= limits.MAX_BATCH_ITEMS:
                    self._sealers.clear()
                held = (key, Sealer(key, vantage_id, Purpose.CONTROL, self._counter, epoch_id=epoch_id))
                self._sealers[vantage_id, epoch_id] = held
            policies = self._policies(vantage_id) if room > 0 else b""
            room -= len(policies)
            header, body, tag = held[1].seal(acks + policies, tick=0, lane=Lane.LIVE)
            answer.sealed.add(header=header, body=body, tag=tag)
        return answer

    def _policies(self, vantage_id: str) -> bytes:
        """Another part of a serialised Acks."""
        serial = self._surplus.serial
        if serial == self._handed.get(vantage_id, 0):
            return b""
        if len(self._handed) >= limits.MAX_BATCH_ITEMS:
            self._handed.clear()
        self._handed[vantage_id] = serial
        handed = self._surplus.handed(vantage_id)
        return pb.Acks(policies=handed).SerializeToString() if handed else b""


def _transfers(services: Sequence[ServiceSettings]) -> dict[str, DriftTransfer]:
    """Service -> its drift transfer. BrokerError says what to do about a file that holds none."""
    found = {}
    for service in services:
        if service.transfer is None:
            continue
        try:
            with service.transfer.open("rb") as file:
                found[service.name] = drift.load(file.read(_MAX_TRANSFER_BYTES).decode())
        except OSError as error:
            raise BrokerError(f"{service.transfer} cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise BrokerError(f"{service.transfer}: {error}; mvps service transfer writes one") from None
    return found


def _open_history(settings: BrokerSettings) -> History | None:
    url = settings.history_url()
    if not url:
        return None
    surplus = settings.surplus or SurplusSettings.model_validate({})
    try:
        return History(
            url,
            retention_s=settings.history_retention_s,
            minutes_retention_s=surplus.minutes_retention_days * 86400,
            audit_retention_s=surplus.audit_retention_days * 86400,
            max_bytes=settings.history_max_mib << 20,
        )
    except HistoryError as error:
        raise BrokerError(str(error)) from None


def _check_envelope(batch: Batch, nonce: bytes) -> None:
    if len(batch.nonce) != limits.NONCE_BYTES or batch.nonce != (nonce or batch.nonce):
        raise ValueError(f"a stream needs one nonce of {limits.NONCE_BYTES} bytes in every batch")
    if batch.count > limits.MAX_BATCH_ITEMS:
        raise ValueError(f"a batch of {batch.count} items, at most {limits.MAX_BATCH_ITEMS} allowed")


def _tls(settings: BrokerSettings) -> ServerTls | None:
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    try:
        return ServerTls(settings.tls_cert, settings.tls_key, settings.tls_client_ca)
    except TlsError as error:
        raise BrokerError(f"tls: {error}") from None
