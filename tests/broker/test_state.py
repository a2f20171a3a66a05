# SPDX-License-Identifier: Apache-2.0
import time

from wire_samples import Host, broker_epochs, new_host, now_tick, snapshot

from mvps.broker.admission import Admission, Verdict
from mvps.broker.state import FleetState
from mvps.trust.reasons import RejectReason
from mvps.trust.replay import Window
from mvps.trust.seal import Lane


def judge(decides: Admission, host: Host, tick: int, lane: Lane = Lane.LIVE) -> Verdict:
    ((verdict,), _) = decides.judge([host.seal(snapshot(tick=tick), tick=tick, lane=lane)], time.time_ns())
    return verdict


def setting() -> tuple[FleetState, Admission, Host]:
    host = new_host()
    return FleetState(), Admission(broker_epochs(host.site), Window(), max_vantages=9), host


def test_counts_and_missed_ticks() -> None:
    fleet, decides, host = setting()
    tick = now_tick() - 10
    for step in (0, 1, 4):
        fleet.record(judge(decides, host, tick + step), 1, 99)
    rejected = judge(decides, host, tick + 5)
    rejected.reason = RejectReason.INVALID_VALUE
    fleet.record(rejected, 1, 99)
    state = fleet.vantages["host-1"]
    assert (state.accepted, state.missed_ticks, dict(state.rejected)) == (3, 2, {RejectReason.INVALID_VALUE: 1})
    assert state.latest is not None
    assert state.latest.tick == tick + 4
    assert state.summary(connected=True).rejected == {"invalid_value": 1}


def test_backfill_is_counted_and_does_not_become_the_latest() -> None:
    fleet, decides, host = setting()
    tick = now_tick()
    fleet.record(judge(decides, host, tick), 1, 99)
    fleet.record(judge(decides, host, tick - 5, Lane.BACKFILL), 1, 99)
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
