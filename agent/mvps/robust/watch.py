# SPDX-License-Identifier: Apache-2.0
"""The fleet tick machine: what hosts said in, decisions and names out. Free of clocks and I/O, like the agent's own.

CALIBRATING until ``needed`` quorate ticks of every kind were seen, then against a frozen baseline. A kind that no host
reports (a vantage that this fleet does not have) is left out of the fleet for good when the baseline is fitted. Which
hosts are admitted may change at any time; another f begins a new calibration, because every law depends on it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mvps.coherence.observation import FloatArray
from mvps.coherence.phase import HYSTERESIS_TICKS, Phase
from mvps.robust.fleet import (
    LEAST_TICKS,
    Evidence,
    FleetBaseline,
    KindDecision,
    Settled,
    Suspect,
    bau_statistics,
    decide,
    fit_baseline,
    table,
)

NEEDED_TICKS = 300


class Named(NamedTuple):
    """A host that was the source of a kind's divergence in each of the last ticks."""

    host: str
    kind: str
    suspect: Suspect


class FleetTick(NamedTuple):
    """What one tick came to.

    phase: the worst settled phase of the kinds, CALIBRATING before there is a baseline. decisions: by kind, of this
    tick alone; settled: their phases over ticks. minimax, largest: (D_minimax, D_max), the largest over kinds. named:
    the farthest first. contradicted: hosts with evidence against them, named or not. calibrated, needed: ticks.
    """

    phase: Phase
    decisions: Mapping[str, KindDecision]
    settled: Mapping[str, Phase]
    minimax: float
    largest: float
    named: tuple[Named, ...]
    contradicted: tuple[str, ...]
    calibrated: int
    needed: int


class FleetWatch:
    """One fleet, or one cell of it.

    hosts: those admitted. kinds: names of what hosts report. f: hosts that may lie, below half of them.
    """

    def __init__(self, hosts: Iterable[str], kinds: Sequence[str], f: int, needed: int = NEEDED_TICKS) -> None:
        if needed < LEAST_TICKS:
            raise ValueError(f"a fleet needs at least {LEAST_TICKS} ticks of calibration, not {needed}")
        self._needed = needed
        self._kinds = tuple(kinds)
        self._hosts: tuple[str, ...] = ()
        self._f = -1
        self.admit(hosts, f)

    def admit(self, hosts: Iterable[str], f: int) -> None:
        """Who is expected from now on. ValueError unless 0 <= f < half of the hosts."""
        names = tuple(sorted(hosts))
        if not 0 <= f < len(names) / 2:
            raise ValueError(f"f must be below half of the {len(names)} hosts, not {f}")
        if f != self._f:
            self._window: deque[FloatArray] = deque(maxlen=self._needed)
            self._baseline: FleetBaseline | None = None
            self._live = self._kinds
            self._turn = 0
            self._settled = {kind: Settled() for kind in self._kinds}
        elif names != self._hosts:
            # Suspects are places in the list of hosts, and places have changed.
            self._settled = {kind: Settled(one.hysteresis) for kind, one in self._settled.items()}
        self._hosts, self._f = names, f

    def step(self, said: Iterable[tuple[str, Mapping[str, float]]], against: Mapping[str, Evidence]) -> FleetTick:
        """Take in one tick: z by kind of every host that reported, and the evidence of this tick by host."""
        evidence = np.array([int(against.get(host, 0)) for host in self._hosts], dtype=np.intp)
        z = table(self._hosts, self._live, said)
        contradicted = tuple(host for host, flags in zip(self._hosts, evidence, strict=True) if flags)
        if self._baseline is None:
            self._learn(z)
            return FleetTick(Phase.CALIBRATING, {}, {}, 0.0, 0.0, (), contradicted, len(self._window), self._needed)
        decisions = dict(zip(self._live, decide(z, evidence, self._baseline), strict=True))
        for kind, decision in decisions.items():
            self._settled[kind] = self._settled[kind].step(decision, HYSTERESIS_TICKS)
        named = [
            Named(self._hosts[suspect.host], kind, suspect)
            for kind in self._live
            for suspect in self._settled[kind].named
        ]
        phases = {kind: self._settled[kind].hysteresis.phase for kind in self._live}
        return FleetTick(
            max(phases.values(), default=Phase.BAU),
            decisions,
            phases,
            max((one.minimax for one in decisions.values()), default=0.0),
            max((one.largest for one in decisions.values()), default=0.0),
            tuple(sorted(named, key=lambda one: -one.suspect.z)),
            contradicted,
            self._needed,
            self._needed,
        )

    def _learn(self, z: FloatArray) -> None:
        self._window.append(bau_statistics(z, self._f, self._turn))
        self._turn += 1
        if len(self._window) < self._needed:
            return
        window = np.stack(self._window)
        live = np.flatnonzero(np.isfinite(window).all(axis=(2, 3)).any(axis=0))
        if len(live) == 0:
            return
        try:
            self._baseline = fit_baseline(window[:, live], self._f)
        except ValueError:
            return  # a kind had too few ticks with a quorum and without a fault: the window slides on
        self._live = tuple(self._kinds[kind] for kind in live)
