# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mvps.broker import fleet_baselines
from mvps.broker.fleet_baselines import MAX_BYTES, FleetBaselinesError, KeptBaselines
from mvps.robust import fleet


def fitted(seed: int, f: int = 2) -> fleet.FleetBaseline:
    rng = np.random.default_rng(seed)
    window = [fleet.bau_statistics(rng.standard_normal((9, 1)), f, turn) for turn in range(120)]
    return fleet.fit_baseline(np.stack(window), f)


@pytest.fixture(scope="module")
def kept() -> KeptBaselines:
    return KeptBaselines(2, {"mm": fitted(1), "blk": fitted(2)})


def test_what_is_kept_is_read_back_and_decides_the_same(kept: KeptBaselines, tmp_path: Path) -> None:
    path = tmp_path / "broker.db.fleet"
    assert fleet_baselines.load(path) is None
    fleet_baselines.save(path, kept)
    again = fleet_baselines.load(path)
    assert again == kept
    assert again is not None
    z = np.random.default_rng(3).standard_normal((9, 1))
    z[4] = 80.0
    nobody = np.zeros(9, dtype=np.intp)
    assert fleet.decide(z, nobody, again.kinds["mm"]) == fleet.decide(z, nobody, kept.kinds["mm"])
    fleet_baselines.save(path, KeptBaselines(1, {}))
    assert fleet_baselines.load(path) == (1, {})
    assert path.stat().st_mode & 0o777 == 0o600


def damaged(kept: KeptBaselines, folder: Path, change: Any) -> Path:
    path = folder / "broker.db.fleet"
    fleet_baselines.save(path, kept)
    body = json.loads(path.read_bytes())
    change(body)
    path.write_text(json.dumps(body))
    return path


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda body: body.update(format=2), "not format 1"),
        (lambda body: body.pop("f"), "'f'"),
        (lambda body: body.update(f=-1), "f is -1"),
        (lambda body: body.update(f=True), "f is True"),
        (lambda body: body.update(kinds=[]), "no fleet baselines"),
        (lambda body: body["kinds"].update(mm=[]), "two tails for each of three"),
        (lambda body: body["kinds"]["mm"][0].pop(), "two tails for each of three"),
        (lambda body: body["kinds"]["mm"][0][0].pop("scale"), "scale"),
        (lambda body: body["kinds"]["mm"][0][0].update(shape="x"), "'x' is no number"),
        (lambda body: body["kinds"]["mm"][0][0].update(scale=float("nan")), "NaN is no number"),
        (lambda body: body["kinds"]["mm"][0][0].update(knots=[]), "as many p-values as knots"),
        (lambda body: body["kinds"]["mm"][0][0].update(more=1), "more"),
    ],
)
def test_a_file_that_holds_something_else_says_so(kept: KeptBaselines, tmp_path: Path, change: Any, said: str) -> None:
    with pytest.raises(FleetBaselinesError, match=r"holds no fleet baselines.*the fleet is calibrated anew") as error:
        fleet_baselines.load(damaged(kept, tmp_path, change))
    assert said in str(error.value)


def test_every_prefix_of_a_file_is_refused(kept: KeptBaselines, tmp_path: Path) -> None:
    path = tmp_path / "broker.db.fleet"
    fleet_baselines.save(path, kept)
    whole = path.read_bytes()
    for size in [*range(0, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(FleetBaselinesError):
            fleet_baselines.load(path)


def test_a_file_that_is_too_large_is_not_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "broker.db.fleet"
    with path.open("wb") as file:
        file.truncate(1 << 34)  # sparse: what is not read costs nothing
    monkeypatch.setattr(json, "loads", lambda *_, **__: pytest.fail("parsed"))
    tracemalloc.start()
    with pytest.raises(FleetBaselinesError, match="more than 4194304 bytes"):
        fleet_baselines.load(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * MAX_BYTES


def test_what_64_kinds_of_a_large_fleet_take_is_within_the_limit(kept: KeptBaselines, tmp_path: Path) -> None:
    path = tmp_path / "broker.db.fleet"
    fleet_baselines.save(path, KeptBaselines(2, {f"kind-{number}": kept.kinds["mm"] for number in range(64)}))
    assert path.stat().st_size < MAX_BYTES
    assert fleet_baselines.load(path) is not None


def test_a_disk_that_refuses_says_what_follows(kept: KeptBaselines, tmp_path: Path) -> None:
    with pytest.raises(FleetBaselinesError, match=r"cannot be written.*calibrates the fleet anew"):
        fleet_baselines.save(tmp_path / "nowhere" / "broker.db.fleet", kept)
    with pytest.raises(FleetBaselinesError, match="cannot be read"):
        fleet_baselines.load(tmp_path)
