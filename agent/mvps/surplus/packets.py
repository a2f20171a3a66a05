# SPDX-License-Identifier: Apache-2.0
"""What is written down about control: cap, health, policy, incident and credit, each a closed, versioned schema.

One model is the only definition: it parses, it renders, and its JSON Schema (``schema``) is generated (002 app. C.1,
sec. 11.2). Names on the wire are the text's where the meaning is: ``crp_score`` and ``ssi_star_score`` are tail scores
in [0, 1] and not the text's z-scores, so that they do not carry its names.

**No content.** Identifiers are short words without spaces or @, hashes are salted with a key per tenant (``salted``),
fields that are not in the schema are refused, and numbers are finite: what is not known is null. The one free text is
an incident's summary, written by people.

**Chain.** A packet is one canonical line: a JSON object {"packet", "prev", "seq"}, keys sorted, no spaces, where prev
is the SHA-256 of the line before. The first line's prev binds the chain's name. So bytes follow from the packets alone,
and a line that was changed, left out or moved shows: ``follow`` hashes the bytes that came and renders none again.
Minutes are half-open: [bucket, bucket + 60 s).
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import pairwise
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

MAX_LINE_BYTES = 8192
_CHAIN_DOMAIN = b"mvps/surplus/chain.v1\x00"
_HEADS_DOMAIN = b"mvps/surplus/heads.v1\x00"
_NAME = r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,63}"
_LINE_BEGINS = b'{"packet":'
_HEADER_BEGINS = b'{"chain":"'
_NO_OFFSET = timedelta(0)


class PacketError(ValueError):
    """A packet or a line of a chain that is not what it should be."""


class ChainError(PacketError):
    """A line that does not follow the one before it."""


def _utc(value: datetime) -> datetime:
    if value.utcoffset() != _NO_OFFSET:
        raise ValueError("times are UTC: end them with Z")
    return value


def _minute(value: datetime) -> datetime:
    if value.second or value.microsecond:
        raise ValueError("a bucket is a whole minute")
    return value


Name = Annotated[str, Field(pattern=f"^{_NAME}$")]
Hash = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
Time = Annotated[AwareDatetime, AfterValidator(_utc)]
Bucket = Annotated[Time, AfterValidator(_minute)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Amount = Annotated[float, Field(ge=0.0, le=1e15)]
Signed = Annotated[float, Field(ge=-1e15, le=1e15)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Angle = Annotated[float, Field(ge=0.0, le=3.1415926535897936)]


class Packet(BaseModel):
    """What all have in common: closed, strict, finite, never changed."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, populate_by_name=True)


class State(StrEnum):
    """Band of a tenant by its name."""

    GREEN = "Green"
    CAUTION = "Caution"
    ACTION = "Action"
    EMERGENCY = "Emergency"


class ActionKind(StrEnum):
    """What a step chose."""

    TOKEN = "token"
    TOOL = "tool"
    PLAN = "plan"


class FallbackCause(StrEnum):
    """Why a step was left to the model; the names of ``controller.Fallback``."""

    NONE = "none"
    OFF = "off"
    GREEDY = "greedy"
    NO_FEATURES = "no_features"
    BUDGET_SPENT = "budget_spent"
    LOGITS = "logits"
    STRUCTURE = "structure"
    OBJECTIVE = "objective"
    ROUNDING = "rounding"


class ValueParts(Packet):
    """Terms of L of the chosen candidate, before their weights; null where nothing measures them."""

    dlp: Signed
    progress: Signed
    struct_risk: Share | None = Field(None, alias="structRisk")
    lat: Share | None = None
    len: Share | None = None


class DissipationParts(Packet):
    """Terms of Gamma of the chosen candidate, before their weights."""

    drift: Amount
    mode_flip: Amount | None = Field(None, alias="modeFlip")
    fmt_debt: Share | None = Field(None, alias="fmtDebt")
    tension: Amount | None = Field(None, alias="iT")
    routing: Amount | None = None


class Choice(Packet):
    """What was chosen: its kind, the tool's or plan's name, and a hash of its arguments."""

    type: ActionKind
    name: Name | None = None
    args_hash: Hash | None = None


class Cap(Packet):
    """Controller audit packet, one per tick: ``cap.v1``."""

    kind: Literal["cap.v1"] = Field("cap.v1", alias="schema")
    ts: Time
    tenant: Name
    session: Hash
    model: Name
    hash_logits: Hash | None = None
    hash_embed: Hash | None = None
    theta: Angle | None
    phi: Share | None
    tension: Amount | None = Field(alias="iT")
    energy: Amount | None = Field(None, alias="Es")
    value: ValueParts = Field(alias="L")
    dissipation: DissipationParts = Field(alias="Gamma")
    lam: Amount = Field(alias="lambda")
    kl_used: Amount
    kl_budget: Amount
    dlogits_l2: Amount
    steps: Count
    fallback: FallbackCause = FallbackCause.NONE
    looked_ahead: bool = False
    action: Choice
    candidates: Count
    caps_hit: bool = False
    state: State
    bh1: bool = False
    bh2: bool = False
    risk: Share | None = None
    latency_ms: Amount | None = None
    tool_ms: Amount | None = None
    tokens: Count = 0


class HealthMinute(Packet):
    """Health of one tenant over one minute: ``health.v1``.

    cap_head: ``heads_digest`` of all chains on its host, as they stood when the minute was closed. latency_p95: of the
    packets' time per token in ms, within 1 % (``latency_sketch``); None where too few packets said it, and then it is
    left out of the line, as it is by older agents.
    """

    kind: Literal["health.v1"] = Field("health.v1", alias="schema")
    bucket: Bucket
    tenant: Name
    sse: Share | None = Field(alias="SSE")
    crp: Share | None = Field(alias="CRP")
    ssi_star: Share | None = Field(alias="SSIstar")
    crp_score: Share | None
    ssi_star_score: Share | None
    xi: Share | None = Field(alias="Xi")
    lam: Amount = Field(alias="lambda")
    kl_budget: Amount
    dlogits_budget: Amount
    state: State
    bh1: bool
    bh2: bool
    packets: Count
    refused: dict[Name, Count] = Field(default_factory=dict, max_length=64)
    fallbacks: dict[FallbackCause, Count] = Field(default_factory=dict)
    kl_sum: Amount = 0.0
    cap_head: Hash
    latency_p95: Amount | None = None

    @model_serializer(mode="wrap")
    def _known(self, render: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _less_default(render(self), "latency_p95", self.latency_p95 is None)

    @property
    def broken(self) -> int:
        """Packets whose structure was lost."""
        return self.fallbacks.get(FallbackCause.STRUCTURE, 0)


class Caps(Packet):
    """Hard limits; null is none. soft: share of each at which to warn and to slow down."""

    qps: Amount | None = None
    tok_max: Count | None = None
    tool_per_min: Amount | None = None
    soft: Share = 0.8


class Routing(Packet):
    """Providers and how traffic may be spread over them.

    shares: what is wanted while nothing presses, one per provider; null: even. floor: least share of each.
    handoff_cost, handoff_stress: cost of a handoff between agents, cost (1 + stress max(SSI*, CRP)).
    """

    providers: Annotated[list[Name], Field(min_length=1, max_length=256)]
    min_spread: Share = 0.0
    max_provider_share: Share = 1.0
    shares: Annotated[list[Share], Field(max_length=256)] | None = None
    floor: Share = 0.0
    handoff_cost: Amount = 0.0
    handoff_stress: Amount = 0.0

    @model_validator(mode="after")
    def _feasible(self) -> Routing:
        count = len(self.providers)
        if len(set(self.providers)) != count:
            raise ValueError("a provider is named twice")
        if count * self.max_provider_share < 1.0:
            raise ValueError(f"{count} providers of at most {self.max_provider_share} each are not 1")
        if count * self.floor > 1.0 or self.floor > self.max_provider_share:
            raise ValueError(f"{count} providers of at least {self.floor} each do not fit")
        if self.shares is not None and (len(self.shares) != count or sum(self.shares) <= 0.0):
            raise ValueError(f"shares are {count} numbers, one per provider, and not all 0")
        return self


class Exploration(Packet):
    """Share of traffic to diversify while SSE is below its least value."""

    min_sse: Share = Field(0.5, alias="min_SSE")
    quota_pct: Share = 0.15


class Privacy(Packet):
    """How long what is kept. Raw text is never kept: there is no field for it."""

    retention_days: Annotated[int, Field(ge=1, le=3650)] = 14


class Thresholds(Packet):
    """Xi of the whole tenant from which on each band begins."""

    caution: Share = 0.35
    action: Share = 0.55
    emergency: Share = 0.75

    @model_validator(mode="after")
    def _rising(self) -> Thresholds:
        if not self.caution < self.action < self.emergency:
            raise ValueError("bands begin in the order caution, action, emergency")
        return self


class Control(Packet):
    """Between which bounds lambda may be, and the trust region's largest budget in nats by band."""

    lam_min: Annotated[float, Field(ge=0.0, le=10.0)] = 0.0
    lam_max: Annotated[float, Field(ge=0.0, le=10.0)] = 2.0
    kl_green: Annotated[float, Field(gt=0.0, le=1.0)] = 0.010
    kl_caution: Annotated[float, Field(gt=0.0, le=1.0)] = 0.008
    kl_action: Annotated[float, Field(gt=0.0, le=1.0)] = 0.006
    kl_emergency: Annotated[float, Field(gt=0.0, le=1.0)] = 0.004

    @model_validator(mode="after")
    def _ordered(self) -> Control:
        if self.lam_min > self.lam_max:
            raise ValueError("lam_min is above lam_max")
        if not self.kl_green >= self.kl_caution >= self.kl_action >= self.kl_emergency:
            raise ValueError("budgets do not rise from green to emergency")
        return self


class Reserve(Packet):
    """Share of rolling spending to hold back: base + crp CRP + spread (1 - SSE) + stress SSI."""

    base: Share = 0.05
    crp: Share = 0.05
    spread: Share = 0.05
    stress: Share = 0.05


class Climb(Packet):
    """How the rollback ladder moves by itself.

    highest: rung it climbs to; above R4 it takes an operator. dwell: least minutes on a rung before the next one up.
    exit_minutes, exit_sse: how long a rung's exit criteria hold before it is left, and their SSE; null does not ask for
    one. throttle: what is left of the request rate from R2 on.
    """

    highest: Annotated[int, Field(ge=0, le=4)] = 4
    dwell: Annotated[int, Field(ge=1, le=1440)] = 3
    exit_minutes: Annotated[int, Field(ge=1, le=1440)] = 30
    exit_sse: Share | None = 0.55
    throttle: Share = 0.7


class Stage(StrEnum):
    """On how many hosts a policy is in force: on none, a few, a part, all."""

    SHADOW = "shadow"
    CANARY = "canary"
    GRADUAL = "gradual"
    FULL = "full"


class Kill(Packet):
    """How much worse than the other hosts the slice may become before the policy is taken back; null: no such switch.

    latency: of the p95 of the time per token, as a share of it. incidents: of the share of host minutes with BH-1 or
    BH-2, as a share of that of the other hosts. breaks: of the share of packets whose structure was lost, absolute.
    """

    latency: Annotated[float, Field(gt=0.0, le=100.0)] | None = 0.25
    incidents: Annotated[float, Field(gt=0.0, le=100.0)] | None = 0.5
    breaks: Annotated[float, Field(gt=0.0, le=1.0)] | None = 0.005


class Rollout(Packet):
    """How a policy comes into force.

    stage: how far it goes by itself. canary, gradual: shares of the hosts. soak_minutes: time in a stage before the
    next. margin: of Xi, by which the slice must be shown not to be worse. killed: it stays in shadow. kill: limits of
    the switches that take it back; left out of a rendered policy while they are the text's, so that its digest stays
    what it was and older agents read it.
    """

    stage: Stage = Stage.SHADOW
    canary: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.05
    gradual: Annotated[list[Annotated[float, Field(gt=0.0, lt=1.0)]], Field(max_length=4)] = [0.25, 0.5]
    soak_minutes: Annotated[int, Field(ge=240, le=10_080)] = 1440
    margin: Annotated[float, Field(gt=0.0, le=1.0)] = 0.05
    killed: bool = False
    kill: Kill = Kill()

    @model_serializer(mode="wrap")
    def _set(self, render: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _less_default(render(self), "kill", self.kill == Kill())

    @model_validator(mode="after")
    def _growing(self) -> Rollout:
        shares = [self.canary, *self.gradual]
        if any(after <= before for before, after in pairwise(shares)):
            raise ValueError("the shares of the hosts grow from canary over each of gradual")
        return self


class Issue(Packet):
    """What a broker adds when it hands a policy to a host: how things stand, and until when that holds.

    in_slice: whether the policy is in force on this host. rung: of the ladder, -1 for none. shares: of the providers,
    in their order. exploration: share of traffic to diversify. reserve: share of spending to hold back.
    """

    host: Annotated[str, Field(min_length=1, max_length=64)]
    tenant: Name
    issued_at: Time
    expires_at: Time
    stage: Stage
    in_slice: bool
    rung: Annotated[int, Field(ge=-1, le=6)]
    actions: Annotated[list[Name], Field(max_length=32)]
    state: State
    kl_budget: Amount
    shares: Annotated[list[Share], Field(max_length=256)]
    handoff_cost: Amount
    exploration: Share
    reserve: Amount

    @model_validator(mode="after")
    def _lasts(self) -> Issue:
        if self.expires_at <= self.issued_at:
            raise ValueError("it expires before it is issued")
        return self


class Policy(Packet):
    """Policy pack of one tenant, or of a class of them: ``policy.v1``.

    tenants: of a class, whose name is ``tenant`` then; empty: the one tenant of that name. outliers: hosts whose word
    does not count when it is the worst (``governance.combine``). issue: only in what a broker hands to a host.
    """

    kind: Literal["policy.v1"] = Field("policy.v1", alias="schema")
    tenant: Name
    tenants: Annotated[list[Name], Field(max_length=256)] = []
    version: Count
    caps: Caps
    routing: Routing
    exploration: Exploration
    privacy: Privacy
    thresholds: Thresholds = Thresholds()
    control: Control = Control()
    reserve: Reserve = Reserve()
    ladder: Climb = Climb()
    rollout: Rollout = Rollout()
    outliers: Annotated[int, Field(ge=0, le=1000)] = 1
    dry_run: bool = True
    issue: Issue | None = None

    @model_validator(mode="after")
    def _distinct(self) -> Policy:
        if len(set(self.tenants)) != len(self.tenants):
            raise ValueError("a tenant is named twice")
        return self

    @property
    def members(self) -> tuple[str, ...]:
        """The tenants it is for."""
        return tuple(self.tenants) or (self.tenant,)


class IncidentKind(StrEnum):
    """What went wrong."""

    SCHEMA_BREAK = "schema_break"
    LATENCY_SPIKE = "latency_spike"
    POLICY_VIOLATION = "policy_violation"
    OTHER = "other"


class Severity(StrEnum):
    """How badly."""

    LOW = "low"
    MEDIUM = "med"
    HIGH = "high"
    CRITICAL = "critical"


class Incident(Packet):
    """Incident record: ``incident.v1``. onset: of the alert that announced it, for lead times; not its last minute."""

    kind: Literal["incident.v1"] = Field("incident.v1", alias="schema")
    id: Name
    tenant: Name
    started_at: Time
    ended_at: Time | None = None
    cause: IncidentKind
    severity: Severity
    summary: Annotated[str, Field(max_length=2000)]
    bh1_onset: Time | None = None
    bh2_onset: Time | None = None
    rollback_rung: Annotated[int, Field(ge=0, le=6)] | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Incident:
        if self.ended_at is not None and self.ended_at < self.started_at:
            raise ValueError("an incident ends after it starts")
        return self


class Consent(StrEnum):
    """Whether a contribution may be used."""

    ACTIVE = "active"
    SCOPED = "scoped"
    REVOKED = "revoked"


class Usage(Packet):
    """How much a contribution was used; u: its normalised weight in the payout."""

    queries: Count
    tokens: Count
    coverage: Share
    u: Amount


class Uplift(Packet):
    """Quality gained by it, with an interval."""

    delta_quality: Signed
    ci: tuple[Signed, Signed]

    @model_validator(mode="after")
    def _inside(self) -> Uplift:
        if not self.ci[0] <= self.delta_quality <= self.ci[1]:
            raise ValueError("the interval does not hold its estimate")
        return self


class Credit(Packet):
    """Consent and credit of one contribution in one month: ``credit.v1``. Payout in units of the currency."""

    kind: Literal["credit.v1"] = Field("credit.v1", alias="schema")
    contrib_id: Hash
    period: Annotated[str, Field(pattern=r"^\d{4}-(0[1-9]|1[0-2])$")]
    consent: Consent
    usage: Usage
    uplift: Uplift
    novelty: Share
    safety_scalar: Share
    payout: Amount
    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")]

    @model_validator(mode="after")
    def _consented(self) -> Credit:
        if self.consent is Consent.REVOKED and self.payout > 0.0:
            raise ValueError("what was revoked was not used and earns nothing")
        return self


AnyPacket = Cap | HealthMinute | Policy | Incident | Credit
KINDS: dict[str, type[AnyPacket]] = {
    "cap.v1": Cap,
    "health.v1": HealthMinute,
    "policy.v1": Policy,
    "incident.v1": Incident,
    "credit.v1": Credit,
}
_P = TypeVar("_P", bound=Packet)


def payout(
    u: float, delta_quality: float, novelty: float, safety: float, rate: float, w_q: float = 2.0, w_n: float = 0.5
) -> float:
    """rate (u + w_q dQ + w_n novelty) s (sec. 9.1 B), not below 0. The text's example gives 0.64, not its 98.44."""
    return max(rate * (u + w_q * delta_quality + w_n * novelty) * safety, 0.0)


def salted(content: bytes, salt: bytes) -> str:
    """Hash of what must not be written down: HMAC-SHA256 under the tenant's salt, as a plain one can be guessed."""
    if len(salt) < 16:
        raise PacketError("a salt of fewer than 16 bytes can be guessed")
    return "sha256:" + hmac.new(salt, content, hashlib.sha256).hexdigest()


def digest(policy: Policy) -> str:
    """Which policy it is, whatever a broker added when it handed it out."""
    return _hash(render(policy.model_copy(update={"issue": None})))


def schema(kind: str) -> dict[str, Any]:
    """JSON Schema of a kind (draft 2020-12), as generated from its model."""
    generated = KINDS[kind].model_json_schema(by_alias=True, mode="validation")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": f"mvps/surplus/{kind}", **generated}


def render(packet: Packet) -> bytes:
    """Canonical bytes: JSON, keys sorted, no spaces, ASCII."""
    plain = packet.model_dump(mode="json", by_alias=True)
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def parse(data: bytes, kind: type[_P]) -> _P:
    """A packet of one kind from its JSON."""
    if len(data) > MAX_LINE_BYTES:
        raise PacketError(f"a packet of {len(data)} bytes: at most {MAX_LINE_BYTES} are read")
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise PacketError(_found(error, kind)) from None


@dataclass(frozen=True)
class Chain:
    """A chain of packets as far as it got. name: of its writer. head: hash of its last line. length: lines."""

    name: str
    head: str
    length: int = 0

    @classmethod
    def begin(cls, name: str) -> Chain:
        """An empty chain, whose head is bound to its name."""
        return cls(name, _hash(_CHAIN_DOMAIN + name.encode()))

    def append(self, packet: Packet) -> tuple[Chain, bytes]:
        """The chain one packet longer, and the line to write (without its newline)."""
        line = b'{"packet":%b,"prev":"%b","seq":%d}' % (render(packet), self.head.encode(), self.length)
        if len(line) > MAX_LINE_BYTES:
            raise PacketError(f"a line of {len(line)} bytes: at most {MAX_LINE_BYTES} are written")
        return replace(self, head=_hash(line), length=self.length + 1), line


def follow(chain: Chain, lines: Iterable[bytes], kind: type[_P]) -> tuple[Chain, list[_P]]:
    """Check lines that continue a chain, and their packets; PacketError says at which line it breaks.

    ChainError where a line does not follow, which is no question of its content.
    """
    packets: list[_P] = []
    head, length = chain.head.encode(), chain.length
    # Once for all lines: called by the thousand, a wrapper, a copy of the chain and a text for the case of an error
    # cost a good part of the whole.
    read = kind.__pydantic_validator__.validate_json
    for line in lines:
        if len(line) > MAX_LINE_BYTES:
            raise PacketError(f"{_where(chain, length)} has {len(line)} bytes: at most {MAX_LINE_BYTES} are read")
        tail = b',"prev":"%b","seq":%d}' % (head, length)
        if not (line.startswith(_LINE_BEGINS) and line.endswith(tail)):
            raise ChainError(
                f"{_where(chain, length)} does not follow the one before it: something was changed, left out or moved"
            )
        try:
            packets.append(read(line[len(_LINE_BEGINS) : -len(tail)]))
        except ValidationError as error:
            raise PacketError(f"{_where(chain, length)}: {_found(error, kind)}") from None
        head = b"sha256:" + hashlib.sha256(line).hexdigest().encode()
        length += 1
    return Chain(chain.name, head.decode(), length), packets


def heads_digest(heads: Mapping[str, str]) -> str:
    """One hash for the heads of several chains by name: what a minute's health names, whose packets are in them."""
    named = [[name, head] for name, head in sorted(heads.items())]
    return _hash(_HEADS_DOMAIN + json.dumps(named, separators=(",", ":")).encode())


def record_header(name: str) -> bytes:
    """The line that stands before the lines of a chain in a record."""
    return b'{"chain":"%b"}' % checked_name(name).encode()


def recorded_chain(line: bytes) -> Chain | None:
    """The empty chain that a header in a record begins; None where the line is no header. PacketError: a bad name."""
    if not (line.startswith(_HEADER_BEGINS) and line.endswith(b'"}')) or len(line) > MAX_LINE_BYTES:
        return None
    return Chain.begin(checked_name(line[len(_HEADER_BEGINS) : -2].decode(errors="replace")))


def checked_name(name: str) -> str:
    """A name of a chain, tenant or model, if it may be one; PacketError otherwise."""
    if not re.fullmatch(_NAME, name):
        raise PacketError("a name has 1 to 64 letters, digits and . _ : / -, and begins with one of the first two")
    return name


def _less_default(fields: dict[str, Any], name: str, left_out: bool) -> dict[str, Any]:
    """Without a field that came later, while it says nothing: readers from before refuse what they do not know."""
    if left_out:
        fields.pop(name, None)
    return fields


def _where(chain: Chain, length: int) -> str:
    return f"line {length} of the chain {chain.name}"


def _found(error: ValidationError, kind: type[Packet]) -> str:
    """Where and what rule, but not the value: it may be what must not be written down."""
    found = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors(include_input=False))
    return f"not a {kind.__name__}: {found[:500]}"


def _hash(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()
