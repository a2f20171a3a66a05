# SPDX-License-Identifier: Apache-2.0
"""The broker over real gRPC: loopback TCP and Unix sockets, port 0."""

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from talking import ACCEPTED, DUPLICATE, NONCE, acks_of, batch, exchange, running, status_of
from tests.surplus.health_sample import health, policy
from tests.waiting import comes_true
from wire_samples import SECOND, Host, new_host, now_tick, snapshot

from mvps.broker.surplus_watch import Order
from mvps.robust.fleet import Evidence
from mvps.surplus import sealed_health
from mvps.surplus.minutes import MINUTE_NS
from mvps.surplus.packets import Policy, parse, render
from mvps.trust.limits import MAX_BATCH_ITEMS, NONCE_BYTES
from mvps.trust.reasons import RejectReason
from mvps.trust.seal import Lane, Sealed, parse_header
from mvps.v1 import snapshot_pb2
from mvps.v1 import stream_pb2 as pb


def rejected(reason: RejectReason) -> tuple[int, int]:
    return (pb.ACK_STATUS_REJECTED, int(reason))


async def test_accepted_duplicate_equivocation_replay(tmp_path: Path) -> None:
    async with running(tmp_path) as (broker, host, stub):
        first, second = host.seal(), host.seal()
        assert await exchange(stub, host, first, second) == [(0, *ACCEPTED), (1, *ACCEPTED)]
        assert await exchange(stub, host, second, first) == [(1, *DUPLICATE), (0, *DUPLICATE)]
        host.counter.value -= 1
        tick = now_tick() - 1
        forged = host.seal(snapshot(tick=tick), tick=tick)
        assert await exchange(stub, host, forged) == [(1, *rejected(RejectReason.EQUIVOCATION))]
        host.counter.value = 5
        assert await exchange(stub, host, host.seal()) == [(5, *rejected(RejectReason.REPLAYED))]
        assert broker.counters() | {"streams": 0} == {
            "accepted": 2,
            "duplicates": 2,
            "streams": 0,
            "rejected.equivocation": 1,
            "rejected.replayed": 1,
            "decisions.checked": 0,
            "decisions.mismatch": 0,
            "decisions.impossible": 0,
            "decisions.unchecked": 0,
            "commit_failures": 0,
        }


async def test_the_same_snapshot_twice_in_one_batch(tmp_path: Path) -> None:
    async with running(tmp_path) as (_, host, stub):
        sealed = host.seal()
        assert await exchange(stub, host, sealed, sealed) == [(0, *ACCEPTED), (0, *DUPLICATE)]


async def test_terminal_rejections_are_answered_and_stay_the_same(tmp_path: Path) -> None:
    async with running(tmp_path) as (broker, host, stub):
        bad = host.seal(b"garbage")
        late = host.seal(clock=lambda: time.time_ns() - 400 * SECOND)
        early = host.seal(clock=lambda: time.time_ns() + 60 * SECOND)
        good = host.seal()
        answers = [rejected(r) for r in (RejectReason.MALFORMED, RejectReason.STALE, RejectReason.FUTURE)]
        assert [a[1:] for a in await exchange(stub, host, bad, late, early, good)] == [*answers, ACCEPTED]
        assert [a[1:] for a in await exchange(stub, host, bad)] == [answers[0]]
        assert broker.counters()["rejected.malformed"] == 1


async def test_bad_seal_ends_the_stream_after_what_came_before(tmp_path: Path) -> None:
    async with running(tmp_path) as (broker, host, stub):
        good, bad, behind = host.seal(), host.seal(), host.seal()
        call = stub.Stream()
        await call.write(batch(good, bad._replace(tag=bytes(32)), behind))
        assert acks_of(await call.read(), host) == [(0, *ACCEPTED)]
        code, said = await status_of(call)
        assert code is grpc.StatusCode.UNAUTHENTICATED
        assert "bad_seal" in said
        assert broker.counters()["rejected.bad_seal"] == 1
        # Nothing of the forged counter stuck: the real ones are fresh.
        assert await exchange(stub, host, bad, behind) == [(1, *ACCEPTED), (2, *ACCEPTED)]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: s._replace(header=s.header[:20]), "truncated"),
        (lambda s: s._replace(header=s.header[:5] + b"\x09" + s.header[6:]), "unknown_scheme"),
        (lambda s: s._replace(header=s.header[:6] + b"\x02" + s.header[7:]), "wrong_purpose"),
        (lambda s: s._replace(header=s.header[:12] + b"\xff\xff\xff\xff" + s.header[16:]), "oversize"),
        (lambda s: s._replace(body=s.body + b"\0"), "bad_length"),
        (lambda s: Sealed(b"", b"", b""), "truncated"),
    ],
)
async def test_unvouched_items_are_counted_and_end_the_stream(
    tmp_path: Path, change: Callable[[Sealed], Sealed], reason: str
) -> None:
    async with running(tmp_path) as (broker, host, stub):
        call = stub.Stream()
        await call.write(batch(change(host.seal())))
        code, said = await status_of(call)
        assert code is grpc.StatusCode.UNAUTHENTICATED
        assert reason in said
        assert broker.counters()[f"rejected.{reason}"] == 1
        assert broker.fleet.vantages == {}


async def test_another_key_is_named_by_its_id(tmp_path: Path) -> None:
    async with running(tmp_path) as (_, host, stub):
        stranger = new_host()
        call = stub.Stream()
        await call.write(batch(stranger.seal()))
        _, said = await status_of(call)
        assert stranger.key.public.key_id.hex() in said
        assert host.key.public.key_id.hex() in said


@pytest.mark.parametrize(
    "first",
    [
        batch(nonce=b""),
        batch(nonce=b"x" * 17),
        pb.Batch(stream_nonce=NONCE, items=[pb.SealedSnapshot()] * (MAX_BATCH_ITEMS + 1)),
    ],
)
async def test_envelopes_outside_the_protocol(tmp_path: Path, first: pb.Batch) -> None:
    async with running(tmp_path) as (_, _, stub):
        call = stub.Stream()
        await call.write(first)
        assert (await status_of(call))[0] is grpc.StatusCode.INVALID_ARGUMENT


async def test_empty_batches_do_not_hold_a_place(tmp_path: Path) -> None:
    async with running(tmp_path, first_item_timeout_s=0.5) as (_, _, stub):
        call = stub.Stream()

        async def chatter() -> None:
            while not call.done():
                await call.write(batch())
                await asyncio.sleep(0.05)

        talking = asyncio.create_task(chatter())
        async with asyncio.timeout(30):
            assert (await status_of(call))[0] is grpc.StatusCode.DEADLINE_EXCEEDED
        talking.cancel()
        await asyncio.gather(talking, return_exceptions=True)


async def test_a_nonce_may_not_change_within_a_stream(tmp_path: Path) -> None:
    async with running(tmp_path) as (_, host, stub):
        call = stub.Stream()
        await call.write(batch(host.seal()))
        await call.read()
        await call.write(batch(host.seal(), nonce=bytes(NONCE_BYTES)))
        assert (await status_of(call))[0] is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_message_over_the_limit_is_not_taken(tmp_path: Path) -> None:
    async with running(tmp_path) as (_, host, stub):
        call = stub.Stream()
        await call.write(batch(host.seal()._replace(body=bytes(3 << 20))))
        assert (await status_of(call))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_stream_that_says_nothing_is_ended(tmp_path: Path) -> None:
    async with running(tmp_path, first_item_timeout_s=0.05) as (broker, _, stub):
        assert (await status_of(stub.Stream()))[0] is grpc.StatusCode.DEADLINE_EXCEEDED
        # The caller knows it before the server's handler has come to its end.
        await comes_true(lambda: broker.streams == 0)


async def test_streams_have_a_limit(tmp_path: Path) -> None:
    async with running(tmp_path, max_streams=1) as (_, host, stub):
        call = stub.Stream()
        await call.write(batch(host.seal()))
        await call.read()
        code, said = await status_of(stub.Stream())
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "raise max_streams" in said


async def test_a_vantage_has_so_many_streams_and_what_the_next_one_brings_is_not_lost(tmp_path: Path) -> None:
    async with running(tmp_path, max_streams_per_vantage=2) as (broker, host, stub):
        calls = []
        for _ in range(2):
            calls.append(stub.Stream())
            await calls[-1].write(batch(host.seal()))
            await calls[-1].read()
        extra = stub.Stream()
        await extra.write(batch(host.seal()))
        assert acks_of(await extra.read(), host) == [(2, *ACCEPTED)]
        code, said = await status_of(extra)
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "raise max_streams_per_vantage" in said
        other = Host(host.site, "host-2")
        assert await exchange(stub, other, other.seal()) == [(0, *ACCEPTED)]
        calls[0].cancel()
        await comes_true(lambda: len(broker._connected["host-1"]) == 1)
        assert await exchange(stub, host, host.seal()) == [(3, *ACCEPTED)]
        assert broker.counters()["streams_refused.max_streams_per_vantage"] == 1


async def test_a_connection_has_so_many_streams(tmp_path: Path) -> None:
    async with running(tmp_path, max_streams_per_connection=2) as (broker, host, stub):
        calls = [stub.Stream() for _ in range(2)]
        for call in calls:
            await call.write(batch(host.seal()))
            await call.read()
        waiting = stub.Stream()  # HTTP/2: the client keeps it back until there is room
        sending = asyncio.create_task(waiting.write(batch(host.seal())))
        await asyncio.sleep(0.2)
        assert broker.streams == 2
        calls[0].cancel()
        await sending
        assert acks_of(await waiting.read(), host) == [(2, *ACCEPTED)]


@pytest.mark.parametrize("lane", Lane)
async def test_a_vantage_beyond_its_rate_is_not_read_and_loses_nothing(tmp_path: Path, lane: Lane) -> None:
    async with running(tmp_path) as (broker, host, stub):
        calls = [stub.Stream() for _ in range(2)]
        items = [host.seal(lane=lane) for _ in range(MAX_BATCH_ITEMS + 2)]
        await calls[0].write(batch(*items[:MAX_BATCH_ITEMS]))
        assert len(acks_of(await calls[0].read(), host)) == MAX_BATCH_ITEMS
        assert not any(broker.throttled.values())
        # Another stream of the same vantage: they share the manifest's rate of 4 a tick.
        await calls[1].write(batch(items[-2]))
        assert acks_of(await calls[1].read(), host) == [(256, *ACCEPTED)]
        assert dict(broker.throttled) == {each: int(each is lane) for each in Lane}
        await calls[1].write(batch(items[-1]))
        assert acks_of(await calls[1].read(), host) == [(257, *ACCEPTED)]
        # 60 more make a pause of 10 s, in which the next one is not looked at.
        await calls[1].write(batch(*(host.seal(lane=lane) for _ in range(60))))
        assert len(acks_of(await calls[1].read(), host)) == 60
        await calls[1].write(batch(host.seal(lane=lane)))
        await asyncio.sleep(0.3)
        assert broker.accepted == 258 + 60
        # The other vantage has a rate of its own.
        other = Host(host.site, "host-2")
        assert await exchange(stub, other, other.seal(lane=lane)) == [(0, *ACCEPTED)]
        assert sum(broker.throttled.values()) == 3
        info = await stub.ServerInfo(pb.ServerInfoRequest())
        assert info.throttled[lane.name.lower()] == 3
        assert info.throttled_seconds[lane.name.lower()] > 0.1


async def test_no_stream_is_read_while_too_much_is_in_work(tmp_path: Path) -> None:
    async with running(tmp_path) as (broker, host, stub):
        call = stub.Stream()
        await call.write(batch(host.seal()))
        await call.read()
        broker._in_work.add(1 << 40)
        await call.write(batch(host.seal()))  # the read that was waiting still takes it
        await call.read()
        await call.write(batch(host.seal()))
        await asyncio.sleep(0.2)
        assert broker.accepted == 2
        broker._in_work.remove(1 << 40)
        assert acks_of(await call.read(), host) == [(2, *ACCEPTED)]
        assert broker.info().bytes_in_work == 0


async def test_a_mismatch_is_counted_after_the_answer_and_shown(tmp_path: Path) -> None:
    async with running(tmp_path) as (broker, host, stub):
        sealed = host.seal()
        assert await exchange(stub, host, sealed) == [(0, *ACCEPTED)]
        header = parse_header(sealed.header)
        broker._mismatch(("host-1", header.epoch_id, header.lane, header.counter))
        async with asyncio.timeout(30):
            while not (await stub.GetHistory(pb.GetHistoryRequest(vantage_id="host-1"))).rows[0].decision_mismatch:
                await asyncio.sleep(0.01)
        (vantage,) = (await stub.ListVantages(pb.ListVantagesRequest())).vantages
        assert vantage.decision_mismatches == 1
        broker._impossible(("host-1", header.epoch_id, header.lane, header.counter))
        assert set(broker.fleet_watch._noted["host-1"]) == {Evidence.DECISION, Evidence.CONSERVATION}


async def test_state_survives_a_restart(tmp_path: Path) -> None:
    async with running(tmp_path) as (_, host, stub):
        first = host.seal()
        bad = host.seal(b"garbage")
        await exchange(stub, host, first, bad)
    async with running(tmp_path) as (_, _, stub):
        third = host.seal()
        answers = await exchange(stub, host, first, bad, third)
        assert [a[1:] for a in answers] == [DUPLICATE, rejected(RejectReason.MALFORMED), ACCEPTED]
        (vantage,) = (await stub.ListVantages(pb.ListVantagesRequest())).vantages
        tick = parse_header(third.header).tick
        assert (vantage.vantage_id, vantage.accepted, vantage.latest.tick) == ("host-1", 2, tick)


async def test_a_commit_that_fails_acknowledges_nothing_and_loses_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as (broker, host, stub):
        await exchange(stub, host, host.seal())
        items = [host.seal(), host.seal()]
        other = sqlite3.connect(tmp_path / "broker.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        call = stub.Stream()
        await call.write(batch(*items))
        code, said = await status_of(call)
        assert code is grpc.StatusCode.UNAVAILABLE
        assert "locked by another program" in said
        assert (await stub.ServerInfo(pb.ServerInfoRequest())).store_error == said
        other.execute("ROLLBACK")
        other.close()
        assert await exchange(stub, host, *items) == [(1, *ACCEPTED), (2, *ACCEPTED)]
        assert broker.counters()["accepted"] == 3


def sealed_ago(host: Host, seconds: float, *, lane: Lane = Lane.BACKFILL, padding: int = 0) -> Sealed:
    """A snapshot that was sealed so long ago. padding: bytes of 200 KiB or so that it carries."""
    at = time.time_ns() - int(seconds * SECOND)
    body = snapshot(host.vantage_id, at // SECOND)
    for number in range(padding // 15_000):
        body.extensions[f"padding-{number}"] = os.urandom(15_000)
    return host.seal(body, tick=at // SECOND, lane=lane, clock=lambda: at)


async def test_a_full_store_takes_backfill_as_far_back_as_it_keeps_rows(tmp_path: Path) -> None:
    """What was forgotten cannot come again as a copy, and what is younger is taken once."""
    full = {"database_max_mib": 16, "bundle_period_s": 1}
    async with running(tmp_path, **full) as (broker, host, stub):
        # A new broker has forgotten nothing, so it takes everything up to retention_s.
        unknown = sealed_ago(host, 7000)
        early = [sealed_ago(host, 7200 - age) for age in range(3)]
        counters = [parse_header(each.header).counter & 0xFFFF for each in early]
        assert await exchange(stub, host, *early) == [(counter, *ACCEPTED) for counter in counters]
        assert await exchange(stub, host, *early) == [(counter, *DUPLICATE) for counter in counters]
        assert await exchange(stub, host, sealed_ago(host, 90_000)) == [(4, *rejected(RejectReason.STALE))]
        other = Host(host.site, "host-2")
        for ago in range(6000, 2000, -40):
            (answer,) = await exchange(stub, other, sealed_ago(other, ago, padding=200_000))
            assert answer[1:] == ACCEPTED
        info = broker.info()
        assert info.store_error == ""
        assert info.store.bytes <= info.store.max_bytes == 16 << 20
        assert broker.counters()["commit_failures"] == 0
        assert 10 < info.store.removed_early < 60
        assert await exchange(stub, host, early[0]) == [(1, *rejected(RejectReason.REPLAYED))]
        live = host.seal()
        assert (await exchange(stub, host, live))[0][1:] == ACCEPTED
        while broker.info().evidence.checkpoint_size < broker.info().evidence.size:
            await asyncio.sleep(0.1)
    # Neither a restart nor more room and a longer retention bring back what is forgotten.
    async with running(tmp_path, retention_s=172_800) as (broker, _, stub):
        # The copies an agent makes of what it was told is unknown: the broker had all of them, save one.
        assert broker.info().store.backfill_from_ns == info.store.backfill_from_ns
        copies = [sealed_ago(host, 7200), sealed_ago(host, 7000), *(sealed_ago(host, ago) for ago in (6000, 5990))]
        stale = rejected(RejectReason.STALE)
        assert [answer[1:] for answer in await exchange(stub, host, *copies)] == [stale] * 4
        assert [a[1:] for a in await exchange(stub, host, unknown)] == [rejected(RejectReason.REPLAYED)]
        young = sealed_ago(host, 2100)
        assert [answer[1:] for answer in await exchange(stub, host, young)] == [ACCEPTED]
        assert [answer[1:] for answer in await exchange(stub, host, young, live)] == [DUPLICATE, DUPLICATE]
        assert [answer[1:] for answer in await exchange(stub, host, host.seal())] == [ACCEPTED]
        database, site = broker.settings.database, host.site
    manifests = str(site.manifests)
    command = ["verify", str(database), "--operator", site.operator, "--manifests", manifests, "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "mvps.cli.main", *command], capture_output=True, text=True, check=False
    )
    shown = json.loads(done.stdout)
    assert shown["holds"], shown
    assert any("were pruned" in remark for remark in shown["remarks"])


async def test_streams_of_several_vantages_are_answered_under_their_own_seals(tmp_path: Path) -> None:
    async with running(tmp_path) as (_, host, stub):
        other = Host(host.site, "host-2")
        call = stub.Stream()
        await call.write(batch(host.seal(), other.seal()))
        answer = await call.read()
        owners = [host.acks(), other.acks()]
        names = [
            v.verify(Sealed(s.header, s.body, s.tag)).vantage_id for v, s in zip(owners, answer.sealed, strict=True)
        ]
        assert names == ["host-1", "host-2"]


async def test_lanes_have_counters_of_their_own(tmp_path: Path) -> None:
    async with running(tmp_path) as (_, host, stub):
        live = host.seal()
        host.counter.value -= 1
        backfill = host.seal(lane=Lane.BACKFILL)
        assert [a[1:] for a in await exchange(stub, host, live, backfill)] == [ACCEPTED, ACCEPTED]


async def test_a_stream_is_told_of_policies_once_after_each_change_and_under_the_seal(tmp_path: Path) -> None:
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies/acme.json").write_bytes(render(policy()))
    chosen = {"policies": str(tmp_path / "policies")}
    async with running(tmp_path, surplus=chosen) as (broker, host, stub):
        watch = broker.surplus_watch
        now = [time.time_ns()]
        watch._clock = lambda: now[0]
        await watch.look()
        minute = now[0] // MINUTE_NS
        sent = snapshot()
        sent.extensions[sealed_health.NAME] = render(health(minute))
        call = stub.Stream()

        async def told(body: snapshot_pb2.Snapshot | None = None) -> list[str]:
            await call.write(batch(host.seal(body, tick=body.tick) if body else host.seal()))
            answer = await call.read()
            acks_of(answer, host)
            policies = pb.Acks.FromString(answer.sealed[0].body).policies
            return [parse(line, Policy).tenant for line in policies.split(b"\n") if line]

        now[0] = (minute + 1) * MINUTE_NS + SECOND
        assert await told(sent) == []
        now[0] += 10 * SECOND
        await watch.look()
        assert await told() == ["acme"]
        assert await told() == []
        await watch.order(Order("acme", "rung", "R1", "kim", "a drill"))
        assert await told() == ["acme"]
        assert await told() == []
        other = stub.Stream()
        await other.write(batch(host.seal()))
        assert pb.Acks.FromString((await other.read()).sealed[0].body).policies
        call.cancel()
        other.cancel()


async def test_malformed_minutes_change_no_verdict_on_a_snapshot(tmp_path: Path) -> None:
    async with running(tmp_path, surplus={}) as (broker, host, stub):
        sent = snapshot()
        sent.extensions[sealed_health.NAME] = b"\xff{"
        assert await exchange(stub, host, host.seal(sent, tick=sent.tick)) == [(0, *ACCEPTED)]
        await broker.surplus_watch.look()
        assert broker.surplus_watch.health["malformed"] == 1
        assert broker.info().surplus.health["malformed"] == 1
    (tmp_path / "other").mkdir()
    async with running(tmp_path / "other", surplus=None) as (broker, host, stub):
        assert await exchange(stub, host, host.seal(sent, tick=sent.tick)) == [(0, *ACCEPTED)]
        assert not broker.info().surplus.on
