# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections import OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvps.testbed.cache import PrefixCache

SIZES = {"a": 3, "b": 4, "c": 5, "d": 11}


@given(st.integers(1, 20), st.lists(st.sampled_from(sorted(SIZES)), max_size=60))
def test_it_is_the_least_recently_used_that_goes(capacity: int, asked: list[str]) -> None:
    cache = PrefixCache(capacity)
    held: OrderedDict[str, int] = OrderedDict()
    hits = 0
    for name in asked:
        warm = cache.touch(name, SIZES[name])
        assert warm == (name in held)
        hits += SIZES[name] * warm
        held.pop(name, None)
        if SIZES[name] <= capacity:
            held[name] = SIZES[name]
        while sum(held.values()) > capacity:
            held.popitem(last=False)
    assert cache.hits == hits
    assert cache.queries == sum(SIZES[name] for name in asked)
    assert len(cache) == len(held)
    assert cache.usage == pytest.approx(sum(held.values()) / capacity)


def test_less_room_takes_the_oldest_at_once_and_more_room_brings_nothing_back() -> None:
    cache = PrefixCache(12)
    for name in ("a", "b", "c"):
        cache.touch(name, SIZES[name])
    cache.capacity = 9
    assert cache.evicted == 1
    cache.capacity = 100
    assert [cache.touch(name, SIZES[name]) for name in ("b", "c", "a")] == [True, True, False]


def test_what_makes_no_sense_is_refused() -> None:
    cache = PrefixCache(10)
    cache.touch("a", 3)
    with pytest.raises(ValueError, match="name it anew"):
        cache.touch("a", 4)
    with pytest.raises(ValueError, match="at least a token"):
        cache.touch("b", 0)
    with pytest.raises(ValueError, match="at least a token"):
        cache.capacity = 0
