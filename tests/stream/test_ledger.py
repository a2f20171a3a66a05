# SPDX-License-Identifier: Apache-2.0
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_samples import new_host

from mvps.stream.ledger import Ledger, State, make_item
from mvps.stream.spool import Slot
from mvps.trust.limits import MAX_BATCH_BYTES, MAX_BATCH_ITEMS, MAX_BODY, MAX_IN_FLIGHT
from mvps.trust.reasons import RejectReason
from mvps.trust.seal import Lane, Sealed, parse_header
from mvps.v1 import local_pb2

HOST = new_host()


def counter(sealed: Sealed) -> int:
    return parse_header(sealed.header).counter


def taken(ledger: Ledger, late: int = 0) -> list[Sealed]:
    return [item.sealed for item in ledger.take(late)]


def states(ledger: Ledger) -> list[State]:
    return [record.state for record in ledger.records()]


def test_states_are_those_of_the_local_api() -> None:
    ours = {f"SNAPSHOT_STATE_{state.name}": int(state) for state in State}
    assert ours | {"SNAPSHOT_STATE_UNSPECIFIED": 0} == dict(local_pb2.SnapshotState.items())


def test_a_snapshot_goes_through_its_states() -> None:
    ledger = Ledger(4)
    for _ in range(3):
        ledger.add(HOST.seal(b"x"))
    batch = taken(ledger)
    ledger.add(HOST.seal(b"y"))
    ledger.settle(Lane.LIVE, counter(batch[0]), None)
    ledger.settle(Lane.LIVE, counter(batch[1]), RejectReason.STALE)
    assert states(ledger) == [State.ACKNOWLEDGED, State.REJECTED, State.SENT, State.SEALED]
    assert ledger.totals().rejected_by_reason == {"stale": 1}


def test_the_oldest_is_dropped_and_counted() -> None:
    ledger = Ledger(2)
    sealed = [HOST.seal(b"x") for _ in range(5)]
    for item in sealed:
        ledger.add(item)
    assert ledger.totals().dropped_by_cause == {"queue_full": 3}
    assert taken(ledger) == sealed[3:]


def test_an_answer_to_a_dropped_snapshot_changes_nothing() -> None:
    ledger = Ledger(1)
    first = HOST.seal(b"x")
    ledger.add(first)
    ledger.take()
    ledger.add(HOST.seal(b"y"))
    ledger.settle(Lane.LIVE, counter(first), None)
    assert ledger.totals().acknowledged == 0
    assert ledger.totals().dropped == 1


def test_unsend_restores_the_order() -> None:
    ledger = Ledger(10)
    sealed = [HOST.seal(b"x") for _ in range(4)]
    for item in sealed[:3]:
        ledger.add(item)
    ledger.take()
    ledger.add(sealed[3])
    ledger.settle(Lane.LIVE, counter(sealed[1]), None)
    ledger.unsend()
    assert taken(ledger) == [sealed[0], sealed[2], sealed[3]]


def test_batches_keep_their_limits() -> None:
    ledger = Ledger(2 * MAX_IN_FLIGHT)
    for _ in range(MAX_IN_FLIGHT + 5):
        ledger.add(HOST.seal(b"x"))
    sizes = [len(ledger.take()) for _ in range(MAX_IN_FLIGHT // MAX_BATCH_ITEMS + 1)]
    assert sizes == [MAX_BATCH_ITEMS] * (MAX_IN_FLIGHT // MAX_BATCH_ITEMS) + [0]
    assert not ledger.waiting()

    large = Ledger(10)
    for _ in range(3):
        large.add(HOST.seal(bytes(MAX_BODY)))
    for _ in range(3):
        batch = taken(large)
        assert len(batch) == 1
        assert sum(item.size for item in batch) <= MAX_BATCH_BYTES


def test_a_counter_is_taken_once() -> None:
    ledger = Ledger(10)
    sealed = HOST.seal(b"x")
    ledger.add(sealed)
    with pytest.raises(ValueError, match="submitted before"):
        ledger.add(sealed)


def test_live_ones_leave_before_late_ones_and_late_ones_at_the_pace_that_is_asked_for() -> None:
    ledger = Ledger(10)
    sealed = [HOST.seal(b"x") for _ in range(5)]
    for item in sealed:
        ledger.add(item)
    for item in sealed[:3]:
        ledger.make_late((Lane.LIVE, counter(item)))
    for item in ledger.late(10):
        item.as_is = True
    assert taken(ledger, late=2) == [*sealed[3:], *sealed[:2]]
    assert ledger.late_in_flight() == 2
    assert not ledger.waiting()
    assert taken(ledger) == []
    assert taken(ledger, late=9) == sealed[2:3]


def test_a_late_one_leaves_only_when_it_is_ready() -> None:
    ledger = Ledger(10)
    sealed = HOST.seal(b"x")
    ledger.add(sealed)
    ledger.make_late((Lane.LIVE, counter(sealed)))
    assert taken(ledger, late=1) == []


def test_what_was_sent_too_long_ago_comes_back_late() -> None:
    ledger = Ledger(10)
    sealed = [HOST.seal(b"x", clock=lambda n=n: n) for n in (1000, 2000, 3000)]
    for item in sealed:
        ledger.add(item)
    ledger.take()
    ledger.unsend(before_ns=2000)
    assert [item.sealed for item in ledger.late(9)] == sealed[:1]
    assert ledger.late(9)[0].as_is
    assert taken(ledger) == sealed[1:]


def test_aged_names_the_old_ones_and_those_beyond_the_room() -> None:
    ledger = Ledger(10)
    sealed = [HOST.seal(b"x", clock=lambda n=n: n) for n in range(1, 7)]
    for item in sealed:
        ledger.add(item)
    assert [item.record.sealed_ns for item in ledger.aged(3, 10)] == [1, 2]
    assert [item.record.sealed_ns for item in ledger.aged(0, 2)] == [1, 2, 3, 4]


def test_a_new_seal_keeps_the_place() -> None:
    ledger = Ledger(10)
    sealed = [HOST.seal(b"x") for _ in range(4)]
    for item in sealed:
        ledger.add(item)
        ledger.make_late((Lane.LIVE, counter(item)))
    again = HOST.seal(b"x", lane=Lane.BACKFILL)
    assert ledger.renew((Lane.LIVE, counter(sealed[1])), again)
    assert [item.sealed for item in ledger.late(9)] == [sealed[0], again, *sealed[2:]]
    assert ledger.unsettled(Lane.LIVE, counter(sealed[1])) is None
    assert [item.sealed for item in ledger.unspooled(9)] == [sealed[0], again, *sealed[2:]]
    assert ledger.totals().balanced


def test_what_is_on_disk_does_not_count_towards_the_queue() -> None:
    ledger = Ledger(2)
    for n in range(4):
        sealed = HOST.seal(b"x")
        ledger.add(sealed)
        assert ledger.spooled((Lane.LIVE, counter(sealed)), Slot(0, n))
    totals = ledger.totals()
    assert (totals.queued, totals.spooled, totals.dropped) == (0, 4, 0)
    ledger.displaced({Slot(0, 1): "spool_full"})
    totals = ledger.totals()
    assert (totals.dropped_by_cause, totals.spooled, totals.balanced) == ({"spool_full": 1}, 3, True)
    ledger.take()
    ledger.displaced({Slot(0, 2): "spool_full"})
    totals = ledger.totals()
    assert (totals.queued, totals.spooled, totals.dropped, totals.balanced) == (1, 2, 1, True)
    assert ledger.unspooled(9) == []
    assert not ledger.spooled((Lane.LIVE, 1), Slot(0, 9))


def test_stopping_drops_what_is_in_memory_only() -> None:
    ledger = Ledger(9)
    first, second = HOST.seal(b"x"), HOST.seal(b"x")
    ledger.add(first)
    ledger.add(second)
    ledger.spooled((Lane.LIVE, counter(first)), Slot(0, 0))
    ledger.take()
    ledger.drop_all("stopped")
    totals = ledger.totals()
    assert (totals.spooled, totals.dropped_by_cause, totals.balanced) == (1, {"stopped": 1}, True)
    assert states(ledger) == [State.SPOOLED, State.DROPPED]


ACTIONS = [
    "add", "add", "take", "unsend", "ack", "reject", "stop", "spool", "displace", "evict", "load", "late", "park",
    "unpark", "refuse", "renew", "lost", "recover", "put_back", "drop",
]  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 20)), max_size=80), st.integers(1, 5))
def test_the_accounts_always_add_up(actions: list[tuple[str, int]], limit: int) -> None:
    """Whatever happens in whatever order, on a disk that is played by a dictionary."""
    ledger = Ledger(limit, history=3)
    produced = recovered = slots = 0
    disk: dict[Slot, Sealed] = {}  # on disk only
    keys: list[tuple[int, int]] = []
    for action, number in actions:
        key = keys[number % len(keys)] if keys else (Lane.LIVE, 0)
        item = ledger.unsettled(*key)
        match action:
            case "add":
                sealed = HOST.seal(b"x")
                keys.append((Lane.LIVE, counter(sealed)))
                ledger.add(sealed)
                produced += 1
            case "take":
                ledger.take(number)
            case "unsend":
                ledger.unsend(before_ns=number % 2 * 2**63)
            case "spool" if item is not None and item.slot is None:
                slots += 1
                assert ledger.spooled(key, Slot(0, slots))
            case "displace" if item is not None and item.slot is not None:
                ledger.displaced({item.slot: "spool_full"})
            case "evict" if item is not None and item.slot is not None:
                disk[item.slot] = item.sealed
                ledger.evict(key)
            case "load" if disk:
                slot, sealed = disk.popitem()
                ledger.load(make_item(sealed, slot))
            case "lost" if disk:
                disk.popitem()
                ledger.dropped_on_disk(Counter(spool_full=1))
            case "recover":
                ledger.recovered(1)
                recovered += 1
                slots += 1
                disk[Slot(0, slots)] = HOST.seal(b"x")
            case "late":
                ledger.make_late(key)
            case "park":
                ledger.park(key)
            case "unpark":
                ledger.unpark()
            case "refuse":
                ledger.refused(key)
            case "renew":
                again = HOST.seal(b"x", lane=Lane.BACKFILL)
                if ledger.renew(key, again):
                    keys.append((Lane.BACKFILL, counter(again)))
            case "put_back":
                ledger.put_back(key)
            case "drop":
                ledger.drop(key, "revoked")
            case "ack" | "reject":
                ledger.settle(*key, RejectReason.STALE if action == "reject" else None)
            case "stop":
                ledger.drop_all("stopped")
        totals = ledger.totals()
        assert totals.balanced
        assert (totals.produced, totals.recovered) == (produced, recovered)
        assert totals.queued <= limit + slots  # a place that is lost brings its snapshot back to memory
        assert totals.spooled >= len(disk)
        assert ledger.in_flight() >= ledger.late_in_flight() >= 0
