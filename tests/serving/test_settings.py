# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mvps.serving import settings


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    np.save(tmp_path / "embeddings.npy", np.ones((50, 8), dtype=np.float32))
    np.save(tmp_path / "constraints.npy", np.eye(3, 8, dtype=np.float32))
    (tmp_path / "salt").write_bytes(b"s" * 16)
    return tmp_path


def write(folder: Path, **changes: object) -> Path:
    values: dict[str, object] = {
        "model": "small",
        "embeddings": str(folder / "embeddings.npy"),
        "salt": str(folder / "salt"),
        "socket": str(folder / "none.sock"),
    }
    text = "\n".join(f'{k} = "{v}"' if isinstance(v, str) else f"{k} = {v}" for k, v in (values | changes).items())
    path = folder / "surplus.toml"
    path.write_text(text + "\n")
    return path


def load(path: Path, monkeypatch: pytest.MonkeyPatch) -> settings.ServingSettings:
    monkeypatch.setenv(settings.VARIABLE, str(path))
    return settings.load()


def test_an_engine_is_made_of_its_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(folder, tenant="acme", constraints=str(folder / "constraints.npy"), record=str(folder / "r"), top_k=4)
    engine = settings.start(load(path, monkeypatch), 6)
    assert (engine.tenant, engine.decoding.room, engine.decoding.top_k) == ("acme", 6, 4)
    engine.close()
    assert (folder / "r").exists()


def test_without_a_file_or_with_a_wrong_one_it_says_what_to_do(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(settings.VARIABLE, raising=False)
    with pytest.raises(ValueError, match="set MVPS_SURPLUS"):
        settings.load()
    with pytest.raises(ValueError, match="no such file"):
        load(folder / "none", monkeypatch)
    with pytest.raises(ValueError, match="top_k"):
        load(write(folder, top_k=1), monkeypatch)
    with pytest.raises(ValueError, match="unknown key"):
        load(write(folder, prompt="x"), monkeypatch)


def test_files_that_cannot_be_used_are_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(folder / "double.npy", np.ones((50, 8)))
    np.save(folder / "other.npy", np.ones((2, 9), dtype=np.float32))
    (folder / "short").write_bytes(b"s")
    for changes, words in (
        ({"embeddings": str(folder / "none.npy")}, "embeddings .*none.npy"),
        ({"embeddings": str(folder / "double.npy")}, r"float64 \(50, 8\), and not float32"),
        ({"embeddings": str(folder / "salt")}, "embeddings .*salt"),
        ({"constraints": str(folder / "other.npy")}, r"and not float32 \(count, 8\)"),
        ({"salt": str(folder / "none")}, "cannot open .*none: No such file"),
        ({"salt": str(folder / "short")}, "can be guessed"),
        ({"metrics": "localhost:8000/metrics"}, "metrics 'localhost:8000/metrics' is no http"),
    ):
        with pytest.raises(ValueError, match=words):
            settings.start(load(write(folder, **changes), monkeypatch), 2)


def test_answers_go_from_the_requests_to_the_spread_and_to_the_link(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embeddings = np.random.default_rng(1).normal(size=(50, 8)).astype(np.float32)
    np.save(folder / "embeddings.npy", embeddings)
    engine = settings.start(load(write(folder), monkeypatch), 2)
    rng, slot = np.random.default_rng(2), np.array([0])
    for _ in range(256):
        engine.decoding.open(0, "acme", b"r", 0.8, [1, 2])
        for token in rng.integers(50, size=3):
            engine.decoding.step(rng.normal(size=(1, 50)).astype(np.float32), slot)
            engine.decoding.sampled(slot, np.array([token]))
        engine.decoding.close(0)
    assert engine.link._spread is not None
    assert engine.link._spread.read()["acme"] > 0.7
    engine.close()
