# SPDX-License-Identifier: Apache-2.0
"""What the agent shows of itself: an immutable picture, replaced once per tick.

The tick thread builds an :class:`AgentState` and hands it over by one reference assignment. Readers (metrics,
local API, live view) hold on to what they got; nobody locks, nobody waits for the tick thread.
"""

from __future__ import annotations

import bisect
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from mvps.v1.local_pb2 import StreamState
from mvps.v1.snapshot_pb2 import Snapshot

if TYPE_CHECKING:
    from mvps.vantages.registry import VantageState

# Seconds. Fine around the budget of tick -> sealed (5 ms) and up to a tick of 60 s that came a tick late.
LATENESS_BOUNDS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 10.0)


# States kept for a watcher that wants to begin with the recent past.
RECENT = 64


@dataclass(frozen=True, slots=True)
class Distribution:
    """A frozen histogram: counts per bucket (one more than bounds), and the sum of all values."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float


class Histogram:
    """Counts values under fixed upper bounds. One writer; readers take :meth:`freeze`."""

    def __init__(self, bounds: Sequence[float] = LATENESS_BOUNDS):
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._total = 0.0

    def add(self, value: float) -> None:
        """Count one value; a value equal to a bound belongs to that bucket."""
        self._counts[bisect.bisect_left(self._bounds, value)] += 1
        self._total += value

    def freeze(self) -> Distribution:
        """The counts as of now."""
        return Distribution(self._bounds, tuple(self._counts), self._total)


class TenantFigures(NamedTuple):
    """Of one tenant of this host's engines. xi: None where it is not known. state: as in health.v1."""

    lam: float
    kl_budget: float
    xi: float | None
    state: str


@dataclass(frozen=True, slots=True)
class EngineFigures:
    """Serving engines of this host. packets: taken. refused: streams, packets and figures, by cause."""

    connected: int
    packets: int
    refused: Mapping[str, int]
    tenants: Mapping[str, TenantFigures]


@dataclass(frozen=True, slots=True)
class AgentState:
    """The agent after one tick. Times in nanoseconds, counts cumulative since the start of the process.

    snapshot: the snapshot of the last tick without its baselines; never changed once published.
    vantages: vantage -> whether it works; ``surface_of``: vantage -> its surface.
    names: object hash -> printable name, for the local API only.
    problems: surface -> why its calibration cannot end, where that is so.
    ticks: ticks worked on; ``irregular`` counts the lattice's late, skipped and stepped ones by cause.
    lateness, sealed_after: seconds from due time to the start of the work and to the sealed snapshot.
    engines: serving engines, once one has connected.
    """

    vantage_id: str
    version: str
    config_path: str
    key_id: str
    started_ns: int
    tick_ns: int
    snapshot: Snapshot
    stream: StreamState
    vantages: Mapping[str, VantageState] = field(default_factory=dict)
    surface_of: Mapping[str, str] = field(default_factory=dict)
    names: Mapping[int, str] = field(default_factory=dict)
    problems: Mapping[str, str] = field(default_factory=dict)
    ticks: int = 0
    irregular: Mapping[str, int] = field(default_factory=dict)
    losses: Mapping[str, int] = field(default_factory=dict)
    lateness: Distribution = field(default_factory=lambda: Histogram().freeze())
    sealed_after: Distribution = field(default_factory=lambda: Histogram().freeze())
    engines: EngineFigures | None = None


class Published:
    """The newest state, for readers in other threads."""

    def __init__(self, state: AgentState):
        self._state = state
        self._recent: deque[AgentState] = deque(maxlen=RECENT)
        self._version = 0
        self._ended = False
        self._changed = threading.Condition()

    @property
    def state(self) -> AgentState:
        """The newest state."""
        return self._state

    @property
    def version(self) -> int:
        """How many states were published; what :meth:`wait` counts from."""
        return self._version

    def publish(self, state: AgentState) -> None:
        """Replace the state and wake whoever waits for it."""
        with self._changed:
            self._state = state
            self._recent.append(state)
            self._version += 1
            self._changed.notify_all()

    def recent(self, count: int) -> list[AgentState]:
        """Up to ``count`` of the newest states, oldest first; at most RECENT are kept."""
        with self._changed:
            return list(self._recent)[-count:] if count > 0 else []

    @property
    def ended(self) -> bool:
        """Whether nothing more will be published."""
        return self._ended

    def end(self) -> None:
        """Nothing more will be published: whoever waits, now or later, is let go at once."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def wait(self, after: int, timeout: float) -> tuple[int, AgentState]:
        """(version, state) once the version exceeds ``after``, or what there is after ``timeout`` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._version > after or self._ended, timeout)
            return self._version, self._state
