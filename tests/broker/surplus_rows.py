# SPDX-License-Identifier: Apache-2.0
"""A tenant's minutes as the broker stores them, from what hosts said."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.surplus.health_sample import health

from mvps.broker.history import History
from mvps.broker.surplus_tables import HealthRow, TenantRow
from mvps.surplus.fleet_health import combine, limits_of
from mvps.surplus.minutes import MINUTE_NS
from mvps.surplus.packets import Thresholds


def put_minute(
    history: History,
    minute: int,
    told: Mapping[str, Mapping[str, Any]],
    tenant: str = "acme",
    outliers: int = 1,
    late: Mapping[str, Mapping[str, Any]] | None = None,
) -> TenantRow:
    """Store one minute. told: host -> changes to a calm minute. late: of hosts that came after it was decided."""
    said = {host: health(minute, tenant, **changes) for host, changes in told.items()}
    decided_ns = (minute + 1) * MINUTE_NS + 10**10
    row = TenantRow(
        tenant, decided_ns, outliers, combine(said, minute, outliers, limits_of(Thresholds())), -1, "shadow", 1
    )
    after = {host: health(minute, tenant, **changes) for host, changes in (late or {}).items()}
    history.put_health([HealthRow(host, decided_ns - 1, one) for host, one in said.items()])
    history.put_health([HealthRow(host, decided_ns + 1, one) for host, one in after.items()])
    history.put_tenants([row])
    return row
