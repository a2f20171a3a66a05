# SPDX-License-Identifier: Apache-2.0
"""Gauges as vLLM and SGLang export them."""

from __future__ import annotations

import pytest

from mvps.engine_metrics.gauges import EngineGauges, gauges

VLLM = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 24.0
vllm:num_requests_running{engine="0",model_name="other"} 99.0
vllm:num_requests_waiting{engine="0",model_name="m"} 72.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 72.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.4565217391304348
"""
SECOND = VLLM.replace('engine="0"', 'engine="1"').replace(" 24.0", " 8.0").replace(" 0.456", " 0.956")
SGLANG = """\
sglang:num_running_reqs{engine_type="unified",model_name="m",tp_rank="0"} 4.0
sglang:num_running_reqs{engine_type="unified",model_name="m",tp_rank="1"} 4.0
sglang:num_queue_reqs{engine_type="unified",model_name="m",tp_rank="0"} 3.0
sglang:token_usage{engine_type="unified",model_name="m",tp_rank="0"} 0.28
"""


def test_vllm_s_gauges() -> None:
    assert gauges(VLLM, "m") == EngineGauges(1, 24, 72, 0.4565217391304348)


def test_engines_of_one_page_are_summed_and_the_fullest_cache_counts() -> None:
    assert gauges(VLLM + SECOND, "m") == EngineGauges(2, 32, 144, 0.9565217391304348)


def test_vllm_s_former_name_of_the_cache() -> None:
    assert gauges(VLLM.replace("kv_cache_usage_perc", "gpu_cache_usage_perc"), "m").kv_cache == 0.4565217391304348


def test_sglang_s_ranks_tell_the_same_and_count_once() -> None:
    assert gauges(SGLANG, "m") == EngineGauges(1, 4, 3, 0.28)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no gauge of running requests"),
        (VLLM.replace('model_name="m"', 'model_name="n"'), "no gauge of running requests"),
        (VLLM.replace("num_requests_waiting{", "x{"), "vllm:num_requests_running without vllm:num_requests_waiting"),
        (VLLM.replace("kv_cache_usage_perc", "x"), "without vllm:kv_cache_usage_perc"),
        (VLLM.replace(" 24.0", " NaN"), "is nan"),
        (VLLM.replace(" 24.0", " -1"), "is -1"),
        (VLLM.replace(" 72.0", " 1e300"), r"is 1e\+300"),
        (VLLM.replace(" 0.456", " 45.6"), "is 45.6"),
    ],
)
def test_what_cannot_be_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        gauges(text, "m")
