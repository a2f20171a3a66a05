# SPDX-License-Identifier: Apache-2.0
"""What a heartbeat leaves out, and what it never leaves out."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvps.daemon.heartbeat import SENDS_ALL, Heartbeat
from mvps.trust.gate import check_body
from mvps.trust.replay import Window
from mvps.trust.seal import Lane, Purpose, Scheme, SealHeader
from mvps.v1 import snapshot_pb2 as pb

EPSILON = 0.05
FIRST = 1_790_000_000
BASELINE = "0123456789abcdef"


def snapshot(
    tick: int, shares: tuple[float, ...] = (0.9, 0.1), phase: pb.Phase = pb.PHASE_BAU, objects: tuple[int, ...] = (1, 2)
) -> pb.Snapshot:
    made = pb.Snapshot(
        schema_version=1, vantage_id="h", tick=tick, tick_time_ns=tick * 10**9, tick_period_ns=10**9, lead="mm"
    )
    surface = made.surfaces.add(name="kernel", missing=["irq"], calibrated_ticks=300, needed_ticks=300)
    surface.vector.c1 = 0.98
    decision = surface.decision
    decision.phase = decision.raw_phase = phase
    decision.posterior.extend([0.9, 0.07, 0.02, 0.01])
    decision.d2 = decision.p_value = 0.5
    decision.baseline_id = BASELINE
    decision.cutoffs.watch = 7.8
    decision.cutoffs.alarm = decision.cutoffs.critical = 11.3
    decision.axis_contributions.add(name="c1", value=0.5)
    for kind in ("mm", "blk"):
        observation = surface.observations.add(vantage=kind, events=10, checked=3, violated=1, own_distance=0.1)
        observation.distribution = struct.pack(f"<{len(shares)}f", *shares)
        observation.objects.hashes.extend(objects)
        observation.objects.total = len(objects)
    return made


def unchanged(sent: pb.Snapshot) -> list[int]:
    return [observation.unchanged_ticks for observation in sent.surfaces[0].observations]


def test_the_first_one_is_whole_and_the_next_leans_on_it():
    heartbeat = Heartbeat(EPSILON, 60)
    assert heartbeat.trim(snapshot(FIRST)) == snapshot(FIRST)
    later = heartbeat.trim(snapshot(FIRST + 1, (0.89, 0.11)))
    assert unchanged(later) == [1, 1]
    assert unchanged(heartbeat.trim(snapshot(FIRST + 7, (0.89, 0.11)))) == [7, 7]
    assert later.ByteSize() < snapshot(FIRST + 1).ByteSize() - 60


def test_what_is_measured_and_decided_travels_on_every_tick():
    heartbeat = Heartbeat(EPSILON, 60)
    heartbeat.trim(snapshot(FIRST))
    whole = snapshot(FIRST + 1)
    sent = heartbeat.trim(whole)
    surface, full = sent.surfaces[0], whole.surfaces[0]
    assert surface.vector == full.vector
    assert list(surface.missing) == ["irq"]
    for field in ("phase", "raw_phase", "d2", "p_value", "baseline_id", "posterior"):
        assert getattr(surface.decision, field) == getattr(full.decision, field)
    for observation in surface.observations:
        assert (observation.events, observation.checked, observation.violated) == (10, 3, 1)
        assert observation.own_distance == 0.1
        assert not observation.distribution
        assert not observation.HasField("objects")


def test_a_move_of_epsilon_is_sent_at_once_and_becomes_what_the_next_are_held_against():
    heartbeat = Heartbeat(EPSILON, 60)
    heartbeat.trim(snapshot(FIRST))
    assert unchanged(heartbeat.trim(snapshot(FIRST + 1, (0.84, 0.16)))) == [0, 0]
    assert unchanged(heartbeat.trim(snapshot(FIRST + 2, (0.84, 0.16)))) == [1, 1]
    assert unchanged(heartbeat.trim(snapshot(FIRST + 3))) == [0, 0]


def test_slow_drift_is_held_against_what_was_sent_and_so_cannot_creep_away():
    heartbeat = Heartbeat(EPSILON, 600)
    shares = [(0.9 - 0.004 * n, 0.1 + 0.004 * n) for n in range(100)]
    believed = shares[0]
    for n, now in enumerate(shares):
        if unchanged(heartbeat.trim(snapshot(FIRST + n, now)))[0] == 0:
            believed = now
        assert abs(believed[0] - now[0]) < EPSILON + 1e-6


@pytest.mark.parametrize("phase", [pb.PHASE_WATCH, pb.PHASE_ALARM, pb.PHASE_CRITICAL, pb.PHASE_SHIFTED])
def test_outside_bau_everything_travels(phase: pb.Phase):
    heartbeat = Heartbeat(EPSILON, 60)
    heartbeat.trim(snapshot(FIRST))
    assert heartbeat.trim(snapshot(FIRST + 1, phase=phase)) == snapshot(FIRST + 1, phase=phase)
    before_hysteresis = snapshot(FIRST + 2)
    before_hysteresis.surfaces[0].decision.raw_phase = phase
    assert heartbeat.trim(before_hysteresis) == before_hysteresis


def test_other_objects_another_baseline_or_another_alphabet_are_sent():
    for other in (snapshot(FIRST + 1, objects=(1, 3)), snapshot(FIRST + 1, (0.9, 0.05, 0.05)), snapshot(FIRST + 1)):
        heartbeat = Heartbeat(EPSILON, 60)
        heartbeat.trim(snapshot(FIRST))
        if (
            len(other.surfaces[0].observations[0].distribution) == 8
            and other.surfaces[0].observations[0].objects.hashes[1] == 2
        ):
            other.surfaces[0].decision.baseline_id = "f" * 16
        assert unchanged(heartbeat.trim(other)) == [0, 0]


def test_everything_is_sent_again_after_full_every_ticks():
    heartbeat = Heartbeat(EPSILON, 5)
    whole = [n for n in range(20) if unchanged(heartbeat.trim(snapshot(FIRST + n))) == [0, 0]]
    assert whole == [0, 5, 10, 15]


def test_a_clock_that_was_set_back_leans_on_nothing_in_the_future():
    heartbeat = Heartbeat(EPSILON, 60)
    heartbeat.trim(snapshot(FIRST))
    assert unchanged(heartbeat.trim(snapshot(FIRST - 5))) == [0, 0]


def test_without_epsilon_nothing_is_left_out():
    SENDS_ALL.trim(snapshot(FIRST))
    assert SENDS_ALL.trim(snapshot(FIRST + 1)) == snapshot(FIRST + 1)


def test_the_argument_is_not_changed():
    heartbeat = Heartbeat(EPSILON, 60)
    heartbeat.trim(snapshot(FIRST))
    whole = snapshot(FIRST + 1)
    heartbeat.trim(whole)
    assert whole == snapshot(FIRST + 1)


@given(st.lists(st.sampled_from([(0.9, 0.1), (0.88, 0.12), (0.5, 0.5)]), min_size=1, max_size=30))
def test_whatever_happens_a_broker_takes_the_body(course: list[tuple[float, float]]):
    heartbeat = Heartbeat(EPSILON, 7)
    for n, shares in enumerate(course):
        sent = heartbeat.trim(snapshot(FIRST + n, shares))
        body = sent.SerializeToString()
        time_ns = (FIRST + n) * 10**9
        header = SealHeader(
            Scheme.HMAC_SHA256, Purpose.SNAPSHOT, Lane.LIVE, len(body), 1, n + 1, FIRST + n, time_ns, bytes(8), "h"
        )
        assert check_body(body, header, Window(10**9, 10**9, 10**9)) is None
