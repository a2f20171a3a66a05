# SPDX-License-Identifier: Apache-2.0
"""A whole site in one directory, made on the spot: operator, broker and host keys and a signed first manifest.

For ``mvps run``, benchmarks and tests, where nothing has to outlive the directory. The trust path is the real one.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mvps.trust.keys import Kind, SecretKey, generate_key
from mvps.trust.manifest import Broker, Manifest, Profile, Vantage, sign_manifest
from mvps.trust.manifest_folder import ManifestFolder


@dataclass(frozen=True, slots=True)
class Site:
    """Paths of what was made, and the keys.

    manifests: directory that an agent or broker is configured with; operator: public key as it is configured.
    """

    directory: Path
    manifests: Path
    operator: str
    operator_key: SecretKey
    broker_key: Path
    host_keys: dict[str, Path]
    manifest: Manifest

    def sign(self, manifest: Manifest) -> bytes:
        """Sign another manifest and put it where broker and agents look."""
        signed = sign_manifest(manifest, self.operator_key)
        ManifestFolder(self.manifests, self.operator_key.public).keep(manifest, signed)
        return signed


def make_site(
    directory: Path,
    vantage_ids: Iterable[str],
    *,
    tick_ms: int = 1000,
    rate_factor: int = 4,
    profile: Profile = Profile.CWT,
    from_s: int | None = None,
    valid_s: int = 86400,
) -> Site:
    """Make a site of these vantages in an existing directory that holds none yet; ``from_s`` None means now."""
    operator = generate_key(directory / "operator.key", Kind.OPERATOR)
    broker = generate_key(directory / "broker.key", Kind.BROKER)
    hosts = {vantage_id: directory / f"{vantage_id}.key" for vantage_id in vantage_ids}
    vantages = tuple(Vantage(name, generate_key(path, Kind.HOST).public) for name, path in hosts.items())
    # The first snapshot may be sealed within this second.
    begin = int(time.time()) if from_s is None else from_s
    manifest = Manifest(
        operator="solo",
        epoch_id=1,
        previous=None,
        from_s=begin,
        until_s=begin + valid_s,
        retire_s=begin,
        broker=Broker("broker", broker.public),
        tick_ms=tick_ms,
        rate_factor=rate_factor,
        profile=profile,
        vantages=vantages,
    )
    manifests = directory / "manifests"
    manifests.mkdir(mode=0o700)
    site = Site(directory, manifests, operator.public.text, operator, directory / "broker.key", hosts, manifest)
    site.sign(manifest)
    return site
