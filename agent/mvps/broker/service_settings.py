# SPDX-License-Identifier: Apache-2.0
"""What can be set about the services a broker watches: which hosts carry one, and which AI vantages probe it.

[[service]]
name = "chat"
network = ["lb-1", "lb-2/kernel"]      # HOST, or HOST/SURFACE; "dataplane" where none is named
ai = ["gpu-1/ai.chat"]                 # HOST/ai.NAME: the host whose snapshots carry the surface
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, field_validator

from mvps.coupling.service import FLOOR
from mvps.trust.limits import MAX_NAME
from mvps.trust.seal import check_vantage_id

MAX_SERVICES: Final = 32
MAX_SOURCES: Final = 256  # of all services together: each holds a snapshot or two
_MAX_NETWORK: Final = 64
_MAX_AI: Final = 8
_DEFAULT_SURFACE: Final = "dataplane"


class Source(NamedTuple):
    """One surface of one host's snapshots."""

    host: str
    surface: str

    def __str__(self) -> str:
        return f"{self.host}/{self.surface}"


def _source(text: Any, default: str) -> Source:
    if isinstance(text, Source):
        return text
    if not isinstance(text, str):
        raise ValueError('write a host as "host-a" or a host and its surface as "host-a/kernel"')
    host, _, surface = text.partition("/")
    check_vantage_id(host)  # its ValueError says what an id is
    if not surface:
        surface = default
    if not surface or len(surface.encode()) > MAX_NAME or not surface.isprintable():
        raise ValueError(f'"{text}" names no surface: write HOST/ai.NAME, as mvps ai probe reports it')
    return Source(host, surface)


def _network(text: Any) -> Source:
    found = _source(text, _DEFAULT_SURFACE)
    if is_ai(found.surface):
        raise ValueError(f'"{found}" is an AI surface: it belongs into ai')
    return found


def _ai(text: Any) -> Source:
    found = _source(text, "")
    if not is_ai(found.surface):
        raise ValueError(f'"{found}" is no AI surface: their names are "ai" and "ai.NAME"')
    return found


def is_ai(surface: str) -> bool:
    """Whether another process of the host reports it: mvps ai probe."""
    return surface == "ai" or surface.startswith("ai.")


_Network = Annotated[Source, PlainValidator(_network)]
_Ai = Annotated[Source, PlainValidator(_ai)]


class ServiceSettings(BaseModel):
    """One service; unknown names are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="as it is shown")
    network: tuple[_Network, ...] = Field(
        max_length=_MAX_NETWORK, description='hosts that carry it: "HOST" or "HOST/SURFACE"'
    )
    ai: tuple[_Ai, ...] = Field(max_length=_MAX_AI, description='surfaces that probe it: "HOST/ai.NAME"')
    c4: bool = Field(False, description="C_4 is the seventh axis")
    tick_s: float = Field(1.0, ge=0.05, le=60, description="joint tick, in seconds")
    keep_s: float = Field(
        0.0,
        ge=0,
        le=3600,
        description="age in seconds up to which a snapshot stands; 0: three of its host's ticks or of the joint ones, "
        "whichever are longer",
    )
    calibration_ticks: int = Field(300, ge=60, le=3600, description="joint ticks of BAU before the first decision")
    cutoffs: Literal["empirical", "finite-sample", "chi2"] = Field("empirical", description="which limits decide")
    floor: float = Field(
        FLOOR, ge=0, le=0.2, description="an axis is not taken to vary by less than this; 0: as the sources have it"
    )
    transfer: Path | None = Field(
        None, description="drift transfer, as mvps service transfer writes it: what routing explains of C_2^W2"
    )

    @field_validator("network", "ai")
    @classmethod
    def _some_and_distinct(cls, sources: tuple[Source, ...]) -> tuple[Source, ...]:
        if not sources:  # and not by min_length, which would repeat what is wrong with the only one
            raise ValueError("name at least one")
        if twice := sorted({str(one) for one in sources if sources.count(one) > 1}):
            raise ValueError(f'"{twice[0]}" is there twice')
        return sources

    @property
    def sources(self) -> tuple[Source, ...]:
        """Network first."""
        return (*self.network, *self.ai)


def check_services(services: tuple[ServiceSettings, ...]) -> tuple[ServiceSettings, ...]:
    """ValueError unless their names differ and they have no more sources than there is room for."""
    names = [service.name for service in services]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f'service "{twice[0]}" is there twice')
    if (count := sum(len(service.sources) for service in services)) > MAX_SOURCES:
        raise ValueError(f"the services have {count} sources, at most {MAX_SOURCES} are watched: name fewer hosts")
    return services
