# SPDX-License-Identifier: Apache-2.0
"""Budgets from manifests."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from pathlib import Path

import pytest
from wire_samples import new_site

from mvps.limiter import plan as planning
from mvps.limiter.plan import MAX_LENGTHS, Traffic, budget, plan, relevant
from mvps.trust.keys import Kind, generate_key
from mvps.trust.limits import MAX_BATCH_BYTES
from mvps.trust.manifest import Manifest, Vantage


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return new_site(tmp_path_factory.mktemp("site")).manifest


def manifest(base: Manifest, sources: dict[str, list[str]], **changes: object) -> Manifest:
    """One that admits these vantages from these prefixes; the keys do not matter here."""
    key = base.vantages[0].key
    vantages = tuple(
        Vantage(name, key, prefixes=tuple(ipaddress.ip_network(prefix) for prefix in prefixes))
        for name, prefixes in sources.items()
    )
    # Built past the check that keys differ, which is not what is looked at here.
    made = object.__new__(Manifest)
    for field in base.__dataclass_fields__:
        object.__setattr__(made, field, getattr(base, field))
    for field, value in {"vantages": vantages, **changes}.items():
        object.__setattr__(made, field, value)
    return made


def test_a_budget_holds_its_rate_and_its_burst_exactly() -> None:
    price = budget(50.0, 10_000.0, 20, 3000)
    assert price.packets_per_s == pytest.approx(50)
    assert price.bytes_per_s == pytest.approx(10_000, rel=1e-3)
    second = 50 * price.packet_ns + 10_000 * price.byte_ns_x1024 / 1024
    assert second == pytest.approx(1e9, rel=1e-3)
    assert price.burst_ns >= 20 * price.packet_ns + 3000 * price.byte_ns_x1024 // 1024


def test_a_vantage_may_send_four_times_what_it_sends(base: Manifest) -> None:
    made = plan([manifest(base, {"a": ["10.0.0.5/32"]})], 7447)
    assert made.flow.packets_per_s == pytest.approx(4 * planning.MEASURED.packets, rel=1e-3)
    assert made.flow.bytes_per_s == pytest.approx(4 * planning.MEASURED.bytes, rel=1e-3)


def test_the_operators_rate_wins_if_it_is_larger(base: Manifest) -> None:
    made = plan([manifest(base, {"a": []}, rate_factor=10)], 7447)
    assert made.flow.packets_per_s == pytest.approx(10 * planning.MEASURED.packets, rel=1e-3)
    assert plan([manifest(base, {"a": []}, rate_factor=1)], 7447).flow == plan([manifest(base, {"a": []})], 7447).flow


def test_rates_follow_the_tick_and_have_a_floor(base: Manifest) -> None:
    fast = plan([manifest(base, {"a": []}, tick_ms=50)], 7447)
    assert fast.flow.packets_per_s == pytest.approx(20 * 4 * planning.MEASURED.packets, rel=1e-3)
    slow = plan([manifest(base, {"a": []}, tick_ms=60_000)], 7447)
    assert slow.flow.packets_per_s == pytest.approx(planning.MEASURED.floor, rel=1e-3)


def test_handshakes_do_not_depend_on_the_tick(base: Manifest) -> None:
    slow, fast = (plan([manifest(base, {"a": ["10.0.0.5/32"]}, tick_ms=tick)], 7447) for tick in (1000, 50))
    assert slow.shards[1].handshake == fast.shards[1].handshake
    assert slow.shards[1].handshake.packets_per_s == pytest.approx(planning.MEASURED.connect_packets, rel=1e-3)


def test_of_two_manifests_the_faster_tick_counts(base: Manifest) -> None:
    both = [manifest(base, {"a": []}, tick_ms=1000), manifest(base, {"a": []}, tick_ms=100)]
    assert plan(both, 7447).flow == plan(both[::-1], 7447).flow == plan(both[1:], 7447).flow


def test_every_burst_holds_the_largest_batch(base: Manifest) -> None:
    made = plan([manifest(base, {"a": ["10.0.0.5/32"], "b": []})], 7447)
    for price in (made.flow, *(shard.handshake for shard in made.shards), *(shard.total for shard in made.shards)):
        # In frames of 1200 bytes of TCP and 100 bytes of headers, and a connect before it in a handshake.
        segments = MAX_BATCH_BYTES // 1200 + 1
        batch = segments * price.packet_ns + (MAX_BATCH_BYTES + 100 * segments) * price.byte_ns_x1024 // 1024
        assert batch <= price.burst_ns


def test_vantages_behind_one_prefix_share_as_many_budgets(base: Manifest) -> None:
    sources = {"a": ["10.0.0.0/24"], "b": ["10.0.0.0/24", "10.1.0.1/32"], "c": ["10.0.0.0/24"], "d": [], "e": []}
    made = plan([manifest(base, sources)], 7447, unlisted=3)
    assert [(str(shard.prefix), shard.vantages) for shard in made.shards] == [
        ("None", 5),
        ("10.0.0.0/24", 3),
        ("10.1.0.1/32", 1),
    ]
    three, one = made.shards[1], made.shards[2]
    assert three.total.packets_per_s == pytest.approx(3 * one.total.packets_per_s, rel=1e-3)
    assert three.total.packets_per_s == pytest.approx(3 * made.flow.packets_per_s, rel=1e-3)
    assert three.handshake.packets_per_s == pytest.approx(3 * one.handshake.packets_per_s, rel=1e-3)


def test_a_vantage_of_two_epochs_counts_once(base: Manifest) -> None:
    both = [manifest(base, {"a": ["10.0.0.5/32"]}), manifest(base, {"a": ["10.0.0.5/32"]}, epoch_id=2)]
    assert [shard.vantages for shard in plan(both, 7447).shards] == [0, 1]


def test_more_lengths_than_there_is_room_for_are_widened(base: Manifest) -> None:
    sources = {f"h{length}": [f"10.{length}.0.0/{length}"] for length in range(17, 33)}
    sources["many"] = [f"192.0.2.{number}/32" for number in range(10)]
    made = plan([manifest(base, sources)], 7447)
    assert len(made.lengths(4)) == MAX_LENGTHS
    assert made.lengths(4) == sorted(made.lengths(4), reverse=True)
    assert made.lengths(4)[0] == 32  # those that are many stay as they are
    assert made.widened > 0
    # Nobody fell out: every listed prefix lies in one of the plan.
    for prefix in (ipaddress.ip_network(p) for prefixes in sources.values() for p in prefixes):
        assert any(shard.prefix is not None and prefix.subnet_of(shard.prefix) for shard in made.shards)  # type: ignore[arg-type]


def test_more_prefixes_than_there_is_room_for_are_widened(base: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "MAX_SHARDS", 65)
    sources = {f"h{number}": [f"10.{number}.0.1/32", f"2001:db8:{number:x}::1/128"] for number in range(100)}
    made = plan([manifest(base, sources)], 7447)
    assert len(made.shards) <= 65
    for prefix in (ipaddress.ip_network(p) for prefixes in sources.values() for p in prefixes):
        assert any(
            shard.prefix is not None and shard.prefix.version == prefix.version and prefix.subnet_of(shard.prefix)  # type: ignore[arg-type]
            for shard in made.shards
        )
    assert sum(shard.vantages for shard in made.shards) >= 100


def test_a_host_total_holds_whatever_many_prefixes_claim(base: Manifest) -> None:
    made = plan([manifest(base, {f"h{n}": [f"10.0.{n}.1/32"] for n in range(200)})], 7447, traffic=Traffic())
    assert made.host.packets_per_s == pytest.approx(20_000)


def test_without_manifests_everybody_is_unlisted() -> None:
    made = plan([], 7447, unlisted=16)
    assert [shard.vantages for shard in made.shards] == [16]
    assert made.lengths(4) == made.lengths(6) == []


def test_relevant_are_the_epoch_in_force_its_unretired_predecessor_and_those_to_come(base: Manifest) -> None:
    epochs = [
        manifest(base, {"a": []}, epoch_id=number, from_s=number * 1000, retire_s=number * 1000 + 100)
        for number in (1, 2, 3, 4)
    ]

    def ids(now_s: float) -> list[int]:
        return [one.epoch_id for one in relevant(reversed(epochs), now_s)]

    assert ids(500) == [1, 2, 3, 4]
    assert ids(3050) == [2, 3, 4]
    assert ids(3100) == [3, 4]
    assert ids(9999) == [4]


def test_a_real_manifest_makes_a_plan(tmp_path: Path) -> None:
    site = new_site(tmp_path / "site", "host-1")
    key = generate_key(tmp_path / "other.key", Kind.HOST).public
    signed = replace(
        site.manifest,
        vantages=(*site.manifest.vantages, Vantage("host-2", key, prefixes=(ipaddress.ip_network("10.0.0.5/32"),))),
    )
    assert [shard.vantages for shard in plan([signed], 7447).shards] == [1, 1]
