# SPDX-License-Identifier: Apache-2.0
"""Signed manifests as files of a directory: what an operator drops there takes effect without a restart.

Every regular file ``*.manifest`` is read once per version of it (inode, size and time of change). One that the
operator's key does not vouch for is refused and shown, and never disturbs those in force.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final, NamedTuple

from mvps.trust.durable import replace
from mvps.trust.keys import PublicKey
from mvps.trust.limits import MAX_MANIFEST_BYTES, MAX_MANIFESTS
from mvps.trust.manifest import Manifest, ManifestError, open_manifest

SUFFIX: Final = ".manifest"
_MAX_FILES: Final = 1024


class Opened(NamedTuple):
    """A manifest the operator vouches for, and the signed bytes it came in."""

    manifest: Manifest
    signed: bytes


class FolderError(Exception):
    """The directory itself cannot be used. The message says what to do."""


class ManifestFolder:
    """The manifests of one directory.

    operator: the key they must be signed with.
    ``refused``: file name -> why it does not count.
    """

    def __init__(self, path: Path, operator: PublicKey) -> None:
        self.path = path
        self._operator = operator
        self._seen: dict[str, tuple[int, int, int]] = {}
        self.refused: dict[str, str] = {}

    def scan(self) -> list[Opened]:
        """Manifests that are new or changed since the last scan, in order of their epochs.

        Raises FolderError when the directory cannot be read.
        """
        try:
            entries = sorted(entry.name for entry in os.scandir(self.path) if entry.name.endswith(SUFFIX))
        except OSError as error:
            raise FolderError(
                f"cannot read the manifests in {self.path}: {error.strerror}; put the operator's signed "
                f"*{SUFFIX} files there"
            ) from None
        found: list[Opened] = []
        for gone in self._seen.keys() - set(entries):
            del self._seen[gone]
            self.refused.pop(gone, None)
        # A directory that somebody fills does not fill the memory.
        for name in entries[-_MAX_FILES:]:
            opened = self._read(name)
            if opened is not None:
                found.append(opened)
        found.sort(key=lambda opened: opened.manifest.epoch_id)
        return found

    def keep(self, manifest: Manifest, signed: bytes) -> None:
        """Store a manifest that was verified elsewhere; it is complete and on disk when this returns.

        Only the newest MAX_MANIFESTS are kept. OSError if the disk refuses.
        """
        replace(self.path / f"{manifest.epoch_id:020d}{SUFFIX}", signed, 0o644)
        kept = sorted(self.path.glob(f"[0-9]*{SUFFIX}"))
        for old in kept[:-MAX_MANIFESTS]:
            old.unlink()

    def _read(self, name: str) -> Opened | None:
        try:
            # O_NONBLOCK: a FIFO of that name must not hang the broker.
            descriptor = os.open(self.path / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            self.refused[name] = error.strerror or str(error)
            return None
        try:
            status = os.fstat(descriptor)
            version = (status.st_ino, status.st_size, status.st_mtime_ns)
            if self._seen.get(name) == version:
                return None
            self._seen[name] = version
            if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_MANIFEST_BYTES:
                self.refused[name] = f"not a regular file of at most {MAX_MANIFEST_BYTES} bytes"
                return None
            with os.fdopen(os.dup(descriptor), "rb") as file:
                signed = file.read(MAX_MANIFEST_BYTES + 1)
        finally:
            os.close(descriptor)
        try:
            manifest = open_manifest(signed, self._operator)
        except ManifestError as error:
            self.refused[name] = str(error)
            return None
        self.refused.pop(name, None)
        return Opened(manifest, signed)
