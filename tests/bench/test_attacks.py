# SPDX-License-Identifier: Apache-2.0
"""The attack suite against a real broker, and against one with a hole in it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench.attacks import Arena, fight, forks

from mvps.trust.epochs import Epochs, Validity
from mvps.trust.manifest import Profile


@pytest.fixture(params=Profile)
def arena(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Arena]:
    made = Arena(tmp_path, request.param)
    yield made
    made.close()


def test_nothing_is_accepted_and_everything_is_counted_under_its_own_reason(arena: Arena) -> None:
    table = fight(arena, random.Random(7), every=1) | forks(arena, 3)
    assert len(table) > 40
    assert {name: row for name, row in table.items() if row["accepted"] or row["own_reason"] != row["sent"]} == {}


def test_a_broker_without_the_epoch_rule_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Epochs, "validity", lambda *_: Validity(0, 2**64 - 1, 2**64 - 1))
    arena = Arena(tmp_path, Profile.CWT)
    try:
        table = fight(arena, random.Random(7), every=1)
    finally:
        arena.close()
    assert {name for name, row in table.items() if row["accepted"]} == {
        "cross-epoch: retired",
        "cross-epoch: before it began",
    }
