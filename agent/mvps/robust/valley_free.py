# SPDX-License-Identifier: Apache-2.0
"""Where a hijacked prefix goes when routes follow business: the second model beside SIR (ours).

Every AS prefers a route from a customer to one from a peer to one from a provider, then the fewest AS hops; it tells
customers about everything and the others about customers' routes only (Gao & Rexford 2001). With two origins of one
prefix every AS ends up with one of them, so that a hijack has an end state and not only a speed, and may never reach
half of the vantages. A hijack of a more specific prefix has no competitor: leave the legitimate origin out.

Three sweeps over the hierarchy give the stable state without simulating messages (Gill, Schapira & Goldberg 2011): up
to providers, across to peers, down to customers. ASes that validate origins (ROV) ignore the hijacker's route.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from scipy.sparse import csr_matrix

from mvps.coherence.axes import BoolArray
from mvps.coherence.observation import FloatArray
from mvps.coherence.tail import IndexArray
from mvps.robust.as_graph import AsGraph, LinkArray

NO_ROUTE = 255
OWN, CUSTOMER, PEER, PROVIDER = range(4)
Ties = Literal["legitimate", "hijacker"]


class Routes(NamedTuple):
    """The stable state, per AS (n,).

    kind: OWN, CUSTOMER, PEER or PROVIDER, from whom the route is; NO_ROUTE. hops: AS hops to its origin. parent: the
    neighbour it is from, -1 without. hijacked: whether the route leads to the hijacker.
    """

    kind: IndexArray
    hops: IndexArray
    parent: IndexArray
    hijacked: BoolArray

    def arrival_times(self, delay_s: FloatArray) -> FloatArray:
        """Seconds after which each AS has the hijacker's route, inf where it does not take it.

        delay_s: (n,) what each AS waits before it passes its new route on (path exploration is left out).
        """
        arrival = np.full(len(self.kind), np.inf)
        arrival[self.hijacked & (self.kind == OWN)] = 0.0
        deepest = int(self.hops[self.hijacked].max(initial=0))
        for hops in range(1, deepest + 1):
            now = np.flatnonzero(self.hijacked & (self.hops == hops))
            sender = self.parent[now]
            arrival[now] = arrival[sender] + delay_s[sender]
        return arrival


def stable_routes(
    graph: AsGraph,
    hijacker: int,
    legitimate: int | None = None,
    immune: BoolArray | None = None,
    ties: Ties = "legitimate",
) -> Routes:
    """Who takes whose route. hijacker, legitimate: places of the two origins; legitimate None for a sub-prefix hijack.

    immune: (n,) ASes that ignore the hijacker's route. ties: which origin equally good routes go to; the truth (age of
    the route, distance inside the AS) lies between the two. Among routes to one origin the lowest AS number wins.
    """
    if hijacker == legitimate:
        raise ValueError("the hijacker and the legitimate origin are one AS")
    size = graph.size
    kind = np.full(size, NO_ROUTE, dtype=np.intp)
    hops = np.full(size, -1, dtype=np.intp)
    parent = np.full(size, -1, dtype=np.intp)
    hijacked = np.zeros(size, dtype=bool)
    deaf = np.zeros(size, dtype=bool) if immune is None else immune.copy()
    deaf[hijacker] = False
    for origin in (hijacker, legitimate):
        if origin is not None:
            kind[origin], hops[origin] = OWN, 0
    hijacked[hijacker] = True
    routes = Routes(kind, hops, parent, hijacked)
    prefer_hijacker = ties == "hijacker"

    providers = _neighbours(graph.transit[:, ::-1], size)
    customers = _neighbours(graph.transit, size)
    peers = _neighbours(np.concatenate((graph.peering, graph.peering[:, ::-1])), size)

    frontier = np.flatnonzero(kind == OWN)
    while len(frontier):
        frontier = _offer(routes, providers, frontier, CUSTOMER, deaf, prefer_hijacker)
    _offer(routes, peers, np.flatnonzero(kind <= CUSTOMER), PEER, deaf, prefer_hijacker)
    level = 0
    while level <= int(hops.max()):
        _offer(routes, customers, np.flatnonzero(hops == level), PROVIDER, deaf, prefer_hijacker)
        level += 1
    return routes


def _neighbours(links: LinkArray, size: int) -> csr_matrix:
    return csr_matrix((np.ones(len(links)), (links[:, 0], links[:, 1])), shape=(size, size))


def _offer(
    routes: Routes, to: csr_matrix, senders: IndexArray, kind: int, deaf: BoolArray, prefer_hijacker: bool
) -> IndexArray:
    """Senders offer their routes to their neighbours in ``to``; those without a route take the best. Returns them."""
    counts = np.diff(to.indptr)[senders]
    source = np.repeat(senders, counts)
    offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    receiver = to.indices[to.indptr[source] + offsets].astype(np.intp)
    rogue = routes.hijacked[source]
    heard = (routes.kind[receiver] == NO_ROUTE) & ~(rogue & deaf[receiver])
    source, receiver, rogue = source[heard], receiver[heard], rogue[heard]
    order = np.lexsort((source, rogue != prefer_hijacker, routes.hops[source], receiver))
    taken, first = np.unique(receiver[order], return_index=True)
    best = source[order][first]
    routes.kind[taken] = kind
    routes.hops[taken] = routes.hops[best] + 1
    routes.parent[taken] = best
    routes.hijacked[taken] = routes.hijacked[best]
    return taken
