# SPDX-License-Identifier: Apache-2.0
"""Does a decision follow from the numbers beside it? The broker computes it again from the baseline.

C_1 and C_3 are taken as reported, since their raw material stays on the host; C_2, S, D^2 and the phase before
hysteresis are recomputed from the distributions. A difference is flagged and never changes what is stored.

And can the distributions be? One is p = (counts + pseudo * BAU law) / (events + pseudo), and so it gives its counts
back: none is negative, whatever happened on the host. Where one is, somebody made the distribution up beside other
events: the events are not conserved. Arithmetic without slack, up to float32.

One takes about 0.1 ms, more than a hundred times what admission takes. So it is done after the acknowledgement, with a
bounded share of one core: every snapshot while that suffices; beyond it those that wait are drawn at random, so that no
sender knows which of its decisions are looked at, and the others are counted.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from typing import Final

import numpy as np

from mvps.broker.store import CounterKey, Kept
from mvps.coherence.baseline import Baseline
from mvps.coherence.model import recompute
from mvps.coherence.phase import Phase
from mvps.trust.gate import Batch
from mvps.trust.limits import MAX_BASELINES_HELD
from mvps.v1 import snapshot_pb2 as pb

# Distributions travel as float32, everything else as float64 (ours).
_RELATIVE: Final = 1e-3
_ABSOLUTE: Final = 1e-2
_LOG_P_TOLERANCE: Final = 5e-2
# A count of a label, as a share of the pseudo-count, that may be missing: a thousand times what float32 loses of it.
_COUNT_TOLERANCE: Final = 1e-4
# Snapshots that wait to be looked at, and their bytes.
_POOL_ITEMS: Final = 4096
_POOL_BYTES: Final = 16 * 1024 * 1024
# In one go, so that no stream waits longer for the event loop.
_SLICE_NS: Final = 1_000_000
# A baseline is a stranger's numbers: what passes its own checks may still divide by zero or overflow further in.
_UNFIT: Final = (ValueError, ArithmeticError, TypeError, LookupError, np.linalg.LinAlgError)


class DecisionCheck:
    """Recomputes decisions whose baseline has been seen."""

    def __init__(self, baselines: Iterable[Kept] = ()) -> None:
        # Bytes until it is needed. None: one that this broker cannot read, so that it is not parsed again every tick.
        self._baselines: OrderedDict[tuple[str, str], Baseline | bytes | None] = OrderedDict()
        for kept in baselines:
            self.learn(kept)

    def learn(self, kept: Kept) -> None:
        """A vantage sent a baseline."""
        key = (kept.vantage_id, kept.baseline_id)
        if key not in self._baselines:
            self._baselines[key] = kept.json
        self._baselines.move_to_end(key)
        if len(self._baselines) > MAX_BASELINES_HELD:
            self._baselines.popitem(last=False)

    def _baseline(self, vantage_id: str, baseline_id: str) -> Baseline | None:
        key = (vantage_id, baseline_id)
        found = self._baselines.get(key)
        if isinstance(found, bytes):
            try:
                found = Baseline.from_json(found)
            except _UNFIT:
                found = None
            self._baselines[key] = found
        return found

    def agrees(self, vantage_id: str, surface: pb.Surface) -> bool | None:
        """True or False; None when there is no decision or its baseline is not known or not readable."""
        if not surface.HasField("decision"):
            return None
        baseline = self._baseline(vantage_id, surface.decision.baseline_id)
        if baseline is None:
            return None
        reported, vector = surface.decision, surface.vector
        if any(o.unchanged_ticks for o in surface.observations):
            return None  # a heartbeat: made from distributions that did not travel
        seen = [o for o in surface.observations if o.distribution and o.vantage in baseline.vantages]
        try:
            # What a liar sends may overflow. What is no number then agrees with nothing.
            with np.errstate(all="ignore"):
                _, decision = recompute(
                    baseline,
                    surface.name,
                    0,
                    vector.c1 if vector.HasField("c1") else None,
                    vector.c3 if vector.HasField("c3") else None,
                    {o.vantage: np.frombuffer(o.distribution, dtype="<f4") for o in seen},
                    {o.vantage: o.events for o in seen},
                )
        except _UNFIT:
            return False  # these numbers cannot have given a decision on this baseline
        if not (_close(reported.d2, decision.d2) and _close(vector.s, decision.s)):
            return False
        # On a cut-off, rounding may tip the phase; a p-value that differs may not.
        same_p = abs(_log(reported.p_value) - _log(decision.p_value)) <= _LOG_P_TOLERANCE
        return same_p or reported.raw_phase == pb.Phase.Value(f"PHASE_{Phase(decision.raw_phase).name}")

    def conserves(self, vantage_id: str, surface: pb.Surface) -> bool | None:
        """Whether every distribution can come from the events beside it; None as for :meth:`agrees`."""
        if not surface.HasField("decision"):
            return None
        baseline = self._baseline(vantage_id, surface.decision.baseline_id)
        if baseline is None:
            return None
        try:
            return _is_possible(baseline, surface)
        except _UNFIT:
            return False  # what cannot be worked with has given nobody a distribution


def _is_possible(baseline: Baseline, surface: pb.Surface) -> bool | None:
    """Whether no label has a negative count; None where no distribution came along."""
    pseudo, laws = baseline.pseudo_count, baseline.law_array
    seen = False
    for observation in surface.observations:
        at = baseline.index.get(observation.vantage)
        p = np.frombuffer(observation.distribution, dtype="<f4").astype(np.float64)
        if at is None or len(p) != laws.shape[1]:
            continue  # a heartbeat, or what the decision was not made from
        seen = True
        with np.errstate(all="ignore"):
            counts = p * (observation.events + pseudo) - pseudo * laws[at]
            if (counts < -_COUNT_TOLERANCE * pseudo).any():
                return False
    return True if seen else None


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=_RELATIVE, abs_tol=_ABSOLUTE)


def _log(p: float) -> float:
    return math.log(max(p, 1e-300))


class Rechecker:
    """Looks at accepted snapshots after they were acknowledged, while :meth:`run` runs.

    share: of one core, at most. on_mismatch: gets the name of every snapshot with a decision that differs, once.
    on_impossible: of every one with a distribution that cannot be.
    ``decisions`` counts "checked", "mismatch" (decisions), "impossible" and "unchecked" (snapshots: those that
    on_impossible gets, and those that nobody looked at).
    """

    def __init__(
        self,
        baselines: Iterable[Kept],
        *,
        share: float,
        on_mismatch: Callable[[CounterKey], None] = lambda name: None,
        on_impossible: Callable[[CounterKey], None] = lambda name: None,
    ) -> None:
        self._check = DecisionCheck(baselines)
        self._idle_per_busy = 1 / share - 1
        self._on_mismatch = on_mismatch
        self._on_impossible = on_impossible
        self._pool: list[tuple[CounterKey, bytes]] = []
        self._bytes = 0
        # Seeded by the system: what comes out of it is not shown to anybody.
        self._chance = random.Random()
        self._waiting = asyncio.Event()
        self.decisions: Counter[str] = Counter(checked=0, mismatch=0, impossible=0, unchecked=0)

    @property
    def idle(self) -> bool:
        """Whether nothing waits."""
        return not self._pool

    def learn(self, kept: Kept) -> None:
        """A vantage sent a baseline."""
        self._check.learn(kept)

    def offer(self, batch: Batch) -> None:
        """Take the accepted snapshots of a batch, or as many as there is room for."""
        accepted = batch.accepted
        room = _POOL_ITEMS - len(self._pool) if self._bytes < _POOL_BYTES else 0
        if len(accepted) > room:
            self.decisions["unchecked"] += len(accepted) - room
            accepted = self._chance.sample(accepted, room)
            if not accepted:
                self._replace_one(batch)
        for index in accepted:
            self._put(batch, index)
        if self._pool:
            self._waiting.set()

    def _replace_one(self, batch: Batch) -> None:
        """A full pool must not be a shelter for what comes later: something that waits makes room."""
        _, body = self._take()
        self._bytes -= len(body)
        self._put(batch, self._chance.choice(batch.accepted))

    def _put(self, batch: Batch, index: int) -> None:
        header, body = batch.header(index), batch.body(index)
        self._pool.append(((header.vantage_id, header.epoch_id, header.lane, header.counter), body))
        self._bytes += len(body)

    def _take(self) -> tuple[CounterKey, bytes]:
        place = self._chance.randrange(len(self._pool))
        self._pool[place], self._pool[-1] = self._pool[-1], self._pool[place]
        return self._pool.pop()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._waiting.wait()
            begun = time.perf_counter_ns()
            while self._pool and time.perf_counter_ns() - begun < _SLICE_NS:
                name, body = self._take()
                self._bytes -= len(body)
                self._look(name, body)
            if not self._pool:
                self._waiting.clear()
            await asyncio.sleep((time.perf_counter_ns() - begun) * 1e-9 * self._idle_per_busy)

    def _look(self, name: CounterKey, body: bytes) -> None:
        snapshot = pb.Snapshot.FromString(body)
        checks = [self._check.agrees(name[0], surface) for surface in snapshot.surfaces]
        self.decisions["checked"] += sum(check is not None for check in checks)
        self.decisions["mismatch"] += checks.count(False)
        if False in checks:
            self._on_mismatch(name)
        if any(self._check.conserves(name[0], surface) is False for surface in snapshot.surfaces):
            self.decisions["impossible"] += 1
            self._on_impossible(name)
