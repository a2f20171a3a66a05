# SPDX-License-Identifier: Apache-2.0
"""The cost forms: units, limits, and the source's own figures against its own formulas."""

from __future__ import annotations

import pytest

from mvps.cost.model import (
    SEED,
    Constants,
    ai_vantage_load,
    claims,
    flood_multiplier,
    joint_broker_load,
)


def test_ten_vantages_at_one_hertz_by_hand():
    # 10 snapshots of 6.3 us in every second are 63 us of 1,000,000.
    assert joint_broker_load(10, 1.0, SEED) == pytest.approx(63e-6)


def test_the_load_grows_with_vantages_and_rate_and_not_with_the_quorum_alone():
    base = joint_broker_load(100, 1.0, SEED)
    assert joint_broker_load(200, 1.0, SEED) == pytest.approx(2 * base)
    assert joint_broker_load(100, 0.5, SEED) == pytest.approx(2 * base)
    assert joint_broker_load(100, 1.0, SEED, quorum=7) == base


def test_checkpoints_cost_once_a_period_whatever_n_is():
    constants = Constants(hmac=2.0, bundle=300.0, cosign=100.0)
    for vantages in (10, 1000):
        with_them = joint_broker_load(vantages, 1.0, constants, quorum=2, bundle_period_s=10.0)
        assert with_them - joint_broker_load(vantages, 1.0, constants) == pytest.approx(500 / 1e6 / 10)


def test_every_known_part_is_in_the_path_and_unknown_ones_are_not_zero_by_name():
    assert SEED.path == pytest.approx(6.3)
    assert Constants(hmac=1, parse=2, grpc=3, log=4, xdp=100, sw2=100).path == 10
    assert "xdp" not in SEED.known()


def test_vantage_load_by_hand():
    # 6 pairs of (1 + 5) ms and 5 passes of 10 ms on 4 replicas.
    load = ai_vantage_load(4, 5, 2.0, SEED)
    assert load.seconds == pytest.approx(0.236)
    assert load.cores == pytest.approx(0.118)


def test_one_replica_has_no_pairs():
    assert ai_vantage_load(1, 0, 1.0, SEED).seconds == 0


def test_a_flood_is_bounded_by_what_passes_and_what_is_dropped():
    constants = Constants(hmac=2.0, parse=4.0, xdp=0.02)
    assert flood_multiplier(1000, 4, constants) == pytest.approx(4 + 1000 * 0.02 / 6)
    assert flood_multiplier(1000, 4, constants, packets=5) == pytest.approx(4 + 1000 * 5 * 0.02 / 6)


def test_a_limiter_never_makes_it_worse_than_the_flood_itself():
    expensive = Constants(hmac=1.0, xdp=50.0)
    assert flood_multiplier(10, 4, expensive) == 10
    assert flood_multiplier(1, 4, expensive) == 1


@pytest.mark.parametrize(
    "wrong", [{"vantages": 0, "tick_s": 1.0}, {"vantages": 1, "tick_s": 0.0}, {"vantages": 1, "tick_s": -1.0}]
)
def test_nonsense_is_refused(wrong: dict[str, float]):
    with pytest.raises(ValueError, match="must be positive"):
        joint_broker_load(constants=SEED, **wrong)  # type: ignore[arg-type]


def test_what_is_not_known_is_an_error_and_not_free():
    with pytest.raises(ValueError, match="sw2, cka"):
        ai_vantage_load(4, 5, 1.0, Constants(model_pass=1.0))
    with pytest.raises(ValueError, match="not known"):
        flood_multiplier(10, 4, SEED)


def test_the_sources_figures_that_do_not_follow_from_its_formulas():
    verdicts = {(claim.what, claim.holds) for claim in claims()}
    assert verdicts == {
        ("broker, N = 10, T = 1 s", False),  # ten times too large
        ("broker, N = 10, T = 50 ms", False),  # ten times too large
        ("vantage, 4 replicas, K_4 = 5, T = 1 s", False),  # uses 5 ms for SW_2 and 100 ms a pass
        ("broker, HMAC alone, N = 1000, T = 1 s", True),
    }
    for claim in claims()[:2]:
        assert claim.printed / claim.computed == pytest.approx(10)
