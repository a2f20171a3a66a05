# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mvps.coherence.baseline import Baseline
from mvps.daemon import baselines
from mvps.daemon.baselines import KEPT, Purpose, Saver
from mvps.daemon.service import Agent

PURPOSE = Purpose("kernel", ("mm", "blk"), 1_000_000_000, {"calibration_ticks": 60, "cgroup": ""})


@pytest.fixture
def baseline(make_agent: Callable[..., Agent], ticks: Any) -> Baseline:
    agent = make_agent()
    for _ in range(60):
        agent.work(ticks.next())
    learned = agent._models["kernel"].baseline
    assert learned is not None
    return learned


def test_a_saved_baseline_comes_back_the_same(baseline: Baseline, tmp_path: Path) -> None:
    baselines.save(tmp_path, PURPOSE, baseline)
    loaded = baselines.load(tmp_path, PURPOSE)
    assert loaded is not None
    assert loaded.baseline_id == baseline.baseline_id
    assert [p.name for p in tmp_path.iterdir()] == [PURPOSE.file_name]
    assert (tmp_path / PURPOSE.file_name).stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "other",
    [
        replace(PURPOSE, vantages=("mm",)),
        replace(PURPOSE, tick_ns=500_000_000),
        replace(PURPOSE, settings={"calibration_ticks": 61, "cgroup": ""}),
        replace(PURPOSE, settings={"calibration_ticks": 60, "cgroup": "/a"}),
        replace(PURPOSE, surface="dataplane"),
    ],
)
def test_a_baseline_is_never_used_for_another_purpose(baseline: Baseline, tmp_path: Path, other: Purpose) -> None:
    baselines.save(tmp_path, PURPOSE, baseline)
    assert baselines.load(tmp_path, other) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 99}', b"\xff"])
def test_a_damaged_baseline_is_left_alone_and_not_used(tmp_path: Path, content: bytes) -> None:
    (tmp_path / PURPOSE.file_name).write_bytes(content)
    assert baselines.load(tmp_path, PURPOSE) is None
    assert (tmp_path / PURPOSE.file_name).read_bytes() == content


def test_only_the_newest_purposes_are_kept(baseline: Baseline, tmp_path: Path) -> None:
    purposes = [replace(PURPOSE, tick_ns=1_000_000_000 + i) for i in range(KEPT + 3)]
    for age, purpose in enumerate(purposes):
        baselines.save(tmp_path, purpose, baseline)
        os.utime(tmp_path / purpose.file_name, (age, age))
    baselines.save(tmp_path, PURPOSE, baseline)
    assert len(list(tmp_path.glob("baseline-kernel-*.json"))) == KEPT
    assert baselines.load(tmp_path, PURPOSE) is not None


def test_the_saver_writes_what_is_pending_before_it_ends(baseline: Baseline, tmp_path: Path) -> None:
    saver = Saver(tmp_path, [PURPOSE])
    saver.put("kernel", baseline)
    saver.close()
    assert baselines.load(tmp_path, PURPOSE) is not None


def test_a_save_that_fails_is_counted(baseline: Baseline, tmp_path: Path) -> None:
    saver = Saver(tmp_path / "gone", [PURPOSE])
    saver.put("kernel", baseline)
    saver.close()
    assert saver.failures == 1
