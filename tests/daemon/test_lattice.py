# SPDX-License-Identifier: Apache-2.0
"""The lattice against simulated clocks, and the waiter against real ones."""

import itertools
import threading
import time
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvps.daemon.lattice import Lattice, Tick, Waiter, clocks

SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND


@dataclass
class Host:
    """Two clocks that only move when told to, and the agent's loop on top of them."""

    period: int
    wall: int = START
    steady: int = 5 * SECOND
    slew: float = 0.0  # extra wall-clock time per steady time
    ticks: list[Tick] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.lattice = Lattice(self.period)

    def pass_time(self, nanoseconds: int) -> None:
        self.wall += nanoseconds + round(nanoseconds * self.slew)
        self.steady += nanoseconds

    def set_clock(self, by: int) -> None:
        self.wall += by

    def turn(self, work: int = 0, wakeup_delay: int = 0) -> Tick | None:
        """One turn of the loop: look, work if due, else sleep to the next due time."""
        tick = self.lattice.arrive(self.wall, self.steady)
        if tick is None:
            self.pass_time(max(self.lattice.next_due(self.wall) - self.wall, 0) + wakeup_delay)
            return None
        self.ticks.append(tick)
        self.pass_time(work)
        self.lattice.finished(self.steady)
        return tick

    def until_tick(self, work: int = 0, wakeup_delay: int = 0) -> Tick:
        for _ in range(5):
            tick = self.turn(work, wakeup_delay)
            if tick:
                return tick
        raise AssertionError("no tick in five turns")


def _total(lattice: Lattice, prefix: str) -> int:
    return sum(count for cause, count in lattice.counts.items() if cause.startswith(prefix))


@given(
    period=st.sampled_from([50_000_000, SECOND, 60 * SECOND]),
    phase=st.integers(0, 60 * SECOND),
    work=st.lists(st.integers(0, 80), min_size=1, max_size=60),
)
def test_ticks_never_drift(period: int, phase: int, work: list[int]) -> None:
    """Whatever part of the period the work takes, each tick starts at k T to the nanosecond."""
    host = Host(period, wall=START + phase)
    host.until_tick()
    for percent in work:
        tick = host.until_tick(work=period * percent // 100)
        assert tick.due_ns == tick.index * period
        assert tick.lateness_ns == 0
    assert [t.index for t in host.ticks] == list(range(host.ticks[0].index, host.ticks[0].index + len(work) + 1))
    assert not any(host.lattice.counts.values())


@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["work", "stall", "forward", "backward"]),
            st.integers(0, 5 * SECOND),
        ),
        min_size=1,
        max_size=50,
    )
)
def test_every_lattice_point_is_worked_on_or_counted(steps: list[tuple[str, int]]) -> None:
    """index_last - index_first = ticks - 1 + skipped - repeated, and serials strictly increase."""
    host = Host(SECOND)
    host.until_tick()
    for kind, amount in steps:
        if kind == "work":
            host.until_tick(work=amount)
        elif kind == "stall":
            host.pass_time(amount)
        elif kind == "forward":
            host.set_clock(amount)
        else:
            host.set_clock(-amount)
        host.until_tick()
    serials = [t.serial for t in host.ticks]
    assert all(b > a for a, b in itertools.pairwise(serials))
    skipped, repeated = _total(host.lattice, "skipped_"), _total(host.lattice, "repeated_")
    assert host.ticks[-1].index - host.ticks[0].index == len(host.ticks) - 1 + skipped - repeated
    assert sum(t.skipped for t in host.ticks) == skipped
    assert all(t.due_ns <= t.due_ns + t.lateness_ns < t.due_ns + SECOND for t in host.ticks)


def test_the_first_tick_waits_for_a_lattice_point() -> None:
    host = Host(SECOND, wall=START + SECOND // 2)
    tick = host.until_tick()
    assert (tick.due_ns, tick.lateness_ns) == (START + SECOND, 0)
    assert tick.elapsed_ns == SECOND


def test_a_late_wakeup_is_counted_and_does_not_move_the_next_tick() -> None:
    host = Host(SECOND)
    host.until_tick()
    late = host.until_tick(wakeup_delay=SECOND // 4)
    assert late.lateness_ns == SECOND // 4
    assert late.elapsed_ns == SECOND + SECOND // 4
    assert host.until_tick().lateness_ns == 0
    assert host.lattice.counts["late_wakeup"] == 1
    assert _total(host.lattice, "") == 1


def test_an_overrun_is_worked_off_at_once_and_named_as_such() -> None:
    host = Host(SECOND)
    host.until_tick(work=SECOND + SECOND // 2)
    late = host.turn()
    assert late is not None
    assert late.lateness_ns == SECOND // 2
    assert host.lattice.counts["late_overrun"] == 1
    assert _total(host.lattice, "skipped_") == 0


def test_skips_are_told_apart_by_what_was_going_on() -> None:
    host = Host(SECOND)
    host.until_tick(work=int(3.05 * SECOND))
    assert host.until_tick().skipped == 2
    assert host.lattice.counts["skipped_overrun"] == 2
    host.pass_time(4 * SECOND)  # nothing of ours ran
    host.until_tick()
    assert host.lattice.counts["skipped_stall"] == 3
    assert host.lattice.counts["skipped_clock_step"] == 0


def test_a_forward_step_skips_what_it_jumped_over() -> None:
    host = Host(SECOND)
    first = host.until_tick()
    host.pass_time(SECOND // 2)
    host.set_clock(10 * SECOND)
    tick = host.until_tick()
    assert tick.index == first.index + 11
    assert tick.lateness_ns == 0
    assert tick.skipped == 10
    assert host.lattice.counts["skipped_clock_step"] == 10
    assert host.lattice.counts["clock_step_forward"] == 1
    assert tick.elapsed_ns == SECOND  # steady time, not the jump


def test_a_long_backward_step_repeats_indices_but_not_serials() -> None:
    host = Host(SECOND)
    last = [host.until_tick() for _ in range(5)][-1]
    host.set_clock(-3600 * SECOND)
    tick = host.until_tick()
    assert tick.index == last.index - 3599
    assert tick.serial == last.serial + 1
    assert tick.elapsed_ns == SECOND
    assert host.lattice.counts["clock_step_backward"] == 1
    assert host.lattice.counts["repeated_clock_step"] == 3600


def test_a_backward_step_of_less_than_a_tick_is_waited_out() -> None:
    host = Host(SECOND)
    last = host.until_tick()
    host.pass_time(SECOND // 4)
    host.set_clock(-SECOND // 2)
    tick = host.until_tick()
    assert tick.index == last.index + 1
    assert tick.elapsed_ns == SECOND + SECOND // 2
    assert host.lattice.counts["repeated_clock_step"] == 0


def test_slewing_is_not_a_step() -> None:
    host = Host(60 * SECOND, slew=-500e-6)  # 500 us per second, the most adjtime slews
    for _ in range(20):
        host.until_tick(work=SECOND)
    assert host.wall - host.steady < START - 5 * SECOND - 500_000_000
    assert _total(host.lattice, "clock_step") == 0


def test_a_period_must_be_positive() -> None:
    with pytest.raises(ValueError, match="positive"):
        Lattice(0)


def test_the_waiter_wakes_at_the_time_and_not_before() -> None:
    waiter = Waiter()
    due = time.time_ns() + 30_000_000
    waiter.wait_until(due)
    assert time.time_ns() >= due
    waiter.wait_until(time.time_ns() - SECOND)  # long past: returns at once
    waiter.close()


def test_the_waiter_is_woken_from_another_thread_and_before_the_wait() -> None:
    waiter = Waiter()
    far = time.time_ns() + 600 * SECOND
    timer = threading.Timer(0.02, waiter.wake)
    timer.start()
    waiter.wait_until(far)
    timer.join()
    waiter.wake()
    waiter.wait_until(far)
    assert time.time_ns() < far
    waiter.close()


def test_real_clocks_make_ticks_on_the_lattice() -> None:
    lattice, waiter = Lattice(20_000_000), Waiter()
    ticks: list[Tick] = []
    while len(ticks) < 5:
        tick = lattice.arrive(*clocks())
        if tick:
            ticks.append(tick)
            lattice.finished(clocks()[1])
        else:
            waiter.wait_until(lattice.next_due(time.time_ns()))
    waiter.close()
    assert all(t.due_ns % 20_000_000 == 0 for t in ticks)
    assert sum(t.skipped for t in ticks) + 4 == ticks[-1].index - ticks[0].index
