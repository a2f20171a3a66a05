# SPDX-License-Identifier: Apache-2.0
import time

import pytest
from wire_samples import SECOND, Host, broker_epochs, new_host, new_site, snapshot

from mvps.broker.admission import Admission, Verdict
from mvps.trust.reasons import RejectReason
from mvps.trust.replay import Recorded, Window
from mvps.trust.seal import Lane, Purpose, Sealed, SealError


def admission(host: Host, max_vantages: int = 10) -> Admission:
    return Admission(broker_epochs(host.site), Window(), max_vantages=max_vantages)


def one(decides: Admission, sealed: Sealed, now_ns: int | None = None) -> Verdict:
    verdicts, refused = decides.judge([sealed], now_ns or time.time_ns())
    if refused is not None:
        raise refused
    return verdicts[0]


def test_accepted() -> None:
    host = new_host()
    verdict = one(admission(host), host.seal())
    assert verdict.reason is None
    assert verdict.row is not None
    assert verdict.row.sealed is verdict.sealed
    assert verdict.snapshot is not None


def test_a_seal_of_another_purpose_is_raised_and_counted() -> None:
    host = new_host()
    decides = admission(host)
    with pytest.raises(SealError):
        one(decides, host.seal(purpose=Purpose.CONTROL))
    assert decides.rejected == {RejectReason.WRONG_PURPOSE: 1}


def test_another_key_is_raised_and_counted() -> None:
    host, stranger = new_host(), new_host()
    decides = admission(host)
    with pytest.raises(SealError):
        one(decides, stranger.seal())
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
    verdict = one(decides, sealed)
    assert (verdict.reason, verdict.row) == (reason, None)
    assert decides.rejected == {reason: 1}


def test_backfill_may_be_old() -> None:
    host = new_host()
    tick = time.time_ns() // SECOND - 3600
    sealed = host.seal(tick=tick, lane=Lane.BACKFILL, clock=lambda: tick * SECOND)
    assert one(admission(host), sealed).reason is None


def test_a_bad_body_spends_its_counter_and_is_stored() -> None:
    host = new_host()
    decides = admission(host)
    verdict = one(decides, host.seal(b"garbage"))
    assert verdict.reason is RejectReason.MALFORMED
    assert verdict.row is not None
    assert verdict.row.reason is RejectReason.MALFORMED
    assert one(decides, verdict.sealed).repeat


def test_body_of_another_vantage_is_refused() -> None:
    host = new_host()
    verdict = one(admission(host), host.seal(snapshot("host-2")))
    assert verdict.reason is RejectReason.HEADER_MISMATCH


def test_repeats_are_judged_by_the_record_and_counted_once() -> None:
    host = new_host()
    decides = admission(host)
    now = time.time_ns()
    first = one(decides, host.seal(), now)

    again = one(decides, first.sealed, now)
    decides.settle_repeat(again, Recorded(first.sealed.digest, None))
    assert (again.duplicate, again.reason, again.row) == (True, None, None)

    rejected = one(decides, first.sealed, now)
    decides.settle_repeat(rejected, Recorded(first.sealed.digest, RejectReason.INVALID_VALUE))
    assert (rejected.duplicate, rejected.reason) == (False, RejectReason.INVALID_VALUE)
    assert decides.rejected == {}

    host.counter.value -= 1
    other = one(decides, host.seal(snapshot(tick=first.header.tick - 1), tick=first.header.tick - 1), now)
    decides.settle_repeat(other, Recorded(first.sealed.digest, None))
    assert other.reason is RejectReason.EQUIVOCATION

    unknown = one(decides, first.sealed, now)
    decides.settle_repeat(unknown, None)
    assert unknown.reason is RejectReason.REPLAYED
    assert decides.rejected == {RejectReason.EQUIVOCATION: 1, RejectReason.REPLAYED: 1}


def test_vantages_have_a_limit() -> None:
    host = Host(new_site())
    decides = admission(host, max_vantages=1)
    one(decides, host.seal())
    with pytest.raises(SealError, match="raise max_vantages"):
        one(decides, Host(host.site, "host-2").seal())
    assert one(decides, host.seal()).reason is None


def test_what_follows_a_forged_item_spends_no_counter() -> None:
    host = new_host()
    decides = admission(host)
    first, second, last = host.seal(), host.seal(), host.seal()
    verdicts, refused = decides.judge([first, second._replace(tag=bytes(32)), last], time.time_ns())
    assert [verdict.sealed for verdict in verdicts] == [first]
    assert refused is not None
    assert refused.reason is RejectReason.BAD_SEAL
    assert decides.rejected == {RejectReason.BAD_SEAL: 1}
    verdicts, refused = decides.judge([second, last], time.time_ns())
    assert [verdict.reason for verdict in verdicts] == [None, None]


def test_a_tick_faster_than_the_epochs_is_refused() -> None:
    host = new_host()
    body = snapshot(tick=2 * (time.time_ns() // SECOND))
    body.tick_period_ns = SECOND // 2
    body.tick_time_ns = body.tick * body.tick_period_ns
    verdict = one(admission(host), host.seal(body, tick=body.tick))
    assert verdict.reason is RejectReason.INVALID_VALUE
    assert verdict.row is not None


def test_a_failed_commit_is_forgotten() -> None:
    host = new_host()
    decides = admission(host)
    sealed = host.seal()
    assert one(decides, sealed).row is not None
    assert one(decides, sealed).repeat
    decides.rewind()
    verdict = one(decides, sealed)
    assert verdict.row is not None
    decides.commit((host.vantage_id, host.epoch_id, Lane.LIVE), verdict.header.counter)
    decides.rewind()
    assert one(decides, sealed).repeat


def test_what_fails_on_the_way_spends_no_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    host = new_host()
    decides = admission(host)
    sealed = host.seal()
    monkeypatch.setattr(Admission, "_mismatch", lambda *_: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        decides.judge([sealed], time.time_ns())
    monkeypatch.undo()
    assert one(decides, sealed).row is not None
