# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mvps.surplus.controller import Fallback
from mvps.surplus.indicators import Band
from mvps.surplus.packets import (
    KINDS,
    MAX_LINE_BYTES,
    Cap,
    Chain,
    ChainError,
    Credit,
    FallbackCause,
    HealthMinute,
    Incident,
    Kill,
    PacketError,
    Policy,
    State,
    digest,
    follow,
    heads_digest,
    parse,
    payout,
    record_header,
    recorded_chain,
    render,
    salted,
    schema,
)

HASH = "sha256:" + "0" * 64
CAP: dict[str, Any] = {
    "schema": "cap.v1",
    "ts": "2025-09-07T12:34:56Z",
    "tenant": "acme",
    "session": HASH,
    "model": "gpt-x",
    "hash_logits": HASH,
    "hash_embed": None,
    "theta": 0.29,
    "phi": 0.83,
    "iT": 0.21,
    "Es": 0.17,
    "L": {"dlp": 0.34, "progress": 0.18, "structRisk": 0.03, "lat": 0.5, "len": 0.1},
    "Gamma": {"drift": 0.05, "modeFlip": 0.0, "fmtDebt": 0.02, "iT": 0.21, "routing": None},
    "lambda": 0.72,
    "kl_used": 0.012,
    "kl_budget": 0.02,
    "dlogits_l2": 0.9,
    "steps": 20,
    "fallback": "none",
    "looked_ahead": False,
    "action": {"type": "token", "name": None, "args_hash": None},
    "candidates": 6,
    "caps_hit": False,
    "state": "Caution",
    "bh1": False,
    "bh2": False,
    "risk": 0.0,
    "latency_ms": 12.5,
    "tool_ms": None,
    "tokens": 20,
}
HEALTH: dict[str, Any] = {
    "schema": "health.v1",
    "bucket": "2025-09-07T12:34:00Z",
    "tenant": "acme",
    "SSE": 0.52,
    "CRP": 0.31,
    "SSIstar": 0.28,
    "crp_score": 0.2,
    "ssi_star_score": None,
    "Xi": None,
    "lambda": 0.64,
    "kl_budget": 0.01,
    "dlogits_budget": 0.9,
    "state": "Green",
    "bh1": False,
    "bh2": False,
    "packets": 600,
    "refused": {"too_long": 1},
    "fallbacks": {"off": 3},
    "kl_sum": 4.5,
    "cap_head": HASH,
    "latency_p95": 12.5,
}
POLICY: dict[str, Any] = {
    "schema": "policy.v1",
    "tenant": "acme",
    "tenants": ["acme-eu", "acme-us"],
    "version": 3,
    "caps": {"qps": 30.0, "tok_max": 15000, "tool_per_min": 40.0, "soft": 0.8},
    "routing": {
        "providers": ["P1", "P2", "P3"],
        "min_spread": 0.55,
        "max_provider_share": 0.4,
        "shares": [0.6, 0.3, 0.1],
        "floor": 0.05,
        "handoff_cost": 0.2,
        "handoff_stress": 3.0,
    },
    "exploration": {"min_SSE": 0.5, "quota_pct": 0.15},
    "privacy": {"retention_days": 14},
    "thresholds": {"caution": 0.35, "action": 0.55, "emergency": 0.75},
    "control": {
        "lam_min": 0.1,
        "lam_max": 1.5,
        "kl_green": 0.01,
        "kl_caution": 0.008,
        "kl_action": 0.006,
        "kl_emergency": 0.004,
    },
    "reserve": {"base": 0.05, "crp": 0.05, "spread": 0.05, "stress": 0.05},
    "ladder": {"highest": 4, "dwell": 3, "exit_minutes": 30, "exit_sse": None, "throttle": 0.7},
    "rollout": {
        "stage": "gradual",
        "canary": 0.05,
        "gradual": [0.25, 0.5],
        "soak_minutes": 1440,
        "margin": 0.05,
        "killed": False,
        "kill": {"latency": 0.3, "incidents": None, "breaks": 0.01},
    },
    "outliers": 1,
    "dry_run": True,
    "issue": {
        "host": "gpu=1",
        "tenant": "acme-eu",
        "issued_at": "2025-09-07T12:34:00Z",
        "expires_at": "2025-09-07T12:39:00Z",
        "stage": "canary",
        "in_slice": True,
        "rung": 2,
        "actions": ["spread_routing"],
        "state": "Action",
        "kl_budget": 0.006,
        "shares": [0.4, 0.35, 0.25],
        "handoff_cost": 0.5,
        "exploration": 0.15,
        "reserve": 0.1,
    },
}
INCIDENT: dict[str, Any] = {
    "schema": "incident.v1",
    "id": "inc-7",
    "tenant": "acme",
    "started_at": "2025-09-07T12:34:56Z",
    "ended_at": None,
    "cause": "schema_break",
    "severity": "high",
    "summary": "JSON of the export broke after release 12.",
    "bh1_onset": "2025-09-07T12:20:00Z",
    "bh2_onset": None,
    "rollback_rung": 2,
}
CREDIT: dict[str, Any] = {
    "schema": "credit.v1",
    "contrib_id": HASH,
    "period": "2025-08",
    "consent": "active",
    "usage": {"queries": 12190, "tokens": 4320000, "coverage": 0.27, "u": 137.5},
    "uplift": {"delta_quality": 0.06, "ci": [0.03, 0.09]},
    "novelty": 0.72,
    "safety_scalar": 0.93,
    "payout": 0.64,
    "currency": "USD",
}
SAMPLES = {"cap.v1": CAP, "health.v1": HEALTH, "policy.v1": POLICY, "incident.v1": INCIDENT, "credit.v1": CREDIT}


def read(sample: dict[str, Any]) -> Any:
    return parse(json.dumps(sample).encode(), KINDS[sample["schema"]])


@pytest.mark.parametrize("kind", KINDS)
def test_samples_parse_and_render_to_the_same_bytes(kind: str) -> None:
    packet = read(SAMPLES[kind])
    assert json.loads(render(packet)) == SAMPLES[kind]
    assert render(parse(render(packet), KINDS[kind])) == render(packet)
    assert render(packet) == json.dumps(SAMPLES[kind], sort_keys=True, separators=(",", ":")).encode()


@pytest.mark.parametrize("kind", KINDS)
def test_schemas_are_closed_versioned_and_name_every_field(kind: str) -> None:
    generated = schema(kind)
    assert generated["$id"] == f"mvps/surplus/{kind}"
    assert set(generated["properties"]) == set(SAMPLES[kind])
    objects = [generated, *generated.get("$defs", {}).values()]
    assert all(one["additionalProperties"] is False for one in objects if one.get("type") == "object")
    assert generated["properties"]["schema"]["const"] == kind
    assert json.loads(json.dumps(generated)) == generated


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_fields_missing_ones_and_other_types_are_refused(kind: str) -> None:
    sample = SAMPLES[kind]
    with pytest.raises(PacketError, match="Extra inputs"):
        read({**sample, "prompt": "what the user said"})
    for name in schema(kind)["required"]:
        with pytest.raises(PacketError, match="Field required"):
            read({key: value for key, value in sample.items() if key != name})
    for name, value in sample.items():
        if isinstance(value, float | int) and not isinstance(value, bool):
            with pytest.raises(PacketError):
                read({**sample, name: "0.5"})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tenant", "ann@example.org"),
        ("tenant", "Ann Example"),
        ("tenant", ""),
        ("tenant", "x" * 65),
        ("session", "s-abc"),
        ("session", HASH.upper()),
        ("ts", "2025-09-07T12:34:56+02:00"),
        ("ts", "2025-13-07T12:34:56Z"),
        ("ts", "2025-09-07T12:34:56"),
        ("theta", 3.2),
        ("phi", 1.01),
        ("kl_used", -0.1),
        ("lambda", 1e300),
        ("candidates", True),
        ("state", "green"),
        ("fallback", "other"),
        ("action", {"type": "token", "text": "secret"}),
    ],
)
def test_content_personal_names_and_impossible_values_are_refused(field: str, value: object) -> None:
    with pytest.raises(PacketError) as caught:
        read({**CAP, field: value})
    assert str(value) not in str(caught.value) or not value, "what was refused is not repeated"


def test_numbers_that_are_none_are_refused() -> None:
    for text in ("NaN", "Infinity", "1e999"):
        with pytest.raises(PacketError):
            parse(json.dumps(CAP).replace("0.72", text).encode(), Cap)


def test_rules_between_fields() -> None:
    with pytest.raises(PacketError, match="whole minute"):
        read({**HEALTH, "bucket": "2025-09-07T12:34:01Z"})
    with pytest.raises(PacketError, match="are not 1"):
        read({**POLICY, "routing": {"providers": ["P1", "P2"], "min_spread": 0.55, "max_provider_share": 0.4}})
    with pytest.raises(PacketError, match="twice"):
        read({**POLICY, "routing": {"providers": ["P1", "P1"]}})
    with pytest.raises(PacketError, match="ends after"):
        read({**INCIDENT, "ended_at": "2025-09-07T12:00:00Z"})
    with pytest.raises(PacketError, match="interval"):
        read({**CREDIT, "uplift": {"delta_quality": 0.2, "ci": [0.0, 0.1]}})
    with pytest.raises(PacketError, match="revoked"):
        read({**CREDIT, "consent": "revoked"})
    with pytest.raises(ValidationError):
        Cap.model_validate({**CAP, "ts": datetime(2025, 1, 1, tzinfo=timezone(timedelta(hours=1)))})


def test_names_agree_with_those_who_make_packets() -> None:
    assert [cause.name for cause in FallbackCause] == [cause.name for cause in Fallback]
    assert [state.name for state in State] == [band.name for band in Band]


def test_payout_is_the_formula_and_not_the_texts_example() -> None:
    assert payout(137.5, 0.06, 0.72, 0.93, 0.005) == pytest.approx(0.6416, abs=1e-4)
    assert payout(1.0, -5.0, 0.0, 1.0, 0.005) == 0.0


def test_hashes_need_a_salt_and_change_with_it() -> None:
    assert salted(b"ann", b"a" * 16) != salted(b"ann", b"b" * 16)
    assert salted(b"ann", b"a" * 16) == salted(b"ann", b"a" * 16)
    assert read({**CAP, "session": salted(b"ann", b"a" * 16)})
    with pytest.raises(PacketError, match="16 bytes"):
        salted(b"ann", b"short")


def lines(count: int, name: str = "engine-1") -> tuple[Chain, list[bytes]]:
    chain, written = Chain.begin(name), []
    for i in range(count):
        chain, line = chain.append(read({**CAP, "steps": i}))
        written.append(line)
    return chain, written


def test_a_chain_is_followed_and_its_bytes_depend_on_nothing_else() -> None:
    chain, written = lines(5)
    assert lines(5) == (chain, written)
    found, packets = follow(Chain.begin("engine-1"), written, Cap)
    assert found == chain
    assert [packet.steps for packet in packets] == list(range(5))
    assert all(json.loads(line)["seq"] == i for i, line in enumerate(written))
    middle, _ = follow(Chain.begin("engine-1"), written[:2], Cap)
    assert follow(middle, written[2:], Cap)[0] == chain


@given(st.integers(0, 4), st.integers(0, 600), st.integers(1, 255))
def test_one_changed_byte_anywhere_breaks_the_chain(which: int, position: int, flip: int) -> None:
    chain, written = lines(5)
    line = bytearray(written[which])
    line[position % len(line)] ^= flip
    written[which] = bytes(line)
    try:
        found, _ = follow(Chain.begin("engine-1"), written, Cap)
    except PacketError:
        return
    assert found.head != chain.head
    assert which == 4, "only the last line can be changed without the next one showing it: its head shows it"


@pytest.mark.parametrize("change", ["left_out", "moved", "repeated", "other_name", "put_in"])
def test_what_was_left_out_moved_or_put_in_shows(change: str) -> None:
    _, written = lines(4)
    name = "engine-1"
    if change == "left_out":
        del written[1]
    elif change == "moved":
        written[1], written[2] = written[2], written[1]
    elif change == "repeated":
        written.insert(1, written[1])
    elif change == "other_name":
        name = "engine-2"
    else:
        written.insert(2, lines(3, "engine-2")[1][2])
    with pytest.raises(PacketError, match="does not follow"):
        follow(Chain.begin(name), written, Cap)


def test_lines_that_are_too_long_or_hold_something_else_are_refused() -> None:
    with pytest.raises(PacketError, match="at most"):
        parse(b" " * (MAX_LINE_BYTES + 1), Cap)
    with pytest.raises(PacketError, match="at most"):
        follow(Chain.begin("x"), [b" " * (MAX_LINE_BYTES + 1)], Cap)
    chain = Chain.begin("x")
    with pytest.raises(PacketError, match="Field required"):
        follow(chain, [b'{"packet":{},"prev":"%b","seq":0}' % chain.head.encode()], Cap)


def test_the_models_have_the_right_kinds() -> None:
    made = {name: type(read(sample)) for name, sample in SAMPLES.items()}
    assert made == {
        "cap.v1": Cap,
        "health.v1": HealthMinute,
        "policy.v1": Policy,
        "incident.v1": Incident,
        "credit.v1": Credit,
    }
    assert read(CAP).ts == datetime(2025, 9, 7, 12, 34, 56, tzinfo=UTC)


def test_a_line_that_does_not_follow_is_told_from_one_that_holds_something_else() -> None:
    _, written = lines(2)
    with pytest.raises(ChainError):
        follow(Chain.begin("engine-1"), written[1:], Cap)
    with pytest.raises(PacketError) as caught:
        follow(Chain.begin("engine-1"), [written[0].replace(b'"acme"', b'"a b"')], Cap)
    assert not isinstance(caught.value, ChainError)
    assert "line 0 of the chain engine-1: not a Cap: tenant" in str(caught.value)


def test_heads_are_one_hash_whatever_their_order() -> None:
    one = heads_digest({"a": HASH, "b": HASH})
    assert one == heads_digest({"b": HASH, "a": HASH})
    assert len({one, heads_digest({}), heads_digest({"a": HASH}), heads_digest({"ab": HASH, "": HASH})}) == 4
    assert read({**HEALTH, "cap_head": one})


@pytest.mark.parametrize("name", ["engine-1", "host/vllm/7f3a.2", "x" * 64])
def test_a_record_says_which_chain_its_lines_are_of(name: str) -> None:
    header = record_header(name)
    assert recorded_chain(header) == Chain.begin(name)
    assert json.loads(header) == {"chain": name}
    assert recorded_chain(lines(1)[1][0]) is None
    assert recorded_chain(header[:-1]) is None


@pytest.mark.parametrize("name", ["", "a b", 'a"', "x" * 65, "é"])
def test_a_chain_of_no_name_is_none(name: str) -> None:
    with pytest.raises(PacketError, match="a name has"):
        record_header(name)
    with pytest.raises(PacketError, match="a name has"):
        recorded_chain(b'{"chain":"%b"}' % name.encode())


# What policies said before brokers read them: every later field has a default, and the digest shows them.
OLD_POLICY = {key: POLICY[key] for key in ("schema", "tenant", "version", "exploration", "privacy", "dry_run")} | {
    "caps": {"qps": 30.0, "tok_max": 15000, "tool_per_min": 40.0},
    "routing": {"providers": ["P1", "P2", "P3"], "min_spread": 0.55, "max_provider_share": 0.4},
}


def test_a_policy_of_a_class_names_its_tenants_and_an_old_one_is_still_read() -> None:
    assert read(POLICY).members == ("acme-eu", "acme-us")
    assert read(OLD_POLICY).members == ("acme",)
    assert read(OLD_POLICY).rollout.stage == "shadow"


def test_what_came_later_says_nothing_while_it_has_its_default() -> None:
    # Agents and brokers from before refuse fields that they do not know, and a rollout under way goes by its digest.
    older = {key: value for key, value in HEALTH.items() if key != "latency_p95"}
    assert json.loads(render(read(older))) == older
    assert read(older).latency_p95 is None
    rollout = {key: value for key, value in POLICY["rollout"].items() if key != "kill"}
    policy = read({**POLICY, "rollout": rollout})
    assert json.loads(render(policy))["rollout"] == rollout
    assert policy.rollout.kill == Kill(latency=0.25, incidents=0.5, breaks=0.005)
    assert digest(policy) == digest(read({**POLICY, "rollout": {**rollout, "kill": {}}})) != digest(read(POLICY))
    # As the version before kill switches had it.
    assert digest(read(OLD_POLICY)) == "sha256:5a5cac8bcf4cd805208f4641b41a9d4ad3ef6ee745032f3c7209ba1c862a3f62"


def test_a_minute_says_how_many_packets_lost_their_structure() -> None:
    assert read(HEALTH).broken == 0
    assert read({**HEALTH, "fallbacks": {"structure": 4, "off": 3}}).broken == 4


def test_the_digest_of_a_policy_does_not_depend_on_who_was_handed_it() -> None:
    policy = read(POLICY)
    assert digest(policy) == digest(read({**POLICY, "issue": None}))
    assert digest(policy) != digest(read({**POLICY, "version": 4}))
    assert digest(policy) != digest(read({**POLICY, "dry_run": False}))


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("thresholds", {"action": 0.3}, "in the order"),
        ("control", {"lam_min": 1.6}, "lam_min is above"),
        ("control", {"kl_action": 0.009}, "do not rise"),
        ("routing", {"shares": [0.5, 0.5]}, "one per provider"),
        ("routing", {"shares": [0.0, 0.0, 0.0]}, "not all 0"),
        ("routing", {"floor": 0.35}, "do not fit"),
        ("routing", {"floor": 0.41}, "do not fit"),
        ("rollout", {"gradual": [0.25, 0.25]}, "grow"),
        ("rollout", {"gradual": [0.05]}, "grow"),
        ("rollout", {"stage": "everywhere"}, "Input should be"),
        ("rollout", {"kill": {"breaks": 1.5}}, "rollout.kill.breaks: Input should be less"),
        ("rollout", {"kill": {"latency": 0.0}}, "rollout.kill.latency: Input should be greater"),
        ("rollout", {"kill": {"errors": 0.1}}, "rollout.kill.errors: Extra inputs"),
        ("ladder", {"highest": 5}, "less than or equal to 4"),
        ("issue", {"expires_at": "2025-09-07T12:34:00Z"}, "expires before"),
    ],
)
def test_policies_that_contradict_themselves_are_refused(part: str, change: dict[str, Any], words: str) -> None:
    with pytest.raises(PacketError, match=words):
        read({**POLICY, part: {**POLICY[part], **change}})
    with pytest.raises(PacketError, match="named twice"):
        read({**POLICY, "tenants": ["a", "a"]})
