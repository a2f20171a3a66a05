# SPDX-License-Identifier: Apache-2.0
"""Tiny models of transformers with random weights, written to folders: nothing is downloaded, nothing has been learned.

Import it only where torch and transformers are there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

WORDS = ("<unk>", "<end>", "<pad>", *(f"{a}{b}" for a in "bdfgklmnprstvz" for b in "aeiou"))


def tokenizer(words: Sequence[str] = WORDS) -> Any:
    """One token a word, from a list."""
    made = Tokenizer(models.WordLevel({word: k for k, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", eos_token="<end>", pad_token="<pad>"
    )


def causal(seed: int = 0, words: Sequence[str] = WORDS, layers: int = 4) -> Any:
    """A causal language model of four layers."""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=2,
        initializer_range=0.3,  # weights that make a difference
    )
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")


def encoder(seed: int = 0) -> Any:
    """An encoder of two layers."""
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=40,
        initializer_range=0.3,
        pad_token_id=2,
    )
    return transformers.BertModel(config)


def kept(folder: Path, network: Any, words: Sequence[str] = WORDS) -> Path:
    """The folder, with network and tokeniser in it."""
    network.save_pretrained(folder)
    tokenizer(words).save_pretrained(folder)
    return folder


def disturbed(network: Any, share: float, seed: int = 1) -> Any:
    """Noise on the attention of every layer: ``share`` of each matrix's own standard deviation. In place."""
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if "self_attn" in name and weight.ndim == 2:
                weight.add_(share * weight.std() * torch.randn(weight.shape, generator=noise))
    return network
