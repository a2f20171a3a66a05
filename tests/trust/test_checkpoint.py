# SPDX-License-Identifier: Apache-2.0
"""Vectors: the examples of C2SP tlog-checkpoint; the shape of proofs is that of transparency-dev/formats,
proof/tlog_proof_test.go."""

import base64
import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvps.trust.checkpoint import (
    Binding,
    Checkpoint,
    CheckpointError,
    Distances,
    InclusionProof,
    parse_checkpoint,
    parse_proof,
    worst_case,
)
from mvps.trust.merkle import EMPTY_ROOT, Tree, inclusion_proof, leaf_hash, node_place
from mvps.trust.note import Note, NoteSignature

SOFA = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
SIGNED = NoteSignature("log.example", b"abcd", bytes(64))


def test_the_example_of_the_source() -> None:
    checkpoint = parse_checkpoint(SOFA)
    assert checkpoint.text == SOFA
    assert (checkpoint.origin, checkpoint.size) == ("example.com/behind-the-sofa", 20852163)
    assert checkpoint.root.hex() == "0ac5186a91863e8e1d90c808014aa89bf5da8e3ee1d9f07630f0378f68f1ab62"
    assert parse_checkpoint(SOFA + "anything else\n").extensions == ("anything else",)


@pytest.mark.parametrize(
    "text",
    [
        "",
        SOFA[:-1],
        SOFA + "\n",
        SOFA + "\nx\n",
        "\n".join(SOFA.split("\n")[:2]) + "\n",
        SOFA.replace("20852163", "020852163"),
        SOFA.replace("20852163", "-1"),
        SOFA.replace("20852163", "٣"),
        SOFA.replace("20852163", str(1 << 63)),
        SOFA.replace("q2I=", "q2I"),
        SOFA.replace("q2I=", ""),
        SOFA.replace("q2I=", "q2J="),
        SOFA + "x\n" * 17,
    ],
)
def test_what_is_no_checkpoint(text: str) -> None:
    with pytest.raises(CheckpointError):
        parse_checkpoint(text)


BINDING = Binding(1_795_264_490, bytes(range(32)), Distances(1.5, 12.25))


def test_the_lines_of_a_broker() -> None:
    assert BINDING.lines == (
        "mvps-bundle 2026-11-21T12:34:50Z",
        "mvps-manifest AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
        "mvps-d2 1.5 12.25",
    )
    fleet = BINDING._replace(d2=Distances(1.5, 12.25, of_fleet=True))
    assert fleet.lines == (*BINDING.lines[:2], "mvps-fleet-d2 1.5 12.25")
    assert Checkpoint("x", 0, EMPTY_ROOT, fleet.lines).binding == fleet != BINDING
    assert Binding(0, None, None).lines == ("mvps-bundle 1970-01-01T00:00:00Z", "mvps-manifest none", "mvps-d2 none")


DISTANCES = st.floats(0, allow_nan=False)


@given(
    st.integers(0, 253_402_300_799),
    st.none() | st.binary(min_size=32, max_size=32),
    st.none()
    | st.tuples(DISTANCES, DISTANCES, st.booleans()).map(lambda d: Distances(min(d[:2]), max(d[:2]), of_fleet=d[2])),
)
def test_bindings_round_trip(period_end_s: int, manifest: bytes | None, d2: Distances | None) -> None:
    binding = Binding(period_end_s, manifest, d2)
    checkpoint = Checkpoint("log.example/x", 7, EMPTY_ROOT, binding.lines)
    assert parse_checkpoint(checkpoint.text) == checkpoint
    assert checkpoint.binding == binding


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("12:34:50Z", "12:34:50"),
        ("12:34:50Z", "12:34:5Z"),
        ("12:34:50Z", "12:99:50Z"),
        ("AAEC", "AAE"),
        ("1.5 12.25", "1.50 12.25"),
        ("1.5 12.25", "12.25 1.5"),
        ("1.5 12.25", "1.5"),
        ("1.5 12.25", "nan nan"),
        ("1.5 12.25", "-1.0 2.0"),
        ("1.5 12.25", "1.5 2.0 3.0"),
        ("mvps-d2", "mvps-d3"),
        ("mvps-d2 1.5 12.25", "mvps-fleet-d2 none"),
        ("mvps-d2 1.5 12.25", "mvps-fleet-d2 12.25 1.5"),
        ("mvps-d2 1.5 12.25", "mvps-fleet-d2 1.5 12.25 1"),
    ],
)
def test_lines_that_are_not_a_brokers(old: str, new: str) -> None:
    extensions = tuple(line.replace(old, new) for line in BINDING.lines)
    with pytest.raises(CheckpointError):
        _ = Checkpoint("x", 0, EMPTY_ROOT, extensions).binding
    with pytest.raises(CheckpointError, match="extension lines"):
        _ = Checkpoint("x", 0, EMPTY_ROOT, BINDING.lines[:2]).binding


@given(st.lists(st.floats(0, 100), min_size=1, max_size=7), st.integers(0, 4))
def test_the_pair_is_that_of_all_removals(d2: list[float], f: int) -> None:
    removals = itertools.chain.from_iterable(itertools.combinations(range(len(d2)), k) for k in range(f + 1))
    kept = [max((v for i, v in enumerate(d2) if i not in removed), default=0.0) for removed in removals]
    assert worst_case(d2, f) == Distances(min(kept), max(d2))


def test_nobody_reported() -> None:
    assert worst_case([], 1) is None
    assert worst_case([math.inf, 2.0], 1) == Distances(2.0, math.inf)


def proof(leaves: int, index: int) -> InclusionProof:
    data = [bytes([i]) * 3 for i in range(leaves)]
    tree = Tree()
    nodes = tree.append(map(leaf_hash, data))
    path = inclusion_proof(index, leaves, lambda level, i: nodes[node_place(level, i)])
    text = Checkpoint("log.example", leaves, tree.head.root, BINDING.lines).text
    return InclusionProof(data[index], index, tuple(path), Note(text, (SIGNED,)))


@given(st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n - 1))))
def test_proofs_round_trip_and_hold(choice: tuple[int, int]) -> None:
    whole = proof(*choice)
    assert parse_proof(whole.render()) == whole
    assert whole.verified_head().size == choice[0]
    for wrong in (
        whole._replace(leaf=b"other"),
        whole._replace(leaf_index=choice[1] + 1),
        whole._replace(hashes=(*whole.hashes, EMPTY_ROOT)),
    ):
        with pytest.raises(CheckpointError, match="does not lead"):
            wrong.verified_head()


def test_proofs_have_the_format_of_the_source() -> None:
    lines = proof(3, 2).render().decode().split("\n")
    assert lines[:3] == ["c2sp.org/tlog-proof@v1", "extra " + base64.b64encode(b"\2\2\2").decode(), "index 2"]
    assert len(base64.b64decode(lines[3])) == 32
    assert lines[4:6] == ["", "log.example"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("c2sp.org/tlog-proof@v1\n", "wrong-header\n"),
        ("extra AgIC", "extra !!notbase64!!"),
        ("extra AgIC\n", ""),
        ("index 2", "index notanumber"),
        ("index 2", "index -5"),
        ("index 2", "index 02"),
        ("index 2\n", ""),
        ("index 2\n", "index 2\n!!notbase64!!\n"),
        ("index 2\n", "index 2\n" + base64.b64encode(bytes(64)).decode() + "\n"),
        ("index 2\n", "index 2\n" + (base64.b64encode(bytes(32)).decode() + "\n") * 64),
        ("\n\n— ", "\n— "),
    ],
)
def test_what_is_no_proof(old: str, new: str) -> None:
    data = proof(3, 2).render().decode()
    assert old in data
    with pytest.raises(CheckpointError):
        parse_proof(data.replace(old, new).encode())


@given(st.binary(max_size=200))
def test_any_bytes_are_a_proof_or_are_refused(data: bytes) -> None:
    for candidate in (data, b"c2sp.org/tlog-proof@v1\nextra \nindex " + data):
        try:
            parse_proof(candidate)
        except CheckpointError:
            continue
