# SPDX-License-Identifier: Apache-2.0
"""TLS between agent and broker, from files that may be replaced at any time.

TLS hides what travels and keeps strangers from the port; seals alone decide what counts, with TLS or without. The
files are PEM as any certificate authority writes them. A client reads them at every connect; a server looks at every
handshake whether they changed, so that a new certificate takes effect without a restart and open streams go on.

A file that is bad is said with what is wrong about it. At the start that is an error; later the server goes on with
what it has, and says so in ``error``.
"""

from __future__ import annotations

import datetime
import os
import stat
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import serialization

MAX_FILE_BYTES: Final = 1 << 20

_Version: TypeAlias = tuple[tuple[int, int, int], ...]


class TlsError(ValueError):
    """A certificate or key cannot be used. The message says which, why and what to do."""


class _Pair(NamedTuple):
    key: bytes
    chain: bytes


class ClientTls:
    """What an agent or a command shows and asks for when it connects.

    ca: certificates of who may vouch for the server. cert, key: the client's own chain and private key, or neither.
    """

    def __init__(self, ca: Path, cert: Path | None = None, key: Path | None = None) -> None:
        self._ca = ca
        self._own = (cert, key)

    def credentials(self) -> grpc.ChannelCredentials:
        """Credentials from the files as they are now. TlsError."""
        cert, key = self._own
        pair = _pair(cert, key) if cert is not None and key is not None else None
        return grpc.ssl_channel_credentials(
            root_certificates=_authorities(self._ca),
            private_key=pair.key if pair else None,
            certificate_chain=pair.chain if pair else None,
        )


class ServerTls:
    """A broker's certificate, and who may vouch for its clients. TlsError if it cannot be used to begin with.

    client_ca: only clients with a certificate from one of these get in; None lets everybody in.
    ``error``: why files that changed are not in use; "" if they are.
    """

    def __init__(self, cert: Path, key: Path, client_ca: Path | None = None) -> None:
        self._cert = cert
        self._key = key
        self._client_ca = client_ca
        self._version = self._look()
        self._first = self._configuration()
        self.error = ""

    def credentials(self) -> grpc.ServerCredentials:
        """Credentials that follow the files."""
        return grpc.dynamic_ssl_server_credentials(
            self._first,
            self._changed,  # type: ignore[arg-type]  # the stubs forget that None means no change
            require_client_authentication=self._client_ca is not None,
        )

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        """At each handshake: a new configuration, or None to keep the present one."""
        version = self._look()
        if version == self._version:
            return None
        # Also when they turn out to be bad: the next handshake need not read them again.
        self._version = version
        try:
            configuration = self._configuration()
        except TlsError as error:
            self.error = str(error)
            return None
        self.error = ""
        return configuration

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        pair = _pair(self._cert, self._key)
        authorities = _authorities(self._client_ca) if self._client_ca is not None else None
        return grpc.ssl_server_certificate_configuration([pair], root_certificates=authorities)

    def _look(self) -> _Version:
        version: list[tuple[int, int, int]] = []
        for path in (self._cert, self._key, self._client_ca):
            try:
                status = os.stat(path) if path is not None else None
            except OSError:
                status = None
            version.append((status.st_ino, status.st_size, status.st_mtime_ns) if status else (0, 0, 0))
        return tuple(version)


def _authorities(path: Path) -> bytes:
    """The certificates in ``path``, all of which parse, and at least one of which is in force."""
    content = _read(path, private=False)
    certificates = _certificates(path, content)
    problems = [problem for certificate in certificates if (problem := _out_of_force(certificate))]
    if len(problems) == len(certificates):
        raise TlsError(f"{path}: the authority's certificate {problems[0]}")
    return content


def _pair(cert: Path, key: Path) -> _Pair:
    """A certificate chain and the private key of its first certificate."""
    chain = _read(cert, private=False)
    first = _certificates(cert, chain)[0]
    if problem := _out_of_force(first):
        raise TlsError(f"{cert}: the certificate {problem}")
    secret = _read(key, private=True)
    try:
        held = serialization.load_pem_private_key(secret, password=None)
    except TypeError:
        raise TlsError(f"{key} is encrypted: no passphrase can be given here, use one without") from None
    except ValueError:
        raise TlsError(f"{key} holds no private key in PEM") from None
    encoding, form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    if held.public_key().public_bytes(encoding, form) != first.public_key().public_bytes(encoding, form):
        raise TlsError(f"{key} is not the key of the first certificate in {cert}: replace both, the key first")
    return _Pair(secret, chain)


def _certificates(path: Path, content: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(content)
    except ValueError:
        raise TlsError(f"{path} holds no certificate in PEM") from None


def _out_of_force(certificate: x509.Certificate) -> str:
    """Why a certificate does not count now; "" if it does."""
    now = datetime.datetime.now(datetime.UTC)
    if now >= certificate.not_valid_after_utc:
        return f"expired {certificate.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}: issue a new one"
    if now < certificate.not_valid_before_utc:
        return f"begins {certificate.not_valid_before_utc:%Y-%m-%dT%H:%M:%SZ}: is this host's clock right?"
    return ""


def _read(path: Path, *, private: bool) -> bytes:
    try:
        # Opened before it is looked at, so that what is looked at is what is read; a FIFO must not hang it.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE_BYTES:
                raise TlsError(f"{path} is not a regular file of at most {MAX_FILE_BYTES} bytes")
            if private and status.st_mode & 0o077:
                raise TlsError(f"{path} can be read by others (mode {status.st_mode & 0o777:04o}): chmod 600 {path}")
            return os.read(descriptor, MAX_FILE_BYTES + 1)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise TlsError(f"cannot read {path}: {error.strerror}") from None
