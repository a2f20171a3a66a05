# SPDX-License-Identifier: Apache-2.0
"""Manifests, enrolments, notes, and what witnesses are asked: signed text."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence

from bench.fuzzing.target import (
    NOW_S,
    Mutate,
    Target,
    World,
    honest_snapshot,
    key_of,
    line_mutator,
    require,
)
from mvps.trust import limits
from mvps.trust.checkpoint import (
    Binding,
    Checkpoint,
    CheckpointError,
    Distances,
    InclusionProof,
    parse_checkpoint,
    parse_proof,
)
from mvps.trust.enrolment import Enrolment, EnrolmentError, open_enrolment, sign_enrolment
from mvps.trust.epochs import Epochs
from mvps.trust.evidence_log import EvidenceError, leaf_of, sealed_of, split_leaves
from mvps.trust.keys import KeySourceError, Kind, PublicKey, SecretKey, parse_public
from mvps.trust.manifest import (
    Manifest,
    ManifestError,
    Profile,
    Vantage,
    open_manifest,
    parse_manifest,
    parse_network,
    sign_manifest,
)
from mvps.trust.merkle import EMPTY, Tree, TreeHead, consistency_proof, inclusion_proof, leaf_hash
from mvps.trust.note import (
    COSIGNATURE_V1,
    ED25519,
    Note,
    NoteError,
    NoteKey,
    parse_note,
    parse_note_key,
    parse_signatures,
    sign_note,
    verified,
)
from mvps.trust.seal import Purpose, SealError
from mvps.trust.witness import Request, RequestError, Witness, parse_request, size_in_conflict


class _Signed(Target):
    """Signed notes. First octet: as it is, or a text that the right key signs."""

    def mutate(self, data: bytes, max_size: int, seed: int, mutate: Mutate) -> bytes:
        return line_mutator(data, max_size, seed, mutate)


def _signed(text: bytes, name: str, key: SecretKey) -> bytes | None:
    try:
        content = text.decode()
        return Note(content, (sign_note(content, name, key.sign, key.public.ed25519),)).render()
    except (UnicodeDecodeError, NoteError):
        return None


class Manifests(_Signed):
    """An operator's manifest: signature, text, and the epochs of a broker that takes it in."""

    share = 0.07

    def __init__(self) -> None:
        super().__init__()
        self.world = world = World(Profile.TRUST)
        first, second = world.manifests
        witness = key_of(Kind.WITNESS, "w.example").public.ed25519
        vantage = second.vantages[0]
        rich = Manifest(
            **{name: getattr(second, name) for name in Manifest.__dataclass_fields__}
            | {
                "epoch_id": 3, "previous": second.digest, "faults": 0, "quorum": 1, "embedding": "m/1", "from_s": NOW_S,
                "retire_s": NOW_S + 600, "witnesses": (NoteKey("w.example", COSIGNATURE_V1, witness),),
                "vantages": (
                    vantage._replace(
                        cell="r1", roles=("host", "edge"),
                        prefixes=(parse_network("10.0.0.0/8"), parse_network("2001:db8::/32")),
                    ),
                    *second.vantages[1:],
                ),
            }
        )  # fmt: skip
        signed = [sign_manifest(manifest, world.operator) for manifest in (first, second, rich)]
        self.known = {manifest.digest for manifest in (first, second, rich)}
        self.seeds = [b"\1" + rich.text.encode(), *(b"\0" + one for one in signed), b"\1" + second.text.encode()]
        # Vantages with one key: refused, after all of them were read. And as many signatures as a note may have.
        line = f"vantage h-%05d cell=- roles=- prefixes=- key={vantage.key.text}\n"
        many = "".join(line % n for n in range(limits.MAX_PUSHED_MANIFEST_BYTES // len(line)))
        head, _, _ = second.text.partition("vantage ")
        self.largest = [b"\1" + (head + many).encode()]
        copies = signed[1].rstrip(b"\n").rsplit(b"\n", 1)[1] + b"\n"
        self.largest.append(b"\0" + signed[1] + copies * 99)

    def run(self, data: bytes) -> None:
        anew = bool(data[:1] and data[0] & 1)
        signed = _signed(data[1:], "solo", self.world.operator) if anew else data[1:]
        if signed is None:
            return
        try:
            manifest = open_manifest(signed, self.world.operator.public)
        except ManifestError:
            return
        require(anew or manifest.digest in self.known, "a manifest that the operator did not sign")
        require(manifest.text == parse_note(signed).text, "a manifest that was signed in another text")
        require(parse_manifest(manifest.text) == manifest, "a manifest reads back as another one")
        epochs = Epochs.of_broker([self.world.broker_key])
        for known in (*self.world.manifests, manifest):
            try:
                epochs.add(known)
            except ManifestError:
                return
        for vantage in manifest.vantages[:3]:
            for purpose in (Purpose.SNAPSHOT, Purpose.CONTROL):
                try:
                    epochs.sealing_key(vantage.vantage_id, manifest.epoch_id, purpose)
                except SealError:
                    continue
        self.taken_in += 1


class Enrolments(_Signed):
    """A host's request, and the manifest that admits it."""

    share = 0.07

    def __init__(self) -> None:
        super().__init__()
        self.key = key_of(Kind.HOST, "host-9")
        vantage = Vantage("host-9", self.key.public, "r1", ("host",), (parse_network("10.0.0.5/32"),))
        full = Enrolment(vantage, "node17.example", NOW_S)
        bare = Enrolment(Vantage("host-9", self.key.public), "", NOW_S)
        self.texts = {parse_note(sign_enrolment(one, self.key)).text for one in (full, bare)}
        self.seeds = [b"\1" + text.encode() for text in sorted(self.texts)]
        self.seeds += [b"\0" + sign_enrolment(one, self.key) for one in (full, bare)]
        self.largest = [b"\0" + b"\xe2\x80\x94 a AAAAAAAA\n" * (limits.MAX_ENROLMENT_BYTES // 15)]

    def run(self, data: bytes) -> None:
        anew = bool(data[:1] and data[0] & 1)
        name = data[1:].partition(b"\nvantage ")[2].partition(b"\n")[0].decode(errors="replace")
        signed = _signed(data[1:], name, self.key) if anew else data[1:]
        if signed is None:
            return
        try:
            request = open_enrolment(signed)
        except EnrolmentError:
            return
        text = parse_note(signed).text
        # Its Ed25519 half: a request shows nothing about the X25519 half, and the manifest refuses one that is in use.
        require(request.vantage.key.ed25519 == self.key.public.ed25519, "a request of a key that did not sign it")
        require(anew or text in self.texts, "a request that its key did not sign")
        require(text.endswith(request.text), "a request that was signed in another text")
        self.taken_in += 1


class _Memory:
    """Heads of a witness, without a disk."""

    def __init__(self, origin: str, head: TreeHead) -> None:
        self.heads = {origin: head}

    def head(self, origin: str) -> TreeHead:
        return self.heads.get(origin, EMPTY)

    def record(self, origin: str, head: TreeHead) -> None:
        require(head.size >= self.head(origin).size, "a witness cosigned a smaller tree")
        self.heads[origin] = head


class _Log:
    """A log of a few leaves, its nodes and its checkpoints."""

    def __init__(self, leaves: Sequence[bytes]) -> None:
        self.key = key_of(Kind.BROKER, "site-1")
        self.tree = Tree()
        self.heads = [EMPTY]
        self._nodes: dict[tuple[int, int], bytes] = {}
        for number, leaf in enumerate(leaves):
            for level, node in enumerate(self.tree.append([leaf_hash(leaf)])):
                self._nodes[level, number >> level] = node
            self.heads.append(self.tree.head)

    def node(self, level: int, index: int) -> bytes:
        return self._nodes[level, index]

    def text(self, size: int) -> str:
        lines = Binding(NOW_S, bytes(32), Distances(0.5, 2.0)).lines
        return Checkpoint("site-1", size, self.heads[size].root, lines).text

    def note(self, size: int) -> Note:
        text = self.text(size)
        return Note(text, (sign_note(text, "site-1", self.key.sign, self.key.public.ed25519),))


class Witnesses(_Signed):
    """A log's request to a witness that has cosigned three of its leaves."""

    share = 0.08

    def __init__(self) -> None:
        super().__init__()
        self.log = log = _Log([bytes([n]) for n in range(9)])
        self.key = key_of(Kind.WITNESS, "w.example")
        self.seeds = []
        for old, new in ((3, 9), (3, 3), (3, 4), (0, 5), (3, 8)):
            request = Request(old, tuple(consistency_proof(old, new, log.node)), log.note(new)).render()
            head, _, _ = request.partition(b"\n\n")
            self.seeds += [b"\1" + head + b"\n\n" + log.text(new).encode(), b"\0" + request]
        self.texts = {log.text(size) for size in range(10)}
        signature = log.note(9).signatures[0].line
        padding = (signature * 99).encode()
        self.largest = [b"\0" + self.seeds[1][1:] + padding, b"\0old 3\n" + b"A" * 60_000 + b"\n\nx\n\n"]

    def run(self, data: bytes) -> None:
        anew = bool(data[:1] and data[0] & 1)
        body = data[1:]
        if anew:
            head, _, text = body.partition(b"\n\n")
            signed = _signed(text, "site-1", self.log.key)
            if signed is None:
                return
            body = head + b"\n\n" + signed
        known = self.log.heads[3]
        memory = _Memory("site-1", known)
        log_key = NoteKey("site-1", ED25519, self.log.key.public.ed25519)
        witness = Witness("w.example", self.key.sign, self.key.public.ed25519, [log_key], memory)
        reply = witness.add_checkpoint(body, NOW_S)
        require(reply.status in (200, 400, 403, 404, 409, 422), f"answered {reply.status}")
        if reply.status != 200:
            require(memory.head("site-1") == known, "what was not cosigned was kept")
            return
        request = parse_request(body)
        cosigned = parse_checkpoint(request.checkpoint.text)
        require(anew or request.checkpoint.text in self.texts, "cosigned what the log did not sign")
        require(memory.head("site-1") == cosigned.head, "cosigned another tree than it kept")
        # Whoever signs may also extend the tree, but not by mutating octets: that takes hashes that fit.
        honest = self.log.heads[cosigned.size] if cosigned.size < len(self.log.heads) else None
        require(cosigned.head == honest, "cosigned a tree that does not begin with the one before")
        note = Note(request.checkpoint.text, parse_signatures(reply.body.decode()))
        require(verified(note, [witness.key]) == [(witness.key, NOW_S)], "a cosignature that does not hold")
        again = witness.add_checkpoint(body, NOW_S)
        require(again.status == (200 if request.old == cosigned.size else 409), "cosigned from an old size again")
        self.taken_in += 1


class Notes(_Signed):
    """Every other text or file that comes from somebody else; the first octet chooses the reader."""

    share = 0.15

    def __init__(self) -> None:
        super().__init__()
        world = World(Profile.TRUST)
        body = honest_snapshot().SerializeToString()
        sealed = [world.seal(body, counter=n, epoch_id=epoch) for n, epoch in ((1, 1), (2, 2), (3, 2))]
        log = _Log([leaf_of(one) for one in sealed])
        proof = InclusionProof(leaf_of(sealed[1]), 1, tuple(inclusion_proof(1, 3, log.node)), log.note(3))
        self.leaf = leaf_of(sealed[1])
        witness = NoteKey("w.example", COSIGNATURE_V1, world.host_key.public.ed25519)
        self.readers: list[Callable[[bytes], object]] = [
            self._proof, self._checkpoint, self._leaves, self._public, self._key, self._note, self._signatures,
            self._request, size_in_conflict,
        ]  # fmt: skip
        texts = [
            proof.render(),
            log.text(3).encode(),
            b"".join(map(leaf_of, sealed)),
            world.broker_key.public.text.encode(),
            witness.text.encode(),
            log.note(3).render(),
            log.note(3).signatures[0].line.encode(),
            Request(1, tuple(consistency_proof(1, 3, log.node)), log.note(3)).render(),
            b"17\n",
        ]
        self.seeds = [bytes([n]) + text for n, text in enumerate(texts)]
        encoded = base64.b64encode(bytes(limits.MAX_BODY))
        self.largest = [
            b"\0" + proof.render().replace(base64.b64encode(self.leaf), encoded),
            b"\2" + leaf_of(sealed[0]) * (limits.MAX_MESSAGE_BYTES // len(leaf_of(sealed[0]))),
            b"\5" + b"\n" * limits.MAX_PUSHED_MANIFEST_BYTES,
            b"\5" + "\u2014 a AAAAAAAA\n".encode() * (limits.MAX_PUSHED_MANIFEST_BYTES // 16),
            b"\x08" + b"9" * 16_384,
        ]

    def run(self, data: bytes) -> None:
        if data:
            self.readers[data[0] % len(self.readers)](data[1:])

    def _proof(self, data: bytes) -> None:
        try:
            proof = parse_proof(data)
            checkpoint = proof.verified_head()
        except CheckpointError:
            return
        require(parse_proof(proof.render()) == proof, "a proof reads back as another one")
        require(proof.leaf_index < checkpoint.size, "a leaf outside its tree")
        self.taken_in += 1

    def _checkpoint(self, data: bytes) -> None:
        try:
            text = data.decode()
        except UnicodeDecodeError:
            return
        try:
            checkpoint = parse_checkpoint(text)
        except CheckpointError:
            return
        require(checkpoint.text == text, "a checkpoint of more than one text")
        try:
            binding = checkpoint.binding
        except CheckpointError:
            return
        require(binding.lines == checkpoint.extensions, "extension lines of more than one form")
        self.taken_in += 1

    def _leaves(self, data: bytes) -> None:
        end = 0
        try:
            for offset, sealed in split_leaves(lambda size, at: data[at : at + size], len(data)):
                require(offset == end, "leaves with something between them")
                end += sealed.size
                require(sealed_of(leaf_of(sealed)) == sealed, "a leaf reads back as another one")
        except EvidenceError:
            return
        require(end == len(data), "octets behind the last leaf")
        self.taken_in += 1

    def _public(self, data: bytes) -> None:
        try:
            key: PublicKey = parse_public(data.decode(errors="replace"))
        except KeySourceError:
            return
        require(parse_public(key.text, key.kind) == key, "a public key reads back as another one")
        self.taken_in += 1

    def _key(self, data: bytes) -> None:
        text = data.decode(errors="replace")
        try:
            key = parse_note_key(text)
        except NoteError:
            return
        require(key.text == text, "a note key of more than one text")
        self.taken_in += 1

    def _note(self, data: bytes) -> None:
        try:
            note = parse_note(data)
        except NoteError:
            return
        require(note.render() == data, "a note of more than one form")
        self.taken_in += 1

    def _signatures(self, data: bytes) -> None:
        text = data.decode(errors="replace")
        try:
            signatures = parse_signatures(text)
        except NoteError:
            return
        require("".join(one.line for one in signatures) == text, "signature lines of more than one form")
        self.taken_in += 1

    def _request(self, data: bytes) -> None:
        try:
            request = parse_request(data)
        except RequestError:
            return
        require(parse_request(request.render()) == request, "a request reads back as another one")
        self.taken_in += 1
