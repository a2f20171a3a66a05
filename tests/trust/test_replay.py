# SPDX-License-Identifier: Apache-2.0
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvps.trust.reasons import RejectReason
from mvps.trust.replay import Freshness, Recorded, ReplayGuard, Window, judge_repeat
from mvps.trust.seal import Lane, SealHeader

SECOND = 10**9
NOW = 1_000_000 * SECOND
WINDOW = Window(live_past_ns=300 * SECOND, backfill_past_ns=3600 * SECOND, future_ns=10 * SECOND)


def header(counter: int, *, age: int = 0, lane: Lane = Lane.LIVE, vantage: str = "a", epoch: int = 0) -> SealHeader:
    return SealHeader(1, 1, lane, 0, epoch, counter, 0, NOW - age, b"", vantage)


def test_counters_must_rise_strictly_and_may_have_gaps() -> None:
    guard = ReplayGuard(WINDOW)
    verdicts = [guard.admit(header(counter), NOW) for counter in (5, 6, 9, 9, 8, 5, 10)]
    fresh, seen = Freshness.FRESH, Freshness.SEEN
    assert verdicts == [fresh, fresh, fresh, seen, seen, seen, fresh]


def test_vantages_epochs_and_lanes_count_apart() -> None:
    guard = ReplayGuard(WINDOW)
    assert guard.admit(header(5), NOW) is Freshness.FRESH
    for other in (header(5, vantage="b"), header(5, epoch=1), header(5, lane=Lane.BACKFILL)):
        assert guard.admit(other, NOW) is Freshness.FRESH


@pytest.mark.parametrize(
    ("age", "lane", "verdict"),
    [
        (300 * SECOND, Lane.LIVE, Freshness.FRESH),
        (300 * SECOND + 1, Lane.LIVE, Freshness.STALE),
        (-10 * SECOND, Lane.LIVE, Freshness.FRESH),
        (-10 * SECOND - 1, Lane.LIVE, Freshness.FUTURE),
        (301 * SECOND, Lane.BACKFILL, Freshness.FRESH),
        (3601 * SECOND, Lane.BACKFILL, Freshness.STALE),
        (-11 * SECOND, Lane.BACKFILL, Freshness.FUTURE),
    ],
)
def test_time_window(age: int, lane: Lane, verdict: Freshness) -> None:
    guard = ReplayGuard(WINDOW)
    assert guard.admit(header(1, age=age, lane=lane), NOW) is verdict


def test_out_of_window_spends_no_counter() -> None:
    guard = ReplayGuard(WINDOW)
    assert guard.admit(header(9, age=-60 * SECOND), NOW) is Freshness.FUTURE
    assert guard.admit(header(5), NOW) is Freshness.FRESH


def test_an_old_duplicate_is_seen_and_not_stale() -> None:
    guard = ReplayGuard(WINDOW, {("a", 0, Lane.LIVE): 5})
    assert guard.admit(header(5, age=10_000 * SECOND), NOW) is Freshness.SEEN


def test_rewind_takes_back_what_was_not_committed() -> None:
    guard = ReplayGuard(WINDOW)
    for counter in (1, 2, 3):
        guard.admit(header(counter), NOW)
    guard.commit(("a", 0, Lane.LIVE), 2)
    guard.rewind()
    assert [guard.admit(header(counter), NOW) for counter in (2, 3)] == [Freshness.SEEN, Freshness.FRESH]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.sampled_from(["admit", "commit", "rewind"])), max_size=40))
def test_a_committed_counter_is_never_fresh_again(actions: list[tuple[int, str]]) -> None:
    guard = ReplayGuard(WINDOW)
    admitted: list[int] = []
    committed: set[int] = set()
    for counter, action in actions:
        if action == "admit":
            if guard.admit(header(counter), NOW) is Freshness.FRESH:
                assert counter not in committed
                admitted.append(counter)
        elif action == "commit" and admitted:
            guard.commit(("a", 0, Lane.LIVE), admitted[0])
            committed.add(admitted.pop(0))
        elif action == "rewind":
            guard.rewind()
            admitted.clear()


@pytest.mark.parametrize(
    ("recorded", "answer"),
    [
        (None, RejectReason.REPLAYED),
        (Recorded(b"d", None), None),
        (Recorded(b"d", RejectReason.MALFORMED), RejectReason.MALFORMED),
        (Recorded(b"e", None), RejectReason.EQUIVOCATION),
        (Recorded(b"e", RejectReason.MALFORMED), RejectReason.EQUIVOCATION),
    ],
)
def test_repeats(recorded: Recorded | None, answer: RejectReason | None) -> None:
    assert judge_repeat(b"d", recorded) is answer
