# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mvps.coherence.observation import HIST_BINS, Observation, Scale
from mvps.vantages.recording import Mark, Recorder, RecordingError, Tick, read


def observation() -> Observation:
    histogram = np.zeros(HIST_BINS)
    histogram[3], histogram[100] = 5, 0.5
    return Observation(
        "blk",
        Scale("ns", 1024.0, 50e3),
        histogram,
        objects={2**63 + 1: 3.0},
        checked=2.0,
        violated=1.0,
        fingerprints={7: {1: 2.0}},
        degraded="blind",
        facts={"mean_ms": 1.25, "errors": 0.0},
    )


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl.gz"
    with Recorder(path, 0.5, {"background": 1}) as recorder:
        recorder.tick(10, 5_000_000_000, {"blk": observation()})
        recorder.mark(5_100_000_000, {"fault": "blk", "dose": 1.0})
        recorder.tick(11, 5_500_000_000, {"blk": observation()})
    about, first, mark, second = read(path)
    assert about["tick_seconds"] == 0.5  # type: ignore[index]
    assert isinstance(first, Tick)
    assert isinstance(second, Tick)
    assert (first.index, second.index) == (10, 11)
    assert mark == Mark(5_100_000_000, {"fault": "blk", "dose": 1.0})
    got, sent = second.observations["blk"], observation()
    assert np.array_equal(got.histogram, sent.histogram)
    assert (got.objects, got.checked, got.violated) == (sent.objects, 2.0, 1.0)
    assert (got.fingerprints, got.degraded, got.scale) == (sent.fingerprints, "blind", sent.scale)
    assert got.facts == {"mean_ms": 1.25}


def test_a_cut_off_file_gives_what_is_there_and_then_an_error(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl.gz"
    with Recorder(path, 0.5) as recorder:
        for n in range(200):
            recorder.tick(n, n, {"blk": observation()})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    seen = []
    with pytest.raises(RecordingError, match="breaks off"):
        seen.extend(read(path))  # extend keeps what came before the error
    assert len(seen) > 10


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other"
    path.write_text("hello")
    with pytest.raises(RecordingError):
        list(read(path))
