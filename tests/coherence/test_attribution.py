# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvps.coherence.attribution import CONSEQUENCES, REACH, lead

NAMES = ["mm", "blk", "sock", "sched", "irq", "path", "path_tcp", "path_fib"]
WATCH = dict.fromkeys(NAMES, 5.0)


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({"mm": 0.1, "blk": 4.9}, ""),
        ({"mm": 6.0, "blk": 50.0, "irq": 400.0}, "mm"),
        ({"mm": 6.0, "blk": 400.0, "irq": 30.0}, "blk"),  # too little reclaim for that much disk
        ({"mm": 4.0, "blk": 400.0, "irq": 30.0}, "blk"),
        ({"irq": 40.0}, "irq"),
        ({"path_fib": 100.0, "path": 900.0, "sock": 50.0}, "path_fib"),
        ({"path_fib": 0.0, "path": 400.0, "sock": 50.0}, "sock"),
        ({"path": 30.0, "path_tcp": 20.0}, "path"),
        ({"sched": 50.0, "sock": 60.0}, "sched"),
        ({"sched": 6.0, "sock": 480.0, "irq": 30.0}, "sock"),  # a choked link on a slightly busy host
        ({"mm": 10.0, "sock": 90.0}, "sock"),  # neither explains the other: the farther one
    ],
)
def test_table(own: dict[str, float], expected: str) -> None:
    assert lead(own, WATCH) == expected


def test_surfaces_are_compared_in_units_of_their_own_cut_off() -> None:
    assert lead({"mm": 12.0, "path": 6.0}, {"mm": 10.0, "path": 1.0}) == "path"


@given(st.dictionaries(st.sampled_from(NAMES), st.floats(0, 1e6), max_size=8))
def test_the_lead_moved_and_is_explained_by_nobody(own: dict[str, float]) -> None:
    found = lead(own, WATCH)
    moved = {name for name, z in own.items() if z >= 5.0}
    assert (found == "") == (not moved)
    if found:
        assert found in moved
        assert not any(
            found in CONSEQUENCES.get(cause, ()) and own[found] <= REACH * own[cause] for cause in moved - {found}
        )


def test_consequences_have_no_cycle() -> None:
    def reach(name: str, seen: frozenset[str]) -> None:
        assert name not in seen, f"{name} explains itself"
        for effect in CONSEQUENCES.get(name, ()):
            reach(effect, seen | {name})

    for name in CONSEQUENCES:
        reach(name, frozenset())
