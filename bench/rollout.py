# SPDX-License-Identifier: Apache-2.0
"""What one look of a rollout's comparison gets wrong, where hosts' minutes are autocorrelated.

Hosts have levels of their own (sd .05) and a common course (AR(1), phi .98, sd .1) that cancels within each minute;
what is left of each host is AR(1) with sd .1. A day in shadow is compared with a day on which the slice is worse by so
much. Nominal are 1 % sent back for nothing and 5 % advanced although worse by the margin, .05 of Xi; the bar is twice
that, up to phi .9. Beyond it blocks of an hour are not independent, and the shares are reported without a bar. With
2000 looks a share of .05 is known to about .01.
"""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING

import numpy as np
from scipy import signal

from bench.harness import Result
from mvps.surplus.rollout import BLOCK_MINUTES, Verdict, compare

if TYPE_CHECKING:
    from mvps.coherence.observation import FloatArray

SUMMARY = "wrong verdicts of one look of a rollout's comparison, by autocorrelation of minutes"
MARGIN = 0.05
PHIS = (0.0, 0.9, 0.95, 0.98)
BARRED_PHI = 0.9
NOMINAL = {"sent_back_for_nothing": 0.01, "advanced_at_the_margin": 0.05}
_DAY = 1440


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--looks", type=int, default=0, help="per case (default 500, with --full 2000)")


def run(arguments: argparse.Namespace) -> Result:
    count = arguments.looks or (2000 if arguments.full else 500)
    details: dict[str, dict[str, float]] = {}
    closest = 0.0
    for phi in PHIS:
        for hosts, inside in ((4, 1), (20, 1), (20, 5)):
            shares = {effect: looks(effect, phi, count, hosts, inside) for effect in (0.0, MARGIN, 2 * MARGIN)}
            found = {
                "sent_back_for_nothing": shares[0.0][Verdict.WORSE],
                "open_for_nothing": shares[0.0][Verdict.OPEN],
                "advanced_at_the_margin": shares[MARGIN][Verdict.NO_WORSE],
                "sent_back_at_twice_the_margin": shares[2 * MARGIN][Verdict.WORSE],
            }
            details[f"phi {phi:g}, {inside} of {hosts} hosts"] = found
            if phi <= BARRED_PHI:
                closest = max(closest, *(found[name] / (2 * nominal) for name, nominal in NOMINAL.items()))
    return Result(closest, "of twice the nominal rates", 1.0, closest <= 1.0, {"looks": count, "cases": details})


def looks(effect: float, phi: float, count: int, hosts: int, inside: int) -> dict[Verdict, float]:
    """Share of each verdict."""
    rng = np.random.default_rng(1)
    found = []
    for _ in range(count):
        level = rng.normal(0.0, 0.05, hosts)
        xi = 0.15 + level + _course(rng, 1, 0.98) + _course(rng, hosts, phi)
        xi[_DAY:, :inside] += effect
        d = xi[:, :inside].mean(axis=1) - xi[:, inside:].mean(axis=1)
        before, now = d.reshape(2, -1, BLOCK_MINUTES).mean(axis=2)
        found.append(compare(before.tolist(), now.tolist(), MARGIN).verdict)
    return {verdict: found.count(verdict) / count for verdict in Verdict}


def _course(rng: np.random.Generator, columns: int, phi: float) -> FloatArray:
    """AR(1) with sd .1 over two days, from its stationary law on."""
    drawn: FloatArray = rng.standard_normal((2 * _DAY, columns)) * 0.1
    drawn[1:] *= math.sqrt(1.0 - phi * phi)
    course: FloatArray = signal.lfilter([1.0], [1.0, -phi], drawn, axis=0)
    return course
