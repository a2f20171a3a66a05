# SPDX-License-Identifier: Apache-2.0
"""The benchmark's parties do what they are timed for; how long they take is the benchmark's own business."""

from __future__ import annotations

import argparse

import pytest

pytestmark = pytest.mark.kernel


def test_every_party_ends_with_its_verdict() -> None:
    from bench import xdp
    from bench.harness import WORK

    WORK.mkdir(exist_ok=True)
    result = xdp.run(argparse.Namespace(rounds=1, prefixes=100, full=False))
    assert set(result.details["bars"]) == set(result.details["ratios"])
    assert min(one["median"] for one in result.details["ns"].values()) > 0
