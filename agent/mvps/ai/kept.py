# SPDX-License-Identifier: Apache-2.0
"""Scales and baseline of a replica group as a file, so that a restart does not calibrate for an hour again.

They belong to what was asked of whom: other replicas, models, prompts, sampling or encoder, and they are refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any, Final

from mvps.ai.config import AiConfig
from mvps.ai.group import Scales
from mvps.ai.prompts import Canary
from mvps.coherence.distance import Ellipsoid
from mvps.coherence.tail import Tail
from mvps.semantic.c4 import Delta
from mvps.semantic.calibrated import Anchors
from mvps.semantic.latency import LatencyScale
from mvps.semantic.profiles import AiBaseline

FORMAT: Final = "mvps-ai-baseline/1"
MAX_BYTES: Final = 1 << 20


def identity(config: AiConfig, canaries: Sequence[Canary]) -> str:
    """Digest of everything that calibration depends on."""
    pace = config.pace
    asked = [dataclasses.astuple(one) for one in canaries]
    inside = config.whitebox
    if inside is not None:
        members = [(one.name, one.checkpoint, one.revision, one.device, one.dtype) for one in inside.replica]
        whom: list[tuple[str, ...]] = [*members, (inside.layers, inside.points, str(inside.tokens))]
    else:
        whom = [(one.name, one.url, one.model) for one in config.replica]
    place = config.encoder.place if config.encoder is not None else ""
    how = (config.sees, place, config.encoder_name, pace.max_tokens, pace.temperature, pace.seed)
    cutoffs = config.calibration.cutoffs
    return hashlib.sha256(json.dumps([asked, whom, how, cutoffs]).encode()).hexdigest()


def dump(of: str, scales: Scales, baseline: AiBaseline) -> bytes:
    """File content. of: see :func:`identity`."""
    document = {"format": FORMAT, "of": of, "scales": _plain(scales), "baseline": _plain(baseline)}
    return json.dumps(document, indent=1).encode() + b"\n"


def load(content: bytes, of: str) -> tuple[Scales, AiBaseline]:
    """What :func:`dump` wrote. ValueError says why it cannot be used."""
    if len(content) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES} bytes")
    try:
        document = json.loads(content)
        kind, whose = document["format"], document["of"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"it is damaged ({type(error).__name__})") from None
    if kind != FORMAT:
        raise ValueError(f"its format is not {FORMAT}")
    if whose != of:
        raise ValueError("it was calibrated with other replicas, prompts, sampling or another encoder")
    try:
        return _scales(document["scales"]), _baseline(document["baseline"])
    except (ValueError, KeyError, TypeError, IndexError, OverflowError) as error:
        raise ValueError(f"it is damaged ({error})") from None


def _scales(kept: Any) -> Scales:
    return Scales(
        _latency(kept["ttft"]),
        _latency(kept["total"]),
        Anchors(*map(float, kept["anchors"])) if kept["anchors"] else None,
        float(kept["w2_max"]) if kept["w2_max"] is not None else None,
        _delta(*kept["delta"]) if kept["delta"] else None,
        tuple(map(str, kept["notes"])),
        float(null) if (null := kept.get("cka_null")) is not None else None,
    )


def _baseline(kept: Any) -> AiBaseline:
    ellipsoid, tail = Ellipsoid(**_tuples(kept["ellipsoid"])), Tail(**_tuples(kept["tail"]))
    return AiBaseline(**{**kept, "ellipsoid": ellipsoid, "tail": tail})


def _plain(value: Any) -> Any:
    """Dataclasses as objects, tuples and named tuples as lists."""
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return value


def _tuples(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_tuples(one) for one in value)
    if isinstance(value, dict):
        return {key: _tuples(one) for key, one in value.items()}
    return value


def _latency(pair: Sequence[Sequence[float]]) -> LatencyScale:
    edges, law = (tuple(map(float, one)) for one in pair)
    if len(law) != len(edges) + 2 or list(edges) != sorted(edges) or min(law) < 0.0 or abs(sum(law) - 1.0) > 1e-6:
        raise ValueError("a latency scale in it is no law over its labels")
    return LatencyScale(edges, law)


def _delta(value: float, level: float, count: int) -> Delta:
    return Delta(float(value), float(level), int(count))
