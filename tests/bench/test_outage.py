# SPDX-License-Identifier: Apache-2.0
"""The short form of the outage benchmark, and that it sees what it looks for."""

from __future__ import annotations

import argparse
import json
import os
from itertools import count
from pathlib import Path

import pytest
from bench import harness, outage

from mvps.trust.evidence_log import leaf_of
from mvps.trust.seal import HmacKey, Lane, Purpose, Sealer

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk")


def test_one_blow_of_each_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage, "WORK", tmp_path)
    result = outage.run(argparse.Namespace(rounds=5, seconds=1.0, seed=3, full=False))
    assert isinstance(result, harness.Result)
    assert result.holds, result.details
    assert set(result.details["blows"].values()) == {1}
    assert result.details["stored_late"] >= 1000
    assert result.details["in_hand_over"] <= result.details["produced"] // 100


def test_what_is_wrong_is_found(tmp_path: Path) -> None:
    """Ticks 1 to 7 were made: 3 was lost, 5 stored twice, 6 lost before it was on disk, 9 came from nowhere."""

    class Written:
        def lines(self) -> list[list[str]]:
            lines = [["use", str(tick), "0", "."] for tick in range(1, 8)]
            lines += [["kept", str(tick), "0", "."] for tick in (1, 2, 3, 4, 5, 7)]
            states = [{"balanced": True, "dropped": 0}, {"balanced": False, "dropped": 2}]
            return lines + [["state", json.dumps(state).encode().hex(), "."] for state in states]

    path = tmp_path / "broker.db"
    log = tmp_path / "broker.db.evidence"
    log.mkdir()
    numbers = count(1)
    sealer = Sealer(HmacKey(bytes(range(32)), bytes(8)), "h", Purpose.SNAPSHOT, lambda lane: next(numbers), epoch_id=1)
    live, late = Lane.LIVE, Lane.BACKFILL
    rows = [(1, live), (2, live), (4, late), (5, live), (5, late), (7, live), (9, live)]
    leaves = [leaf_of(sealer.seal(b"body", tick, lane)) for tick, lane in rows]
    (log / f"leaves-{0:020}").write_bytes(b"".join(leaves[:4]))
    # The last one is being written at this moment.
    (log / f"leaves-{4:020}").write_bytes(b"".join(leaves[4:]) + leaves[0][:30])
    found = outage.judge(Written(), path)  # type: ignore[arg-type]
    assert {key: found[key] for key in ("lost", "stored_twice", "stored_and_never_made", "in_hand_over")} == {
        "lost": 1,
        "stored_twice": 1,
        "stored_and_never_made": 1,
        "in_hand_over": 1,
    }
    assert (found["accounts_off"], found["dropped"], found["stored_late"]) == (1, 2, 2)
