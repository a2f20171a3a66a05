# SPDX-License-Identifier: Apache-2.0
"""A witness: cosigns checkpoints of logs it knows, and never two that contradict each other (C2SP tlog-witness).

Request to ``add-checkpoint``::

    old <size the witness cosigned last>
    <base64 of one hash of the consistency proof>      at most 63 lines
                                                       an empty line
    <checkpoint>                                       a signed note

| answer | when |
|---|---|
| 200 | the tree only grew: a cosignature line |
| 400 | the request is malformed, or its old size exceeds the checkpoint's |
| 403 | no trusted key of the origin signed it, or one of them did not sign this text |
| 404 | the origin is unknown |
| 409 | the old size is not the one cosigned last, which is the answer's body; or another root of the same size |
| 422 | the consistency proof does not hold |

The state machine does no I/O of its own: what it has cosigned is kept by a :class:`Heads`, which must have it on disk
before :meth:`Witness.add_checkpoint` answers. Requests are judged one after another.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple, Protocol

from mvps.trust.checkpoint import CheckpointError, parse_checkpoint
from mvps.trust.merkle import HASH_BYTES, MAX_PROOF, TreeHead, consistent
from mvps.trust.note import COSIGNATURE_V1, ED25519, Note, NoteError, NoteKey, cosign, parse_note, verified

MAX_REQUEST: Final = 64 * 1024  # bytes; 63 hashes take 2.8 KiB, 100 signatures of long names 20 KiB
SIZE_TYPE: Final = "text/x.tlog.size"
TEXT_TYPE: Final = "text/plain"
_OLD: Final = re.compile("old (0|[1-9][0-9]{0,18})")


class RequestError(Exception):
    """An add-checkpoint request is malformed."""


class Request(NamedTuple):
    """An add-checkpoint request."""

    old: int
    proof: tuple[bytes, ...]
    checkpoint: Note

    def render(self) -> bytes:
        """The request's body."""
        lines = [f"old {self.old}\n", *(base64.b64encode(step).decode() + "\n" for step in self.proof), "\n"]
        return "".join(lines).encode() + self.checkpoint.render()


class Reply(NamedTuple):
    """An answer. ``alarm`` says what a human should hear of: a log that signed two different histories."""

    status: int
    body: bytes
    content_type: str = TEXT_TYPE
    alarm: str = ""


class Heads(Protocol):
    """The tree head a witness cosigned last, for each log."""

    def head(self, origin: str) -> TreeHead:
        """The head of one log; the empty tree if none was cosigned."""

    def record(self, origin: str, head: TreeHead) -> None:
        """Keep a head; it is on disk when this returns. Raises OSError if it cannot be."""


class Witness:
    """One witness.

    name: of its cosignatures. sign, public: its Ed25519 key. logs: keys of the logs it knows, named by their origin.
    """

    def __init__(
        self, name: str, sign: Callable[[bytes], bytes], public: bytes, logs: Iterable[NoteKey], heads: Heads
    ) -> None:
        self.key: Final = NoteKey(name, COSIGNATURE_V1, public)
        self._sign = sign
        self._heads = heads
        self._logs: dict[str, list[NoteKey]] = {}
        for log in logs:
            if log.algorithm != ED25519:
                raise NoteError(
                    f"the key of log {log.name} is of algorithm {log.algorithm}; logs sign with Ed25519 (1)"
                )
            self._logs.setdefault(log.name, []).append(log)

    def add_checkpoint(self, body: bytes, now_s: int) -> Reply:
        """Answer one request. now_s: POSIX time of the cosignature. Raises OSError if the new head cannot be kept."""
        try:
            request = parse_request(body)
            checkpoint = parse_checkpoint(request.checkpoint.text)
        except (RequestError, CheckpointError) as error:
            return _refuse(400, str(error))
        origin, new = checkpoint.origin, checkpoint.head
        keys = self._logs.get(origin)
        if keys is None:
            return _refuse(404, f"this witness does not know the log {origin}: its operator adds it with --log")
        try:
            signed = verified(request.checkpoint, keys)
        except NoteError as error:
            return _refuse(403, str(error))
        if not signed:
            return _refuse(403, f"no key of the log {origin} that this witness trusts signed the checkpoint")
        if request.old > new.size:
            return _refuse(400, f"the old size {request.old} exceeds the checkpoint's, {new.size}")
        known = self._heads.head(origin)
        if request.old != known.size:
            return Reply(409, f"{known.size}\n".encode(), SIZE_TYPE)
        if new.size == known.size and new.root != known.root:
            return Reply(409, f"{known.size}\n".encode(), SIZE_TYPE, _alarm(origin, known, new, "of the same size"))
        if not consistent(known, new, request.proof):
            alarm = _alarm(origin, known, new, "without a proof that it contains the first")
            return Reply(422, b"the consistency proof does not hold\n", alarm=alarm)
        if new != known:
            self._heads.record(origin, new)
        cosignature = cosign(request.checkpoint.text, self.key.name, self._sign, self.key.public, now_s)
        return Reply(200, cosignature.line.encode())


def parse_request(body: bytes) -> Request:
    """Read an add-checkpoint request. RequestError for anything that is not one."""
    if len(body) > MAX_REQUEST:
        raise RequestError(f"a request of {len(body)} bytes, at most {MAX_REQUEST} are read")
    head, separator, rest = body.partition(b"\n\n")
    try:
        first, *lines = head.decode("ascii").split("\n")
        note = parse_note(rest)
    except (UnicodeDecodeError, NoteError) as error:
        raise RequestError(f"this is no add-checkpoint request: {error}") from None
    old = _OLD.fullmatch(first)
    if not separator or old is None:
        raise RequestError("this is no add-checkpoint request: it begins with the line `old SIZE`")
    if len(lines) > MAX_PROOF:
        raise RequestError(f"a proof of {len(lines)} hashes, at most {MAX_PROOF} are read")
    return Request(int(old[1]), tuple(map(_hash, lines)), note)


def size_in_conflict(body: bytes) -> int | None:
    """The size in the body of an answer 409; None if there is none."""
    digits = body.removesuffix(b"\n")
    return int(digits) if digits.isdigit() and len(digits) <= 19 else None


def _hash(line: str) -> bytes:
    try:
        decoded = base64.b64decode(line, validate=True)
    except (binascii.Error, ValueError):
        decoded = b""
    if len(decoded) != HASH_BYTES:
        raise RequestError(f"{line[:60]!r} is no base64 of a SHA-256 hash")
    return decoded


def _refuse(status: int, reason: str) -> Reply:
    return Reply(status, (reason + "\n").encode())


def _alarm(origin: str, known: TreeHead, new: TreeHead, how: str) -> str:
    roots: Sequence[str] = [base64.b64encode(head.root).decode() for head in (known, new)]
    return (
        f"the log {origin} signed a tree of {new.size} leaves, root {roots[1]}, after {known.size} leaves, root "
        f"{roots[0]}, {how}: it may show different histories to different people"
    )
