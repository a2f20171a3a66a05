# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections import deque

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mvps.robust.disagreement import AGE_NS, IN_A_ROW, Disagreement

SECOND = 10**9
HOSTS = tuple(f"host-{number}" for number in range(8))


def step(state: Disagreement, tick: int, said: dict[str, tuple[float, float]]) -> frozenset[str]:
    """One tick in which hosts said (checked, violated)."""
    host = np.array([HOSTS.index(name) for name in said], dtype=np.intp)
    checked, violated = (np.array([one[part] for one in said.values()]) for part in (0, 1))
    return state.step(tick * SECOND, HOSTS, host, checked, violated)


FAILS, HOLDS, NOTHING = (3.0, 1.0), (3.0, 0.0), (0.0, 0.0)


def test_it_takes_failures_in_a_row_and_one_tick_in_which_all_hold_ends_it():
    state = Disagreement(1)
    found = [bool(step(state, tick, {"host-1": FAILS})) for tick in range(1, IN_A_ROW + 3)]
    assert found == [False] * (IN_A_ROW - 1) + [True] * 3
    assert step(state, 20, {"host-1": HOLDS}) == frozenset()
    found = [bool(step(state, 20 + tick, {"host-1": FAILS})) for tick in range(1, IN_A_ROW + 1)]
    assert found == [False] * (IN_A_ROW - 1) + [True]


def test_a_tick_without_checks_or_without_the_host_says_nothing():
    state = Disagreement(1)
    for tick in range(1, IN_A_ROW):
        step(state, 3 * tick, {"host-1": FAILS})
        assert step(state, 3 * tick + 1, {"host-1": NOTHING, "host-2": HOLDS}) == frozenset()
        assert step(state, 3 * tick + 2, {"host-2": HOLDS}) == frozenset()
    assert step(state, 100, {"host-1": FAILS}) == {"host-1"}
    assert step(state, 101, {"host-2": HOLDS}) == {"host-1"}


def test_what_is_long_past_is_forgotten():
    state = Disagreement(1)
    for tick in range(1, IN_A_ROW + 1):
        last = step(state, tick, {"host-1": FAILS})
    assert last == {"host-1"}
    age = AGE_NS // SECOND
    assert step(state, IN_A_ROW + age - 1, {"host-2": HOLDS}) == {"host-1"}
    assert step(state, IN_A_ROW + age, {"host-2": HOLDS}) == frozenset()
    assert step(state, IN_A_ROW + age + 1, {"host-1": FAILS}) == frozenset()


def test_more_than_f_at_once_are_a_wrong_check_and_no_liars():
    state = Disagreement(2)
    for tick in range(1, IN_A_ROW + 1):
        two = step(state, tick, dict.fromkeys(HOSTS[:2], FAILS))
    assert two == set(HOSTS[:2])
    for tick in range(10, 10 + IN_A_ROW):
        three = step(state, tick, dict.fromkeys(HOSTS[:3], FAILS))
    assert three == frozenset()
    assert step(state, 30, {HOSTS[2]: HOLDS}) == set(HOSTS[:2])
    assert Disagreement(0).step(SECOND, HOSTS, np.array([0]), np.ones(1), np.ones(1)) == frozenset()


OUTCOMES = st.sampled_from([FAILS, HOLDS, NOTHING, None])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(OUTCOMES, min_size=3, max_size=3), max_size=40))
def test_against_its_definition(ticks: list[list[tuple[float, float] | None]]):
    """The last checked ticks of every host, all of them kept and looked at anew."""
    state = Disagreement(3)
    past: list[deque[bool]] = [deque(maxlen=IN_A_ROW) for _ in range(3)]
    for tick, outcomes in enumerate(ticks, 1):
        said = {HOSTS[at]: one for at, one in enumerate(outcomes) if one is not None}
        found = step(state, tick, said)
        for seen, one in zip(past, outcomes, strict=True):
            if one is not None and one[0]:
                seen.append(one[1] > 0)
        assert found == {HOSTS[at] for at, seen in enumerate(past) if len(seen) == IN_A_ROW and all(seen)}
