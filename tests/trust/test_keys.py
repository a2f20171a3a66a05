# SPDX-License-Identifier: Apache-2.0
import copy
import hashlib
import os
import pickle
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from mvps.trust.keys import KeySourceError, ObjectHasher, SecretKey, generate_key, load_key

RAW = bytes(range(32))


def write(path: Path, content: bytes, mode: int = 0o600) -> str:
    path.write_bytes(content)
    path.chmod(mode)
    return str(path)


def test_generated_key_is_private_and_loads_again(tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        key = generate_key(tmp_path / "key")
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert load_key(str(tmp_path / "key")).key_id == key.key_id
    with pytest.raises(KeySourceError, match="is kept"):
        generate_key(tmp_path / "key")
    assert load_key(str(tmp_path / "key")).key_id == key.key_id


def test_raw_and_text_forms_are_the_same_key(tmp_path: Path) -> None:
    raw = load_key(write(tmp_path / "raw", RAW))
    text = load_key(write(tmp_path / "text", b"mvps-key-v1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n"))
    assert raw.derive("snapshot", "host") == text.derive("snapshot", "host")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666, 0o610])
def test_key_that_others_can_use_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(KeySourceError, match="chmod 600 "):
        load_key(write(tmp_path / "key", RAW, mode))


def test_symbolic_link_to_an_exposed_key_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "exposed", RAW, 0o644)
    (tmp_path / "link").symlink_to(tmp_path / "exposed")
    with pytest.raises(KeySourceError, match="mode 0644"):
        load_key(str(tmp_path / "link"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "neither 32 raw bytes"),
        (RAW[:31], "neither 32 raw bytes"),
        (RAW + b"x", "neither 32 raw bytes"),
        (b"mvps-key-v1:AAEC\n", "32 bytes, not 3"),
        (b"mvps-key-v1:***\n", "not base64"),
        (bytes(32), "placeholder"),
        (b"x" * 5000, "5000 bytes"),
    ],
)
def test_content_that_is_no_key_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    with pytest.raises(KeySourceError, match=said) as caught:
        load_key(write(tmp_path / "key", content))
    assert str(tmp_path / "key") in str(caught.value)


def test_missing_directory_and_fifo_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    with pytest.raises(KeySourceError, match="make one with"):
        load_key(str(tmp_path / "absent"))
    for name in ("fifo", "."):
        with pytest.raises(KeySourceError, match="regular file"):
            load_key(str(tmp_path / name))


@pytest.mark.skipif(os.geteuid() != 0, reason="changes a file's owner")
def test_key_of_another_user_is_refused(tmp_path: Path) -> None:
    os.chown(write(tmp_path / "key", RAW), 65534, 65534)
    with pytest.raises(KeySourceError, match="belongs to uid 65534"):
        load_key(str(tmp_path / "key"))


def test_systemd_credential(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeySourceError, match="LoadCredential"):
        load_key("credential:mvps")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    write(tmp_path / "mvps", RAW, 0o440)  # systemd's mode with an ACL
    assert load_key("credential:mvps").key_id == load_key(str(tmp_path / "mvps")).key_id
    for name in ("", "..", "../etc/shadow"):
        with pytest.raises(KeySourceError, match="names no credential"):
            load_key(f"credential:{name}")


def test_key_never_shows(tmp_path: Path) -> None:
    key = SecretKey(RAW)
    for shown in (repr(key), str(key), f"{key!r}", "%s" % key):  # noqa: UP031
        assert RAW.hex() not in shown
        assert "\\x01\\x02" not in shown
    for leak in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError):
            leak(key)


def test_derivation_is_the_documented_one() -> None:
    # Independent construction from the module's docstring.
    salt = hashlib.sha256(b"\x00\x03ops" + (5).to_bytes(8, "big")).digest()
    info = b"mvps/v1/cwt/control\x00host-1"
    expected = HKDF(algorithm=SHA256(), length=32, salt=salt, info=info).derive(RAW)
    assert SecretKey(RAW).derive("control", "host-1", 5, "ops") == expected


def test_every_input_of_the_derivation_matters() -> None:
    key = SecretKey(RAW)
    derived = {
        key.derive("snapshot", "a"),
        key.derive("control", "a"),
        key.derive("snapshot", "b"),
        key.derive("snapshot", "a", 1),
        key.derive("snapshot", "a", 0, "ops"),
        SecretKey(RAW[::-1]).derive("snapshot", "a"),
    }
    assert len(derived) == 6
    assert RAW not in derived


def test_object_hashes_are_stable_and_keyed() -> None:
    hasher = ObjectHasher(SecretKey(RAW), "host")
    assert hasher(7) == ObjectHasher(SecretKey(RAW), "host")(7)
    assert hasher(7) != hasher(8)
    assert hasher(7) != ObjectHasher(SecretKey(RAW[::-1]), "host")(7)
    assert 0 <= hasher(2**64 - 1) < 2**64
