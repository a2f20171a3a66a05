# SPDX-License-Identifier: Apache-2.0
"""Slices and comparisons. The error rates of the comparison are measured on hosts whose minutes are autocorrelated."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from tests.surplus.health_sample import health

from mvps.surplus.packets import Rollout, Stage
from mvps.surplus.rollout import (
    BLOCK_MINUTES,
    LEAST_BLOCKS,
    Blocks,
    Verdict,
    compare,
    difference,
    point,
    slice_of,
    steps,
)

HOSTS = [f"host-{number}" for number in range(400)]


def test_a_rollout_goes_as_far_as_its_policy_says() -> None:
    assert [tuple(step) for step in steps(Rollout(stage=Stage.FULL))] == [
        ("shadow", 0.0), ("canary", 0.05), ("gradual", 0.25), ("gradual", 0.5), ("full", 1.0)
    ]  # fmt: skip
    assert [step.share for step in steps(Rollout(stage=Stage.CANARY))] == [0.0, 0.05]
    assert len(steps(Rollout())) == 1


@given(st.sets(st.sampled_from(HOSTS)), st.floats(0.0, 1.0), st.floats(0.0, 1.0), st.integers(0, 2**53))
def test_a_larger_slice_keeps_the_hosts_of_a_smaller_one(hosts: set[str], one: float, other: float, n: int) -> None:
    small, large = sorted((one, other))
    assert slice_of(hosts, "acme", n, small) <= slice_of(hosts, "acme", n, large) <= hosts
    assert slice_of(hosts, "acme", n, 1.0) == hosts
    assert slice_of(hosts, "acme", n, 0.0) == frozenset()
    assert len(slice_of(hosts, "acme", n, 1e-12)) == min(len(hosts), 1)


def test_slices_have_their_share_and_the_next_version_begins_elsewhere() -> None:
    # 400 independent hosts: 100 +- 3 sigma of 8.7.
    first = slice_of(HOSTS, "acme", 1, 0.25)
    assert 74 <= len(first) <= 126
    second, other = slice_of(HOSTS, "acme", 2, 0.25), slice_of(HOSTS, "other", 1, 0.25)
    assert len(first & second) < 50
    assert len(first & other) < 50
    assert first == slice_of(HOSTS[::-1], "acme", 1, 0.25)
    # As every version of the program has it: sha256(domain || ["acme",1,"host-1"]).
    assert point("acme", 1, "host-1") == 0.689292695251898
    assert stats.kstest([point("acme", 1, host) for host in HOSTS], "uniform").pvalue > 1e-4


def test_the_difference_is_of_those_whose_xi_is_known() -> None:
    told = {"a": health(Xi=0.5), "b": health(Xi=0.1), "c": health(Xi=0.3), "d": health(Xi=None)}
    assert difference(told, {"a", "d"}) == pytest.approx(0.5 - 0.2)
    assert math.isnan(difference(told, {"d"}))
    assert math.isnan(difference(told, set(told)))


@given(st.lists(st.one_of(st.floats(-1.0, 1.0), st.just(math.nan)), max_size=400), st.integers(1, 4))
def test_blocks_are_means_of_whole_hours_that_are_known(values: list[float], most: int) -> None:
    running = Blocks(most)
    for value in values:
        running = running.added(value)
    whole = np.array(values[: len(values) // BLOCK_MINUTES * BLOCK_MINUTES]).reshape(-1, BLOCK_MINUTES)
    wanted = [row[np.isfinite(row)].mean() for row in whole if 2 * np.isfinite(row).sum() >= BLOCK_MINUTES]
    assert running.means == pytest.approx(wanted[-most:])


@given(st.lists(st.tuples(st.floats(-1.0, 1.0), st.floats(0.0, 5.0)), min_size=BLOCK_MINUTES, max_size=BLOCK_MINUTES))
def test_minutes_weigh_in_a_block_and_what_has_no_weight_is_not_known(minutes: list[tuple[float, float]]) -> None:
    running = Blocks(3)
    for value, weight in minutes:
        running = running.added(value, weight)
    known = [(value, weight) for value, weight in minutes if weight > 0.0]
    if 2 * len(known) < BLOCK_MINUTES:
        assert running.means == ()
    else:
        values, weights = np.array(known).T
        assert running.means == pytest.approx((np.average(values, weights=weights),))


def test_the_bounds_are_those_of_welchs_t() -> None:
    rng = np.random.default_rng(1)
    before, now = rng.normal(0.0, 0.05, 12), rng.normal(0.03, 0.1, 9)
    found = compare(before.tolist(), now.tolist(), 0.05)
    result = stats.ttest_ind(now, before, equal_var=False)
    assert found.high == pytest.approx(result.confidence_interval(0.90).high)
    assert found.low == pytest.approx(result.confidence_interval(0.98).low)
    assert found.change == pytest.approx(now.mean() - before.mean())


def test_the_verdicts() -> None:
    flat = [0.1] * LEAST_BLOCKS
    assert compare(flat, flat, 0.05).verdict is Verdict.NO_WORSE
    assert compare(flat, [0.3] * LEAST_BLOCKS, 0.05).verdict is Verdict.WORSE
    assert compare(flat, [0.0, 0.2] * LEAST_BLOCKS, 0.05).verdict is Verdict.OPEN
    assert compare(flat, flat[1:], 0.05).verdict is Verdict.OPEN


def _course(rng: np.random.Generator, minutes: int, hosts: int, phi: float, sd: float) -> np.ndarray:
    drawn = rng.standard_normal((minutes + 300, hosts)) * sd * math.sqrt(1.0 - phi * phi)
    for t in range(1, len(drawn)):
        drawn[t] += phi * drawn[t - 1]
    return drawn[300:]


def _verdicts(effect: float, phi: float, looks: int, hosts: int = 20, inside: int = 1) -> list[Verdict]:
    """Looks at a day in shadow and a day after it, of hosts of their own levels under a common course."""
    rng = np.random.default_rng(7)
    found = []
    for _ in range(looks):
        level = rng.normal(0.0, 0.05, hosts)
        xi = 0.15 + level + _course(rng, 2880, 1, 0.98, 0.1) + _course(rng, 2880, hosts, phi, 0.1)
        xi[1440:, :inside] += effect
        d = xi[:, :inside].mean(axis=1) - xi[:, inside:].mean(axis=1)
        sides = d.reshape(2, -1, BLOCK_MINUTES).mean(axis=2)
        found.append(compare(sides[0].tolist(), sides[1].tolist(), 0.05).verdict)
    return found


@pytest.mark.parametrize(("phi", "back", "advanced"), [(0.0, 0.05, 0.10), (0.9, 0.05, 0.12)])
def test_error_rates_of_a_look(phi: float, back: float, advanced: float) -> None:
    # 100 looks a case. Nominal: .01 sent back for nothing, .05 advanced at an effect of the margin; the limits leave
    # room for two and a half binomial standard errors and for what is left of the correlation between blocks.
    nothing = _verdicts(0.0, phi, 100)
    assert nothing.count(Verdict.WORSE) <= back * 100
    assert nothing.count(Verdict.NO_WORSE) >= 80
    assert _verdicts(0.05, phi, 100).count(Verdict.NO_WORSE) <= advanced * 100
    assert _verdicts(0.1, phi, 100).count(Verdict.WORSE) >= 95
