# SPDX-License-Identifier: Apache-2.0
"""Decisions of a real SurfaceModel, through a snapshot and back."""

import asyncio
import itertools
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_samples import Host, broker_epochs, message, new_host, snapshot

from mvps.broker.admission import Admission
from mvps.broker.recheck import DecisionCheck, Rechecker
from mvps.broker.store import CounterKey, Kept
from mvps.coherence.alphabet import distribution
from mvps.coherence.model import ModelSettings, SurfaceModel
from mvps.coherence.observation import HIST_BINS, Observation, Scale
from mvps.trust.replay import Window
from mvps.v1 import snapshot_pb2 as pb

SCALE = Scale("ns", 1024.0, 1e5)
VANTAGES = ("blk", "sched")


def observe(rng: np.random.Generator, worse: float = 1.0) -> dict[str, Observation]:
    found = {}
    for vantage in VANTAGES:
        severity = 2e5 * worse * np.exp(0.8 * rng.standard_normal(rng.poisson(400)))
        bins = np.searchsorted(SCALE.lower_edges(), severity, side="right") - 1
        objects = {key: 3.0 for key in range(12) if rng.random() < 0.6}
        histogram = np.bincount(bins, minlength=HIST_BINS).astype(float)
        found[vantage] = Observation(vantage, SCALE, histogram, objects, 10.0, float(rng.random() < 0.05))
    return found


@pytest.fixture(scope="module")
def model() -> SurfaceModel:
    rng = np.random.default_rng(3)
    model = SurfaceModel("kernel", VANTAGES, ModelSettings(calibration_ticks=80))
    for tick in range(80):
        model.step(tick, observe(rng))
    assert model.baseline is not None
    return model


TICKS = itertools.count(100)


def reported(model: SurfaceModel, worse: float) -> pb.Surface:
    tick = next(TICKS)
    result = model.step(tick, observe(np.random.default_rng(tick), worse))
    vector, decision = result.vector, result.decision
    assert decision is not None
    surface = snapshot().surfaces[0]
    surface.ClearField("observations")
    surface.ClearField("missing")
    surface.vector.CopyFrom(
        pb.CoherenceVector(c1=vector.c1, c2=vector.c2, c3=vector.c3, s=vector.s, farthest=vector.farthest)
    )
    surface.decision.d2 = decision.d2
    surface.decision.p_value = decision.p_value
    surface.decision.raw_phase = pb.Phase.Value(f"PHASE_{decision.raw_phase.name}")
    surface.decision.baseline_id = decision.baseline_id
    for vantage, p in result.distributions.items():
        surface.observations.add(vantage=vantage, events=result.events[vantage], distribution=p.astype("<f4").tobytes())
    return surface


def kept(model: SurfaceModel, vantage_id: str = "host-1") -> Kept:
    assert model.baseline is not None
    return Kept(vantage_id, model.baseline.baseline_id, model.baseline.to_json())


@pytest.mark.parametrize("worse", [1.0, 1.5, 8.0])
def test_honest_decisions_agree(model: SurfaceModel, worse: float) -> None:
    assert DecisionCheck([kept(model)]).agrees("host-1", reported(model, worse)) is True


def test_a_heartbeat_is_neither_right_nor_wrong(model: SurfaceModel) -> None:
    surface = reported(model, 8.0)
    surface.observations[0].ClearField("distribution")
    assert DecisionCheck([kept(model)]).agrees("host-1", surface) is False  # what is merely missing
    surface.observations[0].unchanged_ticks = 3
    assert DecisionCheck([kept(model)]).agrees("host-1", surface) is None


def test_each_part_that_is_changed_shows(model: SurfaceModel) -> None:
    check = DecisionCheck([kept(model)])
    for change in (
        lambda s: setattr(s.decision, "d2", s.decision.d2 * 1.1),
        lambda s: setattr(s.vector, "s", s.vector.s - 3.0),
        lambda s: setattr(s.vector, "c1", 0.5),
        lambda s: (setattr(s.decision, "raw_phase", pb.PHASE_BAU), setattr(s.decision, "p_value", 0.9)),
        lambda s: setattr(s.observations[0], "distribution", np.full(6, 1 / 6, "<f4").tobytes()),
        lambda s: setattr(s.observations[0], "distribution", np.full(3, 1 / 3, "<f4").tobytes()),
    ):
        surface = reported(model, 8.0)
        assert check.agrees("host-1", surface) is True
        change(surface)
        assert check.agrees("host-1", surface) is False


@pytest.mark.filterwarnings("error")
def test_numbers_that_overflow_agree_with_nothing_and_are_not_heard_of(model: SurfaceModel) -> None:
    assert model.baseline is not None
    surface = reported(model, 8.0)
    for at, changed in enumerate((replace(model.baseline, own_excess=(0.0, 0.0)), model.baseline)):
        check = DecisionCheck([Kept("host-1", changed.baseline_id, changed.to_json())])
        surface.decision.baseline_id = changed.baseline_id
        surface.observations[at].events = 1e200
        assert check.agrees("host-1", surface) is False


def test_without_the_vantages_own_baseline_nothing_is_said(model: SurfaceModel) -> None:
    surface = reported(model, 1.0)
    check = DecisionCheck([kept(model, "host-2"), Kept("host-3", surface.decision.baseline_id, b"{}")])
    assert [check.agrees(f"host-{i}", surface) for i in (1, 2, 3)] == [None, True, None]
    surface.ClearField("decision")
    assert check.agrees("host-2", surface) is None


def test_an_honest_distribution_conserves_its_events_whatever_happened(model: SurfaceModel) -> None:
    check = DecisionCheck([kept(model)])
    for worse in (0.2, 1.0, 1.5, 8.0, 300.0):
        assert check.conserves("host-1", reported(model, worse)) is True


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0, 1e7), min_size=6, max_size=6))
def test_counts_of_any_size_pass(model: SurfaceModel, counts: list[float]) -> None:
    """Through the alphabet's own formula and float32, as they travel."""
    assert model.baseline is not None
    law = model.baseline.law_array[0]
    p = distribution(np.array(counts), law, model.baseline.pseudo_count).astype("<f4")
    surface = reported(model, 1.0)
    surface.observations[0].events, surface.observations[0].distribution = sum(counts), p.tobytes()
    assert DecisionCheck([kept(model)]).conserves("host-1", surface) is True


def test_events_that_a_distribution_cannot_come_from_show(model: SurfaceModel) -> None:
    check = DecisionCheck([kept(model)])
    for events, p in (
        (0.0, [0.0, 0.0, 0.0, 0.0, 0.0, 1.0]),  # a silent vantage shows its law
        (5.0, [0.0, 0.0, 0.0, 0.0, 0.0, 1.0]),  # five events leave two thirds of the law where they were
        (1000.0, [0.0, 1.0, 0.0, 0.0, 0.0, 0.0]),
    ):
        surface = reported(model, 1.0)
        surface.observations[1].events = events
        surface.observations[1].distribution = np.array(p, "<f4").tobytes()
        assert check.conserves("host-1", surface) is False
    surface = reported(model, 1.0)
    for observation in surface.observations:
        observation.ClearField("distribution")
    assert check.conserves("host-1", surface) is None
    assert check.conserves("host-2", reported(model, 1.0)) is None
    surface.ClearField("decision")
    assert check.conserves("host-1", surface) is None


class Looked:
    """A rechecker with what it was offered. found, impossible: whose decision, whose distribution is wrong."""

    def __init__(self, model: SurfaceModel, share: float = 1.0) -> None:
        self.host: Host = new_host()
        self.found: list[CounterKey] = []
        self.impossible: list[CounterKey] = []
        self.checks = Rechecker(
            [kept(model)], share=share, on_mismatch=self.found.append, on_impossible=self.impossible.append
        )
        self._decides = Admission(broker_epochs(self.host.site), Window(), max_vantages=1)

    def offer(self, *surfaces: pb.Surface) -> None:
        sealed = []
        for surface in surfaces:
            body = snapshot()
            body.surfaces[0].CopyFrom(surface)
            sealed.append(self.host.seal(body, tick=body.tick))
        batch = self._decides.judge(message(*sealed), b"", time.time_ns()).batch
        assert len(batch.accepted) == len(surfaces)
        self.checks.offer(batch)

    async def until_idle(self) -> None:
        running = asyncio.create_task(self.checks.run())
        while not self.checks.idle:
            await asyncio.sleep(0.001)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_mismatch_is_flagged_after_the_snapshot_was_accepted(model: SurfaceModel) -> None:
    looked = Looked(model)
    good, bad = reported(model, 1.0), reported(model, 1.0)
    bad.decision.d2 += 1.0
    looked.offer(good, bad)
    assert looked.found == []
    await looked.until_idle()
    assert looked.found == [("host-1", looked.host.epoch_id, 1, looked.host.counter.value - 1)]
    assert looked.checks.decisions == {"checked": 2, "mismatch": 1, "impossible": 0, "unchecked": 0}


async def test_a_distribution_that_its_events_cannot_give_is_told_once(model: SurfaceModel) -> None:
    looked = Looked(model)
    bad = reported(model, 8.0)  # near BAU three events may well give it
    bad.observations[0].events = 3
    looked.offer(reported(model, 8.0), bad)
    await looked.until_idle()
    assert looked.impossible == [("host-1", looked.host.epoch_id, 1, looked.host.counter.value - 1)]
    assert looked.checks.decisions["impossible"] == 1


async def test_what_is_not_looked_at_is_counted_and_drawn_by_chance(
    model: SurfaceModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mvps.broker.recheck._POOL_ITEMS", 4)
    chosen = set()
    surface = reported(model, 1.0)
    bad = pb.Surface.FromString(surface.SerializeToString())
    bad.decision.d2 += 1.0
    for _ in range(20):
        looked = Looked(model)
        looked.offer(*[bad] * 6)  # two too many
        looked.offer(bad)  # takes the place of another
        await looked.until_idle()
        assert looked.checks.decisions == {"checked": 4, "mismatch": 4, "impossible": 0, "unchecked": 3}
        chosen.add(tuple(sorted(counter for *_, counter in looked.found)))
    assert len(chosen) > 1
    assert any((1 << 32) + 6 in each for each in chosen)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"live":[true', b'"live":[100000000000000000'),
        (b'"live":[true', b'"live":[Infinity'),
        (b'"live":[true', b'"live":["x"'),
        (b'"mean":[', b'"mean":[1e999,'),
        (b'"ticks":', b'"ticks":1' + b"0" * 400 + b',"x":'),
        (b'"pseudo_count":', b'"pseudo_count":NaN,"x":'),
        (b'"noise":[', b'"noise":[-1.0,'),
    ],
)
def test_a_strangers_baseline_is_refused_quietly(model: SurfaceModel, old: bytes, new: bytes) -> None:
    assert model.baseline is not None
    json = model.baseline.to_json().replace(b", ", b",").replace(b": ", b":")
    assert old in json
    surface = reported(model, 1.0)
    check = DecisionCheck([Kept("host-1", surface.decision.baseline_id, json.replace(old, new, 1))])
    assert check.agrees("host-1", surface) is None
