# SPDX-License-Identifier: Apache-2.0
"""Cells on the running kernel: what a load did is what was counted, no more and no less."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mvps.coherence.observation import HIST_BINS
from mvps.probes.libbpf import BpfError
from mvps.vantages import cells as cells_module
from mvps.vantages.cells import Cells, object_path

pytestmark = pytest.mark.kernel


@pytest.fixture
def block_file(disk_path: Path) -> Iterator[int]:
    path = disk_path / "data"
    path.write_bytes(os.urandom(1 << 20))
    os.sync()
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError as error:
        pytest.skip(f"{disk_path} does not support direct I/O: {error}")
    yield fd
    os.close(fd)


def read_direct(fd: int, times: int) -> None:
    block = mmap.mmap(-1, 4096)
    for n in range(times):
        os.preadv(fd, [block], (n * 4096) % (1 << 20))


def test_every_direct_read_is_one_event(block_file: int) -> None:
    cells = Cells("blk")
    try:
        cells.read()
        read_direct(block_file, 500)
        delta = cells.read()
    finally:
        cells.close()
    # Other writers exist on a real host: at least ours, and not many more.
    assert 500 <= delta.counters["completed"] <= 700
    assert delta.histogram.shape == (HIST_BINS,)
    assert delta.histogram.sum() == delta.counters["completed"] - delta.counters["untimed"]
    assert delta.counters["latency_ns"] > 0
    assert sum(events for events, _ in delta.tables["objects"].sums().values()) >= 500


def test_a_second_read_counts_only_what_is_new(block_file: int) -> None:
    cells = Cells("blk")
    try:
        read_direct(block_file, 200)
        cells.read()
        assert cells.read().counters["completed"] < 150
    finally:
        cells.close()


def test_first_over_is_stamped_once_per_tick_and_only_over_the_threshold(block_file: int) -> None:
    cells = Cells("blk")
    try:
        cells.read()
        before = time.monotonic_ns()
        read_direct(block_file, 20)
        assert cells.read().first_over_ns == 0  # no threshold set: nothing is over
        cells.set_threshold(0)
        before = time.monotonic_ns()
        read_direct(block_file, 20)
        stamp = cells.read().first_over_ns
        assert before <= stamp <= time.monotonic_ns()
    finally:
        cells.close()


def test_a_full_object_table_is_counted_and_idle_slots_are_reused(
    block_file: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = Cells("blk")
    monkeypatch.setattr(cells_module, "_IDLE_TICKS", 1)
    at, count = cells._slots["objects"]
    try:
        table = cells._words[:, at : at + 3 * count].reshape(-1, count, 3)
        table[:, :, 0] = 0xDEAD  # every slot taken by a workload that is long gone
        cells.read()
        read_direct(block_file, 10)
        cells.read()
        assert cells.losses()["blk.objects_full"] >= 10
        read_direct(block_file, 10)
        cells.read()
        read_direct(block_file, 10)
        lost = cells.losses()["blk.objects_full"]
        assert cells.read().tables["objects"].sums()
        assert cells.losses()["blk.objects_full"] <= lost + 10
        del table
    finally:
        cells.close()


def test_an_unbuilt_object_says_how_to_build_it() -> None:
    with pytest.raises(BpfError, match="build_hook"):
        object_path("nonsense")


def test_recursion_misses_are_read_from_the_kernel() -> None:
    cells = Cells("sched")
    try:
        cells.refresh_misses()
        assert cells.losses()["sched.recursion_missed"] >= 0
    finally:
        cells.close()
