# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvps.coherence import axes
from mvps.coupling.joint import AI_AXES, C4_AXIS, NET_AXES, Readings, hamiltonian, join


def readings(times: list[float], keep: float, p: int = 3, start: float = 0.0) -> Readings:
    """The k-th reading is (start + k) / 1000 on every axis, so that a row tells where it came from."""
    values = np.repeat((start + np.arange(len(times)))[:, None] / 1000.0, p, axis=1)
    return Readings(np.array(times), values, keep)


def test_six_axes_or_seven() -> None:
    at = np.arange(3.0)
    for ai_axes in (AI_AXES, (*AI_AXES, C4_AXIS)):
        found = join(at, readings([0, 1, 2], 1.0), readings([0, 1, 2], 1.0, len(ai_axes)))
        assert found.z.shape == (3, len(NET_AXES) + len(ai_axes))
        assert found.split == 3
        assert found.complete.all()


def test_the_last_reading_stands_until_it_is_too_old_and_is_then_missing() -> None:
    at = np.arange(0.0, 8.0)
    found = join(at, readings(list(at), 0.5), readings([0.5, 3.0], 2.0))
    # At 0 the AI surface has not read yet; the reading of 0.5 stands to 2.5, that of 3.0 to 5.0.
    assert found.z[:, 3].tolist()[1:3] == [0.0, 0.0]
    assert found.z[3:6, 3].tolist() == [0.001] * 3
    assert np.isnan(found.z[[0, 6, 7], 3:]).all()
    assert found.ages[1:6, 1].tolist() == [0.5, 1.5, 0.0, 1.0, 2.0]
    assert np.isnan(found.ages[[0, 6, 7], 1]).all()
    assert not np.isnan(found.z[:, :3]).any()


def test_a_reading_that_stands_twice_counts_once() -> None:
    at = np.arange(0.0, 10.0)
    found = join(at, readings(list(at), 0.5), readings([0.0, 5.0], 9.0))
    assert np.flatnonzero(found.usable).tolist() == [0, 5]
    assert found.complete.all()


@given(
    st.lists(st.integers(0, 200), min_size=1, max_size=30, unique=True),
    st.lists(st.integers(0, 200), min_size=1, max_size=30, unique=True),
    st.integers(1, 50),
)
def test_nothing_comes_from_the_future_and_live_is_replay(net: list[int], ai: list[int], keep: int) -> None:
    both = [readings([float(t) for t in sorted(times)], float(keep)) for times in (net, ai)]
    at = np.arange(0.0, 220.0, 7.0)
    found = join(at, *both)
    for row, t in enumerate(at):
        # Only what had been read by then.
        past = [Readings(r.times[r.times <= t], r.values[r.times <= t], r.keep) for r in both]
        live = join(at[row : row + 1], *past)
        assert np.array_equal(live.z[0], found.z[row], equal_nan=True)
        for surface, r in enumerate(past):
            stands = [(int(k), t - s) for k, s in enumerate(r.times) if t - s <= keep]
            if stands:
                assert found.z[row, 3 * surface] == stands[-1][0] / 1000.0
                assert found.ages[row, surface] == stands[-1][1]
            else:
                assert np.isnan(found.z[row, 3 * surface])
    for row in np.flatnonzero(found.usable):
        assert (found.z[row] > found.z[:row][found.usable[:row]]).all()


def test_half_a_surface_is_no_surface() -> None:
    net = readings([0, 1], 0.5)
    net.values[1, 2] = np.nan
    found = join(np.array([0.0, 1.0]), net, readings([0, 1], 0.5))
    assert found.complete.tolist() == [True, False]
    assert np.isnan(found.z[1, :3]).all()


def test_longest_run_has_no_gap() -> None:
    ticks = [float(t) for t in range(20) if t not in (5, 6)]
    found = join(np.arange(20.0), readings(ticks, 0.5), readings(ticks, 0.5))
    run = found.longest_run()
    assert len(run) == 13
    assert run[0, 0] == 0.005
    assert len(join(np.array([0.0]), readings([5], 1.0), readings([5], 1.0)).longest_run()) == 0


@given(st.lists(st.floats(0.0, 1.0), min_size=6, max_size=7))
def test_the_hamiltonian_is_the_sum_of_those_of_the_surfaces(z: list[float]) -> None:
    found = hamiltonian(np.array([z]), 3)
    assert found.joint[0] == pytest.approx(axes.hamiltonian(z))
    assert found.net[0] == pytest.approx(axes.hamiltonian(z[:3]))
    assert found.joint[0] == found.net[0] + found.ai[0]
    assert found.joint[0] >= 0.0


def test_the_hamiltonian_is_0_where_all_is_well_and_unknown_where_a_surface_is_missing() -> None:
    z = np.array([[1.0] * 6, [1.0] * 3 + [math.nan] * 3])
    found = hamiltonian(z, 3)
    assert found.joint[0] == 0.0
    assert found.net[1] == 0.0
    assert np.isnan(found.joint[1])


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (Readings(np.array([0.0, 0.0]), np.ones((2, 3)), 1.0), "strictly increasing"),
        (Readings(np.array([0.0, np.inf]), np.ones((2, 3)), 1.0), "finite"),
        (Readings(np.array([0.0]), np.full((1, 3), 1.5), 1.0), r"\[0, 1\]"),
        (Readings(np.array([0.0]), np.ones((2, 3)), 1.0), "one row"),
        (Readings(np.array([0.0]), np.ones((1, 3)), 0.0), "positive"),
    ],
)
def test_readings_that_are_none(net: Readings, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        join(np.array([0.0]), net, readings([0], 1.0))
    with pytest.raises(ValueError, match="joint times"):
        join(np.array([1.0, 0.0]), readings([0], 1.0), readings([0], 1.0))
