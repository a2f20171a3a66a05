# SPDX-License-Identifier: Apache-2.0
"""The short form of the fuzzer over every reader, and readers with a defect that it has to find."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
from bench import fuzz, harness
from bench.fuzzing.target import ViolationError
from hypothesis import given, settings
from hypothesis import strategies as st

from mvps.trust import keys

needs_atheris = pytest.mark.skipif(find_spec("atheris") is None, reason="atheris is not installed: pip install atheris")


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Iterator[harness.Result]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fuzz, "_FOUND", tmp_path_factory.mktemp("found"))
        yield fuzz.run(argparse.Namespace(full=False, runs=0, target=None, seed=1, jobs=2, replay=None))


@needs_atheris
@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_nothing_is_found(result: harness.Result, target: str) -> None:
    campaign = result.details["targets"][target]
    assert campaign["findings"] == []
    assert campaign["executions"] >= round(fuzz.SHORT * fuzz.TARGETS[target].share)
    assert campaign["taken_in"] > 1, "the fuzzer was refused every time: it tests the first check and nothing else"
    assert campaign["corpus"] > campaign["seeds"], "no input was worth keeping: nothing is instrumented"
    assert campaign["slowest_s"] <= fuzz.SLOWEST_S
    assert campaign["growth_mib"] <= fuzz.GROWTH_MIB


@needs_atheris
def test_a_seal_that_holds_too_often_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    campaign = fuzz.attack("stranger", 4000, 1, tmp_path, plant="seal")
    (finding,) = [one for one in campaign.findings if "not made by the honest sealer" in one["text"]]
    kept = tmp_path / finding["input"]
    fuzz.replay(kept)  # a whole reader refuses it
    monkeypatch.setattr(keys, "_holds", lambda *_: True)
    with pytest.raises(ViolationError, match="not made by the honest sealer"):
        fuzz.replay(kept)


@needs_atheris
def test_an_exception_that_is_not_declared_is_found(tmp_path: Path) -> None:
    campaign = fuzz.attack("notes", 4000, 1, tmp_path, plant="parser")
    assert "Error" in {one["kind"] for one in campaign.findings}  # binascii.Error
    assert fuzz.attack("notes", 4000, 1, tmp_path).findings == []


@needs_atheris
def test_memory_that_grows_is_found(tmp_path: Path) -> None:
    assert fuzz.attack("notes", 4000, 1, tmp_path, plant="leak").growth_mib > fuzz.GROWTH_MIB


def test_a_target_that_dies_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "_CHILD", "import os; os.kill(os.getpid(), 9)")
    (finding,) = fuzz.attack("notes", 100, 1, tmp_path).findings
    assert finding["where"] == "status -9"


@cache
def target_of(name: str) -> fuzz.Target:
    return fuzz.TARGETS[name]()


@pytest.mark.parametrize("name", fuzz.TARGETS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_octets_are_read_or_refused(name: str, data: st.DataObject) -> None:
    target = target_of(name)
    seed = data.draw(st.sampled_from([b"", *target.seeds]))
    at, end = sorted((data.draw(st.integers(0, len(seed))), data.draw(st.integers(0, len(seed)))))
    target.run(seed[:at] + data.draw(st.binary(max_size=300)) + seed[min(end, at + 8) :])


@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_seeds_are_taken_in(name: str) -> None:
    target = fuzz.TARGETS[name]()
    target.run(target.seeds[0])
    assert target.taken_in
