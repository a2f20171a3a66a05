# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mvps.broker import service_windows
from mvps.broker.service_settings import ServiceSettings
from mvps.broker.service_windows import MAX_BYTES, Kept, ServiceWindowsError, standing_on
from mvps.coupling.routing import CALIBRATION_WINDOWS, RoutingBaseline
from mvps.coupling.service import Learned

AXES = ("C_1^net", "C_2^net", "C_1^AI")


def window(seed: int = 0, ticks: int = 60) -> Learned:
    rows = np.random.default_rng(seed).uniform(0.5, 1.0, (ticks, len(AXES)))
    return Learned(AXES, np.arange(ticks) + 0.25, rows)


def requests(level: float = 0.75) -> RoutingBaseline:
    counts = np.random.default_rng(3).uniform(1.0, 9.0, (CALIBRATION_WINDOWS, 2, 3))
    return RoutingBaseline(("a", "b"), counts, level, 3.5)


def test_what_is_kept_is_read_back_to_the_last_bit(tmp_path: Path) -> None:
    path = tmp_path / "broker.db.services"
    assert service_windows.load(path) == {}
    service_windows.save(
        path, {"chat": Kept("of", window(), {}), "search": Kept("x", window(1, 90), {"gpu-1/ai": requests()})}
    )
    again = service_windows.load(path)
    assert set(again) == {"chat", "search"}
    assert again["chat"].of == "of"
    assert again["search"].learned is not None
    for one, other in zip(again["search"].learned, window(1, 90), strict=True):
        assert np.array_equal(one, other)
    for one, other in zip(again["search"].routing["gpu-1/ai"], requests(), strict=True):
        assert np.array_equal(one, other)
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda one: one.update(rows=one["rows"][:-1]), "as long as"),
        (lambda one: one["rows"].__setitem__(0, [0.5]), "no windows"),
        (lambda one: one["rows"][3].__setitem__(0, 1.5), r"\[0, 1\]"),
        (lambda one: one["rows"][3].__setitem__(0, None), r"\[0, 1\]"),
        (lambda one: one["times"].__setitem__(5, 0.0), "do not rise"),
        (lambda one: one.update(axes=["one"]), "too few"),
        (lambda one: one.update(times=one["times"][:59], rows=one["rows"][:59]), "too few"),
        (lambda one: one.pop("of"), "'of'"),
    ],
)
def test_a_damaged_window_is_refused(tmp_path: Path, change: Any, said: str) -> None:
    path = tmp_path / "broker.db.services"
    service_windows.save(path, {"chat": Kept("of", window(), {})})
    body = json.loads(path.read_bytes())
    change(body["services"]["chat"])
    path.write_text(json.dumps(body))
    with pytest.raises(ServiceWindowsError, match=said) as raised:
        service_windows.load(path)
    assert "calibrated anew" in str(raised.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda one: one["counts"].pop(), "other replicas than counts"),
        (lambda one: one["replicas"].append("c"), "other replicas than counts"),
        (lambda one: one["counts"][0][0].__setitem__(0, 0.0), "every replica had some"),
        (lambda one: one["counts"][0][0].__setitem__(1, -1.0), "not negative"),
        (lambda one: one.update(limit=None), "no windows"),
        (lambda one: one.pop("level"), "'level'"),
    ],
)
def test_a_damaged_routing_is_refused(tmp_path: Path, change: Any, said: str) -> None:
    path = tmp_path / "broker.db.services"
    service_windows.save(path, {"chat": Kept("of", None, {"gpu-1/ai": requests()})})
    body = json.loads(path.read_bytes())
    change(body["services"]["chat"]["routing"]["gpu-1/ai"])
    path.write_text(json.dumps(body))
    with pytest.raises(ServiceWindowsError, match=said):
        service_windows.load(path)


def test_requests_alone_are_kept_also_of_answers_that_have_no_level(tmp_path: Path) -> None:
    path = tmp_path / "broker.db.services"
    service_windows.save(path, {"chat": Kept("of", None, {"gpu-1/ai": requests(math.nan)})})
    kept = service_windows.load(path)["chat"]
    assert kept.learned is None
    assert math.isnan(kept.routing["gpu-1/ai"].level)


@pytest.mark.parametrize("text", ["", "{broken", "[]", '{"format": 2}', '{"format": 1, "services": 3}', "[" * 100_000])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broker.db.services"
    path.write_text(text)
    with pytest.raises(ServiceWindowsError, match="no windows of services"):
        service_windows.load(path)


def test_a_file_that_is_too_large_is_not_parsed(tmp_path: Path) -> None:
    path = tmp_path / "broker.db.services"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(ServiceWindowsError, match="more than"):
        service_windows.load(path)


def test_a_disk_that_refuses_is_said(tmp_path: Path) -> None:
    path = tmp_path / "broker.db.services"
    path.mkdir()
    with pytest.raises(ServiceWindowsError, match="cannot be read"):
        service_windows.load(path)
    with pytest.raises(ServiceWindowsError, match="cannot be written"):
        service_windows.save(path, {})


def test_a_baseline_belongs_to_sources_tick_and_axes_and_not_to_limits() -> None:
    given = {"name": "chat", "network": ["lb-1"], "ai": ["gpu-1/ai"]}
    of = standing_on(ServiceSettings.model_validate(given))
    for same in ({"cutoffs": "chi2"}, {"calibration_ticks": 60}, {"name": "renamed"}, {"keep_s": 9}):
        assert standing_on(ServiceSettings.model_validate(given | same)) == of
    others = ({"network": ["lb-2"]}, {"network": ["lb-1/kernel"]}, {"ai": ["gpu-2/ai"]}, {"tick_s": 2}, {"c4": True})
    for other in others:
        assert standing_on(ServiceSettings.model_validate(given | other)) != of
