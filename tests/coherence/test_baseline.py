# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mvps.coherence import axes
from mvps.coherence.alphabet import distribution
from mvps.coherence.baseline import MAX_JSON_BYTES, Baseline, ModelSettings, measure
from mvps.coherence.model import SurfaceModel

HostMaker = Callable[..., Any]


def calibrated(host: Any, ticks: int = 300, fault: Callable[[int], str] = lambda t: "") -> Baseline:
    model = SurfaceModel("kernel", host.vantages, ModelSettings(calibration_ticks=ticks))
    for t in range(ticks):
        model.step(t, host.tick(fault=fault(t)))
    assert model.baseline is not None
    return model.baseline


def test_json_round_trip_keeps_the_id(host: HostMaker) -> None:
    baseline = calibrated(host(1))
    again = Baseline.from_json(baseline.to_json())
    assert again == baseline
    assert again.baseline_id == baseline.baseline_id
    assert len(baseline.baseline_id) == 16
    assert dataclasses.replace(baseline, statistic="s").baseline_id != baseline.baseline_id


def test_json_that_is_no_baseline_is_refused(host: HostMaker) -> None:
    body = json.loads(calibrated(host(1), 60).to_json())
    for spoil, complaint in (
        ({"format": "other"}, "not a baseline of format"),
        ({"extra": 1}, "not a baseline"),
        ({"vantages": ["mm"]}, "do not fit"),
        ({"laws": [[1.0, 1.0, 0, 0, 0, 0]] * 5}, "distributions"),
        ({"own_excess": [-1.0] * 5}, "variances"),
        ({"statistic": "x"}, "choose one of"),
        ({"ellipsoid": 7}, "not a baseline"),
    ):
        with pytest.raises(ValueError, match=complaint):
            Baseline.from_json(json.dumps({**body, **spoil}).encode())
    for junk in (b"", b"[]", b"\xff", b"{", b"[" * 100_000):
        with pytest.raises(ValueError, match="not a baseline"):
            Baseline.from_json(junk)
    with pytest.raises(ValueError, match="over the limit"):
        Baseline.from_json(b" " * (MAX_JSON_BYTES + 1))


def test_measure_equals_the_definitions(host: HostMaker) -> None:
    """The fused per-tick arithmetic against axes.c2 and the others, with one vantage missing."""
    baseline = calibrated(host(2))
    rng = np.random.default_rng(0)
    rows = np.array([0, 1, 3, 4])
    law = baseline.law_array[rows]
    counts = rng.poisson(200.0 * law + np.array([0, 0, 0, 2.0, 0, 1.0])).astype(float)
    counts[0] = 0.0
    n = counts.sum(axis=1)
    p = distribution(counts, law, baseline.pseudo_count)
    got = measure(baseline, p, n, rows)
    pseudo, mean, excess = baseline.pseudo_count, np.array(baseline.own_mean), np.array(baseline.own_excess)
    assert got.c2 == pytest.approx(float(axes.c2(p, n, baseline.reference, pseudo)), rel=1e-12)
    assert got.c2_noise == pytest.approx(float(axes.c2_noise(p, n, law, baseline.reference, pseudo)), rel=1e-9)
    assert got.c2_plain == pytest.approx(axes.c2_plain(p), rel=1e-12)
    own = axes.own_distance(p, n, law, pseudo) - mean[rows]
    scale = np.sqrt(excess[rows] + axes.own_noise(p, n, law, pseudo))
    assert got.own == pytest.approx(own / scale, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("pattern", ["episode", "scattered"])
def test_contaminated_calibration_gives_sane_cutoffs(host: HostMaker, pattern: str) -> None:
    """10 % fault ticks in the window: the faults are set aside, the cut-offs stay within a factor of two and a
    half of the clean ones, and the same fault is seen afterwards."""
    clean = calibrated(host(3))

    def fault(t: int) -> str:
        ill = 100 <= t < 130 if pattern == "episode" else t % 10 == 5
        return "sock" if ill else ""

    dirty = calibrated(host(3), fault=fault)
    assert 28 <= dirty.trimmed <= 45
    assert clean.trimmed <= 9
    for statistic in ("d2", "s"):
        for a, b in zip(clean.cutoffs(3)[statistic], dirty.cutoffs(3)[statistic], strict=True):
            assert 0.4 < b / a < 2.5
    model = SurfaceModel("kernel", dirty.vantages, ModelSettings(), dirty)
    decision = model.step(0, host(4).tick(fault="sock")).decision
    assert decision is not None
    assert decision.raw_phase.name == "CRITICAL"
    assert decision.farthest == "sock"


def test_axes_without_anything_to_say_are_dropped_with_a_reason(host: HostMaker) -> None:
    source = host(5)
    model = SurfaceModel("kernel", source.vantages, ModelSettings(calibration_ticks=60))
    for t in range(60):
        bare = {v: dataclasses.replace(o, checked=0.0, violated=0.0, objects=None) for v, o in source.tick().items()}
        model.step(t, bare)
    assert model.baseline is not None
    assert model.baseline.ellipsoid.axes == ("c2",)
    assert {name for name, _ in model.baseline.dropped} == {"c1", "c3"}


def test_a_vantage_that_rarely_reports_is_left_out_and_named(host: HostMaker) -> None:
    source = host(6)
    model = SurfaceModel("kernel", source.vantages, ModelSettings(calibration_ticks=60))
    for t in range(60):
        observations = source.tick()
        if t % 3:
            del observations["irq"]
        model.step(t, observations)
    assert model.baseline is not None
    assert "irq" not in model.baseline.vantages
    assert ("irq", "reported in 20 of 60 calibration ticks") in model.baseline.dropped
    assert model.step(60, source.tick()).ignored == ("irq",)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"calibration_ticks": 59}, "at least 60"),
        ({"shift_dwell": 10}, "at least 60"),
        ({"cutoff_mode": "best"}, "choose one of empirical"),
        ({"statistic": "d3"}, "choose one of d2"),
        ({"pseudo_count": 0.0}, "must be positive"),
        ({"pseudo_count": float("nan")}, "must be positive"),
        ({"pseudo_count": 1e10}, "at most 1e\\+09"),
        ({"labels": 2}, "3 to 32"),
        ({"hysteresis": 0}, "at least 1"),
    ],
)
def test_settings_are_checked(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        ModelSettings(**change)
