# SPDX-License-Identifier: Apache-2.0
"""The file that a serving engine's controller is started with, and what is made of it.

An engine that loads a class by its name can hand nothing to it: the file's path is in the environment variable
``MVPS_SURPLUS``. Embeddings are memory-mapped, so that several processes share them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from mvps.serving.agent_link import AgentLink, engine_name
from mvps.serving.decoding import Decoding
from mvps.serving.engine_load import LoadReader
from mvps.serving.text_spread import TextSpread
from mvps.settings import toml_file
from mvps.surplus.controller import Controller, Requests, Settings, Terrain
from mvps.surplus.geometry import TickRule, basis

VARIABLE: Final = "MVPS_SURPLUS"
_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,63}$")]


class ServingSettings(BaseModel):
    """Settings of one engine process.

    model: its name in packets. tenant: of requests that name none. embeddings: a .npy file (V, d), the model's input
    embeddings. constraints: a .npy file (count, d) of exemplars, "" for none. salt: a file of at least 16 secret bytes,
    the same on all hosts whose packets are compared. socket: the agent's. record: a file that packets are appended to,
    "" for none. metrics: the engine's page, whose load counts to the host's pressure, "" for none; served: the model's
    name on it, "" for ``model``; slots: requests that an engine runs at a time (vLLM's --max-num-seqs), 0 if not known.
    top_k, request_budget: as in the controller's settings. usual, most: tokens of a tick.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    model: _Name
    embeddings: str
    salt: str
    tenant: _Name = "default"
    constraints: str = ""
    socket: str = "/run/mvps/agent.sock"
    record: str = ""
    metrics: str = ""
    served: str = ""
    slots: Annotated[int, Field(ge=0, le=1 << 20)] = 0
    top_k: Annotated[int, Field(ge=2, le=256)] = 8
    request_budget: Annotated[float, Field(gt=0.0)] = float("inf")
    usual: Annotated[int, Field(ge=1, le=1000)] = 20
    most: Annotated[int, Field(ge=1, le=1000)] = 40


class Engine(NamedTuple):
    """What an adapter needs: the requests, the link, and the tenant of requests that name none. load: if it is read."""

    decoding: Decoding
    link: AgentLink
    tenant: str
    load: LoadReader | None = None

    def close(self) -> None:
        """End both threads."""
        self.link.close()
        if self.load is not None:
            self.load.close()


def load() -> ServingSettings:
    """The settings that the environment names. ValueError says what is missing or wrong."""
    path = os.environ.get(VARIABLE, "")
    if not path:
        raise ValueError(f"set {VARIABLE} to the controller's settings file (docs/surplus.md)")
    try:
        return toml_file.load(path, ServingSettings, "docs/surplus.md has one to start from")
    except toml_file.ConfigError as error:
        raise ValueError(str(error)) from None


def start(settings: ServingSettings, capacity: int) -> Engine:
    """The controller with room for so many requests, and its link, which has begun. ValueError: a file is wrong."""
    embeddings = _array(settings.embeddings, "embeddings")
    dimensions = embeddings.shape[1]
    axes = np.zeros((dimensions, 0))
    if settings.constraints:
        axes = basis(np.asarray(_array(settings.constraints, "constraints", dimensions), dtype=np.float64))
    controller = Controller(
        Settings(top_k=settings.top_k, request_budget=settings.request_budget),
        Terrain(embeddings, axes.astype(np.float32)),
        Requests(capacity, dimensions),
    )
    try:
        salt = Path(settings.salt).read_bytes()
        record = open(settings.record, "ab") if settings.record else None  # noqa: SIM115 - the link keeps it
    except OSError as error:
        raise ValueError(f"cannot open {error.filename}: {error.strerror}") from None
    spread = TextSpread(embeddings)
    load = LoadReader(settings.metrics, settings.served or settings.model, settings.slots) if settings.metrics else None
    link = AgentLink(settings.socket, engine_name(), record, load.read if load is not None else None, spread)
    decoding = Decoding(
        controller,
        settings.model,
        salt,
        link.told,
        link.write,
        ticks=TickRule(settings.usual, settings.most),
        answered=spread.note,
    )
    link.start()
    if load is not None:
        load.start()
    return Engine(decoding, link, settings.tenant, load)


def _array(path: str, name: str, columns: int = 0) -> npt.NDArray[np.float32]:
    try:
        array: npt.NDArray[np.float32] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{name} {path}: {error}") from None
    if array.ndim != 2 or array.dtype != np.float32 or (columns and array.shape[1] != columns):
        wanted = f"(count, {columns})" if columns else "(tokens, dimensions)"
        raise ValueError(f"{name} {path}: {array.dtype} {array.shape}, and not float32 {wanted}")
    return array
