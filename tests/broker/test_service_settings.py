# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import tomllib

import pytest
from pydantic import ValidationError

from mvps.broker.service_settings import MAX_SOURCES, ServiceSettings, Source
from mvps.broker.settings import BrokerSettings

TABLE = """
[[service]]
name = "chat"
network = ["lb-1", "lb-2/kernel"]
ai = ["gpu-1/ai.chat"]

[[service]]
name = "search"
network = ["lb-1"]
ai = ["gpu-1/ai", "gpu-2/ai.search"]
c4 = true
tick_s = 5.0
cutoffs = "finite-sample"
"""


def service(**changes: object) -> dict[str, object]:
    return {"name": "chat", "network": ["lb-1"], "ai": ["gpu-1/ai.chat"]} | changes


def test_the_tables_of_a_settings_file() -> None:
    chat, search = BrokerSettings.model_validate(tomllib.loads(TABLE)).service
    assert chat.network == (Source("lb-1", "dataplane"), Source("lb-2", "kernel"))
    assert chat.sources == (*chat.network, Source("gpu-1", "ai.chat"))
    assert (chat.c4, chat.tick_s, chat.calibration_ticks, chat.cutoffs) == (False, 1.0, 300, "empirical")
    assert [str(one) for one in search.ai] == ["gpu-1/ai", "gpu-2/ai.search"]
    assert BrokerSettings.model_validate({}).service == ()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"name": ""}, "pattern"),
        ({"name": "two words"}, "pattern"),
        ({"hosts": ["a"]}, "Extra inputs"),
        ({"network": []}, "name at least one"),
        ({"ai": []}, "name at least one"),
        ({"network": [f"h{n}" for n in range(65)]}, "at most 64"),
        ({"ai": [f"h{n}/ai" for n in range(9)]}, "at most 8"),
        ({"network": ["lb-1", "lb-1/dataplane"]}, '"lb-1/dataplane" is there twice'),
        ({"network": ["gpu-1/ai.chat"]}, "is an AI surface: it belongs into ai"),
        ({"network": ["two words"]}, "vantage id"),
        ({"network": [3]}, "write a host as"),
        ({"network": ["lb-1/\n"]}, "names no surface"),
        ({"ai": ["gpu-1"]}, '"gpu-1" names no surface: write HOST/ai.NAME'),
        ({"ai": ["gpu-1/kernel"]}, "is no AI surface"),
        ({"ai": ["gpu-1/aim"]}, "is no AI surface"),
        ({"tick_s": 0.01}, "greater than or equal to 0.05"),
        ({"keep_s": -1}, "greater than or equal to 0"),
        ({"calibration_ticks": 59}, "greater than or equal to 60"),
        ({"cutoffs": "guess"}, "empirical"),
    ],
)
def test_what_cannot_be_watched_is_refused_with_the_reason(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ServiceSettings.model_validate(service(**wrong))


def test_names_are_unique_and_services_and_sources_limited() -> None:
    with pytest.raises(ValidationError, match='service "chat" is there twice'):
        BrokerSettings.model_validate({"service": [service(), service()]})
    with pytest.raises(ValidationError, match="at most 32"):
        BrokerSettings.model_validate({"service": [service(name=f"s{n}") for n in range(33)]})
    many = [service(name=f"s{n}", network=[f"h{m}" for m in range(64)]) for n in range(4)]
    with pytest.raises(ValidationError, match=f"260 sources, at most {MAX_SOURCES}"):
        BrokerSettings.model_validate({"service": many})
