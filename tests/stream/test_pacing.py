# SPDX-License-Identifier: Apache-2.0
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvps.stream.pacing import CHUNK_S, Pacer


def test_it_begins_with_one_chunk_and_gives_another_when_it_is_due() -> None:
    pacer = Pacer(100.0, 5.0)
    assert pacer.allow(5.0) == 10
    pacer.spend(10)
    assert pacer.allow(5.0) == 0
    assert pacer.wait_s(5.0) == pytest.approx(CHUNK_S)
    assert pacer.allow(5.05) == 5
    assert pacer.wait_s(5.05) == pytest.approx(CHUNK_S / 2)
    assert pacer.allow(5.0 + CHUNK_S) == 10


def test_a_pause_saves_nothing_up() -> None:
    pacer = Pacer(100.0)
    assert pacer.allow(3600.0) == 10


def test_a_slow_rate_still_gives_whole_items() -> None:
    pacer = Pacer(0.5)
    assert pacer.allow(0.0) == 1
    pacer.spend(1)
    assert pacer.wait_s(0.0) == pytest.approx(2.0)
    assert [pacer.allow(t) for t in (1.0, 1.9, 2.0)] == [0, 0, 1]


def test_an_older_reading_of_the_clock_takes_nothing_back() -> None:
    pacer = Pacer(10.0)
    pacer.spend(pacer.allow(0.0))
    assert pacer.allow(0.1) == 1
    assert pacer.allow(0.05) == 1
    assert pacer.allow(0.1) == 1


@pytest.mark.parametrize("rate", [0.0, -1.0])
def test_a_rate_that_lets_nothing_through_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="lets nothing through"):
        Pacer(rate)


@given(st.floats(0.1, 1e5), st.lists(st.floats(0.0, 0.5), max_size=200))
def test_it_never_exceeds_its_rate_by_more_than_a_chunk(rate: float, pauses: list[float]) -> None:
    pacer, now, sent = Pacer(rate), 0.0, 0
    for pause in pauses:
        now += pause
        allowed = pacer.allow(now)
        pacer.spend(allowed)
        sent += allowed
        assert sent <= rate * now + max(rate * CHUNK_S, 1.0) + 1e-6
