# SPDX-License-Identifier: Apache-2.0
"""A cap.v1 packet as a serving engine sends it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from mvps.surplus.packets import Cap, parse

HASH = "sha256:" + "0" * 64


def cap(at_ns: int, tenant: str = "acme", **changes: Any) -> Cap:
    """A packet of a moment, with other fields where ``changes`` names them."""
    at = datetime.fromtimestamp(at_ns // 10**9, UTC) + timedelta(microseconds=at_ns % 10**9 // 1000)
    plain: dict[str, Any] = {
        "ts": at.isoformat().replace("+00:00", "Z"),
        "tenant": tenant,
        "session": HASH,
        "model": "small",
        "theta": None,
        "phi": None,
        "iT": None,
        "L": {"dlp": 0.1, "progress": 0.0},
        "Gamma": {"drift": 0.0},
        "lambda": 0.4,
        "kl_used": 0.002,
        "kl_budget": 0.01,
        "dlogits_l2": 0.1,
        "steps": 20,
        "action": {"type": "token"},
        "candidates": 8,
        "state": "Green",
        "tokens": 20,
    }
    return parse(json.dumps(plain | changes).encode(), Cap)
