# SPDX-License-Identifier: Apache-2.0
"""What a site does about a tenant's health: the rollback ladder R0-R6, routing shares, reserve (002 sec. 5, 9, 10.3 D).

**Ladder.** One machine per tenant. It climbs when the band asks for a higher rung, at most one rung a minute and only
so far as the operator allows; it comes down one rung at a time, when *its exit criteria have held for their time*.
Suspending and reverting (R5, R6) want an operator's word: alone they are only proposed. Every change is a
``Transition`` with who, why, when and the metrics before it. In a dry run, the default, the rung moves and nothing is
to be done about it: ``Transition.dry_run`` says so.

**Shares.** The nearest shares to the wanted ones (least squares) with every share at most ``quota``, at least ``floor``
and normalised entropy at least ``spread``. The first two are a box on the simplex, solved exactly by one number t with
sum clip(wanted + t, floor, quota) = 1; entropy is then raised by mixing towards the box's most even shares.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from enum import IntEnum

import numpy as np

from mvps.coherence.observation import FloatArray
from mvps.surplus.indicators import CRP_LIMIT, Band, Health

_HALVINGS = 100


class Rung(IntEnum):
    """What is done; each includes those below it. NONE: nothing."""

    NONE = -1
    SOFT_NUDGE = 0
    STRUCTURAL_GUARDS = 1
    ROUTE_AND_THROTTLE = 2
    DEGRADE = 3
    HUMAN_TAKEOVER = 4
    SUSPEND = 5
    FULL_ROLLBACK = 6


ACTIONS: dict[Rung, tuple[str, ...]] = {
    Rung.NONE: (),
    Rung.SOFT_NUDGE: ("raise_lambda", "tighten_trust_region", "look_ahead"),
    Rung.STRUCTURAL_GUARDS: ("prefer_structure_tokens", "freeze_mode_flips", "enforce_exploration"),
    Rung.ROUTE_AND_THROTTLE: ("spread_routing", "lower_request_rate"),
    Rung.DEGRADE: ("disable_expensive_tools", "answer_from_templates"),
    Rung.HUMAN_TAKEOVER: ("escalate_to_reviewer", "pause_continuation"),
    Rung.SUSPEND: ("suspend_feature_or_tenant",),
    Rung.FULL_ROLLBACK: ("restore_last_green_policy",),
}
# How high a band lets the ladder climb by itself; with BH-2 as far as the operator allows.
_ASKED = {Band.GREEN: Rung.NONE, Band.CAUTION: Rung.SOFT_NUDGE, Band.ACTION: Rung.STRUCTURAL_GUARDS}


@dataclass(frozen=True)
class ExitCriteria:
    """What must hold for ``minutes`` in a row before a rung is left: SSE above, the CRP score and Xi below.

    sse: None does not ask for it: for tenants whose texts nobody embeds, who would stay on their rung for good.
    """

    sse: float | None = 0.55
    crp: float = CRP_LIMIT
    xi: float = 0.35
    minutes: int = 30

    def met(self, health: Health) -> bool:
        """Whether they hold in one minute; what is not known does not."""
        spread = self.sse is None or health.sse > self.sse
        return spread and health.crp_score < self.crp and health.xi < self.xi


@dataclass(frozen=True)
class Transition:
    """One change of rung. at: minute. by: "ladder" or an operator. xi, sse, crp_score: before it; NaN if not known."""

    at: int
    tenant: str
    before: Rung
    after: Rung
    why: str
    by: str
    xi: float
    sse: float
    crp_score: float
    dry_run: bool

    @property
    def actions(self) -> tuple[str, ...]:
        """What is to be done now, or, coming down, undone."""
        low, high = sorted((self.before, self.after))
        return tuple(action for rung in Rung if low < rung <= high for action in ACTIONS[rung])


@dataclass(frozen=True)
class Ladder:
    """The rollback ladder of one tenant.

    highest: rung it may climb to by itself. exits: criteria by rung, those of R0 being quick; dwell: least minutes on a
    rung before the next one up. holding: minutes in a row in which the present rung's criteria were met.
    """

    tenant: str
    highest: Rung = Rung.HUMAN_TAKEOVER
    dry_run: bool = True
    exits: dict[Rung, ExitCriteria] = field(default_factory=lambda: {Rung.SOFT_NUDGE: ExitCriteria(minutes=5)})
    dwell: int = 3
    rung: Rung = Rung.NONE
    holding: int = 0
    age: int = 0
    proposed: Rung | None = None

    def __post_init__(self) -> None:
        if self.highest > Rung.HUMAN_TAKEOVER:
            raise ValueError(f"{self.highest.name} takes an operator: the ladder climbs to HUMAN_TAKEOVER at most")

    def step(self, minute: int, health: Health) -> tuple[Ladder, Transition | None]:
        """One minute later; at most one rung further."""
        asked = Rung.HUMAN_TAKEOVER if health.bh2 else _ASKED.get(health.band, Rung.ROUTE_AND_THROTTLE)
        asked = min(max(asked, Rung.STRUCTURAL_GUARDS) if health.bh1 else asked, self.highest)
        proposed = Rung.SUSPEND if health.bh2 and self.rung >= self.highest else None
        age = self.age + 1
        # From nothing the first rung comes at once.
        if asked > self.rung and (age >= self.dwell or self.rung is Rung.NONE):
            why = "BH-2" if health.bh2 else "BH-1" if health.bh1 else f"band {health.band.name}"
            return self._moved(minute, Rung(self.rung + 1), why, "ladder", health)
        criteria = self.exits.get(self.rung, ExitCriteria())
        holding = self.holding + 1 if criteria.met(health) and asked < self.rung else 0
        if self.rung is not Rung.NONE and holding >= criteria.minutes:
            return self._moved(minute, Rung(self.rung - 1), f"exit criteria held {holding} min", "ladder", health)
        return replace(self, holding=holding, age=age, proposed=proposed), None

    def ordered(self, minute: int, rung: Rung, who: str, why: str, health: Health) -> tuple[Ladder, Transition | None]:
        """An operator sets the rung; who and why are kept and must be given."""
        if not who.strip() or not why.strip():
            raise ValueError("an order needs a name and a reason: both are kept")
        if rung == self.rung:
            return self, None
        return self._moved(minute, rung, why, who, health)

    def _moved(self, minute: int, rung: Rung, why: str, by: str, health: Health) -> tuple[Ladder, Transition]:
        change = Transition(
            minute, self.tenant, self.rung, rung, why, by, health.xi, health.sse, health.crp_score, self.dry_run
        )
        return replace(self, rung=rung, holding=0, age=0, proposed=None), change


class RoutingError(ValueError):
    """No shares satisfy the constraints."""


def routing_shares(wanted: FloatArray, quota: float, spread: float = 0.0, floor: float = 0.0) -> FloatArray:
    """Shares (providers,) nearest to the wanted ones that respect quota, floor and spread.

    RoutingError where there are none: two providers cannot each stay below 40 %, as the text's own policy asks.
    """
    count = len(wanted)
    if not (np.all(np.isfinite(wanted)) and np.all(wanted >= 0.0)):
        raise RoutingError("wanted shares must be finite and not below 0")
    if count * quota < 1.0 - 1e-12:
        raise RoutingError(
            f"{count} providers at most {quota:.0%} each carry {count * quota:.0%} of the traffic: "
            f"add providers or raise the quota to at least {1.0 / count:.0%}"
        )
    if count * floor > 1.0 + 1e-12 or floor > quota:
        raise RoutingError(f"{count} providers of at least {floor:.0%} each do not fit below {quota:.0%} and in 100 %")
    if spread > 1.0:
        raise RoutingError(f"a normalised entropy of {spread} cannot be had: 1 is even shares")
    total = wanted.sum()
    shares = _boxed(wanted / total if total > 0.0 else np.full(count, 1.0 / count), floor, quota)
    if count < 2 or _evenness(shares) >= spread:
        return shares
    # Even shares satisfy floor and quota, entropy is concave: along the way to them it only grows.
    even = np.full(count, 1.0 / count)
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        if _evenness((1.0 - middle) * shares + middle * even) >= spread:
            high = middle
        else:
            low = middle
    return (1.0 - high) * shares + high * even


def exploration_quota(sse: float, band: Band, least_sse: float = 0.5, quota: float = 0.15, bump: bool = False) -> float:
    """Share of traffic to diversify while the spread is low, and 10 points more just after a narrow region (``bump``).

    It holds in Emergency too: the text cuts it to 5 % there, and asks for more at low SSE in the same breath. Narrow
    *and* in Emergency is the state that it is meant to end.
    """
    low = quota if not sse >= least_sse else 0.0
    return min(low + (0.10 if bump and band < Band.EMERGENCY else 0.0), 1.0)


def reserve(
    spending: float, health: Health, base: float = 0.05, a: float = 0.05, b: float = 0.05, c: float = 0.05
) -> float:
    """Buffer to hold back: rho times rolling spending, rho = base + a CRP + b (1 - SSE) + c SSI.

    A quarter more under BH-1, half more under BH-2, which unlocks it. Unknown indicators add nothing.
    """
    parts = ((a, health.crp_score), (b, 1.0 - health.sse), (c, health.ssi_score))
    rho = base + sum(weight * value for weight, value in parts if math.isfinite(value))
    return spending * rho * (1.5 if health.bh2 else 1.25 if health.bh1 else 1.0)


def _boxed(wanted: FloatArray, floor: float, quota: float) -> FloatArray:
    """Projection on {floor <= s <= quota, sum s = 1}: exact, from the breakpoints of sum clip(wanted + t)."""
    points = np.sort(np.concatenate([floor - wanted, quota - wanted]))
    sums = np.clip(wanted + points[:, None], floor, quota).sum(axis=1)
    above = int(np.searchsorted(sums, 1.0))
    if above == 0:
        t = points[0]
    elif above == len(points):
        t = points[-1]
    else:
        # Between two breakpoints the sum is a straight line.
        left, right = above - 1, above
        t = points[left] + (1.0 - sums[left]) * (points[right] - points[left]) / (sums[right] - sums[left])
    shares: FloatArray = np.clip(wanted + t, floor, quota)
    return shares


def _evenness(shares: FloatArray) -> float:
    """Entropy over log count."""
    p = shares[shares > 0.0]
    return float(-(p * np.log(p)).sum()) / math.log(len(shares))
