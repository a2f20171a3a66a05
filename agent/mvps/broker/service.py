# SPDX-License-Identifier: Apache-2.0
"""The wire side of a broker: its address, gRPC's names for its methods, and who may ask.

Streams travel as bytes, which the gate reads. Questions are answered on the broker's own host unless the settings say
otherwise: what they tell is nobody else's business. C_4 of a language model and the label that follows from it
are for operators (:mod:`mvps.trust.withheld`): who asks on their socket, or shows a client certificate of theirs.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import Any, Final, NoReturn, Protocol, TypeAlias, TypeVar

import grpc
from google.protobuf.message import Message

from mvps.broker.answers import Answers
from mvps.broker.history import HistoryError
from mvps.broker.tables import StoreError
from mvps.trust import limits
from mvps.trust.tls import ServerTls
from mvps.trust.withheld import withhold
from mvps.v1 import stream_pb2 as pb

SERVICE: Final = "mvps.v1.Broker"

OPTIONS: Final = (
    # Two brokers on one port would share the streams between them and split the replay state.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", limits.MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # A client that pings more often than this is told to calm down, and then its connection is closed.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 2),
    ("grpc.max_metadata_size", 8 * 1024),
    # No pings to measure the road: a message is small against the default window.
    ("grpc.http2.bdp_probe", 0),
)

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
_Q = TypeVar("_Q")
_A = TypeVar("_A")


class AddressError(Exception):
    """The broker cannot listen where it should. The message says what to do."""


class Served(Protocol):
    """What a service needs of its broker."""

    @property
    def answers(self) -> Answers:
        """Answers about bundles."""

    async def stream(self, requests: object, context: Context, /) -> None:
        """One sender's stream: serialised Batch messages in, serialised AckBatch messages out."""

    def info(self) -> pb.ServerInfo:
        """Answer to ServerInfo."""

    def vantages(self) -> pb.ListVantagesResponse:
        """Answer to ListVantages."""

    def history(self, request: pb.GetHistoryRequest, /) -> Awaitable[pb.GetHistoryResponse]:
        """Answer to GetHistory."""

    def order_surplus(self, request: pb.OrderSurplusRequest, /) -> Awaitable[pb.OrderSurplusResponse]:
        """Answer to OrderSurplus; ValueError if it cannot be carried out."""

    def record_incident(self, request: pb.RecordIncidentRequest, /) -> pb.RecordIncidentResponse:
        """Answer to RecordIncident; ValueError if it is none."""


class Service:
    """The methods of mvps.v1.Broker for one broker.

    remote_queries: answer questions from other hosts too. operators: names in client certificates that are shown what
    is for operators; None on their own socket, where everybody is one and no snapshot is taken.
    """

    def __init__(self, broker: Served, *, remote_queries: bool, operators: Collection[str] | None) -> None:
        self._broker = broker
        self._remote_queries = remote_queries
        self._operators = None if operators is None else frozenset(name.encode() for name in operators)

    def handler(self) -> grpc.GenericRpcHandler:
        """For the server."""
        queries: dict[str, tuple[Any, type[Message]]] = {
            "ServerInfo": (self._server_info, pb.ServerInfoRequest),
            "ListVantages": (self._list_vantages, pb.ListVantagesRequest),
            "GetHistory": (self._get_history, pb.GetHistoryRequest),
            "ListBundles": (self._list_bundles, pb.ListBundlesRequest),
            "GetBundle": (self._get_bundle, pb.GetBundleRequest),
            "GetVantage": (self._get_vantage, pb.GetVantageRequest),
            "ListFleetDecisions": (self._list_fleet_decisions, pb.ListFleetDecisionsRequest),
            "ListServiceTicks": (self._list_service_ticks, pb.ListServiceTicksRequest),
            "ListSurplusChanges": (self._list_surplus_changes, pb.ListSurplusChangesRequest),
            "GetSurplusReport": (self._get_surplus_report, pb.GetSurplusReportRequest),
            "OrderSurplus": (self._order_surplus, pb.OrderSurplusRequest),
            "RecordIncident": (self._record_incident, pb.RecordIncidentRequest),
        }
        methods = {
            name: grpc.unary_unary_rpc_method_handler(
                method, request_deserializer=asked.FromString, response_serializer=_serialize
            )
            for name, (method, asked) in queries.items()
        }
        if self._operators is not None:
            methods["Stream"] = grpc.stream_stream_rpc_method_handler(self._broker.stream)
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    async def _server_info(self, request: pb.ServerInfoRequest, context: Context) -> pb.ServerInfo:
        await self._local_only(context)
        return self._broker.info()

    async def _list_vantages(self, request: pb.ListVantagesRequest, context: Context) -> pb.ListVantagesResponse:
        operator = self._is_operator(context)
        await self._local_only(context)
        answer = self._broker.vantages()
        if not operator:
            answer.withheld.extend(withhold(one for vantage in answer.vantages for one in vantage.latest.surfaces))
        return answer

    async def _get_history(self, request: pb.GetHistoryRequest, context: Context) -> pb.GetHistoryResponse:
        operator = self._is_operator(context)  # asked once it has ended, gRPC ends the process
        await self._local_only(context)
        try:
            answer = await self._broker.history(request)
        except StoreError as error:
            await abort(context, grpc.StatusCode.UNAVAILABLE, str(error))
        if not operator:
            answer.withheld.extend(withhold(one for row in answer.rows for one in row.snapshot.surfaces))
        return answer

    async def _list_bundles(self, request: pb.ListBundlesRequest, context: Context) -> pb.ListBundlesResponse:
        return await self._ask(self._broker.answers.bundles, request, context)

    async def _get_bundle(self, request: pb.GetBundleRequest, context: Context) -> pb.GetBundleResponse:
        return await self._ask(self._broker.answers.bundle, request, context)

    async def _get_vantage(self, request: pb.GetVantageRequest, context: Context) -> pb.GetVantageResponse:
        return await self._ask(self._broker.answers.vantage, request, context)

    async def _list_fleet_decisions(
        self, request: pb.ListFleetDecisionsRequest, context: Context
    ) -> pb.ListFleetDecisionsResponse:
        return await self._ask(self._broker.answers.fleet_decisions, request, context)

    async def _list_service_ticks(
        self, request: pb.ListServiceTicksRequest, context: Context
    ) -> pb.ListServiceTicksResponse:
        return await self._ask(self._broker.answers.service_ticks, request, context)

    async def _list_surplus_changes(
        self, request: pb.ListSurplusChangesRequest, context: Context
    ) -> pb.ListSurplusChangesResponse:
        return await self._ask(self._broker.answers.surplus_changes, request, context)

    async def _get_surplus_report(
        self, request: pb.GetSurplusReportRequest, context: Context
    ) -> pb.GetSurplusReportResponse:
        return await self._ask(self._broker.answers.surplus_report, request, context)

    async def _order_surplus(self, request: pb.OrderSurplusRequest, context: Context) -> pb.OrderSurplusResponse:
        await self._operators_only(context)
        try:
            return await self._broker.order_surplus(request)
        except ValueError as error:
            await abort(context, grpc.StatusCode.FAILED_PRECONDITION, str(error))

    async def _record_incident(self, request: pb.RecordIncidentRequest, context: Context) -> pb.RecordIncidentResponse:
        await self._operators_only(context)
        try:
            return self._broker.record_incident(request)
        except ValueError as error:
            await abort(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))

    async def _operators_only(self, context: Context) -> None:
        operator = self._is_operator(context)
        await self._local_only(context)
        if not operator:
            await abort(
                context,
                grpc.StatusCode.PERMISSION_DENIED,
                "orders are for operators: give them on operator_socket, or with a certificate that operators names",
            )

    async def _ask(self, question: Callable[[_Q], _A], request: _Q, context: Context) -> _A:
        await self._local_only(context)
        try:
            return await asyncio.to_thread(question, request)
        except HistoryError as error:
            await abort(context, grpc.StatusCode.UNAVAILABLE, str(error))

    def _is_operator(self, context: Context) -> bool:
        """Whether whoever asks is shown what is for operators. A name counts in a certificate that TLS has checked."""
        if self._operators is None:
            return True
        if not self._operators:
            return False
        shown = context.auth_context()
        kinds = ("x509_common_name", "x509_subject_alternative_name")
        names = {bytes(name) for kind in kinds for name in shown.get(kind, ())}
        return not self._operators.isdisjoint(names)

    async def _local_only(self, context: Context) -> None:
        local = context.peer().startswith(("unix:", "ipv4:127.", "ipv6:[::1]", "ipv6:%5B::1%5D"))
        if not (local or self._remote_queries):
            await abort(
                context,
                grpc.StatusCode.PERMISSION_DENIED,
                "queries are answered on the broker's own host: ask there, or set remote_queries = true",
            )


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()


async def abort(context: Context, code: grpc.StatusCode, text: str) -> NoReturn:
    """End a call with a status."""
    await context.abort(code, text)
    raise AssertionError("abort returns never")


def bind(server: grpc.aio.Server, listen: str, tls: ServerTls | None) -> str:
    """Bind ``listen`` and return the address a client can use. A Unix socket has permissions and needs no TLS."""
    if listen.startswith("unix:"):
        _make_room(Path(listen.removeprefix("unix:")), "listen")
    try:
        if tls is None or listen.startswith("unix:"):
            port = server.add_insecure_port(listen)
        else:
            port = server.add_secure_port(listen, tls.credentials())
    except RuntimeError:
        port = 0
    if port == 0:
        raise AddressError(
            f"cannot listen on {listen}: is another broker running there? ss -ltnp shows who; otherwise set "
            "listen to an address of this host and a free port"
        )
    if listen.startswith("unix:"):
        Path(listen.removeprefix("unix:")).chmod(0o660)
        return listen
    host, _, _ = listen.rpartition(":")
    return f"{host}:{port}"


def bind_operators(server: grpc.aio.Server, path: Path) -> None:
    """Bind the operators' socket, for the broker's user and group; a directory with setgid gives it another group.

    AddressError if it cannot be had.
    """
    _make_room(path, "operator_socket")
    # Bound under this mask, so that it is never open to others, not even for a moment.
    before = os.umask(0o117)
    try:
        bound = server.add_insecure_port(f"unix:{path}")
    except RuntimeError:
        bound = 0
    finally:
        os.umask(before)
    if not bound:
        raise AddressError(f"cannot bind {path}: is its directory there and writable? Otherwise change operator_socket")


def _make_room(path: Path, setting: str) -> None:
    """Refuse to take over a live socket or another file: gRPC replaces a socket without asking."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        if path.exists() and not path.is_socket():
            raise AddressError(f"{path} exists and is no socket: choose another path for {setting}")
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            pass
        except OSError as error:
            raise AddressError(f"cannot use {path} for {setting}: {error.strerror or error}") from None
        else:
            raise AddressError(f"another process serves {path}: stop it, or choose another path for {setting}")
