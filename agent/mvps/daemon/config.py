# SPDX-License-Identifier: Apache-2.0
"""The agent's settings: one TOML file, every key checked before anything is attached.

Each field carries its unit, whether SIGHUP may change it, and a description, so that :func:`default_file` can print
the reference that ``mvps config`` shows.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo

from mvps.settings import toml_file
from mvps.trust.limits import MAX_UNCHANGED_TICKS
from mvps.vantages.probe_plan import MAX_DESTINATIONS, MAX_FLOWS, MAX_RATE, MAX_TTL, Destination, ProbePlan, parse_site


def _setting(default: Any, description: str, *, unit: str = "", reload: bool = False, **limits: Any) -> Any:
    """A pydantic field that also knows its unit and whether a reload may change it."""
    return Field(default=default, description=description, json_schema_extra={"unit": unit, "reload": reload}, **limits)


def split_address(address: str) -> tuple[str, int]:
    """``host:port`` or ``[v6]:port`` as (host, port). ValueError says what is accepted."""
    host, separator, port = address.rpartition(":")
    if not separator or not host or not port.isdigit() or int(port) > 65535:
        raise ValueError(f'"{address}" is not an address; write "127.0.0.1:9465" or "[::1]:9465"')
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise ValueError(f'"{address}": write an IPv6 address in brackets, as "[::1]:9465"')
    return host.strip("[]"), int(port)


def _address_or_empty(value: str) -> str:
    if value:
        split_address(value)
    return value


def _target_or_empty(value: str) -> str:
    if value.startswith("unix:"):
        if not value.removeprefix("unix:").startswith("/"):
            raise ValueError('a Unix socket target is "unix:/absolute/path"')
        return value
    return _address_or_empty(value)


def _key_source(value: str) -> str:
    if value.startswith("/") or re.fullmatch(r"credential:[A-Za-z0-9_.-]{1,64}", value):
        return value
    raise ValueError('write "/absolute/path" or "credential:NAME" (systemd LoadCredential)')


def _public_source(value: str) -> str:
    if value.startswith(("/", "mvps-public-v1:")):
        return value
    raise ValueError('write "/absolute/path" or the key itself, "mvps-public-v1:operator:..."')


def _absolute(value: str) -> str:
    if not value.startswith("/"):
        raise ValueError(f'"{value}" is not an absolute path')
    return value


def _absolute_or_empty(value: str) -> str:
    return _absolute(value) if value else value


def _vantage_id(value: str) -> str:
    if value and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,63}", value):
        raise ValueError("use 1 to 64 letters, digits or . _ : @ - beginning with a letter or digit")
    return value


def _destination(value: str) -> str:
    Destination.parse(value)
    return value


def _site_or_empty(value: str) -> str:
    if value:
        parse_site(value)
    return value


Address = Annotated[str, AfterValidator(_address_or_empty)]
Target = Annotated[str, AfterValidator(_target_or_empty)]
KeySource = Annotated[str, AfterValidator(_key_source)]
PublicSource = Annotated[str, AfterValidator(_public_source)]
AbsolutePath = Annotated[str, AfterValidator(_absolute)]
OptionalPath = Annotated[str, AfterValidator(_absolute_or_empty)]
VantageId = Annotated[str, AfterValidator(_vantage_id)]
ProbeDestination = Annotated[str, AfterValidator(_destination)]
OptionalSite = Annotated[str, AfterValidator(_site_or_empty)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class AgentSection(_Section):
    """Identity and tick of this host."""

    tick_ms: int = _setting(
        1000, "Tick of the lattice t = k * tick on the wall clock.", unit="ms, 50 to 60000", ge=50, le=60_000
    )
    vantage_id: VantageId = _setting("", "Name of this host at the broker. Empty: the host name.")
    state_dir: AbsolutePath = _setting(
        "/var/lib/mvps", "Baselines, received manifests, the generation counter and the lock of this agent."
    )


class VantagesSection(_Section):
    """Which vantages watch this host."""

    enable: tuple[str, ...] = _setting((), "Vantages to attach. Empty: all that this version knows.")
    disable: tuple[str, ...] = _setting((), "Vantages to leave out; wins over enable.")
    loader: Literal["auto", "core", "bcc"] = _setting(
        "auto",
        "How programs get into the kernel: core as they were built, which takes a kernel with BTF; bcc compiles them"
        " here, which takes python3-bpfcc and the kernel's headers; auto: bcc only where there is no BTF.",
    )


class ScopeSection(_Section):
    """What the vantages are limited to."""

    cgroup: OptionalPath = _setting("", "Only this control group and what is below it. Empty: the host.")
    netns: str = _setting(
        "", "Only this network namespace: a name of `ip netns` or a path such as /proc/1/ns/net. Empty: all."
    )


class ProbeSection(_Section):
    """Active path probing, off unless destinations are given (docs/probing.md)."""

    destinations: tuple[ProbeDestination, ...] = _setting(
        (),
        'Hosts to probe, each "ADDRESS" or "ADDRESS@LATITUDE,LONGITUDE" in degrees. Empty: nothing is ever sent.',
        unit=f"at most {MAX_DESTINATIONS}",
    )
    site: OptionalSite = _setting("", 'Where this host is, "LATITUDE,LONGITUDE" in degrees. Empty: unknown.')
    rate: float = _setting(
        5.0, "Probes sent over all destinations.", unit=f"per second, at most {MAX_RATE:g}", ge=0.01, le=MAX_RATE
    )
    flows: int = _setting(4, "Flow identities per destination, to find parallel paths.", ge=1, le=MAX_FLOWS)
    max_ttl: int = _setting(16, "Farthest hop that is looked for.", unit="hops", ge=1, le=MAX_TTL)
    timeout_ms: int = _setting(1000, "Time an answer may take.", unit="ms, 100 to 5000", ge=100, le=5000)

    @model_validator(mode="after")
    def _is_a_plan(self) -> Self:
        self.plan()
        return self

    def plan(self) -> ProbePlan | None:
        """What the path prober may send; None while it is off. ValueError when it is too much."""
        if not self.destinations:
            return None
        site = parse_site(self.site) if self.site else None
        return ProbePlan(
            tuple(Destination.parse(text) for text in self.destinations),
            (site.latitude, site.longitude) if site else None,
            self.rate,
            self.flows,
            self.max_ttl,
            self.timeout_ms / 1000.0,
        )


class BaselineSection(_Section):
    """How business as usual (BAU) is learned and when a tick leaves it."""

    calibration_ticks: int = _setting(
        300, "Ticks learned before the first decision.", unit="ticks, at least 60", ge=60, le=86_400
    )
    cutoffs: Literal["empirical", "finite-sample", "chi2"] = _setting(
        "empirical", "Where the cut-offs come from: quantiles of BAU, Hotelling limits, or chi-square."
    )
    hysteresis: int = _setting(
        3, "Consecutive ticks beyond a cut-off before the phase moves.", unit="ticks", ge=1, le=60
    )


class TrustSection(_Section):
    """Who this host is, and whose word counts (docs/trust.md). Needed once a broker is set."""

    key: KeySource = _setting(
        "/etc/mvps/host.key", 'This host\'s key: a file of mode 0600, or "credential:NAME". SIGHUP reads it again.'
    )
    operator: PublicSource = _setting(
        "/etc/mvps/operator.pub", "The operator's public key: its text, or a file that holds it."
    )
    manifests: AbsolutePath = _setting(
        "/etc/mvps/manifests",
        "Directory of the operator's signed manifests, read again on SIGHUP. Later ones also come from the broker.",
    )


class BrokerSection(_Section):
    """Where sealed snapshots go."""

    target: Target = _setting(
        "",
        'Broker, "host:port" or "unix:/path". Empty: nothing is sealed or sent, the host watches itself.',
        reload=True,
    )
    heartbeat_epsilon: float = _setting(
        0.0,
        "In BAU, leave out distributions that moved by less than this (total variation); 0 sends all.",
        ge=0.0,
        le=0.5,
    )
    heartbeat_full_ticks: int = _setting(
        60, "Send every distribution at least so often all the same.", unit="ticks", ge=2, le=MAX_UNCHANGED_TICKS
    )
    queue: int = _setting(
        4096,
        "Sealed snapshots kept in memory while broker and spool are both away. The oldest goes first.",
        unit="snapshots",
        ge=16,
        le=65_536,
    )
    tls_ca: OptionalPath = _setting(
        "", "Certificates (PEM) of who may vouch for the broker. Empty: no TLS; seals do not depend on it."
    )
    tls_cert: OptionalPath = _setting("", "This host's certificate chain (PEM), if the broker asks for one.")
    tls_key: OptionalPath = _setting(
        "", "Its private key (PEM), a file of mode 0600. All three are read at every connect."
    )

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ValueError("tls_cert and tls_key belong together")
        if self.tls_cert and not self.tls_ca:
            raise ValueError("tls_cert needs tls_ca, which says whom to trust")
        return self


class SpoolSection(_Section):
    """Sealed snapshots on disk until the broker has answered, also across restarts of the agent."""

    path: OptionalPath = _setting(
        "", "Directory, made with mode 0700; its parent must exist. Empty: spool/ in agent.state_dir."
    )
    max_mib: int = _setting(
        256,
        "Size of the spool; beyond it the oldest snapshots go first. 0: no spool, in memory only.",
        unit="MiB, at most 2048",
        ge=0,
        le=2048,
    )
    max_age_h: float = _setting(
        24.0, "Snapshots older than this are dropped. A broker takes none it would not keep.", unit="hours", gt=0,
        le=24 * 366,
    )  # fmt: skip
    rate: float = _setting(
        0.0,
        "Snapshots of the past sent per second once the broker is back. 0: three times the ticks.",
        unit="per second",
        ge=0,
        le=100_000,
    )


class MetricsSection(_Section):
    """OpenMetrics over HTTP."""

    address: Address = _setting(
        "127.0.0.1:9465", "Where /metrics listens. Empty: off. Keep it on loopback.", reload=True
    )
    lateral: bool = _setting(
        False,
        "Also export C_4 and the label that follows from it (001 sec. 28): whoever may scrape then reads them.",
        reload=True,
    )


class LocalSection(_Section):
    """The socket that `mvps status`, `top`, `explain` and others talk to."""

    socket: AbsolutePath = _setting("/run/mvps/agent.sock", "Unix socket, mode 0660.")
    group: str = _setting("", "Group that may use the socket. Empty: the agent's own group.")
    operator_socket: OptionalPath = _setting(
        "", "Unix socket where C_4 and the label that follows from it are shown. Empty: nowhere on this host."
    )
    operator_group: str = _setting(
        "", "Group that may use that one, mode 0660. Empty: the agent's user and root only, mode 0600."
    )

    @model_validator(mode="after")
    def _two_sockets(self) -> Self:
        if self.operator_socket == self.socket:
            raise ValueError("operator_socket and socket are one path: what is for operators needs a socket of its own")
        if self.operator_group and not self.operator_socket:
            raise ValueError("operator_group needs operator_socket")
        return self


class EnginesSection(_Section):
    """Serving engines on this host that send audit packets and ask how hard to push (docs/surplus.md)."""

    max_streams: int = _setting(
        8, "Engines that may be connected at a time, over local.socket. 0: none.", unit="at most 16", ge=0, le=16
    )
    policy: Literal["off", "advice", "apply"] = _setting(
        "advice", "A broker's policies: off (refused), advice (shown only), apply (they bound what engines are told)."
    )


class LogSection(_Section):
    """Log on standard error."""

    level: Literal["debug", "info", "warning", "error"] = _setting("info", "Least severity.", reload=True)
    format: Literal["text", "json"] = _setting("text", "key=value text, or one JSON object a line.", reload=True)


class PrivacySection(_Section):
    """What may leave the host besides numbers."""

    object_names: Literal["hashed", "local", "sent"] = _setting(
        "local",
        "Names of workloads and prefixes: hashed (never resolved), local (this host's CLI only), sent.",
    )


class Config(_Section):
    """Everything the agent can be told. Each section is a table of the file."""

    agent: AgentSection = AgentSection()
    vantages: VantagesSection = VantagesSection()
    scope: ScopeSection = ScopeSection()
    probe: ProbeSection = ProbeSection()
    baseline: BaselineSection = BaselineSection()
    trust: TrustSection = TrustSection()
    broker: BrokerSection = BrokerSection()
    spool: SpoolSection = SpoolSection()
    metrics: MetricsSection = MetricsSection()
    local: LocalSection = LocalSection()
    engines: EnginesSection = EnginesSection()
    log: LogSection = LogSection()
    privacy: PrivacySection = PrivacySection()

    @property
    def tick_ns(self) -> int:
        """T_tick in nanoseconds."""
        return self.agent.tick_ms * 1_000_000

    @property
    def late_rate(self) -> float:
        """Snapshots of the past sent per second; with the live ones they are the manifest's usual rate of 4 a tick."""
        return self.spool.rate or 3_000.0 / self.agent.tick_ms

    @property
    def vantage_id(self) -> str:
        """Name of this host at the broker: the configured one or the host name."""
        return self.agent.vantage_id or socket.gethostname()[:64]

    def choose_vantages(self, known: Sequence[str]) -> tuple[str, ...]:
        """Vantages to attach, in registry order. ValueError names one that this version does not know."""
        for name in (*self.vantages.enable, *self.vantages.disable):
            if name not in known:
                raise ValueError(f'unknown vantage "{name}"; this version knows {", ".join(known)}')
        wanted = self.vantages.enable or tuple(known)
        chosen = tuple(n for n in known if n in wanted and n not in self.vantages.disable)
        if not chosen:
            raise ValueError("every vantage is disabled; leave at least one")
        return chosen


def parse(text: str, path: Path | str = "<text>") -> Config:
    """Settings from TOML text. ``ConfigError`` lists every problem with its line."""
    return toml_file.parse(text, Config, path)


def load(path: Path | str) -> Config:
    """Settings from a file. ``ConfigError`` also for a file that is missing or unreadable."""
    return toml_file.load(path, Config, "`mvps config` prints one to start from")


def changes(old: Config, new: Config) -> tuple[dict[str, Any], dict[str, Any]]:
    """What differs, as ({key: new value} a reload may apply, {key: new value} that needs a restart)."""
    safe: dict[str, Any] = {}
    unsafe: dict[str, Any] = {}
    for section, key, field in _fields():
        before = getattr(getattr(old, section), key)
        after = getattr(getattr(new, section), key)
        if before != after:
            (safe if _extra(field)["reload"] else unsafe)[f"{section}.{key}"] = after
    return safe, unsafe


def apply_changes(old: Config, safe: dict[str, Any]) -> Config:
    """``old`` with the reloadable keys of :func:`changes` replaced."""
    document = old.model_dump()
    for dotted, value in safe.items():
        section, key = dotted.split(".")
        document[section][key] = value
    return Config.model_validate(document)


def default_file() -> str:
    """A complete settings file in which every key is commented out at its default."""
    out = [
        "# Settings of the MVPS agent. Every key is shown at its default; uncomment what you change.",
        "# Check a file with: mvps config --check FILE. Keys marked [reload] may change on SIGHUP.",
    ]
    seen = ""
    for section, key, field in _fields():
        if section != seen:
            model = Config.model_fields[section].annotation
            out += ["", f"# {(model.__doc__ or '').strip()}", f"[{section}]"]
            seen = section
        extra = _extra(field)
        notes = [extra["unit"]] if extra["unit"] else []
        choices = _choices(field)
        if choices:
            notes.append(" | ".join(choices))
        note = f" ({'; '.join(notes)})" if notes else ""
        mark = " [reload]" if extra["reload"] else ""
        out += [f"# {field.description}{note}{mark}", f"#{key} = {_toml(field.default)}"]
    return "\n".join(out) + "\n"


def to_toml(config: Config) -> str:
    """The effective settings as TOML without comments; parsing it gives ``config`` again."""
    out: list[str] = []
    for section in Config.model_fields:
        out += ["", f"[{section}]"] if out else [f"[{section}]"]
        values = getattr(config, section)
        out += [f"{key} = {_toml(getattr(values, key))}" for key in type(values).model_fields]
    return "\n".join(out) + "\n"


def _fields() -> Iterator[tuple[str, str, FieldInfo]]:
    for section, table in Config.model_fields.items():
        model = table.annotation
        assert isinstance(model, type)
        assert issubclass(model, BaseModel)
        for key, field in model.model_fields.items():
            yield section, key, field


def _extra(field: FieldInfo) -> dict[str, Any]:
    extra = field.json_schema_extra
    assert isinstance(extra, dict)
    return extra


def _choices(field: FieldInfo) -> list[str]:
    arguments = getattr(field.annotation, "__args__", ())
    return [a for a in arguments if isinstance(a, str)]


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return str(value)
