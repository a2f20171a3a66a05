# SPDX-License-Identifier: Apache-2.0
"""What can be set about a broker."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from mvps.broker.service_settings import MAX_SERVICES, ServiceSettings, check_services
from mvps.broker.surplus_settings import SurplusSettings
from mvps.trust.limits import MAX_VANTAGES
from mvps.trust.replay import Window

_Seconds = Annotated[float, Field(gt=0, le=366 * 86400)]
_NS = 1_000_000_000


class BrokerSettings(BaseModel):
    """Settings of one broker; unknown names are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    listen: str = Field("127.0.0.1:7447", description="host:port, [ipv6]:port or unix:/path; port 0 takes a free one")
    database: Path = Field(Path("/var/lib/mvps-broker/broker.db"), description="SQLite file; its directory must exist")
    metrics: str = Field("127.0.0.1:9466", description='host:port of /metrics; "" for none. Keep it on loopback')
    key: str = Field("/etc/mvps/broker.key", description='the broker\'s key: a file of mode 0600, or "credential:NAME"')
    operator: str = Field(
        "/etc/mvps/operator.pub", description="the operator's public key: its text, or a file that holds it"
    )
    manifests: Path = Field(
        Path("/etc/mvps/manifests"),
        description="directory of the operator's *.manifest files, read every second",
    )
    retention_s: _Seconds = Field(86400.0, description="how long snapshots are kept, in seconds")
    database_max_mib: int = Field(
        16_384,
        ge=16,
        le=1 << 20,
        description="largest size of the database and the log's leaves, in MiB; near it the oldest go early",
    )
    live_window_s: _Seconds = Field(300.0, description="oldest live snapshot that is accepted, in seconds")
    future_window_s: _Seconds = Field(10.0, description="how far a host's clock may be ahead, in seconds")
    max_streams: int = Field(4096, ge=1, le=100_000, description="streams open at a time")
    max_streams_per_vantage: int = Field(4, ge=1, le=1000, description="streams one vantage may have open at a time")
    max_streams_per_connection: int = Field(64, ge=1, le=100_000, description="calls open at a time on one connection")
    max_in_work_mib: int = Field(
        64, ge=2, le=65_536, description="received and not yet committed, in MiB, of all streams"
    )
    max_vantages: int = Field(10_000, ge=1, le=MAX_VANTAGES, description="identities the broker keeps")
    first_item_timeout_s: _Seconds = Field(10.0, description="a stream must prove itself within this time")
    bundle_period_s: int = Field(10, ge=1, le=3600, description="seconds between signed checkpoints of the log")
    witnesses: dict[str, str] = Field(
        {}, description="witness name, as in the manifest -> URL prefix it answers at, http or https"
    )
    bundle_deadline_s: float = Field(
        0.0, ge=0, le=3600, description="how long a tick waits for its vantages, in seconds; 0 for one T_tick"
    )
    history: str = Field(
        "",
        description='database of the fleet\'s history: "" for an SQLite file beside the database, "none", or a URL as '
        "postgresql://mvps@db.example/mvps?passfile=/etc/mvps/pgpass",
    )
    history_retention_s: _Seconds = Field(86400.0, description="how long the fleet's history is kept, in seconds")
    history_max_mib: int = Field(8192, ge=4, le=1 << 20, description="largest size of an SQLite history, in MiB")
    tls_cert: Path | None = Field(None, description="certificate chain (PEM); none: no TLS. Seals do not depend on it")
    tls_key: Path | None = Field(None, description="its private key (PEM), a file of mode 0600")
    tls_client_ca: Path | None = Field(
        None, description="only clients with a certificate from one of these (PEM) may connect; none: everybody"
    )
    check_decisions: bool = Field(True, description="recompute decisions from their baselines and compare")
    check_share: float = Field(
        0.05, ge=0.01, le=1.0, description="share of one core for that; decisions beyond it are drawn by chance"
    )
    limiter: str = Field(
        "", description='where the XDP limiter is pinned, such as /run/mvps.limiter; "" for no limiter'
    )
    remote_queries: bool = Field(False, description="answer queries from other hosts too (they are not sealed)")
    operator_socket: Path | None = Field(
        None,
        description="Unix socket, mode 0660, for questions whose answers show C_4 and the label that follows from it; "
        "none: only certificates in operators are shown them",
    )
    operators: tuple[Annotated[str, Field(min_length=1, max_length=256)], ...] = Field(
        (), description="names in client certificates (common name or alternative name) that are shown the same"
    )
    service: tuple[ServiceSettings, ...] = Field(
        (), max_length=MAX_SERVICES, description="services whose network and AI surfaces are watched together"
    )

    surplus: SurplusSettings | None = Field(
        None, description="tenants of serving engines, what they are told, and policies for them; none: no watch"
    )

    @field_validator("service")
    @classmethod
    def _services(cls, services: tuple[ServiceSettings, ...]) -> tuple[ServiceSettings, ...]:
        return check_services(services)

    @field_validator("history")
    @classmethod
    def _no_password(cls, url: str) -> str:
        # Settings are read by more people than a password file is.
        if re.match(r"[^/]*://[^/@]*:[^/@]*@", url):
            raise ValueError("holds a password: put it into a pgpass file and write ...?passfile=/etc/mvps/pgpass")
        return url

    def history_url(self) -> str:
        """The history's database URL, "" for none."""
        if self.history == "none":
            return ""
        return self.history or f"sqlite:///{self.database.absolute()}.history"

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key belong together")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("tls_client_ca needs tls_cert and tls_key")
        if self.operators and self.tls_client_ca is None:
            raise ValueError("operators are names in client certificates, which only tls_client_ca asks for and checks")
        return self

    @model_validator(mode="after")
    def _operators_have_a_socket_of_their_own(self) -> Self:
        if self.operator_socket is not None and self.listen == f"unix:{self.operator_socket}":
            raise ValueError("operator_socket and listen are one path: what is for operators needs a socket of its own")
        return self

    @model_validator(mode="after")
    def _what_governs_is_audited(self) -> Self:
        if self.surplus is not None and self.history == "none":
            raise ValueError('surplus writes an audit trail into the history: history = "none" leaves no place for it')
        return self

    def window(self) -> Window:
        """Accepted sealing times. Backfill is taken as far back as history should be kept; where the store had to let
        some go early, its ``backfill_from_ns`` says since when.
        """
        return Window(
            live_past_ns=int(self.live_window_s * _NS),
            backfill_past_ns=int(max(self.retention_s, self.live_window_s) * _NS),
            future_ns=int(self.future_window_s * _NS),
        )
