# SPDX-License-Identifier: Apache-2.0
"""What the history keeps of tenants (002 app. C.2), for SQLite and PostgreSQL, and its rows.

``mvps_health`` is what hosts said, a row per minute, tenant and host; ``mvps_tenants`` what the broker made of it, a
row per minute and tenant; ``mvps_changes`` the audit trail; ``mvps_policies`` the text of every policy that was ever in
use; ``mvps_incidents`` what people recorded, of which the row recorded last counts. Times are nanoseconds since the
Unix epoch, and ``tick_ns`` of a minute is its beginning: [tick_ns, tick_ns + 60 s). Raw audit packets and cluster
assignments (C2.1, C2.3) stay in the engines' own records: no host sends them.
"""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any, Final, NamedTuple

import sqlalchemy as sa

from mvps.surplus.fleet_health import TenantMinute
from mvps.surplus.governance import Change
from mvps.surplus.indicators import Band
from mvps.surplus.minutes import MINUTE_NS
from mvps.surplus.packets import HealthMinute, Incident, Policy, State, digest, render

META: Final = sa.MetaData()
_STATES: Final = {state: number for number, state in enumerate(State)}


def _tick() -> sa.Column[int]:
    return sa.Column("tick_ns", sa.BigInteger, primary_key=True, autoincrement=False)


HEALTH: Final = sa.Table(
    "mvps_health",
    META,
    _tick(),
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("vantage", sa.Text, primary_key=True),
    sa.Column("received_ns", sa.BigInteger, nullable=False),
    *(sa.Column(name, sa.Double) for name in ("sse", "crp", "ssi_star", "crp_score", "ssi_star_score", "xi")),
    *(sa.Column(name, sa.Double, nullable=False) for name in ("lam", "kl_budget", "dlogits_budget")),
    *(sa.Column(name, sa.SmallInteger, nullable=False) for name in ("state", "bh1", "bh2")),
    *(sa.Column(name, sa.BigInteger, nullable=False) for name in ("packets", "refused", "fallbacks")),
    sa.Column("kl_sum", sa.Double, nullable=False),
    sa.Column("cap_head", sa.Text, nullable=False),
    sa.Index("mvps_health_by_tenant", "tenant", "tick_ns"),
    sqlite_with_rowid=False,
)
TENANTS: Final = sa.Table(
    "mvps_tenants",
    META,
    _tick(),
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("decided_ns", sa.BigInteger, nullable=False),
    sa.Column("hosts", sa.Integer, nullable=False),
    sa.Column("outliers", sa.Integer, nullable=False),
    *(sa.Column(name, sa.Double) for name in ("sse", "crp", "ssi_star", "crp_score", "ssi_star_score", "xi")),
    *(sa.Column(name, sa.Double, nullable=False) for name in ("lam", "kl_budget")),
    *(sa.Column(name, sa.SmallInteger, nullable=False) for name in ("state", "bh1", "bh2", "rung")),
    sa.Column("stage", sa.Text, nullable=False),
    sa.Column("version", sa.BigInteger),  # of its policy; null without one
    sa.Index("mvps_tenants_by_tenant", "tenant", "tick_ns"),
    sqlite_with_rowid=False,
)
CHANGES: Final = sa.Table(
    "mvps_changes",
    META,
    _tick(),
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("what", sa.Text, primary_key=True),
    *(sa.Column(name, sa.Text, nullable=False) for name in ("before", "after", "why", "who")),
    *(sa.Column(name, sa.Double) for name in ("xi", "sse", "crp_score")),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("dry_run", sa.SmallInteger, nullable=False),
    sqlite_with_rowid=False,
)
POLICIES: Final = sa.Table(
    "mvps_policies",
    META,
    _tick(),
    sa.Column("tenant", sa.Text, primary_key=True),  # or the class
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sqlite_with_rowid=False,
)
INCIDENTS: Final = sa.Table(
    "mvps_incidents",
    META,
    _tick(),  # when it was recorded
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("started_ns", sa.BigInteger, nullable=False),
    sa.Column("ended_ns", sa.BigInteger),
    *(sa.Column(name, sa.Text, nullable=False) for name in ("cause", "severity", "summary")),
    sa.Column("rung", sa.SmallInteger),
    sa.Column("who", sa.Text, nullable=False),
    sqlite_with_rowid=False,
)
MINUTES: Final = (HEALTH, TENANTS)
AUDIT: Final = (CHANGES, POLICIES, INCIDENTS)


class HealthRow(NamedTuple):
    """What one host said of one tenant's minute."""

    vantage: str
    received_ns: int
    health: HealthMinute

    def values(self) -> tuple[Any, ...]:
        """In the order of the columns."""
        one = self.health
        return (
            round(one.bucket.timestamp()) * 10**9,
            one.tenant,
            self.vantage,
            self.received_ns,
            *(one.sse, one.crp, one.ssi_star, one.crp_score, one.ssi_star_score, one.xi),
            *(one.lam, one.kl_budget, one.dlogits_budget),
            *(_STATES[one.state], int(one.bh1), int(one.bh2)),
            *(one.packets, sum(one.refused.values()), sum(one.fallbacks.values())),
            one.kl_sum,
            one.cap_head,
        )


class TenantRow(NamedTuple):
    """What the broker made of a tenant's minute. version: of its policy, None without one."""

    tenant: str
    decided_ns: int
    outliers: int
    made: TenantMinute
    rung: int
    stage: str
    version: int | None

    def values(self) -> tuple[Any, ...]:
        """In the order of the columns."""
        made, health = self.made, self.made.health
        figures = (health.sse, made.crp, made.ssi_star, health.crp_score, health.ssi_score, health.xi)
        return (
            made.minute * MINUTE_NS,
            self.tenant,
            self.decided_ns,
            made.hosts,
            self.outliers,
            *map(_known, figures),
            *(made.lam, made.kl_budget),
            *(int(health.band), int(health.bh1), int(health.bh2), self.rung),
            self.stage,
            self.version,
        )


class ChangeRow(NamedTuple):
    """One audited change, and when it was made."""

    at_ns: int
    change: Change

    def values(self) -> tuple[Any, ...]:
        """In the order of the columns."""
        one = self.change
        return (
            self.at_ns,
            *(one.tenant, one.what, one.before, one.after, one.why, one.by),
            *map(_known, (one.xi, one.sse, one.crp_score)),
            one.version,
            int(one.dry_run),
        )

    @classmethod
    def of(cls, row: Any) -> ChangeRow:
        """From the database."""
        xi, sse, crp_score = (math.nan if value is None else value for value in (row.xi, row.sse, row.crp_score))
        change = Change(
            minute=row.tick_ns // MINUTE_NS,
            tenant=row.tenant,
            what=row.what,
            before=row.before,
            after=row.after,
            why=row.why,
            by=row.who,
            xi=xi,
            sse=sse,
            crp_score=crp_score,
            version=row.version,
            dry_run=bool(row.dry_run),
        )
        return cls(row.tick_ns, change)


class PolicyRow(NamedTuple):
    """A policy that came into use."""

    at_ns: int
    policy: Policy

    def values(self) -> tuple[Any, ...]:
        """In the order of the columns."""
        one = self.policy
        return (self.at_ns, one.tenant, one.version, digest(one), render(one).decode())


class IncidentRow(NamedTuple):
    """An incident as somebody recorded it."""

    at_ns: int
    incident: Incident
    who: str

    def values(self) -> tuple[Any, ...]:
        """In the order of the columns."""
        one = self.incident
        ended = None if one.ended_at is None else _ns(one.ended_at)
        texts = (one.cause.value, one.severity.value, one.summary)
        return (self.at_ns, one.id, one.tenant, _ns(one.started_at), ended, *texts, one.rollback_rung, self.who)


def band_name(number: int) -> str:
    """The state that a band's number stands for."""
    return State[Band(number).name].value


def _ns(at: datetime) -> int:
    return round(at.timestamp() * 1e6) * 1000


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
