# SPDX-License-Identifier: Apache-2.0
"""How coherent a group of replicas is, as trailing metadata of an inference server's own gRPC answers (001 IC9.5).

    mvps-coherence: surface="ai.chat", phase=BAU, c1=0.991, c2=0.973, c3=0.964, at=1795322713

A dictionary of structured fields (RFC 8941): the axes that are known, 1 is coherent, as the local agent had them in its
tick of second ``at``. They are the group's, and not of the one response they come with: a client learns whether to
trust *replicas* now. Nothing is sent where the agent is silent or knows no such surface.

C_4 and COHERENT_BUT_FALSE, which the text lists here too, are for authorised operators only (001 sec. 28 b); every
client reads trailers, so they are never in one (docs/errata.md).
"""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Final

import grpc
import grpc.aio

from mvps.v1 import local_pb2 as pb
from mvps.v1 import local_pb2_grpc
from mvps.v1.snapshot_pb2 import Phase, Surface

KEY: Final = "mvps-coherence"
STALE_S: Final = 10.0
_PAUSES_S: Final = (0.5, 1.0, 2.0, 5.0, 10.0)
_AXES: Final = ("c1", "c2", "c3")


def rendered(surface: Surface, tick_time_ns: int) -> str:
    """The value for a surface as it stands in a tick."""
    phase = surface.decision.phase if surface.HasField("decision") else Phase.PHASE_CALIBRATING
    shown = [f'surface="{surface.name}"', f"phase={Phase.Name(phase).removeprefix('PHASE_')}"]
    shown += [f"{axis}={getattr(surface.vector, axis):.3f}" for axis in _AXES if surface.vector.HasField(axis)]
    return ", ".join([*shown, f"at={tick_time_ns // 10**9}"])


class CoherenceWatch:
    """Follows one surface of the local agent, from ``start`` to ``close``, in a thread of its own.

    path: the agent's socket; whoever runs the server has to be in its group. surface: "ai.NAME", as in
    ``mvps status``.
    """

    def __init__(self, path: str, surface: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._surface = surface
        self._clock = clock
        self._latest = ("", 0.0)  # value, and when it was heard
        self._problem = "not connected yet"
        self._lock = threading.Lock()
        self._call: Any = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mvps-coherence-watch", daemon=True)

    def start(self) -> CoherenceWatch:
        """Begin to follow."""
        self._thread.start()
        return self

    def close(self, patience_s: float = 2.0) -> None:
        """End. Idempotent."""
        self._stopping.set()
        with self._lock:
            if self._call is not None:
                self._call.cancel()
        if self._thread.is_alive():
            self._thread.join(patience_s)

    def value(self) -> str:
        """What to send now; "" for nothing. Never waits. An HTTP server can send it as the field ``KEY``."""
        value, heard = self._latest
        return value if self._clock() - heard <= STALE_S else ""

    @property
    def problem(self) -> str:
        """Why nothing is sent at the moment, or will soon be; "" while all is well."""
        return self._problem

    def _run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            try:
                with grpc.insecure_channel(f"unix:{self._path}") as channel:
                    for update in self._watch(local_pb2_grpc.LocalStub(channel)):  # type: ignore[no-untyped-call]
                        failures = 0
                        self._take(update)
            except grpc.RpcError as error:
                told = error.details() or error.code().name.lower()
                self._problem = (
                    f"the agent at {self._path} does not answer ({told}): systemctl status mvps-agent; "
                    "this process's user has to be in the socket's group"
                )
            self._stopping.wait(_PAUSES_S[min(failures, len(_PAUSES_S) - 1)])
            failures += 1

    def _watch(self, stub: local_pb2_grpc.LocalStub) -> Iterator[pb.TickUpdate]:
        with self._lock:
            if self._stopping.is_set():
                return
            self._call = stub.Watch(pb.WatchRequest(backlog=1))
        yield from self._call

    def _take(self, update: pb.TickUpdate) -> None:
        snapshot = update.snapshot
        found = [one for one in snapshot.surfaces if one.name == self._surface]
        if found:
            self._latest = rendered(found[0], snapshot.tick_time_ns), self._clock()
            self._problem = ""
        else:
            self._latest = "", 0.0
            names = ", ".join(sorted(one.name for one in snapshot.surfaces)) or "none"
            self._problem = f"the agent has no surface {self._surface} (it has {names}): is mvps ai probe running?"


class TrailerInterceptor(grpc.ServerInterceptor):
    """For ``grpc.server(..., interceptors=[...])``: every answer ends with the value, whatever else it ends with."""

    def __init__(self, watch: CoherenceWatch) -> None:
        self._watch = watch

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """See ``grpc.ServerInterceptor``."""
        handler = continuation(handler_call_details)
        return None if handler is None else _with(handler, _in_thread(self._watch, handler))


class AioTrailerInterceptor(grpc.aio.ServerInterceptor):
    """For ``grpc.aio.server(interceptors=[...])``.

    Methods that are no coroutines, which such a server runs in threads, are left alone: the context they get does not
    say what they end their answer with.
    """

    def __init__(self, watch: CoherenceWatch) -> None:
        self._watch = watch

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """See ``grpc.aio.ServerInterceptor``."""
        handler = await continuation(handler_call_details)
        return None if handler is None else _with(handler, _in_loop(self._watch, handler))


def _add(watch: CoherenceWatch, context: Any) -> None:
    """Put the value behind whatever the server itself ends its answer with."""
    value = watch.value()
    others = tuple(entry for entry in context.trailing_metadata() or () if entry[0] != KEY)
    context.set_trailing_metadata((*others, (KEY, value)) if value else others)


def _behaviour(handler: Any) -> Any:
    return handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream


def _with(handler: Any, behaviour: Any) -> Any:
    """The handler with another behaviour."""
    make = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[handler.request_streaming, handler.response_streaming]
    return make(behaviour, handler.request_deserializer, handler.response_serializer)


def _in_thread(watch: CoherenceWatch, handler: Any) -> Any:
    inner = _behaviour(handler)

    def unary(request: Any, context: Any) -> Any:
        try:
            return inner(request, context)
        finally:
            _add(watch, context)

    def stream(request: Any, context: Any) -> Iterator[Any]:
        try:
            yield from inner(request, context)
        finally:
            _add(watch, context)

    return stream if handler.response_streaming else unary


def _in_loop(watch: CoherenceWatch, handler: Any) -> Any:
    inner = _behaviour(handler)

    # Before too: here an answer that is aborted has left when the behaviour ends.
    async def called(request: Any, context: Any) -> Any:
        _add(watch, context)
        try:
            return await inner(request, context)
        finally:
            _add(watch, context)

    async def iterated(request: Any, context: Any) -> AsyncIterator[Any]:
        _add(watch, context)
        try:
            async for response in inner(request, context):
                yield response
        finally:
            _add(watch, context)

    if inspect.isasyncgenfunction(inner):
        return iterated
    return called if inspect.iscoroutinefunction(inner) else inner
