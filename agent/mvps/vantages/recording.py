# SPDX-License-Identifier: Apache-2.0
"""Recordings of observations: what the vantages saw, tick by tick, before any definition is applied to it.

One gzip file of JSON lines. The first line describes the recording; a tick line holds every observation with its
histogram as (bin, count) pairs; a mark line says what was going on from here (a fault, a load change, an episode's
end). Alphabets, windows and cut-offs are chosen offline from such files (bench/detect), and any of them can be
replayed through the coherence model tick by tick.
"""

from __future__ import annotations

import gzip
import json
import platform
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from mvps.coherence.observation import HIST_BINS, Observation, Scale

FORMAT = 1
# A full flush this often bounds what a crash loses to so many ticks.
_FLUSH_TICKS = 64


class RecordingError(ValueError):
    """The file is not a recording or breaks off in the middle of a line."""


@dataclass(frozen=True, slots=True)
class Tick:
    """One recorded tick: lattice index, wall-clock time in ns, observations by name."""

    index: int
    time_ns: int
    observations: Mapping[str, Observation]


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that began or ended at ``time_ns``, e.g. ``{"fault": "mm", "dose": 0.5}``."""

    time_ns: int
    facts: Mapping[str, Any]


def _pack(one: Observation) -> dict[str, Any]:
    bins = np.flatnonzero(one.histogram)
    packed: dict[str, Any] = {"h": [[int(b), round(float(one.histogram[b]), 6)] for b in bins]}
    if one.objects is not None:
        packed["o"] = {str(key): round(value, 3) for key, value in one.objects.items()}
    if one.checked:
        packed["c"] = [one.checked, one.violated]
    if one.fingerprints:
        packed["f"] = {str(k): {str(p): n for p, n in v.items()} for k, v in one.fingerprints.items()}
    if one.degraded:
        packed["d"] = one.degraded
    facts = {key: float(f"{value:.6g}") for key, value in one.facts.items() if value}
    if facts:
        packed["x"] = facts
    return packed


def _unpack(name: str, scale: Scale, packed: Mapping[str, Any]) -> Observation:
    histogram = np.zeros(HIST_BINS)
    for at, count in packed["h"]:
        histogram[at] = count
    checked, violated = packed.get("c", (0.0, 0.0))
    objects = packed.get("o")
    return Observation(
        vantage=name,
        scale=scale,
        histogram=histogram,
        objects=None if objects is None else {int(key): value for key, value in objects.items()},
        checked=checked,
        violated=violated,
        fingerprints={int(k): {int(p): n for p, n in v.items()} for k, v in packed.get("f", {}).items()},
        degraded=packed.get("d", ""),
        facts=packed.get("x", {}),
    )


class Recorder:
    """Writes a recording."""

    def __init__(self, path: Path, tick_seconds: float, about: Mapping[str, Any] | None = None) -> None:
        self._file = gzip.open(path, "wb", compresslevel=6)  # noqa: SIM115 - closed by close()
        self._scales: dict[str, list[Any]] = {}
        self._ticks = 0
        self._line(
            {
                "format": FORMAT,
                "tick_seconds": tick_seconds,
                "kernel": platform.release(),
                "machine": platform.machine(),
                **(about or {}),
            }
        )

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _line(self, content: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(content, separators=(",", ":")).encode() + b"\n")

    def tick(self, index: int, time_ns: int, observations: Mapping[str, Observation]) -> None:
        """Append one tick."""
        fresh = {
            name: [one.scale.unit, one.scale.lowest, one.scale.quiet, one.scale.categorical]
            for name, one in observations.items()
            if name not in self._scales
        }
        if fresh:
            self._scales.update(fresh)
            self._line({"scales": fresh})
        self._line({"k": index, "t": time_ns, "v": {name: _pack(one) for name, one in observations.items()}})
        self._ticks += 1
        if self._ticks % _FLUSH_TICKS == 0:
            self._file.flush()

    def mark(self, time_ns: int, facts: Mapping[str, Any]) -> None:
        """Append a mark."""
        self._line({"mark": dict(facts), "t": time_ns})

    def close(self) -> None:
        """Finish the file."""
        self._file.close()


def read(path: Path) -> Iterator[Mapping[str, Any] | Tick | Mark]:
    """The description, then ticks and marks in order.

    A file that breaks off (its writer was killed) yields everything before the break and then raises RecordingError.
    """
    scales: dict[str, Scale] = {}
    with gzip.open(path, "rb") as file:
        try:
            about = json.loads(next(file))
            if about.get("format") != FORMAT:
                raise RecordingError(f"{path}: format {about.get('format')}, this program reads {FORMAT}")
            yield about
            for line in file:
                content = json.loads(line)
                if "scales" in content:
                    scales.update({name: Scale(*values) for name, values in content["scales"].items()})
                elif "mark" in content:
                    yield Mark(content["t"], content["mark"])
                else:
                    found = {name: _unpack(name, scales[name], packed) for name, packed in content["v"].items()}
                    yield Tick(content["k"], content["t"], found)
        except (EOFError, zlib.error, json.JSONDecodeError, gzip.BadGzipFile, StopIteration) as error:
            raise RecordingError(f"{path}: not a recording, or it breaks off: {error}") from error
