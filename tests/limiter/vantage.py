# SPDX-License-Identifier: Apache-2.0
"""A sending vantage as a process: ``python vantage.py SITE NAME TARGET PERIOD_S``.

Real keys, epochs, seals and stream client; only the probes are missing. Submits a snapshot every period until its
standard input ends, waits up to 20 s for answers, and prints one JSON object: the client's totals, how often it
connected again, and for each acknowledged snapshot when it was sealed and settled (ns since the Unix epoch).
"""

from __future__ import annotations

import json
import select
import sys
import time
from dataclasses import asdict
from pathlib import Path

from wire_samples import snapshot

from mvps.daemon.identity import Identity
from mvps.stream.client import StreamClient
from mvps.stream.ledger import State
from mvps.trust.keys import load_key
from mvps.trust.seal import Lane, Purpose, Sealer, Verifier


def main(site: Path, name: str, target: str, period_s: float) -> None:
    operator = load_key(str(site / "operator.key")).public
    identity = Identity(str(site / f"{name}.key"), operator, site / "manifests", site / "received", name)
    manifest = identity.epochs.manifests[-1]
    number = int(time.time()) << 32  # each process its own generation

    def count(_lane: Lane) -> int:
        nonlocal number
        number += 1
        return number

    key = identity.epochs.sealing_key(name, manifest.epoch_id, Purpose.SNAPSHOT)
    sealer = Sealer(key, name, Purpose.SNAPSHOT, count, epoch_id=manifest.epoch_id)
    client = StreamClient(
        target, name, Verifier(identity.epochs, Purpose.CONTROL), queue_limit=100_000, history=100_000
    )
    client.start()
    begun, sent = time.monotonic(), 0
    body = snapshot(name)
    while not select.select([sys.stdin], [], [], max(0.0, begun + sent * period_s - time.monotonic()))[0]:
        while begun + sent * period_s <= time.monotonic():
            tick = time.time_ns() * 1000 // (manifest.tick_ms * 10**9)
            body.tick, body.tick_period_ns = tick, manifest.tick_ms * 10**6
            body.tick_time_ns = tick * body.tick_period_ns
            client.submit(sealer.seal(body.SerializeToString(), tick, Lane.LIVE))
            sent += 1
            if sent == 1:
                print("sending", flush=True)
    deadline = time.monotonic() + 20
    while client.status().totals.queued and time.monotonic() < deadline:
        time.sleep(0.02)
    status = client.status()
    times = [(r.sealed_ns, r.settled_ns) for r in client.records() if r.state == State.ACKNOWLEDGED]
    client.stop()
    print(json.dumps({**asdict(status.totals), "reconnects": status.reconnects, "state": status.state, "times": times}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], float(sys.argv[4]))
