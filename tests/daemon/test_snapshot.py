# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mvps.coherence.model import ModelSettings, SurfaceModel
from mvps.coherence.observation import HIST_BINS, Observation, Scale
from mvps.daemon.lattice import Tick
from mvps.daemon.snapshot import Composer, printable
from mvps.trust.limits import MAX_LOSS_CAUSES, MAX_NAME, MAX_OBJECTS
from mvps.v1.snapshot_pb2 import Snapshot

TICK = Tick(5, 5, 5_000_000_000, 0, 1_000_000_000, 0)


def _compose(observation: Observation, losses: dict[str, int] | None = None) -> Snapshot:
    model = SurfaceModel("kernel", ("mm", "blk"), ModelSettings())
    seen = {observation.vantage: observation}
    result = model.step(1, seen)
    composer = Composer("host", 1_000_000_000, {"kernel": ("mm", "blk")}, lambda key: key ^ 0xFFFF)
    return composer.compose(TICK, {"kernel": result}, {"kernel": model.progress}, seen, losses or {}, "empirical")


def _observation(**more: object) -> Observation:
    return Observation("mm", Scale("ns", 1.0, 1.0), np.ones(HIST_BINS), **more)  # type: ignore[arg-type]


def test_only_the_heaviest_objects_travel_and_the_total_says_how_many_there_were() -> None:
    objects = {key: float(key) for key in range(1, MAX_OBJECTS + 101)}
    sketch = _compose(_observation(objects=objects)).surfaces[0].observations[0].objects
    assert sketch.total == MAX_OBJECTS + 100
    assert [h ^ 0xFFFF for h in sketch.hashes] == list(range(MAX_OBJECTS + 100, 100, -1))


def test_no_objects_and_an_empty_set_are_told_apart() -> None:
    assert not _compose(_observation()).surfaces[0].observations[0].HasField("objects")
    assert _compose(_observation(objects={})).surfaces[0].observations[0].HasField("objects")


def test_absent_axes_are_absent_and_missing_vantages_named() -> None:
    surface = _compose(_observation()).surfaces[0]
    assert not surface.vector.HasField("c2")
    assert list(surface.missing) == ["blk"]


def test_the_largest_losses_travel_when_there_are_too_many_causes() -> None:
    losses = {f"cause{i}": i for i in range(MAX_LOSS_CAUSES + 10)}
    by_cause = _compose(_observation(), losses).losses.by_cause
    assert len(by_cause) == MAX_LOSS_CAUSES
    assert min(by_cause.values()) == 10


def test_the_body_of_a_snapshot_is_the_snapshot() -> None:
    snapshot = _compose(_observation(degraded="no\nPSI"))
    composer = Composer("host", 1_000_000_000, {}, lambda key: key)
    assert Snapshot.FromString(composer.body(snapshot, [])) == snapshot
    assert snapshot.surfaces[0].observations[0].degraded == "no?PSI"


@given(st.text(max_size=400))
def test_printable_text_fits_and_prints(text: str) -> None:
    clean = printable(text)
    assert clean.isprintable()
    assert len(clean.encode()) <= MAX_NAME
    if text.isprintable() and len(text.encode()) <= MAX_NAME:
        assert clean == text
