# SPDX-License-Identifier: Apache-2.0
"""Agents without a kernel: a simulated VantageSet under the real everything else.

Also makes tests/trust/authority.py importable.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from mvps.coherence.model import ModelSettings, SurfaceModel
from mvps.coherence.observation import HIST_BINS, Observation, Scale
from mvps.daemon.baselines import Purpose, Saver
from mvps.daemon.config import Config
from mvps.daemon.lattice import Tick
from mvps.daemon.notify import Notifier
from mvps.daemon.service import Agent, NoUplink, Uplink
from mvps.probes.cost import RunTotals
from mvps.vantages.registry import VantageState

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "trust"))

SURFACES = {"kernel": ("mm", "blk"), "dataplane": ("path",)}
SCALE = Scale("ns", 1024.0, 1024.0)


class SimulatedVantages:
    """Stands in for VantageSet where root is missing. ``fault`` moves the latency of "blk" up by octaves."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(7)
        self.fault = 0
        self.closed = False
        self.fail_read = False
        self.failed: dict[str, str] = {}
        self.scale = SCALE
        self.thresholds: dict[str, int] = {}
        self.totals: dict[str, RunTotals] = {"mm/mm_direct_begin": RunTotals("mm_direct_begin", 0, 0)}

    def read(self) -> dict[str, Observation]:
        if self.fail_read:
            raise OSError(5, "witness went away")
        seen = {}
        for name in ("mm", "blk", "path"):
            if name in self.failed:
                continue
            shift = 4 * self.fault if name == "blk" else 0
            bins = np.clip(self._rng.normal(30 + shift, 3, 200).astype(int), 0, HIST_BINS - 1)
            histogram = np.bincount(bins, minlength=HIST_BINS).astype(np.float64)
            objects = {1: 120.0, 2: 80.0 + self._rng.integers(5)} | ({3: 1.0} if self._rng.random() < 0.3 else {})
            violated = float(self._rng.random() < 0.1)
            seen[name] = Observation(name, self.scale, histogram, objects, 20.0, violated)
        return seen

    def states(self) -> dict[str, VantageState]:
        names = ("mm", "blk", "path")
        return {n: VantageState(n, "failed" if n in self.failed else "ok", self.failed.get(n, "")) for n in names}

    def losses(self) -> dict[str, int]:
        return {"blk.objects_full": 3}

    def object_names(self, keys: Iterable[int]) -> dict[int, str]:
        return {key: f"unit-{key}.service" for key in keys if key != 3}

    def set_thresholds(self, bins: Mapping[str, int]) -> None:
        self.thresholds = {**self.thresholds, **bins}

    def program_totals(self) -> dict[str, RunTotals]:
        return dict(self.totals)

    def close(self) -> None:
        self.closed = True


class TickSource:
    """Ticks of one second on a made-up clock."""

    def __init__(self) -> None:
        self._index = 1_700_000_000

    def next(self) -> Tick:
        self._index += 1
        return Tick(self._index, self._index, self._index * 1_000_000_000, 0, 1_000_000_000, 0)


@pytest.fixture
def ticks() -> TickSource:
    return TickSource()


@pytest.fixture
def vantages() -> SimulatedVantages:
    return SimulatedVantages()


@pytest.fixture
def make_agent(vantages: SimulatedVantages, tmp_path: Path) -> Iterator[Callable[..., Agent]]:
    """A factory of agents over simulated vantages; what it makes is closed at the end."""
    made: list[Agent] = []

    def make(
        config: Config | None = None,
        config_path: str = "",
        uplink: Uplink | None = None,
        stored: dict[str, object] | None = None,
        save: bool = False,
        notifier: Notifier | None = None,
    ) -> Agent:
        config = config or Config()
        settings = ModelSettings(calibration_ticks=60)
        models = {
            name: SurfaceModel(name, members, settings, (stored or {}).get(name))  # type: ignore[arg-type]
            for name, members in SURFACES.items()
        }
        purposes = [Purpose(name, members, config.tick_ns, {}) for name, members in SURFACES.items()]
        saver = Saver(tmp_path, purposes) if save else None
        agent = Agent(
            config,
            config_path,
            vantages,
            uplink or NoUplink(),
            models,
            SURFACES,
            saver,
            lambda key: (key * 0x9E3779B97F4A7C15) & 0xFFFF_FFFF_FFFF_FFFF,
            notifier,
        )
        made.append(agent)
        return agent

    yield make
    for agent in made:
        agent.close()
