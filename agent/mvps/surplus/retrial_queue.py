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
from numpy.typing import NDArray

from mvps.coherence.observation import FloatArray
from mvps.surplus.indicators import Band, Minute, Watch, crp, ssi, ssi_star

_ARRIVES, _LEAVES, _GIVES_UP, _NEARS, _REVIEWED = range(5)


@dataclass(frozen=True)
class Workload:
    """servers: in parallel. service_s: mean of one answer. timeout_s: a client's patience. retries: further tries.
    pause_s: mean pause before one. room: requests that fit into the queue, others are turned away.

    Buffers (002 sec. 7.2), none by default. extra: servers that loads are not measured by. reviewers: as fast as a
    server, and only for who has waited ``review_after`` of the timeout, oldest first. reuse: share of tries that find a
    validated answer, which is a tenth of the work.
    """

    servers: int = 8
    service_s: float = 0.1
    timeout_s: float = 1.0
    retries: int = 3
    pause_s: float = 0.2
    room: int = 400
    minute_s: float = 2.0
    extra: int = 0
    reviewers: int = 0
    review_after: float = 0.6
    reuse: float = 0.0

    @property
    def capacity(self) -> float:
        """Answers a second with all servers busy, without buffers."""
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


@dataclass(slots=True)
class _Try:
    request: _Request
    number: int  # 1 for the first one
    taken: bool = False  # by a server or a reviewer


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
    queue: deque[_Try] = deque()
    near: deque[_Try] = deque()  # those of the queue that reviewers may take
    events: list[tuple[float, int, int, _Try]] = []
    order, busy, reviewing, queued, now = 0, 0, 0, 0, 0.0
    servers = workload.servers + workload.extra
    rows: list[tuple[float, ...]] = []

    def push(at: float, kind: int, attempt: _Try) -> None:
        nonlocal order
        # The number keeps events of one moment in the order in which they were made.
        heapq.heappush(events, (at, order, kind, attempt))
        order += 1

    def start(attempt: _Try, kind: int) -> None:
        work = workload.service_s
        if workload.reuse and chance.random() < workload.reuse:
            work *= 0.1
        attempt.taken = True
        push(now + chance.exponential(work), kind, attempt)

    def oldest(waiting: deque[_Try]) -> _Try | None:
        """The oldest that nobody has taken yet. Who gave up is not known, and is answered as well."""
        nonlocal queued
        while waiting:
            attempt = waiting.popleft()
            if not attempt.taken:
                queued -= 1
                return attempt
        return None

    def again(request: _Request, tally: _Tally) -> None:
        request.waiting = False
        if request.tries > workload.retries:
            tally.failed += 1
        else:
            push(now + chance.exponential(workload.pause_s), _ARRIVES, _Try(request, request.tries + 1))

    for minute, load in enumerate(loads):
        begin, end = minute * workload.minute_s, (minute + 1) * workload.minute_s
        tally = _Tally(new=int(chance.poisson(load * workload.capacity * workload.minute_s)))
        for at in np.sort(chance.uniform(begin, end, tally.new)).tolist():
            push(at, _ARRIVES, _Try(_Request(at), 1))
        while events and events[0][0] < end:
            now, _, kind, attempt = heapq.heappop(events)
            request = attempt.request
            if kind == _ARRIVES:
                request.tries = attempt.number
                tally.tries += 1
                if busy == servers and queued >= workload.room:
                    again(request, tally)
                    continue
                request.waiting = True
                push(now + workload.timeout_s, _GIVES_UP, attempt)
                if busy < servers:
                    busy += 1
                    start(attempt, _LEAVES)
                else:
                    queue.append(attempt)
                    queued += 1
                    if workload.reviewers:
                        push(now + workload.review_after * workload.timeout_s, _NEARS, attempt)
            elif kind == _GIVES_UP:
                # No timer outlives its try: the next one begins only when it went off.
                if request.waiting:
                    again(request, tally)
            elif kind == _NEARS:
                if attempt.taken:
                    continue
                near.append(attempt)
                if reviewing < workload.reviewers and (following := oldest(near)) is not None:
                    reviewing += 1
                    start(following, _REVIEWED)
            else:
                if request.waiting and attempt.number == request.tries:
                    request.waiting = False
                    tally.good += 1
                    taken = now - request.began
                    tally.turnaround.append(taken)
                    tally.near += 0.8 * workload.timeout_s < taken
                else:
                    tally.wasted += 1
                following = oldest(queue if kind == _LEAVES else near)
                if following is not None:
                    start(following, kind)
                elif kind == _LEAVES:
                    busy -= 1
                else:
                    reviewing -= 1
        mean = float(np.mean(tally.turnaround)) if tally.turnaround else math.nan
        cv = float(np.std(tally.turnaround)) / mean if tally.turnaround and mean > 0.0 else math.nan
        counts = (tally.tries, tally.new, tally.good, tally.failed, tally.near, tally.wasted, queued)
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
    before does not count. action_share: of the calm minutes before the ramp, in Action or worse. fragility: mean CRP on
    the way up. exit: minutes from the turn until the last one in Emergency is over. utilisation_lead: as ``lead``, of
    the naive rule that alarms where tries over capacity exceed what they did in as many calm minutes as Action.
    until_bh2: minutes of the way up until BH-2 is first raised.
    """

    collapse: float
    recovery: float
    lead: float
    action_share: float
    fragility: float
    exit: float
    utilisation_lead: float
    until_bh2: float

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
    watch, bands, raised = Watch(), [], []
    judged = minutes(trace, workload)
    for minute in judged:
        watch, health = watch.step(minute)
        bands.append(health.band)
        raised.append(health.bh2)
    warned = np.array(bands) >= Band.ACTION
    share = float(np.mean(warned[:begin]))
    used = trace.tries / (workload.capacity * workload.minute_s)
    naive = used > np.quantile(used[:begin], 1.0 - share, method="higher")
    emergency = np.flatnonzero(np.array(bands[turn:]) >= Band.EMERGENCY)
    bh2 = np.flatnonzero(raised[begin:turn])
    end = begin + int(fallen[0]) if len(fallen) else -1
    return (
        Ramp(
            collapse,
            recovery,
            _unbroken(warned, end),
            share,
            float(np.mean([minute.crp for minute in judged[begin:turn]])),
            float(emergency[-1] + 1) if len(emergency) else 0.0,
            _unbroken(naive, end),
            float(bh2[0]) if len(bh2) else math.nan,
        ),
        trace,
    )


def _unbroken(alarmed: NDArray[np.bool_], end: int) -> float:
    """Minutes of alarm without a break up to ``end`` (that one included) and before it; NaN without any."""
    if end < 0:
        return math.nan
    quiet = np.flatnonzero(~alarmed[: end + 1])
    run = end - (int(quiet[-1]) if len(quiet) else -1)
    return float(run - 1) if run else math.nan


def mean_interval(values: Sequence[float], seed: int = 0, draws: int = 4000) -> tuple[float, float, float]:
    """Mean of values that are known and its 95 % bootstrap interval; NaN without any."""
    known = np.array([value for value in values if math.isfinite(value)])
    if not len(known):
        return math.nan, math.nan, math.nan
    chance = np.random.default_rng(seed)
    means = known[chance.integers(len(known), size=(draws, len(known)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(known.mean()), float(low), float(high)
