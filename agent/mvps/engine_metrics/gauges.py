# SPDX-License-Identifier: Apache-2.0
"""How loaded an engine is now: requests that run and wait, and the share of the KV cache in use.

vLLM and SGLang export these as gauges; the names are theirs. A page can hold several engines (data parallel): requests
are summed over them, and of the cache the fullest counts, as its requests are the ones that have to go. Ranks of one
engine (tensor parallel) all tell the same: the first counts.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from mvps.engine_metrics.exposition import samples


class Gauges(NamedTuple):
    """Names of one engine's gauges; of the cache, those of its versions."""

    running: str
    waiting: str
    kv_cache: tuple[str, ...]


# vLLM's cache gauge had its former name up to engine V0. SGLang with --enable-metrics.
ENGINES: Final = {
    "vllm": Gauges(
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
    ),
    "sglang": Gauges("sglang:num_running_reqs", "sglang:num_queue_reqs", ("sglang:token_usage",)),
}
# What tells one engine of a page from another, and the rank of which only the first counts.
_ENGINE_LABELS: Final = ("engine", "dp_rank")
_RANK_LABEL: Final = "tp_rank"


class EngineGauges(NamedTuple):
    """Of all engines on a page. kv_cache: share in use of the fullest, in [0, 1]."""

    engines: int
    running: int
    waiting: int
    kv_cache: float


def gauges(text: str, model: str) -> EngineGauges:
    """The gauges of one model in an exposition. ValueError: one is missing, or its value cannot be."""
    wanted = {name for one in ENGINES.values() for name in (one.running, one.waiting, *one.kv_cache)}
    values: dict[str, list[float]] = {}
    engines: set[tuple[str, ...]] = set()
    for name, labels, value in samples(text, wanted, model):
        if labels.get(_RANK_LABEL, "0") != "0":
            continue
        share = any(name in one.kv_cache for one in ENGINES.values())
        if not 0.0 <= value <= (1.0 if share else 2.0**31):
            raise ValueError(f"{name} is {value:g}, and cannot be")
        values.setdefault(name, []).append(value)
        engines.add(tuple(labels.get(label, "") for label in _ENGINE_LABELS))
    for one in ENGINES.values():
        if one.running not in values:
            continue
        cache = next((name for name in one.kv_cache if name in values), "")
        if one.waiting not in values or not cache:
            raise ValueError(f"{one.running} without {one.kv_cache[0] if one.waiting in values else one.waiting}")
        return EngineGauges(
            len(engines), int(sum(values[one.running])), int(sum(values[one.waiting])), max(values[cache])
        )
    names = " or ".join(one.running for one in ENGINES.values())
    raise ValueError(f'no gauge of running requests for the model "{model}": {names}')
