# SPDX-License-Identifier: Apache-2.0
"""Agents that hand work over to each other: what a cost on handing over does (E3, 002 sec. 7.3, "semantic currency").

Jobs of several steps come as a Poisson stream. Each topic has agents that are good at it; before every step all of them
estimate how good they would be, with noise, and the step goes to the one of the largest

    J_i = estimate_i - latency * work waiting at i + bonus * (1 - agents * share_i) - rho_t 1{i is not the last}

with share_i that of the last minute's steps. A handoff is work: the new agent reads what the old one knew. Nothing here
says that chattering is bad for anybody; with every step weighed anew, noise hands work over, the extra work fills the
queues, and the queues change who is chosen.

Treatments of the text: no cost (T0); a static rho (T1); rho_t = rho (1 + k max(SSI*, CRP) of the last minute) (T2);
T1 with the bonus for spread (T3). Arrivals, topics, estimates and step times of one seed are the same under each.

Time is simulated; a minute of the indicators is ``minute_s`` of it.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from mvps.coherence.observation import FloatArray
from mvps.surplus.indicators import crp, ssi, ssi_star
from mvps.surplus.spread import spread_entropy

_ARRIVES, _STEP_DONE = range(2)


@dataclass(frozen=True)
class Team:
    """agents: one server each. step_s: mean work of a step. steps: of a job. load: work offered over capacity, without
    handoffs. overhead: work of a handoff, in steps. topics: kinds of job. skill: sd of how good an agent is at a topic.
    blur: sd of an estimate's noise. latency: what a step of waiting work costs in J. deadline_s: of a job."""

    agents: int = 4
    step_s: float = 1.0
    steps: int = 6
    load: float = 0.7
    overhead: float = 0.5
    topics: int = 8
    skill: float = 0.3
    blur: float = 0.3
    latency: float = 0.02
    deadline_s: float = 40.0
    minute_s: float = 60.0


@dataclass(frozen=True)
class Treatment:
    """rho: cost of a handoff, in units of J. stress: k above; 0 is a static cost. bonus: for spread."""

    name: str
    rho: float = 0.0
    stress: float = 0.0
    bonus: float = 0.0


T0 = Treatment("T0 no cost")
T1 = Treatment("T1 static cost", rho=0.4)
T2 = Treatment("T2 cost under stress", rho=0.2, stress=3.0)
T3 = Treatment("T3 static cost, spread", rho=0.4, bonus=0.1)
TREATMENTS = (T0, T1, T2, T3)


class Run(NamedTuple):
    """Means over the minutes of one run.

    flips: handoffs per step that could be one. quality: how good the chosen agents truly were. late: share of jobs
    beyond their deadline. ssi, crp: indicators. spread: SSE of the agents' shares, 1 for a single agent. debt: share of
    all work that was handing over. jobs: done.
    """

    flips: float
    quality: float
    late: float
    ssi: float
    crp: float
    spread: float
    debt: float
    jobs: int


@dataclass(slots=True)
class _Job:
    number: int
    began: float
    topic: int
    step: int = 0
    agent: int = -1


@dataclass
class _Tally:
    agents: int
    work: FloatArray = field(init=False)
    handled: FloatArray = field(init=False)
    chosen: int = 0
    flips: int = 0
    quality: float = 0.0
    moved: float = 0.0
    turnaround: list[float] = field(default_factory=list)
    late: int = 0
    near: int = 0

    def __post_init__(self) -> None:
        self.work, self.handled = np.zeros(self.agents), np.zeros(self.agents)


def simulate(team: Team, treatment: Treatment, minutes: int, seed: int, warm_up: int = 10) -> Run:
    """Run from empty queues; the first ``warm_up`` minutes do not count."""
    chance = np.random.default_rng(seed)
    end = (minutes + warm_up) * team.minute_s
    rate = team.load * team.agents / (team.steps * team.step_s)
    count = int(chance.poisson(rate * end))
    arrivals = np.sort(chance.uniform(0.0, end, count))
    topics = chance.integers(team.topics, size=count)
    skill = chance.normal(0.0, team.skill, (team.topics, team.agents))
    blur = chance.normal(0.0, team.blur, (count, team.steps, team.agents))
    works = chance.exponential(team.step_s, (count, team.steps))

    queues: list[deque[tuple[_Job, float]]] = [deque() for _ in range(team.agents)]
    waiting = np.zeros(team.agents)  # work in each queue, the step in hand included
    busy = [False] * team.agents
    events: list[tuple[float, int, int, _Job]] = [
        (at, number, _ARRIVES, _Job(number, at, int(topics[number]))) for number, at in enumerate(arrivals.tolist())
    ]
    order = count
    rows: list[tuple[float, ...]] = []
    jobs, backlog_before, stress = 0, 0.0, 0.0
    shares = np.full(team.agents, 1.0 / team.agents)
    tally = _Tally(team.agents)
    close_at, closed = team.minute_s, 0

    def begin(agent: int, now: float) -> None:
        nonlocal order
        if busy[agent] or not queues[agent]:
            return
        job, work = queues[agent][0]
        busy[agent] = True
        heapq.heappush(events, (now + work, order, _STEP_DONE, job))
        order += 1

    def choose(job: _Job, now: float) -> None:
        truth = skill[job.topic]
        value = truth + blur[job.number, job.step] - team.latency * waiting / team.step_s
        value = value + treatment.bonus * (1.0 - shares * team.agents)
        last = job.agent
        if last >= 0:
            rho = treatment.rho * (1.0 + treatment.stress * stress)
            value = value - rho * (np.arange(team.agents) != last)
        agent = int(np.argmax(value))
        work = float(works[job.number, job.step])
        if last >= 0:
            tally.chosen += 1
            if agent != last:
                tally.flips += 1
                extra = team.overhead * team.step_s
                work += extra
                tally.moved += extra
        job.agent = agent
        tally.quality += float(truth[agent])
        tally.handled[agent] += 1.0
        tally.work[agent] += work
        waiting[agent] += work
        queues[agent].append((job, work))
        begin(agent, now)

    while events and closed < minutes + warm_up:
        now = events[0][0]
        while now >= close_at and closed < minutes + warm_up:
            backlog = float(waiting.sum())
            capacity = np.full(team.agents, team.minute_s)
            pressed = ssi_star(ssi(tally.work, capacity, waiting))
            taken = np.array(tally.turnaround)
            mean = float(taken.mean()) if len(taken) else math.nan
            fragile = crp(
                growth=backlog - backlog_before,
                capacity=team.agents * team.minute_s,
                rework=tally.moved / max(float(tally.work.sum()), 1e-9),
                variation=float(taken.std()) / mean if len(taken) else 0.0,
                near_miss=tally.near / max(len(taken), 1),
            )
            steps = max(float(tally.handled.sum()), 1.0)
            if closed >= warm_up:
                rows.append(
                    (
                        tally.flips / max(tally.chosen, 1),
                        tally.quality / steps,
                        tally.late / max(len(taken), 1),
                        pressed,
                        fragile,
                        spread_entropy(tally.handled) if team.agents > 1 else 1.0,
                        tally.moved / max(float(tally.work.sum()), 1e-9),
                    )
                )
                jobs += len(taken)
            stress, backlog_before = max(pressed, fragile), backlog
            shares = tally.handled / steps
            tally = _Tally(team.agents)
            closed += 1
            close_at += team.minute_s
        now, _, kind, job = heapq.heappop(events)
        if kind == _ARRIVES:
            choose(job, now)
            continue
        agent = job.agent
        _, work = queues[agent].popleft()
        waiting[agent] = max(waiting[agent] - work, 0.0)
        busy[agent] = False
        job.step += 1
        if job.step < team.steps:
            choose(job, now)
        else:
            taken_s = now - job.began
            tally.turnaround.append(taken_s)
            tally.late += taken_s > team.deadline_s
            tally.near += taken_s > 0.8 * team.deadline_s
        begin(agent, now)
    means = np.mean(np.array(rows), axis=0) if rows else np.full(7, math.nan)
    flips, quality, late, pressed, fragile, spread, debt = means.tolist()
    return Run(flips, quality, late, pressed, fragile, spread, debt, jobs)
