# SPDX-License-Identifier: Apache-2.0
import hashlib
import ipaddress
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvps.trust.enrolment import FIRST_LINE, Enrolment, EnrolmentError, open_enrolment, sign_enrolment
from mvps.trust.keys import Kind, PublicKey, SecretKey
from mvps.trust.limits import MAX_ENROLMENT_BYTES
from mvps.trust.manifest import Vantage
from mvps.trust.note import Note, parse_note, sign_note

KEY = SecretKey(hashlib.sha256(b"host").digest(), Kind.HOST)
OTHER = SecretKey(hashlib.sha256(b"other").digest(), Kind.HOST)
VANTAGE = Vantage("host-a", KEY.public, "r1", ("ai", "host"), (ipaddress.ip_network("10.0.0.5/32"),))
GOOD = Enrolment(VANTAGE, "node17.example", 1_800_000_000)


def signed(text: str, name: str = "host-a", key: SecretKey = KEY) -> bytes:
    return Note(text, (sign_note(text, name, key.sign, key.public.ed25519),)).render()


def test_text_is_the_documented_one() -> None:
    request = sign_enrolment(GOOD, KEY)
    assert parse_note(request).text == (
        "mvps-enrolment-v1\n"
        "vantage host-a\n"
        "hostname node17.example\n"
        "created 2027-01-15T08:00:00Z\n"
        "cell r1\n"
        "roles ai,host\n"
        "prefixes 10.0.0.5/32\n"
        f"key {KEY.public.text}\n"
    )
    assert open_enrolment(request) == GOOD


def test_what_is_not_asked_for_is_a_dash() -> None:
    bare = Enrolment(Vantage("host-a", KEY.public), "", 0)
    request = sign_enrolment(bare, KEY)
    assert open_enrolment(request) == bare
    assert request.count(b" -\n") == 4


def test_a_request_holds_no_secret() -> None:
    request = sign_enrolment(GOOD, KEY)
    assert KEY._seed not in request
    assert b"secret" not in request


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_changed_byte_counts(data: st.DataObject) -> None:
    request = bytearray(sign_enrolment(GOOD, KEY))
    request[data.draw(st.integers(0, len(request) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(EnrolmentError):
        open_enrolment(bytes(request))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_random_bytes_raise_enrolment_error_only(data: bytes) -> None:
    for candidate in (data, FIRST_LINE.encode() + b"\n" + data):
        with pytest.raises(EnrolmentError):
            open_enrolment(candidate)


def test_only_the_own_key_signs() -> None:
    with pytest.raises(EnrolmentError, match="signs its own request"):
        sign_enrolment(GOOD, OTHER)
    text = parse_note(sign_enrolment(GOOD, KEY)).text
    for request in (signed(text, key=OTHER), signed(text, name="host-b")):
        with pytest.raises(EnrolmentError, match="not signed by its own key"):
            open_enrolment(request)


def test_a_key_that_vouches_for_nothing_is_refused() -> None:
    weak = PublicKey(Kind.HOST, KEY.public.x25519, (1).to_bytes(32, "little"))
    text = parse_note(sign_enrolment(GOOD, KEY)).text.replace(KEY.public.text, weak.text)
    forged = Note(text, (sign_note(text, "host-a", lambda _: weak.ed25519 + bytes(32), weak.ed25519),)).render()
    with pytest.raises(EnrolmentError, match="anybody can hold"):
        open_enrolment(forged)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("mvps-enrolment-v1", "mvps-enrolment-v2", "begins with"),
        ("vantage host-a", "vantage host/a", "vantage id"),
        ("hostname node17.example\n", "", "has 8 lines"),
        ("hostname", "host", "where `hostname` is needed"),
        ("node17.example", "", "one way"),
        ("node17.example", "n" * 300, "too long"),
        ("node17.example", "n\u202e", "not printable"),
        ("2027-01-15T08:00:00Z", "yesterday", "is no time"),
        ("cell r1", "cell r/1", "cell"),
        ("roles ai,host", "roles AI", "role"),
        ("roles ai,host", "roles " + ",".join("abcdefghi"), "more than 8|role"),
        ("10.0.0.5/32", "10.0.0.5/8", "host bits"),
        ("10.0.0.5/32", "10.0.0.5", "one way"),
        ("10.0.0.5/32", ",".join(f"10.0.0.{n}/32" for n in range(17)), "more than 16"),
        ("mvps-public-v1:host", "mvps-public-v1:broker", "a host key is needed"),
    ],
)
def test_signed_texts_that_are_no_request(old: str, new: str, said: str) -> None:
    text = parse_note(sign_enrolment(GOOD, KEY)).text
    assert old in text
    with pytest.raises(EnrolmentError, match=said):
        open_enrolment(signed(text.replace(old, new, 1)))


def test_what_could_not_be_read_is_not_written() -> None:
    for wrong in (
        replace(GOOD, hostname="a\nb"),
        replace(GOOD, vantage=VANTAGE._replace(vantage_id="a b")),
        replace(GOOD, vantage=VANTAGE._replace(cell="a b")),
    ):
        with pytest.raises(EnrolmentError):
            sign_enrolment(wrong, KEY)


def test_size_is_checked_first() -> None:
    with pytest.raises(EnrolmentError, match=f"at most {MAX_ENROLMENT_BYTES}"):
        open_enrolment(bytes(MAX_ENROLMENT_BYTES + 1))
