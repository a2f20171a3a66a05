# SPDX-License-Identifier: Apache-2.0
"""Models are read from the disk and from nowhere else."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from mvps.ai import local_transformers


@pytest.mark.parametrize("package", ["torch", "transformers"])
def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    if package == "transformers":
        pytest.importorskip("torch", reason="the extra `models` is not installed")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError) as caught:
        local_transformers.imported()
    assert caught.value.name == package
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def test_a_reason_is_one_line() -> None:
    assert local_transformers.reason(OSError("\n no file x\nAsk the hub: ...")) == "no file x"
    assert local_transformers.reason(KeyError()) == "KeyError"


def test_weights_that_are_programs_are_not_loaded(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the extra `models` is not installed")
    pytest.importorskip("transformers", reason="the extra `models` is not installed")
    from tests.ai import tiny_models

    folder = tiny_models.kept(tmp_path / "m", tiny_models.causal())
    transformers = local_transformers.imported()
    transformers.AutoModelForCausalLM.from_pretrained(str(folder), **local_transformers.OF_MODEL)
    network = tiny_models.causal()
    tiny_models.torch.save(network.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(local_transformers.REFUSALS):
        transformers.AutoModelForCausalLM.from_pretrained(str(folder), **local_transformers.OF_MODEL)
