# SPDX-License-Identifier: Apache-2.0
import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given, settings
from hypothesis import strategies as st

from mvps.trust import epochs as module
from mvps.trust.epochs import Epochs, EpochSealer
from mvps.trust.keys import Kind, PublicKey, SecretKey
from mvps.trust.limits import MAX_MANIFESTS
from mvps.trust.manifest import Broker, Manifest, ManifestError, Profile, Vantage, admit, revoke, succeed
from mvps.trust.reasons import RejectReason
from mvps.trust.seal import (
    HmacKey,
    Lane,
    Purpose,
    Scheme,
    Sealed,
    Sealer,
    SealError,
    SealHeader,
    StreamCounter,
    Verifier,
    parse_header,
)

SECOND = 10**9
T0 = 1_800_000_000
LIVE_PAST = 300 * SECOND


def secret(name: str, kind: Kind = Kind.HOST) -> SecretKey:
    return SecretKey(hashlib.sha256(f"{kind}{name}".encode()).digest(), kind)


HOSTS = {name: secret(name) for name in ("host-a", "host-b", "host-c")}
BROKER = secret("broker", Kind.BROKER)
ROTATED = secret("host-a again")


def first(profile: Profile = Profile.CWT, **changes: object) -> Manifest:
    values: dict[str, object] = {
        "operator": "acme",
        "epoch_id": 1,
        "previous": None,
        "from_s": T0,
        "until_s": T0 + 10_000,
        "retire_s": T0,
        "profile": profile,
        "broker": Broker("site", BROKER.public),
        "vantages": tuple(Vantage(name, key.public) for name, key in HOSTS.items()),
    }
    return Manifest(**(values | changes))  # type: ignore[arg-type]


def broker(*manifests: Manifest, keys: tuple[SecretKey, ...] = (BROKER,)) -> Epochs:
    made = Epochs.of_broker(keys)
    for manifest in manifests:
        made.add(manifest)
    return made


def agent(*manifests: Manifest, name: str = "host-a", keys: tuple[SecretKey, ...] = ()) -> Epochs:
    made = Epochs.of_agent(keys or (HOSTS[name],), name)
    for manifest in manifests:
        made.add(manifest)
    return made


def at(seconds: float) -> int:
    return (T0 * SECOND) + int(seconds * SECOND)


def seal(epochs: Epochs, now_ns: int, name: str = "host-a") -> Sealed:
    return EpochSealer(epochs, name, StreamCounter(), lambda: now_ns).seal(b"body", tick=1)


def verify(epochs: Epochs, sealed: Sealed) -> SealHeader:
    return Verifier(epochs, Purpose.SNAPSHOT).verify(sealed)


def judge(epochs: Epochs, header: SealHeader, now_ns: int) -> RejectReason | None:
    """The gate's rule about epochs, as tests/trust/oracle.py has it, with these epochs' times."""
    try:
        from_ns, until_ns, retire_ns, _ = epochs.validity(header.epoch_id)
    except SealError:
        return RejectReason.EPOCH_RETIRED
    retired = header.lane == Lane.LIVE and (header.time_ns >= retire_ns or now_ns - LIVE_PAST >= retire_ns)
    return None if from_ns <= header.time_ns < until_ns and not retired else RejectReason.EPOCH_RETIRED


def refused(epochs: Epochs, sealed: Sealed) -> RejectReason:
    with pytest.raises(SealError) as caught:
        verify(epochs, sealed)
    return caught.value.reason


def no_key(epochs: Epochs, name: str, epoch_id: int = 1, purpose: Purpose = Purpose.SNAPSHOT) -> RejectReason:
    with pytest.raises(SealError) as caught:
        epochs.sealing_key(name, epoch_id, purpose)
    return caught.value.reason


# ---- keys


def test_cwt_keys_are_the_documented_ones() -> None:
    # Built again from the text of the module, starting at the shared secret.
    ikm = HOSTS["host-a"].exchange(BROKER.public)
    salt = hashlib.sha256(b"\x00\x04acme" + (1).to_bytes(8, "big")).digest()
    for purpose in Purpose:
        info = f"mvps/v1/cwt/{purpose.name.lower()}".encode() + b"\0host-a"
        expected = HmacKey(HKDF(algorithm=SHA256(), length=32, salt=salt, info=info).derive(ikm), bytes(8))
        for side in (agent(first()), broker(first())):
            made = side.sealing_key("host-a", 1, purpose)
            assert made.tag(b"header", b"body") == expected.tag(b"header", b"body")
            assert made.key_id == (BROKER if purpose is Purpose.CONTROL else HOSTS["host-a"]).public.key_id
            assert made.scheme is Scheme.HMAC_SHA256


@pytest.mark.parametrize("profile", Profile)
def test_snapshots_and_answers_cross_in_both_profiles(profile: Profile) -> None:
    at_agent, at_broker = agent(first(profile)), broker(first(profile))
    header = verify(at_broker, seal(at_agent, at(5)))
    assert (header.scheme, header.epoch_id, header.time_ns) == (profile.scheme, 1, at(5))
    key = at_broker.sealing_key("host-a", 1, Purpose.CONTROL)
    answer = Sealer(key, "host-a", Purpose.CONTROL, StreamCounter(), epoch_id=1).seal(b"acks", 0)
    assert Verifier(at_agent, Purpose.CONTROL).verify(answer).key_id == BROKER.public.key_id


def test_in_a_trust_epoch_only_the_sealing_party_can_seal() -> None:
    made = first(Profile.TRUST)
    with pytest.raises(ValueError, match="only the holder"):
        broker(made).sealing_key("host-a", 1, Purpose.SNAPSHOT).tag(b"", b"")
    with pytest.raises(ValueError, match="only the holder"):
        agent(made).sealing_key("host-a", 1, Purpose.CONTROL).tag(b"", b"")


def test_keys_differ_by_vantage_epoch_and_purpose() -> None:
    one = first()
    two = succeed(one, T0 + 100)
    other = broker(first(operator="other"))
    side = broker(one, two)
    tags = {
        (name, epoch_id, purpose): side.sealing_key(name, epoch_id, purpose).tag(b"header", b"body")
        for name, epoch_id, purpose in itertools.product(HOSTS, (1, 2), Purpose)
    }
    tags["other", 1, Purpose.SNAPSHOT] = other.sealing_key("host-a", 1, Purpose.SNAPSHOT).tag(b"header", b"body")
    assert len(set(tags.values())) == len(HOSTS) * 2 * len(Purpose) + 1


def test_a_seal_says_nothing_under_another_name_epoch_or_purpose() -> None:
    one = first()
    side = broker(one, succeed(one, T0 + 100))
    good = seal(agent(one), at(5))
    verify(side, good)
    head = good.header
    for changed, reason in (
        (head[:16] + (2).to_bytes(8, "big") + head[24:], RejectReason.BAD_SEAL),
        (head[:48] + HOSTS["host-b"].public.key_id + b"host-b", RejectReason.BAD_SEAL),
        (head[:56] + b"host-b", RejectReason.UNKNOWN_KEY),
        (head[:56] + b"host-z", RejectReason.UNKNOWN_VANTAGE),
        (head[:16] + (3).to_bytes(8, "big") + head[24:], RejectReason.UNKNOWN_EPOCH),
    ):
        assert refused(side, good._replace(header=changed)) is reason
    control = Verifier(side, Purpose.CONTROL)
    with pytest.raises(SealError, match=r"bad_seal|unknown_key"):
        control.verify(good._replace(header=head[:6] + bytes([Purpose.CONTROL]) + head[7:]))


@pytest.mark.parametrize(("mine", "theirs"), [(Profile.CWT, Profile.TRUST), (Profile.TRUST, Profile.CWT)])
def test_no_downgrade_and_no_upgrade(mine: Profile, theirs: Profile) -> None:
    assert refused(broker(first(theirs)), seal(agent(first(mine)), at(5))) is RejectReason.WRONG_SCHEME


def test_the_profile_may_change_with_the_epoch_and_each_keeps_its_own() -> None:
    one = first()
    two = replace(succeed(one, T0 + 100), profile=Profile.TRUST)
    at_agent, at_broker = agent(one, two), broker(one, two)
    before, after = seal(at_agent, at(99)), seal(at_agent, at(100))
    assert (verify(at_broker, before).scheme, verify(at_broker, after).scheme) == (1, 2)
    relabelled = after._replace(header=after.header[:16] + (1).to_bytes(8, "big") + after.header[24:])
    assert refused(at_broker, relabelled) is RejectReason.WRONG_SCHEME


def test_who_is_not_admitted_has_no_key() -> None:
    side = broker(first())
    assert no_key(side, "host-z") is RejectReason.UNKNOWN_VANTAGE
    assert no_key(side, "host-a", 2) is RejectReason.UNKNOWN_EPOCH
    assert no_key(agent(first()), "host-b") is RejectReason.UNKNOWN_VANTAGE
    assert no_key(broker(first(), keys=(secret("x", Kind.BROKER),)), "host-a") is RejectReason.UNKNOWN_KEY
    assert no_key(agent(first(), keys=(secret("x"),)), "host-a") is RejectReason.UNKNOWN_KEY
    with pytest.raises(ValueError, match="a host key is needed, and this is a broker key"):
        Epochs.of_agent([BROKER], "host-a")
    with pytest.raises(ValueError, match="a broker key is needed"):
        Epochs.of_broker([HOSTS["host-a"]])


def test_a_key_that_shares_no_secret_is_refused_and_not_used() -> None:
    weak = PublicKey(Kind.HOST, bytes(32), secret("weak").public.ed25519)
    assert no_key(broker(first(vantages=(Vantage("weak", weak),))), "weak") is RejectReason.UNKNOWN_KEY


def test_no_tick_waits_for_a_key_agreement(monkeypatch: pytest.MonkeyPatch) -> None:
    one = first()
    side = agent(one, succeed(one, T0 + 100))

    def never(*_: object) -> bytes:
        raise AssertionError("derived on the tick path")

    monkeypatch.setattr(module, "hkdf", never)
    monkeypatch.setattr(SecretKey, "exchange", never)
    assert [parse_header(seal(side, at(t)).header).epoch_id for t in (5, 99.999, 100, 101)] == [1, 1, 2, 2]


def test_a_broker_derives_an_epoch_ahead_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    one = first()
    side = broker(one)
    assert [side.prepare(1, 2), side.prepare(1, 2), side.prepare(1, 2)] == [1, 0, 0]
    assert side.prepare(9, 2) == 0
    assert broker(one, keys=(secret("x", Kind.BROKER),)).prepare(1, 2) == 0
    side.add(succeed(one, T0 + 100))
    monkeypatch.setattr(SecretKey, "exchange", lambda *_: pytest.fail("the agreement outlives the epoch"))
    assert side.prepare(2, 10) == 0
    monkeypatch.setattr(module, "hkdf", lambda *_: pytest.fail("derived twice"))
    for name in HOSTS:
        side.sealing_key(name, 2, Purpose.CONTROL)


def test_the_cache_of_keys_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SEALING_KEYS", 2)
    side = broker(first())
    for name, purpose in itertools.product(HOSTS, Purpose):
        side.sealing_key(name, 1, purpose)
    assert len(side._keys) == 2
    assert len(side._agreed) <= 2


# ---- manifests


def chain(length: int) -> list[Manifest]:
    made = [first()]
    for number in range(1, length):
        made.append(succeed(made[-1], T0 + 100 * number))
    return made


@settings(max_examples=50, deadline=None)
@given(st.permutations(range(5)), st.integers(-50, 600))
def test_the_order_of_arrival_does_not_matter(order: list[int], now: int) -> None:
    made = chain(5)
    side, expected = broker(*(made[i] for i in order)), broker(*made)
    assert side.manifests == tuple(made)
    assert side.current(at(now)) == expected.current(at(now))
    for epoch_id in range(1, 6):
        header = SealHeader(1, 1, Lane.LIVE, 0, epoch_id, 0, 0, at(now), b"", "host-a")
        assert judge(side, header, at(now)) == judge(expected, header, at(now))


def test_current_is_the_newest_that_has_begun() -> None:
    side = broker(*chain(3))
    found = [side.current(at(t)) for t in (-1, 0, 99.999, 100, 10**6)]
    assert [m and m.epoch_id for m in found] == [None, 1, 1, 2, 3]


def test_the_same_manifest_twice_changes_nothing_and_another_of_its_epoch_is_refused() -> None:
    side = broker(first())
    version = side.version
    assert side.add(first()) is False
    with pytest.raises(ManifestError, match="two different manifests of epoch 1"):
        side.add(first(faults=1))
    assert side.version == version


def test_what_does_not_fit_is_refused_and_leaves_no_trace() -> None:
    one, two, three = chain(3)
    side = broker(one, three)
    for wrong in (
        replace(two, operator="other"),
        replace(two, previous=bytes(32)),
        replace(two, from_s=three.from_s, retire_s=three.from_s),
        replace(two, vantages=two.vantages[:1]),  # another epoch 2 than the one that epoch 3 names
    ):
        with pytest.raises(ManifestError, match="does not follow"):
            side.add(wrong)
    assert side.manifests == (one, three)
    assert side.add(two)


def test_only_so_many_are_kept_and_the_oldest_goes() -> None:
    made = chain(MAX_MANIFESTS + 2)
    side = broker(*made)
    assert side.manifests == tuple(made[2:])
    assert no_key(side, "host-a", 2) is RejectReason.UNKNOWN_EPOCH
    assert side.add(made[0]) is False
    backwards = broker(*reversed(made))
    assert backwards.manifests == tuple(made[2:])


def test_keys_of_a_forgotten_epoch_go_with_it() -> None:
    made = chain(MAX_MANIFESTS + 1)
    side = broker(*made[:-1])
    side.sealing_key("host-a", 1, Purpose.SNAPSHOT)
    side.add(made[-1])
    assert no_key(side, "host-a", 1) is RejectReason.UNKNOWN_EPOCH


# ---- rotation and revocation


def test_rotation_of_one_vantage_disturbs_nobody() -> None:
    one = first()
    two = admit(succeed(one, T0 + 100, overlap_s=60), Vantage("host-a", ROTATED.public))
    at_broker = broker(one, two)
    rotating = agent(one, two, keys=(ROTATED, HOSTS["host-a"]))
    for time_s, key in ((99, HOSTS["host-a"]), (100, ROTATED)):
        header = verify(at_broker, seal(rotating, at(time_s)))
        assert header.key_id == key.public.key_id
        assert judge(at_broker, header, at(time_s)) is None
    verify(at_broker, seal(agent(one, two, name="host-b"), at(100), "host-b"))
    # The old key alone is of no use once its epoch is over.
    with pytest.raises(SealError, match=r"names key .* restart after a rotation") as caught:
        seal(agent(one, two), at(100))
    assert caught.value.reason is RejectReason.UNKNOWN_KEY
    old = Sealer(
        at_broker.sealing_key("host-a", 1, Purpose.SNAPSHOT), "host-a", Purpose.SNAPSHOT, StreamCounter(), epoch_id=2
    ).seal(b"", 1)
    assert refused(at_broker, old) is RejectReason.UNKNOWN_KEY


def test_a_broker_answers_every_epoch_with_the_key_it_names() -> None:
    new = secret("new broker", Kind.BROKER)
    one = first()
    two = replace(succeed(one, T0 + 100), broker=Broker("site", new.public))
    at_broker, at_agent = broker(one, two, keys=(new, BROKER)), agent(one, two)
    for epoch_id, key in ((1, BROKER), (2, new)):
        sealing = at_broker.sealing_key("host-a", epoch_id, Purpose.CONTROL)
        sealed = Sealer(sealing, "host-a", Purpose.CONTROL, StreamCounter(), epoch_id=epoch_id).seal(b"acks", 0)
        assert Verifier(at_agent, Purpose.CONTROL).verify(sealed).key_id == key.public.key_id


def test_keys_that_are_held_anew_take_the_place_of_those_before() -> None:
    one = first(vantages=(Vantage("host-a", ROTATED.public),))
    side = agent(one)
    assert no_key(side, "host-a") is RejectReason.UNKNOWN_KEY
    version = side.version
    side.hold([ROTATED, HOSTS["host-a"]])
    assert side.version > version
    assert side.sealing_key("host-a", 1, Purpose.SNAPSHOT)
    side.hold([HOSTS["host-a"]])
    assert no_key(side, "host-a") is RejectReason.UNKNOWN_KEY
    with pytest.raises(ValueError, match="host key is needed"):
        side.hold([BROKER])


@pytest.mark.parametrize("profile", Profile)
def test_revocation_counts_at_once_in_every_epoch_with_cached_keys(profile: Profile) -> None:
    one = first(profile)
    two = succeed(one, T0 + 100)
    at_broker, stolen = broker(one, two), agent(one, two)
    under_one, under_two = seal(stolen, at(5)), seal(stolen, at(105))
    backfill = EpochSealer(stolen, "host-a", StreamCounter()).backfill(under_one)
    for sealed in (under_one, under_two, backfill):
        verify(at_broker, sealed)  # and the keys are in the cache
    version = at_broker.version
    # Known before it begins: the revoking epoch is in the far future.
    at_broker.add(revoke(succeed(two, T0 + 9000), "host-a"))
    assert at_broker.version > version
    for sealed in (under_one, under_two, backfill):
        assert refused(at_broker, sealed) is RejectReason.REVOKED
    assert no_key(at_broker, "host-a", 3) is RejectReason.REVOKED
    verify(at_broker, seal(agent(one, two, name="host-b"), at(105), "host-b"))
    # The agent that learns of it stops by itself.
    stolen.add(revoke(succeed(two, T0 + 9000), "host-a"))
    with pytest.raises(SealError, match="revoked") as caught:
        seal(stolen, at(105))
    assert caught.value.reason is RejectReason.REVOKED


def test_a_revoked_vantage_comes_back_with_a_new_key_only() -> None:
    one = first()
    two = admit(revoke(succeed(one, T0 + 100), "host-a"), Vantage("host-a", ROTATED.public))
    at_broker = broker(one, two)
    verify(at_broker, seal(agent(one, two, keys=(ROTATED,)), at(105)))
    assert no_key(at_broker, "host-a", 1) is RejectReason.REVOKED


def test_revoking_the_brokers_old_key_ends_the_epochs_that_name_it() -> None:
    one = first()
    new = secret("new broker", Kind.BROKER)
    two = revoke(replace(succeed(one, T0 + 100), broker=Broker("site", new.public)), "site", BROKER.public.key_id)
    at_agent = agent(one)
    at_agent.sealing_key("host-a", 1, Purpose.CONTROL)
    at_agent.add(two)
    assert no_key(at_agent, "host-a", 1, Purpose.CONTROL) is RejectReason.REVOKED
    assert at_agent.sealing_key("host-a", 2, Purpose.CONTROL).key_id == new.public.key_id


# ---- sealing


def test_nothing_is_sealed_without_an_epoch_in_force() -> None:
    for side, time_s, reason, said in (
        (agent(), 0, RejectReason.UNKNOWN_EPOCH, "no manifest is known"),
        (agent(first()), -1, RejectReason.UNKNOWN_EPOCH, "is this host's clock right"),
        (agent(first()), 10_000, RejectReason.EPOCH_RETIRED, "the operator has to sign the next one"),
    ):
        with pytest.raises(SealError, match=said) as caught:
            seal(side, at(time_s))
        assert caught.value.reason is reason
    with pytest.raises(ValueError, match="a broker seals no snapshots"):
        broker(first()).sealing(at(5))


def test_epoch_and_header_come_from_one_reading_of_the_clock() -> None:
    # The epoch changes between two readings; with no overlap such a seal would be lost.
    one = first()
    two = succeed(one, T0 + 100, overlap_s=0)
    clock: Iterator[int] = itertools.count(at(100) - 3)
    sealer = EpochSealer(agent(one, two), "host-a", StreamCounter(), lambda: next(clock))
    at_broker = broker(one, two)
    headers = [verify(at_broker, sealer.seal(b"", n)) for n in range(6)]
    assert [h.epoch_id for h in headers] == [1, 1, 1, 2, 2, 2]
    assert [judge(at_broker, h, at(100)) for h in headers] == [None] * 6


def test_backfill_keeps_time_and_tick_and_finds_the_epoch_of_that_time() -> None:
    one = first()
    two = succeed(one, T0 + 100, overlap_s=10)
    side = agent(one)
    counter = StreamCounter()
    sealer = EpochSealer(side, "host-a", counter, lambda: at(150))
    live = sealer.seal(b"body", 7)  # the host did not know of epoch 2
    side.add(two)
    at_broker = broker(one, two)
    assert judge(at_broker, verify(at_broker, live), at(151)) is RejectReason.EPOCH_RETIRED
    again = sealer.backfill(live)
    header = verify(at_broker, again)
    assert (header.lane, header.epoch_id, header.tick, header.time_ns) == (Lane.BACKFILL, 2, 7, at(150))
    assert header.counter > parse_header(live.header).counter
    assert judge(at_broker, header, at(5000)) is None


@pytest.mark.parametrize("profile", Profile)
def test_a_copy_can_be_made_again_octet_for_octet(profile: Profile) -> None:
    """Also by a later process that has learnt of another epoch since; not under a key that is gone."""
    one = first(profile)
    sealer = EpochSealer(agent(one), "host-a", StreamCounter(41), lambda: at(150))
    live = sealer.seal(b"body", 7)
    copy = sealer.backfill(live)
    header = parse_header(copy.header)
    known = agent(one, succeed(one, T0 + 100))
    later = EpochSealer(known, "host-a", StreamCounter(1 << 40), lambda: at(9000))
    assert later.again(live, header.epoch_id, header.counter) == copy
    assert later.backfill(live) != copy
    known.hold([])
    with pytest.raises(SealError, match="unknown_key"):
        later.again(live, header.epoch_id, header.counter)


# ---- time


def header_of(epoch_id: int, time_ns: int, lane: Lane = Lane.LIVE) -> SealHeader:
    return SealHeader(1, 1, lane, 0, epoch_id, 0, 0, time_ns, b"", "host-a")


@pytest.mark.parametrize(
    ("lane", "epoch_id", "sealed", "now", "good"),
    [
        (Lane.LIVE, 1, -0.001, 0, False),
        (Lane.LIVE, 1, 0, 0, True),
        (Lane.LIVE, 1, 109.999, 110, True),
        (Lane.LIVE, 1, 110, 110, False),
        (Lane.LIVE, 1, 109.999, 409.999, True),
        (Lane.LIVE, 1, 109.999, 410, False),  # claims to be older than it can be
        (Lane.LIVE, 2, 99.999, 100, False),
        (Lane.LIVE, 2, 100, 95, True),
        (Lane.BACKFILL, 1, 109.999, 90_000, True),
        (Lane.BACKFILL, 1, 500, 90_000, True),  # it was cut off and could not know of epoch 2
        (Lane.BACKFILL, 1, 9_999.999, 90_000, True),
        (Lane.BACKFILL, 1, 10_000, 90_000, False),
        (Lane.BACKFILL, 1, -0.001, 90_000, False),
        (Lane.BACKFILL, 9, 5, 5, False),
    ],
)
def test_when_a_seal_counts(lane: Lane, epoch_id: int, sealed: float, now: float, good: bool) -> None:
    one = first()
    side = broker(one, succeed(one, T0 + 100, overlap_s=10))
    expected = None if good else RejectReason.EPOCH_RETIRED
    assert judge(side, header_of(epoch_id, at(sealed), lane), at(now)) is expected


def test_the_earliest_retirement_counts_for_every_earlier_epoch() -> None:
    one = first()
    two = succeed(one, T0 + 100, overlap_s=1000)
    three = succeed(two, T0 + 200, overlap_s=0)
    side = broker(one, two)
    assert judge(side, header_of(1, at(300)), at(300)) is None
    side.add(three)
    for epoch_id, good in ((1, False), (2, False), (3, True)):
        assert (judge(side, header_of(epoch_id, at(300)), at(300)) is None) is good


@settings(max_examples=400, deadline=None)
@given(data=st.data(), overlap=st.integers(0, 250), profile=st.sampled_from(Profile))
def test_no_tick_is_lost_and_none_counts_under_a_retired_epoch(
    data: st.DataObject, overlap: int, profile: Profile
) -> None:
    """An honest host across an epoch change. Times in ns of the broker's clock; the host's is off by ``skew``."""
    one = first()
    two = replace(succeed(one, T0 + 1000, overlap_s=overlap), profile=profile)
    width = overlap * SECOND
    skew = data.draw(st.integers(-width, width), label="skew")
    # When the host learns of epoch 2: any time before, and during the overlap while it is not over by either clock.
    learns = data.draw(st.integers(at(300), two.retire_ns - abs(skew)), label="learns")
    moments = st.one_of(
        st.integers(two.from_ns - 2 * width - SECOND, two.retire_ns + 2 * width + SECOND),
        st.builds(
            lambda near, off: near + off,
            st.sampled_from([two.from_ns, two.retire_ns, two.from_ns - skew, learns]),
            st.integers(-2, 2),
        ),
    )
    ticks = sorted(data.draw(st.lists(moments, min_size=1, max_size=8), label="ticks"))
    at_agent, at_broker = agent(one), broker(one, two)
    for moment in ticks:
        if moment >= learns:
            at_agent.add(two)
        header = verify(at_broker, seal(at_agent, moment + skew))
        arrival = moment + data.draw(st.integers(0, LIVE_PAST - width - 1), label="delay")
        assert judge(at_broker, header, arrival) is None
        if header.epoch_id == 1:
            assert moment < two.retire_ns


@settings(max_examples=200, deadline=None)
@given(st.integers(-(10**6), 10**6), st.integers(0, 600), st.integers(0, 10**4))
def test_a_host_that_knows_the_successor_loses_nothing_whatever_its_clock_says(
    skew_ms: int, overlap: int, moment: int
) -> None:
    one = first()
    two = succeed(one, T0 + 1000, overlap_s=overlap)
    sealed_ns = at(2000) + moment * SECOND // 10 + skew_ms * SECOND // 1000
    header = verify(broker(one, two), seal(agent(one, two), sealed_ns))
    # Right behind the sealing by the host's own clock; how far off clocks may be is the replay window's rule.
    assert judge(broker(one, two), header, sealed_ns) is None


@settings(max_examples=300, deadline=None)
@given(
    st.integers(0, 600),
    st.integers(-5000, 20_000),
    st.integers(-5000, 20_000),
    st.sampled_from(Lane),
)
def test_whoever_holds_a_retired_key_is_not_heard_live(overlap: int, claimed: int, now: int, lane: Lane) -> None:
    one = first()
    two = succeed(one, T0 + 1000, overlap_s=overlap)
    verdict = judge(broker(one, two), header_of(1, at(claimed), lane), at(now))
    if verdict is None:
        assert at(0) <= at(claimed) < one.until_ns
        if lane is Lane.LIVE:
            assert at(claimed) < two.retire_ns
            assert at(now) < two.retire_ns + LIVE_PAST
