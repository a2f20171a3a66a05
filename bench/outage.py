# SPDX-License-Identifier: Apache-2.0
"""Nothing lost: an agent's spool through cuts, kills, restarts of the broker and a full disk; what it costs.

A real broker process and a real sending process (counter, epochs, sealer, spool, stream client: the agent without its
probes) with a relay between them that can be cut. The spool lies on a small disk of its own that can be filled. First a
long outage with a backlog, in which the agent is killed, then random blows. In the end the broker's own rows say which
ticks arrived, and how often.

The sender writes down every tick before it is sealed, and again once it is on disk ("kept"). What was kept has to be
stored exactly once. A kill may also hit in the moment between seal and disk, which no process can cover without making
its tick wait for the disk: those are counted apart, as ``in_hand_over``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter as Tally
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from bench.crash import Broker, Victim, audit
from bench.harness import WORK, Result, need_root
from bench.tick import percentile
from bench.verify import snapshot
from mvps.daemon.identity import Identity
from mvps.daemon.uplink import BrokerUplink
from mvps.stream.ledger import State
from mvps.stream.spool import Spool
from mvps.trust.counter import Counter
from mvps.trust.evidence_log import EvidenceError, split_leaves
from mvps.trust.keys import load_key
from mvps.trust.seal import Lane, parse_header
from mvps.trust.solo import Site, make_site

SUMMARY = "outages, cuts, kill -9 and a full disk: snapshots lost; catch-up, live latency meanwhile, cost of the spool"
NAME = "host-1"
TICK_MS = 50
TICK_NS = TICK_MS * 1_000_000
DISK_MIB = 32
BACKLOG = 3000
LATE_RATE = 400.0  # faster than the default of three times the ticks, so that a run is short
_PATIENCE_S = 60.0


class Relay:
    """Passes bytes on between a port of its own and a Unix socket, until it is cut."""

    def __init__(self, behind: Path) -> None:
        self._behind = behind
        self._open: list[socket.socket] = []
        self._lock = threading.Lock()
        self._whole = True
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Break every connection, and take no new one."""
        with self._lock:
            self._whole = False
            for one in self._open:
                _reset(one)
            self._open.clear()

    def mend(self) -> None:
        with self._lock:
            self._whole = True

    def close(self) -> None:
        self.cut()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            with self._lock:
                try:
                    if not self._whole:
                        raise ConnectionRefusedError
                    far.connect(str(self._behind))
                except OSError:
                    _reset(near)
                    far.close()
                    continue
                self._open += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while some := source.recv(65536):
                sink.sendall(some)
        with self._lock:
            for one in (source, sink):
                if one in self._open:
                    self._open.remove(one)
                _reset(one)


def _reset(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    with contextlib.suppress(OSError):
        one.close()


class Sender(Victim):
    """The sending process and what it wrote down."""

    def __init__(self, site: Site, target: str, spool: Path) -> None:
        self.record = site.directory / "record"
        command = [sys.executable, "-m", "bench.outage", "--send", str(site.directory), target, str(spool)]
        super().__init__(command, site.directory / "sender.log")

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def lines(self) -> list[list[str]]:
        """Whole lines, as words."""
        content = self.record.read_text() if self.record.exists() else ""
        return [line.split() for line in content.splitlines() if line.endswith(".")]

    def state(self) -> dict[str, Any]:
        """The newest accounts."""
        states = [words for words in self.lines() if words[0] == "state"]
        return json.loads(bytes.fromhex(states[-1][1])) if states else {}

    def wait(self, what: str, condition: Any) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while not condition(self.state()):
            if time.monotonic() > deadline:
                raise SystemExit(f"bench: {what}: waited in vain\n{self.state()}\n{self.said()}")
            time.sleep(0.1)


def send(directory: Path, target: str, folder: Path) -> None:
    """The sending process: until it is ended."""
    record = os.open(directory / "record", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    say = lambda *words: os.write(record, ("\n" + " ".join(map(str, words)) + " .").encode())  # noqa: E731
    identity = Identity(
        str(directory / f"{NAME}.key"),
        load_key(str(directory / "operator.key")).public,
        directory / "manifests",
        directory / "received",
        NAME,
    )
    uplink = BrokerUplink(
        target,
        NAME,
        identity,
        Counter(directory / "counter"),
        4096,
        spool=Spool(folder / "spool", max_bytes=DISK_MIB << 20, max_age_s=86400.0),
        late_rate=LATE_RATE,
    )
    client = uplink._client
    flags: list[int] = []
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, _: flags.append(number))
    body = snapshot(NAME, random.Random(1))
    body.tick_period_ns = TICK_NS

    def produce(tick: int) -> None:
        say("use", tick, time.time_ns())
        body.tick, body.tick_time_ns = tick, tick * TICK_NS
        uplink.submit(body.SerializeToString(), tick)
        unkept.append(tick)

    unkept: list[int] = []
    seen: set[tuple[int, int]] = set()
    told = words = ""
    told_at = 0.0
    tick = time.time_ns() // TICK_NS
    while True:
        ended = signal.SIGTERM in flags
        if signal.SIGUSR1 in flags:
            flags.remove(signal.SIGUSR1)
            for earlier in range(tick - BACKLOG - 2000, tick - 2000):
                produce(earlier)
        if not ended and (tick + 1) * TICK_NS <= time.time_ns():
            tick += 1
            produce(tick)
        if unkept:
            in_memory = {item.record.tick for item in client._ledger.unspooled(100_000)}
            for kept in [one for one in unkept if one not in in_memory]:
                say("kept", kept, time.time_ns())
            unkept = [one for one in unkept if one in in_memory]
        if time.monotonic() - told_at > 0.2 or ended:
            told_at = time.monotonic()
            status = client.status()
            totals = status.totals
            words = json.dumps(asdict(totals) | {"balanced": totals.balanced, "backfilled": status.backfilled})
            if words != told:
                told = words
                say("state", words.encode().hex())
            for one in client.records()[-1024:]:
                if one.state == State.ACKNOWLEDGED and (one.lane, one.counter) not in seen:
                    seen.add((one.lane, one.counter))
                    say("ack", one.lane, one.tick, one.sealed_ns, one.settled_ns)
            if ended and not totals.queued + totals.spooled:
                break
        time.sleep(0.001)
    uplink.close()


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A tmpfs of DISK_MIB MiB."""
    place = folder / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m,mode=0700", "mvps-bench", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


@contextlib.contextmanager
def filled(disk: Path) -> Iterator[None]:
    """Not an octet is left on it."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    try:
        yield
    finally:
        ballast.unlink()


def outage(relay: Relay, sender: Sender) -> dict[str, float]:
    """A long one with a backlog, during which the agent is killed; then the catch-up, from its first answer on."""
    relay.cut()
    sender.signal(signal.SIGUSR1)
    sender.wait("the backlog on disk", lambda state: state.get("spooled", 0) >= BACKLOG)
    spooled = sender.state()["spooled"]
    sender.end(signal.SIGKILL)
    sender.start()
    time.sleep(1.0)
    before = sender.state()["acknowledged"]
    relay.mend()
    sender.wait("an answer", lambda state: state["acknowledged"] > before)
    begun = time.time()
    sender.wait("the catch-up", lambda state: state.get("recovered", 0) and state["spooled"] + state["queued"] <= 5)
    return {"backlog": spooled, "begun": begun, "ended": time.time()}


def blows(relay: Relay, broker: Broker, sender: Sender, disk: Path, rounds: int, chance: random.Random) -> Tally[str]:
    """Random ones; which, how often."""
    dealt: Tally[str] = Tally()
    kinds = ["agent killed", "broker killed", "broker restarted", "cut", "disk full"]
    for number in range(rounds):
        kind = kinds[number] if number < len(kinds) else chance.choice(kinds)
        dealt[kind] += 1
        if kind == "agent killed":
            sender.end(signal.SIGKILL)
            sender.start()
        elif kind == "broker killed":
            broker.end(signal.SIGKILL)
            broker.start()
        elif kind == "broker restarted":
            broker.end(signal.SIGTERM)
            broker.start()
        elif kind == "cut":
            relay.cut()
            time.sleep(chance.uniform(0.05, 2.0))
            relay.mend()
        else:
            relay.cut()
            with filled(disk):
                sender.wait("memory to take over", lambda state: state.get("queued", 0) > 0)
                relay.mend()
                time.sleep(chance.uniform(0.0, 2.0))
            # A kill now would lose what is in memory only, as it must: let the disk take it first.
            sender.wait("the disk to take over again", lambda state: state.get("queued", 1) == 0)
        time.sleep(chance.uniform(0.0, 1.5))
    return dealt


def spooling(folder: Path, count: int = 5000) -> dict[str, float]:
    """Median cost of the spool for one snapshot, on the disk the repository is on."""
    from mvps.trust.seal import HmacKey, Purpose, Sealer

    numbers = iter(range(1, 1 << 40))
    sealer = Sealer(HmacKey(bytes(range(32)), bytes(8)), NAME, Purpose.SNAPSHOT, lambda _: next(numbers), epoch_id=1)
    body = snapshot(NAME, random.Random(1)).SerializeToString()
    spool = Spool(folder / "cost", max_bytes=1 << 28, max_age_s=86400.0)
    taken: dict[str, list[int]] = {"seal": [], "append": [], "settle": []}
    for _ in range(count):
        marks = [time.perf_counter_ns()]
        sealed = sealer.seal(body, 1)
        marks.append(time.perf_counter_ns())
        slot = spool.append(sealed, sent=True)
        marks.append(time.perf_counter_ns())
        if slot is None:
            raise SystemExit(f"bench: {spool.error}")
        spool.settle(slot)
        marks.append(time.perf_counter_ns())
        for name, before, after in zip(taken, marks, marks[1:], strict=False):
            taken[name].append(after - before)
    slots = [spool.append(sealer.seal(body, 1)) for _ in range(1000)]
    on_disk = spool.bytes / len(slots)
    spool.close()
    again = Spool(folder / "cost", max_bytes=1 << 28, max_age_s=86400.0)
    begun = time.perf_counter()
    found = again.recover()
    recovery_us = (time.perf_counter() - begun) * 1e6 / found
    again.close()
    cost = {f"{name}_us": round(statistics.median(times) / 1e3, 2) for name, times in taken.items()}
    spool_us = cost["append_us"] + cost["settle_us"]
    return cost | {
        "spool_us": round(spool_us, 2),
        "spool_to_seal": round(spool_us / cost["seal_us"], 2),
        "recovery_us": round(recovery_us, 2),
        "bytes_sealed": len(body) + 94,
        "bytes_on_disk": round(on_disk, 1),
    }


def logged(database: Path) -> list[tuple[int, int]]:
    """(tick, lane) of every snapshot in the evidence log of a broker's database; it may be running."""
    found = []
    for segment in sorted(database.with_name(database.name + ".evidence").glob("leaves-*")):
        data = segment.read_bytes()
        # What a running broker is writing at this moment is no whole leaf yet.
        with contextlib.suppress(EvidenceError):
            for _, sealed in split_leaves(partial(_piece, data), len(data)):
                header = parse_header(sealed.header)
                found.append((header.tick, int(header.lane)))
    return found


def _piece(data: bytes, size: int, at: int) -> bytes:
    return data[at : at + size]


def judge(sender: Sender, database: Path) -> dict[str, Any]:
    """Every tick that was written down against the leaves of the broker's log."""
    rows = logged(database)
    times = Tally(tick for tick, _ in rows)
    lines = sender.lines()
    used = [int(words[1]) for words in lines if words[0] == "use"]
    kept = {int(words[1]) for words in lines if words[0] == "kept"}
    states = [json.loads(bytes.fromhex(words[1])) for words in lines if words[0] == "state"]
    return {
        "produced": len(used),
        "kept": len(kept),
        "stored": len(rows),
        "stored_late": sum(lane == Lane.BACKFILL for _, lane in rows),
        "lost": len(kept - times.keys()),
        "stored_twice": sum(count > 1 for count in times.values()),
        "stored_and_never_made": len(times.keys() - set(used)),
        "in_hand_over": len(set(used) - kept - times.keys()),
        "accounts_off": sum(not state["balanced"] for state in states),
        "dropped": sum(state["dropped"] for state in states),
    }


def latencies(sender: Sender, begun: float, ended: float) -> dict[str, float]:
    """Seal to answer, in ms, of live snapshots sealed in that time."""
    found = sorted(
        (int(words[4]) - int(words[3])) / 1e6
        for words in sender.lines()
        if words[0] == "ack" and int(words[1]) == Lane.LIVE and begun * 1e9 <= int(words[3]) < ended * 1e9
    )
    if not found:
        return {"snapshots": 0, "p50_ms": 0.0, "p99_ms": 0.0}
    p50, p99 = (round(percentile(found, share), 3) for share in (0.5, 0.99))
    return {"snapshots": len(found), "p50_ms": p50, "p99_ms": p99}


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=0, help="random blows (default 10, with --full 100)")
    parser.add_argument("--seconds", type=float, default=0.0, help="at rest (default 6, with --full 30)")
    parser.add_argument("--seed", type=int, default=1)


def run(given: argparse.Namespace) -> Result:
    need_root()
    rounds = given.rounds or (100 if given.full else 10)
    at_rest = given.seconds or (30.0 if given.full else 6.0)
    with tempfile.TemporaryDirectory(prefix="outage-", dir=WORK) as name, small_disk(Path(name)) as disk:
        site = make_site(Path(name), [NAME], tick_ms=TICK_MS, rate_factor=1000, from_s=int(time.time()) - 3600)
        broker = Broker(site)
        relay = Relay(broker.socket)
        sender = Sender(site, relay.address, disk)
        try:
            broker.start()
            sender.start()
            sender.wait("a first answer", lambda state: state.get("acknowledged", 0) > 20)
            rest = time.time()
            time.sleep(at_rest)
            caught_up = outage(relay, sender)
            dealt = blows(relay, broker, sender, disk, rounds, random.Random(given.seed))
            sender.wait("everything to be answered", lambda state: state["spooled"] + state["queued"] <= 5)
            sender.end(signal.SIGTERM)
            broker.end(signal.SIGTERM)
        finally:
            sender.end(signal.SIGKILL)
            broker.end(signal.SIGKILL)
            relay.close()
        found = judge(sender, broker.database)
        holds = audit(broker, site)["holds"]
        before = latencies(sender, rest, rest + at_rest)
        during = latencies(sender, caught_up["begun"], caught_up["ended"])
        cost = spooling(Path(name))
    seconds = caught_up["ended"] - caught_up["begun"]
    details = {
        "blows": dict(dealt),
        **found,
        "log_holds": holds,
        "catch_up": {
            "snapshots": caught_up["backlog"],
            "seconds": round(seconds, 1),
            "at_the_set_pace_s": round(caught_up["backlog"] / LATE_RATE, 1),
        },
        "live_before": before,
        "live_during_catch_up": during,
        "live_p50_ratio": round(during["p50_ms"] / max(before["p50_ms"], 1e-9), 2),
        "live_p99_ratio": round(during["p99_ms"] / max(before["p99_ms"], 1e-9), 2),
        "spooling": cost,
    }
    for key, value in details.items():
        print(f"{key}: {value}")
    wrong = ("lost", "stored_twice", "stored_and_never_made", "accounts_off", "dropped")
    bad = sum(found[key] for key in wrong) + (not holds)
    return Result(float(bad), "snapshots lost or stored twice", 0.0, bad == 0 and before["snapshots"] > 0, details)


def main(arguments: Sequence[str]) -> None:
    _, directory, target, spool = arguments
    send(Path(directory), target, Path(spool))


if __name__ == "__main__":
    main(sys.argv[1:])
