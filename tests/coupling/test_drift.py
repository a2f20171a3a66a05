# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvps.coupling.drift import (
    Verdict,
    attribute,
    calibrate,
    dump,
    exposure,
    held_out,
    load,
    misses,
    shares,
    text_change,
)

CEILING, SCALE, NOISE = 0.6, 400.0, 0.02
share_lists = st.lists(st.floats(0.01, 1.0), min_size=4, max_size=4)


def events(seed: int, n: int = 60, top: float = 2000.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = np.exp(rng.uniform(math.log(5.0), math.log(top), n))
    return x, -CEILING * np.expm1(-x / SCALE) + NOISE * rng.standard_normal(n)


def test_one_of_four_replicas_drained() -> None:
    """001 sec. 17.1. The text's |DeltaQ_i| makes 8.3 % of a replica's requests cold; it is a quarter of them."""
    q0, q = np.full(4, 0.25), np.array([1 / 3, 1 / 3, 1 / 3, 0.0])
    m = misses(q, q0)
    assert m == pytest.approx([0.25, 0.25, 0.25, 0.0])
    assert (q - q0)[0] == pytest.approx(0.0833, abs=1e-4)
    assert q @ m == pytest.approx(0.5 * np.abs(q - q0).sum())
    assert exposure(m, np.full(4, 1000.0)) == pytest.approx(187.5)


@given(share_lists, share_lists)
def test_moved_requests_are_half_the_l1_distance(after: list[float], before: list[float]) -> None:
    q, q0 = shares(np.array(after)), shares(np.array(before))
    m = misses(q, q0)
    assert q @ m == pytest.approx(0.5 * np.abs(q - q0).sum(), abs=1e-12)
    assert ((m >= 0.0) & (m <= 1.0)).all()
    assert misses(q0, q0) == pytest.approx(np.zeros(4))


def test_the_texts_formula_leaves_its_own_scale_and_is_never_positive() -> None:
    """sigma_drift 0.1 to 0.4 and 1000 tokens, one of four replicas drained: a fall of 5 to 80 on a scale of 1."""
    q0, q = np.full(4, 0.25), np.array([1 / 3, 1 / 3, 1 / 3, 0.0])
    low, high = (float(text_change(q, q0, sigma, 1000.0, 1.0)) for sigma in (0.1, 0.4))
    assert low == pytest.approx(-5.0)
    assert high == pytest.approx(-80.0)
    assert text_change(q0, q0, 0.4, 1000.0, 1.0) == 0.0


def test_calibration_finds_what_made_the_events() -> None:
    found = calibrate(*events(0))
    assert found.ceiling.low <= CEILING <= found.ceiling.high
    assert found.scale.low <= SCALE <= found.scale.high
    assert found.slope.value == pytest.approx(CEILING / SCALE, rel=0.15)
    assert found.noise == pytest.approx(NOISE, rel=0.3)
    x = np.geomspace(1e-3, 1e7, 50)
    fall = found.predict(x)
    assert (np.diff(fall) >= 0.0).all()
    assert fall[-1] == pytest.approx(found.ceiling.value)
    assert found.ceiling.value <= 1.0
    assert fall[0] == pytest.approx(found.slope.value * x[0], rel=1e-3)


def test_intervals_hold_the_truth() -> None:
    """100 calibrations of 60 events: standard error 2 %."""
    inside = [calibrate(*events(seed)).slope for seed in range(100)]
    assert np.mean([one.low <= CEILING / SCALE <= one.high for one in inside]) >= 0.86


def test_small_exposures_give_the_slope_and_leave_the_ceiling_open() -> None:
    found = calibrate(*events(1, top=60.0))
    assert found.slope.high / found.slope.low < 2.5
    assert found.ceiling.high / found.ceiling.low > 3.0


def test_held_out_deployments() -> None:
    transfer = calibrate(*events(2))
    x, fall = events(3)
    same = held_out(transfer, x, fall)
    assert same.ic_2
    assert same.p_ic3 == "holds"
    assert same.within_factor_2 > 0.7
    assert held_out(transfer, x, 3.0 * fall).p_ic3 == "open"
    assert held_out(transfer, x, 8.0 * fall).p_ic3 == "fails"
    assert not held_out(transfer, x, 1.5 * fall).ic_2
    assert held_out(transfer, x, 0.0 * fall).p_ic3 == "fails"
    with pytest.raises(ValueError, match="moved requests"):
        held_out(transfer, np.zeros(5), np.zeros(5))


def test_residual_alarms_are_as_rare_as_promised() -> None:
    """150 calibrations of 60 events, 200 new ones each; conformal: 3/61 = 4.9 % on average."""
    rates = []
    for seed in range(150):
        transfer = calibrate(*events(seed))
        x, fall = events(5000 + seed, 200)
        rates.append((fall - transfer.predict(x) > transfer.residual_limit).mean())
    assert np.mean(rates) == pytest.approx(3 / 61, abs=0.012)


@pytest.mark.parametrize(
    ("x", "extra", "verdict"),
    [
        (0.0, 0.0, Verdict.NONE),
        (0.0, 0.3, Verdict.AI_INTRINSIC),
        (800.0, 0.0, Verdict.ROUTING_INDUCED),
        (800.0, 0.3, Verdict.BOTH),
        (800.0, -0.4, Verdict.ABSORBED),
    ],
)
def test_verdicts(x: float, extra: float, verdict: Verdict) -> None:
    found = attribute(calibrate(*events(4)), x, -CEILING * math.expm1(-x / SCALE) + extra)
    assert found.verdict is verdict
    assert found.alarm == (extra > 0.1)
    assert found.residual == pytest.approx(extra, abs=0.03)


@given(st.floats(0.0, 1e9), st.floats(-10.0, 10.0))
def test_every_event_has_one_verdict(x: float, fall: float) -> None:
    found = attribute(TRANSFER, x, fall)
    assert found.alarm == (found.verdict in (Verdict.AI_INTRINSIC, Verdict.BOTH))


TRANSFER = calibrate(*events(5))


def test_silence_is_no_share() -> None:
    q = shares(np.array([[2.0, 2.0], [0.0, 0.0]]))
    assert q[0].tolist() == [0.5, 0.5]
    assert np.isnan(q[1]).all()
    assert np.isnan(misses(q, np.array([0.5, 0.5]))[1]).all()


def test_refusals() -> None:
    with pytest.raises(ValueError, match="not negative"):
        shares(np.array([-1.0, 2.0]))
    with pytest.raises(ValueError, match="sum to 1"):
        misses(np.array([0.5, 0.6]), np.array([0.5, 0.5]))
    with pytest.raises(ValueError, match="needs 20 events"):
        calibrate(*events(0, 19))
    with pytest.raises(ValueError, match="must have some"):
        calibrate(np.zeros(30), np.zeros(30))
    with pytest.raises(ValueError, match="finite"):
        calibrate(np.full(30, np.nan), np.zeros(30))
    with pytest.raises(ValueError, match="finite"):
        attribute(TRANSFER, math.nan, 0.1)


def test_a_transfer_is_read_as_it_was_written() -> None:
    fitted = calibrate(*events(5))
    assert load(dump(fitted)) == fitted


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"mvps-drift-transfer/1"', '"mvps-drift-transfer/2"'),
        ('"noise"', '"noises"'),
        ('"events": 60', '"events": "many"'),
        ('"format"', '"extra": 1, "format"'),
        ('"residual_limit": ', '"residual_limit": Infinity, "was": '),
        ("{", "["),
    ],
)
def test_what_is_no_transfer_is_refused(old: str, new: str) -> None:
    text = dump(calibrate(*events(5)))
    assert old in text
    with pytest.raises(ValueError, match=r"transfer|format|Expecting|more than that|many"):
        load(text.replace(old, new, 1))


def test_a_ceiling_beyond_1_is_refused() -> None:
    fitted = calibrate(*events(5))
    with pytest.raises(ValueError, match="a ceiling lies in"):
        load(dump(fitted._replace(ceiling=fitted.ceiling._replace(value=1.5))))
