# SPDX-License-Identifier: Apache-2.0
"""Identities: a 32-byte seed that stays where it was made, and the two public keys that others know it by.

Both private keys of an identity come from its seed, and the seed is used for nothing else (HKDF-SHA256, RFC 5869,
salt of 32 zero bytes; the infos are ours)::

    X25519 private key  = HKDF(seed, "mvps/v1/x25519", 32)             key agreement, RFC 7748
    Ed25519 private key = HKDF(seed, "mvps/v1/ed25519", 32)            signatures, RFC 8032
    local secret        = HKDF(seed, "mvps/v1/local/<purpose>", 32)    shared with nobody

A key has a kind, and one kind is never taken for another. As text (ours), one line each::

    mvps-secret-v1:<kind>:<base64 of the seed>                                      file of mode 0600
    mvps-public-v1:<kind>:<base64 of X25519 public key || Ed25519 public key>       not a secret

    key id = first 8 bytes of SHA-256(kind || 0x00 || X25519 public key || Ed25519 public key)

After a rotation the earlier key stays in ``<file>.old``, because the epoch in force still names it.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import os
import secrets
import stat
from enum import StrEnum
from pathlib import Path
from typing import Final, NamedTuple, NoReturn

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_BYTES: Final = 32
CREDENTIAL_PREFIX: Final = "credential:"
SECRET_PREFIX: Final = "mvps-secret-v1"
PUBLIC_PREFIX: Final = "mvps-public-v1"
OLD_SUFFIX: Final = ".old"
# What our units hand over in place of a key file that is not there (SetCredential=).
ABSENT: Final = b"absent"
_MAX_FILE: Final = 256  # bytes; a secret key with its line end has at most 69, a public one 113
_FIELD: Final = 2**255 - 19
# Points of order 1, 2, 4 and 8 as Ed25519 y coordinates: a signature under such a key holds for any message.
_ORDER_8_Y: Final = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
_SMALL_ORDER_Y: Final = frozenset({0, 1, _FIELD - 1, _ORDER_8_Y, _FIELD - _ORDER_8_Y})
# The same points as X25519 u coordinates, u = (1 + y) / (1 - y): the shared secret with such a key is zero.
_SMALL_ORDER_U: Final = frozenset(
    {(1 + y) * pow(1 - y, _FIELD - 2, _FIELD) % _FIELD for y in _SMALL_ORDER_Y} | {_FIELD - 1}
)


class KeySourceError(Exception):
    """A key cannot be used. The message says why and what to do, and never contains key material."""


class Kind(StrEnum):
    """Whose key it is."""

    HOST = "host"
    BROKER = "broker"
    OPERATOR = "operator"
    WITNESS = "witness"


class PublicKey(NamedTuple):
    """What others know of an identity. :func:`parse_public` checks both points; this constructor does not."""

    kind: Kind
    x25519: bytes
    ed25519: bytes

    @property
    def text(self) -> str:
        """The key as it is handed around."""
        return f"{PUBLIC_PREFIX}:{self.kind}:{base64.b64encode(self.x25519 + self.ed25519).decode()}"

    @property
    def key_id(self) -> bytes:
        """8 bytes that name the key in seals and manifests."""
        return self._digest()[:8]

    @property
    def fingerprint(self) -> str:
        """160 bits of the digest whose start is the key id, for two people to compare."""
        letters = base64.b32encode(self._digest()[:20]).decode().lower()
        return f"{self.kind} " + "-".join(letters[i : i + 4] for i in range(0, 32, 4))

    def holds(self, message: bytes, signature: bytes) -> bool:
        """Whether ``signature`` is this key's Ed25519 signature of ``message``."""
        return _holds(Ed25519PublicKey.from_public_bytes(self.ed25519), message, signature)

    def _digest(self) -> bytes:
        return hashlib.sha256(self.kind.encode() + b"\0" + self.x25519 + self.ed25519).digest()


class SecretKey:
    """An identity. Its seed appears in no repr, cannot be pickled and leaves only as derived keys."""

    __slots__ = ("_agreement", "_seed", "_signature", "public")

    def __init__(self, seed: bytes, kind: Kind) -> None:
        if len(seed) != KEY_BYTES:
            raise KeySourceError(f"a key has {KEY_BYTES} bytes, not {len(seed)}; {_how_to_make(kind)}")
        if len(set(seed)) < 8:
            # 32 random bytes have fewer than 8 distinct values with probability below 1e-40.
            raise KeySourceError(f"this key is a placeholder, not random bytes; {_how_to_make(kind)}")
        self._seed = seed
        self._agreement = X25519PrivateKey.from_private_bytes(hkdf(seed, bytes(32), b"mvps/v1/x25519", KEY_BYTES))
        self._signature = Ed25519PrivateKey.from_private_bytes(hkdf(seed, bytes(32), b"mvps/v1/ed25519", KEY_BYTES))
        self.public: Final = PublicKey(
            kind, self._agreement.public_key().public_bytes_raw(), self._signature.public_key().public_bytes_raw()
        )

    @property
    def kind(self) -> Kind:
        """Whose key it is."""
        return self.public.kind

    def sign(self, message: bytes) -> bytes:
        """Ed25519 signature of ``message``, 64 bytes."""
        return self._signature.sign(message)

    def exchange(self, peer: PublicKey) -> bytes:
        """X25519 shared secret of a host and a broker, 32 bytes. ValueError for any other pair."""
        if {self.kind, peer.kind} != {Kind.HOST, Kind.BROKER}:
            raise ValueError(f"a {self.kind} key and a {peer.kind} key share no secret: only host and broker do")
        return _agree(self._agreement, peer.x25519)

    def derive(self, purpose: str) -> bytes:
        """A secret of this identity alone, 32 bytes, e.g. for ``"objects"``."""
        return hkdf(self._seed, bytes(32), b"mvps/v1/local/" + purpose.encode(), KEY_BYTES)

    def __repr__(self) -> str:
        return f"SecretKey({self.kind}, id={self.public.key_id.hex()})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a SecretKey is not serialised")


class ObjectHasher:
    """Keyed 64-bit hash of a touched object, so that addresses never leave the host in the clear (ours).

    BLAKE2b keyed with the host's "objects" secret: the same object has the same hash on every tick of one host
    until its key is rotated, and nobody without the key, the broker included, can test a guess.
    """

    __slots__ = ("_state",)

    def __init__(self, key: SecretKey) -> None:
        self._state = hashlib.blake2b(key=key.derive("objects"), digest_size=8)

    def __call__(self, object_key: int) -> int:
        """Hash of a 64-bit object key of the coherence layer."""
        state = self._state.copy()
        state.update((object_key & 0xFFFF_FFFF_FFFF_FFFF).to_bytes(8, "big"))
        return int.from_bytes(state.digest(), "big")


def hkdf(ikm: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    """HKDF-SHA256 (RFC 5869)."""
    return HKDF(algorithm=SHA256(), length=length, salt=salt, info=info).derive(ikm)


def _agree(private: X25519PrivateKey, peer: bytes) -> bytes:
    return private.exchange(X25519PublicKey.from_public_bytes(peer))  # ValueError where the result is zero


def _holds(key: Ed25519PublicKey, message: bytes, signature: bytes) -> bool:
    try:
        key.verify(signature, message)
    except InvalidSignature:
        return False
    return True


def parse_public(text: str, kind: Kind | None = None) -> PublicKey:
    """Read a key as :attr:`PublicKey.text` writes it; of ``kind``, where one is asked for.

    Raises KeySourceError, also for points of small order, whose holder vouches for nothing.
    """
    prefix, _, rest = text.partition(":")
    name, _, encoded = rest.partition(":")
    if prefix == SECRET_PREFIX:
        raise KeySourceError("this is a secret key, and nobody but its owner may have it: use mvps key show FILE")
    if prefix != PUBLIC_PREFIX or name not in set(Kind):
        raise KeySourceError(f"this is no public key: it has the form {PUBLIC_PREFIX}:<kind>:<base64>")
    if kind is not None and name != kind:
        raise KeySourceError(f"this is a {name} key, and a {kind} key is needed here")
    try:
        raw = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != 2 * KEY_BYTES or base64.b64encode(raw).decode() != encoded:
        raise KeySourceError(f"this {name} key is damaged: {2 * KEY_BYTES} bytes in base64 are needed")
    x25519, ed25519 = raw[:KEY_BYTES], raw[KEY_BYTES:]
    u = int.from_bytes(x25519, "little")
    # Only the canonical encoding, so that a key has one name.
    if u >= _FIELD or u in _SMALL_ORDER_U or not may_vouch(ed25519):
        raise KeySourceError(f"this {name} key is no key that anybody can hold: ask its owner for another")
    return PublicKey(Kind(name), x25519, ed25519)


def may_vouch(ed25519: bytes) -> bool:
    """Whether an Ed25519 public key has its one canonical encoding and is not of small order."""
    y = int.from_bytes(ed25519, "little") & (1 << 255) - 1
    return y < _FIELD and y not in _SMALL_ORDER_Y


def load_public(source: str, kind: Kind | None = None) -> PublicKey:
    """A public key that a configuration names: its text, or a file with that text in it."""
    if source.startswith((PUBLIC_PREFIX + ":", SECRET_PREFIX + ":")):
        return parse_public(source, kind)
    try:
        with open(source, "rb") as file:
            content = file.read(_MAX_FILE + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise KeySourceError(
            f"cannot read the public key {source}: {reason}; give the text or a file with it (mvps key show)"
        ) from None
    try:
        return parse_public(content.decode("ascii", "replace").strip(), kind)
    except KeySourceError as error:
        raise KeySourceError(f"{source}: {error}") from None


def load_key(source: str, kind: Kind | None = None) -> SecretKey:
    """Read the key that a configuration names; of ``kind``, where one is asked for.

    source: a path, or ``credential:NAME`` for a systemd credential (LoadCredential=NAME:/path).
    Raises KeySourceError for anything that is not a private, regular file with one such key in it.
    """
    path, credential = _resolve(source)
    content = _read_private(path, kind, credential=credential)
    if credential and content == ABSENT:
        raise KeySourceError(
            f"{source}: no key lies where this unit's LoadCredential says; {_how_to_make(kind)} and restart it"
        )
    return _parse(content, str(path), kind)


def load_keys(source: str, kind: Kind) -> list[SecretKey]:
    """The key that a configuration names and, after a rotation, the one before it: newest first."""
    path, credential = _resolve(source)
    keys = [load_key(source, kind)]
    old = _old(path)
    if old.exists():
        content = _read_private(old, kind, credential=credential)
        if not (credential and content == ABSENT):
            keys.append(_parse(content, str(old), kind))
    return keys


def generate_key(path: Path, kind: Kind) -> SecretKey:
    """Write a new random key to ``path``, readable for its owner only, and return it.

    Never overwrites: an existing file is a KeySourceError. The file is on disk when this returns.
    """
    seed = secrets.token_bytes(KEY_BYTES)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        raise KeySourceError(f"{path} exists and is kept: move it away first if it should be replaced") from None
    except OSError as error:
        raise KeySourceError(f"cannot create the key {path}: {error.strerror}") from None
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(file.fileno(), 0o600)  # whatever the umask was
        file.write(f"{SECRET_PREFIX}:{kind}:".encode() + base64.b64encode(seed) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    _sync_directory(path)
    return SecretKey(seed, kind)


def rotate_key(path: Path) -> tuple[SecretKey, SecretKey]:
    """Put a new key of the same kind at ``path`` and keep the present one in ``<path>.old``: (old, new).

    ``path`` holds a whole key at every moment. Never overwrites an ``.old`` that is still there.
    """
    old = load_key(str(path))
    if old.kind is Kind.OPERATOR:
        raise KeySourceError(
            f"{path} is the operator's key, which every host and broker is configured with: make a second one with "
            "mvps key generate, and configure it everywhere"
        )
    if path.is_symlink():
        raise KeySourceError(f"{path} is a symbolic link: give the file itself, here and in the configuration")
    kept, fresh = _old(path), path.with_name(path.name + ".new")
    owner = path.stat()
    try:
        # The same file under two names: a rotation that was cut off before its last step, taken up again.
        if not (kept.exists() and kept.samefile(path)):
            os.link(path, kept)
    except FileExistsError:
        raise KeySourceError(
            f"{kept} is still there: remove it once an epoch that names the present key is in force everywhere"
        ) from None
    except OSError as error:
        raise KeySourceError(f"cannot keep the old key as {kept}: {error.strerror}") from None
    with contextlib.suppress(FileNotFoundError):
        fresh.unlink()
    new = generate_key(fresh, old.kind)
    try:
        os.chown(fresh, owner.st_uid, owner.st_gid)
        fresh.replace(path)
    except OSError as error:
        raise KeySourceError(f"cannot replace {path}: {error.strerror}; it still holds the old key") from None
    _sync_directory(path)
    return old, new


def _how_to_make(kind: Kind | None) -> str:
    return f"make one with: mvps key generate {kind or 'KIND'} FILE"


def _old(path: Path) -> Path:
    return path.with_name(path.name + OLD_SUFFIX)


def _sync_directory(path: Path) -> None:
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _resolve(source: str) -> tuple[Path, bool]:
    """Path of a key, and whether systemd guards it."""
    if source.startswith(SECRET_PREFIX):
        raise KeySourceError(
            "a secret key stands where its file is needed, and others may have seen it there: "
            "make another one, and give the name of its file"
        )
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    if not source.startswith(CREDENTIAL_PREFIX):
        path = Path(source)
        guarded = bool(directory) and path.resolve().is_relative_to(Path(str(directory)).resolve())
        return path, guarded
    name = source.removeprefix(CREDENTIAL_PREFIX)
    if not name or "/" in name or name in {".", ".."}:
        raise KeySourceError(f"{source!r} names no credential: write credential:NAME, without a path")
    if not directory:
        raise KeySourceError(
            f"{source!r} needs a systemd unit with LoadCredential={name}:/etc/mvps/{name}; "
            "outside a unit give the path of the key file instead"
        )
    return Path(directory) / name, True


def _read_private(path: Path, kind: Kind | None, *, credential: bool) -> bytes:
    # O_NONBLOCK: opening a FIFO must not hang the start. All checks are on the open descriptor, so the file
    # that was checked is the file that is read, also behind a symbolic link.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except FileNotFoundError:
        raise KeySourceError(f"no key at {path}; {_how_to_make(kind)}") from None
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
            raise KeySourceError(f"{path} has {status.st_size} bytes; a key file has one short line")
        return os.read(descriptor, _MAX_FILE + 1)
    except OSError as error:
        raise KeySourceError(f"cannot read the key {path}: {error.strerror}") from None
    finally:
        os.close(descriptor)


def _parse(content: bytes, where: str, kind: Kind | None) -> SecretKey:
    prefix, _, rest = content.strip().partition(b":")
    found, _, encoded = rest.partition(b":")
    if prefix == PUBLIC_PREFIX.encode():
        raise KeySourceError(f"{where} holds a public key, and the secret one is needed here: give the file it is in")
    if prefix != SECRET_PREFIX.encode() or found.decode("ascii", "replace") not in set(Kind):
        raise KeySourceError(
            f"{where} holds no key: {len(content)} bytes that are no line {SECRET_PREFIX}:<kind>:<base64>; "
            f"{_how_to_make(kind)}"
        )
    name = Kind(found.decode())
    if kind is not None and name is not kind:
        raise KeySourceError(f"{where} holds a {name} key, and a {kind} key is needed here; {_how_to_make(kind)}")
    try:
        seed = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise KeySourceError(f"{where} is damaged: what follows {SECRET_PREFIX}:{name}: is not base64") from None
    try:
        return SecretKey(seed, name)
    except KeySourceError as error:
        raise KeySourceError(f"{where}: {error}") from None
