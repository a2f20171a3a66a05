# SPDX-License-Identifier: Apache-2.0
"""Brokers that watch services, for the tests of ``mvps service``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mvps.broker.process import EmbeddedBroker
from mvps.broker.service_watch import ServiceWatch
from mvps.broker.settings import BrokerSettings
from mvps.trust.solo import make_site

CHAT = {"name": "chat", "network": ["lb-1"], "ai": ["gpu-1/ai.chat"]}
SEARCH = {"name": "search", "network": ["lb-1", "lb-2/kernel"], "ai": ["gpu-1/ai"], "tick_s": 60.0}


def broker_of(folder: Path, *services: dict[str, object], **changes: object) -> EmbeddedBroker:
    site = make_site(folder, ["lb-1", "gpu-1"])
    given = {
        "listen": "127.0.0.1:0", "database": folder / "broker.db", "key": str(site.broker_key),
        "operator": site.operator, "manifests": site.manifests, "metrics": "", "service": services,
    }  # fmt: skip
    return EmbeddedBroker(BrokerSettings.model_validate(given | changes))


@contextmanager
def without_ticks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddedBroker]:
    """One whose services never have a tick of their own."""
    monkeypatch.setattr(ServiceWatch, "_due", lambda self, now_ns: [])
    made = broker_of(folder, CHAT, SEARCH)
    try:
        yield made
    finally:
        made.stop()
