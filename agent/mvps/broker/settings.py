# SPDX-License-Identifier: Apache-2.0
"""What can be set about a broker."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mvps.trust.limits import MAX_VANTAGES
from mvps.trust.replay import Window

_Seconds = Annotated[float, Field(gt=0, le=366 * 86400)]
_NS = 1_000_000_000


class BrokerSettings(BaseModel):
    """Settings of one broker; unknown names are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    listen: str = Field("127.0.0.1:7447", description="host:port, [ipv6]:port or unix:/path; port 0 takes a free one")
    database: Path = Field(Path("/var/lib/mvps/broker.db"), description="SQLite file; its directory must exist")
    metrics: str = Field("127.0.0.1:9466", description='host:port of /metrics; "" for none. Keep it on loopback')
    key: str = Field("/etc/mvps/broker.key", description='the broker\'s key: a file of mode 0600, or "credential:NAME"')
    operator: str = Field(
        "/etc/mvps/operator.pub", description="the operator's public key: its text, or a file that holds it"
    )
    manifests: Path = Field(
        Path("/etc/mvps/manifests"),
        description="directory of the operator's *.manifest files, read every second",
    )
    retention_s: _Seconds = Field(3600.0, description="how long snapshots are kept, in seconds")
    database_max_mib: int = Field(4096, ge=4, le=1 << 20, description="largest size of the database, in MiB")
    live_window_s: _Seconds = Field(300.0, description="oldest live snapshot that is accepted, in seconds")
    future_window_s: _Seconds = Field(10.0, description="how far a host's clock may be ahead, in seconds")
    max_streams: int = Field(4096, ge=1, le=100_000, description="streams open at a time")
    max_vantages: int = Field(10_000, ge=1, le=MAX_VANTAGES, description="identities the broker keeps")
    first_item_timeout_s: _Seconds = Field(10.0, description="a stream must prove itself within this time")
    bundle_period_s: int = Field(10, ge=1, le=3600, description="seconds between signed checkpoints of the log")
    witnesses: dict[str, str] = Field(
        {}, description="witness name, as in the manifest -> URL prefix it answers at, http or https"
    )
    tls_cert: Path | None = Field(None, description="certificate chain (PEM); none: no TLS. Seals do not depend on it")
    tls_key: Path | None = Field(None, description="its private key (PEM), a file of mode 0600")
    tls_client_ca: Path | None = Field(
        None, description="only clients with a certificate from one of these (PEM) may connect; none: everybody"
    )
    check_decisions: bool = Field(True, description="recompute every decision from its baseline and compare")
    remote_queries: bool = Field(False, description="answer queries from other hosts too (they are not sealed)")

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key belong together")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("tls_client_ca needs tls_cert and tls_key")
        return self

    def window(self) -> Window:
        """Accepted sealing times. Backfill is taken as far back as history is kept."""
        return Window(
            live_past_ns=int(self.live_window_s * _NS),
            backfill_past_ns=int(max(self.retention_s, self.live_window_s) * _NS),
            future_ns=int(self.future_window_s * _NS),
        )
