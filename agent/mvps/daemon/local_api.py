# SPDX-License-Identifier: Apache-2.0
"""The agent's local API (proto/mvps/v1/local.proto) on a Unix socket.

Synchronous gRPC with a few threads: they sleep until a request or a new tick comes, and only read published
state, so the tick thread never waits for them. Whoever may open the socket (mode 0660, owner and group)
may also accept baselines, reload, report surfaces, and send audit packets of an engine.

A second socket, if one is set, is for operators: there, and there only, C_4 and the lateral label of a surface that
watches a language model are shown (:mod:`mvps.trust.withheld`). The kernel says who may open which.
"""

from __future__ import annotations

import grp
import os
import stat
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc

from mvps.daemon import metrics
from mvps.daemon.explain import sentence
from mvps.daemon.service import Agent
from mvps.daemon.state import AgentState
from mvps.trust.withheld import FIELDS, withhold
from mvps.v1 import local_pb2 as pb
from mvps.v1 import local_pb2_grpc
from mvps.v1.snapshot_pb2 import LossTotals, Phase

# Each watcher and each engine holds one thread; two more are left for short calls.
MAX_WATCHERS = 6
SHORT_CALLS = 2

# How often a watcher with nothing to see looks whether its client is still there.
IDLE_SECONDS = 5.0

_WITHHELD = "C_4 and the label that follows from it are shown to operators: ask on [local] operator_socket."


class LocalApiError(Exception):
    """The socket cannot be served; the message says what to do."""


class LocalApi:
    """Serves one agent on ``path`` until :meth:`close`.

    group: name of the group that may connect, "" for the process's own. operators: whether the socket is theirs, and
    shows what others are not shown; without a group only its owner may then connect.
    """

    def __init__(self, agent: Agent, path: Path, group: str = "", *, operators: bool = False):
        self._path = path
        self._published = agent.published
        setting = "operator_socket" if operators else "socket"
        gid = _group_id(group) if group else -1
        _make_room(path, setting)
        workers = MAX_WATCHERS + agent.settings.engines.max_streams + SHORT_CALLS
        pool = futures.ThreadPoolExecutor(workers, thread_name_prefix="mvps-local")
        self._server = grpc.server(
            pool,
            maximum_concurrent_rpcs=4 * workers,
            options=[("grpc.max_receive_message_length", 64 * 1024), ("grpc.so_reuseport", 0)],
        )
        local_pb2_grpc.add_LocalServicer_to_server(  # type: ignore[no-untyped-call]
            _Local(agent, operators), self._server
        )
        # The socket is bound under this mask, so it is never open to others, not even for a moment.
        before = os.umask(0o177 if operators else 0o117)
        try:
            self._server.add_insecure_port(f"unix:{path}")
        except RuntimeError:
            raise LocalApiError(
                f"cannot bind {path}: is its directory there and writable? Set [local] {setting} to another path"
            ) from None
        finally:
            os.umask(before)
        if gid >= 0:
            try:
                os.chown(path, -1, gid)
                os.chmod(path, 0o660)  # not before the group is the right one
            except OSError as error:
                raise LocalApiError(
                    f"cannot give {path} to group {group}: {error.strerror}; run the agent as a member of it"
                ) from None
        self._server.start()

    def close(self) -> None:
        """End all streams and remove the socket."""
        self._published.end()
        self._server.stop(grace=0.2).wait()
        self._path.unlink(missing_ok=True)


def _group_id(name: str) -> int:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise LocalApiError(
            f'no group "{name}" on this host: groupadd --system {name}, or change [local] group'
        ) from None


def _make_room(path: Path, setting: str) -> None:
    """Refuse to take over a live socket or another file. gRPC itself replaces a socket that nobody serves."""
    import socket

    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise LocalApiError(f"cannot look at {path}: {error.strerror}") from None
    if not stat.S_ISSOCK(mode):
        raise LocalApiError(f"{path} exists and is no socket; remove it, or set [local] {setting} to another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return
        except OSError as error:
            raise LocalApiError(f"cannot connect to the old socket {path}: {error.strerror}") from None
        else:
            raise LocalApiError(f"another agent answers on {path}; stop it, or set [local] {setting} to another path")


def tick_update(state: AgentState, missed: int = 0) -> pb.TickUpdate:
    """The state as the live view wants it."""
    return pb.TickUpdate(
        snapshot=state.snapshot,
        vantages=_vantages(state),
        stream=state.stream,
        missed=missed,
    )


def status(state: AgentState) -> pb.StatusResponse:
    """The state as ``mvps status`` wants it."""
    usage = metrics.process_usage()
    response = pb.StatusResponse(
        version=state.version,
        vantage_id=state.vantage_id,
        pid=os.getpid(),
        started_ns=state.started_ns,
        tick=state.snapshot.tick,
        tick_period_ns=state.tick_ns,
        ticks=pb.TickCounts(done=state.ticks, skipped={k: v for k, v in state.irregular.items() if v}),
        vantages=_vantages(state),
        stream=state.stream,
        losses=LossTotals(by_cause=state.losses),
        key_id=state.key_id,
        resident_bytes=usage.resident_bytes,
        cpu_seconds=usage.cpu_seconds,
        config_path=state.config_path,
    )
    for surface in state.snapshot.surfaces:
        response.surfaces.add(
            name=surface.name,
            phase=Phase.Value(f"PHASE_{metrics.phase_name(surface)}"),
            calibrated_ticks=surface.calibrated_ticks,
            needed_ticks=surface.needed_ticks,
            baseline_id=surface.decision.baseline_id,
        )
    return response


def explanation(state: AgentState, surface: str, operator: bool) -> pb.ExplainResponse:
    """Decisions with their sentences, for one surface or, with "", all. KeyError for an unknown one.

    operator: whether whoever asks is shown what others are not.
    """
    chosen = [s for s in state.snapshot.surfaces if surface in ("", s.name)]
    if surface and not chosen:
        raise KeyError(f'no surface "{surface}"; there are {", ".join(s.name for s in state.snapshot.surfaces)}')
    response = pb.ExplainResponse(
        tick=state.snapshot.tick,
        tick_time_ns=state.snapshot.tick_time_ns,
        surfaces=chosen,
    )
    left_out = [[] if operator else withhold([copy]) for copy in response.surfaces]
    response.withheld.extend(name for name in FIELDS if any(name in names for names in left_out))
    for copy, names in zip(response.surfaces, left_out, strict=True):
        text = _with_problem(sentence(copy), state.problems.get(copy.name, ""))
        response.sentences.append(f"{text} {_WITHHELD}" if names else text)
        for observation in copy.observations:
            for hashed in observation.objects.hashes:
                if name := state.names.get(hashed, ""):
                    observation.objects.names[hashed] = name
    return response


def _with_problem(text: str, problem: str) -> str:
    return f"{text} It cannot end yet: {problem}." if problem else text


def _vantages(state: AgentState) -> list[pb.VantageState]:
    return [
        pb.VantageState(name=name, surface=state.surface_of.get(name, ""), state=v.state, reason=v.reason)
        for name, v in state.vantages.items()
    ]


class _Local(local_pb2_grpc.LocalServicer):
    def __init__(self, agent: Agent, operators: bool):
        self._agent = agent
        self._operators = operators
        self._watchers = threading.BoundedSemaphore(MAX_WATCHERS)

    def Status(self, request: pb.StatusRequest, context: grpc.ServicerContext) -> pb.StatusResponse:  # noqa: N802
        return status(self._agent.published.state)

    def Watch(self, request: pb.WatchRequest, context: grpc.ServicerContext) -> Iterator[pb.TickUpdate]:  # noqa: N802
        published = self._agent.published
        version, missed, sent = published.version, 0, 0
        backlog = published.recent(request.backlog) if request.backlog else []
        for state in backlog[: request.ticks or None]:
            sent += 1
            yield self._shown(tick_update(state))
        for newest, state in self._changes(context, version):
            if request.ticks and sent >= request.ticks:
                return
            missed += max(newest - version - 1, 0)
            version = newest
            sent += 1
            yield self._shown(tick_update(state, missed))
            if request.ticks and sent >= request.ticks:
                return

    def Snapshots(  # noqa: N802
        self, request: pb.SnapshotsRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.SnapshotsUpdate]:
        version = self._agent.published.version
        records = list(self._agent.uplink.records())
        shown = records[-request.limit :] if request.limit else records
        yield pb.SnapshotsUpdate(records=shown)
        if not request.follow:
            return
        seen = {(r.counter, r.lane): r.state for r in records}
        for _ in self._changes(context, version):
            records = list(self._agent.uplink.records())
            changed = [r for r in records if seen.get((r.counter, r.lane)) != r.state]
            seen = {(r.counter, r.lane): r.state for r in records}
            if changed:
                yield pb.SnapshotsUpdate(records=changed)

    def Explain(self, request: pb.ExplainRequest, context: grpc.ServicerContext) -> pb.ExplainResponse:  # noqa: N802
        try:
            return explanation(self._agent.published.state, request.surface, self._operators)
        except KeyError as error:
            context.abort(grpc.StatusCode.NOT_FOUND, str(error.args[0]))
            raise  # abort() raises already

    def AcceptBaseline(  # noqa: N802
        self, request: pb.AcceptBaselineRequest, context: grpc.ServicerContext
    ) -> pb.AcceptBaselineResponse:
        try:
            baseline = self._agent.accept_baseline(request.surface)
        except (KeyError, ValueError) as error:
            return pb.AcceptBaselineResponse(accepted=False, detail=str(error.args[0]))
        return pb.AcceptBaselineResponse(accepted=True, detail=baseline)

    def Reload(self, request: pb.ReloadRequest, context: grpc.ServicerContext) -> pb.ReloadResponse:  # noqa: N802
        outcome = self._agent.reload()
        return pb.ReloadResponse(applied=outcome.applied, needs_restart=outcome.needs_restart, error=outcome.error)

    def ReportSurface(  # noqa: N802
        self, request: pb.ReportSurfaceRequest, context: grpc.ServicerContext
    ) -> pb.ReportSurfaceResponse:
        problem = self._agent.reported.take(request.surface, request.valid_ns)
        return pb.ReportSurfaceResponse(taken=not problem, detail=problem)

    def _shown(self, update: pb.TickUpdate) -> pb.TickUpdate:
        """The update as this socket's callers may see it."""
        if not self._operators:
            update.withheld.extend(withhold(update.snapshot.surfaces))
        return update

    def Surplus(  # noqa: N802
        self, requests: Iterator[pb.SurplusBatch], context: grpc.ServicerContext
    ) -> Iterator[pb.SurplusControl]:
        if not self._agent.settings.engines.max_streams:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "this agent takes no engines ([engines] max_streams)")
        from mvps.daemon.engines import Refused  # loaded when there is an engine

        engines = self._agent.engines()
        stream = None
        try:
            for batch in requests:
                if stream is None:
                    stream = engines.open(batch.chain)
                answer = engines.take(stream, batch)
                if pause_s := engines.pause_s(len(batch.lines)):
                    time.sleep(pause_s)
                yield answer
        except Refused as refused:
            code = grpc.StatusCode.RESOURCE_EXHAUSTED if refused.full else grpc.StatusCode.INVALID_ARGUMENT
            context.abort(code, str(refused))
        finally:
            if stream is not None:
                engines.close(stream)

    def SurplusStatus(  # noqa: N802
        self, request: pb.SurplusStatusRequest, context: grpc.ServicerContext
    ) -> pb.SurplusStatusResponse:
        return self._agent.engine_status()

    def _changes(self, context: grpc.ServicerContext, version: int) -> Iterator[tuple[int, AgentState]]:
        """States as they are published, until client or server ends the call."""
        if not self._watchers.acquire(blocking=False):
            context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{MAX_WATCHERS} watchers are connected already; close a `mvps top` or --follow",
            )
        try:
            while context.is_active() and not self._agent.published.ended:
                newest, state = self._agent.published.wait(version, IDLE_SECONDS)
                if newest > version:
                    version = newest
                    yield newest, state
        finally:
            self._watchers.release()
