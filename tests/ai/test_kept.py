# SPDX-License-Identifier: Apache-2.0
"""What calibration found comes back as it was, and only for the same group."""

from __future__ import annotations

import dataclasses
import json

import pytest
from tests.ai.test_group import BASE, SCALE, Source, group

from mvps.ai import kept
from mvps.ai.config import EXAMPLE, EXAMPLE_WHITEBOX, AiConfig
from mvps.ai.prompts import Canary
from mvps.settings import toml_file

CANARIES = (Canary("f", "a?", ("a, then?",), "x"),)


def calibrated() -> bytes:
    made, source = group(), Source(1)
    for _ in range(SCALE + BASE):
        made.step(source.round())
    assert made.learned is not None
    return kept.dump("id", *made.learned)


def test_a_group_goes_on_where_it_was() -> None:
    content = calibrated()
    scales, baseline = kept.load(content, "id")
    assert kept.dump("id", scales, baseline) == content
    first, second, source = group(), group(), Source(2)
    for one in (first, second):
        one.restore(*kept.load(content, "id"))
    seen = [source.round() for _ in range(25)]
    reports = [(first.step(one), second.step(one)) for one in seen]
    assert all(a == b for a, b in reports)
    assert reports[0][0].state == "watching"
    assert {report.phase for report, _ in reports[20:]} == {"BAU"}


def test_the_null_of_attention_comes_back_and_files_from_before_it_are_read() -> None:
    content = calibrated()
    scales, baseline = kept.load(content, "id")
    assert scales.cka_null is None
    white = dataclasses.replace(scales, cka_null=0.125)
    assert kept.load(kept.dump("id", white, baseline), "id") == (white, baseline)
    before = json.loads(content)
    del before["scales"]["cka_null"]
    assert kept.load(json.dumps(before).encode(), "id") == (scales, baseline)


def test_another_group_or_a_damaged_file_is_refused() -> None:
    content = calibrated()
    with pytest.raises(ValueError, match="other replicas"):
        kept.load(content, "another")
    document = json.loads(content)
    for path in (("scales",), ("baseline", "tail"), ("baseline", "ellipsoid", "mean"), ("scales", "ttft")):
        broken = json.loads(content)
        place = broken
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = [[1.0, "x"]]
        with pytest.raises(ValueError, match="damaged"):
            kept.load(json.dumps(broken).encode(), "id")
    with pytest.raises(ValueError, match="format"):
        kept.load(json.dumps({**document, "format": "other"}).encode(), "id")
    for junk in (b"", b"{", b"[]", b"x" * (kept.MAX_BYTES + 1)):
        with pytest.raises(ValueError, match=r"damaged|more than"):
            kept.load(junk, "id")


def test_identity_is_everything_that_calibration_depends_on() -> None:
    config = toml_file.parse(EXAMPLE, AiConfig)
    base = kept.identity(config, CANARIES)
    others = {
        kept.identity(config, (Canary("f", "b?", ("a, then?",), "x"),)),
        kept.identity(config.model_copy(update={"replica": config.replica[::-1]}), CANARIES),
        kept.identity(
            config.model_copy(update={"pace": config.pace.model_copy(update={"temperature": 1.0})}), CANARIES
        ),
        kept.identity(config.model_copy(update={"profile": "grey"}), CANARIES),
    }
    assert len(others) == 4
    assert base not in others
    inside = toml_file.parse(EXAMPLE_WHITEBOX, AiConfig)
    assert inside.whitebox is not None
    first, second = inside.whitebox.replica
    changed = [
        {"layers": "late"},
        {"points": "embeddings"},
        {"tokens": 64},
        {"replica": (first, second.model_copy(update={"revision": "v2"}))},
        {"replica": (first, second.model_copy(update={"dtype": "float32"}))},
    ]
    groups = [inside, *(inside.model_copy(update={"whitebox": inside.whitebox.model_copy(update=x)}) for x in changed)]
    assert len({kept.identity(one, CANARIES) for one in groups} | others | {base}) == 11
    slower = config.pace.model_copy(update={"period_s": 60.0})
    assert kept.identity(config.model_copy(update={"pace": slower}), CANARIES) == base
