# SPDX-License-Identifier: Apache-2.0
"""The witness over real HTTP on loopback, with another client than the broker's."""

import asyncio
import http.client
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from mvps.trust.checkpoint import Checkpoint
from mvps.trust.merkle import Tree, TreeHead, consistency_proof, leaf_hash, node_place
from mvps.trust.note import ED25519, Note, NoteKey, parse_signatures, sign_note, verified
from mvps.trust.witness import MAX_REQUEST, Request, Witness
from mvps.witness.heads import HeadsFile
from mvps.witness.server import ListenError, WitnessServer

LOG = Ed25519PrivateKey.generate()
LOG_KEY = NoteKey("log.example", ED25519, LOG.public_key().public_bytes_raw())
SIGNER = Ed25519PrivateKey.generate()


class Serving:
    """A witness that listens, and what it said."""

    def __init__(self, address: str, witness: Witness, heads: HeadsFile, said: list[str]) -> None:
        self.address = address
        self.witness = witness
        self.heads = heads
        self.said = said

    async def post(self, body: bytes, path: str = "/add-checkpoint") -> tuple[int, bytes, str]:
        return await asyncio.to_thread(self._post, body, path)

    def _post(self, body: bytes, path: str) -> tuple[int, bytes, str]:
        connection = http.client.HTTPConnection(self.address, timeout=10)
        connection.request("POST", path, body)
        answer = connection.getresponse()
        found = answer.status, answer.read(), answer.getheader("Content-Type", "")
        connection.close()
        return found


@asynccontextmanager
async def serving(path: Path, *, new: bool = True) -> AsyncIterator[Serving]:
    heads = HeadsFile(path, new=new)
    said: list[str] = []
    witness = Witness("w.example", SIGNER.sign, SIGNER.public_key().public_bytes_raw(), [LOG_KEY], heads)
    server = WitnessServer(witness, "127.0.0.1:0", said.append)
    await server.start()
    try:
        yield Serving(server.address, witness, heads, said)
    finally:
        await server.stop()
        heads.close()


def leaves(count: int, fork: int = -1) -> list[bytes]:
    return [leaf_hash(b"%d%s" % (i, b"'" if i == fork else b"")) for i in range(count)]


def request(old: int, hashes: list[bytes]) -> Request:
    tree = Tree()
    nodes = tree.append(hashes)
    proof = consistency_proof(old, len(hashes), lambda level, i: nodes[node_place(level, i)])
    text = Checkpoint("log.example", *tree.head).text
    return Request(old, tuple(proof), Note(text, (sign_note(text, LOG_KEY.name, LOG.sign, LOG_KEY.public),)))


async def test_it_cosigns_what_only_grows(tmp_path: Path) -> None:
    async with serving(tmp_path / "w.json") as witness:
        for old, new in ((0, 3), (3, 3), (3, 9)):
            asked = request(old, leaves(new))
            status, body, kind = await witness.post(asked.render())
            assert (status, kind) == (200, "text/plain; charset=utf-8")
            note = Note(asked.checkpoint.text, parse_signatures(body.decode()))
            ((_, time_s),) = verified(note, [witness.witness.key])
            assert time_s > 1_700_000_000
        assert await witness.post(request(3, leaves(9)).render()) == (409, b"9\n", "text/x.tlog.size")
        assert witness.said == []


async def test_two_brokers_with_forked_logs_of_one_origin(tmp_path: Path) -> None:
    async with serving(tmp_path / "w.json") as witness:
        assert (await witness.post(request(0, leaves(5)).render()))[0] == 200
        # The second broker does not know what the first one showed; then it learns the size.
        assert (await witness.post(request(0, leaves(5, fork=2)).render()))[:2] == (409, b"5\n")
        assert (await witness.post(request(5, leaves(5, fork=2)).render()))[:2] == (409, b"5\n")
        assert (await witness.post(request(5, leaves(8, fork=2)).render()))[0] == 422
        assert len(witness.said) == 2
        assert all("different histories" in line for line in witness.said)
        assert (await witness.post(request(5, leaves(8)).render()))[0] == 200


async def test_it_remembers_over_a_restart(tmp_path: Path) -> None:
    async with serving(tmp_path / "w.json") as witness:
        assert (await witness.post(request(0, leaves(5)).render()))[0] == 200
    async with serving(tmp_path / "w.json", new=False) as witness:
        assert (await witness.post(request(0, leaves(6, fork=1)).render()))[:2] == (409, b"5\n")
        assert (await witness.post(request(5, leaves(6, fork=1)).render()))[0] == 422


async def test_of_many_requests_at_once_one_history_is_cosigned(tmp_path: Path) -> None:
    async with serving(tmp_path / "w.json") as witness:
        asked = [request(0, leaves(5, fork=i)).render() for i in range(5) for _ in range(3)]
        answers = await asyncio.gather(*map(witness.post, asked))
        assert [status for status, _, _ in answers].count(200) == 1
        assert {status for status, _, _ in answers} == {200, 409}


async def test_without_its_memory_it_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(tmp_path / "w.json") as witness:

        def fails(origin: str, head: TreeHead) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(witness.heads, "record", fails)
        status, body, _ = await witness.post(request(0, leaves(5)).render())
        assert (status, body) == (500, b"this witness cannot write its state\n")
        assert "No space left" in witness.said[0]


@pytest.mark.parametrize(
    ("body", "path", "status"),
    [
        (b"", "/add-checkpoint", 400),
        (b"x" * 1000, "/add-checkpoint", 400),
        (b"x" * (MAX_REQUEST + 1), "/add-checkpoint", 413),
        (b"", "/other", 404),
    ],
)
async def test_other_requests(tmp_path: Path, body: bytes, path: str, status: int) -> None:
    async with serving(tmp_path / "w.json") as witness:
        assert (await witness.post(body, path))[0] == status


async def test_other_methods(tmp_path: Path) -> None:
    async with serving(tmp_path / "w.json") as witness:

        def get() -> int:
            connection = http.client.HTTPConnection(witness.address, timeout=10)
            connection.request("GET", "/add-checkpoint")
            return connection.getresponse().status

        assert await asyncio.to_thread(get) == 405


@pytest.mark.parametrize("listen", ["", "7448", ":7448", "127.0.0.1:http"])
async def test_addresses_that_are_none(tmp_path: Path, listen: str) -> None:
    make: Callable[[], object] = lambda: WitnessServer(None, listen, print)  # type: ignore[arg-type] # noqa: E731
    with pytest.raises(ListenError, match="write HOST:PORT"):
        make()


async def test_a_taken_port(tmp_path: Path) -> None:
    async with serving(tmp_path / "w.json") as witness:
        second = WitnessServer(witness.witness, witness.address, print)
        with pytest.raises(ListenError, match="cannot listen"):
            await second.start()
        await second.stop()
