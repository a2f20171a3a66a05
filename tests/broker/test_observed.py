# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_samples import Seen, packed

from mvps.broker.bundle import NOT_OBSERVED
from mvps.broker.observed import StandingLaws, TickSaid

SECOND = 10**9
LAW = (0.5, 0.25, 0.25)


def test_own_distances_stand_where_their_host_and_kind_are() -> None:
    said = [
        ("b", packed(Seen("mm", 1.0), Seen("blk", 2.0))),
        ("x", packed(Seen("mm", 9.0))),
        ("a", packed(Seen("blk", 3.0), Seen("gpu", 4.0))),
        ("c", NOT_OBSERVED),
    ]
    tick = TickSaid(["a", "b", "c"], said)
    z = tick.own_distances(["mm", "blk", "sched"])
    nothing = math.nan
    assert np.array_equal(z, [[nothing, 3.0, nothing], [1.0, 2.0, nothing], [nothing] * 3], equal_nan=True)
    assert tick.reporting() == {"mm": 1, "blk": 2, "gpu": 1}
    assert tick.of("sched").host.tolist() == []
    empty = TickSaid(["a"], [])
    assert empty.reporting() == {}
    assert np.isnan(empty.own_distances(["mm"])).all()


def test_a_name_that_a_host_gives_twice_counts_once() -> None:
    tick = TickSaid(["a", "b"], [("a", packed(Seen("mm", 1.0), Seen("blk", 5.0), Seen("mm", 2.0)))])
    assert tick.reporting() == {"mm": 1, "blk": 1}
    assert tick.own_distances(["mm"])[0, 0] == 2.0
    assert tick.of("mm").host.tolist() == [0]


SEEN = st.builds(
    Seen,
    st.sampled_from(["mm", "blk", "irq"]),
    st.floats(-1e6, 1e6),
    checked=st.floats(0, 10),
    violated=st.floats(0, 10),
    law=st.sampled_from([(), (1.0, 0.0), LAW]),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(SEEN, max_size=3, unique_by=lambda one: one.name), max_size=5))
def test_everything_comes_out_as_it_was_packed(hosts: list[list[Seen]]) -> None:
    names = [f"host-{number}" for number in range(len(hosts))]
    tick = TickSaid(names, [(name, packed(*seen)) for name, seen in zip(names, hosts, strict=True)])
    for kind in ("mm", "blk", "irq"):
        expected = [(at, one) for at, seen in enumerate(hosts) for one in seen if one.name == kind]
        found = tick.of(kind)
        assert found.host.tolist() == [at for at, _ in expected]
        assert found.checked.tolist() == [one.checked for _, one in expected]
        assert found.violated.tolist() == [one.violated for _, one in expected]
        assert found.labels.tolist() == [len(one.law) for _, one in expected]
        for labels in (2, 3):
            entries = np.flatnonzero(found.labels == labels)
            assert found.laws(entries, labels).tolist() == [
                list(one.law) for _, one in expected if len(one.law) == labels
            ]


class Fleet:
    """Three hosts of one kind, tick by tick."""

    def __init__(self, hosts: int = 3) -> None:
        self.names = [f"host-{number}" for number in range(hosts)]
        self.standing = StandingLaws(hosts)

    def tick(self, second: int, *said: Seen | None, period_s: int = 1) -> tuple[list[int], list[list[float]]]:
        reports = [
            (n, packed(one, period_ns=period_s * SECOND)) for n, one in zip(self.names, said, strict=True) if one
        ]
        kind = TickSaid(self.names, reports).of("mm")
        hosts, laws = self.standing.step(second * SECOND, SECOND, kind)
        return hosts.tolist(), laws.tolist()


def law(*p: float) -> Seen:
    return Seen("mm", law=p)


def still(ticks: int) -> Seen:
    return Seen("mm", unchanged=ticks)


def test_a_heartbeat_leans_on_what_came_that_many_ticks_ago() -> None:
    fleet = Fleet()
    assert fleet.tick(10, law(1.0, 0.0), law(0.5, 0.5), None) == ([0, 1], [[1.0, 0.0], [0.5, 0.5]])
    assert fleet.tick(11, still(1), law(0.25, 0.75), still(1)) == ([0, 1], [[1.0, 0.0], [0.25, 0.75]])
    # Host 1 leans on what never came; host 0 on what came, after a tick that did not.
    assert fleet.tick(13, still(3), still(1), None) == ([0], [[1.0, 0.0]])
    assert fleet.tick(14, None, still(3), law(0.0, 1.0)) == ([1, 2], [[0.25, 0.75], [0.0, 1.0]])


def test_a_slow_hosts_ticks_are_its_own() -> None:
    fleet = Fleet(1)
    assert fleet.tick(10, law(1.0, 0.0), period_s=5) == ([0], [[1.0, 0.0]])
    assert fleet.tick(20, still(2), period_s=5) == ([0], [[1.0, 0.0]])
    assert fleet.tick(25, still(2), period_s=5) == ([], [])


def test_another_alphabet_does_not_count_until_most_hosts_have_it() -> None:
    fleet = Fleet()
    assert fleet.tick(1, law(1.0, 0.0), law(0.5, 0.5), law(*LAW))[0] == [0, 1]
    # One host alone changes nothing, also while the others only send heartbeats.
    assert fleet.tick(2, still(1), still(1), law(*LAW)) == ([0, 1], [[1.0, 0.0], [0.5, 0.5]])
    assert fleet.tick(3, law(*LAW), still(2), still(1)) == ([0], [list(LAW)])
    assert fleet.tick(4, still(1), still(3), law(*LAW)) == ([0, 2], [list(LAW)] * 2)


@pytest.mark.parametrize("first", [None, Seen("blk", law=LAW)])
def test_nobody_with_a_distribution(first: Seen | None) -> None:
    fleet = Fleet(1)
    assert fleet.tick(1, first) == ([], [])
    assert fleet.tick(2, still(1)) == ([], [])
