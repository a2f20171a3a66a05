# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest

from mvps.coupling.drift import DriftTransfer, Interval, Verdict
from mvps.coupling.routing import CALIBRATION_WINDOWS, WINDOW_READINGS, Load, Routing, RoutingMonitor

NAMES = ("a", "b", "c", "d")
BAU = 400.0  # cached tokens a request
TRANSFER = DriftTransfer(
    Interval(0.6, 0.5, 0.7), Interval(400.0, 300.0, 500.0), Interval(0.0015, 0.001, 0.002), 0.05, 0.02, 30
)


class Group:
    """Four replicas: each request has 500 prompt tokens, of which four fifths are cached where it was before."""

    def __init__(self, seed: int = 0, transfer: DriftTransfer | None = None, tokens: bool = True) -> None:
        self.monitor = RoutingMonitor(transfer)
        self.draw = np.random.default_rng(seed)
        self.tokens = tokens
        self.level = 0.8

    def read(
        self, share: tuple[float, ...] = (0.25,) * 4, cold: tuple[float, ...] = (0.0,) * 4, quiet: bool = True
    ) -> Routing | None:
        loads = {}
        for name, part, missing in zip(NAMES, share, cold, strict=True):
            requests = int(self.draw.poisson(200 * part))
            prompt = 500 * requests if self.tokens else 0
            loads[name] = Load(requests, prompt, int(self.draw.binomial(prompt, 0.8 * (1.0 - missing))))
        return self.monitor.step(loads, self.level + 0.01 * self.draw.standard_normal(), quiet)

    def calibrate(self) -> None:
        for _ in range(CALIBRATION_WINDOWS * WINDOW_READINGS):
            self.read()
        assert self.monitor.learned is not None

    def settled(self, *args: tuple[float, ...]) -> Routing:
        for _ in range(WINDOW_READINGS):
            found = self.read(*args)
        assert found is not None
        return found


def test_it_calibrates_on_windows_of_readings_in_bau_that_follow_each_other() -> None:
    group = Group()
    for _ in range(WINDOW_READINGS - 1):
        assert group.read() is None
    group.read(quiet=False)
    assert group.monitor.windows == 0
    for _ in range(WINDOW_READINGS):
        group.read()
    assert group.monitor.windows == 1


def test_a_drained_replica_moves_requests_and_its_cold_share_is_measured() -> None:
    group = Group()
    group.calibrate()
    found = group.settled((1 / 3, 1 / 3, 1 / 3, 0.0), (0.25, 0.25, 0.25, 0.0))
    assert found.moved
    assert found.measured
    assert found.missing[:3] == pytest.approx([0.25] * 3, abs=0.02)
    assert found.missing[3] == 0.0  # without a request nothing is known to be cold
    assert found.exposure == pytest.approx(3 / 4 * 0.25 * BAU, rel=0.1)
    assert found.before == pytest.approx([0.25] * 4, abs=0.02)
    assert found.gained[0] in {"a", "b", "c"}


def test_without_token_counts_the_shares_alone_say_what_is_new() -> None:
    group = Group(tokens=False)
    group.calibrate()
    found = group.settled((0.4, 0.2, 0.2, 0.2))
    assert not found.measured
    assert found.moved
    assert found.missing[0] == pytest.approx(0.15 / 0.4, abs=0.08)
    assert found.exposure == pytest.approx(0.15 / 0.4 / 4, abs=0.03)


def test_requests_that_moved_and_stayed_warm_are_no_exposure() -> None:
    """A shared cache: shares move, hits do not. The shares alone would have said otherwise."""
    group = Group()
    group.calibrate()
    found = group.settled((0.4, 0.2, 0.2, 0.2))
    assert found.exposure < 0.02 * BAU


def test_a_fall_that_came_with_cold_caches_is_routing_s_and_one_without_is_not() -> None:
    group = Group(transfer=TRANSFER)
    group.calibrate()
    cold = (0.9, 0.9, 0.9, 0.9)
    expected = 0.6 * -math.expm1(-0.9 * BAU / 400.0)
    group.level = 0.8 - expected
    found = group.settled((0.25,) * 4, cold)
    assert found.attribution is not None
    assert found.predicted == pytest.approx(expected, abs=0.03)
    assert found.attribution.verdict is Verdict.ROUTING_INDUCED
    group.level = 0.5
    found = group.settled()
    assert found.attribution is not None
    assert (found.predicted, found.attribution.verdict) == (0.0, Verdict.AI_INTRINSIC)
    assert found.fall == pytest.approx(0.3, abs=0.03)


def test_moved_without_a_transfer_predicts_nothing_and_unmoved_predicts_0() -> None:
    group = Group()
    group.calibrate()
    assert math.isnan(group.settled((0.25,) * 4, (0.5,) * 4).predicted)
    assert group.settled().predicted == 0.0


def test_a_quiet_window_is_called_moved_no_more_often_than_promised() -> None:
    """At most 1/21 over windows and calibrations; 60 groups with 20 windows each, cluster interval."""
    shares = []
    for seed in range(60):
        group = Group(seed)
        group.calibrate()
        shares.append(np.mean([group.settled().moved for _ in range(20)]))
    mean, error = float(np.mean(shares)), float(np.std(shares, ddof=1)) / math.sqrt(len(shares))
    assert mean - 2.0 * error <= 1 / 21
    assert mean > 0.0  # it is a limit that quiet windows come near to


def test_other_replicas_begin_anew() -> None:
    group = Group()
    group.calibrate()
    assert group.monitor.step({"a": Load(1, 0, 0), "z": Load(1, 0, 0)}, 0.8, True) is None
    assert group.monitor.learned is None


def test_a_replica_without_any_request_gives_no_window() -> None:
    group = Group()
    for _ in range(3 * WINDOW_READINGS):
        group.read((0.5, 0.5, 0.0, 0.0))
    assert group.monitor.windows == 0


def test_what_was_learned_can_be_gone_on_with() -> None:
    group, other = Group(), Group(1)
    group.calibrate()
    assert group.monitor.learned is not None
    other.monitor.restore(group.monitor.learned)
    assert not other.settled().moved
    assert other.settled((0.25,) * 4, (0.5,) * 4).moved


def test_no_request_at_all_is_no_share() -> None:
    group = Group()
    group.calibrate()
    for _ in range(WINDOW_READINGS):
        found = group.read((0.0,) * 4)
    assert found is None
