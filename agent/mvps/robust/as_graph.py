# SPDX-License-Identifier: Apache-2.0
"""Graphs of autonomous systems: who provides transit to whom, and who peers.

Read from CAIDA's AS-relationships text (serial-1 and serial-2; the user supplies the file), or made up: a clique of
transit-free networks, regional transit that buys from larger ones, and stubs, with preferential attachment. Lines are
``provider|customer|-1`` and ``peer|peer|0``, with an optional fourth field; comments begin with ``#``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from mvps.coherence.tail import IndexArray

MAX_ASES = 200_000
MAX_LINKS = 2_000_000
MAX_LINE = 200
_MAX_NUMBER = (1 << 32) - 1
_RELATIONS = {"-1", "0"}

LinkArray = NDArray[np.intp]  # (L, 2)


class RelationshipError(ValueError):
    """The text is no AS-relationships file, or is larger than allowed; the message names the line."""


class AsGraph(NamedTuple):
    """numbers: AS numbers, ascending; everything else counts ASes by their place in it.

    transit: rows (provider, customer). peering: rows (one, other). Every pair of ASes occurs once at most.
    """

    numbers: NDArray[np.int64]
    transit: LinkArray
    peering: LinkArray

    @property
    def size(self) -> int:
        """Number of ASes."""
        return len(self.numbers)

    def place(self, number: int) -> int:
        """Place of an AS number. KeyError with advice if it is not in the graph."""
        at = int(np.searchsorted(self.numbers, number))
        if at == self.size or self.numbers[at] != number:
            raise KeyError(f"AS{number} is not in the graph of {self.size} ASes")
        return at

    def degree(self) -> IndexArray:
        """Links of each AS."""
        return np.bincount(np.concatenate((self.transit, self.peering)).ravel(), minlength=self.size)

    def sessions(self) -> csr_matrix:
        """Directed adjacency (size, size): 1 both ways for every link."""
        links = np.concatenate((self.transit, self.peering))
        both = np.concatenate((links, links[:, ::-1]))
        return csr_matrix((np.ones(len(both)), (both[:, 0], both[:, 1])), shape=(self.size, self.size))


def parse_relationships(lines: Iterable[str], max_ases: int = MAX_ASES, max_links: int = MAX_LINKS) -> AsGraph:
    """The graph in the lines of a CAIDA AS-relationships file.

    A link that occurs twice counts once. RelationshipError for anything else than such a file.
    """
    transit: list[tuple[int, int]] = []
    peering: list[tuple[int, int]] = []
    seen: dict[tuple[int, int], str] = {}
    ases: set[int] = set()
    for at, line in enumerate(lines, 1):
        if len(line) > MAX_LINE:
            raise RelationshipError(f"line {at} has more than {MAX_LINE} characters: this is no AS-relationships file")
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        one, other, relation = _link(line, at)
        pair = (min(one, other), max(one, other))
        meant = relation if relation == "0" else f"{one} provides"
        before = seen.setdefault(pair, meant)
        if before != meant:
            raise RelationshipError(f"line {at}: AS{one} and AS{other} had another relationship before")
        ases.update(pair)
        (transit if relation == "-1" else peering).append((one, other))
        if len(seen) > max_links or len(ases) > max_ases:
            raise RelationshipError(f"line {at}: more than {max_ases} ASes or {max_links} links are not read")
    if not ases:
        raise RelationshipError("the file has no relationship in it")
    numbers = np.array(sorted(ases), dtype=np.int64)
    return AsGraph(numbers, _places(numbers, transit), _places(numbers, peering))


def _link(line: str, at: int) -> tuple[int, int, str]:
    fields = line.split("|")
    if len(fields) not in (3, 4) or fields[2] not in _RELATIONS or not (fields[0] + fields[1]).isdecimal():
        raise RelationshipError(
            f"line {at} is {line[:40]!r}: expected provider|customer|-1 or peer|peer|0, numbers only"
        )
    one, other = int(fields[0]), int(fields[1])
    if one == other or not 0 < min(one, other) <= max(one, other) <= _MAX_NUMBER:
        raise RelationshipError(f"line {at}: AS{one} and AS{other} cannot have a relationship")
    return one, other, fields[2]


def _places(numbers: NDArray[np.int64], links: list[tuple[int, int]]) -> LinkArray:
    pairs = np.array(links, dtype=np.int64).reshape(-1, 2)
    _, first = np.unique(np.sort(pairs, axis=1), axis=0, return_index=True)
    return np.searchsorted(numbers, pairs[np.sort(first)])


def relationship_lines(graph: AsGraph) -> Iterator[str]:
    """The graph as lines of a serial-1 file."""
    for provider, customer in graph.numbers[graph.transit].tolist():
        yield f"{provider}|{customer}|-1"
    for one, other in graph.numbers[graph.peering].tolist():
        yield f"{one}|{other}|0"


def synthetic_internet(ases: int, seed: int = 0) -> AsGraph:
    """A made-up internet of ``ases`` networks, AS1 to ASn; the smaller the number the nearer to the core (ours).

    A clique of up to 12 at the top, 15 % transit networks with two providers and a few peers, the rest stubs with one
    to three providers. A network's chance of being chosen grows with its customers.
    """
    if ases < 8:
        raise ValueError(f"a synthetic internet has at least 8 ASes, not {ases}")
    if ases > MAX_ASES:
        raise ValueError(f"a synthetic internet has at most {MAX_ASES} ASes, not {ases}")
    rng = np.random.default_rng(seed)
    top = min(12, ases // 4)
    carriers = top + max(1, round(0.15 * ases))
    transit: list[tuple[int, int]] = []
    urn = list(range(top))  # every customer puts its provider in once more
    for network in range(top, ases):
        wanted = 2 if network < carriers else int(rng.integers(1, 4))
        providers = {urn[int(i)] for i in rng.integers(0, len(urn), wanted)}
        transit += [(provider, network) for provider in sorted(providers)]
        urn += sorted(providers)
        if network < carriers:
            urn.append(network)
    linked = {(min(pair), max(pair)) for pair in transit}
    peering = [(a, b) for a in range(top) for b in range(a + 1, top)]
    for _ in range(3 * (carriers - top)):
        a, b = sorted(rng.integers(top, carriers, 2).tolist())
        if a != b and (a, b) not in linked:
            linked.add((a, b))
            peering.append((a, b))
    return AsGraph(np.arange(1, ases + 1), np.array(transit, dtype=np.intp), np.array(peering, dtype=np.intp))
