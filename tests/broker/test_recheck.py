# SPDX-License-Identifier: Apache-2.0
"""Decisions of a real SurfaceModel, through a snapshot and back."""

import itertools

import numpy as np
import pytest
from wire_samples import Host, broker_epochs, new_host, snapshot

from mvps.broker.admission import Admission
from mvps.broker.recheck import DecisionCheck
from mvps.broker.store import Kept
from mvps.coherence.model import ModelSettings, SurfaceModel
from mvps.coherence.observation import HIST_BINS, Observation, Scale
from mvps.trust.gate import check_body
from mvps.trust.replay import Window
from mvps.trust.seal import parse_header
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


def test_without_the_vantages_own_baseline_nothing_is_said(model: SurfaceModel) -> None:
    surface = reported(model, 1.0)
    check = DecisionCheck([kept(model, "host-2"), Kept("host-3", surface.decision.baseline_id, b"{}")])
    assert [check.agrees(f"host-{i}", surface) for i in (1, 2, 3)] == [None, True, None]
    surface.ClearField("decision")
    assert check.agrees("host-2", surface) is None


def test_a_mismatch_is_flagged_and_the_snapshot_accepted(model: SurfaceModel) -> None:
    host: Host = new_host()
    body = snapshot()
    surface = reported(model, 1.0)
    surface.decision.d2 += 1.0
    body.surfaces[0].CopyFrom(surface)
    assert model.baseline is not None
    body.baselines.add(id=model.baseline.baseline_id, surface="kernel", json=model.baseline.to_json())
    sealed = host.seal(body, tick=body.tick)
    assert check_body(sealed.body, parse_header(sealed.header), Window()) is None
    decides = Admission(broker_epochs(host.site), Window(), max_vantages=1)
    ((verdict,), _) = decides.judge([sealed], body.tick_time_ns + 10**9)
    assert verdict.reason is None
    assert verdict.row is not None
    assert verdict.row.mismatch
    assert decides.decisions == {"checked": 1, "mismatch": 1}


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
