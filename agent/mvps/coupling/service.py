# SPDX-License-Identifier: Apache-2.0
"""A service live: from what its two surfaces read, tick by tick, to one phase and to who leads (000 sec. 4.2, 7.2).

    x_net(t) = mean over the service's network sources,   x_AI(t) = mean over its AI sources,   z(t) = (x_net, x_AI)

**Joining** (ours) is that of :mod:`~.joint`, per source: at t a source stands with its last reading that is not later
than t and not older than its keep. A mean of fewer sources has another law, so a surface of which one source is missing
is missing. A surface has read anew once each of its sources has, and a row is *fresh* if both surfaces have read anew
since the last fresh row.

**Which axes** (ours). Those known in at least nine of ten rows of the calibration window; a row without one of them is
incomplete. An axis that no source measures is thus left out, and named.

**Calibration** (ours) is on fresh rows in which every source's own decision is BAU or WATCH. A gap is a step of more
than 2.5 times the median one, so that one lost reading is none; more than one gap in 30 rows, and the rows before the
first one go. A window that gives no baseline grows to four times its length and is tried again every 30 rows.

**Decision.** D^2 of both surfaces and of z, phase and hysteresis as in :mod:`~.phases`, p-values by the law the limits
come from, and the posterior of BAU, WATCH, ALARM, CRITICAL at the p-value of D^2_joint (:mod:`mvps.coherence.phase`).
*Onset* (ours): a surface has moved since it was first over its WATCH limit, until it was below it three times in a row.

**Coupling** is evaluated rarely, for it costs some 250 ticks: R_cross and its test over the longest run of
fresh BAU rows among the last 600, lead and lag of H_net and H_AI over that of all fresh rows. Below 60 effective ticks
both are refused, and say so.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from enum import Enum
from itertools import pairwise
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from mvps.coherence.observation import FloatArray
from mvps.coherence.phase import HYSTERESIS_TICKS, deviance, posterior
from mvps.coupling.cross import fit_cross
from mvps.coupling.distance import JointBaseline, Limits, fit_baseline
from mvps.coupling.independence import LEAST_EFFECTIVE, independence_test
from mvps.coupling.joint import AI_AXES, C4_AXIS, NET_AXES, BoolArray, hamiltonian
from mvps.coupling.lead_lag import Lead, LeadLag, lead_lag
from mvps.coupling.phases import ICPhase, Settled, classify

CALIBRATION_TICKS = 300
FLOOR = 0.01
EVALUATE_EVERY = 30
WINDOW_TICKS = 600
LAGS = 8
_GAP = 2.5
_ROWS_PER_GAP = 30
_KNOWN = 0.9
_SPLIT = len(NET_AXES)
_UNFIT = (ValueError, np.linalg.LinAlgError)

T = TypeVar("T")


class Put(Enum):
    """What becomes of a reading that comes in. LATE: taken, though it belongs to a tick that was joined without it."""

    TAKEN = "taken"
    LATE = "late"
    REPEATED = "repeated"


class Latest(Generic[T]):
    """The readings of one source, by the rule of joining. Times and keep in one unit, increasing calls of :meth:`at`.

    Holds the reading that stands and those that wait for their tick: at most ``most``, and of a summed size of at most
    ``largest`` unless one alone is larger. ``overflow`` counts those that went before their tick came.
    """

    def __init__(self, most: int = 256, largest: int = 512 * 1024) -> None:
        self._most, self._largest = most, largest
        self._held: deque[tuple[int, int, int, T]] = deque()  # time, keep, size, reading; the first one may stand
        self._asked: int | None = None
        self._size = 0
        self.overflow = 0

    def __len__(self) -> int:
        return len(self._held)

    def put(self, time: int, keep: int, reading: T, size: int = 0) -> Put:
        """Take a reading, unless it is no newer than the newest."""
        if self._held and time <= self._held[-1][0]:
            return Put.REPEATED
        self._held.append((time, keep, size, reading))
        self._size += size
        while len(self._held) > self._most or (self._size > self._largest and len(self._held) > 1):
            self._size -= self._held.popleft()[2]
            self.overflow += 1
        return Put.LATE if self._asked is not None and time <= self._asked else Put.TAKEN

    def at(self, time: int) -> T | None:
        """The reading that stands at ``time``, None if there is none."""
        self._asked = time
        while len(self._held) > 1 and self._held[1][0] <= time:
            self._size -= self._held.popleft()[2]
        if not self._held:
            return None
        read, keep, _, reading = self._held[0]
        return reading if read <= time <= read + keep else None

    def forget(self) -> None:
        """Begin anew: the clock was set back."""
        self._held.clear()
        self._asked, self._size = None, 0


class Reading(NamedTuple):
    """What one source read. values: its axes in [0, 1], NaN where unknown. number: rises with every new reading.
    quiet: the source's own decision is BAU or WATCH."""

    values: tuple[float, ...]
    number: int
    quiet: bool


class ServiceTick(NamedTuple):
    """One joint tick. time: seconds. z: (p,) over all axes, NaN where unknown.

    h, d2, log_p: of the network, the AI surface and both: Hamiltonian in nats, D^2, log p-value; NaN where unknown.
    raw, phase: before and after hysteresis, None while it calibrates. posterior: of BAU, WATCH, ALARM, CRITICAL, () as
    long as the joint distance is unknown. moved: since when each surface is over its limit, seconds, None if it is not.
    lead: who moved first by that. fresh: both surfaces read anew.
    """

    time: float
    z: tuple[float, ...]
    h: tuple[float, float, float]
    d2: tuple[float, float, float]
    log_p: tuple[float, float, float]
    raw: ICPhase | None
    phase: ICPhase | None
    posterior: tuple[float, ...]
    moved: tuple[float | None, float | None]
    lead: Lead
    fresh: bool


class Pair(NamedTuple):
    """The entry of R_cross of largest absolute value: its axes, the entry and its 95 % interval."""

    net: str
    ai: str
    r: float
    low: float
    high: float


class Tested(NamedTuple):
    """R_cross over a window and the test of R_cross = 0, as :mod:`~.cross` and :mod:`~.independence` define them."""

    frobenius: float
    frobenius_null: float
    condition: float
    strongest: Pair
    p_value: float
    least_p: float
    effective: float


class Coupling(NamedTuple):
    """What was evaluated last. time: seconds, when. ticks, recent: rows behind the test and behind the lead.

    tested, lead: None where it is refused; refused, lead_refused: why, "" if it is not. step: seconds between rows, in
    which the lead's lags count.
    """

    time: float
    ticks: int
    tested: Tested | None
    refused: str
    recent: int
    lead: LeadLag | None
    lead_refused: str
    step: float


class Learned(NamedTuple):
    """The window a baseline was fitted to. axes: names of its columns. times: (n,) seconds. rows: (n, axes)."""

    axes: tuple[str, ...]
    times: FloatArray
    rows: FloatArray


class _Window:
    """The last rows, oldest first: views of a buffer of twice their number, moved down when it is full."""

    def __init__(self, most: int, axes: int) -> None:
        self._most = most
        self._times = np.empty(2 * most)
        self._rows = np.empty((2 * most, axes))
        self._begin = self._end = 0

    def __len__(self) -> int:
        return self._end - self._begin

    @property
    def times(self) -> FloatArray:
        return self._times[self._begin : self._end]

    @property
    def rows(self) -> FloatArray:
        return self._rows[self._begin : self._end]

    def add(self, time: float, row: FloatArray) -> None:
        if self._end == len(self._times):
            kept = len(self)
            self._times[:kept], self._rows[:kept] = self.times, self.rows
            self._begin, self._end = 0, kept
        self._times[self._end], self._rows[self._end] = time, row
        self._end += 1
        self._begin = max(self._begin, self._end - self._most)

    def drop(self, count: int) -> None:
        self._begin += count

    def gaps(self) -> list[int]:
        """Rows before which there is a gap."""
        step = np.diff(self.times)
        found: list[int] = (np.flatnonzero(step > _GAP * np.median(step)) + 1).tolist() if len(step) else []
        return found

    def longest_run(self) -> tuple[FloatArray, FloatArray]:
        """Times and rows of the longest stretch without a gap, of the latest one where equal."""
        edges = [0, *self.gaps(), len(self)]
        length, end = max((end - begin, end) for begin, end in pairwise(edges))
        return self.times[end - length : end], self.rows[end - length : end]


class ServiceMonitor:
    """The state of one service. Pure: times come in, and must increase.

    c4: whether C_4 is an axis. cutoffs: mode of the limits. floor: standard deviation below which no axis is taken
    (:mod:`~.distance`). ``calibrated``: usable rows so far; ``problem``: "" or why
    they give no baseline. ``untaught``: fresh rows that taught nothing, because a source was not in BAU.
    """

    def __init__(
        self,
        *,
        c4: bool = False,
        calibration_ticks: int = CALIBRATION_TICKS,
        cutoffs: str = "empirical",
        floor: float = FLOOR,
    ) -> None:
        self.axes = (*NET_AXES, *AI_AXES, *((C4_AXIS,) if c4 else ()))
        self.needed = calibration_ticks
        self.calibrated = 0
        self.problem = ""
        self.untaught = 0
        self.coupling: Coupling | None = None
        self.learned: Learned | None = None
        self.limits: Limits | None = None
        self._cutoffs = cutoffs
        self._floor = floor
        self._window = _Window(4 * calibration_ticks, len(self.axes))
        self._retry = 0
        self._baseline: JointBaseline | None = None
        self._used: BoolArray = np.ones(len(self.axes), dtype=np.bool_)
        self._read: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
        self._begin()

    @property
    def used(self) -> tuple[str, ...]:
        """The axes that a baseline would have now, or has."""
        return tuple(name for name, used in zip(self.axes, self._used, strict=True) if used)

    @property
    def due(self) -> bool:
        """Whether :meth:`evaluate` has enough that is new."""
        return self._baseline is not None and self._until <= 0

    def forget(self) -> None:
        """The clock was set back: what is known of order and lead begins anew; the baseline stays."""
        self._begin()
        if self._baseline is None:
            self._window = _Window(4 * self.needed, len(self.axes))
            self.calibrated = 0

    def _begin(self) -> None:
        split = int(self._used[:_SPLIT].sum())
        axes = int(self._used.sum())
        self._split = split
        self._settled = Settled()
        self._moved: list[float | None] = [None, None]
        self._below = [0, 0]
        self._quiet, self._recent = _Window(WINDOW_TICKS, axes), _Window(WINDOW_TICKS, axes)
        self._until = EVALUATE_EVERY

    def restore(self, learned: Learned) -> None:
        """Go on with the baseline of an earlier window. ValueError if it is of other axes or gives none."""
        if learned.axes != tuple(name for name in self.axes if name in learned.axes):
            raise ValueError(f"it is of the axes {', '.join(learned.axes)}, and these are {', '.join(self.axes)}")
        used: BoolArray = np.array([name in learned.axes for name in self.axes], dtype=np.bool_)
        self._fit(learned.times, learned.rows, used)
        if self._baseline is None:
            raise ValueError(self.problem)
        self._recent = _Window(WINDOW_TICKS, len(learned.axes))  # who led before says nothing of now

    def step(self, time: float, net: Sequence[Reading | None], ai: Sequence[Reading | None]) -> ServiceTick:
        """One joint tick: what each source of either surface stands with, None where it is missing."""
        surfaces = (net, ai)
        z = np.full(len(self.axes), np.nan)
        for surface, part in zip(surfaces, (slice(0, _SPLIT), slice(_SPLIT, None)), strict=True):
            standing = [one.values for one in surface if one is not None]
            if standing and len(standing) == len(surface):
                z[part] = np.mean(standing, axis=0)
        whole = all(one is not None for surface in surfaces for one in surface)
        quiet = all(one is not None and one.quiet for surface in surfaces for one in surface)
        fresh = whole and self._read_anew(surfaces)
        x = z[self._used]
        energy = _floats(hamiltonian(x[None], self._split))
        if self._baseline is None:
            if fresh and quiet:
                self._learn(time, z)
            self.untaught += fresh and not quiet
            unknown = (math.nan, math.nan, math.nan)
            # What it may have become just now decides from the next tick on.
            return ServiceTick(
                time, tuple(z.tolist()), energy, unknown, unknown, None, None, (), (None, None),
                Lead.NOBODY, fresh,
            )  # fmt: skip
        return self._judge(time, z, x, energy, fresh, quiet)

    def _read_anew(self, surfaces: Sequence[Sequence[Reading | None]]) -> bool:
        """Whether every source has a newer reading than in the last fresh row; then this is the last fresh row."""
        numbers = [tuple(one.number for one in surface if one is not None) for surface in surfaces]
        for now, before in zip(numbers, self._read, strict=True):
            if before and not all(a > b for a, b in zip(now, before, strict=True)):
                return False
        self._read = (numbers[0], numbers[1])
        return True

    def _learn(self, time: float, z: FloatArray) -> None:
        window = self._window
        window.add(time, z)
        gaps = window.gaps()
        while len(gaps) > len(window) // _ROWS_PER_GAP:
            first = gaps[0]
            window.drop(first)
            gaps = [gap - first for gap in gaps[1:]]
        known = np.isfinite(window.rows)
        used: BoolArray = known.mean(axis=0) >= _KNOWN
        if not (used[:_SPLIT].any() and used[_SPLIT:].any()):
            self.calibrated = 0
            side = "AI" if used[:_SPLIT].any() else "network"
            self.problem = f"no axis of the {side} surface is known in nine of ten ticks"
            return
        self._used, self._split = used, int(used[:_SPLIT].sum())
        complete = known[:, used].all(axis=1)
        self.calibrated = int(complete.sum())
        self._retry -= 1
        if self.calibrated < self.needed:
            self.problem = ""
        elif self._retry <= 0:
            self._retry = EVALUATE_EVERY
            self._fit(window.times[complete], window.rows[complete][:, used], used)

    def _fit(self, times: FloatArray, rows: FloatArray, used: BoolArray) -> None:
        split = int(used[:_SPLIT].sum())
        try:
            baseline = fit_baseline(rows, split, self._floor)
            limits = baseline.limits(self._cutoffs)
        except _UNFIT as error:
            self.problem = str(error)
            return
        self.problem = ""
        self._baseline, self.limits, self._used = baseline, limits, used
        self.calibrated = len(rows)
        self.learned = Learned(self.used, times.copy(), rows.copy())
        self._window = _Window(1, 1)  # what it held is in ``learned``
        self._begin()
        for time, row in zip(times[-WINDOW_TICKS:].tolist(), rows[-WINDOW_TICKS:], strict=True):
            self._quiet.add(time, row)
            self._recent.add(time, row)
        self._until = 0

    def _judge(
        self, time: float, z: FloatArray, x: FloatArray, energy: tuple[float, float, float], fresh: bool, quiet: bool
    ) -> ServiceTick:
        assert self._baseline is not None
        assert self.limits is not None
        d2 = _floats(self._baseline.distances(x[None]))
        raw = classify(*d2, self.limits)
        self._settled = self._settled.step(raw)
        for surface, limit in enumerate((self.limits.net, self.limits.ai)):
            self._onset(surface, d2[surface], limit, time)
        log_p = tuple(self._baseline.log_survival(block, d2[block], self._cutoffs) for block in range(3))
        classes: tuple[float, ...] = ()
        if not math.isnan(log_p[2]):
            dof = self._baseline.laws[2].axes
            classes = posterior(deviance(min(log_p[2], 0.0), dof), dof)
        if fresh and raw is not ICPhase.INCOMPLETE:
            self._until -= 1
            self._recent.add(time, x)
            if quiet and self._settled.phase is ICPhase.JOINT_BAU:
                self._quiet.add(time, x)
        phase = self._settled.phase
        return ServiceTick(
            time,
            tuple(z.tolist()),
            energy,
            d2,
            (log_p[0], log_p[1], log_p[2]),
            raw,
            phase,
            classes,
            (self._moved[0], self._moved[1]),
            leads(phase, self._moved[0], self._moved[1]),
            fresh,
        )

    def _onset(self, surface: int, d2: float, limit: float, time: float) -> None:
        if d2 >= limit:
            self._below[surface] = 0
            if self._moved[surface] is None:
                self._moved[surface] = time
        elif d2 < limit:  # neither where it is unknown
            self._below[surface] += 1
            if self._below[surface] >= HYSTERESIS_TICKS:
                self._moved[surface] = None

    def evaluate(self, time: float) -> Coupling:
        """R_cross with its test, and the lead, over what the windows hold now."""
        self._until = EVALUATE_EVERY
        _, quiet = self._quiet.longest_run()
        times, recent = self._recent.longest_run()
        tested, refused = None, ""
        try:
            tested = self._test(quiet)
        except _UNFIT as error:
            refused = str(error)
        lead, lead_refused = None, ""
        try:
            energy = hamiltonian(recent, self._split)
            lead = lead_lag(energy.net, energy.ai, LAGS)
        except _UNFIT as error:
            lead_refused = str(error)
        step = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
        self.coupling = Coupling(time, len(quiet), tested, refused, len(recent), lead, lead_refused, step)
        return self.coupling

    def _test(self, rows: FloatArray) -> Tested:
        if len(rows) < LEAST_EFFECTIVE:
            raise ValueError(f"the test needs {LEAST_EFFECTIVE:.0f} effective ticks, got {len(rows)} in all: wait")
        test = independence_test(rows, self._split)
        cross = fit_cross(rows, self._split)
        names = [name for name, live in zip(self.used, cross.live, strict=True) if live]
        split = len(cross.r)
        net, ai = divmod(int(np.argmax(np.abs(cross.r))), cross.r.shape[1])
        entry = (float(values[net, ai]) for values in (cross.r, cross.low, cross.high))
        return Tested(
            cross.frobenius,
            cross.frobenius_null,
            cross.condition,
            Pair(names[net], names[split + ai], *entry),
            test.p_value,
            test.least_p,
            test.effective,
        )


def leads(phase: ICPhase, net: float | None, ai: float | None) -> Lead:
    """Who leads in a settled phase; net, ai: since when each surface has moved."""
    if phase is ICPhase.NET_LEADS:
        return Lead.NETWORK
    if phase is ICPhase.AI_LEADS:
        return Lead.AI
    if phase is not ICPhase.CASCADING or net is None or ai is None:
        return Lead.NOBODY
    return Lead.TOGETHER if net == ai else Lead.NETWORK if net < ai else Lead.AI


def _floats(columns: Sequence[FloatArray]) -> tuple[float, float, float]:
    """The first entries of three arrays."""
    net, ai, joint = (float(column[0]) for column in columns)
    return net, ai, joint
