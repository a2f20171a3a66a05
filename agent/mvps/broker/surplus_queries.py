# SPDX-License-Identifier: Apache-2.0
"""Questions about tenants over the history (002 app. C.3, C.7), in SQL that SQLite and PostgreSQL both run.

What the text's own queries do wrong, and what is asked here instead (docs/errata.md has the rows):

- C3.1 does not run (a window's COUNT(DISTINCT), a column that is not grouped), calls one cluster "healthy" and a
  saturated tenant Green. Minutes are rolled up in the agent, from packets; ``rolled_up`` rolls the hosts' minutes up to
  the tenant's, by the order statistic of :func:`mvps.surplus.fleet_health.worst`, so that what the broker stored can be
  checked against what the hosts said.
- C3.2 has no debounce: each row sees only itself. ``raised`` counts breaches in windows of *time*, so that minutes
  which are missing are not taken for a row.
- C3.3 takes the last minute of an alert for its beginning, so that leads are short exactly where warnings were long.
  ``leads`` takes the onset of the alert that stood, or stood last, before the incident.
- C3.4 and C.7 run; ``hours`` and ``duty`` are those over minutes, since packets stay on the hosts.

Times are nanoseconds since the Unix epoch; ``until_ns`` is not included.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal, NamedTuple

import sqlalchemy as sa

from mvps.broker.surplus_tables import band_name
from mvps.surplus.indicators import CRP_LIMIT
from mvps.surplus.minutes import MINUTE_NS

HOUR_NS: Final = 60 * MINUTE_NS
Indicator = Literal["sse", "crp", "ssi_star", "crp_score", "ssi_star_score", "xi"]


class Duty(NamedTuple):
    """How many minutes a tenant spent in a state, and their share of its minutes."""

    tenant: str
    state: str
    minutes: int
    share: float


class Raised(NamedTuple):
    """Whether each alert's breaches reach its number in the windows that end with a minute."""

    tick_ns: int
    bh1: bool
    bh2: bool


class LeadTime(NamedTuple):
    """Minutes from the onset of each alert to an incident; None without one."""

    id: str
    tenant: str
    started_ns: int
    bh1: float | None
    bh2: float | None


class Hour(NamedTuple):
    """One hour of a tenant over its hosts. fallbacks: a packet. stress: share of host minutes in Action or worse."""

    tick_ns: int
    tenant: str
    host_minutes: int
    packets: int
    fallbacks: float
    lam: float
    kl_budget: float
    stress: float


_ROLLED_UP: Final = """
SELECT tick_ns, value FROM (
  SELECT h.tick_ns AS tick_ns, h.{column} AS value, t.outliers AS f,
         ROW_NUMBER() OVER (PARTITION BY h.tick_ns ORDER BY h.{column} {order}) AS place,
         COUNT(*) OVER (PARTITION BY h.tick_ns) AS known
  FROM mvps_health h JOIN mvps_tenants t ON t.tick_ns = h.tick_ns AND t.tenant = h.tenant
  WHERE h.tenant = :tenant AND h.tick_ns >= :since AND h.tick_ns < :until
    AND h.received_ns <= t.decided_ns AND h.{column} IS NOT NULL
) AS placed
WHERE place = 1 + CASE WHEN f < (known - 1) / 2 THEN f ELSE (known - 1) / 2 END
ORDER BY tick_ns
"""

_DUTY: Final = """
SELECT tenant, state, COUNT(*) AS minutes, 1.0 * COUNT(*) / SUM(COUNT(*)) OVER (PARTITION BY tenant) AS share
FROM mvps_tenants WHERE tick_ns >= :since AND tick_ns < :until
GROUP BY tenant, state ORDER BY tenant, state
"""

_RAISED: Final = """
WITH breaches AS (
  SELECT tick_ns,
         CASE WHEN sse <= :sse AND crp_score >= :crp THEN 1 ELSE 0 END AS first,
         CASE WHEN xi >= :xi THEN 1 ELSE 0 END AS second
  FROM mvps_tenants WHERE tenant = :tenant AND tick_ns >= :since - 9 * {minute} AND tick_ns < :until
)
SELECT tick_ns, in_3, in_10 FROM (
  SELECT tick_ns,
         SUM(first) OVER (ORDER BY tick_ns RANGE BETWEEN 2 * {minute} PRECEDING AND CURRENT ROW) AS in_3,
         SUM(second) OVER (ORDER BY tick_ns RANGE BETWEEN 9 * {minute} PRECEDING AND CURRENT ROW) AS in_10
  FROM breaches
) AS counted
WHERE tick_ns >= :since ORDER BY tick_ns
""".replace("{minute}", str(MINUTE_NS))

# An onset is a minute with the alert whose predecessor, at most five minutes before, has none.
_LEADS: Final = """
WITH courses AS (
  SELECT tenant, tick_ns, bh1, bh2,
         MAX(bh1) OVER earlier AS bh1_before, MAX(bh2) OVER earlier AS bh2_before
  FROM mvps_tenants
  WHERE tick_ns >= :since - :horizon
  WINDOW earlier AS (PARTITION BY tenant ORDER BY tick_ns RANGE BETWEEN {gap} PRECEDING AND {minute} PRECEDING)
), latest AS (
  SELECT id, MAX(tick_ns) AS recorded_ns FROM mvps_incidents GROUP BY id
), incidents AS (
  SELECT i.id, i.tenant, i.started_ns FROM mvps_incidents i
  JOIN latest l ON l.id = i.id AND l.recorded_ns = i.tick_ns
  WHERE i.started_ns >= :since AND i.started_ns < :until
)
SELECT i.id, i.tenant, i.started_ns,
  (SELECT MAX(c.tick_ns) FROM courses c WHERE c.tenant = i.tenant AND c.tick_ns <= i.started_ns
     AND c.tick_ns >= i.started_ns - :horizon AND c.bh1 = 1 AND COALESCE(c.bh1_before, 0) = 0) AS first_onset,
  (SELECT MAX(c.tick_ns) FROM courses c WHERE c.tenant = i.tenant AND c.tick_ns <= i.started_ns
     AND c.tick_ns >= i.started_ns - :horizon AND c.bh2 = 1 AND COALESCE(c.bh2_before, 0) = 0) AS second_onset
FROM incidents i ORDER BY i.started_ns, i.id
""".replace("{minute}", str(MINUTE_NS)).replace("{gap}", str(5 * MINUTE_NS))

_HOURS: Final = """
SELECT tick_ns - tick_ns % {hour} AS hour, tenant, COUNT(*) AS host_minutes, SUM(packets) AS packets,
       1.0 * SUM(fallbacks) / CASE WHEN SUM(packets) > 0 THEN SUM(packets) ELSE 1 END AS fallbacks,
       AVG(lam) AS lam, AVG(kl_budget) AS kl_budget, AVG(CASE WHEN state >= 2 THEN 1.0 ELSE 0.0 END) AS stress
FROM mvps_health WHERE tick_ns >= :since AND tick_ns < :until
GROUP BY tick_ns - tick_ns % {hour}, tenant ORDER BY hour, tenant
""".replace("{hour}", str(HOUR_NS))


def rolled_up(
    connection: sa.Connection, tenant: str, indicator: Indicator, since_ns: int, until_ns: int
) -> dict[int, float]:
    """C3.1: an indicator of every minute of a tenant, out of what its hosts had said when it was decided."""
    order = "ASC" if indicator == "sse" else "DESC"
    query = _ROLLED_UP.replace("{column}", indicator).replace("{order}", order)
    found = _rows(connection, query, tenant=tenant, since=since_ns, until=until_ns)
    return {row.tick_ns: float(row.value) for row in found}


def unfounded(connection: sa.Connection, tenant: str, since_ns: int, until_ns: int) -> list[int]:
    """Minutes whose stored Xi does not follow from what the hosts said: none, unless rows were changed or lost."""
    founded = rolled_up(connection, tenant, "xi", since_ns, until_ns)
    query = "SELECT tick_ns, xi FROM mvps_tenants WHERE tenant = :tenant AND tick_ns >= :since AND tick_ns < :until"
    stored = _rows(connection, query, tenant=tenant, since=since_ns, until=until_ns)
    return sorted(row.tick_ns for row in stored if row.xi != founded.get(row.tick_ns))


def duty(connection: sa.Connection, since_ns: int, until_ns: int) -> list[Duty]:
    """C.7: how long every tenant was in which state."""
    found = _rows(connection, _DUTY, since=since_ns, until=until_ns)
    return [Duty(row.tenant, band_name(row.state), row.minutes, float(row.share)) for row in found]


def raised(
    connection: sa.Connection,
    tenant: str,
    since_ns: int,
    until_ns: int,
    *,
    sse: float = 0.45,
    crp: float = CRP_LIMIT,
    xi: float = 0.65,
) -> list[Raised]:
    """C3.2: BH-1 where 3 minutes of 3 breach, BH-2 where 3 of 10 do, by the tenant's figures and these limits.

    What raises the alerts only: what clears them is a machine's (``indicators.Alarm``).
    """
    limits = {"sse": sse, "crp": crp, "xi": xi}
    found = _rows(connection, _RAISED, tenant=tenant, since=since_ns, until=until_ns, **limits)
    return [Raised(row.tick_ns, row.in_3 >= 3, row.in_10 >= 3) for row in found]


def leads(connection: sa.Connection, since_ns: int, until_ns: int, horizon_ns: int = 24 * HOUR_NS) -> list[LeadTime]:
    """C3.3: by how much alerts came before incidents. horizon_ns: an older onset is of something else.

    A gap of up to five minutes in an alert, or in what is stored, is no new onset.
    """
    found = _rows(connection, _LEADS, since=since_ns, until=until_ns, horizon=horizon_ns)
    return [
        LeadTime(
            row.id,
            row.tenant,
            row.started_ns,
            *(
                None if onset is None else (row.started_ns - onset) / MINUTE_NS
                for onset in (row.first_onset, row.second_onset)
            ),
        )
        for row in found
    ]


def hours(connection: sa.Connection, since_ns: int, until_ns: int) -> list[Hour]:
    """C3.4 and C.7: by the hour and tenant, how hard engines were told to push, and how much of it was under stress."""
    found = _rows(connection, _HOURS, since=since_ns, until=until_ns)
    return [
        Hour(
            row.hour,
            row.tenant,
            row.host_minutes,
            int(row.packets),
            *(float(value) for value in (row.fallbacks, row.lam, row.kl_budget, row.stress)),
        )
        for row in found
    ]


def _rows(connection: sa.Connection, query: str, **values: object) -> Sequence[Any]:
    return connection.execute(sa.text(query), values).all()
