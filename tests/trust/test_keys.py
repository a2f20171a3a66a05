# SPDX-License-Identifier: Apache-2.0
import base64
import copy
import hashlib
import os
import pickle
import stat
from itertools import product
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from mvps.trust import keys
from mvps.trust.keys import (
    ABSENT,
    KeySourceError,
    Kind,
    ObjectHasher,
    PublicKey,
    SecretKey,
    generate_key,
    hkdf,
    load_key,
    load_keys,
    load_public,
    parse_public,
    rotate_key,
)

SEED = bytes(range(32))
TEXT = b"mvps-secret-v1:host:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n"


def write(path: Path, content: bytes, mode: int = 0o600) -> str:
    path.write_bytes(content)
    path.chmod(mode)
    return str(path)


# ---- published vectors, through the functions in use


def test_rfc_5869_case_1() -> None:
    okm = hkdf(bytes([0x0B] * 22), bytes(range(13)), bytes(range(0xF0, 0xFA)), 42)
    assert okm.hex() == "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"


def test_rfc_7748_section_6_1() -> None:
    alice = bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
    bob = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
    alice_public = bytes.fromhex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
    bob_public = bytes.fromhex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")
    shared = bytes.fromhex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")
    assert keys._agree(X25519PrivateKey.from_private_bytes(alice), bob_public) == shared
    assert keys._agree(X25519PrivateKey.from_private_bytes(bob), alice_public) == shared


@pytest.mark.parametrize(
    ("seed", "public", "message", "signature"),
    [  # RFC 8032 section 7.1, tests 2 and 3
        (
            "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
            "72",
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
            "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
        ),
        (
            "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
            "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
            "af82",
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
            "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
        ),
    ],
)
def test_rfc_8032_section_7_1(seed: str, public: str, message: str, signature: str) -> None:
    key = SecretKey(SEED, Kind.HOST)
    key._signature = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(seed))
    assert key.sign(bytes.fromhex(message)).hex() == signature
    known = PublicKey(Kind.HOST, bytes(32), bytes.fromhex(public))
    assert known.holds(bytes.fromhex(message), bytes.fromhex(signature))
    assert not known.holds(bytes.fromhex(message) + b"x", bytes.fromhex(signature))


# ---- derivation


def test_both_private_keys_come_from_the_seed_as_documented() -> None:
    x25519 = X25519PrivateKey.from_private_bytes(hkdf(SEED, bytes(32), b"mvps/v1/x25519", 32))
    ed25519 = Ed25519PrivateKey.from_private_bytes(hkdf(SEED, bytes(32), b"mvps/v1/ed25519", 32))
    public = SecretKey(SEED, Kind.BROKER).public
    assert public.x25519 == x25519.public_key().public_bytes_raw()
    assert public.ed25519 == ed25519.public_key().public_bytes_raw()
    assert public.key_id == hashlib.sha256(b"broker\0" + public.x25519 + public.ed25519).digest()[:8]


def test_host_and_broker_share_a_secret_and_nobody_else_does() -> None:
    host, other, broker = (SecretKey(os.urandom(32), kind) for kind in (Kind.HOST, Kind.HOST, Kind.BROKER))
    assert host.exchange(broker.public) == broker.exchange(host.public) != broker.exchange(other.public)


@pytest.mark.parametrize(("mine", "theirs"), [p for p in product(Kind, Kind) if set(p) != {Kind.HOST, Kind.BROKER}])
def test_other_kinds_share_no_secret(mine: Kind, theirs: Kind) -> None:
    with pytest.raises(ValueError, match="only host and broker"):
        SecretKey(os.urandom(32), mine).exchange(SecretKey(os.urandom(32), theirs).public)


def test_local_secrets_differ_by_purpose_and_key() -> None:
    key = SecretKey(SEED, Kind.HOST)
    assert (
        len({SEED, key.derive("objects"), key.derive("else"), SecretKey(SEED[::-1], Kind.HOST).derive("objects")}) == 4
    )
    assert key.derive("objects") == hkdf(SEED, bytes(32), b"mvps/v1/local/objects", 32)


def test_object_hashes_are_stable_and_keyed() -> None:
    hasher = ObjectHasher(SecretKey(SEED, Kind.HOST))
    assert hasher(7) == ObjectHasher(SecretKey(SEED, Kind.HOST))(7)
    assert hasher(7) != hasher(8)
    assert hasher(7) != ObjectHasher(SecretKey(SEED[::-1], Kind.HOST))(7)
    assert 0 <= hasher(2**64 - 1) < 2**64


def test_key_never_shows() -> None:
    key = SecretKey(SEED, Kind.HOST)
    for shown in (repr(key), str(key), f"{key!r}", "%s" % key):  # noqa: UP031
        assert SEED.hex() not in shown
        assert "\\x01\\x02" not in shown
    for leak in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError):
            leak(key)


# ---- public keys


@pytest.mark.parametrize("kind", Kind)
def test_public_text_round_trips_and_keeps_its_kind(kind: Kind) -> None:
    public = SecretKey(SEED, kind).public
    assert parse_public(public.text) == parse_public(public.text, kind) == public
    other = next(k for k in Kind if k is not kind)
    with pytest.raises(KeySourceError, match=f"a {kind} key, and a {other} key is needed"):
        parse_public(public.text, other)
    assert len({SecretKey(SEED, k).public.key_id for k in Kind}) == len(Kind)


def test_fingerprint_starts_where_the_key_id_does() -> None:
    public = SecretKey(SEED, Kind.HOST).public
    kind, _, letters = public.fingerprint.partition(" ")
    assert kind == "host"
    assert len(letters.replace("-", "")) == 32
    assert base64.b32decode(letters.replace("-", "").upper())[:8] == public.key_id


@pytest.mark.parametrize(
    "change",
    [
        lambda t: "",
        lambda t: t[:-4],
        lambda t: t + "AAAA",
        lambda t: t.replace("host", "guest"),
        lambda t: t.replace("v1", "v2"),
        lambda t: t[:-3] + "é==",
        lambda t: t.replace("==", "=="[:1]),
        lambda t: t[:-3] + chr(ord(t[-3]) + 1) + "==",  # padding bits set
    ],
)
def test_text_that_is_no_public_key(change: object) -> None:
    text = SecretKey(SEED, Kind.HOST).public.text
    assert callable(change)
    assert change(text) != text
    with pytest.raises(KeySourceError):
        parse_public(change(text))


def _with_points(x25519: int, ed25519: int) -> str:
    raw = x25519.to_bytes(32, "little") + ed25519.to_bytes(32, "little")
    return PublicKey(Kind.HOST, raw[:32], raw[32:]).text


def _good_points() -> tuple[int, int]:
    public = SecretKey(SEED, Kind.HOST).public
    return int.from_bytes(public.x25519, "little"), int.from_bytes(public.ed25519, "little")


def test_points_that_share_no_secret_are_exactly_those_refused() -> None:
    private = X25519PrivateKey.generate()
    _, y = _good_points()
    for u in keys._SMALL_ORDER_U:
        with pytest.raises(ValueError):  # noqa: PT011 - the library's own refusal is the oracle
            keys._agree(private, u.to_bytes(32, "little"))
        with pytest.raises(KeySourceError, match="anybody can hold"):
            parse_public(_with_points(u, y))
    assert len(keys._SMALL_ORDER_U) == 5


def test_a_signature_key_of_small_order_is_refused_since_it_vouches_for_anything() -> None:
    # The identity: the equation [S]B = R + [k]A holds for S = 0, R = A = identity whatever was signed.
    identity = (1).to_bytes(32, "little")
    Ed25519PublicKey.from_public_bytes(identity).verify(identity + bytes(32), b"anything")
    u, good = _good_points()
    published = (  # the eight torsion points, as in the test suites of several Ed25519 libraries
        "0100000000000000000000000000000000000000000000000000000000000000",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "0000000000000000000000000000000000000000000000000000000000000000",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    )
    assert {int.from_bytes(bytes.fromhex(text), "little") for text in published} == keys._SMALL_ORDER_Y
    for y in keys._SMALL_ORDER_Y:
        for sign in (0, 1 << 255):
            with pytest.raises(KeySourceError, match="anybody can hold"):
                parse_public(_with_points(u, y | sign))
    assert parse_public(_with_points(u, good))


@pytest.mark.parametrize("point", [2**255 - 19, 2**255 - 1, 2**255 + 9])
def test_encodings_that_are_not_canonical_are_refused(point: int) -> None:
    u, y = _good_points()
    with pytest.raises(KeySourceError, match="anybody can hold"):
        parse_public(_with_points(point, y))
    if point < 2**255:
        with pytest.raises(KeySourceError, match="anybody can hold"):
            parse_public(_with_points(u, point))


def test_a_secret_key_in_the_place_of_a_public_one_is_not_repeated(tmp_path: Path) -> None:
    encoded = TEXT.decode().strip().rpartition(":")[2]
    path = write(tmp_path / "key", TEXT)
    for source in (path, TEXT.decode().strip()):
        with pytest.raises(KeySourceError, match="secret key") as caught:
            load_public(source)
        assert encoded not in str(caught.value)
    with pytest.raises(KeySourceError, match="give the name of its file") as caught:
        load_key(TEXT.decode().strip())
    assert encoded not in str(caught.value)


def test_public_key_from_text_or_file(tmp_path: Path) -> None:
    public = SecretKey(SEED, Kind.OPERATOR).public
    (tmp_path / "operator.pub").write_text(public.text + "\n")
    assert load_public(public.text, Kind.OPERATOR) == load_public(str(tmp_path / "operator.pub")) == public
    with pytest.raises(KeySourceError, match="a broker key is needed"):
        load_public(str(tmp_path / "operator.pub"), Kind.BROKER)
    with pytest.raises(KeySourceError, match="mvps key show"):
        load_public(str(tmp_path / "none"))


# ---- key files


@pytest.mark.parametrize("umask", [0, 0o777])
def test_generated_key_is_private_and_loads_again(tmp_path: Path, umask: int) -> None:
    previous = os.umask(umask)
    try:
        key = generate_key(tmp_path / "key", Kind.BROKER)
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert load_key(str(tmp_path / "key"), Kind.BROKER).public == key.public
    with pytest.raises(KeySourceError, match="is kept"):
        generate_key(tmp_path / "key", Kind.BROKER)
    assert load_key(str(tmp_path / "key")).public == key.public


def test_a_key_of_one_kind_is_not_loaded_as_another(tmp_path: Path) -> None:
    path = write(tmp_path / "key", TEXT)
    assert load_key(path, Kind.HOST).kind is Kind.HOST
    with pytest.raises(KeySourceError, match="holds a host key, and a broker key is needed"):
        load_key(path, Kind.BROKER)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666, 0o610])
def test_key_that_others_can_use_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(KeySourceError, match="chmod 600 "):
        load_key(write(tmp_path / "key", TEXT, mode))


def test_symbolic_link_to_an_exposed_key_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "exposed", TEXT, 0o644)
    (tmp_path / "link").symlink_to(tmp_path / "exposed")
    with pytest.raises(KeySourceError, match="mode 0644"):
        load_key(str(tmp_path / "link"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "holds no key"),
        (SEED, "holds no key"),
        (b"mvps-secret-v1:guest:AAEC\n", "holds no key"),
        (b"mvps-secret-v1:host\n", "0"),
        (b"mvps-secret-v1:host:AAEC\n", "32 bytes, not 3"),
        (b"mvps-secret-v1:host:***\n", "not base64"),
        (b"mvps-secret-v1:host:\xff\n", "not base64"),
        (b"mvps-secret-v1:host:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n", "placeholder"),
        (b"mvps-public-v1:host:AAEC\n", "public key, and the secret one is needed"),
        (b"x" * 5000, "5000 bytes"),
    ],
)
def test_content_that_is_no_key_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    with pytest.raises(KeySourceError, match=said) as caught:
        load_key(write(tmp_path / "key", content))
    assert str(tmp_path / "key") in str(caught.value)


def test_missing_directory_and_fifo_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    with pytest.raises(KeySourceError, match="make one with: mvps key generate host FILE"):
        load_key(str(tmp_path / "absent"), Kind.HOST)
    for name in ("fifo", "."):
        with pytest.raises(KeySourceError, match="regular file"):
            load_key(str(tmp_path / name))


@pytest.mark.skipif(os.geteuid() != 0, reason="changes a file's owner")
def test_key_of_another_user_is_refused(tmp_path: Path) -> None:
    os.chown(write(tmp_path / "key", TEXT), 65534, 65534)
    with pytest.raises(KeySourceError, match="belongs to uid 65534"):
        load_key(str(tmp_path / "key"))


def test_systemd_credential(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeySourceError, match="LoadCredential"):
        load_key("credential:mvps")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    write(tmp_path / "mvps", TEXT, 0o440)  # systemd's mode with an ACL
    write(tmp_path / "mvps.old", TEXT.replace(b"AAEC", b"BAEC"), 0o440)
    assert load_key("credential:mvps").public == load_key(str(tmp_path / "mvps")).public
    assert len({key.public for key in load_keys("credential:mvps", Kind.HOST)}) == 2
    for name in ("", "..", "../etc/shadow"):
        with pytest.raises(KeySourceError, match="names no credential"):
            load_key(f"credential:{name}")


def test_a_credential_that_stands_for_a_missing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    write(tmp_path / "mvps", TEXT, 0o440)
    write(tmp_path / "mvps.old", ABSENT, 0o440)
    assert len(load_keys("credential:mvps", Kind.HOST)) == 1
    write(tmp_path / "mvps", ABSENT, 0o440)
    for load in (load_key, load_keys):
        with pytest.raises(KeySourceError, match="no key lies where this unit's LoadCredential says"):
            load("credential:mvps", Kind.HOST)
    # Only where a unit hands keys over: anywhere else it is a file without a key.
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    (tmp_path / "mvps").chmod(0o600)
    with pytest.raises(KeySourceError, match="holds no key"):
        load_key(str(tmp_path / "mvps"))


# ---- rotation


def test_rotation_keeps_the_old_key_beside_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "agent.key"
    first = generate_key(path, Kind.HOST)
    assert [key.public for key in load_keys(str(path), Kind.HOST)] == [first.public]
    old, new = rotate_key(path)
    assert old.public == first.public != new.public
    assert [key.public for key in load_keys(str(path), Kind.HOST)] == [new.public, old.public]
    assert {stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()} == {0o600}
    assert {p.name for p in tmp_path.iterdir()} == {"agent.key", "agent.key.old"}
    with pytest.raises(KeySourceError, match="still there"):
        rotate_key(path)
    assert load_key(str(path)).public == new.public


def test_a_rotation_that_was_cut_off_is_taken_up_again(tmp_path: Path) -> None:
    path = tmp_path / "agent.key"
    first = generate_key(path, Kind.HOST)
    os.link(path, tmp_path / "agent.key.old")
    generate_key(tmp_path / "agent.key.new", Kind.HOST)
    assert load_key(str(path)).public == first.public
    old, new = rotate_key(path)
    assert (old.public, load_key(str(path)).public) == (first.public, new.public)
    assert load_key(str(tmp_path / "agent.key.old")).public == first.public


def test_rotation_refuses_operators_and_links(tmp_path: Path) -> None:
    generate_key(tmp_path / "operator.key", Kind.OPERATOR)
    with pytest.raises(KeySourceError, match="configured with"):
        rotate_key(tmp_path / "operator.key")
    generate_key(tmp_path / "key", Kind.HOST)
    (tmp_path / "link").symlink_to(tmp_path / "key")
    with pytest.raises(KeySourceError, match="symbolic link"):
        rotate_key(tmp_path / "link")


@pytest.mark.skipif(os.geteuid() != 0, reason="changes a file's owner")
def test_rotation_keeps_the_owner(tmp_path: Path) -> None:
    generate_key(tmp_path / "key", Kind.HOST)
    os.chown(tmp_path / "key", 0, 65534)
    rotate_key(tmp_path / "key")
    assert (tmp_path / "key").stat().st_gid == 65534
