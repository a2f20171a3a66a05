# SPDX-License-Identifier: Apache-2.0
"""One tenant's minute over all its hosts (ours: the text knows one host).

Every host judges its own minutes (:mod:`mvps.surplus.minutes`). Over n of them an indicator of the tenant is the
(k+1)-th worst one, k = min(f, (n - 1) // 2): so bad it is by the word of more than k hosts. So up to f hosts that err
or lie can neither make a healthy tenant look ill nor, while most are ill, hide it; and a trouble on k hosts or fewer is
those hosts' own, which their agents see to. Alerts count where more than k hosts raise them.

The band is that of Xi so combined, with the policy's thresholds and the margin of ``indicators.Limits`` on the way
down.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from mvps.surplus.indicators import Band, Health, Limits
from mvps.surplus.packets import HealthMinute, State, Thresholds


class TenantMinute(NamedTuple):
    """One minute of a tenant. minute: since the Unix epoch. hosts: that told of it; NaN: nobody knows.

    ssi_star, crp: raw ones, combined likewise. lam, kl_budget: mean over hosts of what engines are told.
    """

    minute: int
    hosts: int
    packets: int
    health: Health
    ssi_star: float
    crp: float
    lam: float
    kl_budget: float


def worst(values: Iterable[float | None], outliers: int, *, low: bool = False) -> float:
    """The (k+1)-th worst of what is known, k = min(outliers, (n - 1) // 2); NaN where nothing is. low: low is bad."""
    known = sorted((value for value in values if value is not None and math.isfinite(value)), reverse=not low)
    return known[min(outliers, (len(known) - 1) // 2)] if known else math.nan


def more_than_outliers(raised: Iterable[bool], outliers: int) -> bool:
    """Whether more than k of n say so, k = min(outliers, (n - 1) // 2)."""
    said = list(raised)
    return bool(said) and sum(said) > min(outliers, (len(said) - 1) // 2)


def limits_of(thresholds: Thresholds) -> Limits:
    """Limits of the bands of a policy."""
    return Limits(caution=thresholds.caution, action=thresholds.action, emergency=thresholds.emergency)


def combine(
    told: Mapping[str, HealthMinute], minute: int, outliers: int, limits: Limits, before: Band = Band.GREEN
) -> TenantMinute:
    """The tenant's minute of what its hosts said of it (host -> health, at least one). before: band it was in."""
    if not told:
        raise ValueError("a minute of which no host told is no minute: keep the state as it is")
    all_told = list(told.values())
    xi = worst((one.xi for one in all_told), outliers)
    bh1 = more_than_outliers((one.bh1 for one in all_told), outliers)
    bh2 = more_than_outliers((one.bh2 for one in all_told), outliers)
    band = before if math.isnan(xi) else limits.band(xi, before)
    band = Band.EMERGENCY if bh2 else max(band, Band.ACTION) if bh1 else band
    health = Health(
        worst((one.sse for one in all_told), outliers, low=True),
        worst((one.crp_score for one in all_told), outliers),
        worst((one.ssi_star_score for one in all_told), outliers),
        xi,
        band,
        bh1,
        bh2,
    )
    return TenantMinute(
        minute,
        len(all_told),
        sum(one.packets for one in all_told),
        health,
        worst((one.ssi_star for one in all_told), outliers),
        worst((one.crp for one in all_told), outliers),
        sum(one.lam for one in all_told) / len(all_told),
        sum(one.kl_budget for one in all_told) / len(all_told),
    )


def state_of(band: Band) -> State:
    """The band's name in packets."""
    return State[band.name]
