# SPDX-License-Identifier: Apache-2.0
import hashlib
import hmac
import os
import struct
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvps.trust.keys import Kind, SecretKey
from mvps.trust.limits import MAX_BODY
from mvps.trust.reasons import RejectReason
from mvps.trust.seal import (
    FIXED_HEADER_BYTES,
    Ed25519Signer,
    Ed25519Verifier,
    HmacKey,
    Lane,
    Purpose,
    Scheme,
    Sealed,
    Sealer,
    SealError,
    SealingKey,
    StreamCounter,
    Verifier,
    parse_header,
)

KEY = bytes(range(32))
HMAC = HmacKey(KEY, b"key-id-1")
IDENTITY = SecretKey(bytes(range(1, 33)), Kind.HOST)
SIGNER = Ed25519Signer(IDENTITY)


@dataclass
class Keys:
    """One key for one epoch, whoever asks."""

    key: SealingKey
    epoch_id: int = 5

    def sealing_key(self, vantage_id: str, epoch_id: int, purpose: Purpose) -> SealingKey:
        if epoch_id != self.epoch_id:
            raise SealError(RejectReason.UNKNOWN_EPOCH, f"epoch {epoch_id}")
        return self.key


def sealer(key: SealingKey, vantage_id: str = "host-1") -> Sealer:
    return Sealer(key, vantage_id, Purpose.SNAPSHOT, StreamCounter(), epoch_id=5, clock=lambda: 1234)


GOOD = sealer(HMAC).seal(b"body", tick=9)
SIGNED = sealer(SIGNER).seal(b"body", tick=9)


def verifier(purpose: Purpose = Purpose.SNAPSHOT, key: SealingKey = HMAC) -> Verifier:
    return Verifier(Keys(key), purpose)


def reason_of(sealed: Sealed, by: Verifier | None = None) -> RejectReason:
    with pytest.raises(SealError) as caught:
        (by or verifier()).verify(sealed)
    return caught.value.reason


def with_header(offset: int, content: bytes, sealed: Sealed = GOOD) -> Sealed:
    header = sealed.header[:offset] + content + sealed.header[offset + len(content) :]
    return sealed._replace(header=header)


def test_round_trip() -> None:
    header = verifier().verify(GOOD)
    assert (header.vantage_id, header.tick, header.time_ns, header.lane) == ("host-1", 9, 1234, Lane.LIVE)
    assert (header.scheme, header.key_id) == (Scheme.HMAC_SHA256, b"key-id-1")
    header = verifier(key=Ed25519Verifier(IDENTITY.public)).verify(SIGNED)
    assert (header.scheme, header.key_id) == (Scheme.ED25519, IDENTITY.public.key_id)


def test_tag_is_hmac_over_the_bytes_that_travel() -> None:
    assert GOOD.tag == hmac.new(KEY, GOOD.header + b"body", hashlib.sha256).digest()


def test_tag_is_the_signature_of_the_bytes_that_travel() -> None:
    assert len(SIGNED.tag) == 64
    assert IDENTITY.public.holds(SIGNED.header + b"body", SIGNED.tag)


@pytest.mark.parametrize(
    ("key", "data", "expected"),
    [  # RFC 4231, test cases 1, 2 and 3
        (b"\x0b" * 20, b"Hi There", "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"),
        (b"Jefe", b"what do ya want for nothing?", "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"),
        (b"\xaa" * 20, b"\xdd" * 50, "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe"),
    ],
)
def test_hmac_vectors(key: bytes, data: bytes, expected: str) -> None:
    made = HmacKey(key, bytes(8))
    assert made.tag(data[:3], data[3:]).hex() == expected
    assert made.holds(data[:5], data[5:], bytes.fromhex(expected))


def test_layout_is_the_documented_one() -> None:
    counter = struct.unpack_from(">Q", GOOD.header, 24)[0]
    expected = (
        b"MVPS" + bytes([1, 1, 1, 1]) + b"\0\0" + bytes([6, 0]) + struct.pack(">I", 4) + struct.pack(">Q", 5)
        + struct.pack(">QQQ", counter, 9, 1234) + b"key-id-1" + b"host-1"
    )  # fmt: skip
    assert GOOD.header == expected


def test_digest_commits_in_both_schemes() -> None:
    assert GOOD.digest == GOOD.tag
    assert SIGNED.digest == hashlib.sha256(SIGNED.header + b"body").digest()
    # An Ed25519 tag does not commit, so the digest does not depend on it.
    assert SIGNED._replace(tag=bytes(64)).digest == SIGNED.digest
    assert SIGNED._replace(body=b"bode").digest != SIGNED.digest


@pytest.mark.parametrize(
    ("sealed", "reason"),
    [
        (GOOD._replace(header=GOOD.header[: FIXED_HEADER_BYTES - 1]), RejectReason.TRUNCATED),
        (GOOD._replace(header=b""), RejectReason.TRUNCATED),
        (GOOD._replace(header=GOOD.header[:-1]), RejectReason.BAD_LENGTH),
        (GOOD._replace(header=GOOD.header + b"x"), RejectReason.BAD_LENGTH),
        (with_header(0, b"X"), RejectReason.BAD_MAGIC),
        (with_header(4, b"\2"), RejectReason.UNKNOWN_VERSION),
        (with_header(5, b"\3"), RejectReason.UNKNOWN_SCHEME),
        (with_header(5, b"\0"), RejectReason.UNKNOWN_SCHEME),
        (with_header(5, b"\2"), RejectReason.WRONG_SCHEME),
        (with_header(6, b"\4"), RejectReason.WRONG_PURPOSE),
        (with_header(6, b"\2"), RejectReason.WRONG_PURPOSE),
        (with_header(7, b"\3"), RejectReason.UNKNOWN_LANE),
        (with_header(8, b"\0\1"), RejectReason.BAD_FLAGS),
        (with_header(11, b"\1"), RejectReason.BAD_FLAGS),
        (with_header(12, struct.pack(">I", MAX_BODY + 1)), RejectReason.OVERSIZE),
        (with_header(12, struct.pack(">I", 5)), RejectReason.BAD_LENGTH),
        (with_header(16, struct.pack(">Q", 1)), RejectReason.UNKNOWN_EPOCH),
        (with_header(48, b"\0"), RejectReason.UNKNOWN_KEY),
        (with_header(FIXED_HEADER_BYTES, b"host-2"), RejectReason.BAD_SEAL),
        (with_header(FIXED_HEADER_BYTES, b"host\n1"), RejectReason.BAD_VANTAGE_ID),
        (with_header(FIXED_HEADER_BYTES, b"host\xff1"), RejectReason.BAD_VANTAGE_ID),
        (with_header(24, struct.pack(">Q", 99)), RejectReason.BAD_SEAL),
        (with_header(7, b"\2"), RejectReason.BAD_SEAL),
        (GOOD._replace(body=b"bode"), RejectReason.BAD_SEAL),
        (GOOD._replace(tag=bytes(32)), RejectReason.BAD_SEAL),
        (GOOD._replace(tag=GOOD.tag[:16]), RejectReason.BAD_LENGTH),
        (GOOD._replace(tag=SIGNED.tag), RejectReason.BAD_LENGTH),
        (GOOD._replace(tag=b""), RejectReason.BAD_LENGTH),
    ],
)
def test_rejections(sealed: Sealed, reason: RejectReason) -> None:
    assert reason_of(sealed) is reason


def test_rejections_of_a_signature_epoch() -> None:
    by = verifier(key=Ed25519Verifier(IDENTITY.public))
    assert reason_of(SIGNED._replace(body=b"bode"), by) is RejectReason.BAD_SEAL
    assert reason_of(SIGNED._replace(tag=bytes(64)), by) is RejectReason.BAD_SEAL
    assert reason_of(SIGNED._replace(tag=GOOD.tag), by) is RejectReason.BAD_LENGTH
    assert reason_of(with_header(24, b"\xff", SIGNED), by) is RejectReason.BAD_SEAL
    assert reason_of(with_header(5, b"\1", SIGNED), by) is RejectReason.WRONG_SCHEME


@dataclass
class Untouchable:
    """A key that must not be used for anything."""

    scheme: Scheme
    key_id: bytes = b"key-id-1"

    def tag(self, header: bytes, body: bytes) -> bytes:
        raise AssertionError("used")

    def holds(self, header: bytes, body: bytes, tag: bytes) -> bool:
        raise AssertionError("used")


def test_the_scheme_is_the_keys_and_another_one_is_refused_before_any_cryptography() -> None:
    assert reason_of(SIGNED, verifier(key=Untouchable(Scheme.HMAC_SHA256))) is RejectReason.WRONG_SCHEME
    assert reason_of(GOOD, verifier(key=Untouchable(Scheme.ED25519))) is RejectReason.WRONG_SCHEME


def test_a_public_key_as_hmac_key_opens_nothing() -> None:
    # The classic confusion: an attacker "signs" with HMAC under the public key that everybody knows.
    forged = sealer(HmacKey(IDENTITY.public.ed25519, IDENTITY.public.key_id)).seal(b"body", tick=9)
    assert reason_of(forged, verifier(key=Ed25519Verifier(IDENTITY.public))) is RejectReason.WRONG_SCHEME


def test_a_verifier_cannot_seal() -> None:
    with pytest.raises(ValueError, match="only the holder"):
        sealer(Ed25519Verifier(IDENTITY.public)).seal(b"body", tick=9)


def test_a_verifier_asks_for_the_key_every_time() -> None:
    keys = Keys(HMAC)
    by = Verifier(keys, Purpose.SNAPSHOT)
    by.verify(GOOD)
    keys.epoch_id = 6
    assert reason_of(GOOD, by) is RejectReason.UNKNOWN_EPOCH


def test_one_purpose_says_nothing_about_another() -> None:
    # The purpose byte is changed and the seal made again with the snapshot key: what a stolen purpose key could do.
    forged = with_header(6, bytes([Purpose.CONTROL]))
    tag = hmac.new(KEY, forged.header + forged.body, hashlib.sha256).digest()
    control = HmacKey(KEY[::-1], b"key-id-1")
    assert reason_of(forged._replace(tag=tag), verifier(Purpose.CONTROL, control)) is RejectReason.BAD_SEAL


def test_sealer_refuses_what_no_verifier_would_take_and_spends_no_counter() -> None:
    counter = StreamCounter()
    made = Sealer(HMAC, "host-1", Purpose.SNAPSHOT, counter, epoch_id=5)
    with pytest.raises(ValueError, match="cannot be sealed"):
        made.seal(bytes(MAX_BODY + 1), tick=0)
    assert counter.last == 0
    assert verifier().verify(made.seal(bytes(MAX_BODY), tick=0)).body_bytes == MAX_BODY


@pytest.mark.parametrize("bad", ["", "a" * 65, "-a", "a b", "ä", "a/b"])
def test_vantage_ids_that_cannot_travel(bad: str) -> None:
    with pytest.raises(ValueError, match="vantage id"):
        sealer(HMAC, bad)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=140))
def test_random_headers_raise_seal_error_only(header: bytes) -> None:
    with pytest.raises(SealError):
        parse_header(header)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([(GOOD, HMAC), (SIGNED, SIGNER)]), st.data(), st.integers(1, 255))
def test_no_changed_byte_is_accepted(pair: tuple[Sealed, SealingKey], data: st.DataObject, change: int) -> None:
    sealed, key = pair
    whole = bytearray(b"".join(sealed))
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= change
    cut = len(sealed.header)
    changed = Sealed(bytes(whole[:cut]), bytes(whole[cut : cut + 4]), bytes(whole[cut + 4 :]))
    with pytest.raises(SealError):
        verifier(key=key).verify(changed)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=64), st.binary(max_size=8), st.binary(max_size=70))
def test_garbage_behind_a_plausible_prefix_is_never_accepted(tail: bytes, body: bytes, tag: bytes) -> None:
    for sealed, key in ((GOOD, HMAC), (SIGNED, SIGNER)):
        with pytest.raises(SealError):
            verifier(key=key).verify(Sealed(sealed.header[:12] + tail, body, tag))


@settings(max_examples=50, deadline=None)
@given(
    st.binary(max_size=300),
    st.integers(0, 2**64 - 1),
    st.sampled_from(Lane),
    st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._:@-]{0,63}\Z"),
    st.sampled_from([HMAC, SIGNER, HmacKey(os.urandom(32), os.urandom(8))]),
)
def test_whatever_is_sealed_verifies(body: bytes, tick: int, lane: Lane, vantage_id: str, key: SealingKey) -> None:
    sealed = sealer(key, vantage_id).seal(body, tick, lane)
    header = verifier(key=key).verify(sealed)
    assert (header.tick, header.lane, header.vantage_id) == (tick, lane, vantage_id)
