# SPDX-License-Identifier: Apache-2.0
"""``mvps epoch``, and the operator's whole way: from nothing to two hosts, one more, a rotation, a revocation."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
from operator_desk import Site, assert_silent, mvps

from mvps.cli import exits
from mvps.cli.epoch import PROFILES
from mvps.trust.epochs import Epochs, EpochSealer
from mvps.trust.keys import Kind, load_key, load_keys
from mvps.trust.manifest import Manifest, Profile, open_manifest, parse_manifest, sign_manifest, utc
from mvps.trust.reasons import RejectReason
from mvps.trust.seal import Purpose, SealError, StreamCounter, Verifier


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def agent(site: Site, name: str, *manifests: Manifest) -> Epochs:
    epochs = Epochs.of_agent(load_keys(str(site[f"{name}.key"]), Kind.HOST), name)
    for manifest in manifests:
        epochs.add(manifest)
    return epochs


def broker(site: Site, *manifests: Manifest) -> Epochs:
    epochs = Epochs.of_broker(load_keys(str(site["broker.key"]), Kind.BROKER))
    for manifest in manifests:
        epochs.add(manifest)
    return epochs


def heard(site: Site, name: str, at_broker: Epochs, at_s: float) -> int:
    """Epoch under which the broker accepts what the host seals at a time."""
    epochs = agent(site, name, *at_broker.manifests)
    sealed = EpochSealer(epochs, name, StreamCounter(), lambda: int(at_s * 1e9)).seal(b"body", 1)
    header = Verifier(at_broker, Purpose.SNAPSHOT).verify(sealed)
    begins, ends, *_ = at_broker.validity(header.epoch_id)
    assert begins <= header.time_ns < ends
    return header.epoch_id


def test_the_profiles_are_those_of_the_manifest() -> None:
    assert tuple(Profile) == PROFILES


def test_the_operators_whole_way(site: Site) -> None:
    # Nothing -> two hosts.
    site.new()
    site.approve(1, "host-a", "host-b")
    one = site.sign(1)
    at_broker = broker(site, one)
    assert [heard(site, name, at_broker, one.from_s + 1) for name in ("host-a", "host-b")] == [1, 1]

    # A host more.
    site.next(2)
    site.approve(2, "host-c")
    two = site.sign(2)
    at_broker.add(two)
    assert heard(site, "host-a", at_broker, two.from_s - 0.5) == 1
    assert [heard(site, name, at_broker, two.from_s) for name in ("host-a", "host-b", "host-c")] == [2, 2, 2]

    # One host's key is rotated; it is heard before and after.
    assert mvps("key", "rotate", site["host-a.key"]).returncode == 0
    site.next(3)
    site.approve(3, "host-a")
    three = site.sign(3)
    at_broker.add(three)
    assert heard(site, "host-a", at_broker, three.from_s - 0.5) == 2
    assert heard(site, "host-a", at_broker, three.from_s) == 3

    # One is revoked, at once.
    site.next(4)
    done = mvps("epoch", "revoke", site["4.draft"], "host-b")
    assert done.returncode == exits.OK
    assert load_key(str(site["host-b.key"])).public.key_id.hex() in done.stdout
    four = site.sign(4)
    stolen = agent(site, "host-b", one, two, three)
    at_broker.add(four)
    for manifest in (one, two, three):
        sealed = EpochSealer(stolen, "host-b", StreamCounter(), lambda m=manifest: m.from_ns).seal(b"", 1)
        with pytest.raises(SealError) as caught:
            Verifier(at_broker, Purpose.SNAPSHOT).verify(sealed)
        assert caught.value.reason is RejectReason.REVOKED
    assert heard(site, "host-a", at_broker, four.from_s) == 4

    # And an auditor believes all of it.
    files = [site[f"{number}.manifest"] for number in (1, 2, 3, 4)]
    done = mvps("epoch", "verify", *files, "--operator", site["operator.pub"])
    assert done.returncode == exits.OK, done.stdout
    assert done.stdout.count("good  ") == 4


def test_new_has_sensible_times_and_settings(site: Site) -> None:
    before = int(time.time())
    draft = parse_manifest(site.new().read_text())
    assert before <= draft.from_s <= time.time()
    assert draft.until_s - draft.from_s == 90 * 86400
    assert (draft.epoch_id, draft.previous, draft.profile, draft.faults) == (1, None, Profile.CWT, 0)
    assert draft.broker.key == load_key(str(site["broker.key"])).public
    site.approve(1, "host-a")
    one = site.sign(1)
    two = parse_manifest(site.next(2).read_text())
    assert two.retire_s - two.from_s == 600
    assert (two.epoch_id, two.previous, two.vantages) == (2, one.digest, one.vantages)


def test_new_takes_every_setting(site: Site) -> None:
    mvps("key", "generate", "witness", site["w.key"])
    witness = mvps("key", "show", site["w.key"], "--name", "w.example").stdout.strip()
    draft = parse_manifest(
        site.new(
            "--broker", f"site-1={site['broker.pub']}", "--profile", "trust", "--tick-ms", "100", "--faults", "1",
            "--rate", "8", "--embedding", "m", "--witness", witness, "--quorum", "1",
            "--begin", "2030-01-01T00:00:00Z", "--valid", "7d",
        ).read_text()
    )  # fmt: skip
    assert (draft.broker.name, draft.profile, draft.tick_ms, draft.faults) == ("site-1", Profile.TRUST, 100, 1)
    assert (draft.rate_factor, draft.embedding, draft.quorum, draft.witnesses[0].text) == (8, "m", 1, witness)
    assert (utc(draft.from_s), draft.until_s - draft.from_s) == ("2030-01-01T00:00:00Z", 7 * 86400)


def test_new_takes_a_bare_public_key_and_keeps_the_brokers_name(site: Site) -> None:
    site.new("--broker", f"site-1={site['broker.pub']}")
    site.approve(1, "host-a")
    site.sign(1)
    mvps("key", "rotate", site["broker.key"])
    public = mvps("key", "show", site["broker.key"]).stdout.strip()
    draft = parse_manifest(site.next(2, "--broker", public).read_text())
    assert (draft.broker.name, draft.broker.key.text) == ("site-1", public)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--operator-id", "acme"],
        ["--operator-id", "ac me", "--broker", "BROKER"],
        ["--operator-id", "acme", "--broker", "OPERATOR"],
        ["--operator-id", "acme", "--broker", "BROKER", "--tick-ms", "1"],
        ["--operator-id", "acme", "--broker", "BROKER", "--valid", "soon"],
        ["--operator-id", "acme", "--broker", "BROKER", "--witness", "w"],
        ["--operator-id", "acme", "--broker", "BROKER", "--begin", "now"],
        ["--from", "MANIFEST"],
        ["--from", "MANIFEST", "--operator", "OPERATOR", "--operator-id", "x"],
        ["--from", "MANIFEST", "--operator", "BROKER"],
        ["--from", "DRAFT", "--operator", "OPERATOR"],
        ["--from", "NONE", "--operator", "OPERATOR"],
    ],
)
def test_new_refuses_what_makes_no_sense(words: list[str], site: Site) -> None:
    site.new()
    site.approve(1, "host-a")
    site.sign(1)
    places = {"BROKER": "broker.pub", "OPERATOR": "operator.pub", "MANIFEST": "1.manifest", "DRAFT": "1.draft"}
    done = mvps("epoch", "new", *(str(site[places[w]]) if w in places else w for w in words))
    assert (done.returncode, done.stdout) == (exits.USAGE, "")
    assert "Traceback" not in done.stderr
    assert "internal error" not in done.stderr


def test_a_draft_that_was_changed_behind_the_operators_back_is_not_built_upon(site: Site) -> None:
    site.new()
    site.approve(1, "host-a")
    site.sign(1)
    text = site["1.manifest"].read_text()
    site["1.manifest"].write_text(text.replace("faults 0", "faults 9"))
    done = mvps("epoch", "new", "--from", site["1.manifest"], "--operator", site["operator.pub"])
    assert done.returncode == exits.USAGE
    assert "does not hold" in done.stderr


def test_nothing_is_overwritten(site: Site) -> None:
    site.new()
    again = mvps("epoch", "new", "--operator-id", "acme", "--broker", site["broker.pub"], "--out", site["1.draft"])
    assert again.returncode == exits.NOT_PERMITTED
    site.approve(1, "host-a")
    site.sign(1)
    before = site["1.manifest"].read_bytes()
    again = mvps("epoch", "sign", site["1.draft"], "--key", site["operator.key"], "--out", site["1.manifest"])
    assert again.returncode == exits.NOT_PERMITTED
    assert site["1.manifest"].read_bytes() == before


def test_sign_prints_the_manifest_alone_on_stdout(site: Site) -> None:
    site.new()
    site.approve(1, "host-a")
    done = mvps("epoch", "sign", site["1.draft"], "--key", site["operator.key"])
    assert open_manifest(done.stdout.encode(), load_key(str(site["operator.key"])).public)
    assert "admits 1 vantages" in done.stderr
    assert_silent(done, site["operator.key"])


def edited(site: Site, number: int, old: str, new: str) -> None:
    text = site[f"{number}.draft"].read_text()
    assert old in text
    site[f"{number}.draft"].write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("faults 0", "faults 1", "less than half"),
        ("quorum 0", "quorum 1", "names 0 witnesses"),
        ("epoch 1\n", "epoch 01\n", "line 3: there is one way"),
        ("tick 1000ms\n", "", "line 8"),
    ],
)
def test_sign_checks_the_draft(old: str, new: str, said: str, site: Site) -> None:
    site.new()
    site.approve(1, "host-a", "host-b")
    edited(site, 1, old, new)
    done = mvps("epoch", "sign", site["1.draft"], "--key", site["operator.key"])
    assert (done.returncode, done.stdout) == (exits.USAGE, "")
    assert said in done.stderr


def test_sign_needs_somebody_admitted_the_operators_key_and_the_right_previous(site: Site) -> None:
    site.new()
    key = ("--key", site["operator.key"])
    assert "admits 0 vantages" in mvps("epoch", "sign", site["1.draft"], *key).stderr
    site.approve(1, "host-a")
    assert "operator key is needed" in mvps("epoch", "sign", site["1.draft"], "--key", site["broker.key"]).stderr
    site.sign(1)
    site.next(2)
    assert "with --previous" in mvps("epoch", "sign", site["2.draft"], *key).stderr
    first = mvps("epoch", "sign", site["1.draft"], *key, "--previous", site["1.manifest"])
    assert "leave --previous out" in first.stderr
    edited(site, 2, "previous ", "previous 0")
    edited(site, 2, "\nfrom", "")
    assert mvps("epoch", "sign", site["2.draft"], *key, "--previous", site["1.manifest"]).returncode == exits.USAGE


def test_sign_refuses_a_draft_whose_overlap_is_over_and_can_let_it_begin_now(site: Site) -> None:
    site.new("--begin", "2026-01-01T00:00:00Z", "--valid", "9000d")
    site.approve(1, "host-a")
    site.sign(1)
    site.next(2, "--begin", "2026-01-02T00:00:00Z", "--valid", "9000d")
    words = ("epoch", "sign", site["2.draft"], "--key", site["operator.key"], "--previous", site["1.manifest"])
    late = mvps(*words)
    assert late.returncode == exits.USAGE
    assert "`retire` of this draft is over" in late.stderr
    over = re.sub("until .*Z", "until 2026-01-03T00:00:00Z", site["2.draft"].read_text())
    site["over.draft"].write_text(over)
    assert "`until` of this draft is over" in mvps("epoch", "sign", site["over.draft"], *words[3:]).stderr
    before = int(time.time())
    two = site.sign(2, "--now")
    assert before <= two.from_s <= time.time()
    assert (two.retire_s - two.from_s, two.until_s - two.from_s) == (600, 9000 * 86400)


def test_a_revoked_host_can_come_back_with_another_key(site: Site) -> None:
    site.new()
    site.approve(1, "host-a", "host-b")
    site.sign(1)
    site.next(2)
    mvps("epoch", "revoke", site["2.draft"], "host-a")
    again = mvps("enroll", "approve", site["host-a.request"], "--into", site["2.draft"])
    assert again.returncode == exits.USAGE
    assert "is revoked: rotate it" in again.stderr
    mvps("key", "rotate", site["host-a.key"])
    site.approve(2, "host-a")
    two = site.sign(2)
    assert {v.vantage_id for v in two.vantages} == {"host-a", "host-b"}
    assert [r.vantage_id for r in two.revoked] == ["host-a"]


def test_revoke_by_key_id(site: Site) -> None:
    site.new()
    site.approve(1, "host-a")
    done = mvps("epoch", "revoke", site["1.draft"], "host-a", "--key-id", "0123456789abcdef")
    assert done.returncode == exits.OK
    assert "1 vantages are left" in done.stdout
    assert "revoked host-a 0123456789abcdef\n" in site["1.draft"].read_text()
    assert mvps("epoch", "revoke", site["1.draft"], "host-z").returncode == exits.USAGE
    assert mvps("epoch", "revoke", site["1.draft"], "host-a", "--key-id", "xyz").returncode == exits.USAGE


def test_show_prints_drafts_and_manifests(site: Site) -> None:
    site.new()
    site.approve(1, "host-a")
    assert "a draft, not signed" in mvps("epoch", "show", site["1.draft"]).stdout
    one = site.sign(1)
    shown = mvps("epoch", "show", site["1.manifest"]).stdout
    assert "signed by acme; not checked here" in shown
    assert one.vantages[0].key.key_id.hex() in shown
    data = json.loads(mvps("epoch", "show", site["1.manifest"], "--json").stdout)
    assert (data["epoch"], data["digest"], data["signed_by"]) == (1, one.digest.hex(), ["acme"])
    assert [v["id"] for v in data["vantages"]] == ["host-a"]
    assert mvps("epoch", "show", site["operator.pub"]).returncode == exits.USAGE
    assert mvps("epoch", "show", site["none"]).returncode == exits.USAGE


def test_verify_finds_forged_foreign_and_broken_ones(site: Site) -> None:
    site.new()
    site.approve(1, "host-a")
    one = site.sign(1)
    operator = load_key(str(site["operator.key"]))
    words = ("epoch", "verify", "--operator", site["operator.pub"], "--json")

    site["forged"].write_text(site["1.manifest"].read_text().replace("rate 4", "rate 9"))
    done = mvps(*words, site["1.manifest"], site["forged"])
    assert done.returncode == exits.FOUND
    assert [bool(row["error"]) for row in json.loads(done.stdout)["manifests"]] == [False, True]

    site["two.manifest"].write_bytes(sign_manifest(replace(one, rate_factor=9), operator))
    done = mvps(*words, site["1.manifest"], site["two.manifest"])
    assert done.returncode == exits.FOUND
    assert "two different manifests of epoch 1" in json.loads(done.stdout)["chain_error"]

    good = mvps(*words, site["1.manifest"])
    assert good.returncode == exits.OK
    assert json.loads(good.stdout)["remarks"] == [f"epoch 1 is in force until {utc(one.until_s)}"]

    mvps("key", "generate", "operator", site["other.key"])
    other = mvps("key", "show", site["other.key"]).stdout.strip()
    assert mvps("epoch", "verify", site["1.manifest"], "--operator", other).returncode == exits.FOUND
    assert mvps("epoch", "verify", site["none"], "--operator", site["operator.pub"]).returncode == exits.USAGE
