# SPDX-License-Identifier: Apache-2.0
"""Constants of this machine: the real gate, log, broker process and limiter program."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mvps.cost.measure import measure


@pytest.mark.kernel
def test_everything_that_can_be_measured_here_is(tmp_path: Path):
    measured = measure(tmp_path)
    known = measured.constants.known()
    expected = {"hmac", "parse", "grpc", "log", "bundle", "cosign"}
    if os.geteuid() == 0:
        expected.add("xdp")
    assert set(known) == expected
    assert all(value > 0 for value in known.values())
    assert set(known) | set(measured.absent) == {*known, "xdp", "sw2", "cka", "model_pass"}
    # A dropped packet and a snapshot in native code are worlds apart from one that comes alone over gRPC.
    assert known["hmac"] + known["parse"] < known["grpc"]
    if "xdp" in known:
        assert known["xdp"] < known["parse"]
