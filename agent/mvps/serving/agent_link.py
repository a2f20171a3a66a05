# SPDX-License-Identifier: Apache-2.0
"""The link to the host's agent: audit packets up, directives down, from a thread of its own (002 sec. 8.1, 8.3).

The engine's thread never waits: ``write`` puts a packet into a queue and ``told`` reads the latest directive. The
link's thread chains the packets, sends a batch as soon as the last one is answered, at least as often as the agent
asks, and takes the answer as what holds from then on. Every stream is a chain of its own; when one ends, what was not
answered is not sent again, but counted, as is what the queue has no room for.

**Failure-safe.** Without an answer for ``STALE_S`` seconds, and before the first, every tenant is told lambda 0: the
model decides alone. The link goes on trying.
"""

from __future__ import annotations

import math
import os
import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import BinaryIO, Final, Protocol

import grpc

from mvps.serving.decoding import OFF
from mvps.surplus.indicators import Band
from mvps.surplus.minutes import Directive
from mvps.surplus.packets import Cap, Chain, State, checked_name, record_header
from mvps.v1 import local_pb2 as pb
from mvps.v1 import local_pb2_grpc

STALE_S: Final = 10.0
ROOM: Final = 8192
# Below the agent's limits: 64 lines, and 64 KiB a message.
_BATCH_LINES: Final = 64
_BATCH_BYTES: Final = 48 * 1024
_FIRST_FLUSH_S: Final = 0.25
_LONGEST_FLUSH_S: Final = 1.0
_PAUSES_S: Final = (0.5, 1.0, 2.0, 5.0, 10.0)


class SpreadReader(Protocol):
    """SSE by tenant, and how many answers are in no figure: ``text_spread.TextSpread``."""

    def read(self) -> Mapping[str, float]:
        """SSE in [0, 1] of every tenant that has one."""

    @property
    def dropped(self) -> int:
        """Answers that are in no figure."""


def engine_name() -> str:
    """A name for this process's chains: host, process, and chance."""
    host = "".join(c if c.isalnum() and c.isascii() else "-" for c in socket.gethostname()[:32]).strip("-") or "host"
    return f"{host}/{os.getpid()}/{secrets.token_hex(4)}"


class AgentLink:
    """A link that is begun with ``start`` and ended with ``close``.

    path: the agent's socket. name: of the chains, see ``engine_name``; a number is added. record: gets every line as
    it is sent, for ``mvps surplus replay``. load, spread: what the engine exports (None: not known now;
    ``engine_load.LoadReader.read``), and SSE by tenant, both read for every batch, in the link's thread.
    """

    def __init__(
        self,
        path: str,
        name: str,
        record: BinaryIO | None = None,
        load: Callable[[], pb.EngineLoad | None] | None = None,
        spread: SpreadReader | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        checked_name(f"{name}.{10**6}")
        self._path = path
        self._name = name
        self._record = record
        self._load = load
        self._spread = spread
        self._clock = clock
        self._queue: deque[Cap] = deque()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._answered: threading.Event | None = None  # of the stream that is open
        self._heard_at = -math.inf
        self._told: dict[str, Directive] = {}
        self._others = OFF
        self._flush_s = _FIRST_FLUSH_S
        self._unanswered = 0
        self._streams = 0
        self._sent = self._lost = 0
        self._problem = "not connected yet"
        self._record_problem = ""
        self._thread = threading.Thread(target=self._run, name="mvps-agent-link", daemon=True)

    def start(self) -> AgentLink:
        """Begin to send."""
        self._thread.start()
        return self

    def close(self, patience_s: float = 2.0) -> None:
        """Send what waits, as far as it goes in this time, and end. Idempotent."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(patience_s)

    def write(self, packet: Cap) -> None:
        """Take a packet; never waits. Without room it is lost and counted."""
        if len(self._queue) >= ROOM:
            self._lost += 1
            return
        self._queue.append(packet)
        if len(self._queue) >= _BATCH_LINES:
            self._wake.set()

    def told(self, tenant: str) -> Directive:
        """What holds for a tenant now."""
        if self._clock() - self._heard_at > STALE_S:
            return OFF
        return self._told.get(tenant, self._others)

    @property
    def sent(self) -> int:
        """Packets that the agent took."""
        return self._sent

    @property
    def lost(self) -> int:
        """Packets that it did not."""
        return self._lost

    @property
    def problem(self) -> str:
        """Why there is no stream, or no record, at the moment; "" while all is well."""
        return self._problem or self._record_problem

    def _run(self) -> None:
        failures = 0
        while not self._stopping.is_set() or (self._queue and not failures):
            before = self._sent
            try:
                with grpc.insecure_channel(f"unix:{self._path}") as channel:
                    self._stream(local_pb2_grpc.LocalStub(channel))  # type: ignore[no-untyped-call]
            except grpc.RpcError as error:
                self._problem = error.details() or error.code().name.lower()
            self._lost += self._unanswered
            self._unanswered = 0
            failures = 0 if self._sent > before else failures + 1
            self._stopping.wait(_PAUSES_S[min(failures, len(_PAUSES_S) - 1)])

    def _stream(self, stub: local_pb2_grpc.LocalStub) -> None:
        self._streams += 1
        answered = self._answered = threading.Event()
        answered.set()
        try:
            for answer in stub.Surplus(self._batches(f"{self._name}.{self._streams}", answered)):
                self._hear(answer)
                answered.set()
        finally:
            self._answered = None

    def _batches(self, name: str, answered: threading.Event) -> Iterator[pb.SurplusBatch]:
        """Batches of one stream, each when the one before is answered. Runs in a thread of gRPC's."""
        chain, lost_before, first = Chain.begin(name), self._lost, True
        spread = self._spread
        dropped_before = spread.dropped if spread is not None else 0
        self._keep(record_header(name))
        while True:
            if not answered.wait(STALE_S):
                return
            answered.clear()
            if not first and len(self._queue) < _BATCH_LINES:
                self._wake.wait(self._flush_s)
            self._wake.clear()
            if self._answered is not answered:
                return  # the stream is gone: what waits is its successor's
            if self._stopping.is_set() and not self._queue:
                return
            batch = pb.SurplusBatch(chain=name if first else "", dropped=self._lost - lost_before)
            first, size = False, 0
            while self._queue and len(batch.lines) < _BATCH_LINES and size < _BATCH_BYTES:
                chain, line = chain.append(self._queue.popleft())
                batch.lines.append(line)
                size += len(line)
                self._keep(line)
            load = self._load() if self._load is not None else None
            if load is not None:
                batch.load.CopyFrom(load)
            if spread is not None:
                batch.spread.update(spread.read())
                batch.answers_dropped = spread.dropped - dropped_before
            self._unanswered = len(batch.lines)
            yield batch

    def _hear(self, answer: pb.SurplusControl) -> None:
        self._told = {one.tenant: _directive(one) for one in answer.tenants}
        self._others = _directive(answer.others)
        self._heard_at = self._clock()
        self._flush_s = min(max(answer.flush_ns / 1e9, 0.01), _LONGEST_FLUSH_S)
        self._sent += self._unanswered
        self._unanswered = 0
        self._problem = ""

    def _keep(self, line: bytes) -> None:
        """Record a line. A disk that fails ends the record, and neither the stream nor the engine."""
        if self._record is None:
            return
        try:
            self._record.write(line + b"\n")
            self._record.flush()
        except OSError as error:
            self._record = None
            self._record_problem = f"no record is kept any more: {error.strerror}"


def _directive(told: pb.TenantControl) -> Directive:
    return Directive(
        told.tenant,
        told.lam,
        told.kl_budget,
        told.dlogits_budget,
        told.sse if told.HasField("sse") else math.nan,
        Band[State(told.state).name],
        told.bh1,
        told.bh2,
        told.look_ahead,
    )
