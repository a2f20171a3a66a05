# SPDX-License-Identifier: Apache-2.0
"""Streams of serving engines: chains verified, minutes closed, lambda sent back, heads sealed."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.surplus.cap_sample import cap
from tests.surplus.health_sample import health, policy

from mvps.coherence.observation import HIST_BINS, Observation, Scale
from mvps.daemon.engines import (
    EXTENSION,
    FLUSH_NS,
    MAX_HEALTH_WAITING,
    MAX_LINES,
    MAX_POLICY_BYTES,
    MAX_STREAMS_KEPT,
    PACKETS_PER_S,
    Engines,
    Refused,
    Stream,
    host_flows,
)
from mvps.surplus import sealed_health
from mvps.surplus.governance import Governed
from mvps.surplus.minutes import GRACE_NS, MAX_TENANTS, MINUTE_NS
from mvps.surplus.packets import Cap, Chain, HealthMinute, Policy, Stage, heads_digest, parse, render
from mvps.surplus.schedule import Schedule
from mvps.trust.gate import SCHEMA_VERSION, check_body
from mvps.trust.limits import MAX_EXTENSION_BYTES
from mvps.trust.replay import Window
from mvps.trust.seal import Lane, Purpose, SealHeader
from mvps.v1 import local_pb2 as pb
from mvps.v1.snapshot_pb2 import PHASE_ALARM, PHASE_CALIBRATING, Snapshot

SECOND = 10**9
START = 1_700_000_040 * SECOND


class Clock:
    now = START

    def __call__(self) -> int:
        return self.now


class Engine:
    """One engine of a test: its chain and its stream."""

    def __init__(self, engines: Engines, name: str = "engine-1") -> None:
        self.engines, self.chain = engines, Chain.begin(name)
        self.stream: Stream = engines.open(name)

    def batch(self, *caps: Cap, **fields: Any) -> pb.SurplusBatch:
        lines = []
        for one in caps:
            self.chain, line = self.chain.append(one)
            lines.append(line)
        return pb.SurplusBatch(lines=lines, **fields)

    def send(self, *caps: Cap, **fields: Any) -> pb.SurplusControl:
        return self.engines.take(self.stream, self.batch(*caps, **fields))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def engines(clock: Clock) -> Engines:
    return Engines(SECOND, 4, clock)


def refused(engines: Engines) -> dict[str, int]:
    return dict(engines.status().refused)


def tick(engines: Engines) -> Snapshot:
    snapshot = Snapshot()
    engines.tick(snapshot, {}, SECOND)
    return snapshot


def test_packets_become_health_and_the_answer_says_how_hard_to_push(engines: Engines, clock: Clock) -> None:
    engine = Engine(engines)
    load = pb.EngineLoad(running=8, slots=8)
    answer = engine.send(cap(clock.now), cap(clock.now, "other"), load=load)
    assert [one.tenant for one in answer.tenants] == ["acme", "other"]
    assert answer.length == 2
    assert answer.flush_ns == FLUSH_NS
    assert answer.tenants[0].lam == answer.others.lam == Schedule().rule.base
    assert not answer.tenants[0].HasField("sse")
    clock.now = START + MINUTE_NS + GRACE_NS
    later = engine.send(load=load)
    assert later.tenants[0].lam > answer.tenants[0].lam, "all slots are taken"
    assert later.others.lam == answer.others.lam
    status = engines.status()
    healths = [parse(line, HealthMinute) for line in status.health]
    assert [(one.tenant, one.packets, one.state) for one in healths] == [("acme", 1, "Green"), ("other", 1, "Green")]
    assert healths[0].cap_head == heads_digest({"engine-1": engine.chain.head})
    assert healths[0].lam == later.tenants[0].lam
    assert status.packets == 2
    assert (status.engines[0].chain, status.engines[0].length, status.engines[0].connected) == ("engine-1", 2, True)
    assert status.engines[0].load.running == 8
    engine.send()
    assert not engines.status().engines[0].HasField("load"), "an engine that does not say it has none"


def test_an_engine_asks_at_least_once_a_tick(clock: Clock) -> None:
    assert Engine(Engines(50_000_000, 4, clock)).send().flush_ns == 50_000_000
    assert Engine(Engines(60 * SECOND, 4, clock)).send().flush_ns == FLUSH_NS
    # A minute is closed by whoever comes first after its grace: at most this long after its end.
    assert GRACE_NS + FLUSH_NS <= SECOND


@pytest.mark.parametrize("change", ["left_out", "changed", "foreign"])
def test_a_chain_that_breaks_ends_its_stream_and_nothing_of_the_batch_counts(
    engines: Engines, clock: Clock, change: str
) -> None:
    engine = Engine(engines)
    engine.send(cap(clock.now))
    batch = engine.batch(cap(clock.now), cap(clock.now, "secret"), cap(clock.now))
    if change == "left_out":
        del batch.lines[1]
    elif change == "changed":
        batch.lines[1] = batch.lines[1].replace(b"0.002", b"0.001")
    else:
        batch.lines[1] = Chain.begin("other").append(cap(clock.now))[1]
    with pytest.raises(Refused, match="does not follow"):
        engines.take(engine.stream, batch)
    assert refused(engines) == {"chain": 1}
    assert (engines.status().packets, [one.tenant for one in engines.status().tenants]) == (1, ["acme"])
    assert engine.stream.chain.length == 1


def test_content_has_no_way_in(engines: Engines, clock: Clock) -> None:
    engine = Engine(engines)
    (line,) = engine.batch(cap(clock.now)).lines
    with pytest.raises(Refused, match="Extra inputs") as caught:
        engines.take(engine.stream, pb.SurplusBatch(lines=[line.replace(b'"bh1"', b'"prompt":"my name is Ann","bh1"')]))
    assert "Ann" not in str(caught.value)
    with pytest.raises(Refused, match="tenant"):
        engines.take(engine.stream, pb.SurplusBatch(lines=[line.replace(b'"acme"', b'"ann@example.org"')]))
    assert refused(engines) == {"schema": 2}


def test_limits_hold_before_anything_is_read(engines: Engines, clock: Clock) -> None:
    engine = Engine(engines)
    for batch in (
        pb.SurplusBatch(lines=[b""] * (MAX_LINES + 1)),
        pb.SurplusBatch(spread={f"t{i}": 0.5 for i in range(MAX_TENANTS + 1)}),
        pb.SurplusBatch(chain="engine-2"),
        pb.SurplusBatch(dropped=2**40),
        pb.SurplusBatch(answers_dropped=2**40),
    ):
        with pytest.raises(Refused):
            engines.take(engine.stream, batch)
    with pytest.raises(Refused, match="at most 8192"):
        engines.take(engine.stream, pb.SurplusBatch(lines=[b" " * 8193]))
    assert refused(engines) == {"batch": 5, "schema": 1}


@pytest.mark.parametrize("name", ["", "an engine", "ann@host", "x" * 65, "a\n"])
def test_a_chain_needs_a_name_of_its_own(engines: Engines, name: str) -> None:
    engines.open("taken")
    for wrong in (name, "taken"):
        with pytest.raises(Refused) as caught:
            engines.open(wrong)
        assert not caught.value.full
    assert refused(engines) == {"name": 2}


def test_so_many_engines_and_no_more_until_one_leaves(engines: Engines) -> None:
    streams = [engines.open(f"e{i}") for i in range(4)]
    with pytest.raises(Refused, match="4 engines") as caught:
        engines.open("e4")
    assert caught.value.full
    assert refused(engines) == {"streams": 1}
    engines.close(streams[0])
    assert engines.open("e4").connected


def test_streams_that_ended_are_kept_until_they_are_sealed_but_not_without_end(engines: Engines, clock: Clock) -> None:
    engine = Engine(engines)
    engine.send(cap(clock.now))
    engines.close(engine.stream)
    assert json.loads(tick(engines).extensions[EXTENSION])[0]["head"] == engine.chain.head
    assert [one.chain for one in engines.status().engines] == ["engine-1"]
    clock.now += MINUTE_NS + GRACE_NS
    tick(engines)
    assert not engines.status().engines, "sealed, and named in its last minute's health"
    for number in range(MAX_STREAMS_KEPT + 5):
        engines.close(engines.open(f"e{number}"))
    assert len(engines.status().engines) == MAX_STREAMS_KEPT
    assert refused(engines) == {}
    for number in range(MAX_STREAMS_KEPT + 1):
        unsealed = Engine(engines, f"u{number}")
        unsealed.send(cap(clock.now))
        engines.close(unsealed.stream)
    assert refused(engines) == {"unsealed": 1}


def test_heads_that_moved_travel_in_the_snapshot_and_a_broker_takes_it(engines: Engines, clock: Clock) -> None:
    assert EXTENSION not in tick(engines).extensions
    first, second = Engine(engines, "a"), Engine(engines, "b")
    first.send(cap(clock.now))
    second.send(cap(clock.now), cap(clock.now))
    sealed = json.loads(tick(engines).extensions[EXTENSION])
    chains = (first.chain, second.chain)
    assert sealed == [{"chain": one.name, "head": one.head, "length": one.length} for one in chains]
    assert EXTENSION not in tick(engines).extensions, "nothing moved"
    second.send(cap(clock.now))
    snapshot = Snapshot(
        schema_version=SCHEMA_VERSION, vantage_id="v", tick=1, tick_time_ns=SECOND, tick_period_ns=SECOND
    )
    snapshot.surfaces.add(name="ai.g", calibrated_ticks=5, needed_ticks=60).vector.c1 = 0.9
    engines.tick(snapshot, {}, SECOND)
    assert [one["length"] for one in json.loads(snapshot.extensions[EXTENSION])] == [3]
    body = snapshot.SerializeToString()
    header = SealHeader(1, Purpose.SNAPSHOT, Lane.LIVE, len(body), 1, 1, 1, SECOND, b"", "v")
    assert check_body(body, header, Window()) is None


def test_as_many_heads_as_are_kept_fit_into_an_extension(clock: Clock) -> None:
    engines = Engines(SECOND, 1, clock)
    for number in range(MAX_STREAMS_KEPT):
        engine = Engine(engines, f"{number:064d}")
        engine.send(cap(clock.now))
        engines.close(engine.stream)
    content = tick(engines).extensions[EXTENSION]
    assert len(json.loads(content)) == MAX_STREAMS_KEPT
    assert len(content) <= MAX_EXTENSION_BYTES


def test_numbers_that_cannot_be_are_counted_and_not_used(engines: Engines, clock: Clock) -> None:
    engine = Engine(engines)
    for fields in ({"kv_cache_use": float("nan")}, {"kv_cache_use": 1.5}, {"running": 2**40}):
        engine.send(cap(clock.now), load=pb.EngineLoad(**fields))
    engine.send(cap(clock.now), spread={"acme": -1.0, "nobody": 0.5}, dropped=7)
    engine.send(dropped=5, answers_dropped=2)
    engine.send(answers_dropped=1)
    engine.send(answers_dropped=4)
    counts = {"load": 3, "spread": 2, "dropped_by_engine": 7, "answers_dropped_by_engine": 4}
    assert refused(engines) == counts
    assert not engines.status().engines[0].HasField("load")
    assert not engines.status().pressure


def test_the_spread_that_an_engine_measures_comes_back_to_all(engines: Engines, clock: Clock) -> None:
    first, second = Engine(engines, "a"), Engine(engines, "b")
    first.send(cap(clock.now), spread={"acme": 0.25})
    assert second.send(cap(clock.now)).tenants[0].sse == 0.25


def test_a_tick_closes_the_minute_where_no_engine_does(engines: Engines, clock: Clock) -> None:
    engine = Engine(engines)
    engine.send(cap(clock.now))
    clock.now += MINUTE_NS + GRACE_NS
    tick(engines)
    assert len(engines.status().health) == 1
    figures = engines.figures()
    assert (figures.connected, figures.packets, figures.refused) == (1, 1, {})
    assert figures.tenants["acme"].state == "Green"
    assert figures.tenants["acme"].xi is None


def test_an_engine_that_runs_wild_is_answered_later(clock: Clock) -> None:
    now = [100.0]
    engines = Engines(SECOND, 4, clock, lambda: now[0])
    assert engines.pause_s(int(PACKETS_PER_S)) == 0.0, "a second's worth may come at once"
    assert engines.pause_s(64) == pytest.approx(64 / PACKETS_PER_S)
    assert engines.pause_s(64) == pytest.approx(128 / PACKETS_PER_S)
    now[0] += 128 / PACKETS_PER_S
    assert engines.pause_s(0) == pytest.approx(1 / PACKETS_PER_S)
    now[0] += 3600.0
    assert engines.pause_s(int(PACKETS_PER_S)) == pytest.approx(0.0, abs=1e-9)
    assert engines.pause_s(64) > 0.0, "what was not used is not saved for ever"


def observation(vantage: str, stalled_ms: float | None) -> Observation:
    facts = {} if stalled_ms is None else {"psi_some_ms": stalled_ms}
    return Observation(vantage, Scale("ns", 1024.0, 1024.0), np.zeros(HIST_BINS), facts=facts)


def test_the_hosts_pressure_is_what_its_vantages_and_its_kernel_surface_say(engines: Engines, clock: Clock) -> None:
    seen = {"sched": observation("sched", 300.0), "mm": observation("mm", 50.0), "blk": observation("blk", 900.0)}
    snapshot = Snapshot()
    surface = snapshot.surfaces.add(name="kernel")
    surface.decision.phase = PHASE_ALARM
    flows = host_flows(snapshot, seen, SECOND // 2)
    assert flows == pytest.approx({"cpu": 0.6, "memory": 0.1, "kernel": 2 / 3})
    engines.tick(snapshot, seen, SECOND // 2)
    assert engines.status().pressure["kernel"] == pytest.approx(2 / 3)
    surface.decision.phase = PHASE_CALIBRATING
    assert host_flows(snapshot, {"mm": observation("mm", None)}, SECOND) == {}


def test_an_agent_without_engines_loads_nothing_of_them() -> None:
    script = (
        "import sys, mvps.daemon.start\n"
        "print([name for name in sys.modules if name.startswith(('mvps.surplus', 'mvps.daemon.engines'))])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.tuples(st.integers(0, 900), st.binary(max_size=4)), max_size=3),
    st.dictionaries(st.sampled_from(["acme", "other", "nobody", ""]), st.floats(), max_size=3),
    st.tuples(*[st.sampled_from([0, 1, 8, 2**32, 2**32 + 1, 2**64 - 1])] * 4),
    st.floats(),
)
def test_whatever_an_engine_sends_is_taken_whole_or_refused_whole(
    edits: list[tuple[int, bytes]], spread: dict[str, float], counts: tuple[int, int, int, int], cache: float
) -> None:
    clock = Clock()
    engines = Engines(SECOND, 4, clock)
    engine = Engine(engines)
    running, waiting, slots, dropped = counts
    load = pb.EngineLoad(running=running, waiting=waiting, slots=slots, kv_cache_use=cache)
    batch = engine.batch(cap(clock.now), cap(clock.now, "other"), spread=spread, dropped=dropped, load=load)
    for position, octets in edits:
        line = bytearray(batch.lines[0])
        line[position : position + len(octets)] = octets
        batch.lines[0] = bytes(line)
    try:
        taken = engines.take(engine.stream, batch).length
    except Refused:
        taken = 0
    assert taken in (0, 2)
    assert engine.stream.chain.length == taken
    clock.now += MINUTE_NS + GRACE_NS
    tick(engines)
    status = engines.status()
    assert status.packets == taken
    assert len([parse(line, HealthMinute) for line in status.health]) == taken


def test_closed_minutes_travel_in_snapshots_once_each(engines: Engines, clock: Clock) -> None:
    engine = Engine(engines)
    tenants = [f"tenant-{number}" for number in range(MAX_TENANTS)]
    engine.send(*(cap(clock.now, tenant) for tenant in tenants))
    assert sealed_health.NAME not in tick(engines).extensions
    clock.now += MINUTE_NS + GRACE_NS
    told: list[str] = []
    while content := tick(engines).extensions.get(sealed_health.NAME, b""):
        minutes, causes = sealed_health.unpack(content)
        assert not causes
        assert {one.bucket.timestamp() for one in minutes} == {START // MINUTE_NS * 60}
        told += [one.tenant for one in minutes]
    assert told == sorted(tenants)
    assert list(engines.status().health) == [
        render(one) for one in map(engines._minutes.health, sorted(tenants)) if one
    ]


def test_minutes_that_no_snapshot_takes_are_dropped_oldest_first_and_counted(engines: Engines, clock: Clock) -> None:
    engine = Engine(engines)
    for _ in range(MAX_HEALTH_WAITING + 3):
        engine.send(cap(clock.now))
        clock.now += MINUTE_NS + GRACE_NS
    engine.send()
    assert refused(engines)["health_unsent"] == 3
    first, _ = sealed_health.unpack(tick(engines).extensions[sealed_health.NAME])
    assert first[0].bucket.timestamp() >= START // 10**9 + 3 * 60 - 60


def handed(clock: Clock, host: str = "gpu-1", tenant: str = "acme", minutes: int = 241, **changes: Any) -> bytes:
    """What a broker hands to that host, of which the policy is in force after a soak."""
    governed = Governed.begin(tenant, policy(tenant=tenant, **changes))
    hosts = [f"gpu-{number}" for number in range(1, 5)]
    for minute in range(minutes):
        governed, _ = governed.minute(minute, dict.fromkeys(hosts, health(tenant=tenant)), hosts)
    if minutes:
        governed, _ = governed.ordered_stage(minutes, Stage.FULL, "kim", "a drill")
    now = datetime.fromtimestamp(clock.now / 1e9, UTC)
    return render(governed.issue(host, host in governed.inside(hosts), now))


CONTROL = {"lam_min": 0.9, "lam_max": 1.0, "kl_green": 0.003, "kl_caution": 0.003, "kl_action": 0.002,
           "kl_emergency": 0.001}  # fmt: skip


def applying(clock: Clock, mode: str = "apply") -> Engines:
    return Engines(SECOND, 4, clock, host="gpu-1", policy=mode)


def test_a_policy_in_force_bounds_what_engines_are_told_and_ends(clock: Clock) -> None:
    engines = applying(clock)
    engine = Engine(engines)
    before = engine.send(cap(clock.now), cap(clock.now, "other")).tenants[0]
    engines.hand(handed(clock, control=CONTROL))
    told, other = engine.send().tenants
    assert (told.lam, told.kl_budget) == (0.9, 0.003)
    assert told.dlogits_budget == pytest.approx(np.sqrt(2 * 0.003))
    assert other.lam == before.lam
    assert list(engines.status().applied) == ["acme"]
    assert [parse(line, Policy).issue.host for line in engines.status().policies] == ["gpu-1"]  # type: ignore[union-attr]
    clock.now += MINUTE_NS + GRACE_NS
    engine.send()
    health_line = parse(engines.status().health[0], HealthMinute)
    assert health_line.lam == 0.9, "what is sealed is what engines were told"
    clock.now += 5 * MINUTE_NS
    assert engine.send(cap(clock.now)).tenants[0].lam < 0.9, "a broker that fell silent holds nobody"
    assert not engines.status().policies


def test_a_policy_leads_nowhere_beyond_the_hosts_own_bounds(clock: Clock) -> None:
    engines = applying(clock)
    engine = Engine(engines)
    before = engine.send(cap(clock.now)).tenants[0]
    wild = CONTROL | {"lam_min": 9.0, "lam_max": 9.5} | {f"kl_{band}": 1.0 for band in LIMITS}
    engines.hand(handed(clock, control=wild))
    told = engine.send().tenants[0]
    assert told.lam == Schedule().rule.most
    assert told.kl_budget == before.kl_budget


LIMITS = ("green", "caution", "action", "emergency")


@pytest.mark.parametrize(
    ("mode", "changes"),
    [
        ("advice", {}),
        ("apply", {"dry_run": True, "rollout": {"stage": "shadow"}, "minutes": 0}),
        ("apply", {"minutes": 0}),
    ],
)
def test_advice_dry_runs_and_hosts_outside_the_slice_change_nothing(
    clock: Clock, mode: str, changes: dict[str, Any]
) -> None:
    engines = applying(clock, mode)
    engine = Engine(engines)
    before = engine.send(cap(clock.now))
    engines.hand(handed(clock, control=CONTROL, **changes))
    assert engine.send().tenants == before.tenants
    assert len(engines.status().policies) == 1, "and it is shown"
    assert not engines.status().applied


def test_what_is_no_policy_for_this_host_now_is_counted_by_cause_and_ends_what_was(clock: Clock) -> None:
    engines = applying(clock)
    engine = Engine(engines)
    engine.send(cap(clock.now))
    good = handed(clock, control=CONTROL)
    engines.hand(good)
    engines.hand(good)
    assert list(engines.status().applied) == ["acme"]
    plain = parse(good, Policy)
    assert plain.issue is not None
    late = plain.model_copy(update={"issue": plain.issue.model_copy(update={"tenant": "elsewhere"})})
    lasting = plain.model_copy(
        update={"issue": plain.issue.model_copy(update={"expires_at": plain.issue.issued_at + timedelta(days=1)})}
    )
    bad = [handed(clock, host="gpu-2"), render(late), render(lasting), b"{}", render(policy())]
    engines.hand(b"\n".join(bad))
    assert refused(engines) == {"policy_host": 3, "policy_expired": 1, "policy_schema": 1}
    assert not engines.status().applied
    assert engine.send().tenants[0].lam < 0.9
    clock.now += 2 * MINUTE_NS
    engines.hand(handed(clock, control=CONTROL))
    engines.hand(bytes(bytearray(good)))
    assert refused(engines)["policy_old"] == 1
    engines.hand(b"\n" * MAX_TENANTS)
    engines.hand(b" " * (MAX_POLICY_BYTES + 1))
    assert refused(engines)["policy_size"] == 2
    clock.now -= 30 * MINUTE_NS
    engines.hand(bytes(bytearray(good)))
    assert refused(engines)["policy_expired"] == 2
    off = applying(clock, "off")
    off.hand(good)
    assert refused(off) == {"policy_off": 1}
