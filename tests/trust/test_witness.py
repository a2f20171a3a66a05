# SPDX-License-Identifier: Apache-2.0
"""Vectors: the example request of C2SP tlog-witness, and the sequence of requests with which FiloSottile/litetlog tests
its witness (internal/witness/witness_test.go, cmd/litewitness/testdata/litewitness.txt)."""

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from mvps.trust.checkpoint import Checkpoint
from mvps.trust.merkle import EMPTY, Tree, TreeHead, consistency_proof, leaf_hash, node_place
from mvps.trust.note import COSIGNATURE_V1, ED25519, Note, NoteError, NoteKey, parse_signatures, sign_note, verified
from mvps.trust.witness import MAX_REQUEST, SIZE_TYPE, Request, RequestError, Witness, parse_request, size_in_conflict

EXAMPLE = """old 20852014
PlRNCrwHpqhGrupue0L7gxbjbMiKA9temvuZZDDpkaw=
jrJZDmY8Y7SyJE0MWLpLozkIVMSMZcD5kvuKxPC3swk=
5+pKlUdi2LeF/BcMHBn+Ku6yhPGNCswZZD1X/6QgPd8=
/6WVhPs2CwSsb5rYBH5cjHV/wSmA79abXAwhXw3Kj/0=

example.com/behind-the-sofa
20852163
CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=

— example.com/behind-the-sofa \
Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=
— example.com/behind-the-sofa \
opLqBQsREYCgu6xQkYQwJr9fo45a62DN9EdmHXnZdXNqlcVGlCum2Wks+49/V6267UEjw6QUXTS5Rovnzv++qbSzm9Q=
"""
SIGSUM = "sigsum.org/v1/tree/4d6d8825a6bb689d459628312889dfbb0bcd41b5211d9e1ce768b0ff0309e562"
SIGSUM_KEY = bytes.fromhex("ffdc2d4d98e4124d3feaf788c0c2f9abfd796083d1f0495437f302ec79cf100f")
WITNESS_SEED = bytes.fromhex("31ffc2116ecbe003acaa800ab70757bd7d53206e3febef6a6d0796d95530b34f")
LOG = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
LOG_PUBLIC = LOG.public_key().public_bytes_raw()
SIGNER = Ed25519PrivateKey.from_private_bytes(WITNESS_SEED)
NOW = 1_679_315_147


class Remembered(dict[str, TreeHead]):
    """Heads in memory; refuses to record while ``full``."""

    full = False

    def head(self, origin: str) -> TreeHead:
        return self.get(origin, EMPTY)

    def record(self, origin: str, head: TreeHead) -> None:
        if self.full:
            raise OSError("No space left on device")
        self[origin] = head


def witness(heads: Remembered) -> Witness:
    logs = [NoteKey(SIGSUM, ED25519, SIGSUM_KEY), NoteKey("log.example", ED25519, LOG_PUBLIC)]
    return Witness("example.com/witness", SIGNER.sign, SIGNER.public_key().public_bytes_raw(), logs, heads)


def sigsum(old: int, size: int, root: str, signature: str, *proof: str) -> bytes:
    """A request as litewitness's test makes it: everything in hexadecimal, the key id as in its notes."""
    encoded = [base64.b64encode(bytes.fromhex(step)).decode() + "\n" for step in proof]
    text = f"{SIGSUM}\n{size}\n{base64.b64encode(bytes.fromhex(root)).decode()}\n"
    signed = base64.b64encode(bytes.fromhex("5202289b" + signature)).decode()
    return f"old {old}\n{''.join(encoded)}\n{text}\n— {SIGSUM} {signed}\n".encode()


def node(last: int, first: int = 0x2A, second: int = 0) -> str:
    return f"{first:02x}{second:02x}" + "00" * 29 + f"{last:02x}"


SIZE_3 = "45c088d4d939e9971298811f227d1295eaad57bbafae55cd71c171e7de48c25d"
SIGNED_3 = (
    "655bb4871d15bc05032d67eece88900c4863a27f190393b99176391577f5def9"
    "71b023d9a418c3226b7b7ea47b33686d9b3849451dadc6b07c007c595af1ea0a"
)
SIZE_5 = "42bb57ad06420afa4882c4a63ac6a1ec77480b330b2f20dfc53a0caa5f564e36"
SIGNED_5 = (
    "0fc43899968b48b5150b0e8fe7ad07b17c21c7056a6fe381deb0cd19ece103d5"
    "9b2119b5dbe5d54d8a1262ce67f01245c5898b4b56f747495804a17a2eec0f0c"
)
SIGNED_1 = (
    "b7cf653aa9c565a1ca359db81bd3bc656ab2890c6ea4c0aec42295e80aa05049"
    "423505026434f987923ccdf07d440c152cd59e736e5914d8ada8d7a4d51b2106"
)
INNER = "f9f50357e93def4078237b8aaea24ce1a3f5965a0f64ff26bebd99e30470d8b2"
OTHER = "c2088815d65f60dbfa594d4e96504ab169cb6084bf0c132ab7c521fd2e0eba41"


def test_the_sequence_of_litewitness() -> None:
    heads = Remembered()
    judge = witness(heads)

    def answer(request: bytes) -> tuple[int, bytes]:
        reply = judge.add_checkpoint(request, NOW)
        return reply.status, reply.body

    right = (node(0, second=1), node(0, second=2))
    status, body = answer(sigsum(0, 1, node(0), SIGNED_1))
    assert status == 200
    assert heads[SIGSUM] == (1, bytes.fromhex(node(0)))
    assert answer(sigsum(1, 3, SIZE_3, SIGNED_3[:-1] + "b", *right))[0] == 403
    unknown = sigsum(1, 3, SIZE_3, SIGNED_3, *right).replace(b"e562\n3", b"e561\n3")
    assert answer(unknown)[0] == 404
    assert answer(sigsum(1, 3, SIZE_3, SIGNED_3))[0] == 422
    assert answer(sigsum(1, 3, SIZE_3, SIGNED_3, right[0], node(1, second=2)))[0] == 422
    assert heads[SIGSUM].size == 1
    status, body = answer(sigsum(1, 3, SIZE_3, SIGNED_3, *right))
    assert status == 200
    five = (5, SIZE_5, SIGNED_5)
    assert answer(sigsum(1, *five, right[0], INNER, node(0, second=4))) == (409, b"3\n")
    status, body = answer(sigsum(3, *five, right[1], node(0, second=3), OTHER, node(0, second=4)))
    assert status == 200
    note = Note(f"{SIGSUM}\n5\n{base64.b64encode(bytes.fromhex(SIZE_5)).decode()}\n", parse_signatures(body.decode()))
    assert verified(note, [judge.key]) == [(judge.key, NOW)]
    assert heads[SIGSUM] == (5, bytes.fromhex(SIZE_5))


def test_the_proof_from_one_to_five_of_litewitness() -> None:
    heads = Remembered({SIGSUM: TreeHead(1, bytes.fromhex(node(0)))})
    request = sigsum(1, 5, SIZE_5, SIGNED_5, node(0, second=1), INNER, node(0, second=4))
    assert witness(heads).add_checkpoint(request, NOW).status == 200


def test_the_example_request_renders_again() -> None:
    request = parse_request(EXAMPLE.encode())
    assert request.render() == EXAMPLE.encode()
    assert (request.old, len(request.proof), len(request.checkpoint.signatures)) == (20852014, 4, 2)


# ---- a log of our own


def leaves(count: int, fork: int = -1) -> list[bytes]:
    return [leaf_hash(b"%d%s" % (i, b"'" if i == fork else b"")) for i in range(count)]


def request(old: int, hashes: list[bytes], *, signer: Ed25519PrivateKey = LOG, extension: str = "") -> bytes:
    tree = Tree()
    nodes = tree.append(hashes)
    proof = consistency_proof(min(old, len(hashes)), len(hashes), lambda level, i: nodes[node_place(level, i)])
    text = Checkpoint("log.example", *tree.head).text + extension
    signature = sign_note(text, "log.example", signer.sign, LOG_PUBLIC)
    return Request(old, tuple(proof), Note(text, (signature,))).render()


def test_nothing_is_cosigned_that_could_not_be_kept() -> None:
    heads = Remembered()
    heads.full = True
    judge = witness(heads)
    with pytest.raises(OSError, match="No space"):
        judge.add_checkpoint(request(0, leaves(3)), NOW)
    heads.full = False
    assert judge.add_checkpoint(request(0, leaves(3)), NOW).status == 200
    heads.full = True  # the same checkpoint again changes nothing that would have to be kept
    assert judge.add_checkpoint(request(3, leaves(3)), NOW + 9).status == 200


def test_two_histories_of_one_size_are_refused_with_an_alarm() -> None:
    judge = witness(Remembered())
    assert judge.add_checkpoint(request(0, leaves(7)), NOW).status == 200
    reply = judge.add_checkpoint(request(7, leaves(7, fork=3)), NOW)
    assert (reply.status, reply.body, reply.content_type) == (409, b"7\n", SIZE_TYPE)
    assert "different histories" in reply.alarm


@pytest.mark.parametrize("fork", range(7))
def test_a_forked_log_gets_no_cosignature_on_any_larger_size(fork: int) -> None:
    judge = witness(Remembered())
    assert judge.add_checkpoint(request(0, leaves(7)), NOW).status == 200
    for size in range(8, 20):
        reply = judge.add_checkpoint(request(7, leaves(size, fork=fork)), NOW)
        assert reply.status == 422
        assert "different histories" in reply.alarm
    assert judge.add_checkpoint(request(7, leaves(9)), NOW).status == 200


def test_a_smaller_tree_is_a_conflict() -> None:
    judge = witness(Remembered())
    judge.add_checkpoint(request(0, leaves(7)), NOW)
    assert judge.add_checkpoint(request(0, leaves(5)), NOW)[:3] == (409, b"7\n", SIZE_TYPE)
    assert judge.add_checkpoint(request(5, leaves(5)), NOW)[:2] == (409, b"7\n")
    assert judge.add_checkpoint(request(7, leaves(5)), NOW).status == 400


def test_extension_lines_are_covered() -> None:
    judge = witness(Remembered())
    reply = judge.add_checkpoint(request(0, leaves(2), extension="mvps-d2 none\n"), NOW)
    text = Checkpoint("log.example", *_head(leaves(2))).text
    signature = parse_signatures(reply.body.decode())
    assert verified(Note(text + "mvps-d2 none\n", signature), [judge.key]) == [(judge.key, NOW)]
    with pytest.raises(NoteError):
        verified(Note(text, signature), [judge.key])


def test_a_key_of_another_log_does_not_vouch() -> None:
    other = Ed25519PrivateKey.generate()
    assert witness(Remembered()).add_checkpoint(request(0, leaves(2), signer=other), NOW).status == 403
    body = request(0, leaves(2)).replace("— log.example ".encode(), "— else.example ".encode())
    assert witness(Remembered()).add_checkpoint(body, NOW).status == 403


def test_a_log_may_have_two_keys_while_it_changes_them() -> None:
    new = Ed25519PrivateKey.generate()
    keys = [
        NoteKey("log.example", ED25519, LOG_PUBLIC),
        NoteKey("log.example", ED25519, new.public_key().public_bytes_raw()),
    ]
    judge = Witness("w", SIGNER.sign, SIGNER.public_key().public_bytes_raw(), keys, Remembered())
    assert judge.add_checkpoint(request(0, leaves(2)), NOW).status == 200
    text = Checkpoint("log.example", *_head(leaves(2))).text
    note = Note(text, (sign_note(text, "log.example", new.sign, keys[1].public),))
    assert judge.add_checkpoint(Request(2, (), note).render(), NOW).status == 200


def test_a_log_key_must_be_one() -> None:
    with pytest.raises(NoteError, match="algorithm 4"):
        Witness("w", SIGNER.sign, bytes(32), [NoteKey("log", COSIGNATURE_V1, bytes(32))], Remembered())


def _head(hashes: list[bytes]) -> TreeHead:
    tree = Tree()
    tree.append(hashes)
    return tree.head


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("old 20852014", "old 020852014"),
        ("old 20852014", "old -1"),
        ("old 20852014", "20852014"),
        ("old 20852014\n", ""),
        ("PlRN", "PlR"),
        ("PlRN", "\u00e9lRN"),
        ("/0=\n\n", "/0=\n"),
        ("old 20852014\n", "old 20852014\n" + "jrJZDmY8Y7SyJE0MWLpLozkIVMSMZcD5kvuKxPC3swk=\n" * 60),
        ("AYQ8=\n", "AYQ8=\n" + "x" * MAX_REQUEST),
    ],
)
def test_malformed_requests(old: str, new: str) -> None:
    assert old in EXAMPLE
    body = EXAMPLE.replace(old, new, 1).encode()
    with pytest.raises(RequestError):
        parse_request(body)
    assert witness(Remembered()).add_checkpoint(body, NOW).status == 400


@given(st.binary(max_size=400))
def test_any_bytes_get_an_answer(data: bytes) -> None:
    judge = witness(Remembered())
    for body in (data, b"old 0\n\n" + data, request(0, leaves(2))[:40] + data):
        assert judge.add_checkpoint(body, NOW).status in (400, 403, 404)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12), st.sampled_from([-1, -1, 2, 5])), max_size=12))
def test_whatever_it_is_asked_it_cosigns_one_history(steps: list[tuple[int, int, int]]) -> None:
    judge = witness(Remembered())
    cosigned: list[list[bytes]] = []
    for old, size, fork in steps:
        hashes = leaves(size, fork)
        if judge.add_checkpoint(request(old, hashes), NOW).status == 200:
            assert all(hashes[: len(earlier)] == earlier for earlier in cosigned)
            cosigned.append(hashes)


@pytest.mark.parametrize(("body", "size"), [(b"17\n", 17), (b"0\n", 0), (b"", None), (b"x\n", None), (b"1" * 20, None)])
def test_the_size_in_a_conflict(body: bytes, size: int | None) -> None:
    assert size_in_conflict(body) == size
