# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: what a log signs about its tree (C2SP tlog-checkpoint), and proofs that hang on one (C2SP tlog-proof).

The text of a checkpoint has the lines origin, tree size and base64 of the root, and extension lines, of which a broker
writes exactly three (ours)::

    mvps-bundle <end of the bundle period, RFC 3339, UTC, whole seconds>
    mvps-manifest <base64 of the SHA-256 of the epoch manifest's text, or "none">
    mvps-fleet-d2 <D^2_minimax> <D^2_max>
      or, where the fleet has no decision,  mvps-d2 <D^2_minimax> <D^2_max>
      or, where no vantage reported either, mvps-d2 none

The name of the third line says whose distances these are. The fleet's: the largest D^2_minimax and the largest D^2_max
of its decisions that were made in the period, over all kinds of vantage (mvps.robust.fleet). The vantages', which is
all that brokers wrote at first: D^2 is the largest Mahalanobis distance a vantage reported in the period,
D^2_max the largest of them, and D^2_minimax the smallest that this becomes when up to f vantages are left out
(:func:`worst_case`). A fleet has no decision below three hosts, while it calibrates, and without a quorum.

A proof file holds the leaf data as its "extra" line (ours). It is trusted no more than any other: its hash has to
lead to the root.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final, NamedTuple

from mvps.trust.merkle import HASH_BYTES, MAX_PROOF, TreeHead, included, leaf_hash
from mvps.trust.note import Note, NoteError, parse_note

_SIZE: Final = re.compile("0|[1-9][0-9]{0,18}")
_TIME: Final = re.compile("[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
_MAX_SIZE: Final = (1 << 63) - 1
_MAX_EXTENSIONS: Final = 16
_BUNDLE: Final = "mvps-bundle "
_MANIFEST: Final = "mvps-manifest "
_D2: Final = "mvps-d2 "
_FLEET_D2: Final = "mvps-fleet-d2 "
_NONE: Final = "none"
_PROOF: Final = "c2sp.org/tlog-proof@v1\n"


class CheckpointError(Exception):
    """A checkpoint or a proof is malformed, or does not hold."""


class Distances(NamedTuple):
    """D^2_minimax and D^2_max of a period. of_fleet: of the fleet's decisions, else of what vantages reported."""

    minimax: float
    largest: float
    of_fleet: bool = False


class Binding(NamedTuple):
    """What a broker binds to a tree head.

    period_end_s: POSIX seconds. manifest: SHA-256, 32 bytes, or None without a manifest.
    """

    period_end_s: int
    manifest: bytes | None
    d2: Distances | None

    @property
    def lines(self) -> tuple[str, str, str]:
        """The extension lines."""
        return (
            _BUNDLE + datetime.fromtimestamp(self.period_end_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            _MANIFEST + (_NONE if self.manifest is None else base64.b64encode(self.manifest).decode()),
            _D2 + _NONE if self.d2 is None else _distances_line(self.d2),
        )


def _distances_line(d2: Distances) -> str:
    return f"{_FLEET_D2 if d2.of_fleet else _D2}{float(d2.minimax)!r} {float(d2.largest)!r}"


class Checkpoint(NamedTuple):
    """The text of a checkpoint, taken apart."""

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    @property
    def head(self) -> TreeHead:
        """Size and root."""
        return TreeHead(self.size, self.root)

    @property
    def text(self) -> str:
        """The note text."""
        lines = (self.origin, str(self.size), base64.b64encode(self.root).decode(), *self.extensions)
        return "".join(line + "\n" for line in lines)

    @property
    def binding(self) -> Binding:
        """What a broker bound to it; CheckpointError if the extension lines are not those of a broker."""
        return _binding(self.extensions)


def parse_checkpoint(text: str) -> Checkpoint:
    """Read a checkpoint's text. CheckpointError for anything that is not one."""
    lines = text.split("\n")
    if len(lines) < 4 or lines.pop() or not all(lines):
        raise CheckpointError("a checkpoint has at least three lines, none of them empty")
    origin, size, root, *extensions = lines
    if not _SIZE.fullmatch(size) or int(size) > _MAX_SIZE:
        raise CheckpointError(f"{size[:40]!r} is no tree size")
    if len(extensions) > _MAX_EXTENSIONS:
        raise CheckpointError(f"{len(extensions)} extension lines, at most {_MAX_EXTENSIONS} are read")
    return Checkpoint(origin, int(size), _hash(root), tuple(extensions))


def worst_case(d2: Iterable[float], f: int) -> Distances | None:
    """The pair a checkpoint binds where the fleet has no decision (ours).

    d2: largest D^2 of each vantage in the period; f: vantages that may lie. Leaving out the f largest is the best of
    all removals, so the minimax is the (f+1)-th largest, and 0 if no more than f vantages reported. None if nobody did.
    """
    ordered = sorted(d2, reverse=True)
    if not ordered:
        return None
    return Distances(ordered[f] if f < len(ordered) else 0.0, ordered[0])


class InclusionProof(NamedTuple):
    """A leaf, where it stands in the tree of a checkpoint, and why."""

    leaf: bytes
    leaf_index: int
    hashes: tuple[bytes, ...]
    checkpoint: Note

    def render(self) -> bytes:
        """The proof as a file (.tlog-proof)."""
        lines = [f"extra {base64.b64encode(self.leaf).decode()}", f"index {self.leaf_index}"]
        lines += [base64.b64encode(step).decode() for step in self.hashes]
        return (_PROOF + "\n".join(lines) + "\n\n").encode() + self.checkpoint.render()

    def verified_head(self) -> Checkpoint:
        """The checkpoint the leaf is in. CheckpointError if the hashes do not lead to its root.

        Nothing is said about who signed it.
        """
        checkpoint = parse_checkpoint(self.checkpoint.text)
        if not included(leaf_hash(self.leaf), self.leaf_index, checkpoint.head, self.hashes):
            raise CheckpointError(
                f"the proof does not lead from leaf {self.leaf_index} to the root of the checkpoint over "
                f"{checkpoint.size} leaves"
            )
        return checkpoint


def parse_proof(data: bytes) -> InclusionProof:
    """Read a proof file. CheckpointError for anything that is not one, or has no leaf data."""
    head, _, rest = data.partition(b"\n\n")
    try:
        text = head.decode()
        note = parse_note(rest)
    except (UnicodeDecodeError, NoteError) as error:
        raise CheckpointError(f"this is no proof file: {error}") from None
    lines = text.removeprefix(_PROOF).split("\n")
    if not text.startswith(_PROOF) or len(lines) < 2 or not lines[0].startswith("extra "):
        raise CheckpointError(
            f"this is no proof file with leaf data: it begins with {_PROOF.strip()} and an extra line"
        )
    index = lines[1].removeprefix("index ")
    if not lines[1].startswith("index ") or not _SIZE.fullmatch(index):
        raise CheckpointError("this is no proof file: the index line is missing or no number")
    if len(lines) - 2 > MAX_PROOF:
        raise CheckpointError(f"a proof of {len(lines) - 2} hashes, at most {MAX_PROOF} are read")
    leaf = _base64(lines[0].removeprefix("extra "))
    if leaf is None:
        raise CheckpointError("this is no proof file: the extra line is not base64")
    return InclusionProof(leaf, int(index), tuple(map(_hash, lines[2:])), note)


def _binding(extensions: tuple[str, ...]) -> Binding:
    heads = (_BUNDLE,), (_MANIFEST,), (_D2, _FLEET_D2)
    if len(extensions) != len(heads) or not all(map(str.startswith, extensions, heads)):
        raise CheckpointError("the extension lines of this checkpoint are not those of an MVPS broker")
    bundle, manifest, d2 = (line.partition(" ")[2] for line in extensions)
    try:
        if not _TIME.fullmatch(bundle):
            raise ValueError(bundle)
        period_end_s = int(datetime.strptime(bundle, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp())
        pair = None
        if d2 != _NONE:
            minimax, largest = map(float, d2.split(" "))
            pair = Distances(minimax, largest, of_fleet=extensions[2].startswith(_FLEET_D2))
        binding = Binding(period_end_s, None if manifest == _NONE else _hash(manifest), pair)
    except (ValueError, TypeError, OverflowError):
        raise CheckpointError(f"the extension lines of this checkpoint are malformed: {extensions}") from None
    if binding.lines != extensions or (pair and not 0 <= pair.minimax <= pair.largest):
        raise CheckpointError(f"the extension lines of this checkpoint are not canonical: {extensions}")
    return binding


def _hash(text: str) -> bytes:
    decoded = _base64(text)
    if decoded is None or len(decoded) != HASH_BYTES:
        raise CheckpointError(f"{text[:60]!r} is no base64 of a SHA-256 hash")
    return decoded


def _base64(text: str) -> bytes | None:
    """Decoded canonical base64, or None."""
    try:
        decoded = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return decoded if base64.b64encode(decoded).decode() == text else None
