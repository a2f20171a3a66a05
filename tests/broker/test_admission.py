# SPDX-License-Identifier: Apache-2.0
import time

import pytest
from wire_samples import NONCE, SECOND, Host, broker_epochs, message, new_host, new_site, snapshot

from mvps.broker.admission import Admission, Admitted
from mvps.trust.reasons import RejectReason
from mvps.trust.replay import Recorded, Window
from mvps.trust.seal import Lane, Purpose, Sealed, SealError


def admission(host: Host, max_vantages: int = 10) -> Admission:
    return Admission(broker_epochs(host.site), Window(), max_vantages=max_vantages)


def one(decides: Admission, sealed: Sealed, now_ns: int | None = None) -> Admitted:
    admitted = decides.judge(message(sealed), b"", now_ns or time.time_ns())
    if admitted.batch.refused is not None:
        raise SealError(*admitted.batch.refused)
    return admitted


def reason_of(admitted: Admitted) -> RejectReason | None:
    return admitted.batch.reason(0)


def test_accepted() -> None:
    host = new_host()
    sealed = host.seal()
    admitted = one(admission(host), sealed)
    assert reason_of(admitted) is None
    assert admitted.batch.accepted == [0]
    assert admitted.parcel.leaves == b"".join(sealed)
    assert admitted.lookups == []


def test_a_seal_of_another_purpose_is_refused_and_counted() -> None:
    host = new_host()
    decides = admission(host)
    with pytest.raises(SealError):
        one(decides, host.seal(purpose=Purpose.CONTROL))
    assert decides.rejected == {RejectReason.WRONG_PURPOSE: 1}


def test_another_key_is_refused_and_counted() -> None:
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
    admitted = one(decides, host.seal(lane=lane, clock=lambda: time.time_ns() - age_s * SECOND))
    assert reason_of(admitted) is reason
    assert (admitted.parcel.leaves, admitted.runs[0].entries) == (b"", b"")
    assert decides.rejected == {reason: 1}


def test_backfill_may_be_old() -> None:
    host = new_host()
    tick = time.time_ns() // SECOND - 3600
    sealed = host.seal(tick=tick, lane=Lane.BACKFILL, clock=lambda: tick * SECOND)
    assert reason_of(one(admission(host), sealed)) is None


def test_a_bad_body_spends_its_counter_and_is_stored() -> None:
    host = new_host()
    decides = admission(host)
    sealed = host.seal(b"garbage")
    admitted = one(decides, sealed)
    assert reason_of(admitted) is RejectReason.MALFORMED
    assert (admitted.parcel.leaves, len(admitted.runs[0].entries)) == (b"", 24 + 32)
    assert one(decides, sealed).batch.repeats == [0]


def test_body_of_another_vantage_is_refused() -> None:
    host = new_host()
    assert reason_of(one(admission(host), host.seal(snapshot("host-2")))) is RejectReason.HEADER_MISMATCH


def test_a_tick_faster_than_the_epochs_is_refused() -> None:
    host = new_host()
    decides = admission(host)
    body = snapshot(tick=2 * (time.time_ns() // SECOND))
    body.tick_period_ns = SECOND // 2
    body.tick_time_ns = body.tick * body.tick_period_ns
    admitted = one(decides, host.seal(body, tick=body.tick))
    assert reason_of(admitted) is RejectReason.INVALID_VALUE
    assert admitted.runs[0].entries
    assert decides.rejected == {RejectReason.INVALID_VALUE: 1}


def test_repeats_are_judged_by_the_record_and_counted_once() -> None:
    host = new_host()
    decides = admission(host)
    now = time.time_ns()
    first = host.seal()
    one(decides, first, now)

    def settled(sealed: Sealed, recorded: Recorded | None) -> tuple[bool, RejectReason | None]:
        again = one(decides, sealed, now)
        (name,) = again.lookups
        assert name[0] == "host-1"
        decides.settle(again, [recorded])
        assert again.parcel.leaves == again.runs[0].entries == b""
        return again.batch.duplicate(0), reason_of(again)

    assert settled(first, Recorded(first.digest, None)) == (True, None)
    invalid = RejectReason.INVALID_VALUE
    assert settled(first, Recorded(first.digest, invalid)) == (False, invalid)
    assert decides.rejected == {}
    host.counter.value -= 1
    other = host.seal(snapshot(tick=1), tick=1)
    assert settled(other, Recorded(first.digest, None)) == (False, RejectReason.EQUIVOCATION)
    assert settled(first, None) == (False, RejectReason.REPLAYED)
    assert decides.rejected == {RejectReason.EQUIVOCATION: 1, RejectReason.REPLAYED: 1}


def test_vantages_have_a_limit() -> None:
    host = Host(new_site())
    decides = admission(host, max_vantages=1)
    one(decides, host.seal())
    with pytest.raises(SealError, match="raise max_vantages"):
        one(decides, Host(host.site, "host-2").seal())
    assert reason_of(one(decides, host.seal())) is None


def test_what_follows_a_forged_item_spends_no_counter() -> None:
    host = new_host()
    decides = admission(host)
    first, second, last = host.seal(), host.seal(), host.seal()
    batch = decides.judge(message(first, second._replace(tag=bytes(32)), last), b"", time.time_ns()).batch
    assert [batch.sealed(index) for index in range(len(batch))] == [first]
    assert batch.refused is not None
    assert batch.refused.reason is RejectReason.BAD_SEAL
    assert decides.rejected == {RejectReason.BAD_SEAL: 1}
    assert decides.judge(message(second, last), b"", time.time_ns()).batch.accepted == [0, 1]


def test_a_failed_commit_is_forgotten() -> None:
    host = new_host()
    decides = admission(host)
    sealed = host.seal()
    assert one(decides, sealed).batch.accepted == [0]
    assert one(decides, sealed).batch.repeats == [0]
    decides.rewind()
    admitted = one(decides, sealed)
    assert admitted.batch.accepted == [0]
    decides.commit(admitted.runs)
    decides.rewind()
    again = one(decides, sealed)
    assert again.batch.repeats == [0]
    decides.commit(again.runs)  # nothing of it is new


def test_what_fails_on_the_way_spends_no_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    host = new_host()
    decides = admission(host)
    body = snapshot()
    body.baselines.add(id="44136fa355b3678a", surface="kernel", json=b"{}")
    sealed = host.seal(body)
    monkeypatch.setattr("mvps.broker.admission._baselines", lambda body: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        decides.judge(message(sealed), b"", time.time_ns())
    monkeypatch.undo()
    admitted = one(decides, sealed)
    assert admitted.batch.accepted == [0]
    assert [kept.json for kept in admitted.baselines] == [b"{}"]


@pytest.mark.parametrize("bad", [b"\xff", b"\x0a\x10"])
def test_bytes_that_are_no_batch_are_refused_before_anything_is_judged(bad: bytes) -> None:
    host = new_host()
    decides = admission(host)
    good = message(host.seal())
    with pytest.raises(ValueError, match="no Batch"):
        decides.judge(good + bad, b"", time.time_ns())
    assert decides.judge(good, b"", time.time_ns()).batch.accepted == [0]


def test_another_nonce_or_too_many_items_are_not_judged() -> None:
    host = new_host()
    decides = admission(host)
    sealed = host.seal()
    for given, nonce, count in (
        (message(sealed, nonce=bytes(16)), NONCE, 1),
        (message(sealed, nonce=b""), b"", 1),
        (message(sealed, nonce=bytes(17)), b"", 1),
        (message(*[sealed] * 257), b"", 257),
    ):
        batch = decides.judge(given, nonce, time.time_ns()).batch
        assert (len(batch), batch.count, batch.refused) == (0, count, None)
    assert decides.rejected == {}
    assert decides.judge(message(sealed), NONCE, time.time_ns()).batch.accepted == [0]
