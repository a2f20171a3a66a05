# SPDX-License-Identifier: Apache-2.0
"""Counters as vLLM and SGLang export them."""

from __future__ import annotations

import pytest

from mvps.ai.replica_load import ReplicaLoad, of_round, totals

VLLM = """\
# HELP vllm:request_success_total Count of successfully processed requests.
# TYPE vllm:request_success_total counter
vllm:request_success_total{engine="0",finished_reason="stop",model_name="m"} 11.0
vllm:request_success_total{engine="0",finished_reason="length",model_name="m"} 2.0
vllm:request_success_total{engine="0",finished_reason="stop",model_name="other"} 100.0
vllm:request_success_created{engine="0",finished_reason="stop",model_name="m"} 1.7e+09
vllm:prefix_cache_queries_total{engine="0",model_name="m"} 1500.0
vllm:prefix_cache_hits_total{engine="0",model_name="m"} 1.2e+03
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.4
"""
SGLANG = """\
sglang:num_requests_total{model_name="m"} 5.0
sglang:prompt_tokens_total{model_name="m"} 800.0
sglang:cached_tokens_total{cache_source="device",model_name="m"} 300.0
sglang:cached_tokens_total{cache_source="host",model_name="m"} 100.0 1700000000000
"""


def test_vllm_s_counters_are_summed_over_everything_but_other_models() -> None:
    assert totals(VLLM, "m") == ReplicaLoad(13, 1500, 1200)


def test_sglang_s_counters() -> None:
    assert totals(SGLANG, "m") == ReplicaLoad(5, 800, 400)


def test_an_engine_that_counts_no_tokens_says_none() -> None:
    text = "\n".join(line for line in VLLM.splitlines() if "hits" not in line)
    assert totals(text, "m") == ReplicaLoad(13, 0, 0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no counter of requests"),
        (VLLM.replace('model_name="m"', 'model_name="n"'), "no counter of requests"),
        (VLLM.replace(" 11.0", " NaN"), "is nan"),
        (VLLM.replace(" 11.0", " -1"), "is -1"),
        (VLLM.replace(" 11.0", " 1e300"), r"is 1e\+300"),
        (VLLM.replace(" 11.0", " many"), "could not convert"),
    ],
)
def test_what_is_no_count_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        totals(text, "m")


def test_a_round_in_which_one_engine_does_not_tell_has_no_shares() -> None:
    load = ReplicaLoad(1, 0, 0)
    assert of_round({"a": load, "b": load}) == {"a": load, "b": load}
    assert of_round({"a": load, "b": None}) == {}
    assert of_round({}) == {}
