# SPDX-License-Identifier: Apache-2.0
"""Everything an insider or a stranger can send to a broker, over real gRPC: accepted must be none of it.

A case makes sealed messages out of an honest host's own and says which reasons may be counted for each. Reasons found
before the seal holds end the stream (nobody vouches for the sender), the others are answered under the broker's seal.
Every message must be counted exactly once, under a reason the case names, and nothing may be accepted. Honest messages
between the cases show that the broker still works; forged answers are tried on the real client in tests/stream.
"""

from __future__ import annotations

import argparse
import os
import random
import struct
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc

from bench.harness import WORK, Result
from mvps.broker.process import EmbeddedBroker
from mvps.broker.settings import BrokerSettings
from mvps.trust import limits
from mvps.trust.checkpoint import Checkpoint
from mvps.trust.epochs import Epochs
from mvps.trust.keys import Kind, SecretKey, load_key
from mvps.trust.manifest import Manifest, Profile, Vantage, admit, revoke, sign_manifest, succeed
from mvps.trust.merkle import Tree, consistency_proof, leaf_hash, node_place
from mvps.trust.note import ED25519, Note, NoteKey, sign_note
from mvps.trust.reasons import RejectReason as Why
from mvps.trust.seal import FIXED_HEADER_BYTES, Lane, Purpose, Sealed, Sealer
from mvps.trust.solo import Site, make_site
from mvps.trust.witness import Request, Witness
from mvps.v1 import snapshot_pb2 as pb
from mvps.v1 import stream_pb2, stream_pb2_grpc
from mvps.witness.heads import HeadsFile

SUMMARY = "forged, replayed, truncated, cross-epoch, cross-vantage, downgraded and forked inputs: accepted"
SECOND = 10**9
DAY = 86400
# First octet, octets and name of every header field, and what changing it may lead to.
FIELDS: dict[str, tuple[int, int, frozenset[Why]]] = {
    "magic": (0, 4, frozenset({Why.BAD_MAGIC})),
    "version": (4, 1, frozenset({Why.UNKNOWN_VERSION})),
    "scheme": (5, 1, frozenset({Why.UNKNOWN_SCHEME, Why.WRONG_SCHEME})),
    "purpose": (6, 1, frozenset({Why.WRONG_PURPOSE})),
    "lane": (7, 1, frozenset({Why.UNKNOWN_LANE, Why.BAD_SEAL})),
    "flags": (8, 2, frozenset({Why.BAD_FLAGS})),
    "id length": (10, 1, frozenset({Why.BAD_LENGTH})),
    "reserved": (11, 1, frozenset({Why.BAD_FLAGS})),
    "body length": (12, 4, frozenset({Why.BAD_LENGTH, Why.OVERSIZE})),
    "epoch": (16, 8, frozenset({Why.UNKNOWN_EPOCH, Why.BAD_SEAL})),
    "counter": (24, 8, frozenset({Why.BAD_SEAL})),
    "tick": (32, 8, frozenset({Why.BAD_SEAL})),
    "time": (40, 8, frozenset({Why.BAD_SEAL})),
    "key id": (48, 8, frozenset({Why.UNKNOWN_KEY})),
    "vantage id": (56, 6, frozenset({Why.UNKNOWN_VANTAGE, Why.BAD_VANTAGE_ID, Why.BAD_SEAL, Why.UNKNOWN_KEY})),
}


@dataclass
class Case:
    """One attack: messages, and the reasons that may be counted for each."""

    name: str
    messages: list[Sealed]
    reasons: frozenset[Why]


@dataclass
class Sender:
    """A host that seals whatever it is told to."""

    key: SecretKey
    vantage_id: str
    manifests: list[Manifest]
    counters: Iterator[int]
    clock: Callable[[], int] = time.time_ns
    epochs: Epochs = field(init=False)

    def __post_init__(self) -> None:
        self.epochs = Epochs.of_agent([self.key], self.vantage_id)
        for manifest in self.manifests:
            self.epochs.add(manifest)

    def seal(
        self,
        body: bytes | None = None,
        *,
        epoch_id: int = 2,
        lane: Lane = Lane.LIVE,
        purpose: Purpose = Purpose.SNAPSHOT,
        counter: int | None = None,
        age_s: float = 0.0,
        tick: int | None = None,
        name: str | None = None,
    ) -> Sealed:
        """An honest message, but for what the arguments change."""
        now = time.time_ns() - int(age_s * SECOND)
        tick = now // SECOND if tick is None else tick
        content = snapshot(self.vantage_id, tick).SerializeToString() if body is None else body
        number = next(self.counters) if counter is None else counter
        key = self.epochs.sealing_key(self.vantage_id, epoch_id, purpose)
        sealer = Sealer(key, name or self.vantage_id, purpose, lambda _: number, epoch_id=epoch_id, clock=lambda: now)
        return sealer.seal(content, tick, lane)


def snapshot(vantage_id: str, tick: int) -> pb.Snapshot:
    """A small valid snapshot on a lattice of one second."""
    return pb.Snapshot(
        schema_version=1, vantage_id=vantage_id, tick=tick, tick_time_ns=tick * SECOND, tick_period_ns=SECOND,
        surfaces=[pb.Surface(name="kernel", vector=pb.CoherenceVector(c1=1.0, c2=0.9, c3=0.8))],
    )  # fmt: skip


class Arena:
    """A broker under two epochs (the first retired), an honest host, a revoked one, and strangers."""

    def __init__(self, directory: Path, profile: Profile) -> None:
        begun = int(time.time()) - 2 * DAY
        self.site: Site = make_site(directory, ["host-1", "host-2", "gone"], from_s=begun, valid_s=3 * DAY)
        first = self.site.manifest
        second = revoke(succeed(first, int(time.time()) - 1800), "gone")
        if profile is Profile.TRUST:
            second = Manifest(**{**_fields(second), "profile": Profile.TRUST})
        self.site.sign(second)
        self.profile = profile
        self.broker = EmbeddedBroker(
            BrokerSettings.model_validate(
                {
                    "listen": f"unix:{directory}/broker.sock",
                    "database": directory / "broker.db",
                    "key": str(self.site.broker_key),
                    "operator": self.site.operator,
                    "manifests": self.site.manifests,
                    "metrics": "",
                    "check_decisions": False,
                }
            )
        )
        self.numbers = iter(range(1 << 32, 1 << 40))
        self.host, self.other = (self._sender(name, [first, second]) for name in ("host-1", "host-2"))
        self.gone = self._sender("gone", [first])
        # A key pair of its own and a manifest that only it believes in.
        stranger = SecretKey(os.urandom(32), Kind.HOST)
        believed = admit(second, Vantage("host-1", stranger.public))
        self.stranger = Sender(stranger, "host-1", [believed], self.numbers)
        unknown = SecretKey(os.urandom(32), Kind.HOST)
        self.unknown = Sender(unknown, "nobody", [admit(second, Vantage("nobody", unknown.public))], self.numbers)
        self.channel = grpc.insecure_channel(self.broker.address)
        self.stub = stream_pb2_grpc.BrokerStub(self.channel)

    def _sender(self, name: str, manifests: list[Manifest]) -> Sender:
        return Sender(load_key(str(self.site.host_keys[name])), name, manifests, self.numbers)

    def counts(self) -> Counter[str]:
        assert self.broker.broker is not None
        return Counter(self.broker.broker.counters())

    def send(self, message: Sealed) -> list[stream_pb2.Ack]:
        """One message on a stream of its own: the answers, none when the stream was ended."""
        header, body, tag = message
        batch = stream_pb2.Batch(
            stream_nonce=bytes(limits.NONCE_BYTES),
            items=[stream_pb2.SealedSnapshot(header=header, body=body, tag=tag)],
        )
        acks: list[stream_pb2.Ack] = []
        try:
            for answer in self.stub.Stream(iter([batch]), timeout=20):
                for sealed in answer.sealed:
                    acks.extend(stream_pb2.Acks.FromString(sealed.body).acks)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAUTHENTICATED:
                raise
        return acks

    def close(self) -> None:
        self.channel.close()
        self.broker.stop()


def _fields(manifest: Manifest) -> dict[str, object]:
    return {name: getattr(manifest, name) for name in Manifest.__dataclass_fields__}


def changed(message: Sealed, part: int, at: int, value: int) -> Sealed:
    """The message with one octet of header (0), body (1) or tag (2) replaced."""
    octets = bytearray(message[part])
    octets[at] = value
    parts = list(message)
    parts[part] = bytes(octets)
    return Sealed(*parts)


def flips(message: Sealed, part: int, begin: int, size: int, every: int, chance: random.Random) -> list[Sealed]:
    """Octets changed to other values, ``every`` changes an octet."""
    found = []
    for at in range(begin, begin + size):
        here = message[part][at]
        for value in chance.sample([v for v in range(256) if v != here], every):
            found.append(changed(message, part, at, value))
    return found


def cases(arena: Arena, chance: random.Random, every: int) -> Iterator[Case]:
    """All attacks on one arena."""
    host, other = arena.host, arena.other
    honest = host.seal()
    header, body, tag = honest
    for name, (begin, size, reasons) in FIELDS.items():
        yield Case(f"forged: {name}", flips(honest, 0, begin, size, every, chance), reasons)
    yield Case("forged: body", flips(honest, 1, 0, len(body), 1, chance), frozenset({Why.BAD_SEAL}))
    yield Case("forged: tag", flips(honest, 2, 0, len(tag), every, chance), frozenset({Why.BAD_SEAL}))
    yield Case("forged: no key at all", [arena.stranger.seal() for _ in range(every)], frozenset({Why.UNKNOWN_KEY}))
    yield Case("forged: a name nobody has", [arena.unknown.seal()], frozenset({Why.UNKNOWN_VANTAGE}))
    short = [Sealed(header[:n], body, tag) for n in range(len(header))]
    yield Case("truncated: header", short, frozenset({Why.TRUNCATED, Why.BAD_LENGTH}))
    yield Case(
        "truncated: body or tag",
        [Sealed(header, body[:-n], tag) for n in range(1, len(body), 7)]
        + [Sealed(header, body, tag[:n]) for n in range(len(tag))],
        frozenset({Why.BAD_LENGTH}),
    )
    longer = [Sealed(header + b"x", body, tag), Sealed(header, body + b"x", tag), Sealed(header, body, tag + b"x")]
    yield Case("lengthened", longer, frozenset({Why.BAD_LENGTH}))
    huge = header[:12] + struct.pack(">I", limits.MAX_BODY + 1) + header[16:]
    yield Case("oversized", [Sealed(huge, bytes(limits.MAX_BODY + 1), tag)], frozenset({Why.OVERSIZE}))
    if arena.profile is Profile.CWT:  # a host holds that key as well; under trust only the broker can make one
        yield Case("answer sent as snapshot", [host.seal(purpose=Purpose.CONTROL)], frozenset({Why.WRONG_PURPOSE}))
    # ---- across vantages and epochs
    yield Case("cross-vantage: my body in your name", [other.seal(name="host-1")], frozenset({Why.UNKNOWN_KEY}))
    named = other.seal(name="host-1").header
    stolen = Sealed(named[:48] + header[48:56] + named[56:], other.seal().body, other.seal(name="host-1").tag)
    yield Case("cross-vantage: with your key id", [stolen], frozenset({Why.BAD_SEAL, Why.BAD_LENGTH}))
    inside = snapshot("host-1", time.time_ns() // SECOND).SerializeToString()
    yield Case("cross-vantage: your body under my seal", [other.seal(inside)], frozenset({Why.HEADER_MISMATCH}))
    old = host.seal(epoch_id=1)
    relabelled = Sealed(old.header[:16] + struct.pack(">Q", 2) + old.header[24:], old.body, old.tag)
    # Under profile trust the old seal's scheme no longer counts, and that is seen first.
    downgraded = Why.BAD_SEAL if arena.profile is Profile.CWT else Why.WRONG_SCHEME
    yield Case("cross-epoch: relabelled", [relabelled], frozenset({downgraded}))
    yield Case("cross-epoch: retired", [old], frozenset({Why.EPOCH_RETIRED}))
    early = host.seal(epoch_id=2, lane=Lane.BACKFILL, age_s=2000)
    yield Case("cross-epoch: before it began", [early], frozenset({Why.EPOCH_RETIRED}))
    yield Case("cross-epoch: one that does not exist", [_in_epoch(honest, 7)], frozenset({Why.UNKNOWN_EPOCH}))
    lanes = Sealed(header[:7] + b"\x02" + header[8:], body, tag)
    yield Case("cross-lane: relabelled", [lanes], frozenset({Why.BAD_SEAL}))
    yield Case(
        "revoked", [arena.gone.seal(epoch_id=1, lane=lane, age_s=1.5 * DAY) for lane in Lane], frozenset({Why.REVOKED})
    )
    yield Case("downgraded", [_of_scheme(arena)], frozenset({Why.WRONG_SCHEME}))
    # ---- time and order
    yield Case("stale", [host.seal(age_s=age) for age in (301, 3600)], frozenset({Why.STALE}))
    yield Case("future", [host.seal(age_s=-11), host.seal(age_s=-3600)], frozenset({Why.FUTURE}))
    yield from _replays(arena)
    # ---- an insider with a good seal
    tick = time.time_ns() // SECOND
    bad: dict[Why, list[pb.Snapshot]] = {
        Why.INVALID_VALUE: [snapshot("host-1", tick) for _ in range(4)],
        Why.UNKNOWN_SCHEMA_VERSION: [snapshot("host-1", tick)],
        Why.HEADER_MISMATCH: [snapshot("host-1", tick - 1)],
        Why.OVER_LIMIT: [snapshot("host-1", tick) for _ in range(2)],
    }
    bad[Why.INVALID_VALUE][0].surfaces[0].vector.c2 = 1.5
    bad[Why.INVALID_VALUE][1].surfaces[0].vector.s = float("nan")
    bad[Why.INVALID_VALUE][2].tick_time_ns += 1
    bad[Why.INVALID_VALUE][3].lead = "two\nlines"
    bad[Why.UNKNOWN_SCHEMA_VERSION][0].schema_version = 2
    bad[Why.OVER_LIMIT][0].surfaces.extend(
        pb.Surface(name=f"s{n}", vector=pb.CoherenceVector()) for n in range(limits.MAX_SURFACES)
    )
    bad[Why.OVER_LIMIT][1].extensions["x"] = bytes(limits.MAX_EXTENSION_BYTES + 1)
    for reason, bodies in bad.items():
        sealed = [host.seal(one.SerializeToString(), tick=tick) for one in bodies]
        yield Case(f"insider: {reason.label}", sealed, frozenset({reason}))
    good = snapshot("host-1", tick).SerializeToString()
    unknown = [host.seal(good + suffix, tick=tick) for suffix in (b"\xf8\x07\x01", b"\xfa\x07\x03abc")]
    yield Case("insider: unknown field", unknown, frozenset({Why.UNKNOWN_FIELD}))
    noise = [host.seal(chance.randbytes(n)) for n in range(1, 60)] + [host.seal(good[:-n], tick=tick) for n in (1, 5)]
    yield Case(
        "insider: garbage",
        noise,
        frozenset({Why.MALFORMED, Why.UNKNOWN_FIELD, Why.UNKNOWN_SCHEMA_VERSION, Why.INVALID_VALUE}),
    )


def _in_epoch(message: Sealed, epoch_id: int) -> Sealed:
    return Sealed(message.header[:16] + struct.pack(">Q", epoch_id) + message.header[24:], message.body, message.tag)


def _of_scheme(arena: Arena) -> Sealed:
    """Sealed by the scheme that is not the epoch's, as well as whoever does so can."""
    honest = arena.host.seal()
    other = 2 if arena.profile is Profile.CWT else 1
    header = honest.header[:5] + bytes([other]) + honest.header[6:]
    if other == 2:
        return Sealed(header, honest.body, arena.host.key.sign(header + honest.body))
    key = arena.host.epochs.sealing_key("host-1", 1, Purpose.SNAPSHOT)
    return Sealed(header, honest.body, key.tag(header, honest.body))


def _replays(arena: Arena) -> Iterator[Case]:
    """Needs messages that were accepted: they are sent here and are no attack."""
    host = arena.host
    first, second = host.seal(), host.seal()
    for message in (first, second):
        (ack,) = arena.send(message)
        if ack.status != stream_pb2.ACK_STATUS_ACCEPTED:
            raise SystemExit(f"bench: an honest snapshot was refused: {ack}")
    spent = struct.unpack(">Q", first.header[24:32])[0]
    tick = time.time_ns() // SECOND
    again = snapshot("host-1", tick)
    again.lead = "mm"
    yield Case(
        "equivocation", [host.seal(again.SerializeToString(), tick=tick, counter=spent)], frozenset({Why.EQUIVOCATION})
    )
    skipped = [host.seal(counter=number) for number in (0, 1, (1 << 32) - 1)]
    yield Case("reordered: counters below the highest", skipped, frozenset({Why.REPLAYED}))


def fight(arena: Arena, chance: random.Random, every: int) -> dict[str, dict[str, int]]:
    """Send every case; per case what was sent and how it was counted. Accepted ones are under "accepted"."""
    table: dict[str, dict[str, int]] = {}
    for case in cases(arena, chance, every):
        before = arena.counts()
        for message in case.messages:
            acks = arena.send(message)
            bad = [ack for ack in acks if ack.status != stream_pb2.ACK_STATUS_REJECTED]
            if bad:
                print(f"{case.name}: answered {bad}")
        grown = arena.counts() - before
        reasons = {name.removeprefix("rejected."): n for name, n in grown.items() if name.startswith("rejected.")}
        allowed = {reason.label for reason in case.reasons}
        row = {
            "sent": len(case.messages),
            "accepted": grown["accepted"] + grown["duplicates"],
            "own_reason": sum(n for name, n in reasons.items() if name in allowed),
            "other_reason": sum(n for name, n in reasons.items() if name not in allowed),
        }
        table[case.name] = row
        print(f"{case.name:45} {row['sent']:5}  accepted {row['accepted']}  {reasons}")
        honest = arena.send(arena.other.seal())
        if [ack.status for ack in honest] != [stream_pb2.ACK_STATUS_ACCEPTED]:
            raise SystemExit(f"bench: after {case.name!r} an honest snapshot was not accepted")
    return table


def forks(arena: Arena, count: int) -> dict[str, dict[str, int]]:
    """Two histories under one name: an operator's key that signs a second epoch 2, a broker that shows a second log.

    "accepted" counts manifests that came into force and checkpoints that got a cosignature.
    """
    site, broker = arena.site, arena.broker.broker
    assert broker is not None
    before = [manifest.digest for manifest in broker.epochs.manifests]
    for number in range(count):
        forged = replace(succeed(site.manifest, int(time.time()) - 1800), rate_factor=5 + number)
        (site.manifests / f"fork-{number}.manifest").write_bytes(sign_manifest(forged, site.operator_key))
    deadline = time.monotonic() + 20
    while len(broker.info().refused_manifests) < count and time.monotonic() < deadline:
        time.sleep(0.05)
    said = [why for why in broker.info().refused_manifests if "two different manifests of epoch 2" in why]
    new = [manifest for manifest in broker.epochs.manifests if manifest.digest not in before]
    table = {
        "forked: manifests": {
            "sent": count,
            "accepted": len(new),
            "own_reason": len(said),
            "other_reason": count - len(said),
        }
    }

    log, own = SecretKey(os.urandom(32), Kind.BROKER), SecretKey(os.urandom(32), Kind.WITNESS)
    heads = HeadsFile(site.directory / "witness.json", new=True)
    judge = Witness("w1", own.sign, own.public.ed25519, [NoteKey("log", ED25519, log.public.ed25519)], heads)

    def shown(old: int, size: int, salt: bytes) -> int:
        hashes = [leaf_hash(b"%d" % number + (salt if number == 3 else b"")) for number in range(size)]
        tree = Tree()
        nodes = tree.append(hashes)
        proof = consistency_proof(old, size, lambda level, index: nodes[node_place(level, index)])
        text = Checkpoint("log", *tree.head).text
        note = Note(text, (sign_note(text, "log", log.sign, log.public.ed25519),))
        return judge.add_checkpoint(Request(old, tuple(proof), note).render(), int(time.time())).status

    if shown(0, 7, b"") != 200:
        raise SystemExit("bench: the witness does not cosign an honest log")
    answers = [shown(7, 7 + number, b"fork") for number in range(count)]
    heads.close()
    table["forked: log at a witness"] = {
        "sent": count,
        "accepted": answers.count(200),
        "own_reason": sum(status in (409, 422) for status in answers),
        "other_reason": sum(status not in (200, 409, 422) for status in answers),
    }
    for name, row in table.items():
        print(f"{name:45} {row['sent']:5}  accepted {row['accepted']}")
    return table


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--every", type=int, default=0, help="changes per octet (default 2, with --full 40)")
    parser.add_argument("--seed", type=int, default=1)


def run(given: argparse.Namespace) -> Result:
    every = given.every or (40 if given.full else 2)
    rows: dict[str, dict[str, dict[str, int]]] = {}
    for profile in Profile:
        with tempfile.TemporaryDirectory(prefix="attacks-", dir=WORK) as name:
            arena = Arena(Path(name), profile)
            try:
                rows[profile] = fight(arena, random.Random(given.seed), every) | forks(arena, min(every, 10))
            finally:
                arena.close()
    flat = [row for table in rows.values() for row in table.values()]
    total = {key: sum(row[key] for row in flat) for key in flat[0]}
    holds = total["accepted"] == 0 and all(row["own_reason"] == row["sent"] for row in flat)
    wrong = [f"{profile}: {name}" for profile, table in rows.items() for name, row in table.items()
             if row["own_reason"] != row["sent"] or row["accepted"]]  # fmt: skip
    return Result(
        float(total["accepted"]),
        "forged messages accepted",
        0.0,
        holds,
        {"total": total, "wrong": wrong, "cases": rows},
    )


assert sum(size for _, size, _ in FIELDS.values()) == FIXED_HEADER_BYTES + len("host-1")
