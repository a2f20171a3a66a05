# SPDX-License-Identifier: Apache-2.0
"""The verifier's work on this kernel is on record, and a program that takes much more of it is found."""

from __future__ import annotations

import json
import platform

import pytest
from tests.kernel.instructions import RECORD, complaints, counted, series


@pytest.mark.kernel
def test_no_program_takes_much_more_than_it_did() -> None:
    counts = counted()
    assert len(counts) >= 20
    # A count of 0 would be a kernel before 5.16, which does not tell.
    assert min(counts.values()) > 0
    assert complaints(platform.release(), counts, json.loads(RECORD.read_text())) == []


def test_growth_and_what_is_not_on_record_are_complained_of() -> None:
    record = {"6.1": {"a/b": 1000}, "6.18": {"a/b": 2000}}
    assert complaints("6.1.0-41-amd64", {"a/b": 1300}, record) == []
    assert len(complaints("6.1.0-41-amd64", {"a/b": 1400}, record)) == 1
    assert complaints("6.18.1", {"a/b": 1400}, record) == []
    # Another series: as much as the worst one known.
    assert complaints("7.2.0", {"a/b": 2400}, record) == []
    assert len(complaints("7.2.0", {"a/b": 3000}, record)) == 1
    assert len(complaints("6.1.0", {"a/new": 10}, record)) == 1
    assert series("6.18.44-x") == "6.18"


def test_every_kernel_on_record_has_every_program() -> None:
    record = json.loads(RECORD.read_text())
    assert record
    assert len({frozenset(programs) for programs in record.values()}) == 1
