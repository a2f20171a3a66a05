# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest

from mvps.coherence.axes import jsd
from mvps.semantic.latency import (
    LatencyScale,
    c1_latency,
    latency_coherence,
    latency_scale,
    net_of,
    own_distances,
)


def drawn(rng: np.random.Generator, size: int, times: float = 1.0, failing: float = 0.0) -> np.ndarray:
    latencies = times * rng.lognormal(-1.0, 0.4, size)
    latencies[rng.random(size) < failing] = math.nan
    return latencies


SCALE = latency_scale(drawn(np.random.default_rng(0), 4000, failing=0.01))


def table(rng: np.random.Generator, replicas: list[tuple[float, float]], size: int = 60) -> np.ndarray:
    return np.stack([SCALE.counts(drawn(rng, size, times, failing)) for times, failing in replicas])


def test_labels_are_quantiles_of_bau_and_one_for_no_answer():
    scale = LatencyScale((1.0, 2.0, 4.0, 8.0), (0.5, 0.3, 0.1, 0.05, 0.04, 0.01))
    counts = scale.counts(np.array([0.0, 1.0, 1.5, 4.0, 4.1, 99.0, math.nan, math.inf]))
    assert counts.tolist() == [2.0, 1.0, 1.0, 1.0, 1.0, 2.0]
    assert SCALE.law[:3] == pytest.approx((0.495, 0.396, 0.0891), abs=0.01)
    assert sum(SCALE.law) == pytest.approx(1.0)
    assert SCALE.edges[3] == pytest.approx(2.0 * SCALE.edges[2])


def test_replicas_of_one_law_are_coherent_at_any_count():
    """With the count bias off, 20 and 2000 answers a replica are both near 1; without, few answers look incoherent."""
    rng = np.random.default_rng(1)
    means = {}
    for size in (20, 2000):
        values = [latency_coherence(table(rng, [(1.0, 0.01)] * 4, size), SCALE) for _ in range(40)]
        means[size] = np.mean([value for value in values if value is not None])
    assert min(means.values()) > 0.97
    assert abs(means[20] - means[2000]) < 0.03
    plain = np.mean([1.0 - jsd(c / c.sum(axis=1, keepdims=True)) / 2.0 for c in (table(rng, [(1.0, 0.0)] * 4, 20),)])
    assert plain < means[20]


@pytest.mark.parametrize("odd", [(3.0, 0.01), (1.0, 0.6)])
def test_a_slow_or_failing_replica_lowers_it_and_is_named(odd: tuple[float, float]):
    rng = np.random.default_rng(2)
    counts = table(rng, [(1.0, 0.01), odd, (1.0, 0.01), (1.0, 0.01)])
    value = latency_coherence(counts, SCALE)
    assert value is not None
    assert value < 0.9
    assert int(own_distances(counts, SCALE).argmax()) == 1


def test_a_load_that_slows_all_alike_is_no_incoherence():
    rng = np.random.default_rng(3)
    counts = table(rng, [(3.0, 0.0)] * 4, 200)
    value = latency_coherence(counts, SCALE)
    assert value is not None
    assert value > 0.97
    assert own_distances(counts, SCALE).min() > 0.2


def test_c1_is_the_worse_of_its_latencies():
    rng = np.random.default_rng(4)
    good, bad = table(rng, [(1.0, 0.0)] * 3), table(rng, [(1.0, 0.0), (1.0, 0.0), (4.0, 0.0)])
    alone = latency_coherence(bad, SCALE)
    assert c1_latency([good, bad], [SCALE, SCALE]) == alone
    assert c1_latency([good[:1], bad], [SCALE, SCALE]) == alone
    assert c1_latency([good[:1]], [SCALE]) is None


def test_replicas_that_were_not_asked_are_left_out():
    rng = np.random.default_rng(5)
    counts = table(rng, [(1.0, 0.0)] * 3)
    with_absent = np.vstack((counts, np.zeros((1, counts.shape[1]))))
    assert latency_coherence(with_absent, SCALE) == latency_coherence(counts, SCALE)
    assert math.isnan(own_distances(with_absent, SCALE)[3])


def test_the_networks_part_comes_off_and_what_is_shorter_is_counted():
    found = net_of(np.array([0.5, 0.1, 0.2, math.nan]), 0.2)
    assert found.latencies[:3] == pytest.approx([0.3, 0.0, 0.0])
    assert math.isnan(found.latencies[3])
    assert found.clipped == 1
    with pytest.raises(ValueError, match="round trip"):
        net_of(np.zeros(1), -1.0)


def test_equal_latencies_make_fewer_labels():
    scale = latency_scale(np.full(300, 0.5))
    assert scale.edges == (0.5, 1.0)
    assert scale.law == (1.0, 0.0, 0.0, 0.0)


def test_bad_latencies_are_refused():
    with pytest.raises(ValueError, match="at least 200 answers in BAU, got 199"):
        latency_scale(np.append(np.ones(199), math.nan))
    with pytest.raises(ValueError, match="monotonic clock"):
        SCALE.counts(np.array([-0.1]))
