# SPDX-License-Identifier: Apache-2.0
"""Settings of the AI vantage: which replicas, which encoder, which prompts, how often, at what cost.

API keys are never in the file: ``key_file`` names a file of mode 0600 that holds one line, or ``credential:NAME`` a
systemd credential.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Annotated, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from mvps.settings import toml_file

MAX_REPLICAS: Final = 32  # as many as a surface of a snapshot has room for
_MAX_KEY = 4096
_CREDENTIAL = "credential:"


def _http(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError(f'"{url}" is no API base; write "http://10.0.0.1:8000/v1"')
    if parts.username or parts.password:
        raise ValueError("a URL is no place for a password; use key_file")
    if parts.query or parts.fragment:
        raise ValueError(f'"{url}": leave out what follows the path')
    return url


_Url = Annotated[str, AfterValidator(_http)]
_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
_Model = Annotated[str, Field(min_length=1, max_length=256)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ReplicaSection(_Section):
    """One replica of the group."""

    name: _Name
    url: _Url = Field(description="base of the OpenAI-compatible API")
    model: _Model = Field(description="model name that the server knows")
    key_file: str = Field("", description='file with the bearer token, mode 0600, or "credential:NAME"')
    timeout_s: float = Field(30.0, gt=0, le=600, description="for a whole answer, in seconds")


class EndpointSection(_Section):
    """A model beside the replicas: the encoder."""

    url: _Url
    model: _Model
    pipeline: Annotated[str, Field(min_length=1, max_length=256)] = Field(
        "unknown", description="who trained it and on what, in a word: A4 asks whether rephraser and encoder differ"
    )
    key_file: str = ""
    timeout_s: float = Field(30.0, gt=0, le=600)


class RephraserSection(_Section):
    """Which model made the rephrasings of the prompt file, if one did; it is not asked here."""

    model: _Model
    pipeline: Annotated[str, Field(min_length=1, max_length=256)] = "unknown"


class PaceSection(_Section):
    """How often the replicas are asked, and how much."""

    period_s: float = Field(10.0, ge=0.1, le=3600, description="one canary goes to every replica this often, in s")
    full_every: int = Field(20, ge=1, le=10_000, description="every so many canaries are asked in other words too")
    rephrasings: int = Field(5, ge=1, le=64, description="K_4: other words for a canary, at most")
    replay_every: int = Field(5, ge=1, le=10_000, description="every so many canaries are asked twice")
    requests_per_hour: int = Field(7200, ge=1, le=10_000_000, description="over all replicas; beyond it canaries wait")
    max_tokens: int = Field(64, ge=1, le=4096, description="of an answer")
    temperature: float = Field(0.0, ge=0.0, le=2.0)
    seed: int | None = Field(None, ge=0, le=2**31 - 1, description="sampling seed, where the servers take one")


class CalibrationSection(_Section):
    """Ticks before the vantage decides: first the scales of the axes, then their baseline."""

    scale_ticks: int = Field(120, ge=20, le=100_000)
    baseline_ticks: int = Field(300, ge=150, le=100_000)
    cutoffs: Literal["empirical", "finite-sample", "chi2"] = "empirical"


class LimitsSection(_Section):
    """Limits of C_4 of one family, chosen on labelled prompts (``semantic.cbf.limits``)."""

    family: _Name
    alarm: float = Field(ge=0, le=1)
    watch: float = Field(ge=0, le=1)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.alarm > self.watch:
            raise ValueError("alarm may not lie above watch")
        return self


class C4Section(_Section):
    """Limits of C_4 for families without their own; the defaults are the source's example, chosen on nothing."""

    alarm: float = Field(0.6, ge=0, le=1)
    watch: float = Field(0.8, ge=0, le=1)


class AiConfig(_Section):
    """Everything ``mvps ai probe`` can be told."""

    name: _Name = Field(description="of the replica group, as it is reported")
    profile: Literal["grey", "black"] = Field(
        "black", description="grey where the servers give log probabilities: C_2^W2 is judged then, not only reported"
    )
    prompts: Path | None = Field(None, description="prompt set; none: the starter set")
    agent: str = Field(
        "", description="socket of this host's agent, whose snapshots carry the reports; none: stdout only"
    )
    state: Path | None = Field(None, description="file that keeps scales and baseline over a restart")
    replica: tuple[ReplicaSection, ...] = Field(min_length=2, max_length=MAX_REPLICAS)
    encoder: EndpointSection
    rephraser: tuple[RephraserSection, ...] = ()
    pace: PaceSection = PaceSection.model_validate({})
    calibration: CalibrationSection = CalibrationSection.model_validate({})
    c4: C4Section = C4Section.model_validate({})
    limits: tuple[LimitsSection, ...] = ()

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [replica.name for replica in self.replica]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f'replica "{twice[0]}" is there twice')
        urls = [(replica.url.rstrip("/"), replica.model) for replica in self.replica]
        if len(set(urls)) < len(urls):
            raise ValueError("two replicas have one address and model: they would agree with themselves")
        families = [limits.family for limits in self.limits]
        if len(set(families)) < len(families):
            raise ValueError("limits of one family are there twice")
        if self.c4.alarm > self.c4.watch:
            raise ValueError("c4.alarm may not lie above c4.watch")
        return self


def load(path: Path) -> AiConfig:
    """Settings of a file. ``ConfigError`` names every problem and its line."""
    return toml_file.load(path, AiConfig, "`mvps ai example` prints one to start from")


def read_key(source: str) -> str:
    """The bearer token that ``key_file`` names, "" for none. ValueError says why not, without its content."""
    if not source:
        return ""
    path, guarded = Path(source), False
    if source.startswith(_CREDENTIAL):
        # systemd guards its credentials itself, and may give them a group bit for an ACL.
        directory, name = os.environ.get("CREDENTIALS_DIRECTORY"), source.removeprefix(_CREDENTIAL)
        if not directory or not name or "/" in name:
            raise ValueError(f'"{source}" needs a unit with LoadCredential={name or "NAME"}:PATH; else name the file')
        path, guarded = Path(directory) / name, True
    try:
        # O_NONBLOCK: a FIFO must not hang the start; what was checked is what is read.
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ValueError(f"{path} is not a regular file")
            if status.st_mode & 0o077 and not guarded:
                raise ValueError(f"{path} can be read by others on this host: chmod 600 {path}")
            content = file.read(_MAX_KEY + 1)
    except OSError as error:
        raise ValueError(f"cannot read the key {path}: {error.strerror}") from None
    try:
        token = content.decode("ascii").strip()
    except UnicodeDecodeError:
        token = ""
    if not token or len(content) > _MAX_KEY or not token.isprintable() or " " in token:
        raise ValueError(f"{path} does not hold one token")
    return token


EXAMPLE: Final = """\
# Settings of `mvps ai probe`: what is asked of a group of replicas that should answer alike.
name = "llama-eu"
profile = "black"            # "grey" where the servers return log probabilities
# prompts = "/etc/mvps/prompts.toml"   # the starter set without it
# agent = "/run/mvps/agent.sock"       # reports travel in this host's sealed snapshots
# state = "/var/lib/mvps/ai.json"      # keeps the calibration over a restart

[[replica]]
name = "a"
url = "http://127.0.0.1:8001/v1"
model = "llama-3-8b"
# key_file = "/etc/mvps/replica-a.token"

[[replica]]
name = "b"
url = "http://127.0.0.1:8002/v1"
model = "llama-3-8b"

[encoder]                    # any embedding endpoint; not the model that rephrased the prompts
url = "http://127.0.0.1:8003/v1"
model = "all-minilm-l6-v2"
pipeline = "sentence-transformers"

[pace]
period_s = 10.0              # a canary to every replica this often
full_every = 20              # every 20th in other words too: C_4
requests_per_hour = 7200
"""
