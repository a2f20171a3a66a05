# SPDX-License-Identifier: Apache-2.0
"""What a serving engine counts of its own work: requests it finished, prompt tokens, and those its prefix cache had.

vLLM and SGLang export these as counters in Prometheus's text format; the names are theirs. What a vantage needs are
differences between two rounds: how many requests each replica got (its share of the routing), and how much of their
history was warm. A counter that falls was reset, and the round after it begins anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from mvps.engine_metrics.exposition import samples


class Names(NamedTuple):
    """The counters of one engine."""

    requests: str
    prompt_tokens: str
    cached_tokens: str


# vLLM from 0.8 on (engine V1; its prefix cache counts tokens) and SGLang with --enable-metrics.
ENGINES: Final = {
    "vllm": Names("vllm:request_success_total", "vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total"),
    "sglang": Names("sglang:num_requests_total", "sglang:prompt_tokens_total", "sglang:cached_tokens_total"),
}


@dataclass(frozen=True, slots=True)
class ReplicaLoad:
    """Of one replica, in total or since the round before. prompt_tokens is 0 where the engine does not count them."""

    requests: int
    prompt_tokens: int
    cached_tokens: int


def totals(text: str, model: str) -> ReplicaLoad:
    """The counters in an exposition, over all labels but other models' names. ValueError if there are none of ours."""
    found: dict[str, float] = {}
    wanted = {name for names in ENGINES.values() for name in names}
    for name, _, value in samples(text, wanted, model):
        if not 0.0 <= value < 2.0**63:
            raise ValueError(f"{name} is {value:g}, and a counter is not")
        found[name] = found.get(name, 0.0) + value
    for names in ENGINES.values():
        if names.requests in found:
            prompt, cached = found.get(names.prompt_tokens, 0.0), found.get(names.cached_tokens, 0.0)
            known = names.prompt_tokens in found and names.cached_tokens in found
            return ReplicaLoad(
                int(found[names.requests]), int(prompt) if known else 0, int(min(cached, prompt)) if known else 0
            )
    raise ValueError(
        f'no counter of requests for the model "{model}": {" or ".join(n.requests for n in ENGINES.values())}'
    )


def of_round(loads: Mapping[str, ReplicaLoad | None]) -> Mapping[str, ReplicaLoad]:
    """The loads of a round in which every replica told; shares of fewer would be others."""
    known = {name: load for name, load in loads.items() if load is not None}
    return known if len(known) == len(loads) else {}
