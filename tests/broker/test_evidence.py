# SPDX-License-Identifier: Apache-2.0
"""Checkpoints and cosignatures with real witnesses, over real HTTP on loopback."""

import asyncio
import os
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.waiting import comes_true
from wire_samples import new_host, parcel, row

from mvps.broker.evidence import Evidence, Signing
from mvps.broker.store import Store
from mvps.trust.audit import Trusted, audit
from mvps.trust.checkpoint import Distances, parse_checkpoint
from mvps.trust.evidence_log import EvidenceError, EvidenceLog, LogFiles, leaf_of
from mvps.trust.keys import Kind, SecretKey
from mvps.trust.note import COSIGNATURE_V1, ED25519, NoteKey, parse_note, verified
from mvps.trust.seal import Sealed
from mvps.trust.witness import Witness
from mvps.witness.heads import HeadsFile
from mvps.witness.server import WitnessServer

BROKER = SecretKey(os.urandom(32), Kind.BROKER)
LOG_KEY = NoteKey("site-1", ED25519, BROKER.public.ed25519)
WITNESS_KEYS = [SecretKey(os.urandom(32), Kind.WITNESS) for _ in range(3)]


def witness_key(number: int) -> NoteKey:
    return NoteKey(f"w{number}.example", COSIGNATURE_V1, WITNESS_KEYS[number].public.ed25519)


@asynccontextmanager
async def witness(folder: Path, number: int, listen: str = "127.0.0.1:0") -> AsyncIterator[str]:
    """The address of a witness that remembers in ``folder``."""
    path = folder / f"w{number}.json"
    heads = HeadsFile(path, new=not path.exists())
    key = WITNESS_KEYS[number]
    judge = Witness(f"w{number}.example", key.sign, key.public.ed25519, [LOG_KEY], heads)
    server = WitnessServer(judge, listen, lambda line: None)
    await server.start()
    try:
        yield server.address
    finally:
        await server.stop()
        heads.close()


def signing(quorum: int = 0, *numbers: int, faults: int = 0, manifest: bytes | None = None) -> Callable[[int], Signing]:
    witnesses = tuple(map(witness_key, numbers))
    return lambda now_ns: Signing("site-1", BROKER, manifest, faults, quorum, witnesses)


def grow(log: EvidenceLog, count: int, salt: bytes = b"") -> None:
    leaves = []
    for i in range(log.head.size, log.head.size + count):
        header = struct.pack(">5sBBBHBBIQQQQ8s", b"MVPS\1", 1, 1, 1, 0, 1, 0, len(salt), 0, i, 0, 0, bytes(8)) + b"h"
        leaves.append(leaf_of(Sealed(header, salt, bytes(32))))
    log.append(leaves)
    log.commit()


@asynccontextmanager
async def running(evidence: Evidence) -> AsyncIterator[Evidence]:
    task = asyncio.get_running_loop().create_task(evidence.run())
    try:
        yield evidence
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


# A period that does not end by itself while a test runs: the tests end it.
NEVER = 10**9


async def test_a_checkpoint_binds_root_manifest_and_distances(tmp_path: Path) -> None:
    log = EvidenceLog(tmp_path)
    evidence = Evidence(log, signing(faults=1, manifest=bytes(range(32))), urls={}, period_s=NEVER)
    grow(log, 3)
    for vantage, d2 in (("a", 1.0), ("a", 2.5), ("a", 2.0), ("b", 9.0), ("c", 0.5)):
        evidence.observe(vantage, d2)
    await evidence.close_bundle(1_795_264_490)
    note = log.checkpoints.newest
    assert note is not None
    assert verified(note, [LOG_KEY]) == [(LOG_KEY, 0)]
    checkpoint = parse_checkpoint(note.text)
    assert (checkpoint.origin, checkpoint.head) == ("site-1", log.head)
    assert checkpoint.binding == (1_795_264_490, bytes(range(32)), Distances(2.5, 9.0))
    # Nothing new: nothing is signed. Then a period in which nobody reported live.
    await evidence.close_bundle(1_795_264_500)
    assert log.checkpoints.newest == note
    grow(log, 1)
    await evidence.close_bundle(1_795_264_510)
    assert log.checkpoints.newest is not None
    assert parse_checkpoint(log.checkpoints.newest.text).binding == (1_795_264_510, bytes(range(32)), None)
    assert evidence.status()[:6] == (4, 4, 1_795_264_510 * 10**9, 0, 0, 0)
    log.close()


async def test_where_the_fleet_was_decided_its_distances_are_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = EvidenceLog(tmp_path)
    evidence = Evidence(log, signing(faults=1), urls={}, period_s=NEVER)

    def refuses(note: object) -> None:
        raise EvidenceError("full")

    async def bound(period_end_s: int) -> Distances | None:
        grow(log, 1)
        await evidence.close_bundle(period_end_s)
        assert log.checkpoints.newest is not None
        return parse_checkpoint(log.checkpoints.newest.text).binding.d2

    for vantage, d2 in (("a", 40.0), ("b", 30.0)):
        evidence.observe(vantage, d2)
    evidence.observe_fleet(0.5, 12.0)
    evidence.observe_fleet(2.5, 9.0)
    assert await bound(10) == Distances(2.5, 12.0, of_fleet=True)
    # Nothing of an earlier period stays, neither the fleet's nor a vantage's.
    evidence.observe("c", 7.0)
    assert await bound(20) == Distances(0.0, 7.0)
    assert await bound(30) is None
    # What could not be kept belongs to the next one.
    evidence.observe_fleet(3.0, 4.0)
    with monkeypatch.context() as broken:
        broken.setattr(log.checkpoints, "append", refuses)
        await bound(40)
    evidence.observe_fleet(1.0, 6.0)
    assert await bound(50) == Distances(3.0, 6.0, of_fleet=True)
    log.close()


async def test_checkpoints_of_a_store_that_is_written_to_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "broker.db"
    store = Store(path, retention_s=3600, max_bytes=64 << 20, segment_bytes=20_000)
    host = new_host()
    async with witness(tmp_path, 0) as address:
        urls = {"w0.example": f"http://{address}"}
        async with running(Evidence(store.evidence, signing(1, 0), urls=urls, period_s=NEVER)) as evidence:
            waiting = []
            for i in range(40):
                waiting.append(store.submit(parcel(*(row(host) for _ in range(i % 9))), store.fence))
                if i % 4 == 3:
                    await waiting[-4]
                await evidence.close_bundle(1_795_264_490 + i)
            await asyncio.gather(*waiting)
        # The stop signed what was left; the next run has it cosigned.
        async with running(Evidence(store.evidence, signing(1, 0), urls=urls, period_s=NEVER)) as evidence:
            await comes_true(lambda: evidence.status().cosigned_size == store.evidence.head.size)
    store.close()
    result = audit(LogFiles(Path(f"{path}.evidence")), Trusted(logs=[LOG_KEY], witnesses=[witness_key(0)], quorum=1))
    assert result.holds, result.findings
    assert result.size == result.cosigned_size == result.leaves == sum(i % 9 for i in range(40))
    assert result.checkpoints > 1


async def test_without_an_epoch_nothing_is_signed(tmp_path: Path) -> None:
    log = EvidenceLog(tmp_path)
    grow(log, 3)
    evidence = Evidence(log, lambda now_ns: None, urls={}, period_s=NEVER)
    await evidence.close_bundle(10)
    assert log.checkpoints.newest is None
    log.close()


async def test_what_cannot_be_kept_is_shown_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = EvidenceLog(tmp_path)
    grow(log, 3)
    evidence = Evidence(log, signing(), urls={}, period_s=NEVER)
    evidence.observe("a", 3.0)
    append = log.checkpoints.append

    def fails(note: object) -> None:
        raise EvidenceError("checkpoints cannot be written: free space on its disk")

    monkeypatch.setattr(log.checkpoints, "append", fails)
    await evidence.close_bundle(10)
    assert "free space" in evidence.status().error
    monkeypatch.setattr(log.checkpoints, "append", append)
    evidence.observe("a", 1.0)
    await evidence.close_bundle(20)
    assert evidence.status().error == ""
    assert log.checkpoints.newest is not None
    assert parse_checkpoint(log.checkpoints.newest.text).binding.d2 == Distances(3.0, 3.0)
    log.close()


async def test_periods_end_by_themselves_and_a_stop_signs_the_rest(tmp_path: Path) -> None:
    log = EvidenceLog(tmp_path)
    grow(log, 3)
    async with running(Evidence(log, signing(), urls={}, period_s=1)) as evidence:
        await comes_true(lambda: evidence.status().checkpoint_size == 3)
        grow(log, 2)
    assert log.checkpoints.newest_head() == log.head
    log.close()


async def test_a_quorum_cosigns_and_a_dead_witness_delays_nothing(tmp_path: Path) -> None:
    log = EvidenceLog(tmp_path / "log")
    async with witness(tmp_path, 0) as first, witness(tmp_path, 1) as second:
        # Nothing listens on the third one's port, which was free a moment ago.
        async with witness(tmp_path, 2) as gone:
            pass
        urls = {f"w{i}.example": f"http://{address}" for i, address in enumerate((first, second, gone))}
        async with running(Evidence(log, signing(2, 0, 1, 2), urls=urls, period_s=NEVER)) as evidence:
            for size in (3, 4, 40):
                grow(log, size - log.head.size)
                await evidence.close_bundle(1000 + size)
                await comes_true(lambda: evidence.status().cosigned_size == log.head.size)
            status = evidence.status()
            assert (status.size, status.checkpoint_size, status.cosignatures, status.quorum) == (40, 40, 2, 2)
            assert list(status.witness_errors) == ["w2.example"]
            assert "does not answer" in status.witness_errors["w2.example"]
            # It comes back, and is asked again without a new checkpoint.
            async with witness(tmp_path, 2, gone):
                await comes_true(lambda: evidence.status().cosignatures == 3)
            assert evidence.status().witness_errors == {}
    newest = log.checkpoints.newest
    log.close()
    assert newest is not None
    assert {key.name for key, _ in verified(newest, map(witness_key, range(3)))} == {f"w{i}.example" for i in range(3)}
    notes = list(map(parse_note, LogFiles(tmp_path / "log").checkpoints()))
    assert [(parse_checkpoint(n.text).size, len(n.signatures)) for n in notes] == [
        (3, 1),
        (3, 3),
        (4, 1),
        (4, 3),
        (40, 1),
        (40, 3),
        (40, 4),
    ]


async def test_after_a_restart_the_newest_checkpoint_is_offered_again(tmp_path: Path) -> None:
    log = EvidenceLog(tmp_path / "log")
    grow(log, 3)
    await Evidence(log, signing(1, 0), urls={}, period_s=NEVER).close_bundle(10)
    async with witness(tmp_path, 0) as address:
        urls = {"w0.example": f"http://{address}/"}
        async with running(Evidence(log, signing(1, 0), urls=urls, period_s=NEVER)) as evidence:
            await comes_true(lambda: evidence.status().cosignatures == 1)
        grow(log, 5)
        # A new process has forgotten what the witness knows, and learns it from the conflict.
        async with running(Evidence(log, signing(1, 0), urls=urls, period_s=NEVER)) as evidence:
            await evidence.close_bundle(20)
            await comes_true(lambda: evidence.status().cosigned_size == 8)
    log.close()


async def test_a_second_broker_with_another_history_is_refused(tmp_path: Path) -> None:
    logs = [EvidenceLog(tmp_path / "one"), EvidenceLog(tmp_path / "two")]
    grow(logs[0], 5)
    grow(logs[1], 5, b"another")
    async with witness(tmp_path, 0) as address:
        urls = {"w0.example": f"http://{address}"}
        async with running(Evidence(logs[0], signing(1, 0), urls=urls, period_s=NEVER)) as evidence:
            await evidence.close_bundle(10)
            await comes_true(lambda: evidence.status().cosigned_size == 5)
        for more in (0, 3):
            grow(logs[1], more, b"another")
            async with running(Evidence(logs[1], signing(1, 0), urls=urls, period_s=NEVER)) as evidence:
                await evidence.close_bundle(20)
                await comes_true(lambda: bool(evidence.status().witness_errors))
                assert "has cosigned another history of this log" in evidence.status().witness_errors["w0.example"]
                assert evidence.status().cosigned_size == 0
        grow(logs[0], 20)
        async with running(Evidence(logs[0], signing(1, 0), urls=urls, period_s=NEVER)) as evidence:
            await evidence.close_bundle(30)
            await comes_true(lambda: evidence.status().cosigned_size == 25)
        async with running(Evidence(logs[1], signing(1, 0), urls=urls, period_s=NEVER)) as evidence:
            await comes_true(lambda: "was set back" in evidence.status().witness_errors.get("w0.example", ""))
    for log in logs:
        log.close()


async def test_a_witness_without_a_url_is_shown(tmp_path: Path) -> None:
    log = EvidenceLog(tmp_path)
    evidence = Evidence(log, signing(1, 0), urls={}, period_s=NEVER)
    await evidence.close_bundle(10)
    assert "no URL is configured: add w0.example" in evidence.status().witness_errors["w0.example"]
    log.close()


@asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[str]:
    """A server that answers everything with the same bytes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nyes\n", "something else than its cosignature"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "something else than its cosignature"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 100_000, "more than 16384 bytes"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n", "with 302"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 8\r\n\r\nwho are\n", "with 404: who are"),
        (b"HTTP/1.1 409 Conflict\r\nContent-Length: 3\r\n\r\n99\n", "was set back"),
        (b"HTTP/1.1 409 Conflict\r\nContent-Length: 3\r\n\r\n-1\n", "with 409"),
        (b"nonsense\r\n\r\n", "does not answer"),
    ],
)
async def test_whatever_a_witness_answers(tmp_path: Path, answer: bytes, said: str) -> None:
    log = EvidenceLog(tmp_path)
    grow(log, 3)
    async with (
        answering(answer) as url,
        running(Evidence(log, signing(1, 0), urls={"w0.example": url}, period_s=NEVER)) as evidence,
    ):
        await evidence.close_bundle(10)
        await comes_true(lambda: bool(evidence.status().witness_errors))
        assert said in evidence.status().witness_errors["w0.example"]
        assert evidence.status().cosigned_size == 0
    log.close()


async def test_a_witness_that_hangs_is_given_up(tmp_path: Path) -> None:
    log = EvidenceLog(tmp_path / "log")
    grow(log, 3)
    async with witness(tmp_path, 1) as good:
        server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
        hangs = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        urls = {"w0.example": hangs, "w1.example": f"http://{good}"}
        evidence = Evidence(log, signing(1, 0, 1), urls=urls, period_s=NEVER, timeout_s=0.2)
        async with running(evidence):
            await evidence.close_bundle(10)
            await comes_true(lambda: evidence.status().cosigned_size == 3)
            await comes_true(lambda: "does not answer" in evidence.status().witness_errors.get("w0.example", ""))
        server.close()
    log.close()
