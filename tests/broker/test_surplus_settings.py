# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError
from tests.surplus.health_sample import policy
from wire_samples import settings

from mvps.broker.surplus_settings import MAX_POLICIES, SurplusSettings, read_policies
from mvps.surplus.packets import render

TOML = """
schema = "policy.v1"
tenant = "gold"
tenants = ["acme", "globex"]
version = 4
dry_run = false

[caps]
qps = 30

[routing]
providers = ["P1", "P2", "P3"]
max_provider_share = 0.5

[exploration]
min_SSE = 0.5

[privacy]

[rollout]
stage = "canary"
"""


def test_policies_are_json_and_toml_of_tenants_and_classes(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(TOML)
    (tmp_path / "b.json").write_bytes(render(policy(tenant="initech")))
    (tmp_path / "README").write_text("not a policy")
    found = read_policies(tmp_path)
    assert found.refused == []
    assert {name: one.tenant for name, one in found.by_tenant.items()} == {
        "acme": "gold", "globex": "gold", "initech": "initech"
    }  # fmt: skip
    assert found.by_tenant["acme"].caps.qps == 30.0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (TOML + "x = 1\n", "rollout.x: Extra inputs"),
        ("= 1", "no TOML"),
        ("at = 2026-01-01", "no TOML of numbers and texts"),
        (TOML.replace("dry_run = false", "dry_run = true"), "dry run stays in shadow"),
        (TOML.replace("max_provider_share = 0.5", "max_provider_share = 0.3"), "are not 1"),
        (TOML + "#" * 9000, "at most"),
    ],
)
def test_a_file_that_cannot_be_used_says_why_and_what_it_said_before_stays(
    tmp_path: Path, text: str, words: str
) -> None:
    path = tmp_path / "a.toml"
    path.write_text(text)
    alone = read_policies(tmp_path)
    assert alone.by_file == {}
    assert words in alone.refused[0]
    path.write_text(TOML)
    before = read_policies(tmp_path)
    path.write_text(text)
    after = read_policies(tmp_path, before)
    assert after.by_file == before.by_file
    assert "stays in use" in after.refused[0]
    path.unlink()
    assert read_policies(tmp_path, after).by_file == {}


def test_a_tenant_has_one_policy_the_first_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(TOML)
    (tmp_path / "b.json").write_bytes(render(policy(tenant="acme")))
    found = read_policies(tmp_path)
    assert found.by_tenant["acme"].version == 4
    assert found.refused == ["b.json: acme has a policy already, in a.toml"]


def test_a_folder_that_goes_away_keeps_what_it_said(tmp_path: Path) -> None:
    folder = tmp_path / "policies"
    folder.mkdir()
    (folder / "a.toml").write_text(TOML)
    before = read_policies(folder)
    (folder / "a.toml").unlink()
    folder.rmdir()
    after = read_policies(folder, before)
    assert after.by_file == before.by_file
    assert "cannot be read" in after.refused[0]


def test_there_are_only_so_many(tmp_path: Path) -> None:
    for number in range(MAX_POLICIES + 1):
        (tmp_path / f"{number:04}.json").write_bytes(render(policy(tenant=f"t{number}")))
    found = read_policies(tmp_path)
    assert len(found.by_file) == MAX_POLICIES
    assert str(MAX_POLICIES + 1) in found.refused[0]


def test_the_settings_want_a_history(tmp_path: Path) -> None:
    assert SurplusSettings.model_validate({}).policies is None
    chosen, _ = settings(tmp_path, surplus={"policies": str(tmp_path)})
    assert chosen.surplus is not None
    with pytest.raises(ValidationError, match="audit trail"):
        settings(tmp_path, surplus={}, history="none")
    with pytest.raises(ValidationError, match="Extra inputs"):
        settings(tmp_path, surplus={"policy": "x"})
    assert json.loads(render(policy()))["schema"] == "policy.v1"
