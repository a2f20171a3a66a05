# SPDX-License-Identifier: Apache-2.0
"""A broker's answers as an agent reads them."""

from __future__ import annotations

import base64
import contextlib
import tempfile
from pathlib import Path

from google.protobuf.message import DecodeError

from bench.fuzzing.target import (
    NONCE,
    NOW_NS,
    Mutate,
    Target,
    World,
    envelope_mutator,
    honest_snapshot,
    require,
    seed_of,
)
from mvps.daemon.identity import Identity
from mvps.stream.client import StreamClient
from mvps.stream.ledger import Ledger
from mvps.trust import limits
from mvps.trust.epochs import EpochSealer
from mvps.trust.keys import Kind
from mvps.trust.manifest import (
    Profile,
    sign_manifest,
)
from mvps.trust.seal import Purpose, Sealed, SealError, StreamCounter, Verifier, parse_header
from mvps.v1 import stream_pb2 as pb


class _SealsAgain(EpochSealer):
    """An agent's sealer, at a fixed time."""

    def __init__(self, world: World) -> None:
        super().__init__(world.host, "host-1", StreamCounter(1 << 33), lambda: NOW_NS)

    def check(self, sealed: Sealed) -> None:
        """Everything was sealed here."""

    def hopeless(self, error: SealError) -> str:
        """Nothing is."""
        return ""


class Answers(Target):
    """What an agent makes of a broker's answers. First octet: the profile, and whether each is sealed anew."""

    share = 0.13

    def __init__(self) -> None:
        super().__init__()
        self.worlds = [World(profile) for profile in Profile]
        self.sent: list[list[Sealed]] = []
        self.clients: list[StreamClient] = []
        self.identities: list[Identity] = []
        self._folder = tempfile.TemporaryDirectory(prefix="mvps-fuzz-")
        self.honest: set[Sealed] = set()
        self.seeds = []
        self._mutator = envelope_mutator(pb.AckBatch, "sealed", pb.Acks)
        body = honest_snapshot().SerializeToString()
        for n, world in enumerate(self.worlds):
            self.identities.append(self._identity(world, Path(self._folder.name, f"{n}")))
            self.sent.append([world.seal(body, counter=k) for k in (1, 2, 3)])
            client = StreamClient(
                "unix:/nobody", "host-1", Verifier(world.host, Purpose.CONTROL), resealer=_SealsAgain(world)
            )
            client.stop()
            self.clients.append(client)
            for statuses in ((1, 1, 1), (2, 3, 1), (3, 3, 3)):
                acks = pb.Acks(stream_nonce=NONCE)
                for sealed, status, reason in zip(self.sent[n], statuses, (22, 24, 30), strict=True):
                    header = parse_header(sealed.header)
                    acks.acks.add(lane=1, counter=header.counter, digest=sealed.digest, status=status,
                                  reason=reason if status == 3 else 0)  # fmt: skip
                counter = StreamCounter()
                answers = [world.seal_answer(acks.SerializeToString(), counter) for _ in range(2)]
                self.honest.update(answers)
                whole = pb.AckBatch(manifests=[sign_manifest(world.manifests[1], world.operator)])
                for header_, content, tag in answers:
                    whole.sealed.add(header=header_, body=content, tag=tag)
                self.seeds += [bytes([n + 2 * anew]) + whole.SerializeToString() for anew in range(2)]
        # As many answers as one seal covers, and as many manifests as one message carries.
        many = pb.Acks(stream_nonce=NONCE, acks=[pb.Ack(lane=1, counter=k, digest=bytes(32)) for k in range(10_000)])
        self.largest = [b"\2" + pb.AckBatch(sealed=[pb.SealedAcks(body=many.SerializeToString())]).SerializeToString()]
        self.largest.append(b"\0" + pb.AckBatch(manifests=[b"x"] * 350_000).SerializeToString())

    def _identity(self, world: World, folder: Path) -> Identity:
        """What takes in manifests that a broker passes on."""
        installed = folder / "manifests"
        installed.mkdir(parents=True)
        for manifest in world.manifests:
            (installed / f"{manifest.epoch_id}.manifest").write_bytes(sign_manifest(manifest, world.operator))
        key = folder / "host.key"
        key.touch(mode=0o600)
        seed = base64.b64encode(seed_of(Kind.HOST, "host-1")).decode()
        key.write_text(f"mvps-secret-v1:host:{seed}\n")
        return Identity(str(key), world.operator.public, installed, folder / "received", "host-1")

    def run(self, data: bytes) -> None:
        choice = data[0] if data else 0
        which, anew = choice % 2, bool(choice & 2)
        world, client = self.worlds[which], self.clients[which]
        if len(data) > limits.MAX_MESSAGE_BYTES:
            return
        try:
            whole = pb.AckBatch.FromString(data[1:])
        except DecodeError:
            return
        identity = self.identities[which]
        identity.receive(whole.manifests)
        require(identity.epochs.manifests == tuple(world.manifests), "a manifest that the operator did not sign")
        client._outbox.ledger = ledger = Ledger(10)
        for sealed in self.sent[which]:
            ledger.add(sealed)
        ledger.take()
        digests = {sealed.digest for sealed in self.sent[which]}
        last, counter, named = 0, StreamCounter(), False
        for item in whole.sealed:
            answer = Sealed(item.header, item.body, item.tag)
            if anew:
                if len(item.body) > limits.MAX_BODY:
                    continue
                answer = world.seal_answer(item.body, counter)
                with contextlib.suppress(DecodeError):
                    named |= any(ack.digest in digests for ack in pb.Acks.FromString(item.body).acks)
            else:
                named |= answer in self.honest
            after = client._take_acks(answer, NONCE, last)
            require(after >= last, "the counter of the answers went back")
            require(after == last or anew or answer in self.honest, "an answer counted that the broker did not make")
            last = after
        totals = ledger.totals()
        settled = totals.acknowledged + totals.rejected
        require(totals.balanced, "the accounts do not add up")
        require(not settled or named, "settled, and no answer named its digest")
        self.taken_in += bool(settled)

    def mutate(self, data: bytes, max_size: int, seed: int, mutate: Mutate) -> bytes:
        return self._mutator(data, max_size, seed, mutate)
