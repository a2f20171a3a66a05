# SPDX-License-Identifier: Apache-2.0
"""Which snapshot leaves when, under which seal, and what an answer does to it: real seals, real disk, no network."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from wire_samples import Host, new_site

from mvps.daemon.uplink import HostSealer
from mvps.stream import outbox as module
from mvps.stream import spool as spool_module
from mvps.stream.ledger import Ledger, State
from mvps.stream.outbox import BLAMES, LATE_IN_FLIGHT, LATE_PER_BATCH, LIVE_AGE_S, Outbox
from mvps.stream.spool import Spool
from mvps.trust.counter import Counter
from mvps.trust.limits import MAX_MANIFESTS
from mvps.trust.manifest import Vantage, admit, revoke, succeed
from mvps.trust.reasons import RejectReason
from mvps.trust.seal import Lane, Sealed, parse_header

SECOND = 10**9
OLD_NS = int(2 * LIVE_AGE_S * SECOND)


class Agent:
    """What an agent has between its tick and the wire. ``restart`` leaves only what is on disk, as kill -9 does."""

    def __init__(self, folder: Path, *, spool: bool = True, rate: float = 10_000.0) -> None:
        self.folder = folder
        self.site = new_site(folder / "site")
        self.spooled = spool
        self.rate = rate
        self.host = Host(self.site)
        self.spool: Spool | None = None
        self.begin()

    def begin(self) -> None:
        self.counter = Counter(self.folder / "counter")
        self.host.counter = self.counter.next  # type: ignore[assignment]
        self.ledger = Ledger(10_000)
        self.spool = Spool(self.folder / "spool", max_bytes=1 << 24, max_age_s=86400) if self.spooled else None
        sealer = HostSealer(self.host.epochs, "host-1", self.counter)
        self.outbox = Outbox(self.ledger, self.spool, sealer, self.rate)
        self.outbox.recover()

    def restart(self) -> None:
        self.close()
        self.begin()

    def close(self) -> None:
        self.counter.close()
        if self.spool is not None:
            self.spool.close()

    def seal(self, age_ns: int = 0) -> Sealed:
        sealed = self.host.seal(os.urandom(50), clock=lambda: time.time_ns() - age_ns)
        self.ledger.add(sealed)
        self.outbox.absorb()
        return sealed

    def take(self) -> list[Sealed]:
        """Everything that leaves before the next answer."""
        batch: list[Sealed] = []
        while taken := self.outbox.take():
            batch += [item.sealed for item in taken]
            self.outbox._pacer = module.Pacer(self.rate, time.monotonic())
        return batch

    def answer(self, sealed: Sealed, reason: RejectReason | None = None) -> module.Settled:
        header = parse_header(sealed.header)
        return self.outbox.answered(header.lane, header.counter, sealed.digest, reason)

    def totals(self) -> tuple[int, int, int]:
        """(spooled, queued, dropped), after a look at the accounts."""
        totals = self.ledger.totals()
        assert totals.balanced
        if self.spool is not None:
            assert totals.spooled == self.spool.count
        return totals.spooled, totals.queued, totals.dropped


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Agent]]:
    made: list[Agent] = []

    def make(**options: object) -> Agent:
        made.append(Agent(tmp_path, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for one in made:
        one.close()


def lane(sealed: Sealed) -> int:
    return parse_header(sealed.header).lane


def copy_of(old: Sealed, new: Sealed) -> bool:
    """The same snapshot, for the backfill lane."""
    before, after = parse_header(old.header), parse_header(new.header)
    same = (old.body, before.tick, before.time_ns, before.vantage_id) == (
        new.body, after.tick, after.time_ns, after.vantage_id,
    )  # fmt: skip
    return same and after.lane == Lane.BACKFILL


def copies(old: list[Sealed], new: list[Sealed]) -> bool:
    return len(old) == len(new) and all(map(copy_of, old, new))


def test_young_ones_leave_live_in_order(make: Callable[..., Agent]) -> None:
    agent = make()
    sealed = [agent.seal() for _ in range(5)]
    assert agent.totals() == (5, 0, 0)
    assert agent.take() == sealed
    for one in sealed:
        agent.answer(one)
    assert agent.totals() == (0, 0, 0)


def test_old_ones_leave_as_backfill_behind_the_live_ones(make: Callable[..., Agent]) -> None:
    agent = make()
    old = [agent.seal(OLD_NS) for _ in range(3)]
    young = agent.seal()
    sent = agent.take()
    assert sent[0] == young
    assert copies(old, sent[1:])
    assert [parse_header(one.header).counter for one in sent[1:]] == sorted(
        parse_header(one.header).counter for one in sent[1:]
    )
    assert agent.outbox.backfilled == 3
    for one in sent:
        agent.answer(one)
    assert agent.totals() == (0, 0, 0)


@pytest.mark.parametrize("spool", [True, False])
def test_a_backlog_leaves_at_its_pace_and_leaves_room_for_the_live_ones(
    make: Callable[..., Agent], spool: bool
) -> None:
    agent = make(rate=50.0, spool=spool)
    for _ in range(100):
        agent.seal(OLD_NS)
    assert len(agent.outbox.take()) == 5  # a tenth of a second's worth
    assert agent.outbox.take() == []
    assert 0 < (agent.outbox.wait_s() or 0) <= 0.1
    young = agent.seal()
    assert [item.sealed for item in agent.outbox.take()] == [young]


def test_no_more_late_ones_are_under_way_than_a_live_one_can_wait_for(make: Callable[..., Agent]) -> None:
    agent = make(rate=100_000.0)
    for _ in range(2 * LATE_IN_FLIGHT):
        agent.seal(OLD_NS)
    sizes = []
    while batch := agent.outbox.take():
        sizes.append(len(batch))
        agent.outbox._pacer = module.Pacer(agent.rate, time.monotonic())
    assert max(sizes) <= LATE_PER_BATCH
    assert sum(sizes) == LATE_IN_FLIGHT
    assert agent.outbox.wait_s() is None  # only an answer changes that


# ---- what an earlier run left


def test_what_was_never_sent_is_sealed_again_at_once(make: Callable[..., Agent]) -> None:
    agent = make()
    sealed = [agent.seal() for _ in range(3)]
    agent.restart()
    assert agent.ledger.totals().recovered == 3
    assert copies(sealed, agent.take())


def test_what_may_have_been_sent_is_sent_as_it_is(make: Callable[..., Agent]) -> None:
    agent = make()
    sealed = [agent.seal() for _ in range(3)]
    assert agent.take() == sealed
    agent.restart()
    assert agent.take() == sealed
    agent.answer(sealed[0])  # it was there
    assert agent.answer(sealed[1], RejectReason.REPLAYED) == module.Settled(renewed=True)
    assert agent.answer(sealed[2], RejectReason.STALE) == module.Settled(renewed=True)
    again = agent.take()
    assert copies(sealed[1:], again)
    for one in again:
        agent.answer(one)
    assert agent.totals() == (0, 0, 0)


def test_what_is_handed_over_while_the_stream_is_up_counts_as_sent(make: Callable[..., Agent]) -> None:
    agent = make()
    agent.outbox.streaming = True
    sealed = agent.seal()
    agent.restart()
    assert agent.take() == [sealed]


def test_a_copy_is_the_same_octets_after_a_restart(make: Callable[..., Agent]) -> None:
    """Killed between sending a copy and its answer: another copy could be stored a second time."""
    agent = make()
    agent.seal(OLD_NS)
    (copy,) = agent.take()
    for _ in range(3):
        agent.restart()
        assert agent.take() == [copy]
    # The broker knows another generation's counters only: sealed once more, and no more than so often.
    renewed = 0
    while agent.answer(copy, RejectReason.REPLAYED).renewed:
        renewed += 1
        (copy,) = agent.take()
    assert 1 <= renewed <= 3
    assert agent.ledger.totals().rejected_by_reason == {"replayed": 1}
    assert agent.totals() == (0, 0, 0)


def test_settled_ones_stay_settled(make: Callable[..., Agent]) -> None:
    agent = make()
    sealed = [agent.seal() for _ in range(3)]
    agent.take()
    agent.answer(sealed[0])
    agent.answer(sealed[2], RejectReason.MALFORMED)
    agent.restart()
    assert agent.take() == sealed[1:2]


def test_a_first_answer_of_replayed_is_for_good(make: Callable[..., Agent]) -> None:
    """Sent once and in order: somebody else uses this name, and the status has to show it."""
    agent = make()
    sealed = agent.seal()
    agent.take()
    assert agent.answer(sealed, RejectReason.REPLAYED) == module.Settled()
    assert agent.ledger.totals().rejected_by_reason == {"replayed": 1}


def test_without_a_sealer_too_late_is_too_late(make: Callable[..., Agent]) -> None:
    agent = make(spool=False)
    agent.outbox = Outbox(agent.ledger, None, None, agent.rate)
    sealed = agent.seal(OLD_NS)
    assert agent.take() == [sealed]
    agent.answer(sealed, RejectReason.STALE)
    assert agent.ledger.totals().rejected_by_reason == {"stale": 1}


def test_an_answer_to_something_else_settles_nothing(make: Callable[..., Agent]) -> None:
    agent = make()
    sealed = agent.seal()
    agent.take()
    header = parse_header(sealed.header)
    assert agent.outbox.answered(header.lane, header.counter, bytes(32), None) == module.Settled(forged=True)
    assert agent.outbox.answered(header.lane, header.counter + 1, sealed.digest, None) == module.Settled()
    assert agent.totals() == (1, 0, 0)


# ---- streams that end


def test_what_was_unanswered_goes_again_in_order_and_as_it_is(make: Callable[..., Agent]) -> None:
    agent = make()
    sealed = [agent.seal() for _ in range(4)]
    agent.take()
    agent.answer(sealed[1])
    agent.outbox.ended()
    more = agent.seal()
    assert agent.take() == [sealed[0], *sealed[2:], more]
    assert agent.answer(sealed[0], RejectReason.REPLAYED).renewed  # it was resent: no sign of somebody else


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Added to the monotonic clock as the outbox reads it."""
    ahead, real = [0.0], time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: real() + ahead[0])
    return ahead


def test_an_epoch_the_broker_forgot_does_not_hold_up_the_rest(make: Callable[..., Agent], clock: list[float]) -> None:
    agent = make()
    lost = [agent.seal(OLD_NS) for _ in range(3)]
    agent.host.epochs.add(second := succeed(agent.site.manifest, int(time.time()) - 30))
    agent.host.epoch_id = second.epoch_id
    late = agent.seal(25 * SECOND)  # under the second epoch

    for _ in range(BLAMES):
        live = agent.seal()
        assert live in agent.take()[:2]
        agent.answer(live)
        agent.answer(late)
        first = agent.ledger.first_in_flight()
        assert first is not None
        assert copy_of(lost[0], first.sealed)
        assert agent.outbox.blamed()
        agent.outbox.ended()
    for _ in range(3):
        live = agent.seal()
        assert agent.take() == [live]  # nothing of the first epoch any more
        agent.answer(live)
        assert not agent.outbox.pending()
    assert agent.totals() == (3, 0, 0)

    clock[0] = module.FIRST_RETRY_S + 1
    assert agent.outbox.keep()
    (scout,) = agent.take()
    assert copy_of(lost[0], scout)
    assert agent.outbox.blamed()
    agent.outbox.ended()
    clock[0] += module.FIRST_RETRY_S + 1
    assert not agent.outbox.keep()  # twice as long now
    clock[0] += module.FIRST_RETRY_S + 1
    assert agent.outbox.keep()
    (scout,) = agent.take()
    agent.answer(scout)  # the operator gave the broker its manifest back
    assert copies(lost[1:], agent.take())
    assert agent.totals() == (2, 0, 0)


@pytest.mark.parametrize("late", [False, True])
def test_a_refusal_of_the_whole_sender_sets_nothing_aside(make: Callable[..., Agent], late: bool) -> None:
    agent = make()
    if late:  # everything live is answered, and what is late is of the same epoch
        agent.seal(OLD_NS)
        for _ in range(3 * BLAMES):
            live = agent.seal()
            assert len(agent.take()) == 2
            agent.answer(live)
            assert not agent.outbox.blamed()
            agent.outbox.ended()
        assert agent.totals() == (1, 0, 0)
        return
    for _ in range(3 * BLAMES):
        agent.seal()
        agent.take()
        assert not agent.outbox.blamed()
        agent.outbox.ended()
    assert len(agent.take()) == 3 * BLAMES
    assert agent.totals() == (3 * BLAMES, 0, 0)


# ---- what the operator decides


def test_under_a_revoked_key_old_ones_are_dropped_and_counted(make: Callable[..., Agent], tmp_path: Path) -> None:
    agent = make()
    agent.seal(OLD_NS)
    agent.restart()
    spare = Vantage("spare", Host(new_site(tmp_path / "other", "spare"), "spare").key.public)
    successor = succeed(agent.site.manifest, int(time.time()) + 3600)
    agent.host.epochs.add(revoke(admit(successor, spare), "host-1"))
    assert agent.take() == []
    assert agent.ledger.totals().dropped_by_cause == {"revoked": 1}
    assert agent.totals() == (0, 0, 1)


def test_under_an_epoch_that_is_forgotten_they_are_dropped_and_counted(make: Callable[..., Agent]) -> None:
    agent = make()
    agent.seal(OLD_NS)
    agent.restart()
    manifest, now = agent.site.manifest, int(time.time())
    for n in range(MAX_MANIFESTS):
        manifest = succeed(manifest, now + n)
        agent.host.epochs.add(manifest)
    assert agent.site.manifest not in agent.host.epochs.manifests
    assert agent.take() == []
    assert agent.ledger.totals().dropped_by_cause == {"epoch_forgotten": 1}


def test_a_key_that_may_come_back_is_waited_for(make: Callable[..., Agent], clock: list[float]) -> None:
    agent = make()
    sealed = agent.seal(OLD_NS)
    agent.restart()
    agent.host.epochs.hold([])
    assert agent.take() == []
    assert agent.totals() == (1, 0, 0)
    assert not agent.outbox.pending()
    agent.host.epochs.hold([agent.host.key])
    clock[0] = module.FIRST_RETRY_S + 1
    assert agent.outbox.keep()
    assert copies([sealed], agent.take())


# ---- disks


def test_a_record_that_somebody_else_wrote_is_not_sent(make: Callable[..., Agent]) -> None:
    agent = make()
    sealed = agent.seal()
    assert agent.spool is not None
    agent.spool.append(Sealed(sealed.header, bytes(len(sealed.body)), sealed.tag))
    agent.restart()
    assert copies([sealed], agent.take())
    assert agent.ledger.totals().dropped_by_cause == {"damaged": 1}


def test_what_is_too_old_is_dropped_and_counted(make: Callable[..., Agent]) -> None:
    agent = make()
    agent.seal(2 * 86400 * SECOND)
    agent.seal()
    agent.restart()
    assert len(agent.take()) == 1
    assert agent.ledger.totals().dropped_by_cause == {"spool_age": 1}


def test_without_notes_nothing_of_the_disk_leaves(
    make: Callable[..., Agent], monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    """A disk that turned read-only: what is on it waits, what is sealed now does not."""
    agent = make()
    old = [agent.seal(OLD_NS) for _ in range(3)]
    with monkeypatch.context() as patch:

        def refuse(*_: object) -> int:
            raise OSError(30, os.strerror(30))

        patch.setattr(os, "pwrite", refuse)
        patch.setattr(os, "pwritev", refuse)
        young = agent.seal()
        assert agent.take() == [young]
        assert agent.take() == []
        assert agent.totals() == (3, 1, 0)
        agent.answer(young)
    clock[0] += spool_module._LONGEST_RETRY_S
    assert copies(old, agent.take())


def test_memory_takes_over_and_gives_back(make: Callable[..., Agent], monkeypatch: pytest.MonkeyPatch) -> None:
    agent = make()
    assert agent.spool is not None
    with monkeypatch.context() as patch:
        patch.setattr(agent.spool, "append", lambda *_, **__: None)
        for _ in range(600):
            agent.seal()
        assert agent.totals() == (0, 600, 0)
    for _ in range(3):
        agent.outbox.keep()
    assert agent.totals() == (600, 0, 0)
    assert {record.state for record in agent.ledger.records()} == {State.SPOOLED}


def test_closing_leaves_on_disk_what_the_disk_takes(
    make: Callable[..., Agent], monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = make()
    for _ in range(300):
        agent.ledger.add(agent.host.seal(b"x"))
    agent.outbox.close()
    totals = agent.ledger.totals()
    assert (totals.spooled, totals.queued, totals.dropped) == (300, 0, 0)
    agent.restart()
    assert agent.ledger.totals().recovered == 300
    assert agent.spool is not None
    monkeypatch.setattr(agent.spool, "append", lambda *_, **__: None)
    agent.ledger.add(agent.host.seal(b"x"))
    agent.outbox.close()
    totals = agent.ledger.totals()
    assert (totals.spooled, totals.dropped_by_cause, totals.balanced) == (300, {"stopped": 1}, True)


def test_what_lost_its_place_is_dropped_unless_it_is_on_its_way(make: Callable[..., Agent]) -> None:
    """Written to disk again, the oldest would displace newer ones, for ever."""
    agent = make()
    sent = agent.seal()
    agent.take()
    waiting = agent.seal()
    assert agent.spool is not None
    agent.spool._drop(next(iter(agent.spool._segments.values())), "spool_full")
    agent.outbox._reconcile()
    agent.outbox.keep()
    assert agent.totals() == (0, 1, 1)
    assert agent.ledger.totals().dropped_by_cause == {"spool_full": 1}
    agent.answer(waiting)
    agent.answer(sent)
    totals = agent.ledger.totals()
    assert (totals.acknowledged, totals.balanced) == (1, True)
    assert agent.totals() == (0, 0, 1)


def test_what_is_spooled_while_it_is_on_its_way_counts_as_sent(make: Callable[..., Agent]) -> None:
    agent = make()
    agent.ledger.add(sealed := agent.host.seal(b"x"))
    agent.outbox.take()
    agent.outbox.absorb()
    agent.restart()
    assert agent.take() == [sealed]
