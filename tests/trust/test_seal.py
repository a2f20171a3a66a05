# SPDX-License-Identifier: Apache-2.0
import hashlib
import hmac
import os
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvps.trust.keys import SecretKey
from mvps.trust.limits import MAX_BODY
from mvps.trust.reasons import RejectReason
from mvps.trust.seal import (
    FIXED_HEADER_BYTES,
    Keyring,
    Lane,
    Purpose,
    Sealed,
    Sealer,
    SealError,
    StreamCounter,
    Verifier,
    parse_header,
)

KEY = SecretKey(bytes(range(32)))
SEALER = Sealer(KEY, "host-1", Purpose.SNAPSHOT, StreamCounter(), clock=lambda: 1234)
GOOD = SEALER.seal(b"body", tick=9)


def verifier(purpose: Purpose = Purpose.SNAPSHOT, **keys: SecretKey) -> Verifier:
    return Verifier(Keyring(keys or {"*": KEY}), purpose)


def reason_of(sealed: Sealed, by: Verifier | None = None) -> RejectReason:
    with pytest.raises(SealError) as caught:
        (by or verifier()).verify(sealed)
    return caught.value.reason


def with_header(offset: int, content: bytes) -> Sealed:
    header = GOOD.header[:offset] + content + GOOD.header[offset + len(content) :]
    return GOOD._replace(header=header)


def test_round_trip() -> None:
    header = verifier().verify(GOOD)
    assert (header.vantage_id, header.tick, header.time_ns, header.lane) == ("host-1", 9, 1234, Lane.LIVE)
    assert header.key_id == KEY.key_id


def test_tag_is_hmac_over_the_bytes_that_travel() -> None:
    derived = KEY.derive("snapshot", "host-1")
    assert GOOD.tag == hmac.new(derived, GOOD.header + b"body", hashlib.sha256).digest()


def test_layout_is_the_documented_one() -> None:
    counter = struct.unpack_from(">Q", GOOD.header, 24)[0]
    expected = (
        b"MVPS" + bytes([1, 1, 1, 1]) + b"\0\0" + bytes([6, 0]) + struct.pack(">I", 4) + struct.pack(">Q", 0)
        + struct.pack(">QQQ", counter, 9, 1234) + KEY.key_id + b"host-1"
    )  # fmt: skip
    assert GOOD.header == expected


@pytest.mark.parametrize(
    ("sealed", "reason"),
    [
        (GOOD._replace(header=GOOD.header[: FIXED_HEADER_BYTES - 1]), RejectReason.TRUNCATED),
        (GOOD._replace(header=b""), RejectReason.TRUNCATED),
        (GOOD._replace(header=GOOD.header[:-1]), RejectReason.BAD_LENGTH),
        (GOOD._replace(header=GOOD.header + b"x"), RejectReason.BAD_LENGTH),
        (with_header(0, b"X"), RejectReason.BAD_MAGIC),
        (with_header(4, b"\2"), RejectReason.UNKNOWN_VERSION),
        (with_header(5, b"\2"), RejectReason.UNKNOWN_SCHEME),
        (with_header(5, b"\0"), RejectReason.UNKNOWN_SCHEME),
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
        (GOOD._replace(tag=b""), RejectReason.BAD_LENGTH),
    ],
)
def test_rejections(sealed: Sealed, reason: RejectReason) -> None:
    assert reason_of(sealed) is reason


def test_only_configured_vantages_are_known() -> None:
    by = Verifier(Keyring({"other": KEY}), Purpose.SNAPSHOT)
    assert reason_of(GOOD, by) is RejectReason.UNKNOWN_VANTAGE


def test_own_key_goes_before_the_shared_one() -> None:
    own = SecretKey(os.urandom(32))
    by = Verifier(Keyring({"*": KEY, "host-1": own}), Purpose.SNAPSHOT)
    assert reason_of(GOOD, by) is RejectReason.UNKNOWN_KEY


def test_one_purpose_says_nothing_about_another() -> None:
    # The purpose byte is changed and the seal made again with the snapshot key: what a stolen purpose key could do.
    forged = with_header(6, bytes([Purpose.CONTROL]))
    tag = hmac.new(KEY.derive("snapshot", "host-1"), forged.header + forged.body, hashlib.sha256).digest()
    assert reason_of(forged._replace(tag=tag), verifier(Purpose.CONTROL)) is RejectReason.BAD_SEAL


def test_sealer_refuses_what_no_verifier_would_take_and_spends_no_counter() -> None:
    counter = StreamCounter()
    sealer = Sealer(KEY, "host-1", Purpose.SNAPSHOT, counter)
    with pytest.raises(ValueError, match="cannot be sealed"):
        sealer.seal(bytes(MAX_BODY + 1), tick=0)
    assert counter.last == 0
    assert verifier().verify(sealer.seal(bytes(MAX_BODY), tick=0)).body_bytes == MAX_BODY


@pytest.mark.parametrize("bad", ["", "a" * 65, "-a", "a b", "ä", "a/b"])
def test_vantage_ids_that_cannot_travel(bad: str) -> None:
    with pytest.raises(ValueError, match="vantage id"):
        Sealer(KEY, bad, Purpose.SNAPSHOT, StreamCounter())


def test_keyring_without_keys() -> None:
    with pytest.raises(ValueError, match="no key is configured"):
        Keyring({})


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=140))
def test_random_headers_raise_seal_error_only(header: bytes) -> None:
    with pytest.raises(SealError):
        parse_header(header)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(GOOD.header) + len(GOOD.body) + len(GOOD.tag) - 1), st.integers(1, 255))
def test_no_changed_byte_is_accepted(position: int, change: int) -> None:
    whole = bytearray(b"".join(GOOD))
    whole[position] ^= change
    cut = len(GOOD.header)
    changed = Sealed(bytes(whole[:cut]), bytes(whole[cut : cut + 4]), bytes(whole[cut + 4 :]))
    with pytest.raises(SealError):
        verifier().verify(changed)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=64), st.binary(max_size=8), st.binary(max_size=40))
def test_garbage_behind_a_plausible_prefix_is_never_accepted(tail: bytes, body: bytes, tag: bytes) -> None:
    with pytest.raises(SealError):
        verifier().verify(Sealed(GOOD.header[:12] + tail, body, tag))


@settings(max_examples=50, deadline=None)
@given(
    st.binary(max_size=300),
    st.integers(0, 2**64 - 1),
    st.sampled_from(Lane),
    st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._:@-]{0,63}\Z"),
)
def test_whatever_is_sealed_verifies(body: bytes, tick: int, lane: Lane, vantage_id: str) -> None:
    sealed = Sealer(KEY, vantage_id, Purpose.SNAPSHOT, StreamCounter()).seal(body, tick, lane)
    header = verifier().verify(sealed)
    assert (header.tick, header.lane, header.vantage_id) == (tick, lane, vantage_id)
