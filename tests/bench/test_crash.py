# SPDX-License-Identifier: Apache-2.0
"""The short form of the crash benchmark, and that it sees what it looks for."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from bench import crash, harness


def test_a_few_kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crash, "WORK", tmp_path)
    result = crash.run(argparse.Namespace(kills=4, seed=3, full=False))
    assert isinstance(result, harness.Result)
    assert result.holds, result.details
    assert result.details["acknowledged"] > 4


def test_a_lost_snapshot_and_a_counter_used_twice_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crash, "WORK", tmp_path)

    def doctored(path: Path) -> tuple[list[tuple[int, int]], set[tuple[int, int]]]:
        used, acknowledged = crash_read(path)
        return [*used, used[0]], acknowledged | {(1, 7)}

    crash_read = crash.read_record
    monkeypatch.setattr(crash, "read_record", doctored)
    result = crash.run(argparse.Namespace(kills=2, seed=3, full=False))
    assert not result.holds
    assert (result.details["acknowledged_and_lost"], result.details["counters_used_twice"]) == (1, 1)
