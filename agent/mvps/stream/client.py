# SPDX-License-Identifier: Apache-2.0
"""The agent's gRPC client: takes sealed snapshots off the tick thread and brings back verified answers.

It runs in a thread with its own event loop. A stream is opened when there is something to send; when it
breaks, what was not answered is sent again on the next one, where the broker answers what it already has as
a duplicate. An answer counts only if its seal holds under the vantage's control key, it carries this
stream's nonce, and it names the digest of a snapshot that was sent: everything else clears nothing and is
counted in ``forged_acks``. What is sent when, and where it waits, is :mod:`mvps.stream.outbox`.

This thread is the only one that writes to the spool, so that a disk which blocks the writer delays answers and
never a tick. Syncs, which take longest, have a thread of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import grpc
from google.protobuf.message import DecodeError

from mvps.stream.ledger import Ledger, Record, Totals
from mvps.stream.outbox import Outbox, Resealer
from mvps.stream.spool import Spool, sync
from mvps.trust import limits
from mvps.trust.reasons import RejectReason
from mvps.trust.seal import Sealed, SealError, Verifier
from mvps.v1 import stream_pb2 as pb
from mvps.v1 import stream_pb2_grpc

_OPTIONS: Final = (
    ("grpc.max_send_message_length", limits.MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", limits.MAX_MESSAGE_BYTES),
    # Finds a broker that vanished without a word within 30 s, and keeps NAT entries alive.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    # Each attempt is ours to pace: no backoff state that outlives a channel.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)
# Each pause is drawn from the whole of it: 5,000 agents that lose their broker at once are back over this time and not
# in one moment.
_FIRST_BACKOFF_S: Final = 0.5
_LONGEST_BACKOFF_S: Final = 30.0
# Slower than doubling: the pause that is running when the broker comes back is what an agent still waits.
_BACKOFF_GROWTH: Final = 1.5
# A broker that refuses needs a human: ask it less often.
_REFUSED_BACKOFF_S: Final = 5.0
_CONNECT_TIMEOUT_S: Final = 5.0
_ACK_TIMEOUT_S: Final = 30.0
_STATUS_TIMEOUT_S: Final = 1.0
_DRAIN_POLL_S: Final = 0.02
# A failing disk is tried again, and old records are given up, this often; a loss of power takes at most what was
# spooled since the last sync.
_KEEP_S: Final = 1.0
SYNC_S: Final = 5.0
# Between two segments of a spool that is read at the start: the interpreter is the tick's meanwhile.
_RECOVERY_PAUSE_S: Final = 0.005
DEFAULT_LATE_RATE: Final = 3.0

_Call = grpc.aio.StreamStreamCall[pb.Batch, pb.AckBatch]


@dataclass(frozen=True, slots=True)
class StreamStatus:
    """The road to the broker at one moment.

    clock_offset_ns: the broker's clock minus ours at its last answer; None before the first.
    spool_bytes, spool_error: size of the spool, and why the disk takes nothing at the moment; 0 and "" without one.
    state: "idle", "connecting", "connected", "waiting" (for the next attempt), "refused" or "stopped".
    detail: what is wrong and what to do; empty when all is well.
    """

    target: str
    state: str
    detail: str
    totals: Totals
    forged_acks: int
    reconnects: int
    last_ack_ns: int
    backfilled: int
    clock_offset_ns: int | None
    spool_bytes: int
    spool_error: str


class _BrokenError(Exception):
    """This stream is over; the message says why."""


class StreamClient:
    """Streams one vantage's sealed snapshots to one broker.

    target: ``host:port``, ``[ipv6]:port`` or ``unix:/path``.
    vantage_id: whose snapshots these are; answers must be sealed for it.
    acks: verifies answers, purpose control, with the vantage's own key.
    resealer: seals late snapshots again for the backfill lane. Without it a stale snapshot is a rejected one.
    manifests: gets the manifests that a broker passes on; they are verified there.
    spool: owned from here on; None keeps what is unsettled in memory only.
    queue_limit: unsettled snapshots kept in memory only, for want of a spool or because its disk fails; beyond it the
        oldest is dropped.
    late_rate: late snapshots sent per second.
    credentials: read before every connect; None for a connection without TLS, as over a Unix socket. Raises
        ValueError with advice.
    """

    def __init__(
        self,
        target: str,
        vantage_id: str,
        acks: Verifier,
        *,
        resealer: Resealer | None = None,
        manifests: Callable[[Sequence[bytes]], None] = lambda manifests: None,
        spool: Spool | None = None,
        queue_limit: int = 3600,
        history: int = 1024,
        late_rate: float = DEFAULT_LATE_RATE,
        credentials: Callable[[], grpc.ChannelCredentials] | None = None,
    ) -> None:
        self._target = target
        self._vantage_id = vantage_id
        self._acks = acks
        self._manifests = manifests
        self._credentials = credentials
        self._spool = spool
        self._ledger = Ledger(queue_limit, history)
        self._outbox = Outbox(self._ledger, spool, resealer, late_rate)
        self._state = "idle"
        self._detail = ""
        self._forged = 0
        self._streams = 0
        self._last_ack_ns = 0
        self._policies = b""
        self._clock_offset_ns: int | None = None
        self._answered = False  # in the current stream
        self._loop = asyncio.new_event_loop()
        self._work = asyncio.Event()
        self._stopping = False
        self._backoff_s = _FIRST_BACKOFF_S
        self._progress = 0.0
        self._cycle_task: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._run, name="mvps-stream", daemon=True)

    # ---- any thread

    def start(self) -> None:
        """Start the client's thread."""
        self._thread.start()

    def submit(self, sealed: Sealed) -> None:
        """Hand over a sealed snapshot. Never waits for the network or the disk."""
        self._ledger.add(sealed)
        self._wake()

    @property
    def policies(self) -> bytes:
        """What the broker said last of the policies of this host's tenants, under its seal; b"" for nothing."""
        return self._policies

    def status(self) -> StreamStatus:
        """Where things stand."""
        return StreamStatus(
            self._target,
            self._state,
            self._detail,
            self._ledger.totals(),
            self._forged,
            max(self._streams - 1, 0),
            self._last_ack_ns,
            self._outbox.backfilled,
            self._clock_offset_ns,
            self._spool.bytes if self._spool is not None else 0,
            self._spool.error if self._spool is not None else "",
        )

    def records(self, limit: int = 0) -> list[Record]:
        """Recent snapshots with their states, newest last."""
        return self._ledger.records(limit)

    @property
    def version(self) -> int:
        """Rises whenever a record changes; cheap to poll."""
        return self._ledger.version

    def retarget(self, target: str) -> None:
        """Use another broker from the next stream on, and end the current one."""
        self._target = target
        with contextlib.suppress(RuntimeError):  # closed loop: already stopped
            self._loop.call_soon_threadsafe(self._end_cycle)

    def stop(self, drain_s: float = 0.0) -> None:
        """Stop; first wait up to ``drain_s`` seconds for answers to what was submitted. Idempotent.

        What is unsettled then stays in the spool; what is in memory only is counted as dropped, cause ``stopped``.
        """
        deadline = time.monotonic() + drain_s
        while self._thread.is_alive() and self._unsettled() and time.monotonic() < deadline:
            time.sleep(_DRAIN_POLL_S)
        self._stopping = True
        if self._thread.is_alive():
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._end_cycle)
            self._thread.join()
        elif not self._loop.is_closed():
            self._loop.close()
        self._outbox.close()
        self._state, self._detail = "stopped", ""

    def _unsettled(self) -> int:
        totals = self._ledger.totals()
        return totals.queued + totals.spooled

    def _wake(self) -> None:
        with contextlib.suppress(RuntimeError):  # stopped: the snapshot stays queued and is counted
            self._loop.call_soon_threadsafe(self._submitted)

    # ---- client thread

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._main())
        finally:
            self._loop.close()

    def _end_cycle(self) -> None:
        if self._cycle_task is not None:
            self._cycle_task.cancel()

    def _submitted(self) -> None:
        self._outbox.absorb()
        self._work.set()

    async def _main(self) -> None:
        for _ in self._outbox.recovering():
            await asyncio.sleep(_RECOVERY_PAUSE_S)
        keeping = self._loop.create_task(self._keep())
        try:
            while not self._stopping:
                self._cycle_task = self._loop.create_task(self._cycle())
                with contextlib.suppress(asyncio.CancelledError):  # retargeted or stopping
                    await self._cycle_task
                self._outbox.ended()
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)

    async def _keep(self) -> None:
        synced = time.monotonic()
        while True:
            await asyncio.sleep(_KEEP_S)
            if self._outbox.keep():
                self._work.set()
            if time.monotonic() - synced >= SYNC_S and (descriptors := self._outbox.unsynced()):
                if (failed := await asyncio.to_thread(sync, descriptors)) and self._spool is not None:
                    self._spool.error = f"cannot sync the spool {self._spool.path}: {failed}"
                synced = time.monotonic()

    async def _cycle(self) -> None:
        """Wait for work, stream until that breaks, pause."""
        self._state = "idle" if not self._detail else self._state
        while not self._outbox.pending():
            await self._sleep_until_work()
        self._answered = False
        pause = self._backoff_s
        try:
            await self._stream()
        except _BrokenError as broken:
            self._state, self._detail = "waiting", str(broken)
        except grpc.aio.AioRpcError as error:
            refused, self._detail = _explain(error, self._target)
            if error.code() is grpc.StatusCode.UNAUTHENTICATED and self._outbox.blamed():
                # Live ones are accepted, and do not wait for what lies there from an old epoch.
                refused, pause = False, _FIRST_BACKOFF_S
            self._state = "refused" if refused else "waiting"
            if refused:
                pause = max(pause, _REFUSED_BACKOFF_S)
        self._outbox.ended()
        if self._answered:
            self._backoff_s = _FIRST_BACKOFF_S
        else:
            self._backoff_s = min(_BACKOFF_GROWTH * self._backoff_s, _LONGEST_BACKOFF_S)
        await asyncio.sleep(pause * random.uniform(0.5 if self._state == "refused" else 0.0, 1.0))

    async def _sleep_until_work(self) -> None:
        self._work.clear()
        if self._ledger.waiting():  # submitted between the look and the clear
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._outbox.wait_s()):
                await self._work.wait()

    def _channel(self) -> grpc.aio.Channel:
        # The one place where TLS comes in. Seals do not depend on it.
        if self._credentials is None or self._target.startswith("unix:"):
            return grpc.aio.insecure_channel(self._target, options=_OPTIONS)
        try:
            credentials = self._credentials()
        except ValueError as error:
            raise _BrokenError(str(error)) from None
        return grpc.aio.secure_channel(self._target, credentials, options=_OPTIONS)

    async def _stream(self) -> None:
        """One stream, from connecting to its end. Always raises."""
        if not self._detail:
            self._state = "connecting"
        async with self._channel() as channel:
            await self._connect(channel)
            stub = stream_pb2_grpc.BrokerStub(channel)  # type: ignore[no-untyped-call]
            call: _Call = stub.Stream()
            self._streams += 1
            self._outbox.streaming = True
            nonce = secrets.token_bytes(limits.NONCE_BYTES)
            self._progress = time.monotonic()
            reader = self._loop.create_task(self._read(call, nonce))
            others = {self._loop.create_task(work) for work in (self._write(call, nonce), self._watch())}
            try:
                done, _ = await asyncio.wait({reader, *others}, return_when=asyncio.FIRST_COMPLETED)
                if reader not in done:
                    # A write fails without saying why; the reader knows the status.
                    await asyncio.wait({reader}, timeout=_STATUS_TIMEOUT_S)
                for task in (reader, *others):
                    if task.done():
                        task.result()
            finally:
                for task in (reader, *others):
                    task.cancel()
                call.cancel()
                await asyncio.gather(reader, *others, return_exceptions=True)

    async def _connect(self, channel: grpc.aio.Channel) -> None:
        state = channel.get_state(try_to_connect=True)
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                while state is not grpc.ChannelConnectivity.READY:
                    if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                        break
                    await channel.wait_for_state_change(state)
                    state = channel.get_state(try_to_connect=True)
        except TimeoutError:
            pass
        if state is not grpc.ChannelConnectivity.READY:
            raise _BrokenError(
                f"no broker answers at {self._target}: check that it runs and that this host may connect to it"
            )

    async def _write(self, call: _Call, nonce: bytes) -> None:
        while True:
            while not (batch := self._outbox.take()):
                await self._sleep_until_work()
            if self._ledger.in_flight() == len(batch):
                self._progress = time.monotonic()
            message = pb.Batch(stream_nonce=nonce)
            for item in batch:
                header, body, tag = item.sealed
                message.items.add(header=header, body=body, tag=tag)
            try:
                await call.write(message)
            except asyncio.InvalidStateError:
                raise _BrokenError(f"the broker at {self._target} ended the stream") from None

    async def _read(self, call: _Call, nonce: bytes) -> None:
        last = 0
        while True:
            answer = await call.read()
            if not isinstance(answer, pb.AckBatch):
                raise _BrokenError(f"the broker at {self._target} ended the stream")
            # First, so that an answer under the next epoch's key can be verified.
            if answer.manifests:
                self._manifests(answer.manifests)
            for sealed in answer.sealed:
                last = self._take_acks(Sealed(sealed.header, sealed.body, sealed.tag), nonce, last)
            self._work.set()  # there may be room for more in flight

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_ACK_TIMEOUT_S / 2)
            if self._ledger.in_flight() and time.monotonic() - self._progress > _ACK_TIMEOUT_S:
                forged = f", and {self._forged} answers did not verify" if self._forged else ""
                raise _BrokenError(
                    f"the broker at {self._target} takes snapshots and does not answer{forged}: look at its log"
                )

    def _take_acks(self, sealed: Sealed, nonce: bytes, last: int) -> int:
        """Settle what a sealed answer names; returns the answer's counter, or ``last`` if it is forged."""
        acks = pb.Acks()
        try:
            header = self._acks.verify(sealed)
            acks.ParseFromString(sealed.body)
        except (SealError, DecodeError):
            self._forged += 1
            return last
        if header.vantage_id != self._vantage_id or acks.stream_nonce != nonce or header.counter <= last:
            self._forged += 1
            return last
        for ack in acks.acks:
            self._take_ack(ack)
        self._answered = True
        self._state, self._detail = "connected", ""
        self._progress = time.monotonic()
        self._last_ack_ns = time.time_ns()
        self._clock_offset_ns = header.time_ns - self._last_ack_ns
        if acks.policies:
            self._policies = acks.policies
        return header.counter

    def _take_ack(self, ack: pb.Ack) -> None:
        if ack.status in (pb.ACK_STATUS_ACCEPTED, pb.ACK_STATUS_DUPLICATE):
            reason = None
        elif ack.status == pb.ACK_STATUS_REJECTED:
            reason = _reason(ack.reason)
        else:
            return  # a status newer than this agent settles nothing
        if self._outbox.answered(ack.lane, ack.counter, ack.digest, reason).forged:
            self._forged += 1


def _reason(number: int) -> RejectReason:
    try:
        return RejectReason(number)
    except ValueError:
        return RejectReason.OTHER  # a broker newer than this agent


def _explain(error: grpc.aio.AioRpcError, target: str) -> tuple[bool, str]:
    """Is this a refusal that needs a human, and what to tell them."""
    # The text comes from whoever answered: one line, bounded, before it reaches a log or a terminal.
    said = "".join(c if c.isprintable() else " " for c in (error.details() or ""))[:300]
    code = error.code()
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return True, f"the broker at {target} does not accept this host: {said}"
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return True, f"the broker at {target} has no room: {said}"
    if code in {grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.INVALID_ARGUMENT}:
        return True, f"{target} does not speak this protocol ({said}): check the address and both versions"
    if code is grpc.StatusCode.PERMISSION_DENIED:
        return True, f"the broker at {target} denies access: {said}"
    return False, f"the stream to {target} broke ({code.name.lower()}): {said}"
