# SPDX-License-Identifier: Apache-2.0
"""What can be set about the tenants a broker watches, and the files of their policies.

[surplus]
policies = "/etc/mvps/policies"      # NAME.toml or NAME.json, one policy.v1 each: mvps surplus policy FILE checks one
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from mvps.surplus.governance import policy_from
from mvps.surplus.packets import MAX_LINE_BYTES, Policy

MAX_POLICIES: Final = 256
_SUFFIXES: Final = (".json", ".toml")


class SurplusSettings(BaseModel):
    """Tenants; unknown names are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    policies: Path | None = Field(
        None,
        description="directory of policies, *.toml and *.json, read every ten seconds; none: tenants are shown only",
    )
    wait_s: float = Field(
        10.0, ge=1, le=55, description="how long after a minute's end it is decided; what comes later is only kept"
    )
    minutes_retention_days: float = Field(60.0, gt=0, le=3660, description="how long tenants' minutes are kept")
    audit_retention_days: float = Field(730.0, gt=0, le=3660, description="how long the audit trail is kept")


class Policies(NamedTuple):
    """What a directory holds. by_file: file name -> policy. refused: what does not count, and why."""

    by_file: dict[str, Policy]
    refused: list[str]

    @property
    def by_tenant(self) -> dict[str, Policy]:
        """Tenant -> its policy."""
        return {tenant: policy for policy in self.by_file.values() for tenant in policy.members}


def read_policies(folder: Path, before: Policies | None = None) -> Policies:
    """All policies of a directory. A file that cannot be used leaves in use what it said ``before``."""
    found: dict[str, Policy] = {}
    refused: list[str] = []
    taken: dict[str, str] = {}
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix in _SUFFIXES)
    except OSError as error:
        return Policies(dict(before.by_file) if before else {}, [f"{folder} cannot be read: {error.strerror}"])
    if len(paths) > MAX_POLICIES:
        refused.append(f"{folder} has {len(paths)} policies, of which the first {MAX_POLICIES} by name are read")
    for path in paths[:MAX_POLICIES]:
        try:
            with path.open("rb") as file:
                # One byte more: what is longer is refused there.
                policy = policy_from(file.read(MAX_LINE_BYTES + 1), toml=path.suffix == ".toml")
        except (OSError, ValueError) as error:
            kept = before.by_file.get(path.name) if before else None
            refused.append(f"{path.name}: {error}" + ("; what it said before stays in use" if kept else ""))
            if kept is None:
                continue
            policy = kept
        if twice := [tenant for tenant in policy.members if tenant in taken]:
            refused.append(f"{path.name}: {twice[0]} has a policy already, in {taken[twice[0]]}")
            continue
        taken |= dict.fromkeys(policy.members, path.name)
        found[path.name] = policy
    return Policies(found, refused)
