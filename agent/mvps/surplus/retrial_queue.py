# SPDX-License-Identifier: Apache-2.0
"""A service whose clients give up and try again: where hysteresis comes from with nobody drawing it (E1, 002 sec. 7.1).

Requests come as a Poisson stream, wait in one queue for ``servers`` with exponential service times, and count as good
if they are answered within the client's timeout. A client that waited in vain, or was turned away by a full queue,
tries again after a pause, a few times. The server does not know who gave up: it answers them as well, and that work is
lost. Nothing here has an S-curve, a threshold or a second state in it.

Time is simulated (an event list, no sleeping), so that a ramp of hours takes seconds and the same seed gives the same
trace. One *minute* of the indicators is ``minute_s`` simulated seconds, and says so wherever it is shown.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from mvps.coherence.observation import FloatArray
from mvps.surplus.indicators import Band, Minute, Watch, crp, ssi, ssi_star

_ARRIVES, _LEAVES, _GIVES_UP = range(3)


@dataclass(frozen=True)
class Workload:
    """servers: in parallel. service_s: mean of one answer. timeout_s: a client's patience. retries: further tries.
    pause_s: mean pause before one. room: requests that fit into the queue, others are turned away."""

    servers: int = 8
    service_s: float = 0.1
    timeout_s: float = 1.0
    retries: int = 3
    pause_s: float = 0.2
    room: int = 400
    minute_s: float = 2.0

    @property
    def capacity(self) -> float:
        """Answers a second with all servers busy."""
        return self.servers / self.service_s


class Trace(NamedTuple):
    """What happened in each minute (minutes,). load: new requests offered over capacity. tries: attempts made.

    new, good, failed: requests that came, were answered in time, were given up for good. near: good ones that took more
    than four fifths of the timeout. wasted: answers nobody waited for. backlog: queue at the end. mean_s, cv: of the
    time from first try to answer; NaN without any.
    """

    load: FloatArray
    tries: FloatArray
    new: FloatArray
    good: FloatArray
    failed: FloatArray
    near: FloatArray
    wasted: FloatArray
    backlog: FloatArray
    mean_s: FloatArray
    cv: FloatArray

    @property
    def success(self) -> FloatArray:
        """Good ones among those that came to an end in a minute; NaN without any."""
        ended = self.good + self.failed
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(ended > 0.0, self.good / ended, np.nan)


@dataclass(slots=True)
class _Request:
    began: float
    tries: int = 0
    waiting: bool = False  # somebody waits for the answer to its latest try


@dataclass
class _Tally:
    tries: int = 0
    new: int = 0
    good: int = 0
    failed: int = 0
    near: int = 0
    wasted: int = 0
    turnaround: list[float] = field(default_factory=list)


def simulate(workload: Workload, loads: Sequence[float], seed: int) -> Trace:
    """Run one minute at each load, from an empty queue."""
    chance = np.random.default_rng(seed)
    queue: deque[tuple[_Request, int]] = deque()
    events: list[tuple[float, int, int, _Request, int]] = []
    order, busy, now = 0, 0, 0.0
    rows: list[tuple[float, ...]] = []

    def push(at: float, kind: int, request: _Request, attempt: int) -> None:
        nonlocal order
        # The number keeps events of one moment in the order in which they were made.
        heapq.heappush(events, (at, order, kind, request, attempt))
        order += 1

    def start(request: _Request, attempt: int) -> None:
        nonlocal busy
        busy += 1
        push(now + chance.exponential(workload.service_s), _LEAVES, request, attempt)

    def again(request: _Request, tally: _Tally) -> None:
        request.waiting = False
        if request.tries > workload.retries:
            tally.failed += 1
        else:
            push(now + chance.exponential(workload.pause_s), _ARRIVES, request, request.tries)

    for minute, load in enumerate(loads):
        begin, end = minute * workload.minute_s, (minute + 1) * workload.minute_s
        tally = _Tally(new=int(chance.poisson(load * workload.capacity * workload.minute_s)))
        for at in np.sort(chance.uniform(begin, end, tally.new)).tolist():
            push(at, _ARRIVES, _Request(at), 0)
        while events and events[0][0] < end:
            now, _, kind, request, attempt = heapq.heappop(events)
            if kind == _ARRIVES:
                request.tries += 1
                tally.tries += 1
                if busy == workload.servers and len(queue) >= workload.room:
                    again(request, tally)
                    continue
                request.waiting = True
                push(now + workload.timeout_s, _GIVES_UP, request, request.tries)
                if busy < workload.servers:
                    start(request, request.tries)
                else:
                    queue.append((request, request.tries))
            elif kind == _GIVES_UP:
                # No timer outlives its try: the next one begins only when it went off.
                if request.waiting:
                    again(request, tally)
            else:
                busy -= 1
                if request.waiting and attempt == request.tries:
                    request.waiting = False
                    tally.good += 1
                    taken = now - request.began
                    tally.turnaround.append(taken)
                    tally.near += 0.8 * workload.timeout_s < taken
                else:
                    tally.wasted += 1
                if queue:
                    start(*queue.popleft())
        mean = float(np.mean(tally.turnaround)) if tally.turnaround else math.nan
        cv = float(np.std(tally.turnaround)) / mean if tally.turnaround and mean > 0.0 else math.nan
        counts = (tally.tries, tally.new, tally.good, tally.failed, tally.near, tally.wasted, len(queue))
        rows.append((load, *map(float, counts), mean, cv))
    return Trace(*(np.array(column) for column in zip(*rows, strict=True)))


def minutes(trace: Trace, workload: Workload) -> list[Minute]:
    """Indicators of each minute. The one flow is material: tries against capacity, and the queue. There is no text, so
    that the spread is not known and BH-1 cannot be raised."""
    per_minute = workload.capacity * workload.minute_s
    found, before = [], 0.0
    for tries, good, near, backlog, cv in zip(
        trace.tries, trace.good, trace.near, trace.backlog, trace.cv, strict=True
    ):
        stress = ssi_star(ssi(np.array([tries]), np.array([per_minute]), np.array([backlog])))
        done = max(tries, 1.0)
        fragile = crp(
            growth=backlog - before,
            capacity=per_minute,
            rework=min(max(tries - good, 0.0) / done, 1.0),
            variation=cv if math.isfinite(cv) else math.inf,
            near_miss=near / max(good, 1.0),
        )
        found.append(Minute(math.nan, fragile, stress))
        before = backlog
    return found


class Ramp(NamedTuple):
    """One ramp up and down; NaN for what did not happen.

    collapse: load at which success first falls below half. recovery: highest load on the way down from which on it
    stays above 0.9. lead: minutes in Action or worse up to the collapse without a break, so that a false alarm long
    before does not count. action_share: of the calm minutes before the ramp, in Action or worse.
    """

    collapse: float
    recovery: float
    lead: float
    action_share: float

    @property
    def gap(self) -> float:
        """Width of the hysteresis in load; 0 without a collapse."""
        return max(self.collapse - self.recovery, 0.0) if math.isfinite(self.collapse) else 0.0


@dataclass(frozen=True)
class RampPlan:
    """Loads of a ramp. calm: minutes at random ordinary loads before, by which the tenant is known; step_minutes: at
    each load from ``low`` to ``high`` and back down to ``end``, in steps of ``step``."""

    calm: int = 240
    step_minutes: int = 15
    low: float = 0.5
    high: float = 1.1
    end: float = 0.1
    step: float = 0.05

    def loads(self, seed: int) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Loads of the calm minutes, of the way up and of the way down."""
        calm = np.random.default_rng([seed, 1]).uniform(0.3, 0.85, self.calm)
        up = np.arange(self.low, self.high + 0.5 * self.step, self.step)
        down = np.arange(self.high - self.step, self.end - 0.5 * self.step, -self.step)
        return calm, np.repeat(up, self.step_minutes), np.repeat(down, self.step_minutes)


def ramp(workload: Workload, plan: RampPlan, seed: int) -> tuple[Ramp, Trace]:
    """Run one ramp pair and judge it minute by minute."""
    calm, up, down = plan.loads(seed)
    trace = simulate(workload, [*calm, *up, *down], seed)
    success = trace.success
    begin, turn = len(calm), len(calm) + len(up)
    fallen = np.flatnonzero(success[begin:turn] < 0.5)
    collapse = float(trace.load[begin + fallen[0]]) if len(fallen) else math.nan
    recovery = math.nan
    if len(fallen):
        bad = np.flatnonzero(~(success[turn:] > 0.9))
        after = turn + (bad[-1] + 1 if len(bad) else 0)
        recovery = float(trace.load[after]) if after < len(success) else 0.0
    watch, bands = Watch(), []
    for minute in minutes(trace, workload):
        watch, health = watch.step(minute)
        bands.append(health.band)
    warned = np.array(bands) >= Band.ACTION
    lead = math.nan
    if len(fallen):
        calm_before = np.flatnonzero(~warned[: begin + fallen[0] + 1])
        run = begin + fallen[0] - (calm_before[-1] if len(calm_before) else -1)
        lead = float(run - 1) if run else math.nan
    return Ramp(collapse, recovery, lead, float(np.mean(warned[:begin]))), trace


def mean_interval(values: Sequence[float], seed: int = 0, draws: int = 4000) -> tuple[float, float, float]:
    """Mean of values that are known and its 95 % bootstrap interval; NaN without any."""
    known = np.array([value for value in values if math.isfinite(value)])
    if not len(known):
        return math.nan, math.nan, math.nan
    chance = np.random.default_rng(seed)
    means = known[chance.integers(len(known), size=(draws, len(known)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(known.mean()), float(low), float(high)
