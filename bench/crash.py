# SPDX-License-Identifier: Apache-2.0
"""kill -9 of broker and agent at random moments: what was acknowledged is there, no counter came twice, the log holds.

A real broker process and a real sending process (counter, epochs, sealer, stream client: the agent without its probes)
run until one of them is killed, over and over. The sender writes down every counter before it is used and every answer
when it has one, with one write(2) each. In the end the written record is held against the broker's own history, and
`mvps verify` audits the evidence log.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter as Tally
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.harness import ROOT, WORK, Result
from mvps.broker.tables import entries_of
from mvps.daemon.identity import Identity
from mvps.daemon.uplink import BrokerUplink
from mvps.stream.ledger import State
from mvps.trust.counter import Counter
from mvps.trust.keys import load_key
from mvps.trust.seal import Lane
from mvps.trust.solo import Site, make_site
from mvps.v1 import snapshot_pb2 as pb

SUMMARY = "kill -9 of agent and broker at random moments: acknowledged snapshots lost, counters used twice"
NAME = "host-1"
TICK_NS = 50_000_000
# A life ends this long after its first answer, uniformly.
SHORTEST_S, LONGEST_S = 0.0, 0.6
_MVPS = [sys.executable, "-m", "mvps.cli.main"]


class Victim:
    """A process that is started, killed and started again."""

    def __init__(self, command: list[str], log: Path) -> None:
        self._command = command
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, cwd=ROOT, stderr=log)

    def end(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)
            self._process.wait(60)

    def said(self) -> str:
        """The end of its log."""
        return self._log.read_text()[-1500:]


class Broker(Victim):
    """The broker's process."""

    def __init__(self, site: Site) -> None:
        self.socket = site.directory / "broker.sock"
        self.address = f"unix:{self.socket}"
        self.database = site.directory / "broker.db"
        command = [
            *_MVPS, "broker", "--listen", self.address, "--database", str(self.database), "--metrics", "",
            "--key", str(site.broker_key), "--operator", site.operator, "--manifests", str(site.manifests),
        ]  # fmt: skip
        super().__init__(command, site.directory / "broker.log")

    def start(self) -> None:
        self.socket.unlink(missing_ok=True)
        super().start()


class Sender(Victim):
    """The sending process; its record is read back by :func:`read_record`."""

    def __init__(self, site: Site, broker: Broker) -> None:
        self.record = site.directory / "record"
        command = [sys.executable, "-m", "bench.crash", "--send", str(site.directory), broker.address]
        super().__init__(command, site.directory / "sender.log")

    def answers(self) -> int:
        """Acknowledgements written down so far."""
        return self.record.read_bytes().count(b"\nack ") if self.record.exists() else 0


def send(directory: Path, target: str) -> None:
    """The sending process: until it is ended."""
    record = os.open(directory / "record", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    counter = Counter(directory / "counter")

    class Written(Counter):
        """Writes a counter down before anyone sees it."""

        def __init__(self) -> None:  # the state file is claimed already
            self.generation = counter.generation  # type: ignore[misc]

        def next(self, lane: Lane) -> int:
            number = counter.next(lane)
            os.write(record, b"\nuse %d %d" % (lane, number))
            return number

        def close(self) -> None:
            counter.close()

    identity = Identity(
        str(directory / f"{NAME}.key"),
        load_key(str(directory / "operator.key")).public,
        directory / "manifests",
        directory / "received",
        NAME,
    )
    uplink = BrokerUplink(target, NAME, identity, Written(), 4096)
    ended: list[int] = []
    said = ""
    signal.signal(signal.SIGTERM, lambda number, _: ended.append(number))
    done: set[tuple[int, int]] = set()
    tick = time.time_ns() // TICK_NS - 4000  # ticks of the past, so that they can be sent as fast as they are made
    while not ended or uplink.state().queued:
        if not ended and (tick + 1) * TICK_NS < time.time_ns():
            tick += 1
            body = pb.Snapshot(
                schema_version=1, vantage_id=NAME, tick=tick, tick_time_ns=tick * TICK_NS, tick_period_ns=TICK_NS
            )  # fmt: skip
            uplink.submit(body.SerializeToString(), tick)
        state = uplink.state()
        if (words := f"{state.state}: {state.detail}") != said:
            said = words
            print(time.strftime("%T"), os.getpid(), words, file=sys.stderr, flush=True)
        for one in uplink.records()[-512:]:
            key = (one.lane, one.counter)
            if one.state == State.ACKNOWLEDGED and key not in done:
                done.add(key)
                os.write(record, b"\nack %d %d" % key)
        time.sleep(0.004)
    uplink.close()


def read_record(path: Path) -> tuple[list[tuple[int, int]], set[tuple[int, int]]]:
    """(used, acknowledged) as (lane, counter)."""
    used, acknowledged = [], set()
    for line in path.read_text().splitlines():
        words = line.split()
        if len(words) == 3:
            key = (int(words[1]), int(words[2]))
            if words[0] == "use":
                used.append(key)
            else:
                acknowledged.add(key)
    return used, acknowledged


def _stored(database: Path) -> list[tuple[int, int]]:
    """(lane, counter) of every accepted row, from the database itself: history pages by time, not by row."""
    import sqlite3

    with sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True) as db:
        runs = db.execute("SELECT lane, entries FROM runs").fetchall()
    db.close()
    return [(lane, entry.counter) for lane, packed in runs for entry in entries_of(packed, 0, 0) if not entry.reason]


def rounds(broker: Broker, sender: Sender, kills: int, chance: random.Random) -> Tally[str]:
    """Kill ``kills`` times; who was killed how often."""
    killed: Tally[str] = Tally()
    broker.start()
    sender.start()
    for number in range(kills):
        before, deadline = sender.answers(), time.monotonic() + 60
        # Every other life may end before it answered anything, while it starts or recovers.
        if number % 2:
            while sender.answers() == before:
                if time.monotonic() > deadline:
                    raise SystemExit(f"bench: nothing is answered any more\n{broker.said()}\n{sender.said()}")
                time.sleep(0.002)
        time.sleep(chance.uniform(SHORTEST_S, LONGEST_S))
        victim = chance.choice(("broker", "agent"))
        killed[victim] += 1
        process: Victim = broker if victim == "broker" else sender
        process.end(signal.SIGKILL)
        process.start()
        if number % 20 == 19:
            print(f"{number + 1} of {kills} kills, {sender.answers()} answers")
    return killed


def audit(broker: Broker, site: Site) -> dict[str, Any]:
    """What `mvps verify` says."""
    done = subprocess.run(
        [
            *_MVPS, "verify", str(broker.database), "--operator", site.operator,
            "--manifests", str(site.manifests), "--json",
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode not in (0, 1):
        raise SystemExit(f"bench: mvps verify: {done.stderr}")
    shown: dict[str, Any] = json.loads(done.stdout)
    return shown


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kills", type=int, default=0, help="default 30, with --full 200")
    parser.add_argument("--seed", type=int, default=1)


def run(given: argparse.Namespace) -> Result:
    kills = given.kills or (200 if given.full else 30)
    with tempfile.TemporaryDirectory(prefix="crash-", dir=WORK) as name:
        site = make_site(Path(name), [NAME], tick_ms=50)
        broker = Broker(site)
        sender = Sender(site, broker)
        try:
            killed = rounds(broker, sender, kills, random.Random(given.seed))
            sender.end(signal.SIGTERM)
            broker.end(signal.SIGTERM)
        finally:
            sender.end(signal.SIGKILL)
            broker.end(signal.SIGKILL)
        used, acknowledged = read_record(sender.record)
        stored = _stored(broker.database)
        shown = audit(broker, site)
    reused = [key for key, times in Tally(used).items() if times > 1]
    twice = [key for key, times in Tally(stored).items() if times > 1]
    lost = acknowledged - set(stored)
    never = set(stored) - set(used)
    details = {
        "killed": dict(killed),
        "counters_used": len(used),
        "acknowledged": len(acknowledged),
        "stored": len(stored),
        "acknowledged_and_lost": len(lost),
        "counters_used_twice": len(reused),
        "stored_twice": len(twice),
        "stored_and_never_sent": len(never),
        "log_holds": shown["holds"],
        "log_leaves": shown.get("size", shown.get("leaves")),
    }
    print(", ".join(f"{key} {value}" for key, value in details.items()))
    bad = len(lost) + len(reused) + len(twice) + len(never) + (not shown["holds"])
    if bad:
        print(json.dumps(shown)[:2000])
    return Result(float(bad), "violations", 0.0, bad == 0 and len(acknowledged) > kills, details)


def main(arguments: Sequence[str]) -> None:
    _, directory, target = arguments
    send(Path(directory), target)


if __name__ == "__main__":
    main(sys.argv[1:])
