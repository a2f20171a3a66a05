# SPDX-License-Identifier: Apache-2.0
"""Settings of the AI vantage: which replicas, which encoder, which prompts, how often, at what cost.

Replicas are servers that are asked over HTTP (``replica``), or checkpoints that are loaded into this process and looked
into (``whitebox``).

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

from mvps.semantic.latency import LEAST_LATENCIES
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
_Device = Annotated[str, Field(pattern=r"^(cpu|mps|cuda(:[0-9]{1,3})?)$")]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ReplicaSection(_Section):
    """One replica of the group."""

    name: _Name
    url: _Url = Field(description="base of the OpenAI-compatible API")
    model: _Model = Field(description="model name that the server knows")
    key_file: str = Field("", description='file with the bearer token, mode 0600, or "credential:NAME"')
    timeout_s: float = Field(30.0, gt=0, le=600, description="for a whole answer, in seconds")
    metrics: _Url | None = Field(
        None, description="the engine's Prometheus page: requests and prefix-cache hits, which tell moved routes"
    )


class EncoderSection(_Section):
    """What makes points of answers: an embedding endpoint, or a sentence-transformers model in this process."""

    url: _Url | None = Field(None, description="base of the OpenAI-compatible API")
    folder: Path | None = Field(None, description="or the folder of a model in the format of sentence-transformers")
    package: str = Field(
        "", pattern=r"^([A-Za-z_][A-Za-z0-9_.]{0,127})?$", description="or an installed package that carries one"
    )
    device: _Device = "cpu"
    model: _Model = Field(description="name that the server knows, and that reports and baselines carry")
    pipeline: Annotated[str, Field(min_length=1, max_length=256)] = Field(
        "unknown", description="who trained it and on what, in a word: A4 asks whether rephraser and encoder differ"
    )
    key_file: str = ""
    timeout_s: float = Field(30.0, gt=0, le=600)

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if [self.url is not None, self.folder is not None, bool(self.package)].count(True) != 1:
            raise ValueError("an encoder has one place: url, folder or package")
        return self

    @property
    def place(self) -> str:
        """Where it comes from, as one text."""
        return self.url or (str(self.folder) if self.folder is not None else f"package {self.package}")


class CheckpointSection(_Section):
    """A replica of a white-box group: a checkpoint that is loaded into this process. Nothing is downloaded."""

    name: _Name
    checkpoint: Annotated[str, Field(min_length=1, max_length=4096)] = Field(
        description="folder in the format of transformers, or a name in its local cache"
    )
    revision: Annotated[str, Field(max_length=256)] = Field("", description="of a name in the cache")
    device: _Device = Field("cpu", description="cpu, cuda, cuda:N or mps")
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    timeout_s: float = Field(60.0, gt=0, le=600, description="for a whole answer, in seconds")


class WhiteboxSection(_Section):
    """Replicas whose weights are in this process: hidden states, attention and next-token laws are read from them."""

    layers: Literal["early", "middle", "late"] = Field("middle", description="whose attention and hidden states")
    points: Literal["embeddings", "hidden"] = Field(
        "embeddings",
        description="C_2^W2 from embeddings of the tokens each replica said, or from hidden states on the same tokens",
    )
    tokens: int = Field(512, ge=8, le=2048, description="of a prompt and its answer that are read, at most")
    pipeline: Annotated[str, Field(min_length=1, max_length=256)] = Field(
        "unknown", description="who trained the first replica, whose embeddings are the encoder"
    )
    replica: tuple[CheckpointSection, ...] = Field(min_length=2, max_length=8)


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


class EventsSection(_Section):
    """Rounds as OpenTelemetry events, for whoever collects them (``mvps.ai.events``)."""

    otlp: _Url | None = Field(None, description="base of an OTLP/HTTP collector, such as http://127.0.0.1:4318")
    file: Path | None = Field(None, description="or a file that a line of OTLP's JSON is added to every round")
    key_file: str = ""
    timeout_s: float = Field(5.0, gt=0, le=60)
    lateral: bool = Field(False, description="C_4, its label and the topic too: only where operators alone read them")

    @model_validator(mode="after")
    def _somewhere(self) -> Self:
        if self.otlp is None and self.file is None:
            raise ValueError("events go somewhere: set otlp or file")
        return self


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
    replica: tuple[ReplicaSection, ...] = Field((), min_length=2, max_length=MAX_REPLICAS)
    whitebox: WhiteboxSection | None = None
    encoder: EncoderSection | None = None
    rephraser: tuple[RephraserSection, ...] = ()
    pace: PaceSection = PaceSection.model_validate({})
    calibration: CalibrationSection = CalibrationSection.model_validate({})
    c4: C4Section = C4Section.model_validate({})
    limits: tuple[LimitsSection, ...] = ()
    events: EventsSection | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if self.whitebox is None and not self.replica:
            raise ValueError("write [[replica]] for servers, or [whitebox] for checkpoints")
        if self.whitebox is None and self.encoder is None:
            raise ValueError("write [encoder]: answers of servers become points by an encoder")
        if self.whitebox is not None and self.replica:
            raise ValueError("[[replica]] and [whitebox] are two groups: write two files")
        if self.whitebox is not None and self.encoder is not None:
            raise ValueError("leave [encoder] out: a white-box group's own embeddings are its encoder")
        if self.whitebox is not None and "profile" in self.model_fields_set:
            raise ValueError("leave profile out: a white-box group has its own")
        return self

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = list(self.names)
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f'replica "{twice[0]}" is there twice')
        urls = [(replica.url.rstrip("/"), replica.model) for replica in self.replica]
        if len(set(urls)) < len(urls):
            raise ValueError("two replicas have one address and model: they would agree with themselves")
        pages = [replica.metrics for replica in self.replica if replica.metrics is not None]
        if pages and len(pages) < len(self.replica):
            raise ValueError("name metrics of every replica, or of none: a share is one of all requests")
        if len({(one.metrics, one.model) for one in self.replica if one.metrics is not None}) < len(pages):
            raise ValueError("two replicas have one metrics page and model: their requests would be counted twice")
        loaded = [(r.checkpoint, r.revision, r.device, r.dtype) for r in self.whitebox.replica] if self.whitebox else []
        if len(set(loaded)) < len(loaded):
            raise ValueError("two replicas are one checkpoint, device and dtype: they would agree with themselves")
        families = [limits.family for limits in self.limits]
        if len(set(families)) < len(families):
            raise ValueError("limits of one family are there twice")
        if self.c4.alarm > self.c4.watch:
            raise ValueError("c4.alarm may not lie above c4.watch")
        return self

    @model_validator(mode="after")
    def _scales_can_be_found(self) -> Self:
        count = len(self._members())
        if self.calibration.scale_ticks * count < LEAST_LATENCIES:
            least = -(-LEAST_LATENCIES // count)
            raise ValueError(
                f"calibration.scale_ticks: {count} replicas need at least {least}, or their latencies would never be "
                f"{LEAST_LATENCIES}, which the scale of C_1 takes"
            )
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Of the replicas, in the order of every report."""
        return tuple(one.name for one in self._members())

    @property
    def sees(self) -> str:
        """Name of the profile: what of the replicas can be seen (``semantic.profiles``)."""
        return "white" if self.whitebox else self.profile

    @property
    def encoder_name(self) -> str:
        """What makes points of answers, as a baseline names it."""
        if self.whitebox is not None:
            first = self.whitebox.replica[0]
            return f"{self.whitebox.points} of {first.checkpoint}"
        assert self.encoder is not None
        return self.encoder.model

    @property
    def encoder_pipeline(self) -> str:
        """Who trained it."""
        if self.whitebox is not None:
            return self.whitebox.pipeline
        assert self.encoder is not None
        return self.encoder.pipeline

    @property
    def slowest_s(self) -> float:
        """The longest time limit of an answer, in seconds."""
        return max(one.timeout_s for one in self._members())

    def _members(self) -> tuple[ReplicaSection | CheckpointSection, ...]:
        return self.replica if self.whitebox is None else self.whitebox.replica


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
# metrics = "http://127.0.0.1:8001/metrics"   # of every replica: where requests go, and what stays cached

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

EXAMPLE_WHITEBOX: Final = """\
# Settings of `mvps ai probe` for checkpoints of one model that are loaded into its process and looked into.
name = "llama-eu-release"
# prompts = "/etc/mvps/prompts.toml"   # the starter set without it

[whitebox]                   # needs pip install 'mvps[ai,models]'
layers = "middle"            # whose attention and hidden states are compared
points = "hidden"            # C_2 from hidden states on the same tokens; "embeddings": from what each replica said

[[whitebox.replica]]
name = "released"
checkpoint = "/models/llama-3-8b"
device = "cuda:0"
dtype = "bfloat16"

[[whitebox.replica]]
name = "candidate"
checkpoint = "/models/llama-3-8b-quantised"
device = "cuda:0"
dtype = "bfloat16"

[pace]
period_s = 5.0
"""
