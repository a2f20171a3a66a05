# SPDX-License-Identifier: Apache-2.0
"""A transformer of two layers, trained in seconds on sentences of a fact world, as an engine of the model server.

Decoder only, before each block a layer norm, learned positions, tied embeddings, one token a word. All tokens of a
sentence are learned, so that there is a language model and no classifier. Needs torch.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np

from bench.model_server import Said
from mvps.semantic.reading import Reading

try:
    import torch
    from torch import nn
    from torch.nn import functional
except ImportError:
    raise SystemExit("bench: pip install torch (extra `models`): this benchmark trains its models itself") from None

WIDTH, HEADS, LAYERS, LONGEST = 96, 4, 2, 16
SHORTEST = 4  # tokens of any question, with its beginning and without the one that asks
PAD, BEGIN, ASK, END, UNKNOWN = range(5)
_SPECIAL = ("<pad>", "<begin>", "<ask>", "<end>", "<unknown>")
_MOST_KEPT = 400_000  # distributions of one model: 0.4 GB at 240 words in single precision


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attend, self.merge = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.widen, self.narrow = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Any) -> Any:
        batch, length, _ = x.shape
        q, k, v = self.attend(self.before(x)).view(batch, length, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        heads = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.merge(heads.transpose(1, 2).reshape(batch, length, WIDTH))
        return x + self.narrow(functional.gelu(self.widen(self.between(x))))

    def looked_into(self, x: Any) -> tuple[Any, Any]:
        """The same, with the attention maps (heads, length, length) of the one sentence that is in ``x``."""
        _, length, _ = x.shape
        q, k, _ = self.attend(self.before(x)).view(length, 3, HEADS, WIDTH // HEADS).permute(1, 2, 0, 3)
        scores = q @ k.transpose(1, 2) / (WIDTH // HEADS) ** 0.5
        later = torch.ones(length, length, dtype=torch.bool).triu(1)
        return self(x), scores.float().masked_fill(later, -torch.inf).softmax(dim=-1)


class _Network(nn.Module):
    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(vocabulary, WIDTH), nn.Embedding(LONGEST, WIDTH)
        self.blocks = nn.ModuleList(_Block() for _ in range(LAYERS))
        self.after = nn.LayerNorm(WIDTH)
        for table in (self.words, self.places):
            nn.init.normal_(table.weight, std=0.05)

    def forward(self, tokens: Any, begin: int = 0) -> Any:
        x = self.words(tokens) + self.places.weight[begin : begin + tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.after(x) @ self.words.weight.T


class Model:
    """A trained network and its words; an engine of ``bench.model_server``.

    lost: so many tokens at the beginning of every prompt are not attended to; the others keep their places.
    """

    def __init__(self, words: Sequence[str], network: Any, lost: int = 0) -> None:
        self.words = tuple(words)
        self._all = (*_SPECIAL, *self.words)
        self._number = {word: k for k, word in enumerate(self._all)}
        self._network = network.eval()
        self._lost = lost
        self._kept: dict[tuple[int, ...], np.ndarray] = {}

    def tokens(self, text: str) -> list[int]:
        """Words by number."""
        return [self._number.get(word, UNKNOWN) for word in text.split()]

    def points(self, text: str) -> np.ndarray:
        """phi: the model's own embedding of each word, (L, WIDTH)."""
        table: np.ndarray = self._network.words.weight.detach().numpy()
        return table[self.tokens(text)].astype(np.float64)

    def embed(self, text: str) -> list[float]:
        """Mean of phi over the words."""
        return [float(x) for x in self.points(text).mean(axis=0)]

    def generate(self, prompt: str, most: int, temperature: float, rng: np.random.Generator) -> tuple[list[Said], bool]:
        """Words with their log probabilities at temperature 1, and whether the answer came to its end."""
        prefix = [BEGIN, *self.tokens(prompt)[: LONGEST - 4], ASK]
        said: list[Said] = []
        while len(said) < most and len(prefix) < LONGEST:
            law = self._law(tuple(prefix))
            if temperature > 0.0:
                # Gumbel's trick: the largest of noisy log probabilities is a draw.
                token = int((law / temperature + rng.gumbel(size=len(law))).argmax())
            else:
                token = int(law.argmax())
            if token == END:
                return said, True
            said.append(Said(self._all[token], float(law[token])))
            prefix.append(token)
        return said, False

    def _law(self, prefix: tuple[int, ...]) -> np.ndarray:
        """Log probabilities of the next token; kept, as a serving engine keeps its prefixes."""
        law = self._kept.get(prefix)
        if law is None:
            with torch.inference_mode():
                last = self._network(torch.tensor([prefix[self._lost :]]), self._lost)[0, -1]
                last = last.float()
                last[[PAD, BEGIN, ASK, UNKNOWN]] = -torch.inf
                law = torch.log_softmax(last, dim=0).numpy()
            if len(self._kept) >= _MOST_KEPT:
                self._kept.clear()
            self._kept[prefix] = law
        return law

    def cold(self, lost: int) -> Model:
        """The same network without what it should remember of a prompt's first ``lost`` tokens, BEGIN among them.

        As where a router expects a prefix in a cache that does not hold it, and the engine goes on without. ValueError
        when a prompt's last token, which asks for the answer, could be among them.
        """
        if not 0 <= lost <= SHORTEST:
            raise ValueError(f"between 0 and {SHORTEST} tokens can be lost, not {lost}")
        return Model(self.words, self._network, lost)

    def read(self, prompt: str, answer: str) -> Reading:
        """What it makes of a prompt and an answer to it, given to it: all layers, all rows."""
        prefix = [BEGIN, *self.tokens(prompt)[: LONGEST - 4], ASK, *self.tokens(answer)][:LONGEST]
        network = self._network
        with torch.inference_mode():
            tokens = torch.tensor([prefix])
            x, maps = network.words(tokens) + network.places.weight[: len(prefix)], []
            for block in network.blocks:
                x, attention = block.looked_into(x)
                maps.append(attention.mean(dim=0))
            laws = (network.after(x) @ network.words.weight.T)[0].float().softmax(dim=-1)
        return Reading(*(one.numpy() for one in (torch.stack(maps), x[0].float(), laws)))

    def rounded(self) -> Model:
        """The same weights in bfloat16, and all that is computed with them."""
        return Model(self.words, copy.deepcopy(self._network).bfloat16())

    def int8(self) -> Model:
        """Every weight matrix rounded to 8 bits, one scale a row."""
        changed = copy.deepcopy(self._network)
        with torch.no_grad():
            for weight in changed.parameters():
                if weight.ndim == 2:
                    scale = weight.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / 127.0
                    weight.copy_((weight / scale).round() * scale)
        return Model(self.words, changed)

    def corrupted(self, share: float, seed: int) -> Model:
        """Noise on every weight matrix of the last block: ``share`` of the matrix's own standard deviation."""
        changed = copy.deepcopy(self._network)
        noise = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in changed.blocks[-1].parameters():
                if weight.ndim == 2:
                    weight.add_(share * weight.std() * torch.randn(weight.shape, generator=noise))
        return Model(self.words, changed)


def train(
    words: Sequence[str],
    corpus: Sequence[tuple[str, str]],
    seed: int,
    epochs: int,
    batch: int = 128,
    rate: float = 3e-3,
) -> tuple[Model, float]:
    """A model of (question, answer) sentences, and its mean loss in the last epoch, nats a token.

    The same seed gives the same model on the same machine with as many threads.
    """
    torch.manual_seed(seed)
    network = _Network(len(_SPECIAL) + len(words))
    model = Model(words, network)
    rows = [[BEGIN, *model.tokens(asked), ASK, *model.tokens(said), END] for asked, said in corpus]
    if max(map(len, rows)) > LONGEST:
        raise ValueError(f"a sentence of the corpus has more than {LONGEST} tokens")
    table = torch.full((len(rows), max(map(len, rows))), PAD)
    for place, row in enumerate(rows):
        table[place, : len(row)] = torch.tensor(row)
    steps = epochs * -(-len(rows) // batch)
    descent = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=0.01)
    pace = torch.optim.lr_scheduler.OneCycleLR(descent, max_lr=rate, total_steps=steps, pct_start=0.1)
    network.train()
    mean = 0.0
    for _ in range(epochs):
        total = 0.0
        for chosen in torch.randperm(len(rows)).split(batch):
            sentences = table[chosen]
            guessed = network(sentences[:, :-1])
            loss = functional.cross_entropy(guessed.flatten(0, 1), sentences[:, 1:].flatten(), ignore_index=PAD)
            descent.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            descent.step()
            pace.step()
            total += float(loss.detach()) * len(chosen)
        mean = total / len(rows)
    return Model(words, network), mean
