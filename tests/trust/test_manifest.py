# SPDX-License-Identifier: Apache-2.0
import hashlib
import ipaddress
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvps.trust import manifest
from mvps.trust.keys import Kind, PublicKey, SecretKey
from mvps.trust.manifest import (
    Broker,
    Manifest,
    ManifestError,
    Profile,
    Revoked,
    Vantage,
    admit,
    check_chain,
    check_successor,
    open_manifest,
    parse_manifest,
    parse_utc,
    quarantine,
    release,
    revoke,
    sign_manifest,
    succeed,
    utc,
)
from mvps.trust.note import COSIGNATURE_V1, ED25519, Note, NoteKey, parse_note, sign_note

T0 = 1_800_000_000


def secret(number: int, kind: Kind = Kind.HOST) -> SecretKey:
    return SecretKey(hashlib.sha256(f"{kind}{number}".encode()).digest(), kind)


OPERATOR = secret(0, Kind.OPERATOR)
BROKER = Broker("site-1", secret(0, Kind.BROKER).public)
HOSTS = tuple(secret(n).public for n in range(6))
WITNESSES = tuple(NoteKey(f"w{n}.example", COSIGNATURE_V1, secret(n, Kind.WITNESS).public.ed25519) for n in range(3))
NETWORKS = tuple(map(ipaddress.ip_network, ("10.0.0.5/32", "10.0.0.0/8", "192.0.2.0/24", "2001:db8::/32", "::1/128")))


def vantage(number: int, **changes: object) -> Vantage:
    return Vantage(f"host-{number}", HOSTS[number])._replace(**changes)  # type: ignore[arg-type]


def first(**changes: object) -> Manifest:
    values: dict[str, object] = {
        "operator": "acme",
        "epoch_id": 1,
        "previous": None,
        "from_s": T0,
        "until_s": T0 + 1000,
        "retire_s": T0,
        "broker": BROKER,
        "vantages": (vantage(0), vantage(1), vantage(2)),
    }
    return Manifest(**(values | changes))  # type: ignore[arg-type]


FULL = first(
    profile=Profile.TRUST,
    tick_ms=50,
    faults=1,
    embedding="all-MiniLM-L6-v2",
    quorum=2,
    witnesses=WITNESSES,
    vantages=(
        vantage(2, cell="r1", roles=("host", "ai"), prefixes=NETWORKS),
        vantage(0, prefixes=NETWORKS[:1]),
        vantage(1),
    ),
    revoked=(Revoked("host-9", b"\1" * 8), Revoked("host-9", b"\0" * 8)),
)


# ---- text


def test_text_is_the_documented_one() -> None:
    key = {n: HOSTS[n].text for n in range(3)}
    assert FULL.text == (
        "mvps-epoch-manifest-v1\n"
        "operator acme\n"
        "epoch 1\n"
        "previous none\n"
        "from 2027-01-15T08:00:00Z\n"
        "until 2027-01-15T08:16:40Z\n"
        "retire 2027-01-15T08:00:00Z\n"
        "tick 50ms\n"
        "profile trust\n"
        "faults 1\n"
        "rate 4\n"
        "embedding all-MiniLM-L6-v2\n"
        f"broker site-1 {BROKER.key.text}\n"
        "quorum 2\n"
        + "".join(f"witness {text}\n" for text in sorted(w.text for w in WITNESSES))
        + f"vantage host-0 cell=- roles=- prefixes=10.0.0.5/32 key={key[0]}\n"
        f"vantage host-1 cell=- roles=- prefixes=- key={key[1]}\n"
        "vantage host-2 cell=r1 roles=ai,host "
        f"prefixes=10.0.0.0/8,10.0.0.5/32,192.0.2.0/24,::1/128,2001:db8::/32 key={key[2]}\n"
        "revoked host-9 0000000000000000\n"
        "revoked host-9 0101010101010101\n"
    )
    assert FULL.digest == hashlib.sha256(FULL.text.encode()).digest()


networks = st.one_of(
    st.builds(lambda a, n: ipaddress.ip_network((a, n), strict=False), st.integers(0, 2**32 - 1), st.integers(0, 32)),
    st.builds(
        lambda a, n: ipaddress.ip_network((a, n), strict=False), st.integers(2**33, 2**128 - 1), st.integers(0, 128)
    ),
)
vantages = st.builds(
    lambda number, name, cell, roles, prefixes: Vantage(
        f"{name}{number}", HOSTS[number], cell, tuple(roles), tuple(prefixes)
    ),
    st.integers(0, 5),
    st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._:@-]{0,20}\Z"),
    st.one_of(st.just(""), st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")),
    st.lists(st.from_regex(r"\A[a-z][a-z0-9-]{0,31}\Z"), max_size=8),
    st.lists(networks, max_size=16),
)
manifests = st.builds(
    lambda members, revoked, **fields: first(vantages=members, revoked=revoked, **fields),
    st.lists(vantages, max_size=6, unique_by=(lambda v: v.vantage_id, lambda v: v.key)).map(tuple),
    st.lists(st.builds(Revoked, st.just("gone"), st.binary(min_size=8, max_size=8)), max_size=5).map(tuple),
    epoch_id=st.integers(1, 2**63 - 1),
    tick_ms=st.integers(50, 60_000),
    profile=st.sampled_from(Profile),
    faults=st.integers(0, 100_000),
    rate_factor=st.integers(1, 1000),
    until_s=st.integers(T0 + 1, 9_223_372_036),
    witnesses=st.lists(st.sampled_from(WITNESSES)).map(tuple),
    quorum=st.integers(0, 32),
)


@settings(max_examples=150, deadline=None)
@given(manifests)
def test_whatever_is_written_reads_back_the_same(made: Manifest) -> None:
    assert parse_manifest(made.text) == made
    assert parse_manifest(made.text).text == made.text


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_changed_text_is_refused_or_says_something_else(data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(FULL.text) - 1))
    character = data.draw(st.one_of(st.sampled_from("\n 0a=-,é\r"), st.characters(codec="utf-8")))
    changed = data.draw(
        st.sampled_from(
            [
                FULL.text[:position] + character + FULL.text[position + 1 :],
                FULL.text[:position] + character + FULL.text[position:],
                FULL.text[:position] + FULL.text[position + 1 :],
                FULL.text[:position],
            ]
        )
    )
    try:
        parsed = parse_manifest(changed)
    except ManifestError:
        return
    assert parsed.text == changed
    assert (parsed == FULL) == (changed == FULL.text)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200))
def test_random_text_raises_manifest_error_only(text: str) -> None:
    for candidate in (text, manifest.FIRST_LINE + "\n" + text, FULL.text + text):
        if candidate != FULL.text:
            with pytest.raises(ManifestError):
                parse_manifest(candidate)


def line(name: str) -> str:
    return next(line for line in FULL.text.splitlines() if line.startswith(name))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("mvps-epoch-manifest-v1", "mvps-epoch-manifest-v2", "line 1: this is no manifest"),
        ("operator acme\nepoch 1\n", "epoch 1\noperator acme\n", "line 2: .* stands where `operator`"),
        ("epoch 1\n", "epoch 01\n", "line 3: there is one way"),
        ("epoch 1\n", "epoch 0\n", "`epoch` is 0"),
        ("epoch 1\n", "epoch +1\n", "whole number"),
        ("previous none", "previous 00ff", "64 hex digits"),
        ("previous none", "previous " + "A" * 64, "64 hex digits"),
        ("08:00:00Z\nuntil", "08:00:00+00:00\nuntil", "is no time"),
        ("from 2027-01-15T08", "from 2027-1-15T08", "line 5: there is one way"),
        ("until 2027", "until 2026", "`from` must be before `until`"),
        ("until 2027", "until 2999", "to 2262"),
        ("retire 2027-01-15T08:00:00Z", "retire 2027-01-15T08:00:01Z", "must equal `from` in a first epoch"),
        ("retire 2027-01-15T08", "retire 2027-01-15T07", "`retire` must not be before"),
        ("tick 50ms", "tick 49ms", "`tick` is 49"),
        ("tick 50ms", "tick 50", "line 8: there is one way"),
        ("profile trust", "profile none", "cwt or trust"),
        ("embedding all-MiniLM-L6-v2", "embedding a b", "embedding"),
        ("quorum 2\n", "quorum 2\nquorum 2\n", "line 15: .*is no line of a manifest"),
        (
            "broker site-1 mvps-public-v1:broker",
            "broker site-1 mvps-public-v1:host",
            "`broker`: .*broker key is needed",
        ),
        ("broker site-1", "broker site-1 ", "`broker`: this is no public key"),
        ("witness w0", "witness w9", "line 15: .*damaged"),
        ("cell=r1", "cell=r/1", "cell"),
        ("cell=r1", "cel=r1", "line 20: a vantage has the form"),
        ("roles=ai,host", "roles=host,ai", "line 20: there is one way"),
        ("roles=ai,host", "roles=ai,ai,host", "line 20: there is one way"),
        ("roles=ai,host", "roles=AI", "role"),
        ("roles=ai,host", "roles=" + ",".join("abcdefghi"), "more than 8"),
        ("prefixes=10.0.0.5/32", "prefixes=10.0.0.5", "line 18: there is one way"),
        ("prefixes=10.0.0.5/32", "prefixes=10.0.0.5/8", "line 18: .*host bits"),
        ("prefixes=10.0.0.5/32", "prefixes=fe80::%25e/128", "zone"),
        ("prefixes=10.0.0.5/32", "prefixes=" + ",".join(f"10.0.0.{n}/32" for n in range(17)), "more than 16"),
        ("vantage host-1", "vantage host-0", "there twice|host-0 has the key|one way"),
        ("vantage host-1", "vantage host/1", "vantage id"),
        ("revoked host-9 0000000000000000", "revoked host-9 000000000000000G", "line 21: a revoked key"),
        ("revoked host-9 0000000000000000\n", "\n", "is no line of a manifest"),
        ("revoked", "note hello\nrevoked", "is no line of a manifest"),
    ],
)
def test_refusals_name_the_line(old: str, new: str, said: str) -> None:
    assert old in FULL.text
    with pytest.raises(ManifestError, match=said):
        parse_manifest(FULL.text.replace(old, new, 1))


def test_lines_may_not_be_repeated_reordered_or_left_out() -> None:
    one, two = line("vantage host-0"), line("vantage host-1")
    for wrong in (
        FULL.text.replace(f"{one}\n{two}", f"{two}\n{one}"),
        FULL.text.replace(one, f"{one}\n{one}"),
        FULL.text[:-1],
        FULL.text + "\n",
        FULL.text.replace("\n", "\r\n"),
    ):
        with pytest.raises(ManifestError):
            parse_manifest(wrong)


def test_limits_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MAX_VANTAGES", "MAX_WITNESSES", "MAX_REVOKED"):
        with monkeypatch.context() as patch:
            patch.setattr(manifest, name, 1)
            with pytest.raises(ManifestError, match=r"at most|more than|must be from"):
                parse_manifest(FULL.text)
    monkeypatch.setattr(manifest, "MAX_MANIFEST_BYTES", len(FULL.text) - 1)
    with pytest.raises(ManifestError, match="at most"):
        parse_manifest(FULL.text)
    with pytest.raises(ManifestError, match="at most"):
        open_manifest(bytes(len(FULL.text)), OPERATOR.public)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"operator": "ac me"}, "operator id"),
        ({"operator": "ac+me"}, "operator id"),
        ({"previous": b"short"}, "SHA-256 has 32"),
        ({"broker": Broker("b", HOSTS[0])}, "has a host key"),
        ({"vantages": (vantage(0, key=BROKER.key),)}, "has a broker key"),
        ({"vantages": (vantage(0), vantage(0, key=HOSTS[1]))}, "there twice"),
        ({"vantages": (vantage(0), vantage(1, key=HOSTS[0]))}, "host-1 has the key of host-0"),
        ({"vantages": (vantage(0, key=PublicKey(Kind.HOST, HOSTS[0].x25519, BROKER.key.ed25519)),)}, "key of site-1"),
        ({"revoked": (Revoked("x", HOSTS[1].key_id),)}, "key of vantage host-1 is revoked"),
        ({"revoked": (Revoked("x", BROKER.key.key_id),)}, "key of broker site-1 is revoked"),
        ({"revoked": (Revoked("x", b"1"),)}, "8 bytes"),
        ({"witnesses": (NoteKey("w", ED25519, WITNESSES[0].public),)}, "cosignature key"),
        ({"witnesses": (WITNESSES[0], NoteKey("w0.example", COSIGNATURE_V1, bytes(32)))}, "anybody can hold|same name"),
        ({"witnesses": (WITNESSES[0], WITNESSES[0]._replace(public=WITNESSES[1].public))}, "same name"),
        ({"witnesses": (NoteKey("w", COSIGNATURE_V1, (1).to_bytes(32, "little")),)}, "anybody can hold"),
    ],
)
def test_a_manifest_that_cannot_be(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ManifestError, match=said):
        first(**changes)


@pytest.mark.parametrize("text", ["2027-01-15T08:00:00", "2027-02-30T08:00:00Z", "", "now"])
def test_times_of_another_form(text: str) -> None:
    with pytest.raises(ManifestError, match="is no time"):
        parse_utc(text)
    assert parse_utc(utc(T0)) == T0


# ---- signature


def test_signed_opens_with_the_operators_key_only() -> None:
    signed = sign_manifest(FULL, OPERATOR)
    assert open_manifest(signed, OPERATOR.public) == FULL
    with pytest.raises(ManifestError, match="not signed by the configured operator"):
        open_manifest(signed, secret(1, Kind.OPERATOR).public)
    with pytest.raises(ManifestError, match="configured is a host key"):
        open_manifest(signed, HOSTS[0])
    with pytest.raises(ManifestError, match="this is a host key"):
        sign_manifest(FULL, secret(0))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_changed_byte_of_a_signed_manifest_counts(data: st.DataObject) -> None:
    signed = sign_manifest(FULL, OPERATOR)
    changed = bytearray(signed)
    changed[data.draw(st.integers(0, len(signed) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ManifestError):
        open_manifest(bytes(changed), OPERATOR.public)


def test_other_signatures_beside_the_operators_are_ignored() -> None:
    note = parse_note(sign_manifest(FULL, OPERATOR))
    other = sign_note(FULL.text, "acme", secret(1, Kind.OPERATOR).sign, secret(1, Kind.OPERATOR).public.ed25519)
    assert open_manifest(Note(note.text, (other, *note.signatures)).render(), OPERATOR.public) == FULL
    with pytest.raises(ManifestError, match="not signed"):
        open_manifest(Note(note.text, (other,)).render(), OPERATOR.public)


def test_the_signature_name_is_the_operator_id() -> None:
    wrong = sign_note(FULL.text, "other", OPERATOR.sign, OPERATOR.public.ed25519)
    with pytest.raises(ManifestError, match="in the name of other"):
        open_manifest(Note(FULL.text, (wrong,)).render(), OPERATOR.public)
    right = parse_note(sign_manifest(FULL, OPERATOR)).signatures[0]
    with pytest.raises(ManifestError, match="not signed"):
        open_manifest(Note(FULL.text, (wrong, right)).render(), OPERATOR.public)


def test_a_signed_text_that_is_not_canonical_does_not_count() -> None:
    text = FULL.text.replace("epoch 1\n", "epoch 01\n")
    signature = sign_note(text, "acme", OPERATOR.sign, OPERATOR.public.ed25519)
    with pytest.raises(ManifestError, match="one way"):
        open_manifest(Note(text, (signature,)).render(), OPERATOR.public)


def unchecked(made: Manifest) -> bytes:
    return Note(made.text, (sign_note(made.text, "acme", OPERATOR.sign, OPERATOR.public.ed25519),)).render()


@pytest.mark.parametrize(("admitted", "faults"), [(0, 0), (1, 1), (2, 1), (3, 2), (4, 2), (5, 3)])
def test_too_many_faults_are_refused_on_both_sides(admitted: int, faults: int) -> None:
    made = first(vantages=tuple(map(vantage, range(admitted))), faults=faults)
    with pytest.raises(ManifestError, match="less than half"):
        sign_manifest(made, OPERATOR)
    with pytest.raises(ManifestError, match="less than half"):
        open_manifest(unchecked(made), OPERATOR.public)


@pytest.mark.parametrize(("admitted", "faults"), [(1, 0), (2, 0), (3, 1), (4, 1), (5, 2)])
def test_the_largest_f_that_is_allowed(admitted: int, faults: int) -> None:
    made = first(vantages=tuple(map(vantage, range(admitted))), faults=faults)
    assert open_manifest(sign_manifest(made, OPERATOR), OPERATOR.public).faults == faults


def test_a_quorum_above_the_witnesses_is_refused_on_both_sides() -> None:
    made = first(witnesses=WITNESSES, quorum=4)
    with pytest.raises(ManifestError, match="4 cosignatures and names 3"):
        sign_manifest(made, OPERATOR)
    with pytest.raises(ManifestError, match="4 cosignatures and names 3"):
        open_manifest(unchecked(made), OPERATOR.public)
    sign_manifest(first(witnesses=WITNESSES, quorum=3), OPERATOR)


# ---- from one epoch to the next


def test_a_successor_has_the_same_members_and_overlaps() -> None:
    one = FULL
    two = succeed(one, T0 + 100, valid_s=5000, overlap_s=60)
    assert (two.epoch_id, two.previous) == (2, one.digest)
    assert (two.from_s, two.retire_s, two.until_s) == (T0 + 100, T0 + 160, T0 + 5100)
    assert (two.vantages, two.witnesses, two.revoked, two.profile) == (
        one.vantages, one.witnesses, one.revoked, one.profile,
    )  # fmt: skip
    check_successor(one, two)
    assert succeed(one, T0 + 990, overlap_s=60).retire_s == one.until_s
    lapsed = succeed(one, one.until_s + 50, overlap_s=60)
    assert lapsed.retire_s == lapsed.from_s
    at_once = succeed(one, T0)
    assert at_once.from_s == T0 + 1
    for made in (lapsed, at_once):
        check_successor(one, made)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"operator": "other"}, "operator is other"),
        ({"epoch_id": 1}, "must rise"),
        ({"previous": bytes(32)}, "another manifest as its previous"),
        ({"previous": None, "retire_s": T0 + 100}, "another manifest as its previous"),
        ({"from_s": T0}, "it begins"),
        ({"retire_s": T0 + 1001}, "no later than that end"),
        ({"from_s": T0 + 2000, "retire_s": T0 + 2001}, "no later than that end"),
        ({"revoked": ()}, "takes 2 revocations back"),
        ({"revoked": FULL.revoked[:1]}, "takes 1 revocations back, the first of host-9 0101"),
    ],
)
def test_what_may_not_follow(changes: dict[str, object], said: str) -> None:
    two = replace(succeed(FULL, T0 + 100), **changes)  # type: ignore[arg-type]
    with pytest.raises(ManifestError, match=said):
        check_successor(FULL, two)
    with pytest.raises(ManifestError):
        check_chain([two, FULL])


def test_profile_tick_and_members_may_change() -> None:
    two = replace(succeed(FULL, T0 + 100), profile=Profile.CWT, tick_ms=1000, vantages=(vantage(5),), faults=0)
    check_successor(FULL, two)


def test_a_chain_in_any_order_with_its_gaps_named() -> None:
    one = first()
    two = succeed(one, T0 + 500, valid_s=1000)
    three = succeed(two, T0 + 700, valid_s=1000)
    four = succeed(three, T0 + 5000)
    assert check_chain([]) == check_chain([one]) == check_chain([three, one, two, one]) == []
    assert check_chain([three, four]) == [
        f"no epoch from {utc(three.until_s)} to {utc(four.from_s)}: nothing sealed then is accepted"
    ]
    # How long epoch 2 lasts is not known here, so nothing is said about gaps or its overlap with epoch 3.
    assert check_chain([one, three]) == ["between epochs 1 and 3 manifests are missing"]
    assert check_chain([one, four]) == ["between epochs 1 and 4 manifests are missing"]


def test_two_manifests_of_one_epoch_break_the_chain() -> None:
    with pytest.raises(ManifestError, match="two different manifests of epoch 1"):
        check_chain([first(), first(faults=1)])


def test_admit_adds_or_replaces() -> None:
    one = first(vantages=(vantage(0),))
    two = admit(admit(one, vantage(1)), vantage(0, key=HOSTS[3], cell="r2"))
    assert [(v.vantage_id, v.key, v.cell) for v in two.vantages] == [
        ("host-0", HOSTS[3], "r2"),
        ("host-1", HOSTS[1], ""),
    ]
    assert two.vantage("host-1") == vantage(1)
    assert two.vantage("host-2") is None


def test_revoke_drops_the_vantage_and_lists_its_key() -> None:
    two = revoke(first(), "host-1")
    assert two.vantage("host-1") is None
    assert two.revoked == (Revoked("host-1", HOSTS[1].key_id),)
    with pytest.raises(ManifestError, match="is revoked"):
        admit(two, vantage(1))
    assert admit(two, vantage(1, key=HOSTS[4])).vantage("host-1")
    with pytest.raises(ManifestError, match="--key-id"):
        revoke(first(), "host-5")


def test_quarantine_and_release() -> None:
    two = quarantine(quarantine(first(), "host-1"), "host-0")
    assert two.quarantined == ("host-0", "host-1")
    assert parse_manifest(two.text) == two
    assert "\nquarantined host-0\nquarantined host-1\n" in two.text
    assert [v.vantage_id for v in two.fleet] == [v.vantage_id for v in two.vantages][2:]
    assert release(two, "host-1").quarantined == ("host-0",)
    assert release(release(two, "host-1"), "host-0") == first()
    assert revoke(two, "host-1").quarantined == ("host-0",)
    with pytest.raises(ManifestError, match="mvps epoch show lists who is"):
        quarantine(two, "host-99")
    with pytest.raises(ManifestError, match="is not in quarantine"):
        release(first(), "host-1")
    with pytest.raises(ManifestError, match="quarantined vantage 'host-99' is not admitted"):
        first(quarantined=("host-99",))


def test_f_is_held_against_those_who_are_not_in_quarantine() -> None:
    manifest = first(faults=(len(first().vantages) - 1) // 2)
    manifest.check()
    aside = manifest
    for vantage in manifest.vantages[: len(manifest.vantages) - 2 * manifest.faults]:
        aside = quarantine(aside, vantage.vantage_id)
    with pytest.raises(ManifestError, match=r"that are not in quarantine \(1 are\) and claims that f"):
        aside.check()


def test_revoke_of_an_earlier_key_keeps_the_vantage() -> None:
    two = revoke(first(), "host-1", HOSTS[4].key_id)
    assert two.vantage("host-1") == vantage(1)
    assert two.revoked == (Revoked("host-1", HOSTS[4].key_id),)
    assert revoke(two, "host-1", HOSTS[1].key_id).vantage("host-1") is None
