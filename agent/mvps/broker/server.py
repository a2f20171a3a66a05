# SPDX-License-Identifier: Apache-2.0
"""The broker's gRPC server: streams of sealed snapshots in, sealed acknowledgements out, and queries.

One event loop, one writer thread for the store, no thread per stream. A stream has one batch in work at a
time, which is its flow control: gRPC stops reading from a sender whose batch is not committed yet.

An item whose seal does not hold ends its stream with a status text; there is nobody to seal an answer for.
Items before it in the batch are committed and answered first.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Final, NoReturn

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

import mvps
from mvps.broker.admission import Admission, Verdict
from mvps.broker.epoch_watch import EpochWatch
from mvps.broker.evidence import Evidence
from mvps.broker.metrics import BrokerCollector, MetricsEndpoint
from mvps.broker.settings import BrokerSettings
from mvps.broker.state import FleetState, without_baselines
from mvps.broker.store import Row, Store, StoreError
from mvps.limiter.flows import Flows
from mvps.trust import limits
from mvps.trust.epochs import Epochs
from mvps.trust.gate import SCHEMA_VERSION
from mvps.trust.seal import Lane, Purpose, Sealed, Sealer, SealError, StreamCounter
from mvps.v1 import stream_pb2 as pb
from mvps.v1 import stream_pb2_grpc

SERVICE: Final = "mvps.v1.Broker"
_HISTORY_DEFAULT: Final = 100
_HISTORY_MESSAGE_BYTES: Final = 3 * 1024 * 1024

_OPTIONS: Final = (
    # Two brokers on one port would share the streams between them and split the replay state.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", limits.MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.max_metadata_size", 8 * 1024),
)

_Context = grpc.aio.ServicerContext[Any, Any]


class BrokerError(Exception):
    """The broker cannot start. The message says what to do."""


class Broker:
    """One broker. ``await start()``, then ``address`` is where it listens; ``await stop()`` when done."""

    def __init__(self, settings: BrokerSettings) -> None:
        self.settings: Final = settings
        self.address = ""
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
                baselines=self._store.baselines(),
                check_decisions=settings.check_decisions,
            )
            self.fleet: Final = FleetState(self._store.vantages())
        except BaseException:
            self._store.close()
            raise
        self.evidence: Final = Evidence(
            self._store.evidence, self._watch.signing, urls=settings.witnesses, period_s=settings.bundle_period_s
        )
        self.flows: Flows | None = None
        self._fence = self._store.fence
        self._stream_ids = count(1)
        self._connected: defaultdict[str, set[int]] = defaultdict(set)
        self._settling: set[asyncio.Task[None]] = set()
        self._started_ns = time.time_ns()
        self._server: grpc.aio.Server | None = None
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
        server = grpc.aio.server(options=_OPTIONS)
        stream_pb2_grpc.add_BrokerServicer_to_server(_Servicer(self), server)  # type: ignore[no-untyped-call]
        checks = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(checks, server)
        self.address = _bind(server, self.settings.listen)
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
        for service in ("", SERVICE):
            await checks.set(service, health_pb2.HealthCheckResponse.SERVING)
        self._server = server
        loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(self._watch.run(self.admission.keys_changed)),
            loop.create_task(self.evidence.run()),
            *([loop.create_task(self.flows.run())] if self.flows is not None else []),
        ]
        for task in self._tasks:
            task.add_done_callback(self._task_ended)

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
        if self.metrics is not None:
            await self.metrics.stop()
        if self.flows is not None:
            self.flows.close()
        await asyncio.to_thread(self._store.close)
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
        totals |= {f"decisions.{outcome}": n for outcome, n in self.admission.decisions.items()}
        totals["commit_failures"] = self._store.fence
        return totals

    # ---- store callbacks, in the event loop and in the order of the commits

    def _committed(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self.admission.commit((row.vantage_id, row.epoch_id, row.lane), row.counter)

    def _commit_failed(self) -> None:
        # One failure fails many submissions; only the first may rewind, or the replay state of snapshots
        # that were admitted after it would be lost.
        if self._fence != self._store.fence:
            self._fence = self._store.fence
            self.admission.rewind()

    # ---- streams

    async def stream(self, requests: AsyncIterator[pb.Batch], context: _Context) -> AsyncIterator[pb.AckBatch]:
        """One sender's stream."""
        if self.streams >= self.settings.max_streams:
            await _abort(
                context,
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{self.streams} streams are open, which is this broker's limit: raise max_streams",
            )
        self.streams += 1
        stream = next(self._stream_ids)
        names: set[str] = set()
        peer = context.peer()  # asked for once it has ended, gRPC ends the process
        try:
            async for acks in self._answer(requests, context, stream, peer, names):
                yield acks
        finally:
            self.streams -= 1
            if self.flows is not None:
                self.flows.forget(peer, stream)
            for name in names:
                self._connected[name].discard(stream)
                if not self._connected[name]:
                    del self._connected[name]

    async def _answer(
        self, requests: AsyncIterator[pb.Batch], context: _Context, stream: int, peer: str, names: set[str]
    ) -> AsyncIterator[pb.AckBatch]:
        counter = StreamCounter()
        nonce = b""
        passed_on = -1  # newest epoch this sender knows or was told of
        batches = aiter(requests)
        deadline = asyncio.get_running_loop().time() + self.settings.first_item_timeout_s
        while True:
            # A stream holds one of max_streams places, so it has to prove itself soon; empty batches prove nothing.
            try:
                async with asyncio.timeout_at(None if names else deadline):
                    batch = await anext(batches)
            except StopAsyncIteration:
                return
            except TimeoutError:
                within = f"within {self.settings.first_item_timeout_s:g} s"
                await _abort(context, grpc.StatusCode.DEADLINE_EXCEEDED, f"no sealed snapshot {within}")
            nonce = nonce or batch.stream_nonce
            if len(nonce) != limits.NONCE_BYTES or batch.stream_nonce != nonce:
                await _abort(
                    context,
                    grpc.StatusCode.INVALID_ARGUMENT,
                    f"a stream needs one nonce of {limits.NONCE_BYTES} bytes in every batch",
                )
            if len(batch.items) > limits.MAX_BATCH_ITEMS:
                await _abort(
                    context,
                    grpc.StatusCode.INVALID_ARGUMENT,
                    f"a batch of {len(batch.items)} items, at most {limits.MAX_BATCH_ITEMS} allowed",
                )
            items = [Sealed(item.header, item.body, item.tag) for item in batch.items]
            verdicts, refused = self.admission.judge(items, time.time_ns())
            if verdicts and not names and self.flows is not None:
                # Their seals hold, whatever becomes of the snapshots.
                self.flows.prove(peer, stream, len({verdict.header.vantage_id for verdict in verdicts}))
            try:
                # In a task of its own: what is committed counts, also when the stream ends meanwhile.
                await asyncio.shield(self._in_background(self._settle(verdicts, stream)))
            except StoreError as error:
                await _abort(context, grpc.StatusCode.UNAVAILABLE, str(error))
            for verdict in verdicts:
                name = verdict.header.vantage_id
                names.add(name)
                self._connected[name].add(stream)
            if verdicts:
                acks = self._acks(verdicts, nonce, counter)
                passed_on = max(passed_on, max(verdict.header.epoch_id for verdict in verdicts))
                if passed_on < self._watch.newest:
                    acks.manifests.extend(self._watch.newer_than(passed_on))
                    passed_on = self._watch.newest
                yield acks
            if refused is not None:
                await _abort(context, grpc.StatusCode.UNAUTHENTICATED, str(refused))

    def _in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._settling.add(task)

        def finished(task: asyncio.Task[None]) -> None:
            self._settling.discard(task)
            if not task.cancelled():
                task.exception()  # raised in the stream, if that is still there

        task.add_done_callback(finished)
        return task

    async def _settle(self, verdicts: list[Verdict], stream: int) -> None:
        """Commit what is new, look up what is not, and take the final verdicts into the fleet's state."""
        rows = [verdict.row for verdict in verdicts if verdict.row is not None]
        repeats = [verdict for verdict in verdicts if verdict.repeat]
        if rows or repeats:
            keys = [(v.header.vantage_id, v.header.epoch_id, v.header.lane, v.header.counter) for v in repeats]
            baselines = [kept for verdict in verdicts for kept in verdict.baselines]
            recorded = await self._store.submit(rows, self._fence, baselines, keys)
            for verdict, found in zip(repeats, recorded, strict=True):
                self.admission.settle_repeat(verdict, found)
        now_ns = time.time_ns()
        for verdict in verdicts:
            if verdict.reason is None and not verdict.duplicate and verdict.header.lane == Lane.LIVE:
                self._observe(verdict)
            self.accepted += verdict.reason is None and not verdict.duplicate
            self.duplicates += verdict.duplicate
            self.fleet.record(verdict, stream, now_ns)

    def _observe(self, verdict: Verdict) -> None:
        """What the bundle's checkpoint says of this vantage: the larger D^2 of its surfaces."""
        surfaces = verdict.snapshot.surfaces if verdict.snapshot is not None else ()
        distances = [surface.decision.d2 for surface in surfaces if surface.HasField("decision")]
        if distances:
            self.evidence.observe(verdict.header.vantage_id, max(distances))

    def _acks(self, verdicts: list[Verdict], nonce: bytes, counter: StreamCounter) -> pb.AckBatch:
        bodies: dict[tuple[str, int], pb.Acks] = {}
        for verdict in verdicts:
            identity = (verdict.header.vantage_id, verdict.header.epoch_id)
            acks = bodies.get(identity)
            if acks is None:
                acks = bodies[identity] = pb.Acks(stream_nonce=nonce)
            status = pb.ACK_STATUS_DUPLICATE if verdict.duplicate else pb.ACK_STATUS_ACCEPTED
            acks.acks.add(
                lane=verdict.header.lane,
                counter=verdict.header.counter,
                digest=verdict.sealed.digest,
                status=status if verdict.reason is None else pb.ACK_STATUS_REJECTED,
                reason=pb.RejectReason.ValueType(verdict.reason or 0),
            )
        batch = pb.AckBatch()
        for (vantage_id, epoch_id), acks in bodies.items():
            try:
                key = self._watch.epochs.sealing_key(vantage_id, epoch_id, Purpose.CONTROL)
            except SealError:
                continue  # revoked since it was judged: there is nobody to answer any more
            sealer = Sealer(key, vantage_id, Purpose.CONTROL, counter, epoch_id=epoch_id)
            header, body, tag = sealer.seal(acks.SerializeToString(), tick=0, lane=Lane.LIVE)
            batch.sealed.add(header=header, body=body, tag=tag)
        return batch

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
            decisions_checked=self.admission.decisions["checked"],
            decision_mismatches=self.admission.decisions["mismatch"],
            store_error=self._store.error,
            epoch_id=manifest.epoch_id if manifest else 0,
            profile=manifest.profile if manifest else "",
            manifest_digest=manifest.digest if manifest else b"",
            refused_manifests=self._watch.refused,
            clock_steps=self._watch.clock_steps,
            last_clock_step_ns=self._watch.last_clock_step_ns,
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
        )

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
                shown.snapshot.CopyFrom(without_baselines(row))
        return response


class _Servicer(stream_pb2_grpc.BrokerServicer):
    """The wire side of a broker: gRPC's names, and who may ask."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    async def Stream(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.Batch], context: _Context
    ) -> AsyncIterator[pb.AckBatch]:
        async for acks in self._broker.stream(request_iterator, context):
            yield acks

    async def ServerInfo(self, request: pb.ServerInfoRequest, context: _Context) -> pb.ServerInfo:  # noqa: N802
        await self._local_only(context)
        return self._broker.info()

    async def ListVantages(  # noqa: N802
        self, request: pb.ListVantagesRequest, context: _Context
    ) -> pb.ListVantagesResponse:
        await self._local_only(context)
        return self._broker.vantages()

    async def GetHistory(  # noqa: N802
        self, request: pb.GetHistoryRequest, context: _Context
    ) -> pb.GetHistoryResponse:
        await self._local_only(context)
        try:
            return await self._broker.history(request)
        except StoreError as error:
            await _abort(context, grpc.StatusCode.UNAVAILABLE, str(error))

    async def _local_only(self, context: _Context) -> None:
        local = context.peer().startswith(("unix:", "ipv4:127.", "ipv6:[::1]", "ipv6:%5B::1%5D"))
        if not (local or self._broker.settings.remote_queries):
            await _abort(
                context,
                grpc.StatusCode.PERMISSION_DENIED,
                "queries are answered on the broker's own host: ask there, or set remote_queries = true",
            )


async def _abort(context: _Context, code: grpc.StatusCode, text: str) -> NoReturn:
    await context.abort(code, text)
    raise AssertionError("abort returns never")


def _bind(server: grpc.aio.Server, listen: str) -> str:
    """Bind ``listen`` and return the address a client can use."""
    if listen.startswith("unix:"):
        path = Path(listen.removeprefix("unix:"))
        # gRPC replaces an existing socket without asking, also one that another broker serves.
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            if path.exists() and not path.is_socket():
                raise BrokerError(f"{path} exists and is no socket: choose another path for listen")
            try:
                probe.connect(str(path))
            except (FileNotFoundError, ConnectionRefusedError):
                pass
            except OSError as error:
                raise BrokerError(f"cannot use {listen}: {error.strerror or error}") from None
            else:
                raise BrokerError(f"another process serves {listen}: stop it, or listen elsewhere")
    try:
        port = server.add_insecure_port(listen)
    except RuntimeError:
        port = 0
    if port == 0:
        raise BrokerError(
            f"cannot listen on {listen}: is another broker running there? ss -ltnp shows who; otherwise set "
            "listen to an address of this host and a free port"
        )
    if listen.startswith("unix:"):
        Path(listen.removeprefix("unix:")).chmod(0o660)
        return listen
    host, _, _ = listen.rpartition(":")
    return f"{host}:{port}"


async def serve(settings: BrokerSettings, ready: Callable[[str], None]) -> None:
    """Run a broker until cancelled. ``ready`` gets the address once it listens.

    Raises BrokerError, StoreError or KeySourceError when it cannot start.
    """
    broker = Broker(settings)
    try:
        await broker.start()
        ready(broker.address)
        await broker.failed.wait()
        raise BrokerError(f"the broker has a defect and stops: {broker.failure!r}")
    finally:
        await broker.stop()


class EmbeddedBroker:
    """A broker in a thread of its own, for ``mvps run`` and for tests.

    Construction returns once it listens, or raises what :func:`serve` raises.
    """

    def __init__(self, settings: BrokerSettings) -> None:
        self.broker: Broker | None = None
        self._failure: Exception | None = None
        self._loop = asyncio.new_event_loop()
        self._settings = settings
        self._listening = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mvps-broker", daemon=True)
        self._thread.start()
        self._listening.wait()
        if self._failure is not None:
            self._thread.join()
            raise self._failure

    @property
    def address(self) -> str:
        """Where it listens."""
        return self.broker.address if self.broker else ""

    def stop(self) -> None:
        """Stop and wait for the end. Idempotent."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._task.cancel)
            self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._task = self._loop.create_task(self._serve())
        try:
            self._loop.run_until_complete(self._task)
        except asyncio.CancelledError:
            pass
        except Exception as error:
            self._failure = error  # raised in the thread that constructs
        finally:
            self._loop.close()
            self._listening.set()

    async def _serve(self) -> None:
        broker = Broker(self._settings)
        try:
            await broker.start()
            self.broker = broker
            self._listening.set()
            await broker.failed.wait()
        finally:
            await broker.stop()
