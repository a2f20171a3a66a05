# SPDX-License-Identifier: Apache-2.0
"""A transformer of three layers, trained in minutes on the JSON task (``bench.json_world``), as a decoding loop has it.

Decoder only, before each block a layer norm, rotary positions (so that copying is learned in hundreds of steps), tied
embeddings; only the answers are learned, every sentence is new. ``Session`` holds keys and values of a batch of
requests, so that a token costs one token's work. Needs torch.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bench import json_world
from bench.json_world import LONGEST_ANSWER, LONGEST_PROMPT, PAD, WORDS

try:
    import torch
    from torch import nn
    from torch.nn import functional
except ImportError:
    raise SystemExit("bench: pip install torch (extra `models`): this benchmark trains its models itself") from None

WIDTH, HEADS, LAYERS = 96, 4, 3
_DEPTH = WIDTH // HEADS
_ROOM = LONGEST_PROMPT + LONGEST_ANSWER
_BASE = 200.0  # of the rotary angles: sentences have a hundred tokens and not thousands
_NOT_LEARNED = -100

Logits = npt.NDArray[np.float32]


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attend, self.merge = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.widen, self.narrow = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def heads(self, x: Any, turn: tuple[Any, Any]) -> tuple[Any, Any, Any]:
        """Queries, keys and values (batch, heads, length, depth), the former two turned by their places."""
        batch, length, _ = x.shape
        q, k, v = self.attend(self.before(x)).view(batch, length, 3, HEADS, _DEPTH).permute(2, 0, 3, 1, 4)
        return _turned(q, turn), _turned(k, turn), v

    def close(self, x: Any, heads: Any) -> Any:
        """The block's outcome from what its heads found."""
        x = x + self.merge(heads.transpose(1, 2).reshape(x.shape))
        return x + self.narrow(functional.gelu(self.widen(self.between(x))))


def _turned(x: Any, turn: tuple[Any, Any]) -> Any:
    cosine, sine = turn
    one, other = x.chunk(2, dim=-1)
    return torch.cat([one * cosine - other * sine, one * sine + other * cosine], dim=-1)


class _Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(len(WORDS), WIDTH)
        self.blocks = nn.ModuleList(_Block() for _ in range(LAYERS))
        self.after = nn.LayerNorm(WIDTH)
        nn.init.normal_(self.words.weight, std=0.05)
        angle = torch.arange(_ROOM)[:, None] * _BASE ** -(torch.arange(_DEPTH // 2) / (_DEPTH // 2))
        self.register_buffer("turns", torch.stack([angle.cos(), angle.sin()]))

    def turn(self, places: Any) -> tuple[Any, Any]:
        """Cosines and sines at places of any shape."""
        return self.turns[0][places], self.turns[1][places]

    def forward(self, tokens: Any) -> Any:
        x, turn = self.words(tokens), self.turn(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block.close(x, functional.scaled_dot_product_attention(*block.heads(x, turn), is_causal=True))
        return self.after(x) @ self.words.weight.T


class Model:
    """A trained network."""

    def __init__(self, network: Any) -> None:
        self._network = network.eval()

    @property
    def embeddings(self) -> npt.NDArray[np.float32]:
        """Of every token, (V, WIDTH)."""
        table: npt.NDArray[np.float32] = self._network.words.weight.detach().numpy().astype(np.float32)
        return table

    def session(self, prompts: list[list[int]]) -> Session:
        """A batch of requests, their prompts read."""
        return Session(self._network, prompts)


class Session:
    """Keys and values of a batch of requests of different lengths; a row's places begin at 0.

    Rows that ended are computed along until they are a quarter of all: to move the others costs more.
    """

    def __init__(self, network: Any, prompts: list[list[int]]) -> None:
        self._network = network
        count = len(prompts)
        self._live = np.arange(count)
        self._length = torch.tensor([len(one) for one in prompts])
        table = torch.full((count, int(self._length.max())), PAD)
        for row, one in enumerate(prompts):
            table[row, : len(one)] = torch.tensor(one)
        room = table.shape[1] + LONGEST_ANSWER
        self._keys = [torch.zeros(count, HEADS, room, _DEPTH) for _ in range(LAYERS)]
        self._values = [torch.zeros(count, HEADS, room, _DEPTH) for _ in range(LAYERS)]
        with torch.inference_mode():
            x, turn = network.words(table), network.turn(torch.arange(table.shape[1]))
            for block, keys, values in zip(network.blocks, self._keys, self._values, strict=True):
                q, k, v = block.heads(x, turn)
                # What stands behind a short prompt is never seen: its places are written over before they are reached.
                keys[:, :, : table.shape[1]], values[:, :, : table.shape[1]] = k, v
                x = block.close(x, functional.scaled_dot_product_attention(q, k, v, is_causal=True))
            self._last = x[torch.arange(count), self._length - 1]

    def logits(self) -> Logits:
        """Of the next token of every row (n, V); what is never said has -inf."""
        with torch.inference_mode():
            all_rows = (self._network.after(self._last) @ self._network.words.weight.T).numpy()
        found: Logits = all_rows[self._live]
        found[:, json_world.NEVER_SAID] = -np.inf
        return found

    def extend(self, tokens: npt.NDArray[np.integer]) -> None:
        """Take one token of each row."""
        network, rows = self._network, torch.arange(len(self._length))
        every = np.full(len(rows), PAD)
        every[self._live] = tokens
        reach = int(self._length.max()) + 1
        seen = (torch.arange(reach) <= self._length[:, None])[:, None, None]
        with torch.inference_mode():
            x = network.words(torch.from_numpy(every))[:, None]
            turn = tuple(part[:, None, None] for part in network.turn(self._length))
            for block, keys, values in zip(network.blocks, self._keys, self._values, strict=True):
                q, k, v = block.heads(x, turn)
                keys[rows, :, self._length], values[rows, :, self._length] = k[:, :, 0], v[:, :, 0]
                found = functional.scaled_dot_product_attention(
                    q, keys[:, :, :reach], values[:, :, :reach], attn_mask=seen
                )
                x = block.close(x, found)
            self._last = x[:, 0]
            self._length = self._length + 1

    def keep(self, rows: npt.NDArray[np.integer]) -> None:
        """Forget all rows but these."""
        self._live = self._live[rows]
        if len(self._live) > 0.75 * len(self._length):
            return
        kept = torch.from_numpy(self._live)
        self._last, self._length = self._last[kept], self._length[kept]
        self._keys = [one[kept] for one in self._keys]
        self._values = [one[kept] for one in self._values]
        self._live = np.arange(len(kept))


class Trained(NamedTuple):
    """A model, and its mean loss over the last tenth of its training, nats a token."""

    model: Model
    loss: float


def train(seed: int, steps: int, batch: int = 64, rate: float = 4e-3) -> Trained:
    """A model taught by sloppy teachers. The same seed gives the same model on the same machine and threads."""
    torch.manual_seed(seed)
    rng = np.random.default_rng((41, seed))
    network = _Network()
    descent = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=0.01)
    pace = torch.optim.lr_scheduler.OneCycleLR(descent, max_lr=rate, total_steps=steps, pct_start=0.15)
    network.train()
    late: list[float] = []
    for step in range(steps):
        said, learned = _sentences(rng, batch)
        guessed = network(said)
        loss = functional.cross_entropy(guessed.flatten(0, 1), learned.flatten(), ignore_index=_NOT_LEARNED)
        descent.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        descent.step()
        pace.step()
        if step >= steps - max(steps // 10, 1):
            late.append(float(loss.detach()))
    return Trained(Model(network), math.fsum(late) / len(late))


def _sentences(rng: np.random.Generator, batch: int) -> tuple[Any, Any]:
    """Tokens (batch, length) and what is to be said behind each, which is learned in answers only."""
    rows = []
    for _ in range(batch):
        asked = json_world.prompt(rng)
        rows.append((asked.tokens, json_world.taught(asked, rng)))
    length = max(len(prompt) + len(answer) for prompt, answer in rows) - 1
    said, learned = torch.full((batch, length), PAD), torch.full((batch, length), _NOT_LEARNED)
    for place, (prompt, answer) in enumerate(rows):
        whole = torch.tensor([*prompt, *answer])
        said[place, : len(whole) - 1] = whole[:-1]
        learned[place, len(prompt) - 1 : len(whole) - 1] = whole[len(prompt) :]
    return said, learned
