# SPDX-License-Identifier: Apache-2.0
"""Replicas whose weights are in this process: causal language models of transformers, asked and looked into.

Two or more checkpoints, revisions, devices or precisions of one model are the group. A replica answers like a server
does (greedily, or by sampling, one token at a time), and reads: given tokens, its own or not, in one pass with eager
attention, the only kind that has attention maps. What is read is compared in ``semantic.reading``; maps, states and
laws do not leave this process.

Tokenisers have to be the same, or the replicas could not be fed the same tokens. All replicas read the prompt with the
answer of the first one that gave any (ours), so that a replica that says something else is still read on the words of
the others.

Needs the extra ``models``: torch and transformers are imported when a checkpoint is loaded (``local_transformers``).
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import numpy as np

from mvps.ai.config import CheckpointSection, WhiteboxSection
from mvps.ai.encoder import EncoderError, Pointed
from mvps.ai.group import Round
from mvps.ai.local_transformers import OF_MODEL, OF_TOKENIZER, REFUSALS, imported, reason
from mvps.ai.outcome import Outcome
from mvps.ai.replica import Answer, Sampling
from mvps.coherence.observation import FloatArray
from mvps.semantic.cka import layer_group
from mvps.semantic.reading import Reading, compare, hidden_distance, unpaired_cka

# Attention maps of all layers and heads of one pass are in memory at once.
MOST_ATTENTION_BYTES: Final = 1 << 32
# Rows whose next-token laws are kept: a vocabulary has 10^5 words.
LAW_ROWS: Final = 64
# Tokens of an answer that become points: exact transport of clouds of unequal size has limits.
MOST_POINTS: Final = 256
# Families whose last readings are kept to tell what unrelated prompts look like: maps are large.
KEPT_FAMILIES: Final = 3


class WhiteboxError(Exception):
    """A checkpoint cannot be used. The message says which one, and what to do."""


class Reads(Protocol):
    """A replica that can be given tokens."""

    @property
    def name(self) -> str:
        """As it is reported."""

    def prompt_tokens(self, text: str) -> list[int]:
        """A question as the model is asked it."""

    def text_tokens(self, text: str) -> list[int]:
        """An answer."""

    def read(self, tokens: Sequence[int]) -> Reading | None:
        """What it makes of them; None when it gives no numbers. WhiteboxError when it never could."""


class LocalModel:
    """One checkpoint in memory.

    tokenizer, network: of transformers; the network on its device, in evaluation mode, with eager attention. layers:
    the group that is read. timeout_s: for a whole answer.
    """

    def __init__(
        self, name: str, tokenizer: Any, network: Any, layers: str = "middle", timeout_s: float = 60.0
    ) -> None:
        import torch

        self.name = name
        self._torch: Any = torch
        self._tokenizer = tokenizer
        self._network = network.eval()
        self._layers = layers
        self._timeout = timeout_s
        shape = network.config.get_text_config()
        self._heads = int(shape.num_attention_heads) * int(shape.num_hidden_layers)
        ends = network.generation_config.eos_token_id if network.generation_config is not None else None
        ends = tokenizer.eos_token_id if ends is None else ends
        self._ends = frozenset(ends if isinstance(ends, list | tuple) else () if ends is None else (ends,))

    @property
    def vocabulary(self) -> str:
        """Digest of everything that makes tokens of a question."""
        words = sorted(self._tokenizer.get_vocab().items())
        template = getattr(self._tokenizer, "chat_template", None)
        return hashlib.sha256(repr((words, template)).encode()).hexdigest()

    @property
    def shape(self) -> tuple[int, int, int]:
        """Layers, dimensions and words."""
        shape = self._network.config.get_text_config()
        return int(shape.num_hidden_layers), int(shape.hidden_size), int(shape.vocab_size)

    def prompt_tokens(self, text: str) -> list[int]:
        """A question as the model is asked it: in its chat template, where it has one."""
        if getattr(self._tokenizer, "chat_template", None):
            turns = [{"role": "user", "content": text}]
            text = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            return self.text_tokens(text)
        return [int(token) for token in self._tokenizer(text)["input_ids"]]

    def text_tokens(self, text: str) -> list[int]:
        """A text, without tokens that mark its beginning or end."""
        return [int(token) for token in self._tokenizer(text, add_special_tokens=False)["input_ids"]]

    def answer(self, prompt: str, sampling: Sampling) -> Answer:
        """Ask once; never raises for what the model does. Numbers that are none are a malformed answer."""
        begun = time.monotonic()
        try:
            return self._generate(self.prompt_tokens(prompt), sampling, begun)
        except RuntimeError:  # torch's: no memory, a device that fails
            return Answer(Outcome.BROKEN)

    def _generate(self, tokens: Sequence[int], sampling: Sampling, begun: float) -> Answer:
        torch = self._torch
        said: list[int] = []
        nats: list[float] = []
        first: float | None = None
        outcome = Outcome.CUT
        device = self._network.device
        chance = None
        if sampling.temperature > 0.0:
            chance = torch.Generator(device=device)
            if sampling.seed is None:
                chance.seed()
            else:
                chance.manual_seed(sampling.seed)
        with torch.inference_mode():
            fed, past = torch.tensor([list(tokens)], device=device), None
            while len(said) < sampling.max_tokens:
                made = self._network(input_ids=fed, past_key_values=past, use_cache=True)
                past = made.past_key_values
                law = torch.log_softmax(made.logits[0, -1].float(), dim=-1)
                if bool(torch.isnan(law).any()):
                    return Answer(Outcome.MALFORMED)
                if chance is None:
                    token = int(law.argmax())
                else:
                    weights = torch.softmax(law / sampling.temperature, dim=-1)
                    token = int(torch.multinomial(weights, 1, generator=chance))
                first = time.monotonic() - begun if first is None else first
                if token in self._ends:
                    outcome = Outcome.ANSWERED
                    break
                said.append(token)
                nats.append(float(law[token]))
                if time.monotonic() - begun > self._timeout:
                    return Answer(Outcome.TIMEOUT, ttft_s=first)
                fed = torch.tensor([[token]], device=device)
        text = str(self._tokenizer.decode(said, skip_special_tokens=True)).strip()
        if not text:
            outcome = Outcome.EMPTY
        return Answer(outcome, text, first, time.monotonic() - begun, len(said), tuple(nats))

    def read(self, tokens: Sequence[int]) -> Reading | None:
        """One pass over the tokens. None when it gives no numbers, or the device no memory.

        WhiteboxError when the maps would take too much memory, or the model has none.
        """
        size = self._heads * len(tokens) ** 2 * self._network.dtype.itemsize
        if size > MOST_ATTENTION_BYTES:
            raise WhiteboxError(
                f"{self.name}: attention maps of {len(tokens)} tokens take {size >> 20} MiB, more than "
                f"{MOST_ATTENTION_BYTES >> 20}: set [whitebox] tokens lower"
            )
        torch = self._torch
        try:
            with torch.inference_mode():
                fed = torch.tensor([list(tokens)], device=self._network.device)
                made = self._network(input_ids=fed, output_attentions=True, output_hidden_states=True, use_cache=False)
                maps = made.attentions
                if not maps or any(one is None for one in maps):
                    raise WhiteboxError(
                        f"{self.name} gives no attention maps: its layers have none, or do not compute them eagerly"
                    )
                group = layer_group(len(maps), self._layers)
                attention = torch.stack([maps[layer][0].float().mean(dim=0) for layer in group])
                hidden = made.hidden_states[group[-1] + 1][0].float()
                laws = torch.softmax(made.logits[0, -LAW_ROWS:].float(), dim=-1)
                reading = Reading(*(one.cpu().numpy() for one in (attention, hidden, laws)))
        except RuntimeError:
            return None
        return reading if all(np.isfinite(one).all() for one in reading) else None

    def points(self, text: str) -> tuple[FloatArray, int]:
        """phi of 001 sec. 4.1: the model's own embedding of each token, of length 1; and tokens beyond MOST_POINTS.

        EncoderError when they are no numbers.
        """
        tokens = self.text_tokens(text)
        torch = self._torch
        try:
            with torch.inference_mode():
                fed = torch.tensor(tokens[:MOST_POINTS], dtype=torch.long, device=self._network.device)
                rows: FloatArray = self._network.get_input_embeddings()(fed).double().cpu().numpy()
        except RuntimeError:
            raise EncoderError(f"{self.name} gives no embeddings") from None
        if not np.isfinite(rows).all():
            raise EncoderError(f"the embeddings of {self.name} are not finite")
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        there = lengths[:, 0] > 0.0
        return rows[there] / lengths[there], max(len(tokens) - MOST_POINTS, 0)


def load(section: CheckpointSection, layers: str) -> LocalModel:
    """A checkpoint from this host's disk. WhiteboxError says what is missing."""
    try:
        transformers = imported()
        import torch
    except ImportError as error:
        raise WhiteboxError(f"{error.name} is missing: pip install 'mvps[ai,models]'") from None
    of = {"revision": section.revision} if section.revision else {}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(section.checkpoint, **of, **OF_TOKENIZER)
        network = transformers.AutoModelForCausalLM.from_pretrained(
            section.checkpoint, attn_implementation="eager", **of, **OF_MODEL
        )
        network = network.to(device=section.device, dtype=getattr(torch, section.dtype))
    except REFUSALS as error:
        raise WhiteboxError(
            f"{section.name}: {section.checkpoint} cannot be loaded ({reason(error)}): name a folder in the format of "
            "transformers with weights as safetensors, or a model and revision that are in its local cache"
        ) from None
    model = LocalModel(section.name, tokenizer, network, layers, section.timeout_s)
    try:
        model.prompt_tokens("yes")
    except Exception as error:  # whatever a chat template raises, it is better raised now than in a round
        raise WhiteboxError(
            f"{section.name}: its chat template cannot be filled ({type(error).__name__}); it needs jinja2"
        ) from None
    return model


def load_all(section: WhiteboxSection) -> list[LocalModel]:
    """All replicas of a group. WhiteboxError also where two of them cannot be fed the same tokens."""
    models = [load(one, section.layers) for one in section.replica]
    first = models[0]
    for model in models[1:]:
        if model.vocabulary != first.vocabulary:
            raise WhiteboxError(f"{first.name} and {model.name} make tokens differently: they cannot read the same")
        if model.shape != first.shape:
            raise WhiteboxError(
                f"{first.name} and {model.name} have {first.shape} and {model.shape} layers, dimensions and words: "
                "replicas are of one model"
            )
    return models


class LocalReplica:
    """A checkpoint as somebody who can be asked. turn: shared by all of one process, who would slow each other."""

    def __init__(self, model: LocalModel, turn: asyncio.Lock) -> None:
        self.name = model.name
        self._model = model
        self._turn = turn

    async def ask(self, prompt: str, sampling: Sampling) -> Answer:
        """Ask once; never raises for what the model does."""
        async with self._turn:
            return await asyncio.to_thread(self._model.answer, prompt, sampling)


class OwnEmbedding:
    """phi of a white-box group: the first replica's embeddings of tokens, for the answers of all (001 sec. 4.1)."""

    def __init__(self, model: LocalModel) -> None:
        self._model = model

    async def clouds(self, texts: Sequence[str]) -> Mapping[str, Pointed]:
        """Every text as the points of its tokens. EncoderError when they are no numbers."""
        return await asyncio.to_thread(self._clouds, texts)

    def _clouds(self, texts: Sequence[str]) -> dict[str, Pointed]:
        found = {text: self._model.points(text) for text in texts}
        return {text: Pointed(points if len(points) else None, beyond) for text, (points, beyond) in found.items()}


class Reader:
    """Lets all replicas read what was asked and said, and adds to the round what that gave.

    hidden: whether distances are those of hidden states, in place of those of answers. most: tokens that are read.
    """

    def __init__(self, models: Sequence[Reads], *, hidden: bool, most: int) -> None:
        self._models = tuple(models)
        self._hidden = hidden
        self._most = most
        self._last: dict[str, list[Reading | None]] = {}  # family -> what each replica made of its last prompt

    async def read_into(self, seen: Round, prompt: str, answer: str) -> Round:
        """The round with what reading the prompt and one answer to it gave."""
        return await asyncio.to_thread(self._read_into, seen, prompt, answer)

    def _read_into(self, seen: Round, prompt: str, answer: str) -> Round:
        first = self._models[0]
        tokens = first.prompt_tokens(prompt) + first.text_tokens(answer)
        beyond = max(len(tokens) - self._most, 0)
        tokens = tokens[: self._most]
        try:
            return dataclasses.replace(self._read(seen, tokens), tokens_left_out=beyond)
        except (ValueError, WhiteboxError) as error:
            return dataclasses.replace(self._without(seen), reading_problem=str(error), tokens_left_out=beyond)

    def _without(self, seen: Round) -> Round:
        """A round that could not be read: its distances are not of the kind that it is judged by."""
        if not self._hidden:
            return seen
        nothing = np.full_like(seen.between, np.nan)
        return dataclasses.replace(seen, between=nothing, replayed=None, unrelated=np.zeros(0))

    def _read(self, seen: Round, tokens: Sequence[int]) -> Round:
        readings = [model.read(tokens) for model in self._models]
        compared = compare(readings)
        others = [
            (one, other)
            for family, last in self._last.items()
            if family != seen.family
            for one, other in zip(readings, last, strict=True)
            if one is not None and other is not None
        ]
        self._last.pop(seen.family, None)
        self._last[seen.family] = readings
        if len(self._last) > KEPT_FAMILIES:
            del self._last[next(iter(self._last))]  # the one that has not been asked for longest
        made = dataclasses.replace(
            seen,
            cka=compared.cka,
            cka_unpaired=_known([unpaired_cka(one, other) for one, other in others]),
            attention_jsd=compared.attention_jsd,
            next_jsd=compared.next_jsd,
        )
        if not self._hidden:
            return made
        replayed = None
        if seen.replayed is not None:
            replayed = np.array([_again(*pair, tokens) for pair in zip(self._models, readings, strict=True)])
        return dataclasses.replace(
            made,
            between=compared.between,
            replayed=replayed,
            unrelated=_known([hidden_distance(one, other) for one, other in others]),
        )


def _again(model: Reads, before: Reading | None, tokens: Sequence[int]) -> float:
    """How far a replica is from itself when it reads the same once more; NaN where it gives no numbers."""
    after = model.read(tokens) if before is not None else None
    return np.nan if before is None or after is None else hidden_distance(before, after)


def _known(values: Sequence[float]) -> FloatArray:
    found = np.array(values, dtype=np.float64)
    kept: FloatArray = found[~np.isnan(found)]
    return kept
