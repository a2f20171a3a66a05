# SPDX-License-Identifier: Apache-2.0
"""The agent's gRPC client: takes sealed snapshots off the tick thread and brings back verified answers.

It runs in a thread with its own event loop. A stream is opened when there is something to send; when it
breaks, what was not answered is sent again on the next one, where the broker answers what it already has as
a duplicate. An answer counts only if its seal holds under the vantage's control key, it carries this
stream's nonce, and it names the digest of a snapshot that was sent: everything else clears nothing and is
counted in ``forged_acks``.

A live snapshot that comes back as too late for its lane or epoch is known not to be at the broker, because the
counter is looked at before the time. It is sealed again for the backfill lane and sent there.
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
from mvps.trust import limits
from mvps.trust.reasons import RejectReason
from mvps.trust.seal import Lane, Sealed, SealError, Verifier
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
_FIRST_BACKOFF_S: Final = 0.2
_LONGEST_BACKOFF_S: Final = 30.0
# A broker that refuses needs a human: ask it less often.
_REFUSED_BACKOFF_S: Final = 5.0
_CONNECT_TIMEOUT_S: Final = 5.0
_ACK_TIMEOUT_S: Final = 30.0
_STATUS_TIMEOUT_S: Final = 1.0
_DRAIN_POLL_S: Final = 0.02
# Reasons that end a snapshot's life on the live lane only.
_TOO_LATE: Final = frozenset({RejectReason.STALE, RejectReason.EPOCH_RETIRED})

_Call = grpc.aio.StreamStreamCall[pb.Batch, pb.AckBatch]


@dataclass(frozen=True, slots=True)
class StreamStatus:
    """The road to the broker at one moment.

    clock_offset_ns: the broker's clock minus ours at its last answer; None before the first.
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


class _BrokenError(Exception):
    """This stream is over; the message says why."""


class StreamClient:
    """Streams one vantage's sealed snapshots to one broker.

    target: ``host:port``, ``[ipv6]:port`` or ``unix:/path``.
    vantage_id: whose snapshots these are; answers must be sealed for it.
    acks: verifies answers, purpose control, with the vantage's own key.
    backfill: seals a stale snapshot again for the backfill lane; None when it cannot be. Without it a stale
        snapshot is a rejected one.
    manifests: gets the manifests that a broker passes on; they are verified there.
    queue_limit: unsettled snapshots kept while the broker is away; beyond it the oldest is dropped.
    """

    def __init__(
        self,
        target: str,
        vantage_id: str,
        acks: Verifier,
        *,
        backfill: Callable[[Sealed], Sealed | None] = lambda sealed: None,
        manifests: Callable[[Sequence[bytes]], None] = lambda manifests: None,
        queue_limit: int = 3600,
        history: int = 1024,
    ) -> None:
        self._target = target
        self._vantage_id = vantage_id
        self._acks = acks
        self._backfill = backfill
        self._manifests = manifests
        self._ledger = Ledger(queue_limit, history)
        self._state = "idle"
        self._detail = ""
        self._forged = 0
        self._streams = 0
        self._last_ack_ns = 0
        self._backfilled = 0
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
            self._backfilled,
            self._clock_offset_ns,
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

        What is unsettled then is counted as dropped, cause ``stopped``.
        """
        deadline = time.monotonic() + drain_s
        while self._thread.is_alive() and self._ledger.totals().queued and time.monotonic() < deadline:
            time.sleep(_DRAIN_POLL_S)
        self._stopping = True
        if self._thread.is_alive():
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._end_cycle)
            self._thread.join()
        elif not self._loop.is_closed():
            self._loop.close()
        self._ledger.drop_all("stopped")
        self._state, self._detail = "stopped", ""

    def _wake(self) -> None:
        with contextlib.suppress(RuntimeError):  # stopped: the snapshot stays queued and is counted
            self._loop.call_soon_threadsafe(self._work.set)

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

    async def _main(self) -> None:
        while not self._stopping:
            self._cycle_task = self._loop.create_task(self._cycle())
            with contextlib.suppress(asyncio.CancelledError):  # retargeted or stopping
                await self._cycle_task
            self._ledger.unsend()

    async def _cycle(self) -> None:
        """Wait for work, stream until that breaks, pause."""
        self._state = "idle" if not self._detail else self._state
        while not self._ledger.waiting():
            await self._sleep_until_work()
        self._answered = False
        pause = self._backoff_s
        try:
            await self._stream()
        except _BrokenError as broken:
            self._state, self._detail = "waiting", str(broken)
        except grpc.aio.AioRpcError as error:
            refused, self._detail = _explain(error, self._target)
            self._state = "refused" if refused else "waiting"
            if refused:
                pause = max(pause, _REFUSED_BACKOFF_S)
        self._ledger.unsend()
        if self._answered:
            self._backoff_s = _FIRST_BACKOFF_S
        else:
            self._backoff_s = min(2 * self._backoff_s, _LONGEST_BACKOFF_S)
        # Jitter: the agents of a site must not come back in step after their broker restarted.
        await asyncio.sleep(pause * random.uniform(0.5, 1.0))

    async def _sleep_until_work(self) -> None:
        self._work.clear()
        if not self._ledger.waiting():  # submitted between the look and the clear
            await self._work.wait()

    def _channel(self) -> grpc.aio.Channel:
        # The one place where TLS comes in. Seals do not depend on it.
        return grpc.aio.insecure_channel(self._target, options=_OPTIONS)

    async def _stream(self) -> None:
        """One stream, from connecting to its end. Always raises."""
        if not self._detail:
            self._state = "connecting"
        async with self._channel() as channel:
            await self._connect(channel)
            stub = stream_pb2_grpc.BrokerStub(channel)  # type: ignore[no-untyped-call]
            call: _Call = stub.Stream()
            self._streams += 1
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
            while not (batch := self._ledger.take()):
                await self._sleep_until_work()
            if self._ledger.in_flight() == len(batch):
                self._progress = time.monotonic()
            message = pb.Batch(stream_nonce=nonce)
            for header, body, tag in batch:
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
        return header.counter

    def _take_ack(self, ack: pb.Ack) -> None:
        sent = self._ledger.unsettled(ack.lane, ack.counter)
        if sent is None:
            return  # dropped meanwhile
        if sent.digest != ack.digest:
            self._forged += 1
        elif ack.status in (pb.ACK_STATUS_ACCEPTED, pb.ACK_STATUS_DUPLICATE):
            self._ledger.settle(ack.lane, ack.counter, None)
        elif ack.status == pb.ACK_STATUS_REJECTED:
            reason = _reason(ack.reason)
            again = self._backfill(sent) if reason in _TOO_LATE and ack.lane == Lane.LIVE else None
            if again is None:
                self._ledger.settle(ack.lane, ack.counter, reason)
            else:
                self._ledger.renew(ack.lane, ack.counter, again)
                self._backfilled += 1


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
