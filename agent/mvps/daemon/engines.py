# SPDX-License-Identifier: Apache-2.0
"""Serving engines of this host: audit packets in, lambda, budgets and triggers back (002 sec. 8.2, 8.3, 11.2).

A stream of the local API is one hash chain of ``cap.v1`` lines. Every batch is verified before anything of it counts,
and a line that does not follow, or holds what its schema does not know, ends the stream. What is kept of the packets
are sums per minute and tenant (:mod:`mvps.surplus.minutes`); the chains' heads travel in the host's sealed snapshots,
so that whoever has the lines can prove that they are all there. So does the health of every minute that was closed
(:mod:`mvps.surplus.sealed_health`), which is how a broker hears of it.

Limits: a message of the local API's size, lines a batch, streams, tenants, packets a second; what is refused is counted
by cause. Batches are verified in their stream's own thread; the lock is held for adding up, never across I/O.

Imported when the first engine connects: a host without engines does not pay for it.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, NoReturn

from mvps.daemon import log
from mvps.daemon.metrics import phase_name
from mvps.daemon.state import EngineFigures, TenantFigures
from mvps.surplus import sealed_health
from mvps.surplus.minutes import MAX_TENANTS, PHASES, Bound, Directive, Load, Minutes
from mvps.surplus.packets import (
    Cap,
    Chain,
    ChainError,
    HealthMinute,
    PacketError,
    Policy,
    State,
    checked_name,
    follow,
    heads_digest,
    parse,
    render,
)
from mvps.v1 import local_pb2 as pb

if TYPE_CHECKING:
    from mvps.coherence.observation import Observation
    from mvps.v1.snapshot_pb2 import Snapshot

EXTENSION: Final = "mvps.surplus/heads"
MAX_LINES: Final = 64
# Streams that ended and whose heads have not been sealed yet are kept beside those that are open.
MAX_STREAMS_KEPT: Final = 64
# What a broker may say of policies at a time, how far its clock may be ahead, and how long what it says may hold.
MAX_POLICY_BYTES: Final = 64 * 1024
_POLICY_AHEAD: Final = timedelta(seconds=60)
_POLICY_LASTS: Final = timedelta(minutes=10)
# Minutes that wait for a snapshot: all tenants' for four of them.
MAX_HEALTH_WAITING: Final = 4 * MAX_TENANTS
FLUSH_NS: Final = 250_000_000
PACKETS_PER_S: Final = 2000.0
_BURST_S: Final = 1.0
_MOST: Final = 2**32

_log = log.logger("engines")


class Refused(Exception):  # noqa: N818 - it ends a stream; "Refused" reads as what it is
    """A stream that ends here; the message says why. full: because there is no room, which may change."""

    def __init__(self, message: str, *, full: bool = False):
        super().__init__(message)
        self.full = full


@dataclass(slots=True)
class Stream:
    """One engine's stream. sealed: length of its chain when its head was last put into a snapshot."""

    chain: Chain
    sealed: int = 0
    connected: bool = True
    load: Load | None = None
    dropped: int = 0
    answers_dropped: int = 0
    tenants: set[str] = field(default_factory=set)


class Engines:
    """What the engines of one host send, and what they are told. Any thread may call.

    tick_ns: T; engines ask at least so often, so that a change reaches them within one tick.
    most: streams that may be open at a time. host: its vantage id. policy: what becomes of a broker's policies, "off",
    "advice" or "apply".
    clock: wall clock in nanoseconds. steady: seconds of a clock that is never set.
    """

    def __init__(
        self,
        tick_ns: int,
        most: int,
        clock: Callable[[], int] = time.time_ns,
        steady: Callable[[], float] = time.monotonic,
        host: str = "",
        policy: str = "advice",
    ) -> None:
        self._clock = clock
        self._steady = steady
        self._paid_until = -math.inf
        self._most = most
        self._flush_ns = min(tick_ns, FLUSH_NS)
        self._lock = threading.Lock()
        self._streams: dict[str, Stream] = {}
        self._minutes = Minutes(clock())
        self._packets = 0
        self._refused: Counter[str] = Counter()
        self._states: dict[str, State] = {}
        self._health: deque[bytes] = deque()
        self._host = host
        self._mode = policy
        self._policies: dict[str, Policy] = {}
        self._handed = b""

    def open(self, name: str) -> Stream:
        """A new stream, whose chain has this name. Refused for want of room or of a name of its own."""
        try:
            checked_name(name)
        except PacketError as error:
            self._refuse("name", str(error))
        with self._lock:
            if name in self._streams:
                problem, full = f"a chain {name} is here already: every stream begins a new one", False
            elif sum(stream.connected for stream in self._streams.values()) >= self._most:
                problem, full = f"{self._most} engines are connected already ([engines] max_streams)", True
            else:
                if len(self._streams) >= MAX_STREAMS_KEPT:
                    oldest = next(kept for kept, one in self._streams.items() if not one.connected)
                    gone = self._streams.pop(oldest)
                    self._refused["unsealed"] += gone.chain.length > gone.sealed
                stream = self._streams[name] = Stream(Chain.begin(name))
                return stream
        return self._refuse("streams" if full else "name", problem, full=full)

    def take(self, stream: Stream, batch: pb.SurplusBatch) -> pb.SurplusControl:
        """Verify a batch, add it up and answer it. Refused ends the stream."""
        if (
            len(batch.lines) > MAX_LINES
            or len(batch.spread) > MAX_TENANTS
            or max(batch.dropped, batch.answers_dropped) > _MOST
        ):
            self._refuse("batch", f"a batch has at most {MAX_LINES} lines, {MAX_TENANTS} tenants, {_MOST} dropped")
        if batch.chain not in ("", stream.chain.name):
            self._refuse("batch", f"this stream is the chain {stream.chain.name}: a new chain takes a new stream")
        try:
            chain, caps = follow(stream.chain, batch.lines, Cap)
        except ChainError as error:
            self._refuse("chain", str(error))
        except PacketError as error:
            self._refuse("schema", str(error))
        load = _load(batch.load) if batch.HasField("load") else None
        now = self._clock()
        with self._lock:
            self._bind(now)
            if batch.HasField("load") and load is None:
                self._refused["load"] += 1
            # The engine counts from its stream's beginning, and does not count backwards.
            dropped = max(batch.dropped, stream.dropped)
            answers_dropped = max(batch.answers_dropped, stream.answers_dropped)
            self._refused["dropped_by_engine"] += dropped - stream.dropped
            self._refused["answers_dropped_by_engine"] += answers_dropped - stream.answers_dropped
            stream.chain, stream.load = chain, load
            stream.dropped, stream.answers_dropped = dropped, answers_dropped
            self._packets += len(caps)
            self._minutes.take(caps, now)
            for tenant, sse in batch.spread.items():
                self._minutes.note_spread(tenant, sse)
            closed = self._close_due(now)
            # Of those that were taken: a stream can name any number of tenants, and there is room for so many.
            named = {cap.tenant for cap in caps} | stream.tenants
            stream.tenants = {tenant for tenant in self._minutes.tenants if tenant in named}
            answer = pb.SurplusControl(
                tenants=[_control(self._minutes.directive(tenant)) for tenant in sorted(stream.tenants)],
                others=_control(self._minutes.directive("")),
                flush_ns=self._flush_ns,
                length=chain.length,
            )
        self._tell(closed)
        return answer

    def pause_s(self, packets: int) -> float:
        """How long the answer to so many packets has to wait, so that all streams together keep PACKETS_PER_S.

        An engine sends no next batch before its answer: what it brings beyond that it has to keep or to drop, so that
        one that runs wild does not keep the agent from its ticks. An empty batch counts as a packet.
        """
        now = self._steady()
        with self._lock:
            self._paid_until = max(self._paid_until, now - _BURST_S) + max(packets, 1) / PACKETS_PER_S
            return max(self._paid_until - now, 0.0)

    def close(self, stream: Stream) -> None:
        """The stream ended; its head stays until it is sealed."""
        with self._lock:
            stream.connected = False
            stream.load = None

    def tick(self, snapshot: Snapshot, observations: Mapping[str, Observation], elapsed_ns: int) -> None:
        """One tick of the host: its pressure is noted; heads that moved and closed minutes go into the snapshot."""
        flows = host_flows(snapshot, observations, elapsed_ns)
        now = self._clock()
        with self._lock:
            self._bind(now)
            self._minutes.note_host(flows, now)
            closed = self._close_due(now)
            moved = [stream for stream in self._streams.values() if stream.chain.length > stream.sealed]
            heads = [stream.chain for stream in moved]
            for stream in moved:
                stream.sealed = stream.chain.length
            health = sealed_health.pack(self._health)
        self._tell(closed)
        if heads:
            snapshot.extensions[EXTENSION] = sealed_heads(heads)
        if health:
            snapshot.extensions[sealed_health.NAME] = health

    def hand(self, policies: bytes) -> None:
        """What a broker said last of the policies of this host's tenants: all that hold; b"" for nothing.

        It came under the broker's seal for this host. What is not for this host, has expired or is no policy is refused
        and counted by cause; what was in force before it ends.
        """
        if policies is self._handed or not policies:
            return
        self._handed = policies
        found, refused = self._read_policies(policies)
        with self._lock:
            for tenant, held in self._policies.items():
                if tenant in found and _issued(found[tenant]) < _issued(held):
                    refused["policy_old"] += 1
                    found[tenant] = held
            self._refused.update(refused)
            self._policies = found
            self._bind(self._clock())

    def _read_policies(self, data: bytes) -> tuple[dict[str, Policy], Counter[str]]:
        """Those that count, and what does not, by cause."""
        refused: Counter[str] = Counter()
        found: dict[str, Policy] = {}
        lines = data.split(b"\n")
        if self._mode == "off" or len(data) > MAX_POLICY_BYTES or len(lines) > MAX_TENANTS:
            refused["policy_off" if self._mode == "off" else "policy_size"] += 1
            return found, refused
        now = _at(self._clock())
        for line in lines:
            try:
                policy = parse(line, Policy)
            except PacketError:
                refused["policy_schema"] += 1
                continue
            issue = policy.issue
            if issue is None or issue.host != self._host or issue.tenant not in policy.members:
                refused["policy_host"] += 1
            elif not issue.issued_at - _POLICY_AHEAD <= now < issue.expires_at <= issue.issued_at + _POLICY_LASTS:
                refused["policy_expired"] += 1
            else:
                found[issue.tenant] = policy
        return found, refused

    def _bind(self, now_ns: int) -> None:
        """What the policies that hold and are in force allow, if this agent applies them; under the lock."""
        if not (self._policies or self._minutes.bounds):
            return
        now = _at(now_ns)
        self._policies = {name: one for name, one in self._policies.items() if one.issue and now < one.issue.expires_at}
        self._minutes.bounds = {
            name: Bound(one.control.lam_min, one.control.lam_max, one.issue.kl_budget, one.issue.rung >= 0)
            for name, one in self._policies.items()
            if self._mode == "apply" and not one.dry_run and one.issue is not None and one.issue.in_slice
        }

    def figures(self) -> EngineFigures:
        """For metrics."""
        with self._lock:
            tenants = {}
            for name in self._minutes.tenants:
                told, health = self._minutes.directive(name), self._minutes.health(name)
                xi = health.xi if health else None
                tenants[name] = TenantFigures(told.lam, told.kl_budget, xi, State[told.band.name].value)
            return EngineFigures(
                connected=sum(stream.connected for stream in self._streams.values()),
                packets=self._packets,
                refused=self._all_refused(),
                tenants=tenants,
            )

    def status(self) -> pb.SurplusStatusResponse:
        """As ``mvps surplus status`` wants it."""
        with self._lock:
            answer = pb.SurplusStatusResponse(
                packets=self._packets,
                refused=self._all_refused(),
                pressure=self._minutes.pressures(self._clock(), self._loads()),
                tenants=[_control(self._minutes.directive(name)) for name in self._minutes.tenants],
            )
            for stream in self._streams.values():
                shown = answer.engines.add(
                    chain=stream.chain.name,
                    length=stream.chain.length,
                    head=stream.chain.head,
                    connected=stream.connected,
                    dropped=stream.dropped,
                )
                if stream.load is not None:
                    running, waiting, slots, kv_cache = stream.load
                    shown.load.running, shown.load.waiting, shown.load.slots = int(running), int(waiting), int(slots)
                    shown.load.kv_cache_use = kv_cache
            answer.policy = self._mode
            answer.applied.extend(sorted(self._minutes.bounds))
            policies = [one for _, one in sorted(self._policies.items())]
            healths = [self._minutes.health(name) for name in self._minutes.tenants]
        answer.policies.extend(map(render, policies))
        answer.health.extend(render(health) for health in healths if health)
        return answer

    def _loads(self) -> list[Load]:
        return [stream.load for stream in self._streams.values() if stream.load is not None]

    def _all_refused(self) -> dict[str, int]:
        return {cause: count for cause, count in sorted((self._refused + self._minutes.refused).items()) if count}

    def _close_due(self, now: int) -> list[HealthMinute]:
        if not self._minutes.due(now):
            return []
        heads = heads_digest({name: stream.chain.head for name, stream in self._streams.items()})
        closed = self._minutes.close_due(now, self._loads(), heads)
        for one in closed:
            if len(self._health) >= MAX_HEALTH_WAITING:
                self._health.popleft()
                self._refused["health_unsent"] += 1
            self._health.append(render(one))
        # What ended is sealed, and in this minute's health for the last time.
        for name, stream in list(self._streams.items()):
            if not stream.connected and stream.sealed == stream.chain.length:
                del self._streams[name]
        return closed

    def _tell(self, closed: list[HealthMinute]) -> None:
        """Log changes of state; not under the lock."""
        for health in closed:
            before = self._states.get(health.tenant, State.GREEN)
            self._states[health.tenant] = health.state
            if health.state is not before:
                level = logging.INFO if health.state is State.GREEN else logging.WARNING
                log.event(
                    _log, level, "tenant", tenant=health.tenant, state=health.state.value, before=before.value,
                    xi=health.xi, lam=round(health.lam, 3), bh1=health.bh1, bh2=health.bh2,
                )  # fmt: skip
        if len(self._states) > MAX_TENANTS:
            known = set(self._minutes.tenants)
            self._states = {name: state for name, state in self._states.items() if name in known}

    def _refuse(self, cause: str, message: str, *, full: bool = False) -> NoReturn:
        with self._lock:
            self._refused[cause] += 1
        raise Refused(message, full=full)


def _issued(policy: Policy) -> datetime:
    return policy.issue.issued_at if policy.issue is not None else datetime.min.replace(tzinfo=UTC)


def _at(ns: int) -> datetime:
    return datetime.fromtimestamp(ns / 1e9, UTC)


def host_flows(snapshot: Snapshot, observations: Mapping[str, Observation], elapsed_ns: int) -> dict[str, float]:
    """The host's pressure in one tick, as reservoir M: shares of the time, and the kernel surface's phase.

    A tick that calibrates, or stands at a level that nobody has accepted yet, says nothing about the phase.
    """
    flows = {}
    for flow, vantage in (("cpu", "sched"), ("memory", "mm")):
        seen = observations.get(vantage)
        stalled_ms = seen.facts.get("psi_some_ms") if seen else None
        if stalled_ms is not None and elapsed_ns > 0:
            flows[flow] = stalled_ms * 1e6 / elapsed_ns
    for surface in snapshot.surfaces:
        if surface.name == "kernel" and (pressed := PHASES.get(phase_name(surface))) is not None:
            flows["kernel"] = pressed
    return flows


def sealed_heads(chains: list[Chain]) -> bytes:
    """Heads as they travel in a snapshot: canonical JSON, a list of {"chain", "head", "length"}."""
    plain = [{"chain": one.name, "head": one.head, "length": one.length} for one in chains]
    return json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()


def _load(given: pb.EngineLoad) -> Load | None:
    """The load, if it can be one."""
    if max(given.running, given.waiting, given.slots) > _MOST or not 0.0 <= given.kv_cache_use <= 1.0:
        return None
    return Load(float(given.running), float(given.waiting), float(given.slots), given.kv_cache_use)


def _control(told: Directive) -> pb.TenantControl:
    answer = pb.TenantControl(
        tenant=told.tenant,
        lam=told.lam,
        kl_budget=told.kl_budget,
        dlogits_budget=told.dlogits_budget,
        state=State[told.band.name].value,
        bh1=told.bh1,
        bh2=told.bh2,
        look_ahead=told.look_ahead,
    )
    if math.isfinite(told.sse):
        answer.sse = told.sse
    return answer
