# SPDX-License-Identifier: Apache-2.0
"""How hard to push from minute to minute: lambda and the trust region's budget (002 sec. 4.5, 10.2, app. B.6.1).

    target  = clip(lambda_0 (1 + a SSI + b CRP + c (1 - SSE)), lambda_min, lambda_max)
    lambda  = last + clamp(EMA towards target, slew) (+ the integral part, if there is one)

All indicators are the [0, 1] ones of ``indicators``. Budgets belong to bands and are approached, down or up, by at most
a share a minute: the text's ``kl_budget *= 0.7`` at every Action minute compounds to nothing. In a minute in which
lambda falls the budget does not rise. Where SSI or CRP is not known, everything stays; a spread that is not known, as
of a tenant whose texts nobody embeds, adds nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from mvps.surplus.indicators import Band


@dataclass(frozen=True)
class LambdaRule:
    """Parameters of lambda; defaults of sec. 8.2. slew: most it changes a minute. integral: gain on what Xi exceeds
    ``setpoint`` by, 0 for none; never differential, as indicators are noisy."""

    base: float = 0.4
    least: float = 0.0
    most: float = 2.0
    ssi: float = 0.8
    crp: float = 0.8
    inverse_sse: float = 0.5
    ema: float = 0.7
    slew: float = 0.25
    integral: float = 0.0
    setpoint: float = 0.35

    def __post_init__(self) -> None:
        if not (0.0 <= self.least <= self.most and 0.0 <= self.ema < 1.0 and self.slew > 0.0):
            raise ValueError("lambda needs 0 <= least <= most, ema in [0, 1) and a slew above 0")

    def target(self, ssi: float, crp: float, sse: float) -> float:
        """Lambda that indicators ask for, without any smoothing."""
        asked = self.base * (1.0 + self.ssi * ssi + self.crp * crp + self.inverse_sse * (1.0 - sse))
        return min(max(asked, self.least), self.most)


@dataclass(frozen=True)
class BudgetRule:
    """Budget of the trust region by band, in nats (or logits), and the largest relative step a minute.

    Of the text's three prescriptions (.010 to .006, less 30 %, less 30 to 60 %) the first is taken for Action; Caution
    is its runbook's 20 % less and Emergency the 60 %.
    """

    green: float = 0.010
    caution: float = 0.008
    action: float = 0.006
    emergency: float = 0.004
    step: float = 0.2

    def target(self, band: Band) -> float:
        """Budget of a band."""
        return (self.green, self.caution, self.action, self.emergency)[band]


@dataclass(frozen=True)
class Schedule:
    """Lambda and budget as they stand, and the rules they follow. integrated: sum of the excess of Xi so far."""

    rule: LambdaRule = field(default_factory=LambdaRule)
    budgets: BudgetRule = field(default_factory=BudgetRule)
    lam: float = math.nan
    budget: float = math.nan
    integrated: float = 0.0

    def step(self, ssi: float, crp: float, sse: float, xi: float, band: Band) -> Schedule:
        """One minute later."""
        rule = self.rule
        last = rule.base if math.isnan(self.lam) else self.lam
        budget = self.budgets.green if math.isnan(self.budget) else self.budget
        if not (math.isfinite(ssi) and math.isfinite(crp)):
            return replace(self, lam=last, budget=budget)
        integrated = self.integrated
        if rule.integral and math.isfinite(xi):
            # Bounded, so that a long emergency does not keep lambda up for as long again.
            most = (rule.most - rule.least) / rule.integral
            integrated = min(max(integrated + xi - rule.setpoint, 0.0), most)
        target = min(rule.target(ssi, crp, sse if math.isfinite(sse) else 1.0) + rule.integral * integrated, rule.most)
        change = (1.0 - rule.ema) * (target - last)
        lam = min(max(last + min(max(change, -rule.slew), rule.slew), rule.least), rule.most)
        wanted = self.budgets.target(band)
        after = min(max(wanted, budget * (1.0 - self.budgets.step)), budget * (1.0 + self.budgets.step))
        if lam < last:
            after = min(after, budget)
        return replace(self, lam=lam, budget=after, integrated=integrated)
