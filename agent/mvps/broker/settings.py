# SPDX-License-Identifier: Apache-2.0
"""What can be set about a broker."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

from mvps.trust.keys import load_key
from mvps.trust.limits import MAX_VANTAGES
from mvps.trust.replay import Window
from mvps.trust.seal import Keyring, check_vantage_id

_Seconds = Annotated[float, Field(gt=0, le=366 * 86400)]
_NS = 1_000_000_000


class BrokerSettings(BaseModel):
    """Settings of one broker; unknown names are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    listen: str = Field("127.0.0.1:7447", description="host:port, [ipv6]:port or unix:/path; port 0 takes a free one")
    database: Path = Field(Path("/var/lib/mvps/broker.db"), description="SQLite file; its directory must exist")
    keys: dict[str, str] = Field(
        description='vantage id -> key file or "credential:NAME"; "*" admits every vantage with that key'
    )
    operator_id: str = Field("", max_length=64, description="names the operator in key derivation, both sides")
    retention_s: _Seconds = Field(3600.0, description="how long snapshots are kept, in seconds")
    database_max_mib: int = Field(4096, ge=4, le=1 << 20, description="largest size of the database, in MiB")
    live_window_s: _Seconds = Field(300.0, description="oldest live snapshot that is accepted, in seconds")
    future_window_s: _Seconds = Field(10.0, description="how far a host's clock may be ahead, in seconds")
    max_streams: int = Field(4096, ge=1, le=100_000, description="streams open at a time")
    max_vantages: int = Field(10_000, ge=1, le=MAX_VANTAGES, description="identities the broker keeps")
    first_item_timeout_s: _Seconds = Field(10.0, description="a stream must prove itself within this time")
    check_decisions: bool = Field(True, description="recompute every decision from its baseline and compare")
    remote_queries: bool = Field(False, description="answer queries from other hosts too (they are not sealed)")

    @field_validator("keys")
    @classmethod
    def _ids(cls, keys: dict[str, str]) -> dict[str, str]:
        if not keys:
            raise ValueError("no key is configured, so nobody could be admitted")
        for vantage_id in keys:
            if vantage_id != Keyring.ANY:
                check_vantage_id(vantage_id)
        return keys

    def keyring(self) -> Keyring:
        """Load every key; KeySourceError for the first that cannot be used."""
        return Keyring(
            {vantage_id: load_key(source) for vantage_id, source in self.keys.items()},
            operator_id=self.operator_id,
        )

    def window(self) -> Window:
        """Accepted sealing times. Backfill is taken as far back as history is kept."""
        return Window(
            live_past_ns=int(self.live_window_s * _NS),
            backfill_past_ns=int(max(self.retention_s, self.live_window_s) * _NS),
            future_ns=int(self.future_window_s * _NS),
        )
