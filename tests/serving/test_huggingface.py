# SPDX-License-Identifier: Apache-2.0
"""The interface on plain arrays; and where torch and transformers are installed, a small transformer trained here."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from mvps.serving.decoding import OFF, Decoding
from mvps.serving.huggingface import SurplusLogitsProcessor
from mvps.surplus.controller import Controller, Requests, Settings, Terrain
from mvps.surplus.indicators import Band
from mvps.surplus.minutes import Directive
from mvps.surplus.objective import ValueWeights
from mvps.surplus.packets import Cap

VOCABULARY, DIMENSIONS, CAPACITY, END = 600, 16, 8, 1
ON = Directive("", 0.6, 0.01, 0.1, math.nan, Band.GREEN, False, False, False)


def decoding(packets: list[Cap], told: Directive = ON, embeddings: np.ndarray | None = None) -> Decoding:
    if embeddings is None:
        embeddings = np.random.default_rng(11).normal(size=(VOCABULARY, DIMENSIONS)).astype(np.float32)
    dimensions = embeddings.shape[1]
    terrain = Terrain(embeddings, np.zeros((dimensions, 0), dtype=np.float32))
    controller = Controller(Settings(), terrain, Requests(CAPACITY, dimensions))
    return Decoding(controller, "small", b"s" * 16, lambda _: told, packets.append)


def generate(processor: Any, prompts: np.ndarray, steps: int, temperature: float = 0.8, seed: int = 5) -> np.ndarray:
    """What generate() does with a processor: logits of a made-up model, then temperature, then a draw."""
    chance = np.random.default_rng(seed)
    tokens, ended = prompts, np.zeros(len(prompts), dtype=bool)
    for _ in range(steps):
        scores = (chance.normal(size=(len(tokens), VOCABULARY)) * 3).astype(np.float32)
        scores = processor(tokens, scores) if processor is not None else scores
        p = np.exp((scores - scores.max(axis=1, keepdims=True)) / temperature).astype(np.float64)
        reached = np.cumsum(p, axis=1)
        drawn = (reached <= chance.random((len(tokens), 1)) * reached[:, -1:]).sum(axis=1)
        drawn = np.where(ended, 0, np.minimum(drawn, VOCABULARY - 1))
        ended |= drawn == END
        tokens = np.concatenate([tokens, drawn[:, None]], axis=1)
    return tokens


PROMPTS = np.array([[0, 5, 17], [9, 20, 4]])


def test_every_token_is_steered_and_accounted_for() -> None:
    packets: list[Cap] = []
    with SurplusLogitsProcessor(decoding(packets), 0.8, ["acme", "other"], end_tokens=[END], pad=0) as processor:
        tokens = generate(processor, PROMPTS, 50)
    assert {one.tenant for one in packets} == {"acme", "other"}
    lengths = [int(np.argmax(row == END)) + 1 if END in row else 50 for row in tokens[:, 3:]]
    assert [sum(one.steps for one in packets if one.tenant == name) for name in ("acme", "other")] == lengths
    assert sum(one.kl_used for one in packets) > 0.01
    assert (tokens != generate(None, PROMPTS, 50)).any()


def test_lambda_zero_is_the_plain_model() -> None:
    packets: list[Cap] = []
    with SurplusLogitsProcessor(decoding(packets, OFF), 0.8) as processor:
        np.testing.assert_array_equal(generate(processor, PROMPTS, 30), generate(None, PROMPTS, 30))
    assert sum(one.steps for one in packets) == 60


def test_slots_come_back_with_the_end_token_and_with_the_end() -> None:
    packets: list[Cap] = []
    desk = decoding(packets)
    processor = SurplusLogitsProcessor(desk, 0.8, end_tokens=[END])
    scores = np.zeros((2, VOCABULARY), dtype=np.float32)
    processor(PROMPTS, scores.copy())
    assert desk.room == CAPACITY - 2
    processor(np.concatenate([PROMPTS, [[END], [7]]], axis=1), scores.copy())
    assert desk.room == CAPACITY - 1
    processor.close(capped=True)
    assert desk.room == CAPACITY
    assert [one.caps_hit for one in packets] == [False, True]
    processor.close()


def test_rows_of_another_call_and_lists_of_another_length_are_refused() -> None:
    desk = decoding([])
    processor = SurplusLogitsProcessor(desk, 0.8)
    scores = np.zeros((2, VOCABULARY), dtype=np.float32)
    processor(PROMPTS, scores)
    with pytest.raises(ValueError, match="one processor for one"):
        processor(PROMPTS[:1], scores[:1])
    with pytest.raises(ValueError, match="2 rows with 1 tenants"):
        SurplusLogitsProcessor(desk, 0.8, ["acme"])(PROMPTS, scores)
    room = desk.room
    with pytest.raises(ValueError, match="a name has"):
        SurplusLogitsProcessor(desk, 0.8, ["acme", "Ann Smith"])(PROMPTS, scores)
    with pytest.raises(ValueError, match="slots are taken"):
        SurplusLogitsProcessor(desk, 0.8)(np.repeat(PROMPTS, 5, axis=0), np.repeat(scores, 5, axis=0))
    assert desk.room == room, "nothing is kept of a call that was refused"


# What the model is taught: of 24 tokens each has three that may follow it; END comes after any with chance .05.
FIRST, TAUGHT, WAYS = 2, 24, 3


def followers(token: int) -> list[int]:
    return [FIRST + (7 * (token - FIRST) + 11 * way) % TAUGHT for way in range(1, WAYS + 1)]


def sentences(chance: np.random.Generator, count: int, length: int) -> np.ndarray:
    rows = np.full((count, length), END)
    for row in rows:
        row[0] = chance.integers(FIRST, FIRST + TAUGHT)
        for place in range(1, length):
            if chance.random() < 0.05:
                break
            row[place] = followers(int(row[place - 1]))[chance.integers(WAYS)]
    return rows


@pytest.fixture(scope="module")
def model() -> Any:
    """A GPT-2 of two layers, trained on sentences until it knows what may follow what."""
    torch = pytest.importorskip("torch", reason="torch (extra `models`) is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(3)
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=64,
        n_embd=32,
        n_layer=2,
        n_head=2,
        bos_token_id=END,
        eos_token_id=END,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        resid_pdrop=0.0,
        initializer_range=0.1,
    )
    made = transformers.GPT2LMHeadModel(config)
    chance, descent = np.random.default_rng(4), torch.optim.AdamW(made.parameters(), lr=5e-3)
    for _ in range(100):
        tokens = torch.from_numpy(sentences(chance, 24, 16))
        loss = made(tokens, labels=tokens).loss
        descent.zero_grad()
        loss.backward()
        descent.step()
    assert float(loss.detach()) < 1.5, f"log {VOCABULARY} is 6.4: it has learned little"
    torch.set_num_threads(threads)
    return made.eval()


def generated(model: Any, processor: Any, seed: int = 7) -> Any:
    import torch

    torch.manual_seed(seed)
    prompts = torch.tensor([[2, 5, 17], [9, 20, 4]])
    return model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        do_sample=True,
        temperature=0.8,
        top_k=0,
        max_new_tokens=40,
        pad_token_id=0,
        logits_processor=[] if processor is None else [processor],
    )


def known_pairs(tokens: Any) -> float:
    """Share of the neighbours that were taught, up to END."""
    pairs = [
        pair for row in tokens.tolist() for pair in itertools.pairwise(row[3:]) if END not in pair and 0 not in pair
    ]
    return sum(after in followers(before) for before, after in pairs) / len(pairs)


def test_a_real_models_generate_takes_it(model: Any) -> None:
    embeddings = model.get_input_embeddings().weight.detach().numpy().astype(np.float32)
    packets: list[Cap] = []
    with SurplusLogitsProcessor(decoding(packets, ON, embeddings), 0.8, end_tokens=[END]) as processor:
        steered = generated(model, processor)
    assert steered.shape[1] > 3
    assert sum(one.kl_used for one in packets) > 0.0
    assert all(one.kl_used <= one.steps * (0.01 + 1e-6) for one in packets)
    assert known_pairs(steered) > 0.8, "it still speaks its language"
    with SurplusLogitsProcessor(decoding(packets, OFF, embeddings), 0.8, end_tokens=[END]) as processor:
        same = generated(model, processor)
    assert same.tolist() == generated(model, None).tolist()


def test_a_real_model_goes_where_its_goal_is(model: Any) -> None:
    """A goal that only some followers share, with a budget that can reach it: these are drawn more often."""
    import torch

    embeddings = model.get_input_embeddings().weight.detach().numpy().astype(np.float32)
    wanted = np.zeros(VOCABULARY, dtype=bool)
    wanted[[followers(token)[0] for token in range(FIRST, FIRST + TAUGHT, 2)]] = True
    goal = embeddings[wanted].mean(axis=0) - embeddings[FIRST : FIRST + TAUGHT].mean(axis=0)
    prompts = torch.tensor(sentences(np.random.default_rng(6), 64, 3))
    shares = []
    for told in (OFF, Directive("", 0.6, 0.3, 0.8, math.nan, Band.GREEN, False, False, False)):
        terrain = Terrain(embeddings, np.zeros((embeddings.shape[1], 0), dtype=np.float32))
        settings = Settings(value=ValueWeights(likelihood=0.0), reach=0.5, eta_floor=0.0)
        controller = Controller(settings, terrain, Requests(64, embeddings.shape[1]))
        desk = Decoding(controller, "small", b"s" * 16, lambda _, told=told: told, lambda _: None)
        torch.manual_seed(7)
        with SurplusLogitsProcessor(desk, 1.0, goals=[goal] * 64, end_tokens=[END]) as processor:
            said = model.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                do_sample=True,
                top_k=0,
                max_new_tokens=12,
                pad_token_id=0,
                logits_processor=[processor],
            )
        words = said[:, 3:].numpy()
        words = words[(words >= FIRST) & (words < FIRST + TAUGHT)]
        shares.append(wanted[words].mean())
    assert shares[1] > shares[0] + 0.1, shares


def test_a_token_takes_one_transfer_from_the_device(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    embeddings = model.get_input_embeddings().weight.detach().numpy().astype(np.float32)
    processor = SurplusLogitsProcessor(decoding([], ON, embeddings), 0.8)
    tokens, scores = torch.tensor([[2, 5, 17], [9, 20, 4]]), torch.randn(2, VOCABULARY)
    processor(tokens, scores.clone())
    calls: list[str] = []
    for name in ("cpu", "item", "tolist", "nonzero", "__bool__"):
        real = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda self, *rest, _real=real, _name=name: (calls.append(_name), _real(self, *rest))[1]
        )
    processor(torch.cat([tokens, torch.tensor([[7], [8]])], dim=1), scores)
    assert calls == ["cpu"]
    processor.close()
