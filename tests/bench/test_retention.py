# SPDX-License-Identifier: Apache-2.0
"""The short form of the retention benchmark, and that it sees a store that stops."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from bench import retention

from mvps.broker.store import Store


def test_a_small_store_is_filled_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "WORK", tmp_path)
    result = retention.run(argparse.Namespace(mib=4, full=False))
    for found in result.details.values():
        assert found["commits_failed"] == 0
        assert found["removed_early"] > found["accepted"] // 4
        assert found["largest_share_of_bound"] <= 1


def test_a_store_that_stops_when_it_is_full_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "WORK", tmp_path)

    def keeps_all(store: Store, leaves: int) -> bool:
        return False

    monkeypatch.setattr(Store, "_step", keeps_all)
    with pytest.raises(SystemExit, match="cannot grow"):
        retention.run(argparse.Namespace(mib=4, full=False))
