# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvps.semantic import cka as module
from mvps.semantic.cka import (
    attention_features,
    c3_cka,
    cka,
    cka_biased,
    cka_projected,
    gram,
    layer_group,
    pairwise,
    reduce,
    row_jsd,
)

SEEDS = st.integers(0, 2**32 - 1)


def by_definition(x: np.ndarray, y: np.ndarray) -> float:
    """Song et al. 2012 eq. 5 for all three HSIC_1, with matrices of ones."""

    def hsic(k: np.ndarray, m: np.ndarray) -> float:
        n = len(k)
        k, m, one = k - np.diag(k.diagonal()), m - np.diag(m.diagonal()), np.ones(n)
        total = np.trace(k @ m) + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
        return float(total - 2.0 / (n - 2) * (one @ k @ m @ one)) / (n * (n - 3))

    k, m = x @ x.T, y @ y.T
    return hsic(k, m) / math.sqrt(hsic(k, k) * hsic(m, m))


def value(x: np.ndarray, y: np.ndarray) -> float:
    return cka(gram(x), gram(y))


def causal_map(rng: np.random.Generator, n: int, scale: float = 1.0) -> np.ndarray:
    weights = np.tril(np.exp(scale * rng.normal(size=(n, n))))
    return weights / weights.sum(axis=1, keepdims=True)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(5, 30), st.integers(1, 40), st.integers(1, 10))
def test_it_is_its_definition(seed: int, n: int, d: int, common: int):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) + 3.0
    y = x[:, :common] @ rng.normal(size=(min(common, d), 4)) + rng.normal(size=(n, 4))
    assert value(x, y) == pytest.approx(by_definition(x, y), abs=1e-8)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(5, 30), st.integers(2, 20))
def test_rotation_scale_and_shift_change_nothing(seed: int, n: int, d: int):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, d)), rng.normal(size=(n, d))
    rotation = np.linalg.qr(rng.normal(size=(d, d)))[0]
    assert value(7.0 * x @ rotation - 2.0, y) == pytest.approx(value(x, y), abs=1e-9)
    assert value(7.0 * x @ rotation - 2.0, x) == pytest.approx(1.0)


def test_invertible_maps_do():
    """001 sec. 5.2 sets it against "linear CKA variants"; linear CKA is this, and it is no CCA."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(100, 10))
    assert value(x, x * np.geomspace(1.0, 1000.0, 10)) < 0.5


def test_independent_features_score_0_and_in_the_sources_form_nearly_1():
    """n = 64, d = 768, 40 draws: the mean within 4 standard errors of 0, all within .1."""
    rng = np.random.default_rng(2)
    drawn = [(rng.normal(size=(64, 768)), rng.normal(size=(64, 768))) for _ in range(40)]
    values = np.array([value(x, y) for x, y in drawn])
    assert abs(values.mean()) < 4.0 * values.std() / math.sqrt(40)
    assert np.abs(values).max() < 0.1
    assert min(cka_biased(x, y) for x, y in drawn) > 0.9


def test_causal_maps_share_their_mask_and_the_features_do_not():
    """Independent causal maps: alike in the source's form, still alike unbiased, unrelated once the mask is out."""
    rng = np.random.default_rng(3)
    maps = [(causal_map(rng, 96), causal_map(rng, 96)) for _ in range(20)]
    plain = [value(a, b) for a, b in maps]
    stripped = np.array([value(attention_features(a), attention_features(b)) for a, b in maps])
    assert min(plain) > 0.2
    assert np.mean(plain) > 0.4
    assert np.abs(stripped).max() < 0.1
    assert abs(stripped.mean()) < 4.0 * stripped.std() / math.sqrt(20)
    a, _ = maps[0]
    assert value(attention_features(a), attention_features(a)) == pytest.approx(1.0)


def test_it_cannot_see_which_token_is_attended_and_row_jsd_can():
    rng = np.random.default_rng(4)
    weights = rng.dirichlet(np.full(40, 0.1), 40)
    moved = weights[:, rng.permutation(40)]
    assert value(weights, moved) == pytest.approx(1.0)
    assert cka_biased(weights, moved) == pytest.approx(1.0)
    assert row_jsd(weights, moved, causal=False) > 0.5


def test_attention_features_in_closed_form():
    n = 6
    uniform = np.tri(n) / np.arange(1, n + 1)[:, None]
    assert attention_features(uniform) == pytest.approx(np.zeros((n, n)))
    assert attention_features(np.full((n, n), 1 / n), causal=False) == pytest.approx(np.zeros((n, n)))
    rng = np.random.default_rng(5)
    logits = rng.normal(size=(n, n))
    maps = []
    for temperature in (1.0, 2.0):
        weights = np.tril(np.exp(logits / temperature))
        maps.append(weights / weights.sum(axis=1, keepdims=True))
    sharp, soft = (attention_features(one, drop_sink=False) for one in maps)
    assert sharp == pytest.approx(2.0 * soft)  # log-ratios are linear in the logits
    assert sharp.sum(axis=1) == pytest.approx(np.zeros(n), abs=1e-12)
    assert np.triu(sharp, 1) == pytest.approx(np.zeros((n, n)))
    first = logits.copy()
    first[:, 0] += 3.0
    weights = np.tril(np.exp(first))
    other = attention_features(weights / weights.sum(axis=1, keepdims=True))
    assert other == pytest.approx(attention_features(maps[0]))  # the sink is out


def test_a_weight_that_rounds_to_0_is_no_infinite_difference():
    n = 8
    one, other = (np.tri(n) / np.arange(1, n + 1)[:, None] for _ in range(2))
    one[7, 3], other[7, 3] = 0.0, 1e-12
    one, other = (w / w.sum(axis=1, keepdims=True) for w in (one, other))
    assert attention_features(one) == pytest.approx(attention_features(other), abs=1e-9)


def test_row_jsd_in_closed_form():
    eye, turned = np.eye(4), np.eye(4)[::-1]
    assert row_jsd(eye, eye, causal=False) == 0.0
    assert row_jsd(eye, turned, causal=False) == pytest.approx(1.0)
    half = 0.5 * (eye + turned)
    # JSD of a point and an even pair that contains it: 3/4 log2(4/3) in all.
    assert row_jsd(eye, half, causal=False) == pytest.approx(1.5 - 0.75 * math.log2(3.0))
    causal = np.tri(3) / np.arange(1, 4)[:, None]
    other = causal.copy()
    other[2] = [1.0, 0.0, 0.0]
    assert row_jsd(causal, other) == pytest.approx(jsd_of_one(causal[2], other[2]) / 2.0)


def jsd_of_one(p: np.ndarray, q: np.ndarray) -> float:
    def h(x: np.ndarray) -> float:
        return -sum(v * math.log2(v) for v in x if v > 0.0)

    return h((p + q) / 2.0) - (h(p) + h(q)) / 2.0


def test_projections_are_exact_below_their_rank_and_unbiased_above():
    rng = np.random.default_rng(6)
    x, y = rng.normal(size=(50, 20)), rng.normal(size=(50, 30))
    y[:, :5] += x[:, :5]
    assert cka_projected(reduce(x), reduce(y)) == pytest.approx(value(x, y), abs=1e-9)
    x = rng.normal(size=(300, 400))
    y = 0.7 * x + rng.normal(size=(300, 400))
    exact = value(x, y)
    found = np.array([cka_projected(reduce(x, 64, s), reduce(y, 64, s)) for s in range(60)])
    # A ratio of unbiased estimates: its own bias is of the second order, hence the .02.
    assert abs(found.mean() - exact) < 4.0 * found.std() / math.sqrt(60) + 0.02
    assert found.std() < 0.3
    assert cka_projected(reduce(x), reduce(x)) == pytest.approx(1.0)
    assert abs(np.mean([cka_projected(reduce(x, 64, s), reduce(x[::-1].copy(), 64, s)) for s in range(40)])) < 0.1


def test_one_projection_makes_the_norm_too_large():
    """By about the effective dimension over the rank: 001 sec. 5.5 has no such term."""
    rng = np.random.default_rng(7)
    x = rng.normal(size=(300, 400))
    x -= x.mean(axis=0)
    once = [x @ rng.normal(size=(400, 64)) / 8.0 for _ in range(10)]
    exact = module._hsic(x, x)
    assert np.mean([module._hsic(one, one) for one in once]) > 2.0 * exact
    twice = [module._hsic(a, b) for a, b in itertools.pairwise(once)]
    assert np.mean(twice) == pytest.approx(exact, rel=0.25)


def test_features_that_do_not_vary_have_no_cka():
    x = np.random.default_rng(8).normal(size=(20, 6))
    constant, one_hot = np.full((20, 6), 0.1), np.eye(20)
    for degenerate in (constant, constant.astype(np.float32), one_hot, np.zeros((20, 6))):
        assert math.isnan(value(degenerate, x if degenerate.dtype == np.float64 else x.astype(np.float32)))
    assert math.isnan(cka_projected(reduce(np.zeros((20, 6))), reduce(x)))
    assert math.isnan(cka_biased(constant * 0.0, x))
    found = pairwise([gram(x), gram(constant), gram(x * 2.0)])
    assert found[0, 2] == pytest.approx(1.0)
    assert np.isnan(found[1]).all()


def test_single_precision_and_a_large_common_mean():
    rng = np.random.default_rng(9)
    x = rng.normal(size=(64, 768)) + 100.0
    y = x + 0.5 * rng.normal(size=(64, 768))
    single = value(x.astype(np.float32), y.astype(np.float32))
    assert single == pytest.approx(value(x, y), abs=1e-3)
    assert value(x, y) == pytest.approx(by_definition(x - 100.0, y - 100.0), abs=1e-6)


def test_pairwise_is_positive_semidefinite():
    rng = np.random.default_rng(10)
    found = pairwise([gram(rng.normal(size=(12, 5))) for _ in range(6)])
    assert found.diagonal() == pytest.approx(np.ones(6))
    assert np.linalg.eigvalsh(found)[0] > -1e-9


def test_c3_is_the_excess_over_the_null():
    values = np.array([[1.0, 0.8, 0.6], [0.8, 1.0, 0.4], [0.6, 0.4, 1.0]])
    assert c3_cka(values, 0.2) == pytest.approx((0.6 - 0.2) / 0.8)
    assert c3_cka(values, 0.0) == pytest.approx(0.6)
    assert c3_cka(values, 0.7) == 0.0
    assert c3_cka(np.full((3, 3), math.nan), 0.1) is None
    values[0, 1] = math.nan
    assert c3_cka(values, 0.0) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="unpaired prompts already"):
        c3_cka(values, 1.0)


@pytest.mark.parametrize(
    ("layers", "group", "found"),
    [
        (1, "middle", [0]),
        (2, "middle", [0, 1]),
        (12, "middle", [4, 5, 6, 7, 8]),
        (12, "early", [0, 1, 2, 3]),
        (12, "late", [9, 10, 11]),
        (32, "middle", list(range(10, 22))),
    ],
)
def test_layer_groups(layers: int, group: str, found: list[int]):
    assert list(layer_group(layers, group)) == found


def test_layer_groups_that_there_are_not():
    with pytest.raises(ValueError, match="no early layers"):
        layer_group(2, "early")
    with pytest.raises(ValueError, match="unknown layer group"):
        layer_group(12, "last")
    with pytest.raises(ValueError, match="at least one layer"):
        layer_group(0)


def test_what_cannot_be_compared_is_refused():
    x = np.random.default_rng(11).normal(size=(10, 4))
    with pytest.raises(ValueError, match="same tokens"):
        cka(gram(x), gram(x[:9]))
    with pytest.raises(ValueError, match="same inputs"):
        cka_projected(reduce(x), reduce(x[:9]))
    with pytest.raises(ValueError, match=r"different \(rank, seed\)"):
        cka_projected(reduce(x), reduce(x, seed=1))
    with pytest.raises(ValueError, match="different numbers of rows"):
        pairwise([gram(x), gram(x[:9])])
    with pytest.raises(ValueError, match="at least 4 rows"):
        gram(x[:3])
    with pytest.raises(ValueError, match="single or double"):
        gram(x.astype(np.float16))
    with pytest.raises(ValueError, match="finite features"):
        gram(np.full((5, 2), math.nan))
    with pytest.raises(ValueError, match="cka_projected"):
        gram(np.zeros((5000, 1)))
    with pytest.raises(ValueError, match="rank of at least 1"):
        reduce(x, 0)


@pytest.mark.parametrize(
    ("attention", "message"),
    [
        (np.full((3, 3), 1 / 3), "causal=False"),
        (np.tri(3), "sum to 1"),
        (-np.eye(3), "not negative"),
        (np.full((3, 3), math.nan), "finite"),
        (np.ones((2, 3)), "average over heads"),
        (np.ones((1, 1)), "average over heads"),
    ],
)
def test_what_is_no_attention_map_is_refused(attention: np.ndarray, message: str):
    with pytest.raises(ValueError, match=message):
        attention_features(attention)
    with pytest.raises(ValueError, match=message):
        row_jsd(attention, attention)
