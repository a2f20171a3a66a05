# SPDX-License-Identifier: Apache-2.0
"""The configured 32-byte key: where it may come from, and what is derived from it.

The configured key never seals anything itself. Each use has its own key (DESIGN.md section 5, RFC 5869)::

    salt = SHA-256(u16be len(operator_id) || operator_id || u64be epoch_id)
    K    = HKDF-SHA256(ikm = configured key, salt, info = "mvps/v1/cwt/<purpose>" || 0x00 || vantage_id)

so that a snapshot's seal is never valid on an acknowledgement, nor one vantage's seal on another's bytes.
The purposes are the names of :class:`mvps.trust.seal.Purpose`, and "objects" for the hashes of touched
objects. Salt and info are ours: the sources name the construction, not the bytes.

A key file holds 32 raw bytes, or one line ``mvps-key-v1:<base64 of 32 bytes>``.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import secrets
import stat
import struct
from pathlib import Path
from typing import Final, NoReturn

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_BYTES: Final = 32
CREDENTIAL_PREFIX: Final = "credential:"
# Until epoch manifests exist, every key is of this epoch.
STATIC_EPOCH: Final = 0
_TEXT_PREFIX: Final = b"mvps-key-v1:"
_HOW_TO_MAKE: Final = "make one with: mvps key new FILE"
_MAX_FILE: Final = 256  # bytes; a text key with its line end has 57


class KeySourceError(Exception):
    """A key cannot be used. The message says why and what to do, and never contains key material."""


class SecretKey:
    """A configured key. Its bytes appear in no repr, cannot be pickled and leave only as derived keys."""

    __slots__ = ("_raw", "key_id")

    def __init__(self, raw: bytes) -> None:
        if len(raw) != KEY_BYTES:
            raise KeySourceError(f"a key has {KEY_BYTES} bytes, not {len(raw)}; {_HOW_TO_MAKE}")
        if len(set(raw)) < 8:
            # 32 random bytes have fewer than 8 distinct values with probability below 1e-40.
            raise KeySourceError(f"this key is a placeholder, not random bytes; {_HOW_TO_MAKE}")
        self._raw = raw
        self.key_id: Final[bytes] = _hkdf(raw, bytes(32), b"mvps/v1/key-id", 8)

    def derive(self, purpose: str, vantage_id: str, epoch_id: int = STATIC_EPOCH, operator_id: str = "") -> bytes:
        """Key of one purpose, vantage and epoch: 32 bytes (module docstring)."""
        operator = operator_id.encode()
        salt = hashlib.sha256(struct.pack(">H", len(operator)) + operator + struct.pack(">Q", epoch_id)).digest()
        info = b"mvps/v1/cwt/" + purpose.encode() + b"\0" + vantage_id.encode()
        return _hkdf(self._raw, salt, info, KEY_BYTES)

    def __repr__(self) -> str:
        return f"SecretKey(id={self.key_id.hex()})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a SecretKey is not serialised")


def _hkdf(ikm: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    return HKDF(algorithm=SHA256(), length=length, salt=salt, info=info).derive(ikm)


class ObjectHasher:
    """Keyed 64-bit hash of a touched object, so that addresses never leave the host in the clear (ours).

    BLAKE2b keyed with the vantage's "objects" key: the same object has the same hash on every tick of one
    host and epoch, and nobody without the key can test a guess.
    """

    __slots__ = ("_state",)

    def __init__(self, key: SecretKey, vantage_id: str) -> None:
        self._state = hashlib.blake2b(key=key.derive("objects", vantage_id), digest_size=8)

    def __call__(self, object_key: int) -> int:
        """Hash of a 64-bit object key of the coherence layer."""
        state = self._state.copy()
        state.update((object_key & 0xFFFF_FFFF_FFFF_FFFF).to_bytes(8, "big"))
        return int.from_bytes(state.digest(), "big")


def load_key(source: str) -> SecretKey:
    """Read the key that a configuration names.

    source: a path, or ``credential:NAME`` for a systemd credential (LoadCredential=NAME:/path).
    Raises KeySourceError for anything that is not a private, regular file with one key in it.
    """
    if source.startswith(CREDENTIAL_PREFIX):
        name = source.removeprefix(CREDENTIAL_PREFIX)
        directory = os.environ.get("CREDENTIALS_DIRECTORY")
        if not name or "/" in name or name in {".", ".."}:
            raise KeySourceError(f"{source!r} names no credential: write credential:NAME, without a path")
        if not directory:
            raise KeySourceError(
                f"{source!r} needs a systemd unit with LoadCredential={name}:/etc/mvps/{name}; "
                "outside a unit give the path of the key file instead"
            )
        return _parse(_read_private(Path(directory) / name, credential=True), directory + "/" + name)
    path = Path(source)
    return _parse(_read_private(path, credential=_in_credentials_directory(path)), source)


def _in_credentials_directory(path: Path) -> bool:
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    return bool(directory) and path.resolve().is_relative_to(Path(str(directory)).resolve())


def _read_private(path: Path, *, credential: bool) -> bytes:
    # O_NONBLOCK: opening a FIFO must not hang the start. All checks are on the open descriptor, so the file
    # that was checked is the file that is read, also behind a symbolic link.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except FileNotFoundError:
        raise KeySourceError(f"no key at {path}; {_HOW_TO_MAKE}") from None
    except PermissionError:
        raise KeySourceError(
            f"{path} is not readable for uid {os.geteuid()}: chown it to the user that runs this process"
        ) from None
    except (OSError, ValueError) as error:
        raise KeySourceError(f"cannot open the key {path}: {error}") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise KeySourceError(f"{path} is not a regular file: put the key into a file of its own")
        # systemd guards its credentials directory itself and may give files in it a group bit for an ACL.
        if not credential:
            if status.st_mode & 0o077:
                mode = stat.S_IMODE(status.st_mode)
                raise KeySourceError(
                    f"{path} has mode {mode:04o}, so others on this host can use the key: chmod 600 {path}; "
                    "if they may have read it, replace it"
                )
            if status.st_uid not in {0, os.geteuid()}:
                raise KeySourceError(f"{path} belongs to uid {status.st_uid}, who can change the key: chown it to root")
        if status.st_size > _MAX_FILE:
            raise KeySourceError(f"{path} has {status.st_size} bytes; a key file has {KEY_BYTES} or one text line")
        return os.read(descriptor, _MAX_FILE + 1)
    except OSError as error:
        raise KeySourceError(f"cannot read the key {path}: {error.strerror}") from None
    finally:
        os.close(descriptor)


def _parse(content: bytes, where: str) -> SecretKey:
    if len(content) == KEY_BYTES:
        raw = content
    else:
        line = content.strip()
        if not line.startswith(_TEXT_PREFIX):
            raise KeySourceError(
                f"{where} holds no key: {len(content)} bytes that are neither {KEY_BYTES} raw bytes nor "
                f"a line {_TEXT_PREFIX.decode()}<base64>; {_HOW_TO_MAKE}"
            )
        try:
            raw = base64.b64decode(line.removeprefix(_TEXT_PREFIX), validate=True)
        except binascii.Error:
            raise KeySourceError(f"{where} is damaged: what follows {_TEXT_PREFIX.decode()} is not base64") from None
    try:
        return SecretKey(raw)
    except KeySourceError as error:
        raise KeySourceError(f"{where}: {error}") from None


def generate_key(path: Path) -> SecretKey:
    """Write a new random key to ``path``, readable for its owner only, and return it.

    Never overwrites: an existing file is a KeySourceError. The file is on disk when this returns.
    """
    raw = secrets.token_bytes(KEY_BYTES)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        raise KeySourceError(f"{path} exists and is kept: move it away first if it should be replaced") from None
    except OSError as error:
        raise KeySourceError(f"cannot create the key {path}: {error.strerror}") from None
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(file.fileno(), 0o600)  # whatever the umask was
        file.write(_TEXT_PREFIX + base64.b64encode(raw) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    return SecretKey(raw)
