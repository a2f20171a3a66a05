# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvps.robust.as_graph import AsGraph, parse_relationships, synthetic_internet
from mvps.robust.valley_free import CUSTOMER, NO_ROUTE, OWN, PEER, PROVIDER, stable_routes


def path_vector(
    graph: AsGraph, hijacker: int, legitimate: int | None, immune: np.ndarray, prefer_hijacker: bool
) -> list[tuple[int, ...] | None]:
    """Every AS in turn takes the best of what its neighbours tell it, until nobody changes; loops are refused."""
    size = graph.size
    said: list[dict[int, int]] = [{} for _ in range(size)]  # neighbour -> what a route from it is
    for provider, customer in graph.transit.tolist():
        said[customer][provider] = PROVIDER
        said[provider][customer] = CUSTOMER
    for one, other in graph.peering.tolist():
        said[one][other] = said[other][one] = PEER
    path: list[tuple[int, ...] | None] = [None] * size
    kind = [NO_ROUTE] * size
    for origin in (hijacker, legitimate):
        if origin is not None:
            path[origin], kind[origin] = (origin,), OWN
    for _ in range(4 * size):
        changed = False
        for me in range(size):
            if kind[me] == OWN:
                continue
            offers = []
            for neighbour, as_what in said[me].items():
                route = path[neighbour]
                to_customer = as_what == PROVIDER  # the neighbour provides for me: it tells me everything
                if route is None or me in route or not (to_customer or kind[neighbour] <= CUSTOMER):
                    continue
                rogue = route[-1] == hijacker
                if rogue and immune[me]:
                    continue
                offers.append((as_what, len(route), rogue != prefer_hijacker, neighbour, (me, *route)))
            best = min(offers, default=None)
            new = (best[4], best[0]) if best else (None, NO_ROUTE)
            if (path[me], kind[me]) != new:
                path[me], kind[me] = new
                changed = True
        if not changed:
            return path
    raise AssertionError("the routes do not settle")


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(8, 40), st.booleans(), st.booleans(), st.floats(0.0, 0.6))
def test_three_sweeps_give_what_messages_settle_on(seed: int, ases: int, both: bool, prefer: bool, validating: float):
    rng = np.random.default_rng(seed)
    graph = synthetic_internet(ases, seed % 1000)
    hijacker, legitimate = rng.choice(ases, 2, replace=False).tolist()
    victim = legitimate if both else None
    immune = rng.random(ases) < validating
    immune[hijacker] = False
    found = stable_routes(graph, hijacker, victim, immune, ties="hijacker" if prefer else "legitimate")
    settled = path_vector(graph, hijacker, victim, immune, prefer)
    for me, route in enumerate(settled):
        if route is None:
            assert found.kind[me] == NO_ROUTE
            assert not found.hijacked[me]
            continue
        assert found.hops[me] == len(route) - 1
        assert found.hijacked[me] == (route[-1] == hijacker)
        assert found.parent[me] == (route[1] if len(route) > 1 else -1)


def test_nobody_carries_traffic_between_two_providers():
    """A stub with two providers: the second hears of the first's hijack from nobody below."""
    graph = parse_relationships(["10|30|-1", "20|30|-1", "10|40|-1"])
    found = stable_routes(graph, hijacker=graph.place(40))
    assert found.hijacked[[graph.place(n) for n in (10, 30, 40)]].all()
    assert found.kind[graph.place(20)] == NO_ROUTE


def test_customers_routes_win_over_shorter_ones():
    """AS10 prefers the long route through its customers to the peer next door."""
    graph = parse_relationships(["10|11|-1", "11|12|-1", "12|66|-1", "10|7|0"])
    found = stable_routes(graph, hijacker=graph.place(66), legitimate=graph.place(7))
    assert found.kind[graph.place(10)] == CUSTOMER
    assert found.hijacked[graph.place(10)]
    assert found.hops[graph.place(10)] == 3


def test_ties_bracket_the_truth():
    graph = synthetic_internet(400, 3)
    few = stable_routes(graph, 399, 398, ties="legitimate").hijacked
    many = stable_routes(graph, 399, 398, ties="hijacker").hijacked
    assert few.sum() < many.sum()
    alone = stable_routes(graph, 399).hijacked
    assert alone.all()  # nobody competes for a more specific prefix


def test_validation_shields_those_behind_it_too():
    graph = parse_relationships(["1|2|-1", "1|3|-1", "2|4|-1"])
    immune = np.zeros(4, dtype=bool)
    immune[graph.place(1)] = True
    found = stable_routes(graph, hijacker=graph.place(3), immune=immune)
    assert np.flatnonzero(found.hijacked).tolist() == [graph.place(3)]


def test_arrival_follows_the_routes():
    graph = parse_relationships(["1|2|-1", "2|3|-1", "1|4|-1"])
    found = stable_routes(graph, hijacker=graph.place(3))
    delay = np.array([1.0, 10.0, 100.0, 1000.0])
    assert found.arrival_times(delay).tolist() == [110.0, 100.0, 0.0, 111.0]
    shielded = stable_routes(graph, hijacker=graph.place(3), legitimate=graph.place(4))
    assert shielded.arrival_times(delay)[graph.place(4)] == math.inf


def test_one_as_cannot_be_both():
    with pytest.raises(ValueError, match="are one AS"):
        stable_routes(synthetic_internet(10), 3, 3)
