# SPDX-License-Identifier: Apache-2.0
"""Signed notes: a text, and lines that say who signed it (C2SP signed-note; cosignatures: C2SP tlog-cosignature).

A note is the text with its final newline, one empty line, and signature lines::

    — <key name> <base64 of: 4-byte key id || signature>

    key id = first 4 bytes of SHA-256(key name || 0x0A || algorithm || public key)
    key    = <key name>+<key id in hex>+<base64 of: algorithm || public key>      as it is handed around

Algorithm 1 is Ed25519 over the text. Algorithm 4 is a witness's cosignature/v1: 8 bytes of big-endian POSIX time,
then Ed25519 over ``cosignature/v1\\ntime <seconds>\\n`` and the text.

Stricter than the sources (ours): base64 must be canonical, so that a parsed note renders to the same bytes.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import struct
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

ED25519: Final = 1
COSIGNATURE_V1: Final = 4
MAX_SIGNATURES: Final = 100  # of one note, as in Go's sumdb/note; the text asks for at least 16
_PUBLIC_BYTES: Final = 32
_SIGNATURE_BYTES: Final = {ED25519: 64, COSIGNATURE_V1: 72}
_MAX_TIMESTAMP: Final = (1 << 63) - 1
_CONTROL: Final = re.compile("[\x00-\x09\x0b-\x1f]")
_KEY_ID: Final = re.compile("[0-9a-f]{8}")
_DASH: Final = "— "


class NoteError(Exception):
    """A note or a note key is malformed, or a known key's signature does not hold."""


class NoteKey(NamedTuple):
    """A public key that may sign notes under a name."""

    name: str
    algorithm: int
    public: bytes

    @property
    def key_id(self) -> bytes:
        """4 bytes that stand in every signature of this key."""
        return _key_id(self.name, self.algorithm, self.public)

    @property
    def text(self) -> str:
        """The key as it is handed around ("vkey")."""
        material = base64.b64encode(bytes([self.algorithm]) + self.public).decode()
        return f"{self.name}+{self.key_id.hex()}+{material}"


class NoteSignature(NamedTuple):
    """One signature line. ``blob`` is what follows the key id."""

    name: str
    key_id: bytes
    blob: bytes

    @property
    def line(self) -> str:
        """The line, with its newline."""
        return f"{_DASH}{self.name} {base64.b64encode(self.key_id + self.blob).decode()}\n"


class Note(NamedTuple):
    """A text, with its final newline, and its signatures, none of them verified yet."""

    text: str
    signatures: tuple[NoteSignature, ...]

    def render(self) -> bytes:
        """The note's bytes."""
        return (self.text + "\n" + "".join(signature.line for signature in self.signatures)).encode()


def parse_note_key(text: str) -> NoteKey:
    """Read a key as :attr:`NoteKey.text` writes it. NoteError says what is wrong with it."""
    name, _, rest = text.partition("+")
    key_id, _, material = rest.partition("+")
    decoded = _base64(material)
    if not _is_name(name) or not _KEY_ID.fullmatch(key_id) or decoded is None:
        raise NoteError(f"{text!r} is no note key: it has the form name+8 hex digits+base64")
    algorithm, public = (decoded[0], decoded[1:]) if decoded else (0, b"")
    if algorithm not in _SIGNATURE_BYTES or len(public) != _PUBLIC_BYTES:
        raise NoteError(f"the note key of {name} is neither Ed25519 (1) nor cosignature/v1 (4) with 32 bytes")
    key = NoteKey(name, algorithm, public)
    if key.key_id.hex() != key_id:
        raise NoteError(f"the note key of {name} is damaged: its id is {key.key_id.hex()}, not {key_id}")
    return key


def parse_note(data: bytes) -> Note:
    """Read a note. NoteError for anything that is not one; no signature is verified."""
    content = _decode(data)
    body, separator, lines = content.rpartition("\n\n")
    if not separator or not lines:
        raise NoteError("this is no signed note: a text, an empty line and signature lines are needed")
    return Note(body + "\n", parse_signatures(lines))


def parse_signatures(lines: str) -> tuple[NoteSignature, ...]:
    """Read signature lines alone, as a witness answers them."""
    if not lines.endswith("\n"):
        raise NoteError("the last signature line has no line end: the note is cut off")
    split = lines[:-1].split("\n")
    if len(split) > MAX_SIGNATURES:
        raise NoteError(f"{len(split)} signature lines, at most {MAX_SIGNATURES} are read")
    return tuple(_signature(line) for line in split)


def sign_note(text: str, name: str, sign: Callable[[bytes], bytes], public: bytes) -> NoteSignature:
    """An Ed25519 signature (algorithm 1) over ``text``.

    sign: makes the Ed25519 signature of a message; public: the public key it belongs to.
    """
    _check(text, name)
    return NoteSignature(name, _key_id(name, ED25519, public), sign(text.encode()))


def cosign(text: str, name: str, sign: Callable[[bytes], bytes], public: bytes, timestamp_s: int) -> NoteSignature:
    """A cosignature/v1 (algorithm 4) over ``text``, made at ``timestamp_s`` (POSIX seconds)."""
    _check(text, name)
    if not 0 <= timestamp_s <= _MAX_TIMESTAMP:
        raise NoteError(f"{timestamp_s} is no time of a cosignature")
    blob = struct.pack(">Q", timestamp_s) + sign(_cosigned(text, timestamp_s))
    return NoteSignature(name, _key_id(name, COSIGNATURE_V1, public), blob)


def verified(note: Note, keys: Iterable[NoteKey]) -> list[tuple[NoteKey, int]]:
    """The keys whose signature holds, each once, with the time of its cosignature (0 for algorithm 1).

    Signatures of unknown keys are ignored. Every signature of a known key must hold: NoteError otherwise. A key that
    signed twice counts once, with its first signature. An empty result means that nobody known vouches for the text.
    """
    known: dict[tuple[str, bytes], NoteKey] = {}
    for key in keys:
        if known.setdefault((key.name, key.key_id), key) != key:
            raise NoteError(f"two known keys share the name {key.name} and the id {key.key_id.hex()}: remove one")
    found: dict[NoteKey, int] = {}
    for signature in note.signatures:
        signer = known.get((signature.name, signature.key_id))
        if signer is not None:
            found.setdefault(signer, _verify(note.text, signature, signer))
    return list(found.items())


def is_note_name(name: str) -> bool:
    """Whether ``name`` may stand as a key name in a note."""
    return _is_name(name) and not _CONTROL.search(name)


def _verify(text: str, signature: NoteSignature, key: NoteKey) -> int:
    """Time of a signature that holds; NoteError if it does not."""
    message, timestamp_s = text.encode(), 0
    blob = signature.blob
    holds = len(blob) == _SIGNATURE_BYTES[key.algorithm]
    if holds and key.algorithm == COSIGNATURE_V1:
        timestamp_s = int.from_bytes(blob[:8], "big")
        holds = timestamp_s <= _MAX_TIMESTAMP
        message, blob = _cosigned(text, timestamp_s), blob[8:]
    if holds:
        try:
            Ed25519PublicKey.from_public_bytes(key.public).verify(blob, message)
        except (InvalidSignature, ValueError):
            holds = False
    if not holds:
        raise NoteError(f"the signature of {key.name} ({key.key_id.hex()}) does not hold")
    return timestamp_s


def _cosigned(text: str, timestamp_s: int) -> bytes:
    return f"cosignature/v1\ntime {timestamp_s}\n{text}".encode()


def _key_id(name: str, algorithm: int, public: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\n" + bytes([algorithm]) + public).digest()[:4]


def _is_name(name: str) -> bool:
    return bool(name) and "+" not in name and not any(character.isspace() for character in name)


def _check(text: str, name: str) -> None:
    if not is_note_name(name):
        raise NoteError(f"{name!r} is no key name: it must not be empty, nor contain spaces, + or control characters")
    if not text.endswith("\n") or _CONTROL.search(text):
        raise NoteError("a note's text ends with a newline and contains no other control character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise NoteError("a note's text must be encodable as UTF-8") from None


def _decode(data: bytes) -> str:
    try:
        content = data.decode()
    except UnicodeDecodeError:
        raise NoteError("this is no signed note: it is not UTF-8") from None
    if _CONTROL.search(content):
        raise NoteError("this is no signed note: it contains control characters")
    return content


def _signature(line: str) -> NoteSignature:
    name, _, encoded = line.removeprefix(_DASH).partition(" ")
    decoded = _base64(encoded)
    if not line.startswith(_DASH) or not _is_name(name) or decoded is None or len(decoded) < 5:
        raise NoteError(f"{line[:120]!r} is no signature line: it has the form — name base64")
    return NoteSignature(name, decoded[:4], decoded[4:])


def _base64(text: str) -> bytes | None:
    """Decoded canonical base64, or None."""
    try:
        decoded = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return decoded if base64.b64encode(decoded).decode() == text else None
