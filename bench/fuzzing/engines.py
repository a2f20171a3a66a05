# SPDX-License-Identifier: Apache-2.0
"""Batches of audit packets that a serving engine sends to its host's agent."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Iterable

from google.protobuf.message import DecodeError

from bench.fuzzing.target import NOW_NS, SECOND, Mutate, Target, json_mutator, require, shake
from mvps.daemon.engines import EXTENSION, MAX_LINES, Engines, Refused
from mvps.surplus.minutes import MAX_TENANTS
from mvps.surplus.packets import Cap as Packet
from mvps.surplus.packets import Chain, HealthMinute, follow, parse
from mvps.trust import limits
from mvps.v1 import local_pb2 as pb
from mvps.v1 import snapshot_pb2 as snapshots

_HASH = "sha256:" + "0" * 64
_PACKET = {
    "schema": "cap.v1", "ts": "2027-01-15T08:00:00Z", "tenant": "acme", "session": _HASH, "model": "llama",
    "theta": 0.4, "phi": 0.2, "iT": None, "L": {"dlp": -1.0, "progress": 0.5, "structRisk": 0.1},
    "Gamma": {"drift": 0.2, "modeFlip": 0.0, "fmtDebt": 0.1}, "lambda": 0.4, "kl_used": 0.003, "kl_budget": 0.008,
    "dlogits_l2": 0.1, "steps": 20, "fallback": "none", "action": {"type": "token"}, "candidates": 8, "state": "Green",
    "latency_ms": 12.5, "tokens": 20,
}  # fmt: skip


class Engine(Target):
    """One stream: a batch, a minute and a tick later. First octet: whether the packets are chained by an honest hand,
    so that what comes behind the chain is what an engine that lies can say.
    """

    share = 0.08
    max_size = 32 * 1024

    def __init__(self) -> None:
        super().__init__()
        packet = json.dumps(_PACKET).encode()
        load = pb.EngineLoad(running=3, waiting=2, slots=8, kv_cache_use=0.5)
        others = [json.dumps({**_PACKET, "tenant": f"t{n}", "fallback": "off"}).encode() for n in range(3)]
        batches = [
            pb.SurplusBatch(chain="engine", lines=[packet], load=load, spread={"acme": 0.7}),
            pb.SurplusBatch(chain="engine", lines=[packet, *others], dropped=4),
            pb.SurplusBatch(),
        ]
        chained = pb.SurplusBatch(chain="engine", lines=_chained([packet] * 3))
        self.seeds = [b"\1" + batch.SerializeToString() for batch in batches] + [b"\0" + chained.SerializeToString()]
        full = [json.dumps({**_PACKET, "tenant": f"t{n}"}).encode() for n in range(MAX_LINES)]
        self.largest = [
            b"\1" + pb.SurplusBatch(lines=full, spread={f"s{n}": 0.5 for n in range(MAX_TENANTS)}).SerializeToString(),
            b"\1" + pb.SurplusBatch(lines=[b'{"L":' * 1600] * MAX_LINES).SerializeToString(),
        ]

    def run(self, data: bytes) -> None:
        try:
            batch = pb.SurplusBatch.FromString(data[1:])
        except DecodeError:
            return
        if data[:1] and data[0] & 1:
            batch.lines[:] = _chained(batch.lines)
        now = [NOW_NS]
        engines = Engines(SECOND, 2, clock=lambda: now[0], steady=lambda: 0.0)
        stream = engines.open("engine")
        try:
            answer = engines.take(stream, batch)
        except Refused:
            require(stream.chain == Chain.begin("engine"), "a refused batch moved its chain")
            require(sum(engines.figures().refused.values()) == 1, "a refusal that is not counted once")
            return
        require(answer.length == len(batch.lines) == stream.chain.length, "a line that was not counted")
        require(follow(Chain.begin("engine"), batch.lines, Packet)[0] == stream.chain, "a head that does not follow")
        require(len(answer.tenants) <= MAX_TENANTS, "more tenants than there is room for")
        for _ in range(2):
            now[0] += 61 * SECOND
            snapshot = snapshots.Snapshot()
            engines.tick(snapshot, {}, SECOND)
            for name, content in snapshot.extensions.items():
                require(len(content) <= limits.MAX_EXTENSION_BYTES, f"{name}: more than a snapshot may carry")
        require(bool(batch.lines) is (stream.sealed > 0), "a head that was not sealed")
        again = engines.take(stream, pb.SurplusBatch())
        for told in (*answer.tenants, *again.tenants, again.others):
            require(0.0 <= told.lam <= 1.0 and math.isfinite(told.lam), "lambda outside [0, 1]")
            require(0.0 <= told.kl_budget < 1.0 and math.isfinite(told.dlogits_budget), "a budget that is none")
        status = engines.status()
        for line in status.health:
            parse(line, HealthMinute)
        require(EXTENSION in snapshot.extensions or stream.sealed == stream.chain.length, "an unsealed head")
        self.taken_in += bool(batch.lines)

    def mutate(self, data: bytes, max_size: int, seed: int, mutate: Mutate) -> bytes:
        chance = random.Random(seed)
        try:
            batch = pb.SurplusBatch.FromString(data[1:])
        except DecodeError:
            return mutate(data, max_size)
        action = chance.random()
        if not data or not batch.lines or action < 0.1:
            return mutate(data, max_size)
        if action < 0.3:
            shake(batch, chance)
        elif action < 0.4:
            batch.lines.append(chance.choice(batch.lines))
        else:
            at = chance.randrange(len(batch.lines))
            batch.lines[at] = json_mutator(batch.lines[at], 8192, seed, mutate)
        changed = data[:1] + batch.SerializeToString()
        return changed if len(changed) <= max_size else data[:max_size]


def _chained(packets: Iterable[bytes]) -> list[bytes]:
    """Packets, whatever they are, as lines of one chain: the form of ``Chain.append``, without its schema."""
    head, lines = Chain.begin("engine").head, []
    for number, packet in enumerate(packets):
        lines.append(b'{"packet":%b,"prev":"%b","seq":%d}' % (packet, head.encode(), number))
        head = "sha256:" + hashlib.sha256(lines[-1]).hexdigest()
    return lines
