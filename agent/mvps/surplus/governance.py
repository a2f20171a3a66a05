# SPDX-License-Identifier: Apache-2.0
"""L4 of one tenant: from its hosts' minutes and a policy to a rung, a stage, and what each host is handed (002 sec. 5).

Two machines side by side, both a step a minute, both pure:

- the **ladder** R0-R6 (:mod:`mvps.surplus.policy`) over the tenant's minute of all its hosts
  (:mod:`mvps.surplus.fleet_health`);
- the **rollout** (:mod:`mvps.surplus.rollout`). It begins in shadow and goes one step further after a soak in which no
  alert was raised and whose comparison says "no worse", at most to the policy's own stage. It is back in shadow at once
  when more hosts of the slice than its outliers raise BH-2, at the end of an hour at which another kill switch fires
  (:mod:`mvps.surplus.kill_switches`), at the end of a soak that says "worse", when it is killed and with R6; from there
  it takes an operator's release. A soak that an alert interrupts begins anew.

A new version of a policy begins in shadow. Nothing is in force while ``dry_run`` holds: then both machines move, and
say what would have been. Every change is a ``Change`` with who, why, when and the metrics before it.

A minute of which no host told leaves everything as it is.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Annotated, Final

import numpy as np
from pydantic import Field, model_validator

from mvps.surplus.fleet_health import TenantMinute, combine, limits_of, more_than_outliers, state_of
from mvps.surplus.indicators import Band, Health
from mvps.surplus.kill_switches import KillSwitches, Watched
from mvps.surplus.packets import (
    MAX_LINE_BYTES,
    Caps,
    Hash,
    HealthMinute,
    Issue,
    Kill,
    Name,
    Packet,
    PacketError,
    Policy,
    Stage,
    digest,
    parse,
)
from mvps.surplus.policy import (
    ACTIONS,
    ExitCriteria,
    Ladder,
    Rung,
    Transition,
    exploration_quota,
    reserve,
    routing_shares,
)
from mvps.surplus.rollout import (
    BLOCK_MINUTES,
    LEAST_BLOCKS,
    Blocks,
    Comparison,
    Step,
    Verdict,
    compare,
    difference,
    slice_of,
    steps,
)

# How long what was handed out holds.
LASTS: Final = timedelta(minutes=5)
_SOFT_EXIT_MINUTES: Final = 5
_UNKNOWN: Final = Health(math.nan, math.nan, math.nan, math.nan, Band.GREEN, False, False)
BY_ITSELF: Final = "broker"
# What a stage becomes where a policy is taken back.
TAKEN_BACK: Final = "shadow, held"
_KILLED_IN_FILE: Final = "killed in the policy"


@dataclass(frozen=True)
class Change:
    """One audited change. minute: when, since the Unix epoch. what: "rung", "stage", "hold" or "policy".

    before, after: names. by: an operator, "ladder" or "broker". xi, sse, crp_score: before it; NaN if not known.
    dry_run: whether nothing was in force because of the policy itself.
    """

    minute: int
    tenant: str
    what: str
    before: str
    after: str
    why: str
    by: str
    xi: float
    sse: float
    crp_score: float
    version: int
    dry_run: bool


@dataclass(frozen=True)
class Governed:
    """One tenant under one policy.

    at: place in the policy's ``steps``. soaked: minutes of the present soak. held: "" or why it stays in shadow until
    an operator releases it. before: blocks of each step's slice in shadow, now: of the present slice since it is in
    force. last: the tenant's latest minute. comparison: the latest. waiting: "" or why the last soak led nowhere.
    switches: what they were in shadow, and since the policy is in force on the present slice.
    """

    tenant: str
    policy: Policy
    ladder: Ladder
    at: int = 0
    soaked: int = 0
    held: str = ""
    before: tuple[Blocks, ...] = ()
    now: Blocks = field(default_factory=lambda: Blocks(1))
    last: TenantMinute | None = None
    comparison: Comparison | None = None
    waiting: str = ""
    switches: KillSwitches = field(default_factory=lambda: KillSwitches.begin(Kill(), 0, 1, 0))

    @classmethod
    def begin(cls, tenant: str, policy: Policy, rung: Rung = Rung.NONE, held: str = "") -> Governed:
        """In shadow. rung: it stands on, after a restart or under another version."""
        # What one version says of itself does not hold the next one.
        held = "" if held == _KILLED_IN_FILE else held
        killed = _KILLED_IN_FILE if policy.rollout.killed else ""
        return _fresh(cls(tenant, policy, _ladder(tenant, policy, rung), held=held or killed))

    @classmethod
    def restored(cls, policy: Policy, standing: Standing) -> Governed:
        """After a restart; in shadow if it is another policy by now. The soak begins anew."""
        begun = cls.begin(standing.tenant, policy, Rung(standing.rung), standing.held)
        whole = standing.at < len(steps(policy.rollout)) == len(standing.before) + 1
        if standing.digest != digest(policy) or begun.held or not whole:
            return begun
        most = begun.now.most
        return replace(
            begun,
            at=standing.at,
            before=tuple(_blocks(most, means) for means in standing.before),
            switches=_restored(begun.switches, standing.switches, most),
        )

    @property
    def standing(self) -> Standing:
        """What outlives a restart."""
        before = [_rounded(one) for one in self.before]
        switches = {
            switch.value: SwitchStanding(
                before=[_rounded(blocks) for blocks in one.before], now=_rounded(one.now), others=_rounded(one.others)
            )
            for switch, one in self.switches.watched.items()
        }
        return Standing(
            tenant=self.tenant,
            digest=digest(self.policy),
            rung=int(self.ladder.rung),
            at=self.at,
            held=self.held[:1000],
            before=before,
            switches=switches,
        )

    @property
    def step(self) -> Step:
        """Where the rollout stands."""
        return steps(self.policy.rollout)[self.at]

    @property
    def health(self) -> Health:
        """Of the latest minute."""
        return self.last.health if self.last else _UNKNOWN

    def under(self, policy: Policy, minute: int) -> tuple[Governed, Change]:
        """Under another version: in shadow, on the rung where it is. What an operator holds stays held."""
        after = replace(Governed.begin(self.tenant, policy, self.ladder.rung, self.held), last=self.last)
        names = (f"v{self.policy.version}", f"v{policy.version}")
        return after, after._change(minute, "policy", *names, "the file changed", BY_ITSELF)

    def begun(self, minute: int) -> Change:
        """For the audit trail: the first policy of a tenant."""
        return self._change(minute, "policy", "none", f"v{self.policy.version}", "a file names the tenant", BY_ITSELF)

    def ended(self, minute: int) -> Change:
        """For the audit trail: the tenant has no policy any more."""
        return self._change(minute, "policy", f"v{self.policy.version}", "none", "no file names it", BY_ITSELF)

    def minute(
        self, minute: int, told: Mapping[str, HealthMinute], hosts: Collection[str]
    ) -> tuple[Governed, list[Change]]:
        """One minute later. told: host -> its health of that minute. hosts: all that the tenant has, these included."""
        if not told:
            return self, []
        policy = self.policy
        last = combine(told, minute, policy.outliers, limits_of(policy.thresholds), self.health.band)
        ladder, moved = self.ladder.step(minute, last.health)
        after = replace(self, ladder=ladder, last=last)
        changes = [after._of(moved)] if moved else []
        after, change = after._rolled(minute, told, hosts)
        return after, [*changes, *([change] if change else [])]

    def ordered_rung(self, minute: int, rung: Rung, who: str, why: str) -> tuple[Governed, list[Change]]:
        """An operator sets the rung. R6 takes the policy back from every host until it is released."""
        ladder, moved = self.ladder.ordered(minute, rung, who, why, self.health)
        after = replace(self, ladder=ladder)
        changes = [after._of(moved)] if moved else []
        if rung is Rung.FULL_ROLLBACK:
            after, change = after._back(minute, f"R6 by {who}: {why}", who)
            changes.append(change)
        return after, changes

    def ordered_stage(self, minute: int, stage: Stage, who: str, why: str) -> tuple[Governed, list[Change]]:
        """An operator sets the stage, at most the policy's own."""
        _named(who, why)
        if self.held:
            raise ValueError(f"{self.tenant} is held ({self.held}): release it first")
        places = [place for place, step in enumerate(steps(self.policy.rollout)) if step.stage is stage]
        if not places:
            raise ValueError(f"the policy goes to {self.policy.rollout.stage.value} at most, by its rollout.stage")
        if places[0] == self.at:
            return self, []
        return self._moved(minute, places[0], why, who)

    def killed(self, minute: int, who: str, why: str) -> tuple[Governed, list[Change]]:
        """An operator takes the policy back from every host, until it is released."""
        _named(who, why)
        after, change = self._back(minute, f"killed by {who}: {why}", who)
        return after, [change]

    def released(self, minute: int, who: str, why: str) -> tuple[Governed, list[Change]]:
        """An operator lets the rollout begin again."""
        _named(who, why)
        if not self.held:
            return self, []
        if self.policy.rollout.killed:
            raise ValueError("the policy itself says killed: change its file")
        change = self._change(minute, "hold", "held", "released", why, who)
        return _fresh(replace(self, held="")), [change]

    def inside(self, hosts: Collection[str]) -> frozenset[str]:
        """Those of the tenant's hosts on which the policy is in force, but for a dry run."""
        return slice_of(hosts, self.tenant, self.policy.version, self.step.share)

    def issue(self, host: str, inside: bool, now: datetime) -> Policy:
        """What one host is handed: the policy, with caps as the rung has them, and how things stand.

        inside: whether it is in the slice.
        """
        policy, health, rung = self.policy, self.health, self.ladder.rung
        star, fragility = (self.last.ssi_star, self.last.crp) if self.last else (math.nan, math.nan)
        stress = max((value for value in (star, fragility) if math.isfinite(value)), default=0.0)
        routing, control = policy.routing, policy.control
        budgets = (control.kl_green, control.kl_caution, control.kl_action, control.kl_emergency)
        narrow = rung >= Rung.ROUTE_AND_THROTTLE or health.sse < policy.exploration.min_sse
        exploration = policy.exploration
        quota = exploration_quota(health.sse, health.band, exploration.min_sse, exploration.quota_pct)
        weights = policy.reserve
        issue = Issue(
            host=host,
            tenant=self.tenant,
            issued_at=now,
            expires_at=now + LASTS,
            stage=self.step.stage,
            in_slice=inside,
            rung=int(rung),
            actions=[action for one in Rung if one <= rung for action in ACTIONS[one]],
            state=state_of(health.band),
            kl_budget=budgets[health.band],
            shares=shares_of(policy, routing.min_spread if narrow else 0.0),
            handoff_cost=routing.handoff_cost * (1.0 + routing.handoff_stress * stress),
            exploration=quota if math.isfinite(health.sse) else 0.0,
            reserve=reserve(1.0, health, weights.base, weights.crp, weights.spread, weights.stress),
        )
        dry = policy.dry_run or not inside or bool(self.held)
        return policy.model_copy(update={"caps": self._caps(), "dry_run": dry, "issue": issue})

    def _caps(self) -> Caps:
        caps, rung = self.policy.caps, self.ladder.rung
        changed: dict[str, float | None] = {}
        if rung >= Rung.ROUTE_AND_THROTTLE and caps.qps is not None:
            changed["qps"] = caps.qps * self.policy.ladder.throttle
        if rung >= Rung.DEGRADE:
            changed["tool_per_min"] = 0.0
        if rung >= Rung.SUSPEND:
            changed["qps"] = 0.0
        return caps.model_copy(update=changed)

    def _rolled(
        self, minute: int, told: Mapping[str, HealthMinute], hosts: Collection[str]
    ) -> tuple[Governed, Change | None]:
        """The rollout one minute later."""
        policy, every = self.policy, steps(self.policy.rollout)
        inside = self.inside(hosts)
        raised = [told[host].bh2 for host in inside if host in told]
        if self.at and more_than_outliers(raised, policy.outliers):
            return self._back(minute, f"BH-2 on {sum(raised)} of {len(raised)} hosts of the slice", BY_ITSELF)
        if self.held:
            return replace(self, soaked=0, now=Blocks(self.now.most)), None
        slices = [slice_of(hosts, self.tenant, policy.version, step.share) for step in every[1:]] if not self.at else []
        switches = self.switches.in_force(self.at, told, inside) if self.at else self.switches.shadowed(told, slices)
        after = replace(self, switches=switches)
        if (look := switches.fired) is not None:
            return after._back(minute, f"kill switch {look.switch.value}: {look}", BY_ITSELF)
        if self.health.bh1 or self.health.bh2:
            # Not what a tenant is like when it is well, and no soak either.
            return replace(after, soaked=0, now=Blocks(self.now.most)), None
        after = replace(after, soaked=self.soaked + 1)
        if self.at == 0:
            pairs = zip(self.before, slices, strict=True)
            after = replace(after, before=tuple(one.added(difference(told, those)) for one, those in pairs))
        else:
            after = replace(after, now=self.now.added(difference(told, inside)))
        if after.soaked < policy.rollout.soak_minutes or self.at + 1 == len(every):
            return after, None
        return after._soaked_through(minute, len(hosts))

    def _soaked_through(self, minute: int, hosts: int) -> tuple[Governed, Change | None]:
        """At the end of a soak: one look."""
        again = replace(self, soaked=0, now=Blocks(self.now.most))
        if hosts < 2:
            return replace(again, waiting="one host has nothing to be compared with: order the stage"), None
        if self.at == 0:
            least = max(LEAST_BLOCKS, self.before[0].most // 2)
            if len(self.before[0].means) < least:
                return replace(again, waiting="Xi was known on both sides in too few minutes of the soak"), None
            return _first(self._moved(minute, 1, "soaked without alert", BY_ITSELF))
        shadow = self.before[self.at - 1].means
        if len(shadow) < LEAST_BLOCKS:
            return replace(again, waiting="it was too short in shadow to be compared: order the stage"), None
        found = compare(shadow, self.now.means, self.policy.rollout.margin)
        again = replace(again, comparison=found)
        if found.verdict is Verdict.WORSE:
            why = f"the slice is worse by {found.change:.3f} of Xi (at least {found.low:.3f})"
            return again._back(minute, why, BY_ITSELF)
        if found.verdict is Verdict.OPEN:
            return replace(again, waiting="the comparison is open: it soaks again"), None
        return _first(again._moved(minute, self.at + 1, f"no worse: by at most {found.high:.3f} of Xi", BY_ITSELF))

    def _moved(self, minute: int, at: int, why: str, by: str) -> tuple[Governed, list[Change]]:
        """To another step, with a soak before it."""
        names = [_shown(step) for step in steps(self.policy.rollout)]
        change = self._change(minute, "stage", names[self.at], names[at], why, by)
        if at == 0:
            return _fresh(self), [change]
        blank = Blocks(self.now.most)
        return replace(self, at=at, soaked=0, now=blank, waiting="", switches=self.switches.moved()), [change]

    def _back(self, minute: int, why: str, by: str) -> tuple[Governed, Change]:
        """To shadow, and held there."""
        change = self._change(minute, "stage", _shown(self.step), TAKEN_BACK, why, by)
        return _fresh(replace(self, held=why)), change

    def _of(self, moved: Transition) -> Change:
        return Change(
            moved.at,
            self.tenant,
            "rung",
            moved.before.name,
            moved.after.name,
            moved.why,
            moved.by,
            moved.xi,
            moved.sse,
            moved.crp_score,
            self.policy.version,
            moved.dry_run,
        )

    def _change(self, minute: int, what: str, before: str, after: str, why: str, by: str) -> Change:
        health = self.health
        figures = (health.xi, health.sse, health.crp_score)
        return Change(
            minute, self.tenant, what, before, after, why, by, *figures, self.policy.version, self.policy.dry_run
        )


_Means = Annotated[list[float], Field(max_length=1000)]


class SwitchStanding(Packet):
    """Blocks of one kill switch: in shadow by step, since the policy is in force, and the other hosts' level."""

    before: Annotated[list[_Means], Field(max_length=16)]
    now: _Means
    others: _Means

    @model_validator(mode="after")
    def _paired(self) -> SwitchStanding:
        if len(self.now) != len(self.others):
            raise ValueError("every block of the slice has one of the other hosts")
        return self


class Standing(Packet):
    """What of one tenant outlives a restart of the broker. before: means of the blocks in shadow, by step.

    switches: by name; empty in what brokers kept before they had any.
    """

    tenant: Name
    digest: Hash
    rung: Annotated[int, Field(ge=-1, le=6)]
    at: Annotated[int, Field(ge=0, le=16)]
    held: Annotated[str, Field(max_length=1000)]
    before: Annotated[list[_Means], Field(max_length=16)]
    switches: Annotated[dict[Name, SwitchStanding], Field(default_factory=dict, max_length=16)]


def policy_from(data: bytes, *, toml: bool = False) -> Policy:
    """A policy from its file, JSON or TOML, that can be carried out; PacketError (a ValueError) says why not."""
    if toml and len(data) <= MAX_LINE_BYTES:
        try:
            data = json.dumps(tomllib.loads(data.decode())).encode()
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, TypeError) as error:
            raise PacketError(f"no TOML of numbers and texts: {error}") from None
    policy = parse(data, Policy)  # and refuses what is too long
    check(policy)
    return policy


def shares_of(policy: Policy, spread: float) -> list[float]:
    """Routing shares of a policy, at least so evenly spread. RoutingError (a ValueError) where there are none."""
    routing = policy.routing
    wanted = routing.shares if routing.shares is not None else [1.0] * len(routing.providers)
    found = routing_shares(np.array(wanted), routing.max_provider_share, spread, routing.floor)
    return [float(share) for share in np.clip(found, 0.0, 1.0)]


def check(policy: Policy) -> None:
    """ValueError where a policy cannot be carried out: no shares have its spread, or it was handed out already."""
    shares_of(policy, policy.routing.min_spread)
    if policy.issue is not None:
        raise ValueError('"issue" is what a broker adds when it hands a policy out: leave it away in a file')
    if policy.rollout.stage is not Stage.SHADOW and policy.dry_run:
        raise ValueError("a dry run stays in shadow: set dry_run = false, or rollout.stage to shadow")


def _ladder(tenant: str, policy: Policy, rung: Rung) -> Ladder:
    climb = policy.ladder
    slow = ExitCriteria(sse=climb.exit_sse, minutes=climb.exit_minutes)
    quick = replace(slow, minutes=min(_SOFT_EXIT_MINUTES, climb.exit_minutes))
    exits = {one: quick if one is Rung.SOFT_NUDGE else slow for one in Rung}
    return Ladder(tenant, Rung(climb.highest), policy.dry_run, exits, climb.dwell, rung)


def _fresh(governed: Governed) -> Governed:
    """In shadow, with nothing soaked."""
    rollout = governed.policy.rollout
    most = math.ceil(rollout.soak_minutes / BLOCK_MINUTES)
    beyond = len(steps(rollout)) - 1
    switches = KillSwitches.begin(rollout.kill, beyond, most, governed.policy.outliers)
    before = (Blocks(most),) * beyond
    return replace(governed, at=0, soaked=0, before=before, now=Blocks(most), waiting="", switches=switches)


def _rounded(blocks: Blocks) -> list[float]:
    return [round(mean, 6) for mean in blocks.means]


def _blocks(most: int, means: list[float]) -> Blocks:
    return Blocks(most, tuple(means[-most:]))


def _restored(switches: KillSwitches, standing: Mapping[str, SwitchStanding], most: int) -> KillSwitches:
    """With the blocks that were kept; a switch of which none were has none until the next shadow."""
    watched = dict(switches.watched)
    for switch, fresh in switches.watched.items():
        kept = standing.get(switch.value)
        if kept is not None and len(kept.before) == len(fresh.before):
            before = tuple(_blocks(most, means) for means in kept.before)
            watched[switch] = Watched(before, _blocks(most, kept.now), _blocks(most, kept.others))
    return replace(switches, watched=watched)


def _first(moved: tuple[Governed, list[Change]]) -> tuple[Governed, Change]:
    return moved[0], moved[1][0]


def _named(who: str, why: str) -> None:
    if not who.strip() or not why.strip():
        raise ValueError("an order needs a name and a reason: both are kept")


def _shown(step: Step) -> str:
    return f"{step.stage.value} {step.share:.0%}" if step.stage is Stage.GRADUAL else step.stage.value
