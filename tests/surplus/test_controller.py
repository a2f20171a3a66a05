# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import chisquare

from mvps.surplus.controller import Control, Controller, Fallback, Modes, Requests, Settings, Terrain, drawn
from mvps.surplus.geometry import angle, basis, compliance
from mvps.surplus.lookahead import Bigram
from mvps.surplus.objective import DissipationWeights, ValueWeights

VOCABULARY, DIMENSIONS = 3000, 16
CHANCE = np.random.default_rng(11)
EMBEDDINGS = CHANCE.normal(size=(VOCABULARY, DIMENSIONS)).astype(np.float32)
AXES = basis(CHANCE.normal(size=(3, DIMENSIONS))).astype(np.float32)


PLAIN = Settings()


class Forbids:
    """A checker that lets everything pass but given tokens, wherever they stand in a path."""

    def __init__(self, forbidden: set[int], structural: set[int], broken: set[int]) -> None:
        self.forbidden, self.structures, self.lost = forbidden, structural, broken

    def valid_length(self, slots: np.ndarray, paths: np.ndarray) -> np.ndarray:
        bad = np.isin(paths, list(self.forbidden)) | (paths < 0)
        return np.where(bad.any(axis=2), bad.argmax(axis=2), paths.shape[2])

    def structural(self, tokens: np.ndarray) -> np.ndarray:
        return np.isin(tokens, list(self.structures))

    def at_boundary(self, slots: np.ndarray) -> np.ndarray:
        return np.zeros(len(slots), dtype=bool)

    def broken(self, slots: np.ndarray) -> np.ndarray:
        return np.isin(slots, list(self.lost))

    def advance(self, slots: np.ndarray, tokens: np.ndarray) -> None:
        pass


def controller(rows: int, settings: Settings = PLAIN, **more: object) -> Controller:
    chance = np.random.default_rng(5)
    requests = Requests(rows, DIMENSIONS)
    for slot in range(rows):
        requests.open(slot, chance.normal(size=DIMENSIONS), chance.normal(size=DIMENSIONS))
    modes = more.pop("modes", None)
    return Controller(settings, Terrain(EMBEDDINGS, AXES, modes), requests, **more)  # type: ignore[arg-type]


def control(rows: int, lam: float = 0.4, budget: float = 0.01, look: bool = False) -> Control:
    return Control(np.full(rows, lam), np.full(rows, budget), np.full(rows, 0.7), np.full(rows, look))


def logits(rows: int, seed: int = 1, scale: float = 3.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(rows, VOCABULARY)) * scale).astype(np.float32)


def normal(z: np.ndarray) -> np.ndarray:
    z = z.astype(np.longdouble)
    z = z - z.max(axis=-1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def kl(after: np.ndarray, before: np.ndarray) -> np.ndarray:
    """KL of softmax(after) from softmax(before), in extended precision."""
    log_q, log_p = normal(after), normal(before)
    with np.errstate(invalid="ignore"):
        return np.where(np.isfinite(log_q), np.exp(log_q) * (log_q - log_p), 0.0).sum(axis=-1).astype(float)


def test_only_candidates_move_by_the_budget_at_the_requests_temperature() -> None:
    rows = 6
    temperature = np.array([0.2, 0.5, 0.8, 1.0, 1.5, 3.0])
    before = logits(rows)
    after = before.copy()
    step = controller(rows).apply(after, np.arange(rows), control(rows), temperature)
    changed = before != after
    for row in range(rows):
        assert set(np.flatnonzero(changed[row])) <= set(step.candidates[row].tolist())
    picked = np.take_along_axis(after, step.candidates, 1), np.take_along_axis(before, step.candidates, 1)
    used = kl(picked[0] / temperature[:, None], picked[1] / temperature[:, None])
    np.testing.assert_allclose(used, step.kl, atol=1e-9)
    assert np.all(used <= 0.01 + 1e-6)
    assert np.all(step.kl[1:] >= 0.0099)
    # Over the whole vocabulary it is less: the candidates keep their joint probability.
    whole = kl(after / temperature[:, None], before / temperature[:, None])
    assert np.all(whole <= used + 1e-9)
    np.testing.assert_array_equal(step.fallback, 0)


def test_rows_that_must_not_move_keep_every_bit() -> None:
    rows = 10
    before = logits(rows)
    before[:, 7] = -0.0
    before[5, 3] = np.nan
    before[6] = -np.inf
    unit = controller(rows, Settings(request_budget=1.0), checker=Forbids(set(), set(), {4}))
    unit.requests.open(2)
    unit.requests.spent[3] = 1.0
    unit.requests.embedding[7] = 0.0
    unit.requests.open(8, embedding=EMBEDDINGS[0])
    push = control(rows)
    push.lam[0] = 0.0
    temperature = np.full(rows, 0.7)
    temperature[1] = 0.0
    after = before.copy()
    step = unit.apply(after, np.arange(rows), push, temperature)
    assert before[:9].tobytes() == after[:9].tobytes()
    assert before[9].tobytes() != after[9].tobytes()
    assert [Fallback(code) for code in step.fallback] == [
        Fallback.OFF,
        Fallback.GREEDY,
        Fallback.NO_FEATURES,
        Fallback.BUDGET_SPENT,
        Fallback.STRUCTURE,
        Fallback.LOGITS,
        Fallback.LOGITS,
        Fallback.NO_FEATURES,
        Fallback.NO_FEATURES,
        Fallback.NONE,
    ]
    assert np.all(step.kl[:9] == 0.0)
    assert np.all(step.change[:9] == 0.0)
    assert step.stop_advised.tolist() == [False] * 4 + [True] * 3 + [False] * 3


def test_lambda_0_for_all_is_the_identity_in_every_precision() -> None:
    for kind in (np.float16, np.float32, np.float64):
        before = logits(4).astype(kind)
        after = before.copy()
        controller(4).apply(after, np.arange(4), control(4, lam=0.0), np.ones(4))
        assert before.tobytes() == after.tobytes()


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("mode", ["kl", "box", "l2"])
def test_what_is_written_stays_within_the_budget_also_where_rounding_is_coarse(kind: type, mode: str) -> None:
    rows = 4000
    chance = np.random.default_rng(3)
    scale = 10.0 ** chance.uniform(-2, 4, size=(rows, 1))
    before = (chance.normal(size=(rows, 40)) * scale).astype(kind)
    before[chance.random(before.shape) < 0.1] = -np.inf
    unit = controller(rows, Settings(mode=mode))
    temperature = 10.0 ** chance.uniform(-1, 1, size=rows)
    push = control(rows)._replace(budget=10.0 ** chance.uniform(-5, 0, size=rows))
    after = before.copy()
    step = unit.apply(after, np.arange(rows), push, temperature)
    alive = np.isfinite(before.max(axis=1))
    picked = [np.take_along_axis(z.astype(float), step.candidates, 1)[alive] for z in (after, before)]
    used = kl(*(z / temperature[alive, None] for z in picked))
    np.testing.assert_allclose(used, step.kl[alive], atol=1e-8)
    limit = push.budget if mode == "kl" else 0.5 * push.budget**2
    if mode != "l2":
        assert np.all(used <= limit[alive] + 1e-6)
    assert np.array_equal(np.isinf(before), np.isinf(after))
    assert np.count_nonzero(step.kl) > rows // 3
    assert set(step.fallback) <= {Fallback.NONE, Fallback.LOGITS, Fallback.ROUNDING}


def test_geometry_agrees_with_its_own_module() -> None:
    unit = controller(5)
    step = unit.apply(logits(5), np.arange(5), control(5), np.ones(5))
    e, g = unit.requests.embedding.astype(float), unit.requests.goal.astype(float)
    np.testing.assert_allclose(step.now.theta[:, 0], angle(e, g), atol=1e-5)
    phi, leakage = compliance(e, AXES.astype(float))
    np.testing.assert_allclose(step.now.phi[:, 0], phi, atol=1e-5)
    np.testing.assert_allclose(step.now.leakage[:, 0], leakage, atol=1e-4)
    reach = unit.settings.reach
    for j in range(8):
        after = (1 - reach) * e + reach * EMBEDDINGS[step.candidates[:, j]]
        grown = np.maximum(angle(after, g) - angle(e, g), 0)
        grown += 0.5 * np.maximum(compliance(after, AXES.astype(float)).leakage - leakage, 0)
        np.testing.assert_allclose(step.terms.drift[:, j], grown, atol=1e-4)
        gained = np.cos(angle(after, g)) - np.cos(angle(e, g)) + compliance(after, AXES.astype(float)).phi - phi
        np.testing.assert_allclose(step.terms.progress[:, j], gained, atol=1e-5)


def test_the_objective_rises_and_lambda_moves_mass_away_from_dissipation() -> None:
    rows = 50
    found = []
    for lam in (0.01, 0.5, 5.0):
        unit = controller(rows, Settings(value=ValueWeights(0.0, 0.0, 0.0, 0.0, 0.0), eta_floor=0.0))
        step = unit.apply(logits(rows), np.arange(rows), control(rows, lam=lam), np.ones(rows))
        p, q = np.exp(step.log_p), np.exp(step.log_p + step.change)
        assert np.all((q * step.objective).sum(axis=1) > (p * step.objective).sum(axis=1))
        found.append(((q - p) * step.dissipation).sum(axis=1))
    assert np.all(found[0] < 0.0)
    # Lambda alone scales J; with nothing else in J it changes nothing (eta takes it up).
    np.testing.assert_allclose(found[0], found[2], rtol=1e-2)


def test_a_row_moves_as_it_would_alone() -> None:
    unit = controller(6)
    alone = logits(6)[3:4]
    together = logits(6)
    few = controller(6)
    one = few.apply(alone, np.array([3]), control(1), np.ones(1))
    all_rows = unit.apply(together, np.arange(6), control(6), np.ones(6))
    np.testing.assert_allclose(alone[0], together[3], rtol=1e-6)
    assert one.kl[0] == pytest.approx(all_rows.kl[3], rel=1e-6)


def test_breaking_tokens_lose_and_repairing_ones_gain_when_debt_is_high() -> None:
    before = logits(1)
    best = np.argsort(before[0])[-8:]
    bad, good = int(best[-1]), int(best[0])
    unit = controller(1, checker=Forbids({bad}, {good}, set()))
    step = unit.apply(before.copy(), np.array([0]), control(1, budget=0.1), np.ones(1))
    column = step.candidates[0].tolist().index(bad)
    assert step.change[0, column] < 0.0
    assert step.risk[0] == pytest.approx(np.exp(step.log_p[0, column]))
    plain = step.change[0, step.candidates[0].tolist().index(good)]
    for _ in range(5):
        unit.advance(np.array([0]), np.array([bad]))
    assert unit.requests.debt[0] == 1.0
    assert unit.requests.debt_run[0] >= 2, "above .6 at .8 and 1.0"
    gated = unit.apply(before.copy(), np.array([0]), control(1, budget=0.1), np.ones(1))
    assert gated.change[0, gated.candidates[0].tolist().index(good)] > plain
    for _ in range(3):
        unit.advance(np.array([0]), np.array([good]))
    assert unit.requests.debt_run[0] == 0


def test_looking_ahead_sees_a_break_behind_a_candidate() -> None:
    before = logits(1)
    best = np.argsort(before[0])[-8:]
    trap, broken = int(best[-2]), 2999
    history = np.array([trap, broken, *[x for token in best if token != trap for x in (token, 17)]])
    settings = Settings(value=ValueWeights(1.0, 0.0, 5.0, 0.0, 0.0))
    unit = controller(1, settings, checker=Forbids({broken}, set(), set()), surrogate=Bigram(history, VOCABULARY))
    blind = unit.apply(before.copy(), np.array([0]), control(1), np.ones(1))
    wise = unit.apply(before.copy(), np.array([0]), control(1, look=True), np.ones(1))
    column = blind.candidates[0].tolist().index(trap)
    assert wise.objective[0, column] < blind.objective[0, column]
    assert wise.change[0, column] < blind.change[0, column]
    # Where the surrogate knows nothing, looking ahead changes nothing.
    ignorant = controller(1, settings, surrogate=Bigram(np.zeros(0, dtype=np.int64), VOCABULARY))
    a = ignorant.apply(before.copy(), np.array([0]), control(1, look=True), np.ones(1))
    b = ignorant.apply(before.copy(), np.array([0]), control(1), np.ones(1))
    np.testing.assert_allclose(a.objective, b.objective)


def test_the_budget_of_a_request_is_never_exceeded() -> None:
    unit = controller(3, Settings(request_budget=0.035))
    chance = np.random.default_rng(8)
    used = np.zeros(3)
    for i in range(10):
        step = unit.apply(logits(3, seed=i), np.arange(3), control(3), np.ones(3))
        used += step.kl
        unit.advance(np.arange(3), step.sample(chance.random(3)))
    np.testing.assert_allclose(unit.requests.spent, used)
    assert np.all(used <= 0.035 + 1e-6)
    assert np.all(used > 0.034)
    assert set(step.fallback) == {Fallback.BUDGET_SPENT}


def test_modes_cost_and_are_followed() -> None:
    of_token = np.full(VOCABULARY, -1, dtype=np.int16)
    of_token[1000], of_token[1001], of_token[1002] = 0, 1, 2
    modes = Modes(of_token, np.array([0.0, 100.0, 300.0]), np.array([0.0, 20.0, 20.0]), np.ones((3, 3)) - np.eye(3))
    before = logits(1)
    before[0, 1000:1003] = 12.0
    unit = controller(1, modes=modes)
    step = unit.apply(before.copy(), np.array([0]), control(1), np.ones(1))
    at = {token: step.candidates[0].tolist().index(token) for token in (1000, 1001, 1002)}
    assert step.terms.latency[0, [at[1000], at[1001], at[1002]]].tolist() == [0.0, 0.5, 0.75]
    assert step.terms.routing[0, [at[1000], at[1001]]].tolist() == [0.0, 1.0]
    unit.advance(np.array([0]), np.array([1001]))
    assert (unit.requests.mode[0], unit.requests.previous_mode[0], unit.requests.since_flip[0]) == (1, 0, 0)
    step = unit.apply(before.copy(), np.array([0]), control(1), np.ones(1))
    flips = step.terms.mode_flip[0, [at[1000], at[1001], at[1002]]]
    assert step.candidates[0].tolist().index(1000) == at[1000]
    assert flips.tolist() == [1.5, 0.0, 0.5]
    unit.advance(np.array([0]), np.array([5]))
    assert (unit.requests.mode[0], unit.requests.previous_mode[0], unit.requests.since_flip[0]) == (1, 1, 1)


def test_a_slot_that_is_opened_again_remembers_nothing() -> None:
    unit = controller(1)
    step = unit.apply(logits(1), np.array([0]), control(1), np.ones(1))
    unit.advance(np.array([0]), step.sample(np.array([0.5])))
    unit.requests.open(0, EMBEDDINGS[0])
    fresh = Requests(1, DIMENSIONS)
    fresh.open(0, EMBEDDINGS[0])
    for name in vars(fresh):
        np.testing.assert_array_equal(getattr(unit.requests, name), getattr(fresh, name), err_msg=name)


def test_tokens_are_drawn_by_their_probabilities() -> None:
    p = np.array([0.5, 0.3, 0.0, 0.2])
    count = 20_000
    uniform = (np.arange(count) + 0.5) / count
    tokens = drawn(np.tile([7, 8, 9, 10], (count, 1)), np.tile(3.0 * p, (count, 1)), uniform)
    seen = np.array([(tokens == t).sum() for t in (7, 8, 10)])
    assert (tokens == 9).sum() == 0
    assert chisquare(seen, np.array([0.5, 0.3, 0.2]) * count).pvalue > 0.9


def test_an_empty_batch_is_no_work() -> None:
    unit = controller(1)
    nothing = np.zeros(0, dtype=np.int64)
    step = unit.apply(np.zeros((0, VOCABULARY), dtype=np.float32), nothing, control(0), np.zeros(0))
    assert step.kl.shape == (0,)
    assert step.sample(np.zeros(0)).shape == (0,)
    unit.advance(nothing, nothing)


def test_report_of_a_step() -> None:
    unit = controller(2, Settings(dissipation=DissipationWeights(tension=1.0)))
    step = unit.apply(logits(2), np.arange(2), control(2), np.array([0.5, 2.0]))
    change = step.change - step.change.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(step.dlogits, np.linalg.norm(change * np.array([[0.5], [2.0]]), axis=1))
    assert np.all(step.tension() > 0.0)
    assert step.terms.tension is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [({"mode": "ball"}, "choose one of kl"), ({"top_k": 1}, "at least 2"), ({"reach": 1.0}, "reach lies")],
)
def test_settings_that_make_no_sense_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(Settings(), **change)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("mode", ["kl", "box", "l2"])
def test_candidates_that_somebody_else_found_are_moved_as_the_whole_row_is(dtype: type, mode: str) -> None:
    whole = logits(6).astype(dtype)
    whole[2, 5:] = -np.inf
    one, other = (controller(6, Settings(mode=mode)) for _ in range(2))
    slots, temperature = np.arange(6), np.array([0.5, 0.8, 1.0, 0.0, 2.0, 0.8])
    before = whole.copy()
    step = one.apply(whole, slots, control(6), temperature)
    found = np.take_along_axis(before, step.candidates, axis=1)
    again = other.apply_to_candidates(step.candidates, found, slots, control(6), temperature)
    np.testing.assert_array_equal(found, np.take_along_axis(whole, step.candidates, axis=1))
    np.testing.assert_array_equal(again.kl, step.kl)
    assert step.kl.any()


def test_candidates_and_their_logits_are_of_one_shape() -> None:
    with pytest.raises(ValueError, match=r"both are \(n, 8\)"):
        controller(2).apply_to_candidates(
            np.zeros((2, 4), dtype=np.intp), np.zeros((2, 4)), np.arange(2), control(2), np.ones(2)
        )
