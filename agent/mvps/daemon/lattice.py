# SPDX-License-Identifier: Apache-2.0
"""The tick lattice t = k * T on the wall clock, without drift.

Tick k is due when CLOCK_REALTIME reaches k * T since the epoch, so that hosts with synchronised clocks tick
together and a restarted agent falls back onto the same lattice. Nothing is accumulated: each due time is
computed from k, and a late tick never delays the next one.

:class:`Lattice` is the pure core: clock readings in, ticks out. :class:`Waiter` is the I/O: a timerfd on
CLOCK_REALTIME that also returns at once when the clock is set, so a clock step is never slept through.

Causes that are counted (ours):
  late_wakeup         the tick began more than a tenth of T late, and nothing of ours was running
  late_overrun        the tick began late because the work of the tick before had not ended
  skipped_overrun     lattice points that passed while the work of a tick ran
  skipped_stall       lattice points that passed while nothing of ours ran (suspended, starved, stopped)
  skipped_clock_step  lattice points the wall clock jumped over
  repeated_clock_step lattice points that come a second time because the clock was set back
  clock_step_forward, clock_step_backward   times the wall clock was set
"""

from __future__ import annotations

import ctypes
import os
import select
import struct
import threading
import time
from dataclasses import dataclass, field

CAUSES = (
    "late_wakeup",
    "late_overrun",
    "skipped_overrun",
    "skipped_stall",
    "skipped_clock_step",
    "repeated_clock_step",
    "clock_step_forward",
    "clock_step_backward",
)

# Slewing moves the clocks apart by at most 500 us per second (kernel limit of adjtime), so 20 ms in one
# tick of up to 40 s can only be a step. Longer ticks get the slew added below.
STEP_NS = 20_000_000
SLEW_NS_PER_S = 500_000


@dataclass(frozen=True, slots=True)
class Tick:
    """One tick that is to be worked on now.

    index: k of the lattice (wall clock).
    serial: like index, but never repeats or falls when the clock is set back; what the models count.
    due_ns: k * T, CLOCK_REALTIME.
    lateness_ns: how long after ``due_ns`` the work began, 0 or more.
    elapsed_ns: monotonic time since the tick before, or T for the first.
    skipped: lattice points given up since the tick before.
    """

    index: int
    serial: int
    due_ns: int
    lateness_ns: int
    elapsed_ns: int
    skipped: int


@dataclass
class Lattice:
    """Decides which tick is due; keeps the counts by cause.

    Readings are pairs (CLOCK_REALTIME, CLOCK_BOOTTIME) in nanoseconds. Boot time is the steady clock here
    because it runs on while the host is suspended: a suspension is a stall, not a clock step.

    period_ns: T.
    counts: occurrences by cause, see the module docstring.
    """

    period_ns: int
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CAUSES, 0))
    _last: int | None = None  # newest lattice point worked on or given up
    _shift: int = 0  # serial - index
    _skipped: int = 0  # given up since the last tick
    _began: int | None = None  # steady clock, work of the last tick
    _ended: int = 0
    _steady_seen: int = 0
    _offset: int | None = None  # wall - steady

    def __post_init__(self) -> None:
        if self.period_ns <= 0:
            raise ValueError(f"tick of {self.period_ns} ns; it must be positive")

    def next_due(self, wall_ns: int) -> int:
        """Wall-clock time to wait for; in the past when a lattice point has already gone by."""
        if self._last is None:
            return -(-wall_ns // self.period_ns) * self.period_ns
        return max(wall_ns // self.period_ns, self._last + 1) * self.period_ns

    def observe(self, wall_ns: int, steady_ns: int) -> int:
        """Note both clocks; returns the clock step since the last look in ns, 0 when the clock only slewed.

        After a step the lattice is entered anew where the wall clock now is. Waiting for the old place after
        a step back would blind the host for as long as the step was; one tick back is simply waited out.
        """
        offset = wall_ns - steady_ns
        if self._offset is None:
            self._offset, self._steady_seen = offset, steady_ns
            return 0
        allowed = STEP_NS + SLEW_NS_PER_S * max(steady_ns - self._steady_seen, 0) // 1_000_000_000
        step = offset - self._offset
        self._offset, self._steady_seen = offset, steady_ns
        if abs(step) <= allowed:
            return 0
        self.counts["clock_step_forward" if step > 0 else "clock_step_backward"] += 1
        if self._last is None:
            return step
        # The point that was landed behind is given up too, however near: its tick would follow the last one
        # after an arbitrarily short time.
        passed = wall_ns // self.period_ns
        if step > 0 and passed > self._last:
            # What was due before the step, had the clock not been touched, is not the step's doing.
            already = max((wall_ns - step) // self.period_ns - self._last, 0)
            self._give_up(min(already, passed - self._last), offset - step)
            self.counts["skipped_clock_step"] += passed - self._last
            self._skipped += passed - self._last
            self._last = passed
        elif step < 0 and passed < self._last - 1:
            self.counts["repeated_clock_step"] += self._last - passed
            self._shift += self._last - passed
            self._last = passed
        return step

    def arrive(self, wall_ns: int, steady_ns: int) -> Tick | None:
        """The tick to work on at these clock readings, or None when none is due yet."""
        self.observe(wall_ns, steady_ns)
        index = wall_ns // self.period_ns
        if self._last is None:
            # A first tick in mid-period would be late through nobody's fault.
            self._last = index - (wall_ns % self.period_ns <= self.period_ns // 10)
        if index <= self._last:
            return None
        self._give_up(index - self._last - 1, wall_ns - steady_ns)
        due = index * self.period_ns
        lateness = wall_ns - due
        if lateness > self.period_ns // 10:
            overran = self._ended - steady_ns + wall_ns > due
            self.counts["late_overrun" if overran else "late_wakeup"] += 1
        elapsed = self.period_ns if self._began is None else max(steady_ns - self._began, 1)
        tick = Tick(index, index + self._shift, due, lateness, elapsed, self._skipped)
        self._last, self._began, self._skipped = index, steady_ns, 0
        return tick

    def finished(self, steady_ns: int) -> None:
        """Note when the work of the current tick ended."""
        self._ended = steady_ns

    def _give_up(self, points: int, offset: int) -> None:
        """Count the ``points`` lattice points after the last one as skipped, by what was going on."""
        assert self._last is not None
        busy = (self._ended + offset) // self.period_ns - self._last
        overrun = min(points, max(busy, 0))
        self.counts["skipped_overrun"] += overrun
        self.counts["skipped_stall"] += points - overrun
        self._skipped += points
        self._last += points


def clocks() -> tuple[int, int]:
    """(CLOCK_REALTIME, CLOCK_BOOTTIME) in nanoseconds."""
    return time.time_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME)


_TFD_NONBLOCK_CLOEXEC = os.O_NONBLOCK | os.O_CLOEXEC
_TFD_TIMER_ABSTIME = 1
_TFD_TIMER_CANCEL_ON_SET = 2


class Waiter:
    """Sleeps until a wall-clock time, a clock step, or :meth:`wake` from another thread or signal handler."""

    def __init__(self) -> None:
        self._open = threading.RLock()  # reentrant: a signal handler may interrupt its own thread in wake()
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._timer = self._libc.timerfd_create(time.CLOCK_REALTIME, _TFD_NONBLOCK_CLOEXEC)
        if self._timer < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create failed")
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._timer, select.POLLIN)
        self._poll.register(self._event, select.POLLIN)

    def wait_until(self, wall_ns: int) -> None:
        """Return when CLOCK_REALTIME reaches ``wall_ns``, when it is set, or when woken."""
        # struct itimerspec: interval 0, value absolute; the kernel returns ECANCELED from read on a step.
        spec = struct.pack("qqqq", 0, 0, wall_ns // 1_000_000_000, wall_ns % 1_000_000_000)
        flags = _TFD_TIMER_ABSTIME | _TFD_TIMER_CANCEL_ON_SET
        # A step that happened since the last call fails this one with ECANCELED, yet arms the timer.
        self._libc.timerfd_settime(self._timer, flags, spec, None)
        for descriptor, _ in self._poll.poll():
            try:
                os.read(descriptor, 8)
            except (BlockingIOError, OSError):
                continue  # cancelled by a clock step, or drained by a rearmed timer

    def wake(self) -> None:
        """End a wait, now or the next one. Safe in a signal handler, and after :meth:`close`."""
        with self._open:
            if self._event >= 0:
                os.eventfd_write(self._event, 1)

    def close(self) -> None:
        """Release the descriptors."""
        with self._open:
            os.close(self._timer)
            os.close(self._event)
            self._timer = self._event = -1
