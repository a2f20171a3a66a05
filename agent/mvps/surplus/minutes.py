# SPDX-License-Identifier: Apache-2.0
"""A tenant's minute: what its engines' packets and its host's pressure add up to, and what follows (002 sec. 8, 11.2).

    SSI   cpu, memory: share of the time in which a task was stalled, capacity 1          reservoir M: the host's
          kernel: phase of the kernel surface, BAU 0, WATCH 1/3, ALARM 2/3, CRITICAL 1    own kernel
          engines: requests running against slots, with those waiting as backlog; kv_cache: share in use, capacity 1
    CRP   growth of the engines' backlog against their slots; rework: share of the packets whose structure was lost;
          CV of the time per token; near misses: share of the packets that hit a hard cap
    SSE   as the engines report it; not known where nobody embeds the texts

Which measure stands for which part is ours: the text names the parts only. The phase is taken as it is, the others
through ``indicators.ssi``. A flow that is not known is left out; SSI* is the largest of the others.

Beside the indicators a minute says the p95 of the packets' time per token (:mod:`mvps.surplus.latency_sketch`), where
at least ``LEAST_TIMED`` packets tell it: of fewer the 95 % quantile is their largest.

A packet belongs to the minute of its own time, [bucket, bucket + 60 s). A minute is closed ``GRACE_NS`` after its end,
so that what was under way still counts; what comes later, or lies ahead of the host's clock, or belongs to one tenant
too many, is refused and counted. Time comes in as an argument: the same packets at the same times give the same bytes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

import numpy as np

from mvps.surplus.indicators import Band, Health, Minute, TenantBaseline, Watch, crp, ssi
from mvps.surplus.latency_sketch import LatencySketch
from mvps.surplus.lookahead import Triggers
from mvps.surplus.packets import Cap, FallbackCause, HealthMinute, State
from mvps.surplus.schedule import Schedule

MINUTE_NS: Final = 60 * 10**9
GRACE_NS: Final = 500_000_000
AHEAD_NS: Final = 2 * 10**9
MAX_TENANTS: Final = 32
# After so many minutes without a packet a tenant is forgotten, and its place free.
SILENT_MINUTES: Final = 60
LEAST_TIMED: Final = 20
REFUSED: Final = ("late", "ahead", "tenants", "clock_step", "spread", "kl_sum")
PHASES: Final = {"BAU": 0.0, "WATCH": 1.0 / 3.0, "ALARM": 2.0 / 3.0, "CRITICAL": 1.0}

# Eight hours: a day of all tenants would be megabytes in every agent.
_BASELINE_MINUTES: Final = 480
_LARGEST: Final = 1e15
_AS_IT_IS: Final = "kernel"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_ONE_MINUTE: Final = timedelta(minutes=1)


class Load(NamedTuple):
    """How loaded one engine is. running, waiting: requests. slots: how many fit. kv_cache: share in use."""

    running: float
    waiting: float
    slots: float
    kv_cache: float


class Directive(NamedTuple):
    """What engines are told about a tenant. Budgets in nats and in logits; sse is NaN where it is not known.

    dlogits_budget: the box whose KL cannot exceed the other budget, sqrt(2 kl_budget).
    """

    tenant: str
    lam: float
    kl_budget: float
    dlogits_budget: float
    sse: float
    band: Band
    bh1: bool
    bh2: bool
    look_ahead: bool


class Bound(NamedTuple):
    """What a policy allows engines to be told: lambda from least to most, at most so many nats a token."""

    lam_least: float
    lam_most: float
    kl_most: float
    look_ahead: bool


@dataclass(slots=True)
class Tally:
    """One tenant's packets of one minute, added up."""

    packets: int = 0
    kl_sum: float = 0.0
    broken: int = 0
    capped: int = 0
    fallbacks: dict[FallbackCause, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    timed: int = 0
    mean_ms: float = 0.0
    squares: float = 0.0
    latency: LatencySketch = field(default_factory=LatencySketch)

    def add(self, cap: Cap) -> None:
        """One packet more."""
        self.packets += 1
        self.kl_sum += cap.kl_used
        self.capped += cap.caps_hit
        if cap.fallback is not FallbackCause.NONE:
            self.fallbacks[cap.fallback] = self.fallbacks.get(cap.fallback, 0) + 1
            self.broken += cap.fallback is FallbackCause.STRUCTURE
        if cap.latency_ms is not None and cap.tokens:
            each = cap.latency_ms / cap.tokens
            self.timed += 1
            off = each - self.mean_ms
            self.mean_ms += off / self.timed
            self.squares += off * (each - self.mean_ms)
            self.latency.add(each)

    @property
    def latency_p95(self) -> float:
        """ms a token; NaN of fewer than ``LEAST_TIMED`` packets."""
        return self.latency.quantile(0.95) if self.timed >= LEAST_TIMED else math.nan

    @property
    def variation(self) -> float:
        """CV of the time per token; 0 of fewer than two packets."""
        if self.timed < 2 or self.mean_ms <= 0.0:
            return 0.0
        return math.sqrt(max(self.squares, 0.0) / (self.timed - 1)) / self.mean_ms


@dataclass(slots=True)
class _Tenant:
    """What is remembered of a tenant. verdict, star: of its last closed minute. minute: of its last packet."""

    watch: Watch = field(
        default_factory=lambda: Watch(
            crp_baseline=TenantBaseline(most=_BASELINE_MINUTES), ssi_baseline=TenantBaseline(most=_BASELINE_MINUTES)
        )
    )
    schedule: Schedule = field(default_factory=Schedule)
    triggers: Triggers = field(default_factory=Triggers)
    spread: float = math.nan
    star: float = math.nan
    verdict: Health | None = None
    health: HealthMinute | None = None
    minute: int = 0


class Minutes:
    """The running minutes of all tenants of one host. One thread at a time.

    refused: packets and figures that did not count, by cause (REFUSED), since the beginning.
    """

    def __init__(self, now_ns: int) -> None:
        self.refused: Counter[str] = Counter()
        self._closed = (now_ns - GRACE_NS) // MINUTE_NS - 1
        self._tallies: dict[int, dict[str, Tally]] = {}
        self._host: dict[int, dict[str, tuple[int, float]]] = {}
        self._tenants: dict[str, _Tenant] = {}
        self._backlog = math.nan
        # By tenant; whoever sets them sees to it that they end.
        self.bounds: dict[str, Bound] = {}

    def take(self, caps: Iterable[Cap], now_ns: int) -> None:
        """Add packets to their minutes."""
        self._follow_clock(now_ns)
        this_minute = now_ns // MINUTE_NS
        latest = _EPOCH + timedelta(microseconds=(now_ns + AHEAD_NS) // 1000)
        for cap in caps:
            minute = (cap.ts - _EPOCH) // _ONE_MINUTE
            cause = "late" if minute <= self._closed else "ahead" if cap.ts > latest else ""
            tenant = self._tenants.get(cap.tenant)
            if tenant is None and not cause:
                if len(self._tenants) < MAX_TENANTS:
                    tenant = self._tenants[cap.tenant] = _Tenant()
                else:
                    cause = "tenants"
            if cause or tenant is None:
                self.refused[cause] += 1
                if tenant is not None and this_minute > self._closed:
                    counts = self._tally(this_minute, cap.tenant).refused
                    counts[cause] = counts.get(cause, 0) + 1
                continue
            tenant.minute = this_minute
            self._tally(minute, cap.tenant).add(cap)

    def note_host(self, flows: Mapping[str, float], now_ns: int) -> None:
        """Pressures in [0, 1] of one tick, by name: shares of the time, and the kernel's phase (PHASES)."""
        self._follow_clock(now_ns)
        sums = self._host.setdefault(now_ns // MINUTE_NS, {})
        for name, value in flows.items():
            count, total = sums.get(name, (0, 0.0))
            # Two clocks that were read one after the other make a share of 1 a little more.
            sums[name] = (count + 1, total + min(max(value, 0.0), 1.0))

    def note_spread(self, tenant: str, sse: float) -> None:
        """The spread of a tenant's texts in [0, 1], as an engine measured it."""
        known = self._tenants.get(tenant)
        if known is None or not 0.0 <= sse <= 1.0:
            self.refused["spread"] += 1
        else:
            known.spread = sse

    def due(self, now_ns: int) -> bool:
        """Whether there is a minute to close."""
        return (now_ns - GRACE_NS) // MINUTE_NS - 1 > self._closed

    def close_due(self, now_ns: int, loads: Iterable[Load], heads: str) -> list[HealthMinute]:
        """Health of every minute whose grace is over, in the order of time and name. heads: ``heads_digest``."""
        self._follow_clock(now_ns)
        if not self.due(now_ns):
            return []
        due = (now_ns - GRACE_NS) // MINUTE_NS - 1
        engines = list(loads)
        slots, _, waiting = _requests(engines)
        # After a minute that nobody knew, what waits is no growth.
        growth = waiting - self._backlog if slots > 0.0 and math.isfinite(self._backlog) else 0.0
        self._backlog = waiting if slots > 0.0 else math.nan
        found = []
        for minute in sorted(minute for minute in self._tallies if minute <= due):
            star = max(self._pressures(minute, engines).values(), default=math.nan)
            for name, tally in sorted(self._tallies.pop(minute).items()):
                found.append(self._judge(minute, name, tally, star, growth, slots, heads))
        self._closed = due
        for over in [minute for minute in self._host if minute <= due]:
            del self._host[over]
        for name in [name for name, one in self._tenants.items() if one.minute + SILENT_MINUTES <= due]:
            del self._tenants[name]
        return found

    def pressures(self, now_ns: int, loads: Iterable[Load]) -> dict[str, float]:
        """SSI of every flow that is known, of the running minute so far."""
        return self._pressures(now_ns // MINUTE_NS, list(loads))

    @property
    def tenants(self) -> list[str]:
        """Their names, in order."""
        return sorted(self._tenants)

    def health(self, tenant: str) -> HealthMinute | None:
        """The last closed minute of a tenant."""
        known = self._tenants.get(tenant)
        return known.health if known else None

    def directive(self, tenant: str) -> Directive:
        """What holds for a tenant now; for one that is not known, what holds at the beginning."""
        one = self._tenants.get(tenant) or _Tenant()
        schedule, verdict, limits = one.schedule, one.verdict, one.triggers
        lam = schedule.rule.base if math.isnan(schedule.lam) else schedule.lam
        budget = schedule.budgets.green if math.isnan(schedule.budget) else schedule.budget
        ordered = False
        if (bound := self.bounds.get(tenant)) is not None:
            # Inside the host's own bounds whatever the policy says, and never more nats than its own schedule has.
            lam = min(max(lam, bound.lam_least), bound.lam_most)
            lam = min(max(lam, schedule.rule.least), schedule.rule.most)
            budget, ordered = min(budget, bound.kl_most), bound.look_ahead
        box = math.sqrt(2.0 * budget)
        if verdict is None:
            return Directive(tenant, lam, budget, box, one.spread, Band.GREEN, False, False, ordered)
        look = ordered or one.star > limits.ssi or verdict.crp_score > limits.crp or verdict.sse < limits.sse
        return Directive(tenant, lam, budget, box, verdict.sse, verdict.band, verdict.bh1, verdict.bh2, look)

    def _follow_clock(self, now_ns: int) -> None:
        """Where the clock was set back by more than a minute, begin anew: else everything were late for as long."""
        minute = now_ns // MINUTE_NS
        if minute >= self._closed:
            return
        self.refused["clock_step"] += sum(one.packets for of in self._tallies.values() for one in of.values())
        self._tallies.clear()
        self._host.clear()
        self._closed = minute - 1
        for tenant in self._tenants.values():
            tenant.minute = minute

    def _tally(self, minute: int, tenant: str) -> Tally:
        of_minute = self._tallies.setdefault(minute, {})
        tally = of_minute.get(tenant)
        if tally is None:
            tally = of_minute[tenant] = Tally()
        return tally

    def _pressures(self, minute: int, engines: list[Load]) -> dict[str, float]:
        means = {name: total / count for name, (count, total) in self._host.get(minute, {}).items()}
        found = {name: value for name, value in means.items() if name == _AS_IT_IS}
        flows = {name: (value, 1.0, 0.0) for name, value in means.items() if name != _AS_IT_IS}
        slots, running, waiting = _requests(engines)
        if slots > 0.0:
            flows["engines"] = (running, slots, waiting)
        if engines:
            flows["kv_cache"] = (max(one.kv_cache for one in engines), 1.0, 0.0)
        if flows:
            activity, capacity, backlog = np.array(list(flows.values())).T
            found |= dict(zip(flows, ssi(activity, capacity, backlog).tolist(), strict=True))
        return found

    def _judge(
        self, minute: int, name: str, tally: Tally, star: float, growth: float, slots: float, heads: str
    ) -> HealthMinute:
        tenant = self._tenants[name]
        fragility = math.nan
        if tally.packets:
            fragility = crp(growth, slots, tally.broken / tally.packets, tally.variation, tally.capped / tally.packets)
        tenant.watch, verdict = tenant.watch.step(Minute(tenant.spread, fragility, star))
        tenant.schedule = tenant.schedule.step(star, tenant.watch.crp, verdict.sse, verdict.xi, verdict.band)
        tenant.verdict, tenant.star = verdict, star
        if tally.kl_sum > _LARGEST:
            # No distribution is so far from another: the packets say what cannot be.
            self.refused["kl_sum"] += 1
            tally.refused["kl_sum"] = 1
        told = self.directive(name)
        tenant.health = HealthMinute.model_validate(
            {
                "bucket": _EPOCH + minute * _ONE_MINUTE,
                "tenant": name,
                "sse": _known(verdict.sse),
                "crp": _known(fragility),
                "ssi_star": _known(star),
                "crp_score": _known(verdict.crp_score),
                "ssi_star_score": _known(verdict.ssi_score),
                "xi": _known(verdict.xi),
                "lam": told.lam,
                "kl_budget": told.kl_budget,
                "dlogits_budget": told.dlogits_budget,
                "state": State[verdict.band.name],
                "bh1": verdict.bh1,
                "bh2": verdict.bh2,
                "packets": tally.packets,
                "refused": tally.refused,
                "fallbacks": tally.fallbacks,
                "kl_sum": min(tally.kl_sum, _LARGEST),
                "cap_head": heads,
                "latency_p95": _known(min(tally.latency_p95, _LARGEST)),
            }
        )
        return tenant.health


@dataclass(slots=True)
class Decided:
    """What the packets of one minute of one tenant say was decided. lam, kl_budget: least and most."""

    bucket: datetime
    tenant: str
    packets: int = 0
    tokens: int = 0
    kl_used: float = 0.0
    lam: tuple[float, float] = (math.inf, -math.inf)
    kl_budget: tuple[float, float] = (math.inf, -math.inf)
    states: set[State] = field(default_factory=set)
    bh1: bool = False
    bh2: bool = False
    fallbacks: Counter[FallbackCause] = field(default_factory=Counter)

    def add(self, cap: Cap) -> None:
        """One packet more."""
        self.packets += 1
        self.tokens += cap.tokens
        self.kl_used += cap.kl_used
        self.lam = (min(self.lam[0], cap.lam), max(self.lam[1], cap.lam))
        self.kl_budget = (min(self.kl_budget[0], cap.kl_budget), max(self.kl_budget[1], cap.kl_budget))
        self.states.add(cap.state)
        self.bh1, self.bh2 = self.bh1 or cap.bh1, self.bh2 or cap.bh2
        if cap.fallback is not FallbackCause.NONE:
            self.fallbacks[cap.fallback] += 1


def decided(caps: Iterable[Cap], so_far: dict[tuple[datetime, str], Decided]) -> None:
    """Add packets to their minutes, which are made as they are met."""
    for cap in caps:
        bucket = cap.ts.replace(second=0, microsecond=0)
        one = so_far.get((bucket, cap.tenant))
        if one is None:
            one = so_far[bucket, cap.tenant] = Decided(bucket, cap.tenant)
        one.add(cap)


def _requests(engines: list[Load]) -> tuple[float, float, float]:
    """Slots, running and waiting requests of the engines whose slots are known: of others no share can be said."""
    sized = [one for one in engines if one.slots > 0.0]
    return sum(one.slots for one in sized), sum(one.running for one in sized), sum(one.waiting for one in sized)


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
