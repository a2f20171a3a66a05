# SPDX-License-Identifier: Apache-2.0
"""Vectors: Go's golang.org/x/mod/sumdb/note (note_test.go); C2SP tlog-cosignature; a checkpoint of the staging CT log
arche2025h1 as its witnesses cosigned it in the field, with the key of remora.n621.de from transparency-dev/formats."""

import base64
import struct

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from mvps.trust.note import (
    COSIGNATURE_V1,
    ED25519,
    MAX_SIGNATURES,
    Note,
    NoteError,
    NoteKey,
    NoteSignature,
    cosign,
    is_note_name,
    parse_note,
    parse_note_key,
    parse_signatures,
    sign_note,
    verified,
)

PETER = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
ENOCH = "EnochRoot+af0cfe78+ATtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop"
# What follows PRIVATE+KEY+PeterNeumann+c74f20a3+ in Go's test: the algorithm and the seed.
PETER_SEED = base64.b64decode("AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz")[1:]
TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
PETER_LINE = (
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)
ENOCH_LINE = (
    "— EnochRoot rwz+eBzmZa0SO3NbfRGzPCpDckykFXSdeX+MNtCOXm2/5n2tiOHp+vAF1aGrQ5ovTG01oOTGwnWLox33WWd1RvMc+QQ=\n"
)
REMORA = "remora.n621.de+da77ade7+BOvN63jn/bLvkieywe8R6UYAtVtNbZpXh34x7onlmtw2"
ARCHE = """arche2025h1.staging.ct.transparency.dev
1432088532
U7WM79jrzyhGZ5/GUBTpM7NzwdyfFx61t3RovgcC4Ro=

— arche2025h1.staging.ct.transparency.dev \
zTM8sQAAAZ5W0WdjBAMARjBEAiBjW5IQf9pvsYLfQFX6hoGREPMHbdQ3urbllzalApkptQIgIpwtEroeW2BXaHAI4kJXFbon5Ch9MNL5zRNZ55lvGt0=
— arche2025h1.staging.ct.transparency.dev \
ui8GwCF1+kWqZrxGdhj4aX3gcw7XUlXQQabg/27lefwhUkzbC3NygNI75MdhL1bfTW9g8Ei59RA23oHP7Ry1k3ZFWwQ=
— transparency.dev/DEV:witness-little-garden \
2AQqhwAAAABqEiEgzgFIqqhbUoDwjMWE6UP8nd8/KYTzwZ2rhIgcqoXHAwVkjZr4AscylP3v7sEodkRAErumC2q44vdgJY096st5BQ==
— witness1.smartit.nu/witness1 \
pIyCDwAAAABqEiEghIp82KWebrw7/oHQwlTAm3g2RKS4+eebl8eO0WH+/iEcxZ75W3u5hNI7TOQtmJbqmNWVuE0tgh0XwzdZsDsUAQ==
— remora.n621.de \
2net5wAAAABqEiEgPlfF3V06o0Y+fHM+J5J9s27wgxxcOVSpZ/2g/KSiXCg9DEZI+aVCIobWX9sXTynk5XeU/zZ0WBxtqB0DrAWfBw==
— witness.stagemole.eu \
Z/euoAAAAABqEiEgw0i+7g2ENfDAWHmtRzCfKTHSDwYDJA2NmKeGi9Y8FtEyOUvVr+AJmIY/2TUFucgKi7lI7cUiOvKFYe/TmN9DAg==
"""
# The example of C2SP tlog-cosignature; its public keys are not published.
SOFA = """example.com/behind-the-sofa
20852163
CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=

— example.com/behind-the-sofa \
Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=
— witness.example.com/w1 \
jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2oyin1nPZqhf5nNo0xUe+mbIUBkBIfZ+qnA==
"""


def peter(message: bytes) -> bytes:
    return Ed25519PrivateKey.from_private_bytes(PETER_SEED).sign(message)


def note(*lines: str) -> Note:
    return parse_note((TEXT + "\n" + "".join(lines)).encode())


def test_go_keys_round_trip() -> None:
    for text in (PETER, ENOCH, REMORA):
        assert parse_note_key(text).text == text
    key = parse_note_key(PETER)
    assert (key.name, key.algorithm) == ("PeterNeumann", ED25519)
    assert key.public == Ed25519PrivateKey.from_private_bytes(PETER_SEED).public_key().public_bytes_raw()
    assert parse_note_key(REMORA).algorithm == COSIGNATURE_V1


def test_mangled_keys_are_refused_as_in_go() -> None:
    for i in range(len(PETER)):
        for j in range(i + 1, len(PETER) + 1):
            if (i, j) != (0, len(PETER)):
                with pytest.raises(NoteError):
                    parse_note_key(PETER[i:j])
        with pytest.raises(NoteError):
            parse_note_key(PETER[:i] + chr(ord(PETER[i]) + 1) + PETER[i + 1 :])
    for adjusted in (
        "PeterNeumann+cc469956+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TWBADKEY==",  # wrong length
        "PeterNeumann+173116ae+ZRpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",  # unknown algorithm
    ):
        with pytest.raises(NoteError):
            parse_note_key(adjusted)
    with pytest.raises(NoteError, match="neither Ed25519"):
        parse_note_key("PeterNeumann+173116ae+ZRpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")


def test_signing_gives_gos_bytes() -> None:
    signature = sign_note(TEXT, "PeterNeumann", peter, parse_note_key(PETER).public)
    assert Note(TEXT, (signature,)).render().decode() == TEXT + "\n" + PETER_LINE


def test_verification_as_in_go() -> None:
    one, two = parse_note_key(PETER), parse_note_key(ENOCH)
    both = note(PETER_LINE, ENOCH_LINE)
    assert verified(both, [one]) == [(one, 0)]
    assert verified(both, [one, two]) == [(one, 0), (two, 0)]
    assert verified(both, []) == []
    assert verified(note(PETER_LINE, PETER_LINE, ENOCH_LINE, ENOCH_LINE), [one]) == [(one, 0)]
    broken = note(PETER_LINE, ENOCH_LINE[:60] + "ABCD" + ENOCH_LINE[60:])
    assert verified(broken, [one]) == [(one, 0)]
    with pytest.raises(NoteError, match="EnochRoot"):
        verified(broken, [one, two])


def test_a_valid_signature_does_not_cover_for_a_broken_one_of_the_same_key() -> None:
    with pytest.raises(NoteError, match="does not hold"):
        verified(note(PETER_LINE, PETER_LINE[:60] + "ABCD" + PETER_LINE[60:]), [parse_note_key(PETER)])


def test_another_text_does_not_verify() -> None:
    changed = note(PETER_LINE)._replace(text=TEXT.replace("know", "knew"))
    with pytest.raises(NoteError, match="does not hold"):
        verified(changed, [parse_note_key(PETER)])


@pytest.mark.parametrize(
    "data",
    [
        TEXT,
        TEXT + "\n",
        TEXT + "\n" + PETER_LINE[:-1],
        "\x01" + TEXT + "\n" + PETER_LINE,
        TEXT.replace("\n", "\r\n") + "\n" + PETER_LINE,
        TEXT + "\n" + PETER_LINE.replace("PeterNeumann", "Bad Name"),
        TEXT + "\n" + PETER_LINE.replace("PeterNeumann", "Bad+Name"),
        TEXT + "\n" + PETER_LINE.replace("PeterNeumann", "Bad\u00a0Name"),
        TEXT + "\n" + PETER_LINE.replace("PeterNeumann", ""),
        TEXT + "\n" + PETER_LINE + "Unexpected line.\n",
        TEXT + "\n" + "— PeterNeumann x08gow==\n",  # a key id and nothing signed
        TEXT + "\n" + PETER_LINE * (MAX_SIGNATURES + 1),
        PETER_LINE,
        "",
    ],
)
def test_what_is_no_note(data: str) -> None:
    with pytest.raises(NoteError):
        parse_note(data.encode())


def test_bytes_that_are_not_utf8() -> None:
    with pytest.raises(NoteError, match="UTF-8"):
        parse_note(b"\xff" + (TEXT + "\n" + PETER_LINE).encode())


def test_base64_has_one_spelling() -> None:
    # "M=" and "N=" decode to the same bytes: only one of them renders again.
    with pytest.raises(NoteError):
        note(PETER_LINE.replace("AM=", "AN="))


def test_the_largest_number_of_signatures() -> None:
    assert len(note(*[PETER_LINE] * MAX_SIGNATURES).signatures) == MAX_SIGNATURES


@pytest.mark.parametrize("data", [ARCHE, SOFA])
def test_published_checkpoints_render_again(data: str) -> None:
    assert parse_note(data.encode()).render() == data.encode()


def test_a_cosignature_from_the_field_holds() -> None:
    remora = parse_note_key(REMORA)
    assert verified(parse_note(ARCHE.encode()), [remora]) == [(remora, 0x6A122120)]
    with pytest.raises(NoteError, match=r"remora\.n621\.de"):
        verified(parse_note(ARCHE.replace("1432088532", "42").encode()), [remora])


def test_the_time_of_the_example_cosignature() -> None:
    signature = parse_note(SOFA.encode()).signatures[1]
    assert struct.unpack(">Q", signature.blob[:8]) == (1679315147,)
    assert len(signature.blob) == 72


def test_cosignatures_bind_text_and_time() -> None:
    public = parse_note_key(PETER).public
    key = NoteKey("witness.example/w1", COSIGNATURE_V1, public)
    signature = cosign(TEXT, key.name, peter, public, 1679315147)
    assert peter(b"cosignature/v1\ntime 1679315147\n" + TEXT.encode()) == signature.blob[8:]
    assert verified(Note(TEXT, (signature,)), [key]) == [(key, 1679315147)]
    later = signature._replace(blob=struct.pack(">Q", 1679315148) + signature.blob[8:])
    for broken in (later, signature._replace(blob=signature.blob[:-1])):
        with pytest.raises(NoteError, match="does not hold"):
            verified(Note(TEXT, (broken,)), [key])


def test_a_cosignature_is_no_note_signature_of_the_same_key() -> None:
    public = parse_note_key(PETER).public
    signature = cosign(TEXT, "PeterNeumann", peter, public, 1)
    assert verified(Note(TEXT, (signature,)), [parse_note_key(PETER)]) == []


def test_a_signed_time_beyond_the_range_does_not_count() -> None:
    public = parse_note_key(PETER).public
    key = NoteKey("w", COSIGNATURE_V1, public)
    for timestamp_s in ((1 << 63) - 1, 1 << 63):
        blob = struct.pack(">Q", timestamp_s) + peter(f"cosignature/v1\ntime {timestamp_s}\n{TEXT}".encode())
        signed = Note(TEXT, (NoteSignature("w", key.key_id, blob),))
        if timestamp_s < 1 << 63:
            assert verified(signed, [key]) == [(key, timestamp_s)]
        else:
            with pytest.raises(NoteError, match="does not hold"):
                verified(signed, [key])


@pytest.mark.parametrize("timestamp_s", [-1, 1 << 63])
def test_times_outside_the_range(timestamp_s: int) -> None:
    with pytest.raises(NoteError, match="no time"):
        cosign(TEXT, "w", peter, parse_note_key(PETER).public, timestamp_s)


@pytest.mark.parametrize(
    ("text", "name"), [("no line end", "a"), ("a\tb\n", "a"), (TEXT, "a b"), (TEXT, ""), (TEXT, "a+b")]
)
def test_what_cannot_be_signed(text: str, name: str) -> None:
    with pytest.raises(NoteError):
        sign_note(text, name, peter, parse_note_key(PETER).public)


def test_names_with_control_characters_are_no_names() -> None:
    assert is_note_name("log.example/site-1")
    assert not is_note_name("log\x01")


def test_two_known_keys_may_not_be_mixed_up() -> None:
    one = parse_note_key(PETER)
    assert verified(note(PETER_LINE), [one, one]) == [(one, 0)]

    class Colliding(NoteKey):
        key_id = one.key_id  # type: ignore[assignment]

    with pytest.raises(NoteError, match="share the name"):
        verified(note(PETER_LINE), [one, Colliding(one.name, ED25519, bytes(32))])


def test_signature_lines_alone() -> None:
    assert parse_signatures(PETER_LINE + ENOCH_LINE) == note(PETER_LINE, ENOCH_LINE).signatures


@given(
    st.text(st.characters(codec="utf-8", exclude_categories=["Cc"], include_characters="\n")).map(lambda t: t + "\n"),
    st.integers(0, (1 << 63) - 1),
)
def test_whatever_is_signed_parses_and_verifies(text: str, timestamp_s: int) -> None:
    public = parse_note_key(PETER).public
    keys = [NoteKey("a.example/x", ED25519, public), NoteKey("w", COSIGNATURE_V1, public)]
    whole = Note(text, (sign_note(text, "a.example/x", peter, public), cosign(text, "w", peter, public, timestamp_s)))
    assert parse_note(whole.render()) == whole
    assert verified(parse_note(whole.render()), keys) == [(keys[0], 0), (keys[1], timestamp_s)]


@given(st.binary(max_size=300))
def test_any_bytes_parse_or_are_refused(data: bytes) -> None:
    for candidate in (data, (TEXT + "\n— ").encode() + data):
        try:
            parsed = parse_note(candidate)
        except NoteError:
            continue
        assert parsed.render() == candidate
