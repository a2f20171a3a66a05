# SPDX-License-Identifier: Apache-2.0
"""Active path probing, the agent's side: what the walks of traceroute.py add to the data-plane surface.

The process that sends is a child of its own (scapy alone would take half of the agent's memory); its lines are read
from a pipe without waiting. Per (destination, flow identity) there is

- a path *fingerprint*: hash of the hop addresses. Silent hops are wildcards (ours): a walk that agrees with a known
  path wherever both answered has that path's fingerprint, and fills its gaps; a walk that did not reach its
  destination agrees as the beginning of a path. So a router that skips an answer changes nothing;
- *hop edges*: pairs of neighbouring hops that both answered;
- a round trip, for the checks of :mod:`mvps.coherence.causal`.

A walk takes seconds, a tick less. So each tick shows what stands (ours): per flow the fingerprints of its last 8
walks, the edges of its last, and one verdict for each kind of check, which is violated while any destination violates
it. One verdict a kind, because a fleet of healthy destinations must not outvote the witnesses beside it.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import math
import os
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from mvps.coherence.causal import Geography, RoundTripFloor
from mvps.vantages.keys import stable_key
from mvps.vantages.probe_plan import ProbePlan

# Walks of a flow whose fingerprints stand, and paths remembered per flow.
_WALKS, _PATHS = 8, 32
# Walks in a row that may miss the destination before the path's far edges are taken down: routers limit their answers.
_MISSES = 3
_MAX_LINE = 1 << 14
_RESTART_S = 60.0
_SOURCE = "self"  # the first edge leaves this host

Hops = tuple[str | None, ...]


@dataclass(frozen=True, slots=True)
class Walked:
    """One finished walk. hops: (address, RTT in s) per TTL from 1, None where nobody answered."""

    destination: str
    flow: int
    hops: tuple[tuple[str, float] | None, ...]
    reached: bool
    counts: Mapping[str, int]

    @property
    def addresses(self) -> Hops:
        """Hop addresses only."""
        return tuple(hop[0] if hop else None for hop in self.hops)

    @property
    def round_trip_s(self) -> float | None:
        """RTT of the destination; None when it was not reached."""
        last = self.hops[-1] if self.hops and self.reached else None
        return last[1] if last else None


def parse_walk(line: bytes, plan: ProbePlan) -> Walked:
    """One line of the child. ValueError when it is not a walk of this plan: the child reads what strangers send."""
    document: Any = json.loads(line)
    try:
        destination, flow, reached = document["destination"], document["flow"], document["reached"]
        hops = tuple(
            None if h is None else (str(ipaddress.ip_address(str(h[0]))), float(h[1])) for h in document["hops"]
        )
        counts = {str(name): int(n) for name, n in document["counts"].items()}
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f"not a walk: {error}") from None
    known = destination in {d.address for d in plan.destinations}
    if not known or flow not in range(plan.flows) or len(hops) > plan.max_ttl or len(counts) > 16:
        raise ValueError("not a walk of this plan")
    if any(hop and not 0.0 <= hop[1] <= plan.timeout for hop in hops):
        raise ValueError("a round trip outside the timeout")
    return Walked(destination, flow, hops, bool(reached), counts)


@dataclass(slots=True)
class KnownPath:
    """A path some walks of one flow agreed on, with the answers of all of them."""

    fingerprint: int
    hops: Hops
    reached: bool
    floor: RoundTripFloor = field(default_factory=RoundTripFloor)

    def agrees(self, hops: Hops, reached: bool) -> bool:
        """Whether a walk may have gone this way: no hop contradicts, and the lengths fit."""
        if any(a and b and a != b for a, b in zip(self.hops, hops, strict=False)):
            return False
        if reached and self.reached:
            return len(hops) == len(self.hops)
        return (not self.reached or len(hops) < len(self.hops)) and (not reached or len(self.hops) < len(hops))

    def fill(self, hops: Hops, reached: bool) -> None:
        """Take over what an agreeing walk saw and this path did not know yet."""
        length = max(len(self.hops), len(hops))
        mine, theirs = self.hops + (None,) * (length - len(self.hops)), hops + (None,) * (length - len(hops))
        self.hops = tuple(a or b for a, b in zip(mine, theirs, strict=True))
        self.reached = self.reached or reached


def named_edges(hops: Hops) -> dict[int, str]:
    """Key -> name of each pair of neighbouring hops that both answered, from this host on."""
    line = (_SOURCE, *hops)
    pairs = ((a, b) for a, b in pairwise(line) if a and b)
    return {stable_key("edge", a, b): f"{a} -> {b}" for a, b in pairs}


@dataclass(slots=True)
class FlowHistory:
    """What is known of one flow identity to one destination; ``key`` names it in an observation."""

    key: int
    paths: list[KnownPath] = field(default_factory=list)  # most recently walked last
    recent: deque[int] = field(default_factory=lambda: deque(maxlen=_WALKS))
    walked: Walked | None = None
    walked_at: float = 0.0
    missed: int = 0
    floor_holds: bool | None = None
    edges: dict[int, str] = field(default_factory=dict)  # those that stand: key -> name
    forgotten: int = 0

    def add(self, walked: Walked, now: float) -> None:
        """Take in a finished walk; ``now`` in s on the monotonic clock."""
        self.walked, self.walked_at = walked, now
        self.missed = 0 if walked.reached else self.missed + 1
        self.floor_holds = None
        hops = walked.addresses
        if not any(hops):  # nobody answered: that is silence, not a path
            if self.missed >= _MISSES:
                self.edges = {}
            return
        path = next((known for known in reversed(self.paths) if known.agrees(hops, walked.reached)), None)
        if path is None:
            print_ = stable_key("hops", *(hop or "*" for hop in hops), "reached" if walked.reached else "")
            path = KnownPath(print_, hops, walked.reached)
            self.forgotten += len(self.paths) >= _PATHS
            self.paths = self.paths[-_PATHS + 1 :]
        else:
            self.paths.remove(path)
            path.fill(hops, walked.reached)
        self.paths.append(path)
        self.recent.append(path.fingerprint)
        self.edges = named_edges(path.hops if self.missed < _MISSES else hops)
        if walked.round_trip_s is not None:
            self.floor_holds = path.floor.add(walked.round_trip_s)

    def clear(self) -> None:
        """Forget what stands; paths and their floors stay known."""
        self.recent.clear()
        self.edges = {}
        self.walked, self.floor_holds = None, None


@dataclass(frozen=True, slots=True)
class Probed:
    """What active probing adds to one observation; fields as in Observation."""

    fingerprints: Mapping[int, Mapping[int, float]] = field(default_factory=dict)
    objects: Mapping[int, float] = field(default_factory=dict)
    checked: float = 0.0
    violated: float = 0.0
    facts: Mapping[str, float] = field(default_factory=dict)
    degraded: str = ""


class Findings:
    """What stands from the walks so far: fingerprints, edges and verdicts."""

    def __init__(self, plan: ProbePlan) -> None:
        self._geography = Geography(plan.here, {d.address: d.place for d in plan.destinations if d.place})
        self._flows: dict[tuple[str, int], FlowHistory] = {}
        self._names: dict[int, str] = {}
        # A walk older than two sweeps says nothing about now.
        self._lifetime_s = 2.0 * plan.longest_sweep_s
        self._shown = Probed()
        self._shown_until = math.inf  # most ticks see no new walk: nothing is worked out again before this

    def add(self, walked: Walked, now: float) -> None:
        """Take in a finished walk; ``now`` in s on the monotonic clock."""
        key = (walked.destination, walked.flow)
        if key not in self._flows:
            self._flows[key] = FlowHistory(stable_key("flow", *key))
        self._flows[key].add(walked, now)
        self._shown_until = -math.inf

    def clear(self) -> None:
        """Forget what stands; paths and their floors stay known."""
        for history in self._flows.values():
            history.clear()
        self._shown_until = -math.inf

    def show(self, now: float) -> Probed:
        """What stands at ``now``, in s on the monotonic clock."""
        if now > self._shown_until:
            self._shown = self._work_out(now)
        return self._shown

    def _work_out(self, now: float) -> Probed:
        live = {
            key: history
            for key, history in self._flows.items()
            if history.walked and now - history.walked_at <= self._lifetime_s
        }
        oldest = min((history.walked_at for history in live.values()), default=math.inf)
        self._shown_until = oldest + self._lifetime_s
        prints: dict[int, dict[int, float]] = {}
        objects: dict[int, float] = {}
        names: dict[int, str] = {}
        round_trips: dict[str, float] = {}
        for (destination, _), history in live.items():
            if history.recent:
                prints[history.key] = {one: float(history.recent.count(one)) for one in set(history.recent)}
            for key, name in history.edges.items():
                objects[key] = objects.get(key, 0.0) + 1.0
                names[key] = name
            rtt = history.walked.round_trip_s if history.walked else None
            if rtt is not None:
                round_trips[destination] = min(rtt, round_trips.get(destination, rtt))
        self._names = names

        by_site = self._geography.site_checks(round_trips)
        by_pair = self._geography.pair_checks(round_trips)
        by_floor = [history.floor_holds for history in live.values() if history.floor_holds is not None]
        verdicts = [list(by_site.values()), list(by_pair.values()), by_floor]
        walked = {destination for destination, _ in live}
        facts = {
            "probe.destinations_reached": float(len(round_trips)),
            "probe.destinations_walked": float(len(walked)),
            "probe.below_floor": float(by_floor.count(False)),
            "probe.impossible_pairs": float(sum(not possible for possible in by_pair.values())),
            **{f"probe.rtt_ms.{address}": 1e3 * rtt for address, rtt in round_trips.items()},
            **{
                f"probe.least_ms.{address}": 1e3 * self._geography.site_floor_s[address]
                for address, possible in by_site.items()
                if not possible
            },
        }
        return Probed(
            prints,
            objects,
            checked=float(sum(bool(verdict) for verdict in verdicts)),
            violated=float(sum(not all(verdict) for verdict in verdicts)),
            facts=facts,
        )

    def paths(self) -> dict[tuple[str, int], Hops]:
        """(destination, flow) -> the hops of its present path."""
        return {key: history.paths[-1].hops for key, history in self._flows.items() if history.paths}

    def object_names(self, keys: Iterable[int]) -> dict[int, str]:
        """Names of the edges that stand."""
        return {key: self._names[key] for key in keys if key in self._names}

    def forgotten(self) -> int:
        """Paths that were dropped because a flow had too many."""
        return sum(history.forgotten for history in self._flows.values())


class Prober:
    """The probing child and what it found. One that cannot run says why in ``degraded``."""

    def __init__(self, plan: ProbePlan) -> None:
        self._plan = plan
        self.findings = Findings(plan)
        self._losses: Counter[str] = Counter()
        self._counts: Mapping[str, int] = {}
        self._ended_counts: Counter[str] = Counter()
        self._line = b""
        self._failure = ""
        self._restart_at = 0.0
        self._child: subprocess.Popen[bytes] | None = None
        self._start()

    @property
    def pid(self) -> int:
        """Process id of the child, 0 when there is none."""
        return self._child.pid if self._child else 0

    def _start(self) -> None:
        # Nothing of the agent's environment but what finds Python and this package: no credentials to a parser of
        # strangers' packets, and no home in which scapy would make its directories. A session of its own keeps a
        # terminal's signals away.
        kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "VIRTUAL_ENV") if name in os.environ}
        try:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "mvps.vantages.traceroute"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**kept, "HOME": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1"},
                cwd="/",
                start_new_session=True,
            )
            assert self._child.stdin is not None
            assert self._child.stdout is not None
            os.set_blocking(self._child.stdout.fileno(), False)
            self._child.stdin.write(self._plan.to_json().encode() + b"\n")
            self._child.stdin.flush()
        except OSError as error:
            self._ended(f"path probing: {error}")

    def read(self) -> Probed:
        """What stands now. Never waits."""
        now = time.monotonic()
        if self._child is not None:
            self._drain(now)
        elif not self._failure and now >= self._restart_at:
            self._losses["probe.restarts"] += 1
            self._start()
        shown = self.findings.show(now)
        if self._child is None:
            return Probed(degraded=self._failure or "the path prober ended; it is started again within a minute")
        totals = self._ended_counts + Counter(self._counts)
        counted = {f"probe.{name}": float(totals[name]) for name in ("sent", "answered", "unanswered", "foreign")}
        return Probed(
            shown.fingerprints,
            shown.objects,
            shown.checked,
            shown.violated,
            {**shown.facts, **counted},
        )

    def _drain(self, now: float) -> None:
        assert self._child is not None
        assert self._child.stdout is not None
        try:
            data = os.read(self._child.stdout.fileno(), 1 << 16)
        except BlockingIOError:
            return
        *lines, self._line = (self._line + data).split(b"\n")
        for line in lines:
            self._take(line, now)
        if len(self._line) > _MAX_LINE:
            self._losses["probe.malformed"] += 1
            self._line = b""
        if not data and self._child is not None:
            self._ended("")

    def _take(self, line: bytes, now: float) -> None:
        try:
            if line.startswith(b'{"failed"'):
                self._ended(str(json.loads(line)["failed"])[:200])
                return
            walked = parse_walk(line, self._plan)
        except (ValueError, RecursionError):
            self._losses["probe.malformed"] += 1
            return
        self._counts = walked.counts
        self.findings.add(walked, now)

    def _ended(self, failure: str) -> None:
        """The child is gone, with or without a reason that a restart would not heal."""
        self._failure = failure
        self._restart_at = time.monotonic() + _RESTART_S
        self._ended_counts.update(self._counts)
        self._counts, self._line = {}, b""
        self.findings.clear()
        self._reap()

    def _reap(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # a plan that could not be written to a child that was gone
                    pipe.close()
        child.kill()  # it holds nothing that must be put in order
        child.wait()

    def losses(self) -> dict[str, int]:
        """Totals of what was sent or said in vain, by cause."""
        totals = self._ended_counts + Counter(self._counts)
        return {
            "probe.malformed": self._losses["probe.malformed"],
            "probe.restarts": self._losses["probe.restarts"],
            "probe.paths_forgotten": self.findings.forgotten(),
            **{f"probe.{cause}": totals[cause] for cause in ("send_failed", "late")},
        }

    def object_names(self, keys: Iterable[int]) -> dict[int, str]:
        """Names of hop edges."""
        return self.findings.object_names(keys)

    def close(self) -> None:
        """End the child; idempotent."""
        self._reap()
