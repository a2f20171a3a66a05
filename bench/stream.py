# SPDX-License-Identifier: Apache-2.0
"""How many snapshots one broker process takes in over real gRPC, and how soon lone vantages are answered.

Three bars, all of one real broker in a process and on a core of its own; the clients are other processes on the other
cores and send what they sealed before the clock starts:

1. ``durable``: batches of 256 from agents that drain, one vantage a stream; every snapshot is verified, in the evidence
   log, in the database and on the disk before it is acknowledged. At least 100,000 per second.
2. ``merkle``: the same broker with a store that keeps nothing: seal, replay, body, Merkle tree, acknowledgement. This
   is a measurement only, no setting makes a broker do it. At least 150,000 per second.
3. ``lone``: 5,000 connections that send one snapshot a second each, durable; their phases are spread over the second as
   clocks and jitter spread them, and once all are sent at the same moment. At most one core, for the spread ones.
   Their clients write HTTP/2 frames by hand and seal beforehand, or they would take more than the broker.
   With --full there is ``echo`` beside it: a server of gRPC and nothing else, which answers the same clients with as
   many bytes.

The figure of 1 and 2 is snapshots per second of the *broker process's CPU*, user and system of all threads as
getrusage counts it, so that what the clients cost is not in it; beside it stands the rate on the wall, with the clients
on the same machine. Latencies are the client's, from before it writes to after it has read the acknowledgement.
``mixed`` is 1 with 256 vantages in every batch, as a relay would send. Stages are measured apart, in another process.
Within a round, all snapshots of a vantage have the same body; every header, seal and leaf differs. Decisions are
rechecked with the share of the settings' default, on baselines the broker does not have.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import multiprocessing
import os
import random
import resource
import select
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc

from bench import verify
from bench.harness import WORK, Result
from bench.http2 import Stream
from mvps.broker.admission import Admission
from mvps.broker.process import calm_process
from mvps.broker.server import Broker
from mvps.broker.service import OPTIONS
from mvps.broker.settings import BrokerSettings
from mvps.broker.state import FleetState
from mvps.broker.store import Store
from mvps.trust.epochs import Epochs
from mvps.trust.keys import Kind, SecretKey, generate_key, load_key
from mvps.trust.limits import MAX_BATCH_ITEMS, NONCE_BYTES
from mvps.trust.manifest import Broker as BrokerEntry
from mvps.trust.manifest import Manifest, Vantage, sign_manifest
from mvps.trust.merkle import Tree
from mvps.trust.seal import Lane, Purpose, Sealed, Sealer, StreamCounter
from mvps.v1 import snapshot_pb2 as pb_snapshot
from mvps.v1 import stream_pb2 as pb

SUMMARY = "snapshots per second of broker CPU over gRPC, durable and not; 5,000 lone vantages at 1 Hz"
DURABLE_BAR = 100_000
MERKLE_BAR = 150_000
LONE_CORES = 1.0
STREAMS = 8
_ANSWER_BYTES = 210  # one sealed acknowledgement in its envelope
_SEAL_S = 1e-4  # for one snapshot, at most, in each of two processes that share a core
IN_FLIGHT = 4  # batches of a stream, as the agent's client has it
_NS = 10**9
_METHOD = "/mvps.v1.Broker/Stream"
_SPAWN = multiprocessing.get_context("spawn")


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=0, help="of batches (default 2, with --full 12)")
    parser.add_argument("--batches", type=int, default=100, help="of one stream and round")
    parser.add_argument("--lone", type=int, default=5000, help="connections that send one snapshot a second")
    parser.add_argument("--seconds", type=int, default=0, help="of lone vantages (default 5, with --full 60)")
    parser.add_argument("--echo", action="store_true", help="measure gRPC alone with the same connections too")
    parser.add_argument("--only", choices=["durable", "merkle", "mixed", "lone", "stages"], help="measure this alone")


# ---- the site: one broker, many vantages, keys in memory


def name_of(number: int) -> str:
    return f"host-{number:05}"


def make_site(folder: Path, vantages: int, *, tick_ms: int, rate_factor: int) -> None:
    """A broker's key, the operator's and a manifest. Hosts' secrets come from a seed: nothing here is of worth."""
    chance = random.Random(4)
    operator = generate_key(folder / "operator.key", Kind.OPERATOR)
    broker = generate_key(folder / "broker.key", Kind.BROKER)
    secrets = [SecretKey(chance.randbytes(32), Kind.HOST) for _ in range(vantages)]
    begun = int(time.time()) - 3600
    manifest = Manifest(
        operator="bench",
        epoch_id=1,
        previous=None,
        from_s=begun,
        until_s=begun + 2 * 86400,
        retire_s=begun,
        broker=BrokerEntry("broker", broker.public),
        tick_ms=tick_ms,
        rate_factor=rate_factor,
        vantages=tuple(Vantage(name_of(number), secret.public) for number, secret in enumerate(secrets)),
    )
    (folder / "manifests").mkdir()
    (folder / "manifests" / "1.manifest").write_bytes(sign_manifest(manifest, operator))
    (folder / "operator.pub").write_text(operator.public.text + "\n")


def settings_of(folder: Path) -> BrokerSettings:
    return BrokerSettings(
        listen="127.0.0.1:0",
        database=folder / "broker.db",
        database_max_mib=1 << 16,
        key=str(folder / "broker.key"),
        operator=str(folder / "operator.pub"),
        manifests=folder / "manifests",
        metrics="",
        max_streams=20_000,
    )


# ---- the broker's process


class KeepsNothing(Store):
    """A store of the same interface that only grows a Merkle tree in memory: what bar 2 leaves out is the disk."""

    def _commit(self, group: list[Any]) -> None:
        tree = self.__dict__.setdefault("_tree", Tree())
        tree.extend(b"".join(submission.parcel.hashes for submission in group))
        tree.head  # noqa: B018  # a head for every commit, as the real one has


@dataclass(frozen=True)
class Usage:
    """Totals of the broker's process. cpu_s: user and system, all threads."""

    wall_s: float
    cpu_s: float
    accepted: int
    streams: int
    decisions: int
    refused: dict[str, int]


def broker_process(pipe: Connection, folder: Path, cpu: int, kind: str) -> None:
    """Serve until told to stop; answer "usage" meanwhile. kind: "durable", "merkle" or "echo"."""
    os.sched_setaffinity(0, {cpu})
    calm_process()
    asyncio.run(_echo(pipe) if kind == "echo" else _serve(pipe, folder, kind == "durable"))


async def _until_told(pipe: Connection, address: str, totals: Callable[[], Usage]) -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()

    def answer() -> None:
        while pipe.recv() == "usage":
            pipe.send(totals())
        loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=answer, daemon=True).start()
    pipe.send(address)
    await ended.wait()


def _usage(accepted: int, streams: int, decisions: int, refused: dict[str, int]) -> Usage:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return Usage(time.monotonic(), used.ru_utime + used.ru_stime, accepted, streams, decisions, refused)


async def _echo(pipe: Connection) -> None:
    """Answers every message with as many bytes as one acknowledgement has."""
    answered = streams = 0

    async def stream(_: object, context: Any) -> None:
        nonlocal answered, streams
        streams += 1
        while isinstance(await context.read(), bytes):
            answered += 1
            await context.write(bytes(_ANSWER_BYTES))
        streams -= 1

    server = grpc.aio.server(options=OPTIONS)
    handler = grpc.stream_stream_rpc_method_handler(stream)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("mvps.v1.Broker", {"Stream": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    await _until_told(pipe, f"127.0.0.1:{port}", lambda: _usage(answered, streams, 0, {}))
    await server.stop(None)


async def _serve(pipe: Connection, folder: Path, durable: bool) -> None:
    if not durable:
        import mvps.broker.server as server

        server.Store = KeepsNothing  # type: ignore[misc]
    broker = Broker(settings_of(folder))
    await broker.start()

    def totals() -> Usage:
        counts = broker.counters()
        causes = ("rejected", "streams_refused", "throttled")
        refused = {name: n for name, n in counts.items() if name.startswith(causes) and n}
        return _usage(
            broker.accepted, broker.streams, counts["decisions.checked"] + counts["decisions.unchecked"], refused
        )

    await _until_told(pipe, broker.address, totals)
    await broker.stop()


@contextmanager
def broker(folder: Path, kind: str) -> Iterator[tuple[str, Callable[[], Usage]]]:
    """(address, what it has used) of a broker in a process of its own."""
    ours, theirs = _SPAWN.Pipe()
    process = _SPAWN.Process(target=broker_process, args=(theirs, folder, min(os.sched_getaffinity(0)), kind))
    process.start()

    def usage() -> Usage:
        ours.send("usage")
        found: Usage = _received(ours)
        return found

    try:
        yield _received(ours), usage
    finally:
        if process.is_alive():
            ours.send("stop")
        process.join(60)
        if process.is_alive():
            process.kill()


def _received(pipe: Connection) -> Any:
    if not pipe.poll(300):
        raise SystemExit("bench: a process says nothing for 300 s")
    try:
        return pipe.recv()
    except EOFError:
        raise SystemExit("bench: a process ended early; what it said stands above") from None


# ---- the clients' processes


class Sealers:
    """Seals for any vantage of a site. The broker derives the same keys, so its side of the epochs serves."""

    def __init__(self, folder: Path) -> None:
        self._epochs = Epochs.of_broker([load_key(str(folder / "broker.key"))])
        from mvps.trust.keys import load_public
        from mvps.trust.manifest_folder import ManifestFolder

        for manifest, _ in ManifestFolder(folder / "manifests", load_public(str(folder / "operator.pub"))).scan():
            self._epochs.add(manifest)
        self._chance = random.Random(os.getpid())
        self._sealers: dict[int, Sealer] = {}
        self._bodies: dict[int, tuple[int, bytes]] = {}
        self._snapshots: dict[int, pb_snapshot.Snapshot] = {}
        self._sealed_ns = 0
        self._counters: dict[int, int] = {}

    def sealed(self, number: int, tick: int) -> Sealed:
        """The next snapshot of a vantage, of a tick of the 1 s lattice, sealed now."""
        return self._seal(number, tick, time.time_ns())

    def at(self, number: int, sealed_ns: int) -> Sealed:
        """The next snapshot of a vantage, of the tick that this time is in."""
        return self._seal(number, sealed_ns // _NS, sealed_ns)

    def _seal(self, number: int, tick: int, sealed_ns: int) -> Sealed:
        sealer = self._sealers.get(number)
        if sealer is None:
            name = name_of(number)
            key = self._epochs.sealing_key(name, 1, Purpose.SNAPSHOT)
            self._counters[number] = 1 << 32
            self._snapshots[number] = verify.snapshot(name, self._chance)

            def following(lane: Lane, number: int = number) -> int:
                self._counters[number] += 1
                return self._counters[number]

            sealer = self._sealers[number] = Sealer(
                key, name, Purpose.SNAPSHOT, following, epoch_id=1, clock=lambda: self._sealed_ns
            )
        self._sealed_ns = sealed_ns
        made = self._bodies.get(number)
        if made is None or made[0] != tick:
            snapshot = self._snapshots[number]
            snapshot.tick, snapshot.tick_time_ns = tick, tick * _NS
            made = self._bodies[number] = (tick, snapshot.SerializeToString())
        return sealer.seal(made[1], tick)


def _message(nonce: bytes, items: list[Sealed]) -> bytes:
    batch = pb.Batch(stream_nonce=nonce)
    for header, body, tag in items:
        batch.items.add(header=header, body=body, tag=tag)
    return batch.SerializeToString()


def _channel(address: str) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(
        address, options=(("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0))
    )


def batch_process(pipe: Connection, address: str, folder: Path, batches: int, mixed: bool) -> None:
    """Rounds of batches on STREAMS connections: seals on "seal", sends on "send", until "stop"."""
    os.sched_setaffinity(0, _client_cpus())
    asyncio.run(_send_batches(pipe, address, Sealers(folder), batches, mixed))


def _client_cpus() -> set[int]:
    cpus = os.sched_getaffinity(0)
    return cpus - {min(cpus)} or cpus


async def _send_batches(pipe: Connection, address: str, sealers: Sealers, batches: int, mixed: bool) -> None:
    calls = [_channel(address).stream_stream(_METHOD)() for _ in range(STREAMS)]
    nonces = [os.urandom(NONCE_BYTES) for _ in calls]
    messages: list[list[bytes]] = []
    while (told := pipe.recv()) != "stop":
        if told == "seal":
            tick = time.time_ns() // _NS
            messages = [[] for _ in calls]
            for _ in range(batches):
                for stream, nonce in enumerate(nonces):
                    first = stream * MAX_BATCH_ITEMS
                    numbers = range(first, first + MAX_BATCH_ITEMS) if mixed else [stream] * MAX_BATCH_ITEMS
                    messages[stream].append(_message(nonce, [sealers.sealed(number, tick) for number in numbers]))
            gc.collect()
            pipe.send(len(messages[0][0]) / MAX_BATCH_ITEMS)
        else:
            begun = time.monotonic()
            answers = await asyncio.gather(*(_drain(call, sent) for call, sent in zip(calls, messages, strict=True)))
            taken = time.monotonic() - begun
            statuses = [_accepted(answer) for stream in answers for answer in stream]
            pipe.send((taken, sum(statuses)))
    for call in calls:
        call.cancel()


async def _drain(call: Any, messages: list[bytes]) -> list[bytes]:
    places = asyncio.Semaphore(IN_FLIGHT)

    async def write() -> None:
        for message in messages:
            await places.acquire()
            await call.write(message)

    writing = asyncio.create_task(write())
    answers = []
    for _ in messages:
        answer = await call.read()
        if answer is grpc.aio.EOF:
            raise SystemExit(f"bench: the broker ended a stream: {await call.details()}")
        answers.append(answer)
        places.release()
    await writing
    return answers


def _accepted(answer: bytes) -> int:
    sealed = pb.AckBatch.FromString(answer).sealed
    acks = [ack.status for one in sealed for ack in pb.Acks.FromString(one.body).acks]
    return acks.count(pb.ACK_STATUS_ACCEPTED)


def lone_process(pipe: Connection, address: str, folder: Path, numbers: range) -> None:
    """One connection for each vantage, each with one snapshot a second: of (kind, seconds, begin), until "stop".

    Everything is sealed before the clock starts. The connections are :class:`bench.http2.Stream`, so that 5,000 clients
    need less than a core and the latency is the broker's.
    """
    os.sched_setaffinity(0, _client_cpus())
    sealers = Sealers(folder)
    calls: dict[int, tuple[Stream, bytes]] = {}
    for number in numbers:  # one after the other: a stream has to say something soon
        calls[number] = call, nonce = Stream(address, _METHOD), os.urandom(NONCE_BYTES)
        call.send(_message(nonce, [sealers.sealed(number, time.time_ns() // _NS)]))
        while not call.receive():
            pass
    pipe.send("connected")
    chance = random.Random(numbers.start)
    while (told := pipe.recv()) != "stop":
        kind, seconds, begin = told
        begin_ns = time.time_ns() + int((begin - time.monotonic()) * _NS)
        phases = {number: chance.random() if kind == "spread" else 0.0 for number in numbers}
        plan = [(second + phase, number) for number, phase in phases.items() for second in range(seconds)]
        plan.sort()
        sends = [
            (due, number, _message(calls[number][1], [sealers.at(number, begin_ns + int(due * _NS))]))
            for due, number in plan
        ]
        gc.collect()
        gc.freeze()
        if time.monotonic() > begin:
            raise SystemExit("bench: sealing took longer than was planned for")
        pipe.send(_send_lone(calls, sends, begin))
    for call, _ in calls.values():
        call.close()


def _send_lone(
    calls: dict[int, tuple[Stream, bytes]], sends: list[tuple[float, int, bytes]], begin: float
) -> tuple[list[float], list[float]]:
    """(latencies from the write on, lateness of the writes) in s, of what is sent at begin + its own time."""
    poller = select.epoll()
    by_file = {}
    for number, (call, _) in calls.items():
        poller.register(call.fileno(), select.EPOLLIN)
        by_file[call.fileno()] = (number, call)
    sent: dict[int, float] = {}
    latencies: list[float] = []
    lateness: list[float] = []
    following = 0
    clock = time.monotonic
    while len(latencies) < len(sends):
        now = clock()
        while following < len(sends) and begin + sends[following][0] <= now:
            due, number, message = sends[following]
            if number in sent:
                break  # one at a time: the answer to the one before is awaited first
            sent[number] = now = clock()
            calls[number][0].send(message)
            lateness.append(now - begin - due)
            following += 1
        wait = max(begin + sends[following][0] - clock(), 0.0) if following < len(sends) else 60.0
        events = poller.poll(wait)
        if not events and following == len(sends):
            raise SystemExit(f"bench: {len(sent)} snapshots were not answered within 60 s")
        for file, _ in events:
            number, call = by_file[file]
            for answer in call.receive():
                latencies.append(clock() - sent.pop(number))
                if not answer:
                    raise SystemExit("bench: an empty answer")
    poller.close()
    return latencies, lateness


@contextmanager
def client(target: Callable[..., None], *arguments: Any) -> Iterator[Connection]:
    """A client's process and the pipe to it."""
    ours, theirs = _SPAWN.Pipe()
    process = _SPAWN.Process(target=target, args=(theirs, *arguments))
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        if process.is_alive():
            ours.send("stop")
        process.join(30)
        if process.is_alive():
            process.kill()


# ---- measurements


def measure_batches(folder: Path, *, durable: bool, mixed: bool, rounds: int, batches: int) -> dict[str, Any]:
    """Medians over rounds, the first of which only warms up."""
    per_cpu, per_wall, size = [], [], 0.0
    with (
        broker(folder, "durable" if durable else "merkle") as (address, usage),
        client(batch_process, address, folder, batches, mixed) as pipe,
    ):
        for number in range(rounds + 1):
            pipe.send("seal")
            size = _received(pipe)
            before = usage()
            pipe.send("send")
            taken, acknowledged = _received(pipe)
            after = usage()
            expected = STREAMS * batches * MAX_BATCH_ITEMS
            if not acknowledged == after.accepted - before.accepted == expected:
                raise SystemExit(f"bench: of {expected} snapshots {acknowledged} were acknowledged: {after.refused}")
            if number:
                per_cpu.append(expected / (after.cpu_s - before.cpu_s))
                per_wall.append(expected / taken)
    return {
        "per_cpu_second": round(statistics.median(per_cpu)),
        "lowest_and_highest": [round(min(per_cpu)), round(max(per_cpu))],
        "cpu_us": round(1e6 / statistics.median(per_cpu), 2),
        "per_wall_second": round(statistics.median(per_wall)),
        "snapshots": rounds * STREAMS * batches * MAX_BATCH_ITEMS,
        "wire_bytes": round(size),
    }


def measure_lone(folder: Path, kind: str, count: int, seconds: int) -> dict[str, Any]:
    """CPU of the broker and latencies, spread over the second and all at once."""
    half = count // 2
    found: dict[str, Any] = {"connections": count, "seconds": seconds}
    with (
        broker(folder, kind) as (address, usage),
        client(lone_process, address, folder, range(half)) as one,
        client(lone_process, address, folder, range(half, count)) as other,
    ):
        begun = time.monotonic()
        for pipe in (one, other):
            _received(pipe)
        found["connect_s"] = round(time.monotonic() - begun, 1)
        for phases in ("spread", "aligned"):
            start = time.monotonic() + 2.0 + count * seconds * _SEAL_S
            for pipe in (one, other):
                pipe.send((phases, seconds, start))
            time.sleep(max(start - 0.5 - time.monotonic(), 0.0))
            before = usage()
            answers = [_received(pipe) for pipe in (one, other)]
            latencies = sorted(answers[0][0] + answers[1][0])
            lateness = sorted(answers[0][1] + answers[1][1])
            after = usage()
            expected = count * seconds
            if len(latencies) != expected or after.accepted - before.accepted != expected:
                raise SystemExit(f"bench: of {expected} snapshots {len(latencies)} were answered: {after.refused}")
            found[phases] = {
                "cores": round((after.cpu_s - before.cpu_s) / seconds, 3),
                "cpu_us": round((after.cpu_s - before.cpu_s) / expected * 1e6, 1),
                "p50_ms": round(1e3 * latencies[len(latencies) // 2], 2),
                "p99_ms": round(1e3 * latencies[int(0.99 * len(latencies))], 2),
                "max_ms": round(1e3 * latencies[-1], 2),
                "sent_late_p99_ms": round(1e3 * lateness[int(0.99 * len(lateness))], 2),
                "decisions_seen": after.decisions - before.decisions,
            }
            if after.streams != count:
                raise SystemExit(f"bench: {after.streams} streams are open, not {count}")
    return found


def stages_process(pipe: Connection, folder: Path, batches: int) -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    pipe.send(asyncio.run(_stages(folder, batches)))


async def _stages(folder: Path, batches: int) -> dict[str, float]:
    """CPU of each part, us per snapshot, median over batches of one vantage."""
    sealers = Sealers(folder)
    epochs = sealers._epochs
    settings = settings_of(folder)
    admission = Admission(epochs, settings.window(), max_vantages=1000)
    store = Store(folder / "stages.db", retention_s=3600, max_bytes=1 << 34)
    fleet = FleetState()
    counter = StreamCounter()
    nonce = os.urandom(NONCE_BYTES)
    tick = time.time_ns() // _NS
    taken: dict[str, list[float]] = {}

    def timed(stage: str, clock: Callable[[], int], begun: int) -> None:
        taken.setdefault(stage, []).append((clock() - begun) / MAX_BATCH_ITEMS / 1e3)

    thread, process = time.thread_time_ns, time.process_time_ns
    for _ in range(batches):
        message = _message(nonce, [sealers.sealed(0, tick) for _ in range(MAX_BATCH_ITEMS)])
        begun = thread()
        admitted = admission.judge(message, b"", time.time_ns())
        timed("judge", thread, begun)
        begun = thread()
        parcel = admitted.parcel
        timed("pack", thread, begun)
        begun = process()
        await store.submit(parcel, 0)
        timed("store", process, begun)
        begun = thread()
        admission.commit(admitted.runs)
        fleet.record(admitted, 1, 0)
        timed("count", thread, begun)
        begun = thread()
        ((name, epoch_id, acks),) = admitted.batch.acks()
        key = epochs.sealing_key(name, epoch_id, Purpose.CONTROL)
        header, body, tag = Sealer(key, name, Purpose.CONTROL, counter, epoch_id=epoch_id).seal(acks, 0)
        answer = pb.AckBatch()
        answer.sealed.add(header=header, body=body, tag=tag)
        answer.SerializeToString()
        timed("answer", thread, begun)
    store.close()
    return {stage: round(statistics.median(times), 3) for stage, times in taken.items()}


def measure_stages(folder: Path) -> dict[str, float]:
    with client(stages_process, folder, 300) as pipe:
        found: dict[str, float] = _received(pipe)
    return found


def run(given: argparse.Namespace) -> Result:
    rounds = given.rounds or (12 if given.full else 2)
    seconds = given.seconds or (60 if given.full else 5)
    wanted = [given.only] if given.only else ["durable", "merkle", "mixed", "lone", "stages"]
    details: dict[str, Any] = {"conditions": f"broker on one core, clients on the others; {STREAMS} streams of batches"}
    held: list[tuple[float, float, float, str]] = []  # share of the bar, figure, bar, unit
    for name in wanted:
        with tempfile.TemporaryDirectory(prefix="stream-", dir=WORK) as place:
            folder = Path(place)
            if name == "lone":
                make_site(folder, given.lone, tick_ms=1000, rate_factor=4)
                details[name] = measure_lone(folder, "durable", given.lone, seconds)
                if given.full or given.echo:
                    details["echo"] = measure_lone(folder, "echo", given.lone, seconds)
                    print("echo", details["echo"], flush=True)
                cores = details[name]["spread"]["cores"]
                held.append((LONE_CORES / cores, cores, LONE_CORES, "cores for lone vantages"))
            else:
                make_site(folder, STREAMS * MAX_BATCH_ITEMS, tick_ms=50, rate_factor=1000)
                if name == "stages":
                    details["stages_us"] = measure_stages(folder)
                else:
                    details[name] = measure_batches(
                        folder,
                        durable=name != "merkle",
                        mixed=name == "mixed",
                        rounds=rounds,
                        batches=given.batches // 5 if name == "mixed" else given.batches,
                    )
            if name in ("durable", "merkle"):
                bar = DURABLE_BAR if name == "durable" else MERKLE_BAR
                figure = details[name]["per_cpu_second"]
                held.append((figure / bar, figure, bar, f"snapshots per second of broker CPU, {name}"))
        print(name, details.get(name) or details["stages_us"], flush=True)
    if "durable" in details and "stages_us" in details:
        stages = details["stages_us"]
        stages["grpc_and_loop"] = round(details["durable"]["cpu_us"] - sum(stages.values()), 3)
    _, figure, bar, unit = min(held) if held else (1.0, 0.0, 0.0, "nothing was held against a bar")
    return Result(figure, unit, bar, all(one[0] >= 1 for one in held), details)
