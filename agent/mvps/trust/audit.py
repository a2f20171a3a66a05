# SPDX-License-Identifier: Apache-2.0
"""The offline audit of an evidence log: does it hold what its checkpoints say, and did it only grow?

The folder is read as it is and nothing in it is trusted. What is trusted: the operator's key, through the manifests,
which name the log's key, the witnesses and the quorum; or keys that the auditor gives instead. What nobody can find in
a folder alone is that the whole of it was set back to an earlier state: that takes a checkpoint from somewhere else,
such as one the auditor kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

from mvps.trust.checkpoint import Checkpoint, CheckpointError, InclusionProof, parse_checkpoint
from mvps.trust.evidence_log import EvidenceError, LogFiles, leaf_of
from mvps.trust.manifest import Manifest
from mvps.trust.merkle import (
    HASH_BYTES,
    Tree,
    TreeHead,
    consistency_proof,
    consistent,
    inclusion_proof,
    leaf_hash,
    peaks_of,
    root_of,
)
from mvps.trust.note import ED25519, Note, NoteError, NoteKey, NoteSignature, parse_note, verified
from mvps.trust.seal import Sealed, SealHeader, parse_header

_MAX_FINDINGS: Final = 100  # a folder that is broken all over need not be listed to the last leaf


class Finding(NamedTuple):
    """Something that does not hold. ``kind`` is one word for scripts, ``where`` a file or checkpoint."""

    kind: str
    where: str
    text: str


@dataclass(frozen=True)
class Trusted:
    """What an audit believes.

    manifests: signed by the operator, by digest. logs: keys of logs, named by origin, besides those of the manifests.
    witnesses: keys besides those of the manifests. quorum: wins over the manifests', if it is not None.
    """

    manifests: Mapping[bytes, Manifest] = field(default_factory=dict)
    logs: Sequence[NoteKey] = ()
    witnesses: Sequence[NoteKey] = ()
    quorum: int | None = None

    def judge(self, note: Note) -> Signed:
        """Who signed a checkpoint. CheckpointError if it is none, or not one of a log that is trusted."""
        checkpoint = parse_checkpoint(note.text)
        keys = [key for key in self.logs if key.name == checkpoint.origin]
        witnesses, quorum = list(self.witnesses), self.quorum or 0
        named = f"the checkpoint over {checkpoint.size} leaves"
        if self.manifests:
            digest = checkpoint.binding.manifest
            manifest = self.manifests.get(digest or b"")
            if manifest is None:
                raise CheckpointError(
                    f"{named} names the manifest {digest.hex() if digest else 'none'}, which is not among those given"
                )
            if manifest.broker.name != checkpoint.origin:
                raise CheckpointError(
                    f"{named} is of the log {checkpoint.origin}, its manifest of the broker {manifest.broker.name}"
                )
            if checkpoint.binding.period_end_s < manifest.from_s:
                raise CheckpointError(f"{named} is older than the epoch {manifest.epoch_id} that it names")
            keys.append(NoteKey(manifest.broker.name, ED25519, manifest.broker.key.ed25519))
            witnesses += manifest.witnesses
            quorum = manifest.quorum if self.quorum is None else self.quorum
        try:
            if not verified(note, keys):
                raise CheckpointError(f"{named} is not signed by the log {checkpoint.origin}")
            cosigned = {key.name: time_s for key, time_s in verified(note, witnesses)}
        except NoteError as error:
            raise CheckpointError(f"{named}: {error}") from None
        return Signed(checkpoint, note, cosigned, quorum)


class Signed(NamedTuple):
    """A checkpoint whose signatures hold. cosigned: witness name -> POSIX time."""

    checkpoint: Checkpoint
    note: Note
    cosigned: dict[str, int]
    quorum: int

    @property
    def enough(self) -> bool:
        """Whether the quorum cosigned it."""
        return len(self.cosigned) >= self.quorum


class Found(NamedTuple):
    """A snapshot that was asked for."""

    leaf: int
    header: SealHeader
    sealed: Sealed


@dataclass
class Audit:
    """What an audit found. It holds if there are no findings.

    first, leaves: first leaf and number of leaves whose bytes are there. checkpoints: different ones. size: leaves the
    newest checkpoint covers; cosigned_size: those of the newest with a quorum. wanted: snapshots asked for.
    """

    findings: list[Finding] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    first: int = 0
    leaves: int = 0
    checkpoints: int = 0
    size: int = 0
    cosigned_size: int = 0
    wanted: list[Found] = field(default_factory=list)
    newest: Signed | None = None
    newest_cosigned: Signed | None = None

    @property
    def holds(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings

    def find(self, kind: str, where: object, text: object) -> None:
        """Note that something does not hold."""
        if len(self.findings) < _MAX_FINDINGS:
            self.findings.append(Finding(kind, str(where), str(text)))


def audit(
    files: LogFiles, trusted: Trusted, *, kept: Iterable[Note] = (), snapshots: Iterable[tuple[str, int]] = ()
) -> Audit:
    """Audit a folder.

    kept: checkpoints of this log from elsewhere, which the folder must contain. snapshots: (vantage, counter) to find.
    """
    result = Audit()
    signed = _checkpoints(files, trusted, result)
    for note in kept:
        try:
            signed.append(trusted.judge(note))
        except CheckpointError as error:
            result.find("kept", "the checkpoint that was kept", error)
    _remark_superseded(signed, trusted, result)
    _compare_heads(files, signed, result)
    _leaves(files, [one.checkpoint.head for one in signed], set(snapshots), result)
    _conclude(signed, result)
    return result


def prove(files: LogFiles, found: Found, signed: Signed) -> InclusionProof:
    """Proof that a snapshot is in the tree of a checkpoint; EvidenceError or CheckpointError if it is not."""
    if found.leaf >= signed.checkpoint.size:
        raise CheckpointError(f"leaf {found.leaf} is newer than the checkpoint over {signed.checkpoint.size} leaves")
    hashes = inclusion_proof(found.leaf, signed.checkpoint.size, files.node)
    proof = InclusionProof(leaf_of(found.sealed), found.leaf, tuple(hashes), signed.note)
    proof.verified_head()
    return proof


def _checkpoints(files: LogFiles, trusted: Trusted, result: Audit) -> list[Signed]:
    """Every different checkpoint that somebody trusted signed, in the order of the file."""
    signed: dict[str, Signed] = {}
    largest = 0
    try:
        for data in files.checkpoints():
            try:
                one = trusted.judge(parse_note(data))
            except (NoteError, CheckpointError) as error:
                result.find("checkpoint", files.checkpoints_path, error)
                continue
            before = signed.get(one.note.text)
            if before is None and one.checkpoint.size < largest:
                result.find(
                    "order",
                    files.checkpoints_path,
                    f"the checkpoint over {one.checkpoint.size} leaves stands after one over {largest}: logs only grow",
                )
            largest = max(largest, one.checkpoint.size)
            signed[one.note.text] = one if before is None else _joined(before, one)
    except EvidenceError as error:
        result.find("checkpoint", files.checkpoints_path, error)
    result.checkpoints = len(signed)
    return list(signed.values())


def _remark_superseded(signed: Sequence[Signed], trusted: Trusted, result: Audit) -> None:
    """A broker may learn of an epoch late, but one that holds on to an old manifest escapes the new one's quorum."""
    late: list[Signed] = []
    for one in signed:
        binding = one.checkpoint.binding if trusted.manifests else None
        in_force = [m for m in trusted.manifests.values() if binding and m.from_s <= binding.period_end_s]
        newest = max(in_force, key=lambda manifest: manifest.epoch_id, default=None)
        if binding and newest and newest.digest != binding.manifest:
            late.append(one)
    if late:
        sizes = f"{late[0].checkpoint.size} to {late[-1].checkpoint.size}"
        result.remarks.append(
            f"{len(late)} checkpoints, over {sizes} leaves, name a manifest whose successor was in force already"
        )


def _joined(before: Signed, again: Signed) -> Signed:
    """One checkpoint that stands in the file twice, with the cosignatures of both."""
    extra: tuple[NoteSignature, ...] = tuple(s for s in again.note.signatures if s not in before.note.signatures)
    note = Note(before.note.text, before.note.signatures + extra)
    return before._replace(note=note, cosigned=before.cosigned | again.cosigned)


def _compare_heads(files: LogFiles, signed: Sequence[Signed], result: Audit) -> None:
    """That each checkpoint's tree begins with the one before, as the nodes show it."""
    ordered = sorted(signed, key=lambda one: one.checkpoint.size)
    for old, new in pairwise([TreeHead(0, root_of(0, files.node)), *(one.checkpoint.head for one in ordered)]):
        if old.size == new.size and old.root != new.root:
            result.find(
                "fork",
                files.checkpoints_path,
                f"two checkpoints over {new.size} leaves have different roots: the log showed two histories",
            )
            continue
        try:
            proof = consistency_proof(old.size, new.size, files.node)
            matches = root_of(new.size, files.node) == new.root
        except EvidenceError as error:
            result.find("nodes", files.nodes_path, error)
            return
        if not consistent(old, new, proof):
            result.find(
                "consistency",
                files.checkpoints_path,
                f"the nodes do not prove that the tree over {new.size} leaves begins with the one over {old.size}",
            )
        elif not matches:
            result.find("nodes", files.nodes_path, f"the nodes do not give the root of the checkpoint over {new.size}")


class _StoredTree:
    """The tree that the nodes file holds, leaf by leaf: every inner node and every signed root is computed again.

    It begins behind what was pruned, with the hashes that stayed of that.
    """

    def __init__(self, files: LogFiles, roots: Mapping[int, bytes], result: Audit) -> None:
        self._files = files
        self._roots = roots
        self._result = result
        self._stored = files.stored_nodes()
        self._silent: set[str] = set()
        try:
            self._tree = Tree(files.boundary, [files.node(*peak) for peak in peaks_of(files.boundary)])
        except EvidenceError as error:
            self._once("nodes", str(error))
            self._tree, self._stored = Tree(files.boundary, [b""] * files.boundary.bit_count()), iter(())

    @property
    def size(self) -> int:
        """Leaves gone through."""
        return self._tree.size

    def leaf(self) -> bytes | None:
        """Hash of the next leaf; None at the end."""
        stored = next(self._stored, None)
        if stored is None:
            return None
        hashed = stored[:HASH_BYTES]
        if b"".join(self._tree.append([hashed])) != stored:
            self._once("nodes", f"the nodes stored with leaf {self.size - 1} are not the hashes of those below them")
        if self._roots.get(self.size, self._tree.head.root) != self._tree.head.root:
            self._once("root", f"the leaves do not give the root of the checkpoint over {self.size}")
        return hashed

    def _once(self, kind: str, text: str) -> None:
        # What is wrong once makes everything after it wrong.
        if kind not in self._silent:
            self._silent.add(kind)
            self._result.find(kind, self._files.nodes_path, text)


def _leaves(files: LogFiles, heads: Sequence[TreeHead], wanted: set[tuple[str, int]], result: Audit) -> None:
    """That the leaves are those of the nodes, and that these give the roots of the checkpoints."""
    roots = {head.size: head.root for head in heads}
    covered = max(roots, default=0)
    tree = _StoredTree(files, roots, result)
    result.first = position = files.segments[0][1] if files.segments else covered
    if position:
        result.remarks.append(f"the bytes of the first {position} leaves were pruned")
    if files.boundary:
        result.remarks.append(
            f"of the hashes of the first {files.boundary} leaves those are left that join checkpoints and later leaves"
        )
    for path, first in files.segments:
        if first != position:
            result.find(
                "missing",
                path,
                f"begins with leaf {first}, and the leaves before end at {position}: a segment or leaves are missing",
            )
            position = first
        while tree.size < position and tree.leaf() is not None:
            pass
        position += _compare_segment(files, path, position, tree, wanted, result)
    while tree.size < covered and tree.leaf() is not None:
        pass
    if tree.size < covered:
        result.find("nodes", files.nodes_path, f"the nodes end at leaf {tree.size}, a checkpoint covers {covered}")
    if position < covered:
        where = files.segments[-1][0] if files.segments else files.folder
        result.find("missing", where, f"the leaves end at {position}, a checkpoint covers {covered}")
    elif position > covered:
        result.remarks.append(f"{position - covered} leaves are newer than the newest checkpoint: unvouched for")


def _compare_segment(
    files: LogFiles, path: Path, first: int, tree: _StoredTree, wanted: set[tuple[str, int]], result: Audit
) -> int:
    """Compare a segment's leaves with the tree; their number."""
    count = others = 0
    wrong = ""
    for offset, sealed in _segment(files, path, result):
        header = parse_header(sealed.header)
        if (header.vantage_id, header.counter) in wanted:
            result.wanted.append(Found(first + count, header, sealed))
        stored = tree.leaf() if tree.size == first + count else None
        if stored is not None and stored != leaf_hash(leaf_of(sealed)):
            others += bool(wrong)
            wrong = wrong or f"leaf {first + count} at offset {offset} ({header.vantage_id}, counter {header.counter})"
        count += 1
    if wrong:
        more = f", and {others} after it" if others else ""
        result.find("leaf", path, f"{wrong}{more}: not the ones in the tree, but changed, moved or put in")
    result.leaves += count
    return count


def _segment(files: LogFiles, path: Path, result: Audit) -> Iterator[tuple[int, Sealed]]:
    try:
        yield from files.leaves(path)
    except EvidenceError as error:
        result.find("leaf", path, error)


def _conclude(signed: Sequence[Signed], result: Audit) -> None:
    for one in signed:
        size = one.checkpoint.size
        if result.newest is None or size >= result.newest.checkpoint.size:
            result.newest = one
        if one.enough and (result.newest_cosigned is None or size >= result.newest_cosigned.checkpoint.size):
            result.newest_cosigned = one
    if result.newest is None:
        result.find("checkpoint", "checkpoints", "no checkpoint is signed by a log that is trusted: nobody vouches")
        return
    result.size = result.newest.checkpoint.size
    if result.newest_cosigned is None:
        result.find(
            "quorum",
            "checkpoints",
            f"no checkpoint is cosigned by {result.newest.quorum} of the witnesses that are trusted",
        )
        return
    result.cosigned_size = result.newest_cosigned.checkpoint.size
    if result.newest.quorum and result.cosigned_size < result.size:
        result.remarks.append(
            f"the witnesses' quorum has cosigned {result.cosigned_size} of {result.size} leaves so far"
        )
