# SPDX-License-Identifier: Apache-2.0
import time

import pytest
from wire_samples import Host, broker_epochs, message, new_host, now_tick, snapshot

from mvps.broker.admission import Admission, Admitted
from mvps.broker.state import FleetState
from mvps.trust.reasons import RejectReason
from mvps.trust.replay import Recorded, Window
from mvps.trust.seal import Lane


def judge(decides: Admission, host: Host, *ticks: int, lane: Lane = Lane.LIVE) -> Admitted:
    sealed = [host.seal(snapshot(tick=tick), tick=tick, lane=lane) for tick in ticks]
    return decides.judge(message(*sealed), b"", time.time_ns())


def setting() -> tuple[FleetState, Admission, Host]:
    host = new_host()
    return FleetState(), Admission(broker_epochs(host.site), Window(), max_vantages=9), host


@pytest.mark.parametrize("together", [False, True])
def test_counts_and_missed_ticks(together: bool) -> None:
    fleet, decides, host = setting()
    tick = now_tick() - 10
    ticks = [tick, tick + 1, tick + 4]
    for some in [ticks] if together else [[each] for each in ticks]:
        fleet.record(judge(decides, host, *some), 1, 99)
    fleet.record(decides.judge(message(host.seal(b"garbage")), b"", time.time_ns()), 1, 99)
    state = fleet.vantages["host-1"]
    assert (state.accepted, state.missed_ticks, dict(state.rejected)) == (3, 2, {RejectReason.MALFORMED: 1})
    assert state.latest is not None
    assert state.latest.tick == state.tick == tick + 4
    assert state.summary(connected=True).rejected == {"malformed": 1}


def test_repeats_are_counted_when_they_are_settled() -> None:
    fleet, decides, host = setting()
    sealed = host.seal()
    fleet.record(decides.judge(message(sealed), b"", time.time_ns()), 1, 99)
    again = decides.judge(message(sealed, sealed), b"", time.time_ns())
    decides.settle(again, [Recorded(sealed.digest, None), Recorded(bytes(32), None)])
    fleet.record(again, 1, 99)
    state = fleet.vantages["host-1"]
    assert (state.accepted, state.duplicates, dict(state.rejected)) == (1, 1, {RejectReason.EQUIVOCATION: 1})


def test_backfill_is_counted_and_does_not_become_the_latest() -> None:
    fleet, decides, host = setting()
    tick = now_tick()
    fleet.record(judge(decides, host, tick), 1, 99)
    fleet.record(judge(decides, host, tick - 5, lane=Lane.BACKFILL), 1, 99)
    state = fleet.vantages["host-1"]
    assert state.accepted == 2
    assert state.latest is not None
    assert state.latest.tick == tick


def test_a_reconnect_is_no_clone_but_taking_turns_is() -> None:
    fleet, decides, host = setting()

    def speak(stream: int) -> bool:
        fleet.record(judge(decides, host, now_tick()), stream, 99)
        return fleet.vantages["host-1"].clone_suspected

    assert [speak(stream) for stream in (1, 1, 2, 2, 3)] == [False] * 5
    assert speak(2)


def test_a_restarted_agent_starts_with_a_clean_slate() -> None:
    fleet, decides, host = setting()
    for stream, generation in ((1, 1), (2, 2), (1, 3)):
        host.counter.value = generation << 32
        fleet.record(judge(decides, host, now_tick()), stream, 99)
    assert not fleet.vantages["host-1"].clone_suspected
