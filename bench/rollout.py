# SPDX-License-Identifier: Apache-2.0
"""What one look of a rollout's comparison gets wrong, and its kill switches in a soak of a day.

**Comparison**, where hosts' minutes are autocorrelated.

Hosts have levels of their own (sd .05) and a common course (AR(1), phi .98, sd .1) that cancels within each minute;
what is left of each host is AR(1) with sd .1. A day in shadow is compared with a day on which the slice is worse by so
much. Nominal are 1 % sent back for nothing and 5 % advanced although worse by the margin, .05 of Xi; the bar is twice
that, up to phi .9. Beyond it blocks of an hour are not independent, and the shares are reported without a bar. With
2000 looks a share of .05 is known to about .01.

**Kill switches**, a look an hour from the fourth on, on a slice that becomes worse by nothing, by the limit, by twice
and, of incidents, by ten times the limit when the policy comes into force:

    latency     log p95: level of a host sd .1, common course AR(1) phi .98 sd .2, its own AR(1) sd .2
    breaks      300 packets a minute and host (Poisson), each broken with probability 2 %, whose logit has a level of sd
                .3, a common course of sd .2 and the host's own AR(1) of sd .3
    incidents   2 % of the host minutes, in runs: a minute is as the one before with probability phi, else drawn anew

with one outlier a side, and beside the switch its two parts: evidently above 0 and estimated above the limit
(``estimated``), evidently above the limit (``beyond``). The bar is three calm soaks in a hundred killed by a switch, up
to phi .9, which is what its looks cost where no limit stands beside them, and holds while the 95 % interval of no share
is above it.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy import signal, special

from bench.harness import Result, wilson
from mvps.surplus.kill_switches import Look, Switch, look
from mvps.surplus.packets import Kill
from mvps.surplus.rollout import BLOCK_MINUTES, LEAST_BLOCKS, Verdict, compare

if TYPE_CHECKING:
    from mvps.coherence.observation import FloatArray

SUMMARY = "wrong verdicts of a rollout's comparison and of its kill switches, by autocorrelation of minutes"
MARGIN = 0.05
PHIS = (0.0, 0.9, 0.95, 0.98)
BARRED_PHI = 0.9
NOMINAL = {"sent_back_for_nothing": 0.01, "advanced_at_the_margin": 0.05}
KILLED_FOR_NOTHING = 0.03
KILL_PHIS = (0.0, 0.9, 0.95)
EFFECTS = {Switch.LATENCY: (0, 1, 2), Switch.INCIDENTS: (0, 1, 2, 10), Switch.BREAKS: (0, 1, 2)}
_DAY = 1440


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--looks", type=int, default=0, help="per case (default 500, with --full 2000)")
    parser.add_argument("--soaks", type=int, default=0, help="of kill switches a case (default 60, with --full 300)")


def run(arguments: argparse.Namespace) -> Result:
    count = arguments.looks or (2000 if arguments.full else 500)
    details: dict[str, dict[str, float]] = {}
    closest = 0.0
    for phi in PHIS:
        for hosts, inside in ((4, 1), (20, 1), (20, 5)):
            shares = looks((0.0, MARGIN, 2 * MARGIN), phi, count, hosts, inside)
            found = {
                "sent_back_for_nothing": shares[0.0][Verdict.WORSE],
                "open_for_nothing": shares[0.0][Verdict.OPEN],
                "advanced_at_the_margin": shares[MARGIN][Verdict.NO_WORSE],
                "sent_back_at_twice_the_margin": shares[2 * MARGIN][Verdict.WORSE],
            }
            details[f"phi {phi:g}, {inside} of {hosts} hosts"] = found
            if phi <= BARRED_PHI:
                closest = max(closest, *(found[name] / (2 * nominal) for name, nominal in NOMINAL.items()))
    soaks = arguments.soaks or (300 if arguments.full else 60)
    switches = {}
    for switch in Switch:
        for phi in KILL_PHIS:
            for hosts, inside in ((20, 1), (20, 5)):
                killed = {str(effect): kills(switch, effect, phi, soaks, hosts, inside) for effect in EFFECTS[switch]}
                switches[f"{switch.value}, phi {phi:g}, {inside} of {hosts} hosts"] = killed
                if phi <= BARRED_PHI:
                    least, _ = wilson(round(killed["0"]["killed"] * soaks), soaks)
                    closest = max(closest, least / KILLED_FOR_NOTHING)
    found = {"looks": count, "cases": details, "soaks": soaks, "kill_switches": switches}
    return Result(closest, "of the largest rates", 1.0, closest <= 1.0, found)


def looks(
    effects: tuple[float, ...], phi: float, count: int, hosts: int, inside: int
) -> dict[float, dict[Verdict, float]]:
    """Share of each verdict by effect, on the same noise."""
    rng = np.random.default_rng(1)
    found: dict[float, list[Verdict]] = {effect: [] for effect in effects}
    for _ in range(count):
        level = rng.normal(0.0, 0.05, hosts)
        xi = 0.15 + level + _course(rng, 1, 0.98) + _course(rng, hosts, phi)
        d = xi[:, :inside].mean(axis=1) - xi[:, inside:].mean(axis=1)
        before, now = d.reshape(2, -1, BLOCK_MINUTES).mean(axis=2)
        for effect in effects:
            found[effect].append(compare(before.tolist(), (now + effect).tolist(), MARGIN).verdict)
    return {effect: {verdict: of.count(verdict) / count for verdict in Verdict} for effect, of in found.items()}


class Soak(NamedTuple):
    """Minutes (2 days,) of a slice and the others: difference, its weight, and the others' level."""

    difference: FloatArray
    weight: FloatArray
    others: FloatArray


def kills(switch: Switch, effect: int, phi: float, count: int, hosts: int, inside: int) -> dict[str, float]:
    """Shares of soaks killed, by the switch and by its parts, and median hours to it."""
    rng = np.random.default_rng(2)
    make = {Switch.LATENCY: _latency, Switch.BREAKS: _breaks, Switch.INCIDENTS: _incidents}[switch]
    found: dict[str, list[float]] = {"killed": [], "estimated": [], "beyond": []}
    for _ in range(count):
        soak = make(rng, effect, phi, hosts, inside)
        weight = soak.weight.reshape(-1, BLOCK_MINUTES)
        before, now = np.average(soak.difference.reshape(weight.shape), axis=1, weights=weight).reshape(2, -1).tolist()
        others = soak.others[_DAY:].reshape(-1, BLOCK_MINUTES).mean(axis=1).tolist()
        hours = range(LEAST_BLOCKS, len(now) + 1)
        limit = getattr(Kill(), switch.value)
        seen = [one for n in hours if (one := look(switch, before, now[:n], others[:n], limit)) is not None]
        for name, fired in _RULES.items():
            found[name].append(next((one.blocks for one in seen if fired(one)), math.nan))
    shares: dict[str, float] = {}
    for name, at in found.items():
        known = [n for n in at if math.isfinite(n)]
        shares |= {name: len(known) / count}
        if known:
            shares |= {f"{name}_hours": float(np.median(known))}
    return shares


_RULES: dict[str, Callable[[Look], bool]] = {
    "killed": lambda one: one.fired,
    "estimated": lambda one: one.surely > 0.0 and one.change > one.limit,
    "beyond": lambda one: one.low > one.limit,
}


def _latency(rng: np.random.Generator, effect: int, phi: float, hosts: int, inside: int) -> Soak:
    logs = rng.normal(0.0, 0.1, hosts) + 2.0 * _course(rng, 1, 0.98) + 2.0 * _course(rng, hosts, phi)
    logs[_DAY:, :inside] += math.log1p(0.25 * effect)
    (inner, _), (others_inner, _) = (_inner(of, np.ones(of.shape)) for of in (logs[:, :inside], logs[:, inside:]))
    others = others_inner.mean(axis=1)
    return Soak(inner.mean(axis=1) - others, np.ones(2 * _DAY), others)


def _breaks(rng: np.random.Generator, effect: int, phi: float, hosts: int, inside: int) -> Soak:
    logits = rng.normal(0.0, 0.3, hosts) + 2.0 * _course(rng, 1, 0.98) + 3.0 * _course(rng, hosts, phi)
    chance = special.expit(special.logit(0.02) + logits)
    chance[_DAY:, :inside] += 0.005 * effect
    packets = rng.poisson(300.0, chance.shape)
    broken = rng.binomial(packets, chance)
    sides = [_inner(broken[:, of], packets[:, of]) for of in (slice(None, inside), slice(inside, None))]
    (hits, n), (others_hits, m) = ((counted.sum(axis=1), of.sum(axis=1)) for counted, of in sides)
    return Soak(hits / n - others_hits / m, n * m / (n + m), others_hits / m)


def _incidents(rng: np.random.Generator, effect: int, phi: float, hosts: int, inside: int) -> Soak:
    share = np.full((2 * _DAY, hosts), 0.02)
    share[_DAY:, :inside] *= 1.0 + 0.5 * effect
    anew = rng.random(share.shape) >= phi
    anew[0] = True
    drawn_at = np.maximum.accumulate(np.where(anew, np.arange(2 * _DAY)[:, None], 0), axis=0)
    raised = np.take_along_axis(rng.random(share.shape) < share, drawn_at, axis=0)
    others = raised[:, inside:].mean(axis=1)
    return Soak(raised[:, :inside].mean(axis=1) - others, np.ones(2 * _DAY), others)


def _inner(counted: FloatArray, of: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Without the host at either end, as the switches have it with one outlier."""
    k = min(1, (counted.shape[1] - 1) // 2)
    order = np.argsort(counted / of, axis=1)[:, k : counted.shape[1] - k]
    return np.take_along_axis(counted, order, axis=1), np.take_along_axis(of, order, axis=1)


def _course(rng: np.random.Generator, columns: int, phi: float) -> FloatArray:
    """AR(1) with sd .1 over two days, from its stationary law on."""
    drawn: FloatArray = rng.standard_normal((2 * _DAY, columns)) * 0.1
    drawn[1:] *= math.sqrt(1.0 - phi * phi)
    course: FloatArray = signal.lfilter([1.0], [1.0, -phi], drawn, axis=0)
    return course
