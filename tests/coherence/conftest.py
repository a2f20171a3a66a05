# SPDX-License-Identifier: Apache-2.0
"""A synthetic host: five vantages with unlike units, rates and tails, and faults to switch on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from mvps.coherence.observation import HIST_BINS, FloatArray, Observation, Scale

SCALES = {
    "mm": Scale("ns", 1024.0, 1e6),
    "blk": Scale("ns", 1024.0, 1e5),
    "sock": Scale("1/16 of min RTT", 1.0, 64.0),
    "sched": Scale("ns", 1024.0, 1e5),
    "irq": Scale("ns", 256.0, 1e4),
}
# log-normal severity: (median, log sd, events per tick); mm has no events in BAU.
SEVERITY = {
    "blk": (2e5, 0.8, 300),
    "sock": (20.0, 0.3, 800),
    "sched": (2e4, 1.0, 3000),
    "irq": (5e3, 0.6, 5000),
}


class Host:
    """Draws observations; load follows an AR(1) process, so that ticks depend on each other."""

    vantages = tuple(SCALES)

    def __init__(self, seed: int, rho: float = 0.55) -> None:
        self.rng = np.random.default_rng(seed)
        self.rho = rho
        self.load = 0.0

    def tick(self, rate: float = 1.0, fault: str = "", worse: float = 8.0) -> dict[str, Observation]:
        rng = self.rng
        self.load = self.rho * self.load + np.sqrt(1.0 - self.rho**2) * rng.standard_normal()
        observations = {}
        for vantage, scale in SCALES.items():
            severity = np.zeros(0)
            if vantage in SEVERITY:
                median, width, events = SEVERITY[vantage]
                number = rng.poisson(events * rate)
                severity = median * np.exp(0.1 * self.load + width * rng.standard_normal(number))
            if fault == vantage:
                severity = severity * worse if vantage in SEVERITY else 5e6 * np.exp(rng.standard_normal(200))
            objects: dict[int, float] | None = None
            if vantage == "mm":
                objects = {3: 1.0} if fault == "mm" else {}
            elif vantage != "irq":
                objects = {key: 5.0 for key in range(12) if rng.random() < 0.6}
            observations[vantage] = Observation(
                vantage, scale, histogram(scale, severity), objects, 10.0, float(rng.random() < 0.02)
            )
        return observations


def histogram(scale: Scale, severity: FloatArray) -> FloatArray:
    bins = np.searchsorted(scale.lower_edges(), severity, side="right") - 1
    return np.bincount(bins, minlength=HIST_BINS).astype(np.float64)


@pytest.fixture
def host() -> Callable[..., Host]:
    return Host
