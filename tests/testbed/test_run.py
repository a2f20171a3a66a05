# SPDX-License-Identifier: Apache-2.0
"""Both arms for real, at the same time, as short as the calibrations allow."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from mvps.testbed import bed
from mvps.testbed.answers import Arm
from mvps.testbed.bed import PREFIX, REPLICAS, BedError, Size
from mvps.testbed.plan import Fault, Plan, Step
from mvps.testbed.run import StoppedError, run
from mvps.testbed.score import score

pytestmark = pytest.mark.net

SHORT = Size(tick_s=0.15, round_s=0.1, calibration=60)
CASCADE = Plan((Step(Fault.CASCADE, 2.0, 6.0, ("r1", "r2"), 0, 0),), (), 6.5)


def left() -> list[str]:
    shown = subprocess.run(["ip", "netns", "list"], check=True, capture_output=True, text=True).stdout
    return [line for line in shown.splitlines() if line.startswith(f"{PREFIX}-{os.getpid()}-")]


@pytest.fixture(scope="module")
def records() -> Iterator[dict[Arm, dict[str, Any]]]:
    stop = threading.Event()
    arms = (Arm.COUPLED, Arm.PLACEBO)
    with ThreadPoolExecutor(2) as pool:
        try:
            runs = {arm: pool.submit(run, arm, SHORT, CASCADE, 1, print, stop) for arm in arms}
            yield {arm: one.result() for arm, one in runs.items()}
        finally:
            stop.set()


def test_withdrawn_hops_thrash_the_caches_of_both_arms_and_the_answers_of_one(
    records: dict[Arm, dict[str, Any]],
) -> None:
    falls = {}
    for arm, record in records.items():
        begin, end = (record["injected"][0][key] for key in ("begin", "end"))
        c2 = [(row[0], row[5]) for row in record["ticks"] if row[5] is not None]
        before = [value for at, value in c2 if begin - 2.0 <= at < begin]
        during = [value for at, value in c2 if begin + 1.5 <= at < end]
        falls[arm] = sum(before) / len(before) - sum(during) / len(during)
        for name, rows in record["counts"].items():
            inside = [row for row in rows if begin <= row[0] < end]
            cold = inside[-1][2] - inside[0][2]
            # The withdrawn replicas get nobody; those that stay get strangers, whom they do not know.
            assert (cold == 0) == (name in ("r1", "r2")), (arm, name)
    assert falls[Arm.COUPLED] > 0.3
    assert abs(falls[Arm.PLACEBO]) < 0.15


def test_the_network_surface_saw_it_in_both(records: dict[Arm, dict[str, Any]]) -> None:
    for record in records.values():
        begin, end = (record["injected"][0][key] for key in ("begin", "end"))
        c3 = [row[3] for row in record["ticks"] if row[3] is not None and begin + 2.0 <= row[0] < end]
        assert min(c3) < 0.9
        assert record["limits"][0] > 0.0


def test_what_the_broker_decided_live_is_computed_again_from_the_record(records: dict[Arm, dict[str, Any]]) -> None:
    for record in records.values():
        assert score(record)["replay"] < 0.02  # coordinates are rounded to five digits


def test_a_record_is_whole_and_nothing_is_left(records: dict[Arm, dict[str, Any]]) -> None:
    for record in records.values():
        assert record["users"]["answered"] > 1000
        assert set(record["counts"]) == set(record["seated"]) == set(REPLICAS)
        assert set(record["seated"].values()) == {12}
        assert record["snapshots"]["failed"] == 0
        assert set(record["cpu_seconds"]) == {*REPLICAS, "encoder", "users", "broker", "agent", "ai"}
    assert left() == []


def test_a_command_that_fails_ends_the_run_with_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bed, "SERVICE", "no address")
    with pytest.raises(BedError, match=r"no address/32"):
        run(Arm.PLACEBO, SHORT, CASCADE, 1, print, threading.Event())
    assert left() == []


def test_a_run_that_is_stopped_takes_all_down() -> None:
    stop = threading.Event()
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        stop.set()

    with pytest.raises(StoppedError):
        run(Arm.PLACEBO, SHORT, CASCADE, 1, say, stop)
    assert said
    assert left() == []
