# SPDX-License-Identifier: Apache-2.0
"""V_path: how the host's traffic is spread over its next hops, seen three ways (bpf/path.bpf.c and rtnetlink).

The data-plane surface has three vantages over one alphabet, the next hops (ours):

- ``path``: bytes per next hop that left the host, by Ethernet destination at net_dev_start_xmit;
- ``path_tcp``: TCP segments per next hop *the sockets' cached routes* point to, with their RTT;
- ``path_fib``: the weights the routing table itself gives to each next hop.

In BAU the three tell one story. A withdrawn next hop moves all three away from their baseline; a forwarding plane that
does not do what the table says moves them apart. Touched objects are (prefix, next hop) edges.

Witnesses: bytes against the interfaces' own counters; no bytes towards a gateway no route names.

With a probe plan, ``path`` also carries what active probing finds (probing.py): fingerprints per flow identity, hop
edges beside the (prefix, next hop) edges, and the checks of round trips against geography.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, replace

import numpy as np

from mvps.coherence.observation import HIST_BINS, Observation, Scale
from mvps.probes.bcc import Loader
from mvps.vantages.cells import Cells, ObjectTable, Scope
from mvps.vantages.keys import stable_key
from mvps.vantages.probe_plan import ProbePlan
from mvps.vantages.probing import Probed, Prober
from mvps.vantages.procfs import ProcFile
from mvps.vantages.routes import NextHop, Routes, RouteWatch, gateway_key, link_key, own_namespace
from mvps.vantages.vantage import Vantage
from mvps.vantages.workload import Workloads

SCALE = Scale(unit="next hop", lowest=1.0, quiet=1.0, categorical=True)
# Ticks over which a prefix's route and a neighbour's TTLs are remembered as fingerprints.
_FINGERPRINT_TICKS = 8
# Bytes towards a gateway that no route names before it counts as a violation: more than ARP and a few last segments.
_STRAY_BYTES = 100_000
_CLEAR_BYTES = 1_000_000


# The table is read, not sampled: its shares count as this many events per prefix, so that no prior dilutes them.
_FIB_EVENTS = 1000.0


def _as_packets(amounts: Mapping[NextHop, float], packets: Mapping[NextHop, float]) -> dict[NextHop, float]:
    """Byte shares with the weight of so many packets: bytes are not independent draws, packets nearly are."""
    total, count = sum(amounts.values()), sum(packets[hop] for hop in amounts)
    return {hop: amount / total * count for hop, amount in amounts.items()} if total else {}


class HopBins:
    """Next hop -> histogram bin: by hash, with the next free bin on a collision.

    Bins survive a restart as long as no two next hops collide in another order, so that a saved baseline still fits.
    """

    def __init__(self) -> None:
        self._bins: dict[str, int] = {}

    def bin(self, identity: str) -> int:
        """The bin of a next hop's identity."""
        known = self._bins.get(identity)
        if known is None:
            taken = set(self._bins.values())
            start = stable_key(identity) % HIST_BINS
            free = ((start + step) % HIST_BINS for step in range(HIST_BINS))
            known = next((at for at in free if at not in taken), start)  # past 128 next hops they share
            self._bins[identity] = known
        return known

    def names(self) -> dict[int, str]:
        """Bin -> identity."""
        return {at: name for name, at in self._bins.items()}


@dataclass(frozen=True, slots=True)
class _Shares:
    """Traffic per next hop in one tick."""

    events: dict[NextHop, float]
    amounts: dict[NextHop, float]
    elsewhere: float


def _with_probes(path: Observation, probed: Probed) -> Observation:
    return replace(
        path,
        objects={**(path.objects or {}), **probed.objects},
        checked=path.checked + probed.checked,
        violated=path.violated + probed.violated,
        fingerprints={**path.fingerprints, **probed.fingerprints},
        degraded=probed.degraded,
        facts={**path.facts, **probed.facts},
    )


@dataclass(frozen=True, slots=True)
class _View:
    """What one reading of the route tables means, worked out once and not on every tick.

    identity: next hop -> name of the router behind it; one router is one next hop, however many of its addresses
    routes name. by_link, by_gateway: keys of the kernel side -> next hop. edges: (key, router) of every (prefix, next
    hop). groups: prefix key -> key of its set of routers. fib: next hop -> share it has in all prefixes together.
    """

    identity: Mapping[NextHop, str]
    gateways: frozenset[NextHop]
    routers: frozenset[str]
    by_link: Mapping[int, NextHop]
    by_gateway: Mapping[int, NextHop]
    edges: tuple[tuple[int, str], ...]
    edge_names: Mapping[int, str]
    groups: Mapping[int, int]
    fib: Mapping[NextHop, float]


def _view(routes: Routes) -> _View:
    gateways = frozenset(routes.gateways())
    known = {hop: mac for hop, mac in routes.neighbours.items() if mac.count(":") == 5}
    identity = {
        hop: f"{routes.interfaces.get(hop.ifindex, hop.ifindex)}/{routes.neighbours.get(hop, hop.gateway)}"
        for hop in gateways | set(known)
    }
    by_link = {link_key(hop.ifindex, mac): hop for hop, mac in known.items() if hop not in gateways}
    by_link.update({link_key(hop.ifindex, mac): hop for hop, mac in known.items() if hop in gateways})
    names: dict[int, str] = {}
    edges: list[tuple[int, str]] = []
    groups: dict[int, int] = {}
    fib: dict[NextHop, float] = defaultdict(float)
    for prefix, hops in routes.hops.items():
        groups[stable_key("prefix", prefix)] = stable_key(*sorted(identity[hop] for hop in hops))
        weight = sum(hops.values())
        for hop, share in hops.items():
            key = stable_key(prefix, identity[hop])
            names[key] = f"{prefix} via {identity[hop]}"
            edges.append((key, identity[hop]))
            fib[hop] += share / weight
    return _View(
        identity,
        gateways,
        frozenset(identity[hop] for hop in gateways),
        by_link,
        {gateway_key(hop.ifindex, hop.gateway): hop for hop in identity},
        tuple(edges),
        names,
        groups,
        dict(fib),
    )


class PathVantage(Vantage):
    """The three views of the host's next hops, and active probing where a plan asks for it."""

    def __init__(
        self, scope: Scope, workloads: Workloads, loader: Loader = "auto", probe: ProbePlan | None = None
    ) -> None:
        # Routes are those of our own namespace, so packets must be too.
        self.cells = Cells("path", {"scope_netns": scope.netns or own_namespace()}, loader)
        self.watch = RouteWatch()
        self._devices = ProcFile("/proc/self/net/dev")
        self._sent = self._sent_bytes()
        self._bins = HopBins()
        self._past: deque[dict[int, dict[int, float]]] = deque(maxlen=_FINGERPRINT_TICKS)
        self._edge_names: dict[int, str] = {}
        self._unrouted_ticks: dict[str, int] = {}  # router -> ticks without a route; 0 while it has one
        self._routes = self.watch.routes
        self._current = _view(self._routes)
        self._edge_names |= self._current.edge_names
        self._prober = Prober(probe) if probe else None

    def _sent_bytes(self) -> int:
        rows = (line.split(":", 1) for line in self._devices.text().splitlines()[2:])
        return sum(int(values.split()[8]) for name, values in rows if name.strip() != "lo")

    def _shares(self, table: ObjectTable, key_of: Mapping[int, NextHop]) -> _Shares:
        events: dict[NextHop, float] = defaultdict(float)
        amounts: dict[NextHop, float] = defaultdict(float)
        elsewhere = 0.0
        for key, (count, amount) in table.sums().items():
            hop = key_of.get(key)
            if hop is None:
                elsewhere += amount
            else:
                events[hop] += count
                amounts[hop] += amount
        return _Shares(dict(events), dict(amounts), elsewhere)

    def _observe(
        self, name: str, view: _View, weights: Mapping[NextHop, float], active: Set[str], **rest: object
    ) -> Observation:
        histogram = np.zeros(HIST_BINS)
        for hop, weight in weights.items():
            histogram[self._bins.bin(view.identity[hop])] += weight
        edges = {key: 1.0 for key, router in view.edges if router in active}
        return Observation(vantage=name, scale=SCALE, histogram=histogram, objects=edges, **rest)  # type: ignore[arg-type]

    def read(self) -> list[Observation]:
        """This tick's three observations: path, path_tcp, path_fib."""
        changes = self.watch.poll()
        if self.watch.routes is not self._routes:
            self._routes = self.watch.routes
            self._current = _view(self._routes)
            self._edge_names |= self._current.edge_names
        view = self._current
        delta = self.cells.read()
        sent = self._sent_bytes()
        witness, self._sent = sent - self._sent, sent

        egress = self._shares(delta.tables["egress"], view.by_link)
        routed = self._shares(delta.tables["routed"], view.by_gateway)
        through = {hop: n for hop, n in egress.amounts.items() if view.identity[hop] in view.routers}
        retired = self._retired(view)
        strays = sum(n for hop, n in egress.amounts.items() if view.identity[hop] in retired)
        total = sum(egress.amounts.values()) + egress.elsewhere
        checked = violated = 0.0
        if max(total, witness) > _CLEAR_BYTES:  # interface counters add per-segment headers that one large packet saves
            checked += 1
            violated += not 0.7 < total / max(witness, 1) < 1.3
        if retired:
            checked += 1
            violated += strays > _STRAY_BYTES

        rtt_ms = {
            f"rtt_ms.{view.identity[hop]}": amount / routed.events[hop] / 1e3 for hop, amount in routed.amounts.items()
        }
        facts = {
            "next_hops": float(len(view.routers)),
            "bytes": total,
            "witness_bytes": float(witness),
            "on_link_bytes": total - sum(through.values()),
            "route_changes": float(sum(n for k, n in changes.items() if k.startswith(("route", "nexthop")))),
            **{f"share.{view.identity[hop]}": n / total for hop, n in through.items() if total},
            **rtt_ms,
        }
        path = self._observe(
            "path",
            view,
            _as_packets(through, egress.events),
            {view.identity[hop] for hop in through},
            checked=checked,
            violated=violated,
            facts=facts,
            fingerprints=self._fingerprints(view, delta.tables["ttl"]),
        )
        if self._prober:
            path = _with_probes(path, self._prober.read())
        in_use = {hop: n for hop, n in routed.events.items() if view.identity[hop] in view.routers}
        sockets = {view.identity[hop] for hop in routed.events}
        return [
            path,
            self._observe("path_tcp", view, in_use, sockets, facts=rtt_ms),
            self._observe("path_fib", view, {hop: _FIB_EVENTS * n for hop, n in view.fib.items()}, view.routers),
        ]

    def _retired(self, view: _View) -> set[str]:
        """Routers that were gateways and have had no route for at least two ticks."""
        ages = {name: age + 1 for name, age in self._unrouted_ticks.items() if name not in view.routers and age < 600}
        self._unrouted_ticks = {**ages, **dict.fromkeys(view.routers, 0)}
        return {name for name, age in ages.items() if age >= 2}

    def _fingerprints(self, view: _View, ttl: ObjectTable) -> dict[int, dict[int, float]]:
        """Prefix -> its set of routers, and neighbour -> TTLs received from it, over the last ticks."""
        now: dict[int, dict[int, float]] = {prefix: {group: 1.0} for prefix, group in view.groups.items()}
        for key, (packets, _) in ttl.sums().items():
            now.setdefault(key & ~0xFF, {})[key & 0xFF] = float(packets)
        self._past.append(now)
        total: dict[int, dict[int, float]] = {}
        for tick in self._past:
            for subject, prints in tick.items():
                into = total.setdefault(subject, {})
                for one, count in prints.items():
                    into[one] = into.get(one, 0.0) + count
        return total

    def object_names(self, keys: Iterable[int]) -> dict[int, str]:
        """Names of (prefix, next hop) edges and of hop edges."""
        wanted = set(keys)
        hops = self._prober.object_names(wanted) if self._prober else {}
        return hops | {key: self._edge_names[key] for key in wanted if key in self._edge_names}

    def losses(self) -> dict[str, int]:
        """Netlink overruns and what probing lost, beside the cells' own losses."""
        probing = self._prober.losses() if self._prober else {}
        return {**self.cells.losses(), "path.netlink_overruns": self.watch.overruns, **probing}

    def close(self) -> None:
        """Detach, close the sockets and end probing."""
        if self._prober:
            self._prober.close()
        self.cells.close()
        self.watch.close()
        self._devices.close()
