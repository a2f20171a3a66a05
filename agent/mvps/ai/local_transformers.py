# SPDX-License-Identifier: Apache-2.0
"""The package transformers, with leave to read this host's disk and no more.

Nothing is downloaded, no code that a model brings along runs, and weights are taken as safetensors only: the older
format is a pickle, which is a program.
"""

from __future__ import annotations

import os
from typing import Any, Final

OF_TOKENIZER: Final = {"local_files_only": True, "trust_remote_code": False}
OF_MODEL: Final = {**OF_TOKENIZER, "use_safetensors": True}
# What loading a model raises, depending on what is wrong with it.
REFUSALS: Final = (OSError, ValueError, KeyError, RuntimeError, ImportError)


def imported() -> Any:
    """The package. ImportError names it, or torch, where that is missing."""
    # Read once, when the package is imported: some of its versions ask the hub about a folder on the disk.
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch  # noqa: F401 - without it transformers imports, and loads nothing
    import transformers

    return transformers


def reason(error: BaseException) -> str:
    """The first line of why a model cannot be loaded; advice about the hub follows in others."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
