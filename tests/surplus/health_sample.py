# SPDX-License-Identifier: Apache-2.0
"""Minutes of hosts and policies for the tests."""

from __future__ import annotations

import json
from datetime import date, timedelta
from typing import Any

from mvps.surplus.packets import HealthMinute, Policy, parse

_HASH = "sha256:" + "0" * 64


def health(minute: int = 0, tenant: str = "acme", **changes: Any) -> HealthMinute:
    """A calm minute of one host; ``changes`` by the names on the wire. minute: since the Unix epoch."""
    days, of_day = divmod(minute, 1440)
    hours, minutes = divmod(of_day, 60)
    day = date(1970, 1, 1) + timedelta(days=days)
    values: dict[str, Any] = {
        "schema": "health.v1",
        "bucket": f"{day:%Y-%m-%d}T{hours:02}:{minutes:02}:00Z",
        "tenant": tenant,
        "SSE": 0.7,
        "CRP": 0.1,
        "SSIstar": 0.2,
        "crp_score": 0.05,
        "ssi_star_score": 0.05,
        "Xi": 0.1,
        "lambda": 0.4,
        "kl_budget": 0.01,
        "dlogits_budget": 0.14,
        "state": "Green",
        "bh1": False,
        "bh2": False,
        "packets": 600,
        "cap_head": _HASH,
    }
    return parse(json.dumps(values | changes).encode(), HealthMinute)


def policy(**changes: Any) -> Policy:
    """A policy that is no dry run and goes as far as ``full``; parts that are given replace whole parts."""
    values: dict[str, Any] = {
        "schema": "policy.v1",
        "tenant": "acme",
        "version": 1,
        "caps": {"qps": 30.0, "tok_max": 15000, "tool_per_min": 40.0},
        "routing": {
            "providers": ["P1", "P2", "P3"],
            "min_spread": 0.9,
            "max_provider_share": 0.8,
            "shares": [0.8, 0.1, 0.1],
            "handoff_cost": 0.2,
            "handoff_stress": 3.0,
        },
        "exploration": {"min_SSE": 0.5, "quota_pct": 0.15},
        "privacy": {"retention_days": 14},
        "rollout": {"stage": "full", "canary": 0.2, "gradual": [0.5], "soak_minutes": 240},
        "dry_run": False,
    }
    return parse(json.dumps(values | changes).encode(), Policy)
