# SPDX-License-Identifier: Apache-2.0
"""What the hosts said in one tick, as arrays: from the packed rows of every report to one column per kind of vantage.

Ten thousand hosts of six kinds are sixty thousand observations a tick. They are joined as they come out of native code
and read at once; what Python does per host is one look-up.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mvps.broker.bundle import Observed
from mvps.coherence.observation import FloatArray
from mvps.coherence.tail import IndexArray

# Columns of a row, as Batch.observations has them.
OWN_DISTANCE: Final = 0
CHECKED: Final = 2
VIOLATED: Final = 3
UNCHANGED: Final = 4
LABELS: Final = 5
COLUMNS: Final = 6
_NO_KIND: Final = -1


class KindSaid(NamedTuple):
    """What the hosts said of one kind, an entry (M,) per host that reported it; a host comes once.

    host: its place among the hosts. checked, violated: checks done and failed. unchanged_ns: age of the distribution
    that still stands, 0 where one came along. labels: of the distribution that came along, 0 where none did.
    """

    host: IndexArray
    checked: FloatArray
    violated: FloatArray
    unchanged_ns: FloatArray
    labels: IndexArray
    start: IndexArray
    flat: NDArray[np.float32]

    def laws(self, entries: IndexArray, labels: int) -> FloatArray:
        """Distributions (E, labels) of those entries, all of which have that many labels."""
        found: FloatArray = self.flat[self.start[entries][:, None] + np.arange(labels)].astype(np.float64)
        return found


class TickSaid:
    """One tick of a fleet.

    hosts: who counts; what others said is passed over. said: (vantage id, what it observed).
    """

    def __init__(self, hosts: Sequence[str], said: Iterable[tuple[str, Observed]]) -> None:
        place = {host: index for index, host in enumerate(hosts)}
        columns: dict[str, int] = {}
        known: dict[bytes, IndexArray] = {}
        places: list[int] = []
        kinds: list[IndexArray] = []
        kept: list[Observed] = []
        for vantage_id, one in said:
            at = place.get(vantage_id)
            if at is None or not one.names:
                continue
            if one.names not in known:
                known[one.names] = _columns(one.names, columns)
            places.append(at)
            kinds.append(known[one.names])
            kept.append(one)
        counts = np.array([len(one) for one in kinds], dtype=np.intp)
        self._hosts = len(hosts)
        self._columns = columns
        self._host: IndexArray = np.repeat(np.array(places, dtype=np.intp), counts)
        self._kind: IndexArray = np.concatenate([np.empty(0, dtype=np.intp), *kinds])
        self._rows: FloatArray = np.frombuffer(b"".join([one.figures for one in kept]), "<f8").reshape(-1, COLUMNS)
        self._laws: NDArray[np.float32] = np.frombuffer(b"".join([one.laws for one in kept]), "<f4")
        labels = self._rows[:, LABELS].astype(np.intp)
        self._start: IndexArray = np.cumsum(labels) - labels
        self._period_ns: FloatArray = np.repeat(np.array([one.period_ns for one in kept], dtype=np.float64), counts)

    def reporting(self) -> dict[str, int]:
        """How many hosts reported each kind."""
        counts = np.bincount(self._kind[self._kind != _NO_KIND], minlength=len(self._columns))
        return dict(zip(self._columns, counts.tolist(), strict=True))

    def own_distances(self, kinds: Sequence[str]) -> FloatArray:
        """z (hosts, kinds); NaN where a host did not report a kind."""
        z = np.full((self._hosts, len(kinds)), np.nan)
        for column, kind in enumerate(kinds):
            entries = self._entries(kind)
            z[self._host[entries], column] = self._rows[entries, OWN_DISTANCE]
        return z

    def of(self, kind: str) -> KindSaid:
        """Everything else about one kind."""
        entries = self._entries(kind)
        rows = self._rows[entries]
        return KindSaid(
            self._host[entries],
            rows[:, CHECKED],
            rows[:, VIOLATED],
            rows[:, UNCHANGED] * self._period_ns[entries],
            rows[:, LABELS].astype(np.intp),
            self._start[entries],
            self._laws,
        )

    def _entries(self, kind: str) -> IndexArray:
        return np.flatnonzero(self._kind == self._columns.get(kind, len(self._columns)))


class StandingLaws:
    """The distribution of every host of one kind as it stands: it came along, or a heartbeat leans on it.

    Where a heartbeat leans on one that never came there is none, and hosts whose number of labels is not that of most
    hosts have none: theirs is another alphabet.
    """

    def __init__(self, hosts: int) -> None:
        self.hosts = hosts
        self._labels = np.zeros(hosts, dtype=np.intp)
        self._laws = np.empty((hosts, 0))
        self._tick_ns = np.zeros(hosts, dtype=np.int64)

    def step(self, tick_ns: int, period_ns: int, said: KindSaid) -> tuple[IndexArray, FloatArray]:
        """Hosts (M,), ascending, and their distributions (M, A) in one more tick. period_ns: of the lattice."""
        came = np.flatnonzero(said.labels)
        self._labels[said.host[came]] = said.labels[came]
        labels = int(np.bincount(self._labels[self._labels > 0], minlength=1).argmax())
        if labels != self._laws.shape[1]:
            self._laws = np.zeros((len(self._labels), labels))
            self._tick_ns[:] = 0
        mine = np.flatnonzero(said.labels == labels) if labels else came
        self._tick_ns[said.host[mine]] = tick_ns
        self._laws[said.host[mine]] = said.laws(mine, labels)
        # A host of a longer period has its ticks somewhere within the lattice's.
        off = np.abs(tick_ns - self._tick_ns[said.host] - said.unchanged_ns)
        stands = said.host[(self._tick_ns[said.host] > 0) & (off < period_ns)]
        stands.sort()
        return stands, self._laws[stands]


def _columns(names: bytes, columns: dict[str, int]) -> IndexArray:
    """Column of every name; of a name that a host gives twice only the last one counts."""
    listed = names.decode().split("\n")
    last = {name: index for index, name in enumerate(listed)}
    found = [
        columns.setdefault(name, len(columns)) if last[name] == index else _NO_KIND for index, name in enumerate(listed)
    ]
    return np.array(found, dtype=np.intp)
