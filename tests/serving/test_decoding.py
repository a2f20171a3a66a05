# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest

from mvps.serving.decoding import OFF, Decoding
from mvps.serving.tensors import likeliest
from mvps.surplus.controller import Controller, Modes, Requests, Settings, Terrain
from mvps.surplus.geometry import TickRule, basis
from mvps.surplus.indicators import Band
from mvps.surplus.minutes import Directive
from mvps.surplus.packets import Cap, FallbackCause, State, parse, render, salted

VOCABULARY, DIMENSIONS, CAPACITY = 3000, 16, 4
CHANCE = np.random.default_rng(11)
EMBEDDINGS = CHANCE.normal(size=(VOCABULARY, DIMENSIONS)).astype(np.float32)
AXES = basis(CHANCE.normal(size=(3, DIMENSIONS))).astype(np.float32)
SALT = b"s" * 16
ON = Directive("", 0.6, 0.01, 0.1, math.nan, Band.CAUTION, True, False, False)
PROMPT = [5, 17, 200, 9]


class Desk:
    """A decoding that keeps its packets, and whose clock moves by a millisecond a look."""

    def __init__(self, told: Directive = ON, modes: Modes | None = None, **settings: object) -> None:
        self.packets: list[Cap] = []
        self.told = {"acme": told}
        self.now = 1_700_000_000 * 10**9
        made = Settings(**settings)  # type: ignore[arg-type]
        controller = Controller(made, Terrain(EMBEDDINGS, AXES, modes), Requests(CAPACITY, DIMENSIONS))
        self.decoding = Decoding(
            controller,
            "small",
            SALT,
            lambda tenant: self.told.get(tenant, OFF),
            self.packets.append,
            ticks=TickRule(4, 6),
            clock=self.clock,
        )

    def clock(self) -> int:
        self.now += 1_000_000
        return self.now

    def open(self, *tenants: str, temperature: float = 0.8) -> np.ndarray:
        slots = []
        for number, tenant in enumerate(tenants):
            slot = self.decoding.take_slot()
            self.decoding.open(slot, tenant, b"request-%d" % number, temperature, PROMPT)
            slots.append(slot)
        return np.array(slots)

    def tokens(self, slots: np.ndarray, steps: int, seed: int = 1) -> None:
        """Steps of which each draws the likeliest token."""
        for step in range(steps):
            z = logits(len(slots), seed + step)
            self.decoding.step(z, slots)
            self.decoding.sampled(slots, z.argmax(axis=1))


def logits(rows: int, seed: int = 1) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(rows, VOCABULARY)) * 3).astype(np.float32)


def log_softmax(z: np.ndarray) -> np.ndarray:
    z = z.astype(np.float64) - z.max(axis=1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def test_rows_are_moved_within_their_budget_at_their_temperature() -> None:
    desk = Desk()
    slots = desk.open("acme", "acme", temperature=0.5)
    before = logits(2)
    after = before.copy()
    step = desk.decoding.step(after, slots)
    p, q = log_softmax(before / 0.5), log_softmax(after / 0.5)
    kl = (np.exp(q) * (q - p)).sum(axis=1)
    assert (kl > 1e-5).all()
    assert (kl <= 0.01 + 1e-6).all()
    assert (kl <= step.kl + 1e-6).all(), "over the whole vocabulary it is no more than over the candidates"
    assert ((before != after).sum(axis=1) <= desk.decoding.top_k).all()


def test_the_controller_alone_would_do_the_same() -> None:
    one, other = Desk(), Desk()
    slots = one.open("acme", "acme")
    other.open("acme", "acme")
    a, b = logits(2), logits(2)
    one.decoding.step(a, slots)
    controller = other.decoding._controller
    control = other.decoding._control(slots)
    controller.apply(b, slots, control, np.full(2, 0.8))
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("why", ["lambda is 0", "an unknown tenant", "greedy", "no prompt"])
def test_what_is_not_to_be_moved_is_left_bit_by_bit(why: str) -> None:
    desk = Desk(told=OFF if why == "lambda is 0" else ON)
    slot = desk.decoding.take_slot()
    desk.decoding.open(
        slot,
        "nobody" if why == "an unknown tenant" else "acme",
        b"r",
        0.0 if why == "greedy" else 0.8,
        [] if why == "no prompt" else PROMPT,
    )
    given = logits(1)
    given[0, 100:200] = -np.inf
    before = given.tobytes()
    desk.decoding.step(given, np.array([slot]))
    assert given.tobytes() == before
    desk.decoding.close(slot)
    wanted = {"greedy": FallbackCause.GREEDY, "no prompt": FallbackCause.NO_FEATURES}.get(why, FallbackCause.OFF)
    assert [one.fallback for one in desk.packets] == [wanted]


def test_some_rows_of_a_batch_are_steered_and_the_others_left() -> None:
    desk = Desk()
    slots = desk.open("acme", "acme")
    before = logits(4)
    after = before.copy()
    desk.decoding.step_found(after, likeliest(after, desk.decoding.top_k), slots, np.array([1, 3]))
    assert ((before != after).any(axis=1) == [False, True, False, True]).all()
    alone = before[[1, 3]]
    again = Desk()
    again.decoding.step(alone, again.open("acme", "acme"))
    np.testing.assert_array_equal(after[[1, 3]], alone)


def test_a_tick_ends_after_its_most_tokens_or_with_its_request() -> None:
    desk = Desk()
    slots = desk.open("acme")
    desk.tokens(slots, 14)
    assert [one.steps for one in desk.packets] == [6, 6]
    desk.decoding.close(int(slots[0]), capped=True)
    assert [(one.steps, one.caps_hit) for one in desk.packets] == [(6, False), (6, False), (2, True)]
    desk.decoding.close(int(slots[0]))
    assert len(desk.packets) == 3
    assert len({one.session for one in desk.packets}) == 1


def test_a_packet_says_what_was_done_and_nothing_of_the_text() -> None:
    desk = Desk()
    slots = desk.open("acme")
    kl = 0.0
    for seed in range(6):
        z = logits(1, seed)
        kl += float(desk.decoding.step(z, slots).kl[0])
        desk.decoding.sampled(slots, z.argmax(axis=1))
    (packet,) = desk.packets
    assert packet.kl_used == pytest.approx(kl)
    assert packet.session == salted(b"request-0", SALT)
    assert (packet.lam, packet.kl_budget, packet.state, packet.bh1) == (0.6, 0.01, State.CAUTION, True)
    assert packet.fallback is FallbackCause.NONE
    assert packet.candidates == desk.decoding.top_k
    assert packet.theta is not None
    assert 0.0 < packet.theta < math.pi
    assert packet.value.dlp > 0.0, "the likeliest token is likelier than the mean"
    assert packet.value.struct_risk is None
    assert packet.latency_ms is not None
    assert packet.latency_ms > 0
    assert parse(render(packet), Cap) == packet


def test_what_a_chosen_candidate_costs_is_its_own_mean() -> None:
    of_token = np.full(VOCABULARY, -1, dtype=np.int16)
    modes = Modes(of_token, np.full(2, 50.0), np.full(2, 20.0), np.full((2, 2), 0.1))
    desk = Desk(modes=modes)
    slots = desk.open("acme")
    drift = []
    for seed in range(6):
        z = logits(1, seed)
        step = desk.decoding.step(z, slots)
        column = seed % desk.decoding.top_k
        drift.append(step.terms.drift[0, column])
        desk.decoding.sampled(slots, step.candidates[:, column])
    assert desk.packets[0].dissipation.drift == pytest.approx(np.mean(drift))


def test_a_token_that_was_no_candidate_counts_for_no_mean() -> None:
    desk = Desk()
    slots = desk.open("acme")
    for seed in range(6):
        z = logits(1, seed)
        desk.decoding.step(z, slots)
        desk.decoding.sampled(slots, z.argmin(axis=1))
    assert (desk.packets[0].value.dlp, desk.packets[0].dissipation.drift) == (0.0, 0.0)


def test_the_same_requests_give_the_same_bytes() -> None:
    def bytes_of() -> list[bytes]:
        desk = Desk()
        slots = desk.open("acme", "acme")
        desk.tokens(slots, 13)
        for slot in slots.tolist():
            desk.decoding.close(slot)
        return [render(one) for one in desk.packets]

    assert bytes_of() == bytes_of()


def test_slots_are_lent_and_given_back() -> None:
    desk = Desk()
    slots = desk.open(*["acme"] * CAPACITY)
    assert len(set(slots.tolist())) == CAPACITY
    with pytest.raises(ValueError, match="slots are taken"):
        desk.decoding.take_slot()
    desk.decoding.close(int(slots[1]))
    assert desk.decoding.take_slot() == slots[1]
    assert desk.decoding.room == 1
    desk.decoding.open(int(slots[0]), "acme", b"again", 0.8, PROMPT)
    assert desk.decoding.room == 1
    with pytest.raises(ValueError, match="no slot 99"):
        desk.decoding.open(99, "acme", b"r", 0.8, PROMPT)


def test_another_models_embeddings_and_a_salt_that_can_be_guessed_are_refused() -> None:
    desk = Desk()
    slots = desk.open("acme")
    with pytest.raises(ValueError, match="another model"):
        desk.decoding.step(np.zeros((1, VOCABULARY + 1), dtype=np.float32), slots)
    with pytest.raises(ValueError, match="can be guessed"):
        Decoding(desk.decoding._controller, "m", b"short", lambda _: OFF, desk.packets.append)
    with pytest.raises(ValueError, match="a name has"):
        desk.decoding.open(1, "Ann Smith", b"r", 0.8, PROMPT)
    assert desk.decoding.room == CAPACITY - 1


def test_tokens_without_an_embedding_are_passed_over() -> None:
    desk = Desk()
    mean = desk.decoding.mean_embedding([5, -1, VOCABULARY])
    assert mean is not None
    np.testing.assert_allclose(mean, EMBEDDINGS[5])
    assert desk.decoding.mean_embedding([-1]) is None


def test_an_answer_that_ends_is_handed_over_with_its_first_tokens() -> None:
    ended: list[tuple[str, list[int]]] = []
    desk = Desk()
    desk.decoding._answered = lambda tenant, tokens: ended.append((tenant, list(tokens)))
    slots = desk.open("acme", "other")
    drawn = []
    for seed in range(300):
        z = logits(2, seed)
        desk.decoding.step(z, slots)
        drawn.append(z.argmax(axis=1))
        desk.decoding.sampled(slots, drawn[-1])
    assert ended == []
    desk.decoding.close(int(slots[1]))
    desk.decoding.close(int(slots[1]))
    assert ended == [("other", [int(row[1]) for row in drawn[:256]])]
    assert max(map(len, desk.decoding._said.values())) == 256
    again = desk.open("acme")
    desk.decoding.close(int(again[0]))
    assert len(ended) == 1, "it said nothing"
