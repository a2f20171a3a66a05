# SPDX-License-Identifier: Apache-2.0
"""A folder in the format of sentence-transformers gives the vectors it asks for, or an error that says why not."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mvps.ai import sentence_model
from mvps.ai.config import EncoderSection
from mvps.ai.encoder import EncoderError


def folder(path: Path, pooling: dict[str, object] | None = None, kinds: tuple[str, ...] = (), **files: object) -> Path:
    """A folder with everything but a model's weights."""
    (path / "1_Pooling").mkdir(parents=True)
    (path / "config.json").write_text("{}")
    (path / "tokenizer.json").write_text("{}")
    if pooling is not None:
        (path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    if kinds:
        modules = [{"type": f"sentence_transformers.models.{kind}", "path": ""} for kind in kinds]
        modules[1:2] = [modules[1] | {"path": "1_Pooling"}] if len(modules) > 1 else []
        (path / "modules.json").write_text(json.dumps(modules))
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return path


def test_pooling_and_length_are_what_the_folder_says(tmp_path: Path) -> None:
    plain = folder(tmp_path / "plain")
    assert sentence_model._layout(plain) == (plain, False, 512)
    mean = folder(
        tmp_path / "mean",
        {"word_embedding_dimension": 384, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True},
        ("Transformer", "Pooling", "Normalize"),
        sentence_bert_config={"max_seq_length": 256},
    )
    assert sentence_model._layout(mean) == (mean, False, 256)
    first = folder(tmp_path / "first", {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False})
    assert sentence_model._layout(first) == (first, True, 512)
    named = folder(tmp_path / "named", {"pooling_mode": "cls"})
    assert sentence_model._layout(named)[1]


@pytest.mark.parametrize(
    ("pooling", "kinds", "words"),
    [
        ({"pooling_mode_max_tokens": True}, (), "pools tokens by max: only mean and cls"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, (), "by max, mean"),
        ({"pooling_mode": "lasttoken"}, (), "by lasttoken"),
        (None, ("Transformer", "Pooling", "Dense"), "wants Dense after the model"),
    ],
)
def test_what_is_not_done_here_is_an_error(
    tmp_path: Path, pooling: dict[str, object] | None, kinds: tuple[str, ...], words: str
) -> None:
    with pytest.raises(EncoderError, match=words):
        sentence_model._layout(folder(tmp_path / "f", pooling, kinds))


def test_a_folder_that_holds_no_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="is no folder"):
        sentence_model._layout(tmp_path / "none")
    with pytest.raises(EncoderError, match=r"no config\.json in it"):
        sentence_model._layout(tmp_path)
    broken = folder(tmp_path / "broken")
    (broken / "modules.json").write_text("{")
    with pytest.raises(EncoderError, match="cannot be read"):
        sentence_model._layout(broken)
    (broken / "modules.json").write_text("{}")
    with pytest.raises(EncoderError, match="something else than is expected"):
        sentence_model._layout(broken)


def test_a_package_may_carry_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    package = tmp_path / "made_up_model_package"
    inside = folder(package / "model")
    (package / "__init__.py").write_text("raise AssertionError('no code of it runs')")
    assert sentence_model.folder_of_package("made_up_model_package") == inside
    (tmp_path / "made_up_empty_package").mkdir()
    (tmp_path / "made_up_empty_package" / "__init__.py").touch()
    with pytest.raises(EncoderError, match="carries no model"):
        sentence_model.folder_of_package("made_up_empty_package")
    with pytest.raises(EncoderError, match="there is no package made_up_absent_package: install it"):
        sentence_model.folder_of_package("made_up_absent_package")


def test_without_transformers_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(EncoderError, match=r"(torch|transformers) is missing: pip install 'mvps\[ai,models\]'"):
        sentence_model.load(EncoderSection(folder=folder(tmp_path / "f"), model="e"))


# ---- with torch and transformers


@pytest.fixture
def tiny() -> Any:
    pytest.importorskip("torch", reason="the extra `models` is not installed")
    pytest.importorskip("transformers", reason="the extra `models` is not installed")
    from tests.ai import tiny_models

    tiny_models.torch.set_num_threads(1)
    return tiny_models


def states(tiny: Any, network: Any, words: str) -> np.ndarray:
    tokens = tiny.torch.tensor([[tiny.WORDS.index(word) for word in words.split()]])
    with tiny.torch.inference_mode():
        found: np.ndarray = network.eval()(tokens).last_hidden_state[0].double().numpy()
    return found


@pytest.mark.parametrize("pooling", ["mean", "cls"])
async def test_vectors_are_the_pooled_states_of_the_model_whatever_else_is_in_the_batch(
    tmp_path: Path, tiny: Any, pooling: str
) -> None:
    network = tiny.encoder()
    tiny.kept(tmp_path / "e", network)
    folder_of = tmp_path / "e"
    (folder_of / "1_Pooling").mkdir()
    (folder_of / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": pooling}))
    loaded = sentence_model.load(EncoderSection(folder=folder_of, model="e"))
    texts = ["ba de", "fi go ku la me ni po", "ba"]
    found = await loaded.encode(texts)
    assert np.linalg.norm(found, axis=1) == pytest.approx([1.0] * 3)
    for vector, text in zip(found, texts, strict=True):
        rows = states(tiny, network, text)
        pooled = rows.mean(axis=0) if pooling == "mean" else rows[0]
        assert vector == pytest.approx(pooled / np.linalg.norm(pooled), abs=1e-5)
    clouds = await loaded.clouds(["ba de. fi go!", "..."])
    cloud = clouds["ba de. fi go!"].cloud
    assert cloud is not None
    assert cloud.shape == (2, 32)
    assert clouds["..."].cloud is None
    assert (await loaded.encode([])).shape[0] == 0


async def test_long_texts_are_cut_where_the_folder_says_and_no_longer_than_the_model_reads(
    tmp_path: Path, tiny: Any
) -> None:
    tiny.kept(tmp_path / "e", tiny.encoder())
    (tmp_path / "e" / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 3}))
    loaded = sentence_model.load_folder(tmp_path / "e")
    short, long = await loaded.encode(["ba de fi", "ba de fi go ku"])
    assert short == pytest.approx(long)
    (tmp_path / "e" / "sentence_bert_config.json").unlink()
    whole = sentence_model.load_folder(tmp_path / "e")
    assert (await whole.encode([" ".join(["ba"] * 100)])).shape == (1, 32)  # of 40 places


async def test_a_model_that_is_broken_is_an_error_without_the_text(tmp_path: Path, tiny: Any) -> None:
    network = tiny.encoder()
    with tiny.torch.no_grad():
        network.embeddings.word_embeddings.weight.fill_(float("nan"))
    tiny.kept(tmp_path / "e", network)
    with pytest.raises(EncoderError, match="not finite") as caught:
        await sentence_model.load_folder(tmp_path / "e").encode(["ba de"])
    assert "ba" not in str(caught.value).split()
