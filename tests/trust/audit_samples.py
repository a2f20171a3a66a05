# SPDX-License-Identifier: Apache-2.0
"""A real evidence log of a small site, for the tests of the audit here and in tests/cli."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mvps.trust.checkpoint import Binding, Checkpoint, Distances
from mvps.trust.evidence_log import EvidenceLog, leaf_of
from mvps.trust.keys import Kind, SecretKey
from mvps.trust.manifest import Broker, Manifest, Profile, Vantage, sign_manifest
from mvps.trust.merkle import TreeHead
from mvps.trust.note import COSIGNATURE_V1, Note, NoteKey, NoteSignature, cosign, sign_note
from mvps.trust.seal import Ed25519Signer, Lane, Purpose, Sealer

START = 1_795_264_000
HOSTS = ("host-a", "host-b", "host-c")


@dataclass
class Site:
    """Keys, manifest and log of a site. Counters of a host are 1, 2, 3, ..."""

    folder: Path
    operator: SecretKey = field(default_factory=lambda: SecretKey(os.urandom(32), Kind.OPERATOR))
    broker: SecretKey = field(default_factory=lambda: SecretKey(os.urandom(32), Kind.BROKER))
    witnesses: list[SecretKey] = field(default_factory=lambda: [SecretKey(os.urandom(32), Kind.WITNESS) for _ in "123"])
    hosts: dict[str, SecretKey] = field(default_factory=dict)
    quorum: int = 2
    d2: Distances = field(default_factory=lambda: Distances(2.0, 3.0))

    def __post_init__(self) -> None:
        self.hosts = {name: SecretKey(os.urandom(32), Kind.HOST) for name in HOSTS}
        self.manifest = Manifest(
            operator="acme",
            epoch_id=1,
            previous=None,
            from_s=START,
            until_s=START + 86400,
            retire_s=START,
            broker=Broker("site-1", self.broker.public),
            profile=Profile.TRUST,
            faults=1,
            quorum=self.quorum,
            witnesses=tuple(self.witness_key(i) for i in range(3)),
            vantages=tuple(Vantage(name, key.public) for name, key in self.hosts.items()),
        )
        self._sealers = {
            name: Sealer(Ed25519Signer(key), name, Purpose.SNAPSHOT, _Rising(), epoch_id=1, clock=lambda: START * 10**9)
            for name, key in self.hosts.items()
        }
        self.log = EvidenceLog(self.folder, segment_bytes=700)

    def witness_key(self, number: int) -> NoteKey:
        return NoteKey(f"w{number}.example", COSIGNATURE_V1, self.witnesses[number].public.ed25519)

    def signed_manifest(self) -> bytes:
        return sign_manifest(self.manifest, self.operator)

    def grow(self, *names: str) -> None:
        """One accepted snapshot of each, in a commit of its own."""
        for name in names:
            sealed = self._sealers[name].seal(f"body of {name}".encode(), tick=7)
            self.log.append([leaf_of(sealed)])
            self.log.commit()

    def note(self, at_s: int, cosigners: Sequence[int], head: TreeHead | None = None) -> Note:
        """A checkpoint over the log, or over ``head``."""
        binding = Binding(at_s, self.manifest.digest, self.d2)
        text = Checkpoint("site-1", *(head or self.log.head), binding.lines).text
        signatures: list[NoteSignature] = [sign_note(text, "site-1", self.broker.sign, self.broker.public.ed25519)]
        for number in cosigners:
            key = self.witnesses[number]
            name = self.witness_key(number).name
            signatures.append(cosign(text, name, key.sign, key.public.ed25519, at_s + 1))
        return Note(text, tuple(signatures))

    def checkpoint(self, at_s: int, *cosigners: int) -> None:
        """Signed first, and kept again with the cosignatures, as a broker does it."""
        self.log.checkpoints.append(self.note(at_s, ()))
        if cosigners:
            self.log.checkpoints.append(self.note(at_s, cosigners))


class _Rising:
    def __init__(self) -> None:
        self.last = 0

    def __call__(self, lane: Lane) -> int:
        self.last += 1
        return self.last


def usual(folder: Path) -> Site:
    """12 leaves in several segments; checkpoints over 4, 7 and 12, cosigned by two of three witnesses; one to come."""
    site = Site(folder)
    site.grow("host-a", "host-b", "host-c", "host-a")
    site.checkpoint(START + 10, 0, 1)
    site.grow("host-b", "host-c", "host-a")
    site.checkpoint(START + 20, 0, 2)
    site.grow("host-b", "host-c", "host-a", "host-b", "host-c")
    site.checkpoint(START + 30, 0, 1, 2)
    site.log.close()
    return site
