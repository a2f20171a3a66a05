# SPDX-License-Identifier: Apache-2.0
import time

import pytest
from wire_samples import SECOND, Host, broker_epochs, new_host, new_site, snapshot

from mvps.broker.admission import Admission
from mvps.trust.reasons import RejectReason
from mvps.trust.replay import Recorded, Window
from mvps.trust.seal import Lane, Purpose, SealError


def admission(host: Host, max_vantages: int = 10) -> Admission:
    return Admission(broker_epochs(host.site), Window(), max_vantages=max_vantages)


def test_accepted() -> None:
    host = new_host()
    verdict = admission(host).judge(host.seal(), time.time_ns())
    assert verdict.reason is None
    assert verdict.row is not None
    assert verdict.row.sealed is verdict.sealed
    assert verdict.snapshot is not None


def test_a_seal_of_another_purpose_is_raised_and_counted() -> None:
    host = new_host()
    decides = admission(host)
    with pytest.raises(SealError):
        decides.judge(host.seal(purpose=Purpose.CONTROL), time.time_ns())
    assert decides.rejected == {RejectReason.WRONG_PURPOSE: 1}


def test_another_key_is_raised_and_counted() -> None:
    host, stranger = new_host(), new_host()
    decides = admission(host)
    with pytest.raises(SealError):
        decides.judge(stranger.seal(), time.time_ns())
    assert decides.rejected == {RejectReason.UNKNOWN_KEY: 1}


@pytest.mark.parametrize(
    ("age_s", "lane", "reason"),
    [
        (301, Lane.LIVE, RejectReason.STALE),
        (-11, Lane.LIVE, RejectReason.FUTURE),
        (25 * 3600, Lane.BACKFILL, RejectReason.STALE),
    ],
)
def test_clock_window_leaves_nothing_to_store(age_s: int, lane: Lane, reason: RejectReason) -> None:
    host = new_host()
    decides = admission(host)
    sealed = host.seal(lane=lane, clock=lambda: time.time_ns() - age_s * SECOND)
    verdict = decides.judge(sealed, time.time_ns())
    assert (verdict.reason, verdict.row) == (reason, None)
    assert decides.rejected == {reason: 1}


def test_backfill_may_be_old() -> None:
    host = new_host()
    tick = time.time_ns() // SECOND - 3600
    sealed = host.seal(tick=tick, lane=Lane.BACKFILL, clock=lambda: tick * SECOND)
    assert admission(host).judge(sealed, time.time_ns()).reason is None


def test_a_bad_body_spends_its_counter_and_is_stored() -> None:
    host = new_host()
    decides = admission(host)
    verdict = decides.judge(host.seal(b"garbage"), time.time_ns())
    assert verdict.reason is RejectReason.MALFORMED
    assert verdict.row is not None
    assert verdict.row.reason is RejectReason.MALFORMED
    assert decides.judge(verdict.sealed, time.time_ns()).repeat


def test_body_of_another_vantage_is_refused() -> None:
    host = new_host()
    verdict = admission(host).judge(host.seal(snapshot("host-2")), time.time_ns())
    assert verdict.reason is RejectReason.HEADER_MISMATCH


def test_repeats_are_judged_by_the_record_and_counted_once() -> None:
    host = new_host()
    decides = admission(host)
    now = time.time_ns()
    first = decides.judge(host.seal(), now)

    again = decides.judge(first.sealed, now)
    decides.settle_repeat(again, Recorded(first.sealed.digest, None))
    assert (again.duplicate, again.reason, again.row) == (True, None, None)

    rejected = decides.judge(first.sealed, now)
    decides.settle_repeat(rejected, Recorded(first.sealed.digest, RejectReason.INVALID_VALUE))
    assert (rejected.duplicate, rejected.reason) == (False, RejectReason.INVALID_VALUE)
    assert decides.rejected == {}

    host.counter.value -= 1
    other = decides.judge(host.seal(snapshot(tick=first.header.tick - 1), tick=first.header.tick - 1), now)
    decides.settle_repeat(other, Recorded(first.sealed.digest, None))
    assert other.reason is RejectReason.EQUIVOCATION

    unknown = decides.judge(first.sealed, now)
    decides.settle_repeat(unknown, None)
    assert unknown.reason is RejectReason.REPLAYED
    assert decides.rejected == {RejectReason.EQUIVOCATION: 1, RejectReason.REPLAYED: 1}


def test_vantages_have_a_limit() -> None:
    host = Host(new_site())
    decides = admission(host, max_vantages=1)
    decides.judge(host.seal(), time.time_ns())
    with pytest.raises(SealError, match="raise max_vantages"):
        decides.judge(Host(host.site, "host-2").seal(), time.time_ns())
    assert decides.judge(host.seal(), time.time_ns()).reason is None
