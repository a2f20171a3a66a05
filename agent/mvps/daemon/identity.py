# SPDX-License-Identifier: Apache-2.0
"""Who this host is: its key, the operator it trusts, and the epochs it knows from the operator's manifests."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from mvps.daemon import log
from mvps.trust.epochs import Epochs
from mvps.trust.keys import Kind, PublicKey, SecretKey, load_keys
from mvps.trust.limits import MAX_MANIFESTS
from mvps.trust.manifest import ManifestError, open_manifest
from mvps.trust.manifest_folder import FolderError, ManifestFolder

_log = log.logger("identity")

# Below agent.state_dir: manifests that came from the broker.
RECEIVED: Final = "manifests"


class TrustError(Exception):
    """This host cannot seal. The message says what to do."""


class Identity:
    """Who this host is and which epochs it knows: loaded at start, read again on reload.

    source: of the host's key, as configured. operator: whose manifests count.
    installed: directory the operator fills; received: directory for those that the broker passes on.
    Raises KeySourceError, and TrustError when there is no manifest at all.
    """

    def __init__(self, source: str, operator: PublicKey, installed: Path, received: Path, vantage_id: str) -> None:
        self._source = source
        self._operator = operator
        keys = load_keys(source, Kind.HOST)
        self.key: SecretKey = keys[0]
        self.epochs = Epochs.of_agent(keys, vantage_id)
        self._installed = ManifestFolder(installed, operator)
        self._received = ManifestFolder(received, operator)
        # Why a manifest was refused, the newest last; "" when none was.
        self.manifest_error = ""
        self._scan()
        if not self.epochs.manifests:
            raise TrustError(
                self.manifest_error
                or f"no manifest of the operator in {installed}: copy the signed *.manifest there, as the broker has it"
            )

    def refresh(self) -> None:
        """Read key and manifests again. KeySourceError if the key is unusable now; the old one stays then."""
        keys = load_keys(self._source, Kind.HOST)
        self.epochs.hold(keys)
        self.key = keys[0]
        self._scan()

    def receive(self, manifests: Sequence[bytes]) -> None:
        """Manifests that a broker passed on; the operator's signature decides. It sends no more than there may be."""
        for signed in manifests[:MAX_MANIFESTS]:
            try:
                manifest = open_manifest(signed, self._operator)
                if self.epochs.add(manifest):
                    self._received.path.mkdir(mode=0o750, exist_ok=True)
                    self._received.keep(manifest, signed)
                    log.event(_log, logging.INFO, "manifest", epoch=manifest.epoch_id, digest=manifest.digest.hex())
            except (ManifestError, OSError) as error:
                self._refused(f"from the broker: {error}")

    def _scan(self) -> None:
        folders = [self._installed, *([self._received] if self._received.path.is_dir() else [])]
        for folder in folders:
            try:
                opened = folder.scan()
            except FolderError as error:
                self._refused(str(error))
                continue
            for manifest, _ in opened:
                try:
                    self.epochs.add(manifest)
                except ManifestError as error:
                    self._refused(f"{folder.path}: {error}")
            for name, reason in folder.refused.items():
                self._refused(f"{folder.path / name}: {reason}")

    def _refused(self, reason: str) -> None:
        if reason != self.manifest_error:
            self.manifest_error = reason
            log.event(_log, logging.ERROR, "manifest_refused", reason=reason)
