# SPDX-License-Identifier: Apache-2.0
import pytest

from mvps.broker.identity_limit import LONGEST_WAIT_S, IdentityLimit


def test_a_vantage_inside_its_rate_never_waits() -> None:
    limit = IdentityLimit(8)
    assert [limit.charge("a", 1, 4.0, second / 4) for second in range(400)] == [0.0] * 400


def test_a_burst_after_a_pause_is_free_and_then_the_rate_holds() -> None:
    limit = IdentityLimit(8)
    assert limit.charge("a", 8, 4.0, 100.0) == 0.0
    assert limit.charge("a", 1, 4.0, 100.0) == pytest.approx(0.25)
    # Who waits as told sends at the rate from then on.
    now, sent = 100.25, 0
    while now < 200.0:
        now += limit.charge("a", 2, 4.0, now)
        sent += 2
    assert sent == pytest.approx(4 * 99.75, abs=4)


def test_streams_of_a_vantage_share_its_rate_and_others_do_not() -> None:
    limit = IdentityLimit(8)
    waits = [limit.charge("a", 8, 4.0, 0.0) for _ in range(3)]
    assert waits == [0.0, pytest.approx(2.0), pytest.approx(4.0)]
    assert limit.charge("b", 8, 4.0, 0.0) == 0.0


def test_no_wait_is_longer_than_a_sender_bears_and_debt_beyond_it_is_forgiven() -> None:
    limit = IdentityLimit(256)
    slow = 1 / 60
    assert [limit.charge("a", 256, slow, 0.0) for _ in range(5)] == [0.0, *[pytest.approx(LONGEST_WAIT_S)] * 4]
    assert limit.charge("a", 1, slow, LONGEST_WAIT_S + 60) == 0.0


def test_those_inside_their_rate_take_no_memory() -> None:
    limit = IdentityLimit(8)
    for number in range(5000):
        limit.charge(f"host-{number}", 1, 4.0, number)
    assert len(limit._due) <= 1024
    limit.charge("a", 100, 4.0, 5000.0)
    for number in range(5000):
        limit.charge(f"host-{number}", 1, 400.0, 5001.0 + number / 1000)
    assert limit.charge("a", 0, 4.0, 5006.0) > 0.0
