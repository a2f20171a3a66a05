# SPDX-License-Identifier: Apache-2.0
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_samples import new_host

from mvps.stream.ledger import Ledger, State
from mvps.trust.limits import MAX_BATCH_BYTES, MAX_BATCH_ITEMS, MAX_BODY, MAX_IN_FLIGHT
from mvps.trust.reasons import RejectReason
from mvps.trust.seal import Lane, Sealed, parse_header
from mvps.v1 import local_pb2

HOST = new_host()


def counter(sealed: Sealed) -> int:
    return parse_header(sealed.header).counter


def states(ledger: Ledger) -> list[State]:
    return [record.state for record in ledger.records()]


def test_states_are_those_of_the_local_api() -> None:
    ours = {f"SNAPSHOT_STATE_{state.name}": int(state) for state in State}
    assert ours | {"SNAPSHOT_STATE_UNSPECIFIED": 0} == dict(local_pb2.SnapshotState.items())


def test_a_snapshot_goes_through_its_states() -> None:
    ledger = Ledger(4)
    for _ in range(3):
        ledger.add(HOST.seal(b"x"))
    batch = ledger.take()
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
    assert ledger.take() == sealed[3:]


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
    assert ledger.take() == [sealed[0], sealed[2], sealed[3]]


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
        batch = large.take()
        assert len(batch) == 1
        assert sum(item.size for item in batch) <= MAX_BATCH_BYTES


def test_a_counter_is_taken_once() -> None:
    ledger = Ledger(10)
    sealed = HOST.seal(b"x")
    ledger.add(sealed)
    with pytest.raises(ValueError, match="submitted before"):
        ledger.add(sealed)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(["add", "add", "take", "unsend", "ack", "reject", "stop"]), max_size=60), st.integers(1, 5)
)
def test_the_accounts_always_add_up(actions: list[str], limit: int) -> None:
    ledger = Ledger(limit, history=3)
    known: list[Sealed] = []
    for action in actions:
        if action == "add":
            known.append(HOST.seal(b"x"))
            ledger.add(known[-1])
        elif action == "take":
            ledger.take()
        elif action == "unsend":
            ledger.unsend()
        elif action == "stop":
            ledger.drop_all("stopped")
        elif known:
            reason = RejectReason.STALE if action == "reject" else None
            ledger.settle(Lane.LIVE, counter(known[len(known) // 2]), reason)
        totals = ledger.totals()
        assert totals.produced == totals.acknowledged + totals.rejected + totals.queued + totals.dropped
        assert totals.produced == len(known)
        assert totals.queued <= limit
