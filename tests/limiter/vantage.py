# SPDX-License-Identifier: Apache-2.0
"""Sending vantages as a process: ``python vantage.py SITE TARGET PERIOD_S NAME...``.

Real keys, epochs, seals and stream clients; only the probes are missing. Each submits a snapshot every period until the
standard input ends; then waits up to 20 s for answers, and prints one JSON object: the clients' totals together, how
often they connected again, and by vantage, for each acknowledged snapshot, when it was sealed and settled (ns since the
Unix epoch).
"""

from __future__ import annotations

import json
import select
import sys
import time
from pathlib import Path
from typing import Any

from wire_samples import snapshot

from mvps.daemon.identity import Identity
from mvps.stream.client import StreamClient
from mvps.stream.ledger import State
from mvps.trust.keys import load_key
from mvps.trust.seal import Lane, Purpose, Sealer, Verifier


class Sender:
    """One vantage."""

    def __init__(self, site: Path, name: str, target: str) -> None:
        operator = load_key(str(site / "operator.key")).public
        identity = Identity(str(site / f"{name}.key"), operator, site / "manifests", site / "received", name)
        self.manifest = identity.epochs.manifests[-1]
        self._number = int(time.time()) << 32  # each process its own generation
        key = identity.epochs.sealing_key(name, self.manifest.epoch_id, Purpose.SNAPSHOT)
        self._sealer = Sealer(key, name, Purpose.SNAPSHOT, self._count, epoch_id=self.manifest.epoch_id)
        acks = Verifier(identity.epochs, Purpose.CONTROL)
        self.client = StreamClient(target, name, acks, queue_limit=100_000, history=100_000)
        self._body = snapshot(name)
        self.client.start()

    def _count(self, _lane: Lane) -> int:
        self._number += 1
        return self._number

    def send(self) -> None:
        """Submit the snapshot of this tick."""
        body, period_ns = self._body, self.manifest.tick_ms * 10**6
        body.tick, body.tick_period_ns = time.time_ns() // period_ns, period_ns
        body.tick_time_ns = body.tick * period_ns
        self.client.submit(self._sealer.seal(body.SerializeToString(), body.tick, Lane.LIVE))

    def times(self) -> list[tuple[int, int]]:
        """Sealed and settled, of what was acknowledged."""
        return [(r.sealed_ns, r.settled_ns) for r in self.client.records() if r.state == State.ACKNOWLEDGED]


def main(site: Path, target: str, period_s: float, names: list[str]) -> None:
    senders = [Sender(site, name, target) for name in names]
    begun, rounds = time.monotonic(), 0
    while not select.select([sys.stdin], [], [], max(0.0, begun + rounds * period_s - time.monotonic()))[0]:
        while begun + rounds * period_s <= time.monotonic():
            for sender in senders:
                sender.send()
            rounds += 1
            if rounds == 1:
                print("sending", flush=True)
            if select.select([sys.stdin], [], [], 0)[0]:
                break  # it cannot keep up, and is to end all the same
    deadline = time.monotonic() + 20
    while any(sender.client.status().totals.queued for sender in senders) and time.monotonic() < deadline:
        time.sleep(0.02)
    found: dict[str, Any] = {"times": {}, "reconnects": 0}
    for name, sender in zip(names, senders, strict=True):
        status = sender.client.status()
        for kind in ("produced", "acknowledged", "rejected", "queued", "dropped"):
            found[kind] = found.get(kind, 0) + getattr(status.totals, kind)
        found["reconnects"] += status.reconnects
        found["times"][name] = sender.times()
        sender.client.stop()
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]), sys.argv[4:])
